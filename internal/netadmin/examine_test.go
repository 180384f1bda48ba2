package netadmin

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func find(all []Finding, what string) Finding {
	for _, f := range all {
		if strings.HasPrefix(f.What, what) {
			return f
		}
	}
	return Finding{}
}

// Each defect that is planted on a host is found, says what it costs and what
// helps; without it the same probe finds nothing.
func TestExamine(t *testing.T) {
	ns := newNamespace(t, "patient")
	self := netip.MustParseAddr("10.77.0.1")
	var link netlink.Link
	ns.do("device", func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "other"}); err != nil {
			return err
		}
		for _, name := range []string{"lo", "eth0", "other"} {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(l); err != nil {
				return err
			}
		}
		var err error
		if link, err = netlink.LinkByName("eth0"); err != nil {
			return err
		}
		return netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: self.AsSlice(), Mask: net.CIDRMask(24, 32)}})
	})
	x := Examination{Device: "eth0", Self: self, Socket: t.TempDir() + "/none", FirstPort: 40000, LastPort: 49999}
	examine := func() (all []Finding) {
		ns.do("examine", func() error { all = Examine(x); return nil })
		return all
	}
	for _, f := range examine() {
		if f.Verdict == Missing || f.Verdict == Costs && f.What != "descriptors" && f.What != "clock" {
			t.Errorf("healthy: %+v", f)
		}
	}
	sysctl := func(path, v string) func() error {
		return func() error { return writeSysctl(path, v) }
	}
	for _, c := range []struct {
		name       string
		what       string
		verdict    Verdict
		says       string
		make, undo func() error
	}{
		{"strict", "reverse path filter", Costs, "strict", sysctl("net/ipv4/conf/eth0/rp_filter", "1"), sysctl("net/ipv4/conf/eth0/rp_filter", "0")},
		{"loose for all", "reverse path filter", Good, "not strict", func() error {
			return errors.Join(writeSysctl("net/ipv4/conf/eth0/rp_filter", "1"), writeSysctl("net/ipv4/conf/all/rp_filter", "2"))
		}, func() error {
			return errors.Join(writeSysctl("net/ipv4/conf/eth0/rp_filter", "0"), writeSysctl("net/ipv4/conf/all/rp_filter", "0"))
		}},
		{"silent", "ARP", Costs, "conf.eth0.arp_ignore is 2", sysctl("net/ipv4/conf/eth0/arp_ignore", "2"), sysctl("net/ipv4/conf/eth0/arp_ignore", "0")},
		{"answers for others", "ARP", Costs, "conf.eth0.proxy_arp is 1", sysctl("net/ipv4/conf/eth0/proxy_arp", "1"), sysctl("net/ipv4/conf/eth0/proxy_arp", "0")},
		{"ports", "source ports", Costs, "not all in", sysctl("net/ipv4/ip_local_port_range", "10000 45000"), sysctl("net/ipv4/ip_local_port_range", "10000 65000")},
		{"ports elsewhere", "source ports", Missing, "lie outside of", sysctl("net/ipv4/ip_local_port_range", "61000 65000"), sysctl("net/ipv4/ip_local_port_range", "10000 65000")},
		{"bridged", "device eth0", Missing, "belongs to br0", func() error {
			br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
			if err := netlink.LinkAdd(br); err != nil {
				return err
			}
			return netlink.LinkSetMaster(link, br)
		}, func() error {
			if err := netlink.LinkSetNoMaster(link); err != nil {
				return err
			}
			return netlink.LinkDel(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}})
		}},
		{"leased", "address 10.77.0.1", Costs, "is on lease", func() error {
			return netlink.AddrReplace(link, &netlink.Addr{IPNet: &net.IPNet{IP: self.AsSlice(), Mask: net.CIDRMask(24, 32)}, ValidLft: 900, PreferedLft: 900})
		}, func() error {
			if err := netlink.AddrDel(link, &netlink.Addr{IPNet: &net.IPNet{IP: self.AsSlice(), Mask: net.CIDRMask(24, 32)}}); err != nil {
				return err
			}
			return netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: self.AsSlice(), Mask: net.CIDRMask(24, 32)}})
		}},
		{"narrow way", "MTU to n2", Costs, "1300, and 1500", func() error {
			x.Peers = map[string]netip.AddrPort{"n2": netip.MustParseAddrPort("10.77.0.2:7443")}
			return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: netlink.NewIPNet(net.IPv4(10, 77, 0, 2)), MTU: 1300, Scope: unix.RT_SCOPE_LINK})
		}, func() error {
			return netlink.RouteDel(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: netlink.NewIPNet(net.IPv4(10, 77, 0, 2)), Scope: unix.RT_SCOPE_LINK})
		}},
		{"silent peer", "peer n2", Costs, "10.77.0.2:7443", func() error {
			x.Peers = map[string]netip.AddrPort{"n2": netip.MustParseAddrPort("10.77.0.2:7443")}
			return nil
		}, func() error { x.Peers = nil; return nil }},
		{"exempt", "connection tracking", Costs, "there is a notrack rule", func() error { return errors.Join(track(true), exempt()) }, func() error { return track(false) }},
		{"tracked", "connection tracking", Costs, "(chain strange in)", func() error { return track(true) }, func() error { return track(false) }},
		{"another address", "address 10.77.0.9", Costs, "is not on the device", func() error { x.Self = netip.MustParseAddr("10.77.0.9"); return nil }, func() error { x.Self = self; return nil }},
	} {
		ns.do(c.name, c.make)
		f := find(examine(), c.what)
		if f.Verdict != c.verdict || !strings.Contains(f.Says, c.says) || (f.Cost == "" || f.Fix == "") != (c.verdict == Good) {
			t.Errorf("%s: %+v", c.name, f)
		}
		ns.do(c.name, c.undo)
	}
	for kind, l := range map[string]netlink.Link{
		"macvlan": &netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "p0", ParentIndex: link.Attrs().Index}, Mode: netlink.MACVLAN_MODE_BRIDGE},
		"bridge":  &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "p0"}},
	} {
		ns.do(kind, func() error { return errors.Join(netlink.LinkAdd(l), netlink.LinkSetUp(l)) })
		x.Device = "p0"
		if f := find(examine(), "device p0"); f.Verdict != Costs || !strings.Contains(strings.ToLower(f.Says), kind) {
			t.Errorf("%s: %+v", kind, f)
		}
		ns.do(kind, func() error { return netlink.LinkDel(l) })
	}
	// Kinds that not every kernel has.
	own := netlink.LinkAttrs{Name: "p0", HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	if f := find(device(&netlink.Vlan{LinkAttrs: own}), "device p0"); f.Verdict != Good || !strings.Contains(f.Says, "VLAN") {
		t.Errorf("VLAN: %+v", f)
	}
	if f := find(device(netlink.NewLinkBond(own)), "device p0"); f.Verdict != Costs || !strings.Contains(f.Says, "bond") {
		t.Errorf("bond: %+v", f)
	}
	x.Peers = nil
	x.Device = "eth7"
	if f := find(examine(), "device eth7"); f.Verdict != Missing {
		t.Errorf("no device: %+v", f)
	}
}

