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
// schema, or frozen:"-" with why:"the reason". A field that becomes several is
// frozen:"one,other". A struct takes part when one of its fields has a tag, or
// when a field that moves is of its type.
//
// A struct's message is the one of its own name (Leg for leg and Leg), else
// the type, in the schema, of the field through which it moves.
// "Message.name" looks elsewhere.
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

func frozenFields(t *Tree, p *Package, messages schemaFields) []Finding {
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

	// Begin with the structs that have a message of their own name, so that
	// the others are reached through the fields by which they move.
	type reached struct{ name, message string }
	var queue []reached
	seen := map[string]bool{}
	reach := func(name, message string) {
		if _, ours := structs[name]; !ours || seen[name] {
			return
		}
		seen[name] = true
		if own := strings.ToUpper(name[:1]) + name[1:]; messages[own] != nil || message == "" {
			message = own
		}
		queue = append(queue, reached{name, message})
	}
	var nameless []string
	for _, name := range order {
		if !hasTag(structs[name]) {
			continue
		}
		if messages[strings.ToUpper(name[:1])+name[1:]] != nil {
			reach(name, "")
		} else {
			nameless = append(nameless, name)
		}
	}
	if len(queue)+len(nameless) == 0 {
		return []Finding{{File: p.Dir, What: "freeze.go is here, but no struct has a frozen tag"}}
	}

	var found []Finding
	for len(queue)+len(nameless) > 0 {
		if len(queue) == 0 {
			reach(nameless[0], "")
			nameless = nameless[1:]
			continue
		}
		s, message := structs[queue[0].name], queue[0].message
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
				inner := ""
				for one := range strings.SplitSeq(name, ",") {
					typ, problem := resolve(message, one, messages)
					if problem != "" {
						found = append(found, t.at(field.Pos(), "%s: %s", label, problem))
					}
					inner = typ
				}
				for _, local := range localTypes(field.Type) {
					reach(local, inner)
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

func hasTag(s structType) bool {
	for _, field := range s.fields.List {
		if _, ok := tagOf(field).Lookup("frozen"); ok {
			return true
		}
	}
	return false
}

// resolve finds the field that a tag names and returns its message type, or ""
// for a plain one, or the problem.
func resolve(message, name string, messages schemaFields) (typ, problem string) {
	if m, field, qualified := strings.Cut(name, "."); qualified {
		message, name = m, field
	}
	fields := messages[message]
	if fields == nil {
		return "", fmt.Sprintf("the schema has no message %s for %q; write Message.name", message, name)
	}
	typ, ok := fields[name]
	if !ok {
		return "", fmt.Sprintf("message %s has no field %q", message, name)
	}
	if messages[typ] == nil {
		typ = ""
	}
	return typ, ""
}

// schemaFields is message -> field -> type of the field.
type schemaFields map[string]map[string]string

var (
	protoComment = regexp.MustCompile(`(?s)//[^\n]*|/\*.*?\*/`)
	protoMessage = regexp.MustCompile(`\bmessage\s+(\w+)\s*\{`)
	protoField   = regexp.MustCompile(`(?m)(?:^|[;{}])\s*(?:optional\s+|repeated\s+)?(map\s*<[^>]*>|[\w.]+)\s+(\w+)\s*=\s*\d+\s*(?:\[[^\]]*\])?\s*;`)
)

// protoFields reads the messages of a schema and the names of their fields. It
// knows just enough of the language for a file that we write ourselves.
func protoFields(text string) schemaFields {
	text = protoComment.ReplaceAllString(text, "")
	messages := schemaFields{}
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
		fields := map[string]string{}
		body := text[at[1]:end]
		for {
			m := protoField.FindStringSubmatchIndex(body)
			if m == nil {
				break
			}
			typ := body[m[2]:m[3]]
			fields[body[m[4]:m[5]]] = typ[strings.LastIndex(typ, ".")+1:]
			body = body[m[1]-1:] // the semicolon may open the next field
		}
		messages[text[at[2]:at[3]]] = fields
	}
	return messages
}
