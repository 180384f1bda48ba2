// Package balance chooses the endpoint for a new connection. It probes
// nothing and remembers nothing: what it needs to know is in the accounts of
// the ledger. What it does by chance it does by a hash of the turn.
//
// A [ledger.Roster] is made when a standing changes, and costs what it must then, so
// that choosing costs next to nothing. First there are two tiers, endpoints and
// backup endpoints; in a tier up to three groups if the backend prefers what is
// local: those on this node's own host, those in its zone, the others; in a group
// one of five ways to choose.
package balance

import (
	"slices"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// Policy is the [ledger.Policy] for all ways of balancing. Its zero value is ready.
type Policy struct{}

// roster is a [ledger.Roster]. Immutable.
type roster struct {
	tiers   [tiers]tier
	tier    []int8 // by endpoint; out: it does not serve
	sticky  []bool
	holds   []bool
	soon    uint64 // bits of those that are held or have their first check under way
	serving int
	panics  bool
}

const (
	regular = iota // all but the next
	backup         // those that serve while no other does
	tiers
	out = -1
)

// tier is what serves while no earlier one does: the groups in the order of their
// distance.
type tier struct {
	groups []chooser
	mask   uint64 // bit i%64 of each endpoint that serves
}

// asked is what a chooser needs to know of a [ledger.Asking].
type asked struct {
	tried, key uint64
	now        int64
}

// chooser is one way to choose in one group.
type chooser interface {
	// pick gives the index of an endpoint that is free for a, or -1, and the share
	// that it may have of all connections, 0 if that is not bounded.
	pick(a asked, turn uint64) (int, float64)
}

// member is an endpoint that serves, or a candidate of Maglev that may not.
type member struct {
	account *ledger.Endpoint
	weight  int64 // times a thousand; of one that serves above 0
	index   int32
}

// Roster implements [ledger.Policy].
func (Policy) Roster(c *config.Backend, accounts []*ledger.Endpoint, here ledger.Here, old ledger.Roster) ledger.Roster {
	r := &roster{tier: make([]int8, len(accounts)), sticky: make([]bool, len(accounts)), holds: make([]bool, len(accounts))}
	standings := make([]ledger.Standing, len(accounts))
	for i, account := range accounts {
		standings[i] = account.Standing()
	}
	r.panics = panics(c, standings)
	var groups [tiers][distances][]member
	for i, e := range c.Endpoints {
		s := &standings[i]
		r.tier[i] = out
		if e.Host != "" && !e.Addr.IsValid() {
			continue // a name without an address yet
		}
		believed := s.Health != ledger.Down && !s.Ejected || r.panics && s.Health != ledger.Checking
		r.sticky[i] = s.Admin <= ledger.Quiescing && s.Health != ledger.Checking && believed
		r.holds[i] = s.Admin == ledger.Held
		if r.holds[i] || s.Admin == ledger.Ready && s.Health == ledger.Checking {
			r.soon |= bit(i)
		}
		m := member{account: accounts[i], weight: weight(e, s), index: int32(i)}
		if s.Admin != ledger.Ready || s.Health == ledger.Checking || s.Health == ledger.Draining || !believed {
			m.weight = 0
		}
		t := regular
		if e.Backup {
			t = backup
		}
		if m.weight > 0 {
			r.serving++
			r.tiers[t].mask |= bit(i)
			r.tier[i] = int8(t)
		} else if c.Balance != config.Maglev {
			continue
		}
		far := distance(c, e, here)
		groups[t][far] = append(groups[t][far], m)
	}
	before, _ := old.(*roster)
	for t := range groups {
		for g, members := range groups[t] {
			if !slices.ContainsFunc(members, func(m member) bool { return m.weight > 0 }) {
				continue
			}
			r.tiers[t].groups = append(r.tiers[t].groups, choose(c, members, before.table(t, g), standings, t, g))
		}
	}
	return r
}

const (
	sameNode = iota
	sameZone
	elsewhere // and all, where nothing local is preferred
	distances
)

// distance tells how near e is, in the eyes of a backend that prefers what is local.
func distance(c *config.Backend, e *config.Endpoint, here ledger.Here) int {
	switch {
	case !c.PreferLocal:
		return elsewhere
	case e.Node != "" && e.Node == here.Node:
		return sameNode
	case e.Zone != "" && e.Zone == here.Zone:
		return sameZone
	default:
		return elsewhere
	}
}

// weight is the weight of e times a thousand; 0 gets nothing new.
func weight(e *config.Endpoint, s *ledger.Standing) int64 {
	w := e.Weight
	if s.Weight >= 0 {
		w = s.Weight
	}
	return int64(w) * int64(max(0, s.Permille))
}

// panics tells whether so few endpoints serve that checks are not believed any
// more: who can reach nobody may be cut off itself. Those that the operator, or
// they themselves, took out do not count, and while a backup serves there is no
// need to.
func panics(c *config.Backend, standings []ledger.Standing) bool {
	if c.Panic == 0 {
		return false
	}
	all, up := 0, 0
	for i, e := range c.Endpoints {
		s := &standings[i]
		if s.Admin != ledger.Ready || e.Drop != config.NoDrop || weight(e, s) == 0 || s.Health == ledger.Checking || s.Health == ledger.Draining {
			continue
		}
		all++
		if s.Health != ledger.Down && !s.Ejected {
			if e.Backup {
				return false
			}
			up++
		}
	}
	return up*100 < c.Panic*all
}

func choose(c *config.Backend, members []member, old *table, standings []ledger.Standing, t, g int) chooser {
	switch c.Balance {
	case config.RoundRobin:
		return &roundRobin{newWheel(members, true)}
	case config.Least:
		return &least{newWheel(members, true)}
	case config.Random:
		return &random{newWheel(members, false)}
	case config.P2C:
		return &p2c{newWheel(members, false)}
	case config.Maglev:
		return newMaglev(c, members, old, standings, t, g)
	default:
		panic("balance: no way to choose by " + c.Balance.String())
	}
}

// Pick implements [ledger.Roster]. Who has tried all of a tier in vain goes on to the
// next; one that is full does not send anybody there.
func (r *roster) Pick(a ledger.Asking, turn uint64) (int, float64) {
	by := asked{a.Tried, a.Key, a.Now}
	for t := range r.tiers {
		if r.tiers[t].mask&^a.Tried == 0 {
			continue
		}
		for _, g := range r.tiers[t].groups {
			if i, share := g.pick(by, turn); i >= 0 {
				return i, share
			}
		}
		break
	}
	return -1, 0
}

// Open implements [ledger.Roster].
func (r *roster) Open(i int, tried uint64) bool {
	t := r.tier[i]
	return t != out && tried&bit(i) == 0 && (t == regular || r.tiers[regular].mask&^tried == 0)
}

// Sticky implements [ledger.Roster].
func (r *roster) Sticky(i int) bool { return r.sticky[i] }

// Holds implements [ledger.Roster].
func (r *roster) Holds(i int) bool { return r.holds[i] }

// Worth implements [ledger.Roster].
func (r *roster) Worth(tried uint64) bool {
	return (r.tiers[regular].mask|r.tiers[backup].mask|r.soon)&^tried != 0
}

// Held implements [ledger.Roster].
func (r *roster) Held() bool { return r.serving == 0 && r.soon != 0 }

// Serving implements [ledger.Roster].
func (r *roster) Serving() int { return r.serving }

// Panics implements [ledger.Roster].
func (r *roster) Panics() bool { return r.panics }

func bit(i int) uint64 { return 1 << (i % 64) }

// free tells whether a may have m now.
func (m *member) free(a asked) bool {
	return a.tried&bit(int(m.index)) == 0 && m.account.Room()
}

// mix spreads x over all bits (the finalizer of SplitMix64, Steele et al. 2014).
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// golden is 2^64 over the golden ratio: its multiples fill the circle as evenly as
// any sequence can.
const golden = 0x9e3779b97f4a7c15
