package lab

import (
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
	"os"
	"strconv"
)

// TwoAnswer is a sabotage of the lab migrate: another host says that it has a VIP.
const TwoAnswer = "two-answer"

// strikeWire commits that one.
func (r *migrateRun) strikeWire() {
	if r.Sabotage != TwoAnswer {
		return
	}
	h := r.world.Host("judge")
	r.phase("sabotage: %s says that %v is its own", h.Name, vip4)
	l, err := h.nl.LinkByName("eth0")
	if err == nil {
		err = h.Do(func() error {
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer func() { _ = unix.Close(fd) }()
			// A reply to a station that is none, so that nobody believes it.
			b := arpFrame(2, h.MAC, vip4, h.MAC, netip.MustParseAddr("10.9.0.99"))
			copy(b, []byte{2, 0, 0, 0, 0, 99})
			return unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index})
		})
	}
	if err != nil {
		r.v.Broken(err)
	}
}

// patience is how long the next step of the finish may take.
func (r *migrateRun) patience(broken bool) time.Duration {
	switch {
	case broken || r.traffic.LostTotal() > len(r.flows)/2:
		return 2 * time.Second
	case r.Short:
		return 8 * time.Second
	case r.loss:
		return 150 * time.Second
	}
	return 60 * time.Second
}

func (r *migrateRun) finish(broken bool) {
	r.traffic.During(Closing)
	r.phase("finishing: shut doors open, the queue runs off, all flows drain")
	if r.stop != nil {
		if err := r.stop(min(r.patience(broken), 15*time.Second)); err != nil {
			r.v.Must(false, r.what("new connections"), err.Error(), "none left")
		}
	}
	if r.loss {
		if lost, err := r.endLoss(); err != nil {
			r.v.Broken(err)
		} else {
			r.phase("%d frames were lost", lost)
			r.v.Must(lost > 0, r.what("frames lost"), fmt.Sprint(lost), "more than 0")
		}
	}
	for _, name := range []string{"dial", "webdial"} {
		for _, d := range r.b.doors[name] {
			if err := d.Unshut(); err != nil {
				r.v.Broken(err)
			}
		}
	}
	if len(r.holders) > 0 {
		go r.traffic.Finish(8*time.Second, r.holders[:1])
	}
	var dialing []*Flow
	for _, f := range r.flows {
		if f.Kind == Dialing {
			dialing = append(dialing, f)
		}
	}
	steps := []func(time.Duration) error{
		func(p time.Duration) error {
			return r.traffic.AwaitEach(p, "dialing flows to be served", dialing, func(f *Flow) bool { return f.Served.Load() != 0 })
		},
		func(p time.Duration) error {
			return r.traffic.AwaitEach(p, "queued flows to end", r.queued, func(f *Flow) bool { return f.Finished.Load() != 0 })
		},
		func(p time.Duration) error {
			return r.web.AwaitEach(p, "HTTP flows to be served", r.http, func(f *HTTPFlow) bool { return f.Served.Load() != 0 })
		},
	}
	for _, step := range steps {
		if err := step(r.patience(broken)); err != nil {
			r.phase("%v", err)
		}
	}
	r.web.Finish(r.patience(broken), r.http)
	r.traffic.Finish(r.patience(broken), r.flows)
	r.phase("all flows are over")
}

// what puts the scene's name before a figure's.
func (r *migrateRun) what(s string) string { return r.migrateScene.name + ": " + s }

// judge writes what all saw into the verdict.
func (r *migrateRun) judge() {
	v := r.v
	v.Say("\n== %s, %d moves", r.migrateScene, len(r.moves))
	if !r.rolling {
		v.Must(len(r.moves) == 2*r.trips*len(r.vips), r.what("moves of VIPs"), fmt.Sprint(len(r.moves)), fmt.Sprint(2*r.trips*len(r.vips)))
	}
	r.judgeFlows()
	r.judgeReports()
	r.judgeWire()
	r.judgeSpeed()
}

