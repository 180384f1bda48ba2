package loop

import (
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
