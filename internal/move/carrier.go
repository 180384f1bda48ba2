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
// both sides: octets of users are in it.
type Remote struct {
	c net.Conn
	d time.Duration
}

// NewRemote makes a carrier over c, which it owns.
func NewRemote(c net.Conn) *Remote { return &Remote{c: c} }

// Send sends the message. Descriptors cannot go to another host.
func (r *Remote) Send(m Message) error {
	if len(m.FDs) > 0 {
		return errors.New("move: descriptors do not go to another host")
	}
	out := make([]byte, 5, 5+len(m.Body))
	out[0] = byte(m.Kind)
	binary.BigEndian.PutUint32(out[1:], uint32(len(m.Body)))
	r.deadline()
	if _, err := r.c.Write(append(out, m.Body...)); err != nil {
		return fmt.Errorf("move: %v: %w", m.Kind, err)
	}
	return nil
}

// Receive waits for a whole message.
func (r *Remote) Receive() (Message, error) {
	var head [5]byte
	r.deadline()
	if _, err := io.ReadFull(r.c, head[:]); err != nil {
		return Message{}, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > frozen.BatchMax {
		return Message{}, fmt.Errorf("move: a message of %d octets, the limit is %d", n, frozen.BatchMax)
	}
	m := Message{Kind: Kind(head[0]), Body: make([]byte, n)}
	if _, err := io.ReadFull(r.c, m.Body); err != nil {
		return Message{}, fmt.Errorf("move: %v: %w", m.Kind, err)
	}
	return m, nil
}

func (r *Remote) deadline() {
	if r.d > 0 {
		_ = r.c.SetDeadline(time.Now().Add(r.d))
	} else {
		_ = r.c.SetDeadline(time.Time{})
	}
}

// SetTimeout bounds each later call; 0 is for ever.
func (r *Remote) SetTimeout(d time.Duration) error { r.d = d; return nil }

// Close ends the stream.
func (r *Remote) Close() error { return r.c.Close() }
