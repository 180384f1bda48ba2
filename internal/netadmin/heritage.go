package netadmin

import (
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/google/nftables"
)

// Heritage is what an Admin leaves to the one that follows it in another
// process, so that tuples stay diverted and ports steered without a gap: for a moment
// both have rules of the same effect, under different names.
type Heritage struct {
	Table      string      `json:"table"`       // the heir takes another
	HoldDevice string      `json:"hold_device"` // and another device
	Diverted   []Diversion `json:"diverted"`
	Here       []Tuple     `json:"here,omitempty"` // not steered away
	Steered    *Steering   `json:"steered,omitempty"`
	Sysctls    []Change    `json:"sysctls"` // changed, to be undone by the last
	// Reserved are the ports that were reserved before any of us.
	Reserved *string `json:"reserved,omitempty"`
	// VIPs is what is in force for movable addresses, and Followers, Learnt and
	// Mine are what rules have noted. Its Held are those of a crash.
	VIPs      *State      `json:"vips,omitempty"`
	Followers []Diversion `json:"followers,omitempty"`
	Learnt    []Tuple     `json:"learnt,omitempty"`
	Mine      []Tuple     `json:"mine,omitempty"`

	unfinished bool // see Adopt
	// outlasted: an heir has lengthened its leases, which say nothing any more.
	outlasted bool
}

// outlastFor is how long a predecessor's rules let pass what the heir's decide on. No
// lease is as long, so that it can be told from one.
const outlastFor = followFor + 7*time.Second

// Diversion is one diverted tuple.
type Diversion struct {
	Tuple Tuple      `json:"tuple"`
	To    netip.Addr `json:"to"`
}

// Steering is what was steered.
type Steering struct {
	Addrs  []netip.Addr `json:"addrs"`
	Ranges []PortRange  `json:"ranges"`
}

// Change is one sysctl that was changed.
type Change struct {
	Path string `json:"path"`
	Was  string `json:"was"`
	Now  string `json:"now"`
}

// Heritage tells what an heir needs. Tuples that are held are not in it: a
// batch is finished before a process hands itself over.
func (a *Admin) Heritage() Heritage {
	a.vipMu.Lock()
	defer a.vipMu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.unreserve() // for the heir adds to it, and must not see it written again
	was := a.reserved.was
	h := Heritage{Table: a.cfg.Table, HoldDevice: a.cfg.HoldDevice, Reserved: &was}
	for t, e := range a.tuples {
		if e.peer != nil {
			h.Diverted = append(h.Diverted, Diversion{t, e.peer.addr})
		}
		if e.here != 0 {
			h.Here = append(h.Here, t)
		}
	}
	if s := &a.steering; len(s.ranges) > 0 {
		h.Steered = &Steering{Addrs: s.addrs, Ranges: s.ranges}
	}
	for _, s := range a.sysctls {
		if !strings.Contains(s.path, "/"+a.cfg.HoldDevice+"/") { // that goes with the device
			h.Sysctls = append(h.Sysctls, Change{s.path, s.was, s.now})
		}
	}
	if len(a.vips) > 0 && !a.closed {
		s := a.state()
		s.Held, s.Diverted, s.Here, s.Steered = nil, nil, nil, nil // they are above
		h.VIPs = &s
		if err := a.inheritNotes(&h); err != nil {
			a.cfg.Log.Error("handshakes that follow are not handed on", "error", err)
		}
	}
	return h
}

// inheritNotes adds what rules have noted. a.mu is held.
func (a *Admin) inheritNotes(h *Heritage) error {
	r, all := a.rules, netip.Addr{}
	for to, set := range r.vips.follow {
		peer, ok := peerOf(to)
		if !ok {
			continue
		}
		list, err := r.notes(set, all)
		if err != nil {
			return err
		}
		for _, n := range list {
			h.Followers = append(h.Followers, Diversion{n.tuple, peer})
		}
	}
	for _, x := range []struct {
		set vipSet
		to  *[]Tuple
	}{{r.vips.learnt, &h.Learnt}, {r.vips.me, &h.Mine}} {
		list, err := r.notes(x.set, all)
		if err != nil {
			return err
		}
		for _, n := range list {
			*x.to = append(*x.to, n.tuple)
		}
	}
	return nil
}

// inheritVIPs takes over what h tells of movable addresses, without
// touching those on devices: their time runs there as well.
func (a *Admin) inheritVIPs(h Heritage) error {
	s := h.VIPs
	if err := a.Routed(s.Routed); err != nil {
		return err
	}
	a.vipMu.Lock()
	a.mu.Lock()
	// The leave comes before the fence, so that nobody falls silent.
	err := error(nil)
	let := func(set vipSet, list []Lease, until func(*movable) *time.Time) {
		for _, l := range list {
			x := l.Addr.Addr()
			if l.Left < time.Millisecond || err != nil {
				continue
			}
			if a.vips[x] == nil {
				a.vips[x] = &movable{prefix: l.Addr}
			}
			err = a.rules.let(set, x, l.Left, false)
			*until(a.vips[x]) = time.Now().Add(l.Left)
		}
	}
	let(a.rules.vips.lease, s.Owned, func(v *movable) *time.Time { return &v.ownUntil })
	let(a.rules.vips.guest, s.Guests, func(v *movable) *time.Time { return &v.guestUntil })
	a.mu.Unlock()
	a.vipMu.Unlock()
	if err == nil {
		err = a.Fence(s.Fenced)
	}
	if err != nil {
		return err
	}
	errs := []error{a.Learn(s.Learning)}
	for _, x := range s.Led {
		errs = append(errs, a.Lead(x.Addr, x.To))
	}
	for _, x := range s.Forwarded {
		errs = append(errs, a.Forward(x.Addr, x.To))
	}
	return errors.Join(append(errs, a.inheritNoted(h))...)
}

