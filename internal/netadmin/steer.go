package netadmin

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
)

// PortRange is the local ports, First to Last with both included, from which
// the host To dials when it dials from a movable address.
type PortRange struct {
	First uint16     `json:"first"`
	Last  uint16     `json:"last"`
	To    netip.Addr `json:"to"`
}

// Several hosts dial from one movable address, and the network brings all
// answers to the host that owns it. Which host has dialled shows in the port:
// each has a range of its own. Who owns the address sends on what is for the
// range of another, unless it knows better of that very tuple: it is held or
// diverted, or it is "here", since the leg has moved to this host after the
// other had dialled it.

// steering is what Steer asks for, and how much of it is in force.
type steering struct {
	addrs  []netip.Addr // sorted
	ranges []PortRange

	own     map[netip.Addr]bool // of addrs, those that Device has
	steered []steered           // what the rules say
	waiting bool                // for a peer that cannot be resolved yet
}

// steered is one range that the rules send on.
type steered struct {
	first, last uint16
	chain       string // of the peer
}

// covers tells whether t, without an entry, would be steered away now or as
// soon as its peer has been found.
func (s *steering) covers(t Tuple) bool {
	if !s.own[t.Local.Addr()] {
		return false
	}
	for _, r := range s.ranges {
		if p := t.Local.Port(); r.First <= p && p <= r.Last {
			return true
		}
	}
	return false
}

// How often the Admin sees to what Steer has begun: peers that were not found,
// entries whose socket is gone and addresses that have moved.
const (
	steerRetry = time.Second
	steerSweep = 10 * time.Second
)

// Steer makes segments that arrive for addrs with a destination port in a
// range go to the range's host, as long as this host owns the address: Device
// has it, lo alone is not enough, for two hosts would steer to each other.
// That is looked up now, and again every few seconds. addrs replace those of
// the call before; ranges replace those of the same To, and one whose ports
// are 0 removes them. A host that cannot be found yet is no error: it is
// looked for until it is.
//
// No range may hold a port that this host dials from, or listens on, at these
// addresses.
func (a *Admin) Steer(addrs []netip.Addr, ranges []PortRange) error {
	var want []netip.Addr
	for _, x := range addrs {
		if x = x.Unmap(); !x.IsValid() || x.Zone() != "" || x.IsUnspecified() {
			return fmt.Errorf("netadmin: steer %v: not an address of a host", x)
		}
		want = append(want, x)
	}
	slices.SortFunc(want, netip.Addr.Compare)
	want = slices.Compact(want)
	for _, r := range ranges {
		if !r.To.IsValid() || r.First > r.Last || r.First == 0 && r.Last != 0 {
			return fmt.Errorf("netadmin: steer ports %d-%d to %v: not a range of a host", r.First, r.Last, r.To)
		}
	}
	a.steerMu.Lock()
	defer a.steerMu.Unlock()
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return ErrClosed
	}
	s := &a.steering
	all := slices.DeleteFunc(slices.Clone(s.ranges), func(old PortRange) bool {
		return slices.ContainsFunc(ranges, func(r PortRange) bool { return r.To.Unmap() == old.To })
	})
	for _, r := range ranges {
		if r.To = r.To.Unmap(); r.First != 0 {
			all = append(all, r)
		}
	}
	if len(all) > rangesMax {
		a.mu.Unlock()
		return fmt.Errorf("netadmin: steer: %d ranges of ports in all: at most %d", len(all), rangesMax)
	}
	s.addrs, s.ranges = want, all
	a.mu.Unlock()
	return a.applySteering(a.cfg.ResolveTimeout)
}

// applySteering makes the rules what they should be, by what the host's
// addresses and neighbours are now. a.steerMu is held.
func (a *Admin) applySteering(patience time.Duration) error {
	s := &a.steering // written under a.steerMu only, so it may be read
	own, err := a.owned(s.addrs)
	if err != nil {
		return err
	}
	hops, waiting := map[netip.Addr]hop{}, false
	for _, r := range s.ranges {
		if _, found := hops[r.To]; found || len(own) == 0 {
			continue
		}
		h, err := a.resolve(r.To, patience)
		if err != nil {
			if !s.waiting {
				a.cfg.Log.Warn("a peer to steer to is not found; it is looked for", "to", r.To, "error", err)
			}
			waiting = true
			continue
		}
		hops[r.To] = h
	}

	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return ErrClosed
	}
	// From here on Release makes entries for what would be steered; what was
	// released before has a socket, by which it is found.
	s.own, s.waiting = own, waiting
	var want []steered
	for _, r := range s.ranges {
		p := a.peers[r.To]
		if h, found := hops[r.To]; found {
			if p, err = a.peer(r.To, h); err != nil {
				a.mu.Unlock()
				return err
			}
		}
		if p != nil && len(own) > 0 {
			want = append(want, steered{r.First, r.Last, p.name})
		}
	}
	if len(own) == 0 {
		want = nil
	}
	same := slices.Equal(want, s.steered) && sameKeys(own, a.rules.own)
	a.mu.Unlock()
	if same {
		return nil
	}

	var here []Tuple
	if len(want) > 0 {
		sockets, err := a.sockets(own, allStates)
		if err != nil {
			a.cfg.Log.Warn("sockets could not be listed; legs that have moved here before may lose their segments", "error", err)
		}
		for t := range sockets {
			if s.covers(t) {
				here = append(here, t)
			}
		}
	}
	err = a.changeFew(here, func(t Tuple, e *entry) {
		if !e.held && e.peer == nil && e.here == 0 {
			e.here = a.serial()
		}
	})
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return ErrClosed
	}
	if err := a.rules.steerTo(own, want); err != nil {
		return err
	}
	s.steered = want
	return nil
}

