package lab

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

type side uint8

const (
	client side = iota
	server
)

func (s side) String() string {
	if s == client {
		return "client"
	}
	return "server"
}

// end is one end of a flow. Its engine's thread owns it. A server's end does
// not know its flow before it has read the greeting.
type end struct {
	eng   *engine
	t     *Traffic
	side  side
	fd    int
	door  *Door // of a server
	order int64 // its place among the door's connections

	serial uint32
	armed  uint32 // what epoll watches
	closed bool

	flow      *Flow
	prog      program
	greeting  [greetingOctets]byte
	greeted   int  // octets of it that are sent or read
	opening   bool // the connect is under way
	finishing bool // the lab wants the flow to end

	out     *way
	stream  Stream
	pos     uint64 // octets the kernel took
	due     uint64 // octets that may be sent
	blocked bool   // the kernel takes no more
	finSent bool

	in          *way
	verifier    Verifier
	eof         bool
	resting     bool
	readLeft    int // before the next rest
	lastArrival int64

	exchange int    // how many were completed
	awaiting bool   // a response is due
	boundary uint64 // offset at which the one under way is complete
}

// connectPatience is how long a client waits for a connection: longer than a
// move may ever take.
const connectPatience = 10 * time.Second

func (e *engine) connect(f *Flow) {
	x := &end{eng: e, t: e.t, side: client, opening: true, flow: f}
	f.clientEnd.Store(x)
	f.born.Store(e.t.now())
	e.opening++
	fd, err := newSocket(f.To.Addr())
	if err != nil {
		x.fd = -1
		x.fail(Refused, err)
		return
	}
	x.fd = fd
	x.take(f)
	x.buffers()
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err := unix.Connect(fd, sockaddr(f.To)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		x.fail(Refused, err)
		return
	}
	if err := e.adopt(x); err != nil {
		x.fail(Refused, err)
		return
	}
	e.after(int64(connectPatience), x, giveUp)
}

// buffers bounds the socket's buffers where the program says so. A client does
// it before it connects: the window scale depends on it.
func (x *end) buffers() {
	if n := x.prog.bufferBytes; n > 0 {
		_ = unix.SetsockoptInt(x.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, n)
		_ = unix.SetsockoptInt(x.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, n)
	}
}

// take makes x an end of f.
func (x *end) take(f *Flow) {
	x.flow = f
	up, down := &f.way[Up], &f.way[Down]
	if x.side == client {
		x.prog, x.out, x.in = f.client, up, down
		x.stream, x.verifier.Stream = f.streams[Up], f.streams[Down]
		x.greeting = greeting(x.t.Seed, f.ID)
	} else {
		x.prog, x.out, x.in = f.server, down, up
		x.stream, x.verifier.Stream = f.streams[Down], f.streams[Up]
	}
}

// begin starts the program, once the connection stands and the flow is known.
func (x *end) begin() {
	now := x.t.now()
	x.lastArrival = now
	x.due = uint64(x.prog.first)
	x.readLeft = x.prog.readBurst
	switch {
	case x.prog.asks:
		x.ask()
	case x.prog.answers:
		x.boundary = requestOctets(x.flow.sizes, 0)
	case x.prog.every > 0 && !x.prog.finEarly:
		// Anywhere within the period, so that a thousand flows that began
		// together do not tick together.
		x.eng.after(int64(mix(x.flow.sizes+uint64(x.side))%uint64(x.prog.every)), x, tick)
	}
	if x.prog.rest > 0 {
		x.restNow()
	}
	if x.flow.finish.Load() {
		x.finish()
		return
	}
	x.pump()
}

// finish is the lab's wish that the flow ends. What is under way is completed.
func (x *end) finish() {
	if x.closed || x.finishing {
		return
	}
	x.finishing = true
	x.resting = false
	x.pump()
	x.rearm()
}

func (x *end) expired(what purpose, now int64) {
	switch what {
	case giveUp:
		if x.opening && x.flow.Kind != Dialing {
			x.fail(Refused, fmt.Errorf("no answer in %v", connectPatience))
		}
		return
	case wakeReader:
		x.resting = false
		x.readLeft = x.prog.readBurst
	case tick:
		switch {
		case x.finSent || x.finDue():
			return
		case x.prog.asks:
			x.ask()
		default:
			x.due += uint64(x.prog.burst)
			x.mark()
			x.eng.after(int64(x.prog.every), x, tick)
		}
		x.pump()
	}
	x.rearm()
}

// ask makes the next request due.
func (x *end) ask() {
	x.due += requestOctets(x.flow.sizes, x.exchange)
	x.boundary += responseOctets(x.flow.sizes, x.exchange)
	x.awaiting = true
	x.mark()
}

// mark remembers when the octets that are due now became due.
func (x *end) mark() {
	if x.flow.Kind.measured() && x.out.markAt.Load() == 0 {
		x.out.markOff.Store(x.due)
		x.out.markAt.Store(max(x.t.now(), 1))
	}
}

// progress looks whether what has arrived completes an exchange.
func (x *end) progress() {
	switch {
	case x.prog.asks && x.awaiting && x.verifier.Off >= x.boundary:
		x.awaiting = false
		if x.exchange++; x.exchange != x.prog.exchanges && !x.finishing {
			x.eng.after(int64(x.prog.every), x, tick)
		}
		x.pump() // a FIN may be due now
	case x.prog.answers:
		for x.verifier.Off >= x.boundary {
			x.due += responseOctets(x.flow.sizes, x.exchange)
			x.exchange++
			x.boundary += requestOctets(x.flow.sizes, x.exchange)
			x.mark()
		}
		x.pump()
	}
}
