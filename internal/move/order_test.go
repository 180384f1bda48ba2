package move

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// script is a carrier whose other side is written down: what it answers to each
// message, and how.
type script struct {
	t       *testing.T
	answer  func(m Message) []Message
	in      []Message
	sent    []string
	silent  map[string]int // kinds that are not answered in time, so many times
	blocked map[Kind]int   // kinds that cannot be sent in time
	fails   map[Kind]error // kinds that cannot be sent
	waits   []time.Duration
	timeout time.Duration
	busy    time.Duration // how long a lot takes
}

func (s *script) Send(m Message) error {
	if s.blocked[m.Kind] > 0 {
		s.blocked[m.Kind]--
		s.waits = append(s.waits, s.timeout)
		return os.ErrDeadlineExceeded
	}
	if err := s.fails[m.Kind]; err != nil {
		return err
	}
	s.sent = append(s.sent, m.Kind.String())
	s.in = append(s.in, s.answer(m)...)
	return nil
}

func (s *script) Receive() (Message, error) {
	if len(s.in) == 0 {
		return Message{}, io.EOF
	}
	k := s.in[0].Kind
	if s.timeout < s.busy && (k == Taken || k == Adopted) {
		s.waits = append(s.waits, s.timeout)
		return Message{}, os.ErrDeadlineExceeded
	}
	if k := k.String(); s.silent[k] > 0 {
		s.silent[k]--
		s.waits = append(s.waits, s.timeout)
		return Message{}, os.ErrDeadlineExceeded
	}
	m := s.in[0]
	s.in = s.in[1:]
	return m, nil
}

func (s *script) SetTimeout(d time.Duration) error { s.timeout = d; return nil }
func (s *script) Close() error                     { return nil }

// flows is a [Giver] of flows without sockets, each of which is somewhere.
type flows struct {
	t       *testing.T
	at      map[uint64]string // "here", "parked", "there", "lost"
	refused map[uint64]bool
	log     []string
	stop    error
	stopAt  int // at which question; 0: never
	asked   int
}

func someFlows(t *testing.T, n int) *flows {
	g := &flows{t: t, at: map[uint64]string{}, refused: map[uint64]bool{}}
	for id := range uint64(n) {
		g.at[id+1] = "here"
	}
	return g
}

func (g *flows) Greeted(Greeting, []string) error { return nil }
func (g *flows) Stopped() error {
	if g.asked++; g.asked == g.stopAt {
		return g.stop
	}
	return nil
}
func (g *flows) Enter(p Phase)                                   { g.log = append(g.log, fmt.Sprintf("phase %d", p)) }
func (g *flows) Heritage() (*Heritage, []sock.FD, error)         { return &Heritage{}, nil, nil }
func (g *flows) Knowledge(_ bool, _ func(Knowledge) error) error { return nil }
func (g *flows) Lend() []sock.FD                                 { return nil }
func (g *flows) Dropped() []uint64                               { return nil }
func (g *flows) Unlend()                                         { g.log = append(g.log, "unlent") }
func (g *flows) Cookie(sock.FD) (uint64, error)                  { return 0, nil }
func (g *flows) ParkIdle(int) *IdleLot                           { return nil }
func (g *flows) ForgetIdle(*IdleLot, bool)                       {}
func (g *flows) Switch() error                                   { g.log = append(g.log, "switch"); return nil }
func (g *flows) Acceptance() Acceptance                          { return Acceptance{} }
func (g *flows) Stalled(is bool)                                 { g.log = append(g.log, fmt.Sprint("stalled ", is)) }
func (g *flows) Estate() any                                     { return nil }

func (g *flows) move(ids []uint64, from, to string) {
	g.t.Helper()
	for _, id := range ids {
		if g.at[id] != from {
			g.t.Errorf("flow %d is %s and is taken from %s to %s", id, g.at[id], from, to)
		}
		g.at[id] = to
	}
}

func ids(l *Lot) (out []uint64) {
	for _, f := range l.Flows {
		out = append(out, f.Id)
	}
	return out
}

func lotOf(ids []uint64) *Lot {
	if len(ids) == 0 {
		return nil
	}
	var all []*frozen.Flow
	for _, id := range ids {
		all = append(all, &frozen.Flow{Id: id, Client: &frozen.Leg{}})
	}
	return NewLot(all, nil, nil, make([]int64, len(ids)), nil)
}

