package bench

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// loadSpec says what the load generator does in one round.
type loadSpec struct {
	Kind  string // "keep", "connect", "bulk" or "idle"
	Talk  string // "echo", "http" or "websocket"; bulk has its own
	Port  int
	Conns int // connections at a time
	Bytes int // of one message, or of the content of an answer

	Warmup  time.Duration // load that is not counted, before the rest
	Measure time.Duration

	// Rate is the number of operations begun per second, evenly; 0 begins
	// the next when one ends.
	Rate int

	// Backend, if there is one, is served by the generator itself: one process
	// on the CPU beside the proxy's is woken less often than two, and a proxy
	// that wakes others pays for that.
	Backend *backendSpec

	// PIDs are the processes of the proxy. Their CPU time is read by the
	// generator itself, at the very instants between which it counts.
	PIDs []int
}

// loadResult is what one round yielded.
type loadResult struct {
	Ops     float64 // operations, or MiB
	Seconds float64
	CPU     time.Duration // of the proxy
	P50     time.Duration
	P99     time.Duration
	Max     time.Duration
}

// drainMax bounds the wait for what is still under way when a round ends.
const drainMax = 5 * time.Second

// meter counts between two instants.
type meter struct {
	spec   *loadSpec
	begin  time.Time
	cpu    time.Duration
	warm   time.Time
	end    time.Time
	ops    float64
	hist   *histogram
	active bool
	result loadResult
}

func newMeter(spec *loadSpec) *meter {
	now := time.Now()
	return &meter{spec: spec, warm: now.Add(spec.Warmup), end: now.Add(spec.Warmup + spec.Measure), hist: new(histogram)}
}

// step is told the time often. It begins the count when the warm-up is over
// and reports true when the time to measure is.
func (m *meter) step(now time.Time) (over bool, err error) {
	if !m.active {
		if now.Before(m.warm) {
			return false, nil
		}
		m.active = true
		m.cpu, err = cpuTime(m.spec.PIDs)
		m.begin = time.Now()
		return false, err
	}
	if now.Before(m.end) {
		return false, nil
	}
	cpu, err := cpuTime(m.spec.PIDs)
	m.result = loadResult{
		Ops: m.ops, Seconds: time.Since(m.begin).Seconds(), CPU: cpu - m.cpu,
		P50: m.hist.quantile(0.50), P99: m.hist.quantile(0.99), Max: m.hist.max,
	}
	return true, err
}

// done counts one operation that took d.
func (m *meter) done(d time.Duration) {
	if m.active {
		m.ops++
		m.hist.add(d)
	}
}

// message fills b with octets that differ between connections and rounds.
func message(b []byte, conn, serial uint32) {
	for i := range b {
		b[i] = byte(i) ^ byte(conn)
	}
	if len(b) >= 8 {
		binary.BigEndian.PutUint32(b, conn)
		binary.BigEndian.PutUint32(b[4:], serial)
	}
}

// talk is what the operations of one client consist of.
type talk interface {
	// message returns the message that begins an operation; it is valid until
	// the next call.
	message(conn, serial uint32) []byte
	// take checks octets that have arrived and reports true when the operation is complete.
	take(b []byte) (whole bool, err error)
	// unread is how many of the next octets need only be counted, by skip.
	unread() int
	skip(n int)
	// ends reports whether the end of the connection completes the operation.
	ends() bool
}

// talks returns what makes the talk of each client of a round.
func talks(spec *loadSpec) (func(conn uint32) talk, error) {
	switch spec.Talk {
	case "echo":
		return func(uint32) talk { return &echoTalk{out: make([]byte, spec.Bytes)} }, nil
	case "http":
		a := &answers{bytes: spec.Bytes, closing: spec.Kind == "connect", stream: pattern(spec.Bytes + patternPeriod)}
		return func(conn uint32) talk { return newHTTPTalk(a, conn) }, nil
	case "websocket":
		return func(uint32) talk { return newSocketTalk(spec.Bytes) }, nil
	}
	return nil, fmt.Errorf("bench: talk %q unknown", spec.Talk)
}

// echoTalk has its messages echoed as they are.
type echoTalk struct {
	out []byte // the message whose echo is due
	got int
}

func (t *echoTalk) message(conn, serial uint32) []byte {
	message(t.out, conn, serial)
	t.got = 0
	return t.out
}

