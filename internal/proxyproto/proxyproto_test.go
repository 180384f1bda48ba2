package proxyproto

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

const sig2 = v2Signature

var v1Longest = "PROXY UNKNOWN " + strings.Repeat("f", 107-16) + "\r\n"

// Headers of version 1 are those of section 2.1 of the specification, those of
// version 2 are built octet by octet from section 2.2.
var parsed = []struct {
	name     string
	in       string
	size     int // of the header; what follows stays
	src, dst string
	local    bool
}{
	{"v1 IPv4", "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\nGET / HTTP/1.1\r\n", 47, "192.168.0.1:56324", "192.168.0.11:443", false},
	{"v1 IPv4, longest", "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", 56, "255.255.255.255:65535", "255.255.255.255:65535", false},
	{"v1 IPv6, longest", "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n", 104,
		"[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535", "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535", false},
	{"v1 IPv6", "PROXY TCP6 2001:DB8::1 ::1 0 1\r\n", 32, "[2001:db8::1]:0", "[::1]:1", false},
	{"v1 IPv6 that is IPv4", "PROXY TCP6 ::ffff:10.0.0.1 ::1 7 1\r\n", 36, "10.0.0.1:7", "[::1]:1", false},
	{"v1 unknown, short", "PROXY UNKNOWN\r\n", 15, "", "", true},
	{"v1 unknown, longest", v1Longest + "x", 107, "", "", true},
	{"v2 IPv4", sig2 + "\x21\x11\x00\x0c\x7f\x00\x00\x01\x0a\x00\x00\x02\x04\xd2\x00\x50rest", 28, "127.0.0.1:1234", "10.0.0.2:80", false},
	{"v2 IPv4 with TLVs", sig2 + "\x21\x11\x00\x13\x7f\x00\x00\x01\x0a\x00\x00\x02\x04\xd2\x00\x50\x04\x00\x04\x00\x00\x00\x00", 35, "127.0.0.1:1234", "10.0.0.2:80", false},
	{"v2 IPv6", sig2 + "\x21\x21\x00\x24" + strings.Repeat("\x20\x01", 8) + strings.Repeat("\x00", 15) + "\x01\x00\x07\x00\x08", 52,
		"[2001:2001:2001:2001:2001:2001:2001:2001]:7", "[::1]:8", false},
	{"v2 IPv6 that is IPv4", sig2 + "\x21\x21\x00\x24" + strings.Repeat("\x00", 10) + "\xff\xff\x0a\x00\x00\x01" + strings.Repeat("\x00", 15) + "\x01\x00\x07\x00\x08", 52,
		"10.0.0.1:7", "[::1]:8", false},
	{"v2 unix", sig2 + "\x21\x31\x00\xd8" + strings.Repeat("/", 216), 232, "", "", true},
	{"v2 unspecified", sig2 + "\x21\x00\x00\x00", 16, "", "", true},
	{"v2 unspecified with octets", sig2 + "\x21\x00\x00\x03abcd", 19, "", "", true},
	{"v2 local", sig2 + "\x20\x00\x00\x00", 16, "", "", true},
	// Section 2.2: of LOCAL the family is ignored.
	{"v2 local with a family", sig2 + "\x20\x11\x00\x0c\x7f\x00\x00\x01\x0a\x00\x00\x02\x04\xd2\x00\x50", 28, "", "", true},
	{"v2 local of no family", sig2 + "\x20\xff\x00\x01x", 17, "", "", true},
	{"v2 longest", sig2 + "\x21\x11\x03\xf0" + strings.Repeat("\x01", Most-16), Most, "1.1.1.1:257", "1.1.1.1:257", false},
}

