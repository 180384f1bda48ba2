package move

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/planted"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// The features of this release.
const (
	// FeatureLots: offers are numbered, and a refusal names the flows that cannot be
	// held, so that the others of the lot go.
	FeatureLots = "lots"
	// FeatureCopy: descriptors go over while they are still served.
	FeatureCopy = "copy"
	// FeatureCanary: a first lot is observed before the taker accepts.
	FeatureCanary = "canary"
	// FeatureIdle: idle backend legs go along.
	FeatureIdle = "idle"
	// FeatureShare: Accept tells how limits are divided from that moment on; without it
	// only one of the two grants.
	FeatureShare = "share"
	// FeatureEarly: knowledge may come in bulk before Accept, and again what has
	// changed since.
	FeatureEarly = "early"
	// FeatureOrder: the taker applies another configuration before it is ready.
	FeatureOrder = "order"
	// FeatureResidue: the giver tells what drains in it.
	FeatureResidue = "residue"
	// FeatureTalk: hosts ask each other questions, and flows come between Begin and
	// Done (remote).
	FeatureTalk = "talk"
)

// Features are all of this release.
func Features() []string {
	return []string{FeatureLots, FeatureCopy, FeatureCanary, FeatureIdle, FeatureShare, FeatureEarly, FeatureOrder, FeatureResidue}
}

// How long is waited for the taker.
const (
	// StartTime bounds how long a new binary may take until it could serve.
	StartTime = 20 * time.Second
	// ParkedTime bounds how long anything stands still for a taker that does not
	// answer: flows that are parked and not committed, and who waits to be accepted. For
	// one that has then answered late it is doubled, up to slowMax times: on a machine
	// that is so busy it would never get a lot in time, and would be ended in the end
	// with all the flows that it has.
	ParkedTime = 50 * time.Millisecond
	slowMax    = 4
	// PatienceTime bounds how long a silent taker is waited for while nothing was
	// committed to it, PatienceLong once something was: its end would end those flows.
	PatienceTime = 2 * time.Second
	PatienceLong = 20 * time.Second
)

// LotFlows is the most flows of one lot: all wait for the whole of it, and the
// loop for the freezing.
const LotFlows = 8

// Phase is where an upgrade is.
type Phase uint8

// The phases, in their order. A taker without features has no Copying and no
// Canary.
const (
	Starting Phase = iota // the taker starts
	Copying
	Canary
	Switching
	Flows
	Finished
)

// Giver is the process that hands over, as the order of an upgrade needs it. All
// methods are called by one goroutine, and may wait.
type Giver interface {
	// Greeted hears who the taker is, and the features that both speak; an error ends it
	// before anything was done.
	Greeted(hello Greeting, features []string) error
	// Stopped tells why the upgrade shall end. It is asked for until the first flow
	// is committed.
	Stopped() error
	// Enter notes that a phase begins.
	Enter(Phase)

	// Heritage is what the taker begins with. The giver serves as before.
	Heritage() (*Heritage, []sock.FD, error)
	// Knowledge tells what is known of endpoints and clients, in as many parts as it
	// takes: all in bulk early, while everything is served, and what has changed since
	// last; only the latter, and all, if early was not called.
	Knowledge(last bool, send func(Knowledge) error) error

	// Lend lists the descriptors of all flows and idle legs. From here until Unlend
	// another process has duplicates of them, and yet each close must have its full
	// effect at once.
	Lend() []sock.FD
	// Dropped are the cookies of what was closed since it was asked last.
	Dropped() []uint64
	// Unlend ends it: no other process has a duplicate. After an error it is the
	// caller's to do, after the taker's end.
	Unlend()
	// Cookie is the kernel's name of a socket, the same in all processes.
	Cookie(sock.FD) (uint64, error)

	// Park takes a lot out of the loops: flows of different kinds and loops for a
	// canary, else of one loop; at most the given number. nil: nothing is left but
	// what was Refused.
	Park(canary bool, most int) (*Lot, error)
	// Return gives a lot back to the loops it came from, which serve it at once.
	Return(*Lot) error
	// Split parts a lot in two: the flows of these identities, and the others. Either
	// may be nil.
	Split(lot *Lot, ids []uint64) (those, others *Lot)
	// Refused notes that the taker cannot hold a flow, and why. It is not parked again.
	Refused(id uint64, why *frozen.Refused)
	// Forget lets go of a lot that the taker serves, without a word on its sockets.
	Forget(*Lot, Adoption)
	// Lose ends the flows of a lot of which nobody knows who has served them.
	Lose(*Lot)

	// ParkIdle takes idle backend legs out of the pools: a part of all that there
	// are, such that the rest fits the flows that are left; all if there are none. nil: there
	// is nothing to give. most bounds how many.
	ParkIdle(most int) *IdleLot
	// ForgetIdle lets go of idle legs that may be the taker's, or takes back those that
	// could not be given.
	ForgetIdle(lot *IdleLot, given bool)

	// Switch makes the giver accept no more, and grant no more than its share.
	Switch() error
	// Acceptance tells of that share. It may be asked for again, after a stall.
	Acceptance() Acceptance
	// Stalled tells that the taker does not answer: whatever the giver has stopped
	// for it, it does again, within what the taker may not have granted. False: it has
	// answered.
	Stalled(bool)
	// Estate is what the giver has counted.
	Estate() any
}

