package node

import (
	"encoding/json"
	"maps"
	"math"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/loop"
)

// seriesChunk bounds how many series are copied in one turn of their loop: each
// is 1.2 KiB.
const seriesChunk = 128

// seriesAgain bounds how often the series of a loop are read anew because the
// configuration changed meanwhile.
const seriesAgain = 3

// past is what predecessors counted, beside their Totals.
type past struct {
	// mu guards what follows.
	mu      sync.Mutex
	series  map[loop.SeriesKey]*loop.Series
	samples []pastSample
	seen    map[seenKey]seen
}

// seen is what a counter of this process showed last, and what it had shown in
// all when it began anew: some go away with what they count, a rate or a table
// that the configuration has no longer, and may come back.
type seen struct{ last, base float64 }

type seenKey struct {
	metric *Metric
	values string
}

// seenMax is several times what the largest configurations have.
const seenMax = 1 << 18

// steady makes counters of this process that began anew go on from where they
// were. What they counted between the last look and their end is lost; they never
// fall. The caller holds mu.
func (p *past) steady(g *gathering) {
	if p.seen == nil {
		p.seen = map[seenKey]seen{}
	}
	was := p.seen
	if len(was) > seenMax { // names come and go; those that have gone are forgotten
		p.seen = map[seenKey]seen{}
	}
	for _, f := range g.families {
		if !f.own || f.Kind != Counter {
			continue
		}
		for i := range f.Samples {
			s := &f.Samples[i]
			key := seenKey{f.Metric, sampleKey(s.Values)}
			x := was[key]
			if s.Value < x.last {
				x.base += x.last
			}
			x.last = s.Value
			if x != (seen{}) {
				p.seen[key] = x
			}
			s.Value += x.base
		}
	}
}

type pastSample struct {
	metric *Metric
	Sample
}

// series sums the series of all loops and of all predecessors.
func (n *Node) series() map[loop.SeriesKey]*loop.Series {
	sum := map[loop.SeriesKey]*loop.Series{}
	add := func(key loop.SeriesKey, x *loop.Series) {
		if to := sum[key]; to != nil {
			to.Add(x)
		} else {
			own := *x
			sum[key] = &own
		}
	}
	n.past.mu.Lock()
	for key, x := range n.past.series {
		add(key, x)
	}
	n.past.mu.Unlock()
	for _, l := range n.shared.Loops {
		for key, x := range seriesOf(l) {
			add(key, x)
		}
	}
	return sum
}

// seriesOf copies the series of a loop, a few in each turn. A change of the
// configuration may merge some of them, so then it begins anew.
func seriesOf(l *loop.Loop) map[loop.SeriesKey]*loop.Series {
	for try := 1; ; try++ {
		out := map[loop.SeriesKey]*loop.Series{}
		whole := true
		var began uint64
		for from, more := 0, true; more && whole; {
			keys := make([]loop.SeriesKey, 0, seriesChunk)
			copies := make([]loop.Series, 0, seriesChunk)
			l.Ask(func(l *loop.Loop) {
				if from == 0 {
					began = l.Generation()
				}
				// The last time what is there is taken: the configuration changes as
				// fast as this reads.
				if whole = l.Generation() == began || try == seriesAgain; whole {
					from, more = l.SeriesFrom(from, seriesChunk, func(key loop.SeriesKey, x *loop.Series) {
						keys, copies = append(keys, key), append(copies, *x)
					})
				}
			})
			for k, key := range keys {
				out[key] = &copies[k]
			}
		}
		if whole {
			return out
		}
	}
}

// Estate is what a process has counted, as its successor inherits it.
type Estate struct {
	Totals
	Series  []portableSeries `json:"series,omitempty"`
	Samples []portableSample `json:"samples,omitempty"`
	History *portableHistory `json:"history,omitempty"`
	Upgrade *portableUpgrade `json:"upgrade,omitempty"`
}

// portableSeries is a loop.Series by names: another release may have other
// causes and other buckets.
type portableSeries struct {
	Listener string             `json:"l,omitempty"`
	Route    int                `json:"r"`
	Backend  string             `json:"b,omitempty"`
	Endpoint string             `json:"e,omitempty"`
	Requests [6]uint64          `json:"n"`
	Causes   map[string]uint64  `json:"c,omitempty"`
	In       uint64             `json:"i"`
	Out      uint64             `json:"o"`
	Waited   time.Duration      `json:"w,omitempty"`
	Took     *portableHistogram `json:"t,omitempty"`
	Answer   *portableHistogram `json:"a,omitempty"`
}

// portableHistogram has the buckets that are not empty by their upper bounds, in
// nanoseconds; the last one has no bound.
type portableHistogram struct {
	Counts [][2]int64    `json:"n"`
	Sum    time.Duration `json:"s"`
}

type portableSample struct {
	Metric    string             `json:"m"`
	Values    []string           `json:"v,omitempty"`
	Value     float64            `json:"n,omitempty"`
	Histogram *portableHistogram `json:"h,omitempty"`
}

func portableOf(h *loop.Histogram) *portableHistogram {
	if h == nil || h.Count() == 0 {
		return nil
	}
	p := &portableHistogram{Sum: h.Sum}
	for i, k := range h.Counts {
		if k == 0 {
			continue
		}
		bound := int64(math.MaxInt64)
		if i < len(loop.Bounds) {
			bound = int64(loop.Bounds[i])
		}
		p.Counts = append(p.Counts, [2]int64{bound, int64(k)})
	}
	return p
}

