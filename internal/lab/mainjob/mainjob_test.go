package mainjob

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestWhoIsAsked(t *testing.T) {
	for args, want := range map[string]bool{
		"-lab main-job": true, "--lab=main-job -short": true, "-short -lab=main-job": true,
		"-lab four-distances": false, "main-job": false, "-lab": false, "": false,
	} {
		if got := asked(strings.Fields(args)); got != want {
			t.Errorf("%q: %v, want %v", args, got, want)
		}
	}
	for _, args := range []string{"-lab main-job -sabotage drop-octet", "-lab main-job -moves 0", "-lab main-job -flows 3"} {
		if _, err := parse(strings.Fields(args)); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

func TestReplies(t *testing.T) {
	for in, want := range map[string]string{
		"+PONG\r\n": "PONG", ":7\r\n": "7", "$2\r\nab\r\n": "ab", "$-1\r\n": "",
		"*2\r\n:1\r\n$1\r\nx\r\n": "1 x", "*0\r\n": "",
		"-ERR no\r\n": "!ERR no", "$2\r\na": "!unexpected EOF", "?\r\n": `!"?" is no reply`,
		"$9999999\r\n": `!"$9999999" is no reply`, "": "!EOF", "\r\n": "!an empty line is no reply",
	} {
		r := &redis{in: bufio.NewReader(strings.NewReader(in))}
		got, err := r.reply()
		if err != nil {
			got = "!" + err.Error()
		}
		if got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// A session that was opened again behind our back is what this lab is for.
func TestWitnessSeesAnotherIdentity(t *testing.T) {
	says := []string{"a", "", "a", "b", "b"}
	w := &witness{name: "w", ask: func() (string, error) {
		if len(says) == 0 {
			return "", errors.New("dead")
		}
		s := says[0]
		says = says[1:]
		return s, nil
	}}
	for range 5 {
		if err := w.once(); err != nil {
			t.Fatal(err)
		}
	}
	if len(w.changes) != 1 || w.identity != "b" {
		t.Errorf("changes %q, now %q; want one, to b", w.changes, w.identity)
	}
	for range 3 {
		if w.once() == nil {
			t.Error("a dead session gives no error")
		}
	}
	if w.asked != 6 {
		t.Errorf("a dead session was asked on: %d times in all, want 6", w.asked)
	}
}

// A message that does not come, or comes in another order, is found.
func TestChannelHearsEachMessageOnce(t *testing.T) {
	message := func(s string) string {
		return "*3\r\n$7\r\nmessage\r\n$6\r\nevents\r\n$" + map[bool]string{true: "4", false: "1"}[len(s) == 4] + "\r\n" + s + "\r\n"
	}
	for name, c := range map[string]struct {
		in    string
		heard int
		fault bool
	}{
		"all":      {message("1") + message("2") + message("last"), 2, false},
		"one less": {message("1") + message("3") + message("last"), 1, true},
		"twice":    {message("1") + message("1") + message("last"), 1, true},
		"the end":  {message("1"), 1, true},
	} {
		near, far := net.Pipe()
		go func() {
			_, _ = io.WriteString(far, c.in)
			_ = far.Close()
		}()
		ch := &channel{subscriber: &redis{name: "s", conn: near, in: bufio.NewReader(near)}, heard: make(chan int, 1)}
		go ch.listen()
		select {
		case n := <-ch.heard:
			if n != c.heard || (ch.fault != nil) != c.fault {
				t.Errorf("%s: heard %d, %v; want %d, fault %v", name, n, ch.fault, c.heard, c.fault)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: still listening", name)
		}
	}
}

// A connection that the other end closes, or that carries more than responses,
// is found; that Go's client may end one by itself is no fault of others.
func TestReaderKnowsWhoEndsItsConnection(t *testing.T) {
	answer := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(article), article)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	// What the server does with its connections: the octets after a response, and
	// "end".
	does := make(chan string)
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection, which the client or "end" closes
				defer func() { _ = c.Close() }()
				for in := bufio.NewReader(c); ; {
					if _, err := http.ReadRequest(in); err != nil {
						return
					}
					what := <-does
					_, _ = io.WriteString(c, answer+strings.TrimSuffix(what, "end"))
					if strings.HasSuffix(what, "end") {
						return
					}
				}
			}()
		}
	}()
	r := newReader("http://" + l.Addr().String() + "/")
	defer r.client.CloseIdleConnections()
	ask := func(what string) (string, error) {
		go func() { does <- what }() // ends when the request has come
		return r.identity()
	}
	first, err := ask("")
	if err != nil {
		t.Fatal(err)
	}
	r.client.CloseIdleConnections()
	if same, err := ask("end"); err != nil || same != first || r.gaveUp != 1 {
		t.Fatalf("the client's own end: %q after %q, %d given up, %v", same, first, r.gaveUp, err)
	}
	if other, err := ask(""); err != nil || other == first || r.gaveUp != 1 {
		t.Errorf("the server's end: %q after %q, %d given up, %v", other, first, r.gaveUp, err)
	}
	was := r.name
	_, err = ask("x")
	if now, next := ask(""); err == nil && next == nil && now == was {
		t.Error("an octet more than the response was not noticed")
	}
}
