package loop

import (
	"strconv"

	"github.com/holdfast-lb/holdfast/internal/flow"
)

// Look calls do for the flows that have one of n places from a number on, and
// gives the number to go on from, or false if there are no more. To be called on
// the loop's thread; a caller that looks at all of them asks again and again, so
// that no turn becomes long. Flows that come meanwhile may be missed.
func (l *Loop) Look(from uint32, n int, do func(i uint32, f *flow.Flow)) (next uint32, more bool) {
	end := min(uint32(l.table.slots.size()), from+uint32(n))
	for i := from; i < end; i++ {
		if s := l.at(i); s.live {
			do(i, &s.flow)
		}
	}
	return end, end < uint32(l.table.slots.size())
}

// Generation is the number of the configuration by which the loop rules new
// flows; to be asked for on the loop's thread.
func (l *Loop) Generation() uint64 { return l.gen.Number }

// Turned tells how long the loop's turns were, from the end of the wait on: while
// one lasts nobody else is served. To be asked for on the loop's thread.
func (l *Loop) Turned() Histogram { return l.turns }

// lose counts flows that a move could not keep.
func (l *Loop) lose(n int) {
	l.Count.Lost += uint64(n)
	l.Count.LostMoving += uint64(n)
}

// flowName is how people see the identity of a flow, here as everywhere.
func flowName(id uint64) string { return "f-" + strconv.FormatUint(id, 16) }
