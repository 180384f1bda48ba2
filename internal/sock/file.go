package sock

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// OpenAppend opens a file to append to, and makes it. Each write goes to the
// end as it is then, so several processes may write whole lines. Opening never
// waits, as it would for the reader of a FIFO: one that nobody reads is an error.
func OpenAppend(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NONBLOCK, 0o640)
}

// Lock opens a file, makes it with mode 0600, and locks it for this process
// until it is closed (flock(2): the kernel lets go when the process ends, however
// that is). ok is false if another process has it.
func Lock(path string) (f *os.File, ok bool, err error) {
	f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, false, errors.Join(err, f.Close())
	}
	var locked error
	err = raw.Control(func(fd uintptr) {
		for {
			if locked = unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(locked, unix.EINTR) {
				return
			}
		}
	})
	switch {
	case err != nil:
		return nil, false, errors.Join(err, f.Close())
	case errors.Is(locked, unix.EWOULDBLOCK):
		return nil, false, f.Close()
	case locked != nil:
		return nil, false, errors.Join(fmt.Errorf("sock: flock %s: %w", path, locked), f.Close())
	}
	return f, true, nil
}
