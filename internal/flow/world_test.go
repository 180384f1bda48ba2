package flow

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/frozen"
)

// objects is the configuration of all tests here: a generous backend, and one
// that queues.
var objects = func() exact {
	c, _, err := config.Parse("test.yaml", []byte(`
listeners:
  a: { vip: 10.0.0.5:80, backend: many, idleTimeout: 30s }
  forever: { vip: 10.0.0.5:81, backend: many, idleTimeout: 0s }
  falls: { vip: 10.0.0.5:83, backend: falls, idleTimeout: 30s }
  hashed: { vip: 10.0.0.5:82, backend: hashed }
backends:
  falls:
    retry: { max: 1 }
    limits: { queueTime: 5s }
    connectTimeout: 1s
    fallback: { backend: spare }
    endpoints: [ { name: e1, address: 10.0.0.31:80 }, { name: e2, drop: hold }, { name: e3, address: 10.0.0.33:80 } ]
  hashed:
    balance: maglev
    sticky: { source: { bits4: 24 } }
    endpoints: [ { name: e1, address: 10.0.0.31:80 } ]
  spare:
    endpoints: [ { name: s1, address: 10.0.0.41:80 }, { name: s2, drop: hold }, { name: s3, drop: reset }, { name: s4, drop: 503 } ]
  many:
    connectTimeout: 1s
    retry: { max: 2 }
    limits: { connectionsPerEndpoint: 4, queue: 10, queueTime: 5s }
    endpoints: [ { name: e1, address: 10.0.0.31:80 }, { name: e2, address: 10.0.0.32:80 }, { name: e3, address: 10.0.0.33:80 } ]
`), nil)
	if err != nil {
		panic(err)
	}
	return exact{c}
}()

type exact struct{ *config.Config }

func (x exact) Listener(name string, version uint64) *config.Listener {
	o, _ := x.Lookup(config.Ref{Kind: config.ListenerKind, Name: name, Version: version})
	l, _ := o.(*config.Listener)
	return l
}

func (x exact) Backend(name string, version uint64) *config.Backend {
	o, _ := x.Lookup(config.Ref{Kind: config.BackendKind, Name: name, Version: version})
	b, _ := o.(*config.Backend)
	return b
}

func (x exact) Endpoint(name string, version uint64) *config.Endpoint {
	o, _ := x.Lookup(config.Ref{Kind: config.EndpointKind, Name: name, Version: version})
	e, _ := o.(*config.Endpoint)
	return e
}

const (
	scratchBytes = 512 // small, so that many turns fit into a short script
	pipeMax      = 40 << 10
	roomDefault  = 1500
)

// octet is octet i of what the peer of a leg says: no two near ones are equal
// and the two directions differ, so that one lost, doubled or foreign shows.
func octet(from Side, i int) byte {
	x := uint32(i)*2654435761 + uint32(from)*0x9E3779B9
	return byte(x>>24) ^ byte(x>>11)
}

func octets(from Side, at, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = octet(from, at+i)
	}
	return b
}

// kern is the kernel of one leg, and its peer.
type kern struct {
	in     []byte // came from the peer, not read
	said   int
	fin    bool // the peer's FIN came after in
	rst    bool // the peer's RST
	out    []byte
	room   int // octets that out takes
	shut   bool
	got    []byte // the peer has taken
	ended  bool   // the peer has read FIN
	wiped  bool   // the peer has got RST, what was in out is gone
	closed bool
}

// moving is a flow of a test world, which is put down and picked up.
type moving struct {
	now    Instant
	f      Flow
	z      *frozen.Flow // what it was frozen to, to compare with
	wanted string       // and what it wanted then
	lender Lender
	pipes  [2][]byte // octets from the leg, on their way
	ends   bool      // it was told to finish: what comes then is thrown away
	hard   bool      // and then more than that
	books
}

