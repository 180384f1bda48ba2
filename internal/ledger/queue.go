package ledger

import (
	"slices"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/planted"
)

// Waiter is a flow's place in the queue of a backend. The loop that made it
// owns it; only the ledger writes granted.
type Waiter struct {
	asking  Asking          // as it was when the flow came
	of      *config.Backend // the version whose endpoints the bits of tried mean
	want    *Endpoint       // the one to which the client is sticky; nil: any
	granted Grant

	probe bool // it took one of a half-open breaker's probes

	in         *queue // nil: it does not wait any more
	prev, next *Waiter
}

// Place orders waiters of one class: smaller came first, over all loops and moves.
func (w *Waiter) Place() uint64 { return w.asking.Place }

// before tells whether w comes before o.
func (w *Waiter) before(o *Waiter) bool { return w.asking.before(o.asking.Class, o.asking.Place) }

func (a *Asking) before(class config.Priority, place uint64) bool {
	if a.Class != class && !planted.Bug(48) {
		return a.Class > class
	}
	return a.Place < place
}

// classes of waiters.
const classes = int(config.HighPriority) + 1

// queue has a list for each class, by place.
type queue struct {
	head, tail [classes]*Waiter
}

// first gives the one that comes before all others; nil: there is none.
func (q *queue) first() *Waiter {
	for class := classes - 1; class >= 0; class-- {
		if w := q.head[class]; w != nil {
			return w
		}
	}
	return nil
}

// after gives the one that comes next after w.
func (q *queue) after(w *Waiter) *Waiter {
	if w.next != nil {
		return w.next
	}
	for class := int(w.asking.Class) - 1; class >= 0; class-- {
		if w := q.head[class]; w != nil {
			return w
		}
	}
	return nil
}

func (q *queue) insert(w *Waiter) {
	class := w.asking.Class
	after := q.tail[class]
	for after != nil && after.asking.Place > w.asking.Place {
		after = after.prev
	}
	if after == nil {
		w.next, q.head[class] = q.head[class], w
	} else {
		w.prev, w.next, after.next = after, after.next, w
	}
	if w.next == nil {
		q.tail[class] = w
	} else {
		w.next.prev = w
	}
	w.in = q
}

