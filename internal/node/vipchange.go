package node

import (
	"fmt"
	"maps"
	"slices"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/vip"
)

// mayLoseVIPs refuses a configuration that takes a VIP away with what is on it: without a
// lease nothing of its flows passes any more, and what is sent on is sent nowhere.
func (n *Node) mayLoseVIPs(c *config.Config) error {
	k := &n.addresses
	k.mu.Lock()
	var gone []*vipSeat
	for _, name := range slices.Sorted(maps.Keys(k.seats)) {
		v := k.seats[name]
		if now := c.VIPs[name]; now == nil || now.Address != v.at {
			gone = append(gone, v)
		}
	}
	reader := n.reader()
	k.mu.Unlock()
	for _, v := range gone {
		flows := len(n.flowsOn(v.addr(), nil)) // of the loops, so not under mu
		k.mu.Lock()
		r, g := v.seat.Record(), v.guest
		k.mu.Unlock()
		why := ""
		switch {
		case r.Stage == vip.Moving && (r.From == n.self() || r.Owner == n.self()), r.Stage == vip.Yielded && r.Owner == n.self():
			why = fmt.Sprintf("it is being moved (%v): when that is done", r)
		case g.on:
			why = "what comes late for it is sent on, or comes, still: when it has settled"
		case reader && r.Holder() == n.self():
			why = "this node owns it: not by an upgrade, but with a reload before or after it"
		case flows > 0:
			why = fmt.Sprintf("%s here are on it, and would be lost: take its listeners out of the file first, and let them end, or move it away", count(flows, "flow"))
		default:
			continue
		}
		what := "goes away"
		if now := c.VIPs[v.name]; now != nil {
			what = fmt.Sprintf("gets another address, %v", now.Address)
		}
		return fmt.Errorf("node: VIP %s (%v) %s in this configuration: %s", v.name, v.at, what, why)
	}
	return nil
}
