package node

import (
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/loop"
)

// ClusterLook is the cluster as one node sees it.
type ClusterLook struct {
	Nodes       []NodeStatus
	VIPs        []VIPStatus
	Moving      *Progress // the last step of a move that is under way
	LastMove    *MoveStatus
	HostResidue []HostResidue
	Free        bool // this node is evacuated, and nothing points at it
}

// clusterLook looks at the cluster.
func (n *Node) clusterLook() (x ClusterLook) {
	c := n.Config()
	if c.Cluster == nil {
		return x
	}
	x.Nodes, x.VIPs = n.NodesSeen(), n.explained(n.VIPs())
	m := &n.moves
	m.mu.Lock()
	x.Moving, x.LastMove = m.now, m.last
	m.mu.Unlock()
	flows := n.flowsOfVIPs()
	self := c.Node.Name
	x.Free = n.marks.evacuating(self) && n.usersHere(self) == 0 && !n.marks.used(self) && n.hostCounters()["diverted_tuples"] == 0
	for _, v := range x.VIPs {
		if v.State != "elsewhere" {
			x.Free = false
		}
	}
	x.HostResidue = n.HostResidues()
	for _, k := range flows {
		x.Free = x.Free && k == 0
	}
	return x
}

// flowsOfVIPs counts the flows of movable listeners by the name of their VIP; "" are
// those of addresses without a name.
func (n *Node) flowsOfVIPs() map[string]int {
	out := map[string]int{}
	for _, l := range n.shared.Loops {
		l.Ask(func(l *loop.Loop) {
			l.Slots(0, func(f *flow.Flow) bool {
				if x := f.Listener(); x.Movable {
					out[x.VIPName]++
				}
				return false
			})
		})
	}
	return out
}

// gather adds what is counted of moves.
func (m *moves) gather(g *gathering) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, result := range moveResults {
		g.add(vipMoves, float64(m.results[result]), result)
	}
}

// gatherCluster adds how the cluster is.
func (n *Node) gatherCluster(g *gathering) {
	x := n.clusterLook()
	for _, v := range x.VIPs {
		g.add(vipOwned, one(v.LeaseSeconds > 0 && v.Owner == n.Config().Node.Name), v.Name)
		g.add(vipEpoch, float64(v.Epoch), v.Name)
		g.add(vipLease, v.LeaseSeconds, v.Name)
		g.add(vipSilent, one(v.State == "silent"), v.Name)
		g.add(hostResidue, 0, v.Name)
	}
	for _, r := range x.HostResidue {
		g.add(hostResidue, float64(r.Flows), r.VIP)
	}
	for _, o := range x.Nodes {
		g.add(nodeEvacuating, one(o.Evacuating), o.Name)
		silence := o.HeardSeconds
		if silence < 0 {
			silence = time.Since(n.started).Seconds()
		}
		g.add(nodeSilence, silence, o.Name)
	}
}
