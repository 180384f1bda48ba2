package lab

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host is a machine: a network namespace with lo and eth0. A file descriptor
// keeps it alive, no process has to.
type Host struct {
	Name   string
	V4, V6 netip.Addr
	MAC    net.HardwareAddr

	world *World
	ns    int // network namespace
	nl    *netlink.Handle
	port  string // the bridge's end of the cable
}

// txQueueLen is long enough that no burst of the traffic is dropped where a
// queue is used at all.
const txQueueLen = 10000

// addHost makes a namespace, a cable from br to its eth0, and its addresses.
func (w *World) addHost(br netlink.Link, s HostSpec) (*Host, error) {
	h := &Host{Name: s.Name, world: w, port: "p-" + s.Name}
	if err := h.makeNamespace(); err != nil {
		return nil, err
	}
	_ = h.Sysctl(rpsDefault, rpsMask)
	attrs := netlink.NewLinkAttrs()
	mtu := cmp.Or(s.MTU, bridgeMTU)
	attrs.Name, attrs.MTU, attrs.TxQLen = h.port, mtu, txQueueLen
	if len(s.Router) == 0 {
		attrs.MasterIndex = br.Attrs().Index
	}
	cable := &netlink.Veth{
		LinkAttrs: attrs, PeerName: "eth0", PeerTxQLen: txQueueLen, PeerMTU: uint32(mtu),
		PeerNamespace: netlink.NsFd(h.ns),
	}
	if err := w.nl.LinkAdd(cable); err != nil {
		return nil, fmt.Errorf("cable: %w", err)
	}
	if err := w.nl.LinkSetUp(cable); err != nil {
		return nil, fmt.Errorf("cable up: %w", err)
	}
	for _, set := range hostSysctls {
		if err := h.Sysctl(set[0], set[1]); err != nil && set[2] == "" {
			return nil, err
		}
	}
	for _, dev := range []string{"lo", "eth0"} {
		l, err := h.nl.LinkByName(dev)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", dev, err)
		}
		if dev == "eth0" {
			h.MAC = l.Attrs().HardwareAddr
		}
		if err := h.nl.LinkSetUp(l); err != nil {
			return nil, fmt.Errorf("%s up: %w", dev, err)
		}
	}
	for _, p := range []string{s.V4, s.V6} {
		if p == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(p)
		if err != nil {
			return nil, err
		}
		if prefix.Addr().Is4() {
			h.V4 = prefix.Addr()
		} else {
			h.V6 = prefix.Addr()
		}
		if err := h.AddAddress("eth0", prefix); err != nil {
			return nil, err
		}
	}
	return h, w.addRouter(cable, h, s)
}

// hostSysctls holds path, value, and whether a kernel may lack it.
var hostSysctls = [][3]string{
	{"net/ipv6/conf/all/disable_ipv6", "0", ""},
	// Addresses are usable at once, not after a second of asking around.
	{"net/ipv6/conf/default/accept_dad", "0", ""},
	{"net/ipv6/conf/eth0/accept_dad", "0", ""},
	{"net/ipv4/conf/all/rp_filter", "0", ""},
	{"net/ipv4/conf/default/rp_filter", "0", ""},
	{"net/ipv4/conf/eth0/rp_filter", "0", ""},
	{"net/ipv4/ip_local_port_range", "10000 65000", ""},
	// A SYN that finds no answer is sent again each second, for minutes:
	// else a dial that the lab holds back for long would show up half a
	// minute after its release (tcp_syn_linear_timeouts: Linux 6.5).
	{"net/ipv4/tcp_syn_linear_timeouts", "127", "may lack"},
	{"net/ipv4/tcp_syn_retries", "127", ""},
}

func (h *Host) makeNamespace() error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with this goroutine
		errc <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			ns, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("own namespace: %w", err)
			}
			h.ns = ns
			h.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
			return err
		}()
	}()
	return <-errc
}

func (h *Host) close() {
	h.nl.Close()
	_ = unix.Close(h.ns)
}

// Do runs f in the host's network namespace. Sockets that f makes stay there.
func (h *Host) Do(f func() error) error { return inNamespace(h.ns, f) }

