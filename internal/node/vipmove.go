package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/netadmin"
	"github.com/holdfast-lb/holdfast/internal/vip"
)

const (
	// handshakesTime bounds how long is waited for handshakes that have begun here.
	handshakesTime = 3 * time.Second
	// backTime bounds how long an aborted move waits for its flows to come back.
	backTime = time.Minute
	// confirmTime bounds how long a move waits for the new owner's word; it is asked on
	// after that, and an operator can say that it is dead.
	confirmTime = 10 * time.Second
)

// vipMove is a VIP on its way to another node, at the node that gives it away. One goroutine
// uses it.
type vipMove struct {
	n    *Node
	q    MigrateRequest
	c    *config.Config
	v    *vipSeat
	t    *hostTalk
	to   netip.Addr
	tell func(Progress)

	began, since time.Time // since: of what is under way
	r            *Report
	total        int
	committed    bool
	undo         []func(context.Context) error // in the order of what they undo
}

// MigrateVIP moves a VIP that this node owns, with its flows, to another node. Until the
// record says that it is yielded, an end of ctx or an error leaves everything where it was;
// after that only the other node can own it.
func (n *Node) MigrateVIP(ctx context.Context, q MigrateRequest, tell func(Progress)) error {
	if tell == nil {
		tell = func(Progress) {}
	}
	k := &n.addresses
	if !k.turn.TryLock() {
		return fmt.Errorf("node: %w", errTurn)
	}
	defer k.turn.Unlock()
	k.mu.Lock()
	reader := n.reader()
	k.mu.Unlock()
	if reader { // a predecessor is handing over
		return fmt.Errorf("node: %w", errTurn)
	}
	if err := n.untilSettled(ctx, q.VIP, tell); err != nil {
		return err
	}
	// Neither the configuration changes meanwhile nor does an upgrade begin.
	n.change.Lock()
	defer n.change.Unlock()
	if err := n.inCharge(); err != nil {
		return err
	}
	m := &vipMove{n: n, q: q, c: n.Config(), tell: tell, began: time.Now(), since: time.Now(), r: newReport("host")}
	m.r.Phases = map[string]float64{}
	m.r.VIPs, m.r.FromNode, m.r.ToNode = []string{q.VIP}, n.self(), q.To
	if err := m.plan(ctx); err != nil {
		return err
	}
	defer m.t.Close()
	err := m.move(ctx)
	m.r.Millis = millis(time.Since(m.began))
	m.r.Pause = pauseOf(m.r.pauses)
	switch {
	case err == nil:
		text := fmt.Sprintf("done: %s and %s on %s, %d lost; pause p50 %.0f ms, p99 %.0f ms, max %.0f ms; 'holdfast migrate --vip %s --to %s' goes back",
			q.VIP, count(m.r.Flows, "flow"), q.To, m.r.Lost, m.r.Pause.P50/1000, m.r.Pause.P99/1000, m.r.Pause.Max/1000, q.VIP, n.self())
		n.log.Info("vip moved", "vip", q.VIP, "to", q.To, "flows", m.r.Flows, "residue", m.r.Residue, "lost", m.r.Lost, "took", time.Since(m.began))
		m.say(Progress{Phase: "done", Done: true, Move: m.r, Text: text})
		return nil
	case m.committed:
		err = fmt.Errorf("node: already committed; to go back run: holdfast migrate --vip %s --to %s: %w", q.VIP, n.self(), err)
	default:
		undone := m.back()
		if undone == nil {
			m.r.Flows, m.r.Residue = 0, 0 // those that had gone have come back
		}
		err = errors.Join(err, undone)
		what := "nothing moved"
		if m.r.Lost > 0 {
			what = count(m.r.Lost, "flow") + " lost"
		} else if undone != nil && m.r.Flows > 0 { // as its record says, when it hears of it
			what = fmt.Sprintf("%s had gone to %s, which gives them back when it answers", count(m.r.Flows, "flow"), m.q.To)
		}
		text := fmt.Sprintf("aborted: %s, longest pause %.0f ms", what, m.r.Pause.Max/1000)
		if ctx.Err() != nil && undone == nil { // as was asked
			err = errors.New(text)
		} else {
			err = fmt.Errorf("%s: %w", text, bare{err})
		}
	}
	n.log.Warn("vip not moved", "vip", q.VIP, "to", q.To, "error", err)
	m.say(Progress{Phase: "aborted", Done: true, Failed: err.Error(), Move: m.r, Text: err.Error()})
	return err
}

