package lab

import (
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// engine drives the ends of flows at one host: one locked thread, one epoll,
// no goroutine per flow. All it owns is touched by its thread alone; others
// post to its mailbox.
type engine struct {
	t    *Traffic
	host *Host

	epoll int
	wake  int // eventfd: there is mail
	done  chan struct{}
	quit  bool

	ends   []*end  // by fd
	doors  []*Door // by fd
	serial uint32  // incarnations given out, so that a late event finds nobody
	timers timers
	buf    []byte

	toOpen   []*Flow // not begun: as many others as may be are under way
	opening  int
	connects int // that may be under way at once
	stalls   stalls

	mu   sync.Mutex // guards mail
	mail []func()
}

// connectsMax bounds connects under way: more would overflow the accept queue
// of a balancer that is busy, which is not what the labs are about.
const connectsMax = 64

// scratchOctets is the most that one read or write moves: more than a pipe
// holds by default (64 KiB), so that a balancer's splice is kept busy.
const scratchOctets = 256 << 10

// NewEngine starts an engine at a host.
func (t *Traffic) NewEngine(h *Host) (*engine, error) {
	e := &engine{t: t, host: h, done: make(chan struct{}), buf: make([]byte, scratchOctets), connects: connectsMax}
	var err error
	if e.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("lab: epoll: %w", err)
	}
	if e.wake, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("lab: eventfd: %w", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(e.wake)}
	if err := unix.EpollCtl(e.epoll, unix.EPOLL_CTL_ADD, e.wake, &ev); err != nil {
		return nil, fmt.Errorf("lab: epoll: %w", err)
	}
	ready := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread joins the host
		defer close(e.done)
		if h != nil {
			if err := unix.Setns(h.ns, unix.CLONE_NEWNET); err != nil {
				ready <- fmt.Errorf("lab: setns: %w", err)
				return
			}
		}
		ready <- nil
		e.run()
	}()
	if err := <-ready; err != nil {
		return nil, err
	}
	t.engines = append(t.engines, e)
	return e, nil
}

func (e *engine) post(f func()) {
	e.mu.Lock()
	e.mail = append(e.mail, f)
	first := len(e.mail) == 1
	e.mu.Unlock()
	if first {
		var one [8]byte
		binary.LittleEndian.PutUint64(one[:], 1)
		_, _ = unix.Write(e.wake, one[:])
	}
}

// call runs f on the engine's thread and waits for it.
func (e *engine) call(f func()) {
	done := make(chan struct{})
	e.post(func() { f(); close(done) })
	select {
	case <-done:
	case <-e.done:
	}
}

func (e *engine) stop() {
	e.post(func() { e.quit = true })
	<-e.done
}

// Open connects a flow, soon.
func (e *engine) Open(flows ...*Flow) {
	e.post(func() {
		e.toOpen = append(e.toOpen, flows...)
		e.openNext()
	})
}

func (e *engine) openNext() {
	for e.opening < e.connects && len(e.toOpen) > 0 {
		f := e.toOpen[0]
		e.toOpen = e.toOpen[1:]
		e.connect(f)
	}
}

// eventsMax is how many events one wait returns.
const eventsMax = 512

func (e *engine) run() {
	events := make([]unix.EpollEvent, eventsMax)
	var late []*Door
	for !e.quit {
		n, err := unix.EpollWait(e.epoll, events, e.timers.wait(e.t.now()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			panic(fmt.Sprintf("lab: epoll_wait: %v", err))
		}
		late = late[:0]
		for _, ev := range events[:max(n, 0)] {
			fd := int(ev.Fd)
			switch {
			case fd == e.wake:
				var b [8]byte
				_, _ = unix.Read(e.wake, b[:])
			case fd < len(e.doors) && e.doors[fd] != nil:
				// After the ends: a slot that a closing connection gives
				// back is free before the next one is let in.
				late = append(late, e.doors[fd])
			case fd < len(e.ends) && e.ends[fd] != nil && e.ends[fd].serial == uint32(ev.Pad):
				e.ends[fd].event(ev.Events)
			}
		}
		for _, d := range late {
			d.accept()
		}
		e.runTimers()
		e.mu.Lock()
		mail := e.mail
		e.mail = nil
		e.mu.Unlock()
		for _, f := range mail {
			f()
		}
	}
	for _, x := range e.ends {
		if x != nil {
			x.close()
		}
	}
	for _, d := range e.doors {
		if d != nil {
			d.close()
		}
	}
	_ = unix.Close(e.epoll)
	_ = unix.Close(e.wake)
}

func (e *engine) runTimers() {
	now := e.t.now()
	for len(e.timers) > 0 && e.timers[0].at <= now {
		x := heap.Pop(&e.timers).(timer)
		if !x.end.closed {
			x.end.expired(x.what, now)
		}
	}
}

// adopt gives an end its place by its fd.
func (e *engine) adopt(x *end) error {
	e.serial++
	x.serial = e.serial
	for len(e.ends) <= x.fd {
		e.ends = append(e.ends, nil)
	}
	e.ends[x.fd] = x
	x.armed = x.wants()
	ev := unix.EpollEvent{Events: x.armed, Fd: int32(x.fd), Pad: int32(x.serial)}
	return unix.EpollCtl(e.epoll, unix.EPOLL_CTL_ADD, x.fd, &ev)
}

// timer is a moment at which an end has something to do.
type timer struct {
	at   int64 // nanoseconds since the traffic began
	end  *end
	what purpose
}

type purpose uint8

const (
	tick       purpose = iota // more octets are due, or the next request
	wakeReader                // the rest is over
	giveUp                    // the connect took too long
)

type timers []timer

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].at < t[j].at }
func (t timers) Swap(i, j int)      { t[i], t[j] = t[j], t[i] }
func (t *timers) Push(x any)        { *t = append(*t, x.(timer)) }
func (t *timers) Pop() any {
	old := *t
	x := old[len(old)-1]
	old[len(old)-1] = timer{}
	*t = old[:len(old)-1]
	return x
}

