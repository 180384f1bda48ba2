package node

import (
	"context"
	"encoding"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/netadmin"
	"github.com/holdfast-lb/holdfast/internal/sock"
	"github.com/holdfast-lb/holdfast/tcprepair"
)

// sentObjects are objects of the configuration that a peer has.
type sentObjects map[config.Ref]bool

// Open begins what Flows else begins and ends by itself, for several calls of it and
// what comes between: from here to Settle, or the end of the talk, this node grants nothing that
// is limited, and the peer all but what this node holds; where somebody waits here nobody
// is served before all have come. Who leads new connections to the peer opens first.
func (t *hostTalk) Open() error {
	if t.left != nil {
		return nil
	}
	if err := t.Tell(); err != nil {
		return fmt.Errorf("node: peer %s: %w", t.peer, err)
	}
	l := t.n.shared.Ledger
	l.Pause()
	t.left = map[*ledger.Endpoint]int64{}
	if err := t.giving.Open(move.Coming{Talk: t.id, Held: l.Held(), Waits: l.Waited()}); err != nil {
		t.letGo()
		return fmt.Errorf("node: peer %s: %w", t.peer, err)
	}
	return nil
}

// Settle ends Open: each side's limits are its own again.
func (t *hostTalk) Settle() error {
	if t.left == nil {
		return nil
	}
	err := t.giving.Settle()
	t.letGo()
	if err == nil {
		err = t.Tell()
	}
	if err != nil {
		return fmt.Errorf("node: peer %s: %w", t.peer, err)
	}
	return nil
}

// letGo ends Open on this side.
func (t *hostTalk) letGo() {
	if t.left == nil {
		return
	}
	for account, left := range t.left { // they are the peer's
		account.AddForeign(-left)
	}
	t.left = nil
	t.n.shared.Ledger.Resume()
}

// flows moves flows; the caller holds change.
func (t *hostTalk) flows(ctx context.Context, want func(f *flow.Flow) bool, tell func(Progress)) (*Report, error) {
	n, began := t.n, time.Now()
	g := &hostGiver{t: t, n: n, ctx: ctx, tell: tell, want: want, r: newReport("host"), began: flow.Instant(sock.Monotonic())}
	opened := t.left != nil
	err := t.Open()
	if err == nil {
		err = t.giving.Give(g, move.Coming{})
	}
	var no *frozen.Refused
	if !opened && (err == nil || errors.Is(err, ctx.Err()) || errors.As(err, &no)) {
		err = errors.Join(err, t.Settle())
	}
	if !opened {
		t.letGo()
	}
	n.totals.move(g.r)
	return g.r.done(began), err
}

// hostGiver is this node while its flows go to another host: a [move.HostGiver].
type hostGiver struct {
	t     *hostTalk
	n     *Node
	ctx   context.Context
	tell  func(Progress)
	want  func(f *flow.Flow) bool // which move; nil: all that may
	r     *Report
	began flow.Instant // flows that came later stay, or there were no end of it

	at    int        // the loop that is next
	from  *loop.Loop // the one that is gone through
	slots []uint32   // of it, that are still to be looked at
	tried func(id uint64) int
	said  time.Time

	spare []*tcprepair.State // whose room for queues is used again
	room  int                // of it, in octets
}

// spareMost bounds what is kept of it: two lots of the usual size, and a large one.
const spareMost = 4 << 20

// state is room for what is saved of a socket.
func (g *hostGiver) state() *tcprepair.State {
	n := len(g.spare)
	if n == 0 {
		return new(tcprepair.State)
	}
	s := g.spare[n-1]
	g.spare = g.spare[:n-1]
	g.room -= cap(s.RecvQueue) + cap(s.SendQueue)
	return s
}

// drop lets go of what was saved of a flow's sockets.
func (g *hostGiver) drop(f *hostFlow) {
	for _, s := range f.saved {
		if n := cap(s.RecvQueue) + cap(s.SendQueue); g.room+n <= spareMost {
			g.spare = append(g.spare, s)
			g.room += n
		}
	}
	f.saved = nil
}

