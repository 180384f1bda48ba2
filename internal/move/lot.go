package move

import (
	"encoding"
	"encoding/binary"
	"fmt"

	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// Lot is a few flows that move together, on the giver's side: parked, in no
// table, served by nobody. Legs name descriptors by their place in FDs, from 1;
// between hosts, what was saved of their sockets by its place in Sockets.
type Lot struct {
	Flows   []*frozen.Flow
	Objects []*frozen.Object // that the taker may not know
	FDs     []sock.FD
	Sockets []encoding.BinaryAppender
	Since   []int64 // by flow: when it was parked, on the host's clock
	// Of is what the giver keeps of it beside: from which loops it comes.
	Of any

	number  uint16
	state   lotState
	cookies []uint64   // as it was offered
	group   *hostGroup // whose tuples are its own, between hosts

	socketOctets int
}

// SocketOctets is how many octets of the offer between hosts were of Sockets.
func (l *Lot) SocketOctets() int { return l.socketOctets }

// NewLot makes a lot of flows that were parked a moment ago.
func NewLot(flows []*frozen.Flow, objects []*frozen.Object, fds []sock.FD, since []int64, of any) *Lot {
	return &Lot{Flows: flows, Objects: objects, FDs: fds, Since: since, Of: of, state: parked}
}

// lotState is where a lot is between its owners.
type lotState uint8

const (
	nowhere   lotState = iota // never parked, or split into others
	parked                    // the giver's
	offered                   // the giver's, and the taker looks at it
	returned                  // the giver serves it again
	committed                 // the taker's, or nobody's
	forgotten                 // the giver has let go of it
)

var lotStates = [...]string{"nowhere", "parked", "offered", "returned", "committed", "forgotten"}

func (s lotState) String() string { return lotStates[s] }

// lotMoves are the legal moves: none leads back, so nothing is thawed, committed
// or let go of twice.
var lotMoves = [...][]lotState{
	nowhere:   {},
	parked:    {offered, returned, nowhere},
	offered:   {parked, returned, committed, nowhere}, // parked: some of it is refused, and the rest is offered again
	returned:  {},
	committed: {forgotten},
	forgotten: {},
}

// to takes the lot one step further. A step that is not due is a breach of ours.
func (l *Lot) to(next lotState) error {
	for _, s := range lotMoves[l.state] {
		if s == next {
			l.state = next
			return nil
		}
	}
	return fmt.Errorf("move: lot %d is %v and cannot be %v", l.number, l.state, next)
}

// encode is the body of an offer, in the room of out if it is enough. With cookies it
// says first where each descriptor is: with the message (0), or held by the taker under
// its cookie.
func (l *Lot) encode(out []byte, cookies []uint64, withCookies bool) ([]byte, error) {
	if withCookies {
		out = binary.BigEndian.AppendUint16(out, uint16(len(cookies)))
		for _, c := range cookies {
			out = binary.BigEndian.AppendUint64(out, c)
		}
	}
	b := frozen.Batch{Flows: l.Flows, Objects: l.Objects}
	return b.AppendTo(out)
}

// encodeHost is the body of an offer to another host, in the room of out: the batch and
// each socket, behind its length. What users have queued is copied once. sockets is how
// many octets those take.
func (l *Lot) encodeHost(out []byte) (body []byte, sockets int, err error) {
	sized := func(write func([]byte) ([]byte, error)) (n int, err error) {
		at := len(out)
		if out, err = write(append(out, 0, 0, 0, 0)); err != nil {
			return 0, err
		}
		n = len(out) - at - 4
		binary.BigEndian.PutUint32(out[at:], uint32(n))
		return n, nil
	}
	b := frozen.Batch{Flows: l.Flows, Objects: l.Objects}
	if _, err := sized(b.AppendTo); err != nil {
		return nil, 0, err
	}
	for _, s := range l.Sockets {
		n, err := sized(s.AppendBinary)
		if err != nil {
			return nil, 0, err
		}
		sockets += n
	}
	return out, sockets, nil
}

// hostOfferOf reads it; batch and sockets are parts of body.
func hostOfferOf(body []byte) (batch []byte, sockets [][]byte, err error) {
	for first := true; first || len(body) > 0; first = false {
		if len(body) < 4 || uint64(len(body)-4) < uint64(binary.BigEndian.Uint32(body)) {
			return nil, nil, &frozen.Refused{What: "lot", Why: fmt.Sprintf("it ends in the middle, with %d octets", len(body))}
		}
		end := 4 + int(binary.BigEndian.Uint32(body))
		switch part := body[4:end:end]; {
		case first:
			batch = part
		case len(sockets) == hostLotSockets:
			return nil, nil, &frozen.Refused{What: "lot", Why: fmt.Sprintf("it has more than %d sockets", hostLotSockets)}
		default:
			sockets = append(sockets, part)
		}
		body = body[end:]
	}
	return batch, sockets, nil
}

// cookiesOf reads what encode says of descriptors; rest is the batch.
func cookiesOf(body []byte) (cookies []uint64, rest []byte, err error) {
	if len(body) < 2 {
		return nil, nil, fmt.Errorf("move: an offer of %d octets", len(body))
	}
	n := int(binary.BigEndian.Uint16(body))
	if body = body[2:]; len(body) < 8*n {
		return nil, nil, fmt.Errorf("move: an offer names %d descriptors in %d octets", n, len(body))
	}
	for i := range n {
		cookies = append(cookies, binary.BigEndian.Uint64(body[8*i:]))
	}
	return cookies, body[8*n:], nil
}
