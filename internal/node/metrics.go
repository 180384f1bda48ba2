package node

import (
	"slices"
	"strings"

	"github.com/holdfast-lb/holdfast/internal/loop"
)

// MetricKind says what of a metric can be expected.
type MetricKind uint8

// The kinds.
const (
	Counter      MetricKind = iota // it never falls, over reloads, upgrades and moves
	Gauge                          // it is what is now
	Distribution                   // a histogram of durations
)

var metricKinds = [...]string{"counter", "gauge", "histogram"}

// String gives the field's word for k.
func (k MetricKind) String() string { return metricKinds[k] }

// Metric is one that this node exports. It is immutable.
type Metric struct {
	Name string // with its prefix
	Help string
	Kind MetricKind
	// Labels are names; their values come from the configuration, or are words of
	// ours. Nothing that a client sent is ever one.
	Labels []string

	number int
	// own: what is counted is this process's; what its predecessors counted is
	// added. The others are counted over all processes already.
	own bool
}

// Sample is a value of a metric under some values of its labels.
type Sample struct {
	Values    []string
	Value     float64
	Histogram *loop.Histogram // of a [Distribution]
}

// Buckets are what is shown of the histogram, by upper bound in seconds and with
// what the lower ones have: of the ten in a decade three, 1, 2 and 5; the others
// are part of the next one of these.
func (s *Sample) Buckets() (count uint64, seconds float64, buckets map[float64]uint64) {
	h := s.Histogram
	buckets = make(map[float64]uint64, len(loop.Bounds)/3+1)
	for i, bound := range loop.Bounds {
		count += h.Counts[i]
		if i%10 == 0 || i%10 == 3 || i%10 == 6 { // 50, 100 and 200 us, and so on
			buckets[bound.Seconds()] = count
		}
	}
	return count + h.Counts[len(loop.Bounds)], h.Sum.Seconds(), buckets
}

// Family is a metric with all its samples.
type Family struct {
	*Metric
	Samples []Sample
}

// metricPrefix begins all names.
const metricPrefix = "holdfast_"

var metrics []*Metric

// Metrics are all that a node exports, in the order of the documents.
func Metrics() []*Metric { return slices.Clone(metrics) }

func metric(kind MetricKind, name, help string, labels ...string) *Metric {
	m := &Metric{Name: metricPrefix + name, Help: help, Kind: kind, Labels: labels, number: len(metrics)}
	metrics = append(metrics, m)
	return m
}

// ours makes a metric of which each process counts its own.
func ours(kind MetricKind, name, help string, labels ...string) *Metric {
	m := metric(kind, name, help, labels...)
	m.own = true
	return m
}

// gathering collects samples. Samples of the same labels are added.
type gathering struct {
	families []Family
	index    []map[string]int // by metric: where the sample of these values is
}

func newGathering() *gathering {
	g := &gathering{families: make([]Family, len(metrics)), index: make([]map[string]int, len(metrics))}
	for i, m := range metrics {
		g.families[i].Metric = m
	}
	return g
}

func sampleKey(values []string) string {
	if len(values) == 1 {
		return values[0]
	}
	return strings.Join(values, "\x00")
}

// at is the sample of m under some values.
func (g *gathering) at(m *Metric, values []string) *Sample {
	if len(values) != len(m.Labels) {
		panic("node: " + m.Name + " under " + strings.Join(values, ","))
	}
	f := &g.families[m.number]
	if g.index[m.number] == nil {
		g.index[m.number] = map[string]int{}
	}
	key := sampleKey(values)
	i, ok := g.index[m.number][key]
	if !ok {
		i = len(f.Samples)
		g.index[m.number][key] = i
		f.Samples = append(f.Samples, Sample{Values: slices.Clone(values)})
	}
	return &f.Samples[i]
}

// add adds v to m.
func (g *gathering) add(m *Metric, v float64, values ...string) { g.at(m, values).Value += v }

// merge adds what h has counted.
func (g *gathering) merge(m *Metric, h *loop.Histogram, values ...string) {
	s := g.at(m, values)
	if s.Histogram == nil {
		s.Histogram = &loop.Histogram{}
	}
	s.Histogram.Add(h)
}
