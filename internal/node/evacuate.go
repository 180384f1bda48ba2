package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/loop"
)

const (
	// evacuateLook is the time between two looks whether a node is free.
	evacuateLook = 250 * time.Millisecond
	// evacuateDrain is how long what still points at a node may go on if nobody says
	// otherwise.
	evacuateDrain = drainTime
)

// Evacuate frees a node, this one or another: its servers get nothing new on any
// node, its VIPs go elsewhere with their flows, and it ends when nothing points at the
// node any more. ctx ends it between two steps and takes the mark off the node again;
// a VIP that has gone stays where it is.
func (n *Node) Evacuate(ctx context.Context, q EvacuateRequest, tell func(Progress)) error {
	return n.moved(ctx, q.Guard, q, "evacuate", q.Node, tell, func(ctx context.Context, x *moveOf) error { return n.evacuate(ctx, q, x) })
}

// Return ends an evacuation: the node's servers get what is new again, and the VIPs
// whose home it is come back, each with its flows.
func (n *Node) Return(ctx context.Context, q ReturnRequest, tell func(Progress)) error {
	return n.moved(ctx, q.Guard, q, "return", q.Node, tell, func(ctx context.Context, x *moveOf) error { return n.comeBack(ctx, q, x) })
}

// Relocate moves a VIP with its flows to another host, from whichever host owns it, or
// flows of this one alone.
func (n *Node) Relocate(ctx context.Context, q MigrateRequest, tell func(Progress)) error {
	at := ""
	if q.VIP != "" {
		v, err := n.vipOf(q.VIP)
		if err != nil {
			return err
		}
		at = v.Owner
	}
	return n.moved(ctx, q.Guard, q, "migrate", at, tell, func(ctx context.Context, x *moveOf) error { return n.relocate(ctx, q, x) })
}

// relocate is Relocate at the node that has what is moved.
func (n *Node) relocate(ctx context.Context, q MigrateRequest, x *moveOf) error {
	x.s.VIP, x.s.To = q.VIP, q.To
	switch {
	case q.Share < 0 || q.Share > 1:
		return fmt.Errorf("node: a share of %g: want more than 0, and 1 at most", q.Share)
	case q.VIP != "" && q.Share != 0:
		return errors.New("node: a VIP moves with all its flows; a share is of flows alone")
	case q.Drain < 0:
		return fmt.Errorf("node: %v is no time to drain in", q.Drain)
	case q.VIP == "":
		return n.moveFlows(ctx, q, x)
	}
	if v, err := n.vipOf(q.VIP); err != nil {
		return err
	} else if v.Owner == q.To {
		return fmt.Errorf("node: %s has the VIP %s already: %w", q.To, q.VIP, errThere)
	}
	if err := n.mayTake(q.To); err != nil {
		return err
	}
	return n.MigrateVIP(ctx, q, x.say)
}

// errThere: what is to move is where it should go.
var errThere = errors.New("there is nothing to move")

