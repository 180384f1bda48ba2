package corpus

import (
	"fmt"
	"strings"
)

// requestVectors are about request lines and hosts (RFC 9112, section 3).
func requestVectors() []Vector {
	var v vectors
	const host = "Host: a.example\r\n"
	line := func(want Want, id, l string) {
		v.add(want, id, l, crlf, host, crlf)
	}
	for i, l := range []string{
		"GET  / HTTP/1.1", "GET /  HTTP/1.1", "GET\t/ HTTP/1.1", "GET /\tHTTP/1.1", " GET / HTTP/1.1", "\tGET / HTTP/1.1", "GET / HTTP/1.1 ", "GET / HTTP/1.1\t", "GET / HTTP/1.1 x",
		"GET /a b HTTP/1.1", "GET HTTP/1.1", "GET / ", "GET /", "/ HTTP/1.1", "GET", "GET / HTTP", "GET / HTTP/", "GET / HTTP/1", "GET / HTTP/1.", "GET / HTTP/.1", "GET / HTTP/11", "GET / HTTP/1,1",
		"GET / http/1.1", "GET / Http/1.1", "GET / HTTP /1.1", "GET / HTTP/ 1.1", "GET / HTTP/1 .1", "GET / HTTP/01.1", "GET / HTTP/1.01", "GET / HTTP/1.1.1", "GET / HTTP/1.1a", "GET / HTTP/-1.1", "GET / HTTP/+1.1",
		"GET / HTTPS/1.1", "GET / XHTTP/1.1", "GET / ICY/1.1", "GET / HTTP/0.9", "GET / HTTP/2.0", "GET / HTTP/3.0", "GET / HTTP/9.9", "GET / HTTP/1.1\rX", "PRI * HTTP/2.0",
		"G(T / HTTP/1.1", "G,T / HTTP/1.1", "\"GET\" / HTTP/1.1", "GET: / HTTP/1.1", "{} / HTTP/1.1", "G\xc3\x8bT / HTTP/1.1", "G/T / HTTP/1.1", "G=T / HTTP/1.1",
	} {
		line(Refuse, fmt.Sprintf("line/%02d", i), l)
	}
	line(Either, "line/later", "GET / HTTP/1.2")
	line(Either, "line/latest", "GET / HTTP/1.9")
	line(Serve, "line/old", "GET / HTTP/1.0")
	for i, m := range []string{"get", "Get", "GETT", "G", "QUERY", "M-SEARCH", "PURGE", "X!#$%&'*+-.^_`|~9", strings.Repeat("M", 20)} {
		line(Either, fmt.Sprintf("method/%02d", i), m+" / HTTP/1.1")
	}
	for i, t := range []string{
		"a", "a/b", "?", "?x", "\\", "/\\..\\", "*", "//", "///a", "a:b", "a.example:80", "a.example", "http:", "http:/", "http:/a", "http://", "http:///", "://a/", "http//a/", "ftp://a.example/", "javascript:x", "gopher:///a",
		"/#", "/a#b", "#", "/a\"b", "/<>", "/{}", "/|", "/^", "/`", "/%", "/%4", "/%zz", "/%00", "/%0d%0a", "/%2e%2e/", "/..", "/../", "/./", "/a/../b", "/;", "/a;b=c", "/?", "/??", "/?a=b&c", "/'", "/[]", "/:",
		"http://a.example", "http://a.example/", "http://a.example?x", "http://a.example/a?b", "HTTP://a.example/", "https://a.example/", "http://b.example/", "http://a.example:80/", "http://a.example:x/", "http://a.example:99999/",
		"http://u@a.example/", "http://u:p@a.example/", "http://a.example@b.example/", "http://[::1]/", "http://[::1", "http://a b/", "http://a.example\\b/", "http://a.example/ /", "http://.../", "http:// /",
	} {
		line(Either, fmt.Sprintf("target/%02d", i), "GET "+t+" HTTP/1.1")
	}
	for i, l := range []string{"OPTIONS * HTTP/1.1", "OPTIONS / HTTP/1.1", "OPTIONS http://a.example HTTP/1.1", "OPTIONS http://a.example/ HTTP/1.1", "OPTIONS ** HTTP/1.1", "OPTIONS *x HTTP/1.1", "POST * HTTP/1.1", "TRACE / HTTP/1.1"} {
		line(Either, fmt.Sprintf("form/%02d", i), l)
	}
	for i, l := range []string{
		"CONNECT a.example:443", "CONNECT a.example", "CONNECT /", "CONNECT *", "CONNECT http://a.example/", "CONNECT :443", "CONNECT a.example:", "CONNECT a.example:x", "CONNECT a.example:443/", "CONNECT u@a.example:443", "CONNECT [::1]:443",
	} {
		line(Either, fmt.Sprintf("connect/%02d", i), l+" HTTP/1.1")
		line(Either, fmt.Sprintf("connect/%02d/old", i), l+" HTTP/1.0")
	}
	// What stands before a request line.
	get := head("GET / HTTP/1.1")
	v.add(Either, "before/crlf", crlf, get)
	v.add(Either, "before/crlf-crlf", crlf, crlf, get)
	for i, s := range []string{"\n", "\r", "\r\r\n", "\n\r\n", " ", "\t", "\x00", "\xef\xbb\xbf", " \r\n", "\r\n ", "x\r\n", ":", "\x16\x03\x01\x00\x05\x01", "\x80\x2e\x01", "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "\r\n\r\n\x00\r\nQUIT\n"} {
		v.add(Refuse, fmt.Sprintf("before/%02d", i), s, get)
	}
	// Without a head at all, as HTTP/0.9 had it.
	v.add(Refuse, "bare/lf", "GET /\n")
	v.add(Refuse, "bare/crlf", "GET /\r\n\r\n")
	// The host (section 3.2).
	v.add(Refuse, "host/none", "GET / HTTP/1.1\r\n\r\n")
	v.add(Refuse, "host/none-but-others", "GET / HTTP/1.1\r\nX: y\r\n\r\n")
	v.add(Refuse, "host/none-absolute", "GET http://a.example/ HTTP/1.1\r\n\r\n")
	v.add(Serve, "host/none-old", "GET / HTTP/1.0\r\n\r\n")
	for _, x := range []struct{ id, lines string }{
		{"two", "Host: a.example\r\nHost: b.example"}, {"two-same", "Host: a.example\r\nHost: a.example"}, {"two-apart", "Host: a.example\r\nX: y\r\nhost: b.example"}, {"two-empty", "Host:\r\nHost: a.example"},
		{"space-colon", "Host : a.example"}, {"space-first", "X: y\r\n Host: a.example"}, {"folded", "Host:\r\n a.example"}, {"first-line", " Host: a.example"}, {"nul", "Host: a\x00.example"}, {"list", "Host: a.example, b.example"},
		{"space", "Host: a.example b.example"}, {"tab", "Host: a.example\tb.example"}, {"lf", "Host: a.example\nX: y"}, {"cr", "Host: a.example\rX: y"}, {"slash", "Host: a.example/b"}, {"at", "Host: u@a.example"}, {"query", "Host: a.example?b"},
		{"fragment", "Host: a.example#b"}, {"backslash", "Host: a.example\\b"}, {"quote", "Host: \"a.example\""}, {"scheme", "Host: http://a.example"}, {"control", "Host: a\x01b"}, {"del", "Host: a\x7fb"}, {"high", "Host: \xff"}, {"angle", "Host: <a>"},
	} {
		want := Refuse
		if x.id == "list" || x.id == "high" {
			want = Either // a reg-name may have a comma; the rest is a matter of taste
		}
		v.add(want, "host/"+x.id, "GET / HTTP/1.1\r\n", x.lines, crlf, crlf)
		v.add(want, "host/"+x.id+"/absolute", "GET http://a.example/ HTTP/1.1\r\n", x.lines, crlf, crlf)
	}
	for i, h := range []string{"", "a", "a.example:80", "a.example:", "a.example:x", "a.example:99999", ":80", "[::1]", "[::1]:80", "[::1", "::1", "[v1.x]", "a_b", "a..b", ".", "-", "%41", "%zz", "127.1", "0x7f.1", "A.EXAMPLE", "!$&'()*+,;=", strings.Repeat("a", 300)} {
		v.add(Either, fmt.Sprintf("host/value/%02d", i), "GET / HTTP/1.1\r\nHost: ", h, crlf, crlf)
	}
	// Heads that stop.
	for i := range len(get) {
		if i%3 == 1 {
			v.add(Either, fmt.Sprintf("cut/%02d", i), get[:i])
		}
	}
	return v
}

