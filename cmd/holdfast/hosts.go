package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
	"github.com/holdfast-lb/holdfast/internal/admin/wire"
	"github.com/holdfast-lb/holdfast/internal/node"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

func migrateCommand() *cobra.Command {
	var g guarded
	var vip, to string
	var drain time.Duration
	x := &cobra.Command{
		Use:   "migrate [--vip VIP] --to NODE",
		Short: "Move a VIP with its live connections to another host",
		Long: "Moves a VIP with all its flows: both legs of each, with their octets, sequence numbers and timers.\n" +
			"Clients and servers notice a pause of milliseconds. Any node can be asked, whichever owns the VIP.\n\n" +
			"Ctrl-C before the point of no return brings everything back. A flow that cannot move stays where it is,\n" +
			"is served on from there, and is ended after --drain at the latest.\n\n" +
			"Without --vip the flows of listeners with `movable: true` move that are here, and their addresses stay:\n" +
			"this host sends on what comes for them.",
		Example: "  holdfast migrate --vip shop --to n3\n  holdfast migrate --vip shop --to n3 --drain 1m\n  holdfast migrate --to n3",
		Args:    wants(0, 0, "no argument"),
		RunE: asking(func(c *client, _ []string) error {
			if to == "" {
				return &exit{exitUsage, errors.New("migrate: wants --to NODE, a node named in the configuration")}
			}
			if drain < 0 {
				return &exit{exitUsage, errors.New("migrate: --drain is not negative")}
			}
			q := node.MigrateRequest{Guard: g.guard(), VIP: vip, To: to, Drain: drain}
			return c.moving(hostMove{what: "migrate", back: backOf(vip)}, c.migrate(q))
		}),
	}
	g.register(x)
	x.Flags().StringVar(&vip, "vip", "", "the VIP's name, as holdfast vips lists them")
	x.Flags().StringVar(&to, "to", "", "a node named in the configuration")
	x.Flags().DurationVar(&drain, "drain", 0, "how long flows that cannot move may go on where they are (default 10m0s)")
	return x
}

// steps of a move, as a method of the API tells them.
type moveSteps func(ctx context.Context) (*connect.ServerStreamForClient[api.Progress], error)

func (c *client) migrate(q node.MigrateRequest) moveSteps {
	return func(ctx context.Context) (*connect.ServerStreamForClient[api.Progress], error) {
		return c.api.Migrate(ctx, wire.To[api.MigrateRequest](&q))
	}
}

func (c *client) evacuate(q node.EvacuateRequest) moveSteps {
	return func(ctx context.Context) (*connect.ServerStreamForClient[api.Progress], error) {
		return c.api.Evacuate(ctx, wire.To[api.EvacuateRequest](&q))
	}
}

func (c *client) comeBack(q node.ReturnRequest) moveSteps {
	return func(ctx context.Context) (*connect.ServerStreamForClient[api.Progress], error) {
		return c.api.Return(ctx, wire.To[api.ReturnRequest](&q))
	}
}

// backOf says how a VIP that has moved goes back.
func backOf(vip string) func(from string) string {
	return func(from string) string {
		if vip == "" || from == "" {
			return ""
		}
		return "holdfast migrate --vip " + vip + " --to " + from
	}
}

