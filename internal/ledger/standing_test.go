package ledger_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// Which standings get something new, and which get what is sticky to them.
func TestWhatServes(t *testing.T) {
	tests := []struct {
		name        string
		is          ledger.Standing
		new, sticky bool
	}{
		{"not checked", as(ledger.Ready, ledger.Unknown), true, true},
		{"up", as(ledger.Ready, ledger.Up), true, true},
		{"its first check", as(ledger.Ready, ledger.Checking), false, false},
		{"down", as(ledger.Ready, ledger.Down), false, false},
		{"draining", as(ledger.Ready, ledger.Draining), false, true},
		{"ejected", ledger.Standing{Ejected: true, Weight: -1, Permille: 1000}, false, false},
		{"weight 0", ledger.Standing{Weight: 0, Permille: 1000}, false, true},
		{"agent says 0%", ledger.Standing{Weight: -1, Permille: 0}, false, true},
		{"quiescing", as(ledger.Quiescing, ledger.Up), false, true},
		{"quiescing and down", as(ledger.Quiescing, ledger.Down), false, false},
		{"maintenance", as(ledger.Maintenance, ledger.Up), false, false},
	}
	c := backend(1, equal(2), func(c *config.Backend) { c.Sticky = &config.Sticky{Kind: config.StickyCookie} })
	for _, x := range tests {
		t.Run(x.name, func(t *testing.T) {
			b := governed(c)
			stand(b, 0, x.is)
			got := map[string]bool{}
			for range 20 {
				name, _ := secure(b, c, ledger.Asking{})
				got[name] = true
			}
			if got["e0"] != x.new || !got["e1"] {
				t.Errorf("something new went to %v", got)
			}
			name, g := secure(b, c, ledger.Asking{Stuck: 1})
			for range 20 { // by chance it goes there without being sticky, too
				if name == "e0" {
					break
				}
				name, g = secure(b, c, ledger.Asking{Stuck: 1})
			}
			if sticky := name == "e0" && g.Stuck; sticky != x.sticky {
				t.Errorf("what is sticky went to %s (stuck %v)", name, g.Stuck)
			}
		})
	}
}

// While a single server is held its requests wait, in their order, and go on when it
// is ready; nobody fails. The same while the first check of a new one is under way.
func TestHeldWaits(t *testing.T) {
	for _, s := range []ledger.Standing{as(ledger.Held, ledger.Down), as(ledger.Ready, ledger.Checking)} {
		var rung []uint64
		c := backend(1, equal(1), nil)
		b := newLedger(func(_ int, token uint64) { rung = append(rung, token) }).Backend("b")
		b.Govern(c)
		stand(b, 0, s)
		if !b.Roster().Held() {
			t.Errorf("%+v: nothing is held", s)
		}
		var all []*ledger.Waiter
		for i := range 5 {
			_, w, answer := b.Secure(c, &ledger.Asking{Token: uint64(i)})
			if answer != ledger.Waiting {
				t.Fatalf("%+v: answer %v", s, answer)
			}
			all = append(all, w)
		}
		stand(b, 0, as(ledger.Ready, ledger.Up))
		if !slices.Equal(rung, []uint64{0, 1, 2, 3, 4}) {
			t.Fatalf("%+v: when ready again, rung for %v", s, rung)
		}
		for _, w := range all {
			if g := b.Collect(w); g.Endpoint == nil {
				t.Errorf("%+v: the bell rang for nothing", s)
			}
		}
		stand(b, 0, as(ledger.Maintenance, ledger.Up))
		if name, _ := secure(b, c, ledger.Asking{}); name != "none" {
			t.Errorf("in maintenance: %s", name)
		}
	}
}

// With another endpoint that serves nobody waits for the one that is held, but those
// who are sticky to it.
func TestHeldBesideOthers(t *testing.T) {
	c := backend(1, equal(2), func(c *config.Backend) { c.Sticky = &config.Sticky{Kind: config.StickyCookie} })
	b := governed(c)
	stand(b, 0, as(ledger.Held, ledger.Up))
	for range 10 {
		if name, _ := secure(b, c, ledger.Asking{}); name != "e1" {
			t.Fatalf("got %s", name)
		}
	}
	_, w, answer := b.Secure(c, &ledger.Asking{Stuck: 1})
	if answer != ledger.Waiting {
		t.Fatalf("sticky to the held one: answer %v", answer)
	}
	// When it will not come back, who waits goes elsewhere at once.
	stand(b, 0, as(ledger.Maintenance, ledger.Up))
	if g := b.Collect(w); g.Endpoint == nil || g.Endpoint.Name != "e1" {
		t.Errorf("then it got %+v", g)
	}
}

