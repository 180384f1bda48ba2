package flow

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
)

// What kind of fact an [Event] is.
type EventKind uint8

// The kinds. A fact is something that has happened, never a request.
const (
	Secured     EventKind = iota // Endpoint is ours: one of its slots is held for the flow
	Unavailable                  // no endpoint is left to try, or none may be: Why
	Rejected                     // the queue is full
	Dialed                       // the backend leg is connected
	DialFailed                   // it is not: refused, unreachable, out of resources
	Received                     // Octets came from Leg; they are valid until Settle
	Relayed                      // N octets went from Leg to the other one inside the kernel
	Slackened                    // Leg gave less than a bulk transfer would: relaying is over
	Ended                        // FIN came from Leg, after all it sent
	Wrote                        // N of the octets due to Leg were taken by its kernel
	HasShut                      // our FIN was sent on Leg
	Broke                        // Leg was reset or failed; nothing more comes or goes
	Expired                      // the deadline that Wants named has passed
	Kill                         // someone with the right to wants the flow to end: Why
	Resumed                      // the turn has room for what came before and was not digested
	Deafened                     // Leg takes nothing any more, but may have said something before
	Crept                        // N nanoseconds ago the kernel still sent what it had taken before
	TurnedAway                   // an order sheds it: what a sink would do is Drop
	Finish                       // someone with the right to wants the flow to end, but to lose nothing that was read
)

var eventNames = [...]string{"secured", "unavailable", "rejected", "dialed", "dial-failed", "received", "relayed", "slackened", "ended", "wrote", "has-shut", "broke", "expired", "kill", "resumed", "deafened", "crept", "turned-away", "finish"}

func (k EventKind) String() string {
	if int(k) < len(eventNames) {
		return eventNames[k]
	}
	return fmt.Sprintf("event(%d)", uint8(k))
}

// Event is one fact for [Flow.Step]. Which fields count depends on the kind.
type Event struct {
	Kind     EventKind
	Leg      Side
	Full     bool  // Received: the read filled the whole scratch
	Reused   bool  // Dialed: the leg has served a request before
	Severed  bool  // Deafened: by more than that the peer has ended
	Stuck    bool  // Secured: the endpoint was chosen because the client was there before
	Why      Cause // Unavailable: NoEndpoint, which is also 0, BreakerOpen or RetriesSpent; Kill: 0 is Killed
	Drop     config.Drop
	N        int
	Octets   []byte // Received: those of Unread first
	Endpoint *config.Endpoint
	Local    netip.AddrPort // Dialed: where the client's leg ends here, if ProxyHeader is to be sent
	Desk     *Desk          // needed by a flow that speaks HTTP, or is greeted by a PROXY header; others fall back, and tell outcomes, only with one
}

// bulkAfter is how many full reads in a row make a transfer bulk. Two, since
// one may be a single large message.
const bulkAfter = 2

// Step tells f that e happened at now. It runs to completion and does no I/O,
// so between two Steps f is at rest and may be frozen. A fact that cannot be
// true in f's state is a bug of the runner and panics.
func (f *Flow) Step(now Instant, e Event) {
	if e.Kind == Finish {
		f.finishUp(now, &e)
		return
	}
	switch f.state {
	case Relaying:
		if f.x != nil {
			f.exchanging(now, &e)
			return
		}
		if f.finishing() {
			f.partingStep(&e)
			return
		}
		f.relaying(now, &e)
	case Reading:
		f.reading(now, &e)
	case Queued:
		f.queued(now, &e)
	case Dialing:
		f.dialing(now, &e)
	case Answering:
		f.answering(now, &e)
	case Lingering:
		f.lingering(now, &e)
	case Sunk:
		f.sinking(now, &e)
	default:
		f.impossible(&e)
	}
}

func (f *Flow) impossible(e *Event) {
	panic(fmt.Sprintf("flow: f-%x is %v and was told %v of its %v leg", f.id, f.state, e.Kind, e.Leg))
}

func (f *Flow) end(c Cause) {
	f.cause, f.last = c, f.stage()
	f.become(Done)
}

// kill ends a flow because somebody wants so.
func (f *Flow) kill(e *Event) {
	if e.Why == NotEnded {
		e.Why = Killed
	}
	f.end(e.Why)
}

