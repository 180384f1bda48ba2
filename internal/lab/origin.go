package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Fields by which an origin says what it answers, and who it is.
const (
	idField     = "X-Lab-Id"     // of the request
	originField = "X-Lab-Origin" // name of the origin
	connField   = "X-Lab-Conn"   // serial of the connection to it
	upField     = "X-Lab-Up"     // octets of the request's body, all of them right
	downField   = "X-Lab-Down"   // octets of the answer's body
)

// Origin is an HTTP server of which every octet is known beforehand: request
// and answer number n carry the streams of number n. Go's own server parses,
// so what a balancer sends is read by somebody else's rules.
//
// It can misbehave on request: see Crash, Hang, IdlePause. What is not
// exported is set by NewOrigin; without it, in this process's namespace, Open
// begins to serve.
type Origin struct {
	Name string
	Addr netip.AddrPort
	Seed uint64
	// IdlePause bounds the life of an idle connection: each is closed after
	// a time chosen at random below it. 0: they stay.
	IdlePause time.Duration
	// Pages answers all that an origin does not know itself; nil: such
	// requests are strays.
	Pages http.Handler
	// FaultAlso is told of what is wrong; may be nil.
	FaultAlso func(string)

	host   *Host // nil: this process's namespace
	serial atomic.Int64
	hang   atomic.Bool

	Served atomic.Int64 // requests answered
	Cut    atomic.Int64 // requests whose body ended too soon, by an error
	Strays atomic.Int64 // requests for what nobody should ask

	mu     sync.Mutex // guards all below
	server *http.Server
	conns  map[net.Conn]http.ConnState
	hung   map[net.Conn]bool
	faults []string
}

// NewOrigin listens at addr on a host (nil: this process's namespace) and
// serves until Close.
func NewOrigin(h *Host, name string, addr netip.AddrPort, seed uint64) (*Origin, error) {
	o := &Origin{Name: name, Addr: addr, Seed: seed, host: h}
	return o, o.Open()
}

// Open begins to serve, again after a Crash.
func (o *Origin) Open() error {
	var lis net.Listener
	listen := func() (err error) {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		lis, err = lc.Listen(context.Background(), "tcp", o.Addr.String())
		return err
	}
	var err error
	if o.host != nil {
		err = o.host.Do(listen)
	} else {
		err = listen()
	}
	if err != nil {
		return fmt.Errorf("lab: origin %s: %w", o.Name, err)
	}
	o.Addr = lis.Addr().(*net.TCPAddr).AddrPort()
	mux := http.NewServeMux()
	mux.HandleFunc("/o", o.exchange)
	mux.HandleFunc("/ws", o.webSocket)
	mux.HandleFunc("/plain", o.plain)
	mux.HandleFunc("/drain", o.drain)
	mux.HandleFunc("/socket/", o.webSocket)
	if o.Pages != nil {
		mux.Handle("/", o.Pages)
	} else {
		mux.HandleFunc("/", o.stray)
	}
	s := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: time.Minute,
		ConnState:         o.state,
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, serialKey{}, o.serial.Add(1))
		},
	}
	o.mu.Lock()
	o.server, o.conns, o.hung = s, map[net.Conn]http.ConnState{}, map[net.Conn]bool{}
	o.mu.Unlock()
	go func() { _ = s.Serve(holdable{lis, o}) }()
	return nil
}

type serialKey struct{}

// holdable accepts connections that nobody serves while the origin hangs.
type holdable struct {
	net.Listener
	o *Origin
}

func (l holdable) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil || !l.o.hold(c) {
			return c, err
		}
	}
}

// hold keeps a connection that nobody will serve, if the origin hangs.
func (o *Origin) hold(c net.Conn) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.hang.Load() {
		o.hung[c] = true
	}
	return o.hung[c]
}

