package sock

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A listening socket that is closed resets what waits in its queue and what is in
// its handshake (net/ipv4/inet_connection_sock.c, inet_csk_listen_stop). So before
// that nothing new is let in, and what has begun is waited for.

// refuseSYN is a filter in the kernel's classic form: at offset 0 lies the TCP
// header. It drops a segment with SYN and without ACK, which would begin a handshake,
// and passes all others: those that end one among them, for the filter of the
// listener is asked about them, too (net/ipv4/tcp_ipv4.c, tcp_v4_rcv).
var refuseSYN = [...]unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 13},                  // the flags
	{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0x12},               // ACK and SYN of them
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0x02, Jt: 0, Jf: 1}, // SYN alone?
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},                                 // drop
	{Code: unix.BPF_RET | unix.BPF_K, K: ^uint32(0)},                        // pass all of it
}

// BarNew lets a listener take part in no new handshake. Those that are under way go
// on; what comes is dropped without an answer, so its sender tries again after a
// second, and counted ([Drops]). Connections that are accepted from then on have
// the filter, too, to which it means nothing.
func BarNew(l FD) error {
	filter := refuseSYN
	p := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, e := syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(l), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, uintptr(unsafe.Pointer(&p)), unsafe.Sizeof(p), 0)
	if e != 0 {
		return fmt.Errorf("sock: filter of a listener: %w", e)
	}
	return nil
}

// Unbar undoes BarNew.
func Unbar(l FD) error {
	if e := setInt(l, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); e != 0 && e != unix.ENOENT {
		return fmt.Errorf("sock: filter of a listener: %w", e)
	}
	return nil
}

// memoryDrops is SK_MEMINFO_DROPS of include/uapi/linux/sock_diag.h.
const (
	memoryDrops = 8
	memoryVars  = 9
)

// Drops is how many segments a socket has dropped, by a filter or since its queue
// was full (net/core/sock.c, sk_get_meminfo).
func Drops(fd FD) (uint32, bool) {
	var m [memoryVars]uint32
	n := uint32(unsafe.Sizeof(m))
	_, _, e := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO, uintptr(unsafe.Pointer(&m)), uintptr(unsafe.Pointer(&n)), 0)
	return m[memoryDrops], e == 0 && n >= 4*memoryVars
}

// Of include/uapi/linux/inet_diag.h and sock_diag.h.
const (
	diagByFamily = 20     // SOCK_DIAG_BY_FAMILY
	diagReqBytes = 56     // struct inet_diag_req_v2
	diagIDAt     = 8      // of its id, and of that in struct inet_diag_msg 4
	diagMsgIDAt  = 4      //
	synReceived  = 1 << 3 // TCPF_SYN_RECV, which means requests, too
	diagPatience = time.Second
)

// Handshakes is how many handshakes with listeners at these addresses are under way,
// of each: the client's SYN was answered, and its ACK has not come. dual tells of
// each whether it takes IPv4 clients at an IPv6 address. It asks the kernel for all
// sockets in that state, once for all addresses, which takes the longer the more
// sockets there are: some milliseconds with very many.
func Handshakes(at []netip.AddrPort, dual []bool) ([]int, error) {
	n := make([]int, len(at))
	v4, v6 := false, false
	for i, a := range at {
		v6 = v6 || a.Addr().Is6()
		v4 = v4 || a.Addr().Is4() || dual[i] // those of IPv4 clients are told apart
	}
	for family, wanted := range map[uint8]bool{unix.AF_INET: v4, unix.AF_INET6: v6} {
		if !wanted {
			continue
		}
		if err := handshakes(family, at, n); err != nil {
			return nil, fmt.Errorf("sock: handshakes under way: %w", err)
		}
	}
	return n, nil
}

// handshakes adds those of one family.
func handshakes(family uint8, at []netip.AddrPort, count []int) error {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return err
	}
	fd := born(uintptr(s))
	defer fd.Close()
	patience := unix.NsecToTimeval(int64(diagPatience))
	if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return err
	}
	var q [unix.SizeofNlMsghdr + diagReqBytes]byte
	ne := binary.NativeEndian
	ne.PutUint32(q[0:], uint32(len(q)))
	ne.PutUint16(q[4:], diagByFamily)
	ne.PutUint16(q[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	r := q[unix.SizeofNlMsghdr:]
	r[0], r[1] = family, unix.IPPROTO_TCP
	ne.PutUint32(r[4:], synReceived)
	if len(at) == 1 { // the kernel looks for one port or for all
		binary.BigEndian.PutUint16(r[diagIDAt:], at[0].Port())
	}
	if err := unix.Sendto(s, q[:], 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	room := make([]byte, 32<<10)
	for {
		k, _, err := unix.Recvfrom(s, room, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		for b := room[:k]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(ne.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return unix.EBADMSG
			}
			body := b[unix.SizeofNlMsghdr:size]
			switch ne.Uint16(b[4:]) {
			case unix.NLMSG_DONE:
				return nil
			case unix.NLMSG_ERROR:
				if len(body) >= 4 {
					return unix.Errno(-int32(ne.Uint32(body)))
				}
				return unix.EBADMSG
			case diagByFamily:
				for i, a := range at {
					if len(body) >= diagMsgIDAt+36 && answers(a, body[0], body[diagMsgIDAt:]) {
						count[i]++
					}
				}
			}
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}

// answers tells whether a socket of that id is one of a listener at an address.
func answers(at netip.AddrPort, family uint8, id []byte) bool {
	if binary.BigEndian.Uint16(id) != at.Port() {
		return false
	}
	if at.Addr().IsUnspecified() {
		return true
	}
	local := netip.AddrFrom16([16]byte(id[4:20]))
	if family == unix.AF_INET {
		local = netip.AddrFrom4([4]byte(id[4:8]))
	}
	return local.Unmap() == at.Addr().Unmap()
}
