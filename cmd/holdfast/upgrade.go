package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
	"github.com/holdfast-lb/holdfast/api/holdfast/v1/holdfastv1connect"
	"github.com/holdfast-lb/holdfast/internal/admin/wire"
	"github.com/holdfast-lb/holdfast/internal/node"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// upgrading are the flags of `upgrade`.
type upgrading struct {
	guarded
	binary, file  string
	canary, drain time.Duration
}

func upgradeCommand() *cobra.Command {
	var f upgrading
	x := &cobra.Command{
		Use:   "upgrade",
		Short: "Hand everything over to a new process: listeners and live flows",
		Long: "Starts the new binary beside the running one, hands it the listeners and every flow, and ends the old\n" +
			"process. Until flows move nothing has happened: a binary that does not start, is no Holdfast or speaks\n" +
			"another protocol is refused, and the old process goes on. A downgrade is the same.\n\n" +
			"First a few flows move and are watched for --canary; if the new process loses one of them or dies, the\n" +
			"rest stays. A flow that the new release cannot hold stays in the old process until it ends, for --drain\n" +
			"at most.",
		Example: "  holdfast upgrade\n  holdfast upgrade --binary ./holdfast-1.5.0\n  holdfast upgrade --config holdfast.yaml --canary 2s",
		Args:    wants(0, 0, "no argument"),
		RunE: asking(func(c *client, _ []string) error {
			q, err := f.request()
			if err != nil {
				return err
			}
			return c.upgrade(q)
		}),
	}
	f.register(x)
	x.Flags().StringVar(&f.binary, "binary", "", "the new binary (default: the file the running one was started from)")
	x.Flags().StringVar(&f.file, "config", "", "another configuration `file`, which the new process applies before it serves")
	x.Flags().DurationVar(&f.canary, "canary", 0, "how long the first flows are watched before the others follow (default 50ms); below 0: not at all")
	x.Flags().DurationVar(&f.drain, "drain", 0, "how long flows that the new process refuses may go on in the old one (default 10m0s)")
	return x
}

// request is what the flags ask for. Paths are of this shell, so they are made
// whole.
func (f *upgrading) request() (q node.UpgradeRequest, err error) {
	if f.drain < 0 {
		return q, &exit{exitUsage, errors.New("upgrade: --drain is not negative")}
	}
	q = node.UpgradeRequest{Guard: f.guard(), Canary: f.canary, Drain: f.drain}
	for _, x := range []struct {
		name string
		to   *string
	}{{f.binary, &q.Binary}, {f.file, &q.File}} {
		if x.name == "" {
			continue
		}
		if *x.to, err = filepath.Abs(x.name); err != nil {
			return q, &exit{exitFailed, err}
		}
	}
	return q, nil
}

// upgrade asks for an upgrade and prints how it goes.
func (c *client) upgrade(q node.UpgradeRequest) error {
	ctx, end := signal.NotifyContext(context.Background(), os.Interrupt)
	defer end()
	first, err := c.status()
	if err != nil {
		return err
	}
	show := upgradeShow{json: c.json, terminal: sock.IsTerminal(os.Stdout) && !c.json}
	r, err := c.upgraded(ctx, first, q, show.step)
	show.newline()
	if err != nil {
		return err
	}
	if !c.json {
		fmt.Println(upgradedLine(first.PID, r))
	}
	if r.Lost > 0 {
		return &exit{code: exitFailed}
	}
	return nil
}

// upgraded asks for an upgrade, tells of each step, and gives the report of the
// last. first is how it was before. The end of ctx asks for no upgrade any more.
func (c *client) upgraded(ctx context.Context, first *node.Status, q node.UpgradeRequest, tell func(*api.Progress) error) (r *node.Report, err error) {
	// Somebody else's upgrade may end just now: the next process is asked then.
	bad := lasting(false, func() error {
		if s, ask := c.status(); ask == nil {
			*first = *s
		}
		var again error
		if r, err = c.upgradedBy(ctx, first, q, tell); handedOver(err) {
			again = err
		}
		return again
	})
	if bad != nil {
		return nil, c.refusal(bad)
	}
	return r, err
}

