package h1

import (
	"bytes"
	"strings"
	"testing"
)

var benchHeads = []struct{ name, head string }{
	{"curl", "GET /index.html HTTP/1.1\r\nHost: www.example.org\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\nConnection: close\r\n\r\n"},
	{"wrk", "GET /plaintext HTTP/1.1\r\nHost: 192.0.2.1:8080\r\n\r\n"},
	{"browser", "GET /news/2024/articles/7319?from=front&ref=abcdef0123456789 HTTP/1.1\r\n" +
		"Host: www.example.org\r\nConnection: keep-alive\r\nCache-Control: max-age=0\r\n" +
		"sec-ch-ua: \"Chromium\";v=\"124\", \"Not-A.Brand\";v=\"99\"\r\nsec-ch-ua-mobile: ?0\r\nsec-ch-ua-platform: \"Linux\"\r\n" +
		"Upgrade-Insecure-Requests: 1\r\n" +
		"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36\r\n" +
		"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n" +
		"Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-User: ?1\r\nSec-Fetch-Dest: document\r\n" +
		"Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9\r\n" +
		"Cookie: session=0123456789abcdef0123456789abcdef; theme=dark; consent=yes\r\n\r\n"},
	{"upload", "POST /upload HTTP/1.1\r\nHost: www.example.org\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n" +
		"Expect: 100-continue\r\nConnection: keep-alive, x-trace\r\nX-Trace: 1\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n"},
}

const benchResponse = "HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Tue, 14 May 2024 10:00:00 GMT\r\nContent-Type: text/plain\r\n" +
	"Content-Length: 612\r\nConnection: keep-alive\r\nETag: \"664336b0-264\"\r\n\r\n"

func BenchmarkScan(b *testing.B) {
	for _, v := range benchHeads {
		b.Run(v.name, func(b *testing.B) {
			head := []byte(v.head)
			b.SetBytes(int64(len(head)))
			b.ReportAllocs()
			for b.Loop() {
				if size, _, err := Scan(head, 0, &testLimits); size == 0 {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRequest(b *testing.B) {
	for _, v := range benchHeads {
		b.Run(v.name, func(b *testing.B) {
			head := []byte(v.head)
			var h Head
			b.SetBytes(int64(len(head)))
			b.ReportAllocs()
			for b.Loop() {
				if err := h.Request(head, &testLimits); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkResponse(b *testing.B) {
	head := []byte(benchResponse)
	var h Head
	b.SetBytes(int64(len(head)))
	b.ReportAllocs()
	for b.Loop() {
		if err := h.Response(head, GET, &testLimits); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendFields(b *testing.B) {
	var h Head
	if err := h.Request([]byte(benchHeads[2].head), &testLimits); err != nil {
		b.Fatal(err)
	}
	dst := make([]byte, 0, 2048)
	b.ReportAllocs()
	for b.Loop() {
		dst = h.AppendFields(dst[:0])
	}
}

// Chunks of 16 octets, where framing costs most, and of 16 KiB.
func BenchmarkBody(b *testing.B) {
	for _, v := range []struct {
		name, body string
	}{
		{"16", strings.Repeat("10\r\n0123456789abcdef\r\n", 700) + "0\r\n\r\n"},
		{"16384", "4000\r\n" + strings.Repeat("x", 16384) + "\r\n0\r\n\r\n"},
	} {
		b.Run(v.name, func(b *testing.B) {
			input := []byte(v.body)
			b.SetBytes(int64(len(input)))
			b.ReportAllocs()
			for b.Loop() {
				body := NewBody(Chunked, 0)
				if _, _, err := body.Feed(input, false); err != nil || !body.Done() {
					b.Fatal(err)
				}
			}
		})
	}
}

// Nothing on the way of a message is allocated, nor is a refusal.
func TestAllocations(t *testing.T) {
	var h Head
	var dst [2048]byte
	for _, v := range benchHeads {
		head := []byte(v.head)
		n := testing.AllocsPerRun(100, func() {
			size, _, err := Scan(head, 0, &testLimits)
			if err != nil || size != len(head) {
				t.Fatal(err)
			}
			if err := h.Request(head, &testLimits); err != nil {
				t.Fatal(err)
			}
			h.AppendFields(dst[:0])
			h.Lookup("cookie")
		})
		if n != 0 {
			t.Errorf("request of %s: %v allocations", v.name, n)
		}
	}
	for _, file := range vectorFiles {
		for _, v := range vectors(t, file) {
			input := bytes.Clone(v.input)
			size, _, _ := Scan(input, 0, &testLimits)
			n := testing.AllocsPerRun(10, func() {
				if size, _, err := Scan(input, 0, &testLimits); err != nil || size == 0 {
					return
				}
				var err *Error
				if v.kind.responses {
					err = h.Response(input[:size], v.kind.asked, &testLimits)
				} else {
					err = h.Request(input[:size], &testLimits)
				}
				if err == nil {
					b := NewBody(h.Framing, h.Length)
					_, _, _ = b.Feed(input[size:], v.kind.bare)
				}
			})
			if n != 0 {
				t.Errorf("%s: %v allocations", v.name(), n)
			}
		}
	}
}
