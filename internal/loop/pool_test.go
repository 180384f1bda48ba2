package loop

import (
	"testing"

	"github.com/holdfast-lb/holdfast/internal/sock"
)

// A pool has the legs that were dialled alike: one dialled for a listener whose
// flows stay has a port and a segment size with which it could not move.
func TestPoolOfLegsDialledAlike(t *testing.T) {
	w := newWeb(t, "")
	near := w.client()
	w.open[near] = true
	w.says(near, plainGet)
	w.hears(w.accept(), "\r\n\r\n")
	s := w.l.at(w.l.Slots(1, nil)[0])
	plain := sock.DialSpec{Source: addrPort("127.0.0.1:0").Addr()}
	of := func(x sock.DialSpec) *pool {
		w.l.spec = x
		return w.l.pool(s)
	}
	first := of(plain)
	for name, change := range map[string]func(*sock.DialSpec){
		"another address":      func(x *sock.DialSpec) { x.Source = addrPort("127.0.0.2:0").Addr() },
		"ports of its node":    func(x *sock.DialSpec) { x.PortMin, x.PortMax = 20000, 29999 },
		"segments of any path": func(x *sock.DialSpec) { x.MSS = movableMSS },
		"bounded queues":       func(x *sock.DialSpec) { x.Buffer = movableBuffer },
	} {
		other := plain
		change(&other)
		if p := of(other); p == first || p != of(other) {
			t.Errorf("%s: in the pool of the others: %t", name, p == first)
		}
	}
	if of(plain) != first {
		t.Error("legs that were dialled alike are in two pools")
	}
}
