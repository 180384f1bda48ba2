package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
	"github.com/holdfast-lb/holdfast/internal/node"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// evacuating are the flags of `evacuate`.
type evacuating struct {
	guarded
	node, to, hook string
	drain, wait    time.Duration
	rolling, cut   bool
}

func (f *evacuating) register(x *cobra.Command) { f.guarded.register(x) }

// heardLately is how lately a node must have answered to be one that serves.
const heardLately = 4.0

// rolling frees all nodes, one after the other: its hook is run, and it returns before
// the next one is begun. What stops it leaves the node that it was at as it is.
func (c *client) rolling(f *evacuating) error {
	ctx, end := signal.NotifyContext(context.Background(), os.Interrupt)
	defer end()
	s, err := c.status()
	if err != nil {
		return err
	}
	if len(s.Nodes) < 2 {
		return &exit{exitRefused, errors.New("refused: there is no other node: nodes of the configuration names them")}
	}
	for _, x := range s.Nodes {
		switch {
		case x.Evacuating:
			return &exit{exitRefused, fmt.Errorf("refused: %s is evacuated already; holdfast return --node %s first", x.Name, x.Name)}
		case x.HeardSeconds < 0 || x.HeardSeconds > heardLately:
			return &exit{exitRefused, fmt.Errorf("refused: %s does not answer; a rolling evacuation wants all nodes", x.Name)}
		}
	}
	// The one that is asked comes last: it is heard to the end as long as it lives.
	all := slices.Clone(s.Nodes)
	slices.SortStableFunc(all, func(a, b node.NodeStatus) int { return boolInt(a.Self) - boolInt(b.Self) })
	total, moved, worst, began := 0, 0, 0.0, time.Now()
	for i, x := range all {
		if err := ctx.Err(); err != nil {
			return &exit{exitRefused, fmt.Errorf("aborted: %d of %d nodes are done, the others are untouched", i, len(all))}
		}
		c.sayRolling(x.Name, "node", fmt.Sprintf("%s (%d of %d)", x.Name, i+1, len(all)))
		for _, step := range []struct {
			what string
			do   func() (*node.Progress, error)
		}{
			{"evacuate", func() (*node.Progress, error) {
				q := node.EvacuateRequest{Guard: f.guard(), Node: x.Name, Drain: f.drain, Cut: f.cut}
				return c.rollingStep(ctx, "evacuate", c.evacuate(q))
			}},
			{"hook", func() (*node.Progress, error) { return nil, c.hook(ctx, f, x.Name) }},
			{"wait", func() (*node.Progress, error) { return nil, c.untilHeard(ctx, f, x.Name) }},
			{"return", func() (*node.Progress, error) {
				q := node.ReturnRequest{Guard: f.guard(), Node: x.Name, Drain: f.drain}
				return c.rollingStep(ctx, "return", c.comeBack(q))
			}},
		} {
			p, err := step.do()
			if p != nil && p.Move != nil {
				moved += p.Move.Flows
				total += p.Move.Lost
				worst = max(worst, p.Move.Pause.Max)
			}
			if err != nil {
				note := fmt.Sprintf("%s: %s; %d of %d nodes are done", x.Name, step.what, i, len(all))
				switch step.what {
				case "evacuate":
				case "return": // its mark may be gone, and not all VIPs have come
					note += fmt.Sprintf("; not all has come back to %s: holdfast return there", x.Name)
				default:
					note += fmt.Sprintf("; %s stays evacuated: when it is well, holdfast return --node %s", x.Name, x.Name)
				}
				return &exit{exitFailed, fmt.Errorf("%w\n%s", err, note)}
			}
		}
	}
	c.sayRolling("", "done", fmt.Sprintf("done: %d nodes in %s, %s flows moved, %d lost; pause max %s", len(all), short(time.Since(began)), thousands(moved), total, short(microsOf(worst))))
	if total > 0 {
		return &exit{code: exitFailed}
	}
	return nil
}

// sayRolling prints what the rolling itself does.
func (c *client) sayRolling(at, phase, text string) {
	if c.json {
		_ = printMessage(&api.Progress{Phase: phase, Text: text, From: at, Done: phase == "done"})
		return
	}
	fmt.Println(text)
}

// rollingStep does one move and prints its steps.
func (c *client) rollingStep(ctx context.Context, what string, open moveSteps) (*node.Progress, error) {
	show := moveShow{json: c.json, terminal: sock.IsTerminal(os.Stdout) && !c.json}
	p, err := c.followed(ctx, hostMove{what: what}, open, show.step)
	show.newline()
	if err == nil && !c.json {
		fmt.Println(p.Text)
	}
	return p, err
}

// hook runs the operator's command for a node that is free.
func (c *client) hook(ctx context.Context, f *evacuating, name string) error {
	if f.hook == "" {
		return nil
	}
	line := strings.ReplaceAll(f.hook, "{host}", name)
	began := time.Now()
	x := exec.CommandContext(ctx, "/bin/sh", "-c", line)
	x.Env = append(os.Environ(), "HOLDFAST_NODE="+name)
	x.Stdout, x.Stderr = os.Stderr, os.Stderr // our own lines stay a clean list
	if err := x.Run(); err != nil {
		return &exit{exitFailed, fmt.Errorf("hook %q: %w", line, err)}
	}
	c.sayRolling(name, "hook", fmt.Sprintf("hook ok (%s)", short(time.Since(began))))
	return nil
}

// untilHeard waits until a node answers again. What is known of it before its hook is
// too old to say so, so that it must be heard of anew.
func (c *client) untilHeard(ctx context.Context, f *evacuating, name string) error {
	began := time.Now()
	for {
		s, err := c.status()
		if err == nil {
			for _, x := range s.Nodes {
				if x.Name == name && (x.Self || x.HeardSeconds >= 0 && x.HeardSeconds < min(heardLately, time.Since(began).Seconds())) {
					return nil
				}
			}
		}
		switch {
		case ctx.Err() != nil:
			return &exit{exitFailed, errors.New("interrupted")}
		case time.Since(began) > f.wait:
			return &exit{exitFailed, fmt.Errorf("%s has not answered for %s since its hook", name, short(f.wait))}
		}
		time.Sleep(waitPoll)
	}
}
