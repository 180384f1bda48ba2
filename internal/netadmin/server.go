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
	Admin  kernel
	Rights func() (r Rights, changed bool) // see NewServer
	UID    int
	// HeldTime is how long what is held waits for another client after the last one
	// died, Forsaken how long everything else does; 0 is 5 s and 10 min.
	HeldTime, ForsakenTime time.Duration
	// LeftTime is how long it waits for another client after the last one has said
	// that it goes; 0 is ForsakenTime.
	LeftTime time.Duration
	// RequestTime is how long a client may take over a request that it has begun, its
	// greeting included, and to take the answer; 0 is 5 s.
	RequestTime time.Duration
	// Log may be nil.
	Log *slog.Logger

	mu       sync.Mutex
	sessions map[string]*session
	died     *time.Timer // when the last session died: drops what is held
	forsaken chan struct{}
	lonely   *time.Timer
	widowed  bool                             // the last session that asked for something died, and nobody has come in its place
	allowed  *allowed                         // nil: not asked yet
	user     func(*net.UnixConn) (int, error) // peerUser
	said     time.Time                        // when the last complaint was
	unsaid   int                              // complaints since
	closing  bool
	closed   chan struct{}
	conns    map[*net.UnixConn]bool
	serving  sync.WaitGroup
}

// kernel is what a Server does for clients: an [Admin].
type kernel interface {
	Hold(ts []Tuple) error
	Release(ts []Tuple) (frames int, err error)
	Drop(ts []Tuple) error
	Divert(ts []Tuple, to netip.Addr) error
	Undivert(ts []Tuple) error
	Here(ts []Tuple) error
	Holds(t Tuple) bool
	Inject(packet []byte) error
	Repair(fds, modes []int) []error
	Sockets(specs []tcprepair.SocketSpec) ([]int, error)
	Steer(addrs []netip.Addr, ranges []PortRange) error
	Counters() (Counters, error)
	State() (State, error)

	Fence(addrs []netip.Prefix) error
	Routed(addrs []netip.Addr) error
	Own(p netip.Prefix, lease time.Duration) error
	Disown(addr netip.Addr) error
	Guest(addr netip.Addr, d time.Duration) error
	Announce(addr netip.Addr) error
	Learn(on []netip.AddrPort) error
	Handshakes(addr netip.Addr) ([]Tuple, error)
	Closing(addr netip.Addr) ([]Tuple, error)
	Lead(addr, to netip.Addr) error
	Forward(addr, to netip.Addr) error
	Forget(addr netip.Addr) error
}

// session is one client: a process, with one connection or more.
type session struct {
	conns int
	left  bool // it has said that it goes
	asked bool // for anything else
}

const (
	// connsMax bounds the connections of all clients: a process and its successor
	// have a few each.
	connsMax = 64
	// greetingMax and requestMax bound what a client sends, in octets: some 27,000
	// tuples of IPv6.
	greetingMax = 4 << 10
	requestMax  = 1 << 20
)

// NewServer makes a server of a, for processes of this one's user, of root, and of
// the user uid. rights gives what the file says now, and whether that may be other than the
// last time: it is asked again whenever a client asks for what the file did not say.
func NewServer(a kernel, uid int, rights func() (r Rights, changed bool), log *slog.Logger) *Server {
	return &Server{Admin: a, UID: uid, Rights: rights, Log: log, forsaken: make(chan struct{}), closed: make(chan struct{}), user: peerUser}
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
	if s.RequestTime == 0 {
		s.RequestTime = 5 * time.Second
	}
	s.lonely = time.AfterFunc(s.ForsakenTime, s.forsake)
	s.mu.Unlock()
	defer s.serving.Wait()
	defer s.Close()
	pause := time.Duration(0)
	for {
		c, err := l.AcceptUnix()
		switch {
		case err == nil:
			pause = 0
		case errors.Is(err, net.ErrClosed):
			return nil
		case !passes(err):
			return fmt.Errorf("netadmin: %w", err)
		default:
			if pause == 0 {
				s.Log.Error("nobody can be accepted; it is tried again", "error", err)
			}
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			select {
			case <-time.After(pause):
			case <-s.closed:
				return nil
			}
			continue
		}
		if !s.began(c) {
			s.turnAway(c, fmt.Errorf("netadmin: %d connections are served already, the most that are", connsMax))
			_ = c.Close()
			continue
		}
		go func() { // ends with the connection, which Close closes
			defer s.serving.Done()
			err := s.talk(c)
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				s.complain("a client of the privileged process", err)
			}
		}()
	}
}

