package sock

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Socket options that x/sys lacks.
const (
	ipLocalPortRange = 51 // IP_LOCAL_PORT_RANGE, include/uapi/linux/in.h, since 6.3
	tcpRTOMax        = 44 // TCP_RTO_MAX_MS, include/uapi/linux/tcp.h, since 6.15
)

// sockaddr holds a sockaddr_in, sockaddr_in6 or sockaddr_un; it is built in
// place so that dialling allocates nothing.
type sockaddr struct {
	raw [unix.SizeofSockaddrUnix]byte
	n   uintptr
}

// native stores v in the machine's order at p.
func native16(p []byte, v uint16) { *(*uint16)(unsafe.Pointer(&p[0])) = v }

func (s *sockaddr) tcp(a netip.AddrPort) {
	clear(s.raw[:])
	ip := a.Addr()
	s.raw[2], s.raw[3] = byte(a.Port()>>8), byte(a.Port())
	if ip.Is4() {
		native16(s.raw[:], unix.AF_INET)
		b := ip.As4()
		copy(s.raw[4:], b[:])
		s.n = unix.SizeofSockaddrInet4
		return
	}
	native16(s.raw[:], unix.AF_INET6)
	b := ip.As16()
	copy(s.raw[8:], b[:])
	s.n = unix.SizeofSockaddrInet6
}

func (s *sockaddr) unix(path string) error {
	if len(path) >= len(s.raw)-2 {
		return fmt.Errorf("sock: unix socket path of %d octets, limit %d: %w", len(path), len(s.raw)-3, unix.ENAMETOOLONG)
	}
	clear(s.raw[:])
	native16(s.raw[:], unix.AF_UNIX)
	copy(s.raw[2:], path)
	s.n = uintptr(2 + len(path) + 1)
	return nil
}

func setInt(fd FD, level, opt, v int) Errno {
	x := int32(v)
	_, _, e := syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt), uintptr(unsafe.Pointer(&x)), 4, 0)
	return e
}

func getInt(fd FD, level, opt int) (int, Errno) {
	var x, n int32
	n = 4
	_, _, e := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt), uintptr(unsafe.Pointer(&x)), uintptr(unsafe.Pointer(&n)), 0)
	return int(x), e
}

// Life says how a connection whose peer has vanished is found out.
// Zero fields leave the kernel's defaults.
type Life struct {
	Idle, Interval time.Duration // keepalive; whole seconds
	Count          int
	// Silence is how long a peer may acknowledge nothing of what it was sent
	// before [Vanished] finds it; here it bounds the pause between two tries.
	Silence time.Duration
}

