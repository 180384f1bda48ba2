package ledger

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/holdfast-lb/holdfast/internal/config"
)

// sources has a rate, or a count of connections, for each source of an account. It
// is bounded: who is forgotten for want of room begins anew. Sources that have
// connections open are never forgotten; those are bounded already.
type sources struct {
	bits4, bits6 int
	shards       [sourceShards]sourceShard
	evicted      atomic.Uint64
}

// sourceShards share the sources, so that loops seldom meet.
const sourceShards = 16

// sourcesMax is how many sources an account remembers beside those with open
// connections: 65,536 take about 6 MB.
const sourcesMax = 65536

type sourceShard struct {
	mu   sync.Mutex
	open map[netip.Addr]int32 // connections
	// foreign are connections that another process serves under the same limit.
	foreign map[netip.Addr]int32
	due     *lru[netip.Addr, int64]
	_       [32]byte
}

func newSources(bits4, bits6 int) *sources {
	t := &sources{bits4: bits4, bits6: bits6}
	for i := range t.shards {
		t.shards[i].open, t.shards[i].foreign = map[netip.Addr]int32{}, map[netip.Addr]int32{}
		t.shards[i].due = newLRU[netip.Addr, int64]()
	}
	return t
}

// of gives the source to which an address belongs, and its shard.
func (t *sources) of(a netip.Addr) (netip.Addr, *sourceShard) {
	a = a.Unmap()
	bits := t.bits6
	if a.Is4() {
		bits = t.bits4
	}
	if p, err := a.Prefix(bits); err == nil {
		a = p.Addr()
	}
	o := a.As16()
	h := uint64(0)
	for _, b := range o {
		h = (h ^ uint64(b)) * 0x100000001b3 // FNV-1a
	}
	return a, &t.shards[mix(h)>>60]
}

// take counts an event of a's source, or gives how long it would have to wait.
func (t *sources) take(r rate, now int64, a netip.Addr) int64 {
	source, s := t.of(a)
	s.mu.Lock()
	defer s.mu.Unlock()
	return t.pass(s, r, now, source, true)
}

// peek is take that counts nothing.
func (t *sources) peek(r rate, now int64, a netip.Addr) int64 {
	source, s := t.of(a)
	s.mu.Lock()
	defer s.mu.Unlock()
	return t.pass(s, r, now, source, false)
}

func (t *sources) pass(s *sourceShard, r rate, now int64, source netip.Addr, count bool) int64 {
	due := s.due.use(source)
	if due == nil {
		if !count {
			return 0
		}
		for s.due.size() >= sourcesMax/sourceShards {
			old, at := s.due.oldest()
			if *at > now { // else it is as if we had never seen it
				t.evicted.Add(1)
			}
			s.due.drop(old)
		}
		due = s.due.put(source, 0)
	}
	wait, next := r.pass(now, *due)
	if count {
		*due = next
	}
	return wait
}

// untake takes back what take counted.
func (t *sources) untake(r rate, a netip.Addr) {
	source, s := t.of(a)
	s.mu.Lock()
	defer s.mu.Unlock()
	if due := s.due.look(source); due != nil {
		*due -= r.every
	}
}

// enter counts a connection of a's source, if it conforms to the rate (nil: there
// is none) and the source has fewer than most (0: no bound).
func (t *sources) enter(r *config.SourceRate, most int, now int64, a netip.Addr) bool {
	source, s := t.of(a)
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.open[source]
	if most > 0 && int(n+s.foreign[source]) >= most {
		return false
	}
	if r != nil && t.pass(s, rateOf(&r.Rate), now, source, true) != 0 {
		return false
	}
	s.open[source] = n + 1
	return true
}

func (t *sources) admit(a netip.Addr) {
	source, s := t.of(a)
	s.mu.Lock()
	s.open[source]++
	if n := s.foreign[source]; n > 1 { // it comes from there
		s.foreign[source] = n - 1
	} else if n == 1 {
		delete(s.foreign, source)
	}
	s.mu.Unlock()
}

// leave ends one connection. One that was not counted, because nothing was when it
// came, changes nothing if its source has none.
func (t *sources) leave(a netip.Addr) {
	source, s := t.of(a)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.less(source)
}

// less counts one connection less, under mu.
func (s *sourceShard) less(source netip.Addr) {
	if n := s.open[source]; n > 1 {
		s.open[source] = n - 1
	} else {
		delete(s.open, source)
	}
}

// size is how many sources are remembered.
func (t *sources) size() int {
	n := 0
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		n += s.due.size() + len(s.open)
		s.mu.Unlock()
	}
	return n
}
