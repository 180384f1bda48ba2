package sim

import (
	"errors"
	"net/netip"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/sock"
	vips "github.com/holdfast-lb/holdfast/internal/vip"
)

// leaseTime is for how long a kernel here lets the VIPs pass without renewal.
const leaseTime = 3 * time.Second

// Host is a machine: a process that serves, a disk, and a kernel with rules. The
// VIPs are one thing that moves.
type Host struct {
	w    *World
	name string
	proc *Proc

	seat  *vips.Seat   // what the process knows of the VIPs
	disk  vips.Record  // what survives it
	lease flow.Instant // until then the kernel lets the VIPs pass
	round flow.Instant // when other hosts are asked next
	lead  *Host        // where the kernel sends new connections; nil: here
}

// circle are all hosts: what is not confirmed by all is silent, as between two nodes.
func (w *World) circle() vips.Circle {
	c := vips.Circle{Lease: int64(leaseTime)}
	for _, h := range w.hosts {
		c.Nodes = append(c.Nodes, h.name)
	}
	return c
}

// sit is what a process of the host begins with.
func (h *Host) sit() {
	h.seat = vips.NewSeat(h.name, h.w.hosts[0].name, h.w.circle(), h.disk, vips.Instant(h.lease))
	h.lead = nil // rules of a crashed process are removed by the next
}

// other is the other of two hosts.
func (h *Host) other() *Host {
	for _, x := range h.w.hosts {
		if x != h {
			return x
		}
	}
	return h
}

func (h *Host) up() bool { return !h.proc.dead && !h.proc.stopped }

// owns tells whether the host's kernel lets the VIPs pass.
func (h *Host) owns() bool { return h.lease > h.w.net.now }

var errDisk = errors.New("sim: no space left on device")

// do carries out what a seat wants.
func (h *Host) do(x vips.Step) error {
	if x.Disown {
		h.lease = 0
	}
	if x.Write != nil {
		if h.w.net.fail("write of a record") {
			return errDisk
		}
		h.disk = *x.Write
		h.seat.Wrote(h.disk)
	}
	if x.Own > 0 {
		h.lease = h.w.net.now.Add(time.Duration(x.Own))
	}
	return nil
}

// hear has the host learn what another one has; ok: it has answered.
func (h *Host) hear(r vips.Record) (answer vips.Record, ok bool) {
	if err := h.do(h.seat.Hear(vips.Instant(h.w.net.now), r)); err != nil {
		return answer, false
	}
	return h.disk, true
}

// rounds has each host ask the other, once in a third of a lease.
func (w *World) rounds() {
	if len(w.hosts) < 2 {
		return
	}
	for _, h := range w.hosts {
		if w.net.now >= h.round && h.up() {
			h.round = w.net.now.Add(leaseTime / 3)
			h.ask()
		}
	}
}

func (h *Host) ask() {
	w, o := h.w, h.other()
	for range 4 { // what is written is told at once
		answers := map[string]vips.Record{}
		if o.up() && w.reach(h, o) && w.reach(o, h) {
			if r, ok := o.hear(h.disk); ok {
				answers[o.name] = r
			}
		}
		x := h.seat.Round(vips.Instant(w.net.now), vips.Instant(w.net.now), answers)
		if h.do(x) != nil || x.Write == nil {
			break
		}
	}
	if h.disk.Stage == vips.Yielded && h.disk.From == h.name {
		h.yielded()
	}
}

// yielded tells the new owner again and again, until it has confirmed.
func (h *Host) yielded() {
	h.seat.Disowned()
	h.lease = 0
	o := h.other()
	if !o.up() || !h.w.reach(h, o) {
		return
	}
	if x, err := o.seat.Accept(vips.Instant(h.w.net.now), h.disk); err == nil && o.do(x) == nil {
		o.ask()
	}
}

// reach tells whether what host a says arrives at b.
func (w *World) reach(a, b *Host) bool { return a == b || !w.cut[a.name] }

