package config

import (
	"slices"

	"go.yaml.in/yaml/v4"
)

// piece is what a chunk was read as, without anything that was wrong. It is
// immutable; documents share it.
type piece struct {
	listener *Listener // or
	backend  *Backend  // or neither: it is a key of others

	// What is asked of its text when it is seen together with others.
	uses     []use // at rest: names alone
	logs     bool  // see listenerSite
	byKernel bool  // see backendSite
	httpOnly bool

	own
	line int // of the chunk, for the warnings
}

// own is what came of reading one entry.
type own struct {
	warnings []Problem
	asked    []asked
}

// begin marks what was reported and asked so far.
func (r *reader) begin() (warnings, asked int) { return len(r.warnings), len(r.asked) }

// since gives what was since then.
func (r *reader) since(warnings, asked int) *own {
	return &own{slices.Clone(r.warnings[warnings:]), slices.Clone(r.asked[asked:])}
}

// asked is a variable that a text names, and what it was when the text was read.
type asked struct {
	name, value string
	set         bool
}

// look is a lookup that may be nil.
func look(lookup func(string) (string, bool), name string) (string, bool) {
	if lookup == nil {
		return "", false
	}
	return lookup(name)
}

// holds tells whether p is still what its text says.
func (p *piece) holds(lookup func(string) (string, bool)) bool {
	for _, v := range p.asked {
		if value, set := look(lookup, v.name); value != v.value || set != v.set {
			return false
		}
	}
	return true
}

// name is that of the object; "" if there is none.
func (p *piece) name() string {
	switch {
	case p.listener != nil:
		return p.listener.Ref.Name
	case p.backend != nil:
		return p.backend.Ref.Name
	}
	return ""
}

// reuse takes objects of was that are the same.
func (p *piece) reuse(was *Config) {
	if was == nil {
		return
	}
	if p.listener != nil {
		if l := was.Listeners[p.name()]; l != nil && l.Ref == p.listener.Ref {
			p.listener = l
		}
	}
	if p.backend != nil {
		p.backend = p.backend.reuse(was.Backends[p.name()])
	}
}

// piece reads a chunk alone. Nil says that it has to be read with the others, be
// it to say what is wrong with it.
func (r *reader) piece(c *chunk) *piece {
	root := c.load()
	if root == nil {
		return nil
	}
	alone := &reader{report: report{file: r.file}, lookup: r.lookup}
	alone.strict(root, "", 0)
	if len(alone.problems) > 0 {
		return nil
	}
	p := &piece{}
	switch c.kind {
	case listenerEntry:
		site := alone.listenerIn(root)
		if len(alone.problems) == 0 {
			site.seal()
			site.own = &own{}
			p = site.piece()
		}
	case backendEntry:
		site := alone.backendIn(root)
		if len(alone.problems) == 0 {
			site.seal()
			site.own = &own{}
			p = site.piece()
		}
	}
	if len(alone.problems) > 0 {
		return nil
	}
	p.own, p.line = own{alone.warnings, alone.asked}, c.line
	return p
}

// piece gives what stays of a site that was sealed.
func (l *listenerSite) piece() *piece {
	return &piece{listener: l.l, uses: atRest(l.uses), logs: l.logs, own: *l.own}
}

func (s *backendSite) piece() *piece {
	return &piece{backend: s.b, uses: atRest(s.uses), byKernel: s.byKernel, httpOnly: s.httpOnly, own: *s.own}
}

// atRest gives uses without their places.
func atRest(uses []use) []use {
	names := make([]use, len(uses))
	for i, u := range uses {
		names[i].name = u.name
	}
	return names
}

// listenerIn reads the only listener below root.
func (r *reader) listenerIn(root *yaml.Node) listenerSite {
	s := r.section(root, place{1, 1}, "", "", rootKeys...)
	return r.listener(s, s.named("listeners")[0])
}

// backendIn reads the only backend below root.
func (r *reader) backendIn(root *yaml.Node) backendSite {
	s := r.section(root, place{1, 1}, "", "", rootKeys...)
	return r.backend(s, s.named("backends")[0])
}

// sleeper is where a site at rest is read again, for its places.
type sleeper struct {
	r *reader
	c *chunk
}

// quietly begins something of which nothing is reported again.
func (r *reader) quietly() (end func()) {
	problems, warnings := len(r.problems), len(r.warnings)
	return func() { r.problems, r.warnings = r.problems[:problems], r.warnings[:warnings] }
}

// awake gives l with its sections.
func (l *listenerSite) awake() *listenerSite {
	if l.section == nil {
		defer l.rest.r.quietly()()
		fresh := l.rest.r.listenerIn(l.rest.c.load())
		l.section, l.uses, l.routes = fresh.section, fresh.uses, fresh.routes
	}
	return l
}

// awake gives s with its sections.
func (s *backendSite) awake() *backendSite {
	if s.section == nil {
		defer s.rest.r.quietly()()
		fresh := s.rest.r.backendIn(s.rest.c.load())
		s.section, s.uses, s.endpoints = fresh.section, fresh.uses, fresh.endpoints
	}
	return s
}

// draftOf makes a draft of chunks of which all that last were read: these are at
// rest, the others are read here. Nil: one of them is not as it seemed.
func (r *reader) draftOf(chunks []chunk) *draft {
	root := &yaml.Node{Kind: yaml.MappingNode, Line: 1, Column: 1}
	listeners, backends := 0, 0
	for i := range chunks {
		switch c := &chunks[i]; {
		case c.kind == listenersHead || c.kind == backendsHead:
			root.Content = append(root.Content,
				&yaml.Node{Kind: yaml.ScalarNode, Value: c.key, Line: c.line, Column: 1}, &yaml.Node{Kind: yaml.MappingNode, Line: c.line, Column: 1})
		case c.kind == listenerEntry:
			listeners++
		case c.kind == backendEntry:
			backends++
		case c.kind == topSection && !c.lasting():
			section := c.load()
			if section == nil || (c.key == "listeners" || c.key == "backends") && len(section.Content[1].Content) > 0 {
				return nil
			}
			root.Content = append(root.Content, section.Content...)
		}
	}
	r.strict(root, "", 0)
	d := &draft{root: r.section(root, place{1, 1}, "", "", rootKeys...)}
	r.nodeAndLog(d)
	r.clusterOf(d)
	d.listeners, d.backends = make([]listenerSite, 0, listeners), make([]backendSite, 0, backends)
	for i := range chunks {
		c := &chunks[i]
		p := c.piece
		if p == nil {
			continue
		}
		switch moved := len(p.warnings) > 0 && (p.line != c.line || p.warnings[0].File != r.file); {
		case !moved:
			r.warnings = append(r.warnings, p.warnings...)
		case c.kind == listenerEntry:
			r.listenerIn(c.load()) // warns in other places
		case c.kind == backendEntry:
			r.backendIn(c.load())
		}
		switch c.kind {
		case listenerEntry:
			d.listeners = append(d.listeners, listenerSite{l: p.listener, uses: p.uses, logs: p.logs, rest: sleeper{r, c}})
		case backendEntry:
			d.backends = append(d.backends, backendSite{b: p.backend, uses: p.uses, byKernel: p.byKernel, httpOnly: p.httpOnly, rest: sleeper{r, c}})
		}
	}
	return d
}