// untilSettled waits until what a former move of a VIP, or of a process that died in one, has
// left here is over: to forget it in the middle of the next move would end what that one diverts.
func (n *Node) untilSettled(ctx context.Context, name string, tell func(Progress)) error {
	k := &n.addresses
	for said := false; ; said = true {
		k.mu.Lock()
		v, err := k.seatOf(name)
		over := err != nil || v.guest.to == "" || !v.seat.Holds(vipNow())
		k.mu.Unlock()
		if over {
			return nil // the plan says what is wrong
		}
		if !said {
			tell(Progress{Phase: "plan", VIP: name, Text: fmt.Sprintf("waiting until a former move of %s has settled", name)})
		}
		if err := sleep(ctx, settledLook); err != nil {
			return fmt.Errorf("node: a former move of %s has not settled yet: %w", name, err)
		}
	}
}

// settledLook is the time between two looks whether a VIP has settled.
const settledLook = 20 * time.Millisecond

func (m *vipMove) say(p Progress) {
	p.VIP, p.From, p.To, p.Committed = m.q.VIP, m.n.self(), m.q.To, m.committed
	if p.FlowsTotal == 0 {
		p.FlowsTotal = max(m.total, m.r.Flows)
	}
	if p.Flows == 0 {
		p.Flows = m.r.Flows
	}
	p.Octets, p.Pause = max(p.Octets, m.r.Octets), m.r.Pause
	m.tell(p)
}

// took notes what the time since the last call was for.
func (m *vipMove) took(phase string) {
	now := time.Now()
	m.r.Phases[phase] += millis(now.Sub(m.since))
	m.since = now
}

// undoes notes how to undo what was done.
func (m *vipMove) undoes(f func(context.Context) error) { m.undo = append(m.undo, f) }

// back undoes what was done, the last first.
func (m *vipMove) back() (err error) {
	ctx, cancel := context.WithTimeout(m.n.ends, backTime)
	defer cancel()
	for _, f := range slices.Backward(m.undo) {
		err = errors.Join(err, f(ctx))
	}
	return err
}

// askPlan asks whether the other node can take a VIP.
const askPlan = "vip.plan"

// vipPlan is what both must agree on.
type vipPlan struct {
	VIP       string       `json:"vip"`
	Address   netip.Prefix `json:"address"`
	Listeners []config.Ref `json:"listeners"`
}

// listenersOf are the listeners on a VIP, in the order of their names.
func listenersOf(c *config.Config, name string) (all []*config.Listener) {
	for _, l := range c.SortedListeners() {
		if l.VIPName == name {
			all = append(all, l)
		}
	}
	return all
}

func planOf(c *config.Config, name string, at netip.Prefix) vipPlan {
	p := vipPlan{VIP: name, Address: at}
	for _, l := range listenersOf(c, name) {
		p.Listeners = append(p.Listeners, l.Ref)
	}
	return p
}

