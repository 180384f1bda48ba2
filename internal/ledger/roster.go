package ledger

import (
	"slices"
	"sync/atomic"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/planted"
)

// Policy makes rosters. accounts are in the order of c's endpoints and are not
// changed; old is the roster of the same version that the new one replaces, nil
// if there is none.
type Policy interface {
	Roster(c *config.Backend, accounts []*Endpoint, here Here, old Roster) Roster
}

// Here is the node that chooses and the zone it is in, for backends that prefer what
// is local. It is no part of any object: the same backend is chosen from by every
// node of a cluster, and a flow that moves to another one finds other endpoints
// local there, for what it dials from then on.
type Here struct {
	Node, Zone string // "" is none
}

// here is where all backends of the ledger are chosen from.
func (o *Options) here() Here { return Here{o.Node, o.Zone} }

// Roster chooses among the endpoints of one version of a backend, in the standings
// that they had when it was made. It is immutable, and used by all loops at once.
type Roster interface {
	// Pick gives the index of an endpoint with room that was not tried, or -1, and
	// the share of all the backend's connections that it may have, 0 if that is not
	// bounded. turn is never the same twice, and counts up by one over all loops.
	Pick(a Asking, turn uint64) (i int, share float64)
	// Open tells whether endpoint i may be picked, if it has room, by who has tried
	// these: whether it serves, and was not tried, and is not for later.
	Open(i int, tried uint64) bool
	// Sticky tells whether endpoint i serves those that are sticky to it, Holds
	// whether they wait for it.
	Sticky(i int) bool
	Holds(i int) bool
	// Worth tells whether it is worth to wait if Pick gave none: something serves
	// that was not tried and has no room now, or what was not tried is held or has
	// its first check still under way.
	Worth(tried uint64) bool
	// Held tells that nothing serves, but some endpoint may soon: wait, do not fail.
	Held() bool
	// Serving is how many serve something new; Panics that health is not believed.
	Serving() int
	Panics() bool
}

// version is one version of a backend, its accounts, and its roster of the moment.
type version struct {
	of       *config.Backend
	accounts []*Endpoint
	roster   Roster
	// used: somebody asked for it since the last Prune, though it is not in force.
	used atomic.Bool
}

// versions are all that somebody may still name. Immutable: it is replaced as a
// whole, and who chose by one that was replaced meanwhile chooses again.
type versions struct {
	all     []*version
	current *version // whose limits rule; nil: none yet. It is the first of all
}

// versionsMax bounds the versions that are kept for flows under older
// configurations. One that was dropped is made again when it is asked for.
const versionsMax = 8

func (s *versions) find(c *config.Backend) *version {
	for _, v := range s.all {
		if v.of == c {
			return v
		}
	}
	// A flow that moved here may bring a copy.
	for _, v := range s.all {
		if c.Ref.Version != 0 && v.of.Ref == c.Ref {
			return v
		}
	}
	return nil
}

// find gives where e is among v's accounts, or -1.
func (v *version) find(e *Endpoint) int {
	if i := int(e.index.Load()); i < len(v.accounts) && v.accounts[i] == e {
		return i
	}
	return slices.Index(v.accounts, e) // v is not the version in force
}

// version gives c's version and the whole that it belongs to.
func (b *Backend) version(c *config.Backend) (*versions, *version) {
	for {
		s := b.versions.Load()
		if v := s.find(c); v != nil && s.current != nil {
			if v != s.current && !v.used.Load() {
				v.used.Store(true)
			}
			return s, v
		}
		b.roll.Lock()
		s = b.versions.Load()
		switch {
		case s.current == nil: // before any was put in force, the first rules
			b.enforce(c)
		case s.find(c) == nil:
			all := append(slices.Clone(s.all), b.makeVersion(c))
			if len(all) > versionsMax {
				all = slices.Delete(all, 1, 2)
			}
			b.versions.Store(&versions{all, s.current})
		}
		b.roll.Unlock()
	}
}

