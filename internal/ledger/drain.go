package ledger

// Drain begins, or goes on, to drain as a giver that has handed over: it keeps of each
// limit what its last flows hold, and nothing of what is free, and says that. Those
// flows are granted what they gave back themselves, in their order, for nobody else
// waits here any more. The taker gets it by Switched, as often as it is told, and calls
// Alone when nothing is left.
func (l *Ledger) Drain() Share {
	s := Share{Held: map[string]int64{}, Places: map[string]int64{}, Waits: []string{}, Sources: l.presence()}
	l.all(func(b *Backend) {
		for _, e := range b.list() {
			if n := e.keepHeld(); n != 0 {
				s.Held[e.Name] = n
			}
		}
	})
	for name, g := range l.gates() {
		if n := g.inUse.Load(); n != 0 {
			s.Places[name] = n
		}
	}
	l.Stalled(true)
	return s
}

// keepHeld bounds an endpoint by what it holds at this moment, and gives that.
func (e *Endpoint) keepHeld() int64 {
	for {
		held, limit := e.held.Load(), e.limit.Load()
		ours := int64(uint32(held))
		if limit == 0 {
			return ours
		}
		if e.held.CompareAndSwap(held, uint64(ours)|uint64(max(0, limit-ours))*foreignOne) {
			return ours
		}
	}
}
