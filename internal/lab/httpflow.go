package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// HTTPTraffic is all HTTP flows of a run and the servers of the other side.
// The ends are goroutines, unlike those of TCP flows, which an epoll drives:
// each is a script, and there are few of them. Go's own parser reads, so what
// a balancer writes is understood by somebody else's rules. The methods may be
// called from any goroutine.
type HTTPTraffic struct {
	t        *Traffic      // seed, clock and label
	from     *Host         // of the clients; nil: this process's namespace
	direct   bool          // there is no balancer between
	patience time.Duration // a factor: longer runs have calmer flows
	dials    chan struct{} // room for connects under way
	stopped  chan struct{}
	work     sync.WaitGroup

	// What servers saw that belongs to no flow.
	halfHeads  atomic.Int64 // connections that ended within a head
	idleResets atomic.Int64 // idle connections that were reset
	accepted   atomic.Int64
	inFlight   sync.Map // of *Door: *httpLoad

	mu     sync.Mutex // guards all below
	nextID uint32
	flows  map[uint32]*HTTPFlow
	conns  map[*httpConn]bool
	faults []Fault
	lost   [faultKinds]int // flows by their first fault
	count  [httpKinds]httpCount
	rtt    [labels]Histogram // of the exchanges of HTTPExchange
}

// httpCount is what became of the flows of a kind.
type httpCount struct {
	opened, done, lost int
	exchanges          int
	octets             uint64 // of content and in tunnels, verified, both ways
}

// httpLoad counts the requests that a door's server has under way.
type httpLoad struct{ now, most atomic.Int64 }

// firstHTTPFlow keeps the numbers of HTTP flows apart from those of others.
const firstHTTPFlow = 1 << 20

// NewHTTPTraffic returns HTTP traffic without flows beside t, whose seed, clock
// and label it uses. Clients are at a host (nil: this process's namespace).
func NewHTTPTraffic(t *Traffic, from *Host) *HTTPTraffic {
	w := &HTTPTraffic{t: t, from: from, patience: 3, dials: make(chan struct{}, connectsMax), stopped: make(chan struct{}),
		nextID: firstHTTPFlow, flows: map[uint32]*HTTPFlow{}, conns: map[*httpConn]bool{}}
	if t.brief {
		w.patience = 1
	}
	return w
}

// HTTPFlow is one client connection that speaks HTTP. What it does is known to
// both ends; what they tell each other passes through the fields here.
type HTTPFlow struct {
	ID   uint32
	Kind HTTPKind
	To   netip.AddrPort

	web     *HTTPTraffic
	sizes   uint64 // seed of its plans
	streams [2]Stream
	ending  chan struct{} // closed: complete what is under way, then end
	once    sync.Once     // closes ending

	// finAt is one more than the offset in a tunnel at which a side sent FIN; 0:
	// it did not.
	finAt [2]atomic.Uint64

	// arrived is when octets of a direction last came to their receiver (Unix,
	// nanoseconds): a sender whose peer rests waits as long as they come.
	arrived [2]atomic.Int64

	Opened   atomic.Int64 // the connect succeeded
	Served   atomic.Int64 // the first answer was right
	Finished atomic.Int64 // it has ended, for good or ill

	mu     sync.Mutex // guards what follows
	due    int        // number of the request that the server must see next
	conn   *httpConn  // the client's
	local  netip.AddrPort
	faults []Fault
}

// NewFlow makes a flow of kind k to an address. It is not opened yet.
func (w *HTTPTraffic) NewFlow(k HTTPKind, to netip.AddrPort) *HTTPFlow {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nextID++
	f := &HTTPFlow{ID: w.nextID, Kind: k, To: to, web: w, ending: make(chan struct{})}
	f.sizes = mix(w.t.Seed + uint64(f.ID)*golden)
	f.streams = [2]Stream{NewStream(w.t.Seed, f.ID, Up), NewStream(w.t.Seed, f.ID, Down)}
	w.flows[f.ID] = f
	w.count[k].opened++
	return f
}

// Open begins flows.
func (w *HTTPTraffic) Open(flows ...*HTTPFlow) {
	for _, f := range flows {
		w.work.Add(1)
		go func() {
			defer w.work.Done()
			f.run()
		}()
	}
}

func (w *HTTPTraffic) flow(id uint32) *HTTPFlow {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.flows[id]
}

func (f *HTTPFlow) over() bool {
	select {
	case <-f.ending:
		return true
	default:
		return false
	}
}

