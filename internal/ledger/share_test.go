package ledger_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// tenant is a connection under a listener's gate and its source's limit, that holds
// a slot of the backend, waits for one, or does neither.
type tenant struct {
	at     *side
	source netip.Addr
	slot   *ledger.Endpoint
	waiter *ledger.Waiter
	place  uint64
	early  bool // it waited at the giver at the switch
}

// side is one of the two processes.
type side struct {
	name string
	l    *ledger.Ledger
	b    *ledger.Backend
	rung []uint64
	all  map[uint64]*tenant // by token
}

// divide is a history of two processes, one of which hands over to the other.
type divide struct {
	r           *rand.Rand
	lis         *config.Listener
	c           *config.Backend
	giver       *side
	taker       *side
	most        int // connections at the listener
	token       uint64
	now         int64
	phase       string // before, told, switched, drains
	share       []byte // on its way
	stalled     bool
	wrong       string
	entered     int // connections that came in at the taker before the end
	grantedLate int // slots that the taker granted before the end
}

func (d *divide) fail(format string, args ...any) {
	if d.wrong == "" {
		d.wrong = fmt.Sprintf(format, args...)
	}
}

func (d *divide) side(name string) *side {
	s := &side{name: name, all: map[uint64]*tenant{}}
	s.l = newLedger(func(_ int, token uint64) { s.rung = append(s.rung, token) })
	s.b = s.l.Backend("b")
	s.b.Govern(d.c)
	s.l.Listener("web").SetMax(d.most)
	s.l.Node.SetMax(2 * d.most)
	return s
}

// limitsHold lets two processes serve under the same limits, while flows go from one
// to the other, the taker stalls, answers again, dies or is done: together they never
// exceed a limit of an endpoint, a listener or a source; who waited at the giver is
// served in order; and what is free at the end is granted.
func limitsHold(seed uint64) string {
	d, _ := divided(seed)
	return d.wrong
}

func divided(seed uint64) (d *divide, finished bool) {
	r := rand.New(rand.NewPCG(seed, 11))
	d = &divide{r: r, most: []int{0, 3, 10}[r.IntN(3)], phase: "before", now: 1e9}
	d.lis = &config.Listener{Ref: config.Ref{Name: "web"}, SourceConnectionsMax: r.IntN(4)}
	d.c = backend(1, equal(1+r.IntN(3)), func(c *config.Backend) {
		c.ConnectionsPerEndpoint = 1 + r.IntN(4)
		if r.IntN(3) == 0 {
			c.Endpoints[0].ConnectionsMax = 6
		}
	})
	d.giver, d.taker = d.side("giver"), d.side("taker")
	d.taker.l.PlacesAfter(1000)
	d.taker.l.Await()
	for range 20 {
		d.act(d.giver)
	}
	steps := 60 + r.IntN(60)
	for op := range steps {
		if d.wrong != "" {
			return d, false
		}
		switch r.IntN(10) {
		case 0, 1, 2:
			d.act(d.giver)
		case 3, 4:
			d.act(d.taker)
		case 5, 6, 7:
			if d.phase != "before" || r.IntN(4) == 0 { // else it is a canary
				d.move()
			}
		case 8:
			d.advance()
		case 9:
			if d.phase == "switched" {
				d.stalled = !d.stalled
				d.giver.l.Stalled(d.stalled)
				d.collect(d.giver)
			}
		}
		d.judge()
		if op == steps-1 {
			break
		}
	}
	if r.IntN(3) == 0 { // the taker dies, and with it what it has
		clear(d.taker.all)
		d.giver.l.Alone()
		d.collect(d.giver)
		d.rest(d.giver)
		return d, false
	}
	for d.phase != "switched" {
		d.advance()
	}
	if d.stalled {
		d.giver.l.Stalled(false)
	}
	stay := 0 // flows that the taker cannot hold
	if r.IntN(2) == 0 {
		stay = r.IntN(6)
	}
	for len(d.giver.all) > stay && d.wrong == "" {
		d.move()
		d.judge()
	}
	if d.drain(); d.wrong != "" {
		return d, false
	}
	d.taker.l.Alone()
	d.collect(d.taker)
	d.rest(d.taker)
	return d, true
}

