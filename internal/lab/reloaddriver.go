package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/rpc"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// stageReload is the stage of a re-executed program that is all clients and
// servers of the lab reload, apart from who applies configurations and measures.
const stageReload = "reload"

// reloadPatience is how long a client waits for anything before it counts as
// lost.
const reloadPatience = 10 * time.Second

// generationField is the field by which a configuration shows in answers.
const generationField = "X-Generation"

// reloadDriver is the traffic of one run: clients of many kinds and the servers
// behind the balancer, in a process of its own. Its exported methods are called
// over a unix socket.
type reloadDriver struct {
	seed    uint64
	start   time.Time
	serial  atomic.Uint32
	servers []*reloadServer
	stop    context.CancelFunc
	ctx     context.Context
	loads   sync.WaitGroup
	phase   atomic.Int32

	mu     sync.Mutex // guards all below
	flows  map[uint32]*heldFlow
	delays [reloadPhases][delayKinds]Histogram
	counts ReloadCounts
	faults []string
}

// ReloadPhase is what goes on while something is measured.
type ReloadPhase int32

// The phases of a run.
const (
	phaseBefore  ReloadPhase = iota // things are set up, or over
	phaseQuiet                      // nothing is applied
	phaseApplies                    // configurations that differ
	phaseNothing                    // the same configuration again and again
	phaseOther                      // only what others use is changed
	reloadPhases int         = iota
)

// What a delay is of: a new connection from connect to the end of its answer, a
// request on a kept connection, a piece of a held flow, and the same two of who
// uses a route that nobody changes.
const (
	delayNew int = iota
	delayKept
	delayTCP
	delayWebSocket
	delayStream
	delayApart
	delayKinds
)

func delayOf(k heldKind) int { return delayTCP + int(k) }

// ReloadCounts are what clients saw.
type ReloadCounts struct {
	New, NewLost     int // connections of one request
	Asked, AskedLost int // requests on kept connections
	// Closed are connections that were closed while no request was under way on them, Told
	// those that an answer said would be.
	Kept, KeptClosed, KeptTold int
	Idle, IdleClosed, IdleLost int // connections that only idle; the last: of what they ask in the end
	Opened, Unopened           [heldKinds]int
	Ended, Broken              [heldKinds]int
	Apart                      int // requests of those who use another route
}

// ReloadDelay tells how delays of one kind in one phase are distributed.
type ReloadDelay struct {
	N                   uint64
	P50, P99, P999, Max time.Duration
}

// ReloadReport is what a driver found.
type ReloadReport struct {
	Counts  ReloadCounts
	Delays  [reloadPhases][delayKinds]ReloadDelay
	Faults  []string // the first
	Servers map[string]ReloadServed
	CPU     float64 // of one core, since it began
}

// ReloadServed is what one server counted.
type ReloadServed struct{ Served, Spoken, Strayed int64 }

func (d *reloadDriver) now() int64 { return int64(time.Since(d.start)) }

// note counts one delay.
func (d *reloadDriver) note(of int, took time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.delays[d.phase.Load()][of].Add(took)
}

// fault keeps the first ones for the report.
func (d *reloadDriver) fault(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.faults) < 20 {
		d.faults = append(d.faults, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
	}
}

func (d *reloadDriver) flow(id uint32) *heldFlow {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.flows[id]
}

// count changes the counts.
func (d *reloadDriver) count(f func(c *ReloadCounts)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(&d.counts)
}

// ReloadLoad says what clients there are.
type ReloadLoad struct {
	Ports   []int // of services for HTTP
	All     []int // of all services: each can be asked
	PerSec  int   // new connections in a second
	Kept    int   // connections with ten requests a second
	Idle    int   // connections that idle after one request
	Apart   []string
	ApartIn time.Duration // from one request to the next of who uses these, "port/path"
}

// Load begins it. It goes on until Finish.
func (d *reloadDriver) Load(q ReloadLoad, _ *bool) error {
	d.loads.Go(func() { d.fresh(q) })
	for i := range q.Kept {
		port := q.Ports[int(mix(d.seed+uint64(i))%uint64(len(q.Ports)))]
		d.loads.Go(func() { d.kept(loopbackPort(port), i) })
	}
	d.loads.Go(func() { d.idle(q) })
	for i, at := range q.Apart {
		d.loads.Go(func() { d.apart(at, q.ApartIn, i) })
	}
	return nil
}

