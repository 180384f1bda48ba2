package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// bodyMax bounds the octets of a body, in either direction.
const bodyMax = 1 << 20

// bodySeed makes the seed of a request's body, or of its response's, from the
// number that its target says. Those of flows are smaller.
func bodySeed(number uint64, down bool) uint64 {
	seed := 1<<63 | number<<1
	if down {
		seed |= 1
	}
	return seed
}

// Page is an example server for HTTP. It answers GET and POST of
// /octets/NUMBER/LENGTH with so many octets that follow from the number, after
// it has looked at those of the request; everything else with its name.
func Page(name string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "well\n") })
	mux.HandleFunc("/octets/{number}/{length}", func(w http.ResponseWriter, r *http.Request) {
		number, err := strconv.ParseUint(r.PathValue("number"), 10, 62)
		length, err2 := strconv.Atoi(r.PathValue("length"))
		if err != nil || err2 != nil || length < 0 || length > bodyMax {
			http.Error(w, "not a number", http.StatusBadRequest)
			return
		}
		up := stream{seed: bodySeed(number, false)}
		if wrong, err := checkAll(&up, r.Body); err != nil || wrong > 0 {
			http.Error(w, fmt.Sprintf("%d wrong octets, %v", wrong, err), http.StatusUnprocessableEntity)
			return
		}
		h := w.Header()
		h.Set("X-Server", name)
		h.Set("X-Received", strconv.FormatUint(up.offset, 10))
		h.Set("Content-Length", strconv.Itoa(length))
		down := stream{seed: bodySeed(number, true)}
		for buf := make([]byte, min(length, chunk)); length > 0; {
			b := buf[:min(length, len(buf))]
			down.next(b)
			if _, err := w.Write(b); err != nil {
				return // the client misses it
			}
			length -= len(b)
		}
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "this is %s, and you asked for %s\n", name, r.URL.Path)
	})
	return mux
}

// checkAll reads r to its end as the next octets of s.
func checkAll(s *stream, r io.Reader) (wrong int, err error) {
	buf := make([]byte, chunk)
	for {
		n, err := r.Read(buf)
		wrong += s.check(buf[:n])
		if errors.Is(err, io.EOF) {
			return wrong, nil
		}
		if err != nil {
			return wrong, err
		}
	}
}

// Web is the steady client of the example servers: connections that are kept,
// on each one request after the other, at a pace that does not depend on how
// fast they are answered. Browse makes it, Stop ends it.
type Web struct {
	target  string
	client  http.Client
	stop    chan struct{}
	once    sync.Once
	running sync.WaitGroup

	number atomic.Uint64
	asked  atomic.Uint64 // answered as they should be
	errors atomic.Int64
	wrong  atomic.Int64
	octets atomic.Uint64
	open   atomic.Int64 // connections
	window histogram
	all    histogram

	// mu guards what follows.
	mu     sync.Mutex
	by     map[string]uint64 // answers by server
	faults []string
}

// WebFigures are what a Web has counted so far.
type WebFigures struct {
	Requests uint64            // answered well and whole
	Errors   int               // all others
	Wrong    int               // octets that were not what they should be
	Octets   uint64            // of bodies, both ways
	Open     int               // connections
	P99, Max time.Duration     // Look: since the last Look; Stop: of all
	Servers  map[string]uint64 // requests by the server that answered
	Faults   []string          // what happened to the first that failed
}

// WebClients is how many connections the client keeps, webPeriod the time
// between two requests of one: 200 a second in all.
const (
	WebClients = 20
	webPeriod  = 100 * time.Millisecond
)

// Browse begins to ask at target.
func Browse(target string) *Web {
	w := &Web{target: target, stop: make(chan struct{}), by: map[string]uint64{}}
	dialer := net.Dialer{Timeout: patience}
	dialer.SetMultipathTCP(false)
	w.client = http.Client{Timeout: patience, Transport: &http.Transport{
		MaxIdleConnsPerHost: WebClients, MaxConnsPerHost: WebClients, DisableCompression: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			w.open.Add(1)
			return &countedConn{Conn: c, open: &w.open}, nil
		},
	}}
	for range WebClients {
		w.running.Add(1)
		go w.ask()
	}
	return w
}

