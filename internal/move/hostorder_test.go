package move

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// hosts are two nodes with flows that go from one to the other, and what their
// kernels do with segments.
type hosts struct {
	t     *testing.T
	flows map[uint64]*hostFlow
	order []uint64
	moved map[Tuple]uint64 // whose tuple it is
	held  map[Tuple]bool   // by the taker
	away  map[Tuple]bool   // diverted by the giver

	listed   int // in this round of the giver
	stays    map[uint64]error
	stopAt   int // Stopped at which question
	asked    int
	refuse   map[uint64]bool  // flows that the taker refuses, for ever
	once     map[uint64]error // and those that it does once
	shaky    map[uint64]int   // how often their sockets are not what they were
	noHold   error
	changing map[uint64]bool // flows whose legs change once they are listed
	outcome  func() (uint16, error)
	lots     int // most that stood still at once
	begun    int
}

type hostFlow struct {
	tuples []Tuple
	giver  string // serves, parked, gone, closed
	taker  string // "", restored, serves
}

var errStop = errors.New("nobody wants it any more")

func someHosts(t *testing.T, n int) *hosts {
	h := &hosts{t: t, flows: map[uint64]*hostFlow{}, moved: map[Tuple]uint64{}, held: map[Tuple]bool{}, away: map[Tuple]bool{}, stays: map[uint64]error{},
		refuse: map[uint64]bool{}, once: map[uint64]error{}, shaky: map[uint64]int{}, changing: map[uint64]bool{}}
	for id := uint64(1); id <= uint64(n); id++ {
		f := &hostFlow{giver: "serves"}
		for leg := range 1 + int(id%2) { // some are being dialled
			local := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(leg)}), uint16(id))
			if id%3 == 0 {
				local = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0x20, 1, 15: byte(leg)}), uint16(id))
			}
			f.tuples = append(f.tuples, Tuple{local, netip.AddrPortFrom(local.Addr().Next(), 443)})
		}
		h.flows[id], h.order = f, append(h.order, id)
		for _, x := range f.tuples {
			h.moved[x] = id
		}
	}
	return h
}

func (h *hosts) set(id uint64, at *string, from, to string) {
	h.t.Helper()
	if *at != from {
		h.t.Errorf("flow %d is %q and was taken from %q to %q", id, *at, from, to)
	}
	*at = to
}

// check sees what must hold at every instant.
func (h *hosts) check() {
	h.t.Helper()
	for id, f := range h.flows {
		if f.taker == "serves" && (f.giver == "serves" || f.giver == "closed") {
			h.t.Errorf("flow %d is served by both: %+v", id, *f)
		}
		// One that was taken back may be restored all the same, until the taker hears of it.
		if f.taker == "restored" && f.giver != "parked" && f.giver != "serves" {
			h.t.Errorf("flow %d is restored and %s", id, f.giver)
		}
		for _, x := range f.tuples {
			if h.away[x] && f.taker != "serves" && !h.held[x] && f.giver != "gone" {
				h.t.Errorf("segments of flow %d go to a host that neither holds them nor has a socket", id)
			}
		}
	}
}

// end sees what must hold when all is over.
func (h *hosts) end() (there, lost int) {
	h.t.Helper()
	h.check()
	for id, f := range h.flows {
		switch {
		case f.giver == "serves" && f.taker == "":
		case f.giver == "gone" && f.taker == "serves":
			there++
		case f.giver == "closed" && f.taker == "":
			lost++
		default:
			h.t.Errorf("flow %d is %q here and %q there", id, f.giver, f.taker)
		}
		for _, x := range f.tuples {
			if h.away[x] != (f.giver == "gone") {
				h.t.Errorf("flow %d is %s, its segments are sent on: %t", id, f.giver, h.away[x])
			}
		}
	}
	if len(h.held) > 0 {
		h.t.Errorf("%d tuples are still held", len(h.held))
	}
	return there, lost
}

// hostGiverOf is the giver's side.
type hostGiverOf struct{ *hosts }