func (q *queue) remove(w *Waiter) {
	class := w.asking.Class
	if w.prev == nil {
		q.head[class] = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		q.tail[class] = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.prev, w.next, w.in = nil, nil, nil
}

// queueUp gives a flow its place, or what has become free meanwhile.
func (b *Backend) queueUp(c *config.Backend, a *Asking, stuckTo *Endpoint, probe bool) (Grant, *Waiter, Answer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := &Waiter{asking: *a, of: c, probe: probe}
	full := a.Place == 0 && c.QueueMax > 0 && b.Waiting() >= c.QueueMax
	if a.Place == 0 {
		w.asking.Place = b.places.Add(1)
	} else {
		raise(b.places, a.Place)
	}
	for {
		s, v := b.version(c)
		w.want = stuckTo
		if !v.waits(w.want, a.Tried) {
			if w.want = nil; !v.roster.Worth(a.Tried) {
				return Grant{}, nil, None
			}
		} else if !s.current.waits(w.want, 0) {
			w.want = nil // the version in force grants
		}
		if b.insert(w); b.versions.Load() == s {
			break
		}
		b.remove(w) // who changed it may not have seen us wait
	}
	b.direct = w
	switch others := int(b.anybody.Load()) - b.trying - 1; {
	case w.want != nil:
		b.grant(w.want)
	case a.Tried != 0 || others == 0:
		b.grantAny()
	default:
		// Others wait for any endpoint, so there is none; what is just being
		// released is granted in order by who releases it.
	}
	b.direct = nil
	switch {
	case w.in == nil:
		return w.granted, nil, Secured
	case full:
		b.remove(w)
		return Grant{}, nil, Full
	}
	b.withhold()
	return Grant{}, w, Waiting
}

func (b *Backend) insert(w *Waiter) {
	if w.want != nil {
		w.want.stuck.insert(w)
		w.want.wanted.Add(1)
	} else {
		b.queue.insert(w)
		b.anybody.Add(1)
		if w.asking.Tried != 0 {
			b.trying++
		}
	}
	b.waiting.Add(1)
}

func (b *Backend) remove(w *Waiter) {
	if w.want != nil {
		w.want.wanted.Add(-1)
	} else if b.anybody.Add(-1); w.asking.Tried != 0 {
		b.trying--
	}
	w.in.remove(w)
	b.waiting.Add(-1)
}

// grant gives what has become free at e to those who wait, in their order, under mu.
// Nobody is looked for elsewhere: whoever waits found nothing before, and nothing
// else has become free.
func (b *Backend) grant(e *Endpoint) {
	own, any := e.stuck.first(), b.queue.first()
	if v := b.versions.Load().current; any != nil {
		if i := v.find(e); i < 0 || !v.roster.Open(i, ^bit(i)) {
			any = nil // it serves nothing new
		}
	}
	for (own != nil || any != nil) && e.Room() {
		if any == nil || own != nil && own.before(any) {
			if b.serve(own) {
				own = e.stuck.first()
			} else {
				own = nil // it does not serve them now: they wait on
			}
			continue
		}
		next := b.queue.after(any)
		b.give(any, e)
		any = next
	}
}

// grantAny serves those who wait for any endpoint, under mu.
func (b *Backend) grantAny() {
	// What somebody has tried in vain may have room for the next. But who has tried
	// the same as one for whom there was nothing need not be asked for again.
	var vain [4]uint64
	n, dry := 0, false
	for w := b.queue.first(); w != nil; {
		if dry && b.trying == 0 {
			return
		}
		next, tried := b.queue.after(w), b.triedOf(w)
		switch {
		case tried == 0 && dry, slices.Contains(vain[:n], tried):
		case b.serve(w):
		case tried == 0:
			dry = true
		case n < len(vain):
			vain[n] = tried
			n++
		}
		// serve may have served one that waits for an endpoint alone, never
		// another of this queue: next is still there.
		w = next
	}
}

// grantAll serves everybody after anything may have changed.
func (b *Backend) grantAll() {
	if b.waiting.Load() == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waiting.Load() > b.anybody.Load() {
		b.reconsider()
	}
	b.grantAny()
	if b.waiting.Load() > b.anybody.Load() {
		for _, e := range b.list() {
			if e.stuck.first() != nil {
				b.grant(e)
			}
		}
	}
	b.dismiss()
}

// dismiss sends those away for whom no endpoint serves, nor will soon, and who have
// something to fall back to. Others wait on: one may come back in their time.
func (b *Backend) dismiss() {
	v := b.versions.Load().current
	for w := b.queue.first(); w != nil; {
		next := b.queue.after(w)
		if w.of.Fallback != nil && !v.roster.Worth(b.triedOf(w)) {
			b.remove(w)
			if w.probe {
				b.unprobe()
			}
			b.options.Ring(w.asking.Loop, w.asking.Token)
		}
		w = next
	}
}

// reconsider lets those wait for any endpoint who waited for one that does not
// serve them any more.
func (b *Backend) reconsider() {
	v := b.versions.Load().current
	for _, e := range b.list() {
		w := e.stuck.first()
		if w == nil || v.waits(e, 0) {
			continue
		}
		for ; w != nil; w = e.stuck.first() {
			b.remove(w)
			w.want = nil
			b.insert(w)
		}
	}
}

// waits tells whether somebody who is sticky to e waits for it.
func (v *version) waits(e *Endpoint, tried uint64) bool {
	if e == nil {
		return false
	}
	i := v.find(e)
	return i >= 0 && tried&bit(i) == 0 && (v.roster.Sticky(i) || v.roster.Holds(i))
}

// triedOf are the endpoints that w has tried; the bits of a version that is not in
// force mean others.
func (b *Backend) triedOf(w *Waiter) uint64 {
	if v := b.versions.Load().current; v.of == w.of || v.of.Ref == w.of.Ref && v.of.Ref.Version != 0 {
		return w.asking.Tried
	}
	return 0
}

// serve gives w a slot, if there is one for it, under mu.
func (b *Backend) serve(w *Waiter) bool {
	for {
		s := b.versions.Load()
		a := w.asking
		a.Tried = b.triedOf(w)
		g, e := b.choose(s.current, &a, w.want)
		switch {
		case e == nil:
			return false
		case w.want == nil:
			// Who waits for this endpoint alone and came first goes first.
			if f := e.stuck.first(); f != nil && f.before(w) && b.serve(f) {
				continue
			}
		}
		if !e.take(g.share) {
			continue
		}
		if !b.stands(s, e) {
			e.untake() // quietly: who changed it grants anew after us
			continue
		}
		b.hand(w, s.current, g.i, g.stuck)
		return true
	}
}

// give gives w a slot of e, if e is for it, under mu.
func (b *Backend) give(w *Waiter, e *Endpoint) {
	for {
		s := b.versions.Load()
		i := s.current.find(e)
		if i < 0 || !s.current.roster.Open(i, b.triedOf(w)) || !e.Room() || !e.take(0) {
			return
		}
		if b.stands(s, e) {
			b.hand(w, s.current, i, false)
			return
		}
		e.untake()
	}
}

// hand hands a slot that was taken to w.
func (b *Backend) hand(w *Waiter, v *version, i int, stuck bool) {
	b.remove(w)
	w.granted = Grant{Endpoint: v.of.Endpoints[i], Account: v.accounts[i], Stuck: stuck}
	if !stuck {
		b.learn(&w.asking, v.accounts[i])
	}
	b.waits.Add(1)
	if w != b.direct {
		b.options.Ring(w.asking.Loop, w.asking.Token)
	}
}

// Collect asks, after the bell rang, what became of w: the slot that is the
// flow's now, or none (a nil Endpoint) if it still waits.
func (b *Backend) Collect(w *Waiter) Grant {
	b.mu.Lock()
	defer b.mu.Unlock()
	return w.granted
}

// Dismissed tells, if Collect gave none, that w waits no longer: no endpoint is
// left for it, as [Backend.Secure] will say.
func (b *Backend) Dismissed(w *Waiter) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return w.in == nil && w.granted.Endpoint == nil
}

// Withdraw takes w out of the queue, because its flow ends or moves. If a slot
// had been granted before, it is returned and is the caller's.
func (b *Backend) Withdraw(w *Waiter) Grant {
	b.mu.Lock()
	defer b.mu.Unlock()
	if w.in != nil {
		b.remove(w)
		if w.probe {
			b.unprobe()
		}
	}
	return w.granted
}
