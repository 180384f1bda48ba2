package netadmin

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Tunnel is the vxlan device (RFC 7348) that carries segments to hosts that
// are not on Device's Ethernet. Both ends have the same ID and Port. Nobody
// proves who sends by it, and nothing is encrypted: its UDP port must be open
// to the other hosts and to nobody else.
type Tunnel struct {
	Device string     // name of the device; DefaultTunnelDevice if empty
	Local  netip.Addr // by which the other hosts name this one
	ID     int        // of the vxlan network
	Port   int        // UDP
}

// DefaultTunnelDevice is the name of Tunnel.Device.
const DefaultTunnelDevice = "hf-tunnel"

// tunnelMAC is the Ethernet address of the tunnel's end at a host, so that
// nobody needs to ask for it: a locally administered one (IEEE 802, section
// 8.4) of the address's hash.
func tunnelMAC(addr netip.Addr) (mac [6]byte) {
	sum := sha256.Sum256(addr.Unmap().AsSlice())
	copy(mac[:], sum[:])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// openTunnel makes the device, in place of one that was left behind.
func (a *Admin) openTunnel() error {
	t := a.cfg.Tunnel
	fail := func(what string, err error) error {
		return fmt.Errorf("netadmin: tunnel %s: %s: %w", t.Device, what, err)
	}
	local := t.Local.Unmap()
	if !local.IsValid() || local.IsUnspecified() || t.ID < 0 || t.ID >= 1<<24 || t.Port < 1 || t.Port > 65535 {
		return fail("check", errors.New("not the address of this host, an ID of 24 bits and a port"))
	}
	mac := tunnelMAC(local)
	if old, err := a.route.LinkByName(t.Device); err == nil {
		v, ours := old.(*netlink.Vxlan)
		if !ours {
			return fail("create", fmt.Errorf("there is a %s of that name", old.Type()))
		}
		if v.VxlanId == t.ID && v.Port == t.Port && v.SrcAddr.Equal(local.AsSlice()) && macOf(v.HardwareAddr) == mac {
			a.tunnel = old // a predecessor's, which may still use it
			return nil
		}
		if err := a.route.LinkDel(old); err != nil {
			return fail("remove the old one", err)
		}
	}
	// No learning: who sends what is known. Its UDP checksum of 0 is as IPv4
	// has it; the TCP segments inside have their own.
	v := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: t.Device, HardwareAddr: mac[:], TxQLen: -1}, VxlanId: t.ID, Port: t.Port,
		SrcAddr: local.AsSlice()}
	if err := a.route.LinkAdd(v); err != nil {
		return fail("create (support for vxlan in the kernel is needed)", err)
	}
	link, err := a.route.LinkByName(t.Device)
	if err != nil {
		return fail("find", err)
	}
	a.tunnel = link
	if err := a.tunnelSysctls(); err != nil {
		return err
	}
	if err := a.route.LinkSetUp(link); err != nil {
		return fail("up", err)
	}
	return nil
}

// tunnelSysctls: as for the TAP device.
func (a *Admin) tunnelSysctls() error {
	d := a.cfg.Tunnel.Device
	list := [][2]string{{"ipv4/conf/" + d + "/rp_filter", "0"}, {"ipv4/conf/" + d + "/accept_local", "1"}, {"ipv4/conf/" + d + "/arp_ignore", "8"}}
	if existsSysctl("net/ipv6/conf/" + d) {
		for _, s := range [][2]string{{"disable_ipv6", "0"}, {"accept_ra", "0"}, {"addr_gen_mode", "1"}} {
			list = append(list, [2]string{"ipv6/conf/" + d + "/" + s[0], s[1]})
		}
	}
	for _, s := range list {
		if err := writeSysctl("net/"+s[0], s[1]); err != nil {
			return err
		}
	}
	return nil
}

// through returns the hop to a host by the tunnel.
func (a *Admin) through(to netip.Addr) (hop, error) {
	if to.Is4() != a.cfg.Tunnel.Local.Unmap().Is4() {
		return hop{}, fmt.Errorf("the tunnel is from %v, of another family", a.cfg.Tunnel.Local)
	}
	h := hop{index: a.tunnel.Attrs().Index, mac: tunnelMAC(to), from: tunnelMAC(a.cfg.Tunnel.Local), tunnel: true}
	err := a.route.NeighSet(&netlink.Neigh{LinkIndex: h.index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT | netlink.NUD_NOARP,
		Flags: netlink.NTF_SELF, IP: to.AsSlice(), HardwareAddr: net.HardwareAddr(h.mac[:])})
	if err != nil {
		return hop{}, fmt.Errorf("the tunnel's table: %w", err)
	}
	return h, nil
}
