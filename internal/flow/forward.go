package flow

import (
	"bytes"
	"net/netip"
	"strconv"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/h1"
)

// The heads that we write. A head was parsed, so its fields are well formed,
// and the configuration's were checked when it was read; what is added here is
// made of addresses, numbers and those. So nothing needs to be escaped, but
// for what stands in quotes or is put together anew.

// party is what a request's head is forwarded with, beside the request.
type party struct {
	client  netip.Addr     // as it is known: from a PROXY header or the socket
	trusted bool           // the peer of the client leg is in Rules.Trust
	vip     netip.AddrPort // where the client connected
	id      uint64         // the flow's
	number  uint64         // of the request on the flow
}

// upgrades tells whether the request's Upgrade is passed on. "h2c" never is:
// who speaks HTTP/2 through a tunnel of ours passes all routes by.
func upgrades(h *h1.Head) bool {
	if !h.Upgrade {
		return false
	}
	for i := range h.Fields {
		if f := &h.Fields[i]; f.Known == h1.Upgrade && lists(f.Value.Of(h.Octets), "h2c") {
			return false
		}
	}
	return true
}

// lists tells whether word is a protocol in the list v, in any case and of any
// version.
func lists(v []byte, word string) bool {
	from := 0
	for i := 0; i <= len(v); i++ {
		if i < len(v) && v[i] != ',' && v[i] != '/' && v[i] != ' ' && v[i] != '\t' {
			continue
		}
		if same(v[from:i], word) {
			return true
		}
		from = i + 1
	}
	return false
}

// appendRequest appends the head for the backend to dst. It uses h up: to
// write the same request again, parse it again.
//
// Fields are kept in their order and spelling; ours stand around them.
func appendRequest(dst []byte, h *h1.Head, r *config.Rules, rt *config.Route, p *party) []byte {
	dst = append(dst, h.MethodName.Of(h.Octets)...)
	dst = append(dst, ' ')
	dst = appendTarget(dst, h, rt)
	// RFC 9110, section 6.2: the version is ours, also for a client of 1.0.
	dst = append(dst, " HTTP/1.1\r\n"...)

	// The host as it came, before it is changed.
	host := h.Authority.Of(h.Octets)
	// What CONNECT is for stands in its target, which no edit changes.
	fixed := h.Form == h1.AuthorityForm
	if fixed || !edited(rt.Request, "Host") {
		dst = appendHost(dst, h, p)
	}
	dst = appendForwarded(dst, h, r, rt, p, host)

	upgrade := upgrades(h)
	keepID := p.trusted && saneID(h, r.RequestID)
	for i := range h.Fields {
		f := &h.Fields[i]
		switch f.Known {
		case h1.ContentLength, h1.TransferEncoding:
			continue // whatever the configuration says: they are the framing
		case h1.Host:
			if fixed {
				continue
			}
		case h1.Upgrade:
			f.Drop = !upgrade
		case h1.Other:
			if r.RequestID != "" && !keepID && alike(f.Name.Of(h.Octets), r.RequestID) {
				f.Drop = true
			}
		}
		if len(rt.Request) > 0 && !f.Drop {
			f.Drop = editedField(rt.Request, f.Name.Of(h.Octets))
		}
	}
	dst = h.AppendFields(dst)

	if upgrade {
		dst = append(dst, "Connection: upgrade\r\n"...)
	}
	dst = appendVia(dst, h, r, rt.Request)
	if r.RequestID != "" && !keepID && !edited(rt.Request, r.RequestID) {
		dst = append(dst, r.RequestID...)
		dst = append(dst, ": "...)
		dst = appendID(dst, p)
		dst = append(dst, '\r', '\n')
	}
	dst = appendEdits(dst, rt.Request, fixed)
	return append(dst, '\r', '\n')
}

// appendTarget appends the target in the form for an origin server (RFC 9112,
// section 3.2), its path rewritten.
func appendTarget(dst []byte, h *h1.Head, rt *config.Route) []byte {
	path := pathOf(h)
	switch {
	case path == nil && h.Form == h1.AuthorityForm:
		return append(dst, h.Target.Of(h.Octets)...)
	case path == nil:
		return append(dst, '*')
	case rt.Rewrite == nil && h.Form == h1.OriginForm:
		return append(dst, h.Target.Of(h.Octets)...)
	case rt.Rewrite == nil:
		dst = append(dst, path...)
	default:
		path = plain(path) // what the route looked at
		from := len(dst)
		if dst = appendRewritten(dst, path, rt); dotted(dst[from:]) && !dotted(path) {
			dst = appendLiteral(dst[:from], dst[from:])
		}
	}
	if hasQuery(h) {
		dst = append(dst, '?')
		dst = append(dst, h.Query.Of(h.Octets)...)
	}
	return dst
}

