package flow

import (
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/h1"
)

// What is tried again beside connects that failed. A request of which the
// backend may have done something is only sent again if that is safe by its
// method (RFC 9110, section 9.2.2), it has no content and the client was told
// nothing yet: then all of it is kept until a response is there that the client
// shall have.

// picky tells whether the head of a response decides if the client gets it.
func (f *Flow) picky() bool {
	b := &f.legs[Backend]
	return b.keep && len(f.backend.Retry.Statuses) > 0 && f.x.flags&(repeatable|begun) == repeatable && int(b.attempts) < f.backend.RetryMax
}

// unkeep lets go of a request that is not sent again, for it has been answered.
func (f *Flow) unkeep(d *Desk) {
	b := &f.legs[Backend]
	if !b.keep {
		return
	}
	b.keep = false
	f.x.flags &^= repeatable
	if len(b.due()) == 0 {
		b.drop(d.Lender)
	}
}

// unwanted throws a response away whose head, size octets long, is h, if its
// status is one of those that are tried again, and sends the request to another
// endpoint. What refuses that, the budget or the lack of an endpoint, is asked
// before: then the client gets this response.
func (f *Flow) unwanted(now Instant, d *Desk, h *h1.Head, size int) bool {
	x, b := f.x, &f.legs[Backend]
	if !f.picky() || !config.In(f.backend.Retry.Statuses, h.Status) {
		return false
	}
	tried := f.tried | f.bit()
	if n := len(f.backend.Endpoints); n <= 64 && tried == ^uint64(0)>>(64-n) {
		return false // there is no other one
	}
	if d.Retries != nil {
		f.Ask(&d.asking)
		d.asking.Tried, d.asking.Retry, d.asking.Now = tried, true, int64(now)
		if !d.Retries.AllowRetry(f.backend, &d.asking) {
			return false
		}
	}
	f.tried = tried
	// The leg may serve further requests if all of the response is here already.
	body, rest, n := h1.NewBody(h.Framing, h.Length), x.in[Backend].rest()[size:], 0
	if !body.Done() {
		var err *h1.Error
		if n, _, err = body.Feed(rest, false); err != nil {
			n = -1
		}
	}
	whole := body.Done() && n == len(rest) && len(b.due()) == 0
	f.resend(now, d, whole && !h.Close && h.Framing != h1.UntilClose && x.flags&(spoilt|deafened) == 0)
	if d.Retries != nil {
		b.facts |= paid
	}
	return true
}

// resend has the request, all of which is kept, sent to another endpoint.
func (f *Flow) resend(now Instant, d *Desk, reuse bool) {
	x, b := f.x, &f.legs[Backend]
	d.Tally.Retried++
	x.flags &^= reused | deafened | spoilt | severed
	x.in[Backend].drop(d.Lender)
	b.off, b.ended, b.broken, b.received, b.sent, b.fulls = 0, false, false, 0, 0, 0
	f.entry.answer = 0
	f.connected(now)
	f.again(now)
	if reuse {
		f.marks |= reusable
	}
}
