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
		backends[d.backends[i].b.Ref.Name] = &d.backends[i]
	}
	unknown := func(u use) {
		if !d.root.meant["backends"] {
			u.fail(u.key, "no backend %q%s", clip(u.name), thereAre(u.name, slices.Sorted(maps.Keys(backends))))
		}
	}
	for i := range d.backends {
		b := &d.backends[i]
		for k := range b.uses {
			if backends[b.uses[k].name] == nil {
				unknown(b.awake().uses[k])
			}
		}
	}
	validateFallbacks(d.backends, backends)
	taken := newVIPs(len(d.listeners))
	if d.node.Metrics.IsValid() {
		taken.take(holder{vip: d.node.Metrics, who: "node.admin.metrics", line: d.metricsLine})
	}
	if a := d.node.API; a != nil && a.Listen.IsValid() {
		h := holder{vip: a.Listen, who: "node.admin.api", line: d.api.at("listen").line}
		if other := taken.take(h); other != nil {
			d.api.fail("listen", "%s", other.overlap(h.vip))
		}
	}
	var all []reached
	for i := range d.listeners {
		l := &d.listeners[i]
		l.validateVIP(taken)
		if l.l.Movable && l.l.VIPName == "" && !d.root.has("cluster") && !d.root.meant["cluster"] {
			l.awake().fail("movable", "needs a cluster section: flows move to its peers")
		}
		for k := range l.uses {
			if backends[l.uses[k].name] == nil {
				unknown(l.awake().uses[k])
			}
		}
		all = l.reach(all[:0], backends, i+1)
		for _, reached := range all {
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
		l.validateCookies(all)
		if l.logs && !d.root.has("accessLog") && !d.root.meant["accessLog"] {
			l.awake().warn("accessLog", "there is no access log; add accessLog: {} at the top level")
		}
	}
	// Who did not manage to name a backend may have meant any.
	unread := d.root.meant["listeners"] || slices.ContainsFunc(d.listeners, func(l listenerSite) bool {
		return l.section != nil && (l.broken || l.unread || l.meant["backend"] || l.meant["routes"])
	})
	for i := range d.backends {
		b := &d.backends[i]
		if b.http == nil && b.tcp == nil && !unread {
			r.warn(b.awake().place, b.path, "used by no listener")
		}
		b.validatePolicy(d.node.Zone)
	}
	if len(d.listeners) == 0 && !d.root.has("listeners") && !d.root.meant["listeners"] {
		r.warn(place{1, 1}, "", "there are no listeners, so nothing is served")
	}
	r.validateNodes(d)
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

// validateAlone reports what is wrong with a listener, whatever else there is.
func (l *listenerSite) validateAlone() {
	n := l.values["accessLog"]
	l.logs = n != nil && n.Value == wordOn
	l.validateGuard(l.l)
	if vip := l.l.VIP; l.l.Movable && vip.IsValid() && vip.Addr().IsUnspecified() {
		l.fail("movable", "the VIP %v is a wildcard; only flows of a specific address can move", vip)
	}
	l.validateRoutes()
}

// validateAlone reports what is wrong with a backend, whatever else there is.
func (s *backendSite) validateAlone() {
	s.validateEndpoints()
	b := s.b
	if n := s.values["eject"]; b.Panic > 0 && !s.has("check") && n != nil && n.Value == wordOff {
		s.warn("panic", "there is neither check nor eject, so no endpoint is ever down")
	}
	if len(b.Retry.Statuses) > 0 && b.RetryMax == 0 || b.Retry.Reset && b.RetryMax == 0 {
		s.warn("retry", "with max: 0 nothing is tried again, whatever on says")
	}
	s.validateServers()
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

// validateBackend: what the listener asks of a backend, which it names by its k-th
// use.
func (l *listenerSite) validateBackend(b *backendSite, k int) {
	vip := l.l.VIP.Addr()
	if l.l.Movable {
		if b.byKernel && (b.section == nil || !b.broken) {
			l.awake().fail("movable", "backend %q is dialled from an address of the kernel's choice, which stays on this host; "+
				"give it source: vip, or an address that moves", b.b.Ref.Name)
		}
		if e := b.first(func(e *Endpoint) bool { return e.Addr.Addr().IsLoopback() }); e != nil {
			l.awake().fail("movable", "endpoint %s/%s is at %v, which is another server on each host; give it the address at which all nodes reach it",
				printable(b.b.Ref.Name), printable(e.Name), e.Addr)
		}
		if e := b.first(func(e *Endpoint) bool { return e.Unix != "" }); e != nil {
			l.awake().fail("movable", "endpoint %s/%s is a unix socket, whose other end is a process of this host, so its flows cannot move",
				printable(b.b.Ref.Name), printable(e.Name))
		}
	}
	if !b.b.SourceVIP || !vip.IsValid() {
		return
	}
	// The source is the address a client came to, so both legs have one family.
	e := b.first(func(e *Endpoint) bool {
		a := e.Addr.Addr()
		return a.IsValid() && (a.Is4() != vip.Is4() || l.l.DualStack)
	})
	if e == nil {
		return
	}
	if u := l.awake().uses[k]; l.l.DualStack {
		u.warn(u.key, "backend %q has source: vip and endpoint %s is %s; clients of the other family cannot be served by it",
			b.b.Ref.Name, printable(e.Name), family(e.Addr.Addr()))
	} else {
		u.fail(u.key, "backend %q has source: vip, but endpoint %s is %s and the VIP %v is %s",
			b.b.Ref.Name, printable(e.Name), family(e.Addr.Addr()), vip, family(vip))
	}
}

// first gives the first endpoint of the file that is so, or nil.
func (s *backendSite) first(is func(*Endpoint) bool) *Endpoint {
	if !slices.ContainsFunc(s.b.Endpoints, is) {
		return nil
	}
	all := s.awake().endpoints
	return all[slices.IndexFunc(all, func(site endpointSite) bool { return is(site.e) })].e
}

// vips are the addresses at which something listens. Holders are known by their
// numbers, from 1.
type vips struct {
	holders []holder
	exact   map[netip.AddrPort]int32
	on      map[uint16]onPort
}

// onPort is who listens at one port; 0 is nobody.
type onPort struct {
	v4     int32 // the first of IPv4, 0.0.0.0 included
	any    int32 // the first of all
	all4   int32 // 0.0.0.0
	allAll int32 // [::], which takes IPv4 clients as well
}

// holder is who listens at vip.
type holder struct {
	vip      netip.AddrPort
	listener *listenerSite // or else:
	who      string
	line     int
}

// newVIPs has room for n without growing.
func newVIPs(n int) *vips {
	return &vips{make([]holder, 0, n+3), make(map[netip.AddrPort]int32, n+3), make(map[uint16]onPort, n+3)}
}

// take adds h, unless it overlaps with another, which it gives then.
func (v *vips) take(h holder) *holder {
	a := h.vip.Addr()
	if i, ok := v.exact[h.vip]; ok {
		return &v.holders[i-1]
	}
	on := v.on[h.vip.Port()]
	other := int32(0)
	switch {
	case on.allAll > 0:
		other = on.allAll
	case isDualStack(h.vip) && on.any > 0:
		other = on.any
	case a.Is4() && on.all4 > 0:
		other = on.all4
	case a == netip.IPv4Unspecified() && on.v4 > 0:
		other = on.v4
	}
	if other > 0 {
		return &v.holders[other-1]
	}
	v.holders = append(v.holders, h)
	n := int32(len(v.holders))
	v.exact[h.vip] = n
	on.any = cmp.Or(on.any, n)
	if a.Is4() {
		on.v4 = cmp.Or(on.v4, n)
	}
	switch {
	case isDualStack(h.vip):
		on.allAll = n
	case a == netip.IPv4Unspecified():
		on.all4 = n
	}
	v.on[h.vip.Port()] = on
	return nil
}

// overlap says how vip collides with h.
func (h *holder) overlap(vip netip.AddrPort) string {
	if l := h.listener; l != nil {
		h.who, h.line = "listener "+printable(l.l.Ref.Name), l.awake().place.line
	}
	if vip == h.vip {
		return fmt.Sprintf("%v is already taken by %s (line %d)", vip, h.who, h.line)
	}
	return fmt.Sprintf("%v overlaps %v of %s (line %d)", vip, h.vip, h.who, h.line)
}

func (l *listenerSite) validateVIP(taken *vips) {
	if !l.l.VIP.IsValid() {
		return
	}
	h := holder{vip: l.l.VIP, listener: l}
	if other := taken.take(h); other != nil {
		l.awake().fail("vip", "%s", other.overlap(h.vip))
	}
}

func (d *draft) validateCluster(taken *vips) {
	self := d.sites[join("nodes", d.node.Name)]
	if at := d.cluster.Listen; at.IsValid() && self != nil {
		h := holder{vip: at, who: "the cluster", line: self.place.line}
		if other := taken.take(h); other != nil {
			self.fail("address", "%s", other.overlap(h.vip))
		}
	}
}
