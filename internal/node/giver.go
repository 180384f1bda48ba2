package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/planted"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

const (
	// canaryTime is how long the first flows are observed if nobody says otherwise.
	canaryTime = 50 * time.Millisecond
	// lostNamed bounds how many lost flows a report names.
	lostNamed = 64
	// refusedTries is how often a flow is offered that the taker refuses for a reason
	// that passes.
	refusedTries = 3
	// tellEvery is the time between two tellings of how many flows have moved.
	tellEvery = 20 * time.Millisecond
	// kindsLooked bounds the flows of a loop among which a canary is chosen.
	kindsLooked = 256
)

// features are those of this release, that is of what this package implements.
func features() []string {
	return []string{move.FeatureLots, move.FeatureCopy, move.FeatureCanary, move.FeatureIdle, move.FeatureShare, move.FeatureEarly, move.FeatureOrder, move.FeatureResidue}
}

// giver is this process as the one that hands over: a [move.Giver].
type giver struct {
	n     *Node
	ctx   context.Context
	q     UpgradeRequest
	r     *Report
	tell  func(Progress)
	pid   int // of the taker
	child *child

	hello    move.Greeting
	features []string
	early    *heirKnows          // what was told in bulk
	sent     map[config.Ref]bool // objects that the taker has
	refused  map[uint64]*refusal // flows, by identity
	at       int                 // the loop that is next
	from     *loop.Loop          // the one that is being emptied
	slots    []uint32            // of it, that are still to go
	slotsAt  int                 // how many they were
	idle     int                 // idle legs of the loop
	idleAt   int                 // how many they were
	emptied  bool                // no loop has a flow that may go
	found    bool                // some flow, in this round of all loops
	given    []string            // who is the taker's, as far as they are named
	share    json.RawMessage     // of limits, that this process keeps
	places   map[string]int64    // at the gates, at the switch
	lent     bool                // another process has duplicates of sockets
	dropped  []uint64            // cookies of those that have ended
	paused   bool                // the ledger grants nothing
	switched bool
	noted    bool        // the report is in the totals
	handed   bool        // VIPs are the taker's
	begins   atomic.Bool // nothing has left yet, and may not for long
	phase    string
	since    time.Time // when the phase began
	said     time.Time // when it was told last how many have moved
	total    int       // flows that there were
}

// refusal is why a flow stays.
type refusal struct {
	why   string
	tries int
	final bool
}

func newGiver(ctx context.Context, n *Node, q UpgradeRequest, r *Report, tell func(Progress)) *giver {
	return &giver{n: n, ctx: ctx, q: q, r: r, tell: tell, sent: map[config.Ref]bool{}, refused: map[uint64]*refusal{}}
}

func (g *giver) speaks(feature string) bool { return slices.Contains(g.features, feature) }

// Greeted notes who takes over.
func (g *giver) Greeted(hello move.Greeting, features []string) error {
	g.hello, g.features = hello, features
	g.r.To = hello.Release
	if err := g.child.is(hello.PID); err != nil {
		return err
	}
	if hello.PID != 0 {
		g.pid = hello.PID
	}
	g.say("greeting", fmt.Sprintf("new process %d, release %s: compatible", g.pid, hello.Release))
	return g.Stopped()
}

// resume serves again, after an upgrade that will come to nothing.
func (g *giver) resume() {
	if g.switched {
		g.Stalled(true)
	}
}

// Stopped tells whether who asked for the upgrade wants it no more.
func (g *giver) Stopped() error { return g.ctx.Err() }

// Enter tells of a phase.
func (g *giver) Enter(p move.Phase) {
	g.begins.Store(p <= move.Copying)
	switch p {
	case move.Starting: // it was told with the process's number
		g.enter("starting")
	case move.Copying:
		g.say("copying", "the sockets of all flows go over while they are served")
	case move.Canary:
		g.n.moving()
		switch {
		case g.n.flows() == 0:
			g.say("canary", "no flow is open that could be watched")
		case g.canary() == 0:
			g.say("canary", "the first flows go over")
		default:
			g.say("canary", fmt.Sprintf("the first flows go over and are watched for %v", g.canary()))
		}
	case move.Switching:
		g.n.moving()
		g.total = g.n.flows() + g.r.given
		g.r.Listeners = len(g.n.Config().Listeners)
		g.say("switching", fmt.Sprintf("listeners %d/%d shared; the new process accepts", g.r.Listeners, g.r.Listeners))
	case move.Flows:
		g.say("flows", "")
	case move.Finished:
		g.enter("finishing")
	}
}

