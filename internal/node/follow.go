package node

import (
	"fmt"
	"slices"

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

// change words of a [FlowsPolicy].
var changeOf = map[string]config.Change{"keep": config.KeepFlows, "adopt": config.AdoptFlows, "close": config.CloseFlows}

// checkFlows refuses a policy that is none, before anything is done.
func (n *Node) checkFlows(p FlowsPolicy) error {
	if _, ok := changeOf[p.On]; p.On != "" && !ok {
		return fmt.Errorf("node: %q is nothing that flows do at a change: want keep, adopt or close", p.On)
	}
	return checkPace(p.PerSecond, p.Jitter)
}

// following says which flows follow one change, and how.
type following struct {
	c         *config.Config
	listeners map[string]bool // that changed, or went
	backends  map[string]bool
	on        string // the policy's
	end       bool   // flows may be ended
}

func newFollowing(plan config.Plan, c *config.Config, p FlowsPolicy, end bool) *following {
	x := &following{c: c, listeners: map[string]bool{}, backends: map[string]bool{}, on: p.On, end: end}
	for _, l := range plan.ListenersRemoved {
		x.listeners[l.Ref.Name] = true
	}
	for _, l := range plan.ListenersChanged {
		x.listeners[l.New.Ref.Name] = true
	}
	for _, b := range plan.BackendsRemoved {
		x.backends[b.Ref.Name] = true
	}
	for _, b := range plan.BackendsChanged {
		x.backends[b.New.Ref.Name] = true
	}
	return x
}

// does is what flows of a listener do at this change.
func (x *following) does(listener string) config.Change {
	if x.on != "" {
		return changeOf[x.on]
	}
	if l := x.c.Listeners[listener]; l != nil {
		return l.OnChange
	}
	return config.KeepFlows // it is gone, and has nothing to say
}

// any tells whether any flow may have anything to do.
func (x *following) any() bool {
	if len(x.listeners)+len(x.backends) == 0 {
		return false
	}
	if x.on != "" {
		return changeOf[x.on] != config.KeepFlows
	}
	for _, l := range x.c.Listeners {
		if l.OnChange != config.KeepFlows {
			return true
		}
	}
	return false
}

// wants is what f has to do: nothing unless it is under an object that this
// change has replaced, and still is.
func (x *following) wants(f *flow.Flow) config.Change {
	name := f.Listener().Ref.Name
	b := f.Backend()
	if !x.listeners[name] && (b == nil || !x.backends[b.Ref.Name]) || !old(x.c, f) {
		return config.KeepFlows
	}
	what := x.does(name)
	switch {
	case what == config.CloseFlows && !x.end:
		return config.KeepFlows
	case what == config.AdoptFlows && x.c.Listeners[name] == nil:
		return config.KeepFlows // there is nothing to adopt
	}
	return what
}

// followAll lets flows under objects that plan has replaced follow the
// configuration of g, as p or each one's listener says; without end none is ended
// for it. It gives how many are still to follow when it returns. The caller holds
// change.
func (n *Node) followAll(plan config.Plan, g *loop.Generation, p FlowsPolicy, end bool, r *Report) (left int) {
	x := newFollowing(plan, g.Config, p, end)
	if !x.any() {
		return 0
	}
	for _, l := range n.shared.Loops {
		adopt, kill := x.list(l)
		n.adoptFlows(l, x, adopt, r)
		x.endFlows(l, kill, r)
	}
	return 0
}

// list lists the flows of a loop that adopt the change and those that it ends.
func (x *following) list(l *loop.Loop) (adopt, kill []tenant) {
	for from, more := uint32(0), true; more; {
		l.Ask(func(l *loop.Loop) {
			from, more = l.Look(from, lookPlaces, func(i uint32, f *flow.Flow) {
				switch x.wants(f) {
				case config.KeepFlows:
				case config.AdoptFlows:
					adopt = append(adopt, tenant{i, f.ID(), f.Born()})
				case config.CloseFlows:
					kill = append(kill, tenant{i, f.ID(), f.Born()})
				}
			})
		})
	}
	return adopt, kill
}

// adoptFlows puts listed flows under the objects of x, if they are still there
// and still under old ones.
func (n *Node) adoptFlows(l *loop.Loop, x *following, list []tenant, r *Report) {
	for len(list) > 0 {
		list = list[n.adoptSome(l, x, list[:min(changeChunk, len(list))], r):]
	}
}

// adoptSome does so within one turn, and tells how many of the list are dealt
// with.
func (n *Node) adoptSome(l *loop.Loop, x *following, list []tenant, r *Report) (dealt int) {
	dealt = len(list)
	l.Ask(func(l *loop.Loop) {
		slots, upTo := present(l, list, func(f *flow.Flow) bool { return x.wants(f) == config.AdoptFlows })
		if len(slots) == 0 {
			return
		}
		inTurn := n.keepTurns(l, slots)
		remade, k := l.Remake(slots, adopting{x.c, n.registry}, r.paused)
		inTurn()
		r.parked(remade)
		dealt = upTo[k-1]
	})
	return dealt
}

// endFlows ends listed flows, if they are still there and still to be ended.
func (x *following) endFlows(l *loop.Loop, list []tenant, r *Report) {
	for some := range slices.Chunk(list, changeChunk) {
		x.endSome(l, some, r)
	}
}

func (x *following) endSome(l *loop.Loop, list []tenant, r *Report) {
	l.Ask(func(l *loop.Loop) {
		for _, t := range list {
			if f := t.in(l); f != nil && x.wants(f) == config.CloseFlows {
				l.Kill(t.slot)
				r.Closed++
			}
		}
	})
}
