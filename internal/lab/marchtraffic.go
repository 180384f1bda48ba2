package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// marchTraffic is clients and servers that know every octet. Processes between them
// die on purpose, so a connection that is lost is counted, and begun anew, and only
// the judge of a step knows whether it may have been.
type marchTraffic struct {
	seed  uint64
	ids   atomic.Uint32
	slots []*marchSlot
	stop  chan struct{}
	all   sync.WaitGroup
	seats *marchSeats
	gone  sync.Map // connections, by number, whose server has lost them already

	mu    sync.Mutex // guards all below
	wrong []string   // octets that are not the right ones: never
	lost  map[string]int
	how   map[string]int    // what was lost by how it ended, since it was asked last
	open  map[net.Conn]bool // to be closed at the end
	limit []string          // moments at which a limited endpoint had too many
}

// marchSlot is a place of one client that connects again whenever it has lost its
// connection.
type marchSlot struct {
	kind   marchKind
	id     atomic.Uint32 // of its connection
	rounds atomic.Int64  // exchanges, or pieces, that came as they should
	last   atomic.Int64  // when the last did, nanoseconds since the beginning
	worst  atomic.Int64  // the longest time between two of them since it was reset
}

// marchKind is what a client does all the time.
type marchKind uint8

const (
	marchExchange marchKind = iota // requests and answers
	marchDown                      // the server sends more than the client reads
	marchHalf                      // the client has said FIN, the server goes on
	marchLimited                   // a few exchanges at an endpoint that takes few at once
	marchWeb                       // HTTP, on one connection
	marchShort                     // one exchange, then a new connection
	marchKinds    = iota
)

var marchNames = [marchKinds]string{"tcp exchange", "tcp backpressured", "tcp half-closed", "tcp queued", "http keep-alive", "new connections"}

func (k marchKind) String() string { return marchNames[k] }

// marchMix says how many clients there are of each kind.
var marchMix = [marchKinds]int{marchExchange: 14, marchDown: 8, marchHalf: 6, marchLimited: 6, marchWeb: 12, marchShort: 3}

// Where the march listens and serves, on loopback.
var (
	marchTCP    = netip.MustParseAddrPort("127.0.0.1:8400")
	marchHTTP   = netip.MustParseAddrPort("127.0.0.1:8401")
	marchFew    = netip.MustParseAddrPort("127.0.0.1:8402")
	marchServer = netip.MustParseAddrPort("127.0.40.1:7000")
	marchOrigin = netip.MustParseAddrPort("127.0.40.1:7001")
	marchSeated = netip.MustParseAddrPort("127.0.40.1:7002")
)

// marchSeatsMost is how many connections the limited endpoint takes at once.
const marchSeatsMost = 2

// aheadBytes bounds what a client's kernel holds of what it reads slowly, and
// aheadRounds is how many readings that is, at least.
const (
	aheadBytes  = 16 << 10
	aheadRounds = 12
)

// pieceOctets is what a server sends at once to a client that only reads.
const pieceOctets = 6 << 10

// begin starts servers and clients. They end with finish.
func (t *marchTraffic) begin() error {
	t.stop, t.lost, t.open = make(chan struct{}), map[string]int{}, map[net.Conn]bool{}
	t.seats = &marchSeats{t: t, taken: map[net.Conn]bool{}}
	for _, at := range []netip.AddrPort{marchServer, marchSeated} {
		l, err := net.Listen("tcp4", at.String())
		if err != nil {
			return fmt.Errorf("lab: server of the march: %w", err)
		}
		t.all.Go(func() { // ends with the listener
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				if at == marchSeated {
					t.seats.take(c)
				}
				t.all.Go(func() { // ends with its connection
					t.serve(c)
					t.seats.leave(c)
					t.close(c)
				})
			}
		})
		go func() { <-t.stop; _ = l.Close() }() // ends with the march
	}
	began := time.Now()
	for k, n := range marchMix {
		for range n {
			s := &marchSlot{kind: marchKind(k)}
			t.slots = append(t.slots, s)
			t.all.Go(func() { // ends with the march
				for !t.stopped() {
					if err := t.client(s, began); err != nil && !t.stopped() {
						t.note(s.kind, err)
						time.Sleep(20 * time.Millisecond)
					}
				}
			})
		}
	}
	return nil
}

func (t *marchTraffic) finish() {
	close(t.stop)
	t.mu.Lock()
	for c := range t.open {
		_ = c.Close()
	}
	t.mu.Unlock()
	t.all.Wait()
}

func (t *marchTraffic) stopped() bool {
	select {
	case <-t.stop:
		return true
	default:
		return false
	}
}