// enter notes when a phase begins, and how long the one before took.
func (g *giver) enter(phase string) {
	now := time.Now()
	g.r.mu.Lock()
	if g.phase != "" {
		if g.r.Phases == nil {
			g.r.Phases = map[string]float64{}
		}
		g.r.Phases[g.phase] += millis(now.Sub(g.since))
	}
	g.r.mu.Unlock()
	g.phase, g.since = phase, now
}

func (g *giver) say(phase, text string) {
	g.enter(phase)
	g.progress(text)
}

func (g *giver) progress(text string) {
	g.said = time.Now()
	if g.tell == nil {
		return
	}
	p := Progress{Phase: g.phase, Text: text, PID: g.pid, Release: g.hello.Release}
	if g.total > 0 {
		p.Flows, p.FlowsTotal = g.r.given, max(g.total, g.r.given)
	}
	if text == "" {
		if p.Text = fmt.Sprintf("flows %d/%d", p.Flows, p.FlowsTotal); p.FlowsTotal == 0 {
			p.Text = "no flow is to go over"
		}
	}
	g.tell(p)
}

func (g *giver) canary() time.Duration {
	if g.q.Canary == 0 {
		return canaryTime
	}
	return max(0, g.q.Canary)
}

// Heritage is what the successor begins with.
func (g *giver) Heritage() (*move.Heritage, []sock.FD, error) {
	h, fds := g.n.heritage()
	if g.q.File != "" && !g.speaks(move.FeatureOrder) {
		return nil, nil, &frozen.Refused{What: "release " + g.hello.Release, Why: "it cannot begin with another configuration: upgrade without, then apply it"}
	}
	if g.q.File != "" {
		order, err := json.Marshal(g.q)
		if err != nil {
			return nil, nil, fmt.Errorf("node: %w", err)
		}
		h.Order = order
	}
	return &h, fds, nil
}

// Knowledge tells what is known: in bulk, and what has changed since.
func (g *giver) Knowledge(last bool, send func(move.Knowledge) error) (err error) {
	switch {
	case !last:
		g.early, err = g.n.tellEarly(send)
	case g.hello.Late:
		err = g.n.tellLast(g.early, send)
	}
	return err
}

// lotOf is what the giver keeps of a lot: its flows as they were parked, and from
// which loops.
type lotOf struct {
	parked []loop.Parked
	from   []*loop.Loop // by flow
}

// Park takes the next lot out of the loops. A connection that another loop had
// accepted may come in meanwhile, so loops are gone through until nothing is found.
func (g *giver) Park(canary bool, most int) (*move.Lot, error) {
	if g.handed { // the end of it did not arrive there
		g.handed = false
		g.n.letGoOfVIPs(false)
	}
	if canary {
		of := g.parkCanary(most)
		g.r.CanaryFlows = len(of.parked)
		return g.pack(of), nil
	}
	for {
		if len(g.slots) == 0 && !g.nextLoop() {
			return nil, nil
		}
		var of lotOf
		some := g.slots[:min(most, len(g.slots))]
		g.from.Ask(func(l *loop.Loop) {
			g.idle = l.Idle()
			if g.lent {
				g.dropped = append(g.dropped, l.Dropped()...)
			}
			// A slot may hold another flow than when it was listed; one that was not
			// refused is as welcome.
			may := slices.DeleteFunc(slices.Clone(some), func(i uint32) bool {
				f := l.Flow(i)
				return f == nil || !g.mayGo(f)
			})
			if len(may) > 0 {
				dealt := 0
				of.parked, dealt = l.ParkMany(may)
				some = some[:slices.Index(some, may[dealt-1])+1]
			}
		})
		g.slots = g.slots[len(some):]
		for range of.parked {
			of.from = append(of.from, g.from)
		}
		if len(of.parked) > 0 {
			return g.pack(of), nil
		}
	}
}

