package journal

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

func checkDelta(t *testing.T, base, next []byte) []byte {
	t.Helper()
	d := delta(nil, base, next)
	got, err := patch(base, d)
	if err != nil || !bytes.Equal(got, next) {
		t.Fatalf("base %q, next %q: difference %q makes %q, %v", base, next, d, got, err)
	}
	return d
}

// A difference is as long as what changed, wherever that is and whatever moved.
func TestDelta(t *testing.T) {
	services := func(change func(i int) string) []byte {
		var b bytes.Buffer
		for i := range 1000 {
			b.WriteString(change(i))
		}
		return b.Bytes()
	}
	one := func(i, weight int) string {
		return fmt.Sprintf("  svc-%d:\n    balance: least\n    limits: { queue: 100 }\n    endpoints:\n      - { name: a, address: \"10.1.%d.%d:80\", weight: %d }\n      - { name: b, address: \"10.2.%d.%d:80\" }\n",
			i, i/250, i%250, weight, i/250, i%250)
	}
	base := services(func(i int) string { return one(i, 1) })
	tests := map[string]struct {
		next []byte
		most int // octets
	}{
		"nothing":     {base, 20},
		"five":        {services(func(i int) string { return one(i, 1+(i+77)%200/199) }), 600},
		"one is gone": {services(func(i int) string { return map[bool]string{true: one(i, 1)}[i != 500] }), 40},
		"a hundred more in the middle": {services(func(i int) string {
			s := one(i, 1)
			for k := range 100 {
				if i == 400 {
					s += one(2000+k, 1)
				}
			}
			return s
		}), 100*len(one(2000, 1)) + 200},
		"halves change places": {append(bytes.Clone(base[len(base)/2:]), base[:len(base)/2]...), 400},
		"all":                  {bytes.Repeat([]byte("other\n"), 1000), 6100},
		"empty":                {nil, 10},
	}
	for name, c := range tests {
		d := checkDelta(t, base, c.next)
		t.Logf("%s: %d octets of %d", name, len(d), len(c.next))
		if len(d) > c.most {
			t.Errorf("%s: %d octets, more than %d", name, len(d), c.most)
		}
		checkDelta(t, c.next, base)
	}
}

// Random edits of lines, also of texts whose lines are all alike.
func TestDeltaRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	line := func() string {
		return [...]string{"a\n", "b\n", "\n", "cc", "a long line of a file\n", "b"}[rng.IntN(6)]
	}
	for range 3000 {
		var base, next []byte
		for range rng.IntN(60) {
			s := line()
			base = append(base, s...)
			switch rng.IntN(12) {
			case 0:
			case 1:
				next = append(next, line()...)
				fallthrough
			default:
				next = append(next, s...)
			}
		}
		checkDelta(t, base, next)
	}
}

// FuzzDelta: patch undoes delta, and whatever patch reads, it makes no more than
// it may.
func FuzzDelta(f *testing.F) {
	f.Add([]byte("a\nb\nc\nd\n"), []byte("a\nx\nc\nd"))
	f.Add([]byte("\x05\x00\x00\x05"), []byte("\xff\xff\xff\xff\x0f\x00"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		checkDelta(t, a, b)
		if s, err := patch(a, b); err == nil && len(s) > EntryMax {
			t.Errorf("%d octets", len(s))
		}
	})
}

// BenchmarkDelta is what a commit costs the writer: 1,000 services, 5 changed.
func BenchmarkDelta(b *testing.B) {
	base := text(0, 1000)
	next := bytes.Clone(base)
	for _, i := range []int{10, 250, 500, 700, 990} {
		next = bytes.Replace(next, fmt.Appendf(nil, "  service-%d:\n    balance: least", i), fmt.Appendf(nil, "  service-%d:\n    balance: p2c", i), 1)
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(base)))
	var d []byte
	for b.Loop() {
		d = delta(d[:0], base, next)
	}
	b.ReportMetric(float64(len(d)), "octets")
}

// BenchmarkReplay is what Open reads at most before it has a state.
func BenchmarkReplay(b *testing.B) {
	all := appendRecord(nil, 1, 0, beginRecord(1, segment{}))
	var group []waiter
	for g := range uint64(segmentEntries) {
		group = append(group, waiter{Entry: Entry{Generation: g + 1, State: text(g, 1000)}})
	}
	all, _ = encode(all, 1, int64(len(all)), 0, group, nil, false)
	b.SetBytes(int64(len(all)))
	for b.Loop() {
		if c := readSegment(all, 1, true); c.bad != nil || len(c.places) != segmentEntries {
			b.Fatal(c.bad, len(c.places))
		}
	}
}
