package ledger_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/balance"
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

func newPolicy() ledger.Policy { return balance.Policy{} }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func perSecond(n, burst int) *config.Rate {
	return &config.Rate{Count: n, Per: time.Second, Burst: burst}
}

// A request that one rate refuses counts for none: neither its source nor its route
// pays for what did not pass. It is told how long all of them would have it wait.
func TestAllRatesOrNone(t *testing.T) {
	bySource := &config.SourceRate{Rate: *perSecond(1, 3), Bits4: 24, Bits6: 64}
	lis := &config.Listener{Ref: config.Ref{Name: "web"}, Rules: &config.Rules{
		Rate:       perSecond(10, 5),
		SourceRate: bySource,
		Routes:     []*config.Route{{}, {Rate: perSecond(1, 1)}},
	}}
	l := newLedger(nil)
	const now = int64(1e9)
	one, sibling, other := addr("192.0.2.1"), addr("192.0.2.200"), addr("198.51.100.1")
	see := func(route int, a netip.Addr, want time.Duration) {
		t.Helper()
		if got := l.Pass(now, lis, route, a); got != want {
			t.Errorf("route %d, %v: waits %v, want %v", route, a, got, want)
		}
	}
	see(1, one, 0)
	for range 10 {
		see(1, one, time.Second) // the route's; the source's two are not used up by it
	}
	see(0, sibling, 0)
	see(0, one, 0)
	see(0, one, time.Second) // of its source, which is a /24
	see(0, other, 0)
	see(-1, other, 0)
	see(-1, other, 100*time.Millisecond) // the fifth was the last of the listener
	see(1, one, time.Second)
	if s := l.Rates()["web"]; s.Requests != 1 || s.SourceRequests != 2 || s.Routes[1] != 10 || s.Tracked != 2 {
		t.Errorf("stats %+v", s)
	}
}

// A reload that does not change a rate keeps its count, one that does begins anew, and
// a route keeps its own wherever it stands.
func TestRatesOverReloads(t *testing.T) {
	l := newLedger(nil)
	listener := func(count int, routes ...string) *config.Listener {
		lis := &config.Listener{Ref: config.Ref{Name: "web"}, Rules: &config.Rules{}}
		for _, prefix := range routes {
			lis.Rules.Routes = append(lis.Rules.Routes, &config.Route{Match: config.Match{Prefix: prefix}, Rate: perSecond(count, 1)})
		}
		return lis
	}
	a := addr("192.0.2.1")
	first := listener(1, "/a", "/b")
	if l.Pass(1e9, first, 0, a) != 0 || l.Pass(1e9, first, 0, a) == 0 {
		t.Fatal("one should pass, and no second one")
	}
	next := listener(1, "/new", "/a", "/b")
	if l.Pass(1e9, next, 1, a) == 0 {
		t.Error("the count of /a was lost when it became the second route")
	}
	if l.Pass(1e9, next, 0, a) != 0 || l.Pass(1e9, next, 2, a) != 0 {
		t.Error("the count of /a was taken for another route's")
	}
	if l.Pass(1e9, listener(2, "/a"), 0, a) != 0 {
		t.Error("a rate that was changed goes on with the old count")
	}
	for n := range 100 { // versions come and go; the counts are not lost, nor kept twice
		if l.Pass(1e9, listener(1, "/a", "/b", "/new"), n%3, a) == 0 {
			t.Fatalf("the count was lost in version %d", n)
		}
	}
}

// Connections of one source are bounded, whatever else is open, and none is lost or
// counted twice.
func TestSourceConnections(t *testing.T) {
	lis := &config.Listener{Ref: config.Ref{Name: "web"}, SourceConnectionsMax: 2, SourceRate: &config.SourceRate{Rate: *perSecond(1000, 1000), Bits4: 32, Bits6: 64}}
	l := newLedger(nil)
	one, sibling, other := addr("2001:db8::1"), addr("2001:db8::ffff"), addr("2001:db8:0:1::1")
	enter := func(a netip.Addr, want bool) {
		t.Helper()
		if got := l.EnterSource(1e9, lis, a); got != want {
			t.Errorf("%v may come in: %v", a, got)
		}
	}
	enter(one, true)
	enter(sibling, true)
	enter(one, false)
	enter(other, true)
	l.LeaveSource(lis, sibling)
	enter(one, true)
	l.AdmitSource(lis, one) // came over from another process: over the limit, and counted
	l.LeaveSource(lis, one)
	enter(one, false)
	for range 5 {
		l.LeaveSource(lis, one) // more than were counted: it does not go below none
	}
	enter(one, true)
	enter(addr("::ffff:192.0.2.1"), true)
	enter(addr("192.0.2.1"), true)
	enter(addr("192.0.2.1"), false)
	without := &config.Listener{Ref: lis.Ref}
	l.LeaveSource(without, addr("192.0.2.1")) // its flow came under a version without the limit
	enter(addr("192.0.2.1"), true)
	if s := l.Rates()["web"]; s.Sources != 3 {
		t.Errorf("stats %+v", s)
	}
}