// moveFlows moves flows without their VIP.
func (n *Node) moveFlows(ctx context.Context, q MigrateRequest, x *moveOf) error {
	t, err := n.talk(ctx, q.To)
	if err != nil {
		return err
	}
	defer t.Close()
	if err := n.mayTake(q.To); err != nil {
		return err
	}
	// Those of a VIP with a name go with it: its address passes on its owner alone.
	alone := false
	for _, l := range n.Config().Listeners {
		alone = alone || l.Movable && l.VIPName == ""
	}
	if !alone {
		return fmt.Errorf("node: %w", &frozen.Refused{What: "flows", Why: "no listener has a movable address of its own, and those of a VIP go with it: holdfast migrate --vip; to spread load, give each node a VIP of its own (docs/limits.md)"})
	}
	some := shareOf(q.Share)
	want := func(f *flow.Flow) bool { return f.Listener().VIPName == "" && (some == nil || some(f)) }
	// Idle legs to backends do not move: some are dialled from an address that does.
	for _, l := range n.shared.Loops {
		l.Ask(func(l *loop.Loop) { l.CloseIdle("") })
	}
	r, err := t.Flows(ctx, want, x.say)
	if r != nil {
		r.FromNode, r.ToNode = n.Config().Node.Name, q.To
	}
	x.report(r)
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("aborted: %s moved, and stay on %s, longest pause %.0f ms", count(r.Flows, "flow"), q.To, r.Pause.Max/1000)
		} else {
			err = fmt.Errorf("node: after %s moved to %s, %d lost: %w", count(r.Flows, "flow"), q.To, r.Lost, err)
		}
		return err
	}
	x.say(Progress{Phase: "done", Done: true, Flows: r.Flows, FlowsTotal: r.Flows, Octets: r.Octets, Pause: r.Pause, Move: r,
		Text: fmt.Sprintf("%s moved to %s, %d lost; their addresses stay here", count(r.Flows, "flow"), q.To, r.Lost)})
	return nil
}

// shareOf says which flows make a share of all; nil is all. A flow's number says it,
// so that another pass wants the same ones.
func shareOf(share float64) func(f *flow.Flow) bool {
	if share == 0 || share == 1 {
		return nil
	}
	most := uint64(share * (1 << 32))
	return func(f *flow.Flow) bool { return spread(f.ID()) < most }
}

// spread makes 32 bits of a flow's number that are as good as chance; the numbers
// themselves count up. Of "Fibonacci hashing", Knuth, The Art of Computer Programming
// volume 3, 6.4.
func spread(id uint64) uint64 { return id * 0x9e3779b97f4a7c15 >> 32 }

// mayTake refuses to send something to a node that is to be free.
func (n *Node) mayTake(to string) error {
	if n.marks.evacuating(to) {
		return fmt.Errorf("node: %w", &frozen.Refused{What: to, Why: "it is being evacuated; holdfast return ends that"})
	}
	return nil
}

// vipOf is a VIP of the configuration.
func (n *Node) vipOf(name string) (*VIPStatus, error) {
	var names []string
	for _, v := range n.VIPs() {
		if v.Name == name {
			return &v, nil
		}
		names = append(names, v.Name)
	}
	if len(names) == 0 {
		return nil, missingf("node: there is no VIP %q, nor any other: vips of the configuration names them", name)
	}
	return nil, missingf("node: there is no VIP %q; there are: %s", name, strings.Join(names, ", "))
}