// world is a flow between two kernels, following a script.
type world struct {
	moving
	script  []op
	scratch [scratchBytes]byte
	legs    [2]kern
	desk    Desk
	bulk    bool   // use pipes where the flow wants
	rough   bool   // an RST came: how far octets got may differ
	acts    int    // so many in all
	read    [2]int // octets read from each leg when it was told to finish
}

type op struct {
	verb string
	side Side
	n    int
}

func (o op) String() string {
	switch o.verb {
	case "says", "takes", "room", "fin", "rst":
		if o.verb == "fin" || o.verb == "rst" {
			return fmt.Sprintf("%v %s", o.side, o.verb)
		}
		return fmt.Sprintf("%v %s %d", o.side, o.verb, o.n)
	case "wait", "secured":
		return fmt.Sprintf("%s %d", o.verb, o.n)
	case "unavailable", "kill":
		if o.n != 0 {
			return fmt.Sprintf("%s %d", o.verb, o.n)
		}
	}
	return o.verb
}

// parse reads a script, one op a line.
func parse(text string) (script []op, bulk bool, err error) {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		var o op
		switch words[0] {
		case "bulk":
			bulk = true
			continue
		case "client", "backend":
			if words[0] == "backend" {
				o.side = Backend
			}
			words = words[1:]
		}
		o.verb = words[0]
		if !slices.Contains(verbs, o.verb) {
			return nil, false, fmt.Errorf("%q is no op", line)
		}
		if len(words) > 1 {
			if _, err := fmt.Sscan(words[1], &o.n); err != nil {
				return nil, false, fmt.Errorf("%q: %w", line, err)
			}
		}
		script = append(script, o)
	}
	return script, bulk, nil
}

var verbs = []string{"says", "takes", "room", "fin", "rst", "secured", "unavailable", "rejected", "dialed", "dial-failed", "wait", "kill", "place", "falls"}

// compile makes a script of any octets.
func compile(code []byte) (script []op, bulk bool) {
	if len(code) == 0 {
		return nil, false
	}
	bulk = code[0]&1 != 0
	if code[0]&4 != 0 {
		script = append(script, op{verb: "falls"})
	}
	if code[0]&2 != 0 { // most scripts should come to relaying
		script = append(script, op{verb: "secured", n: int(code[0] >> 6)}, op{verb: "dialed"})
	}
	sizes := [...]int{1, 40, scratchBytes - 1, scratchBytes, 2*scratchBytes + 7, 5000, 17000, 66}
	for _, c := range code[1:min(len(code), 25)] {
		o := op{side: Side(c >> 7), n: sizes[c>>4&7]}
		switch c & 15 {
		case 0, 1, 2, 3:
			o.verb = "says"
		case 4, 5, 6:
			o.verb = "takes"
		case 7:
			o.verb, o.n = "room", []int{0, 1, 100, 511, 512, 2000, 20000, 60000}[c>>4&7]
		case 8:
			o.verb = "fin"
		case 9:
			o.verb = "rst"
		case 10:
			o.verb, o.n = "secured", int(c>>4&3)
		case 11:
			o.verb = "dialed"
		case 12:
			o.verb = "dial-failed"
		case 13:
			o.verb, o.n = "wait", []int{1, 400, 1000, 5000, 29999, 30000, 2, 0}[c>>4&7]
		case 14:
			o.verb = "place"
		case 15:
			o.verb = []string{"unavailable", "rejected", "kill", "says", "says", "says", "says", "says"}[c>>4&7]
			if o.verb == "unavailable" || o.verb == "kill" {
				o.n = int(c >> 7)
			}
			if c>>4 == 3 || c>>4 == 11 {
				o.verb, o.n = "kill", 2
			}
		}
		script = append(script, o)
	}
	return script, bulk
}

func newWorld(script []op, bulk bool) *world {
	w := &world{moving: moving{now: 1e9}, script: script, bulk: bulk}
	w.piped = bulk
	w.desk.Config, w.desk.Lender = objects.Config, &w.lender
	l := objects.Listeners["a"]
	if slices.ContainsFunc(script, func(o op) bool { return o.verb == "falls" }) {
		l = objects.Listeners["falls"]
	}
	w.f = New(w.now, 0xabc<<40|7, l, objects.Backends[l.BackendName], Address{}, &w.lender)
	w.legs[Client].room, w.legs[Backend].room = roomDefault, roomDefault
	return w
}

