package corpus

import (
	"strings"
	"testing"
)

// What has to be served is read alike by everybody, and what has to be refused
// is refused by the letter: the wants do not contradict the readers.
func TestWantsAgreeWithReaders(t *testing.T) {
	files, err := Own()
	if err != nil {
		t.Fatal(err)
	}
	count := map[Want]int{}
	for _, f := range files {
		for _, v := range f.Vectors {
			count[v.Want]++
			r := Strict(v.Octets)
			switch v.Want {
			case Serve:
				if r.End != Boundary || len(r.Messages) == 0 {
					t.Errorf("%s/%s is to be served, and ends %v %s", f.Name, v.ID, r.End, r.Why)
				}
				if why := Ambiguous(v.Octets); why != "" {
					t.Errorf("%s/%s is to be served, and is ambiguous: %s", f.Name, v.ID, why)
				}
			case Refuse:
				if r.End != Unreadable {
					t.Errorf("%s/%s is to be refused, and ends %v", f.Name, v.ID, r.End)
				}
			case Either:
			}
		}
	}
	for _, w := range []Want{Serve, Refuse, Either} {
		if count[w] < 150 {
			t.Errorf("%d streams of want %q, want at least 150", count[w], w)
		}
	}
}

// Each reader finds something in the streams that another reads in another way:
// none is there for show.
func TestEachReaderIsOfItsOwnMind(t *testing.T) {
	files, err := Own()
	if err != nil {
		t.Fatal(err)
	}
	alone := map[string]string{}
	for _, f := range files {
		for _, v := range f.Vectors {
			var all []Reading
			for _, r := range readers() {
				all = append(all, read(r, v.Octets))
			}
			for i := range all {
				for k := range all[:i] {
					if disagree(&all[k], &all[i]) != "" {
						alone[all[i].Reader], alone[all[k].Reader] = v.ID, v.ID
					}
				}
			}
		}
	}
	for _, r := range readers() {
		if alone[r.name()] == "" {
			t.Errorf("the reader %q never disagrees with any other", r.name())
		}
	}
}

