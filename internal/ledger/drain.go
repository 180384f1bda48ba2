package ledger

// Drain begins, or goes on, to drain as a giver that has handed over: it keeps of each
// limit what its last flows hold, and of what is free no more than one, for those who
// wait and hold nothing, and says that. Its flows are granted within it, in their
// order, for nobody else waits here any more. The taker gets it by Switched, as often as it is told, and calls
// Alone when nothing is left.
func (l *Ledger) Drain() Share {
	s := Share{Held: map[string]int64{}, Places: map[string]int64{}, Waits: []string{}, Sources: l.presence()}
	l.all(func(b *Backend) {
		waits := b.waiting.Load() > 0
		for _, e := range b.list() {
			if n := e.keepHeld(waits); n != 0 {
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

// keepHeld bounds an endpoint by what it holds at this moment, or by one if somebody
// waits and one is its to keep, and gives that.
func (e *Endpoint) keepHeld(waits bool) int64 {
	for {
		held, limit := e.held.Load(), e.limit.Load()
		ours, theirs := int64(uint32(held)), int64(held>>32)
		if limit == 0 {
			return ours
		}
		part := ours
		if waits && part == 0 && theirs < limit {
			part = 1
		}
		if e.held.CompareAndSwap(held, uint64(ours)|uint64(max(0, limit-part))*foreignOne) {
			return part
		}
	}
}
