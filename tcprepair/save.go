package tcprepair

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// savesMax bounds how often Save reads a socket that changes while it is
// read. One change is usual (a delayed acknowledgement leaves), more mean
// that its input is not diverted.
const savesMax = 5

// SaveOptions are what Save asks for when it is not given any: the zero value.
type SaveOptions struct {
	// AllowOutOfOrder saves a socket although segments beyond a gap wait in
	// it. They are dropped and recorded in State.OutOfOrder; the peer sends
	// them again after a retransmission timeout. Without it such a socket is
	// Unsupported with Retry, but the missing segment may well be one of
	// those that the diversion took, so bound the retries.
	AllowOutOfOrder bool
}

// Save puts the connected TCP socket fd into repair mode and reads all of it.
// The input of its tuple must already be diverted, and nobody may use the
// socket from now on. It reads until two readings agree, a bounded number of
// times. On success fd stays in repair mode and belongs to the caller, who
// ends it with Discard or revives it with Resume. On error fd is what it was:
// also in repair mode, if somebody had set that.
// It sends nothing new while saved, so it is saved again only after Resume.
// Errors are *Unsupported, *NotPermitted, ErrMoved or the kernel's.
func Save(fd int) (*State, error) { return SaveWith(fd, SaveOptions{}) }

// SaveWith is Save with options.
func SaveWith(fd int, o SaveOptions) (*State, error) {
	s := new(State)
	if err := SaveTo(s, fd, o); err != nil {
		return nil, err
	}
	return s, nil
}

// SaveTo is SaveWith into s, the memory of whose queues is used again. So
// whoever saves many sockets one after the other allocates nothing. What s
// holds after an error is no State.
func SaveTo(s *State, fd int, o SaveOptions) error { return prefixed(s.save(fd, o)) }

func (s *State) save(fd int, o SaveOptions) error {
	*s = State{RecvQueue: s.RecvQueue[:0], SendQueue: s.SendQueue[:0]}
	proto, err := getInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL, "SO_PROTOCOL")
	if err != nil {
		return err
	}
	switch proto {
	case unix.IPPROTO_TCP:
	case protoMPTCP:
		// net/mptcp/sockopt.c knows no TCP_REPAIR, also after a fallback to
		// plain TCP. A Go listener is MPTCP unless told otherwise.
		return &Unsupported{What: "MPTCP", Why: "listen and dial with plain TCP (SetMultipathTCP(false))"}
	default:
		return &Unsupported{What: fmt.Sprintf("protocol %d", proto), Why: "not a TCP socket"}
	}
	c := counters{}
	if c.info, err = readInfo(fd); err != nil {
		return err
	}
	if err := refuse(c.info.state); err != nil {
		return err
	}
	// An upper layer protocol (kTLS) has records in flight of which the
	// queues show only one side, and it replaced the socket's operations.
	var ulp [16]byte // TCP_ULP_NAME_MAX, include/net/tcp.h
	n, err := getBytes(fd, unix.IPPROTO_TCP, unix.TCP_ULP, ulp[:], "TCP_ULP")
	if err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
		return err
	}
	if err == nil && n > 0 && ulp[0] != 0 {
		return &Unsupported{What: "ULP " + unix.ByteSliceToString(ulp[:]), Why: "the kernel cannot take it off a live socket"}
	}
	if err := s.readFixed(fd); err != nil {
		return err
	}
	// A privileged helper may have set repair mode for a process that may not.
	on, err := getInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, "TCP_REPAIR")
	if err != nil {
		return err
	}
	if on == 0 {
		if err := setRepair(fd, RepairOn); err != nil {
			return err
		}
	}
	if err = s.readMoving(fd, o, c); err != nil && on == 0 {
		if rerr := leave(fd); rerr != nil {
			err = errors.Join(err, rerr)
		} else {
			_ = push(fd) // fails only where nothing is left to send
		}
	}
	return err
}

// setSendWindow changes what the peer is believed to let us send.
func setSendWindow(fd int, octets uint32) error {
	w, err := readWindow(fd)
	if err != nil {
		return err
	}
	w.SendWindow = min(octets, w.MaxWindow)
	return writeWindow(fd, w)
}

