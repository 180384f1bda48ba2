package ledger

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
)

// Options are what a ledger is made with.
type Options struct {
	// Policy chooses endpoints; package balance provides it.
	Policy Policy
	// Ring tells a loop that a waiter of its has been served, Open tells all loops
	// that accepting may go on. Both are called from any thread and must not block.
	Ring func(loop int, token uint64)
	Open func()
	// Alarm tells that somebody should judge a backend's endpoints: one has failed as
	// often in a row as its Eject says, or a request of a half-open breaker has
	// failed. It is called from any thread and must not block; nil is nobody.
	Alarm func(backend string)
	// Zone is the node's.
	Zone string
}

// Policy makes rosters. accounts are in the order of c's endpoints; old is the
// roster of the same version that the new one replaces, nil if there is none.
type Policy interface {
	Roster(c *config.Backend, accounts []*Endpoint, zone string, old Roster) Roster
}

// Roster chooses among the endpoints of one version of a backend, in the standings
// that they had when it was made. It is immutable, and used by all loops at once.
type Roster interface {
	// Pick gives the index of an endpoint with room that was not tried, or -1.
	// turn is never the same twice, and counts up by one over all loops.
	Pick(a Asking, turn uint64) int
	// Sticky tells whether endpoint i serves those that are sticky to it.
	Sticky(i int) bool
	// Held tells that nothing serves, but some endpoint is held: wait, do not fail.
	Held() bool
	// Serving is how many serve something new.
	Serving() int
}

// Asking is what somebody who asks for an endpoint says.
type Asking struct {
	Tried uint64 // bit i%64 of each endpoint that was tried in vain
	Place uint64 // the place in the queue from before a move; 0 is none
	Key   uint64 // hash of what Maglev or a sticky table goes by; 0 is none
	Stuck int    // 1 + the index of the endpoint that a valid cookie names; 0 is none
	Class config.Priority
	Retry bool // a further attempt: it counts against the budget
	Loop  int
	Token uint64
	Now   int64 // the loops' clock, in nanoseconds
}

// Admin is what the operator wants of an endpoint. Append-only.
type Admin uint8

const (
	Ready       Admin = iota // it serves
	Quiescing                // nothing new but what is sticky to it
	Held                     // nothing at all; who finds no other endpoint waits
	Maintenance              // nothing at all
)

var adminWords = []string{"ready", "quiescing", "held", "maintenance"}

// String gives the word for a.
func (a Admin) String() string { return word(adminWords, uint8(a)) }

// Health is what checks have found. Append-only.
type Health uint8

const (
	Unknown  Health = iota // nobody checks it; it serves
	Checking               // its first check is under way: it does not serve yet
	Up                     // it serves
	Down                   // it does not
	Draining               // it says that it wants nothing new
)

var healthWords = []string{"unknown", "checking", "up", "down", "draining"}

// String gives the word for h.
func (h Health) String() string { return word(healthWords, uint8(h)) }

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

func word(words []string, n uint8) string {
	if int(n) < len(words) {
		return words[n]
	}
	return fmt.Sprintf("unknown(%d)", n)
}

// Standing is how an endpoint stands: what rules whether it is chosen.
type Standing struct {
	Admin    Admin
	Health   Health
	Ejected  bool
	Weight   int // the operator's; -1: that of the file
	Permille int // of the weight: slow start, or what an agent says; 1000 is all
}

// Standing is how the endpoint stands now.
func (e *Endpoint) Standing() Standing { return Standing{Weight: -1, Permille: 1000} }

// Room tells whether one more connection may be opened to the endpoint.
func (e *Endpoint) Room() bool {
	n := e.limit.Load()
	return n == 0 || e.InUse()+e.Foreign() < n
}

// Stand changes the standing of the endpoint of that full name and gives the new
// one. When it returns no loop chooses by the old one any more.
func (b *Backend) Stand(full string, change func(*Standing)) Standing { panic("wip") }

// StandMany is Stand for many endpoints at once, by full name.
func (b *Backend) StandMany(changes map[string]func(*Standing)) { panic("wip") }

