package move

import (
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/planted"
)

// HostTaker is a node that flows of another host come to. All methods are called by
// one goroutine, and may wait.
type HostTaker interface {
	// Begin makes ready for flows, until Settle.
	Begin(Coming) error
	// Hold keeps back the segments of what is to come. Drop forgets them: they are the
	// giver's, or nobody's. On error nothing has changed. An error of Hold is told to the giver.
	Hold([]Tuple) error
	Drop([]Tuple) error
	// Restore makes the sockets of a lot, quiet, each of a tuple that mine is true of,
	// and sees that each flow could be served. Legs name what was saved of their sockets by
	// its place in sockets, from 1. Nothing of octets and sockets is kept. On error nothing
	// of the lot is left; it is a [frozen.Refused] of all or [Unheld] of some. tuples are
	// those of its sockets.
	Restore(octets []byte, sockets [][]byte, mine func(Tuple) bool) (lot any, tuples []Tuple, err error)
	// Discard forgets a lot that was restored, silently.
	Discard(lot any)
	// Adopt makes a lot this node's own: its sockets live, the segments of these tuples
	// are let go, a loop serves it when it returns.
	Adopt(lot any, tuples []Tuple) Adoption
	// Settle ends what Begin began.
	Settle()
}

// HostTaking is the taker's side of one conversation between hosts.
type HostTaking struct {
	c      Carrier
	t      HostTaker
	begun  bool
	held   map[Tuple]int // in how many groups, of what no committed lot has
	groups map[uint16][]Tuple
	lots   map[uint16]*hostTaken // that are restored
	last   uint16                // lot that was offered last
	own    uint16                // lot that was committed last
}

// hostTaken is a lot that is restored.
type hostTaken struct {
	of     any
	tuples []Tuple
}

// NewHostTaking begins with a conversation that is greeted.
func NewHostTaking(c Carrier, t HostTaker) *HostTaking {
	return &HostTaking{c: c, t: t, held: map[Tuple]int{}, groups: map[uint16][]Tuple{}, lots: map[uint16]*hostTaken{}}
}

// Busy tells whether flows are coming, so that the giver will say more.
func (x *HostTaking) Busy() bool { return x.begun }

// Waits tells whether something is held or restored, so that the giver will say more soon.
func (x *HostTaking) Waits() bool { return len(x.groups) > 0 || len(x.lots) > 0 }

// Own is the number of the last lot that is this side's; 0: none.
func (x *HostTaking) Own() uint16 { return x.own }

// Step does what one message asks for. After an error the conversation is to end.
func (x *HostTaking) Step(m Message) error {
	if !x.begun && m.Kind != Begin {
		return fmt.Errorf("move: %v came before flows were announced", m.Kind)
	}
	switch m.Kind {
	case Begin:
		return x.begin(m)
	case Prepare:
		return x.prepare(m)
	case Offer:
		return x.restore(m)
	case Commit:
		return x.adopt(m)
	case Abort:
		if lot := x.lots[m.Lot]; lot != nil { // else it was refused
			delete(x.lots, m.Lot)
			x.t.Discard(lot.of)
		}
		return nil
	case Drop:
		return x.drop(m.Lot)
	case Done:
		if len(x.lots) > 0 {
			return fmt.Errorf("move: %v, and %d lots are offered", m.Kind, len(x.lots))
		}
		err := x.dropAll()
		x.begun = false
		x.t.Settle()
		return errors.Join(err, x.c.Send(Message{Kind: Settled}))
	}
	return fmt.Errorf("move: %v came out of turn", m.Kind)
}

func (x *HostTaking) begin(m Message) error {
	var coming Coming
	if err := m.Into(&coming); err != nil {
		return err
	}
	if x.begun {
		return errors.New("move: flows were announced twice")
	}
	if err := x.t.Begin(coming); err != nil {
		return x.refuse(0, err)
	}
	x.begun = true
	return x.c.Send(Message{Kind: Ready})
}

