//go:build planted

package loop

import (
	"testing"

	"github.com/holdfast-lb/holdfast/internal/planted"
)

// A loop that goes on under the listeners that its sockets had before is found by
// looking at what an event of each would be taken for.
func TestPlantedListener(t *testing.T) {
	l, _, g := newEstate(t, 20)
	next := g.next()
	next.add(7, 2)
	planted.Set(80)
	l.Advance(Compare(g, next))
	planted.Set(0)
	if x := next.Listening["s0007"]; l.listening[l.numbers[x.FD]] == x {
		t.Errorf("bug 80, %s, was not found", planted.All[80])
	}
}

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
