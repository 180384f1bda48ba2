package ledger

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/planted"
)

// While two processes of one node serve, a limit is divided between them: what one
// may hold and what the other may hold are together the limit, at every instant
// and whatever message is on its way. A connection takes its part of the limit along
// when its flow moves ([Endpoint.Forget] there, [Endpoint.Import] here); what is
// free is divided once, by Yield.
//
//	giver                                taker
//	alone                                Await: has no part but what flows bring
//	Yield: keeps what it holds, and      Switched: has all but what the giver said
//	       half of what is free            |
//	  Stalled(true), Stalled(false)        |
//	Drain: keeps what it holds           Arrived, Switched again
//	Alone: all is its own again          Alone: all is its own
//
// The giver grants as ever until Yield. After it, those who wait at the giver go to
// the taker in any order: so where somebody waits nobody grants, until all have come.
// Backends without waiters, and endpoints without a limit, notice nothing.

// sharing is how a ledger divides limits with that of another process.
type sharing int32

const (
	undivided sharing = iota
	awaiting          // a taker that has no part of its own yet
	sharer            // a taker that has its part
	yielded           // a giver that keeps the rest
	stalled           // a giver whose taker does not answer: those who wait do not go
)

// Share is the part of all limits that a giver keeps at the switch: what it holds,
// and half of what is free.
type Share struct {
	Held   map[string]int64 `json:"held"`   // connections by full name of the endpoint
	Places map[string]int64 `json:"places"` // by listener; "" are the node's
	// Waits are the backends where somebody waits; nil: the giver did not say.
	Waits   []string              `json:"waits"`
	Sources map[string][]Presence `json:"sources,omitempty"` // by listener
}

// Presence is how many connections sources of one listener have.
type Presence struct {
	Bits4 int                  `json:"bits4"` // of an address that name a source
	Bits6 int                  `json:"bits6"`
	Open  map[netip.Addr]int32 `json:"open"`
}

// Await begins to share as taker: until Switched nothing is granted but on the slots
// that came with flows. It is called before the first flow comes; what is governed
// or made afterwards is bound by it, too.
func (l *Ledger) Await() {
	if planted.Bug(89) {
		return
	}
	l.sharing.Store(int32(awaiting))
	l.all(func(b *Backend) {
		for _, e := range b.list() {
			e.awaitLimit(0, e.limit.Load())
		}
	})
}

// Yield begins to share as giver: it says what this process keeps. It is called when
// nothing is accepted any more. From now on this process grants only within that,
// and nothing where somebody waits. What Await's process has taken already is its
// own beside it.
func (l *Ledger) Yield() Share {
	l.sharing.Store(int32(yielded)) // first: who begins to wait from here on holds back by itself
	s := Share{Held: map[string]int64{}, Places: map[string]int64{}, Waits: []string{}, Sources: l.presence()}
	l.all(func(b *Backend) {
		// Under mu: who waits is in the queue, or has not looked at sharing yet.
		b.mu.Lock()
		if b.waiting.Load() > 0 {
			b.withheld.Store(true)
			s.Waits = append(s.Waits, b.Name)
		}
		b.mu.Unlock()
		for _, e := range b.list() {
			if n := e.yield(); n != 0 {
				s.Held[e.Name] = n
			}
		}
	})
	for name, g := range l.gates() {
		// Whom a source may still have let in belongs to the taker: where that is
		// bounded nobody is let in here any more.
		g.barred.Store(l.boundsSources(name))
		if n := g.yield(); n != 0 {
			s.Places[name] = n
		}
	}
	return s
}

// Switched gives a taker its part: all but what the giver keeps. Where somebody
// waits at the giver nothing is granted before Alone, for those who come early would
// be served before those who are older.
func (l *Ledger) Switched(s Share) {
	l.all(func(b *Backend) {
		b.withheld.Store(s.Waits == nil)
	})
	for _, name := range s.Waits {
		l.Backend(name).withheld.Store(true)
	}
	// From here on what is governed anew keeps what is told now.
	l.sharing.Store(int32(sharer))
	for full := range s.Held { // of endpoints that only flows to come will name
		l.Backend(backendOf(full)).Endpoint(full)
	}
	l.all(func(b *Backend) {
		for _, e := range b.list() {
			e.setForeign(s.Held[e.Name])
		}
	})
	for name := range s.Places {
		if name != "" {
			l.Listener(name)
		}
	}
	for name, g := range l.gates() {
		g.setForeign(s.Places[name])
	}
	for name, all := range s.Sources {
		l.elsewhere(name, all)
	}
	l.all((*Backend).grantAll)
}

