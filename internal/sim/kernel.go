package sim

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// file is an open file: what descriptors of one or more processes refer to,
// and what pollers watch. It is not the descriptor.
type file struct {
	refs     int
	sock     *Sock
	listener *Listener
	pipe     *pipe
	watches  []*watch
}

type pipe struct {
	buf []byte
	cap int
}

func (f *file) mask() sock.Ready {
	switch {
	case f.sock != nil:
		return f.sock.mask()
	case f.listener != nil && len(f.listener.queue) > 0:
		return sock.Readable
	}
	return 0
}

// watch is one descriptor of a file in one poller. It is gone when it is taken out
// or the file is, not when the descriptor is closed while there is another one.
type watch struct {
	poll    *Kernel
	file    *file
	fd      sock.FD
	want    sock.Ready
	data    uint64
	shared  bool // level, one of many is woken
	pending bool
}

// wake is the wait queue of a file: key is what has become ready, 0 if that
// is not said (fs/eventpoll.c, ep_poll_callback).
func (f *file) wake(key sock.Ready) {
	first := 0
	if len(f.watches) > 1 {
		first = f.watches[0].poll.net.rng.IntN(len(f.watches))
	}
	for k := range f.watches {
		w := f.watches[(first+k)%len(f.watches)]
		if key != 0 && key&(w.want|sock.Failed|sock.Hangup) == 0 {
			continue
		}
		w.mark()
		// EPOLLEXCLUSIVE: the first that sleeps gets it alone; ones that are
		// awake are told as well. One that was stopped does not sleep there
		// (fs/eventpoll.c, ep_poll_callback; kernel/signal.c, do_signal_stop).
		if w.shared && !w.poll.fds.stopped && w.poll.net.rng.IntN(2) == 0 {
			break
		}
	}
}

func (w *watch) mark() {
	if !w.pending {
		w.pending = true
		w.poll.ready = append(w.poll.ready, w)
	}
}

func (f *file) drop() {
	if f.refs--; f.refs > 0 {
		return
	}
	for len(f.watches) > 0 {
		f.watches[0].forget()
	}
	switch {
	case f.sock != nil:
		f.sock.close()
	case f.listener != nil:
		// What waits in a queue that is closed is reset.
		f.listener.closed = true
		if n := len(f.listener.queue); n > 0 && f.listener.barred {
			f.listener.queue[0].net.violate("%d connections wait in the queue of a listener that is closed in order", n)
		}
		for _, s := range f.listener.queue {
			s.excuse("it waited in a queue that was closed")
			s.reset()
		}
		f.listener.queue = nil
	}
}

func (w *watch) forget() {
	w.file.watches = slices.DeleteFunc(w.file.watches, func(x *watch) bool { return x == w })
	w.poll.watches = slices.DeleteFunc(w.poll.watches, func(x *watch) bool { return x == w })
	w.poll.ready = slices.DeleteFunc(w.poll.ready, func(x *watch) bool { return x == w })
	if len(w.poll.past) < 64 {
		w.poll.past = append(w.poll.past, w.data)
	}
}

// FDs is the table of descriptors of one process.
type FDs struct {
	net   *Net
	files []*file // by number; nil: free
	max   int
	dead  bool
	// The process stands still.
	stopped bool
	gave    bool // it has a successor
	// What was accepted by listener, where that is bounded.
	accepted map[*Listener]*acceptedAt
	rest     bool // what waits is taken however much it is: the listener goes
	// What was accepted just now, and nothing was done with it since: reset at
	// once it was refused, which no rate counts.
	fresh sock.FD
	by    *acceptedAt
}

const firstFD = 3

func newFDs(n *Net, max int) *FDs { return &FDs{net: n, files: make([]*file, firstFD), max: max} }

// put gives the lowest free number, as the kernel does: so numbers are reused
// at once.
func (t *FDs) put(f *file) (sock.FD, bool) {
	i := firstFD
	for ; i < len(t.files) && t.files[i] != nil; i++ {
	}
	if i >= t.max {
		return sock.NoFD, false
	}
	if i == len(t.files) {
		t.files = append(t.files, nil)
	}
	t.files[i] = f
	f.refs++
	return sock.FD(i), true
}

func (t *FDs) get(fd sock.FD, call string) *file {
	if fd < 0 || int(fd) >= len(t.files) || t.files[fd] == nil {
		t.net.violate("%s of fd %d, which is not open", call, fd)
		return nil
	}
	return t.files[fd]
}

