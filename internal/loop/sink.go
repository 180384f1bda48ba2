package loop

import (
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/planted"
)

// Sink is told all that one loop serves, in the loop's own turns: it never
// blocks, and keeps nothing of a record.
type Sink interface {
	Note(now flow.Instant, r *flow.Record)
	// Flush is called soon after there was something to note, and at the end.
	Flush(now flow.Instant)
}

// flushEvery bounds how long a sink keeps what it was told.
const flushEvery = 100 * time.Millisecond

// report counts what was served and passes it on to the sink.
func (l *Loop) report(r *flow.Record) {
	x := l.series.of(r.Listener, r.Route, r.Backend, r.Endpoint)
	class := 0
	if r.Status >= 100 {
		class = min(r.Status/100, len(x.Requests)-1)
	}
	x.Requests[class]++
	x.Causes[r.Cause]++
	x.In += r.In
	x.Out += r.Out
	x.Waited += max(0, r.Wait)
	x.Took.Note(r.Total)
	if r.Answer >= 0 {
		x.Answer.Note(r.Answer)
	}
	if l.sink == nil {
		return
	}
	l.sink.Note(l.now, r)
	if !l.noted {
		l.noted, l.flushAt = true, l.now.Add(flushEvery)
	}
}

// Flush makes the sink pass on what it has. Run does so at its end.
func (l *Loop) Flush() {
	if l.noted {
		l.noted = false
		l.sink.Flush(l.now)
	}
}

// sumUp reports what was under way in a flow that is being removed.
func (l *Loop) sumUp(s *slot, cause flow.Cause) {
	if cause == flow.Broken {
		// A flow whose invariant broke may not even be fit for this.
		defer func() { _ = recover() }()
	}
	l.record = flow.Record{}
	if s.flow.Sum(l.now, &l.record) && !planted.Bug(60) {
		if cause == flow.Broken {
			l.record.Cause = cause
		}
		l.report(&l.record)
	}
}
