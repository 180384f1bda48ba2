package journal

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/holdfast-lb/holdfast/internal/planted"
)

// segmentEntries is after how many entries another segment is begun: what Open
// and At read to make a state is bounded by it.
const segmentEntries = 256

// log writes the segments. It has one caller at a time and no goroutine.
type log struct {
	fs         FS
	dir        string
	keep       int
	segmentMax int64

	segments []segment // oldest first; the last one is written to
	file     File      // of the last one; nil: the next group begins another one
	entries  int       // in it
	number   uint64    // the highest that a segment may have had
	state    []byte    // of the last entry in it
	any      bool
}

// recovered is what a log has found.
type recovered struct {
	last     Entry
	any      bool
	index    []place
	segments []segment
	cut      string
	lost     []string
	unsure   error // the disk did not take what was read as durable
	ended    bool  // who wrote it had nothing left to write
}

// recover reads what there is and makes it durable.
func (l *log) recover() (recovered, error) {
	var r recovered
	names, err := l.fs.List()
	if err != nil {
		return r, fmt.Errorf("journal: %w", err)
	}
	var numbers []uint64
	for _, name := range names {
		if n, ok := segmentNumber(name); ok {
			numbers = append(numbers, n)
		} else if strings.HasSuffix(name, tempSuffix) {
			_ = l.fs.Remove(name) // it never counted; if it stays it is in nobody's way
		}
	}
	if len(numbers) == 0 {
		return r, nil
	}
	slices.Sort(numbers)
	l.number = numbers[len(numbers)-1]
	if err := l.recoverLast(&r); err != nil {
		return r, err
	}
	l.recoverOlder(&r, numbers[:len(numbers)-1])
	l.segments = slices.Clone(r.segments)
	return r, nil
}

// recoverLast reads the newest segment, in which the state is. What is not whole
// at its end and was never promised goes.
func (l *log) recoverLast(r *recovered) error {
	name := segmentName(l.number)
	all, err := l.read(name)
	if err != nil {
		return fmt.Errorf("journal: %s: %w", name, err)
	}
	c := readSegment(all, l.number, true)
	if c.bad != nil && (!c.any || c.known > c.good) {
		return &Damaged{File: l.dir + "/" + name, Offset: c.good, Why: c.bad.Error()}
	}
	if !c.any {
		return &Damaged{File: l.dir + "/" + name, Offset: c.good, Why: errShort.Error()}
	}
	if c.bad != nil {
		r.cut = fmt.Sprintf("%s: %d octets from offset %d on: %v", name, int64(len(all))-c.good, c.good, c.bad)
	}
	if planted.Bug(65) {
		c.bad, c.good = nil, int64(len(all))
	}
	r.last, r.any, r.index, r.ended = c.last, true, c.places, c.ended
	// The state is a part of what was read, of which nothing else is to stay.
	r.last.Meta, r.last.State = slices.Clone(r.last.Meta), slices.Clone(r.last.State)
	r.segments = []segment{c.before, {l.number, c.good}}
	l.state, l.any, l.entries = r.last.State, true, len(c.places)
	if l.file, err = l.settle(name, all, c); err != nil {
		r.unsure = err
	}
	return nil
}