// closed is the send window of a saved socket whose window was sendWindow.
func (c counters) closed(sendWindow uint32) uint32 {
	return min(sendWindow, uint32(max(c.outQueue-int(c.info.unsent), 0)))
}

// readFixed reads what no packet changes.
func (s *State) readFixed(fd int) error {
	var ls, rs bool
	var err error
	if s.Local, ls, err = name(fd, unix.SYS_GETSOCKNAME); err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	s.Remote, rs, err = name(fd, unix.SYS_GETPEERNAME)
	if errors.Is(err, unix.ENOTCONN) {
		// A reset came since the state was read.
		return refuse(Closed)
	} else if err != nil {
		return fmt.Errorf("getpeername: %w", err)
	}
	if ls || rs {
		return &Unsupported{What: "link-local address", Why: "its zone means another link on another host"}
	}
	has, err := readBuffers(fd)
	if err != nil {
		return err
	}
	s.RecvBuffer, s.SendBuffer = has.recv, has.send
	if v, err := getInt(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK, "SO_BUF_LOCK"); err == nil {
		s.BufferLock = uint8(v & 3)
	} else {
		s.BufferLock = 3 // before Linux 5.15: unknown, so keep the sizes
	}
	// Errors come last: these options exist wherever repair mode does.
	var r reader
	s.NoDelay = r.int(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, "TCP_NODELAY") != 0
	s.OOBInline = r.int(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, "SO_OOBINLINE") != 0
	s.UserTimeout = r.int(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT")
	s.Mark = r.int(fd, unix.SOL_SOCKET, unix.SO_MARK, "SO_MARK")
	if s.Local.Addr().Is4() {
		s.TOS = uint8(r.int(fd, unix.SOL_IP, unix.IP_TOS, "IP_TOS")) &^ ecnBits
	} else {
		s.TOS = uint8(r.int(fd, unix.SOL_IPV6, unix.IPV6_TCLASS, "IPV6_TCLASS")) &^ ecnBits
	}
	if s.KeepAlive = r.int(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, "SO_KEEPALIVE") != 0; s.KeepAlive {
		s.KeepIdle = r.int(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, "TCP_KEEPIDLE")
		s.KeepInterval = r.int(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, "TCP_KEEPINTVL")
		s.KeepCount = r.int(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, "TCP_KEEPCNT")
	}
	var cc [maxCongestionName + 1]byte
	if r.err == nil {
		_, r.err = getBytes(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, cc[:], "TCP_CONGESTION")
	}
	if n := bytes.IndexByte(cc[:], 0); n > 0 {
		s.Congestion = congestionName(cc[:n])
	}
	return r.err
}

// reader keeps the first error of many calls.
type reader struct{ err error }

func (r *reader) int(fd, level, opt int, name string) uint32 {
	if r.err != nil {
		return 0
	}
	v, err := getInt(fd, level, opt, name)
	r.err = err
	return uint32(v)
}

// congestionName returns b as a string, without allocating for those that
// nearly everybody uses.
func congestionName(b []byte) string {
	for _, known := range [...]string{"cubic", "bbr", "reno", "dctcp"} {
		if string(b) == known {
			return known
		}
	}
	return string(b)
}

// counters are what changes whenever a segment arrives or leaves. Two equal
// readings mean that what was read between them belongs together: the
// application is at rest, so octets arrive only with inQueue, acknowledgements
// only with outQueue or the window, transmissions only with info.unsent, FINs
// only with the state, and our acknowledgements only with the window (rcv_wup).
type counters struct {
	info              tcpInfo
	outQueue, inQueue int
	window            Window
}

// read reads all but info.
func (c *counters) read(fd int) (err error) {
	if c.outQueue, err = ioctlInt(fd, unix.SIOCOUTQ, "SIOCOUTQ"); err != nil {
		return err
	}
	if c.inQueue, err = ioctlInt(fd, unix.SIOCINQ, "SIOCINQ"); err != nil {
		return err
	}
	c.window, err = readWindow(fd)
	return err
}

func readCounters(fd int) (c counters, err error) {
	if c.info, err = readInfo(fd); err != nil {
		return c, err
	}
	return c, c.read(fd)
}

// readMoving reads what packets change, until it holds still. c.info was read
// already.
//
// It sees to it that the socket sends nothing new. Repair mode does not: unsent
// octets leave when the device has room again (TCP small queues), when the
// pacing timer fires, or as a tail loss probe (net/ipv4/tcp_output.c:
// tcp_tsq_handler, tcp_send_loss_probe). If they did after they were read as
// unsent, the peer would acknowledge what the restored socket believes it has
// never sent; it would drop each such acknowledgement and never get on. So the
// window is closed behind what is in flight; retransmissions still pass.
func (s *State) readMoving(fd int, o SaveOptions, c counters) error {
	err := c.read(fd)
	if err != nil {
		return err
	}
	sendWindow := c.window.SendWindow
	for range savesMax {
		// Directly after the reading, since all of the window is written.
		if to := c.closed(sendWindow); c.window.SendWindow != to {
			c.window.SendWindow = to
			if err = writeWindow(fd, c.window); err != nil {
				break
			}
		}
		var whole bool
		if whole, err = s.readOnce(fd, c); err != nil {
			break
		}
		if !s.OOBInline {
			if err = checkUrgent(fd, c.inQueue); err != nil {
				break
			}
		}
		var again counters
		if again, err = readCounters(fd); err != nil {
			break
		}
		if whole && again == c {
			s.Window.SendWindow = sendWindow
			if err = s.finish(fd, c, o); err != nil {
				break
			}
			return nil
		}
		c = again
		err = fmt.Errorf("%v: read %d times, never twice the same: %w", s.Local, savesMax, ErrMoved)
	}
	_ = setSendWindow(fd, sendWindow) // fails only where nothing is left to send
	return err
}

// readOnce fills s according to c. It reports false if a queue had another
// length than c says.
func (s *State) readOnce(fd int, c counters) (whole bool, err error) {
	if err := refuse(c.info.state); err != nil {
		return false, err
	}
	s.TCP = c.info.state
	s.SACK = c.info.options&infoSACK != 0
	s.WindowScaling = c.info.options&infoScaling != 0
	if s.WindowScaling {
		s.SendScale, s.RecvScale = c.info.sendScale, c.info.recvScale
	}
	s.Timestamps = c.info.options&infoTimestamps != 0
	s.ECN = c.info.options&infoECN != 0
	s.Window = c.window

	out, unsent := c.outQueue, int(c.info.unsent)
	s.FinUnsent = false
	if s.TCP.finPending() {
		out--
		if unsent > 0 {
			unsent--
			s.FinUnsent = true
		}
	}
	if out < 0 || unsent > out {
		return false, nil
	}
	if out > MaxQueue || c.inQueue > MaxQueue {
		return false, &Unsupported{What: "queue", Retry: true,
			Why: fmt.Sprintf("%d octets to send, %d to read, at most %d are moved", out, c.inQueue, MaxQueue)}
	}
	s.Unsent = uint32(unsent)

	mss, err := getInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, "TCP_MAXSEG")
	if err != nil {
		return false, err
	}
	s.MSS = uint32(mss)
	if s.SendSeq, s.SendQueue, whole, err = readQueue(fd, queueSend, out, s.SendQueue); err != nil || !whole {
		return false, err
	}
	// The receive queue stays selected. With the send queue selected the kernel
	// would take for sent whatever it may send (net/ipv4/tcp_output.c:
	// tcp_write_xmit).
	if s.RecvSeq, s.RecvQueue, whole, err = readQueue(fd, queueRecv, c.inQueue, s.RecvQueue); err != nil || !whole {
		return false, err
	}
	// Last, so that no segment of this socket carries a later timestamp
	// than the restored socket's first.
	if s.Timestamps {
		ts, err := getInt(fd, unix.IPPROTO_TCP, unix.TCP_TIMESTAMP, "TCP_TIMESTAMP")
		if err != nil {
			return false, err
		}
		s.Timestamp = uint32(ts)
	}
	return true, nil
}

