package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// moved prints what a move has done, which method asks for.
func moved[Q any](c *client, method func(context.Context, *Q) (*api.Report, error), q *Q, verb string) error {
	var r node.Report
	told, err := ask(c, method, q, &r)
	if err != nil || !told {
		return err
	}
	if r.Plan != "" {
		fmt.Print(r.Plan)
	}
	fmt.Println(reportLine(&r, verb))
	if r.Lost > 0 {
		return &exit{code: exitFailed}
	}
	return nil
}

// reportLine is what a move has done, without its plan.
func reportLine(r *node.Report, verb string) string {
	if r.Unchanged {
		return fmt.Sprintf("%s in %.1f ms: unchanged, generation %d", verb, r.Millis, r.Generation)
	}
	out := fmt.Sprintf("%s in %.1f ms: %s moved with %d octets", verb, r.Millis, count(r.Flows, "flow"), r.Octets)
	if r.Flows > 0 {
		out += fmt.Sprintf(", pause p50 %.2f ms, p99 %.2f ms, max %.2f ms", r.Pause.P50/1000, r.Pause.P99/1000, r.Pause.Max/1000)
	}
	if r.IdleLegs > 0 {
		out += fmt.Sprintf(", %s along", count(r.IdleLegs, "idle leg"))
	}
	if r.Closed > 0 {
		out += fmt.Sprintf(", %d closed as configured", r.Closed)
	}
	for _, why := range sortedKeys(r.Reasons) {
		out += fmt.Sprintf(", %d stayed (%s)", r.Reasons[why], why)
	}
	return fmt.Sprintf("%s, %d lost", out, r.Lost)
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func rebalanceCommand() *cobra.Command {
	var all bool
	var g guarded
	var share, to string
	x := &cobra.Command{
		Use:   "rebalance [--share 30% --to NODE]",
		Short: "Move flows between event loops until they are even, or a share of them to another host",
		Long: "Without flags flows move between the event loops of this process until they are even.\n\n" +
			"With --share and --to that part of the flows of listeners with `movable: true` moves to another host. Their\n" +
			"addresses stay: this host accepts what is new, and sends on what comes for flows that have gone.",
		Example: "  holdfast rebalance\n  holdfast rebalance --share 30% --to n3",
		Args:    wants(0, 0, "no argument"),
		RunE: asking(func(c *client, _ []string) error {
			switch {
			case (share == "") != (to == ""):
				return &exit{exitUsage, errors.New("rebalance: --share and --to go together")}
			case all && to != "":
				return &exit{exitUsage, errors.New("rebalance: --all is between loops; --share 100% moves all to another host")}
			case to == "":
				return moved(c, c.api.Rebalance, &api.RebalanceRequest{All: all}, "rebalanced")
			}
			part, err := strconv.ParseFloat(strings.TrimSuffix(share, "%"), 64)
			if err != nil || part <= 0 || part > 100 || !strings.HasSuffix(share, "%") {
				return &exit{exitUsage, fmt.Errorf("rebalance: %q is no share: from 1%% to 100%%", share)}
			}
			q := node.MigrateRequest{Guard: g.guard(), To: to, Share: part / 100}
			return c.moving(hostMove{what: "migrate"}, c.migrate(q))
		}),
	}
	g.register(x)
	x.Flags().BoolVar(&all, "all", false, "move every flow to the next loop")
	x.Flags().StringVar(&share, "share", "", "with --to: which part of the flows moves, as 30%")
	x.Flags().StringVar(&to, "to", "", "with --share: a node named in the configuration")
	return x
}
