package lint

import (
	"go/ast"
	"go/token"
	"regexp"
)

// PackageComments wants one package comment for each package, no more.
func PackageComments(t *Tree) []Finding {
	var found []Finding
	for _, p := range t.Packages {
		var with []string
		code := false
		for _, f := range p.Files {
			if f.Test || f.Generated {
				continue
			}
			code = true
			if f.Doc != nil && f.Doc.Text() != "" {
				with = append(with, f.Name)
			}
		}
		switch {
		case !code: // tests alone
		case len(with) == 0:
			found = append(found, Finding{File: p.Dir, What: "no file has a package comment: purpose, owner of state, what it must not do"})
		case len(with) > 1:
			for _, name := range with[1:] {
				found = append(found, Finding{File: name, What: "a second package comment; " + with[0] + " has one"})
			}
		}
	}
	return found
}

// DocComments wants a doc comment on every exported identifier of a package
// that others import. A comment on a group speaks for all in it. A method of an
// interface of the same package is described there, not at each type that has it.
func DocComments(t *Tree) []Finding {
	var found []Finding
	for _, p := range t.Packages {
		described := interfaceMethods(p)
		for _, f := range p.Files {
			if f.Test || f.Generated || f.File.Name.Name == "main" {
				continue
			}
			for _, d := range f.Decls {
				fn, ok := d.(*ast.FuncDecl)
				if !ok || fn.Recv == nil || !described[fn.Name.Name] {
					found = append(found, docs(t, d)...)
				}
			}
		}
	}
	return found
}

// interfaceMethods lists the methods of the package's interfaces, some of which
// are described in groups.
func interfaceMethods(p *Package) map[string]bool {
	described := map[string]bool{}
	for _, f := range p.Files {
		ast.Inspect(f.File, func(n ast.Node) bool {
			if it, ok := n.(*ast.InterfaceType); ok {
				for _, m := range it.Methods.List {
					for _, id := range m.Names {
						described[id.Name] = true
					}
				}
			}
			return true
		})
	}
	return described
}

func docs(t *Tree, d ast.Decl) []Finding {
	var found []Finding
	missing := func(id *ast.Ident) {
		if id.IsExported() {
			found = append(found, t.at(id.Pos(), "%s has no doc comment", id.Name))
		}
	}
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Doc == nil && (d.Recv == nil || exportedReceiver(d.Recv)) && !wellKnown[d.Name.Name] {
			missing(d.Name)
		}
	case *ast.GenDecl:
		if d.Tok == token.IMPORT {
			return nil
		}
		// In a group, the first comment carries those after it up to a blank
		// line in the reader's eye; asking for one on the group or the
		// first spec is enough.
		spoken := d.Doc != nil
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if s.Doc == nil && d.Doc == nil {
					missing(s.Name)
				}
			case *ast.ValueSpec:
				if s.Doc != nil {
					spoken = true
				}
				if !spoken && s.Comment == nil {
					for _, id := range s.Names {
						missing(id)
					}
				}
			}
		}
	}
	return found
}

// Methods whose meaning is fixed by the interface they satisfy.
var wellKnown = map[string]bool{
	"String": true, "Error": true, "Unwrap": true, "Is": true, "GoString": true, "LogValue": true,
	"Len": true, "Less": true, "Swap": true,
	"MarshalText": true, "UnmarshalText": true, "MarshalJSON": true, "UnmarshalJSON": true,
	"MarshalYAML": true, "UnmarshalYAML": true,
}

func exportedReceiver(recv *ast.FieldList) bool {
	typ := recv.List[0].Type
	for {
		switch x := typ.(type) {
		case *ast.StarExpr:
			typ = x.X
		case *ast.IndexExpr:
			typ = x.X
		case *ast.IndexListExpr:
			typ = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return false
		}
	}
}

// The words are put together so that this file does not find itself.
var (
	someday     = regexp.MustCompile(`\b(?:` + "TO" + `DO|` + "FIX" + `ME|` + "X" + `XX|` + "HA" + `CK)\b`)
	withTracker = regexp.MustCompile(`^` + "TO" + `DO\(#[0-9]+\)`)
)

// Someday wants every promise in a comment to name the number under which it
// is tracked.
func Someday(t *Tree) []Finding {
	var found []Finding
	for _, p := range t.Packages {
		for _, f := range p.Files {
			for _, group := range f.Comments {
				for _, c := range group.List {
					for _, at := range someday.FindAllStringIndex(c.Text, -1) {
						if !withTracker.MatchString(c.Text[at[0]:]) {
							found = append(found, t.at(c.Pos(), "%s without a number: write "+"TO"+"DO(#12): ..., or do it", c.Text[at[0]:at[1]]))
						}
					}
				}
			}
		}
	}
	return found
}