// plan looks whether the move can be made, and changes nothing.
func (m *vipMove) plan(ctx context.Context) (err error) {
	n, k := m.n, &m.n.addresses
	k.mu.Lock()
	m.v, err = k.seatOf(m.q.VIP)
	if err == nil {
		if r := m.v.seat.Record(); !m.v.seat.Holds(vipNow()) {
			err = fmt.Errorf("node: VIP %s is not this node's to give (%v): %w", m.q.VIP, r, vip.ErrNotOwner)
		}
	}
	k.mu.Unlock()
	if err != nil {
		return err
	}
	if m.q.To == n.self() {
		return fmt.Errorf("node: VIP %s is on %s", m.q.VIP, m.q.To)
	}
	if flows, old := n.upgrades.remainsOf(m.q.VIP); flows > 0 {
		return fmt.Errorf("node: %s of VIP %s drain in process %d, which an upgrade has left, and would be lost: move it when they have ended, or end them: holdfast flows kill", count(flows, "flow"), m.q.VIP, old)
	}
	if m.t, err = n.talk(ctx, m.q.To); err != nil {
		return err
	}
	m.to = m.t.at
	if err := m.t.Ask(ctx, askPlan, planOf(m.c, m.v.name, m.v.at), nil); err != nil {
		m.t.Close()
		return err
	}
	m.total = len(m.here(nil))
	m.say(Progress{Phase: "plan", Text: fmt.Sprintf("plan: %s + %s, %s -> %s", m.q.VIP, count(m.total, "flow"), n.self(), m.q.To)})
	return nil
}

// hearPlan tells whether this node can take a VIP.
func (n *Node) hearPlan(peer string, q vipPlan) (struct{}, error) {
	refused := func(why string) (struct{}, error) {
		return struct{}{}, &frozen.Refused{What: "vip " + q.VIP, Why: why}
	}
	if err := n.knownNode(peer); err != nil {
		return struct{}{}, err
	}
	k := &n.addresses
	k.mu.Lock()
	still, leaves := k.still || n.reader(), k.leaves
	k.mu.Unlock()
	if leaves {
		return refused(n.self() + " is about to end")
	}
	if still || n.handingOver() {
		return struct{}{}, errUpgrade
	}
	c := n.Config()
	v := c.VIPs[q.VIP]
	switch {
	case v == nil:
		return refused(n.self() + " has no such VIP in its configuration")
	case v.Address != q.Address:
		return refused(fmt.Sprintf("it is %v there and %v on %s", q.Address, v.Address, n.self()))
	case !slices.Equal(planOf(c, v.Name, v.Address).Listeners, q.Listeners):
		return refused("the listeners on it are not the same on both nodes: apply one file to both")
	}
	return struct{}{}, nil
}

// isOn tells whether a flow is one that moves with an address.
func isOn(f *flow.Flow, a netip.Addr) bool {
	return f.Listener().Movable && f.Listener().VIP.Addr() == a
}

// here lists the flows on the VIP that are here, and adds their tuples to ts.
func (m *vipMove) here(ts *[]netadmin.Tuple) map[uint64]bool { return m.n.flowsOn(m.v.addr(), ts) }

// flowsOn lists flows on an address.
func (n *Node) flowsOn(a netip.Addr, ts *[]netadmin.Tuple) map[uint64]bool {
	all := map[uint64]bool{}
	for _, l := range n.shared.Loops {
		l.Ask(func(l *loop.Loop) {
			l.Look(0, 1<<30, func(i uint32, f *flow.Flow) {
				if !isOn(f, a) {
					return
				}
				all[f.ID()] = true
				if ts == nil {
					return
				}
				for _, t := range tuplesOf(l, i, f) {
					*ts = append(*ts, netadmin.Tuple(t))
				}
			})
		})
	}
	return all
}

