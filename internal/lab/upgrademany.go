package lab

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Where the echo flows of the scenes on loopback are.
const (
	manyEchoPort   = 6001
	manyEchoServer = "127.0.0.2:7010"
)

// withEcho adds a service without HTTP for the echo flows to what a syntax
// writes.
func (y *syntax) withEcho() *syntax {
	inner, at := y.whole, loopbackPort(manyEchoPort)
	y.whole = func(f *serviceFleet, listeners, backends []string) string {
		text := inner(f, listeners, backends)
		switch {
		case strings.HasPrefix(text, "node:"):
			text = strings.Replace(text, "\nlisteners:\n", fmt.Sprintf("\nlisteners:\n  echo: { vip: \"%s\", backend: echo, idleTimeout: 1h }\n", at), 1)
			return strings.Replace(text, "\nbackends:\n", fmt.Sprintf("\nbackends:\n  echo: { endpoints: [ { name: one, address: \"%s\" } ] }\n", manyEchoServer), 1)
		case strings.HasPrefix(text, "global"):
			return text + fmt.Sprintf("listen echo\n  bind %s\n  mode tcp\n  server one %s\n", at, manyEchoServer)
		}
		return strings.Replace(text, "\nstream {\n", fmt.Sprintf("\nstream {\n  server { listen %s; proxy_pass %s; }\n", at, manyEchoServer), 1)
	}
	return y
}

// manyServices are enough that flows are under many objects.
const manyServices = 50

// manyGenerations are those in which flows are opened; as many follow, so that
// what most flows name is gone.
const manyGenerations = 20

// manyRun is a balancer on loopback with as many flows as there shall be.
type manyRun struct {
	*reloadLab
	f      *serviceFleet
	y      *syntax
	d      *driver
	side   reloadSide
	echo   *echoPair
	opened int
}

// stand makes what the second scene and the peers have in common. The flows are
// opened over many generations if the balancer goes over to each at once.
func (u *upgradeLab) stand(r *reloadLab, name string, side reloadSide, y *syntax, apply bool) (*manyRun, error) {
	m := &manyRun{reloadLab: r, f: newServiceFleet(manyServices), y: y.withEcho(), side: side}
	server, err := u.echoServer(r.here, netip.MustParseAddrPort(manyEchoServer))
	if err != nil {
		return m, err
	}
	m.echo = &echoPair{server: server}
	if !apply {
		m.f.next(1) // it begins with what the flows are opened under
	}
	if m.d, err = r.begin(name, side, m.f, m.y); err != nil {
		return m, err
	}
	if m.echo, err = u.echoClient(r.here, name, server, netip.MustParseAddrPort(loopbackPort(manyEchoPort))); err != nil {
		return m, err
	}
	want := u.many - 3*r.probes
	for g := 1; g <= manyGenerations; g++ {
		if apply {
			m.f.next(g)
			if _, err := side.apply(u.ctx, m.y.file(m.f)); err != nil {
				return m, err
			}
		}
		at := 1
		if apply {
			at = g
		}
		plan := m.f.heldPlan(at, want*g/manyGenerations-want*(g-1)/manyGenerations)
		for k := range plan {
			plan[k].Period = r.period
		}
		opened := 0
		if err := m.d.Call("Driver.Open", plan, &opened); err != nil {
			return m, err
		}
		m.opened += opened
	}
	for g := manyGenerations + 1; apply && g <= 2*manyGenerations; g++ {
		m.f.next(g)
		if _, err := side.apply(u.ctx, m.y.file(m.f)); err != nil {
			return m, err
		}
	}
	if m.opened < want {
		return m, fmt.Errorf("lab: %s: %d of %d flows could be opened: %s", name, m.opened, want, r.faults(m.d))
	}
	return m, nil
}

func (m *manyRun) end() {
	if m.echo != nil {
		if m.echo.Client != nil {
			m.echo.end()
		} else {
			m.echo.server.Kill()
		}
	}
	if m.d != nil {
		m.d.end()
	}
	m.side.stop()
}

// newMany is the traffic of the second scene and of the peers.
func (u *upgradeLab) newMany(here *Host) *reloadLab {
	return &reloadLab{Options: u.Options, ctx: u.ctx, out: u.out, v: u.v, here: here, services: manyServices,
		load: ReloadLoad{PerSec: 50, Kept: 10, Idle: 30}, probes: 10, period: 4 * time.Second}
}

