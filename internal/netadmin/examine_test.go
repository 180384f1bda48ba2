package netadmin

import (
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
		{"ports", "source ports", Costs, "not all in", sysctl("net/ipv4/ip_local_port_range", "10000 45000"), sysctl("net/ipv4/ip_local_port_range", "10000 65000")},
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
		{"narrow", "MTU", Costs, "1300 to n2", func() error {
			x.Peers = map[string]netip.AddrPort{"n2": netip.MustParseAddrPort("10.77.0.2:7443")}
			return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: netlink.NewIPNet(net.IPv4(10, 77, 0, 2)), MTU: 1300, Scope: unix.RT_SCOPE_LINK})
		}, func() error {
			return netlink.RouteDel(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: netlink.NewIPNet(net.IPv4(10, 77, 0, 2)), Scope: unix.RT_SCOPE_LINK})
		}},
		{"silent peer", "peer n2", Costs, "10.77.0.2:7443", func() error {
			x.Peers = map[string]netip.AddrPort{"n2": netip.MustParseAddrPort("10.77.0.2:7443")}
			return nil
		}, func() error { x.Peers = nil; return nil }},
		{"tracked", "connection tracking", Costs, "(chain strange in)", func() error { return track(true) }, func() error { return track(false) }},
		{"another address", "address 10.77.0.9", Costs, "is not on the device", func() error { x.Self = netip.MustParseAddr("10.77.0.9"); return nil }, func() error { x.Self = self; return nil }},
	} {
		ns.do(c.name, c.make)
		f := find(examine(), c.what)
		if f.Verdict != c.verdict || !strings.Contains(f.Says, c.says) || f.Cost == "" || f.Fix == "" {
			t.Errorf("%s: %+v", c.name, f)
		}
		ns.do(c.name, c.undo)
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
