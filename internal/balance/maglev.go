package balance

import (
	"slices"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// maglev chooses by a hash, so that the same key comes to the same endpoint on every
// loop and host, and few keys move when endpoints change (Eisenbud et al., NSDI
// 2016). The table has all endpoints that have a weight, whether they serve or
// not: a key whose endpoint does not serve, or has its share (Mirrokni et al.,
// 2018), goes on in an order of its own. So a change of health moves no other
// key, and needs no new table.
type maglev struct {
	members []member
	table   *table
	accept  []uint32  // of 2^32-1 keys, those that a member takes now, by position
	share   []float64 // of all connections, for one that is bounded; nil: none is
	serving []uint32  // positions of those that serve
}

// table is the part that only weights decide. It is used again by rosters of the same
// version of a backend.
type table struct {
	tier, group int
	names       []string
	weights     []int64
	slots       []uint16 // positions in the group: a backend has far fewer than 65,535 endpoints
}

// tableSize is a prime, and the same for few endpoints and many: else all keys
// would move when one comes that is one too many. With 655 endpoints or fewer each
// has its share within one percent.
const tableSize = 65537

// none marks a slot of a table that is being made; every key is accepted.
const (
	none  = ^uint16(0)
	every = ^uint32(0)
)

// table gives the table of r for a group, if it has one.
func (r *roster) table(tier, group int) *table {
	if r == nil {
		return nil
	}
	for _, c := range r.tiers[tier].groups {
		if m, ok := c.(*maglev); ok && m.table.group == group && m.table.tier == tier {
			return m.table
		}
	}
	return nil
}

func newMaglev(c *config.Backend, members []member, old *table, standings []ledger.Standing, tier, group int) *maglev {
	m := &maglev{accept: make([]uint32, 0, len(members))}
	t := &table{tier: tier, group: group}
	sum := 0.0
	for _, o := range members {
		// What a weight in the file, or a greater one of the operator's, would get:
		// less is made of it by accepting fewer keys.
		e := c.Endpoints[o.index]
		whole := int64(max(e.Weight, standings[o.index].Weight))
		if whole == 0 {
			continue
		}
		m.members = append(m.members, o)
		m.accept = append(m.accept, uint32(float64(o.weight)/float64(1000*whole)*float64(every)))
		t.names, t.weights = append(t.names, e.Name), append(t.weights, whole)
		if o.weight > 0 {
			m.serving = append(m.serving, uint32(len(m.members)-1))
			sum += float64(o.weight)
		}
	}
	if old != nil && slices.Equal(old.weights, t.weights) && slices.Equal(old.names, t.names) {
		t = old
	} else {
		t.fill()
	}
	m.table = t
	if c.Hash.Load > 0 {
		m.share = make([]float64, len(m.members))
		for i := range m.members {
			m.share[i] = float64(c.Hash.Load) / 100 * float64(m.members[i].weight) / sum
		}
	}
	return m
}

// fill makes the slots: each member in turn takes the next free one in an order of
// its own, as often as its weight says.
func (t *table) fill() {
	t.slots = make([]uint16, tableSize)
	for i := range t.slots {
		t.slots[i] = none
	}
	most := slices.Max(t.weights)
	at, step := make([]uint32, len(t.names)), make([]uint32, len(t.names))
	for i, name := range t.names {
		h := hashName(name)
		at[i] = uint32(h % tableSize)
		step[i] = uint32(mix(h)%(tableSize-1)) + 1
	}
	due := make([]int64, len(t.names))
	for left := tableSize; ; {
		for i := range t.names {
			if due[i] += t.weights[i]; due[i] < most {
				continue
			}
			due[i] -= most
			for t.slots[at[i]] != none {
				at[i] = (at[i] + step[i]) % tableSize
			}
			t.slots[at[i]] = uint16(i)
			if left--; left == 0 {
				return
			}
		}
	}
}

// hashName is FNV-1a of 64 bits over the endpoint's own name, mixed: two backends
// with endpoints of the same names send a key to the same one. It is part of what
// stays the same over hosts and releases, as are mix and tableSize.
func hashName(name string) uint64 {
	h := uint64(0xcbf29ce484222325)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 0x100000001b3
	}
	return mix(h)
}

// probes is how far a key goes on in its own order.
const probes = 64

func (m *maglev) pick(a asked, turn uint64) (int, float64) {
	key := a.key
	if key == 0 {
		key = mix(turn * golden)
	}
	x := mix(key + golden)
	at, step := uint32(x%tableSize), uint32(mix(x)%(tableSize-1))+1
	for range probes {
		i := uint32(m.table.slots[at])
		if at += step; at >= tableSize {
			at -= tableSize
		}
		if m.accepts(i, x) && m.members[i].free(a) {
			if m.share == nil {
				return int(m.members[i].index), 0
			}
			if m.members[i].account.Within(m.share[i]) {
				return int(m.members[i].index), m.share[i]
			}
		}
	}
	return m.last(a, x), 0
}

// accepts tells whether a key is among those that the member takes: always the same
// ones, and with more weight only more.
func (m *maglev) accepts(i uint32, x uint64) bool {
	accept := m.accept[i]
	return accept == every || accept != 0 && uint32(mix(x+uint64(i)*golden)) < accept
}

// last is for keys that have found nothing in their order, because nearly nothing
// serves: the first free one from the key's place on, or, if loads are bounded, the
// one that has least for its weight. That one is within its bound unless others
// cannot be had for another reason.
func (m *maglev) last(a asked, x uint64) int {
	n := len(m.serving)
	best, load, weight := -1, int64(0), int64(1)
	for k, at := 0, int(x%uint64(n)); k < n; k++ {
		o := &m.members[m.serving[at]]
		if at++; at == n {
			at = 0
		}
		if !o.free(a) {
			continue
		}
		if m.share == nil {
			return int(o.index)
		}
		if inUse := o.account.InUse(); best < 0 || inUse*weight < load*o.weight {
			best, load, weight = int(o.index), inUse, o.weight
		}
	}
	return best
}
