package balance

import (
	"math/bits"
)

// wheel has the members of a group by weight: as an even sequence that comes round,
// and as a circle on which each has an arc.
type wheel struct {
	members []member
	// sequence has positions in members, each as often as its weight says; nil: all
	// weights are equal, or their sum is too large.
	sequence []uint32
	equal    bool
	// ends are where the arcs of the members end, of which sum is all; first is the
	// first member with a part in each of as many equal arcs. Nil: all weights are equal.
	ends  []uint64
	first []uint32
	sum   uint64
	part  uint64 // the length of an equal arc
}

// sequenceMax bounds a sequence; beyond it the circle is used in steps of the golden
// section, which is as even but repeats no exact shares.
const sequenceMax = 1 << 16

// newWheel makes a wheel; without inTurn it has no sequence.
func newWheel(members []member, inTurn bool) wheel {
	w := wheel{members: members, equal: true}
	divisor := uint64(0)
	for i := range members {
		divisor = gcd(divisor, uint64(members[i].weight))
		w.sum += uint64(members[i].weight)
		w.equal = w.equal && members[i].weight == members[0].weight
	}
	if w.equal {
		return w
	}
	if inTurn && w.sum/divisor <= sequenceMax {
		w.sequence = sequence(members, divisor, int(w.sum/divisor))
	}
	w.ends, w.first = make([]uint64, len(members)), make([]uint32, len(members))
	at := uint64(0)
	for i := range members {
		at += uint64(members[i].weight)
		w.ends[i] = at
	}
	w.part = w.sum/uint64(len(members)) + 1
	for i, k := 0, 0; i < len(w.first); i++ {
		for k < len(members)-1 && w.ends[k] <= uint64(i)*w.part {
			k++
		}
		w.first[i] = uint32(k)
	}
	return w
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// sequence puts each member where its equal steps through the whole fall, from a
// beginning of its own so that those with equal weights do not meet: a bucket for
// each place, in its order within one. That takes time linear in length.
func sequence(members []member, divisor uint64, length int) []uint32 {
	type place struct {
		at     float64
		member uint32
	}
	count := make([]uint32, length+1)
	places := make([]place, 0, length)
	for m := range members {
		n := int(uint64(members[m].weight) / divisor)
		step := float64(length) / float64(n)
		begin := float64(uint64(m+1)*golden>>11) / (1 << 53)
		for k := range n {
			at := min((float64(k)+begin)*step, float64(length)-0.5)
			places = append(places, place{at, uint32(m)})
			count[int(at)+1]++
		}
	}
	for i := range length {
		count[i+1] += count[i]
	}
	sorted := make([]place, length)
	begin := append([]uint32(nil), count...)
	for _, p := range places {
		// Few share a bucket: insertion keeps them in order.
		b := int(p.at)
		i := count[b]
		for i > begin[b] && sorted[i-1].at > p.at {
			sorted[i] = sorted[i-1]
			i--
		}
		sorted[i] = p
		count[b]++
	}
	out := make([]uint32, length)
	for i, p := range sorted {
		out[i] = p.member
	}
	return out
}

// inTurn gives the position of the member whose turn it is.
func (w *wheel) inTurn(turn uint64) int {
	switch {
	case w.equal:
		return int(turn % uint64(len(w.members)))
	case w.sequence != nil:
		return int(w.sequence[turn%uint64(len(w.sequence))])
	}
	return w.at(turn * golden)
}

// at gives the position of the member on whose arc x lies, of 2^64.
func (w *wheel) at(x uint64) int {
	n := uint64(len(w.members))
	if w.equal {
		hi, _ := bits.Mul64(x, n)
		return int(hi)
	}
	on, _ := bits.Mul64(x, w.sum)
	k := int(w.first[on/w.part])
	for w.ends[k] <= on {
		k++
	}
	return k
}

// another finds a free member by chance, by weight, for one whose first choice is
// not free; -1: there is none. So what one cannot take is shared by all, and not
// borne by its neighbour.
func (w *wheel) another(a asked, turn uint64) int {
	n := len(w.members)
	if n <= 1 {
		return -1
	}
	x := mix(turn + golden)
	for range chances {
		if m := &w.members[w.at(x)]; m.free(a) {
			return int(m.index)
		}
		x = mix(x + golden)
	}
	return w.scan(a, x)
}

// chances is how often another is looked for by chance before all are looked at.
const chances = 16

// scan gives the first free member from a place by chance on, or -1.
func (w *wheel) scan(a asked, x uint64) int {
	n := len(w.members)
	hi, _ := bits.Mul64(x, uint64(n))
	for k, at := 0, int(hi); k < n; k++ {
		if m := &w.members[at]; m.free(a) {
			return int(m.index)
		}
		if at++; at == n {
			at = 0
		}
	}
	return -1
}
