package h1

import (
	"errors"
	"math"
	"strings"
	"testing"
	"unsafe"

	"github.com/holdfast-lb/holdfast/internal/frozen"
)

// A flow holds two bodies for all its life.
func TestBodyIsSmall(t *testing.T) {
	if n := unsafe.Sizeof(Body{}); n > 32 {
		t.Errorf("%d octets, want 32 at most", n)
	}
}

func feed(b *Body, input string) (passed string, err *Error) {
	p := []byte(input)
	_, out, err := b.Feed(p, false)
	return string(p[:out]), err
}

// Content that nobody looks at counts like that which was fed.
func TestBare(t *testing.T) {
	b := NewBody(ByLength, 10)
	if passed, err := feed(&b, "abc"); passed != "abc" || err != nil || b.Bare() != 7 || b.Content() != 3 {
		t.Fatalf("%q, %v, %+v", passed, err, b)
	}
	if b.Passed(0); b.Bare() != 7 {
		t.Fatalf("%+v", b)
	}
	if b.Passed(7); !b.Done() || b.Bare() != 0 || b.Content() != 10 {
		t.Fatalf("%+v", b)
	}

	b = NewBody(Chunked, 0)
	if b.Bare() != 0 {
		t.Fatalf("%+v", b)
	}
	if _, err := feed(&b, "a\r\nabc"); err != nil || b.Bare() != 7 {
		t.Fatalf("%v, %+v", err, b)
	}
	if b.Passed(7); b.Done() || b.Bare() != 0 || b.Content() != 10 {
		t.Fatalf("%+v", b)
	}
	if _, err := feed(&b, "\r\n0\r\n\r\n"); err != nil || !b.Done() || b.Content() != 10 {
		t.Fatalf("%v, %+v", err, b)
	}

	b = NewBody(UntilClose, 0)
	if b.Passed(1 << 40); b.Bare() != math.MaxUint64 || b.Content() != 1<<40 || b.Done() {
		t.Fatalf("%+v", b)
	}
	if err := b.End(); err != nil || !b.Done() {
		t.Fatalf("%v, %+v", err, b)
	}
	for _, b := range []Body{{}, NewBody(NoBody, 0), NewBody(ByLength, 0)} {
		if !b.Done() || b.Bare() != 0 || b.End() != nil {
			t.Errorf("%+v is over", b)
		}
		if n, out, err := b.Feed([]byte("GET"), false); n != 0 || out != 0 || err != nil {
			t.Errorf("%+v took %d, passed %d on, %v", b, n, out, err)
		}
	}
}

// More than was due is a fault of ours.
func TestPassedTooMuch(t *testing.T) {
	for _, b := range []Body{{}, NewBody(ByLength, 2), NewBody(Chunked, 0)} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%+v let 3 octets by", b)
				}
			}()
			b.Passed(3)
		}()
	}
}

// A body with an error stays where it is, and says the same again.
func TestFaultyBodyStays(t *testing.T) {
	b := NewBody(Chunked, 0)
	_, first := feed(&b, "5\r\nhello!")
	was := b
	n, out, second := b.Feed([]byte("!"), false)
	if first == nil || first != second || n != 0 || out != 0 || b != was {
		t.Errorf("first %v, then %v, %d taken, %+v, want %+v", first, second, n, b, was)
	}
}

// Extensions of all chunks and trailers have bounds of their own.
func TestBodyLimits(t *testing.T) {
	chunkOf := func(extension int) string { return "1;" + strings.Repeat("x", extension-1) + "\r\na\r\n" }
	for _, test := range []struct {
		name, input, want string
	}{
		{"extensions", chunkOf(extensionsMax) + "0\r\n\r\n", ""},
		{"extensions and an octet", chunkOf(extensionsMax + 1), faultExtensions.request.Why},
		{"extensions of two chunks", chunkOf(extensionsMax/2) + chunkOf(extensionsMax/2) + "0\r\n\r\n", ""},
		{"extensions of two chunks and an octet", chunkOf(extensionsMax/2) + chunkOf(extensionsMax/2+1), faultExtensions.request.Why},
		{"extensions and one of the last chunk", chunkOf(extensionsMax) + "0;x\r\n\r\n", faultExtensions.request.Why},
		{"trailers", chunkOf(extensionsMax) + "0\r\n" + "x:" + strings.Repeat("y", trailersMax-5) + "\r\n\r\n", ""},
		{"trailers and an octet", "0\r\n" + "x:" + strings.Repeat("y", trailersMax-4) + "\r\n\r\n", faultTrailersLarge.request.Why},
		{"many trailers", "0\r\n" + strings.Repeat("x:y\r\n", trailersMax/5+1), faultTrailersLarge.request.Why},
		{"many small chunks", strings.Repeat("1\r\na\r\n", 10_000) + "0\r\n\r\n", ""},
	} {
		b := NewBody(Chunked, 0)
		why := ""
		if _, err := feed(&b, test.input); err != nil {
			why = err.Why
		}
		if why != test.want || (why == "") != b.Done() {
			t.Errorf("%s: %q, want %q; done %t", test.name, why, test.want, b.Done())
		}
	}
}

