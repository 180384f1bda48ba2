package loop

import (
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
)

// SeriesKey says of what a [Series] is, by names, so that it outlives changes
// of the configuration.
type SeriesKey struct {
	Listener string
	Route    int // index among the listener's routes; -1 is none
	// Backend and Endpoint are short names; "" is none, or one of many that are
	// no longer told apart.
	Backend, Endpoint string
}

// Series are the counts of what was served. The zero value is ready; two are
// merged by adding them.
type Series struct {
	Requests [6]uint64           // by class of the status; [0] are flows without HTTP, and what came to no status
	Causes   [flow.Causes]uint64 // why each ended
	In, Out  uint64              // octets from and to clients
	Waited   time.Duration       // for an endpoint with room
	Took     Histogram           // from the first octet to the last
	Answer   Histogram           // from the request to the first octet of its response
}

// Add counts all that o has counted.
func (x *Series) Add(o *Series) {
	for i, n := range o.Requests {
		x.Requests[i] += n
	}
	for i, n := range o.Causes {
		x.Causes[i] += n
	}
	x.In += o.In
	x.Out += o.Out
	x.Waited += o.Waited
	x.Took.Add(&o.Took)
	x.Answer.Add(&o.Answer)
}

// seriesMax bounds the series of a loop: each takes about 1.2 KiB. Beyond it
// endpoints are not told apart.
const seriesMax = 16 << 10

// familiar is how many series are found without looking at names.
const familiar = 256

// seriesBook holds the series of a loop.
type seriesBook struct {
	all map[SeriesKey]*Series
	// order has the same ones, as they came, to be looked at a few at a time.
	order  []namedSeries
	looked int // where prune goes on
	// known are the latest by the objects that name them. Objects are immutable
	// and compared by their pointers, which is cheaper than three strings.
	known [familiar]knownSeries
	stale bool // they may name objects that nobody else does any more
}

type namedSeries struct {
	key    SeriesKey
	series *Series
}

type knownSeries struct {
	listener *config.Listener
	backend  *config.Backend
	endpoint *config.Endpoint
	route    int
	series   *Series
}

// of is the series of what was served under these objects; the last two may be
// nil.
func (b *seriesBook) of(lis *config.Listener, route int, to *config.Backend, end *config.Endpoint) *Series {
	// Versions are hashes of contents already.
	place := lis.Ref.Version + uint64(route)*0x9e3779b97f4a7c15
	if end != nil {
		place ^= end.Ref.Version
	} else if to != nil {
		place ^= to.Ref.Version
	}
	k := &b.known[place%familiar]
	if k.listener != lis || k.endpoint != end || k.backend != to || k.route != route {
		*k = knownSeries{lis, to, end, route, b.named(lis, route, to, end)}
	}
	return k.series
}

func (b *seriesBook) named(lis *config.Listener, route int, to *config.Backend, end *config.Endpoint) *Series {
	key := SeriesKey{Listener: lis.Ref.Name, Route: route}
	if to != nil {
		key.Backend = to.Ref.Name
	}
	if end != nil {
		key.Endpoint = end.Name
	}
	if b.all[key] == nil && len(b.all) >= seriesMax {
		if key.Endpoint = ""; b.all[key] == nil && len(b.all) >= 2*seriesMax {
			key = SeriesKey{Route: -1} // names were changed very often
		}
	}
	return b.keyed(key)
}

func (b *seriesBook) keyed(key SeriesKey) *Series {
	x := b.all[key]
	if x == nil {
		if b.all == nil {
			b.all = map[SeriesKey]*Series{}
		}
		x = &Series{}
		b.all[key] = x
		b.order = append(b.order, namedSeries{key, x})
	}
	return x
}

// pruneAtOnce is how many series prune looks at in one call.
const pruneAtOnce = 256

// prune looks, when there are many series, at some of them: those of endpoints that
// have left c become one for each backend. Sums never fall.
func (b *seriesBook) prune(c *config.Config) {
	b.stale = true
	if len(b.all) < seriesMax/2 {
		return
	}
	merged := false
	for range min(pruneAtOnce, len(b.order)) {
		if b.looked >= len(b.order) {
			b.looked = 0
		}
		x := b.order[b.looked]
		key := x.key
		if to := c.Backends[key.Backend]; key.Endpoint == "" || to != nil && to.Endpoint(key.Endpoint) != nil && c.Listeners[key.Listener] != nil {
			b.looked++
			continue
		}
		delete(b.all, key)
		last := len(b.order) - 1
		b.order[b.looked], b.order[last] = b.order[last], namedSeries{}
		b.order = b.order[:last]
		key.Endpoint = ""
		b.keyed(key).Add(x.series)
		merged = true
	}
	if merged {
		clear(b.known[:]) // what was merged is not to be found any more
	}
}

// forget forgets what names objects of earlier generations: a large one for each
// place would be much memory.
func (b *seriesBook) forget() {
	if b.stale {
		clear(b.known[:])
		b.stale = false
	}
}

// Series calls do for each series of the loop, in no order; to be called on the
// loop's thread. What do is given stays the loop's.
func (l *Loop) Series(do func(SeriesKey, *Series)) {
	l.SeriesFrom(0, len(l.series.order), do)
}

// SeriesFrom is Series for n of them from a number on, and gives the number to go
// on from, or false if there are no more: to look at many of them in several
// turns. The numbers hold as long as the loop's [Loop.Generation] does.
func (l *Loop) SeriesFrom(from, n int, do func(SeriesKey, *Series)) (next int, more bool) {
	all := l.series.order
	end := min(len(all), from+n)
	for _, x := range all[min(from, end):end] {
		do(x.key, x.series)
	}
	return end, end < len(all)
}
