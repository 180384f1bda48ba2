package ledger

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/holdfast-lb/holdfast/internal/planted"
)

// Endpoint is the account of one endpoint: of a name, not of a version of it.
type Endpoint struct {
	Name    string // "backend/endpoint"
	backend *Backend
	stripe  *stripe

	limit    atomic.Int64 // connections; 0 is no limit
	index    atomic.Int32 // among the endpoints of the version in force; to be verified
	standing atomic.Pointer[Standing]

	ruled  bool         // limit was set; guarded by backend.roll
	absent bool         // of the version in force, since the one before; guarded by backend.roll
	stuck  queue        // those who wait for this endpoint alone; guarded by backend.mu
	wanted atomic.Int32 // how many are in stuck

	// What follows is written with each connection: apart from what is only read.
	_ [64]byte
	// held has two counts in one word, so that what goes over from one to the other
	// is never seen in both or in neither: the connections that we hold in the low
	// half, those of another process in the high half.
	held        atomic.Uint64
	consecutive atomic.Int64
	attempts    atomic.Uint64
	failures    atomic.Uint64
	errors      atomic.Uint64
	pace        atomic.Uint64 // see [pace]
}

// one connection that another process holds, in Endpoint.held.
const foreignOne = 1 << 32

// InUse is how many connections we hold to the endpoint now.
func (e *Endpoint) InUse() int64 { return int64(uint32(e.held.Load())) }

// Foreign is how many connections another process, to which or from which
// flows are moving, holds under the same limit.
func (e *Endpoint) Foreign() int64 { return int64(e.held.Load() >> 32) }

// Limit is how many connections there may be, from all processes; 0 is no limit.
func (e *Endpoint) Limit() int64 { return e.limit.Load() }

// Room tells whether one more connection may be opened to the endpoint.
func (e *Endpoint) Room() bool {
	limit := e.limit.Load()
	return limit == 0 || below(limit, e.held.Load()) && !e.backend.holdsBack()
}

// below tells whether both counts of held together are below the limit.
func below(limit int64, held uint64) bool {
	if planted.Bug(45) {
		limit++
	}
	return int64(uint32(held))+int64(held>>32) < limit
}

// Within tells whether with one connection more the endpoint has no more than its
// share of all that the backend has; share 0 is no bound.
func (e *Endpoint) Within(share float64) bool {
	return share == 0 || within(e.InUse(), share, e.backend.InUse())
}

// within rounds up: of one connection anybody may have the whole.
func within(inUse int64, share float64, all int64) bool {
	return float64(inUse+1) <= math.Ceil(share*float64(all+1))
}

// take counts a connection more if limit and share allow it. Whoever took looks
// afterwards whether it chose by what still holds, and else gives back.
func (e *Endpoint) take(share float64) bool {
	for {
		was := e.held.Load()
		if limit := e.limit.Load(); limit != 0 && !below(limit, was) {
			return false
		}
		// Between the read above and the exchange below the endpoint's own count
		// stays, so the share holds at the instant at which the sum is read.
		if share != 0 && !within(int64(uint32(was)), share, e.backend.InUse()) {
			return false
		}
		if e.held.CompareAndSwap(was, was+1) {
			e.stripe.inUse.Add(1) // second: the sum is never more than there is
			return true
		}
	}
}

// untake gives back what take counted, and tells nobody.
func (e *Endpoint) untake() {
	e.stripe.inUse.Add(-1)
	if now := e.held.Add(^uint64(0)); uint32(now) == math.MaxUint32 {
		e.held.Add(1)
		e.stripe.inUse.Add(1)
		panic("ledger: released a connection to " + e.Name + " that nobody held")
	}
}

// Release gives a slot back; it goes to the first waiter of all loops.
func (e *Endpoint) Release() {
	e.untake()
	e.wake()
}

// wake grants what has become free. Release counts down first and looks for
// waiters then; who waits is in the queue first and looks for room then: one of
// the two sees the other.
func (e *Endpoint) wake() {
	if (e.wanted.Load() > 0 || e.backend.anybody.Load() > 0) && !planted.Bug(46) {
		e.backend.mu.Lock()
		e.backend.grant(e)
		e.backend.mu.Unlock()
	}
}

// Import takes over n connections that come to us from the other process.
func (e *Endpoint) Import(n int64) {
	if planted.Bug(23) {
		e.shift(n, 0)
	}
	e.shift(n, -n)
	e.wake()
}

// Forget ends the account of n connections that left to another process:
// nothing of the limit becomes free, the other one holds them now.
func (e *Endpoint) Forget(n int64) {
	if planted.Bug(24) {
		e.shift(0, n)
		return
	}
	e.shift(-n, n)
}

// AddForeign changes what the other process holds. It never falls below zero.
func (e *Endpoint) AddForeign(n int64) {
	e.shift(0, n)
	if n < 0 {
		e.wake()
	}
}

