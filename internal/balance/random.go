package balance

// random is by chance, by weight.
type random struct{ wheel }

func (r *random) pick(a asked, turn uint64) (int, float64) {
	if m := &r.members[r.at(mix(turn*golden))]; m.free(a) {
		return int(m.index), 0
	}
	return r.another(a, turn), 0
}