func (r *migrateRun) judgeFlows() {
	v := r.v
	by, faults := r.traffic.Lost()
	v.Say("TCP: %d flows, %.1f MB verified; the lab took %.2f of a core", len(r.flows), float64(octetsOf(r.flows))/1e6, r.traffic.CPU())
	r.sayKinds(r.flows)
	webBy, webLost, webFaults := r.web.Lost()
	counts := r.web.Counts()
	for k, c := range counts {
		if c.opened > 0 {
			v.Say("  %-26s %5d flows %7d exchanges %9.1f MB, lost %d", HTTPKind(k), c.opened, c.exchanges, float64(c.octets)/1e6, c.lost)
		}
	}
	for i, f := range append(faults, webFaults...) {
		if i == 20 {
			v.Say("  ... %d faults in all", r.traffic.LostTotal()+webLost)
			break
		}
		v.Say("  fault at %s: %v", f.When.Format("15:04:05.000"), f)
	}
	lost := map[string]int{}
	for k := range by {
		n := by[k] + webBy[k]
		lost[FaultKind(k).String()] = n
		v.Zero(r.what("flows lost by "+FaultKind(k).String()), n)
	}
	if r.idle {
		return
	}
	shorts := r.traffic.Shorts()
	v.Must(shorts.Done == shorts.Opened, r.what("new connections served"), fmt.Sprint(shorts.Done), fmt.Sprint(shorts.Opened))
	v.Say("new connections: %d, connect p50 %s p99 %s max %s, whole p50 %s max %s", shorts.Opened, ms(shorts.Connect.Quantile(0.5)),
		ms(shorts.Connect.Quantile(0.99)), ms(shorts.Connect.Max), ms(shorts.Whole.Quantile(0.5)), ms(shorts.Whole.Max))
	slots, most := 0, 0
	for _, x := range r.b.services {
		if x.name == "queue" {
			slots = x.slots
			for _, d := range r.b.doors["queue"] {
				most = max(most, int(d.Most.Load()))
			}
		}
	}
	v.Must(most <= slots, r.what("connections to the limited endpoint at once"), fmt.Sprint(most), fmt.Sprintf("at most %d", slots))
	v.Must(len(inOrder(r.queued)) == len(r.queued), r.what("queued flows served"), fmt.Sprint(len(inOrder(r.queued))), fmt.Sprint(len(r.queued)))
}

func (r *migrateRun) judgeReports() {
	v := r.v
	refused, lost, residue, handshakes, reasons, states := 0, 0, 0, 0, map[string]int{}, map[string]int{}
	least := 0
	for i, m := range r.moves {
		x := m.report
		refused, lost, residue, handshakes = refused+x.Refused, lost+x.Lost, residue+x.Residue, handshakes+x.Handshakes
		for why, n := range x.Reasons {
			reasons[why] += n
		}
		for s, n := range x.States {
			states[s] += n
		}
		if i == 0 || x.Flows < least {
			least = x.Flows
		}
	}
	if refused > 0 {
		v.Say("refused:%s", reasonText(reasons))
	}
	v.Say("states of flows at the moment of their moves:")
	for _, s := range sortedKeys(states) {
		v.Say("  %-26s %8d", s, states[s])
	}
	v.Say("handshakes that were finished where they began: %d", handshakes)
	v.Zero(r.what("flows refused by moves"), refused)
	v.Zero(r.what("flows that the product says it lost"), lost)
	v.Zero(r.what("flows left behind"), residue)
	if !r.rolling {
		v.Must(r.local >= 0.5, r.what("flows whose server is on the host that is evacuated"), fmt.Sprintf("%.0f %%", 100*r.local), "at least 50 %")
	}
	for _, d := range r.doubts[:min(len(r.doubts), 20)] {
		v.Say("doubt: %s", d)
	}
	v.Zero(r.what("moves that the kernels do not confirm"), len(r.doubts))
	for _, name := range sortedNames(r.b.nodes) {
		st, err := r.b.statusOf(r.ctx, name)
		if err != nil {
			v.Must(false, r.what("status of "+name), err.Error(), "an answer")
			continue
		}
		v.Zero(r.what(name+": flows_reset_by_move_total"), int(st.ResetByMove))
		v.Zero(r.what(name+": flows lost, by its own account"), int(st.Lost+st.LostTotal))
		// The privilege is another process's.
		caps, err := capabilities(r.b.nodes[name].data.Pid)
		if err != nil {
			v.Broken(err)
		}
		v.Must(caps&^(1<<10) == 0, r.what(name+": capabilities of the process that serves"), fmt.Sprintf("%x", caps), "none but 400, ports below 1024")
	}
}