func evacuateCommand() *cobra.Command {
	var f evacuating
	x := &cobra.Command{
		Use:   "evacuate [--to NODE]",
		Short: "Free a node, to reboot it: its VIPs and flows go elsewhere, its servers get nothing new",
		Long: "Frees the node that is asked, or --node. Servers that the configuration says are on it get nothing new,\n" +
			"on any node; its VIPs go to --to, or each to the node with the same labels that has the fewest flows. It\n" +
			"ends when nothing points at the node any more. That it is being evacuated outlasts its reboot.\n\n" +
			"Connections whose server is on the node go on to it from the other host, and hold the node until they\n" +
			"end: what is left after --drain is named with the command that ends it, or ended by --cut.\n\n" +
			"With --rolling all nodes are freed, one after the other: --hook is run for each when it is free, with\n" +
			"{host} in its place, and when the node answers again it returns before the next one is begun. The node\n" +
			"that is asked comes last.",
		Example: "  holdfast evacuate\n  holdfast evacuate --node n1 --to n3\n  holdfast evacuate --drain 5m --cut\n  holdfast evacuate --rolling --hook 'ssh {host} sudo reboot'",
		Args:    wants(0, 0, "no argument"),
		RunE: asking(func(c *client, _ []string) error {
			switch {
			case f.drain < 0 || f.wait < 0:
				return &exit{exitUsage, errors.New("evacuate: --drain and --wait are not negative")}
			case f.rolling && f.node != "":
				return &exit{exitUsage, errors.New("evacuate: --rolling goes over all nodes; --node is one")}
			case f.rolling && f.to != "":
				return &exit{exitUsage, errors.New("evacuate: --rolling frees every node in its turn, so --to cannot be the same for all")}
			case !f.rolling && f.hook != "":
				return &exit{exitUsage, errors.New("evacuate: --hook is run between nodes, with --rolling")}
			}
			if f.rolling {
				return c.rolling(&f)
			}
			q := node.EvacuateRequest{Guard: f.guard(), Node: f.node, To: f.to, Drain: f.drain, Cut: f.cut}
			return c.moving(hostMove{what: "evacuate", back: func(string) string { return "holdfast return" }}, c.evacuate(q))
		}),
	}
	f.register(x)
	x.Flags().StringVar(&f.node, "node", "", "the node to free (default: the one that is asked)")
	x.Flags().StringVar(&f.to, "to", "", "where its VIPs go (default: nodes with the same labels)")
	x.Flags().DurationVar(&f.drain, "drain", 0, "how long what cannot move, and connections to servers there, may go on (default 10m0s)")
	x.Flags().BoolVar(&f.cut, "cut", false, "end by RST what still goes on when --drain is over; without it evacuate fails then, and names it")
	x.Flags().BoolVar(&f.rolling, "rolling", false, "all nodes, one after the other")
	x.Flags().StringVar(&f.hook, "hook", "", "a `command` for the shell, run for each node when it is free; {host} is the node's name")
	x.Flags().DurationVar(&f.wait, "wait", 10*time.Minute, "with --rolling: how long a node may take to answer again after its hook")
	return x
}

func returnCommand() *cobra.Command {
	var g guarded
	var at string
	var stay bool
	var drain time.Duration
	x := &cobra.Command{
		Use:   "return",
		Short: "End an evacuation: the node serves again, and the VIPs whose home it is come back",
		Long: "The node that is asked, or --node, serves again: its servers get what is new, and the VIPs whose home\n" +
			"it is come back with their flows, unless --stay.",
		Example: "  holdfast return\n  holdfast return --node n1 --stay",
		Args:    wants(0, 0, "no argument"),
		RunE: asking(func(c *client, _ []string) error {
			if drain < 0 {
				return &exit{exitUsage, errors.New("return: --drain is not negative")}
			}
			q := node.ReturnRequest{Guard: g.guard(), Node: at, Stay: stay, Drain: drain}
			return c.moving(hostMove{what: "return", back: func(string) string { return "holdfast evacuate" }}, c.comeBack(q))
		}),
	}
	g.register(x)
	x.Flags().StringVar(&at, "node", "", "the node that returns (default: the one that is asked)")
	x.Flags().BoolVar(&stay, "stay", false, "leave VIPs where they are")
	x.Flags().DurationVar(&drain, "drain", 0, "how long flows that cannot move may go on where they are (default 10m0s)")
	return x
}

