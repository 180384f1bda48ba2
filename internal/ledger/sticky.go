package ledger

import (
	"cmp"
	"encoding/binary"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/planted"
)

// table remembers to which endpoint a client is sticky, for those who are not told
// by a cookie. It is bounded; what goes, goes under a name: full, expired or
// gone. Like accounts it belongs to a name, and survives versions.
type table struct {
	shards [tableShards]shard
}

// tableShards share the keys, so that loops seldom meet.
const tableShards = 16

type shard struct {
	mu      sync.Mutex
	max     int   // entries
	age     int64 // nanoseconds without use after which an entry expires; 0 is never
	now     int64 // the latest time that anybody told; 0: nobody has yet
	entries *lru[uint64, sticking]
	evicted evictions
	_       [8]byte
}

// sticking is one entry.
type sticking struct {
	to   *Endpoint
	used int64
}

// evictions of sticky tables, by reason.
type evictions struct {
	full    uint64 // the one unused for longest had to go for a new one
	expired uint64 // not used for as long as the table remembers
	gone    uint64 // its endpoint is gone, or serves it no more
}

func (e *evictions) add(o evictions) {
	e.full += o.full
	e.expired += o.expired
	e.gone += o.gone
}

func newTable() *table {
	t := &table{}
	for i := range t.shards {
		t.shards[i].entries = newLRU[uint64, sticking]()
	}
	return t
}

// shard is by the high bits: hashes of few clients may differ in few low ones.
func (t *table) shard(key uint64) *shard { return &t.shards[mix(key)>>60] }

// mix spreads a key over all bits (the finalizer of SplitMix64, Steele et al. 2014).
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// bound sets how many entries there may be in all, and how old.
func (t *table) bound(most int, age time.Duration) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		s.max, s.age = (most+i)/tableShards, int64(age)
		for s.entries.size() > s.max {
			s.evict()
		}
		s.mu.Unlock()
	}
}

// enforceTable brings the table to what c says, under roll.
func (b *Backend) enforceTable(c *config.Backend, present map[*Endpoint]bool) {
	t := b.table.Load()
	if c.Sticky == nil || c.Sticky.Kind == config.StickyCookie {
		if t != nil {
			b.table.Store(nil)
			n, e := t.stats()
			b.names.Lock()
			b.past.add(evictions{e.full, e.expired, e.gone + uint64(n)})
			b.names.Unlock()
		}
		return
	}
	if t == nil {
		t = newTable()
	}
	t.bound(max(c.Sticky.TableMax, tableShards), c.Sticky.MaxAge)
	t.retain(func(e *Endpoint) bool { return present[e] })
	b.table.Store(t)
}

func (t *table) retain(keep func(*Endpoint) bool) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		s.entries.each(func(key uint64, e *sticking) {
			if !keep(e.to) {
				s.entries.drop(key)
				s.evicted.gone++
			}
		})
		s.mu.Unlock()
	}
}

// tell notes the time, under mu. Entries of a predecessor came with their ages
// before there was any.
func (s *shard) tell(now int64) {
	if s.now == 0 && now != 0 {
		s.entries.each(func(_ uint64, e *sticking) { e.used += now })
	}
	s.now = max(s.now, now)
}

func (s *shard) expired(e *sticking) bool {
	return s.age != 0 && s.now-e.used > s.age && !planted.Bug(49)
}

// evict drops the entry that was not used for longest, under mu.
func (s *shard) evict() {
	key, e := s.entries.oldest()
	if s.expired(e) {
		s.evicted.expired++
	} else {
		s.evicted.full++
	}
	s.entries.drop(key)
}

// find gives the endpoint to which the key is sticky, or nil.
func (t *table) find(key uint64, now int64) *Endpoint {
	s := t.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tell(now)
	e := s.entries.look(key)
	if e == nil {
		return nil
	}
	if s.expired(e) {
		s.entries.drop(key)
		s.evicted.expired++
		return nil
	}
	e = s.entries.use(key)
	e.used = s.now
	return e.to
}

// learn makes the key sticky to the endpoint.
func (t *table) learn(key uint64, to *Endpoint, now int64) {
	s := t.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tell(now)
	if e := s.entries.use(key); e != nil {
		if e.to != to {
			s.evicted.gone++ // else it would not have been sent elsewhere
		}
		*e = sticking{to, s.now}
		return
	}
	s.add(key, sticking{to, s.now})
}

// add adds an entry as the newest, under mu.
func (s *shard) add(key uint64, e sticking) {
	for s.entries.size() >= s.max {
		s.evict()
	}
	s.entries.put(key, e)
}

// Learn makes the key sticky to the endpoint of that full name: for a flow that
// comes from another process, which brings no more than that. Who is known here
// already is left where it is.
func (b *Backend) Learn(key uint64, endpoint string) {
	t := b.table.Load()
	if t == nil || key == 0 {
		return
	}
	s := t.shard(key)
	to := b.Endpoint(endpoint)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries.look(key) == nil {
		s.add(key, sticking{to, s.now})
	}
}

// Tables are the sticky tables of all backends by name, for a successor.
type Tables map[string]*Table

// Table is one sticky table, in columns: one entry for each key, from the one
// that was not used for longest to the newest.
type Table struct {
	Endpoints []string `json:"endpoints"` // full names
	Keys      []uint64 `json:"keys"`
	Of        []uint32 `json:"of"`        // index in Endpoints
	Millis    []int64  `json:"ageMillis"` // since it was used last
	// Packed are the three columns in one, for a release that knows them: a million
	// numbers take as long to read as all else of an upgrade together.
	Packed []byte `json:"packed,omitempty"`
}