// nextLoop lists what the next loop has; false: a whole round has found nothing.
func (g *giver) nextLoop() bool {
	for {
		if g.at == len(g.n.shared.Loops) {
			more := g.found
			g.at, g.found = 0, false
			if !more {
				g.emptied = true
				return false
			}
		}
		g.from = g.n.shared.Loops[g.at]
		g.at++
		g.from.Ask(func(l *loop.Loop) { g.slots, g.idle = l.Slots(0, g.mayGo), l.Idle() })
		if len(g.slots) > 0 {
			g.slotsAt, g.idleAt = len(g.slots), g.idle
			g.found, g.emptied = true, false
			return true
		}
	}
}

// mayGo tells whether a flow is to be offered.
func (g *giver) mayGo(f *flow.Flow) bool {
	no := g.refused[f.ID()]
	return no == nil || !no.final
}

// parkCanary takes flows of different kinds out of all loops: what breaks in the
// new process should break with them.
func (g *giver) parkCanary(most int) (of lotOf) {
	loops := g.n.shared.Loops
	met := map[string]int{}
	for i, l := range loops {
		share := (most - len(of.parked) + len(loops) - i - 1) / (len(loops) - i)
		if share == 0 {
			break
		}
		l.Ask(func(l *loop.Loop) {
			slots := l.Slots(kindsLooked, g.mayGo)
			kinds := map[uint32]int{} // how many of the kind go before it
			for _, i := range slots {
				kind := l.Kind(i)
				kinds[i] = met[kind]
				met[kind]++
			}
			slices.SortStableFunc(slots, func(a, b uint32) int { return kinds[a] - kinds[b] })
			parked, _ := l.ParkMany(slots[:min(share, len(slots))])
			for _, p := range parked {
				of.parked, of.from = append(of.parked, p), append(of.from, l)
			}
		})
	}
	return of
}

// pack makes the lot of flows that are parked.
func (g *giver) pack(of lotOf) *move.Lot {
	if len(of.parked) == 0 {
		return nil
	}
	var flows []*frozen.Flow
	var objects []*frozen.Object
	var fds []sock.FD
	var since []int64
	for _, p := range of.parked {
		z := p.Frozen
		if field := planted.Unknown(z.Listener.GetName()); field != nil {
			z.ProtoReflect().SetUnknown(field)
		}
		flows = append(flows, z)
		objects = append(objects, g.n.registry.portable(z, g.sent)...)
		z.Client.Fd = uint32(len(fds) + 1)
		if len(p.FDs) > 1 {
			z.Legs[0].Fd = uint32(len(fds) + 2)
		}
		fds = append(fds, p.FDs...)
		since = append(since, int64(p.Since))
	}
	return move.NewLot(flows, objects, fds, since, &of)
}

// Split parts a lot in two.
func (g *giver) Split(lot *move.Lot, ids []uint64) (those, others *move.Lot) {
	g.unsent(lot)
	var a, b lotOf
	of := lot.Of.(*lotOf)
	for i, p := range of.parked {
		to := &b
		if slices.Contains(ids, p.Frozen.Id) {
			to = &a
		}
		to.parked, to.from = append(to.parked, p), append(to.from, of.from[i])
	}
	return g.pack(a), g.pack(b)
}

// unsent forgets that the taker has the objects of a lot: it may have seen nothing
// of it.
func (g *giver) unsent(lot *move.Lot) {
	for _, o := range lot.Objects {
		for kind, k := range frozenKinds {
			if k == o.Kind {
				delete(g.sent, config.Ref{Kind: kind, Name: o.Name, Version: o.Version})
			}
		}
	}
}

// Return gives the flows of a lot to the loops they came from.
func (g *giver) Return(lot *move.Lot) (err error) {
	g.unsent(lot)
	of := lot.Of.(*lotOf)
	for _, l := range g.n.shared.Loops {
		var mine []loop.Parked
		for i, p := range of.parked {
			if of.from[i] == l {
				if planted.Unknown(p.Frozen.Listener.GetName()) != nil {
					p.Frozen.ProtoReflect().SetUnknown(nil) // whoever writes a field knows it
				}
				mine = append(mine, p)
			}
		}
		if len(mine) == 0 {
			continue
		}
		parcel, e := loop.Pack(mine)
		if e == nil {
			e = g.n.takeBack(l, parcel, mine)
		}
		err = errors.Join(err, e)
	}
	return err
}

