package sock

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Notify sends one datagram with copies of the descriptors to the unix socket at
// path; one that begins with @ has no place among the files (unix(7)). millis bounds
// how long it waits for room in the queue of a receiver that is busy.
func Notify(path string, b []byte, millis int, fds ...FD) error {
	n, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("sock: socket for %s: %w", path, err)
	}
	fd := born(uintptr(n))
	defer fd.Close()
	if err := (Channel{fd}).SetTimeout(millis); err != nil {
		return err
	}
	var oob []byte
	if len(fds) > 0 {
		numbers := make([]int, len(fds))
		for i, f := range fds {
			numbers[i] = int(f)
		}
		oob = unix.UnixRights(numbers...)
	}
	for {
		err := unix.Sendmsg(n, b, oob, &unix.SockaddrUnix{Name: path}, unix.MSG_NOSIGNAL)
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return fmt.Errorf("sock: send to %s: %w", path, timeout(err))
		}
	}
}

// Inherited takes the descriptor number, which this process was started with: it is
// not for children of ours, until one is meant to have it.
func Inherited(number int) (FD, error) {
	if _, err := unix.FcntlInt(uintptr(number), unix.F_GETFD, 0); err != nil {
		return NoFD, fmt.Errorf("sock: descriptor %d: %w", number, err)
	}
	unix.CloseOnExec(number)
	return born(uintptr(number)), nil
}

// InheritListener makes a listening socket that another program opened as
// [Listen] would have made it, but for its buffers and the size of its segments.
// It gives where it listens, and whether an unspecified IPv6 address takes IPv4 as
// well. What is no listening TCP socket is refused and left as it was.
func InheritListener(fd FD) (at netip.AddrPort, dual bool, err error) {
	for _, want := range []struct {
		opt, value int
		what       string
	}{
		{unix.SO_TYPE, unix.SOCK_STREAM, "no stream socket"},
		{unix.SO_PROTOCOL, unix.IPPROTO_TCP, "not plain TCP"}, // nor MPTCP, see Listen
		{unix.SO_ACCEPTCONN, 1, "not listening"},
	} {
		got, e := getInt(fd, unix.SOL_SOCKET, want.opt)
		if e != 0 {
			return at, false, fmt.Errorf("sock: fd %d: %w", fd, e)
		}
		if got != want.value {
			return at, false, fmt.Errorf("sock: fd %d: %s", fd, want.what)
		}
	}
	at = LocalAddr(fd)
	if !at.IsValid() {
		return at, false, fmt.Errorf("sock: fd %d: no address", fd)
	}
	if family, e := getInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); e == 0 && family == unix.AF_INET6 && at.Addr().IsUnspecified() {
		only, e := getInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		dual = e == 0 && only == 0
	}
	if err := unix.SetNonblock(int(fd), true); err != nil {
		return at, false, fmt.Errorf("sock: listener %v: %w", at, err)
	}
	e := setInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if e == 0 {
		e = setInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
	}
	if e != 0 {
		return at, false, fmt.Errorf("sock: options of listener %v: %w", at, e)
	}
	return at, dual, nil
}

// pidfsMagic is PIDFS_MAGIC of include/uapi/linux/magic.h.
const pidfsMagic = 0x50494446

// ProcessID is the number of a process that no other one ever has: the inode of its
// pidfd. Before Linux 6.9 there is none.
func ProcessID(pid int) (id uint64, ok bool) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, false
	}
	f := born(uintptr(fd))
	defer f.Close()
	var fs unix.Statfs_t
	var s unix.Stat_t
	if unix.Fstatfs(fd, &fs) != nil || fs.Type != pidfsMagic || unix.Fstat(fd, &s) != nil {
		return 0, false
	}
	return s.Ino, true
}
