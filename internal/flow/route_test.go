package flow

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/h1"
)

var testLimits = h1.Limits{LineMax: 8 << 10, HeadMax: 16 << 10, FieldsMax: 100}

// parseRequest parses a head that must be one.
func parseRequest(t testing.TB, head string) *h1.Head {
	t.Helper()
	h := new(h1.Head)
	if err := h.Request([]byte(head), &testLimits); err != nil {
		t.Fatalf("%q: %v", head, err)
	}
	return h
}

func anchored(s string) *regexp.Regexp { return regexp.MustCompile(`\A(?:` + s + `)\z`) }

func TestMatch(t *testing.T) {
	get := func(target, host string) string { return "GET " + target + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n" }
	fields := func(lines string) string { return "GET / HTTP/1.1\r\nHost: a\r\n" + lines + "\r\n" }
	for _, c := range []struct {
		name  string
		match config.Match
		in    string
		want  bool
	}{
		{"all", config.Match{}, get("/", "a"), true},
		{"all, of no host", config.Match{}, "GET / HTTP/1.0\r\n\r\n", true},

		{"host", config.Match{Hosts: []string{"example.org"}}, get("/", "example.org"), true},
		{"host in capitals with a port", config.Match{Hosts: []string{"example.org"}}, get("/", "EXAMPLE.org:8080"), true},
		{"second host", config.Match{Hosts: []string{"example.com", "example.org"}}, get("/", "example.org"), true},
		{"other host", config.Match{Hosts: []string{"example.org"}}, get("/", "example.orgs"), false},
		{"host with the last dot", config.Match{Hosts: []string{"example.org"}}, get("/", "example.org.:80"), true},
		{"host below", config.Match{Hosts: []string{"example.org"}}, get("/", "www.example.org"), false},
		{"no host", config.Match{Hosts: []string{"example.org"}}, "GET / HTTP/1.0\r\n\r\n", false},
		{"host of the target", config.Match{Hosts: []string{"example.org"}}, get("http://example.org/", "example.org"), true},
		{"host of CONNECT", config.Match{Hosts: []string{"example.org"}}, "CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n", true},
		{"IPv6 host", config.Match{Hosts: []string{"[::1]"}}, get("/", "[::1]:80"), true},
		{"IPv6 host without a port", config.Match{Hosts: []string{"[::1]"}}, get("/", "[::1]"), true},
		{"wildcard", config.Match{Hosts: []string{"*.example.org"}}, get("/", "a.b.EXAMPLE.org:1"), true},
		{"wildcard, the name itself", config.Match{Hosts: []string{"*.example.org"}}, get("/", "example.org"), false},
		{"wildcard, other name", config.Match{Hosts: []string{"*.example.org"}}, get("/", "badexample.org"), false},

		{"exact", config.Match{Exact: "/a"}, get("/a?b", "a"), true},
		{"exact, below", config.Match{Exact: "/a"}, get("/a/", "a"), false},
		{"exact, of an empty path", config.Match{Exact: "/"}, get("http://a?b", "a"), true},
		{"exact, in capitals", config.Match{Exact: "/a"}, get("/A", "a"), false},
		{"exact, encoded", config.Match{Exact: "/a"}, get("/%61", "a"), true},
		{"prefix itself", config.Match{Prefix: "/a"}, get("/a", "a"), true},
		{"prefix with a query", config.Match{Prefix: "/a"}, get("/a?/b", "a"), true},
		{"below prefix", config.Match{Prefix: "/a"}, get("/a/b", "a"), true},
		{"beside prefix", config.Match{Prefix: "/a"}, get("/ab", "a"), false},
		{"above prefix", config.Match{Prefix: "/a"}, get("/", "a"), false},
		{"prefix with a slash itself", config.Match{Prefix: "/a/"}, get("/a/", "a"), true},
		{"below prefix with a slash", config.Match{Prefix: "/a/"}, get("/a/b", "a"), true},
		{"prefix without its slash", config.Match{Prefix: "/a/"}, get("/a", "a"), false},
		{"root prefix", config.Match{Prefix: "/"}, get("/anything", "a"), true},
		{"root prefix of an absolute target", config.Match{Prefix: "/"}, get("http://a", "a"), true},
		{"root prefix of *", config.Match{Prefix: "/"}, "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", false},
		{"root prefix of CONNECT", config.Match{Prefix: "/"}, "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", false},
		{"any regex of CONNECT", config.Match{Regex: anchored(".*")}, "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", false},
		{"regex", config.Match{Regex: anchored("/v[0-9]+/.*")}, get("/v12/x?y", "a"), true},
		{"regex, more before", config.Match{Regex: anchored("/v[0-9]+/.*")}, get("/x/v12/x", "a"), false},

		{"encoded without need", config.Match{Prefix: "/admin"}, get("/%61dmi%6E/x", "a"), true},
		{"exact, encoded without need", config.Match{Exact: "/~a-b"}, get("/%7ea%2Db", "a"), true},
		{"regex, encoded without need", config.Match{Regex: anchored("/v[0-9]")}, get("/%76%31", "a"), true},
		{"encoded, digits in small letters", config.Match{Exact: "/a%2Fb"}, get("/a%2fb", "a"), true},
		{"encoded slash is none", config.Match{Prefix: "/a"}, get("/a%2fb", "a"), false},
		{"decoded once", config.Match{Exact: "/a"}, get("/%2561", "a"), false},

		{"method", config.Match{Methods: []string{"POST", "GET"}}, get("/", "a"), true},
		{"other method", config.Match{Methods: []string{"POST"}}, get("/", "a"), false},
		{"method in small letters", config.Match{Methods: []string{"GET"}}, "get / HTTP/1.1\r\nHost: a\r\n\r\n", false},

		{"field", config.Match{Headers: []config.Pair{{Name: "X-A", Value: "1"}}}, fields("x-a:  1 \r\n"), true},
		{"second field of the name", config.Match{Headers: []config.Pair{{Name: "x-a", Value: "1"}}}, fields("X-A: 2\r\nX-A: 1\r\n"), true},
		{"other value", config.Match{Headers: []config.Pair{{Name: "x-a", Value: "1"}}}, fields("X-A: 11\r\n"), false},
		{"no field", config.Match{Headers: []config.Pair{{Name: "x-a"}}}, fields(""), false},
		{"empty field", config.Match{Headers: []config.Pair{{Name: "x-a"}}}, fields("X-A:\r\n"), true},
		{"present", config.Match{Headers: []config.Pair{{Name: "x-a", Present: true}}}, fields("X-A: y\r\n"), true},
		{"not present", config.Match{Headers: []config.Pair{{Name: "x-a", Present: true}}}, fields("X-AB: y\r\n"), false},
		{"field by regex", config.Match{Headers: []config.Pair{{Name: "x-a", Regex: anchored("a+")}}}, fields("X-A: aaa\r\n"), true},
		{"field not by regex", config.Match{Headers: []config.Pair{{Name: "x-a", Regex: anchored("a+")}}}, fields("X-A: aaab\r\n"), false},
		{"both fields", config.Match{Headers: []config.Pair{{Name: "a", Value: "1"}, {Name: "b", Value: "2"}}}, fields("B: 2\r\nA: 1\r\n"), true},
		{"one of two fields", config.Match{Headers: []config.Pair{{Name: "a", Value: "1"}, {Name: "b", Value: "2"}}}, fields("A: 1\r\n"), false},
		{"field for one hop", config.Match{Headers: []config.Pair{{Name: "upgrade", Value: "websocket"}}}, fields("Connection: upgrade\r\nUpgrade: websocket\r\n"), true},

		{"parameter", config.Match{Query: []config.Pair{{Name: "b", Value: "2"}}}, get("/?a=1&b=2", "a"), true},
		{"second parameter of the name", config.Match{Query: []config.Pair{{Name: "b", Value: "2"}}}, get("/?b=1&b=2", "a"), true},
		{"parameter with =", config.Match{Query: []config.Pair{{Name: "b", Value: "2=3"}}}, get("/?b=2=3", "a"), true},
		{"parameter in capitals", config.Match{Query: []config.Pair{{Name: "b", Value: "2"}}}, get("/?B=2", "a"), false},
		{"parameter encoded", config.Match{Query: []config.Pair{{Name: "b", Value: "2"}}}, get("/?b=%32", "a"), false},
		{"parameter without a value", config.Match{Query: []config.Pair{{Name: "b"}}}, get("/?b", "a"), true},
		{"parameter present", config.Match{Query: []config.Pair{{Name: "b", Present: true}}}, get("/?a&b=7&c", "a"), true},
		{"parameter not present", config.Match{Query: []config.Pair{{Name: "b", Present: true}}}, get("/?ab", "a"), false},
		{"no query", config.Match{Query: []config.Pair{{Name: "b", Present: true}}}, get("/b", "a"), false},
		{"parameter by regex", config.Match{Query: []config.Pair{{Name: "b", Regex: anchored("[0-9]+")}}}, get("/?b=12", "a"), true},
		{"all together", config.Match{Hosts: []string{"a"}, Prefix: "/x", Methods: []string{"GET"}, Query: []config.Pair{{Name: "b", Value: "2"}}}, get("/x/y?b=2", "A:1"), true},
	} {
		// A route that matches nothing stands before it, one that matches all behind.
		r := &config.Rules{Routes: []*config.Route{
			{Match: config.Match{Methods: []string{"NONE"}}}, {Match: c.match}, {},
		}}
		want := 2
		if c.want {
			want = 1
		}
		if got := route(r, parseRequest(t, c.in), netip.Addr{}); got != want {
			t.Errorf("%s: %q: got route %d, want %d", c.name, c.in, got, want)
		}
	}
	r := &config.Rules{Routes: []*config.Route{{Match: config.Match{Exact: "/b"}}}}
	if got := route(r, parseRequest(t, get("/a", "a")), netip.Addr{}); got != -1 {
		t.Errorf("got route %d, want none", got)
	}
}

func TestDotted(t *testing.T) {
	for _, c := range []struct {
		path string
		want bool
	}{
		{"", false}, {"/", false}, {"*", false}, {"/a", false}, {"//", false}, {"/a.b/c..d/e.", false},
		{"/.well-known/x", false}, {"/..a", false}, {"/a..", false}, {"/...", false}, {"/.../", false},
		{"/%2ea", false}, {"/%2", false}, {"/%", false}, {"/%2e%2e%2e", false}, {"/;..", false}, {"/a;..", false}, {"/%252e", false},
		{"/%%2e", false},
		{"/.", true}, {"/..", true}, {"/./", true}, {"/../", true}, {"/a/./b", true}, {"/a/../b", true}, {"/a/..", true},
		{"/a/.", true}, {"/%2e", true}, {"/%2E%2e/", true}, {"/.%2e", true}, {"/%2e./b", true}, {"/a%2f..%2Fb", true},
		{"/a%2f..", true}, {"/a\\..\\b", true}, {"/a%5c%2e%2E%5Cb", true}, {"/..;/b", true}, {"/.;a=b/b", true}, {"/%2e%2e;", true},
		{"/..%3b/b", true}, {"/a//../b", true}, {"..", true},
	} {
		if got := dotted([]byte(c.path)); got != c.want {
			t.Errorf("dotted(%q): got %v, want %v", c.path, got, c.want)
		}
	}
}

// shared is a route to backends a, b and so on with these weights, read from a
// file: what is summed up there is asked for here.
func shared(t testing.TB, match string, weights ...int) *config.Route {
	t.Helper()
	var shares, backends strings.Builder
	for i, w := range weights {
		fmt.Fprintf(&shares, "{ name: %c, weight: %d }, ", 'a'+i, w)
		fmt.Fprintf(&backends, "%c: { endpoints: [ { address: 10.0.0.1:80 } ] }, ", 'a'+i)
	}
	text := fmt.Sprintf("listeners: { l: { vip: 10.0.0.5:80, protocol: http, routes: [ { match: { %s }, backends: [ %s ] } ] } }\nbackends: { %s }\n",
		match, shares.String(), backends.String())
	c, _, err := config.Parse("test.yaml", []byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	return c.Listeners["l"].Rules.Routes[0]
}

// Over many requests the shares are those of the weights, and in each short
// run, from wherever it begins, they are near them.
func TestChoose(t *testing.T) {
	for _, weights := range [][]int{{1}, {0, 5}, {1, 1}, {1, 2, 3}, {100, 1}, {1000, 1000, 1000, 1}, {90, 10}, {1, 0, 1}} {
		rt, sum := shared(t, "", weights...), 0
		for _, w := range weights {
			sum += w
		}
		for _, start := range []uint64{0, 1, 1 << 20, 1<<64 - 50} {
			for _, run := range []int{10, 100, 10000} {
				got := make([]int, len(weights))
				for k := range run {
					got[choose(rt, start+uint64(k))[0]-'a']++
				}
				for i, w := range weights {
					want := float64(run) * float64(w) / float64(sum)
					if w == 0 && got[i] != 0 {
						t.Errorf("%v from %d: %d of %d went to weight 0", weights, start, got[i], run)
					}
					// The discrepancy of this sequence grows with the logarithm of the run.
					if d := float64(got[i]) - want; d > 4 || d < -4 {
						t.Errorf("%v from %d: %d of %d went to %d, want %.1f", weights, start, got[i], run, i, want)
					}
				}
			}
		}
	}
}

func TestRoutingAllocatesNothing(t *testing.T) {
	h := parseRequest(t, "GET /api/v1/things?x=1 HTTP/1.1\r\nHost: WWW.example.org:8080\r\nX-A: b\r\n\r\n")
	r := &config.Rules{Routes: []*config.Route{
		{Match: config.Match{Hosts: []string{"example.org"}}},
		{Match: config.Match{Exact: "/api"}},
		{Match: config.Match{Headers: []config.Pair{{Name: "x-a", Value: "c"}}}},
		{Match: config.Match{Query: []config.Pair{{Name: "x", Value: "2"}}}},
		shared(t, `host: [ "*.example.org" ], path: /api/, method: [ GET ]`, 1, 2),
	}}
	pick := uint64(0)
	if n := testing.AllocsPerRun(100, func() {
		if dotted(pathOf(h)) || route(r, h, netip.Addr{}) != 4 || choose(r.Routes[4], pick) == "" {
			t.Fatal("not the last route")
		}
		pick++
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRoute(b *testing.B) {
	h := parseRequest(b, "GET /api/v1/things?x=1 HTTP/1.1\r\nHost: www.example.org:8080\r\nX-A: b\r\n\r\n")
	r := &config.Rules{Routes: []*config.Route{
		{Match: config.Match{Hosts: []string{"example.com"}}},
		{Match: config.Match{Prefix: "/static/"}},
		shared(b, "path: /api/", 1, 2),
	}}
	b.ReportAllocs()
	for k := uint64(0); b.Loop(); k++ {
		if dotted(pathOf(h)) {
			b.Fatal("dotted")
		}
		choose(r.Routes[route(r, h, netip.Addr{})], k)
	}
}

// A route may be for some sources only.
func TestRouteBySource(t *testing.T) {
	r := &config.Rules{Routes: []*config.Route{
		{Match: config.Match{Prefix: "/a", Sources: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}}},
		{Match: config.Match{Prefix: "/a"}},
		{Match: config.Match{Sources: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/32")}}},
	}}
	for _, c := range []struct {
		path, source string
		want         int
	}{
		{"/a", "10.1.2.3", 0}, {"/a", "::ffff:10.1.2.3", 0}, {"/a", "2001:db8::9", 0}, {"/a", "11.0.0.1", 1}, {"/a", "", 1},
		{"/b", "192.0.2.7", 2}, {"/b", "192.0.2.8", -1}, {"/b", "", -1},
	} {
		source, _ := netip.ParseAddr(c.source)
		if got := route(r, parseRequest(t, "GET "+c.path+" HTTP/1.1\r\nHost: h\r\n\r\n"), source); got != c.want {
			t.Errorf("%s from %q: route %d, want %d", c.path, c.source, got, c.want)
		}
	}
}
