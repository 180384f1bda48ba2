package lab

import (
	"context"
	"fmt"
	"io"
)

// saturated is the lab of that name: the VIPs move while the processors have more to do
// than they can, with flows that send as fast as they are read. How long flows pause is
// then the scheduler's affair; that none is lost is the product's.
func saturated(ctx context.Context, o Options, out io.Writer, v *Verdict) error {
	x := migrateScene{name: "saturated", flows: 1000, trips: 5, rate: 1000, saturated: true}
	if o.Short {
		x.flows, x.trips, x.rate = 200, 1, 300
	}
	if o.Flows > 0 {
		x.flows = o.Flows
	}
	if o.Moves > 0 {
		x.trips = o.Moves
	}
	r := &migrateRun{migrateScene: aPair(x), scene: &scene{Options: o, ctx: ctx, out: out, v: v, doors: map[string]*Door{}}}
	defer r.close()
	if err := r.all(); err != nil {
		return fmt.Errorf("%s: %w", r.migrateScene, err)
	}
	return nil
}
