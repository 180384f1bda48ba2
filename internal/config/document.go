package config

import (
	"maps"
	"slices"
)

// Document is a whole desired state as text and as objects: a file, and the
// patches that were put on it at run time. It is immutable.
type Document struct {
	file   string
	plain  func(string) (string, bool) // the variables of the file
	lookup func(string) (string, bool) // these, and the addresses of VIPs

	base    *Document          // the file's own; nil: this is it
	patches []Patch            // on base, each object and field once
	edits   map[object]*edited // what was made of them, for the next time; never written again

	source   string  // "": that of its chunks
	asked    []asked // by sections of the top level
	chunks   []chunk
	config   *Config
	warnings Warnings
}

// Read makes a document of src, the text of a file, like [Parse]. Entries of it
// that was has in the same words are not read again, and objects of the same
// version are those of was, which may be nil; its patches are not taken over.
func Read(file string, src []byte, lookup func(string) (string, bool), was *Document) (*Document, Warnings, error) {
	d := &Document{file: file, source: string(src)}
	if was != nil {
		d.edits = was.edits
	}
	var chunks []chunk
	if len(src) <= sourceMax {
		chunks = cut(d.source, was)
	}
	d.seeVIPs(chunks, lookup)
	// Of what is the file's, the file was is the next.
	next := was
	if was != nil && was.Base().chunks != nil {
		next = was.Base()
	}
	if next != nil && next.chunks != nil && d.readChunks(chunks, next, was.config) {
		return d, d.warnings, nil
	}
	// Something is wrong, or not written in lines. Only the whole tells.
	r := &reader{report: report{file: file}, lookup: lookup}
	c, draft := r.config(src)
	warnings, err := r.result()
	if err != nil {
		return nil, warnings, err
	}
	d.config, d.warnings = c, warnings
	if was != nil {
		d.config = c.Reuse(was.config)
	}
	if draft.settle(chunks, d.config) {
		d.chunks, d.asked = chunks, r.asked
	}
	return d, warnings, nil
}

// settle makes pieces of a draft that has nothing wrong, if each entry stands in
// the chunk that seems to be its own.
func (d *draft) settle(chunks []chunk, c *Config) bool {
	listeners, backends := d.listeners, d.backends
	for i := range chunks {
		c := &chunks[i]
		switch {
		case c.kind == listenerEntry && len(listeners) > 0 && c.begins(listeners[0].place):
			c.piece, listeners = listeners[0].piece(), listeners[1:]
		case c.kind == backendEntry && len(backends) > 0 && c.begins(backends[0].place):
			c.piece, backends = backends[0].piece(), backends[1:]
		case c.entry():
			return false
		case c.lasting():
			c.piece = &piece{}
		default:
			continue
		}
		c.piece.line = c.line
	}
	for i := range chunks {
		if p := chunks[i].piece; p != nil {
			p.reuse(c)
		}
	}
	return len(chunks) > 0 && len(listeners) == 0 && len(backends) == 0
}

// begins: the key of c is at that place.
func (c *chunk) begins(at place) bool { return at.line == c.line+c.above && at.column == c.column }

// readChunks makes d of chunks, unless there is anything wrong with them. It fills
// in what is missing in chunks, which d has from now on. What was has is not read
// again; other objects may be those of inForce.
func (d *Document) readChunks(chunks []chunk, was *Document, inForce *Config) bool {
	r := &reader{report: report{file: d.file}, lookup: d.lookup}
	old := recall{lookup: d.lookup, chunks: was.chunks}
	const fewest = 16
	read := 0
	for i := range chunks {
		c := &chunks[i]
		if c.piece != nil || !c.lasting() {
			continue
		}
		if c.piece = old.piece(c); c.piece != nil {
			continue
		}
		if read++; read > fewest+len(chunks)/4 {
			return false // it is quicker to read all
		}
		if c.piece = r.piece(c); c.piece == nil {
			return false
		}
		c.piece.reuse(inForce)
	}
	if len(chunks) == 0 {
		return false
	}
	if c := d.likewise(chunks, was); c != nil {
		d.chunks, d.config, d.asked = chunks, c, was.asked
		return true
	}
	r.asked = nil
	draft := r.draftOf(chunks)
	d.asked = r.asked
	if draft == nil || len(r.problems) > 0 {
		return false
	}
	r.validate(draft)
	warnings, err := r.result()
	if err != nil {
		return false
	}
	c := draft.config(was.config)
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
	c := &Config{Node: d.node, Cluster: d.cluster, VIPs: d.vips, AccessLog: d.accessLog, Listeners: old.Listeners, Backends: old.Backends}
	if sameVIPs(c.VIPs, old.VIPs) {
		c.VIPs = old.VIPs
	}
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
	byText map[wording]int
}

// wording is what a chunk says, and where.
type wording struct{ group, text string }

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
		r.byText = make(map[wording]int, len(r.chunks))
		for i := range r.chunks {
			if c := &r.chunks[i]; c.lasting() {
				r.byText[wording{c.group(), c.text}] = i
			}
		}
	}
	if i, found := r.byText[wording{c.group(), c.text}]; found {
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
	if d.source == "" {
		return textOf(d.chunks)
	}
	return []byte(d.source)
}

func textOf(chunks []chunk) []byte {
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