// readQueue returns the sequence number at the end of a queue and its n
// octets, in the memory of b if they fit. It asks for one more: a receive queue
// that is longer than the counters say (urgent data; a socket in a BPF sockmap,
// where SIOCINQ reads 0) must not be cut short silently.
func readQueue(fd, queue, n int, b []byte) (seq uint32, octets []byte, whole bool, err error) {
	if err := selectQueue(fd, queue); err != nil {
		return 0, b, false, err
	}
	if seq, err = readSeq(fd); err != nil {
		return 0, b, false, err
	}
	if n == 0 && queue == queueSend {
		return seq, b[:0], true, nil // its length is the difference of two numbers
	}
	if cap(b) < n+1 {
		b = make([]byte, n+1)
	}
	m, err := peek(fd, b[:n+1])
	if err == nil && m < n && queue == queueRecv {
		m, err = peekOn(fd, b[:n+1], m)
	}
	if errors.Is(err, unix.EAGAIN) {
		m = 0
	} else if err != nil {
		return 0, b, false, fmt.Errorf("peek at queue %d: %w", queue, err)
	}
	return seq, b[:n], m == n, nil
}

// peekOn fills b from its octet m on. A reader is stopped before the mark of
// urgent data (net/ipv4/tcp.c: tcp_recvmsg_locked), and a peek with it; one that
// begins there goes on.
func peekOn(fd int, b []byte, m int) (int, error) {
	defer func() { _ = setInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, -1, "SO_PEEK_OFF") }() // as good as it was
	for m < len(b) {
		// For TCP since Linux 6.9 (tcp_peek_off).
		if err := setInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, m, "SO_PEEK_OFF"); err != nil {
			return m, &Unsupported{What: "urgent data", Retry: true, Why: "it has to be read first: " + err.Error()}
		}
		more, err := peek(fd, b[m:])
		if errors.Is(err, unix.EAGAIN) || err == nil && more == 0 {
			break
		} else if err != nil {
			return m, err
		}
		m += more
	}
	return m, nil
}