// state keeps the list of connections, and ends idle ones if that is asked for.
func (o *Origin) state(c net.Conn, s http.ConnState) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if s == http.StateClosed || s == http.StateHijacked {
		if s == http.StateClosed {
			delete(o.conns, c)
		} else {
			o.conns[c] = s
		}
		return
	}
	o.conns[c] = s
	if s == http.StateIdle && o.IdlePause > 0 {
		time.AfterFunc(rand.N(o.IdlePause), func() {
			o.mu.Lock()
			defer o.mu.Unlock()
			if o.conns[c] == http.StateIdle {
				_ = c.Close()
			}
		})
	}
}

// Connections counts those that are open.
func (o *Origin) Connections() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.conns) + len(o.hung)
}

// Crash resets every connection and stops to listen.
func (o *Origin) Crash() {
	o.mu.Lock()
	s := o.server
	for c := range o.conns {
		reset(c)
	}
	for c := range o.hung {
		reset(c)
	}
	o.mu.Unlock()
	_ = s.Close()
}

// Hang accepts from now on and answers nothing, neither on the connections that
// are there nor on new ones, until Crash or Resume.
func (o *Origin) Hang() { o.hang.Store(true) }

// Resume answers again on what came before; what came while it hung is reset.
func (o *Origin) Resume() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.hang.Store(false)
	for c := range o.hung {
		reset(c)
	}
	o.hung = map[net.Conn]bool{}
}

// Close ends it.
func (o *Origin) Close() { o.Crash() }

// reset closes by RST.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// Faults are the wrong octets that came in.
func (o *Origin) Faults() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.faults
}

func (o *Origin) fault(format string, args ...any) {
	s := fmt.Sprintf("origin %s: ", o.Name) + fmt.Sprintf(format, args...)
	o.mu.Lock()
	if len(o.faults) < 100 {
		o.faults = append(o.faults, s)
	}
	o.mu.Unlock()
	if o.FaultAlso != nil {
		o.FaultAlso(s)
	}
}

// plain answers a fixed text, for clients that only count.
func (o *Origin) plain(w http.ResponseWriter, _ *http.Request) {
	o.stall()
	w.Header().Set(originField, o.Name)
	w.Header().Set("Content-Length", strconv.Itoa(len(plainText)))
	_, _ = io.WriteString(w, plainText)
	o.Served.Add(1)
}

// drain takes a body that nobody knows.
func (o *Origin) drain(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		o.Cut.Add(1)
		panic(http.ErrAbortHandler)
	}
	o.plain(w, r)
}

// stray counts what should never have come here.
func (o *Origin) stray(w http.ResponseWriter, _ *http.Request) {
	o.Strays.Add(1)
	w.WriteHeader(http.StatusNotFound)
}

const plainText = "the quick brown fox jumps over the lazy dog\n"

// stall waits while the origin hangs.
func (o *Origin) stall() {
	for o.hang.Load() {
		time.Sleep(20 * time.Millisecond)
	}
}

// exchange verifies the request's body and answers with the octets asked for.
// The query: id, up, down, frame (length, chunked, close), early, wait (ms).
func (o *Origin) exchange(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	number := func(name string) int {
		n, _ := strconv.Atoi(q.Get(name))
		return n
	}
	id, up, down := uint32(number("id")), number("up"), number("down")
	early := q.Get("early") != ""
	o.stall()
	got := 0
	if !early {
		got = o.takeBody(r, id, up)
		if got < 0 {
			panic(http.ErrAbortHandler) // the request is broken: no answer is due
		}
	}
	if ms := number("wait"); ms > 0 {
		time.Sleep(time.Duration(ms) * time.Millisecond)
	}
	h := w.Header()
	h.Set(idField, q.Get("id"))
	h.Set(originField, o.Name)
	h.Set(connField, fmt.Sprint(r.Context().Value(serialKey{})))
	h.Set(upField, strconv.Itoa(got))
	h.Set(downField, strconv.Itoa(down))
	h.Set("Content-Type", "application/octet-stream")
	switch q.Get("frame") {
	case "length":
		h.Set("Content-Length", strconv.Itoa(down))
	case "close":
		o.untilClose(w, r, id, down)
		return
	}
	w.WriteHeader(http.StatusOK)
	if q.Get("frame") == "chunked" {
		_ = http.NewResponseController(w).Flush()
	}
	if r.Method != http.MethodHead {
		_ = writeStream(w, NewStream(o.Seed, id, Down), down)
	}
	o.Served.Add(1)
}

