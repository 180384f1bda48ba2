package h1

import "math"

var (
	faultChunkSize     = refuse(400, "a chunk size that is no hexadecimal number of up to 16 digits")
	faultChunkBig      = refuse(400, "a chunk that is too large")
	faultChunkLine     = refuse(400, "a chunk line that does not end in CRLF")
	faultChunkEnd      = refuse(400, "a chunk that CRLF does not follow")
	faultExtension     = refuse(400, "a chunk extension that is none")
	faultExtensions    = refuse(400, "too many octets of chunk extensions")
	faultTrailer       = refuse(400, "a trailer line that is no field")
	faultTrailerField  = refuse(400, "a trailer field that only a head may have")
	faultTrailersLarge = refuse(400, "too many octets of trailers")
	faultCutOff        = refuse(400, "the sender ended before the body did")
)

const (
	// extensionsMax bounds the extensions of all chunks of a body, in octets.
	// Nobody sends them; they are read over.
	extensionsMax = 4 << 10
	// trailersMax bounds the trailer section, in octets.
	trailersMax = 8 << 10
	// chunkMax bounds a chunk, and a body of chunks, in octets.
	chunkMax = 1 << 62
	// digitsMax bounds the digits of a chunk size: those of 64 bits.
	digitsMax = 16
)

// state is where in a body the next octet stands. The numbers travel: append,
// never renumber.
type state uint8

const (
	over       state = 0  // nothing is to come
	plain      state = 1  // octets of a length, or until the sender's end
	sizeFirst  state = 2  // the first digit of a chunk size
	size       state = 3  // more of them, or the end of the line
	extName    state = 4  // the first octet of an extension's name
	extNames   state = 5  // more of them
	extValue   state = 6  // the first octet of its value
	extToken   state = 7  // more of a value that is a token
	extQuoted  state = 8  // within a quoted string
	extEscaped state = 9  // behind a backslash in one
	extAfter   state = 10 // behind a quoted string
	sizeLF     state = 11 // CR of a chunk line has come
	chunk      state = 12 // data
	chunkCR    state = 13 // behind data
	chunkLF    state = 14
	line       state = 15 // the first octet of a trailer line, or of the empty one
	name       state = 16 // more of a trailer's name
	value      state = 17 // a trailer's value
	valueLF    state = 18
	endLF      state = 19 // CR of the empty line has come
)

// Body is the framing of one body under way: what is due, and where in a chunk
// it stands. It holds no octet and no pointer, so it can be put down between any
// two octets. The zero value is a body that is over.
//
// Names of trailers are not kept but hashed as they come. A name that may be in
// a head alone is refused at its colon; what of it was passed on by then is
// harmless, for the message never completes.
type Body struct {
	left   uint64  `frozen:"left"`    // octets of the length or of the chunk; of a size, what its digits say so far
	count  uint64  `frozen:"content"` // octets of content so far
	hash   uint64  `frozen:"name"`    // of a trailer's name so far
	octets uint16  `frozen:"octets"`  // of extensions; then of trailers
	digits uint8   `frozen:"digits"`  // of the chunk size so far
	framed Framing `frozen:"framing"`
	state  state   `frozen:"state"`
}

// NewBody is the body that a head with this framing and length announces.
func NewBody(f Framing, length uint64) Body {
	b := Body{framed: f}
	switch f {
	case NoBody:
	case ByLength:
		if b.left = length; length > 0 {
			b.state = plain
		}
	case Chunked:
		b.state = sizeFirst
	case UntilClose:
		b.state = plain
	default:
		panic("h1: a framing that is none")
	}
	return b
}

// Done tells whether nothing is to come.
func (b *Body) Done() bool { return b.state == over }

// Framing is how the end of the body is known.
func (b *Body) Framing() Framing { return b.framed }

// Content is how many octets of content have come so far, framing left out.
func (b *Body) Content() uint64 { return b.count }

