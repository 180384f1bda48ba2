package node

import (
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/loop"
)

// tenant is a flow as it was listed: a slot alone may have another flow by the
// time that one looks again.
type tenant struct {
	slot uint32
	id   uint64
	born flow.Instant
}

// in is the flow, if it still has its slot; else nil.
func (t tenant) in(l *loop.Loop) *flow.Flow {
	if f := l.Flow(t.slot); f != nil && f.ID() == t.id {
		return f
	}
	return nil
}

// tenants lists the flows of a loop, to look at them a few at a time. It is
// called on the loop's thread.
func tenants(l *loop.Loop) []tenant {
	slots := l.Slots(0, nil)
	out := make([]tenant, len(slots))
	for k, i := range slots {
		f := l.Flow(i)
		out[k] = tenant{i, f.ID(), f.Born()}
	}
	return out
}

// present gives the slots of those flows of the list that are still there and
// for which want is true (nil: all), and with each slot how much of the list
// is dealt with once that slot is; with the last one it is all of the list. It
// is called on the loop's thread.
func present(l *loop.Loop, list []tenant, want func(f *flow.Flow) bool) (slots []uint32, upTo []int) {
	for k, t := range list {
		if f := t.in(l); f != nil && (want == nil || want(f)) {
			slots, upTo = append(slots, t.slot), append(upTo, k+1)
		}
	}
	if len(upTo) > 0 {
		upTo[len(upTo)-1] = len(list)
	}
	return slots, upTo
}

// lookChunk bounds how many flows are looked at in one turn of their loop.
const lookChunk = 256

// inChunks calls do on the loop's thread for each flow of the list that is
// still there, a few in each turn.
func inChunks(l *loop.Loop, list []tenant, do func(l *loop.Loop, t tenant, f *flow.Flow)) {
	for len(list) > 0 {
		k := min(lookChunk, len(list))
		l.Ask(func(l *loop.Loop) {
			for _, t := range list[:k] {
				if f := t.in(l); f != nil {
					do(l, t, f)
				}
			}
		})
		list = list[k:]
	}
}

// old tells that f is under a listener or a backend that c has not, or has in
// another version.
func old(c *config.Config, f *flow.Flow) bool {
	if l := c.Listeners[f.Listener().Ref.Name]; l == nil || l.Ref != f.Listener().Ref {
		return true
	}
	b := f.Backend() // nil between requests
	return b != nil && !same(c.Backends[b.Ref.Name], b)
}

// changeChunk bounds how many flows follow a change in one turn of their loop.
const changeChunk = 8

// followChange lets the flows of one loop follow the configuration, as each
// one's listener says it should; without end none is ended for it.
func (n *Node) followChange(l *loop.Loop, c *config.Config, r *Report, end bool) {
	adopt, kill := changed(l, c)
	n.adoptChange(l, c, adopt, r)
	if end {
		killOld(l, c, kill, r)
	}
}

// changed lists the flows of a loop that adopt c and those that it ends.
func changed(l *loop.Loop, c *config.Config) (adopt, kill []tenant) {
	var all []tenant
	l.Ask(func(l *loop.Loop) { all = tenants(l) })
	inChunks(l, all, func(_ *loop.Loop, t tenant, f *flow.Flow) {
		now := c.Listeners[f.Listener().Ref.Name]
		if now == nil || !old(c, f) {
			return
		}
		switch now.OnChange {
		case config.AdoptFlows:
			adopt = append(adopt, t)
		case config.CloseFlows:
			kill = append(kill, t)
		}
	})
	return adopt, kill
}

// adoptChange puts listed flows under the objects of c, if they are still there
// and still under old ones.
func (n *Node) adoptChange(l *loop.Loop, c *config.Config, list []tenant, r *Report) {
	current := adopting{c, n.registry}
	for len(list) > 0 {
		dealt := min(changeChunk, len(list))
		l.Ask(func(l *loop.Loop) {
			slots, upTo := present(l, list[:dealt], func(f *flow.Flow) bool { return old(c, f) })
			if len(slots) == 0 {
				return
			}
			inTurn := n.keepTurns(l, slots)
			remade, k := l.Remake(slots, current, r.paused)
			inTurn()
			r.parked(remade)
			dealt = upTo[k-1]
		})
		list = list[dealt:]
	}
}

// killOld ends listed flows, if they are still there and still under objects
// that c has not.
func killOld(l *loop.Loop, c *config.Config, list []tenant, r *Report) {
	for len(list) > 0 {
		k := min(changeChunk, len(list))
		l.Ask(func(l *loop.Loop) {
			for _, t := range list[:k] {
				if f := t.in(l); f != nil && old(c, f) {
					l.Kill(t.slot)
					r.Closed++
				}
			}
		})
		list = list[k:]
	}
}
