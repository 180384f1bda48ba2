package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// testAnswer is a right answer to the request of conn and serial, as the
// backend gives it.
func testAnswer(conn, serial uint32, content int, more string) []byte {
	tag := make([]byte, tagBytes)
	putTag(tag, conn, serial)
	head := "HTTP/1.1 200 OK\r\n" + answerFields + "Content-Length: " + strconv.Itoa(content) + "\r\n" + more + "\r\n"
	return slices.Concat([]byte(head), tag, pattern(content + patternPeriod)[shiftOf(serial)+tagBytes:shiftOf(serial)+content])
}

// An answer is accepted whole, in any cut, and refused when its status, its
// length or one of its octets is wrong, or when it is another's.
func TestAnswerCheck(t *testing.T) {
	const conn, serial, content = 7, 300, 400
	right := testAnswer(conn, serial, content, "")
	changed := func(old, new string) []byte { return bytes.Replace(right, []byte(old), []byte(new), 1) }
	at := func(i int) []byte { b := slices.Clone(right); b[i] ^= 1; return b }
	for _, c := range []struct {
		name    string
		in      []byte
		closing bool
		want    string // of the error; empty: whole
	}{
		{"right", right, false, ""},
		{"fields by others", changed("Server: ", "server: a proxy\r\nVia: "), false, ""},
		{"right, then closed", testAnswer(conn, serial, content, closeField), true, ""},
		{"500", changed("200 OK", "500 Internal Server Error"), false, "want 200"},
		{"longer by its word", changed("Content-Length: 400", "Content-Length: 401"), false, "Content-Length"},
		{"two lengths", changed("Server: ", "Content-Length: 400\r\nServer: "), false, "Content-Length"},
		{"chunked, too", changed("Server: ", "Transfer-Encoding: chunked\r\nServer: "), false, "Transfer-Encoding"},
		{"says that it closes", testAnswer(conn, serial, content, closeField), false, "Connection"},
		{"does not say that it closes", right, true, "Connection"},
		{"head without end", []byte("HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", headMax)), false, "no end of the head"},
		{"first octet wrong", at(len(right) - content), false, "another request"},
		{"an octet wrong", at(len(right) - 100), false, "want"},
		{"last octet wrong", at(len(right) - 1), false, "want"},
		{"an octet too many", append(slices.Clone(right), 'x'), false, "too many"},
		{"of another request", testAnswer(conn, serial+1, content, ""), false, "another request"},
		{"of another connection", testAnswer(conn+1, serial, content, ""), false, "another request"},
		{"cut short", right[:len(right)-1], false, "not whole"},
	} {
		for _, cut := range []int{1, 3, 17, 150, 100000} {
			err := func() error {
				a := &answers{bytes: content, closing: c.closing, stream: pattern(content + patternPeriod)}
				talk := newHTTPTalk(a, conn)
				_ = talk.message(conn, serial)
				whole := false
				for piece := range slices.Chunk(c.in, cut) {
					if whole {
						return errTooMany
					}
					var err error
					if whole, err = talk.take(piece); err != nil {
						return err
					}
				}
				if whole == c.closing || talk.ends() != c.closing {
					return fmt.Errorf("not whole: %v, ends %v", whole, talk.ends())
				}
				return nil
			}()
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s, cut in %d: %v, want %q", c.name, cut, err, c.want)
			}
		}
	}
}

