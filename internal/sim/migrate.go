package sim

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/move"
	vips "github.com/holdfast-lb/holdfast/internal/vip"
)

// hostTalk is one conversation of a process with one of another host.
type hostTalk struct {
	p, to  *Proc
	t      *task
	id     string
	near   *carrier
	sent   map[config.Ref]bool
	giving *move.HostGiving

	verified *hostLotOf // the lot whose commit comes next
}

// talk begins a conversation.
func (p *Proc) talk(t *task, to *Proc) *hostTalk {
	w := p.w
	w.talked++
	x := &hostTalk{p: p, to: to, t: t, id: fmt.Sprint(w.talked), sent: map[config.Ref]bool{}}
	near, far := carriers(p, to)
	near.remote, far.remote = true, true
	near.side, far.side, near.t = "host giver", "host taker", t
	x.near, x.giving = near, move.NewHostGiving(near)
	near.committed = func(uint16) { // from here on its flows are the taker's
		for _, f := range x.verified.flows {
			delete(w.inFlight, f.parked.Frozen.Id)
		}
	}
	to.welcome(far, p, x.id)
	return x
}

// whole tells whether the hosts reach each other.
func (x *hostTalk) whole() bool {
	return x.p.w.reach(x.p.host, x.to.host) && x.p.w.reach(x.to.host, x.p.host)
}

// ask puts a question of the choreography.
func (x *hostTalk) ask(what string, r vips.Record) (answer vips.Record, err error) {
	body, err := json.Marshal(r)
	if err == nil {
		err = x.near.SetTimeout(hostAnswer)
	}
	if err == nil {
		err = move.SendJSON(x.near, move.Ask, move.Question{What: what, Body: body})
	}
	if err != nil {
		return answer, err
	}
	m, err := move.Expect(x.near, move.Answer)
	if err != nil {
		return answer, err
	}
	return answer, m.Into(&answer)
}

// flows moves all that are here now.
func (x *hostTalk) flows() error {
	p := x.p
	g := &hostGiver{x: x, p: p, t: x.t, left: map[*ledger.Endpoint]int64{}, began: p.w.net.now}
	// While flows are on their way only the other host grants what is limited.
	p.shared.Ledger.Pause()
	err := x.giving.Give(g, move.Coming{Talk: x.id, Held: p.shared.Ledger.Held()})
	for _, a := range slices.SortedFunc(maps.Keys(g.left), func(a, b *ledger.Endpoint) int { return int(g.left[a] - g.left[b]) }) {
		a.AddForeign(-g.left[a])
	}
	p.shared.Ledger.Resume()
	return err
}

// migrate moves all flows of p to the process of another host, and the VIPs if they are
// here: node.MigrateVIP.
func (p *Proc) migrate(to *Proc) *task {
	p.leaving = true
	return p.task("migrate", func(t *task) {
		w, h := p.w, p.host
		p.shared.Fixed.Store(true)
		for _, l := range p.shared.Loops {
			t.ask(l, func(l *loop.Loop) { l.CloseIdle("") })
		}
		x := p.talk(t, to)
		var err error
		began := h.seat.Holds(vips.Instant(w.net.now))
		if began {
			err = x.vips()
		} else {
			err = x.flows()
		}
		_ = x.near.Close()
		back := err != nil && began && h.disk.Holder() == h.name
		if h.lead = nil; back && h.disk.Stage == vips.Moving {
			if step, no := h.seat.Cancel(); no == nil {
				_ = h.do(step) // the next round tries again
			}
		}
		p.shared.Fixed.Store(false)
		p.leaving, p.unsure = false, false
		if err != nil {
			w.note("%s: migration ended early: %v", p.name, err)
			w.hostAborts++
		} else {
			w.hostMoves++
		}
		// What has left comes back.
		if q := to.host.proc; back && q == to && w.idleProc(slices.Index(w.hosts, to.host)) == q && x.whole() {
			w.note("%s: gives back what has come", q.name)
			q.migrate(p)
		}
	})
}

// vips moves the VIPs with all flows, in the order in which that is safe.
func (x *hostTalk) vips() error {
	p, w := x.p, x.p.w
	h := p.host
	// The first transaction: durable there, then here.
	r, err := h.seat.Begin(vips.Instant(w.net.now), x.to.host.name)
	if err != nil {
		return err
	}
	answers := map[string]vips.Record{}
	a, err := x.ask("vip.begin", r)
	if err == nil {
		answers[x.to.host.name] = a
	}
	step, no := h.seat.Begun(vips.Instant(w.net.now), answers)
	if err == nil {
		err = no
	}
	if err == nil {
		err = h.do(step)
	}
	if err != nil {
		return err
	}
	// New connections begin at the other host; what waits in the queue here is
	// taken and follows.
	h.lead = x.to.host
	if err := x.flows(); err != nil {
		return err
	}
	for _, l := range p.shared.Loops {
		x.t.ask(l, func(l *loop.Loop) { l.SetAccepting(false) })
	}
	p.fds.rest = true
	for _, name := range slices.Sorted(maps.Keys(p.gen.Listening)) {
		p.acceptRest(x.t, p.gen.Listening[name])
	}
	p.fds.rest = false
	p.accepting(true)
	if err := x.flows(); err != nil {
		return err
	}
	// The second transaction: from here on only the other host can own them.
	if step, err = h.seat.Yield(); err == nil {
		err = h.do(step)
	}
	if err != nil {
		return err
	}
	h.seat.Disowned()
	h.lease = 0
	if a, err = x.ask("vip.yield", h.disk); err == nil {
		_, _ = h.hear(a) // the next round does, if it could not be written
	}
	end := flow.Instant(0)
	x.t.wait(func() bool { // a round of this host tells it until it is confirmed
		if end == 0 {
			end = w.net.now.Add(time.Hour)
		}
		return h.disk.Stage != vips.Yielded || w.net.now > end
	})
	return nil
}
