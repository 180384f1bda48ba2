// Package ledger is the only shared memory of the data plane: what is global
// across loops has its one owner here. It counts connections of the node, of
// each listener and of each endpoint, holds limits exactly, and keeps the fair
// queue of flows that wait for an endpoint with room.
//
// An account belongs to a name, not to a version of an object: an endpoint
// whose definition changed keeps its connections and its limit.
//
// Where no limit is set nothing but an atomic counter is touched. A limited
// backend takes its mutex for a few dozen nanoseconds; nothing is awaited
// under it.
package ledger

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/planted"
)

// Endpoint is the account of one endpoint.
type Endpoint struct {
	Name    string // "backend/endpoint"
	backend *Backend
	inUse   atomic.Int64
	foreign atomic.Int64
	errors  atomic.Uint64
	limit   atomic.Int64
}

// InUse is how many connections we hold to the endpoint now.
func (e *Endpoint) InUse() int64 { return e.inUse.Load() }

// Foreign is how many connections another process, to which or from which
// flows are moving, holds under the same limit.
func (e *Endpoint) Foreign() int64 { return e.foreign.Load() }

// Errors counts connections that could not be opened.
func (e *Endpoint) Errors() uint64 { return e.errors.Load() }

// CountError notes that a connection could not be opened.
func (e *Endpoint) CountError() { e.errors.Add(1) }

// Import takes over n connections that come to us from the other process.
func (e *Endpoint) Import(n int64) {
	e.inUse.Add(n)
	if planted.Bug(23) {
		e.inUse.Add(n)
	}
	e.AddForeign(-n)
}

// Forget ends the account of n connections that left to another process:
// nothing of the limit becomes free, the other one holds them now.
func (e *Endpoint) Forget(n int64) {
	e.foreign.Add(n)
	if planted.Bug(24) {
		return
	}
	e.inUse.Add(-n)
}

// AddForeign changes what the other process holds. It never falls below zero.
func (e *Endpoint) AddForeign(n int64) {
	for {
		was := e.foreign.Load()
		if e.foreign.CompareAndSwap(was, max(0, was+n)) {
			break
		}
	}
	if n < 0 {
		e.wake()
	}
}

// Waiter is a flow's place in the queue of a backend. The loop that made it
// owns it; only the ledger writes granted.
type Waiter struct {
	place      uint64
	loop       int
	token      uint64
	of         *config.Backend // the version whose endpoints tried means
	tried      uint64
	granted    Grant
	queued     bool
	prev, next *Waiter
}

// Place orders waiters: smaller came first, over all loops and moves.
func (w *Waiter) Place() uint64 { return w.place }

// Backend is the account of one backend.
type Backend struct {
	Name    string
	cursor  atomic.Uint64
	waiting atomic.Int64
	order   atomic.Pointer[orderOf]
	policy  Policy
	zone    string
	ring    func(loop int, token uint64)
	places  *atomic.Uint64
	paused  *atomic.Int32

	// mu guards all below.
	mu        sync.Mutex
	endpoints map[string]*Endpoint
	head      *Waiter
	tail      *Waiter
	current   *config.Backend // whose limits rule the queue
}

// orderOf caches the accounts in the order of one version's endpoints, so that
// picking needs no map.
type orderOf struct {
	of       *config.Backend
	accounts []*Endpoint
}

func (b *Backend) accounts(c *config.Backend, locked bool) []*Endpoint {
	if o := b.order.Load(); o != nil && o.of == c {
		return o.accounts
	}
	if !locked {
		b.mu.Lock()
		defer b.mu.Unlock()
	}
	o := &orderOf{of: c}
	for _, e := range c.Endpoints {
		o.accounts = append(o.accounts, b.endpoint(e.Ref.Name))
	}
	b.order.Store(o)
	return o.accounts
}

func (b *Backend) endpoint(name string) *Endpoint {
	e := b.endpoints[name]
	if e == nil {
		e = &Endpoint{Name: name, backend: b}
		if c := b.current; c != nil {
			e.limit.Store(int64(c.ConnectionsPerEndpoint))
		}
		b.endpoints[name] = e
	}
	return e
}

// Endpoint is the account of the endpoint of that full name.
func (b *Backend) Endpoint(name string) *Endpoint {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.endpoint(name)
}

// Waiting is how many flows wait for an endpoint.
func (b *Backend) Waiting() int { return int(b.waiting.Load()) }

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
)

// Grant is a slot at an endpoint that belongs to a flow.
type Grant struct {
	Endpoint *config.Endpoint
	Account  *Endpoint
	Stuck    bool // chosen because the client was sticky to it
}

