package flow

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/h1"
)

// ourStatuses are those that appendAnswer has a sentence for.
var ourStatuses = []int{400, 404, 408, 413, 414, 417, 431, 500, 501, 502, 503, 504, 505}

func TestAppendAnswer(t *testing.T) {
	got := string(appendAnswer([]byte("before "), 503, false, true, 1))
	want := "before " + lines("HTTP/1.1 503 Service Unavailable", "Content-Type: text/plain", "Cache-Control: no-store", "Content-Length: 44", "Connection: close") +
		"503 Service Unavailable: no server is ready\n"
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, status := range ourStatuses {
		for _, head := range []bool{false, true} {
			for _, shut := range []bool{false, true} {
				for minor := range uint8(2) {
					method := http.MethodGet
					if head {
						method = http.MethodHead
					}
					out := appendAnswer(nil, status, head, shut, minor)
					response, rest := readResponse(t, out, method)
					text, err := io.ReadAll(response.Body)
					if err != nil || len(rest()) != 0 {
						t.Fatalf("%q: %v, with %q behind it", out, err, rest())
					}
					if response.StatusCode != status || response.Close != shut || (len(text) == 0) != head ||
						!head && (int64(len(text)) != response.ContentLength || !bytes.HasPrefix(text, []byte(response.Status+": "))) {
						t.Errorf("%d, head %v, close %v, 1.%d: got %q", status, head, shut, minor, out)
					}
					if keep := response.Header.Get("Connection"); !shut && (keep == "keep-alive") != (minor == 0) {
						t.Errorf("%d to 1.%d: Connection is %q", status, minor, keep)
					}
				}
			}
		}
	}
}

