package node

import "github.com/holdfast-lb/holdfast/internal/config"

// impactOf counts what a plan does to objects and to what is open under them.
func (n *Node) impactOf(plan config.Plan, old, next *config.Config, p FlowsPolicy) Impact {
	i := Impact{
		ListenersAdded: len(plan.ListenersAdded), ListenersRemoved: len(plan.ListenersRemoved), ListenersChanged: len(plan.ListenersChanged),
		BackendsAdded: len(plan.BackendsAdded), BackendsRemoved: len(plan.BackendsRemoved), BackendsChanged: len(plan.BackendsChanged),
		EndpointsAdded: len(plan.EndpointsAdded), EndpointsRemoved: len(plan.EndpointsRemoved), EndpointsChanged: len(plan.EndpointsChanged),
	}
	for _, c := range plan.EndpointsChanged {
		was := *c.Old
		was.Weight, was.Ref = c.New.Weight, c.New.Ref
		if was == *c.New {
			i.WeightsChanged++
		}
	}
	n.impactOnFlows(plan, old, next, p, &i)
	return i
}
