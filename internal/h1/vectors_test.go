package h1

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/frozen/frozentest"
)

var vectorFiles = []string{"requests.txt", "responses.txt", "bodies.txt"}

// What is accepted, what is refused and why, in one piece.
func TestVectors(t *testing.T) {
	for _, file := range vectorFiles {
		results := map[int]string{}
		for _, v := range vectors(t, file) {
			got := newReader(v.kind, v.input).run()
			results[v.line] = got
			if got != v.want && !*rewrite {
				t.Errorf("%s, %s\n got %s\nwant %s", file, v.name(), got, v.want)
			}
		}
		if *rewrite {
			renew(t, filepath.Join("testdata", file), results)
		}
	}
}

// renew puts the results below their inputs.
func renew(t *testing.T, path string, results map[int]string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for n, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		if !strings.HasPrefix(line, "=") {
			out.WriteString(line + "\n" + results[n+1])
		}
	}
	if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// The same is seen however the octets come.
func TestVectorsInPieces(t *testing.T) {
	for _, file := range vectorFiles {
		for _, v := range vectors(t, file) {
			for at := 1; at < len(v.input); at++ {
				if got := newReader(v.kind, v.input, at).run(); got != v.want {
					t.Errorf("%s, %s\ncut behind %d\n got %s\nwant %s", file, v.name(), at, got, v.want)
				}
			}
			if got := newReader(v.kind, v.input, everywhere(v.input)...).run(); got != v.want {
				t.Errorf("%s, %s\nin octets\n got %s\nwant %s", file, v.name(), got, v.want)
			}
		}
	}
}

// The same is seen wherever the reader is put down and picked up again.
func TestVectorsMoved(t *testing.T) {
	for _, file := range vectorFiles {
		for _, v := range vectors(t, file) {
			make := func() frozentest.Subject { return newReader(v.kind, v.input, everywhere(v.input)...) }
			frozentest.Check(t, make)
			if t.Failed() {
				t.Fatalf("%s, %s", file, v.name())
			}
		}
	}
}

// A head that was used before says what a new one says.
func TestHeadsAreUsedAgain(t *testing.T) {
	parse := func(h *Head, v vector, size int) string {
		var err *Error
		if v.kind.responses {
			err = h.Response(v.input[:size], v.kind.asked, &testLimits)
		} else {
			err = h.Request(v.input[:size], &testLimits)
		}
		if err != nil {
			return err.Why
		}
		seen := describe(h, false) + describe(h, true)
		for k := range names {
			seen += fmt.Sprint(h.Index(Known(k)), " ")
		}
		return seen + string(h.AppendFields(nil))
	}
	var all []vector
	for _, file := range vectorFiles {
		all = append(all, vectors(t, file)...)
	}
	var used Head
	for _, before := range []string{
		"PUT /a?b HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTE: trailers\r\nContent-Length: 5\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close, upgrade\r\nUpgrade: a\r\nVia: x\r\nForwarded: y\r\n\r\n",
		"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: a\r\n\r\n",
	} {
		for _, v := range all {
			size, _, err := Scan(v.input, 0, &testLimits)
			if err != nil || size == 0 {
				continue
			}
			if used.Request([]byte(before), &testLimits) != nil && used.Response([]byte(before), GET, &testLimits) != nil {
				t.Fatalf("%q was to be a head", before)
			}
			got, want := parse(&used, v, size), parse(new(Head), v, size)
			if got != want {
				t.Errorf("%s, after %q\n got %s\nwant %s", v.name(), before, got, want)
			}
		}
	}
}

// Every reason to refuse is shown by a vector, but those that need large inputs
// or that Scan finds before.
func TestEveryRefusalIsShown(t *testing.T) {
	elsewhere := map[string]bool{
		"the first line is too long":          true, // TestLimits
		"the head is too long":                true,
		"too many fields":                     true,
		"too many octets of chunk extensions": true,
		"too many octets of trailers":         true,
		"the head has no end":                 true, // TestHeadsThatScanWouldNotFind
	}
	shown := ""
	for _, file := range vectorFiles {
		text, err := os.ReadFile("testdata/" + file)
		if err != nil {
			t.Fatal(err)
		}
		shown += string(text)
	}
	sources, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, source := range sources {
		text, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`refuse\(\d+, "(.*)"\)`).FindAllStringSubmatch(string(text), -1) {
			found++
			if !elsewhere[m[1]] && !strings.Contains(shown, m[1]) {
				t.Errorf("%s: no vector shows %q", source, m[1])
			}
		}
	}
	if found < 40 {
		t.Fatalf("%d reasons found in the sources", found)
	}
}
