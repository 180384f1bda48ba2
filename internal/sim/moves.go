package sim

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/planted"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// The control side here follows package node line by line, with tasks in the
// place of goroutines: what is proved is the order of its steps, and all of
// the code below it, which is the real one.

// ask runs f on the loop's thread between turns and waits until it has.
func (t *task) ask(l *loop.Loop, f func(*loop.Loop)) {
	done := false
	l.Do(func(l *loop.Loop) { f(l); done = true })
	t.wait(func() bool { return done })
}

// reload brings the process to another configuration, as node.Apply. done, if
// not nil, is told when new flows and requests come under it.
func (p *Proc) reload(source string, done func()) *task {
	return p.task("reload", func(t *task) {
		c, _, err := config.Parse("sim.yaml", []byte(source), nil)
		if err != nil {
			p.w.fail("reload: %v", err)
			return
		}
		old := p.gen
		c = p.objects.reuse(c.Reuse(old.Config))
		g, err := p.open(c, old, nil, old.Number+1)
		if err != nil {
			return // no descriptors: the old one stays in force
		}
		p.objects.addConfig(c)
		p.setLimits(c)
		p.gen, p.source = g, source
		for _, l := range p.shared.Loops {
			t.ask(l, func(l *loop.Loop) { l.SetGeneration(g) })
		}
		if done != nil {
			done()
		}
		used := map[string]bool{}
		for _, x := range g.Listening {
			used[x.Object.VIP.String()] = true
		}
		for _, name := range slices.Sorted(maps.Keys(old.Listening)) {
			if x := old.Listening[name]; !used[x.Object.VIP.String()] {
				p.retire(t, x)
			}
		}
		current := adopting{c, p.objects}
		for _, l := range p.shared.Loops {
			var adopt, kill []uint32
			t.ask(l, func(l *loop.Loop) {
				for _, i := range l.Slots(0, nil) {
					f := l.Flow(i)
					now := c.Listeners[f.Listener().Ref.Name]
					if now == nil || now == f.Listener() && (f.Backend() == nil || c.Backends[f.Backend().Ref.Name] == f.Backend()) {
						continue
					}
					switch now.OnChange {
					case config.AdoptFlows:
						adopt = append(adopt, i)
					case config.CloseFlows:
						kill = append(kill, i)
					}
				}
			})
			for some := range slices.Chunk(adopt, 4) {
				t.ask(l, func(l *loop.Loop) { l.Remake(some, current, nil) })
			}
			for some := range slices.Chunk(kill, 4) {
				t.ask(l, func(l *loop.Loop) {
					for _, i := range some {
						l.Kill(i)
					}
				})
			}
		}
	})
}

// retire closes a listener that has left the configuration, as package node does:
// nothing new is let in, what is in its handshake ends it, what waits is accepted.
func (p *Proc) retire(t *task, x *loop.Listening) {
	p.fds.get(x.FD, "bar").listener.barred = true
	p.acceptRest(t, x)
	p.fds.close(x.FD)
}

// restTries bounds how often descriptors are waited for.
const restTries = 50

func (p *Proc) acceptRest(t *task, x *loop.Listening) {
	for empty, tries := planted.Bug(75), 0; !empty && tries < restTries; tries++ {
		t.ask(p.shared.Loops[0], func(l *loop.Loop) { empty = l.AcceptRest(x) })
	}
}

// rebalance sends some flows of each loop to the next.
func (p *Proc) rebalance() *task {
	return p.task("rebalance", func(t *task) {
		loops := p.shared.Loops
		for i, l := range loops {
			t.ask(l, func(l *loop.Loop) {
				slots := l.Slots(0, func(*flow.Flow) bool { return p.w.net.rng.IntN(2) == 0 })
				to := loops[(i+1)%len(loops)]
				l.SendTo(to, slots, nil)
			})
		}
	})
}