func errUrgent() error {
	return &Unsupported{What: "urgent data", Retry: true,
		Why: "it cannot be restored: read it first, or take it in line (SO_OOBINLINE)"}
}

// checkUrgent refuses a socket with an urgent octet between those to be read. It
// is for sockets that do not take them in line: there the octet has a sequence
// number and no place in the stream, and SIOCINQ, which said in, ends before it.
func checkUrgent(fd, in int) error {
	mark, err := ioctlInt(fd, unix.SIOCATMARK, "SIOCATMARK")
	if err == nil && mark != 0 {
		err = errUrgent()
	}
	if err != nil || in == 0 {
		return err
	}
	if err := setInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1, "SO_OOBINLINE"); err != nil {
		return err
	}
	all, err := ioctlInt(fd, unix.SIOCINQ, "SIOCINQ")
	if err := setInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 0, "SO_OOBINLINE"); err != nil {
		return err
	}
	if err != nil || in == all {
		return err
	}
	// Or did more arrive meanwhile?
	again, err := ioctlInt(fd, unix.SIOCINQ, "SIOCINQ")
	if err == nil && again < all {
		err = errUrgent()
	}
	return err
}

// finish decides about segments that wait beyond a gap. No interface shows
// that queue. tcpi_rcv_ooopack counts all that ever came out of order, and
// SK_MEMINFO_RMEM_ALLOC the memory of both queues, so:
// none ever came: there are none now; the receive queue is empty: the memory
// must be 0; otherwise nobody can tell.
func (s *State) finish(fd int, c counters, o SaveOptions) error {
	s.OutOfOrder = false
	if !c.info.oooKnown || c.info.oooPackets > 0 {
		if len(s.RecvQueue) > 0 || s.TCP.finReceived() {
			// After the peer's FIN there can be no gap, but for segments
			// that were received twice.
			s.OutOfOrder = !s.TCP.finReceived()
		} else {
			m, err := readMemory(fd)
			if err != nil {
				return err
			}
			waiting := m[memRecvUsed]
			s.OutOfOrder = waiting > 0
			if waiting > 0 && !o.AllowOutOfOrder {
				return &Unsupported{What: "out-of-order queue", Retry: true,
					Why: fmt.Sprintf("%d octets of memory hold segments beyond a gap", waiting)}
			}
		}
	}
	return s.check()
}

