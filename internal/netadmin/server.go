package netadmin

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-lb/holdfast/tcprepair"
)

// Server is the privileged process's side: it does for clients, over a unix
// socket, what an Admin can, and what of package tcprepair takes privilege. It
// does it for the addresses that may move and for nothing else.
type Server struct {
	Admin   *Admin
	Allowed func() []netip.Prefix // see NewServer
	UID     int
	// HeldTime is how long what is held waits for another client after the last one
	// died, Forsaken how long everything else does; 0 is 5 s and 10 min.
	HeldTime, ForsakenTime time.Duration
	// LeftTime is how long it waits for another client after the last one has said
	// that it goes; 0 is ForsakenTime.
	LeftTime time.Duration
	// Log may be nil.
	Log *slog.Logger

	mu       sync.Mutex
	sessions map[string]*session
	died     *time.Timer // when the last session died: drops what is held
	forsaken chan struct{}
	lonely   *time.Timer
	widowed  bool               // the last session that asked for something died, and nobody has come in its place
	allowed  map[netip.Addr]int // bits of the network's prefix
	asked    time.Time
	closing  bool
	conns    map[*net.UnixConn]bool
	serving  sync.WaitGroup
}

// session is one client: a process, with one connection or more.
type session struct {
	conns int
	left  bool // it has said that it goes
	asked bool // for anything else
}

// connsMax bounds the connections of all clients: a process and its successor
// have a few each.
const connsMax = 64

// NewServer makes a server of a, for processes of this one's user, of root, and of
// the user uid. allowed gives the addresses that may move, with the prefixes of their
// networks: it is asked again, at most once a second, when a client asks for another
// one, for the file may have changed.
func NewServer(a *Admin, uid int, allowed func() []netip.Prefix, log *slog.Logger) *Server {
	return &Server{Admin: a, UID: uid, Allowed: allowed, Log: log, forsaken: make(chan struct{})}
}

// Serve serves until l is closed, or [Server.Close]. It returns when the last
// request has been answered.
func (s *Server) Serve(l *net.UnixListener) error {
	s.mu.Lock()
	s.sessions, s.conns = map[string]*session{}, map[*net.UnixConn]bool{}
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	if s.HeldTime == 0 {
		s.HeldTime = 5 * time.Second
	}
	if s.ForsakenTime == 0 {
		s.ForsakenTime = 10 * time.Minute
	}
	if s.LeftTime == 0 {
		s.LeftTime = s.ForsakenTime
	}
	s.lonely = time.AfterFunc(s.ForsakenTime, s.forsake)
	s.mu.Unlock()
	defer s.serving.Wait()
	defer s.Close()
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("netadmin: %w", err)
		}
		if !s.began(c) {
			_ = c.Close()
			continue
		}
		go func() { // ends with the connection, which Close closes
			defer s.serving.Done()
			err := s.talk(c)
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				s.Log.Warn("a client of the privileged process", "error", err)
			}
		}()
	}
}

func (s *Server) began(c *net.UnixConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing || len(s.conns) >= connsMax {
		return false
	}
	s.conns[c] = true
	s.serving.Add(1)
	return true
}

// Close ends all connections. What is in force stays.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closing = true
	for c := range s.conns {
		_ = c.Close()
	}
	for _, t := range []*time.Timer{s.lonely, s.died} {
		if t != nil {
			t.Stop()
		}
	}
}

// Forsaken is closed when no client has come for so long that there will be none.
func (s *Server) Forsaken() <-chan struct{} { return s.forsaken }

// Busy tells whether there are clients.
func (s *Server) Busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions) > 0
}

func (s *Server) forsake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sessions) > 0 || s.closing {
		return
	}
	select {
	case <-s.forsaken:
	default:
		close(s.forsaken)
	}
}

