package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

const (
	sourceMax = 4 << 20 // octets of a file
	depthMax  = 32      // levels of mappings and lists; the deepest of ours is the ninth
)

// place is where something stands in the file.
type place struct{ line, column int }

func at(n *yaml.Node) place { return place{max(n.Line, 1), max(n.Column, 1)} }

// report collects what is wrong with one file.
type report struct {
	file     string
	problems []Problem
	warnings []Problem
}

func (r *report) fail(p place, path, format string, args ...any) {
	r.problems = append(r.problems, Problem{r.file, p.line, p.column, path, fmt.Sprintf(format, args...)})
}

func (r *report) warn(p place, path, format string, args ...any) {
	r.warnings = append(r.warnings, Problem{r.file, p.line, p.column, path, fmt.Sprintf(format, args...)})
}

// load gives the root of the only document in src, a mapping, or nil after it
// reported why there is none.
func (r *report) load(src []byte) *yaml.Node {
	start := place{1, 1}
	if len(src) > sourceMax {
		r.fail(start, "", "the file has %d octets; at most %d are taken", len(src), sourceMax)
		return nil
	}
	document := r.document(src)
	if document == nil {
		return nil
	}
	root := document.Content[0]
	if isNull(root) {
		r.fail(start, "", "the file is empty")
		return nil
	}
	if root.Kind != yaml.MappingNode {
		if r.dialect(src) {
			return nil
		}
		r.fail(at(root), "", "the file must be a mapping with the keys %s", strings.Join(rootKeys, ", "))
		return nil
	}
	return root
}

// document gives the only document in src, or nil after it reported why there is
// none.
func (r *report) document(src []byte) *yaml.Node {
	start := place{1, 1}
	loader, err := yaml.NewLoader(bytes.NewReader(src))
	if err != nil {
		r.syntax(src, err)
		return nil
	}
	var document yaml.Node
	if err := loader.Load(&document); errors.Is(err, io.EOF) {
		r.fail(start, "", "the file is empty")
		return nil
	} else if err != nil {
		r.syntax(src, err)
		return nil
	}
	var further yaml.Node
	if err := loader.Load(&further); err == nil {
		r.fail(at(&further), "", "a second document begins here; a file is one document")
	} else if !errors.Is(err, io.EOF) {
		r.syntax(src, err)
	}
	if document.Kind != yaml.DocumentNode || len(document.Content) != 1 {
		r.fail(start, "", "the file is empty")
		return nil
	}
	return &document
}

// syntax reports that src is no YAML.
func (r *report) syntax(src []byte, err error) {
	if r.dialect(src) {
		return
	}
	var fault *yaml.LoadError
	if !errors.As(err, &fault) {
		r.fail(place{1, 1}, "", "not YAML: %s", strings.Join(strings.Fields(err.Error()), " "))
		return
	}
	p := place{fault.Mark.Line, fault.Mark.Column}
	if p.line < 1 || p.column < 1 {
		p = firstBadCharacter(src)
	}
	text := fault.Message
	if fault.ContextMsg != "" {
		text = fault.ContextMsg + ": " + text
		if line := fault.ContextMark.Line; line > 0 && line != p.line {
			text = fmt.Sprintf("%s (begun at line %d): %s", fault.ContextMsg, line, fault.Message)
		}
	}
	if characterAt(src, p) == '\t' {
		text += "; it is a tab, and YAML is indented by spaces"
	}
	if strings.Contains(fault.Message, "unknown escape") {
		text += "; between double quotes a backslash is written twice, between single ones as it is"
	}
	r.fail(p, "", "not YAML: %s", strings.Join(strings.Fields(text), " "))
}

// firstBadCharacter finds what the reader of YAML refuses without saying
// where: YAML 1.2.2, section 5.1.
func firstBadCharacter(src []byte) place {
	p := place{1, 1}
	for len(src) > 0 {
		c, n := utf8.DecodeRune(src)
		switch {
		case c == utf8.RuneError && n == 1, c == 0xfffe, c == 0xffff,
			c < ' ' && c != '\t' && c != '\n' && c != '\r',
			0x7f <= c && c < 0xa0 && c != 0x85:
			return p
		}
		if p.column++; c == '\n' {
			p = place{p.line + 1, 1}
		}
		src = src[n:]
	}
	return place{1, 1}
}

func characterAt(src []byte, p place) rune {
	for range p.line - 1 {
		i := bytes.IndexByte(src, '\n')
		if i < 0 {
			return utf8.RuneError
		}
		src = src[i+1:]
	}
	for range p.column - 1 {
		_, n := utf8.DecodeRune(src)
		src = src[n:]
	}
	c, _ := utf8.DecodeRune(src)
	return c
}

// strict reports all below n that YAML allows and this file does not: keys
// written twice, anchors, aliases, merge keys, tags, keys that are no words.
// An alias is not followed, here or later, so what it would expand to does
// not matter.
func (r *report) strict(n *yaml.Node, path string, depth int) {
	if depth > depthMax {
		r.fail(at(n), "", "nested deeper than %d levels", depthMax)
		return
	}
	if n.Anchor != "" && n.Kind != yaml.AliasNode {
		r.fail(at(n), path, "anchor &%s: anchors are not supported; write the value where it is used", printable(n.Anchor))
	}
	if n.Style&yaml.TaggedStyle != 0 {
		r.fail(at(n), path, "tag %s: tags are not supported", printable(n.Tag))
	}
	switch n.Kind {
	case yaml.AliasNode:
		r.fail(at(n), path, "alias *%s: aliases are not supported; write the value out", printable(n.Value))
	case yaml.SequenceNode:
		for i, item := range n.Content {
			r.strict(item, fmt.Sprintf("%s[%d]", path, i), depth+1)
		}
	case yaml.MappingNode:
		r.strictMapping(n, path, depth)
	}
}

func (r *report) strictMapping(n *yaml.Node, path string, depth int) {
	seen := make(map[string]int) // key -> line
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if path == "" && isExtension(key) {
			continue
		}
		switch {
		case key.Kind != yaml.ScalarNode:
			r.fail(at(key), path, "a key must be a word")
			continue
		case key.ShortTag() == "!!merge":
			r.fail(at(key), path, "merge key <<: merging is not supported; write the keys out")
			continue
		case key.Anchor != "" || key.Style&yaml.TaggedStyle != 0:
			r.fail(at(key), path, "a key must be a word, without anchor or tag")
			continue
		}
		below := join(path, key.Value)
		if line, twice := seen[key.Value]; twice {
			r.fail(at(key), below, "written twice (first at line %d)", line)
		} else {
			seen[key.Value] = key.Line
		}
		r.strict(value, below, depth+1)
	}
}

// isExtension: keys of the top level that begin with x- belong to others.
func isExtension(key *yaml.Node) bool {
	return key.Kind == yaml.ScalarNode && strings.HasPrefix(key.Value, "x-")
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// join appends a key to a path. What a person wrote as a key may hold
// anything; a path stays on its line.
func join(path, key string) string {
	key = printable(key)
	if path == "" {
		return key
	}
	return path + "." + key
}

// index appends the place in a list to a path.
func index(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }
