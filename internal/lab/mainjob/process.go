package mainjob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-lb/holdfast/internal/lab"
)

// process is a program that runs beside us. What it writes goes to a file: a
// pipe would break when a Holdfast hands its output on to a successor.
type process struct {
	name string
	cmd  *exec.Cmd
	in   io.WriteCloser // its standard input, if asked for
	out  *os.File       // the file it writes to
	done chan struct{}
	err  error // of its end; valid after done
}

// spec says how to start a process.
type spec struct {
	name  string
	argv  []string
	env   []string
	on    *lab.Host           // nil: in our own namespace
	user  *syscall.Credential // nil: ours
	dir   string
	talks bool           // its standard input is ours to write
	says  []byte         // what a command finds on its standard input
	hears io.WriteCloser // its standard output goes here; nil: to the file
}

// start runs a process. It ends with the job at the latest.
func (j *job) start(s spec) (*process, error) {
	p := &process{name: s.name, done: make(chan struct{})}
	var err error
	if p.out, err = os.OpenFile(filepath.Join(j.dir, s.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
		return nil, err
	}
	p.cmd = exec.Command(s.argv[0], s.argv[1:]...)
	p.cmd.Env = append(os.Environ(), s.env...)
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = p.out, p.out, s.dir
	if s.user != nil {
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.user}
	}
	if s.hears != nil {
		p.cmd.Stdout = s.hears
	}
	if s.talks {
		if p.in, err = p.cmd.StdinPipe(); err != nil {
			return nil, err
		}
	}
	start := p.cmd.Start
	if s.on != nil {
		start = func() error { return s.on.Do(p.cmd.Start) }
	}
	if err := start(); err != nil {
		return nil, fmt.Errorf("main-job: %s: %w", s.name, err)
	}
	go func() { // ends with the process
		p.err = p.cmd.Wait()
		_ = p.out.Close()
		if s.hears != nil {
			_ = s.hears.Close()
		}
		close(p.done)
	}()
	j.mu.Lock()
	j.processes = append(j.processes, p)
	j.mu.Unlock()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// end ends the process: it is asked, and after a while killed.
func (p *process) end(patience time.Duration) {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(patience):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// tail is the end of what it wrote to its file.
func (p *process) tail() string {
	const lines = 12
	b, _ := os.ReadFile(p.out.Name())
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// await calls ready until it gives no error; the process must not end before.
func (p *process) await(ctx context.Context, ready func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("main-job: %s ended (%v):\n%s", p.name, p.cmd.ProcessState, p.tail())
		case <-ctx.Done():
			return fmt.Errorf("main-job: %s is not ready: %w\n%s", p.name, err, p.tail())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// output runs a command to its end and gives what it wrote to standard output.
func (j *job) output(s spec) ([]byte, error) {
	ctx, cancel := context.WithTimeout(j.ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.argv[0], s.argv[1:]...)
	cmd.Env, cmd.Dir = append(os.Environ(), s.env...), s.dir
	if s.user != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.user}
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if s.says != nil {
		cmd.Stdin = bytes.NewReader(s.says)
	}
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("main-job: %s: %w: %s", strings.Join(s.argv, " "), err, strings.TrimSpace(errs.String()))
	}
	return out, nil
}

// endPID ends a process that was handed to us: the successor of one that we
// started. We are the first process here, so orphans are our children.
func endPID(pid int, patience time.Duration) {
	_ = unix.Kill(pid, unix.SIGTERM)
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
		if got == pid || errors.Is(err, unix.ECHILD) {
			return
		}
		if time.Now().After(deadline) {
			_ = unix.Kill(pid, unix.SIGKILL)
			_, _ = unix.Wait4(pid, nil, 0, nil)
			return
		}
	}
}

// parallel runs all and joins their errors.
func parallel(all ...func() error) error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, f := range all {
		wg.Go(func() { errs[i] = f() })
	}
	wg.Wait()
	return errors.Join(errs...)
}
