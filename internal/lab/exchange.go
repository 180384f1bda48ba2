package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// exchange is one request and the answer that is due to it. Both bodies are
// the streams of its number.
type exchange struct {
	id       uint32
	method   string
	up, down int
	chunked  bool   // the request's body
	frame    string // of the answer's: length, chunked, close, or "" as the origin likes
	expect   bool   // Expect: 100-continue
	early    bool   // the origin answers before it has read the body
	old      bool   // HTTP/1.0
	last     bool   // Connection: close
	wait     int    // milliseconds that the origin thinks

	// rest is slept after each so many octets of the body: a slow client.
	upRest, downRest   time.Duration
	upBurst, downBurst int

	began time.Time
}

func (x *exchange) String() string {
	return fmt.Sprintf("%s %d (up %d chunked %v, down %d %q, expect %v, early %v, 1.0 %v)",
		x.method, x.id, x.up, x.chunked, x.down, x.frame, x.expect, x.early, x.old)
}

// wrongError is what no dying backend explains: an octet that is not the right
// one, an answer to somebody else's request, a torso that looks whole.
type wrongError struct{ what string }

func (e wrongError) Error() string { return e.what }

func wrongf(format string, args ...any) error { return wrongError{fmt.Sprintf(format, args...)} }

// webConn is a client's connection. It repeats nothing: what goes wrong is
// seen. One goroutine sends and receives; send may have one of its own.
type webConn struct {
	conn net.Conn
	in   *bufio.Reader
	seed uint64
	host string
	used int // exchanges received

	last *http.Response // the head of the last answer
}

// dialWeb connects from a host. bufferBytes bounds the receive buffer; 0 leaves
// it to the kernel.
func dialWeb(from *Host, to netip.AddrPort, seed uint64, bufferBytes int) (*webConn, error) {
	var c net.Conn
	dial := func() (err error) {
		d := net.Dialer{Timeout: connectPatience, Control: bounded(bufferBytes)}
		d.SetMultipathTCP(false)
		c, err = d.Dial("tcp", to.String())
		return err
	}
	var err error
	if from == nil {
		err = dial()
	} else {
		err = from.Do(dial)
	}
	if err != nil {
		return nil, err
	}
	return &webConn{conn: c, in: bufio.NewReaderSize(c, 4<<10), seed: seed, host: to.String()}, nil
}

// patience bounds the longest exchange of a lab: nobody waits for ever.
const webPatience = 60 * time.Second

// send sends the request; its body, too, unless the answer to an Expect is to
// be awaited first.
func (c *webConn) send(x *exchange) error {
	_ = c.conn.SetDeadline(time.Now().Add(webPatience))
	var b strings.Builder
	version := "1.1"
	if x.old {
		version = "1.0"
	}
	fmt.Fprintf(&b, "%s /o?id=%d&up=%d&down=%d&frame=%s&wait=%d", x.method, x.id, x.up, x.down, x.frame, x.wait)
	if x.early {
		b.WriteString("&early=1")
	}
	fmt.Fprintf(&b, " HTTP/%s\r\nHost: %s\r\nUser-Agent: holdfast-lab\r\n%s: %d\r\n", version, c.host, idField, x.id)
	if x.last {
		b.WriteString("Connection: close\r\n")
	}
	switch {
	case x.chunked:
		b.WriteString("Transfer-Encoding: chunked\r\n")
	case x.up > 0 || x.method == http.MethodPost || x.method == http.MethodPut:
		fmt.Fprintf(&b, "Content-Length: %d\r\n", x.up)
	}
	if x.expect {
		b.WriteString("Expect: 100-continue\r\n")
	}
	b.WriteString("\r\n")
	head := []byte(b.String())
	if x.expect || x.up == 0 && !x.chunked {
		_, err := c.conn.Write(head)
		return err
	}
	return c.sendBody(head, x)
}

// sendBody sends the body, in the first write together with what is in head.
func (c *webConn) sendBody(head []byte, x *exchange) error {
	burst := x.upBurst
	if burst == 0 {
		burst = 32 << 10
	}
	s, buf := NewStream(c.seed, x.id, Up), make([]byte, burst)
	out := head
	for off := 0; off < x.up; {
		b := buf[:min(burst, x.up-off)]
		s.Fill(b, uint64(off))
		if x.chunked {
			out = fmt.Appendf(out, "%x\r\n", len(b))
		}
		out = append(out, b...)
		if x.chunked {
			out = append(out, "\r\n"...)
		}
		if _, err := c.conn.Write(out); err != nil {
			return err
		}
		off, out = off+len(b), out[:0]
		if x.upRest > 0 {
			_ = c.conn.SetDeadline(time.Now().Add(webPatience))
			time.Sleep(x.upRest)
		}
	}
	if x.chunked {
		out = append(out, "0\r\n\r\n"...)
	}
	if len(out) == 0 {
		return nil
	}
	_, err := c.conn.Write(out)
	return err
}

