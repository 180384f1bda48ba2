package node

import (
	"sync"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/loop"
)

// impactOnFlows counts what becomes of flows, by what the ledger has counted of
// the objects that the plan changes: no flow is looked at. A flow drains that goes
// on under what is taken away: its listener, its backend, its endpoint. Where a
// backend is of several listeners, one of which changes, too, flows may be counted
// twice.
func (n *Node) impactOnFlows(plan config.Plan, old, next *config.Config, p FlowsPolicy, i *Impact) {
	x := newFollowing(plan, p, true)
	sum := map[config.Change]int{}
	for name := range x.listeners {
		k := int(n.shared.Ledger.Listener(name).InUse())
		heir := heirOf(old, next, name)
		if what := x.does(heir); what != config.KeepFlows || heir == nil {
			sum[what] += k
		}
	}
	away := map[string][]*config.Endpoint{} // by backend
	for _, e := range plan.EndpointsRemoved {
		away[e.Backend] = append(away[e.Backend], e)
	}
	for _, e := range plan.EndpointsChanged {
		if !e.Old.SameServer(e.New) {
			away[e.Old.Backend] = append(away[e.Old.Backend], e.Old)
		}
	}
	if len(x.backends) > 0 {
		n.impactOfBackends(x, away, old, next, sum)
	}
	i.FlowsAdopt, i.FlowsClosed, i.FlowsDrain = sum[config.AdoptFlows], sum[config.CloseFlows], sum[config.KeepFlows]
	i.FlowsUntouched = max(0, int(n.shared.Ledger.Node.InUse())-i.FlowsAdopt-i.FlowsClosed-i.FlowsDrain)
	i.IdleLegsClosed = n.idleAt(away)
}

// impactOfBackends counts what is under way at backends that change, unless its
// listener has been counted already.
func (n *Node) impactOfBackends(x *following, away map[string][]*config.Endpoint, old, next *config.Config, sum map[config.Change]int) {
	// Nothing to do where nothing is under way, which is most backends.
	busy := map[string]bool{}
	for name := range x.backends {
		if b := old.Backends[name]; b != nil {
			for _, e := range b.Endpoints {
				if n.shared.Ledger.Backend(name).Endpoint(e.Ref.Name).InUse() > 0 {
					busy[name] = true
				}
			}
		}
	}
	if len(busy) == 0 {
		return
	}
	users := map[string][]string{} // listeners that are not counted yet, by backend
	counted := map[string]bool{}   // backends all of whose users are
	use := func(b, name string) {
		if !busy[b] {
			return
		}
		if heir := heirOf(old, next, name); x.listeners[name] && (x.does(heir) != config.KeepFlows || heir == nil) {
			counted[b] = true
		} else {
			users[b] = append(users[b], name)
		}
	}
	for name, l := range old.Listeners {
		if l.Rules == nil {
			use(l.BackendName, name)
			continue
		}
		for _, b := range l.Rules.BackendNames() {
			use(b, name)
		}
	}
	for name := range x.backends {
		b := old.Backends[name]
		if !busy[name] || len(users[name]) == 0 && counted[name] {
			continue
		}
		what := config.KeepFlows
		for _, user := range users[name] {
			what = max(what, x.does(heirOf(old, next, user)))
		}
		whole := next.Backends[name] == nil || what != config.KeepFlows && !sameRules(b, next.Backends[name])
		list := away[name]
		if whole {
			list = b.Endpoints
		}
		for _, e := range list {
			sum[what] += int(n.shared.Ledger.Backend(name).Endpoint(e.Ref.Name).InUse())
		}
	}
}

// heirOf is what comes after a listener, be it that it goes on under another name;
// nil is nothing.
func heirOf(old, next *config.Config, name string) *config.Listener {
	if l := old.Listeners[name]; l != nil {
		return flow.Heir(next, l)
	}
	return nil
}

// idleAt counts the idle connections to endpoints, on all loops.
func (n *Node) idleAt(endpoints map[string][]*config.Endpoint) (sum int) {
	if len(endpoints) == 0 {
		return 0
	}
	var all sync.WaitGroup
	by := make([]int, len(n.shared.Loops))
	for i, l := range n.shared.Loops {
		all.Go(func() {
			l.Ask(func(l *loop.Loop) {
				for _, list := range endpoints {
					for _, e := range list {
						by[i] += l.IdleTo(e.Ref.Name)
					}
				}
			})
		})
	}
	all.Wait()
	for _, k := range by {
		sum += k
	}
	return sum
}
