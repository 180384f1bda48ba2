package supervise

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/holdfast-lb/holdfast/internal/sock"
)

// The first descriptor that a supervisor hands on, and the variables that tell of
// them (sd_listen_fds(3)).
const (
	firstFD  = 3
	pidEnv   = "LISTEN_PID"
	fdsEnv   = "LISTEN_FDS"
	namesEnv = "LISTEN_FDNAMES"
)

// handedMax bounds how many descriptors are taken: more than a process may have
// open is a mistake.
const handedMax = 1 << 20

// Listener is a listening socket that the supervisor handed on: from its store, or
// because one of its own units opened it. The FD is its holder's.
type Listener struct {
	Name string // as the supervisor calls it
	At   netip.AddrPort
	Dual bool // an unspecified IPv6 address that takes IPv4 as well
	FD   sock.FD
}

// Activated takes the listening sockets that this process was started with, in
// their order, and forgets the variables that tell of them: they are not for
// successors. What is no listening TCP socket, or listens where an earlier one does,
// is closed and told as a fault; with it come all others.
func Activated() (all []Listener, faults []error) {
	pid, fds, names := os.Getenv(pidEnv), os.Getenv(fdsEnv), os.Getenv(namesEnv)
	for _, name := range []string{pidEnv, fdsEnv, namesEnv} {
		_ = os.Unsetenv(name)
	}
	if pid == "" || pid != strconv.Itoa(os.Getpid()) {
		return nil, nil // they are somebody else's, who did not clear them
	}
	n, err := strconv.Atoi(fds)
	if err != nil || n < 0 || n > handedMax {
		return nil, []error{fmt.Errorf("supervise: %s=%q: not a number of descriptors", fdsEnv, fds)}
	}
	var called []string
	if names != "" {
		called = strings.Split(names, ":")
	}
	return take(firstFD, n, called)
}

// take takes n descriptors from first on.
func take(first, n int, called []string) (all []Listener, faults []error) {
	type place struct {
		at   netip.AddrPort
		dual bool
	}
	seen := map[place]bool{}
	for i := range n {
		l := Listener{Name: "unknown"} // as systemd calls what has no name
		if i < len(called) {
			l.Name = called[i]
		}
		var err error
		if l.FD, err = sock.Inherited(first + i); err == nil {
			if l.At, l.Dual, err = sock.InheritListener(l.FD); err == nil && seen[place{l.At, l.Dual}] {
				// From a socket unit and from the store, say: it is one socket.
				err = fmt.Errorf("supervise: %v comes twice", l.At)
			}
			if err != nil {
				l.FD.Close()
			}
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("supervise: %s: %w", l.Name, err))
			continue
		}
		seen[place{l.At, l.Dual}] = true
		all = append(all, l)
	}
	return all, faults
}
