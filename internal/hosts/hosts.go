// Package hosts makes a small network of hosts on one machine, for the demo of moves
// between hosts: network namespaces on a bridge, inside a user namespace, so that no
// privilege is needed where those are allowed. All of it ends with the process that
// made it, however that ends.
package hosts

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host is one machine: a network namespace with lo and eth0. Its methods may be called
// by any goroutine.
type Host struct {
	Name string
	Addr netip.Addr // its own, on eth0

	net  *Net
	ns   int // descriptor of the namespace, which keeps it alive
	nl   *netlink.Handle
	port string // the bridge's end of its cable
}

// Net is some hosts on one bridge. Close ends it.
type Net struct {
	Dir string // for what hosts write: sockets, certificates, logs

	nl *netlink.Handle

	// mu guards what follows.
	mu    sync.Mutex
	hosts []*Host
	procs map[*Process]bool
}

// Spec describes a host.
type Spec struct {
	Name string
	Addr netip.Prefix
}

// bridgeMTU is that of an ordinary Ethernet.
const bridgeMTU = 1500

// New makes the hosts and joins them. The caller is inside of Enter.
func New(dir string, specs ...Spec) (_ *Net, err error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("hosts: netlink: %w", err)
	}
	n := &Net{Dir: dir, nl: nl, procs: map[*Process]bool{}}
	defer func() {
		if err != nil {
			n.Close()
		}
	}()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "br0", bridgeMTU
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := nl.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("hosts: bridge: %w", err)
	}
	if err := nl.LinkSetUp(bridge); err != nil {
		return nil, fmt.Errorf("hosts: bridge up: %w", err)
	}
	for _, s := range specs {
		if err := n.add(bridge.Attrs().Index, s); err != nil {
			return nil, fmt.Errorf("hosts: %s: %w", s.Name, err)
		}
	}
	return n, nil
}

// Host is a host by name; one that is not among the specs is a mistake of the caller's.
func (n *Net) Host(name string) *Host {
	for _, h := range n.hosts {
		if h.Name == name {
			return h
		}
	}
	panic("hosts: there is no " + name)
}

// sysctls hold path and value. IPv6 addresses are usable at once, and routes are not
// judged by the way back.
var sysctls = [][2]string{
	{"net/ipv4/conf/all/rp_filter", "0"},
	{"net/ipv4/conf/eth0/rp_filter", "0"},
	{"net/ipv4/ip_local_port_range", "10000 65000"},
}

// add makes a host and its cable.
func (n *Net) add(bridge int, s Spec) error {
	h := &Host{Name: s.Name, Addr: s.Addr.Addr(), net: n, port: "p-" + s.Name, ns: -1}
	made := make(chan error, 1)
	go func() { // ends at once, and its thread with it
		runtime.LockOSThread()
		made <- h.make()
	}()
	if err := <-made; err != nil {
		return err
	}
	n.mu.Lock()
	n.hosts = append(n.hosts, h)
	n.mu.Unlock()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = h.port, bridgeMTU, bridge
	cable := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerMTU: bridgeMTU, PeerNamespace: netlink.NsFd(h.ns)}
	if err := n.nl.LinkAdd(cable); err != nil {
		return fmt.Errorf("cable: %w", err)
	}
	if err := n.nl.LinkSetUp(cable); err != nil {
		return fmt.Errorf("cable up: %w", err)
	}
	for _, set := range sysctls {
		err := h.Do(func() error { return os.WriteFile("/proc/sys/"+set[0], []byte(set[1]), 0) })
		if err != nil {
			return err
		}
	}
	for _, device := range []string{"lo", "eth0"} {
		l, err := h.nl.LinkByName(device)
		if err == nil {
			err = h.nl.LinkSetUp(l)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", device, err)
		}
		if device == "eth0" {
			a := &netlink.Addr{IPNet: &net.IPNet{IP: h.Addr.AsSlice(), Mask: net.CIDRMask(s.Addr.Bits(), h.Addr.BitLen())}}
			if err := h.nl.AddrAdd(l, a); err != nil {
				return fmt.Errorf("address %v: %w", s.Addr, err)
			}
		}
	}
	return nil
}

// make makes the namespace of the calling thread a new one, and notes it.
func (h *Host) make() (err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if h.ns, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("own namespace: %w", err)
	}
	h.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
	return err
}

// Do runs f on a thread in the host's network namespace. Sockets that f makes stay
// there. The thread ends with f: nothing else ever runs there by accident.
func (h *Host) Do(f func() error) error {
	done := make(chan error, 1)
	go func() { // ends with f
		runtime.LockOSThread() // and never unlocked
		if err := unix.Setns(h.ns, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("hosts: %s: setns: %w", h.Name, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Process is a program that runs on a host. What it writes goes to a file.
type Process struct {
	Name, Log string
	cmd       *exec.Cmd
	done      chan struct{}
}

// Start runs a program on the host, with its standard output and error in a file of
// that name.
func (h *Host) Start(name string, env []string, argv ...string) (*Process, error) {
	p := &Process{Name: name, Log: filepath.Join(h.net.Dir, name+".log"), done: make(chan struct{})}
	f, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("hosts: %w", err)
	}
	defer func() { _ = f.Close() }()
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = f, f, h.net.Dir
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for who made the network
	// A child is cloned by the calling thread, and is where that is.
	if err := h.Do(p.cmd.Start); err != nil {
		return nil, fmt.Errorf("hosts: %s on %s: %w", name, h.Name, err)
	}
	h.net.mu.Lock()
	h.net.procs[p] = true
	h.net.mu.Unlock()
	go func() { // ends with the child
		_ = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Ended tells whether the process has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// End asks the process to end, kills it when patience is over, and waits for it.
func (p *Process) End(patience time.Duration) {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(patience):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// Signal sends the process a signal.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Kill ends the process as it is, and waits for it.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// endTime is how long processes may take to end when the network does.
const endTime = 2 * time.Second

// Close ends all processes and takes the network down.
func (n *Net) Close() {
	var all sync.WaitGroup
	n.mu.Lock()
	for p := range n.procs {
		all.Go(func() { p.End(endTime) })
	}
	n.mu.Unlock()
	all.Wait()
	for _, h := range n.hosts {
		if l, err := n.nl.LinkByName(h.port); err == nil {
			_ = n.nl.LinkDel(l) // with its other end
		}
		h.nl.Close()
		_ = unix.Close(h.ns)
	}
	if l, err := n.nl.LinkByName("br0"); err == nil {
		_ = n.nl.LinkDel(l)
	}
	n.nl.Close()
}

// errNotAllowed says what is missing where no namespaces can be made.
var errNotAllowed = errors.New("this machine lets you make no user and network namespaces: run it as root, or allow them (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)")