// wait is how long an epoll wait may take, in milliseconds, rounded up.
func (t timers) wait(now int64) int {
	if len(t) == 0 {
		return 1000
	}
	return int(min(max(t[0].at-now+999_999, 0)/1_000_000, 1000))
}

func (e *engine) after(d int64, x *end, what purpose) {
	heap.Push(&e.timers, timer{at: e.t.now() + d, end: x, what: what})
}

// Door is a listening socket of the servers.
type Door struct {
	Addr netip.AddrPort
	// Active is how many connections are open, Most how many ever were at
	// once, Accepted how many there were.
	Active, Most, Accepted atomic.Int64

	eng   *engine
	fd    int
	plugs []int // connections that fill the accept queue of a shut door

	// take, if not nil, gets what is accepted, in place of an end of a flow.
	// It counts Active down in the end.
	take func(fd int)
}

// Listen opens a door. A shut one answers no SYN: its accept queue holds one
// connection and is full, so the kernel drops what comes (net/ipv4/tcp_input.c,
// tcp_conn_request).
func (e *engine) Listen(at netip.AddrPort, shut bool) (*Door, error) {
	d := &Door{Addr: at, eng: e, fd: -1}
	var err error
	e.call(func() { err = d.open(shut) })
	if err != nil {
		return nil, fmt.Errorf("lab: listen %v: %w", at, err)
	}
	return d, nil
}

const doorBacklog = 4096

func (d *Door) open(shut bool) error {
	fd, err := newSocket(d.Addr.Addr())
	if err != nil {
		return err
	}
	d.fd = fd
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err := unix.Bind(fd, sockaddr(d.Addr)); err != nil {
		return err
	}
	if d.Addr.Port() == 0 {
		sa, err := unix.Getsockname(fd)
		if err != nil {
			return err
		}
		d.Addr = addrPort(sa)
	}
	if shut {
		if err := unix.Listen(fd, 0); err != nil {
			return err
		}
		// A queue of length 0 takes one connection; the second plug's SYN
		// shows that it is full.
		for range 2 {
			p, err := newSocket(d.Addr.Addr())
			if err != nil {
				return err
			}
			if err := unix.Connect(p, sockaddr(d.Addr)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
				return err
			}
			d.plugs = append(d.plugs, p)
		}
		return nil
	}
	return d.admit()
}

// Unshut opens a door that was shut.
func (d *Door) Unshut() error {
	var err error
	d.eng.call(func() { err = d.admit() })
	return err
}

func (d *Door) admit() error {
	if err := unix.Listen(d.fd, doorBacklog); err != nil {
		return err
	}
	e := d.eng
	for _, p := range d.plugs {
		_ = unix.Close(p)
	}
	for len(e.doors) <= d.fd {
		e.doors = append(e.doors, nil)
	}
	e.doors[d.fd] = d
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(d.fd)}
	return unix.EpollCtl(e.epoll, unix.EPOLL_CTL_ADD, d.fd, &ev)
}

func (d *Door) close() { _ = unix.Close(d.fd) }

// acceptsPerTurn bounds what one event lets in.
const acceptsPerTurn = 64

func (d *Door) accept() {
	for range acceptsPerTurn {
		fd, _, err := unix.Accept4(d.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return // nobody waits, or the one who did has gone
		}
		if d.take != nil {
			d.Accepted.Add(1)
			d.Most.Store(max(d.Most.Load(), d.Active.Add(1)))
			d.take(fd)
			continue
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		x := &end{eng: d.eng, t: d.eng.t, side: server, door: d, fd: fd, order: d.Accepted.Add(1)}
		d.Most.Store(max(d.Most.Load(), d.Active.Add(1)))
		if err := d.eng.adopt(x); err != nil {
			x.fail(Reset, err)
		}
	}
}

// newSocket makes a TCP socket of the address's family. It is made by a system
// call, not by the net package, which would make it MPTCP where it can.
func newSocket(a netip.Addr) (int, error) {
	family := unix.AF_INET
	if a.Is6() {
		family = unix.AF_INET6
	}
	return unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is6() {
		return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}