// A stream that went through a blind relay is judged.
func TestAmbiguous(t *testing.T) {
	const host = "Host: a\r\n"
	for _, tt := range []struct {
		name, stream string
		want         string // a part of the answer; "": not ambiguous
	}{
		{"nothing", "", ""},
		{"plain", "GET / HTTP/1.1\r\n" + host + "\r\n", ""},
		{"length", "POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n" + host + "\r\n", ""},
		{"chunks", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.1\r\n" + host + "\r\n", ""},
		{"begun", "POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\n\r\na", ""},
		{"within a head", "POST / HTTP/1.1\r\n" + host, ""},
		{"both framings", "POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "body of"},
		{"both framings that differ", "POST / HTTP/1.1\r\n" + host + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX", "body of"},
		{"a coding by another name", "POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "body of"},
		{"LF ends a line", "GET / HTTP/1.1\r\n" + host + "X: y\nContent-Length: 3\r\n\r\nabc", "octet 0x0a"},
		{"LF ends a chunk's line", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n2;\nxx\r\n10\r\n\r\n0\r\n\r\n", "and"},
		{"NUL", "GET / HTTP/1.1\r\n" + host + "X: \x00\r\n\r\n", "octet 0x00"},
		{"two hosts", "GET / HTTP/1.1\r\n" + host + "Host: b\r\n\r\n", "host"},
		{"two lengths", "POST / HTTP/1.1\r\n" + host + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", "body of"},
		{"chunks in HTTP/1.0", "POST / HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", "body of"},
		{"a folded line", "POST / HTTP/1.1\r\n" + host + "X: y\r\n Content-Length: 3\r\n\r\nabc", "and"},
		{"a size with 0x", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0x3\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n", "and"},
	} {
		got := Ambiguous([]byte(tt.stream))
		if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q: got %q, want %q", tt.name, tt.stream, got, tt.want)
		}
	}
}

// A request in what was forwarded is smuggled only if the client did not send
// it as one.
func TestSmuggled(t *testing.T) {
	inBody := head("POST / HTTP/1.1", "Content-Length: 68") + smuggled
	if why := Smuggled([]byte(head("POST / HTTP/1.1")+smuggled), []byte(inBody)); why == "" {
		t.Error("a body that became a request is not noticed")
	}
	two := []byte(head("GET / HTTP/1.1") + smuggled)
	if why := Smuggled(two, two); why != "" {
		t.Errorf("a request that was sent as such: %s", why)
	}
}

func TestWrong(t *testing.T) {
	get := func(i string) string { return head("GET /" + i + " HTTP/1.1") }
	key := func(i string) string { r := Strict([]byte(get(i))); return r.Messages[0].Key() }
	answer := func(serial, i string) string {
		return "HTTP/1.1 200 OK\r\n" + SerialField + ": " + serial + "\r\n" + KeyField + ": " + key(i) + "\r\nContent-Length: 2\r\n\r\nok"
	}
	const refusal = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
	seen := func(all ...string) (s []Seen) {
		for i := 0; i < len(all); i += 2 {
			s = append(s, Seen{all[i], key(all[i+1])})
		}
		return s
	}
	for _, tt := range []struct {
		name string
		x    Exchange
		want string
	}{
		{"nothing", Exchange{Closed: true}, ""},
		{"one", Exchange{Sent: []byte(get("1")), Received: []byte(answer("7", "1")), Seen: seen("7", "1")}, ""},
		{"two", Exchange{Sent: []byte(get("1") + get("2")), Received: []byte(answer("7", "1") + answer("8", "2")), Seen: seen("7", "1", "8", "2")}, ""},
		{"refused", Exchange{Sent: []byte("x y z\r\n\r\n"), Received: []byte(refusal), Closed: true}, ""},
		{"served, then refused", Exchange{Sent: []byte(get("1") + "x"), Received: []byte(answer("7", "1") + refusal), Closed: true, Seen: seen("7", "1")}, ""},
		{"half a request, closed", Exchange{Sent: []byte(get("1")[:5]), Closed: true}, ""},
		{"one answer for two", Exchange{Sent: []byte(get("1") + get("2")), Received: []byte(answer("7", "1")), Closed: true, Seen: seen("7", "1")}, "1 answers to 2 requests"},
		{"two answers for one", Exchange{Sent: []byte(get("1")), Received: []byte(answer("7", "1") + answer("8", "2")), Seen: seen("7", "1", "8", "2")}, "2 answers to 1 requests"},
		{"swapped", Exchange{Sent: []byte(get("1") + get("2")), Received: []byte(answer("8", "2") + answer("7", "1")), Seen: seen("7", "1", "8", "2")}, "out of order"},
		{"of another", Exchange{Sent: []byte(get("1")), Received: []byte(answer("7", "2")), Seen: seen("7", "2")}, "belongs to another request"},
		{"of an earlier stream", Exchange{Sent: []byte(get("1")), Received: []byte(answer("6", "1")), Seen: seen("7", "1")}, "out of order"},
		{"lost", Exchange{Sent: []byte(get("1")), Closed: true, Seen: seen("7", "1")}, "1 requests reached the backend, 0 of its answers"},
		{"an octet is missing", Exchange{Sent: []byte(get("1")), Received: []byte(answer("7", "1")[1:]), Seen: seen("7", "1")}, "no answer"},
		{"cut short", Exchange{Sent: []byte(get("1")), Received: []byte(answer("7", "1")[:80]), Closed: true, Seen: seen("7", "1")}, "not complete"},
		{"no answer, still open", Exchange{Sent: []byte(get("1"))}, "the connection is open"},
		{"it goes on behind a refusal", Exchange{Sent: []byte("x\r\n\r\n" + get("2")), Received: []byte(refusal + answer("7", "2")), Seen: seen("7", "2")}, "goes on"},
	} {
		if got := Wrong(&tt.x); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
