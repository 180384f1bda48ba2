package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Serve lets the connections of a door be served with HTTP.
func (w *HTTPTraffic) Serve(d *Door) {
	load := &httpLoad{}
	w.inFlight.Store(d, load)
	take := func(fd int) {
		file := os.NewFile(uintptr(fd), "accepted")
		conn, err := net.FileConn(file) // a duplicate
		_ = file.Close()
		if err != nil {
			w.fault(nil, Intruder, "server", err)
			d.Active.Add(-1)
			return
		}
		c := w.adopt(conn)
		if c == nil {
			d.Active.Add(-1)
			return
		}
		w.accepted.Add(1)
		w.work.Add(1)
		go func() {
			defer w.work.Done()
			defer d.Active.Add(-1)
			defer w.forget(c)
			w.serve(c, load)
		}()
	}
	d.eng.call(func() { d.take = take })
}

// MostInFlight is how many requests to a door were under way at once.
func (w *HTTPTraffic) MostInFlight(d *Door) int {
	load, _ := w.inFlight.Load(d)
	return int(load.(*httpLoad).most.Load())
}

// serve answers the requests of a connection, which may be of many flows.
func (w *HTTPTraffic) serve(c *httpConn, load *httpLoad) {
	for {
		c.in, c.out = nil, nil
		c.wait(0, "a request")
		if _, err := c.br.Peek(1); err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				w.idleResets.Add(1)
			}
			return
		}
		c.wait(0, "the rest of a head")
		req, err := http.ReadRequest(c.br)
		if err != nil {
			if faultOf(err) == WrongOctet {
				w.fault(nil, WrongOctet, "server", fmt.Errorf("a request: %w", err))
			} else {
				w.halfHeads.Add(1)
			}
			return
		}
		f, n, err := w.whose(req)
		if err != nil {
			w.fault(f, Intruder, "server", err)
			return
		}
		x := f.plan(n)
		c.serves(f, Down)
		load.enter()
		err = f.answer(c, req, n, x, sync.OnceFunc(func() { load.now.Add(-1) }))
		if err != nil {
			w.fault(f, faultOf(err), "server", fmt.Errorf("request %d: %w", n, err))
			return
		}
		if f.ends(req, x) {
			return
		}
	}
}

func (l *httpLoad) enter() {
	now := l.now.Add(1)
	for most := l.most.Load(); now > most && !l.most.CompareAndSwap(most, now); most = l.most.Load() {
	}
}

// ends says whether the server closes after an answer.
func (f *HTTPFlow) ends(req *http.Request, x httpPlan) bool {
	return x.serverEnds || req.Close || x.down.framing == httpUntilFIN || x.status == 101 || x.method == "CONNECT"
}

