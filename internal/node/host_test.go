package node

import (
	"testing"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
)

// A flow that waits for its endpoint has one socket, whatever octets are due to
// the leg that it will have: what came behind a PROXY header moves with it.
func TestLegToBeDialledHasNoSocket(t *testing.T) {
	for state, want := range map[flow.State]int{flow.Queued: 1, flow.Dialing: 1, flow.Relaying: 2} {
		z := &frozen.Flow{State: frozen.Flow_State(state), Client: &frozen.Leg{}, Legs: []*frozen.Leg{{Unsent: []byte("hello")}}}
		if got := connected(z); len(got) != want || got[0] != z.Client {
			t.Errorf("%v: %d legs have sockets, want %d", state, len(got), want)
		}
	}
}
