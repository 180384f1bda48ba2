package bench

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is one that the run has started and will end.
type process struct {
	name   string
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	lines  chan string // of its standard output; closed at its end
	stderr string      // the file that takes its standard error
	done   chan struct{}
	err    error // of Wait; valid once done is closed
}

// errTailBytes is how much of a standard error a message quotes.
const errTailBytes = 2000

// start runs a program pinned to cpus. A child inherits the affinity of the
// thread that forks it, so this thread goes there and comes back.
// Should this process be killed, the child gets the signal dying.
func start(name string, command, env []string, stderr string, cpus []int, dying syscall.Signal) (*process, error) {
	cmd := exec.Command(command[0], command[1:]...)
	// What Holdfast keeps of its configurations lies beside what it writes.
	cmd.Env = append(append(os.Environ(), "STATE_DIRECTORY="+stderr+".state"), env...)
	// A group of its own: an interrupt from the terminal is ours to handle.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: dying}
	p := &process{name: name, cmd: cmd, stderr: stderr, lines: make(chan string, 64), done: make(chan struct{})}
	errs, err := os.Create(stderr)
	if err != nil {
		return nil, fmt.Errorf("bench: %s: %w", name, err)
	}
	defer func() { _ = errs.Close() }() // the child has its own
	cmd.Stderr = errs
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("bench: %s: %w", name, err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("bench: %s: %w", name, err)
	}

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var old unix.CPUSet
	if err := unix.SchedGetaffinity(0, &old); err != nil {
		return nil, fmt.Errorf("bench: sched_getaffinity: %w", err)
	}
	if err := pin(cpus...); err != nil {
		return nil, err
	}
	err = cmd.Start()
	if back := unix.SchedSetaffinity(0, &old); err == nil && back != nil {
		err = back
	}
	if err != nil {
		return nil, fmt.Errorf("bench: %s: %w", name, err)
	}
	go func() {
		defer close(p.done)
		s := bufio.NewScanner(out)
		for s.Scan() {
			select {
			case p.lines <- s.Text():
			default: // nobody reads it any more
			}
		}
		p.err = cmd.Wait()
		close(p.lines)
	}()
	return p, nil
}

// startChild runs this program again in a role, pinned to cpus.
func startChild(role string, spec any, stderr string, cpus ...int) (*process, error) {
	b, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("bench: orders for %s: %w", role, err)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	// One thread holds the only processor and shall not be interrupted.
	env := []string{roleEnv + "=" + role, specEnv + "=" + string(b), "GODEBUG=asyncpreemptoff=1", "GOMAXPROCS=1"}
	return start(role, []string{self}, env, stderr, cpus, syscall.SIGKILL)
}

// pid is the id of the process.
func (p *process) pid() int { return p.cmd.Process.Pid }

// line waits for a line with the prefix and returns it.
func (p *process) line(prefix string, limit time.Duration) (string, error) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		select {
		case s, ok := <-p.lines:
			if !ok {
				return "", p.failure(fmt.Errorf("ended before it said %q", prefix))
			}
			if strings.HasPrefix(s, prefix) {
				return s, nil
			}
		case <-timer.C:
			return "", p.failure(fmt.Errorf("did not say %q within %v", prefix, limit))
		}
	}
}

// alive reports how the process ended, if it did.
func (p *process) alive() error {
	select {
	case <-p.done:
		return p.failure(errors.New("ended"))
	default:
		return nil
	}
}

// failure adds to err what the process said last.
func (p *process) failure(err error) error {
	b, _ := os.ReadFile(p.stderr) // nothing to quote then
	if len(b) > errTailBytes {
		b = b[len(b)-errTailBytes:]
	}
	return fmt.Errorf("bench: %s: %w\n%s", p.name, err, strings.TrimSpace(string(b)))
}

// endMax is how long a process may take to end when asked.
const endMax = 2 * time.Second

// stop ends the process and what it started, and waits for it.
func (p *process) stop() {
	select {
	case <-p.done:
		return
	default:
	}
	pids := family(p.pid())
	slices.Reverse(pids) // children first, if it comes to force
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(endMax):
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		<-p.done
	}
}

// awaitPort waits until something accepts connections at 127.0.0.1:port.
func (p *process) awaitPort(port int, limit time.Duration) error {
	for end := time.Now().Add(limit); ; {
		if err := p.alive(); err != nil {
			return err
		}
		c, err := net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
		if err == nil {
			return c.Close()
		}
		if time.Now().After(end) {
			return p.failure(fmt.Errorf("does not listen within %v: %w", limit, err))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// portsFrom and portsTo bound where ports are looked for: below what Linux
// gives to outgoing connections (net.ipv4.ip_local_port_range, from 32768),
// so that none of the many can be in the way.
const portsFrom, portsTo = 20000, 32000

// freePorts returns n ports of 127.0.0.1 that nobody has.
func freePorts(n int) ([]int, error) {
	var ports []int
	span := portsTo - portsFrom
	for i := 0; i < span && len(ports) < n; i++ {
		// Two runs at a time begin at different places.
		port := portsFrom + (os.Getpid()*37+i)%span
		fd, err := listen(port)
		if err != nil {
			continue
		}
		_ = unix.Close(fd)
		ports = append(ports, port)
	}
	if len(ports) < n {
		return nil, fmt.Errorf("bench: %d of %d ports are free between %d and %d", len(ports), n, portsFrom, portsTo)
	}
	return ports, nil
}
