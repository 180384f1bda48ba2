package loop

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// estate is a generation of n listeners, each with a backend of its own.
func estate(number uint64, n int) *Generation {
	g := &Generation{Number: number, Config: &config.Config{Listeners: map[string]*config.Listener{}, Backends: map[string]*config.Backend{}}, Listening: map[string]*Listening{}}
	for i := range n {
		g.add(i, 1)
	}
	return g
}

// add puts listener i and its backend into g, in a version.
func (g *Generation) add(i int, version uint64) {
	name := fmt.Sprintf("s%04d", i)
	b := &config.Backend{Ref: config.Ref{Kind: config.BackendKind, Name: name, Version: version}}
	l := &config.Listener{Ref: config.Ref{Kind: config.ListenerKind, Name: name, Version: version}, BackendName: name, VIP: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(i+1))}
	g.Config.Backends[name], g.Config.Listeners[name] = b, l
	g.Listening[name] = &Listening{Object: l, Backend: b, FD: sock.FD(1000 + i)}
}

// next is g with one more number, to be changed.
func (g *Generation) next() *Generation {
	return &Generation{
		Number: g.Number + 1, Listening: maps.Clone(g.Listening),
		Config: &config.Config{Listeners: maps.Clone(g.Config.Listeners), Backends: maps.Clone(g.Config.Backends)},
	}
}

func (g *Generation) remove(i int) {
	name := fmt.Sprintf("s%04d", i)
	delete(g.Config.Listeners, name)
	delete(g.Config.Backends, name)
	delete(g.Listening, name)
}

// counting is a kernel that counts what is watched and unwatched.
type counting struct {
	Kernel
	calls   int
	watched map[sock.FD]uint64
}

func (k *counting) WatchShared(fd sock.FD, data uint64) sock.Errno {
	k.calls++
	if _, twice := k.watched[fd]; twice {
		return sock.Invalid
	}
	k.watched[fd] = data
	return 0
}

func (k *counting) Unwatch(fd sock.FD) sock.Errno {
	k.calls++
	delete(k.watched, fd)
	return 0
}

// check sees that each socket of g is watched under a number that gives its listener,
// and no other is.
func (k *counting) check(t *testing.T, l *Loop, g *Generation) {
	t.Helper()
	if len(k.watched) != len(g.Listening) {
		t.Fatalf("%d sockets are watched, there are %d listeners", len(k.watched), len(g.Listening))
	}
	for name, x := range g.Listening {
		data, ok := k.watched[x.FD]
		if !ok {
			t.Fatalf("%s is not watched", name)
		}
		if got := l.listening[data&^listenerBit]; got != x {
			t.Fatalf("an event of %s would be taken for one of %+v", name, got)
		}
	}
	for name, x := range g.Config.Listeners {
		if l.desk.VIPs[x.VIP] != x {
			t.Fatalf("the VIP of %s leads to %+v", name, l.desk.VIPs[x.VIP])
		}
	}
	if len(l.desk.VIPs) != len(g.Config.Listeners) {
		t.Fatalf("%d VIPs, %d listeners", len(l.desk.VIPs), len(g.Config.Listeners))
	}
}

func newEstate(t testing.TB, n int) (*Loop, *counting, *Generation) {
	w := newWeb(t, "")
	l := w.l
	k := &counting{Kernel: l.k, watched: map[sock.FD]uint64{}}
	l.SetAccepting(false)
	l.k = k
	g := estate(100, n)
	l.SetGeneration(g)
	l.SetAccepting(true)
	return l, k, g
}

// A change does what has changed and nothing else: listeners that came, went, were
// renamed, exchanged their VIPs, or have other rules.
func TestAdvance(t *testing.T) {
	const n = 50
	l, k, g := newEstate(t, n)
	k.check(t, l, g)
	for _, c := range []struct {
		name   string
		change func(g *Generation)
		calls  int
	}{
		{"nothing", func(*Generation) {}, 0},
		{"other rules", func(g *Generation) { g.add(7, 2) }, 0},
		{"one came", func(g *Generation) { g.add(n, 1) }, 1},
		{"one went", func(g *Generation) { g.remove(n) }, 1},
		{"one came in its place", func(g *Generation) { g.remove(3); g.add(n+1, 1) }, 2},
		{"renamed", func(g *Generation) {
			x := *g.Listening["s0005"]
			lis := *x.Object
			lis.Ref.Name, lis.Ref.Version = "other", 9
			x.Object = &lis
			g.remove(5)
			g.Listening["other"], g.Config.Listeners["other"] = &x, &lis
		}, 0},
		{"two exchange their VIPs", func(g *Generation) {
			a, b := *g.Listening["s0008"], *g.Listening["s0009"]
			la, lb := *a.Object, *b.Object
			la.Ref.Version, lb.Ref.Version = 5, 5
			la.VIP, lb.VIP = lb.VIP, la.VIP
			a.FD, b.FD = b.FD, a.FD
			a.Object, b.Object = &la, &lb
			g.Listening["s0008"], g.Listening["s0009"] = &a, &b
			g.Config.Listeners["s0008"], g.Config.Listeners["s0009"] = &la, &lb
		}, 0},
		{"all went", func(g *Generation) {
			clear(g.Listening)
			clear(g.Config.Listeners)
		}, n},
	} {
		next := g.next()
		c.change(next)
		k.calls = 0
		step := Compare(g, next)
		l.Advance(step)
		if k.calls != c.calls {
			t.Errorf("%s: %d calls of the kernel, want %d", c.name, k.calls, c.calls)
		}
		k.check(t, l, next)
		g = next
	}
	// A loop that has missed a generation comes to the same.
	missed, last := estate(200, 20), estate(201, 30)
	l.Advance(Compare(missed, last))
	k.check(t, l, last)
}

// Ten thousand changes leave nothing behind.
func TestAdvanceLeavesNothing(t *testing.T) {
	l, k, g := newEstate(t, 10)
	for i := range 10000 {
		next := g.next()
		next.add(20+i%7, uint64(i+2))
		next.remove(20 + (i+3)%7)
		next.add(i%10, uint64(i+2))
		l.Advance(Compare(g, next))
		g = next
	}
	k.check(t, l, g)
	if n := len(l.listening); n > 17 {
		t.Errorf("%d numbers for %d listeners", n, len(g.Listening))
	}
	if n := len(l.lodges.listeners) + len(l.lodges.backends) + len(l.lodges.old); n > 10 {
		t.Errorf("%d lodges, nobody has been there", n)
	}
	if n := len(l.full); n != 0 {
		t.Errorf("%d listeners rest", n)
	}
}

// What a change of one of a thousand listeners costs a loop.
func BenchmarkAdvance(b *testing.B) {
	l, _, g := newEstate(b, 1000)
	steps := make([]*Change, 64)
	back := make([]*Change, 64)
	for i := range steps {
		next := g.next()
		next.add(i, 2)
		next.add(1000, 1)
		next.remove(500 + i)
		steps[i], back[i] = Compare(g, next), Compare(next, g)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		l.Advance(steps[i%64])
		l.Advance(back[i%64])
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(2*b.N), "ns/change")
}

// What the difference costs the control side.
func BenchmarkCompare(b *testing.B) {
	g := estate(1, 1000)
	next := g.next()
	next.add(5, 2)
	b.ReportAllocs()
	for b.Loop() {
		Compare(g, next)
	}
}
