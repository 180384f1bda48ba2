//go:build planted

package loop

import (
	"testing"

	"github.com/holdfast-lb/holdfast/internal/planted"
)

// What the histories do not see of changes of the configuration, this does.
func TestPlanted(t *testing.T) {
	for _, n := range []int{73, 74} {
		w := newWeb(t, "")
		planted.Set(n)
		wrong := keepsLegs(w)
		planted.Set(0)
		if wrong == "" {
			t.Errorf("bug %d, %s, was not found", n, planted.All[n])
		}
		t.Logf("%2d %s: %s", n, planted.All[n], wrong)
	}
}
