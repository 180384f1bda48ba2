package sim

import (
	"encoding"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// state is a socket between hosts: what tcprepair saves, in this world.
type state struct {
	Local, Remote netip.AddrPort
	Snd           []byte
	Una           uint64
	Rcv           []byte
	RcvNxt        uint64
	SndCap        int
	RcvCap        int
	FinOut        bool
	FinIn         bool
}

// state reads what a socket is.
func (s *Sock) state() (state, error) {
	if s.dead || !s.connected {
		return state{}, errors.New("the connection has ended")
	}
	return state{
		Local: s.local, Remote: s.remote, Snd: s.snd, Una: s.una, Rcv: s.rcv, RcvNxt: s.rcvNxt,
		SndCap: s.sndCap, RcvCap: s.rcvCap, FinOut: s.finOut, FinIn: s.finIn,
	}, nil
}

// AppendBinary makes it a part of a lot.
func (a state) AppendBinary(b []byte) ([]byte, error) {
	octets, err := json.Marshal(a)
	return append(b, octets...), err
}

// same tells whether nothing has come or gone since a was saved.
func (a state) same(b state) bool {
	return a.Una == b.Una && a.RcvNxt == b.RcvNxt && len(a.Snd) == len(b.Snd) && len(a.Rcv) == len(b.Rcv) && a.FinIn == b.FinIn && a.FinOut == b.FinOut
}

// hostGiver is a process of the world whose flows go to another host.
type hostGiver struct {
	x     *hostTalk
	p     *Proc
	t     *task
	left  map[*ledger.Endpoint]int64
	began flow.Instant

	at    int
	from  *loop.Loop
	slots []uint32
	tried func(id uint64) int
}

var _ move.HostGiver = (*hostGiver)(nil)

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

type hostFlow struct {
	parked loop.Parked
	tuples []move.Tuple
	saved  []state // by descriptor
}

// Stopped is whether somebody wants it to end.
func (g *hostGiver) Stopped() error {
	if w := g.p.w; w.shape.fickle && w.net.rng.IntN(20) == 0 {
		return errors.New("sim: somebody has changed his mind")
	}
	return nil
}

// Rest lets time pass.
func (g *hostGiver) Rest(round int) {
	end := g.p.w.net.now.Add(min(200*time.Millisecond, 5*time.Millisecond<<min(round, 10)))
	g.t.wait(func() bool { return g.p.w.net.now >= end })
}

// Next lists flows that may go.
func (g *hostGiver) Next(most int, tries func(id uint64) int) (some []move.Candidate) {
	g.tried = tries
	most = 1 + g.p.w.net.rng.IntN(min(most, 8)) // few make more steps
	for {
		if len(g.slots) == 0 && !g.nextLoop() {
			return nil
		}
		slots := g.slots[:min(most, len(g.slots))]
		g.slots = g.slots[len(slots):]
		g.t.ask(g.from, func(l *loop.Loop) {
			for _, i := range slots {
				f := l.Flow(i)
				if f == nil || !g.may(f) {
					continue
				}
				if ts := g.tuples(l, i, f); ts != nil {
					some = append(some, move.Candidate{ID: f.ID(), Tuples: ts, Tries: tries(f.ID()), Of: hostSpot{l, i}})
				}
			}
		})
		if len(some) > 0 {
			return some
		}
	}
}

func (g *hostGiver) nextLoop() bool {
	for g.at < len(g.p.shared.Loops) {
		g.from = g.p.shared.Loops[g.at]
		g.at++
		g.t.ask(g.from, func(l *loop.Loop) { g.slots = l.Slots(0, g.may) })
		if len(g.slots) > 0 {
			return true
		}
	}
	g.at = 0
	return false
}

func (g *hostGiver) may(f *flow.Flow) bool {
	return f.Born() <= g.began && g.tried(f.ID()) < move.HostTries
}

// tuples are those of a flow's legs that have sockets that move; nil: one has ended,
// or is of a kind that stays.
func (g *hostGiver) tuples(l *loop.Loop, i uint32, f *flow.Flow) (ts []move.Tuple) {
	legs := []flow.Side{flow.Client}
	if f.State() == flow.Relaying && l.Leg(i, flow.Backend) >= 0 {
		legs = append(legs, flow.Backend)
	}
	for _, side := range legs {
		s := g.p.fds.look(l.Leg(i, side))
		if s == nil || s.dead || !s.connected || !s.remote.IsValid() {
			return nil
		}
		ts = append(ts, s.tuple())
	}
	return ts
}

// Park takes flows out of their loop, diverts them and puts their sockets down.
func (g *hostGiver) Park(some []move.Candidate) (lot *move.Lot, dealt int, stay []move.Refusal, err error) {
	n := g.p.w.net
	of := &hostLotOf{from: some[0].Of.(hostSpot).loop}
	var changed []loop.Parked
	g.t.ask(of.from, func(l *loop.Loop) {
		for _, c := range some {
			f := l.Flow(c.Of.(hostSpot).slot)
			dealt++
			if f == nil || f.ID() != c.ID {
				continue
			}
			ts := g.tuples(l, c.Of.(hostSpot).slot, f)
			x, ok := l.Park(c.Of.(hostSpot).slot)
			if !ok {
				continue
			}
			g.p.w.hold(x, g.p)
			if !slices.Equal(ts, c.Tuples) {
				changed = append(changed, x)
				stay = append(stay, move.Refusal{Flow: c.ID, What: "leg", Why: "it was another one a moment ago", Retry: true})
				continue
			}
			of.flows = append(of.flows, &hostFlow{parked: x, tuples: ts})
		}
	})
	if err := g.serve(of.from, changed); err != nil {
		return nil, dealt, stay, err
	}
	if n.fail("divert") {
		return nil, dealt, stay, errors.Join(errors.New("sim: no memory for a rule"), g.putBack(of))
	}
	var kept []*hostFlow
	back := hostLotOf{from: of.from}
	for _, f := range of.flows {
		if err := g.save(f); err != nil {
			stay = append(stay, move.Refusal{Flow: f.parked.Frozen.Id, What: "socket", Why: err.Error(), Retry: true})
			back.flows = append(back.flows, f)
		} else {
			kept = append(kept, f)
		}
	}
	of.flows = kept
	if err := g.putBack(&back); err != nil || len(kept) == 0 {
		return nil, dealt, stay, err
	}
	return g.pack(of), dealt, stay, nil
}

func (g *hostGiver) pack(of *hostLotOf) *move.Lot {
	var flows []*frozen.Flow
	var objects []*frozen.Object
	var since []int64
	var sockets []encoding.BinaryAppender
	for _, f := range of.flows {
		legs := append([]*frozen.Leg{f.parked.Frozen.Client}, f.parked.Frozen.Legs...)
		for i, s := range f.saved {
			sockets = append(sockets, s)
			legs[i].Fd = uint32(len(sockets))
		}
		flows = append(flows, f.parked.Frozen)
		objects = append(objects, g.p.objects.portable(f.parked.Frozen, g.x.sent)...)
		since = append(since, int64(f.parked.Since))
	}
	lot := move.NewLot(flows, objects, nil, since, of)
	lot.Sockets = sockets
	return lot
}

// save puts the sockets of a flow down and their state into it. A leg that is being
// dialled stays: the other host dials anew.
func (g *hostGiver) save(f *hostFlow) error {
	n, z := g.p.w.net, f.parked.Frozen
	for i, fd := range f.parked.FDs {
		if i >= len(f.tuples) {
			continue
		}
		s := g.p.fds.sock(fd, "save")
		s.held = true
		if n.holds[s.tuple()] == nil && !g.p.unsure && !g.x.to.dead {
			n.violate("segments of %v to %v are sent to a host that does not hold them", s.local, s.remote)
		}
		if n.fail("save") {
			return errors.New("sim: it is not what it was a moment ago")
		}
		x, err := s.state()
		if err != nil {
			return err
		}
		x.Snd, x.Rcv = slices.Clone(x.Snd), slices.Clone(x.Rcv)
		f.saved = append(f.saved, x)
		g.stray(s.peer, s)
	}
	if flow.State(z.State) != flow.Relaying && len(z.Legs) > 0 {
		if z.Legs[0].Fd = 0; len(z.Legs[0].Unsent) == 0 {
			z.Legs = nil
		}
	}
	return nil
}

// stray lets a segment through now and then that was past the rules already: repair mode
// does not stop the stack.
func (g *hostGiver) stray(from, to *Sock) {
	if g.p.w.net.rng.IntN(3) > 0 || from == nil {
		return
	}
	to.held = false
	if from.deliverable() && from.acked() == 0 && !from.rstOut {
		from.deliver()
	}
	to.held = true
}

// Verify names flows whose sockets are not what was offered.
func (g *hostGiver) Verify(lot *move.Lot) (moved []move.Refusal) {
	g.x.verified = lot.Of.(*hostLotOf)
	for _, f := range lot.Of.(*hostLotOf).flows {
		for i, was := range f.saved {
			s := g.p.fds.sock(f.parked.FDs[i], "verify")
			if is, err := s.state(); err != nil || !was.same(is) {
				moved = append(moved, move.Refusal{Flow: f.parked.Frozen.Id, What: "socket", Why: "it has changed", Retry: true})
				break
			}
		}
	}
	return moved
}

// Return gives a lot back to its loop.
func (g *hostGiver) Return(lot *move.Lot) error {
	for _, o := range lot.Objects { // the other may not have seen them
		for kind, k := range frozenKinds {
			if k == o.Kind {
				delete(g.x.sent, config.Ref{Kind: kind, Name: o.Name, Version: o.Version})
			}
		}
	}
	return g.putBack(lot.Of.(*hostLotOf))
}

func (g *hostGiver) putBack(of *hostLotOf) error {
	var parked []loop.Parked
	for _, f := range of.flows {
		z := f.parked.Frozen
		if len(z.Legs) == 0 && len(f.parked.FDs) > 1 {
			z.Legs = []*frozen.Leg{{}} // being dialled
		}
		for i, fd := range f.parked.FDs {
			if s := g.p.fds.sock(fd, "resume"); i < len(f.tuples) {
				if s.gone {
					g.p.w.fail("%s serves flow %x again, which another host has", g.p.name, z.Id)
				}
				s.held = false
			}
		}
		f.saved = nil
		parked = append(parked, f.parked)
	}
	return g.serve(of.from, parked)
}

func (g *hostGiver) serve(l *loop.Loop, parked []loop.Parked) error {
	if len(parked) == 0 {
		return nil
	}
	for _, x := range parked {
		delete(g.p.w.inFlight, x.Frozen.Id)
	}
	parcel, err := loop.Pack(parked)
	if err != nil {
		return err
	}
	return g.p.takeBack(g.t, l, parcel)
}

// Refused notes that a flow stays.
func (g *hostGiver) Refused(id uint64, why *frozen.Refused) {
	g.p.w.refusals++
	g.p.w.note("%s: flow %x stays: %v", g.p.name, id, why)
}

// Forget lets go of flows that the other host serves: without a word.
func (g *hostGiver) Forget(lot *move.Lot, _ move.Adoption) {
	for _, f := range lot.Of.(*hostLotOf).flows {
		delete(g.p.w.inFlight, f.parked.Frozen.Id)
		for i, fd := range f.parked.FDs {
			s := g.p.fds.sock(fd, "forget")
			if i >= len(f.tuples) {
				s.excuse("the other host dials anew")
			} else if !s.gone {
				g.p.w.fail("%s forgets flow %x, which nobody else has", g.p.name, f.parked.Frozen.Id)
			}
			g.p.fds.close(fd)
		}
		g.gone(f)
	}
}

// gone ends the accounts of a flow that is the other's, or nobody's.
func (g *hostGiver) gone(f *hostFlow) {
	if a := f.parked.Account; a != nil {
		a.Forget(1) // nothing is free: the other host holds it
		g.left[a]++
	}
	led := g.p.shared.Ledger
	f.parked.LeaveSource(led)
	led.Listener(f.parked.Frozen.Listener.Name).Leave()
	led.Node.Leave()
}

// Lose closes flows of which nobody can know who has them.
func (g *hostGiver) Lose(lot *move.Lot) {
	w := g.p.w
	for _, f := range lot.Of.(*hostLotOf).flows {
		w.lost++
		delete(w.inFlight, f.parked.Frozen.Id)
		for i, fd := range f.parked.FDs {
			s := g.p.fds.sock(fd, "give up")
			s.excuse("nobody knows who served it last")
			if i < len(f.tuples) {
				w.gaveUp[s.tuple()] = true
			}
			if s.gone { // it lives elsewhere, and its peer hears of this all the same
				for _, at := range []*Sock{s.peer, s.peer.peer} {
					at.excuse("nobody knows who served it last")
					at.broken(sock.Reset)
				}
			}
			s.held = false
			g.p.fds.closeReset(fd)
		}
		g.gone(f)
	}
}

// Outcome asks the other host, in a talk of its own, for the last lot that it has.
func (g *hostGiver) Outcome() (last uint16, err error) {
	w, to := g.p.w, g.x.to
	end := w.net.now.Add(2 * time.Second)
	there := func() bool { return to.host.proc == to && to.host.up() && g.x.whole() }
	g.t.wait(func() bool { return there() || to.dead || w.net.now >= end })
	if !there() {
		return 0, errors.New("sim: the other host cannot be asked")
	}
	x := to.talks[g.x.id]
	_ = x.c.Close()
	g.t.wait(func() bool { return x.over || to.dead || w.net.now >= end })
	if !x.over || !there() {
		return 0, errors.New("sim: the other host does not answer")
	}
	return x.own, nil
}
