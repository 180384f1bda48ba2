package accesslog

import (
	"sync/atomic"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
)

const (
	// recordsMax and textMax make a chunk; with either full it goes to the writer.
	recordsMax = 256
	textMax    = 48 << 10
	// chunksMax is how many chunks a loop may have on their way: 8,192 records,
	// what a loop serves in a tenth of a second when it does nothing else.
	chunksMax = 32
)

// chunk is a number of records with the octets that their notes point to.
type chunk struct {
	records [recordsMax]flow.Record
	at      [recordsMax]flow.Instant
	n       int
	text    []byte
	// wall is the time of day, in nanoseconds, when the loop's clock showed now.
	wall int64
	now  flow.Instant
}

// keep copies octets that are the caller's.
func (c *chunk) keep(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	from := len(c.text)
	c.text = append(c.text, b...)
	return c.text[from:len(c.text):len(c.text)]
}

// Sink takes the records of one loop; only that loop calls it. It never waits:
// what the writer has no room for is dropped and counted.
type Sink struct {
	log     *Log
	chunk   *chunk // being filled; nil: none
	free    chan *chunk
	made    int
	dropped atomic.Uint64
}

// Note takes a record; it keeps nothing of what r points to but objects of the
// configuration.
func (s *Sink) Note(now flow.Instant, r *flow.Record) {
	if !s.log.on.Load() || r.Listener.Unlogged {
		return
	}
	n := &r.Note
	need := len(n.Method) + len(n.Target) + len(n.Host) + len(n.Agent)
	if s.chunk != nil && len(s.chunk.text)+need > textMax {
		s.Flush(now)
	}
	c := s.chunk
	if c == nil {
		if c = s.fresh(); c == nil || need > textMax {
			s.dropped.Add(1)
			return
		}
		s.chunk = c
	}
	to := &c.records[c.n]
	*to = *r
	to.Note = flow.Note{Method: c.keep(n.Method), Target: c.keep(n.Target), Host: c.keep(n.Host), Agent: c.keep(n.Agent)}
	c.at[c.n] = now
	if c.n++; c.n == recordsMax {
		s.Flush(now)
	}
}

// Flush hands what there is to the writer. The channel is as long as there are
// chunks, so this never waits for room in it.
func (s *Sink) Flush(now flow.Instant) {
	c := s.chunk
	if c == nil || c.n == 0 {
		return
	}
	c.now, c.wall = now, time.Now().UnixNano()
	s.chunk = nil
	s.log.full <- parcel{c, s}
}

// fresh gives an empty chunk, or nil if all are on their way.
func (s *Sink) fresh() *chunk {
	select {
	case c := <-s.free:
		return c
	default:
	}
	if s.made == chunksMax {
		return nil
	}
	s.made++
	return &chunk{text: make([]byte, 0, textMax)}
}

// parcel is a chunk and where it goes back to.
type parcel struct {
	*chunk
	from *Sink
}

// back gives the chunk back; what it points to may be forgotten.
func (p parcel) back() {
	clear(p.records[:p.n])
	p.n, p.text = 0, p.text[:0]
	p.from.free <- p.chunk
}
