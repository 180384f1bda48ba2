package h1

import "math"

var faultCutOff = refuse(400, "the sender ended before the body did")

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
