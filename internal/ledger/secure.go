package ledger

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/planted"
)

// Asking is what somebody who asks for an endpoint says.
type Asking struct {
	Tried uint64 // bit i%64 of each endpoint that was tried in vain
	Place uint64 // the place in the queue from before a move; 0 is none
	Key   uint64 // hash of what Maglev or a sticky table goes by; 0 is none
	Stuck int    // 1 + the index of the endpoint that a valid cookie names; 0 is none
	Class config.Priority
	Retry bool // a further attempt: it counts against the budget
	// Again: it had an endpoint already, and comes back for no fault of that one or
	// of its own, as when a pooled leg was dead. It is counted, and not shed.
	Again bool
	// Hashed: Key is Maglev's alone, and no sticky table has it.
	Hashed bool
	Loop   int
	Token  uint64
	Now    int64 // the loops' clock, in nanoseconds
}

// Answer is what [Backend.Secure] says.
type Answer uint8

// The answers.
const (
	Secured Answer = iota // a slot of the endpoint is the caller's
	Waiting               // the flow has a place in the queue; the loop's bell will ring
	Full                  // the queue has no place
	None                  // no endpoint is left to try
	Tripped               // the breaker lets nobody through
	Spent                 // the budget for retries is spent
	Shed                  // an order turns it away, as Grant.Drop says
)

// Grant is a slot at an endpoint that belongs to a flow.
type Grant struct {
	Endpoint *config.Endpoint
	Account  *Endpoint
	Stuck    bool // chosen because the client was sticky to it
	Drop     config.Drop
}

// Backend is the account of one backend.
type Backend struct {
	Name     string
	absent   bool // of the configuration, and idle; guarded by Ledger.mu
	options  *Options
	alarm    func(backend string)
	places   *atomic.Uint64
	paused   *atomic.Int32
	sharing  *atomic.Int32
	withheld atomic.Bool  // by a move whose waiters are under way; see share.go
	coming   atomic.Int32 // from how many other hosts; see HoldBack
	versions atomic.Pointer[versions]
	table    atomic.Pointer[table] // nil: no sticky table
	alarmAt  atomic.Int64          // failures in a row; 0: none are too many
	shed     atomic.Uint32         // the order; see shed.go
	stripes  [stripes]stripe

	// What follows is written by all loops.
	turn    atomic.Uint64
	waiting atomic.Int64
	anybody atomic.Int64  // of those, who wait for any endpoint: in queue
	waits   atomic.Uint64 // that have left the queue with a slot
	breaker atomic.Uint64 // the state, and in the low half the probes that are left
	tripped atomic.Uint64
	budget  budget

	shedTurn atomic.Uint64
	shedded  [hows]atomic.Uint64

	// mu guards the queues.
	mu     sync.Mutex
	queue  queue   // those who wait for any endpoint
	trying int     // in queue, who have tried some in vain
	direct *Waiter // need not be rung for: it is still asking

	// roll guards the making of versions. It may be taken under mu.
	roll sync.Mutex
	// asked guards asks: changes of standings that nobody works on yet.
	asked sync.Mutex
	asks  []*standing
	// names guards all below. Nothing is taken under it.
	names     sync.Mutex
	endpoints map[string]*Endpoint
	past      evictions // of sticky tables that the backend has no more
}

func newBackend(name string, l *Ledger) *Backend {
	b := &Backend{Name: name, options: &l.options, alarm: l.options.Alarm, places: &l.places, paused: &l.paused, sharing: &l.sharing, endpoints: map[string]*Endpoint{}}
	b.versions.Store(&versions{})
	return b
}

// endpoint gives the account of that full name, under names.
func (b *Backend) endpoint(name string) *Endpoint {
	e := b.endpoints[name]
	if e == nil {
		e = &Endpoint{Name: name, backend: b}
		e.stripe = &b.stripes[len(b.endpoints)%stripes]
		b.endpoints[name] = e
	}
	return e
}

// Endpoint is the account of the endpoint of that full name.
func (b *Backend) Endpoint(name string) *Endpoint {
	b.names.Lock()
	defer b.names.Unlock()
	return b.endpoint(name)
}

func byName(a, b *Endpoint) int { return strings.Compare(a.Name, b.Name) }

// list gives all accounts in order of their names.
func (b *Backend) list() []*Endpoint {
	b.names.Lock()
	defer b.names.Unlock()
	all := make([]*Endpoint, 0, len(b.endpoints))
	for _, e := range b.endpoints {
		all = append(all, e)
	}
	slices.SortFunc(all, byName)
	return all
}

// Waiting is how many flows wait for an endpoint.
func (b *Backend) Waiting() int { return int(b.waiting.Load()) }

// InUse is how many connections we hold to all endpoints. While it is read others
// may come and go.
func (b *Backend) InUse() int64 {
	n := int64(0)
	for i := range b.stripes {
		n += b.stripes[i].inUse.Load()
	}
	return n
}

// Tries counts the attempts at all endpoints, and those that failed.
func (b *Backend) Tries() (attempts, failures uint64) {
	for i := range b.stripes {
		failures += b.stripes[i].failures.Load()
	}
	for i := range b.stripes {
		attempts += b.stripes[i].attempts.Load()
	}
	return attempts, failures
}

