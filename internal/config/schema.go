package config

import (
	"encoding/json"
	"fmt"
	"strings"
)

// branch is a key with those below it.
type branch struct {
	*key   // nil of the root, and of what has a name that a person gives
	name   string
	below  []*branch
	single bool // below is one branch, for each name
}

// tree gives the keys by what is below what.
func tree() *branch {
	root := &branch{}
	for i := range keys {
		at := root
		for name := range strings.SplitSeq(keys[i].path, ".") {
			at = at.find(name)
		}
		at.key = &keys[i]
	}
	return root
}

// find gives the branch of that name, which it makes if there is none.
func (b *branch) find(name string) *branch {
	for _, c := range b.below {
		if strings.TrimSuffix(c.name, "[]") == strings.TrimSuffix(name, "[]") {
			return c
		}
	}
	c := &branch{name: strings.TrimSuffix(name, "[]")}
	b.below = append(b.below, c)
	b.single = name == "NAME"
	return c
}

// Schema gives a JSON Schema (draft 2020-12) of the file, for editors. It holds
// keys and the forms of values; what goes with what, [Parse] alone knows.
func Schema() string {
	root := tree().schema()
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "A configuration of Holdfast"
	root["patternProperties"] = jsonMap{"^x-": true}
	root["$defs"] = jsonMap{"variable": matching(variable)}
	text, err := json.MarshalIndent(root, "", "  ")
	if err != nil {
		panic(fmt.Sprintf("config: the schema does not encode: %v", err)) // plain values only
	}
	return string(text) + "\n"
}

func (b *branch) schema() jsonMap {
	s := jsonMap{}
	switch {
	case b.single:
		s = jsonMap{"type": "object", "propertyNames": matching(namePattern), "additionalProperties": b.below[0].schema()}
	case len(b.below) > 0:
		s = b.section()
		if b.key != nil && b.form.list {
			s = jsonMap{"type": "array", "minItems": 1, "items": s}
		} else if b.key != nil && b.form.schema != nil {
			s = jsonMap{"anyOf": []jsonMap{b.form.value(), s}}
		}
	case b.key != nil && b.form.schema != nil:
		s = b.form.value()
	}
	if b.key != nil {
		b.describe(s)
	}
	return s
}

// section is a mapping with these keys and no others.
func (b *branch) section() jsonMap {
	properties, required := jsonMap{}, []string{}
	for _, c := range b.below {
		properties[c.name] = c.schema()
		if c.key != nil && c.required() {
			required = append(required, c.name)
		}
	}
	s := jsonMap{"type": "object", "properties": properties, "additionalProperties": false}
	if len(required) > 0 {
		s["required"] = required
	}
	return s
}

// value is the form of a value, or of a variable in its place.
func (f form) value() jsonMap {
	one := f.schema
	if one["type"] != "object" {
		one = jsonMap{"anyOf": []jsonMap{one, {"$ref": "#/$defs/variable"}}}
	}
	if !f.list {
		return one
	}
	return jsonMap{"anyOf": []jsonMap{one, {"type": "array", "minItems": 1, "items": one}}}
}

func (b *branch) describe(s jsonMap) {
	if text := strings.ReplaceAll(b.says, "`", ""); text != "" {
		s["description"] = text
	}
	if b.otherwise != "" && !strings.HasPrefix(b.otherwise, "[") {
		s["default"] = b.otherwise
	}
}

// Reference gives the tables of all keys, in Markdown.
func Reference() string {
	var out strings.Builder
	root := tree()
	for _, section := range []struct{ title, path, note string }{
		{"node", "node", "`loops`, `zone`, `state`, the addresses in `admin` and everything of `cluster` take effect with the next upgrade after the reload that changed them; the plan of that reload says so."},
		{"accessLog", "accessLog", ""},
		{"listeners", "listeners.NAME", ""},
		{"routes", "listeners.NAME.routes", "All that `match` names must be so; without it, everything matches. Exactly one of `backend`, `backends`, `redirect` and `respond` is given; `rewrite`, `headers`, `answerTimeout` and `priority` are for routes with backends."},
		{"backends", "backends.NAME", ""},
		{"endpoints", "backends.NAME.endpoints", ""},
		{"sticky", "backends.NAME.sticky", ""},
		{"check", "backends.NAME.check", ""},
		{"eject", "backends.NAME.eject", ""},
		{"breaker", "backends.NAME.breaker", ""},
		{"cluster", "cluster", ""},
		{"nodes", "nodes.NAME", ""},
		{"vips", "vips.NAME", ""},
	} {
		at := root
		for name := range strings.SplitSeq(section.path, ".") {
			at = at.find(name)
		}
		fmt.Fprintf(&out, "### %s\n\n", section.title)
		intro := at
		if intro.key == nil { // what has a name: its section says what it is
			intro = root.find(strings.TrimSuffix(section.path, ".NAME"))
		}
		if text := intro.intro(); text != "" {
			fmt.Fprintf(&out, "%s\n\n", text)
		}
		if section.note != "" {
			fmt.Fprintf(&out, "%s\n\n", section.note)
		}
		fmt.Fprint(&out, "| key | value | default | meaning |\n|---|---|---|---|\n")
		prefix := ""
		if !strings.Contains(section.path, "NAME") || strings.Count(section.path, ".") > 1 {
			prefix = section.path[strings.LastIndexByte(section.path, '.')+1:] + "."
			if at.key != nil && at.form.list {
				prefix = strings.TrimSuffix(prefix, ".") + "[]."
			}
		}
		at.rows(&out, prefix)
		out.WriteString("\n")
	}
	return strings.TrimSuffix(out.String(), "\n")
}

// intro says what a section is, and what holds without it.
func (b *branch) intro() string {
	text := b.says
	if b.absent != "" && b.absent != given {
		text += " Without this key: " + b.absent + "."
	}
	return strings.TrimSpace(text)
}

// apart are the sections with tables of their own.
var apart = map[string]bool{
	"listeners.NAME.routes": true, "backends.NAME.endpoints": true, "backends.NAME.sticky": true,
	"backends.NAME.check": true, "backends.NAME.eject": true, "backends.NAME.breaker": true,
}

// rows writes one row for each key below b.
func (b *branch) rows(out *strings.Builder, prefix string) {
	for _, c := range b.below {
		name := prefix + c.name
		own := apart[c.path]
		silent := len(c.below) > 0 && !own && c.form.schema == nil && c.says == "" // its keys say it all
		if !silent {
			value, absent := c.form.says, c.absent
			if value == "" && len(c.below) > 0 {
				value = "a mapping"
			}
			if c.otherwise != "" {
				absent = "`" + c.otherwise + "`"
			}
			says := c.says
			if own {
				says = fmt.Sprintf("See [%s](#%s).", c.name, c.name)
				if c.required() {
					says = c.says + " " + says
				}
			}
			fmt.Fprintf(out, "| `%s` | %s | %s | %s |\n", name, value, absent, says)
		}
		if own {
			continue
		}
		if c.form.list && len(c.below) > 0 {
			name += "[]"
		}
		c.rows(out, name+".")
	}
}
