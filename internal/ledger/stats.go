package ledger

// BackendStats are counts of a backend since the ledger was made.
type BackendStats struct {
	Requests                       uint64 // that asked for a first endpoint
	RetriesGranted, RetriesRefused uint64 // by the budget, where there is one
	Tripped                        uint64 // refused by the breaker
	Waits                          uint64 // that have left the queue with a slot
	Waiting                        int
	Learned                        int // entries of the sticky table
	// EvictedFull had to go for a newer one, EvictedExpired were not used for too
	// long, the endpoint of EvictedGone serves them no more.
	EvictedFull, EvictedExpired, EvictedGone uint64
	Serving                                  int // endpoints that serve something new
	Panics                                   bool
	Breaker                                  BreakerState
}

// Stats gives the counts of the backend.
func (b *Backend) Stats() BackendStats {
	s := BackendStats{Requests: b.requests(), Tripped: b.tripped.Load(), Waits: b.waits.Load(), Waiting: b.Waiting(), Breaker: b.Breaker()}
	b.budget.mu.Lock()
	s.RetriesGranted, s.RetriesRefused = b.budget.granted, b.budget.refused
	b.budget.mu.Unlock()
	b.names.Lock()
	evicted := b.past
	b.names.Unlock()
	if t := b.table.Load(); t != nil {
		n, e := t.stats()
		s.Learned = n
		evicted.add(e)
	}
	s.EvictedFull, s.EvictedExpired, s.EvictedGone = evicted.full, evicted.expired, evicted.gone
	if r := b.Roster(); r != nil {
		s.Serving, s.Panics = r.Serving(), r.Panics()
	}
	return s
}