// fieldVectors are about field lines that are not framing (RFC 9112, section
// 5), and about much of them.
func fieldVectors() []Vector {
	var v vectors
	for i, l := range []string{
		"X", "X y", "X : y", "X\t: y", " X: y", "\tX: y", ":", ": y", " : y", "X Y: z", "X\x00: y", "X\x0b: y", "X\xff: y", "(X): y", "X/Y: z", "X[]: y", "X{}: y", "X@: y", "X=y: z", "X?: y", "X,: y", "X;: y", "\"X\": y", "X\\: y", "<X>: y",
		"X: y\r\n z", "X: y\r\n\tz", "X: y\r\n \r\n z", "X:\r\n y", "X: \x00", "X: \x01", "X: \x08", "X: \x0b", "X: \x0c", "X: \x1b", "X: \x7f", "X: a\rb", "X: a\nb", "X: a\r\rb", "X: a\n\rb", "X: \r", "X: \n", "X: y\r\r", "X: y\x00\x00",
	} {
		v.add(Refuse, fmt.Sprintf("bad/%02d", i), head("GET / HTTP/1.1", l))
		v.add(Refuse, fmt.Sprintf("bad/%02d/first", i), "GET / HTTP/1.1\r\n", l, "\r\nHost: a.example\r\n\r\n")
	}
	for i, l := range []string{
		"X:", "X: ", "X:\t", "X:y", "X:  y  ", "X:\ty\t", "X: a b", "X: a\tb", "X: \xff", "X: \x80\xa0", "X: \xc3\xa9", "X: a:b", "X: ::", "X: \"a\\\"b\"", "X: a, b,, c", "x: y", "X!#$%&'*+-.^_`|~9: y", "1: 2", "_: x", "-: x", "X: y\r\nX: z", "X: " + strings.Repeat("y", 2000),
		"Content-Type: text/plain", "Cookie: a=b; c=d", "Accept: */*", "Range: bytes=0-1", "Via: 1.1 a", "X-Forwarded-For: 192.0.2.1", "TE: trailers", "Keep-Alive: timeout=5", "Proxy-Connection: keep-alive", "Connection: keep-alive", "Connection: X\r\nX: y", "Connection: ,, keep-alive ,",
	} {
		v.add(Serve, fmt.Sprintf("good/%02d", i), head("GET / HTTP/1.1", l), head("GET /next HTTP/1.1"))
	}
	for i, l := range []string{"Expect: 100-continue", "expect: 100-Continue", "Expect: something", "Expect: 100-continue, x", "Expect:"} {
		v.add(Either, fmt.Sprintf("expect/%02d", i), head("POST / HTTP/1.1", l, "Content-Length: 4"), "xxxx", head("GET /next HTTP/1.1"))
		v.add(Either, fmt.Sprintf("expect/%02d/old", i), head("POST / HTTP/1.0", l, "Content-Length: 4"), "xxxx")
		v.add(Either, fmt.Sprintf("expect/%02d/none", i), head("GET / HTTP/1.1", l), head("GET /next HTTP/1.1"))
	}
	for i, l := range []string{"Upgrade: websocket", "Upgrade: h2c", "Upgrade: TLS/1.0", "Upgrade: a, b", "Upgrade:", "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"} {
		v.add(Either, fmt.Sprintf("upgrade/%02d", i), head("GET / HTTP/1.1", "Connection: Upgrade", l))
		v.add(Either, fmt.Sprintf("upgrade/%02d/behind", i), head("GET / HTTP/1.1", "Connection: Upgrade", l), head("GET /next HTTP/1.1"))
		v.add(Either, fmt.Sprintf("upgrade/%02d/unnamed", i), head("GET / HTTP/1.1", l), head("GET /next HTTP/1.1"))
		v.add(Either, fmt.Sprintf("upgrade/%02d/body", i), head("POST / HTTP/1.1", "Connection: Upgrade", l, "Content-Length: 4"), "xxxx", head("GET /next HTTP/1.1"))
	}
	// Too much, of each kind.
	v.add(Either, "much/target", "GET /"+strings.Repeat("a", 36000)+" HTTP/1.1\r\nHost: a.example\r\n\r\n")
	v.add(Either, "much/value", head("GET / HTTP/1.1", "X: "+strings.Repeat("a", 36000)))
	v.add(Either, "much/name", head("GET / HTTP/1.1", strings.Repeat("a", 36000)+": x"))
	v.add(Either, "much/fields", head("GET / HTTP/1.1", strings.TrimSuffix(strings.Repeat("X: y\r\n", 6000), crlf)))
	v.add(Either, "much/method", strings.Repeat("A", 9000)+" / HTTP/1.1\r\nHost: a.example\r\n\r\n")
	v.add(Either, "much/half", head("GET / HTTP/1.1", "X: "+strings.Repeat("a", 9000)))
	v.add(Either, "much/hundred", head("GET / HTTP/1.1", strings.TrimSuffix(strings.Repeat("X: y\r\n", 100), crlf)))
	return v
}

