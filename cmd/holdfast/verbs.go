package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

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
	x := &cobra.Command{
		Use:   "rebalance",
		Short: "Move flows between event loops until they are even",
		Args:  wants(0, 0, "no argument"),
		RunE: asking(func(c *client, _ []string) error {
			return moved(c, c.api.Rebalance, &api.RebalanceRequest{All: all}, "rebalanced")
		}),
	}
	x.Flags().BoolVar(&all, "all", false, "move every flow to the next loop")
	return x
}

func migrateCommand() *cobra.Command {
	var to string
	x := &cobra.Command{
		Use:   "migrate --to NODE",
		Short: "Move the flows of movable listeners to another host",
		Args:  wants(0, 0, "no argument"),
		RunE: asking(func(c *client, _ []string) error {
			if to == "" {
				return &exit{exitUsage, errors.New("migrate: wants --to NODE, a peer named in the configuration")}
			}
			return moved(c, c.api.Migrate, &api.MigrateRequest{To: to}, "migrated to "+to)
		}),
	}
	x.Flags().StringVar(&to, "to", "", "a peer named in the configuration")
	return x
}
