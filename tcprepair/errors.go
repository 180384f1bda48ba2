package tcprepair

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrInvalid: a State, or its encoding, is none that Save can have made.
var ErrInvalid = errors.New("invalid state")

// ErrMoved: the socket is no longer in the saved state. A packet got past
// the diversion, or somebody used the socket.
var ErrMoved = errors.New("socket changed since it was saved")

// Unsupported says that a socket cannot be saved or restored as it is.
// The socket itself is untouched.
type Unsupported struct {
	What  string // the state or feature
	Why   string // for a person: why, and what to do instead
	Retry bool   // the socket may be movable a moment later
}

// Error describes the refusal.
func (e *Unsupported) Error() string { return "tcprepair: " + e.What + ": " + e.Why }

// NotPermitted says that this process cannot use repair mode at all.
type NotPermitted struct {
	Missing string // what the process or the kernel lacks
	Err     error  // the kernel's answer
}

// Error describes what is missing.
func (e *NotPermitted) Error() string {
	return fmt.Sprintf("tcprepair: TCP_REPAIR needs %s: %v", e.Missing, e.Err)
}

// Unwrap returns the kernel's error.
func (e *NotPermitted) Unwrap() error { return e.Err }

// prefixed puts the package's name before an error that does not bear it yet.
func prefixed(err error) error {
	if err == nil {
		return nil
	}
	var no *Unsupported
	var may *NotPermitted
	if errors.As(err, &no) || errors.As(err, &may) {
		return err
	}
	return fmt.Errorf("tcprepair: %w", err)
}

// Probe tells whether this process can save and restore sockets in its
// network namespace. Its error is a *NotPermitted that says what is missing.
func Probe() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	}
	if err != nil {
		return fmt.Errorf("tcprepair: socket: %w", err)
	}
	defer unix.Close(fd)
	return prefixed(setRepair(fd, unix.TCP_REPAIR_ON))
}

// refuse returns why a socket in state t cannot be saved, or nil.
func refuse(t TCPState) error {
	if t.movable() {
		return nil
	}
	e := &Unsupported{What: t.String()}
	switch t {
	case SynSent:
		e.Why = "nothing is exchanged yet: close it and dial again from the new host"
	case SynRecv, NewSynRecv:
		e.Why, e.Retry = "the handshake is under way: let it finish here", true
	case Listen:
		e.Why = "listeners are opened anew; accept what waits, then move those connections"
	case TimeWait, Closed:
		e.Why = "the connection is over or was reset: nothing is left to move"
	default:
		e.Why = "state not known"
	}
	return e
}
