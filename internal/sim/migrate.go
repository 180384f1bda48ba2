package sim

import (
	"encoding/json"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/planted"
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

// save takes a socket's state. From hold on no segment has come or gone.
func (s *Sock) save() ([]byte, error) {
	if s.dead || !s.connected {
		return nil, errors.New("the connection has ended")
	}
	if !s.remote.IsValid() {
		return nil, errors.New("a unix socket stays on its host")
	}
	return json.Marshal(state{
		Local: s.local, Remote: s.remote, Snd: s.snd, Una: s.una, Rcv: s.rcv, RcvNxt: s.rcvNxt,
		SndCap: s.sndCap, RcvCap: s.rcvCap, FinOut: s.finOut, FinIn: s.finIn,
	})
}

// restore makes the sockets of a batch here, quiet: they neither send nor hear.
func (w *World) restore(t *FDs, batch *frozen.Batch) (fds []sock.FD, err error) {
	for _, z := range batch.Flows {
		for _, g := range append([]*frozen.Leg{z.Client}, z.Legs...) {
			if w.net.fail("restore") {
				return fds, errors.New("sim: no memory for a socket")
			}
			var x state
			if err := json.Unmarshal(g.Socket, &x); err != nil {
				return fds, err
			}
			s := &Sock{
				net: w.net, cookie: w.net.cookie(), local: x.Local, remote: x.Remote, snd: x.Snd, una: x.Una, nxt: x.Una, rcv: x.Rcv, rcvNxt: x.RcvNxt,
				sndCap: x.SndCap, rcvCap: x.RcvCap, finOut: x.FinOut, finIn: x.FinIn, connected: true, held: true,
			}
			if planted.Bug(9) {
				s.una, s.nxt = s.una+1, s.nxt+1
			}
			s.file = &file{sock: s}
			fd, ok := t.put(s.file)
			if !ok {
				return fds, errors.New("sim: no descriptors")
			}
			g.Socket, g.Fd = nil, uint32(len(fds)+1)
			fds = append(fds, fd)
		}
	}
	return fds, nil
}

// discard closes a socket without a word.
func (w *World) discard(t *FDs, fd sock.FD) {
	if s := t.sock(fd, "discard"); s != nil {
		s.gone = true
		t.close(fd)
	}
}

// release lets restored sockets take the place of those they were saved from:
// segments come here from now on.
func (w *World) release(t *FDs, fds []sock.FD) {
	for _, fd := range fds {
		s := t.sock(fd, "release")
		if s == nil {
			continue
		}
		for _, old := range w.net.socks {
			if old.held && old.local == s.local && old.remote == s.remote {
				old.gone = true
				s.peer, s.excused, s.mate = old.peer, old.excused, old.mate
				s.peer.peer = s
				if s.peer.mate == old {
					s.peer.mate = s
				}
			}
		}
		if s.peer == nil {
			w.fail("a socket %v to %v was restored and is nobody's", s.local, s.remote)
			continue
		}
		s.held = false
		w.net.socks = append(w.net.socks, s)
	}
}

// migrate moves all flows of p to the process of another host, and the VIPs
// behind them.
func (p *Proc) migrate(to *Proc) *task {
	w := p.w
	near, far := carriers(p, to)
	near.remote, far.remote = true, true
	// While flows are on their way only the taker grants what is limited, and
	// it counts what the giver still holds.
	p.shared.Ledger.Pause()
	held := p.shared.Ledger.Held()
	for _, name := range slices.Sorted(maps.Keys(held)) {
		to.account(name).AddForeign(held[name])
	}
	left := map[string]int64{}
	p.departed = func(endpoint string) { left[endpoint]++ }
	to.arrived = func(endpoint string) { held[endpoint]-- }
	to.task("welcome", func(t *task) {
		far.t = t
		if err := to.take(t, far); err != nil {
			w.note("%s: a peer's migration ended: %v", to.name, err)
		}
		_ = far.Close()
		for _, name := range slices.Sorted(maps.Keys(held)) {
			if held[name] > 0 {
				to.account(name).AddForeign(-held[name])
			}
		}
		to.arriving = false
	})
	p.leaving, to.arriving = true, true
	return p.task("migrate", func(t *task) {
		near.t = t
		p.shared.Fixed.Store(true)
		for _, l := range p.shared.Loops {
			t.ask(l, func(l *loop.Loop) { l.CloseIdle("") })
		}
		err := p.giveHost(t, near)
		if err == nil {
			// The old host takes no more: SYN goes to the new one; what waits
			// in the queue here is taken and follows.
			to.accepting(true)
			for _, x := range p.gen.Listening {
				if there := to.gen.Listening[x.Object.Ref.Name]; there != nil {
					w.net.routes[x.Object.VIP] = to.fds.get(there.FD, "route").listener
				}
			}
			for _, l := range p.shared.Loops {
				t.ask(l, func(l *loop.Loop) { l.SetAccepting(false) })
			}
			p.fds.rest = true
			for _, name := range slices.Sorted(maps.Keys(p.gen.Listening)) {
				x := p.gen.Listening[name]
				p.acceptRest(t, x)
			}
			err = p.giveHost(t, near)
		}
		if err == nil {
			err = near.Send(move.Message{Kind: move.Done})
		}
		if err == nil {
			_, err = move.Expect(near, move.Settled)
		}
		_ = near.Close()
		p.shared.Fixed.Store(false)
		for _, name := range slices.Sorted(maps.Keys(left)) {
			p.account(name).AddForeign(-left[name])
		}
		p.leaving = false
		p.shared.Ledger.Resume()
		if err != nil {
			w.note("%s: migration ended early: %v", p.name, err)
		}
	})
}

func (p *Proc) giveHost(t *task, c *carrier) error {
	w := p.w
	sent := map[config.Ref]bool{}
	tries := map[uint64]int{}
	for {
		found := 0
		for _, l := range p.shared.Loops {
			var slots []uint32
			t.ask(l, func(l *loop.Loop) {
				slots = l.Slots(0, func(f *flow.Flow) bool { return tries[f.ID()] < 3 })
			})
			found += len(slots)
			for some := range slices.Chunk(slots, 3) {
				if err := p.giveHostBatch(t, c, l, some, sent, tries); err != nil {
					return err
				}
			}
		}
		if found == 0 {
			return nil
		}
		if w.failed != nil {
			return w.failed
		}
	}
}

func (p *Proc) giveHostBatch(t *task, c *carrier, l *loop.Loop, slots []uint32, sent map[config.Ref]bool, tries map[uint64]int) error {
	var parked []loop.Parked
	t.ask(l, func(l *loop.Loop) {
		for _, i := range slots {
			if f := l.Flow(i); f == nil || tries[f.ID()] >= 3 {
				continue
			}
			if x, ok := l.Park(i); ok {
				parked = append(parked, x)
			}
		}
	})
	back := func(some []loop.Parked) error {
		if len(some) == 0 {
			return nil
		}
		for _, x := range some {
			delete(p.w.inFlight, x.Frozen.Id)
			tries[x.Frozen.Id]++
			x.Frozen.Client.Socket = nil
			if len(x.Frozen.Legs) > 0 {
				x.Frozen.Legs[0].Socket = nil
			} else if len(x.FDs) > 1 {
				x.Frozen.Legs = []*frozen.Leg{{}}
			}
			for _, fd := range x.FDs {
				if s := p.fds.sock(fd, "resume"); s != nil {
					s.held = false
				}
			}
		}
		parcel, err := loop.Pack(some)
		if err != nil {
			return err
		}
		return p.takeBack(t, l, parcel)
	}
	var going, staying []loop.Parked
	for _, x := range parked {
		p.w.inFlight[x.Frozen.Id] = p
		if p.freezeSockets(x) {
			going = append(going, x)
		} else {
			staying = append(staying, x)
		}
	}
	if err := back(staying); err != nil || len(going) == 0 {
		return err
	}
	batch := frozen.Batch{}
	for _, x := range going {
		batch.Objects = append(batch.Objects, p.objects.portable(x.Frozen, sent)...)
		batch.Flows = append(batch.Flows, x.Frozen)
	}
	octets, err := batch.Encode()
	if err == nil {
		err = c.Send(move.Message{Kind: move.Offer, Body: octets})
	}
	if err == nil {
		_, err = move.Expect(c, move.Taken)
	}
	if err != nil {
		var no *frozen.Refused
		if errors.As(err, &no) {
			err = nil
		}
		return errors.Join(err, back(going))
	}
	err = c.Send(move.Message{Kind: move.Commit})
	if err != nil {
		// Nobody knows whether it arrived; here it surely did not, but the
		// rule is to close.
		for _, x := range going {
			for _, fd := range x.FDs {
				p.fds.sock(fd, "give up").excuse("the commit could not be sent")
			}
		}
	}
	for _, x := range going {
		delete(p.w.inFlight, x.Frozen.Id)
		for i, fd := range x.FDs {
			s := p.fds.sock(fd, "forget")
			if i > 0 && flow.State(x.Frozen.State) != flow.Relaying {
				s.excuse("the other host dials anew")
				p.fds.close(fd)
			} else if s.connected && err == nil {
				// Silent: it lives elsewhere from the release on. Held until
				// then, so that nothing here answers for it.
				s.file.quiet = true
				p.fds.close(fd)
			} else {
				s.held = false
				p.fds.closeReset(fd)
			}
		}
		if x.Account != nil {
			x.Account.Forget(1) // nothing is free: the other host holds it
			p.departed(x.Account.Name)
		}
		x.LeaveSource(p.shared.Ledger)
		p.shared.Ledger.Listener(x.Frozen.Listener.Name).Leave()
		p.shared.Ledger.Node.Leave()
	}
	if err == nil {
		_, err = move.Expect(c, move.Adopted)
	}
	return err
}

// freezeSockets holds the tuples of a flow and puts their sockets' state into
// it. A leg that is being dialled stays: the other host dials anew.
func (p *Proc) freezeSockets(x loop.Parked) bool {
	z := x.Frozen
	relaying := flow.State(z.State) == flow.Relaying
	legs := append([]*frozen.Leg{z.Client}, z.Legs...)
	for i, fd := range x.FDs {
		if i > 0 && !relaying {
			continue
		}
		s := p.fds.sock(fd, "save")
		if s == nil {
			return false
		}
		s.held = true
		if p.w.net.fail("save") {
			return false
		}
		octets, err := s.save()
		if err != nil {
			return false
		}
		legs[i].Socket, legs[i].Fd = octets, 0
	}
	if !relaying && len(z.Legs) > 0 {
		if z.Legs[0].Fd = 0; len(z.Legs[0].Unsent) == 0 {
			z.Legs = nil
		}
	}
	return true
}
