package config

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// validate reports what is wrong between sections. What is wrong inside one
// was reported when it was read; its value is zero then and is passed over.
func (r *reader) validate(d *draft) {
	backends := make(map[string]*backendSite, len(d.backends))
	for i := range d.backends {
		b := &d.backends[i]
		backends[b.b.Ref.Name] = b
		b.validateEndpoints()
	}
	names := slices.Sorted(maps.Keys(backends))
	unknown := func(u use) {
		if backends[u.name] == nil && !d.root.meant["backends"] {
			u.fail(u.key, "no backend %q%s", clip(u.name), thereAre(u.name, names))
		}
	}
	for i := range d.backends {
		for _, u := range d.backends[i].uses {
			unknown(u)
		}
	}
	validateFallbacks(d.backends, backends)
	taken := make(vips)
	if d.node.Metrics.IsValid() {
		taken.take(holder{d.node.Metrics, "node.admin.metrics", d.metricsLine})
	}
	if a := d.node.API; a != nil && a.Listen.IsValid() {
		h := holder{a.Listen, "node.admin.api", d.api.at("listen").line}
		if other := taken.take(h); other != nil {
			d.api.fail("listen", "%s", other.overlap(h.vip))
		}
	}
	for i := range d.listeners {
		l := &d.listeners[i]
		l.validateVIP(taken)
		l.validateGuard(l.l)
		if l.l.Movable && !d.root.has("cluster") && !d.root.meant["cluster"] {
			l.fail("movable", "needs a cluster section: flows move to its peers")
		}
		if vip := l.l.VIP; l.l.Movable && vip.IsValid() && vip.Addr().IsUnspecified() {
			l.fail("movable", "the VIP %v is a wildcard; only flows of a specific address can move", vip)
		}
		for _, u := range l.uses {
			unknown(u)
		}
		for _, reached := range l.reach(backends) {
			b := reached.backend
			if l.unread {
				continue // what it asks of backends is not known
			}
			if l.l.Protocol == HTTP {
				b.http = cmp.Or(b.http, l)
			} else {
				b.tcp = cmp.Or(b.tcp, l)
			}
			l.validateBackend(b, reached.use)
		}
		l.validateCookies(backends)
		l.validateRoutes()
		if n := l.values["accessLog"]; n != nil && n.Value == wordOn && !d.root.has("accessLog") && !d.root.meant["accessLog"] {
			r.warn(l.at("accessLog"), join(l.path, "accessLog"), "there is no access log; add accessLog: {} at the top level")
		}
	}
	// Who did not manage to name a backend may have meant any.
	unread := d.root.meant["listeners"] || slices.ContainsFunc(d.listeners, func(l listenerSite) bool { return l.broken || l.unread || l.meant["backend"] || l.meant["routes"] })
	for i := range d.backends {
		b := &d.backends[i]
		if b.http == nil && b.tcp == nil && !unread {
			r.warn(b.place, b.path, "used by no listener")
		}
		b.validatePolicy(d.node.Zone)
	}
	if len(d.listeners) == 0 && !d.root.has("listeners") && !d.root.meant["listeners"] {
		r.warn(place{1, 1}, "", "there are no listeners, so nothing is served")
	}
	if d.cluster != nil {
		d.validateCluster(taken)
	}
}

// thereAre proposes names: all of them if they are few, else the nearest.
func thereAre(wrong string, known []string) string {
	const few, many = 8, 200
	if len(known) > many {
		return fmt.Sprintf("; there are %d others", len(known))
	}
	switch best := nearest(wrong, known); {
	case len(known) == 0:
		return "; there is none"
	case len(known) <= few:
		return "; there are: " + strings.Join(quoted(known), ", ")
	case best != "":
		return fmt.Sprintf("; did you mean %q?", best)
	}
	return fmt.Sprintf("; there are %d others", len(known))
}

// quoted puts those names in quotes that are none, and were reported as such.
func quoted(names []string) []string {
	names = slices.Clone(names)
	for i, name := range names {
		names[i] = printable(name)
	}
	return names
}

func (s *backendSite) validateEndpoints() {
	names := make(map[string]place)
	addresses := make(map[string]endpointSite)
	for _, site := range s.endpoints {
		e := site.e
		if e.Name == "" {
			continue
		}
		if first, twice := names[e.Name]; twice {
			key := "address"
			if site.has("name") {
				key = "name"
			}
			site.fail(key, "endpoint %q is there already (line %d)", clip(e.Name), first.line)
			continue
		}
		names[e.Name] = site.place
		if !e.known() || e.Drop != NoDrop {
			continue
		}
		if err := checkSource(s.b, e); err != nil {
			site.fail("address", "%v", err)
		}
		// One that is its own backup serves while only its own check port is closed.
		if first, twice := addresses[e.Address()]; twice && first.e.Backup == e.Backup {
			site.r.warn(site.at("address"), join(site.path, "address"), "%s is the address of endpoint %q, too (line %d)",
				e.Address(), first.e.Name, first.place.line)
		} else if !twice {
			addresses[e.Address()] = site
		}
	}
}