func (a *Admin) inheritNoted(h Heritage) error {
	noting := func(ts []Tuple) (out []noted) {
		for _, t := range ts {
			out = append(out, noted{tuple: t})
		}
		return out
	}
	byPeer := map[netip.Addr][]Tuple{}
	for _, d := range h.Followers {
		byPeer[d.To] = append(byPeer[d.To], d.Tuple)
	}
	var gone error
	for to := range byPeer {
		if _, err := a.resolve(to, a.cfg.ResolveTimeout); err != nil {
			gone = errors.Join(gone, err)
			delete(byPeer, to)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return ErrClosed
	}
	r := a.rules
	for to, ts := range byPeer {
		p, err := a.peer(to, a.hops[to])
		if err == nil {
			err = r.leadTo(p.way())
		}
		if err == nil {
			err = r.note(r.vips.follow[p.name], noting(ts), followFor)
		}
		if err != nil {
			return err
		}
		for _, t := range ts {
			if v := a.vips[t.Local.Addr()]; v != nil {
				v.following = true
				if err := a.move(t.Local.Addr(), v); err != nil {
					return err
				}
			}
		}
	}
	if err := r.note(r.vips.learnt, noting(h.Learnt), learntFor); err != nil {
		return err
	}
	return errors.Join(gone, r.note(r.vips.me, noting(h.Mine), followFor))
}

// outlast makes the rules of a predecessor let pass what the heir's decide on:
// while both are there, both must.
func (a *Admin) outlast(h Heritage) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return ErrClosed
	}
	old := &nftables.Table{Family: a.rules.netdev.Family, Name: h.Table}
	for _, x := range []struct {
		set  vipSet
		list []Lease
	}{{a.rules.vips.lease, h.VIPs.Owned}, {a.rules.vips.guest, h.VIPs.Guests}} {
		var sets vipSet
		for i, s := range x.set {
			sets[i] = &nftables.Set{Table: old, Name: s.Name, KeyType: s.KeyType, HasTimeout: true}
		}
		for _, l := range x.list {
			if err := a.rules.let(sets, l.Addr.Addr(), outlastFor, true); err != nil {
				return err
			}
		}
	}
	return nil
}

// Inherit takes over what h tells. It is called once, right after Open, while
// the Admin that h is of still works; that one then ends by Leave. Until then the
// heir alone decides who may speak for an address: the other's rules let it
// pass for ten minutes.
func (a *Admin) Inherit(h Heritage) error {
	// What fails, as a peer that is gone does, keeps nothing else from being taken over.
	var errs []error
	if h.VIPs != nil {
		errs = append(errs, a.inheritVIPs(h))
		if err := a.outlast(h); err != nil {
			return errors.Join(append(errs, err)...)
		}
		errs = append(errs, a.Hold(h.VIPs.Held))
	}
	byPeer := map[netip.Addr][]Tuple{}
	for _, d := range h.Diverted {
		byPeer[d.To] = append(byPeer[d.To], d.Tuple)
	}
	for to, ts := range byPeer {
		errs = append(errs, a.Divert(ts, to))
	}
	// The exceptions come before the rule.
	a.mu.Lock()
	errs = append(errs, a.change(h.Here, nil, func(_ Tuple, e *entry) { e.here = a.serial() }))
	a.mu.Unlock()
	if h.Steered != nil {
		errs = append(errs, a.Steer(h.Steered.Addrs, h.Steered.Ranges))
	}
	// Open found these as the predecessor had set them, so it did not note them.
	var before []sysctl
	for _, c := range h.Sysctls {
		before = append(before, sysctl{c.Path, c.Was, c.Now})
	}
	a.mu.Lock()
	a.sysctls = append(before, a.sysctls...)
	if h.Reserved != nil {
		a.reserved.was, a.reserved.stale = *h.Reserved, true
	}
	a.mu.Unlock()
	return errors.Join(errs...)
}

// Leave is Close for an Admin that has an heir: sysctls stay as they are.
func (a *Admin) Leave() error {
	a.vipMu.Lock()
	a.mu.Lock()
	a.left = true
	a.sysctls, a.vips, a.vipLink, a.onLinks = nil, nil, nil, nil
	a.reserved.ports, a.reserved.stale = nil, false
	a.mu.Unlock()
	a.vipMu.Unlock()
	return a.Close()
}