// readResponse has net/http read a response. rest gives what stands behind it,
// once its body was read.
func readResponse(t *testing.T, out []byte, method string) (*http.Response, func() []byte) {
	t.Helper()
	parseResponse(t, string(out[:bytes.Index(out, []byte("\r\n\r\n"))+4]), h1.GET)
	r := bufio.NewReader(bytes.NewReader(out))
	response, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	return response, func() []byte {
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}

func TestAppendRedirect(t *testing.T) {
	get := func(target, host string) string { return "GET " + target + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n" }
	for _, c := range []struct {
		in       string
		redirect config.Redirect
		want     string
	}{
		{get("/a?b=c", "h:81"), config.Redirect{}, "http://h:81/a?b=c"},
		{get("/a?", "h"), config.Redirect{Host: "i:82"}, "http://i:82/a?"},
		{get("/a?b", "h:81"), config.Redirect{Scheme: "https"}, "https://h/a?b"},
		{get("/a?b", "h:81"), config.Redirect{Scheme: "http"}, "http://h:81/a?b"},
		{get("/a?b", "[::1]:81"), config.Redirect{Scheme: "https"}, "https://[::1]/a?b"},
		{get("/a?b", "h:81"), config.Redirect{Scheme: "https", Host: "i:444", Path: "/c"}, "https://i:444/c?b"},
		{get("/a", "h"), config.Redirect{Path: "/ü d"}, "http://h/%C3%BC%20d"},
		{get("/%0d%0aSet-Cookie:x", "h"), config.Redirect{}, "http://h/%0d%0aSet-Cookie:x"},
		{get("//evil/a", "h"), config.Redirect{}, "http://h//evil/a"},
		{get("http://H?b", "h"), config.Redirect{Scheme: "https"}, "https://H/?b"},
		{"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", config.Redirect{}, "http://h/"},
		{"CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n", config.Redirect{Scheme: "https"}, "https://h/"},
		{"GET /a?b HTTP/1.0\r\n\r\n", config.Redirect{Scheme: "https"}, "/a?b"},
		{"GET /a?b HTTP/1.0\r\n\r\n", config.Redirect{Host: "i"}, "http://i/a?b"},
		{"GET //evil/a HTTP/1.0\r\n\r\n", config.Redirect{}, "/.//evil/a"},
		{"GET //evil/a HTTP/1.0\r\n\r\n", config.Redirect{Path: "/c"}, "/c"},
	} {
		for _, status := range []int{301, 302, 303, 307, 308} {
			c.redirect.Status = status
			out := appendRedirect(nil, parseRequest(t, c.in), &c.redirect, "http", false, 1)
			response, rest := readResponse(t, out, http.MethodGet)
			if response.StatusCode != status || response.ContentLength != 0 || len(rest()) != 0 || len(response.Header) != 2 || response.Header.Get("Location") != c.want {
				t.Errorf("of %q by %+v: got %q, want %s", c.in, c.redirect, out, c.want)
			}
		}
	}
	out := appendRedirect(nil, parseRequest(t, get("/", "h")), &config.Redirect{Status: 302}, "http", true, 0)
	if want := lines("HTTP/1.1 302 Found", "Location: http://h/", "Content-Length: 0", "Connection: close"); string(out) != want {
		t.Errorf("got %q, want %q", out, want)
	}
}

// Behind a proxy that ends TLS a redirect stays where the client came from.
func TestRedirectByScheme(t *testing.T) {
	for _, c := range []struct {
		redirect config.Redirect
		scheme   string
		want     string
	}{
		{config.Redirect{Status: 307, Path: "/b"}, "https", "https://h:8/b"},
		{config.Redirect{Status: 307, Scheme: "https"}, "https", "https://h:8/a"},
		{config.Redirect{Status: 307, Scheme: "http"}, "https", "http://h/a"},
		{config.Redirect{Status: 307, Scheme: "https"}, "http", "https://h/a"},
	} {
		out := appendRedirect(nil, parseRequest(t, "GET /a HTTP/1.1\r\nHost: h:8\r\n\r\n"), &c.redirect, c.scheme, false, 1)
		response, _ := readResponse(t, out, http.MethodGet)
		if got := response.Header.Get("Location"); got != c.want {
			t.Errorf("by %s, %+v: got %s, want %s", c.scheme, c.redirect, got, c.want)
		}
	}
}

func TestAppendRespond(t *testing.T) {
	for _, c := range []struct {
		respond config.Respond
		head    bool
		close   bool
		want    string
	}{
		{config.Respond{Status: 200, Type: "text/html", Body: "hello"}, false, false,
			lines("HTTP/1.1 200 OK", "Content-Type: text/html", "Content-Length: 5") + "hello"},
		{config.Respond{Status: 200, Type: "text/html", Body: "hello"}, true, true,
			lines("HTTP/1.1 200 OK", "Content-Type: text/html", "Content-Length: 5", "Connection: close")},
		{config.Respond{Status: 599}, false, false, lines("HTTP/1.1 599 ", "Content-Length: 0")},
		{config.Respond{Status: 204, Type: "x/y", Body: "ignored"}, false, false, lines("HTTP/1.1 204 No Content")},
		{config.Respond{Status: 304}, false, false, lines("HTTP/1.1 304 Not Modified")},
	} {
		out := appendRespond(nil, &c.respond, c.head, c.close, 1)
		if string(out) != c.want {
			t.Errorf("%+v: got %q, want %q", c.respond, out, c.want)
		}
		method := http.MethodGet
		if c.head {
			method = http.MethodHead
		}
		response, rest := readResponse(t, out, method)
		if _, err := io.ReadAll(response.Body); err != nil || len(rest()) != 0 {
			t.Errorf("%q: %v, with %q behind it", out, err, rest())
		}
	}
}

func TestAnsweringAllocatesNothing(t *testing.T) {
	dst := make([]byte, 0, 1<<10)
	h := parseRequest(t, plainRequest)
	redirect, respond := &config.Redirect{Status: 308, Scheme: "https"}, &config.Respond{Status: 200, Type: "text/plain", Body: "ok"}
	if n := testing.AllocsPerRun(100, func() {
		for _, status := range ourStatuses {
			dst = appendAnswer(dst[:0], status, false, true, 1)
		}
		dst = appendRedirect(dst[:0], h, redirect, "http", false, 1)
		dst = appendRespond(dst[:0], respond, false, false, 1)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAnswer(b *testing.B) {
	dst := make([]byte, 0, 1<<10)
	b.ReportAllocs()
	for b.Loop() {
		dst = appendAnswer(dst[:0], 503, false, true, 1)
	}
}