func vipsCommand() *cobra.Command {
	x := &cobra.Command{
		Use:   "vips",
		Short: "Show the VIPs of the cluster: which node answers for each; take one whose owner is dead",
		Args:  wants(0, 0, "no argument, or take VIP"),
		RunE: asking(func(c *client, _ []string) error {
			var s node.Status
			if _, err := ask(c.silently(), c.api.Status, &api.StatusRequest{}, &s); err != nil {
				return err
			}
			if c.json {
				for _, v := range s.VIPs {
					if err := printMessage(wire.To[api.VIPStatus](&v)); err != nil {
						return err
					}
				}
				return nil
			}
			if len(s.VIPs) == 0 {
				fmt.Println("no VIPs: the configuration has none under vips")
				return nil
			}
			fmt.Print(vipTable(&s).String())
			return nil
		}),
	}
	x.AddCommand(vipsTakeCommand())
	return x
}

// vipTable lists VIPs.
func vipTable(s *node.Status) *table {
	t := &table{head: []string{"VIP", "ADDRESS", "OWNER", "HOME", "HERE", ">EPOCH", "LEASE", "SINCE, WHY"}}
	for _, v := range s.VIPs {
		owner, lease, since := v.Owner, "-", "-"
		if v.To != "" {
			owner += " -> " + v.To
		}
		if v.LeaseSeconds > 0 {
			lease = short(secondsOf(v.LeaseSeconds))
		}
		if !v.Since.IsZero() {
			since = short(max(0, time.Since(v.Since).Round(time.Second)))
		}
		if v.Why != "" {
			since += ", " + v.Why
		}
		t.add(v.Name, v.Address.String(), owner, v.Home, v.State, strconv.FormatUint(v.Epoch, 10), lease, since)
	}
	return t
}

func vipsTakeCommand() *cobra.Command {
	var g guarded
	var yes bool
	x := &cobra.Command{
		Use:   "take VIP",
		Short: "Take a VIP whose owner is dead; its flows died with it",
		Long: "The node that is asked becomes the owner of a VIP whose owner is dead. Nobody but you can know that it is:\n" +
			"from here a host that is off looks like one whose cable is out. Its leases are waited for before this node\n" +
			"answers. On a terminal it asks; elsewhere it wants --yes.",
		Example: "  holdfast vips take shop",
		Args:    wants(1, 1, "a VIP, as holdfast vips lists them"),
		RunE: asking(func(c *client, args []string) error {
			if !yes {
				if !sock.IsTerminal(os.Stdin) {
					return &exit{exitUsage, fmt.Errorf("take: is the owner of %s really off? --yes says so", args[0])}
				}
				fmt.Fprintf(os.Stderr, "is the owner of %s really off? [y/N] ", args[0])
				var answer string
				if _, _ = fmt.Scanln(&answer); !strings.EqualFold(answer, "y") && !strings.EqualFold(answer, "yes") {
					return &exit{exitRefused, errors.New("nothing was taken")}
				}
			}
			q := node.TakeRequest{Guard: g.guard(), VIP: args[0]}
			return c.moving(hostMove{what: "take"}, func(ctx context.Context) (*connect.ServerStreamForClient[api.Progress], error) {
				return c.api.Take(ctx, wire.To[api.TakeRequest](&q))
			})
		}),
	}
	g.register(x)
	x.Flags().BoolVar(&yes, "yes", false, "the owner is off: do not ask")
	return x
}

// hostMove is a move that a command has asked for.
type hostMove struct {
	what string
	back func(from string) string // what goes back
}

// moving asks for a move, prints how it goes, and judges what came of it. Ctrl-C asks
// for no move any more.
func (c *client) moving(m hostMove, open moveSteps) error {
	ctx, end := signal.NotifyContext(context.Background(), os.Interrupt)
	defer end()
	show := moveShow{json: c.json, terminal: sock.IsTerminal(os.Stdout) && !c.json}
	p, err := c.followed(ctx, m, open, show.step)
	show.newline()
	if err != nil {
		return err
	}
	if !c.json {
		fmt.Println(hostMovedLine(p, m))
	}
	if p.Move != nil && p.Move.Lost > 0 {
		return &exit{code: exitFailed}
	}
	return nil
}