// into adds p to h: each bucket to the one that its bound falls into.
func (p *portableHistogram) into(h *loop.Histogram) {
	if p == nil {
		return
	}
	for _, x := range p.Counts {
		i := sort.Search(len(loop.Bounds), func(i int) bool { return int64(loop.Bounds[i]) >= x[0] })
		h.Counts[i] += uint64(x[1])
	}
	h.Sum += p.Sum
}

var causesByName = func() map[string]flow.Cause {
	m := map[string]flow.Cause{}
	for c := range flow.Causes {
		m[flow.Cause(c).String()] = flow.Cause(c)
	}
	return m
}()

// estate is all that this process and its predecessors have counted.
func (n *Node) estate() Estate {
	e := Estate{Totals: n.counts(), History: n.history.portable(), Upgrade: n.upgrades.passing()}
	for key, x := range n.series() {
		p := portableSeries{
			Listener: key.Listener, Route: key.Route, Backend: key.Backend, Endpoint: key.Endpoint,
			Requests: x.Requests, In: x.In, Out: x.Out, Waited: x.Waited, Took: portableOf(&x.Took), Answer: portableOf(&x.Answer),
		}
		for c, k := range x.Causes {
			if k > 0 {
				if p.Causes == nil {
					p.Causes = map[string]uint64{}
				}
				p.Causes[flow.Cause(c).String()] = k
			}
		}
		e.Series = append(e.Series, p)
	}
	for _, f := range n.owned().families {
		for _, s := range f.Samples {
			if f.own && f.Kind != Gauge && (s.Value != 0 || s.Histogram != nil) {
				e.Samples = append(e.Samples, portableSample{f.Name, s.Values, s.Value, portableOf(s.Histogram)})
			}
		}
	}
	return e
}

// estateMax bounds an estate in octets: half of what a message may be, for a
// successor that could not read it would have every flow and no counts.
const estateMax = frozen.BatchMax / 2

// bounded is e as it is sent. What is too large is told less exactly: endpoints
// are not told apart, or there are no more than the totals.
func (e Estate) bounded(most int) json.RawMessage {
	text, err := json.Marshal(e)
	if err == nil && len(text) <= most {
		return text
	}
	sum := map[loop.SeriesKey]*portableSeries{}
	for _, p := range e.Series {
		key := loop.SeriesKey{Listener: p.Listener, Route: p.Route, Backend: p.Backend}
		to := sum[key]
		if to == nil {
			p.Endpoint = ""
			p.Causes = maps.Clone(p.Causes)
			sum[key] = &p
			continue
		}
		to.add(&p)
	}
	e.Series = e.Series[:0:0]
	for _, p := range sum {
		e.Series = append(e.Series, *p)
	}
	e.Samples = slices.DeleteFunc(slices.Clone(e.Samples), func(s portableSample) bool {
		return len(s.Values) == 2 && (s.Metric == endpointTries.Name || s.Metric == endpointFails.Name)
	})
	if text, err = json.Marshal(e); err == nil && len(text) <= most {
		return text
	}
	text, _ = json.Marshal(Estate{Totals: e.Totals, Upgrade: e.Upgrade}) // plain numbers and maps cannot fail
	return text
}

// add counts all that o has counted.
func (p *portableSeries) add(o *portableSeries) {
	for i, k := range o.Requests {
		p.Requests[i] += k
	}
	for name, k := range o.Causes {
		if p.Causes == nil {
			p.Causes = map[string]uint64{}
		}
		p.Causes[name] += k
	}
	p.In += o.In
	p.Out += o.Out
	p.Waited += o.Waited
	for _, h := range []struct {
		to   **portableHistogram
		from *portableHistogram
	}{{&p.Took, o.Took}, {&p.Answer, o.Answer}} {
		var both loop.Histogram
		(*h.to).into(&both)
		h.from.into(&both)
		*h.to = portableOf(&both)
	}
}

// inherit takes over what a predecessor has counted.
func (n *Node) inherit(e *Estate) {
	n.totals.inherit(&e.Totals)
	n.history.inherit(e.History)
	n.succeeded(e.Upgrade)
	n.past.mu.Lock()
	defer n.past.mu.Unlock()
	if n.past.series == nil {
		n.past.series = map[loop.SeriesKey]*loop.Series{}
	}
	for _, p := range e.Series {
		key := loop.SeriesKey{Listener: p.Listener, Route: p.Route, Backend: p.Backend, Endpoint: p.Endpoint}
		x := n.past.series[key]
		if x == nil {
			x = &loop.Series{}
			n.past.series[key] = x
		}
		for i, k := range p.Requests {
			x.Requests[i] += k
		}
		for name, k := range p.Causes {
			x.Causes[causesByName[name]] += k // one that this release has not is counted as none
		}
		x.In += p.In
		x.Out += p.Out
		x.Waited += p.Waited
		p.Took.into(&x.Took)
		p.Answer.into(&x.Answer)
	}
	byName := map[string]*Metric{}
	for _, m := range metrics {
		byName[m.Name] = m
	}
	for _, p := range e.Samples {
		m := byName[p.Metric]
		if m == nil || !m.own || m.Kind == Gauge || len(p.Values) != len(m.Labels) {
			continue // this release does not count that
		}
		s := pastSample{m, Sample{Values: p.Values, Value: p.Value}}
		if m.Kind == Distribution {
			s.Histogram = &loop.Histogram{}
			p.Histogram.into(s.Histogram)
		}
		n.past.samples = append(n.past.samples, s)
	}
}
