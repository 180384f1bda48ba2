package ledger

import "github.com/holdfast-lb/holdfast/internal/config"

// AllowRetry tells, before a response is thrown away for the hope of a better
// one, whether a further attempt is worth it: there is an endpoint that was not
// tried and serves, or will soon, and the budget of retries has one left. Then
// it is counted, and [Asking.Retry] is not set when the endpoint is asked for.
func (b *Backend) AllowRetry(c *config.Backend, a *Asking) bool {
	_, v := b.version(c)
	if !v.roster.Worth(a.Tried) || c.Breaker != nil && b.Breaker() != Closed {
		return false
	}
	return c.Retry.Budget == 0 || b.budget.spend(a.Now, c.Retry.Budget, b.requests())
}
