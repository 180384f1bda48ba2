package ledger_test

import (
	"testing"

	"github.com/holdfast-lb/holdfast/internal/balance"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// What a predecessor still serves counts under a gate's limit until it has come
// over or the predecessor is done.
func TestGateCountsThePredecessor(t *testing.T) {
	opened := 0
	l := ledger.New(ledger.Options{Policy: balance.Policy{}, Ring: func(int, uint64) {}, Open: func() { opened++ }})
	g := l.Listener("web")
	g.SetMax(3)
	l.PlacesElsewhere(map[string]int64{"": 2, "web": 2})
	if !g.Enter() || g.Enter() {
		t.Fatal("the limit of 3 leaves one place beside 2 elsewhere")
	}
	g.Import()
	if g.InUse() != 2 || g.Enter() {
		t.Fatalf("%d in use after one came over, and another one let in", g.InUse())
	}
	l.Alone() // the other one ended meanwhile
	if opened == 0 {
		t.Error("nobody was told that there is a place")
	}
	if !g.Enter() || g.Enter() {
		t.Error("alone, the third place was not given, or a fourth")
	}
	if p := l.Places(); p["web"] != 3 || len(p) != 1 {
		t.Errorf("places %v", p)
	}
}
