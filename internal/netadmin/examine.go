package netadmin

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/holdfast-lb/holdfast/tcprepair"
)

// Verdict is how something on this host is for moves between hosts.
type Verdict string

// The verdicts. Unknown: it cannot be found out from here.
const (
	Good    Verdict = "ok"
	Costs   Verdict = "warning"
	Missing Verdict = "missing"
	Unknown Verdict = "unknown"
)

// Finding is one thing that was looked at.
type Finding struct {
	What    string  `json:"what"`
	Verdict Verdict `json:"verdict"`
	Says    string  `json:"says"`
	// Cost is what it means, Fix what helps; "" if it is Good.
	Cost string `json:"cost,omitempty"`
	Fix  string `json:"fix,omitempty"`
}

// Examination is what is looked at.
type Examination struct {
	Device string
	// Self is where peers reach this node; Peers are the others, by name.
	Self  netip.Addr
	Peers map[string]netip.AddrPort
	// Socket is that of the privileged process.
	Socket string
	Tunnel *Tunnel
	// FirstPort to LastPort are those from which this node alone dials.
	FirstPort, LastPort uint16
}

// Examine probes whether this host can take part in moves between hosts. What it
// sets up for that it takes away again.
func Examine(x Examination) (all []Finding) {
	add := func(f ...Finding) { all = append(all, f...) }
	may, err := Privileged()
	client, derr := Dial(x.Socket)
	if derr == nil {
		defer func() { _ = client.Close() }()
	}
	switch {
	case derr == nil:
		add(Finding{What: "privileged process", Verdict: Good, Says: fmt.Sprintf("process %d answers at %s", client.PID(), x.Socket)})
	case may:
		add(Finding{What: "privileged process", Verdict: Good, Says: "none answers at " + x.Socket + "; run starts one, for it has CAP_NET_ADMIN"})
	default:
		add(Finding{What: "privileged process", Verdict: Missing, Says: derr.Error(), Cost: "everything works but moves to other hosts; run refuses a cluster section",
			Fix: "holdfast netadmin -c FILE as root, or packaging/holdfast-netadmin.service"})
	}
	add(repairs(may, err, derr == nil))
	add(x.rules(may))
	link, err := netlink.LinkByName(x.Device)
	if err != nil {
		return append(all, Finding{What: "device " + x.Device, Verdict: Missing, Says: err.Error(), Cost: "nothing can move", Fix: "nodes.NAME.device"})
	}
	add(device(link)...)
	add(x.addresses(link)...)
	add(reversePath(x.Device), answering(x.Device), tracking(), offloads(x.Device), x.sourcePorts(), descriptorsLimit(), clock(), spoofing())
	add(x.paths(link)...)
	add(x.peers()...)
	return all
}

func repairs(may bool, err error, served bool) Finding {
	f := Finding{What: "TCP_REPAIR", Verdict: Good, Says: "sockets can be put down and picked up"}
	switch {
	case err != nil:
		return Finding{What: f.What, Verdict: Unknown, Says: err.Error()}
	case !may && served:
		f.Says = "the privileged process has it"
	case !may:
		return Finding{What: f.What, Verdict: Missing, Says: "needs CAP_NET_ADMIN", Cost: "everything works but migrate", Fix: "see above"}
	default:
		if err := tcprepair.Probe(); err != nil {
			return Finding{What: f.What, Verdict: Missing, Says: err.Error(), Cost: "everything works but migrate", Fix: "a kernel with CONFIG_CHECKPOINT_RESTORE, and CAP_NET_ADMIN in this network namespace"}
		}
	}
	return f
}

// rules makes all tables and devices once, under other names.
func (x *Examination) rules(may bool) Finding {
	f := Finding{What: "nf_tables, TAP", Verdict: Good, Says: "tables, sets, dup, dynamic sets with timeouts, hooks at ingress and egress: all can be made"}
	if !may {
		return Finding{What: f.What, Verdict: Unknown, Says: "can be tried with CAP_NET_ADMIN alone", Fix: "run doctor as root"}
	}
	a, err := Open(Config{Device: x.Device, Table: "hf-doctor", HoldDevice: "hf-doctor", ResolveTimeout: 100 * time.Millisecond})
	if err == nil {
		err = a.Close()
	}
	if err != nil {
		return Finding{What: f.What, Verdict: Missing, Says: err.Error(), Cost: "no flow and no address can move", Fix: "the kernel's modules nf_tables, nft_dup_netdev, nft_ct and tun; Linux 5.16 or later"}
	}
	return f
}