// appendLiteral appends a path that a rewrite made dotted, out of parts that the
// client chose: in a form in which the dots are those of a name, so that it leads
// nowhere else.
func appendLiteral(dst, path []byte) []byte {
	for _, c := range bytes.Clone(path) {
		switch c {
		case '.':
			dst = append(dst, "%252E"...)
		case '%':
			dst = append(dst, "%25"...)
		default:
			dst = append(dst, c)
		}
	}
	return dst
}

// appendRewritten appends path as rt rewrites it. A prefix is exchanged segment
// by segment: there is one slash where the parts meet. A regular expression
// allocates.
func appendRewritten(dst, path []byte, rt *config.Route) []byte {
	w := rt.Rewrite
	if w.Regex != nil {
		made := w.Regex.ReplaceAll(path, []byte(w.Replacement))
		if len(made) == 0 || made[0] != '/' {
			dst = append(dst, '/')
		}
		for _, c := range made {
			dst = appendPathOctet(dst, c)
		}
		return dst
	}
	rest := path
	switch m := &rt.Match; {
	case m.Exact != "" && len(m.Exact) <= len(path):
		rest = path[len(m.Exact):]
	case len(m.Prefix) <= len(path):
		rest = path[len(m.Prefix):]
	}
	from := len(dst)
	for i := range len(w.Prefix) {
		dst = appendPathOctet(dst, w.Prefix[i])
	}
	slash := len(dst) > from && dst[len(dst)-1] == '/'
	switch {
	case len(rest) > 0 && rest[0] == '/' && slash:
		rest = rest[1:]
	case len(rest) > 0 && rest[0] != '/' && !slash, len(rest) == 0 && len(dst) == from:
		dst = append(dst, '/')
	}
	return append(dst, rest...)
}

// appendPathOctet encodes what must not stand in a path (RFC 3986, section
// 3.3), in particular what would end it. A percent sign stays: the path that
// is rewritten is an encoded one.
func appendPathOctet(dst []byte, c byte) []byte {
	if c <= ' ' || c >= 0x7f || c == '?' || c == '#' {
		return append(dst, '%', upperHex[c>>4], upperHex[c&15])
	}
	return append(dst, c)
}

const (
	upperHex = "0123456789ABCDEF"
	lowerHex = "0123456789abcdef"
)

// appendHost sees to it that there is one Host field and that it says what the
// target says (RFC 9112, section 3.2.2). It appends one where those of h do
// not.
func appendHost(dst []byte, h *h1.Head, p *party) []byte {
	inTarget := h.Form == h1.AbsoluteForm || h.Form == h1.AuthorityForm
	if h.HasHost {
		if !inTarget {
			return dst
		}
		i := h.Index(h1.Host)
		if string(h.Fields[i].Value.Of(h.Octets)) == string(h.Authority.Of(h.Octets)) {
			return dst
		}
		h.Fields[i].Drop = true
	}
	dst = append(dst, "Host: "...)
	if inTarget {
		dst = append(dst, h.Authority.Of(h.Octets)...)
	} else {
		dst = appendAuthority(dst, p.vip)
	}
	return append(dst, '\r', '\n')
}

// appendAuthority appends a as the authority of an http URI, without the port
// that such a URI has anyway.
func appendAuthority(dst []byte, a netip.AddrPort) []byte {
	switch {
	case !a.IsValid():
		return dst // an empty Host is one, too
	case a.Port() != 80:
		return a.AppendTo(dst)
	case a.Addr().Is4():
		return a.Addr().AppendTo(dst)
	}
	dst = append(dst, '[')
	dst = a.Addr().AppendTo(dst)
	return append(dst, ']')
}

