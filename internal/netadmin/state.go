package netadmin

import (
	"net/netip"
	"slices"
	"time"
)

// Sending is what is led or forwarded: what is for Addr goes to the host To.
type Sending struct {
	Addr netip.Addr `json:"addr"`
	To   netip.Addr `json:"to"`
}

// Lease is what is left of the leave to answer for an address, or to speak TCP
// from it.
type Lease struct {
	Addr netip.Prefix  `json:"addr"`
	Left time.Duration `json:"left"`
}

// State is what is in force, for who comes later and has to know.
type State struct {
	Fenced    []netip.Prefix   `json:"fenced,omitempty"`
	Routed    []netip.Addr     `json:"routed,omitempty"`
	Owned     []Lease          `json:"owned,omitempty"`
	Guests    []Lease          `json:"guests,omitempty"`
	Learning  []netip.AddrPort `json:"learning,omitempty"`
	Led       []Sending        `json:"led,omitempty"`
	Forwarded []Sending        `json:"forwarded,omitempty"`
	Held      []Tuple          `json:"held,omitempty"`
	Diverted  []Diversion      `json:"diverted,omitempty"`
	Here      []Tuple          `json:"here,omitempty"`
	Steered   *Steering        `json:"steered,omitempty"`
}

// State tells what is in force. What rules have noted by themselves, as who
// follows, is not in it.
func (a *Admin) State() (State, error) {
	a.vipMu.Lock()
	defer a.vipMu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return State{}, ErrClosed
	}
	return a.state(), nil
}

// state: a.vipMu and a.mu are held.
func (a *Admin) state() State {
	s := State{Learning: slices.Clone(a.learning)}
	now := time.Now()
	for _, x := range a.sortedVIPs() {
		v := a.vips[x]
		s.Fenced = append(s.Fenced, v.prefix)
		if a.routed[x] {
			s.Routed = append(s.Routed, x)
		}
		if v.owned(now) {
			s.Owned = append(s.Owned, Lease{v.prefix, v.ownUntil.Sub(now)})
		}
		if v.guest(now) {
			s.Guests = append(s.Guests, Lease{v.prefix, v.guestUntil.Sub(now)})
		}
		if v.lead != nil {
			s.Led = append(s.Led, Sending{x, v.lead.addr})
		}
		if v.forward != nil {
			s.Forwarded = append(s.Forwarded, Sending{x, v.forward.addr})
		}
	}
	for t, e := range a.tuples {
		if e.held {
			s.Held = append(s.Held, t)
		}
		if e.peer != nil {
			s.Diverted = append(s.Diverted, Diversion{t, e.peer.addr})
		}
		if e.here != 0 {
			s.Here = append(s.Here, t)
		}
	}
	slices.SortFunc(s.Held, compareTuples)
	slices.SortFunc(s.Here, compareTuples)
	slices.SortFunc(s.Diverted, func(x, y Diversion) int { return compareTuples(x.Tuple, y.Tuple) })
	if st := &a.steering; len(st.ranges) > 0 {
		s.Steered = &Steering{Addrs: slices.Clone(st.addrs), Ranges: slices.Clone(st.ranges)}
	}
	return s
}
