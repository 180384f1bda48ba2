package move

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/planted"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// Taker is the process that takes over, as the order of an upgrade needs it. All
// methods are called by one goroutine, and may wait.
type Taker interface {
	// Begin starts with what the giver leaves, whose descriptors are the taker's. All
	// that may fail when a process begins fails here. Nothing is accepted, and nothing
	// that is limited granted.
	Begin(h *Heritage, fds []sock.FD) (Readiness, error)
	// Learn hears what the giver knows; what cannot be read begins anew.
	Learn(Knowledge) error

	// Room is for how many more descriptors there is room.
	Room() int
	// Cookie is the kernel's name of a socket, the same in all processes.
	Cookie(sock.FD) (uint64, error)
	// Close ends a duplicate: the socket is the giver's. Reset ends a socket that has
	// no owner any more.
	Close(sock.FD)
	Reset(sock.FD)

	// Examine reads a lot and sees that each flow of it could be served, with these
	// descriptors, which stay the caller's. An error is a [frozen.Refused] of all, or
	// [Unheld] of some. The result is what Adopt gets.
	Examine(octets []byte, fds []sock.FD) (any, error)
	// Adopt serves what was examined; it and its descriptors are the taker's now. It
	// returns when all of it is served. since is when each was parked.
	Adopt(lot any, fds []sock.FD, since []int64) Adoption
	// AdoptIdle puts idle backend legs into the pools.
	AdoptIdle(octets []byte, fds []sock.FD) error

	// Accept begins to accept, and to grant what the giver does not hold.
	Accept(Acceptance)
	// Observe tells how what was adopted has fared.
	Observe() Sight
	// Finish makes this process the node: estate is what the giver has counted.
	// Nothing that fails ends it, for nobody else has the flows.
	Finish(estate []byte)
	// Orphaned goes on after the giver's death with what was committed; accepting
	// tells whether it accepts already.
	Orphaned(accepting bool, why error)
	// Remains hears what drains in the giver; nil: nothing any more. Until then the
	// limits are divided as they were at Accept, or as it was told here last: also if
	// the giver has not heard that all is settled, for it drains all the same.
	Remains(*Remains)
}

// Unheld are the flows of a lot that cannot be served here; the others can.
type Unheld []Refusal

func (u Unheld) Error() string {
	if len(u) == 0 {
		return "none"
	}
	return fmt.Sprintf("%d flows cannot be held, the first: %s: %s", len(u), u[0].What, u[0].Why)
}

// Taking is one taking over, on the taker's side.
type Taking struct {
	c        Carrier
	t        Taker
	features []string           // that both speak
	copies   map[uint64]sock.FD // of sockets that are the giver's
	lot      any                // that was examined, and is not committed
	count    int                // of its flows; 0: there is none
	last     uint16             // number of the last offer
	fds      []sock.FD          // of the offer, by place
	cookies  []uint64           // of fds: 0 came with it, the others are copies
	state    takingState
	took     int       // flows that were committed
	back     []sock.FD // that are the giver's again: see answer
}

type takingState uint8

const (
	waiting   takingState = iota // the giver accepts
	accepting                    // this side does
	finished                     // the giver is done
)

// Greet says hello, begins with the heritage and tells that this side is ready.
func Greet(c Carrier, t Taker, hello Greeting) (*Taking, error) {
	march(c, "taker")
	x := &Taking{c: c, t: t, copies: map[uint64]sock.FD{}}
	if err := c.SetTimeout(StartTime); err != nil {
		return nil, err
	}
	if err := SendJSON(c, Hello, hello); err != nil {
		return nil, err
	}
	m, err := Expect(c, Inherit)
	if err != nil {
		return nil, err
	}
	var h Heritage
	fds := m.FDs
	err = m.Into(&h)
	for err == nil && len(fds) < len(h.Listeners) {
		var more Message
		if more, err = Expect(c, Inherit); err == nil && len(more.FDs) == 0 {
			break
		}
		fds = append(fds, more.FDs...)
	}
	if err == nil && len(fds) != len(h.Listeners) {
		err = fmt.Errorf("move: %d descriptors for %d listeners", len(fds), len(h.Listeners))
	}
	if err != nil {
		for _, fd := range fds {
			t.Close(fd)
		}
		return nil, err
	}
	for _, f := range h.Features {
		if slices.Contains(hello.Features, f) {
			x.features = append(x.features, f)
		}
	}
	r, err := t.Begin(&h, fds)
	if err != nil {
		no := Refusal{What: "start", Why: err.Error()}
		var because *frozen.Refused
		if errors.As(err, &because) {
			no = Refusal{What: because.What, Why: because.Why, Retry: because.Retry}
		}
		_ = SendJSON(c, Refuse, no) // the giver sees our end otherwise
		return nil, err
	}
	return x, SendJSON(c, Ready, r)
}

