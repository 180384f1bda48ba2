package flow

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/h1"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// Keys are the same on all hosts and in all releases: else who comes again goes
// elsewhere.
func TestKeysStay(t *testing.T) {
	client := netip.MustParseAddr("192.0.2.7")
	head := parseRequest(t, "GET /a/b?c HTTP/1.1\r\nHost: h\r\nX-User: \r\nx-user: alice\r\nCookie: a=1; id=\"7\"; id=8\r\n\r\n")
	hashed := func(k config.HashKind, name string) *config.Backend {
		return &config.Backend{Balance: config.Maglev, Hash: config.Hash{Kind: k, Name: name}}
	}
	sticky := func(b *config.Backend, k config.StickyKind, name string) *config.Backend {
		b.Sticky = &config.Sticky{Kind: k, Name: name, Bits4: 24, Bits6: 64}
		return b
	}
	source := keyFrom(sourceKey, []byte{10: 0xff, 11: 0xff, 12: 192, 13: 0, 14: 2, 15: 7})
	for _, c := range []struct {
		name   string
		b      *config.Backend
		h      *h1.Head
		client netip.Addr
		want   uint64
	}{
		{"nothing", &config.Backend{}, head, client, 0},
		{"source", hashed(config.HashSource, ""), head, client, source},
		{"source without HTTP", hashed(config.HashSource, ""), nil, client, source},
		{"mapped source", hashed(config.HashSource, ""), nil, netip.MustParseAddr("::ffff:192.0.2.7"), source},
		{"no source", hashed(config.HashSource, ""), nil, netip.Addr{}, 0},
		{"header", hashed(config.HashHeader, "X-User"), head, client, keyFrom(headerKey, []byte("alice"))},
		{"no such header", hashed(config.HashHeader, "X-Other"), head, client, source},
		{"cookie", hashed(config.HashCookie, "id"), head, client, keyFrom(cookieKey, []byte("7"))},
		{"no such cookie", hashed(config.HashCookie, "ID"), head, client, source},
		{"path", hashed(config.HashPath, ""), head, client, keyFrom(pathKey, []byte("/a/b"))},
		{"path without HTTP", hashed(config.HashPath, ""), nil, client, source},
		{"sticky source", sticky(&config.Backend{}, config.StickySource, ""), head, client, keyFrom(sourceKey, []byte{10: 0xff, 11: 0xff, 12: 192, 13: 0, 14: 2, 15: 0})},
		{"sticky source of IPv6", sticky(&config.Backend{}, config.StickySource, ""), nil, netip.MustParseAddr("2001:db8:1:2:3::9"), keyFrom(sourceKey, []byte{0x20, 1, 0xd, 0xb8, 0, 1, 0, 2, 15: 0})},
		{"sticky source, and a hash", sticky(hashed(config.HashPath, ""), config.StickySource, ""), head, client, keyFrom(sourceKey, []byte{10: 0xff, 11: 0xff, 12: 192, 13: 0, 14: 2, 15: 0})},
		{"sticky header", sticky(hashed(config.HashPath, ""), config.StickyHeader, "X-User"), head, client, keyFrom(headerKey, []byte("alice"))},
		{"no such sticky header", sticky(&config.Backend{}, config.StickyHeader, "X-Other"), head, client, 0},
		{"no such sticky header, and a hash", sticky(hashed(config.HashPath, ""), config.StickyHeader, "X-Other"), head, client, keyFrom(pathKey, []byte("/a/b"))},
		{"sticky by cookie, and a hash", sticky(hashed(config.HashPath, ""), config.StickyCookie, "hf"), head, client, keyFrom(pathKey, []byte("/a/b"))},
	} {
		if got := keyOf(c.b, c.h, c.client); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
	}
	// Once and for all.
	for _, c := range []struct {
		kind   byte
		octets string
		want   uint64
	}{{headerKey, "alice", 0xdacadec1d1bb41e8}, {pathKey, "", 0xa77b22d6ed673fcc}, {sourceKey, "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc0\x00\x02\x07", 0x7a9f6c9a2e0efb47}} {
		if got := keyFrom(c.kind, []byte(c.octets)); got != c.want {
			t.Errorf("the key of %d %q is %#x, and was %#x", c.kind, c.octets, got, c.want)
		}
	}
}

