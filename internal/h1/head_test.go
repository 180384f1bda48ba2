package h1

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

// status scans and parses input in pieces and gives the status of the error, 0
// for none, and behind which octet it was given.
func status(lim Limits, input string, piece int) (code, at int) {
	scanned := 0
	for to := piece; ; to += piece {
		to = min(to, len(input))
		size, s, err := Scan([]byte(input[:to]), scanned, &lim)
		switch {
		case err != nil:
			return err.Status, to
		case size > 0:
			var h Head
			if err := h.Request([]byte(input[:size]), &lim); err != nil {
				return err.Status, to
			}
			return 0, to
		case to == len(input):
			return -1, to
		}
		scanned = s
	}
}

// A bound is met exactly, and what is beyond is refused as soon as it is there.
func TestLimits(t *testing.T) {
	lim := Limits{LineMax: 100, HeadMax: 300, FieldsMax: 5}
	line := func(n int) string { return "GET /" + strings.Repeat("a", n-14) + " HTTP/1.1\r\n" }
	fill := func(head string, n int) string {
		return head + "X: " + strings.Repeat("x", n-len(head)-7) + "\r\n\r\n"
	}
	fields := func(n int) string { return strings.Repeat("x: y\r\n", n) }
	const short = "GET / HTTP/1.1\r\n"
	for _, test := range []struct {
		name, input string
		want, by    int // the status, and the octet that brings it: 0 is any
	}{
		{"line", line(100) + "Host: a\r\n\r\n", 0, 0},
		{"line and an octet", line(101) + "Host: a\r\n\r\n", 414, 101},
		{"line without end", strings.Repeat("a", 200), 414, 101},
		{"line behind an empty one", "\r\n" + line(100) + "Host: a\r\n\r\n", 0, 0},
		{"line and an octet behind an empty one", "\r\n" + line(101) + "Host: a\r\n\r\n", 414, 103},
		{"a later line is as long as the head", short + "Host: a\r\nX: " + strings.Repeat("x", 200) + "\r\n\r\n", 0, 0},
		{"a control octet before the bound", strings.Repeat("a", 99) + "\x00" + strings.Repeat("a", 99), 400, 100},
		{"a control octet behind the bound", strings.Repeat("a", 101) + "\x00", 414, 101},
		{"head", fill(short+"Host: a\r\n", 300), 0, 0},
		{"head and an octet", fill(short+"Host: a\r\n", 301), 431, 300},
		{"head behind an empty line", "\r\n" + fill(short+"Host: a\r\n", 299), 431, 300},
		{"head without end", short + strings.Repeat("x: y\r\n", 60), 431, 300},
		{"fields", short + "Host: a\r\n" + fields(4) + "\r\n", 0, 0},
		{"fields and one", short + "Host: a\r\n" + fields(5) + "\r\n", 431, 0},
	} {
		for _, piece := range []int{len(test.input), 1, 3} {
			code, at := status(lim, test.input, piece)
			if code != test.want {
				t.Errorf("%s, %q in pieces of %d: %d, want %d", test.name, test.input, piece, code, test.want)
			}
			if piece == 1 && test.by > 0 && at != test.by {
				t.Errorf("%s, %q: refused with octet %d, want %d", test.name, test.input, at, test.by)
			}
		}
	}

	// Whatever the configuration says, offsets are of 16 bits and there is room
	// for so many fields.
	most := Limits{LineMax: 1 << 20, HeadMax: 1 << 20, FieldsMax: 1 << 20}
	for _, test := range []struct {
		name, input string
		want        int
	}{
		{"head", fill(short+"Host: a\r\n", HeadMost), 0},
		{"head and an octet", fill(short+"Host: a\r\n", HeadMost+1), 431},
		{"line", line(HeadMost+1) + "\r\n", 431},
		{"fields", short + "Host: a\r\n" + fields(FieldsMost-1) + "\r\n", 0},
		{"fields and one", short + "Host: a\r\n" + fields(FieldsMost) + "\r\n", 431},
	} {
		for _, piece := range []int{len(test.input), 1000} {
			if code, _ := status(most, test.input, piece); code != test.want {
				t.Errorf("most, %s in pieces of %d: %d, want %d", test.name, piece, code, test.want)
			}
		}
	}
	if code, at := status(most, short+strings.Repeat("x", HeadMost), 8); code != 431 || at != HeadMost {
		t.Errorf("a head without end: %d with octet %d, want 431 with %d", code, at, HeadMost)
	}

	// A host has a bound, too.
	for n, want := range map[int]int{255: 0, 256: 400} {
		if code, _ := status(testLimits, short+"Host: "+strings.Repeat("a", n)+":80\r\n\r\n", 1000); code != want {
			t.Errorf("a host of %d octets: %d, want %d", n, code, want)
		}
	}

	// Of a response Scan says what it says of a request; the parse does not
	// rely on it.
	for n, want := range map[int]int{100: 0, 101: 502} {
		var h Head
		code := 0
		if err := h.Response([]byte("HTTP/1.1 200 "+strings.Repeat("x", n-13)+"\r\n\r\n"), GET, &lim); err != nil {
			code = err.Status
		}
		if code != want {
			t.Errorf("a status line of %d octets: %d, want %d", n, code, want)
		}
	}
}