// Who is sticky to an endpoint that is full waits for that one, others go elsewhere.
func TestStickyWaitsForItsOwn(t *testing.T) {
	c := backend(1, equal(2), func(c *config.Backend) {
		c.Sticky = &config.Sticky{Kind: config.StickyCookie}
		c.Endpoints[0].ConnectionsMax = 1
	})
	b := governed(c)
	_, first := secure(b, c, ledger.Asking{Stuck: 1})
	_, w, answer := b.Secure(c, &ledger.Asking{Stuck: 1})
	if answer != ledger.Waiting {
		t.Fatalf("answer %v", answer)
	}
	for range 10 {
		if name, _ := secure(b, c, ledger.Asking{}); name != "e1" {
			t.Fatalf("one that is not sticky got %s", name)
		}
	}
	first.Account.Release()
	if g := b.Collect(w); g.Endpoint == nil || g.Endpoint.Name != "e0" || !g.Stuck {
		t.Errorf("it got %+v", g)
	}
}

// A table keeps clients where they were while endpoints come and go, over quiescing
// and over a change of the configuration, and lets them go when theirs is gone.
func TestStickyTableSurvives(t *testing.T) {
	with := func(version uint64, n int) *config.Backend {
		return backend(version, equal(n), func(c *config.Backend) {
			c.Sticky = &config.Sticky{Kind: config.StickySource, TableMax: 1000, MaxAge: time.Hour}
		})
	}
	c := with(1, 4)
	l := newLedger(nil)
	b := l.Backend("b")
	b.Govern(c)
	where := map[uint64]string{}
	see := func(when string, away string) {
		t.Helper()
		for key := uint64(1); key <= 100; key++ {
			name, g := secure(b, c, ledger.Asking{Key: key, Now: 1e9})
			was := where[key]
			if was == away || was == "" {
				where[key] = name
			} else if name != was || !g.Stuck {
				t.Fatalf("%s: client %d was at %s, is at %s (stuck %v)", when, key, was, name, g.Stuck)
			}
		}
	}
	see("at first", "")
	stand(b, 2, as(ledger.Quiescing, ledger.Unknown))
	see("quiescing", "")
	c = with(2, 5)
	b.Govern(c)
	see("after a reload", "")
	heir := newLedger(nil)
	heir.Backend("b").Govern(c)
	heir.Inherit(0, l.Tables())
	l, b = heir, heir.Backend("b")
	see("in the next process", "")
	stand(b, 2, as(ledger.Ready, ledger.Down))
	see("down", "e2")
	if s := b.Stats(); s.Learned != 100 || s.EvictedGone == 0 || s.EvictedFull+s.EvictedExpired != 0 {
		t.Errorf("stats %+v", s)
	}
	c = with(3, 1)
	b.Govern(c)
	if s := b.Stats(); s.Learned+int(s.EvictedGone) < 100 || s.Learned >= 100 {
		t.Errorf("with one endpoint left: %+v", s)
	}
	before := b.Stats().EvictedGone
	b.Govern(backend(4, equal(1), nil))
	if s := b.Stats(); s.Learned != 0 || s.EvictedGone <= before {
		t.Errorf("without sticky sessions: %+v", s)
	}
	b.Govern(c)
	b.Learn(7777, "b/e0")
	if name, g := secure(b, c, ledger.Asking{Key: 7777, Now: 1e9}); name != "e0" || !g.Stuck {
		t.Errorf("what was learned went to %s (stuck %v)", name, g.Stuck)
	}
}

// The table holds as many as it may; of more the ones unused for longest go, under
// their name.
func TestStickyTableIsBounded(t *testing.T) {
	c := backend(1, equal(2), func(c *config.Backend) {
		c.Sticky = &config.Sticky{Kind: config.StickyHeader, TableMax: 160}
	})
	b := governed(c)
	for k := range 10000 {
		secure(b, c, ledger.Asking{Key: uint64(1 + k), Now: int64(k + 1)})
		if _, g := secure(b, c, ledger.Asking{Key: 1, Now: int64(k + 1)}); !g.Stuck {
			t.Fatalf("one that is always used was forgotten after %d", k)
		}
	}
	if s := b.Stats(); s.Learned != 160 || s.EvictedFull != 10000-160 {
		t.Errorf("stats %+v", s)
	}
}

