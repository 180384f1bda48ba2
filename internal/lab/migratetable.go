package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// migrateFigures are what a scene measured.
type migrateFigures struct {
	flows, moved, moves int
	refused             int
	gapControl, gapMove *Histogram
	perSecond           float64 // pairs moved a second, while flows moved
	cpu                 float64 // us a pair: the processes of both hosts, what serving takes taken off
	machine             float64 // us a pair: the same of all that runs on the machine
	state               float64 // octets of state a pair, as the product counts
	talk                float64 // octets of frames between the hosts a pair, queues included
	pauses              pauses
	took, address       Histogram
	handshakes          int
}

func (r *migrateRun) measured() *migrateFigures {
	x := &migrateFigures{flows: r.standing(), moves: len(r.moves), gapControl: &r.gaps[0], gapMove: &r.gaps[1]}
	var flowing, cpu, machine time.Duration
	var state, talk float64
	for _, m := range r.moves {
		x.moved += m.report.Flows
		x.refused += m.report.Refused
		x.handshakes += m.report.Handshakes
		flowing += time.Duration(m.flowMillis() * float64(time.Millisecond))
		for name, t := range m.cpu {
			cpu += t - time.Duration(r.serving[name]*float64(m.took()))
		}
		machine += m.machine - time.Duration(r.machine*float64(m.took()))
		state += float64(m.report.StateBytes)
		talk += float64(m.talk) - r.talk*m.took().Seconds()
		x.pauses.add(m.report.Flows, m.report.Pause)
		x.took.Add(m.took())
		x.address.Add(time.Duration(m.report.AddressMillis * float64(time.Millisecond)))
	}
	if n := float64(x.moved); n > 0 {
		x.perSecond = n / flowing.Seconds()
		x.cpu, x.machine = float64(cpu.Microseconds())/n, float64(machine.Microseconds())/n
		x.state, x.talk = state/n, talk/n
	}
	return x
}

// added is how much longer a quantile of the gaps was with moves than without.
func (x *migrateFigures) added(q float64) time.Duration {
	return max(x.gapMove.Quantile(q)-x.gapControl.Quantile(q), 0)
}

// Goals of speed, with nothing lost on the way.
const (
	gapP99Goal    = 10 * time.Millisecond
	gapMaxGoal    = 25 * time.Millisecond
	perSecondGoal = 5000
	cpuGoal       = 60 // us a pair
	stateGoal     = 256
)

func (r *migrateRun) judgeSpeed() {
	x, v := r.measured(), r.v
	p := x.pauses.pooled()
	v.Say("moved %d flows in %d moves; %.0f a second; pause p50/p99/max %.2f/%.2f/%.2f ms", x.moved, x.moves, x.perSecond, p.P50/1000, p.P99/1000, p.Max/1000)
	v.Say("gaps beyond the interval of %v: without moves p50/p99/max %s of %d, with moves %s of %d", steadyEvery, triple(x.gapControl), x.gapControl.N, triple(x.gapMove), x.gapMove.N)
	v.Say("CPU a pair: %.1f us in the processes of both hosts, %.1f us on the whole machine; serving alone takes %.2f of a processor, everything here %.2f",
		x.cpu, x.machine, sum(r.serving), r.machine)
	v.Say("state a pair: %.0f octets; frames between the hosts %.0f octets a pair, queues included", x.state, x.talk)
	v.Figure(r.migrateScene.name, map[string]any{
		"flows": x.flows, "moves": x.moves, "moved": x.moved, "refused": x.refused, "pairs_per_second": x.perSecond, "cpu_us": x.cpu, "machine_us": x.machine,
		"state_octets": x.state, "talk_octets": x.talk, "pause_us": p, "retransmits": r.retrans, "local_share": r.local,
		"gap_ms": map[string]float64{"p50": millis(x.gapMove.Quantile(0.5)), "p99": millis(x.gapMove.Quantile(0.99)), "max": millis(x.gapMove.Max),
			"control_p50": millis(x.gapControl.Quantile(0.5)), "control_p99": millis(x.gapControl.Quantile(0.99)), "control_max": millis(x.gapControl.Max)},
	})
	for _, busy := range r.busy {
		v.Must(busy >= 0.95, r.what("processors of the machine at work without moves"), fmt.Sprintf("%.0f %%", 100*busy), "at least 95 %")
	}
	if r.loss || r.saturated || r.rolling {
		return
	}
	if !r.idle {
		v.Goal(x.added(0.99) <= gapP99Goal, r.what("added client gap p99"), ms(x.added(0.99)), "at most "+ms(gapP99Goal))
		added := max(x.gapMove.Max-x.gapControl.Max, 0)
		v.Goal(added <= gapMaxGoal, r.what("longest added client gap"), ms(added), "at most "+ms(gapMaxGoal))
	}
	v.Goal(x.perSecond >= perSecondGoal, r.what("pairs a second"), fmt.Sprintf("%.0f", x.perSecond), fmt.Sprintf("at least %d", perSecondGoal))
	if r.idle {
		v.Goal(x.cpu <= cpuGoal, r.what("CPU a pair"), fmt.Sprintf("%.1f us", x.cpu), fmt.Sprintf("at most %d us", cpuGoal))
		v.Goal(x.state <= stateGoal, r.what("state a pair"), fmt.Sprintf("%.0f octets", x.state), fmt.Sprintf("at most %d", stateGoal))
	}
}

