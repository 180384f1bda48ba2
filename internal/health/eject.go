package health

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// buckets is how finely a window moves on.
const buckets = 10

// window remembers counts of the last while, so that a rate is of it alone.
type window struct {
	at       [buckets + 1]Instant
	attempts [buckets + 1]uint64
	failures [buckets + 1]uint64
	n        int // of them are set; the oldest first
}

// reset forgets all but that the counts are t now.
func (w *window) reset(now Instant, t Tries) {
	w.at[0], w.attempts[0], w.failures[0], w.n = now, t.Attempts, t.Failures, 1
}

// note puts the counts of now behind the others and gives what came since the
// window began.
func (w *window) note(now Instant, long time.Duration, t Tries) (attempts, failures uint64) {
	// What lies before the window goes, but for the last of it.
	drop := 0
	for drop+1 < w.n && now.since(w.at[drop+1]) >= long {
		drop++
	}
	if drop > 0 {
		copy(w.at[:], w.at[drop:w.n])
		copy(w.attempts[:], w.attempts[drop:w.n])
		copy(w.failures[:], w.failures[drop:w.n])
		w.n -= drop
	}
	if w.n == 0 || now.since(w.at[w.n-1]) >= long/buckets {
		if w.n == len(w.at) {
			copy(w.at[:], w.at[1:])
			copy(w.attempts[:], w.attempts[1:])
			copy(w.failures[:], w.failures[1:])
			w.n--
		}
		w.at[w.n], w.attempts[w.n], w.failures[w.n] = now, t.Attempts, t.Failures
		w.n++
	}
	return t.Attempts - w.attempts[0], t.Failures - w.failures[0]
}

// eject takes out what fails and lets back what has been out long enough.
func (b *Backend) eject(now Instant, each func(name string) Tries) {
	x := b.of.Eject
	type suspect struct {
		e      *endpoint
		reason string
		why    string
		share  float64 // of failures: the worst goes first
	}
	var suspects []suspect
	for _, e := range b.order {
		if e.of.Drop != config.NoDrop {
			continue
		}
		t := each(e.name)
		e.seen = t
		if e.ejectedUntil != 0 {
			if now >= e.ejectedUntil {
				b.back(e, now, "its time is over")
			}
			continue
		}
		var attempts, failures uint64
		if e.window != nil {
			attempts, failures = e.window.note(now, x.Window, t)
		}
		run := t.Consecutive
		if since := t.Attempts - e.base; since < uint64(run) {
			run = int(since) // what failed before it came back was paid for
		}
		s := suspect{e: e}
		switch {
		case x.Consecutive > 0 && run >= x.Consecutive:
			s.reason, s.share = reasonConsecutive, 1
			s.why = fmt.Sprintf("%d failures in a row", run)
		case x.Rate > 0 && attempts >= uint64(max(1, x.Least)) && failures*100 >= uint64(x.Rate)*attempts:
			s.reason, s.share = reasonRate, float64(failures)/float64(attempts)
			s.why = fmt.Sprintf("%d of %d attempts failed in %v", failures, attempts, x.Window)
		default:
			e.spared = false
			if e.times > 0 && now.since(e.returnedAt) >= e.last {
				e.times-- // it has stood as long as it was out, and stands well
				e.returnedAt = now
			}
			continue
		}
		if Serves(e.standing) {
			suspects = append(suspects, s)
		}
	}
	slices.SortStableFunc(suspects, func(p, q suspect) int { return cmp.Compare(q.share, p.share) })
	for _, s := range suspects {
		e := s.e
		if !b.mayEject() {
			if !e.spared {
				e.spared = true
				b.counts.Ejections[reasonSpared]++
				b.tell(e, Spared, "in service", fmt.Sprintf("%s, but no more than %d %% may be ejected", s.why, x.Share), 0)
			}
			continue
		}
		e.last = x.Time
		for i := 0; i < e.times && e.last < x.TimeMax; i++ {
			e.last = min(2*e.last, x.TimeMax)
		}
		e.ejectedUntil = now.after(e.last)
		e.times++
		e.spared = false
		b.counts.Ejections[s.reason]++
		b.tell(e, Ejected, "ejected", s.why, e.last)
		b.touch(e, now)
	}
}

// mayEject tells whether one more may go. Share bounds those that are out, but
// of several one always may; the last that serves goes only if all may.
func (b *Backend) mayEject() bool {
	all, out, in := 0, 0, 0
	for _, e := range b.order {
		if e.of.Drop != config.NoDrop || b.effective(e) == ledger.Maintenance {
			continue
		}
		all++
		if e.ejectedUntil != 0 {
			out++
		}
		if Serves(e.standing) {
			in++
		}
	}
	allowed := all * b.of.Eject.Share / 100
	if all > 1 {
		allowed = max(1, allowed)
	}
	return out < allowed && (in > 1 || b.of.Eject.Share >= 100)
}

// back lets an ejected endpoint serve again.
func (b *Backend) back(e *endpoint, now Instant, why string) {
	e.ejectedUntil, e.returnedAt, e.base = 0, now, e.seen.Attempts
	if e.window != nil {
		e.window.reset(now, e.seen)
	}
	b.tell(e, Returned, "in service", why, 0)
}

// BreakerOrder is what the ledger's breaker shall be.
type BreakerOrder struct {
	State  ledger.BreakerState
	Probes int // of HalfOpen
}

// breaker is that of one backend.
type breaker struct {
	state  ledger.BreakerState
	until  Instant // Open: then probes go; HalfOpen: then further ones, if those were lost
	base   Tries   // when it became half-open
	seen   Tries   // when last looked
	window window
	moved  bool
}

// judge brings the breaker on.
func (b *Backend) judge(now Instant, total Tries) {
	x, k := b.of.Breaker, &b.breaker
	k.seen = total
	move := func(to ledger.BreakerState, until Instant, why string) {
		if to != k.state {
			d := time.Duration(0)
			if to == ledger.Open {
				d = until.since(now)
			}
			b.tell(nil, BreakerMove, to.String(), why, d)
		}
		k.state, k.until, k.base, k.moved = to, until, total, true
		k.window.reset(now, total)
	}
	switch k.state {
	case ledger.Closed:
		attempts, failures := k.window.note(now, x.Window, total)
		if attempts >= uint64(max(1, x.Least)) && failures*100 >= uint64(x.Rate)*attempts {
			move(ledger.Open, now.after(x.Open), fmt.Sprintf("%d of %d attempts failed in %v", failures, attempts, x.Window))
		}
	case ledger.Open:
		if now >= k.until {
			move(ledger.HalfOpen, now.after(x.Open), fmt.Sprintf("%d probes go", x.Probes))
		}
	case ledger.HalfOpen:
		attempts, failures := total.Attempts-k.base.Attempts, total.Failures-k.base.Failures
		switch {
		case failures > 0:
			move(ledger.Open, now.after(x.Open), fmt.Sprintf("%d of %d probes failed", failures, attempts))
		case attempts >= uint64(max(1, x.Probes)):
			move(ledger.Closed, 0, fmt.Sprintf("%d probes passed", attempts))
		case now >= k.until:
			// Their outcome never came: those who had them were moved or have ended.
			move(ledger.HalfOpen, now.after(x.Open), "")
		}
	default:
		panic("health: a breaker that is " + k.state.String())
	}
}

// Breaker is the state of the backend's breaker.
func (b *Backend) Breaker() ledger.BreakerState { return b.breaker.state }
