package config

import (
	"fmt"
	"strings"
)

// Patch is one change of the desired state that is not a change of the file: of
// one object, or of one field of it.
type Patch struct {
	// Object is "node", "accessLog", "cluster", "nodes", "vips", "listener/NAME", "backend/NAME",
	// "endpoint/BACKEND/NAME" or "route/LISTENER/NAME".
	Object string `json:"object"`
	// Field is a key of the object, with dots: "weight", "check.interval"; "" is
	// the whole object.
	Field string `json:"field,omitempty"`
	// Value is YAML, which JSON is, too.
	Value string `json:"value,omitempty"`
	// Delete takes the object away, or gives the field its default.
	Delete bool `json:"delete,omitempty"`
	// Before is the name of the route before which a new one is put; "" puts it
	// last, "*" first.
	Before string `json:"before,omitempty"`
}

// Name gives what p changes in one word: "endpoint/web/a2.weight".
func (p Patch) Name() string {
	if p.Field == "" {
		return printable(p.Object)
	}
	return printable(p.Object) + "." + printable(p.Field)
}

// target is where an object stands in the file.
type target struct {
	kind  string // the word of [Patch.Object]
	group string // a key of the top level
	name  string // below it; "" of a section that is alone
	inner string // of an endpoint or a route
	list  string // the key that holds it
}

// target takes p.Object apart.
func (p *Patch) target() (target, error) {
	kind, rest, named := strings.Cut(p.Object, "/")
	switch kind {
	case "node", "accessLog", "cluster", "nodes", "vips":
		if !named {
			return target{kind: kind, group: kind}, nil
		}
		return target{}, fmt.Errorf("%s has no name; write %s", kind, kind)
	case "listener", "backend":
		if rest != "" && !strings.Contains(rest, "/") {
			return target{kind: kind, group: kind + "s", name: rest}, nil
		}
		return target{}, fmt.Errorf("write %s/NAME", kind)
	case "endpoint":
		if backend, name, _ := strings.Cut(rest, "/"); backend != "" && name != "" {
			return target{kind, "backends", backend, name, "endpoints"}, nil
		}
		return target{}, fmt.Errorf("write endpoint/BACKEND/NAME")
	case "route":
		if listener, name, _ := strings.Cut(rest, "/"); listener != "" && name != "" {
			return target{kind, "listeners", listener, name, "routes"}, nil
		}
		return target{}, fmt.Errorf("write route/LISTENER/NAME")
	}
	words := []string{"node", "accessLog", "cluster", "nodes", "vips", "listener", "backend", "endpoint", "route"}
	return target{}, fmt.Errorf("%s is no kind of object%s", printable(kind), hint(nearest(kind, words), words))
}

// overlay puts p behind all, of which it replaces what it makes void: patches of
// the same thing or of parts of it. All itself is not touched.
func overlay(all []Patch, p Patch) []Patch {
	var next []Patch
	placed := false
	for _, q := range all {
		switch {
		case q.Object == p.Object && q.Field == p.Field && !placed:
			// In its place: others may come after it because they need it.
			next, placed = append(next, p), true
		case !p.voids(q):
			next = append(next, q)
		}
	}
	if !placed {
		next = append(next, p)
	}
	return next
}

// voids: after p nothing is left of what q did.
func (p *Patch) voids(q Patch) bool {
	if q.Object == p.Object {
		return p.Field == "" || q.Field == p.Field || strings.HasPrefix(q.Field, p.Field+".")
	}
	if p.Field != "" && p.Field != "endpoints" && p.Field != "routes" {
		return false
	}
	of, err := p.target()
	if err != nil || of.inner != "" {
		return false
	}
	in, err := q.target()
	return err == nil && in.inner != "" && in.group == of.group && in.name == of.name && (p.Field == "" || p.Field == in.list)
}
