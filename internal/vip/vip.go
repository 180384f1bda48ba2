// Package vip decides which node owns an address. It is a machine: it knows what one
// node has on its disk and what others answer, and tells what is to be written and
// for how long the kernel may let the address pass. It has no disk, no clock and no carrier.
//
// Ownership is a [Record] with an epoch, durable on each node, and a lease of the
// kernel, which ends by itself. A node renews its lease only while enough nodes answer
// that they have its record. What is unknown stays silent.
package vip

import "fmt"

// Stage is how far the change of an owner is.
type Stage uint8

// The stages of one change of an owner, in their order.
const (
	Unknown Stage = iota // nobody has ever owned it, as far as is known
	Moving               // From owns it, and hands it over to Owner
	Yielded              // From owns it no more, and Owner has not heard of it
	Claimed              // Owner says so; whoever owned it before may have a lease still
	Owned                // Owner owns it
)

var stages = [...]string{Unknown: "unknown", Moving: "moving", Yielded: "yielded", Claimed: "claimed", Owned: "owned"}

func (s Stage) String() string {
	if int(s) < len(stages) {
		return stages[s]
	}
	return fmt.Sprintf("Stage(%d)", uint8(s))
}

// Record is what a node knows durably of who owns an address. The zero value knows
// nothing. Epoch, From and Owner name one change; it goes through its stages.
type Record struct {
	// Epoch counts changes of the owner, and attempts at one.
	Epoch uint64 `json:"epoch"`
	Stage Stage  `json:"stage"`
	From  string `json:"from,omitempty"` // who hands it over; "": nobody did
	Owner string `json:"owner"`          // who owns it when the change is done
	// Taken: an operator has said that whoever owned it is dead.
	Taken bool `json:"taken,omitempty"`
}

func (r Record) String() string {
	if r.From != "" {
		return fmt.Sprintf("%v %s->%s epoch %d", r.Stage, r.From, r.Owner, r.Epoch)
	}
	return fmt.Sprintf("%v %s epoch %d", r.Stage, r.Owner, r.Epoch)
}

// Holder is the node that may own the address by this record; "" is none.
func (r Record) Holder() string {
	switch r.Stage {
	case Moving:
		return r.From
	case Claimed, Owned:
		return r.Owner
	case Unknown, Yielded:
		return ""
	}
	panic("vip: " + r.Stage.String())
}

// Check refuses what no node writes.
func (r Record) Check() error {
	ok := int(r.Stage) < len(stages)
	if ok {
		switch r.Stage {
		case Unknown:
			ok = r == Record{}
		case Moving, Yielded:
			ok = r.Epoch > 0 && r.From != "" && r.Owner != "" && r.From != r.Owner && !r.Taken
		case Claimed:
			ok = r.Epoch > 0 && r.From == "" && r.Owner != ""
		case Owned:
			ok = r.Epoch > 0 && r.Owner != "" && r.From != r.Owner
		}
	}
	if !ok {
		return fmt.Errorf("vip: no node writes this record: %v", r)
	}
	return nil
}

// Same tells whether both are of one change.
func (r Record) Same(o Record) bool {
	return r.Epoch == o.Epoch && r.From == o.From && r.Owner == o.Owner && r.Taken == o.Taken
}

// Newer tells whether r is of a later epoch than o, or of the same change and further.
func (r Record) Newer(o Record) bool {
	return r.Epoch > o.Epoch || r.Same(o) && r.Stage > o.Stage
}

// Contrary tells whether two changes have one epoch.
func (r Record) Contrary(o Record) bool { return r.Epoch == o.Epoch && !r.Same(o) }

// Move is what an [Arbiter] decides: Name is the VIP's.
type Move struct{ Name, From, To string }

// Arbiter keeps the records of who owns what, and makes the two transactions of a move.
// Its methods return when the outcome is durable. Nodes that ask each other are one, with
// an operator who decides; a manager that all nodes ask is another.
type Arbiter interface {
	// Begin is the first transaction: From hands over to To, and owns on.
	Begin(m Move) error
	// Finish is the second: From owns it no more, and To does. After it has begun only
	// To can own it, be there an error or not: it is called again until there is none.
	Finish(m Move) error
	// Cancel undoes Begin: From owns on, as if nothing had been.
	Cancel(m Move) error
	// Records are what is known here, by the name of the VIP.
	Records() map[string]Record
}
