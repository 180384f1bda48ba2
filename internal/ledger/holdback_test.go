package ledger_test

import (
	"testing"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// Where somebody waits on a host whose flows are coming nobody is granted an endpoint
// with a limit, though one is free, until all have come from all such hosts; then it is
// granted to those who wait. Other backends notice nothing.
func TestHoldBack(t *testing.T) {
	c := backend(1, equal(1), func(c *config.Backend) { c.Endpoints[0].ConnectionsMax = 1 })
	rung := map[uint64]bool{}
	l := newLedger(func(_ int, token uint64) { rung[token] = true })
	b := l.Backend("b")
	b.Govern(c)
	one, two := l.HoldBack([]string{"b", "another"}), l.HoldBack([]string{"b"})
	if name, _ := secure(b, c, ledger.Asking{Token: 7}); name != "waits" {
		t.Fatalf("while flows are coming: %q", name)
	}
	if got := l.Waited(); len(got) != 1 || got[0] != "b" {
		t.Errorf("somebody waits at %v", got)
	}
	if one(); rung[7] {
		t.Error("it was granted before the other host's flows had come")
	}
	if two(); !rung[7] {
		t.Error("it was not granted when all had come")
	}
	three := l.HoldBack([]string{"another"})
	defer three()
	free := backend(2, equal(1), nil)
	x := l.Backend("free")
	x.Govern(free)
	if name, _ := secure(x, free, ledger.Asking{Token: 8}); name != "e0" {
		t.Errorf("a backend that nobody comes to: %q", name)
	}
}
