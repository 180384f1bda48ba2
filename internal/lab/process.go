package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// processes are those that this world started and has to end. It also reaps
// orphans: a balancer that upgraded itself leaves its successor to us.
type processes struct {
	mu    sync.Mutex // guards known
	known map[int]*Process

	stop chan struct{}
	done chan struct{}
}

// newProcesses keeps those of a world. Without orphans nobody else's children are waited
// for: this process may have some of its own.
func newProcesses(orphans bool) *processes {
	p := &processes{known: map[int]*Process{}, stop: make(chan struct{}), done: make(chan struct{})}
	if orphans {
		go p.reap()
	} else {
		close(p.done)
	}
	return p
}

// reap waits for children that exec does not know: the status of the others is
// exec's to take.
func (p *processes) reap() {
	defer close(p.done)
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, syscall.SIGCHLD)
	defer signal.Stop(sig)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-sig:
		case <-tick.C:
		}
		for _, pid := range children() {
			p.mu.Lock()
			if _, ours := p.known[pid]; !ours {
				_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
			}
			p.mu.Unlock()
		}
	}
}

func (p *processes) endAll() {
	close(p.stop)
	<-p.done
	p.mu.Lock()
	var left []*Process
	for _, x := range p.known {
		if x == nil {
			continue // a short command: its caller waits for it
		}
		left = append(left, x)
	}
	p.mu.Unlock()
	for _, x := range left {
		x.Kill()
	}
}

// Process is a program running on a host. Its output goes to a file: a pipe
// would break when the process hands its output on to a successor.
type Process struct {
	Name string
	Pid  int
	Log  string // path of what it wrote, stdout and stderr

	cmd  *exec.Cmd
	done chan struct{}
}

// Start runs argv on the host. The process ends with the world at the latest.
func (h *Host) Start(name string, env []string, argv ...string) (*Process, error) {
	return h.startAs(name, nil, env, argv...)
}

// startAs is Start of a process that is made in another way, if attr is not nil.
func (h *Host) startAs(name string, attr *syscall.SysProcAttr, env []string, argv ...string) (*Process, error) {
	p := &Process{Name: name, Log: filepath.Join(h.world.Dir, name+".log"), done: make(chan struct{})}
	f, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lab: %s: %w", name, err)
	}
	defer func() { _ = f.Close() }()
	p.cmd = exec.Command(argv[0], argv[1:]...)
	// What a node keeps is its own, and goes with the run.
	p.cmd.Env = append(append(os.Environ(), "STATE_DIRECTORY="+filepath.Join(h.world.Dir, name+".state")), env...)
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir, p.cmd.SysProcAttr = f, f, h.world.Dir, attr
	procs := h.world.procs
	// A child is cloned by the calling thread and inherits its namespace.
	// The lock keeps the reaper from taking a child that is not listed yet.
	err = h.Do(func() error {
		procs.mu.Lock()
		defer procs.mu.Unlock()
		if err := p.cmd.Start(); err != nil {
			return fmt.Errorf("lab: %s on %s: %w", name, h.Name, err)
		}
		p.Pid = p.cmd.Process.Pid
		procs.known[p.Pid] = p
		return nil
	})
	if err != nil {
		return nil, err
	}
	go func() {
		_ = p.cmd.Wait()
		procs.mu.Lock()
		delete(procs.known, p.Pid)
		procs.mu.Unlock()
		close(p.done)
	}()
	return p, nil
}

// Ended says whether the process has.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Kill ends the process by SIGKILL and waits for it.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// WaitLine waits until the process has written a line that begins with prefix.
// It fails if the process ends first.
func (p *Process) WaitLine(ctx context.Context, prefix string) error {
	for {
		b, err := os.ReadFile(p.Log)
		if err != nil {
			return err
		}
		if bytes.HasPrefix(b, []byte(prefix)) || bytes.Contains(b, []byte("\n"+prefix)) {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("lab: %s ended before %q: %v\n%s", p.Name, prefix, p.cmd.ProcessState, p.Tail(20))
		case <-ctx.Done():
			return fmt.Errorf("lab: %s: no line %q: %w\n%s", p.Name, prefix, ctx.Err(), p.Tail(20))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Tail returns the last lines that the process wrote.
func (p *Process) Tail(lines int) string {
	b, _ := os.ReadFile(p.Log)
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Output runs argv on the host to its end and returns its standard output. An
// error carries what it wrote to standard error.
func (h *Host) Output(ctx context.Context, argv ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Dir = &out, &errs, h.world.Dir
	procs := h.world.procs
	err := h.Do(func() error {
		procs.mu.Lock()
		defer procs.mu.Unlock()
		if err := cmd.Start(); err != nil {
			return err
		}
		procs.known[cmd.Process.Pid] = nil
		return nil
	})
	if err == nil {
		err = cmd.Wait()
		procs.mu.Lock()
		delete(procs.known, cmd.Process.Pid)
		procs.mu.Unlock()
	}
	if err != nil {
		msg := strings.TrimSpace(errs.String())
		return out.Bytes(), errors.Join(fmt.Errorf("lab: %s: %w", strings.Join(argv, " "), err), textError(msg))
	}
	return out.Bytes(), nil
}

func textError(s string) error {
	if s == "" {
		return nil
	}
	return errors.New(s)
}

// Alive says whether a process with this id runs (a zombie does not).
func Alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	s := string(b)
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	return len(f) > 0 && f[0] != "Z" && f[0] != "X"
}

// OpenSockets counts the sockets a process holds.
func OpenSockets(pid int) (int, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	names, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, e := range names {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n, nil
}

// killPID ends a process of this world that was not started by the lab itself,
// but reported to it.
func killPID(pid int) {
	if pid > 1 {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}