// Faults returns what was wrong with the flow. One flow with faults is one
// flow lost.
func (f *HTTPFlow) Faults() []Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Fault(nil), f.faults...)
}

func (w *HTTPTraffic) fault(f *HTTPFlow, k FaultKind, side string, err error) {
	select {
	case <-w.stopped:
		return // the end of the run, not of a flow
	default:
	}
	x := Fault{Kind: k, Side: side, When: time.Now(), Err: err, During: Label(w.t.label.Load())}
	first := true
	if f != nil {
		x.Flow, x.Of = f.ID, f.Kind
		f.mu.Lock()
		first = len(f.faults) == 0
		f.faults = append(f.faults, x)
		f.mu.Unlock()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !first {
		return
	}
	w.lost[k]++
	if f != nil {
		w.count[f.Kind].lost++
	}
	if len(w.faults) < faultsKept {
		w.faults = append(w.faults, x)
	}
}

// Lost returns how many flows were lost, by their first fault, and the first
// faults themselves.
func (w *HTTPTraffic) Lost() (by [faultKinds]int, total int, faults []Fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.lost {
		total += n
	}
	return w.lost, total, append([]Fault(nil), w.faults...)
}

func (w *HTTPTraffic) counted(f *HTTPFlow, exchanges int, octets uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count[f.Kind].exchanges += exchanges
	w.count[f.Kind].octets += octets
}

// Counts returns what became of the flows, by kind.
func (w *HTTPTraffic) Counts() [httpKinds]httpCount {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count
}

// End tells flows to complete what is under way, and then to end.
func (w *HTTPTraffic) End(flows []*HTTPFlow) {
	for _, f := range flows {
		f.once.Do(func() { close(f.ending) })
		f.mu.Lock()
		if f.conn != nil {
			f.conn.wake()
		}
		f.mu.Unlock()
	}
}

// Finish tells flows to end, and waits. What is not over then is a fault.
func (w *HTTPTraffic) Finish(patience time.Duration, flows []*HTTPFlow) {
	w.End(flows)
	_ = w.AwaitEach(patience, "HTTP flows to finish", flows, func(f *HTTPFlow) bool { return f.Finished.Load() != 0 })
	for _, f := range flows {
		if f.Finished.Load() == 0 && len(f.Faults()) == 0 {
			f.mu.Lock()
			at := "before its connection"
			if f.conn != nil {
				at = f.conn.doing.Load().(string)
			}
			due := f.due
			f.mu.Unlock()
			w.fault(f, Unfinished, "client", fmt.Errorf("%s; the server waits for request %d", at, due))
		}
	}
}

// AwaitEach waits until each of the flows has reached a point, or is lost.
func (w *HTTPTraffic) AwaitEach(patience time.Duration, what string, flows []*HTTPFlow, at func(*HTTPFlow) bool) error {
	return w.t.Await(patience, what, func() (int, int) {
		n := 0
		for _, f := range flows {
			if at(f) || len(f.Faults()) > 0 {
				n++
			}
		}
		return n, len(flows)
	})
}

// Churn opens flows of kinds that end by themselves, one each period, to the
// addresses in turn, until the returned function is called. That one waits for
// the last of them.
func (w *HTTPTraffic) Churn(k HTTPKind, every time.Duration, to ...netip.AddrPort) (stop func(time.Duration) error) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			w.Open(w.NewFlow(k, to[i%len(to)]))
		}
	}()
	return func(patience time.Duration) error {
		close(quit)
		<-done
		return w.t.Await(patience, k.String()+" flows to end", func() (int, int) {
			c := w.Counts()[k]
			return c.done + c.lost, c.opened
		})
	}
}

// Left lists the flows of a kind that are not over.
func (w *HTTPTraffic) Left(k HTTPKind) (left []*HTTPFlow) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.flows {
		if f.Kind == k {
			left = append(left, f)
		}
	}
	return left
}

// Stop ends all that there is, and waits for it.
func (w *HTTPTraffic) Stop() {
	w.mu.Lock()
	close(w.stopped)
	for c := range w.conns {
		_ = c.Close()
	}
	w.mu.Unlock()
	w.work.Wait()
}

// sleep waits for d, less if the flow is to end or the run is over.
func (f *HTTPFlow) sleep(d time.Duration, also <-chan struct{}) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-f.ending:
	case <-f.web.stopped:
	case <-also:
	}
}

