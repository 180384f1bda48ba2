package admin

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/page"
)

// answered is one answer, read whole.
type answered struct {
	*http.Response
	text string
}

// from asks for path, by the socket or, if addr is not "", over TCP.
func (s *served) from(addr, path string, fields ...string) answered {
	s.t.Helper()
	client, host := s.http, "holdfast"
	if addr != "" {
		client, host = http.DefaultClient, addr
	}
	r, err := http.NewRequest(http.MethodGet, "http://"+host+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i+1 < len(fields); i += 2 {
		if r.Header.Set(fields[i], fields[i+1]); fields[i] == "Host" {
			r.Host = fields[i+1]
		}
	}
	a, err := client.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = a.Body.Close() }()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answered{a, string(b)}
}

// Pages are there by both doors, with what keeps a browser from harm; what is asked
// wrongly is said on the page.
func TestPages(t *testing.T) {
	addr := port(t)
	s := serving(t, ", name: here, admin: { metrics: "+addr+" }")
	c, err := net.Dial("tcp4", s.vip)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	client := c.LocalAddr().String()
	for _, door := range []string{"", addr} {
		for path, want := range map[string]string{
			"/": "lost since start", "/traffic": "endpoints", "/flows": "http-idle", "/flows?listener=web&backend=": "http-idle",
			"/flows?listener=raw": "No open connection", "/page.css": "prefers-color-scheme", "/page.js": "EventSource",
		} {
			a := s.from(door, path)
			if a.StatusCode != http.StatusOK || !strings.Contains(a.text, want) {
				t.Errorf("%q%s: status %d, without %q", door, path, a.StatusCode, want)
			}
			if a.Header.Get("Content-Security-Policy") != page.SecurityPolicy || a.Header.Get("X-Content-Type-Options") != "nosniff" || a.Header.Get("Set-Cookie") != "" {
				t.Errorf("%q%s: %v", door, path, a.Header)
			}
			if shown := strings.Contains(a.text, client); shown != (door == "" && strings.Contains(a.text, "http-idle")) {
				t.Errorf("%q%s: the client's address is shown: %t", door, path, shown)
			}
		}
		if a := s.from(door, "/flows?older=long"); a.StatusCode != http.StatusBadRequest || !strings.Contains(a.text, "is no duration") {
			t.Errorf("%q: status %d", door, a.StatusCode)
		}
		if a := s.from(door, "/nothing"); a.StatusCode != http.StatusNotFound {
			t.Errorf("%q: status %d", door, a.StatusCode)
		}
		if a := s.from(door, "/events?view=nothing"); a.StatusCode != http.StatusNotFound {
			t.Errorf("%q: status %d", door, a.StatusCode)
		}
	}
	// By a filter an address would be found out bit by bit.
	if a := s.from(addr, "/flows?client=127.0.0.0/8"); a.StatusCode != http.StatusBadRequest || strings.Contains(a.text, "http-idle") {
		t.Errorf("status %d", a.StatusCode)
	}
	if a := s.from("", "/flows?client=127.0.0.0/8"); a.StatusCode != http.StatusOK || !strings.Contains(a.text, client) {
		t.Errorf("status %d", a.StatusCode)
	}
	for _, name := range []string{"localhost:8080", "127.0.0.1:8080", "[::1]:8080", "[::1]"} {
		if a := s.from("", "/", "Host", name); a.StatusCode != http.StatusOK {
			t.Errorf("as %s: status %d", name, a.StatusCode)
		}
	}
	// What a page of somebody else's may have a browser do.
	if a := s.from("", "/holdfast.v1.Node/Status", "Host", "evil.example.org:8080"); a.StatusCode != http.StatusForbidden {
		t.Errorf("by another name: status %d", a.StatusCode)
	}
	r, err := http.NewRequest(http.MethodPost, "http://holdfast/holdfast.v1.Node/Rebalance", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	a, err := s.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = a.Body.Close()
	if a.StatusCode != http.StatusForbidden {
		t.Errorf("across sites: status %d", a.StatusCode)
	}
}

// stream is an open stream of events.
type stream struct {
	net.Conn
	lines *bufio.Reader
}

// open asks for events over TCP and gives the status.
func open(t *testing.T, addr, query string) (*stream, string) {
	t.Helper()
	c, err := new(net.Dialer).DialContext(context.Background(), "tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_, _ = io.WriteString(c, "GET /events?"+query+" HTTP/1.0\r\nHost: "+addr+"\r\n\r\n")
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	s := &stream{c, bufio.NewReader(c)}
	line, err := s.lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return s, strings.TrimSpace(strings.TrimPrefix(line, "HTTP/1.0 "))
}

// event reads one event; "": the stream has ended.
func (s *stream) event(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	for {
		line, err := s.lines.ReadString('\n')
		if err == io.EOF {
			return ""
		}
		if err != nil {
			t.Fatal(err)
		}
		if line == "\n" && strings.Contains(out.String(), "event: live") {
			return out.String()
		}
		out.WriteString(line)
	}
}

// A stream goes on until the server ends; there are not more than a number of
// them, and what one leaves another takes.
func TestEvents(t *testing.T) {
	addr := port(t)
	s := serving(t, ", admin: { metrics: "+addr+" }")
	var all []*stream
	for range streamsMax {
		x, status := open(t, addr, "view=overview")
		if status != "200 OK" {
			t.Fatal(status)
		}
		all = append(all, x)
	}
	for range 2 {
		if e := all[0].event(t); !strings.Contains(e, "data: <div class=\"proof") || strings.Contains(e, "<html") {
			t.Fatalf("%s", e)
		}
	}
	if _, status := open(t, addr, "view=overview"); !strings.HasPrefix(status, "503") {
		t.Errorf("one too many: %s", status)
	}
	if a := s.from("", "/events?view=flows"); a.StatusCode != http.StatusServiceUnavailable || a.Header.Get("Retry-After") == "" {
		t.Errorf("one too many, by the other door: %d", a.StatusCode)
	}
	_ = all[3].Close()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if x, status := open(t, addr, "view=flows&listener=web"); status == "200 OK" {
			if e := x.event(t); !strings.Contains(e, "No open connection") {
				t.Errorf("%s", e)
			}
			break
		}
		if time.Now().After(end) {
			t.Fatal("the place of one that has left stays taken")
		}
	}
	s.server.Drain()
	for i, x := range all {
		if i == 3 {
			continue
		}
		for x.event(t) != "" {
		}
	}
}

// A stream, or a page that is being made, does not outlive the server: after Close
// nobody asks the node.
func TestEventsEndWithClose(t *testing.T) {
	addr := port(t)
	s := serving(t, ", admin: { metrics: "+addr+" }")
	x, status := open(t, addr, "view=traffic")
	if status != "200 OK" || x.event(t) == "" {
		t.Fatal(status)
	}
	s.server.Close(true)
	if n := len(s.server.pages.streams); n != 0 {
		t.Errorf("%d streams", n)
	}
	_, err := io.Copy(io.Discard, x.lines) // it ends, by FIN or RST
	if e, ok := err.(net.Error); ok && e.Timeout() {
		t.Error("the stream goes on")
	}
}

// After traffic, a reload, a rebalance and the end of all, the sum on the page is the
// one of what was sent.
func TestTheSumOnThePage(t *testing.T) {
	s := serving(t, "")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for range 20 {
		a, err := client.Get("http://" + s.vip)
		if err != nil {
			t.Fatal(err)
		}
		_ = a.Body.Close()
	}
	var open []net.Conn
	for range 10 {
		c, err := net.Dial("tcp4", s.vip)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	if _, err := s.Rebalance(true); err != nil {
		t.Fatal(err)
	}
	want := func(accepted, ended, now string) {
		t.Helper()
		all := []string{"<dt>accepted</dt><dd>" + accepted + "</dd>", "<dt>ended by client</dt><dd>" + ended + "</dd>", "<dt>by server</dt><dd>0</dd>", "<dt>by policy</dt><dd>0</dd>",
			"<dt>open</dt><dd>" + now + "</dd>", "<dt>lost</dt><dd>0</dd>", "<p>balances</p>", `<div class="proof "`}
		var missing []string
		// A look is up to a second old, and who has left is noticed later.
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			missing = nil
			a := s.from("", "/traffic")
			for _, x := range all {
				if !strings.Contains(a.text, x) {
					missing = append(missing, x)
				}
			}
			if missing == nil {
				return
			}
		}
		t.Errorf("not on the page: %q", missing)
	}
	want("30", "20", "10")
	for _, c := range open {
		_ = c.Close()
	}
	want("30", "30", "0")
}
