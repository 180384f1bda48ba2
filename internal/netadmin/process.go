package netadmin

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Privileged tells whether this process may do what an Admin does.
func Privileged() (bool, error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return false, fmt.Errorf("netadmin: capget: %w", err)
	}
	return data[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0, nil
}

// Renounce runs this program anew, in the same process, without any capability but
// that to bind ports below 1024, if it has that now; no program that it starts can
// have more. It returns only with an error. A thread alone cannot do it: the
// others would keep theirs.
func Renounce(env []string) error {
	runtime.LockOSThread() // never undone: this thread is not what the others are
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("netadmin: %w", err)
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return fmt.Errorf("netadmin: capget: %w", err)
	}
	const kept = 1 << unix.CAP_NET_BIND_SERVICE
	keep := data[0].Permitted & kept
	// Root gets back with each program what the bounding set has, nobody more
	// (capabilities(7), "Transformation of capabilities during execve").
	for c := 0; c <= 63; c++ {
		if c == unix.CAP_NET_BIND_SERVICE {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("netadmin: drop capability %d from the bounding set: %w", c, err)
		}
	}
	data = [2]unix.CapUserData{{Effective: keep, Permitted: keep, Inheritable: keep}}
	if err := unix.Capset(&head, &data[0]); err != nil {
		return fmt.Errorf("netadmin: capset: %w", err)
	}
	if keep != 0 { // for who is not root
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_NET_BIND_SERVICE, 0, 0); err != nil {
			return fmt.Errorf("netadmin: ambient capability: %w", err)
		}
	}
	return fmt.Errorf("netadmin: run %s anew: %w", self, syscall.Exec(self, os.Args, env))
}

// Spawn starts the privileged process with these arguments of this program, in a
// session of its own: it outlives this process. What it has to say it writes to the
// file log. Spawn returns when it answers at the socket; after an error none is left.
func Spawn(args []string, socket, log string) error { return spawn(args, socket, log, callTime) }

func spawn(args []string, socket, log string, within time.Duration) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("netadmin: %w", err)
	}
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("netadmin: its log: %w", err)
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(self, args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = out, out, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("netadmin: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with it, or with this process
	for deadline := time.Now().Add(within); ; {
		c, err := Dial(socket)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ended:
			said, _ := os.ReadFile(log)
			return fmt.Errorf("netadmin: it ended: %s", said)
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			// With who keeps it goes what it keeps: both are of the group of that session.
			return errors.Join(fmt.Errorf("netadmin: it does not answer at %s: %w", socket, err), unix.Kill(-cmd.Process.Pid, unix.SIGKILL))
		}
	}
}

// Listen makes the socket of the privileged process, for root and the user of that
// id. A socket at whose other end nobody is any more is replaced.
func Listen(path string, uid int) (*net.UnixListener, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("netadmin: %s: another privileged process serves there", path)
	} else if errors.Is(err, unix.ECONNREFUSED) {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("netadmin: %w", err)
		}
	}
	was := unix.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(was)
	if err != nil {
		return nil, fmt.Errorf("netadmin: %w", err)
	}
	if uid > 0 && uid != os.Geteuid() {
		if err := os.Chown(path, uid, -1); err != nil {
			_ = l.Close()
			return nil, fmt.Errorf("netadmin: %w", err)
		}
	}
	return l, nil
}
