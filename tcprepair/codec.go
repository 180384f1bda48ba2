package tcprepair

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// The encoding, version 2. Integers of fixed size are little-endian, those
// marked v are unsigned varints in their shortest form.
//
//	version 1 | flags 2 | TCP state 1 | scales 1 | buffer lock 1
//	local address 4 or 16, port 2 | remote the same
//	SendSeq 4 | RecvSeq 4 | Timestamp 4
//	SendWL1 4 | SendWindow 4 | MaxWindow 4 | RecvWindow 4 | RecvWup 4
//	MSS v | Unsent v | RecvBuffer v | SendBuffer v
//	KeepIdle v | KeepInterval v | KeepCount v | UserTimeout v
//	Congestion: length 1, octets
//	TOS 1 | Mark v
//	RecvQueue: length v, octets | SendQueue: length v, octets
//
// Version 1 is without TOS, Mark and the flag of SO_OOBINLINE; it is read, and no
// longer written. A new field needs a new version: whoever does not know a field
// must not restore a socket without it.
const codecVersion = 2

// Flags. Their numbers are part of the encoding.
const (
	codecIPv6 uint16 = 1 << iota
	codecSACK
	codecScaling
	codecTimestamps
	codecECN
	codecNoDelay
	codecKeepAlive
	codecFinUnsent
	codecOutOfOrder
	codecOOBInline
	codecKnown  = 1<<iota - 1
	codecKnown1 = codecOOBInline - 1 // in version 1
)

func (s *State) flags() (f uint16) {
	for _, b := range [...]struct {
		set bool
		bit uint16
	}{
		{s.Local.Addr().Is6(), codecIPv6},
		{s.SACK, codecSACK},
		{s.WindowScaling, codecScaling},
		{s.Timestamps, codecTimestamps},
		{s.ECN, codecECN},
		{s.NoDelay, codecNoDelay},
		{s.KeepAlive, codecKeepAlive},
		{s.FinUnsent, codecFinUnsent},
		{s.OutOfOrder, codecOutOfOrder},
		{s.OOBInline, codecOOBInline},
	} {
		if b.set {
			f |= b.bit
		}
	}
	return f
}

// words are the fields of fixed size, varints those of variable size, both
// in the order of the encoding.
func (s *State) words() [8]*uint32 {
	return [...]*uint32{&s.SendSeq, &s.RecvSeq, &s.Timestamp, &s.Window.SendWL1, &s.Window.SendWindow,
		&s.Window.MaxWindow, &s.Window.RecvWindow, &s.Window.RecvWup}
}

func (s *State) varints() [8]*uint32 {
	return [...]*uint32{&s.MSS, &s.Unsent, &s.RecvBuffer, &s.SendBuffer, &s.KeepIdle, &s.KeepInterval,
		&s.KeepCount, &s.UserTimeout}
}

// AppendBinary appends the encoding of s to b. It refuses a State that
// UnmarshalBinary would refuse.
func (s *State) AppendBinary(b []byte) ([]byte, error) {
	if err := s.check(); err != nil {
		return b, err
	}
	b = append(b, codecVersion)
	b = binary.LittleEndian.AppendUint16(b, s.flags())
	b = append(b, byte(s.TCP), s.SendScale|s.RecvScale<<4, s.BufferLock)
	for _, a := range [...]netip.AddrPort{s.Local, s.Remote} {
		if a.Addr().Is4() {
			ip := a.Addr().As4()
			b = append(b, ip[:]...)
		} else {
			ip := a.Addr().As16()
			b = append(b, ip[:]...)
		}
		b = binary.LittleEndian.AppendUint16(b, a.Port())
	}
	for _, p := range s.words() {
		b = binary.LittleEndian.AppendUint32(b, *p)
	}
	for _, p := range s.varints() {
		b = binary.AppendUvarint(b, uint64(*p))
	}
	b = append(b, byte(len(s.Congestion)))
	b = append(b, s.Congestion...)
	b = append(b, s.TOS)
	b = binary.AppendUvarint(b, uint64(s.Mark))
	for _, q := range [...][]byte{s.RecvQueue, s.SendQueue} {
		b = binary.AppendUvarint(b, uint64(len(q)))
		b = append(b, q...)
	}
	return b, nil
}

// UnmarshalBinary decodes b, all of it, into s. It refuses versions and
// flags it does not know, lengths beyond the bounds, trailing octets and
// whatever no socket can be; the error wraps ErrInvalid and s is then
// unchanged. s keeps no part of b; the memory of its queues is used again.
func (s *State) UnmarshalBinary(b []byte) error {
	recv, send := s.RecvQueue[:0], s.SendQueue[:0]
	if err := s.ReadBinary(b); err != nil {
		return err
	}
	s.RecvQueue, s.SendQueue = append(recv, s.RecvQueue...), append(send, s.SendQueue...)
	return nil
}

