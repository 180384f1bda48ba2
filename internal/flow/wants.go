package flow

import (
	"math"
	"time"
)

// Wants is what a flow asks for at rest: levels, computed from its state
// alone, never a queue of commands. A thawed flow asks again for all that it
// waited for. The runner compares Wants with what is there and acts on the
// difference.
type Wants struct {
	Secure   bool      // an endpoint with room; answered by Secured, Unavailable or Rejected
	Dial     bool      // the backend leg connected to Endpoint(), if it is not under way
	Read     [2]bool   // octets from the leg
	Relay    [2]bool   // octets from the leg straight to the other one, in bulk; implies Read
	Most     [2]uint64 // of these; the largest number is no bound
	Resume   bool      // a turn for what was read before; answered by Resumed
	Out      [2][]byte // octets due to the leg; valid until the next Step or Settle
	Shut     [2]bool   // our FIN on the leg
	Deadline Instant   // Expired when it has passed; 0 = none
	Done     bool      // all legs closed and everything given back
	Abort    [2]bool   // with Done: the leg is closed by RST, not by FIN
}

// Wants fills w with what f asks for at rest. It is a function of f's state
// alone.
func (f *Flow) Wants(w *Wants) {
	*w = Wants{}
	switch f.state {
	case Reading, Answering, Lingering:
		f.wantsHTTP(w)
	case Relaying:
		if f.x != nil {
			f.wantsHTTP(w)
			return
		}
		if f.finishing() {
			f.wantsParting(w)
			return
		}
		c, b := &f.legs[Client], &f.legs[Backend]
		w.Out[Client], w.Out[Backend] = c.due(), b.due()
		f.half(w, Client, c, b)
		f.half(w, Backend, b, c)
		w.Deadline = after(f.at, f.patience())
		if linger := f.at.Add(LingerMax); (c.broken || b.broken) && (w.Deadline == 0 || linger < w.Deadline) {
			w.Deadline = linger
		}
	case Queued:
		w.Secure = true
		w.Out[Client] = f.legs[Client].due()
		w.Deadline = f.at
	case Dialing:
		w.Dial = true
		w.Out[Client] = f.legs[Client].due()
		w.Deadline = f.at
	case Sunk:
		w.Out[Client] = f.legs[Client].due()
		w.Read[Client] = true
		w.Deadline = after(f.at, f.patience())
	case Done:
		w.Done = true
		// Only a flow whose both sides said FIN may end by FIN: to a peer FIN
		// means that it has got everything.
		abort := f.cause != Finished && f.marks&gentle == 0
		w.Abort = [2]bool{abort, abort}
		if f.finishing() { // each peer that has got all was told so
			w.Abort = [2]bool{len(f.legs[Client].due()) > 0, len(f.legs[Backend].due()) > 0}
		}
	}
}

// patience is how long a flow that is Relaying, Answering or Sunk waits for
// anything to move.
func (f *Flow) patience() time.Duration {
	r := f.listener.Rules
	switch {
	case f.finishing():
		return LingerMax
	case r == nil:
		return f.listener.IdleTimeout
	case f.x == nil:
		return r.TunnelTimeout
	case f.state == Relaying && f.x.status == 0 && len(f.legs[Backend].due()) == 0 && f.x.body[Client].Done():
		return f.answerTimeout()
	}
	return r.BodyTimeout
}

// LingerMax is how long the leg that is left of a reset flow may take nothing of
// what came before the reset.
const LingerMax = 10 * time.Second

// half says what is wanted of the leg from, whose octets go to the leg to.
func (f *Flow) half(w *Wants, side Side, from, to *half) {
	empty := len(to.due()) == 0
	if from.ended || from.broken {
		// All that from had to say is with to: now its FIN, too.
		w.Shut[side.Other()] = from.ended && empty && !to.shut && !to.broken
		return
	}
	// Reading waits until what was read is written: this is all of the
	// backpressure, and it bounds a flow to one scratch of octets a side.
	w.Read[side] = empty && !to.broken
	w.Relay[side] = w.Read[side] && from.bulk()
	w.Most[side] = math.MaxUint64
}

// Unsettled tells whether [Flow.Settle] has anything to do.
func (f *Flow) Unsettled() bool {
	if f.work == nil {
		return false
	}
	c, b := &f.legs[Client], &f.legs[Backend]
	return len(c.buf) > 0 || len(b.buf) > 0 || f.x != nil && len(f.x.in[Client].buf)+len(f.x.in[Backend].buf) > 0
}

