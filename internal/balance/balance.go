// Package balance chooses the endpoint for a new connection. It probes
// nothing and remembers nothing: what it needs to know is in the accounts of
// the ledger.
package balance

import (
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// Policy is the [ledger.Policy] for all ways of balancing. Its zero value is ready.
type Policy struct{}

type roster struct {
	b        *config.Backend
	accounts []*ledger.Endpoint
}

// Roster implements [ledger.Policy].
func (Policy) Roster(c *config.Backend, accounts []*ledger.Endpoint, zone string, old ledger.Roster) ledger.Roster {
	return &roster{c, accounts}
}

func (r *roster) Sticky(i int) bool { return true }
func (r *roster) Held() bool        { return false }
func (r *roster) Serving() int      { return len(r.accounts) }

func (r *roster) Pick(a ledger.Asking, start uint64) int {
	n := len(r.accounts)
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
		if a.Tried&(1<<(i%64)) != 0 || !r.accounts[i].Room() {
			continue
		}
		if r.b.Balance != config.Least {
			return i
		}
		if best < 0 || r.accounts[i].InUse() < r.accounts[best].InUse() {
			best = i
		}
	}
	return best
}
