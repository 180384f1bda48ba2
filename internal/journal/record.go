package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"

	"github.com/holdfast-lb/holdfast/internal/planted"
)

// A record, all integers little-endian or varints:
//
//	mark    4  "\x8bHFj", by which records are found again behind damage
//	length  4  of the body
//	crc     4  CRC-32C of: number of the segment, offset in it, length, body
//	body       kind, known, generation, length of meta, meta, what the kind has
//
// The crc is bound to the place, so that a record that a disk brings back from
// elsewhere is none. known is how much of the file was durable when the record
// was made: by it a torn tail is told from damage. A bad record at or after
// every known that follows was never promised; one before it was.
//
// The form is append-only: a kind is never given another meaning.
const (
	recordMark   = "\x8bHFj"
	recordHeader = 12
)

type kind uint8

const (
	kindSegment  kind = 1 // the first of each file; see segment.go
	kindSnapshot kind = 2 // crc of the state, the state
	kindDelta    kind = 3 // crc of the state before, of the state, the difference
	kindBare     kind = 4 // meta alone
	kindEnd      kind = 5 // nothing more was to be written: all before is known
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// record is one of a segment. Its slices are parts of the segment's octets.
type record struct {
	kind       kind
	known      int64
	generation uint64
	meta       []byte
	rest       []byte
}

func recordSum(segment uint64, offset int64, length uint32, body []byte) uint32 {
	var place [20]byte
	binary.LittleEndian.PutUint64(place[0:], segment)
	binary.LittleEndian.PutUint64(place[8:], uint64(offset))
	binary.LittleEndian.PutUint32(place[16:], length)
	return crc32.Update(checksum(place[:]), castagnoli, body)
}

// appendRecord adds r, which will lie at offset of the segment, to b.
func appendRecord(b []byte, segment uint64, offset int64, r record) []byte {
	start := len(b)
	b = append(b, recordMark+"\x00\x00\x00\x00\x00\x00\x00\x00"...)
	b = append(b, byte(r.kind))
	b = binary.AppendUvarint(b, uint64(r.known))
	b = binary.AppendUvarint(b, r.generation)
	b = binary.AppendUvarint(b, uint64(len(r.meta)))
	b = append(b, r.meta...)
	b = append(b, r.rest...)
	body := b[start+recordHeader:]
	length := uint32(len(body))
	binary.LittleEndian.PutUint32(b[start+4:], length)
	binary.LittleEndian.PutUint32(b[start+8:], recordSum(segment, offset, length, body))
	return b
}

var (
	errShort = errors.New("it ends before its length")
	errMark  = errors.New("no record begins here")
	errCRC   = errors.New("its checksum is wrong")
	errForm  = errors.New("its contents cannot be read")
)

// readRecord reads the record that b begins with, which lies at offset of the
// segment, and tells how long it is.
func readRecord(b []byte, segment uint64, offset int64) (record, int64, error) {
	var r record
	if len(b) < recordHeader {
		return r, 0, errShort
	}
	if string(b[:4]) != recordMark {
		return r, 0, errMark
	}
	length := binary.LittleEndian.Uint32(b[4:])
	if int64(length) > int64(len(b)-recordHeader) {
		return r, 0, errShort
	}
	body := b[recordHeader : recordHeader+int64(length)]
	if recordSum(segment, offset, length, body) != binary.LittleEndian.Uint32(b[8:]) && !planted.Bug(63) {
		return r, 0, errCRC
	}
	if len(body) == 0 {
		return r, 0, errForm
	}
	r.kind = kind(body[0])
	body = body[1:]
	known, body, ok1 := uvarint(body)
	generation, body, ok2 := uvarint(body)
	metaLength, body, ok3 := uvarint(body)
	if !ok1 || !ok2 || !ok3 || metaLength > uint64(len(body)) || known > 1<<62 {
		return r, 0, errForm
	}
	r.known, r.generation = int64(known), generation
	r.meta, r.rest = body[:metaLength], body[metaLength:]
	return r, recordHeader + int64(length), nil
}

func uvarint(b []byte) (uint64, []byte, bool) {
	x, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, b, false
	}
	return x, b[n:], true
}

// knownAfter is the greatest known of all records that can be found from offset
// on, wherever they begin.
func knownAfter(all []byte, segment uint64, offset int64) int64 {
	var known int64
	for {
		i := bytes.Index(all[offset:], []byte(recordMark))
		if i < 0 {
			return known
		}
		offset += int64(i)
		r, length, err := readRecord(all[offset:], segment, offset)
		if err != nil {
			length = 1
		}
		known = max(known, r.known)
		offset += length
	}
}

// stateRecord is the record of e: its difference from the state before if there
// is one that helps, else all of it.
func stateRecord(e Entry, known int64, before []byte, any bool) record {
	r := record{kind: kindSnapshot, known: known, generation: e.Generation, meta: e.Meta}
	if any {
		if d := delta(nil, before, e.State); len(d) < len(e.State) {
			r.kind = kindDelta
			r.rest = binary.LittleEndian.AppendUint32(r.rest, checksum(before))
			r.rest = binary.LittleEndian.AppendUint32(r.rest, checksum(e.State))
			r.rest = append(r.rest, d...)
			return r
		}
	}
	r.rest = binary.LittleEndian.AppendUint32(nil, checksum(e.State))
	r.rest = append(r.rest, e.State...)
	return r
}

var errBase = errors.New("it does not follow from what is before it")

// state is what r makes of the state before.
func (r record) state(before []byte, any bool) ([]byte, error) {
	switch r.kind {
	case kindSnapshot:
		if len(r.rest) < 4 {
			return nil, errForm
		}
		s := r.rest[4:]
		if checksum(s) != binary.LittleEndian.Uint32(r.rest) && !planted.Bug(63) {
			return nil, errCRC
		}
		return s, nil
	case kindDelta:
		if len(r.rest) < 8 {
			return nil, errForm
		}
		// What is left of a group that was torn may be whole again behind another one
		// in its place.
		if !any || checksum(before) != binary.LittleEndian.Uint32(r.rest) {
			return nil, errBase
		}
		s, err := patch(before, r.rest[8:])
		if err != nil {
			return nil, err
		}
		if checksum(s) != binary.LittleEndian.Uint32(r.rest[4:]) && !planted.Bug(63) {
			return nil, errBase
		}
		return s, nil
	}
	return nil, errForm
}
