// Package journal keeps generations of the desired state on disk, so that the
// next process begins where this one was, whatever ended it: kill -9, a loss of
// power, a full disk. Each entry is a whole state; what is written is its
// difference from the one before.
//
// A [Journal] owns its directory, which one process at a time holds by a lock.
// Appending never waits for the disk: one goroutine writes all that waits by one
// write and one fsync. What is durable is told apart from what was appended, and
// a later success never hides that an earlier write failed.
//
// The layers: record.go is the form of a record; segment.go reads one file of
// records, and tells a torn tail from damage; log.go writes, one step for each
// group; this file is the shell with the goroutine. Tests drive the log by its
// steps, on a disk that loses power.
package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// Entry is one generation. Who appends it or reads it does not change it later.
type Entry struct {
	Generation uint64
	Meta       []byte // what the history shows
	State      []byte // all of the desired state
}

// Header is what a list shows of an entry.
type Header struct {
	Generation uint64
	Meta       []byte
	Durable    bool
	// Bare: its state was not kept, since too much waited for a disk that failed;
	// At refuses it.
	Bare bool
}

// Options say where a journal lies and how much it keeps.
type Options struct {
	Dir string // made with mode 0700 if it does not exist
	FS  FS     // nil: the directory of that name
	// Keep is how many entries remain readable; 0 is KeepDefault.
	Keep int
	// SegmentMax is how many octets a file may have before another one is begun; 0
	// is SegmentMaxDefault.
	SegmentMax int64
}

// Bounds of a journal whose options leave them open.
const (
	KeepDefault       = 1000
	SegmentMaxDefault = 8 << 20
)

// Bounds of what waits while the disk fails. Beyond them the older states go,
// and then the older headers: the newest state is what matters.
const (
	waitingMax      = 64       // states
	waitingBytesMax = 32 << 20 // octets of them
	headersMax      = 1000
)

// EntryMax is how many octets meta and state of an entry may have together.
const EntryMax = 64 << 20

// How long the journal waits until it tries a failing disk again, if nothing
// is appended before.
const (
	retryFirst = 100 * time.Millisecond
	retryMax   = time.Second
)

// ErrLocked: another process has the journal. The error that wraps it names it.
var ErrLocked = errors.New("in use by another process")

// ErrNotKept: there is no such generation, or none any more.
var ErrNotKept = errors.New("not in the journal")

// ErrClosed: the journal is closed.
var ErrClosed = errors.New("the journal is closed")

// Damaged is what Open refuses: what was durable cannot be read, so any state
// that came out might be an older one.
type Damaged struct {
	File   string
	Offset int64
	Why    string
}

func (d *Damaged) Error() string {
	return fmt.Sprintf("journal: %s is damaged at offset %d: %s; move the file away to begin without it", d.File, d.Offset, d.Why)
}

// Status is how a journal fares.
type Status struct {
	Appended uint64 // the last generation that was handed over
	Durable  uint64 // the last one of which the disk has said that it has it
	Waiting  int    // entries between them
	Err      error  // why the last write failed; nil: it did not
	Failures uint64 // writes that failed since Open
	Bytes    int64  // of all files
	Segments int
	Entries  int // that can be read
	Syncs    uint64
	// Quantiles of the last 512 writes with their fsync; 0 before the first one.
	SyncP50, SyncP99 time.Duration
	// Ended: whoever had the journal before closed it with nothing left to write. Else
	// there may have been later generations, which others have seen.
	Ended bool
	// Cut says what Open found unfinished at the end and cut off; "" is nothing.
	Cut string
	// Lost names older parts of the history that cannot be read. The state itself
	// does not depend on them.
	Lost []string
}

// waiter is an entry that is not durable yet.
type waiter struct {
	Entry
	bare bool
	p    *Pending
}

// Journal is an open journal. Its methods may be called from any goroutine.
type Journal struct {
	log  *log // the writer's alone, after Open
	lock io.Closer

	mu       sync.Mutex // guards all below
	last     Entry
	any      bool // there is a last one
	waiting  []waiter
	bytes    int // of the states that wait
	index    []place
	segments []segment
	durable  uint64
	err      error
	failures uint64
	syncs    uint64
	took     [512]time.Duration // a ring, and its quantiles
	p50, p99 time.Duration
	cut      string
	ended    bool
	lost     []string
	closed   bool

	wake chan struct{}
	stop chan struct{}
	done chan struct{}
}

// Open locks the directory, reads what is there, cuts off what a crash left
// unfinished at its end, and starts the writer. It refuses what is damaged, as
// *Damaged, and what another process has, as ErrLocked.
func Open(o Options) (*Journal, error) {
	j, err := open(o)
	if err != nil {
		return nil, err
	}
	go j.run()
	return j, nil
}

