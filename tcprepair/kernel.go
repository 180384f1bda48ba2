package tcprepair

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Numbers that golang.org/x/sys/unix has for some architectures only, or not
// at all; each is the same on all of them.
const (
	queueNone = 0 // TCP_NO_QUEUE, include/net/tcp.h and uapi/linux/tcp.h
	queueRecv = 1 // TCP_RECV_QUEUE
	queueSend = 2 // TCP_SEND_QUEUE

	optionMSS        = 2 // TCPOPT_MSS, include/net/tcp.h
	optionWindow     = 3 // TCPOPT_WINDOW
	optionSACK       = 4 // TCPOPT_SACK_PERM
	optionTimestamps = 8 // TCPOPT_TIMESTAMP

	mssMin = 88    // TCP_MIN_MSS, include/net/tcp.h: what TCP_MAXSEG takes at least
	mssMax = 32767 // MAX_TCP_WINDOW: and at most

	infoTimestamps = 1 // TCPI_OPT_TIMESTAMPS, include/uapi/linux/tcp.h
	infoSACK       = 2 // TCPI_OPT_SACK
	infoScaling    = 4 // TCPI_OPT_WSCALE
	infoECN        = 8 // TCPI_OPT_ECN

	memRecvUsed   = 0 // SK_MEMINFO_RMEM_ALLOC, include/uapi/linux/sock_diag.h
	memRecvBuffer = 1 // SK_MEMINFO_RCVBUF
	memSendBuffer = 3 // SK_MEMINFO_SNDBUF
	memVars       = 9 // SK_MEMINFO_VARS

	protoMPTCP = 262 // IPPROTO_MPTCP, include/uapi/linux/in.h
)

// retryEINTR runs one kernel call until a signal no longer interrupts it.
func retryEINTR(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// The calls below neither sleep nor last: they look at a socket or set something
// in it, so the scheduler need not know of them.

func errnoErr(e syscall.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

func ioctlInt(fd int, req uint, name string) (int, error) {
	var v int32
	_, _, e := syscall.RawSyscall(unix.SYS_IOCTL, uintptr(fd), uintptr(req), uintptr(unsafe.Pointer(&v)))
	if e != 0 {
		return 0, fmt.Errorf("ioctl %s: %w", name, e)
	}
	return int(v), nil
}

func getInt(fd, level, opt int, name string) (int, error) {
	var v int32
	n := uint32(4)
	_, _, e := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt),
		uintptr(unsafe.Pointer(&v)), uintptr(unsafe.Pointer(&n)), 0)
	if e != 0 {
		return 0, fmt.Errorf("getsockopt %s: %w", name, e)
	}
	return int(v), nil
}

func setsockopt(fd, level, opt, v int) syscall.Errno {
	w := int32(v)
	_, _, e := syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt),
		uintptr(unsafe.Pointer(&w)), 4, 0)
	return e
}

func setInt(fd, level, opt, v int, name string) error {
	if e := setsockopt(fd, level, opt, v); e != 0 {
		return fmt.Errorf("setsockopt %s %d: %w", name, v, e)
	}
	return nil
}

// getBytes reads an option that is a structure. It returns how many octets
// the kernel wrote; an older kernel's structure may be shorter.
func getBytes(fd, level, opt int, b []byte, name string) (int, error) {
	n := uint32(len(b))
	_, _, e := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt),
		uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(unsafe.Pointer(&n)), 0)
	if e != 0 {
		return 0, fmt.Errorf("getsockopt %s: %w", name, e)
	}
	return int(n), nil
}

func setBytes(fd, level, opt int, b []byte, name string) error {
	_, _, e := syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt),
		uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0)
	if e != 0 {
		return fmt.Errorf("setsockopt %s: %w", name, e)
	}
	return nil
}

// rawMax is how many octets may be copied by a call of which the scheduler does
// not know.
const rawMax = 16 << 10

// peek reads from the selected queue what stays there.
func peek(fd int, b []byte) (n int, err error) {
	for {
		var m uintptr
		var e syscall.Errno
		if at := uintptr(unsafe.Pointer(unsafe.SliceData(b))); len(b) <= rawMax {
			m, _, e = syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), at, uintptr(len(b)), unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
		} else {
			m, _, e = syscall.Syscall6(unix.SYS_RECVFROM, uintptr(fd), at, uintptr(len(b)), unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
		}
		if e != unix.EINTR {
			runtime.KeepAlive(b)
			return int(m), errnoErr(e)
		}
	}
}

