package corpus

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write testdata anew")

// The committed streams are those that the generator makes: nobody has added
// one from elsewhere.
func TestCommittedIsGenerated(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range Generate() {
		for _, v := range f.Vectors {
			if id := f.Name + "/" + v.ID; seen[id] {
				t.Errorf("%s: there are two of this name", id)
			} else {
				seen[id] = true
			}
		}
		want, err := Marshal(f.Vectors)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join("testdata", f.Name+".jsonl")
		if *rewrite {
			if err := os.WriteFile(name, want, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what Generate makes; write it anew with go test -rewrite, and say why (%v)", name, err)
		}
	}
	names, err := filepath.Glob("testdata/*.jsonl")
	if err != nil || len(names) != len(Generate()) {
		t.Errorf("%d files in testdata, want %d (%v)", len(names), len(Generate()), err)
	}
}
