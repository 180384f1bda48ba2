package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// edition is a file under patches: its chunks, some of them edited.
type edition struct {
	base, was *Document
	lines     *Document // base, written in lines
	chunks    []chunk
	dropped   map[string]string // why, by the name of the patch
	edits     map[object]*edited
	bad       []Problem
}

// edited is what came of patches of one entry. As long as they and the entry are
// the same, it is not made again.
type edited struct {
	patches []Patch
	from    *piece // of the file; nil: it has no such entry
	to      *chunk // nil: it is deleted
	made    []Patch
	told    map[Patch]Rebased
}

// done gives what was made of these patches before, or nil.
func (e *edition) done(o object, from *chunk, patches []Patch) *edited {
	was := e.was.edits[o]
	var piece *piece
	if from != nil {
		piece = from.piece
	}
	if o.name == "" || was == nil || was.from != piece || !slices.Equal(was.patches, patches) || was.to != nil && !was.to.piece.holds(e.base.lookup) {
		return nil
	}
	return was
}

// note keeps what was made, if it can be made of any file with that entry.
func (e *edition) note(o object, from *chunk, patches []Patch, to *chunk, made []Patch) {
	if o.name == "" || len(made) == 0 || len(made) < len(patches) || to != nil && to.piece == nil {
		return
	}
	x := &edited{patches: patches, to: to, made: made}
	if from != nil {
		x.from = from.piece
	}
	e.edits[o] = x
}

// newEdition begins with the chunks of a file. One that is not written in lines is
// written in lines first. What was has is not made again.
func newEdition(base, was *Document) (*edition, error) {
	lines, err := base.lined()
	if err != nil {
		return nil, err
	}
	return &edition{base: base, was: was, lines: lines, dropped: make(map[string]string), edits: make(map[object]*edited)}, nil
}

// lined gives d in lines: d itself, or what a program would write for it.
func (d *Document) lined() (*Document, error) {
	if d.chunks != nil {
		return d, nil
	}
	unlike := func(why string) error {
		return &Errors{[]Problem{{File: d.file, Text: "is written in a way that cannot be edited at run time: " + why + "; write listeners and backends one below the other, in lines"}}}
	}
	root := new(report).load(d.Source())
	if root == nil {
		return nil, unlike("not YAML")
	}
	root.Style &^= yaml.FlowStyle
	for _, key := range []string{"listeners", "backends"} {
		if n := childOf(root, key); n != nil && len(n.Content) > 0 {
			n.Style &^= yaml.FlowStyle
		}
	}
	text, err := dump(root, 2)
	if err != nil {
		return nil, unlike(err.Error())
	}
	lined, _, err := Read(d.file, text, d.plain, d)
	switch {
	case err != nil:
		return nil, unlike(err.Error())
	case lined.chunks == nil:
		return nil, unlike("its entries cannot be told apart")
	case !Diff(d.config, lined.config).Empty():
		return nil, unlike("in lines it would mean something else")
	}
	return lined, nil
}

// object is what patches of one chunk have in common.
type object struct{ group, name string }

// byObject gives the patches of each object, and the objects in their order.
func byObject(all []Patch, fail func(*Patch, error)) (map[object][]Patch, []object) {
	of := make(map[object][]Patch)
	var order []object
	for _, p := range all {
		t, err := p.target()
		if err != nil {
			fail(&p, err)
			continue
		}
		o := object{t.group, t.name}
		if _, met := of[o]; !met {
			order = append(order, o)
		}
		of[o] = append(of[o], p)
	}
	return of, order
}

// make makes all patches, object by object, and gives those that make a
// difference. Lenient is as for over.
func (e *edition) make(all []Patch, lenient bool) ([]Patch, error) {
	of, order := byObject(all, e.fail)
	var before map[object][]Patch
	if e.was.chunks != nil && e.was.base == e.base && !lenient {
		var had []object
		before, had = byObject(e.was.patches, e.fail)
		if e.chunks = e.without(had, order, before); e.chunks == nil {
			before = nil
		}
	}
	if before == nil {
		e.chunks = slices.Clone(e.lines.chunks)
	}
	left := make(map[Patch]bool, len(all))
	for _, o := range order {
		patches := of[o]
		if before == nil || !slices.Equal(patches, before[o]) {
			var again bool
			if patches, again = e.object(o, patches, lenient, before != nil); again {
				// It is not where it was, so all is made anew.
				e.was, e.bad, e.edits = e.base, nil, make(map[object]*edited)
				return e.make(all, lenient)
			}
		} else if was := e.was.edits[o]; was != nil {
			e.edits[o] = was
		}
		for _, p := range patches {
			left[p] = true
		}
	}
	if len(e.bad) > 0 {
		return nil, &Errors{e.bad}
	}
	return slices.DeleteFunc(slices.Clone(all), func(p Patch) bool { return !left[p] }), nil
}

