package config

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// A backend with the most endpoints, each with all there is to say of it and
// the longest names, fits into a move: what some of them need, as often as it
// takes.
func TestMostEndpointsFit(t *testing.T) {
	name := strings.Repeat("b", 63)
	host := strings.Repeat(strings.Repeat("h", 49)+".", 5) + "org"
	octets := func(n int) int {
		b := backend()
		b.Check, b.Endpoints = check(CheckTCP), nil
		for i := range n {
			b.Endpoints = append(b.Endpoints, &Endpoint{
				Backend: name, Name: fmt.Sprintf("%063d/2001:db8:1111:2222:3333:4444:5555:%x", i, i+0x1000),
				Addr: netip.MustParseAddrPort(fmt.Sprintf("[2001:db8:1111:2222:3333:4444:5555:%x]:65535", i+0x1000)), Host: host, Port: 65535,
				Weight: 1000, Backup: true, Zone: strings.Repeat("z", 63), ConnectionsMax: 10_000_000, CheckPort: 65535,
			})
		}
		b.seal(name)
		data := b.Encode()
		if _, err := DecodeObject(BackendKind, name, data); err != nil {
			t.Fatal(err)
		}
		return len(data)
	}
	const some = 128
	one := octets(some)
	each := (octets(2*some) - one) / some
	if most := one + (endpointsMax-some)*each; most > objectMax {
		t.Errorf("%d endpoints of %d octets need %d; an object has at most %d", endpointsMax, each, most, objectMax)
	}
}

// large is a file with n endpoints in one backend.
func large(n int) []byte {
	var s strings.Builder
	s.WriteString("listeners: { a: { vip: ':80', backend: b } }\nbackends:\n  b:\n    check: {}\n    endpoints:\n")
	for i := range n {
		fmt.Fprintf(&s, "    - { name: e%d, address: 10.0.%d.%d:80, weight: %d }\n", i, i/250, i%250+1, i%100+1)
	}
	return []byte(s.String())
}

// What a reload does with 10,000 endpoints of which one changed.
func BenchmarkLargeReload(b *testing.B) {
	src := large(10_000)
	old, _, err := Parse("f", src, nil)
	if err != nil {
		b.Fatal(err)
	}
	changed := []byte(strings.Replace(string(src), "weight: 7 }", "weight: 8 }", 1))
	for b.Loop() {
		c, _, err := Parse("f", changed, nil)
		if err != nil {
			b.Fatal(err)
		}
		if p := Diff(old, c.Reuse(old)); len(p.EndpointsChanged) != 1 {
			b.Fatal(p)
		}
	}
	b.ReportMetric(float64(len(old.Backends["b"].Encode())), "octets")
}