func (w *world) Steps() int      { return len(w.script) }
func (w *world) Scratch() []byte { return w.scratch[:] }

func (w *world) Step(i int) {
	o := w.script[i]
	k := &w.legs[o.side]
	there := o.side == Client || w.f.State() == Relaying || k.closed // the peer has something to talk to
	step := func(e Event) { e.Desk = &w.desk; w.f.Step(w.now, e) }
	w.told = nil
	switch o.verb {
	case "says":
		if there && !k.fin && !k.rst && !k.closed {
			k.in = append(k.in, octets(o.side, k.said, o.n)...)
			k.said += o.n
		}
	case "fin":
		k.fin = k.fin || there && !k.rst && !k.closed
	case "rst":
		if there && !k.closed {
			k.rst, k.out = true, nil
			w.rough = true
		}
	case "takes":
		n := min(o.n, len(k.out))
		k.got, k.out = append(k.got, k.out[:n]...), k.out[n:]
	case "room":
		k.room = o.n
	case "secured":
		if w.f.State() == Queued {
			ends := w.f.Backend().Endpoints
			step(Event{Kind: Secured, Endpoint: ends[o.n%len(ends)], Stuck: o.n > len(ends)})
		}
	case "place":
		if w.f.State() == Queued && w.f.Place() == 0 {
			w.f.SetPlace(uint64(i) + 41)
		}
	case "unavailable", "rejected":
		if w.f.State() == Queued {
			step(Event{Kind: map[string]EventKind{"unavailable": Unavailable, "rejected": Rejected}[o.verb], Why: []Cause{NoEndpoint, NotEnded, BreakerOpen, RetriesSpent}[o.n&3]})
		}
	case "dialed", "dial-failed":
		if w.f.State() == Dialing {
			step(Event{Kind: map[string]EventKind{"dialed": Dialed, "dial-failed": DialFailed}[o.verb]})
		}
	case "wait":
		w.now = w.now.Add(time.Duration(o.n) * time.Millisecond)
		var wants Wants
		if w.f.Wants(&wants); wants.Deadline != 0 && wants.Deadline <= w.now {
			w.hard = true
			step(Event{Kind: Expired})
		}
	case "kill":
		if w.f.State() != Done && o.n&2 != 0 {
			for s := range w.legs {
				w.read[s] = w.legs[s].said - len(w.legs[s].in)
			}
			w.hard = w.ends || w.f.State() != Relaying
			w.finish(step)
		} else if w.f.State() != Done {
			w.hard = true
			step(Event{Kind: Kill, Why: []Cause{NotEnded, Shed}[o.n&1]})
		}
	}
	w.drive()
	for s := Client; s <= Backend; s++ {
		// The peer reads FIN once it has taken all before it.
		if k := &w.legs[s]; k.shut && len(k.out) == 0 && !k.wiped && !k.rst {
			k.ended = true
		}
	}
}

// drive does what the loop's drive does, with levels instead of edges.
func (w *world) drive() {
	var wants Wants
	for w.f.Wants(&wants); !wants.Done && w.act(&wants); w.f.Wants(&wants) {
		if w.acts++; w.acts > 1e6 {
			panic("the flow never comes to rest: " + w.Observe())
		}
	}
	if wants.Done {
		for s := Client; s <= Backend; s++ {
			k := &w.legs[s]
			if k.closed {
				continue
			}
			k.closed = true
			if wants.Abort[s] || len(k.in) > 0 {
				k.out, k.wiped = nil, true
			} else {
				k.shut = true
			}
		}
		w.sum(w.now, &w.f)
		w.f.Drop(&w.lender)
		w.pipes = [2][]byte{}
		return
	}
	if w.f.Unsettled() {
		w.f.Settle(&w.lender)
	}
}

