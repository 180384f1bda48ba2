package h1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/frozen/frozentest"
)

// seeds are the inputs of testdata with this kind of word.
func seeds(f *testing.F, responses bool) (inputs []vector) {
	for _, file := range vectorFiles {
		for _, v := range vectors(f, file) {
			if v.kind.responses == responses {
				inputs = append(inputs, v)
			}
		}
	}
	return inputs
}

// checkPieces wants the same to be seen in one piece, in the pieces of cuts, and
// moved between them.
func checkPieces(t *testing.T, k kind, input []byte, cuts uint64) {
	t.Helper()
	want := newReader(k, input).run()
	pieces := byBits(input, cuts)
	if got := newReader(k, input, pieces...).run(); got != want {
		t.Fatalf("%q, cut behind %v\n got %s\nwant %s", input, pieces, got, want)
	}
	if len(pieces) < 40 { // the work grows with the square
		frozentest.Check(t, func() frozentest.Subject { return newReader(k, input, pieces...) }, frozentest.Bits(cuts>>7))
	}
}

// A request is read alike in any pieces and wherever it is moved. What is
// accepted, net/http reads as the same method, target, host and content.
func FuzzRequest(f *testing.F) {
	for _, v := range seeds(f, false) {
		f.Add(v.input, uint64(0xaaaa5555))
	}
	f.Fuzz(func(t *testing.T, input []byte, cuts uint64) {
		checkPieces(t, kind{lim: testLimits}, input, cuts)
		checkFound(t, input)
		checkRequests(t, input)
	})
}

// checkRequests compares the requests of input with what net/http sees in it. It
// gives how many were accepted.
func checkRequests(t *testing.T, input []byte) (accepted int) {
	t.Helper()
	for rest := input; len(rest) > 0; {
		size, _, err := Scan(rest, 0, &testLimits)
		if err != nil || size == 0 {
			break
		}
		var h Head
		if err := h.Request(rest[:size], &testLimits); err != nil {
			break
		}
		accepted++
		checkForwarded(t, &h, string(h.MethodName.Of(h.Octets))+" "+string(h.Target.Of(h.Octets))+" HTTP/1.1\r\n")
		whole, n := checkRequest(t, &h, rest)
		if !whole {
			break
		}
		rest = rest[n:]
	}
	return accepted
}

// checkFound wants that what parses is a head that Scan would have found: neither
// relies on the other.
func checkFound(t *testing.T, input []byte) {
	t.Helper()
	var h Head
	size, _, _ := Scan(input, 0, &testLimits)
	if size != len(input) && (h.Request(input, &testLimits) == nil || h.Response(input, GET, &testLimits) == nil) {
		t.Fatalf("%q parses, but Scan finds the end at %d", input, size)
	}
}

// checkForwarded wants what is passed on to mean what came.
func checkForwarded(t *testing.T, h *Head, line string) {
	t.Helper()
	if h.Minor == 0 {
		return // it may lack what HTTP/1.1 needs
	}
	sent := append(h.AppendFields([]byte(line)), "\r\n"...)
	var again Head
	if err := again.Request(sent, &testLimits); err != nil {
		t.Fatalf("%q\nis passed on as %q: %v", h.Octets, sent, err)
	}
	if again.Framing != h.Framing || again.Length != h.Length || again.Close || again.Upgrade ||
		!bytes.EqualFold(again.Authority.Of(sent), h.Authority.Of(h.Octets)) {
		t.Fatalf("%q\nis passed on as %q\n got %s\nwant %s", h.Octets, sent, describe(&again, false), describe(h, false))
	}
	for _, f := range again.Fields {
		if f.Drop {
			t.Fatalf("%q\nis passed on as %q, with %s", h.Octets, sent, f.Name.Of(sent))
		}
	}
}

