package mainjob

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"time"
)

// benchClients is how many connections pgbench keeps.
const benchClients = 4

// startBench lets pgbench run for d, at a rate that leaves room on two
// processors for all else.
func (j *job) startBench(d time.Duration) (err error) {
	j.bench, err = j.start(spec{name: "pgbench", argv: pgbenchCommand(postgresVIP,
		"-n", "-c", strconv.Itoa(benchClients), "-j", "1", "-T", seconds(d), "-R", "200")})
	return err
}

// benchIdentity is what the server knows of pgbench's connections.
func (j *job) benchIdentity() (string, error) {
	return j.witnessSQL.ask(`SELECT string_agg(pid || ':' || client_port || ':' || extract(epoch FROM backend_start), ' ' ORDER BY pid)
		FROM pg_stat_activity WHERE application_name = 'pgbench';`)
}

var (
	benchFailed = regexp.MustCompile(`number of failed transactions: (\d+)`)
	benchDone   = regexp.MustCompile(`number of transactions actually processed: (\d+)`)
)

// judgeBench reads what pgbench says at its end.
func (j *job) judgeBench() {
	text := j.bench.tail()
	count := func(re *regexp.Regexp) int {
		m := re.FindStringSubmatch(text)
		if m == nil {
			return -1
		}
		n, _ := strconv.Atoi(m[1])
		return n
	}
	done, failed := count(benchDone), count(benchFailed)
	j.v.figure("pgbench_transactions", done)
	j.v.must(j.bench.err == nil && done > 0, "pgbench ran to its end", fmt.Sprintf("%d transactions, %v", done, orNone(j.bench.err)), "some, and no error")
	j.v.must(failed == 0, "failed transactions of pgbench", fmt.Sprint(failed), "0")
}

// startIperfClient sends one stream for d.
func (j *job) startIperfClient(d time.Duration) (err error) {
	host, port := "127.0.0.1", port(iperfVIP)
	j.iperf, err = j.start(spec{name: "iperf3", argv: []string{
		program("iperf3"), "-c", host, "-p", port, "-t", seconds(d), "-i", "1", "-b", "400M", "-J"}})
	j.iperfEnd = time.Now().Add(d)
	return err
}

// judgeIperf reads iperf3's JSON.
func (j *job) judgeIperf() {
	var r struct {
		Error     string `json:"error"`
		Intervals []struct {
			Sum struct {
				Seconds float64 `json:"seconds"`
				Bits    float64 `json:"bits_per_second"`
			} `json:"sum"`
		} `json:"intervals"`
		End struct {
			Received struct {
				Bytes uint64  `json:"bytes"`
				Bits  float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	b, err := os.ReadFile(j.iperf.out.Name())
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err == nil {
		err = j.iperf.err
	}
	least, whole := 0.0, 0
	for _, i := range r.Intervals {
		if i.Sum.Seconds < 0.9 { // the rest at the end
			continue
		}
		if whole++; whole == 1 || i.Sum.Bits < least {
			least = i.Sum.Bits
		}
	}
	j.v.figure("iperf3_mbit_mean", round(r.End.Received.Bits/1e6))
	j.v.figure("iperf3_mbit_least", round(least/1e6))
	j.v.figure("iperf3_bytes", r.End.Received.Bytes)
	if err == nil && r.Error != "" {
		err = errors.New(r.Error)
	}
	j.v.must(err == nil, "iperf3 ran to its end", fmt.Sprint(orNone(err)), "no error")
	j.v.must(whole > 0 && least > 0, "iperf3's worst second", fmt.Sprintf("%.0f Mbit/s of %d seconds", least/1e6, whole), "more than 0")
	left := time.Duration(0)
	if !j.lastEvent.IsZero() {
		left = j.iperfEnd.Sub(j.lastEvent)
	}
	j.v.must(left > 0, "the iperf3 stream after the last event", fmt.Sprintf("%.1f s", left.Seconds()), "more than 0: it goes through all events")
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d.Seconds())) }

func orNone(err error) any {
	if err == nil {
		return "no error"
	}
	return err
}
