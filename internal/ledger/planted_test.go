//go:build planted

package ledger_test

import (
	"flag"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/planted"
)

var rewrite = flag.Bool("rewrite", false, "write what was found to docs/planted-bugs.md")

// lieHere are the planted bugs that lie in this package and that a ledger alone shows.
var lieHere = []int{23, 24, 45, 46, 47, 48, 49, 50, 78}

// The properties that hold without a bug each bug must break.
func TestPlanted(t *testing.T) {
	const seeds = 400
	rows := []string{"| | bug | seeds | property | what is said |", "|---|---|---|---|---|"}
	for _, n := range lieHere {
		found := ""
		for seed := uint64(1); seed <= seeds && found == ""; seed++ {
			for _, p := range properties {
				planted.Set(n)
				said := p.try(seed)
				planted.Set(0)
				if said != "" {
					found = fmt.Sprintf("| %d | %s | %d | %s | %s |", n, planted.All[n], seed, p.name, said)
					break
				}
			}
		}
		if found == "" {
			t.Errorf("bug %d, %s, was not found with %d seeds", n, planted.All[n], seeds)
		}
		t.Log(found)
		rows = append(rows, found)
	}
	if *rewrite && !t.Failed() {
		if err := planted.Record(filepath.Join("..", "..", "docs", "planted-bugs.md"), "ledger", rows); err != nil {
			t.Fatal(err)
		}
	}
}
