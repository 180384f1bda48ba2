package flow

import (
	"bufio"
	"bytes"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/h1"
)

var (
	someVIP = netip.MustParseAddrPort("192.0.2.80:8080")
	someone = party{client: netip.MustParseAddr("198.51.100.7"), vip: someVIP, id: 0xabc, number: 3}
)

func trusted(p party) *party {
	p.trusted = true
	return &p
}

// lines makes a head of lines.
func lines(l ...string) string { return strings.Join(l, "\r\n") + "\r\n\r\n" }

func TestAppendRequest(t *testing.T) {
	none := config.Rules{Forwarded: config.NoForwarded}
	six := someone
	six.client = netip.MustParseAddr("2001:db8::7")
	nobody := party{vip: netip.MustParseAddrPort("[2001:db8::80]:80")}
	prefix := func(match, by string) *config.Route {
		return &config.Route{Match: config.Match{Prefix: match}, Rewrite: &config.Rewrite{Prefix: by, HasPrefix: true}}
	}
	regex := func(what, by string) *config.Route {
		return &config.Route{Rewrite: &config.Rewrite{Regex: anchored(what), Replacement: by}}
	}
	for _, c := range []struct {
		name  string
		rules config.Rules
		route *config.Route // nil: an empty one
		party *party        // nil: someone, who is not trusted
		in    string
		want  string
	}{
		{"as it came", none, nil, nil,
			lines("GET /a?b=c HTTP/1.1", "hOST: example.org", "Accept:  */* ", "accept: x", "Expect: 100-continue", "Content-Length: 5"),
			lines("GET /a?b=c HTTP/1.1", "hOST: example.org", "Accept:  */* ", "accept: x", "Expect: 100-continue", "Content-Length: 5")},
		{"chunked with trailers", none, nil, nil,
			lines("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", "Trailer: x", "TE: trailers", "Connection: TE, close"),
			lines("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", "Trailer: x")},
		{"fields for one hop", none, nil, nil,
			lines("GET / HTTP/1.1", "Host: a", "Connection: keep-alive, X-Mine", "Keep-Alive: 5", "Proxy-Connection: x", "X-Mine: 1", "X-Yours: 1", "Upgrade: websocket"),
			lines("GET / HTTP/1.1", "Host: a", "X-Yours: 1")},
		{"HTTP/1.0", none, nil, nil,
			lines("GET / HTTP/1.0", "Host: a", "Expect: 100-continue"),
			lines("GET / HTTP/1.1", "Host: a")},
		{"HTTP/1.0 without Host", none, nil, nil,
			lines("GET / HTTP/1.0"),
			lines("GET / HTTP/1.1", "Host: 192.0.2.80:8080")},
		{"HTTP/1.0 without Host, IPv6 and the usual port", none, nil, &nobody,
			lines("GET / HTTP/1.0"),
			lines("GET / HTTP/1.1", "Host: [2001:db8::80]")},
		{"an empty line before", none, nil, nil,
			"\r\n" + lines("GET / HTTP/1.1", "Host: a"),
			lines("GET / HTTP/1.1", "Host: a")},

		{"absolute", none, nil, nil,
			lines("GET http://example.org/a?b HTTP/1.1", "X: 1", "Host: example.org"),
			lines("GET /a?b HTTP/1.1", "X: 1", "Host: example.org")},
		{"absolute, Host differs in spelling", none, nil, nil,
			lines("GET http://Example.org/a? HTTP/1.1", "X: 1", "Host: example.org"),
			lines("GET /a? HTTP/1.1", "Host: Example.org", "X: 1")},
		{"absolute without a path", none, nil, nil,
			lines("GET http://example.org?b HTTP/1.1", "Host: example.org"),
			lines("GET /?b HTTP/1.1", "Host: example.org")},
		{"absolute, HTTP/1.0 without Host", none, nil, nil,
			lines("GET http://example.org:81 HTTP/1.0"),
			lines("GET / HTTP/1.1", "Host: example.org:81")},
		{"OPTIONS *", none, prefix("/", "/x"), nil,
			lines("OPTIONS * HTTP/1.1", "Host: a"),
			lines("OPTIONS * HTTP/1.1", "Host: a")},
		{"OPTIONS of a host", none, prefix("/", "/x"), nil,
			lines("OPTIONS http://a HTTP/1.1", "Host: a"),
			lines("OPTIONS * HTTP/1.1", "Host: a")},
		{"OPTIONS of a query", none, nil, nil,
			lines("OPTIONS http://a?b HTTP/1.1", "Host: a"),
			lines("OPTIONS /?b HTTP/1.1", "Host: a")},
		{"OPTIONS of a path", none, nil, nil,
			lines("OPTIONS http://a/ HTTP/1.1", "Host: a"),
			lines("OPTIONS / HTTP/1.1", "Host: a")},
		{"CONNECT", none, prefix("/", "/x"), nil,
			lines("CONNECT a:443 HTTP/1.1", "Host: a:443"),
			lines("CONNECT a:443 HTTP/1.1", "Host: a:443")},

		{"an untrusted client forges", config.Rules{}, nil, nil,
			lines("GET / HTTP/1.1", "Host: a:81", "X-Forwarded-For: 1.1.1.1", "x-forwarded-for: 2.2.2.2", "X-Forwarded-Proto: https", "X-Forwarded-Host: bank",
				"Forwarded: for=1.1.1.1", "X_Forwarded_For: 3.3.3.3", "x-FORWARDED_host: bank"),
			lines("GET / HTTP/1.1", "X-Forwarded-For: 198.51.100.7", "X-Forwarded-Proto: http", "X-Forwarded-Host: a:81", "Host: a:81")},
		{"an untrusted client forges, nothing is sent", none, nil, nil,
			lines("GET / HTTP/1.1", "Host: a", "X-Forwarded-For: 1.1.1.1", "X-Forwarded-Proto: https", "Y: 1", "X-Forwarded-Host: bank", "Forwarded: for=1.1.1.1"),
			lines("GET / HTTP/1.1", "Host: a", "Y: 1")},
		{"an untrusted client forges, Forwarded is sent", config.Rules{Forwarded: config.RFC7239}, nil, nil,
			lines("GET / HTTP/1.1", "Host: a", "X-Forwarded-For: 1.1.1.1", "X-Forwarded-Proto: https", "X-Forwarded-Host: bank", `Forwarded: for="`),
			lines("GET / HTTP/1.1", "Forwarded: for=198.51.100.7;proto=http;host=a", "Host: a")},
		{"a trusted proxy", config.Rules{}, nil, trusted(someone),
			lines("GET / HTTP/1.1", "Host: a", "X-Forwarded-For: 1.1.1.1", "X: 1", "x-forwarded-for:", "x-forwarded-for: 2.2.2.2", "X-Forwarded-Proto: https", "X-Forwarded-Host: b", "Forwarded: for=x"),
			lines("GET / HTTP/1.1", "X-Forwarded-For: 1.1.1.1, 2.2.2.2, 198.51.100.7", "Host: a", "X: 1", "X-Forwarded-Proto: https", "X-Forwarded-Host: b", "Forwarded: for=x")},
		{"a trusted proxy that says nothing", config.Rules{Forwarded: config.BothFields}, nil, trusted(six),
			lines("GET / HTTP/1.1", "Host: [::1]:80"),
			lines("GET / HTTP/1.1", "X-Forwarded-For: 2001:db8::7", "X-Forwarded-Proto: http", "X-Forwarded-Host: [::1]:80",
				`Forwarded: for="[2001:db8::7]";proto=http;host="[::1]:80"`, "Host: [::1]:80")},
		{"a trusted proxy with Forwarded", config.Rules{Forwarded: config.RFC7239}, nil, trusted(someone),
			lines("GET / HTTP/1.1", "Host: a", `Forwarded: for="a\",b";x=y`, "Forwarded: for=z", "X-Forwarded-For: 1.1.1.1"),
			lines("GET / HTTP/1.1", `Forwarded: for="a\",b";x=y, for=z, for=198.51.100.7;proto=http;host=a`, "Host: a", "X-Forwarded-For: 1.1.1.1")},
		{"a trusted proxy with an open quote", config.Rules{Forwarded: config.RFC7239}, nil, trusted(someone),
			lines("GET / HTTP/1.1", "Host: a", `Forwarded: for=z`, `Forwarded: for="z\"`),
			lines("GET / HTTP/1.1", `Forwarded: for=198.51.100.7;proto=http;host=a`, "Host: a")},
		{"a client without an address or host", config.Rules{Forwarded: config.BothFields}, nil, &nobody,
			lines("GET / HTTP/1.0"),
			lines("GET / HTTP/1.1", "Host: [2001:db8::80]", "X-Forwarded-For: unknown", "X-Forwarded-Proto: http", "Forwarded: for=unknown;proto=http")},

		{"via", config.Rules{Forwarded: config.NoForwarded, Via: "holdfast"}, nil, nil,
			lines("GET / HTTP/1.0", "Host: a", "Via: 1.1 b", "X: 1"),
			lines("GET / HTTP/1.1", "Host: a", "Via: 1.1 b", "X: 1", "Via: 1.0 holdfast")},
		{"request id of an untrusted client", config.Rules{Forwarded: config.NoForwarded, RequestID: "X-Request-Id"}, nil, nil,
			lines("GET / HTTP/1.1", "Host: a", "x-request-id: mine", "X_Request-ID: mine"),
			lines("GET / HTTP/1.1", "Host: a", "X-Request-Id: 0000000000000abc-3")},
		{"request id of a trusted proxy", config.Rules{Forwarded: config.NoForwarded, RequestID: "X-Request-Id"}, nil, trusted(someone),
			lines("GET / HTTP/1.1", "Host: a", "x-request-id: theirs-1.2"),
			lines("GET / HTTP/1.1", "Host: a", "x-request-id: theirs-1.2")},
		{"request id of a trusted proxy, no token", config.Rules{Forwarded: config.NoForwarded, RequestID: "X-Request-Id"}, nil, trusted(someone),
			lines("GET / HTTP/1.1", "Host: a", "x-request-id: a b"),
			lines("GET / HTTP/1.1", "Host: a", "X-Request-Id: 0000000000000abc-3")},
		{"request id of a trusted proxy, too long", config.Rules{Forwarded: config.NoForwarded, RequestID: "X-Request-Id"}, nil, trusted(someone),
			lines("GET / HTTP/1.1", "Host: a", "x-request-id: "+strings.Repeat("a", idMost+1)),
			lines("GET / HTTP/1.1", "Host: a", "X-Request-Id: 0000000000000abc-3")},
		{"two request ids of a trusted proxy", config.Rules{Forwarded: config.NoForwarded, RequestID: "X-Request-Id"}, nil, trusted(someone),
			lines("GET / HTTP/1.1", "Host: a", "x-request-id: a", "x-request_id: b"),
			lines("GET / HTTP/1.1", "Host: a", "X-Request-Id: 0000000000000abc-3")},
		{"request id of a trusted proxy in disguise", config.Rules{Forwarded: config.NoForwarded, RequestID: "X-Request-Id"}, nil, trusted(someone),
			lines("GET / HTTP/1.1", "Host: a", "x_request_id: a"),
			lines("GET / HTTP/1.1", "Host: a", "X-Request-Id: 0000000000000abc-3")},
		{"request id of a trusted proxy for one hop", config.Rules{Forwarded: config.NoForwarded, RequestID: "X-Request-Id"}, nil, trusted(someone),
			lines("GET / HTTP/1.1", "Host: a", "x-request-id: a", "Connection: x-request-id"),
			lines("GET / HTTP/1.1", "Host: a", "X-Request-Id: 0000000000000abc-3")},
		{"no request id from a trusted proxy", config.Rules{Forwarded: config.NoForwarded, RequestID: "X-Request-Id"}, nil, trusted(someone),
			lines("GET / HTTP/1.1", "Host: a"),
			lines("GET / HTTP/1.1", "Host: a", "X-Request-Id: 0000000000000abc-3")},

		{"upgrade", none, nil, nil,
			lines("GET / HTTP/1.1", "Host: a", "Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x"),
			lines("GET / HTTP/1.1", "Host: a", "Upgrade: websocket", "Sec-WebSocket-Key: x", "Connection: upgrade")},
		{"upgrade to h2c", none, nil, nil,
			lines("GET / HTTP/1.1", "Host: a", "Connection: Upgrade, HTTP2-Settings", "Upgrade: foo, H2C", "HTTP2-Settings: x"),
			lines("GET / HTTP/1.1", "Host: a")},
		{"upgrade to a version of h2c", none, nil, nil,
			lines("GET / HTTP/1.1", "Host: a", "Connection: Upgrade", "Upgrade: foo", "Upgrade: h2c/1"),
			lines("GET / HTTP/1.1", "Host: a")},
		{"upgrade of HTTP/1.0", none, nil, nil,
			lines("GET / HTTP/1.0", "Host: a", "Connection: Upgrade", "Upgrade: websocket"),
			lines("GET / HTTP/1.1", "Host: a")},
		{"upgrade with content", none, nil, nil,
			lines("POST / HTTP/1.1", "Host: a", "Connection: Upgrade", "Upgrade: websocket", "Content-Length: 1"),
			lines("POST / HTTP/1.1", "Host: a", "Content-Length: 1")},

		{"prefix", none, prefix("/a", "/b"), nil, lines("GET /a/c?d HTTP/1.1", "Host: a"), lines("GET /b/c?d HTTP/1.1", "Host: a")},
		{"prefix itself", none, prefix("/a", "/b"), nil, lines("GET /a HTTP/1.1", "Host: a"), lines("GET /b HTTP/1.1", "Host: a")},
		{"prefix by nothing", none, prefix("/a", ""), nil, lines("GET /a/c HTTP/1.1", "Host: a"), lines("GET /c HTTP/1.1", "Host: a")},
		{"prefix itself by nothing", none, prefix("/a", ""), nil, lines("GET /a?d HTTP/1.1", "Host: a"), lines("GET /?d HTTP/1.1", "Host: a")},
		{"prefix by the root", none, prefix("/a", "/"), nil, lines("GET /a/c HTTP/1.1", "Host: a"), lines("GET /c HTTP/1.1", "Host: a")},
		{"prefix itself by the root", none, prefix("/a", "/"), nil, lines("GET /a HTTP/1.1", "Host: a"), lines("GET / HTTP/1.1", "Host: a")},
		{"prefix with a slash by one without", none, prefix("/a/", "/b"), nil, lines("GET /a/c HTTP/1.1", "Host: a"), lines("GET /b/c HTTP/1.1", "Host: a")},
		{"root by prefix", none, prefix("/", "/b"), nil, lines("GET http://a HTTP/1.1", "Host: a"), lines("GET /b HTTP/1.1", "Host: a")},
		{"exact by prefix", none, &config.Route{Match: config.Match{Exact: "/a"}, Rewrite: &config.Rewrite{Prefix: "/b", HasPrefix: true}}, nil,
			lines("GET /a? HTTP/1.1", "Host: a"), lines("GET /b? HTTP/1.1", "Host: a")},
		{"prefix that needs encoding", none, prefix("/a", "/ü ?#%41"), nil, lines("GET /a HTTP/1.1", "Host: a"), lines("GET /%C3%BC%20%3F%23%41 HTTP/1.1", "Host: a")},
		{"regex", none, regex("/([a-z]+)/(.*)", "/$2/$1"), nil, lines("GET /a/c?d HTTP/1.1", "Host: a"), lines("GET /c/a?d HTTP/1.1", "Host: a")},
		{"regex that does not match", none, regex("/[0-9]+", "/"), nil, lines("GET /a HTTP/1.1", "Host: a"), lines("GET /a HTTP/1.1", "Host: a")},
		{"regex without a slash", none, regex("/(.*)", "$1"), nil, lines("GET /a HTTP/1.1", "Host: a"), lines("GET /a HTTP/1.1", "Host: a")},
		{"regex that leaves nothing", none, regex("/.*", ""), nil, lines("GET /a?b HTTP/1.1", "Host: a"), lines("GET /?b HTTP/1.1", "Host: a")},
		{"regex that makes dots of a client's", none, regex("/x(.*)", "/in/.$1"), nil,
			lines("GET /x./%2fb HTTP/1.1", "Host: a"), lines("GET /in/%252E%252E/%252Fb HTTP/1.1", "Host: a")},
		{"regex of a path with dots", none, regex("/x/(.*)", "/$1"), nil,
			lines("GET /x/../b HTTP/1.1", "Host: a"), lines("GET /../b HTTP/1.1", "Host: a")},

		{"edits", none, &config.Route{Request: []config.Edit{
			{Kind: config.RemoveField, Name: "X-Gone"}, {Kind: config.SetField, Name: "x-set", Value: "new"},
			{Kind: config.SetField, Name: "X-Twice", Value: "1"}, {Kind: config.SetField, Name: "X-Twice", Value: "2"},
			{Kind: config.AddField, Name: "X-Add", Value: "3"}, {Kind: config.AddField, Name: "x-add", Value: "4"}}}, nil,
			lines("GET / HTTP/1.1", "Host: a", "x-gone: 1", "X-Set: old", "X-Add: 0", "X_Gone: 1", "X-SET: older", "Y: 1"),
			lines("GET / HTTP/1.1", "Host: a", "X-Add: 0", "Y: 1", "x-set: new", "X-Twice: 2", "X-Add: 3", "x-add: 4")},
		{"edits of ours", config.Rules{Forwarded: config.BothFields, Via: "v", RequestID: "X-Request-Id"}, &config.Route{Request: []config.Edit{
			{Kind: config.RemoveField, Name: "X-Forwarded-For"}, {Kind: config.RemoveField, Name: "x-forwarded-proto"}, {Kind: config.RemoveField, Name: "Via"},
			{Kind: config.RemoveField, Name: "Forwarded"}, {Kind: config.SetField, Name: "X-Forwarded-Host", Value: "h"}, {Kind: config.RemoveField, Name: "x-request-id"}}}, trusted(someone),
			lines("GET / HTTP/1.1", "Host: a", "X-Forwarded-For: 1.1.1.1", "Forwarded: for=z", "X-Forwarded-Host: old", "X-Request-ID: id", "Via: 1.1 w"),
			lines("GET / HTTP/1.1", "Host: a", "X-Forwarded-Host: h")},
		{"another host", config.Rules{}, &config.Route{Request: []config.Edit{{Kind: config.SetField, Name: "host", Value: "inner"}}}, nil,
			lines("GET http://A/ HTTP/1.1", "Host: a"),
			lines("GET / HTTP/1.1", "X-Forwarded-For: 198.51.100.7", "X-Forwarded-Proto: http", "X-Forwarded-Host: A", "host: inner")},
		{"the host of CONNECT", none, &config.Route{Request: []config.Edit{{Kind: config.SetField, Name: "Host", Value: "inner"}}}, nil,
			lines("CONNECT A:443 HTTP/1.1", "Host: a:443"),
			lines("CONNECT A:443 HTTP/1.1", "Host: A:443")},
		{"framing is not edited", none, &config.Route{Request: []config.Edit{
			{Kind: config.RemoveField, Name: "Content-Length"}, {Kind: config.RemoveField, Name: "Transfer-Encoding"}}}, nil,
			lines("POST / HTTP/1.1", "Host: a", "Content-Length: 5"),
			lines("POST / HTTP/1.1", "Host: a", "Content-Length: 5")},
	} {
		t.Run(c.name, func(t *testing.T) {
			rt, p := c.route, c.party
			if rt == nil {
				rt = &config.Route{}
			}
			if p == nil {
				p = &someone
			}
			got := appendRequest([]byte("before "), parseRequest(t, c.in), &c.rules, rt, p)
			if string(got) != "before "+c.want {
				t.Errorf("of %q:\n got %q\nwant %q", c.in, got, "before "+c.want)
			}
			parseRequest(t, c.want)
		})
	}
}

