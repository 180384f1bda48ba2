package sock

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// FD is an open file descriptor; who holds the value owns it and closes it
// exactly once. Negative values own nothing. It is a plain number, so that
// tables of flows stay free of pointers.
type FD int32

// NoFD owns nothing.
const NoFD FD = -1

// Errno is the kernel's error number; 0 is success.
type Errno = syscall.Errno

// The error numbers that code above this package decides by.
const (
	Again       = unix.EAGAIN
	InProgress  = unix.EINPROGRESS
	Interrupted = unix.EINTR
	Invalid     = unix.EINVAL
	ManyFiles   = unix.EMFILE
	ManyFilesIn = unix.ENFILE
	NoBuffers   = unix.ENOBUFS
	NoMemory    = unix.ENOMEM
	Reset       = unix.ECONNRESET
	Refused     = unix.ECONNREFUSED
	Aborted     = unix.ECONNABORTED
	TimedOut    = unix.ETIMEDOUT
	BrokenPipe  = unix.EPIPE
	NoPort      = unix.EADDRNOTAVAIL // of connect: each is in use towards that address
	NoAddress   = unix.ENONET        // [Dial]: the address to dial from is not here, EADDRNOTAVAIL of bind
	Unreachable = unix.EHOSTUNREACH
	NoEntry     = unix.ENOENT
	NotOpen     = unix.EBADF // of a descriptor
)

// made counts descriptors born here minus those closed or disowned; tests
// compare it before and after to find a leak. Off the hot path it is exact,
// and an uncontended atomic costs a nanosecond beside a system call.
var made atomic.Int64

// Open tells how many descriptors made by this package are still owned.
func Open() int64 { return made.Load() }

func born(fd uintptr) FD {
	made.Add(1)
	return FD(fd)
}

func gone() { made.Add(-1) }

// Close gives the descriptor back. Linux frees the number even when close
// reports an error, so it is never called twice.
func (f FD) Close() {
	if f < 0 {
		return
	}
	gone()
	_, _, _ = syscall.RawSyscall(unix.SYS_CLOSE, uintptr(f), 0, 0)
}

// Own takes a descriptor that something else made (an inherited one, one from
// a library). From now on the FD owns it.
func Own(fd int) FD { return born(uintptr(fd)) }

// Dup returns a descriptor of our own for the open file of one that is somebody
// else's.
func Dup(fd int) (FD, error) { return FD(fd).Dup() }

// StreamPair makes two connected non-blocking stream sockets.
func StreamPair() (a, b FD, err error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return NoFD, NoFD, fmt.Errorf("sock: socketpair: %w", err)
	}
	return born(uintptr(p[0])), born(uintptr(p[1])), nil
}

// Disown lets go of the descriptor without closing it: the caller says, in a
// comment beside the call, who owns it from now on.
func (f FD) Disown() int {
	gone()
	return int(f)
}

// Dup returns a second descriptor of the same open file, close-on-exec.
func (f FD) Dup() (FD, error) {
	n, _, e := syscall.RawSyscall(unix.SYS_FCNTL, uintptr(f), unix.F_DUPFD_CLOEXEC, 0)
	if e != 0 {
		return NoFD, fmt.Errorf("sock: dup of fd %d: %w", f, e)
	}
	return born(n), nil
}

// Shutdown closes the sending half: the peer reads end of file after what was
// sent. An error is not reported: a leg that is already gone tells so by its
// next read.
func (f FD) Shutdown() {
	_, _, _ = syscall.RawSyscall(unix.SYS_SHUTDOWN, uintptr(f), unix.SHUT_WR, 0)
}

// linger is struct linger of include/linux/socket.h.
type linger struct{ onoff, seconds int32 }

// CloseReset closes a TCP socket so that its peer gets RST: lingering for zero
// seconds makes close discard the queues (net/ipv4/tcp.c, __tcp_close).
func (f FD) CloseReset() {
	if f < 0 {
		return
	}
	l := linger{1, 0}
	_, _, _ = syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(f), unix.SOL_SOCKET, unix.SO_LINGER,
		uintptr(unsafe.Pointer(&l)), unsafe.Sizeof(l), 0)
	f.Close()
}

// Recv reads into b without waiting. 0 octets and no error is end of file.
func Recv(f FD, b []byte) (int, Errno) {
	for {
		n, _, e := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(f), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
		if e != Interrupted {
			if e != 0 {
				return 0, e
			}
			return int(n), 0
		}
	}
}

// Send writes from b without waiting and without SIGPIPE. It may take part of b.
func Send(f FD, b []byte) (int, Errno) {
	for {
		n, _, e := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(f), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT, 0, 0)
		if e != Interrupted {
			if e != 0 {
				return 0, e
			}
			return int(n), 0
		}
	}
}

// Read reads from a file that is not a socket (a pipe) without waiting; the
// descriptor must be non-blocking.
func Read(f FD, b []byte) (int, Errno) {
	n, _, e := syscall.RawSyscall(unix.SYS_READ, uintptr(f), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if e != 0 {
		return 0, e
	}
	return int(n), 0
}

// Splice moves up to n octets from one descriptor to another inside the
// kernel; one of the two is a pipe. It never waits. 0 octets and no error is
// end of file of the source.
func Splice(from, to FD, n int) (int, Errno) {
	const flags = unix.SPLICE_F_MOVE | unix.SPLICE_F_NONBLOCK
	k, _, e := syscall.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), flags)
	if e != 0 {
		return 0, e
	}
	return int(k), 0
}

// Pipe returns a non-blocking pipe that holds up to size octets.
func Pipe(size int) (r, w FD, err error) {
	var p [2]int32
	_, _, e := syscall.RawSyscall(unix.SYS_PIPE2, uintptr(unsafe.Pointer(&p)), unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if e != 0 {
		return NoFD, NoFD, fmt.Errorf("sock: pipe2: %w", e)
	}
	r, w = born(uintptr(p[0])), born(uintptr(p[1]))
	// Beyond fs.pipe-user-pages-soft an unprivileged user keeps the default
	// size (fs/pipe.c, pipe_set_size); a smaller pipe only means more turns.
	_, _, _ = syscall.RawSyscall(unix.SYS_FCNTL, uintptr(p[0]), unix.F_SETPIPE_SZ, uintptr(size))
	return r, w, nil
}

// clock is a moment on both clocks: the kernel's, read by a system call, and
// the runtime's, which reads the same one through the vDSO but only tells
// differences.
var clock = func() (c struct {
	kernel int64
	at     time.Time
}) {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail for this clock
	c.kernel, c.at = ts.Nano(), time.Now()
	return c
}()

// Monotonic reads CLOCK_MONOTONIC in nanoseconds, without a system call. All
// processes of a host share the clock, though no frozen form relies on that.
func Monotonic() int64 { return clock.kernel + int64(time.Since(clock.at)) }

// Umask sets the mask of new files' modes and returns the old one. It holds
// for the whole process, so it is for the moment of start only.
func Umask(mask int) int { return unix.Umask(mask) }