func (g hostGiverOf) Stopped() error {
	if g.asked++; g.asked == g.stopAt {
		g.stopAt = g.asked + 1
		return errStop
	}
	return nil
}

func (g hostGiverOf) Rest(int) {}

func (g hostGiverOf) Next(most int, tries func(id uint64) int) (some []Candidate) {
	for ; g.listed < len(g.order) && len(some) < most; g.listed++ {
		id := g.order[g.listed]
		if f := g.flows[id]; f.giver == "serves" && tries(id) < HostTries {
			some = append(some, Candidate{ID: id, Tuples: f.tuples, Tries: tries(id)})
		}
	}
	if some == nil {
		g.listed = 0
	}
	return some
}

func (g hostGiverOf) Park(some []Candidate) (lot *Lot, dealt int, stay []Refusal, err error) {
	if len(some) > HostLotFlows {
		g.t.Errorf("%d flows at once", len(some))
	}
	var ids []uint64
	for _, c := range some[:max(1, len(some)*3/4)] {
		dealt++
		f := g.flows[c.ID]
		if g.changing[c.ID] {
			delete(g.changing, c.ID)
			stay = append(stay, Refusal{Flow: c.ID, What: "leg", Why: "another", Retry: true})
			continue
		}
		g.set(c.ID, &f.giver, "serves", "parked")
		for _, x := range f.tuples {
			g.away[x] = true
		}
		ids = append(ids, c.ID)
	}
	g.check()
	standing := 0
	for _, f := range g.flows {
		if f.giver == "parked" && f.taker != "serves" {
			standing++
		}
	}
	if g.lots = max(g.lots, standing); standing > hostOffers*HostLotFlows {
		g.t.Errorf("%d flows stand still", standing)
	}
	return lotOf(ids), dealt, stay, nil
}

func (g hostGiverOf) Verify(l *Lot) (moved []Refusal) {
	for _, id := range ids(l) {
		if g.shaky[id] > 0 {
			g.shaky[id]--
			moved = append(moved, Refusal{Flow: id, What: "socket", Why: "moved", Retry: true})
		}
	}
	return moved
}

func (g hostGiverOf) Return(l *Lot) error {
	for _, id := range ids(l) {
		f := g.flows[id]
		for _, x := range f.tuples {
			delete(g.away, x)
		}
		g.set(id, &f.giver, "parked", "serves")
	}
	return nil
}

func (g hostGiverOf) Refused(id uint64, why *frozen.Refused) {
	if g.stays[id] != nil {
		g.t.Errorf("flow %d is refused twice", id)
	}
	g.stays[id] = why
}

func (g hostGiverOf) Forget(l *Lot, _ Adoption) {
	for _, id := range ids(l) {
		g.set(id, &g.flows[id].giver, "parked", "gone")
	}
}

func (g hostGiverOf) Outcome() (uint16, error) { return g.outcome() }

func (g hostGiverOf) Lose(l *Lot) {
	for _, id := range ids(l) {
		f := g.flows[id]
		g.set(id, &f.giver, "parked", "closed")
		for _, x := range f.tuples {
			delete(g.away, x)
		}
		if f.taker == "serves" { // a reset reaches its client and its backend
			f.taker = ""
		}
	}
}

// hostTakerOf is the taker's side.
type hostTakerOf struct{ *hosts }

func (t hostTakerOf) Settle() { t.begun-- }
func (t hostTakerOf) Begin(Coming) error {
	t.begun++
	return nil
}

func (t hostTakerOf) Hold(ts []Tuple) error {
	if t.noHold != nil {
		return t.noHold
	}
	for _, x := range ts {
		if t.held[x] {
			t.t.Errorf("%v is held twice", x)
		}
		t.held[x] = true
	}
	return nil
}

func (t hostTakerOf) Drop(ts []Tuple) error {
	for _, x := range ts {
		if !t.held[x] {
			t.t.Errorf("%v is dropped and was not held", x)
		}
		delete(t.held, x)
	}
	return nil
}