func TestParse(t *testing.T) {
	for _, c := range parsed {
		t.Run(c.name, func(t *testing.T) {
			// Octet by octet: no shorter piece is enough, nor refused.
			for k := range c.size {
				if n, _, _, local, err := Parse([]byte(c.in[:k])); n != 0 || local || err != nil {
					t.Fatalf("of %q: got %d, %v, %v, want more octets asked for", c.in[:k], n, local, err)
				}
			}
			n, src, dst, local, err := Parse([]byte(c.in))
			if n != c.size || local != c.local || err != nil {
				t.Fatalf("of %q: got %d, local %v, %v, want %d, local %v", c.in, n, local, err, c.size, c.local)
			}
			var wantSrc, wantDst netip.AddrPort
			if c.src != "" {
				wantSrc, wantDst = netip.MustParseAddrPort(c.src), netip.MustParseAddrPort(c.dst)
			}
			if src != wantSrc || dst != wantDst {
				t.Errorf("of %q: got %v to %v, want %v to %v", c.in, src, dst, wantSrc, wantDst)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	addresses := "\x7f\x00\x00\x01\x0a\x00\x00\x02\x04\xd2\x00\x50"
	for _, c := range []struct {
		in   string
		want *Error
	}{
		{"GET / HTTP/1.1\r\n", errSignature},
		{"G", errSignature},
		{"PROXX", errSignature},
		{"proxy TCP4", errSignature},
		{"PROXY\r\n", errSignature},
		{"\r\n\r\n\x00\r\nQUIX", errSignature},
		{"\r\n\r\nG", errSignature},

		{"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n", errOctet},
		{"PROXY \n", errOctet},
		{"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\rX", errOctet},
		{"PROXY TCP4 1.1.1.1\x00", errOctet},
		{"PROXY UNKNOWN\t\r\n", errOctet},
		{"PROXY UNKNOWN " + strings.Repeat("f", 107-15) + "\r\n", errLine},
		{"PROXY UNKNOWN " + strings.Repeat("f", 500), errLine},
		{"PROXY \r\n", errProtocol},
		{"PROXY UNKNOWNS\r\n", errProtocol},
		{"PROXY tcp4 1.1.1.1 2.2.2.2 1 2\r\n", errProtocol},
		{"PROXY TCP5 1.1.1.1 2.2.2.2 1 2\r\n", errProtocol},
		{"PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n", errProtocol},
		{"PROXY TCP4\r\n", errParts},
		{"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n", errParts},
		{"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 \r\n", errParts},
		{"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n", errParts},
		{"PROXY TCP4  1.1.1.1 2.2.2.2 1 2\r\n", errParts},
		{"PROXY TCP4  1.1.1.1 2.2.2.2 1\r\n", errAddress},
		{"PROXY TCP4 1.1.1 2.2.2.2 1 2\r\n", errAddress},
		{"PROXY TCP4 1.1.1.01 2.2.2.2 1 2\r\n", errAddress},
		{"PROXY TCP4 1.1.1.256 2.2.2.2 1 2\r\n", errAddress},
		{"PROXY TCP4 ::1 ::2 1 2\r\n", errAddress},
		{"PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n", errAddress},
		{"PROXY TCP6 ::1%lo ::2 1 2\r\n", errAddress},
		{"PROXY TCP6 ::1 [::2] 1 2\r\n", errAddress},
		{"PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n", errPort},
		{"PROXY TCP4 1.1.1.1 2.2.2.2 1 65536\r\n", errPort},
		{"PROXY TCP4 1.1.1.1 2.2.2.2 1 999999\r\n", errPort},
		{"PROXY TCP4 1.1.1.1 2.2.2.2 1 \r\n", errPort},
		{"PROXY TCP4 1.1.1.1 2.2.2.2 -1 2\r\n", errPort},
		{"PROXY TCP4 1.1.1.1 2.2.2.2 1 +2\r\n", errPort},

		{sig2 + "\x11", errCommand}, // at once
		{sig2 + "\x22\x11\x00\x0c" + addresses, errCommand},
		{sig2 + "\x31\x11\x00\x0c" + addresses, errCommand},
		{sig2 + "\x21\x12\x00\x0c" + addresses, errFamily},
		{sig2 + "\x21\x10\x00\x0c" + addresses, errFamily},
		{sig2 + "\x21\x01\x00\x0c" + addresses, errFamily},
		{sig2 + "\x21\x41\x00\x0c" + addresses, errFamily},
		{sig2 + "\x21\x11\x00\x0b" + addresses, errShort},
		{sig2 + "\x21\x21\x00\x23", errShort},
		{sig2 + "\x21\x31\x00\xd7", errShort},
		{sig2 + "\x21\x11\x03\xf1", errLong},
		{sig2 + "\x20\x00\xff\xff", errLong},
	} {
		if n, src, dst, local, err := Parse([]byte(c.in)); err != error(c.want) || n != 0 || src.IsValid() || dst.IsValid() || local {
			t.Errorf("Parse(%q): got %d, %v, %v, %v, %v, want %v", c.in, n, src, dst, local, err, c.want)
		}
	}
}

func TestAppend(t *testing.T) {
	for _, c := range []struct {
		version  uint8
		src, dst string
		want     string
	}{
		{1, "192.168.0.1:56324", "192.168.0.11:443", "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"},
		{1, "[2001:db8::1]:1", "[::1]:65535", "PROXY TCP6 2001:db8::1 ::1 1 65535\r\n"},
		{1, "[::ffff:10.0.0.1]:1", "10.0.0.2:2", "PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n"},
		{1, "[fe80::1%eth0]:1", "[::1]:2", "PROXY TCP6 fe80::1 ::1 1 2\r\n"},
		{1, "10.0.0.1:1", "[::1]:2", "PROXY UNKNOWN\r\n"},
		{1, "", "", "PROXY UNKNOWN\r\n"},
		{2, "127.0.0.1:1234", "10.0.0.2:80", sig2 + "\x21\x11\x00\x0c\x7f\x00\x00\x01\x0a\x00\x00\x02\x04\xd2\x00\x50"},
		{2, "[2001:db8::1]:1", "[::1]:2", sig2 + "\x21\x21\x00\x24" +
			"\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01" + strings.Repeat("\x00", 15) + "\x01" + "\x00\x01\x00\x02"},
		{2, "10.0.0.1:1", "[::1]:2", sig2 + "\x21\x21\x00\x24" +
			strings.Repeat("\x00", 10) + "\xff\xff\x0a\x00\x00\x01" + strings.Repeat("\x00", 15) + "\x01" + "\x00\x01\x00\x02"},
		{2, "", "", sig2 + "\x20\x00\x00\x00"},
	} {
		var src, dst netip.AddrPort
		if c.src != "" {
			src, dst = netip.MustParseAddrPort(c.src), netip.MustParseAddrPort(c.dst)
		}
		got := Append([]byte("before "), c.version, src, dst)
		if string(got) != "before "+c.want {
			t.Errorf("Append(%d, %v, %v): got %q, want %q", c.version, src, dst, got, c.want)
		}
		if n, _, _, _, err := Parse([]byte(c.want)); n != len(c.want) || err != nil {
			t.Errorf("Parse(%q): got %d, %v", c.want, n, err)
		}
	}
}

// What Append writes, Parse reads; but for a mix of families in version 1.
func TestRoundTrip(t *testing.T) {
	addrs := []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("255.0.0.1"), netip.MustParseAddr("2001:db8::7"), netip.IPv6Unspecified()}
	for version := uint8(1); version <= 2; version++ {
		for _, a := range addrs {
			for _, b := range addrs {
				src, dst := netip.AddrPortFrom(a, 65535), netip.AddrPortFrom(b, 0)
				if a.Is4() != b.Is4() && version == 1 {
					continue
				}
				out := Append(nil, version, src, dst)
				n, s, d, local, err := Parse(out)
				if n != len(out) || n > HeadMost || s != src || d != dst || local || err != nil {
					t.Errorf("%q: got %d, %v, %v, %v, %v, want %v to %v", out, n, s, d, local, err, src, dst)
				}
			}
		}
	}
}

func TestNothingIsAllocated(t *testing.T) {
	src, dst := netip.MustParseAddrPort("[2001:db8::1]:1234"), netip.MustParseAddrPort("10.0.0.2:80")
	out := make([]byte, 0, 256)
	in := Append(nil, 2, src, dst)
	if n := testing.AllocsPerRun(100, func() {
		out = Append(out[:0], 1, src, src)
		out = Append(out[:0], 2, src, dst)
		if n, _, _, _, err := Parse(in); n != len(in) || err != nil {
			t.Fatal(n, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Whatever comes: the answer does not depend on how it was cut, nor on what
// follows; and the addresses that are found are written again as the same.
func FuzzParse(f *testing.F) {
	for _, c := range parsed {
		f.Add([]byte(c.in))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, src, dst, local, err := Parse(b)
		if n < 0 || n > len(b) || n > Most || err != nil && n != 0 || n == 0 && (local || src.IsValid()) {
			t.Fatalf("got %d, %v, %v, %v, %v", n, src, dst, local, err)
		}
		var known *Error
		if err != nil && !errors.As(err, &known) {
			t.Fatalf("got %T, want *Error", err)
		}
		if n == 0 && err == nil && len(b) >= Most {
			t.Fatalf("more is wanted than %d octets", Most)
		}
		for k := range min(len(b), Most) {
			m, _, _, _, e := Parse(b[:k])
			switch {
			case n > 0 && k < n && (m != 0 || e != nil):
				t.Fatalf("the first %d octets: got %d, %v; all: %d", k, m, e, n)
			case n > 0 && k >= n && m != n:
				t.Fatalf("the first %d octets: got %d, want %d", k, m, n)
			case err == nil && e != nil:
				t.Fatalf("the first %d octets are refused: %v", k, e)
			case err != nil && m != 0:
				t.Fatalf("the first %d octets are taken, all are refused: %v", k, err)
			}
		}
		if n == 0 || local {
			return
		}
		m, s, d, l, err := Parse(Append(nil, 2, src, dst))
		if m == 0 || s != src || d != dst || l || err != nil {
			t.Fatalf("%v to %v: got %v to %v, %v", src, dst, s, d, err)
		}
	})
}

func BenchmarkParse2(b *testing.B) {
	in := Append(nil, 2, netip.MustParseAddrPort("10.0.0.1:1234"), netip.MustParseAddrPort("10.0.0.2:80"))
	b.ReportAllocs()
	for b.Loop() {
		Parse(in)
	}
}
