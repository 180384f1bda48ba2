package lab

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
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
	// renewing of them take up a changed configuration by themselves, between
	// requests, if they come before it comes to them.
	renewing int

	made    [labels]int
	moved   [labels]int // flows
	octets  [labels]uint64
	carried [labels]int // flows that had octets
	whole   int         // moves that moved every standing flow
	refused int
	reasons map[string]int
	lost    int // by the product's own account
	states  map[string]int
	stateOf [labels]map[string]int // the same by distance
	pauses  [labels]pauses
	millis  [labels]Histogram
	// emptyMayMove: the lab does not care how many flows have octets.
	emptyMayMove bool
	stays        []stay   // since each move
	doubts       []string // what the product said and the kernel did not
	// pooled are endpoints to which a connection outlives its flow: where one
	// stays says nothing.
	pooled []netip.AddrPort
	// onMove is told of each move that was made; may be nil.
	onMove func(ctx context.Context, d Label)
}

// settleTime is how long after a move what goes wrong is still put down to it.
const settleTime = 250 * time.Millisecond

// movePatience is the longest that a move may take: all flows of a full run take
// ten seconds to another host when the machine has other work besides.
const movePatience = 60 * time.Second

// Move makes one move, looks whether it took place, and lets things settle.
func (m *mover) Move(ctx context.Context, d Label) error {
	before, statusBefore := m.balancer.Serving(), m.status(ctx)
	there := m.legs(before.Host)
	ctx, cancel := context.WithTimeout(ctx, movePatience)
	defer cancel()
	m.traffic.During(d)
	r, err := m.balancer.Move(ctx, d)
	if err != nil {
		return fmt.Errorf("lab: %v move %d: %w", d, m.made[d]+1, err)
	}
	after := m.balancer.Serving()
	m.stays = append(m.stays, stay{m.traffic.now(), after.Host})
	settling := m.who(ctx)
	time.Sleep(settleTime)
	settled := m.who(ctx)
	m.account(d, r)
	if m.onMove != nil {
		m.onMove(ctx, d)
	}
	m.doubt(d, r, before, after, statusBefore, m.status(ctx))
	if d == HostMove && after.Host != before.Host {
		m.doubtLegs(before.Host, after.Host, there)
		m.doubtWho(after.Host, settling, settled)
	}
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
	if r.Pause.Max > 0 { // else nobody tells
		m.pauses[d].add(r.Flows, r.Pause)
	}
	m.millis[d].Add(time.Duration(r.Millis * float64(time.Millisecond)))
	if m.reasons == nil {
		m.reasons, m.states = map[string]int{}, map[string]int{}
	}
	for why, n := range r.Reasons {
		m.reasons[why] += n
	}
	if m.stateOf[d] == nil {
		m.stateOf[d] = map[string]int{}
	}
	for s, n := range r.States {
		m.states[s] += n
		m.stateOf[d][s] += n
	}
	if r.Refused == 0 && r.Flows >= m.least(d) {
		m.whole++
	}
	m.say("   %-7v %3d: %5d flows (%d with octets, %d octets) in %.1f ms, pause p50/p99/max %.0f/%.0f/%.0f us, refused %d%s",
		d, m.made[d], r.Flows, r.WithOctets, r.Octets, r.Millis, r.Pause.P50, r.Pause.P99, r.Pause.Max, r.Refused, reasonText(r.Reasons))
}

// least is how many flows a move must move.
func (m *mover) least(d Label) int {
	if d == Config {
		return m.standing - m.renewing
	}
	return m.standing
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
	if r.Flows < m.least(d) {
		m.doubtf("%v: %d flows moved of %d that are open", d, r.Flows, m.standing)
	}
	switch d {
	case Config:
		if was != nil && is != nil && is.Generation <= was.Generation {
			m.doubtf("config: generation was %d, is %d", was.Generation, is.Generation)
		}
		if is != nil && is.OnOld > 0 {
			m.doubtf("config: %d flows are still ruled by what was before", is.OnOld)
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
		}
	}
}

// legs are the connected sockets of the VIPs: client legs, and backend legs,
// for they are dialled from there.
func (m *mover) legs(h *Host) map[TCPSocket]bool {
	out := map[TCPSocket]bool{}
	all, err := h.TCPSockets()
	if err != nil {
		m.doubtf("sockets of %s: %v", h.Name, err)
	}
	for _, x := range all {
		if slices.Contains(m.pooled, x.Remote) {
			continue
		}
		if x.State != tcpListen && (x.Local.Addr() == vip4 || x.Local.Addr() == vip6) {
			out[TCPSocket{Local: x.Local, Remote: x.Remote}] = true // in whatever state
		}
	}
	return out
}

