//go:build planted

package flow

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/planted"
)

// lieHere are the planted bugs that lie in this package.
var lieHere = []int{1, 2, 3, 4, 5, 17, 21, 29, 30, 31, 33, 34, 35, 36, 37, 39, 40, 41, 44, 52, 53, 54, 55, 56, 77}

// firstOfHTTP is the first bug that only flows with HTTP have.
const firstOfHTTP = 30

// catcher keeps what a test that has to fail says.
type catcher struct {
	testing.TB
	said string
}

func (c *catcher) Helper()             {}
func (c *catcher) Failed() bool        { return false }
func (c *catcher) Logf(string, ...any) {}
func (c *catcher) Fatalf(format string, args ...any) {
	if c.said == "" {
		c.said = fmt.Sprintf(format, args...)
	}
	panic(c)
}

// A flow that is moved must not lose anything, so whoever forgets a field is
// found by comparison, whether it has consequences soon or not.
func TestPlanted(t *testing.T) {
	const scripts = 400
	golden := goldenHTTP(t)
	var rows []string
	for _, n := range lieHere {
		planted.Set(n)
		c := &catcher{TB: t}
		k := 0
		for ; k < scripts && c.said == ""; k++ {
			func() {
				defer func() { _ = recover() }()
				if n >= firstOfHTTP && n != 77 {
					if k < len(golden) {
						checkHTTPMoves(c, golden[k])
					} else {
						checkHTTPMoves(c, randomHTTP(uint64(k)))
					}
					return
				}
				script, bulk := randomScript(uint64(k))
				checkMoves(c, script, bulk)
			}()
		}
		planted.Set(0)
		if c.said == "" {
			t.Errorf("bug %d, %s, was not found in %d scripts", n, planted.All[n], scripts)
			continue
		}
		lines := strings.SplitN(c.said, "\n", 3)
		t.Logf("%2d %s: scripts %d: %s", n, planted.All[n], k, lines[0])
		rows = append(rows, fmt.Sprintf("| %d | %s | %d | %s |", n, planted.All[n], k, strings.ReplaceAll(lines[0], "|", "/")))
	}
	if *rewrite && !t.Failed() {
		rows = append([]string{"| | bug | scripts | what is said |", "|---|---|---|---|"}, rows...)
		if err := planted.Record("../../docs/planted-bugs.md", "frozentest", rows); err != nil {
			t.Fatal(err)
		}
	}
}

// goldenHTTP are the inputs of the golden scripts.
func goldenHTTP(t testing.TB) (all []*httpScript) {
	files, err := filepath.Glob("testdata/http/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		input, _, _ := strings.Cut(string(text), "----\n")
		s, err := parseHTTP(input)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}
