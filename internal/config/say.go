package config

import (
	"bytes"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// says gives what d has where p is made, with its defaults, on one line; "" if
// there is nothing.
func (d *Document) says(p *Patch) string { return (&speaker{d: d}).says(p) }

// speaker tells what a document has at several places, one chunk after the other.
type speaker struct {
	d     *Document
	lines *Document
	of    object // the one that was asked for last
	c     *chunk // its chunk; nil: there is none
	shown *yaml.Node
	names map[string][]string // of its lists
}

// turn goes to the chunk of t.
func (s *speaker) turn(t target) {
	if s.lines == nil {
		var err error
		if s.lines, err = s.d.lined(); err != nil {
			s.lines = &Document{}
		}
	} else if s.of == (object{t.group, t.name}) {
		return
	}
	s.of, s.c, s.shown, s.names = object{t.group, t.name}, nil, nil, make(map[string][]string)
	if i := find(s.lines.chunks, t.group, t.name); i >= 0 {
		s.c = &s.lines.chunks[i]
		s.shown = shownOf(s.c, s.d.lookup)
	}
}

func (s *speaker) says(p *Patch) string {
	t, err := p.target()
	if err != nil {
		return ""
	}
	s.turn(t)
	if s.c == nil {
		return ""
	}
	n := childOf(s.shown, t.group)
	if t.name != "" {
		n = childOf(n, t.name)
	}
	if t.inner != "" {
		if s.names[t.list] == nil {
			s.names[t.list] = (&editor{root: s.c.load(), lookup: s.d.lookup}).names(t)
		}
		list, at := childOf(n, t.list), slices.Index(s.names[t.list], t.inner)
		if list == nil || at < 0 {
			return ""
		}
		n = list.Content[at]
	}
	switch {
	case n == nil:
		return ""
	case p.Field == "":
		return oneLine(withoutDefaults(n))
	}
	for part := range strings.SplitSeq(p.Field, ".") {
		n = childOf(n, part)
	}
	if n == nil || n.Kind == yaml.MappingNode && len(n.Content) == 0 {
		return ""
	}
	return oneLine(n)
}

// shown gives what p says, if that cannot be a secret.
func (p *Patch) shown() string {
	if n, err := parseValue(p.Value); err == nil && n.Kind == yaml.ScalarNode && !strings.Contains(p.Field, "sticky") && !strings.Contains(p.Field, "headers") {
		return oneLine(n)
	}
	return ""
}

// shownOf gives the root of a chunk as it is understood, as in [Show].
func shownOf(c *chunk, lookup func(string) (string, bool)) *yaml.Node {
	r := &reader{lookup: lookup, showing: true}
	root := c.load()
	if root == nil {
		return nil
	}
	d := draft{root: r.section(root, place{1, 1}, "", "", rootKeys...)}
	switch {
	case c.kind == listenerEntry:
		r.listener(d.root, d.root.named("listeners")[0])
	case c.kind == backendEntry:
		r.backend(d.root, d.root.named("backends")[0])
	case c.key == "cluster", c.key == "nodes", c.key == "vips":
		r.clusterOf(&d)
	default:
		r.nodeAndLog(&d)
	}
	return d.root.out
}

// withoutDefaults gives what the file has of what is shown.
func withoutDefaults(n *yaml.Node) *yaml.Node {
	next := *n
	next.Content = nil
	if n.Kind != yaml.MappingNode {
		for _, item := range n.Content {
			next.Content = append(next.Content, withoutDefaults(item))
		}
		return &next
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if value.LineComment != "default" && (value.Kind != yaml.MappingNode || value.Line != 0) {
			next.Content = append(next.Content, key, withoutDefaults(value))
		}
	}
	return &next
}

// oneLine gives n in the style of { a: b }.
func oneLine(n *yaml.Node) string {
	text, err := dump(flat(n), 2)
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(text))
}

// flat gives n without comments, on one line.
func flat(n *yaml.Node) *yaml.Node {
	next := &yaml.Node{Kind: n.Kind, Tag: n.Tag, Value: n.Value, Style: n.Style & (yaml.SingleQuotedStyle | yaml.DoubleQuotedStyle)}
	if n.Kind != yaml.ScalarNode {
		next.Style = yaml.FlowStyle
	}
	for _, below := range n.Content {
		next.Content = append(next.Content, flat(below))
	}
	return next
}