// IdleLot is some idle backend legs on their way.
type IdleLot struct {
	Octets []byte // as loops freeze them
	FDs    []sock.FD
	N      int
	Of     any // what the giver keeps of it
}

// Acceptance is what the giver says when it has stopped to accept.
type Acceptance struct {
	// Places are the connections that it has at the gates of listeners; "" is the
	// whole node. A release without features takes no more than these.
	Places map[string]int64 `json:"places,omitempty"`
	// Share is the part of each limit that the giver keeps, as its ledger says it.
	Share json.RawMessage `json:"share,omitempty"`
}

// Readiness is what a taker says when it can serve.
type Readiness struct {
	// Room is for how many descriptors beside its own, FileLimit the number of files
	// that it may have open.
	Room      int `json:"room"`
	FileLimit int `json:"file_limit"`
}

// Holding is what a taker holds of copied descriptors, and for how many more it
// has room.
type Holding struct {
	Held int `json:"held"`
	Room int `json:"room"`
}

// Watch asks a taker to observe what it has adopted, in nanoseconds.
type Watch struct {
	For time.Duration `json:"for"`
}

// Sight is what a taker has observed of the canary.
type Sight struct {
	Alive  int      `json:"alive"` // flows that are still served
	Ended  int      `json:"ended"` // in the ordinary way
	Lost   int      `json:"lost"`  // broken by the taker itself
	Panics int      `json:"panics"`
	Loops  int      `json:"loops"` // that answer
	Of     int      `json:"of"`    // loops
	Why    []string `json:"why,omitempty"`
}

// Bad tells what is wrong with it; nil: nothing.
func (s Sight) Bad() error {
	switch {
	case s.Panics > 0:
		return fmt.Errorf("%d panics in the new process: %v", s.Panics, s.Why)
	case s.Lost > 0:
		return fmt.Errorf("%d flows broke in the new process: %v", s.Lost, s.Why)
	case s.Loops < s.Of:
		return fmt.Errorf("%d of %d loops of the new process do not answer", s.Of-s.Loops, s.Of)
	}
	return nil
}

// Remains is what drains in a process that has handed over.
type Remains struct {
	PID     int            `json:"pid"`
	Flows   int            `json:"flows"`
	Reasons map[string]int `json:"reasons"`
	Until   time.Time      `json:"until"` // then they are ended
	// Share is what they still hold of limits, as the ledger says it: the taker goes on
	// to leave that to them.
	Share json.RawMessage `json:"share,omitempty"`
	// VIPs is how many of them are on which VIP: they do not go with it to another host.
	VIPs map[string]int `json:"vips,omitempty"`
}

// Options are how a giver gives.
type Options struct {
	// Features are those that it speaks; nil is none, as of the releases before them.
	Features []string
	// Canary is how long the first lot is observed; 0 or less: not at all.
	Canary time.Duration
}

// ErrNoWord is that the taker ended before it said a word.
var ErrNoWord = errors.New("move: the new process ended without a word")

// ErrNoAnswer is that the taker lives and has not said a word for [StartTime].
var ErrNoAnswer = errors.New("move: the new process has not answered for " + StartTime.String())

