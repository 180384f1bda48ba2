package node

import "github.com/holdfast-lb/holdfast/internal/config"

// impactOf counts what a plan does to objects and to what is open under them.
func (n *Node) impactOf(plan config.Plan, old, next *config.Config, p FlowsPolicy) Impact {
	c := plan.Impact()
	i := Impact{
		ListenersAdded: c.ListenersAdded, ListenersRemoved: c.ListenersRemoved, ListenersChanged: c.ListenersChanged,
		// With those of which only endpoints changed: what flows name is another version.
		BackendsAdded: c.BackendsAdded, BackendsRemoved: c.BackendsRemoved, BackendsChanged: len(plan.BackendsChanged),
		EndpointsAdded: c.EndpointsAdded, EndpointsRemoved: c.EndpointsRemoved, EndpointsChanged: c.EndpointsChanged, WeightsChanged: c.WeightsChanged,
	}
	n.impactOnFlows(plan, old, next, p, &i)
	return i
}