func TestTrusts(t *testing.T) {
	r := &config.Rules{Trust: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}}
	for _, c := range []struct {
		addr string
		want bool
	}{
		{"10.1.2.3", true}, {"::ffff:10.1.2.3", true}, {"11.0.0.1", false}, {"2001:db8::1", true}, {"2001:db8::1%eth0", true}, {"::1", false},
	} {
		if got := config.Holds(r.Trust, netip.MustParseAddr(c.addr)); got != c.want {
			t.Errorf("config.Holds(%s): got %v", c.addr, got)
		}
	}
	if config.Holds(r.Trust, netip.Addr{}) || config.Holds(nil, netip.MustParseAddr("10.0.0.1")) {
		t.Error("nobody is trusted")
	}
}

func parseResponse(t testing.TB, head string, m h1.Method) *h1.Head {
	t.Helper()
	h := new(h1.Head)
	if err := h.Response([]byte(head), m, &testLimits); err != nil {
		t.Fatalf("%q: %v", head, err)
	}
	return h
}

func TestAppendResponse(t *testing.T) {
	edits := &config.Route{Response: []config.Edit{
		{Kind: config.RemoveField, Name: "Server"}, {Kind: config.RemoveField, Name: "Content-Length"},
		{Kind: config.SetField, Name: "X-A", Value: "1"}, {Kind: config.AddField, Name: "X-B", Value: "2"}}}
	via := config.Rules{Via: "v"}
	for _, c := range []struct {
		name           string
		rules          config.Rules
		route          *config.Route
		minor          uint8
		close, dechunk bool
		in, want       string
	}{
		{"as it came", config.Rules{}, nil, 1, false, false,
			lines("HTTP/1.1 200 All right", "Server: s", "content-length:  5"),
			lines("HTTP/1.1 200 All right", "Server: s", "content-length:  5")},
		{"of HTTP/1.0, without a reason", config.Rules{}, nil, 1, false, false,
			lines("HTTP/1.0 299", "Content-Length: 5"),
			lines("HTTP/1.1 299 ", "Content-Length: 5")},
		{"one hop", config.Rules{}, nil, 1, false, false,
			lines("HTTP/1.1 200 OK", "Connection: close, x", "X: 1", "Keep-Alive: 5", "Upgrade: h2", "Content-Length: 5"),
			lines("HTTP/1.1 200 OK", "Content-Length: 5")},
		{"close", config.Rules{}, nil, 1, true, false,
			lines("HTTP/1.1 200 OK", "Server: s"),
			lines("HTTP/1.1 200 OK", "Server: s", "Connection: close")},
		{"HTTP/1.0 that stays", config.Rules{}, nil, 0, false, false,
			lines("HTTP/1.1 200 OK", "Content-Length: 5"),
			lines("HTTP/1.1 200 OK", "Content-Length: 5", "Connection: keep-alive")},
		{"chunks taken apart", config.Rules{}, edits, 0, true, true,
			lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "Trailer: x", "Y: 1"),
			lines("HTTP/1.1 200 OK", "Y: 1", "Connection: close", "X-A: 1", "X-B: 2")},
		{"chunked without content to HTTP/1.0", config.Rules{}, nil, 0, false, false,
			lines("HTTP/1.1 304 Not Modified", "Transfer-Encoding: chunked", "Trailer: x", "Y: 1"),
			lines("HTTP/1.1 304 Not Modified", "Y: 1", "Connection: keep-alive")},
		{"chunked", config.Rules{}, edits, 1, false, false,
			lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "Trailer: x", "x-a: 0", "Server: s", "X-B: 1"),
			lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "Trailer: x", "X-B: 1", "X-A: 1", "X-B: 2")},
		{"framing is not edited, via", via, edits, 1, false, false,
			lines("HTTP/1.0 200 OK", "Content-Length: 5", "Via: 1.1 w", "X_A: 0"),
			lines("HTTP/1.1 200 OK", "Content-Length: 5", "Via: 1.1 w", "Via: 1.0 v", "X-A: 1", "X-B: 2")},
		{"interim", config.Rules{}, edits, 1, false, false,
			lines("HTTP/1.1 103 Early Hints", "Link: </a>", "Server: s"),
			lines("HTTP/1.1 103 Early Hints", "Link: </a>", "Server: s")},
		{"101", via, edits, 1, false, false,
			lines("HTTP/1.1 101 Switching", "Connection: upgrade", "Upgrade: websocket", "Server: s"),
			lines("HTTP/1.1 101 Switching", "Upgrade: websocket", "Connection: upgrade", "Via: 1.1 v", "X-A: 1", "X-B: 2")},
		{"426", config.Rules{}, nil, 1, true, false,
			lines("HTTP/1.1 426 No", "Connection: upgrade", "Upgrade: websocket", "Content-Length: 5"),
			lines("HTTP/1.1 426 No", "Upgrade: websocket", "Content-Length: 5", "Connection: close, upgrade")},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := appendResponse([]byte("before "), parseResponse(t, c.in, h1.GET), &c.rules, c.route, nil, c.minor, c.close, c.dechunk)
			if string(got) != "before "+c.want {
				t.Errorf("of %q:\n got %q\nwant %q", c.in, got, "before "+c.want)
			}
			parseResponse(t, c.want, h1.GET)
		})
	}
}

