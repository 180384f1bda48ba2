package node

import "github.com/holdfast-lb/holdfast/internal/config"

// impactOnFlows counts what becomes of flows, by what the ledger has counted of
// the objects that the plan changes: no flow is looked at. Of a backend that
// several listeners use, one of which changes, too, flows may be counted twice.
func (n *Node) impactOnFlows(plan config.Plan, old, next *config.Config, p FlowsPolicy, i *Impact) {
	x := newFollowing(plan, next, p, true)
	moved := map[string]bool{} // backends of which more changes than weights
	for _, b := range plan.BackendsRemoved {
		moved[b.Ref.Name] = true
	}
	_ = moved
	all := int(n.shared.Ledger.Node.InUse())
	count := func(name string, k int) {
		if k == 0 {
			return
		}
		switch x.does(name) {
		case config.AdoptFlows:
			i.FlowsAdopt += k
		case config.CloseFlows:
			i.FlowsClosed += k
		case config.KeepFlows:
			i.FlowsDrain += k
		}
	}
	for name := range x.listeners {
		count(name, int(n.shared.Ledger.Listener(name).InUse()))
	}
	_ = old
	i.FlowsUntouched = max(0, all-i.FlowsAdopt-i.FlowsClosed-i.FlowsDrain)
}
