package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// advertisedMSS of hosts beyond a router: what nodes send each other by a tunnel has
// its heads on top.
const advertisedMSS = 1390

// addRouter gives the other end of a host's cable its addresses, and the host its routes.
func (w *World) addRouter(cable netlink.Link, h *Host, s HostSpec) error {
	if len(s.Router) == 0 {
		return nil
	}
	port, err := w.nl.LinkByName(cable.Attrs().Name)
	if err != nil {
		return err
	}
	eth0, err := h.nl.LinkByName("eth0")
	if err != nil {
		return err
	}
	for _, set := range [][2]string{
		{"ipv4/ip_forward", "1"}, {"ipv6/conf/all/forwarding", "1"}, {"ipv6/conf/" + h.port + "/accept_dad", "0"},
		{"ipv4/conf/all/rp_filter", "0"}, {"ipv4/conf/" + h.port + "/rp_filter", "0"},
	} {
		if err := os.WriteFile("/proc/sys/net/"+set[0], []byte(set[1]), 0); err != nil {
			return fmt.Errorf("lab: router: %w", err)
		}
	}
	for _, x := range s.Router {
		p, err := netip.ParsePrefix(x)
		if err != nil {
			return err
		}
		a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := w.nl.AddrAdd(port, a); err != nil {
			return fmt.Errorf("lab: router: address %v: %w", p, err)
		}
		all := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
		if p.Addr().Is6() {
			all = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		}
		r := &netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: all, Gw: p.Addr().AsSlice(), AdvMSS: advertisedMSS}
		if err := h.nl.RouteReplace(r); err != nil {
			return fmt.Errorf("lab: %s: route by %v: %w", h.Name, p.Addr(), err)
		}
	}
	return nil
}

// routes plays the daemon that tells the network where addresses are: it looks on which
// host's device an address is, and sends it there. While none has it, it stays where it was.
type routes struct {
	w     *World
	hosts []*Host
	dev   string
	addrs []netip.Addr
	now   map[netip.Addr]*Host
	stop  chan struct{}
	done  chan struct{}
	twice int // looks that found an address on two hosts
	moved int // routes that were changed
	fail  error
}

// routeEvery is how fast such a daemon is.
const routeEvery = 20 * time.Millisecond

func startRoutes(w *World, hosts []*Host, dev string, addrs []netip.Addr) *routes {
	r := &routes{w: w, hosts: hosts, dev: dev, addrs: addrs, now: map[netip.Addr]*Host{}, stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(r.done)
		tick := time.NewTicker(routeEvery)
		defer tick.Stop()
		for {
			select {
			case <-r.stop:
				return
			case <-tick.C:
				r.look()
			}
		}
	}()
	return r
}

func (r *routes) look() {
	for _, a := range r.addrs {
		var on []*Host
		for _, h := range r.hosts {
			if yes, err := h.HasAddress(r.dev, a); err == nil && yes {
				on = append(on, h)
			}
		}
		if len(on) > 1 {
			r.twice++
		}
		if len(on) != 1 || on[0] == r.now[a] {
			continue
		}
		if err := r.to(a, on[0]); err != nil {
			r.fail = errors.Join(r.fail, err)
			continue
		}
		r.now[a] = on[0]
		r.moved++
	}
}

func (r *routes) to(a netip.Addr, h *Host) error {
	port, err := r.w.nl.LinkByName(h.port)
	if err != nil {
		return err
	}
	via := h.V4
	if a.Is6() {
		via = h.V6
	}
	x := &netlink.Route{LinkIndex: port.Attrs().Index, Gw: via.AsSlice(),
		Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
	if err := r.w.nl.RouteReplace(x); err != nil {
		return fmt.Errorf("lab: route of %v to %s: %w", a, h.Name, err)
	}
	return nil
}

// close ends it; its counts are valid afterwards.
func (r *routes) close() {
	close(r.stop)
	<-r.done
}