// A first failure ejects nobody, a row of them raises the alarm once for each row, and
// a failed probe of a half-open breaker does.
func TestAlarm(t *testing.T) {
	alarms := 0
	c := backend(1, equal(1), func(c *config.Backend) {
		c.Eject = &config.Eject{Consecutive: 3}
		c.Breaker = &config.Breaker{}
	})
	l := ledger.New(ledger.Options{Policy: newPolicy(), Ring: func(int, uint64) {}, Open: func() {}, Alarm: func(string) { alarms++ }})
	b := l.Backend("b")
	b.Govern(c)
	e := b.Endpoint("b/e0")
	for i, want := range []int{0, 0, 1, 1, 1, 2} {
		if e.Note(int64(i), false, 0); alarms != want {
			t.Fatalf("after failure %d: %d alarms", i+1, alarms)
		}
	}
	e.Note(7, true, time.Millisecond)
	if e.Consecutive() != 0 {
		t.Error("a good one does not end the row")
	}
	b.SetBreaker(ledger.HalfOpen, 1)
	if e.Note(8, false, 0); alarms != 3 {
		t.Errorf("a failed probe: %d alarms", alarms)
	}
	if a, f := e.Tries(); a != 8 || f != 7 {
		t.Errorf("%d attempts, %d failures", a, f)
	}
	if a, f := b.Tries(); a != 8 || f != 7 {
		t.Errorf("of the backend: %d attempts, %d failures", a, f)
	}
}

// An open breaker lets nobody through, a half-open one as many as there are probes,
// and one for whom there was no endpoint is none.
func TestBreaker(t *testing.T) {
	c := backend(1, equal(1), func(c *config.Backend) { c.Breaker = &config.Breaker{} })
	b := governed(c)
	see := func(want string) {
		t.Helper()
		if name, _ := secure(b, c, ledger.Asking{}); name != want {
			t.Errorf("%v: got %s, want %s", b.Breaker(), name, want)
		}
	}
	see("e0")
	b.SetBreaker(ledger.Open, 0)
	see("tripped")
	b.SetBreaker(ledger.HalfOpen, 2)
	see("e0")
	stand(b, 0, as(ledger.Maintenance, ledger.Up))
	see("none")
	stand(b, 0, as(ledger.Ready, ledger.Up))
	see("e0")
	see("tripped")
	b.SetBreaker(ledger.Closed, 0)
	see("e0")
}

// Retries are bounded to a share of the requests, beside ten a second.
func TestRetryBudget(t *testing.T) {
	c := backend(1, equal(2), func(c *config.Backend) { c.Retry.Budget = 20 })
	b := governed(c)
	const second = int64(time.Second)
	retries := func(now int64, ask int) (granted int) {
		for range ask {
			if name, _ := secure(b, c, ledger.Asking{Retry: true, Now: now}); name != "spent" {
				granted++
			}
		}
		return granted
	}
	requests := func(now int64, n int) {
		for range n {
			secure(b, c, ledger.Asking{Now: now})
		}
	}
	if n := retries(second, 50); n != 10 {
		t.Errorf("without requests %d retries, 10 are always allowed", n)
	}
	requests(second, 1000)
	if n := retries(second, 500); n != 200 {
		t.Errorf("%d retries for 1000 requests, 20 %% are 200", n)
	}
	if n := retries(2*second, 500); n != 10 {
		t.Errorf("a second later %d more", n)
	}
	// All failing, for a minute: a thousand requests a second, each tried again.
	granted := 0
	for now := 20 * second; now < 80*second; now += second / 10 {
		requests(now, 100)
		granted += retries(now, 100)
	}
	if lo, hi := 60*190, 60*(200+10)+2*200; granted < lo || granted > hi {
		t.Errorf("%d retries in a minute, of %d to %d", granted, lo, hi)
	}
	if s := b.Stats(); s.RetriesRefused == 0 || s.RetriesGranted < uint64(granted) {
		t.Errorf("stats %+v", s)
	}
}