// Who the client is behind proxies that are trusted.
func TestSource(t *testing.T) {
	trust := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}
	for _, c := range []struct {
		name, peer, fields string
		kind               config.ForwardedFields
		want               string
	}{
		{"nobody is trusted", "198.51.100.1", "X-Forwarded-For: 203.0.113.9\r\n", 0, "198.51.100.1"},
		{"nothing is said", "192.0.2.1", "", 0, "192.0.2.1"},
		{"one", "192.0.2.1", "X-Forwarded-For: 203.0.113.9\r\n", 0, "203.0.113.9"},
		{"the last that is not trusted", "192.0.2.1", "X-Forwarded-For: 1.2.3.4, 203.0.113.9, 192.0.2.5\r\n", 0, "203.0.113.9"},
		{"in two fields", "192.0.2.1", "X-Forwarded-For: 1.2.3.4, 203.0.113.9\r\nx-forwarded-for: 192.0.2.5 , 2001:db8::1\r\n", 0, "203.0.113.9"},
		{"all are trusted", "192.0.2.1", "X-Forwarded-For: 192.0.2.9, 192.0.2.5\r\n", 0, "192.0.2.9"},
		{"no address", "192.0.2.1", "X-Forwarded-For: 203.0.113.9, unknown\r\n", 0, "192.0.2.1"},
		{"no address behind one", "192.0.2.1", "X-Forwarded-For: 203.0.113.9, x, 192.0.2.5\r\n", 0, "192.0.2.5"},
		{"empty elements", "192.0.2.1", "X-Forwarded-For: , 203.0.113.9,, ,\r\n", 0, "203.0.113.9"},
		{"behind many proxies", "192.0.2.1", "X-Forwarded-For: 203.0.113.9" + strings.Repeat(", 192.0.2.5", elementsMax-1) + "\r\n", 0, "203.0.113.9"},
		{"behind too many", "192.0.2.1", "X-Forwarded-For: 203.0.113.9" + strings.Repeat(", 192.0.2.5", elementsMax) + "\r\n", 0, "192.0.2.5"},
		{"behind nothing, too often", "192.0.2.1", "X-Forwarded-For: 203.0.113.9" + strings.Repeat(",", 1000) + "\r\nX-Forwarded-For: ,\r\n", 0, "192.0.2.1"},
		{"with a port", "192.0.2.1", "X-Forwarded-For: 203.0.113.9:4711\r\n", 0, "203.0.113.9"},
		{"IPv6", "2001:db8::1", "X-Forwarded-For: 2001:db9::7\r\n", 0, "2001:db9::7"},
		{"IPv6 in brackets", "2001:db8::1", "X-Forwarded-For: [2001:db9::7]:80\r\n", 0, "2001:db9::7"},
		{"mapped", "192.0.2.1", "X-Forwarded-For: ::ffff:203.0.113.9\r\n", 0, "203.0.113.9"},
		{"Forwarded", "192.0.2.1", "Forwarded: for=203.0.113.9;proto=http, For=\"[2001:db8::5]:99\"\r\n", 0, "203.0.113.9"},
		{"Forwarded, but X-Forwarded-For counts", "192.0.2.1", "Forwarded: for=1.1.1.1\r\nX-Forwarded-For: 203.0.113.9\r\n", 0, "203.0.113.9"},
		{"X-Forwarded-For, but Forwarded counts", "192.0.2.1", "Forwarded: for=203.0.113.9\r\nX-Forwarded-For: 1.1.1.1\r\n", config.RFC7239, "203.0.113.9"},
		{"a comma in quotes", "192.0.2.1", "Forwarded: for=203.0.113.9;host=\"a,for=1.1.1.1\"\r\n", 0, "203.0.113.9"},
		{"Forwarded without for", "192.0.2.1", "Forwarded: proto=http\r\n", 0, "192.0.2.1"},
		{"an obfuscated node", "192.0.2.1", "Forwarded: for=_hidden\r\n", 0, "192.0.2.1"},
	} {
		f := Flow{listener: &config.Listener{Rules: &config.Rules{Trust: trust, Forwarded: c.kind}}}
		f.client = AddressOf(netip.AddrPortFrom(netip.MustParseAddr(c.peer), 4711))
		if got := f.source(parseRequest(t, "GET / HTTP/1.1\r\nHost: h\r\n"+c.fields+"\r\n")); got.String() != c.want {
			t.Errorf("%s: %v, want %s", c.name, got, c.want)
		}
	}
}

// Addresses are read as net/netip reads them, which allocates.
func FuzzAddress(f *testing.F) {
	for _, s := range []string{"1.2.3.4", "01.2.3.4", "1.2.3", "1.2.3.4.5", "256.1.1.1", "::", "::1", "1::", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1::2::3", "::ffff:1.2.3.4",
		"1:2:3:4:5:6:1.2.3.4", "1:2:3:4:5:6:7:1.2.3.4", "fe80::1%eth0", "12345::", ":1", "1:", "::1.2.3.4:5", "g::", "1:2:3:4:5:6:7:8:9", "::1:", "0:0:0:0:0:0:0:0", "1::1.2.3.4", "FFFF::aBcD", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want, err := netip.ParseAddr(s)
		if err != nil || want.Zone() != "" {
			want = netip.Addr{}
		}
		got, ok := parse4([]byte(s))
		if !ok {
			got, ok = netip.Addr{}, false
			if strings.Contains(s, ":") {
				got, ok = parse6([]byte(s))
			}
		}
		if ok != want.IsValid() || ok && got != want.Unmap() {
			t.Fatalf("%q is %v %t, want %v", s, got, ok, want)
		}
		if ok && !want.Is4() {
			if a, ok := addressOf([]byte("[" + s + "]:80")); !ok || a != got {
				t.Fatalf("[%s]:80 is %v", s, a)
			}
		}
		if a, ok := addressOf([]byte(s)); ok && want.IsValid() && a != got {
			t.Fatalf("%q is %v as well", s, a)
		}
	})
}