func device(link netlink.Link) (all []Finding) {
	name := "device " + link.Attrs().Name
	if len(link.Attrs().HardwareAddr) != 6 {
		all = append(all, Finding{What: name, Verdict: Missing, Says: "is not an Ethernet", Cost: "segments cannot be sent on to another host", Fix: "nodes.NAME.device: the device of the VIPs; between networks cluster.tunnel"})
	}
	if master := link.Attrs().MasterIndex; master != 0 {
		of := strconv.Itoa(master)
		if m, err := netlink.LinkByIndex(master); err == nil {
			of = m.Attrs().Name
		}
		all = append(all, Finding{What: name, Verdict: Missing, Says: "belongs to " + of, Cost: "addresses and neighbours are those of " + of + ", so nothing that is held or announced here has an effect", Fix: "nodes.NAME.device: " + of})
	}
	switch kind := link.Type(); kind {
	case "bond":
		all = append(all, Finding{What: name, Verdict: Costs, Says: "is a bond", Cost: "in the modes balance-alb and balance-tlb a switch may see an address at another port than was announced; not tried", Fix: "active-backup or 802.3ad"})
	case "bridge":
		all = append(all, Finding{What: name, Verdict: Costs, Says: "is a bridge", Cost: "segments between its ports do not pass the hook of the bridge itself: clients on the same bridge are not held while their flow moves", Fix: "clients beyond its uplink"})
	case "vlan":
		all = append(all, Finding{What: name, Verdict: Good, Says: "is a VLAN; its segments are seen without their tag"})
	case "macvlan", "ipvlan":
		all = append(all, Finding{What: name, Verdict: Costs, Says: "is a " + kind, Cost: "it does not see its parent's segments, and some parents accept no address that they did not give", Fix: "the parent device"})
	default:
		if len(all) == 0 {
			all = append(all, Finding{What: name, Verdict: Good, Says: fmt.Sprintf("is an Ethernet (%s), MTU %d", kind, link.Attrs().MTU)})
		}
	}
	return all
}

func (x *Examination) addresses(link netlink.Link) (all []Finding) {
	list, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return []Finding{{What: "addresses", Verdict: Unknown, Says: err.Error()}}
	}
	found := false
	for _, a := range list {
		ip, _ := netip.AddrFromSlice(a.IP)
		if ip = ip.Unmap(); ip == x.Self {
			found = true
		}
		if a.Flags&unix.IFA_F_PERMANENT == 0 && ip.IsGlobalUnicast() && a.Flags&unix.IFA_F_TEMPORARY == 0 && ip == x.Self {
			all = append(all, Finding{What: "address " + ip.String(), Verdict: Costs, Says: fmt.Sprintf("is on lease for %d s (DHCP or a router's)", a.ValidLft), Cost: "if it changes, peers do not find this node", Fix: "a fixed address, or a reservation"})
		}
	}
	if !found {
		all = append(all, Finding{What: "address " + x.Self.String(), Verdict: Costs, Says: "is not on the device " + link.Attrs().Name, Cost: "segments that are sent on take another way than the VIPs", Fix: "nodes.NAME.address: one of the device's own"})
	}
	if len(all) == 0 {
		all = append(all, Finding{What: "address " + x.Self.String(), Verdict: Good, Says: "is the device's own, and permanent"})
	}
	return all
}

// reversePath: netadmin makes it loose where it has to, while it runs. The kernel
// takes the greater of the two values (Documentation/networking/ip-sysctl.rst).
func reversePath(dev string) Finding {
	f := Finding{What: "reverse path filter", Verdict: Good, Says: "not strict"}
	v, from, err := greater(dev, "rp_filter")
	switch {
	case err != nil:
		return Finding{What: f.What, Verdict: Unknown, Says: err.Error()}
	case v == 1:
		return Finding{What: f.What, Verdict: Costs, Says: from + " is 1 (strict)", Cost: "segments that are held or sent on would be dropped; the privileged process makes it loose (2) while it runs, whatever sets it back then breaks moves",
			Fix: from + " = 2 in /etc/sysctl.d"}
	}
	return f
}

