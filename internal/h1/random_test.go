package h1

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// maker puts messages together from parts, most of them good, and spoils some.
type maker struct{ *rand.Rand }

func (m maker) pick(common, rare []string) string {
	if m.IntN(12) == 0 {
		return rare[m.IntN(len(rare))]
	}
	return common[m.IntN(len(common))]
}

var (
	lineEnds = []string{"\n", "\r", "\r\r\n", " \r\n", "\r\n ", "\x00\r\n", "\n\r\n", ""}
	// Each field has a chance of its own, so that heads with one of a kind are
	// common and with two are not rare.
	fieldParts = []string{
		"Connection: close", "Connection: keep-alive", "Connection: upgrade", "Connection: x, y", "Upgrade: a", "TE: trailers",
		"Content-Length: 5", "Content-Length: 0", "Transfer-Encoding: chunked", "Expect: 100-continue", "X: y", "Y:", "Z:\t\xfc ",
		"Keep-Alive: 5", "Via: 1.1 x", "X-Forwarded-For: ::1",
	}
	rareFieldParts = []string{
		"Content-Length: +5", "Content-Length: 5, 5", "Content-Length : 5", "Content-Length:5 ", "Content-Length: 05", "Content-Length:\t5\t",
		"Transfer-Encoding: gzip", "Transfer-Encoding: chunked, chunked", "Transfer-Encoding: CHUNKED", "Transfer-Encoding:\tchunked ",
		"Transfer-Encoding:", "Transfer-Encoding: identity", "Transfer_Encoding: chunked", "Connection: content-length", "Connection: host",
		"Connection: a b", " folded", "\tfolded", ": x", "X", "X\x00: y", "X: \x01", "Host: b", "Expect: x", "X : y", "TE: trailers;q=1",
	}
	bodyParts = []string{
		"", "hello", "5\r\nhello\r\n0\r\n\r\n", "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", "5;x=y\r\nhello\r\n0;z\r\n\r\n", "5\r\nhello\r\n0\r\nX: y\r\n\r\n",
		"0\r\n\r\n",
	}
	rareBodyParts = []string{
		"5\nhello\r\n0\r\n\r\n", "5\r\nhello\n0\r\n\r\n", "0x5\r\nhello\r\n0\r\n\r\n", "5 \r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\nHost: b\r\n\r\n",
		"5; x\r\nhello\r\n0\r\n\r\n", "5;x=\"\n\"\r\nhello\r\n0\r\n\r\n", "+5\r\nhello\r\n0\r\n\r\n", "fffffffffffffffff\r\nhello", "5\r\nhello\r\n0\r\n\n",
		"5\r\nhello\r\n00\r\n\r\n", "05\r\nhello\r\n0\r\n\r\n", "hel",
	}
)

func (m maker) fields(out *strings.Builder) {
	for range m.IntN(5) {
		out.WriteString(m.pick(fieldParts, rareFieldParts))
		m.end(out)
	}
	m.end(out)
	out.WriteString(m.pick(bodyParts, rareBodyParts))
}

func (m maker) end(out *strings.Builder) {
	if m.IntN(40) == 0 {
		out.WriteString(lineEnds[m.IntN(len(lineEnds))])
		return
	}
	out.WriteString("\r\n")
}

func (m maker) request(out *strings.Builder) {
	method := m.pick([]string{"GET", "POST", "PUT", "HEAD"}, []string{"CONNECT", "OPTIONS", "get", "", "G T", "\r\nGET"})
	target := m.pick([]string{"/", "/a?b", "/a/b%20c", "http://a/b?c"}, []string{"*", "a:80", "//a", "/%zz", "/?%zz", "/\xfc", "http://b/", "http://a", "https://a?b", "/a b", ""})
	version := m.pick([]string{"HTTP/1.1", "HTTP/1.1", "HTTP/1.0"}, []string{"HTTP/1.2", "HTTP/2.0", "http/1.1", "HTTP/1.1 ", "", "HTTP/0.9"})
	out.WriteString(method + " " + target + " " + version)
	m.end(out)
	out.WriteString(m.pick([]string{"Host: a", "host:a"}, []string{"Host: a:80", "Host: [::1]", "Host:", "Host: a b", "Host : a", "X: y"}))
	m.end(out)
	m.fields(out)
}

func (m maker) response(out *strings.Builder) {
	version := m.pick([]string{"HTTP/1.1", "HTTP/1.1", "HTTP/1.0"}, []string{"HTTP/1.2", "HTTP/2.0", "http/1.1"})
	status := m.pick([]string{"200 OK", "404 Not Found", "204 No Content", "304 ", "200", "100 Continue"}, []string{"20 OK", "2000 OK", "101 x", "200\tOK", " 200 OK", "600 x", "099 x"})
	out.WriteString(version + " " + status)
	m.end(out)
	m.fields(out)
}

// spoil changes an octet now and then.
func (m maker) spoil(s string) []byte {
	b := []byte(s)
	if m.IntN(4) == 0 {
		const octets = "\r\n\t \x00\x7f\x80:,;\"0a/#"
		at := m.IntN(len(b))
		c := octets[m.IntN(len(octets))]
		switch m.IntN(3) {
		case 0:
			b[at] = c
		case 1:
			b = append(b[:at], append([]byte{c}, b[at:]...)...)
		default:
			b = append(b[:at], b[at+1:]...)
		}
	}
	return b
}

// Messages made of good and bad parts are read alike in any pieces and wherever
// they are moved, and as net/http reads them when they are accepted.
func TestRandomMessages(t *testing.T) {
	n := 3000
	if testing.Short() {
		n = 1000
	}
	m := maker{rand.New(rand.NewPCG(9112, 1))}
	requests, responses := 0, 0
	for range n {
		var out strings.Builder
		for range 1 + m.IntN(2) {
			m.request(&out)
		}
		input := m.spoil(out.String())
		checkPieces(t, kind{lim: testLimits}, input, m.Uint64()&m.Uint64()&m.Uint64()&m.Uint64()&m.Uint64())
		requests += checkRequests(t, input)

		out.Reset()
		m.response(&out)
		input = m.spoil(out.String())
		k := kind{responses: true, asked: askedMethods[m.IntN(3)], lim: testLimits}
		checkPieces(t, k, input, m.Uint64()&m.Uint64()&m.Uint64()&m.Uint64()&m.Uint64())
		if checkResponse(t, k.asked, input) {
			responses++
		}
	}
	t.Logf("%d requests and %d responses of %d were accepted", requests, responses, n)
	if requests < n/10 || responses < n/10 {
		t.Errorf("%d requests and %d responses of %d were accepted: this shows little", requests, responses, n)
	}
}