// Flows of old versions go on by rosters of their own, which standings reach; and
// what no flow can name any more is forgotten.
func TestOldVersions(t *testing.T) {
	l := newLedger(nil)
	b := l.Backend("b")
	old := backend(1, equal(2), nil)
	b.Govern(old)
	b.Govern(backend(2, equal(1), nil))
	stand(b, 0, as(ledger.Quiescing, ledger.Unknown))
	for range 10 {
		if name, _ := secure(b, old, ledger.Asking{}); name != "e1" {
			t.Fatalf("a flow of the old version got %s", name)
		}
	}
	e1 := b.Endpoint("b/e1")
	for range 10 {
		e1.Release()
	}
	for v := range uint64(100) {
		b.Govern(backend(3+v, equal(1), func(c *config.Backend) {
			e := c.Endpoints[0]
			e.Name = fmt.Sprintf("n%d", v)
			e.Ref.Name = "b/" + e.Name
		}))
	}
	if n := len(l.Endpoints()); n > 12 {
		t.Errorf("%d accounts are kept for 8 versions with one endpoint each", n)
	}
	if b.Endpoint("b/e1") == e1 {
		t.Error("the account of an endpoint that no version has is still there")
	}
}

// On the normal way nothing is allocated.
func TestNothingIsAllocated(t *testing.T) {
	route := &config.Route{Rate: &config.Rate{Count: 1e6, Per: time.Second, Burst: 10}}
	lis := &config.Listener{
		Ref: config.Ref{Name: "web"}, SourceConnectionsMax: 10,
		SourceRate:     &config.SourceRate{Rate: config.Rate{Count: 1e6, Per: time.Second, Burst: 1e6}, Bits4: 32, Bits6: 64},
		ConnectionRate: &config.Rate{Count: 1e6, Per: time.Second, Burst: 10},
		Rules: &config.Rules{
			Routes: []*config.Route{route}, Rate: route.Rate,
			SourceRate: &config.SourceRate{Rate: *route.Rate, Bits4: 32, Bits6: 64},
		},
	}
	none := func(what string, do func()) {
		t.Helper()
		if n := testing.AllocsPerRun(1000, do); n != 0 {
			t.Errorf("%s allocates %v times", what, n)
		}
	}
	for balancing := config.RoundRobin; balancing <= config.Maglev; balancing++ {
		for _, kind := range []config.StickyKind{config.StickyCookie, config.StickySource} {
			c := backend(1, []int{1, 2, 3, 100}, func(c *config.Backend) {
				c.Balance = balancing
				c.ConnectionsPerEndpoint = 10
				c.Hash.Load = 150
				c.Sticky = &config.Sticky{Kind: kind, TableMax: 1000, MaxAge: time.Hour}
				c.Retry.Budget = 20
				c.Breaker = &config.Breaker{}
			})
			b := governed(c)
			a := ledger.Asking{}
			none(fmt.Sprintf("Secure by %v", balancing), func() {
				a.Now += 1e9
				a.Key = uint64(a.Now/1e9)%64 + 1
				a.Retry = !a.Retry
				g, _, _ := b.Secure(c, &a)
				g.Account.Note(a.Now, true, time.Millisecond)
				g.Account.Release()
			})
		}
	}
	l := newLedger(nil)
	now := int64(1e9)
	source := addr("192.0.2.7")
	none("a request by rates", func() {
		now += 1e6
		if l.Pass(now, lis, 0, source) != 0 {
			t.Error("refused")
		}
	})
	none("a connection by rates", func() {
		now += 1e6
		if l.AcceptWait(now, lis) != 0 || !l.EnterSource(now, lis, source) {
			t.Error("refused")
		}
		l.LeaveSource(lis, source)
	})
}

// What an endpoint took is forgotten however long it was out of service, and by a
// reader whose clock is a little behind it is seen as it was.
func TestPaceIsForgotten(t *testing.T) {
	b := governed(backend(1, equal(1), nil))
	e := b.Endpoint("b/e0")
	begin := int64(1000 * time.Hour)
	e.Note(begin, true, time.Second)
	for _, behind := range []time.Duration{0, time.Millisecond, time.Second} {
		if ms := e.LatencyAt(begin-int64(behind)) / 1e6; ms < 999 || ms > 1001 {
			t.Errorf("%v before it was seen it is %v ms", behind, ms)
		}
	}
	for after := time.Minute * 5; after < 77*time.Hour; after += time.Hour / 2 {
		if ns := e.LatencyAt(begin + int64(after)); ns > 1e3 {
			t.Fatalf("%v later it is still %v ns", after, ns)
		}
	}
}