// upgrade starts a successor and hands everything over to it. doom, if not
// nil, tells after each message whether the successor dies now.
func (p *Proc) upgrade(doom func(sent int) bool) *task {
	w := p.w
	near, far := carriers(p.fds, newFDs(w.net, w.fdsMax))
	sent := 0
	var heir *Proc
	die := func() bool {
		if sent++; doom == nil || !doom(sent) || heir == nil || heir.dead {
			return false
		}
		w.note("%s dies after message %d", heir.name, sent)
		_ = far.Close()
		heir.crash()
		return true
	}
	w.releases++
	name := fmt.Sprintf("release-%d", w.releases)
	return p.task("upgrade", func(t *task) {
		near.t = t
		p.leaving = true
		err := func() error {
			p.shared.Ledger.Pause() // from here on only the successor grants what is limited
			h := move.Heritage{Generation: p.gen.Number, Source: []byte(p.source), Held: p.shared.Ledger.Held(), LastID: p.shared.NextID.Load(), LastPlace: p.shared.Ledger.LastPlace()}
			var fds []sock.FD
			for _, name := range slices.Sorted(maps.Keys(p.gen.Listening)) {
				h.Listeners = append(h.Listeners, p.gen.Listening[name].Object.VIP.String())
				fds = append(fds, p.gen.Listening[name].FD)
			}
			if err := move.SendJSON(near, move.Inherit, h, fds...); err != nil {
				return err
			}
			if err := w.succeed(name, p.host, far, &heir); err != nil {
				return err
			}
			if _, err := move.Expect(near, move.Ready); err != nil {
				return err
			}
			p.shared.Fixed.Store(true)
			for _, l := range p.shared.Loops {
				t.ask(l, func(l *loop.Loop) { l.SetAccepting(false) })
			}
			die()
			if err := near.Send(move.Message{Kind: move.Accept}); err != nil {
				return err
			}
			if err := p.giveAll(t, near, die); err != nil {
				return err
			}
			if err := near.Send(move.Message{Kind: move.Done}); err != nil {
				return err
			}
			_, err := move.Expect(near, move.Settled)
			return err
		}()
		_ = near.Close()
		if err != nil {
			w.note("%s: upgrade aborted: %v", p.name, err)
			if heir != nil && !heir.dead {
				_ = far.Close()
				heir.crash()
			}
			p.leaving = false
			p.shared.Fixed.Store(false)
			p.shared.Ledger.Alone()
			p.shared.Ledger.Resume()
			p.accepting(true)
			return
		}
		p.gave = true
		if p.host.proc == p {
			p.host.proc = heir
		}
	})
}

func (p *Proc) giveAll(t *task, c *carrier, die func() bool) error {
	sent := map[config.Ref]bool{}
	refused := map[uint64]bool{}
	for {
		found := 0
		for _, l := range p.shared.Loops {
			var slots []uint32
			t.ask(l, func(l *loop.Loop) {
				slots = l.Slots(0, func(f *flow.Flow) bool { return !refused[f.ID()] })
			})
			found += len(slots)
			for some := range slices.Chunk(slots, 3) {
				if err := p.giveBatch(t, c, l, some, sent, refused, die); err != nil {
					return err
				}
			}
		}
		if found == 0 {
			return nil
		}
	}
}

func (p *Proc) giveBatch(t *task, c *carrier, l *loop.Loop, slots []uint32, sent map[config.Ref]bool, refused map[uint64]bool, die func() bool) error {
	var parked []loop.Parked
	t.ask(l, func(l *loop.Loop) {
		for _, i := range slots {
			if f := l.Flow(i); f == nil || refused[f.ID()] {
				continue
			}
			if x, ok := l.Park(i); ok {
				parked = append(parked, x)
			}
		}
	})
	if len(parked) == 0 {
		return nil
	}
	var objects []*frozen.Object
	for _, x := range parked {
		objects = append(objects, p.objects.portable(x.Frozen, sent)...)
	}
	parcel, err := loop.Pack(parked, objects...)
	if err != nil {
		return err
	}
	for _, x := range parked {
		p.w.inFlight[x.Frozen.Id] = p
	}
	landed := func() {
		for _, x := range parked {
			delete(p.w.inFlight, x.Frozen.Id)
		}
	}
	err = c.Send(move.Message{Kind: move.Offer, Body: parcel.Octets, FDs: parcel.FDs})
	die()
	if err == nil {
		_, err = move.Expect(c, move.Taken)
	}
	if err != nil {
		landed()
		var no *frozen.Refused
		if errors.As(err, &no) {
			for _, x := range parked {
				refused[x.Frozen.Id] = true
			}
			p.w.refusals++
			return p.takeBack(t, l, parcel)
		}
		return errors.Join(err, p.takeBack(t, l, parcel))
	}
	if err = move.SendJSON(c, move.Commit, make([]int64, len(parked))); err != nil {
		landed()
		return errors.Join(err, p.takeBack(t, l, parcel))
	}
	landed() // the taker's, from here on
	p.w.note("%s: committed %d", p.name, len(parked))
	die()
	if _, err = move.Expect(c, move.Adopted); err != nil {
		for _, fd := range parcel.FDs {
			if s := p.fds.sock(fd, "give up"); s != nil {
				s.excuse("nobody knows who served it last")
			}
			p.fds.closeReset(fd)
		}
		p.forget(parked, true)
		return err
	}
	for _, fd := range parcel.FDs {
		p.fds.close(fd)
	}
	p.forget(parked, false)
	return nil
}

func (p *Proc) takeBack(t *task, l *loop.Loop, parcel *loop.Parcel) error {
	lost, done := 0, false
	parcel.Adopted = func(_ []int64, n int) { lost, done = n, true }
	l.Deliver(parcel)
	t.wait(func() bool { return done })
	if lost > 0 {
		p.w.fail("%s: %d flows could not be taken back", p.name, lost)
	}
	return nil
}

func (p *Proc) forget(parked []loop.Parked, lost bool) {
	for _, x := range parked {
		if x.Account != nil {
			if lost {
				x.Account.Release()
			} else {
				x.Account.Forget(1)
			}
		}
		x.LeaveSource(p.shared.Ledger)
		p.shared.Ledger.Listener(x.Frozen.Listener.Name).Leave()
		p.shared.Ledger.Node.Leave()
	}
}

