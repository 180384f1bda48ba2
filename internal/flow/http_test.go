package flow

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/frozen/frozentest"
)

func checkHTTPMoves(t testing.TB, s *httpScript, more ...frozentest.Cut) {
	t.Helper()
	defer func() {
		if r := recover(); r != nil {
			t.Fatalf("panic: %v\n%s", r, s)
		}
		if t.Failed() {
			t.Logf("%s", s)
		}
	}()
	frozentest.Check(t, func() frozentest.Subject { return newHTTPWorld(s) }, more...)
}

// checkHTTPOctets runs s with peers that say one octet at a time, and in odd
// pieces, with moves between all and between some.
func checkHTTPOctets(t testing.TB, s *httpScript) {
	t.Helper()
	for _, s := range []*httpScript{s.paced(1), s.paced(7, 1, 64, 3)} {
		stayed := frozentest.Run(t, newHTTPWorld(s), "unmoved", frozentest.Never)
		for _, cut := range []frozentest.Cut{frozentest.Always, frozentest.Bits(0xDB6DB6DB6DB6DB6D), frozentest.Bits(0x5A5A5A5A5A5A5A5A)} {
			for i, seen := range frozentest.Run(t, newHTTPWorld(s), "moved between octets", cut) {
				if seen != stayed[i] {
					t.Fatalf("moved between octets, after step %d\nunmoved %s\n  moved %s\n%s", i, stayed[i], seen, s)
				}
			}
		}
	}
}

func (s *httpScript) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "listener %s, bulk %t, manual %t, pace %v\n", s.listener, s.bulk, s.manual, s.pace)
	ticks := 0
	for _, o := range s.hops {
		if o.verb == "tick" {
			ticks++
			continue
		}
		if ticks > 0 {
			fmt.Fprintf(&b, "tick %d\n", ticks)
			ticks = 0
		}
		fmt.Fprintf(&b, "%.200v\n", o)
	}
	return b.String()
}