// checkRequest compares with net/http. It gives how long the request is, if it
// is whole and may be followed by another.
func checkRequest(t *testing.T, h *Head, rest []byte) (whole bool, n int) {
	t.Helper()
	// net/http has no leading empty line; it is no part of the message.
	start := int(h.MethodName.From)
	under := bytes.NewReader(rest[start:])
	r := bufio.NewReader(under)
	theirs, err := http.ReadRequest(r)
	if err != nil {
		// It reads the target as a URL, which RFC 9112 does not ask for.
		if strings.Contains(err.Error(), "invalid URI") || strings.Contains(err.Error(), "parse ") {
			return false, 0
		}
		t.Fatalf("%q\nis refused by net/http: %v", h.Octets, err)
	}
	if got, want := string(h.MethodName.Of(h.Octets)), theirs.Method; got != want {
		t.Errorf("method %q, net/http has %q", got, want)
	}
	if got, want := string(h.Target.Of(h.Octets)), theirs.RequestURI; got != want {
		t.Errorf("target %q, net/http has %q", got, want)
	}
	if got, want := string(h.Authority.Of(h.Octets)), theirs.Host; got != want {
		t.Errorf("authority %q, net/http has %q", got, want)
	}
	if got, want := int(h.Minor), theirs.ProtoMinor; got != want {
		t.Errorf("minor version %d, net/http has %d", got, want)
	}
	if h.Form == OriginForm || h.Form == AbsoluteForm {
		if got, want := string(h.Query.Of(h.Octets)), theirs.URL.RawQuery; got != want {
			t.Errorf("query %q, net/http has %q", got, want)
		}
		if got, err := url.PathUnescape(string(h.Path.Of(h.Octets))); err != nil || got != theirs.URL.Path {
			t.Errorf("path %q, net/http has %q", got, theirs.URL.Path)
		}
	}
	if h.Close != theirs.Close {
		t.Errorf("close %t, net/http has %t", h.Close, theirs.Close)
	}
	whole, n = checkContent(t, h, rest[len(h.Octets):], theirs.ContentLength, theirs.TransferEncoding, theirs.Body, func() int {
		return len(rest) - len(h.Octets) - r.Buffered() - under.Len()
	})
	if t.Failed() {
		t.Fatalf("%q", rest)
	}
	return whole, n + len(h.Octets)
}

// checkContent compares a body with the one that net/http reads: content, and
// where it ends, which used tells once all is read.
func checkContent(t *testing.T, h *Head, rest []byte, length int64, codings []string, theirs io.Reader, used func() int) (whole bool, n int) {
	t.Helper()
	switch h.Framing {
	case NoBody:
		if length > 0 || len(codings) > 0 {
			t.Errorf("no body, net/http has %d octets, %q", length, codings)
		}
	case ByLength:
		if length != int64(h.Length) || len(codings) > 0 {
			t.Errorf("length %d, net/http has %d octets, %q", h.Length, length, codings)
		}
	case Chunked:
		if length != -1 || len(codings) != 1 || codings[0] != "chunked" {
			t.Errorf("chunked, net/http has %d octets, %q", length, codings)
		}
	case UntilClose:
		if length != -1 || len(codings) > 0 {
			t.Errorf("until close, net/http has %d octets, %q", length, codings)
		}
	}
	b := NewBody(h.Framing, h.Length)
	ours := bytes.Clone(rest)
	n, out, bad := b.Feed(ours, true)
	if bad != nil {
		return false, 0 // a body that is refused need not be compared
	}
	end := b.End()
	content, err := io.ReadAll(theirs)
	switch {
	case end == nil && err != nil:
		// It reads trailers as it reads heads, and holds to some limits of its own.
		if strings.Contains(err.Error(), "trailer") || strings.Contains(err.Error(), "malformed MIME header") ||
			strings.Contains(err.Error(), "too much") {
			return false, 0
		}
		t.Errorf("the body is whole, net/http: %v", err)
	case end != nil && err == nil:
		t.Errorf("octets of the body are missing, not for net/http")
	// Without CRLF in what it can peek at, it takes the end of the input for a limit.
	case end != nil && !strings.Contains(err.Error(), "unexpected EOF") && !strings.Contains(err.Error(), "suspiciously long trailer"):
		t.Errorf("octets of the body are missing, net/http: %v", err)
	case !bytes.Equal(content, ours[:out]):
		t.Errorf("body %q, net/http has %q", ours[:out], content)
	case end == nil && used() != n:
		t.Errorf("the body is %d octets long, for net/http %d", n, used())
	}
	return end == nil, n
}

