package move

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/planted"
)

// Tuple names one leg of a flow as its socket sees it: Local is the address that
// moves.
type Tuple struct{ Local, Remote netip.AddrPort }

const (
	// HostLotFlows is the most flows of one lot between hosts: all wait for the whole of
	// it. HostLotOctets bounds what it brings along in queues, unless one flow alone has
	// more: 64 KiB take a third of a millisecond to save, carry and restore.
	HostLotFlows  = 16
	HostLotOctets = 256 << 10
	// hostLotSockets is the most sockets of one lot: a flow has two at most.
	hostLotSockets = 2 * HostLotFlows
	// hostGroupFlows is how many flows are prepared at once. To be held costs a flow
	// nothing, for until the giver diverts its segments they go to the giver, and each
	// preparation is a transaction of the taker's kernel.
	hostGroupFlows = 64
	// hostGroups and hostOffers bound what is prepared, and what stands still, at one
	// time: one lot is put down while the taker picks up the one before. However fast all
	// is, a flow stands still for as long as it takes for all that do to move, so more
	// would only be a longer pause.
	hostGroups = 2
	hostOffers = 2
	// hostTuples is the most tuples of one preparation.
	hostTuples = 4 * hostGroupFlows

	// HostParkedTime bounds how long flows stand still for another host that does not
	// answer; doubled like ParkedTime.
	HostParkedTime = 250 * time.Millisecond
	// HostAnswerTime bounds every other answer.
	HostAnswerTime = 5 * time.Second
	// HostTries is how often a flow is tried whose reason to stay should pass.
	HostTries = 8
)

// Candidate is a flow that is served by the giver and may go.
type Candidate struct {
	ID     uint64
	Tuples []Tuple
	Tries  int // how often it was tried; over half of HostTries what costs its peer a repetition is allowed
	Of     any // where the giver finds it
}

// HostGiver is a node whose flows go to another host, as the order of such a move
// needs it. All methods are called by one goroutine, and may wait.
type HostGiver interface {
	// Stopped tells why nothing more shall go. What is parked goes all the same.
	Stopped() error
	// Next lists some flows that are served and may go, at most so many and of one
	// loop. tries tells how often one was tried; at HostTries it stays. nil: a round
	// of all loops is over. Another begins with the next call.
	Next(most int, tries func(id uint64) int) []Candidate
	// Rest lets time pass before a round, the second to come with nothing but flows
	// that were tried before, or a later one.
	Rest(round int)
	// Park takes flows out of their loop, diverts their segments to the taker and puts their
	// sockets down: the first of those, within HostLotOctets. dealt is how many it has looked at,
	// at least one. stay are those of them that are served on, each with its reason.
	// Without any other there is no lot. An error means that all of them are served.
	Park(some []Candidate) (lot *Lot, dealt int, stay []Refusal, err error)
	// Verify names the flows whose sockets are not what was offered any more.
	Verify(*Lot) []Refusal
	// Return gives a lot back to its loop; its segments come here again when it returns.
	Return(*Lot) error
	// Refused notes that a flow stays, and why.
	Refused(id uint64, why *frozen.Refused)
	// Forget lets go of a lot that the taker serves: without a word on its sockets.
	Forget(*Lot, Adoption)
	// Outcome asks the taker, in another way than the one that broke, for the last lot
	// that it has as its own, 0 being none. It will take none of this conversation then.
	Outcome() (last uint16, err error)
	// Lose ends the flows of a lot of which nobody can know who has them.
	Lose(*Lot)
}

// HostGiving is the giver's side of one conversation between hosts. It may give more
// than once.
type HostGiving struct {
	c      Carrier
	g      HostGiver
	number uint16 // of the last group or lot
	slow   int    // how often the taker has answered late, up to slowMax
	body   []byte // of the last offer: room for the next one

	groups []*hostGroup
	lots   []*Lot          // that are offered or committed, in this order
	void   map[uint16]bool // lots that were given up, and whose answer is still due
	tries  map[uint64]int
	timid  bool // after a stall one flow shows whether the taker is there again
	open   bool // the taker is ready for flows
	moved  int  // flows that were committed
}

