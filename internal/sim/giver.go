package sim

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// giver is one process of the world as package move needs it: what package node is
// in a real one.
type giver struct {
	p       *Proc
	t       *task
	sent    map[config.Ref]bool // objects
	refused map[uint64]bool
	onWire  map[uint64]bool // flows whose commit was sent
	first   int             // the loop to look at first
	idles   int             // how often idle legs were asked for
	far     *carrier
	heir    *Proc
}

// part is what of a lot came from one loop.
type part struct {
	loop   *loop.Loop
	parked []loop.Parked
}

var _ move.Giver = (*giver)(nil)

// drainTime is how long a process that was replaced serves what it could not give.
const drainTime = 10 * time.Minute

// upgrade starts a successor and hands everything over to it, as node.Upgrade.
func (p *Proc) upgrade() *task {
	w := p.w
	w.releases++
	name := fmt.Sprintf("release-%d", w.releases)
	return p.task("upgrade", func(t *task) {
		p.leaving = true
		for _, x := range w.procs {
			x.forgotten = x.forgotten || x.gave
		}
		heir := w.shell(name, p.host, newFDs(w.net, w.fdsMax))
		near, far := carriers(p, heir)
		near.side, near.t, far.side = "giver", t, "taker"
		g := &giver{p: p, t: t, sent: map[config.Ref]bool{}, refused: map[uint64]bool{}, onWire: map[uint64]bool{}, far: far, heir: heir}
		near.committed, p.drains = g.committed, g.refused
		heir.succeed(far)
		o := move.Options{Features: move.Features(), Canary: w.shape.canary}
		if w.shape.plain {
			o.Features = nil
		}
		given, err := move.Give(near, g, o)
		if err != nil && !given.Done {
			w.note("%s: upgrade aborted: %v", p.name, err)
			// It is ended, and only then is the channel closed: to one that lives
			// that would be our death.
			if !heir.dead {
				heir.crash()
			}
			_ = near.Close()
			g.Unlend()
			p.leaving, p.drains = false, nil
			p.shared.Fixed.Store(false)
			p.shared.Ledger.Alone()
			p.accepting(true)
			p.relook()
			w.aborts++
			return
		}
		p.gave, p.fds.gave = true, true
		w.upgrades++
		if !heir.dead {
			p.host.proc = heir
		}
		g.drain(near, given.Residue)
	})
}

// drain serves what the taker could not hold, and tells it.
func (g *giver) drain(near *carrier, tell bool) {
	w, p := g.p.w, g.p
	until := w.net.now.Add(drainTime)
	for p.flows() > 0 && w.net.now < until {
		share, err := json.Marshal(p.shared.Ledger.Drain())
		if err != nil {
			panic(err)
		}
		if tell {
			_ = move.SendJSON(near, move.Residue, move.Remains{Flows: p.flows(), Share: share}) // it may have gone
		}
		next := w.net.now.Add(time.Second)
		g.t.wait(func() bool { return p.flows() == 0 || w.net.now >= next })
	}
	_ = near.Close()
}

// committed is told that a commit is on its way: from here on its flows are the
// taker's.
func (g *giver) committed(uint16) {
	for id, p := range g.p.w.inFlight {
		if p == g.p {
			delete(g.p.w.inFlight, id)
			g.onWire[id] = true
		}
	}
}

// Greeted takes anybody.
func (g *giver) Greeted(move.Greeting, []string) error { return nil }

// Stopped is whether somebody wants it to end.
func (g *giver) Stopped() error {
	if w := g.p.w; w.shape.fickle && w.net.rng.IntN(6) == 0 {
		return errors.New("sim: somebody has changed his mind")
	}
	return nil
}

// Enter notes the phase.
func (g *giver) Enter(x move.Phase) { g.p.w.note("%s: phase %d", g.p.name, x) }

// Heritage is the configuration and the listeners.
func (g *giver) Heritage() (*move.Heritage, []sock.FD, error) {
	p := g.p
	h := &move.Heritage{Generation: p.gen.Number, Source: []byte(p.source), Held: p.shared.Ledger.Held(), LastID: p.shared.NextID.Load(), LastPlace: p.shared.Ledger.LastPlace()}
	var fds []sock.FD
	for _, name := range slices.Sorted(maps.Keys(p.gen.Listening)) {
		h.Listeners = append(h.Listeners, p.gen.Listening[name].Object.VIP.String())
		fds = append(fds, p.gen.Listening[name].FD)
	}
	return h, fds, nil
}

