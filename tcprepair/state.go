package tcprepair

import (
	"fmt"
	"net/netip"
)

// TCPState is a state of the TCP state machine by the kernel's numbers
// (include/net/tcp_states.h).
type TCPState uint8

// The states a socket may be saved in, and those in which it is refused.
const (
	Established TCPState = 1
	SynSent     TCPState = 2
	SynRecv     TCPState = 3
	FinWait1    TCPState = 4
	FinWait2    TCPState = 5
	TimeWait    TCPState = 6
	Closed      TCPState = 7
	CloseWait   TCPState = 8
	LastAck     TCPState = 9
	Listen      TCPState = 10
	Closing     TCPState = 11
	NewSynRecv  TCPState = 12
)

var stateNames = [...]string{
	Established: "ESTABLISHED",
	SynSent:     "SYN_SENT",
	SynRecv:     "SYN_RECV",
	FinWait1:    "FIN_WAIT1",
	FinWait2:    "FIN_WAIT2",
	TimeWait:    "TIME_WAIT",
	Closed:      "CLOSE",
	CloseWait:   "CLOSE_WAIT",
	LastAck:     "LAST_ACK",
	Listen:      "LISTEN",
	Closing:     "CLOSING",
	NewSynRecv:  "NEW_SYN_RECV",
}

// String returns the kernel's name of the state.
func (t TCPState) String() string {
	if int(t) < len(stateNames) && stateNames[t] != "" {
		return stateNames[t]
	}
	return fmt.Sprintf("TCPState(%d)", uint8(t))
}

// movable tells whether State can express a socket in t.
func (t TCPState) movable() bool {
	switch t {
	case Established, FinWait1, FinWait2, CloseWait, LastAck, Closing:
		return true
	}
	return false
}

// finSent tells whether our side was shut down: a FIN stands at the end of
// the send queue (perhaps still unsent) or has been acknowledged.
func (t TCPState) finSent() bool {
	return t == FinWait1 || t == FinWait2 || t == LastAck || t == Closing
}

// finPending tells whether our FIN still counts as one unacknowledged octet
// in what SIOCOUTQ and SIOCOUTQNSD return (write_seq - snd_una and
// write_seq - snd_nxt; net/ipv4/tcp.c: tcp_ioctl).
func (t TCPState) finPending() bool {
	return t == FinWait1 || t == LastAck || t == Closing
}

// finReceived tells whether the peer's FIN is counted in RecvSeq.
func (t TCPState) finReceived() bool {
	return t == CloseWait || t == LastAck || t == Closing
}

// Bounds of a State, in octets. What exceeds them is refused by Save,
// Restore and UnmarshalBinary alike.
const (
	// MaxQueue bounds RecvQueue and SendQueue, each. The kernel's own
	// default ceiling (net.ipv4.tcp_rmem, tcp_wmem) is 6 to 32 MiB.
	MaxQueue = 64 << 20
	// maxCongestionName is TCP_CA_NAME_MAX without its terminating zero
	// (include/net/tcp.h).
	maxCongestionName = 15
	// bufferMax bounds RecvBuffer and SendBuffer, octets of memory.
	bufferMax = 1 << 30
	// ecnBits of a TOS belong to the kernel (RFC 3168, section 5).
	ecnBits = 3
	// maxScale is TCP_MAX_WSCALE (include/net/tcp.h; RFC 7323, section 2.3).
	maxScale = 14
)

// Window is the kernel's struct tcp_repair_window (include/uapi/linux/tcp.h),
// read and written as TCP_REPAIR_WINDOW. Sizes are in octets and not scaled.
type Window struct {
	SendWL1    uint32 // snd_wl1: sequence number of the segment that last updated SendWindow
	SendWindow uint32 // snd_wnd: what the peer lets us send
	MaxWindow  uint32 // max_window: the largest window the peer ever offered
	RecvWindow uint32 // rcv_wnd: what we last offered, counted from RecvWup
	RecvWup    uint32 // rcv_wup: rcv_nxt when we last sent an acknowledgement
}

