package tcprepair

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A process that owns connections need not be privileged. Few acts need
// CAP_NET_ADMIN: to enter and to leave repair mode, and to make a socket
// with buffers, a mark or an address that are not everybody's. A helper does
// these for it, with descriptors passed over a unix socket: SetRepair and
// SocketSpec.Open are the helper's whole part, Toggle and RestoreOn the
// owner's.

// Modes of TCP_REPAIR (include/uapi/linux/tcp.h).
const (
	RepairOff        = 0  // TCP_REPAIR_OFF: in ESTABLISHED, the peer's window is probed
	RepairOn         = 1  // TCP_REPAIR_ON
	RepairOffNoProbe = -1 // TCP_REPAIR_OFF_NO_WP, since Linux 4.19
)

// Toggle sets the repair mode of sockets, each to its own of modes, all of them in
// spite of errors, for an owner that may not. errs is nil, or has one for each
// socket, nil where nothing went wrong. SetRepair is one.
type Toggle func(fds, modes []int) (errs []error)

// SetRepair sets the repair mode of sockets by this process's own privilege.
func SetRepair(fds, modes []int) (errs []error) {
	for i, fd := range fds {
		if err := setRepair(fd, modes[i]); err != nil {
			if errs == nil {
				errs = make([]error, len(fds))
			}
			errs[i] = prefixed(err)
		}
	}
	return errs
}

// EnterRepair puts sockets into repair mode with one call of t; nil is SetRepair.
func EnterRepair(fds []int, t Toggle) (errs []error) {
	modes := make([]int, len(fds))
	for i := range modes {
		modes[i] = RepairOn
	}
	if t == nil {
		t = SetRepair
	}
	return t(fds, modes)
}

// InRepair tells whether a socket is in repair mode: who had it done by another process,
// and has no answer, has to ask.
func InRepair(fd int) bool {
	on, err := getInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, "TCP_REPAIR")
	return err == nil && on != 0
}

// SocketSpec says how to make the socket on which a State is restored: what
// of it takes privilege, or must come first. It holds nothing of the
// connection's octets.
type SocketSpec struct {
	Local netip.AddrPort
	// RecvBuffer and SendBuffer are octets of memory, as in State.
	RecvBuffer, SendBuffer uint32
	Transparent            bool   // see Options
	Congestion             string // as in State; some algorithms are not for everybody
	Mark                   uint32 // as in State
}

// Spec returns what socket RestoreOn needs for s.
func (s *State) Spec(o Options) SocketSpec {
	recv, send := s.room()
	return SocketSpec{Local: s.Local, RecvBuffer: recv, SendBuffer: send, Transparent: o.Transparent,
		Congestion: s.Congestion, Mark: s.Mark}
}

// check refuses what a helper should not do for anybody.
func (p *SocketSpec) check() error {
	a := p.Local.Addr()
	if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || p.Local.Port() == 0 ||
		p.RecvBuffer > bufferMax || p.SendBuffer > bufferMax || len(p.Congestion) > maxCongestionName {
		return fmt.Errorf("tcprepair: socket %+v: %w", *p, ErrInvalid)
	}
	return checkCongestion(p.Congestion)
}

// Open makes the socket: nonblocking, close-on-exec, with buffers of at least
// the given sizes, in repair mode and bound. Closing it is silent.
func (p *SocketSpec) Open() (fd int, err error) {
	if err := p.check(); err != nil {
		return -1, err
	}
	fd, _, err = p.open()
	return fd, err
}

func (p *SocketSpec) open() (fd int, has buffers, err error) {
	domain := unix.AF_INET
	if p.Local.Addr().Is6() {
		domain = unix.AF_INET6
	}
	fd, err = unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
	if err != nil {
		return -1, has, fmt.Errorf("tcprepair: socket: %w", err)
	}
	if has, err = p.prepare(fd); err != nil {
		_ = unix.Close(fd) // not connected: nothing is sent
		return -1, has, prefixed(err)
	}
	return fd, has, nil
}

func (p *SocketSpec) prepare(fd int) (has buffers, err error) {
	if p.Transparent {
		level, opt, name := unix.SOL_IP, unix.IP_TRANSPARENT, "IP_TRANSPARENT"
		if p.Local.Addr().Is6() {
			level, opt, name = unix.SOL_IPV6, unix.IPV6_TRANSPARENT, "IPV6_TRANSPARENT"
		}
		if err := setInt(fd, level, opt, 1, name); err != nil {
			return has, err
		}
	}
	if p.Mark != 0 {
		if err := setInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(int32(p.Mark)), "SO_MARK"); err != nil {
			return has, err
		}
	}
	if p.Congestion != "" {
		// A host without this algorithm uses its default; the stream is the
		// same, only its pace differs.
		var b [maxCongestionName]byte
		_ = setBytes(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, b[:copy(b[:], p.Congestion)], "TCP_CONGESTION")
	}
	if has, err = grow(fd, p.RecvBuffer, p.SendBuffer); err != nil {
		return has, err
	}
	if err := setRepair(fd, RepairOn); err != nil {
		return has, err
	}
	return has, bind(fd, p.Local)
}

// Socket is one of several sockets that go live or are resumed together.
type Socket struct {
	FD    int
	State *State // what it was restored from; not needed to resume
	Rest  []byte // set by GoLiveAll, see GoLive
	Err   error  // set to what went wrong with this one
	mode  int    // how it leaves repair mode
}

// GoLiveAll is GoLive for several sockets, with repair mode ended by one call
// of t for all of them; nil is SetRepair. Each has its own outcome.
func GoLiveAll(sockets []Socket, t Toggle) {
	for i := range sockets {
		sockets[i].Err = nil
		sockets[i].mode = sockets[i].State.liveMode()
	}
	t.leave(sockets)
	for i := range sockets {
		x := &sockets[i]
		if x.Rest = x.State.unsent(); x.Err == nil {
			x.Rest, x.Err = x.State.start(x.FD)
		}
	}
}

// ResumeAll is Resume for several sockets, with repair mode ended by one call
// of t for all of them; nil is SetRepair. Each has its own outcome.
func ResumeAll(sockets []Socket, t Toggle) {
	for i := range sockets {
		x := &sockets[i]
		x.mode, x.Err = RepairOff, prefixed(openWindow(x.FD))
	}
	t.leave(sockets)
	for i := range sockets {
		x := &sockets[i]
		if x.Err == nil {
			x.Err = prefixed(reuse(x.FD))
		}
		if x.Err == nil {
			x.Err = prefixed(push(x.FD))
		}
	}
}

// leave ends repair mode for the sockets without an error, in the way that each
// wants.
func (t Toggle) leave(sockets []Socket) {
	if t == nil { // allocates nothing
		for i := range sockets {
			if x := &sockets[i]; x.Err == nil {
				x.Err = prefixed(setRepair(x.FD, x.mode))
			}
		}
		return
	}
	var fds, modes, which []int
	for i := range sockets {
		if x := &sockets[i]; x.Err == nil {
			fds, modes, which = append(fds, x.FD), append(modes, x.mode), append(which, i)
		}
	}
	if len(fds) == 0 {
		return
	}
	for i, err := range t(fds, modes) {
		sockets[which[i]].Err = err
	}
}