// Settle ends the flow's turn. Octets that still lie in the runner's scratch
// are copied to a block lent by l, and blocks that are empty go back. After it
// the scratch may be overwritten.
func (f *Flow) Settle(l *Lender) {
	if f.work == nil {
		return
	}
	for i := range f.legs {
		h := &f.legs[i]
		if len(h.buf) == 0 {
			continue
		}
		left := h.due()
		switch {
		case h.keep:
			if !h.lent { // all of it, though some was sent
				h.buf, h.lent = l.lend(h.buf), true
			}
		case len(left) == 0:
			if h.lent {
				l.giveBack(h.buf)
			}
			h.buf, h.off, h.lent = nil, 0, false
		case !h.lent:
			h.buf, h.off, h.lent = l.lend(left), 0, true
		}
	}
	if f.x != nil {
		f.x.in[Client].settle(l)
		f.x.in[Backend].settle(l)
	}
}

// Absorb appends octets to what is due to the leg: those that a pipe held when
// the flow was parked. They count as received from the other leg now, and as
// sent when they are written. octets are the flow's from now on.
func (f *Flow) Absorb(s Side, octets []byte, l *Lender) {
	if len(octets) == 0 {
		return
	}
	f.legs[s.Other()].received += uint64(len(octets))
	if f.x != nil {
		f.x.body[s.Other()].Passed(uint64(len(octets)))
	}
	h := &f.legs[s]
	if h.broken || s == Backend && f.x != nil && f.x.flags&deafened != 0 {
		return // they can go nowhere, as those that were due when it broke
	}
	f.replace(h, joined(h.due(), octets), l)
}

// joined is a and then b, in a piece of its own that has no room to spare: by
// its capacity a lender knows a block.
func joined(a, b []byte) []byte {
	return append(append(make([]byte, 0, len(a)+len(b)), a...), b...)
}

// Drop gives back the blocks of a flow that has ended or was frozen.
func (f *Flow) Drop(l *Lender) {
	if f.work == nil {
		return
	}
	for i := range f.legs {
		f.legs[i].drop(l)
	}
	if f.x != nil {
		f.x.in[Client].drop(l)
		f.x.in[Backend].drop(l)
		l.exchanges.giveBack(f.x)
	}
	f.forget(l)
	l.works.giveBack(f.work)
	f.work = nil
}

// drop forgets what is due.
func (h *half) drop(l *Lender) {
	if h.lent {
		l.giveBack(h.buf)
	}
	h.buf, h.off, h.lent, h.keep = nil, 0, false, false
}

func (f *Flow) replace(h *half, octets []byte, l *Lender) {
	if h.lent {
		l.giveBack(h.buf)
	}
	if cap(octets) == BlockBytes || cap(octets) == SmallBytes {
		l.lent += cap(octets)
	}
	h.buf, h.off, h.lent = octets, 0, true
}

// BlockBytes is the size of a lent block and of a runner's scratch: 16 KiB
// copied faster than 64 KiB, whose copies fall out of the cache (measured: 353
// against 489 us a MiB through a proxy).
const BlockBytes = 16 << 10

// SmallBytes is the size of a lent block for little: a head, mostly.
const SmallBytes = 2 << 10

// Lender lends blocks to flows whose octets the kernel would not take, and the
// works and exchanges of those that are not idle. It belongs to one runner and
// is not safe for others. The zero value is ready.
type Lender struct {
	free, small [][]byte
	works       stock[work]
	exchanges   stock[exchange]
	entries     stock[entry]
	notes       [][]byte
	lent        int // octets of blocks out on loan
}

// What is kept for the next loan, at most.
const (
	freeMax  = 64
	smallMax = 256
	stockMax = 512
)

// stock is what lies ready for the next loan, each as good as new.
type stock[T any] []*T

func (s *stock[T]) lend() *T {
	n := len(*s)
	if n == 0 {
		return new(T)
	}
	t := (*s)[n-1]
	*s = (*s)[:n-1]
	return t
}

func (s *stock[T]) giveBack(t *T) {
	*t = *new(T)
	if len(*s) < stockMax {
		*s = append(*s, t)
	}
}

// Lent is how many octets of blocks are out on loan.
func (l *Lender) Lent() int { return l.lent }

func (l *Lender) lend(octets []byte) []byte {
	free, size := &l.free, BlockBytes
	switch {
	case len(octets) <= SmallBytes:
		free, size = &l.small, SmallBytes
	case len(octets) > BlockBytes:
		return append([]byte(nil), octets...)[:len(octets):len(octets)]
	}
	var b []byte
	if n := len(*free); n > 0 {
		b, *free = (*free)[n-1], (*free)[:n-1]
	} else {
		b = make([]byte, size)
	}
	l.lent += size
	return b[:copy(b[:size], octets)]
}

func (l *Lender) giveBack(b []byte) {
	switch cap(b) {
	case BlockBytes:
		l.lent -= BlockBytes
		if len(l.free) < freeMax {
			l.free = append(l.free, b[:BlockBytes])
		}
	case SmallBytes:
		l.lent -= SmallBytes
		if len(l.small) < smallMax {
			l.small = append(l.small, b[:SmallBytes])
		}
	case noteBytes:
		if len(l.notes) < stockMax {
			l.notes = append(l.notes, b)
		}
	}
	// Another one was made for a move: the collector has it.
}