// shift changes both counts at once; foreign never falls below zero.
func (e *Endpoint) shift(inUse, foreign int64) {
	for {
		was := e.held.Load()
		ours, theirs := int64(uint32(was))+inUse, max(0, int64(was>>32)+foreign)
		if ours < 0 {
			panic("ledger: more connections to " + e.Name + " left than were held")
		}
		if e.held.CompareAndSwap(was, uint64(ours)|uint64(theirs)*foreignOne) {
			e.stripe.inUse.Add(inUse)
			return
		}
	}
}

// Errors counts connections that could not be opened.
func (e *Endpoint) Errors() uint64 { return e.errors.Load() }

// CountError notes that a connection could not be opened.
func (e *Endpoint) CountError() { e.errors.Add(1) }

// Note records the outcome of an attempt: what it took until the answer, 0 if that
// is not known.
func (e *Endpoint) Note(now int64, good bool, took time.Duration) {
	b := e.backend
	e.attempts.Add(1)
	e.stripe.attempts.Add(1)
	switch {
	case !good:
		e.failures.Add(1)
		e.stripe.failures.Add(1)
		took = max(took, failureTook)
		n, at := e.consecutive.Add(1), b.alarmAt.Load()
		if b.alarm != nil && (at > 0 && n%at == 0 || b.Breaker() == HalfOpen) {
			b.alarm(b.Name)
		}
	case e.consecutive.Load() != 0: // seldom: the line stays shared among the loops
		e.consecutive.Store(0)
	}
	if took > 0 {
		e.observe(now, took)
	}
}

// Tries counts the attempts at the endpoint, and those that failed.
func (e *Endpoint) Tries() (attempts, failures uint64) {
	failures = e.failures.Load() // first: never more than the attempts
	return e.attempts.Load(), failures
}

// Consecutive is how many attempts have failed since the last good one.
func (e *Endpoint) Consecutive() int { return int(e.consecutive.Load()) }

// failureTook is what a failure counts as at least, so that an endpoint that
// refuses at once does not look like the fastest of all.
const failureTook = time.Second

// latencyDecay is the time constant of the pace: a slow answer counts at once and
// is forgotten in seconds. That is what Finagle's peak EWMA comes to, whose
// average decays with each look at it, but with 10 s: with those
// one hiccup of 300 ms left an endpoint without requests for 4 s (measured).
const latencyDecay = 3 * time.Second

// The pace of an endpoint is one word: in the high half what the answer took, in
// nanoseconds as a float32, in the low half when that was, in units of 1<<paceShift
// nanoseconds, which come round after 78 hours. It is written only by an answer
// that took longer than is left of it.
const paceShift = 16

// clocksDiffer is how far behind that time a reader's clock may be, in those units:
// loops read theirs once a turn. It is 65 s; any other distance is one forward, so an
// endpoint that was out of service for two days does not come back as slow as it was.
const clocksDiffer = 1_000_000

func (e *Endpoint) observe(now int64, took time.Duration) {
	stamp := uint32(now >> paceShift)
	for {
		was := e.pace.Load()
		if slower(was, stamp, took) || e.pace.CompareAndSwap(was, uint64(math.Float32bits(float32(took)))<<32|uint64(stamp)) {
			return
		}
	}
}

// slower tells whether what is left of a pace is more than took. The tangent of the
// exponential lies below it and tells nearly always: 20 ns less a request.
func slower(pace uint64, stamp uint32, took time.Duration) bool {
	t := float64(took)
	return t < float64(math.Float32frombits(uint32(pace>>32)))*(1-aged(pace, stamp)) || t < decayed(pace, stamp)
}

// aged is how old a pace is, in latencyDecays.
func aged(pace uint64, stamp uint32) float64 {
	since := stamp - uint32(pace)
	if since > math.MaxUint32-clocksDiffer {
		since = 0
	}
	return float64(since) / float64(latencyDecay>>paceShift)
}

// decayed is what is left of a pace at an instant.
func decayed(pace uint64, stamp uint32) float64 {
	return float64(math.Float32frombits(uint32(pace>>32))) * math.Exp(-aged(pace, stamp))
}

// Latency is what an answer has taken that is the slowest of the recent ones, as
// it was then; 0: there was none.
func (e *Endpoint) Latency() time.Duration {
	return time.Duration(math.Float32frombits(uint32(e.pace.Load() >> 32)))
}

// LatencyAt is Latency in nanoseconds as it has decayed since: one that was slow
// is tried again some time.
func (e *Endpoint) LatencyAt(now int64) float64 {
	return decayed(e.pace.Load(), uint32(now>>paceShift))
}

// Standing is how the endpoint stands now.
func (e *Endpoint) Standing() Standing {
	if s := e.standing.Load(); s != nil {
		return *s
	}
	return Standing{Weight: -1, Permille: 1000}
}

// stripe is one of several counters that together are one, so that loops do not
// fight for its cache line.
type stripe struct {
	inUse              atomic.Int64
	attempts, failures atomic.Uint64
	requests           atomic.Uint64
	_                  [32]byte
}

// stripes of a backend; a power of two.
const stripes = 8
