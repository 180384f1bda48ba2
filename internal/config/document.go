package config

import (
	"bytes"
	"maps"
	"slices"
)

// Document is a whole desired state as text and as objects: a file, and the
// patches that were put on it at run time. It is immutable.
type Document struct {
	file   string
	lookup func(string) (string, bool)

	base    *Document // the file's own; nil: this is it
	patches []Patch   // on base, each object and field once

	source   []byte // nil: that of its chunks
	chunks   []chunk
	config   *Config
	warnings Warnings
}

// Read makes a document of src, the text of a file, like [Parse]. Entries of it
// that was has in the same words are not read again, and objects of the same
// version are those of was, which may be nil; its patches are not taken over.
func Read(file string, src []byte, lookup func(string) (string, bool), was *Document) (*Document, Warnings, error) {
	d := &Document{file: file, lookup: lookup, source: bytes.Clone(src)}
	if chunks, ok := cut(string(src)); ok && len(src) <= sourceMax && d.readChunks(chunks, was) {
		return d, d.warnings, nil
	}
	// Something is wrong, or not written in lines. Only the whole tells.
	c, warnings, err := Parse(file, src, lookup)
	if err != nil {
		return nil, warnings, err
	}
	if was != nil {
		c = c.Reuse(was.config)
	}
	d.config, d.warnings = c, warnings
	return d, warnings, nil
}

// readChunks makes d of chunks, unless there is anything wrong with them. It fills
// in what is missing in chunks, which d has from now on.
func (d *Document) readChunks(chunks []chunk, was *Document) bool {
	r := &reader{report: report{file: d.file}, lookup: d.lookup}
	old := recall{lookup: d.lookup}
	var before *Config
	if was != nil {
		old.chunks, before = was.chunks, was.config
	}
	for i := range chunks {
		c := &chunks[i]
		if c.piece != nil || !c.lasting() {
			continue
		}
		if c.piece = old.piece(c); c.piece != nil {
			continue
		}
		if c.piece = r.piece(c); c.piece == nil {
			return false
		}
		c.piece.reuse(before)
	}
	draft := r.draftOf(chunks)
	if draft == nil || len(r.problems) > 0 {
		return false
	}
	r.validate(draft)
	warnings, err := r.result()
	if err != nil {
		return false
	}
	c := draft.config(before)
	if c == nil {
		return false
	}
	d.chunks, d.config, d.warnings = chunks, c, warnings
	return true
}

// config makes the config of a draft whose entries are at rest, with what old has
// of it; nil if a name is there twice.
func (d *draft) config(old *Config) *Config {
	if old == nil {
		old = &Config{}
	}
	c := &Config{Node: d.node, Cluster: d.cluster, AccessLog: d.accessLog, Listeners: old.Listeners, Backends: old.Backends}
	if c.Cluster != nil && old.Cluster != nil && c.Cluster.equal(old.Cluster) {
		c.Cluster = old.Cluster
	}
	if c.AccessLog != nil && old.AccessLog != nil && *c.AccessLog == *old.AccessLog {
		c.AccessLog = old.AccessLog
	}
	if c.Node.API.equal(old.Node.API) {
		c.Node.API = old.Node.API
	}
	listeners := func(yield func(string, *Listener) bool) {
		for i := range d.listeners {
			if l := d.listeners[i].l; !yield(l.Ref.Name, l) {
				return
			}
		}
	}
	backends := func(yield func(string, *Backend) bool) {
		for i := range d.backends {
			if b := d.backends[i].b; !yield(b.Ref.Name, b) {
				return
			}
		}
	}
	c.Listeners = brought(old.Listeners, len(d.listeners), listeners)
	c.Backends = brought(old.Backends, len(d.backends), backends)
	if len(c.Listeners) != len(d.listeners) || len(c.Backends) != len(d.backends) {
		return nil
	}
	return c
}

// brought gives a map of all n objects: old itself if they are the same, else a
// map of its own. One that is too short says that a name is there twice.
func brought[T comparable](old map[string]T, n int, all func(func(string, T) bool)) map[string]T {
	same := len(old) == n && old != nil
	for name, o := range all {
		if !same {
			break
		}
		same = old[name] == o
	}
	if same {
		return old
	}
	next := make(map[string]T, n)
	maps.Insert(next, all)
	return next
}

// recall finds what was read before. Most of a file is where it was, so it goes
// along both; what is out of its order is looked up.
type recall struct {
	lookup func(string) (string, bool)
	chunks []chunk
	next   int
	byText map[string]int
}

// piece gives what c was read as, or nil.
func (r *recall) piece(c *chunk) *piece {
	i := r.next
	if i >= len(r.chunks) || !r.chunks[i].says(c) {
		i = r.find(c)
	}
	if i < 0 {
		r.next++ // it took the place of another, as a rule
		return nil
	}
	r.next = i + 1
	// The next that lasts.
	for r.next < len(r.chunks) && !r.chunks[r.next].lasting() {
		r.next++
	}
	if p := r.chunks[i].piece; p != nil && p.holds(r.lookup) {
		return p
	}
	return nil
}

// find looks near where c would be, and then everywhere.
func (r *recall) find(c *chunk) int {
	const near = 4
	for i := r.next; i < min(r.next+near, len(r.chunks)); i++ {
		if r.chunks[i].says(c) {
			return i
		}
	}
	if r.byText == nil {
		r.byText = make(map[string]int, len(r.chunks))
		for i := range r.chunks {
			if c := &r.chunks[i]; c.lasting() {
				r.byText[c.group()+":"+c.text] = i
			}
		}
	}
	if i, found := r.byText[c.group()+":"+c.text]; found {
		return i
	}
	return -1
}

// says tells whether c and o say the same.
func (c *chunk) says(o *chunk) bool { return c.kind == o.kind && c.text == o.text }

// Config gives the objects of d.
func (d *Document) Config() *Config { return d.config }

// File gives the name of the file that d was read from.
func (d *Document) File() string { return d.file }

// Warnings are what an operator should look at; their places are in Source.
func (d *Document) Warnings() Warnings { return d.warnings }

// Source gives a file that says all of d, patches included. What was not patched
// is there as it was written, comments too.
func (d *Document) Source() []byte {
	if d.source == nil {
		return join2(d.chunks)
	}
	return bytes.Clone(d.source)
}

func join2(chunks []chunk) []byte {
	n := 0
	for i := range chunks {
		n += len(chunks[i].text)
	}
	text := make([]byte, 0, n)
	for i := range chunks {
		text = append(text, chunks[i].text...)
	}
	return text
}

// Base gives the document of the file alone, without patches.
func (d *Document) Base() *Document {
	if d.base == nil {
		return d
	}
	return d.base
}

// Patches are what was put on the file, in the order in which it is done. Each
// object and field is there once, and what makes no difference to the file is
// not there: d.Base().Patch(d.Patches()...) is d.
func (d *Document) Patches() []Patch { return slices.Clone(d.patches) }

// Patch puts patches on d, in this order, all or none. One for the same object
// and field replaces an earlier one, and one that says what the file says ends
// it. An error is an *[Errors], whose problems name the patch in place of a file.
func (d *Document) Patch(patches ...Patch) (*Document, error) {
	all := d.patches
	for _, p := range patches {
		all = overlay(all, p)
	}
	next, err := d.Base().with(all)
	if err != nil {
		return nil, err
	}
	next.config = next.config.Reuse(d.config)
	return next, nil
}
