package config

import (
	"maps"
	"slices"
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

// Patch puts patches on d, in this order, all or none. One for the same object
// and field replaces an earlier one, and one that says what the file says ends
// it. An error is an *[Errors], whose problems name the patch in place of a file.
func (d *Document) Patch(patches ...Patch) (*Document, error) {
	if len(patches) == 0 {
		return d, nil
	}
	next, _, err := d.over(d, patches, false)
	return next, err
}

// Rebase puts patches that were made on another document onto d. Each tells what
// became of it, in the order of patches. An error is an *[Errors]: the file as a
// whole is not right with the patches that its problems name.
func (d *Document) Rebase(patches []Patch) (*Document, []Rebased, error) {
	if len(patches) == 0 {
		return d, nil, nil
	}
	next, dropped, err := d.over(d.Base(), patches, true)
	if err != nil {
		return nil, nil, err
	}
	told := make([]Rebased, len(patches))
	file, now := speaker{d: d.Base()}, speaker{d: next}
	for i, p := range patches {
		x, known := next.told(d, p)
		if known {
			told[i] = x
			continue
		}
		x = Rebased{Patch: p, Became: PatchKept, Why: dropped[p.Name()]}
		x.File, x.Runtime = file.says(&p), now.says(&p)
		switch {
		case x.Why != "":
			x.Became, x.Runtime = PatchDropped, p.shown()
		case !slices.Contains(next.patches, p):
			x.Became = PatchAbsorbed
		default:
			next.tell(d, x)
		}
		told[i] = x
	}
	return next, told, nil
}

// told gives what was told of a patch that was kept before, if all is as it was.
func (d *Document) told(base *Document, p Patch) (Rebased, bool) {
	t, err := p.target()
	if err != nil || d == base.Base() || d.edits[object{t.group, t.name}] == nil {
		return Rebased{}, false
	}
	x, known := d.edits[object{t.group, t.name}].told[p]
	return x, known
}

// tell keeps what is told of a patch of d, which nobody has yet.
func (d *Document) tell(base *Document, x Rebased) {
	t, err := x.Patch.target()
	if err != nil || d == base.Base() {
		return
	}
	if was := d.edits[object{t.group, t.name}]; was != nil {
		next := *was // it may be another document's, too
		if next.told = maps.Clone(was.told); next.told == nil {
			next.told = make(map[Patch]Rebased)
		}
		next.told[x.Patch] = x
		d.edits[object{t.group, t.name}] = &next
	}
}

// Differences tells what each patch of d says, and what the file says instead.
func (d *Document) Differences() []Rebased {
	all := make([]Rebased, len(d.patches))
	file, now := speaker{d: d.Base()}, speaker{d: d}
	for i, p := range d.patches {
		all[i] = Rebased{Patch: p, Became: PatchKept, File: file.says(&p), Runtime: now.says(&p)}
	}
	return all
}

// over gives the file of d with the patches of d and then these. What was edited
// before in the same way is taken from was. Lenient: what a patch belongs to may be
// missing; then it is left out, and told by its name.
func (d *Document) over(was *Document, patches []Patch, lenient bool) (*Document, map[string]string, error) {
	all := d.patches
	for _, p := range patches {
		made := p.Delete && p.Field == "" && slices.ContainsFunc(all, func(q Patch) bool { return q.Object == p.Object && q.Field == "" && !q.Delete })
		all = overlay(all, p)
		if made && d.Base().says(&p) == "" && !within(all, &p) {
			// What was made at run time, and not by the file, leaves nothing behind.
			all = slices.DeleteFunc(all, func(q Patch) bool { return q == p })
		}
	}
	e, err := newEdition(d.Base(), was)
	if err != nil {
		return nil, nil, err
	}
	kept, err := e.make(all, lenient)
	if err != nil {
		return nil, nil, err
	}
	next, err := e.document(kept)
	return next, e.dropped, err
}

// within: a patch makes the whole of what p's object is a part of, which may have
// that part by itself.
func within(all []Patch, p *Patch) bool {
	of, err := p.target()
	return err == nil && of.inner != "" && slices.ContainsFunc(all, func(q Patch) bool {
		in, err := q.target()
		return err == nil && in.inner == "" && in.group == of.group && in.name == of.name && (q.Field == "" || q.Field == of.list)
	})
}
