package lab

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// run is the life of a flow at its client.
func (f *HTTPFlow) run() {
	w := f.web
	for n := 0; ; {
		c, err := f.dial()
		if err != nil {
			w.fault(f, Refused, "client", err)
			break
		}
		f.Opened.CompareAndSwap(0, max(w.t.now(), 1))
		n, err = f.script(c, n)
		w.forget(c)
		if err != nil {
			w.fault(f, faultOf(err), "client", err)
			break
		}
		if f.Kind != HTTPEarly || f.over() {
			break
		}
	}
	lost := len(f.Faults()) > 0
	w.mu.Lock()
	if !lost { // else the server may still hear of it
		delete(w.flows, f.ID)
		w.count[f.Kind].done++
	}
	w.mu.Unlock()
	f.Finished.Store(max(w.t.now(), 1))
}

// script is what a client does on one connection, from request n on. It gives
// the number of the next request.
func (f *HTTPFlow) script(c *httpConn, n int) (int, error) {
	for {
		x := f.plan(n)
		var err error
		switch {
		case x.early:
			return n + 1, f.askEarly(c, n, x)
		case f.Kind == HTTPPipelined && n > 0:
			n, err = f.pipeline(c, n)
		case x.status == 101:
			err = f.webSocketClient(c, n, x)
			return n + 1, err
		case x.method == "CONNECT":
			err = f.connectClient(c, n, x)
			return n + 1, err
		default:
			if err = f.ask(c, n, x); err == nil {
				err = f.hear(c, n, x)
			}
			n++
		}
		if err != nil {
			return n, err
		}
		f.Served.CompareAndSwap(0, max(f.web.t.now(), 1))
		if f.Kind == HTTPShort {
			return n, f.farewell(c, x.clientEnds || x.minor == 0 || x.down.framing == httpUntilFIN)
		}
		if err := c.rest(f, x.rest); err != nil {
			return n, err
		}
		if f.over() {
			return n, f.farewell(c, false)
		}
	}
}

// farewell ends a connection on which nothing is under way. The other end ends
// it too, and by itself if that was asked for.
func (f *HTTPFlow) farewell(c *httpConn, byItself bool) error {
	if !byItself {
		if err := c.closeWrite(); err != nil {
			return fmt.Errorf("FIN: %w", err)
		}
	}
	c.wait(httpPatience, "FIN at the end")
	switch _, err := c.br.Peek(1); {
	case err == nil:
		return c.untimely()
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("instead of FIN: %w", err)
	}
	return nil
}

// requestHead is the head of the n-th request.
func (f *HTTPFlow) requestHead(n int, x httpPlan) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.%d\r\nHost: %s\r\n", x.method, f.target(n), x.minor, httpHost)
	fmt.Fprintf(&b, "%s: %s\r\n%s: %s\r\n", httpIDField, f.httpID(n), httpFillField, f.fill(Up, n))
	framingFields(&b, x.up)
	if x.expect > 0 {
		b.WriteString("Expect: 100-continue\r\n")
	}
	if x.clientEnds {
		b.WriteString("Connection: close\r\n")
	}
	if x.status == 101 {
		fmt.Fprintf(&b, "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n", f.webSocketKey())
	}
	b.WriteString("\r\n")
	return []byte(b.String())
}

func framingFields(b *strings.Builder, body httpBody) {
	switch body.framing {
	case httpByLength:
		fmt.Fprintf(b, "Content-Length: %d\r\n", body.size)
	case httpChunked:
		b.WriteString("Transfer-Encoding: chunked\r\n")
		if body.trailer {
			fmt.Fprintf(b, "Trailer: %s\r\n", httpSumField)
		}
	case httpNoBody, httpUntilFIN:
	}
}

// cuts are where a head of so many octets is cut: some anywhere, some where a
// parser is between two things.
func (f *HTTPFlow) cuts(n, octets, pieces int) []int {
	delicate := []int{1, 3, 4, octets - 1, octets - 2, octets - 3, octets - 4}
	var at []int
	for i := range pieces - 1 {
		h := mix(f.sizes + uint64(n)*golden + uint64(i))
		if i%2 == 0 {
			at = append(at, delicate[h%uint64(len(delicate))])
		} else {
			at = append(at, 1+int(h%uint64(octets-1)))
		}
	}
	slices.Sort(at)
	return append(slices.Compact(at), octets)
}