// ReadBinary is UnmarshalBinary, but the queues are parts of b, which nobody may change
// as long as they are in use: see Shed.
func (s *State) ReadBinary(b []byte) error {
	d := decoder{rest: b}
	var n State
	version, known := d.byte(), uint16(codecKnown)
	if d.bad || version == 0 || version > codecVersion {
		return fmt.Errorf("tcprepair: decode: version %d, known are 1 to %d: %w", version, codecVersion, ErrInvalid)
	}
	if version == 1 {
		known = codecKnown1
	}
	flags := binary.LittleEndian.Uint16(d.take(2))
	if flags&^known != 0 {
		return fmt.Errorf("tcprepair: decode: unknown flags %#x: %w", flags&^known, ErrInvalid)
	}
	n.SACK = flags&codecSACK != 0
	n.WindowScaling = flags&codecScaling != 0
	n.Timestamps = flags&codecTimestamps != 0
	n.ECN = flags&codecECN != 0
	n.NoDelay = flags&codecNoDelay != 0
	n.KeepAlive = flags&codecKeepAlive != 0
	n.FinUnsent = flags&codecFinUnsent != 0
	n.OutOfOrder = flags&codecOutOfOrder != 0
	n.OOBInline = flags&codecOOBInline != 0
	n.TCP = TCPState(d.byte())
	scales := d.byte()
	n.SendScale, n.RecvScale = scales&15, scales>>4
	n.BufferLock = d.byte()
	for _, a := range [...]*netip.AddrPort{&n.Local, &n.Remote} {
		var addr netip.Addr
		if flags&codecIPv6 != 0 {
			addr = netip.AddrFrom16([16]byte(d.take(16)))
		} else {
			addr = netip.AddrFrom4([4]byte(d.take(4)))
		}
		*a = netip.AddrPortFrom(addr, binary.LittleEndian.Uint16(d.take(2)))
	}
	for _, p := range n.words() {
		*p = binary.LittleEndian.Uint32(d.take(4))
	}
	for _, p := range n.varints() {
		*p = d.uvarint(1<<32 - 1)
	}
	n.Congestion = congestionName(d.block(uint32(d.byte()), maxCongestionName))
	if version > 1 {
		n.TOS = d.byte()
		n.Mark = d.uvarint(1<<32 - 1)
	}
	n.RecvQueue = d.block(d.uvarint(MaxQueue), MaxQueue)
	n.SendQueue = d.block(d.uvarint(MaxQueue), MaxQueue)
	if d.bad {
		return fmt.Errorf("tcprepair: decode: %d octets: cut short, or a length out of bounds: %w", len(b), ErrInvalid)
	}
	if len(d.rest) > 0 {
		return fmt.Errorf("tcprepair: decode: %d octets too many: %w", len(d.rest), ErrInvalid)
	}
	if err := n.check(); err != nil {
		return err
	}
	*s = n
	return nil
}

// Shed lets go of the octets that a restored socket has. What GoLive needs is kept, in
// memory of its own: what was never transmitted, and that there was something to be read.
func (s *State) Shed() {
	s.SendQueue = append([]byte(nil), s.unsent()...)
	s.RecvQueue = append([]byte(nil), s.RecvQueue[:min(1, len(s.RecvQueue))]...)
}

// decoder reads from rest. After the first failure it yields zeros, so that
// one test of bad at the end is enough.
type decoder struct {
	rest []byte
	bad  bool
	zero [16]byte
}

// take returns n octets, at most 16.
func (d *decoder) take(n int) []byte {
	if d.bad || len(d.rest) < n {
		d.bad = true
		return d.zero[:n]
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) byte() byte { return d.take(1)[0] }

func (d *decoder) uvarint(limit uint64) uint32 {
	v, n := binary.Uvarint(d.rest)
	// A last octet of zero is a longer form of the same number; one value
	// has one encoding.
	if d.bad || n <= 0 || v > limit || n > 1 && d.rest[n-1] == 0 {
		d.bad = true
		return 0
	}
	d.rest = d.rest[n:]
	return uint32(v)
}

// block returns the next n octets without copying. Nothing is allocated for
// a length that the input does not have.
func (d *decoder) block(n uint32, limit int) []byte {
	if d.bad || int64(n) > int64(limit) || int64(n) > int64(len(d.rest)) {
		d.bad = true
		return nil
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}
