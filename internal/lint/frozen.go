package lint

import (
	"fmt"
	"go/ast"
	"io/fs"
	"path"
	"reflect"
	"regexp"
	"strconv"
	"strings"
)

// FrozenFields wants a decision on every field of every struct that moves: a
// tag frozen:"name", where name is a field of the struct's message in the
// schema, or frozen:"-" with why:"the reason". A struct takes part when one of
// its fields has a tag, or when a field that moves is of its type.
//
// A plain name is looked up in the message of the struct's own name (Leg for
// leg and Leg); "Message.name" looks elsewhere. A name with dots after it
// ("head.octets") is checked up to the first dot.
func FrozenFields(t *Tree, schema string) []Finding {
	text, err := fs.ReadFile(t.FS, schema)
	if err != nil {
		text = nil // no schema yet: every name is then unknown
	}
	messages := protoFields(string(text))

	var found []Finding
	for _, p := range t.Packages {
		moves := false
		for _, f := range p.Files {
			moves = moves || path.Base(f.Name) == "freeze.go"
		}
		if moves {
			found = append(found, frozenFields(t, p, messages)...)
		}
	}
	return found
}

type structType struct {
	name   string
	fields *ast.FieldList
	pos    ast.Node
}

func frozenFields(t *Tree, p *Package, messages map[string]map[string]bool) []Finding {
	structs := map[string]structType{}
	var order []string
	for _, f := range p.Files {
		if f.Test || f.Generated {
			continue
		}
		ast.Inspect(f.File, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			if st, ok := spec.Type.(*ast.StructType); ok {
				structs[spec.Name.Name] = structType{spec.Name.Name, st.Fields, spec}
				order = append(order, spec.Name.Name)
			}
			return true
		})
	}

	// Begin with the structs that have a tag; follow fields that move.
	var queue []string
	seen := map[string]bool{}
	reach := func(name string) {
		if _, ours := structs[name]; ours && !seen[name] {
			seen[name] = true
			queue = append(queue, name)
		}
	}
	for _, name := range order {
		for _, field := range structs[name].fields.List {
			if _, ok := tagOf(field).Lookup("frozen"); ok {
				reach(name)
			}
		}
	}
	if len(queue) == 0 {
		return []Finding{{File: p.Dir, What: "freeze.go is here, but no struct has a frozen tag"}}
	}

	var found []Finding
	for len(queue) > 0 {
		s := structs[queue[0]]
		queue = queue[1:]
		for _, field := range s.fields.List {
			tag := tagOf(field)
			name, ok := tag.Lookup("frozen")
			why := tag.Get("why")
			label := s.name + "." + fieldNames(field)
			switch {
			case !ok && blank(field):
				// Padding has no state.
			case !ok:
				found = append(found, t.at(field.Pos(), `%s: nobody decided whether it moves: frozen:"name", or frozen:"-" why:"..."`, label))
			case name == "-" && why == "":
				found = append(found, t.at(field.Pos(), `%s stays behind without a reason: add why:"..."`, label))
			case name == "-":
			default:
				if problem := unknownName(s.name, name, messages); problem != "" {
					found = append(found, t.at(field.Pos(), "%s: %s", label, problem))
				}
				for _, inner := range localTypes(field.Type) {
					reach(inner)
				}
			}
		}
	}
	return found
}

func blank(f *ast.Field) bool {
	for _, id := range f.Names {
		if id.Name != "_" {
			return false
		}
	}
	return len(f.Names) > 0
}

func fieldNames(f *ast.Field) string {
	if len(f.Names) == 0 {
		return "(embedded)"
	}
	var names []string
	for _, id := range f.Names {
		names = append(names, id.Name)
	}
	return strings.Join(names, ", ")
}

func tagOf(f *ast.Field) reflect.StructTag {
	if f.Tag == nil {
		return ""
	}
	s, err := strconv.Unquote(f.Tag.Value)
	if err != nil {
		return ""
	}
	return reflect.StructTag(s)
}

// localTypes lists the names of this package's types inside a field's type.
func localTypes(e ast.Expr) []string {
	var names []string
	ast.Inspect(e, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			return false // another package's: it has a freeze.go of its own
		case *ast.Ident:
			names = append(names, n.Name)
		}
		return true
	})
	return names
}

func unknownName(structName, name string, messages map[string]map[string]bool) string {
	message := strings.ToUpper(structName[:1]) + structName[1:]
	first, rest, dotted := strings.Cut(name, ".")
	if dotted && messages[first] != nil {
		message = first
		first, _, _ = strings.Cut(rest, ".")
	}
	fields := messages[message]
	if fields == nil {
		return fmt.Sprintf("the schema has no message %s for %q; write Message.name", message, name)
	}
	if !fields[first] {
		return fmt.Sprintf("message %s has no field %q", message, first)
	}
	return ""
}

var (
	protoComment = regexp.MustCompile(`(?s)//[^\n]*|/\*.*?\*/`)
	protoMessage = regexp.MustCompile(`\bmessage\s+(\w+)\s*\{`)
	protoField   = regexp.MustCompile(`(?m)(?:^|[;{}])\s*(?:optional\s+|repeated\s+)?(?:map\s*<[^>]*>|[\w.]+)\s+(\w+)\s*=\s*\d+\s*(?:\[[^\]]*\])?\s*;`)
)

// protoFields reads the messages of a schema and the names of their fields. It
// knows just enough of the language for a file that we write ourselves.
func protoFields(text string) map[string]map[string]bool {
	text = protoComment.ReplaceAllString(text, "")
	messages := map[string]map[string]bool{}
	for _, at := range protoMessage.FindAllStringSubmatchIndex(text, -1) {
		depth, end := 1, at[1]
		for end < len(text) && depth > 0 {
			switch text[end] {
			case '{':
				depth++
			case '}':
				depth--
			}
			end++
		}
		fields := map[string]bool{}
		body := text[at[1]:end]
		for {
			m := protoField.FindStringSubmatchIndex(body)
			if m == nil {
				break
			}
			fields[body[m[2]:m[3]]] = true
			body = body[m[1]-1:] // the semicolon may open the next field
		}
		messages[text[at[2]:at[3]]] = fields
	}
	return messages
}
