package flow

import (
	"math"
	"net/netip"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/h1"
	"github.com/holdfast-lb/holdfast/internal/planted"
)

// Record is what came of one exchange of HTTP, or of a whole flow without. Of
// each request that reached the machine there is exactly one, and of each flow of
// TCP: either the machine reports it within a Step ([Desk.Report]), or [Flow.Sum]
// tells it when the flow is removed.
type Record struct {
	Flow     uint64
	Number   uint32 // of the request on the flow, from 1; 0 without HTTP
	Moves    uint32 // of the flow, so far
	Attempts uint8  // endpoints that were asked, one after another
	Stuck    bool   // the endpoint was chosen because the client was there before
	Reused   bool   // the backend leg had served before
	Own      bool   // the answer was our own
	Tunnel   bool   // an upgrade or CONNECT that was granted, from its request to its end

	Listener *config.Listener
	Route    int              // index among the routes of the listener; -1: none ruled it
	Backend  *config.Backend  // nil: it did not come to one
	Endpoint *config.Endpoint // that served it, or was asked last; nil: none
	Protocol config.Protocol
	// Client is who the client is: by its socket, a PROXY header, or a proxy that
	// the listener trusts; the last knows no port.
	Client netip.AddrPort

	Status int   // of the response, 0: none came
	Minor  uint8 // of HTTP/1.x, as the client speaks it
	// Cause is why it ended, and Phase where it was then. Of an answer of our own
	// that tells of a failure they are those of the failure.
	Cause Cause
	Phase Phase

	// The parts of Total, each its own, which is from the first octet to the last,
	// of TCP from accepting on. A part to which it did not come is -1.
	Total   time.Duration
	Head    time.Duration // until the request's head was there
	Wait    time.Duration // in the queue for an endpoint
	Connect time.Duration // until the backend leg was there; attempts in vain are part of it
	Answer  time.Duration // from then on until the head of the response was there

	In, Out uint64 // octets from and to the client, of this exchange
	Note    Note
}

// Note is what a client said of itself, as it said it and cut to the lengths
// below. Its slices are nil of what was not kept, and valid no longer than the
// Record is.
type Note struct{ Method, Target, Host, Agent []byte }

// What is kept of a Note's parts at most, in octets; together they fill a block.
const (
	noteMethodMax = 32
	noteTargetMax = 512
	noteHostMax   = 96
	noteAgentMax  = 128

	noteBytes = noteMethodMax + noteTargetMax + noteHostMax + noteAgentMax
)

// Outcome is what an attempt at an endpoint has shown. A Step sets it on its
// [Desk]; the runner takes and clears it after that Step, before it gives back
// the slot that the flow held (the flow may have left the endpoint already) and
// before another flow's Step.
//
// Of HTTP it tells of the head of a response, or that none came: too late, broken
// off, garbled. Of TCP it tells that the endpoint was connected. That a connect
// failed or took too long the runner knows itself, by what it told the flow.
// What a client, or we, broke off tells nothing.
type Outcome struct {
	Set, Good bool
	Took      time.Duration // from the connected leg to the response's head; of TCP, to connect
}

// entry is what is known of an exchange for its Record, beside what the flow
// and the exchange know themselves. It begins with the first octet of a request
// and outlives the exchange of a tunnel.
type entry struct {
	begun    Instant          `frozen:"Entry.age_nanos"`
	in, out  uint64           `frozen:"Entry.received,Entry.sent"` // of the client leg before it began
	endpoint *config.Endpoint `frozen:"Entry.endpoint"`            // the last one; the flow forgets it sooner
	note     []byte           `frozen:"Entry.method,Entry.target,Entry.host,Entry.agent"`
	ends     [4]uint16        `frozen:"Entry.method,Entry.target,Entry.host,Entry.agent"` // of the parts of note
	source   Address          `frozen:"Entry.source"`                                     // what a trusted proxy says of the client; none: nothing
	head     micros           `frozen:"Entry.head_micros"`
	answer   micros           `frozen:"Entry.answer_micros"`
	status   uint16           `frozen:"H1.status"` // these three of a tunnel only
	route    int16            `frozen:"H1.route"`
	minor    uint8            `frozen:"H1.minor"`
	cause    Cause            `frozen:"Entry.cause"` // of an answer of our own
	phase    Phase            `frozen:"Entry.phase"` // where it was then
	reused   bool             `frozen:"Entry.reused"`
}