// countedConn counts itself out when it is closed.
type countedConn struct {
	net.Conn
	open *atomic.Int64
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

// ask makes requests until Stop.
func (w *Web) ask() {
	defer w.running.Done()
	time.Sleep(rand.N(webPeriod))
	tick := time.NewTicker(webPeriod)
	defer tick.Stop()
	for {
		if err := w.request(); err != nil {
			w.errors.Add(1)
			w.mu.Lock()
			if len(w.faults) < faultsMax {
				w.faults = append(w.faults, err.Error())
			}
			w.mu.Unlock()
		}
		select {
		case <-w.stop:
			return
		case <-tick.C:
		}
	}
}

// request makes one request and looks at every octet of its answer. One in
// ten has a body, one in ten a large answer.
func (w *Web) request() error {
	number := w.number.Add(1)
	length := rand.IntN(8 << 10)
	method, up, sent := http.MethodGet, io.Reader(nil), 0
	switch rand.IntN(10) {
	case 0:
		length = 64<<10 + rand.IntN(192<<10)
	case 1:
		method, sent = http.MethodPost, 1+rand.IntN(16<<10)
		b := make([]byte, sent)
		(&stream{seed: bodySeed(number, false)}).next(b)
		up = &onceReader{b: b} // not of a kind that net/http would send a second time by itself
	}
	r, err := http.NewRequest(method, fmt.Sprintf("http://%s/octets/%d/%d", w.target, number, length), up)
	if err != nil {
		return err
	}
	if sent > 0 {
		r.ContentLength = int64(sent)
	}
	began := time.Now()
	answer, err := w.client.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(answer.Body, 100))
		return fmt.Errorf("%s %s: %s: %s", method, r.URL.Path, answer.Status, b)
	}
	down := stream{seed: bodySeed(number, true)}
	wrong, err := checkAll(&down, answer.Body)
	w.wrong.Add(int64(wrong))
	switch {
	case err != nil:
		return fmt.Errorf("%s %s: after %d octets of %d: %w", method, r.URL.Path, down.offset, length, err)
	case wrong > 0 || down.offset != uint64(length):
		return fmt.Errorf("%s %s: %d octets of %d, %d of them wrong", method, r.URL.Path, down.offset, length, wrong)
	case answer.Header.Get("X-Received") != strconv.Itoa(sent):
		return fmt.Errorf("%s %s: sent %d octets, arrived %s", method, r.URL.Path, sent, answer.Header.Get("X-Received"))
	}
	w.window.add(time.Since(began))
	w.octets.Add(uint64(sent + length))
	w.asked.Add(1)
	w.mu.Lock()
	w.by[answer.Header.Get("X-Server")]++
	w.mu.Unlock()
	return nil
}

type onceReader struct{ b []byte }

func (r *onceReader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.b)
	r.b = r.b[n:]
	return n, nil
}

// Look gives the figures as they are; times are those since the last Look.
func (w *Web) Look() WebFigures {
	f := w.figures(&w.window)
	w.all.merge(&w.window)
	return f
}

func (w *Web) figures(h *histogram) WebFigures {
	f := WebFigures{
		Requests: w.asked.Load(), Errors: int(w.errors.Load()), Wrong: int(w.wrong.Load()), Octets: w.octets.Load(),
		Open: int(w.open.Load()), P99: h.quantile(0.99), Max: time.Duration(h.longest.Load()), Servers: map[string]uint64{},
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, n := range w.by {
		f.Servers[name] = n
	}
	f.Faults = append(f.Faults, w.faults...)
	return f
}

// Stop lets the requests under way end, closes the connections and gives the
// final figures.
func (w *Web) Stop() WebFigures {
	w.once.Do(func() { close(w.stop) })
	w.running.Wait()
	w.client.CloseIdleConnections()
	w.all.merge(&w.window)
	return w.figures(&w.all)
}
