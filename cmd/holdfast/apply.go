package main

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
	"github.com/holdfast-lb/holdfast/internal/admin/wire"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// changeFlags are those of every verb that brings another desired state.
type changeFlags struct {
	guarded
	canary       time.Duration
	abortOn      string
	flows        string
	rate, jitter float64
	edits        string
	wait         string
	dryRun       bool
}

// waits are what --wait knows.
const (
	waitDurable   = "durable"
	waitEffective = "effective"
)

func (f *changeFlags) register(c *cobra.Command, file bool) {
	f.guarded.register(c)
	flags := c.Flags()
	flags.StringVar(&f.wait, "wait", waitDurable, "return when it is durable, too, or as soon as it is effective")
	flags.BoolVar(&f.dryRun, "dry-run", false, "tell what would be done, and do nothing")
	flags.DurationVar(&f.canary, "canary", 0, "watch errors and latency for so long, and roll back by itself if they rise")
	flags.StringVar(&f.abortOn, "abort-on", "", "what a canary is rolled back for, as 'errors>1%,p99>250ms'; without it: more than before")
	flags.StringVar(&f.flows, "flows", "", "what becomes of the flows of what changes: keep, adopt or close; without it what onChange says")
	flags.Float64Var(&f.rate, "flows-rate", 0, "adopt or close so many flows a second; 0: all at once")
	flags.Float64Var(&f.jitter, "flows-jitter", 0, "0 to 1: the share of each interval that is left to chance")
	if file {
		flags.StringVar(&f.edits, "edits", "", "what becomes of what was changed at run time and the file does not say: keep (as it is without this), discard, or refuse")
	}
}

// request puts the flags into q.
func (f *changeFlags) request(verb string, q *node.ChangeRequest) error {
	for _, x := range []struct {
		flag, value string
		words       []string
	}{
		{"flows", f.flows, []string{"keep", "adopt", "close"}}, {"edits", f.edits, []string{"keep", "discard", "refuse"}},
		{"wait", f.wait, []string{waitDurable, waitEffective}},
	} {
		if x.value == "" {
			continue
		}
		known := false
		for _, w := range x.words {
			known = known || w == x.value
		}
		if !known {
			return &exit{exitUsage, fmt.Errorf("%s: --%s: %q is none of %s%s", verb, x.flag, x.value, strings.Join(x.words, ", "), meant(x.value, x.words))}
		}
	}
	switch {
	case f.abortOn != "" && f.canary == 0:
		return &exit{exitUsage, fmt.Errorf("%s: --abort-on is what a canary is rolled back for: add --canary 30s", verb)}
	case f.canary < 0, f.rate < 0, f.jitter < 0, f.jitter > 1:
		return &exit{exitUsage, fmt.Errorf("%s: --canary and --flows-rate are not negative, --flows-jitter is from 0 to 1", verb)}
	}
	q.Guard, q.Canary, q.AbortOn, q.DryRun, q.RuntimeEdits = f.guard(), f.canary, f.abortOn, f.dryRun, f.edits
	q.Flows = node.FlowsPolicy{On: f.flows, PerSecond: f.rate, Jitter: f.jitter}
	q.WaitDurable = f.wait == waitDurable && !f.dryRun
	return nil
}

// change asks for another desired state and tells in one line what it has come
// to, with head before it.
func (c *client) change(f *changeFlags, verb string, q node.ChangeRequest, head func(*node.ChangeReport) string) error {
	if err := f.request(verb, &q); err != nil {
		return err
	}
	method := c.api.Apply
	if f.dryRun {
		method = c.api.Diff
	}
	r, err := c.tellChange(method, q, head)
	if err != nil || f.canary == 0 || f.dryRun || r.Unchanged {
		return err
	}
	return c.awaitCanary(r.Generation)
}