func (x *Taking) speak(feature string) bool { return slices.Contains(x.features, feature) }

// Run takes flows until the giver is done, or has died after something was
// committed or this side accepts: then this side goes on alone with what it owns.
// Any other end is an error: the giver goes on, and this process is to end.
func (x *Taking) Run() error {
	for {
		m, err := x.c.Receive()
		if err == nil {
			err = x.step(m)
		}
		switch {
		case err != nil && Gone(err):
			// What it had not committed has ended with it: not in peace.
			if planted.Bug(83) {
				x.end(x.t.Close)
			}
			x.end(x.t.Reset)
			x.unread()
			if x.state != accepting && x.took == 0 {
				return fmt.Errorf("move: succession: %w", err)
			}
			x.t.Orphaned(x.state == accepting, err)
			return nil
		case err != nil:
			x.end(x.t.Close)
			return fmt.Errorf("move: succession: %w", err)
		case x.state == finished:
			return nil
		}
	}
}

// end gives up all that is not this side's.
func (x *Taking) end(close func(sock.FD)) {
	x.drop()
	for _, fd := range x.back {
		close(fd)
	}
	x.back = nil
	for c, fd := range x.copies {
		close(fd)
		delete(x.copies, c)
	}
}

// unread resets the sockets that lie in the channel after the giver's death: it has
// offered them to a taker that stood still.
func (x *Taking) unread() {
	for {
		m, err := x.c.Receive()
		if err != nil {
			return
		}
		for _, fd := range m.FDs {
			x.t.Reset(fd)
		}
	}
}

// drop gives back what was offered and not committed. Copies are kept: it may be
// offered again.
func (x *Taking) drop() {
	for i, fd := range x.fds {
		if x.cookies[i] == 0 {
			x.back = append(x.back, fd)
		}
	}
	x.lot, x.count, x.fds, x.cookies = nil, 0, nil, nil
}

// answer tells the giver something. As it hears that, it lives, and what is its own
// again can be closed. Before, it might be dead: ours would be the last descriptor of
// a flow that has no owner, whose end would look like that of a whole answer.
func (x *Taking) answer(m Message) error {
	if err := x.c.Send(m); err != nil {
		return err
	}
	x.closeAll(x.back)
	x.back = x.back[:0]
	return nil
}

// step does what one message asks for.
func (x *Taking) step(m Message) error {
	switch m.Kind {
	case Inherit:
		var k Knowledge
		if err := m.Into(&k); err != nil {
			return err
		}
		return x.t.Learn(k)
	case Copy:
		return x.keep(m.FDs)
	case Drop:
		var cookies []uint64
		if err := m.Into(&cookies); err != nil {
			return err
		}
		for _, c := range cookies {
			if fd, ok := x.copies[c]; ok {
				x.t.Close(fd)
				delete(x.copies, c)
			}
		}
		return nil
	case Idle:
		return x.idle(m)
	case Look:
		var w Watch
		if err := m.Into(&w); err != nil {
			return err
		}
		return x.look(w.For)
	case Accept:
		if x.state != waiting {
			return errors.New("move: to accept was told twice")
		}
		a, err := x.acceptance(m)
		if err != nil {
			return err
		}
		x.state = accepting
		x.t.Accept(a)
		// From now on only its end would tell us to go on alone.
		return x.c.SetTimeout(0)
	case Offer:
		return x.examine(m)
	case Commit:
		return x.adopt(m)
	case Abort:
		x.drop()
		return nil
	case Done:
		if x.state != accepting || x.count > 0 {
			return fmt.Errorf("move: %v came out of turn", m.Kind)
		}
		x.state = finished
		x.t.Finish(m.Body)
		// Copies are left of what the giver keeps.
		if Gone(x.settled()) {
			x.end(x.t.Reset)
		} else {
			x.end(x.t.Close)
		}
		return nil
	}
	return fmt.Errorf("move: %v came out of turn", m.Kind)
}