// validateBackend: what the listener asks of a backend, which it names by u.
func (l listenerSite) validateBackend(b *backendSite, u use) {
	vip := l.l.VIP.Addr()
	if l.l.Movable {
		if b.byKernel && !b.broken {
			l.fail("movable", "backend %q is dialled from an address of the kernel's choice, which stays on this host; "+
				"give it source: vip, or an address that moves", b.b.Ref.Name)
		}
		for _, site := range b.endpoints {
			if site.e.Unix != "" {
				l.fail("movable", "endpoint %s/%s is a unix socket, whose other end is a process of this host, so its flows cannot move",
					printable(b.b.Ref.Name), printable(site.e.Name))
				break
			}
		}
	}
	if !b.b.SourceVIP || !vip.IsValid() {
		return
	}
	// The source is the address a client came to, so both legs have one family.
	for _, site := range b.endpoints {
		a := site.e.Addr.Addr()
		switch {
		case !a.IsValid() || a.Is4() == vip.Is4() && !l.l.DualStack:
			continue
		case l.l.DualStack:
			l.r.warn(u.at(u.key), join(u.path, u.key),
				"backend %q has source: vip and endpoint %s is %s; clients of the other family cannot be served by it",
				b.b.Ref.Name, printable(site.e.Name), family(a))
		default:
			u.fail(u.key, "backend %q has source: vip, but endpoint %s is %s and the VIP %v is %s",
				b.b.Ref.Name, printable(site.e.Name), family(a), vip, family(vip))
		}
		return
	}
}

// vips are the addresses at which something listens, by port.
type vips map[uint16]*onPort

type onPort struct {
	exact  map[netip.Addr]holder
	v4     *holder // the first of IPv4, 0.0.0.0 included
	any    *holder // the first of all
	all4   *holder // 0.0.0.0
	allAll *holder // [::], which takes IPv4 clients as well
}

// holder is who listens at vip.
type holder struct {
	vip  netip.AddrPort
	who  string
	line int
}

// take adds h, unless it overlaps with another, which it gives then.
func (v vips) take(h holder) *holder {
	on := v[h.vip.Port()]
	if on == nil {
		on = &onPort{exact: make(map[netip.Addr]holder)}
		v[h.vip.Port()] = on
	}
	a := h.vip.Addr()
	if other, ok := on.exact[a]; ok {
		return &other
	}
	switch {
	case on.allAll != nil:
		return on.allAll
	case isDualStack(h.vip) && on.any != nil:
		return on.any
	case a.Is4() && on.all4 != nil:
		return on.all4
	case a == netip.IPv4Unspecified() && on.v4 != nil:
		return on.v4
	}
	on.exact[a] = h
	if on.any == nil {
		on.any = &h
	}
	if a.Is4() && on.v4 == nil {
		on.v4 = &h
	}
	switch {
	case isDualStack(h.vip):
		on.allAll = &h
	case a == netip.IPv4Unspecified():
		on.all4 = &h
	}
	return nil
}

// overlap says how vip collides with h.
func (h *holder) overlap(vip netip.AddrPort) string {
	if vip == h.vip {
		return fmt.Sprintf("%v is already taken by %s (line %d)", vip, h.who, h.line)
	}
	return fmt.Sprintf("%v overlaps %v of %s (line %d)", vip, h.vip, h.who, h.line)
}

func (l listenerSite) validateVIP(taken vips) {
	if !l.l.VIP.IsValid() {
		return
	}
	h := holder{l.l.VIP, "listener " + printable(l.l.Ref.Name), l.place.line}
	if other := taken.take(h); other != nil {
		l.fail("vip", "%s", other.overlap(h.vip))
	}
}

func (d *draft) validateCluster(taken vips) {
	c, s := d.cluster, d.at
	if c.Listen.IsValid() {
		h := holder{c.Listen, "the cluster", s.place.line}
		if other := taken.take(h); other != nil {
			s.fail("listen", "%s", other.overlap(h.vip))
		}
	}
	if s.broken || !s.has("peers") {
		return
	}
	own, listed := c.Peers[d.node.Name]
	if !listed {
		s.fail("peers", "this node, %q, is not among them%s; the name is node.name",
			clip(d.node.Name), thereAre(d.node.Name, c.SortedPeers()))
	} else if own.IsValid() && c.Listen.IsValid() && own != c.Listen && !(c.Listen.Addr().IsUnspecified() && own.Port() == c.Listen.Port()) {
		s.r.warn(s.at("peers"), join(s.path, "peers"), "peers reach this node, %q, at %v, but cluster.listen is %v", d.node.Name, own, c.Listen)
	}
	first := make(map[netip.AddrPort]string)
	for _, name := range c.SortedPeers() {
		a := c.Peers[name]
		if other, twice := first[a]; twice && a.IsValid() {
			s.fail("peers", "%s and %s have the same address %v", printable(other), printable(name), a)
		}
		first[a] = name
	}
}