// followed tells of each step and gives the last.
func (c *client) followed(ctx context.Context, m hostMove, open moveSteps, tell func(*api.Progress) error) (*node.Progress, error) {
	before, err := c.status()
	if err != nil {
		return nil, err
	}
	var p node.Progress
	last := (*api.Progress)(nil)
	bad := lasting(false, func() error {
		stream, err := open(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = stream.Close() }()
		for stream.Receive() {
			last = stream.Msg()
			if err := tell(last); err != nil {
				return err
			}
		}
		if err = stream.Err(); last != nil && !handedOver(err) {
			if err := wire.From(last, &p); err != nil {
				return &exit{exitFailed, err}
			}
		}
		return err
	})
	var ours *exit
	switch {
	case errors.As(bad, &ours):
		return nil, ours
	case p.Done && p.Failed == "":
		return &p, nil
	case p.Done:
		return nil, movedBack(&p)
	case ctx.Err() != nil:
		return c.interrupted(m, before)
	case bad != nil:
		return nil, c.refusal(bad)
	}
	return nil, &exit{exitFailed, fmt.Errorf("%s: the answer ended before it was done; see: holdfast status", m.what)}
}

// movedBack is the error of a move that came to nothing, or not to all.
func movedBack(p *node.Progress) error {
	code, text := exitRefused, plainText(p.Failed) // all is as it was
	if r := p.Move; r != nil {
		if r.Flows > 0 || r.Lost > 0 {
			code = exitFailed
		}
		if r.Refused > 0 {
			text += fmt.Sprintf("\n%s could not move:%s", count(r.Refused, "flow"), refusals(r))
		}
		for i, who := range r.LostFlows {
			if i == lostShown {
				text += fmt.Sprintf("\nand %d more: holdfast status --json", len(r.LostFlows)-i)
				break
			}
			text += "\nlost: " + who
		}
	}
	return &exit{code, errors.New(text)}
}

// interruptedMax is longer than it may take to bring everything back.
const interruptedMax = 30 * time.Second

// interrupted finds out what came of a move that was to end.
func (c *client) interrupted(m hostMove, before *node.Status) (*node.Progress, error) {
	for deadline := time.Now().Add(interruptedMax); time.Now().Before(deadline); time.Sleep(waitPoll) {
		s, err := c.status()
		if err != nil {
			return nil, err
		}
		if p := s.Moving; p != nil {
			if p.Committed {
				text := "already committed"
				if m.back != nil {
					if how := m.back(p.From); how != "" {
						text += "; to go back run: " + how
					}
				}
				return nil, &exit{exitFailed, errors.New(text)}
			}
			continue
		}
		u := s.LastMove
		if u == nil || before.LastMove != nil && u.At.Equal(before.LastMove.At) {
			return nil, &exit{exitRefused, errors.New("aborted: nothing moved")}
		}
		if u.Result == "done" {
			return &node.Progress{Phase: "done", Done: true, VIP: u.VIP, From: u.From, To: u.To, Move: u.Move}, nil
		}
		return nil, movedBack(&node.Progress{Failed: u.Why, Move: u.Move})
	}
	return nil, &exit{exitFailed, fmt.Errorf("%s: it has not ended after %s; see: holdfast status", m.what, short(interruptedMax))}
}

// moveShow prints the steps of a move: a line for each phase. Of a phase that goes on
// a terminal draws the line anew; elsewhere what has changed is told now and then.
type moveShow struct {
	json, terminal bool
	line, phase    string // that is not ended yet
	said           time.Time
	printed        string // the last line elsewhere
}

// moveSaidEvery is how often a phase that goes on is told of where there is no terminal.
const moveSaidEvery = 5 * time.Second

