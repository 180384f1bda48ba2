package tcprepair

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Options of Restore.
type Options struct {
	// Transparent sets IP_TRANSPARENT (IPV6_TRANSPARENT), so that the local
	// address need not be on this host yet. It stays set.
	Transparent bool

	// Inject delivers one IP packet, which Restore makes up, to this host's
	// own stack as if it had come from the network. Half-closed states need
	// it: the kernel counts a FIN as received, or ours as acknowledged, only
	// when a segment says so. The packet's source is the remote address, so
	// it takes a TAP or TUN device with loose reverse path filtering, or
	// InjectRaw. A State in ESTABLISHED or FIN_WAIT1 is restored without.
	Inject func(segment []byte) error
}

const (
	// chunkOctets is how much is given to the kernel at once for a queue.
	// In the receive queue each piece becomes one buffer, which is
	// allocated whole (net/ipv4/tcp_input.c: tcp_send_rcvq).
	chunkOctets    = 32 << 10
	chunkOctetsMin = 1 << 10

	// timestampSlack is added to the timestamp clock, in milliseconds. The
	// saved socket may have sent once more between Save and Discard; were
	// our first segment older than that, the peer would drop it (RFC 7323,
	// section 5.2). The clock may jump forward at will.
	timestampSlack = 10

	// injectWait bounds how long an injected segment may take to arrive.
	injectWait = 50 * time.Millisecond
)

// Restore makes a socket of s: in repair mode, nonblocking, close-on-exec.
// It puts nothing on the wire (see the package comment on timers). The
// caller owns fd: GoLive starts it, Discard forgets it. No other socket of
// this network namespace may have the tuple. s is not changed and its queues
// are not kept.
func Restore(s *State, o Options) (fd int, err error) {
	if err := s.check(); err != nil {
		return -1, err
	}
	// What cannot be restored is said before a socket is made.
	if err := restorable(s, o); err != nil {
		return -1, err
	}
	spec := s.Spec(o)
	fd, has, err := spec.open()
	if err != nil {
		return -1, err
	}
	if err := s.restore(fd, o, has); err != nil {
		_ = unix.Close(fd) // silent: in repair mode, or not connected yet
		return -1, err
	}
	return fd, nil
}

// RestoreOn is Restore on a socket that somebody else has made by s.Spec(o),
// since he has the privilege to: in repair mode and bound. It needs none. On
// error fd stays open and is good for nothing; closing it is silent.
func RestoreOn(fd int, s *State, o Options) error {
	if err := s.check(); err != nil {
		return err
	}
	if err := restorable(s, o); err != nil {
		return err
	}
	recv, send := s.room()
	has, err := grow(fd, recv, send)
	if err != nil {
		return prefixed(err)
	}
	has.locked = true // for all that is known
	return s.restore(fd, o, has)
}

func (s *State) restore(fd int, o Options, has buffers) error {
	// The kernel builds ESTABLISHED directly; a FIN on either side is added
	// afterwards, as it came about.
	err := s.build(fd, has)
	if err == nil {
		err = s.addFins(fd, o)
	}
	if err != nil {
		return fmt.Errorf("tcprepair: restore %v: %w", s, err)
	}
	return nil
}

// build makes the connection without any FIN, as if in ESTABLISHED.
func (s *State) build(fd int, has buffers) error {
	if s.TOS != 0 {
		level, opt, name := unix.SOL_IP, unix.IP_TOS, "IP_TOS"
		if s.Local.Addr().Is6() {
			level, opt, name = unix.SOL_IPV6, unix.IPV6_TCLASS, "IPV6_TCLASS"
		}
		if err := setInt(fd, level, opt, int(s.TOS), name); err != nil {
			return err
		}
	}
	if err := writeSeq(fd, queueSend, s.sendBase()); err != nil {
		return err
	}
	if err := writeSeq(fd, queueRecv, s.recvBase()); err != nil {
		return err
	}
	// The size of segments is computed when connect is called, and not again when
	// writeOptions says what the peer takes (net/ipv4/tcp.c:
	// tcp_repair_options_est); it would stay at 536 octets less the options.
	if err := setInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, int(min(max(s.MSS, mssMin), mssMax)), "TCP_MAXSEG"); err != nil {
		return err
	}
	// net/ipv4/tcp_output.c, tcp_connect: in repair mode no SYN leaves.
	if err := connect(fd, s.Remote); err != nil {
		return err
	}
	if err := s.writeOptions(fd); err != nil {
		return err
	}
	// The receive queue is still the selected one, and stays it: with the send
	// queue selected the kernel would take for sent whatever it may send
	// (net/ipv4/tcp_output.c: tcp_write_xmit).
	if len(s.RecvQueue) > 0 {
		if err := fill(fd, s.RecvQueue); err != nil {
			return fmt.Errorf("receive queue of %d octets: %w", len(s.RecvQueue), err)
		}
	}
	if b := s.unacked(); len(b) > 0 {
		if err := selectQueue(fd, queueSend); err != nil {
			return err
		}
		if err := fill(fd, b); err != nil {
			return fmt.Errorf("send queue of %d octets: %w", len(b), err)
		}
		if err := selectQueue(fd, queueNone); err != nil {
			return err
		}
	}
	w := s.Window
	if s.TCP.finReceived() {
		// The right edge stays where it is; the FIN lies within it.
		w.RecvWup--
		w.RecvWindow++
	}
	if err := writeWindow(fd, w); err != nil {
		return err
	}
	return s.writeSockopts(fd, has)
}