// Arrived tells a taker that all who waited at the giver have come: they are served
// in their order, within its part. What drains at the giver is still the giver's.
func (l *Ledger) Arrived() {
	l.all(func(b *Backend) {
		b.withheld.Store(false)
		b.grantAll()
	})
}

// Stalled tells a giver whose taker does not answer that those who wait stay for now:
// it grants within its part, in order. false: they go again.
func (l *Ledger) Stalled(is bool) {
	if is {
		l.sharing.Store(int32(stalled))
		l.all(func(b *Backend) { b.withheld.Store(false) })
		l.all((*Backend).grantAll)
		return
	}
	l.sharing.Store(int32(yielded))
	l.all(func(b *Backend) {
		b.mu.Lock()
		if b.waiting.Load() > 0 {
			b.withheld.Store(true)
		}
		b.mu.Unlock()
	})
}

// Alone notes that no other process holds anything under our limits any more,
// because it has ended or has handed all over: what was its part is free, and
// those who wait are served in their order.
func (l *Ledger) Alone() {
	l.sharing.Store(int32(undivided))
	l.forgetElsewhere()
	l.all(func(b *Backend) {
		for _, e := range b.list() {
			e.setForeign(0)
		}
		b.withheld.Store(false)
		b.grantAll()
	})
	for _, g := range l.gates() {
		g.barred.Store(false)
		g.setForeign(0)
		g.tell(g.inUse.Load())
	}
}

// withhold holds back what a backend grants, under mu, for somebody begins to wait
// there who will go to the taker.
func (b *Backend) withhold() {
	if sharing(b.sharing.Load()) == yielded {
		b.withheld.Store(true)
	}
}

// holdsBack tells whether endpoints with a limit are granted by nobody here now.
func (b *Backend) holdsBack() bool {
	return b.paused.Load() != 0 || b.withheld.Load() || b.coming.Load() != 0
}

// Waited are the backends where somebody waits.
func (l *Ledger) Waited() []string {
	names := []string{}
	l.all(func(b *Backend) {
		if b.waiting.Load() > 0 {
			names = append(names, b.Name)
		}
	})
	return names
}

// HoldBack keeps the endpoints with a limit of some backends from being granted until
// end: those who wait there on another host are on their way, in any order, and whoever comes
// early must not be served before those who are older. What that host holds is counted apart,
// by AddForeign.
func (l *Ledger) HoldBack(backends []string) (end func()) {
	var all []*Backend
	for _, name := range backends {
		b := l.Backend(name)
		b.coming.Add(1)
		all = append(all, b)
	}
	return func() {
		for _, b := range all {
			if b.coming.Add(-1) == 0 {
				b.grantAll()
			}
		}
	}
}

// setLimit changes the limit of connections; 0 is none.
func (e *Endpoint) setLimit(n int64) {
	was := e.limit.Swap(n)
	if sharing(e.backend.sharing.Load()) == awaiting {
		e.awaitLimit(was, n)
	}
}

// awaitLimit keeps the part of a taker at what flows have brought when a limit
// changes: the rest is the giver's.
func (e *Endpoint) awaitLimit(was, is int64) {
	for {
		held := e.held.Load()
		ours, theirs := int64(uint32(held)), int64(held>>32)
		switch {
		case is == 0:
			theirs = 0
		case was == 0:
			theirs = max(0, is-ours)
		default:
			theirs = max(0, theirs+is-was)
		}
		if e.held.CompareAndSwap(held, uint64(ours)|uint64(theirs)*foreignOne) {
			return
		}
	}
}

// yield bounds a giver's endpoint by what it holds and half of what is free, and
// gives that.
func (e *Endpoint) yield() int64 {
	limit := e.limit.Load()
	for {
		held := e.held.Load()
		ours, theirs := int64(uint32(held)), int64(held>>32)
		if limit == 0 {
			return ours
		}
		part := ours + max(0, limit-ours-theirs)/2
		if planted.Bug(88) || e.held.CompareAndSwap(held, uint64(ours)|uint64(max(0, limit-part))*foreignOne) {
			return part
		}
	}
}