// tellChange asks by method and tells in one line what it has come to.
func (c *client) tellChange(method func(context.Context, *api.ChangeRequest) (*api.ChangeReport, error), q node.ChangeRequest, head func(*node.ChangeReport) string) (*node.ChangeReport, error) {
	var r node.ChangeReport
	told, err := ask(c, method, wire.To[api.ChangeRequest](&q), &r)
	if err != nil {
		return nil, err
	}
	if told {
		for i, w := range r.Warnings {
			r.Warnings[i] = c.named(w)
		}
		sayBeside(&r)
		line := changeLine(&r)
		if head != nil && !r.Unchanged && !r.DryRun {
			line = head(&r) + strings.TrimPrefix(line, fmt.Sprintf("generation %d", r.Generation))
		}
		if r.DryRun {
			line = planText(r.Plan) + line
		} else if r.Canary != "" {
			line += "\ncanary: " + r.Canary + "; end it early: holdfast canary keep, or rollback"
		}
		if _, err := fmt.Println(line); err != nil {
			return nil, &exit{exitFailed, err}
		}
	}
	if r.Lost > 0 {
		return nil, &exit{code: exitFailed}
	}
	return &r, nil
}

// canaryPoll is the time between two looks at a canary.
const canaryPoll = 250 * time.Millisecond

// settled is what --json prints when a canary has come to its end.
type settled struct {
	Generation uint64 `json:"generation"`
	Canary     string `json:"canary"`
	Kept       bool   `json:"kept"`
}

// awaitCanary waits until the canary of that generation is settled, and fails if
// it was taken back. The canary goes on if nobody waits.
func (c *client) awaitCanary(generation uint64) error {
	for heard := time.Now(); ; time.Sleep(canaryPoll) {
		s, err := c.configState()
		if err != nil {
			if time.Since(heard) < silenceMax {
				continue // it may just be handing over to another process
			}
			return err
		}
		if heard = time.Now(); !s.CanaryEnds.IsZero() {
			continue
		}
		var since generationList
		if _, err := ask(c.silently(), c.api.History, &api.HistoryRequest{}, &since); err != nil {
			return err
		}
		end := settled{generation, s.Canary, true}
		for _, g := range since.Generations {
			if g.Generation > generation && g.Kind == "canary-rollback" {
				end.Kept = false
				end.Generation = g.Generation
			}
		}
		switch {
		case c.json:
			if err := printJSON(end); err != nil {
				return err
			}
		case end.Kept:
			fmt.Println("canary: " + s.Canary)
		}
		if !end.Kept {
			return &exit{exitFailed, fmt.Errorf("canary: %s\nin force is generation %d, which says what was before", s.Canary, end.Generation)}
		}
		return nil
	}
}

// planText is a plan, each of its lines whole.
func planText(plan string) string {
	if plan == "" || strings.HasSuffix(plan, "\n") {
		return plan
	}
	return plan + "\n"
}

// sayBeside tells what a change met: it is no answer, so not on standard output.
func sayBeside(r *node.ChangeReport) {
	for _, w := range r.Warnings {
		fmt.Fprintln(os.Stderr, w)
	}
	for _, d := range r.Edits {
		fmt.Fprintln(os.Stderr, driftLine(&d))
	}
	if lost := lossWords(r.Kernel); lost != "" {
		fmt.Fprintf(os.Stderr, "warning: the kernel dropped who came to a listener of this machine meanwhile: %s\n", lost)
	}
	if r.ArrivedLate > 0 {
		fmt.Fprintf(os.Stderr, "warning: %s came to a listener while it was being closed\n", count(int(r.ArrivedLate), "connection"))
	}
}

// lossWords names the counters of who came to a listener and was dropped. The
// others grow with whatever fails on this machine: they are in the JSON.
func lossWords(kernel map[string]uint64) string {
	var lost []string
	for _, name := range sortedKeys(kernel) {
		if strings.Contains(name, "Listen") || strings.Contains(name, "ReqQ") {
			lost = append(lost, fmt.Sprintf("%s %d", name, kernel[name]))
		}
	}
	return strings.Join(lost, ", ")
}

