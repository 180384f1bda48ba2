package loop

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/balance"
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// exact finds the objects of one configuration.
type exact struct{ c *config.Config }

func (x exact) Listener(name string, v uint64) *config.Listener {
	o, _ := x.c.Lookup(config.Ref{Kind: config.ListenerKind, Name: name, Version: v})
	l, _ := o.(*config.Listener)
	return l
}

func (x exact) Backend(name string, v uint64) *config.Backend {
	o, _ := x.c.Lookup(config.Ref{Kind: config.BackendKind, Name: name, Version: v})
	b, _ := o.(*config.Backend)
	return b
}

func (x exact) Endpoint(name string, v uint64) *config.Endpoint {
	o, _ := x.c.Lookup(config.Ref{Kind: config.EndpointKind, Name: name, Version: v})
	e, _ := o.(*config.Endpoint)
	return e
}

// world is some loops over real kernels, turned by the test in its own
// goroutine, in front of an echo server.
type world struct {
	t     testing.TB
	loops []*Loop
	vip   string
}

func newWorld(t testing.TB, loops int) *world {
	server, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	go func() { // ends with the listener
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	text := fmt.Sprintf("listeners: { e: { vip: 127.0.0.1:1, backend: b, idleTimeout: 60s } }\nbackends: { b: { endpoints: [ { address: %q } ] } }\n", server.Addr())
	c, _, err := config.Parse("test.yaml", []byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t}
	s := &Shared{Objects: exact{c}, Log: slog.New(slog.DiscardHandler)}
	s.Ledger = ledger.New(ledger.Options{Policy: balance.Policy{}, Ring: func(i int, token uint64) { s.Loops[i].Ring(token) }, Open: func() {}})
	fd, err := sock.Listen(sock.ListenSpec{Addr: addrPort("127.0.0.1:0"), Backlog: 256})
	if err != nil {
		t.Fatal(err)
	}
	w.vip = sock.LocalAddr(fd).String()
	g := &Generation{Number: 1, Config: c, Listening: map[string]*Listening{
		"e": {Object: c.Listeners["e"], Backend: c.Backends["b"], FD: fd, Gate: s.Ledger.Listener("e")},
	}}
	for i := range loops {
		k, err := NewEpoll()
		if err != nil {
			t.Fatal(err)
		}
		s.Sinks = append(s.Sinks, &sinkOf{})
		l := New(i, k, s, 1)
		s.Loops = append(s.Loops, l)
		l.SetGeneration(g)
		l.SetAccepting(true)
		t.Cleanup(func() {
			for _, i := range l.Slots(0, nil) {
				l.Kill(i)
			}
			l.Free()
			k.Free()
		})
	}
	t.Cleanup(fd.Close)
	w.loops = s.Loops
	return w
}

// turn turns all loops until cond holds.
func (w *world) turn(cond func() bool) {
	w.t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); {
		worked := false
		for _, l := range w.loops {
			worked = l.Turn(false) || worked
		}
		if !worked {
			if time.Now().After(end) {
				w.t.Fatal("nothing happens any more")
			}
			time.Sleep(50 * time.Microsecond)
		}
	}
}

func (w *world) dial() net.Conn {
	w.t.Helper()
	c, err := net.Dial("tcp4", w.vip)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// A turn that carries octets allocates nothing.
func TestTurnAllocatesNothing(t *testing.T) {
	w := newWorld(t, 1)
	l := w.loops[0]
	c := w.dial()
	w.turn(func() bool {
		all := l.Slots(1, nil)
		return len(all) == 1 && l.Flow(all[0]).State() == flow.Relaying
	})
	// The test plays client and server on plain descriptors, so that nothing
	// but the loop can allocate or be scheduled.
	near := dup(t, c)
	s := l.at(l.Slots(1, nil)[0])
	a, b, err := sock.StreamPair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	far := &l.far(s.far - 1).leg
	l.k.Close(far.fd) // the pair takes the server's place
	*far = leg{fd: a, pipe: noPipe, is: readable | writable}
	l.drive(l.Slots(1, nil)[0], s)
	buf := make([]byte, 64)
	through := func(from, to sock.FD) {
		if _, e := sock.Send(from, buf); e != 0 {
			t.Fatal(e)
		}
		for n := 0; n < len(buf); {
			l.Turn(false)
			if k, e := sock.Recv(to, buf[n:]); e == 0 {
				n += k
			} else if e != sock.Again {
				t.Fatal(e)
			}
		}
	}
	echo := func() {
		through(near, b)
		through(b, near)
	}
	echo()
	if n := testing.AllocsPerRun(1000, echo); n != 0 {
		t.Errorf("%v allocations an echo, want 0", n)
	}
}

// dup is a descriptor of c's socket.
func dup(t testing.TB, c net.Conn) (fd sock.FD) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(n uintptr) { fd, err = sock.Dup(int(n)) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fd.Close)
	return fd
}