// What a flow asks the ledger for.
func TestAsk(t *testing.T) {
	for _, c := range []struct{ name, script, want string }{
		{"first", "manual\nclient asks GET /1", "tried 0 place 0 stuck 0 class 1 retry false key false"},
		{"a class", "manual\nclient asks GET /again/1", "tried 0 place 0 stuck 0 class 2 retry false key false"},
		{"a place", "manual\nclient asks GET /1\nplace", "tried 0 place 42 stuck 0 class 1 retry false key false"},
		{"a hash", "manual\nclient asks GET /hash/1", "tried 0 place 0 stuck 0 class 0 retry false key true"},
		{"a cookie", "manual\nclient asks GET /stick/1 stuck=e3,9", "tried 0 place 0 stuck 3 class 1 retry false key false"},
		{"another attempt", "manual\nclient asks GET /1\nsecured 1\ndial-failed", "tried 2 place 0 stuck 0 class 1 retry true key false"},
		{"that was let wait", "manual\nclient asks GET /1\nsecured 1\ndial-failed\nplace", "tried 2 place 44 stuck 0 class 1 retry false key false"},
		{"one more", "manual\nclient asks GET /1\nsecured 1\ndial-failed\nplace\nsecured 0\ndial-failed", "tried 3 place 44 stuck 0 class 1 retry true key false"},
		{"that the budget gave", "manual\nclient asks GET /again/1\nsecured 1\ndialed\nbackend answers busy 1", "tried 2 place 0 stuck 0 class 2 retry false key false"},
		{"after a reset", "manual\nclient asks GET /again/1\nsecured 1\ndialed\nbackend rst", "tried 2 place 0 stuck 0 class 2 retry true key false"},
		{"of a fallback, with its cookie", "manual\nclient asks GET /falls/1 stuck=e3,9\nsecured 1\ndial-failed\nunavailable", "tried 0 place 0 stuck 3 class 1 retry false key false"},
		{"of a fallback, after a wait", "manual\nclient asks GET /falls/1\nplace\nunavailable", "tried 0 place 0 stuck 0 class 1 retry false key false"},
		{"of a fallback", "manual\nclient asks GET /falls/1\nsecured 1\ndial-failed\nunavailable", "tried 0 place 0 stuck 0 class 1 retry false key false"},
	} {
		s, err := parseHTTP(c.script)
		if err != nil {
			t.Fatal(err)
		}
		w := newHTTPWorld(s)
		for i := range s.hops {
			w.Step(i)
		}
		if w.f.State() != Queued {
			t.Fatalf("%s: %v", c.name, w.f.State())
		}
		var a ledger.Asking
		w.f.Ask(&a)
		if got := fmt.Sprintf("tried %b place %d stuck %d class %d retry %t key %t", a.Tried, a.Place, a.Stuck, a.Class, a.Retry, a.Key != 0); got != strings.Replace(c.want, "tried 2", "tried 10", 1) && got != strings.Replace(c.want, "tried 3", "tried 11", 1) {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	// Who has not the field of the sticky table is chosen for by the hash, and not
	// remembered by that.
	b := &config.Backend{Balance: config.Maglev, Hash: config.Hash{Kind: config.HashPath}, Sticky: &config.Sticky{Kind: config.StickyHeader, Name: "X-User"}}
	for head, want := range map[string]bool{"GET / HTTP/1.1\r\nHost: h\r\nX-User: a\r\n\r\n": false, "GET / HTTP/1.1\r\nHost: h\r\nX-User: \r\n\r\n": true} {
		f := Flow{listener: httpObjects.Listeners["web"], work: &work{backend: b, x: &exchange{flags: stray}}}
		f.known(deskOfTests(), parseRequest(t, head), netip.Addr{})
		var a ledger.Asking
		if f.Ask(&a); a.Key == 0 || a.Hashed != want {
			t.Errorf("%q: key %#x, of the hash %t", head, a.Key, a.Hashed)
		}
	}
	// Without HTTP the client's address is all there is.
	f := New(1, 1, objects.Listeners["hashed"], objects.Backends["hashed"], AddressOf(netip.MustParseAddrPort("192.0.2.7:9")), new(Lender))
	var a, o ledger.Asking
	f.Ask(&a)
	f.client = AddressOf(netip.MustParseAddrPort("192.0.2.200:10"))
	f.Ask(&o)
	if a.Key == 0 || a.Key != o.Key || a.Class != config.NormalPriority {
		t.Errorf("two of one /24 ask for %+v and %+v", a, o)
	}
}
