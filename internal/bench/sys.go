package bench

import (
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The load generator and the backend run alone in their process, one
// goroutine without garbage. A raw call that blocks therefore blocks nobody,
// and spares the two scheduler transitions of an ordinary one.

// loopback is 127.0.0.1 in network order.
var loopback = [4]byte{127, 0, 0, 1}

// evConn is the event mask of a connection: edge-triggered, so that one
// epoll_ctl lasts for the life of the connection.
const evConn = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET

// sockaddr is struct sockaddr_in of 127.0.0.1:port.
func sockaddr(port int) unix.RawSockaddrInet4 {
	return unix.RawSockaddrInet4{
		Family: unix.AF_INET,
		Port:   uint16(port>>8) | uint16(port&0xff)<<8,
		Addr:   loopback,
	}
}

// listen opens a non-blocking listening socket on 127.0.0.1:port.
// TCP_NODELAY is inherited by what is accepted from it.
func listen(port int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("bench: socket: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: loopback}); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("bench: bind 127.0.0.1:%d: %w", port, err)
	}
	if err := unix.Listen(fd, 4096); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("bench: listen 127.0.0.1:%d: %w", port, err)
	}
	return fd, nil
}

// connect begins a connection to sa. On loopback the handshake is over when
// the call returns, although it says EINPROGRESS: the caller may send at once
// and treat EAGAIN as "not yet".
func connect(sa *unix.RawSockaddrInet4) (int, error) {
	r, _, e := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if e != 0 {
		return -1, fmt.Errorf("bench: socket: %w", e)
	}
	_, _, e = unix.RawSyscall(unix.SYS_CONNECT, r, uintptr(unsafe.Pointer(sa)), unix.SizeofSockaddrInet4)
	if e != 0 && e != unix.EINPROGRESS {
		_ = unix.Close(int(r))
		return -1, fmt.Errorf("bench: connect: %w", e)
	}
	return int(r), nil
}

func accept(fd int) (int, unix.Errno) {
	r, _, e := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	return int(r), e
}

func recv(fd int, b []byte) (int, unix.Errno) {
	r, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, 0, 0)
	return int(r), e
}

// discard receives and drops up to n octets without copying them.
// man 7 tcp: MSG_TRUNC discards what was received.
func discard(fd, n int) (int, unix.Errno) {
	r, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), 0, uintptr(n), unix.MSG_TRUNC, 0, 0)
	return int(r), e
}

func send(fd int, b []byte) (int, unix.Errno) {
	r, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
	return int(r), e
}

func closeFD(fd int) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

func shutdownWrite(fd int) {
	_, _, _ = unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
}

// poller is an epoll instance and room for the events of one wait.
type poller struct {
	fd     int
	events [256]unix.EpollEvent
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("bench: epoll_create1: %w", err)
	}
	return &poller{fd: fd}, nil
}

func (p *poller) add(fd int, mask uint32) { p.ctl(unix.EPOLL_CTL_ADD, fd, mask) }
func (p *poller) mod(fd int, mask uint32) { p.ctl(unix.EPOLL_CTL_MOD, fd, mask) }

// ctl cannot fail for a descriptor that is open and known; if it does, the
// generator is wrong and its figures are worthless.
func (p *poller) ctl(op, fd int, mask uint32) {
	ev := unix.EpollEvent{Events: mask, Fd: int32(fd)}
	_, _, e := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(p.fd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
	if e != 0 {
		panic(fmt.Sprintf("bench: epoll_ctl(%d, %d): %v", op, fd, e))
	}
}

// wait returns the ready events; they are valid until the next wait. A
// negative timeout waits for ever.
func (p *poller) wait(timeoutMillis int) []unix.EpollEvent {
	n, _, e := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd), uintptr(unsafe.Pointer(&p.events[0])), uintptr(len(p.events)), uintptr(timeoutMillis), 0, 0)
	if e != 0 { // EINTR: nothing is ready as far as we know
		return nil
	}
	return p.events[:n]
}

// clockOf is the id of the CPU clock of a whole process, its threads past and
// present included, in nanoseconds.
// include/linux/posix-timers_types.h: MAKE_PROCESS_CPUCLOCK, CPUCLOCK_SCHED.
func clockOf(pid int) int32 { return int32(^pid)<<3 | 2 }

// cpuTime sums the CPU time that the processes have used so far. It is exact
// to the nanosecond where utime and stime of /proc/PID/stat tick in 10 ms.
func cpuTime(pids []int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		var ts unix.Timespec
		if err := unix.ClockGettime(clockOf(pid), &ts); err != nil {
			return 0, fmt.Errorf("bench: CPU clock of process %d: %w", pid, err)
		}
		sum += time.Duration(ts.Nano())
	}
	return sum, nil
}

// pin binds the calling thread, and what it starts, to cpus.
func pin(cpus ...int) error {
	var set unix.CPUSet
	for _, c := range cpus {
		set.Set(c)
	}
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("bench: sched_setaffinity %v: %w", cpus, err)
	}
	return nil
}
