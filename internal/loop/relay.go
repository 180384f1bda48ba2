package loop

import (
	"time"

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
	gave int // octets that went through since it was borrowed
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
	p.all[g.pipe].gave = 0
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
			*x = pipe{r: sock.NoFD, w: sock.NoFD}
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
		s.keepsMoving(l.now, moved)
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
			p.gave += n
			continue
		}
		if !from.has(readable) {
			l.slacken(i, s, side)
			return tell()
		}
		n, e := l.k.Splice(from.fd, p.w, pipeBytes)
		switch {
		case from.has(urgent) && (e == sock.Again || e == 0 && n == 0):
			// It stops before an urgent octet; reading goes on behind it.
			tell()
			l.giveBack(from)
			l.thin(s, side)
			s.flow.Step(l.now, flow.Event{Kind: flow.Slackened, Leg: side})
			return true
		case e == sock.Again:
			l.drained(i, s, side)
			told := tell()
			l.slacken(i, s, side)
			return told
		case e != 0:
			tell()
			l.giveBack(from)
			s.flow.Step(l.now, flow.Event{Kind: flow.Broke, Leg: side})
			return true
		case n == 0:
			// Splice gives 0 at the end, and before an urgent octet whose report
			// has not come yet. A read can tell.
			tell()
			l.giveBack(from)
			s.flow.Step(l.now, flow.Event{Kind: flow.Slackened, Leg: side})
			return true
		}
		p.held += n
	}
	tell()
	return true
}

// slacken gives the empty pipe of a transfer that has run dry to others. If it
// was too little for a pipe the flow goes back to copying; if it is a stream
// the leg simmers.
func (l *Loop) slacken(i uint32, s *slot, side flow.Side) {
	g := &s.legs[side]
	few := l.pipes.all[g.pipe].gave < slackMax
	l.giveBack(g)
	switch {
	case s.relayed >= streamBytes:
		l.simmer(i, s, side)
	case few:
		s.flow.Step(l.now, flow.Event{Kind: flow.Slackened, Leg: side})
	}
}

// A fast sender wakes the loop with every segment, and what the loop then moves
// wakes the receiver: small change for dear wake-ups. So once a transfer has
// shown to be a stream its leg is reported only when much has come. What is less
// than that, the end of the stream above all, the clock finds: after a
// millisecond the leg is looked at anyway, and if it has nothing it is no
// stream any more. Measured with tcp-bulk: 226 KiB moved at each wake-up before.
const (
	streamBytes   = 4 << 20 // without a rest; what is shorter ends without delay
	bulkThreshold = 1 << 20
	simmerTime    = time.Millisecond
	restMillis    = 2
)

// brew is how the bulk transfers of a flow are looked at.
type brew uint8

const (
	thickClient  brew = 1 << iota // the client leg is reported from bulkThreshold on only
	thickBackend                  // the backend leg is
	simmering                     // in the list of those that the clock looks at
)

func thick(side flow.Side) brew { return thickClient << side }

// keepsMoving notes what splice has moved. A rest begins the count anew.
func (s *slot) keepsMoving(now flow.Instant, octets int) {
	at := uint16(now / flow.Instant(time.Millisecond))
	if at-s.relayedAt > restMillis {
		s.relayed = 0
	}
	s.relayedAt = at
	s.relayed = min(s.relayed, streamBytes) + uint32(octets)
}

// simmer leaves the leg to the threshold and the clock.
func (l *Loop) simmer(i uint32, s *slot, side flow.Side) {
	if s.brew&thick(side) == 0 {
		s.brew |= thick(side)
		l.k.Threshold(s.legs[side].fd, bulkThreshold)
	}
	if s.brew&simmering == 0 {
		s.brew |= simmering
		l.simmers = append(l.simmers, i)
	}
}

// thin makes the leg readable from the first octet on again.
func (l *Loop) thin(s *slot, side flow.Side) {
	if s.brew&thick(side) != 0 {
		s.brew &^= thick(side)
		l.k.Threshold(s.legs[side].fd, 1)
	}
}

// stir looks at all that simmers, when its time has come.
func (l *Loop) stir() {
	if len(l.simmers) == 0 || l.now-l.stirred < flow.Instant(simmerTime) {
		return
	}
	l.stirred = l.now
	l.simmers, l.stewing = l.stewing[:0], l.simmers
	for _, i := range l.stewing {
		s := l.at(i)
		if !s.live || s.brew&simmering == 0 {
			continue
		}
		s.brew &^= simmering
		before := s.flow.Received(flow.Client) + s.flow.Received(flow.Backend)
		for side := flow.Client; side <= flow.Backend; side++ {
			if s.brew&thick(side) != 0 {
				s.legs[side].is |= readable
			}
		}
		l.guard(i)
		switch {
		case !s.live || s.brew == 0:
		case s.flow.Received(flow.Client)+s.flow.Received(flow.Backend) == before:
			l.thin(s, flow.Client)
			l.thin(s, flow.Backend)
		case s.brew&simmering == 0:
			s.brew |= simmering
			l.simmers = append(l.simmers, i)
		}
	}
}