func (l Life) set(fd FD) Errno {
	first := Errno(0)
	set := func(level, opt, v int) {
		if e := setInt(fd, level, opt, v); e != 0 && first == 0 {
			first = e
		}
	}
	if l.Idle > 0 {
		set(unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		set(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, max(1, int(l.Idle/time.Second)))
		if l.Interval > 0 {
			set(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, max(1, int(l.Interval/time.Second)))
		}
		if l.Count > 0 {
			set(unix.IPPROTO_TCP, unix.TCP_KEEPCNT, l.Count)
		}
	}
	if l.Silence > 0 {
		// Without the option (before Linux 6.15) the kernel doubles the pause
		// up to two minutes, and a vanished peer is found so much later.
		_ = setInt(fd, unix.IPPROTO_TCP, tcpRTOMax, max(1000, int(l.Silence/(4*time.Millisecond))))
	}
	return first
}

// ListenSpec describes a listening TCP socket.
type ListenSpec struct {
	Addr      netip.AddrPort
	DualStack bool // an unspecified IPv6 address that takes IPv4 as well
	Backlog   int
	Life      Life // inherited by accepted sockets (net/ipv4/tcp_minisocks.c clones the options)
	MSS       int  // clamp of the segment size, 0 = none; inherited too
	Buffer    int  // octets of each queue of an accepted socket, 0 = the kernel tunes them
	FreeBind  bool // the address need not be this host's: it may come and go
}

// Listen opens a listening socket. It is plain TCP, never MPTCP: a multipath
// socket cannot be repaired (TCP_REPAIR gives ENOPROTOOPT).
func Listen(s ListenSpec) (FD, error) {
	family := unix.AF_INET6
	if s.Addr.Addr().Is4() {
		family = unix.AF_INET
	}
	n, _, e := syscall.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if e != 0 {
		return NoFD, fmt.Errorf("sock: socket for %v: %w", s.Addr, e)
	}
	fd := born(n)
	set := func(level, opt, v int) {
		if e == 0 {
			e = setInt(fd, level, opt, v)
		}
	}
	set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	set(unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	set(unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) // accepted sockets inherit it; see DialSpec.prepare
	if family == unix.AF_INET6 {
		only := 1
		if s.DualStack {
			only = 0
		}
		set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only)
	}
	switch {
	case s.FreeBind && family == unix.AF_INET6:
		set(unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
	case s.FreeBind:
		set(unix.SOL_IP, unix.IP_FREEBIND, 1)
	}
	if s.MSS > 0 {
		set(unix.IPPROTO_TCP, unix.TCP_MAXSEG, s.MSS)
	}
	if s.Buffer > 0 {
		set(unix.SOL_SOCKET, unix.SO_RCVBUF, s.Buffer)
		set(unix.SOL_SOCKET, unix.SO_SNDBUF, s.Buffer)
	}
	if e == 0 {
		e = s.Life.set(fd)
	}
	if e != 0 {
		fd.Close()
		return NoFD, fmt.Errorf("sock: options of listener %v: %w", s.Addr, e)
	}
	var sa sockaddr
	sa.tcp(s.Addr)
	if _, _, e = syscall.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&sa.raw)), sa.n); e != 0 {
		fd.Close()
		return NoFD, fmt.Errorf("sock: bind %v: %w", s.Addr, e)
	}
	if _, _, e = syscall.RawSyscall(unix.SYS_LISTEN, uintptr(fd), uintptr(s.Backlog), 0); e != 0 {
		fd.Close()
		return NoFD, fmt.Errorf("sock: listen %v: %w", s.Addr, e)
	}
	return fd, nil
}

// Relisten brings the options of an open listener to s, for a listener whose
// address stays while its policy changes, or that another program opened. The
// backlog may change, too. Bounds of the segment size and of buffers are set, and
// not taken back: the kernel has no way to let buffers grow by themselves again.
func Relisten(fd FD, s ListenSpec) error {
	for _, x := range []struct{ level, opt, v int }{
		{unix.IPPROTO_TCP, unix.TCP_MAXSEG, s.MSS}, {unix.SOL_SOCKET, unix.SO_RCVBUF, s.Buffer}, {unix.SOL_SOCKET, unix.SO_SNDBUF, s.Buffer},
	} {
		if x.v <= 0 {
			continue
		}
		if e := setInt(fd, x.level, x.opt, x.v); e != 0 {
			return fmt.Errorf("sock: options of listener %v: %w", s.Addr, e)
		}
	}
	if e := s.Life.set(fd); e != 0 {
		return fmt.Errorf("sock: options of listener %v: %w", s.Addr, e)
	}
	if _, _, e := syscall.RawSyscall(unix.SYS_LISTEN, uintptr(fd), uintptr(s.Backlog), 0); e != 0 {
		return fmt.Errorf("sock: listen %v again: %w", s.Addr, e)
	}
	return nil
}

// Accept takes one established connection from a listener, non-blocking, and
// tells who opened it.
func Accept(l FD) (FD, netip.AddrPort, Errno) {
	var sa sockaddr
	size := uint32(len(sa.raw))
	n, _, e := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(l), uintptr(unsafe.Pointer(&sa.raw)), uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if e != 0 {
		return NoFD, netip.AddrPort{}, e
	}
	return born(n), sa.addrPort(), 0
}

// Peek tells whether Recv would find octets, the end (0), or nothing yet
// (Again), and takes nothing.
func Peek(fd FD) (int, Errno) {
	var b byte
	n, _, e := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b)), 1, unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(n), 0
}

