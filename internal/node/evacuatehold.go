package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/loop"
)

// holding is one thing that keeps a node from being free, and the command that ends it; "" is
// what ends by itself soon.
type holding struct{ what, ends string }

// String is both.
func (h holding) String() string {
	if h.ends == "" {
		return h.what
	}
	return h.what + " (" + h.ends + ")"
}

// endsTime is how long what ends by itself may take, beside the time in which a VIP settles.
const endsTime = 10 * time.Second

// untilFree waits until nothing points at this node any more, and at last ends what does if q says
// so. all is told what was in the way.
func (n *Node) untilFree(ctx context.Context, q EvacuateRequest, x *moveOf, all *Report) error {
	self, drain := n.self(), q.Drain
	if drain == 0 {
		drain = evacuateDrain
	}
	itself := endsTime
	if c := n.Config().Cluster; c != nil {
		itself += c.Settle
	}
	deadline, cut, said := time.Now().Add(drain), false, ""
	for {
		left := n.pointing(ctx)
		all.Holding = nil
		for _, h := range left {
			all.Holding = append(all.Holding, h.String())
		}
		if len(left) == 0 {
			return nil
		}
		held := slices.ContainsFunc(left, func(h holding) bool { return h.ends != "" })
		if over := time.Now().After(deadline); over && held && q.Cut && !cut {
			cut, deadline = true, time.Now()
			k, err := n.cutUsers(ctx, self)
			all.Cut += k
			x.say(Progress{Phase: "cutting", Cut: k, Text: fmt.Sprintf("%s ended by RST, as --cut says", count(k, "flow"))})
			if err != nil {
				return err
			}
			continue
		} else if over && held && !cut || time.Since(deadline) > itself {
			return notFree(self, drain, left, q.Cut)
		}
		var texts []string
		for _, h := range left {
			texts = append(texts, h.what)
		}
		if text := strings.Join(texts, ", "); text != said {
			said = text
			if wait := time.Until(deadline).Round(time.Second); held && wait > 0 && q.Cut {
				text += fmt.Sprintf("; flows are ended in %v", wait)
			} else if held && wait > 0 {
				text += fmt.Sprintf("; it fails if flows are here in %v (--cut would end them)", wait)
			}
			x.say(Progress{Phase: "settling", Text: "still here: " + text})
		}
		if err := sleep(ctx, evacuateLook); err != nil {
			return err
		}
	}
}

// notFree is the error of an evacuation whose time is over.
func notFree(self string, drain time.Duration, left []holding, cut bool) error {
	var texts []string
	help := ""
	for _, h := range left {
		texts = append(texts, h.String())
		if h.ends != "" && !cut {
			help = "; or all at once: holdfast evacuate --node " + self + " --drain 1s --cut"
		}
	}
	return fmt.Errorf("node: %s is not free after %v: %s%s", self, drain, strings.Join(texts, ", "), help)
}

// pointing names what still points at this node: VIPs, flows of movable listeners,
// tuples that are sent on, and flows on any node that use servers of this one.
func (n *Node) pointing(ctx context.Context) (left []holding) {
	self := n.self()
	add := func(ends, format string, args ...any) {
		left = append(left, holding{fmt.Sprintf(format, args...), ends})
	}
	for _, v := range n.VIPs() {
		if v.State != "elsewhere" {
			add("", "VIP %s (%s)", v.Name, v.State)
		}
	}
	stay := n.movableHere()
	for _, listener := range slices.Sorted(maps.Keys(stay)) {
		add(killOn(self, "--listener "+listener), "%s of listener %s that could not move", count(stay[listener], "flow"), listener)
	}
	if k := n.hostCounters()["diverted_tuples"]; k > 0 {
		add("", "%s that are sent on", count(int(k), "tuple"))
	}
	for _, name := range append([]string{self}, n.peers()...) {
		users, err := n.usersOf(ctx, name, self)
		_, heard := n.marks.load(name, time.Now())
		switch {
		case err != nil && !heard: // it was named when this began; waiting for the dead frees nobody
		case err != nil:
			add("", "%s does not say whether it uses servers here", name)
		}
		for _, endpoint := range slices.Sorted(maps.Keys(users)) {
			add(killOn(name, "--endpoint "+endpoint), "%s on %s with %s here", count(users[endpoint], "flow"), name, endpoint)
		}
	}
	return left
}

