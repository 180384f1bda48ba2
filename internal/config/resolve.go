package config

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
)

// hostPort is what [Resolved] has for an endpoint that is a name.
func (e *Endpoint) hostPort() string { return e.Host + ":" + strconv.Itoa(int(e.Port)) }

// named tells whether e is a name that stands for addresses.
func (e *Endpoint) named() bool { return e.Host != "" && !e.Addr.IsValid() }

// addressSuffix tells the addresses of one name apart.
func addressSuffix(a netip.AddrPort, port uint16) string {
	if a.Port() == port {
		return a.Addr().String()
	}
	return a.String()
}

// Names gives what has to be resolved, as "host:port", sorted, each once.
func (c *Config) Names() []string {
	all := make(map[string]bool)
	for _, b := range c.Backends {
		for _, e := range b.Endpoints {
			if e.named() {
				all[e.hostPort()] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// Resolve gives a config in which each endpoint that is a name is replaced by
// one endpoint for each of its addresses, named as in "a1/10.0.0.7"; a name
// without an answer leaves none. What r says in another order, or twice, makes
// no difference. Backends without names are the same pointers; c is not touched.
func (c *Config) Resolve(r Resolved) *Config {
	next := *c
	next.Backends = make(map[string]*Backend, len(c.Backends))
	for name, b := range c.Backends {
		if slices.ContainsFunc(b.Endpoints, (*Endpoint).named) {
			v4, v6 := c.families(b)
			b = b.resolve(r, v4, v6)
		}
		next.Backends[name] = b
	}
	return &next
}

// families says which addresses b can be dialled at: those of its source.
func (c *Config) families(b *Backend) (v4, v6 bool) {
	switch {
	case b.Source.IsValid():
		return b.Source.Is4(), b.Source.Is6()
	case !b.SourceVIP:
		return true, true
	}
	for _, other := range c.Backends {
		if f := other.Fallback; f != nil && f.Backend == b.Ref.Name {
			return true, true // whoever comes to the other one
		}
	}
	for _, l := range c.Listeners {
		if slices.Contains(l.Names(), b.Ref.Name) {
			v4 = v4 || l.DualStack || l.VIP.Addr().Is4()
			v6 = v6 || l.VIP.Addr().Is6()
		}
	}
	return v4, v6
}

func (b *Backend) resolve(r Resolved, v4, v6 bool) *Backend {
	next := *b
	next.Endpoints = make([]*Endpoint, 0, len(b.Endpoints))
	for _, e := range b.Endpoints {
		if !e.named() {
			next.Endpoints = append(next.Endpoints, e)
			continue
		}
		for _, a := range addressesOf(r[e.hostPort()], v4, v6) {
			one := *e
			one.Addr = a
			one.Name += "/" + addressSuffix(a, e.Port)
			one.seal()
			next.Endpoints = append(next.Endpoints, &one)
		}
	}
	if len(next.Endpoints) > endpointsMax {
		next.Endpoints = next.Endpoints[:endpointsMax]
	}
	next.sealAlone(b.Ref.Name) // its other endpoints are those of b
	return &next
}

// addressesOf gives those of all that can be dialled, in order, each once.
func addressesOf(all []netip.AddrPort, v4, v6 bool) []netip.AddrPort {
	var good []netip.AddrPort
	for _, a := range all {
		a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		if checkAddrPort(a, false) == nil && (a.Addr().Is4() && v4 || a.Addr().Is6() && v6) {
			good = append(good, a)
		}
	}
	slices.SortFunc(good, netip.AddrPort.Compare)
	good = slices.Compact(good)
	return good[:min(len(good), addressesMax)]
}