func loopbackPort(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

// fresh opens new connections at an even rate.
func (d *reloadDriver) fresh(q ReloadLoad) {
	if q.PerSec == 0 {
		return
	}
	r := rand.New(rand.NewPCG(d.seed, 1))
	every := time.Second / time.Duration(q.PerSec)
	var all sync.WaitGroup
	for due := time.Now(); d.sleepUntil(due); due = due.Add(every) {
		to := loopbackPort(q.All[r.IntN(len(q.All))])
		all.Go(func() {
			began := time.Now()
			err := d.once(to)
			d.note(delayNew, time.Since(began))
			d.count(func(c *ReloadCounts) {
				c.New++
				if err != nil {
					c.NewLost++
				}
			})
			if err != nil {
				d.fault("new connection to %s: %s after %v", to, errorText(err), time.Since(began))
			}
		})
	}
	all.Wait()
}

// sleepUntil says whether the load goes on.
func (d *reloadDriver) sleepUntil(t time.Time) bool {
	select {
	case <-d.ctx.Done():
		return false
	case <-time.After(time.Until(t)):
		return true
	}
}

// once is a connection of one request.
func (d *reloadDriver) once(to string) error {
	c, err := net.DialTimeout("tcp", to, reloadPatience)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	k := &keptConn{c: c, in: bufio.NewReaderSize(c, 2048)}
	_, err = k.ask(d, "/o", 100+int(mix(uint64(d.now()))%1500))
	return err
}

// keptConn is a connection for several requests.
type keptConn struct {
	c    net.Conn
	in   *bufio.Reader
	told bool // that it will be closed
}

// ask sends one request and verifies the answer.
func (k *keptConn) ask(d *reloadDriver, path string, n int) (http.Header, error) {
	id := d.serial.Add(1)
	_ = k.c.SetDeadline(time.Now().Add(reloadPatience))
	if _, err := fmt.Fprintf(k.c, "GET %s?id=%d&down=%d HTTP/1.1\r\nHost: lab\r\n\r\n", path, id, n); err != nil {
		return nil, err
	}
	res, err := http.ReadResponse(k.in, nil)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, statusError{res.StatusCode}
	}
	k.told = res.Close
	x := &caller{}
	v := Verifier{Stream: NewStream(d.seed, id, Down)}
	return res.Header, x.verify(res, &v, id, n)
}

// open says whether the connection is: whether the other side has neither ended
// it nor sent anything. Nothing may be under way on it.
func (k *keptConn) open() bool {
	raw, err := k.c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return false
	}
	open := false
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		open = errors.Is(err, unix.EAGAIN)
	})
	return err == nil && open
}

func dialKept(to string) (*keptConn, error) {
	c, err := net.DialTimeout("tcp", to, reloadPatience)
	if err != nil {
		return nil, err
	}
	return &keptConn{c: c, in: bufio.NewReaderSize(c, 2048)}, nil
}

// keptEvery is the time between two requests of a connection.
const keptEvery = 100 * time.Millisecond

// kept is a client with one connection at a time and ten requests a second.
func (d *reloadDriver) kept(to string, i int) {
	var k *keptConn
	due := time.Now().Add(keptEvery * time.Duration(i) / 30)
	for ; d.sleepUntil(due); due = due.Add(keptEvery) {
		if k != nil && (k.told || !k.open()) {
			told := k.told
			d.count(func(c *ReloadCounts) {
				if told {
					c.KeptTold++
				} else {
					c.KeptClosed++
				}
			})
			_ = k.c.Close()
			k = nil
		}
		began := time.Now()
		var err error
		if k == nil {
			if k, err = dialKept(to); err != nil {
				d.count(func(c *ReloadCounts) { c.New++; c.NewLost++ })
				d.fault("kept connection to %s: %s", to, errorText(err))
				k = nil
				continue
			}
			d.count(func(c *ReloadCounts) { c.Kept++ })
		}
		_, err = k.ask(d, "/o", 300)
		d.note(delayKept, time.Since(began))
		d.count(func(c *ReloadCounts) {
			c.Asked++
			if err != nil {
				c.AskedLost++
			}
		})
		if err != nil {
			d.fault("request on a kept connection to %s: %s", to, errorText(err))
			_ = k.c.Close()
			k = nil
		}
	}
	if k != nil {
		_ = k.c.Close()
	}
}

