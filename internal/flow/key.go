package flow

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/h1"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// Ask says what the ledger is asked for a flow that wants an endpoint: all but
// Loop, Token and Now.
func (f *Flow) Ask(a *ledger.Asking) {
	b := &f.legs[Backend]
	*a = ledger.Asking{
		Tried: f.tried, Place: f.place, Class: config.NormalPriority,
		// What was let wait, or was asked for before, is counted already.
		Retry: b.attempts > 0 && b.facts&paid == 0,
	}
	if f.x == nil {
		a.Key, a.Hashed = keyOf(f.backend, nil, f.behind()), unlisted(f.backend, nil)
		return
	}
	a.Again = f.x.flags&fresh != 0
	a.Key, a.Stuck, a.Hashed = f.x.key, int(f.x.stuck), f.x.flags&stray != 0
	if rt := f.ruling(); rt != nil {
		a.Class = rt.Priority
	}
}

// behind is the client as a trusted proxy has said, or as we know it ourselves.
func (f *Flow) behind() netip.Addr {
	if f.entry != nil && f.entry.source != (Address{}) {
		return f.entry.source.AddrPort().Addr()
	}
	return f.Client().Addr()
}

// known notes what of a request its backend chooses an endpoint by.
func (f *Flow) known(d *Desk, h *h1.Head, source netip.Addr) {
	x, b := f.x, f.backend
	x.key, x.stuck = keyOf(b, h, source), 0
	if x.flags &^= stray; unlisted(b, h) {
		x.flags |= stray
	}
	if h != nil {
		x.stuck = d.cookies.endpoint(d, b, h)
	}
}

// knownAgain does so for a request that comes to another backend. What it said is
// in the head that no endpoint has taken yet, as it is passed on.
func (f *Flow) knownAgain(d *Desk) {
	lim := h1.Limits{LineMax: h1.HeadMost, HeadMax: h1.HeadMost, FieldsMax: h1.FieldsMost}
	h, octets := &d.head, f.legs[Backend].buf
	size, _, err := h1.Scan(octets, 0, &lim)
	if err != nil || size == 0 || h.Request(octets[:size], &lim) != nil {
		h = nil // with what we have added it is too large to be looked at again
	}
	f.known(d, h, f.behind())
}

// unlisted tells whether the sticky table of b has no key for the request.
func unlisted(b *config.Backend, h *h1.Head) bool {
	return b.Sticky != nil && b.Sticky.Kind == config.StickyHeader && fieldOf(h, b.Sticky.Name) == nil
}

// keyOf gives the key that an endpoint of b is chosen by: that of its sticky
// table, or, without one or if the request has not its field, of Maglev; 0 if
// there is neither. h is nil without HTTP.
func keyOf(b *config.Backend, h *h1.Head, source netip.Addr) uint64 {
	if s := b.Sticky; s != nil {
		switch s.Kind {
		case config.StickyCookie:
		case config.StickySource:
			if !source.IsValid() {
				return 0
			}
			bits := s.Bits6
			if source = source.Unmap(); source.Is4() {
				bits = s.Bits4
			}
			if p, err := source.WithZone("").Prefix(bits); err == nil {
				source = p.Addr()
			}
			return keyOfAddress(source)
		case config.StickyHeader:
			if v := fieldOf(h, s.Name); v != nil {
				return keyFrom(headerKey, v)
			}
		default:
			panic("flow: no such way to be sticky")
		}
	}
	if b.Balance != config.Maglev {
		return 0
	}
	switch b.Hash.Kind {
	case config.HashSource:
	case config.HashHeader:
		if v := fieldOf(h, b.Hash.Name); v != nil {
			return keyFrom(headerKey, v)
		}
	case config.HashCookie:
		if h != nil {
			all := jar{h: h}
			if v := all.next(b.Hash.Name); v != nil {
				return keyFrom(cookieKey, v)
			}
		}
	case config.HashPath:
		if h != nil {
			return keyFrom(pathKey, pathOf(h))
		}
	default:
		panic("flow: no such hash")
	}
	return keyOfAddress(source)
}

func keyOfAddress(a netip.Addr) uint64 {
	if !a.IsValid() {
		return 0
	}
	b := a.Unmap().As16()
	return keyFrom(sourceKey, b[:])
}

// fieldOf gives the value of the first field of that name that has one; nil if
// there is none.
func fieldOf(h *h1.Head, name string) []byte {
	if h == nil {
		return nil
	}
	for i := range h.Fields {
		f := &h.Fields[i]
		if f.Value.Len() > 0 && same(f.Name.Of(h.Octets), name) {
			return f.Value.Of(h.Octets)
		}
	}
	return nil
}

// What a key is made of: the first octet of what is hashed. Append, never
// renumber.
const (
	sourceKey byte = iota + 1 // an address of 16 octets, IPv4 mapped
	headerKey                 // a field's value
	cookieKey                 // a cookie's value
	pathKey                   // a path as it was sent
)

