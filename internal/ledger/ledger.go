// Package ledger is the only shared memory of the data plane: what is global
// across loops has its one owner here. It counts connections of the node, of
// each listener and of each endpoint, holds limits exactly, and keeps the fair
// queue of flows that wait for an endpoint with room.
//
// An account belongs to a name, not to a version of an object: an endpoint
// whose definition changed keeps its connections and its limit.
//
// While nobody waits nothing is touched but atomic words: who takes a slot counts
// first and then looks whether it chose by what still holds. Only queues have a
// mutex; nothing is awaited under it.
package ledger

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
)

// Ledger holds all accounts of a process.
type Ledger struct {
	// Node counts all client connections.
	Node    Gate
	places  atomic.Uint64
	paused  atomic.Int32 // how many moves want nothing granted
	sharing atomic.Int32 // see share.go
	options Options

	limits sync.Map // of [config.Listener] to its limits; see rates.go
	rates  rateBook
	// mu guards the maps, not the accounts in them.
	mu        sync.Mutex
	backends  map[string]*Backend
	listeners map[string]*Gate
}

// Options are what a ledger is made with.
type Options struct {
	// Policy chooses endpoints; package balance provides it.
	Policy Policy
	// Ring tells a loop that a waiter of its has been served, Open tells all loops
	// that accepting may go on. Both are called from any thread and must not block.
	Ring func(loop int, token uint64)
	Open func()
	// Alarm tells that somebody should judge a backend's endpoints: one has failed as
	// often in a row as its Eject says, or a request of a half-open breaker has
	// failed. It is called from any thread and must not block; nil is nobody.
	Alarm func(backend string)
	// Node is the name of this node, Zone where it is: see [Here].
	Node, Zone string
}

// New makes an empty ledger.
func New(o Options) *Ledger {
	l := &Ledger{options: o, backends: map[string]*Backend{}, listeners: map[string]*Gate{}}
	l.Node.open = o.Open
	return l
}

// Backend is the account of that name; it is made on first use.
func (l *Ledger) Backend(name string) *Backend {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.backends[name]
	if b == nil {
		b = newBackend(name, l)
		l.backends[name] = b
	}
	b.absent = false // somebody is about to use it
	return b
}

// Listener is the gate of that name; it is made on first use.
func (l *Ledger) Listener(name string) *Gate {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.listeners[name]
	if g == nil {
		g = &Gate{open: l.options.Open}
		l.listeners[name] = g
	}
	g.absent = false
	return g
}

// LastPlace is the last place in a queue that was given.
func (l *Ledger) LastPlace() uint64 { return l.places.Load() }

// PlacesAfter makes all places from now on come after one of another process.
func (l *Ledger) PlacesAfter(last uint64) { raise(&l.places, last) }

// Pause stops granting slots of limited endpoints: those that ask wait in their
// queues. While flows go to another host, or to a release that cannot divide limits
// (see [Ledger.Yield]), only the other one grants, and what it believes us to hold can
// only become less: so the two together never exceed a limit. Resume ends it.
func (l *Ledger) Pause() { l.paused.Add(1) }

// Paused tells whether a Pause is in force.
func (l *Ledger) Paused() bool { return l.paused.Load() > 0 }

// Resume ends a Pause and grants what is free.
func (l *Ledger) Resume() {
	if l.paused.Add(-1) > 0 {
		return
	}
	l.all((*Backend).grantAll)
}

// gates are those of all listeners, by name, and the node's, which has none.
func (l *Ledger) gates() map[string]*Gate {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := map[string]*Gate{"": &l.Node}
	for name, g := range l.listeners {
		all[name] = g
	}
	return all
}

// Places are the connections that each gate counts: by listener, and those of
// the whole node under the empty name.
func (l *Ledger) Places() map[string]int64 {
	out := map[string]int64{}
	for name, g := range l.gates() {
		if n := g.InUse(); n != 0 {
			out[name] = n
		}
	}
	return out
}

// PlacesElsewhere notes the Places of another process, which hands over to
// this one. Alone ends it.
func (l *Ledger) PlacesElsewhere(places map[string]int64) {
	for name, n := range places {
		if name == "" {
			l.Node.AddForeign(n)
		} else {
			l.Listener(name).AddForeign(n)
		}
	}
}

// all calls do for every backend, in order of their names.
func (l *Ledger) all(do func(*Backend)) {
	l.mu.Lock()
	list := make([]*Backend, 0, len(l.backends))
	for _, name := range slices.Sorted(maps.Keys(l.backends)) {
		list = append(list, l.backends[name])
	}
	l.mu.Unlock()
	for _, b := range list {
		do(b)
	}
}

// Endpoints are all accounts of endpoints, in order of their names, configured
// or not.
func (l *Ledger) Endpoints() []*Endpoint {
	var out []*Endpoint
	l.all(func(b *Backend) { out = append(out, b.list()...) })
	slices.SortFunc(out, byName)
	return out
}

// Held is what every endpoint's account holds, by full name; for the process
// that will hold them under the same limits.
func (l *Ledger) Held() map[string]int64 {
	out := map[string]int64{}
	l.all(func(b *Backend) {
		for _, e := range b.list() {
			if n := e.InUse(); n != 0 {
				out[e.Name] = n
			}
		}
	})
	return out
}
