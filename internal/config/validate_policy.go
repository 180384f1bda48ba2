package config

import (
	"slices"
	"strings"
)

// reached is a backend that a listener comes to, by a place that names it or,
// over fallbacks, leads to it.
type reached struct {
	backend *backendSite
	use     int // of the listener
}

// reach appends all backends that requests of l, the n-th listener, may come to,
// each once.
func (l *listenerSite) reach(all []reached, backends map[string]*backendSite, n int) []reached {
	for k := range l.uses {
		for b := backends[l.uses[k].name]; b != nil && b.reached != n; b = b.next(backends) {
			b.reached = n
			all = append(all, reached{b, k})
		}
	}
	return all
}

// next gives the backend that serves instead, if there is one.
func (s *backendSite) next(backends map[string]*backendSite) *backendSite {
	// A backend whose name was refused may have none.
	if s.b.Fallback == nil || s.b.Fallback.Backend == "" {
		return nil
	}
	return backends[s.b.Fallback.Backend]
}

// validateFallbacks reports each circle of fallbacks once, at the first of its
// backends in the file.
func validateFallbacks(all []backendSite, byName map[string]*backendSite) {
	told := make(map[*backendSite]bool)
	for i := range all {
		b := &all[i]
		if b.b.Fallback == nil {
			continue
		}
		way := []string{printable(b.b.Ref.Name)}
		on := map[*backendSite]bool{b: true}
		for next := b.next(byName); next != nil; next = next.next(byName) {
			way = append(way, printable(next.b.Ref.Name))
			if next == b && !told[b] {
				b.awake().uses[0].fail("backend", "leads back to where it began: %s", strings.Join(way, " -> "))
				for site := range on {
					told[site] = true
				}
			}
			if on[next] {
				break
			}
			on[next] = true
		}
	}
}

// validateCookies warns of backends that overwrite each other's cookies.
func (l *listenerSite) validateCookies(all []reached) {
	if len(all) < 2 {
		return
	}
	type cookie struct{ name, domain, path string }
	first := make(map[cookie]*backendSite)
	for _, r := range all {
		y := r.backend.b.Sticky
		if y == nil || y.Kind != StickyCookie || y.Name == "" {
			continue
		}
		c := cookie{y.Name, y.Domain, y.Path}
		if other := first[c]; other == nil {
			first[c] = r.backend
		} else {
			other.awake()
			r.backend.awake().warn("sticky", "backend %s (line %d) has the cookie %s, too, and listener %s uses both: "+
				"each would replace what the other one set; give one of them another name or path",
				printable(other.b.Ref.Name), other.at("sticky").line, y.Name, printable(l.l.Ref.Name))
		}
	}
}

// validatePolicy reports what a backend has that does not go with who uses it,
// or with this node.
func (s *backendSite) validatePolicy(zone string) {
	if s.tcp != nil {
		s.validateTCP()
	}
	if s.http == nil && s.tcp != nil && s.httpOnly {
		for _, key := range []string{"answerTimeout", "reuse"} {
			if s.awake().has(key) {
				s.warn(key, "is for http, and no listener for http uses this backend")
			}
		}
	}
	b := s.b
	if b.PreferLocal && slices.ContainsFunc(b.Endpoints, func(e *Endpoint) bool { return e.Node != "" }) {
		return // whose node it is says what is local
	}
	if b.PreferLocal && zone == "" {
		s.awake().warn("preferLocal", "this node is in no zone; set node.zone")
	} else if b.PreferLocal && len(b.Endpoints) > 0 && !slices.ContainsFunc(b.Endpoints, func(e *Endpoint) bool { return e.Zone == zone }) {
		s.awake().warn("preferLocal", "no endpoint is in the zone of this node, %s", zone)
	}
}

// validateServers looks at the endpoints together.
func (s *backendSite) validateServers() {
	all := s.endpoints
	if len(all) == 0 {
		return
	}
	if !slices.ContainsFunc(all, func(e endpointSite) bool { return e.e.Weight > 0 }) {
		s.warn("endpoints", "every weight is 0, so no endpoint gets anything new")
	}
	if !slices.ContainsFunc(all, func(e endpointSite) bool { return !e.e.Backup }) {
		s.warn("endpoints", "every endpoint is a backup, so they serve as if none was")
	}
	if c := s.b.Check; c != nil && c.Agent != nil {
		for _, e := range all {
			if e.e.Unix != "" {
				e.fail("address", "an agent is asked at the address of its endpoint, and a unix socket has none")
			}
		}
	}
}

// validateTCP reports what can only be done with requests.
func (s *backendSite) validateTCP() {
	refuse := func(key, what string) {
		s.awake().fail(key, "listener %s (line %d) is for tcp and uses this backend, but %s", printable(s.tcp.l.Ref.Name), s.tcp.awake().place.line, what)
	}
	b := s.b
	if b.Sticky != nil && b.Sticky.Kind != StickySource {
		refuse("sticky", "only requests have a "+b.Sticky.Kind.String()+"; sticky: { source: {} } goes by the address")
	}
	if b.Hash.Kind != HashSource {
		refuse("hash", "only requests have a "+b.Hash.Kind.String()+"; hash: { by: source } goes by the address")
	}
	if b.Retry.Reset || len(b.Retry.Statuses) > 0 {
		refuse("retry", "only requests can be sent again, so on: [connect] is all that is possible")
	}
	if f := b.Fallback; f != nil && f.Respond != nil {
		refuse("fallback", "only requests can be answered; fallback: { backend: NAME } is possible")
	}
}

func (s *section) warn(key, format string, args ...any) {
	s.r.warn(s.at(key), join(s.path, key), format, args...)
}