// act does one thing that the flow wants and tells whether it did.
func (w *world) act(wants *Wants) bool {
	step := func(e Event) bool { w.f.Step(w.now, e); return true }
	if w.f.State() == Sunk {
		k := &w.legs[Client]
		switch n := copy(w.scratch[:], k.in); {
		case n > 0:
			k.in = k.in[n:]
			return step(Event{Kind: Received, Leg: Client, Octets: w.scratch[:n], Full: n == scratchBytes})
		case k.rst && !k.fin:
			return step(Event{Kind: Broke, Leg: Client})
		case k.fin:
			return step(Event{Kind: Ended, Leg: Client})
		}
		return false
	}
	if w.f.State() != Relaying {
		return w.legs[Client].rst && step(Event{Kind: Broke, Leg: Client})
	}
	for s := Client; s <= Backend; s++ {
		k := &w.legs[s]
		if out := wants.Out[s]; len(out) > 0 {
			if k.rst {
				return step(Event{Kind: Broke, Leg: s})
			}
			if n := min(len(out), k.room-len(k.out)); n > 0 {
				k.out = append(k.out, out[:n]...)
				return step(Event{Kind: Wrote, Leg: s, N: n})
			}
		} else if wants.Shut[s] {
			k.shut = true
			return step(Event{Kind: HasShut, Leg: s})
		}
	}
	for s := Client; s <= Backend; s++ {
		k := &w.legs[s]
		if w.bulk && (wants.Relay[s] || len(w.pipes[s]) > 0 && wants.Read[s]) {
			if w.relay(s) {
				return true
			}
			continue
		}
		if wants.Read[s] {
			if w.f.Unsettled() {
				w.f.Settle(&w.lender)
			}
			n := copy(w.scratch[:], k.in)
			switch {
			case n > 0:
				k.in = k.in[n:]
				return step(Event{Kind: Received, Leg: s, Octets: w.scratch[:n], Full: n == scratchBytes})
			case k.rst && !k.fin:
				return step(Event{Kind: Broke, Leg: s})
			case k.fin:
				return step(Event{Kind: Ended, Leg: s})
			}
		}
		if k.rst && w.f.Ended(s) && !isBroken(&w.f, s) {
			return step(Event{Kind: Broke, Leg: s})
		}
	}
	return false
}

func (w *world) relay(s Side) bool {
	from, to, p := &w.legs[s], &w.legs[s.Other()], &w.pipes[s]
	if len(*p) == 0 {
		n := min(len(from.in), pipeMax)
		switch {
		case n > 0:
			*p, from.in = append(*p, from.in[:n]...), from.in[n:]
		case from.rst && !from.fin:
			w.f.Step(w.now, Event{Kind: Broke, Leg: s})
			return true
		case from.fin:
			w.f.Step(w.now, Event{Kind: Ended, Leg: s})
			return true
		default:
			w.f.Step(w.now, Event{Kind: Slackened, Leg: s})
			return true
		}
	}
	if to.rst {
		w.f.Step(w.now, Event{Kind: Broke, Leg: s.Other()})
		return true
	}
	n := min(len(*p), to.room-len(to.out))
	if n <= 0 {
		return false
	}
	to.out = append(to.out, (*p)[:n]...)
	*p = (*p)[n:]
	w.f.Step(w.now, Event{Kind: Relayed, Leg: s, N: n})
	return true
}

// emptyPipes puts what is in the pipes into the flow, as a loop does before it
// tells one to finish.
func (w *moving) emptyPipes() {
	for s := Client; s <= Backend; s++ {
		w.f.Absorb(s.Other(), w.pipes[s], &w.lender)
		w.pipes[s] = nil
	}
}

// finish does as a loop does that ends a flow by FIN.
func (w *moving) finish(step func(Event)) {
	w.emptyPipes()
	w.ends = true
	step(Event{Kind: Finish})
}

