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
	"net/netip"
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
	Queued    State = 1 // wants an endpoint with room
	Dialing   State = 2 // has an endpoint, its leg is not connected yet
	Relaying  State = 3 // octets move, in both halves or in one
	Done      State = 4 // nothing is wanted any more; never frozen
	Reading   State = 5 // a head or a PROXY header is to come, or half of it is here
	Answering State = 6 // an answer of our own is being sent
	Lingering State = 7 // all is sent, FIN as well; what still comes is thrown away
	Sunk      State = 8 // its endpoint is a sink that holds: what comes is thrown away, nothing is said
)

var stateNames = [...]string{"none", "queued", "dialing", "relaying", "done", "reading", "answering", "lingering", "sunk"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// legal lists the moves between states; become holds to it.
var legal = [...][]State{
	Reading:   {Queued, Answering, Lingering, Done},
	Queued:    {Dialing, Answering, Sunk, Done},
	Dialing:   {Queued, Relaying, Answering, Done},           // back to the queue: another endpoint is tried
	Relaying:  {Queued, Reading, Answering, Lingering, Done}, // back to the queue: a pooled leg was dead
	Answering: {Reading, Lingering, Done},
	Lingering: {Done},
	Sunk:      {Done},
	Done:      {},
}

// Cause tells why a flow or an exchange ended. The numbers are those of
// frozen.Entry: append, never renumber.
type Cause uint8

// The causes. All but the first four are decisions of ours.
const (
	NotEnded      Cause = iota
	Finished            // both sides sent FIN
	ClientReset         // the client's leg broke
	BackendReset        // the backend's leg broke
	NoEndpoint          // no endpoint could be connected
	QueueFull           // the queue for an endpoint had no place left
	QueueTimeout        // waited longer than queueTime
	IdleTimeout         // nothing moved for idleTimeout
	Killed              // an operator or a change of the configuration ended it
	Broken              // our own invariant broke; see the log
	BadRequest          // the client sent what is no request, or more than it may
	BadResponse         // the backend sent what is no response, or only a part of one
	HeadTimeout         // a request's head took longer than its timeout
	AnswerTimeout       // the backend did not begin to answer in time
	Refused             // our own answer, and the end of the connection with it
	RateLimited         // more requests than a rate allows
	BreakerOpen         // the backend fails most requests and is not asked for a while
	RetriesSpent        // a further attempt was due and the budget for them is spent
	Dropped             // its endpoint is a sink
	Shed                // ended since memory is short
	causesEnd           // not a cause
)

var causeNames = [...]string{"none", "finished", "client-reset", "backend-reset", "no-endpoint", "queue-full", "queue-timeout", "idle-timeout", "killed", "broken",
	"bad-request", "bad-response", "head-timeout", "answer-timeout", "refused",
	"rate-limited", "breaker-open", "retries-spent", "dropped", "shed"}

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
	keep     bool   `frozen:"H1.request"` // buf[:off] may have to be sent again
	ended    bool   `frozen:"ended"`
	shut     bool   `frozen:"shut"`
	broken   bool   `frozen:"broken"`
	fulls    uint8  `frozen:"-" why:"a guess about the near future that the next full reads renew"`
	attempts uint8  `frozen:"Flow.attempts"`                        // of the backend's leg: those to have it that were in vain
	facts    facts  `frozen:"Flow.facts"`                           // of the backend's leg
	spent    micros `frozen:"Flow.wait_micros,Flow.connect_micros"` // of the client's leg in the queue, of the backend's until it was there
	received uint64 `frozen:"received"`
	sent     uint64 `frozen:"sent"`
}

func (h *half) due() []byte { return h.buf[h.off:] }

// bulk tells whether pipes are worth it for what comes from the leg.
func (h *half) bulk() bool { return h.fulls >= bulkAfter }

// facts are of a backend leg, whether it is there or wanted. Append, never
// renumber.
type facts uint8

const (
	stuck  facts = 1 << iota // its endpoint was chosen because the client was there before
	paid                     // the attempt is counted in the budget of retries
	parted                   // of a flow of octets: it ends, as finish.go says
)