// backendOf is the backend of an endpoint's full name.
func backendOf(full string) string {
	backend, _, _ := strings.Cut(full, "/")
	return backend
}

// setForeign says what the other process may hold.
func (e *Endpoint) setForeign(n int64) {
	for {
		was := e.held.Load()
		if e.held.CompareAndSwap(was, uint64(uint32(was))|uint64(max(0, n))*foreignOne) {
			return
		}
	}
}

// Forget ends the account of a connection whose flow left to another process:
// nothing becomes free, that one holds it under the same limit.
func (g *Gate) Forget() {
	if !planted.Bug(95) {
		g.foreign.Add(1) // first: the two together never seem less than they are
	}
	g.inUse.Add(-1)
}

// yield is that of an Endpoint. Nothing enters meanwhile.
func (g *Gate) yield() int64 {
	limit, n := g.max.Load(), g.inUse.Load()
	if limit == 0 {
		return n
	}
	part := n + max(0, limit-n-g.foreign.Load())/2
	g.foreign.Store(max(0, limit-part))
	return part
}

func (g *Gate) setForeign(n int64) { g.foreign.Store(max(0, n)) }

// presence is how many connections each source has, where that is bounded.
func (l *Ledger) presence() map[string][]Presence {
	out := map[string][]Presence{}
	l.rates.each(func(name string, t *sources) {
		p := Presence{t.bits4, t.bits6, map[netip.Addr]int32{}}
		for i := range t.shards {
			s := &t.shards[i]
			s.mu.Lock()
			maps.Copy(p.Open, s.open)
			s.mu.Unlock()
		}
		if len(p.Open) > 0 {
			out[name] = append(out[name], p)
		}
	})
	return out
}

// boundsSources tells whether connections of each source are counted at a listener.
func (l *Ledger) boundsSources(listener string) (is bool) {
	l.rates.each(func(name string, _ *sources) { is = is || name == listener })
	return is
}

// each calls do for all tables of sources that count connections, each once.
func (b *rateBook) each(do func(listener string, t *sources)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(b.listeners)) {
		var met []*sources
		for _, m := range b.listeners[name].recent {
			if m.source != nil && !slices.Contains(met, m.source.sources) {
				met = append(met, m.source.sources)
				do(name, m.source.sources)
			}
		}
	}
}

// elsewhere notes what sources of a listener have open in the other process.
func (l *Ledger) elsewhere(listener string, all []Presence) {
	b := &l.rates
	b.mu.Lock()
	defer b.mu.Unlock()
	book := b.book(listener)
	book.elsewhere = all
	for _, m := range book.recent {
		if m.source != nil {
			book.presentTo(m.source.sources)
		}
	}
}

// presentTo tells a table what its sources have open in the other process.
func (b *listenerBook) presentTo(t *sources) {
	for _, p := range b.elsewhere {
		if p.Bits4 != t.bits4 || p.Bits6 != t.bits6 {
			continue
		}
		for a, n := range p.Open {
			source, s := t.of(a)
			s.mu.Lock()
			s.foreign[source] = max(0, n)
			s.mu.Unlock()
		}
	}
}

// forgetElsewhere ends it.
func (l *Ledger) forgetElsewhere() {
	l.rates.mu.Lock()
	for _, b := range l.rates.listeners {
		b.elsewhere = nil
	}
	l.rates.mu.Unlock()
	l.rates.each(func(_ string, t *sources) {
		for i := range t.shards {
			s := &t.shards[i]
			s.mu.Lock()
			clear(s.foreign)
			s.mu.Unlock()
		}
	})
}

// ForgetSource ends what EnterSource or AdmitSource counted for a flow that left to
// another process, which counts it under the same limit from now on.
func (l *Ledger) ForgetSource(lis *config.Listener, a netip.Addr) {
	if lis.SourceConnectionsMax == 0 {
		l.LeaveSource(lis, a)
		return
	}
	l.sourcesOf(lis).forget(a)
}

// forget is leave for a connection that the other process has now.
func (t *sources) forget(a netip.Addr) {
	source, s := t.of(a)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.foreign[source]++
	s.less(source)
}