// Freeze puts the flow down, and with it what is in the pipes.
func (w *moving) Freeze() ([]byte, bool, error) {
	if w.f.State() == Done {
		return nil, false, nil
	}
	w.emptyPipes()
	if w.f.Unsettled() {
		w.f.Settle(&w.lender)
	}
	w.wanted = w.wantsNow()
	w.pending = w.promised(w.now, &w.f)
	z, err := w.f.Freeze(w.now)
	if err != nil {
		return nil, false, err
	}
	w.f.Drop(&w.lender)
	if n := w.lender.Lent(); n != 0 {
		return nil, false, fmt.Errorf("%d octets of blocks are still lent", n)
	}
	w.f, w.z = Flow{}, z
	out, err := (&frozen.Batch{Flows: []*frozen.Flow{z}}).Encode()
	return out, true, err
}

// thaw picks it up.
func (w *moving) thaw(octets []byte, known Objects) error {
	batch, err := frozen.Decode(octets)
	if err != nil {
		return err
	}
	if w.f, err = Thaw(w.now, batch.Flows[0], known); err != nil {
		return err
	}
	// It asks again for all that it waited for, and for nothing else.
	if got := w.wantsNow(); got != w.wanted {
		return fmt.Errorf("thawed it wants\n%s, before it wanted\n%s", got, w.wanted)
	}
	if got := w.promised(w.now, &w.f); got != w.pending {
		return fmt.Errorf("thawed its record would be\n%s, before it was\n%s", got, w.pending)
	}
	// What is put down again at once is what was picked up.
	again, err := w.f.Freeze(w.now)
	if err != nil {
		return err
	}
	if again.Moves--; !proto.Equal(again, w.z) {
		return fmt.Errorf("frozen again it is\n%v\n%v, before it was\n%v\n%v", again.Summary(), again, w.z.Summary(), w.z)
	}
	w.z = nil
	return nil
}

// wantsNow tells what the flow wants, without what may differ after a move:
// whether it guesses that bulk goes on, and the clock of the deadline.
func (w *moving) wantsNow() string {
	var x Wants
	w.f.Wants(&x)
	x.Relay = [2]bool{}
	if x.Resume {
		// What was looked at in vain is looked at again.
		x.Resume, x.Read[Client] = false, true
	}
	if x.Deadline != 0 {
		x.Deadline = max(1, x.Deadline-w.now)
	}
	return fmt.Sprintf("%+v", x)
}

func (w *world) Thaw(octets []byte) error {
	if err := w.thaw(octets, objects); err != nil {
		return err
	}
	w.drive()
	return nil
}

func (w *world) Observe() string {
	var b strings.Builder
	var wants Wants
	w.f.Wants(&wants)
	fmt.Fprintf(&b, "%v", w.f.State())
	if w.f.State() == Done {
		fmt.Fprintf(&b, " %v abort %v%s", w.f.Cause(), wants.Abort, w.lines())
	} else {
		if e := w.f.Endpoint(); e != nil {
			fmt.Fprintf(&b, " at %s", e.Name)
		}
		fmt.Fprintf(&b, " tried %b attempt %d place %d age %v", w.f.Tried(), w.f.Attempt(), w.f.Place(), time.Duration(w.now-w.f.Born()))
		b.WriteString(" | wants")
		for _, x := range []struct {
			name string
			on   bool
		}{{"secure", wants.Secure}, {"dial", wants.Dial},
			// With octets in a pipe reading goes on, by relaying: elsewhere these
			// octets lie in the flow and reading waits.
			{"read-client", wants.Read[Client] && len(w.pipes[Client]) == 0}, {"read-backend", wants.Read[Backend] && len(w.pipes[Backend]) == 0},
			{"shut-client", wants.Shut[Client]}, {"shut-backend", wants.Shut[Backend]}} {
			if x.on {
				b.WriteString(" " + x.name)
			}
		}
		if wants.Deadline != 0 {
			fmt.Fprintf(&b, " deadline in %v", time.Duration(max(1, wants.Deadline-w.now)))
		}
	}
	for s := Client; s <= Backend; s++ {
		k := &w.legs[s]
		// Octets in a pipe or in the flow are the same to those outside, as
		// are those that the kernel holds unread.
		held := len(wants.Out[s]) + len(w.pipes[s.Other()]) + len(w.legs[s.Other()].in)
		if w.f.State() == Done {
			held = 0 // whatever there was is gone
		}
		fmt.Fprintf(&b, "\n  %-7v said %d, due %d, out %d, got %d", s, k.said, held, len(k.out), len(k.got))
		for _, x := range []struct {
			name string
			on   bool
		}{{"ended", w.f.Ended(s)}, {"shut", k.shut}, {"peer-read-fin", k.ended}, {"broken", isBroken(&w.f, s)}, {"reset", k.wiped}} {
			if x.on {
				b.WriteString(" " + x.name)
			}
		}
	}
	return b.String()
}