// open is Open without the writer's goroutine.
func open(o Options) (*Journal, error) {
	if o.Keep <= 0 {
		o.Keep = KeepDefault
	}
	if o.SegmentMax <= 0 {
		o.SegmentMax = SegmentMaxDefault
	}
	if o.FS == nil {
		d, err := openDisk(o.Dir)
		if err != nil {
			return nil, err
		}
		o.FS = d
	}
	lock, err := o.FS.Lock()
	if err != nil {
		return nil, fmt.Errorf("journal: %s: %w", o.Dir, err)
	}
	l := &log{fs: o.FS, dir: o.Dir, keep: o.Keep, segmentMax: o.SegmentMax}
	r, err := l.recover()
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	j := &Journal{
		log: l, lock: lock,
		last: r.last, any: r.any, index: r.index, segments: r.segments, cut: r.cut, ended: r.ended, lost: r.lost,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	switch {
	case r.unsure != nil:
		// It can be read but maybe not after a loss of power: it is written again.
		j.err, j.failures = r.unsure, 1
		j.waiting = []waiter{{Entry: r.last, p: newPending()}}
		j.bytes = len(r.last.State)
		j.wake <- struct{}{}
	case r.any:
		j.durable = r.last.Generation
	}
	return j, nil
}

// Last is the newest entry: at first what Open found, then what was appended.
func (j *Journal) Last() (Entry, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.last, j.any
}

// Append hands e over. Its generation is greater than that of the one before.
// The disk is not waited for: the Pending tells when e is durable.
func (j *Journal) Append(e Entry) *Pending {
	p := newPending()
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.closed:
		p.finish(ErrClosed)
		return p
	case j.any && e.Generation <= j.last.Generation || e.Generation == 0:
		p.finish(fmt.Errorf("journal: generation %d cannot follow %d", e.Generation, j.last.Generation))
		return p
	case len(e.Meta)+len(e.State) > EntryMax:
		p.finish(fmt.Errorf("journal: generation %d has %d octets, at most %d fit", e.Generation, len(e.Meta)+len(e.State), EntryMax))
		return p
	}
	j.last, j.any = e, true
	j.waiting = append(j.waiting, waiter{Entry: e, p: p})
	j.bytes += len(e.State)
	j.bound()
	select {
	case j.wake <- struct{}{}:
	default:
	}
	return p
}

// bound lets go of what is too much to wait with: never the newest.
func (j *Journal) bound() {
	states := 0
	for i := range j.waiting {
		if !j.waiting[i].bare {
			states++
		}
	}
	for i := range j.waiting[:len(j.waiting)-1] {
		if states <= waitingMax && j.bytes <= waitingBytesMax {
			break
		}
		if w := &j.waiting[i]; !w.bare {
			j.bytes -= len(w.State)
			w.State, w.bare = nil, true
			states--
		}
	}
	// The Pending of a header that goes is told when a later one is durable, so it
	// must not go with it: it failed, for only a failing disk makes so many wait.
	if n := len(j.waiting) - headersMax; n > 0 {
		for _, w := range j.waiting[:n] {
			j.bytes -= len(w.State)
			w.p.finish(fmt.Errorf("journal: generation %d: too many wait for the disk: %w", w.Generation, errOr(j.err)))
		}
		j.waiting = slices.Delete(j.waiting, 0, n)
	}
}

func errOr(err error) error {
	if err == nil {
		return errors.New("it is slow")
	}
	return err
}

// run is the writer's goroutine.
func (j *Journal) run() {
	defer close(j.done)
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	retry.Stop()
	pause := retryFirst
	for {
		select {
		case <-j.stop:
			return
		case <-j.wake:
		case <-retry.C:
		}
		if j.step() {
			pause = retryFirst
			continue
		}
		retry.Reset(pause)
		pause = min(2*pause, retryMax)
	}
}

// step writes all that waits as one group and tells what became of it. It is
// called by one goroutine at a time.
func (j *Journal) step() bool {
	j.mu.Lock()
	group := slices.Clone(j.waiting)
	j.mu.Unlock()
	if len(group) == 0 {
		return true
	}
	began := time.Now()
	places, err := j.log.commit(group)
	took := time.Since(began)
	if gone := j.settle(group, places, err, took); len(gone) > 0 {
		j.log.remove(gone)
	}
	return err == nil
}

