package admin

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/grpchealth"
)

// Each scrape that comes while one process hands over to another is answered, by
// the one or the other: what the old one has accepted it also answers.
func TestHandoverAnswersEveryScrape(t *testing.T) {
	first, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := first.Addr().String()
	hello := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })
	var end atomic.Bool
	var all sync.WaitGroup
	var good, bad atomic.Int64
	var why sync.Map
	for range 8 {
		all.Go(func() {
			c := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
			for !end.Load() {
				r, err := c.Get("http://" + addr + "/metrics")
				if err != nil {
					bad.Add(1)
					why.Store(err.Error(), true)
					continue
				}
				_, _ = io.Copy(io.Discard, r.Body)
				_ = r.Body.Close()
				good.Add(1)
			}
		})
	}
	l := first
	for range 200 {
		// As a successor has it: a descriptor of its own of the same socket.
		file, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		next, err := net.FileListener(file)
		_ = file.Close()
		if err != nil {
			t.Fatal(err)
		}
		s := &Server{scrapes: serveScrapes(l, hello, slog.New(slog.DiscardHandler)), end: func() {}, health: grpchealth.NewStaticChecker()}
		was := good.Load()
		for good.Load() < was+8 && bad.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		s.Drain()
		l = next
	}
	end.Store(true)
	last := serveScrapes(l, hello, slog.New(slog.DiscardHandler))
	all.Wait()
	last.close()
	if bad.Load() > 0 {
		why.Range(func(k, _ any) bool { t.Log(k); return true })
		t.Errorf("%d scrapes were not answered, %d were", bad.Load(), good.Load())
	}
}
