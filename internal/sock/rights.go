package sock

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// RightsMax is how many descriptors fit into one message: SCM_MAX_FD of
// include/net/scm.h.
const RightsMax = 253

// Channel is one end of a unix SOCK_SEQPACKET pair: messages keep their
// bounds, carry descriptors, and the kernel tells when the other end is dead.
// Calls on it may wait; it is never used on a loop's thread.
type Channel struct{ fd FD }

// MessageMax bounds one message. A seqpacket message lies in one buffer of the
// kernel, so it must fit net.core.wmem_max's default of 212,992 octets; larger
// things are cut by who sends them.
const MessageMax = 160 << 10

// ChannelPair makes two connected ends.
func ChannelPair() (a, b Channel, err error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Channel{NoFD}, Channel{NoFD}, fmt.Errorf("sock: socketpair: %w", err)
	}
	return Channel{born(uintptr(p[0]))}, Channel{born(uintptr(p[1]))}, nil
}

// ChannelFrom takes an inherited descriptor.
func ChannelFrom(fd FD) Channel { return Channel{fd} }

// FD is the channel's descriptor; the channel keeps owning it.
func (c Channel) FD() FD { return c.fd }

// Close ends the channel; the other side reads io.EOF.
func (c Channel) Close() error { c.fd.Close(); return nil }

// SetTimeout bounds each later Send and Receive; 0 is for ever. The unit is
// milliseconds.
func (c Channel) SetTimeout(millis int) error {
	tv := unix.Timeval{Sec: int64(millis / 1000), Usec: int64(millis % 1000 * 1000)}
	return errors.Join(unix.SetsockoptTimeval(int(c.fd), unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv),
		unix.SetsockoptTimeval(int(c.fd), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
}

// Send sends one message with copies of the descriptors; the caller keeps
// owning its own. The parts follow each other without a seam. They must not be empty and
// not exceed [MessageMax] together.
func (c Channel) Send(fds []FD, parts ...[]byte) error {
	size := 0
	for _, b := range parts {
		size += len(b)
	}
	if size == 0 || size > MessageMax || len(fds) > RightsMax {
		return fmt.Errorf("sock: message of %d octets (max %d) with %d descriptors (max %d)", size, MessageMax, len(fds), RightsMax)
	}
	var oob []byte
	if len(fds) > 0 {
		n := make([]int, len(fds))
		for i, f := range fds {
			n[i] = int(f)
		}
		oob = unix.UnixRights(n...)
	}
	for {
		_, err := unix.SendmsgBuffers(int(c.fd), parts, oob, nil, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			if err != nil {
				return fmt.Errorf("sock: send %d octets, %d descriptors: %w", size, len(fds), timeout(err))
			}
			return nil
		}
	}
}

// Receive waits for one message. The descriptors in it, close-on-exec, are the
// caller's. io.EOF means that the other end is closed or its process is dead.
func (c Channel) Receive(buf []byte) (n int, fds []FD, err error) {
	oob := make([]byte, unix.CmsgSpace(RightsMax*4))
	var on, flags int
	for {
		n, on, flags, _, err = unix.Recvmsg(int(c.fd), buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		if err == unix.ECONNRESET { // it died with messages of ours unread
			return 0, nil, io.EOF
		}
		return 0, nil, fmt.Errorf("sock: receive: %w", timeout(err))
	}
	cms, perr := unix.ParseSocketControlMessage(oob[:on])
	for i := range cms {
		got, e := unix.ParseUnixRights(&cms[i])
		if e != nil {
			continue // credentials or the like: not ours
		}
		for _, f := range got {
			fds = append(fds, born(uintptr(f)))
		}
	}
	if flags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) != 0 || perr != nil {
		for _, f := range fds {
			f.Close()
		}
		return 0, nil, fmt.Errorf("sock: message cut short (flags %#x)", flags)
	}
	if n == 0 && len(fds) == 0 {
		return 0, nil, io.EOF
	}
	return n, fds, nil
}

func timeout(err error) error {
	if errors.Is(err, unix.EAGAIN) {
		return os.ErrDeadlineExceeded
	}
	return err
}
