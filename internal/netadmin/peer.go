package netadmin

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// peer is a host that segments are diverted to: an Ethernet address behind a
// device, whichever family the segments are of.
type peer struct {
	addr  netip.Addr
	name  string // of its chain
	index int    // of the device it is behind
	mac   [6]byte
	from  [6]byte // of that device
}

// hop is where a peer was found.
type hop struct {
	index     int
	mac, from [6]byte
	tunnel    bool
}

// peer returns the peer of that address, after bringing its chain up to
// date. Chains stay until Close; there are as many as there are hosts.
// a.mu is held.
func (a *Admin) peer(addr netip.Addr, h hop) (*peer, error) {
	p := a.peers[addr]
	if p != nil && p.index == h.index && p.mac == h.mac && p.from == h.from {
		return p, nil
	}
	n := &peer{addr: addr, name: chainOf(addr), index: h.index, mac: h.mac, from: h.from}
	if err := a.rules.addPeer(n); err != nil {
		return nil, err
	}
	if p != nil {
		*p = *n // its tuples follow it to the new address
		return p, nil
	}
	a.peers[addr] = n
	return n, nil
}

// way is where its tuples go.
func (p *peer) way() way { return way(p.name) }

// held is where they go while they are held as well: to this peer, until it sends
// them back.
func (p *peer) held() way { return heldPrefix + way(p.name) }

const heldPrefix = chainHold + "_"

// chainOf names a peer's chain; peerOf reads the name. So what a process left
// in the kernel tells whom it meant.
func chainOf(addr netip.Addr) string {
	if addr.Is4() {
		return "to4_" + strings.ReplaceAll(addr.String(), ".", "_")
	}
	return "to6_" + strings.ReplaceAll(addr.String(), ":", "_")
}

func peerOf(chain string) (netip.Addr, bool) {
	s, four := strings.CutPrefix(chain, "to4_")
	if four {
		s = strings.ReplaceAll(s, "_", ".")
	} else if s, _ = strings.CutPrefix(chain, "to6_"); s != chain {
		s = strings.ReplaceAll(s, "_", ":")
	}
	addr, err := netip.ParseAddr(s)
	return addr, err == nil && addr.Zone() == ""
}

// resolve finds the Ethernet address of a host: one that was found before, one
// on the same segment by the kernel's neighbour table, or the tunnel's end at a
// host beyond a router.
func (a *Admin) resolve(to netip.Addr, patience time.Duration) (hop, error) {
	to = to.Unmap()
	a.mu.Lock()
	h, found := a.hops[to]
	closed := a.closed
	a.mu.Unlock()
	if found || closed {
		return h, nil // the caller looks at a.closed again
	}
	h, err := a.look(to, patience)
	if err != nil {
		return hop{}, fmt.Errorf("netadmin: peer %v: %w", to, err)
	}
	a.mu.Lock()
	a.hops[to] = h
	a.mu.Unlock()
	return h, nil
}

// look asks the kernel. If the neighbour table lacks a host, a datagram to the
// discard port (RFC 863) makes it ask.
func (a *Admin) look(to netip.Addr, patience time.Duration) (hop, error) {
	fail := func(err error) (hop, error) { return hop{}, err }
	if !to.IsValid() || to.IsLoopback() || to.IsMulticast() || to.IsUnspecified() {
		return fail(errors.New("not the address of another host"))
	}
	link := a.nic
	if !to.IsLinkLocalUnicast() {
		routes, err := a.route.RouteGet(to.AsSlice())
		if err != nil {
			return fail(err)
		}
		if len(routes) == 0 || routes[0].Type == unix.RTN_LOCAL {
			return fail(errors.New("not another host"))
		}
		if len(routes[0].Gw) > 0 {
			if a.tunnel == nil {
				return fail(errors.New("not a host on the same Ethernet segment, and there is no tunnel"))
			}
			return a.through(to)
		}
		if routes[0].LinkIndex != link.Attrs().Index {
			if link, err = a.route.LinkByIndex(routes[0].LinkIndex); err != nil {
				return fail(err)
			}
		}
	}
	if len(link.Attrs().HardwareAddr) != 6 {
		return fail(fmt.Errorf("device %s is not an Ethernet", link.Attrs().Name))
	}
	h := hop{index: link.Attrs().Index, from: macOf(link.Attrs().HardwareAddr)}
	fam := netlink.FAMILY_V4
	if to.Is6() {
		fam = netlink.FAMILY_V6
	}
	deadline := time.Now().Add(patience)
	for asked := false; ; {
		neighs, err := a.route.NeighList(h.index, fam)
		if err != nil {
			return fail(err)
		}
		for _, n := range neighs {
			ip, ok := netip.AddrFromSlice(n.IP)
			known := n.State&(netlink.NUD_INCOMPLETE|netlink.NUD_FAILED) == 0 && len(n.HardwareAddr) == 6
			if ok && ip.Unmap() == to && known {
				h.mac = macOf(n.HardwareAddr)
				return h, nil
			}
		}
		if time.Now().After(deadline) {
			return fail(fmt.Errorf("no answer to ARP or neighbour discovery within %v", patience))
		}
		if !asked {
			if err := a.ask(to, h.index); err != nil {
				return fail(err)
			}
			asked = true
		}
		time.Sleep(time.Millisecond)
	}
}

// ask makes the kernel look for a neighbour.
func (a *Admin) ask(to netip.Addr, index int) error {
	var sa unix.Sockaddr
	fd := a.ask4
	if to.Is4() {
		sa = &unix.SockaddrInet4{Port: 9, Addr: to.As4()}
	} else {
		fd = a.ask6
		s6 := &unix.SockaddrInet6{Port: 9, Addr: to.As16()}
		if to.IsLinkLocalUnicast() {
			s6.ZoneId = uint32(index)
		}
		sa = s6
	}
	if fd < 0 {
		return errors.New("this host lacks its address family")
	}
	if err := unix.Sendto(fd, []byte{0}, unix.MSG_DONTWAIT, sa); err != nil {
		return fmt.Errorf("ask for it: %w", err)
	}
	return nil
}