// upgradedBy asks the process that first is of. An error of the API comes as it is if
// that has handed over before it did anything.
func (c *client) upgradedBy(ctx context.Context, first *node.Status, q node.UpgradeRequest, tell func(*api.Progress) error) (*node.Report, error) {
	stream, err := c.api.Upgrade(ctx, wire.To[api.UpgradeRequest](&q))
	if err != nil {
		return nil, c.refusal(err)
	}
	defer func() { _ = stream.Close() }()
	var last *api.Progress
	for stream.Receive() {
		last = stream.Msg()
		if err := tell(last); err != nil {
			return nil, err
		}
	}
	err = stream.Err()
	var p node.Progress
	if last != nil {
		if bad := wire.From(last, &p); bad != nil {
			return nil, &exit{exitFailed, bad}
		}
	}
	switch {
	case p.Done && p.Failed == "" && p.Move != nil:
		return p.Move, nil
	case p.Done:
		return p.Move, aborted(p.Failed, p.Move)
	case last == nil && unknownForm(err):
		return c.upgradedOlder(q, tell)
	case last == nil && handedOver(err):
		return nil, err
	case last == nil && err != nil && connect.IsWireError(err):
		return nil, c.refusal(err)
	}
	return c.outcome(ctx, first)
}

// aborted is the error of an upgrade after which the old process goes on.
func aborted(why string, r *node.Report) error {
	code, text := exitRefused, plainText(why) // all is as it was
	if r != nil && r.Lost > 0 {
		code = exitFailed
		for i, who := range r.LostFlows {
			if i == lostShown {
				text += fmt.Sprintf("\nand %d more: holdfast status --json", r.Lost-i)
				break
			}
			text += "\nlost: " + who
		}
	}
	return &exit{code, errors.New(text)}
}

// lostShown is how many lost flows are named where an upgrade tells of its end.
const lostShown = 10

// outcomeMax is longer than an upgrade may take to come to nothing.
const outcomeMax = 30 * time.Second

// outcome finds out what came of an upgrade of which no last step was heard: the old
// process may have ended before it had told all, or nobody was to be told any more.
func (c *client) outcome(ctx context.Context, first *node.Status) (*node.Report, error) {
	if ctx.Err() != nil {
		fmt.Fprintln(os.Stderr, "interrupted: it is aborted unless flows have moved already")
	}
	var heard error
	for deadline := time.Now().Add(outcomeMax); time.Now().Before(deadline); time.Sleep(waitPoll) {
		s, err := c.status()
		if heard = err; err != nil || s.Upgrading != nil {
			continue
		}
		u := s.LastUpgrade
		fresh := u != nil && u.Was == first.PID && (first.LastUpgrade == nil || !u.At.Equal(first.LastUpgrade.At))
		switch {
		case s.PID != first.PID && fresh && u.Move != nil:
			return u.Move, nil
		case s.PID != first.PID:
			return nil, &exit{exitFailed, fmt.Errorf("upgrade: process %d serves now and was not told all: process %d ended while it handed over; see the log", s.PID, first.PID)}
		case fresh:
			return u.Move, aborted(u.Why, u.Move)
		}
		return nil, &exit{exitRefused, fmt.Errorf("upgrade: process %d goes on, and knows of no upgrade; see the log", s.PID)}
	}
	if heard != nil {
		return nil, heard
	}
	return nil, &exit{exitFailed, fmt.Errorf("upgrade: it is under way for more than %s; see: holdfast status", short(outcomeMax))}
}

// unknownForm tells whether a question was not understood at all, so that nothing was
// done: to v0.5.0 Upgrade is no stream.
func unknownForm(err error) bool {
	var e *connect.Error
	return errors.As(err, &e) && strings.Contains(e.Message(), "status 415")
}

