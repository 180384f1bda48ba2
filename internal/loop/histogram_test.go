package loop

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// A duration is in the bucket of the first bound that is not below it.
func TestBuckets(t *testing.T) {
	if Bounds[0] != 50*time.Microsecond || Bounds[boundsMax-1] != 63*time.Second || !slices.IsSorted(Bounds[:]) {
		t.Fatalf("the bounds are %v", Bounds)
	}
	check := func(d time.Duration) {
		t.Helper()
		var h Histogram
		h.Note(d)
		want, _ := slices.BinarySearch(Bounds[:], d)
		if h.Counts[want] != 1 || h.Count() != 1 || h.Sum != max(0, d) {
			t.Errorf("%v: %v, want one in bucket %d", d, h, want)
		}
	}
	for _, b := range Bounds {
		check(b - 1)
		check(b)
		check(b + 1)
	}
	for _, d := range []time.Duration{0, 1, time.Hour, 1<<63 - 1} {
		check(d)
	}
	r := rand.New(rand.NewPCG(1, 1))
	for range 10000 {
		check(time.Duration(r.Uint64() >> (1 + r.IntN(63))))
	}
	var h Histogram
	if h.Note(-time.Second); h.Counts[0] != 1 || h.Sum != 0 {
		t.Errorf("a negative duration: %v", h)
	}
}

// Merged histograms are that of all, and a quantile is no further off than its
// bucket is wide.
func TestQuantiles(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	var one, two, both Histogram
	var all []time.Duration
	for i := range 20000 {
		d := time.Duration(float64(100*time.Microsecond) * (1 + 400*r.Float64()*r.Float64()))
		all = append(all, d)
		both.Note(d)
		if i%3 == 0 {
			one.Note(d)
		} else {
			two.Note(d)
		}
	}
	if one.Add(&two); one != both {
		t.Errorf("merged: %v, want %v", one, both)
	}
	slices.Sort(all)
	for _, q := range []float64{0.01, 0.5, 0.9, 0.99, 0.999} {
		want, got := all[int(q*float64(len(all)))], both.Quantile(q)
		if ratio := float64(got) / float64(want); ratio < 0.75 || ratio > 1.3 {
			t.Errorf("quantile %v: %v, want about %v", q, got, want)
		}
	}
	var none Histogram
	if q := none.Quantile(0.5); q != 0 {
		t.Errorf("of nothing: %v", q)
	}
	none.Note(time.Hour)
	if q := none.Quantile(0.5); q != 63*time.Second {
		t.Errorf("of what is longer than all: %v", q)
	}
}
