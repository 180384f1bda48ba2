package config

import (
	"bytes"
	"slices"
)

// Document is a whole desired state as text and as objects: a file, and the
// patches that were put on it at run time. It is immutable.
type Document struct {
	file   string
	lookup func(string) (string, bool)

	base    *Document // the file's own; nil: this is it
	patches []Patch   // on base, each object and field once

	source   []byte
	config   *Config
	warnings Warnings
}

// Read makes a document of src, the text of a file, like [Parse]. Sections of it
// that was has in the same words are not read again, and objects of the same
// version are those of was, which may be nil; its patches are not taken over.
func Read(file string, src []byte, lookup func(string) (string, bool), was *Document) (*Document, Warnings, error) {
	c, warnings, err := Parse(file, src, lookup)
	if err != nil {
		return nil, warnings, err
	}
	if was != nil {
		c = c.Reuse(was.config)
	}
	return &Document{file: file, lookup: lookup, source: bytes.Clone(src), config: c, warnings: warnings}, warnings, nil
}

// Config gives the objects of d.
func (d *Document) Config() *Config { return d.config }

// File gives the name of the file that d was read from.
func (d *Document) File() string { return d.file }

// Warnings are what an operator should look at; their places are in Source.
func (d *Document) Warnings() Warnings { return d.warnings }

// Source gives a file that says all of d, patches included. What was not patched
// is there as it was written, comments too.
func (d *Document) Source() []byte { return bytes.Clone(d.source) }

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