// room returns the buffers that take the queues, in octets of memory as
// State counts them. Buffers count the kernel's overhead as well, so twice the
// octets and a little more is taken; the saved sizes come back in
// writeSockopts.
//
// A send buffer that the kernel tunes, and that has nothing in it, is left to
// the kernel: it begins to tune when the connection is made.
func (s *State) room() (recv, send uint32) {
	const slack = 64 << 10
	room := func(saved uint32, octets int) uint32 {
		if octets > 0 {
			saved = max(saved, 2*(uint32(octets)+slack))
		}
		return saved
	}
	if !s.sendTuned() {
		send = room(s.SendBuffer, len(s.SendQueue))
	}
	return room(s.RecvBuffer, len(s.RecvQueue)), send
}

func (s *State) sendTuned() bool { return s.BufferLock&1 == 0 && len(s.SendQueue) == 0 }

// buffers are the sizes of a socket's buffers, in octets of memory. locked: one
// may have been set, so that the kernel no longer tunes it.
type buffers struct {
	recv, send uint32
	locked     bool
}

// grow sees to it that the buffers of a socket are no smaller than given, and
// returns their sizes. To exceed net.core.rmem_max and wmem_max takes
// CAP_NET_ADMIN in the initial user namespace (net/core/sock.c:
// sk_setsockopt, SO_RCVBUFFORCE), which is more than repair mode asks for;
// without, these bounds apply, and a queue that then does not fit is refused by
// fill.
func grow(fd int, recv, send uint32) (has buffers, err error) {
	if has, err = readBuffers(fd); err != nil {
		return has, err
	}
	if has.recv < recv {
		if err := setRecvBuffer(fd, recv/2); err != nil {
			return has, err
		}
		has.recv, has.locked = recv, true
	}
	if has.send < send {
		if err := setSendBuffer(fd, send/2); err != nil {
			return has, err
		}
		has.send, has.locked = send, true
	}
	return has, nil
}

// readBuffers reads both sizes with one call.
func readBuffers(fd int) (buffers, error) {
	m, err := readMemory(fd)
	return buffers{recv: m[memRecvBuffer], send: m[memSendBuffer]}, err
}

// The kernel doubles the sizes (net/core/sock.c: __sock_set_rcvbuf).
func setRecvBuffer(fd int, octets uint32) error {
	if setsockopt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, int(octets)) == 0 {
		return nil
	}
	return setInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, int(octets), "SO_RCVBUF")
}

func setSendBuffer(fd int, octets uint32) error {
	if setsockopt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, int(octets)) == 0 {
		return nil
	}
	return setInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, int(octets), "SO_SNDBUF")
}

// writeOptions sets what the handshake had agreed on. The kernel takes it
// only directly after connect (net/ipv4/tcp.c: TCP_REPAIR_OPTIONS).
func (s *State) writeOptions(fd int) error {
	var b [32]byte // struct tcp_repair_opt {u32 opt_code, opt_val} x 4
	n := 0
	add := func(code, v uint32) {
		binary.NativeEndian.PutUint32(b[n:], code)
		binary.NativeEndian.PutUint32(b[n+4:], v)
		n += 8
	}
	if s.SACK {
		add(optionSACK, 0)
	}
	if s.WindowScaling {
		add(optionWindow, uint32(s.SendScale)|uint32(s.RecvScale)<<16)
	}
	if s.Timestamps {
		add(optionTimestamps, 0)
	}
	add(optionMSS, s.MSS)
	if err := setBytes(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_OPTIONS, b[:n], "TCP_REPAIR_OPTIONS"); err != nil {
		return err
	}
	if !s.Timestamps {
		return nil
	}
	slack := uint32(timestampSlack)
	if s.Timestamp&1 != 0 {
		slack *= 1000 // microseconds; even, so that the mark stays
	}
	return setInt(fd, unix.IPPROTO_TCP, unix.TCP_TIMESTAMP, int(int32(s.Timestamp+slack)), "TCP_TIMESTAMP")
}

