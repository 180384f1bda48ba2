package holdfast_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/lint"
)

var loadOnce = sync.OnceValues(func() (*lint.Tree, error) { return lint.Load(os.DirFS(".")) })

func load(t *testing.T) *lint.Tree {
	t.Helper()
	tree, err := loadOnce()
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func report(t *testing.T, found []lint.Finding) {
	t.Helper()
	for _, f := range found {
		t.Error(f)
	}
}

func TestPackageComments(t *testing.T) { report(t, lint.PackageComments(load(t))) }

func TestDocComments(t *testing.T) { report(t, lint.DocComments(load(t))) }

func TestPromisesInCommentsHaveNumbers(t *testing.T) { report(t, lint.Someday(load(t))) }

// A field nobody decided about is a field that a move forgets.
func TestFrozenFieldsAreDecided(t *testing.T) {
	report(t, lint.FrozenFields(load(t), "internal/frozen/frozen.proto"))
}

// The race stage leaves out what has one goroutine, which is held here.
func TestWhatIsNotRaced(t *testing.T) {
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^single = (.+)$`).FindSubmatch(makefile)
	if m == nil {
		t.Fatal("the Makefile has no line \"single = ...\"")
	}
	var dirs []string
	for _, name := range strings.Fields(string(m[1])) {
		dirs = append(dirs, "internal/"+name)
	}
	report(t, lint.Single(load(t), dirs))
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	}
}

func TestNoMachinePaths(t *testing.T) {
	found, err := lint.MachinePaths(load(t))
	if err != nil {
		t.Fatal(err)
	}
	report(t, found)
}

// docs/rows.md answers each demand with a test, a limit, or "not yet".
func TestRows(t *testing.T) {
	var want []string
	for i := 1; i <= 52; i++ {
		want = append(want, fmt.Sprintf("M%d", i))
	}
	for i := 1; i <= 35; i++ {
		want = append(want, fmt.Sprintf("U%d", i))
	}
	report(t, lint.Rows(load(t), "docs/rows.md", want))
}

func TestLinksLeadSomewhere(t *testing.T) {
	found, err := lint.Links(load(t))
	if err != nil {
		t.Fatal(err)
	}
	report(t, found)
}

// A configuration in a document is one that a reader will copy.
func TestExamplesInDocumentsParse(t *testing.T) {
	block := regexp.MustCompile("(?s)\n```yaml\n(.*?)\n```\n")
	for _, name := range []string{"README.md", "docs/operate.md"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		blocks := block.FindAllSubmatch(text, -1)
		if len(blocks) == 0 {
			t.Errorf("%s: no configuration found", name)
		}
		for _, b := range blocks {
			if _, _, err := config.Parse(name, b[1], environment); err != nil {
				t.Errorf("%s:\n%s\n%v", name, b[1], err)
			}
		}
	}
}

// A command in a document names a lab or a row of the benches that exists.
func TestLabsAndRowsInDocumentsExist(t *testing.T) {
	named := regexp.MustCompile(`\b(LAB|BENCH)=([a-z0-9]+(?:-[a-z0-9]+)*)`)
	source := map[string]string{}
	for kind, dir := range map[string]string{"LAB": "internal/lab", "BENCH": "internal/bench"} {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		below, err := filepath.Glob(dir + "/*/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range append(files, below...) {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			source[kind] += string(text)
		}
	}
	documents, err := filepath.Glob("docs/*/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(documents, "Makefile", "README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "docs/limits.md", "docs/operate.md", "docs/rows.md", "docs/configuration.md") {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range named.FindAllStringSubmatch(string(text), -1) {
			if m[2] != "x" && !strings.Contains(source[m[1]], `"`+m[2]+`"`) {
				t.Errorf("%s: %s: there is none", name, m[0])
			}
		}
	}
}

// environment is that of a node whose file a document shows.
func environment(variable string) (string, bool) {
	if variable == config.NodeVariable {
		return "n1", true
	}
	return "", false
}
