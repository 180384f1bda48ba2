package sim

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// Net is the network with all kernels on it, and their common clock.
type Net struct {
	rng   *rand.Rand
	now   flow.Instant
	socks []*Sock // all that may still send
	dials []*dial
	// possible is the list that ready gives.
	possible []possible
	// routes says which listener answers at an address; behaviour, how.
	routes    map[netip.AddrPort]*Listener
	unix      map[string]*Listener
	behaviour map[netip.AddrPort]behaviour
	nextPort  uint16
	cookies   uint64           // given out
	peers     map[uint64]*Peer // by the key of their stream

	faults     Faults
	first      func(s *Sock, b []byte)   // is shown what a leg that has served is given first
	thresholds int                       // how often one was set
	thickened  bool                      // one was set a moment ago
	accepted   func(t *FDs, l *Listener) // is told of each connection that a process takes; nil: nobody
	holds      map[move.Tuple]*Proc      // tuples whose segments wait, and for whom
	left       int                       // sockets that were put down when their process died
	listening  func(netip.AddrPort) (l *Listener, moves bool)
	sinks      bool   // some endpoints are none
	strays     uint64 // connections that may end early while their flow is not known
	bad        error  // the first thing that no program may do to a kernel
}

type behaviour uint8

const (
	answers  behaviour = iota
	refuses            // RST to SYN
	swallows           // nothing comes back
)

// Faults say which calls of a kernel fail.
type Faults struct {
	on    bool
	At    int         // the call of this number fails, counted from 1; 0 = none
	Calls int         // calls counted so far
	Odds  int         // one in so many calls fails, 0 = none
	Last  string      // the call that failed last
	only  func() bool // nil: always
}

func newNet(seed uint64) *Net {
	return &Net{
		rng: rand.New(rand.NewPCG(seed, 0x51f3)), now: flow.Instant(time.Hour), nextPort: 20000,
		routes: map[netip.AddrPort]*Listener{}, unix: map[string]*Listener{}, behaviour: map[netip.AddrPort]behaviour{},
		peers: map[uint64]*Peer{}, holds: map[move.Tuple]*Proc{},
	}
}

// violate notes what a kernel was asked to do and never should be.
func (n *Net) violate(format string, args ...any) {
	if n.bad == nil {
		n.bad = fmt.Errorf(format, args...)
	}
}

// fail tells whether this call is one that fails.
func (n *Net) fail(call string) bool {
	f := &n.faults
	if !f.on || f.only != nil && !f.only() {
		return false
	}
	f.Calls++
	if f.Calls == f.At || f.Odds > 0 && n.rng.IntN(f.Odds) == 0 {
		f.Last = call
		return true
	}
	return false
}

// Sock is one end of a connection, with the queues that its kernel keeps. Each
// octet has a sequence number, from 0 in each direction.
type Sock struct {
	net           *Net
	cookie        uint64 // SO_COOKIE: the same by all its descriptors, and no other's
	local, remote netip.AddrPort
	peer          *Sock
	file          *file // nil: outside, or closed

	snd       []byte // from una on; up to nxt they are under way
	una, nxt  uint64
	sndCap    int
	rcv       []byte
	rcvNxt    uint64
	rcvCap    int
	lowat     int  // readable from so many octets on
	finOut    bool // our FIN stands behind snd
	finSent   bool
	finIn     bool // the peer's FIN has arrived
	rstOut    bool // our RST is under way
	connected bool
	dead      bool // reset, or never connected: nothing comes or goes
	errno     sock.Errno
	nospace   bool // somebody wants to hear of room
	orphan    bool // closed by its owner
	linger0   bool // to be closed by RST
	held      bool // its segments are dropped at the host: it is moving
	gone      bool // discarded without a word: it lives elsewhere
	unwatched bool // the kernel would not watch it: its flow takes it for broken

	mate    *Sock  // the flow's other leg
	excused string // why its connection may end before its time
	served  bool   // by whoever is at the other end: a whole request of HTTP
	asked   bool   // another one has begun since
	owner   owner
}

