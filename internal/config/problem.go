package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Problem is one fault of a file, at one place, with what is wrong and what
// to do about it.
type Problem struct {
	File   string // as given to Parse; or a patch, see [Patch.Name]
	Line   int    // from 1; 0 of a patch
	Column int    // from 1, in characters
	Path   string // as in "backends.web.endpoints[2].address"; "" is the whole file
	Text   string // one line
}

// String gives p as "holdfast.yaml:14:7: backends.web.endponts: unknown key", or
// as "endpoint/web/a2.weight: backends.web.endpoints[1].weight: ..." of a patch.
func (p Problem) String() string {
	if p.Line == 0 {
		if p.Path == "" {
			return p.File + ": " + p.Text
		}
		return p.File + ": " + p.Path + ": " + p.Text
	}
	if p.Path == "" {
		return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.Text)
	}
	return fmt.Sprintf("%s:%d:%d: %s: %s", p.File, p.Line, p.Column, p.Path, p.Text)
}

// Errors is every fault of one file, sorted by place. It is what Parse gives
// as its error.
type Errors struct {
	Problems []Problem // at least one
}

// Error gives one line for each problem, without a newline at the end.
func (e *Errors) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Warnings are what an operator should look at, though the file is usable.
// They are sorted by place.
type Warnings []Problem

// String gives one line for each warning, without a newline at the end, as in
// "holdfast.yaml:44:3: warning: backends.old: used by no listener".
func (w Warnings) String() string {
	lines := make([]string, len(w))
	for i, p := range w {
		if p.Path == "" {
			lines[i] = fmt.Sprintf("%s:%d:%d: warning: %s", p.File, p.Line, p.Column, p.Text)
		} else {
			lines[i] = fmt.Sprintf("%s:%d:%d: warning: %s: %s", p.File, p.Line, p.Column, p.Path, p.Text)
		}
	}
	return strings.Join(lines, "\n")
}

// Lines gives what Parse said, errors and warnings, in the order of the file and
// without a newline at the end. It is "" if nothing was said.
func Lines(w Warnings, err error) string {
	type line struct {
		of   Problem
		text string
	}
	var all []line
	var bad *Errors
	if errors.As(err, &bad) {
		for _, p := range bad.Problems {
			all = append(all, line{p, p.String()})
		}
	}
	for i := range w {
		all = append(all, line{w[i], w[i : i+1].String()})
	}
	slices.SortStableFunc(all, func(a, b line) int {
		return cmp.Or(cmp.Compare(a.of.Line, b.of.Line), cmp.Compare(a.of.Column, b.of.Column))
	})
	lines := make([]string, len(all))
	for i, l := range all {
		lines[i] = l.text
	}
	return strings.Join(lines, "\n")
}

// sortProblems brings problems into the order of the file. Equal places keep
// a fixed order, too, for output has to be the same each time.
func sortProblems(all []Problem) {
	slices.SortFunc(all, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column),
			cmp.Compare(a.Path, b.Path), cmp.Compare(a.Text, b.Text))
	})
}
