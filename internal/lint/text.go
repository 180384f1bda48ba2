package lint

import (
	"bytes"
	"fmt"
	"go/ast"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Put together from pieces, so that this file does not find itself.
var machinePath = regexp.MustCompile(`(?:^|[^\w.$}])(` +
	`/ro` + `ot/` + `|/wo` + `rk/` + `|/ho` + `me/\w` + `|/Us` + `ers/\w` + `|/mnt` + `/\w` + `|[A-Z]:\\` + `Users\\` +
	`|fi` + `le:///` + `)`)

// MachinePaths wants no path of the machine somebody happened to work on: a
// repository is read elsewhere.
func MachinePaths(t *Tree) ([]Finding, error) {
	var found []Finding
	err := walk(t.FS, func(name string) error {
		base := path.Base(name)
		if base == "go.sum" || base == "LICENSE" {
			return nil
		}
		text, err := fs.ReadFile(t.FS, name)
		if err != nil {
			return err
		}
		if bytes.IndexByte(text[:min(len(text), 8000)], 0) >= 0 {
			return nil // not text
		}
		n := 0
		for line := range strings.Lines(string(text)) {
			n++
			if m := machinePath.FindStringSubmatch(line); m != nil {
				found = append(found, Finding{name, n, "a path of one machine: " + m[1] + "..."})
			}
		}
		return nil
	})
	return found, err
}

var (
	rowLine  = regexp.MustCompile(`^\|\s*([MU][0-9]+)\s*\|`)
	codeSpan = regexp.MustCompile("`([^`]+)`")
	testSpan = regexp.MustCompile(`^([a-z0-9_./-]+)\.((?:Test|Fuzz|Benchmark|Example)\w*)$`)
	link     = regexp.MustCompile(`\]\(([^)#\s]*)(?:#([^)\s]*))?\)`)
)

// Rows checks the list of demands in file: every wanted row stands there
// once, and its last column names a test that exists, as `package.TestName`,
// links to a heading that exists, or says "not yet". Anything else in that
// column is for the reader.
func Rows(t *Tree, file string, want []string) []Finding {
	text, err := fs.ReadFile(t.FS, file)
	if err != nil {
		return []Finding{{File: file, What: err.Error()}}
	}
	var found []Finding
	seen := map[string]bool{}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		m := rowLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		bad := func(format string, args ...any) {
			found = append(found, Finding{file, n, m[1] + ": " + fmt.Sprintf(format, args...)})
		}
		if seen[m[1]] {
			bad("stands here twice")
		}
		seen[m[1]] = true
		if !slices.Contains(want, m[1]) {
			bad("is not a row we know")
		}
		cells := strings.Split(strings.TrimSuffix(strings.TrimSpace(line), "|"), "|")
		held := cells[len(cells)-1]
		good := strings.Contains(held, "not yet")
		for _, span := range codeSpan.FindAllStringSubmatch(held, -1) {
			if test := testSpan.FindStringSubmatch(span[1]); test != nil {
				if t.hasTest(test[1], test[2]) {
					good = true
				} else {
					bad("there is no test %s in package %s", test[2], test[1])
				}
			}
		}
		for _, l := range link.FindAllStringSubmatch(held, -1) {
			if strings.Contains(l[1], "://") {
				continue
			}
			if problem := t.badLink(file, l[1], l[2]); problem != "" {
				bad("%s", problem)
			} else {
				good = true
			}
		}
		if !good {
			bad(`names no test, no paragraph and not "not yet"`)
		}
	}
	for _, w := range want {
		if !seen[w] {
			found = append(found, Finding{File: file, What: "row " + w + " is missing"})
		}
	}
	return found
}

// Links checks that every relative link of our documents leads to a file, and
// to a heading of it where it names one.
func Links(t *Tree) ([]Finding, error) {
	var found []Finding
	err := walk(t.FS, func(name string) error {
		if path.Ext(name) != ".md" {
			return nil
		}
		text, err := fs.ReadFile(t.FS, name)
		if err != nil {
			return err
		}
		n, fenced := 0, false
		for line := range strings.Lines(string(text)) {
			n++
			if strings.HasPrefix(line, "```") {
				fenced = !fenced
			}
			if fenced {
				continue
			}
			for _, l := range link.FindAllStringSubmatch(codeSpan.ReplaceAllString(line, ""), -1) {
				if strings.Contains(l[1], ":") {
					continue
				}
				if problem := t.badLink(name, l[1], l[2]); problem != "" {
					found = append(found, Finding{name, n, problem})
				}
			}
		}
		return nil
	})
	return found, err
}

func (t *Tree) badLink(from, to, anchor string) string {
	target := from
	if to != "" {
		target = path.Join(path.Dir(from), to)
	}
	info, err := fs.Stat(t.FS, target)
	if err != nil {
		return "the link leads nowhere: " + to
	}
	if anchor == "" || info.IsDir() {
		return ""
	}
	text, err := fs.ReadFile(t.FS, target)
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(string(text)) {
		if title := strings.TrimLeft(line, "#"); title != line && slug(strings.TrimSpace(title)) == anchor {
			return ""
		}
	}
	return fmt.Sprintf("%s has no heading #%s", target, anchor)
}

var notSlug = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)

// slug is the anchor that forges make of a heading.
func slug(title string) string {
	return strings.ReplaceAll(notSlug.ReplaceAllString(strings.ToLower(title), ""), " ", "-")
}

// hasTest reports whether the package at dir ("internal/flow"), or of that name
// ("flow"), has the test function.
func (t *Tree) hasTest(dir, name string) bool {
	for _, p := range t.Packages {
		if p.Dir != dir && path.Base(p.Dir) != dir {
			continue
		}
		for _, f := range p.Files {
			if !f.Test {
				continue
			}
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == name {
					return true
				}
			}
		}
	}
	return false
}
