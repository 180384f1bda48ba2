package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-lb/holdfast/internal/lab/corpus"
)

// rawBackend records every octet that reaches it, and answers each request
// that it understands by the letter. It is in the hands of one client at a
// time, so whatever comes between begin and end belongs to that client's
// stream, on whichever connection.
type rawBackend struct {
	Addr netip.AddrPort

	lis    net.Listener
	active atomic.Int64 // when octets came last, in nanoseconds since 1970

	mu     sync.Mutex // guards all below
	conns  []*rawConn
	serial int
	seen   []corpus.Seen
}

// rawConn is a connection from the balancer.
type rawConn struct {
	conn   net.Conn
	octets []byte // since begin
	within bool   // a message has begun and is not complete
	open   bool
}

// newRawBackend listens on a host.
func newRawBackend(h *Host, at netip.AddrPort) (*rawBackend, error) {
	b := &rawBackend{Addr: at}
	err := h.Do(func() error {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		var err error
		b.lis, err = lc.Listen(context.Background(), "tcp", at.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	go b.run() // ends with the listener
	return b, nil
}

func (b *rawBackend) close() {
	_ = b.lis.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.conns {
		_ = c.conn.Close()
	}
}

func (b *rawBackend) run() {
	for {
		conn, err := b.lis.Accept()
		if err != nil {
			return
		}
		c := &rawConn{conn: conn, open: true}
		b.mu.Lock()
		b.conns = append(b.conns, c)
		b.mu.Unlock()
		go b.serve(c) // ends with the connection
	}
}

// serve answers what it understands; behind what it does not, it only records.
func (b *rawBackend) serve(c *rawConn) {
	defer func() {
		_ = c.conn.Close()
		b.mu.Lock()
		c.open = false
		b.mu.Unlock()
		b.active.Store(time.Now().UnixNano())
	}()
	buf := make([]byte, 64<<10)
	var unread []byte
	deaf, continued := false, false
	for {
		n, err := c.conn.Read(buf)
		if err != nil {
			return
		}
		b.active.Store(time.Now().UnixNano())
		var out strings.Builder
		b.mu.Lock()
		c.octets = append(c.octets, buf[:n]...)
		if !deaf {
			unread = append(unread, buf[:n]...)
			r := corpus.Strict(unread)
			for _, m := range r.Complete() {
				deaf = deaf || !b.answer(&out, &m)
				continued = false
			}
			unread = []byte(r.Rest)
			c.within = r.End == corpus.InBody || r.End == corpus.InHead
			if r.End == corpus.Unreadable {
				b.refuse(&out)
				deaf = true
			}
			if r.End == corpus.InBody && !continued {
				m := &r.Messages[len(r.Messages)-1]
				for _, f := range m.Fields {
					if f.Name == "expect" && m.Minor > 0 {
						out.WriteString("HTTP/1.1 100 Continue\r\n\r\n")
						continued = true
					}
				}
			}
		}
		b.mu.Unlock()
		if out.Len() > 0 {
			_, _ = c.conn.Write([]byte(out.String()))
		}
		if deaf && out.Len() > 0 {
			_ = c.conn.(*net.TCPConn).CloseWrite()
		}
	}
}

// answer writes what belongs to m, and says whether the connection goes on.
func (b *rawBackend) answer(out *strings.Builder, m *corpus.Message) bool {
	b.serial++
	serial, key := fmt.Sprint(b.serial), m.Key()
	b.seen = append(b.seen, corpus.Seen{Serial: serial, Key: key})
	status, body := "200 OK", "request "+serial+"\n"
	if m.Method == "CONNECT" {
		status = "405 Method Not Allowed" // else a tunnel, and no HTTP behind it
	}
	fmt.Fprintf(out, "HTTP/1.1 %s\r\n%s: %s\r\n%s: %s\r\n%s: %s\r\nContent-Length: %d\r\n",
		status, corpus.SerialField, serial, corpus.KeyField, key, corpus.MethodField, m.Method, len(body))
	if !m.Persists() {
		out.WriteString("Connection: close\r\n")
	}
	out.WriteString("\r\n")
	if m.Method != "HEAD" {
		out.WriteString(body)
	}
	return m.Persists()
}

// refuse answers what cannot be understood.
func (b *rawBackend) refuse(out *strings.Builder) {
	b.serial++
	b.seen = append(b.seen, corpus.Seen{Serial: fmt.Sprint(b.serial)})
	fmt.Fprintf(out, "HTTP/1.1 400 Bad Request\r\n%s: %d\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", corpus.SerialField, b.serial)
}

// begin forgets what was. What another stream has left half done is closed.
func (b *rawBackend) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	kept := b.conns[:0]
	for _, c := range b.conns {
		switch {
		case !c.open:
		case c.within:
			_ = c.conn.Close()
		default:
			c.octets = nil
			kept = append(kept, c)
		}
	}
	b.conns, b.seen = kept, nil
}

// state tells how many octets came since begin, how many requests were seen,
// and whether a message is under way.
func (b *rawBackend) state() (octets, seen int, within bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.conns {
		octets += len(c.octets)
		within = within || c.open && c.within
	}
	return octets, len(b.seen), within
}

// quietFor is how long nothing has come.
func (b *rawBackend) quietFor() time.Duration {
	return time.Duration(time.Now().UnixNano() - b.active.Load())
}

// end gives what came since begin: the octets of each connection that had any,
// and the requests that were answered.
func (b *rawBackend) end() (streams [][]byte, seen []corpus.Seen) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.conns {
		if len(c.octets) > 0 {
			streams = append(streams, append([]byte(nil), c.octets...))
		}
	}
	return streams, append([]corpus.Seen(nil), b.seen...)
}
