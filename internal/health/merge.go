package health

import "github.com/holdfast-lb/holdfast/internal/ledger"

// Merge takes from another node, which goes on with its own, what this one does not
// know better: it has its own view of each endpoint, and orders of its own operator. An
// endpoint that was not probed here yet stands as it does there; one that is ejected
// there for what it did to flows is ejected here for as long; and where the breaker is
// open there it opens. What was counted there is not counted here.
func (b *Backend) Merge(now Instant, s Saved) {
	if b.of.Breaker != nil && b.breaker.state == ledger.Closed && s.Breaker == ledger.Open.String() && s.BreakerLeft > 0 {
		b.breaker.state, b.breaker.until, b.breaker.moved = ledger.Open, now.after(s.BreakerLeft), true
	}
	for _, z := range s.Endpoints {
		e := b.endpoints[z.Name]
		if e == nil || e.of.Address() != z.Address {
			continue
		}
		if e.checked == ledger.Checking {
			switch h := find(z.Health, ledger.Checking, ledger.Up, ledger.Down, ledger.Draining); h {
			case ledger.Up, ledger.Down, ledger.Draining:
				e.checked, e.run, e.first = h, 0, z.First
				e.why, e.took, e.since = z.Why, z.Took, now-Instant(max(0, z.Since))
			}
		}
		if b.of.Eject != nil && z.Ejected > 0 && e.ejectedUntil == 0 && b.mayEject() {
			e.times, e.last, e.ejectedUntil = max(e.times, z.Ejections), z.Ejection, now.after(z.Ejected)
			b.tell(e, Ejected, "ejected", "the node from which flows come has ejected it", z.Ejected)
		}
		b.renew(e, now)
	}
}