// drain lets what the taker could not hold end at the giver, which tells now and then
// what it still keeps.
func (d *divide) drain() {
	d.phase, d.stalled = "drains", true // who waits there is not behind others any more
	for len(d.giver.all) > 0 && d.wrong == "" {
		share, _ := json.Marshal(d.giver.l.Drain())
		d.collect(d.giver)
		for range d.r.IntN(10) {
			d.act([]*side{d.giver, d.taker}[d.r.IntN(2)])
			d.judge()
		}
		var s ledger.Share
		if err := json.Unmarshal(share, &s); err != nil {
			d.fail("%v", err)
		}
		d.taker.l.Switched(s)
		d.collect(d.taker)
		d.judge()
	}
}

// advance takes the next step of the order of an upgrade.
func (d *divide) advance() {
	switch d.phase {
	case "before":
		share := d.giver.l.Yield()
		d.share, _ = json.Marshal(share)
		for _, t := range d.giver.all {
			t.early = t.waiter != nil
		}
		d.phase = "told"
		d.collect(d.giver)
	case "told":
		var share ledger.Share
		if err := json.Unmarshal(d.share, &share); err != nil {
			d.fail("%v", err)
		}
		d.taker.l.Switched(share)
		d.phase = "switched"
		d.collect(d.taker)
	}
}

// accepts tells whether connections come in at s now.
func (d *divide) accepts(s *side) bool {
	if s == d.giver {
		return d.phase == "before" || d.phase == "switched" && d.stalled
	}
	return d.phase == "switched" || d.phase == "drains"
}

// act lets something happen at one side.
func (d *divide) act(s *side) {
	r := d.r
	tokens := make([]uint64, 0, len(s.all))
	for token := range s.all {
		tokens = append(tokens, token)
	}
	slices.Sort(tokens)
	switch {
	case d.accepts(s) && (len(tokens) == 0 || r.IntN(2) == 0):
		d.enter(s)
	case len(tokens) == 0:
	default:
		token := tokens[r.IntN(len(tokens))]
		t := s.all[token]
		switch {
		case t.waiter != nil && r.IntN(3) > 0:
		case r.IntN(3) == 0: // it ends
			d.leave(s, token)
		case t.slot != nil: // between two requests
			t.slot.Release()
			t.slot = nil
		case t.waiter == nil:
			d.ask(s, token)
		}
	}
	d.collect(s)
}

func (d *divide) enter(s *side) {
	gate, node := s.l.Listener("web"), &s.l.Node
	if !node.Enter() {
		return
	}
	if !gate.Enter() {
		node.Leave()
		return
	}
	a := netip.AddrFrom4([4]byte{10, 0, 0, byte(d.r.IntN(3))})
	if !s.l.EnterSource(d.now, d.lis, a) {
		gate.Leave()
		node.Leave()
		return
	}
	if s == d.taker {
		d.entered++
	}
	d.token++
	s.all[d.token] = &tenant{at: s, source: a}
	d.ask(s, d.token)
}

func (d *divide) ask(s *side, token uint64) {
	t := s.all[token]
	g, w, _ := s.b.Secure(d.c, &ledger.Asking{Token: token, Place: t.place, Now: d.now})
	if t.slot, t.waiter = g.Account, w; w != nil {
		t.place = w.Place()
	}
	if g.Account != nil && s == d.taker {
		d.grantedLate++
	}
}

func (d *divide) leave(s *side, token uint64) {
	t := s.all[token]
	delete(s.all, token)
	if t.waiter != nil {
		if g := s.b.Withdraw(t.waiter); g.Account != nil {
			t.slot = g.Account
		}
	}
	if t.slot != nil {
		t.slot.Release()
	}
	s.l.LeaveSource(d.lis, t.source)
	s.l.Listener("web").Leave()
	s.l.Node.Leave()
}

// collect tells those who waited what they got, and sees that it was their turn.
func (d *divide) collect(s *side) {
	for len(s.rung) > 0 {
		token := s.rung[0]
		s.rung = s.rung[1:]
		t := s.all[token]
		if t == nil || t.waiter == nil {
			continue
		}
		g := s.b.Collect(t.waiter)
		if g.Account == nil {
			continue
		}
		for _, o := range d.taker.all {
			if s == d.giver && d.phase != "before" && !d.stalled && o.waiter != nil && o.place < t.place {
				d.fail("place %d was served at the giver, place %d waits at the taker", t.place, o.place)
			}
		}
		for _, o := range d.giver.all {
			if s == d.taker && d.phase == "switched" && o.early && o.waiter != nil && o.place < t.place {
				d.fail("place %d was served at the taker, place %d waits at the giver", t.place, o.place)
			}
		}
		t.slot, t.waiter, t.place = g.Account, nil, 0
	}
}

