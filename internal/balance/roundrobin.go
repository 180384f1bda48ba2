package balance

// roundRobin is smooth weighted round robin: each in turn, as often as its weight
// says, as evenly as can be. Every loop takes the next turn of all.
type roundRobin struct{ wheel }

func (r *roundRobin) pick(a asked, turn uint64) (int, float64) {
	if m := &r.members[r.inTurn(turn)]; m.free(a) {
		return int(m.index), 0
	}
	return r.another(a, turn), 0
}
