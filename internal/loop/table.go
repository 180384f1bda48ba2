package loop

import (
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/ledger"
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
// event of an earlier tenant from one of the present.
type slot struct {
	flow        flow.Flow
	legs        [2]leg
	account     *ledger.Endpoint // whose slot the flow holds
	timer       timer
	incarnation uint32
	relayed     uint32 // octets moved by splice without a rest
	relayedAt   uint16 // when that last grew, in milliseconds of the loop's clock
	brew        brew   // how its bulk transfers are looked at
	live        bool
	again       bool
	pending     bool // the backend leg is being dialled
	prompt      bool // the backend leg sends small segments at once
	lively      bool // the backend leg finds out that its peer has vanished
}

// note remembers what the poller said of a leg and tells whether there was
// anything in it that was not known.
func (s *slot) note(side flow.Side, r sock.Ready) (news bool) {
	g := &s.legs[side]
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

// chunkSlots makes a chunk fill the 64 KiB that the allocator gives for it.
const chunkSlots = 273

// table holds slots in chunks, so that they never move and memory grows by
// steps of 64 KiB.
type table struct {
	chunks []*[chunkSlots]slot
	free   []uint32
}

func (t *table) size() int { return len(t.chunks) * chunkSlots }

func (l *Loop) at(i uint32) *slot { return &l.table.chunks[i/chunkSlots][i%chunkSlots] }

// enter gives f a slot.
func (l *Loop) enter(f flow.Flow, client, backend sock.FD) (uint32, *slot) {
	t := &l.table
	if len(t.free) == 0 {
		base := uint32(t.size())
		t.chunks = append(t.chunks, new([chunkSlots]slot))
		for k := chunkSlots - 1; k >= 0; k-- {
			t.free = append(t.free, base+uint32(k))
		}
	}
	i := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	s := l.at(i)
	*s = slot{flow: f, incarnation: (s.incarnation + 1) & incarnationMask, live: true}
	s.timer.bucket = -1
	// Nothing is known of readiness yet, so everything is tried once.
	s.legs[flow.Client] = leg{fd: client, pipe: noPipe, is: readable | writable}
	s.legs[flow.Backend] = leg{fd: backend, pipe: noPipe, is: readable | writable}
	l.load.Add(1)
	return i, s
}

// leave empties the slot; the flow in it has gone or ended.
func (l *Loop) leave(i uint32, s *slot) {
	l.disarm(i, &s.timer)
	s.live, s.again = false, false
	s.flow = flow.Flow{}
	s.account = nil
	l.table.free = append(l.table.free, i)
	l.load.Add(-1)
}

func data(i uint32, s *slot, side flow.Side) uint64 {
	return uint64(s.incarnation)<<32 | uint64(i)<<1 | uint64(side)
}

// each calls do for every flow in the table.
func (l *Loop) each(do func(i uint32, s *slot)) {
	for c := range l.table.chunks {
		for k := range l.table.chunks[c] {
			if s := &l.table.chunks[c][k]; s.live {
				do(uint32(c*chunkSlots+k), s)
			}
		}
	}
}