// httpConn is one end of a connection. One goroutine reads, one may write
// beside it.
type httpConn struct {
	net.Conn
	br    *bufio.Reader
	doing atomic.Value // string: what the end waits for, for a report

	until   time.Time // when patience with the read under way is over
	resting bool      // a read that ends early is what is wanted

	// Of the flow that the connection serves now; nil: of none.
	in, out *atomic.Int64 // when octets last came to this end, and to the other
	behind  *atomic.Int64 // out, if the read under way waits for what is sent to arrive
}

// httpBuffer is what a read takes ahead at most.
const httpBuffer = 16 << 10

// adopt keeps a list of connections, so that Stop finds them. It gives nil
// when it is too late.
func (w *HTTPTraffic) adopt(conn net.Conn) *httpConn {
	c := &httpConn{Conn: conn}
	c.br = bufio.NewReaderSize(c, httpBuffer)
	c.doing.Store("")
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.stopped:
		_ = conn.Close()
		return nil
	default:
	}
	w.conns[c] = true
	return c
}

func (w *HTTPTraffic) forget(c *httpConn) {
	_ = c.Close()
	w.mu.Lock()
	delete(w.conns, c)
	w.mu.Unlock()
}

// wake ends a rest. It may be called from any goroutine.
func (c *httpConn) wake() { _ = c.SetReadDeadline(time.Unix(1, 0)) }

// serves says whose octets a connection carries, and in which direction those
// go that this end sends.
func (c *httpConn) serves(f *HTTPFlow, out Direction) {
	c.in, c.out = &f.arrived[1-out], &f.arrived[out]
}

// Read reads from the socket. A deadline that wake has set is not meant for a
// read that does not rest.
func (c *httpConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if n > 0 && c.in != nil {
			c.in.Store(time.Now().UnixNano())
		}
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) || c.resting {
			return n, err
		}
		if !c.until.IsZero() && !time.Now().Before(c.until) {
			if c.until = patientUntil(c.behind); !time.Now().Before(c.until) {
				return n, err
			}
		}
		_ = c.SetReadDeadline(c.until)
	}
}

// httpPatience is how long an end waits for the other without progress: longer
// than any rest. A balancer holds several times what a receiver takes at once,
// so between an end that waits and one that rests octets may come for longer.
const httpPatience = 3 * time.Minute

// patientUntil is how long to wait for an end to which octets last came then.
func patientUntil(arrived *atomic.Int64) time.Time {
	if arrived == nil {
		return time.Time{}
	}
	return time.Unix(0, arrived.Load()).Add(httpPatience)
}

// wait says what the next reads wait for, and how long.
func (c *httpConn) wait(d time.Duration, format string, args ...any) {
	c.doing.Store(fmt.Sprintf(format, args...))
	c.until, c.behind = time.Time{}, nil
	if d > 0 {
		c.until = time.Now().Add(d)
	}
	_ = c.SetReadDeadline(c.until)
}

// Write sends all of b, however long a peer takes that takes some of what was
// sent now and then.
func (c *httpConn) Write(b []byte) (int, error) {
	sent := 0
	for until := time.Now().Add(httpPatience); ; {
		_ = c.SetWriteDeadline(until)
		n, err := c.Conn.Write(b[sent:])
		sent += n
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return sent, err
		}
		if until = patientUntil(c.out); !time.Now().Before(until) {
			return sent, err
		}
	}
}

// rest waits for d, or until the flow is to end. Nothing may arrive meanwhile,
// be it FIN.
func (c *httpConn) rest(f *HTTPFlow, d time.Duration) error {
	end := time.Now().Add(d)
	c.resting = true
	defer func() { c.resting = false }()
	for time.Now().Before(end) {
		_ = c.SetReadDeadline(end)
		if f.over() { // wake may have come before the deadline was set
			return nil
		}
		_, err := c.br.Peek(1)
		switch {
		case err == nil:
			return c.untimely()
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("while resting: %w", err)
		}
	}
	return nil
}

// untimely is the error of octets that nobody asked for. What they are is most
// often an answer of the balancer's own.
func (c *httpConn) untimely() error {
	c.resting = false
	c.wait(100*time.Millisecond, "an untimely answer")
	if res, err := http.ReadResponse(c.br, nil); err == nil {
		return httpStatusError{res.StatusCode, "before it was due"}
	}
	b, _ := c.br.Peek(min(c.br.Buffered(), 40))
	return &httpWrong{fmt.Sprintf("octets that nobody asked for: %q", b)}
}

