package ledger

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
)

// limits are the rates of one version of a listener. What they count with
// belongs to names: a version that does not change a rate goes on with its count.
type limits struct {
	of         *config.Listener
	book       *listenerBook
	connection *cell
	source     *sourceCell // of connections
	request    pair
	routes     []pair
}

// pair are the two rates that requests may have; each may be nil.
type pair struct {
	all    *cell
	source *sourceCell
}

// cell is one rate for all, sourceCell one for each source.
type cell struct {
	key string
	rate
	gcra
}

type sourceCell struct {
	key string
	rate
	*sources
}

// rateBook has the rates of all listeners, by name.
type rateBook struct {
	mu        sync.Mutex
	listeners map[string]*listenerBook
}

// listenerBook is what belongs to the name of a listener.
type listenerBook struct {
	recent               []*limits // of the latest versions, the newest last; guarded by rateBook.mu
	requests, sources    atomic.Uint64
	connections, entries atomic.Uint64
	routes               atomic.Pointer[[]*routeCount]
	elsewhere            []Presence // in another process; guarded by rateBook.mu
	// came is what another process has told of rates that nobody has used here yet:
	// instants in place of durations; guarded by rateBook.mu.
	came SavedListener
}

type routeCount struct{ requests, sources atomic.Uint64 }

// forget forgets the rates of a listener that is gone; it has no connection.
func (b *rateBook) forget(name string, limits *sync.Map) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if book := b.listeners[name]; book != nil {
		for _, m := range book.recent {
			limits.Delete(m.of)
		}
		delete(b.listeners, name)
	}
}

// book is that of a listener's name, made on first use. The caller holds mu.
func (b *rateBook) book(name string) *listenerBook {
	if b.listeners == nil {
		b.listeners = map[string]*listenerBook{}
	}
	book := b.listeners[name]
	if book == nil {
		book = &listenerBook{}
		b.listeners[name] = book
	}
	return book
}

// limitsMax bounds the versions of a listener whose rates are kept.
const limitsMax = 4

// limitsOf finds the rates of lis.
func (l *Ledger) limitsOf(lis *config.Listener) *limits {
	if m, ok := l.limits.Load(lis); ok {
		return m.(*limits)
	}
	b := &l.rates
	b.mu.Lock()
	defer b.mu.Unlock()
	if m, ok := l.limits.Load(lis); ok {
		return m.(*limits)
	}
	book := b.book(lis.Ref.Name)
	m := book.make(lis)
	book.recent = append(book.recent, m)
	if len(book.recent) > limitsMax {
		l.limits.Delete(book.recent[0].of)
		book.recent = slices.Delete(book.recent, 0, 1)
	}
	l.limits.Store(lis, m)
	return m
}

// make makes the rates of lis, with the counts of earlier versions where nothing
// has changed.
func (b *listenerBook) make(lis *config.Listener) *limits {
	m := &limits{of: lis, book: b}
	m.connection = b.cell("connections", lis.ConnectionRate)
	if lis.SourceRate != nil || lis.SourceConnectionsMax > 0 {
		m.source = b.sourceCell("connections", lis.SourceRate)
	}
	if lis.Rules == nil {
		return m
	}
	m.request.all = b.cell("requests", lis.Rules.Rate)
	if r := lis.Rules.SourceRate; r != nil {
		m.request.source = b.sourceCell("requests", r)
	}
	seen := map[string]int{}
	for i := range lis.Rules.Routes {
		r := lis.Rules.Routes[i]
		key := matchKey(&r.Match)
		seen[key]++
		key = fmt.Sprintf("route %q %d", key, seen[key])
		p := pair{all: b.cell(key, r.Rate)}
		if r.SourceRate != nil {
			p.source = b.sourceCell(key, r.SourceRate)
		}
		m.routes = append(m.routes, p)
	}
	if was := b.routes.Load(); was == nil || len(*was) < len(m.routes) {
		var all []*routeCount
		if was != nil {
			all = slices.Clone(*was)
		}
		for len(all) < len(m.routes) {
			all = append(all, &routeCount{})
		}
		b.routes.Store(&all)
	}
	return m
}

// matchKey is the same for two routes that match the same, wherever they stand.
func matchKey(m *config.Match) string {
	var s strings.Builder
	pairs := func(all []config.Pair) {
		for _, p := range all {
			fmt.Fprintf(&s, "%q %q %v %v,", p.Name, p.Value, p.Present, p.Regex)
		}
		s.WriteString(";")
	}
	fmt.Fprintf(&s, "%q;%q;%q;%v;%q;", m.Hosts, m.Exact, m.Prefix, m.Regex, m.Methods)
	pairs(m.Headers)
	pairs(m.Query)
	fmt.Fprintf(&s, "%v", m.Sources)
	return s.String()
}

