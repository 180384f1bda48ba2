package node

import (
	"fmt"
	"slices"
	"time"

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

// changeChunk bounds how many flows follow a change in one turn of their loop.
const changeChunk = 8

// changeOf understands the words of a [FlowsPolicy].
var changeOf = map[string]config.Change{"keep": config.KeepFlows, "adopt": config.AdoptFlows, "close": config.CloseFlows}

// checkFlows refuses a policy that cannot be followed, before anything is done.
func (n *Node) checkFlows(p FlowsPolicy) error {
	if _, ok := changeOf[p.On]; p.On != "" && !ok {
		return fmt.Errorf("node: %q is nothing that flows do at a change: want keep, adopt or close", p.On)
	}
	if err := checkPace(p.PerSecond, p.Jitter); err != nil {
		return err
	}
	n.side.mu.Lock()
	defer n.side.mu.Unlock()
	if p.PerSecond > 0 && len(n.side.followers) >= followersMax {
		return fmt.Errorf("node: flows still follow %d earlier changes, paced; wait, or follow this one at once: %w", len(n.side.followers), ErrBusy)
	}
	return nil
}

// following says which flows follow one change, and how.
type following struct {
	listeners map[string]bool // that changed, or went
	backends  map[string]bool // that went, changed in their rules, or have lost endpoints
	// What a later change has touched it alone says what to do with.
	laterListeners, laterBackends map[string]bool
	on                            string // the policy's
	end                           bool   // flows may be ended
}

func newFollowing(plan config.Plan, p FlowsPolicy, end bool) *following {
	x := &following{listeners: map[string]bool{}, backends: map[string]bool{}, laterListeners: map[string]bool{}, laterBackends: map[string]bool{}, on: p.On, end: end}
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
		if !sameRules(b.Old, b.New) {
			x.backends[b.New.Ref.Name] = true
		}
	}
	for _, e := range plan.EndpointsRemoved {
		x.backends[e.Backend] = true
	}
	for _, e := range plan.EndpointsChanged {
		if !e.Old.SameServer(e.New) {
			x.backends[e.New.Backend] = true
		}
	}
	return x
}

// does is what flows of a listener do at this change, of which heir is what has
// come after it; nil is nothing.
func (x *following) does(heir *config.Listener) config.Change {
	what := config.KeepFlows // it is gone, and has nothing to say
	switch {
	case x.on != "":
		what = changeOf[x.on]
	case heir != nil:
		what = heir.OnChange
	}
	if what == config.CloseFlows && !x.end || what == config.AdoptFlows && heir == nil {
		return config.KeepFlows
	}
	return what
}

// any tells whether any flow may have anything to do.
func (x *following) any(c *config.Config) bool {
	if len(x.listeners)+len(x.backends) == 0 {
		return false
	}
	if x.on != "" {
		return changeOf[x.on] != config.KeepFlows
	}
	for _, l := range c.Listeners {
		if l.OnChange != config.KeepFlows {
			return true
		}
	}
	return false
}

// wants is what f has to do: nothing unless it is under an object that this
// change has replaced, and still is.
func (x *following) wants(r *ruling, f *flow.Flow) config.Change {
	name, b := f.Listener().Ref.Name, f.Backend()
	if !x.listeners[name] && (b == nil || !x.backends[b.Ref.Name]) || !r.old(f) {
		return config.KeepFlows
	}
	if x.laterListeners[name] || b != nil && x.laterBackends[b.Ref.Name] {
		return config.KeepFlows
	}
	return x.does(r.heir(f.Listener()))
}

// followAll lets flows under objects that plan has replaced follow c, which is in
// force as of a generation of the desired state, as p or each one's listener says; without end none is ended
// for it. It gives how many are still to follow when it returns. The caller holds
// change.
func (n *Node) followAll(plan config.Plan, c *config.Config, generation uint64, p FlowsPolicy, end bool, r *Report) (left int) {
	n.side.noteLeft(time.Now(), plan)
	x := newFollowing(plan, p, end)
	n.side.supersede(x)
	if !x.any(c) {
		return 0
	}
	if p.PerSecond > 0 {
		return n.followSlowly(x, p, generation)
	}
	rule := newRuling(c)
	waiting := n.waitAt(x)
	for _, l := range n.shared.Loops {
		if !waiting && !x.concerns(l) {
			continue // no flow need be looked at
		}
		adopt, kill := x.list(l, rule)
		for len(adopt) > 0 {
			adopt = adopt[n.adoptSome(l, x, rule, adopt[:min(changeChunk, len(adopt))], r):]
		}
		for some := range slices.Chunk(kill, changeChunk) {
			r.Closed += n.endSome(l, x, rule, some)
		}
	}
	return 0
}

// concerns tells whether any flow of a loop that has an endpoint, or needs none,
// is under an old object of these names, by the loop's counts.
func (x *following) concerns(l *loop.Loop) (any bool) {
	l.Ask(func(l *loop.Loop) {
		l.OldObjects(func(o loop.OldObject) {
			any = any || o.Ref.Kind == config.ListenerKind && x.listeners[o.Ref.Name] || o.Ref.Kind == config.BackendKind && x.backends[o.Ref.Name]
		})
	})
	return any
}

// waitAt tells whether flows wait for an endpoint of what changes: they are in no
// loop's counts of backends.
func (n *Node) waitAt(x *following) bool {
	for name := range x.backends {
		if n.shared.Ledger.Backend(name).Waiting() > 0 {
			return true
		}
	}
	return false
}

// list lists the flows of a loop that adopt the change and those that it ends.
func (x *following) list(l *loop.Loop, r *ruling) (adopt, kill []tenant) {
	for from, more := uint32(0), true; more; {
		l.Ask(func(l *loop.Loop) {
			from, more = l.Look(from, lookPlaces, func(i uint32, f *flow.Flow) {
				switch x.wants(r, f) {
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

// adoptSome puts listed flows under the objects in force, if they are still there
// and still under old ones, within one turn. It tells how many of the list are
// dealt with.
func (n *Node) adoptSome(l *loop.Loop, x *following, rule *ruling, list []tenant, r *Report) (dealt int) {
	dealt = len(list)
	l.Ask(func(l *loop.Loop) {
		slots, upTo := present(l, list, func(f *flow.Flow) bool { return x.wants(rule, f) == config.AdoptFlows })
		if len(slots) == 0 {
			return
		}
		inTurn := n.keepTurns(l, slots)
		remade, k := l.Remake(slots, adopting{rule.c, n.registry}, r.paused)
		inTurn()
		r.parked(remade)
		dealt = upTo[k-1]
	})
	return dealt
}

// endSome ends listed flows, if they are still there and still to be ended, within
// one turn. It tells how many.
func (n *Node) endSome(l *loop.Loop, x *following, rule *ruling, list []tenant) (ended int) {
	l.Ask(func(l *loop.Loop) {
		for _, t := range list {
			if f := t.in(l); f != nil && x.wants(rule, f) == config.CloseFlows {
				l.Kill(t.slot)
				ended++
			}
		}
	})
	return ended
}