// settle tells what became of a group, and returns the segments that are not
// needed any more.
func (j *Journal) settle(group []waiter, places []place, err error, took time.Duration) (gone []segment) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil {
		j.err = err
		j.failures++
		for _, w := range group {
			w.p.finish(err) // it stays among those that wait
		}
		return nil
	}
	j.err = nil
	j.took[j.syncs%uint64(len(j.took))] = took
	j.syncs++
	all := slices.Clone(j.took[:min(j.syncs, uint64(len(j.took)))])
	slices.Sort(all)
	j.p50, j.p99 = all[(len(all)-1)/2], all[(len(all)-1)*99/100]
	j.durable = group[len(group)-1].Generation
	// Others may have come meanwhile, and some of the group may have lost their
	// state or gone: all up to the newest of the group are on disk.
	rest := j.waiting[:0]
	for _, w := range j.waiting {
		if w.Generation > j.durable {
			rest = append(rest, w)
		} else {
			j.bytes -= len(w.State)
		}
	}
	clear(j.waiting[len(rest):])
	j.waiting = rest
	j.index, gone = j.log.prune(append(without(j.index, places), places...))
	j.segments = slices.Clone(j.log.segments)
	for _, w := range group {
		w.p.finish(nil)
	}
	return gone
}

// without is index without what places say again: entries that were written a
// second time, since the first time is not trusted.
func without(index, places []place) []place {
	n := len(index)
	for n > 0 && index[n-1].generation >= places[0].generation {
		n--
	}
	return index[:n]
}

// List shows up to max entries, the newest first; max 0 is all.
func (j *Journal) List(max int) []Header {
	j.mu.Lock()
	var all []Header
	for i := len(j.waiting) - 1; i >= 0; i-- {
		w := j.waiting[i]
		all = append(all, Header{Generation: w.Generation, Meta: w.Meta, Bare: w.bare})
	}
	var places []place
	for i := len(j.index) - 1; i >= 0; i-- {
		// What waits may be on disk already, not known to be durable.
		if len(all) == 0 || j.index[i].generation < all[len(all)-1].Generation {
			places = append(places, j.index[i])
		}
	}
	j.mu.Unlock()
	if max > 0 {
		all = all[:min(len(all), max)]
		places = places[:min(len(places), max-len(all))]
	}
	return append(all, j.log.headers(places)...)
}

// At is the entry of a generation, or ErrNotKept.
func (j *Journal) At(generation uint64) (Entry, error) {
	j.mu.Lock()
	for _, w := range j.waiting {
		if w.Generation == generation && !w.bare {
			j.mu.Unlock()
			return w.Entry, nil
		}
	}
	i, ok := slices.BinarySearchFunc(j.index, generation, func(p place, g uint64) int {
		return compare(p.generation, g)
	})
	var p place
	if ok {
		p = j.index[i]
	}
	j.mu.Unlock()
	if !ok || p.bare {
		return Entry{}, fmt.Errorf("journal: generation %d: %w", generation, ErrNotKept)
	}
	return j.log.at(p)
}

func compare(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// State tells how the journal fares.
func (j *Journal) State() Status {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := Status{
		Durable: j.durable, Waiting: len(j.waiting), Err: j.err, Failures: j.failures,
		Segments: len(j.segments), Entries: len(j.index), Syncs: j.syncs, SyncP50: j.p50, SyncP99: j.p99, Ended: j.ended, Cut: j.cut, Lost: slices.Clone(j.lost),
	}
	if j.any {
		s.Appended = j.last.Generation
	}
	for _, x := range j.segments {
		s.Bytes += x.size
	}
	return s
}

// Close writes what waits, ends the writer and lets go of the directory. Its
// error says that the last generations are not durable. Close may be called once.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return ErrClosed
	}
	j.closed = true
	j.mu.Unlock()
	close(j.stop)
	<-j.done
	return j.end()
}

// end is what is left of Close once nobody else writes.
func (j *Journal) end() error {
	var err error
	all := j.step()
	if !all {
		s := j.State()
		err = fmt.Errorf("journal: generations after %d are not durable: %w", s.Durable, s.Err)
	}
	j.log.close(all)
	return errors.Join(err, j.lock.Close())
}

// Pending is an entry on its way to the disk.
type Pending struct {
	began time.Time
	once  sync.Once
	done  chan struct{}
	err   error
	took  time.Duration
}

func newPending() *Pending {
	return &Pending{began: time.Now(), done: make(chan struct{})}
}

func (p *Pending) finish(err error) {
	p.once.Do(func() {
		p.err, p.took = err, time.Since(p.began)
		close(p.done)
	})
}

// Done is closed when the entry is durable or its first try has failed. The
// journal goes on trying: State tells when it, or a later one, is durable.
func (p *Pending) Done() <-chan struct{} { return p.done }

// Wait waits until Done, and returns Err, or the error of ctx.
func (p *Pending) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Err is why it is not durable; nil before Done, and if it is.
func (p *Pending) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Took is from Append until Done; 0 before.
func (p *Pending) Took() time.Duration {
	select {
	case <-p.done:
		return p.took
	default:
		return 0
	}
}
