package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
)

// platter is a disk that loses power. What a process reads is what it wrote; on
// the platter is only what was synced, and of the rest whatever chance likes:
// sectors in any order, any of them cut at any octet, names or not.
type platter struct {
	rng   *rand.Rand
	names map[string]*inode // as a process sees them
	kept  map[string]*inode // as they are on disk
	moves []move            // of names, since the last Sync of the directory

	left    int   // calls until the power fails; negative: it does not
	room    int64 // octets that still fit; negative: any number
	bad     int   // so many of the next Syncs of files fail
	badDirs int   // and of the directory
	locked  bool
}

type inode struct {
	now   []byte // as a process sees it
	kept  []byte // as it is on disk
	dirty []write
}

type write struct {
	at   int64
	data []byte
	cut  bool // a truncation to at
}

type move struct {
	set, gone string
	to        *inode
}

func newPlatter(rng *rand.Rand) *platter {
	return &platter{rng: rng, names: map[string]*inode{}, kept: map[string]*inode{}, left: -1, room: -1}
}

// outage is what a call panics with when the power fails in it.
type outage struct{}

var (
	errNoSpace = errors.New("no space left on the disk")
	errIO      = errors.New("input/output error")
)

func (p *platter) call() {
	if p.left == 0 {
		panic(outage{})
	}
	p.left--
}

// apply does a write to octets. What lies between their end and it is zero.
func (w write) apply(b []byte) []byte {
	if w.cut {
		if w.at < int64(len(b)) {
			return b[:w.at]
		}
		return append(b, make([]byte, w.at-int64(len(b)))...)
	}
	if need := w.at + int64(len(w.data)); need > int64(len(b)) {
		b = append(b, make([]byte, need-int64(len(b)))...)
	}
	copy(b[w.at:], w.data)
	return b
}

// some is what chance leaves of the writes that were not synced.
func (p *platter) some(dirty []write) []write {
	var left []write
	odds := []float64{0, 0.2, 0.5, 0.9, 1}[p.rng.IntN(5)]
	const sector = 64 // small, so that records have several
	for _, w := range dirty {
		if w.cut {
			if p.rng.Float64() < odds {
				left = append(left, w)
			}
			continue
		}
		for i := int64(0); i < int64(len(w.data)); {
			n := min(sector-(w.at+i)%sector, int64(len(w.data))-i)
			if p.rng.Float64() < odds {
				part := w.data[i : i+n]
				if p.rng.IntN(8) == 0 { // torn
					part = part[:p.rng.Int64N(n+1)]
				}
				left = append(left, write{at: w.at + i, data: part})
			}
			i += n
		}
	}
	return left
}