// capabilities are those that a process has, or can come to have (capabilities(7)).
func capabilities(pid int) (all uint64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for _, name := range []string{"CapEff", "CapPrm", "CapBnd"} {
		n, err := strconv.ParseUint(field(text, name), 16, 64)
		if err != nil {
			return 0, err
		}
		all |= n
	}
	return all, nil
}

func (r *migrateRun) judgeWire() {
	v := r.v
	var wrong []string
	if !r.tunnel { // nobody asks a router by ARP
		wrong = r.judgeClaims()
	}
	for _, w := range wrong[:min(len(wrong), 20)] {
		v.Say("  %s", w)
	}
	n, resets := r.wire.Resets()
	for _, x := range resets[:min(len(resets), 20)] {
		v.Say("  RST at %v", x)
	}
	strays := r.wire.Strays()
	v.Zero(r.what("RSTs of connections, on the bridge and on the loopback devices"), n-strays)
	// No flow was lost by those, or it says so itself.
	v.Goal(strays == 0, r.what("RSTs to segments of connections that had ended"), fmt.Sprint(strays), "0")
	v.Zero(r.what("frames that the judge did not see"), int(r.wire.Missed()))
	if r.tunnel {
		r.judgeRoutes()
	} else {
		v.Must(r.asked > 0, r.what("claims of the VIPs"), fmt.Sprint(r.asked), "more than 0")
		v.Zero(r.what("claims by who is not the owner"), len(wrong))
	}
	if k := len(r.silences); k > 0 {
		v.Say("nobody answered for a VIP, asked each %v: p50 %s max %s", askEvery, ms(r.silences[k/2]), ms(r.silences[k-1]))
	}
	r.judgeRetransmits()
}

// judgeRetransmits compares what was sent again during the moves with a time without any:
// a machine with too much to do does that by itself.
func (r *migrateRun) judgeRetransmits() {
	now, before := 0.0, 0.0
	for _, h := range sortedNames(r.retrans) {
		quiet := float64(r.quiet[h]["RetransSegs"]) * r.moving.Seconds() / max(r.still.Seconds(), 1e-3)
		now, before = now+float64(r.retrans[h]), before+quiet
		line := ""
		for _, c := range sortedNames(r.while[h]) {
			if n := r.while[h][c]; n != 0 {
				line += fmt.Sprintf(" %s %d (%.0f)", c, n, float64(r.quiet[h][c])*r.moving.Seconds()/max(r.still.Seconds(), 1e-3))
			}
		}
		r.v.Say("sent again by %s during the moves (and in as long a time without): %d (%.0f);%s", h, r.retrans[h], quiet, line)
	}
	if !r.loss && !r.saturated {
		r.v.Goal(now <= before, r.what("segments sent again"), fmt.Sprintf("%.0f", now), fmt.Sprintf("not more than the %.0f of as long a time without moves", before))
	}
}

// again are the counters that tell why segments were sent again.
var again = []string{"TCPTimeouts", "TCPLossProbes", "TCPFastRetrans", "TCPSlowStartRetrans", "TCPSackRecovery", "TCPLostRetransmit", "TCPDSACKRecv",
	"TCPSpuriousRTOs", "TCPSACKReneging", "TCPWinProbe", "TCPOFOQueue", "TCPBacklogDrop", "ListenOverflows", "TCPRcvQDrop", "TCPReqQFullDoCookies"}

// since is how such counters of all hosts have grown.
func (r *migrateRun) since(before map[string]map[string]int64) map[string]map[string]int64 {
	after := r.count()
	out := map[string]map[string]int64{}
	for h := range after {
		out[h] = map[string]int64{"RetransSegs": after[h]["RetransSegs"] - before[h]["RetransSegs"]}
		for _, c := range again {
			out[h][c] = after[h][c] - before[h][c]
		}
	}
	return out
}

// countMoves begins to count what is sent again during the moves; the returned function ends
// it.
func (r *migrateRun) countMoves() (end func()) {
	before, began := r.count(), time.Now()
	return func() {
		r.moving, r.while, r.retrans = time.Since(began), r.since(before), map[string]int64{}
		for h, c := range r.while {
			r.retrans[h] = c["RetransSegs"]
			delete(c, "RetransSegs")
		}
	}
}
