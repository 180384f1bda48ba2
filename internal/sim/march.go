package sim

import (
	"errors"
	"math/rand/v2"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
)

// march is what happens to an upgrade, or a move to another host, at one of the calls by which its sides speak:
// the call fails, or the process that makes it dies there, or stands still.
type march struct {
	side string // "giver" or "taker", of an upgrade; "host giver" or "host taker"
	at   int    // the call of this number, counted from 1 over all upgrades; 0: none
	do   marchDo
	stop time.Duration // for how long it stands still; 0: for ever

	calls map[string]int // so far, by side
	hit   string         // the call at which it happened
	pid   *Proc          // that it happened to
}

// marchDo is what happens.
type marchDo uint8

const (
	callFails marchDo = iota
	procDies
	procStops
	linkHalf // what this side says does not arrive
	linkCut  // nor what the other says
)

func (d marchDo) String() string {
	return [...]string{"fails", "dies", "stops", "is not heard", "is cut off"}[d]
}

// called is told of each call of a carrier before it is made.
func (w *World) called(c *carrier, what string) error {
	if c.side == "" {
		if w.net.fail(what) {
			return errors.New("sim: the other side is gone")
		}
		return nil
	}
	m := &w.march
	if m.calls == nil {
		m.calls = map[string]int{}
	}
	m.calls[c.side]++
	if m.side != c.side || m.calls[c.side] != m.at {
		if w.net.fail(c.side + " " + what) {
			return errors.New("sim: this call fails")
		}
		return nil
	}
	m.hit, m.pid = what, c.p
	w.note("%s: %s %v at call %d, %s", c.p.name, c.side, m.do, m.at, what)
	switch m.do {
	case callFails:
		return errors.New("sim: this call fails")
	case procDies:
		c.p.crash()
		panic(killed{})
	case linkHalf, linkCut:
		w.sever(c.p.host, m.do == linkCut, m.stop)
	case procStops:
		c.p.stopped, c.p.fds.stopped = true, true
		if m.stop > 0 {
			c.p.goesOn = w.net.now.Add(m.stop)
		}
		c.t.wait(func() bool { return !c.p.stopped })
	}
	return nil
}

// wake lets those go on that have stood still for long enough.
func (w *World) wake() {
	for _, p := range w.procs {
		if p.stopped && p.goesOn > 0 && w.net.now >= p.goesOn {
			p.stopped, p.fds.stopped, p.goesOn = false, false, 0
			p.stoodStill()
			w.note("%s goes on", p.name)
		}
	}
}

// stoodStill excuses who waited or was dialled: the time for that may be over.
func (p *Proc) stoodStill() {
	for _, l := range p.shared.Loops {
		for _, i := range l.Slots(0, func(f *flow.Flow) bool { return f.State() != flow.Relaying }) {
			for side := flow.Client; side <= flow.Backend; side++ {
				if s := p.fds.look(l.Leg(i, side)); s != nil {
					s.excuse("its process stood still")
				}
			}
		}
	}
}

// revive begins a process where none is left, as a supervisor does.
func (w *World) revive() {
	for _, h := range w.hosts {
		if !h.proc.dead || h.taken() {
			continue
		}
		w.restarts++
		w.note("%s: a new process begins", h.name)
		p, err := w.newProc(h.name, h, h.proc.source, nil, newFDs(w.net, w.fdsMax), uint64(100+w.restarts)<<40, h.proc.gen.Number+1)
		if err != nil {
			w.fail("%s does not begin again: %v", h.name, err)
			return
		}
		h.proc = p
		h.sit()
		p.accepting(true)
	}
}

// beat is what the hosts do by the clock.
func (w *World) beat() {
	w.heal(false)
	w.net.abandoned()
	w.rounds()
}

// taken tells that a process lives that may take the host over still.
func (h *Host) taken() bool {
	for _, p := range h.w.procs {
		if p.host == h && !p.dead {
			return true
		}
	}
	return false
}

// endStopped ends, as an operator would, processes that stand still for ever.
func (w *World) endStopped() {
	for _, p := range w.procs {
		if p.stopped && !p.dead {
			w.note("%s stands still, and is killed", p.name)
			p.crash()
		}
	}
}

// choose lets something happen at some call of this upgrade, or nothing.
func (m *march) choose(r *rand.Rand) {
	m.at = 0
	if r.IntN(4) == 0 {
		return
	}
	m.side = []string{"giver", "taker"}[r.IntN(2)]
	m.at, m.do = m.calls[m.side]+1+r.IntN(30), marchDo(r.IntN(3))
	m.stop = []time.Duration{0, 30 * time.Millisecond, time.Second}[r.IntN(3)]
}

// chooseHost lets something happen at some call of a move to another host, or nothing.
func (m *march) chooseHost(r *rand.Rand) {
	m.at = 0
	if r.IntN(4) == 0 {
		return
	}
	m.side = []string{"host giver", "host taker"}[r.IntN(2)]
	m.at, m.do = m.calls[m.side]+1+r.IntN(40), marchDo(r.IntN(5))
	m.stop = []time.Duration{0, 300 * time.Millisecond, 4 * time.Second, 20 * time.Second}[r.IntN(4)]
}

// upgrading tells whether an upgrade goes on.
func (w *World) upgrading() bool {
	for _, p := range w.procs {
		if !p.dead && (p.leaving && !p.gave || p.arriving) {
			return true
		}
	}
	return false
}

// runs tells whether loop i of a process has turns.
func (p *Proc) runs(i int) bool { return !p.dead && !p.stopped && i < len(p.shared.Loops) }