// appendForwarded appends what a backend is told about the client, and drops
// what a client has no business to say.
func appendForwarded(dst []byte, h *h1.Head, r *config.Rules, rt *config.Route, p *party, host []byte) []byte {
	x := r.Forwarded == config.XForwarded || r.Forwarded == config.BothFields
	standard := r.Forwarded == config.RFC7239 || r.Forwarded == config.BothFields
	var proto, xhost, open bool
	for i := range h.Fields {
		f := &h.Fields[i]
		switch f.Known {
		case h1.XForwardedFor, h1.XForwardedProto, h1.XForwardedHost, h1.Forwarded:
			f.Drop = f.Drop || !p.trusted
		}
		if f.Drop {
			continue
		}
		switch f.Known {
		case h1.XForwardedProto:
			proto = true
		case h1.XForwardedHost:
			xhost = true
		case h1.Forwarded:
			open = open || !quotesClose(f.Value.Of(h.Octets))
		}
	}
	if x && !edited(rt.Request, "X-Forwarded-For") {
		dst = append(dst, "X-Forwarded-For: "...)
		dst = appendElements(dst, h, h1.XForwardedFor)
		dst = appendClient(dst, p.client)
		dst = append(dst, '\r', '\n')
	}
	if x && !proto && !edited(rt.Request, "X-Forwarded-Proto") {
		dst = append(dst, "X-Forwarded-Proto: http\r\n"...)
	}
	if x && !xhost && len(host) > 0 && !edited(rt.Request, "X-Forwarded-Host") {
		dst = append(dst, "X-Forwarded-Host: "...)
		dst = append(dst, host...)
		dst = append(dst, '\r', '\n')
	}
	if standard && !edited(rt.Request, "Forwarded") {
		dst = append(dst, "Forwarded: "...)
		from := len(dst)
		dst = appendElements(dst, h, h1.Forwarded)
		if open {
			// Our element would be a part of a quoted string of theirs.
			dst = dst[:from]
		}
		dst = append(dst, "for="...)
		if p.client.Is6() {
			// RFC 7239, section 6: an IPv6 address stands in brackets, so in quotes.
			dst = append(dst, `"[`...)
			dst = appendClient(dst, p.client)
			dst = append(dst, `]"`...)
		} else {
			dst = appendClient(dst, p.client)
		}
		dst = append(dst, ";proto=http"...)
		if len(host) > 0 {
			dst = append(dst, ";host="...)
			dst = appendToken(dst, host)
		}
		dst = append(dst, '\r', '\n')
	}
	return dst
}

// appendElements appends the elements of the list that the fields k are, each
// with a comma behind it, and drops the fields: one line says it all then.
func appendElements(dst []byte, h *h1.Head, k h1.Known) []byte {
	for i := range h.Fields {
		f := &h.Fields[i]
		if f.Known != k || f.Drop {
			continue
		}
		f.Drop = true
		if f.Value.Len() > 0 {
			dst = append(dst, f.Value.Of(h.Octets)...)
			dst = append(dst, ", "...)
		}
	}
	return dst
}

func appendClient(dst []byte, a netip.Addr) []byte {
	if !a.IsValid() {
		return append(dst, "unknown"...) // RFC 7239, section 6.2
	}
	return a.AppendTo(dst)
}

// quotesClose tells whether each quoted string in v has its end.
func quotesClose(v []byte) bool {
	quoted := false
	for i := 0; i < len(v); i++ {
		switch {
		case v[i] == '"':
			quoted = !quoted
		case v[i] == '\\' && quoted:
			i++
		}
	}
	return !quoted
}

// appendToken appends v as a token, or in quotes (RFC 9110, section 5.6.4).
func appendToken(dst, v []byte) []byte {
	plain := len(v) > 0
	for _, c := range v {
		plain = plain && isToken(c)
	}
	if plain {
		return append(dst, v...)
	}
	dst = append(dst, '"')
	for _, c := range v {
		if c == '"' || c == '\\' {
			dst = append(dst, '\\')
		}
		dst = append(dst, c)
	}
	return append(dst, '"')
}

// isToken tells whether c may stand in a token (RFC 9110, section 5.6.2).
func isToken(c byte) bool {
	switch {
	case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		return true
	}
	switch c {
	case '!', '#', '$', '%', '&', '\'', '*', '+', '-', '.', '^', '_', '`', '|', '~':
		return true
	}
	return false
}

// appendVia says that the message came through us, and in which version (RFC
// 9110, section 7.6.3). Those of others stand before.
func appendVia(dst []byte, h *h1.Head, r *config.Rules, edits []config.Edit) []byte {
	if r.Via == "" || edited(edits, "Via") {
		return dst
	}
	dst = append(dst, "Via: 1."...)
	dst = append(dst, '0'+h.Minor, ' ')
	dst = append(dst, r.Via...)
	return append(dst, '\r', '\n')
}

// idMost bounds a request id that came with a request, in octets.
const idMost = 128

// saneID tells whether the request has one id that can be passed on.
func saneID(h *h1.Head, name string) bool {
	if name == "" {
		return false
	}
	found := false
	for i := range h.Fields {
		f := &h.Fields[i]
		if !alike(f.Name.Of(h.Octets), name) {
			continue
		}
		v := f.Value.Of(h.Octets)
		if found || f.Drop || len(v) == 0 || len(v) > idMost || !same(f.Name.Of(h.Octets), name) {
			return false
		}
		for _, c := range v {
			if !isToken(c) {
				return false
			}
		}
		found = true
	}
	return found
}

