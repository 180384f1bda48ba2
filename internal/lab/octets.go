package lab

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// Direction says which way octets travel.
type Direction uint8

const (
	// Up is from the client to the server.
	Up Direction = iota
	// Down is from the server to the client.
	Down
)

func (d Direction) String() string {
	if d == Up {
		return "up"
	}
	return "down"
}

// golden is 2^64 divided by the golden ratio, the increment of splitmix64:
// odd, so k*golden meets every value once.
const golden = 0x9E3779B97F4A7C15

// mix is the finalizer of splitmix64. Every input bit reaches every output
// bit, so a word of one stream says nothing about a word of another.
func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
	z = (z ^ z>>27) * 0x94D049BB133111EB
	return z ^ z>>31
}

// Stream is the endless sequence of octets of one flow in one direction.
// Octet i is a function of (seed, flow, direction, i) alone: both ends know
// it without talking, at any offset. The zero value is a stream too, though
// no flow has it.
type Stream struct{ key uint64 }

// NewStream returns the stream of a flow's direction.
func NewStream(seed uint64, flow uint32, d Direction) Stream {
	return Stream{key: mix(mix(seed+golden) + (uint64(flow)*2+uint64(d)+1)*golden)}
}

func (s Stream) word(k uint64) uint64 { return mix(s.key + k*golden) }

// Fill writes the octets [off, off+len(b)) of the stream into b.
func (s Stream) Fill(b []byte, off uint64) {
	var w [8]byte
	if r := off % 8; r != 0 && len(b) > 0 {
		binary.LittleEndian.PutUint64(w[:], s.word(off/8))
		n := copy(b, w[r:])
		b, off = b[n:], off+uint64(n)
	}
	k := off / 8
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, s.word(k))
		b, k = b[8:], k+1
	}
	if len(b) > 0 {
		binary.LittleEndian.PutUint64(w[:], s.word(k))
		copy(b, w[:])
	}
}

// Match returns how many leading octets of b are those of the stream from
// off on: len(b) if all are.
func (s Stream) Match(b []byte, off uint64) int {
	var w [8]byte
	n := 0
	if r := off % 8; r != 0 {
		binary.LittleEndian.PutUint64(w[:], s.word(off/8))
		for _, want := range w[r:] {
			if n == len(b) {
				return n
			}
			if b[n] != want {
				return n
			}
			n++
		}
	}
	k := (off + uint64(n)) / 8
	for len(b)-n >= 8 {
		if d := binary.LittleEndian.Uint64(b[n:]) ^ s.word(k); d != 0 {
			return n + bits.TrailingZeros64(d)/8
		}
		n, k = n+8, k+1
	}
	if n < len(b) {
		binary.LittleEndian.PutUint64(w[:], s.word(k))
		for i := 0; n < len(b) && b[n] == w[i]; i++ {
			n++
		}
	}
	return n
}

// Verifier takes the octets of one stream in pieces of any size and says at
// which offset the first wrong one stands. The zero value with a Stream set
// is ready.
type Verifier struct {
	Stream Stream
	Off    uint64 // octets taken, all of them right
}

// Feed takes b. After a Wrong the verifier must not be used again.
func (v *Verifier) Feed(b []byte) *Wrong {
	n := v.Stream.Match(b, v.Off)
	v.Off += uint64(n)
	if n == len(b) {
		return nil
	}
	return diagnose(v.Stream, b[n:], v.Off)
}

// Wrong tells what stands at an offset instead of the right octet.
type Wrong struct {
	Off  uint64
	What string // "lost", "doubled", "foreign" or "changed"
	N    uint64 // octets lost or doubled
	Len  int    // octets at hand when it was found
}

func (w *Wrong) Error() string {
	if w.What == "lost" || w.What == "doubled" {
		return fmt.Sprintf("%d octets %s at offset %d", w.N, w.What, w.Off)
	}
	return fmt.Sprintf("%s octets at offset %d", w.What, w.Off)
}

// diagnoseReach bounds the search for where wrong octets belong. A balancer
// holds at most a few hundred KiB of a flow, so what it lost or doubled is
// within reach.
const diagnoseReach = 1 << 20

// sampleOctets is how many octets must agree before a place counts as
// found: by chance, 2^-64 a try.
const sampleOctets = 8

// diagnose says what happened to the octets b, which should stand at off and
// whose first is wrong. It costs a few milliseconds, once per broken stream.
func diagnose(s Stream, b []byte, off uint64) *Wrong {
	w := &Wrong{Off: off, What: "changed", Len: len(b)}
	if len(b) < sampleOctets {
		return w
	}
	// One octet changed in an otherwise right stream.
	if len(b) > sampleOctets && s.Match(b[1:1+sampleOctets], off+1) == sampleOctets {
		return w
	}
	from := uint64(0)
	if off > diagnoseReach {
		from = off - diagnoseReach
	}
	near := make([]byte, off-from+diagnoseReach)
	s.Fill(near, from)
	if i := index(near, b[:sampleOctets]); i >= 0 {
		if at := from + uint64(i); at > off {
			w.What, w.N = "lost", at-off
		} else {
			w.What, w.N = "doubled", off-at
		}
		return w
	}
	if len(b) > 4*sampleOctets && s.Match(b[3*sampleOctets:4*sampleOctets], off+3*sampleOctets) == sampleOctets {
		return w // a few octets changed, the stream goes on behind them
	}
	w.What = "foreign"
	return w
}

// index is bytes.Index, but it searches for the place nearest to the end
// first: a lost octet is likelier than one doubled from far back.
func index(b, sample []byte) int {
	first := binary.LittleEndian.Uint64(sample)
	for i := len(b) - len(sample); i >= 0; i-- {
		if binary.LittleEndian.Uint64(b[i:]) == first {
			return i
		}
	}
	return -1
}