// hostSpot is where a candidate is.
type hostSpot struct {
	loop *loop.Loop
	slot uint32
}

// hostLotOf is what the giver keeps of a lot.
type hostLotOf struct {
	from  *loop.Loop
	flows []*hostFlow
}

// hostFlow is one flow of a lot, on the giving side.
type hostFlow struct {
	parked loop.Parked
	tuples []move.Tuple
	saved  []*tcprepair.State // by descriptor
	down   bool               // the sockets that are connected are in repair mode
}

// Stopped tells whether who asked for it wants no more.
func (g *hostGiver) Stopped() error {
	if g.tell != nil && time.Since(g.said) >= tellEvery {
		g.said = time.Now()
		g.tell(Progress{Phase: "flows", Flows: g.r.given, FlowsTotal: g.r.given + g.n.flows(), Text: count(g.r.given, "flow") + " moved"})
	}
	return g.ctx.Err()
}

// restMost bounds how long is rested between two rounds.
const restMost = 200 * time.Millisecond

// Rest lets pass what keeps some flows from moving.
func (g *hostGiver) Rest(round int) {
	_ = sleep(g.ctx, min(restMost, 5*time.Millisecond<<min(round, 10)))
}

// Next lists flows that may go.
func (g *hostGiver) Next(most int, tries func(id uint64) int) (some []move.Candidate) {
	g.tried = tries
	for {
		if len(g.slots) == 0 && !g.nextLoop() {
			return nil
		}
		slots := g.slots[:min(most, len(g.slots))]
		g.slots = g.slots[len(slots):]
		g.from.Ask(func(l *loop.Loop) {
			for _, i := range slots {
				f := l.Flow(i)
				if f == nil || !g.may(f) {
					continue
				}
				x := move.Candidate{ID: f.ID(), Tries: tries(f.ID()), Of: hostSpot{l, i}}
				if x.Tuples = tuplesOf(l, i, f); x.Tuples != nil {
					some = append(some, x)
				}
			}
		})
		if len(some) > 0 {
			return some
		}
	}
}

// nextLoop lists what the next loop has; false: all have been gone through.
func (g *hostGiver) nextLoop() bool {
	for g.at < len(g.n.shared.Loops) {
		g.from = g.n.shared.Loops[g.at]
		g.at++
		g.from.Ask(func(l *loop.Loop) { g.slots = l.Slots(0, g.may) })
		if len(g.slots) > 0 {
			return true
		}
	}
	g.at = 0
	return false
}

// may tells whether a flow is to go.
func (g *hostGiver) may(f *flow.Flow) bool {
	return f.Listener().Movable && f.Born() <= g.began && (g.want == nil || g.want(f)) && g.tried(f.ID()) < move.HostTries
}

// tuplesOf are those of a flow's legs that have sockets that move; nil: one of them
// was reset a moment ago and has no peer any more.
func tuplesOf(l *loop.Loop, i uint32, f *flow.Flow) []move.Tuple {
	client, ok := tupleOf(l.Leg(i, flow.Client))
	if !ok {
		return nil
	}
	ts := []move.Tuple{client}
	if fd := l.Leg(i, flow.Backend); f.State() == flow.Relaying && fd >= 0 {
		backend, ok := tupleOf(fd)
		if !ok {
			return nil
		}
		ts = append(ts, backend)
	}
	return ts
}

func tupleOf(fd sock.FD) (t move.Tuple, ok bool) {
	t = move.Tuple{Local: sock.LocalAddr(fd), Remote: sock.PeerAddr(fd)}
	return t, t.Local.IsValid() && t.Remote.IsValid()
}

