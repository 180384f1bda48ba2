package sim

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// rig is a kernel under test with a peer to talk to.
type rig interface {
	kernel() loop.Kernel
	listen() (sock.FD, netip.AddrPort)
	closed() netip.AddrPort        // an address where nobody listens
	connect(to netip.AddrPort) far // a client
	serve() (netip.AddrPort, func() far)
	dup(fd sock.FD) sock.FD // another descriptor of the same file, as a message to another process makes one
	settle()                // all that is under way arrives
}

// far is the other end of a connection.
type far interface {
	say(n int)
	fin()
	rst()
	take() string // everything there is now: "n octets", then FIN or RST
}

// -- the simulated one --------------------------------------------------------

type simRig struct {
	n *Net
	k *Kernel
}

type simFar struct{ s *Sock }

func (r *simRig) kernel() loop.Kernel { return r.k }
func (r *simRig) listen() (sock.FD, netip.AddrPort) {
	at := netip.MustParseAddrPort("10.0.0.1:80")
	fd, err := r.k.fds.listen(at, 16)
	if err != nil {
		panic(err)
	}
	return fd, at
}
func (r *simRig) closed() netip.AddrPort { return netip.MustParseAddrPort("127.0.0.1:1") }
func (r *simRig) connect(to netip.AddrPort) far {
	s, _ := r.n.pair(netip.MustParseAddrPort("10.0.0.2:999"), to)
	r.n.connect(s, to)
	r.settle()
	return simFar{s}
}
func (r *simRig) serve() (netip.AddrPort, func() far) {
	at := netip.MustParseAddrPort("127.0.0.1:81")
	l := &Listener{at: at, backlog: 16}
	r.n.routes[at] = l
	return at, func() far {
		r.settle()
		s := l.queue[0]
		l.queue = l.queue[1:]
		return simFar{s}
	}
}
func (r *simRig) settle() {
	for {
		r.n.now = r.n.now.Add(time.Second)
		ready := r.n.ready()
		if len(ready) == 0 {
			return
		}
		r.n.do(ready[0])
	}
}

func (r *simRig) dup(fd sock.FD) sock.FD {
	other, _ := r.k.fds.put(r.k.fds.get(fd, "dup"))
	return other
}

func (f simFar) say(n int) {
	b := make([]byte, n)
	fill(b, 7, 0)
	if got, e := f.s.send(b); got != n || e != 0 {
		panic(fmt.Sprint(got, e))
	}
}
func (f simFar) fin() { f.s.shutdown() }
func (f simFar) rst() { f.s.reset() }
func (f simFar) take() string {
	n := 0
	b := make([]byte, 1<<20)
	for {
		got, e := f.s.recv(b)
		switch n += got; {
		case got > 0:
		case e == sock.Again:
			return octetsWord(n)
		case e != 0 || f.s.dead && !f.s.finIn:
			return octetsWord(n) + " RST"
		default:
			return octetsWord(n) + " FIN"
		}
	}
}

// octetsWord hides what depends on the size of buffers.
func octetsWord(n int) string {
	if n > 10000 {
		return "many octets"
	}
	return fmt.Sprintf("%d octets", n)
}

// -- the real one ---------------------------------------------------------------

type realRig struct {
	t *testing.T
	k *loop.Epoll
}

type realFar struct {
	t *testing.T
	c *net.TCPConn
}

func (r *realRig) kernel() loop.Kernel { return r.k }
func (r *realRig) listen() (sock.FD, netip.AddrPort) {
	fd, err := sock.Listen(sock.ListenSpec{Addr: netip.MustParseAddrPort("127.0.0.1:0"), Backlog: 16})
	if err != nil {
		r.t.Fatal(err)
	}
	return fd, sock.LocalAddr(fd)
}
func (r *realRig) closed() netip.AddrPort {
	l, err := net.ListenTCP("tcp4", nil)
	if err != nil {
		r.t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	_ = l.Close()
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), at.Port())
}
func (r *realRig) connect(to netip.AddrPort) far {
	c, err := net.Dial("tcp", to.String())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	return realFar{r.t, c.(*net.TCPConn)}
}
func (r *realRig) serve() (netip.AddrPort, func() far) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = l.Close() })
	return l.Addr().(*net.TCPAddr).AddrPort(), func() far {
		c, err := l.Accept()
		if err != nil {
			r.t.Fatal(err)
		}
		r.t.Cleanup(func() { _ = c.Close() })
		return realFar{r.t, c.(*net.TCPConn)}
	}
}

