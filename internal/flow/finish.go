package flow

import (
	"github.com/holdfast-lb/holdfast/internal/h1"
	"github.com/holdfast-lb/holdfast/internal/planted"
)

// A flow that somebody ends by Finish loses nothing that was read, and is gone soon.
// Without HTTP both peers get what was read for them and then FIN; what they say
// from then on is thrown away, until both have ended or LingerMax is over: a
// socket that is closed while octets are unread answers by RST, which may take from
// its peer what it has not read yet. With HTTP a request that was not answered yet
// is answered 503, and a response that has begun ends where it is, which its
// length or its chunks tell the client; one that only its end frames is reset unless
// all of it is here, for FIN would say that it is whole.

// finishing tells whether the flow is one of octets that ends so.
func (f *Flow) finishing() bool {
	return f.work != nil && f.x == nil && f.legs[Backend].facts&parted != 0
}

// finishUp begins it.
func (f *Flow) finishUp(now Instant, e *Event) {
	switch f.state {
	case Reading:
		if f.work != nil && len(f.legs[Client].due()) > 0 {
			f.finishHTTP(now, e.Desk)
			return
		}
		f.end(Killed)
		f.marks |= gentle
	case Queued, Dialing:
		if f.x == nil {
			f.end(Killed)
			f.marks |= gentle
			return
		}
		f.x.flags |= last | halted
		f.answer(now, e.Desk, 503, Killed)
	case Relaying:
		switch {
		case f.x == nil:
			f.legs[Backend].facts |= parted
			f.at = now
			if planted.Bug(77) {
				f.legs[Client].off, f.legs[Backend].off = uint32(len(f.legs[Client].buf)), uint32(len(f.legs[Backend].buf))
			}
			f.finished()
		case f.x.status == 0:
			f.x.flags |= last | halted
			f.answer(now, e.Desk, 503, Killed)
		case !f.x.body[Backend].Done() && (f.x.body[Backend].Framing() == h1.UntilClose || f.x.flags&dechunked != 0):
			f.end(Killed)
		default:
			f.finishHTTP(now, e.Desk)
		}
	case Answering:
		f.x.flags |= last | halted
	case Lingering:
	case Sunk:
		f.end(Killed)
		f.marks |= gentle
	case Done:
		f.impossible(e)
	default:
		f.impossible(e)
	}
}

// finishHTTP sends what is due to the client of a response that ends where it is.
func (f *Flow) finishHTTP(now Instant, d *Desk) {
	x := f.x
	f.blame(Killed)
	f.tell(now, d)
	x.flags |= last | halted
	f.part(false)
	f.legs[Backend].drop(d.Lender)
	x.in[Client].drop(d.Lender)
	x.in[Backend].drop(d.Lender)
	f.at = now.Add(LingerMax)
	f.become(Lingering)
}

// partingStep is what a flow of octets hears that ends so.
func (f *Flow) partingStep(e *Event) {
	leg := &f.legs[e.Leg]
	switch e.Kind {
	case Received: // thrown away
	case Wrote:
		f.took(e)
	case Ended:
		leg.ended = true
	case HasShut:
		leg.shut = true
	case Broke, Deafened:
		leg.broken = true
		leg.off = uint32(len(leg.buf))
	case Slackened, Crept:
	case Expired, Kill:
		f.end(Killed)
		return
	default:
		f.impossible(e)
	}
	f.finished()
}

// finished sees whether both sides have been told the end and have ended.
func (f *Flow) finished() {
	for i := range f.legs {
		if leg := &f.legs[i]; !leg.broken && !(leg.shut && leg.ended) {
			return
		}
	}
	f.end(Killed)
}

// wantsParting says what such a flow wants.
func (f *Flow) wantsParting(w *Wants) {
	for i := range f.legs {
		leg := &f.legs[i]
		if leg.broken {
			continue
		}
		w.Out[i] = leg.due()
		w.Shut[i] = !leg.shut && len(leg.due()) == 0
		w.Read[i] = !leg.ended
	}
	w.Deadline = f.at.Add(LingerMax)
}

// checkParting refuses what it would never have come to.
func (f *Flow) checkParting() error {
	for i := range f.legs {
		if leg := &f.legs[i]; (leg.shut || leg.broken) && len(leg.due()) > 0 {
			return refused("leg", "octets are due to the %v, whose end was told", Side(i))
		}
	}
	done := *f
	if done.finished(); done.state == Done {
		return refused("flow", "it has ended: %v", done.cause)
	}
	return nil
}
