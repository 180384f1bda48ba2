package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/h1"
	"github.com/holdfast-lb/holdfast/internal/health"
)

// Bounds of what a peer may say to a probe, in octets.
const (
	bodyMax  = 64 << 10 // of content, for an expression that looks for something
	agentMax = 1 << 10
)

// room is where answers are read into; only a body that is looked at outgrows it.
var room = sync.Pool{New: func() any { b := make([]byte, 2<<10); return &b }}

var limits = h1.Limits{LineMax: 8 << 10, HeadMax: h1.HeadMost, FieldsMax: h1.FieldsMost}

// request is what an HTTP check sends, made once for a target.
func request(t *Target) []byte {
	c := t.Check
	if t.Agent || c.Kind != config.CheckHTTP {
		return nil
	}
	host := c.Host
	if host == "" {
		if host = t.Address; t.Network == "unix" {
			host = "localhost"
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", c.Method, c.Path, host)
	agent := true
	for _, h := range c.Headers {
		agent = agent && !strings.EqualFold(h.Name, "User-Agent")
		fmt.Fprintf(&b, "%s: %s\r\n", h.Name, h.Value)
	}
	if agent {
		b.WriteString("User-Agent: holdfast-check\r\n")
	}
	b.WriteString("Connection: close\r\n\r\n")
	return []byte(b.String())
}

// probe asks t once. slow tells that it had no answer in time.
func (e *Engine) probe(t *Target, octets []byte) (r health.Result, slow bool) {
	began := time.Now()
	deadline := began.Add(t.Check.Timeout)
	r, err := e.ask(t, octets, deadline)
	r.Took = time.Since(began)
	if err == nil {
		return r, false
	}
	r.Good, r.Drain = false, false
	if slow = errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded); slow {
		r.Why = fmt.Sprintf("no answer in %v", t.Check.Timeout)
	} else {
		r.Why = plain(err)
	}
	return r, slow
}

// plain is an error without what everybody knows: who asked whom.
func plain(err error) string {
	var no *os.SyscallError
	if errors.As(err, &no) {
		return no.Err.Error()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "closed without a full answer"
	}
	return err.Error()
}

func (e *Engine) ask(t *Target, octets []byte, deadline time.Time) (r health.Result, err error) {
	d := net.Dialer{Deadline: deadline, KeepAlive: -1}
	d.SetMultipathTCP(false)
	if t.Source.IsValid() {
		d.LocalAddr = &net.TCPAddr{IP: t.Source.AsSlice()}
	}
	c, err := d.DialContext(e.ctx, t.Network, t.Address)
	if err != nil {
		return r, err
	}
	defer e.release(c)
	if !e.hold(c) {
		return r, context.Canceled
	}
	// Closing first would leave the kernel a connection in TIME-WAIT for each
	// probe, thousands a second. Who is probed loses nothing by a reset.
	if c, ok := c.(*net.TCPConn); ok {
		_ = c.SetLinger(0)
	}
	if t.Agent || t.Check.Kind != config.CheckTCP || t.Check.Send != "" || t.Check.Expect != "" {
		if err := c.SetDeadline(deadline); err != nil {
			return r, err
		}
	}
	b := room.Get().(*[]byte)
	defer room.Put(b)
	switch {
	case t.Agent:
		return askAgent(c, t.Check.Agent.Send, (*b)[:agentMax])
	case t.Check.Kind == config.CheckHTTP:
		return askHTTP(c, t.Check, octets, *b)
	}
	return askTCP(c, t.Check, *b)
}

func askTCP(c net.Conn, x *config.Check, b []byte) (r health.Result, err error) {
	if x.Send != "" {
		if _, err := io.WriteString(c, x.Send); err != nil {
			return r, err
		}
	}
	if x.Expect == "" {
		return health.Result{Good: true, Why: "connected"}, nil
	}
	b = b[:min(len(b), len(x.Expect))]
	n, err := io.ReadFull(c, b)
	if got := string(b[:n]); !strings.HasPrefix(x.Expect, got) {
		return r, fmt.Errorf("answered %q, want %q", cut(got), cut(x.Expect))
	}
	if err != nil {
		return r, err
	}
	return health.Result{Good: true, Why: "answered as expected"}, nil
}

// cut is the beginning of what may be long.
func cut(s string) string { return s[:min(len(s), 40)] }

func askAgent(c net.Conn, send string, b []byte) (r health.Result, err error) {
	if send != "" {
		if _, err := io.WriteString(c, send); err != nil {
			return r, err
		}
	}
	n := 0
	for n < len(b) && !strings.Contains(string(b[:n]), "\n") {
		k, err := c.Read(b[n:])
		n += k
		if errors.Is(err, io.EOF) && n > 0 {
			break
		}
		if err != nil {
			return r, err
		}
	}
	said, err := health.ParseAgent(string(b[:n]))
	if err != nil {
		return r, err
	}
	return health.Result{Good: true, Why: "agent: " + said.Line, Said: said}, nil
}

// methods are those whose responses are framed in their own way, and the usual
// one.
var methods = map[string]h1.Method{"GET": h1.GET, "HEAD": h1.HEAD}

func askHTTP(c net.Conn, x *config.Check, request, b []byte) (r health.Result, err error) {
	if _, err := c.Write(request); err != nil {
		return r, err
	}
	var head h1.Head
	n, from := 0, 0
	for {
		size, scanned, bad := h1.Scan(b[:n], from, &limits)
		if bad != nil {
			return r, errors.New("no HTTP: " + bad.Why)
		}
		if size == 0 {
			if from = scanned; n == len(b) {
				b = append(b, make([]byte, len(b))...)
			}
			k, err := c.Read(b[n:])
			if n += k; k == 0 && err != nil {
				return r, err
			}
			continue
		}
		if bad := head.Response(b[:size], methods[x.Method], &limits); bad != nil {
			return r, errors.New("no HTTP: " + bad.Why)
		}
		if head.Status >= 200 || head.Status == 101 {
			b = b[:cap(b)]
			return judge(c, x, &head, b, size, n)
		}
		n, from = copy(b, b[size:n]), 0 // an interim response: the other follows
	}
}

// judge looks at a response whose head is b[:size], with more of it up to n.
func judge(c net.Conn, x *config.Check, head *h1.Head, b []byte, size, n int) (r health.Result, err error) {
	r.Why = fmt.Sprintf("status %d", head.Status)
	if config.In(x.Drain, head.Status) {
		r.Good, r.Drain = true, true
		return r, nil
	}
	if !config.In(x.Statuses, head.Status) {
		return r, errors.New(r.Why)
	}
	if x.Body == nil {
		r.Good = true
		return r, nil
	}
	body := h1.NewBody(head.Framing, head.Length)
	var content []byte
	feed := func(p []byte) error {
		_, out, bad := body.Feed(p, true)
		content = append(content, p[:min(out, bodyMax-len(content))]...)
		if bad != nil {
			return errors.New("no HTTP: " + bad.Why)
		}
		return nil
	}
	if err := feed(b[size:n]); err != nil {
		return r, err
	}
	for !body.Done() && len(content) < bodyMax {
		k, err := c.Read(b)
		if bad := feed(b[:k]); bad != nil {
			return r, bad
		}
		if errors.Is(err, io.EOF) {
			if bad := body.End(); bad != nil {
				return r, io.ErrUnexpectedEOF
			}
			break
		}
		if err != nil {
			return r, err
		}
	}
	if !x.Body.Match(content) {
		return r, fmt.Errorf("status %d, but the content does not match %q", head.Status, x.Body)
	}
	r.Good = true
	return r, nil
}
