package lint

import (
	"go/ast"
	"slices"
	"strconv"
	"strings"
)

// Table says who may import what. Patterns are directories of the module, or
// end in /... for all below; imports of others are named by a path prefix.
type Table struct {
	// Layers has one row for each package, planned ones included. A package
	// without a row is a finding; a row without a package is not.
	Layers []Layer

	// Owners has one row for each library, and for each part of the standard
	// library, that only some packages may know.
	Owners []Owner
}

// Layer is one package and what of ours its code, tests aside, may import.
type Layer struct {
	Package string
	Imports []string // "*": anything
}

// Owner is one import and the packages that may know it. A library that has
// no row may not be used at all.
type Owner struct {
	Import   string // the path itself, or anything below it
	Packages []string
	Tests    bool // tests of every package may use it, too

	// Open is a prefix of names that every package may use, such as the
	// names of signals; "" is none.
	Open string
}

// Direction checks every import of the tree against the table.
func Direction(t *Tree, table Table) []Finding {
	var found []Finding
	for _, p := range t.Packages {
		i := slices.IndexFunc(table.Layers, func(l Layer) bool { return under(p.Dir, l.Package) })
		if i < 0 {
			found = append(found, Finding{File: p.Dir, What: "this package has no row in the table of direction_test.go; a new package needs a reason"})
			continue
		}
		for _, f := range p.Files {
			for _, spec := range f.Imports {
				importPath, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					continue
				}
				if why := forbidden(t, table, table.Layers[i], p, f, importPath); why != "" {
					found = append(found, t.at(spec.Pos(), "%s", why))
				}
			}
		}
	}
	return found
}

func forbidden(t *Tree, table Table, layer Layer, p *Package, f *File, importPath string) string {
	if dir, ok := t.ours(importPath); ok {
		if f.Test || slices.ContainsFunc(layer.Imports, func(pattern string) bool {
			return pattern == "*" || under(dir, pattern)
		}) {
			return ""
		}
		return p.Dir + " may not import " + dir + ": imports point down the table of direction_test.go"
	}
	if f.Generated {
		return "" // the generator answers for what its code needs
	}
	for _, o := range table.Owners {
		if importPath != o.Import && !strings.HasPrefix(importPath, o.Import+"/") {
			continue
		}
		if f.Test && o.Tests || slices.ContainsFunc(o.Packages, func(pattern string) bool { return under(p.Dir, pattern) }) {
			return ""
		}
		if o.Open != "" && onlyNames(f, importPath, o.Open) {
			return ""
		}
		return p.Dir + " may not know " + o.Import + "; its owners: " + strings.Join(o.Packages, ", ")
	}
	if root, _, _ := strings.Cut(importPath, "/"); strings.Contains(root, ".") {
		return importPath + " has no owner in the table of direction_test.go; a dependency needs a sentence"
	}
	return ""
}

// onlyNames reports whether all that f uses of importPath begins with prefix.
func onlyNames(f *File, importPath, prefix string) bool {
	name := localName(f, importPath)
	only := name != "."
	ast.Inspect(f.File, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == name && !strings.HasPrefix(sel.Sel.Name, prefix) {
				only = false
			}
		}
		return true
	})
	return only
}

// localName is the name of importPath in f, "" if f does not import it.
func localName(f *File, importPath string) string {
	for _, spec := range f.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err == nil && p == importPath {
			if spec.Name != nil {
				return spec.Name.Name
			}
			return p[strings.LastIndex(p, "/")+1:]
		}
	}
	return ""
}

// What a machine may not touch: time passes, chance falls and the world
// answers only through arguments. Pure parts of these trees are listed apart.
var (
	machineImports = []string{
		"net", "os", "context", "sync", "syscall", "unsafe", "runtime",
		"log", "math/rand", "crypto/rand", "hash/maphash", "golang.org/x/sys",
	}
	machinePure = []string{"net/netip", "net/url", "sync/atomic"}

	machineCalls = map[string][]string{
		"time": {"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTicker", "NewTimer"},
	}
)

// Machines checks that the packages in dirs stay machines: no clock, no
// chance, no kernel, no goroutine, no log. Their tests are free.
func Machines(t *Tree, dirs []string) []Finding {
	var found []Finding
	for _, p := range t.Packages {
		if !slices.Contains(dirs, p.Dir) {
			continue
		}
		for _, f := range p.Files {
			if !f.Test && !f.Generated {
				found = append(found, machine(t, f)...)
			}
		}
	}
	return found
}

func machine(t *Tree, f *File) []Finding {
	var found []Finding
	names := map[string]string{} // name in this file -> import path
	for _, spec := range f.Imports {
		importPath, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue
		}
		name := localName(f, importPath)
		if name == "." {
			found = append(found, t.at(spec.Pos(), "a machine may not import %s with a dot: nobody sees what it calls", importPath))
		}
		names[name] = importPath
		if slices.Contains(machinePure, importPath) {
			continue
		}
		for _, bad := range machineImports {
			if importPath == bad || strings.HasPrefix(importPath, bad+"/") {
				found = append(found, t.at(spec.Pos(), "a machine may not import %s: facts come in as arguments", importPath))
				break
			}
		}
	}
	ast.Inspect(f.File, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			found = append(found, t.at(n.Pos(), "a machine starts no goroutine: what lives on a stack cannot move"))
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && slices.Contains(machineCalls[names[x.Name]], n.Sel.Name) {
				found = append(found, t.at(n.Pos(), "a machine may not use %s.%s: now is an argument", x.Name, n.Sel.Name))
			}
		}
		return true
	})
	return found
}

// Single finds what starts a goroutine in these packages, tests included: in
// them nothing can race.
func Single(t *Tree, dirs []string) []Finding {
	var found []Finding
	for _, p := range t.Packages {
		if !slices.Contains(dirs, p.Dir) {
			continue
		}
		for _, f := range p.Files {
			ast.Inspect(f.File, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.GoStmt:
					found = append(found, t.at(n.Pos(), "the Makefile says that nothing runs beside the tests of %s", p.Dir))
				case *ast.SelectorExpr:
					if n.Sel.Name == "Go" || n.Sel.Name == "Parallel" {
						found = append(found, t.at(n.Pos(), "%s: the Makefile says that nothing runs beside the tests of %s", n.Sel.Name, p.Dir))
					}
				}
				return true
			})
		}
	}
	return found
}
