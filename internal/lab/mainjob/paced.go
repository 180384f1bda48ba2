package mainjob

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/lab"
)

// The long download: curl takes what comes, as fast as it comes, and the server sets the
// pace. Its octets never lie on a disk: their sum is compared.
const (
	pacedFull  = 1 << 30 // octets of a full run
	pacedShort = 32 << 20
	pacedID    = 3 // of its stream
	pacedEvery = 10 * time.Millisecond
)

// paced sends so many octets within so many milliseconds.
func paced(w http.ResponseWriter, r *http.Request) {
	octets, err := strconv.Atoi(r.URL.Query().Get("octets"))
	if err != nil {
		http.Error(w, "octets", http.StatusBadRequest)
		return
	}
	millis, err := strconv.Atoi(r.URL.Query().Get("millis"))
	if err != nil || millis < 1 {
		http.Error(w, "millis", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(octets))
	stream := lab.NewStream(webSeed, pacedID, lab.Down)
	began, sent := time.Now(), 0
	var b []byte
	for tick := time.NewTicker(pacedEvery); sent < octets; <-tick.C {
		due := min(octets, int(float64(octets)*float64(time.Since(began).Milliseconds())/float64(millis)))
		for sent < due {
			b = append(b[:0], make([]byte, min(due-sent, 1<<20))...)
			stream.Fill(b, uint64(sent))
			if _, err := w.Write(b); err != nil {
				return // the client is gone, and says so
			}
			sent += len(b)
		}
		_ = http.NewResponseController(w).Flush()
	}
}

// startPaced begins the download, which lasts for about d.
func (j *job) startPaced(d time.Duration) (err error) {
	j.pacedOctets = pacedFull
	if j.short {
		j.pacedOctets = pacedShort
	}
	url := fmt.Sprintf("http://%s/paced?octets=%d&millis=%d", webVIP, j.pacedOctets, d.Milliseconds())
	j.paced, err = j.start(spec{name: "curl-paced", argv: []string{program("bash"), "-c",
		`set -o pipefail; "$0" -sS --fail "$1" | sha256sum; s=$?; date +%s.%N; exit $s`, program("curl"), url}})
	return err
}

// pacedSum is what the download must come to.
func (j *job) pacedSum() string {
	sum := sha256.New()
	stream := lab.NewStream(webSeed, pacedID, lab.Down)
	b := make([]byte, 1<<20)
	for at := 0; at < j.pacedOctets; at += len(b) {
		b = b[:min(len(b), j.pacedOctets-at)]
		stream.Fill(b, uint64(at))
		sum.Write(b)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// judgePaced compares the sum, and looks whether the download lasted through all events.
func (j *job) judgePaced() {
	if j.paced == nil {
		return
	}
	if !j.paced.ended() {
		j.paced.end(time.Second)
	}
	said := strings.Fields(j.paced.tail())
	sum, end := "none", 0.0
	if len(said) == 3 {
		sum = said[0]
		end, _ = strconv.ParseFloat(said[2], 64)
	}
	want := j.pacedSum()
	j.v.must(j.paced.err == nil && sum == want, fmt.Sprintf("curl of %d MB, its sum", j.pacedOctets>>20), fmt.Sprintf("%.16s (%v)", sum, orNone(j.paced.err)), want[:16])
	over := time.UnixMicro(int64(end * 1e6))
	j.v.must(j.lastEvent.IsZero() || over.After(j.lastEvent), "curl's long download lasts through all events", over.Format("15:04:05.000"), "after "+j.lastEvent.Format("15:04:05.000"))
	j.v.figure("paced_octets", j.pacedOctets)
}