// packedEntry is how many octets an entry takes: its key, the index of its endpoint,
// and its age in milliseconds.
const packedEntry = 8 + 4 + 4

// packTable packs entries as they were at now; they come in the order of their use.
func packTable(all []entry, now int64) *Table {
	slices.SortFunc(all, func(a, b entry) int { return cmp.Compare(a.used, b.used) })
	out, at := &Table{Packed: make([]byte, 0, packedEntry*len(all))}, map[*Endpoint]uint32{}
	for _, e := range all {
		i, ok := at[e.to]
		if !ok {
			i = uint32(len(out.Endpoints))
			at[e.to] = i
			out.Endpoints = append(out.Endpoints, e.to.Name)
		}
		age := min(max(0, now-e.used)/int64(time.Millisecond), math.MaxUint32)
		out.Packed = binary.LittleEndian.AppendUint64(out.Packed, e.key)
		out.Packed = binary.LittleEndian.AppendUint32(out.Packed, i)
		out.Packed = binary.LittleEndian.AppendUint32(out.Packed, uint32(age))
	}
	return out
}

// unpack gives the columns of a table; false if they do not go together.
func (of *Table) unpack() bool {
	for p := of.Packed; len(p) >= packedEntry; p = p[packedEntry:] {
		of.Keys = append(of.Keys, binary.LittleEndian.Uint64(p))
		of.Of = append(of.Of, binary.LittleEndian.Uint32(p[8:]))
		of.Millis = append(of.Millis, int64(binary.LittleEndian.Uint32(p[12:])))
	}
	of.Packed = nil
	return len(of.Of) == len(of.Keys) && len(of.Millis) == len(of.Keys)
}

// whole gives all entries that have not expired, and the time. Of what changes
// meanwhile it gives some: that is told by later.
func (s *shard) whole() (now int64, all []entry) {
	s.mu.Lock()
	now = s.now
	all = make([]entry, 0, s.entries.size())
	s.mu.Unlock()
	for from, more := 1, true; more; from += tableLook {
		s.mu.Lock()
		places := s.entries.all
		for i := from; i < min(from+tableLook, len(places)); i++ {
			if e := &places[i]; e.value.to != nil && !s.expired(&e.value) { // else it is not used
				all = append(all, entry{e.key, e.value})
			}
		}
		more = from+tableLook < len(places)
		s.mu.Unlock()
	}
	return now, all
}

// later gives the entries that were used at since or later, and the time.
func (s *shard) later(since int64) (now int64, all []entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	places := s.entries.all
	for i := places[0].prev; i != 0 && places[i].value.used >= since; i = places[i].prev {
		all = append(all, entry{places[i].key, places[i].value})
	}
	return s.now, all
}

// Tables gives what all sticky tables hold.
func (l *Ledger) Tables() Tables {
	out := Tables{}
	l.all(func(b *Backend) {
		if t := b.table.Load(); t != nil {
			if of := t.export(); len(of.Keys) > 0 {
				out[b.Name] = of
			}
		}
	})
	return out
}

func (t *table) export() *Table {
	type aged struct {
		key uint64
		to  *Endpoint
		age int64
	}
	var all []aged
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		s.entries.each(func(key uint64, e *sticking) {
			if !s.expired(e) {
				all = append(all, aged{key, e.to, s.now - e.used})
			}
		})
		s.mu.Unlock()
	}
	slices.SortStableFunc(all, func(a, b aged) int {
		return int(max(-1, min(1, b.age-a.age)))
	})
	out, at := &Table{}, map[*Endpoint]uint32{}
	for _, e := range all {
		i, ok := at[e.to]
		if !ok {
			i = uint32(len(out.Endpoints))
			at[e.to] = i
			out.Endpoints = append(out.Endpoints, e.to.Name)
		}
		out.Keys = append(out.Keys, e.key)
		out.Of = append(out.Of, i)
		out.Millis = append(out.Millis, e.age/int64(time.Millisecond))
	}
	return out
}

// Inherit takes over tables of a predecessor, or parts of them, at now, for the
// backends that are in force and have one. Of a key that is known here already the one
// that was used later holds.
func (l *Ledger) Inherit(now int64, tables Tables) {
	for name, of := range tables {
		b := l.Backend(name)
		t := b.table.Load()
		if t == nil || of == nil || !of.unpack() {
			continue
		}
		accounts := make([]*Endpoint, len(of.Endpoints))
		if v := b.versions.Load().current; v != nil {
			known := map[string]*Endpoint{}
			for _, e := range v.accounts {
				known[e.Name] = e
			}
			for i, full := range of.Endpoints {
				accounts[i] = known[full]
			}
		}
		for i, key := range of.Keys {
			s := t.shard(key)
			s.mu.Lock()
			s.tell(now)
			switch at := int(of.Of[i]); {
			case at >= len(accounts) || accounts[at] == nil:
				s.evicted.gone++
			default:
				s.inherit(key, sticking{accounts[at], s.now - max(0, of.Millis[i])*int64(time.Millisecond)})
			}
			s.mu.Unlock()
		}
	}
}

// inherit takes over an entry, under mu.
func (s *shard) inherit(key uint64, e sticking) {
	switch was := s.entries.look(key); {
	case was == nil:
		s.add(key, e)
	case was.used <= e.used:
		*s.entries.use(key) = e
	}
}

// stats sums up the shards.
func (t *table) stats() (entries int, out evictions) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		entries += s.entries.size()
		out.add(s.evicted)
		s.mu.Unlock()
	}
	return entries, out
}
