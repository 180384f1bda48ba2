package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
	"github.com/holdfast-lb/holdfast/internal/admin/wire"
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/node"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// removal are the flags of `endpoint remove`, `backend remove` and `listener remove`.
type removal struct {
	guarded
	drain    bool
	deadline time.Duration
	then, to string
	force    bool
}

// removeCommand takes objects of one kind away in the open.
func removeCommand(kind, use, wanted, example string) *cobra.Command {
	var f removal
	x := &cobra.Command{
		Use:   "remove " + use,
		Short: "Take it away in the open: what is under way ends first, or is ended",
		Long: "Takes it out, waits with --drain until nothing is in flight there, --deadline at most, then deals with\n" +
			"what is left as --then says and takes it out of the desired state. It tells how many are in flight\n" +
			"meanwhile. Without --drain it is gone at once, and its flows go on under it until they end.\n\n" +
			"  --then rst      what is left after the deadline is reset\n" +
			"  --then fin      what was read is sent on, then both sides see the end\n" +
			"  --then migrate  it moves to another host, with --to NODE",
		Example: "  holdfast " + kind + " remove " + example + " --drain --deadline 30s --then fin",
		Args:    wants(1, 1, wanted),
		RunE: asking(func(c *client, args []string) error {
			if kind == "endpoint" {
				if _, err := endpointRequest("remove", args[0]); err != nil {
					return err
				}
			}
			thens := []string{"rst", "fin", "migrate"}
			switch {
			case f.then != "" && f.then != "rst" && f.then != "fin" && f.then != "migrate":
				return &exit{exitUsage, fmt.Errorf("remove: --then: %q is none of rst, fin, migrate%s", f.then, meant(f.then, thens))}
			case (f.then == "migrate") != (f.to != ""):
				return &exit{exitUsage, errors.New("remove: --then migrate and --to NODE belong together")}
			case f.deadline < 0:
				return &exit{exitUsage, errors.New("remove: --deadline is not negative")}
			case f.deadline > 0 && !f.drain:
				return &exit{exitUsage, errors.New("remove: --deadline is for --drain")}
			}
			q := node.RemoveRequest{Guard: f.guard(), Object: kind + "/" + args[0], Drain: f.drain, Deadline: f.deadline, Then: f.then, To: f.to, Force: f.force}
			return follow(c, func() (*connect.ServerStreamForClient[api.Progress], error) {
				return c.api.Remove(context.Background(), wire.To[api.RemoveRequest](&q))
			}, args[0])
		}),
	}
	f.register(x)
	x.Flags().BoolVar(&f.drain, "drain", false, "let what is under way end by itself")
	x.Flags().DurationVar(&f.deadline, "deadline", 0, "how long --drain waits; 0s: as long as it takes")
	x.Flags().StringVar(&f.then, "then", "", "what becomes of the rest: rst, fin or migrate; without it the rest goes on until it ends")
	x.Flags().StringVar(&f.to, "to", "", "the peer of --then migrate")
	x.Flags().BoolVar(&f.force, "force", false, "also the last one that serves, and what is new will fail")
	return x
}

// follow prints the steps of something that takes a while, and how it ended. A
// process that hands over ends the steps: the next one tells the others when it is
// asked again, which open does.
func follow(c *client, open func() (*connect.ServerStreamForClient[api.Progress], error), name string) error {
	show := steps{c: c, name: name, terminal: sock.IsTerminal(os.Stdout) && !c.json}
	for heard := time.Now(); ; time.Sleep(waitPoll) {
		before := show.count
		ended, err := show.follow(open)
		if ended {
			return err
		}
		if show.count > before {
			heard = time.Now()
		}
		if handedOver(err) || brokenOff(err) {
			if time.Since(heard) < silenceMax {
				continue
			}
		}
		show.newline()
		switch {
		case err != nil:
			return c.refusal(err)
		case c.json:
			return nil
		}
		return &exit{exitFailed, fmt.Errorf("%s: the answer ended before it was done; see: holdfast status", name)}
	}
}

// steps prints steps: on a terminal each in place of the one before.
type steps struct {
	c        *client
	name     string
	terminal bool
	open     bool   // a line has no end yet
	before   string // the last line
	count    int
}

func (x *steps) newline() {
	if x.open {
		fmt.Println()
		x.open = false
	}
}

// follow prints what comes until the last step, or until it breaks off.
func (x *steps) follow(open func() (*connect.ServerStreamForClient[api.Progress], error)) (ended bool, err error) {
	stream, err := open()
	if err != nil {
		return false, err
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		x.count++
		if ended, err := x.step(stream.Msg()); ended {
			return true, err
		}
	}
	return false, stream.Err()
}