// doneTries is how often in a row a call may fail once all is done, unless the giver is
// gone: it drains what was refused, and has its part of the limits.
const doneTries = 20

// settled tells the giver that all is done, which it is, whether that is heard or not.
func (x *Taking) settled() (err error) {
	for range doneTries {
		if err = x.c.Send(Message{Kind: Settled}); err == nil || Gone(err) {
			break
		}
	}
	return err
}

// look observes what was adopted for that long, unless the giver dies meanwhile:
// nobody else would accept then.
func (x *Taking) look(d time.Duration) error {
	if d > 0 {
		if err := x.c.SetTimeout(d); err != nil {
			return err
		}
		m, err := x.c.Receive()
		if err == nil {
			x.closeAll(m.FDs)
			return fmt.Errorf("move: %v came out of turn", m.Kind)
		}
		if !late(err) {
			return err
		}
	}
	if err := x.c.SetTimeout(0); err != nil { // as after Accept: what was adopted has nobody else
		return err
	}
	return SendJSON(x.c, Seen, x.t.Observe())
}

func (x *Taking) acceptance(m Message) (a Acceptance, err error) {
	switch {
	case x.speak(FeatureShare):
		err = m.Into(&a)
	case len(m.Body) > 0: // else a release that does not tell
		err = m.Into(&a.Places)
	}
	return a, err
}

// keep holds copies under their cookies.
func (x *Taking) keep(fds []sock.FD) error {
	for _, fd := range fds {
		c, err := x.t.Cookie(fd)
		if _, twice := x.copies[c]; err != nil || twice {
			x.t.Close(fd)
			continue // it goes with its offer
		}
		x.copies[c] = fd
	}
	return SendJSON(x.c, Copied, Holding{Held: len(x.copies), Room: x.t.Room()})
}

// find puts the descriptors of a message into their places. missing are cookies
// of which there is no copy.
func (x *Taking) find(cookies []uint64, with []sock.FD) (fds []sock.FD, missing []uint64, err error) {
	k := 0
	for _, c := range cookies {
		fd, ok := x.copies[c]
		switch {
		case c == 0 && k < len(with):
			fd, k = with[k], k+1
		case c == 0:
			return nil, nil, fmt.Errorf("move: %d descriptors came, more are named", len(with))
		case !ok:
			missing = append(missing, c)
		}
		fds = append(fds, fd)
	}
	if n := len(fds); n > 1 && planted.Bug(94) {
		fds[0], fds[n-1] = fds[n-1], fds[0]
	}
	if k != len(with) {
		return nil, nil, fmt.Errorf("move: %d descriptors came, %d are named", len(with), k)
	}
	return fds, missing, nil
}