// Note records the outcome of an attempt: what it took until the answer, 0 if that
// is not known.
func (e *Endpoint) Note(now int64, good bool, took time.Duration) {}

// Tries counts the attempts at the endpoint, and those that failed.
func (e *Endpoint) Tries() (attempts, failures uint64) { return }

// Consecutive is how many attempts have failed since the last good one.
func (e *Endpoint) Consecutive() int { return 0 }

// Latency is the peak-sensitive moving average of what answers took.
func (e *Endpoint) Latency() time.Duration { return 0 }

// Tries counts the attempts at all endpoints, and those that failed.
func (b *Backend) Tries() (attempts, failures uint64) { return }

// SetBreaker changes what the breaker lets through; probes counts for HalfOpen.
func (b *Backend) SetBreaker(s BreakerState, probes int) {}

// Breaker is what the breaker lets through.
func (b *Backend) Breaker() BreakerState { return Closed }

// Pass judges a request by the rates of the listener and its route (-1: none) for
// the source. 0: it passes and is counted by each of them; else none counts
// it, and the duration is what it would have to wait.
func (l *Ledger) Pass(now int64, lis *config.Listener, route int, source netip.Addr) time.Duration {
	return 0
}

// AcceptWait judges a new connection by the listener's rate. 0: it is counted;
// else how long accepting pauses.
func (l *Ledger) AcceptWait(now int64, lis *config.Listener) time.Duration { return 0 }

// AcceptNone takes back what AcceptWait has just counted: there was no
// connection, another loop had been faster.
func (l *Ledger) AcceptNone(lis *config.Listener) {}

// EnterSource judges a new connection by the rate and the limit of its source,
// and counts it if it may come in.
func (l *Ledger) EnterSource(now int64, lis *config.Listener, a netip.Addr) bool { return true }

// AdmitSource counts a connection of the source that was let in elsewhere.
func (l *Ledger) AdmitSource(lis *config.Listener, a netip.Addr) {}

// LeaveSource ends what EnterSource or AdmitSource counted.
func (l *Ledger) LeaveSource(lis *config.Listener, a netip.Addr) {}

// Learn makes the key sticky to the endpoint of that full name.
func (b *Backend) Learn(key uint64, endpoint string) {}

// Tables are the sticky tables of all backends by name, for a successor.
type Tables map[string]*Table

// Table is one sticky table, in columns.
type Table struct {
	Endpoints []string `json:"endpoints"` // full names
	Keys      []uint64 `json:"keys"`
	Of        []uint32 `json:"of"`        // index in Endpoints, for each key
	Millis    []uint64 `json:"ageMillis"` // since it was used last, for each key
}

// Tables gives what all sticky tables hold.
func (l *Ledger) Tables() Tables { return nil }

// Inherit takes over the tables of a predecessor.
func (l *Ledger) Inherit(t Tables) {}

// BackendStats are counts of a backend since the ledger was made.
type BackendStats struct {
	Requests                                 uint64 // that asked for an endpoint first
	RetriesGranted, RetriesRefused           uint64
	Tripped                                  uint64 // refused by the breaker
	Waits                                    uint64 // that have left the queue with a slot
	WaitNanos                                uint64 // what they waited in all
	Waiting                                  int
	Learned                                  int // entries of the sticky table
	EvictedFull, EvictedExpired, EvictedGone uint64
	Serving                                  int // endpoints that serve something new
	Breaker                                  BreakerState
}

// Stats gives the counts of the backend.
func (b *Backend) Stats() BackendStats { return BackendStats{} }

// RateStats are refusals by the rates of one listener.
type RateStats struct {
	Requests, SourceRequests uint64   // refused by the listener's rates
	Routes, SourceRoutes     []uint64 // and by those of its routes, by index
	Connections              uint64   // pauses of accepting
	Sources                  uint64   // connections that were refused to a source
	Tracked                  int      // sources that are remembered
	Evicted                  uint64   // sources that were forgotten for want of room
}

// Rates gives what was refused, by the name of the listener.
func (l *Ledger) Rates() map[string]RateStats { return nil }