// takeBody verifies a request's body and counts it; -1 if it broke off.
func (o *Origin) takeBody(r *http.Request, id uint32, up int) int {
	v := Verifier{Stream: NewStream(o.Seed, id, Up)}
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Body.Read(buf)
		if n > 0 {
			if wrong := v.Feed(buf[:n]); wrong != nil {
				o.fault("request %d: %v", id, wrong)
				return -1
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			o.Cut.Add(1)
			return -1
		}
	}
	if v.Off != uint64(up) {
		o.fault("request %d: its body ended after %d octets of %d, as if it were whole", id, v.Off, up)
		return -1
	}
	return up
}

// untilClose answers in the manner of HTTP/1.0: the body ends with the
// connection.
func (o *Origin) untilClose(w http.ResponseWriter, r *http.Request, id uint32, down int) {
	head := w.Header()
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer func() {
		_ = conn.Close()
		o.mu.Lock()
		delete(o.conns, conn)
		o.mu.Unlock()
	}()
	_, _ = fmt.Fprintf(rw, "HTTP/1.1 200 OK\r\nConnection: close\r\n")
	_ = head.Write(rw)
	_, _ = fmt.Fprintf(rw, "\r\n")
	if r.Method != http.MethodHead {
		_ = writeStream(rw, NewStream(o.Seed, id, Down), down)
	}
	if rw.Flush() == nil {
		o.Served.Add(1)
	}
}

// writeStream writes the first n octets of a stream.
func writeStream(w io.Writer, s Stream, n int) error {
	buf := make([]byte, min(n, 32<<10))
	for off := 0; off < n; {
		b := buf[:min(len(buf), n-off)]
		s.Fill(b, uint64(off))
		if _, err := w.Write(b); err != nil {
			return err
		}
		off += len(b)
	}
	return nil
}

// webSocket echoes binary messages. To a text message it answers who it is:
// its name, the connection's serial, and how many messages it has echoed.
func (o *Origin) webSocket(w http.ResponseWriter, r *http.Request) {
	o.stall()
	serial := fmt.Sprint(r.Context().Value(serialKey{}))
	conn := net.Conn(nil)
	s, err := AcceptWebSocket(w, r, map[string]string{originField: o.Name, connField: serial})
	if err != nil {
		return
	}
	conn = s.conn
	defer func() {
		_ = conn.Close()
		o.mu.Lock()
		delete(o.conns, conn)
		o.mu.Unlock()
	}()
	for n := 0; ; n++ {
		op, b, err := s.Receive()
		if err != nil {
			return
		}
		if op == TextMessage {
			b = fmt.Appendf(nil, "%s %s %d", o.Name, serial, n)
		}
		if s.Send(op, b) != nil {
			return
		}
	}
}

// stageOrigin is the stage of a re-executed program that is an origin.
const stageOrigin = "origin"

// OriginMain is an origin in a process of its own, which can be killed. The
// arguments are its name, its address and the seed.
func OriginMain(args []string, out io.Writer) error {
	if len(args) != 3 {
		return fmt.Errorf("lab: origin: %d arguments", len(args))
	}
	addr, err := netip.ParseAddrPort(args[1])
	if err != nil {
		return err
	}
	seed, err := strconv.ParseUint(args[2], 10, 64)
	if err != nil {
		return err
	}
	o, err := NewOrigin(nil, args[0], addr, seed)
	if err != nil {
		return err
	}
	o.FaultAlso = func(s string) { _, _ = fmt.Fprintf(out, "fault: %s\n", s) }
	if _, err := io.WriteString(out, "ready: origin\n"); err != nil {
		return err
	}
	select {}
}