func (s *State) writeSockopts(fd int, has buffers) error {
	if s.NoDelay {
		if err := setInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1, "TCP_NODELAY"); err != nil {
			return err
		}
	}
	if s.OOBInline {
		if err := setInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1, "SO_OOBINLINE"); err != nil {
			return err
		}
	}
	if s.KeepAlive {
		for _, o := range []struct {
			level, opt int
			v          uint32
			name       string
		}{
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, s.KeepIdle, "TCP_KEEPIDLE"},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, s.KeepInterval, "TCP_KEEPINTVL"},
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, s.KeepCount, "TCP_KEEPCNT"},
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1, "SO_KEEPALIVE"},
		} {
			if err := setInt(fd, o.level, o.opt, int(o.v), o.name); err != nil {
				return err
			}
		}
	}
	if s.UserTimeout != 0 {
		if err := setInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(s.UserTimeout), "TCP_USER_TIMEOUT"); err != nil {
			return err
		}
	}
	return s.writeBuffers(fd, has)
}

// writeBuffers sets the saved sizes of the buffers, which are has. A queue that
// exceeds its buffer again is fine: the kernel takes no more until it has
// shrunk. The unsent tail still has to fit, though.
func (s *State) writeBuffers(fd int, has buffers) error {
	if has.send != s.SendBuffer && s.SendBuffer != 0 && !s.sendTuned() {
		if err := setSendBuffer(fd, s.SendBuffer/2); err != nil {
			return err
		}
		has.locked = true
	}
	if has.recv != s.RecvBuffer && s.RecvBuffer != 0 {
		if err := setRecvBuffer(fd, s.RecvBuffer/2); err != nil {
			return err
		}
		has.locked = true
	}
	if !has.locked && s.BufferLock == 0 {
		return nil
	}
	// Whether they were set by hand. Tuning is given back to the kernel so;
	// before Linux 5.15 it cannot be had back.
	err := setInt(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK, int(s.BufferLock), "SO_BUF_LOCK")
	if err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
		return err
	}
	return nil
}

// fill writes b to the selected queue. The kernel allocates buffers of the
// size it is given, so pieces become smaller if memory is short.
func fill(fd int, b []byte) error {
	chunk := chunkOctets
	for len(b) > 0 {
		n, err := send(fd, b[:min(chunk, len(b))])
		switch {
		case err == nil:
			b = b[n:]
		case chunk > chunkOctetsMin:
			chunk /= 2
		default:
			return fmt.Errorf("sendmsg with %d octets left: %w", len(b), err)
		}
	}
	return nil
}

// GoLive starts a restored socket: it leaves repair mode, whereupon the
// kernel probes the peer's window (in ESTABLISHED), writes the octets that
// were never sent, and shuts down for writing if s had an unsent FIN. rest is
// what did not fit, a part of s.SendQueue: the caller writes it when the
// socket is writable, and then shuts down itself if s.FinUnsent is set.
// SO_REUSEADDR is set, or a listener could not be opened on the same port.
//
// Whether it succeeds or not, fd is the caller's and no longer in repair mode
// unless leaving it was what failed. Let held packets go only afterwards.
func GoLive(fd int, s *State) (rest []byte, err error) {
	if err := setRepair(fd, s.liveMode()); err != nil {
		return s.unsent(), prefixed(err)
	}
	return s.start(fd)
}

// unsent returns what was never transmitted, the tail of the send queue.
func (s *State) unsent() []byte { return s.SendQueue[len(s.SendQueue)-int(s.Unsent):] }

// start makes a socket that has just left repair mode say what the saved one
// had still to say.
func (s *State) start(fd int) (rest []byte, err error) {
	rest = s.unsent()
	if err := reuse(fd); err != nil {
		return rest, prefixed(err)
	}
	for len(rest) > 0 {
		n, err := send(fd, rest)
		switch {
		case err == nil:
			rest = rest[n:]
		case errors.Is(err, unix.EAGAIN):
			return rest, nil
		default:
			return rest, fmt.Errorf("tcprepair: go live %v: %w", s, err)
		}
	}
	if s.FinUnsent {
		if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
			return nil, fmt.Errorf("tcprepair: go live %v: shutdown: %w", s, err)
		}
	}
	return nil, nil
}

// liveMode is how to leave repair mode: with a probe, or without where the
// probe would make the receive window grow unheard.
//
// The probe tells the window of now, but its sequence number is an old one, and
// of such a segment the peer takes no window (net/ipv4/tcp_output.c:
// tcp_xmit_probe_skb; tcp_input.c: tcp_sequence). Yet this kernel counts the
// window as told. A queue that came in large pieces takes less room than it
// did, so the window may be open that was closed; if the queue is then read, the
// kernel sees no news in it (tcp_cleanup_rbuf), and a peer that waits for the
// window waits until its own next probe, which may be two minutes away.
// Such a peer has probes of its own, so ours is not missed. A peer that may send
// a segment of any size does not wait (RFC 9293, section 3.8.6.2.1).
func (s *State) liveMode() int {
	usable := int32(s.Window.RecvWup + s.Window.RecvWindow - s.RecvSeq)
	if len(s.RecvQueue) == 0 || usable > 65535 {
		return RepairOff
	}
	return RepairOffNoProbe
}
