package config

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// Each section of wrong.txt is a file that somebody might write, "----", and all
// that is said of it, word by word. The document shows them to a reader.
func TestWrong(t *testing.T) {
	var script, document strings.Builder
	document.WriteString(errorsIntro)
	sections := strings.Split(read(t, "wrong.txt"), "=== ")[1:]
	for i, section := range sections {
		title, rest, _ := strings.Cut(section, "\n")
		src, want, found := strings.Cut(rest, "----\n")
		if !found {
			t.Fatalf("%s: no ----", title)
		}
		got := said(Parse("holdfast.yaml", []byte(src), lookup))
		if want = strings.TrimSpace(want); got != want && !*rewrite {
			t.Errorf("%s\n%s----\n got %s\nwant %s", title, src, got, want)
		}
		if strings.HasPrefix(got, "ok") {
			t.Errorf("%s: nothing is said", title)
		}
		fmt.Fprintf(&script, "=== %s\n%s----\n%s\n\n", title, src, got)
		if number, found := strings.CutSuffix(got, "\nok"); found {
			got = number
		}
		fmt.Fprintf(&document, "## %d. %s%s\n\n```yaml\n%s```\n\n```\n%s\n```\n\n", i+1, strings.ToUpper(title[:1]), title[1:], src, got)
	}
	if len(sections) < 50 {
		t.Errorf("%d files", len(sections))
	}
	const file = "../../docs/errors.md"
	text := strings.TrimSuffix(document.String(), "\n")
	if *rewrite {
		golden(t, "wrong.txt", script.String())
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	was, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(was) != text {
		t.Errorf("%s is not what is said; run this test with -rewrite", file)
	}
}

const errorsIntro = `# What is said of a wrong file

` + "`holdfast check FILE`" + ` reports all errors of a file at once, and so does a reload, which changes nothing then. Each line has the file, the
line, the column, the key, what is wrong and what to do about it, in the order of the file. A warning stops nothing. This page is
written by a test of the parser.

`
