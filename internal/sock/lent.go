package sock

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A socket ends with the last descriptor of it. While another process has one, too,
// close alone says nothing to the peer: what follows ends the connection itself.

// Cookie is the kernel's name of a socket: the same by whatever descriptor and in
// whatever process, and never another socket's as long as the machine runs
// (net/core/sock_diag.c, sock_gen_cookie).
func Cookie(fd FD) (uint64, error) {
	var c uint64
	n := uint32(unsafe.Sizeof(c))
	_, _, e := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_COOKIE, uintptr(unsafe.Pointer(&c)), uintptr(unsafe.Pointer(&n)), 0)
	if e != 0 {
		return 0, fmt.Errorf("sock: cookie of fd %d: %w", fd, e)
	}
	return c, nil
}

// unread is how many octets were received and not read.
func (f FD) unread() int {
	var in int32
	_, _, _ = syscall.RawSyscall(unix.SYS_IOCTL, uintptr(f), unix.SIOCINQ, uintptr(unsafe.Pointer(&in)))
	return int(in)
}

// disconnect ends a TCP connection at once, by RST where its state asks for one,
// and throws its queues away (net/ipv4/tcp.c, tcp_disconnect). A unix socket has no
// such call.
func (f FD) disconnect() Errno {
	var sa [16]byte
	native16(sa[:], unix.AF_UNSPEC)
	_, _, e := syscall.RawSyscall(unix.SYS_CONNECT, uintptr(f), uintptr(unsafe.Pointer(&sa)), unsafe.Sizeof(sa))
	return e
}

func (f FD) shutdownBoth() {
	_, _, _ = syscall.RawSyscall(unix.SYS_SHUTDOWN, uintptr(f), unix.SHUT_RDWR, 0)
}

// CloseLent is Close of a connection of which another process has a descriptor, with
// the effect that Close would have without it: RST if octets are unread, else FIN
// behind what was sent, and RST to whatever comes from then on (net/ipv4/tcp.c,
// __tcp_close; tcp_input.c, tcp_rcv_state_process). Of a unix socket the peer reads the
// end, be octets unread or not. The descriptor must be in no poller: an entry there
// would outlive it.
func (f FD) CloseLent() {
	if f < 0 {
		return
	}
	if f.unread() > 0 && f.disconnect() == 0 {
		f.Close()
		return
	}
	f.shutdownBoth()
	if f.unread() > 0 { // it came in between
		_ = f.disconnect()
	}
	f.Close()
}

// CloseResetLent is CloseReset of such a connection.
func (f FD) CloseResetLent() {
	if f < 0 {
		return
	}
	if f.disconnect() != 0 {
		f.shutdownBoth()
	}
	f.Close()
}
