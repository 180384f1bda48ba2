package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// stand is an HTTP server that counts what is under way at it, and that can
// misbehave in the ways of servers. Requests are parsed by Go's rules, answers
// carry octets that the client knows beforehand.
type stand struct {
	name string
	addr string
	seed uint64

	open   atomic.Int64 // requests under way; one leaves before its last octet does
	most   atomic.Int64 // the most of open
	served atomic.Int64 // answers with 200
	came   atomic.Int64 // requests that came at all
	conns  atomic.Int64 // connections that were accepted

	failing atomic.Int64 // of a thousand requests: answered with 503
	unwell  atomic.Bool  // says so when it is checked, and serves all the same
	silent  atomic.Bool  // accepts and reads, and says nothing
	drops   atomic.Bool  // an octet of the next answer, which is as long all the same
	slower  atomic.Int64 // thinks so many times as long; 0 is 1
	gate    chan struct{}
	// onRequest is told of each request as it comes; may be nil.
	onRequest func(req *http.Request)

	mu      sync.Mutex // guards all below
	lis     net.Listener
	at      map[net.Conn]bool // connections; whether a request is under way there
	leaving bool
	all     sync.WaitGroup
}

// newStand listens and serves until close.
func newStand(name, addr string, seed uint64) (*stand, error) {
	s := &stand{name: name, addr: addr, seed: seed, at: map[net.Conn]bool{}}
	return s, s.begin()
}

// begin listens, again after refuse.
func (s *stand) begin() error {
	lis, err := net.Listen("tcp", s.addr)
	if err != nil {
		return fmt.Errorf("lab: server %s: %w", s.name, err)
	}
	s.mu.Lock()
	s.lis, s.leaving = lis, false
	s.mu.Unlock()
	s.all.Go(func() { // ends with the listener
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			s.conns.Add(1)
			s.mu.Lock()
			s.at[c] = false
			s.mu.Unlock()
			s.all.Go(func() { s.serve(c) })
		}
	})
	return nil
}

// refuse stops to listen and resets what is connected.
func (s *stand) refuse() {
	s.mu.Lock()
	_ = s.lis.Close()
	for c := range s.at {
		reset(c)
	}
	s.mu.Unlock()
}

// close ends the server and all that is connected, and waits.
func (s *stand) close() {
	s.refuse()
	s.all.Wait()
}

// finish is the graceful end: nothing new, idle connections are closed, what is
// under way is answered.
func (s *stand) finish() {
	s.mu.Lock()
	s.leaving = true
	_ = s.lis.Close()
	for c, busy := range s.at {
		if !busy {
			_ = c.SetReadDeadline(time.Now())
		}
	}
	s.mu.Unlock()
	s.all.Wait()
}

// busy is how many connections have a request under way, to its last octet.
func (s *stand) busy() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, b := range s.at {
		if b {
			n++
		}
	}
	return n
}

// turn notes whether a request is under way on c, and says whether the server is
// about to leave.
func (s *stand) turn(c net.Conn, busy bool) (leaving bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at[c] = busy
	return s.leaving
}

// enter counts a request, leave takes it back.
func (s *stand) enter() {
	now := s.open.Add(1)
	for most := s.most.Load(); now > most && !s.most.CompareAndSwap(most, now); most = s.most.Load() {
	}
}

func (s *stand) leave() { s.open.Add(-1) }

func (s *stand) serve(c net.Conn) {
	defer func() {
		_ = c.Close()
		s.mu.Lock()
		delete(s.at, c)
		s.mu.Unlock()
	}()
	in := bufio.NewReaderSize(c, 2048)
	for {
		if _, err := in.Peek(1); err != nil {
			return
		}
		leaving := s.turn(c, true)
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		if req.URL.Path == "/check" {
			status := http.StatusOK
			if s.unwell.Load() {
				status = http.StatusServiceUnavailable
			}
			_, _ = fmt.Fprintf(c, "HTTP/1.1 %d %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", status, http.StatusText(status))
			return
		}
		s.came.Add(1)
		if s.onRequest != nil {
			s.onRequest(req)
		}
		if s.silent.Load() {
			_, _ = in.Peek(1) // until it is given up
			return
		}
		s.enter()
		err = s.answer(c, in, req, leaving)
		if leaving = s.turn(c, false); err != nil || leaving || req.Close {
			return
		}
	}
}

// errTunnel ends a connection that was a WebSocket.
var errTunnel = errors.New("lab: it was a tunnel")

// longPieces is in how many pieces a long download comes.
const longPieces = 20

// answer answers one request; it has been entered.
func (s *stand) answer(c net.Conn, in *bufio.Reader, req *http.Request, leaving bool) error {
	left := false
	leave := func() {
		if !left {
			s.leave()
			left = true
		}
	}
	defer leave()
	if req.URL.Path == "/ws" {
		return s.echo(c, in, req)
	}
	q := req.URL.Query()
	id, _ := strconv.ParseUint(q.Get("id"), 10, 32)
	down, _ := strconv.Atoi(q.Get("down"))
	micros, _ := strconv.Atoi(q.Get("wait"))
	think := time.Duration(micros) * time.Microsecond * time.Duration(max(1, s.slower.Load()))
	if s.gate != nil {
		<-s.gate
	}
	status := http.StatusOK
	if k := s.failing.Load(); k > 0 && rand.Int64N(1000) < k {
		status, down = http.StatusServiceUnavailable, 0
	}
	long := strings.HasPrefix(req.URL.Path, "/long")
	if !long && think > 0 {
		time.Sleep(think)
	}
	var head strings.Builder
	fmt.Fprintf(&head, "HTTP/1.1 %d %s\r\n%s: %d\r\n%s: %s\r\nContent-Length: %d\r\n",
		status, http.StatusText(status), idField, id, originField, s.name, down)
	if leaving {
		head.WriteString("Connection: close\r\n")
	}
	head.WriteString("\r\n")
	if status == http.StatusOK {
		s.served.Add(1)
	}
	stream := NewStream(s.seed, uint32(id), Down)
	if long {
		if _, err := io.WriteString(c, head.String()); err != nil {
			return err
		}
		for i := range longPieces {
			from, to := down*i/longPieces, down*(i+1)/longPieces
			b := make([]byte, to-from)
			stream.Fill(b, uint64(from))
			time.Sleep(think / longPieces)
			if i == longPieces-1 {
				leave()
			}
			if _, err := c.Write(b); err != nil {
				return err
			}
		}
		return nil
	}
	b := make([]byte, head.Len()+down)
	copy(b, head.String())
	stream.Fill(b[head.Len():], 0)
	if down > 1 && s.drops.Swap(false) {
		stream.Fill(b[head.Len()+down/2:], uint64(down/2+1))
	}
	leave()
	_, err := c.Write(b)
	return err
}

// echo is a WebSocket that sends back what it gets, to its end.
func (s *stand) echo(c net.Conn, in *bufio.Reader, req *http.Request) error {
	_, err := fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n%s: %s\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		originField, s.name, acceptKey(req.Header.Get("Sec-WebSocket-Key")))
	if err != nil {
		return err
	}
	ws := &WebSocket{conn: c, in: in}
	for {
		op, b, err := ws.Receive()
		if err != nil {
			if errors.Is(err, errWebSocketClosed) {
				_ = ws.Send(closeFrame, []byte{0x03, 0xe8})
			}
			return errTunnel
		}
		if err := ws.Send(op, b); err != nil {
			return err
		}
	}
}