// Refused notes that a flow stays, at the last try for good.
func (g *giver) Refused(id uint64, why *frozen.Refused) {
	no := g.refused[id]
	if no == nil {
		no = &refusal{}
		g.refused[id] = no
	}
	no.why = why.What + ": " + why.Why
	no.tries++
	if !why.Retry || no.tries == refusedTries {
		no.final = true
		g.r.refuse(1, no.why)
	}
}

// Forget lets go of flows that the successor serves.
func (g *giver) Forget(lot *move.Lot, a move.Adoption) {
	of := lot.Of.(*lotOf)
	g.note(of)
	g.r.paused(a.Pauses, a.Lost)
	g.r.given += len(of.parked) - a.Lost
	for _, fd := range lot.FDs {
		fd.Close() // the successor has its own; nothing is sent
	}
	g.n.forget(of.parked, false)
	if g.phase == "flows" && time.Since(g.said) >= tellEvery {
		g.progress("")
	}
}

// Lose ends flows of which nobody knows who has served them.
func (g *giver) Lose(lot *move.Lot) {
	of := lot.Of.(*lotOf)
	g.note(of)
	g.r.paused(nil, len(of.parked))
	for _, fd := range lot.FDs {
		fd.CloseResetLent() // the successor may not have ended yet
	}
	g.n.forget(of.parked, true)
}

// note puts flows that have left into the report, and keeps who they are should
// the successor die with them.
func (g *giver) note(of *lotOf) {
	g.r.parked(of.parked)
	g.r.mu.Lock()
	defer g.r.mu.Unlock()
	if g.r.Kinds == nil {
		g.r.Kinds = map[string]KindReport{}
	}
	for _, p := range of.parked {
		k := g.r.Kinds[p.Kind]
		k.Flows++
		k.Octets += uint64(p.Octets)
		k.Frozen += uint64(p.Frozen.Size())
		g.r.Kinds[p.Kind] = k
		if len(g.given) < lostNamed {
			g.given = append(g.given, nameOf(p))
		}
	}
}

// nameOf says whose flow it is.
func nameOf(p loop.Parked) string {
	client := "a client"
	if a := p.Frozen.ClientAddress; len(a) > 2 {
		if ip, ok := netip.AddrFromSlice(a[:len(a)-2]); ok {
			client = netip.AddrPortFrom(ip, uint16(a[len(a)-2])<<8|uint16(a[len(a)-1])).String()
		}
	}
	return fmt.Sprintf("f-%x of %s at %s", p.Frozen.Id, client, p.Frozen.Listener.GetName())
}

// Switch makes this process accept no more. Connections that arrive from here on
// wait in the shared queue until the successor accepts them; none is refused.
func (g *giver) Switch() error {
	n := g.n
	g.switched = true
	n.shared.Fixed.Store(true)
	n.askAll(func(l *loop.Loop) { l.SetAccepting(false) })
	// Endpoints are watched by one process at a time, and what it knows of them is
	// handed over at the last moment.
	n.watch.leave(true)
	g.places = n.shared.Ledger.Places()
	if g.speaks(move.FeatureShare) {
		var err error
		if g.share, err = json.Marshal(n.shared.Ledger.Yield()); err != nil {
			return fmt.Errorf("node: %w", err)
		}
	} else {
		g.paused = true
		n.shared.Ledger.Pause() // only the successor grants what is limited
	}
	n.leaveJournal()
	return nil
}

// Acceptance tells what this process keeps of limits. What the gates count can only
// become less here.
func (g *giver) Acceptance() move.Acceptance {
	return move.Acceptance{Places: g.places, Share: g.share}
}

