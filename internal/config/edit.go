package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// editor makes patches of a file that is taken apart, or of a part of one: a
// mapping with keys of the top level.
type editor struct {
	root   *yaml.Node
	lookup func(string) (string, bool)
	known  func(group string) []string // the names of all, sorted
}

// gone is what a patch needs and the file does not have.
type gone struct{ text string }

func (e *gone) Error() string { return e.text }

// do makes one patch. What comes of it is judged when it is read; an error is that
// the patch cannot be made at all, a *gone that there is nothing to make it of.
func (e *editor) do(p *Patch) error {
	t, err := p.target()
	if err != nil {
		return err
	}
	var value *yaml.Node
	switch {
	case p.Delete && p.Value != "":
		return errors.New("has a value, and is to be deleted; one of them")
	case p.Before != "" && t.kind != "route":
		return errors.New("before is for routes, whose order matters")
	case !p.Delete:
		if value, err = parseValue(p.Value); err != nil {
			return err
		}
	}
	if p.Field == "" && value != nil && value.Kind != yaml.MappingNode {
		return fmt.Errorf("a whole %s is a mapping, as in { %s: ... }", t.kind, exampleKey[t.kind])
	}
	if t.inner != "" {
		return e.inner(t, p, value)
	}
	at, key := e.root, t.group
	if t.name != "" {
		if at = groupOf(e.root, t.group); at == nil {
			return &gone{fmt.Sprintf("there are no %s", t.group)}
		}
		key = t.name
	}
	object := childOf(at, key)
	switch {
	case p.Field == "" && p.Delete && object == nil:
		return e.none(t)
	case p.Field == "" && p.Delete:
		removeKey(at, key)
		return nil
	case p.Field == "":
		putKey(at, key, value)
		return nil
	case object == nil && t.name != "":
		return e.none(t)
	case object == nil && p.Delete:
		return nil // there is no section, so all of it is default
	case object == nil:
		object = &yaml.Node{Kind: yaml.MappingNode}
		putKey(at, key, object)
	}
	return setField(object, p, value)
}

var exampleKey = map[string]string{"node": "name", "accessLog": "to", "cluster": "identity", "nodes": "n1", "vips": "shop", "listener": "vip", "backend": "endpoints", "endpoint": "address", "route": "match"}

// none says that there is no such object.
func (e *editor) none(t target) *gone {
	if t.name == "" {
		return &gone{"there is none"}
	}
	return &gone{fmt.Sprintf("no %s %q%s", strings.TrimSuffix(t.group, "s"), clip(t.name), thereAre(t.name, e.known(t.group)))}
}

// inner makes a patch of an endpoint or a route.
func (e *editor) inner(t target, p *Patch, value *yaml.Node) error {
	owner := childOf(childOf(e.root, t.group), t.name)
	if owner == nil {
		return e.none(t)
	}
	list := childOf(owner, t.list)
	var names []string
	if list != nil && list.Kind == yaml.SequenceNode {
		names = e.names(t)
	}
	i := slices.Index(names, t.inner)
	switch {
	case i < 0 && (p.Delete || p.Field != ""):
		known := slices.DeleteFunc(slices.Sorted(slices.Values(names)), func(s string) bool { return s == "" })
		return &gone{fmt.Sprintf("no %s %q in %s %s%s%s", t.kind, clip(t.inner), strings.TrimSuffix(t.group, "s"), t.name, thereAre(t.inner, known), e.resolved(t, names))}
	case p.Field == "name":
		return errors.New("a name stays; put another one beside it, and delete this one")
	case p.Field != "":
		if p.Field == "address" && childOf(list.Content[i], "name") == nil {
			return errors.New("its address is its name, and a name stays; put another one beside it, and delete this one")
		}
		return setField(list.Content[i], p, value)
	case p.Delete:
		list.Content = slices.Delete(list.Content, i, i+1)
		return nil
	}
	if err := setName(t, value); err != nil {
		return err
	}
	if list == nil || list.Kind != yaml.SequenceNode {
		list = &yaml.Node{Kind: yaml.SequenceNode}
		putKey(owner, t.list, list)
	}
	if i >= 0 && p.Before == "" {
		list.Content[i] = value
		return nil
	}
	if i >= 0 {
		list.Content = slices.Delete(list.Content, i, i+1)
		names = slices.Delete(names, i, i+1)
	}
	at := len(list.Content)
	switch p.Before {
	case "":
	case "*":
		at = 0
	default:
		if at = slices.Index(names, p.Before); at < 0 {
			return &gone{fmt.Sprintf("before: no route %q in listener %s", clip(p.Before), t.name)}
		}
	}
	list.Content = slices.Insert(list.Content, at, value)
	return nil
}

// resolved says that a name is one of an address that came of an endpoint's name.
func (e *editor) resolved(t target, names []string) string {
	if name, _, found := strings.Cut(t.inner, "/"); found && slices.Contains(names, name) {
		return fmt.Sprintf("; it is an address of endpoint/%s/%s, which can be changed", t.name, name)
	}
	return ""
}

