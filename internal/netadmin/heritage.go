package netadmin

import (
	"errors"
	"net/netip"
	"time"

	"github.com/google/nftables"
)

// heritage is what an Admin that was killed has left in the kernel, for the one that comes
// after it: tuples stay diverted without a gap, for until the old rules are removed both have
// rules of the same effect, under different names.
type heritage struct {
	table string            // the heir takes another
	ways  map[string]string // chains by the keys of the map of that name
	// state is what was in force: Steered and Routed are not known, and a prefix is of one address.
	state *State
	// followers, learnt and mine are what rules had noted.
	followers    []Diversion
	learnt, mine []Tuple

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

// inheritVIPs takes over what h tells of movable addresses, without
// touching those on devices: their time runs there as well.
func (a *Admin) inheritVIPs(h heritage) error {
	s := h.state
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

func (a *Admin) inheritNoted(h heritage) error {
	noting := func(ts []Tuple) (out []noted) {
		for _, t := range ts {
			out = append(out, noted{tuple: t})
		}
		return out
	}
	byPeer := map[netip.Addr][]Tuple{}
	for _, d := range h.followers {
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
	if err := r.note(r.vips.learnt, noting(h.learnt), learntFor); err != nil {
		return err
	}
	return errors.Join(gone, r.note(r.vips.me, noting(h.mine), followFor))
}

// outlast makes the rules of a predecessor let pass what the heir's decide on:
// while both are there, both must.
func (a *Admin) outlast(h heritage) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return ErrClosed
	}
	old := &nftables.Table{Family: a.rules.netdev.Family, Name: h.table}
	for _, x := range []struct {
		set  vipSet
		list []Lease
	}{{a.rules.vips.lease, h.state.Owned}, {a.rules.vips.guest, h.state.Guests}} {
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

// inherit takes over what h tells. It is called once, right after Open. Until the old tables
// are removed the heir alone decides who may speak for an address: the others let it pass
// for ten minutes.
func (a *Admin) inherit(h heritage) error {
	// What fails, as a peer that is gone does, keeps nothing else from being taken over.
	errs := []error{a.inheritVIPs(h)}
	if err := a.outlast(h); err != nil {
		return errors.Join(append(errs, err)...)
	}
	errs = append(errs, a.Hold(h.state.Held))
	byPeer := map[netip.Addr][]Tuple{}
	for _, d := range h.state.Diverted {
		byPeer[d.To] = append(byPeer[d.To], d.Tuple)
	}
	for to, ts := range byPeer {
		errs = append(errs, a.Divert(ts, to))
	}
	a.mu.Lock()
	errs = append(errs, a.change(h.state.Here, nil, func(_ Tuple, e *entry) { e.here = a.serial() }))
	a.mu.Unlock()
	return errors.Join(errs...)
}