// move makes the move after its plan.
func (m *vipMove) move(ctx context.Context) error {
	n, a, admin := m.n, m.v.addr(), m.n.host.admin
	m.took("plan")
	what := vip.Move{Name: m.q.VIP, From: n.self(), To: m.q.To}
	if err := n.arbiter(ctx).Begin(what); err != nil {
		return err
	}
	m.undoes(func(ctx context.Context) error { return n.arbiter(ctx).Cancel(what) })
	m.took("record")

	if err := m.t.Ask(ctx, askGuest, vipGuest{VIP: m.q.VIP, On: true}, nil); err != nil {
		return err
	}
	// What follows is undone before the record is: only then does the other node know
	// that it is no guest any more, should it not hear of this.
	m.undoes(m.comeBack)
	if err := m.dialled(ctx); err != nil {
		return err
	}
	var at []netip.AddrPort
	for _, l := range listenersOf(m.c, m.q.VIP) {
		at = append(at, l.VIP)
	}
	m.undoes(func(context.Context) error { return admin.Learn(nil) })
	if err := admin.Learn(at); err != nil {
		return err
	}
	if _, err := admin.Handshakes(a); err != nil {
		return err
	}
	// From here on the other node grants, too: what is held here counts there until all
	// flows have gone.
	if err := m.t.Open(); err != nil {
		return err
	}
	m.undoes(func(context.Context) error { return admin.Lead(a, netip.Addr{}) })
	if err := admin.Lead(a, m.to); err != nil {
		return err
	}
	m.say(Progress{Phase: "hold", Text: fmt.Sprintf("hold on %s and %s; new connections go to %s", n.self(), m.q.To, m.q.To)})
	m.took("hold")
	// Idle legs do not move; their addresses do.
	n.askAll(func(l *loop.Loop) { l.CloseIdle("") })
	if err := m.flows(ctx); err != nil {
		return err
	}
	m.took("flows")
	if m.r.Flows == 0 && m.r.Refused > 0 {
		// A route or an address may be missing there: what comes new would fare no better.
		return fmt.Errorf("node: %s took none of %d flows: %s", m.q.To, m.r.Refused, oneReason(m.r.Reasons))
	}
	left, err := m.handshakes(ctx)
	if err == nil && left == 0 {
		// A client that uses a port again that was learnt begins anew, and there.
		if err = admin.Learn(nil); err == nil {
			left, err = m.handshakes(ctx)
		}
	}
	m.took("handshakes")
	if err != nil {
		return err
	}
	if left > 0 {
		n.log.Warn("handshakes with a vip did not end in time and are dropped", "vip", m.q.VIP, "handshakes", left)
	}
	if err := m.flows(ctx); err != nil {
		return err
	}
	m.took("flows")
	if err := m.t.Settle(); err != nil {
		return err
	}
	// Those of flows that went meanwhile.
	n.askAll(func(l *loop.Loop) { l.CloseIdle("") })
	stays, err := m.residue(ctx)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	m.say(Progress{Phase: "address", Text: fmt.Sprintf("%s: %s on %s, the address follows", m.q.VIP, count(m.r.Flows, "flow"), m.q.To)})
	return m.address(what, stays)
}

// dialled tells the new owner of legs whose ports it dialled from itself.
func (m *vipMove) dialled(ctx context.Context) error {
	to := m.c.Cluster.Nodes[m.q.To]
	if to == nil {
		return nil
	}
	var all []netadmin.Tuple
	m.here(&all)
	theirs := slices.DeleteFunc(all, func(t netadmin.Tuple) bool {
		return t.Local.Port() < to.SourcePortFirst || t.Local.Port() > to.SourcePortLast
	})
	for part := range slices.Chunk(theirs, dialledMost) {
		if err := m.t.Ask(ctx, askDialled, vipDialled{VIP: m.q.VIP, Tuples: part}, nil); err != nil {
			return err
		}
	}
	return nil
}

// flows moves what is here, until a pass finds none.
func (m *vipMove) flows(ctx context.Context) error {
	before := m.r.Flows
	r, err := m.t.flows(ctx, func(f *flow.Flow) bool { return isOn(f, m.v.addr()) }, func(p Progress) {
		p.Phase = "flows"
		p.Flows += before
		p.FlowsTotal = max(m.total, p.Flows)
		m.say(p)
	})
	if r != nil {
		m.r.add(r)
		m.r.pauses = append(m.r.pauses, r.pauses...)
		slices.Sort(m.r.pauses)
		m.r.Pause = pauseOf(m.r.pauses)
	}
	return err
}

// handshakes waits until none that began here is unfinished and the queues of the listeners are
// empty. left are those that did not finish in time.
func (m *vipMove) handshakes(ctx context.Context) (left int, err error) {
	n, end := m.n, time.Now().Add(handshakesTime)
	said := false
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		ts, err := n.host.admin.Handshakes(m.v.addr())
		if err != nil {
			return 0, err
		}
		// First the handshakes and then the queues: one that ends in between is there.
		before := len(m.here(nil))
		m.acceptRest()
		m.r.Handshakes += max(0, len(m.here(nil))-before)
		if len(ts) == 0 || time.Now().After(end) {
			return len(ts), nil
		}
		if !said {
			said = true
			m.say(Progress{Phase: "handshakes", Text: count(len(ts), "handshake") + " under way here, to be finished here"})
		}
		if err := sleep(ctx, pause); err != nil {
			return 0, err
		}
	}
}