// Flows go from the loop that has many to the one that has few, and every
// octet goes along.
func TestLoopsBecomeEven(t *testing.T) {
	w := newWorld(t, 2)
	w.loops[1].SetAccepting(false)
	w.loops[0].shared.Fixed.Store(true)
	const flows = 100
	var clients []net.Conn
	for i := range flows {
		c := w.dial()
		clients = append(clients, c)
		_, _ = fmt.Fprintf(c, "before %04d", i)
	}
	w.turn(func() bool { return w.loops[0].Load()+w.loops[1].Load() == flows })
	// Whatever acceptance did, all go to loop 0 first.
	w.turn(func() bool {
		w.loops[1].SendTo(w.loops[0], w.loops[1].Slots(8, nil), nil)
		return w.loops[0].Load() == flows
	})
	w.loops[0].shared.Fixed.Store(false)
	w.turn(func() bool { return w.loops[0].Load()-w.loops[1].Load() <= evenLeast })
	if w.loops[0].Count.Evened == 0 || w.loops[1].Count.Adopted == 0 {
		t.Fatalf("evened %d, adopted %d", w.loops[0].Count.Evened, w.loops[1].Count.Adopted)
	}
	if lost := w.loops[0].Count.Lost + w.loops[1].Count.Lost; lost != 0 {
		t.Fatalf("%d flows lost", lost)
	}
	done := make(chan error, 1)
	go func() {
		for i, c := range clients {
			_, _ = fmt.Fprintf(c, "after %04d", i)
			want := fmt.Sprintf("before %04dafter %04d", i, i)
			got := make([]byte, len(want))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
				done <- fmt.Errorf("flow %d: got %q (%v), want %q", i, got, err, want)
				return
			}
		}
		done <- nil
	}()
	var err error
	w.turn(func() bool {
		select {
		case err = <-done:
			return true
		default:
			return false
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A flow that breaks an invariant is reset, counted, and costs no other flow.
func TestPanicCostsOneFlow(t *testing.T) {
	w := newWorld(t, 1)
	l := w.loops[0]
	a, b := w.dial(), w.dial()
	w.turn(func() bool { return l.Load() == 2 })
	slot := l.Slots(1, nil)[0]
	w.turn(func() bool { return l.Flow(slot).State() == flow.Relaying })
	victim := sock.PeerAddr(l.Leg(slot, flow.Client)).String()
	if a.LocalAddr().String() != victim {
		a, b = b, a
	}
	func() {
		defer l.survive()
		l.current = slot
		l.at(slot).flow.Step(l.now, flow.Event{Kind: flow.Dialed}) // it is connected already
	}()
	if l.Count.Panics != 1 || l.Count.Lost != 1 || l.Load() != 1 {
		t.Fatalf("panics %d, lost %d, flows %d; want 1, 1, 1", l.Count.Panics, l.Count.Lost, l.Load())
	}
	done := make(chan error, 1)
	go func() {
		_, _ = b.Write([]byte("x"))
		_, err := io.ReadFull(b, make([]byte, 1))
		done <- err
	}()
	w.turn(func() bool { return len(done) == 1 })
	if err := <-done; err != nil {
		t.Errorf("the other flow: %v", err)
	}
	_ = a.SetReadDeadline(time.Now().Add(time.Second))
	if _, err := a.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("the broken flow's client read %v, want a reset", err)
	}
}
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
