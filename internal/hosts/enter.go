package hosts

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// insideEnv says to this program, run again, that it is inside; its value, whether in
// a pid namespace of its own.
const insideEnv = "HOLDFAST_DEMO_HOSTS"

// exitNoProc is the status of one that could not mount /proc and asks to be run
// without a pid namespace.
const exitNoProc = 97

// Inside tells whether this process is one that Enter has made, and finishes what that
// began.
func Inside() (bool, error) {
	kind := os.Getenv(insideEnv)
	if kind == "" {
		return false, nil
	}
	_ = os.Unsetenv(insideEnv) // our children are not asked
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return true, fmt.Errorf("hosts: private mounts: %w", err)
	}
	if kind == "pid" {
		if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			os.Exit(exitNoProc)
		}
	}
	return true, nil
}

// Enter runs this program again with the same arguments, as root of new user, network,
// mount and pid namespaces, and gives its exit status. When that process ends the
// kernel ends all others in its pid namespace. Where /proc cannot be mounted, as in
// some containers, there is none, and what is left is ended by this process.
func Enter() (int, error) {
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) // what is left would be init's
	const flags = unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS
	status, err := enter("pid", flags|unix.CLONE_NEWPID)
	if err != nil || status == exitNoProc {
		status, err = enter("plain", flags)
	}
	endChildren()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EACCES) {
		err = fmt.Errorf("hosts: %w (%w)", errNotAllowed, err)
	}
	return status, err
}

func enter(kind string, flags uintptr) (int, error) {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"="+kind)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: flags, Pdeathsig: syscall.SIGKILL,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	// Ctrl-C reaches it as it reaches us; who ends us means it.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	go func() { // ends with the process
		for s := range signals {
			if s != syscall.SIGINT {
				_ = cmd.Process.Signal(s)
			}
		}
	}()
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if w := exit.Sys().(syscall.WaitStatus); w.Signaled() {
			return 1, fmt.Errorf("hosts: it was ended by %v", w.Signal())
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}

// endChildren kills the children of this process, those that it adopted too, until
// there are none: all descend from it.
func endChildren() {
	for range 50 {
		all := children()
		if len(all) == 0 {
			return
		}
		for _, pid := range all {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != nil || pid <= 0 {
				break
			}
		}
		time.Sleep(5 * time.Millisecond) // until the killed become zombies
	}
}

// children are the processes whose parent is this one.
func children() (out []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range stats {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		// pid (name) state ppid ...; the name may hold anything, so fields count from
		// the last parenthesis: proc(5).
		s := string(b)
		fields := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
		if len(fields) < 2 || fields[1] != strconv.Itoa(os.Getpid()) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f))); err == nil {
			out = append(out, pid)
		}
	}
	return out
}