// evacuate is Evacuate at the node that is to be free.
func (n *Node) evacuate(ctx context.Context, q EvacuateRequest, x *moveOf) (err error) {
	c, self := n.Config(), n.Config().Node.Name
	x.s.From, x.s.To = self, q.To
	switch {
	case c.Cluster == nil:
		return errors.New("node: the configuration has no cluster section, so there is no other host; see docs/operate.md")
	case q.To == self:
		return fmt.Errorf("node: %s is the node that is to be free", q.To)
	case q.Drain < 0:
		return fmt.Errorf("node: %v is no time to drain in", q.Drain)
	}
	if q.To != "" {
		if _, ok := c.Cluster.Peers[q.To]; !ok {
			return missingf("node: there is no node %q; there are: %s", q.To, strings.Join(c.Cluster.SortedPeers(), ", "))
		}
		if err := n.mayTake(q.To); err != nil {
			return err
		}
	}
	mine := n.ownVIPs()
	plan := map[string]string{} // VIP -> where it goes
	for _, v := range mine {
		if plan[v.Name], err = n.refuge(q.To, plan); err != nil {
			return err
		}
	}
	x.say(Progress{Phase: "plan", From: self, To: q.To, Text: planLine(self, mine, plan, n.flows())})
	unheard, err := n.setEvacuating(ctx, true, q.Author)
	if err != nil {
		return err
	}
	gone := 0
	defer func() {
		if err == nil || n.handedOver() {
			return
		}
		// The node serves again: what is half evacuated would take nothing new, unnoticed.
		back, done := context.WithTimeout(context.WithoutCancel(ctx), answerTime)
		defer done()
		if _, bad := n.setEvacuating(back, false, q.Author); bad != nil {
			err = errors.Join(err, bad)
			return
		}
		if errors.Is(err, context.Canceled) { // while it waited
			err = errors.New("aborted")
		}
		if gone > 0 {
			err = fmt.Errorf("%w; %s serves again, and %d of %d VIPs stay where they have gone: holdfast return brings back those whose home it is", err, self, gone, len(mine))
		} else {
			err = fmt.Errorf("%w; %s serves again", err, self)
		}
	}()
	text := "servers on " + self + " get nothing new on any node"
	if len(unheard) > 0 {
		text += "; not heard of: " + strings.Join(unheard, ", ")
	}
	x.say(Progress{Phase: "evacuating", Text: text})
	all := newReport("host")
	all.FromNode, all.ToNode = self, q.To
	for _, v := range mine {
		err := n.MigrateVIP(ctx, MigrateRequest{Guard: q.Guard, VIP: v.Name, To: plan[v.Name], Drain: q.Drain}, x.within(all))
		if err != nil {
			return fmt.Errorf("node: VIP %s: %w", v.Name, bare{err})
		}
		gone++
	}
	x.report(all)
	if err := n.untilFree(ctx, q, x, all); err != nil {
		return err
	}
	x.say(Progress{Phase: "done", Done: true, From: self, To: q.To, Flows: all.Flows, FlowsTotal: all.Flows, Octets: all.Octets, Pause: all.Pause, Move: all,
		Text: freeLine(self, plan, all)})
	return nil
}

// bare is an error without the name of this package, inside of another one of it.
type bare struct{ error }

// Error is what the error says, but for the name.
func (b bare) Error() string { return strings.TrimPrefix(b.error.Error(), "node: ") }

// Unwrap is the error.
func (b bare) Unwrap() error { return b.error }

// planLine says what an evacuation is about to do.
func planLine(self string, mine []VIPStatus, plan map[string]string, flows int) string {
	if len(mine) == 0 {
		return fmt.Sprintf("plan: %s owns no VIP; its servers get nothing new, and what uses them ends by itself", self)
	}
	var all []string
	for _, v := range mine {
		all = append(all, v.Name+" -> "+plan[v.Name])
	}
	return fmt.Sprintf("plan: %s; %s leave %s", strings.Join(all, ", "), count(flows, "flow"), self)
}

// freeLine says that a node is free, and what to do then.
func freeLine(self string, plan map[string]string, r *Report) string {
	cut := ""
	if r.Cut > 0 {
		cut = fmt.Sprintf(", %d ended by --cut", r.Cut)
	}
	if len(plan) == 0 {
		return self + " is free: it owned no VIP, and nothing uses its servers" + cut + "; reboot, then: holdfast return"
	}
	where := strings.Join(slices.Compact(slices.Sorted(maps.Values(plan))), " and ")
	return fmt.Sprintf("%s is free: %s and %s on %s, %d lost%s; reboot, then: holdfast return", self, count(len(plan), "VIP"), count(r.Flows, "flow"), where, r.Lost, cut)
}

// thousands writes a number with commas.
func thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// ownVIPs are those that this node owns now.
func (n *Node) ownVIPs() (out []VIPStatus) {
	for _, v := range n.VIPs() {
		if v.Owner == n.Config().Node.Name {
			out = append(out, v)
		}
	}
	return out
}