// httpWrong is what no failure of a peer explains.
type httpWrong struct{ what string }

func (e *httpWrong) Error() string { return e.what }

func httpWrongf(format string, args ...any) error { return &httpWrong{fmt.Sprintf(format, args...)} }

// httpDiffers tells where two texts part.
func httpDiffers(what, got, want string) error {
	i := 0
	for i < len(got) && i < len(want) && got[i] == want[i] {
		i++
	}
	return httpWrongf("%s: at octet %d of %d: %.24q, want %.24q", what, i, len(want), got[i:], want[i:])
}

// httpStatusError is another answer than the one that was due.
type httpStatusError struct {
	status int
	when   string
}

func (e httpStatusError) Error() string { return fmt.Sprintf("answer %d %s", e.status, e.when) }

// faultOf says what an error of an end is.
func faultOf(err error) FaultKind {
	var status httpStatusError
	var wrong *httpWrong
	var octets *Wrong
	var timeout net.Error
	switch {
	case errors.As(err, &status):
		return Refused
	case errors.As(err, &wrong), errors.As(err, &octets):
		return WrongOctet
	case errors.As(err, &timeout) && timeout.Timeout():
		return Unfinished
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return Reset
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return EarlyEOF
	}
	return WrongOctet // no HTTP at all
}

// httpBase is the offset of the content of a flow's n-th request or answer in
// its stream: two contents never have octets in common.
func httpBase(n int) uint64 { return uint64(n) << 32 }

// Fields by which the ends know each other's messages, and all of whose octets
// are checked.
const (
	httpIDField   = "X-Lab-Flow"
	httpFillField = "X-Lab-Fill"
	httpSumField  = "X-Lab-Sum" // behind a body in chunks
	httpHost      = "lab.example:8080"
)

// httpID names a request: flow, number, and a check that makes it improbable
// that other octets are taken for one.
func (f *HTTPFlow) httpID(n int) string {
	return fmt.Sprintf("%d-%d-%016x", f.ID, n, mix(f.web.t.Seed^mix(uint64(f.ID))^uint64(n)*golden))
}

// fill is text of a length that differs from message to message.
func (f *HTTPFlow) fill(d Direction, n int) string {
	key := mix(f.sizes ^ uint64(n)*golden ^ uint64(d) + 77)
	var b bytes.Buffer
	for i := range 1 + key%30 {
		fmt.Fprintf(&b, "%016x", mix(key+i))
	}
	return b.String()[:b.Len()-int(key>>32%16)]
}

// sum is what stands behind the n-th body in chunks.
func (f *HTTPFlow) sum(d Direction, n int) string {
	return fmt.Sprintf("%016x", mix(f.sizes+uint64(n)*golden+uint64(d)+99))
}

// target is what the n-th request asks for.
func (f *HTTPFlow) target(n int) string {
	if f.plan(n).method == "CONNECT" {
		return httpHost
	}
	return fmt.Sprintf("/%v/%d/%d?%s", f.Kind, f.ID, n, f.fill(Up, -n-1))
}

// dial connects from the clients' host. A buffer for what the client does not
// read is set before: the window scale depends on it.
func (f *HTTPFlow) dial() (*httpConn, error) {
	f.web.dials <- struct{}{}
	defer func() { <-f.web.dials }()
	var conn net.Conn
	in := func() (err error) {
		d := net.Dialer{Timeout: connectPatience}
		if f.Kind == HTTPDialing {
			d.Timeout = 0 // without a balancer it is the connect that waits
		}
		d.SetMultipathTCP(false)
		d.Control = func(_, _ string, raw syscall.RawConn) error {
			if f.Kind != HTTPSlowClient && f.Kind != HTTPSlowServer {
				return nil
			}
			return raw.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, slowBufferBytes)
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, slowBufferBytes)
			})
		}
		conn, err = d.DialContext(context.Background(), "tcp", f.To.String())
		return err
	}
	var err error
	if f.web.from != nil {
		err = f.web.from.Do(in)
	} else {
		err = in()
	}
	if err != nil {
		return nil, err
	}
	c := f.web.adopt(conn)
	if c == nil {
		return nil, net.ErrClosed
	}
	f.mu.Lock()
	at := conn.LocalAddr().(*net.TCPAddr).AddrPort()
	c.serves(f, Up)
	f.conn, f.local = c, netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	f.mu.Unlock()
	return c, nil
}