// State is one TCP socket in portable form. Save makes it, Restore and
// GoLive make a socket of it again. It holds application octets, so it is
// never to be logged; its String method shows lengths only. The zero value
// is not a valid State.
type State struct {
	// Local and Remote are the two ends as the socket sees them. An IPv4
	// connection of an AF_INET6 socket is recorded, and restored, as IPv4.
	Local, Remote netip.AddrPort

	// TCP is the state of the connection.
	TCP TCPState
	// FinUnsent: the socket was shut down for writing but its FIN had not
	// been transmitted yet, since the send queue had not either. GoLive
	// shuts down again once Unsent is written.
	FinUnsent bool

	// SACK: selective acknowledgements are permitted (TCPI_OPT_SACK).
	SACK bool
	// WindowScaling: both sides sent the option; the scales are then valid
	// (TCPI_OPT_WSCALE).
	WindowScaling bool
	// SendScale and RecvScale are shift counts, 0 to 14: that of windows
	// we receive, that of windows we send (snd_wscale, rcv_wscale).
	SendScale, RecvScale uint8
	// Timestamps: the option is in use (TCPI_OPT_TIMESTAMPS).
	Timestamps bool
	// Timestamp is our clock for that option as TCP_TIMESTAMP returns it:
	// milliseconds, or microseconds if bit 0 is set, which is how the kernel
	// marks the unit (net/ipv4/tcp.c: do_tcp_getsockopt, tcp_usec_ts).
	Timestamp uint32
	// MSS is the largest segment we may send before the path MTU is
	// considered, in octets (rx_opt.mss_clamp: what TCP_MAXSEG returns in
	// repair mode).
	MSS uint32
	// ECN: it was negotiated (TCPI_OPT_ECN). Recorded, never restored.
	ECN bool

	// SendSeq is write_seq: the sequence number behind the last octet of
	// SendQueue and behind our FIN, if the socket was shut down.
	SendSeq uint32
	// RecvSeq is rcv_nxt: the sequence number behind the last octet of
	// RecvQueue and behind the peer's FIN, if that was received.
	RecvSeq uint32
	// Window is TCP_REPAIR_WINDOW.
	Window Window

	// RecvQueue holds what was acknowledged but not read yet.
	RecvQueue []byte
	// SendQueue holds what was written but not acknowledged yet. Its last
	// Unsent octets were never transmitted.
	SendQueue []byte
	Unsent    uint32

	// OutOfOrder: segments beyond a gap had arrived or may have arrived;
	// they do not move. The peer has them acknowledged selectively, which
	// permits it to forget them only when they are acknowledged in full
	// (RFC 2018, section 8), so nothing is lost but a retransmission timeout.
	OutOfOrder bool

	// RecvBuffer and SendBuffer are SO_RCVBUF and SO_SNDBUF as the kernel
	// reports them: octets of memory, twice what an application set.
	RecvBuffer, SendBuffer uint32
	// BufferLock is SO_BUF_LOCK: bit 0, the send buffer was set by hand;
	// bit 1, the receive buffer. A buffer not locked is tuned by the kernel.
	BufferLock uint8

	// TOS is IP_TOS or IPV6_TCLASS without the two bits of ECN.
	TOS uint8
	// Mark is SO_MARK. Whoever makes the socket of it needs CAP_NET_ADMIN, or
	// since Linux 5.19 CAP_NET_RAW.
	Mark uint32

	NoDelay      bool   // TCP_NODELAY
	OOBInline    bool   // SO_OOBINLINE: urgent octets stay in the stream
	KeepAlive    bool   // SO_KEEPALIVE; the next three are restored only with it
	KeepIdle     uint32 // TCP_KEEPIDLE, seconds
	KeepInterval uint32 // TCP_KEEPINTVL, seconds
	KeepCount    uint32 // TCP_KEEPCNT, probes
	UserTimeout  uint32 // TCP_USER_TIMEOUT, milliseconds; 0 is the kernel's default
	// Congestion is TCP_CONGESTION, the name of the algorithm. A host that
	// lacks it restores the socket with its own default.
	Congestion string
}

// String describes s without its octets.
func (s *State) String() string {
	return fmt.Sprintf("%v-%v %v recv %d send %d unsent %d", s.Local, s.Remote, s.TCP,
		len(s.RecvQueue), len(s.SendQueue), s.Unsent)
}

