package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A world for systemd: it runs as process 1 of its own pid, mount, ipc, uts and
// cgroup namespaces, in the network of a host of the lab. Of the machine's files it
// sees the programs and libraries; what it and its units write lies in memory and is
// gone with it. It has no units but ours and empty targets: nothing of the machine's is
// started, and nothing tidies files.

const (
	stageSystemd = "systemd"
	cgroupEnv    = "HOLDFAST_LAB_CGROUP"
)

// bootPatience is how long it may take to be up.
const bootPatience = 15 * time.Second

// systemdPrograms are where it may be.
var systemdPrograms = []string{"/usr/lib/systemd/systemd", "/lib/systemd/systemd"}

// systemdPrepared makes the cgroup in which systemd runs, and gives what removes it. A
// reason says why this machine does not let anybody run one; a program that is missing
// is an error.
func systemdPrepared() (group string, remove func(), reason string, err error) {
	for _, what := range []string{systemdProgram(), "systemctl", "systemd-sysusers", "nsenter"} {
		if _, err := exec.LookPath(what); err != nil {
			return "", nil, "", fmt.Errorf("lab: systemd: %w; run make deps", err)
		}
	}
	if os.Geteuid() != 0 {
		return "", nil, "It needs root: systemd is process 1 of namespaces, and units have users of their own.", nil
	}
	try := exec.Command("true")
	try.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	if err := try.Run(); err != nil {
		return "", nil, "Namespaces cannot be made here: " + err.Error(), nil
	}
	if group, remove, err = makeCgroup(); err != nil {
		return "", nil, "A cgroup cannot be made here: " + err.Error(), nil
	}
	return group, remove, "", nil
}

// sayNoSystemd tells loudly that nothing was shown, and why. It is no fault of the code.
func sayNoSystemd(reason string) int {
	line := strings.Repeat("!", 78)
	fmt.Printf("\n%[1]s\nNOT SHOWN: the unit under a real systemd. What it is told, and what it keeps, has\ntests against a stand-in: go test ./internal/supervise ./cmd/holdfast.\n%[2]s\n%[1]s\n\n", line, reason)
	return 0
}

func systemdProgram() string {
	for _, p := range systemdPrograms {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	return systemdPrograms[0]
}

// cgroupRoot is the directory of this process in the unified hierarchy.
func cgroupRoot() (string, error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer func() { _ = mounts.Close() }()
	at := ""
	for in := bufio.NewScanner(mounts); in.Scan(); {
		// id parent device root place options ... - type source options
		left, right, _ := strings.Cut(in.Text(), " - ")
		if f := strings.Fields(left); strings.HasPrefix(right, "cgroup2 ") && len(f) > 4 && f[3] == "/" {
			at = f[4]
		}
	}
	if at == "" {
		return "", errors.New("lab: systemd: no cgroup2 is mounted here")
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(own)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return filepath.Join(at, path), nil
		}
	}
	return "", errors.New("lab: systemd: this process is in no cgroup of the unified hierarchy")
}

// makeCgroup makes one of our own, and gives what removes it when all is over.
func makeCgroup() (dir string, remove func(), err error) {
	root, err := cgroupRoot()
	if err != nil {
		return "", nil, err
	}
	if dir, err = os.MkdirTemp(root, "holdfast-lab-"); err != nil {
		return "", nil, fmt.Errorf("lab: systemd: %w", err)
	}
	return dir, func() { removeCgroup(dir) }, nil
}

// removeCgroup removes it with all below it; the processes in it have been killed, and
// may take a moment to be gone.
func removeCgroup(dir string) {
	_ = eventually(2*time.Second, func() bool {
		var all []string
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				all = append([]string{path}, all...) // the inner ones first
			}
			return nil
		})
		for _, path := range all {
			_ = unix.Rmdir(path)
		}
		_, err := os.Stat(dir)
		return os.IsNotExist(err)
	})
}

// systemdHost is a running systemd.
type systemdHost struct {
	at      *Host
	process *Process
	release string
}

// bootSystemd starts it in the network of a host. other is a directory with another
// release than the machine's, as its packages unpack; "": there is none.
func bootSystemd(ctx context.Context, at *Host, packaging, binary, other string) (*systemdHost, error) {
	group, err := os.Open(os.Getenv(cgroupEnv))
	if err != nil {
		return nil, fmt.Errorf("lab: systemd: its cgroup: %w", err)
	}
	defer func() { _ = group.Close() }()
	s := &systemdHost{at: at}
	attr := &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UseCgroupFD: true, CgroupFD: int(group.Fd()),
	}
	env := []string{stageEnv + "=" + stageSystemd}
	if s.process, err = at.startAs("systemd", attr, env, "/proc/self/exe", packaging, binary, other); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, bootPatience)
	defer cancel()
	for {
		out, err := s.control(ctx, "is-system-running")
		if word := strings.TrimSpace(string(out)); word == "running" || word == "degraded" {
			break
		}
		if s.process.Ended() || ctx.Err() != nil {
			return nil, fmt.Errorf("lab: systemd does not come up: %w: %s\n%s", err, out, s.process.Tail(20))
		}
		time.Sleep(20 * time.Millisecond)
	}
	out, err := s.control(ctx, "--version")
	if f := bytes.Fields(out); err == nil && len(f) > 1 {
		s.release = string(f[1])
	}
	return s, err
}

