package lab

import (
	"math/bits"
	"slices"
	"time"
)

// Label says what was going on when something was measured.
type Label uint8

// The labels. The control interval has no events; the others are under way or
// ended less than settleTime ago.
const (
	Opening Label = iota
	Control
	Config
	Loop
	ProcessMove
	HostMove
	Closing
	labels int = iota
)

var labelNames = [labels]string{"opening", "control", "config", "loop", "process", "host", "closing"}

func (l Label) String() string { return labelNames[l] }

// Histogram counts durations in buckets that are at most an eighth wide, from
// 1 us to hours. The zero value is empty. One goroutine writes it.
type Histogram struct {
	N      uint64
	Max    time.Duration
	counts [8 * 40]uint32
}

func bucket(d time.Duration) int {
	us := uint64(max(d/time.Microsecond, 0))
	if us < 8 {
		return int(us)
	}
	e := bits.Len64(us) - 4 // us>>e is 8..15
	return min(8+e*8+int(us>>e)-8, 8*40-1)
}

// bucketTop is the largest duration that falls into the bucket.
func bucketTop(i int) time.Duration {
	if i < 8 {
		return time.Duration(i+1) * time.Microsecond
	}
	e := (i - 8) / 8
	return time.Duration(uint64(8+(i-8)%8+1)<<e) * time.Microsecond
}

// Add counts one duration.
func (h *Histogram) Add(d time.Duration) {
	h.N++
	h.Max = max(h.Max, d)
	h.counts[bucket(d)]++
}

// Merge adds all of o.
func (h *Histogram) Merge(o *Histogram) {
	h.N += o.N
	h.Max = max(h.Max, o.Max)
	for i, c := range o.counts {
		h.counts[i] += c
	}
}

// Quantile returns a duration that at most a share of 1-q exceeds, an eighth
// too large at most; 0 when nothing was counted.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.N == 0 {
		return 0
	}
	want, seen := uint64(q*float64(h.N)), uint64(0)
	for i, c := range h.counts {
		seen += uint64(c)
		if seen > want || seen == h.N {
			return min(bucketTop(i), h.Max)
		}
	}
	return h.Max
}

// Stall is octets that came late: the time from the moment they were due to be
// sent to the moment the other end had verified them.
type Stall struct {
	Flow   uint32
	Of     Kind
	Way    Direction
	During Label
	When   time.Time
	Took   time.Duration
}

// stalls is what one loop measured. Only the loop touches it.
type stalls struct {
	by    [labels]Histogram
	worst [labels][]Stall // the longest, longest first
}

// worstKept is how many of the longest stalls of each label are remembered.
const worstKept = 5

func (s *stalls) add(x Stall) {
	s.by[x.During].Add(x.Took)
	w := s.worst[x.During]
	if len(w) == worstKept && w[worstKept-1].Took >= x.Took {
		return
	}
	i, _ := slices.BinarySearchFunc(w, x, func(a, b Stall) int { return int(b.Took - a.Took) })
	w = slices.Insert(w, i, x)
	s.worst[x.During] = w[:min(len(w), worstKept)]
}

func (s *stalls) merge(o *stalls) {
	for l := range s.by {
		s.by[l].Merge(&o.by[l])
		for _, x := range o.worst[l] {
			w := append(s.worst[l], x)
			slices.SortFunc(w, func(a, b Stall) int { return int(b.Took - a.Took) })
			s.worst[l] = w[:min(len(w), worstKept)]
		}
	}
}