// step prints one step, and tells whether it is the last.
func (x *steps) step(m *api.Progress) (last bool, err error) {
	if x.c.json {
		if err := printMessage(m); err != nil {
			return true, err
		}
		if m.GetFailed() != "" {
			return true, &exit{exitFailed, errors.New(m.GetFailed())}
		}
		return m.GetDone(), nil
	}
	var p node.Progress
	if err := wire.From(m, &p); err != nil {
		return true, &exit{exitFailed, err}
	}
	line := progressLine(x.name, &p)
	switch {
	case p.Failed != "":
		x.newline()
		return true, &exit{exitFailed, errors.New(line)}
	case p.Done:
		x.newline()
		if p.Report != nil {
			sayBeside(p.Report)
		}
		fmt.Println(line)
		return true, nil
	case x.terminal:
		fmt.Print(clearLine + wrapOff + line + wrapOn)
		x.open = true
	case line != x.before:
		fmt.Println(line)
	}
	x.before = line
	return false, nil
}

// progressLine is one step in words.
func progressLine(name string, p *node.Progress) string {
	took := short(secondsOf(p.Seconds))
	switch {
	case p.Failed != "":
		return fmt.Sprintf("%s: %s", name, strings.TrimPrefix(p.Failed, "node: "))
	case p.Done:
		text := fmt.Sprintf("%s: %s after %s", name, p.Text, took)
		if p.Cut > 0 {
			text += fmt.Sprintf(", %s ended", count(p.Cut, "flow"))
		}
		if p.Report != nil {
			text += "; " + changeLine(p.Report)
		}
		return text
	}
	return fmt.Sprintf("%s %s: %s", name, p.Phase, p.Text)
}

// shiftWeight moves a weight gradually.
func (c *client) shiftWeight(q node.ShiftRequest) error {
	return follow(c, func() (*connect.ServerStreamForClient[api.Progress], error) {
		return c.api.Shift(context.Background(), wire.To[api.ShiftRequest](&q))
	}, q.Backend+"/"+q.Endpoint)
}

func endpointAddCommand() *cobra.Command {
	var f changeFlags
	var name, zone string
	var weight int
	var backup bool
	var wait time.Duration
	x := &cobra.Command{
		Use:   "add BACKEND ADDRESS",
		Short: "Add an endpoint; it returns when its check has found it up and it is in rotation",
		Long: "Adds an endpoint to a backend of the running holdfast. It gets nothing until its first checks are\n" +
			"done; the command returns when it serves. It stays over reloads and restarts until the file says the\n" +
			"same, or config revert. The name is its address unless --name gives one. With --canary it returns when\n" +
			"that has ended, and fails if it was taken back.",
		Example: "  holdfast endpoint add web 10.0.0.14:8080\n  holdfast endpoint add web 10.0.0.14:8080 --name a4 --weight 50",
		Args:    wants(2, 2, "BACKEND and ADDRESS, as web 10.0.0.14:8080"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			if name == "" {
				name = args[1]
			}
			value := "{ address: " + strconv.Quote(args[1])
			if name != args[1] {
				value += ", name: " + strconv.Quote(name)
			}
			if cmd.Flags().Changed("weight") {
				value += fmt.Sprintf(", weight: %d", weight)
			}
			if backup {
				value += ", backup: true"
			}
			if zone != "" {
				value += ", zone: " + strconv.Quote(zone)
			}
			return c.addEndpoint(&f, args[0], name, value+" }", wait)
		},
	}
	x.Flags().StringVar(&name, "name", "", "its name; without it its address")
	x.Flags().IntVar(&weight, "weight", 100, "its share, 0 to 1000")
	x.Flags().BoolVar(&backup, "backup", false, "serves only when no other one does")
	x.Flags().StringVar(&zone, "zone", "", "where it is")
	x.Flags().DurationVar(&wait, "timeout", 30*time.Second, "how long to wait until it serves; 0s: not at all")
	f.register(x, false)
	return x
}