// inside runs argv where the units are.
func (s *systemdHost) inside(ctx context.Context, argv ...string) ([]byte, error) {
	return s.at.Output(ctx, append([]string{"nsenter", "--target", strconv.Itoa(s.process.Pid), "--mount", "--pid", "--cgroup", "--ipc", "--uts", "--"}, argv...)...)
}

// control runs systemctl.
func (s *systemdHost) control(ctx context.Context, args ...string) ([]byte, error) {
	return s.inside(ctx, append([]string{"systemctl", "--no-pager"}, args...)...)
}

// shows is a property of a unit.
func (s *systemdHost) shows(ctx context.Context, unit, property string) string {
	out, err := s.control(ctx, "show", "--value", "-p", property, unit)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(out))
}

// path is a file of its world, from the lab's.
func (s *systemdHost) path(name string) string {
	return fmt.Sprintf("/proc/%d/root%s", s.process.Pid, name)
}

// outer is the number that a process of its world has here; 0: there is none.
func (s *systemdHost) outer(pid int) int {
	all, _ := filepath.Glob("/proc/[0-9]*/status")
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", s.process.Pid))
	if err != nil {
		return 0
	}
	for _, name := range all {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		ids := strings.Fields(field(text, "NSpid"))
		if len(ids) < 2 || ids[len(ids)-1] != strconv.Itoa(pid) {
			continue
		}
		if ns, err := os.Readlink(filepath.Join(filepath.Dir(name), "ns/pid")); err == nil && ns == own {
			n, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			return n
		}
	}
	return 0
}

// field is a line of /proc/PID/status.
func field(text []byte, name string) string {
	for line := range bytes.Lines(text) {
		if value, ok := bytes.CutPrefix(line, []byte(name+":")); ok {
			return string(bytes.TrimSpace(value))
		}
	}
	return ""
}

// labTargets are the units that others name; they are empty.
var labTargets = []string{
	"lab", "sysinit", "basic", "shutdown", "umount", "final", "network", "network-online", "multi-user", "sockets", "timers", "paths", "slices", "local-fs", "swap", "rescue", "emergency",
}

// etcFiles are those of the machine without which its programs do not run.
var etcFiles = []string{"passwd", "group", "shadow", "gshadow", "ld.so.cache", "ld.so.conf", "nsswitch.conf", "localtime"}

// systemdMain makes the world and becomes systemd. It does not return unless that
// fails.
func systemdMain(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("lab: systemd: %d arguments", len(args))
	}
	runtime.LockOSThread() // the namespace of cgroups is the thread's until exec
	if err := makeSystemdWorld(args[0], args[1], args[2]); err != nil {
		return err
	}
	program := systemdProgram()
	env := []string{"container=lab", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=dumb", "LANG=C"}
	err := unix.Exec(program, []string{program, "--system", "--unit=lab.target", "--log-target=null", "--show-status=no", "--crash-shell=no", "--crash-reboot=no"}, env)
	return fmt.Errorf("lab: exec %s: %w", program, err)
}