func (t hostTakerOf) Restore(octets []byte, _ [][]byte, mine func(Tuple) bool) (any, []Tuple, error) {
	b, err := frozen.Decode(octets)
	if err != nil {
		return nil, nil, err
	}
	var no Unheld
	var tuples []Tuple
	for _, z := range b.Flows {
		if err := t.once[z.Id]; err != nil {
			delete(t.once, z.Id)
			return nil, nil, err
		}
		if t.refuse[z.Id] {
			no = append(no, Refusal{Flow: z.Id, What: "flow", Why: "unwelcome"})
		}
		for _, x := range t.flows[z.Id].tuples {
			if !mine(x) {
				t.t.Errorf("%v of flow %d was not prepared", x, z.Id)
			}
			tuples = append(tuples, x)
		}
	}
	if len(no) > 0 {
		return nil, nil, no
	}
	for _, z := range b.Flows {
		t.set(z.Id, &t.flows[z.Id].taker, "", "restored")
	}
	return b, tuples, nil
}

func (t hostTakerOf) Discard(lot any) {
	for _, z := range lot.(*frozen.Batch).Flows {
		t.set(z.Id, &t.flows[z.Id].taker, "restored", "")
	}
}

func (t hostTakerOf) Adopt(lot any, ts []Tuple) Adoption {
	for _, z := range lot.(*frozen.Batch).Flows {
		t.set(z.Id, &t.flows[z.Id].taker, "restored", "serves")
	}
	for _, x := range ts {
		delete(t.held, x)
	}
	t.check()
	return Adoption{}
}

// link joins the two machines in one goroutine: the taker does what it was told
// when the giver waits for it.
type link struct {
	h      *hosts
	taking *HostTaking
	there  []Message // to the taker
	back   []Message
	cut    bool // nothing arrives any more
	late   int  // so many waits of the giver are in vain
	n      int  // messages that were sent, both ways
	at     int  // when fault strikes; 0: never
	fault  func(l *link)
	err    error
}

func (l *link) strike() {
	if l.n++; l.n == l.at {
		l.fault(l)
	}
}

func (l *link) Send(m Message) error {
	l.strike()
	if l.cut {
		return fmt.Errorf("link: %w", sock.BrokenPipe)
	}
	m.Body = slices.Clone(m.Body)
	l.there = append(l.there, m)
	return nil
}

func (l *link) Receive() (Message, error) {
	if l.late > 0 && !l.cut {
		l.late--
		return Message{}, os.ErrDeadlineExceeded
	}
	for len(l.back) == 0 {
		if l.cut || len(l.there) == 0 || l.err != nil {
			return Message{}, io.EOF
		}
		m := l.there[0]
		l.there = l.there[1:]
		l.err = l.taking.Step(m)
		l.h.check()
	}
	m := l.back[0]
	l.back = l.back[1:]
	return m, nil
}

func (l *link) SetTimeout(time.Duration) error { return nil }
func (l *link) Close() error                   { return nil }

// far is the taker's end of a link.
type far struct{ *link }

func (l far) Send(m Message) error {
	l.strike()
	if l.cut {
		return fmt.Errorf("link: %w", sock.BrokenPipe)
	}
	m.Body = slices.Clone(m.Body)
	l.back = append(l.back, m)
	return nil
}

func (h *hosts) run(at int, fault func(*link)) (messages int, err error) {
	l := &link{h: h, at: at, fault: fault}
	l.taking = NewHostTaking(far{l}, hostTakerOf{h})
	if h.outcome == nil {
		h.outcome = func() (uint16, error) {
			if err := l.taking.End(); err != nil {
				return 0, err
			}
			return l.taking.Own(), nil
		}
	}
	x := NewHostGiving(l)
	err = x.Give(hostGiverOf{h}, Coming{})
	if l.err != nil && !l.cut {
		h.t.Errorf("the taker ended it: %v", l.err)
	}
	if err := l.taking.End(); err != nil {
		h.t.Error(err)
	}
	if h.begun != 0 {
		h.t.Errorf("%d beginnings without an end", h.begun)
	}
	return l.n, err
}

