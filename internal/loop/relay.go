package loop

import (
	"math"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/planted"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// Bulk goes from leg to leg through a pipe, without being copied to user space.
const (
	pipeBytes = 256 << 10 // the most a flow may have in a pipe
	// lentBytes is so while the flows of the loop are about to move: what a pipe holds
	// then goes along, and all others of the lot wait for it.
	lentBytes = 32 << 10
	pipesMax  = 256     // per loop: two descriptors each; beyond it bulk is copied
	slackMax  = 8 << 10 // a transfer that gave less before it ran dry is no bulk
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
	g := l.leg(s, side)
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
// whether the flow has learnt anything. most is how much it may move in all,
// what the pipe holds included. End of file and errors of the source
// are only told once the pipe is empty: what came before them is delivered
// before them.
func (l *Loop) relay(i uint32, s *slot, side flow.Side, most uint64, budget *int) bool {
	from, to := l.leg(s, side), l.leg(s, side.Other())
	p := &l.pipes.all[from.pipe]
	moved := 0
	tell := func() bool {
		if moved == 0 {
			return false
		}
		l.Count.Octets[side] += uint64(moved)
		l.Count.Relayed += uint64(moved)
		l.far(s.far-1).keepsMoving(l.now, moved)
		l.step(s, flow.Event{Kind: flow.Relayed, Leg: side, N: moved})
		return true
	}
	for *budget > 0 {
		if p.held > 0 {
			if !to.has(writable) {
				if planted.Bug(19) && from.has(over) {
					l.step(s, flow.Event{Kind: flow.Ended, Leg: side})
					return true
				}
				if planted.Bug(27) {
					from.is &^= readable
					l.step(s, flow.Event{Kind: flow.Slackened, Leg: side})
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
				kind := flow.Broke
				if side == flow.Client && s.flow.Speaks() == config.HTTP {
					kind = flow.Deafened
				}
				l.step(s, flow.Event{Kind: kind, Leg: side.Other(), Severed: e != sock.BrokenPipe})
				return true
			}
			p.held -= n
			moved += n
			*budget -= n
			p.gave += n
			continue
		}
		if most == uint64(moved) {
			l.giveBack(from) // the rest is to be looked at
			l.thin(s, side)
			return tell()
		}
		if !from.has(readable) {
			l.slacken(i, s, side, most-uint64(moved))
			return tell()
		}
		n, e := l.k.Splice(from.fd, p.w, int(min(l.pipeRoom(), most-uint64(moved))))
		switch {
		case from.has(urgent) && (e == sock.Again || e == 0 && n == 0):
			// It stops before an urgent octet; reading goes on behind it.
			tell()
			l.giveBack(from)
			l.thin(s, side)
			l.step(s, flow.Event{Kind: flow.Slackened, Leg: side})
			return true
		case e == sock.Again:
			l.drained(i, s, side)
			told := tell()
			l.slacken(i, s, side, most-uint64(moved))
			return told
		case e != 0:
			tell()
			l.giveBack(from)
			l.step(s, flow.Event{Kind: flow.Broke, Leg: side})
			return true
		case n == 0:
			// Splice gives 0 at the end, and before an urgent octet whose report
			// has not come yet. A read can tell.
			tell()
			l.giveBack(from)
			l.step(s, flow.Event{Kind: flow.Slackened, Leg: side})
			return true
		}
		p.held += n
	}
	tell()
	return true
}

// pipeRoom is the most that is put into a pipe at once.
func (l *Loop) pipeRoom() uint64 {
	if l.tells {
		return lentBytes
	}
	return pipeBytes
}

// slacken gives the empty pipe of a transfer that has run dry to others. If it
// was too little for a pipe the flow goes back to copying; if it is a stream
// the leg simmers. left is how much the transfer may still move.
func (l *Loop) slacken(i uint32, s *slot, side flow.Side, left uint64) {
	g, b := l.leg(s, side), l.far(s.far-1)
	few := l.pipes.all[g.pipe].gave < slackMax
	l.giveBack(g)
	proof := uint32(streamBytes)
	if left < math.MaxUint64 {
		proof = boundedBytes
	}
	switch {
	case b.relayed >= proof && left >= boundedLeast:
		l.simmer(i, s, side, int(min(left, bulkThreshold)))
	case few:
		l.step(s, flow.Event{Kind: flow.Slackened, Leg: side})
		fallthrough
	default:
		l.thin(s, side) // what is left may be less than the threshold
	}
}

// A fast sender wakes the loop with every segment, and what the loop then moves
// wakes the receiver: small change for dear wake-ups. So once a transfer has
// shown to be a stream its leg is reported only when much has come. What is less
// than that, the end of the stream above all, the clock finds: after a
// millisecond the leg is looked at anyway, and if it has nothing it is no
// stream any more. Measured with tcp-bulk: 226 KiB moved at each wake-up before.
//
// Where the end is known, as that of a body is, the threshold is never beyond
// it, so the end is reported as it comes, and less is proof enough. Measured
// with answers of 1 MiB: 115 us each, 147 before.
const (
	streamBytes   = 4 << 20   // without a rest; what is shorter ends without delay
	boundedBytes  = 256 << 10 // the same where the end is known
	boundedLeast  = 128 << 10 // of which so much must be left
	bulkThreshold = 1 << 20
	simmerTime    = time.Millisecond
	restMillis    = 2
)

// brew is how the bulk transfers of a flow are looked at.
type brew uint8

const (
	thickClient  brew = 1 << iota // the client leg is reported from a threshold on only
	thickBackend                  // the backend leg is
	simmering                     // in the list of those that the clock looks at
)

func thick(side flow.Side) brew { return thickClient << side }

// keepsMoving notes what splice has moved. A rest begins the count anew.
func (b *backendLeg) keepsMoving(now flow.Instant, octets int) {
	at := uint16(now / flow.Instant(time.Millisecond))
	if at-b.relayedAt > restMillis {
		b.relayed = 0
	}
	b.relayedAt = at
	b.relayed = min(b.relayed, streamBytes) + uint32(octets)
}

// simmer leaves the leg to the threshold and the clock.
func (l *Loop) simmer(i uint32, s *slot, side flow.Side, threshold int) {
	b := l.far(s.far - 1)
	if b.brew&thick(side) == 0 || threshold < bulkThreshold {
		b.brew |= thick(side)
		l.k.Threshold(l.leg(s, side).fd, threshold)
	}
	if b.brew&simmering == 0 {
		b.brew |= simmering
		l.simmers = append(l.simmers, i)
	}
}

// thin makes the leg readable from the first octet on again.
func (l *Loop) thin(s *slot, side flow.Side) {
	if s.far == 0 {
		return
	}
	if b := l.far(s.far - 1); b.brew&thick(side) != 0 {
		b.brew &^= thick(side)
		l.k.Threshold(l.leg(s, side).fd, 1)
	}
}

// stir looks at all that simmers, when its time has come.
func (l *Loop) stir() {
	if len(l.simmers) == 0 || l.now-l.stirred < flow.Instant(simmerTime) {
		return
	}
	l.stirred = l.now
	l.simmers, l.stewing = l.stewing[:0], l.simmers
	// A slot is there once for each of its streams that began to simmer. Looked
	// at twice, the present one would seem to have ended.
	once := l.stewing[:0]
	for _, i := range l.stewing {
		if s := l.at(i); s.live && s.far != 0 && l.far(s.far-1).brew&simmering != 0 {
			l.far(s.far - 1).brew &^= simmering
			once = append(once, i)
		}
	}
	for _, i := range once {
		s := l.at(i)
		if !s.live || s.far == 0 {
			continue
		}
		b := l.far(s.far - 1)
		before := s.flow.Received(flow.Client) + s.flow.Received(flow.Backend)
		for side := flow.Client; side <= flow.Backend; side++ {
			if b.brew&thick(side) != 0 {
				l.leg(s, side).is |= readable
			}
		}
		l.guard(i)
		switch {
		case !s.live || s.far == 0 || l.far(s.far-1) != b || b.brew == 0:
		case s.flow.Received(flow.Client)+s.flow.Received(flow.Backend) == before:
			l.thin(s, flow.Client)
			l.thin(s, flow.Backend)
		case b.brew&simmering == 0:
			b.brew |= simmering
			l.simmers = append(l.simmers, i)
		}
	}
}