// DialSpec describes a connection to be opened. Either Addr or Unix is set.
type DialSpec struct {
	Addr             netip.AddrPort
	Unix             string     // path of a unix stream socket
	Source           netip.Addr // zero: the kernel's choice
	PortMin, PortMax uint16     // range for the source port, 0 = the kernel's
	MSS              int        // clamp of the segment size, 0 = none
	Buffer           int        // octets of each queue, 0 = the kernel tunes them
}

// Dial starts a non-blocking connection. pending tells that it is not yet
// established: the descriptor becomes writable when it is or has failed, and
// [DialResult] then tells which.
func Dial(s *DialSpec) (fd FD, pending bool, e Errno) {
	var sa sockaddr
	family, proto := uintptr(unix.AF_INET6), uintptr(unix.IPPROTO_TCP)
	switch {
	case s.Unix != "":
		family, proto = unix.AF_UNIX, 0
		if sa.unix(s.Unix) != nil {
			return NoFD, false, unix.ENAMETOOLONG
		}
	case s.Addr.Addr().Is4():
		family = unix.AF_INET
		sa.tcp(s.Addr)
	default:
		sa.tcp(s.Addr)
	}
	n, _, e := syscall.RawSyscall(unix.SYS_SOCKET, family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	if e != 0 {
		return NoFD, false, e
	}
	fd = born(n)
	if family != unix.AF_UNIX {
		e = s.prepare(fd, family)
	}
	if e == 0 {
		_, _, e = syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa.raw)), sa.n)
	}
	switch e {
	case 0:
		return fd, false, 0
	case InProgress:
		return fd, true, 0
	}
	fd.Close()
	return NoFD, false, e
}

// prepare sets what must stand before connect.
func (s *DialSpec) prepare(fd FD, family uintptr) Errno {
	// An urgent octet stands in the stream like any other (RFC 6093, section 6);
	// else the kernel would take it out, and it would be lost.
	if e := setInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1); e != 0 {
		return e
	}
	if s.MSS > 0 {
		if e := setInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, s.MSS); e != 0 {
			return e
		}
	}
	if s.Buffer > 0 {
		if e := setInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, s.Buffer); e != 0 {
			return e
		}
		if e := setInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, s.Buffer); e != 0 {
			return e
		}
	}
	if !s.Source.IsValid() {
		return 0
	}
	// The port is chosen at connect, where the whole 4-tuple must be unique,
	// not at bind, where the port alone would have to be.
	if e := setInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); e != 0 {
		return e
	}
	if s.PortMin > 0 {
		if e := setInt(fd, unix.SOL_IP, ipLocalPortRange, int(int32(uint32(s.PortMax)<<16|uint32(s.PortMin)))); e != 0 {
			return e
		}
	}
	var from sockaddr
	from.tcp(netip.AddrPortFrom(s.Source, 0))
	_, _, e := syscall.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&from.raw)), from.n)
	if e == unix.EADDRNOTAVAIL {
		return NoAddress
	}
	return e
}

// DialResult tells how a pending connection ended: 0 established, [InProgress]
// not yet, else the reason why not.
func DialResult(fd FD) Errno {
	// Only an established socket has a peer, so one call does in the good case.
	var sa sockaddr
	n := uint32(len(sa.raw))
	_, _, e := syscall.RawSyscall(unix.SYS_GETPEERNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa.raw)), uintptr(unsafe.Pointer(&n)))
	if e != unix.ENOTCONN {
		return e
	}
	v, e := getInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if e != 0 {
		return e
	}
	if v != 0 {
		return Errno(v)
	}
	return InProgress
}

// Enliven sets what finds out that the peer of a connected socket has vanished.
func Enliven(fd FD, l Life) {
	_ = l.set(fd)
}

// triesVanished is how many tries in a row must go without an answer: one may
// have been lost.
const triesVanished = 2

