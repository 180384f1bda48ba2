package flow

import (
	"fmt"
	"os"
	"path/filepath"
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
			if s.said() > 8<<10 {
				checkHTTPMoves(t, s.paced(1000, 1, 5000, 3), frozentest.Bits(0x5A5A5A5A5A5A5A5A))
				return
			}
			checkHTTPMoves(t, s.paced(1), frozentest.Bits(0xDB6DB6DB6DB6DB6D))
			checkHTTPMoves(t, s.paced(7, 1, 64, 3), frozentest.Bits(0x5A5A5A5A5A5A5A5A))
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
