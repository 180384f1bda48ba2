package h1

import (
	"bytes"
	"encoding/binary"
	"math/bits"
)

var (
	faultNoEnd       = refuse(400, "the head has no end")
	faultFields      = refuse(431, "too many fields")
	faultFold        = refuse(400, "a folded line")
	faultName        = refuse(400, "a field name that is no token, or is not followed by a colon")
	faultUnderscore  = refuse(400, "a framing field written with an underscore")
	faultConnection  = refuse(400, "Connection is no list of tokens")
	faultEndToEnd    = refuse(400, "Connection names a field that is not for one hop alone")
	faultLengths     = refuse(400, "more than one Content-Length field")
	faultLength      = refuse(400, "Content-Length is no number of up to 18 digits without leading zeros")
	faultCodings     = refuse(400, "more than one transfer coding")
	faultCoding      = refuse(400, "Transfer-Encoding is no token")
	faultCodingOther = refuse(501, "a transfer coding other than chunked")
	faultCodingOld   = refuse(400, "Transfer-Encoding in HTTP/1.0")
	faultBoth        = refuse(400, "both Transfer-Encoding and Content-Length")
)

// parseFields parses the lines from b[i:] up to the empty line, which must be
// b's last. It leaves in first and count where the known names are.
func (h *Head) parseFields(b []byte, i int, lim *Limits) *fault {
	h.first, h.count = [names]uint8{}, [names]uint8{}
	room := min(lim.FieldsMax, FieldsMost)
	n := 0
	for {
		if b[i] == '\r' {
			if i+2 != len(b) {
				return faultBareCR
			}
			break
		}
		if n >= room {
			return faultFields
		}
		from, seen := i, uint8(0)
		for _, c := range b[from:] {
			what := class[c]
			if what&inToken == 0 {
				break
			}
			seen |= what
			i++
		}
		// A head ends in LF, which is in no token: the loop has not passed the end.
		if i == from || b[i] != ':' {
			if b[from] == ' ' || b[from] == '\t' {
				return faultFold
			}
			return faultName
		}
		f := &h.fields[n]
		f.Name = Span{uint16(from), uint16(i)}
		f.Known, f.Drop = known(b[from:i]), false
		if seen&underscore != 0 {
			if bad := f.disguised(b[from:i]); bad != nil {
				return bad
			}
		}
		i++
		for b[i] == ' ' || b[i] == '\t' {
			i++
		}
		value := i
		for {
			if i+8 <= len(b) {
				m := controls(binary.LittleEndian.Uint64(b[i:]))
				if m == 0 {
					i += 8
					continue
				}
				i += bits.TrailingZeros64(m) >> 3
			} else {
				i = nextControl(b, i)
			}
			if b[i] != '\t' {
				break
			}
			i++
		}
		if b[i] != '\r' || b[i+1] != '\n' {
			return controlIn(b[i])
		}
		end := i
		for end > value && (b[end-1] == ' ' || b[end-1] == '\t') {
			end--
		}
		i += 2
		f.Value = Span{uint16(value), uint16(end)}
		f.Line = Span{uint16(from), uint16(i)}
		n++
		if f.Known != Other {
			if h.count[f.Known]++; h.count[f.Known] == 1 {
				h.first[f.Known] = uint8(n)
			}
			f.Drop = oneHop[f.Known]
		}
	}
	h.Fields = h.fields[:n]
	return nil
}

// disguised looks at a name with an underscore. What hands fields on by the
// rules of CGI (RFC 3875, section 4.1.18) takes it for the name with a hyphen.
func (f *Field) disguised(name []byte) *fault {
	var plain [32]byte
	if len(name) > len(plain) {
		return nil
	}
	for i, c := range name {
		if c == '_' {
			c = '-'
		}
		plain[i] = c
	}
	switch known(plain[:len(name)]) {
	case Other:
	case ContentLength, TransferEncoding:
		return faultUnderscore
	default:
		f.Drop = true
	}
	return nil
}

const names = int(XForwardedProto) + 1

var oneHop = [names]bool{Connection: true, KeepAlive: true, ProxyConnection: true, TE: true, Upgrade: true}

// fold tells whether name, of octets of tokens, is lower but for its case. Both
// have the same length.
func fold(name []byte, lower string) bool {
	for i := range name {
		if name[i]|0x20 != lower[i] {
			return false
		}
	}
	return true
}

func is(name []byte, lower string) bool { return len(name) == len(lower) && fold(name, lower) }

// known tells which name it is, in any case.
func known(name []byte) Known {
	var k Known
	var lower string
	switch len(name) {
	case 2:
		k, lower = TE, "te"
	case 3:
		k, lower = Via, "via"
	case 4:
		k, lower = Host, "host"
	case 6:
		k, lower = Expect, "expect"
	case 7:
		if k, lower = Upgrade, "upgrade"; name[0]|0x20 == 't' {
			k, lower = Trailer, "trailer"
		}
	case 9:
		k, lower = Forwarded, "forwarded"
	case 10:
		if k, lower = Connection, "connection"; name[0]|0x20 == 'k' {
			k, lower = KeepAlive, "keep-alive"
		}
	case 14:
		k, lower = ContentLength, "content-length"
	case 15:
		k, lower = XForwardedFor, "x-forwarded-for"
	case 16:
		if k, lower = ProxyConnection, "proxy-connection"; name[0]|0x20 == 'x' {
			k, lower = XForwardedHost, "x-forwarded-host"
		}
	case 17:
		if k, lower = TransferEncoding, "transfer-encoding"; name[0]|0x20 == 'x' {
			k, lower = XForwardedProto, "x-forwarded-proto"
		}
	default:
		return Other
	}
	if !fold(name, lower) {
		return Other
	}
	return k
}