func (g *flows) Park(_ bool, most int) (*Lot, error) {
	var some []uint64
	for _, id := range slices.Sorted(maps.Keys(g.at)) {
		if g.at[id] == "here" && !g.refused[id] && len(some) < most {
			some = append(some, id)
		}
	}
	g.move(some, "here", "parked")
	return lotOf(some), nil
}

func (g *flows) Return(l *Lot) error { g.move(ids(l), "parked", "here"); return nil }

func (g *flows) Split(l *Lot, some []uint64) (those, others *Lot) {
	var a, b []uint64
	for _, id := range ids(l) {
		if slices.Contains(some, id) {
			a = append(a, id)
		} else {
			b = append(b, id)
		}
	}
	return lotOf(a), lotOf(b)
}

func (g *flows) Refused(id uint64, _ *frozen.Refused) { g.refused[id] = true }
func (g *flows) Forget(l *Lot, _ Adoption)            { g.move(ids(l), "parked", "there") }
func (g *flows) Lose(l *Lot)                          { g.move(ids(l), "parked", "lost") }

func (g *flows) count() map[string]int {
	n := map[string]int{}
	for _, at := range g.at {
		n[at]++
	}
	return n
}

func body(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// agreeable is a taker that takes all but flows that refuse names.
func agreeable(t *testing.T, features []string, refuse func(*frozen.Flow) bool) *script {
	s := &script{t: t, silent: map[string]int{}, blocked: map[Kind]int{}}
	s.in = []Message{{Kind: Hello, Body: body(t, Greeting{Protocol: Protocol, Format: frozen.Format, Features: features})}}
	s.answer = func(m Message) []Message {
		switch m.Kind {
		case Inherit:
			return []Message{{Kind: Ready}}
		case Offer:
			octets := m.Body
			if slices.Contains(features, FeatureCopy) {
				_, octets, _ = cookiesOf(m.Body)
			}
			b, err := frozen.Decode(octets)
			if err != nil {
				t.Error(err)
			}
			no := Refusal{What: "flow", Why: "of a kind that is not known"}
			for _, f := range b.Flows {
				if refuse != nil && refuse(f) {
					no.Flows = append(no.Flows, Refusal{Flow: f.Id, What: "h1", Why: "a field that is not known"})
				}
			}
			if len(no.Flows) == 0 {
				return []Message{{Kind: Taken, Lot: m.Lot}}
			}
			if !slices.Contains(features, FeatureLots) {
				no.Flows = nil
			}
			return []Message{{Kind: Refuse, Lot: m.Lot, Body: body(t, no)}}
		case Commit:
			return []Message{{Kind: Adopted, Lot: m.Lot, Body: body(t, Adoption{})}}
		case Look:
			return []Message{{Kind: Seen, Body: body(t, Sight{Loops: 1, Of: 1})}}
		case Done:
			return []Message{{Kind: Settled}}
		}
		return nil
	}
	return s
}

// What one release refuses of a lot is found and stays, and the others go, be the
// refused named or not.
func TestRefusedFlowsStay(t *testing.T) {
	for _, features := range [][]string{nil, {FeatureLots}, Features()} {
		g := someFlows(t, 30)
		bad := func(f *frozen.Flow) bool { return f.Id%7 == 3 }
		how, err := Give(agreeable(t, features, bad), g, Options{Features: Features(), Canary: time.Millisecond})
		if err != nil || !how.Done {
			t.Fatalf("%v: %v %+v", features, err, how)
		}
		if n := g.count(); n["here"] != 4 || n["there"] != 26 || len(g.refused) != 4 {
			t.Errorf("%v: %v, refused %v", features, n, g.refused)
		}
		for id := range g.refused {
			if id%7 != 3 {
				t.Errorf("%v: flow %d was refused", features, id)
			}
		}
	}
}

// A taker that does not answer in time holds nothing up: what is parked goes back,
// the giver serves, and it goes on when the answer has come after all.
func TestStall(t *testing.T) {
	for _, c := range []struct {
		kind   string
		times  int
		stalls bool // the giver serves again what it had stopped
		done   bool
	}{
		{"taken", 1, true, true},
		{"adopted", 1, true, true},
		{"taken", 2, true, false},   // not in all the time that there is
		{"adopted", 2, true, false}, // nor that
		{"seen", 1, false, false},
	} {
		g := someFlows(t, 20)
		s := agreeable(t, Features(), nil)
		canary := time.Duration(0)
		if c.kind == "seen" {
			canary = time.Millisecond
		}
		s.silent[c.kind] = c.times
		how, err := Give(s, g, Options{Features: Features(), Canary: canary})
		if how.Done != c.done || (err == nil) != c.done || err != nil && !errors.Is(err, ErrStalled) {
			t.Errorf("%s %d: %v %+v", c.kind, c.times, err, how)
		}
		n := g.count()
		if n["parked"] != 0 || c.done && n["there"] != 20 {
			t.Errorf("%s %d: %v", c.kind, c.times, n)
		}
		if got := slices.Contains(g.log, "stalled true"); got != c.stalls {
			t.Errorf("%s %d: %v", c.kind, c.times, g.log)
		}
		if c.done && g.log[len(g.log)-1] != "unlent" || c.done && !slices.Contains(g.log, "stalled false") {
			t.Errorf("%s %d: %v", c.kind, c.times, g.log)
		}
		if c.kind == "taken" && s.waits[0] != ParkedTime {
			t.Errorf("what is parked waited %v", s.waits[0])
		}
	}
}

// A taker that always answers, and never in the usual time, as on a machine that has
// too much to do, gets everything: it is given twice the time after each late answer. One
// that takes longer than anything may stand still is given up.
func TestBusyTaker(t *testing.T) {
	for busy, done := range map[time.Duration]bool{ParkedTime << 2: true, ParkedTime << 3: true, ParkedTime<<slowMax + 1: false} {
		g := someFlows(t, 200)
		s := agreeable(t, Features(), nil)
		s.busy = busy
		how, err := Give(s, g, Options{Features: Features()})
		if how.Done != done || (err == nil) != done || err != nil && !errors.Is(err, ErrStalled) {
			t.Errorf("a lot takes %v: %v %+v", busy, err, how)
		}
		if n := g.count(); n["parked"] != 0 || n["lost"] != 0 || done && n["there"] != 200 {
			t.Errorf("a lot takes %v: %v", busy, n)
		}
		for _, d := range s.waits[1:] {
			if d > PatienceLong {
				t.Errorf("a lot takes %v: waited %v", busy, s.waits)
			}
		}
	}
}

// What cannot be sent in time was not sent: nothing is committed twice.
func TestStallBeforeItWasSent(t *testing.T) {
	for _, k := range []Kind{Offer, Commit, Accept, Done} {
		g := someFlows(t, 20)
		s := agreeable(t, Features(), nil)
		s.blocked[k] = 1
		how, err := Give(s, g, Options{Features: Features()})
		if err != nil || !how.Done || g.count()["there"] != 20 {
			t.Errorf("%v: %v %+v %v", k, err, how, g.count())
		}
		if !slices.Contains(s.sent, "abort") {
			t.Errorf("%v: %v", k, s.sent)
		}
	}
	// A taker that never reads again is given up, after ever shorter times.
	g := someFlows(t, 20)
	s := agreeable(t, Features(), nil)
	s.blocked[Offer] = 100
	if _, err := Give(s, g, Options{Features: Features()}); !errors.Is(err, ErrStalled) || g.count()["here"] != 20 || s.blocked[Offer] < 80 {
		t.Errorf("%v %v, %d", err, g.count(), s.blocked[Offer])
	}
}

// Who asked for an upgrade may end it until the first flow is committed.
func TestStoppedBeforeTheFirstCommit(t *testing.T) {
	why := errors.New("not wanted any more")
	for at := 1; ; at++ {
		g := someFlows(t, 20)
		g.stop, g.stopAt = why, at
		how, err := Give(agreeable(t, Features(), nil), g, Options{Features: Features(), Canary: time.Millisecond})
		if err == nil {
			if at < 3 || g.asked >= at {
				t.Errorf("asked %d times", g.asked)
			}
			return
		}
		if !errors.Is(err, why) || how.Committed || g.count()["here"] != 20 {
			t.Errorf("%d: %v %+v %v", at, err, how, g.count())
		}
	}
}

// A lot goes one way: what was given back, committed or let go of is not so again.
func TestLotGoesOneWay(t *testing.T) {
	ways := map[lotState][]lotState{
		parked:    {offered, returned, nowhere},
		offered:   {parked, returned, committed, nowhere},
		committed: {forgotten},
	}
	for from := nowhere; from <= forgotten; from++ {
		for to := nowhere; to <= forgotten; to++ {
			l := lotOf([]uint64{1})
			l.state = from
			err := l.to(to)
			if want := slices.Contains(ways[from], to); (err == nil) != want {
				t.Errorf("%v -> %v: %v", from, to, err)
			}
			if err != nil && (!strings.Contains(err.Error(), from.String()) || l.state != from) {
				t.Errorf("%v -> %v: %v, is %v", from, to, err, l.state)
			}
		}
	}
}

// answerOf of a lot that was given back is never taken for the next one's.
func TestAnswersAreOfTheirLot(t *testing.T) {
	g := someFlows(t, 20)
	s := agreeable(t, Features(), nil)
	plain := s.answer
	s.answer = func(m Message) []Message {
		out := plain(m)
		if m.Kind == Offer && m.Lot == 2 {
			out[0].Lot = 1
		}
		return out
	}
	how, err := Give(s, g, Options{Features: Features()})
	if err == nil || how.Done || g.count()["there"] != 8 || g.count()["here"] != 12 {
		t.Errorf("%v %+v %v", err, how, g.count())
	}
}

// host is a [Taker] without a kernel.
type host struct {
	examined, adopted, accepted, orphaned, finished int
	closed, reset                                   []sock.FD
	no                                              error
	fails                                           map[Kind]error // what the giver cannot be told
	blocked                                         map[Kind]int   // what it can be told only at a later try
	unheard                                         map[string]int // what comes only at a later try
	remains                                         []int          // flows; -1: nothing any more
}

func (h *host) Begin(*Heritage, []sock.FD) (Readiness, error) { return Readiness{Room: 100}, nil }
func (h *host) Learn(Knowledge) error                         { return nil }
func (h *host) Room() int                                     { return 100 }
func (h *host) Cookie(fd sock.FD) (uint64, error)             { return uint64(fd) % 100 * 1000, nil } // fd and fd + 100 are of one socket
func (h *host) Close(fd sock.FD)                              { h.closed = append(h.closed, fd) }
func (h *host) Reset(fd sock.FD)                              { h.reset = append(h.reset, fd) }
func (h *host) Examine([]byte, []sock.FD) (any, error)        { h.examined++; return 1, h.no }
func (h *host) Adopt(any, []sock.FD, []int64) Adoption        { h.adopted++; return Adoption{} }
func (h *host) AdoptIdle([]byte, []sock.FD) error             { return nil }
func (h *host) Accept(Acceptance)                             { h.accepted++ }
func (h *host) Observe() Sight                                { return Sight{} }
func (h *host) Finish([]byte)                                 { h.finished++ }
func (h *host) Orphaned(bool, error)                          { h.orphaned++ }
func (h *host) Remains(r *Remains) {
	n := -1
	if r != nil {
		n = r.Flows
	}
	h.remains = append(h.remains, n)
}

// takes runs a taker over what a giver sends.
func takes(t *testing.T, h *host, features []string, sent ...Message) (answers []Message, err error) {
	t.Helper()
	s := &script{t: t, fails: h.fails, blocked: h.blocked, silent: h.unheard, answer: func(m Message) []Message { answers = append(answers, m); return nil }}
	s.in = append([]Message{{Kind: Inherit, Body: body(t, Heritage{Features: features})}}, sent...)
	x, err := Greet(s, h, Greeting{Features: Features()})
	if err != nil {
		t.Fatal(err)
	}
	if err = x.Run(); err == nil {
		x.Watch()
	}
	return answers[2:], err
}

// What is done twice, or out of turn, is refused by the taker, which ends rather
// than serve what it may not own.
func TestTakerRefusesWhatIsDoneTwice(t *testing.T) {
	offer := func(n uint16) Message { return Message{Kind: Offer, Lot: n, Body: []byte{0, 0}} }
	commit := func(n uint16) Message { return Message{Kind: Commit, Lot: n, Body: []byte("[0]")} }
	abort := Message{Kind: Abort}
	accept := Message{Kind: Accept, Body: []byte("{}")}
	done := Message{Kind: Done}
	for _, c := range []struct {
		name    string
		sent    []Message
		adopted int
		why     string // "": it is all right
	}{
		{"once", []Message{accept, offer(1), commit(1), offer(2), commit(2), done}, 2, ""},
		{"taken back, then again", []Message{accept, offer(1), abort, offer(2), commit(2), done}, 1, ""},
		{"committed twice", []Message{accept, offer(1), commit(1), commit(1), done}, 1, "lot 1 was committed, and is not offered"},
		{"committed after it was taken back", []Message{accept, offer(1), abort, commit(1), done}, 0, "is not offered"},
		{"another lot committed", []Message{accept, offer(1), offer(2), commit(1), done}, 0, "is not offered"},
		{"offered twice", []Message{accept, offer(1), commit(1), offer(1), done}, 1, "lot 1 was offered after lot 1"},
		{"an old lot", []Message{accept, offer(2), abort, offer(1), done}, 0, "lot 1 was offered after lot 2"},
		{"numbers begin anew", []Message{accept, offer(40000 - 32768), commit(40000 - 32768), offer(39000), commit(39000), offer(65535), commit(65535), offer(1), commit(1), done}, 4, ""},
		{"accepts twice", []Message{accept, accept}, 0, "told twice"},
		{"done while something is offered", []Message{accept, offer(1), done}, 0, "out of turn"},
		{"done before it accepts", []Message{done}, 0, "out of turn"},
	} {
		h := &host{}
		_, err := takes(t, h, Features(), c.sent...)
		if c.why == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v", c.name, err)
		}
		if h.adopted != c.adopted || h.finished == 1 != (c.why == "") {
			t.Errorf("%s: adopted %d, finished %d", c.name, h.adopted, h.finished)
		}
	}
}

