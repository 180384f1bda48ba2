package flow

import "time"

// Wants is what a flow asks for at rest: levels, computed from its state
// alone, never a queue of commands. A thawed flow asks again for all that it
// waited for. The runner compares Wants with what is there and acts on the
// difference.
type Wants struct {
	Secure   bool      // an endpoint with room; answered by Secured, Unavailable or Rejected
	Dial     bool      // the backend leg connected to Endpoint(), if it is not under way
	Read     [2]bool   // octets from the leg
	Relay    [2]bool   // octets from the leg straight to the other one, in bulk; implies Read
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
	case Relaying:
		c, b := &f.legs[Client], &f.legs[Backend]
		w.Out[Client], w.Out[Backend] = c.due(), b.due()
		f.half(w, Client, c, b)
		f.half(w, Backend, b, c)
		w.Deadline = after(f.at, f.listener.IdleTimeout)
		if linger := f.at.Add(LingerMax); (c.broken || b.broken) && (w.Deadline == 0 || linger < w.Deadline) {
			w.Deadline = linger
		}
	case Queued:
		w.Secure = true
		w.Deadline = f.at
	case Dialing:
		w.Dial = true
		w.Deadline = f.at
	case Done:
		w.Done = true
		// Only a flow whose both sides said FIN may end by FIN: to a peer FIN
		// means that it has got everything.
		abort := f.cause != Finished
		w.Abort = [2]bool{abort, abort}
	}
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
	w.Relay[side] = w.Read[side] && from.bulk
}

// Unsettled tells whether [Flow.Settle] has anything to do.
func (f *Flow) Unsettled() bool {
	c, b := &f.legs[Client], &f.legs[Backend]
	return len(c.buf) > 0 || len(b.buf) > 0
}

// Settle ends the flow's turn. Octets that still lie in the runner's scratch
// are copied to a block lent by l, and blocks that are empty go back. After it
// the scratch may be overwritten.
func (f *Flow) Settle(l *Lender) {
	for i := range f.legs {
		h := &f.legs[i]
		if len(h.buf) == 0 {
			continue
		}
		left := h.due()
		switch {
		case len(left) == 0:
			if h.lent {
				l.giveBack(h.buf)
			}
			h.buf, h.off, h.lent = nil, 0, false
		case !h.lent:
			h.buf, h.off, h.lent = l.lend(left), 0, true
		}
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
	h := &f.legs[s]
	if h.broken {
		return // they can go nowhere, as those that were due when it broke
	}
	due := h.due()
	joined := make([]byte, 0, len(due)+len(octets))
	joined = append(append(joined, due...), octets...)
	f.replace(h, joined, l)
}

// Drop gives back the blocks of a flow that has ended or was frozen.
func (f *Flow) Drop(l *Lender) {
	for i := range f.legs {
		if h := &f.legs[i]; h.lent {
			l.giveBack(h.buf)
			h.buf, h.off, h.lent = nil, 0, false
		}
	}
}

func (f *Flow) replace(h *half, octets []byte, l *Lender) {
	if h.lent {
		l.giveBack(h.buf)
	}
	if cap(octets) == BlockBytes {
		l.lent += BlockBytes
	}
	h.buf, h.off, h.lent = octets, 0, true
}

// BlockBytes is the size of a lent block and of a runner's scratch: 16 KiB
// copied faster than 64 KiB, whose copies fall out of the cache (measured: 353
// against 489 us a MiB through a proxy).
const BlockBytes = 16 << 10

// Lender lends blocks to flows whose octets the kernel would not take. It
// belongs to one runner and is not safe for others. The zero value is ready.
type Lender struct {
	free [][]byte
	lent int // octets out on loan
}

// freeMax bounds the blocks kept for the next loan.
const freeMax = 64

// Lent is how many octets of blocks are out on loan.
func (l *Lender) Lent() int { return l.lent }

func (l *Lender) lend(octets []byte) []byte {
	var b []byte
	if len(octets) <= BlockBytes {
		if n := len(l.free); n > 0 {
			b, l.free = l.free[n-1], l.free[:n-1]
		} else {
			b = make([]byte, BlockBytes)
		}
		l.lent += BlockBytes
	} else {
		b = make([]byte, len(octets))
	}
	return b[:copy(b, octets)]
}

func (l *Lender) giveBack(b []byte) {
	if cap(b) != BlockBytes {
		return // a larger one, made for a move: the collector has it
	}
	l.lent -= BlockBytes
	if len(l.free) < freeMax {
		l.free = append(l.free, b[:BlockBytes])
	}
}