// without gives the chunks of the document before, in which objects that have no
// patches any more, or have them later, are as the file has them, and takes those
// out of before. Else taking back one patch of many would make all of them again.
// Nil: one of them came or went by its patches.
func (e *edition) without(had, order []object, before map[object][]Patch) []chunk {
	const few = 16
	if len(had) > len(order)+few {
		return nil
	}
	chunks := slices.Clone(e.was.chunks)
	for _, o := range had {
		if len(order) > 0 && order[0] == o {
			order = order[1:]
			continue
		}
		from, at := find(e.lines.chunks, o.group, o.name), find(chunks, o.group, o.name)
		if from < 0 || at < 0 {
			return nil
		}
		chunks[at] = e.lines.chunks[from]
		delete(before, o)
	}
	return chunks
}

func (e *edition) fail(p *Patch, err error) {
	e.bad = append(e.bad, Problem{File: p.Name(), Text: err.Error()})
}

// object makes the patches of one chunk and gives those that make a difference.
// In place: the other chunks are edited already, so it must neither come nor go,
// or again is set.
func (e *edition) object(o object, patches []Patch, lenient, inPlace bool) (made []Patch, again bool) {
	at := find(e.chunks, o.group, o.name)
	var from *chunk
	if i := find(e.lines.chunks, o.group, o.name); i >= 0 {
		from = &e.lines.chunks[i]
	}
	if inPlace && (at < 0 || from == nil) {
		return nil, true
	}
	if was := e.done(o, from, patches); was != nil && !(inPlace && was.to == nil) {
		e.edits[o] = was
		e.put(at, o.group, was.to)
		return was.made, false
	}
	to, made, ok := e.edit(from, o, patches, lenient, e.tell)
	if !ok {
		return nil, false
	}
	for i := len(made) - 1; i >= 0; i-- {
		if e.counts(made, i, from, to) {
			continue
		}
		// Without it nothing may be different, unless others need it.
		others := slices.Delete(slices.Clone(made), i, i+1)
		next, rest, ok := e.edit(from, o, others, false, nil)
		if ok && len(rest) == len(others) && e.alike(o.group, to, next) {
			to, made = next, others
		}
	}
	if inPlace && (to == nil || len(made) == 0) {
		return nil, true
	}
	if len(made) > 0 {
		e.put(at, o.group, to)
	}
	e.note(o, from, patches, to, made)
	return made, false
}

// counts tells that made[i] makes a difference, as far as that is plain.
func (e *edition) counts(made []Patch, i int, from, to *chunk) bool {
	t, err := made[i].target()
	if err != nil || t.kind != "endpoint" || from == nil || to == nil || to.piece == nil {
		return false
	}
	if slices.ContainsFunc(made, func(p Patch) bool { return p != made[i] && (p.Object == made[i].Object || p.voids(made[i])) }) {
		return false
	}
	// It alone is of that endpoint, so the endpoint tells, whatever others do.
	was, is := from.piece.backend.Endpoint(t.inner), to.piece.backend.Endpoint(t.inner)
	return (was == nil) != (is == nil) || was != nil && was.Ref != is.Ref
}

// tell notes what is wrong with a patch: that what it belongs to is missing, if
// that may be, or that it cannot be made.
func (e *edition) tell(p *Patch, err error, lenient bool) {
	var missing *gone
	switch {
	case !lenient || !errors.As(err, &missing):
		e.fail(p, err)
	case !p.Delete || p.Field != "":
		e.dropped[p.Name()] = missing.text
	}
}

