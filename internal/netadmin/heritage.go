package netadmin

import (
	"net/netip"
	"strings"
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
}

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
	return h
}

// Inherit takes over what h tells. It is called once, right after Open, while
// the Admin that h is of still works; that one then ends by Leave.
func (a *Admin) Inherit(h Heritage) error {
	byPeer := map[netip.Addr][]Tuple{}
	for _, d := range h.Diverted {
		byPeer[d.To] = append(byPeer[d.To], d.Tuple)
	}
	for to, ts := range byPeer {
		if err := a.Divert(ts, to); err != nil {
			return err
		}
	}
	// The exceptions come before the rule.
	a.mu.Lock()
	err := a.change(h.Here, nil, func(_ Tuple, e *entry) { e.here = a.serial() })
	a.mu.Unlock()
	if err != nil {
		return err
	}
	if h.Steered != nil {
		if err := a.Steer(h.Steered.Addrs, h.Steered.Ranges); err != nil {
			return err
		}
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
	return nil
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