func (f *Flow) queued(now Instant, e *Event) {
	switch e.Kind {
	case Wrote:
		f.took(e)
	case Secured:
		f.secured(now, e)
	case Unavailable:
		if e.Why == NotEnded {
			e.Why = NoEndpoint
		}
		f.waited(now)
		f.fail(now, e.Desk, 503, e.Why)
	case Rejected:
		f.waited(now)
		f.fail(now, e.Desk, 503, QueueFull)
	case TurnedAway:
		f.waited(now)
		f.drop(now, e, e.Drop)
	case Expired:
		f.waited(now)
		f.fail(now, e.Desk, 503, QueueTimeout)
	case Broke:
		f.end(ClientReset)
	case Kill:
		f.kill(e)
	default:
		f.impossible(e)
	}
}

// took notes what a leg's kernel has taken.
func (f *Flow) took(e *Event) {
	leg := &f.legs[e.Leg]
	if e.N > len(leg.due()) {
		f.impossible(e)
	}
	leg.off += uint32(e.N)
	leg.sent += uint64(e.N)
}

// crept: what waits in a kernel's queue moves, though we have nothing to do with
// it. A slow reader of much is not idle.
func (f *Flow) crept(now Instant, e *Event) { f.at = max(f.at, now-Instant(e.N)) }

// secured: an endpoint is the flow's.
func (f *Flow) secured(now Instant, e *Event) {
	b := &f.legs[Backend]
	f.waited(now)
	b.facts &^= stuck | paid
	if e.Stuck {
		b.facts |= stuck
	}
	f.part(false)
	f.endpoint = e.Endpoint
	if f.entry != nil {
		f.entry.endpoint = e.Endpoint
	}
	if e.Endpoint.Drop != config.NoDrop {
		f.drop(now, e, e.Endpoint.Drop)
		return
	}
	f.at = after(now, f.backend.ConnectTimeout)
	f.become(Dialing)
}

// drop deals with a flow whose endpoint is a sink, or that an order sheds.
func (f *Flow) drop(now Instant, e *Event, how config.Drop) {
	switch how {
	case config.DropReset:
		f.end(Dropped)
		f.last = Sink
	case config.DropHold:
		if f.x != nil {
			f.legs[Backend].drop(e.Desk.Lender)
			f.x.in[Client].drop(e.Desk.Lender)
		} else if e.Desk != nil {
			f.legs[Backend].drop(e.Desk.Lender) // what came behind a PROXY header
		}
		f.at = now
		f.become(Sunk)
	case config.Drop503:
		if f.x == nil {
			f.end(Dropped)
			f.marks |= gentle
			f.last = Sink
			return
		}
		f.blame(Dropped)
		f.entry.phase = Sink
		f.answer(now, e.Desk, 503, Dropped)
	default:
		panic("flow: a sink that does " + how.String())
	}
}

// sinking is what a flow hears whose endpoint is a sink that holds.
func (f *Flow) sinking(now Instant, e *Event) {
	switch e.Kind {
	case Received:
		f.legs[Client].received += uint64(len(e.Octets))
		f.at = now
	case Wrote:
		f.took(e)
		f.at = now
	case Crept:
		f.crept(now, e)
	case Ended, Expired:
		f.end(Dropped)
	case Broke, Deafened:
		f.end(ClientReset)
	case Kill:
		f.kill(e)
	default:
		f.impossible(e)
	}
}

// fail ends a flow that no endpoint serves: it goes to what its backend falls
// back to, or is told by an answer, where the client understands one.
func (f *Flow) fail(now Instant, d *Desk, status int, c Cause) {
	if f.fallBack(now, d, c) {
		return
	}
	if f.x == nil {
		f.end(c)
		return
	}
	f.answer(now, d, status, c)
}

// fallBack does what the backend's Fallback says, if there is one and no
// endpoint is to be had, however long one waits. What waits in a full queue has
// endpoints.
func (f *Flow) fallBack(now Instant, d *Desk, c Cause) bool {
	fb := f.backend.Fallback
	if fb == nil || d == nil || c != NoEndpoint && c != BreakerOpen {
		return false
	}
	if fb.Respond != nil {
		if f.x == nil {
			return false // octets have no answer
		}
		f.blame(c)
		f.giveRespond(now, d, fb.Respond)
		return true
	}
	b := d.Config.Backends[fb.Backend]
	if b == nil {
		return false // both have left the configuration since
	}
	leg := &f.legs[Backend]
	f.backend, f.place, f.tried, leg.attempts, leg.facts = b, 0, 0, 0, 0
	if f.x != nil {
		// They are endpoints of the other backend.
		f.entry.endpoint = nil
		f.knownAgain(d)
	}
	f.at = after(now, b.QueueTime)
	if f.state != Queued {
		f.become(Queued)
	}
	return true
}