// hostGroup is some flows that the taker is to hold, on the giver's side.
type hostGroup struct {
	number uint16
	held   bool
	left   []Candidate
	out    int // lots of it that stand still
}

// NewHostGiving begins with a conversation that is greeted.
func NewHostGiving(c Carrier) *HostGiving {
	return &HostGiving{c: c, void: map[uint16]bool{}}
}

// Give moves flows until a round finds none, or the giver is stopped.
//
//	giver                              taker                         undone by
//	Begin                        --->  makes ready                   Done, the end of the conversation
//	Prepare: a group of 64       --->  holds their segments          Drop of the group, once none is diverted
//	parks 16, diverts, puts down                                     Return: undiverts, serves them
//	Offer                        --->  restores, quiet               Abort after Return; refuses: Return
//	Commit                       --->  goes live, releases, serves   nothing: the point of no return
//	forgets                      <---  Adopted
//	Drop: what of the group is left                                  nothing
//	Done                         --->  Settled
//
// Groups and lots overlap: while the taker restores one lot the giver puts down the
// next. Each answer names its lot. The giver keeps the sockets of a lot, silent, until
// it hears that it is served. If the conversation breaks before, it asks for the outcome in another
// one; if nobody can tell, the flows are closed.
//
// An error leaves the conversation of no use, but for one that Stopped gave or a [frozen.Refused].
func (x *HostGiving) Give(g HostGiver, coming Coming) error {
	x.g, x.tries, x.moved = g, map[uint64]int{}, 0
	before := x.open
	if !before {
		if err := x.Open(coming); err != nil {
			return err
		}
	}
	stop, err := x.all()
	for err == nil && len(x.lots) > 0 {
		_, err = x.hear()
	}
	if err == nil && !before {
		err = x.Settle()
	}
	if err != nil {
		return errors.Join(err, x.abandon())
	}
	return stop
}

// Open makes the taker ready for flows until Settle: for several calls of Give, which
// else do both. From here on the taker leaves to the giver what coming says of limits.
func (x *HostGiving) Open(coming Coming) error {
	if err := x.c.SetTimeout(HostAnswerTime); err != nil {
		return err
	}
	if err := SendJSON(x.c, Begin, coming); err != nil {
		return err
	}
	if _, err := Expect(x.c, Ready); err != nil {
		return err
	}
	x.open = true
	return nil
}

// Settle ends Open: no more flows come, and each side's limits are its own.
func (x *HostGiving) Settle() error {
	if err := x.send(Message{Kind: Done}); err != nil {
		return err
	}
	_, err := Expect(x.c, Settled)
	x.open = false
	return err
}

// offered is how many lots stand still.
func (x *HostGiving) offered() (n int) {
	for _, l := range x.lots {
		if l.state == offered {
			n++
		}
	}
	return n
}

// all gives until nothing is left. stop is why it ended before, with everything in
// order.
func (x *HostGiving) all() (stop, err error) {
	over, found, again := false, false, 0
	for {
		if stop == nil {
			stop = x.g.Stopped()
		}
		if stop != nil {
			over, found = true, false
			for _, g := range x.groups {
				g.left = nil
			}
		}
		if err := x.dropSpent(); err != nil {
			return stop, err
		}
		offers := x.offered()
		ready := slices.IndexFunc(x.groups, func(g *hostGroup) bool { return (g.held || planted.Bug(105)) && len(g.left) > 0 })
		switch {
		case ready >= 0 && len(x.lots) < hostOffers:
			err = x.offer(x.groups[ready])
		case !over && x.mayPrepare():
			some := x.g.Next(hostGroupFlows, func(id uint64) int { return x.tries[id] })
			if some == nil {
				over = true
				break
			}
			if !found {
				found = true
				fresh := slices.ContainsFunc(some, func(c Candidate) bool { return c.Tries == 0 })
				if again++; fresh {
					again = 0
				} else if again > 1 {
					x.g.Rest(again - 1)
				}
			}
			err = x.prepare(some)
		case len(x.groups) > 0 || offers > 0 || len(x.void) > 0:
			var no error
			if no, err = x.hear(); no != nil && stop == nil {
				stop = no
			}
		case over && !found:
			return stop, nil
		default:
			over, found = false, false
		}
		if err != nil {
			return stop, err
		}
	}
}