// Park takes flows out of their loop and puts their sockets down.
func (g *hostGiver) Park(some []move.Candidate) (lot *move.Lot, dealt int, stay []move.Refusal, err error) {
	of := &hostLotOf{from: some[0].Of.(hostSpot).loop}
	stays := func(id uint64, what, why string) {
		stay = append(stay, move.Refusal{Flow: id, What: what, Why: why, Retry: true})
	}
	var changed []loop.Parked
	of.from.Ask(func(l *loop.Loop) {
		queued := 0
		for _, x := range some {
			i := x.Of.(hostSpot).slot
			f := l.Flow(i)
			if f == nil || f.ID() != x.ID {
				dealt++
				continue // it has ended
			}
			// What one flow brings along all others of its lot wait for.
			octets := sock.Queued(l.Leg(i, flow.Client))
			if fd := l.Leg(i, flow.Backend); fd >= 0 {
				octets += sock.Queued(fd)
			}
			if queued += octets; queued > move.HostLotOctets && len(of.flows) > 0 {
				return
			}
			dealt++
			p, ok := l.Park(i)
			if !ok {
				continue
			}
			queued += p.Octets
			h := &hostFlow{parked: p}
			// A flow of HTTP may have another backend leg by now; its client's is the same.
			h.tuples = append(h.tuples, x.Tuples[0])
			if len(p.FDs) > 1 && flow.State(p.Frozen.State) == flow.Relaying {
				t, _ := tupleOf(p.FDs[1]) // of one that was reset it is none that was listed
				h.tuples = append(h.tuples, t)
			}
			if !slices.Equal(h.tuples, x.Tuples) {
				changed = append(changed, p)
				stays(x.ID, "leg", "it was another one a moment ago")
				continue
			}
			if slices.ContainsFunc(h.tuples, func(t move.Tuple) bool { return t.Local.Addr() == t.Remote.Addr() }) {
				changed = append(changed, p)
				stay = append(stay, move.Refusal{Flow: x.ID, What: "leg", Why: "it is between the address and itself: who is at its other end is on this host and bound no other"})
				continue
			}
			of.flows = append(of.flows, h)
		}
	})
	g.serve(of.from, changed)
	if len(of.flows) == 0 {
		return nil, dealt, stay, nil
	}
	late := map[uint64]bool{}
	for _, x := range some {
		late[x.ID] = x.Tries > move.HostTries/2
	}
	if err := g.freeze(of, late, &stay); err != nil {
		return nil, dealt, stay, err
	}
	if len(of.flows) == 0 {
		return nil, dealt, stay, nil
	}
	return g.pack(of), dealt, stay, nil
}

// pack makes the lot of flows whose sockets are put down.
func (g *hostGiver) pack(of *hostLotOf) *move.Lot {
	var flows []*frozen.Flow
	var objects []*frozen.Object
	var since []int64
	var sockets []encoding.BinaryAppender
	for _, f := range of.flows {
		for i, g := range connected(f.parked.Frozen) {
			sockets = append(sockets, f.saved[i])
			g.Fd = uint32(len(sockets))
		}
		flows = append(flows, f.parked.Frozen)
		objects = append(objects, g.n.registry.portable(f.parked.Frozen, g.t.sent)...)
		since = append(since, int64(f.parked.Since))
	}
	lot := move.NewLot(flows, objects, nil, since, of)
	lot.Sockets = sockets
	return lot
}

func (of *hostLotOf) tuples() (ts []netadmin.Tuple) {
	for _, f := range of.flows {
		for _, t := range f.tuples {
			ts = append(ts, netadmin.Tuple(t))
		}
	}
	return ts
}