func (t *FDs) sock(fd sock.FD, call string) *Sock {
	f := t.get(fd, call)
	if f == nil {
		return nil
	}
	if f.sock == nil {
		t.net.violate("%s of fd %d, which is no socket", call, fd)
		return nil
	}
	return f.sock
}

// look is the socket of a descriptor for people, nil if there is none.
func (t *FDs) look(fd sock.FD) *Sock {
	if fd < 0 || int(fd) >= len(t.files) || t.files[fd] == nil {
		return nil
	}
	return t.files[fd].sock
}

func (t *FDs) close(fd sock.FD) {
	if fd < 0 {
		return
	}
	if f := t.get(fd, "close"); f != nil {
		t.files[fd] = nil
		f.drop()
	}
}

func (t *FDs) closeReset(fd sock.FD) {
	if fd < 0 {
		return
	}
	if f := t.get(fd, "close by reset"); f != nil {
		if f.sock != nil {
			f.sock.linger0 = true // of the socket: it holds for a copy elsewhere, too
		}
		t.close(fd)
	}
}

// count is how many descriptors are open.
func (t *FDs) count() (n int) {
	for _, f := range t.files {
		if f != nil {
			n++
		}
	}
	return n
}

// crash closes everything, as the kernel does for a process that has died.
func (t *FDs) crash() {
	t.dead = true
	for i, f := range t.files {
		if f == nil {
			continue
		}
		if f.sock != nil && f.refs == 1 {
			f.sock.excuse("its process died")
		}
		if f.listener != nil {
			f.listener.orphaned = true
		}
		t.files[i] = nil
		f.drop()
	}
}

// Kernel is one loop's view: a poller of its own over the descriptors of its
// process. It implements [loop.Kernel].
type Kernel struct {
	net     *Net
	fds     *FDs
	watches []*watch
	ready   []*watch
	past    []uint64 // data of what is no longer watched
	rung    bool
	noise   bool // now and then it wakes for nothing
}

var _ loop.Kernel = (*Kernel)(nil)

// Now reads the world's clock.
func (k *Kernel) Now() flow.Instant { return k.net.now }

// Epoch is a Tuesday in autumn.
func (k *Kernel) Epoch() flow.Instant { return flow.Instant(1.7e18) }

func event(data uint64, r sock.Ready) sock.PollEvent {
	return sock.PollEvent{Events: uint32(r), Fd: int32(uint32(data)), Pad: int32(uint32(data >> 32))}
}

// Wait never waits; the world's clock moves when all loops have nothing to do.
func (k *Kernel) Wait(ev []sock.PollEvent, _ time.Duration) int {
	k.rung = false
	if k.noise && k.net.rng.IntN(16) == 0 && len(k.watches) > 0 {
		k.watches[k.net.rng.IntN(len(k.watches))].mark() // woken for nothing
	}
	room := len(ev)
	if k.net.rng.IntN(4) == 0 {
		room = 1 + k.net.rng.IntN(3) // the others come with the next wait
	}
	n := 0
	if k.noise && k.net.rng.IntN(16) == 0 && len(k.past) > 0 {
		// As if it had been fetched before its descriptor was closed. That can
		// only be while the same batch is worked off, so not for a tenant that
		// is there now.
		if old := k.past[k.net.rng.IntN(len(k.past))]; !k.watched(old) {
			ev[0] = event(old, sock.Readable|sock.Writable|sock.PeerShut|sock.Hangup|sock.Failed)
			n = 1
		}
	}
	ready := k.ready
	k.ready = nil
	for len(ready) > 0 && n < room {
		w := ready[0]
		ready = ready[1:]
		w.pending = false
		if r := w.file.mask() & (w.want | sock.Failed | sock.Hangup); r != 0 {
			ev[n] = event(w.data, r)
			n++
			if w.shared {
				w.mark() // level: looked at again by the next wait
			}
		}
	}
	k.ready = append(ready, k.ready...)
	return n
}

// watched tells whether a leg of the tenant that data names is watched.
func (k *Kernel) watched(data uint64) bool {
	return slices.ContainsFunc(k.watches, func(w *watch) bool { return w.data&^1 == data&^1 })
}

// Wake is the bell.
func (k *Kernel) Wake() { k.rung = true }