// settle makes what was read of the newest segment durable. A process that was
// killed leaves writes that only the page cache has; and if an fsync had failed
// before, they count as clean there, and another fsync would do nothing. So what
// is not known to be on disk is written once more.
func (l *log) settle(name string, all []byte, c contents) (File, error) {
	f, err := l.fs.Open(name)
	if err != nil {
		return nil, err
	}
	if c.bad != nil {
		// Durable before anything is written in its place: else a loss of power might
		// join the new with the rest of the old.
		err = f.Truncate(c.good)
	}
	if sure := min(c.sure, c.good); err == nil && sure < c.good {
		_, err = f.WriteAt(all[sure:c.good], sure)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = l.fs.Sync()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// recoverOlder follows the chain back. What is not readable there is missing
// from the history and nothing else. What is not in the chain goes.
func (l *log) recoverOlder(r *recovered, numbers []uint64) {
	chain := []segment{r.segments[1]}
	next := r.segments[0]
	for i := len(numbers) - 1; i >= 0; i-- {
		name := segmentName(numbers[i])
		if numbers[i] != next.number || len(r.index) >= l.keep {
			_ = l.fs.Remove(name) // a later start tries again
			continue
		}
		all, err := l.read(name)
		if err != nil {
			r.lost = append(r.lost, fmt.Sprintf("%s: %v", name, err))
			next = segment{}
			continue
		}
		c := readSegment(all[:min(int64(len(all)), next.size)], next.number, false)
		if c.good < next.size {
			why := c.bad
			if why == nil {
				why = errShort
			}
			r.lost = append(r.lost, fmt.Sprintf("%s: from offset %d on: %v", name, c.good, why))
		}
		// Those that were written once more in a later segment count there.
		for len(c.places) > 0 && len(r.index) > 0 && c.places[len(c.places)-1].generation >= r.index[0].generation {
			c.places = c.places[:len(c.places)-1]
		}
		r.index = append(c.places, r.index...)
		chain = append(chain, segment{next.number, c.good})
		next = c.before
	}
	slices.Reverse(chain)
	r.segments = chain
}

func (l *log) read(name string) ([]byte, error) {
	f, err := l.fs.Open(name)
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	all := make([]byte, size)
	_, err = f.ReadAt(all, 0)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return all, f.Close()
}

// commit makes a group durable, whole, or says why it is not. The last entry of
// the group has a state.
func (l *log) commit(group []waiter) ([]place, error) {
	if l.file != nil && l.entries < segmentEntries && l.tail().size < l.segmentMax {
		return l.extend(group)
	}
	places, err := l.begin(group)
	if err != nil && l.file != nil {
		// No room for another file: the old one may still have some.
		return l.extend(group)
	}
	return places, err
}

func (l *log) tail() *segment { return &l.segments[len(l.segments)-1] }

// encode adds the records of a group, which begin at offset of a segment, to b.
func encode(b []byte, number uint64, offset, known int64, group []waiter, state []byte, any bool) ([]byte, []place) {
	start := offset - int64(len(b))
	places := make([]place, 0, len(group))
	for _, w := range group {
		at := start + int64(len(b))
		r := record{kind: kindBare, known: known, generation: w.Generation, meta: w.Meta}
		if !w.bare {
			r = stateRecord(w.Entry, known, state, any)
			state, any = w.State, true
		}
		b = appendRecord(b, number, at, r)
		places = append(places, place{w.Generation, number, at, start + int64(len(b)) - at, w.bare})
	}
	return b, places
}

// extend writes a group behind what the last segment has.
func (l *log) extend(group []waiter) ([]place, error) {
	t := l.tail()
	b, places := encode(nil, t.number, t.size, t.size, group, l.state, l.any)
	if _, err := l.file.WriteAt(b, t.size); err != nil {
		if planted.Bug(70) {
			l.wrote(group)
		}
		if planted.Bug(67) {
			t.size += int64(len(b)) / 2
			return nil, err
		}
		// Half a record may be there. The next group takes its place.
		if cut := l.file.Truncate(t.size); cut != nil {
			l.distrust()
		}
		return nil, err
	}
	if !planted.Bug(61) {
		err := l.file.Sync()
		if err != nil && planted.Bug(66) {
			err = l.file.Sync()
		}
		if err != nil {
			// The kernel may have marked as clean what never came to the disk, and a
			// second fsync would then succeed: this file is not written to again.
			l.distrust()
			return nil, err
		}
	}
	t.size += int64(len(b))
	l.wrote(group)
	return places, nil
}

func (l *log) wrote(group []waiter) {
	l.state, l.any = group[len(group)-1].State, true
	l.entries += len(group)
}

// distrust ends the last segment: what is durable of it counts, and the next
// group begins another one with a whole state.
func (l *log) distrust() {
	if l.file != nil {
		_ = l.file.Close() // what counts of it was synced before
		l.file = nil
	}
}

// begin makes a segment that begins with the group.
func (l *log) begin(group []waiter) ([]place, error) {
	number := l.number + 1
	name, temp := segmentName(number), segmentName(number)+tempSuffix
	var before segment
	if len(l.segments) > 0 {
		before = *l.tail()
	}
	b := appendRecord(nil, number, 0, beginRecord(number, before))
	b, places := encode(b, number, int64(len(b)), 0, group, nil, false)
	f, err := l.fs.Create(temp)
	if err != nil {
		return nil, err
	}
	if _, err = f.WriteAt(b, 0); err == nil && !planted.Bug(64) {
		err = f.Sync()
	}
	if err != nil {
		err = errors.Join(err, f.Close())
		_ = l.fs.Remove(temp) // the next start does it, too
		return nil, err
	}
	// From here on the name may be on disk, whatever is said, and then it is the
	// newest. So nothing is written to the one before it any more.
	l.number = number
	if planted.Bug(69) {
		_ = l.fs.Remove(segmentName(before.number))
	}
	if err = l.fs.Rename(temp, name); err == nil && !planted.Bug(62) {
		err = l.fs.Sync()
	}
	l.distrust()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	l.file, l.entries = f, 0
	l.segments = append(l.segments, segment{number, int64(len(b))})
	l.wrote(group)
	return places, nil
}

// prune says what of index is kept, and which segments have none of it.
func (l *log) prune(index []place) (kept []place, gone []segment) {
	if n := len(index) - l.keep; n > 0 {
		index = slices.Clone(index[n:])
	}
	for len(l.segments) > 1 && (len(index) == 0 || l.segments[0].number < index[0].segment) {
		gone = append(gone, l.segments[0])
		l.segments = slices.Clone(l.segments[1:])
	}
	return index, gone
}

// remove removes the files of segments that nothing is kept of. A crash may
// bring some back; they are not in the chain then, and go at the next start.
func (l *log) remove(gone []segment) {
	for _, s := range gone {
		_ = l.fs.Remove(segmentName(s.number))
	}
}

// close says that nothing follows, so that damage to the last records is told
// from a torn tail, unless something could not be written, and lets go of the file.
func (l *log) close(all bool) {
	if l.file == nil {
		return
	}
	if !all {
		l.distrust()
		return
	}
	t := l.tail()
	b := appendRecord(nil, t.number, t.size, record{kind: kindEnd, known: t.size})
	if _, err := l.file.WriteAt(b, t.size); err != nil {
		_ = l.file.Truncate(t.size) // half of it is a torn tail, which the next start cuts
	}
	_ = l.file.Close()
	l.file = nil
}

// record reads one record. It may be called by any goroutine.
func (l *log) record(f File, p place) (record, error) {
	b := make([]byte, p.length)
	if _, err := f.ReadAt(b, p.offset); err != nil {
		return record{}, err
	}
	r, _, err := readRecord(b, p.segment, p.offset)
	return r, err
}

// headers reads the headers of places, which are in descending order. Those
// that cannot be read are left out.
func (l *log) headers(places []place) []Header {
	var all []Header
	var f File
	var of uint64
	for _, p := range places {
		if f == nil || of != p.segment {
			if f != nil {
				_ = f.Close()
			}
			var err error
			if f, err = l.fs.Open(segmentName(p.segment)); err != nil {
				f = nil
				continue
			}
			of = p.segment
		}
		if r, err := l.record(f, p); err == nil {
			all = append(all, Header{Generation: p.generation, Meta: r.meta, Durable: true, Bare: p.bare})
		}
	}
	if f != nil {
		_ = f.Close()
	}
	return all
}

// at reads the entry at p. It may be called by any goroutine.
func (l *log) at(p place) (Entry, error) {
	name := segmentName(p.segment)
	all, err := l.read(name)
	if err != nil {
		return Entry{}, fmt.Errorf("journal: generation %d: %w: %v", p.generation, ErrNotKept, err)
	}
	if int64(len(all)) < p.offset+p.length {
		return Entry{}, &Damaged{File: l.dir + "/" + name, Offset: int64(len(all)), Why: errShort.Error()}
	}
	c := readSegment(all[:p.offset+p.length], p.segment, true)
	if c.bad != nil || c.last.Generation != p.generation {
		return Entry{}, &Damaged{File: l.dir + "/" + name, Offset: c.good, Why: fmt.Sprint(c.bad)}
	}
	return Entry{p.generation, slices.Clone(c.last.Meta), slices.Clone(c.last.State)}, nil
}