// freeze diverts, puts the sockets into repair mode and their state into the frozen
// flows. Flows that will not freeze go back to their loop.
func (g *hostGiver) freeze(of *hostLotOf, late map[uint64]bool, stay *[]move.Refusal) error {
	var back hostLotOf
	back.from = of.from
	kept := of.flows[:0]
	// All at once, for it is a word with the privileged process, and diverted first:
	// repair mode does not stop the stack. What then will not be saved leaves repair mode
	// again when it is put back.
	var fds []int
	for _, f := range of.flows {
		for _, fd := range f.connected() {
			fds = append(fds, int(fd))
		}
	}
	errs, err := g.n.host.admin.Freeze(of.tuples(), g.t.at, fds)
	for _, f := range of.flows {
		f.down = err == nil || slices.ContainsFunc(f.connected(), func(fd sock.FD) bool { return tcprepair.InRepair(int(fd)) })
	}
	if err != nil {
		return errors.Join(err, g.putBack(of))
	}
	if err := errors.Join(errs...); err != nil {
		g.n.log.Warn("sockets that do not enter repair mode", "error", err) // each says so itself
	}
	for _, f := range of.flows {
		id := f.parked.Frozen.Id
		err := g.save(f, late[id])
		if err == nil {
			kept = append(kept, f)
			continue
		}
		no := move.Refusal{Flow: id, What: "socket", Why: err.Error(), Retry: true}
		var unsupported *tcprepair.Unsupported
		if errors.As(err, &unsupported) {
			no.Retry = unsupported.Retry
		}
		*stay = append(*stay, no)
		back.flows = append(back.flows, f)
	}
	of.flows = kept
	if len(back.flows) == 0 {
		return nil
	}
	if err := g.putBack(&back); err != nil {
		return errors.Join(err, g.putBack(of))
	}
	return nil
}

// connected are the descriptors that have a connection: not one that is being dialled.
func (f *hostFlow) connected() []sock.FD {
	if flow.State(f.parked.Frozen.State) != flow.Relaying {
		return f.parked.FDs[:1]
	}
	return f.parked.FDs
}

// resume ends the repair mode of these flows' sockets.
func (g *hostGiver) resume(flows []*hostFlow) (errs []error) {
	var sockets []tcprepair.Socket
	for _, f := range flows {
		if !f.down {
			continue
		}
		f.down = false
		for _, fd := range f.connected() {
			sockets = append(sockets, tcprepair.Socket{FD: int(fd)})
		}
	}
	tcprepair.ResumeAll(sockets, g.n.host.admin.Repair)
	for i := range sockets {
		if sockets[i].Err != nil {
			errs = append(errs, sockets[i].Err)
		}
	}
	return errs
}

// save freezes the flow's sockets. late allows what costs a retransmission.
func (g *hostGiver) save(f *hostFlow, late bool) error {
	z := f.parked.Frozen
	for i, fd := range f.parked.FDs {
		if i > 0 && flow.State(z.State) != flow.Relaying {
			continue // being dialled: the peer dials again
		}
		s := g.state()
		f.saved = append(f.saved, s)
		if err := tcprepair.SaveTo(s, int(fd), tcprepair.SaveOptions{AllowOutOfOrder: late}); err != nil {
			return err
		}
	}
	if flow.State(z.State) != flow.Relaying && len(z.Legs) > 0 {
		if z.Legs[0].Fd = 0; len(z.Legs[0].Unsent) == 0 {
			z.Legs = nil
		}
	}
	return nil
}

// Verify names flows whose sockets are not what was offered.
func (g *hostGiver) Verify(lot *move.Lot) (moved []move.Refusal) {
	for _, f := range lot.Of.(*hostLotOf).flows {
		for i, s := range f.saved {
			if err := tcprepair.Verify(int(f.parked.FDs[i]), s); err != nil {
				moved = append(moved, move.Refusal{Flow: f.parked.Frozen.Id, What: "socket", Why: err.Error(), Retry: true})
				break
			}
		}
	}
	return moved
}

// Return gives a lot back to its loop.
func (g *hostGiver) Return(lot *move.Lot) error {
	for _, o := range lot.Objects { // it may not have seen them
		for kind, k := range frozenKinds {
			if k == o.Kind {
				delete(g.t.sent, config.Ref{Kind: kind, Name: o.Name, Version: o.Version})
			}
		}
	}
	return g.putBack(lot.Of.(*hostLotOf))
}

// putBack gives flows that were not committed back to their loop: sockets
// leave repair mode and segments come here again. The peer still holds them
// and drops that when it hears of it.
func (g *hostGiver) putBack(of *hostLotOf) error {
	err := errors.Join(g.resume(of.flows)...)
	var parked []loop.Parked
	for _, f := range of.flows {
		g.drop(f)
		z := f.parked.Frozen
		if len(z.Legs) == 0 && len(f.parked.FDs) > 1 {
			z.Legs = []*frozen.Leg{{}} // being dialled
		}
		parked = append(parked, f.parked)
	}
	if ts := of.tuples(); len(ts) > 0 {
		err = errors.Join(err, g.n.host.admin.Undivert(ts))
	}
	g.serve(of.from, parked)
	return err
}

