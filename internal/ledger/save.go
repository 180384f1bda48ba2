package ledger

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"time"
)

// Saved is what a ledger has learnt of endpoints and clients, for the process that
// goes on: of instants it holds how far they are away. What it has granted goes with
// the flows, sticky tables with [Ledger.EachTable].
type Saved struct {
	Backends  map[string]SavedBackend  `json:"backends,omitempty"`
	Listeners map[string]SavedListener `json:"listeners,omitempty"`
}

// SavedBackend is what is known of one backend.
type SavedBackend struct {
	Turn      uint64                   `json:"turn,omitempty"`      // of those who choose in turn
	ShedTurn  uint64                   `json:"shed_turn,omitempty"` // of those who are shed
	Budget    *SavedBudget             `json:"budget,omitempty"`
	Endpoints map[string]SavedEndpoint `json:"endpoints,omitempty"` // by full name
}

// SavedBudget is the window of a retry budget.
type SavedBudget struct {
	Free     time.Duration `json:"free,omitempty"` // how far the free retries are used ahead
	Since    time.Duration `json:"since"`          // how long ago the half began
	Requests uint64        `json:"requests"`       // in it
	Retries  [2]int64      `json:"retries"`
	Recent   float64       `json:"recent"`
}

// SavedEndpoint is how fast an endpoint has answered, and what it has failed.
type SavedEndpoint struct {
	Took        time.Duration `json:"took,omitempty"` // the slowest of the recent answers
	Ago         time.Duration `json:"ago,omitempty"`  // when that was
	Consecutive int64         `json:"consecutive,omitempty"`
}

// SavedListener are the rates of a listener by what they are of, as in "requests
// 10/1s+5": a rate that is another one begins anew.
type SavedListener struct {
	Rates   map[string]time.Duration `json:"rates,omitempty"`   // how far each is used ahead
	Sources map[string][]byte        `json:"sources,omitempty"` // see packSource
}

// A source and how far its rate is used ahead, in nanoseconds, take so many octets.
const packedSource = 16 + 8

func packSource(to []byte, a netip.Addr, ahead int64) []byte {
	o := a.As16()
	return binary.LittleEndian.AppendUint64(append(to, o[:]...), uint64(ahead))
}

// eachSource calls do for what packSource has put together. What is left over at
// the end is dropped.
func eachSource(packed []byte, do func(a netip.Addr, ahead int64)) {
	for ; len(packed) >= packedSource; packed = packed[packedSource:] {
		a := netip.AddrFrom16([16]byte(packed[:16])).Unmap()
		do(a, int64(binary.LittleEndian.Uint64(packed[16:])))
	}
}

// Save gives what Restore needs in another process, at now. Of sources it gives
// those that have come since; 0 is all whose rate is used ahead.
func (l *Ledger) Save(now, since int64) Saved {
	s := Saved{Backends: map[string]SavedBackend{}, Listeners: map[string]SavedListener{}}
	l.all(func(b *Backend) {
		z := SavedBackend{Turn: b.turn.Load(), ShedTurn: b.shedTurn.Load(), Budget: b.budget.save(now, b.requests())}
		for _, e := range b.list() {
			x := SavedEndpoint{Took: e.Latency(), Consecutive: e.consecutive.Load()}
			if x.Took > 0 {
				pace := e.pace.Load()
				x.Ago = time.Duration(aged(pace, uint32(now>>paceShift)) * float64(latencyDecay))
			}
			if x != (SavedEndpoint{}) && x.Ago < agoMax {
				if z.Endpoints == nil {
					z.Endpoints = map[string]SavedEndpoint{}
				}
				z.Endpoints[e.Name] = x
			}
		}
		if z.Turn != 0 || z.ShedTurn != 0 || z.Budget != nil || z.Endpoints != nil {
			s.Backends[b.Name] = z
		}
	})
	l.rates.mu.Lock()
	defer l.rates.mu.Unlock()
	for name, book := range l.rates.listeners {
		z := SavedListener{Rates: map[string]time.Duration{}, Sources: map[string][]byte{}}
		for _, m := range book.recent {
			for c := range m.cells {
				if ahead := c.tat.Load() - now; ahead > 0 {
					z.Rates[c.key] = time.Duration(ahead)
				}
			}
			for c := range m.sourceCells {
				if c.every == 0 || z.Sources[c.key] != nil {
					continue
				}
				if packed := c.save(now, since, c.every); len(packed) > 0 {
					z.Sources[c.key] = packed
				}
			}
		}
		for key, ahead := range book.came.Rates { // nobody has asked for them here yet
			if left := ahead - time.Duration(now); left > 0 && z.Rates[key] == 0 {
				z.Rates[key] = left
			}
		}
		if since == 0 {
			for key, packed := range book.came.Sources {
				eachSource(packed, func(a netip.Addr, due int64) {
					if due > now {
						z.Sources[key] = packSource(z.Sources[key], a, due-now)
					}
				})
			}
		}
		if len(z.Rates)+len(z.Sources) > 0 {
			s.Listeners[name] = z
		}
	}
	return s
}

