package loop

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/balance"
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// web is a loop in front of a backend for HTTP, whose legs the test plays on
// plain descriptors.
type web struct {
	t      testing.TB
	l      *Loop
	server sock.FD
	open   map[sock.FD]bool // accepted
	vip    string
	sink   *sinkOf
}

func newWeb(t testing.TB, more string) *web { return newWebAs(t, "", more) }

func newWebAs(t testing.TB, listener, more string) *web {
	server, err := sock.Listen(sock.ListenSpec{Addr: addrPort("127.0.0.1:0"), Backlog: 64})
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("accessLog: { to: stdout }\nlisteners: { e: { vip: 127.0.0.1:1, protocol: http, backend: b%s } }\nbackends: { b: { endpoints: [ { address: %q } ]%s } }\n", listener, sock.LocalAddr(server), more)
	c, _, err := config.Parse("test.yaml", []byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &Shared{Objects: exact{c}, Log: slog.New(slog.DiscardHandler)}
	s.Ledger = ledger.New(ledger.Options{Policy: balance.Policy{}, Ring: func(i int, token uint64) { s.Loops[i].Ring(token) }, Open: func() {}})
	fd, err := sock.Listen(sock.ListenSpec{Addr: addrPort("127.0.0.1:0"), Backlog: 64})
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewEpoll()
	if err != nil {
		t.Fatal(err)
	}
	sink := &sinkOf{}
	s.Sinks = []Sink{sink}
	l := New(0, k, s, 1)
	s.Loops = append(s.Loops, l)
	l.SetGeneration(&Generation{Number: 1, Config: c, Listening: map[string]*Listening{
		"e": {Object: c.Listeners["e"], FD: fd, Gate: s.Ledger.Listener("e")},
	}})
	l.SetAccepting(true)
	w := &web{t: t, l: l, sink: sink, server: server, open: map[sock.FD]bool{}, vip: sock.LocalAddr(fd).String()}
	t.Cleanup(func() {
		for fd := range w.open {
			fd.Close()
		}
		for _, i := range l.Slots(0, nil) {
			l.Kill(i)
		}
		l.CloseIdle("")
		l.Free()
		k.Free()
		fd.Close()
		server.Close()
		if n := l.Lent(); n != 0 {
			t.Errorf("%d octets of blocks are still lent", n)
		}
		if p := l.Count.Panics; p != 0 {
			t.Errorf("%d panics", p)
		}
	})
	return w
}

func (w *web) client() sock.FD {
	w.t.Helper()
	c, err := net.Dial("tcp4", w.vip)
	if err != nil {
		w.t.Fatal(err)
	}
	fd := dup(w.t, c)
	_ = c.Close()
	return fd
}

// accept is the next connection that the loop has opened.
func (w *web) accept() (fd sock.FD) {
	w.t.Helper()
	w.until("a connection to the endpoint", func() bool {
		var e sock.Errno
		fd, _, e = sock.Accept(w.server)
		return e == 0
	})
	w.open[fd] = true
	return fd
}

// until turns the loop until something has come about.
func (w *web) until(what string, done func() bool) {
	w.t.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); {
		if !w.l.Turn(false) && time.Now().After(end) {
			w.t.Fatalf("%s never came", what)
		}
	}
}

// hears reads exactly what ends with the words given and returns it.
func (w *web) hears(fd sock.FD, words string) string {
	w.t.Helper()
	var got []byte
	buf := make([]byte, 4096)
	w.until(fmt.Sprintf("%q", words), func() bool {
		if n, e := sock.Recv(fd, buf); e == 0 {
			got = append(got, buf[:n]...)
			if n == 0 {
				w.t.Fatalf("the end instead of %q, after %q", words, got)
			}
		}
		return bytes.HasSuffix(got, []byte(words))
	})
	return string(got)
}

func (w *web) says(fd sock.FD, text string) {
	w.t.Helper()
	if n, e := sock.Send(fd, []byte(text)); e != 0 || n != len(text) {
		w.t.Fatalf("%d of %d octets taken: %v", n, len(text), e)
	}
}

const (
	plainGet    = "GET / HTTP/1.1\r\nHost: a.example\r\nUser-Agent: test/1\r\nAccept: */*\r\n\r\n"
	plainAnswer = "HTTP/1.1 200 OK\r\nServer: test\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
)

// ask sends a request and gives the new leg on which it came to the endpoint.
func (w *web) ask(near sock.FD) (far sock.FD) {
	w.t.Helper()
	w.says(near, plainGet)
	far = w.accept()
	w.hears(far, "\r\n\r\n")
	return far
}

// exchange is a request and its response on a new leg, which is idle after it.
func (w *web) exchange(near sock.FD) (far sock.FD) {
	w.t.Helper()
	far = w.ask(near)
	w.says(far, plainAnswer)
	w.hears(near, "hello")
	return far
}

// A request on a pooled leg, from its first octet to the last of the response,
// allocates nothing.
func TestRequestAllocatesNothing(t *testing.T) {
	w := newWeb(t, "")
	near := w.client()
	far := w.exchange(near)
	get, answer, buf := []byte(plainGet), []byte(plainAnswer), make([]byte, 4096)
	pass := func(from, to sock.FD, octets []byte) {
		if _, e := sock.Send(from, octets); e != 0 {
			t.Fatal(e)
		}
		for {
			w.l.Turn(false)
			if n, e := sock.Recv(to, buf); e == 0 && n > 0 {
				return
			} else if e != sock.Again {
				t.Fatal(n, e)
			}
		}
	}
	request := func() {
		pass(near, far, get)
		pass(far, near, answer)
	}
	request()
	if n := testing.AllocsPerRun(1000, request); n != 0 {
		t.Errorf("%v allocations a request, want 0", n)
	}
	if string(w.sink.target[:2]) != "/\x00" || w.sink.n < 1000 {
		t.Errorf("%d records, the last of %q", w.sink.n, w.sink.target[:2])
	}
	if c := w.l.Counters(); c.HTTP.Requests < 1000 || c.HTTP.Reused < 1000 || c.HTTP.Responses[2] != c.HTTP.Requests {
		t.Errorf("%+v", c.HTTP)
	}
}