func (t *echoTalk) take(b []byte) (bool, error) {
	if len(b) > len(t.out)-t.got {
		return false, fmt.Errorf("%d %w", len(b)-(len(t.out)-t.got), errTooMany)
	}
	if want := t.out[t.got : t.got+len(b)]; !bytes.Equal(b, want) {
		return false, fmt.Errorf("octets %x, want %x", b, want)
	}
	t.got += len(b)
	return t.got == len(t.out), nil
}

func (t *echoTalk) unread() int { return 0 }
func (t *echoTalk) skip(int)    {}
func (t *echoTalk) ends() bool  { return false }

// client is one connection of the generator.
type client struct {
	talk   talk
	fd     int
	id     uint32
	serial uint32
	busy   bool
	unsent bool // the kernel has not yet taken the message
	begun  time.Time
	out    []byte // the message that is under way
	got    int    // octets of the answer
}

var (
	errLost    = errors.New("connection lost")
	errTooMany = errors.New("octets too many")
)

// fail wraps what went wrong on a connection.
func (c *client) fail(what error) error {
	return fmt.Errorf("bench: connection %d, message %d, after %d octets: %w", c.id, c.serial, c.got, what)
}

// begin sends the next message. The latency counts from due.
func (c *client) begin(due time.Time) error {
	c.serial++
	c.got = 0
	c.busy = true
	c.begun = due
	c.out = c.talk.message(c.id, c.serial)
	return c.push()
}

// push offers the message to the kernel, which takes it whole: it is smaller
// than any socket buffer.
func (c *client) push() error {
	n, e := send(c.fd, c.out)
	if c.unsent = e == unix.EAGAIN; c.unsent {
		return nil
	}
	if e != 0 {
		return c.fail(fmt.Errorf("send: %w", e))
	}
	if n != len(c.out) {
		return c.fail(fmt.Errorf("sent %d of %d octets", n, len(c.out)))
	}
	return nil
}

// take receives and checks what is there, of which events tells. It reports
// true when the operation is complete.
func (c *client) take(scratch []byte, events uint32) (bool, error) {
	for {
		var n int
		var e unix.Errno
		room := len(scratch)
		unread := c.talk.unread()
		if unread > 0 {
			room = unread
			n, e = discard(c.fd, room)
		} else {
			n, e = recv(c.fd, scratch)
		}
		switch {
		case e == unix.EAGAIN:
			return false, nil
		case e != 0:
			return false, c.fail(fmt.Errorf("recv: %w", e))
		case n == 0 && c.busy && c.talk.ends():
			c.busy = false
			return true, nil
		case n == 0:
			return false, c.fail(errLost)
		case !c.busy:
			return false, c.fail(fmt.Errorf("%d %w", n, errTooMany))
		}
		if unread > 0 {
			c.talk.skip(n)
		} else if whole, err := c.talk.take(scratch[:n]); err != nil {
			return false, c.fail(err)
		} else if whole {
			c.busy = false
			return true, nil
		}
		c.got += n
		// A new arrival is a new edge; an end that had arrived before the wait is none.
		if n < room && events&unix.EPOLLRDHUP == 0 {
			return false, nil
		}
	}
}

// runLoad does one round. between, for the idle kind, is called while all
// connections stand open and silent.
func runLoad(spec loadSpec, between func()) (loadResult, error) {
	switch spec.Kind {
	case "keep":
		return loadKeep(&spec)
	case "connect":
		return loadConnect(&spec)
	case "bulk":
		return loadBulk(&spec)
	case "idle":
		return loadIdle(&spec, between)
	}
	return loadResult{}, fmt.Errorf("bench: load %q unknown", spec.Kind)
}

// paceTick is how often a generator with a rate begins what is due.
const paceTick = 500 * time.Microsecond

