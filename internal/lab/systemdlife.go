package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// visitEvery is the time between two new connections while the process is killed.
const visitEvery = 4 * time.Millisecond

// visitPatience is how long one may take: it may have to wait for a restart.
const visitPatience = 15 * time.Second

// visits are connections that come one after another, each with one request.
type visits struct {
	from *Host
	to   netip.AddrPort
	stop chan struct{}
	done sync.WaitGroup

	mu     sync.Mutex // guards what follows
	all    int
	broken []error
	worst  time.Duration
}

// visiting begins them.
func visiting(from *Host, to netip.AddrPort) *visits {
	a := &visits{from: from, to: to, stop: make(chan struct{})}
	a.done.Add(1)
	go func() { // ended by end
		defer a.done.Done()
		t := time.NewTicker(visitEvery)
		defer t.Stop()
		for i := 0; ; i++ {
			select {
			case <-a.stop:
				return
			case <-t.C:
				a.done.Add(1)
				go a.one(i) // ends within visitPatience
			}
		}
	}()
	return a
}

func (a *visits) one(i int) {
	defer a.done.Done()
	began := time.Now()
	err := visitOnce(a.from, a.to, fmt.Sprint("/", i))
	took := time.Since(began)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all++
	if err != nil {
		a.broken = append(a.broken, err)
	} else {
		a.worst = max(a.worst, took)
	}
}

// end waits for those that are under way.
func (a *visits) end() {
	close(a.stop)
	a.done.Wait()
}

// failed counts those that ended with the process that had accepted them, which it
// cannot help when it is killed, and all others that were not answered; of these it
// gives a few.
func (a *visits) failed() (lost, others int, how string) {
	for _, err := range a.broken {
		if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, errNoAnswer) {
			lost++
		} else if others++; others <= 3 {
			how += "; " + errorText(err)
		}
	}
	return lost, others, how
}

// errNoAnswer: the connection ended before an octet of the answer came.
var errNoAnswer = errors.New("lab: no answer")

// visitOnce opens a connection, and wants its path back.
func visitOnce(from *Host, to netip.AddrPort, path string) error {
	var c net.Conn
	if err := from.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", to.String(), visitPatience)
		return err
	}); err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(visitPatience)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n", path); err != nil {
		return err
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if len(answer) == 0 {
		return errNoAnswer
	}
	if text := string(answer); !strings.HasPrefix(text, "HTTP/1.1 200 ") || !strings.HasSuffix(text, "\r\n\r\n"+path) {
		return fmt.Errorf("lab: answer %q to %s", text[:min(len(text), 80)], path)
	}
	return nil
}

// lifeOfUnit is what becomes of the unit beside upgrades. Each part leaves it serving.
func (u *unitLab) lifeOfUnit() error {
	for _, part := range []struct {
		what string
		do   func() error
	}{
		{"a reload to a file that does not run", u.brokenFile},
		{"SIGUSR2 by systemctl kill", u.signalled},
		{"the new process dies while its first flows are watched", func() error { return u.diesInUpgrade(false) }},
		{"the main process dies then", func() error { return u.diesInUpgrade(true) }},
		{"kill -9 while connections come", u.killed},
		{"a listener is removed", u.removed},
		{"stop, with a request under way", u.stopped},
		{"started by who comes: the socket unit", u.activated},
		{"a cluster, by the drop-in for it", u.clustered},
	} {
		u.phase("%s", part.what)
		if err := part.do(); err != nil {
			return fmt.Errorf("lab: %s: %w", part.what, err)
		}
	}
	for _, w := range u.side.wrong {
		u.v.Say("unit: %s", w)
	}
	u.v.Zero("properties of the unit that are not as they should be", len(u.side.wrong))
	return nil
}

// verb runs one of the product's verbs in the unit's world.
func (u *unitLab) verb(args ...string) error {
	_, err := u.side.systemd.inside(u.ctx, append([]string{"/usr/local/bin/holdfast"}, args...)...)
	return err
}