// The methods that matter to a response.
var askedMethods = []Method{GET, HEAD, CONNECT}

// A response is read alike in any pieces and wherever it is moved, and as
// net/http reads it.
func FuzzResponse(f *testing.F) {
	for _, v := range seeds(f, true) {
		f.Add(v.input, uint8(slices.Index(askedMethods, v.kind.asked)), uint64(0xaaaa5555))
	}
	f.Fuzz(func(t *testing.T, input []byte, asked uint8, cuts uint64) {
		k := kind{responses: true, asked: askedMethods[asked%3], bare: asked&4 != 0, lim: testLimits}
		checkPieces(t, k, input, cuts)
		checkFound(t, input)
		checkResponse(t, k.asked, input)
	})
}

// checkResponse compares the response in input with what net/http sees in it,
// and tells whether it was accepted.
func checkResponse(t *testing.T, asked Method, input []byte) bool {
	t.Helper()
	size, _, err := Scan(input, 0, &testLimits)
	if err != nil || size == 0 {
		return false
	}
	var h Head
	if err := h.Response(input[:size], asked, &testLimits); err != nil {
		if err.Status != 502 {
			t.Fatalf("%q: status %d", input[:size], err.Status)
		}
		return false
	}
	if asked == CONNECT && h.Status/100 == 2 {
		return true // the framing fields mean nothing, and net/http reads them
	}
	under := bytes.NewReader(input)
	r := bufio.NewReader(under)
	theirs, bad := http.ReadResponse(r, &http.Request{Method: map[Method]string{GET: "GET", HEAD: "HEAD", CONNECT: "CONNECT"}[asked]})
	if bad != nil {
		t.Fatalf("%q\nis refused by net/http: %v", input[:size], bad)
	}
	if h.Status != theirs.StatusCode {
		t.Errorf("status %d, net/http has %d", h.Status, theirs.StatusCode)
	}
	if int(h.Minor) != theirs.ProtoMinor {
		t.Errorf("minor version %d, net/http has %d", h.Minor, theirs.ProtoMinor)
	}
	// net/http keeps the length of what has no body.
	if asked != HEAD && h.Status != 304 {
		checkContent(t, &h, input[size:], theirs.ContentLength, theirs.TransferEncoding, theirs.Body, func() int {
			return len(input) - size - r.Buffered() - under.Len()
		})
	}
	if t.Failed() {
		t.Fatalf("%q", input)
	}
	return true
}