// ErrStalled is that the taker has not answered for as long as it is waited for.
var ErrStalled = errors.New("move: the new process does not answer")

// Given is how far a handing over came.
type Given struct {
	Committed bool // some flows are the taker's
	Switched  bool // new connections were
	Done      bool // the taker was told to go on alone: it has everything
	Residue   bool // and listens to what drains here
	Copied    int  // descriptors that went over while they were served
	Idle      int  // idle legs that went along
}

// giving is one handing over, on the giver's side.
type giving struct {
	Given
	c        Carrier
	g        Giver
	canary   time.Duration
	features []string // that both speak
	room     int      // for descriptors, at the taker
	files    int      // that it may have open
	copied   map[uint64]bool
	number   uint16
	body     []byte // of the last offer: room for the next one
	stalls   int    // in a row
	slow     int    // how often it has answered late, up to slowMax
}

// Give speaks the giver's part of an upgrade from greeting to end.
//
//	step          giver                              taker               undone by
//	greeting      serves                        <--- Hello
//	              Inherit                       ---> begins, applies     its end
//	              serves                        <--- Ready
//	copying       bulk of knowledge, Copy       ---> holds duplicates    Drop, its end
//	canary        parks 8, Offer                ---> examines            Abort: they go back
//	              Commit                        ---> adopts, serves      nothing
//	              serves the others; Look       ---> observes
//	              Seen is bad, or does not come                          the taker is ended, and with it the canary
//	switching     stops accepting and granting                           accepts and grants again
//	              what has changed since; Accept --> accepts, grants
//	flows         lots of 8: Offer, Commit      ---> adopts, serves      as the canary's
//	done          Done                          ---> is the node         nothing
//	              Residue, once a second        ---> shows it
//
// An error before Done means that the giver is to go on: it ends the taker, sees its
// end, and only then closes the channel, for to a taker that lives its end of file is
// the giver's death. An error after Done means only that the taker has not answered.
func Give(c Carrier, g Giver, o Options) (Given, error) {
	march(c, "giver")
	x := &giving{c: c, g: g, canary: o.Canary, copied: map[uint64]bool{}}
	err := x.run(o)
	return x.Given, err
}

func (x *giving) run(o Options) error {
	if err := x.greet(o); err != nil {
		return err
	}
	if err := x.prepare(); err != nil {
		return err
	}
	if err := x.tryCanary(); err != nil {
		return err
	}
	if err := x.change(); err != nil {
		return err
	}
	if err := x.giveAll(); err != nil {
		return err
	}
	return x.finish()
}

func (x *giving) speak(feature string) bool { return slices.Contains(x.features, feature) }

