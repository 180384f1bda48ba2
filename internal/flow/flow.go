// Package flow is the value that Holdfast moves: one client connection with
// everything it alone owns. It joins a client leg and a backend leg; it learns
// facts by [Flow.Step] and says what it wants by [Flow.Wants]. It does no I/O,
// reads no clock and refers, at rest, to nothing outside itself but the
// immutable objects of the configuration that rule it, and those by name once
// it is frozen. Whatever runs it (a loop, the simulation, a test) owns it;
// between two Steps it is at rest and may be put down (freeze.go).
package flow

import (
	"fmt"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
)

// Instant is a point on the runner's monotonic clock, in nanoseconds. Its zero
// is never a real time, so a zero Instant is "none".
type Instant int64

// Add returns the instant d later.
func (i Instant) Add(d time.Duration) Instant { return i + Instant(d) }

// Side names a leg of a flow.
type Side uint8

// The two sides.
const (
	Client  Side = iota // the leg that the client opened
	Backend             // the leg that we dialled
)

// Other is the opposite side.
func (s Side) Other() Side { return s ^ 1 }

func (s Side) String() string {
	if s == Client {
		return "client"
	}
	return "backend"
}

// State is where a flow stands. The numbers are those of frozen.Flow_State:
// append, never renumber.
type State uint8

// The states.
const (
	Queued   State = 1 // wants an endpoint with room
	Dialing  State = 2 // has an endpoint, its leg is not connected yet
	Relaying State = 3 // octets move, in both halves or in one
	Done     State = 4 // nothing is wanted any more; never frozen
)

var stateNames = [...]string{"none", "queued", "dialing", "relaying", "done"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// legal lists the moves between states; become holds to it.
var legal = [...][]State{
	Queued:   {Dialing, Done},
	Dialing:  {Queued, Relaying, Done}, // back to the queue: another endpoint is tried
	Relaying: {Done},
	Done:     {},
}

// Cause tells why a flow ended.
type Cause uint8

// The causes. All but the first three are decisions of ours.
const (
	NotEnded     Cause = iota
	Finished           // both sides sent FIN
	ClientReset        // the client's leg broke
	BackendReset       // the backend's leg broke
	NoEndpoint         // no endpoint could be connected
	QueueFull          // the queue for an endpoint had no place left
	QueueTimeout       // waited longer than queueTime
	IdleTimeout        // nothing moved for idleTimeout
	Killed             // an operator or a change of the configuration ended it
	Broken             // our own invariant broke; see the log
	causesEnd          // not a cause
)

var causeNames = [...]string{"none", "finished", "client-reset", "backend-reset", "no-endpoint", "queue-full", "queue-timeout", "idle-timeout", "killed", "broken"}

// Causes is how many causes there are, for tables indexed by Cause.
const Causes = int(causesEnd)

func (c Cause) String() string { return causeNames[c] }

// half is what a flow keeps for one of its legs.
type half struct {
	// buf[off:] are the octets due to this leg. During a turn buf may lie in
	// the runner's scratch; Settle moves what is left into a lent block.
	buf      []byte `frozen:"unsent"`
	off      uint32 `frozen:"unsent"`
	lent     bool   `frozen:"-" why:"tells where buf lies, not what it holds"`
	ended    bool   `frozen:"ended"`
	shut     bool   `frozen:"shut"`
	broken   bool   `frozen:"broken"`
	bulk     bool   `frozen:"-" why:"a guess about the near future that the next full reads renew"`
	fulls    uint8  `frozen:"-" why:"part of the same guess"`
	received uint64 `frozen:"received"`
	sent     uint64 `frozen:"sent"`
}

func (h *half) due() []byte { return h.buf[h.off:] }

// Flow is one client connection and all it alone owns. Make one with [New] or
// [Thaw]; the zero value is not a flow. It holds no buffer while it is idle.
type Flow struct {
	id       uint64           `frozen:"id"`
	listener *config.Listener `frozen:"listener"`
	backend  *config.Backend  `frozen:"backend"`
	endpoint *config.Endpoint `frozen:"endpoint"` // its slot is held from Secured on
	legs     [2]half          `frozen:"client,legs"`
	born     Instant          `frozen:"age_nanos"`
	at       Instant          `frozen:"left_nanos"` // relaying: when octets last moved; before: the deadline, 0 = none
	place    uint64           `frozen:"place"`
	tried    uint64           `frozen:"tried"`
	moves    uint32           `frozen:"moves"`
	attempts uint8            `frozen:"attempts"`
	state    State            `frozen:"state"`
	cause    Cause            `frozen:"-" why:"only of a flow that is Done, and such a flow never moves"`
}

// New makes the flow of a connection that was just accepted by l and is to go
// to b.
func New(now Instant, id uint64, l *config.Listener, b *config.Backend) Flow {
	f := Flow{id: id, listener: l, backend: b, born: now, state: Queued}
	f.at = after(now, b.QueueTime)
	return f
}

func after(now Instant, d time.Duration) Instant {
	if d <= 0 {
		return 0
	}
	return now.Add(d)
}

// ID is the same for all of a flow's life, on every host.
func (f *Flow) ID() uint64 { return f.id }

// State tells where the flow stands.
func (f *Flow) State() State { return f.state }

// Listener is the object that accepted the flow, as it was then.
func (f *Flow) Listener() *config.Listener { return f.listener }

// Backend is the object whose policy rules the flow.
func (f *Flow) Backend() *config.Backend { return f.backend }

// Endpoint is the one whose slot the flow holds, or nil.
func (f *Flow) Endpoint() *config.Endpoint { return f.endpoint }

// Tried has bit i set when endpoint i of the backend was tried in vain
// (endpoints beyond the 64th share bits).
func (f *Flow) Tried() uint64 { return f.tried }

// Attempt is the number of the current attempt to connect, from 0.
func (f *Flow) Attempt() int { return int(f.attempts) }

// Place is the flow's place in the fair queue, 0 if it never waited.
func (f *Flow) Place() uint64 { return f.place }

// SetPlace notes the place that the queue gave; a flow keeps it through moves.
func (f *Flow) SetPlace(p uint64) { f.place = p }

// Born is when the flow was accepted, on the runner's clock.
func (f *Flow) Born() Instant { return f.born }

// Still is for how long nothing has moved in a flow that is relaying.
func (f *Flow) Still(now Instant) time.Duration { return time.Duration(now - f.at) }

// Moves is how often the flow has been thawed.
func (f *Flow) Moves() int { return int(f.moves) }

// Cause tells why a flow that is Done ended.
func (f *Flow) Cause() Cause { return f.cause }

// Received and Sent count the octets of a leg since it began.
func (f *Flow) Received(s Side) uint64 { return f.legs[s].received }

// Sent counts the octets that the leg's kernel has taken.
func (f *Flow) Sent(s Side) uint64 { return f.legs[s].sent }

// Unsent is how many octets are due to the leg.
func (f *Flow) Unsent(s Side) int { return len(f.legs[s].due()) }

// Ended tells that the peer of the leg has sent FIN and it was read.
func (f *Flow) Ended(s Side) bool { return f.legs[s].ended }

// Shut tells that we have sent FIN on the leg.
func (f *Flow) Shut(s Side) bool { return f.legs[s].shut }

// become is the one writer of the state.
func (f *Flow) become(to State) {
	for _, s := range legal[f.state] {
		if s == to {
			f.state = to
			return
		}
	}
	panic(fmt.Sprintf("flow: f-%x may not go from %v to %v", f.id, f.state, to))
}
