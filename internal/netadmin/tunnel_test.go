package netadmin

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// routedLab is a, b and a client, each alone on an Ethernet with a router.
type routedLab struct {
	*lab
	router *host
}

func newRoutedLab(t *testing.T) *routedLab {
	t.Helper()
	l := &routedLab{lab: &lab{t: t}, router: &host{namespace: newNamespace(t, "router")}}
	l.router.do("forwarding", func() error {
		for _, s := range []string{"ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1"} {
			if err := setProc(s); err != nil {
				return err
			}
		}
		return nil
	})
	for i, h := range []**host{&l.a, &l.b, &l.client} {
		n := 1 + i
		*h = &host{namespace: newNamespace(t, []string{"a", "b", "client"}[i]), addr: [2]netip.Addr{
			netip.MustParseAddr(fmt.Sprintf("10.%d.0.2", n)), netip.MustParseAddr(fmt.Sprintf("fd00:%d::2", n))}}
		gw := [2]netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.%d.0.1", n)), netip.MustParseAddr(fmt.Sprintf("fd00:%d::1", n))}
		dev := fmt.Sprintf("eth%d", i)
		l.router.do("veth", func() error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: dev}, PeerName: "eth0", PeerNamespace: netlink.NsFd((*h).file.Fd())})
		})
		for _, x := range []struct {
			h    *host
			dev  string
			addr [2]netip.Addr
		}{{l.router, dev, gw}, {*h, "eth0", (*h).addr}} {
			x.h.do("addresses", func() error {
				for _, d := range []string{"lo", x.dev} {
					link, err := netlink.LinkByName(d)
					if err != nil {
						return err
					}
					if err := setProc("ipv6/conf/" + d + "/accept_dad=0"); err != nil {
						return err
					}
					if err := netlink.LinkSetUp(link); err != nil {
						return err
					}
				}
				for _, ip := range x.addr {
					if err := addAddr(x.dev, ip, false); err != nil {
						return err
					}
				}
				return nil
			})
		}
		(*h).do("default routes", func() error {
			for _, ip := range gw {
				if err := netlink.RouteAdd(&netlink.Route{Gw: ip.AsSlice()}); err != nil {
					return err
				}
			}
			return nil
		})
		(*h).do("reset counter", (*h).countResets)
	}
	return l
}

// route makes the router send what is for addr to a host, as a routing daemon
// would have it.
func (l *routedLab) route(addr netip.Addr, to *host) {
	l.t.Helper()
	l.router.do("route", func() error {
		return netlink.RouteReplace(&netlink.Route{Gw: to.addr[familyOfAddr(addr)].AsSlice(),
			Dst: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}})
	})
}

// Hosts on different networks: a live flow goes to B while the route still
// leads to A, by the tunnel; then the address follows by the route.
func TestTunnel(t *testing.T) {
	for _, under := range []int{0, 1} {
		t.Run([]string{"over ipv4", "over ipv6"}[under], func(t *testing.T) {
			eachFamily(t, func(t *testing.T, fam int) {
				l := newRoutedLab(t)
				var admins [2]*Admin
				v := netip.MustParseAddr([]string{"192.0.2.10", "2001:db8::10"}[fam])
				p := netip.PrefixFrom(v, v.BitLen())
				for i, h := range []*host{l.a, l.b} {
					if under == 1 {
						// The tunnel takes 70 octets, which routers do not fragment.
						h.do("mtu", func() error {
							link, err := netlink.LinkByName("eth0")
							if err != nil {
								return err
							}
							return netlink.LinkSetMTU(link, 1600)
						})
						l.router.do("mtu", func() error {
							link, err := netlink.LinkByName(fmt.Sprintf("eth%d", i))
							if err != nil {
								return err
							}
							return netlink.LinkSetMTU(link, 1600)
						})
					}
					admins[i] = h.open(Config{Tunnel: &Tunnel{Local: h.addr[under], ID: 77, Port: 4790}})
					must(t, "Fence", admins[i].Fence([]netip.Prefix{p}))
					must(t, "Routed", admins[i].Routed([]netip.Addr{v}))
					h.greeter(v, 443)
				}
				aa, ba := admins[0], admins[1]
				l.route(v, l.a)
				must(t, "Own", aa.Own(p, long))
				must(t, "Forward on b", ba.Forward(v, l.a.addr[under]))
				must(t, "Guest on b", ba.Guest(v, long))
				s := connect(t, l.a, v, l.client, l.client.addr[fam], true)
				m := &tunnelMover{mover{t: t, stream: s}}
				for range 2 {
					s.pump(20*time.Millisecond, 20000)
					m.move(l.a, l.b, aa, ba, under, func() { s.write(false, 20000) })
					s.pump(20*time.Millisecond, 20000)
					m.move(l.b, l.a, ba, aa, under, func() { s.write(false, 20000) })
				}
				m.move(l.a, l.b, aa, ba, under, nil)
				must(t, "Lead", aa.Lead(v, l.b.addr[under]))
				if got := whoAnswers(t, l.client.dial(v, 443)); got != "b" {
					t.Errorf("a client was led to %s", got)
				}
				must(t, "Forward", aa.Forward(v, l.b.addr[under]))
				must(t, "Guest", aa.Guest(v, long))
				must(t, "Disown", aa.Disown(v))
				must(t, "Forward on b ends", ba.Forward(v, netip.Addr{}))
				must(t, "Own", ba.Own(p, long))
				s.pump(20*time.Millisecond, 20000)
				for _, h := range []*host{l.client, l.a} {
					if got := whoAnswers(t, h.dial(v, 443)); got != "b" {
						t.Errorf("a client on %s reached %s", h.name, got)
					}
				}
				if c := l.a.counters(aa); c.Diverted == 0 || c.Looped != 0 {
					t.Errorf("counters %+v", c)
				}
				l.route(v, l.b)
				must(t, "Forget", aa.Forget(v))
				must(t, "Guest ends", aa.Guest(v, 0))
				s.pump(20*time.Millisecond, 20000)
				s.finish(true, true)
				for _, h := range []*host{l.a, l.b, l.client} {
					if n := h.resets(); n != 0 {
						t.Errorf("host %s: %d resets", h.name, n)
					}
				}
			})
		})
	}
}

