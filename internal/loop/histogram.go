package loop

import (
	"math/bits"
	"time"
)

// Durations fall into buckets whose upper bounds are the preferred numbers R10
// of ISO 3: ten a decade, each about a quarter larger than the last, 1, 2, 2.5
// and 5 of every decade among them. The bounds are part of what is exported.
const (
	boundsMax = 62            // 50 us to 63 s
	Buckets   = boundsMax + 1 // of a Histogram; the last has what is longer
)

// Bounds are the upper bounds of all buckets but the last, which has none. A
// duration that is a bound belongs below it. Nobody may change them.
var Bounds = bounds()

func bounds() (all [boundsMax]time.Duration) {
	decade := [...]time.Duration{50, 63, 80, 100, 125, 160, 200, 250, 315, 400}
	unit := time.Microsecond
	for i := range all {
		all[i] = decade[i%len(decade)] * unit
		if i%len(decade) == len(decade)-1 {
			unit *= 10
		}
	}
	return all
}

// firstOf is the first bucket that a duration of so many bits may be in.
var firstOf = func() (first [65]uint8) {
	for n := range first {
		least := uint64(0)
		if n > 0 {
			least = 1 << (n - 1)
		}
		for first[n] < boundsMax && uint64(Bounds[first[n]]) < least {
			first[n]++
		}
	}
	return first
}()

// Histogram counts durations by bucket. The zero value is ready; two are merged
// by adding them.
type Histogram struct {
	Counts [Buckets]uint64
	Sum    time.Duration
}

// Note counts one duration; a negative one counts as 0.
func (h *Histogram) Note(d time.Duration) {
	d = max(0, d)
	i := int(firstOf[bits.Len64(uint64(d))])
	for i < boundsMax && Bounds[i] < d {
		i++
	}
	h.Counts[i]++
	h.Sum += d
}

// Add counts all that o has counted.
func (h *Histogram) Add(o *Histogram) {
	for i, n := range o.Counts {
		h.Counts[i] += n
	}
	h.Sum += o.Sum
}

// Count is how many durations were counted.
func (h *Histogram) Count() (n uint64) {
	for _, k := range h.Counts {
		n += k
	}
	return n
}

// Quantile estimates the duration below which the share q (0 to 1) of all lie,
// as if those of a bucket were spread evenly in it; 0 if there are none. Of
// what is longer than the last bound that bound is given.
func (h *Histogram) Quantile(q float64) time.Duration {
	left := q * float64(h.Count())
	lower := time.Duration(0)
	for i, bound := range Bounds {
		n := float64(h.Counts[i])
		if n > 0 && left <= n {
			return lower + time.Duration(float64(bound-lower)*max(0, left)/n)
		}
		left -= n
		lower = bound
	}
	if h.Count() == 0 {
		return 0
	}
	return lower
}