// marks are of a flow that is not at rest, or Done.
type marks uint8

const (
	reusable marks = 1 << iota // the leg that the flow leaves may serve further requests
	gentle                     // though we ended it, it owes nothing
)

// Flow is one client connection and all it alone owns. Make one with [New] or
// [Thaw]; the zero value is not a flow. It holds no buffer while it is idle,
// and between two requests not even the place for one: an idle client of HTTP
// costs no more than this struct.
type Flow struct {
	id       uint64             `frozen:"id"`
	listener *config.Listener   `frozen:"listener"`
	*work    `frozen:"backend"` // nil between requests
	born     Instant            `frozen:"age_nanos"`
	at       Instant            `frozen:"left_nanos"`  // relaying: when octets last moved; before: the deadline, 0 = none
	received uint64             `frozen:"H1.received"` // of the client leg, before work.legs began to count
	sent     uint64             `frozen:"H1.sent"`
	client   Address            `frozen:"client_address"`
	requests uint32             `frozen:"H1.requests"`
	moves    uint32             `frozen:"moves"`
	state    State              `frozen:"state"`
	cause    Cause              `frozen:"-" why:"only of a flow that is Done or about to be"`
	marks    marks              `frozen:"-" why:"of a leg that the runner takes away before the flow is at rest, and of a flow that is Done"`
	last     Phase              `frozen:"-" why:"only of a flow that is Done: where it was before"`
}

// work is what a flow needs from its first octet to the end of a request, or,
// without HTTP, all its life. Works are lent by the runner.
type work struct {
	backend  *config.Backend  `frozen:"Flow.backend"`
	endpoint *config.Endpoint `frozen:"Flow.endpoint"` // its slot is held from Secured on
	legs     [2]half          `frozen:"Flow.client,Flow.legs"`
	place    uint64           `frozen:"Flow.place"`
	tried    uint64           `frozen:"Flow.tried"`
	x        *exchange        `frozen:"Flow.h1"`  // nil: octets pass as they are
	entry    *entry           `frozen:"H1.entry"` // nil: nothing is under way that was not told
}

// Address is an IP address and a port, small. The zero value is none.
type Address struct {
	ip   [16]byte `frozen:"Flow.client_address"`
	port uint16   `frozen:"Flow.client_address"`
}

// AddressOf is a, as an Address.
func AddressOf(a netip.AddrPort) Address {
	if !a.IsValid() {
		return Address{}
	}
	return Address{a.Addr().As16(), a.Port()}
}

