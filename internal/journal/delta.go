package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"slices"
)

// A difference is the length of the state it makes, and pairs: how much to
// insert, that, where to copy from in the state before, how much. Texts differ
// by lines, so places where both agree are looked for at the beginnings of lines.
//
// A bad choice makes a difference longer, never wrong.

// anchor is how many lines in a row must agree to begin a copy, and nearLines
// how far around a place of disagreement is looked at first: most changes are
// there, and a map of all lines costs a thousand times more.
const (
	anchor    = 3
	nearLines = 64
)

// delta appends to dst what patch needs to make next of base.
func delta(dst, base, next []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(next)))
	var far *lineIndex
	b, n, from := 0, 0, 0 // from: what of next is not said yet
	for {
		b, n = lineStarts(base, b), lineStarts(next, n)
		same := common(base[b:], next[n:])
		if same < len(next)-n {
			same = bytes.LastIndexByte(next[n:n+same], '\n') + 1 // whole lines
		}
		if same > 0 {
			dst = binary.AppendUvarint(dst, uint64(n-from))
			dst = append(dst, next[from:n]...)
			dst = binary.AppendUvarint(dst, uint64(b))
			dst = binary.AppendUvarint(dst, uint64(same))
			b, n = b+same, n+same
			from = n
		}
		if n == len(next) {
			break
		}
		db, dn, ok := near(base[b:], next[n:])
		if ok {
			b, n = b+db, n+dn
			continue
		}
		if far == nil {
			far = indexLines(base)
		}
		b, n, ok = far.find(base, next, b, n)
		if !ok {
			break
		}
	}
	dst = binary.AppendUvarint(dst, uint64(len(next)-from))
	dst = append(dst, next[from:]...)
	dst = binary.AppendUvarint(dst, 0)
	return binary.AppendUvarint(dst, 0)
}

// lineStarts is i, or the next beginning of a line.
func lineStarts(text []byte, i int) int {
	if i == 0 || i >= len(text) || text[i-1] == '\n' {
		return min(i, len(text))
	}
	return i + lineEnd(text[i:])
}

// lineEnd is the length of the first line of text with its end.
func lineEnd(text []byte) int {
	if i := bytes.IndexByte(text, '\n'); i >= 0 {
		return i + 1
	}
	return len(text)
}

// common is how many octets a and b begin with alike.
func common(a, b []byte) int {
	const block = 4096
	i, n := 0, min(len(a), len(b))
	for i+block <= n && bytes.Equal(a[i:i+block], b[i:i+block]) {
		i += block
	}
	for i < n && a[i] == b[i] {
		i++
	}
	return i
}

// lines are the offsets of the first max lines of text, and where they end.
func lines(text []byte, max int) []int {
	at := []int{0}
	for i := 0; i < len(text) && len(at) <= max; {
		i += lineEnd(text[i:])
		at = append(at, i)
	}
	return at
}

// near looks for lines of both that agree within a short distance, the nearest
// first.
func near(base, next []byte) (db, dn int, ok bool) {
	b, n := lines(base, nearLines+anchor), lines(next, nearLines+anchor)
	for sum := 1; sum <= len(b)+len(n); sum++ {
		for j := max(0, sum-(len(b)-1-anchor)); j <= sum && j < len(n)-anchor; j++ {
			if i := sum - j; bytes.Equal(base[b[i]:b[i+anchor]], next[n[j]:n[j+anchor]]) {
				return b[i], n[j], true
			}
		}
	}
	return 0, 0, false
}

// lineIndex finds where in base some lines stand.
type lineIndex struct {
	seed maphash.Seed
	at   map[uint64][]int // hash of anchor lines -> offsets, ascending
}

func indexLines(base []byte) *lineIndex {
	x := &lineIndex{seed: maphash.MakeSeed(), at: map[uint64][]int{}}
	all := lines(base, len(base))
	for i := 0; i+anchor < len(all); i++ {
		h := maphash.Bytes(x.seed, base[all[i]:all[i+anchor]])
		x.at[h] = append(x.at[h], all[i])
	}
	return x
}

// find is the next place of next, from n on, that base has as well: there after
// b if possible.
func (x *lineIndex) find(base, next []byte, b, n int) (int, int, bool) {
	all := lines(next[n:], len(next))
	for i := 0; i+anchor < len(all); i++ {
		text := next[n+all[i] : n+all[i+anchor]]
		offsets := x.at[maphash.Bytes(x.seed, text)]
		if len(offsets) == 0 {
			continue
		}
		k, _ := slices.BinarySearch(offsets, b)
		at := offsets[min(k, len(offsets)-1)]
		if bytes.HasPrefix(base[at:], text) {
			return at, n + all[i], true
		}
	}
	return 0, 0, false
}

var errDelta = errors.New("its difference does not fit")

// patch makes the state of which d is the difference from base.
func patch(base, d []byte) ([]byte, error) {
	length, d, ok := uvarint(d)
	if !ok || length > EntryMax {
		return nil, errDelta
	}
	next := make([]byte, 0, length)
	for len(d) > 0 {
		var insert, from, count uint64
		if insert, d, ok = uvarint(d); !ok || insert > uint64(len(d)) || insert > length-uint64(len(next)) {
			return nil, errDelta
		}
		next, d = append(next, d[:insert]...), d[insert:]
		if from, d, ok = uvarint(d); !ok || from > uint64(len(base)) {
			return nil, errDelta
		}
		if count, d, ok = uvarint(d); !ok || count > uint64(len(base))-from || count > length-uint64(len(next)) {
			return nil, errDelta
		}
		next = append(next, base[from:from+count]...)
	}
	if uint64(len(next)) != length {
		return nil, errDelta
	}
	return next, nil
}
