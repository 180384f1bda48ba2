package ledger_test

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// classesInOrder lets many wait on several loops, some with places from before a
// move, and sees them served by class and then by place.
func classesInOrder(seed uint64) string {
	r := rand.New(rand.NewPCG(seed, 5))
	var rung []uint64
	l := newLedger(func(_ int, token uint64) { rung = append(rung, token) })
	c := backend(1, equal(1), func(c *config.Backend) { c.ConnectionsPerEndpoint = 1 })
	b := l.Backend("b")
	b.Govern(c)
	g, _, _ := b.Secure(c, &ledger.Asking{})
	account := g.Account
	type waiter struct {
		class config.Priority
		place uint64
		w     *ledger.Waiter
	}
	var all []waiter
	old := r.Perm(1000)
	l.PlacesAfter(1000)
	for i := range 30 {
		a := ledger.Asking{Class: config.Priority(r.IntN(3)), Token: uint64(i), Loop: i % 4}
		if r.IntN(3) == 0 {
			a.Place = uint64(1 + old[i])
		}
		_, w, answer := b.Secure(c, &a)
		if answer != ledger.Waiting {
			return fmt.Sprintf("answer %v with the only slot in use", answer)
		}
		all = append(all, waiter{a.Class, w.Place(), w})
	}
	want := make([]int, len(all))
	for i := range want {
		want[i] = i
	}
	slices.SortFunc(want, func(i, j int) int {
		if a, b := all[i], all[j]; a.class != b.class {
			return int(b.class) - int(a.class)
		} else if a.place < b.place {
			return -1
		}
		return 1
	})
	for n, i := range want {
		account.Release()
		if len(rung) != n+1 {
			return fmt.Sprintf("released the slot, %d bells rang, not %d", len(rung), n+1)
		}
		if rung[n] != uint64(i) {
			w := all[rung[n]]
			return fmt.Sprintf("class %v place %d was served before class %v place %d", w.class, w.place, all[i].class, all[i].place)
		}
		if g := b.Collect(all[i].w); g.Account != account {
			return "the bell rang for nothing"
		}
	}
	return ""
}

// entriesExpire sees entries of a sticky table go when they were not used for too
// long, and only then.
func entriesExpire(seed uint64) string {
	r := rand.New(rand.NewPCG(seed, 6))
	const second = int64(1e9)
	c := backend(1, equal(8), func(c *config.Backend) {
		c.Sticky = &config.Sticky{Kind: config.StickySource, MaxAge: 10e9, TableMax: 4096}
	})
	b := governed(c)
	type known struct {
		at   string
		used int64
	}
	where := map[uint64]known{}
	expired := uint64(0)
	for now := second; now < 100*second; now += r.Int64N(second) {
		key := 1 + r.Uint64N(20)
		g, _, _ := b.Secure(c, &ledger.Asking{Key: key, Now: now})
		was, ok := where[key]
		switch {
		case ok && now-was.used > 10*second:
			expired++
			if g.Stuck {
				return fmt.Sprintf("still sticky after %d s, the table remembers for 10 s", (now-was.used)/second)
			}
		case ok && (!g.Stuck || g.Endpoint.Name != was.at):
			return fmt.Sprintf("went to %s after %d ms, was sticky to %s", g.Endpoint.Name, (now-was.used)/1e6, was.at)
		case !ok && g.Stuck:
			return "a new client is said to be sticky"
		}
		where[key] = known{g.Endpoint.Name, now}
		g.Account.Release()
	}
	if s := b.Stats(); s.EvictedExpired != expired || s.EvictedFull+s.EvictedGone != 0 {
		return fmt.Sprintf("%d entries have expired, counted are %+v", expired, s)
	}
	return ""
}

// burstThenRate sees that in any time no more passes than the burst and what the
// rate gives, and that nobody is refused for whom there would be room.
func burstThenRate(seed uint64) string {
	r := rand.New(rand.NewPCG(seed, 7))
	count, burst := 1+r.IntN(100), 1+r.IntN(20)
	lis := &config.Listener{Ref: config.Ref{Name: "web"}, ConnectionRate: &config.Rate{Count: count, Per: 1e9, Burst: burst}}
	l := newLedger(nil)
	every := lis.ConnectionRate.Every().Nanoseconds()
	// A bucket of nanoseconds, full at the beginning.
	full := int64(burst) * every
	level, last := full, int64(1e12)
	for now := last; now < 1e12+2e9; now += r.Int64N(2 * every) {
		level, last = min(full, level+now-last), now
		for range 1 + r.IntN(4) {
			wait := l.AcceptWait(now, lis)
			if passes := level >= every; passes != (wait == 0) {
				return fmt.Sprintf("rate %d/s burst %d: passed %v, should %v, with %d of %d ns", count, burst, wait == 0, passes, level, every)
			}
			if wait == 0 {
				level -= every
			} else if int64(wait) != every-level {
				return fmt.Sprintf("to wait %d ns, not %d", wait, every-level)
			}
		}
	}
	return ""
}