// manyApart is from one upgrade to the next: the hand-over itself is a fraction
// of that.
const manyApart = 1500 * time.Millisecond

// keepers is how many clients keep a connection for one route, and ask again and
// again.
const keepers = 8

// crowded has many flows, and some upgrades.
func (u *upgradeLab) crowded() error {
	w, here, err := newLoopback(u.dir)
	if err != nil {
		return err
	}
	defer w.Close()
	u.phase("%d flows, opened under %d generations", u.many, manyGenerations)
	r := u.newMany(here)
	side := &tracedHoldfast{*u.newMany(here).holdfast("many")}
	m, err := u.stand(r, "many", side, holdfastSyntax(), true)
	defer m.end()
	if err != nil {
		return err
	}
	// Who keeps a connection and asks again and again: his leg to the server is
	// idle in between, and should be there after an upgrade.
	q := ReloadLoad{ApartIn: 5 * time.Millisecond}
	for range keepers {
		q.Apart = append(q.Apart, fmt.Sprintf("%d/a/x", apartPort))
	}
	if err := m.d.Call("Driver.Load", q, new(bool)); err != nil {
		return err
	}
	time.Sleep(time.Second)
	x := &upgradeScene{name: "many", flows: m.opened + 3*r.probes}
	u.scenes = append(u.scenes, x)
	if err := m.d.Call("Driver.Phase", phaseQuiet, new(ReloadPhase)); err != nil {
		return err
	}
	u.phase("%v without upgrades", u.manyControl)
	var before, after ReloadReport
	if err := m.d.Call("Driver.Look", true, &before); err != nil {
		return err
	}
	began, spent := time.Now(), cpuOf(side.node.pid)
	if x.quiet, x.words[0], err = m.echo.windows(u.ctx, u.manyControl, manyApart); err != nil {
		return err
	}
	x.serving = float64(cpuOf(side.node.pid)-spent) / float64(time.Since(began))
	if err := m.d.Call("Driver.Look", true, &after); err != nil {
		return err
	}
	x.dialsQuiet = after.Servers["apart"].Spoken - before.Servers["apart"].Spoken
	if err := m.d.Call("Driver.Phase", phaseApplies, new(ReloadPhase)); err != nil {
		return err
	}
	for i := range u.manyUpgrades {
		if err := u.crowdedOnce(m, side.node, x); err != nil {
			return fmt.Errorf("lab: upgrade %d: %w", i+1, err)
		}
	}
	if u.both, err = u.weighed(side.node); err != nil {
		return err
	}
	u.v.Say("while both processes are there, with %d flows: %.1f MB at most, shared pages counted twice", x.flows, megabytes(u.both.rss))
	u.v.Must(u.both.processes == 2, "processes during an upgrade, at most", fmt.Sprint(u.both.processes), "2")
	a, err := appetiteOf(side.node.pid)
	if err != nil {
		return err
	}
	u.alone = a.rssBytes
	u.v.Say("process %d with %d flows after %d upgrades: %v", side.node.pid, x.flows, u.manyUpgrades, a)
	side.node.judgePromises(u.ctx, u.v)
	var rep ReloadReport
	if err := m.d.Call("Driver.Finish", true, &rep); err != nil {
		return err
	}
	for k := range delayKinds {
		x.extra = append(x.extra, rep.Delays[phaseQuiet][k], rep.Delays[phaseApplies][k])
	}
	x.closed = rep.Counts.IdleClosed + rep.Counts.KeptClosed + rep.Counts.KeptTold
	x.failed = rep.Counts.NewLost + rep.Counts.AskedLost + rep.Counts.IdleLost
	c := readCollections(side.node.process.Log)
	u.v.Say("collector with %d flows: %d runs, everything stood %s, beside the loops %s", x.flows, c.stops.N, quantiles(&c.stops), quantiles(&c.marks))
	r.judgeClients(fmt.Sprintf("%d flows", x.flows), &rep)
	for i, f := range rep.Faults {
		if i < 10 {
			u.v.Say("  %s", f)
		}
	}
	x.judge(u.v)
	if u.v.Wrong() {
		u.v.Say("-- log of the balancer\n%s", side.node.process.Tail(40))
	}
	return nil
}