// succeed begins the taker's side of an upgrade.
func (w *World) succeed(name string, h *Host, c *carrier, out **Proc) error {
	// The successor's first steps, up to Ready, are in one: nothing of this
	// world can happen in between that it would notice.
	x := c.in.messages[0]
	c.in.messages = c.in.messages[1:]
	var heir move.Heritage
	if err := (move.Message{Kind: x.kind, Body: x.body}).Into(&heir); err != nil {
		return err
	}
	inherited := map[string]sock.FD{}
	for i, f := range x.files {
		fd, ok := c.fds.put(f)
		if !ok {
			return errors.New("no descriptors")
		}
		f.refs--
		inherited[heir.Listeners[i]] = fd
	}
	p, err := w.newProc(name, h, string(heir.Source), inherited, c.fds, heir.LastID+successorGap, heir.Generation)
	if err != nil {
		return err
	}
	*out = p
	for _, name := range slices.Sorted(maps.Keys(heir.Held)) {
		p.account(name).AddForeign(heir.Held[name])
	}
	p.arriving = true
	p.shared.Ledger.PlacesAfter(heir.LastPlace + successorGap)
	if err := c.Send(move.Message{Kind: move.Ready}); err != nil {
		p.crash()
		return err
	}
	p.task("succeed", func(t *task) {
		c.t = t
		if err := p.take(t, c, true); err != nil {
			w.note("%s: succession ended: %v", name, err)
			_ = c.Close()
			p.crash() // a successor that was not settled ends
		}
	})
	return nil
}

// take is the taker's loop of messages, of both kinds of moves.
func (p *Proc) take(t *task, c *carrier, local bool) error {
	var offered *frozen.Batch
	var fds []sock.FD
	drop := func() {
		for _, fd := range fds {
			if local {
				p.fds.close(fd)
			} else {
				p.w.discard(p.fds, fd)
			}
		}
		offered, fds = nil, nil
	}
	defer func() {
		if !p.dead {
			drop()
		}
	}()
	for {
		m, err := c.Receive()
		if err != nil {
			return err
		}
		switch m.Kind {
		case move.Accept:
			p.accepting(true)
		case move.Offer:
			drop()
			fds = m.FDs
			offered, err = p.examine(m.Body)
			if err == nil && !local {
				fds, err = p.w.restore(p.fds, offered)
			}
			if err != nil {
				drop()
				r := move.Refusal{What: "flow", Why: err.Error()}
				if err := move.SendJSON(c, move.Refuse, r); err != nil {
					return err
				}
				continue
			}
			if err := c.Send(move.Message{Kind: move.Taken}); err != nil {
				return err
			}
		case move.Commit:
			if offered == nil {
				return errors.New("a commit without an offer")
			}
			if !local {
				p.w.release(p.fds, fds)
			}
			if err := p.adopt(t, offered, fds, local); err != nil {
				return err
			}
			offered, fds = nil, nil
			if err := move.SendJSON(c, move.Adopted, move.Adoption{}); err != nil {
				return err
			}
		case move.Abort:
			drop()
		case move.Done:
			if local {
				p.arriving = false
				p.shared.Ledger.Alone()
			}
			return c.Send(move.Message{Kind: move.Settled})
		default:
			return fmt.Errorf("%v came out of turn", m.Kind)
		}
	}
}

func (p *Proc) examine(octets []byte) (*frozen.Batch, error) {
	batch, err := frozen.Decode(octets)
	if err != nil {
		return nil, err
	}
	if err := p.objects.receive(batch.Objects); err != nil {
		return nil, err
	}
	for _, z := range batch.Flows {
		if _, err := flow.Thaw(0, z, p.objects); err != nil {
			return nil, err
		}
	}
	return batch, nil
}

func (p *Proc) adopt(t *task, batch *frozen.Batch, fds []sock.FD, local bool) error {
	for _, z := range batch.Flows {
		if z.Endpoint != nil {
			if !local {
				p.arrived(z.Endpoint.Name)
			}
			p.account(z.Endpoint.Name).Import(1)
		}
		p.shared.Ledger.Listener(z.Listener.Name).Admit()
		p.shared.Ledger.Node.Admit()
	}
	to := p.shared.Loops[0]
	for _, l := range p.shared.Loops {
		if l.Load() < to.Load() {
			to = l
		}
	}
	octets, err := batch.Encode()
	if err != nil {
		return err
	}
	done, lost := false, 0
	parcel := &loop.Parcel{Octets: octets, FDs: fds, Since: make([]flow.Instant, len(batch.Flows))}
	parcel.Adopted = func(_ []int64, n int) { done, lost = true, n }
	to.Deliver(parcel)
	t.wait(func() bool { return done })
	if lost > 0 {
		p.w.fail("%s: %d flows were lost after the commit", p.name, lost)
	}
	return nil
}

// successorGap is node's: identities and places that the predecessor may still
// give while its successor starts.
const successorGap = 1 << 24
