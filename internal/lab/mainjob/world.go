package mainjob

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// enter runs this program again as the first process of new network, mount
// and pid namespaces, and returns its exit status. When that process ends, the
// kernel ends all others in its pid namespace.
//
// Root without CAP_SYS_ADMIN, as in many containers, gets there by a user
// namespace in which every user is who it was outside.
func enter(env ...string) (int, error) {
	const flags = unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID
	status, err := enterBy(&syscall.SysProcAttr{Cloneflags: flags}, env)
	if errors.Is(err, unix.EPERM) {
		same := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1 << 16}}
		status, err = enterBy(&syscall.SysProcAttr{
			Cloneflags: flags | unix.CLONE_NEWUSER, UidMappings: same, GidMappings: same, GidMappingsEnableSetgroups: true,
		}, env)
	}
	return status, err
}

func enterBy(attr *syscall.SysProcAttr, env []string) (int, error) {
	attr.Pdeathsig = syscall.SIGKILL
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(append(os.Environ(), env...), stageEnv+"="+stageWorld)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = os.Stdout, os.Stderr, attr
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, syscall.SIGINT, syscall.SIGTERM)
	defer func() {
		signal.Stop(sigs)
		close(sigs)
	}()
	if err := cmd.Start(); err != nil {
		return 1, fmt.Errorf("main-job: new namespaces: %w", err)
	}
	go func() {
		for s := range sigs {
			_ = cmd.Process.Signal(s)
		}
	}()
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if ws := exit.Sys().(syscall.WaitStatus); ws.Signaled() {
			return 1, fmt.Errorf("main-job: the world ended by %v", ws.Signal())
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}

// settle finishes what enter began, inside: no mount that reaches the outside,
// a /proc of the new pid namespace, an empty /run with the directory that sshd
// insists on, and a loopback device that is up.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("main-job: private mounts: %w", err)
	}
	const plain = unix.MS_NOSUID | unix.MS_NODEV
	if err := unix.Mount("proc", "/proc", "proc", plain|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("main-job: /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", plain, "mode=755"); err != nil {
		return fmt.Errorf("main-job: /run: %w", err)
	}
	if err := os.Mkdir("/run/sshd", 0o755); err != nil {
		return fmt.Errorf("main-job: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("main-job: loopback: %w", err)
	}
	return nil
}