// enter counts a connection to its session.
func (s *Server) enter(name string) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.sessions[name]
	if x == nil {
		x = &session{}
		s.sessions[name] = x
	}
	x.conns++
	s.lonely.Stop()
	if s.died != nil {
		s.died.Stop()
	}
	return x
}

// leave ends a connection. When the last one of the last session has gone, and did
// not say that it goes, its process is dead: nobody will release what it held.
func (s *Server) leave(name string, x *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x.conns--; x.conns > 0 {
		return
	}
	delete(s.sessions, name)
	if len(s.sessions) > 0 || s.closing {
		return
	}
	// Who only looked whether somebody answers leaves what a dead process held as it was.
	visitor := x.left && !x.asked
	if x.left && !(visitor && s.widowed) {
		s.lonely.Reset(s.LeftTime)
		return
	}
	s.widowed = true
	s.lonely.Reset(s.ForsakenTime)
	if visitor {
		s.died = time.AfterFunc(s.HeldTime, s.bury)
		return
	}
	s.Log.Warn("the process that serves is gone; its leases will end by themselves")
	s.died = time.AfterFunc(s.HeldTime, s.bury)
}

// bury forgets what is held for a process that is dead. What is diverted stays:
// its sockets are on other hosts.
func (s *Server) bury() {
	s.mu.Lock()
	over := len(s.sessions) > 0 || s.closing
	s.mu.Unlock()
	if over {
		return
	}
	x, err := s.Admin.State()
	if err == nil && len(x.Held) > 0 {
		err = s.Admin.Drop(x.Held)
		s.Log.Warn("held for a process that is dead", "tuples", len(x.Held))
	}
	if err == nil {
		err = s.Admin.Learn(nil)
	}
	if err != nil && !errors.Is(err, ErrClosed) {
		s.Log.Error("what a dead process held could not be dropped", "error", err)
	}
}