// greater reads a sysctl of IPv4 for which the kernel takes the greater of that of all
// devices and that of one.
func greater(dev, name string) (v int, from string, err error) {
	for _, d := range []string{"all", dev} {
		text, err := readSysctl("net/ipv4/conf/" + d + "/" + name)
		if err != nil {
			return 0, "", err
		}
		n, err := strconv.Atoi(text)
		if err != nil {
			return 0, "", fmt.Errorf("netadmin: sysctl %s of %s: %w", name, d, err)
		}
		if n >= v {
			v, from = n, "net.ipv4.conf."+d+"."+name
		}
	}
	return v, from, nil
}

// answering looks at whom the kernel tells which addresses are here.
func answering(dev string) Finding {
	f := Finding{What: "ARP", Verdict: Good, Says: "the kernel answers for the addresses of " + dev + "; forwarding is not needed, and does no harm"}
	ignore, from, err := greater(dev, "arp_ignore")
	if err != nil {
		return Finding{What: f.What, Verdict: Unknown, Says: err.Error()}
	}
	if ignore > 1 {
		return Finding{What: f.What, Verdict: Costs, Says: fmt.Sprintf("%s is %d", from, ignore), Cost: "the kernel does not answer for every address of the device to everybody: a VIP that comes may be silent once caches forget what was announced", Fix: from + " = 0 or 1"}
	}
	proxy, from, err := greater(dev, "proxy_arp")
	if err == nil && proxy != 0 {
		return Finding{What: f.What, Verdict: Costs, Says: from + " is 1", Cost: "this host answers for addresses of others; for VIPs the fence forbids it, but only while its rules are there", Fix: from + " = 0"}
	}
	return f
}

// tracking looks for connections that conntrack follows: then a moved flow is a
// strange one to the rules of the new host.
func tracking() Finding {
	f := Finding{What: "connection tracking", Verdict: Good, Says: "follows no connection here"}
	count, err := readSysctl("net/netfilter/nf_conntrack_count")
	if err != nil {
		f.Says = "not in this kernel, or not loaded"
		return f
	}
	uses, exempt := trackers()
	switch {
	case count == "0" && len(uses) == 0:
		return f
	case exempt:
		return Finding{What: f.What, Verdict: Costs, Says: fmt.Sprintf("follows %s connections; there is a notrack rule", count), Cost: "what it does not exempt is a strange connection on the host that it moves to: rules for the states new or invalid may drop it", Fix: "notrack for the VIPs, in both directions"}
	}
	return Finding{What: f.What, Verdict: Costs, Says: fmt.Sprintf("follows %s connections %s", count, strings.Join(uses, ", ")), Cost: "a moved flow is a strange connection on its new host: rules for the states new or invalid may drop it, NAT does not move at all",
		Fix: "notrack for the VIPs: nft add rule ip raw prerouting ip daddr VIP notrack, and output ip saddr VIP notrack"}
}

// trackers names the chains whose rules ask for the state of a connection, or translate
// addresses, and tells whether some are exempt.
func trackers() (uses []string, exempt bool) {
	c, err := nftables.New()
	if err != nil {
		return nil, false
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, false
	}
	for _, chain := range chains {
		rules, err := c.GetRules(chain.Table, chain)
		if err != nil {
			continue
		}
		used := chain.Type == nftables.ChainTypeNAT
		for _, r := range rules {
			for _, e := range r.Exprs {
				switch e.(type) {
				case *expr.Ct:
					used = true
				case *expr.Notrack:
					exempt = true
				}
			}
		}
		if used {
			uses = append(uses, "(chain "+chain.Table.Name+" "+chain.Name+")")
		}
	}
	return uses, exempt
}

