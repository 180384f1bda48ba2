package tcprepair

import (
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
// ends it with Discard or revives it with Resume. On error fd is what it was.
// It sends nothing new while saved, so it is saved again only after Resume.
// Errors are *Unsupported, *NotPermitted, ErrMoved or the kernel's.
func Save(fd int) (*State, error) { return SaveWith(fd, SaveOptions{}) }

// SaveWith is Save with options.
func SaveWith(fd int, o SaveOptions) (*State, error) {
	s, err := save(fd, o)
	return s, prefixed(err)
}

func save(fd int, o SaveOptions) (*State, error) {
	proto, err := getInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL, "SO_PROTOCOL")
	if err != nil {
		return nil, err
	}
	switch proto {
	case unix.IPPROTO_TCP:
	case protoMPTCP:
		// net/mptcp/sockopt.c knows no TCP_REPAIR, also after a fallback to
		// plain TCP. A Go listener is MPTCP unless told otherwise.
		return nil, &Unsupported{What: "MPTCP", Why: "listen and dial with plain TCP (SetMultipathTCP(false))"}
	default:
		return nil, &Unsupported{What: fmt.Sprintf("protocol %d", proto), Why: "not a TCP socket"}
	}
	info, err := readInfo(fd)
	if err != nil {
		return nil, err
	}
	if err := refuse(info.state); err != nil {
		return nil, err
	}
	// An upper layer protocol (kTLS) has records in flight of which the
	// queues show only one side, and it replaced the socket's operations.
	var ulp [16]byte // TCP_ULP_NAME_MAX, include/net/tcp.h
	n, err := getBytes(fd, unix.IPPROTO_TCP, unix.TCP_ULP, ulp[:], "TCP_ULP")
	if err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
		return nil, err
	}
	if err == nil && n > 0 && ulp[0] != 0 {
		return nil, &Unsupported{What: "ULP " + unix.ByteSliceToString(ulp[:]), Why: "the kernel cannot take it off a live socket"}
	}

	s := &State{}
	if err := s.readFixed(fd); err != nil {
		return nil, err
	}
	// A privileged helper may have set repair mode for a process that may not.
	on, err := getInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, "TCP_REPAIR")
	if err != nil {
		return nil, err
	}
	if on == 0 {
		if err := setRepair(fd, unix.TCP_REPAIR_ON); err != nil {
			return nil, err
		}
	}
	window, err := readWindow(fd)
	if err == nil {
		if err = s.readMoving(fd, o, window.SendWindow); err != nil {
			_ = setSendWindow(fd, window.SendWindow) // fails only where nothing is left to send
		}
	}
	if err != nil {
		if on == 0 {
			if rerr := leave(fd); rerr != nil {
				err = errors.Join(err, rerr)
			} else {
				_ = push(fd) // fails only where nothing is left to send
			}
		}
		return nil, err
	}
	return s, nil
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

// readStill reads the counters of a socket that can send nothing new. Repair
// mode does not see to that: unsent octets leave when the device has room
// again (TCP small queues), when the pacing timer fires, or as a tail loss
// probe (net/ipv4/tcp_output.c: tcp_tsq_handler, tcp_send_loss_probe). If
// they did after they were read as unsent, the peer would acknowledge what
// the restored socket believes it has never sent; it would drop each such
// acknowledgement and never get on. So the window is closed behind what is in
// flight; retransmissions still pass.
func readStill(fd int, sendWindow uint32) (c counters, err error) {
	for range savesMax {
		if c, err = readCounters(fd); err != nil {
			return c, err
		}
		if c.window.SendWindow == c.closed(sendWindow) {
			return c, nil
		}
		if err := setSendWindow(fd, c.closed(sendWindow)); err != nil {
			return c, err
		}
	}
	return c, fmt.Errorf("its window cannot be closed: %w", ErrMoved)
}

// closed is the send window of a saved socket whose window was sendWindow.
func (c counters) closed(sendWindow uint32) uint32 {
	return min(sendWindow, uint32(max(c.outQueue-c.unsent, 0)))
}

// readFixed reads what no packet changes.
func (s *State) readFixed(fd int) error {
	local, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	remote, err := unix.Getpeername(fd)
	if errors.Is(err, unix.ENOTCONN) {
		// A reset came since the state was read.
		return refuse(Closed)
	} else if err != nil {
		return fmt.Errorf("getpeername: %w", err)
	}
	var ls, rs bool
	s.Local, ls = addrPort(local)
	s.Remote, rs = addrPort(remote)
	if ls || rs {
		return &Unsupported{What: "link-local address", Why: "its zone means another link on another host"}
	}
	for _, o := range []struct {
		level, opt int
		name       string
		to         *uint32
	}{
		{unix.SOL_SOCKET, unix.SO_RCVBUF, "SO_RCVBUF", &s.RecvBuffer},
		{unix.SOL_SOCKET, unix.SO_SNDBUF, "SO_SNDBUF", &s.SendBuffer},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, "TCP_KEEPIDLE", &s.KeepIdle},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, "TCP_KEEPINTVL", &s.KeepInterval},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, "TCP_KEEPCNT", &s.KeepCount},
		{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT", &s.UserTimeout},
	} {
		v, err := getInt(fd, o.level, o.opt, o.name)
		if err != nil {
			return err
		}
		*o.to = uint32(v)
	}
	if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK); err == nil {
		s.BufferLock = uint8(v & 3)
	} else {
		s.BufferLock = 3 // before Linux 5.15: unknown, so keep the sizes
	}
	nodelay, err := getInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, "TCP_NODELAY")
	if err != nil {
		return err
	}
	keepalive, err := getInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, "SO_KEEPALIVE")
	if err != nil {
		return err
	}
	s.NoDelay, s.KeepAlive = nodelay != 0, keepalive != 0
	s.Congestion, err = unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	if err != nil {
		return fmt.Errorf("getsockopt TCP_CONGESTION: %w", err)
	}
	return nil
}