// Verify sees that each octet of each direction is in exactly one place, in
// order, and that nothing that could go on stands still.
func (w *world) Verify() error {
	var wants Wants
	w.f.Wants(&wants)
	for s := Client; s <= Backend; s++ {
		from, to := &w.legs[s], &w.legs[s.Other()]
		due := joined(wants.Out[s.Other()], w.pipes[s])
		all := bytes.Join([][]byte{to.got, to.out, due, from.in}, nil)
		whole := !to.rst && !to.wiped && !from.rst && w.f.State() != Done && w.f.State() != Sunk && !w.ends
		if whole && len(all) != from.said {
			return fmt.Errorf("the %v said %d octets, there are %d: taken %d, sent %d, due %d, unread %d", s, from.said, len(all), len(to.got), len(to.out), len(due), len(from.in))
		}
		check := all
		if !whole { // something may be missing at the end, nothing in what arrived
			check = joined(to.got, to.out)
		}
		for i, got := range check {
			if want := octet(s, i); got != want {
				return fmt.Errorf("octet %d from the %v is %#02x, want %#02x", i, s, got, want)
			}
		}
		if arrived := len(to.got) + len(to.out) + len(due); w.ends && !w.hard && !w.rough && arrived != w.read[s] {
			return fmt.Errorf("%d octets were read of the %v when it was ended, %d went on", w.read[s], s, arrived)
		}
		if to.ended && w.f.Cause() != Dropped && !w.ends && (!from.fin || len(to.got) != from.said) {
			return fmt.Errorf("the %v has read FIN after %d octets; the %v said %d, FIN %t", s.Other(), len(to.got), s, from.said, from.fin)
		}
		if whole && w.f.State() == Relaying {
			switch {
			case len(due) > 0 && to.room > len(to.out):
				return fmt.Errorf("%d octets are due to the %v, its kernel has room for %d, nothing happens", len(due), s.Other(), to.room-len(to.out))
			case len(due) == 0 && len(from.in) > 0:
				return fmt.Errorf("nothing is due to the %v, and yet %d octets are not read", s.Other(), len(from.in))
			case len(due) == 0 && from.fin && !to.shut:
				return fmt.Errorf("FIN of the %v is not handed on", s)
			case to.shut && !from.fin:
				return errors.New("FIN that nobody said")
			}
		}
	}
	if c := w.f.Cause(); w.f.State() == Done && c == Finished && (!w.legs[Client].fin || !w.legs[Backend].fin) {
		return errors.New("finished before both sides were")
	}
	if w.f.State() == Done && w.lender.Lent() != 0 {
		return fmt.Errorf("ended with %d octets lent", w.lender.Lent())
	}
	if n := len(w.numbers); (w.f.State() == Done) != (n == 1) || n > 1 {
		return fmt.Errorf("%v, and %d records", w.f.State(), n)
	}
	if w.wrong != nil {
		return w.wrong
	}
	if n := w.lender.Lent(); n > 2*BlockBytes {
		return fmt.Errorf("%d octets lent to one flow", n)
	}
	return nil
}

func isBroken(f *Flow, s Side) bool { return f.work != nil && f.legs[s].broken }