func (b *listenerBook) cell(what string, r *config.Rate) *cell {
	if r == nil {
		return nil
	}
	n := &cell{key: fmt.Sprintf("%s %d/%v+%d", what, r.Count, r.Per, r.Burst), rate: rateOf(r)}
	for _, m := range slices.Backward(b.recent) {
		for c := range m.cells {
			if c.key == n.key {
				return c
			}
		}
	}
	b.bring(n)
	return n
}

func (b *listenerBook) sourceCell(what string, r *config.SourceRate) *sourceCell {
	n := &sourceCell{key: what + " without a rate"}
	bits4, bits6 := bitsOf(r)
	if r != nil {
		n.rate = rateOf(&r.Rate)
		n.key = fmt.Sprintf("%s %d/%v+%d of %d, %d", what, r.Count, r.Per, r.Burst, bits4, bits6)
	}
	for _, m := range slices.Backward(b.recent) {
		for c := range m.sourceCells {
			if c.key == n.key {
				return c
			}
			// Connections that are open stay counted whatever the rate is.
			if what == "connections" && c == m.source && c.bits4 == bits4 && c.bits6 == bits6 {
				n.sources = c.sources
			}
		}
		if n.sources != nil {
			b.bringSources(n)
			return n
		}
	}
	n.sources = newSources(bits4, bits6)
	if what == "connections" {
		b.presentTo(n.sources)
	}
	b.bringSources(n)
	return n
}

// cells gives all rates for all.
func (m *limits) cells(yield func(*cell) bool) {
	all := []*cell{m.connection, m.request.all}
	for _, r := range m.routes {
		all = append(all, r.all)
	}
	for _, c := range all {
		if c != nil && !yield(c) {
			return
		}
	}
}

// sourceCells gives all rates for each source.
func (m *limits) sourceCells(yield func(*sourceCell) bool) {
	all := []*sourceCell{m.source, m.request.source}
	for _, r := range m.routes {
		all = append(all, r.source)
	}
	for _, c := range all {
		if c != nil && !yield(c) {
			return
		}
	}
}

// Pass judges a request by the rates of the listener and its route (-1: none) for
// the source. 0: it passes and is counted by each of them; else none counts
// it, and the duration is what it would have to wait.
func (l *Ledger) Pass(now int64, lis *config.Listener, route int, source netip.Addr) time.Duration {
	rules := lis.Rules
	if rules == nil {
		return 0
	}
	limited := rules.Rate != nil || rules.SourceRate != nil
	if route >= 0 && route < len(rules.Routes) {
		limited = limited || rules.Routes[route].Rate != nil || rules.Routes[route].SourceRate != nil
	} else {
		route = -1
	}
	if !limited {
		return 0
	}
	m := l.limitsOf(lis)
	var by pair
	if route >= 0 {
		by = m.routes[route]
	}
	// The narrowest first: who exceeds a rate of its own troubles nobody else's.
	refusedBy, wait := 0, int64(0)
	for i := range 4 {
		r := request{m, by, i}
		if refusedBy == 0 {
			if wait = r.take(now, source); wait != 0 {
				refusedBy = i + 1
			}
			continue
		}
		wait = max(wait, r.peek(now, source))
	}
	if refusedBy == 0 {
		return 0
	}
	for i := range refusedBy - 1 {
		request{m, by, i}.untake(source)
	}
	counts := (*m.book.routes.Load())
	switch refusedBy - 1 {
	case routeSource:
		counts[route].sources.Add(1)
	case routeAll:
		counts[route].requests.Add(1)
	case listenerSource:
		m.book.sources.Add(1)
	case listenerAll:
		m.book.requests.Add(1)
	}
	return time.Duration(wait)
}

// The rates by which a request is judged, in this order.
const (
	routeSource = iota
	listenerSource
	routeAll
	listenerAll
)

// request is one of the four rates for a request.
type request struct {
	m  *limits
	by pair
	i  int
}

func (r request) cells() (*cell, *sourceCell) {
	switch r.i {
	case routeSource:
		return nil, r.by.source
	case listenerSource:
		return nil, r.m.request.source
	case routeAll:
		return r.by.all, nil
	default:
		return r.m.request.all, nil
	}
}

func (r request) take(now int64, a netip.Addr) int64 {
	switch c, s := r.cells(); {
	case c != nil:
		return c.take(c.rate, now)
	case s != nil:
		return s.take(s.rate, now, a)
	}
	return 0
}

func (r request) peek(now int64, a netip.Addr) int64 {
	switch c, s := r.cells(); {
	case c != nil:
		return c.peek(c.rate, now)
	case s != nil:
		return s.peek(s.rate, now, a)
	}
	return 0
}

func (r request) untake(a netip.Addr) {
	switch c, s := r.cells(); {
	case c != nil:
		c.untake(c.rate)
	case s != nil:
		s.untake(s.rate, a)
	}
}

