package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/holdfast-lb/holdfast/internal/planted"
)

// A journal is a chain of files, the segments. Each begins with a record of kind
// segment: the form's version, its own number, the number of the segment before,
// and how much of that one counts. Then come entries, of which the first with a
// state has all of it. A segment gets its name when all that it begins with is
// durable, so one with a name is never torn at its beginning.
const (
	segmentSuffix = ".journal"
	tempSuffix    = ".tmp"
	formVersion   = 1
)

func segmentName(n uint64) string { return fmt.Sprintf("%010d%s", n, segmentSuffix) }

func segmentNumber(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(digits) != 10 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil
}

// segment is one file of the chain.
type segment struct {
	number uint64
	size   int64 // that counts
}

// place is where an entry is on disk.
type place struct {
	generation uint64
	segment    uint64
	offset     int64
	length     int64
	bare       bool
}

// contents is what a segment has.
type contents struct {
	before segment // the one that this one follows
	places []place
	last   Entry // with a state
	any    bool
	good   int64 // octets that can be read
	sure   int64 // of them, that the last record says were durable before it
	bad    error // what is at good; nil: the end
	known  int64 // what records at and after good say was durable
	ended  bool  // the last record says that nothing follows
}

func beginRecord(number uint64, before segment) record {
	r := record{kind: kindSegment}
	r.rest = binary.AppendUvarint(r.rest, formVersion)
	r.rest = binary.AppendUvarint(r.rest, number)
	r.rest = binary.AppendUvarint(r.rest, before.number)
	r.rest = binary.AppendUvarint(r.rest, uint64(before.size))
	return r
}

// errNewer: a later release wrote it.
var errNewer = errors.New("a newer release wrote it")

// readSegment reads what the octets of a segment say, as far as they can be
// read. It does not judge. Without states it makes none: the last entry is unknown
// then, and that differences follow from each other is not seen.
func readSegment(all []byte, number uint64, states bool) contents {
	var c contents
	var before []byte // the state
	for c.good < int64(len(all)) {
		r, length, err := readRecord(all[c.good:], number, c.good)
		if err == nil {
			switch {
			case c.good == 0:
				err = c.begin(r, number)
			case r.kind == kindEnd: // noted below
			case r.kind == kindSegment || len(c.places) > 0 && r.generation <= c.places[len(c.places)-1].generation:
				err = errBase
			case r.kind == kindBare:
				c.places = append(c.places, place{r.generation, number, c.good, length, true})
			default:
				var s []byte
				if states {
					s, err = r.state(before, c.any)
				}
				if err == nil {
					before = s
					c.last, c.any = Entry{r.generation, r.meta, s}, true
					c.places = append(c.places, place{r.generation, number, c.good, length, false})
				}
			}
		}
		if err != nil {
			c.bad = err
			break
		}
		c.good += length
		c.sure = r.known
		c.ended = r.kind == kindEnd
	}
	// What has no state counts only with the one that follows it in its group.
	for n := len(c.places); n > 0 && c.places[n-1].bare; n = len(c.places) {
		c.good = c.places[n-1].offset
		c.places = c.places[:n-1]
		if c.bad == nil {
			c.bad = errShort
		}
	}
	c.ended = c.ended && c.bad == nil
	if c.bad != nil && !planted.Bug(68) {
		c.known = knownAfter(all, number, c.good)
	}
	return c
}

// begin reads the first record of a segment.
func (c *contents) begin(r record, number uint64) error {
	version, b, ok1 := uvarint(r.rest)
	own, b, ok2 := uvarint(b)
	before, b, ok3 := uvarint(b)
	size, _, ok4 := uvarint(b)
	switch {
	case r.kind != kindSegment || !ok1:
		return errForm
	case version > formVersion:
		return errNewer
	case !ok2 || !ok3 || !ok4 || own != number || before >= number && before != 0 || size > 1<<62:
		return errForm
	}
	c.before = segment{before, int64(size)}
	return nil
}
