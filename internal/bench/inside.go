package bench

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// Inside starts this program again in a network namespace of its own and
// returns how that ended; entered is false where the kernel grants none, and
// the caller then measures where it is.
func Inside() (entered bool, code int, err error) {
	if os.Getenv(roleEnv) != "" {
		return false, 0, nil // we are inside
	}
	self, err := os.Executable()
	if err != nil {
		return false, 0, fmt.Errorf("bench: %w", err)
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), roleEnv+"=inside")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return false, 0, nil // not granted
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			_ = cmd.Process.Signal(s) // it has ended otherwise
		case err := <-ended:
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				return true, max(exit.ExitCode(), 1), nil
			}
			return true, 0, err
		}
	}
}

// Furnish prepares the namespace that Inside made: the loopback up, and TCP
// as most machines have it. Elsewhere it does nothing.
func Furnish() error {
	if os.Getenv(roleEnv) == "" {
		return nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bench: socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bench: lo: %w", err)
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("bench: lo up: %w", err)
	}
	// bbr, the default of some images, paces by timers: on a loopback that
	// measures the timers. cubic is what Linux is built with; where a
	// namespace may not have it, reno, the same for want of any loss.
	// net/ipv4/tcp_cong.c, tcp_set_default_congestion_control.
	const congestion = "/proc/sys/net/ipv4/tcp_congestion_control"
	for _, name := range []string{"cubic", "reno"} {
		if os.WriteFile(congestion, []byte(name), 0o644) == nil {
			break // the result says what was in force
		}
	}
	// Ten thousand connections a second to one address fill the port range
	// with TIME-WAIT in three seconds, and from then on connect searches: a
	// third of what tcp-connect costs, and more for whoever is faster. A real
	// balancer has many endpoints and does not meet this. Beyond the bound
	// the kernel keeps no TIME-WAIT.
	_ = os.WriteFile("/proc/sys/net/ipv4/tcp_max_tw_buckets", []byte("4096"), 0o644) // see above
	return nil
}