// Vanished tells that the peer of a TCP socket has acknowledged nothing for so
// long, although it was asked again and again: octets are outstanding, or its
// window is closed and probes of it stay without an answer. TCP_USER_TIMEOUT
// is no substitute: it also ends connections whose peer answers every probe
// and merely reads nothing (net/ipv4/tcp_timer.c, tcp_probe_timer).
func Vanished(fd FD, silence time.Duration) bool {
	var out int32
	if _, _, e := syscall.RawSyscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCOUTQ, uintptr(unsafe.Pointer(&out))); e != 0 || out == 0 {
		return false // nothing outstanding: keepalive looks after that
	}
	var ti unix.TCPInfo
	n := uint32(unsafe.Sizeof(ti))
	_, _, e := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_INFO, uintptr(unsafe.Pointer(&ti)), uintptr(unsafe.Pointer(&n)), 0)
	if e != 0 || time.Duration(ti.Last_ack_recv)*time.Millisecond < silence {
		return false
	}
	return ti.Retransmits >= triesVanished || ti.Probes >= triesVanished
}

// Sent is how long ago the kernel sent the latest octets of a TCP socket, of
// those that the peer has since acknowledged or may still. ok is false if that
// cannot be told, or if they had to be sent again. What the peer's closed window
// is asked with has no octets and does not count (net/ipv4/tcp_output.c,
// tcp_event_data_sent).
func Sent(fd FD) (ago time.Duration, ok bool) {
	var ti unix.TCPInfo
	n := uint32(unsafe.Sizeof(ti))
	_, _, e := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_INFO, uintptr(unsafe.Pointer(&ti)), uintptr(unsafe.Pointer(&n)), 0)
	return time.Duration(ti.Last_data_sent) * time.Millisecond, e == 0 && ti.Retransmits == 0
}

// Threshold makes a socket readable only from so many octets on, or at its end
// (SO_RCVLOWAT; net/ipv4/tcp.c, tcp_set_rcvlowat, bounds it by the queue). 1 is
// what a socket begins with.
func Threshold(fd FD, octets int) { _ = setInt(fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, octets) }

// NoDelay makes small segments go out at once, though earlier ones are not
// acknowledged yet (RFC 9293, section 3.7.4).
func NoDelay(fd FD) { _ = setInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) }

func (s *sockaddr) addrPort() netip.AddrPort {
	port := uint16(s.raw[2])<<8 | uint16(s.raw[3])
	switch *(*uint16)(unsafe.Pointer(&s.raw[0])) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(s.raw[4:8])), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(s.raw[8:24])).Unmap(), port)
	}
	return netip.AddrPort{}
}

func name(call uintptr, fd FD) netip.AddrPort {
	var sa sockaddr
	n := uint32(len(sa.raw))
	if _, _, e := syscall.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&sa.raw)), uintptr(unsafe.Pointer(&n))); e != 0 {
		return netip.AddrPort{}
	}
	return sa.addrPort()
}

// LocalAddr is the socket's own address; the zero value for a unix socket.
func LocalAddr(fd FD) netip.AddrPort { return name(unix.SYS_GETSOCKNAME, fd) }

// PeerAddr is the address of the socket's peer; zero when it has none.
func PeerAddr(fd FD) netip.AddrPort { return name(unix.SYS_GETPEERNAME, fd) }

// Queued is how many octets the kernel holds for the socket, in both queues:
// received and not read (SIOCINQ), written and not acknowledged (SIOCOUTQ).
func Queued(fd FD) int {
	var in, out int32
	_, _, _ = syscall.RawSyscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCINQ, uintptr(unsafe.Pointer(&in)))
	_, _, _ = syscall.RawSyscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCOUTQ, uintptr(unsafe.Pointer(&out)))
	return int(in) + int(out)
}

// FileLimit raises the soft limit of open files to the hard one and returns it.
func FileLimit() (int, error) {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return 0, fmt.Errorf("sock: getrlimit NOFILE: %w", err)
	}
	if r.Cur < r.Max {
		r.Cur = r.Max
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
			return 0, fmt.Errorf("sock: setrlimit NOFILE to %d: %w", r.Max, err)
		}
	}
	return int(min(r.Cur, 1<<30)), nil
}

// RemoveStale removes a unix socket file that nobody listens on any more. A
// file that is not a socket, or one that answers, stays and is an error.
func RemoveStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("sock: %s exists and is not a socket", path)
	}
	fd, _, e := Dial(&DialSpec{Unix: path})
	if e == 0 {
		fd.Close()
		return fmt.Errorf("sock: %s: another process listens there", path)
	}
	return os.Remove(path)
}