// offloads: ETHTOOL_GFLAGS (include/uapi/linux/ethtool.h).
func offloads(dev string) Finding {
	f := Finding{What: "large receive offload", Verdict: Good, Says: "off; generic receive offload does no harm"}
	const gflags, lro = 0x25, 1 << 15
	value := [2]uint32{gflags, 0}
	var req struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(req.name[:unix.IFNAMSIZ-1], dev)
	req.data = unsafe.Pointer(&value)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Finding{What: f.What, Verdict: Unknown, Says: err.Error()}
	}
	defer func() { _ = unix.Close(fd) }()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return Finding{What: f.What, Verdict: Unknown, Says: "the device does not tell: " + errno.Error()}
	}
	if value[1]&lro != 0 {
		return Finding{What: f.What, Verdict: Costs, Says: "on", Cost: "makes packets that cannot be sent on to another host: they are lost, and repeated", Fix: "ethtool -K " + dev + " lro off"}
	}
	return f
}

// names gives those of the peers in order.
func (x *Examination) names() []string { return slices.Sorted(maps.Keys(x.Peers)) }

// paths sends datagrams of the device's size to the peers.
func (x *Examination) paths(link netlink.Link) (all []Finding) {
	for _, name := range x.names() {
		f := Finding{What: "MTU to " + name}
		device := link.Attrs().MTU
		mtu, small, full, err := pathMTU(x.Peers[name].Addr(), device)
		switch {
		case err != nil:
			f.Verdict, f.Says = Unknown, err.Error()
		case mtu < device || small && !full:
			f.Verdict, f.Says = Costs, fmt.Sprintf("%d, and %d at %s", mtu, device, link.Attrs().Name)
			if mtu >= device {
				f.Says = fmt.Sprintf("a datagram of %d octets, the MTU of %s, does not arrive; a small one does", device, link.Attrs().Name)
			}
			f.Cost, f.Fix = "full segments of clients are lost on their way to that node while flows move", "one MTU on all hosts and between them"
		case !small:
			f.Verdict, f.Says = Unknown, fmt.Sprintf("%d as far as is known here; that host answers no datagram to a closed port, so it was not tried", mtu)
		default:
			f.Verdict, f.Says = Good, fmt.Sprintf("%d octets arrive", device)
		}
		all = append(all, f)
	}
	return all
}

// pathMTU gives what the kernel knows of the path's MTU once datagrams have been sent
// that may not be fragmented: to the discard port (RFC 863), of one octet and of the
// device's size. Where that port is closed each is answered by "port unreachable"
// (RFC 1122, section 4.1.3.1), so that one knows which arrived.
func pathMTU(to netip.Addr, device int) (mtu int, small, full bool, err error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
	if err != nil {
		return 0, false, false, err
	}
	defer func() { _ = c.Close() }()
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, false, false, err
	}
	// Of headers: 20 or 40 octets of IP, 8 of UDP.
	level, discover, do, get, head := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO, unix.IP_MTU, 28
	if to.Is6() {
		level, discover, do, get, head = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO, unix.IPV6_MTU, 48
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), level, discover, do) }); err != nil || failed != nil {
		return 0, false, false, errors.Join(err, failed)
	}
	arrives := func(size int) bool {
		for range 3 { // it, or its answer, may be lost
			if _, err := c.Write(make([]byte, size)); err != nil {
				return errors.Is(err, unix.ECONNREFUSED)
			}
			if err := c.SetReadDeadline(time.Now().Add(answerTime)); err != nil {
				return false
			}
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, unix.ECONNREFUSED) {
				return true
			}
		}
		return false
	}
	small = arrives(1)
	if full = arrives(max(1, device-head)); !full {
		small = arrives(1) // or it says no more, for it may say so once a second (icmp(7), icmp_ratelimit)
	}
	if err := raw.Control(func(fd uintptr) { mtu, failed = unix.GetsockoptInt(int(fd), level, get) }); err != nil || failed != nil {
		return 0, false, false, errors.Join(err, failed)
	}
	return mtu, small, full, nil
}

// answerTime is how long a peer may take to say that a port is closed.
const answerTime = 400 * time.Millisecond

