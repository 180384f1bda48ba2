package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// controlWindow is the length of a window without moves in which gaps are taken: as
// long as a move with its settling.
const controlWindow = 1500 * time.Millisecond

// control measures the noise of this machine, and what serving takes: everything runs,
// nothing moves. The first one is the base of what is put down to the moves.
func (r *migrateRun) control(first bool) {
	windows := 10
	if r.Short {
		if windows = 1; !first {
			return
		}
	}
	time.Sleep(700 * time.Millisecond) // what was before wears off
	r.phase("control interval: %d times %v without moves", windows, controlWindow)
	r.traffic.During(Control)
	began, before, machine, talk := time.Now(), r.cpu(), machineCPU(), r.talked()
	counters := r.count()
	for range windows {
		r.startGaps(nil)
		time.Sleep(controlWindow)
		r.takeGaps(nil, &r.gaps[0])
	}
	if r.saturated {
		busy := float64(machineCPU()-machine) / float64(time.Since(began)) / float64(runtime.NumCPU())
		r.busy = append(r.busy, busy)
	}
	if first {
		r.still, r.quiet = time.Since(began), r.since(counters)
		took, after := time.Since(began), r.cpu()
		r.serving = map[string]float64{}
		for name := range after {
			r.serving[name] = float64(after[name]-before[name]) / float64(took)
		}
		r.machine = float64(machineCPU()-machine) / float64(took)
		r.talk = float64(r.talked()-talk) / took.Seconds()
	}
	r.traffic.During(Opening)
}

// startGaps begins a window for the steady flows of a VIP, nil: of all.
func (r *migrateRun) startGaps(of *clusterVIP) {
	for _, f := range r.steady {
		if of == nil || f.To.Addr() == of.addr {
			f.way[Down].gap.Store(0)
		}
	}
}

// takeGaps ends it: of each flow the longest time between two arrivals at its client,
// without the time that the server leaves between them.
func (r *migrateRun) takeGaps(of *clusterVIP, into *Histogram) {
	for _, f := range r.steady {
		if (of == nil || f.To.Addr() == of.addr) && len(f.Faults()) == 0 {
			into.Add(max(time.Duration(f.way[Down].gap.Load())-steadyEvery, 0))
		}
	}
}

// cpu is the time that the processes of each node have taken so far.
func (r *migrateRun) cpu() map[string]time.Duration {
	out := map[string]time.Duration{}
	for name, n := range r.b.nodes {
		for _, pid := range n.pids() {
			out[name] += processCPU(pid)
		}
	}
	return out
}

// processCPU is the time that a process's threads have run, to the nanosecond; those
// that have ended are not in it. A softirq that runs in a thread is.
func processCPU(pid int) (sum time.Duration) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		if ran, _, ok := strings.Cut(string(b), " "); ok {
			n, _ := strconv.ParseInt(ran, 10, 64)
			sum += time.Duration(n)
		}
	}
	return sum
}

// machineCPU is the time that all processors of the machine were not idle.
func machineCPU() time.Duration {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(b), "\n")
	ticks := int64(0)
	for i, f := range strings.Fields(line)[1:] {
		if i == 3 || i == 4 || i > 6 { // idle, iowait; steal and guests
			continue
		}
		n, _ := strconv.ParseInt(f, 10, 64)
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100) // USER_HZ
}

// travel moves the VIPs there and back.
func (r *migrateRun) travel() error {
	if r.loss {
		if err := r.lose(); err != nil {
			return err
		}
	}
	defer r.countMoves()()
	r.phase("moves: all VIPs from n1 to n3 and back, %d times", r.trips)
	for i := range 2 * r.trips {
		if i == r.trips {
			r.struck = r.Sabotage != ""
			r.strike()
			r.strikeWire()
		}
		to := r.b.other()
		for _, v := range r.vips {
			if err := r.move(v, r.b.active, to); err != nil {
				return err
			}
		}
		r.b.active = to
		r.look(to)
	}
	return nil
}