// refuge is the node to which a VIP goes: the one that was asked for, else of those
// with the same labels that answer and are not being evacuated the one with fewest
// flows, for which what the plan sends there already counts.
func (n *Node) refuge(to string, plan map[string]string) (string, error) {
	if to != "" {
		return to, nil
	}
	c := n.Config()
	own := c.Cluster.Nodes[c.Node.Name]
	best, least := "", 0
	var not []string // who does not come into question, and why
	for _, name := range c.Cluster.SortedPeers() {
		peer := c.Cluster.Nodes[name]
		if own == nil || peer == nil || name == c.Node.Name {
			continue
		}
		load, heard := n.marks.load(name, time.Now())
		why := ""
		switch {
		case !maps.Equal(own.Labels, peer.Labels):
			why = "has other labels"
		case n.marks.evacuating(name):
			why = "is being evacuated"
		case !heard:
			why = "does not answer"
		}
		if why != "" {
			not = append(not, name+" "+why)
			continue
		}
		for _, other := range plan {
			if other == name {
				load += 1 + n.flows()/max(1, len(plan))
			}
		}
		if best == "" || load < least {
			best, least = name, load
		}
	}
	if best == "" {
		return "", fmt.Errorf("node: %w", &frozen.Refused{What: "no node can take a VIP of " + c.Node.Name, Why: strings.Join(not, ", ") + "; --to says where to", Retry: true})
	}
	return best, nil
}

// comeBack is Return at the node that returns.
func (n *Node) comeBack(ctx context.Context, q ReturnRequest, x *moveOf) error {
	c, self := n.Config(), n.Config().Node.Name
	x.s.To = self
	switch {
	case c.Cluster == nil:
		return errors.New("node: the configuration has no cluster section, so there is no other host; see docs/operate.md")
	case q.Drain < 0:
		return fmt.Errorf("node: %v is no time to drain in", q.Drain)
	}
	var home []VIPStatus
	for _, v := range n.VIPs() {
		if v.Home == self && v.Owner != self && !q.Stay {
			home = append(home, v)
		}
	}
	was := n.marks.evacuating(self)
	unheard, err := n.setEvacuating(ctx, false, q.Author)
	if err != nil {
		return err
	}
	text := self + " serves again"
	if !was {
		text = self + " was not evacuated"
	}
	for _, v := range home {
		text += fmt.Sprintf(", %s comes back from %s", v.Name, v.Owner)
	}
	if len(unheard) > 0 {
		text += "; not heard of: " + strings.Join(unheard, ", ")
	}
	x.say(Progress{Phase: "plan", To: self, Text: text})
	all := newReport("host")
	all.ToNode = self
	from := map[string]bool{}
	for _, v := range home {
		from[v.Owner] = true
		m := MigrateRequest{Guard: q.Guard, VIP: v.Name, To: self, Drain: q.Drain}
		if err := n.order(ctx, v.Owner, "migrate", m, x.within(all)); err != nil {
			return fmt.Errorf("node: VIP %s stays on %s: %w", v.Name, v.Owner, bare{deadOwner(err, v.Name, v.Owner)})
		}
	}
	x.report(all)
	all.FromNode = strings.Join(slices.Sorted(maps.Keys(from)), ", ")
	line := self + " is back"
	if len(home) > 0 {
		line = fmt.Sprintf("%s is back: %s and %s came from %s, %d lost", self, count(len(home), "VIP"), count(all.Flows, "flow"), all.FromNode, all.Lost)
	}
	x.say(Progress{Phase: "done", Done: true, To: self, Flows: all.Flows, FlowsTotal: all.Flows, Octets: all.Octets, Pause: all.Pause, Move: all, Text: line})
	return nil
}

// Take gives this node a VIP whose owner is dead, as only an operator can know.
func (n *Node) Take(ctx context.Context, q TakeRequest, tell func(Progress)) error {
	return n.moved(ctx, q.Guard, q, "take", "", tell, func(ctx context.Context, x *moveOf) error {
		if _, err := n.vipOf(q.VIP); err != nil {
			return err
		}
		x.s.VIP, x.s.To = q.VIP, n.Config().Node.Name
		return n.TakeVIP(ctx, q.VIP, x.say)
	})
}