// appendID appends the id of a request: 16 digits for the flow, which may
// have moved here, and the number of the request on it.
func appendID(dst []byte, p *party) []byte {
	for shift := 60; shift >= 0; shift -= 4 {
		dst = append(dst, lowerHex[p.id>>shift&15])
	}
	dst = append(dst, '-')
	return strconv.AppendUint(dst, p.number, 10)
}

// alike tells whether a field of this name is understood as one named s: in any
// case, and with underscores for hyphens, since what hands fields on by the
// rules of CGI cannot tell the two (RFC 3875, section 4.1.18).
func alike(name []byte, s string) bool {
	if len(name) != len(s) {
		return false
	}
	for i := range name {
		c, d := name[i], s[i]
		if c == '_' {
			c = '-'
		}
		if d == '_' {
			d = '-'
		}
		if c != d && lower(c) != lower(d) {
			return false
		}
	}
	return true
}

// editedField tells whether an edit takes away the fields of this name.
func editedField(edits []config.Edit, name []byte) bool {
	for i := range edits {
		if edits[i].Kind != config.AddField && alike(name, edits[i].Name) {
			return true
		}
	}
	return false
}

// edited is editedField for a field of ours.
func edited(edits []config.Edit, name string) bool {
	for i := range edits {
		if edits[i].Kind != config.AddField && same(edits[i].Name, name) {
			return true
		}
	}
	return false
}

// appendEdits appends the fields that edits add. What a later one takes away
// again is left out; so is Host where it is fixed.
func appendEdits(dst []byte, edits []config.Edit, fixed bool) []byte {
	for i := range edits {
		e := &edits[i]
		if e.Kind == config.RemoveField || edited(edits[i+1:], e.Name) || fixed && same(e.Name, "Host") {
			continue
		}
		dst = append(dst, e.Name...)
		dst = append(dst, ": "...)
		dst = append(dst, e.Value...)
		dst = append(dst, '\r', '\n')
	}
	return dst
}

// appendResponse appends the head of a backend's response for a client that
// speaks HTTP/1.minor: interim ones, too, which have close false and no field of
// ours. It uses h up. The route may be nil; own is a field line that no edit
// changes, or nothing. With dechunk the client gets the content without its
// chunks, until close.
func appendResponse(dst []byte, h *h1.Head, r *config.Rules, rt *config.Route, own []byte, minor uint8, close, dechunk bool) []byte {
	dst = appendStatus(dst, h.Status, h.Reason.Of(h.Octets))

	interim := h.Status < 200
	var edits []config.Edit
	if rt != nil && (!interim || h.Status == 101) {
		edits = rt.Response
	}
	// RFC 9110, section 15.5.22: 426 must say what to upgrade to.
	upgrade := h.Status == 101 || h.Status == 426 && h.Index(h1.Upgrade) >= 0
	// To HTTP/1.0 there are no transfer codings, whether content follows or not.
	dechunk = dechunk || minor == 0
	if len(edits) > 0 || dechunk || upgrade {
		for i := range h.Fields {
			f := &h.Fields[i]
			switch f.Known {
			case h1.Trailer:
				f.Drop = f.Drop || dechunk
			case h1.TransferEncoding:
				f.Drop = f.Drop || dechunk
				continue
			case h1.ContentLength:
				continue // no edit changes the framing
			case h1.Upgrade:
				f.Drop = !upgrade
			}
			f.Drop = f.Drop || editedField(edits, f.Name.Of(h.Octets))
		}
	}
	dst = h.AppendFields(dst)
	dst = appendConnection(dst, minor, close, upgrade)
	dst = appendVia(dst, h, r, edits)
	dst = appendEdits(dst, edits, false)
	dst = append(dst, own...)
	return append(dst, '\r', '\n')
}

// appendStatus appends a status line. The space before the reason stands there
// even if there is none (RFC 9112, section 4).
func appendStatus[T string | []byte](dst []byte, status int, reason T) []byte {
	dst = append(dst, "HTTP/1.1 "...)
	dst = strconv.AppendUint(dst, uint64(status), 10)
	dst = append(dst, ' ')
	dst = append(dst, reason...)
	return append(dst, '\r', '\n')
}

// appendConnection tells a client what becomes of its connection, where that
// is not what its version has by default (RFC 9112, section 9.3).
func appendConnection(dst []byte, minor uint8, close, upgrade bool) []byte {
	switch {
	case close && upgrade:
		return append(dst, "Connection: close, upgrade\r\n"...)
	case close:
		return append(dst, "Connection: close\r\n"...)
	case upgrade:
		return append(dst, "Connection: upgrade\r\n"...)
	case minor == 0:
		return append(dst, "Connection: keep-alive\r\n"...)
	}
	return dst
}