// step prints one step.
func (x *moveShow) step(m *api.Progress) error {
	if x.json {
		return printMessage(m)
	}
	var p node.Progress
	if err := wire.From(m, &p); err != nil {
		return &exit{exitFailed, err}
	}
	if p.Done { // the rest is said at the end
		x.newline()
		return nil
	}
	line := p.Text
	if p.Phase == "flows" && p.FlowsTotal > 0 {
		line = flowsLine(&p)
	}
	if x.phase != p.Phase || line != x.line {
		if x.phase != p.Phase {
			x.newline()
		}
		x.draw(p.Phase, line)
	}
	return nil
}

// flowsLine is how far the flows are.
func flowsLine(p *node.Progress) string {
	line := fmt.Sprintf("%-6s %s  %s/%s", "flows", bar(p.Flows, p.FlowsTotal), thousands(p.Flows), thousands(p.FlowsTotal))
	if p.Octets > 0 {
		line += "  " + size(float64(p.Octets))
	}
	if p.Pause.P99 > 0 {
		line += "  paused p99 " + short(microsOf(p.Pause.P99))
	}
	if p.ETASeconds > 0 {
		line += "  " + short(secondsOf(p.ETASeconds)) + " left"
	}
	if !p.Committed {
		line += "  Ctrl-C aborts"
	}
	return line
}

// microsOf is a duration as pauses have it.
func microsOf(n float64) time.Duration { return time.Duration(n * float64(time.Microsecond)) }

// draw puts a step into the line that is open.
func (x *moveShow) draw(phase, line string) {
	same := x.phase == phase
	x.phase, x.line = phase, line
	switch {
	case x.terminal:
		fmt.Print(clearLine + wrapOff + line + wrapOn)
	case !same && phase == "flows": // how many they were is known at their end
		x.said = time.Now()
	case !same || time.Since(x.said) >= moveSaidEvery:
		fmt.Println(line)
		x.said, x.printed = time.Now(), line
	}
}

// newline ends the line that is open.
func (x *moveShow) newline() {
	if x.line != "" {
		switch {
		case x.terminal:
			fmt.Println()
		case x.printed != x.line:
			fmt.Println(x.line)
		}
	}
	x.line, x.phase, x.printed = "", "", ""
}

// refusals are why flows stay, a line for each reason.
func refusals(r *node.Report) (lines string) {
	for _, why := range sortedKeys(r.Reasons) {
		lines += fmt.Sprintf("\n  %s: %s", thousands(r.Reasons[why]), why)
		if text := r.Examples[why]; text != "" {
			lines += " (" + text + ")"
		}
	}
	return lines
}

// hostMovedLine is what a move has done.
func hostMovedLine(p *node.Progress, m hostMove) string {
	r := p.Move
	if r == nil || m.what == "take" {
		return p.Text
	}
	line := fmt.Sprintf("done: %s moved, %d lost", count(r.Flows, "flow"), r.Lost)
	if r.Flows > 0 {
		line += fmt.Sprintf("; pause p50 %s, p99 %s, max %s", short(microsOf(r.Pause.P50)), short(microsOf(r.Pause.P99)), short(microsOf(r.Pause.Max)))
	}
	if r.Refused > 0 || r.Residue > 0 {
		line += fmt.Sprintf("\n%s stay and drain:%s", count(max(r.Refused, r.Residue), "flow"), refusals(r))
	}
	if m.what != "migrate" {
		if r.Flows == 0 && len(r.VIPs) == 0 {
			return p.Text
		}
		return line + "\n" + p.Text
	}
	from := r.FromNode
	if from == "" {
		from = p.From
	}
	if m.back != nil && from != "" {
		if how := m.back(from); how != "" {
			line += fmt.Sprintf("\n%s forgets them when its neighbours have heard; '%s' goes back", from, how)
		}
	}
	return line
}
