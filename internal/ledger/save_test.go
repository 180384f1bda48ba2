package ledger_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// handed makes a ledger that has learnt what l has saved at now, in bulk and then
// what has come since; between runs between the two.
func handed(t *testing.T, l *ledger.Ledger, now int64, between func(), backends ...*config.Backend) *ledger.Ledger {
	t.Helper()
	heir := newLedger(nil)
	for _, c := range backends {
		heir.Backend(c.Ref.Name).Govern(c)
	}
	carry := func(since int64) {
		body, err := json.Marshal(l.Save(now, since))
		if err != nil {
			t.Fatal(err)
		}
		var s ledger.Saved
		if err := json.Unmarshal(body, &s); err != nil {
			t.Fatal(err)
		}
		heir.Restore(now, s)
	}
	carry(0)
	between()
	carry(now)
	return heir
}

func nothing() {}

// What a rate has let through in one process it does not let through again in the
// next: for all, for each source, for a listener and for a route.
func TestRatesGoAlong(t *testing.T) {
	const now = int64(1e12)
	rate := func(burst int) *config.Rate { return &config.Rate{Count: 1, Per: time.Minute, Burst: burst} }
	lis := &config.Listener{
		Ref: config.Ref{Name: "web"}, ConnectionRate: rate(3),
		SourceRate: &config.SourceRate{Rate: *rate(4), Bits4: 32, Bits6: 64},
		Rules:      &config.Rules{Rate: rate(5), Routes: []*config.Route{{Rate: rate(2), SourceRate: &config.SourceRate{Rate: *rate(1), Bits4: 24, Bits6: 64}}}},
	}
	a, b, c := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.1.1"), netip.MustParseAddr("2001:db8::1")
	// tries gives how many of each kind pass.
	tries := func(l *ledger.Ledger) [5]int {
		var n [5]int
		for range 10 {
			if l.AcceptWait(now, lis) == 0 {
				n[0]++
			}
			for i, from := range []netip.Addr{a, c} {
				if l.EnterSource(now, lis, from) {
					n[1+i]++
				}
			}
			if l.Pass(now, lis, 0, b) == 0 {
				n[3]++
			}
			if l.Pass(now, lis, -1, b) == 0 {
				n[4]++
			}
		}
		return n
	}
	if n := tries(newLedger(nil)); n != [5]int{3, 4, 4, 1, 4} {
		t.Fatalf("a new ledger lets through %v", n)
	}
	old := newLedger(nil)
	old.AcceptWait(now, lis)
	old.EnterSource(now, lis, a)
	old.Pass(now, lis, 0, b)
	heir := handed(t, old, now, func() { // while both run
		old.AcceptWait(now, lis)
		old.EnterSource(now, lis, a)
		old.EnterSource(now, lis, c)
		old.Pass(now, lis, -1, netip.MustParseAddr("10.0.2.1"))
	})
	// Of three connections two are used, of four of a source two and one, the source of
	// the route has none left, and of five requests two are used.
	want := [5]int{1, 2, 3, 0, 3}
	if n := tries(heir); n != want {
		t.Errorf("let through %v, want %v", n, want)
	}
	// Nobody has come to the heir yet when it is replaced: what it was told goes on.
	quiet := handed(t, old, now, nothing)
	if n := tries(handed(t, quiet, now, nothing)); n != want {
		t.Errorf("two processes later: let through %v, want %v", n, want)
	}
	// A minute later each has one more again.
	later := newLedger(nil)
	body, _ := json.Marshal(old.Save(now+int64(time.Hour), 0))
	var s ledger.Saved
	if err := json.Unmarshal(body, &s); err != nil {
		t.Fatal(err)
	}
	if later.Restore(now, s); tries(later) != tries(newLedger(nil)) {
		t.Errorf("an hour later something is still used up: %s", body)
	}
}