// killed ends the main process by SIGKILL under connections that come: those that
// come afterwards wait in the queues that systemd keeps, and none of them is refused
// or reset. What was changed at run time is in force again.
func (u *unitLab) killed() error {
	b := u.side
	if err := u.verb("config", "set", "backend/plain.connectTimeout", "7s"); err != nil {
		return err
	}
	before, err := b.node.status(u.ctx)
	if err != nil {
		return err
	}
	restarts := 3
	if u.Short {
		restarts = 2
	}
	made, err := strconv.Atoi(b.systemd.shows(u.ctx, unitName, "NRestarts"))
	if err != nil {
		return err
	}
	a := visiting(u.world.Host("client"), plainVIP)
	var gaps Histogram
	for i := range restarts {
		time.Sleep(300 * time.Millisecond)
		was, at := b.main, time.Now()
		if err := unix.Kill(was, unix.SIGKILL); err != nil {
			return err
		}
		if !eventually(bootPatience, func() bool {
			return b.systemd.shows(u.ctx, unitName, "NRestarts") == strconv.Itoa(made+i+1) && b.systemd.shows(u.ctx, unitName, "ActiveState") == "active"
		}) {
			return fmt.Errorf("no restart: %s\n%s", b.unitStatus(u.ctx), b.Logs())
		}
		gaps.Add(time.Since(at))
		if err := b.look(u.ctx); err != nil {
			return err
		}
	}
	time.Sleep(300 * time.Millisecond)
	a.end()
	lost, late, how := a.failed()
	after, err := b.node.status(u.ctx)
	if err != nil {
		return err
	}
	u.v.Say("kill -9, %d times: active again after at most %s; %d connections came, the longest took %s, %d had been accepted by a process that was killed",
		restarts, ms(gaps.Max), a.all, ms(a.worst), lost)
	u.v.Must(late == 0, "connections that came around kill -9 and were refused, or not answered", fmt.Sprint(late)+how, "0")
	most := 8 * restarts
	u.v.Must(lost <= most, "requests that went with the killed processes", fmt.Sprint(lost), fmt.Sprintf("at most %d: what was being served", most))
	u.v.Must(a.all > 100*restarts, "connections that came around kill -9", fmt.Sprint(a.all), "more than a hundred for each")
	u.v.Must(after.Generation == before.Generation, "generation after kill -9", fmt.Sprint(after.Generation), fmt.Sprint(before.Generation))
	u.v.Figure("kill", map[string]any{"times": restarts, "active_ms": millis(gaps.Max), "connections": a.all, "lost": lost, "refused": late, "worst_ms": millis(a.worst)})
	return nil
}

// brokenFile replaces the binary by one that does not run: the reload fails, and the
// unit serves on with the process that it has.
func (u *unitLab) brokenFile() error {
	b := u.side
	if err := b.put("/usr/local/bin/holdfast", []byte("#!/bin/sh\nexit 7\n"), 0o755); err != nil {
		return err
	}
	was := b.main
	_, err := b.systemd.control(u.ctx, "reload", unitName)
	u.v.Must(err != nil || !b.oldSystemd(), "reload to a file that does not run", fmt.Sprint(err), "an error")
	if err := b.look(u.ctx); err != nil {
		return err
	}
	u.v.Must(b.main == was, "main process after it", strconv.Itoa(b.main), strconv.Itoa(was))
	if err := visitOnce(u.world.Host("client"), plainVIP, "/broken"); err != nil {
		u.v.Must(false, "service after it", err.Error(), "no error")
	}
	product, err := os.ReadFile(b.binary)
	if err != nil {
		return err
	}
	return b.put("/usr/local/bin/holdfast", product, 0o755)
}

// signalled has the main process upgrade itself: it tells systemd of a reload, and the
// successor ends that as the main process.
func (u *unitLab) signalled() error {
	b := u.side
	a, was := visiting(u.world.Host("client"), plainVIP), b.main
	time.Sleep(50 * time.Millisecond)
	if _, err := b.systemd.control(u.ctx, "kill", "--signal=USR2", "--kill-who=main", unitName); err != nil {
		return err
	}
	changed := eventually(signalPatience, func() bool {
		return b.look(u.ctx) == nil && b.main != was && b.systemd.shows(u.ctx, unitName, "SubState") == "running"
	})
	time.Sleep(50 * time.Millisecond)
	a.end()
	u.v.Must(changed && !Alive(was), "a new main process after SIGUSR2, and no old one", fmt.Sprint(changed, !Alive(was)), "true true")
	u.v.Must(len(a.broken) == 0, "connections that came around it", fmt.Sprintf("%d of %d failed: %v", len(a.broken), a.all, a.broken), "none failed")
	return nil
}

// canaryPhase is said by an upgrade while its first flows are watched.
const canaryPhase = "canary"

