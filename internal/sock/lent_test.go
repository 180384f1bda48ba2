package sock

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// ends is one connection: ours, and the peer's end.
type ends struct {
	t          *testing.T
	ours, peer FD
	log        []string
}

func (e *ends) note(format string, args ...any) { e.log = append(e.log, fmt.Sprintf(format, args...)) }

func (e *ends) says(fd FD, octets string) {
	n, err := Send(fd, []byte(octets))
	e.note("says %d: %v", n, err)
}

// hears notes all that the peer hears up to its end. What a peer on loopback is to
// hear is there when the call that says it returns; the wait is for a broken test.
func (e *ends) hears() {
	buf := make([]byte, 4096)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		n, err := Recv(e.peer, buf)
		if err == Again {
			continue
		}
		e.note("hears %q: %v", buf[:n], err)
		if n == 0 {
			return
		}
	}
	e.note("hears nothing")
}

var lastWords = []struct {
	name string
	run  func(e *ends, close, reset func(FD))
}{
	{"nothing under way", func(e *ends, close, _ func(FD)) {
		close(e.ours)
		e.hears()
	}},
	{"octets on their way", func(e *ends, close, _ func(FD)) {
		e.says(e.ours, "farewell")
		close(e.ours)
		e.hears()
	}},
	{"octets that are not read", func(e *ends, close, _ func(FD)) {
		e.says(e.peer, "hello?")
		close(e.ours)
		e.hears()
	}},
	{"the peer says more", func(e *ends, close, _ func(FD)) {
		close(e.ours)
		e.says(e.peer, "hello?")
		e.says(e.peer, "nobody?") // RST has come
		e.hears()
	}},
	{"the peer has shut", func(e *ends, close, _ func(FD)) {
		e.peer.Shutdown()
		close(e.ours)
		e.hears()
	}},
	{"shut before", func(e *ends, close, _ func(FD)) {
		e.ours.Shutdown()
		close(e.ours)
		e.says(e.peer, "hello?")
		e.says(e.peer, "nobody?")
		e.hears()
	}},
	{"the peer has reset", func(e *ends, close, _ func(FD)) {
		e.peer.CloseReset()
		close(e.ours)
		e.peer = NoFD
	}},
	{"reset", func(e *ends, _, reset func(FD)) {
		e.says(e.ours, "this is lost") // or not: it may have come
		e.log = nil
		reset(e.ours)
		for buf := make([]byte, 100); ; {
			if n, err := Recv(e.peer, buf); err != Again && n == 0 {
				e.note("%v", err)
				return
			}
		}
	}},
	{"reset after FIN", func(e *ends, _, reset func(FD)) {
		e.ours.Shutdown()
		reset(e.ours)
		e.says(e.peer, "hello?")
	}},
}

// While another process has a descriptor of a socket its peer hears the same at a
// close as if there were none; by the ordinary close it would hear nothing.
func TestLentSocketsEndAtOnce(t *testing.T) {
	script := func(t *testing.T, run func(e *ends, close, reset func(FD)), lent bool, close, reset func(FD)) string {
		e := &ends{t: t}
		l, at := listenAt(t, "127.0.0.1:0", false)
		var err Errno
		e.peer, _, err = Dial(&DialSpec{Addr: at})
		if err != 0 {
			t.Fatal(err)
		}
		if e.ours, _, err = Accept(l); err != 0 {
			t.Fatal(err)
		}
		other := NoFD
		if lent {
			var err error
			if other, err = e.ours.Dup(); err != nil {
				t.Fatal(err)
			}
		}
		run(e, close, reset)
		other.Close()
		e.peer.Close()
		return strings.Join(e.log, "\n")
	}
	for _, c := range lastWords {
		t.Run(c.name, func(t *testing.T) {
			want := script(t, c.run, false, FD.Close, FD.CloseReset)
			if got := script(t, c.run, true, FD.CloseLent, FD.CloseResetLent); got != want {
				t.Errorf("got\n%s\nwant, as of a socket with one descriptor\n%s", got, want)
			}
		})
	}
}

// A connection that is being opened ends, too.
func TestLentDialEnds(t *testing.T) {
	l, at := listenAt(t, "127.0.0.1:0", false)
	if err := BarNew(l); err != nil {
		t.Fatal(err)
	}
	fd, pending, e := Dial(&DialSpec{Addr: at})
	if e != 0 || !pending {
		t.Fatalf("%t, %v", pending, e)
	}
	other, err := fd.Dup()
	if err != nil {
		t.Fatal(err)
	}
	fd.CloseLent()
	if e := DialResult(other); e == InProgress {
		t.Error("it is still being dialled")
	}
	other.Close()
}

// The peer of a unix socket reads the end.
func TestLentUnixSocketsEndAtOnce(t *testing.T) {
	for name, end := range map[string]func(FD){"close": FD.CloseLent, "reset": FD.CloseResetLent} {
		a, b, err := StreamPair()
		if err != nil {
			t.Fatal(err)
		}
		other, err := a.Dup()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = Send(a, []byte("x"))
		_, _ = Send(b, []byte("unread"))
		end(a)
		buf := make([]byte, 10)
		if n, e := Recv(b, buf); n != 1 || e != 0 {
			t.Errorf("%s: %d octets, %v", name, n, e)
		}
		if n, e := Recv(b, buf); n != 0 || e != 0 {
			t.Errorf("%s: %d octets, %v, where the end was due", name, n, e)
		}
		other.Close()
		b.Close()
	}
}

// A socket has one cookie by all its descriptors, and no two have the same.
func TestCookie(t *testing.T) {
	a, b, err := StreamPair()
	if err != nil {
		t.Fatal(err)
	}
	other, err := a.Dup()
	if err != nil {
		t.Fatal(err)
	}
	cookie := func(fd FD) uint64 {
		c, err := Cookie(fd)
		if err != nil || c == 0 {
			t.Errorf("cookie %d: %v", c, err)
		}
		return c
	}
	if cookie(a) != cookie(other) || cookie(a) == cookie(b) {
		t.Errorf("cookies %d, %d by another descriptor, %d of the other end", cookie(a), cookie(other), cookie(b))
	}
	a.Close()
	other.Close()
	b.Close()
	if c, err := Cookie(a); err == nil {
		t.Errorf("a closed descriptor has cookie %d", c)
	}
}
