package loop

import (
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/planted"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// Events carry 64 bits back: for a leg its incarnation, slot and side; for a
// listener listenerBit and its number.
const (
	listenerBit     = uint64(1) << 63
	incarnationMask = 1<<31 - 1
	none            = ^uint32(0)
)

// leg is what the loop knows of one side beyond what the flow knows.
type leg struct {
	fd   sock.FD
	pipe int16 // octets from this leg on their way to the other; noPipe
	is   legState
}

// legState is a set of what is true of a leg: small, for there are many legs.
type legState uint16

const (
	watched  legState = 1 << iota // by the poller
	outAlso                       // watched for writing, too
	muted                         // not watched for reading: it would tell what is known
	readable                      // a read may bring something
	writable                      // a write may be taken
	over                          // FIN or worse was reported: read until it is found
	failed                        // an error was reported
	deaf                          // the kernel would not watch it: nothing will be heard of it
	urgent                        // urgent octets came: a read stops before them, and so does splice
)

func (g *leg) has(x legState) bool { return g.is&x != 0 }

// slot is a flow in the table. Slots are reused; the incarnation tells a late
// event of an earlier tenant from one of the present. A flow that is idle
// between two requests has nothing but its slot, so the slot is small.
type slot struct {
	flow        flow.Flow
	client      leg
	timer       timer
	incarnation uint32
	far         uint32 // 1 + index of its backend leg, 0: none, and no endpoint's slot
	live        bool
	again       bool
	sourced     bool // it counts under its source, and must leave it
}

// backendLeg is a leg that we dialled, or are about to: of a flow, or idle in a
// pool between requests of flows that speak HTTP. It is watched under its own
// number, so changing hands costs the kernel nothing.
type backendLeg struct {
	leg
	account     *ledger.Endpoint // whose slot its flow holds; the descriptor may be still to come
	owner       uint32           // slot of its flow; none: it is idle
	incarnation uint32
	lodge       *lodge // of its flow's backend, which counts it; nil: it is idle
	pool        *pool  // where it goes when it is idle; nil: it is closed
	prev, next  uint32
	since       flow.Instant // when it was dialled, or became idle
	relayed     uint32       // octets moved by splice without a rest
	relayedAt   uint16       // when that last grew, in milliseconds of the loop's clock
	brew        brew         // how its flow's bulk transfers are looked at
	live        bool
	pending     bool // it is being dialled
	prompt      bool // it sends small segments at once
	lively      bool // it finds out that its peer has vanished
}

// note remembers what the poller said of a leg and tells whether there was
// anything in it that was not known.
func (g *leg) note(r sock.Ready) (news bool) {
	was := *g
	if r&(sock.Readable|sock.PeerShut|sock.Hangup|sock.Failed) != 0 {
		g.is |= readable
	}
	if r&(sock.Writable|sock.Hangup|sock.Failed) != 0 {
		g.is |= writable
	}
	if r&(sock.PeerShut|sock.Hangup|sock.Failed) != 0 {
		g.is |= over
	}
	if r&sock.Failed != 0 {
		g.is |= failed
	}
	if r&sock.Urgent != 0 {
		g.is |= urgent | readable
	}
	return *g != was
}

// chunkPlaces makes a chunk of slots fill the 64 KiB that the allocator gives
// for it. Backend legs need less room; a chunk of them is smaller.
const chunkPlaces = 512

// chunked holds what has a number in chunks, so that it never moves and memory
// grows by steps of 64 KiB at most. The zero value is ready.
type chunked[T any] struct {
	chunks []*[chunkPlaces]T
	free   []uint32 // the last is taken first
}

func (c *chunked[T]) size() int { return len(c.chunks) * chunkPlaces }

func (c *chunked[T]) at(i uint32) *T { return &c.chunks[i/chunkPlaces][i%chunkPlaces] }

// take gives the number of a place that nobody has. What its last tenant left
// is still there.
func (c *chunked[T]) take() uint32 {
	if len(c.free) == 0 {
		base := uint32(c.size())
		c.chunks = append(c.chunks, new([chunkPlaces]T))
		for k := chunkPlaces - 1; k >= 0; k-- {
			c.free = append(c.free, base+uint32(k))
		}
	}
	i := c.free[len(c.free)-1]
	c.free = c.free[:len(c.free)-1]
	return i
}

func (c *chunked[T]) giveBack(i uint32) { c.free = append(c.free, i) }

// table holds the flows of a loop and the backend legs.
type table struct {
	slots chunked[slot]
	legs  chunked[backendLeg]
}

func (l *Loop) at(i uint32) *slot { return l.table.slots.at(i) }

func (l *Loop) far(k uint32) *backendLeg { return l.table.legs.at(k) }

// leg is the leg of a flow at that side. One that is not there has no
// descriptor, and what is noted of it is forgotten.
func (l *Loop) leg(s *slot, side flow.Side) *leg {
	if side == flow.Client {
		return &s.client
	}
	if s.far != 0 {
		return &l.far(s.far - 1).leg
	}
	l.absent = leg{fd: sock.NoFD, pipe: noPipe, is: readable | writable}
	return &l.absent
}

// enter gives f a slot, and its backend leg, if it has one, a place.
func (l *Loop) enter(f flow.Flow, client, backend sock.FD) (uint32, *slot) {
	i := l.table.slots.take()
	s := l.at(i)
	*s = slot{flow: f, incarnation: (s.incarnation + 1) & incarnationMask, live: true}
	s.timer.bucket = -1
	// Nothing is known of readiness yet, so everything is tried once.
	s.client = leg{fd: client, pipe: noPipe, is: readable | writable}
	if backend >= 0 {
		l.attach(i, s).begin(backend, l.now, readable|writable)
	}
	l.under(f.Listener()).flows++
	l.load.Add(1)
	return i, s
}

// attach makes the place for a flow's backend leg.
func (l *Loop) attach(i uint32, s *slot) *backendLeg {
	k := l.table.legs.take()
	b := l.far(k)
	*b = backendLeg{
		leg: leg{fd: sock.NoFD, pipe: noPipe}, owner: i, live: true,
		incarnation: (b.incarnation + 1) & incarnationMask,
	}
	s.far = k + 1
	if to := s.flow.Backend(); to != nil {
		b.lodge = l.backendLodge(to)
		b.lodge.flows++
	}
	return b
}

// begin: the descriptor is there.
func (b *backendLeg) begin(fd sock.FD, now flow.Instant, is legState) {
	b.leg, b.since = leg{fd: fd, pipe: noPipe, is: is}, now
}

// detach forgets the backend leg of a flow; the descriptor is the caller's.
func (l *Loop) detach(s *slot) {
	if s.far == 0 {
		return
	}
	l.freeLeg(s.far - 1)
	s.far = 0
}

func (l *Loop) freeLeg(k uint32) {
	b := l.far(k)
	b.depart()
	b.live, b.pool, b.account, b.fd = false, nil, nil, sock.NoFD
	l.table.legs.giveBack(k)
}

// depart ends that the leg's flow counts for its backend.
func (b *backendLeg) depart() {
	if b.lodge != nil {
		if !planted.Bug(79) {
			b.lodge.flows--
		}
		b.lodge = nil
	}
}

// leave empties the slot; the flow in it has gone or ended, and its legs.
func (l *Loop) leave(i uint32, s *slot) {
	l.disarm(i, &s.timer)
	l.detach(s)
	l.under(s.flow.Listener()).flows--
	s.live, s.again, s.sourced = false, false, false
	s.flow = flow.Flow{}
	l.table.slots.giveBack(i)
	l.load.Add(-1)
}

// data is what the poller says of a leg.
func (l *Loop) data(i uint32, s *slot, side flow.Side) uint64 {
	if side == flow.Backend && s.far != 0 {
		return legData(s.far-1, l.far(s.far-1))
	}
	return token(i, s)
}

// legData is what the poller says of a backend leg, be it idle or a flow's.
func legData(k uint32, b *backendLeg) uint64 {
	return uint64(b.incarnation)<<32 | uint64(k)<<1 | uint64(flow.Backend)
}

// token names a flow as long as it is in its slot.
func token(i uint32, s *slot) uint64 { return uint64(s.incarnation)<<32 | uint64(i)<<1 }

// each calls do, which leaves the table as it is, for every flow in it. Low places are
// taken first, so that a table with few flows is not looked through to its end.
func (l *Loop) each(do func(i uint32, s *slot)) {
	left := l.Load()
	for c, chunk := range l.table.slots.chunks {
		for k := 0; k < chunkPlaces && left > 0; k++ {
			if s := &chunk[k]; s.live {
				do(uint32(c*chunkPlaces+k), s)
				left--
			}
		}
	}
}
