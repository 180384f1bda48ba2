package vip

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Instant is a moment of the monotonic clock of one node, in nanoseconds.
type Instant int64

// waitLeases is how many leases whoever claims an address waits for nodes that it cannot
// ask: one for what the former owner may have left, one for clocks that differ.
const waitLeases = 2

// Circle are the nodes among which an address is owned, and how many must agree.
type Circle struct {
	Nodes []string // this one included
	// Majority: an owner that reaches fewer than half of the others ends. Without it an owner
	// goes on alone, and only an operator says that another one is dead.
	Majority bool
	Lease    int64 // nanoseconds
}

// enough tells whether so many nodes are a majority.
func (c *Circle) enough(n int) bool { return 2*n > len(c.Nodes) }

// Step is what is to be done, in this order. The next call of the seat comes when it is
// done, but for [Seat.Wrote], which tells that Write is durable.
type Step struct {
	// Disown: the kernel's lease ends now.
	Disown bool
	// Write is to be made durable, then told with Wrote; nil: nothing.
	Write *Record
	// Own lets the kernel pass the address for so long, in nanoseconds; 0: nothing.
	Own int64
	// Why the address is silent here, though by the record it is this node's.
	Why string
}

// Seat is what one node knows of one address, and may do. One goroutine at a time
// uses it. Make it with [NewSeat].
type Seat struct {
	self, home string
	circle     Circle

	record Record  // as on the disk
	until  Instant // when the kernel's lease ends by itself; 0: there is none
	begun  *Record // by Begin, and not written yet
	giving bool    // this process knows how to go on with the move in record
	agreed Instant // since when enough nodes have the claim in record; 0: they have not
	// granted is when it became ours for certain, by the former owner's word or by waiting; 0:
	// not in this process.
	granted Instant
	// living are who answered when an operator said that the owner is dead: they are not. taking
	// tells that this process heard him.
	taking bool
	living []string
}

// NewSeat makes the seat of a node that begins. until is when a lease ends that a former process
// of this node has left in the kernel; 0 is none.
func NewSeat(self, home string, c Circle, r Record, until Instant) *Seat {
	s := &Seat{self: self, home: home, circle: c, record: r}
	if r.Holder() == self {
		s.until = until
	}
	return s
}

// Govern puts another circle or home in force.
func (s *Seat) Govern(home string, c Circle) { s.home, s.circle = home, c }

// Record is what is on the disk.
func (s *Seat) Record() Record { return s.record }

// Until is when the kernel's lease ends; 0: there is none.
func (s *Seat) Until() Instant { return s.until }

// Holds tells whether this node owns the address at that moment.
func (s *Seat) Holds(now Instant) bool { return s.until > now && s.record.Holder() == s.self }

// Giving tells whether a move of this process is under way.
func (s *Seat) Giving() bool { return s.giving || s.begun != nil }

// Wrote tells that r is durable.
func (s *Seat) Wrote(r Record) {
	if !r.Same(s.record) {
		s.agreed = 0
		if r.From == "" {
			s.granted = 0
		}
		if !r.Taken {
			s.taking, s.living = false, nil
		}
	}
	s.record = r
	if r.Stage != Moving || r.From != s.self {
		s.giving = false
	}
	if s.begun != nil && !s.begun.Newer(r) {
		s.begun = nil
	}
}

// Lapses tells that the kernel's lease could not be lengthened, and ends at that moment.
func (s *Seat) Lapses(until Instant) { s.until = min(s.until, until) }

// Lasts tells that the kernel's lease could not be ended, and may last until that moment.
func (s *Seat) Lasts(until Instant) { s.until = until }

// Disowned tells that the kernel's lease has ended, whatever was known of it.
func (s *Seat) Disowned() { s.until = 0 }

// adopt takes a record over that is another's.
func (s *Seat) adopt(r Record) Step {
	x := Step{Write: &r}
	if r.Holder() != s.self {
		x.Disown = s.until != 0
		s.until = 0
	}
	return x
}

// claim makes a claim of our own; while our lease goes on that is no more than
// a new number.
func (s *Seat) claim(above uint64, taken bool) Step {
	return Step{Write: &Record{Epoch: max(above, s.record.Epoch) + 1, Stage: Claimed, Owner: s.self, Taken: taken}}
}

// Hear learns what another node has. Write is to be durable before the node answers
// with what it has then.
func (s *Seat) Hear(now Instant, r Record) Step {
	if s.begun != nil && r == *s.begun {
		return Step{} // our own words
	}
	if !r.Newer(s.record) {
		return Step{}
	}
	if r.Stage == Claimed && r.Owner != s.self && s.Holds(now) {
		// Whoever claims it believes that nobody owns it. Enough nodes have our
		// record, or the lease had ended; so a higher number settles it.
		return s.outbid(r.Epoch)
	}
	if r.Holder() == s.self {
		// A transaction that this node did not finish, or a lost disk.
		return s.outbid(r.Epoch)
	}
	return s.adopt(r)
}

