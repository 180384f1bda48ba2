package node

import (
	"fmt"
	"testing"
	"time"
)

// A process that ends, or hands over, waits for whoever is in a handshake with a
// listener that is about to be closed: it would serve nobody, or nobody would know
// of whom it serves.
func TestHandshakesAreWaitedFor(t *testing.T) {
	to, a, b := echo(t), free(t), free(t)
	one := fmt.Sprintf("listeners:\n  a: { vip: %q, backend: e }\n", a)
	both := one + fmt.Sprintf("  b: { vip: %q, backend: e }\n", b)
	rest := fmt.Sprintf("backends:\n  e: { endpoints: [ { name: e, address: %q } ] }\n", to)
	n := start(t, both+rest)
	leaves := func(vip string, do func()) {
		t.Helper()
		begun := unheard(t, vip)
		do()
		if k := n.retiring.under(); k != 1 {
			t.Fatalf("%d listeners are about to be closed, want the one with a handshake", k)
		}
		begun() // its client has gone, as the next answer to it shows
	}
	leaves(b, func() { n.reload(one + rest) })
	if err := n.Upgrade(t.Context(), UpgradeRequest{Binary: "/nowhere"}, nil); err == nil {
		t.Fatal("nothing can be upgraded to")
	}
	if k := n.retiring.under(); k != 0 {
		t.Errorf("%d listeners are about to be closed when flows are handed over", k)
	}
	left := make(chan int, 1)
	leaves(a, func() {
		go func() { left <- n.Drain(time.Minute, nil, nil) }()
		await(t, "the end never begins", func() bool { return n.retiring.under() > 0 })
	})
	if k := <-left; k != 0 {
		t.Errorf("%d flows are left", k)
	}
	if k := n.retiring.under(); k != 0 {
		t.Errorf("%d listeners are about to be closed at the end", k)
	}
}