// sever cuts the link between the hosts, in the direction from h or in both, until then;
// 0 is until the end of the story.
func (w *World) sever(h *Host, both bool, d time.Duration) {
	w.cut = map[string]bool{h.name: true, h.other().name: both}
	if w.healed = 0; d > 0 {
		w.healed = w.net.now.Add(d)
	}
}

// restsMost bounds how often a story rests for what hosts wait for.
const restsMost = 120

// waits tells whether hosts wait for each other, or for one that goes on later, so that their
// bounds of time are reached before the story is over.
func (w *World) waits() bool {
	if len(w.hosts) < 2 {
		return false
	}
	for _, h := range w.hosts {
		if p := h.proc; p.stopped && p.goesOn > 0 || !p.dead && !p.stopped && (p.leaving || p.arriving) && !p.gave {
			return true
		}
	}
	return w.healed > 0
}

// heal mends the link when its time has come.
func (w *World) heal(now bool) {
	if w.cut != nil && (now || w.healed > 0 && w.net.now >= w.healed) {
		w.cut = nil
		w.note("the link is whole again")
	}
}

// listening is who gets a new connection to an address. vip: it is one that moves; then
// nil is nobody.
func (w *World) listening(at netip.AddrPort) (l *Listener, moves bool) {
	if len(w.hosts) < 2 {
		return nil, false
	}
	var owner *Host
	for _, h := range w.hosts {
		if h.listener(at) != nil {
			moves = true
		}
		if h.owns() {
			owner = h
		}
	}
	if !moves || owner == nil {
		return nil, moves
	}
	if owner.lead != nil {
		owner = owner.lead
	}
	if owner.proc.dead { // another one begins
		return nil, true
	}
	return owner.listener(at), true
}

func (h *Host) listener(at netip.AddrPort) *Listener {
	for _, x := range h.proc.gen.Listening {
		if x.Object.VIP == at {
			if h.proc.dead {
				return &Listener{at: at}
			}
			return h.proc.fds.get(x.FD, "route").listener
		}
	}
	return nil
}

// checkHosts wants that no two hosts answer for the VIPs, and that no segment reaches
// a host that has nothing to do with it.
func (w *World) checkHosts() {
	if len(w.hosts) < 2 {
		return
	}
	if a, b := w.hosts[0], w.hosts[1]; a.owns() && b.owns() {
		w.fail("two hosts answer for the VIPs: %s has %v, %s has %v", a.name, a.disk, b.name, b.disk)
	}
}

// owned wants, when everything is whole again, that one host answers.
func (w *World) owned() {
	if len(w.hosts) < 2 {
		return
	}
	for range 8 {
		for _, h := range w.hosts {
			h.round = 0
		}
		w.rounds()
		w.checkHosts()
	}
	a, b := w.hosts[0], w.hosts[1]
	if !a.owns() && !b.owns() {
		w.fail("nobody answers for the VIPs at the end: %s has %v, %s has %v", a.name, a.disk, b.name, b.disk)
	}
	if !a.disk.Same(b.disk) {
		w.fail("the hosts do not agree at the end: %s has %v, %s has %v", a.name, a.disk, b.name, b.disk)
	}
	if n := len(w.net.holds); n > 0 {
		w.fail("%d tuples are held at the end", n)
	}
}

// tuple is a socket's.
func (s *Sock) tuple() move.Tuple { return move.Tuple{Local: s.local, Remote: s.remote} }

// abandoned ends, for their peers, connections whose socket went with its process
// while it was put down, and which nobody holds to take them over.
func (n *Net) abandoned() {
	if n.left == 0 {
		return
	}
	for _, s := range n.socks {
		if !s.held || !s.orphan || s.gone || n.holds[s.tuple()] != nil {
			continue
		}
		n.left--
		s.gone = true
		if s.peer != nil && s.peer.peer == s {
			s.excuse("its process died")
			s.peer.broken(sock.TimedOut)
		}
	}
}
