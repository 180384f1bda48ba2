package health

import "maps"

// Evacuate says which nodes are to be free: what is on them gets nothing new but what
// is sticky to it, whatever else is found of it, as if each had been ordered to
// quiesce; orders for single endpoints stay as they are and are there afterwards.
func (b *Backend) Evacuate(now Instant, nodes map[string]bool) {
	if maps.Equal(b.away, nodes) {
		return
	}
	was := b.away
	b.away = maps.Clone(nodes)
	for _, e := range b.order {
		if e.of.Node == "" || was[e.of.Node] == nodes[e.of.Node] {
			continue
		}
		state := "back: " + e.of.Node + " serves again"
		if nodes[e.of.Node] {
			state = "quiescing: " + e.of.Node + " is being evacuated"
		}
		b.tell(e, Ordered, state, ByOperator, 0)
		b.touch(e, now)
	}
}