// move moves one VIP and measures around it.
func (r *migrateRun) move(v clusterVIP, from, to string) error {
	m := &hostMove{vip: v, from: from, to: to}
	r.traffic.During(HostMove)
	r.startGaps(&v)
	cpu, machine, talk := r.cpu(), machineCPU(), r.talked()
	m.began = time.Now()
	report, err := r.b.migrate(r.ctx, v, from, to)
	m.ended = time.Now()
	if err != nil {
		return fmt.Errorf("move %d, of %s from %s to %s: %w", len(r.moves)+1, v.name, from, to, err)
	}
	m.report, m.machine, m.talk = report, machineCPU()-machine, r.talked()-talk
	m.cpu = r.cpu()
	for name := range m.cpu {
		m.cpu[name] -= cpu[name]
	}
	r.takeGaps(&v, &r.gaps[1])
	time.Sleep(settleTime)
	r.traffic.During(Opening)
	r.moves = append(r.moves, m)
	if n := len(r.moves); n <= 8 || n%10 == 0 || report.Refused > 0 || report.Lost > 0 {
		r.phase("   %-5s %s to %s: %5d flows (%d with octets, %d octets) in %.1f ms, %.1f in all, pause p50/p99/max %.1f/%.1f/%.1f ms, refused %d%s, handshakes %d, nobody's for %.2f ms, phases %v",
			v.name, from, to, report.Flows, report.WithOctets, report.Octets, m.flowMillis(), millis(m.took()), report.Pause.P50/1000, report.Pause.P99/1000, report.Pause.Max/1000,
			report.Refused, reasonText(report.Reasons), report.Handshakes, report.AddressMillis, report.Phases)
	}
	return nil
}

// flowMillis is how long the flows themselves took.
func (m *hostMove) flowMillis() float64 {
	if x, ok := m.report.Phases["flows"]; ok {
		return x
	}
	return m.report.Millis
}

// look compares what all VIPs' move should have done with what the kernels say.
func (r *migrateRun) look(to string) {
	from := r.b.other()
	if !eventually(leavePatience, func() bool { return len(r.leftOn(from)) == 0 }) {
		left := r.leftOn(from)
		r.doubtf("%s still has %d sockets of addresses that have moved, such as %v", from, len(left), left[:min(len(left), 4)])
	}
	if have, want := r.socketsOf(to), r.standing(); have < want {
		r.doubtf("%s has %d sockets for %d flows", to, have, want)
	}
	was := [2]int64{r.b.doors["new"][from].Accepted.Load(), r.b.doors["new"][to].Accepted.Load()}
	if r.rate == 0 {
		return
	}
	time.Sleep(200 * time.Millisecond)
	if n := r.b.doors["new"][to].Accepted.Load() - was[1]; n == 0 {
		r.doubtf("no new connection in 200 ms reached the server beside %s, which has the VIPs", to)
	}
	if n := r.b.doors["new"][from].Accepted.Load() - was[0]; n != 0 {
		r.doubtf("%d new connections reached the server on %s, which has no VIP", n, from)
	}
}

func (r *migrateRun) doubtf(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	r.doubts = append(r.doubts, s)
	r.phase("   DOUBT: %s", s)
}

// standing is how many flows are open all the time.
func (r *migrateRun) standing() int {
	n := len(r.flows) + len(r.http)
	if r.saboteur != nil {
		n--
	}
	return n
}

// socketsOf counts the connected client legs of VIPs on a node, in whatever state.
func (r *migrateRun) socketsOf(node string) int {
	all, err := r.world.Host(node).TCPSockets()
	if err != nil {
		return -1
	}
	client := r.world.Host("client")
	n := 0
	for _, x := range all {
		if x.State == tcpListen || !r.isVIP(x.Local.Addr()) ||
			x.Remote.Addr() != client.V4 && x.Remote.Addr() != client.V6 {
			continue
		}
		// Of new connections some are on their way to their end at any time.
		if x.Local.Port() != newPort {
			n++
		}
	}
	return n
}