// ask sends a request.
func (f *HTTPFlow) ask(c *httpConn, n int, x httpPlan) error {
	err := f.askBare(c, n, x)
	var status httpStatusError
	if err == nil || errors.As(err, &status) {
		return err
	}
	// Who refuses a request may say why before it ends the connection.
	c.wait(100*time.Millisecond, "a last word")
	if res, e := http.ReadResponse(c.br, nil); e == nil {
		err = fmt.Errorf("%w (%w)", httpStatusError{res.StatusCode, "within the request"}, err)
	}
	return fmt.Errorf("request %d: %w", n, err)
}

func (f *HTTPFlow) askBare(c *httpConn, n int, x httpPlan) error {
	c.doing.Store(fmt.Sprintf("sends request %d", n))
	head, from := f.requestHead(n, x), 0
	for _, to := range f.cuts(n, len(head), x.headPieces) {
		if from > 0 && !f.over() {
			c.doing.Store(fmt.Sprintf("rests at octet %d of %d of head %d", from, len(head), n))
			if err := c.rest(f, x.headRest); err != nil {
				return fmt.Errorf("head: %w", err)
			}
		}
		if _, err := c.Write(head[from:to]); err != nil {
			return fmt.Errorf("head: %w", err)
		}
		from = to
	}
	if x.expect > 0 {
		c.wait(httpPatience, "100 for request %d", n)
		res, err := http.ReadResponse(c.br, nil)
		if err != nil {
			return fmt.Errorf("100: %w", err)
		}
		if res.StatusCode != 100 {
			return httpStatusError{res.StatusCode, "in place of 100"}
		}
		if !httpReason(res) {
			return httpWrongf("status %q", res.Status)
		}
	}
	if x.up.framing == httpNoBody {
		return nil
	}
	p := &httpPacer{f: f, w: c, piece: x.up.piece, every: x.up.every, rest: func(d time.Duration) error { return c.rest(f, d) }}
	if err := f.sendBody(p, Up, n, x.up); err != nil {
		return fmt.Errorf("body: %w", err)
	}
	return nil
}

// hear verifies the answer to the n-th request.
func (f *HTTPFlow) hear(c *httpConn, n int, x httpPlan) error {
	began := f.web.t.now()
	c.wait(httpPatience, "the answer to %d", n)
	c.behind = c.out // the server may have most of the request's body still to take
	if f.Kind == HTTPDialing || f.Kind == HTTPQueued {
		c.wait(0, "the answer to %d", n)
	}
	if err := f.hearBare(c, n, x); err != nil {
		return fmt.Errorf("answer %d: %w", n, err)
	}
	f.web.counted(f, 1, 0)
	if f.Kind == HTTPExchange {
		f.web.mu.Lock()
		f.web.rtt[f.web.t.label.Load()].Add(time.Duration(f.web.t.now() - began))
		f.web.mu.Unlock()
	}
	return nil
}

func (f *HTTPFlow) hearBare(c *httpConn, n int, x httpPlan) error {
	res, err := f.readHead(c, n, x)
	if err != nil {
		return err
	}
	length := int64(-1)
	if x.down.framing == httpByLength {
		length = int64(x.down.size)
	}
	chunked := len(res.TransferEncoding) > 0
	want := x.down.framing == httpChunked && x.minor == 1
	switch {
	case x.status == 204 || x.status == 304:
	case x.method == "HEAD":
		x.down.size = 0 // and yet it may be told
		if length >= 0 && res.ContentLength != length {
			return httpWrongf("Content-Length %d of HEAD, want %d", res.ContentLength, length)
		}
	case x.minor == 1 && chunked != want:
		return httpWrongf("Transfer-Encoding %q", res.TransferEncoding)
	case x.minor == 0 && chunked:
		return httpWrongf("chunks for a client of HTTP/1.0")
	case length >= 0 && x.minor == 1 && res.ContentLength != length:
		return httpWrongf("Content-Length %d, want %d", res.ContentLength, length)
	}
	if err := f.takeBody(c, res.Body, Down, n, x.down); err != nil {
		return err
	}
	if sum := res.Trailer.Get(httpSumField); x.down.trailer && want && sum != f.sum(Down, n) {
		return httpWrongf("trailer %q, want %q", sum, f.sum(Down, n))
	}
	return nil
}

