package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// reloadSide is a balancer that goes over from one configuration to another.
type reloadSide interface {
	// start returns when it listens.
	start(ctx context.Context, text string) error
	// apply goes over to another file. At once says that what it asks for is in
	// force when it returns; else that has to be waited for.
	apply(ctx context.Context, text string) (atOnce bool, err error)
	// program is the path by which its processes are known.
	program() string
	logs() string
	stop()
}

// reloadHoldfast is the product.
type reloadHoldfast struct {
	binary string
	at     *Host
	name   string
	node   *shopNode
	last   changeReport
	silent map[string]uint64 // what the reports say of the kernel's counters
}

func (b *reloadHoldfast) start(ctx context.Context, text string) (err error) {
	b.silent = map[string]uint64{}
	b.node, err = startNode(ctx, b.binary, b.at, b.name, text)
	return err
}

func (b *reloadHoldfast) apply(ctx context.Context, text string) (bool, error) {
	b.last = changeReport{}
	err := b.node.change(ctx, map[string]any{"source": b.node.filled(text)}, &b.last)
	for k, n := range b.last.Kernel {
		b.silent[k] += n
	}
	return true, err
}

func (b *reloadHoldfast) program() string { return b.binary }
func (b *reloadHoldfast) logs() string    { return b.node.process.Tail(30) }

func (b *reloadHoldfast) stop() {
	if b.node != nil && b.node.pid > 0 {
		b.node.end()
	}
}

// again is what an apply is not: the process ends, and another one begins.
func (b *reloadHoldfast) again(ctx context.Context, text string) error {
	b.node.end()
	return b.start(ctx, text)
}

// reloadHAProxy is Debian's with its seamless reload: each new process gets the
// listening sockets of the one before (-x), and tells it to finish (-sf).
type reloadHAProxy struct {
	at    *Host
	name  string
	all   []*Process
	tries int
}

func (b *reloadHAProxy) stats() string { return filepath.Join(b.at.world.Dir, b.name+".stats") }

func (b *reloadHAProxy) start(ctx context.Context, text string) error {
	if _, err := b.apply(ctx, text); err != nil {
		return err
	}
	if !eventually(2*readyPatience, func() bool { _, err := os.Stat(b.stats()); return err == nil || b.all[0].Ended() }) || b.all[0].Ended() {
		return fmt.Errorf("lab: haproxy does not run:\n%s", b.all[0].Tail(20))
	}
	return nil
}

func (b *reloadHAProxy) apply(_ context.Context, text string) (bool, error) {
	file := filepath.Join(b.at.world.Dir, b.name+".cfg")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return false, err
	}
	argv := []string{haproxyPath, "-db", "-f", file}
	if n := len(b.all); n > 0 {
		argv = append(argv, "-x", b.stats(), "-sf", strconv.Itoa(b.all[n-1].Pid))
	}
	b.tries++
	p, err := b.at.Start(fmt.Sprintf("%s-%d", b.name, b.tries), nil, argv...)
	if err != nil {
		return false, err
	}
	b.all = append(b.all, p)
	return false, nil
}

func (b *reloadHAProxy) program() string { return haproxyPath }
func (b *reloadHAProxy) logs() string    { return b.all[len(b.all)-1].Tail(20) }

func (b *reloadHAProxy) stop() {
	for _, p := range b.all {
		p.Kill()
	}
}

// reloadNginx is Debian's. A reload makes new workers; the old ones finish.
type reloadNginx struct {
	at     *Host
	dir    string
	master *Process
}

func (b *reloadNginx) file() string { return filepath.Join(b.dir, "config") }

func (b *reloadNginx) start(ctx context.Context, text string) error {
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return err
	}
	err := os.WriteFile(b.file(), []byte(text), 0o600)
	if err != nil {
		return err
	}
	b.master, err = b.at.Start("nginx", nil, nginxPath, "-e", filepath.Join(b.dir, "error.log"), "-c", b.file())
	if err != nil {
		return err
	}
	ok := eventually(2*readyPatience, func() bool {
		pid, _ := os.ReadFile(filepath.Join(b.dir, "pid"))
		return len(pid) > 0 || b.master.Ended()
	})
	if !ok || b.master.Ended() {
		return fmt.Errorf("lab: nginx does not run:\n%s\n%s", b.master.Tail(20), b.logs())
	}
	return nil
}

func (b *reloadNginx) apply(_ context.Context, text string) (bool, error) {
	if err := os.WriteFile(b.file(), []byte(text), 0o600); err != nil {
		return false, err
	}
	return false, unix.Kill(b.master.Pid, unix.SIGHUP)
}

func (b *reloadNginx) program() string { return nginxPath }

func (b *reloadNginx) logs() string {
	text, _ := os.ReadFile(filepath.Join(b.dir, "error.log"))
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// stop ends the master, then the workers, which outlive it.
func (b *reloadNginx) stop() {
	if b.master == nil {
		return
	}
	b.master.Kill()
	for _, pid := range running(nginxPath) {
		killPID(pid)
	}
}

// nginxPath is where Debian has it.
const nginxPath = "/usr/sbin/nginx"

// weight is what the processes of a program have at a moment.
type weight struct {
	processes int
	rss       int // octets, shared pages in each process that has them
}

func weigh(program string) weight {
	var w weight
	for _, pid := range running(program) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			continue
		}
		if f := strings.Fields(string(text)); len(f) > 1 {
			pages, _ := strconv.Atoi(f[1])
			w.rss += pages * os.Getpagesize()
		}
		w.processes++
	}
	return w
}

// proportional is the memory of all processes of a program, in octets, in which
// a page that n of them share is counted for an nth in each.
func proportional(program string) (octets int) {
	for _, pid := range running(program) {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
				kib, _ := strconv.Atoi(strings.Fields(rest)[0])
				octets += kib << 10
			}
		}
	}
	return octets
}

// openFiles counts the descriptors of all processes of a program.
func openFiles(program string) (n int) {
	for _, pid := range running(program) {
		names, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		n += len(names)
	}
	return n
}

// memoryShort says whether less than an eighth of the machine's memory is left.
func memoryShort() bool {
	text, _ := os.ReadFile("/proc/meminfo")
	kib := map[string]int{}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 {
			kib[f[0]], _ = strconv.Atoi(f[1])
		}
	}
	return kib["MemAvailable:"] < kib["MemTotal:"]/8
}

// errNoMemory ends a run before it takes all of the machine.
var errNoMemory = errors.New("the machine has no memory left for more processes")

// watchWeight samples the weight of a program until stop is closed, and gives the
// most of it.
func watchWeight(program string, stop <-chan struct{}) (most weight) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		w := weigh(program)
		most.processes, most.rss = max(most.processes, w.processes), max(most.rss, w.rss)
		select {
		case <-stop:
			return most
		case <-tick.C:
		}
	}
}
