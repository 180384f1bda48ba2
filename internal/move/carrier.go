package move

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/planted"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// Local carries over a unix seqpacket channel, with descriptors.
type Local struct {
	c   sock.Channel
	buf []byte
	// What is left of a message that was under way when the time was over: parts
	// that are still to go, and what has come so far.
	rest    [][]byte
	partial Message

	march *planted.Marching // leads tests to each call
	sent  Kind              // last
}

// NewLocal makes a carrier over c, which it owns.
func NewLocal(c sock.Channel) *Local { return &Local{c: c, buf: make([]byte, sock.MessageMax)} }

// march has its calls counted as those of one side, in tests that lead an upgrade to
// each of them.
func march(c Carrier, side string) {
	if l, ok := c.(*Local); ok {
		l.march = planted.March(side)
	}
}

// A message that is larger than the channel takes goes in parts; each begins
// with its kind, a flag that tells whether more follow, and the number of its lot.
const partHeader = 4

// Send sends the message, in parts if it must. Descriptors go with the first.
func (l *Local) Send(m Message) error {
	if err := l.march.Call("send", m.Kind); err != nil {
		return fmt.Errorf("move: %v: %w", m.Kind, err)
	}
	l.sent = m.Kind
	if err := l.flush(); err != nil {
		return fmt.Errorf("move: %v: what goes before it: %w", m.Kind, err)
	}
	fds, body := m.FDs, m.Body
	for first := true; first || len(body) > 0; first = false {
		n := min(len(body), sock.MessageMax-partHeader)
		more := byte(0)
		if n < len(body) {
			more = 1
		}
		head, part := []byte{byte(m.Kind), more, byte(m.Lot >> 8), byte(m.Lot)}, body[:n]
		body = body[n:]
		if !first {
			l.rest = append(l.rest, append(head, part...)) // it may go when the body is the caller's again
			continue
		}
		if err := l.c.Send(fds, head, part); err != nil {
			return fmt.Errorf("move: %v: %w", m.Kind, err)
		}
	}
	if err := l.flush(); err != nil {
		if late(err) {
			err = fmt.Errorf("%w: %w", ErrBegun, err)
		}
		return fmt.Errorf("move: %v: %w", m.Kind, err)
	}
	return nil
}

// flush sends the parts that are left.
func (l *Local) flush() error {
	for len(l.rest) > 0 {
		if err := l.c.Send(nil, l.rest[0]); err != nil {
			return err
		}
		l.rest = l.rest[1:]
	}
	return nil
}

// Receive waits for a whole message. What has come of one when the time is over
// is kept for the next call.
func (l *Local) Receive() (Message, error) {
	if err := l.march.Call("receive after", l.sent); err != nil {
		return Message{}, fmt.Errorf("move: after %v: %w", l.sent, err)
	}
	for {
		m := &l.partial
		n, fds, err := l.c.Receive(l.buf)
		m.FDs = append(m.FDs, fds...)
		if err == nil && n < partHeader {
			err = fmt.Errorf("move: a part of %d octets", n)
		}
		if err == nil && len(m.Body)+n > frozen.BatchMax {
			err = fmt.Errorf("move: a message of more than %d octets", frozen.BatchMax)
		}
		if late(err) {
			return Message{}, err
		}
		if err != nil {
			l.forget()
			return Message{}, err
		}
		m.Kind, m.Lot = Kind(l.buf[0]), binary.BigEndian.Uint16(l.buf[2:])
		if part := l.buf[partHeader:n]; m.Kind == Offer && l.buf[1] == 0 && m.Body == nil {
			m.Body = part // flows stand still meanwhile: see Message
		} else {
			m.Body = append(m.Body, part...)
		}
		if l.buf[1] == 0 {
			whole := *m
			l.partial = Message{}
			return whole, nil
		}
	}
}

// forget closes what came with a message that will never be whole.
func (l *Local) forget() {
	for _, fd := range l.partial.FDs {
		fd.Close()
	}
	l.partial = Message{}
}

// SetTimeout bounds each later call; 0 is for ever.
func (l *Local) SetTimeout(d time.Duration) error {
	millis := (d + time.Millisecond - 1) / time.Millisecond // less would be for ever
	return l.c.SetTimeout(int(millis))
}

// Close ends the channel.
func (l *Local) Close() error {
	l.forget()
	l.march.End()
	return l.c.Close()
}

