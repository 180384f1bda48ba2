package demo

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// histogram counts durations in buckets an eighth of their size or finer. The
// zero value is empty; any goroutine may use it.
type histogram struct {
	buckets [64 * parts]atomic.Uint64
	longest atomic.Int64
}

// parts is how many buckets there are between one power of two and the next.
const parts = 8

func (h *histogram) add(d time.Duration) {
	n := uint64(max(d, parts))
	// The three bits below the highest one choose the part.
	top := bits.Len64(n) - 1
	h.buckets[top*parts+int(n>>(top-3)&(parts-1))].Add(1)
	for {
		was := h.longest.Load()
		if int64(d) <= was || h.longest.CompareAndSwap(was, int64(d)) {
			return
		}
	}
}

// merge adds what o has counted and empties o.
func (h *histogram) merge(o *histogram) {
	for i := range o.buckets {
		if n := o.buckets[i].Swap(0); n > 0 {
			h.buckets[i].Add(n)
		}
	}
	h.longest.Store(max(h.longest.Load(), o.longest.Swap(0)))
}

// count is how many durations there are.
func (h *histogram) count() (n uint64) {
	for i := range h.buckets {
		n += h.buckets[i].Load()
	}
	return n
}

// quantile gives an upper bound of the q-th part of all, 0 if there is none.
func (h *histogram) quantile(q float64) time.Duration {
	rank, seen := q*float64(h.count()), uint64(0)
	for i := range h.buckets {
		n := h.buckets[i].Load()
		if seen += n; n > 0 && float64(seen) >= rank {
			top, part := i/parts, i%parts
			bound := time.Duration(parts+part+1) << top / parts
			return min(bound, time.Duration(h.longest.Load()))
		}
	}
	return 0
}
