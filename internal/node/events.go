package node

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"
)

// eventsMax is how many events a node keeps for those who watch: some minutes
// of ten changes a second.
const eventsMax = 4096

// watchersMax bounds those who watch at once.
const watchersMax = 64

// events is what happened last. A reader has no queue of its own, only a number:
// one that is slow misses what has left the ring, is told so, and holds nobody up.
type events struct {
	// mu guards what follows.
	mu       sync.Mutex
	ring     []Event       // the oldest first, once it is full from at on
	at       int           // the next to be written over
	last     uint64        // Seq of the latest
	more     chan struct{} // closed when there is another one
	watchers int
}

// note adds an event; Seq and At are given to it.
func (e *events) note(x Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last++
	x.Seq, x.At = e.last, time.Now()
	if len(e.ring) < eventsMax {
		e.ring = append(e.ring, x)
	} else {
		e.ring[e.at] = x
		e.at = (e.at + 1) % eventsMax
	}
	if e.more != nil {
		close(e.more)
		e.more = nil
	}
}

// after is the first event after seq, with the one before it if any were missed;
// nil and what to wait for if there is none yet. The caller holds mu.
func (e *events) after(seq uint64) (next *Event, missed uint64, wait chan struct{}) {
	if seq > e.last {
		seq = e.last // of a node that began anew
	}
	if seq == e.last {
		if e.more == nil {
			e.more = make(chan struct{})
		}
		return nil, 0, e.more
	}
	first := e.last - uint64(len(e.ring)) + 1
	if len(e.ring) == 0 {
		return nil, e.last - seq, nil
	}
	if seq+1 < first {
		return nil, first - 1 - seq, nil
	}
	x := e.ring[(e.at+int(seq+1-first))%len(e.ring)]
	return &x, 0, nil
}

// inherit goes on with the numbers of a predecessor.
func (e *events) inherit(last uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.ring) == 0 {
		e.last = max(e.last, last)
		return
	}
	// What has happened here meanwhile comes after it.
	if first := e.last - uint64(len(e.ring)) + 1; first <= last {
		by := last + 1 - first
		for i := range e.ring {
			e.ring[i].Seq += by
		}
		e.last += by
	}
}

// eventsPortable bounds the events that go along with an upgrade, in octets: whoever
// watches reads on from where he was, and is seldom far behind.
const eventsPortable = 256 << 10

// portable are the latest events, for a successor.
func (e *events) portable() json.RawMessage {
	e.mu.Lock()
	ring := append(slices.Clone(e.ring[e.at:]), e.ring[:e.at]...)
	e.mu.Unlock()
	size, from := 0, len(ring)
	for from > 0 && size < eventsPortable {
		from--
		x := &ring[from]
		size += 128 + len(x.Text) + len(x.Object)
		for name, value := range x.Fields {
			size += len(name) + len(value)
		}
	}
	text, err := json.Marshal(ring[from:])
	if err != nil { // words, numbers and times
		panic(err)
	}
	return text
}

// before puts the events of a predecessor before those of this process, which come
// after inherit. What is not one after the other is left out.
func (e *events) before(all []Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	own := append(slices.Clone(e.ring[e.at:]), e.ring[:e.at]...)
	next := e.last - uint64(len(own)) // the number that has to come next, from behind
	var older []Event
	for i := len(all) - 1; i >= 0 && len(older)+len(own) < eventsMax; i-- {
		if x := all[i]; x.Seq == next && next > 0 {
			older = append(older, x)
			next--
		}
	}
	slices.Reverse(older)
	e.ring, e.at = append(older, own...), 0
}

// Watcher reads events in order. One goroutine uses it.
type Watcher struct {
	n    *Node
	seq  uint64 // of the last one that was read
	over bool
}

// Watch gives a reader of the events after the one numbered from; 0 is those
// that are to come. Who has seen more than there are has seen those of a node
// that has begun anew since: all that are kept are new to it. It is closed by
// whoever asked for it.
func (n *Node) Watch(from uint64) (*Watcher, error) {
	e := &n.events
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.watchers >= watchersMax {
		return nil, fmt.Errorf("node: %d watch already, which is the most: %w", e.watchers, ErrBusy)
	}
	e.watchers++
	switch {
	case from == 0:
		from = e.last
	case from > e.last:
		from = e.last - uint64(len(e.ring))
	}
	return &Watcher{n: n, seq: from}, nil
}

// Next waits for the next event. After a gap it is one of kind missed, which
// tells how many there were.
func (w *Watcher) Next(ctx context.Context) (Event, error) {
	e := &w.n.events
	for {
		e.mu.Lock()
		next, missed, wait := e.after(w.seq)
		last := e.last
		e.mu.Unlock()
		switch {
		case next != nil:
			w.seq = next.Seq
			return *next, nil
		case missed > 0:
			w.seq += missed
			return Event{Seq: w.seq, At: time.Now(), Kind: "missed", Generation: w.n.Generation(),
				Text: fmt.Sprintf("%d events are gone: this reader was too slow, or began too late", missed)}, nil
		}
		w.seq = last
		select {
		case <-wait:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

// Place is the number of the last event that was read, and of the last one that
// there is.
func (w *Watcher) Place() (read, last uint64) {
	w.n.events.mu.Lock()
	defer w.n.events.mu.Unlock()
	return w.seq, w.n.events.last
}

// Close ends the watching.
func (w *Watcher) Close() {
	e := &w.n.events
	e.mu.Lock()
	defer e.mu.Unlock()
	if !w.over {
		w.over = true
		e.watchers--
	}
}
