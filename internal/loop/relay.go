package loop

import (
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/planted"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// Bulk goes from leg to leg through a pipe, without being copied to user space.
const (
	pipeBytes = 256 << 10 // the most a flow may have in a pipe
	pipesMax  = 256       // per loop: two descriptors each; beyond it bulk is copied
	slackMax  = 8 << 10   // a transfer that gave less before it ran dry is no bulk
	noPipe    = int16(-1)
)

// pipe is lent to one direction of one flow.
type pipe struct {
	r, w sock.FD
	held int // octets inside
}

type pipes struct {
	all  []pipe
	free []int16
}

// borrow sees that the direction from side has a pipe; false if none is to be
// had, and then its octets are copied.
func (l *Loop) borrow(s *slot, side flow.Side) bool {
	g := &s.legs[side]
	if g.pipe != noPipe {
		return true
	}
	p := &l.pipes
	if len(p.free) == 0 {
		if len(p.all) == pipesMax {
			return false
		}
		r, w, err := l.k.Pipe(pipeBytes)
		if err != nil {
			return false
		}
		p.all = append(p.all, pipe{r: r, w: w})
		p.free = append(p.free, int16(len(p.all)-1))
	}
	g.pipe = p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	s.relayed = 0
	return true
}

// giveBack returns an empty pipe.
func (l *Loop) giveBack(g *leg) {
	l.pipes.free = append(l.pipes.free, g.pipe)
	g.pipe = noPipe
}

// discard throws away a pipe whose octets nobody wants any more. An empty one
// is kept for the next.
func (p *pipes) discard(k Kernel, i int16) {
	x := &p.all[i]
	if x.held > 0 {
		k.Close(x.r)
		k.Close(x.w)
		r, w, err := k.Pipe(pipeBytes)
		if err != nil {
			// The place stays unused until the process ends; bulk is copied
			// when all places are.
			*x = pipe{sock.NoFD, sock.NoFD, 0}
			return
		}
		*x = pipe{r: r, w: w}
	}
	p.free = append(p.free, i)
}

// relay moves octets from a leg to the other through the pipe and tells
// whether the flow has learnt anything. End of file and errors of the source
// are only told once the pipe is empty: what came before them is delivered
// before them.
func (l *Loop) relay(i uint32, s *slot, side flow.Side, budget *int) bool {
	from, to := &s.legs[side], &s.legs[side.Other()]
	p := &l.pipes.all[from.pipe]
	moved := 0
	tell := func() bool {
		if moved == 0 {
			return false
		}
		l.Count.Octets[side] += uint64(moved)
		l.Count.Relayed += uint64(moved)
		s.flow.Step(l.now, flow.Event{Kind: flow.Relayed, Leg: side, N: moved})
		return true
	}
	for *budget > 0 {
		if p.held > 0 {
			if !to.has(writable) {
				if planted.Bug(19) && from.has(over) {
					s.flow.Step(l.now, flow.Event{Kind: flow.Ended, Leg: side})
					return true
				}
				if planted.Bug(27) {
					from.is &^= readable
					s.flow.Step(l.now, flow.Event{Kind: flow.Slackened, Leg: side})
				}
				return tell()
			}
			l.hasten(s, side.Other())
			n, e := l.k.Splice(p.r, to.fd, p.held)
			if e == sock.Again {
				l.exhausted(i, s, side.Other())
				return tell()
			}
			if e != 0 || n == 0 {
				tell()
				s.flow.Step(l.now, flow.Event{Kind: flow.Broke, Leg: side.Other()})
				return true
			}
			p.held -= n
			moved += n
			*budget -= n
			s.relayed = min(s.relayed, slackMax) + uint32(n)
			continue
		}
		if !from.has(readable) {
			l.slacken(s, side)
			return tell()
		}
		n, e := l.k.Splice(from.fd, p.w, pipeBytes)
		switch {
		case e == sock.Again:
			l.drained(i, s, side)
			told := tell()
			l.slacken(s, side)
			return told
		case e != 0:
			tell()
			l.giveBack(from)
			s.flow.Step(l.now, flow.Event{Kind: flow.Broke, Leg: side})
			return true
		case n == 0:
			tell()
			from.is &^= readable
			l.giveBack(from)
			s.flow.Step(l.now, flow.Event{Kind: flow.Ended, Leg: side})
			return true
		}
		p.held += n
	}
	tell()
	return true
}

// slacken gives the empty pipe of a transfer that has run dry to others, and
// sends the flow back to copying if it was too little for a pipe.
func (l *Loop) slacken(s *slot, side flow.Side) {
	few := s.relayed < slackMax
	l.giveBack(&s.legs[side])
	if few {
		s.flow.Step(l.now, flow.Event{Kind: flow.Slackened, Leg: side})
	}
}
