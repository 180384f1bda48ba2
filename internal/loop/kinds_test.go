package loop

import (
	"path/filepath"
	"slices"
	"testing"
)

// People filter by what flows are found to do: no kind is missing in the list, none
// stands there twice.
func TestKinds(t *testing.T) {
	const all = 21
	if len(Kinds) != all || len(slices.Compact(slices.Sorted(slices.Values(Kinds)))) != all {
		t.Errorf("%d kinds: %q", len(Kinds), Kinds)
	}
	for phase, k := range phaseKinds {
		if k != "" && !slices.Contains(Kinds, k) {
			t.Errorf("phase %d: no %q", phase, k)
		}
	}
}

// Of each kind there is what releases froze of it; with octets in a pipe they are
// what the pipe held.
func TestKindsAreFrozenByReleases(t *testing.T) {
	for _, k := range Kinds {
		if files, err := filepath.Glob("../flow/testdata/frozen/head/" + k + "*.bin"); err != nil || len(files) == 0 {
			t.Errorf("%s: no file (%v); see internal/flow/release_test.go", k, err)
		}
	}
}
