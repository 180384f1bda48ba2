package lab

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
)

// reloadServer is a server behind the balancers of the lab reload. It answers
// requests with octets that their client knows, and is the other end of held
// flows. What it is asked over a raw connection begins with heldHello.
type reloadServer struct {
	d    *reloadDriver
	name string
	lis  net.Listener

	served  atomic.Int64 // requests that were answered
	spoken  atomic.Int64 // connections on which anything came: a check says nothing
	strayed atomic.Int64 // what came and made no sense
}

// heldHello begins a flow without HTTP; the flow's number follows, 4 octets.
const heldHello = "HELD"

func (d *reloadDriver) serve(name, addr string) (*reloadServer, error) {
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("lab: server %s: %w", name, err)
	}
	s := &reloadServer{d: d, name: name, lis: lis}
	go func() { // ends with the listener
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			go s.conn(c) // ends with the connection, or with the process
		}
	}()
	return s, nil
}

func (s *reloadServer) conn(c net.Conn) {
	defer func() { _ = c.Close() }()
	in := bufio.NewReaderSize(c, 2048)
	first, err := in.Peek(len(heldHello))
	if err != nil {
		return // a check, or a connection that was not needed
	}
	s.spoken.Add(1)
	if string(first) == heldHello {
		s.raw(c, in)
		return
	}
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !isReset(err) {
				s.strayed.Add(1)
			}
			return
		}
		id, err := strconv.ParseUint(req.URL.Query().Get("id"), 10, 32)
		if err != nil {
			s.strayed.Add(1)
			return
		}
		switch {
		case strings.HasSuffix(req.URL.Path, "/ws"):
			s.webSocket(c, in, req, uint32(id))
			return
		case strings.HasSuffix(req.URL.Path, "/stream"):
			s.stream(c, uint32(id))
			return
		}
		down, _ := strconv.Atoi(req.URL.Query().Get("down"))
		b := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\n%s: %d\r\n%s: %s\r\nContent-Length: %d\r\n\r\n", idField, id, originField, s.name, down)
		at := len(b)
		b = append(b, make([]byte, down)...)
		stream := NewStream(s.d.seed, uint32(id), Down)
		stream.Fill(b[at:], 0)
		s.served.Add(1)
		if _, err := c.Write(b); err != nil || req.Close {
			return
		}
	}
}

// held finds a flow that was opened; there is none if a balancer made it up.
func (s *reloadServer) held(id uint32) *heldFlow {
	f := s.d.flow(id)
	if f == nil {
		s.strayed.Add(1)
	}
	return f
}

func (s *reloadServer) raw(c net.Conn, in *bufio.Reader) {
	var hello [len(heldHello) + 4]byte
	if _, err := io.ReadFull(in, hello[:]); err != nil {
		s.strayed.Add(1)
		return
	}
	if f := s.held(binary.BigEndian.Uint32(hello[len(heldHello):])); f != nil {
		s.both(f, c, &heldOctets{in: in, out: c})
	}
}

func (s *reloadServer) webSocket(c net.Conn, in *bufio.Reader, req *http.Request, id uint32) {
	f := s.held(id)
	if f == nil {
		return
	}
	_, err := fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n%s: %s\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		originField, s.name, acceptKey(req.Header.Get("Sec-WebSocket-Key")))
	if err != nil {
		f.fail(fmt.Errorf("server: handshake: %w", err))
		return
	}
	s.both(f, c, heldMessages{&WebSocket{conn: c, in: in}})
}

// both is the server's end of a flow of two directions: it speaks until it has
// heard the end of the other one.
func (s *reloadServer) both(f *heldFlow, c net.Conn, line heldLine) {
	f.server.Store(&c)
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		if err := s.d.hear(f, Up, line); err != nil {
			f.fail(fmt.Errorf("server: %w", err))
			_ = c.Close()
		}
	}()
	if err := s.d.speak(f, Down, line, heard); err != nil {
		f.fail(fmt.Errorf("server: %w", err))
	}
	<-heard
}

// stream is a response that ends when the client has had enough, which it says
// beside the connection.
func (s *reloadServer) stream(c net.Conn, id uint32) {
	f := s.held(id)
	if f == nil {
		return
	}
	f.server.Store(&c)
	_, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n%s: %d\r\n%s: %s\r\nTransfer-Encoding: chunked\r\n\r\n", idField, id, originField, s.name)
	if err == nil {
		err = s.d.speak(f, Down, &heldOctets{out: chunks{c}}, f.finish)
	}
	if err == nil {
		_, err = io.WriteString(c, "0\r\n\r\n")
	}
	if err != nil {
		f.fail(fmt.Errorf("server: %w", err))
	}
}

// chunks makes a chunk of each write (RFC 9112, section 7.1).
type chunks struct{ to io.Writer }

func (w chunks) Write(b []byte) (int, error) {
	all := append(fmt.Appendf(nil, "%x\r\n", len(b)), b...)
	if _, err := w.to.Write(append(all, "\r\n"...)); err != nil {
		return 0, err
	}
	return len(b), nil
}