func (n *Net) pair(local, remote netip.AddrPort) (*Sock, *Sock) {
	caps := []int{900, 3000, 16 << 10, 40 << 10, 90 << 10, 300 << 10}
	pick := func() int { return caps[n.rng.IntN(len(caps))] }
	a := &Sock{net: n, cookie: n.cookie(), local: local, remote: remote, sndCap: pick(), rcvCap: pick()}
	b := &Sock{net: n, cookie: n.cookie(), local: remote, remote: local, sndCap: pick(), rcvCap: pick()}
	a.peer, b.peer = b, a
	n.socks = append(n.socks, a, b)
	return a, b
}

func (s *Sock) String() string {
	if s == nil {
		return "none"
	}
	watched := "not watched"
	if s.file != nil && len(s.file.watches) > 0 {
		watched = fmt.Sprintf("watched for %#x, pending %t", uint32(s.file.watches[0].want), s.file.watches[0].pending)
	}
	return fmt.Sprintf("%v to %v: %s, to read %d, unacknowledged %d, FIN in %t out %t sent %t, connected %t dead %t (%v) orphan %t", s.local, s.remote, watched, len(s.rcv), len(s.snd), s.finIn, s.finOut, s.finSent, s.connected, s.dead, s.errno, s.orphan)
}

func (n *Net) cookie() uint64 {
	n.cookies++
	return n.cookies
}

func (n *Net) port() uint16 {
	n.nextPort++
	return n.nextPort
}

// -- what the owner of a socket does ------------------------------------------

func (s *Sock) free() int { return s.sndCap - len(s.snd) }

// roomy is when Linux reports room: a third of the buffer is free
// (include/net/sock.h, __sk_stream_is_writeable).
func (s *Sock) roomy() bool { return s.free() >= len(s.snd)/2 && s.free() > 0 }

func (s *Sock) failed() sock.Errno {
	e := s.errno
	s.errno = 0
	return e
}

func (s *Sock) recv(b []byte) (int, sock.Errno) {
	if n, e := s.peek(); n == 0 {
		return 0, e
	}
	n := copy(b, s.rcv)
	s.rcv = s.rcv[n:]
	return n, 0
}

// peek is recv that takes nothing: 1 stands for all that is there.
func (s *Sock) peek() (int, sock.Errno) {
	switch {
	case len(s.rcv) > 0:
		return 1, 0
	case s.finIn:
		// SOCK_DONE comes before the error (net/ipv4/tcp.c,
		// tcp_recvmsg_locked): an RST after FIN is not told here.
		return 0, 0
	case s.errno != 0:
		return 0, s.failed()
	case s.dead:
		return 0, 0
	}
	return 0, sock.Again
}

func (s *Sock) send(b []byte) (int, sock.Errno) {
	switch {
	case s.errno != 0:
		return 0, s.failed()
	case s.dead || s.finOut:
		return 0, sock.BrokenPipe
	}
	n := min(len(b), s.free())
	if n < len(b) {
		s.nospace = true
	}
	if n == 0 {
		return 0, sock.Again
	}
	s.snd = append(s.snd, b[:n]...)
	return n, 0
}

func (s *Sock) shutdown() {
	if !s.dead && !s.finOut {
		s.finOut = true
		s.wake(0)
	}
}

// close is what the kernel does when the last descriptor goes.
func (s *Sock) close() {
	s.orphan, s.file = true, nil
	switch {
	case s.gone || s.dead:
	case s.held: // in repair mode: without a word
		s.net.left++
	case !s.connected:
		s.dead = true // SYN_SENT: no word
	case s.linger0 || len(s.rcv) > 0:
		s.reset() // RFC 2525, 2.17: octets that nobody will read
	default:
		s.finOut = true
	}
}

// disconnect ends the connection at once, however many descriptors there are, as
// connect to AF_UNSPEC does (net/ipv4/tcp.c, tcp_disconnect): by RST, and what is
// not read is gone.
func (s *Sock) disconnect() {
	if s.dead || s.gone {
		return
	}
	if s.connected {
		s.reset()
	}
	s.dead, s.errno, s.rcv, s.finIn = true, sock.Reset, nil, false
	s.wake(0)
}

// end is close though there are other descriptors: nothing more is said or heard.
func (s *Sock) end() {
	if !s.connected || len(s.rcv) > 0 {
		s.disconnect()
		return
	}
	s.orphan = true
	s.shutdown()
}

