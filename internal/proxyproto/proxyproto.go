// Package proxyproto reads and writes the header of the PROXY protocol,
// versions 1 and 2 (HAProxy's proxy-protocol.txt), by which a proxy tells whom
// it speaks for: the addresses of a connection, before its first octet. Octets
// in, octets out; nothing is kept.
package proxyproto

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strconv"
)

// Most is the number of octets that Parse looks at: a header that is longer
// is refused.
const Most = 1024

// HeadMost is the number of octets that Append writes at most.
const HeadMost = v1Most

const (
	v1Most = 107 // section 2.1, CRLF included
	v2Head = 16  // section 2.2: signature, version and command, family, length
)

const (
	v1Signature = "PROXY "
	v2Signature = "\r\n\r\n\x00\r\nQUIT\n"
)

// Of the 13th and the 14th octet of version 2 (section 2.2).
const (
	v2Local = 0x20
	v2Proxy = 0x21

	v2Unspecified = 0x00
	v2TCP4        = 0x11
	v2TCP6        = 0x21
	v2Unix        = 0x31
)

// Octets of the addresses and ports that each family has; what follows them are
// TLVs.
const (
	v2Octets4    = 12
	v2Octets6    = 36
	v2OctetsUnix = 216
)

// Error is why octets are no header. Each is made once; none holds octets of
// the peer.
type Error struct{ Why string }

func (e *Error) Error() string { return "proxyproto: " + e.Why }

var (
	errSignature = &Error{"neither signature is there"}
	errLine      = &Error{"a version 1 line without an end"}
	errOctet     = &Error{"a version 1 line with a control octet"}
	errProtocol  = &Error{"a protocol other than TCP4, TCP6 and UNKNOWN"}
	errParts     = &Error{"a version 1 line without two addresses and two ports"}
	errAddress   = &Error{"an address that is not one of the line's family"}
	errPort      = &Error{"a port that is no number up to 65535"}
	errCommand   = &Error{"a version or command other than LOCAL and PROXY of version 2"}
	errFamily    = &Error{"a family or protocol other than TCP and unix streams"}
	errShort     = &Error{"a length that has no room for the addresses"}
	errLong      = &Error{"a header of more than 1024 octets"}
)

// Parse reads a header of either version from the front of b. It gives its
// size and the addresses of the connection it speaks of, never IPv4-mapped.
// Local: there are none, for the proxy speaks for itself or does not say for
// whom; the addresses of the connection itself hold. With n 0 and no error
// more octets are needed: the caller keeps b and comes again; never with
// [Most] octets. An error is an [*Error]; a connection that must begin with a
// header and does not is closed.
func Parse(b []byte) (n int, src, dst netip.AddrPort, local bool, err error) {
	switch {
	case begins(b, v1Signature):
		return parse1(b)
	case begins(b, v2Signature):
		return parse2(b)
	}
	return fail(errSignature)
}

// Begins tells whether b, as far as it is there, begins with the signature s.
func begins(b []byte, s string) bool {
	k := min(len(b), len(s))
	return string(b[:k]) == s[:k]
}

func fail(e *Error) (int, netip.AddrPort, netip.AddrPort, bool, error) {
	return 0, netip.AddrPort{}, netip.AddrPort{}, false, e
}

// Parse1 reads version 1: one line of text. It allocates for an address that
// netip parses from a string, once for a connection.
func parse1(b []byte) (n int, src, dst netip.AddrPort, local bool, err error) {
	if len(b) > v1Most {
		b = b[:v1Most]
	}
	end := bytes.IndexByte(b, '\n')
	line := b
	if end > 0 {
		line = b[:end]
	}
	for i, c := range line {
		// The one control octet that may be there is the CR before the LF, which
		// may be the last octet of what has come so far.
		if (c < ' ' || c == 0x7f) && (c != '\r' || i != len(line)-1) {
			return fail(errOctet)
		}
	}
	switch {
	case end < 0 && len(b) == v1Most:
		return fail(errLine)
	case end < 0:
		return
	case line[len(line)-1] != '\r':
		return fail(errOctet)
	}
	n = end + 1
	line = line[len(v1Signature) : len(line)-1]

	protocol, rest, _ := bytes.Cut(line, []byte(" "))
	switch string(protocol) {
	case "UNKNOWN": // section 2.1: whatever follows is to be ignored
		return n, src, dst, true, nil
	case "TCP4", "TCP6":
	default:
		return fail(errProtocol)
	}
	var parts [4][]byte
	for i := range parts {
		var more bool
		parts[i], rest, more = bytes.Cut(rest, []byte(" "))
		if more != (i < len(parts)-1) {
			return fail(errParts)
		}
	}
	v4 := protocol[3] == '4'
	from, ok1 := address(parts[0], v4)
	to, ok2 := address(parts[1], v4)
	if !ok1 || !ok2 {
		return fail(errAddress)
	}
	fromPort, ok1 := port(parts[2])
	toPort, ok2 := port(parts[3])
	if !ok1 || !ok2 {
		return fail(errPort)
	}
	return n, netip.AddrPortFrom(from, fromPort), netip.AddrPortFrom(to, toPort), false, nil
}