// loadKeep has spec.Conns connections do one operation after another.
func loadKeep(spec *loadSpec) (loadResult, error) {
	newTalk, err := talks(spec)
	if err != nil {
		return loadResult{}, err
	}
	p, err := newPoller()
	if err != nil {
		return loadResult{}, err
	}
	var own *backend
	if spec.Backend != nil {
		if own, err = newBackend(spec.Backend, p); err != nil {
			return loadResult{}, err
		}
	}
	sa := sockaddr(spec.Port)
	byFD := make([]*client, 20000) // the others are those of our own backend
	clients := make([]*client, spec.Conns)
	for i := range clients {
		fd, err := connect(&sa)
		if err != nil {
			return loadResult{}, err
		}
		defer closeFD(fd)
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		clients[i] = &client{talk: newTalk(uint32(i)), fd: fd, id: uint32(i)}
		byFD[fd] = clients[i]
		p.add(fd, evConn|unix.EPOLLOUT)
	}
	timer := -1
	if spec.Rate > 0 {
		if timer, err = ticker(paceTick); err != nil {
			return loadResult{}, err
		}
		defer closeFD(timer)
		p.add(timer, unix.EPOLLIN)
	}
	m := newMeter(spec)
	start := time.Now()
	var begun, next int // operations begun; the client whose turn it is
	// pace begins, in turn, what is due by now. What finds no idle client
	// stays due, and its wait counts.
	pace := func(now time.Time) error {
		due := int(now.Sub(start).Seconds() * float64(spec.Rate))
		for tries := 0; begun < due && tries < len(clients); tries++ {
			c := clients[next]
			next = (next + 1) % len(clients)
			if c.busy {
				continue
			}
			begun++
			at := start.Add(time.Duration(float64(begun) / float64(spec.Rate) * float64(time.Second)))
			if now.Sub(at) < 2*paceTick {
				at = now // late by the tick only: not the proxy's doing
			}
			if err := c.begin(at); err != nil {
				return err
			}
			tries = 0
		}
		return nil
	}
	if spec.Rate == 0 {
		for _, c := range clients {
			if err := c.begin(time.Now()); err != nil {
				return loadResult{}, err
			}
		}
	}
	scratch := make([]byte, 64<<10)
	for over := false; ; {
		events := p.wait(100)
		now := time.Now()
		if !over {
			if over, err = m.step(now); err != nil {
				return loadResult{}, err
			}
		}
		left := 0
		for _, ev := range events {
			if int(ev.Fd) == timer {
				_, _ = unix.Read(timer, scratch[:8]) // expirations: the clock counts, not they
				continue
			}
			c := byFD[ev.Fd]
			if c == nil {
				own.event(ev)
				continue
			}
			if c.unsent {
				if err := c.push(); err != nil {
					return loadResult{}, err
				}
			}
			whole, err := c.take(scratch, ev.Events)
			if err != nil {
				return loadResult{}, err
			}
			if !whole {
				continue
			}
			now = time.Now()
			if !over {
				m.done(now.Sub(c.begun))
				if spec.Rate == 0 {
					if err := c.begin(now); err != nil {
						return loadResult{}, err
					}
				}
			}
		}
		if spec.Rate > 0 && !over {
			if err := pace(now); err != nil {
				return loadResult{}, err
			}
		}
		if !over {
			continue
		}
		for _, c := range clients {
			if c.busy {
				left++
			}
		}
		if left == 0 {
			return m.result, nil
		}
		if now.Sub(m.end) > drainMax {
			return loadResult{}, fmt.Errorf("bench: %d operations not over %v after the round", left, drainMax)
		}
	}
}

// ticker returns a timer descriptor that becomes readable every d.
func ticker(d time.Duration) (int, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("bench: timerfd_create: %w", err)
	}
	ts := unix.NsecToTimespec(int64(d))
	if err := unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{Interval: ts, Value: ts}, nil); err != nil {
		return -1, fmt.Errorf("bench: timerfd_settime: %w", err)
	}
	return fd, nil
}