// The giver's death leaves to the taker what was committed to it, and nothing else.
func TestGiverDies(t *testing.T) {
	fds := []sock.FD{5, 6}
	copies := Message{Kind: Copy, FDs: []sock.FD{3, 4}}
	// One descriptor is a copy, two come with the offer.
	offer := Message{Kind: Offer, Lot: 1, FDs: fds, Body: append([]byte{0, 3}, append([]byte{0, 0, 0, 0, 0, 0, 3000 >> 8, 3000 & 255}, make([]byte, 16)...)...)}
	commit := Message{Kind: Commit, Lot: 1, Body: []byte("[0]")}
	again := Message{Kind: Offer, Lot: 2, FDs: []sock.FD{7, 8}}
	no := Unheld{{Flow: 1}}
	gone := func(k Kind) map[Kind]error { return map[Kind]error{k: sock.BrokenPipe} }
	for _, c := range []struct {
		name     string
		h        host
		sent     []Message
		orphaned int
		reset    []sock.FD
	}{
		{"before anything", host{}, nil, 0, nil},
		{"after the copies", host{}, []Message{copies}, 0, []sock.FD{3, 4}},
		{"after an offer", host{}, []Message{copies, offer}, 0, []sock.FD{3, 4, 5, 6}},
		{"before it hears that it was taken", host{fails: gone(Taken)}, []Message{copies, offer}, 0, []sock.FD{3, 4, 5, 6}},
		{"before it hears that it was refused", host{no: no, fails: gone(Refuse)}, []Message{copies, offer}, 0, []sock.FD{3, 4, 5, 6}},
		{"after it was taken back", host{}, []Message{copies, offer, {Kind: Abort}}, 0, []sock.FD{3, 4, 5, 6}},
		{"when it had offered again", host{fails: gone(Taken)}, []Message{copies, offer, {Kind: Abort}, again}, 0, []sock.FD{3, 4, 5, 6, 7, 8}},
		{"after a commit", host{}, []Message{copies, offer, commit}, 1, []sock.FD{4}},
		{"while they are observed", host{}, []Message{copies, offer, commit, {Kind: Look, Body: []byte(`{"for":1000000}`)}}, 1, []sock.FD{4}},
		{"after it was told to accept", host{}, []Message{copies, {Kind: Accept, Body: []byte("{}")}, offer}, 1, []sock.FD{3, 4, 5, 6}},
		{"before it hears that all is settled", host{fails: gone(Settled)}, []Message{copies, {Kind: Accept, Body: []byte("{}")}, {Kind: Done}}, 0, []sock.FD{3, 4}},
	} {
		h := &c.h
		_, err := takes(t, h, Features(), c.sent...)
		slices.Sort(h.reset)
		if (err == nil) != (c.orphaned+h.finished == 1) || h.orphaned != c.orphaned || !slices.Equal(h.reset, c.reset) || len(h.closed) != 0 {
			t.Errorf("%s: %v, orphaned %d, reset %v, closed %v", c.name, err, h.orphaned, h.reset, h.closed)
		}
	}
}