// outbid goes on as the owner above an epoch.
func (s *Seat) outbid(epoch uint64) Step {
	s.begun = nil
	return s.claim(epoch, false)
}

// Round learns what nodes have answered who were told this node's record, by their
// names, after a question that was put at asked. If Write is not nil, the
// next round is due at once.
func (s *Seat) Round(asked, now Instant, answers map[string]Record) Step {
	if s.until != 0 && s.until <= now {
		s.until = 0 // it has ended by itself
	}
	if x, changed := s.learn(now, answers); changed {
		return x
	}
	if s.record.Stage == Unknown {
		return s.begin(answers)
	}
	if s.record.Holder() != s.self {
		x := Step{Disown: s.until != 0}
		s.until = 0
		if s.record.Stage == Yielded && s.record.From == s.self {
			x.Why = "it was given to " + s.record.Owner + ", who has not confirmed it"
		}
		return x
	}
	if s.record.Stage == Moving && !s.giving && s.begun == nil {
		return s.claim(0, false) // the process that began to move it is gone
	}
	with, against := 1, ""
	supports := map[string]bool{}
	for name, r := range answers {
		// Who has heard of the move that this node begins supports nobody else.
		if r.Same(s.record) || s.begun != nil && r == *s.begun {
			with++
			supports[name] = true
		} else if against == "" || name < against {
			against = name
		}
	}
	all := with == len(s.circle.Nodes)
	if why := s.alone(now, supports, against); why != "" {
		s.agreed = 0
		return Step{Why: why} // what is left of the lease runs out
	}
	if s.record.Stage == Claimed {
		if s.agreed == 0 {
			s.agreed = now
		}
		// Who has a claim on its disk has ended its own lease before.
		if s.until == 0 && !all && now-s.agreed < Instant(waitLeases*s.circle.Lease) {
			return Step{Why: "claimed: nobody answers for it until its former owner's lease has ended for certain"}
		}
		own := s.record
		own.Stage = Owned
		s.granted = now // what has been waited for need not be confirmed once more
		return Step{Write: &own}
	}
	left := s.circle.Lease - int64(now-asked)
	if left <= 0 {
		return Step{Why: "the other nodes answer too slowly"}
	}
	s.until = asked + Instant(s.circle.Lease)
	return Step{Own: left}
}

// alone says why too few nodes agree; "": enough do.
func (s *Seat) alone(now Instant, supports map[string]bool, against string) string {
	with := 1 + len(supports)
	all := with == len(s.circle.Nodes)
	dead := s.record.Stage == Claimed && s.record.Taken && s.taking && !slices.ContainsFunc(s.living, func(name string) bool { return !supports[name] })
	switch {
	case s.circle.Majority && s.circle.enough(with), all:
		return ""
	case against != "" && !s.circle.Majority:
		return against + " knows otherwise"
	case s.circle.Majority:
		return fmt.Sprintf("%d of %d nodes agree, which is no majority", with, len(s.circle.Nodes))
	case s.until != 0, s.granted != 0 && now-s.granted < Instant(s.circle.Lease), dead:
		return "" // it goes on, or by the operator's word
	default:
		return "not every other node confirms it since this one began, or stood still for a lease; if they are dead: holdfast vips take"
	}
}

// learn takes over what is newer than our record, and settles what is contrary to it.
func (s *Seat) learn(now Instant, answers map[string]Record) (Step, bool) {
	newest := s.record
	for _, name := range slices.Sorted(maps.Keys(answers)) {
		if r := answers[name]; r.Newer(newest) && (s.begun == nil || r != *s.begun) {
			newest = r
		}
	}
	if newest != s.record {
		return s.Hear(now, newest), true
	}
	// Two changes of one epoch: each node has the one that it heard of first.
	count := map[Record]int{key(s.record): 1}
	rival, contrary := "", false
	for name, r := range answers {
		count[key(r)]++
		if r.Contrary(s.record) {
			contrary = true
			if r.Holder() == name {
				rival = max(rival, name)
			}
		}
	}
	if !contrary {
		return Step{}, false
	}
	for r, n := range count {
		if !s.circle.enough(n) {
			continue
		}
		if r == key(s.record) {
			return Step{}, false
		}
		for _, a := range answers {
			if key(a) == r {
				return s.adopt(a), true
			}
		}
	}
	if len(answers) == len(s.circle.Nodes)-1 && s.record.Holder() == s.self && s.self > rival {
		// Nobody can win any more; one of them begins anew.
		x := s.claim(0, false)
		x.Disown, s.until = s.until != 0, 0
		return x, true
	}
	if s.circle.Majority {
		return Step{}, false
	}
	x := Step{Disown: s.until != 0, Why: "two nodes have changed its owner at one time"}
	s.until = 0
	return x, true
}

// key is a record's change.
func key(r Record) Record {
	r.Stage = 0
	return r
}

