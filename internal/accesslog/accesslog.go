// Package accesslog writes a line for each exchange of HTTP and each other flow
// that was served: who asked for what, who answered, how long each part took,
// and why it ended. Each loop has a [Sink], which copies the record into a chunk
// and does nothing else; one goroutine makes lines of the chunks and writes
// them. A place that takes nothing (a full disk, a pipe that nobody reads) costs
// lines, which are counted, and never a loop's time.
//
// What clients sent is in the lines, cut and escaped (format.go): method,
// target with its query, host and agent. Fields that hold secrets by their
// nature, Authorization and cookies, never come here.
package accesslog

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
)

// closeTime bounds how long Close waits for the writer. What is not written by
// then is dropped: the end of a process does not wait for a reader of its log.
const closeTime = time.Second

// Log is a node's access log. It may be without a place to write to: then
// nothing is noted.
type Log struct {
	log   *slog.Logger
	sinks []*Sink
	full  chan parcel // as long as there can be chunks
	on    atomic.Bool
	// failed are records that could not be written.
	failed atomic.Uint64
	lines  atomic.Uint64

	// mu guards writer.
	mu     sync.Mutex
	writer *writer
}

// New makes the log of a node with so many loops, without a place.
func New(loops int, log *slog.Logger) *Log {
	l := &Log{log: log, full: make(chan parcel, loops*chunksMax)}
	for range loops {
		l.sinks = append(l.sinks, &Sink{log: l, free: make(chan *chunk, chunksMax)})
	}
	return l
}

// Sink is that of one loop.
func (l *Log) Sink(loop int) *Sink { return l.sinks[loop] }

// Dropped is how many records were not written: for want of room, or because
// writing failed.
func (l *Log) Dropped() uint64 {
	n := l.failed.Load()
	for _, s := range l.sinks {
		n += s.dropped.Load()
	}
	return n
}

// Lines is how many records were written.
func (l *Log) Lines() uint64 { return l.lines.Load() }

// Place is an open place to write to. It is opened before it is set, so that a
// configuration whose log cannot be written changes nothing.
type Place struct {
	format config.LogFormat
	to     dest
}

// Open opens the place that a names; nil is no log. Lines of syslog begin with
// tag. A place that is not set is
// to be closed.
func Open(a *config.AccessLog, tag string) (*Place, error) {
	if a == nil {
		return nil, nil //nolint:nilnil // no log is no error
	}
	to, err := openDest(a.To, tag)
	if err != nil {
		return nil, fmt.Errorf("accesslog: %s: %w", a.To, err)
	}
	return &Place{a.Format, to}, nil
}

// Close gives up a place that was not set.
func (p *Place) Close() {
	if p != nil {
		p.to.close()
	}
}

// Set has all that is noted from now on written to p; nil ends the log. It
// returns at once: a writer that is stuck in its old place is left there.
func (l *Log) Set(p *Place) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.writer
	l.writer = nil
	if p != nil {
		l.writer = &writer{log: l, place: *p, again: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
		go l.writer.run() // ends with the next Set, or with Close
	}
	l.on.Store(p != nil)
	if old != nil {
		old.rest.Store(p == nil)
		close(old.quit)
		old.place.to.interrupt(closeTime)
	}
}

// Reopen opens the file anew, after somebody has renamed it. It returns at once.
func (l *Log) Reopen() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.writer != nil {
		select {
		case l.writer.again <- struct{}{}:
		default: // it is asked already
		}
	}
}

// Close writes what has been handed over and ends the log; it waits a second at
// most. No sink may be in use any more.
func (l *Log) Close() {
	l.mu.Lock()
	w := l.writer
	l.mu.Unlock()
	l.Set(nil)
	if w != nil {
		select {
		case <-w.done:
		case <-time.After(closeTime + closeTime/4):
			l.log.Warn("the access log takes nothing; what was to be written is lost", "to", w.place.to.name())
		}
	}
}