// Knowledge says nothing, in as many messages as it would.
func (g *giver) Knowledge(_ bool, send func(move.Knowledge) error) error {
	for range g.p.w.net.rng.IntN(3) {
		if err := send(move.Knowledge{}); err != nil {
			return err
		}
	}
	return nil
}

// Lend lists what is lent from here on.
func (g *giver) Lend() (all []sock.FD) {
	for _, l := range g.p.shared.Loops {
		g.t.ask(l, func(l *loop.Loop) { l.Lend(func(fds []sock.FD) { all = append(all, fds...) }) })
	}
	return all
}

// Dropped are the cookies of what was closed since.
func (g *giver) Dropped() (all []uint64) {
	for _, l := range g.p.shared.Loops {
		g.t.ask(l, func(l *loop.Loop) { all = append(all, l.Dropped()...) })
	}
	return all
}

// Unlend ends it.
func (g *giver) Unlend() {
	for _, l := range g.p.shared.Loops {
		g.t.ask(l, (*loop.Loop).EndLending)
	}
}

// idleOf is what is kept of idle legs on their way.
type idleOf struct {
	from *loop.Loop
	legs []loop.IdleLeg
}

// ParkIdle takes some idle legs out of the pools now and then, and all when there is
// no flow left that could use them.
func (g *giver) ParkIdle(most int) *move.IdleLot {
	left := g.p.flows() - len(g.refused)
	if g.idles++; left > 0 {
		if g.idles%2 == 0 {
			return nil
		}
		most = min(most, 1+g.p.w.net.rng.IntN(3))
	}
	for _, l := range g.p.shared.Loops {
		of := idleOf{from: l}
		g.t.ask(l, func(l *loop.Loop) { of.legs = l.GiveIdle(most) })
		if len(of.legs) == 0 {
			continue
		}
		octets, fds, err := loop.PackIdle(of.legs)
		if err != nil {
			panic(err)
		}
		return &move.IdleLot{Octets: octets, FDs: fds, N: len(fds), Of: of}
	}
	return nil
}

// ForgetIdle lets go of idle legs that are the taker's, or takes them back.
func (g *giver) ForgetIdle(lot *move.IdleLot, given bool) {
	of := lot.Of.(idleOf)
	if !given {
		g.t.ask(of.from, func(l *loop.Loop) { l.TakeIdle(of.legs) })
		return
	}
	g.p.w.idles += lot.N
	for _, fd := range lot.FDs {
		g.p.fds.close(fd)
	}
}

// Cookie is the kernel's name of a socket.
func (g *giver) Cookie(fd sock.FD) (uint64, error) { return g.p.cookie(fd) }

func (p *Proc) cookie(fd sock.FD) (uint64, error) {
	if s := p.fds.look(fd); s != nil {
		return s.cookie, nil
	}
	return 0, fmt.Errorf("sim: fd %d is no socket", fd)
}

// Park takes flows out of the loops.
func (g *giver) Park(canary bool, most int) (*move.Lot, error) {
	var parts []part
	loops := g.p.shared.Loops
	if canary {
		each := max(1, most/len(loops))
		for _, l := range loops {
			if x := g.park(l, each); len(x) > 0 {
				parts = append(parts, part{l, x})
			}
		}
		return g.lot(parts), nil
	}
	for range loops {
		l := loops[g.first%len(loops)]
		if x := g.park(l, min(most, 3)); len(x) > 0 {
			return g.lot([]part{{l, x}}), nil
		}
		g.first++
	}
	return nil, nil
}

func (g *giver) park(l *loop.Loop, most int) (all []loop.Parked) {
	g.t.ask(l, func(l *loop.Loop) {
		slots := l.Slots(0, func(f *flow.Flow) bool { return !g.refused[f.ID()] })
		for _, i := range slots {
			if len(all) == most {
				break
			}
			if x, ok := l.Park(i); ok {
				all = append(all, x)
			}
		}
	})
	for _, x := range all {
		g.p.w.hold(x, g.p)
	}
	return all
}