// What a living giver has again is closed in peace, once it was told.
func TestRefusedIsClosed(t *testing.T) {
	offer := Message{Kind: Offer, Lot: 1, FDs: []sock.FD{5}, Body: append([]byte{0, 1}, make([]byte, 8)...)}
	h := &host{no: Unheld{{Flow: 1}}}
	if _, err := takes(t, h, Features(), offer); err == nil || !slices.Equal(h.closed, []sock.FD{5}) || len(h.reset) != 0 {
		t.Errorf("%v, closed %v, reset %v", err, h.closed, h.reset)
	}
}

// Who has not heard that all is settled, but lives, goes on to drain what was refused: it
// has its part of the limits until it ends, though it cannot be heard at first.
func TestSettledIsNotHeard(t *testing.T) {
	none := errors.New("no buffers")
	h := &host{fails: map[Kind]error{Settled: none}, unheard: map[string]int{Residue.String(): 3}}
	sent := []Message{{Kind: Accept, Body: []byte("{}")}, {Kind: Done}, {Kind: Residue, Body: body(t, Remains{Flows: 2})}}
	if _, err := takes(t, h, Features(), sent...); err != nil || h.finished != 1 || !slices.Equal(h.remains, []int{2, -1}) {
		t.Errorf("%v, finished %d, remains %v", err, h.finished, h.remains)
	}
	h = &host{blocked: map[Kind]int{Settled: 3}}
	if answers, err := takes(t, h, Features(), sent...); err != nil || len(answers) != 1 || answers[0].Kind != Settled {
		t.Errorf("%v, %v: it is not said again", err, answers)
	}
	s := agreeable(t, Features(), nil)
	s.silent[Settled.String()] = 1
	given, err := Give(s, someFlows(t, 3), Options{Features: Features()})
	if err == nil || !given.Done || !given.Residue {
		t.Errorf("%v, %+v: it does not tell what drains", err, given)
	}
}

