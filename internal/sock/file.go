package sock

import (
	"os"

	"golang.org/x/sys/unix"
)

// OpenAppend opens a file to append to, and makes it. Each write goes to the
// end as it is then, so several processes may write whole lines. Opening never
// waits, as it would for the reader of a FIFO: one that nobody reads is an error.
func OpenAppend(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NONBLOCK, 0o640)
}