// Bare is how many of the next octets are content that needs no look: what is
// left of a length or of a chunk, MaxUint64 if only the sender's end bounds it,
// else 0.
func (b *Body) Bare() uint64 {
	switch {
	case b.state == plain && b.framed == UntilClose:
		return math.MaxUint64
	case b.state == plain || b.state == chunk:
		return b.left
	}
	return 0
}

// Passed notes that n of the bare octets went by unseen. It is at most Bare.
func (b *Body) Passed(n uint64) {
	if n > b.Bare() {
		panic("h1: more octets went by than were due")
	}
	b.count += n
	if b.framed == UntilClose {
		return
	}
	if b.left -= n; b.left > 0 || n == 0 {
		return
	}
	if b.state == chunk {
		b.state = chunkCR
	} else {
		b.state = over
	}
}

// End notes that the sender has sent FIN. That ends a body that only its end
// bounds; one of which octets are missing it refuses.
func (b *Body) End() *Error {
	switch {
	case b.state == over:
	case b.framed == UntilClose:
		b.state = over
	default:
		return &faultCutOff.request
	}
	return nil
}

// Feed takes the octets at the front of p that belong to the body. It gives how
// many these are (n), and how many are passed on: p[:out], moved together where
// some between them are not. Once the body is over it takes none.
//
// With bare, towards HTTP/1.0, only content is passed on: neither framing nor
// trailers. Else framing is passed on as it came, but without chunk extensions.
//
// With an error, the octets up to the one at fault were taken; the body stays
// where it is. Errors are those of a request.
func (b *Body) Feed(p []byte, bare bool) (n, out int, err *Error) {
	i := 0
	for i < len(p) && b.state != over {
		if due := b.Bare(); due > 0 {
			k := int(min(due, uint64(len(p)-i)))
			if out != i {
				copy(p[out:], p[i:i+k])
			}
			b.Passed(uint64(k))
			i, out = i+k, out+k
			continue
		}
		c := p[i]
		if bad := b.step(c); bad != nil {
			return i, out, &bad.request
		}
		// An octet of an extension leaves the machine within one; the CR behind
		// it does not.
		if extension := b.state >= extName && b.state <= extAfter; !bare && !extension {
			p[out] = c
			out++
		}
		i++
	}
	return i, out, nil
}

// step takes one octet that is not content.
func (b *Body) step(c byte) *fault {
	switch b.state {
	case sizeFirst, size:
		return b.size(c)
	case extName, extNames, extValue, extToken, extQuoted, extEscaped, extAfter:
		return b.extension(c)
	case sizeLF:
		if c != '\n' {
			return faultChunkLine
		}
		b.digits = 0
		if b.state = chunk; b.left == 0 {
			b.state, b.octets = line, 0
		}
	case chunkCR:
		if c != '\r' {
			return faultChunkEnd
		}
		b.state = chunkLF
	case chunkLF:
		if c != '\n' {
			return faultChunkEnd
		}
		b.state = sizeFirst
	case line, name, value, valueLF, endLF:
		return b.trailer(c)
	default:
		panic("h1: an octet of framing where there is none")
	}
	return nil
}

func (b *Body) size(c byte) *fault {
	d := uint64(0)
	switch {
	case digit(c):
		d = uint64(c - '0')
	case class[c]&inHex != 0:
		d = uint64(c|0x20-'a') + 10
	case b.state == size && c == '\r':
		b.state = sizeLF
		return nil
	case b.state == size && c == ';':
		return b.count1(extName, extensionsMax, faultExtensions)
	default:
		return faultChunkSize
	}
	if b.digits == digitsMax {
		return faultChunkSize
	}
	v := b.left<<4 | d // no bit is lost: all digits fit
	if v > chunkMax-b.count {
		return faultChunkBig
	}
	b.left, b.state = v, size
	b.digits++
	return nil
}

// count1 goes to state next with an octet that counts against a limit.
func (b *Body) count1(next state, limit uint16, bad *fault) *fault {
	if b.octets >= limit {
		return bad
	}
	b.octets++
	b.state = next
	return nil
}

