package h1

import (
	"bytes"
	"encoding/binary"
)

var (
	faultLine        = refuse(400, "the request line is no method, target and version with one space between")
	faultVersion     = refuse(400, "no HTTP version")
	faultVersions    = refuse(505, "an HTTP version other than 1.0 and 1.1")
	faultExpect      = refuse(417, "Expect is not 100-continue")
	faultUpgrade     = refuse(400, "Upgrade is no list of protocols")
	faultConnectBody = refuse(400, "CONNECT with content")

	faultStatus    = refuse(502, "no status line")
	faultSwitching = refuse(502, "status 101 without Upgrade")
	faultOldStatus = refuse(502, "an interim response in HTTP/1.0")
	faultEmptyBody = refuse(502, "framing fields with a status that has no content")
)

// Request parses b, exactly one head as [Scan] found it, as that of a request.
// After an error h is not to be used.
//
// Content-Length: 0 counts as NoBody. Expect in HTTP/1.0 is not passed on: its
// sender expects nothing (RFC 9110, section 10.1.1), while ours would.
func (h *Head) Request(b []byte, lim *Limits) *Error {
	if bad := h.request(b, lim); bad != nil {
		// What Scan would have said had the head come in pieces comes first.
		if _, _, first := scan(b, 0, lim); first != nil {
			bad = first
		}
		return &bad.request
	}
	return nil
}

// Response parses b, exactly one head as [Scan] found it, as that of a response
// to a request of method m. Every error has status 502. After an error h is
// not to be used.
//
// Where there is no content whatever the fields say (to HEAD, with 1xx, 204 and
// 304, and 2xx to CONNECT) the framing is NoBody. With 2xx to CONNECT the framing
// fields mean nothing (RFC 9110, section 9.3.6) and are marked Drop.
func (h *Head) Response(b []byte, m Method, lim *Limits) *Error {
	if bad := h.response(b, m, lim); bad != nil {
		if _, _, first := scan(b, 0, lim); first != nil {
			bad = first
		}
		return &bad.response
	}
	return nil
}

// begin readies h for b and finds what no caller should have let through.
func (h *Head) begin(b []byte, lim *Limits) *fault {
	h.Octets, h.Fields = b, nil
	h.Method, h.Form, h.HasHost, h.Status = OtherMethod, OriginForm, false, 0
	h.MethodName, h.Target, h.Authority, h.Path, h.Query, h.Reason = Span{}, Span{}, Span{}, Span{}, Span{}, Span{}
	h.Close, h.Upgrade, h.Continue, h.Trailers = false, false, false, false
	if len(b) > lim.HeadMax || len(b) > HeadMost {
		return faultHeadTooLong
	}
	if len(b) < 4 || binary.BigEndian.Uint32(b[len(b)-4:]) != 0x0d0a0d0a {
		return faultNoEnd
	}
	return nil
}

func (h *Head) request(b []byte, lim *Limits) *fault {
	if bad := h.begin(b, lim); bad != nil {
		return bad
	}
	start := 0
	if b[0] == '\r' && b[1] == '\n' {
		start = 2
	}
	i := start
	for class[b[i]]&inToken != 0 {
		i++
	}
	if i == start || b[i] != ' ' {
		return faultLine
	}
	h.MethodName = Span{uint16(start), uint16(i)}
	h.Method = method(b[start:i])
	i++
	target := i
	i = nextNoTarget(b, i)
	if i == target || b[i] != ' ' {
		return faultLine
	}
	h.Target = Span{uint16(target), uint16(i)}
	i, bad := h.version(b, i+1)
	if bad != nil {
		return bad
	}
	if b[i] != '\r' || b[i+1] != '\n' {
		return faultVersion
	}
	if i-start > lim.LineMax {
		return faultLineTooLong
	}
	if bad := h.target(); bad != nil {
		return bad
	}
	if bad := h.parseFields(b, i+2, lim); bad != nil {
		return bad
	}
	if bad := h.host(); bad != nil {
		return bad
	}
	if bad := h.framing(); bad != nil {
		return bad
	}
	if h.Method == CONNECT && h.Framing != NoBody {
		return faultConnectBody
	}
	o, bad := h.connection()
	if bad != nil {
		return bad
	}
	h.Close = o.close || h.Minor == 0 && !o.keepAlive
	if h.count[Expect] > 0 {
		if bad := h.expect(); bad != nil {
			return bad
		}
	}
	if h.count[TE] > 0 {
		h.trailers()
	}
	if h.count[Upgrade] > 0 {
		if bad := h.upgrade(o); bad != nil {
			return bad
		}
	}
	return nil
}