// Golden scripts of exchanges: what happens, and after ---- what came of each
// step. Every script also runs with peers that say one octet at a time and in
// odd pieces, moved after every step and after each single one.
func TestHTTPScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/http/*.txt")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d scripts, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			input, want, _ := strings.Cut(string(text), "----\n")
			s, err := parseHTTP(input)
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			w := newHTTPWorld(s)
			for i, seen := range frozentest.Run(t, w, "unmoved", frozentest.Never) {
				fmt.Fprintf(&got, "> %.100v\n%s\n", s.hops[i], seen)
			}
			fmt.Fprintf(&got, "the client got\n%s", plainly(w.client.whole()))
			for _, b := range w.backs {
				fmt.Fprintf(&got, "leg %d got\n%s", b.number, plainly(b.whole()))
			}
			if *rewrite {
				if err := os.WriteFile(file, []byte(input+"----\n"+got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got.String() != want {
				t.Errorf("got\n%s\nwant\n%s", got.String(), want)
			}
			checkHTTPMoves(t, s)
			if s.said() < 8<<10 {
				checkHTTPOctets(t, s)
			} else {
				checkHTTPMoves(t, s.paced(1000, 1, 5000, 3), frozentest.Bits(0x5A5A5A5A5A5A5A5A))
			}
		})
	}
}

// plainly shows octets a line each, as far as they are text.
func plainly(b []byte) string {
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		if q := fmt.Sprintf("%q", line); len(q) > 120 {
			fmt.Fprintf(&out, "  %s... (%d octets)\n", q[:100], len(line))
		} else {
			fmt.Fprintf(&out, "  %s\n", q)
		}
	}
	return out.String()
}

// What peers do, for scripts made of any octets.
var (
	wishes = []string{
		"GET", "GET", "HEAD", "POST len=5", "POST len=700", "PUT chunks=3,40,500 ext", "PUT chunks=1", "GET close",
		"GET 1.0", "GET 1.0 keep", "PUT len=20 expect", "POST len=30 later", "DELETE", "GET upgrade=websocket",
		"POST len=40000", "OPTIONS len=3",
	}
	replies = []string{
		"len 0", "len 7", "len 900", "len 40000", "chunks 0", "chunks 5", "chunks 900", "close 30",
		"old 20", "old-keep 20", "bye 3", "error 9", "204", "304 5", "continue", "hints",
	}
	noises = []string{
		"client says \"\\r\\n\"", "client says \"G\"", "client says \"GET / HTTP/1.1\\r\\nHost: h\\r\\nX\"", "client says \"\\x00\"",
		"backend says \"HTTP/1.1 20\"", "backend says \"HTTP/1.1 200 OK\\r\\n\\r\\n\"", "backend says \"x\"", "backend says \"HTTP/1.1 100 Go\\r\\n\\r\\n\"",
		"backend answers switch 20", "backend answers connected 9", "client body 30", "backend body 30", "client slow", "backend slow", "backend vanishes", "kill",
	}
	noisesMore = []string{"kill fin", "kill fin", "kill"}
	numbers    = []int{1, 40, 200, 999, 1000, 4000, 10000, 20000}
)

// compileHTTP makes a script of any octets: the first one says how the world is,
// each further one is a hop.
func compileHTTP(code []byte) *httpScript {
	if len(code) == 0 {
		return &httpScript{listener: "web"}
	}
	var b strings.Builder
	kind := code[0]
	listeners := []string{"web", "web", "web", "greeted", "brief", "strict", "web", "plain"}
	fmt.Fprintf(&b, "listener %s\n", listeners[kind>>2&7])
	if kind&1 != 0 {
		b.WriteString("bulk\n")
	}
	if kind&2 != 0 {
		b.WriteString("manual\n")
	}
	if l := listeners[kind>>2&7]; l == "greeted" || l == "brief" || l == "plain" {
		b.WriteString("client greets\n")
	}
	closed, held := false, false // nothing more is asked; content is still to be said
	goOn := func() {
		if held {
			held = false
			b.WriteString("client goes-on\n")
		}
	}
	prefixes := []string{"/", "/", "/", "/told/", "/quick/", "/moved/", "/hello/", "/../", "/again/", "/stick/", "/sink/", "/falls/", "/sorry/", "/again/", "/hash/", "/plainly/"}
	for i, c := range code[1:min(len(code), 21)] {
		n := numbers[c>>4&7]
		side := Side(c >> 7)
		switch c & 15 {
		case 0, 1, 2:
			if wish := wishes[c>>4]; !closed {
				goOn()
				method, rest, _ := strings.Cut(wish, " ")
				closed = strings.Contains(wish, "upgrade")
				held = strings.Contains(wish, "expect") || strings.Contains(wish, "later")
				verb := []string{"asks", "asks-also", "asks-also"}[c&15]
				prefix := prefixes[(int(c)*7+i)%len(prefixes)*int(c&1)]
				if prefix == "/stick/" && i%5 == 0 {
					rest += " forged=e2"
				} else if prefix == "/stick/" && i%3 > 0 {
					rest += fmt.Sprintf(" stuck=e%d,%d", i%4, 30*(i%2))
				}
				fmt.Fprintf(&b, "client "+verb+" %s %s%d %s\n", method, prefix, i, rest)
			}
		case 3, 4, 5:
			verb := "answers"
			if c&15 == 5 {
				verb = "mutters"
			}
			reply := replies[c>>4]
			if c&15 == 4 && c>>4 < 6 {
				reply = []string{"busy 0", "busy 9", "busy 3000", "busy-bye 2", "sets 5", "busy 1"}[c>>4]
			}
			fmt.Fprintf(&b, "backend %s %s\n", verb, reply)
		case 6:
			noise := noises[c>>4]
			if noise == "kill" {
				noise = noisesMore[len(code)%len(noisesMore)]
			}
			if strings.HasPrefix(noise, "client says") && closed {
				break
			}
			if strings.HasPrefix(noise, "client says") || strings.HasPrefix(noise, "client body") && !closed {
				goOn()
				closed = true
			}
			fmt.Fprintf(&b, "%s\n", noise)
		case 7:
			fmt.Fprintf(&b, "%v fin\n", side)
		case 8:
			fmt.Fprintf(&b, "%v rst\n", side)
		case 9:
			fmt.Fprintf(&b, "%v takes %d\n", side, n)
		case 10:
			fmt.Fprintf(&b, "%v room %d\n", side, n-1)
		case 11:
			fmt.Fprintf(&b, "wait %d\n", n)
		case 12:
			goOn()
		case 13:
			fmt.Fprintf(&b, "secured %d\n", c>>4)
		case 14:
			b.WriteString([]string{"dialed\n", "dialed\n", "dialed fresh\n", "dial-failed\n"}[c>>4&3])
		case 15:
			b.WriteString([]string{
				"secured 0\ndialed\n", "secured 1\ndialed\n", "unavailable\n", "rejected\n",
				"tripped\n", "spent\n", "limited 700\n", "limited 0\n", "stingy\n", "stingy no\n", "kill 1\n", "place\n",
				"wait 3\n", "secured 2\nwait 7\ndialed\n", "wait 1\n", "unavailable\nsecured 1\ndialed\n",
			}[c>>4])
		}
	}
	s, err := parseHTTP(b.String())
	if err != nil {
		panic(err)
	}
	switch large := s.said() > 4<<10; {
	case kind>>5 < 2, kind>>5 == 2 && large:
		return s.paced(1, 3000, 20)
	case kind>>5 == 2:
		return s.paced(40, 2)
	}
	return s
}

// A flow that speaks HTTP and is moved between any two facts does what it would
// have done, and neither side gets what the other has not said.
func FuzzHTTPFlowMoves(f *testing.F) {
	for _, code := range httpCorpus {
		f.Add([]byte(code), uint64(0b1011010))
	}
	f.Fuzz(func(t *testing.T, code []byte, cuts uint64) {
		checkHTTPMoves(t, compileHTTP(code), frozentest.Bits(cuts))
	})
}

// The first octet is the world; then one octet a hop (compileHTTP).
var httpCorpus = []string{
	"\x60\x00\x13\x10\x23\x20\x43",             // three requests and their answers
	"\x60\x00\x10\x30\x53\x13\x23",             // pipelined
	"\x00\x50\xe3\xc3\x40\x63\x07",             // uploads, piece by piece
	"\x60\xa0\xe3\x0c\x13\xb0\xb3\x0c\x07",     // leave to go on; an answer before the upload ends
	"\x60\xd0\x86\xa6\xb6\x07\xb6\x87",         // a tunnel
	"\x60\x00\x13\x00\x87\x13\x30\x88\x13",     // pooled legs die
	"\x60\x00\x73\x87\x00", "\x60\x00\x73\x88", // until the end, or RST
	"\x62\x00\x0d\x3e\x1f\x13\x00\x2f\x00\x3f",     // dials fail, the queue is full
	"\x6c\x00\x13\x00\x3b\x03", "\x10\x00\x13\x00", // greeted
	"\x61\x33\xe0\x33\x0a\x33\x19\x39\x79",     // pipes
	"\x60\x00\x46\x56\x00\x66\x06\x16\x26\x36", // noise
	"\x60\xc6\x0a\x00\x63\x49\x79\x6b\x7b",     // a slow client
}

// Long random scripts beyond those that the fuzzer keeps.
func TestHTTPFlowMovesAnywhere(t *testing.T) {
	n := 250
	if testing.Short() {
		n = 60
	}
	for seed := range uint64(n) {
		checkHTTPMoves(t, randomHTTP(seed), frozentest.Bits(mix(seed)))
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func randomHTTP(seed uint64) *httpScript {
	code := make([]byte, 14)
	for i := range code {
		code[i] = byte(mix(seed*1000+uint64(i)*0x9E3779B97F4A7C15+7) >> 40)
	}
	if seed%3 != 0 {
		code[0] &^= 2 // most dials go well
	}
	if seed%4 != 1 { // three in four scripts go without an early end
		for i, c := range code[1:] {
			switch {
			case c&15 == 8 || c == 0xf6 || c == 0x07:
				code[i+1] = 0x13 | c&0xf0
			case c&15 == 6 && c>>4 < 8:
				code[i+1] = c&0xf0 | 0x03
			case i%2 == 0 && i < 8 && c&15 > 8:
				code[i+1] = c & 0xf0
			}
		}
	}
	return compileHTTP(code)
}

// Either side may end at any point of an exchange, by FIN or by RST, or vanish:
// what was cut never looks whole, and nothing is sent twice that may not be.
func TestHTTPEndsAnywhere(t *testing.T) {
	for _, text := range []string{
		"client asks POST /1 chunks=2,30 ext\nbackend answers chunks 20\nclient asks GET /2\nbackend answers len 20",
		"client asks PUT /1 len=30 expect\nbackend answers continue\nclient goes-on\nbackend answers len 5\nclient asks POST /2\nbackend answers 204",
		"client asks GET /1 1.0 keep\nbackend answers hints\nbackend answers old-keep 9\nclient asks HEAD /2 1.0\nbackend answers chunks 30",
		"client asks GET /1 upgrade=websocket\nbackend answers switch 20\nclient body 20\nbackend body 20",
		"listener greeted\nclient greets v2\nclient asks GET /told/1\nbackend answers bye 9",
		"client slow\nclient room 40\nclient asks GET /1\nbackend answers chunks 30\nclient takes 50\nclient room 1000\nclient takes 300",
	} {
		base, err := parseHTTP("pace 3 5\n" + text)
		if err != nil {
			t.Fatal(err)
		}
		for _, end := range []hop{
			{verb: "fin", arg: "now"}, {verb: "rst", arg: "now"}, {verb: "vanishes"},
			{verb: "fin", side: Backend, arg: "now"}, {verb: "rst", side: Backend, arg: "now"}, {verb: "vanishes", side: Backend},
		} {
			for k := range base.hops {
				if testing.Short() && k%4 != 0 {
					continue
				}
				s := *base
				s.hops = slices.Insert(slices.Clone(base.hops), k, end)
				s.hops = append(s.hops, hop{verb: "wait", n: 10000}, hop{verb: "tick"}, hop{verb: "wait", n: 20000}, hop{verb: "wait", n: 60000}, hop{verb: "tick"})
				w := newHTTPWorld(&s)
				stayed := frozentest.Run(t, w, "unmoved", frozentest.Never)
				if w.f.State() != Done {
					t.Fatalf("it never ends: %s\n%s", w.Observe(), &s)
				}
				for i, seen := range frozentest.Run(t, newHTTPWorld(&s), "moved", frozentest.Always) {
					if seen != stayed[i] {
						t.Fatalf("%v at %d, after step %d\nunmoved %s\n  moved %s\n%s", end, k, i, stayed[i], seen, &s)
					}
				}
			}
		}
	}
}