// AddrPort is a, IPv4 as such; invalid if a is none.
func (a Address) AddrPort() netip.AddrPort {
	if a == (Address{}) {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(netip.AddrFrom16(a.ip).Unmap(), a.port)
}

// New makes the flow of a connection that was just accepted by l from the
// client's address. b is where a flow without HTTP goes; for HTTP it is nil.
func New(now Instant, id uint64, l *config.Listener, b *config.Backend, client Address, lender *Lender) Flow {
	f := Flow{id: id, listener: l, born: now, client: client, state: Queued}
	greeted := len(l.ProxyFrom) > 0 && config.Holds(l.ProxyFrom, client.AddrPort().Addr())
	switch {
	case greeted:
		f.state = Reading
		f.begin(lender)
		f.x.flags |= greeting
		f.backend = b
		f.at = after(now, headTimeout(l))
	case l.Protocol == config.HTTP:
		f.state = Reading
		f.at = after(now, idleTimeout(l.Rules))
	default:
		f.work = lender.works.lend()
		f.backend = b
		f.at = after(now, b.QueueTime)
	}
	return f
}

// greetingTimeout bounds the wait for a PROXY header where no other timeout does.
const greetingTimeout = 10 * time.Second

// headTimeout is how long a head may take.
func headTimeout(l *config.Listener) time.Duration {
	if l.Rules == nil {
		return greetingTimeout
	}
	return l.Rules.HeaderTimeout
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

// Backend is the object whose policy rules the flow; nil between requests.
func (f *Flow) Backend() *config.Backend {
	if f.work == nil {
		return nil
	}
	return f.backend
}

// Endpoint is the one whose slot the flow holds, or nil.
func (f *Flow) Endpoint() *config.Endpoint {
	if f.work == nil {
		return nil
	}
	return f.endpoint
}

// Client is the address of the client: that of its socket, or what a PROXY
// header said.
func (f *Flow) Client() netip.AddrPort { return f.client.AddrPort() }

// Tried has bit i set when endpoint i of the backend was tried in vain
// (endpoints beyond the 64th share bits). Only of a flow that is Queued.
func (f *Flow) Tried() uint64 {
	if f.work == nil {
		return 0
	}
	return f.tried
}

// Attempt is the number of the current attempt to connect, from 0.
func (f *Flow) Attempt() int {
	if f.work == nil {
		return 0
	}
	return int(f.legs[Backend].attempts)
}

// Place is the flow's place in the fair queue, 0 if it never waited.
func (f *Flow) Place() uint64 {
	if f.work == nil {
		return 0
	}
	return f.place
}

// SetPlace notes the place that the queue gave to a flow that is Queued; it
// keeps it through moves.
func (f *Flow) SetPlace(p uint64) {
	f.place = p
	f.legs[Backend].facts |= paid // the ledger has counted what it lets wait
}

// Requests is how many requests of HTTP were begun on the flow.
func (f *Flow) Requests() int { return int(f.requests) }

// Reusable tells, once Endpoint is nil again, whether the backend leg that the
// flow leaves may serve further requests: of any flow that would dial the same.
func (f *Flow) Reusable() bool { return f.marks&reusable != 0 }

// Spoilt tells whether the backend leg is good for nothing after this exchange.
func (f *Flow) Spoilt() bool { return f.work == nil || f.x == nil || f.x.flags&spoilt != 0 }

// part leaves the endpoint: the runner sees that and gives the slot back.
func (f *Flow) part(reuse bool) {
	f.endpoint = nil
	if f.marks &^= reusable; reuse {
		f.marks |= reusable
	}
}

// Fresh tells whether the backend leg that is wanted must not be one that
// served requests before.
func (f *Flow) Fresh() bool { return f.work == nil || f.x == nil || f.x.flags&fresh != 0 }

// Wary tells whether a leg that served before must be looked at before it is
// taken: what is sent on it cannot be sent again.
func (f *Flow) Wary() bool { return f.work == nil || f.x == nil || f.x.flags&repeatable == 0 }

// Speaks tells what is passed: HTTP, or, of a tunnel too, octets.
func (f *Flow) Speaks() config.Protocol {
	if f.state == Reading && f.listener.Protocol == config.HTTP || f.work != nil && f.x != nil {
		return config.HTTP
	}
	return config.TCP
}

// Born is when the flow was accepted, on the runner's clock.
func (f *Flow) Born() Instant { return f.born }

// Still is for how long nothing has moved in a flow that is relaying.
func (f *Flow) Still(now Instant) time.Duration { return time.Duration(now - f.at) }

// Moves is how often the flow has been thawed.
func (f *Flow) Moves() int { return int(f.moves) }

// Cause tells why a flow that is Done ended.
func (f *Flow) Cause() Cause { return f.cause }

// Received and Sent count the octets of a leg since it began.
func (f *Flow) Received(s Side) (n uint64) {
	if s == Client {
		n = f.received
	}
	if f.work != nil {
		n += f.legs[s].received
	}
	return n
}

// Sent counts the octets that the leg's kernel has taken.
func (f *Flow) Sent(s Side) (n uint64) {
	if s == Client {
		n = f.sent
	}
	if f.work != nil {
		n += f.legs[s].sent
	}
	return n
}

// Unsent is how many octets are due to the leg.
func (f *Flow) Unsent(s Side) int {
	if f.work == nil {
		return 0
	}
	return len(f.legs[s].due())
}

// Ended tells that the peer of the leg has sent FIN and it was read.
func (f *Flow) Ended(s Side) bool { return f.work != nil && f.legs[s].ended }

// Shut tells that we have sent FIN on the leg.
func (f *Flow) Shut(s Side) bool { return f.work != nil && f.legs[s].shut }

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