// keyFrom is the key of octets. All hosts and releases must agree on it, else a
// flow that moves, and a client that comes again, go elsewhere: it is FNV-1a of
// 64 bits over the kind and then the octets, which alone spreads badly over high
// bits, and then the finalizer of MurmurHash3, which mends that. 0 is none, so
// what would be 0 is 1.
func keyFrom(kind byte, octets []byte) uint64 {
	const basis, prime = 0xcbf29ce484222325, 0x100000001b3
	h := (basis ^ uint64(kind)) * prime
	for _, c := range octets {
		h = (h ^ uint64(c)) * prime
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return max(1, h^h>>33)
}

// source is the address of the client: of its socket, of a PROXY header, or of
// what a proxy that is trusted says.
func (f *Flow) source(h *h1.Head) netip.Addr {
	client := f.Client().Addr()
	if !f.trusted() {
		return client
	}
	trust := f.listener.Rules.Trust
	kind := h1.XForwardedFor
	if f.listener.Rules.Forwarded == config.RFC7239 || h.Index(kind) < 0 && h.Index(h1.Forwarded) >= 0 {
		kind = h1.Forwarded
	}
	// Each proxy has added whom it saw behind those before. The last that is
	// trusted is believed, and what is no address ends the list.
	looks := 0
	for i := len(h.Fields) - 1; i >= 0; i-- {
		if h.Fields[i].Known != kind {
			continue
		}
		for rest := h.Fields[i].Value.Of(h.Octets); rest != nil; {
			if looks++; looks > elementsMax {
				return client
			}
			var one []byte
			if at := lastComma(rest); at >= 0 {
				rest, one = rest[:at], rest[at+1:]
			} else {
				rest, one = nil, rest
			}
			if one = bytes.Trim(one, " \t"); len(one) == 0 {
				continue // a list may have empty elements (RFC 9110, section 5.6.1)
			}
			if kind == h1.Forwarded {
				one = forOf(one)
			}
			a, ok := addressOf(one)
			if !ok {
				return client
			}
			if client = a; !config.Holds(trust, a) {
				return client
			}
		}
	}
	return client
}

// elementsMax is how many elements of the list are looked at: for each, all that
// stand before it are read, and there may be thousands of empty ones.
const elementsMax = 64

// lastComma finds the last comma that does not stand in quotes.
func lastComma(b []byte) int {
	if bytes.IndexByte(b, '"') < 0 {
		return bytes.LastIndexByte(b, ',')
	}
	last, quoted := -1, false
	for i := 0; i < len(b); i++ {
		switch {
		case b[i] == '"':
			quoted = !quoted
		case b[i] == '\\' && quoted:
			i++
		case b[i] == ',' && !quoted:
			last = i
		}
	}
	return last
}

// forOf gives the node of an element of Forwarded (RFC 7239, section 4), without
// its quotes; nil if there is none.
func forOf(element []byte) []byte {
	for len(element) > 0 {
		var pair []byte
		pair, element, _ = bytes.Cut(element, semicolon)
		name, value, _ := bytes.Cut(bytes.Trim(pair, " \t"), equals)
		if same(name, "for") {
			return bytes.Trim(value, `"`)
		}
	}
	return nil
}

// addressOf reads an address, with or without a port, IPv6 in brackets or not. It
// allocates nothing.
func addressOf(b []byte) (netip.Addr, bool) {
	if len(b) > 0 && b[0] == '[' {
		if i := bytes.IndexByte(b, ']'); i > 0 {
			b = b[1:i]
		}
	} else if i := bytes.IndexByte(b, ':'); i >= 0 && bytes.IndexByte(b[i+1:], ':') < 0 {
		b = b[:i]
	}
	if ip, ok := parse4(b); ok {
		return ip, true
	}
	// The longest is "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255".
	if len(b) > 45 || bytes.IndexByte(b, ':') < 0 || bytes.IndexByte(b, '%') >= 0 {
		return netip.Addr{}, false
	}
	return parse6(b)
}

func parse4(b []byte) (netip.Addr, bool) {
	var ip [4]byte
	at, digits, n := 0, 0, 0
	for i := 0; i <= len(b); i++ {
		switch {
		case i == len(b) || b[i] == '.':
			if digits == 0 || at > 3 || i < len(b) && at == 3 {
				return netip.Addr{}, false
			}
			ip[at] = byte(n)
			at, digits, n = at+1, 0, 0
		case !('0' <= b[i] && b[i] <= '9') || digits > 0 && n == 0:
			return netip.Addr{}, false // a leading zero would be octal to some
		default:
			if n = n*10 + int(b[i]-'0'); n > 255 {
				return netip.Addr{}, false
			}
			digits++
		}
	}
	return netip.AddrFrom4(ip), at == 4
}

func parse6(b []byte) (netip.Addr, bool) {
	var ip [16]byte
	at, gap := 0, -1
	if len(b) >= 2 && b[0] == ':' && b[1] == ':' {
		gap, b = 0, b[2:]
	}
	for len(b) > 0 {
		if at == 16 {
			return netip.Addr{}, false
		}
		end := bytes.IndexByte(b, ':')
		if end < 0 {
			end = len(b)
			if v4, ok := parse4(b); ok && at <= 12 {
				four := v4.As4()
				at += copy(ip[at:], four[:])
				break
			}
		}
		if end == 0 || end > 4 {
			return netip.Addr{}, false
		}
		n := uint16(0)
		for _, c := range b[:end] {
			d := unhex(c)
			if d > 15 {
				return netip.Addr{}, false
			}
			n = n<<4 | uint16(d)
		}
		binary.BigEndian.PutUint16(ip[at:], n)
		at += 2
		if b = b[end:]; len(b) == 0 {
			break
		}
		if b = b[1:]; len(b) == 0 {
			return netip.Addr{}, false // it ends in one colon
		}
		if b[0] == ':' {
			if gap >= 0 {
				return netip.Addr{}, false
			}
			gap, b = at, b[1:]
		}
	}
	switch {
	case gap < 0 && at != 16, gap >= 0 && at == 16:
		return netip.Addr{}, false
	case gap >= 0:
		n := copy(ip[16-(at-gap):], ip[gap:at])
		clear(ip[gap : 16-n])
	}
	return netip.AddrFrom16(ip).Unmap(), true
}
