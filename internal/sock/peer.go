package sock

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// PeerUser gives the user who opened the other end of c, as the kernel noted it
// then.
func PeerUser(c *net.UnixConn) (uid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("sock: peer's credentials: %w", err)
	}
	var who *unix.Ucred
	var asked error
	if err := raw.Control(func(fd uintptr) {
		who, asked = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		asked = err
	}
	if asked != nil {
		return 0, fmt.Errorf("sock: peer's credentials: %w", asked)
	}
	return int(who.Uid), nil
}