// both is how many of a are in b.
func both(a, b map[TCPSocket]bool) (n int) {
	for x := range a {
		if b[x] {
			n++
		}
	}
	return n
}

// doubtLegs looks for the sockets of the flows that have moved. The former host
// goes on to accept short connections, so it has others.
func (m *mover) doubtLegs(from, to *Host, were map[TCPSocket]bool) {
	// Client legs alone are as many as the flows.
	if n := len(m.legs(to)); n < m.standing {
		m.doubtf("host: %s has %d sockets for %d flows", to.Name, n, m.standing)
	}
	if !eventually(leavePatience, func() bool { return both(m.legs(from), were) == 0 }) {
		m.doubtf("host: %s still has %d of its %d sockets", from.Name, both(m.legs(from), were), len(were))
	}
	if !eventually(leavePatience, func() bool { return both(m.legs(from), m.legs(to)) == 0 }) {
		m.doubtf("host: %d connections have sockets on %s and on %s", both(m.legs(from), m.legs(to)), from.Name, to.Name)
	}
}

// who is what tells who serves at a moment.
type who struct {
	opened   int                          // short connections that clients began
	accepted map[string]int64             // connections accepted, by host
	account  map[string]map[string]uint64 // status.host, by host
}

// A stay is where flows are from a moment of the traffic on.
type stay struct {
	since int64
	host  *Host
}

// hostOf is where flows were at a moment of the traffic.
func (m *mover) hostOf(at int64) *Host {
	host := m.world.Host(owner)
	for _, s := range m.stays {
		if s.since > at {
			break
		}
		host = s.host
	}
	return host
}

// accountant gives the account of a host that need not be the one that serves.
type accountant interface {
	StatusOf(ctx context.Context, host string) (*Status, error)
}

// nodes are the hosts between which flows move; owner has the VIPs. They stay
// there: what arrives for flows that have moved away is sent on.
var nodes = []string{"n1", "n2"}

const owner = "n1"

func (m *mover) who(ctx context.Context) who {
	w := who{opened: m.traffic.Shorts().Opened, accepted: map[string]int64{}, account: map[string]map[string]uint64{}}
	for _, h := range nodes {
		if n, err := accepted(m.world.Host(h)); err == nil {
			w.accepted[h] = n
		}
		if b, ok := m.balancer.(accountant); ok {
			if s, err := b.StatusOf(ctx, h); err == nil {
				w.account[h] = s.Host
			}
		}
	}
	return w
}

// doubtWho looks who has the VIPs, whom the clients believe to have them, who
// accepts their connections, and how the segments of flows that have moved away
// get there.
func (m *mover) doubtWho(to *Host, was, is who) {
	for _, a := range []netip.Addr{vip4, vip6} {
		for _, h := range nodes {
			if yes, err := m.world.Host(h).HasAddress("eth0", a); err != nil || yes != (h == owner) {
				m.doubtf("host: %s has %v on eth0: %v, it is %s's (%v)", h, a, yes, owner, err)
			}
		}
		if mac, _ := m.from.Neighbour(a); mac != nil && mac.String() != m.world.Host(owner).MAC.String() {
			m.doubtf("host: %s believes %v at %v; it is at %s's %v", m.from.Name, a, mac, owner, m.world.Host(owner).MAC)
		}
	}
	for _, h := range nodes {
		n := is.accepted[h] - was.accepted[h]
		if h != owner && n != 0 || h == owner && n == 0 && is.opened-was.opened > 1 { // the last may be on its way
			m.doubtf("host: %s accepted %d of %d short connections; %s has the VIPs", h, n, is.opened-was.opened, owner)
		}
	}
	if to.Name == owner {
		return
	}
	then, now := was.account[owner], is.account[owner]
	if n := now["diverted_tuples"]; n < uint64(m.standing) {
		m.doubtf("host: %s diverts %d tuples for %d flows", owner, n, m.standing)
	}
	if now["diverted_segments_total"] <= then["diverted_segments_total"] {
		m.doubtf("host: %s diverted %d segments, and none since", owner, then["diverted_segments_total"])
	}
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
		line := fmt.Sprintf("  %-26s %8d  %5.1f %%  ", s, m.states[s], percent(m.states[s], total))
		for _, d := range made {
			line += fmt.Sprintf(" %7v %5d", d, m.stateOf[d][s])
		}
		v.Say("%s", line)
	}
	byDistance := map[string]map[string]int{}
	for _, d := range made {
		byDistance[d.String()] = m.stateOf[d]
	}
	v.Figure("states_by_distance", byDistance)
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