// edit gives a chunk with patches in it, nil if nothing is left of it, and the
// patches that were made. False says that one could not be; tell is told of it.
func (e *edition) edit(c *chunk, o object, patches []Patch, lenient bool, tell func(*Patch, error, bool)) (*chunk, []Patch, bool) {
	if len(patches) == 0 {
		return c, nil, true
	}
	root := emptyRoot(o)
	if c != nil {
		root = c.load()
	}
	ed := editor{root: root, lookup: e.base.lookup, known: e.names}
	var made []Patch
	whole := true
	for i := range patches {
		err := ed.do(&patches[i])
		if err == nil {
			made = append(made, patches[i])
			continue
		}
		var missing *gone
		whole = whole && lenient && errors.As(err, &missing)
		if tell != nil {
			tell(&patches[i], err, lenient)
		}
	}
	if !whole {
		return nil, nil, false
	}
	if len(made) == 0 {
		return c, nil, true
	}
	to, err := chunkOf(root, o, e.indent(o))
	if err != nil {
		if tell != nil {
			tell(&patches[len(patches)-1], err, false)
		}
		return nil, nil, false
	}
	if to != nil && c != nil {
		to.line = c.line
		to.pad(c)
	}
	if to != nil && to.lasting() {
		r := &reader{report: report{file: e.base.file}, lookup: e.base.lookup}
		if to.piece = r.piece(to); to.piece != nil {
			to.piece.reuse(e.was.config)
		}
	}
	return to, made, true
}

// indent gives the indentation of the entries that o is one of.
func (e *edition) indent(o object) int {
	for i := range e.lines.chunks {
		if c := &e.lines.chunks[i]; o.name != "" && c.entry() && c.group() == o.group {
			return c.column - 1
		}
	}
	return indentMin
}

// emptyRoot is a file without that object, but with its group.
func emptyRoot(o object) *yaml.Node {
	root := &yaml.Node{Kind: yaml.MappingNode}
	if o.name != "" {
		putKey(root, o.group, &yaml.Node{Kind: yaml.MappingNode})
	}
	return root
}

// names gives all names in a group.
func (e *edition) names(group string) []string {
	var all []string
	for i := range e.chunks {
		if c := &e.chunks[i]; c.entry() && c.group() == group && c.piece != nil {
			all = append(all, c.piece.name())
		}
	}
	slices.Sort(all)
	return all
}

// find gives the number of the chunk of an object, or -1.
func find(chunks []chunk, group, name string) int {
	kind := topSection
	switch {
	case name == "":
	case group == "listeners":
		kind = listenerEntry
	default:
		kind = backendEntry
	}
	for i := range chunks {
		c := &chunks[i]
		if c.kind == kind && (name == "" && c.key == group || name != "" && c.piece != nil && c.piece.name() == name) {
			return i
		}
	}
	return -1
}

// chunkOf makes a chunk of a file that has nothing else; nil if it has nothing.
func chunkOf(root *yaml.Node, o object, indent int) (*chunk, error) {
	group, name, holder := o.group, o.name, root
	if name != "" {
		holder = childOf(root, group)
	}
	if len(holder.Content) == 0 {
		return nil, nil
	}
	holder.Style &^= yaml.FlowStyle
	root.Style &^= yaml.FlowStyle
	text, err := dump(root, indent)
	if err != nil {
		return nil, fmt.Errorf("cannot be written: %w", err)
	}
	all := cut(string(text), nil)
	if len(all) == 0 {
		return nil, errors.New("cannot be written in lines")
	}
	c := all[len(all)-1]
	before := strings.TrimSuffix(string(text), c.text)
	if name != "" {
		before = strings.TrimPrefix(before, group+":\n")
	}
	// What stands before the key, comments, is part of the chunk here.
	lines := strings.Count(before, "\n")
	c.text, c.line, c.lines, c.above = before+c.text, 1, c.lines+lines, c.above+lines
	if c.group() != group || c.entry() != (name != "") {
		return nil, errors.New("cannot be written in lines")
	}
	if again := c.load(); again == nil || !sameTree(root, again) {
		return nil, errors.New("cannot be written so that it reads the same")
	}
	return &c, nil
}

// sameTree tells whether two trees say the same, in whatever style.
func sameTree(a, b *yaml.Node) bool {
	if a.Kind != b.Kind || a.Kind == yaml.ScalarNode && (a.Value != b.Value || a.ShortTag() != b.ShortTag()) || a.Anchor != b.Anchor {
		return false
	}
	return slices.EqualFunc(a.Content, b.Content, sameTree)
}

// pad gives c the empty lines at the end of was, which part it from the next.
func (c *chunk) pad(was *chunk) {
	text := strings.TrimRight(was.text, "\n")
	n := len(was.text) - len(text) - 1
	if has := len(c.text) - len(strings.TrimRight(c.text, "\n")) - 1; n > has {
		c.text += strings.Repeat("\n", n-has)
		c.lines += n - has
	}
}