func address(b []byte, v4 bool) (netip.Addr, bool) {
	a, err := netip.ParseAddr(string(b))
	if err != nil || a.Is4() != v4 || a.Zone() != "" {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

// Port wants the one way to write a number: digits without leading zeros.
func port(b []byte) (uint16, bool) {
	if len(b) == 0 || len(b) > 5 || b[0] == '0' && len(b) > 1 {
		return 0, false
	}
	v := 0
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		v = v*10 + int(c-'0')
	}
	return uint16(v), v <= 65535
}

// Parse2 reads version 2. TLVs behind the addresses are not looked at.
func parse2(b []byte) (n int, src, dst netip.AddrPort, local bool, err error) {
	// What is wrong is refused as soon as its octet is there.
	if len(b) > 12 && b[12] != v2Local && b[12] != v2Proxy {
		return fail(errCommand)
	}
	if len(b) < v2Head {
		return
	}
	size := int(binary.BigEndian.Uint16(b[14:]))
	if size > Most-v2Head {
		return fail(errLong)
	}
	need := 0
	if b[12] == v2Proxy {
		switch b[13] {
		case v2Unspecified:
		case v2TCP4:
			need = v2Octets4
		case v2TCP6:
			need = v2Octets6
		case v2Unix:
			need = v2OctetsUnix
		default:
			return fail(errFamily)
		}
	}
	if size < need {
		return fail(errShort)
	}
	if len(b) < v2Head+size {
		return
	}
	n = v2Head + size
	a := b[v2Head:n]
	switch need {
	case v2Octets4:
		src = pair(a[:4], a[8:])
		dst = pair(a[4:8], a[10:])
		return n, src, dst, false, nil
	case v2Octets6:
		src = pair(a[:16], a[32:])
		dst = pair(a[16:32], a[34:])
		return n, src, dst, false, nil
	}
	return n, src, dst, true, nil
}

// Pair makes an address of 4 or 16 octets, and its port of 2.
func pair(addr, port []byte) netip.AddrPort {
	a, _ := netip.AddrFromSlice(addr)
	return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(port))
}

// Append appends the header of a connection from src to to. Version is 1 or
// 2, as in config.ProxyHeader. Addresses of two families are written as IPv6 by
// version 2 and as UNKNOWN by version 1, which cannot say them. If one is not
// valid, the header says that we speak for ourselves.
func Append(dst []byte, version uint8, src, to netip.AddrPort) []byte {
	a, b := src.Addr().Unmap().WithZone(""), to.Addr().Unmap().WithZone("")
	known := a.IsValid() && b.IsValid()
	switch version {
	case 1:
		dst = append(dst, v1Signature...)
		switch {
		case !known || a.Is4() != b.Is4():
			return append(dst, "UNKNOWN\r\n"...)
		case a.Is4():
			dst = append(dst, "TCP4 "...)
		default:
			dst = append(dst, "TCP6 "...)
		}
		dst = a.AppendTo(dst)
		dst = append(dst, ' ')
		dst = b.AppendTo(dst)
		dst = append(dst, ' ')
		dst = strconv.AppendUint(dst, uint64(src.Port()), 10)
		dst = append(dst, ' ')
		dst = strconv.AppendUint(dst, uint64(to.Port()), 10)
		return append(dst, '\r', '\n')
	case 2:
		dst = append(dst, v2Signature...)
		switch {
		case !known:
			return append(dst, v2Local, v2Unspecified, 0, 0)
		case a.Is4() && b.Is4():
			from, to := a.As4(), b.As4()
			dst = append(dst, v2Proxy, v2TCP4, 0, v2Octets4)
			dst = append(dst, from[:]...)
			dst = append(dst, to[:]...)
		default:
			from, to := a.As16(), b.As16() // an IPv4 address becomes a mapped one
			dst = append(dst, v2Proxy, v2TCP6, 0, v2Octets6)
			dst = append(dst, from[:]...)
			dst = append(dst, to[:]...)
		}
		dst = binary.BigEndian.AppendUint16(dst, src.Port())
		return binary.BigEndian.AppendUint16(dst, to.Port())
	}
	panic("proxyproto: no such version: " + strconv.Itoa(int(version)))
}