// passes tells whether what a listener says ends by itself: this process, or the host, has
// as many descriptors or as much memory in use as it may.
func passes(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED, unix.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// turnAway says why nobody is served; the connection is new, so there is room.
func (s *Server) turnAway(c *net.UnixConn, why error) {
	ch := newChannel(c)
	ch.patience = s.RequestTime
	_ = ch.send(answerFailed, []byte(why.Error()))
}

// complain writes about a client, a line a second at most: nobody fills the disk by it.
func (s *Server) complain(what string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.said) < time.Second {
		s.unsaid++
		return
	}
	s.Log.Warn(what, "error", err, "unsaid", s.unsaid)
	s.said, s.unsaid = time.Now(), 0
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
	if !s.closing {
		s.closing = true
		close(s.closed)
	}
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
	user, err := s.user(c)
	if err == nil {
		err = s.serves(user)
	}
	if err != nil {
		s.turnAway(c, err)
		return err
	}
	ch := newChannel(c)
	ch.max, ch.patience = greetingMax, s.RequestTime
	if err := c.SetReadDeadline(time.Now().Add(s.RequestTime)); err != nil {
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
	if err == nil && hello.Version != wireVersion {
		err = fmt.Errorf("netadmin: a client that speaks version %d; process %d speaks version %d: begin the older one of them anew", hello.Version, os.Getpid(), wireVersion)
	}
	if err != nil {
		s.turnAway(c, err)
		return err
	}
	ch.max = requestMax
	here, err := netNamespace()
	if err != nil {
		return err
	}
	answer, err := json.Marshal(clientHello{Version: wireVersion, PID: os.Getpid(), Net: here})
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
		out, back, err := s.do(ch, what, body, fds)
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

// peerUser is the user whose process is at the other end.
func peerUser(c *net.UnixConn) (uid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if failed != nil {
		return 0, fmt.Errorf("netadmin: SO_PEERCRED: %w", failed)
	}
	return int(cred.Uid), nil
}

// serves refuses processes of other users.
func (s *Server) serves(user int) error {
	if user != 0 && user != os.Geteuid() && user != s.UID {
		return fmt.Errorf("netadmin: user %d is not served by this process, but user %d (--user) and root", user, s.UID)
	}
	return nil
}

// netNamespace names the network namespace of this process.
func netNamespace() (string, error) { return os.Readlink("/proc/thread-self/ns/net") }

// do does what one request asks for. The descriptors that it gives back are the
// caller's, as are those that it was given.
func (s *Server) do(ch *channel, what act, body []byte, fds []int) (out []byte, back []int, err error) {
	a := s.Admin
	if len(fds) > 0 && what != actRepair && what != actDivert {
		return nil, nil, fmt.Errorf("netadmin: %d descriptors with request %d, which takes none", len(fds), what)
	}
	switch what {
	case actHold, actRelease, actDrop, actUndivert, actHere:
		ts, err := readTuples(body)
		if err == nil {
			may := s.may
			if what != actHold && what != actHere {
				may = s.mayEnd
			}
			err = may(func(r *allowed) error { return r.ends(ts) })
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
			err = s.may(func(r *allowed) error { return errors.Join(r.node(to), r.ends(ts), r.repaired(fds)) })
		}
		if err == nil {
			err = a.Divert(ts, to)
		}
		if err != nil || len(fds) == 0 {
			return nil, nil, err
		}
		return appendFailures(nil, tcprepair.EnterRepair(fds, a.Repair)), nil, nil
	case actInject:
		t, err := injected(body)
		if err == nil {
			err = s.may(func(r *allowed) error { return r.moves(t.Local.Addr()) })
		}
		if err == nil && !a.Holds(t) {
			err = fmt.Errorf("netadmin: inject: %v is not held: hold it first", t)
		}
		if err != nil {
			return nil, nil, err
		}
		return nil, nil, a.Inject(body)
	case actRepair:
		if len(fds) == 0 || len(body) < len(fds) {
			return nil, nil, errShort
		}
		modes := make([]int, len(fds))
		on := 0
		for i := range modes {
			if modes[i] = int(int8(body[i])); modes[i] == tcprepair.RepairOn {
				on++
			} else if modes[i] != tcprepair.RepairOff && modes[i] != tcprepair.RepairOffNoProbe {
				return nil, nil, fmt.Errorf("netadmin: no repair mode %d: on is %d, off %d, off without a probe %d", modes[i], tcprepair.RepairOn, tcprepair.RepairOff, tcprepair.RepairOffNoProbe)
			}
		}
		ts, err := readTuples(body[len(fds):])
		if err == nil && on > 0 && len(ts) > 0 {
			err = errors.New("netadmin: tuples are released when their sockets leave repair mode")
		}
		if err == nil {
			may := s.mayEnd
			if on > 0 {
				may = s.may
			}
			err = may(func(r *allowed) error { return errors.Join(r.repaired(fds), r.ends(ts)) })
		}
		if err != nil {
			return nil, nil, err
		}
		errs := a.Repair(fds, modes)
		for i, fd := range fds {
			if modes[i] != tcprepair.RepairOn {
				// To leave repair mode clears it, and should its owner die before it sets it
				// again, what is left of the socket would keep the next listener from its port.
				_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			}
		}
		frames := 0
		if len(ts) > 0 {
			if frames, err = a.Release(ts); err != nil {
				return nil, nil, err
			}
		}
		return appendFailures(binary.BigEndian.AppendUint32(nil, uint32(frames)), errs), nil, nil
	case actSockets:
		// Descriptors in answers that nobody reads count to nobody's limit.
		n, err := ch.unread()
		if err == nil && n > 0 {
			err = errors.New("netadmin: sockets: read the answer before first")
		}
		if err != nil {
			return nil, nil, err
		}
		specs, err := readSpecs(body)
		if err == nil {
			err = s.may(func(r *allowed) error { return r.sockets(specs) })
		}
		if err != nil {
			return nil, nil, err
		}
		back, err = a.Sockets(specs)
		return nil, back, err
	case actCall:
		out, err = s.call(body)
		return out, nil, err
	case actLeave:
		return nil, nil, nil
	}
	return nil, nil, fmt.Errorf("netadmin: no request %d: they are %d to %d in version %d", what, actHold, actLeave, wireVersion)
}

// call does what is asked by name.
func (s *Server) call(body []byte) ([]byte, error) {
	var q call
	if err := decodeCall(body, &q); err != nil {
		return nil, err
	}
	may := s.may
	if q.ends() {
		may = s.mayEnd
	}
	if err := may(func(r *allowed) error { return r.call(&q) }); err != nil {
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
		err = unknownCall(q.Name)
	}
	if err != nil {
		return nil, err
	}
	out, err := json.Marshal(r)
	if err == nil && len(out) >= messageMax {
		err = fmt.Errorf("netadmin: the answer to %s has %d octets: at most %d", q.Name, len(out), messageMax-1)
	}
	return out, err
}

// Repair is a [tcprepair.Toggle] by this process's own privilege.
func (a *Admin) Repair(fds, modes []int) []error { return tcprepair.SetRepair(fds, modes) }

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