// extension reads chunk extensions (RFC 9112, section 7.1.1), without the white
// space that recipients may bear with. They have no meaning here; their syntax
// is checked because a reader that is lax about it may see the line end
// elsewhere.
func (b *Body) extension(c byte) *fault {
	next := b.state
	inTok := class[c]&inToken != 0
	switch {
	case b.state == extQuoted:
		switch {
		case c == '"':
			next = extAfter
		case c == '\\':
			next = extEscaped
		case c < ' ' && c != '\t' || c == 0x7f:
			return faultExtension
		}
	case b.state == extEscaped:
		if c < ' ' && c != '\t' || c == 0x7f {
			return faultExtension
		}
		next = extQuoted
	case b.state == extAfter && inTok:
		return faultExtension
	case inTok && b.state == extName:
		next = extNames
	case inTok && b.state == extValue:
		next = extToken
	case inTok:
	case b.state == extValue && c == '"':
		next = extQuoted
	case b.state == extName || b.state == extValue:
		return faultExtension
	case c == '\r':
		b.state = sizeLF
		return nil
	case c == ';':
		next = extName
	case c == '=' && b.state == extNames:
		next = extValue
	default:
		return faultExtension
	}
	return b.count1(next, extensionsMax, faultExtensions)
}

func (b *Body) trailer(c byte) *fault {
	next := b.state
	switch b.state {
	case line:
		switch {
		case c == '\r':
			next = endLF
		case class[c]&inToken != 0:
			b.hash = hashOf(hashSeed, c)
			next = name
		case c == ' ' || c == '\t':
			return faultFold
		default:
			return faultTrailer
		}
	case name:
		switch {
		case class[c]&inToken != 0:
			b.hash = hashOf(b.hash, c)
		case c == ':':
			if headOnly(b.hash) {
				return faultTrailerField
			}
			b.hash = 0
			next = value
		default:
			return faultTrailer
		}
	case value:
		switch {
		case c == '\r':
			next = valueLF
		case c < ' ' && c != '\t' || c == 0x7f:
			return controlIn(c)
		}
	case valueLF, endLF:
		if c != '\n' {
			return faultBareCR
		}
		if next = line; b.state == endLF {
			b.state, b.octets = over, 0
			return nil
		}
	}
	return b.count1(next, trailersMax, faultTrailersLarge)
}

// FNV-1a of 64 bits. That another name can be made to have a forbidden one's hash
// only gets that name refused.
const (
	hashSeed  = 0xcbf29ce484222325
	hashPrime = 0x100000001b3
)

// hashOf adds one octet of a name, in lower case and with the hyphen that
// readers by the rules of CGI see in an underscore.
func hashOf(h uint64, c byte) uint64 {
	if c = lower(c); c == '_' {
		c = '-'
	}
	return (h ^ uint64(c)) * hashPrime
}

// Fields that may not be in trailers because a recipient needs them before the
// content, or because merging them into the head would change what it means (RFC
// 9110, section 6.5.1).
var headOnlyHashes = func() (hashes []uint64) {
	for _, name := range []string{
		// framing
		"Content-Length", "Transfer-Encoding", "Trailer",
		// one hop alone
		"Connection", "Keep-Alive", "Proxy-Connection", "TE", "Upgrade",
		// routing, and who asks
		"Host", "Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Real-IP",
		// authentication and state
		"Authorization", "Proxy-Authorization", "WWW-Authenticate", "Proxy-Authenticate", "Cookie", "Set-Cookie",
		// what a request asks for
		"Expect", "Cache-Control", "Max-Forwards", "Range", "Pragma",
		"If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "If-Range",
		// what the content is
		"Content-Encoding", "Content-Type", "Content-Range",
	} {
		h := uint64(hashSeed)
		for i := range len(name) {
			h = hashOf(h, name[i])
		}
		hashes = append(hashes, h)
	}
	return hashes
}()

func headOnly(hash uint64) bool {
	for _, h := range headOnlyHashes {
		if h == hash {
			return true
		}
	}
	return false
}