// idle opens connections, asks once on each, and looks whether they stay open.
// In the end each is asked once more.
func (d *reloadDriver) idle(q ReloadLoad) {
	all := make([]*keptConn, q.Idle)
	to := make([]string, q.Idle)
	again := func(i int) {
		k, err := dialKept(to[i])
		if err == nil {
			_, err = k.ask(d, "/o", 100)
		}
		if err != nil {
			d.count(func(c *ReloadCounts) { c.New++; c.NewLost++ })
			d.fault("idle connection to %s: %s", to[i], errorText(err))
			k = nil
		}
		all[i] = k
		d.count(func(c *ReloadCounts) { c.Idle++ })
	}
	for i := range all {
		to[i] = loopbackPort(q.Ports[int(mix(d.seed+golden+uint64(i))%uint64(len(q.Ports)))])
		again(i)
	}
	for due := time.Now(); d.sleepUntil(due); due = due.Add(keptEvery) {
		for i, k := range all {
			if k == nil || !k.open() {
				if k != nil {
					_ = k.c.Close()
					d.count(func(c *ReloadCounts) { c.IdleClosed++ })
				}
				again(i)
			}
		}
	}
	for i, k := range all {
		if k == nil {
			continue
		}
		if !k.open() {
			d.count(func(c *ReloadCounts) { c.IdleClosed++ })
			_ = k.c.Close()
			continue
		}
		if _, err := k.ask(d, "/o", 100); err != nil {
			d.count(func(c *ReloadCounts) { c.IdleLost++ })
			d.fault("idle connection to %s, asked again: %s", to[i], errorText(err))
		}
		_ = k.c.Close()
	}
}

// apart asks again and again on one connection for what stands behind a route
// that nobody changes. A connection that breaks is a fault, and it is not opened
// again.
func (d *reloadDriver) apart(at string, every time.Duration, i int) {
	port, path, _ := strings.Cut(at, "/")
	k, err := dialKept("127.0.0.1:" + port)
	if err == nil {
		defer func() { _ = k.c.Close() }()
		for due := time.Now().Add(every * time.Duration(i) / 8); d.sleepUntil(due); due = due.Add(every) {
			began := time.Now()
			if _, err = k.ask(d, "/"+path, 300); err != nil {
				break
			}
			d.note(delayApart, time.Since(began))
			d.count(func(c *ReloadCounts) { c.Apart++ })
		}
	}
	if err != nil {
		d.count(func(c *ReloadCounts) { c.AskedLost++ })
		d.fault("request apart to %s: %s", at, errorText(err))
	}
}

// ReloadHeld asks for held flows of one kind.
type ReloadHeld struct {
	Kind       int
	Generation int // that opening has to show; 0: any
	Port       int
	Path       string
	Period     time.Duration
	N          int
}

// Open opens held flows, all at once, and returns when each of them is, or has
// failed to be.
func (d *reloadDriver) Open(qs []ReloadHeld, opened *int) error {
	var all sync.WaitGroup
	var good atomic.Int32
	for _, q := range qs {
		for range q.N {
			id := d.serial.Add(1)
			f := &heldFlow{id: id, kind: heldKind(q.Kind), gen: q.Generation, to: loopbackPort(q.Port), path: q.Path, period: q.Period,
				finish: make(chan struct{}), done: make(chan struct{})}
			f.way = [2]heldWay{{stream: NewStream(d.seed, id, Up)}, {stream: NewStream(d.seed, id, Down)}}
			d.mu.Lock()
			d.flows[id] = f
			d.mu.Unlock()
			all.Go(func() {
				err := d.open(f)
				if err != nil {
					d.fault("%v to %s%s: %s", f.kind, f.to, f.path, errorText(err))
				} else {
					good.Add(1)
				}
				d.mu.Lock()
				defer d.mu.Unlock()
				if err != nil {
					d.counts.Unopened[f.kind]++
					delete(d.flows, id)
					return
				}
				d.counts.Opened[f.kind]++
			})
		}
	}
	all.Wait()
	*opened = int(good.Load())
	return nil
}