// A retry budget that is spent stays spent, and one that is not goes on with its
// window.
func TestRetryBudgetGoesAlong(t *testing.T) {
	c := backend(1, equal(2), func(c *config.Backend) { c.Retry.Budget = 20 })
	retries := func(b *ledger.Backend, now int64) (n int) {
		for range 100 {
			if name, g := secure(b, c, ledger.Asking{Retry: true, Now: now}); name != "spent" {
				g.Account.Release()
				n++
			}
		}
		return n
	}
	ask := func(b *ledger.Backend, n int, now int64) {
		for range n {
			_, g := secure(b, c, ledger.Asking{Now: now})
			g.Account.Release()
		}
	}
	const now = int64(1e12)
	l := newLedger(nil)
	b := l.Backend("b")
	b.Govern(c)
	ask(b, 200, now)
	if n := retries(b, now); n != 49 { // 10 that are free, and 20 % of 199 since the first
		t.Fatalf("%d retries of 200 requests", n)
	}
	heir := handed(t, l, now, nothing, c).Backend("b")
	if n := retries(heir, now); n != 0 {
		t.Errorf("the budget was spent, and %d retries went in the next process", n)
	}
	ask(heir, 100, now)
	if n := retries(heir, now); n != 20 {
		t.Errorf("%d retries of 100 further requests, want 20", n)
	}
}

// What two nodes have used of a retry budget they have used together when the flows of
// one come to the other, which goes on; and those that are free are not free twice.
func TestRetryBudgetsOfTwoNodes(t *testing.T) {
	c := backend(1, equal(2), func(c *config.Backend) { c.Retry.Budget = 20 })
	const now = int64(1e12)
	use := func(b *ledger.Backend, asks, retries int) (n int) {
		for range asks {
			_, g := secure(b, c, ledger.Asking{Now: now})
			g.Account.Release()
		}
		for range retries {
			if name, g := secure(b, c, ledger.Asking{Retry: true, Now: now}); name != "spent" {
				g.Account.Release()
				n++
			}
		}
		return n
	}
	from, to := newLedger(nil), newLedger(nil)
	from.Backend("b").Govern(c)
	to.Backend("b").Govern(c)
	spent := use(from.Backend("b"), 200, 100)
	used := use(to.Backend("b"), 200, 25)
	to.Merge(now, from.Save(now, 0))
	more := use(to.Backend("b"), 0, 100)
	if all := spent + used + more; more == 0 || all > 10+10+80 {
		t.Errorf("%d retries there, %d here and %d afterwards, of 400 requests with 20 %% and 10 free for each", spent, used, more)
	}
}

// What is known of endpoints goes along: how slow they were, with its age, how
// often they have failed in a row; and those who choose in turn go on where they were.
func TestWhatIsKnownOfEndpointsGoesAlong(t *testing.T) {
	const now = int64(1e12)
	c := backend(1, equal(3), func(c *config.Backend) { c.Balance = config.RoundRobin })
	l := newLedger(nil)
	b := l.Backend("b")
	b.Govern(c)
	slow, bad := b.Endpoint("b/e0"), b.Endpoint("b/e1")
	slow.Note(now-int64(2*time.Second), true, 300*time.Millisecond)
	for range 4 {
		bad.Note(now, false, 0)
	}
	heir := handed(t, l, now, nothing, c).Backend("b")
	for i := range 3 {
		full := fmt.Sprintf("b/e%d", i)
		was, is := b.Endpoint(full), heir.Endpoint(full)
		if was.Consecutive() != is.Consecutive() {
			t.Errorf("%s: %d failures in a row, there were %d", full, is.Consecutive(), was.Consecutive())
		}
		then, at := was.LatencyAt(now), is.LatencyAt(now)
		if at < then*0.99 || at > then*1.01 {
			t.Errorf("%s: latency %v, it was %v", full, time.Duration(at), time.Duration(then))
		}
	}
	if at := heir.Endpoint("b/e0").LatencyAt(now); at > 0.6*300e6 || at == 0 {
		t.Errorf("what was slow 2 s ago counts as %v", time.Duration(at))
	}
	// One picks as if it were the other.
	for _, picks := range []int{1, 2} {
		l := newLedger(nil)
		b := l.Backend("b")
		b.Govern(c)
		var alone, parted []string
		for range 7 {
			name, _ := secure(b, c, ledger.Asking{})
			alone = append(alone, name)
		}
		l = newLedger(nil)
		b = l.Backend("b")
		b.Govern(c)
		for k := range 7 {
			if k == picks {
				b = handed(t, l, now, nothing, c).Backend("b")
			}
			name, _ := secure(b, c, ledger.Asking{})
			parted = append(parted, name)
		}
		if !slices.Equal(alone, parted) {
			t.Errorf("in turn %v, over an upgrade after %d %v", alone, picks, parted)
		}
	}
}