// All flows go, a few at a time, and none twice.
func TestHostFlowsGo(t *testing.T) {
	for _, n := range []int{0, 1, 15, 16, 17, 64, 65, 1000} {
		h := someHosts(t, n)
		if _, err := h.run(0, nil); err != nil {
			t.Fatalf("%d flows: %v", n, err)
		}
		if there, _ := h.end(); there != n {
			t.Errorf("%d of %d flows went", there, n)
		}
		if n > 64 && h.lots <= HostLotFlows {
			t.Errorf("lots do not overlap: %d flows stood still at most", h.lots)
		}
	}
}

// A conversation that is opened takes flows again and again until it is settled.
func TestHostFlowsInRounds(t *testing.T) {
	h := someHosts(t, 100)
	l := &link{h: h}
	l.taking = NewHostTaking(far{l}, hostTakerOf{h})
	x := NewHostGiving(l)
	if err := x.Open(Coming{}); err != nil {
		t.Fatal(err)
	}
	all := h.order
	for i := range 5 {
		h.order = all[:20*(i+1)]
		if err := x.Give(hostGiverOf{h}, Coming{}); err != nil {
			t.Fatal(err)
		}
		if there, _ := h.end(); there != 20*(i+1) || h.begun != 1 {
			t.Errorf("round %d: %d flows are there; begun %d times", i, there, h.begun)
		}
	}
	if err := x.Settle(); err != nil || h.begun != 0 {
		t.Errorf("settled: %v, begun %d times", err, h.begun)
	}
}

// What the taker refuses stays, and keeps no other from going; what changes meanwhile
// goes later.
func TestHostFlowsThatStay(t *testing.T) {
	h := someHosts(t, 100)
	h.refuse[3], h.refuse[50] = true, true
	h.once[17] = &frozen.Refused{What: "socket", Why: "no memory", Retry: true}
	h.once[18] = errors.New("whatever")
	h.shaky[30], h.shaky[31] = 3, HostTries
	h.changing[60], h.changing[61] = true, true
	if _, err := h.run(0, nil); err != nil {
		t.Fatal(err)
	}
	if there, _ := h.end(); there != 97 || len(h.stays) != 3 || h.stays[3] == nil || h.stays[50] == nil || h.stays[31] == nil {
		t.Errorf("%d flows went; %v stay", there, h.stays)
	}
}

// A taker that can hold nothing ends the move, not the conversation.
func TestHostHoldsNothing(t *testing.T) {
	h := someHosts(t, 40)
	h.noHold = &frozen.Refused{What: "host", Why: "an upgrade is under way there", Retry: true}
	_, err := h.run(0, nil)
	var no *frozen.Refused
	if !errors.As(err, &no) || !no.Retry {
		t.Errorf("it ended by %v", err)
	}
	if there, _ := h.end(); there != 0 {
		t.Errorf("%d flows went", there)
	}
}

// Who stops it keeps what has not gone, and a later call in the same conversation
// moves the rest.
func TestHostStops(t *testing.T) {
	for at := 1; at < 40; at++ {
		h := someHosts(t, 200)
		h.stopAt = at
		l := &link{h: h}
		l.taking = NewHostTaking(far{l}, hostTakerOf{h})
		x := NewHostGiving(l)
		if err := x.Give(hostGiverOf{h}, Coming{}); !errors.Is(err, errStop) {
			t.Fatalf("stopped at question %d: %v", at, err)
		}
		first, _ := h.end()
		h.stopAt, h.listed = 0, 0
		if err := x.Give(hostGiverOf{h}, Coming{}); err != nil {
			t.Fatal(err)
		}
		if there, _ := h.end(); there != 200 || first == 200 && at < 10 {
			t.Errorf("stopped at question %d: %d flows had gone, then %d", at, first, there)
		}
	}
}

