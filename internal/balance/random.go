package balance

import "github.com/holdfast-lb/holdfast/internal/ledger"

// random is by chance, by weight.
type random struct{ wheel }

func (r *random) pick(a *ledger.Asking, turn uint64) (int, float64) {
	if m := &r.members[r.at(mix(turn*golden))]; m.free(a) {
		return int(m.index), 0
	}
	return r.another(a, turn), 0
}