// acceptRest accepts what waits in the queues of the VIP's listeners.
func (m *vipMove) acceptRest() {
	n := m.n
	n.mu.Lock()
	g := n.gen
	n.mu.Unlock()
	for _, l := range listenersOf(m.c, m.q.VIP) {
		x := g.Listening[l.Ref.Name]
		if x == nil {
			continue
		}
		for empty, tries := false, 0; !empty && tries < retireTries; tries++ {
			n.shared.Loops[0].Ask(func(l *loop.Loop) { empty = l.AcceptRest(x) })
		}
	}
	n.askAll(func(*loop.Loop) {}) // what was handed on to another loop has arrived
}

// residue makes flows that cannot move stay here, when everything else on the VIP goes.
func (m *vipMove) residue(ctx context.Context) (*residueOf, error) {
	x := &residueOf{vip: m.q.VIP, until: time.Now().Add(m.q.Drain)}
	if m.q.Drain == 0 {
		x.until = time.Now().Add(drainTime)
	}
	x.flows = m.here(&x.tuples)
	m.r.Residue = len(x.flows)
	m.r.remain(x.flows)
	// Flows that have ended here, and whose clients do not have their last octets yet.
	closing, err := m.n.host.admin.Closing(m.v.addr())
	if err != nil {
		return nil, err
	}
	x.tuples = append(x.tuples, closing...)
	if len(x.tuples) == 0 {
		return nil, nil
	}
	x.reasons = m.r.Reasons
	if err := m.n.host.admin.Here(x.tuples); err != nil {
		return nil, err
	}
	for part := range slices.Chunk(x.tuples, dialledMost) {
		if err := m.t.Ask(ctx, askStays, vipStays{VIP: m.q.VIP, Tuples: part}, nil); err != nil {
			return nil, err
		}
	}
	return x, nil
}

// address hands over the address itself. From the record on there is no way back but
// another move.
func (m *vipMove) address(what vip.Move, stays *residueOf) error {
	n, a, admin, k := m.n, m.v.addr(), m.n.host.admin, &m.n.addresses
	m.undoes(func(context.Context) error { return admin.Forward(a, netip.Addr{}) })
	if err := admin.Forward(a, m.to); err != nil {
		return err
	}
	lease := m.c.Cluster.Lease
	m.undoes(func(context.Context) error { return admin.Guest(a, 0) })
	if err := admin.Guest(a, lease); err != nil {
		return err
	}
	// From here on this node is a guest, until neighbours know where the address is. That they
	// begin to learn when the new owner has it, and until then what comes is sent on: a new
	// owner that was slow to take it once found connections that had begun here.
	settle := m.c.Cluster.Settle
	k.mu.Lock()
	m.v.guest = guesthood{on: true, to: m.q.To, forget: time.Now().Add(confirmTime + settle), stays: stays}
	k.mu.Unlock()
	m.took("residue")
	ctx, cancel := context.WithTimeout(n.ends, confirmTime)
	defer cancel()
	err := n.arbiter(ctx).Finish(what)
	k.mu.Lock()
	r := m.v.seat.Record()
	if r.Stage == vip.Moving && r.From == n.self() {
		m.v.guest = guesthood{} // not even the record says that it has gone
	} else {
		m.committed = true
	}
	if g := &m.v.guest; err == nil && g.on && g.to == m.q.To {
		g.forget = time.Now().Add(settle)
	}
	k.mu.Unlock()
	if err != nil {
		return err
	}
	m.took("address")
	m.r.AddressMillis = m.r.Phases["address"]
	if err := admin.Learn(nil); err != nil {
		n.log.Warn("what was learnt of handshakes is not forgotten", "vip", m.q.VIP, "error", err)
	}
	m.say(Progress{Phase: "settling", Text: fmt.Sprintf("commit (owner %s, epoch %d); for %v what comes late is sent on to it", m.q.To, r.Epoch, m.c.Cluster.Settle)})
	return nil
}

