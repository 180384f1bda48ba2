package balance

import (
	"math/bits"
)

// p2c takes the better one of two by chance: the one with the lower product of
// what its answers take (peak EWMA) and what it has to do, for its weight. The best
// of two avoids the bad ones and does not make everybody run to the best
// (Mitzenmacher 2001).
type p2c struct{ wheel }

func (r *p2c) pick(a asked, turn uint64) (int, float64) {
	n := uint64(len(r.members))
	if n == 1 {
		if m := &r.members[0]; m.free(a) {
			return int(m.index), 0
		}
		return -1, 0
	}
	x := mix(turn * golden)
	one, _ := bits.Mul64(x, n)
	two, _ := bits.Mul64(mix(x+golden), n-1)
	if two >= one {
		two++
	}
	m, o := &r.members[one], &r.members[two]
	switch mine, other := m.free(a), o.free(a); {
	case mine && other:
		if o.cost(a.now) < m.cost(a.now) {
			m = o
		}
	case other:
		m = o
	case !mine:
		return r.another(a, turn), 0
	}
	return int(m.index), 0
}

// unmeasured is what one costs that has something to do and has answered nothing
// yet: until then nothing more, if there is a choice.
const unmeasured = 1e15

func (m *member) cost(now int64) float64 {
	inUse := float64(m.account.InUse())
	took := m.account.LatencyAt(now)
	switch {
	case took > 0:
		return took * (inUse + 1) / float64(m.weight)
	case inUse > 0:
		return unmeasured * inUse / float64(m.weight)
	}
	return 0 // one of which nothing is known is asked once
}