// addEndpoint adds and waits until what was added serves.
func (c *client) addEndpoint(f *changeFlags, backend, name, value string, wait time.Duration) error {
	full, began := backend+"/"+name, time.Now()
	before, err := c.endpoints()
	if err != nil {
		return err
	}
	for _, e := range before {
		if asked(&e, backend, name) {
			return &exit{exitRefused, fmt.Errorf("refused: there is an endpoint %s already, it is %s; holdfast config set endpoint/%s changes it, endpoint weight its share", full, stateOf(&e), full)}
		}
	}
	q := node.ChangeRequest{Edits: []config.Patch{{Object: "endpoint/" + full, Value: value}}}
	if err := f.request("add", &q); err != nil {
		return err
	}
	if f.dryRun {
		_, err := c.tellChange(c.api.Diff, q, nil)
		return err
	}
	var r node.ChangeReport
	if _, err := ask(c.silently(), c.api.Apply, wire.To[api.ChangeRequest](&q), &r); err != nil {
		return err
	}
	sayBeside(&r)
	if wait == 0 {
		return c.added(f, &r, full, nil, began)
	}
	for heard := time.Now(); ; time.Sleep(waitPoll / 10) {
		all, err := c.endpoints()
		if err != nil {
			if time.Since(heard) < silenceMax {
				continue // it may just be handing over to another process
			}
			return err
		}
		heard = time.Now()
		var idle *node.EndpointState
		here := 0
		for i := range all {
			if e := &all[i]; asked(e, backend, name) {
				if here++; !e.Serves {
					idle = e
				}
			}
		}
		switch {
		case here == 0:
			return &exit{exitFailed, fmt.Errorf("%s is in no configuration any more: somebody took it back meanwhile", full)}
		case idle == nil:
			return c.added(f, &r, full, &all[0], began)
		case time.Since(began) > wait:
			return &exit{exitFailed, fmt.Errorf("%s was added by generation %d and does not serve after %s: %s\nit serves when it is up; holdfast endpoint remove %s takes it away",
				full, r.Generation, short(wait), unready(idle.State, idle.Ejected, idle.SinceSeconds, idle.Why), full)}
		}
	}
}

// addedLine is what --json prints of `endpoint add`.
type addedLine struct {
	Endpoint        string  `json:"endpoint"`
	Generation      uint64  `json:"generation"`
	Serves          bool    `json:"serves"`
	Loops           int     `json:"loops"`
	EffectiveMillis float64 `json:"effective_ms"`
	Durable         string  `json:"durable"`
	Millis          float64 `json:"millis"`
}

// added tells that it is there, and waits for the end of its canary as apply does.
func (c *client) added(f *changeFlags, r *node.ChangeReport, full string, serves *node.EndpointState, began time.Time) error {
	took := time.Since(began)
	if c.json {
		if err := printJSON(addedLine{full, r.Generation, serves != nil, r.Loops, r.EffectiveMillis, r.Durable, millis(took)}); err != nil || f.canary == 0 {
			return err
		}
		return c.awaitCanary(r.Generation)
	}
	what := "added; it serves when its check has found it up,"
	if serves != nil {
		what = "in rotation"
	}
	fmt.Printf("%s %s on %s after %s: generation %d, 0 lost\n", full, what, count(r.Loops, "loop"), short(took), r.Generation)
	if f.canary == 0 {
		return nil
	}
	fmt.Println("canary: " + r.Canary + "; end it early: holdfast canary keep, or rollback")
	return c.awaitCanary(r.Generation)
}

func listenerCommand() *cobra.Command {
	x := group("listener", "Take listeners away in the open; config set and apply make and change them", "remove")
	x.AddCommand(removeCommand("listener", "LISTENER", "a LISTENER, as holdfast status lists them", "old"))
	return x
}

func backendCommand() *cobra.Command {
	x := group("backend", "Shed a share of what is new at a backend, or take one away", "shed", "remove")
	x.AddCommand(shedCommand(), removeCommand("backend", "BACKEND", "a BACKEND, as holdfast status lists them", "old"))
	return x
}

// group is a word that wants one of its verbs.
func group(word, what string, verbs ...string) *cobra.Command {
	there := strings.Join(verbs, ", ")
	return &cobra.Command{
		Use: word, Short: what, Args: wants(1, 1, there),
		RunE: func(_ *cobra.Command, args []string) error {
			return &exit{exitUsage, fmt.Errorf("%s: no verb %q%s; there are: %s", word, args[0], meant(args[0], verbs), there)}
		},
	}
}

func shedCommand() *cobra.Command {
	var g guarded
	var as string
	var hold time.Duration
	x := &cobra.Command{
		Use:   "shed BACKEND PERCENT",
		Short: "Turn away a share of what is new at a backend, for a while; 0% ends it",
		Long: "Turns away an exact share of the new requests or connections of a backend, before any endpoint is\n" +
			"chosen. What is open goes on.\n\n" +
			"  --as reset   the connection is reset\n  --as 503     it is answered 503, or closed where it is not HTTP; so it is without --as\n  --as hold    it is not answered at all",
		Example: "  holdfast backend shed web 20% --as reset --for 10m\n  holdfast backend shed web 0%",
		Args:    wants(2, 2, "a BACKEND and a share, as web 20%"),
		RunE: asking(func(c *client, args []string) error {
			share, err := strconv.ParseFloat(strings.TrimSuffix(args[1], "%"), 64)
			if err != nil || share < 0 || share > 100 {
				return &exit{exitUsage, fmt.Errorf("shed: %q is no share: from 0%% to 100%%", args[1])}
			}
			if hold < 0 {
				return &exit{exitUsage, errors.New("shed: --for is not negative")}
			}
			q := node.ShedRequest{Guard: g.guard(), Backend: args[0], Percent: share, As: as, For: hold}
			var r node.ShedReport
			told, err := ask(c, c.api.Shed, wire.To[api.ShedRequest](&q), &r)
			if err != nil || !told {
				return err
			}
			fmt.Println(shedLine(&r))
			return nil
		}),
	}
	x.Flags().StringVar(&as, "as", "", "reset, 503 or hold")
	x.Flags().DurationVar(&hold, "for", 0, "end by itself after so long; 0s: when it is ended, or the process is")
	g.register(x)
	return x
}