// loadConnect keeps spec.Conns sequences going; each connects, does one
// operation, closes and begins again.
func loadConnect(spec *loadSpec) (loadResult, error) {
	newTalk, err := talks(spec)
	if err != nil {
		return loadResult{}, err
	}
	p, err := newPoller()
	if err != nil {
		return loadResult{}, err
	}
	var own *backend
	if spec.Backend != nil {
		if own, err = newBackend(spec.Backend, p); err != nil {
			return loadResult{}, err
		}
	}
	sa := sockaddr(spec.Port)
	byFD := make([]*client, 20000) // the others are those of our own backend
	open := func(c *client, now time.Time) error {
		fd, err := connect(&sa)
		if err != nil {
			return c.fail(err)
		}
		c.fd = fd
		byFD[fd] = c
		if err := c.begin(now); err != nil {
			return err
		}
		// Most answers are not here yet. EPOLLOUT is needed only where the
		// handshake was not over when we sent.
		mask := uint32(evConn)
		if c.unsent {
			mask |= unix.EPOLLOUT
		}
		p.add(fd, mask)
		return nil
	}
	m := newMeter(spec)
	for i := range spec.Conns {
		c := &client{talk: newTalk(uint32(i)), id: uint32(i)}
		if err := open(c, time.Now()); err != nil {
			return loadResult{}, err
		}
	}
	scratch := make([]byte, 64<<10)
	left := spec.Conns
	for over := false; left > 0; {
		events := p.wait(100)
		now := time.Now()
		if !over {
			if over, err = m.step(now); err != nil {
				return loadResult{}, err
			}
		}
		if over && now.Sub(m.end) > drainMax {
			return loadResult{}, fmt.Errorf("bench: %d operations not over %v after the round", left, drainMax)
		}
		for _, ev := range events {
			c := byFD[ev.Fd]
			if c == nil {
				own.event(ev)
				continue
			}
			if c.unsent {
				if err := c.push(); err != nil {
					return loadResult{}, err
				}
			}
			whole, err := c.take(scratch, ev.Events)
			if err != nil {
				return loadResult{}, err
			}
			if !whole {
				continue
			}
			byFD[c.fd] = nil
			closeFD(c.fd)
			now = time.Now()
			if over {
				left--
				continue
			}
			m.done(now.Sub(c.begun))
			if err := open(c, now); err != nil {
				return loadResult{}, err
			}
		}
	}
	return m.result, nil
}

// stream is one connection that receives from a source.
type stream struct {
	fd   int
	got  uint64 // octets, the trailer included
	tail []byte // the last octets, at most the trailer
	eof  bool
}

// checkedBytes is how much of each stream is compared with the pattern at its
// beginning; the end, from the stop on, is always compared. Between them
// octets are only counted, so that the generator is faster than any proxy;
// an octet lost or doubled there shifts the end and fails the total.
const checkedBytes = 1 << 20

// discardBytes is the most that one call drops.
const discardBytes = 1 << 20

func loadBulk(spec *loadSpec) (loadResult, error) {
	p, err := newPoller()
	if err != nil {
		return loadResult{}, err
	}
	sa := sockaddr(spec.Port)
	streams := make([]*stream, 4096)
	var all []*stream
	for range spec.Conns {
		fd, err := connect(&sa)
		if err != nil {
			return loadResult{}, err
		}
		defer closeFD(fd)
		s := &stream{fd: fd}
		streams[fd] = s
		all = append(all, s)
		p.add(fd, unix.EPOLLIN|unix.EPOLLRDHUP) // level-triggered: one call a turn, fair to all
	}
	const mib = 1 << 20
	want := pattern(checkedBytes + patternPeriod)
	scratch := make([]byte, checkedBytes)
	m := newMeter(spec)
	left := spec.Conns
	for over := false; left > 0; {
		events := p.wait(100)
		now := time.Now()
		if !over {
			if over, err = m.step(now); err != nil {
				return loadResult{}, err
			}
			if over {
				for _, s := range all {
					if n, e := send(s.fd, []byte{stopOctet}); n != 1 {
						return loadResult{}, fmt.Errorf("bench: stream: send stop: %w", e)
					}
				}
			}
		}
		if over && now.Sub(m.end) > drainMax {
			return loadResult{}, fmt.Errorf("bench: %d streams did not end within %v", left, drainMax)
		}
		for _, ev := range events {
			s := streams[ev.Fd]
			if s.eof {
				continue
			}
			var n int
			if !over && s.got >= checkedBytes {
				var e unix.Errno
				if n, e = discard(s.fd, discardBytes); e == unix.EAGAIN {
					continue
				} else if e != 0 || n == 0 {
					return loadResult{}, fmt.Errorf("bench: stream after %d octets: %w (%v)", s.got, errLost, e)
				}
				if err := s.skip(n, want); err != nil {
					return loadResult{}, err
				}
			} else {
				var e unix.Errno
				if n, e = recv(s.fd, scratch); e == unix.EAGAIN {
					continue
				} else if e != 0 || n == 0 && !over {
					return loadResult{}, fmt.Errorf("bench: stream after %d octets: %w (%v)", s.got, errLost, e)
				}
				if n == 0 {
					if err := s.finish(); err != nil {
						return loadResult{}, err
					}
					s.eof = true
					left--
					_, _, _ = unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(p.fd), unix.EPOLL_CTL_DEL, uintptr(s.fd), 0, 0, 0)
					continue
				}
				if err := s.check(scratch[:n], want); err != nil {
					return loadResult{}, err
				}
			}
			if m.active && !over {
				m.ops += float64(n) / mib
			}
		}
	}
	return m.result, nil
}