// The head that was found right before is no licence for what follows it, and
// what is dropped unread of a large answer counts.
func TestAnswerUnread(t *testing.T) {
	const content = 4 * edgeBytes
	a := &answers{bytes: content, stream: pattern(content + patternPeriod)}
	talk := newHTTPTalk(a, 1)
	for serial := uint32(1); serial <= wholeEvery; serial++ {
		for _, lost := range []int{0, 1, patternPeriod} {
			_ = talk.message(1, serial)
			b := testAnswer(1, serial, content, "")
			head := len(b) - content
			whole, err := talk.take(b[:head+edgeBytes])
			skipped := talk.unread()
			if want := map[bool]int{false: content - 2*edgeBytes}[serial%wholeEvery == 0]; skipped != want {
				t.Fatalf("answer %d: %d octets unread, want %d", serial, skipped, want)
			}
			talk.skip(max(skipped-lost, 0))
			rest := b[head+edgeBytes+skipped:]
			if skipped == 0 {
				rest = rest[lost:]
			}
			if err == nil && !whole {
				whole, err = talk.take(rest)
			}
			// A period that is lost leaves the pattern as it was, but not the length.
			if whole != (lost == 0) || (err != nil) != (lost == 1) {
				t.Errorf("answer %d, %d octets lost: whole %v, %v", serial, lost, whole, err)
			}
		}
	}
}