// keep makes the end of the march end c as well.
func (t *marchTraffic) keep(c net.Conn) {
	t.mu.Lock()
	t.open[c] = true
	t.mu.Unlock()
	if t.stopped() {
		_ = c.Close()
	}
}

func (t *marchTraffic) close(c net.Conn) {
	t.mu.Lock()
	delete(t.open, c)
	t.mu.Unlock()
	_ = c.Close()
}

// note counts a connection that is lost; what is wrong is kept apart.
func (t *marchTraffic) note(k marchKind, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var bad wrongError
	if errors.As(err, &bad) {
		t.wrong = append(t.wrong, fmt.Sprintf("%v: %v", k, err))
		return
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" { // nobody listens
		t.lost[marchShort.String()]++
	} else {
		t.lost[k.String()]++
	}
	if t.how == nil {
		t.how = map[string]int{}
	}
	t.how[k.String()+": "+errorText(err)]++
}

// ends tells how connections were lost since it was asked last.
func (t *marchTraffic) ends() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var s []string
	for _, what := range sortedKeys(t.how) {
		s = append(s, fmt.Sprintf("%d x %s", t.how[what], what))
	}
	t.how = nil
	return strings.Join(s, "; ")
}

// marchCount is what there was at a moment.
type marchCount struct {
	lost  map[string]int
	wrong int
	over  int // times that the limited endpoint had too many
}

func (t *marchTraffic) count() marchCount {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := marchCount{lost: map[string]int{}, wrong: len(t.wrong), over: len(t.limit)}
	for k, n := range t.lost {
		c.lost[k] = n
	}
	return c
}

// since is what was lost between two moments: connections that stood, and attempts
// at new ones.
func (c marchCount) since(was marchCount) (standing, fresh int) {
	for k, n := range c.lost {
		n -= was.lost[k]
		if k == marchShort.String() {
			fresh += n
		} else {
			standing += n
		}
	}
	return standing, fresh
}

// awaitRounds waits until each client has got something more, and returns the longest
// that one of those who exchange all the time had to wait since the last call.
func (t *marchTraffic) awaitRounds(patience time.Duration) (worst time.Duration, err error) {
	was := make([]int64, len(t.slots))
	for i, s := range t.slots {
		was[i] = s.rounds.Load()
	}
	for end := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		var behind []string
		for i, s := range t.slots {
			more := int64(1)
			if s.kind == marchDown || s.kind == marchHalf {
				more = aheadRounds
			}
			if _, gone := t.gone.Load(s.id.Load()); gone || s.rounds.Load() < was[i]+more {
				behind = append(behind, s.kind.String())
			}
		}
		if len(behind) == 0 {
			break
		}
		if time.Now().After(end) {
			slices.Sort(behind)
			return 0, fmt.Errorf("%d of %d clients get nothing: %s", len(behind), len(t.slots), strings.Join(slices.Compact(behind), ", "))
		}
	}
	for _, s := range t.slots {
		if w := time.Duration(s.worst.Swap(0)); s.kind == marchExchange || s.kind == marchWeb {
			worst = max(worst, w)
		}
	}
	return worst, nil
}

// got notes that a client got what it should.
func (s *marchSlot) got(began time.Time) {
	now := int64(time.Since(began))
	if was := s.last.Swap(now); was > 0 && now-was > s.worst.Load() {
		s.worst.Store(now - was)
	}
	s.rounds.Add(1)
}

// client lives one connection through.
func (t *marchTraffic) client(s *marchSlot, began time.Time) error {
	to := marchTCP
	switch s.kind {
	case marchWeb:
		return t.webClient(s, began)
	case marchLimited:
		to = marchFew
	}
	d := net.Dialer{Timeout: marchPatience}
	if s.kind == marchDown || s.kind == marchHalf {
		// What the kernel holds is read on when the connection is lost, and the loss
		// is found late.
		d.Control = bounded(aheadBytes)
	}
	c, err := d.Dial("tcp4", to.String())
	if err != nil {
		return err
	}
	t.keep(c)
	defer t.close(c)
	id := t.ids.Add(1)
	s.id.Store(id)
	head := binary.BigEndian.AppendUint32(nil, id)
	if _, err := c.Write(append(head, byte(s.kind), 0, 0, 0)); err != nil {
		return err
	}
	down := Verifier{Stream: NewStream(t.seed, id, Down)}
	if s.kind == marchDown || s.kind == marchHalf {
		if s.kind == marchHalf {
			if err := c.(*net.TCPConn).CloseWrite(); err != nil {
				return err
			}
		}
		buf := make([]byte, 8<<10)
		for {
			n, err := c.Read(buf)
			if w := down.Feed(buf[:n]); w != nil {
				return wrongf("flow %d: %v", id, w)
			}
			if err != nil {
				return err
			}
			s.got(began)
			if _, gone := t.gone.Load(id); s.kind == marchDown && !gone {
				time.Sleep(4 * time.Millisecond)
			}
		}
	}
	exchanges, rest := -1, 3*time.Millisecond
	switch s.kind {
	case marchShort:
		exchanges = 1
	case marchLimited:
		exchanges = 6
	}
	up, off, buf := NewStream(t.seed, id, Up), uint64(0), make([]byte, 4<<10)
	sizes := mix(t.seed + uint64(id)*golden)
	for i := 0; i != exchanges; i++ {
		b := buf[:requestOctets(sizes, i)]
		up.Fill(b, off)
		off += uint64(len(b))
		if _, err := c.Write(b); err != nil {
			return err
		}
		b = buf[:responseOctets(sizes, i)]
		if n, err := io.ReadFull(c, b); err != nil {
			if w := down.Feed(b[:n]); w != nil {
				return wrongf("flow %d: %v", id, w)
			}
			return err
		}
		if w := down.Feed(b); w != nil {
			return wrongf("flow %d: %v", id, w)
		}
		s.got(began)
		time.Sleep(rest)
	}
	return nil
}