// What no head can hold is refused when it comes, not when the head ends.
func TestScanRefusesAtOnce(t *testing.T) {
	for _, input := range []string{
		"\x16", " ", "\t", "\n", "\x80", ":", "\r\r", "\r\n\r", "\r\n ", "GET / HTTP/1.1\n", "GET / HTTP/1.1\rH",
		"GET / HTTP/1.1\r\nHost: a\n", "GET / HTTP/1.1\r\nHost: a\r\n\n", "GET / HTTP/1.1\r\nX: \x00", "GET \x7f", "GET / HTTP/1.1\r\n\r\r",
	} {
		for from := range input {
			if size, _, err := Scan([]byte(input), from, &testLimits); from > 0 && size == 0 && err == nil {
				// Only what was not scanned can be found.
				if _, scanned, _ := Scan([]byte(input[:from]), 0, &testLimits); scanned == from {
					t.Errorf("%q from %d: not refused", input, from)
				}
			}
		}
		if _, _, err := Scan([]byte(input), 0, &testLimits); err == nil || err.Status != 400 {
			t.Errorf("%q: %v", input, err)
		}
		before := input[:len(input)-1]
		if size, _, err := Scan([]byte(before), 0, &testLimits); size != 0 || err != nil {
			t.Errorf("%q: %d, %v, but it may yet become a head", before, size, err)
		}
	}
}

// LF alone is no end of a line, be there what looks like the end of a head.
func TestScanWantsCRLF(t *testing.T) {
	for _, input := range []string{"a\n\n\n", "a\r\n\n\n", "a\n\r\n\r\n", "a\r\nb\n\n\r\n\r\n", "a\n\n\nb\r\n\r\n", "\n\r\n\r\n"} {
		if size, _, err := Scan([]byte(input), 0, &testLimits); err == nil {
			t.Errorf("%q: an end at %d", input, size)
		}
	}
}

// Octets that no Scan would call a head are an error, not a panic.
func TestHeadsThatScanWouldNotFind(t *testing.T) {
	var h Head
	for _, file := range vectorFiles {
		for _, v := range vectors(t, file) {
			for end := range v.input {
				for _, tail := range []string{"", "\r\n", "\r\n\r\n", "\n\r\n\r\n", " \r\n\r\n"} {
					input := append(bytes.Clone(v.input[:end]), tail...)
					size, _, bad := Scan(input, 0, &testLimits)
					err := h.Request(input, &testLimits)
					if err == nil && (bad != nil || size != len(input)) {
						t.Fatalf("%q is a request, but Scan says %d, %v", input, size, bad)
					}
					err = h.Response(input, GET, &testLimits)
					if err == nil && (bad != nil || size != len(input)) {
						t.Fatalf("%q is a response, but Scan says %d, %v", input, size, bad)
					}
				}
			}
		}
	}
	if err := h.Request(nil, &testLimits); err == nil || err.Why != faultNoEnd.request.Why {
		t.Errorf("nothing: %v", err)
	}
}

var knownNames = map[string]Known{
	"Connection": Connection, "Content-Length": ContentLength, "Expect": Expect, "Forwarded": Forwarded, "Host": Host,
	"Keep-Alive": KeepAlive, "Proxy-Connection": ProxyConnection, "TE": TE, "Trailer": Trailer,
	"Transfer-Encoding": TransferEncoding, "Upgrade": Upgrade, "Via": Via, "X-Forwarded-For": XForwardedFor,
	"X-Forwarded-Host": XForwardedHost, "X-Forwarded-Proto": XForwardedProto,
}

// A known name is known in any case, and no other name is.
func TestKnownNames(t *testing.T) {
	if len(knownNames) != names-1 {
		t.Fatalf("%d names are known, this test has %d", names-1, len(knownNames))
	}
	for name, want := range knownNames {
		for _, spelt := range []string{name, strings.ToLower(name), strings.ToUpper(name)} {
			if got := known([]byte(spelt)); got != want {
				t.Errorf("%q: %d, want %d", spelt, got, want)
			}
		}
		for i := range name {
			for c := range 256 {
				other := []byte(name)
				other[i] = byte(c)
				if class[c]&inToken != 0 && !strings.EqualFold(string(other), name) && known(other) != Other {
					t.Errorf("%q is taken for a known name", other)
				}
			}
		}
		for _, other := range []string{name + "s", "x" + name, name[1:], name[:len(name)-1]} {
			if known([]byte(other)) == want {
				t.Errorf("%q is taken for %q", other, name)
			}
		}
	}
}

