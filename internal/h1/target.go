package h1

import "bytes"

var (
	faultTarget    = refuse(400, "a target that is not of the form that its method wants")
	faultEscape    = refuse(400, "a path with a percent sign that two hexadecimal digits do not follow")
	faultAuthority = refuse(400, "no valid host and port")
	faultNoHost    = refuse(400, "HTTP/1.1 without Host")
	faultHosts     = refuse(400, "more than one Host field")
	faultOtherHost = refuse(400, "Host differs from the target's authority")
)

// target takes the target apart (RFC 9112, section 3.2).
func (h *Head) target() *fault {
	from, to := int(h.Target.From), int(h.Target.To)
	t := h.Octets[from:to]
	path := from
	switch {
	case h.Method == CONNECT:
		h.Form, h.Authority = AuthorityForm, h.Target
		if !authority(t, true) {
			return faultAuthority
		}
		return nil
	case t[0] == '/':
		h.Form = OriginForm
	case len(t) == 1 && t[0] == '*':
		h.Form = AsteriskForm
		if h.Method != OPTIONS {
			return faultTarget
		}
		return nil
	default:
		h.Form = AbsoluteForm
		switch {
		case len(t) > 7 && fold(t[:4], "http") && string(t[4:7]) == "://":
			path += 7
		case len(t) > 8 && fold(t[:5], "https") && string(t[5:8]) == "://":
			path += 8
		default:
			return faultTarget
		}
		at := path
		for path < to && h.Octets[path] != '/' && h.Octets[path] != '?' {
			path++
		}
		h.Authority = Span{uint16(at), uint16(path)}
		if !authority(h.Octets[at:path], false) {
			return faultAuthority
		}
	}
	query := to
	if at := bytes.IndexByte(h.Octets[path:to], '?'); at >= 0 {
		query = path + at
		h.Query = Span{uint16(query + 1), uint16(to)}
	}
	h.Path = Span{uint16(path), uint16(query)}
	return escapes(h.Octets[path:query])
}

// escapes checks percent-encoding (RFC 3986, section 2.1). Readers of a path
// differ in what they make of a sign that begins none. In queries it is common.
func escapes(path []byte) *fault {
	for {
		at := bytes.IndexByte(path, '%')
		if at < 0 {
			return nil
		}
		if path = path[at:]; len(path) < 3 || class[path[1]]&class[path[2]]&inHex == 0 {
			return faultEscape
		}
		path = path[3:]
	}
}

// host checks the Host fields, and that all agree about the authority.
func (h *Head) host() *fault {
	switch h.count[Host] {
	case 0:
		if h.Minor > 0 {
			return faultNoHost
		}
		return nil
	case 1:
	default:
		return faultHosts
	}
	h.HasHost = true
	v := h.value(Host)
	if !authority(v, false) {
		return faultAuthority
	}
	if h.Form == AbsoluteForm || h.Form == AuthorityForm {
		if !bytes.EqualFold(v, h.Authority.Of(h.Octets)) {
			return faultOtherHost
		}
		return nil
	}
	h.Authority = h.Fields[h.first[Host]-1].Value
	return nil
}

// authority tells whether v is host [":" port] (RFC 3986, section 3.2), with a
// name as DNS has them, an IPv4 address, or an IPv6 address in brackets. There is
// neither userinfo nor percent-encoding nor an empty part.
func authority(v []byte, wantPort bool) bool {
	i := 0
	if len(v) > 0 && v[0] == '[' {
		end := bytes.IndexByte(v, ']')
		if end < 0 || !ipv6(v[1:end]) {
			return false
		}
		i = end + 1
	} else {
		last := byte('.') // no empty label, but behind the last dot
		for ; i < len(v) && class[v[i]]&inHost != 0; i++ {
			if v[i] == '.' && last == '.' {
				return false
			}
			last = v[i]
		}
		if i == 0 || i > 255 {
			return false
		}
	}
	if i == len(v) {
		return !wantPort
	}
	if v[i] != ':' || len(v)-i < 2 || len(v)-i > 6 {
		return false
	}
	port := 0
	for _, c := range v[i+1:] {
		if !digit(c) {
			return false
		}
		port = port*10 + int(c-'0')
	}
	return port <= 65535
}

// ipv6 tells whether v is an IPv6 address without a zone (RFC 3986, section
// 3.2.2).
func ipv6(v []byte) bool {
	groups, short := 0, false
	if len(v) >= 2 && v[0] == ':' && v[1] == ':' {
		short, v = true, v[2:]
	}
	for len(v) > 0 {
		n := 0
		for n < len(v) && class[v[n]]&inHex != 0 {
			n++
		}
		if n < len(v) && v[n] == '.' {
			if !ipv4(v) {
				return false
			}
			groups += 2
			break
		}
		if n == 0 || n > 4 {
			return false
		}
		groups++
		if v = v[n:]; len(v) == 0 {
			break
		}
		switch {
		case v[0] != ':' || len(v) == 1:
			return false
		case v[1] != ':':
			v = v[1:]
		case short:
			return false
		default:
			short, v = true, v[2:]
		}
	}
	if short {
		return groups < 8 // "::" is one group at least
	}
	return groups == 8
}

func ipv4(v []byte) bool {
	for part := range 4 {
		n, sum := 0, 0
		for n < len(v) && n < 4 && digit(v[n]) {
			sum = sum*10 + int(v[n]-'0')
			n++
		}
		if n == 0 || sum > 255 || n > 1 && v[0] == '0' {
			return false
		}
		if v = v[n:]; part < 3 {
			if len(v) == 0 || v[0] != '.' {
				return false
			}
			v = v[1:]
		}
	}
	return len(v) == 0
}