// send writes to the socket, or in repair mode to the selected queue.
func send(fd int, b []byte) (n int, err error) {
	const flags = unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL
	for {
		var m uintptr
		var e syscall.Errno
		if at := uintptr(unsafe.Pointer(unsafe.SliceData(b))); len(b) <= rawMax {
			m, _, e = syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), at, uintptr(len(b)), flags, 0, 0)
		} else {
			m, _, e = syscall.Syscall6(unix.SYS_SENDTO, uintptr(fd), at, uintptr(len(b)), flags, 0, 0)
		}
		if e != unix.EINTR {
			runtime.KeepAlive(b)
			return int(m), errnoErr(e)
		}
	}
}

// setRepair enters or leaves repair mode. net/ipv4/tcp.c,
// tcp_can_repair_sock: CAP_NET_ADMIN in the user namespace that owns the
// socket's network namespace, and not a listener.
func setRepair(fd, mode int) error {
	err := setInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, mode, "TCP_REPAIR")
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return &NotPermitted{
			Missing: "CAP_NET_ADMIN in the user namespace that owns the network namespace",
			Err:     unix.EPERM,
		}
	case errors.Is(err, unix.ENOPROTOOPT):
		// Either no TCP socket at all or MPTCP, which passes only some
		// options on (net/mptcp/sockopt.c).
		return &Unsupported{What: "TCP_REPAIR", Why: "not a plain TCP socket: " + err.Error()}
	}
	return err
}

// tcpInfo is what is read from struct tcp_info (include/uapi/linux/tcp.h).
type tcpInfo struct {
	state                TCPState
	options              uint8
	sendScale, recvScale uint8
	unsent               uint32 // tcpi_notsent_bytes, with our FIN if that is unsent
	oooPackets           uint32 // tcpi_rcv_ooopack: ever received out of order
	oooKnown             bool
}

// Offsets in struct tcp_info.
const (
	infoOffState   = 0
	infoOffOptions = 5
	infoOffScales  = 6                                                  // tcpi_snd_wscale : 4, tcpi_rcv_wscale : 4
	infoOffUnsent  = int(unsafe.Offsetof(unix.TCPInfo{}.Notsent_bytes)) // since Linux 4.6
	infoOffOOO     = int(unsafe.Offsetof(unix.TCPInfo{}.Rcv_ooopack))
)

// bigEndian: bit fields begin at the high bits there, so that the two window
// scales have changed places.
var bigEndian = binary.NativeEndian.Uint16([]byte{0, 1}) == 1

func readInfo(fd int) (tcpInfo, error) {
	var b [256]byte
	n, err := getBytes(fd, unix.IPPROTO_TCP, unix.TCP_INFO, b[:], "TCP_INFO")
	if err != nil {
		return tcpInfo{}, err
	}
	if n < infoOffUnsent+4 {
		return tcpInfo{}, fmt.Errorf("getsockopt TCP_INFO: %d octets", n)
	}
	i := tcpInfo{
		state:     TCPState(b[infoOffState]),
		options:   b[infoOffOptions],
		sendScale: b[infoOffScales] & 15,
		recvScale: b[infoOffScales] >> 4,
		unsent:    binary.NativeEndian.Uint32(b[infoOffUnsent:]),
	}
	if bigEndian {
		i.sendScale, i.recvScale = i.recvScale, i.sendScale
	}
	if n >= infoOffOOO+4 {
		i.oooPackets = binary.NativeEndian.Uint32(b[infoOffOOO:])
		i.oooKnown = true
	}
	return i, nil
}

// windowSize is sizeof(struct tcp_repair_window).
const windowSize = 20

func readWindow(fd int) (Window, error) {
	var b [windowSize]byte
	n, err := getBytes(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_WINDOW, b[:], "TCP_REPAIR_WINDOW")
	if err != nil {
		return Window{}, err
	}
	if n != windowSize {
		return Window{}, fmt.Errorf("getsockopt TCP_REPAIR_WINDOW: %d octets", n)
	}
	u := func(i int) uint32 { return binary.NativeEndian.Uint32(b[i:]) }
	return Window{SendWL1: u(0), SendWindow: u(4), MaxWindow: u(8), RecvWindow: u(12), RecvWup: u(16)}, nil
}