// track makes a rule that asks for the state of connections, or removes it.
func track(on bool) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "strange"}
	if !on {
		c.DelTable(table)
		return c.Flush()
	}
	chain := c.AddChain(&nftables.Chain{Table: c.AddTable(table), Name: "in", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Ct{Register: 1, Key: expr.CtKeySTATE}}})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("rule: %w", err)
	}
	return nil
}

// exempt adds a notrack rule to the table of track.
func exempt() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "strange"}
	chain := c.AddChain(&nftables.Chain{Table: table, Name: "raw", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Notrack{}}})
	return c.Flush()
}

// A peer behind a link that swallows full segments is told from one that takes them,
// and from one that says nothing.
func TestExaminePaths(t *testing.T) {
	eachFamily(t, testExaminePaths)
}

func testExaminePaths(t *testing.T, fam int) {
	a, b := newNamespace(t, "a"), newNamespace(t, "b")
	at := [][]netip.Addr{
		{netip.MustParseAddr("10.78.0.1"), netip.MustParseAddr("10.78.0.2"), netip.MustParseAddr("10.78.0.9")},
		{netip.MustParseAddr("fd78::1"), netip.MustParseAddr("fd78::2"), netip.MustParseAddr("fd78::9")},
	}[fam]
	up := func(name string, addr netip.Addr, mtu int) error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen()/2, addr.BitLen())}, Flags: unix.IFA_F_NODAD}), netlink.LinkSetMTU(l, mtu), netlink.LinkSetUp(l))
	}
	for _, n := range []*namespace{a, b} {
		n.do("lo", func() error {
			l, err := netlink.LinkByName("lo")
			return errors.Join(err, netlink.LinkSetUp(l))
		})
	}
	var link netlink.Link
	a.do("devices", func() (err error) {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth1", PeerNamespace: netlink.NsFd(b.file.Fd())}); err != nil {
			return err
		}
		if err := up("eth0", at[0], 1500); err != nil {
			return err
		}
		link, err = netlink.LinkByName("eth0")
		return err
	})
	x := Examination{Device: "eth0", Self: at[0], Peers: map[string]netip.AddrPort{"n2": netip.AddrPortFrom(at[1], 7443)}}
	for _, c := range []struct {
		mtu     int
		verdict Verdict
		says    string
	}{{1500, Good, "1500 octets arrive"}, {1400, Costs, "1500 octets, the MTU of eth0, does not arrive"}} {
		b.do("device", func() error {
			if c.mtu == 1500 {
				return up("eth1", at[1], c.mtu)
			}
			l, err := netlink.LinkByName("eth1")
			return errors.Join(err, netlink.LinkSetMTU(l, c.mtu))
		})
		var f Finding
		for range 20 { // a device that has just come up takes a second to send
			if a.do("paths", func() error { f = find(x.paths(link), "MTU to n2"); return nil }); f.Verdict != Unknown {
				break
			}
		}
		if f.Verdict != c.verdict || !strings.Contains(f.Says, c.says) {
			t.Errorf("MTU %d there: %+v", c.mtu, f)
		}
	}
	x.Peers["n2"] = netip.AddrPortFrom(at[2], 7443) // nobody
	var f Finding
	a.do("paths", func() error { f = find(x.paths(link), "MTU to n2"); return nil })
	if f.Verdict != Unknown {
		t.Errorf("nobody: %+v", f)
	}
}