// killOn is the command that ends flows on a node.
func killOn(node, filter string) string {
	return "on " + node + ": holdfast flows kill " + filter + " --yes"
}

// movableHere counts flows of VIPs and movable addresses that are here, by listener.
func (n *Node) movableHere() map[string]int {
	out := map[string]int{}
	n.eachFlow(func(_ *loop.Loop, _ uint32, f *flow.Flow) {
		if l := f.Listener(); l.Movable {
			out[l.Ref.Name]++
		}
	})
	return out
}

// askUsers asks how much is under way at servers of a node, and askCut has that ended.
const (
	askUsers = "node.users"
	askCut   = "node.cut"
)

// answerHolding has this node answer both.
func (n *Node) answerHolding() {
	for what, f := range map[string]func(ctx context.Context, of string) (any, error){
		askUsers: func(_ context.Context, of string) (any, error) { return n.usersBy(of), nil },
		askCut:   func(ctx context.Context, of string) (any, error) { return n.cutHere(ctx, of) },
	} {
		n.answer(what, func(_ string, body json.RawMessage) (any, error) {
			var of string
			if err := json.Unmarshal(body, &of); err != nil {
				return nil, err
			}
			if n.Config().Cluster == nil {
				return nil, &frozen.Refused{What: what, Why: "no cluster any more"}
			}
			ctx, cancel := context.WithTimeout(n.ends, answerTime)
			defer cancel()
			return f(ctx, of)
		})
	}
}

// usersBy is how much is under way here at servers of a node, by endpoint.
func (n *Node) usersBy(node string) map[string]int {
	out := map[string]int{}
	for _, b := range n.Config().Backends {
		for _, e := range b.Endpoints {
			if e.Node != node {
				continue
			}
			if k := int(n.account(e.Ref.Name).InUse()); k > 0 {
				out[e.Ref.Name] = k
			}
		}
	}
	return out
}

// usersHere is the sum of usersBy.
func (n *Node) usersHere(node string) (k int) {
	for _, users := range n.usersBy(node) {
		k += users
	}
	return k
}

// usersOf is usersBy of this or of another node.
func (n *Node) usersOf(ctx context.Context, at, node string) (users map[string]int, err error) {
	if at == n.self() {
		return n.usersBy(node), nil
	}
	t, err := n.talk(ctx, at)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	return users, t.Ask(ctx, askUsers, node, &users)
}

// cutHere ends flows here that use servers of a node and, on that node itself, those that
// could not move.
func (n *Node) cutHere(ctx context.Context, node string) (int, error) {
	stay := n.self() == node
	told, err := n.killFlows(ctx, "rst", 0, newPacer(time.Now(), 0, 0, rand.Float64), func(_ *loop.Loop, _ uint32, f *flow.Flow) bool {
		e := f.Endpoint()
		return e != nil && e.Node == node || stay && f.Listener().Movable
	})
	if len(told) > 0 {
		n.log.Warn("flows were ended so that a node is free", "node", node, "flows", len(told))
	}
	return len(told), err
}

// cutUsers is cutHere on all nodes that answer.
func (n *Node) cutUsers(ctx context.Context, node string) (k int, err error) {
	k, err = n.cutHere(ctx, node)
	for _, peer := range n.peers() {
		if _, heard := n.marks.load(peer, time.Now()); !heard {
			continue
		}
		there := 0
		t, bad := n.talk(ctx, peer)
		if bad == nil {
			bad = t.Ask(ctx, askCut, node, &there)
			t.Close()
		}
		k, err = k+there, errors.Join(err, bad)
	}
	return k, err
}
