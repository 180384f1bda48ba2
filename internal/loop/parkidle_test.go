package loop

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// successor is another loop of the same node, which begins with no leg at all.
func (w *web) successor() *Loop {
	w.t.Helper()
	k, err := NewEpoll()
	if err != nil {
		w.t.Fatal(err)
	}
	l := New(0, k, w.l.shared, 2)
	l.SetGeneration(w.l.gen)
	w.t.Cleanup(func() {
		for _, i := range l.Slots(0, nil) {
			l.Kill(i)
		}
		l.CloseIdle("")
		l.Free()
		k.Free()
	})
	return l
}

// idleLegs makes n of them, and gives the endpoint's ends of them, in the order in
// which they became idle.
func (w *web) idleLegs(n int) (far []sock.FD) {
	w.t.Helper()
	var near []sock.FD
	for range n {
		near = append(near, w.client())
		far = append(far, w.ask(near[len(near)-1]))
	}
	for i := range n {
		w.says(far[i], plainAnswer)
		w.hears(near[i], "hello")
		near[i].Shutdown()
	}
	w.until("idle legs", func() bool { return w.l.Idle() == n && len(w.l.Slots(0, nil)) == 0 })
	return far
}

// carry is the way to another process: octets, and duplicates of descriptors.
func (w *web) carry(legs []IdleLeg) []IdleLeg {
	w.t.Helper()
	octets, fds, err := PackIdle(legs)
	if err != nil {
		w.t.Fatal(err)
	}
	var there []sock.FD
	for _, fd := range fds {
		other, err := fd.Dup()
		if err != nil {
			w.t.Fatal(err)
		}
		there = append(there, other)
		fd.Close() // the other process has its own; nothing is sent
	}
	all, err := UnpackIdle(octets, there)
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

// Idle legs go to another process and serve the requests there: the endpoint sees
// no new connection, and none ends.
func TestIdleLegsGoAlong(t *testing.T) {
	w := newWeb(t, "")
	far := w.idleLegs(3)
	to := w.successor()
	if taken := to.TakeIdle(w.carry(w.l.GiveIdle(10))); taken != 3 || w.l.Idle() != 0 || to.Idle() != 3 {
		t.Fatalf("%d taken, %d idle here, %d there", taken, w.l.Idle(), to.Idle())
	}
	w.l.SetAccepting(false)
	to.SetAccepting(true)
	w.l = to
	var near []sock.FD
	for range 3 {
		near = append(near, w.client())
		w.says(near[len(near)-1], plainGet)
	}
	for i := range far {
		w.hears(far[i], "\r\n\r\n")
	}
	for i := range far {
		w.says(far[i], plainAnswer)
	}
	for i := range near {
		w.hears(near[i], "hello")
	}
	if fd, _, e := sock.Accept(w.server); e != sock.Again {
		t.Errorf("the endpoint was dialled: fd %d, %v", fd, e)
	}
	if n := to.Idle(); n != 3 {
		t.Errorf("%d legs are idle after the requests, want 3", n)
	}
}

// What is given is the oldest first, and each pool gives its part.
func TestGiveIdleParts(t *testing.T) {
	w := newWeb(t, "")
	w.idleLegs(6)
	p := w.l.idle.all[0].pools
	other := w.l.idle.all[0].pool(&sock.DialSpec{Source: addrPort("127.0.0.9:0").Addr()})
	for range 2 { // as if they had been dialled from elsewhere
		k := p.oldest - 1
		b := w.l.far(k)
		w.l.unlink(k, b)
		b.pool = other
		w.l.insert(k, b)
	}
	sources := func(legs []IdleLeg) (n [2]int) {
		for _, x := range legs {
			if len(x.Frozen.Source) > 0 {
				n[1]++
			} else {
				n[0]++
			}
		}
		return n
	}
	first := w.l.GiveIdle(3)
	if n := sources(first); n != [2]int{2, 1} {
		t.Errorf("of 4 legs and 2 from elsewhere %v were given, want 2 and 1", n)
	}
	for i := 1; i < len(first); i++ {
		if a, b := first[i-1], first[i]; len(a.Frozen.Source) == len(b.Frozen.Source) && a.Frozen.IdleNanos < b.Frozen.IdleNanos {
			t.Error("a younger leg was given before an older one")
		}
	}
	if p.n != 2 || other.n != 1 || w.l.Idle() != 3 {
		t.Errorf("%d, %d and in all %d are left", p.n, other.n, w.l.Idle())
	}
	rest := w.l.GiveIdle(100)
	if n := sources(rest); n != [2]int{2, 1} || w.l.Idle() != 0 || w.l.GiveIdle(1) != nil {
		t.Errorf("then %v were given, %d are left", n, w.l.Idle())
	}
	// They come back as they were, in pools of their own, by age.
	for _, x := range slices.Backward(append(first, rest...)) {
		if w.l.TakeIdle([]IdleLeg{x}) != 1 {
			t.Errorf("%v was not taken back", x.Frozen)
		}
	}
	if p.n != 4 || other.n != 2 {
		t.Errorf("%d and %d came back, want 4 and 2", p.n, other.n)
	}
	for _, p := range []*pool{p, other} {
		n, since := 0, flow.Instant(0)
		for k := p.oldest; k != 0; k = w.l.far(k - 1).next {
			if b := w.l.far(k - 1); b.since < since {
				t.Error("a pool is not in the order of age")
			} else {
				since = b.since
			}
			n++
		}
		if n != p.n {
			t.Errorf("%d legs are linked, %d counted", n, p.n)
		}
	}
}

// Legs that nobody would take, or too old, or too many, are closed; the others stay.
func TestTakeIdleKeepsTheBounds(t *testing.T) {
	for _, c := range []struct {
		name   string
		more   string
		change func(w *web, to *Loop, all []IdleLeg)
		taken  int
	}{
		{"none of it", "", func(*web, *Loop, []IdleLeg) {}, 3},
		{"one is too old", ", reuse: { time: 30s }", func(_ *web, _ *Loop, all []IdleLeg) {
			all[1].Frozen.IdleNanos += uint64(30 * time.Second)
		}, 2},
		{"the successor keeps fewer", "", func(_ *web, to *Loop, _ []IdleLeg) {
			to.gen.Config.Backends["b"].IdleMax = 2
		}, 2},
		{"the successor keeps none", "", func(_ *web, to *Loop, _ []IdleLeg) {
			to.gen.Config.Backends["b"].IdleMax = 0
		}, 0},
		{"another backend", "", func(_ *web, _ *Loop, all []IdleLeg) { all[0].Frozen.Backend = "gone" }, 2},
		{"another endpoint", "", func(_ *web, _ *Loop, all []IdleLeg) { all[0].Frozen.Endpoint = "gone" }, 2},
		{"another address", "", func(_ *web, _ *Loop, all []IdleLeg) { all[0].Frozen.Address[5]++ }, 2},
		{"a unix socket", "", func(_ *web, _ *Loop, all []IdleLeg) { all[0].Frozen.Unix = "/run/x" }, 2},
		{"the endpoint is taken out", "", func(w *web, to *Loop, _ []IdleLeg) {
			e := to.gen.Config.Backends["b"].Endpoints[0]
			w.l.shared.Ledger.Backend("b").Stand(e.Ref.Name, func(s *ledger.Standing) { s.Admin = ledger.Maintenance })
		}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWeb(t, c.more)
			far := w.idleLegs(3)
			to := w.successor()
			all := w.carry(w.l.GiveIdle(3))
			c.change(w, to, all)
			if taken := to.TakeIdle(all); taken != c.taken || to.Idle() != taken {
				t.Errorf("%d taken, %d idle, want %d", taken, to.Idle(), c.taken)
			}
			ended := 0
			for _, fd := range far {
				if n, e := sock.Recv(fd, make([]byte, 1)); n == 0 && e == 0 {
					ended++
				}
			}
			if ended != 3-c.taken {
				t.Errorf("%d legs have ended, want %d", ended, 3-c.taken)
			}
		})
	}
}

