package demo

import (
	"bytes"
	"encoding/binary"
)

// chunk is how many octets are made, sent or looked at in one go.
const chunk = 16 << 10

// stream is one direction of a flow: octets that follow from a seed, so that
// either end knows each of them by its offset. One goroutine owns it.
type stream struct {
	seed   uint64
	offset uint64 // of the next octet
	want   []byte // for check
}

// word gives octets 8*i to 8*i+7 (the finalizer of splitmix64: a permutation,
// so no two words of a stream are equal, and a shift of it is noticed).
func (s *stream) word(i uint64) uint64 {
	z := s.seed + i*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// next fills b with the next octets of the stream.
func (s *stream) next(b []byte) {
	var w [8]byte
	for len(b) > 0 {
		binary.LittleEndian.PutUint64(w[:], s.word(s.offset/8))
		n := copy(b, w[s.offset%8:])
		b, s.offset = b[n:], s.offset+uint64(n)
	}
}

// check takes b as the next octets of the stream and counts the wrong ones.
func (s *stream) check(b []byte) (wrong int) {
	if cap(s.want) < len(b) {
		s.want = make([]byte, max(len(b), 1<<10))
	}
	want := s.want[:len(b)]
	s.next(want)
	if bytes.Equal(b, want) {
		return 0
	}
	for i := range b {
		if b[i] != want[i] {
			wrong++
		}
	}
	return wrong
}