// Secure takes a slot at an endpoint of c that was not tried, or else a place
// in the queue. place is the flow's earlier one, 0 for a new one: a flow that
// has moved keeps its order. What the queue decides later is told by
// ring(loop, token) and fetched with [Backend.Collect].
func (b *Backend) Secure(c *config.Backend, a *Asking) (Grant, *Waiter, Answer) {
	tried, place, loop, token := a.Tried, a.Place, a.Loop, a.Token
	all := ^uint64(0)
	if n := len(c.Endpoints); n < 64 {
		all = 1<<n - 1
	}
	if tried&all == all {
		return Grant{}, nil, None
	}
	if c.ConnectionsPerEndpoint == 0 {
		accounts := b.accounts(c, false)
		i := b.policy.Roster(c, accounts, b.zone, nil).Pick(*a, b.cursor.Add(1)-1)
		if i < 0 {
			return Grant{}, nil, None
		}
		accounts[i].inUse.Add(1)
		return Grant{Endpoint: c.Endpoints[i], Account: accounts[i]}, nil, Secured
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current == nil {
		b.current = c
		for _, e := range b.accounts(c, true) {
			e.limit.Store(int64(c.ConnectionsPerEndpoint))
		}
	}
	// Whoever waits already comes first, unless this flow was there before.
	if b.head == nil || (place != 0 && place < b.head.place) {
		if g := b.take(c, tried); g.Endpoint != nil {
			return g, nil, Secured
		}
	}
	if c.QueueMax > 0 && b.Waiting() >= c.QueueMax && place == 0 {
		return Grant{}, nil, Full
	}
	if place == 0 {
		place = b.places.Add(1)
	} else {
		raise(b.places, place)
	}
	w := &Waiter{place: place, loop: loop, token: token, of: c, tried: tried, queued: true}
	b.insert(w)
	// Release counts down first and looks for waiters then; we are in the
	// queue first and look for room then: one of the two sees the other.
	b.grant()
	return Grant{}, w, Waiting
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

// take finds an endpoint with room and takes a slot, under mu: all takers of a
// limited backend hold it, so the limit is exact.
func (b *Backend) take(c *config.Backend, tried uint64) Grant {
	if b.paused.Load() > 0 {
		return Grant{}
	}
	accounts := b.accounts(c, true)
	i := b.policy.Roster(c, accounts, b.zone, nil).Pick(Asking{Tried: tried}, b.cursor.Add(1)-1)
	if i < 0 {
		return Grant{}
	}
	accounts[i].inUse.Add(1)
	return Grant{Endpoint: c.Endpoints[i], Account: accounts[i]}
}

func (b *Backend) insert(w *Waiter) {
	after := b.tail
	for after != nil && after.place > w.place {
		after = after.prev
	}
	if after == nil {
		w.next, b.head = b.head, w
	} else {
		w.prev, w.next, after.next = after, after.next, w
	}
	if w.next == nil {
		b.tail = w
	} else {
		w.next.prev = w
	}
	b.waiting.Add(1)
}

func (b *Backend) remove(w *Waiter) {
	if w.prev == nil {
		b.head = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		b.tail = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.prev, w.next, w.queued = nil, nil, false
	b.waiting.Add(-1)
}

// Release gives a slot back; it goes to the oldest waiter of all loops.
func (e *Endpoint) Release() {
	e.inUse.Add(-1)
	e.wake()
}

// wake grants what has become free.
func (e *Endpoint) wake() {
	if e.backend.waiting.Load() > 0 {
		e.backend.mu.Lock()
		e.backend.grant()
		e.backend.mu.Unlock()
	}
}

// Govern makes c the version whose limits rule the queue from now on, and
// grants what they allow.
func (b *Backend) Govern(c *config.Backend) {
	b.mu.Lock()
	b.current = c
	for _, e := range b.accounts(c, true) {
		e.limit.Store(int64(c.ConnectionsPerEndpoint))
	}
	b.grant()
	b.mu.Unlock()
}

func (b *Backend) grant() {
	for w := b.head; w != nil && b.current != nil; {
		next, tried := w.next, uint64(0)
		if w.of == b.current { // else the bits are of other endpoints
			tried = w.tried
		}
		g := b.take(b.current, tried)
		switch {
		case g.Endpoint != nil:
			b.remove(w)
			w.granted = g
			b.ring(w.loop, w.token)
		case tried == 0:
			return // no room for anybody
		}
		// What w has tried in vain may have room for the next.
		w = next
	}
}

// Collect asks, after the bell rang, what became of w: the slot that is the
// flow's now, or none (a nil Endpoint) if it still waits.
func (b *Backend) Collect(w *Waiter) Grant {
	b.mu.Lock()
	defer b.mu.Unlock()
	return w.granted
}

// Withdraw takes w out of the queue, because its flow ends or moves. If a slot
// had been granted before, it is returned and is the caller's.
func (b *Backend) Withdraw(w *Waiter) Grant {
	b.mu.Lock()
	defer b.mu.Unlock()
	if w.queued {
		b.remove(w)
	}
	return w.granted
}

// Gate counts connections against a limit: of the node, or of a listener.
type Gate struct {
	inUse atomic.Int64
	// foreign are connections that another process still serves under the
	// same limit, while it hands over to this one.
	foreign atomic.Int64
	max     atomic.Int64 // 0 = none
	shut    atomic.Bool  // somebody was turned away and wants to know when to come back
	open    func()
}

// SetMax changes the limit; 0 is none.
func (g *Gate) SetMax(n int) {
	g.max.Store(int64(n))
	g.reopen()
}

// InUse is how many connections passed and have not left.
func (g *Gate) InUse() int64 { return g.inUse.Load() }

// Enter takes a place, or tells that there is none; then open is called once
// there may be one again.
func (g *Gate) Enter() bool {
	n := g.inUse.Add(1)
	if limit := g.max.Load(); limit == 0 || n+g.foreign.Load() <= limit {
		return true
	}
	g.shut.Store(true)
	g.Leave() // if a place was freed meanwhile, this calls open at once
	return false
}

// Admit takes a place whether there is one or not: for flows that move here,
// which were let in elsewhere.
func (g *Gate) Admit() { g.inUse.Add(1) }

// Import is Admit for a flow that AddForeign has counted.
func (g *Gate) Import() {
	g.inUse.Add(1) // first: the two together never seem less than they are
	g.AddForeign(-1)
}

// AddForeign changes what another process holds under the limit. It never
// falls below zero.
func (g *Gate) AddForeign(n int64) {
	for {
		was := g.foreign.Load()
		if g.foreign.CompareAndSwap(was, max(0, was+n)) {
			break
		}
	}
	if n < 0 {
		g.tell(g.inUse.Load())
	}
}

// Leave gives a place back.
func (g *Gate) Leave() {
	g.tell(g.inUse.Add(-1))
}

// tell calls open if somebody waits and n places in use leave one.
func (g *Gate) tell(n int64) {
	if g.shut.Load() {
		if limit := g.max.Load(); limit == 0 || n+g.foreign.Load() < limit {
			g.reopen()
		}
	}
}

func (g *Gate) reopen() {
	if g.shut.Swap(false) && g.open != nil {
		g.open()
	}
}

// Ledger holds all accounts of a process.
type Ledger struct {
	// Node counts all client connections.
	Node    Gate
	places  atomic.Uint64
	paused  atomic.Int32 // how many moves want nothing granted
	options Options

	// mu guards the maps, not the accounts in them.
	mu        sync.Mutex
	backends  map[string]*Backend
	listeners map[string]*Gate
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
		b = &Backend{Name: name, endpoints: map[string]*Endpoint{}, policy: l.options.Policy, zone: l.options.Zone, ring: l.options.Ring, places: &l.places, paused: &l.paused}
		l.backends[name] = b
	}
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
	return g
}

// LastPlace is the last place in a queue that was given.
func (l *Ledger) LastPlace() uint64 { return l.places.Load() }

// PlacesAfter makes all places from now on come after one of another process.
func (l *Ledger) PlacesAfter(last uint64) { raise(&l.places, last) }

// Pause stops granting slots of limited endpoints: those that ask wait in their
// queues. While flows go to another owner only that one grants, and what it
// believes us to hold can only become less: so the two together never exceed
// a limit. Resume ends it.
func (l *Ledger) Pause() { l.paused.Add(1) }

// Paused tells whether a Pause is in force.
func (l *Ledger) Paused() bool { return l.paused.Load() > 0 }

// Resume ends a Pause and grants what is free.
func (l *Ledger) Resume() {
	if l.paused.Add(-1) > 0 {
		return
	}
	l.all(func(b *Backend) { b.grant() })
}

// Alone notes that no other process holds anything under our limits any more,
// because it has ended or has handed all over: what was counted for it is free.
func (l *Ledger) Alone() {
	l.all(func(b *Backend) {
		for _, e := range b.endpoints {
			e.foreign.Store(0)
		}
		b.grant()
	})
	for _, g := range l.gates() {
		g.foreign.Store(0)
		g.tell(g.inUse.Load())
	}
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

// all calls do for every backend, under its mu.
func (l *Ledger) all(do func(*Backend)) {
	l.mu.Lock()
	list := make([]*Backend, 0, len(l.backends))
	for _, b := range l.backends {
		list = append(list, b)
	}
	l.mu.Unlock()
	for _, b := range list {
		b.mu.Lock()
		do(b)
		b.mu.Unlock()
	}
}

// Endpoints are all accounts of endpoints, in order of their names, configured
// or not.
func (l *Ledger) Endpoints() []*Endpoint {
	var out []*Endpoint
	l.all(func(b *Backend) { out = slices.AppendSeq(out, maps.Values(b.endpoints)) })
	slices.SortFunc(out, func(a, b *Endpoint) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Held is what every endpoint's account holds, by full name; for the process
// that will hold them under the same limits.
func (l *Ledger) Held() map[string]int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[string]int64{}
	for _, b := range l.backends {
		b.mu.Lock()
		for name, e := range b.endpoints {
			if n := e.InUse(); n != 0 {
				out[name] = n
			}
		}
		b.mu.Unlock()
	}
	return out
}
