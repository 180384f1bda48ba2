package ledger

import (
	"sync"
	"time"
)

// BreakerState is what a breaker lets through. Append-only.
type BreakerState uint8

const (
	Closed   BreakerState = iota // everything
	Open                         // nothing
	HalfOpen                     // some probes
)

var breakerWords = []string{"closed", "open", "half-open"}

// String gives the word for s.
func (s BreakerState) String() string { return word(breakerWords, uint8(s)) }

// SetBreaker changes what the breaker lets through: with HalfOpen as many requests
// as there are probes, then none until it is set again.
func (b *Backend) SetBreaker(s BreakerState, probes int) {
	b.breaker.Store(uint64(s)<<32 | uint64(uint32(max(0, probes))))
}

// Breaker is what the breaker lets through.
func (b *Backend) Breaker() BreakerState { return BreakerState(b.breaker.Load() >> 32) }

// letThrough asks the breaker for one request: whether it is let through, and is
// one of the probes.
func (b *Backend) letThrough() (probe, through bool) {
	for {
		was := b.breaker.Load()
		switch BreakerState(was >> 32) {
		case Closed:
			return false, true
		case Open:
			return false, false
		case HalfOpen:
			if uint32(was) == 0 {
				return false, false
			}
			if b.breaker.CompareAndSwap(was, was-1) {
				return true, true
			}
		default:
			panic("ledger: breaker is " + BreakerState(was>>32).String())
		}
	}
}

// unprobe gives back what letThrough took for a request that went nowhere: it
// proves nothing.
func (b *Backend) unprobe() {
	for {
		was := b.breaker.Load()
		if BreakerState(was>>32) != HalfOpen || b.breaker.CompareAndSwap(was, was+1) {
			return
		}
	}
}

// budget bounds retries to a share of the requests of the last second or so,
// beside a few that are always allowed. Its zero value is ready.
type budget struct {
	mu               sync.Mutex
	free             gcra
	since            int64    // when the half window began
	requests         uint64   // the count of requests then
	retries          [2]int64 // of the half window, and of the one before it
	recent           float64  // requests of the one before it
	granted, refused uint64
}

// freeRetries a second are allowed whatever the budget is: a backend with few
// requests would have none.
const freeRetries = 10

// budgetHalf is half of the window over which requests and retries are compared:
// short, for what a long one saved would burst when a backend turns bad.
const budgetHalf = int64(time.Second / 2)

var freeRate = rate{every: int64(time.Second) / freeRetries, burst: freeRetries}

// spend asks for one retry. requests is the count of all first attempts so far.
func (r *budget) spend(now int64, percent int, requests uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.turnOver(now, requests)
	if wait, next := freeRate.pass(now, r.free.tat.Load()); wait == 0 {
		r.free.tat.Store(next)
		r.granted++
		return true
	}
	if float64(100*(r.retries[0]+r.retries[1]+1)) > float64(percent)*(r.recent+float64(requests-r.requests)) {
		r.refused++
		return false
	}
	r.retries[0]++
	r.granted++
	return true
}

// look keeps the window in step with the time while nobody asks for retries.
func (r *budget) look(now int64, requests uint64) {
	r.mu.Lock()
	r.turnOver(now, requests)
	r.mu.Unlock()
}

func (r *budget) turnOver(now int64, requests uint64) {
	if r.since == 0 {
		r.since, r.requests = now, requests
	}
	gone := now - r.since
	if gone < budgetHalf {
		return
	}
	// If nobody looked for longer than a half, all that time counts as its mean.
	half := float64(budgetHalf) / float64(gone)
	r.recent = float64(requests-r.requests) * half
	r.retries[1], r.retries[0] = int64(float64(r.retries[0])*half), 0
	r.since, r.requests = now, requests
}

// requests counts those that asked for a first endpoint.
func (b *Backend) requests() uint64 {
	n := uint64(0)
	for i := range b.stripes {
		n += b.stripes[i].requests.Load()
	}
	return n
}