// after is the disk that is there when the power comes back.
func (p *platter) after() *platter {
	q := newPlatter(p.rng)
	kept := maps.Clone(p.kept)
	odds := []float64{0, 0.5, 1}[p.rng.IntN(3)]
	for _, m := range p.moves {
		if p.rng.Float64() < odds {
			m.apply(kept)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(kept)) {
		b := slices.Clone(kept[name].kept)
		for _, w := range p.some(kept[name].dirty) {
			b = w.apply(b)
		}
		n := &inode{now: b, kept: slices.Clone(b)}
		q.names[name], q.kept[name] = n, n
	}
	return q
}

// killed is the disk after the process was killed: nothing is lost, nor synced.
func (p *platter) killed() {
	p.locked, p.left = false, -1
}

func (m move) apply(names map[string]*inode) {
	delete(names, m.gone)
	if m.to != nil {
		names[m.set] = m.to
	}
}

func (p *platter) rename(m move) {
	m.apply(p.names)
	p.moves = append(p.moves, m)
}

func (p *platter) Lock() (io.Closer, error) {
	if p.locked {
		return nil, ErrLocked
	}
	p.locked = true
	return unlock{p}, nil
}

type unlock struct{ p *platter }

func (u unlock) Close() error { u.p.locked = false; return nil }

func (p *platter) List() ([]string, error) {
	p.call()
	return slices.Sorted(maps.Keys(p.names)), nil
}

func (p *platter) Open(name string) (File, error) {
	p.call()
	n := p.names[name]
	if n == nil {
		return nil, fs.ErrNotExist
	}
	return handle{p, n}, nil
}

func (p *platter) Create(name string) (File, error) {
	p.call()
	if p.room == 0 {
		return nil, errNoSpace
	}
	n := &inode{}
	p.rename(move{set: name, to: n})
	return handle{p, n}, nil
}

func (p *platter) Rename(from, to string) error {
	p.call()
	n := p.names[from]
	if n == nil {
		return fs.ErrNotExist
	}
	p.rename(move{set: to, gone: from, to: n})
	return nil
}

func (p *platter) Remove(name string) error {
	p.call()
	n := p.names[name]
	if n == nil {
		return fs.ErrNotExist
	}
	if p.room >= 0 {
		p.room += int64(len(n.now))
	}
	p.rename(move{gone: name})
	return nil
}

func (p *platter) Sync() error {
	p.call()
	if p.badDirs > 0 {
		p.badDirs--
		return errIO
	}
	for _, m := range p.moves {
		m.apply(p.kept)
	}
	p.moves = nil
	return nil
}

type handle struct {
	p *platter
	n *inode
}

func (h handle) Close() error         { return nil }
func (h handle) Size() (int64, error) { h.p.call(); return int64(len(h.n.now)), nil }

func (h handle) ReadAt(b []byte, at int64) (int, error) {
	if at > int64(len(h.n.now)) {
		return 0, io.EOF
	}
	n := copy(b, h.n.now[at:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (h handle) write(w write) {
	h.n.now = w.apply(h.n.now)
	h.n.dirty = append(h.n.dirty, w)
}

func (h handle) WriteAt(b []byte, at int64) (int, error) {
	h.p.call()
	fits := int64(len(b))
	if grows := at + fits - int64(len(h.n.now)); h.p.room >= 0 && grows > 0 {
		if grows > h.p.room {
			fits -= grows - h.p.room
			grows = h.p.room
		}
		h.p.room -= grows
	}
	fits = max(fits, 0)
	if fits > 0 {
		h.write(write{at: at, data: slices.Clone(b[:fits])})
	}
	if fits < int64(len(b)) {
		return int(fits), errNoSpace
	}
	return len(b), nil
}

func (h handle) Truncate(size int64) error {
	h.p.call()
	if gone := int64(len(h.n.now)) - size; h.p.room >= 0 && gone > 0 {
		h.p.room += gone
	}
	h.write(write{at: size, cut: true})
	return nil
}

func (h handle) Sync() error {
	h.p.call()
	dirty := h.n.dirty
	h.n.dirty = nil
	var err error
	if h.p.bad > 0 {
		// As Linux does: some of it is not on disk, all of it counts as clean, and
		// the next fsync succeeds.
		h.p.bad--
		dirty = h.p.some(dirty)
		err = errIO
	}
	for _, w := range dirty {
		h.n.kept = w.apply(h.n.kept)
	}
	return err
}

// life is a history of processes that write a journal until the power fails,
// they are killed, or the disk does not do what it should; and what the journal
// may say at each start.
type life struct {
	rng   *rand.Rand
	disk  *platter
	all   []Entry // those that were appended, in order; a crash takes some of the last
	sure  uint64  // the last generation that was said to be durable
	next  uint64
	trace []string
	keep  int
	full  bool // a disk was full: what waits may have lost states
}

func (l *life) say(format string, args ...any) {
	l.trace = append(l.trace, fmt.Sprintf(format, args...))
}

// live goes through one history and tells what was wrong with it; "" is nothing.
func live(seed uint64) (wrong string, trace []string) {
	l := &life{rng: rand.New(rand.NewPCG(seed, 1)), next: 1, keep: 30}
	l.disk = newPlatter(l.rng)
	defer func() {
		if r := recover(); r != nil {
			wrong = fmt.Sprint("panic: ", r)
		}
		trace = l.trace
	}()
	for range 3 + l.rng.IntN(8) {
		if wrong = l.process(); wrong != "" {
			return wrong, nil
		}
	}
	return l.damage(), nil
}

// process is one, from Open to its end.
func (l *life) process() string {
	if l.rng.IntN(4) > 0 {
		l.disk.left = l.rng.IntN(60)
	}
	var j *Journal
	wrong, ended := "", true
	func() {
		defer func() {
			if r := recover(); r != nil {
				if _, ok := r.(outage); !ok {
					panic(r)
				}
			}
		}()
		j, wrong = l.open()
		if wrong == "" {
			wrong = l.write(j)
		}
		if wrong == "" && l.rng.IntN(3) == 0 {
			l.say("close")
			if err := j.end(); err == nil {
				l.sure = max(l.sure, j.State().Durable)
			}
		}
		ended = false
	}()
	if wrong != "" {
		return wrong
	}
	if ended || l.rng.IntN(2) == 0 {
		l.say("power fails at durable %d, appended %d", l.sure, l.next-1)
		l.disk = l.disk.after()
	} else {
		l.say("kill")
		l.disk.killed()
	}
	l.disk.room, l.disk.bad, l.disk.badDirs = -1, 0, 0
	return ""
}

func (l *life) open() (*Journal, string) {
	j, err := open(Options{FS: l.disk, Keep: l.keep, SegmentMax: 3 << 10})
	if err != nil {
		return nil, fmt.Sprintf("open: %v; durable is %d", err, l.sure)
	}
	last, any := j.Last()
	l.say("open: generation %d, cut %q", last.Generation, j.State().Cut)
	if !any {
		last.Generation = 0
	}
	if last.Generation < l.sure {
		return nil, fmt.Sprintf("generation %d after a start, %d was durable", last.Generation, l.sure)
	}
	if any {
		if wrong := l.is(last); wrong != "" {
			return nil, "after a start " + wrong
		}
	}
	// Those after it never were; their numbers are used again.
	for len(l.all) > 0 && l.all[len(l.all)-1].Generation > last.Generation {
		l.all = l.all[:len(l.all)-1]
	}
	s := j.State()
	if s.Durable > last.Generation || s.Err == nil && s.Durable != last.Generation {
		return nil, fmt.Sprintf("generation %d is read, %d is durable, error %v", last.Generation, s.Durable, s.Err)
	}
	l.sure, l.next = s.Durable, last.Generation+1
	return j, l.history(j)
}

// is compares an entry with what was appended.
func (l *life) is(e Entry) string {
	for _, a := range l.all {
		if a.Generation == e.Generation {
			if string(a.State) != string(e.State) || string(a.Meta) != string(e.Meta) {
				return fmt.Sprintf("generation %d is not what was appended: %q, not %q", e.Generation, head(e.State), head(a.State))
			}
			return ""
		}
	}
	return fmt.Sprintf("generation %d was never appended", e.Generation)
}

func head(b []byte) []byte { return b[:min(len(b), 60)] }

// history reads all that is kept.
func (l *life) history(j *Journal) string {
	if lost := j.State().Lost; lost != nil {
		return fmt.Sprintf("the history has lost %q", lost)
	}
	list := j.List(0)
	for _, h := range list {
		if h.Bare {
			if !l.full {
				return fmt.Sprintf("generation %d has no state", h.Generation)
			}
			continue
		}
		e, err := j.At(h.Generation)
		if err != nil {
			return fmt.Sprintf("history: %v", err)
		}
		if wrong := l.is(e); wrong != "" {
			return "in the history " + wrong
		}
	}
	// Nothing is missing between the first one that is kept and the last.
	if last, any := j.Last(); any {
		if len(list) == 0 || list[0].Generation != last.Generation || len(list) < min(l.keep, len(l.all)) {
			return fmt.Sprintf("the history has %d entries up to %d of %d", len(list), last.Generation, len(l.all))
		}
		for i := range list[1:] {
			if list[i+1].Generation >= list[i].Generation {
				return "the history is not in order"
			}
		}
	}
	return ""
}

// write appends groups while the disk has its troubles.
func (l *life) write(j *Journal) string {
	for range l.rng.IntN(25) {
		switch l.rng.IntN(14) {
		case 0:
			l.disk.room = l.rng.Int64N(1500)
			l.full = true
			l.say("%d octets are left", l.disk.room)
		case 1:
			l.disk.room = -1
		case 2:
			l.disk.bad = 1 + l.rng.IntN(2)
			l.say("fsync fails")
		case 3:
			l.disk.badDirs = 1
			l.say("fsync of the directory fails")
		}
		var group []*Pending
		many := 1 + l.rng.IntN(3)
		if l.rng.IntN(40) == 0 {
			many = waitingMax + 5 // too many to keep all states
			l.full = true
		}
		for range many {
			e := l.entry()
			l.all = append(l.all, e)
			l.next = e.Generation + 1
			group = append(group, j.Append(e))
		}
		ok := j.step()
		s := j.State()
		l.say("append up to %d: %v", l.next-1, s.Err)
		for _, p := range group {
			if ok != (p.Err() == nil) || p.Took() == 0 {
				return fmt.Sprintf("a step said %v, a Pending %v", ok, p.Err())
			}
		}
		if s.Durable < l.sure || s.Appended != l.next-1 || ok != (s.Durable == s.Appended) || ok != (s.Err == nil) {
			return fmt.Sprintf("a step said %v, state %+v", ok, s)
		}
		l.sure = s.Durable
	}
	return ""
}

// entry is the next: often its state differs little from the one before.
func (l *life) entry() Entry {
	g := l.next + l.rng.Uint64N(2)*l.rng.Uint64N(3) // numbers may be left out
	state := text(g, 6)
	switch l.rng.IntN(6) {
	case 0:
		state = text(l.rng.Uint64N(1000), 1+l.rng.IntN(12))
	case 1:
		if len(l.all) > 0 {
			state = l.all[len(l.all)-1].State // the same
		}
	}
	return Entry{Generation: g, Meta: fmt.Appendf(nil, "%d by %d", g, l.rng.Uint64()), State: state}
}

// damage changes an octet of the newest file, which is durable: no other state
// than the last may come of it.
func (l *life) damage() string {
	l.disk.left = -1
	j, wrong := l.open()
	if wrong != "" {
		return wrong
	}
	if err := j.end(); err != nil {
		return fmt.Sprintf("close: %v", err)
	}
	last, any := j.Last()
	if !any {
		return ""
	}
	name := segmentName(j.log.number)
	n := l.disk.names[name]
	at := l.rng.IntN(len(n.now))
	n.now[at] ^= 1 << l.rng.IntN(8)
	l.say("octet %d of %s is changed", at, name)
	j, err := open(Options{FS: l.disk, Keep: l.keep})
	if d := (*Damaged)(nil); errors.As(err, &d) {
		if d.Offset > int64(at) {
			return fmt.Sprintf("octet %d of %s was changed, and said is %v", at, name, err)
		}
		return ""
	} else if err != nil {
		return fmt.Sprintf("open: %v", err)
	}
	now, _ := j.Last()
	if now.Generation != last.Generation {
		return fmt.Sprintf("octet %d of %s was changed, and generation %d became %d", at, name, last.Generation, now.Generation)
	}
	if wrong := l.is(now); wrong != "" {
		return "after damage " + wrong
	}
	return ""
}