// budgetLook: each so many requests of a stripe the window of the budget is looked at.
const budgetLook = 256

func bit(i int) uint64 { return 1 << (i % 64) }

// Secure takes a slot at an endpoint of c that was not tried, or else a place
// in the queue. a.Place is the flow's earlier one, 0 for a new one: a flow that
// has moved keeps its order. What the queue decides later is told by
// Options.Ring(loop, token) and fetched with [Backend.Collect]. Nothing of a is
// kept but a copy.
func (b *Backend) Secure(c *config.Backend, a *Asking) (Grant, *Waiter, Answer) {
	if order := b.shed.Load(); order != 0 && (a.Place == 0 && a.Tried == 0 && !a.Retry && !a.Again || planted.Bug(78)) {
		if how, yes := b.sheds(order); yes {
			return Grant{Drop: how}, nil, Shed
		}
	}
	switch {
	case a.Retry: // also with a place: it keeps that of an attempt before
		if c.Retry.Budget > 0 && !b.budget.spend(a.Now, c.Retry.Budget, b.requests()) {
			return Grant{}, nil, Spent
		}
	case a.Place == 0 && a.Tried == 0 && !a.Again: // else it is counted, or AllowRetry has counted it
		if n := b.stripes[a.Loop%stripes].requests.Add(1); c.Retry.Budget > 0 && n%budgetLook == 1 {
			b.budget.look(a.Now, b.requests())
		}
	}
	probe := false
	if c.Breaker != nil {
		through := false
		if probe, through = b.letThrough(); !through && (a.Place == 0 || a.Retry) {
			b.tripped.Add(1)
			return Grant{}, nil, Tripped
		}
		// Who waited already, and has moved, goes on to wait like those who have not.
	}
	want := b.wants(c, a)
	if b.anybody.Load() == 0 {
		if g := b.secure(c, a, want); g.Endpoint != nil {
			return g, nil, Secured
		}
	}
	g, w, answer := b.queueUp(c, a, want, probe)
	if probe && (answer == None || answer == Full) {
		b.unprobe()
	}
	return g, w, answer
}

// secure takes a slot if nobody waits who might want it: no mutex is taken. Who comes
// to wait at the same instant came later than we did.
func (b *Backend) secure(c *config.Backend, a *Asking, want *Endpoint) Grant {
	for {
		s, v := b.version(c)
		o, e := b.choose(v, a, want)
		if e == nil || e.wanted.Load() > 0 {
			return Grant{}
		}
		if !e.take(o.share) {
			continue // another loop was quicker
		}
		// Count first, then look whether the choice still holds: who changes a
		// standing changes it first and looks at the count then. So after Stand
		// nothing is granted by an old roster, and what was is counted.
		if !b.stands(s, e) {
			e.Release()
			continue
		}
		if !o.stuck {
			b.learn(a, e)
		}
		return Grant{Endpoint: c.Endpoints[o.i], Account: e, Stuck: o.stuck}
	}
}

// stands tells whether a choice by s that is counted already holds.
func (b *Backend) stands(s *versions, e *Endpoint) bool {
	return b.versions.Load() == s && (e.limit.Load() == 0 || !b.holdsBack())
}

// choice is an index in a version, and under which conditions it may be taken.
type choice struct {
	i     int
	share float64
	stuck bool
}

// choose finds an endpoint with room; nil: there is none.
func (b *Backend) choose(v *version, a *Asking, want *Endpoint) (choice, *Endpoint) {
	if want != nil {
		if i := v.find(want); i >= 0 && a.Tried&bit(i) == 0 {
			switch {
			case v.roster.Sticky(i):
				if !want.Room() {
					return choice{}, nil // it is waited for
				}
				return choice{i: i, stuck: true}, want
			case v.roster.Holds(i):
				return choice{}, nil
			}
		}
	}
	i, share := v.roster.Pick(*a, b.turn.Add(1)-1)
	if i < 0 {
		return choice{}, nil
	}
	return choice{i: i, share: share}, v.accounts[i]
}

// wants gives the endpoint to which the client is sticky, or nil.
func (b *Backend) wants(c *config.Backend, a *Asking) *Endpoint {
	if c.Sticky == nil {
		return nil
	}
	if a.Stuck > 0 && a.Stuck <= len(c.Endpoints) {
		_, v := b.version(c)
		return v.accounts[a.Stuck-1]
	}
	if t := b.table.Load(); t != nil && a.Key != 0 && !a.Hashed && c.Sticky.Kind != config.StickyCookie {
		return t.find(a.Key, a.Now)
	}
	return nil
}

// learn remembers in the sticky table, if there is one, where the client went.
func (b *Backend) learn(a *Asking, e *Endpoint) {
	if a.Key == 0 || a.Hashed {
		return
	}
	if t := b.table.Load(); t != nil {
		t.learn(a.Key, e, a.Now)
	}
}

// raise makes places given from now on larger than one that came from another
// process.
func raise(places *atomic.Uint64, seen uint64) {
	for {
		was := places.Load()
		if was >= seen || places.CompareAndSwap(was, seen) {
			return
		}
	}
}
