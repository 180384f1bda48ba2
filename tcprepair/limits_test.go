package tcprepair

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// docs/limits.md names the test that shows each row of its table of TCP states:
// there are such tests, and there is a row for each state.
func TestLimitsTable(t *testing.T) {
	text, err := os.ReadFile("../docs/limits.md")
	must(t, "limits.md", err)
	_, rest, _ := strings.Cut(string(text), "## TCP states")
	table, _, found := strings.Cut(rest, "\n## ")
	if !found {
		t.Fatal("no section of TCP states")
	}
	files, err := filepath.Glob("*_test.go")
	must(t, "tests", err)
	tests := map[string]bool{}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		must(t, "parse", err)
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				tests[fn.Name.Name] = true
			}
		}
	}
	for _, name := range regexp.MustCompile("`(Test[A-Za-z0-9]+)`").FindAllStringSubmatch(table, -1) {
		if !tests[name[1]] {
			t.Errorf("no test %s", name[1])
		}
	}
	for s := Established; s <= Closing; s++ {
		row := regexp.MustCompile(`(?m)^\| (?:in the )?` + s.String() + `\b.*Test`)
		if !row.MatchString(table) {
			t.Errorf("no row for %v", s)
		}
	}
}
