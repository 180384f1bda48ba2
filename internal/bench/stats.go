package bench

import (
	"math/bits"
	"slices"
	"time"
)

// median returns the middle of values, or the mean of the two middle ones.
// It is 0 for none. The argument is left as it is.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	v := slices.Sorted(slices.Values(values))
	m := len(v) / 2
	if len(v)%2 == 1 {
		return v[m]
	}
	return (v[m-1] + v[m]) / 2
}

// subBits is the number of linear steps, as a power of two, in each octave of
// a histogram: 64 steps keep the error of a quantile below 1.6 %.
const subBits = 6

// histogram counts durations in log-linear buckets. The zero value is ready;
// it never allocates.
type histogram struct {
	buckets [(64 - subBits + 1) << subBits]uint64
	count   uint64
	max     time.Duration
}

// bucketOf is the index of the bucket for ns.
func bucketOf(ns uint64) int {
	if ns < 1<<subBits {
		return int(ns)
	}
	shift := bits.Len64(ns) - 1 - subBits
	return shift<<subBits + int(ns>>shift)
}

// bucketLow is the least duration that falls into bucket i.
func bucketLow(i int) uint64 {
	if i < 1<<(subBits+1) {
		return uint64(i)
	}
	shift := i>>subBits - 1
	return uint64(i&(1<<subBits-1)|1<<subBits) << shift
}

func (h *histogram) add(d time.Duration) {
	if d < 0 {
		d = 0
	}
	h.buckets[bucketOf(uint64(d))]++
	h.count++
	if d > h.max {
		h.max = d
	}
}

// quantile returns a duration that the share q of all counted ones does not
// exceed, within the width of a bucket; 0 when nothing was counted.
func (h *histogram) quantile(q float64) time.Duration {
	if h.count == 0 {
		return 0
	}
	rank := uint64(q * float64(h.count))
	if rank >= h.count {
		return h.max
	}
	var seen uint64
	for i, n := range h.buckets {
		seen += n
		if seen > rank {
			return min(time.Duration((bucketLow(i)+bucketLow(i+1))/2), h.max)
		}
	}
	return h.max
}