// A sticky table goes over in parts while clients come, and afterwards what they have
// changed: the heir knows all that is known, in the same order of use, and was not
// told again what it knew.
func TestTablesGoInBulkAndThenWhatChanged(t *testing.T) {
	const clients = 50_000
	c := backend(1, equal(4), func(c *config.Backend) {
		c.Sticky = &config.Sticky{Kind: config.StickySource, TableMax: 2 * clients, MaxAge: time.Hour}
	})
	l, heir := newLedger(nil), newLedger(nil)
	b := l.Backend("b")
	b.Govern(c)
	heir.Backend("b").Govern(c)
	now := int64(1e12)
	come := func(b *ledger.Backend, key uint64) (string, bool) {
		now++
		g, _, _ := b.Secure(c, &ledger.Asking{Key: key, Now: now})
		g.Account.Release()
		return g.Endpoint.Name, g.Stuck
	}
	where := map[uint64]string{}
	for key := uint64(1); key <= clients; key++ {
		where[key], _ = come(b, key)
	}
	told := 0
	carry := func(_ string, of *ledger.Table) error {
		body, err := json.Marshal(ledger.Tables{"b": of})
		if err != nil {
			return err
		}
		told += len(of.Packed) / 16
		var tables ledger.Tables
		if err := json.Unmarshal(body, &tables); err != nil {
			return err
		}
		heir.Inherit(now, tables)
		return nil
	}
	next := uint64(clients)
	mark, err := l.EachTable(nil, func(name string, of *ledger.Table) error {
		for range 10 { // whoever comes meanwhile
			next++
			where[next], _ = come(b, next)
			come(b, next%clients+1)
		}
		return carry(name, of)
	})
	if err != nil {
		t.Fatal(err)
	}
	if told < clients || told > clients+200 {
		t.Fatalf("%d entries in bulk of %d", told, clients)
	}
	for range 100 { // and between
		next++
		where[next], _ = come(b, next)
	}
	stand(b, 0, as(ledger.Maintenance, ledger.Unknown))
	moved := 0
	for key := uint64(1); key <= 400; key++ { // some are sent elsewhere
		name, _ := come(b, key)
		if name != where[key] {
			moved++
		}
		where[key] = name
	}
	stand(b, 0, as(ledger.Ready, ledger.Unknown))
	told = 0
	if _, err := l.EachTable(mark, carry); err != nil {
		t.Fatal(err)
	}
	if moved == 0 || told < 500 || told > 1000 {
		t.Errorf("%d entries were told again, %d clients have moved", told, moved)
	}
	if was, is := b.Stats().Learned, heir.Backend("b").Stats().Learned; was != is {
		t.Errorf("%d entries, there were %d", is, was)
	}
	for key, at := range where {
		if name, stuck := come(heir.Backend("b"), key); name != at || !stuck {
			t.Fatalf("client %d was at %s, is at %s (stuck %t)", key, at, name, stuck)
		}
	}
}