// reset ends the connection from our side with RST.
func (s *Sock) reset() {
	if !s.dead && !s.gone {
		s.dead, s.rstOut, s.snd = true, s.connected, nil
	}
}

func (s *Sock) mask() (r sock.Ready) {
	if s.errno != 0 {
		r |= sock.Failed
	}
	if s.dead || s.finIn && s.finOut {
		r |= sock.Hangup
	}
	if s.dead || s.finIn {
		r |= sock.Readable | sock.PeerShut
	}
	if !s.connected && !s.dead {
		return r
	}
	if len(s.rcv) > 0 && len(s.rcv) >= s.lowat {
		r |= sock.Readable
	}
	switch {
	case s.dead || s.finOut || s.roomy():
		r |= sock.Writable
	default:
		s.nospace = true
	}
	return r
}

func (s *Sock) wake(key sock.Ready) {
	if s.file != nil {
		s.file.wake(key)
	}
}

// -- what the network does ------------------------------------------------------

// deliverable tells whether something of s can arrive.
func (s *Sock) deliverable() bool {
	p := s.peer
	if s.held || s.gone || p.held {
		return false
	}
	if s.rstOut {
		return true
	}
	if s.dead || !s.connected {
		return false
	}
	if s.acked() > 0 {
		return true
	}
	if s.nxt < s.una+uint64(len(s.snd)) {
		return p.dead || p.orphan || len(p.rcv) < p.rcvCap || s.nxt < p.rcvNxt
	}
	return s.finOut && !s.finSent
}

func (s *Sock) acked() uint64 {
	if p := s.peer; !p.dead && p.rcvNxt > s.una {
		return min(p.rcvNxt, s.nxt) - s.una
	}
	return 0
}

// deliver lets one segment of s arrive, or an acknowledgement of it.
func (s *Sock) deliver() {
	p, n := s.peer, s.net
	if s.rstOut {
		s.rstOut = false
		p.broken(sock.Reset)
		return
	}
	if k := s.acked(); k > 0 && (n.rng.IntN(2) == 0 || s.nxt == s.una+uint64(len(s.snd))) {
		s.snd = s.snd[k:]
		s.una += k
		if s.nospace && s.roomy() {
			s.nospace = false
			s.wake(sock.Writable)
		}
		return
	}
	if end := s.una + uint64(len(s.snd)); s.nxt < end {
		if p.dead || p.orphan {
			// Nobody reads there: the answer to octets is RST.
			p.reset()
			p.rstOut = false
			s.broken(sock.Reset)
			return
		}
		k := min(end-s.nxt, uint64(1+n.rng.IntN(1<<n.rng.IntN(18))))
		seg := s.snd[s.nxt-s.una:][:k]
		switch {
		case s.nxt > p.rcvNxt:
			n.violate("a hole: segment %d where %d is due, %v to %v", s.nxt, p.rcvNxt, s.local, s.remote)
			s.nxt = end
			return
		case s.nxt+k <= p.rcvNxt: // seen before, sent again after a move
			s.nxt += k
			return
		}
		skip := p.rcvNxt - s.nxt
		seg = seg[skip:]
		seg = seg[:min(len(seg), p.rcvCap-len(p.rcv))]
		if len(seg) == 0 {
			s.nxt += skip
			return
		}
		if p.finIn {
			n.violate("octets after FIN, %v to %v", s.local, s.remote)
		}
		p.rcv = append(p.rcv, seg...)
		p.rcvNxt += uint64(len(seg))
		s.nxt += skip + uint64(len(seg))
		if len(p.rcv) >= p.lowat {
			p.wake(sock.Readable)
		}
		return
	}
	if s.finOut && !s.finSent {
		s.finSent = true
		if !p.finIn && !p.dead {
			p.finIn = true
			p.wake(0) // tcp_fin calls sk_state_change, which passes no key
		}
	}
}

// broken is the arrival of RST, or the end of all retransmissions.
func (s *Sock) broken(e sock.Errno) {
	if s.dead || s.gone {
		return
	}
	if e == sock.Reset && s.finIn {
		e = sock.BrokenPipe // tcp_reset in CLOSE_WAIT
	}
	s.dead, s.errno, s.snd = true, e, nil
	s.wake(0)
	s.wake(sock.Failed)
}

