package flow

import (
	"bytes"
	"math/bits"
	"net/netip"
	"strings"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/h1"
)

// route gives the index of the first route that the request h of a source
// matches, or -1. It looks at what the client sent: also at fields that are for
// one hop.
func route(r *config.Rules, h *h1.Head, source netip.Addr) int {
	host, path := hostOf(h), plain(pathOf(h))
	for i, rt := range r.Routes {
		if matches(&rt.Match, h, host, path, source) {
			return i
		}
	}
	return -1
}

// hostOf gives the host that the request is for, without its port, and without
// the dot of a name that is fully qualified: it is the same host.
func hostOf(h *h1.Head) []byte {
	host := withoutPort(h.Authority.Of(h.Octets))
	if n := len(host); n > 1 && host[n-1] == '.' {
		return host[:n-1]
	}
	return host
}

func withoutPort(host []byte) []byte {
	// In an IPv6 literal the colons stand in brackets.
	if i := bytes.LastIndexByte(host, ':'); i >= 0 && bytes.IndexByte(host[i:], ']') < 0 {
		return host[:i]
	}
	return host
}

var rootPath = []byte("/")

// pathOf gives the path of the target, nil if the target has none: that of
// CONNECT is a host, and "*" is no path.
func pathOf(h *h1.Head) []byte {
	switch h.Form {
	case h1.OriginForm:
		return h.Path.Of(h.Octets)
	case h1.AbsoluteForm:
		if p := h.Path.Of(h.Octets); len(p) > 0 {
			return p
		}
		// RFC 9112, section 3.2.4: such a target of OPTIONS is "*".
		if h.Method == h1.OPTIONS && !hasQuery(h) {
			return nil
		}
		return rootPath
	case h1.AuthorityForm, h1.AsteriskForm:
		return nil
	default:
		panic("flow: no such form of a target")
	}
}

// plain gives path in the one way to write it: letters, digits and "-._~" not
// percent-encoded, other octets with capital digits. Both ways name the same
// (RFC 3986, section 6.2.2), so a route must rule both; what is passed on stays
// as it is. A path that is not plain, which is rare, is copied.
func plain(path []byte) []byte {
	for i := 0; i+2 < len(path); i++ {
		if path[i] != '%' || !folds(path[i+1], path[i+2]) {
			continue
		}
		made := append(make([]byte, 0, len(path)), path[:i]...)
		for ; i < len(path); i++ {
			c := path[i]
			if c != '%' || i+2 >= len(path) {
				made = append(made, c)
				continue
			}
			if c = unhex(path[i+1])<<4 | unhex(path[i+2]); unreserved(c) {
				made = append(made, c)
			} else {
				made = append(made, '%', upperHex[c>>4], upperHex[c&15])
			}
			i += 2
		}
		return made
	}
	return path
}

// folds tells whether an encoded octet is written in another way than plain
// writes it.
func folds(high, low byte) bool {
	return high >= 'a' || low >= 'a' || unreserved(unhex(high)<<4|unhex(low))
}

func unreserved(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z' || c == '-' || c == '.' || c == '_' || c == '~'
}

// hasQuery tells whether a question mark follows the path, be the query empty
// or not.
func hasQuery(h *h1.Head) bool {
	return h.Query.Len() > 0 || h.Target.Len() > 0 && h.Octets[h.Target.To-1] == '?'
}

func matches(m *config.Match, h *h1.Head, host, path []byte, source netip.Addr) bool {
	if len(m.Sources) > 0 && !config.Holds(m.Sources, source) {
		return false
	}
	if len(m.Hosts) > 0 && !anyHost(m.Hosts, host) {
		return false
	}
	switch {
	case m.Exact != "":
		if string(path) != m.Exact {
			return false
		}
	case m.Prefix != "":
		if !underPrefix(path, m.Prefix) {
			return false
		}
	case m.Regex != nil:
		if path == nil || !m.Regex.Match(path) {
			return false
		}
	}
	if len(m.Methods) > 0 && !anyMethod(m.Methods, h.MethodName.Of(h.Octets)) {
		return false
	}
	for i := range m.Headers {
		if !anyField(&m.Headers[i], h) {
			return false
		}
	}
	for i := range m.Query {
		if !anyParameter(&m.Query[i], h) {
			return false
		}
	}
	return true
}