// serve has a loop serve flows again that it had.
func (g *hostGiver) serve(l *loop.Loop, parked []loop.Parked) {
	if len(parked) == 0 {
		return
	}
	p, err := loop.Pack(parked)
	if err == nil {
		err = g.n.takeBack(l, p, parked)
	}
	if err != nil {
		g.n.log.Error("flows could not be given back to their loop", "flows", len(parked), "error", err)
	}
}

// Refused notes that a flow stays.
func (g *hostGiver) Refused(id uint64, why *frozen.Refused) {
	g.r.refuseFlow(id, why.What+": "+why.Why)
}

// Forget lets go of flows that the peer serves.
func (g *hostGiver) Forget(lot *move.Lot, a move.Adoption) {
	// The hosts share no clock: a pause is from parking here until the peer has said
	// that it serves, so it includes the way of that answer.
	now := sock.Monotonic()
	of := lot.Of.(*hostLotOf)
	var pauses []int64
	for _, f := range of.flows {
		pauses = append(pauses, now-int64(f.parked.Since))
		for i, fd := range f.parked.FDs {
			if i < len(f.saved) {
				_ = tcprepair.Discard(fd.Disown()) // closes it, silently
			} else {
				fd.Close() // in SYN_SENT: the peer dials anew
			}
		}
		g.gone(f)
	}
	g.r.paused(pauses, a.Lost)
	g.r.given += len(of.flows) - a.Lost
	state := lot.SocketOctets() // and what is not of users
	for _, f := range of.flows {
		state += f.parked.Frozen.Size() - f.parked.Octets
		for _, s := range f.saved {
			state -= len(s.SendQueue) + len(s.RecvQueue)
		}
		g.drop(f)
	}
	g.r.mu.Lock()
	defer g.r.mu.Unlock()
	g.r.StateBytes += uint64(max(0, state))
}

// gone ends the accounts of a flow that is the peer's, or nobody's.
func (g *hostGiver) gone(f *hostFlow) {
	l := g.n.shared.Ledger
	if f.parked.Account != nil {
		f.parked.Account.Forget(1) // nothing is free: the peer holds it
		g.t.left[f.parked.Account]++
	}
	f.parked.LeaveSource(l)
	l.Listener(f.parked.Frozen.Listener.Name).Leave()
	l.Node.Leave()
	g.r.parked([]loop.Parked{f.parked})
}

// Lose closes flows of which nobody can know who has them: should the peer serve
// them, its clients hear of it as well.
func (g *hostGiver) Lose(lot *move.Lot) {
	of := lot.Of.(*hostLotOf)
	if err := g.n.host.admin.Undivert(of.tuples()); err != nil {
		g.n.log.Error("segments of flows that are closed still go to the other host", "error", err)
	}
	_ = g.resume(of.flows)
	for _, f := range of.flows {
		for _, fd := range f.parked.FDs {
			fd.CloseReset()
		}
		g.gone(f)
	}
	g.r.paused(nil, len(of.flows))
}

// Outcome asks the peer, in a talk of its own, for the last lot that it has.
func (g *hostGiver) Outcome() (last uint16, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), outcomeTime)
	defer cancel()
	for {
		if last, err = g.askOutcome(ctx); err == nil || ctx.Err() != nil {
			return last, err
		}
		if err := sleep(ctx, outcomeTime/20); err != nil {
			return 0, err
		}
	}
}

// outcomeTime bounds how long flows stand still whose owner is not known.
const outcomeTime = 2 * time.Second

func (g *hostGiver) askOutcome(ctx context.Context) (uint16, error) {
	t, err := g.n.talk(ctx, g.t.peer)
	if err != nil {
		return 0, err
	}
	defer t.Close()
	var a outcome
	err = t.Ask(ctx, askOutcome, outcome{Talk: g.t.id}, &a)
	return a.Last, err
}
