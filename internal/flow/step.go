package flow

import (
	"fmt"
	"net/netip"

	"github.com/holdfast-lb/holdfast/internal/config"
)

// What kind of fact an [Event] is.
type EventKind uint8

// The kinds. A fact is something that has happened, never a request.
const (
	Secured     EventKind = iota // Endpoint is ours: one of its slots is held for the flow
	Unavailable                  // no endpoint is left to try
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
	Kill                         // someone with the right to wants the flow to end
	Resumed                      // the turn has room for what came before and was not digested
	Deafened                     // Leg takes nothing any more, but may have said something before
	Crept                        // N nanoseconds ago the kernel still sent what it had taken before
)

var eventNames = [...]string{"secured", "unavailable", "rejected", "dialed", "dial-failed", "received", "relayed", "slackened", "ended", "wrote", "has-shut", "broke", "expired", "kill", "resumed", "deafened", "crept"}

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
	Full     bool // Received: the read filled the whole scratch
	Reused   bool // Dialed: the leg has served a request before
	Severed  bool // Deafened: by more than that the peer has ended
	N        int
	Octets   []byte // Received: those of Unread first
	Endpoint *config.Endpoint
	Local    netip.AddrPort // Dialed: where the client's leg ends here, if ProxyHeader is to be sent
	Desk     *Desk          // Needed by a flow that speaks HTTP, or is greeted by a PROXY header
}

// bulkAfter is how many full reads in a row make a transfer bulk. Two, since
// one may be a single large message.
const bulkAfter = 2

// Step tells f that e happened at now. It runs to completion and does no I/O,
// so between two Steps f is at rest and may be frozen. A fact that cannot be
// true in f's state is a bug of the runner and panics.
func (f *Flow) Step(now Instant, e Event) {
	switch f.state {
	case Relaying:
		if f.x != nil {
			f.exchanging(now, &e)
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
	default:
		f.impossible(&e)
	}
}

func (f *Flow) impossible(e *Event) {
	panic(fmt.Sprintf("flow: f-%x is %v and was told %v of its %v leg", f.id, f.state, e.Kind, e.Leg))
}

func (f *Flow) end(c Cause) {
	f.cause = c
	f.become(Done)
}

func (f *Flow) queued(now Instant, e *Event) {
	switch e.Kind {
	case Wrote:
		f.took(e)
	case Secured:
		f.endpoint, f.reusable = e.Endpoint, false
		f.at = after(now, f.backend.ConnectTimeout)
		f.become(Dialing)
	case Unavailable:
		f.fail(now, e.Desk, 503, NoEndpoint)
	case Rejected:
		f.fail(now, e.Desk, 503, QueueFull)
	case Expired:
		f.fail(now, e.Desk, 503, QueueTimeout)
	case Broke:
		f.end(ClientReset)
	case Kill:
		f.end(Killed)
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

// fail ends a flow that no endpoint serves: with an answer, where the client
// understands one.
func (f *Flow) fail(now Instant, d *Desk, status int, c Cause) {
	if f.x == nil {
		f.end(c)
		return
	}
	f.answer(now, d, status, c)
}

func (f *Flow) dialing(now Instant, e *Event) {
	switch e.Kind {
	case Wrote:
		f.took(e)
	case Dialed:
		f.at = now
		f.become(Relaying)
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
		f.end(Killed)
	default:
		f.impossible(e)
	}
}

// retry goes back for another endpoint: nothing was sent yet, so the client
// need not know.
func (f *Flow) retry(now Instant, d *Desk, status int) {
	for i, e := range f.backend.Endpoints {
		if e.Name == f.endpoint.Name {
			f.tried |= 1 << (i % 64)
		}
	}
	f.endpoint, f.reusable = nil, false // the runner sees that and gives the slot back
	if int(f.attempts) >= f.backend.RetryMax {
		f.fail(now, d, status, NoEndpoint)
		return
	}
	f.attempts++
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
		leg.bulk = false
		return
	case Crept:
		f.crept(now, e)
		return
	case Ended:
		leg.ended, leg.bulk = true, false
		f.at = now
	case HasShut:
		leg.shut = true
	case Broke:
		// What the broken leg said before is still the other one's due;
		// what was due to the broken leg can go nowhere.
		leg.broken, leg.bulk = true, false
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
		f.end(Killed)
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