func sum(m map[string]float64) (s float64) {
	for _, x := range m {
		s += x
	}
	return s
}

// write puts what was measured into a table.
func (l *migrateLab) write() error {
	if l.Out == "" {
		return nil
	}
	var s strings.Builder
	fmt.Fprintf(&s, `# Moves to another host

Written by `+"`make lab LAB=migrate LABFLAGS=\"-out docs/benchmarks\"`"+`.

Two nodes on one bridge, n1 and n3, run from one file; each has servers beside its balancer. Two VIPs, IPv4 and IPv6, go from n1 to n3 and back by
`+"`holdfast migrate --vip V --to n3`"+` under flows of every kind: small requests, downloads and uploads of megabytes, slow ones, pipelined ones, WebSockets and
other tunnels, half-closed and backpressured ones, dials without an answer, queues at limited endpoints; a fifth and more of them on objects that the
configuration in force no longer has. New connections come all the time. Every octet is checked at both ends. The kernels of the nodes may queue
%d KiB a socket.

The *gap* is what clients see: on flows on which the server says something each %v, the longest time between two arrivals during a move, the
interval taken off, beside the same without moves (windows of %v), on the same machine. Its two processors are shared by clients, servers, both balancers and the
judge. The *pause* is how long nobody served a flow, as the product reports it. Pairs a second are counted while flows move.

`, bufferMost>>10, steadyEvery, controlWindow)
	row := func(cells ...string) { fmt.Fprintf(&s, "| %s |\n", strings.Join(cells, " | ")) }
	row("scene", "new connections a second", "moves of a VIP", "flows moved", "refused", "lost or wrong", "new connections failed", "RSTs", "gap with moves p50 / p99 / max ms", "without", "pause p50 / p99 / max ms", "pairs a second", "sent again by client, n1, n3")
	s.WriteString(strings.Repeat("|---", 13) + "|\n")
	for _, r := range l.runs {
		x := r.measured()
		_, webLost, _ := r.web.Lost()
		shorts, rsts := r.traffic.Shorts(), 0
		rsts, _ = r.wire.Resets()
		gap, control := triple(x.gapMove), triple(x.gapControl)
		if r.idle {
			gap, control = "-", "-"
		}
		row(r.migrateScene.name, fmt.Sprint(r.rate), fmt.Sprint(x.moves), fmt.Sprint(x.moved), fmt.Sprint(x.refused), fmt.Sprint(r.traffic.LostTotal()+webLost),
			fmt.Sprintf("%d of %d", shorts.Opened-shorts.Done, shorts.Opened), fmt.Sprint(rsts), gap, control,
			threefoldMicros(x.pauses.pooled()).String(), fmt.Sprintf("%.0f", x.perSecond), fmt.Sprintf("%d, %d, %d", r.retrans["client"], r.retrans["n1"], r.retrans["n3"]))
	}
	s.WriteString("\n## What a pair costs\n\nA pair is a client's connection and its connection to a server: two sockets of each host.\n\n")
	row("scene", "CPU us a pair", "the whole machine, us a pair", "octets of state a pair", "octets of frames between the hosts a pair", "server on the host that is left")
	s.WriteString(strings.Repeat("|---", 6) + "|\n")
	for _, r := range l.runs {
		x := r.measured()
		row(r.migrateScene.name, fmt.Sprintf("%.1f", x.cpu), fmt.Sprintf("%.1f", x.machine), fmt.Sprintf("%.0f", x.state), fmt.Sprintf("%.0f", x.talk), fmt.Sprintf("%.0f %%", 100*r.local))
	}
	row("HA/TCP (NSDI 2025)", "38 a connection", "", "", "", "")
	s.WriteString(`
*CPU* is the time that the threads of the serving and of the privileged process of both hosts ran, to the nanosecond (/proc/PID/task/*/schedstat), what serving took before the
moves taken off: freezing, nft, TAP, codec, TLS, restoring, and the softirqs that ran in these threads, which is where a veth delivers. It ends when the
command returns. *The whole machine* adds the kernel's own threads, the command and what clients and servers had to do with it; it is counted in ticks of 10 ms.
The row of silent flows is the one to look at: under load the noise of serving is larger than the move. HA/TCP's published figure is not the same thing: it is
the time until one connection (one socket, not a pair) has moved, the network's latency included, with a TCP of its own in the kernel; ours is the processors' time
of both sides on a kernel as it comes. *State* is what the product counts of the frozen forms without the octets in queues.
`)
	if n := len(l.runs); n > 0 {
		x := l.runs[0].measured()
		fmt.Fprintf(&s, "\nA move of a VIP of the scene %q took %s ms (p50 / p99 / max), the time in which caches settle included; no host answered for its address for %s ms, by the product's own account.\n",
			l.runs[0].migrateScene.name, triple(&x.took), triple(&x.address))
	}
	r := &reloadLab{}
	fmt.Fprintf(&s, "\n%s.\n", r.machine())
	return os.WriteFile(filepath.Join(l.Out, "migrate.md"), []byte(s.String()), 0o644)
}

// figures sums up.
func (l *migrateLab) figures(v *Verdict) {
	moved := 0
	for _, r := range l.runs {
		moved += r.measured().moved
	}
	v.Figure("moved", moved)
}