func (f *Flow) dialing(now Instant, e *Event) {
	switch e.Kind {
	case Wrote:
		f.took(e)
	case Dialed:
		took := f.connected(now)
		f.at = now
		f.become(Relaying)
		if f.x == nil && e.Desk != nil {
			e.Desk.Outcome = Outcome{Set: true, Good: true, Took: took}
		}
		f.dialed(e)
	case DialFailed:
		f.retry(now, e.Desk, 503)
	case Expired:
		f.retry(now, e.Desk, 504)
	case Broke:
		if e.Leg == Backend {
			f.retry(now, e.Desk, 503)
			return
		}
		f.end(ClientReset)
	case Kill:
		f.kill(e)
	default:
		f.impossible(e)
	}
}

// waited notes how long the flow was in the queue: all that went by neither before
// nor in attempts.
func (f *Flow) waited(now Instant) {
	f.legs[Client].spent = microsOf(f.lived(now) - f.headed() - f.legs[Backend].spent.span())
}

// connected notes how long it took until the backend leg was there, or was not:
// all that went neither by in the queue nor before. It gives the part since an
// endpoint was secured.
func (f *Flow) connected(now Instant) time.Duration {
	b := &f.legs[Backend]
	before := b.spent.span()
	b.spent = microsOf(f.lived(now) - f.headed() - f.legs[Client].spent.span())
	return max(0, b.spent.span()-before)
}

// retry goes back for another endpoint: nothing was sent yet, so the client
// need not know.
func (f *Flow) retry(now Instant, d *Desk, status int) {
	f.connected(now)
	f.strike()
	if int(f.legs[Backend].attempts) >= f.backend.RetryMax {
		f.part(false)
		f.fail(now, d, status, NoEndpoint)
		return
	}
	f.again(now)
}

// strike notes that the endpoint was tried in vain.
func (f *Flow) strike() { f.tried |= f.bit() }

// bit is the endpoint's in Tried.
func (f *Flow) bit() (bits uint64) {
	for i, e := range f.backend.Endpoints {
		if e.Name == f.endpoint.Name {
			bits |= 1 << (i % 64)
		}
	}
	return bits
}

// again leaves the endpoint and asks for another one.
func (f *Flow) again(now Instant) {
	b := &f.legs[Backend]
	b.attempts++
	b.facts &^= paid
	f.part(false)
	f.at = after(now, f.backend.QueueTime)
	f.become(Queued)
}

func (f *Flow) relaying(now Instant, e *Event) {
	leg := &f.legs[e.Leg]
	switch e.Kind {
	case Received:
		to := &f.legs[e.Leg.Other()]
		if len(to.due()) > 0 || leg.ended || len(e.Octets) == 0 {
			f.impossible(e) // it did not want to read
		}
		to.buf, to.off = e.Octets, 0
		leg.received += uint64(len(e.Octets))
		f.at = now
		f.full(e.Leg, e.Full)
	case Wrote:
		f.took(e)
		f.at = now
	case Relayed:
		leg.received += uint64(e.N)
		f.legs[e.Leg.Other()].sent += uint64(e.N)
		f.at = now
		return
	case Slackened:
		leg.fulls = 0
		return
	case Crept:
		f.crept(now, e)
		return
	case Ended:
		leg.ended, leg.fulls = true, 0
		f.at = now
	case HasShut:
		leg.shut = true
	case Broke:
		// What the broken leg said before is still the other one's due;
		// what was due to the broken leg can go nowhere.
		leg.broken, leg.fulls = true, 0
		leg.off = uint32(len(leg.buf))
	case Expired:
		switch {
		case f.legs[Client].broken:
			f.end(ClientReset)
		case f.legs[Backend].broken:
			f.end(BackendReset)
		default:
			f.end(IdleTimeout)
		}
		return
	case Kill:
		f.kill(e)
		return
	default:
		f.impossible(e)
	}
	f.finish()
}

// finish sees whether a relaying flow has come to its end.
func (f *Flow) finish() {
	c, b := &f.legs[Client], &f.legs[Backend]
	switch {
	case c.broken && (b.broken || len(b.due()) == 0):
		f.end(ClientReset)
	case b.broken && len(c.due()) == 0:
		f.end(BackendReset)
	case c.ended && b.ended && len(c.due()) == 0 && len(b.due()) == 0:
		f.end(Finished)
	}
}