// counters are what changes whenever a segment arrives or leaves. Two equal
// readings mean that what was read between them belongs together: the
// application is at rest, so octets arrive only with inQueue, acknowledgements
// only with outQueue or the window, transmissions only with unsent, FINs only
// with the state, and our acknowledgements only with the window (rcv_wup).
type counters struct {
	info                      tcpInfo
	outQueue, unsent, inQueue int
	window                    Window
}

func readCounters(fd int) (c counters, err error) {
	if c.info, err = readInfo(fd); err != nil {
		return c, err
	}
	if c.outQueue, err = ioctlInt(fd, unix.SIOCOUTQ, "SIOCOUTQ"); err != nil {
		return c, err
	}
	if c.unsent, err = ioctlInt(fd, unix.SIOCOUTQNSD, "SIOCOUTQNSD"); err != nil {
		return c, err
	}
	if c.inQueue, err = ioctlInt(fd, unix.SIOCINQ, "SIOCINQ"); err != nil {
		return c, err
	}
	c.window, err = readWindow(fd)
	return c, err
}

// readMoving reads what packets change, until it holds still. sendWindow is
// the true one.
func (s *State) readMoving(fd int, o SaveOptions, sendWindow uint32) error {
	c, err := readStill(fd, sendWindow)
	if err != nil {
		return err
	}
	for range savesMax {
		whole, err := s.readOnce(fd, c)
		if err != nil {
			return err
		}
		again, err := readStill(fd, sendWindow)
		if err != nil {
			return err
		}
		if whole && again == c {
			s.Window.SendWindow = sendWindow
			return s.finish(fd, c, o)
		}
		c = again
	}
	return fmt.Errorf("%v: read %d times, never twice the same: %w", s.Local, savesMax, ErrMoved)
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

	out, unsent := c.outQueue, c.unsent
	s.FinUnsent = false
	if s.TCP.finPending() {
		out--
		if unsent > 0 {
			unsent--
			s.FinUnsent = true
		}
	}
	if out < 0 || unsent < 0 || unsent > out {
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
	if s.RecvSeq, s.RecvQueue, whole, err = readQueue(fd, queueRecv, c.inQueue); err != nil || !whole {
		return false, err
	}
	if s.SendSeq, s.SendQueue, whole, err = readQueue(fd, queueSend, out); err != nil || !whole {
		return false, err
	}
	if err := selectQueue(fd, queueNone); err != nil {
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
// octets. It asks for one more: a queue that is longer than the counters say
// (urgent data; a socket in a BPF sockmap, where SIOCINQ reads 0) must not be
// cut short silently.
func readQueue(fd, queue, n int) (seq uint32, b []byte, whole bool, err error) {
	if err := selectQueue(fd, queue); err != nil {
		return 0, nil, false, err
	}
	if seq, err = readSeq(fd); err != nil {
		return 0, nil, false, err
	}
	b = make([]byte, n+1)
	var m int
	err = retryEINTR(func() (err error) {
		m, _, err = unix.Recvfrom(fd, b, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return err
	})
	switch {
	case errors.Is(err, unix.EAGAIN):
		m = 0
	case err != nil:
		return 0, nil, false, fmt.Errorf("peek at queue %d: %w", queue, err)
	}
	if n == 0 {
		return seq, nil, m == 0, nil
	}
	return seq, b[:n:n], m == n, nil
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
	out, unsent := len(s.SendQueue), int(s.Unsent)
	if s.TCP.finPending() {
		out++
		if s.FinUnsent {
			unsent++
		}
	}
	window := s.Window
	window.SendWindow = c.closed(window.SendWindow) // see readStill
	// See counters: equal counters leave nothing else that could differ.
	if c.info.state != s.TCP || c.outQueue != out || c.unsent != unsent ||
		c.inQueue != len(s.RecvQueue) || c.window != window {
		return fmt.Errorf("tcprepair: %v, now %v with %d to send, %d unsent, %d to read: %w",
			s, c.info.state, c.outQueue, c.unsent, c.inQueue, ErrMoved)
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
	if err := setInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1, "TCP_NODELAY"); err != nil || was != 0 {
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