// makeSystemdWorld hides all that systemd could change, before it is there.
func makeSystemdWorld(packaging, binary, other string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("lab: private mounts: %w", err)
	}
	// What is read of the machine, before it is covered.
	product, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	etc := map[string][]byte{}
	for _, name := range etcFiles {
		if b, err := os.ReadFile("/etc/" + name); err == nil {
			etc[name] = b
		}
	}
	units := map[string][]byte{}
	if err := filepath.WalkDir(packaging, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(packaging, path)
		if err != nil {
			return err
		}
		units[name], err = os.ReadFile(path)
		return err
	}); err != nil {
		return err
	}
	if err := mountOther(other); err != nil {
		return err
	}
	if err := mountSystemdWorld(); err != nil {
		return err
	}
	files := map[string][]byte{
		"/usr/local/bin/holdfast": product, "/run/console": nil, "/etc/machine-id": nil, "/etc/os-release": []byte("ID=lab\n"),
		"/etc/sysusers.d/holdfast.conf":                   units["sysusers.d/holdfast.conf"],
		"/etc/systemd/system/holdfast.service":            units["holdfast.service"],
		"/etc/systemd/system/holdfast.socket":             units["holdfast.socket"],
		"/usr/lib/systemd/system/-.slice":                 []byte("[Unit]\nDescription=Root\n"),
		"/etc/systemd/system/holdfast.service.d/lab.conf": []byte("[Service]\nStandardOutput=append:/run/holdfast.log\nStandardError=append:/run/holdfast.log\n"),
	}
	for name, b := range etc {
		files["/etc/"+name] = b
	}
	for _, t := range labTargets {
		files["/usr/lib/systemd/system/"+t+".target"] = []byte("[Unit]\nDescription=" + t + "\nDefaultDependencies=no\n")
	}
	for name, b := range files {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if filepath.Dir(name) == "/usr/local/bin" {
			mode = 0o755
		}
		if err := os.WriteFile(name, b, mode); err != nil {
			return err
		}
	}
	// A console that is a file: nothing is written on the machine's.
	if err := unix.Mount("/run/console", "/dev/console", "", unix.MS_BIND, ""); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("lab: console: %w", err)
	}
	if out, err := exec.Command("systemd-sysusers").CombinedOutput(); err != nil {
		return fmt.Errorf("lab: systemd-sysusers: %w\n%s", err, out)
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("lab: namespace of cgroups: %w", err)
	}
	if err := unmountAll("/sys/fs/cgroup"); err != nil {
		return err
	}
	if err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("lab: cgroup2: %w", err)
	}
	// Switches of the kernel are the machine's, but for those of the network, which
	// each namespace has.
	const spare = "/run/spare"
	if err := os.Mkdir(spare, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("proc", spare, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("lab: another /proc: %w", err)
	}
	if err := unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("lab: /proc/sys: %w", err)
	}
	if err := unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("lab: /proc/sys, to be read only: %w", err)
	}
	if err := unix.Mount(spare+"/sys/net", "/proc/sys/net", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("lab: /proc/sys/net: %w", err)
	}
	if err := unix.Unmount(spare, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("lab: another /proc: %w", err)
	}
	// What it says before it has a log, if it does not come up.
	_, _ = io.WriteString(os.Stderr, "the world is made\n")
	return unix.Chdir("/")
}

// mountOther lays the programs and libraries of another release over the machine's.
func mountOther(other string) error {
	if other == "" {
		return nil
	}
	for at, from := range map[string][]string{"/usr/bin": {"bin", "usr/bin"}, "/usr/lib": {"lib", "usr/lib"}} {
		var all []string
		for _, d := range from {
			if dir := filepath.Join(other, d); isDir(dir) {
				all = append(all, dir)
			}
		}
		if len(all) == 0 {
			continue
		}
		if err := unix.Mount("overlay", at, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(append(all, at), ":")); err != nil {
			return fmt.Errorf("lab: %s over %s: %w", other, at, err)
		}
	}
	return nil
}

func isDir(name string) bool {
	s, err := os.Lstat(name)
	return err == nil && s.IsDir()
}

// mountSystemdWorld puts memory over every place where something is written, and over
// those from which units come.
func mountSystemdWorld() error {
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("lab: /proc: %w", err)
	}
	for _, m := range []struct {
		at, options string
		must        bool
	}{
		{"/tmp", "mode=1777", true}, {"/var", "mode=755", true}, {"/run", "mode=755", true}, {"/etc", "mode=755", true},
		{"/usr/local/bin", "mode=755", true}, {"/usr/lib/systemd/system", "mode=755", true},
		{"/usr/lib/systemd/system-generators", "mode=755", true}, {"/usr/local/lib/systemd", "mode=755", false},
		{"/usr/lib/tmpfiles.d", "mode=755", true}, {"/usr/lib/sysusers.d", "mode=755", true},
		{"/home", "mode=755", false}, {"/root", "mode=700", false}, {"/srv", "mode=755", false}, {"/opt", "mode=755", false}, {"/boot", "mode=755", false},
	} {
		if _, err := os.Stat(m.at); err != nil && !m.must {
			continue
		}
		if err := unix.Mount("tmpfs", m.at, "tmpfs", unix.MS_NOSUID, m.options); err != nil {
			return fmt.Errorf("lab: memory at %s: %w", m.at, err)
		}
	}
	for _, d := range []string{"/var/tmp", "/var/lib", "/var/log", "/var/cache", "/run/lock"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	return os.Chmod("/var/tmp", 0o1777)
}

// unmountAll unmounts what is mounted at a place and below it.
func unmountAll(at string) error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var all []string
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) > 4 && (f[4] == at || strings.HasPrefix(f[4], at+"/")) {
			all = append([]string{f[4]}, all...) // the last is uppermost
		}
	}
	for _, m := range all {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("lab: unmount %s: %w", m, err)
		}
	}
	return nil
}