func (k *Kernel) watch(fd sock.FD, r sock.Ready, data uint64, shared bool) sock.Errno {
	f := k.fds.get(fd, "watch")
	if f == nil {
		return sock.Invalid
	}
	if k.net.fail("watch") {
		if f.sock != nil {
			f.sock.unwatched = true
			f.sock.excuse("it could not be watched")
		}
		return sock.NoMemory
	}
	for _, w := range f.watches {
		if w.poll == k && w.fd == fd {
			k.net.violate("fd %d is watched twice", fd)
			return sock.Invalid
		}
	}
	w := &watch{poll: k, file: f, fd: fd, want: r, data: data, shared: shared}
	f.watches = append(f.watches, w)
	k.watches = append(k.watches, w)
	if f.mask()&(r|sock.Failed|sock.Hangup) != 0 {
		w.mark()
	}
	return 0
}

// Watch reports edges, beginning with what is ready now.
func (k *Kernel) Watch(fd sock.FD, r sock.Ready, data uint64) sock.Errno {
	return k.watch(fd, r, data, false)
}

// WatchShared reports a listener by level.
func (k *Kernel) WatchShared(fd sock.FD, data uint64) sock.Errno {
	return k.watch(fd, sock.Readable, data, true)
}

func (k *Kernel) find(fd sock.FD, call string) *watch {
	if f := k.fds.get(fd, call); f != nil {
		for _, w := range f.watches {
			if w.poll == k && w.fd == fd {
				return w
			}
		}
	}
	return nil
}

// Rewatch changes what is reported and reports what is ready now.
func (k *Kernel) Rewatch(fd sock.FD, r sock.Ready, data uint64) sock.Errno {
	w := k.find(fd, "rewatch")
	if w == nil {
		return sock.NoEntry
	}
	w.want, w.data = r, data
	if w.file.mask()&(r|sock.Failed|sock.Hangup) != 0 {
		w.mark()
	}
	return 0
}

// Unwatch forgets a descriptor.
func (k *Kernel) Unwatch(fd sock.FD) sock.Errno {
	w := k.find(fd, "unwatch")
	if w == nil {
		return sock.NoEntry
	}
	w.forget()
	return 0
}

// Accept takes the first connection of a queue.
func (k *Kernel) Accept(listener sock.FD) (sock.FD, netip.AddrPort, sock.Errno) {
	f := k.fds.get(listener, "accept")
	if f == nil || f.listener == nil {
		return sock.NoFD, netip.AddrPort{}, sock.Invalid
	}
	l := f.listener
	if k.fds.gave {
		k.net.violate("a process that has handed over accepts")
	}
	if len(l.queue) == 0 {
		return sock.NoFD, netip.AddrPort{}, sock.Again
	}
	if k.net.fail("accept") {
		if k.net.rng.IntN(2) == 0 {
			s := l.queue[0] // it was reset while it waited
			l.queue = l.queue[1:]
			s.excuse("aborted while it waited")
			s.reset()
			return sock.NoFD, netip.AddrPort{}, sock.Aborted
		}
		return sock.NoFD, netip.AddrPort{}, sock.ManyFiles
	}
	s := l.queue[0]
	s.file = &file{sock: s}
	fd, ok := k.fds.put(s.file)
	if !ok {
		s.file = nil
		return sock.NoFD, netip.AddrPort{}, sock.ManyFiles
	}
	l.queue = l.queue[1:]
	if k.net.accepted != nil {
		k.net.accepted(k.fds, l)
	}
	k.fds.fresh, k.fds.by = fd, k.fds.accepted[l]
	return fd, s.remote, 0
}

// Peek looks at what Recv would give, and never fails by chance: it takes nothing.
func (k *Kernel) Peek(fd sock.FD) (int, sock.Errno) {
	s := k.fds.sock(fd, "peek")
	if s == nil {
		return 0, sock.Invalid
	}
	return s.peek()
}

// Recv reads.
func (k *Kernel) Recv(fd sock.FD, b []byte) (int, sock.Errno) {
	k.fds.by = nil
	s := k.fds.sock(fd, "recv")
	if s == nil {
		return 0, sock.Invalid
	}
	if k.net.fail("recv") {
		s.timesOut(sock.TimedOut)
		return 0, sock.TimedOut
	}
	return s.recv(b)
}

