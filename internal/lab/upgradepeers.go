package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// peerReload is what became of the same connections when a balancer went over
// to another process.
type peerReload struct {
	who       string
	flows     int
	processes int           // old ones, at the end of the time
	sitting   int           // client connections in them
	rss       int           // octets, theirs
	gone      time.Duration // when the last old process had ended; 0: it has not
	cut       int           // flows that broke, of those that stood
	closed    int           // idle and kept connections that were closed or told so
	lost      int           // new connections and requests
	worst     threefold     // words of the echo flows while it went over
	ended     []string      // echo flows that broke
}

// clientConnections counts those that some processes hold to ports of their own in
// a range, by the kernel's word.
func clientConnections(pids []int, from, to uint64) int {
	inodes := map[string]bool{}
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		names, _ := os.ReadDir(dir)
		for _, e := range names {
			to, err := os.Readlink(filepath.Join(dir, e.Name()))
			if inode, ok := strings.CutPrefix(to, "socket:["); err == nil && ok {
				inodes[strings.TrimSuffix(inode, "]")] = true
			}
		}
	}
	text, _ := os.ReadFile("/proc/thread-self/net/tcp")
	n := 0
	for line := range strings.Lines(string(text)) {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
		f := strings.Fields(line)
		if len(f) < 10 || f[3] != "01" || !inodes[f[9]] {
			continue
		}
		_, port, _ := strings.Cut(f[1], ":")
		p, err := strconv.ParseUint(port, 16, 16)
		if err == nil && p >= from && p <= to {
			n++
		}
	}
	return n
}

// resident is the memory of some processes, in octets.
func resident(pids []int) (octets int) {
	for _, pid := range pids {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if f := strings.Fields(string(text)); len(f) > 1 {
			pages, _ := strconv.Atoi(f[1])
			octets += pages * os.Getpagesize()
		}
	}
	return octets
}

// bounded has a peer cut what is left in an old process after a time.
func (y *syntax) bounded(d time.Duration) *syntax {
	inner := y.whole
	y.whole = func(f *serviceFleet, listeners, backends []string) string {
		text := inner(f, listeners, backends)
		if rest, ok := strings.CutPrefix(text, "global\n"); ok {
			return fmt.Sprintf("global\n  hard-stop-after %ds\n%s", int(d.Seconds()), rest)
		}
		return strings.Replace(text, "daemon off;\n", fmt.Sprintf("daemon off;\nworker_shutdown_timeout %ds;\n", int(d.Seconds())), 1)
	}
	return y
}

// beside has the peers hold the same connections and reload, with no bound and
// with one.
func (u *upgradeLab) beside() error {
	w, here, err := newLoopback(u.dir)
	if err != nil {
		return err
	}
	defer w.Close()
	r := u.newMany(here)
	if err := r.room(); err != nil {
		return err
	}
	dir := filepath.Join(w.Dir, "nginx")
	stats := filepath.Join(w.Dir, "haproxy.stats")
	for _, p := range []struct {
		name, path string
		side       func() reloadSide
		syntax     func() *syntax
	}{
		{"haproxy", haproxyPath, func() reloadSide { return &reloadHAProxy{at: here, name: "haproxy"} },
			func() *syntax { return haproxySyntax(stats, (r.nofile-500)/2-5*manyServices/4) }},
		{"nginx", nginxPath, func() reloadSide { return &reloadNginx{at: here, dir: dir} },
			func() *syntax { return nginxSyntax(dir, r.nofile) }},
	} {
		if _, err := os.Stat(p.path); err != nil {
			u.v.Say("%s is not here: nothing is shown beside it (make deps installs it)", p.path)
			continue
		}
		for _, cuts := range []bool{false, true} {
			name, y := p.name, p.syntax()
			if cuts {
				name, y = fmt.Sprintf("%s, cut after %v", p.name, u.bound), y.bounded(u.bound)
			}
			_ = os.RemoveAll(dir)
			_ = os.Remove(stats)
			x, err := u.reloadOnce(r, name, p.side(), y)
			if err != nil {
				return err
			}
			u.peers = append(u.peers, x)
			u.v.Say("%s: %s", x.who, x)
		}
	}
	return nil
}

func (x *peerReload) String() string {
	left := "gone after " + x.gone.Round(10*time.Millisecond).String()
	if x.gone == 0 {
		left = fmt.Sprintf("%d old processes with %d connections and %.0f MB", x.processes, x.sitting, megabytes(x.rss))
	}
	return fmt.Sprintf("%d flows: %s; cut %d, idle or kept closed %d, new lost %d; longest words %v; echo flows ended %d", x.flows, left, x.cut, x.closed, x.lost, x.worst, len(x.ended))
}

// reloadOnce reloads a peer under the flows, and looks at what stays behind.
func (u *upgradeLab) reloadOnce(r *reloadLab, name string, side reloadSide, y *syntax) (*peerReload, error) {
	u.phase("%s: %d flows, and a reload", name, u.many)
	x := &peerReload{who: name}
	m, err := u.stand(r, strings.NewReplacer(" ", "-", ",", "").Replace(name), side, y, false)
	defer m.end()
	if err != nil {
		return x, err
	}
	x.flows = m.opened + 3*r.probes
	time.Sleep(time.Second)
	before := running(side.program())
	if n, ok := side.(*reloadNginx); ok {
		before = slices.DeleteFunc(before, func(pid int) bool { return pid == n.master.Pid })
	}
	if _, err := m.echo.look(); err != nil {
		return x, err
	}
	if err := m.d.Call("Driver.Phase", phaseApplies, new(ReloadPhase)); err != nil {
		return x, err
	}
	m.f.next(2)
	began := time.Now()
	if _, err := side.apply(u.ctx, m.y.file(m.f)); err != nil {
		return x, err
	}
	time.Sleep(2 * time.Second)
	e, err := m.echo.look()
	if err != nil {
		return x, err
	}
	x.worst = threefoldOf(e.Worst)
	old := before
	for time.Since(began) < u.old && len(old) > 0 && u.ctx.Err() == nil {
		time.Sleep(100 * time.Millisecond)
		if old = slices.DeleteFunc(slices.Clone(before), func(pid int) bool { return !Alive(pid) }); len(old) == 0 {
			x.gone = time.Since(began)
		}
	}
	x.processes, x.sitting, x.rss = len(old), clientConnections(old, servicePort, manyEchoPort), resident(old)
	if e, err = m.echo.look(); err != nil {
		return x, err
	}
	x.ended = e.Faults
	var rep ReloadReport
	if err := m.d.Call("Driver.Finish", true, &rep); err != nil {
		return x, err
	}
	c := &rep.Counts
	for k := range heldKinds {
		x.cut += c.Broken[k]
	}
	x.closed, x.lost = c.IdleClosed+c.KeptClosed+c.KeptTold, c.NewLost+c.AskedLost+c.IdleLost
	return x, nil
}