// changeLine says what a change has come to, or would.
func changeLine(r *node.ChangeReport) string {
	i := &r.Impact
	switch {
	case r.Unchanged && r.DryRun:
		return fmt.Sprintf("no difference: generation %d says the same", r.Generation)
	case r.Unchanged:
		return fmt.Sprintf("nothing to do: generation %d says the same, 0 flows touched (%s)", r.Generation, short(millisOf(r.Millis)))
	case r.DryRun:
		return fmt.Sprintf("would be: %s; flows: %s to close, %s to adopt it, %s drain, %s untouched; nothing was changed, generation %d goes on",
			objectWords(i, r.Plan), thousands(i.FlowsClosed), thousands(i.FlowsAdopt), thousands(i.FlowsDrain), thousands(i.FlowsUntouched), r.Generation)
	}
	line := fmt.Sprintf("generation %d effective on %s in %s", r.Generation, count(r.Loops, "loop"), short(millisOf(r.EffectiveMillis)))
	if r.Superseded {
		line += " (by a later reload that waited, too)"
	}
	switch {
	case r.Durable == "yes" && r.DurableMillis > 0:
		line += ", durable in " + short(millisOf(r.DurableMillis))
	case r.Durable == "yes":
		line += " and durable"
	}
	line += ": " + objectWords(i, r.Plan) + "; flows: "
	for _, x := range []struct {
		n    int
		what string
	}{{r.Flows, "adopted it"}, {r.Following, "still to follow"}, {i.FlowsDrain, "drain"}} {
		if x.n > 0 {
			line += thousands(x.n) + " " + x.what + ", "
		}
	}
	line += fmt.Sprintf("%s untouched, %d closed, %d lost", thousands(i.FlowsUntouched), r.Closed, r.Lost)
	if why, isNot := strings.CutPrefix(r.Durable, "no"); isNot {
		line += "; NOT durable" + why
	} else if r.Durable == "pending" {
		line += "; durable soon"
	}
	return line
}

func millisOf(n float64) time.Duration { return time.Duration(n * float64(time.Millisecond)) }

// ordersNamed is how many orders a line names; more are counted.
const ordersNamed = 3

// orderSaid is a line of a plan that says another order: a server that somebody
// has taken out may be back by it.
var orderSaid = regexp.MustCompile(`(?m)^~ endpoint (\S+: (?:ready|quiescing|held|maintenance|ordered .+) -> (?:ready|quiescing|held|maintenance|weight \d+|the file's weight))$`)

// objectWords says what a plan does to objects, and to what was ordered of endpoints.
func objectWords(i *node.Impact, plan string) string {
	var all []string
	say := func(n int, what string) {
		if n > 0 {
			all = append(all, what)
		}
	}
	for _, x := range []struct {
		noun                    string
		added, removed, changed int
	}{
		{"listener", i.ListenersAdded, i.ListenersRemoved, i.ListenersChanged}, {"backend", i.BackendsAdded, i.BackendsRemoved, i.BackendsChanged},
		{"endpoint", i.EndpointsAdded, i.EndpointsRemoved, i.EndpointsChanged - i.WeightsChanged},
	} {
		say(x.added, count(x.added, x.noun)+" added")
		say(x.removed, count(x.removed, x.noun)+" removed")
		say(x.changed, count(x.changed, x.noun)+" changed")
	}
	say(i.WeightsChanged, count(i.WeightsChanged, "weight"))
	orders := orderSaid.FindAllStringSubmatch(plan, -1)
	for _, o := range orders[:min(ordersNamed, len(orders))] {
		all = append(all, o[1])
	}
	if more := len(orders) - ordersNamed; more > 0 {
		all = append(all, count(more, "more order"))
	}
	if all == nil {
		return "no listener, backend or endpoint"
	}
	return strings.Join(all, ", ")
}