// A head that nothing is to be done with, and one with all there is.
const (
	plainRequest = "GET /things/17?x=1 HTTP/1.1\r\nHost: www.example.org\r\nUser-Agent: test/1.0\r\nAccept: */*\r\nAccept-Encoding: gzip\r\nConnection: keep-alive\r\n\r\n"
	richRequest  = "GET http://www.EXAMPLE.org/a/things/17?x=1 HTTP/1.1\r\nHost: www.example.org\r\nX-Forwarded-For: 1.1.1.1\r\nForwarded: for=1.1.1.1\r\nX-Gone: 1\r\n" +
		"Upgrade: websocket\r\nConnection: upgrade\r\nX-Request-Id: 17\r\nAccept: */*\r\nVia: 1.1 x\r\n\r\n"
	plainResponse = "HTTP/1.1 200 OK\r\nServer: test/1.0\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Type: text/plain\r\nContent-Length: 17\r\n\r\n"
)

var (
	richRules = config.Rules{Forwarded: config.BothFields, Via: "holdfast", RequestID: "X-Request-Id"}
	richRoute = config.Route{
		Match:    config.Match{Prefix: "/a"},
		Rewrite:  &config.Rewrite{Prefix: "/b", HasPrefix: true},
		Request:  []config.Edit{{Kind: config.RemoveField, Name: "X-Gone"}, {Kind: config.SetField, Name: "X-Set", Value: "1"}},
		Response: []config.Edit{{Kind: config.RemoveField, Name: "Server"}, {Kind: config.AddField, Name: "X-Add", Value: "1"}},
	}
)