// askBack asks for the flows that have gone.
const askBack = "vip.back"

// vipNamed names a VIP.
type vipNamed struct {
	VIP string `json:"vip"`
}

// comeBack has the flows that have gone come back. Where that cannot be asked, the other node
// brings them when it hears that the move is cancelled, and until then what is for them is sent on.
func (m *vipMove) comeBack(ctx context.Context) error {
	n, a := m.n, m.v.addr()
	t, err := n.talk(ctx, m.q.To) // that of the move may be what has failed
	if err == nil {
		err = t.Ask(ctx, askBack, vipNamed{m.q.VIP}, nil)
		t.Close()
	}
	if err == nil {
		return n.host.admin.Forget(a)
	}
	k := &n.addresses
	k.mu.Lock()
	m.v.guest = guesthood{to: m.q.To, forget: time.Now().Add(m.c.Cluster.Settle)}
	k.mu.Unlock()
	return fmt.Errorf("flows that have gone to %s could not be asked back: %w", m.q.To, err)
}

// peersArbiter makes the transactions by asking the other nodes: the operator decides who
// owns what, and each node keeps a record.
type peersArbiter struct {
	n   *Node
	ctx context.Context // while it may go on asking
}

// arbiter is who decides, for as long as ctx lasts.
func (n *Node) arbiter(ctx context.Context) vip.Arbiter { return peersArbiter{n, ctx} }

// Begin tells the new owner and then the others, and writes when enough have agreed.
func (x peersArbiter) Begin(m vip.Move) error {
	ctx, n, k := x.ctx, x.n, &x.n.addresses
	k.mu.Lock()
	v, err := k.seatOf(m.Name)
	var r vip.Record
	if err == nil {
		r, err = v.seat.Begin(vipNow(), m.To)
	}
	k.mu.Unlock()
	if err != nil {
		return err
	}
	q := vipBeat{Records: map[string]vip.Record{m.Name: r}}
	answers := map[string]vip.Record{}
	hear := func(peers []string) {
		for peer, a := range n.askBeats(ctx, q, peers, answerTime) {
			if r, ok := a.Records[m.Name]; ok {
				answers[peer] = r
			}
		}
	}
	// Who is in the middle of another question is asked again.
	for end := time.Now().Add(answerTime); ctx.Err() == nil; {
		if hear([]string{m.To}); answers[m.To] == r || time.Now().After(end) {
			break
		}
		_ = sleep(ctx, 5*time.Millisecond)
	}
	if answers[m.To] == r {
		hear(slices.DeleteFunc(othersOf(n.Config()), func(name string) bool { return name == m.To }))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	step, err := v.seat.Begun(vipNow(), answers)
	if err != nil {
		return err
	}
	return n.carry(v, step)
}

// Cancel writes that the move was none; the other nodes hear of it.
func (x peersArbiter) Cancel(m vip.Move) error {
	n, k := x.n, &x.n.addresses
	k.mu.Lock()
	v, err := k.seatOf(m.Name)
	if err == nil {
		var step vip.Step
		if step, err = v.seat.Cancel(); err == nil {
			err = n.carry(v, step)
		}
	}
	k.mu.Unlock()
	n.roundNow(x.ctx)
	return err
}

// Finish writes that the address is yielded, lets go of it, and tells its new owner until
// that one has confirmed it.
func (x peersArbiter) Finish(m vip.Move) error {
	ctx, n, k := x.ctx, x.n, &x.n.addresses
	k.mu.Lock()
	v, err := k.seatOf(m.Name)
	if err == nil && v.seat.Record().Stage == vip.Moving {
		var step vip.Step
		if step, err = v.seat.Yield(); err == nil {
			err = n.carry(v, step)
		}
	}
	if err == nil {
		err = n.disown(v)
	}
	var r vip.Record
	if err == nil {
		r = v.seat.Record()
	}
	k.mu.Unlock()
	if err != nil {
		return err
	}
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		if r.Stage != vip.Yielded || r.From != n.self() {
			return nil // it was confirmed
		}
		if err = n.confirm(ctx, v, r); err == nil {
			return nil
		}
		if sleep(ctx, pause) != nil {
			return fmt.Errorf("%s has not confirmed that it owns %s and is asked on; until then nobody answers for it: %w", m.To, m.Name, err)
		}
		k.mu.Lock()
		r = v.seat.Record()
		k.mu.Unlock()
	}
}