// agoMax is how old an answer may be of which is told: nothing is left of it.
const agoMax = 20 * latencyDecay

// save packs the sources whose rate is used ahead and that have come since.
func (t *sources) save(now, since, every int64) (packed []byte) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		s.due.each(func(a netip.Addr, due *int64) {
			// Each that has come put it one step further than the time it came at.
			if *due > now && (since == 0 || *due >= since+every) {
				packed = packSource(packed, a, *due-now)
			}
		})
		s.mu.Unlock()
	}
	return packed
}

func (r *budget) save(now int64, requests uint64) *SavedBudget {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.since == 0 {
		return nil
	}
	return &SavedBudget{
		Free: time.Duration(max(0, r.free.tat.Load()-now)), Since: time.Duration(max(0, now-r.since)),
		Requests: requests - r.requests, Retries: r.retries, Recent: r.recent,
	}
}

func (r *budget) restore(now int64, requests uint64, s *SavedBudget) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.free.tat.Store(max(r.free.tat.Load(), now+int64(s.Free)))
	// The window is of both processes: what is counted here goes on from there. The
	// difference of two counts is right even where this one wraps around.
	r.since, r.requests = max(1, now-int64(s.Since)), requests-s.Requests
	r.retries = [2]int64{max(0, s.Retries[0]), max(0, s.Retries[1])}
	if r.recent = s.Recent; math.IsNaN(r.recent) || r.recent < 0 {
		r.recent = 0
	}
}

// merge is restore beside a process that goes on: what it used of its budget and what
// is used here are used together.
func (r *budget) merge(now int64, requests uint64, s *SavedBudget) {
	r.mu.Lock()
	if r.since != 0 {
		s.Since = max(0, min(s.Since, time.Duration(now-r.since)))
		s.Requests += requests - r.requests
		s.Retries[0] += r.retries[0]
		s.Retries[1] += r.retries[1]
		s.Recent = max(s.Recent, r.recent)
	}
	r.mu.Unlock()
	r.restore(now, requests, s)
}

// Merge takes from another node, which goes on, what it has used of rates and budgets,
// what its endpoints have answered, and whose turn it is. It is told once of a budget.
func (l *Ledger) Merge(now int64, s Saved) {
	for name, z := range s.Backends {
		if b := l.Backend(name); z.Budget != nil {
			b.budget.merge(now, b.requests(), z.Budget)
			z.Budget = nil
			s.Backends[name] = z
		}
	}
	l.Restore(now, s)
}