// A body is passed on alike in any pieces and wherever it is moved; passed on a
// second time it is the same; its content is that of its bare form.
func FuzzBody(f *testing.F) {
	for _, file := range vectorFiles {
		for _, v := range vectors(f, file) {
			if _, body, ok := strings.Cut(string(v.input), "\r\n\r\n"); ok {
				f.Add([]byte(body), uint8(Chunked), uint64(0), uint64(0xaaaa5555))
			}
		}
	}
	f.Add([]byte("hello, world"), uint8(ByLength), uint64(5), uint64(0xaaaa5555))
	f.Add([]byte("hello, world"), uint8(UntilClose), uint64(0), uint64(0xaaaa5555))
	f.Fuzz(func(t *testing.T, input []byte, framed uint8, length, cuts uint64) {
		framing := Framing(framed % 4)
		whole := NewBody(framing, length)
		ours := bytes.Clone(input)
		n, out, err := whole.Feed(ours, false)
		if out > n || n > len(input) {
			t.Fatalf("%d taken, %d passed on of %d", n, out, len(input))
		}

		// The bare octets go by unseen, the others one by one, moved each time.
		b := NewBody(framing, length)
		var passed []byte
		at := 0
		var bad *Error
		for at < len(input) && !b.Done() && bad == nil {
			if due := b.Bare(); due > 0 && cuts>>(at%64)&1 != 0 {
				k := min(due, uint64(len(input)-at), 1+cuts%7)
				b.Passed(k)
				passed = append(passed, input[at:at+int(k)]...)
				at += int(k)
			} else {
				one := []byte{input[at]}
				var took, o int
				if took, o, bad = b.Feed(one, false); bad == nil && took != 1 {
					t.Fatalf("octet %d of %q was not taken", at, input)
				}
				passed = append(passed, one[:o]...)
				at += took
			}
			z := b.Freeze()
			if b, _ = ThawBody(z); b != thawed(t, z) {
				t.Fatalf("thawed in two ways")
			}
		}
		if at != n || bad != err || b != whole || !bytes.Equal(passed, ours[:out]) {
			t.Fatalf("%q in one piece: %d, %q, %v, %+v\nin octets: %d, %q, %v, %+v", input, n, ours[:out], err, whole, at, passed, bad, b)
		}

		// A FIN ends it, or is too early.
		done := whole.Done() || framing == UntilClose
		if again := whole; err == nil && (again.End() == nil) != done {
			t.Fatalf("%q: done %t, and FIN says otherwise", input, done)
		}
		if err != nil {
			return
		}
		again := NewBody(framing, length)
		twice := bytes.Clone(ours[:out])
		if n, o, err := again.Feed(twice, false); err != nil || n != out || o != out || !bytes.Equal(twice, ours[:out]) || again.Content() != whole.Content() {
			t.Fatalf("%q is passed on as %q, and that as %q: %v", input, ours[:out], twice[:o], err)
		}
		bare, content := NewBody(framing, length), bytes.Clone(input)
		if took, o, err := bare.Feed(content, true); err != nil || took != n || uint64(o) != whole.Content() {
			t.Fatalf("%q bare: %d taken, %d passed on, %v", input, took, o, err)
		}
	})
}

func thawed(t *testing.T, z *frozen.Body) Body {
	t.Helper()
	b, err := ThawBody(z)
	if err != nil {
		t.Fatalf("%+v: %v", z, err)
	}
	return b
}

// No frozen body, true or made up, leads to a panic; what thaws is what was
// frozen.
func FuzzThawBody(f *testing.F) {
	f.Add(uint32(Chunked), uint32(size), uint64(5), uint64(0), uint32(1), uint64(0), uint32(0), []byte("\r\nhello"))
	f.Add(uint32(Chunked), uint32(name), uint64(0), uint64(7), uint32(0), uint64(hashSeed), uint32(3), []byte("x: y\r\n\r\n"))
	f.Add(uint32(ByLength), uint32(plain), uint64(1<<62), uint64(7), uint32(0), uint64(0), uint32(0), []byte("x"))
	f.Fuzz(func(t *testing.T, framing, state uint32, left, content uint64, digits uint32, name uint64, octets uint32, input []byte) {
		z := &frozen.Body{Framing: framing, State: state, Left: left, Content: content, Digits: digits, Name: name, Octets: octets}
		b, err := ThawBody(z)
		if err != nil {
			var no *frozen.Refused
			if !errors.As(err, &no) {
				t.Fatalf("%v is no refusal", err)
			}
			return
		}
		if thawed(t, b.Freeze()) != b {
			t.Fatalf("%+v thaws to %+v and freezes to %+v", z, b, b.Freeze())
		}
		for len(input) > 0 && !b.Done() {
			n, _, err := b.Feed(input[:1], false)
			if err != nil {
				return
			}
			if thawed(t, b.Freeze()) != b {
				t.Fatalf("%+v comes to %+v, which thaws to something else", z, b)
			}
			input = input[n:]
		}
	})
}
