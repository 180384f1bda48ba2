package h1

import (
	"bytes"
	"encoding/binary"
	"math/bits"
)

// fault is one reason to refuse octets: what a client is told, and the same of
// a response.
type fault struct{ request, response Error }

func refuse(status int, why string) *fault {
	return &fault{Error{status, why}, Error{502, why}}
}

var (
	faultBareLF      = refuse(400, "LF without CR before it")
	faultBareCR      = refuse(400, "CR without LF after it")
	faultControl     = refuse(400, "a control octet")
	faultStart       = refuse(400, "a head begins with no token")
	faultLineTooLong = refuse(414, "the first line is too long")
	faultHeadTooLong = refuse(431, "the head is too long")
)

// Scan looks for the end of a head at the front of b, of which b[:from] was
// scanned before. It gives the head's size, the empty line included; or 0, and
// how far it has looked, if the end is not there yet. What no head can hold it
// refuses at once: CR or LF alone, other control octets but HTAB, a first octet
// that begins no token, a line or a head that is too long. Errors are those of
// a request; of a response each means 502.
//
// Of a head that is whole it looks at the ends of lines alone, and leaves the
// rest to the parse. Both together say the same of the same octets, however
// they come.
//
// One empty line before the first is part of the head (RFC 9112, section 2.2):
// old clients send it after a body. [Head.Request] skips it.
func Scan(b []byte, from int, lim *Limits) (size, scanned int, err *Error) {
	w := b[:min(len(b), lim.HeadMax, HeadMost)]
	i := from
	for i < len(w) {
		at := bytes.IndexByte(w[i:], '\n')
		if at < 0 {
			break
		}
		i += at + 1
		if i < 2 || w[i-2] != '\r' {
			break
		}
		if i > 2 && w[i-3] == '\n' {
			return i, i, nil
		}
	}
	size, scanned, bad := scan(b, from, lim)
	if bad != nil {
		return 0, 0, &bad.request
	}
	return size, scanned, nil
}

// scan is Scan, octet by octet. It finds what is wrong in the order of the
// octets.
func scan(b []byte, from int, lim *Limits) (size, scanned int, bad *fault) {
	w := b[:min(len(b), lim.HeadMax, HeadMost)]
	start := 0
	if len(w) > 0 && w[0] == '\r' {
		if len(w) == 1 {
			return 0, 0, nil
		}
		if w[1] != '\n' {
			return 0, 0, faultBareCR
		}
		start = 2
	}
	if len(w) > start && class[w[start]]&inToken == 0 {
		return 0, 0, faultStart
	}
	i := min(max(from, start), len(w))
	// Only the first line has a limit of its own. If something was scanned
	// before, that line may have ended there.
	line := i <= start+lim.LineMax && (i == start || bytes.IndexByte(w[start:i], '\n') < 0)
	for {
		i = nextControl(w, i)
		if line && i > start+lim.LineMax {
			return 0, 0, faultLineTooLong
		}
		if i >= len(w)-1 {
			break
		}
		switch {
		case w[i] == '\r' && w[i+1] == '\n':
			if w[i-1] == '\n' {
				return i + 2, i + 2, nil
			}
			i += 2
			line = false
			continue
		case w[i] == '\t':
			i++
			continue
		}
		return 0, 0, controlIn(w[i])
	}
	// The last octet, if it is a CR, is looked at again with the one after it.
	if i < len(w) && w[i] != '\r' {
		if w[i] != '\t' {
			return 0, 0, controlIn(w[i])
		}
		i++
	}
	if len(w) < len(b) || len(w) == lim.HeadMax || len(w) == HeadMost {
		return 0, 0, faultHeadTooLong
	}
	return 0, i, nil
}

func controlIn(c byte) *fault {
	switch c {
	case '\r':
		return faultBareCR
	case '\n':
		return faultBareLF
	}
	return faultControl
}

const (
	each  = 0x0101010101010101
	highs = 0x8080808080808080
)

// controls marks the highest bits of the octets of x that are control octets. A
// borrow out of one octet can only mark those above it, so the lowest mark is
// true.
func controls(x uint64) uint64 {
	d := x ^ each*0x7f
	return ((x-each*0x20)&^x | (d-each)&^d) & highs
}

// nextControl gives the index of the first control octet in b[i:], or len(b).
// Octets from 0x80 on are none.
func nextControl(b []byte, i int) int {
	for ; i+8 <= len(b); i += 8 {
		if m := controls(binary.LittleEndian.Uint64(b[i:])); m != 0 {
			return i + bits.TrailingZeros64(m)>>3
		}
	}
	for ; i < len(b); i++ {
		if b[i] < ' ' || b[i] == 0x7f {
			return i
		}
	}
	return len(b)
}

// nextNoTarget gives the index of the first octet in b[i:] that a target cannot
// have, or len(b): all but visible ASCII, and the number sign, for a fragment is
// never sent (RFC 9112, section 3.2).
func nextNoTarget(b []byte, i int) int {
	for ; i+8 <= len(b); i += 8 {
		x := binary.LittleEndian.Uint64(b[i:])
		d, f := x^each*0x7f, x^each*'#'
		if m := (x | (x-each*0x21)&^x | (d-each)&^d | (f-each)&^f) & highs; m != 0 {
			return i + bits.TrailingZeros64(m)>>3
		}
	}
	for ; i < len(b); i++ {
		if c := b[i]; c <= ' ' || c >= 0x7f || c == '#' {
			return i
		}
	}
	return len(b)
}

// What an octet may be part of.
const (
	inToken = 1 << iota // RFC 9110, section 5.6.2
	inHost              // a name or an IPv4 address
	inHex
	underscore
)

var class = func() (t [256]uint8) {
	for c := range 256 {
		alpha := c|0x20 >= 'a' && c|0x20 <= 'z' && c < 0x80
		digit := c >= '0' && c <= '9'
		if alpha || digit || c < 0x80 && bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), byte(c)) >= 0 {
			t[c] |= inToken
		}
		if alpha || digit || c == '-' || c == '.' || c == '_' {
			t[c] |= inHost
		}
		if digit || alpha && c|0x20 <= 'f' {
			t[c] |= inHex
		}
		if c == '_' {
			t[c] |= underscore
		}
	}
	return t
}()