// marchPatience is longer than any process is left standing still.
const marchPatience = 60 * time.Second

func (t *marchTraffic) webClient(s *marchSlot, began time.Time) error {
	c, err := dialWeb(nil, marchHTTP, t.seed, 0)
	if err != nil {
		return err
	}
	t.keep(c.conn)
	defer t.close(c.conn)
	for i := uint32(0); ; i++ {
		x := &exchange{id: t.ids.Add(1), method: http.MethodPost, up: int(i * 37 % 5000), down: int(i * 101 % 20000), chunked: i%2 == 0}
		if err := c.do(x); err != nil {
			return err
		}
		s.got(began)
		if !c.mayStay() {
			return wrongf("%v: the connection ends with it", x)
		}
		time.Sleep(3 * time.Millisecond)
	}
}

// serve is the server's end of a connection.
func (t *marchTraffic) serve(c net.Conn) {
	t.keep(c)
	var head [8]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return // it was lost before it said anything
	}
	id, kind := binary.BigEndian.Uint32(head[:]), marchKind(head[4])
	if id == 0 || id > t.ids.Load() || kind >= marchKinds {
		t.note(kind%marchKinds, wrongf("a connection begins with %x", head))
		return
	}
	down, off, buf := NewStream(t.seed, id, Down), uint64(0), make([]byte, max(pieceOctets, 4<<10))
	send := func(n uint64) error {
		down.Fill(buf[:n], off)
		off += n
		_, err := c.Write(buf[:n])
		return err
	}
	if kind == marchDown || kind == marchHalf {
		every := 2 * time.Millisecond
		if kind == marchHalf {
			every *= 4
		}
		for send(pieceOctets) == nil {
			time.Sleep(every)
		}
		// Its client may have much to read before it finds out.
		t.gone.Store(id, true)
		return
	}
	up, sizes := Verifier{Stream: NewStream(t.seed, id, Up)}, mix(t.seed+uint64(id)*golden)
	for i := 0; ; i++ {
		n, err := io.ReadFull(c, buf[:requestOctets(sizes, i)])
		if w := up.Feed(buf[:n]); w != nil {
			t.note(kind, wrongf("flow %d, at its server: %v", id, w))
			return
		}
		if err != nil || send(responseOctets(sizes, i)) != nil {
			return
		}
	}
}

// marchSeats counts who is connected to the limited endpoint.
type marchSeats struct {
	t *marchTraffic

	mu    sync.Mutex // guards taken
	taken map[net.Conn]bool
}

// unseatTime is how long a server may take to see that a connection has ended.
const unseatTime = 200 * time.Millisecond

func (s *marchSeats) take(c net.Conn) {
	s.mu.Lock()
	s.taken[c] = true
	var now []net.Conn
	for x := range s.taken {
		now = append(now, x)
	}
	s.mu.Unlock()
	if len(now) <= marchSeatsMost {
		return
	}
	at := time.Now()
	// One that has ended may not have been seen to yet: too many are those that
	// all stay.
	time.AfterFunc(unseatTime, func() {
		s.mu.Lock()
		stay := 0
		for _, x := range now {
			if s.taken[x] {
				stay++
			}
		}
		s.mu.Unlock()
		if stay > marchSeatsMost {
			s.t.mu.Lock()
			s.t.limit = append(s.t.limit, fmt.Sprintf("%s: %d connections", at.Format("15:04:05.000"), stay))
			s.t.mu.Unlock()
		}
	})
}

func (s *marchSeats) leave(c net.Conn) {
	s.mu.Lock()
	delete(s.taken, c)
	s.mu.Unlock()
}