// A leg that its endpoint closes on the way, or that says what nobody asked for, is
// found out.
func TestIdleLegEndsOnTheWay(t *testing.T) {
	w := newWeb(t, "")
	far := w.idleLegs(3)
	to := w.successor()
	all := w.carry(w.l.GiveIdle(3))
	far[0].Shutdown()
	w.says(far[1], "HTTP/1.1 408 Request Timeout\r\n\r\n")
	to.TakeIdle(all)
	w.l = to
	w.until("one leg that is left", func() bool { return to.Idle() == 1 })
}

// What is no form of idle legs is refused, and the descriptors stay with who asked.
func TestUnpackIdleRefuses(t *testing.T) {
	leg := func(z *frozen.IdleLeg) *frozen.Batch { return &frozen.Batch{Idle: []*frozen.IdleLeg{z}} }
	for name, b := range map[string]*frozen.Batch{
		"none":                {},
		"more than came":      {Idle: []*frozen.IdleLeg{{Fd: 1}, {Fd: 2}}},
		"another's place":     leg(&frozen.IdleLeg{Fd: 2}),
		"no place":            leg(&frozen.IdleLeg{}),
		"a flow beside it":    {Idle: []*frozen.IdleLeg{{Fd: 1}}, Flows: []*frozen.Flow{{}}},
		"a port beyond ports": leg(&frozen.IdleLeg{Fd: 1, PortMax: 1 << 16}),
		"an odd address":      leg(&frozen.IdleLeg{Fd: 1, Address: make([]byte, 7)}),
		"an odd source":       leg(&frozen.IdleLeg{Fd: 1, Source: make([]byte, 5)}),
		"an age of centuries": leg(&frozen.IdleLeg{Fd: 1, IdleNanos: 1 << 63}),
	} {
		octets, err := b.Encode()
		if err != nil {
			t.Fatal(err)
		}
		_, err = UnpackIdle(octets, []sock.FD{1})
		if no := new(frozen.Refused); !errors.As(err, &no) {
			t.Errorf("%s: %v, want a refusal", name, err)
		}
	}
	if _, err := UnpackIdle([]byte("\x08\x01\x25"), nil); err == nil {
		t.Error("octets that are no batch were read")
	}
}

// What came on an idle leg while nobody watched it was not asked for: a flow that
// takes the leg in the same turn must not have it for its answer.
func TestTakeIdleLooksFirst(t *testing.T) {
	for name, meanwhile := range map[string]func(w *web, far sock.FD){
		"octets": func(w *web, far sock.FD) { w.says(far, plainAnswer) },
		"end":    func(_ *web, far sock.FD) { far.Shutdown() },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWeb(t, "")
			far := w.idleLegs(2)
			to := w.successor()
			legs := w.l.GiveIdle(2)
			meanwhile(w, far[0])
			meanwhile(w, far[1])
			there := w.carry(legs)
			if taken := to.TakeIdle(there); taken != 0 || to.Idle() != 0 {
				t.Errorf("%d taken, %d idle", taken, to.Idle())
			}
		})
	}
}
