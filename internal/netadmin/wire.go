package netadmin

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-lb/holdfast/tcprepair"
)

// The privileged process is spoken to over a unix socket. A message is its length
// in four octets (of what follows), one octet that says what it is, and a body;
// descriptors go with the first octet. Each request has one answer, in order.
// What is asked for each lot of flows is binary, the rest is JSON.

// act is what a request asks for, or how an answer is to be read.
type act uint8

const (
	actHello    act = 1  // clientHello, JSON; answered by one
	actHold     act = 2  // tuples
	actRelease  act = 3  // tuples; answered by a count of frames
	actDrop     act = 4  // tuples
	actUndivert act = 5  // tuples
	actHere     act = 6  // tuples
	actDivert   act = 7  // an address and tuples, with descriptors that then enter repair mode; answered by failures
	actInject   act = 8  // a packet
	actRepair   act = 9  // modes, with descriptors, and tuples that are then released; answered by a count of frames and failures
	actSockets  act = 10 // specs; answered with descriptors
	actCall     act = 11 // call, JSON; answered by one
	actLeave    act = 12 // this client goes, and what it asked for stays

	answerDone   act = 128
	answerFailed act = 129 // a text
	answerClosed act = 130 // ErrClosed
)

const (
	// wireVersion is of all that follows. The privileged process outlives those it
	// serves, so either of them may be the older one.
	wireVersion = 1
	// messageMax bounds a message, in octets: a dump of all that is in force may be
	// long.
	messageMax = 8 << 20
	// fdsMax is the most descriptors of one message (SCM_MAX_FD, include/net/scm.h).
	fdsMax = 253
	// keptMax is the longest buffer that a connection keeps for its next message.
	keptMax = 1 << 20
	// socketsMax is the most sockets made by one request: they must fit a message.
	socketsMax = 128
)

// clientHello is the first message of either side.
type clientHello struct {
	Version int `json:"version"`
	// Session is of all connections of one client.
	Session string `json:"session,omitempty"`
	PID     int    `json:"pid"`
	// Net is the network namespace, as its file below /proc/PID/ns names it.
	Net string `json:"net"`
}

// call is a request by name: those arguments are set that it has.
type call struct {
	Name     string           `json:"name"`
	Prefixes []netip.Prefix   `json:"prefixes,omitempty"`
	Addrs    []netip.Addr     `json:"addrs,omitempty"`
	On       []netip.AddrPort `json:"on,omitempty"`
	Prefix   netip.Prefix     `json:"prefix,omitzero"`
	Addr     netip.Addr       `json:"addr,omitzero"`
	To       netip.Addr       `json:"to,omitzero"`
	Time     time.Duration    `json:"time,omitempty"`
	Ranges   []PortRange      `json:"ranges,omitempty"`
}

// result is the answer to a call.
type result struct {
	Tuples   []Tuple   `json:"tuples,omitempty"`
	Counters *Counters `json:"counters,omitempty"`
	State    *State    `json:"state,omitempty"`
}

// channel is one end of a connection, used by one goroutine at a time.
type channel struct {
	conn *net.UnixConn
	pid  int // of the privileged process, at a client
	head [5]byte
	out  []byte
	in   []byte
	oob  []byte

	max      int           // octets of a message that is received
	patience time.Duration // with the other end, about a message that has begun; 0: for ever
}

func newChannel(c *net.UnixConn) *channel {
	return &channel{conn: c, max: messageMax, oob: make([]byte, unix.CmsgSpace(4*fdsMax))}
}

// send writes a message; body is free again when it returns.
func (c *channel) send(what act, body []byte, fds ...int) error {
	if c.patience > 0 {
		if err := c.conn.SetWriteDeadline(time.Now().Add(c.patience)); err != nil {
			return err
		}
	}
	if cap(c.out) > keptMax {
		c.out = nil
	}
	c.out = binary.BigEndian.AppendUint32(c.out[:0], uint32(1+len(body)))
	c.out = append(append(c.out, byte(what)), body...)
	if len(fds) == 0 {
		_, err := c.conn.Write(c.out)
		return err
	}
	n, _, err := c.conn.WriteMsgUnix(c.out, unix.UnixRights(fds...), nil)
	if err == nil && n < len(c.out) { // the descriptors have gone with the first part
		_, err = c.conn.Write(c.out[n:])
	}
	return err
}

// receive reads a message. body is valid until the next one; the descriptors are
// the caller's, after an error there are none.
func (c *channel) receive() (what act, body []byte, fds []int, err error) {
	n, oobn, flags, _, err := c.conn.ReadMsgUnix(c.head[:], c.oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if oobn > 0 {
		fds = rights(c.oob[:oobn])
	}
	defer func() {
		if err != nil {
			closeAll(fds)
			fds = nil
		}
	}()
	if err == nil && c.patience > 0 {
		err = c.conn.SetReadDeadline(time.Now().Add(c.patience))
	}
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = errors.New("netadmin: descriptors were cut off: this process may open no more")
	}
	if err == nil && n < len(c.head) {
		_, err = io.ReadFull(c.conn, c.head[n:])
	}
	if err != nil {
		return 0, nil, fds, err
	}
	size := binary.BigEndian.Uint32(c.head[:])
	if size < 1 || size > uint32(c.max) {
		err = fmt.Errorf("netadmin: a message of %d octets: 1 to %d", size, c.max)
		return 0, nil, fds, err
	}
	if cap(c.in) < int(size-1) || cap(c.in) > keptMax {
		c.in = make([]byte, size-1)
	}
	body = c.in[:size-1]
	if _, err = io.ReadFull(c.conn, body); err != nil {
		return 0, nil, fds, err
	}
	if c.patience > 0 {
		err = c.conn.SetReadDeadline(time.Time{})
	}
	return act(c.head[4]), body, fds, err
}

