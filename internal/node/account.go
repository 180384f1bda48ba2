package node

import (
	"errors"
	"strings"
	"sync/atomic"

	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// ErrHandedOver: this process has handed everything over to another one. What was
// asked for was not done here, and whoever asks again, under the same key, is
// answered by that one: it knows what came in force before.
var ErrHandedOver = errors.New("this process has handed over")

// account finds the ledger's account of an endpoint by its full name.
func (n *Node) account(endpoint string) *ledger.Endpoint {
	backend, _, _ := strings.Cut(endpoint, "/")
	return n.shared.Ledger.Backend(backend).Endpoint(endpoint)
}

// raise makes identities given from now on larger than one of the same origin
// that came with a flow.
func raise(next *atomic.Uint64, seen uint64) {
	for {
		was := next.Load()
		if was>>40 != seen>>40 || was >= seen || next.CompareAndSwap(was, seen) {
			return
		}
	}
}
