package netadmin

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ports that host b dials from.
const firstOfB, lastOfB = 40000, 40009

// dialFrom connects an address and port of our host to the listener ln of
// another, as connect does.
func dialFrom(t testing.TB, our *host, from netip.AddrPort, ln int, patience time.Duration) (*stream, error) {
	t.Helper()
	sa, err := unix.Getsockname(ln)
	must(t, "getsockname", err)
	s := &stream{t: t, buf: make([]byte, 256<<10), ours: our.socket(from.Addr())}
	t.Cleanup(func() { unix.Close(s.ours) })
	must(t, "bind", unix.Bind(s.ours, sockaddr(from)))
	tv := unix.NsecToTimeval(int64(patience))
	must(t, "send timeout", unix.SetsockoptTimeval(s.ours, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv))
	if err := unix.Connect(s.ours, sa); err != nil {
		return nil, err
	}
	s.peers, _, err = unix.Accept4(ln, unix.SOCK_CLOEXEC)
	must(t, "accept", err)
	t.Cleanup(func() { unix.Close(s.peers) })
	for _, fd := range []int{s.ours, s.peers} {
		must(t, "nonblock", unix.SetNonblock(fd, true))
	}
	s.tuple = Tuple{Local: from, Remote: addrPort(sa)}
	return s, nil
}

func (h *host) listen(at netip.Addr) (ln int) {
	h.t.Helper()
	ln = h.socket(at)
	h.t.Cleanup(func() { unix.Close(ln) })
	must(h.t, "bind", unix.Bind(ln, sockaddr(netip.AddrPortFrom(at, 0))))
	must(h.t, "listen", unix.Listen(ln, 16))
	must(h.t, "receive timeout", unix.SetsockoptTimeval(ln, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}))
	return ln
}

// Host b dials from addresses that a owns, to an endpoint elsewhere and to one
// on a itself. The legs move to a, where they are left alone until they end.
func TestSteer(t *testing.T) {
	for _, on := range []string{"server", "a"} {
		t.Run("endpoint on "+on, func(t *testing.T) {
			eachFamily(t, func(t *testing.T, fam int) {
				l := newLab(t)
				a, b := l.a.open(Config{}), l.b.open(Config{})
				endpoint := l.server
				if on == "a" {
					endpoint = l.a
				}
				ln := endpoint.listen(endpoint.addr[fam])
				toB := []PortRange{{First: firstOfB, Last: lastOfB, To: l.b.addr[0]}}
				must(t, "Steer on a", a.Steer(src[:], toB))
				// b owns nothing, so this must have no effect.
				must(t, "Steer on b", b.Steer(src[:], []PortRange{{First: 1, Last: 65535, To: l.a.addr[0]}}))

				var streams []*stream
				for _, port := range []uint16{firstOfB, lastOfB} { // both ends of the range
					s, err := dialFrom(t, l.b, netip.AddrPortFrom(src[fam], port), ln, 5*time.Second)
					must(t, "connect from b", err)
					s.pump(20*time.Millisecond, 3000)
					streams = append(streams, s)
				}
				// Ports on either side of the range are a's own.
				for _, port := range []uint16{firstOfB - 1, lastOfB + 1} {
					s, err := dialFrom(t, l.a, netip.AddrPortFrom(src[fam], port), ln, 5*time.Second)
					must(t, "connect from a", err)
					s.pump(5*time.Millisecond, 3000)
					s.finish(true, true)
				}
				s := streams[0]
				m := &mover{t: t, stream: s}
				m.move(l.b, l.a, b, a, func() { s.write(false, 3000) })
				s.pump(20*time.Millisecond, 3000)
				streams[1].pump(5*time.Millisecond, 3000) // it has stayed
				if c := l.a.counters(a); c.HereTuples != 1 || c.Looped != 0 {
					t.Errorf("counters on a: %+v", c)
				}
				must(t, "sweep", a.sweep())
				s.pump(5*time.Millisecond, 3000)
				// The other end closes first, so that nothing is left here.
				s.settle()
				must(t, "shutdown", unix.Shutdown(s.peers, unix.SHUT_WR))
				wait(t, "the peer's end", func() bool { return s.drain(true) })
				s.finish(true, false)
				must(t, "close", unix.Close(s.ours))
				s.ours = -1
				wait(t, "the entry to be swept", func() bool {
					must(t, "sweep", a.sweep())
					return l.a.counters(a).HereTuples == 0
				})
				streams[1].finish(true, true)
				if c := l.b.counters(b); c.Looped != 0 {
					t.Errorf("counters on b: %+v", c)
				}
				l.wantNoReset()
			})
		})
	}
}

