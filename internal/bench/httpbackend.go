package bench

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// httpBackend is what all connections of an HTTP backend share.
type httpBackend struct {
	bytes   int // of the content of an answer
	stream  []byte
	head    []byte
	closing []byte // the head of an answer after which the connection ends
	out     []byte // an answer that is being put together
	ports   map[int]*portUse
	strict  bool // a proxy stands before us: see [backendSpec.Proxied]
}

// portUse counts what came to one port.
type portUse struct{ connections, requests int }

// httpServed is what the backend knows of one HTTP connection.
type httpServed struct {
	use      *portUse
	requests int
	in       []byte // the beginning of a request or of frames
	tunnel   bool   // upgraded to a WebSocket
	closing  bool   // the connection ends with this answer
	shift    int    // of the pattern of the answer that is being sent
	sent     int    // octets of its content
	sending  bool
}

func newHTTPBackend(spec *backendSpec) *httpBackend {
	head := "HTTP/1.1 200 OK\r\n" + answerFields + "Content-Length: " + strconv.Itoa(spec.Bytes) + "\r\n"
	return &httpBackend{
		bytes: spec.Bytes, stream: pattern(spec.Bytes + patternPeriod), ports: map[int]*portUse{}, strict: spec.Proxied,
		head: []byte(head + "\r\n"), closing: []byte(head + closeField + "\r\n"), out: make([]byte, 0, 8192),
	}
}

// fault ends the backend: the run fails with what is said.
func fault(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: backend: "+format+"\n", args...)
	os.Exit(1)
}

// event serves a connection that the events happened to.
func (h *httpBackend) event(fd int, c *httpServed, events uint32, scratch []byte) {
	if c.sending && !h.push(fd, c) {
		return
	}
	for {
		n, e := recv(fd, scratch)
		if e == unix.EAGAIN {
			return
		}
		if e != 0 || n == 0 {
			if len(c.in) > 0 {
				fault("connection ended in the middle of %.300q", c.in)
			}
			closeFD(fd)
			return
		}
		b := scratch[:n]
		if len(c.in) > 0 {
			c.in = append(c.in, b...)
			b = c.in
		}
		used := 0
		if c.tunnel {
			used = h.frames(fd, b)
		} else {
			used = h.request(fd, c, b)
		}
		if len(c.in) > 0 || used < len(b) {
			c.in = append(c.in[:0], b[used:]...)
		}
		// A new arrival, or room, is a new edge; an end that had come before the
		// wait is none.
		if c.sending || n < len(scratch) && events&unix.EPOLLRDHUP == 0 {
			return
		}
	}
}

// closelyEvery is which requests of a connection are looked at closely, beside
// its first.
const closelyEvery = 512

// request answers the request that b begins with, if it is whole, and returns
// how many octets it had. A proxy that has no answer yet sends no second one.
func (h *httpBackend) request(fd int, c *httpServed, b []byte) int {
	if !bytes.HasSuffix(b, headEnd) {
		if len(b) > headMax {
			fault("no end of the head within %d octets: %.300q", len(b), b)
		}
		return 0
	}
	const lineBegin = len(requestBegin) + tagBytes
	if len(b) < lineBegin+len(requestLine) || string(b[:len(requestBegin)]) != requestBegin ||
		string(b[lineBegin:lineBegin+len(requestLine)]) != requestLine {
		fault("request %.100q", b)
	}
	tag := b[len(requestBegin):lineBegin]
	serial, ok := tagSerial(tag)
	if !ok {
		fault("request %.100q", b)
	}
	head := h.head
	if c.requests%closelyEvery == 0 {
		h.inspect(c, b)
		if upgrade(b) {
			c.tunnel = true
			c.use.connections-- // a tunnel is not used again
			h.answer(fd, switching(b))
			return len(b)
		}
		if c.closing = oneField(b, "Connection", "close"); c.closing {
			head = h.closing
		}
	}
	c.requests++
	c.use.requests++
	c.shift, c.sent, c.sending = shiftOf(serial), tagBytes, true
	out := append(append(h.out[:0], head...), tag...)
	if h.bytes <= smallBytes {
		out = append(out, h.stream[c.shift+tagBytes:c.shift+h.bytes]...)
		c.sending = false
		h.answer(fd, out)
		if c.closing {
			shutdownWrite(fd)
		}
		return len(b)
	}
	// In one call: the head, and the content from where it lies.
	rest := h.stream[c.shift+tagBytes : c.shift+h.bytes]
	n, e := sendBoth(fd, out, rest[:min(len(rest), chunkBytes)])
	if gone(e) {
		return len(b) // the next receive says so, too
	}
	if e != 0 || n < len(out) {
		fault("sent %d of %d octets: %v", n, len(out), e)
	}
	c.sent += n - len(out)
	h.push(fd, c)
	return len(b)
}

// smallBytes is the longest content that is copied behind its head: cheaper
// than a second vector.
const smallBytes = 1024

// gone says that the peer has ended the connection.
func gone(e unix.Errno) bool { return e == unix.EPIPE || e == unix.ECONNRESET }

// answer sends b, which any socket buffer takes whole.
func (h *httpBackend) answer(fd int, b []byte) {
	n, e := send(fd, b)
	if gone(e) {
		return // the next receive says so, too
	}
	if e != 0 || n != len(b) {
		fault("sent %d of %d octets: %v", n, len(b), e)
	}
}

// push sends what the kernel takes of the content and reports whether all of
// it is sent.
func (h *httpBackend) push(fd int, c *httpServed) bool {
	for c.sent < h.bytes {
		n, e := send(fd, h.stream[c.shift+c.sent:c.shift+min(h.bytes, c.sent+chunkBytes)])
		if e == unix.EAGAIN {
			return false
		}
		if e != 0 {
			c.sent = h.bytes // gone: the next receive says so, too
			break
		}
		c.sent += n
	}
	if c.sending = false; c.closing {
		shutdownWrite(fd)
	}
	return true
}

// freshMax is how many connections a proxy may open beside the tenth of the
// requests it sends; a proxy that keeps connections opens hardly any.
const freshMax = 1000

// inspect looks at a request closely.
func (h *httpBackend) inspect(c *httpServed, head []byte) {
	switch {
	case bytes.Index(head, headEnd) != len(head)-len(headEnd):
		fault("two requests at a time: %.300q", head)
	case len(fieldValues(head, "Host")) != 1:
		fault("Host %q in %.300q", fieldValues(head, "Host"), head)
	}
	if !h.strict {
		return
	}
	if !oneField(head, "X-Forwarded-For", "127.0.0.1") {
		fault("X-Forwarded-For %q in %.500q", fieldValues(head, "X-Forwarded-For"), head)
	}
	if c.use.connections > freshMax+c.use.requests/10 {
		fault("%d connections for %d requests: they are not used again", c.use.connections, c.use.requests)
	}
}

// sendBoth sends a and then b in one call.
func sendBoth(fd int, a, b []byte) (int, unix.Errno) {
	iov := [2]unix.Iovec{{Base: &a[0], Len: uint64(len(a))}, {Base: &b[0], Len: uint64(len(b))}}
	msg := unix.Msghdr{Iov: &iov[0], Iovlen: 2}
	r, _, e := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_NOSIGNAL)
	return int(r), e
}