// micros is a span of time that was lived through, in microseconds and one more;
// 0 is one to which it did not come. It ends at 71 minutes.
type micros uint32

func microsOf(d time.Duration) micros {
	return micros(min(max(0, d.Microseconds()), math.MaxUint32-1) + 1)
}

// span is m, 0 if there is none.
func (m micros) span() time.Duration {
	if m == 0 {
		return 0
	}
	return time.Duration(m-1) * time.Microsecond
}

// told is m for a Record.
func (m micros) told() time.Duration {
	if m == 0 {
		return -1
	}
	return m.span()
}

// enter begins to note an exchange, of which unread octets are here.
func (f *Flow) enter(now Instant, unread int, l *Lender) {
	if f.entry != nil || f.listener.Rules == nil {
		return
	}
	t := l.entries.lend()
	t.begun, t.in, t.out = now, f.Received(Client)-uint64(unread), f.Sent(Client)
	f.entry = t
}

// forget gives back what was noted.
func (f *Flow) forget(l *Lender) {
	if f.entry != nil {
		l.giveBack(f.entry.note)
		l.entries.giveBack(f.entry)
		f.entry = nil
	}
}

// tell reports the exchange, whose response was sent.
func (f *Flow) tell(now Instant, d *Desk) {
	if f.entry == nil {
		return
	}
	if d.Report != nil && !planted.Bug(53) {
		f.fill(now, &d.record, Finished, f.stage())
		d.Report(&d.record)
		d.record = Record{}
	}
	f.forget(d.Lender)
}

// Sum makes r the record of what was under way in a flow that is Done or is
// being removed: an exchange that did not come to its end, a tunnel, a flow of
// TCP. It is false if there is nothing to tell: the client was between requests,
// or all was reported. The runner calls it once, before [Flow.Drop]; what r points
// to is valid until then. The Cause of a flow that is not Done is NotEnded: why it
// is removed the runner knows.
func (f *Flow) Sum(now Instant, r *Record) bool {
	if f.work == nil || f.listener.Protocol == config.HTTP && f.entry == nil {
		return false
	}
	phase := f.last
	if f.state != Done {
		phase = f.stage()
	}
	if f.listener.Protocol == config.HTTP && (phase == Head || phase == Greeting) && blank(f.x.in[Client].rest()) {
		return false // it said nothing
	}
	f.fill(now, r, f.cause, phase)
	return true
}

// fill makes r what there is to tell, of what ended by c in a phase.
func (f *Flow) fill(now Instant, r *Record, c Cause, phase Phase) {
	w, x, t := f.work, f.x, f.entry
	*r = Record{
		Flow: f.id, Moves: f.moves, Listener: f.listener, Route: -1, Backend: w.backend, Endpoint: w.endpoint,
		Client: f.Client(), Protocol: f.listener.Protocol, Cause: c, Phase: phase,
		Stuck: w.legs[Backend].facts&stuck != 0, Attempts: w.legs[Backend].attempts,
		Total: max(0, f.lived(now)), Head: -1, Answer: -1, In: f.Received(Client), Out: f.Sent(Client),
	}
	if t != nil {
		r.Number = f.requests
		if r.Head = t.head.told(); t.head == 0 {
			r.Number++ // its head is still to come
		}
		r.Status, r.Route, r.Minor, r.Reused, r.Answer = int(t.status), int(t.route)-1, t.minor, t.reused, t.answer.told()
		r.In -= t.in
		r.Out -= t.out
		if t.endpoint != nil {
			r.Endpoint = t.endpoint
		}
		if t.source != (Address{}) {
			r.Client = t.source.AddrPort()
		}
		if t.cause != NotEnded {
			r.Cause, r.Phase = t.cause, t.phase
		}
		r.Note = t.told()
		if x == nil {
			r.Tunnel = true
		} else {
			r.Status, r.Route, r.Minor = int(x.status), int(x.route)-1, x.minor
			r.Own, r.Reused = x.flags&ours != 0, x.flags&reused != 0
			if t.head != 0 && x.flags&last == 0 {
				r.In -= uint64(len(x.in[Client].rest())) // the next request's
			}
		}
	}
	wait, connect := w.legs[Client].spent, w.legs[Backend].spent
	if wait != 0 && r.Phase != Queue {
		r.Attempts++ // the one that it has, or had when it ended
	}
	switch rest := r.Total - f.headed() - wait.span() - connect.span(); {
	case phase == Queue:
		wait = microsOf(wait.span() + rest)
	case phase == Connect && c != NoEndpoint:
		connect = microsOf(connect.span() + rest)
	}
	r.Wait, r.Connect = wait.told(), connect.told()
}