// lot packs what was parked. nil: nothing.
func (g *giver) lot(parts []part) *move.Lot {
	var flows []*frozen.Flow
	var objects []*frozen.Object
	var fds []sock.FD
	var since []int64
	for _, x := range parts {
		for _, y := range x.parked {
			z := y.Frozen
			objects = append(objects, g.p.objects.portable(z, g.sent)...)
			z.Client.Fd = uint32(len(fds) + 1)
			if len(y.FDs) > 1 {
				z.Legs[0].Fd = uint32(len(fds) + 2)
			}
			fds = append(fds, y.FDs...)
			flows, since = append(flows, z), append(since, int64(y.Since))
		}
	}
	if len(flows) == 0 {
		return nil
	}
	return move.NewLot(flows, objects, fds, since, parts)
}

// Return gives a lot back to its loops.
func (g *giver) Return(lot *move.Lot) error {
	for _, x := range lot.Of.([]part) {
		parcel, err := loop.Pack(x.parked)
		if err != nil {
			return err
		}
		for _, y := range x.parked {
			delete(g.p.w.inFlight, y.Frozen.Id)
		}
		if err := g.p.takeBack(g.t, x.loop, parcel); err != nil {
			return err
		}
	}
	return nil
}

// Split parts a lot in two.
func (g *giver) Split(lot *move.Lot, ids []uint64) (those, others *move.Lot) {
	var in, out []part
	for _, x := range lot.Of.([]part) {
		a, b := part{loop: x.loop}, part{loop: x.loop}
		for _, y := range x.parked {
			if slices.Contains(ids, y.Frozen.Id) {
				a.parked = append(a.parked, y)
			} else {
				b.parked = append(b.parked, y)
			}
		}
		if len(a.parked) > 0 {
			in = append(in, a)
		}
		if len(b.parked) > 0 {
			out = append(out, b)
		}
	}
	// The taker knows the objects that were with the first offer only if it took them.
	clear(g.sent)
	return g.lot(in), g.lot(out)
}

// Refused notes who stays.
func (g *giver) Refused(id uint64, why *frozen.Refused) {
	g.refused[id] = true
	// A taker that hears nothing of what drains takes all of every limit.
	g.p.forgotten = g.p.forgotten || g.p.w.shape.plain || g.p.w.shape.elder
	g.p.w.refusals++
	g.p.w.note("%s: flow %x stays: %v", g.p.name, id, why)
}

// Forget lets go of what the taker serves.
func (g *giver) Forget(lot *move.Lot, _ move.Adoption) {
	for _, x := range lot.Of.([]part) {
		for _, y := range x.parked {
			if !g.onWire[y.Frozen.Id] {
				g.p.w.fail("%s forgets flow %x, which it has not committed", g.p.name, y.Frozen.Id)
			}
			for _, fd := range y.FDs {
				if s := g.p.fds.sock(fd, "forget"); s != nil && g.heir.dead {
					s.excuse("its process died") // a moment ago
				}
				g.p.fds.close(fd)
			}
		}
		g.p.forget(x.parked, false)
	}
}

// Lose ends those of whom nobody knows who has served them.
func (g *giver) Lose(lot *move.Lot) {
	for _, x := range lot.Of.([]part) {
		for _, y := range x.parked {
			if !g.onWire[y.Frozen.Id] {
				g.p.w.fail("%s loses flow %x, which it has not committed", g.p.name, y.Frozen.Id)
			}
			g.p.w.lost++
			for _, fd := range y.FDs {
				if s := g.p.fds.sock(fd, "give up"); s != nil {
					s.excuse("nobody knows who served it last")
				}
				g.p.fds.closeReset(fd)
			}
		}
		g.p.forget(x.parked, true)
	}
}

// Switch stops to accept and to grant.
func (g *giver) Switch() error {
	p := g.p
	p.shared.Fixed.Store(true)
	for _, l := range p.shared.Loops {
		g.t.ask(l, func(l *loop.Loop) { l.SetAccepting(false) })
	}
	return nil
}

// Acceptance is what this process keeps.
func (g *giver) Acceptance() move.Acceptance {
	share := g.p.shared.Ledger.Yield()
	a := move.Acceptance{Places: share.Places}
	var err error
	if a.Share, err = json.Marshal(share); err != nil {
		panic(err)
	}
	return a
}

// Stalled serves everybody while the taker does not answer.
func (g *giver) Stalled(is bool) {
	g.p.w.note("%s: the taker stalls: %t", g.p.name, is)
	if is {
		g.p.w.stalls++
	}
	g.p.shared.Ledger.Stalled(is)
	for _, l := range g.p.shared.Loops {
		g.t.ask(l, func(l *loop.Loop) { l.SetAccepting(is) })
	}
}

// Estate is nothing that this world judges.
func (g *giver) Estate() any { return nil }