// examine looks at an offer, and answers.
func (x *Taking) examine(m Message) error {
	x.drop()
	if x.speak(FeatureLots) && int16(m.Lot-x.last) <= 0 {
		x.back = append(x.back, m.FDs...)
		return fmt.Errorf("move: lot %d was offered after lot %d", m.Lot, x.last)
	}
	x.last = m.Lot
	octets, cookies := m.Body, make([]uint64, len(m.FDs))
	var err error
	if x.speak(FeatureCopy) {
		if cookies, octets, err = cookiesOf(m.Body); err != nil {
			x.back = append(x.back, m.FDs...)
			return err
		}
	}
	fds, missing, err := x.find(cookies, m.FDs)
	if err != nil {
		x.back = append(x.back, m.FDs...)
		return err
	}
	if len(missing) > 0 {
		x.back = append(x.back, m.FDs...)
		return x.refuse(Refusal{What: "copy", Why: "there is none of some sockets", Cookies: missing})
	}
	x.fds, x.cookies = fds, cookies
	if x.lot, err = x.t.Examine(octets, fds); err != nil {
		x.drop()
		no := Refusal{What: "flow", Why: err.Error()}
		var because *frozen.Refused
		var some Unheld
		switch {
		case errors.As(err, &because):
			no = Refusal{What: because.What, Why: because.Why, Retry: because.Retry}
		case errors.As(err, &some) && len(some) > 0:
			no = some[0]
			no.Flows = some
		}
		return x.refuse(no)
	}
	x.count = 1
	return x.answer(Message{Kind: Taken, Lot: x.last})
}

func (x *Taking) refuse(no Refusal) error {
	m, err := message(Refuse, no)
	if err != nil {
		return err
	}
	m.Lot = x.last
	return x.answer(m)
}

func (x *Taking) closeAll(fds []sock.FD) {
	for _, fd := range fds {
		x.t.Close(fd)
	}
}

// adopt serves what was offered last, once.
func (x *Taking) adopt(m Message) error {
	var since []int64
	if err := m.Into(&since); err != nil {
		return err
	}
	if x.count == 0 || m.Lot != x.last {
		return fmt.Errorf("move: lot %d was committed, and is not offered", m.Lot)
	}
	for i, c := range x.cookies {
		if c == 0 {
			x.forget(x.fds[i])
		} else if !planted.Bug(84) {
			delete(x.copies, c)
		}
	}
	lot, fds := x.lot, x.fds
	x.lot, x.count, x.fds, x.cookies = nil, 0, nil, nil
	x.took += len(since)
	a, err := message(Adopted, x.t.Adopt(lot, fds, since))
	if err != nil {
		return err
	}
	a.Lot = x.last
	if err := x.c.SetTimeout(0); err != nil { // as after Accept: these flows have nobody else
		return err
	}
	return x.answer(a)
}

// forget closes a copy of a socket that came with its message. The giver does not
// know of it: its number was another socket's when it was looked at.
func (x *Taking) forget(fd sock.FD) {
	if len(x.copies) == 0 {
		return
	}
	c, err := x.t.Cookie(fd)
	if err != nil {
		return
	}
	if other, ok := x.copies[c]; ok {
		x.t.Close(other)
		delete(x.copies, c)
	}
}

// idle takes idle backend legs.
func (x *Taking) idle(m Message) error {
	var b idleBody
	if err := json.Unmarshal(m.Body, &b); err != nil {
		x.closeAll(m.FDs)
		return fmt.Errorf("move: %v: %w", m.Kind, err)
	}
	fds, missing, err := x.find(b.Cookies, m.FDs)
	if err == nil && len(missing) > 0 {
		err = fmt.Errorf("move: idle legs of which there are no copies: %d", len(missing))
	}
	if err != nil {
		x.closeAll(m.FDs)
		return err
	}
	for i, c := range b.Cookies {
		if c == 0 {
			x.forget(fds[i])
		}
		delete(x.copies, c)
	}
	return x.t.AdoptIdle(b.Octets, fds)
}

// Watch hears what drains in the giver until nothing does. It is called after
// Run, if the giver was done, and ends with the channel.
func (x *Taking) Watch() {
	defer x.t.Remains(nil)
	if x.state != finished || !x.speak(FeatureResidue) {
		return
	}
	for failed := 0; failed < doneTries; {
		m, err := x.c.Receive()
		if err != nil {
			if Gone(err) {
				return
			}
			failed++
			continue
		}
		failed = 0
		x.closeAll(m.FDs)
		var r Remains
		if m.Kind == Residue && m.Into(&r) == nil {
			x.t.Remains(&r)
		}
	}
}