// pipelineVectors send several requests at once.
func pipelineVectors() []Vector {
	var v vectors
	get := func(i int) string { return head(fmt.Sprintf("GET /%d HTTP/1.1", i)) }
	post := func(i int) string {
		return head(fmt.Sprintf("POST /%d HTTP/1.1", i), fmt.Sprintf("Content-Length: %d", i)) + strings.Repeat("x", i)
	}
	chunks := func(i int) string {
		return head(fmt.Sprintf("PUT /%d HTTP/1.1", i), "Transfer-Encoding: chunked") + strings.Repeat("3\r\nabc\r\n", i) + "0\r\n\r\n"
	}
	headless := func(i int) string { return head(fmt.Sprintf("HEAD /%d HTTP/1.1", i)) }
	kinds := []struct {
		id   string
		make func(int) string
	}{{"get", get}, {"length", post}, {"chunks", chunks}, {"head", headless}}
	for _, a := range kinds {
		for _, b := range kinds {
			v.add(Serve, "two/"+a.id+"-"+b.id, a.make(1), b.make(2))
			v.add(Serve, "three/"+a.id+"-"+b.id, a.make(1), b.make(2), a.make(3))
			v.add(Serve, "six/"+a.id+"-"+b.id, a.make(1), b.make(2), a.make(3), b.make(4), a.make(5), b.make(6))
		}
		v.add(Serve, "many/"+a.id, func() string {
			var s strings.Builder
			for i := range 40 {
				s.WriteString(a.make(i))
			}
			return s.String()
		}())
		// Behind what ends the connection nothing is answered.
		v.add(Either, "close/"+a.id, a.make(1), head("GET /2 HTTP/1.1", "Connection: close"), a.make(3))
		v.add(Either, "old/"+a.id, a.make(1), head("GET /2 HTTP/1.0"), a.make(3))
		v.add(Either, "old-kept/"+a.id, head("GET /1 HTTP/1.0", "Connection: keep-alive"), a.make(2))
		v.add(Either, "crlf/"+a.id, a.make(1), crlf, a.make(2))
		// What is right is answered, then what is wrong is refused.
		for i, bad := range []string{
			"GET / HTTP/1.1\r\n\r\n", "GET /\r\n\r\n", "x", "\x00", " " + get(2), "\n" + get(2), head("POST / HTTP/1.1", "Content-Length: x") + smuggled,
			head("POST / HTTP/1.1", "Transfer-Encoding: x") + smuggled, head("GET / HTTP/1.1", "X : y") + smuggled, head("POST / HTTP/1.1", "Content-Length: 1", "Content-Length: 2") + smuggled,
		} {
			want := Refuse
			if bad == "x" {
				want = Either // it may become a request
			}
			v.add(want, fmt.Sprintf("then-bad/%s/%02d", a.id, i), a.make(1), bad)
		}
		v.add(Either, "then-half/"+a.id, a.make(1), get(2)[:12])
		v.add(Either, "then-half-body/"+a.id, a.make(1), head("POST /2 HTTP/1.1", "Content-Length: 10")+"xxxx")
		// A body that looks like a request is a body.
		v.add(Serve, "body-of-request/"+a.id, head("POST /1 HTTP/1.1", fmt.Sprintf("Content-Length: %d", len(smuggled))), smuggled, a.make(2))
		v.add(Serve, "chunk-of-request/"+a.id, head("POST /1 HTTP/1.1", "Transfer-Encoding: chunked"), byLength(), a.make(2))
	}
	v.add(Either, "connect/behind", "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n", get(2))
	v.add(Either, "expect/behind", head("POST /1 HTTP/1.1", "Expect: 100-continue", "Content-Length: 4"), "xxxx", get(2))
	return v
}

