// Package h1 parses HTTP/1.x (RFC 9110, 9112): heads, and the framing of
// bodies, as strictly as a proxy must be that never forwards what two readers
// could understand differently. Octets in, octets out: nothing here does I/O,
// keeps a slice of its input or refers to anything outside.
//
// A head is looked at by [Scan] as it comes, octet by octet if need be, and
// parsed as a whole by [Head.Request] or [Head.Response] once its end is there:
// what is kept of a half of it is its octets and how far they were scanned. A
// body is never kept: [Body] says of each octet whether it is passed on.
package h1

// Limits bound what a peer may send in a head.
type Limits struct {
	LineMax   int // octets of the first line without CRLF; more is 414
	HeadMax   int // octets of a head with the empty line at its end; more is 431
	FieldsMax int // fields of a head; more is 431; at most [FieldsMost]
}

// FieldsMost is the room of a [Head] for fields.
const FieldsMost = 128

// HeadMost bounds Limits.HeadMax: offsets into a head are 16 bits, and a head
// fits a block of its runner.
const HeadMost = 16 << 10

// Error is why octets are no message. Each is made once; none holds octets of
// the peer.
type Error struct {
	Status int    // the answer to a client: 400, 414, 417, 431, 501 or 505; of a response it is 502
	Why    string // for people, as in "two Content-Length fields"
}

func (e *Error) Error() string { return "h1: " + e.Why }

// Span is a range of a head's octets, from From up to but without To.
type Span struct{ From, To uint16 }

// Len is the number of octets in s.
func (s Span) Len() int { return int(s.To) - int(s.From) }

// Of gives the octets of s in b.
func (s Span) Of(b []byte) []byte { return b[s.From:s.To] }

// Known is a field name that a proxy must understand.
type Known uint8

// The known names. Other is every other one.
const (
	Other Known = iota
	Connection
	ContentLength
	Expect
	Forwarded
	Host
	KeepAlive
	ProxyConnection
	TE
	Trailer
	TransferEncoding
	Upgrade
	Via
	XForwardedFor
	XForwardedHost
	XForwardedProto
)

// Field is one field line of a head.
type Field struct {
	Name  Span  // as it was written
	Value Span  // without the white space around it
	Line  Span  // all of it, CRLF included
	Known Known // what the name is
	// Drop: the field is for one hop alone and is not passed on (RFC 9110,
	// section 7.6.1): Connection and all it names, Keep-Alive,
	// Proxy-Connection, TE, Upgrade. Also Expect of HTTP/1.0, which means
	// nothing there; and what X_Forwarded_For and the like would be read as
	// behind CGI. Never set for Host, nor for framing fields but those of 2xx to
	// CONNECT. Whoever forwards may set it for more fields, and says by itself
	// what an upgrade needs.
	Drop bool
}

// Method is a method that a proxy must tell from others. Names are
// case-sensitive.
type Method uint8

// The methods. OtherMethod is every other one: not safe, not idempotent.
const (
	OtherMethod Method = iota
	GET
	HEAD
	POST
	PUT
	DELETE
	CONNECT
	OPTIONS
	TRACE
	PATCH
)

// Idempotent tells whether a request of this method may be sent twice with the
// effect of once (RFC 9110, section 9.2.2).
func (m Method) Idempotent() bool {
	switch m {
	case GET, HEAD, PUT, DELETE, OPTIONS, TRACE:
		return true
	}
	return false
}

// Form is the form of a request's target (RFC 9112, section 3.2).
type Form uint8

// The forms.
const (
	OriginForm    Form = iota // /path?query
	AbsoluteForm              // http://authority/path?query
	AuthorityForm             // authority, of CONNECT
	AsteriskForm              // *, of OPTIONS
)

// Framing is how the end of a body is known (RFC 9112, section 6.3).
type Framing uint8

// The framings. The numbers travel: append, never renumber.
const (
	NoBody     Framing = 0
	ByLength   Framing = 1
	Chunked    Framing = 2
	UntilClose Framing = 3 // of responses only
)

// Head is a head that was parsed. It is the runner's scratch: it refers to the
// octets that it was parsed from, and is overwritten by the next parse. The
// zero value is ready; parsing never allocates.
type Head struct {
	Octets []byte // the head, its empty line included
	Fields []Field

	// Of a request.
	Method     Method
	Form       Form
	MethodName Span
	Target     Span // all of it
	Authority  Span // the host, as written: of the target if that has one, else of Host; may be empty
	Path       Span // without the query; of an absolute-form target it may be empty, which means "/"
	Query      Span // without the question mark
	HasHost    bool // there is a Host field

	// Of a response.
	Status int
	Reason Span

	Minor   uint8   // 1 of HTTP/1.1, 0 of HTTP/1.0
	Framing Framing // of the body that follows; NoBody with a length of 0, too
	Length  uint64  // with ByLength
	// Close: the sender ends the connection after this message, be it that it
	// says so or that it speaks HTTP/1.0 and does not say "keep-alive".
	Close bool
	// Upgrade: Connection names Upgrade, and there is such a field; in HTTP/1.1,
	// and with no body that would come first.
	Upgrade  bool
	Continue bool // Expect: 100-continue, of an HTTP/1.1 request
	Trailers bool // TE names trailers

	fields [FieldsMost]Field
	first  [names]uint8 // of each known name, 1 + the index of its first field; 0 is none
	count  [names]uint8
}
