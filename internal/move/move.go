// Package move is the transfer of flows from one owner to another: one
// protocol, two carriers. Local hands descriptors to another process of the
// host; Remote hands the state of sockets to another host.
//
// A batch goes through these steps. Beside each stands what undoes it, until
// the commit; after it the giver can only forget.
//
//	giver                       taker                        undone by
//	prepare (hosts only)  --->  holds the tuples        <--- Abort: drops the hold
//	parks, freezes                                           thaws its own frozen flows
//	offer                 --->  checks, restores, quiet <--- Abort or end of file: discards them
//	                      <---  taken, or refused
//	commit                --->  owns, goes live               nothing: the point of no return
//	forgets               <---  adopted
//
// Exactly one side owns a flow at any instant: the giver until its Commit is
// on the way, the taker from the moment it reads it. If the giver cannot tell
// whether a commit arrived, the flow counts as lost and is closed, never
// served twice.
package move

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// Protocol is the number of this protocol; both sides must speak the same.
const Protocol = 1

// Kind is the kind of a message. The numbers go over the wire: append only.
type Kind uint8

// The kinds.
const (
	Hello   Kind = 1  // Greeting, first from either side
	Inherit Kind = 2  // Heritage, with the listeners' descriptors (local)
	Ready   Kind = 3  // the taker can serve
	Accept  Kind = 4  // the taker shall accept new connections from now on (local)
	Prepare Kind = 5  // Tuples that are about to come (remote)
	Held    Kind = 6  // the tuples are held
	Offer   Kind = 7  // an encoded frozen.Batch, with descriptors if local
	Taken   Kind = 8  // all flows of the offer could be restored
	Refuse  Kind = 9  // Refusal: none was, and why
	Commit  Kind = 10 // the flows are the taker's
	Adopted Kind = 11 // Adoption: they are served
	Abort   Kind = 12 // the offer, or the preparation, is void
	Done    Kind = 13 // nothing more comes
	Settled Kind = 14 // the taker has all it needs; the giver may go
	Copy    Kind = 15 // duplicates of descriptors that are still served (local)
	Copied  Kind = 16 // Held: so many are held, there is room for so many more
	Drop    Kind = 17 // cookies of copies that are not needed any more
	Look    Kind = 18 // Watch: the taker is to observe what it has adopted
	Seen    Kind = 19 // Sight: what it saw
	Idle    Kind = 20 // idle backend legs of the loops' pools, the taker's from here on
	Residue Kind = 21 // Remains: what drains in the giver, after Settled
	Ask     Kind = 22 // Question, of one node to another (remote)
	Answer  Kind = 23 // what was asked for (remote)
	Begin   Kind = 24 // Coming: flows are about to come, until Done (remote)
)

