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
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
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
)

var kindNames = [...]string{"none", "hello", "inherit", "ready", "accept", "prepare", "held", "offer", "taken", "refuse", "commit", "adopted", "abort", "done", "settled"}

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
	// Held is what the giver holds at each endpoint, in connections: the taker
	// counts it under its own limits until the move is over.
	Held map[string]int64 `json:"held,omitempty"`
	// SourcePorts, the first and the last, are those from which this side
	// dials when it dials from a movable address (remote).
	SourcePorts [2]uint16 `json:"source_ports,omitzero"`
	// Late: this side takes further Inherit messages, each a [Knowledge], until
	// Accept (local).
	Late bool `json:"late,omitempty"`
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
}

// Knowledge is what a process knows of endpoints and clients at the last moment
// before its successor serves. A part that the taker cannot read it does
// without.
type Knowledge struct {
	Health json.RawMessage `json:"health,omitempty"` // standings, and what they came from
	Sticky json.RawMessage `json:"sticky,omitempty"` // tables of who belongs where
	Flows  json.RawMessage `json:"flows,omitempty"`  // what is being done to flows, and is not done yet
	State  json.RawMessage `json:"state,omitempty"`  // Heritage.State as it is by now
}

// Refusal names what could not be taken.
type Refusal struct {
	Flow  uint64 `json:"flow"` // 0: the whole batch
	What  string `json:"what"`
	Why   string `json:"why"`
	Retry bool   `json:"retry"`
}

// Adoption tells what became of a batch.
type Adoption struct {
	Pauses []int64 `json:"pauses"` // nanoseconds by flow, where the two share a clock
	Lost   int     `json:"lost"`
}

// Message is one message of the protocol.
type Message struct {
	Kind Kind
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

// Carrier takes messages to the other side and back, in order. Calls may
// wait; it is never used on a loop's thread.
type Carrier interface {
	Send(Message) error
	Receive() (Message, error) // io.EOF: the other side is gone
	SetTimeout(time.Duration) error
	Close() error
}

// SendJSON sends v as the body of a message.
func SendJSON(c Carrier, k Kind, v any, fds ...sock.FD) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("move: %v: %w", k, err)
	}
	return c.Send(Message{Kind: k, Body: body, FDs: fds})
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

// Local carries over a unix seqpacket channel, with descriptors.
type Local struct {
	c   sock.Channel
	buf []byte
}

// NewLocal makes a carrier over c, which it owns.
func NewLocal(c sock.Channel) *Local { return &Local{c: c, buf: make([]byte, sock.MessageMax)} }

// A message that is larger than the channel takes goes in parts; each begins
// with its kind, a flag that tells whether more follow, and two unused octets.
const partHeader = 4

// Send sends the message, in parts if it must. Descriptors go with the first.
func (l *Local) Send(m Message) error {
	fds, body := m.FDs, m.Body
	for {
		n := min(len(body), sock.MessageMax-partHeader)
		more := byte(0)
		if n < len(body) {
			more = 1
		}
		part := append([]byte{byte(m.Kind), more, 0, 0}, body[:n]...)
		if err := l.c.Send(part, fds); err != nil {
			return fmt.Errorf("move: %v: %w", m.Kind, err)
		}
		body, fds = body[n:], nil
		if more == 0 {
			return nil
		}
	}
}

// Receive waits for a whole message.
func (l *Local) Receive() (m Message, err error) {
	for {
		n, fds, err := l.c.Receive(l.buf)
		m.FDs = append(m.FDs, fds...)
		if err == nil && n < partHeader {
			err = fmt.Errorf("move: a part of %d octets", n)
		}
		if err == nil && len(m.Body)+n > frozen.BatchMax {
			err = fmt.Errorf("move: a message of more than %d octets", frozen.BatchMax)
		}
		if err != nil {
			for _, fd := range m.FDs {
				fd.Close()
			}
			return Message{}, err
		}
		m.Kind = Kind(l.buf[0])
		m.Body = append(m.Body, l.buf[partHeader:n]...)
		if l.buf[1] == 0 {
			return m, nil
		}
	}
}

// SetTimeout bounds each later call; 0 is for ever.
func (l *Local) SetTimeout(d time.Duration) error { return l.c.SetTimeout(int(d.Milliseconds())) }

// Close ends the channel.
func (l *Local) Close() error { return l.c.Close() }

// Remote carries over a stream, which must be encrypted and authenticated on
// both sides: octets of users are in it.
type Remote struct {
	c net.Conn
	d time.Duration
}

// NewRemote makes a carrier over c, which it owns.
func NewRemote(c net.Conn) *Remote { return &Remote{c: c} }

// Send sends the message. Descriptors cannot go to another host.
func (r *Remote) Send(m Message) error {
	if len(m.FDs) > 0 {
		return errors.New("move: descriptors do not go to another host")
	}
	out := make([]byte, 5, 5+len(m.Body))
	out[0] = byte(m.Kind)
	binary.BigEndian.PutUint32(out[1:], uint32(len(m.Body)))
	r.deadline()
	if _, err := r.c.Write(append(out, m.Body...)); err != nil {
		return fmt.Errorf("move: %v: %w", m.Kind, err)
	}
	return nil
}

// Receive waits for a whole message.
func (r *Remote) Receive() (Message, error) {
	var head [5]byte
	r.deadline()
	if _, err := io.ReadFull(r.c, head[:]); err != nil {
		return Message{}, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > frozen.BatchMax {
		return Message{}, fmt.Errorf("move: a message of %d octets, the limit is %d", n, frozen.BatchMax)
	}
	m := Message{Kind: Kind(head[0]), Body: make([]byte, n)}
	if _, err := io.ReadFull(r.c, m.Body); err != nil {
		return Message{}, fmt.Errorf("move: %v: %w", m.Kind, err)
	}
	return m, nil
}

func (r *Remote) deadline() {
	if r.d > 0 {
		_ = r.c.SetDeadline(time.Now().Add(r.d))
	} else {
		_ = r.c.SetDeadline(time.Time{})
	}
}

// SetTimeout bounds each later call; 0 is for ever.
func (r *Remote) SetTimeout(d time.Duration) error { r.d = d; return nil }

// Close ends the stream.
func (r *Remote) Close() error { return r.c.Close() }