// The conversation breaks at each message. Every flow has exactly one owner then, and
// with an outcome that can be learnt none is closed. Without, only those are whose
// commit nobody has answered.
func TestHostTalkBreaks(t *testing.T) {
	cut := func(l *link) { l.cut = true }
	for _, known := range []bool{true, false} {
		closed := 0
		for at := 1; ; at++ {
			h := someHosts(t, 100)
			if !known {
				h.outcome = func() (uint16, error) { return 0, errors.New("nobody answers") }
			}
			n, err := h.run(at, cut)
			if n < at {
				if err != nil {
					t.Errorf("without a break: %v", err)
				}
				break
			}
			if err == nil {
				t.Errorf("broken at message %d: no error", at)
			}
			_, lost := h.end()
			if closed += lost; known && lost > 0 || lost > hostOffers*HostLotFlows {
				t.Errorf("broken at message %d: %d flows closed", at, lost)
			}
			if t.Failed() {
				t.Fatalf("broken at message %d, outcome known: %t", at, known)
			}
		}
		if !known && closed == 0 {
			t.Error("the outcome of no commit was ever unknown")
		}
	}
}

// A taker that is slow gets its lots taken back, and goes on when it answers; one that
// stays silent is given up.
func TestHostStalls(t *testing.T) {
	for _, silent := range []int{1, 2} { // as many waits
		for at := 1; ; at++ {
			h := someHosts(t, 100)
			n, err := h.run(at, func(l *link) { l.late = silent })
			if n < at {
				break
			}
			there, lost := h.end()
			if lost > 0 || err == nil && there != 100 {
				t.Errorf("silent at message %d for %d waits: %d flows went, %d closed: %v", at, silent, there, lost, err)
			}
			if t.Failed() {
				t.Fatalf("silent at message %d for %d waits", at, silent)
			}
		}
	}
}

// What cannot be is a breach, and leaves nothing behind.
func TestHostBreaches(t *testing.T) {
	batch, _, err := (&Lot{}).encodeHost(nil)
	if err != nil {
		t.Fatal(err)
	}
	tuple := Tuple{netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2")}.appendTo(nil)
	begin := Message{Kind: Begin, Body: []byte("{}")}
	prepare := Message{Kind: Prepare, Lot: 1, Body: tuple}
	for name, all := range map[string][]Message{
		"prepared before flows are announced": {prepare},
		"announced twice":                     {begin, begin},
		"an empty preparation":                {begin, {Kind: Prepare, Lot: 1}},
		"a torn preparation":                  {begin, {Kind: Prepare, Lot: 1, Body: tuple[:len(tuple)-1]}},
		"a group twice":                       {begin, prepare, prepare},
		"a lot twice":                         {begin, {Kind: Offer, Lot: 2, Body: batch}, {Kind: Offer, Lot: 2, Body: batch}},
		"a lot that is older":                 {begin, {Kind: Offer, Lot: 3, Body: batch}, {Kind: Offer, Lot: 2, Body: batch}},
		"a commit of nothing":                 {begin, {Kind: Commit, Lot: 1}},
		"a commit twice":                      {begin, {Kind: Offer, Lot: 2, Body: batch}, {Kind: Commit, Lot: 2}, {Kind: Commit, Lot: 2}},
		"a group that is not":                 {begin, {Kind: Drop, Lot: 1}},
		"done with a lot offered":             {begin, {Kind: Offer, Lot: 2, Body: batch}, {Kind: Done}},
		"the words of a process":              {begin, {Kind: Accept}},
	} {
		h := someHosts(t, 0)
		l := &link{h: h}
		x := NewHostTaking(far{l}, hostTakerOf{h})
		for i, m := range all {
			if err := x.Step(m); (err != nil) != (i == len(all)-1) {
				t.Errorf("%s: message %d: %v", name, i, err)
			}
		}
		if err := x.End(); err != nil || len(h.held) > 0 || h.begun != 0 {
			t.Errorf("%s: %v; %d tuples are held, begun %d times", name, err, len(h.held), h.begun)
		}
	}
}