// lived is how long the exchange has lasted, or the flow, if it is not of HTTP.
func (f *Flow) lived(now Instant) time.Duration {
	if f.entry != nil {
		return time.Duration(now - f.entry.begun)
	}
	return time.Duration(now - f.born)
}

// headed is how long the request's head took.
func (f *Flow) headed() time.Duration {
	if f.entry == nil {
		return 0
	}
	return f.entry.head.span()
}

// awaited is for how long the backend leg has been there.
func (f *Flow) awaited(now Instant) time.Duration {
	return max(0, f.lived(now)-f.headed()-f.legs[Client].spent.span()-f.legs[Backend].spent.span())
}

// stage is the Phase for a record.
func (f *Flow) stage() Phase {
	switch f.state {
	case Queued:
		return Queue
	case Dialing:
		return Connect
	}
	p := f.Phase()
	switch {
	case p != Pipelined:
		return p
	case f.x.status != 0:
		return Response
	}
	return Request
}

// blame notes why an exchange ends by an answer of ours: the first reason counts.
func (f *Flow) blame(c Cause) {
	if t := f.entry; t != nil && t.cause == NotEnded {
		t.cause, t.phase = c, f.stage()
	}
}

// shown notes what an attempt has shown of its endpoint.
func (f *Flow) shown(now Instant, d *Desk, good bool) {
	d.Outcome = Outcome{Set: true, Good: good, Took: f.awaited(now)}
}

// answered notes that the head of a response has come, be it passed on or not.
func (f *Flow) answered(now Instant, d *Desk, status int) {
	took := f.awaited(now)
	f.entry.answer = microsOf(took)
	bad := status >= 500
	if e := f.backend.Eject; e != nil {
		bad = config.In(e.Statuses, status)
	}
	d.Outcome = Outcome{Set: true, Good: !bad, Took: took}
}

// note keeps who the client is and, if somebody will read it, what it says of
// itself.
func (f *Flow) note(d *Desk, h *h1.Head, source netip.Addr) {
	t := f.entry
	if source != f.Client().Addr() {
		t.source = AddressOf(netip.AddrPortFrom(source, 0))
	}
	if d.Config.AccessLog == nil || f.listener.Unlogged {
		return
	}
	t.note = d.Lender.lendNote()
	t.keep(0, h.MethodName.Of(h.Octets), noteMethodMax)
	t.keep(1, h.Target.Of(h.Octets), noteTargetMax)
	t.keep(2, h.Authority.Of(h.Octets), noteHostMax)
	for i := range h.Fields {
		if f := &h.Fields[i]; f.Known == h1.Other && same(f.Name.Of(h.Octets), "User-Agent") {
			t.keep(3, f.Value.Of(h.Octets), noteAgentMax)
			return
		}
	}
	t.keep(3, nil, 0)
}

// keep appends part i to the note.
func (t *entry) keep(i int, part []byte, most int) {
	t.note = append(t.note, part[:min(len(part), most)]...)
	t.ends[i] = uint16(len(t.note))
}

// told gives the note in its parts.
func (t *entry) told() Note {
	if t.note == nil {
		return Note{}
	}
	part := func(i int) []byte {
		from := uint16(0)
		if i > 0 {
			from = t.ends[i-1]
		}
		return t.note[from:t.ends[i]:t.ends[i]]
	}
	return Note{part(0), part(1), part(2), part(3)}
}

// compact gives a note that stays for long no more room than it needs.
func (t *entry) compact(l *Lender) {
	if t.note == nil {
		return
	}
	small := append(make([]byte, 0, len(t.note)), t.note...)
	l.giveBack(t.note)
	t.note = small
}

// lendNote lends a block for a note.
func (l *Lender) lendNote() []byte {
	n := len(l.notes)
	if n == 0 {
		return make([]byte, 0, noteBytes)
	}
	b := l.notes[n-1]
	l.notes = l.notes[:n-1]
	return b[:0]
}