// tunnelMover names the peer by the address of the tunnel's family.
type tunnelMover struct{ mover }

func (m *tunnelMover) move(from, to *host, fromAdmin, toAdmin *Admin, under int, during func()) {
	fake := &host{namespace: to.namespace, addr: [2]netip.Addr{to.addr[under], to.addr[under]}}
	m.mover.move(from, fake, fromAdmin, toAdmin, during)
}

func TestTunnelRefuses(t *testing.T) {
	l := newRoutedLab(t)
	a := l.a.open(Config{})
	if err := a.Divert(manyTuples(0, 1), l.b.addr[0]); err == nil {
		t.Error("diverted beyond a router without a tunnel")
	}
	l.a.do("Close", a.Close)
	for _, tun := range []Tunnel{{}, {Local: l.a.addr[0], ID: 1 << 24, Port: 1}, {Local: l.a.addr[0]}} {
		l.a.do("Open", func() error {
			x, err := Open(Config{Device: "eth0", Tunnel: &tun})
			if err == nil {
				_ = x.Close()
				return fmt.Errorf("%+v was taken", tun)
			}
			return nil
		})
	}
	a = l.a.open(Config{Tunnel: &Tunnel{Local: l.a.addr[0], ID: 77, Port: 4790}})
	if err := a.Divert(manyTuples(0, 1), l.b.addr[1]); err == nil {
		t.Error("diverted over a tunnel of the other family")
	}
	l.a.do("Close", a.Close)
	l.a.do("device", func() error {
		if _, err := netlink.LinkByName(DefaultTunnelDevice); err == nil {
			return errors.New("the tunnel is left")
		}
		return nil
	})
}

// A peer gets another Ethernet address: its tuples follow, without a call.
func TestPeerChanges(t *testing.T) {
	l := newLab(t)
	aa, ba := l.a.open(Config{}), l.b.open(Config{})
	s := connect(t, l.a, vip[0], l.client, l.client.addr[0], true)
	m := &mover{t: t, stream: s}
	m.move(l.a, l.b, aa, ba, nil)
	s.pump(20*time.Millisecond, 700)
	l.b.do("another address", func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		// Neighbours are told, as by a bond that changes its device.
		if err := setProc("ipv4/conf/eth0/arp_notify=1"); err != nil {
			return err
		}
		if err := netlink.LinkSetDown(link); err != nil {
			return err
		}
		if err := netlink.LinkSetHardwareAddr(link, net.HardwareAddr{2, 0, 0, 0, 7, 7}); err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
	wait(t, "the peer's new address", func() bool {
		// A kernel that has heard of a neighbour within a second does not heed
		// another word (net/ipv4/arp.c: arp_process, LOCKTIME).
		l.b.provoke(l.a.addr[0])
		aa.mu.Lock()
		defer aa.mu.Unlock()
		return aa.peers[l.b.addr[0]].mac == [6]byte{2, 0, 0, 0, 7, 7}
	})
	s.pump(20*time.Millisecond, 700)
	s.finish(true, true)
}