// The table of sources is bounded, and who still has to wait is forgotten last.
func TestSourcesAreBounded(t *testing.T) {
	lis := &config.Listener{Ref: config.Ref{Name: "web"}, Rules: &config.Rules{
		SourceRate: &config.SourceRate{Rate: config.Rate{Count: 1, Per: time.Hour, Burst: 1}, Bits4: 32, Bits6: 64},
	}}
	l := newLedger(nil)
	a := addr("10.0.0.0")
	for range 200000 {
		a = a.Next()
		if l.Pass(1e9, lis, -1, a) != 0 {
			t.Fatalf("%v was refused, whom nobody knows", a)
		}
	}
	s := l.Rates()["web"]
	if s.Tracked > 65536 || s.Tracked < 60000 || s.Evicted != uint64(200000-s.Tracked) {
		t.Errorf("stats %+v", s)
	}
	if l.Pass(1e9, lis, -1, a) == 0 {
		t.Error("the last one was forgotten before older ones")
	}
}

// The slowest rate with the greatest burst lets the burst pass.
func TestGreatestBurst(t *testing.T) {
	lis := &config.Listener{Ref: config.Ref{Name: "web"}, Rules: &config.Rules{Rate: &config.Rate{Count: 1, Per: time.Hour, Burst: 10_000_000}}}
	l := newLedger(nil)
	for i := range 500_000 {
		if wait := l.Pass(1e9, lis, -1, addr("192.0.2.1")); wait != 0 {
			t.Fatalf("request %d waits %v", i, wait)
		}
	}
}

// Who was refused by a rate for each source is not refused any longer when the
// operator raises the rate, though its connections stay counted.
func TestSourceRateIsRaised(t *testing.T) {
	slow := &config.Listener{Ref: config.Ref{Name: "web", Version: 1}, SourceRate: &config.SourceRate{Rate: config.Rate{Count: 1, Per: time.Hour, Burst: 1}, Bits4: 32, Bits6: 64}}
	fast := &config.Listener{Ref: config.Ref{Name: "web", Version: 2}, SourceConnectionsMax: 4, SourceRate: &config.SourceRate{Rate: *perSecond(1, 3), Bits4: 32, Bits6: 64}}
	l := newLedger(nil)
	a := addr("192.0.2.1")
	if !l.EnterSource(1e9, slow, a) || l.EnterSource(1e9, slow, a) {
		t.Fatal("one should come in, and no second one")
	}
	for n, want := range []bool{true, true, true, false} {
		if got := l.EnterSource(2e9, fast, a); got != want {
			t.Errorf("connection %d under the new rate comes in: %t", n, got)
		}
	}
	if l.EnterSource(99e9, fast, a) {
		t.Error("it has five connections, of four")
	}
}

// Flows of many old versions of a listener come and go, and do not push out the
// count of the rate in force.
func TestOldVersionsLeaveTheCount(t *testing.T) {
	l := newLedger(nil)
	a := addr("192.0.2.1")
	var all []*config.Listener
	for v := range 7 {
		lis := &config.Listener{Ref: config.Ref{Name: "web", Version: uint64(v)}, SourceConnectionsMax: 100,
			ConnectionRate: &config.Rate{Count: 1 + v, Per: time.Hour, Burst: 1}}
		all = append(all, lis)
		l.EnterSource(1e9, lis, a)
	}
	now := all[6]
	if l.AcceptWait(1e9, now) != 0 || l.AcceptWait(1e9, now) == 0 {
		t.Fatal("one should pass, and no second one")
	}
	for _, lis := range all[:6] {
		l.LeaveSource(lis, a)
		l.AdmitSource(lis, a)
		l.LeaveSource(lis, a)
	}
	if l.AcceptWait(1e9, now) == 0 {
		t.Error("the count was lost")
	}
	if l.LeaveSource(now, a); l.Rates()["web"].Tracked != 0 {
		t.Errorf("%d sources are still counted", l.Rates()["web"].Tracked)
	}
}