// Send writes.
func (k *Kernel) Send(fd sock.FD, b []byte) (int, sock.Errno) {
	s := k.fds.sock(fd, "send")
	if s == nil {
		return 0, sock.Invalid
	}
	if k.net.fail("send") {
		s.timesOut(sock.TimedOut)
		return 0, sock.TimedOut
	}
	if s.served && !s.asked {
		if s.asked = true; s.mate == nil {
			k.net.first(s, b)
		}
	}
	return s.send(b)
}

// Splice moves octets between a socket and a pipe.
func (k *Kernel) Splice(from, to sock.FD, n int) (int, sock.Errno) {
	f, t := k.fds.get(from, "splice from"), k.fds.get(to, "splice to")
	if f == nil || t == nil {
		return 0, sock.Invalid
	}
	if f.sock != nil && t.pipe != nil {
		if k.net.fail("splice in") {
			f.sock.timesOut(sock.TimedOut)
			return 0, sock.TimedOut
		}
		if room := t.pipe.cap - len(t.pipe.buf); room == 0 {
			return 0, sock.Again
		} else if n = min(n, room); k.net.rng.IntN(4) == 0 {
			n = 1 + k.net.rng.IntN(n) // small segments fill the slots of a pipe early
		}
		buf := make([]byte, min(n, max(1, len(f.sock.rcv))))
		got, e := f.sock.recv(buf)
		t.pipe.buf = append(t.pipe.buf, buf[:got]...)
		return got, e
	}
	if f.pipe == nil || t.sock == nil {
		k.net.violate("splice of fd %d to fd %d", from, to)
		return 0, sock.Invalid
	}
	if k.net.fail("splice out") {
		t.sock.timesOut(sock.TimedOut)
		return 0, sock.TimedOut
	}
	if len(f.pipe.buf) == 0 {
		return 0, sock.Again
	}
	got, e := t.sock.send(f.pipe.buf[:min(n, len(f.pipe.buf))])
	f.pipe.buf = f.pipe.buf[got:]
	return got, e
}

// Pipe makes a pipe.
func (k *Kernel) Pipe(size int) (r, w sock.FD, err error) {
	p := &pipe{cap: size}
	if k.net.fail("pipe") {
		return sock.NoFD, sock.NoFD, fmt.Errorf("sim: pipe: %w", sock.ManyFiles)
	}
	r, ok := k.fds.put(&file{pipe: p})
	if !ok {
		return sock.NoFD, sock.NoFD, fmt.Errorf("sim: pipe: %w", sock.ManyFiles)
	}
	w, ok = k.fds.put(&file{pipe: p})
	if !ok {
		k.fds.close(r)
		return sock.NoFD, sock.NoFD, fmt.Errorf("sim: pipe: %w", sock.ManyFiles)
	}
	return r, w, nil
}

// ReadPipe empties a pipe. It does not fail: nothing in Linux would make it.
func (k *Kernel) ReadPipe(fd sock.FD, b []byte) (int, sock.Errno) {
	f := k.fds.get(fd, "read")
	if f == nil || f.pipe == nil {
		return 0, sock.Invalid
	}
	if len(f.pipe.buf) == 0 {
		return 0, sock.Again
	}
	n := min(len(b), len(f.pipe.buf))
	if n > 1 && k.net.rng.IntN(4) == 0 {
		n = 1 + k.net.rng.IntN(n)
	}
	n = copy(b[:n], f.pipe.buf)
	f.pipe.buf = f.pipe.buf[n:]
	return n, 0
}

// Dial begins a connection.
func (k *Kernel) Dial(d *sock.DialSpec) (sock.FD, bool, sock.Errno) {
	if k.net.fail("dial") {
		return sock.NoFD, false, []sock.Errno{sock.ManyFiles, sock.NoPort, sock.NoBuffers, sock.Unreachable}[k.net.rng.IntN(4)]
	}
	if d.Unix != "" {
		l := k.net.unix[d.Unix]
		if l == nil || l.closed {
			return sock.NoFD, false, sock.NoEntry
		}
		if len(l.queue) >= l.backlog {
			return sock.NoFD, false, sock.Again
		}
		near, _ := k.net.pair(netip.AddrPort{}, netip.AddrPort{})
		near.file = &file{sock: near}
		fd, ok := k.fds.put(near.file)
		if !ok {
			near.dead = true
			return sock.NoFD, false, sock.ManyFiles
		}
		k.net.established(near, l)
		return fd, false, 0
	}
	source := d.Source
	if !source.IsValid() {
		source = netip.AddrFrom4([4]byte{10, 9, 9, 9})
	}
	near, _ := k.net.pair(netip.AddrPortFrom(source, k.net.port()), d.Addr)
	near.file = &file{sock: near}
	fd, ok := k.fds.put(near.file)
	if !ok {
		near.file, near.dead = nil, true
		return sock.NoFD, false, sock.ManyFiles
	}
	k.net.connect(near, d.Addr)
	return fd, true, 0
}