var kindNames = [...]string{"none", "hello", "inherit", "ready", "accept", "prepare", "held", "offer", "taken", "refuse", "commit", "adopted", "abort", "done", "settled", "copy", "copied", "drop", "look", "seen", "idle", "residue", "ask", "answer", "begin"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Greeting says who is there.
type Greeting struct {
	Protocol int    `json:"protocol"`
	Format   int    `json:"format"` // of frozen batches
	Release  string `json:"release"`
	Node     string `json:"node"`
	PID      int    `json:"pid"`
	// SourcePorts, the first and the last, are those from which this side
	// dials when it dials from a movable address (remote).
	SourcePorts [2]uint16 `json:"source_ports,omitzero"`
	// Late: this side takes further Inherit messages, each a [Knowledge], until
	// Accept (local).
	Late bool `json:"late,omitempty"`
	// Features are the parts of the protocol that this side speaks beyond those
	// that all releases of it do.
	Features []string `json:"features,omitempty"`
}

// Check refuses a side that speaks another language.
func (g Greeting) Check() error {
	if g.Protocol != Protocol || g.Format != frozen.Format {
		return &frozen.Refused{What: "release " + g.Release, Why: fmt.Sprintf("speaks protocol %d and format %d, this one %d and %d", g.Protocol, g.Format, Protocol, frozen.Format)}
	}
	return nil
}

// Heritage is what a process leaves to its successor, beside flows.
type Heritage struct {
	Generation uint64           `json:"generation"`
	Source     []byte           `json:"source"` // the configuration in force, as written
	File       string           `json:"file"`
	Held       map[string]int64 `json:"held"` // connections per endpoint
	LastID     uint64           `json:"last_id"`
	LastPlace  uint64           `json:"last_place"`
	Listeners  []string         `json:"listeners"` // VIPs, in the order of the descriptors
	// Host is what the kernel side of moves between hosts needs to go on.
	Host json.RawMessage `json:"host,omitempty"`
	// Names are the addresses of endpoints that are names.
	Names json.RawMessage `json:"names,omitempty"`
	// State is the desired state with all that lies over the file; Source says the
	// same without telling them apart.
	State json.RawMessage `json:"state,omitempty"`
	// Features are those of the giver. A release without them takes only what every
	// release does.
	Features []string `json:"features,omitempty"`
	Release  string   `json:"release,omitempty"`
	PID      int      `json:"pid,omitempty"`
	// Order is what the successor is to apply before it is ready, if anything.
	Order json.RawMessage `json:"order,omitempty"`
}

// Knowledge is what a process knows of endpoints and clients at the last moment
// before its successor serves. A part that the taker cannot read it does
// without.
type Knowledge struct {
	Health json.RawMessage `json:"health,omitempty"` // standings, and what they came from
	Sticky json.RawMessage `json:"sticky,omitempty"` // tables of who belongs where
	Flows  json.RawMessage `json:"flows,omitempty"`  // what is being done to flows, and is not done yet
	State  json.RawMessage `json:"state,omitempty"`  // Heritage.State as it is by now
	Ledger json.RawMessage `json:"ledger,omitempty"` // rates, budgets, latencies, turns
	Events json.RawMessage `json:"events,omitempty"` // what happened last
}

// Question is what one node asks of another beside flows. What it is called says who
// answers.
type Question struct {
	What string          `json:"what"`
	Body json.RawMessage `json:"body,omitempty"`
}

// Coming announces flows from another host.
type Coming struct {
	// Talk is what the giver calls this conversation, should it ask for its outcome in
	// another one.
	Talk string `json:"talk"`
	// Held is what the giver holds at each endpoint, in connections, and it will be no
	// more: the taker counts it under its own limits until Done. Waits are the backends
	// where somebody waits at the giver: nobody is granted anything there until Done.
	Held  map[string]int64 `json:"held,omitempty"`
	Waits []string         `json:"waits,omitempty"`
}

// Refusal names what could not be taken.
type Refusal struct {
	Flow  uint64 `json:"flow"` // 0: the whole batch
	What  string `json:"what"`
	Why   string `json:"why"`
	Retry bool   `json:"retry"`
	// Flows are those of a lot that cannot be held, each by itself; the others can.
	// Empty: it is not known which, and What and Why are of all.
	Flows []Refusal `json:"flows,omitempty"`
	// Cookies are of copies that the offer names and the taker has not.
	Cookies []uint64 `json:"cookies,omitempty"`
}

// Adoption tells what became of a batch.
type Adoption struct {
	Pauses []int64 `json:"pauses"` // nanoseconds by flow, where the two share a clock
	Lost   int     `json:"lost"`
}

// Message is one message of the protocol.
type Message struct {
	Kind Kind
	// Lot is the number of the lot that it speaks of: in Offer, Commit and Abort, and
	// in what answers them. 0 is a release that numbers none.
	Lot uint16
	// Body is the sender's again when Send returns. Of an Offer that was received it is
	// valid until the next Receive.
	Body []byte
	FDs  []sock.FD // the receiver's
}

// Into decodes a JSON body.
func (m Message) Into(v any) error {
	if err := json.Unmarshal(m.Body, v); err != nil {
		return fmt.Errorf("move: %v: %w", m.Kind, err)
	}
	return nil
}

// ErrBegun: the time was over when a message of several parts was under way. The
// rest of it goes before the next message.
var ErrBegun = errors.New("move: a message is under way")

// Gone tells that the other end of a channel is closed.
func Gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, sock.BrokenPipe) || errors.Is(err, sock.Reset)
}

// Carrier takes messages to the other side and back, in order. Calls may
// wait; it is never used on a loop's thread. A call whose time is over gives
// [os.ErrDeadlineExceeded]: nothing was sent, but for [ErrBegun], or received.
type Carrier interface {
	Send(Message) error
	Receive() (Message, error) // io.EOF: the other side is gone
	SetTimeout(time.Duration) error
	Close() error
}

// SendJSON sends v as the body of a message.
func SendJSON(c Carrier, k Kind, v any, fds ...sock.FD) error {
	m, err := message(k, v)
	if err != nil {
		return err
	}
	m.FDs = fds
	return c.Send(m)
}

func message(k Kind, v any) (Message, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return Message{}, fmt.Errorf("move: %v: %w", k, err)
	}
	return Message{Kind: k, Body: body}, nil
}

// Expect receives a message of kind k. A Refuse in its place is a
// [frozen.Refused]; anything else is a breach of the protocol.
func Expect(c Carrier, k Kind) (Message, error) {
	m, err := c.Receive()
	if err != nil {
		return m, fmt.Errorf("move: waiting for %v: %w", k, err)
	}
	switch m.Kind {
	case k:
		return m, nil
	case Refuse:
		var r Refusal
		if err := m.Into(&r); err != nil {
			return m, err
		}
		return m, &frozen.Refused{What: r.What, Why: r.Why, Retry: r.Retry}
	}
	return m, fmt.Errorf("move: %v came where %v was due", m.Kind, k)
}