func TestForwardingAllocatesNothing(t *testing.T) {
	dst := make([]byte, 0, 8<<10)
	plain, rich, response := []byte(plainRequest), []byte(richRequest), []byte(plainResponse)
	rules, route, h := config.Rules{}, config.Route{}, new(h1.Head)
	for name, f := range map[string]func(){
		"plain request": func() {
			if err := h.Request(plain, &testLimits); err != nil {
				t.Fatal(err)
			}
			dst = appendRequest(dst[:0], h, &rules, &route, &someone)
		},
		"rich request": func() {
			if err := h.Request(rich, &testLimits); err != nil {
				t.Fatal(err)
			}
			dst = appendRequest(dst[:0], h, &richRules, &richRoute, trusted(someone))
		},
		"plain response": func() {
			if err := h.Response(response, h1.GET, &testLimits); err != nil {
				t.Fatal(err)
			}
			dst = appendResponse(dst[:0], h, &rules, &route, nil, 1, false, false)
		},
		"rich response": func() {
			if err := h.Response(response, h1.GET, &testLimits); err != nil {
				t.Fatal(err)
			}
			dst = appendResponse(dst[:0], h, &richRules, &richRoute, nil, 0, true, false)
		},
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// With parsing: a head that was forwarded must be parsed again.
func BenchmarkForward(b *testing.B) {
	dst, h := make([]byte, 0, 8<<10), new(h1.Head)
	rules, route := config.Rules{Forwarded: config.NoForwarded}, config.Route{}
	request := func(name, in string, rules *config.Rules, route *config.Route) {
		b.Run(name, func(b *testing.B) {
			octets := []byte(in)
			b.ReportAllocs()
			for b.Loop() {
				if err := h.Request(octets, &testLimits); err != nil {
					b.Fatal(err)
				}
				if dst != nil {
					dst = appendRequest(dst[:0], h, rules, route, &someone)
				}
			}
		})
	}
	request("plain request", plainRequest, &rules, &route)
	request("usual request", plainRequest, &config.Rules{}, &route)
	request("rich request", richRequest, &richRules, &richRoute)
	b.Run("plain response", func(b *testing.B) {
		octets := []byte(plainResponse)
		b.ReportAllocs()
		for b.Loop() {
			if err := h.Response(octets, h1.GET, &testLimits); err != nil {
				b.Fatal(err)
			}
			dst = appendResponse(dst[:0], h, &rules, &route, nil, 1, false, false)
		}
	})
}

// forwarding is what a fuzzed request is forwarded by.
var forwarding = []struct {
	rules config.Rules
	route config.Route
	party party
}{
	{config.Rules{Forwarded: config.NoForwarded}, config.Route{}, someone},
	{config.Rules{}, config.Route{}, someone},
	{richRules, richRoute, someone},
	{richRules, richRoute, *trusted(someone)},
	{config.Rules{Forwarded: config.RFC7239, RequestID: "Accept"}, config.Route{
		Rewrite: &config.Rewrite{Regex: regexp.MustCompile(`\A/?(.*)\z`), Replacement: "$1"},
		Request: []config.Edit{{Kind: config.SetField, Name: "Host", Value: "inner"}, {Kind: config.RemoveField, Name: "Content-Length"}}}, *trusted(someone)},
}

// Whatever is taken as a request is forwarded as one, of the same method and
// framing, that says who the client is and nothing for one hop; to us and to
// net/http, which reads less strictly.
func FuzzForward(f *testing.F) {
	for _, s := range []string{plainRequest, richRequest,
		lines("POST /a%20b HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", "Trailer: x", "TE: trailers"),
		lines("POST /a/. HTTP/1.1", "Host: a", "Content-Length: 5", "Forwarded: for=\"", "X_Forwarded_For: 1"),
		lines("CONNECT a:443 HTTP/1.1", "Host: a:443"), lines("OPTIONS * HTTP/1.1", "Host: a"), lines("OPTIONS http://a HTTP/1.1", "Host: a"),
		lines("GET http://a?x HTTP/1.0"), lines("GET //a//b?? HTTP/1.0", "Connection: keep-alive, x", "x: y"),
		lines("GET /x./b HTTP/1.1", "Host: [::1]:80", "Accept: \x80\xff", "Accept: 1", "Expect: 100-continue"),
	} {
		for mode := range forwarding {
			f.Add([]byte(s), uint8(mode))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, mode uint8) { checkForward(t, b, int(mode)%len(forwarding)) })
}

// The same for heads put together of what matters to a proxy: far more of them
// are requests.
func TestForwardCombinations(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	one := func(of ...string) string { return of[rng.IntN(len(of))] }
	taken := 0
	const heads = 20000
	for range heads {
		var b strings.Builder
		if rng.IntN(20) == 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(one("GET", "HEAD", "POST", "OPTIONS", "TRACE", "M-X", "CONNECT") + " ")
		b.WriteString(one("/", "/a", "/a/b", "/a/x./%2fb", "/x%2e", "/..", "//b//", "http://h", "http://H/a", "https://h:1/a/%2E", "*", "h:443", "h:1") + one("", "", "?", "?x", "??a=&b"))
		b.WriteString(one(" HTTP/1.1", " HTTP/1.1", " HTTP/1.0") + "\r\n" + one("Host: h\r\n", "Host: h\r\n", "host:H:443 \r\n", "HOST: [::1]\r\n", ""))
		for range rng.IntN(8) {
			b.WriteString(one("Connection", "connection", "Keep-Alive", "Proxy-Connection", "TE", "Trailer", "Transfer-Encoding", "Content-Length", "Content_Length",
				"Upgrade", "upgrade", "X-Forwarded-For", "x-forwarded-proto", "X_Forwarded_Host", "X-Forwarded-Host", "Forwarded", "Via", "Expect", "X-Request-Id",
				"x-request_id", "X-Gone", "X-Set", "Accept", "Host", "Host_", "X"))
			b.WriteString(":" + one("", " ", "\t") + one("", "1", "5", "chunked", "close", "keep-alive, X", "upgrade", "websocket", "h2c", "foo, H2C", "x-gone, upgrade",
				"100-continue", "trailers", "for=1.1.1.1", `for="`, `"a\""`, "1.1.1.1, 2.2.2.2", "h", "te, X-Forwarded-For", "\x80\xff", ",,", "http") + one("", " ") + "\r\n")
		}
		b.WriteString("\r\n")
		if checkForward(t, []byte(b.String()), rng.IntN(len(forwarding))) {
			taken++
		}
	}
	if taken < heads/10 {
		t.Errorf("only %d of %d heads were requests", taken, heads)
	}
}

// checkForward forwards b, if it is a request.
func checkForward(t *testing.T, b []byte, mode int) bool {
	t.Helper()
	h, again := new(h1.Head), new(h1.Head)
	if h.Request(b, &testLimits) != nil {
		return false
	}
	by := &forwarding[mode]
	wild := dotted(pathOf(h))
	dst := appendRequest(nil, h, &by.rules, &by.route, &by.party)
	if len(dst) > h1.HeadMost {
		return true // what we add is not bounded by the limits
	}
	wide := h1.Limits{LineMax: h1.HeadMost, HeadMax: h1.HeadMost, FieldsMax: h1.FieldsMost}
	size, _, bad := h1.Scan(dst, 0, &wide)
	if bad != nil || size != len(dst) {
		t.Fatalf("%q: scanned %d of %d, %v", dst, size, len(dst), bad)
	}
	if bad := again.Request(dst, &wide); bad != nil {
		t.Fatalf("%q became %q: %v", b, dst, bad)
	}
	if again.Framing != h.Framing || again.Length != h.Length || again.Minor != 1 || again.Close ||
		string(again.MethodName.Of(dst)) != string(h.MethodName.Of(b)) || again.Continue != h.Continue || again.Upgrade != upgrades(h) {
		t.Fatalf("%q became %q", b, dst)
	}
	if again.Form == h1.AbsoluteForm || dotted(pathOf(again)) && !wild {
		t.Fatalf("%q became %q, whose target is no longer safe", b, dst)
	}
	for i := range again.Fields {
		switch f := &again.Fields[i]; f.Known {
		case h1.KeepAlive, h1.ProxyConnection, h1.TE:
			t.Fatalf("%q became %q, which has what is for one hop", b, dst)
		case h1.Connection, h1.Upgrade:
			if !again.Upgrade {
				t.Fatalf("%q became %q, which has what is for one hop", b, dst)
			}
		}
	}
	// One field says who the client is; what it believes of others it says
	// before us.
	const name = "X-Forwarded-For"
	sent := by.rules.Forwarded != config.RFC7239 && by.rules.Forwarded != config.NoForwarded
	v, ok := again.Lookup(name)
	switch {
	case sent && (!ok || !bytes.HasSuffix(v, []byte("198.51.100.7")) || bytes.Count(bytes.ToLower(dst), []byte("\r\nx-forwarded-for")) != 1):
		t.Fatalf("%q became %q, which says that the client is %q", b, dst, v)
	case !by.party.trusted && (ok != sent || sent && string(v) != "198.51.100.7"):
		t.Fatalf("%q became %q, which says that the client is %q", b, dst, v)
	}
	if !wild {
		checkNetHTTP(t, h, dst)
	}
	return true
}

// checkNetHTTP has net/http read what was forwarded.
func checkNetHTTP(t *testing.T, h *h1.Head, dst []byte) {
	t.Helper()
	// It refuses, or says differently, some of what is ours to forward.
	switch {
	case h.Form == h1.AuthorityForm, bytes.Contains(dst, []byte("\r\nExpect")):
		return
	}
	request, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(dst)))
	if err != nil {
		t.Fatalf("net/http refuses %q: %v", dst, err)
	}
	length := int64(h.Length)
	if h.Framing == h1.Chunked {
		length = -1
	}
	if request.Method != string(h.MethodName.Of(h.Octets)) || request.ContentLength != length ||
		(len(request.TransferEncoding) > 0) != (h.Framing == h1.Chunked) || request.Close {
		t.Fatalf("net/http reads %q as %s, length %d, %v", dst, request.Method, request.ContentLength, request.TransferEncoding)
	}
}