// anyHost wants one of hosts, which are in lower case.
func anyHost(hosts []string, host []byte) bool {
	for _, want := range hosts {
		if below, ok := strings.CutPrefix(want, "*"); ok {
			// ".example.org" must have something before it.
			if k := len(host) - len(below); k > 0 && same(host[k:], below) {
				return true
			}
		} else if same(host, want) {
			return true
		}
	}
	return false
}

// underPrefix tells whether path is prefix or lies below it: a prefix ends
// where a segment does.
func underPrefix(path []byte, prefix string) bool {
	if len(path) < len(prefix) || string(path[:len(prefix)]) != prefix {
		return false
	}
	return len(path) == len(prefix) || prefix[len(prefix)-1] == '/' || path[len(prefix)] == '/'
}

func anyMethod(methods []string, name []byte) bool {
	for _, m := range methods {
		if string(name) == m {
			return true
		}
	}
	return false
}

func anyField(p *config.Pair, h *h1.Head) bool {
	for i := range h.Fields {
		f := &h.Fields[i]
		if same(f.Name.Of(h.Octets), p.Name) && pairIs(p, f.Value.Of(h.Octets)) {
			return true
		}
	}
	return false
}

func anyParameter(p *config.Pair, h *h1.Head) bool {
	if !hasQuery(h) {
		return false
	}
	rest := h.Query.Of(h.Octets)
	for more := true; more; {
		var one []byte
		one, rest, more = bytes.Cut(rest, ampersand)
		name, value, _ := bytes.Cut(one, equals)
		if len(one) > 0 && string(name) == p.Name && pairIs(p, value) {
			return true
		}
	}
	return false
}

var ampersand, equals = []byte("&"), []byte("=")

func pairIs(p *config.Pair, value []byte) bool {
	switch {
	case p.Present:
		return true
	case p.Regex != nil:
		return p.Regex.Match(value)
	}
	return string(value) == p.Value
}

// same tells whether b is s but for the case of ASCII letters.
func same[T string | []byte](b T, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i := range len(b) {
		if c, d := b[i], s[i]; c != d && lower(c) != lower(d) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}

// dotted tells whether path has a segment "." or "..", which a backend may
// resolve to a path that another route rules. Backends differ in how they
// read, so the most generous reading counts: dots may be percent-encoded, so
// may slashes, a backslash is a slash, and what stands behind a semicolon is no
// part of the name.
func dotted(path []byte) bool {
	dots, named := 0, false // of the segment under way
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '%' && i+2 < len(path) {
			c = unhex(path[i+1])<<4 | unhex(path[i+2])
			i += 2
		}
		switch {
		case c == '/' || c == '\\':
			if dots == 1 || dots == 2 {
				return true
			}
			dots, named = 0, false
		case named:
		case c == '.':
			dots++
		default:
			if c == ';' && (dots == 1 || dots == 2) {
				return true
			}
			dots, named = 0, true
		}
	}
	return dots == 1 || dots == 2
}

// unhex gives the value of a hexadecimal digit. Of other octets it gives what
// makes no dot, slash or semicolon: targets are checked before.
func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}

// golden is 2^64 divided by the golden ratio, odd. Its multiples spread over
// 64 bits more evenly than those of any other number: however short a run of
// them is, each range gets about its share (Knuth, TAOCP volume 3, section
// 6.4).
const golden = 0x9E3779B97F4A7C15

// choose gives the name of the backend that request number pick goes to. Picks
// that count up share themselves out by the weights.
func choose(rt *config.Route, pick uint64) string {
	if len(rt.Backends) == 1 {
		return rt.Backends[0].Name
	}
	at, _ := bits.Mul64(pick*golden, uint64(rt.Weight()))
	for _, w := range rt.Backends {
		if at < uint64(w.Weight) {
			return w.Name
		}
		at -= uint64(w.Weight)
	}
	panic("flow: a route without a weight above 0")
}