// begin makes the home of an address that nobody has ever owned its owner. There
// is no other way to the first epoch.
func (s *Seat) begin(answers map[string]Record) Step {
	if s.home != s.self {
		return Step{}
	}
	if n := 1 + len(answers); n < len(s.circle.Nodes) && !(s.circle.Majority && s.circle.enough(n)) {
		return Step{Why: "no record of an owner here, and other nodes, who may have one, do not answer"}
	}
	return Step{Write: &Record{Epoch: 1, Stage: Owned, Owner: s.self}}
}

// ErrNotOwner means that an address is not this node's to give.
var ErrNotOwner = errors.New("this node does not own it")

// Begin begins the first transaction of a move: its record is to be told to the node it
// goes to, then to the others, then [Seat.Begun] asked.
func (s *Seat) Begin(now Instant, to string) (Record, error) {
	switch {
	case s.Giving():
		return Record{}, fmt.Errorf("vip: a move is under way already: %v", s.record)
	case !s.Holds(now) || s.record.Stage != Owned:
		return Record{}, fmt.Errorf("vip: %v: %w", s.record, ErrNotOwner)
	case to == s.self || !slices.Contains(s.circle.Nodes, to):
		return Record{}, fmt.Errorf("vip: %q: no other node of that name", to)
	}
	r := Record{Epoch: s.record.Epoch + 1, Stage: Moving, From: s.self, Owner: to}
	s.begun = &r
	return r, nil
}

// Begun ends the first transaction with what was answered. After an error it was
// not made, and whoever has heard of it is told otherwise by the next rounds.
func (s *Seat) Begun(now Instant, answers map[string]Record) (Step, error) {
	r := s.begun
	if s.begun = nil; r == nil {
		return Step{}, errors.New("vip: another change came in between")
	}
	with := 1
	for _, a := range answers {
		if a == *r {
			with++
		}
	}
	switch {
	case answers[r.Owner] != *r:
		return Step{}, fmt.Errorf("vip: %s has not agreed", r.Owner)
	case s.circle.Majority && !s.circle.enough(with):
		return Step{}, fmt.Errorf("vip: %d of %d nodes agree, which is no majority", with, len(s.circle.Nodes))
	case !s.Holds(now):
		// Had the lease lapsed meanwhile, somebody else might have claimed it, below this epoch.
		return Step{}, fmt.Errorf("vip: the lease has ended meanwhile: %w", ErrNotOwner)
	}
	s.giving = true
	return Step{Write: r}, nil
}

// Cancel undoes the first transaction. The address stays ours all the time. If it cannot be
// written now, the next rounds try again.
func (s *Seat) Cancel() (Step, error) {
	if s.record.Stage != Moving || s.record.From != s.self {
		return Step{}, fmt.Errorf("vip: nothing to cancel: %v", s.record)
	}
	s.giving = false
	return s.claim(0, false), nil
}

// Yield begins the second transaction: Write, then Disown, and then, no earlier, the
// record is told to its new owner, again and again until that one has answered.
func (s *Seat) Yield() (Step, error) {
	if s.record.Stage != Moving || s.record.From != s.self || !s.giving {
		return Step{}, fmt.Errorf("vip: nothing to yield: %v", s.record)
	}
	r := s.record
	r.Stage = Yielded
	return Step{Write: &r}, nil
}

// Accept is the second transaction at the new owner, who has r from the old one's own
// mouth. After it a round is due at once.
func (s *Seat) Accept(now Instant, r Record) (Step, error) {
	switch {
	case r.Stage != Yielded || r.Owner != s.self || r.Check() != nil:
		return Step{}, fmt.Errorf("vip: %v is nothing to accept", r)
	case !r.Same(s.record) && !r.Newer(s.record):
		return Step{}, fmt.Errorf("vip: %v: here is %v", r, s.record)
	case s.record.Same(r) && s.record.Stage == Owned:
		return Step{}, nil
	}
	r.Stage = Owned
	s.granted = now
	return Step{Write: &r}, nil
}

// Take claims the address by the word of an operator that its owner is dead. answers
// are those of all nodes that answer, holds who of them says that it owns it now.
func (s *Seat) Take(now Instant, answers map[string]Record, holds string) (Step, error) {
	if s.Holds(now) {
		return Step{}, errors.New("vip: this node owns it already")
	}
	if holds != "" {
		return Step{}, fmt.Errorf("vip: %s answers and owns it: it can be moved, not taken", holds)
	}
	if s.circle.Majority && !s.circle.enough(1+len(answers)) {
		return Step{}, fmt.Errorf("vip: %d of %d nodes answer, which is no majority", 1+len(answers), len(s.circle.Nodes))
	}
	above := s.record.Epoch
	for _, r := range answers {
		above = max(above, r.Epoch)
	}
	s.taking, s.living = true, slices.Sorted(maps.Keys(answers))
	// The first epoch is the home's.
	return s.claim(max(above, 1), true), nil
}
