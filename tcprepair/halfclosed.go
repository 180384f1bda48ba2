package tcprepair

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A FIN cannot be restored by an option. Ours is queued by shutdown with the
// send queue selected, which marks it as sent (net/ipv4/tcp_output.c:
// tcp_send_fin, tcp_write_xmit). The peer's, and the acknowledgement of ours,
// must arrive as segments. Their order makes the state:
//
//	CLOSE_WAIT  peer's FIN
//	LAST_ACK    peer's FIN, ours
//	FIN_WAIT1   ours
//	FIN_WAIT2   ours, its acknowledgement
//	CLOSING     ours, peer's FIN (without an acknowledgement of ours)
type finStep uint8

const (
	finOurs  finStep = iota // queue our FIN as sent
	finPeers                // inject the peer's FIN
	finAcked                // inject the acknowledgement of ours
)

// planFins returns what leads from ESTABLISHED to the state of s.
func planFins(s *State) []finStep {
	switch {
	case s.TCP == Established, s.TCP == FinWait1 && s.FinUnsent:
		return nil // GoLive shuts down behind the unsent octets
	case s.TCP == FinWait1:
		return []finStep{finOurs}
	case s.TCP == CloseWait, s.FinUnsent:
		return []finStep{finPeers}
	case s.TCP == LastAck:
		return []finStep{finPeers, finOurs}
	case s.TCP == FinWait2:
		return []finStep{finOurs, finAcked}
	case s.TCP == Closing:
		return []finStep{finOurs, finPeers}
	}
	panic("tcprepair: no way to " + s.TCP.String())
}

// restorable refuses a State for which the options are not enough.
func restorable(s *State, o Options) error {
	if o.Inject == nil && slices.ContainsFunc(planFins(s), func(f finStep) bool { return f != finOurs }) {
		return &Unsupported{What: s.TCP.String(), Why: "half-closed: restoring it takes Options.Inject"}
	}
	return nil
}

// after returns the state that a step leads to.
func (f finStep) after(t TCPState) TCPState {
	switch {
	case f == finOurs && t == Established:
		return FinWait1
	case f == finOurs && t == CloseWait:
		return LastAck
	case f == finPeers && t == Established:
		return CloseWait
	case f == finPeers && t == FinWait1:
		return Closing
	case f == finAcked && t == FinWait1:
		return FinWait2
	}
	panic(fmt.Sprintf("tcprepair: step %d in %v", f, t))
}

func (s *State) addFins(fd int, o Options) error {
	steps := planFins(s)
	if len(steps) == 0 {
		return nil
	}
	// Window of the injected segments. The exact one is set again below.
	window := s.Window.SendWindow >> s.SendScale
	una := s.sendBase()
	peerNext := s.RecvSeq
	if s.TCP.finReceived() {
		peerNext--
	}
	now := Established
	for _, step := range steps {
		now = step.after(now)
		var err error
		switch step {
		case finOurs:
			if err = selectQueue(fd, queueSend); err == nil {
				if err = unix.Shutdown(fd, unix.SHUT_WR); err == nil {
					err = selectQueue(fd, queueNone)
				}
			}
		case finPeers:
			err = o.Inject(segment(s.Remote, s.Local, peerNext, una, flagFIN|flagACK, window))
		case finAcked:
			err = o.Inject(segment(s.Remote, s.Local, peerNext, s.SendSeq, flagACK, window))
		}
		if err != nil {
			return fmt.Errorf("to %v: %w", now, err)
		}
		if err := awaitState(fd, now); err != nil {
			return err
		}
	}
	return writeWindow(fd, s.Window)
}

// awaitState waits until an injected segment has had its effect. A TAP
// device delivers within the write, a raw socket nearly so.
func awaitState(fd int, want TCPState) error {
	deadline := time.Now().Add(injectWait)
	for {
		info, err := readInfo(fd)
		if err != nil {
			return err
		}
		if info.state == want {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("socket is in %v and not in %v: the injected segment did not reach it within %v "+
				"(is the local address on this host? reverse path filter? a firewall?)", info.state, want, injectWait)
		}
		time.Sleep(100 * time.Microsecond)
	}
}

const (
	flagFIN = 0x01 // RFC 9293, section 3.1
	flagACK = 0x10
)

// segment makes an IP packet with an empty TCP segment. It carries no
// timestamp option: what the peer's clock reads is not known, and a wrong
// value would make the kernel drop the peer's true segments as old
// (RFC 7323, section 5.3). Linux accepts a segment without.
func segment(from, to netip.AddrPort, seq, ack uint32, flags uint8, window uint32) []byte {
	const tcpLen = 20
	tcp := make([]byte, 0, tcpLen)
	tcp = binary.BigEndian.AppendUint16(tcp, from.Port())
	tcp = binary.BigEndian.AppendUint16(tcp, to.Port())
	tcp = binary.BigEndian.AppendUint32(tcp, seq)
	tcp = binary.BigEndian.AppendUint32(tcp, ack)
	tcp = append(tcp, tcpLen/4<<4, flags)
	tcp = binary.BigEndian.AppendUint16(tcp, uint16(min(window, 65535)))
	tcp = append(tcp, 0, 0, 0, 0) // checksum, urgent pointer

	src, dst := from.Addr().AsSlice(), to.Addr().AsSlice()
	sum := checksum(checksum(checksum(0, src), dst), tcp) + unix.IPPROTO_TCP + tcpLen
	binary.BigEndian.PutUint16(tcp[16:], fold(sum))

	var ip []byte
	if from.Addr().Is4() {
		const ipLen = 20 // RFC 791, section 3.1
		ip = append(ip, 0x45, 0, 0, ipLen+tcpLen, 0, 0, 0x40 /* DF */, 0, 64, unix.IPPROTO_TCP, 0, 0)
		ip = append(append(ip, src...), dst...)
		binary.BigEndian.PutUint16(ip[10:], fold(checksum(0, ip)))
	} else {
		ip = append(ip, 0x60, 0, 0, 0, 0, tcpLen, unix.IPPROTO_TCP, 64) // RFC 8200, section 3
		ip = append(append(ip, src...), dst...)
	}
	return append(ip, tcp...)
}

// checksum adds the 16-bit words of b, whose length is even, to sum
// (RFC 1071).
func checksum(sum uint32, b []byte) uint32 {
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// InjectRaw is an Options.Inject without a device: a raw socket sends the
// packet to the local address, so that it passes the loopback device. It
// needs CAP_NET_RAW, the local address on this host, and no rule that drops
// or holds the tuple on that device.
func InjectRaw(segment []byte) error { return prefixed(injectRaw(segment)) }

func injectRaw(segment []byte) error {
	domain, to := unix.AF_INET, unix.Sockaddr(nil)
	switch {
	case len(segment) >= 20 && segment[0]>>4 == 4:
		to = &unix.SockaddrInet4{Addr: [4]byte(segment[16:20])}
	case len(segment) >= 40 && segment[0]>>4 == 6:
		domain, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: [16]byte(segment[24:40])}
	default:
		return fmt.Errorf("inject: %d octets are no IP packet", len(segment))
	}
	// IPPROTO_RAW: the packet brings its own IP header (raw(7)).
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("inject: raw socket: %w", err)
	}
	defer unix.Close(fd)
	if err := retryEINTR(func() error { return unix.Sendto(fd, segment, 0, to) }); err != nil {
		return fmt.Errorf("inject: sendto: %w", err)
	}
	return nil
}