// Fields are found again, and those passed on are as they were written.
func TestFields(t *testing.T) {
	const head = "GET / HTTP/1.1\r\nhost:a\r\nX-A:  1 \r\nConnection: X-B\r\nx-b: 2\r\nX-a: 3\r\nTE: x\r\nX-C: 4\r\nVia: 1.1 v\r\n\r\n"
	var h Head
	if err := h.Request([]byte(head), &testLimits); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"Host": "a", "x-A": "1", "X-B": "2", "VIA": "1.1 v", "x-d": "-", "X-": "-", "": "-"} {
		got, ok := h.Lookup(name)
		if !ok {
			got = []byte("-")
		}
		if string(got) != want {
			t.Errorf("Lookup(%q) = %q, want %q", name, got, want)
		}
	}
	for k, want := range map[Known]int{Host: 0, Connection: 2, TE: 5, Via: 7, Expect: -1} {
		if got := h.Index(k); got != want {
			t.Errorf("Index(%d) = %d, want %d", k, got, want)
		}
	}
	const want = "Xhost:a\r\nX-A:  1 \r\nX-a: 3\r\nX-C: 4\r\nVia: 1.1 v\r\n"
	if got := string(h.AppendFields([]byte("X"))); got != want {
		t.Errorf("passed on are %q, want %q", got, want)
	}
	// The next head leaves nothing of this one.
	if err := h.Request([]byte("GET / HTTP/1.0\r\n\r\n"), &testLimits); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(len(h.Fields), h.Index(Host), h.Index(Via), h.HasHost, h.Authority.Len(), len(h.AppendFields(nil))); got != "0 -1 -1 false 0 0" {
		t.Errorf("of the head before is left: %s", got)
	}
}

// An IPv6 address is what net/netip takes for one, without a zone.
func TestIPv6(t *testing.T) {
	check := func(s string) {
		t.Helper()
		a, err := netip.ParseAddr(s)
		if got, want := ipv6([]byte(s)), err == nil && a.Is6() && a.Zone() == ""; got != want {
			t.Errorf("%q: %t, want %t", s, got, want)
		}
	}
	for _, s := range []string{
		"", ":", "::", ":::", "::1", "1::", "1::2", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1::3:4:5:6:7:8",
		"1::2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8:9", "1::2::3", "12345::", "::g", "::1.2.3.4", "1:2:3:4:5:6:1.2.3.4", "1:2:3:4:5:6:7:1.2.3.4",
		"::1.2.3", "::1.2.3.4.5", "::1.2.3.256", "::01.2.3.4", "::1.2.3.4:5", "1.2.3.4", "fe80::1%eth0", "::1:", ":1::", "1:", ":1", "::1.2.3.", "::.1.2.3",
	} {
		check(s)
	}
	r := rand.New(rand.NewPCG(1, 2))
	parts := []string{":", ":", "::", "0", "1", "ab", "FFFF", "12345", ".", "1.2.3.4", "255"}
	for range 20_000 {
		s := ""
		for range r.IntN(17) {
			s += parts[r.IntN(len(parts))]
		}
		check(s)
	}
}

// The octets that end a run are found wherever they stand in a word.
func TestNextOctets(t *testing.T) {
	for size := range 20 {
		for at := range size {
			for c := range 256 {
				for _, other := range []byte{'a', 0x80, 0xff} {
					b := bytes.Repeat([]byte{other}, size)
					b[at] = byte(c)
					for _, from := range []int{0, 1, at} {
						if got, want := nextControl(b, from), firstOf(b, from, func(c byte) bool { return c < ' ' || c == 0x7f }); got != want {
							t.Fatalf("control octet of %q from %d: %d, want %d", b, from, got, want)
						}
						if got, want := nextNoTarget(b, from), firstOf(b, from, func(c byte) bool { return c <= ' ' || c >= 0x7f || c == '#' }); got != want {
							t.Fatalf("end of the target %q from %d: %d, want %d", b, from, got, want)
						}
					}
				}
			}
		}
	}
}

func firstOf(b []byte, from int, is func(byte) bool) int {
	for i := from; i < len(b); i++ {
		if is(b[i]) {
			return i
		}
	}
	return max(len(b), from)
}
