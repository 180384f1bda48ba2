package config

import (
	"net/netip"
	"slices"
	"strings"
)

// validateRoutes warns of routes that no request comes to.
func (l *listenerSite) validateRoutes() {
	for i, site := range l.routes {
		for j, before := range l.routes[:i] {
			if !before.whole || !site.whole || !before.route.Match.covers(&site.route.Match) {
				continue
			}
			place, path := site.place, site.path
			if site.key != "" {
				place, path = site.at(site.key), join(site.path, site.key)
			}
			l.r.warn(place, path, "never reached: routes[%d] (line %d) matches all that this does", j, before.place.line)
			break
		}
	}
}

// covers: whatever o matches, m matches, too. What cannot be told without
// looking into expressions counts as not covered.
func (m *Match) covers(o *Match) bool {
	return m.coversHosts(o) && m.coversPath(o) &&
		(len(m.Methods) == 0 || len(o.Methods) > 0 && subset(o.Methods, m.Methods)) &&
		coversPairs(m.Headers, o.Headers, true) && coversPairs(m.Query, o.Query, false) &&
		coversSources(m.Sources, o.Sources)
}

// coversSources: whoever is in o is in m.
func coversSources(m, o []netip.Prefix) bool {
	if len(m) == 0 {
		return true
	}
	return len(o) > 0 && !slices.ContainsFunc(o, func(p netip.Prefix) bool { return !holds(m, p) })
}

// holds tells whether one of the networks has all of p.
func holds(all []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(all, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) })
}

func subset(some, of []string) bool {
	return !slices.ContainsFunc(some, func(s string) bool { return !slices.Contains(of, s) })
}

func (m *Match) coversHosts(o *Match) bool {
	if len(m.Hosts) == 0 {
		return true
	}
	for _, host := range o.Hosts {
		if !slices.ContainsFunc(m.Hosts, func(h string) bool {
			below, wild := strings.CutPrefix(h, "*")
			return h == host || wild && strings.HasSuffix(host, below)
		}) {
			return false
		}
	}
	return len(o.Hosts) > 0
}

func (m *Match) coversPath(o *Match) bool {
	switch {
	case m.Exact != "":
		return o.Exact == m.Exact
	case m.Regex != nil:
		return regexText(o.Regex) == regexText(m.Regex)
	case m.Prefix == "":
		return true
	case m.Prefix == "/":
		return o.Exact != "" || o.Prefix != "" || o.Regex != nil // "*" has no path
	}
	return hasPathPrefix(o.Exact, m.Prefix) || hasPathPrefix(o.Prefix, m.Prefix)
}

// hasPathPrefix: path is below prefix, or is it: whole segments count.
func hasPathPrefix(path, prefix string) bool {
	rest, found := strings.CutPrefix(path, prefix)
	return found && (rest == "" || strings.HasSuffix(prefix, "/") || rest[0] == '/')
}

// coversPairs: o asks for all that m asks for.
func coversPairs(m, o []Pair, header bool) bool {
	for _, p := range m {
		if !slices.ContainsFunc(o, func(q Pair) bool {
			return samePair(p, q, header) && (p.Present ||
				!q.Present && p.Value == q.Value && regexText(p.Regex) == regexText(q.Regex))
		}) {
			return false
		}
	}
	return true
}
