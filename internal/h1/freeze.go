package h1

import (
	"fmt"
	"math"

	"github.com/holdfast-lb/holdfast/internal/frozen"
)

// Freeze puts b down. It may stand between any two octets.
func (b *Body) Freeze() *frozen.Body {
	return &frozen.Body{
		Framing: uint32(b.framed), State: uint32(b.state), Left: b.left, Content: b.count,
		Digits: uint32(b.digits), Name: b.hash, Octets: uint32(b.octets),
	}
}

// ThawBody picks a body up. What no body could have come to is a
// [frozen.Refused].
func ThawBody(z *frozen.Body) (Body, error) {
	if z == nil {
		return Body{}, refused("missing")
	}
	if z.Framing > uint32(UntilClose) || z.State > uint32(endLF) {
		return Body{}, refused("framing %d, state %d: not known to this release", z.Framing, z.State)
	}
	if z.Digits > digitsMax || z.Octets > trailersMax {
		return Body{}, refused("%d digits, %d octets: out of bounds", z.Digits, z.Octets)
	}
	b := Body{
		left: z.Left, count: z.Content, hash: z.Name, octets: uint16(z.Octets),
		digits: uint8(z.Digits), framed: Framing(z.Framing), state: state(z.State),
	}
	if !b.possible() {
		return Body{}, refused("framing %d, state %d, %d octets left, %d digits, %d octets, a name: %t: it could not be",
			z.Framing, z.State, z.Left, z.Digits, z.Octets, z.Name != 0)
	}
	return b, nil
}

// possible tells whether the machine itself could have come to b.
func (b *Body) possible() bool {
	// What a state does not use is zero.
	if b.state != name && b.hash != 0 || (b.state < size || b.state > sizeLF) && b.digits != 0 {
		return false
	}
	switch b.state {
	case over:
		return b.left == 0 && b.octets == 0 && (b.framed != NoBody || b.count == 0)
	case plain:
		return b.octets == 0 && (b.framed == ByLength && b.left > 0 && b.left <= math.MaxUint64-b.count || b.framed == UntilClose && b.left == 0)
	}
	if b.framed != Chunked || b.count > chunkMax || b.left > chunkMax-b.count {
		return false
	}
	switch b.state {
	case line:
		return b.left == 0
	case name, value, valueLF, endLF:
		return b.left == 0 && b.octets > 0
	}
	if b.octets > extensionsMax {
		return false
	}
	switch b.state {
	case size, extName, extNames, extValue, extToken, extQuoted, extEscaped, extAfter, sizeLF:
		return b.digits > 0 && (b.digits == digitsMax || b.left>>(4*b.digits) == 0) && (b.state == size || b.state == sizeLF || b.octets > 0)
	case chunk:
		return b.left > 0
	case sizeFirst, chunkCR, chunkLF:
		return b.left == 0
	}
	return false
}

func refused(format string, args ...any) error {
	return &frozen.Refused{What: "body", Why: fmt.Sprintf(format, args...)}
}