// receive takes the answer and compares it with what is due.
func (c *webConn) receive(x *exchange) error {
	var res *http.Response
	for {
		var err error
		if res, err = http.ReadResponse(c.in, &http.Request{Method: x.method}); err != nil {
			return readError(err)
		}
		if res.StatusCode >= 200 {
			break
		}
		if res.StatusCode != http.StatusContinue {
			return wrongf("%v: status %d", x, res.StatusCode)
		}
		if x.expect {
			x.expect = false
			if err := c.sendBody(nil, x); err != nil {
				return err
			}
		}
	}
	c.last = res
	if res.StatusCode != http.StatusOK || res.Header.Get(idField) == "" {
		_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10))
		if res.Header.Get(originField) != "" {
			return wrongf("%v: the origin answers %d", x, res.StatusCode)
		}
		return statusError{res.StatusCode}
	}
	if got := res.Header.Get(idField); got != strconv.Itoa(int(x.id)) {
		return wrongf("%v: the answer of request %s", x, got)
	}
	if got := res.Header.Get(upField); !x.early && got != strconv.Itoa(x.up) {
		return wrongf("%v: the origin had %s octets", x, got)
	}
	want := x.down
	if x.method == http.MethodHead {
		want = 0
	}
	if res.ContentLength >= 0 && x.method != http.MethodHead && res.ContentLength != int64(want) {
		return wrongf("%v: Content-Length %d", x, res.ContentLength)
	}
	if err := c.takeBody(x, res.Body, want); err != nil {
		return err
	}
	c.used++
	if !x.last {
		return nil
	}
	// RFC 9112, section 9.6: the server closes after it.
	_ = c.conn.SetReadDeadline(time.Now().Add(connectPatience))
	_, err := c.in.ReadByte()
	if n := net.Error(nil); err == nil || errors.As(err, &n) && n.Timeout() {
		return wrongf("%v: the connection stays open, though its end was asked for (%v)", x, err)
	}
	c.last.Close = true
	return nil
}

// takeBody verifies the answer's body.
func (c *webConn) takeBody(x *exchange, body io.Reader, want int) error {
	burst := x.downBurst
	if burst == 0 {
		burst = 32 << 10
	}
	v, buf := Verifier{Stream: NewStream(c.seed, x.id, Down)}, make([]byte, burst)
	for {
		n, err := body.Read(buf)
		if w := v.Feed(buf[:n]); w != nil {
			return wrongf("%v: %v", x, w)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return readError(err)
		}
		if x.downRest > 0 {
			_ = c.conn.SetDeadline(time.Now().Add(webPatience))
			time.Sleep(x.downRest)
		}
	}
	if v.Off != uint64(want) {
		return wrongf("%v: the answer ends after %d octets as if it were whole", x, v.Off)
	}
	return nil
}

// readError tells an answer that cannot be parsed, which is wrong, from a
// connection that broke off.
func readError(err error) error {
	var n net.Error
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.As(err, &n) {
		return err
	}
	return wrongError{err.Error()}
}

// mayStay says whether the connection can carry another exchange.
func (c *webConn) mayStay() bool { return c.last != nil && !c.last.Close }

// do makes one exchange. A request is sent while its answer is read: either
// may begin first.
func (c *webConn) do(x *exchange) error {
	x.began = time.Now()
	if x.up < 64<<10 && !x.early || x.expect {
		if err := c.send(x); err != nil {
			return c.lastWord(x, err)
		}
		return c.receive(x)
	}
	sent := make(chan error, 1)
	go func() { sent <- c.send(x) }()
	err := c.receive(x)
	if x.early {
		_ = c.conn.SetWriteDeadline(time.Now()) // nobody waits for the rest
		<-sent
		if err == nil {
			c.last.Close = true // the request may be a torso
		}
		return err
	}
	if err != nil {
		_ = c.conn.SetDeadline(time.Now())
	}
	return errors.Join(err, <-sent)
}

// lastWord looks for an answer when a request could not be sent to its end:
// servers that refuse say so before they close.
func (c *webConn) lastWord(x *exchange, sent error) error {
	if err := c.receive(x); err != nil {
		var s statusError
		if errors.As(err, &s) {
			return err
		}
	}
	return sent
}

func (c *webConn) close() { _ = c.conn.Close() }
