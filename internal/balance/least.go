package balance

// least takes the one with the fewest connections for its weight; of equals the one
// whose turn it is, so that idle ones share by weight.
type least struct{ wheel }

// leastOf bounds how many are looked at, from the one on whose turn it is: of more
// than 256, the least of 256 that change with each turn. That is next to the least
// of all, and one that came back empty is not run over by everybody.
const leastOf = 256

func (r *least) pick(a asked, turn uint64) (int, float64) {
	n := len(r.members)
	at := r.inTurn(turn)
	best, load, weight := -1, int64(0), int64(1)
	for range min(n, leastOf) {
		m := &r.members[at]
		if at++; at == n {
			at = 0
		}
		// In whole numbers: what a is over b, compared to c over d.
		if inUse := m.account.InUse(); (best < 0 || inUse*weight < load*m.weight) && m.free(a) {
			best, load, weight = int(m.index), inUse, m.weight
			if load == 0 {
				break // nobody has fewer
			}
		}
	}
	if best < 0 && n > leastOf {
		return r.scan(a, mix(turn*golden)), 0
	}
	return best, 0
}