// timesOut breaks the connection as a vanished peer does; that one learns it.
func (s *Sock) timesOut(e sock.Errno) {
	if !s.dead && s.connected {
		s.broken(e)
		s.errno = 0 // the failing call has told it
		s.rstOut = true
		s.excuse("a fault: " + e.Error())
	}
}

// excuse notes, at both ends, why the connection may end early.
func (s *Sock) excuse(why string) {
	s.excused = why
	if s.mate == nil {
		s.net.strays++
	}
	if s.peer != nil && s.peer.owner != nil {
		s.peer.owner.excuse(why)
	}
	if m := s.mate; m != nil && m.peer != nil {
		if c, ok := m.peer.owner.(*webClient); ok {
			c.excuse(why)
		}
	}
}

// sweep forgets sockets that will never send again.
func (n *Net) sweep() {
	kept := n.socks[:0]
	for _, s := range n.socks {
		over := !s.rstOut && (s.dead || s.orphan && !s.held && s.finSent && len(s.snd) == 0) || s.gone
		if !over || s.file != nil {
			kept = append(kept, s)
		}
	}
	clear(n.socks[len(kept):])
	n.socks = kept
}

// Listener is a listening socket with the connections that wait.
type Listener struct {
	at       netip.AddrPort
	file     *file // nil: outside
	queue    []*Sock
	backlog  int
	closed   bool
	barred   bool // no handshake begins any more
	orphaned bool // one of its processes has died
}

type dial struct {
	from *Sock
	to   netip.AddrPort
	at   flow.Instant // not before
}

// connect begins a connection from s to the address; it is decided later.
func (n *Net) connect(s *Sock, to netip.AddrPort) {
	at := n.now
	if n.rng.IntN(4) == 0 {
		at = at.Add(time.Duration(n.rng.IntN(int(200 * time.Millisecond))))
	}
	n.dials = append(n.dials, &dial{s, to, at})
}

// decide ends dial i: connected, refused, or never heard of again.
func (n *Net) decide(i int) {
	d := n.dials[i]
	n.dials = append(n.dials[:i], n.dials[i+1:]...)
	if d.from.dead || d.from.orphan {
		return
	}
	l, moves := (*Listener)(nil), false
	if n.listening != nil {
		l, moves = n.listening(d.to)
	}
	if moves && l == nil { // nobody answers for it: SYN is sent again
		d.at = n.now.Add(time.Second)
		n.dials = append(n.dials, d)
		return
	}
	if !moves {
		l = n.routes[d.to]
	}
	switch {
	case n.behaviour[d.to] == swallows:
	case n.behaviour[d.to] == refuses || l == nil || l.closed:
		if (d.to == extraVIP || l != nil && l.orphaned) && d.from.owner != nil {
			d.from.owner.excuse("nobody listens there now")
		}
		d.from.broken(sock.Refused)
	case l.barred:
		d.at = n.now.Add(time.Second)
		n.dials = append(n.dials, d)
	case len(l.queue) >= l.backlog:
		d.at = n.now.Add(100 * time.Millisecond) // SYN is sent again
		n.dials = append(n.dials, d)
	default:
		n.established(d.from, l)
	}
}

func (n *Net) established(s *Sock, l *Listener) {
	s.connected, s.peer.connected = true, true
	l.queue = append(l.queue, s.peer)
	s.wake(0)
	s.wake(sock.Writable)
	if l.file != nil {
		l.file.wake(sock.Readable)
	}
}

// possible is what the network could do now: something of a socket arrives, or,
// without one, a dial is decided.
type possible struct {
	from *Sock
	dial int
}

// ready lists what the network could do now. The list is good until the next call.
func (n *Net) ready() []possible {
	n.possible = n.possible[:0]
	for _, s := range n.socks {
		if s.deliverable() {
			n.possible = append(n.possible, possible{from: s})
		}
	}
	for i, d := range n.dials {
		if d.at <= n.now && !d.from.held {
			n.possible = append(n.possible, possible{dial: i})
			break // indices move
		}
	}
	return n.possible
}

func (n *Net) do(x possible) {
	if x.from != nil {
		x.from.deliver()
		return
	}
	n.decide(x.dial)
}