// Loopback delivers within the sending call or in a softirq right behind it;
// this is for the rest, on a busy machine.
func (r *realRig) settle() { time.Sleep(15 * time.Millisecond) }

func (r *realRig) dup(fd sock.FD) sock.FD {
	other, err := fd.Dup()
	if err != nil {
		r.t.Fatal(err)
	}
	return other
}

func (f realFar) say(n int) {
	if _, err := f.c.Write(make([]byte, n)); err != nil {
		f.t.Fatal(err)
	}
}
func (f realFar) fin() { _ = f.c.CloseWrite() }
func (f realFar) rst() { _ = f.c.SetLinger(0); _ = f.c.Close() }
func (f realFar) take() string {
	n := 0
	b := make([]byte, 1<<20)
	for {
		_ = f.c.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
		got, err := f.c.Read(b)
		var timeout net.Error
		switch n += got; {
		case got > 0:
		case errors.Is(err, io.EOF):
			return octetsWord(n) + " FIN"
		case errors.As(err, &timeout) && timeout.Timeout():
			return octetsWord(n)
		default:
			return octetsWord(n) + " RST"
		}
	}
}

// -- the scripts ----------------------------------------------------------------

// script does things to a kernel and notes what it answers.
type script struct {
	rig
	k   loop.Kernel
	log strings.Builder
}

func (s *script) note(format string, args ...any) { fmt.Fprintf(&s.log, format+"\n", args...) }

func errnoWord(e sock.Errno) string {
	for word, x := range map[string]sock.Errno{
		"EAGAIN": sock.Again, "ECONNRESET": sock.Reset, "EPIPE": sock.BrokenPipe, "ECONNREFUSED": sock.Refused,
		"EINPROGRESS": sock.InProgress, "ENOENT": sock.NoEntry,
	} {
		if e == x {
			return word
		}
	}
	if e == 0 {
		return "ok"
	}
	return fmt.Sprint(syscall.Errno(e))
}

// events notes what has happened to the descriptors that are watched.
func (s *script) events() {
	s.settle()
	got := map[uint64]sock.Ready{}
	var ev [16]sock.PollEvent
	for range 3 { // a simulated one may tell the rest with the next call
		n := s.k.Wait(ev[:], 0)
		for i := range n {
			got[ev[i].Data()] |= ev[i].Ready()
		}
	}
	var words []string
	for data, r := range got {
		w := fmt.Sprint(data, ":")
		for _, x := range []struct {
			word string
			r    sock.Ready
		}{{"in", sock.Readable}, {"out", sock.Writable}, {"rdhup", sock.PeerShut}, {"hup", sock.Hangup}, {"err", sock.Failed}} {
			if r&x.r != 0 {
				w += " " + x.word
			}
		}
		words = append(words, w)
	}
	slices.Sort(words)
	s.note("events %s", strings.Join(words, "; "))
}

func (s *script) cookie(fd sock.FD) uint64 {
	c, err := s.k.Cookie(fd)
	if err != nil {
		s.note("cookie: %v", err)
	}
	return c
}

func (s *script) recv(fd sock.FD, n int) {
	got, e := s.k.Recv(fd, make([]byte, n))
	s.note("recv %d: %d %s", n, got, errnoWord(e))
}

func (s *script) send(fd sock.FD, n int) {
	got, e := s.k.Send(fd, make([]byte, n))
	s.note("send %d: %d %s", n, got, errnoWord(e))
}

// fill sends until nothing more is taken.
func (s *script) fill(fd sock.FD) {
	for {
		s.settle()
		got, e := s.k.Send(fd, make([]byte, 64<<10))
		if got == 0 {
			s.note("filled: %s", errnoWord(e))
			if e != sock.Again {
				return
			}
			// Once more, when what is under way has arrived.
			s.settle()
			if got, _ := s.k.Send(fd, make([]byte, 64<<10)); got == 0 {
				return
			}
		}
	}
}

// splice moves until nothing more goes.
func (s *script) splice(word string, from, to sock.FD) {
	n := 0
	for {
		got, e := s.k.Splice(from, to, 64<<10)
		if n += got; got == 0 {
			s.note("splice %s: %d, then %s", word, n, errnoWord(e))
			return
		}
	}
}

// accepted is a connection: our end and the client's.
func (s *script) accepted() (sock.FD, far) {
	l, at := s.listen()
	c := s.connect(at)
	s.settle()
	fd, _, e := s.k.Accept(l)
	if e != 0 {
		s.note("accept: %s", errnoWord(e))
	}
	s.k.Close(l)
	return fd, c
}

const in, out = sock.Readable | sock.PeerShut, sock.Writable

