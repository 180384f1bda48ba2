package h1

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
		return b.spend(extName, extensionsMax, faultExtensions)
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

// spend goes to state next with an octet that counts against a limit.
func (b *Body) spend(next state, limit uint16, bad *fault) *fault {
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
	return b.spend(next, extensionsMax, faultExtensions)
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
	return b.spend(next, trailersMax, faultTrailersLarge)
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