// Records are what is known here.
func (x peersArbiter) Records() map[string]vip.Record {
	k := &x.n.addresses
	k.mu.Lock()
	defer k.mu.Unlock()
	all := map[string]vip.Record{}
	for name, v := range k.seats {
		all[name] = v.seat.Record()
	}
	return all
}

// askYield tells a node that a VIP is its own now.
const askYield = "vip.yield"

// vipYield is that, and the answer.
type vipYield struct {
	VIP    string     `json:"vip"`
	Record vip.Record `json:"record"`
}

// confirm tells the new owner that r is yielded, and writes its word.
func (n *Node) confirm(ctx context.Context, v *vipSeat, r vip.Record) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	k := &n.addresses
	k.mu.Lock()
	err := error(nil)
	if v.lasts > vipNow() { // it could not be ended before
		err = n.disown(v)
	}
	k.mu.Unlock()
	if err != nil {
		return err
	}
	t, err := n.talk(ctx, r.Owner)
	if err != nil {
		return err
	}
	defer t.Close()
	var a vipYield
	if err := t.Ask(ctx, askYield, vipYield{v.name, r}, &a); err != nil {
		return err
	}
	if err := a.Record.Check(); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return n.carry(v, v.seat.Hear(vipNow(), a.Record))
}

// hearYield takes a VIP over from the node that gives it.
func (n *Node) hearYield(peer string, q vipYield) (a vipYield, err error) {
	k := &n.addresses
	k.mu.Lock()
	v, err := k.seatOf(q.VIP)
	var step vip.Step
	if err == nil && n.reader() {
		err = errNotServing
	}
	if err == nil && q.Record.From != peer {
		err = fmt.Errorf("%s gives what is not its own", peer)
	}
	if err == nil {
		if step, err = v.seat.Accept(vipNow(), q.Record); err == nil {
			err = n.carry(v, step)
		}
	}
	if err == nil && v.guest.giver != "" {
		err = n.allOurs(v)
	}
	k.mu.Unlock()
	if err != nil {
		return a, &frozen.Refused{What: "vip " + q.VIP, Why: err.Error(), Retry: true}
	}
	ctx, cancel := context.WithTimeout(n.ends, answerTime/2)
	defer cancel()
	n.roundNow(ctx) // the kernel lets it pass, and neighbours hear of it
	k.mu.Lock()
	defer k.mu.Unlock()
	n.guestNoMore(v)
	return vipYield{q.VIP, v.seat.Record()}, nil
}

// allOurs has all that comes for a VIP stay here. The caller holds mu.
func (n *Node) allOurs(v *vipSeat) error {
	n.undialled(v)
	return n.host.admin.Forward(v.addr(), netip.Addr{})
}

// guestNoMore ends what a node was as the guest of a VIP, once it owns it. The caller holds mu.
func (n *Node) guestNoMore(v *vipSeat) {
	if v.guest.giver == "" || !v.seat.Holds(vipNow()) {
		return
	}
	err := n.allOurs(v)
	if err == nil {
		err = n.host.admin.Guest(v.addr(), 0)
	}
	if err != nil {
		n.log.Warn("a vip that is owned is still a guest", "vip", v.name, "error", err)
		return
	}
	v.guest = guesthood{}
}

// oneReason is one of the reasons for which flows were refused, the commonest.
func oneReason(reasons map[string]int) (best string) {
	for why, n := range reasons {
		if most := reasons[best]; n > most || n == most && why < best {
			best = why
		}
	}
	return best
}