// list calls f with each element of a list that is not empty, without the white
// space around it (RFC 9110, section 5.6.1).
func list(v []byte, f func(element []byte) *fault) *fault {
	for len(v) > 0 {
		one := v
		if at := bytes.IndexByte(v, ','); at >= 0 {
			one, v = v[:at], v[at+1:]
		} else {
			v = nil
		}
		if one = bytes.Trim(one, " \t"); len(one) > 0 {
			if bad := f(one); bad != nil {
				return bad
			}
		}
	}
	return nil
}

func token(v []byte) bool {
	for _, c := range v {
		if class[c]&inToken == 0 {
			return false
		}
	}
	return len(v) > 0
}

// options are what the Connection fields of a head say.
type options struct{ close, keepAlive, upgrade bool }

// connection reads the Connection fields and marks what they name.
func (h *Head) connection() (o options, bad *fault) {
	if h.count[Connection] == 0 {
		return o, nil
	}
	for i := int(h.first[Connection]) - 1; i < len(h.Fields); i++ {
		f := &h.Fields[i]
		if f.Known != Connection {
			continue
		}
		v := f.Value.Of(h.Octets)
		switch { // the usual ones are no work
		case is(v, "close"):
			o.close = true
			continue
		case is(v, "keep-alive"):
			o.keepAlive = true
			continue
		}
		bad = list(v, func(name []byte) *fault {
			switch {
			case !token(name):
				return faultConnection
			case is(name, "close"):
				o.close = true
				return nil
			}
			switch k := known(name); k {
			case KeepAlive:
				o.keepAlive = true
			case Upgrade:
				o.upgrade = true
			case Connection, ProxyConnection, TE:
			case Other, Trailer:
				h.drop(name)
			default:
				return faultEndToEnd
			}
			return nil
		})
		if bad != nil {
			return o, bad
		}
	}
	return o, nil
}

// drop marks the fields of that name.
func (h *Head) drop(name []byte) {
	for i := range h.Fields {
		f := &h.Fields[i]
		if f.Name.Len() == len(name) && bytes.EqualFold(f.Name.Of(h.Octets), name) {
			f.Drop = true
		}
	}
}

// framing reads the framing fields. With neither it leaves NoBody.
func (h *Head) framing() *fault {
	h.Framing, h.Length = NoBody, 0
	lengths, codings := h.count[ContentLength], h.count[TransferEncoding]
	if lengths == 0 && codings == 0 {
		return nil
	}
	if codings > 0 {
		v := h.value(TransferEncoding)
		switch {
		case h.Minor == 0:
			return faultCodingOld
		case codings > 1 || bytes.IndexByte(v, ',') >= 0:
			return faultCodings
		case !token(v):
			return faultCoding
		case !is(v, "chunked"):
			return faultCodingOther
		case lengths > 0:
			return faultBoth
		}
		h.Framing = Chunked
		return nil
	}
	if lengths > 1 {
		return faultLengths
	}
	v := h.value(ContentLength)
	// Some read a leading zero as the sign of an octal number.
	if len(v) == 0 || len(v) > 18 || v[0] == '0' && len(v) > 1 {
		return faultLength
	}
	for _, c := range v {
		if c < '0' || c > '9' {
			return faultLength
		}
		h.Length = h.Length*10 + uint64(c-'0')
	}
	if h.Length > 0 {
		h.Framing = ByLength
	}
	return nil
}

// value is that of the first field of name k, which is there.
func (h *Head) value(k Known) []byte { return h.Fields[h.first[k]-1].Value.Of(h.Octets) }

// Index is the index in Fields of the first field of name k, or -1.
func (h *Head) Index(k Known) int { return int(h.first[k]) - 1 }

// Lookup gives the value of the first field of that name, in any case.
func (h *Head) Lookup(name string) (value []byte, ok bool) {
	for i := range h.Fields {
		f := &h.Fields[i]
		if f.Name.Len() == len(name) && equalFold(f.Name.Of(h.Octets), name) {
			return f.Value.Of(h.Octets), true
		}
	}
	return nil, false
}

func equalFold(a []byte, b string) bool {
	for i := range a {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c | 0x20
	}
	return c
}

// AppendFields appends the lines of all fields that are passed on, in order,
// without the empty line.
func (h *Head) AppendFields(dst []byte) []byte {
	for i := 0; i < len(h.Fields); i++ {
		if h.Fields[i].Drop {
			continue
		}
		from := i
		for i+1 < len(h.Fields) && !h.Fields[i+1].Drop {
			i++
		}
		dst = append(dst, h.Octets[h.Fields[from].Line.From:h.Fields[i].Line.To]...)
	}
	return dst
}
