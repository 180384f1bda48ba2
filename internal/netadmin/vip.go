package netadmin

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// movable is a movable address, as far as this host's kernel is concerned. It is
// there from the first Fence that names it to the one that does not.
type movable struct {
	prefix   netip.Prefix
	ownUntil time.Time // zero: not owned
	// until when this host may speak TCP from it, and has it on lo
	guestUntil time.Time
	lead       *peer // nil: not led
	forward    *peer // nil: not forwarded
	// following: tuples may follow a Lead, since the last Forget.
	following bool
	moving    bool        // the rules look at any of these
	announce  *time.Timer // the next repetition
}

func (v *movable) owned(now time.Time) bool { return now.Before(v.ownUntil) }
func (v *movable) guest(now time.Time) bool { return now.Before(v.guestUntil) }

// Fence names the movable addresses of this cluster, wherever they are, and
// replaces what it said before. From now on nothing passes for them or from
// them on this host, but by Own or Guest: neither ARP nor neighbour discovery
// nor IP, by Device or the tunnel. An address that is no longer named is taken
// off this host's devices.
func (a *Admin) Fence(addrs []netip.Prefix) error {
	want := map[netip.Addr]netip.Prefix{}
	for _, p := range addrs {
		p = unmapped(p)
		if x := p.Addr(); !p.IsValid() || x.IsUnspecified() || x.IsMulticast() || x.IsLoopback() || x.Zone() != "" {
			return fmt.Errorf("netadmin: fence %v: not the address of a host", p)
		}
		want[p.Addr()] = p
	}
	a.vipMu.Lock()
	defer a.vipMu.Unlock()
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return ErrClosed
	}
	var gone []netip.Addr
	for x := range a.vips {
		if _, stays := want[x]; !stays {
			gone = append(gone, x)
		}
	}
	list := make([]netip.Addr, 0, len(want))
	for x := range want {
		list = append(list, x)
	}
	err := a.rules.fenceTo(list)
	if err == nil {
		for x, p := range want {
			if a.vips[x] == nil {
				a.vips[x] = &movable{}
			}
			a.vips[x].prefix = p
		}
	}
	a.mu.Unlock()
	if err != nil {
		return err
	}
	var errs []error
	for _, x := range gone {
		errs = append(errs, a.disown(x), a.endGuest(x), a.forgetAddr(x))
		a.mu.Lock()
		delete(a.vips, x)
		a.mu.Unlock()
	}
	return errors.Join(errs...)
}

// Routed names those addresses that a routing daemon announces, in place of
// ARP: Own puts them on Config.VIPDevice, and Announce has nothing to say.
func (a *Admin) Routed(addrs []netip.Addr) error {
	a.vipMu.Lock()
	defer a.vipMu.Unlock()
	a.mu.Lock()
	closed := a.closed
	a.mu.Unlock()
	if closed {
		return ErrClosed
	}
	if len(addrs) > 0 && a.vipLink == nil {
		link, err := a.route.LinkByName(a.cfg.VIPDevice)
		if err != nil {
			attrs := netlink.LinkAttrs{Name: a.cfg.VIPDevice}
			err := a.route.LinkAdd(&netlink.Dummy{LinkAttrs: attrs})
			if errors.Is(err, unix.EOPNOTSUPP) {
				err = a.route.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}) // as good: it has no ports
			}
			if err != nil {
				return fmt.Errorf("netadmin: device %s: %w", a.cfg.VIPDevice, err)
			}
			if link, err = a.route.LinkByName(a.cfg.VIPDevice); err != nil {
				return fmt.Errorf("netadmin: device %s: %w", a.cfg.VIPDevice, err)
			}
		}
		if err := a.route.LinkSetUp(link); err != nil {
			return fmt.Errorf("netadmin: device %s: up: %w", a.cfg.VIPDevice, err)
		}
		a.mu.Lock()
		a.vipLink = link
		a.mu.Unlock()
	}
	a.routed = map[netip.Addr]bool{}
	for _, x := range addrs {
		a.routed[x.Unmap()] = true
	}
	return nil
}