func (x *Examination) sourcePorts() Finding {
	f := Finding{What: "source ports", Verdict: Good, Says: "no program that asks for any port gets one of this node's"}
	v, err := readSysctl("net/ipv4/ip_local_port_range")
	low, high := 0, 0
	if err == nil {
		_, err = fmt.Sscan(v, &low, &high)
	}
	switch {
	case err != nil:
		return Finding{What: f.What, Verdict: Unknown, Says: err.Error()}
	case int(x.LastPort) < low || int(x.FirstPort) > high: // IP_LOCAL_PORT_RANGE is without effect then
		return Finding{What: f.What, Verdict: Missing, Says: fmt.Sprintf("%d-%d lie outside of net.ipv4.ip_local_port_range, %d-%d", x.FirstPort, x.LastPort, low, high), Cost: "the kernel dials from other ports, those of other nodes among them: such connections to servers time out",
			Fix: "net.ipv4.ip_local_port_range, or nodes.NAME.sourcePorts"}
	case int(x.FirstPort) < low || int(x.LastPort) > high:
		return Finding{What: f.What, Verdict: Costs, Says: fmt.Sprintf("%d-%d are not all in net.ipv4.ip_local_port_range, %d-%d", x.FirstPort, x.LastPort, low, high), Cost: "the kernel gives those outside of it to nobody, so that fewer connections to a server are possible",
			Fix: "net.ipv4.ip_local_port_range, or nodes.NAME.sourcePorts"}
	}
	f.Says = fmt.Sprintf("%d-%d, within net.ipv4.ip_local_port_range", x.FirstPort, x.LastPort)
	return f
}

func descriptorsLimit() Finding {
	f := Finding{What: "descriptors", Verdict: Good}
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return Finding{What: f.What, Verdict: Unknown, Says: err.Error()}
	}
	f.Says = fmt.Sprintf("%d: flows of other nodes may come beside its own, each takes two", l.Max)
	if l.Max < 65536 {
		f.Verdict, f.Cost, f.Fix = Costs, "a node that is evacuated to this one brings at most half as many flows", "LimitNOFILE in the unit"
	}
	return f
}

// clock: times of logs and certificates; no move depends on it.
func clock() Finding {
	f := Finding{What: "clock", Verdict: Good, Says: "is synchronized"}
	var t unix.Timex
	if state, err := unix.Adjtimex(&t); err != nil {
		return Finding{What: f.What, Verdict: Unknown, Says: err.Error()}
	} else if state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0 {
		return Finding{What: f.What, Verdict: Costs, Says: "is not synchronized, as far as the kernel knows", Cost: "logs of two hosts do not fit together, and certificates may seem invalid; no move depends on it", Fix: "chrony or systemd-timesyncd"}
	}
	return f
}

// spoofing cannot be probed: it is the network that would drop.
func spoofing() Finding {
	f := Finding{What: "port security, anti-spoofing", Verdict: Unknown, Says: "only the network knows whether it lets two hosts speak for one address", Cost: "if it does not, a moved address is silent", Fix: "allow the VIPs at the ports of all nodes; then `holdfast migrate` one that nobody uses"}
	vendor, _ := os.ReadFile(filepath.Join("/sys/class/dmi/id", "sys_vendor"))
	for _, cloud := range []string{"Amazon EC2", "Google", "Microsoft Corporation", "Alibaba Cloud", "DigitalOcean", "Hetzner"} {
		if bytes.Contains(vendor, []byte(cloud)) {
			return Finding{What: f.What, Verdict: Costs, Says: "this is a machine of " + cloud, Cost: "clouds bring an address to the host that it is assigned to, whatever is announced", Fix: "announce: route with the cloud's own routes, or a network of one's own between the hosts"}
		}
	}
	return f
}

func (x *Examination) peers() (all []Finding) {
	for _, name := range x.names() {
		at := x.Peers[name]
		f := Finding{What: "peer " + name, Verdict: Good, Says: "answers at " + at.String()}
		c, err := net.DialTimeout("tcp", at.String(), time.Second)
		if err != nil {
			f = Finding{What: f.What, Verdict: Costs, Says: err.Error(), Cost: "nothing moves to it or from it", Fix: "is it running, and does a firewall let " + at.String() + " pass?"}
		} else {
			_ = c.Close()
		}
		all = append(all, f)
	}
	return all
}