// Sysctl sets a value below /proc/sys; that of the network belongs to the
// namespace of the thread that writes.
func (h *Host) Sysctl(path, value string) error {
	return h.Do(func() error {
		if err := os.WriteFile("/proc/sys/"+path, []byte(value), 0); err != nil {
			return fmt.Errorf("lab: %s: %w", h.Name, err)
		}
		return nil
	})
}

// AddAddress puts an address on a device of the host, usable at once.
func (h *Host) AddAddress(dev string, p netip.Prefix) error {
	l, err := h.nl.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("lab: %s: %s: %w", h.Name, dev, err)
	}
	a := &netlink.Addr{IPNet: &net.IPNet{
		IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := h.nl.AddrAdd(l, a); err != nil {
		return fmt.Errorf("lab: %s: address %v on %s: %w", h.Name, p, dev, err)
	}
	return nil
}

// HasAddress says whether the device has the address.
func (h *Host) HasAddress(dev string, a netip.Addr) (bool, error) {
	l, err := h.nl.LinkByName(dev)
	if err != nil {
		return false, fmt.Errorf("lab: %s: %s: %w", h.Name, dev, err)
	}
	addrs, err := h.nl.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return false, fmt.Errorf("lab: %s: addresses: %w", h.Name, err)
	}
	for _, x := range addrs {
		if got, ok := netip.AddrFromSlice(x.IP); ok && got.Unmap() == a {
			return true, nil
		}
	}
	return false, nil
}

// RemoveAddress takes an address from a device.
func (h *Host) RemoveAddress(dev string, p netip.Prefix) error {
	l, err := h.nl.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("lab: %s: %s: %w", h.Name, dev, err)
	}
	return h.nl.AddrDel(l, &netlink.Addr{IPNet: &net.IPNet{
		IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}})
}

// Neighbour returns the hardware address that the host's kernel believes a to
// have, nil if it knows none.
func (h *Host) Neighbour(a netip.Addr) (net.HardwareAddr, error) {
	l, err := h.nl.LinkByName("eth0")
	if err != nil {
		return nil, err
	}
	ns, err := h.nl.NeighList(l.Attrs().Index, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("lab: %s: neighbours: %w", h.Name, err)
	}
	for _, n := range ns {
		if got, ok := netip.AddrFromSlice(n.IP); ok && got.Unmap() == a &&
			n.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) == 0 {
			return n.HardwareAddr, nil
		}
	}
	return nil, nil
}

// ForgetNeighbour makes the host ask again for a.
func (h *Host) ForgetNeighbour(a netip.Addr) error {
	l, err := h.nl.LinkByName("eth0")
	if err != nil {
		return err
	}
	ns, err := h.nl.NeighList(l.Attrs().Index, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, n := range ns {
		if got, ok := netip.AddrFromSlice(n.IP); ok && got.Unmap() == a {
			return h.nl.NeighDel(&n)
		}
	}
	return nil
}

// Unplug pulls the host's cable at the bridge: what it sends and what is sent
// to it is dropped, and nobody is told.
func (h *Host) Unplug() error {
	l, err := h.world.nl.LinkByName(h.port)
	if err != nil {
		return fmt.Errorf("lab: cable of %s: %w", h.Name, err)
	}
	return h.world.nl.LinkSetDown(l)
}

// Plug puts the cable in again.
func (h *Host) Plug() error {
	l, err := h.world.nl.LinkByName(h.port)
	if err != nil {
		return fmt.Errorf("lab: cable of %s: %w", h.Name, err)
	}
	return h.world.nl.LinkSetUp(l)
}

// Ask forgets who has a, asks anew, and returns the answer, nil if none comes
// within patience.
func (h *Host) Ask(a netip.Addr, patience time.Duration) (net.HardwareAddr, error) {
	if err := h.ForgetNeighbour(a); err != nil {
		return nil, fmt.Errorf("lab: %s: forget %v: %w", h.Name, a, err)
	}
	err := h.Do(func() error {
		// A datagram to the discard port; what matters is the question
		// that goes before it.
		c, err := net.Dial("udp", netip.AddrPortFrom(a, 9).String())
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_, err = c.Write([]byte{0})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lab: %s: ask for %v: %w", h.Name, a, err)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		mac, err := h.Neighbour(a)
		if err != nil || mac != nil || time.Now().After(deadline) {
			return mac, err
		}
	}
}
