package tcprepair

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
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

func ioctlInt(fd int, req uint, name string) (int, error) {
	v, err := unix.IoctlGetInt(fd, req)
	if err != nil {
		return 0, fmt.Errorf("ioctl %s: %w", name, err)
	}
	return v, nil
}

func getInt(fd, level, opt int, name string) (int, error) {
	v, err := unix.GetsockoptInt(fd, level, opt)
	if err != nil {
		return 0, fmt.Errorf("getsockopt %s: %w", name, err)
	}
	return v, nil
}

func setInt(fd, level, opt, v int, name string) error {
	if err := unix.SetsockoptInt(fd, level, opt, v); err != nil {
		return fmt.Errorf("setsockopt %s %d: %w", name, v, err)
	}
	return nil
}

// getBytes reads an option that is a structure. It returns how many octets
// the kernel wrote; an older kernel's structure may be shorter.
func getBytes(fd, level, opt int, b []byte, name string) (int, error) {
	n := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt),
		uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(unsafe.Pointer(&n)), 0)
	runtime.KeepAlive(b)
	if errno != 0 {
		return 0, fmt.Errorf("getsockopt %s: %w", name, errno)
	}
	return int(n), nil
}

func setBytes(fd, level, opt int, b []byte, name string) error {
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt),
		uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0)
	runtime.KeepAlive(b)
	if errno != 0 {
		return fmt.Errorf("setsockopt %s: %w", name, errno)
	}
	return nil
}

// setRepair enters or leaves repair mode. net/ipv4/tcp.c,
// tcp_can_repair_sock: CAP_NET_ADMIN in the user namespace that owns the
// socket's network namespace, and not a listener.
func setRepair(fd, mode int) error {
	err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, mode)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return &NotPermitted{
			Missing: "CAP_NET_ADMIN in the user namespace that owns the network namespace",
			Err:     err,
		}
	case errors.Is(err, unix.ENOPROTOOPT):
		// Either no TCP socket at all or MPTCP, which passes only some
		// options on (net/mptcp/sockopt.c).
		return &Unsupported{What: "TCP_REPAIR", Why: "not a plain TCP socket: " + err.Error()}
	}
	return fmt.Errorf("setsockopt TCP_REPAIR %d: %w", mode, err)
}

// tcpInfo is what is read from struct tcp_info (include/uapi/linux/tcp.h).
type tcpInfo struct {
	state                TCPState
	options              uint8
	sendScale, recvScale uint8
	oooPackets           uint32 // tcpi_rcv_ooopack: ever received out of order
	oooKnown             bool
}

// Offsets in struct tcp_info.
const (
	infoOffState   = 0
	infoOffOptions = 5
	infoOffScales  = 6 // tcpi_snd_wscale : 4, tcpi_rcv_wscale : 4
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
	if n <= infoOffScales {
		return tcpInfo{}, fmt.Errorf("getsockopt TCP_INFO: %d octets", n)
	}
	i := tcpInfo{
		state:     TCPState(b[infoOffState]),
		options:   b[infoOffOptions],
		sendScale: b[infoOffScales] & 15,
		recvScale: b[infoOffScales] >> 4,
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
	b := make([]byte, 0, windowSize)
	for _, v := range []uint32{w.SendWL1, w.SendWindow, w.MaxWindow, w.RecvWindow, w.RecvWup} {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return setBytes(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_WINDOW, b, "TCP_REPAIR_WINDOW")
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
	return setBytes(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ,
		binary.NativeEndian.AppendUint32(nil, seq), "TCP_QUEUE_SEQ")
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// addrPort turns the kernel's address into ours. An IPv4 connection of an
// AF_INET6 socket shows as a mapped address and is IPv4 to everybody else.
func addrPort(sa unix.Sockaddr) (a netip.AddrPort, scoped bool) {
	switch v := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(v.Addr), uint16(v.Port)), false
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(v.Addr).Unmap(), uint16(v.Port)), v.ZoneId != 0
	}
	return netip.AddrPort{}, false
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