func writeWindow(fd int, w Window) error {
	var b [windowSize]byte
	for i, v := range [...]uint32{w.SendWL1, w.SendWindow, w.MaxWindow, w.RecvWindow, w.RecvWup} {
		binary.NativeEndian.PutUint32(b[4*i:], v)
	}
	return setBytes(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_WINDOW, b[:], "TCP_REPAIR_WINDOW")
}

func selectQueue(fd, queue int) error {
	return setInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, queue, "TCP_REPAIR_QUEUE")
}

func readSeq(fd int) (uint32, error) {
	var b [4]byte
	if _, err := getBytes(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ, b[:], "TCP_QUEUE_SEQ"); err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint32(b[:]), nil
}

func writeSeq(fd, queue int, seq uint32) error {
	if err := selectQueue(fd, queue); err != nil {
		return err
	}
	return setInt(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ, int(int32(seq)), "TCP_QUEUE_SEQ")
}

// rawAddr is a socket's address as the kernel has it: struct sockaddr_in or
// sockaddr_in6.
type rawAddr struct {
	b [unix.SizeofSockaddrInet6]byte
	n uint32
}

func (r *rawAddr) set(a netip.AddrPort) {
	family := uint16(unix.AF_INET)
	binary.BigEndian.PutUint16(r.b[2:], a.Port())
	if addr := a.Addr(); addr.Is4() {
		as4 := addr.As4()
		copy(r.b[4:], as4[:])
		r.n = unix.SizeofSockaddrInet4
	} else {
		family = unix.AF_INET6
		as16 := addr.As16()
		copy(r.b[8:], as16[:])
		r.n = unix.SizeofSockaddrInet6
	}
	binary.NativeEndian.PutUint16(r.b[:], family)
}

// addrPort turns the kernel's address into ours. An IPv4 connection of an
// AF_INET6 socket shows as a mapped address and is IPv4 to everybody else.
func (r *rawAddr) addrPort() (a netip.AddrPort, scoped bool) {
	port := binary.BigEndian.Uint16(r.b[2:])
	switch binary.NativeEndian.Uint16(r.b[:]) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(r.b[4:8])), port), false
	case unix.AF_INET6:
		scoped = binary.NativeEndian.Uint32(r.b[24:]) != 0
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(r.b[8:24])).Unmap(), port), scoped
	}
	return netip.AddrPort{}, false
}

// name reads one end of a connection: call is SYS_GETSOCKNAME or
// SYS_GETPEERNAME.
func name(fd int, call uintptr) (a netip.AddrPort, scoped bool, err error) {
	r := rawAddr{n: unix.SizeofSockaddrInet6}
	_, _, e := syscall.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&r.b)), uintptr(unsafe.Pointer(&r.n)))
	if e != 0 {
		return a, false, e
	}
	a, scoped = r.addrPort()
	return a, scoped, nil
}

// bind and connect: in repair mode neither waits for anything.
func bind(fd int, to netip.AddrPort) error {
	var r rawAddr
	r.set(to)
	if _, _, e := syscall.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&r.b)), uintptr(r.n)); e != 0 {
		return fmt.Errorf("bind %v: %w", to, e)
	}
	return nil
}

func connect(fd int, to netip.AddrPort) error {
	var r rawAddr
	r.set(to)
	for {
		_, _, e := syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&r.b)), uintptr(r.n))
		if e == 0 {
			return nil
		}
		if e != unix.EINTR {
			return fmt.Errorf("connect %v: %w", to, e)
		}
	}
}

// readMemory reads SO_MEMINFO: what the socket's memory is, in octets.
func readMemory(fd int) (m [memVars]uint32, err error) {
	var b [memVars * 4]byte
	n, err := getBytes(fd, unix.SOL_SOCKET, unix.SO_MEMINFO, b[:], "SO_MEMINFO")
	if err == nil && n < 4*(memSendBuffer+1) {
		err = fmt.Errorf("getsockopt SO_MEMINFO: %d octets", n)
	}
	for i := range m {
		m[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return m, err
}

// disconnect is connect(2) to AF_UNSPEC, which x/sys/unix cannot express.
func disconnect(fd int) error {
	var sa [16]byte // struct sockaddr, all zero: AF_UNSPEC
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa[0])), uintptr(len(sa)))
	if errno != 0 {
		return fmt.Errorf("connect AF_UNSPEC: %w", errno)
	}
	return nil
}