// A copy that the taker has not is asked for, and comes with the offer.
func TestMissingCopy(t *testing.T) {
	h := &host{}
	answers, err := takes(t, h, Features(), Message{Kind: Offer, Lot: 1, Body: []byte{0, 1, 0, 0, 0, 0, 0, 0, 0, 9}})
	if err == nil || len(answers) != 1 || answers[0].Kind != Refuse || h.examined != 0 {
		t.Fatalf("%v %v", err, answers)
	}
	var no Refusal
	if err := answers[0].Into(&no); err != nil || !slices.Equal(no.Cookies, []uint64{9}) {
		t.Errorf("%v %+v", err, no)
	}
}

// Between the look at a descriptor and the message the giver may have closed it and
// opened another socket under its number: then there is a copy of which the giver does
// not know, and the socket comes once more with its offer. That copy must not live on:
// it would be reset when the giver dies, and with it the flow that is served.
func TestCopyThatNobodyKnowsOf(t *testing.T) {
	copies := Message{Kind: Copy, FDs: []sock.FD{3}}
	offer := Message{Kind: Offer, Lot: 1, FDs: []sock.FD{103}, Body: append([]byte{0, 1}, make([]byte, 8)...)}
	commit := Message{Kind: Commit, Lot: 1, Body: []byte("[0]")}
	h := &host{}
	if _, err := takes(t, h, Features(), copies, offer, commit); err != nil || h.adopted != 1 {
		t.Fatalf("%v, adopted %d", err, h.adopted)
	}
	if len(h.reset) != 0 || !slices.Equal(h.closed, []sock.FD{3}) {
		t.Errorf("reset %v, closed %v; want the copy closed", h.reset, h.closed)
	}
}