// Restore takes over what another process has saved, at now. It may be called again
// with what came since: the later one holds.
func (l *Ledger) Restore(now int64, s Saved) {
	for name, z := range s.Backends {
		b := l.Backend(name)
		raise(&b.turn, z.Turn)
		raise(&b.shedTurn, z.ShedTurn)
		if z.Budget != nil {
			b.budget.restore(now, b.requests(), z.Budget)
		}
		for full, x := range z.Endpoints {
			e := b.Endpoint(full)
			e.consecutive.Store(max(e.consecutive.Load(), x.Consecutive))
			if x.Took > 0 {
				e.observe(now-int64(max(0, x.Ago)), x.Took)
			}
		}
	}
	b := &l.rates
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, z := range s.Listeners {
		b.book(name).restore(now, z)
	}
}

// restore keeps what came until somebody asks for the rate that it is of: rates are
// made when they are used first. Those that are used already have it at once.
func (b *listenerBook) restore(now int64, z SavedListener) {
	if b.came.Rates == nil {
		b.came = SavedListener{map[string]time.Duration{}, map[string][]byte{}}
	}
	for key, ahead := range z.Rates {
		b.came.Rates[key] = time.Duration(now) + min(max(0, ahead), time.Duration(burstTime))
	}
	for key, packed := range z.Sources {
		// What came first is older, and the later one of a source holds.
		eachSource(packed, func(a netip.Addr, ahead int64) {
			b.came.Sources[key] = packSource(b.came.Sources[key], a, now+min(max(0, ahead), burstTime))
		})
	}
	for _, m := range b.recent {
		for c := range m.cells {
			b.bring(c)
		}
		for c := range m.sourceCells {
			b.bringSources(c)
		}
	}
}

// bring gives a rate what came for it.
func (b *listenerBook) bring(c *cell) {
	if due, ok := b.came.Rates[c.key]; ok {
		delete(b.came.Rates, c.key)
		raiseTo(&c.tat, int64(due))
	}
}

// bringSources is bring for a rate of each source.
func (b *listenerBook) bringSources(c *sourceCell) {
	if packed, ok := b.came.Sources[c.key]; ok {
		delete(b.came.Sources, c.key)
		eachSource(packed, c.bring)
	}
}

func (t *sources) bring(a netip.Addr, due int64) {
	source, s := t.of(a)
	s.mu.Lock()
	defer s.mu.Unlock()
	if was := s.due.use(source); was != nil {
		*was = max(*was, due)
		return
	}
	for s.due.size() >= sourcesMax/sourceShards {
		old, _ := s.due.oldest()
		s.due.drop(old)
		t.evicted.Add(1)
	}
	s.due.put(source, due)
}

// Mark is when tables were told of, so that what changed since can be told alone.
type Mark struct {
	at map[*table]*[tableShards]int64
}

// tableLook is how many entries of a table are looked at while a loop that needs
// them waits.
const tableLook = 4096

// EachTable calls do for parts of all sticky tables, packed, and gives a mark. since
// is that of an earlier call, after which only what was used later is told of; nil is
// all. Loops that use a table meanwhile wait for no more than a part of it.
func (l *Ledger) EachTable(since *Mark, do func(backend string, t *Table) error) (*Mark, error) {
	mark := &Mark{map[*table]*[tableShards]int64{}}
	var err error
	l.all(func(b *Backend) {
		t := b.table.Load()
		if t == nil || err != nil {
			return
		}
		at := &[tableShards]int64{}
		mark.at[t] = at
		var was *[tableShards]int64
		if since != nil {
			was = since.at[t]
		}
		for i := range t.shards {
			var all []entry
			if s := &t.shards[i]; was != nil {
				at[i], all = s.later(was[i])
			} else {
				at[i], all = s.whole()
			}
			if len(all) == 0 || err != nil {
				continue
			}
			if err = do(b.Name, packTable(all, at[i])); err != nil {
				return
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("ledger: sticky tables: %w", err)
	}
	return mark, nil
}

// entry is one of a table, as it was.
type entry struct {
	key uint64
	sticking
}