// next is the number of the next group or lot; 0 is none.
func (x *HostGiving) next() uint16 {
	if x.number++; x.number == 0 {
		x.number++
	}
	return x.number
}

// mayPrepare tells whether there is room for another group.
func (x *HostGiving) mayPrepare() bool {
	return len(x.void) == 0 && len(x.groups) < hostGroups
}

func (x *HostGiving) prepare(some []Candidate) error {
	g := &hostGroup{number: x.next(), left: some}
	var body []byte
	for _, c := range some {
		for _, t := range c.Tuples {
			body = t.appendTo(body)
		}
	}
	x.groups = append(x.groups, g)
	return x.send(Message{Kind: Prepare, Lot: g.number, Body: body})
}

// dropSpent has the taker hold no more what is left of groups that are through: a
// flow that stays, and legs that have changed meanwhile.
func (x *HostGiving) dropSpent() error {
	for i := 0; i < len(x.groups); {
		g := x.groups[i]
		if !g.held || len(g.left) > 0 || g.out > 0 && !planted.Bug(87) {
			i++
			continue
		}
		x.groups = slices.Delete(x.groups, i, i+1)
		if err := x.send(Message{Kind: Drop, Lot: g.number}); err != nil {
			return err
		}
	}
	return nil
}

func (x *HostGiving) send(m Message) error {
	if err := x.c.SetTimeout(HostAnswerTime); err != nil {
		return err
	}
	return x.c.Send(m)
}

// offer puts down the next flows of a group.
func (x *HostGiving) offer(g *hostGroup) error {
	some := g.left[:min(HostLotFlows, len(g.left))]
	// A flow that could not move before goes alone, so that it keeps no other from
	// moving.
	k := slices.IndexFunc(some, func(c Candidate) bool { return c.Tries > 0 })
	if k >= 0 {
		some = some[:max(1, k)]
	}
	if x.timid {
		some = some[:1]
	}
	lot, dealt, stay, err := x.g.Park(some)
	g.left = g.left[dealt:]
	if err != nil {
		return err
	}
	x.stays(stay)
	if lot == nil {
		return nil
	}
	lot.number = x.next()
	body, sockets, err := lot.encodeHost(x.body[:0])
	if err != nil {
		return errors.Join(err, x.takeBack(lot))
	}
	lot.socketOctets = sockets
	if x.body = body; cap(body) > remoteRoom {
		x.body = nil
	}
	if err := lot.to(offered); err != nil {
		return err
	}
	x.lots = append(x.lots, lot)
	lot.group, g.out = g, g.out+1
	// It stands still: a taker that does not even read is not waited for so long.
	if err := x.c.SetTimeout(PatienceTime); err != nil {
		return err
	}
	return x.c.Send(Message{Kind: Offer, Lot: lot.number, Body: body})
}

// stays notes flows that could not go this time.
func (x *HostGiving) stays(all []Refusal) {
	for _, no := range all {
		if no.Retry {
			x.tries[no.Flow]++
		} else {
			x.tries[no.Flow] = HostTries
		}
		if x.tries[no.Flow] == HostTries {
			x.g.Refused(no.Flow, &frozen.Refused{What: no.What, Why: no.Why, Retry: no.Retry})
		}
	}
}

func (x *HostGiving) takeBack(lot *Lot) error {
	if err := lot.to(returned); err != nil {
		return err
	}
	x.moves(lot)
	return x.g.Return(lot)
}

// moves notes that a lot stands still no more.
func (x *HostGiving) moves(lot *Lot) {
	if lot.group != nil {
		lot.group.out--
		lot.group = nil
	}
}

