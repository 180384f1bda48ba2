// Package balance chooses the endpoint for a new connection. It probes
// nothing and remembers nothing: what it needs to know is in the accounts of
// the ledger.
package balance

import (
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// Pick chooses among the endpoints of b that have room and were not tried, by
// b's policy: the index, or -1 when there is none. It implements
// [ledger.Picker].
func Pick(b *config.Backend, accounts []*ledger.Endpoint, start, tried uint64) int {
	n := len(accounts)
	if n == 0 {
		return -1
	}
	// Both policies begin at start: round robin takes the first with room,
	// least breaks ties by it, so that equals take turns.
	first, best := int(start%uint64(n)), -1
	for k := range n {
		i := first + k
		if i >= n {
			i -= n
		}
		if tried&(1<<(i%64)) != 0 || !ledger.Room(b, accounts[i]) {
			continue
		}
		if b.Balance != config.Least {
			return i
		}
		if best < 0 || accounts[i].InUse() < accounts[best].InUse() {
			best = i
		}
	}
	return best
}