// RFC 6455, sections 1.3 and 5.7: the examples there.
func TestWebSocketExamples(t *testing.T) {
	if got, want := acceptOf("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="; got != want {
		t.Errorf("accept %q, want %q", got, want)
	}
	b := []byte{0x7f, 0x9f, 0x4d, 0x51, 0x58}
	if unmask(b, 0x3d21fa37); string(b) != "Hello" {
		t.Errorf("unmasked %q, want Hello", b)
	}
}

func TestTag(t *testing.T) {
	tag := make([]byte, tagBytes)
	putTag(tag, 0x12ab, 0xdeadbeef)
	if got, ok := tagSerial(tag); string(tag) != "000012ab/deadbeef" || got != 0xdeadbeef || !ok {
		t.Errorf("tag %q, number %#x, %v", tag, got, ok)
	}
	if _, ok := tagSerial([]byte("000012ab/deadbeeg")); ok {
		t.Error("a digit g was taken")
	}
}

// serveAnswers gives right answers to the requests of c and spoils the one
// with the number at; spoilt to nothing, it is the end of the connection.
func serveAnswers(c net.Conn, content, at int, spoil func(answer []byte) []byte) {
	r := bufio.NewReader(c)
	for n := 1; ; n++ {
		line, err := r.ReadString('\n')
		var conn, serial uint32
		if _, scan := fmt.Sscanf(line, "GET /%08x/%08x HTTP/1.1", &conn, &serial); err != nil || scan != nil {
			return
		}
		more := ""
		for strings.TrimSpace(line) != "" {
			if line, err = r.ReadString('\n'); err != nil {
				return
			}
			if line == closeField {
				more = closeField
			}
		}
		b := testAnswer(conn, serial, content, more)
		if n == at {
			b = spoil(b)
		}
		if _, err := c.Write(b); err != nil || more != "" || n == at && len(b) == 0 {
			return
		}
	}
}

// A proxy that loses a connection, or answers wrongly but once, fails the round.
func TestHTTPFaults(t *testing.T) {
	whole := func(b []byte) []byte { return b }
	for _, c := range []struct {
		name  string
		kind  string
		talk  string
		serve func(net.Conn)
		want  string // of the error; empty: none
	}{
		{"right", "keep", "http", func(c net.Conn) { serveAnswers(c, 100, 0, whole) }, ""},
		{"right", "connect", "http", func(c net.Conn) { serveAnswers(c, 100, 0, whole) }, ""},
		{"right", "idle", "http", func(c net.Conn) { serveAnswers(c, 100, 0, whole) }, ""},
		{"spoils an octet", "keep", "http", func(c net.Conn) {
			serveAnswers(c, 100, 5, func(b []byte) []byte { b[len(b)-9] ^= 1; return b })
		}, "want"},
		{"answers 503", "keep", "http", func(c net.Conn) {
			serveAnswers(c, 100, 5, func([]byte) []byte { return []byte("HTTP/1.1 503 Service Unavailable\r\n\r\n") })
		}, "want 200"},
		{"loses the connection", "keep", "http", func(c net.Conn) { serveAnswers(c, 100, 5, func([]byte) []byte { return nil }) }, "connection lost"},
		{"loses the idle connection", "idle", "http", func(c net.Conn) { serveAnswers(c, 100, 2, func([]byte) []byte { return nil }) }, "connection lost"},
		{"ends within the answer", "connect", "http", func(c net.Conn) {
			serveAnswers(c, 100, 1, func(b []byte) []byte { return b[:len(b)-1] })
		}, "connection lost"},
		{"answers without closing", "connect", "http", func(c net.Conn) {
			serveAnswers(c, 100, 1, func(b []byte) []byte { return bytes.Replace(b, []byte(closeField), nil, 1) })
		}, "to be closed"},
		{"refuses the upgrade", "keep", "websocket", func(c net.Conn) { serveAnswers(c, 100, 0, whole) }, "want 101"},
		{"accepts another key", "keep", "websocket", func(c net.Conn) {
			_, _ = c.Read(make([]byte, 4096))
			_, _ = c.Write(switching([]byte("GET / HTTP/1.1\r\nSec-WebSocket-Key: AAAA\r\n\r\n"))) // the generator notices
			_, _ = io.Copy(io.Discard, c)
		}, "Sec-WebSocket-Accept"},
		{"echoes a frame as it is", "keep", "websocket", func(c net.Conn) {
			b := make([]byte, 4096)
			n, _ := c.Read(b)
			_, _ = c.Write(switching(b[:n])) // the generator notices
			_, _ = io.Copy(c, c)
		}, "too many"},
	} {
		t.Run(c.name+", "+c.kind, func(t *testing.T) {
			_, err := load(t, loadSpec{Kind: c.kind, Talk: c.talk, Port: servedBy(t, c.serve), Conns: 2, Bytes: 100})
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// A proxy that does not do what all have to do on an HTTP row fails it: the
// backend ends and says why.
func TestProxyDuties(t *testing.T) {
	const request = "GET /00000001/00000001 HTTP/1.1\r\nHost: a\r\n"
	const forwarded = "X-Forwarded-For: 127.0.0.1\r\n"
	for _, c := range []struct {
		name     string
		requests []string // each on a connection of its own
		want     string
	}{
		{"says for whom it speaks, and keeps connections", []string{request + "x-forwarded-for: 127.0.0.1\r\n\r\n", request + forwarded + "\r\n"}, ""},
		{"does not say for whom", []string{request + "\r\n"}, "X-Forwarded-For"},
		{"sends on what is no request", []string{"GET / HTTP/1.1\r\nHost: a\r\n" + forwarded + "\r\n"}, "request"},
		{"sends no Host", []string{strings.Replace(request, "Host", "Ghost", 1) + forwarded + "\r\n"}, "Host"},
		{"sends two at a time", []string{strings.Repeat(request+forwarded+"\r\n", 2)}, "two requests"},
		{"leaves off in the middle", []string{request}, "in the middle"},
		{"connects anew for each", slices.Repeat([]string{request + forwarded + "\r\n"}, 1+freshMax*12/10), "not used again"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ports, err := freePorts(1)
			if err != nil {
				t.Fatal(err)
			}
			b, err := startChild("backend", backendSpec{Kind: "http", Ports: ports, Bytes: 100, Proxied: true}, filepath.Join(t.TempDir(), "err"), 0)
			if err != nil {
				t.Fatal(err)
			}
			defer b.stop()
			if _, err := b.line("ready", readyMax); err != nil {
				t.Fatal(err)
			}
			for _, r := range c.requests {
				conn, err := net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", ports[0]), time.Second)
				if err != nil {
					break // it has ended: see below
				}
				_, _ = io.WriteString(conn, r) // see below
				if strings.HasSuffix(r, "\r\n\r\n") {
					_, _ = conn.Read(make([]byte, 4096))
				}
				_ = conn.Close()
			}
			if c.want == "" {
				if err := b.alive(); err != nil {
					t.Error(err)
				}
				return
			}
			select {
			case <-b.done:
			case <-time.After(readyMax):
			}
			if err := b.alive(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}
