package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// stageEnv says to a re-executed program which part it plays; empty is the
// program as the user started it.
const stageEnv = "HOLDFAST_LAB_STAGE"

// exitNoProc is the status of a world that could not mount /proc and asks to
// be started again without a pid namespace.
const exitNoProc = 97

// Enter runs this program again with the same arguments, with stage in its
// environment, as root of new user, network, mount and pid namespaces, and
// returns its exit status. Needs no privilege where unprivileged user
// namespaces are allowed.
//
// When the world's first process ends, the kernel ends all others in its pid
// namespace: no lab can leave a process behind, however it dies. Where /proc
// cannot be mounted (some containers) it runs without one, and Enter, as a
// subreaper, ends what is left.
func Enter(stage string, env []string) (int, error) {
	flags := uintptr(unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS)
	return enterWith(stage, env, flags)
}

// EnterAsRoot is Enter without a user namespace of its own, for labs whose processes
// change their user. It needs root.
func EnterAsRoot(stage string, env []string) (int, error) {
	return enterWith(stage, env, unix.CLONE_NEWNET|unix.CLONE_NEWNS)
}

func enterWith(stage string, env []string, flags uintptr) (int, error) {
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	status, err := enter(stage, env, flags|unix.CLONE_NEWPID)
	if err != nil || status == exitNoProc {
		status, err = enter(stage, env, flags)
	}
	endChildren()
	return status, err
}

func enter(stage string, env []string, flags uintptr) (int, error) {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(append(os.Environ(), env...), stageEnv+"="+stage)
	if flags&unix.CLONE_NEWPID != 0 {
		cmd.Env = append(cmd.Env, "HOLDFAST_LAB_PIDNS=1")
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
	if flags&unix.CLONE_NEWUSER != 0 {
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if err := cmd.Start(); err != nil {
		return 1, fmt.Errorf("lab: new namespaces: %w", err)
	}
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(sigs)
	go func() {
		for s := range sigs {
			_ = cmd.Process.Signal(s)
		}
	}()
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if ws := exit.Sys().(syscall.WaitStatus); ws.Signaled() {
			return 1, fmt.Errorf("lab: the world ended by %v", ws.Signal())
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}

// settle finishes what Enter began, inside: a /proc that shows the new pid
// namespace, no mount that reaches the outside, and adoption of orphans, for
// a balancer that upgraded itself is no child of ours.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("lab: private mounts: %w", err)
	}
	if os.Getenv("HOLDFAST_LAB_PIDNS") != "" {
		if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			os.Exit(exitNoProc)
		}
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("lab: subreaper: %w", err)
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err == nil {
		lim.Cur = lim.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &lim)
	}
	return nil
}

// HostSpec describes a machine of a world.
type HostSpec struct {
	Name string
	// V4 and V6 are its own addresses with their prefix length, on eth0.
	V4, V6 string
	// Router are the addresses of a router at the other end of its cable, in place of the
	// bridge, with their prefix lengths: this process's namespace.
	Router []string
	MTU    int // of its cable; 0: bridgeMTU
}

// World is a set of hosts on one bridge. One goroutine owns it; its hosts may
// be used from several.
type World struct {
	Dir   string // for sockets, certificates and logs of this run
	Hosts map[string]*Host

	nl    *netlink.Handle
	procs *processes
	alone bool // all children of this process are the world's
}

// bridgeMTU is that of an ordinary Ethernet.
const bridgeMTU = 1500

// NewWorld makes the hosts and joins them. The caller must be inside Enter.
func NewWorld(dir string, specs []HostSpec) (*World, error) { return newWorld(dir, specs, true) }

// newWorld is NewWorld for a process that may have children of its own besides.
func newWorld(dir string, specs []HostSpec, alone bool) (*World, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("lab: netlink: %w", err)
	}
	w := &World{Dir: dir, Hosts: map[string]*Host{}, nl: nl, procs: newProcesses(alone), alone: alone}
	// Before any device is made; a kernel before 6.3 has it not.
	_ = os.WriteFile("/proc/sys/"+rpsDefault, []byte(rpsMask), 0)
	snoop := false
	br := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs(), MulticastSnooping: &snoop}
	br.Name, br.MTU = "br0", bridgeMTU
	if err := nl.LinkAdd(br); err != nil {
		return nil, fmt.Errorf("lab: bridge: %w", err)
	}
	if err := nl.LinkSetUp(br); err != nil {
		return nil, fmt.Errorf("lab: bridge up: %w", err)
	}
	for _, s := range specs {
		h, err := w.addHost(br, s)
		if err != nil {
			return nil, fmt.Errorf("lab: host %s: %w", s.Name, err)
		}
		w.Hosts[s.Name] = h
	}
	return w, nil
}

// rpsDefault is the processors that deal with what new devices receive: one. Without it
// the processor that sends a frame over a veth has it in a queue of its own, and a frame
// that was sent later by another processor comes first: no cable does that, and one
// overtaken ACK of a connection that has ended is answered with RST (seen: the ACK of a FIN
// behind our own FIN, with the smaller IP identification, at a client in TIME_WAIT). With
// several processors, each connection's frames on one of them, moves took half as long
// again: each frame is then a processor's interrupt of the other one.
const rpsDefault = "net/core/rps_default_mask"

const rpsMask = "1"

// Host returns a host by name; a name that is not in the specs is a defect of
// the lab.
func (w *World) Host(name string) *Host {
	h := w.Hosts[name]
	if h == nil {
		panic("lab: no host " + name)
	}
	return h
}

// Close ends every process of the world and takes the bridge down. The namespaces
// end when nothing of this program is in them any more.
func (w *World) Close() {
	w.procs.endAll()
	if w.alone {
		endChildren()
	}
	for _, h := range w.Hosts {
		if l, err := w.nl.LinkByName(h.port); err == nil {
			_ = w.nl.LinkDel(l) // with its other end
		}
		h.close()
	}
	if br, err := w.nl.LinkByName("br0"); err == nil {
		_ = w.nl.LinkDel(br)
	}
	w.nl.Close()
}

// endChildren kills the children this process has, those it adopted too, until
// none is left. Each is ours: they descend from this process.
func endChildren() {
	for range 50 {
		pids := children()
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if err != nil || pid <= 0 {
				break
			}
		}
		time.Sleep(5 * time.Millisecond) // until the killed become zombies
	}
}

// children lists the processes whose parent is this one.
func children() []int {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	var pids []int
	for _, f := range stats {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		// pid (name) state ppid ...; the name may hold anything, so the
		// fields are counted from the last parenthesis.
		s := string(b)
		fields := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
		if len(fields) < 2 || fields[1] != strconv.Itoa(os.Getpid()) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// inNamespace runs f on a thread of its own that has joined the network
// namespace ns. The thread ends with f: nothing else ever runs in ns by
// accident.
func inNamespace(ns int, f func() error) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			errc <- fmt.Errorf("lab: setns: %w", err)
			return
		}
		errc <- f()
	}()
	return <-errc
}
