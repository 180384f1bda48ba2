package frozen

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
)

var updateFields = flag.Bool("update-fields", false, "write the schema of this code to testdata/fields/head.txt")

// schema lists what of frozen.proto goes over a wire: a line for each field, value of an enum and
// reserved number, in an order of its own.
func schema() []string {
	var lines []string
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	var message func(protoreflect.MessageDescriptor)
	enums := func(all protoreflect.EnumDescriptors) {
		for i := range all.Len() {
			e := all.Get(i)
			for k := range e.Values().Len() {
				v := e.Values().Get(k)
				say("%s = %d %s", e.FullName().Parent().Name()+"."+e.Name(), v.Number(), v.Name())
			}
		}
	}
	message = func(m protoreflect.MessageDescriptor) {
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			of := f.Kind().String()
			if f.Message() != nil {
				of = string(f.Message().Name())
			} else if f.Enum() != nil {
				of = string(f.Enum().Name())
			}
			say("%s %d %v %s %s", m.Name(), f.Number(), f.Cardinality(), of, f.Name())
		}
		for i := range m.ReservedRanges().Len() {
			r := m.ReservedRanges().Get(i)
			for n := r[0]; n < r[1]; n++ {
				say("%s %d reserved", m.Name(), n)
			}
		}
		enums(m.Enums())
		for i := range m.Messages().Len() {
			message(m.Messages().Get(i))
		}
	}
	for i := range File_internal_frozen_frozen_proto.Messages().Len() {
		message(File_internal_frozen_frozen_proto.Messages().Get(i))
	}
	enums(File_internal_frozen_frozen_proto.Enums())
	slices.Sort(lines)
	return lines
}

const fieldsDir = "testdata/fields"

func fieldsOf(t *testing.T, release string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(fieldsDir, release+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// The schema only grows: what a release of the window writes under a number this one
// reads under the same number, as the same. A number that was reserved for
// something may become that; one that was a field never becomes another.
func TestSchemaOnlyGrows(t *testing.T) {
	is := schema()
	if *updateFields {
		if err := os.MkdirAll(fieldsDir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(fieldsDir, "head.txt"), []byte(strings.Join(is, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(filepath.Join(fieldsDir, "v*.txt"))
	if err != nil {
		t.Fatal(err)
	}
	window := releases(t)
	if len(files) < len(window) {
		t.Errorf("%d lists of fields for %d releases", len(files), len(window))
	}
	for _, release := range window {
		was := fieldsOf(t, release)
		if len(was) < 50 {
			t.Errorf("%s: %d fields", release, len(was))
		}
		for _, line := range was {
			if slices.Contains(is, line) || strings.HasSuffix(line, " reserved") {
				continue
			}
			t.Errorf("%s wrote %q, this one does not", release, line)
		}
	}
	// A number that has been given back stays reserved, so the list of this
	// release is written down and read by a person when it changes.
	head := fieldsOf(t, "head")
	for _, line := range is {
		if !slices.Contains(head, line) {
			t.Errorf("%q is new. Which releases refuse a flow that has it? Say so in docs/limits.md, and run with -update-fields", line)
		}
	}
	for _, line := range head {
		if !slices.Contains(is, line) && !strings.HasSuffix(line, " reserved") {
			t.Errorf("%q is gone: a number is never given back nor used again", line)
		}
	}
}

// releases are those of the window, oldest first.
func releases(t *testing.T) (all []string) {
	t.Helper()
	text, err := os.ReadFile("testdata/releases.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] != "#" {
			all = append(all, f[0])
		}
	}
	if len(all) == 0 {
		t.Fatal("the window is empty")
	}
	return all
}
