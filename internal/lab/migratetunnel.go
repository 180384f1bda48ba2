package lab

import (
	"context"
	"fmt"
	"io"
)

// tunneled is the lab tunnel: the nodes are in two networks, so that segments go from one
// to the other by a tunnel while a VIP moves, and a routing daemon, which the lab
// plays, tells the network where the VIP is by the device on which it is.
func tunneled(ctx context.Context, o Options, out io.Writer, v *Verdict) error {
	x := migrateScene{name: "two networks", flows: 1000, trips: 5, rate: 500, tunnel: true}
	if o.Short {
		x.flows, x.trips, x.rate = 200, 1, 200
	}
	if o.Flows > 0 {
		x.flows = o.Flows
	}
	if o.Moves > 0 {
		x.trips = o.Moves
	}
	r := &migrateRun{migrateScene: aPair(x), scene: &scene{Options: o, ctx: ctx, out: out, v: v, doors: map[string]*Door{}}}
	defer r.close()
	return r.all()
}

// judgeRoutes judges where the network was told that the VIPs are.
func (r *migrateRun) judgeRoutes() {
	r.routes.close()
	x := r.routes
	r.routes = nil
	moved := len(r.moves) + len(r.vips) // and the first time
	r.v.Must(x.moved == moved, r.what("changes of routes"), fmt.Sprint(x.moved), fmt.Sprint(moved))
	r.v.Zero(r.what("looks that found a VIP on two hosts"), x.twice)
	r.v.Must(x.fail == nil, r.what("routes"), fmt.Sprint(x.fail), fmt.Sprint(nil))
}