var conformance = []struct {
	name string
	do   func(s *script)
}{
	{"watching tells what is ready now", func(s *script) {
		fd, c := s.accepted()
		s.k.Watch(fd, in|out, 1)
		s.events()
		s.events()
		c.say(3)
		s.events()
		s.k.Close(fd)
	}},
	{"an edge for each arrival, none for what is left", func(s *script) {
		fd, c := s.accepted()
		s.k.Watch(fd, in, 1)
		s.events()
		c.say(5)
		s.events()
		s.events()
		c.say(3)
		s.events()
		s.recv(fd, 4)
		s.events()
		s.recv(fd, 100)
		s.recv(fd, 100)
		s.k.Close(fd)
	}},
	{"FIN comes behind the octets", func(s *script) {
		fd, c := s.accepted()
		s.k.Watch(fd, in, 1)
		c.say(5)
		c.fin()
		s.events()
		s.events()
		s.recv(fd, 100)
		s.recv(fd, 100)
		s.recv(fd, 100)
		s.send(fd, 7)
		s.events()
		s.note("client: %s", c.take())
		s.k.Shutdown(fd)
		s.events()
		s.note("client: %s", c.take())
		s.k.Close(fd)
	}},
	{"a short read with FIN behind it", func(s *script) {
		fd, c := s.accepted()
		s.k.Watch(fd, in, 1)
		c.say(5)
		s.events()
		c.fin()
		s.recv(fd, 100)
		s.events()
		s.recv(fd, 100)
		s.k.Close(fd)
	}},
	{"RST leaves the octets before it", func(s *script) {
		fd, c := s.accepted()
		s.k.Watch(fd, in|out, 1)
		s.events()
		c.say(5)
		s.events()
		c.rst()
		s.events()
		s.recv(fd, 3)
		s.recv(fd, 100)
		s.recv(fd, 100)
		s.recv(fd, 100)
		s.send(fd, 1)
		s.k.Close(fd)
	}},
	{"RST is told once by writing", func(s *script) {
		fd, c := s.accepted()
		s.k.Watch(fd, in, 1)
		c.rst()
		s.events()
		s.send(fd, 1)
		s.send(fd, 1)
		s.recv(fd, 1)
		s.k.Close(fd)
	}},
	{"RST after FIN is not told by reading", func(s *script) {
		fd, c := s.accepted()
		s.k.Watch(fd, in, 1)
		c.fin()
		s.events()
		s.recv(fd, 1)
		c.rst()
		s.events()
		s.recv(fd, 1)
		s.send(fd, 1)
		s.k.Close(fd)
	}},
	{"room is told only to those who ran out of it", func(s *script) {
		fd, c := s.accepted()
		s.k.Watch(fd, in|out, 1)
		s.events()
		s.send(fd, 10)
		s.settle()
		s.note("client: %s", c.take())
		s.events()
		s.fill(fd)
		s.events()
		for s.settle(); c.take() != octetsWord(0); s.settle() {
		}
		s.events()
		s.events()
		s.k.CloseReset(fd)
	}},
	{"watching again tells again", func(s *script) {
		fd, c := s.accepted()
		s.k.Watch(fd, in, 1)
		c.say(5)
		s.events()
		s.k.Rewatch(fd, in|out, 2)
		s.events()
		s.k.Rewatch(fd, sock.PeerShut, 3)
		s.events()
		c.say(1)
		s.events()
		c.fin()
		s.events()
		s.note("unwatch: %s", errnoWord(s.k.Unwatch(fd)))
		s.note("unwatch: %s", errnoWord(s.k.Unwatch(fd)))
		s.k.Close(fd)
	}},
	{"nothing is told of what is no longer watched", func(s *script) {
		fd, c := s.accepted()
		s.k.Watch(fd, in, 1)
		c.say(5)
		s.settle()
		s.k.Unwatch(fd)
		s.events()
		s.k.Watch(fd, in, 2)
		s.k.Close(fd)
		s.events()
	}},
	{"closing sends FIN, or RST where octets are not read", func(s *script) {
		fd, c := s.accepted()
		s.send(fd, 9)
		s.k.Close(fd)
		s.settle()
		s.note("client: %s", c.take())
		fd, c = s.accepted()
		c.say(1)
		s.settle()
		s.k.Close(fd)
		s.settle()
		s.note("client: %s", c.take())
		fd, c = s.accepted()
		s.k.CloseReset(fd)
		s.settle()
		s.note("client: %s", c.take())
	}},
	{"what we have shut takes nothing more", func(s *script) {
		fd, c := s.accepted()
		s.k.Watch(fd, in, 1)
		s.send(fd, 4)
		s.k.Shutdown(fd)
		s.events()
		s.send(fd, 1)
		s.note("client: %s", c.take())
		c.say(2)
		c.fin()
		s.events()
		s.recv(fd, 9)
		s.recv(fd, 9)
		s.k.Close(fd)
	}},
	{"a connection is made", func(s *script) {
		at, accept := s.serve()
		fd, pending, e := s.k.Dial(&sock.DialSpec{Addr: at})
		s.note("dial: pending %t %s", pending, errnoWord(e))
		s.settle()
		s.k.Watch(fd, in|out, 1)
		s.events()
		s.note("result: %s", errnoWord(s.k.DialResult(fd)))
		f := accept()
		f.say(6)
		s.events()
		s.recv(fd, 9)
		s.k.Close(fd)
	}},
	{"a connection is refused", func(s *script) {
		fd, pending, e := s.k.Dial(&sock.DialSpec{Addr: s.closed()})
		s.note("dial: pending %t %s", pending, errnoWord(e))
		s.settle()
		s.k.Watch(fd, in|out, 1)
		s.events()
		s.note("result: %s", errnoWord(s.k.DialResult(fd)))
		s.k.Close(fd)
	}},
	{"splice takes octets, then tells the end", func(s *script) {
		fd, c := s.accepted()
		to, d := s.accepted()
		r, w, err := s.k.Pipe(256 << 10)
		s.note("pipe: %v", err)
		s.splice("of nothing", fd, w)
		c.say(500)
		c.fin()
		s.settle()
		s.splice("in", fd, w)
		s.splice("out", r, to)
		s.splice("in", fd, w)
		s.settle()
		s.note("client: %s", d.take())
		s.k.Close(r)
		s.k.Close(w)
		s.k.Close(fd)
		s.k.Close(to)
	}},
	{"splice of and to what was reset", func(s *script) {
		fd, c := s.accepted()
		to, d := s.accepted()
		r, w, _ := s.k.Pipe(256 << 10)
		c.say(50)
		s.settle()
		c.rst()
		d.rst()
		s.settle()
		s.splice("in", fd, w)
		s.splice("in", fd, w)
		s.splice("out", r, to)
		s.splice("out", r, to)
		b := make([]byte, 100)
		n := 0
		for {
			got, e := s.k.ReadPipe(r, b)
			if n += got; e != 0 {
				s.note("pipe holds %d, then %s", n, errnoWord(e))
				break
			}
		}
		s.k.Close(r)
		s.k.Close(w)
		s.k.Close(fd)
		s.k.Close(to)
	}},
	{"a listener tells as long as somebody waits", func(s *script) {
		l, at := s.listen()
		s.note("watch: %s", errnoWord(s.k.WatchShared(l, 9)))
		_, _, e := s.k.Accept(l)
		s.note("accept: %s", errnoWord(e))
		s.events()
		s.connect(at)
		s.connect(at)
		s.events()
		a, _, e := s.k.Accept(l)
		s.note("accept: %s", errnoWord(e))
		s.events()
		b, _, e := s.k.Accept(l)
		s.note("accept: %s", errnoWord(e))
		s.events()
		s.k.Unwatch(l)
		s.connect(at)
		s.events()
		s.k.WatchShared(l, 9)
		s.events()
		s.k.Close(a)
		s.k.Close(b)
		s.k.Close(l)
	}},
	{"one that was reset while it waited", func(s *script) {
		l, at := s.listen()
		c := s.connect(at)
		c.say(4)
		s.settle()
		c.rst()
		s.settle()
		fd, _, e := s.k.Accept(l)
		s.note("accept: %s", errnoWord(e))
		s.k.Watch(fd, in, 1)
		s.events()
		s.recv(fd, 9)
		s.recv(fd, 9)
		s.k.Close(fd)
		s.k.Close(l)
	}},
	{"a close of one of two descriptors says nothing", func(s *script) {
		fd, c := s.accepted()
		other := s.dup(fd)
		s.k.Watch(fd, in, 1)
		c.say(4)
		s.events()
		s.note("unwatch: %s", errnoWord(s.k.Unwatch(fd)))
		s.k.Close(fd) // with octets that are not read
		s.settle()
		s.note("client: %s", c.take())
		c.say(3)
		s.events()
		s.recv(other, 100)
		s.k.Close(other)
		s.settle()
		s.note("client: %s", c.take())
	}},
	{"a reset by one of two descriptors waits for the other", func(s *script) {
		fd, c := s.accepted()
		other := s.dup(fd)
		s.k.CloseReset(fd)
		s.settle()
		s.note("client: %s", c.take())
		s.k.Close(other)
		s.settle()
		s.note("client: %s", c.take())
	}},
	{"what is closed and not unwatched is told of as long as the other is there", func(s *script) {
		fd, c := s.accepted()
		other := s.dup(fd)
		s.k.Watch(fd, in, 1)
		s.events()
		s.k.Close(fd)
		c.say(3)
		s.events()
		s.k.Close(other)
		s.events()
	}},
	{"a lent one is closed for all", func(s *script) {
		fd, c := s.accepted()
		other := s.dup(fd)
		s.note("one cookie: %t", s.cookie(fd) == s.cookie(other) && s.cookie(fd) != 0)
		s.k.Watch(fd, in, 1)
		s.send(fd, 5)
		s.k.Unwatch(fd)
		s.k.CloseLent(fd)
		s.settle()
		s.note("client: %s", c.take())
		s.events()
		s.k.Close(other)
		s.settle()
		s.note("client: %s", c.take())
	}},
	{"a lent one with octets that are not read is closed by reset", func(s *script) {
		fd, c := s.accepted()
		other := s.dup(fd)
		c.say(3)
		s.settle()
		s.k.CloseLent(fd)
		s.settle()
		s.note("client: %s", c.take())
		s.recv(other, 9)
		s.send(other, 9)
		s.k.Close(other)
	}},
	{"a lent one is reset for all", func(s *script) {
		fd, c := s.accepted()
		other := s.dup(fd)
		s.send(fd, 5)
		s.k.CloseResetLent(fd)
		s.settle()
		s.note("client: %s", strings.TrimLeft(c.take(), "0123456789"))
		s.k.Close(other)
	}},
	{"a lent one that is being dialled is closed without a word", func(s *script) {
		at, accept := s.serve()
		fd, _, _ := s.k.Dial(&sock.DialSpec{Addr: at})
		s.settle()
		f := accept()
		other := s.dup(fd)
		s.k.CloseLent(fd)
		s.settle()
		s.note("server: %s", f.take())
		s.k.Close(other)
	}},
	{"each descriptor is watched for itself", func(s *script) {
		fd, c := s.accepted()
		other := s.dup(fd)
		s.k.Watch(fd, in, 1)
		s.k.Watch(other, in, 2)
		c.say(3)
		s.events()
		s.note("unwatch: %s", errnoWord(s.k.Unwatch(fd)))
		s.k.Close(fd)
		c.say(3)
		s.events()
		s.k.Close(other)
	}},
	{"FIN by one of two descriptors is sent at once", func(s *script) {
		fd, c := s.accepted()
		other := s.dup(fd)
		s.send(fd, 6)
		s.k.Shutdown(fd)
		s.k.Close(fd)
		s.settle()
		s.note("client: %s", c.take())
		s.send(other, 1)
		c.say(2)
		s.settle()
		s.recv(other, 9)
		s.k.Close(other)
	}},
	{"a queue stands as long as one of two descriptors does", func(s *script) {
		l, at := s.listen()
		other := s.dup(l)
		c := s.connect(at)
		s.settle()
		s.k.Close(l)
		s.settle()
		s.note("client: %s", c.take())
		fd, _, e := s.k.Accept(other)
		s.note("accept: %s", errnoWord(e))
		s.k.Close(fd)
		s.settle()
		s.note("client: %s", c.take())
		s.k.Close(other)
	}},
	{"who waits in a queue that is closed is reset", func(s *script) {
		l, at := s.listen()
		c := s.connect(at)
		s.settle()
		s.k.Close(l)
		s.settle()
		s.note("client: %s", c.take())
	}},
}

// The simulated kernel answers as Linux does: all that the simulation finds
// rests on that.
func TestKernelsConform(t *testing.T) {
	for _, c := range conformance {
		t.Run(c.name, func(t *testing.T) {
			n := newNet(1)
			simulated := &script{rig: &simRig{n, &Kernel{net: n, fds: newFDs(n, 100)}}}
			simulated.k = simulated.kernel()
			c.do(simulated)
			if n.bad != nil {
				t.Errorf("simulated: %v", n.bad)
			}
			k, err := loop.NewEpoll()
			if err != nil {
				t.Fatal(err)
			}
			defer k.Free()
			real := &script{rig: &realRig{t, k}, k: k}
			c.do(real)
			if got, want := simulated.log.String(), real.log.String(); got != want {
				t.Errorf("simulated:\n%s\nLinux:\n%s", got, want)
			}
		})
	}
}
