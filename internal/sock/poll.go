package sock

import (
	"encoding/binary"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Ready is a set of conditions a descriptor can have or be watched for
// (include/uapi/linux/eventpoll.h).
type Ready uint32

// The conditions. Error and Hangup are always reported.
const (
	Readable  Ready = unix.EPOLLIN
	Writable  Ready = unix.EPOLLOUT
	PeerShut  Ready = unix.EPOLLRDHUP // the peer has sent FIN
	Failed    Ready = unix.EPOLLERR
	Hangup    Ready = unix.EPOLLHUP
	Urgent    Ready = unix.EPOLLPRI // octets marked urgent are in the queue (RFC 9293, section 3.8.5)
	edge      Ready = 1 << 31       // EPOLLET
	exclusive Ready = 1 << 28       // EPOLLEXCLUSIVE: wake one of many waiters
)

// PollEvent is struct epoll_event, whose layout differs between machines
// (packed on x86-64): x/sys knows it.
type PollEvent unix.EpollEvent

// Data is the number that was given to Watch.
func (e *PollEvent) Data() uint64 { return uint64(uint32(e.Pad))<<32 | uint64(uint32(e.Fd)) }

// Ready is what happened.
func (e *PollEvent) Ready() Ready { return Ready(e.Events) }

// Poller is an epoll instance.
type Poller struct{ fd FD }

// NewPoller makes an epoll instance.
func NewPoller() (Poller, error) {
	n, _, e := syscall.RawSyscall(unix.SYS_EPOLL_CREATE1, unix.EPOLL_CLOEXEC, 0, 0)
	if e != 0 {
		return Poller{NoFD}, fmt.Errorf("sock: epoll_create1: %w", e)
	}
	return Poller{born(n)}, nil
}

// Close gives the epoll instance back; what it watched is not closed.
func (p Poller) Close() { p.fd.Close() }

func (p Poller) ctl(op int, fd FD, r Ready, data uint64) Errno {
	ev := PollEvent{Events: uint32(r), Fd: int32(uint32(data)), Pad: int32(uint32(data >> 32))}
	_, _, e := syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(p.fd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
	return e
}

// Watch reports each change to readiness of fd (edge-triggered), beginning
// with what it is now. data comes back with each event.
func (p Poller) Watch(fd FD, r Ready, data uint64) Errno {
	return p.ctl(unix.EPOLL_CTL_ADD, fd, r|edge, data)
}

// Rewatch changes what Watch asked for, and reports again what is ready now.
func (p Poller) Rewatch(fd FD, r Ready, data uint64) Errno {
	return p.ctl(unix.EPOLL_CTL_MOD, fd, r|edge, data)
}

// WatchShared watches a listening socket that other loops watch as well: one
// of them wakes (EPOLLEXCLUSIVE), and it is told as long as a connection waits.
func (p Poller) WatchShared(fd FD, data uint64) Errno {
	return p.ctl(unix.EPOLL_CTL_ADD, fd, Readable|exclusive, data)
}

// WatchLevel reports fd as long as it is readable.
func (p Poller) WatchLevel(fd FD, data uint64) Errno {
	return p.ctl(unix.EPOLL_CTL_ADD, fd, Readable, data)
}

// Unwatch forgets fd. It must come before the descriptor is handed to another
// process: closing our copy would not remove it, for epoll watches the open
// file, not the number (epoll(7)).
func (p Poller) Unwatch(fd FD) Errno { return p.ctl(unix.EPOLL_CTL_DEL, fd, 0, 0) }

// Wait fills ev and tells how many it filled. A timeout of 0 looks and does
// not wait, a negative one waits for ever; the unit is milliseconds.
func (p Poller) Wait(ev []PollEvent, timeoutMillis int) int {
	var n uintptr
	var e Errno
	if timeoutMillis == 0 {
		n, _, e = syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd), uintptr(unsafe.Pointer(unsafe.SliceData(ev))), uintptr(len(ev)), 0, 0, 0)
	} else {
		n, _, e = syscall.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd), uintptr(unsafe.Pointer(unsafe.SliceData(ev))), uintptr(len(ev)), uintptr(timeoutMillis), 0, 0)
	}
	if e != 0 {
		return 0 // EINTR: the caller comes round again anyway
	}
	return int(n)
}

// Bell wakes a poller from another thread (eventfd).
type Bell struct{ fd FD }

// NewBell makes a bell.
func NewBell() (Bell, error) {
	n, _, e := syscall.RawSyscall(unix.SYS_EVENTFD2, 0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC, 0)
	if e != 0 {
		return Bell{NoFD}, fmt.Errorf("sock: eventfd2: %w", e)
	}
	return Bell{born(n)}, nil
}

// FD is the descriptor to watch; the bell keeps owning it.
func (b Bell) FD() FD { return b.fd }

// Ring makes the bell readable.
func (b Bell) Ring() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _, _ = syscall.RawSyscall(unix.SYS_WRITE, uintptr(b.fd), uintptr(unsafe.Pointer(&one)), 8)
}

// Quiet makes the bell unreadable until it is rung again.
func (b Bell) Quiet() {
	var n [8]byte
	_, _, _ = syscall.RawSyscall(unix.SYS_READ, uintptr(b.fd), uintptr(unsafe.Pointer(&n)), 8)
}

// Close gives the bell back.
func (b Bell) Close() { b.fd.Close() }
