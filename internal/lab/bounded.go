package lab

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// bounded gives a dialer's Control that bounds the receive buffer before the
// connect, for the window scale depends on it; nil for 0.
func bounded(octets int) func(network, address string, c syscall.RawConn) error {
	if octets == 0 {
		return nil
	}
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, octets)
		}); e != nil {
			return e
		}
		return err
	}
}
