package config

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write the results of this run to testdata")

// golden compares got with a file of testdata, or writes it.
func golden(t *testing.T, file, got string) {
	t.Helper()
	path := filepath.Join("testdata", file)
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want := read(t, file)
	if got == want {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(g), len(w)) {
		var a, b string
		if i < len(g) {
			a = g[i]
		}
		if i < len(w) {
			b = w[i]
		}
		if a != b {
			t.Fatalf("%s:%d:\n got %s\nwant %s", path, i+1, a, b)
		}
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	src, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	return string(src)
}

// lookup has the variables of all tests.
func lookup(name string) (string, bool) {
	v, ok := map[string]string{
		"DB2":   "10.0.0.32",
		"COUNT": "4",
		"YES":   "true",
		"EMPTY": "",
		"LINES": "a\nb",
		"BYTES": "\xff",
		"AGAIN": "${DB2}",
	}[name]
	return v, ok
}

// must parses what has no faults.
func must(t *testing.T, src string) *Config {
	t.Helper()
	c, _, err := Parse("holdfast.yaml", []byte(src), lookup)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func fuzzSeed(f *testing.F, file string) string {
	f.Helper()
	src, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		f.Fatal(err)
	}
	return string(src)
}