// shedLine says what is shed now.
func shedLine(r *node.ShedReport) string {
	took := fmt.Sprintf(", on %s after %s", count(r.Loops, "loop"), short(millisOf(r.Millis)))
	if r.Percent == 0 {
		if r.Was == 0 {
			return r.Backend + ": nothing is shed, as before" + took
		}
		return fmt.Sprintf("%s: nothing is shed any more (was %g %%)%s", r.Backend, r.Was, took)
	}
	as := r.As
	switch as {
	case "hold":
		as = "held"
	case "503":
		as = "answered 503"
	}
	text := fmt.Sprintf("%s: %g %% of what is new %s", r.Backend, r.Percent, as)
	if !r.Until.IsZero() {
		text += " until " + r.Until.Local().Format(time.TimeOnly)
	}
	return fmt.Sprintf("%s%s; end it early: holdfast backend shed %s 0%%", text, took, r.Backend)
}

// killing are the flags of `flows kill` beside its filters.
type killing struct {
	guarded
	fin, all, yes bool
	rate          float64
	id            string
}

func flowsKillCommand() *cobra.Command {
	var f flowsFlags
	var k killing
	x := &cobra.Command{
		Use:   "kill FILTERS",
		Short: "End flows that all filters want: by reset, or with --fin after what was read is sent on",
		Long: "Ends the flows that all filters want that are given. On a terminal it says how many and asks; elsewhere\n" +
			"it wants --yes. Without a filter it wants --all.",
		Example: "  holdfast flows kill --client 192.0.2.0/24 --yes\n  holdfast flows kill --endpoint web/a1 --older 1h --fin --rate 50\n  holdfast flows kill --id f-7c3100000001",
		Args:    wants(0, 0, "filters only"),
		RunE: asking(func(c *client, _ []string) error {
			if k.id == "" && !f.filtered() && !k.all {
				return &exit{exitUsage, errors.New("kill: wants a filter, as --backend web, or --id of one flow, or --all")}
			}
			if k.rate < 0 {
				return &exit{exitUsage, errors.New("kill: --rate is not negative")}
			}
			return c.kill(&f, &k)
		}),
	}
	f.register(x)
	k.register(x)
	x.Flags().StringVar(&k.id, "id", "", "this one flow, as holdfast flows names it")
	x.Flags().BoolVar(&k.fin, "fin", false, "send on what was read, then end both sides in order; without it they are reset")
	x.Flags().BoolVar(&k.all, "all", false, "all there are")
	x.Flags().BoolVar(&k.yes, "yes", false, "do not ask")
	x.Flags().Float64Var(&k.rate, "rate", 0, "so many a second; 0: all at once")
	return x
}

func (c *client) kill(f *flowsFlags, k *killing) error {
	if err := f.known(c); err != nil {
		return err
	}
	if !k.yes && k.id == "" {
		some, err := c.flows(f.request())
		if err != nil {
			return err
		}
		switch {
		case len(some) == 0 && c.json:
			return printMessage(&api.KillReport{})
		case len(some) == 0:
			return c.killed(&node.KillReport{})
		case !sock.IsTerminal(os.Stdin):
			return &exit{exitUsage, fmt.Errorf("kill: %s would be ended; --yes does it, holdfast flows with the same filters lists them", count(len(some), "flow"))}
		}
		fmt.Fprintf(os.Stderr, "end %s? [y/N] ", count(len(some), "flow"))
		var answer string
		if _, _ = fmt.Scanln(&answer); !strings.EqualFold(answer, "y") && !strings.EqualFold(answer, "yes") {
			return &exit{exitRefused, errors.New("nothing was ended")}
		}
	}
	q := wire.To[api.KillRequest](&node.KillRequest{Guard: k.guard(), ID: k.id, PerSecond: k.rate, All: k.all})
	q.Filter = f.request()
	if k.fin {
		q.Then = "fin"
	}
	var r node.KillReport
	told, err := ask(c, c.api.Kill, q, &r)
	if err != nil || !told {
		return err
	}
	return c.killed(&r)
}

func (c *client) killed(r *node.KillReport) error {
	line := fmt.Sprintf("%s ended in %s", count(r.Killed, "flow"), short(millisOf(r.Millis)))
	if r.Left > 0 {
		line += fmt.Sprintf(", %s still to end", thousands(r.Left))
	}
	fmt.Println(line)
	return nil
}