// A dial in a range must reach nobody else's rules: without Steer the owner of
// the address answers for it. That is what the test above stands on.
func TestDialWithoutSteer(t *testing.T) {
	l := newLab(t)
	l.a.open(Config{})
	l.b.open(Config{})
	ln := l.server.listen(l.server.addr[0])
	if _, err := dialFrom(t, l.b, netip.AddrPortFrom(src[0], firstOfB), ln, 300*time.Millisecond); err == nil {
		t.Error("connected")
	}
	wait(t, "the owner's answer", func() bool { return l.a.resets() > 0 })
}

// What Steer depends on changes: a peer comes late, the address moves, another
// process goes on.
func TestSteerChanges(t *testing.T) {
	l := newLab(t)
	a, b := l.a.open(Config{ResolveTimeout: 50 * time.Millisecond}), l.b.open(Config{})
	ln := l.server.listen(l.server.addr[0])
	toB := []PortRange{{First: firstOfB, Last: lastOfB, To: netip.MustParseAddr("10.9.0.77")}}
	must(t, "Steer to a peer that is not there", a.Steer(src[:], toB))
	l.b.do("a late address", func() error { return addAddr("eth0", toB[0].To, false) })
	wait(t, "the peer to be found", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.steering.steered) == 1
	})
	s, err := dialFrom(t, l.b, netip.AddrPortFrom(src[0], firstOfB), ln, 5*time.Second)
	must(t, "connect", err)
	s.pump(5*time.Millisecond, 3000)

	// The leg moves to a; its entry goes over to a's successor.
	m := &mover{t: t, stream: s}
	m.move(l.b, l.a, b, a, nil)
	crash(a)
	heir := l.a.adopt(Config{})
	must(t, "Steer by the heir", heir.Steer(src[:], toB))
	s.pump(20*time.Millisecond, 3000)
	if c := l.a.counters(heir); c.HereTuples != 1 {
		t.Errorf("counters of the heir: %+v", c)
	}
	other, err := dialFrom(t, l.b, netip.AddrPortFrom(src[0], lastOfB), ln, 5*time.Second)
	must(t, "connect by the heir", err)

	// A move that is undone leaves the tuple here; one that is not takes it.
	ts := []Tuple{s.tuple}
	must(t, "Divert", heir.Divert(ts, l.b.addr[0]))
	must(t, "Undivert", heir.Undivert(ts))
	s.pump(20*time.Millisecond, 3000)
	m.move(l.a, l.b, heir, b, nil)
	s.pump(20*time.Millisecond, 3000)
	if c := l.a.counters(heir); c.HereTuples != 0 || c.DivertTuples != 1 {
		t.Errorf("counters of the heir: %+v", c)
	}
	m.move(l.b, l.a, b, heir, nil)

	// The address goes to b: a steers no longer, its leg loses its segments to
	// b unless they are diverted, and b steers nothing to itself.
	must(t, "Steer without ports", heir.Steer(src[:], []PortRange{{To: toB[0].To}}))
	s.pump(5*time.Millisecond, 3000)
	s.finish(true, true)
	must(t, "Steer again", heir.Steer(src[:], toB))
	other.finish(true, true)
	l.a.do("take the address away", func() error { return delAddr("eth0", src[0]) })
	must(t, "Steer", heir.Steer(src[:1], nil))
	if n := len(heir.steering.steered); n != 0 {
		t.Errorf("%d ranges are steered by a host that owns nothing", n)
	}
	l.wantNoReset()
}

// Legs that were there before Steer is called are left alone.
func TestSteerFindsLegs(t *testing.T) {
	l := newLab(t)
	a := l.a.open(Config{})
	ln := l.server.listen(l.server.addr[1])
	s, err := dialFrom(t, l.a, netip.AddrPortFrom(src[1], firstOfB), ln, 5*time.Second)
	must(t, "connect", err)
	must(t, "Steer", a.Steer(src[:], []PortRange{{First: firstOfB, Last: lastOfB, To: l.b.addr[1]}}))
	s.pump(20*time.Millisecond, 3000)
	s.finish(true, true)
	l.wantNoReset()
}

func TestSteerRefuses(t *testing.T) {
	l := newLab(t)
	a := l.a.open(Config{})
	for _, r := range []PortRange{
		{First: 2, Last: 1, To: l.b.addr[0]}, {First: 0, Last: 1, To: l.b.addr[0]}, {First: 1, Last: 2},
	} {
		if err := a.Steer(src[:], []PortRange{r}); err == nil {
			t.Errorf("%+v was taken", r)
		}
	}
	if err := a.Steer([]netip.Addr{{}}, nil); err == nil {
		t.Error("no address was taken")
	}
}