// crowdedOnce makes one upgrade, and looks what clients and servers noticed.
func (u *upgradeLab) crowdedOnce(m *manyRun, n *shopNode, x *upgradeScene) error {
	var before, after ReloadReport
	if err := m.d.Call("Driver.Look", true, &before); err != nil {
		return err
	}
	if _, err := m.echo.look(); err != nil {
		return err
	}
	began, was := time.Now(), n.pid
	spent := watchCPU(was)
	rep, err := n.upgrade(u.ctx)
	if err != nil {
		return err
	}
	taker := cpuOf(n.pid)
	answered := time.Now()
	if !eventually(leavePatience, func() bool { return !Alive(was) && len(n.oldProcesses()) == 0 }) {
		return fmt.Errorf("lab: old processes: %v", n.oldProcesses())
	}
	x.leave.Add(time.Since(answered))
	giver := spent()
	x.cpu[0], x.cpu[1] = append(x.cpu[0], giver), append(x.cpu[1], taker)
	time.Sleep(time.Until(began.Add(manyApart)))
	e, err := m.echo.look()
	if err != nil {
		return err
	}
	if len(e.Faults) > 0 {
		return fmt.Errorf("lab: %s", strings.Join(e.Faults, "; "))
	}
	if err := m.d.Call("Driver.Look", true, &after); err != nil {
		return err
	}
	st, err := n.status(u.ctx)
	if err != nil {
		return err
	}
	if x.n == 0 || st.OnOld < x.onOld {
		x.onOld = st.OnOld
	}
	x.note(rep)
	x.seen = append(x.seen, e.Worst...)
	x.words[1] = worse(x.words[1], e.Delay)
	x.dials = append(x.dials, after.Servers["apart"].Spoken-before.Servers["apart"].Spoken)
	u.phase("   %3d: %5d flows (%d with octets) in %.0f ms, pause p50/p99/max %.0f/%.0f/%.0f us, refused %d, lost %d, phases %v; CPU %v and %v; echo %v; %d dials", x.n, rep.Flows, rep.WithOctets, rep.Millis,
		rep.Pause.P50, rep.Pause.P99, rep.Pause.Max, rep.Refused, rep.Lost, rep.Phases, giver, taker, e.Worst, x.dials[len(x.dials)-1])
	return nil
}

// clockTick is the unit of /proc/PID/stat (proc(5), USER_HZ).
const clockTick = 10 * time.Millisecond

// cpuOf is the time that processors have spent on a process.
func cpuOf(pid int) time.Duration {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * clockTick
}

// watchCPU looks at a process until it has ended; what it gives tells what
// processors have spent on it meanwhile, to about a tick.
func watchCPU(pid int) (spent func() time.Duration) {
	first := cpuOf(pid)
	last, done := first, make(chan struct{})
	go func() { // ends with the process
		defer close(done)
		for Alive(pid) {
			last = max(last, cpuOf(pid))
			time.Sleep(clockTick / 2)
		}
	}()
	return func() time.Duration { <-done; return last - first }
}

// weighEvery is how often the processes are weighed in one upgrade, which is not
// measured otherwise.
const weighEvery = 10 * time.Millisecond

// weighed makes one more upgrade and gives the most that both processes had.
func (u *upgradeLab) weighed(n *shopNode) (most weight, err error) {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			pids := slices.DeleteFunc(running(n.binary), isVerb)
			most.processes, most.rss = max(most.processes, len(pids)), max(most.rss, resident(pids))
			select {
			case <-stop:
				return
			case <-time.After(weighEvery):
			}
		}
	}()
	was := n.pid
	_, err = n.upgrade(u.ctx)
	eventually(leavePatience, func() bool { return !Alive(was) })
	close(stop)
	<-done
	return most, err
}

// tracedHoldfast is the product with the collector's trace.
type tracedHoldfast struct{ reloadHoldfast }

func (b *tracedHoldfast) start(ctx context.Context, text string) (err error) {
	b.silent = map[string]uint64{}
	b.node, err = startTraced(ctx, b.binary, b.at, b.name, text)
	return err
}

// limitOf is how many descriptors a process of ours may have.
func limitOf() uint64 {
	var lim unix.Rlimit
	_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) // cannot fail for oneself
	return lim.Max
}