// Phase says what goes on from now on.
func (d *reloadDriver) Phase(p ReloadPhase, was *ReloadPhase) error {
	*was = ReloadPhase(d.phase.Swap(int32(p)))
	return nil
}

// Strike breaks one held flow, to see whether that is noticed.
func (d *reloadDriver) Strike(how string, done *bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.flows {
		c := f.server.Load()
		if c == nil || f.broken() != nil {
			continue
		}
		if how == DropOctet {
			f.spoil.Store(true)
		} else {
			reset(*c)
		}
		*done = true
		return nil
	}
	return errors.New("lab: there is no flow to break")
}

// Look is the report so far.
func (d *reloadDriver) Look(_ bool, r *ReloadReport) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	r.Counts, r.Faults = d.counts, d.faults
	for p := range d.delays {
		for k := range d.delays[p] {
			h := &d.delays[p][k]
			r.Delays[p][k] = ReloadDelay{h.N, h.Quantile(0.5), h.Quantile(0.99), h.Quantile(0.999), h.Max}
		}
	}
	r.Servers = map[string]ReloadServed{}
	for _, s := range d.servers {
		r.Servers[s.name] = ReloadServed{s.served.Load(), s.spoken.Load(), s.strayed.Load()}
	}
	r.CPU = float64(ownCPU()) / float64(time.Since(d.start))
	return nil
}

// heldEnds is how long held flows may take to end when they are told to.
const heldEnds = 20 * time.Second

// Finish ends all clients, each in its manner, and reports.
func (d *reloadDriver) Finish(_ bool, r *ReloadReport) error {
	d.phase.Store(int32(phaseBefore))
	d.stop()
	d.mu.Lock()
	var all []*heldFlow
	for _, f := range d.flows {
		close(f.finish)
		all = append(all, f)
	}
	d.mu.Unlock()
	late := time.After(heldEnds)
	for _, f := range all {
		select {
		case <-f.done:
		case <-late:
			late = time.After(0) // nobody else is waited for
			f.fail(errors.New("does not end"))
		}
		err := f.broken()
		d.count(func(c *ReloadCounts) {
			if err != nil {
				c.Broken[f.kind]++
			} else {
				c.Ended[f.kind]++
			}
		})
		if err != nil {
			d.fault("%v to %s, opened under %d: %s", f.kind, f.to, f.gen, errorText(err))
		}
	}
	d.loads.Wait()
	return d.Look(true, r)
}

// reloadMain is the driver. The arguments are the seed, the unix socket at which
// it is told, and the servers as name=address.
func reloadMain(args []string, out io.Writer) error {
	if len(args) < 3 {
		return fmt.Errorf("lab: reload: %d arguments", len(args))
	}
	seed, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil {
		return err
	}
	// Ten thousand goroutines are much to look through, and memory is there.
	debug.SetGCPercent(400)
	d, err := newReloadDriver(seed, args[2:])
	if err != nil {
		return err
	}
	tell, err := net.Listen("unix", args[1])
	if err != nil {
		return err
	}
	s := rpc.NewServer()
	if err := s.RegisterName("Driver", d); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "ready: %d\n", os.Getpid()); err != nil {
		return err
	}
	s.Accept(tell)
	return errors.New("lab: the driver's socket is closed")
}

func newReloadDriver(seed uint64, servers []string) (*reloadDriver, error) {
	d := &reloadDriver{seed: seed, start: time.Now(), flows: map[uint32]*heldFlow{}}
	d.ctx, d.stop = context.WithCancel(context.Background())
	for _, x := range servers {
		name, addr, _ := strings.Cut(x, "=")
		s, err := d.serve(name, addr)
		if err != nil {
			return nil, err
		}
		d.servers = append(d.servers, s)
	}
	return d, nil
}