// Own lets the kernel answer and speak for a fenced address for the time of the
// lease; another Own renews it. The address is put on Device, or on
// Config.VIPDevice if it is Routed, for as long, rounded up to seconds; the
// rules end exactly. Nobody needs to do anything for this host to fall silent:
// neither this process nor the one that asks for renewal.
func (a *Admin) Own(p netip.Prefix, lease time.Duration) error {
	p = unmapped(p)
	x := p.Addr()
	if lease < time.Millisecond {
		return fmt.Errorf("netadmin: own %v for %v: no time", p, lease)
	}
	a.vipMu.Lock()
	defer a.vipMu.Unlock()
	v, err := a.vipOf(x)
	if err != nil {
		return err
	}
	fresh := !v.owned(time.Now())
	link := a.nic
	if a.routed[x] {
		link = a.vipLink
	}
	if err := a.addAddr(link, p, lease); err != nil {
		return err
	}
	if fresh && x.Is6() && link == a.nic {
		if err := a.onLink(p); err != nil {
			return err
		}
	}
	if fresh {
		// What is for other hosts' ports, and what is here, is known before the
		// first segment comes.
		if err := a.steerAgain(); err != nil {
			return err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return ErrClosed
	}
	if err := a.rules.let(a.rules.vips.lease, x, lease, !v.ownUntil.IsZero()); err != nil {
		return err
	}
	v.prefix, v.ownUntil = p, time.Now().Add(lease)
	return nil
}

// Disown ends Own at once: the address leaves the device, and nobody is
// answered. What Guest has put on lo stays. It is no error if the address was
// not owned: whoever put it on the device, it is gone from there.
func (a *Admin) Disown(addr netip.Addr) error {
	a.vipMu.Lock()
	defer a.vipMu.Unlock()
	if _, err := a.vipOf(addr.Unmap()); err != nil {
		return err
	}
	return a.disown(addr.Unmap())
}

// disown is Disown with a.vipMu held.
func (a *Admin) disown(addr netip.Addr) error {
	a.mu.Lock()
	v := a.vips[addr]
	if a.closed || v == nil {
		a.mu.Unlock()
		return nil
	}
	err := a.rules.let(a.rules.vips.lease, addr, 0, true)
	if err == nil {
		v.ownUntil = time.Time{}
		v.quiet()
	}
	a.mu.Unlock()
	if err != nil {
		return err
	}
	errs := []error{a.delAddr(a.nic, addr)}
	if a.vipLink != nil {
		errs = append(errs, a.delAddr(a.vipLink, addr))
	}
	return errors.Join(append(errs, a.steerAgain())...)
}

// Guest lets TCP of a fenced address pass in both directions for that time,
// without owning it, and puts the address on lo; another Guest renews it, and
// 0 ends it. Neighbours are not answered, and a segment without a socket draws
// no reset.
func (a *Admin) Guest(addr netip.Addr, d time.Duration) error {
	addr = addr.Unmap()
	a.vipMu.Lock()
	defer a.vipMu.Unlock()
	v, err := a.vipOf(addr)
	if err != nil {
		return err
	}
	if d <= 0 {
		return a.endGuest(addr)
	}
	if d < time.Millisecond {
		return fmt.Errorf("netadmin: guest %v for %v: no time", addr, d)
	}
	if err := a.addAddr(a.lo, netip.PrefixFrom(addr, addr.BitLen()), d); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return ErrClosed
	}
	if err := a.rules.let(a.rules.vips.guest, addr, d, !v.guestUntil.IsZero()); err != nil {
		return err
	}
	v.guestUntil = time.Now().Add(d)
	return nil
}

// endGuest: a.vipMu is held.
func (a *Admin) endGuest(addr netip.Addr) error {
	a.mu.Lock()
	v := a.vips[addr]
	if a.closed || v == nil {
		a.mu.Unlock()
		return nil
	}
	err := a.rules.let(a.rules.vips.guest, addr, 0, true)
	if err == nil {
		v.guestUntil = time.Time{}
	}
	a.mu.Unlock()
	if err != nil {
		return err
	}
	return a.delAddr(a.lo, addr)
}

// vipOf returns what is known of a fenced address.
func (a *Admin) vipOf(addr netip.Addr) (*movable, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, ErrClosed
	}
	v := a.vips[addr]
	if v == nil {
		return nil, fmt.Errorf("netadmin: %v is not a fenced address", addr)
	}
	return v, nil
}

// addAddr puts an address on a device, or renews it, for a time.
func (a *Admin) addAddr(link netlink.Link, p netip.Prefix, d time.Duration) error {
	seconds := int((d + time.Second - 1) / time.Second)
	n := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}, ValidLft: seconds, PreferedLft: seconds,
		Flags: unix.IFA_F_NODAD}
	if p.Addr().Is6() {
		// Deprecated (RFC 4862, section 5.5.4): what this host dials for itself
		// does not come from it. And no route to its network, which the kernel
		// would leave behind (net/ipv6/addrconf.c: ipv6_del_addr).
		n.PreferedLft = 0
		n.Flags |= unix.IFA_F_NOPREFIXROUTE
	}
	if err := a.route.AddrReplace(link, n); err != nil {
		return fmt.Errorf("netadmin: address %v on %s: %w", p, link.Attrs().Name, err)
	}
	return nil
}