func applyCommand() *cobra.Command {
	var f changeFlags
	x := &cobra.Command{
		Use:   "apply FILE",
		Short: "Make a file (- is standard input) the desired state: all of it or nothing",
		Long: "Makes FILE what is desired of the running holdfast. All of it is checked and every new socket opened\n" +
			"before anything changes; what did not change is not touched. It returns when every event loop rules\n" +
			"by it and the disk has it. What was changed at run time stays in force until FILE says the same,\n" +
			"what it belongs to is gone, or --edits discard; the answer names what FILE does not say.\n\n" +
			"holdfast config diff FILE tells beforehand what it would do, holdfast config rollback N takes it back.",
		Example: "  holdfast apply holdfast.yaml\n  holdfast apply holdfast.yaml --canary 30s --abort-on 'errors>1%,p99>250ms'",
		Args:    wants(1, 1, "one FILE, or - for standard input"),
		RunE: asking(func(c *client, args []string) error {
			name, source, err := readSource(args[0])
			if err != nil {
				return &exit{exitFailed, err}
			}
			if len(source) == 0 {
				return &exit{exitUsage, fmt.Errorf("apply: %s is empty; `listeners: {}` is a configuration without any listener", args[0])}
			}
			c.sent = name
			return c.change(&f, "apply", node.ChangeRequest{Source: source}, nil)
		}),
	}
	f.register(x, true)
	return x
}

func reloadCommand() *cobra.Command {
	var f changeFlags
	x := &cobra.Command{
		Use:   "reload",
		Short: "Apply the file again that it runs by",
		Long: "Reads the file of run again and applies it, as SIGHUP does, and as holdfast apply does with any file.\n" +
			"What was changed at run time stays in force; the answer names what the file does not say.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return &exit{exitUsage, fmt.Errorf("reload: reads the file that it runs by; for another one: holdfast apply %s", args[0])}
			}
			return nil
		},
		RunE: asking(func(c *client, _ []string) error {
			return c.change(&f, "reload", node.ChangeRequest{Reread: true}, nil)
		}),
	}
	f.register(x, true)
	return x
}

func canaryCommand() *cobra.Command {
	x := &cobra.Command{
		Use:   "canary",
		Short: "End the watching of a change early: keep it, or roll it back",
		Args:  wants(1, 1, "keep or rollback"),
		RunE: func(_ *cobra.Command, args []string) error {
			return &exit{exitUsage, fmt.Errorf("canary: no verb %q%s; there are: keep, rollback", args[0], meant(args[0], []string{"keep", "rollback"}))}
		},
	}
	for _, end := range []struct{ word, what string }{{"keep", "The change stays"}, {"rollback", "The change is taken back"}} {
		var g guarded
		verb := &cobra.Command{
			Use: end.word, Short: end.what, Args: wants(0, 0, "no argument"),
			RunE: asking(func(c *client, _ []string) error {
				var r node.ChangeReport
				q := &api.SettleRequest{Keep: end.word == "keep", Reason: g.reason, IdempotencyKey: g.key, ExpectedGeneration: g.expect}
				told, err := ask(c, c.api.Settle, q, &r)
				if err != nil || !told {
					return err
				}
				sayBeside(&r)
				if q.GetKeep() {
					fmt.Println("canary: " + r.Canary)
					return nil
				}
				fmt.Println("canary: " + r.Canary + "\nrolled back: " + changeLine(&r))
				return nil
			}),
		}
		g.register(verb)
		x.AddCommand(verb)
	}
	return x
}

// driftLine says what file and desired state say of one thing.
func driftLine(d *node.Drift) string {
	what := d.Object
	if d.Field != "" {
		what += "." + d.Field
	}
	text := what + ": "
	switch {
	case d.File == "" && d.Runtime != "":
		text += "not in the file, here " + oneLine(d.Runtime)
	case d.Runtime == "":
		text += "in the file, here deleted"
	default:
		text += "file " + oneLine(d.File) + ", here " + oneLine(d.Runtime)
	}
	switch d.Became {
	case "absorbed":
		text = what + ": the file says the same now"
	case "dropped":
		text = what + ": dropped"
	case "discarded":
		text = what + ": discarded; the file rules"
	}
	if d.Why != "" {
		text += " (" + d.Why + ")"
	}
	return text + by(d.By, d.At)
}

// by says who has done something, when, and why.
func by(a node.Author, at time.Time) string {
	if a.Name == "" {
		return ""
	}
	text := "; by " + a.Name
	if !at.IsZero() {
		text += " " + short(max(0, time.Since(at))) + " ago"
	}
	if a.Reason != "" {
		text += fmt.Sprintf(", %q", a.Reason)
	}
	return text
}

// oneLine is text of several lines in one.
func oneLine(s string) string {
	const most = 80
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "..."
	}
	return s
}