// servedVectors are what every proxy has to serve.
func servedVectors() []Vector {
	var v vectors
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "PROPFIND"} {
		v.add(Serve, method+"/plain", head(method+" / HTTP/1.1"))
		v.add(Serve, method+"/zero", head(method+" / HTTP/1.1", "Content-Length: 0"))
		v.add(Serve, method+"/twice", head(method+" /1 HTTP/1.1"), head(method+" /2 HTTP/1.1"))
		v.add(Serve, method+"/close", head(method+" / HTTP/1.1", "Connection: close"))
	}
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE"} {
		v.add(Serve, method+"/length", head(method+" / HTTP/1.1", "Content-Length: 5"), "hello")
		v.add(Serve, method+"/chunks", head(method+" / HTTP/1.1", "Transfer-Encoding: chunked"), "5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n")
		v.add(Serve, method+"/no-chunk", head(method+" / HTTP/1.1", "Transfer-Encoding: chunked"), "0\r\n\r\n")
		v.add(Serve, method+"/old", head(method+" / HTTP/1.0", "Content-Length: 5"), "hello")
		v.add(Serve, method+"/binary", head(method+" / HTTP/1.1", "Content-Length: 8"), "\x00\r\n\r\n\xff\r\n")
	}
	v.add(Serve, "body/large", head("POST / HTTP/1.1", "Content-Length: 30000"), strings.Repeat("0123456789", 3000))
	v.add(Serve, "body/large-chunk", head("POST / HTTP/1.1", "Transfer-Encoding: chunked"), "7530\r\n", strings.Repeat("0123456789", 3000), "\r\n0\r\n\r\n")
	for i, t := range []string{"/a", "/a/b/c", "/?a=b", "/a?b=c&d=e", "/%41", "/a%20b", "/~a", "/a-b_c.d", "/a;b", "/a,b", "/(a)", "/" + strings.Repeat("a", 1500)} {
		v.add(Serve, fmt.Sprintf("target/%02d", i), head("GET "+t+" HTTP/1.1"))
	}
	for i, l := range []string{"Transfer-Encoding: chunked", "transfer-encoding: chunked", "TRANSFER-ENCODING: chunked", "Transfer-Encoding:chunked", "Transfer-Encoding:   chunked", "Transfer-Encoding: chunked  ", "Transfer-Encoding: Chunked", "Transfer-Encoding: CHUNKED"} {
		v.add(Serve, fmt.Sprintf("coding/%02d", i), head("POST /1 HTTP/1.1", l), "5\r\nhello\r\n0\r\n\r\n", head("GET /2 HTTP/1.1"))
	}
	for i, l := range []string{"Content-Length: 5", "content-length: 5", "CONTENT-LENGTH: 5", "Content-Length:5", "Content-Length:\t5", "Content-Length: 5  "} {
		v.add(Serve, fmt.Sprintf("length/%02d", i), head("POST /1 HTTP/1.1", l), "hello", head("GET /2 HTTP/1.1"))
	}
	for i, h := range []string{"a.example", "a.example:80", "127.0.0.1", "[::1]", "A.Example", "a-b.example"} {
		v.add(Serve, fmt.Sprintf("host/%02d", i), "GET / HTTP/1.1\r\nHost: ", h, crlf, crlf)
	}
	return v
}
