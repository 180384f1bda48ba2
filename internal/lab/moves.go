package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// mover makes moves and keeps the account of them. That a move took place it
// reads from the kernel, for a product that does nothing reports no errors
// either.
type mover struct {
	world    *World
	balancer Balancer
	traffic  *Traffic
	from     *Host
	say      func(format string, args ...any)

	// standing is how many flows are open all the time: each move must move
	// them all. Short connections come on top.
	standing int

	made    [labels]int
	moved   [labels]int // flows
	octets  [labels]uint64
	carried [labels]int // flows that had octets
	whole   int         // moves that moved every standing flow
	refused int
	reasons map[string]int
	lost    int // by the product's own account
	states  map[string]int
	pauses  [labels]pauses
	millis  [labels]Histogram
	// emptyMayMove: the lab does not care how many flows have octets.
	emptyMayMove bool
	doubts       []string // what the product said and the kernel did not
}

// settleTime is how long after a move what goes wrong is still put down to it.
const settleTime = 250 * time.Millisecond

// movePatience is the longest that a move may take.
const movePatience = 20 * time.Second

// Move makes one move, looks whether it took place, and lets things settle.
func (m *mover) Move(ctx context.Context, d Label) error {
	before, statusBefore := m.balancer.Serving(), m.status(ctx)
	ctx, cancel := context.WithTimeout(ctx, movePatience)
	defer cancel()
	m.traffic.During(d)
	r, err := m.balancer.Move(ctx, d)
	if err != nil {
		return fmt.Errorf("lab: %v move %d: %w", d, m.made[d]+1, err)
	}
	time.Sleep(settleTime)
	m.account(d, r)
	m.doubt(d, r, before, m.balancer.Serving(), statusBefore, m.status(ctx))
	return nil
}

func (m *mover) status(ctx context.Context) *Status {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s, err := m.balancer.Status(ctx)
	if err != nil {
		m.doubts = append(m.doubts, fmt.Sprintf("status: %v", err))
		return nil
	}
	return s
}

func (m *mover) account(d Label, r *MoveReport) {
	m.made[d]++
	m.moved[d] += r.Flows
	m.octets[d] += r.Octets
	m.carried[d] += r.WithOctets
	m.refused += r.Refused
	m.lost += r.Lost
	m.pauses[d].add(r.Flows, r.Pause)
	m.millis[d].Add(time.Duration(r.Millis * float64(time.Millisecond)))
	if m.reasons == nil {
		m.reasons, m.states = map[string]int{}, map[string]int{}
	}
	for why, n := range r.Reasons {
		m.reasons[why] += n
	}
	for s, n := range r.States {
		m.states[s] += n
	}
	if r.Refused == 0 && r.Flows >= m.standing {
		m.whole++
	}
	m.say("   %-7v %3d: %5d flows (%d with octets, %d octets) in %.1f ms, pause p50/p99/max %.0f/%.0f/%.0f us, refused %d%s",
		d, m.made[d], r.Flows, r.WithOctets, r.Octets, r.Millis, r.Pause.P50, r.Pause.P99, r.Pause.Max, r.Refused, reasonText(r.Reasons))
}

func reasonText(reasons map[string]int) string {
	var s []string
	for _, why := range sortedKeys(reasons) {
		if reasons[why] > 0 {
			s = append(s, fmt.Sprintf("%d %s", reasons[why], why))
		}
	}
	if len(s) == 0 {
		return ""
	}
	return " (" + strings.Join(s, ", ") + ")"
}

func (m *mover) doubtf(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	m.doubts = append(m.doubts, s)
	m.say("   DOUBT: %s", s)
}

// leavePatience is how long the former process or host may take to let go.
const leavePatience = 3 * time.Second

// doubt compares what a move should have done with what is.
func (m *mover) doubt(d Label, r *MoveReport, before, after Place, was, is *Status) {
	if r.Distance != d.String() {
		m.doubtf("%v: the report is of distance %q", d, r.Distance)
	}
	if r.Flows < m.standing {
		m.doubtf("%v: %d flows moved of %d that are open", d, r.Flows, m.standing)
	}
	switch d {
	case Config:
		if was != nil && is != nil && is.Generation <= was.Generation {
			m.doubtf("config: generation was %d, is %d", was.Generation, is.Generation)
		}
	case Loop:
		if after.PID != before.PID || !Alive(after.PID) {
			m.doubtf("loop: pid was %d, is %d", before.PID, after.PID)
		}
	case ProcessMove:
		if after.PID == before.PID || !Alive(after.PID) {
			m.doubtf("process: pid was %d, is %d, alive: %v", before.PID, after.PID, Alive(after.PID))
			return
		}
		if n, err := OpenSockets(after.PID); err != nil || n < m.standing {
			m.doubtf("process: pid %d holds %d sockets for %d flows: %v", after.PID, n, m.standing, err)
		}
		if !eventually(leavePatience, func() bool { return !Alive(before.PID) }) {
			m.doubtf("process: pid %d still runs", before.PID)
		}
	case HostMove:
		if after.Host == before.Host {
			m.doubtf("host: the flows are still on %s", after.Host.Name)
			return
		}
		// Client legs alone are as many as the flows.
		if n := m.sockets(after.Host); n < m.standing {
			m.doubtf("host: %s has %d sockets for %d flows", after.Host.Name, n, m.standing)
		}
		if !eventually(leavePatience, func() bool { return m.sockets(before.Host) == 0 }) {
			m.doubtf("host: %s still has %d sockets", before.Host.Name, m.sockets(before.Host))
		}
		for _, a := range []netip.Addr{vip4, vip6} {
			m.doubtOwner(a, before.Host, after.Host)
		}
	}
}