// unread is how much of what was sent the other end has not read, in octets of memory.
func (c *channel) unread() (n int, err error) {
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { n, failed = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return n, errors.Join(err, failed)
}

// rights takes descriptors out of a control message.
func rights(oob []byte) (fds []int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range messages {
		if got, err := unix.ParseUnixRights(&messages[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	return fds
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// appendAddr writes an address: how many octets it has, and these.
func appendAddr(out []byte, a netip.Addr) []byte {
	b := a.AsSlice()
	return append(append(out, byte(len(b))), b...)
}

func cutAddr(b []byte) (netip.Addr, []byte, error) {
	if len(b) < 1 {
		return netip.Addr{}, nil, errShort
	}
	n := int(b[0]) // as an octet, one more than it may be 0
	if len(b) < 1+n {
		return netip.Addr{}, nil, errShort
	}
	a, ok := netip.AddrFromSlice(b[1 : 1+n])
	if !ok {
		return netip.Addr{}, nil, fmt.Errorf("netadmin: an address of %d octets", n)
	}
	return a, b[1+n:], nil
}

var errShort = errors.New("netadmin: a message is too short")

func appendEnd(out []byte, a netip.AddrPort) []byte {
	return binary.BigEndian.AppendUint16(appendAddr(out, a.Addr()), a.Port())
}

func cutEnd(b []byte) (netip.AddrPort, []byte, error) {
	a, b, err := cutAddr(b)
	if err == nil && len(b) < 2 {
		err = errShort
	}
	if err != nil {
		return netip.AddrPort{}, nil, err
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(b)), b[2:], nil
}

func appendTuples(out []byte, ts []Tuple) []byte {
	for _, t := range ts {
		out = appendEnd(appendEnd(out, t.Local), t.Remote)
	}
	return out
}

func readTuples(b []byte) (ts []Tuple, err error) {
	for len(b) > 0 {
		var t Tuple
		if t.Local, b, err = cutEnd(b); err != nil {
			return nil, err
		}
		if t.Remote, b, err = cutEnd(b); err != nil {
			return nil, err
		}
		ts = append(ts, t)
	}
	return ts, nil
}

func appendSpecs(out []byte, specs []tcprepair.SocketSpec) []byte {
	for _, s := range specs {
		out = appendEnd(out, s.Local)
		out = binary.BigEndian.AppendUint32(out, s.RecvBuffer)
		out = binary.BigEndian.AppendUint32(out, s.SendBuffer)
		out = binary.BigEndian.AppendUint32(out, s.Mark)
		transparent := byte(0)
		if s.Transparent {
			transparent = 1
		}
		out = append(append(out, transparent, byte(len(s.Congestion))), s.Congestion...)
	}
	return out
}

func readSpecs(b []byte) (specs []tcprepair.SocketSpec, err error) {
	for len(b) > 0 {
		var s tcprepair.SocketSpec
		if s.Local, b, err = cutEnd(b); err != nil {
			return nil, err
		}
		if len(b) < 14 || b[12] > 1 {
			return nil, errShort
		}
		end := 14 + int(b[13])
		if len(b) < end {
			return nil, errShort
		}
		s.RecvBuffer, s.SendBuffer, s.Mark = binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
		s.Transparent, s.Congestion = b[12] == 1, string(b[14:end])
		specs, b = append(specs, s), b[end:]
	}
	return specs, nil
}

// appendFailures writes what went wrong with single ones of several.
func appendFailures(out []byte, errs []error) []byte {
	for i, err := range errs {
		if err != nil {
			text := err.Error()
			text = text[:min(len(text), 1<<10)]
			out = binary.BigEndian.AppendUint16(append(out, byte(i)), uint16(len(text)))
			out = append(out, text...)
		}
	}
	return out
}

// readFailures reads it: nil, or an error for each of n.
func readFailures(b []byte, n int) (errs []error, err error) {
	for len(b) > 0 {
		if len(b) < 3 || int(b[0]) >= n || len(b) < 3+int(binary.BigEndian.Uint16(b[1:])) {
			return nil, errShort
		}
		if errs == nil {
			errs = make([]error, n)
		}
		end := 3 + int(binary.BigEndian.Uint16(b[1:]))
		errs[b[0]] = errors.New(string(b[3:end]))
		b = b[end:]
	}
	return errs, nil
}

func decodeJSON(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("netadmin: %w", err)
	}
	return nil
}

// decodeCall refuses what it does not know: it may be what the rest depends on.
func decodeCall(b []byte, q *call) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(q); err != nil {
		return fmt.Errorf("netadmin: %w", err)
	}
	return nil
}
