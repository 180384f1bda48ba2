package accesslog

import (
	"sync/atomic"
	"time"
)

// batch is lines to be written together.
type batch struct {
	octets []byte
	ends   []int   // where each line ends, behind its LF
	at     []int64 // when it was noted: nanoseconds since 1970
}

func (b *batch) reset() { b.octets, b.ends, b.at = b.octets[:0], b.ends[:0], b.at[:0] }

// end notes that a line is complete.
func (b *batch) end(at int64) { b.ends, b.at = append(b.ends, len(b.octets)), append(b.at, at) }

// writer is the goroutine that makes and writes lines to one place.
type writer struct {
	log   *Log
	place Place
	again chan struct{} // to open the file anew
	quit  chan struct{}
	rest  atomic.Bool // quit: write what is there first
	done  chan struct{}
	batch batch
	form  former
	// warned is when it was last said that writing fails.
	warned time.Time
	lost   uint64 // since then
}

// warnEvery is how often a place that fails is worth a line.
const warnEvery = time.Minute

func (w *writer) run() {
	defer close(w.done)
	defer w.place.to.close()
	for {
		select {
		case <-w.quit:
			for w.rest.Load() {
				select {
				case p := <-w.log.full:
					w.write(p)
				default:
					return
				}
			}
			return
		case <-w.again:
			if err := w.place.to.reopen(); err != nil {
				w.log.log.Warn("the access log could not be opened anew and goes on where it was", "to", w.place.to.name(), "error", err)
			} else {
				w.log.log.Info("access log opened anew", "to", w.place.to.name())
			}
		case p := <-w.log.full:
			w.write(p)
		}
	}
}

// write makes the lines of a chunk and writes them.
func (w *writer) write(p parcel) {
	b := &w.batch
	b.reset()
	for i := range p.n {
		at := p.wall - int64(p.now-p.at[i])
		b.octets = w.form.line(b.octets, w.place.format, at, &p.records[i])
		b.end(at)
	}
	p.back()
	n, err := w.place.to.write(b)
	w.log.lines.Add(uint64(n))
	if err == nil {
		return
	}
	w.lost += uint64(len(b.ends) - n)
	w.log.failed.Add(uint64(len(b.ends) - n))
	if now := time.Now(); now.Sub(w.warned) > warnEvery {
		w.log.log.Warn("the access log cannot be written", "to", w.place.to.name(), "lost", w.lost, "error", err)
		w.warned, w.lost = now, 0
	}
}