// doubtOwner looks who has a VIP on its device, and whom the clients believe to
// have it. Until they are told, each segment takes a detour.
func (m *mover) doubtOwner(a netip.Addr, old, owner *Host) {
	if yes, err := owner.HasAddress("eth0", a); err != nil || !yes {
		m.doubtf("host: %s should own %v and has not got it on eth0 (%v)", owner.Name, a, err)
	}
	if yes, err := old.HasAddress("eth0", a); err != nil || yes {
		m.doubtf("host: %s should own %v no longer and still has it on eth0 (%v)", old.Name, a, err)
		return // nobody was told then, either
	}
	var mac net.HardwareAddr
	told := eventually(leavePatience, func() bool {
		mac, _ = m.from.Neighbour(a)
		return mac == nil || mac.String() == owner.MAC.String()
	})
	if !told {
		m.doubtf("host: %s believes %v at %v; it is at %s's %v", m.from.Name, a, mac, owner.Name, owner.MAC)
	}
}

// sockets counts connected ones of the VIPs: client legs, and backend legs, for
// they are dialled from there.
func (m *mover) sockets(h *Host) int {
	return h.Connected(func(x TCPSocket) bool { return x.Local.Addr() == vip4 || x.Local.Addr() == vip6 })
}

func eventually(patience time.Duration, f func() bool) bool {
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if f() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

func (m *mover) total() (moves int) {
	for _, n := range m.made {
		moves += n
	}
	return moves
}

// pauseGoals in milliseconds, 0: none.
var pauseGoals = [labels]struct{ p99, max float64 }{
	Loop: {p99: 1}, ProcessMove: {p99: 3, max: 10}, HostMove: {p99: 10, max: 25},
}

// stallGoals bound what a client may notice of a move, whatever the noise.
var stallGoals = [labels]time.Duration{
	Config: 10 * time.Millisecond, Loop: 10 * time.Millisecond,
	ProcessMove: 10 * time.Millisecond, HostMove: 25 * time.Millisecond,
}

// Judge writes the account into the verdict.
func (m *mover) Judge(v *Verdict, made []Label) {
	moves, flows, pausesFigure := map[string]int{}, map[string]int{}, map[string]PauseMicros{}
	v.Say("moves of %d standing flows:", m.standing)
	carried, moved := 0, 0
	for _, d := range made {
		p := m.pauses[d].pooled()
		moves[d.String()], flows[d.String()], pausesFigure[d.String()] = m.made[d], m.moved[d], p
		v.Say("  %-8v %4d moves, %7d flows, %5.1f %% with octets, %8.1f MB, pause p50 %.2f p99 %.2f max %.2f ms, a move took p50 %.1f max %.1f ms",
			d, m.made[d], m.moved[d], percent(m.carried[d], m.moved[d]), float64(m.octets[d])/1e6,
			p.P50/1000, p.P99/1000, p.Max/1000, millis(m.millis[d].Quantile(0.5)), millis(m.millis[d].Max))
		if d != Config { // there nothing is carried
			carried, moved = carried+m.carried[d], moved+m.moved[d]
		}
		g := pauseGoals[d]
		if g.p99 > 0 {
			v.Goal(p.P99 <= g.p99*1000, fmt.Sprintf("%v: pause p99", d), fmt.Sprintf("%.2f ms", p.P99/1000), fmt.Sprintf("at most %v ms", g.p99))
		}
		if g.max > 0 {
			v.Goal(p.Max <= g.max*1000, fmt.Sprintf("%v: longest pause", d), fmt.Sprintf("%.2f ms", p.Max/1000), fmt.Sprintf("at most %v ms", g.max))
		}
	}
	total := 0
	for _, n := range m.states {
		total += n
	}
	v.Say("states of flows at the moment of their moves:")
	for _, s := range sortedKeys(m.states) {
		v.Say("  %-26s %8d  %5.1f %%", s, m.states[s], percent(m.states[s], total))
	}
	for _, d := range m.doubts[:min(len(m.doubts), 20)] {
		v.Say("doubt: %s", d)
	}
	if m.refused > 0 {
		v.Say("refused:%s", reasonText(m.reasons))
	}
	v.Zero("flows refused by moves", m.refused)
	v.Zero("flows that the product says it lost in moves", m.lost)
	v.Zero("moves that the kernel does not confirm", len(m.doubts))
	v.Figure("moves", moves)
	v.Figure("moved_flows", flows)
	v.Figure("pause_us", pausesFigure)
	v.Figure("states", m.states)
	v.Figure("refused", m.refused)
	v.Figure("moves_per_flow", m.whole)
	if moved > 0 {
		share := float64(carried) / float64(moved)
		v.Figure("with_octets_share", share)
		v.Must(share >= 0.3 || m.emptyMayMove, "moved flows with octets", fmt.Sprintf("%.1f %%", share*100), "at least 30 %")
	}
}

func percent(n, of int) float64 {
	if of == 0 {
		return 0
	}
	return 100 * float64(n) / float64(of)
}
