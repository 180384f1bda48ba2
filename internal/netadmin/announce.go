package netadmin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// announceAt is when Announce repeats itself, after the call: one packet may be
// lost, and a switch that has just learnt a port may drop the first.
var announceAt = []time.Duration{100 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second}

// Announce tells the Ethernet that an address which this host owns is at Device:
// by gratuitous ARP, as request and as reply since hosts differ in what they
// heed, or by an unsolicited neighbour advertisement that overrides (RFC 4861,
// section 7.2.6). It repeats that four times within two seconds, as long as the
// address is owned. For an address that is Routed it does nothing.
func (a *Admin) Announce(addr netip.Addr) error {
	addr = addr.Unmap()
	a.vipMu.Lock()
	defer a.vipMu.Unlock()
	v, err := a.vipOf(addr)
	if err != nil {
		return err
	}
	if a.routed[addr] {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return ErrClosed
	}
	if !v.owned(time.Now()) {
		return fmt.Errorf("netadmin: announce %v: it is not owned", addr)
	}
	v.quiet()
	if err := a.say(addr); err != nil {
		return err
	}
	begin, next := time.Now(), 0
	var again func()
	again = func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		// The address may have been forgotten and begun anew.
		if a.closed || a.vips[addr] != v || v.announce == nil || !v.owned(time.Now()) {
			return
		}
		if err := a.say(addr); err != nil {
			a.cfg.Log.Warn("an address could not be announced again", "address", addr, "error", err)
		}
		if next++; next < len(announceAt) {
			v.announce = time.AfterFunc(time.Until(begin.Add(announceAt[next])), again)
		}
	}
	v.announce = time.AfterFunc(announceAt[0], again)
	return nil
}

// quiet ends the repetitions of Announce. The mutex of the Admin is held.
func (v *movable) quiet() {
	if v.announce != nil {
		v.announce.Stop()
		v.announce = nil
	}
}

// say announces an address once. a.mu is held.
func (a *Admin) say(addr netip.Addr) error {
	mac := macOf(a.nic.Attrs().HardwareAddr)
	frames := [][]byte{neighbourAdvertisement(mac, addr)}
	if addr.Is4() {
		frames = [][]byte{gratuitousARP(mac, addr, 1), gratuitousARP(mac, addr, 2)}
	}
	to := &unix.SockaddrLinklayer{Ifindex: a.nic.Attrs().Index}
	var errs []error
	for _, f := range frames {
		if err := unix.Sendto(a.packet, f, 0, to); err != nil {
			errs = append(errs, fmt.Errorf("netadmin: announce %v: %w", addr, err))
		}
	}
	return errors.Join(errs...)
}

// gratuitousARP is an ARP packet (RFC 826) whose sender and target are addr: a
// request (1) or a reply (2), to all.
func gratuitousARP(mac [6]byte, addr netip.Addr, op uint16) []byte {
	f := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac[:]...)
	f = binary.BigEndian.AppendUint16(f, unix.ETH_P_ARP)
	f = append(f, 0, 1 /* Ethernet */, 8, 0 /* IPv4 */, 6, 4)
	f = binary.BigEndian.AppendUint16(f, op)
	f = append(append(f, mac[:]...), addr.AsSlice()...)
	target := [6]byte{} // unknown in a request, RFC 5227, section 3
	if op == 2 {
		target = mac
	}
	return append(append(f, target[:]...), addr.AsSlice()...)
}

// neighbourAdvertisement is an unsolicited one to all nodes, RFC 4861, section
// 4.4, with the flag Override.
func neighbourAdvertisement(mac [6]byte, addr netip.Addr) []byte {
	all := netip.MustParseAddr("ff02::1")
	icmp := []byte{136, 0, 0, 0, 0x20 /* override */, 0, 0, 0}
	icmp = append(icmp, addr.AsSlice()...)
	icmp = append(append(icmp, 2 /* target's link-layer address */, 1), mac[:]...)
	// The pseudo-header, RFC 8200, section 8.1.
	pseudo := append(append([]byte(nil), addr.AsSlice()...), all.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(icmp)))
	pseudo = append(append(pseudo, 0, 0, 0, unix.IPPROTO_ICMPV6), icmp...)
	var sum uint32
	for i := 0; i < len(pseudo); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(pseudo[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(icmp[2:], ^uint16(sum))

	f := append([]byte{0x33, 0x33, 0, 0, 0, 1}, mac[:]...)
	f = binary.BigEndian.AppendUint16(f, unix.ETH_P_IPV6)
	f = append(f, 0x60, 0, 0, 0)
	f = binary.BigEndian.AppendUint16(f, uint16(len(icmp)))
	f = append(f, unix.IPPROTO_ICMPV6, 255)
	f = append(append(f, addr.AsSlice()...), all.AsSlice()...)
	return append(f, icmp...)
}
