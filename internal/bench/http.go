package bench

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// What the generator and the backend say to each other by HTTP. A request
// names its connection and its number in the path; the content of the answer
// begins with that name and goes on with the pattern, displaced by the number.
// An answer to another request, or of another length, is therefore seen.

// tagBytes is the length of "cccccccc/nnnnnnnn": the connection and the number
// of the request in it, in hexadecimal digits.
const tagBytes = 8 + 1 + 8

// The beginning of a request up to its tag, and what follows the tag.
const (
	requestBegin = "GET /"
	requestLine  = " HTTP/1.1\r\n"
	// About what a program, not a browser, sends.
	requestFields = "Host: bench.example\r\nUser-Agent: holdfast-bench/1\r\nAccept: */*\r\nAccept-Encoding: identity\r\n"
	closeField    = "Connection: close\r\n"
)

// answerFields are those of a backend that leaves nothing for a proxy to add.
const answerFields = "Server: holdfast-bench\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Type: application/octet-stream\r\n"

var headEnd = []byte("\r\n\r\n")

// headMax bounds a head, in octets; those of this row have 300.
const headMax = 4096

const hexDigits = "0123456789abcdef"

// putTag writes the tag of a request into b.
func putTag(b []byte, conn, serial uint32) {
	for i := 7; i >= 0; i-- {
		b[i] = hexDigits[conn&15]
		b[9+i] = hexDigits[serial&15]
		conn >>= 4
		serial >>= 4
	}
	b[8] = '/'
}

// shiftOf is how far the pattern of the answer to serial is displaced.
func shiftOf(serial uint32) int { return int(serial % patternPeriod) }

// tagSerial reads the number of the request back from a tag.
func tagSerial(tag []byte) (uint32, bool) {
	var v uint32
	for _, c := range tag[9:tagBytes] {
		switch {
		case '0' <= c && c <= '9':
			v = v<<4 | uint32(c-'0')
		case 'a' <= c && c <= 'f':
			v = v<<4 | uint32(c-'a'+10)
		default:
			return 0, false
		}
	}
	return v, tag[8] == '/'
}

// fieldValues returns the values of all fields of a head with the name,
// compared without regard to case. It is for the heads that are looked at
// closely, not for each.
func fieldValues(head []byte, name string) []string {
	var values []string
	for i, line := range bytes.Split(head, headEnd[:2]) {
		k, v, ok := bytes.Cut(line, []byte(":"))
		if i > 0 && ok && bytes.EqualFold(k, []byte(name)) {
			values = append(values, string(bytes.TrimSpace(v)))
		}
	}
	return values
}

// oneField reports whether a head has exactly one field of the name, with the
// value, compared without regard to case.
func oneField(head []byte, name, value string) bool {
	v := fieldValues(head, name)
	return len(v) == 1 && bytes.EqualFold([]byte(v[0]), []byte(value))
}

// answers is what all clients of a round know of the answers they expect.
type answers struct {
	bytes   int    // of content
	closing bool   // each connection ends after its answer
	stream  []byte // the pattern, long enough for any displacement
	head    []byte // the last head that was found right: most are the same
}

// httpTalk is the HTTP side of one client of the generator.
type httpTalk struct {
	answers *answers
	request []byte
	serial  uint32
	head    []byte // the beginning of a head that comes in pieces
	inBody  bool
	got     int // octets of content
}

func newHTTPTalk(a *answers, conn uint32) *httpTalk {
	fields := requestFields
	if a.closing {
		fields += closeField
	}
	t := &httpTalk{answers: a, request: []byte(requestBegin + string(make([]byte, tagBytes)) + requestLine + fields + "\r\n")}
	putTag(t.tag(), conn, 0)
	return t
}

func (t *httpTalk) tag() []byte { return t.request[len(requestBegin) : len(requestBegin)+tagBytes] }

// message names the next request and returns it.
func (t *httpTalk) message(conn, serial uint32) []byte {
	putTag(t.tag(), conn, serial)
	t.serial, t.inBody, t.got = serial, false, 0
	return t.request
}

// Of a large answer the beginning and the end are always compared, and each
// such answer whole. Between them octets are only counted, so that the
// generator is faster than any proxy: an octet lost or doubled there displaces
// the end.
const (
	edgeBytes  = 64 << 10
	wholeEvery = 16
)

// unread is how many octets from here on need not be looked at.
func (t *httpTalk) unread() int {
	if !t.inBody || t.got < edgeBytes || t.serial%wholeEvery == 0 {
		return 0
	}
	return max(t.answers.bytes-edgeBytes-t.got, 0)
}

// skip counts n octets that nobody looked at.
func (t *httpTalk) skip(n int) { t.got += n }

// take checks what has arrived and reports true at the end of the answer. Where the
// connection is to end with it, that end is the end.
func (t *httpTalk) take(b []byte) (bool, error) {
	a := t.answers
	if !t.inBody {
		if len(t.head) == 0 && len(a.head) > 0 && bytes.HasPrefix(b, a.head) {
			b = b[len(a.head):]
		} else {
			t.head = append(t.head, b...)
			end := bytes.Index(t.head, headEnd)
			if end < 0 {
				if len(t.head) > headMax {
					return false, fmt.Errorf("no end of the head within %d octets: %.300q", len(t.head), t.head)
				}
				return false, nil
			}
			end += len(headEnd)
			if err := a.check(t.head[:end]); err != nil {
				return false, err
			}
			a.head = append(a.head[:0], t.head[:end]...)
			b = b[len(b)-(len(t.head)-end):]
			t.head = t.head[:0]
		}
		t.inBody = true
	}
	if len(b) > a.bytes-t.got {
		return false, fmt.Errorf("%d %w", len(b)-(a.bytes-t.got), errTooMany)
	}
	if err := t.compare(b); err != nil {
		return false, err
	}
	t.got += len(b)
	return t.got == a.bytes && !a.closing, nil
}

// compare checks b, which is content from t.got on.
func (t *httpTalk) compare(b []byte) error {
	at := t.got
	if at < tagBytes {
		n := min(tagBytes-at, len(b))
		if want := t.tag()[at : at+n]; !bytes.Equal(b[:n], want) {
			return fmt.Errorf("content from octet %d is %q, want %q: the answer to another request", at, b[:n], want)
		}
		b, at = b[n:], at+n
	}
	want := t.answers.stream[shiftOf(t.serial)+at:]
	if bytes.Equal(b, want[:len(b)]) {
		return nil
	}
	i := 0
	for b[i] == want[i] {
		i++
	}
	return fmt.Errorf("octet %d of the content is %#x, want %#x", at+i, b[i], want[i])
}

// ends reports whether the end of the connection is what was due.
func (t *httpTalk) ends() bool { return t.answers.closing && t.inBody && t.got == t.answers.bytes }

// check looks at the head of an answer closely.
func (a *answers) check(head []byte) error {
	switch {
	case !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")):
		return fmt.Errorf("answer %.60q, want 200", head)
	case !oneField(head, "Content-Length", strconv.Itoa(a.bytes)):
		return fmt.Errorf("Content-Length %q, want %d", fieldValues(head, "Content-Length"), a.bytes)
	case len(fieldValues(head, "Transfer-Encoding")) > 0:
		return errors.New("a Transfer-Encoding beside the Content-Length")
	case oneField(head, "Connection", "close") != a.closing:
		return fmt.Errorf("field Connection is %q; to be closed: %v", fieldValues(head, "Connection"), a.closing)
	}
	return nil
}