// diesInUpgrade kills one of the two processes of an upgrade while the first flows are
// with the new one. If that one dies the old one goes on and the unit knows of nothing;
// if the old one dies the new one goes on with what it has, or the unit is started
// again. In both cases nobody who comes is refused.
func (u *unitLab) diesInUpgrade(main bool) error {
	b, client := u.side, u.world.Host("client")
	var held []net.Conn
	for range 12 { // or there is nothing to watch
		c, err := dialFrom(client, plainVIP)
		if err != nil {
			return err
		}
		held = append(held, c)
		if _, err := fmt.Fprint(c, "GET /held HTTP/1.1\r\nHost: lab\r\n\r\n"); err != nil {
			return err
		}
		if _, err := c.Read(make([]byte, 4096)); err != nil {
			return err
		}
	}
	defer func() {
		for _, c := range held {
			_ = c.Close()
		}
	}()
	restarts := b.systemd.shows(u.ctx, unitName, "NRestarts")
	was := b.main
	a := visiting(client, plainVIP)
	asked := make(chan error, 1)
	go func() { asked <- u.verb("upgrade", "--canary", "1s") }() // ends with one of the processes
	var s struct {
		Upgrading struct {
			Phase string `json:"phase"`
			PID   int    `json:"pid"`
		} `json:"upgrading"`
	}
	if !eventually(signalPatience, func() bool {
		err := b.node.call(u.ctx, "Status", struct{}{}, &s)
		return err == nil && s.Upgrading.Phase == canaryPhase
	}) {
		a.end()
		return fmt.Errorf("the upgrade does not come to its canary: %+v", s)
	}
	victim := was
	if !main {
		for _, pid := range b.processes() {
			if pid != was {
				victim = pid
			}
		}
	}
	if victim == was && !main {
		a.end()
		return errors.New("the new process is not in the unit")
	}
	if err := unix.Kill(victim, unix.SIGKILL); err != nil {
		return err
	}
	failure := <-asked
	up := eventually(bootPatience, func() bool {
		return b.systemd.shows(u.ctx, unitName, "ActiveState") == "active" && b.look(u.ctx) == nil && main == (b.main != was) && len(b.processes()) == 1
	})
	time.Sleep(100 * time.Millisecond)
	a.end()
	what := "the new process died in an upgrade"
	if main {
		what = "the main process died in an upgrade"
	}
	lost, late, how := a.failed()
	u.v.Say("%s: %d connections came, the longest took %s, %d went with it; the verb said: %v", what, a.all, ms(a.worst), lost, failure)
	u.v.Must(failure != nil, what+": the verb", fmt.Sprint(failure), "an error")
	u.v.Must(up, what+": one process, which systemd takes for the main one", fmt.Sprint(up), "true")
	u.v.Must(late == 0, what+": connections refused, or not answered", fmt.Sprint(late)+how, "0")
	// Those that had been accepted go with the main process; of the new one only the
	// canary's, of which the held ones are most.
	u.v.Must(lost <= 8, what+": requests that went with it", fmt.Sprint(lost), "at most 8")
	if !main {
		b.want(u.ctx, what, "NRestarts", restarts)
		alive := 0
		for _, c := range held {
			if _, err := fmt.Fprint(c, "GET /held HTTP/1.1\r\nHost: lab\r\n\r\n"); err != nil {
				continue
			}
			_ = c.SetReadDeadline(time.Now().Add(visitPatience))
			if n, err := c.Read(make([]byte, 4096)); err == nil && n > 0 {
				alive++
			}
		}
		u.v.Must(alive >= len(held)-8, what+": held connections that go on", fmt.Sprint(alive), fmt.Sprintf("at least %d: all but the watched ones", len(held)-8))
	}
	return nil
}