// A leg is used by one flow after the other, and by none when it is closed or
// says what nobody asked for.
func TestPool(t *testing.T) {
	w := newWeb(t, "")
	one, two := w.client(), w.client()
	far := w.exchange(one)
	if w.l.Idle() != 1 {
		t.Fatalf("%d idle legs, want 1", w.l.Idle())
	}
	w.says(two, strings.Replace(plainGet, "/", "/two", 1))
	if got := w.hears(far, "\r\n\r\n"); !strings.HasPrefix(got, "GET /two ") {
		t.Errorf("the pooled leg got %q", got)
	}
	w.says(far, plainAnswer)
	w.hears(two, "hello")

	far.Shutdown() // an idle leg whose peer says FIN
	w.until("the end of an idle leg", func() bool { return w.l.Idle() == 0 })
	far = w.exchange(one)

	w.says(far, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil") // an answer to nothing
	w.until("the end of a leg that speaks unasked", func() bool { return w.l.Idle() == 0 })
	w.exchange(two)
}

// A pooled leg that is dead before it answers is no reason for an error: what
// may be sent twice is sent again. What may not is sent only on a leg that was
// looked at.
func TestDeadPooledLeg(t *testing.T) {
	for _, c := range []struct{ name, request string }{
		{"get", plainGet},
		{"post", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWeb(t, "")
			near := w.client()
			far := w.exchange(near)
			// Both at once: the loop takes the request before it hears that the
			// leg is gone, or after; either way the client must not notice.
			delete(w.open, far)
			far.CloseReset()
			w.says(near, c.request)
			far = w.accept()
			w.hears(far, c.request[strings.Index(c.request, "\r\n\r\n"):])
			w.says(far, plainAnswer)
			if got := w.hears(near, "hello"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
				t.Errorf("the client got %q", got)
			}
		})
	}
}

// What an idle leg says unasked does not become the answer to a request that is
// heard of in the same turn, though before it.
func TestUnaskedAnswerIsNotGiven(t *testing.T) {
	w := newWeb(t, "")
	near := w.client()
	far := w.exchange(near)
	w.says(near, plainGet)
	w.says(far, strings.Replace(plainAnswer, "hello", "wrong", 1))
	far = w.accept()
	w.hears(far, "\r\n\r\n")
	w.says(far, plainAnswer)
	if got := w.hears(near, "hello"); strings.Contains(got, "wrong") {
		t.Errorf("the client got %q", got)
	}
}

// warped is a kernel whose clock the test turns on.
type warped struct {
	Kernel
	ahead flow.Instant
}

func (k *warped) Now() flow.Instant { return k.Kernel.Now() + k.ahead }

// Sent is of now or never: the time between is the test's.
func (k *warped) Sent(fd sock.FD) (time.Duration, bool) {
	ago, ok := k.Kernel.Sent(fd)
	return 0, ok && ago < 2*time.Second
}

// A client that reads slowly reads: what the kernel still sends to it counts,
// though the loop has nothing to write for longer than the timeout.
func TestSlowReaderIsNotIdle(t *testing.T) {
	const octets, bite = 32 << 20, 64 << 10
	w := newWeb(t, "") // bodies may rest for 30 s
	clock := &warped{Kernel: w.l.k}
	w.l.k = clock
	near := w.client()
	far := w.ask(near)
	w.says(far, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", octets))
	body, buf := make([]byte, bite), make([]byte, bite)
	for got, said := 0, 0; got < octets; {
		switch n, e := sock.Recv(near, buf); {
		case e == 0 && n > 0:
			got += n
			clock.ahead += flow.Instant(15 * time.Second) // until it reads again
		case e != sock.Again:
			t.Fatalf("the end after %d octets of %d: %v", got, octets, e)
		}
		for range 4 {
			if said < octets {
				n, _ := sock.Send(far, body[:min(bite, octets-said)])
				said += n
			}
			w.l.Turn(false)
		}
	}
}

// A leg whose stream simmered when it went to its pool simmers again in its next
// flow: what is less than the threshold is found by the clock.
func TestStreamOnPooledLeg(t *testing.T) {
	w := newWeb(t, "")
	var far sock.FD
	for round := range 2 { // each of a client of its own, and so in another slot
		near := w.client()
		w.says(near, plainGet)
		if round == 0 {
			far = w.accept()
		}
		w.hears(far, "\r\n\r\n")
		w.says(far, "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello ")
		w.hears(near, "hello ")
		for _, i := range w.l.Slots(0, nil) {
			s := w.l.at(i)
			if s.far == 0 {
				continue
			}
			w.l.simmer(i, s, flow.Backend, bulkThreshold)
			w.says(far, "world")
			if round == 0 { // the end is reported before the clock looks
				w.l.leg(s, flow.Backend).note(sock.Readable)
				w.l.guard(i)
			}
			break
		}
		w.hears(near, "world")
	}
	if n := w.l.Idle(); n != 1 {
		t.Errorf("%d idle legs, want 1", n)
	}
}