// check compares b, which follows what s already received, with the pattern.
// The last octets seen may be the trailer and are compared only once others
// follow them.
func (s *stream) check(b, want []byte) error {
	at := s.got - uint64(len(s.tail))
	s.got += uint64(len(b))
	keep := min(trailerBytes, len(s.tail)+len(b))
	old := len(s.tail) + len(b) - keep // octets that are surely pattern
	if n := min(old, len(s.tail)); n > 0 {
		if err := comparePattern(s.tail[:n], want, at); err != nil {
			return err
		}
		at += uint64(n)
		old -= n
		s.tail = append(s.tail[:0], s.tail[n:]...)
	}
	if err := comparePattern(b[:old], want, at); err != nil {
		return err
	}
	s.tail = append(s.tail, b[old:]...)
	return nil
}

// skip counts n octets that nobody looked at. What was held back as a possible
// trailer was none.
func (s *stream) skip(n int, want []byte) error {
	held := s.tail
	s.tail = s.tail[:0]
	at := s.got - uint64(len(held))
	s.got += uint64(n)
	return comparePattern(held, want, at)
}

// comparePattern reports where b is not the pattern from offset at on.
func comparePattern(b, want []byte, at uint64) error {
	from := at % patternPeriod
	if bytes.Equal(b, want[from:from+uint64(len(b))]) {
		return nil
	}
	for i := range b {
		if b[i] != want[from+uint64(i)] {
			return fmt.Errorf("bench: stream: octet %d is %#x, want %#x", at+uint64(i), b[i], want[from+uint64(i)])
		}
	}
	return nil
}

// finish checks the count that the source sent last.
func (s *stream) finish() error {
	if len(s.tail) != trailerBytes {
		return fmt.Errorf("bench: stream ended after %d octets without its count: %w", s.got, errLost)
	}
	if sent := binary.BigEndian.Uint64(s.tail); sent != s.got-trailerBytes {
		return fmt.Errorf("bench: stream: source sent %d octets, %d arrived", sent, s.got-trailerBytes)
	}
	return nil
}

// idleStep is how many connections the idle load opens, and later uses, at a
// time: fewer than any listen queue holds.
const idleStep = 100

// loadIdle opens spec.Conns connections, each with one operation, calls
// between, has each do another one, to prove that it was kept, and closes them.
func loadIdle(spec *loadSpec, between func()) (loadResult, error) {
	newTalk, err := talks(spec)
	if err != nil {
		return loadResult{}, err
	}
	sa := sockaddr(spec.Port)
	clients := make([]*client, spec.Conns)
	scratch := make([]byte, 4096)
	// all has the clients do one operation each.
	all := func(clients []*client) error {
		for _, c := range clients {
			if err := c.begin(time.Now()); err != nil {
				return err
			}
		}
		for _, c := range clients {
			for limit := time.Now().Add(drainMax); c.busy; {
				if time.Now().After(limit) {
					return c.fail(fmt.Errorf("no answer within %v", drainMax))
				}
				fds := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}
				if c.unsent {
					fds[0].Events |= unix.POLLOUT
				}
				if n, _ := unix.Poll(fds, 100); n == 0 {
					continue
				}
				if c.unsent {
					if err := c.push(); err != nil {
						return err
					}
				}
				if _, err := c.take(scratch, 0); err != nil {
					return err
				}
			}
		}
		return nil
	}
	begin := time.Now()
	before, err := cpuTime(spec.PIDs)
	if err != nil {
		return loadResult{}, err
	}
	for i := range clients {
		fd, err := connect(&sa)
		if err != nil {
			return loadResult{}, err
		}
		defer closeFD(fd)
		clients[i] = &client{talk: newTalk(uint32(i)), fd: fd, id: uint32(i)}
		if n := i + 1; n%idleStep == 0 || n == len(clients) {
			if err := all(clients[(n-1)/idleStep*idleStep : n]); err != nil {
				return loadResult{}, err
			}
		}
	}
	after, err := cpuTime(spec.PIDs)
	if err != nil {
		return loadResult{}, err
	}
	r := loadResult{Ops: float64(spec.Conns), Seconds: time.Since(begin).Seconds(), CPU: after - before}
	between()
	for step := range slices.Chunk(clients, idleStep) {
		if err := all(step); err != nil {
			return loadResult{}, err
		}
	}
	return r, nil
}