// unacked returns what was transmitted and not acknowledged: the send queue
// without its unsent tail.
func (s *State) unacked() []byte { return s.SendQueue[:len(s.SendQueue)-int(s.Unsent)] }

// sendBase is snd_una: the sequence number of the first octet of SendQueue.
// In FIN_WAIT2 the FIN is acknowledged as well; the number is then that of
// the FIN, where the restored socket begins.
func (s *State) sendBase() uint32 {
	seq := s.SendSeq - uint32(len(s.SendQueue))
	if s.TCP.finSent() {
		seq-- // our FIN occupies one sequence number
	}
	return seq
}

// recvBase is the sequence number of the first octet of RecvQueue.
func (s *State) recvBase() uint32 {
	seq := s.RecvSeq - uint32(len(s.RecvQueue))
	if s.TCP.finReceived() {
		seq--
	}
	return seq
}

// before compares sequence numbers (RFC 9293, section 3.4).
func before(a, b uint32) bool { return int32(a-b) < 0 }

// check refuses what no socket can be. Restore and the decoder rely on it:
// a State from elsewhere is input like any other.
func (s *State) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("tcprepair: state: "+format+": %w", append(args, ErrInvalid)...)
	}
	l, r := s.Local.Addr(), s.Remote.Addr()
	switch {
	case !l.IsValid() || !r.IsValid() || l.Is4() != r.Is4() || l.Is4In6() || r.Is4In6():
		return bad("addresses %v, %v", s.Local, s.Remote)
	case l.Zone() != "" || r.Zone() != "":
		return bad("address with a zone %v, %v", s.Local, s.Remote)
	case l.IsUnspecified() || r.IsUnspecified() || r.IsMulticast() || l.IsMulticast():
		return bad("addresses %v, %v", s.Local, s.Remote)
	case s.Local.Port() == 0 || s.Remote.Port() == 0:
		return bad("port 0")
	case !s.TCP.movable():
		return bad("TCP state %v", s.TCP)
	case s.FinUnsent && !s.TCP.finPending():
		return bad("unsent FIN in %v", s.TCP)
	case s.SendScale > maxScale || s.RecvScale > maxScale:
		return bad("window scales %d, %d", s.SendScale, s.RecvScale)
	case !s.WindowScaling && (s.SendScale != 0 || s.RecvScale != 0):
		return bad("window scales without the option")
	case s.MSS == 0 || s.MSS > 65535:
		return bad("MSS %d", s.MSS)
	case len(s.RecvQueue) > MaxQueue || len(s.SendQueue) > MaxQueue:
		return bad("queues of %d and %d octets", len(s.RecvQueue), len(s.SendQueue))
	case int64(s.Unsent) > int64(len(s.SendQueue)):
		return bad("%d octets unsent of %d", s.Unsent, len(s.SendQueue))
	case s.Unsent > 0 && s.TCP.finPending() && !s.FinUnsent:
		return bad("FIN sent before %d unsent octets", s.Unsent)
	case s.TCP == FinWait2 && len(s.SendQueue) > 0:
		return bad("FIN acknowledged before %d octets", len(s.SendQueue))
	case s.BufferLock > 3:
		return bad("buffer lock %d", s.BufferLock)
	case s.RecvBuffer > bufferMax || s.SendBuffer > bufferMax:
		return bad("buffers of %d and %d octets", s.RecvBuffer, s.SendBuffer)
	case s.TOS&ecnBits != 0:
		return bad("TOS %#x", s.TOS)
	case len(s.Congestion) > maxCongestionName:
		return bad("congestion control name of %d octets", len(s.Congestion))
	// The kernel's own conditions (net/ipv4/tcp.c: tcp_repair_set_window).
	case s.Window.MaxWindow < s.Window.SendWindow,
		before(s.RecvSeq+s.Window.RecvWindow, s.Window.SendWL1),
		before(s.RecvSeq, s.Window.RecvWup):
		return bad("window %+v at %d", s.Window, s.RecvSeq)
	}
	return checkCongestion(s.Congestion)
}

// checkCongestion refuses what is no algorithm's name: the kernel would look
// for a module of that name.
func checkCongestion(name string) error {
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c > '~' || c == '/' {
			return fmt.Errorf("tcprepair: state: congestion control name %q: %w", name, ErrInvalid)
		}
	}
	return nil
}