// makeVersion makes accounts and roster for c, under roll.
func (b *Backend) makeVersion(c *config.Backend) *version {
	v := &version{of: c, accounts: make([]*Endpoint, len(c.Endpoints))}
	b.names.Lock()
	for i, e := range c.Endpoints {
		account := b.endpoint(e.Ref.Name)
		if !account.ruled { // of a version that was never in force here
			account.ruled = true
			account.setLimit(limitOf(c, e))
		}
		v.accounts[i] = account
	}
	b.names.Unlock()
	v.roster = b.options.Policy.Roster(c, v.accounts, b.options.here(), nil)
	return v
}

// limitOf is how many connections e may have under c; 0 is no limit.
func limitOf(c *config.Backend, e *config.Endpoint) int64 {
	if e.ConnectionsMax != 0 {
		return int64(e.ConnectionsMax)
	}
	return int64(c.ConnectionsPerEndpoint)
}

// enforce makes c the version in force, under roll.
func (b *Backend) enforce(c *config.Backend) {
	s := b.versions.Load()
	v := s.find(c)
	if v == nil {
		v = b.makeVersion(c)
	}
	present := make(map[*Endpoint]bool, len(v.accounts))
	for i, e := range v.accounts {
		e.setLimit(limitOf(c, c.Endpoints[i]))
		e.index.Store(int32(i))
		present[e] = true
	}
	b.alarmAt.Store(0)
	if c.Eject != nil {
		b.alarmAt.Store(int64(c.Eject.Consecutive))
	}
	next := &versions{all: []*version{v}, current: v}
	for _, o := range s.all {
		if o != v && len(next.all) < versionsMax {
			next.all = append(next.all, o)
		}
	}
	b.versions.Store(next)
	b.sweep(next, present)
	b.enforceTable(c, present)
}

// sweep forgets accounts of endpoints that no version has and nobody uses, the
// second time it meets them: else names that come and go would pile up.
func (b *Backend) sweep(s *versions, present map[*Endpoint]bool) {
	known := map[*Endpoint]bool{}
	for _, v := range s.all {
		for _, e := range v.accounts {
			known[e] = true
		}
	}
	b.names.Lock()
	defer b.names.Unlock()
	for name, e := range b.endpoints {
		idle := !known[e] && e.held.Load() == 0
		if idle && e.absent {
			delete(b.endpoints, name)
		}
		e.absent = idle
	}
}

// remake makes all rosters anew, under roll.
func (b *Backend) remake() {
	s := b.versions.Load()
	next := &versions{}
	for _, v := range s.all {
		if planted.Bug(47) && v != s.current {
			next.all = append(next.all, v)
			continue
		}
		n := &version{of: v.of, accounts: v.accounts, roster: b.options.Policy.Roster(v.of, v.accounts, b.options.here(), v.roster)}
		n.used.Store(v.used.Load())
		next.all = append(next.all, n)
		if v == s.current {
			next.current = n
		}
	}
	b.versions.Store(next)
}

// pruneVersions drops the versions that are not in force and for which nobody has
// asked since the last time: with their rosters they are most of what a change of a
// backend leaves behind. Flows under one have it made again when they ask.
func (b *Backend) pruneVersions() {
	b.roll.Lock()
	defer b.roll.Unlock()
	s := b.versions.Load()
	if len(s.all) < 2 {
		return
	}
	next := &versions{current: s.current}
	for _, v := range s.all {
		if v == s.current || v.used.Swap(false) {
			next.all = append(next.all, v)
		}
	}
	if len(next.all) < len(s.all) {
		b.versions.Store(next)
	}
}

// Govern makes c the version whose limits rule from now on, and grants what they
// allow.
func (b *Backend) Govern(c *config.Backend) {
	b.roll.Lock()
	b.enforce(c)
	b.roll.Unlock()
	b.grantAll()
}

// Roster is the roster of the version in force, nil if there is none.
func (b *Backend) Roster() Roster {
	if v := b.versions.Load().current; v != nil {
		return v.roster
	}
	return nil
}
