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

// anchor is how many lines in a row must agree to begin a copy; where nothing
// better is near, a short one will do, though lines like "endpoints:" agree by
// chance. nearLines is how far around a place of disagreement is looked at first:
// most changes are there, and a map of all lines costs a hundred times more.
// Beyond farOctets a short agreement that is near is preferred.
const (
	anchor      = 8
	anchorShort = 3
	nearLines   = 64
	farOctets   = 64 << 10
)

// delta appends to dst what patch needs to make next of base.
func delta(dst, base, next []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(next)))
	far := farther{base: base, next: next}
	b, n, from := 0, 0, 0 // from: what of next is not said yet
	for {
		b, n = lineStart(base, b), lineStart(next, n)
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
		db, dn, ok := near(base[b:], next[n:], anchor)
		if !ok {
			fb, fn, there := far.find(b, n)
			if there && fn-n <= farOctets {
				b, n = fb, fn
				continue
			}
			if db, dn, ok = near(base[b:], next[n:], anchorShort); !ok {
				if !there {
					break
				}
				b, n = fb, fn
				continue
			}
		}
		b, n = b+db, n+dn
	}
	dst = binary.AppendUvarint(dst, uint64(len(next)-from))
	dst = append(dst, next[from:]...)
	dst = binary.AppendUvarint(dst, 0)
	return binary.AppendUvarint(dst, 0)
}

// lineStart is i, or the next beginning of a line.
func lineStart(text []byte, i int) int {
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

// near looks for so many lines of both that agree within a short distance, the
// nearest first.
func near(base, next []byte, anchor int) (db, dn int, ok bool) {
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

// farther finds lines of next anywhere in base. It is made when it is first
// asked, and goes through next once.
type farther struct {
	base, next []byte
	seed       maphash.Seed
	at         map[uint64][]int // hash of lines of base -> their offsets, ascending
	lines      []int            // of next
	seen       int              // lines before it have been looked for
}

// find is the next place of next, from n on, that base has as well: there at or
// after b if possible.
func (f *farther) find(b, n int) (int, int, bool) {
	if f.at == nil {
		f.seed, f.at = maphash.MakeSeed(), map[uint64][]int{}
		all := lines(f.base, len(f.base))
		for i := 0; i+anchor < len(all); i++ {
			h := maphash.Bytes(f.seed, f.base[all[i]:all[i+anchor]])
			f.at[h] = append(f.at[h], all[i])
		}
		f.lines = lines(f.next, len(f.next))
	}
	for ; f.seen+anchor < len(f.lines); f.seen++ {
		at := f.lines[f.seen]
		if at < n {
			continue
		}
		text := f.next[at:f.lines[f.seen+anchor]]
		offsets := f.at[maphash.Bytes(f.seed, text)]
		if len(offsets) == 0 {
			continue
		}
		k, _ := slices.BinarySearch(offsets, b)
		if from := offsets[min(k, len(offsets)-1)]; bytes.HasPrefix(f.base[from:], text) {
			return from, at, true
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
