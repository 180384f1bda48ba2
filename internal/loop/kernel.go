package loop

import (
	"net/netip"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// Kernel is all that a loop asks of the world: the clock, readiness, and the
// calls on descriptors. There are two: epoll.go, and the simulated one of
// package sim. Every call but Wait returns at once. A Kernel belongs to one
// loop; only Wake may be called from elsewhere.
type Kernel interface {
	// Now reads the monotonic clock.
	Now() flow.Instant
	// Epoch is when that clock was 0, in nanoseconds of the Unix epoch; it
	// changes when somebody sets the clock of the wall.
	Epoch() flow.Instant
	// Wait fills ev with what has happened and tells how many. It waits up to
	// d, for ever if d is negative, not at all if it is 0; Wake ends the wait.
	Wait(ev []sock.PollEvent, d time.Duration) int
	// Wake ends the Wait of the moment, or the next one.
	Wake()

	// Watch reports changes of readiness of fd, edge-triggered; see sock.Poller.
	Watch(fd sock.FD, r sock.Ready, data uint64) sock.Errno
	Rewatch(fd sock.FD, r sock.Ready, data uint64) sock.Errno
	// WatchShared reports a listener as long as connections wait, to one loop.
	WatchShared(fd sock.FD, data uint64) sock.Errno
	Unwatch(fd sock.FD) sock.Errno

	// Accept takes a connection and tells who opened it.
	Accept(listener sock.FD) (sock.FD, netip.AddrPort, sock.Errno)
	Recv(fd sock.FD, b []byte) (int, sock.Errno)
	// Peek tells whether Recv would find octets, the end (0), or nothing yet
	// (sock.Again), and takes nothing.
	Peek(fd sock.FD) (int, sock.Errno)
	Send(fd sock.FD, b []byte) (int, sock.Errno)
	Splice(from, to sock.FD, n int) (int, sock.Errno)
	Pipe(size int) (r, w sock.FD, err error)
	ReadPipe(fd sock.FD, b []byte) (int, sock.Errno)
	Dial(s *sock.DialSpec) (fd sock.FD, pending bool, e sock.Errno)
	DialResult(fd sock.FD) sock.Errno
	NoDelay(fd sock.FD)
	Enliven(fd sock.FD, life sock.Life)
	// Threshold makes fd readable only from so many octets on. A kernel may
	// report it earlier.
	Threshold(fd sock.FD, octets int)
	Vanished(fd sock.FD, silence time.Duration) bool
	// Sent tells how long ago octets of fd went out to its peer, if that is known.
	Sent(fd sock.FD) (ago time.Duration, ok bool)
	Shutdown(fd sock.FD)
	Close(fd sock.FD)
	CloseReset(fd sock.FD)

	// Cookie names a socket, by whatever descriptor and in whatever process.
	Cookie(fd sock.FD) (uint64, error)
	// CloseLent and CloseResetLent are Close and CloseReset of a socket of which
	// another process has a descriptor: the peer hears at once what it would hear if
	// there were none. fd is not watched any more.
	CloseLent(fd sock.FD)
	CloseResetLent(fd sock.FD)
}