// move takes one connection from the giver to the taker.
func (d *divide) move() {
	tokens := make([]uint64, 0, len(d.giver.all))
	for token := range d.giver.all {
		tokens = append(tokens, token)
	}
	if len(tokens) == 0 {
		return
	}
	slices.Sort(tokens)
	token := tokens[d.r.IntN(len(tokens))]
	t := d.giver.all[token]
	waited := t.waiter != nil
	if waited {
		if g := d.giver.b.Withdraw(t.waiter); g.Account != nil {
			t.slot, waited, t.place = g.Account, false, 0
		}
		t.waiter = nil
	}
	// The taker has it before the giver forgets.
	from := t.slot
	if from != nil {
		t.slot = d.taker.b.Endpoint(from.Name)
		t.slot.Import(1)
	}
	d.taker.l.Listener("web").Import()
	d.taker.l.Node.Import()
	d.taker.l.AdmitSource(d.lis, t.source)
	delete(d.giver.all, token)
	d.taker.all[token], t.at = t, d.taker
	if waited {
		d.ask(d.taker, token)
	}
	d.collect(d.taker)
	if from != nil {
		from.Forget(1)
	}
	d.giver.l.ForgetSource(d.lis, t.source)
	d.giver.l.Listener("web").Forget()
	d.giver.l.Node.Forget()
	d.collect(d.giver)
}

// judge counts what there really is.
func (d *divide) judge() {
	slots, sources, all := map[string]int{}, map[netip.Addr]int{}, 0
	for _, s := range []*side{d.giver, d.taker} {
		for _, t := range s.all {
			all++
			sources[t.source]++
			if t.slot != nil {
				slots[t.slot.Name]++
			}
		}
	}
	for _, e := range d.c.Endpoints {
		limit := d.c.ConnectionsPerEndpoint
		if e.ConnectionsMax > 0 {
			limit = e.ConnectionsMax
		}
		if n := slots[e.Ref.Name]; n > limit {
			d.fail("%s has %d connections, the limit is %d (%s)", e.Ref.Name, n, limit, d.phase)
		}
	}
	if d.most > 0 && all > d.most {
		d.fail("%d connections, the listener may have %d (%s)", all, d.most, d.phase)
	}
	for a, n := range sources {
		if most := d.lis.SourceConnectionsMax; most > 0 && n > most {
			d.fail("%v has %d connections, it may have %d (%s)", a, n, most, d.phase)
		}
	}
}

// rest sees that nothing that is free is kept from who waits, at who is alone now.
func (d *divide) rest(s *side) {
	d.judge()
	for _, e := range d.c.Endpoints {
		x := s.b.Endpoint(e.Ref.Name)
		if x.Foreign() != 0 {
			d.fail("%s: %d connections are another process's, and there is none", x.Name, x.Foreign())
		}
		if s.b.Waiting() > 0 && x.Room() {
			d.fail("%s has room, and %d wait", x.Name, s.b.Waiting())
		}
	}
	for len(s.all) > 0 {
		for token := range s.all {
			d.leave(s, token)
			break
		}
		d.collect(s)
	}
	if n := s.b.InUse(); n != 0 {
		d.fail("%d slots are held by nobody", n)
	}
	for k := 0; d.most > 0 && k < d.most; k++ {
		if !s.l.Listener("web").Enter() {
			d.fail("%d connections, and the listener is full", k)
		}
	}
}

// The property is worth nothing if the taker never lets anybody in, or grants,
// before the end, or if no history comes to its end.
func TestTwoProcessesServe(t *testing.T) {
	entered, granted, finished := 0, 0, 0
	for seed := uint64(1); seed <= 200; seed++ {
		d, end := divided(seed)
		entered, granted = entered+d.entered, granted+d.grantedLate
		if end {
			finished++
		}
	}
	if entered < 100 || granted < 100 || finished < 50 {
		t.Errorf("%d connections came in at the taker, %d slots were granted there, %d of 200 upgrades were done", entered, granted, finished)
	}
}