// onLink makes Device the way to the network of an IPv6 address, unless
// another address there does. The route stays until Close: it says where a
// network is, which is true whoever owns the address.
func (a *Admin) onLink(p netip.Prefix) error {
	p = p.Masked()
	if p.IsSingleIP() || a.onLinks[p] {
		return nil
	}
	list, err := a.route.AddrList(a.nic, netlink.FAMILY_V6)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("netadmin: addresses of %s: %w", a.cfg.Device, err)
	}
	for _, x := range list {
		ones, _ := x.Mask.Size()
		if ip, ok := netip.AddrFromSlice(x.IP); ok && ones == p.Bits() && p.Contains(ip) && x.Flags&unix.IFA_F_NOPREFIXROUTE == 0 {
			return nil
		}
	}
	if err := a.route.RouteReplace(a.onLinkRoute(p)); err != nil {
		return fmt.Errorf("netadmin: route to %v: %w", p, err)
	}
	a.onLinks[p] = true
	return nil
}

func (a *Admin) onLinkRoute(p netip.Prefix) *netlink.Route {
	return &netlink.Route{LinkIndex: a.nic.Attrs().Index, Priority: 1024, Protocol: unix.RTPROT_STATIC,
		Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 128)}}
}

// delAddr takes an address off a device; it is no error if it is not there.
func (a *Admin) delAddr(link netlink.Link, addr netip.Addr) error {
	fam := netlink.FAMILY_V4
	if addr.Is6() {
		fam = netlink.FAMILY_V6
	}
	list, err := a.route.AddrList(link, fam)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("netadmin: addresses of %s: %w", link.Attrs().Name, err)
	}
	for i := range list {
		if x, ok := netip.AddrFromSlice(list[i].IP); !ok || x.Unmap() != addr {
			continue
		}
		if err := a.route.AddrDel(link, &list[i]); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("netadmin: address %v off %s: %w", addr, link.Attrs().Name, err)
		}
	}
	return nil
}

// steerAgain applies what Steer has asked for to other addresses on Device.
func (a *Admin) steerAgain() error {
	a.steerMu.Lock()
	defer a.steerMu.Unlock()
	if len(a.steering.addrs) == 0 {
		return nil
	}
	return a.applySteering(steerRetry / 10)
}

// tendVIPs notes what has ended. The rules have ended it by themselves, and the
// address leaves its device alike, unless it is an heir's by now.
func (a *Admin) tendVIPs() error {
	a.vipMu.Lock()
	defer a.vipMu.Unlock()
	now, ended := time.Now(), false
	a.mu.Lock()
	for x, v := range a.vips {
		if !v.ownUntil.IsZero() && !v.owned(now) {
			v.ownUntil, ended = time.Time{}, true
			v.quiet()
			a.cfg.Log.Warn("the lease of an address has ended without renewal", "address", x)
		}
		if !v.guestUntil.IsZero() && !v.guest(now) {
			v.guestUntil = time.Time{}
		}
	}
	a.mu.Unlock()
	if ended {
		return a.steerAgain()
	}
	return nil
}

// silence takes all movable addresses off this host, before the rules go that
// keep it from answering for them.
func (a *Admin) silence() error {
	var errs []error
	for x := range a.vips {
		a.vips[x].quiet()
		for _, link := range []netlink.Link{a.nic, a.lo, a.vipLink} {
			if link != nil {
				errs = append(errs, a.delAddr(link, x))
			}
		}
	}
	for p := range a.onLinks {
		if err := a.route.RouteDel(a.onLinkRoute(p)); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("netadmin: route to %v: %w", p, err))
		}
	}
	if a.vipLink != nil {
		errs = append(errs, a.route.LinkDel(a.vipLink))
	}
	return errors.Join(errs...)
}

func unmapped(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p
}

// sortedVIPs is for lists that are to be the same each time. a.mu is held.
func (a *Admin) sortedVIPs() []netip.Addr {
	out := make([]netip.Addr, 0, len(a.vips))
	for x := range a.vips {
		out = append(out, x)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}
