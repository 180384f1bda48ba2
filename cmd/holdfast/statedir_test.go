package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The file names the directory, else the supervisor, else it is one of its own
// for each file; where none can be made that is said, and it goes on without.
func TestStateDirectory(t *testing.T) {
	dir := t.TempDir()
	named := filepath.Join(dir, "named")
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	plain, other := write("holdfast.yaml", "listeners: {}\n"), write("other.yaml", "listeners: {}\n")
	none, says := write("none.yaml", "node: { state: none }\n"), write("says.yaml", "node: { state: "+named+" }\n")
	want := func(file, dir, why string) {
		t.Helper()
		got, said := stateDirectory(file)
		if got != dir || why == "" && said != "" || !strings.Contains(said, why) {
			t.Errorf("%s: %q, %q; want %q, %q", filepath.Base(file), got, said, dir, why)
		}
	}
	t.Setenv("STATE_DIRECTORY", filepath.Join(dir, "given")+":/elsewhere")
	want(plain, filepath.Join(dir, "given"), "")
	want(none, "", "")
	want(says, named, "")
	t.Setenv("STATE_DIRECTORY", filepath.Join(plain, "below-a-file"))
	want(plain, "", "generations are not kept over a restart: set node.state")

	t.Setenv("STATE_DIRECTORY", "")
	a, err := defaultState(plain)
	if err != nil {
		t.Fatal(err)
	}
	b, err := defaultState(other)
	if err != nil {
		t.Fatal(err)
	}
	if a == b || !strings.HasPrefix(filepath.Base(a), "holdfast.yaml-") || len(filepath.Base(a)) != len("holdfast.yaml-")+8 {
		t.Errorf("%q and %q", a, b)
	}
	if os.Geteuid() != 0 {
		t.Setenv("XDG_STATE_HOME", dir)
		if got, err := defaultState(plain); err != nil || filepath.Dir(got) != filepath.Join(dir, "holdfast") {
			t.Errorf("%q %v", got, err)
		}
	}
}
