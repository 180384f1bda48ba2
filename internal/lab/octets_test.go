package lab

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// TestFillAnyCut proves that octet i does not depend on how the stream is
// cut: filling in pieces gives what filling at once gives.
func TestFillAnyCut(t *testing.T) {
	s := NewStream(7, 42, Down)
	want := make([]byte, 1000)
	s.Fill(want, 0)
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		got := make([]byte, len(want))
		for off := 0; off < len(got); {
			n := min(1+r.IntN(40), len(got)-off)
			s.Fill(got[off:off+n], uint64(off))
			off += n
		}
		if !bytes.Equal(got, want) {
			t.Fatal("pieces differ from the whole")
		}
	}
}

// TestStreamsDiffer proves that no two streams of a run agree anywhere near,
// so that an octet of another flow is never taken for a right one.
func TestStreamsDiffer(t *testing.T) {
	seen := map[uint64]string{}
	for flow := uint32(1); flow < 500; flow++ {
		for _, d := range []Direction{Up, Down} {
			s := NewStream(3, flow, d)
			for k := uint64(0); k < 20; k++ {
				w := s.word(k)
				if at, ok := seen[w]; ok {
					t.Fatalf("word %d of flow %d %v is also %s", k, flow, d, at)
				}
				seen[w] = "of another place"
			}
		}
	}
	if NewStream(1, 5, Up) == NewStream(2, 5, Up) {
		t.Fatal("the seed does not matter")
	}
}

// TestVerifierFindsFaults proves that the verifier can fail: each kind of
// fault at many offsets, fed in pieces of many sizes, is found at its offset.
func TestVerifierFindsFaults(t *testing.T) {
	s := NewStream(11, 1, Up)
	right := make([]byte, 4096)
	s.Fill(right, 0)
	other := make([]byte, 4096)
	NewStream(11, 2, Up).Fill(other, 0)

	cut := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	faults := []struct {
		name string
		make func(at int) []byte
		what string
		n    uint64
	}{
		{"one octet lost", func(at int) []byte { return cut(right[:at], right[at+1:]) }, "lost", 1},
		{"100 octets lost", func(at int) []byte { return cut(right[:at], right[at+100:]) }, "lost", 100},
		{"one octet doubled", func(at int) []byte { return cut(right[:at], right[at-1:]) }, "doubled", 1},
		{"64 octets doubled", func(at int) []byte { return cut(right[:at], right[at-64:]) }, "doubled", 64},
		{"two blocks swapped", func(at int) []byte {
			return cut(right[:at], right[at+64:at+128], right[at:at+64], right[at+128:])
		}, "lost", 64},
		{"one bit changed", func(at int) []byte {
			b := bytes.Clone(right)
			b[at] ^= 4
			return b
		}, "changed", 0},
		{"octets of another flow", func(at int) []byte { return cut(right[:at], other[at:]) }, "foreign", 0},
		{"zeros", func(at int) []byte { return cut(right[:at], make([]byte, 500)) }, "foreign", 0},
	}
	for _, f := range faults {
		for _, at := range []int{64, 65, 71, 72, 1000, 1003, 2047, 2048} {
			for _, piece := range []int{1, 7, 8, 61, 1000, 1 << 20} {
				v := Verifier{Stream: s}
				var wrong *Wrong
				for b := f.make(at); len(b) > 0 && wrong == nil; {
					n := min(piece, len(b))
					wrong = v.Feed(b[:n])
					b = b[n:]
				}
				if wrong == nil {
					t.Fatalf("%s at %d in pieces of %d: not found", f.name, at, piece)
				}
				// By chance the octet that took the place of the lost one
				// may be equal to it; then the fault shows one later.
				if wrong.Off < uint64(at) || wrong.Off > uint64(at)+2 {
					t.Fatalf("%s at %d in pieces of %d: found at %d", f.name, at, piece, wrong.Off)
				}
				if piece >= 61 && wrong.Len >= 40 && wrong.Off == uint64(at) && (wrong.What != f.what || wrong.N != f.n) {
					t.Errorf("%s at %d in pieces of %d: %v", f.name, at, piece, wrong)
				}
			}
		}
	}
}

func TestVerifierTakesWhatIsRight(t *testing.T) {
	s := NewStream(11, 1, Up)
	b := make([]byte, 100000)
	s.Fill(b, 0)
	r := rand.New(rand.NewPCG(3, 4))
	v := Verifier{Stream: s}
	for len(b) > 0 {
		n := min(r.IntN(3000), len(b))
		if w := v.Feed(b[:n]); w != nil {
			t.Fatal(w)
		}
		b = b[n:]
	}
	if v.Off != 100000 {
		t.Fatalf("offset %d", v.Off)
	}
}

func BenchmarkMatch(b *testing.B) {
	s := NewStream(1, 1, Up)
	buf := make([]byte, 64<<10)
	s.Fill(buf, 0)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if s.Match(buf, 0) != len(buf) {
			b.Fatal("differs")
		}
	}
}