// late tells that an error is that of a time that has passed.
func late(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// patience is how long a silent taker is waited for. Each stall in a row is
// given less, so that all together are bounded too.
func (x *giving) patience() time.Duration {
	d := PatienceTime
	if x.Committed {
		d = PatienceLong
	}
	return d >> x.stalls
}

// parkedTime is how long flows may stand still for this taker.
func (x *giving) parkedTime() time.Duration { return ParkedTime << x.slow }

// answeredLate notes that a stall is over.
func (x *giving) answeredLate() {
	x.slow = min(x.slow+1, slowMax)
	if x.Switched {
		x.g.Stalled(false)
	}
}

// greet brings the taker to the point where it could serve. Nothing changes here.
func (x *giving) greet(o Options) error {
	x.g.Enter(Starting)
	if err := x.c.SetTimeout(StartTime); err != nil {
		return err
	}
	m, err := Expect(x.c, Hello)
	if err != nil {
		if Gone(err) {
			return ErrNoWord
		}
		if late(err) {
			return ErrNoAnswer
		}
		return fmt.Errorf("the new process did not come up: %w", err)
	}
	var hello Greeting
	if err := m.Into(&hello); err != nil {
		return err
	}
	if err := hello.Check(); err != nil {
		return err
	}
	for _, f := range hello.Features {
		if slices.Contains(o.Features, f) {
			x.features = append(x.features, f)
		}
	}
	if err := x.g.Greeted(hello, x.features); err != nil {
		return err
	}
	h, fds, err := x.g.Heritage()
	if err != nil {
		return err
	}
	h.Features = o.Features
	// The kernel takes a limited number of descriptors with one message; those
	// that do not fit come with more messages, which say nothing else.
	first := min(len(fds), sock.RightsMax)
	if err := SendJSON(x.c, Inherit, h, fds[:first]...); err != nil {
		return err
	}
	for rest := range slices.Chunk(fds[first:], sock.RightsMax) {
		if err := x.c.Send(Message{Kind: Inherit, FDs: rest}); err != nil {
			return err
		}
	}
	if m, err = Expect(x.c, Ready); err != nil {
		return err
	}
	var r Readiness
	if len(m.Body) > 0 {
		if err := m.Into(&r); err != nil {
			return err
		}
	}
	x.room, x.files = r.Room, r.FileLimit
	return x.g.Stopped()
}

// prepare brings over what can be while everything is served.
func (x *giving) prepare() error {
	if x.speak(FeatureEarly) {
		if err := x.g.Knowledge(false, func(k Knowledge) error { return x.sendJSON(Inherit, k) }); err != nil {
			return err
		}
	}
	if !x.speak(FeatureCopy) {
		return x.g.Stopped()
	}
	x.g.Enter(Copying)
	fds := x.g.Lend()
	if len(fds) > x.room {
		return x.noRoom(len(fds), x.room)
	}
	for some := range slices.Chunk(fds, sock.RightsMax) {
		if err := x.copy(some); err != nil {
			return err
		}
		if err := x.g.Stopped(); err != nil {
			return err
		}
	}
	return nil
}

// copyTries bounds how often a message of duplicates is put together anew: loops go on
// to close sockets, and one that is closed between its last look and the message
// makes the kernel refuse all of it. What cannot be sent so goes with its offer.
const copyTries = 20

// copy sends duplicates. A socket that is closed by now is none any more, or
// another's: its cookie tells.
func (x *giving) copy(fds []sock.FD) error {
	var cookies []uint64
	for tries := 0; ; tries++ {
		var there []sock.FD
		cookies = cookies[:0]
		for _, fd := range fds {
			if c, err := x.g.Cookie(fd); err == nil && !x.copied[c] {
				cookies, there = append(cookies, c), append(there, fd)
			}
		}
		if len(there) == 0 || tries == copyTries {
			return nil
		}
		if len(there) > x.room {
			return x.noRoom(len(x.copied)+len(there), len(x.copied)+x.room)
		}
		err := x.send(Message{Kind: Copy, FDs: there})
		if err == nil {
			break
		}
		if !errors.Is(err, sock.NotOpen) {
			return err
		}
	}
	if err := x.c.SetTimeout(x.patience()); err != nil {
		return err
	}
	m, err := Expect(x.c, Copied)
	if late(err) {
		return ErrStalled
	}
	if err != nil {
		return err
	}
	var h Holding
	if err := m.Into(&h); err != nil {
		return err
	}
	x.room = h.Room
	x.Copied += len(cookies)
	for _, c := range cookies {
		x.copied[c] = true
	}
	return nil
}

func (x *giving) noRoom(sockets, room int) error {
	return &frozen.Refused{What: "open files", Why: fmt.Sprintf("%d sockets of flows are to go to the new process, which has room for %d: it may have %d files open", sockets, room, x.files)}
}

// drop tells which copies are not needed any more.
func (x *giving) drop() error {
	if !x.speak(FeatureCopy) {
		return nil
	}
	var gone []uint64
	for _, c := range x.g.Dropped() {
		if x.copied[c] {
			delete(x.copied, c)
			gone = append(gone, c)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	return x.sendJSON(Drop, gone)
}

// tryCanary moves a first lot and has it observed. Nothing else has left then.
func (x *giving) tryCanary() error {
	if !x.speak(FeatureCanary) || x.canary <= 0 {
		return nil
	}
	x.g.Enter(Canary)
	for tries := 0; !x.Committed; tries++ {
		lot, err := x.g.Park(true, LotFlows)
		if lot == nil || err != nil {
			return err
		}
		if err := x.give(lot); err != nil {
			return err
		}
	}
	if err := x.sendJSON(Look, Watch{For: x.canary}); err != nil {
		return fmt.Errorf("the first flows were not observed: %w", err)
	}
	if err := x.c.SetTimeout(x.canary + PatienceTime); err != nil {
		return err
	}
	m, err := Expect(x.c, Seen)
	if err != nil {
		if late(err) {
			err = ErrStalled
		}
		return fmt.Errorf("the first flows were not observed: %w", err)
	}
	var s Sight
	if err := m.Into(&s); err != nil {
		return err
	}
	return s.Bad()
}

// change makes the taker the one that accepts and grants.
func (x *giving) change() error {
	if !x.Committed {
		if err := x.g.Stopped(); err != nil {
			return err
		}
	}
	x.g.Enter(Switching)
	x.Switched = true
	if err := x.g.Switch(); err != nil {
		return err
	}
	if err := x.g.Knowledge(true, func(k Knowledge) error { return x.sendJSON(Inherit, k) }); err != nil {
		return err
	}
	for there := false; !there; {
		a := x.g.Acceptance()
		var body any = a
		if !x.speak(FeatureShare) {
			body = a.Places
		}
		m, err := message(Accept, body)
		if err == nil {
			there, err = x.post(m)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// giveAll moves lots until nothing is left but what was refused.
func (x *giving) giveAll() error {
	x.g.Enter(Flows)
	for {
		if err := x.giveIdle(); err != nil {
			return err
		}
		if err := x.drop(); err != nil {
			return err
		}
		// After a stall one flow shows whether the taker is there again.
		most := LotFlows
		if x.stalls > 0 {
			most = 1
		}
		lot, err := x.g.Park(false, most)
		if err != nil {
			return err
		}
		if lot == nil {
			return x.giveIdle()
		}
		if err := x.give(lot); err != nil {
			return err
		}
	}
}

// idleMost is how many idle legs go with one message.
const idleMost = 64

// giveIdle moves idle legs that are due to go. They need no commit: one that is
// lost on the way ends, and no request was on it.
func (x *giving) giveIdle() error {
	for x.speak(FeatureIdle) {
		lot := x.g.ParkIdle(idleMost)
		if lot == nil {
			return nil
		}
		cookies, fds := x.places(lot.FDs)
		body, err := json.Marshal(idleBody{Cookies: cookies, Octets: lot.Octets})
		sent := err == nil
		if sent {
			err = x.send(Message{Kind: Idle, Body: body, FDs: fds})
		}
		x.used(cookies)
		// After an error the taker may have them all the same, and lives until it is ended.
		x.g.ForgetIdle(lot, sent)
		x.Idle += lot.N
		if err != nil {
			return err
		}
	}
	return nil
}

// idleBody is the body of an Idle.
type idleBody struct {
	Cookies []uint64 `json:"cookies"` // by descriptor; 0: it is with the message
	Octets  []byte   `json:"octets"`
}

// places tells where the taker finds descriptors: under a cookie, or with the
// message (0), and gives those of the latter.
func (x *giving) places(fds []sock.FD) (cookies []uint64, with []sock.FD) {
	for _, fd := range fds {
		c := uint64(0)
		if x.speak(FeatureCopy) {
			if c, _ = x.g.Cookie(fd); !x.copied[c] {
				c = 0
			}
		}
		if cookies = append(cookies, c); c == 0 {
			with = append(with, fd)
		}
	}
	return cookies, with
}

// used notes that copies are the taker's own by now.
func (x *giving) used(cookies []uint64) {
	for _, c := range cookies {
		delete(x.copied, c)
	}
}

// finish makes the taker the one process of the node.
func (x *giving) finish() error {
	x.g.Enter(Finished)
	for !x.Done {
		m, err := message(Done, x.g.Estate())
		if err == nil {
			x.Done, err = x.post(m)
		}
		if err != nil {
			return err // it was not delivered: a message is taken whole or not
		}
		if !x.Done { // it has accepted again meanwhile
			if err := x.giveAll(); err != nil {
				return err
			}
		}
	}
	x.Residue = x.speak(FeatureResidue) // whether the answer comes or not
	if err := x.c.SetTimeout(StartTime); err != nil {
		return err
	}
	if _, err := Expect(x.c, Settled); err != nil {
		return err
	}
	x.g.Unlend()
	return nil
}

// post sends a message while nothing is parked. A taker that does not read holds
// nobody up: the giver serves until it does. there is false if it has not got this
// message then.
func (x *giving) post(m Message) (there bool, err error) {
	d := x.patience()
	if x.Switched {
		d = ParkedTime
	}
	if err := x.c.SetTimeout(d); err != nil {
		return false, err
	}
	err = x.c.Send(m)
	if !late(err) {
		return err == nil, err
	}
	there = errors.Is(err, ErrBegun)
	return there, x.outlast(false)
}

func (x *giving) send(m Message) error {
	for {
		if there, err := x.post(m); there || err != nil {
			return err
		}
	}
}

func (x *giving) sendJSON(k Kind, v any) error {
	m, err := message(k, v)
	if err != nil {
		return err
	}
	return x.send(m)
}

// outlast waits for a taker that has not answered, or not read, in time. Nothing
// is parked; the lot that was offered last is void. due: it will be answered still.
func (x *giving) outlast(due bool) error {
	d := x.patience()
	x.stalls++
	if d < ParkedTime {
		return ErrStalled
	}
	if x.Switched {
		x.g.Stalled(true)
	}
	err := x.c.SetTimeout(d)
	if err == nil {
		err = x.c.Send(Message{Kind: Abort, Lot: x.number})
	}
	if err == nil && due {
		_, err = x.answer(Taken)
		var no *refusedLot
		if errors.As(err, &no) {
			err = nil
		}
	}
	if err != nil {
		if late(err) {
			err = ErrStalled
		}
		return err
	}
	x.answeredLate()
	return nil
}

// refusedLot is a refusal of a lot, as an error.
type refusedLot struct{ Refusal }

func (r *refusedLot) Error() string { return r.What + ": " + r.Why }

// answer receives what the taker says of the lot that was offered last.
func (x *giving) answer(k Kind) (Message, error) {
	m, err := x.c.Receive()
	if err != nil {
		return m, fmt.Errorf("move: waiting for %v: %w", k, err)
	}
	if m.Lot != x.number && x.speak(FeatureLots) {
		return m, fmt.Errorf("move: %v of lot %d came where lot %d was due", m.Kind, m.Lot, x.number)
	}
	switch m.Kind {
	case k:
		return m, nil
	case Refuse:
		var no refusedLot
		if err := m.Into(&no.Refusal); err != nil {
			return m, err
		}
		return m, &no
	}
	return m, fmt.Errorf("move: %v came where %v was due", m.Kind, k)
}

// give moves a lot, but for those of its flows that the taker refuses. If the taker
// does not answer in time, the giver serves what it has not committed, and Park
// will find it again.
func (x *giving) give(lot *Lot) error {
	for todo := []*Lot{lot}; len(todo) > 0; {
		l := todo[0]
		due, err := x.offer(l)
		var no *refusedLot
		if errors.As(err, &no) {
			some, err := x.sort(l, &no.Refusal)
			if todo = append(some, todo[1:]...); err != nil {
				return errors.Join(err, x.giveBack(todo...))
			}
			continue
		}
		if err == nil && !x.Committed {
			// What is the taker's ends with it: the last moment to end it without loss.
			if err = x.g.Stopped(); err != nil {
				return errors.Join(err, x.giveBack(todo...))
			}
		}
		if err == nil {
			due, err = false, x.commit(l)
		}
		if err == nil {
			todo = todo[1:]
			if err = x.adopted(l, &todo); err != nil {
				return errors.Join(err, x.giveBack(todo...))
			}
			continue
		}
		if back := x.giveBack(todo...); back != nil || !late(err) {
			return errors.Join(err, back)
		}
		return x.outlast(due)
	}
	return nil
}

// giveBack returns lots that were not committed.
func (x *giving) giveBack(lots ...*Lot) (err error) {
	for _, l := range lots {
		if planted.Bug(81) {
			continue
		}
		if e := l.to(returned); e != nil {
			err = errors.Join(err, e)
			continue
		}
		err = errors.Join(err, x.g.Return(l))
	}
	return err
}

// offer shows a lot to the taker. due tells, of an error that is late, that the
// taker will answer.
func (x *giving) offer(l *Lot) (due bool, err error) {
	if x.number++; x.number == 0 {
		x.number++
	}
	l.number = x.number
	cookies, fds := x.places(l.FDs)
	body, err := l.encode(x.body[:0], cookies, x.speak(FeatureCopy))
	if err == nil {
		x.body = body // fresh memory costs more in page faults than in copying
		err = l.to(offered)
	}
	if err == nil {
		err = x.c.SetTimeout(x.parkedTime())
	}
	if err != nil {
		return false, err
	}
	if err = x.c.Send(Message{Kind: Offer, Lot: l.number, Body: body, FDs: fds}); err != nil {
		return errors.Is(err, ErrBegun), err
	}
	l.cookies = cookies
	_, err = x.answer(Taken)
	return true, err
}

// sort parts a refused lot into what may be offered again, and what stays.
func (x *giving) sort(l *Lot, no *Refusal) (again []*Lot, err error) {
	if len(no.Cookies) > 0 { // copies that the taker has not: they go with the offer
		x.used(no.Cookies)
		return []*Lot{l}, l.to(parked)
	}
	stays := map[uint64]*frozen.Refused{}
	for _, f := range no.Flows {
		stays[f.Flow] = &frozen.Refused{What: f.What, Why: f.Why, Retry: f.Retry}
	}
	if len(stays) == 0 && len(l.Flows) == 1 {
		stays[l.Flows[0].Id] = &frozen.Refused{What: no.What, Why: no.Why, Retry: no.Retry}
	}
	var ids []uint64
	for _, f := range l.Flows {
		if len(stays) == 0 {
			ids = append(ids, f.Id) // any of them: each is offered alone
		} else if no := stays[f.Id]; no != nil {
			x.g.Refused(f.Id, no)
			ids = append(ids, f.Id)
		}
	}
	if len(ids) == 0 {
		return []*Lot{l}, errors.Join(l.to(parked), fmt.Errorf("move: a refusal names flows that were not offered: %s: %s", no.What, no.Why))
	}
	if len(stays) == 0 {
		for rest := l; rest != nil; ids = ids[1:] {
			if len(ids) == 1 {
				return append(again, rest), nil
			}
			var one *Lot
			if one, rest, err = x.split(rest, ids[:1]); err != nil {
				return append(again, rest), err
			}
			again = append(again, one)
		}
	}
	if len(ids) == len(l.Flows) {
		return nil, x.giveBack(l)
	}
	those, others, err := x.split(l, ids)
	if err != nil {
		return []*Lot{l}, err
	}
	if planted.Bug(91) {
		return []*Lot{others}, nil
	}
	return []*Lot{others}, x.giveBack(those)
}

func (x *giving) split(l *Lot, ids []uint64) (those, others *Lot, err error) {
	if those, others = x.g.Split(l, ids); those == nil || others == nil {
		return nil, l, fmt.Errorf("move: lot %d could not be split", l.number)
	}
	return those, others, l.to(nowhere)
}

// commit gives a lot to the taker. On an error it was not delivered: a message is
// taken whole or not, and this one is small.
func (x *giving) commit(l *Lot) error {
	m, err := message(Commit, l.Since)
	if err != nil {
		return err
	}
	m.Lot = l.number
	if err := x.c.SetTimeout(x.parkedTime()); err != nil {
		return err
	}
	if err := x.c.Send(m); err != nil && !planted.Bug(93) {
		return err
	}
	x.Committed = true
	x.used(l.cookies)
	return l.to(committed)
}

// adopted hears that a committed lot is served. What else is parked goes back if
// that takes long; the lot itself cannot.
func (x *giving) adopted(l *Lot, others *[]*Lot) error {
	m, err := x.answer(Adopted)
	if late(err) {
		back := x.giveBack(*others...)
		*others = nil
		d := x.patience()
		x.stalls++
		if x.Switched {
			x.g.Stalled(true)
		}
		if err = errors.Join(back, x.c.SetTimeout(d)); err == nil {
			if m, err = x.answer(Adopted); err == nil {
				x.answeredLate()
			}
		}
		if late(err) {
			err = ErrStalled
		}
	} else {
		x.stalls = 0
	}
	var a Adoption
	if err == nil {
		err = m.Into(&a)
	}
	if err != nil {
		// It may have served them before it died: what it read and wrote nobody
		// knows, so they cannot go on.
		if planted.Bug(82) {
			return errors.Join(err, x.g.Return(l))
		}
		x.g.Lose(l)
		return err
	}
	x.g.Forget(l, a)
	return l.to(forgotten)
}
