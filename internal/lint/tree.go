package lint

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"sort"
	"strings"
)

// Tree is one module's source, parsed with comments. It is read-only.
type Tree struct {
	Module   string // module path, from go.mod
	FS       fs.FS
	Fset     *token.FileSet
	Packages []*Package // by directory, sorted
}

// Package is one directory with Go files: the package and its tests.
type Package struct {
	Dir   string // relative to the module, "." for its top
	Files []*File
}

// File is one parsed file.
type File struct {
	Name      string // relative to the module
	Test      bool   // its name ends in _test.go
	Generated bool   // it carries the standard header of generated code
	*ast.File
}

// Finding is one place that breaks a rule.
type Finding struct {
	File string
	Line int // 0: the file as a whole
	What string
}

func (f Finding) String() string {
	if f.Line == 0 {
		return f.File + ": " + f.What
	}
	return fmt.Sprintf("%s:%d: %s", f.File, f.Line, f.What)
}

// Load parses every Go file of the module at the top of fsys. Directories the
// go command ignores, and modules inside this one, are left out.
func Load(fsys fs.FS) (*Tree, error) {
	mod, err := fs.ReadFile(fsys, "go.mod")
	if err != nil {
		return nil, fmt.Errorf("lint: %w", err)
	}
	t := &Tree{FS: fsys, Fset: token.NewFileSet()}
	for line := range strings.Lines(string(mod)) {
		if name, ok := strings.CutPrefix(line, "module "); ok {
			t.Module = strings.TrimSpace(name)
		}
	}
	byDir := map[string]*Package{}
	err = walk(fsys, func(name string) error {
		if path.Ext(name) != ".go" {
			return nil
		}
		dir := path.Dir(name)
		for _, part := range strings.Split(dir, "/") {
			if part == "testdata" || strings.HasPrefix(part, "_") {
				return nil
			}
		}
		src, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(t.Fset, name, src, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		p := byDir[dir]
		if p == nil {
			p = &Package{Dir: dir}
			byDir[dir] = p
			t.Packages = append(t.Packages, p)
		}
		p.Files = append(p.Files, &File{
			Name:      name,
			Test:      strings.HasSuffix(name, "_test.go"),
			Generated: ast.IsGenerated(parsed),
			File:      parsed,
		})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("lint: %w", err)
	}
	sort.Slice(t.Packages, func(i, j int) bool { return t.Packages[i].Dir < t.Packages[j].Dir })
	return t, nil
}

// walk calls visit for every file that belongs to the module: no hidden
// directory but .ci, no build output, no module inside it.
func walk(fsys fs.FS, visit func(name string) error) error {
	return fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.IsDir() {
			if !d.Type().IsRegular() {
				return nil
			}
			return visit(name)
		}
		if name == "." {
			return nil
		}
		if base := path.Base(name); strings.HasPrefix(base, ".") && base != ".ci" {
			return fs.SkipDir
		}
		if name == "bin" || name == "out" {
			return fs.SkipDir
		}
		if _, err := fs.Stat(fsys, path.Join(name, "go.mod")); err == nil {
			return fs.SkipDir
		}
		return nil
	})
}

func (t *Tree) at(pos token.Pos, format string, args ...any) Finding {
	p := t.Fset.Position(pos)
	return Finding{File: p.Filename, Line: p.Line, What: fmt.Sprintf(format, args...)}
}

// ours cuts the module path off an import: "internal/flow", true.
func (t *Tree) ours(importPath string) (string, bool) {
	if importPath == t.Module {
		return ".", true
	}
	return strings.CutPrefix(importPath, t.Module+"/")
}

// under reports whether dir is pattern, or below it when pattern ends in /...
func under(dir, pattern string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "/..."); ok {
		return dir == prefix || strings.HasPrefix(dir, prefix+"/")
	}
	return dir == pattern
}