// talk serves one connection.
func (s *Server) talk(c *net.UnixConn) error {
	defer func() {
		_ = c.Close()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	if err := s.known(c); err != nil {
		return err
	}
	ch := newChannel(c)
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	what, body, fds, err := ch.receive()
	closeAll(fds)
	var hello clientHello
	if err == nil && what != actHello {
		err = fmt.Errorf("netadmin: request %d before a greeting", what)
	}
	if err == nil {
		err = decodeJSON(body, &hello)
	}
	if err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	here, err := netNamespace()
	if err != nil {
		return err
	}
	answer, err := json.Marshal(clientHello{PID: os.Getpid(), Net: here})
	if err != nil {
		return err
	}
	if err := ch.send(answerDone, answer); err != nil {
		return err
	}
	x := s.enter(hello.Session)
	defer s.leave(hello.Session, x)
	for {
		what, body, fds, err := ch.receive()
		if err != nil {
			return err
		}
		s.mu.Lock()
		if what == actLeave {
			x.left = true
		} else {
			x.asked, s.widowed = true, false
		}
		s.mu.Unlock()
		out, back, err := s.do(what, body, fds)
		closeAll(fds)
		switch {
		case errors.Is(err, ErrClosed):
			err = ch.send(answerClosed, nil)
		case err != nil:
			err = ch.send(answerFailed, []byte(err.Error()))
		default:
			err = ch.send(answerDone, out, back...)
		}
		closeAll(back)
		if err != nil {
			return err
		}
	}
}

// known refuses processes of other users.
func (s *Server) known(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if failed != nil {
		return fmt.Errorf("netadmin: SO_PEERCRED: %w", failed)
	}
	if uid := int(cred.Uid); uid != 0 && uid != os.Geteuid() && uid != s.UID {
		return fmt.Errorf("netadmin: process %d is of user %d, who is not served", cred.Pid, uid)
	}
	return nil
}

// netNamespace names the network namespace of this process.
func netNamespace() (string, error) { return os.Readlink("/proc/thread-self/ns/net") }

// may tells whether all of these may move.
func (s *Server) may(addrs ...netip.Addr) error {
	for _, a := range addrs {
		if err := s.mayWithin(netip.PrefixFrom(a, a.BitLen())); err != nil {
			return err
		}
	}
	return nil
}

// mayWithin tells whether an address may move, and be put on a device with a prefix:
// the kernel takes a shorter one than the network has for a way to hosts elsewhere.
func (s *Server) mayWithin(p netip.Prefix) error {
	p = unmapped(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	for again := false; ; again = true {
		bits, known := s.allowed[p.Addr()]
		if known && p.Bits() >= bits {
			return nil
		}
		if again || time.Since(s.asked) < time.Second {
			if known {
				return fmt.Errorf("netadmin: %v: the network of that address has %d bits, by the file of this process", p, bits)
			}
			return fmt.Errorf("netadmin: %v is no address that moves, by the file of this process", p.Addr())
		}
		s.asked, s.allowed = time.Now(), map[netip.Addr]int{}
		for _, a := range s.Allowed() {
			a = unmapped(a)
			if bits, twice := s.allowed[a.Addr()]; !twice || a.Bits() < bits {
				s.allowed[a.Addr()] = a.Bits()
			}
		}
	}
}

func (s *Server) mayTuples(ts []Tuple) error {
	var last netip.Addr
	for _, t := range ts {
		if a := t.Local.Addr(); a != last {
			if err := s.may(a); err != nil {
				return err
			}
			last = a
		}
	}
	return nil
}

// do does what one request asks for. The descriptors that it gives back are the
// caller's, as are those that it was given.
func (s *Server) do(what act, body []byte, fds []int) (out []byte, back []int, err error) {
	a := s.Admin
	switch what {
	case actHold, actRelease, actDrop, actUndivert, actHere:
		ts, err := readTuples(body)
		if err == nil {
			err = s.mayTuples(ts)
		}
		if err != nil {
			return nil, nil, err
		}
		switch what {
		case actHold:
			return nil, nil, a.Hold(ts)
		case actRelease:
			n, err := a.Release(ts)
			return binary.BigEndian.AppendUint32(nil, uint32(n)), nil, err
		case actDrop:
			return nil, nil, a.Drop(ts)
		case actUndivert:
			return nil, nil, a.Undivert(ts)
		}
		return nil, nil, a.Here(ts)
	case actDivert:
		to, body, err := cutAddr(body)
		if err != nil {
			return nil, nil, err
		}
		ts, err := readTuples(body)
		if err == nil {
			err = s.mayTuples(ts)
		}
		if err != nil {
			return nil, nil, err
		}
		return nil, nil, a.Divert(ts, to)
	case actInject:
		if err := s.mayInject(body); err != nil {
			return nil, nil, err
		}
		return nil, nil, a.Inject(body)
	case actRepair:
		if len(body) != 1 || len(fds) == 0 {
			return nil, nil, errShort
		}
		if err := s.mayRepair(fds); err != nil {
			return nil, nil, err
		}
		mode := int(int8(body[0]))
		err := tcprepair.SetRepair(fds, mode)
		if mode != tcprepair.RepairOn {
			// To leave repair mode clears it, and should its owner die before it sets it
			// again, what is left of the socket would keep the next listener from its port.
			for _, fd := range fds {
				_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			}
		}
		return nil, nil, err
	case actSockets:
		back, err = s.sockets(body)
		return nil, back, err
	case actCall:
		out, err = s.call(body)
		return out, nil, err
	case actLeave:
		return nil, nil, nil
	}
	return nil, nil, fmt.Errorf("netadmin: no request %d", what)
}

// mayInject lets packets in that are for addresses that move.
func (s *Server) mayInject(packet []byte) error {
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4:
		return s.may(netip.AddrFrom4([4]byte(packet[16:20])))
	case len(packet) >= 40 && packet[0]>>4 == 6:
		return s.may(netip.AddrFrom16([16]byte(packet[24:40])))
	}
	return errors.New("netadmin: inject: no IP packet")
}

// mayRepair takes sockets of addresses that move alone.
func (s *Server) mayRepair(fds []int) error {
	for _, fd := range fds {
		sa, err := unix.Getsockname(fd)
		if err != nil {
			return fmt.Errorf("netadmin: repair: %w", err)
		}
		var a netip.Addr
		switch sa := sa.(type) {
		case *unix.SockaddrInet4:
			a = netip.AddrFrom4(sa.Addr)
		case *unix.SockaddrInet6:
			a = netip.AddrFrom16(sa.Addr).Unmap()
		}
		if err := s.may(a); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) sockets(body []byte) (back []int, err error) {
	specs, err := readSpecs(body)
	if err != nil {
		return nil, err
	}
	if len(specs) == 0 || len(specs) > socketsMax {
		return nil, fmt.Errorf("netadmin: %d sockets in one request", len(specs))
	}
	for i := range specs {
		err := s.may(specs[i].Local.Addr())
		if err == nil && (specs[i].Transparent || specs[i].Mark != 0) {
			err = errors.New("netadmin: a socket with a mark, or of a strange address, is made for nobody")
		}
		fd := -1
		if err == nil {
			fd, err = specs[i].Open()
		}
		if err != nil {
			closeAll(back)
			return nil, err
		}
		back = append(back, fd)
	}
	return back, nil
}

// call does what is asked by name.
func (s *Server) call(body []byte) ([]byte, error) {
	var q call
	if err := decodeJSON(body, &q); err != nil {
		return nil, err
	}
	prefixes, movable := q.Prefixes, []netip.Addr(nil)
	for _, x := range q.On {
		movable = append(movable, x.Addr())
	}
	movable = append(movable, q.Addrs...)
	if q.Prefix.IsValid() {
		prefixes = append(prefixes, q.Prefix)
	}
	if q.Addr.IsValid() {
		movable = append(movable, q.Addr)
	}
	for _, p := range prefixes {
		if err := s.mayWithin(p); err != nil {
			return nil, err
		}
	}
	if err := s.may(movable...); err != nil {
		return nil, err
	}
	a, r, err := s.Admin, result{}, error(nil)
	switch q.Name {
	case "Fence":
		err = a.Fence(q.Prefixes)
	case "Routed":
		err = a.Routed(q.Addrs)
	case "Own":
		err = a.Own(q.Prefix, q.Time)
	case "Disown":
		err = a.Disown(q.Addr)
	case "Guest":
		err = a.Guest(q.Addr, q.Time)
	case "Announce":
		err = a.Announce(q.Addr)
	case "Learn":
		err = a.Learn(q.On)
	case "Handshakes":
		r.Tuples, err = a.Handshakes(q.Addr)
	case "Closing":
		r.Tuples, err = a.Closing(q.Addr)
	case "Lead":
		err = a.Lead(q.Addr, q.To)
	case "Forward":
		err = a.Forward(q.Addr, q.To)
	case "Forget":
		err = a.Forget(q.Addr)
	case "Steer":
		err = a.Steer(q.Addrs, q.Ranges)
	case "Counters":
		var c Counters
		c, err = a.Counters()
		r.Counters = &c
	case "State":
		var x State
		x, err = a.State()
		r.State = &x
	default:
		err = fmt.Errorf("netadmin: no call %q", q.Name)
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(r)
}

// Repair is a [tcprepair.Toggle] by this process's own privilege.
func (a *Admin) Repair(fds []int, mode int) error { return tcprepair.SetRepair(fds, mode) }

// Sockets makes sockets in repair mode, bound, with these buffers. They are the
// caller's; after an error there is none.
func (a *Admin) Sockets(specs []tcprepair.SocketSpec) (fds []int, err error) {
	for i := range specs {
		fd, err := specs[i].Open()
		if err != nil {
			closeAll(fds)
			return nil, err
		}
		fds = append(fds, fd)
	}
	return fds, nil
}