// Verify tells whether fd, in repair mode, is still exactly in the saved
// state: nil, or an error that wraps ErrMoved. It is the last thing before
// Discard.
func Verify(fd int, s *State) error {
	c, err := readCounters(fd)
	if err != nil {
		return prefixed(err)
	}
	out, unsent := len(s.SendQueue), s.Unsent
	if s.TCP.finPending() {
		out++
		if s.FinUnsent {
			unsent++
		}
	}
	window := s.Window
	window.SendWindow = c.closed(window.SendWindow) // see readMoving
	// See counters: equal counters leave nothing else that could differ.
	if c.info.state != s.TCP || c.outQueue != out || c.info.unsent != unsent ||
		c.inQueue != len(s.RecvQueue) || c.window != window {
		return fmt.Errorf("tcprepair: %v, now %v with %d to send, %d unsent, %d to read: %w",
			s, c.info.state, c.outQueue, c.info.unsent, c.inQueue, ErrMoved)
	}
	return nil
}

// Resume undoes Save: fd leaves repair mode and goes on where it was. In
// ESTABLISHED the kernel sends a window probe, which makes the peer tell
// what it has, so that nothing waits for a timeout. SO_REUSEADDR is set; see
// GoLive.
func Resume(fd int) error {
	s := [1]Socket{{FD: fd}}
	ResumeAll(s[:], nil)
	return s[0].Err
}

// openWindow gives a saved socket a send window again, which Save had closed.
// The largest one that the peer ever offered serves until the peer's next
// segment says what is true; should that be less, the peer drops what exceeds
// it and says so. snd_wl1 is set as the kernel's own probe does, so that this
// next segment counts (net/ipv4/tcp_output.c: tcp_send_window_probe).
func openWindow(fd int) error {
	info, err := readInfo(fd)
	if err != nil || !info.state.movable() {
		return err
	}
	w, err := readWindow(fd)
	if err != nil {
		return err
	}
	if err := selectQueue(fd, queueRecv); err != nil {
		return err
	}
	next, err := readSeq(fd)
	if err != nil {
		return err
	}
	w.SendWindow, w.SendWL1 = w.MaxWindow, next-1
	return writeWindow(fd, w)
}

// push makes the kernel send what it tried to send while the window was
// closed. Outside ESTABLISHED no probe provokes the segment that would, and
// with nothing in flight no timer runs. Setting TCP_NODELAY pushes
// (net/ipv4/tcp.c: __tcp_sock_set_nodelay).
func push(fd int) error {
	was, err := getInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, "TCP_NODELAY")
	if err != nil {
		return err
	}
	if err = setInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1, "TCP_NODELAY"); err != nil || was != 0 {
		return err
	}
	return setInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 0, "TCP_NODELAY")
}

// leave leaves repair mode by this process's own privilege.
func leave(fd int) error {
	if err := setRepair(fd, RepairOff); err != nil {
		return err
	}
	return reuse(fd)
}

// reuse sets SO_REUSEADDR, which leaving repair mode clears (net/ipv4/tcp.c:
// do_tcp_setsockopt), and a later listener on the same port would get
// EADDRINUSE.
func reuse(fd int) error {
	return setInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1, "SO_REUSEADDR")
}

// Discard ends the socket fd silently: no FIN, no RST. It makes sure of
// repair mode first; if that fails, fd stays open and the caller's.
// Otherwise fd is closed, whatever is returned. The connection also ends for
// duplicates of fd, in this or any other process, since these would answer
// the peer. A socket in repair mode is discarded without privilege.
func Discard(fd int) error {
	on, err := getInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, "TCP_REPAIR")
	if err == nil && on == 0 {
		err = setRepair(fd, RepairOn)
	}
	if err != nil {
		return prefixed(err)
	}
	// net/ipv4/tcp.c, tcp_disconnect: a socket in repair mode sends nothing.
	err = disconnect(fd)
	if cerr := unix.Close(fd); cerr != nil {
		err = errors.Join(err, fmt.Errorf("close: %w", cerr))
	}
	return prefixed(err)
}