// AcceptWait judges a new connection by the listener's rate. 0: it is counted;
// else how long accepting pauses.
func (l *Ledger) AcceptWait(now int64, lis *config.Listener) time.Duration {
	if lis.ConnectionRate == nil {
		return 0
	}
	m := l.limitsOf(lis)
	wait := m.connection.take(m.connection.rate, now)
	if wait != 0 {
		m.book.connections.Add(1)
	}
	return time.Duration(wait)
}

// AcceptNone takes back what AcceptWait has just counted: there was no
// connection, another loop had been faster; or it was not let in.
func (l *Ledger) AcceptNone(lis *config.Listener) {
	if lis.ConnectionRate != nil {
		m := l.limitsOf(lis)
		m.connection.untake(m.connection.rate)
	}
}

// EnterSource judges a new connection by the rate and the limit of its source,
// and counts it if it may come in.
func (l *Ledger) EnterSource(now int64, lis *config.Listener, a netip.Addr) bool {
	if lis.SourceRate == nil && lis.SourceConnectionsMax == 0 {
		return true
	}
	m := l.limitsOf(lis)
	if !m.source.enter(lis.SourceRate, lis.SourceConnectionsMax, now, a) {
		m.book.entries.Add(1)
		return false
	}
	return true
}

// AdmitSource counts a connection of the source that was let in elsewhere.
func (l *Ledger) AdmitSource(lis *config.Listener, a netip.Addr) {
	if lis.SourceRate != nil || lis.SourceConnectionsMax > 0 {
		l.sourcesOf(lis).admit(a)
	}
}

// LeaveSource ends what EnterSource or AdmitSource counted, also if the listener that
// the flow has come under meanwhile has no such limit.
func (l *Ledger) LeaveSource(lis *config.Listener, a netip.Addr) {
	if lis.SourceRate != nil || lis.SourceConnectionsMax > 0 {
		l.sourcesOf(lis).leave(a)
		return
	}
	l.rates.mu.Lock()
	defer l.rates.mu.Unlock()
	if b := l.rates.listeners[lis.Ref.Name]; b != nil {
		for _, m := range slices.Backward(b.recent) {
			if m.source != nil {
				m.source.leave(a)
				return
			}
		}
	}
}

// sourcesOf finds where connections under lis, which limits sources, are counted. A
// version that is no longer kept is not made again for that: it would push out
// those in whose rates there is a count.
func (l *Ledger) sourcesOf(lis *config.Listener) *sources {
	if m, ok := l.limits.Load(lis); ok {
		return m.(*limits).source.sources
	}
	bits4, bits6 := bitsOf(lis.SourceRate)
	l.rates.mu.Lock()
	if b := l.rates.listeners[lis.Ref.Name]; b != nil {
		for _, m := range slices.Backward(b.recent) {
			if m.source != nil && m.source.bits4 == bits4 && m.source.bits6 == bits6 {
				l.rates.mu.Unlock()
				return m.source.sources
			}
		}
	}
	l.rates.mu.Unlock()
	return l.limitsOf(lis).source.sources
}

// bitsOf is how much of an address names a source.
func bitsOf(r *config.SourceRate) (bits4, bits6 int) {
	if r == nil {
		return 32, 128
	}
	return r.Bits4, r.Bits6
}

// RateStats are refusals by the rates of one listener since the ledger was made.
type RateStats struct {
	Requests, SourceRequests uint64   // by the listener's own rates
	Routes, SourceRoutes     []uint64 // and by those of its routes, by index
	Connections              uint64   // pauses of accepting
	Sources                  uint64   // connections refused to a source
	Tracked                  int      // sources that are remembered
	Evicted                  uint64   // sources forgotten for want of room, of the version in force
}

// Rates gives what was refused, by the name of the listener; only those that have
// rates and were used are there.
func (l *Ledger) Rates() map[string]RateStats {
	l.rates.mu.Lock()
	defer l.rates.mu.Unlock()
	out := map[string]RateStats{}
	for name, b := range l.rates.listeners {
		s := RateStats{
			Requests: b.requests.Load(), SourceRequests: b.sources.Load(),
			Connections: b.connections.Load(), Sources: b.entries.Load(),
		}
		if all := b.routes.Load(); all != nil {
			for _, r := range *all {
				s.Routes = append(s.Routes, r.requests.Load())
				s.SourceRoutes = append(s.SourceRoutes, r.sources.Load())
			}
		}
		if len(b.recent) > 0 { // else nobody has come since another process told of it
			for c := range b.recent[len(b.recent)-1].sourceCells {
				s.Tracked += c.size()
				s.Evicted += c.evicted.Load()
			}
		}
		out[name] = s
	}
	return out
}