func (x *HostTaking) prepare(m Message) error {
	ts, err := tuplesOf(m.Body)
	if err != nil {
		return err
	}
	if len(ts) == 0 || len(ts) > hostTuples || x.groups[m.Lot] != nil || len(x.groups) >= 2*hostGroups {
		return fmt.Errorf("move: group %d of %d tuples beside %d others", m.Lot, len(ts), len(x.groups))
	}
	// A backend leg may have gone from one flow to another since it was prepared.
	var others []Tuple
	for _, t := range ts {
		if x.held[t] == 0 && !slices.Contains(others, t) {
			others = append(others, t)
		}
	}
	if len(others) > 0 {
		if err := x.t.Hold(others); err != nil {
			return x.refuse(m.Lot, err)
		}
	}
	x.groups[m.Lot] = ts
	for _, t := range ts {
		x.held[t]++
	}
	return x.c.Send(Message{Kind: Held, Lot: m.Lot})
}

func (x *HostTaking) restore(m Message) error {
	if x.lots[m.Lot] != nil || m.Lot == 0 || len(x.lots) >= 2*hostOffers || x.last != 0 && int16(m.Lot-x.last) <= 0 {
		return fmt.Errorf("move: lot %d was offered after lot %d, beside %d others", m.Lot, x.last, len(x.lots))
	}
	x.last = m.Lot
	batch, sockets, err := hostOfferOf(m.Body)
	if err != nil {
		return x.refuse(m.Lot, err)
	}
	lot, ts, err := x.t.Restore(batch, sockets, x.free)
	if err != nil {
		return x.refuse(m.Lot, err)
	}
	x.lots[m.Lot] = &hostTaken{lot, ts}
	return x.c.Send(Message{Kind: Taken, Lot: m.Lot})
}

// free tells whether a tuple is held, and of no lot yet.
func (x *HostTaking) free(t Tuple) bool {
	if x.held[t] == 0 {
		return false
	}
	for _, lot := range x.lots {
		for _, other := range lot.tuples {
			if t == other {
				return false
			}
		}
	}
	return true
}

// adopt makes a lot ours.
func (x *HostTaking) adopt(m Message) error {
	lot := x.lots[m.Lot]
	if lot == nil {
		return fmt.Errorf("move: lot %d was committed, and is not offered", m.Lot)
	}
	delete(x.lots, m.Lot)
	for _, t := range lot.tuples {
		delete(x.held, t)
	}
	if !planted.Bug(100) {
		x.own = m.Lot
	}
	// The giver hears of it at once: until then it puts nothing else down.
	a := x.t.Adopt(lot.of, lot.tuples)
	err := x.c.Send(Message{Kind: Adopted, Lot: m.Lot, Body: a.appendTo(nil)})
	if planted.Bug(100) && err == nil {
		x.own = m.Lot
	}
	return err
}

// drop holds no more what is left of a group.
func (x *HostTaking) drop(group uint16) error {
	all := x.groups[group]
	if all == nil {
		return fmt.Errorf("move: group %d is dropped and was not prepared", group)
	}
	delete(x.groups, group)
	var ts []Tuple
	for _, t := range all {
		switch n := x.held[t]; {
		case n > 1:
			x.held[t]--
		case n == 1:
			ts = append(ts, t)
			delete(x.held, t)
		}
	}
	return x.forget(ts)
}

func (x *HostTaking) forget(ts []Tuple) error {
	if len(ts) == 0 {
		return nil
	}
	return x.t.Drop(ts)
}

func (x *HostTaking) dropAll() error {
	var ts []Tuple
	for t := range x.held {
		ts = append(ts, t)
	}
	clear(x.groups)
	clear(x.held)
	return x.forget(ts)
}

// End gives up what is not this side's, when the conversation is over.
func (x *HostTaking) End() error {
	for number, lot := range x.lots {
		delete(x.lots, number)
		if planted.Bug(99) {
			x.t.Adopt(lot.of, lot.tuples)
			continue
		}
		x.t.Discard(lot.of)
	}
	err := x.dropAll()
	if x.begun {
		x.begun = false
		x.t.Settle()
	}
	return err
}

func (x *HostTaking) refuse(lot uint16, why error) error {
	m, err := message(Refuse, RefusalOf(why))
	if err != nil {
		return err
	}
	m.Lot = lot
	return x.c.Send(m)
}

// RefusalOf is an error as the other side is to read it.
func RefusalOf(why error) Refusal {
	var because *frozen.Refused
	var some Unheld
	switch {
	case errors.As(why, &because):
		return Refusal{What: because.What, Why: because.Why, Retry: because.Retry}
	case errors.As(why, &some) && len(some) > 0:
		no := some[0]
		no.Flows = some
		return no
	}
	return Refusal{What: "node", Why: why.Error()}
}
