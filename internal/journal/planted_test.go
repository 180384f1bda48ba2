//go:build planted

package journal

import (
	"flag"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/planted"
)

var rewrite = flag.Bool("rewrite", false, "write what was found to docs/planted-bugs.md")

// Each bug of the journal is found by the same histories that pass without it.
func TestPlanted(t *testing.T) {
	const most = 3000
	rows := []string{"| | bug | seeds | what is said |", "|---|---|---|---|"}
	for n := 61; n <= 70; n++ {
		found := ""
		for seed := uint64(1); seed <= most && found == ""; seed++ {
			planted.Set(n)
			wrong, _ := live(seed)
			planted.Set(0)
			if wrong != "" {
				found = fmt.Sprintf("| %d | %s | %d | %s |", n, planted.All[n], seed, strings.ReplaceAll(wrong, "|", "/"))
			}
		}
		if found == "" {
			t.Errorf("bug %d, %s, was not found in %d histories", n, planted.All[n], most)
		}
		t.Log(found)
		rows = append(rows, found)
	}
	if *rewrite && !t.Failed() {
		if err := planted.Record(filepath.Join("..", "..", "docs", "planted-bugs.md"), "journal", rows); err != nil {
			t.Fatal(err)
		}
	}
}
