package sim

import (
	"maps"
	"slices"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/planted"
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

// forget ends the accounts of flows that have left. What they held the other process
// holds now, under the same limits, unless they are lost.
func (p *Proc) forget(parked []loop.Parked, lost bool) {
	for _, x := range parked {
		listener, node := p.shared.Ledger.Listener(x.Frozen.Listener.Name), &p.shared.Ledger.Node
		if lost {
			if x.Account != nil {
				x.Account.Release()
			}
			x.LeaveSource(p.shared.Ledger)
			listener.Leave()
			node.Leave()
			continue
		}
		if x.Account != nil {
			x.Account.Forget(1)
		}
		if x.Source != nil {
			p.shared.Ledger.ForgetSource(x.Source.Listener, x.Source.Address)
		}
		listener.Forget()
		node.Forget()
	}
}

// adopt serves flows that are this process's from now on. counted tells that they
// come from a predecessor, whose ledger divides its limits with ours.
func (p *Proc) adopt(t *task, batch *frozen.Batch, parcel *loop.Parcel, counted bool) {
	for _, z := range batch.Flows {
		if z.Endpoint != nil {
			p.account(z.Endpoint.Name).Import(1)
		}
		if !counted {
			p.shared.Ledger.Listener(z.Listener.Name).Admit()
			p.shared.Ledger.Node.Admit()
		} else {
			p.shared.Ledger.Listener(z.Listener.Name).Import()
			p.shared.Ledger.Node.Import()
		}
	}
	to := p.shared.Loops[0]
	for _, l := range p.shared.Loops {
		if l.Load() < to.Load() {
			to = l
		}
	}
	done, lost := false, 0
	parcel.Adopted = func(_ []int64, n int) { done, lost = true, n }
	to.Deliver(parcel)
	t.wait(func() bool { return done })
	if lost > 0 {
		p.w.fail("%s: %d flows were lost after the commit", p.name, lost)
	}
}

// successorGap is node's: identities and places that the predecessor may still
// give while its successor starts.
const successorGap = 1 << 24