// setName makes value, a whole endpoint or route, one of that name.
func setName(t target, value *yaml.Node) error {
	if has := childOf(value, "name"); has != nil {
		if has.Value != t.inner {
			return fmt.Errorf("is named %q in its value", clip(has.Value))
		}
		return nil
	}
	if t.kind == "endpoint" {
		if address := childOf(value, "address"); address != nil && address.Value == t.inner {
			return nil // it is named by its address
		}
	}
	value.Content = append([]*yaml.Node{textNode("name"), textNode(t.inner)}, value.Content...)
	return nil
}

// names gives the names of all items of the list that t is in, in its order; "" of
// one without.
func (e *editor) names(t target) []string {
	r := &reader{lookup: e.lookup}
	root := r.section(e.root, place{1, 1}, "", "", rootKeys...)
	var names []string
	for _, entry := range root.named(t.group) {
		switch {
		case entry.key.Value != t.name:
		case t.kind == "endpoint":
			for _, site := range r.backend(root, entry).endpoints {
				names = append(names, site.e.Name)
			}
		default:
			list := childOf(entry.value, t.list)
			if list == nil {
				return nil
			}
			for _, item := range list.Content {
				name := ""
				if n := childOf(item, "name"); n != nil {
					name, _, _ = expand(n.Value, e.lookup)
				}
				names = append(names, name)
			}
		}
	}
	return names
}

// setField sets or takes away one key below n.
func setField(n *yaml.Node, p *Patch, value *yaml.Node) error {
	parts := strings.Split(p.Field, ".")
	for i, part := range parts {
		if n.Kind != yaml.MappingNode {
			// A word in the place of a section, as in eject: off.
			if p.Delete {
				return nil
			}
			*n = yaml.Node{Kind: yaml.MappingNode}
		}
		if i == len(parts)-1 {
			if p.Delete {
				removeKey(n, part)
			} else {
				putKey(n, part, value)
			}
			return nil
		}
		next := childOf(n, part)
		if next == nil && p.Delete {
			return nil
		}
		if next == nil {
			next = &yaml.Node{Kind: yaml.MappingNode}
			putKey(n, part, next)
		}
		if next.Kind == yaml.SequenceNode {
			return fmt.Errorf("%s is a list, of which a part has no name", part)
		}
		n = next
	}
	return nil
}

// parseValue reads the value of a patch.
func parseValue(text string) (*yaml.Node, error) {
	if strings.TrimSpace(text) == "" {
		return nil, errors.New("has no value")
	}
	r := &report{}
	document := r.document(withoutSurrogates([]byte(text)))
	if document == nil {
		return nil, fmt.Errorf("its value: %s", r.problems[0].Text)
	}
	n := document.Content[0]
	uncomment(n)
	return n, nil
}

// withoutSurrogates gives JSON without pairs of escapes for one character, which
// programs write (RFC 8259, section 7) and YAML does not have.
func withoutSurrogates(text []byte) []byte {
	if !bytes.Contains(bytes.ToLower(text), []byte(`\ud`)) || !json.Valid(text) {
		return text
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var value any
	if err := d.Decode(&value); err != nil {
		return text
	}
	return canonical(value)
}

// uncomment takes comments away: where they come to, there may be no room for them.
func uncomment(n *yaml.Node) {
	n.HeadComment, n.LineComment, n.FootComment = "", "", ""
	for _, below := range n.Content {
		uncomment(below)
	}
}

// groupOf gives the mapping at a key of root, which is made if there is none.
func groupOf(root *yaml.Node, key string) *yaml.Node {
	n := childOf(root, key)
	if n == nil {
		n = &yaml.Node{Kind: yaml.MappingNode}
		putKey(root, key, n)
	}
	if n.Kind != yaml.MappingNode {
		return nil
	}
	return n
}

// childOf gives the value of a key of n, a mapping; nil if there is none.
func childOf(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Kind == yaml.ScalarNode && n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// putKey sets the value of a key of n. A comment on its line stays.
func putKey(n *yaml.Node, key string, value *yaml.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if was := n.Content[i+1]; n.Content[i].Value == key {
			if value.LineComment == "" && value.Kind == yaml.ScalarNode {
				value.LineComment = was.LineComment
			}
			n.Content[i+1] = value
			return
		}
	}
	if len(n.Content) == 0 {
		n.Style &^= yaml.FlowStyle // that of {}
	}
	n.Content = append(n.Content, textNode(key), value)
}

func removeKey(n *yaml.Node, key string) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			n.Content = slices.Delete(n.Content, i, i+2)
			break
		}
	}
	if len(n.Content) == 0 {
		n.Style |= yaml.FlowStyle // {} and not nothing, which is no mapping
	}
}

func copied(n *yaml.Node) *yaml.Node {
	next := *n
	next.Content = make([]*yaml.Node, len(n.Content))
	for i, below := range n.Content {
		next.Content[i] = copied(below)
	}
	return &next
}

// dump gives n as text.
func dump(n *yaml.Node, indent int) ([]byte, error) {
	var out bytes.Buffer
	dumper, err := yaml.NewDumper(&out, yaml.WithIndent(indent), yaml.WithLineWidth(-1))
	if err == nil {
		err = dumper.Dump(copied(n)) // who writes a tree takes its tags away
	}
	if err == nil {
		err = dumper.Close()
	}
	return out.Bytes(), err
}