// Remote carries over a stream, which must be encrypted and authenticated on
// both sides: octets of users are in it. One goroutine uses it; another may Close it.
type Remote struct {
	c   net.Conn
	d   time.Duration
	out []byte // room for the next message
	in  []byte // what was read
	at  int    // of in, how much was received
}

// NewRemote makes a carrier over c, which it owns.
func NewRemote(c net.Conn) *Remote { return &Remote{c: c} }

const (
	// A message begins with its kind and the length of its body; one that speaks of a
	// lot has its number behind that, as the flag in the kind says.
	remoteHead = 5
	remoteLot  = 0x80
	// remoteRoom is what is kept of the room that a message took.
	remoteRoom = 2 << 20
	// remoteFirst is how much of a body is copied behind its head: with it, a record of TLS
	// (RFC 8446, section 5.1).
	remoteFirst = 16<<10 - remoteHead - 2
)

// Send sends the message. Descriptors cannot go to another host. After an error it
// may have gone in part: the stream is of no use any more.
func (r *Remote) Send(m Message) error {
	if len(m.FDs) > 0 {
		return errors.New("move: descriptors do not go to another host")
	}
	kind := byte(m.Kind)
	if m.Lot != 0 {
		kind |= remoteLot
	}
	r.out = binary.BigEndian.AppendUint32(append(r.out[:0], kind), uint32(len(m.Body)))
	if m.Lot != 0 {
		r.out = binary.BigEndian.AppendUint16(r.out, m.Lot)
	}
	// What fits a record of TLS goes with its head, the rest is not copied for that.
	n := min(len(m.Body), remoteFirst)
	r.out = append(r.out, m.Body[:n]...)
	if err := r.c.SetWriteDeadline(r.deadline()); err != nil {
		return fmt.Errorf("move: %v: %w", m.Kind, err)
	}
	for _, b := range [...][]byte{r.out, m.Body[n:]} {
		if len(b) == 0 {
			continue
		}
		if _, err := r.c.Write(b); err != nil {
			return fmt.Errorf("move: %v: %w", m.Kind, err)
		}
	}
	return nil
}

// Receive waits for a whole message. What has come of one when the time is over
// is kept for the next call.
func (r *Remote) Receive() (Message, error) {
	if err := r.c.SetReadDeadline(r.deadline()); err != nil {
		return Message{}, err
	}
	if err := r.fill(remoteHead); err != nil {
		return Message{}, err
	}
	head := r.in[r.at:]
	m := Message{Kind: Kind(head[0] &^ remoteLot)}
	size, n := remoteHead, int64(binary.BigEndian.Uint32(head[1:]))
	if n > frozen.BatchMax {
		return Message{}, fmt.Errorf("move: a message of %d octets, the limit is %d", n, frozen.BatchMax)
	}
	if head[0]&remoteLot != 0 {
		size += 2
	}
	if err := r.fill(size + int(n)); err != nil {
		return Message{}, err
	}
	whole := r.in[r.at : r.at+size+int(n)]
	if size > remoteHead {
		m.Lot = binary.BigEndian.Uint16(whole[remoteHead:])
	}
	m.Body = whole[size:]
	r.at += len(whole)
	if m.Kind != Offer { // of an offer it is valid until the next Receive
		m.Body = append([]byte(nil), m.Body...)
	}
	return m, nil
}

// fill reads until n octets are there that were not received. In the middle of them the
// end of the stream is io.ErrUnexpectedEOF.
func (r *Remote) fill(n int) error {
	if r.at == len(r.in) {
		r.in, r.at = r.in[:0], 0
		if cap(r.in) > remoteRoom {
			r.in = nil
		}
	}
	for len(r.in)-r.at < n {
		if cap(r.in)-r.at < n || cap(r.in) == len(r.in) {
			room := r.in
			if cap(room) < n || cap(room) == 0 {
				room = make([]byte, 0, max(n, 32<<10))
			}
			r.in, r.at = append(room[:0], r.in[r.at:]...), 0
		}
		k, err := r.c.Read(r.in[len(r.in):cap(r.in)])
		r.in = r.in[:len(r.in)+k]
		if err != nil && len(r.in)-r.at < n {
			if errors.Is(err, io.EOF) && len(r.in) > r.at {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

func (r *Remote) deadline() time.Time {
	if r.d > 0 {
		return time.Now().Add(r.d)
	}
	return time.Time{}
}

// SetTimeout bounds each later call; 0 is for ever.
func (r *Remote) SetTimeout(d time.Duration) error { r.d = d; return nil }

// Close ends the stream.
func (r *Remote) Close() error { return r.c.Close() }