// readHead reads heads up to the answer's own.
func (f *HTTPFlow) readHead(c *httpConn, n int, x httpPlan) (*http.Response, error) {
	hinted := false
	for {
		res, err := http.ReadResponse(c.br, &http.Request{Method: x.method})
		switch {
		case err != nil:
			return nil, err
		case !httpReason(res):
			return nil, httpWrongf("status %q", res.Status)
		case res.StatusCode == 103 && x.hints && !hinted:
			hinted = true
			if got := res.Header.Get(httpIDField); got != f.httpID(n) {
				return nil, httpWrongf("hints for request %q", got)
			}
			continue
		case res.StatusCode != x.status:
			return nil, httpStatusError{res.StatusCode, fmt.Sprintf("in place of %d", x.status)}
		case hinted != x.hints:
			return nil, httpWrongf("no hints before the answer")
		}
		if got := res.Header.Get(httpIDField); got != f.httpID(n) {
			return nil, httpWrongf("the answer to request %q, want %q", got, f.httpID(n))
		}
		if got := res.Header.Get(httpFillField); got != f.fill(Down, n) {
			return nil, httpDiffers(httpFillField, got, f.fill(Down, n))
		}
		return res, nil
	}
}

// httpReason says whether the reason is the one that the server gave.
func httpReason(res *http.Response) bool {
	return res.Status == fmt.Sprintf("%d %s", res.StatusCode, http.StatusText(res.StatusCode))
}

// pipeline sends several requests before it reads an answer. Their number
// brings them above what a balancer may keep of them, now and then.
func (f *HTTPFlow) pipeline(c *httpConn, n int) (next int, err error) {
	h := mix(f.sizes + uint64(n)*golden + 50)
	depth := 2 + int(h%8)
	if h>>32%8 == 0 {
		depth = 40
	}
	var all []byte
	for i := range depth {
		all = append(all, f.requestHead(n+i, f.plan(n+i))...)
	}
	// Cut once, for that a request comes in two parts behind whole ones.
	c.doing.Store(fmt.Sprintf("sends requests %d to %d", n, n+depth-1))
	cut := int(mix(h) % uint64(len(all)))
	for _, part := range [][]byte{all[:cut], all[cut:]} {
		if _, err := c.Write(part); err != nil {
			return n, fmt.Errorf("request %d: %w", n, err)
		}
		f.sleep(jittered(h, 100*time.Millisecond), nil)
	}
	for i := range depth {
		if err := f.hear(c, n+i, f.plan(n+i)); err != nil {
			return n, err
		}
	}
	return n + depth, nil
}

// earlyGoesOn is how long a client goes on with a body after its answer.
const earlyGoesOn = 1500 * time.Millisecond

// askEarly sends a request whose answer comes before its body has ended, hears
// it to the end while it sends, and goes on sending: the balancer has to take
// that until it may close. How it then closes is its own affair.
func (f *HTTPFlow) askEarly(c *httpConn, n int, x httpPlan) error {
	c.doing.Store(fmt.Sprintf("sends request %d", n))
	if _, err := c.Write(f.requestHead(n, x)); err != nil {
		return fmt.Errorf("request %d: head: %w", n, err)
	}
	heard := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		quit := errors.New("enough") // the answer is there, and some more was sent
		until := time.Time{}
		p := &httpPacer{f: f, w: c, piece: x.up.piece, every: x.up.every, rest: func(d time.Duration) error {
			f.sleep(d, nil)
			select {
			case <-heard:
				if until.IsZero() {
					until = time.Now().Add(earlyGoesOn)
				}
			default:
			}
			if f.over() || !until.IsZero() && time.Now().After(until) {
				return quit
			}
			return nil
		}}
		err := f.sendBody(p, Up, n, x.up)
		select {
		case <-heard: // after the answer any end of the connection is right
			err = nil
		default:
			if errors.Is(err, quit) {
				err = nil
			}
		}
		done <- err
	}()
	err := f.hear(c, n, x)
	close(heard)
	if err != nil {
		_ = c.Close()
		<-done
		return err
	}
	f.Served.CompareAndSwap(0, max(f.web.t.now(), 1))
	return <-done
}