// processes are those of the unit, as they are numbered here.
func (b *unitSide) processes() (pids []int) {
	text, _ := os.ReadFile(filepath.Join(b.systemd.path("/sys/fs/cgroup/system.slice"), unitName, "cgroup.procs"))
	for f := range strings.FieldsSeq(string(text)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// oldSystemd tells whether reload is a command, whose exit status it tells.
func (b *unitSide) oldSystemd() bool {
	release, err := strconv.Atoi(b.systemd.release)
	return err != nil || release < 253
}

// removed takes a listener away at run time: systemd must not keep it open.
func (u *unitLab) removed() error {
	b, client := u.side, u.world.Host("client")
	if err := visitOnce(client, leavingVIP, "/there"); err != nil {
		return err
	}
	if err := u.verb("listener", "remove", "leaving"); err != nil {
		return err
	}
	// A handshake that is under way is let in, which the change waits for a moment only.
	var err error
	_ = eventually(leavePatience, func() bool {
		err = visitOnce(client, leavingVIP, "/gone")
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	u.v.Must(errors.Is(err, syscall.ECONNREFUSED), "connection to a listener that was removed", fmt.Sprint(err), "refused")
	b.want(u.ctx, "after a listener was removed", "NFileDescriptorStore", strconv.Itoa(b.listeners()-1))
	return nil
}

// stopped stops the unit while a request is under way: that is answered, who comes is
// refused at once, and nothing is left of the unit.
func (u *unitLab) stopped() error {
	b, client := u.side, u.world.Host("client")
	slow := make(chan error, 1)
	go func() { slow <- visitOnce(client, plainVIP, "/slow") }() // ends with the answer
	select {
	case <-u.plain.came:
	case err := <-slow:
		return fmt.Errorf("the slow request: %w", err)
	}
	stop := make(chan error, 1)
	go func() { // ends with the unit
		_, err := b.systemd.control(u.ctx, "stop", unitName)
		stop <- err
	}()
	var refused atomic.Bool
	if !eventually(5*time.Second, func() bool {
		c, err := dialFrom(client, plainVIP)
		if err == nil {
			_ = c.Close()
		}
		refused.Store(errors.Is(err, syscall.ECONNREFUSED))
		return refused.Load()
	}) {
		u.v.Must(false, "connections while the unit ends", "they are taken", "refused")
	}
	u.v.Must(b.systemd.shows(u.ctx, unitName, "ActiveState") == "deactivating", "state while a request is under way", b.systemd.shows(u.ctx, unitName, "ActiveState"), "deactivating")
	b.want(u.ctx, "while it ends", "NFileDescriptorStore", "0")
	close(u.plain.slow)
	err := <-slow
	u.v.Must(err == nil, "the request that was under way", fmt.Sprint(err), "an answer")
	if err := <-stop; err != nil {
		return err
	}
	b.want(u.ctx, "after stop", "ActiveState", "inactive")
	b.want(u.ctx, "after stop", "Result", "success")
	left, _ := filepath.Glob(b.systemd.path("/sys/fs/cgroup") + "/*/" + unitName)
	u.v.Zero("cgroups left by the unit", len(left))
	return nil
}

func dialFrom(h *Host, to netip.AddrPort) (c net.Conn, err error) {
	err = h.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", to.String(), visitPatience)
		return err
	})
	return c, err
}

// activated has a socket unit open a listener: who comes first starts the service, and
// who comes after a kill -9 and an upgrade is served as well.
func (u *unitLab) activated() error {
	b, client := u.side, u.world.Host("client")
	// The example, with our address: an empty ListenStream forgets those of the file.
	if err := b.put("/etc/systemd/system/holdfast.socket.d/lab.conf", fmt.Appendf(nil, "[Socket]\nListenStream=\nListenStream=%v\n", plainVIP), 0o644); err != nil {
		return err
	}
	for _, args := range [][]string{{"daemon-reload"}, {"start", "holdfast.socket"}} {
		if _, err := b.systemd.control(u.ctx, args...); err != nil {
			return err
		}
	}
	b.want(u.ctx, "before anybody comes", "ActiveState", "inactive")
	err := visitOnce(client, plainVIP, "/first")
	u.v.Must(err == nil, "the connection that starts the service", fmt.Sprint(err), "an answer")
	if err := b.look(u.ctx); err != nil {
		return err
	}
	handed := strings.Contains(b.Logs(), "a listener was handed on")
	u.v.Must(handed, "the listener of the socket unit", fmt.Sprint(handed), "used")
	a := visiting(client, plainVIP)
	time.Sleep(100 * time.Millisecond)
	_, err = b.systemd.control(u.ctx, "reload", unitName)
	time.Sleep(100 * time.Millisecond)
	a.end()
	if err != nil {
		return err
	}
	was := b.main
	if err := b.look(u.ctx); err != nil {
		return err
	}
	u.v.Must(len(a.broken) == 0 && b.main != was, "connections to a socket unit around a reload", fmt.Sprintf("%d of %d failed: %v", len(a.broken), a.all, a.broken), "none failed")
	_, err = b.systemd.control(context.WithoutCancel(u.ctx), "stop", "holdfast.socket", unitName)
	return err
}

// clusteredFlows are moved to another host.
const clusteredFlows = 6

// clustered starts the unit with a cluster and the drop-in for it, and moves flows to
// another host, where no unit is: what that takes the sandbox must let through.
func (u *unitLab) clustered() error {
	b := u.side
	n1, n2 := b.at, u.world.Host("n2")
	if err := writeIdentities(u.dir, n1, n2); err != nil {
		return err
	}
	drop, err := os.ReadFile("packaging/holdfast.service.d/cluster.conf.example")
	if err != nil {
		return err
	}
	privileged, err := os.ReadFile("packaging/holdfast-netadmin.service")
	if err != nil {
		return err
	}
	h := &Holdfast{Services: u.services, Nodes: []*Host{n1, n2}, Cluster: true}
	_, rest, _ := strings.Cut(h.config(0, 0), "\n")
	rest = strings.Replace(rest, "cluster: {", "cluster: { netadmin: /run/holdfast-netadmin/sock,", 1)
	text := "node: { name: n1, loops: 2 }\n" + strings.ReplaceAll(rest, u.dir, "/etc/holdfast")
	files := map[string][]byte{
		"/etc/systemd/system/holdfast.service.d/cluster.conf": drop,
		"/etc/systemd/system/holdfast-netadmin.service":       privileged,
		"/etc/holdfast/holdfast.yaml":                         []byte(text),
	}
	for _, name := range []string{"ca.crt", "n1.crt", "n1.key"} {
		if files["/etc/holdfast/"+name], err = os.ReadFile(filepath.Join(u.dir, name)); err != nil {
			return err
		}
	}
	for name, octets := range files {
		if err := b.put(name, octets, 0o644); err != nil {
			return err
		}
	}
	// Another node: what the first one desired is not for it.
	if err := os.RemoveAll(b.systemd.path("/var/lib/holdfast")); err != nil {
		return err
	}
	for _, args := range [][]string{{"daemon-reload"}, {"start", unitName}} {
		if _, err := b.systemd.control(u.ctx, args...); err != nil {
			return fmt.Errorf("%w\n%s\n%s", err, b.unitStatus(u.ctx), b.Logs())
		}
	}
	if err := b.look(u.ctx); err != nil {
		return err
	}
	file := filepath.Join(u.dir, "n2.yaml")
	if err := os.WriteFile(file, []byte(h.config(1, 0)), 0o600); err != nil {
		return err
	}
	other, err := n2.Start("n2", nil, b.binary, "run", "--grace", "0s", "-c", file)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(u.ctx, readyPatience)
	defer cancel()
	if err := other.WaitLine(ctx, "ready:"); err != nil {
		return err
	}
	flows := u.open(Exchange, clusteredFlows, "main")
	if err := u.traffic.AwaitEach(5*time.Second, "flows to be served", flows, func(f *Flow) bool { return f.Served.Load() != 0 }); err != nil {
		return err
	}
	before := u.traffic.LostTotal()
	if err := u.verb("migrate", "--to", "n2"); err != nil {
		return fmt.Errorf("%w\n%s\n%s", err, b.Logs(), other.Tail(20))
	}
	here, err := b.node.status(u.ctx)
	if err != nil {
		return err
	}
	was := make([]uint64, len(flows))
	for i, f := range flows {
		was[i] = f.Octets()
	}
	going := 0
	if !eventually(5*time.Second, func() bool {
		going = 0
		for i, f := range flows {
			if f.Octets() > was[i] {
				going++
			}
		}
		return going == len(flows)
	}) {
		u.phase("only %d of %d flows go on", going, len(flows))
	}
	u.traffic.Finish(5*time.Second, flows)
	lost := u.traffic.LostTotal() - before
	u.v.Must(going == len(flows) && lost == 0 && here.Flows == 0, "flows that a unit with a cluster gave to another host",
		fmt.Sprintf("%d of %d go on, %d lost, %d left", going, len(flows), lost, here.Flows), "all go on, none lost, none left")
	u.judgeProcess() // it moved them without any privilege of its own
	_, err = b.systemd.control(u.ctx, "stop", unitName)
	return err
}