// whose finds the flow of a request, and sees that it is the one that is due.
func (w *HTTPTraffic) whose(req *http.Request) (*HTTPFlow, int, error) {
	name := req.Header.Get(httpIDField)
	id, rest, _ := strings.Cut(name, "-")
	number, _, _ := strings.Cut(rest, "-")
	flow, err := strconv.ParseUint(id, 10, 32)
	n, err2 := strconv.Atoi(number)
	if err != nil || err2 != nil {
		return nil, 0, fmt.Errorf("a request of no flow: %s: %q", httpIDField, name)
	}
	f := w.flow(uint32(flow))
	if f == nil {
		return nil, 0, fmt.Errorf("flow %d is over or never was", flow)
	}
	if name != f.httpID(n) {
		return f, 0, fmt.Errorf("%s: %q is not of this run", httpIDField, name)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if n != f.due {
		return f, 0, fmt.Errorf("request %d came, %d is due", n, f.due)
	}
	f.due++
	return f, n, nil
}

// wantRequest compares a request's head with the one that was sent.
func (f *HTTPFlow) wantRequest(req *http.Request, n int, x httpPlan) error {
	target := req.RequestURI
	length := int64(0)
	if x.up.framing == httpByLength {
		length = int64(x.up.size)
	}
	chunked := len(req.TransferEncoding) > 0
	switch fill := req.Header.Get(httpFillField); {
	case req.Method != x.method:
		return httpWrongf("method %q, want %q", req.Method, x.method)
	case target != f.target(n):
		return httpDiffers("target", target, f.target(n))
	case req.Host != httpHost:
		return httpWrongf("host %q, want %q", req.Host, httpHost)
	case fill != f.fill(Up, n):
		return httpDiffers(httpFillField, fill, f.fill(Up, n))
	case chunked != (x.up.framing == httpChunked):
		return httpWrongf("Transfer-Encoding %q", req.TransferEncoding)
	case !chunked && req.ContentLength != length:
		return httpWrongf("Content-Length %d, want %d", req.ContentLength, length)
	case (req.Header.Get("Expect") != "") != (x.expect > 0):
		return httpWrongf("Expect: %q", req.Header.Get("Expect"))
	case x.status == 101 && (req.Header.Get("Sec-WebSocket-Key") != f.webSocketKey() || req.Header.Get("Upgrade") != "websocket"):
		return httpWrongf("Upgrade: %q, Sec-WebSocket-Key: %q", req.Header.Get("Upgrade"), req.Header.Get("Sec-WebSocket-Key"))
	}
	return nil
}

// answer takes a request to its end and answers it. From leave on it is under
// way no longer: whoever has the last octet of the answer may send another
// request before this end knows that it has sent it.
func (f *HTTPFlow) answer(c *httpConn, req *http.Request, n int, x httpPlan, leave func()) error {
	defer leave()
	if err := f.wantRequest(req, n, x); err != nil {
		return err
	}
	if x.hints {
		if _, err := fmt.Fprintf(c, "HTTP/1.1 103 Early Hints\r\n%s: %s\r\n\r\n", httpIDField, f.httpID(n)); err != nil {
			return err
		}
	}
	if x.expect > 0 {
		f.sleep(x.expect, nil)
		if _, err := io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
			return err
		}
	}
	if x.early {
		return f.answerEarly(c, req, n, x)
	}
	if x.up.readPiece > 0 || x.down.readPiece > 0 {
		c.narrow()
	}
	if err := f.takeBody(c, req.Body, Up, n, x.up); err != nil {
		return err
	}
	if sum := req.Trailer.Get(httpSumField); x.up.trailer && x.up.framing == httpChunked && sum != f.sum(Up, n) {
		return httpWrongf("trailer %q, want %q", sum, f.sum(Up, n))
	}
	f.sleep(x.think, nil)
	leave()
	if err := f.sendAnswer(c, req, n, x); err != nil {
		return err
	}
	switch {
	case x.status == 101:
		return f.webSocketServer(c)
	case x.method == "CONNECT":
		return f.connectServer(c)
	}
	return nil
}

func (f *HTTPFlow) sendAnswer(c *httpConn, req *http.Request, n int, x httpPlan) error {
	if req.ProtoMinor == 0 && x.down.framing == httpChunked {
		x.down.framing = httpUntilFIN
	}
	var b strings.Builder
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n%s: %s\r\n", x.status, http.StatusText(x.status), httpIDField, f.httpID(n))
	fmt.Fprintf(&b, "%s: %s\r\n", httpFillField, f.fill(Down, n))
	framingFields(&b, x.down)
	switch {
	case x.status == 101:
		fmt.Fprintf(&b, "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n", webSocketAnswer(req.Header.Get("Sec-WebSocket-Key")))
	case x.method != "CONNECT" && f.ends(req, x):
		b.WriteString("Connection: close\r\n")
	}
	b.WriteString("\r\n")
	if _, err := io.WriteString(c, b.String()); err != nil {
		return err
	}
	if x.down.framing == httpNoBody || x.method == "HEAD" {
		return nil
	}
	p := &httpPacer{f: f, w: c, piece: x.down.piece, every: x.down.every, rest: func(d time.Duration) error {
		f.sleep(d, nil)
		return nil
	}}
	return f.sendBody(p, Down, n, x.down)
}

// answerEarly answers a request whose body is still to come, and reads on until
// the other side has enough: a server that closed with octets unread would
// reset the connection, its answer with it.
func (f *HTTPFlow) answerEarly(c *httpConn, req *http.Request, n int, x httpPlan) error {
	if err := f.sendAnswer(c, req, n, x); err != nil {
		return err
	}
	c.wait(httpPatience, "the end of a body that is not wanted")
	_, _ = io.Copy(io.Discard, req.Body)
	return nil
}