// version reads an HTTP version at b[i:] and gives the index behind it.
func (h *Head) version(b []byte, i int) (int, *fault) {
	// b ends in an empty line: beyond eight octets there are two more at least.
	if len(b) < i+10 {
		return i, faultVersion
	}
	switch v := binary.BigEndian.Uint64(b[i:]); {
	case v == 0x485454502f312e31: // HTTP/1.1
		h.Minor = 1
	case v == 0x485454502f312e30: // HTTP/1.0
		h.Minor = 0
	case v>>24 == 0x485454502f && digit(b[i+5]) && b[i+6] == '.' && digit(b[i+7]) && b[i+8] <= ' ':
		return i, faultVersions
	default:
		return i, faultVersion
	}
	return i + 8, nil
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

func method(name []byte) Method {
	switch string(name) {
	case "GET":
		return GET
	case "HEAD":
		return HEAD
	case "POST":
		return POST
	case "PUT":
		return PUT
	case "DELETE":
		return DELETE
	case "CONNECT":
		return CONNECT
	case "OPTIONS":
		return OPTIONS
	case "TRACE":
		return TRACE
	case "PATCH":
		return PATCH
	}
	return OtherMethod
}

func (h *Head) expect() *fault {
	if h.count[Expect] > 1 || !is(h.value(Expect), "100-continue") {
		return faultExpect
	}
	h.Continue = h.Minor > 0
	h.Fields[h.Index(Expect)].Drop = h.Minor == 0
	return nil
}

// trailers looks for "trailers" in TE. Other codings do not matter: the field
// is dropped.
func (h *Head) trailers() {
	for i := h.Index(TE); i < len(h.Fields); i++ {
		if h.Fields[i].Known == TE {
			_ = list(h.Fields[i].Value.Of(h.Octets), func(one []byte) *fault {
				h.Trailers = h.Trailers || h.Minor > 0 && is(one, "trailers")
				return nil
			})
		}
	}
}

// upgrade reads Upgrade. Of HTTP/1.0, and with content before it could take
// place, it is ignored (RFC 9110, section 7.8).
func (h *Head) upgrade(o options) *fault {
	some := false
	for i := h.Index(Upgrade); i < len(h.Fields); i++ {
		if h.Fields[i].Known != Upgrade {
			continue
		}
		bad := list(h.Fields[i].Value.Of(h.Octets), func(one []byte) *fault {
			name, version, has := bytes.Cut(one, []byte("/"))
			if !token(name) || has && !token(version) {
				return faultUpgrade
			}
			some = true
			return nil
		})
		if bad != nil {
			return bad
		}
	}
	h.Upgrade = some && o.upgrade && h.Minor > 0 && h.Framing == NoBody
	return nil
}

func (h *Head) response(b []byte, m Method, lim *Limits) *fault {
	if bad := h.begin(b, lim); bad != nil {
		return bad
	}
	if _, bad := h.version(b, 0); bad != nil {
		return bad
	}
	// HTTP/1.1 SP 3DIGIT, and a line end at least.
	if len(b) < 16 || b[8] != ' ' || b[9] < '1' || !digit(b[9]) || !digit(b[10]) || !digit(b[11]) {
		return faultStatus
	}
	h.Status = int(b[9]-'0')*100 + int(b[10]-'0')*10 + int(b[11]-'0')
	i := 12
	if b[i] == ' ' {
		i++
	} else if b[i] != '\r' {
		return faultStatus
	}
	reason := i
	for i = nextControl(b, i); b[i] == '\t'; {
		i = nextControl(b, i+1)
	}
	if b[i] != '\r' || b[i+1] != '\n' {
		return controlIn(b[i])
	}
	h.Reason = Span{uint16(reason), uint16(i)}
	if i > lim.LineMax {
		return faultLineTooLong
	}
	if bad := h.parseFields(b, i+2, lim); bad != nil {
		return bad
	}
	o, bad := h.connection()
	if bad != nil {
		return bad
	}
	if bad := h.content(m); bad != nil {
		return bad
	}
	h.Close = h.Framing == UntilClose || o.close || h.Minor == 0 && !o.keepAlive
	if h.count[Upgrade] > 0 {
		if bad := h.upgrade(o); bad != nil {
			return bad
		}
	}
	if h.Status == 101 && !h.Upgrade {
		return faultSwitching
	}
	return nil
}

// content finds how the response's body is framed (RFC 9112, section 6.3).
func (h *Head) content(m Method) *fault {
	if m == CONNECT && h.Status/100 == 2 {
		h.Framing, h.Length = NoBody, 0
		for i := range h.Fields {
			if k := h.Fields[i].Known; k == ContentLength || k == TransferEncoding {
				h.Fields[i].Drop = true
			}
		}
		return nil
	}
	if bad := h.framing(); bad != nil {
		return bad
	}
	switch {
	case h.Status/100 == 1 && h.Minor == 0:
		return faultOldStatus
	case h.Status/100 == 1 || h.Status == 204:
		// A length of 0 is against the rules (RFC 9110, section 8.6) and common;
		// readers cannot differ about it.
		if h.Framing != NoBody {
			return faultEmptyBody
		}
	case m == HEAD || h.Status == 304:
		h.Framing = NoBody
	case h.Framing == NoBody && h.count[ContentLength] == 0:
		h.Framing = UntilClose
	}
	return nil
}