// leftOn are the sockets of VIPs on a node, client's and server's legs, in whatever state
// but those that wait for late segments.
func (r *migrateRun) leftOn(node string) (left []TCPSocket) {
	all, err := r.world.Host(node).TCPSockets()
	if err != nil {
		r.doubtf("sockets of %s: %v", node, err)
	}
	for _, x := range all {
		if x.State != tcpListen && r.isVIP(x.Local.Addr()) {
			left = append(left, x)
		}
	}
	return left
}

func (r *migrateRun) isVIP(a netip.Addr) bool {
	return slices.ContainsFunc(r.vips, func(v clusterVIP) bool { return v.addr == a })
}

// newPort is the port of the VIPs for new connections.
const newPort = 448

// tenure is the time for which one hardware address answered for an address.
type tenure struct {
	mac      [6]byte
	from, to time.Time
	claims   int
}

// tenures joins claims that follow each other. A host that answers between two
// answers of another one makes three of one.
func tenures(claims []Claim) (all []tenure) {
	for _, c := range claims {
		if n := len(all); n > 0 && all[n-1].mac == c.MAC {
			all[n-1].to = c.At
			all[n-1].claims++
			continue
		}
		all = append(all, tenure{mac: c.MAC, from: c.At, to: c.At, claims: 1})
	}
	return all
}

// judgeTenures says what is wrong with the claims of an address, if it moved in these
// windows, to these hardware addresses, the first one being that of its first owner.
func judgeTenures(claims []Claim, macs [][6]byte, windows [][2]time.Time) (wrong []string, silences []time.Duration) {
	all := tenures(claims)
	for i, t := range all {
		switch {
		case i >= len(macs):
			wrong = append(wrong, fmt.Sprintf("%x answers from %s on, when nothing moves any more", t.mac, t.from.Format("15:04:05.000000")))
			continue
		case t.mac != macs[i]:
			wrong = append(wrong, fmt.Sprintf("%x answers at %s, %d times, where %x should", t.mac, t.from.Format("15:04:05.000000"), t.claims, macs[i]))
			return wrong, silences // all that follows is out of step
		}
		if i == 0 {
			continue
		}
		silences = append(silences, t.from.Sub(all[i-1].to))
		if w := windows[i-1]; t.from.Before(w[0]) || t.from.After(w[1]) {
			wrong = append(wrong, fmt.Sprintf("%x answers from %s on, outside of the move that lasted from %s to %s", t.mac,
				t.from.Format("15:04:05.000000"), w[0].Format("15:04:05.000000"), w[1].Format("15:04:05.000000")))
		}
	}
	if len(all) < len(macs) {
		wrong = append(wrong, fmt.Sprintf("%d hosts in turn answered, want %d", len(all), len(macs)))
	}
	return wrong, silences
}

// judgeClaims judges who answered for the VIPs.
func (r *migrateRun) judgeClaims() (wrong []string) {
	for _, v := range r.vips {
		macs := [][6]byte{[6]byte(r.b.hostOf(v.home).MAC)}
		var windows [][2]time.Time
		for _, m := range r.moves {
			if m.vip == v {
				macs = append(macs, [6]byte(r.b.hostOf(m.to).MAC))
				windows = append(windows, [2]time.Time{m.began, m.ended})
			}
		}
		claims := r.wire.Claims(v.addr)
		if r.rolling {
			macs, windows = r.rollingTenures(v)
		}
		w, silences := judgeTenures(claims, macs, windows)
		r.silences = append(r.silences, silences...)
		for _, x := range w {
			wrong = append(wrong, v.name+": "+x)
		}
		r.asked += int64(len(claims))
	}
	slices.Sort(r.silences)
	return wrong
}
