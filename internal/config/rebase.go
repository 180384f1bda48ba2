package config

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// What a change of the file does to a patch.
const (
	PatchKept     = "kept"     // it is in force
	PatchAbsorbed = "absorbed" // the file says the same
	PatchDropped  = "dropped"  // what it belongs to is gone
)

// Rebased is a patch on another file, and what became of it.
type Rebased struct {
	Patch  Patch
	Became string // one of the words above
	// File and Runtime are what the file and the patch say, in YAML on one line; ""
	// says that there is no such thing. A secret is not told.
	File, Runtime string
	Why           string // of what was dropped
}

// with gives the document of d, which has no patches, with all of these.
func (d *Document) with(patches []Patch) (*Document, error) {
	next, _, err := d.edited(patches, false)
	return next, err
}

// Rebase puts patches that were made on another document onto d. Each tells what
// became of it, in the order of patches. An error is an *[Errors]: the file as a
// whole is not right with the patches that its problems name.
func (d *Document) Rebase(patches []Patch) (*Document, []Rebased, error) {
	all := d.patches
	for _, p := range patches {
		all = overlay(all, p)
	}
	next, dropped, err := d.Base().edited(all, true)
	if err != nil {
		return nil, nil, err
	}
	next.config = next.config.Reuse(d.config)
	var told []Rebased
	for _, p := range patches {
		one := Rebased{Patch: p, Became: PatchKept, Why: dropped[p.Name()]}
		one.File, one.Runtime = d.Base().says(&p), next.says(&p)
		switch {
		case one.Why != "":
			one.Became = PatchDropped
		case !slices.Contains(next.patches, p):
			one.Became = PatchAbsorbed
		}
		told = append(told, one)
	}
	return next, told, nil
}

// Differences tells what each patch of d says that the file does not.
func (d *Document) Differences() []Rebased {
	var all []Rebased
	for _, p := range d.patches {
		all = append(all, Rebased{Patch: p, Became: PatchKept, File: d.base.says(&p), Runtime: d.says(&p)})
	}
	return all
}

// edited makes all patches of the file d. Lenient: what a patch belongs to may be
// missing, and then it is left out and told, by its name.
func (d *Document) edited(patches []Patch, lenient bool) (*Document, map[string]string, error) {
	left, dropped := patches, map[string]string{}
	// What makes no difference is no patch. Each is taken out in turn, the last
	// first, for it may need those before.
	source, left, dropped, err := d.text(left, lenient)
	if err != nil {
		return nil, nil, err
	}
	next, err := d.read(source, left)
	if err != nil {
		return nil, nil, err
	}
	for i := len(left) - 1; i >= 0; i-- {
		without := slices.Delete(slices.Clone(left), i, i+1)
		source, rest, _, err := d.text(without, false)
		if err != nil || len(rest) != len(without) {
			continue
		}
		if other, err := d.read(source, without); err == nil && same(other.config, next.config) {
			next, left = other, without
		}
	}
	if len(left) == 0 {
		return d, dropped, nil
	}
	return next, dropped, nil
}

// same tells whether two configs have the same contents.
func same(a, b *Config) bool { return Diff(a, b).Empty() }

// text gives the file with patches, and those that were made.
func (d *Document) text(patches []Patch, lenient bool) ([]byte, []Patch, map[string]string, error) {
	dropped := map[string]string{}
	if len(patches) == 0 {
		return d.source, nil, dropped, nil
	}
	root := new(report).load(d.source)
	e := editor{root, d.lookup}
	var left []Patch
	var bad []Problem
	for i := range patches {
		p := &patches[i]
		err := e.do(p)
		var missing *gone
		switch {
		case err == nil:
			left = append(left, *p)
		case lenient && errors.As(err, &missing):
			if !p.Delete || p.Field != "" {
				dropped[p.Name()] = missing.text
			}
		default:
			bad = append(bad, Problem{File: p.Name(), Text: err.Error()})
		}
	}
	if len(bad) > 0 {
		return nil, nil, nil, &Errors{bad}
	}
	text, err := dump(root, 2)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("config: %s: %w", d.file, err)
	}
	return text, left, dropped, nil
}

// read makes a document of the file with patches in it.
func (d *Document) read(source []byte, patches []Patch) (*Document, error) {
	next, _, err := Read(d.file, source, d.lookup, d)
	var bad *Errors
	if errors.As(err, &bad) {
		return nil, blame(bad, patches)
	}
	if err != nil {
		return nil, err
	}
	next.base, next.patches = d, patches
	return next, nil
}

// blame gives problems of a file with patches to these.
func blame(bad *Errors, patches []Patch) *Errors {
	var all Errors
	for _, problem := range bad.Problems {
		problem.File, problem.Line, problem.Column = culprit(problem.Path, patches), 0, 0
		all.Problems = append(all.Problems, problem)
	}
	return &all
}

// culprit gives the name of the last patch below which path is, or of all.
func culprit(path string, patches []Patch) string {
	for i := len(patches) - 1; i >= 0; i-- {
		t, err := patches[i].target()
		if err != nil {
			continue
		}
		prefix := t.group
		if t.name != "" {
			prefix += "." + t.name
		}
		if path == prefix || strings.HasPrefix(path, prefix+".") {
			return patches[i].Name()
		}
	}
	names := make([]string, len(patches))
	for i, p := range patches {
		names[i] = p.Name()
	}
	return strings.Join(names, ", ")
}

// says gives what d has where p is made, on one line; "" if there is nothing.
func (d *Document) says(p *Patch) string {
	t, err := p.target()
	if err != nil {
		return ""
	}
	r := &reader{report: report{file: d.file}, lookup: d.lookup, showing: true}
	_, root := r.config(d.source)
	if root == nil || root.out == nil {
		return ""
	}
	n := childOf(root.out, t.group)
	if t.name != "" {
		n = childOf(n, t.name)
	}
	if t.inner != "" {
		e := editor{new(report).load(d.source), d.lookup}
		i := -1
		if childOf(n, t.list) != nil {
			i = slices.Index(e.names(t), t.inner)
		}
		if i < 0 {
			return ""
		}
		n = childOf(n, t.list).Content[i]
	}
	if n == nil {
		return ""
	}
	if p.Field == "" {
		n = withoutDefaults(n)
	} else {
		for part := range strings.SplitSeq(p.Field, ".") {
			n = childOf(n, part)
		}
	}
	if n == nil || n.Kind == yaml.MappingNode && len(n.Content) == 0 && p.Field != "" {
		return ""
	}
	return oneLine(n)
}

// withoutDefaults gives what the file has of what is shown.
func withoutDefaults(n *yaml.Node) *yaml.Node {
	next := *n
	next.Content = nil
	for i := 0; i < len(n.Content); i++ {
		if n.Kind != yaml.MappingNode {
			next.Content = append(next.Content, withoutDefaults(n.Content[i]))
			continue
		}
		key, value := n.Content[i], n.Content[i+1]
		i++
		if value.LineComment == "default" || value.Kind == yaml.MappingNode && value.Line == 0 {
			continue
		}
		next.Content = append(next.Content, key, withoutDefaults(value))
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

func flat(n *yaml.Node) *yaml.Node {
	next := &yaml.Node{Kind: n.Kind, Tag: n.Tag, Value: n.Value, Style: n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) | yaml.FlowStyle}
	if n.Kind == yaml.ScalarNode {
		next.Style &^= yaml.FlowStyle
	}
	for _, below := range n.Content {
		next.Content = append(next.Content, flat(below))
	}
	return next
}
