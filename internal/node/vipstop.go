package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// errTurn is that a VIP is being moved or taken already, or an upgrade is under way.
var errTurn = errors.New("another VIP is being moved from here, or taken, or this process is being upgraded; try again when that is done")

// leaveLook is the time between two looks whether a VIP has gone.
const leaveLook = 20 * time.Millisecond

// LeaveVIPs moves the VIPs of this node, which is about to end, to others that answer, each
// with its flows, and returns when they are there, nobody else can take what is left, or
// ctx ends; SettleVIPs waits for the rest. Nothing else changes: no mark says that the node is to be free, so its servers go on to be
// used, and when it is back its VIPs stay where they are until somebody says holdfast return.
func (n *Node) LeaveVIPs(ctx context.Context, tell func(string)) {
	c := n.Config()
	if c.Cluster == nil || c.Cluster.Stay || n.inCharge() != nil {
		return
	}
	k := &n.addresses
	k.mu.Lock()
	k.leaves = true // so none comes
	k.mu.Unlock()
	mine := n.ownVIPs()
	plan := map[string]string{}
	for _, v := range mine {
		err := error(nil)
		if v.State != "owned" {
			err = fmt.Errorf("node: it is %s", v.State)
		}
		if err == nil {
			plan[v.Name], err = n.refuge("", plan)
			for err != nil && time.Since(n.started) < heardMax && sleep(ctx, leaveLook) == nil {
				plan[v.Name], err = n.refuge("", plan) // who has just begun has heard of nobody yet
			}
		}
		if err == nil {
			tell(fmt.Sprintf("VIP %s goes to %s", v.Name, plan[v.Name]))
			for {
				if err = n.MigrateVIP(ctx, MigrateRequest{VIP: v.Name, To: plan[v.Name]}, nil); !errors.Is(err, errTurn) {
					break
				}
				if sleep(ctx, leaveLook) != nil {
					break
				}
			}
		}
		if errors.Is(err, ErrHandedOver) {
			return // an upgrade came first
		}
		if err != nil {
			n.log.Warn("a vip stays on a node that ends, and will be silent", "vip", v.Name, "error", bare{err})
			tell(fmt.Sprintf("VIP %s stays here: %v", v.Name, bare{err}))
		}
	}
}

// SettleVIPs waits until nothing has to be sent on any more of the VIPs that have gone from this
// node, or ctx ends.
func (n *Node) SettleVIPs(ctx context.Context, tell func(string)) {
	c := n.Config()
	if c.Cluster == nil {
		return
	}
	said := ""
	for {
		text := strings.Join(n.settling(c.Cluster.Settle), ", ")
		if text == "" {
			return
		}
		if text != said {
			said = text
			tell(text)
		}
		if sleep(ctx, leaveLook) != nil {
			return
		}
	}
}

// settling names VIPs that have gone and for which segments are still sent on.
func (n *Node) settling(settle time.Duration) (all []string) {
	k := &n.addresses
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, v := range k.seats {
		if g := v.guest; g.on && g.to != "" {
			all = append(all, fmt.Sprintf("VIP %s is on %s; what comes late is sent on for %v", name, g.to, settle))
		}
	}
	return all
}
