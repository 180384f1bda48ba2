package h1

import "testing"

var testLimits = Limits{LineMax: 8 << 10, HeadMax: HeadMost, FieldsMax: 100}

func TestSmoke(t *testing.T) {
	const head = "GET /a?b HTTP/1.1\r\nHost: example.org\r\nConnection: close, x\r\nX: 1\r\nY: 2\r\n\r\n"
	size, _, err := Scan([]byte(head+"more"), 0, &testLimits)
	if err != nil || size != len(head) {
		t.Fatal(size, err)
	}
	var h Head
	if err := h.Request([]byte(head), &testLimits); err != nil {
		t.Fatal(err)
	}
	if got := string(h.AppendFields(nil)); got != "Host: example.org\r\nY: 2\r\n" {
		t.Fatalf("%q", got)
	}
	b := NewBody(Chunked, 0)
	p := []byte("3;a=\"b\"\r\nabc\r\n0\r\nx: y\r\n\r\nrest")
	n, out, err := b.Feed(p, false)
	if err != nil || n != len(p)-4 || string(p[:out]) != "3\r\nabc\r\n0\r\nx: y\r\n\r\n" || !b.Done() {
		t.Fatalf("%d %q %v", n, p[:out], err)
	}
}
func BenchmarkR(b *testing.B) {
	head := []byte("GET /index.html HTTP/1.1\r\nHost: www.example.org\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\nConnection: close\r\n\r\n")
	var h Head
	b.ReportAllocs()
	b.SetBytes(int64(len(head)))
	for b.Loop() {
		Scan(head, 0, &testLimits)
		if err := h.Request(head, &testLimits); err != nil {
			b.Fatal(err)
		}
	}
}