// Stalled serves again what the successor should, as long as it is silent.
func (g *giver) Stalled(is bool) {
	n := g.n
	if is {
		n.told.Store(false)
	}
	if g.speaks(move.FeatureShare) {
		n.shared.Ledger.Stalled(is)
	} else if is != g.paused { // as it is already
	} else if g.paused = !is; g.paused {
		n.shared.Ledger.Pause()
	} else {
		n.shared.Ledger.Resume() // what it took counts here as well; it grants nothing before all is over
	}
	n.askAll(func(l *loop.Loop) { l.SetAccepting(is) })
	if is {
		n.log.Warn("the new process does not answer; this one goes on meanwhile", "successor", g.pid)
	}
}

// Estate is what this process has counted, as if all were over.
func (g *giver) Estate() any {
	n, r := g.n, g.r
	g.handed = true
	n.letGoOfVIPs(true)
	if !g.noted {
		n.totals.note(r)
		g.noted = true
	}
	n.told.Store(true)
	r.Residue = n.flows()
	e := n.estate()
	e.MovedFlows["process"] += uint64(r.Flows)
	e.Moves["process"]++
	e.ResetByMove += uint64(r.Lost)
	e.Stayed += uint64(r.Residue)
	return e.bounded(estateMax)
}

// Lend lists the sockets of all flows, which go over while they are served.
func (g *giver) Lend() (all []sock.FD) {
	for _, l := range g.n.shared.Loops {
		l.Ask(func(l *loop.Loop) { l.Lend(func(fds []sock.FD) { all = append(all, fds...) }) })
	}
	g.lent = true
	return all
}

// Dropped are the cookies of sockets that ended since, as far as loops were asked
// when something was parked.
func (g *giver) Dropped() []uint64 {
	d := g.dropped
	g.dropped = nil
	return d
}

// Unlend ends that closes cost more than they need to.
func (g *giver) Unlend() {
	if g.lent {
		g.lent = false
		g.n.askAll((*loop.Loop).EndLending)
	}
}

// Cookie is the kernel's name of a socket.
func (g *giver) Cookie(fd sock.FD) (uint64, error) { return sock.Cookie(fd) }

// idleBy is how many idle legs go at once while flows go, unless they are the last.
const idleBy = 8

// idleOf is what the giver keeps of idle legs that are on their way.
type idleOf struct {
	legs []loop.IdleLeg
	from *loop.Loop
}

// ParkIdle takes idle legs out of the pools: of the loop whose flows go, as large a
// part as of its flows is gone, for those that are left need the rest; and all once
// no flow is left.
func (g *giver) ParkIdle(most int) *move.IdleLot {
	if !g.emptied {
		if g.from == nil || g.idleAt == 0 {
			return nil
		}
		due := g.idle - g.idleAt*len(g.slots)/g.slotsAt
		if due < idleBy && len(g.slots) > 0 || due <= 0 {
			return nil
		}
		return g.takeIdle(g.from, min(due, most))
	}
	for _, l := range g.n.shared.Loops {
		if lot := g.takeIdle(l, most); lot != nil {
			return lot
		}
	}
	return nil
}

func (g *giver) takeIdle(l *loop.Loop, most int) *move.IdleLot {
	of := &idleOf{from: l}
	l.Ask(func(l *loop.Loop) {
		of.legs = l.GiveIdle(most)
		if l == g.from {
			g.idle = l.Idle()
		}
	})
	if len(of.legs) == 0 {
		return nil
	}
	octets, fds, err := loop.PackIdle(of.legs)
	lot := &move.IdleLot{Octets: octets, FDs: fds, N: len(of.legs), Of: of}
	if err != nil {
		g.n.log.Error("idle legs could not be encoded and are closed", "legs", lot.N, "error", err)
		g.ForgetIdle(lot, true)
		return nil
	}
	return lot
}

// ForgetIdle lets go of idle legs that are the successor's, or takes them back.
func (g *giver) ForgetIdle(lot *move.IdleLot, given bool) {
	of := lot.Of.(*idleOf)
	if !given {
		of.from.Ask(func(l *loop.Loop) { l.TakeIdle(of.legs) })
		return
	}
	for _, fd := range lot.FDs {
		fd.Close() // the successor has its own; nothing is sent
	}
}