// DialResult tells how far a connection is.
func (k *Kernel) DialResult(fd sock.FD) sock.Errno {
	s := k.fds.sock(fd, "dial result")
	switch {
	case s == nil:
		return sock.Invalid
	case k.net.fail("dial result"):
		s.timesOut(sock.TimedOut)
		s.dead = true
		return sock.TimedOut
	case s.errno != 0:
		return s.failed()
	case s.connected:
		return 0
	}
	return sock.InProgress
}

// Sent knows nothing: what a kernel here has taken it has sent.
func (k *Kernel) Sent(fd sock.FD) (time.Duration, bool) {
	k.fds.sock(fd, "sent")
	return 0, false
}

// Shutdown sends FIN.
func (k *Kernel) Shutdown(fd sock.FD) {
	if s := k.fds.sock(fd, "shutdown"); s != nil {
		s.shutdown()
	}
}

// Close gives a descriptor back.
func (k *Kernel) Close(fd sock.FD) { k.fds.close(fd) }

// CloseReset closes with RST.
func (k *Kernel) CloseReset(fd sock.FD) {
	if k.fds.by != nil && k.fds.fresh == fd {
		k.fds.by.n--
	}
	k.fds.by = nil
	k.fds.closeReset(fd)
}

// Cookie names a socket.
func (k *Kernel) Cookie(fd sock.FD) (uint64, error) {
	if s := k.fds.sock(fd, "cookie"); s != nil {
		return s.cookie, nil
	}
	return 0, sock.Invalid
}

// CloseLent ends a connection, whoever else has a descriptor, and closes one.
func (k *Kernel) CloseLent(fd sock.FD) {
	if s := k.fds.sock(fd, "close of a lent one"); s != nil {
		s.end()
	}
	k.fds.close(fd)
}

// CloseResetLent does so by RST.
func (k *Kernel) CloseResetLent(fd sock.FD) {
	if k.fds.by != nil && k.fds.fresh == fd {
		k.fds.by.n--
	}
	k.fds.by = nil
	if s := k.fds.sock(fd, "close by reset of a lent one"); s != nil {
		s.disconnect()
	}
	k.fds.close(fd)
}

// listen opens a listener of the process.
func (t *FDs) listen(at netip.AddrPort, backlog int) (sock.FD, error) {
	l := &Listener{at: at, backlog: backlog}
	l.file = &file{listener: l}
	fd, ok := t.put(l.file)
	if !ok {
		return sock.NoFD, fmt.Errorf("sim: listen %v: %w", at, sock.ManyFiles)
	}
	t.net.routes[at] = l
	return fd, nil
}

// NoDelay and Enliven set options that have no meaning here; they still must
// be asked of an open socket.
func (k *Kernel) NoDelay(fd sock.FD) { k.fds.sock(fd, "no delay") }

// Enliven see NoDelay.
func (k *Kernel) Enliven(fd sock.FD, _ sock.Life) { k.fds.sock(fd, "enliven") }

// Vanished tells whether the peer of a leg has answered nothing for so long.
// Nobody vanishes here without a word.
func (k *Kernel) Vanished(fd sock.FD, _ time.Duration) bool {
	k.fds.sock(fd, "look after the peer")
	return false
}

// Threshold is SO_RCVLOWAT: no more than half of the buffer
// (net/ipv4/tcp.c, tcp_set_rcvlowat), and it wakes who is readable by it.
func (k *Kernel) Threshold(fd sock.FD, octets int) {
	if s := k.fds.sock(fd, "threshold"); s != nil {
		s.lowat = min(octets, s.rcvCap/2)
		k.net.thresholds++
		k.net.thickened = octets > 1
		if len(s.rcv) > 0 && len(s.rcv) >= s.lowat {
			s.wake(sock.Readable)
		}
	}
}