// Names that a head alone may have are no trailers, in whatever spelling; those
// that begin or end like them are.
func TestTrailersOfHeadsAlone(t *testing.T) {
	try := func(name string) *Error {
		b := NewBody(Chunked, 0)
		_, err := feed(&b, "0\r\n"+name+": x\r\n\r\n")
		return err
	}
	forbidden := []string{"Authorization", "Cookie", "Set-Cookie", "Content-Type", "Cache-Control", "Proxy-Authorization", "If-None-Match", "X-Real-IP"}
	for name := range knownNames {
		forbidden = append(forbidden, name)
	}
	for _, name := range forbidden {
		for _, spelt := range []string{name, strings.ToLower(name), strings.ToUpper(name), strings.ReplaceAll(name, "-", "_")} {
			if err := try(spelt); err == nil || err.Why != faultTrailerField.request.Why {
				t.Errorf("%q: %v", spelt, err)
			}
		}
		for _, other := range []string{name + "x", "y" + name, name[:len(name)-1], name[1:]} {
			if err := try(other); err != nil {
				t.Errorf("%q: %v", other, err)
			}
		}
	}
	for _, name := range []string{"ETag", "Digest", "Server-Timing", "Grpc-Status", "Expires", "X-Checksum"} {
		if err := try(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// What no body could have come to never becomes one.
func TestThawRefuses(t *testing.T) {
	for what, z := range map[string]*frozen.Body{
		"nothing":                                nil,
		"an unknown framing":                     {Framing: 4},
		"an unknown state":                       {Framing: uint32(Chunked), State: 20},
		"no body, with octets to come":           {State: uint32(plain), Left: 1},
		"no body, with content":                  {Content: 1},
		"over, with octets to come":              {Framing: uint32(ByLength), Left: 1},
		"a length of nothing to come":            {Framing: uint32(ByLength), State: uint32(plain)},
		"a length beyond 64 bits":                {Framing: uint32(ByLength), State: uint32(plain), Left: math.MaxUint64, Content: 1},
		"a length in a chunk":                    {Framing: uint32(ByLength), State: uint32(chunk), Left: 1},
		"until close, with a length":             {Framing: uint32(UntilClose), State: uint32(plain), Left: 1},
		"chunked, in plain octets":               {Framing: uint32(Chunked), State: uint32(plain), Left: 1},
		"an empty chunk":                         {Framing: uint32(Chunked), State: uint32(chunk)},
		"a chunk that is too large":              {Framing: uint32(Chunked), State: uint32(chunk), Left: chunkMax + 1},
		"a chunk too large for what came before": {Framing: uint32(Chunked), State: uint32(chunk), Left: chunkMax, Content: 1},
		"digits without a size":                  {Framing: uint32(Chunked), State: uint32(size)},
		"a size of more digits than are counted": {Framing: uint32(Chunked), State: uint32(size), Left: 16, Digits: 1},
		"too many digits":                        {Framing: uint32(Chunked), State: uint32(size), Digits: 17},
		"digits in a chunk":                      {Framing: uint32(Chunked), State: uint32(chunk), Left: 1, Digits: 1},
		"digits before the first":                {Framing: uint32(Chunked), State: uint32(sizeFirst), Digits: 1},
		"a size before its first digit":          {Framing: uint32(Chunked), State: uint32(sizeFirst), Left: 1},
		"octets left behind a chunk":             {Framing: uint32(Chunked), State: uint32(chunkCR), Left: 1},
		"an extension of no octets":              {Framing: uint32(Chunked), State: uint32(extNames), Digits: 1},
		"extensions beyond their bound":          {Framing: uint32(Chunked), State: uint32(chunk), Left: 1, Octets: extensionsMax + 1},
		"trailers beyond their bound":            {Framing: uint32(Chunked), State: uint32(value), Octets: trailersMax + 1},
		"a name where there is none":             {Framing: uint32(Chunked), State: uint32(value), Octets: 1, Name: 1},
		"a name of no octets":                    {Framing: uint32(Chunked), State: uint32(name), Name: 1},
		"octets left in trailers":                {Framing: uint32(Chunked), State: uint32(line), Left: 1},
		"octets of framing in a length":          {Framing: uint32(ByLength), State: uint32(plain), Left: 1, Octets: 1},
		"octets of framing behind the end":       {Framing: uint32(Chunked), Octets: 1},
	} {
		_, err := ThawBody(z)
		var no *frozen.Refused
		if !errors.As(err, &no) || no.Retry || no.Why == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
}