func (x *HostGiving) parkedTime() time.Duration { return HostParkedTime << x.slow }

// hear waits for the taker's next word. no is a refusal of more than a lot: nothing
// else goes.
func (x *HostGiving) hear() (no, err error) {
	wait, parked := HostAnswerTime, x.offered() > 0
	if parked {
		wait = x.parkedTime()
	}
	if err := x.c.SetTimeout(wait); err != nil {
		return nil, err
	}
	m, err := x.c.Receive()
	if late(err) && parked {
		return nil, x.stalled()
	}
	if err != nil {
		return nil, fmt.Errorf("move: waiting for the other host: %w", err)
	}
	return x.heard(m)
}

// stalled gives all that stands still back to its loops, and waits for a word of
// the taker.
func (x *HostGiving) stalled() error {
	x.timid = true
	for _, l := range slices.Clone(x.lots) {
		if l.state != offered {
			continue
		}
		x.void[l.number] = true
		if err := x.abort(l); err != nil {
			return err
		}
	}
	wait := PatienceTime
	if x.moved > 0 {
		wait = PatienceLong
	}
	if err := x.c.SetTimeout(wait); err != nil {
		return err
	}
	m, err := x.c.Receive()
	if late(err) {
		return ErrHostStalled
	}
	if err == nil {
		x.slow = min(x.slow+1, slowMax)
		_, err = x.heard(m)
	}
	return err
}

// ErrHostStalled is that the other host has not answered for as long as it is waited for.
var ErrHostStalled = errors.New("move: the other host does not answer")

// abort takes a lot back that was offered, and then tells so.
func (x *HostGiving) abort(lot *Lot) error {
	x.remove(lot)
	if err := x.takeBack(lot); err != nil {
		return err
	}
	return x.send(Message{Kind: Abort, Lot: lot.number})
}

func (x *HostGiving) remove(lot *Lot) {
	x.lots = slices.DeleteFunc(x.lots, func(l *Lot) bool { return l == lot })
}

func (x *HostGiving) lot(number uint16, state lotState) (*Lot, error) {
	for _, l := range x.lots {
		if l.number == number && l.state == state {
			return l, nil
		}
	}
	return nil, fmt.Errorf("move: an answer of lot %d, which is not %v", number, state)
}

// heard does what an answer asks for.
func (x *HostGiving) heard(m Message) (no, err error) {
	switch m.Kind {
	case Held:
		for _, g := range x.groups {
			if g.number == m.Lot && !g.held {
				g.held = true
				return nil, nil
			}
		}
		return nil, fmt.Errorf("move: group %d is held and was not prepared", m.Lot)
	case Taken:
		if x.void[m.Lot] {
			delete(x.void, m.Lot)
			return nil, nil
		}
		lot, err := x.lot(m.Lot, offered)
		if err != nil {
			return nil, err
		}
		return nil, x.commit(lot)
	case Refuse:
		return x.refused(m)
	case Adopted:
		lot, err := x.lot(m.Lot, committed)
		if err != nil {
			return nil, err
		}
		a, err := adoptionOf(m.Body)
		if err != nil {
			return nil, err
		}
		x.remove(lot)
		if err := lot.to(forgotten); err != nil {
			return nil, err
		}
		x.g.Forget(lot, a)
		return nil, nil
	}
	return nil, fmt.Errorf("move: %v came out of turn", m.Kind)
}

// commit gives a lot away that the taker could restore, if it is what it was.
func (x *HostGiving) commit(lot *Lot) error {
	if moved := x.g.Verify(lot); len(moved) > 0 && !planted.Bug(85) {
		x.stays(moved)
		return x.abort(lot)
	}
	x.timid = false
	// The point of no return: from here on these flows are the taker's.
	if err := lot.to(committed); err != nil {
		return err
	}
	x.moves(lot)
	x.moved += len(lot.Flows)
	for _, z := range lot.Flows {
		x.tries[z.Id] = HostTries // should it come back, it stays
	}
	return x.send(Message{Kind: Commit, Lot: lot.number})
}