// upgradedOlder asks a process of v0.5.0, which gives its report when all is over: who
// has installed a new release asks with its command what the old one started.
func (c *client) upgradedOlder(q node.UpgradeRequest, tell func(*api.Progress) error) (*node.Report, error) {
	if q.File != "" || q.Expect != 0 {
		return nil, &exit{exitFailed, errors.New("upgrade: the process that runs is of an older release, which takes no configuration or generation along: upgrade without them; nothing has happened")}
	}
	older := connect.NewClient[api.UpgradeRequest, api.Report](&c.http, c.base+holdfastv1connect.NodeUpgradeProcedure)
	a, err := older.CallUnary(context.Background(), connect.NewRequest(&api.UpgradeRequest{Binary: q.Binary, Reason: q.Reason}))
	if err != nil {
		return nil, c.refusal(err)
	}
	var r node.Report
	if err := wire.From(a.Msg, &r); err != nil {
		return nil, &exit{exitFailed, err}
	}
	return &r, tell(&api.Progress{Phase: "done", Text: "the new process serves", Seconds: r.Millis / 1000, Done: true,
		Flows: int64(r.Flows), FlowsTotal: int64(r.Flows), Pid: int64(r.PID), Move: a.Msg})
}

// upgradeShow prints the steps of an upgrade: a line for each, but of those that count
// flows the last one, which a terminal has drawn anew meanwhile.
type upgradeShow struct {
	json, terminal bool
	line           string // that is not ended yet

	mu    sync.Mutex  // of all of it, for slow
	steps int         // that were shown
	slow  *time.Timer // tells that nothing comes; nil: nobody waits
}

// slowAfter is how long nothing may come from a new process until that is said.
const slowAfter = 2 * time.Second

// await says some time later, if no other step has come, what is waited for.
func (x *upgradeShow) await() {
	now := x.steps
	x.slow = time.AfterFunc(slowAfter, func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.steps == now {
			fmt.Printf("waiting for its first word, %.0f s at most\n", node.StartTime.Seconds())
		}
	})
}

// step prints one step.
func (x *upgradeShow) step(m *api.Progress) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.steps++; x.slow != nil {
		x.slow.Stop()
	}
	if x.json {
		return printMessage(m)
	}
	var p node.Progress
	if err := wire.From(m, &p); err != nil {
		return &exit{exitFailed, err}
	}
	counts := p.Phase == "flows" && p.FlowsTotal > 0
	switch {
	case p.Done: // the rest is said at the end
		if x.line != "" && p.Failed == "" && p.Flows > 0 {
			p.Phase = "flows"
			x.draw(&p)
		}
		x.newline()
	case counts:
		x.draw(&p)
	default:
		x.newline()
		fmt.Println(p.Text)
		if p.Phase == "starting" {
			x.await()
		}
	}
	return nil
}

// draw puts a step into the line that is open.
func (x *upgradeShow) draw(p *node.Progress) {
	x.line = fmt.Sprintf("%-9s %s  %s/%s  %s", p.Phase, bar(p.Flows, p.FlowsTotal), thousands(p.Flows), thousands(p.FlowsTotal), short(secondsOf(p.Seconds)))
	if x.terminal {
		fmt.Print(clearLine + wrapOff + x.line + wrapOn)
	}
}

// newline ends the line that is open.
func (x *upgradeShow) newline() {
	if x.line == "" {
		return
	}
	if !x.terminal {
		fmt.Print(x.line)
	}
	fmt.Println()
	x.line = ""
}

// barCells is how wide a bar is.
const barCells = 18

// bar draws how much of all is done.
func bar(done, all int) string {
	n := barCells
	if all > 0 {
		n = min(barCells*done/all, barCells)
	}
	return strings.Repeat("#", n) + strings.Repeat("-", barCells-n)
}

// plainText is an error of the node in words for people.
func plainText(text string) string { return inside.ReplaceAllString(text, "$1") }

// upgradedLine is what an upgrade has done.
func upgradedLine(before int, r *node.Report) string {
	text := fmt.Sprintf("done: process %d -> %d, %s", before, r.PID, reportLine(r, "upgraded"))
	if r.Residue > 0 {
		text += fmt.Sprintf("; %s drain in process %d (holdfast status)", count(r.Residue, "flow"), before)
	}
	return text
}