// put brings a chunk to its place: at, or behind all others of its group. Nil
// takes away what is at.
func (e *edition) put(at int, group string, c *chunk) {
	switch {
	case c == nil && at >= 0:
		e.chunks = slices.Delete(e.chunks, at, at+1)
	case c == nil:
	case at >= 0:
		e.chunks[at] = *c
	case !c.entry():
		e.chunks = append(e.chunks, *c)
	default:
		last := -1
		for i := range e.chunks {
			if e.chunks[i].group() == group {
				last = i
			}
		}
		if last < 0 {
			e.chunks = append(e.chunks, chunk{})
			last = len(e.chunks) - 1
		}
		if e.chunks[last].kind != c.kind {
			e.chunks[last] = headOf(c.kind)
		}
		e.chunks = slices.Insert(e.chunks, last+1, *c)
	}
}

// headOf is the head of a group.
func headOf(entry chunkKind) chunk {
	c := chunk{kind: listenersHead, key: "listeners", lines: 1}
	if entry == backendEntry {
		c.kind, c.key = backendsHead, "backends"
	}
	c.text = c.key + ":\n"
	return c
}

// number gives each chunk its line, and a group that has no entry any more the
// form of an empty one.
func (e *edition) number() {
	line := 1
	for i := range e.chunks {
		c := &e.chunks[i]
		if bare := c.kind == listenersHead || c.kind == backendsHead; bare && (i+1 == len(e.chunks) || !e.chunks[i+1].entry()) {
			_, rest, _ := strings.Cut(c.text, "\n")
			c.text, c.kind = c.key+": {}\n"+rest, topSection
		}
		if i+1 < len(e.chunks) && !strings.HasSuffix(c.text, "\n") {
			c.text += "\n"
			c.lines++
		}
		c.line = line
		line += strings.Count(c.text, "\n")
	}
}

// document gives the document with patches, which were made.
func (e *edition) document(patches []Patch) (*Document, error) {
	if len(patches) == 0 {
		return e.base, nil
	}
	e.number()
	n := 0
	for i := range e.chunks {
		n += len(e.chunks[i].text)
	}
	if n > sourceMax {
		return nil, &Errors{[]Problem{{File: patches[len(patches)-1].Name(), Text: fmt.Sprintf("with it all has %d octets; at most %d are taken", n, sourceMax)}}}
	}
	d := &Document{file: e.base.file, base: e.base, patches: patches, edits: e.edits}
	d.seeVIPs(e.chunks, e.base.plain)
	if slices.ContainsFunc(patches, func(p Patch) bool { return p.Object == "vips" }) {
		for i := range e.chunks {
			if c := &e.chunks[i]; c.piece != nil && !c.piece.holds(d.lookup) {
				c.piece = nil // its VIP has another address now
			}
		}
	}
	was := e.was
	if was.chunks == nil {
		was = e.lines
	}
	if d.readChunks(e.chunks, was, was.config) {
		return d, nil
	}
	r := &reader{report: report{file: d.file}, lookup: d.plain}
	text := textOf(e.chunks)
	c, _ := r.config(text)
	warnings, err := r.result()
	var bad *Errors
	if errors.As(err, &bad) {
		return nil, blame(bad, patches)
	}
	d.source, d.config, d.warnings = string(text), c.Reuse(e.was.config), warnings
	return d, nil
}

// alike tells whether two versions of a chunk mean the same.
func (e *edition) alike(group string, a, b *chunk) bool {
	if a != nil && a.entry() || b != nil && b.entry() {
		return a != nil && b != nil && a.piece != nil && b.piece != nil && a.piece.same(b.piece)
	}
	return e.understood(group, a) == e.understood(group, b)
}

// same tells whether two pieces have the same object.
func (p *piece) same(o *piece) bool {
	switch {
	case p.listener != nil && o.listener != nil:
		return p.listener.Ref == o.listener.Ref
	case p.backend != nil && o.backend != nil:
		return p.backend.Ref == o.backend.Ref
	}
	return false
}

// understood gives all that a section means; one that is not there means what an
// empty one does, unless it is one that turns something on.
func (e *edition) understood(group string, c *chunk) string {
	if c == nil && group != "node" {
		return ""
	}
	if c == nil {
		c = &chunk{text: "node: {}\n", line: 1, kind: topSection, key: group}
	}
	out := shownOf(c, e.base.lookup)
	if out == nil {
		return c.text
	}
	prune(out)
	return oneLine(out)
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

// culprit gives the name of the last patch of what is at path, or of all.
func culprit(path string, patches []Patch) string {
	var names []string
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
		names = append(names, patches[i].Name())
	}
	const few = 3
	if len(names) > few {
		return fmt.Sprintf("one of %d edits", len(names))
	}
	return strings.Join(names, ", ")
}