// refused deals with what the taker cannot hold.
func (x *HostGiving) refused(m Message) (no, err error) {
	var r Refusal
	if err := m.Into(&r); err != nil {
		return nil, err
	}
	if x.void[m.Lot] {
		delete(x.void, m.Lot)
		return nil, nil
	}
	for i, g := range x.groups {
		if g.number == m.Lot && !g.held {
			x.groups = slices.Delete(x.groups, i, i+1)
			return &frozen.Refused{What: r.What, Why: r.Why, Retry: r.Retry}, nil
		}
	}
	lot, err := x.lot(m.Lot, offered)
	if err != nil {
		return nil, err
	}
	some := r.Flows
	if len(some) == 0 { // it is not known which: each goes alone next time
		for _, z := range lot.Flows {
			some = append(some, Refusal{Flow: z.Id, What: r.What, Why: r.Why, Retry: true})
		}
	}
	x.stays(some)
	x.remove(lot)
	if planted.Bug(97) {
		return nil, nil
	}
	return nil, x.takeBack(lot)
}

// abandon finds an owner for each lot after the conversation broke.
func (x *HostGiving) abandon() error {
	var errs []error
	var unknown []*Lot
	for _, l := range x.lots {
		switch l.state {
		case offered:
			errs = append(errs, x.takeBack(l))
		case committed:
			unknown = append(unknown, l)
		}
	}
	x.lots, x.groups = nil, nil
	if len(unknown) == 0 {
		return errors.Join(errs...)
	}
	last, err := x.g.Outcome()
	if planted.Bug(90) {
		last, err = 0, nil
	}
	if planted.Bug(92) && err != nil {
		last, err = x.number, nil
	}
	if planted.Bug(96) && last != 0 {
		last++
	}
	for _, l := range unknown {
		switch {
		case err != nil:
			x.g.Lose(l)
			errs = append(errs, fmt.Errorf("move: %d flows were committed, and whether they are served is not known: %w", len(l.Flows), err))
		case int16(l.number-last) <= 0 && last != 0:
			x.g.Forget(l, Adoption{})
		default: // the commit was never read, and never will be
			errs = append(errs, x.g.Return(l))
		}
	}
	return errors.Join(errs...)
}

// appendTo writes a tuple: the octets of an address, both addresses, both ports.
func (t Tuple) appendTo(out []byte) []byte {
	l, r := t.Local.Addr().AsSlice(), t.Remote.Addr().AsSlice()
	out = append(append(append(out, byte(len(l))), l...), r...)
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(out, t.Local.Port()), t.Remote.Port())
}

// tuplesOf reads what appendTo wrote.
func tuplesOf(b []byte) (all []Tuple, err error) {
	for len(b) > 0 {
		n := int(b[0])
		if n != 4 && n != 16 || len(b) < 1+2*n+4 {
			return nil, fmt.Errorf("move: a tuple with %d octets of address in %d", n, len(b))
		}
		l, _ := netip.AddrFromSlice(b[1 : 1+n])
		r, _ := netip.AddrFromSlice(b[1+n : 1+2*n])
		ports := b[1+2*n:]
		all = append(all, Tuple{netip.AddrPortFrom(l, binary.BigEndian.Uint16(ports)), netip.AddrPortFrom(r, binary.BigEndian.Uint16(ports[2:]))})
		b = ports[4:]
	}
	return all, nil
}

// appendTo writes an Adoption for another host, whose clock is another one.
func (a Adoption) appendTo(out []byte) []byte {
	return binary.BigEndian.AppendUint32(out, uint32(a.Lost))
}

func adoptionOf(b []byte) (a Adoption, err error) {
	if len(b) != 4 {
		return a, fmt.Errorf("move: an adoption of %d octets", len(b))
	}
	return Adoption{Lost: int(binary.BigEndian.Uint32(b))}, nil
}