func sameKeys(a, b map[netip.Addr]bool) bool {
	if len(a) != len(b) {
		return false
	}
	for k := range a {
		if !b[k] {
			return false
		}
	}
	return true
}

// owned returns those of addrs that Device has.
func (a *Admin) owned(addrs []netip.Addr) (map[netip.Addr]bool, error) {
	if len(addrs) == 0 {
		return nil, nil
	}
	list, err := a.route.AddrList(a.nic, netlink.FAMILY_ALL)
	a.mu.Lock()
	vips := a.vipLink
	a.mu.Unlock()
	if err == nil && vips != nil {
		var routed []netlink.Addr
		routed, err = a.route.AddrList(vips, netlink.FAMILY_ALL)
		list = append(list, routed...)
	}
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("netadmin: addresses of %s: %w", a.cfg.Device, err)
	}
	own := map[netip.Addr]bool{}
	for _, x := range list {
		if x.IPNet == nil {
			continue
		}
		if ip, ok := netip.AddrFromSlice(x.IP); ok {
			if _, wanted := slices.BinarySearchFunc(addrs, ip.Unmap(), netip.Addr.Compare); wanted {
				own[ip.Unmap()] = true
			}
		}
	}
	return own, nil
}

// serial numbers the entries "here", so that sweep does not take one that has
// come anew for the one it has looked at. a.mu is held.
func (a *Admin) serial() uint64 {
	a.hereSerial++
	return a.hereSerial
}

// stays is what e.here becomes when t is to have its segments on this host.
// a.mu is held.
func (a *Admin) stays(t Tuple) uint64 {
	v := a.vips[t.Local.Addr()]
	if a.steering.covers(t) || v != nil && (v.following || v.forward != nil) {
		return a.serial()
	}
	return 0
}

// sweep forgets the tuples that were here and have no socket any more. It is
// the other host's dials that their ports are for.
func (a *Admin) sweep() error {
	a.mu.Lock()
	here, local := map[Tuple]uint64{}, map[netip.Addr]bool{}
	for t, e := range a.tuples {
		if e.here != 0 {
			here[t], local[t.Local.Addr()] = e.here, true
		}
	}
	a.mu.Unlock()
	if len(here) == 0 {
		return nil
	}
	sockets, err := a.sockets(local, allStates)
	if err != nil {
		return err
	}
	maps.DeleteFunc(here, func(t Tuple, _ uint64) bool { _, lives := sockets[t]; return lives })
	return a.changeFew(slices.Collect(maps.Keys(here)), func(t Tuple, e *entry) {
		if e.here == here[t] {
			e.here = 0
		}
	})
}

// tend looks after what Steer has begun and what Divert has reserved, until
// Close.
func (a *Admin) tend() {
	defer close(a.tended)
	tick := time.NewTicker(steerRetry)
	defer tick.Stop()
	swept, looked := time.Now(), time.Now()
	said := "" // each failure once: the next tick most likely has the same
	for {
		select {
		case <-a.quit:
			return
		case <-tick.C:
		}
		a.mu.Lock()
		if !a.closed {
			a.unreserve()
		}
		a.mu.Unlock()
		var err error
		due := time.Since(swept) >= steerSweep
		a.steerMu.Lock()
		if len(a.steering.addrs) > 0 && (due || a.steering.waiting) {
			err = a.applySteering(steerRetry / 10)
		}
		a.steerMu.Unlock()
		if due {
			swept = time.Now()
			err = errors.Join(err, a.sweep())
		}
		if time.Since(looked) >= peersEvery {
			looked = time.Now()
			err = errors.Join(err, a.tendPeers())
		}
		err = errors.Join(err, a.tendVIPs(), a.tendRules())
		if err != nil && !errors.Is(err, ErrClosed) && err.Error() != said {
			said = err.Error()
			a.cfg.Log.Warn("steering", "error", err)
		}
	}
}
