package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
	"github.com/holdfast-lb/holdfast/internal/admin/wire"
	"github.com/holdfast-lb/holdfast/internal/node"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// waitPoll is the time between two looks at what is in flight, tellEvery the
// least time between two lines about it where nobody redraws them.
const (
	waitPoll  = 50 * time.Millisecond
	tellEvery = time.Second
)

const endpointWanted = "BACKEND/ENDPOINT, as web/a1; web/* is all of a backend"

func endpointCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "endpoint",
		Short: "Take endpoints out and back: quiesce, hold, maint, ready, weight; add, remove; list shows them",
		Long: "What is said here is in force on every event loop when the command returns, and stays so\n" +
			"over reloads and upgrades until it is said otherwise.\n\n" +
			"  ready      serves\n" +
			"  maint      gets nothing at all; what runs goes on. This is for a restart\n" +
			"  quiescing  gets nothing new; what runs, and clients that are sticky to it, go on: they come\n" +
			"             again and again, so this is for sessions that shall end slowly, not for a restart\n" +
			"  held       gets nothing new; requests that nothing else can serve wait in the backend's\n" +
			"             queue instead of failing, those of sticky clients, too\n\n" +
			"A server is restarted without an error by\n\n" +
			"  holdfast endpoint maint web/a1 --wait     ... restart it ...    holdfast endpoint ready web/a1 --wait\n\n" +
			"and one that is alone by hold instead of maint. The last one that serves is taken out by --force only.",
		Args: wants(1, 1, "list, quiesce, ready, maint, hold, weight, add or remove"),
		RunE: func(_ *cobra.Command, args []string) error {
			verbs := []string{"list", "quiesce", "ready", "maint", "hold", "weight", "add", "remove"}
			return &exit{exitUsage, fmt.Errorf("endpoint: no verb %q%s; there are: %s", args[0], meant(args[0], verbs), strings.Join(verbs, ", "))}
		},
	}
	c.AddCommand(
		endpointVerb("maint", "Give it nothing at all, to restart it; what runs goes on"),
		endpointVerb("ready", "Let it serve again"),
		endpointVerb("quiesce", "Give it nothing new; what runs goes on, and so do clients that are sticky to it"),
		endpointVerb("hold", "Let requests wait for it, while it restarts"),
		endpointWeightCommand(), endpointAddCommand(),
		removeCommand("endpoint", "BACKEND/ENDPOINT", "BACKEND/ENDPOINT, as web/a1", "web/a2"), endpointListCommand())
	return c
}

var endpointExamples = map[string]string{
	"quiesce": "web/a1 --wait --timeout 5m", "ready": "web/a1 --wait --timeout 1m", "maint": "web/a1 --wait", "hold": "web/a1 --for 30s",
}

// endpointVerb makes one of the verbs that want only an endpoint.
func endpointVerb(do, what string) *cobra.Command {
	var w patience
	var hold time.Duration
	var force bool
	var g guarded
	c := &cobra.Command{
		Use: do + " BACKEND/ENDPOINT", Short: what, Args: wants(1, 1, endpointWanted),
		Long:    what + ".\nIt is in force on every event loop when the command returns; web/* is all endpoints of web.",
		Example: "  holdfast endpoint " + do + " " + endpointExamples[do],
		RunE: asking(func(c *client, args []string) error {
			q, err := endpointRequest(do, args[0])
			if err != nil {
				return err
			}
			if do == "hold" && hold < time.Second {
				return &exit{exitUsage, errors.New("hold: --for is at least 1s; endpoint ready ends it before")}
			}
			q.Seconds, q.Force, q.Guard = hold.Seconds(), force, g.guard()
			return c.setEndpoint(q, w)
		}),
	}
	if do == "hold" {
		c.Flags().DurationVar(&hold, "for", node.HoldTime, "ready again by itself after so long")
	}
	until := "return when nothing is in flight any more"
	switch do {
	case "ready":
		until = "return when it serves: its checks have found it up"
	case "quiesce", "maint":
		c.Flags().BoolVar(&force, "force", false, "also if nothing else serves, and what is new will fail")
	}
	c.Flags().BoolVar(&w.wait, "wait", false, until)
	c.Flags().DurationVar(&w.max, "timeout", 0, "how long --wait waits; 0s: as long as it takes")
	g.register(c)
	return c
}

// fileWeight is what `endpoint weight` is told for the weight of the file.
const fileWeight = "file"

func endpointWeightCommand() *cobra.Command {
	var force bool
	var over time.Duration
	var abortOn string
	var g guarded
	x := &cobra.Command{
		Use: "weight BACKEND/ENDPOINT N", Short: "Give it another share: 0 to 1000, or file for that of the file; at once or --over a time",
		Long: "Gives an endpoint another share of what is new, at once or, with --over, step by step. A gradual\n" +
			"change drops back to the weight there was if what --abort-on says comes true, and goes on when this\n" +
			"command is ended.",
		Example: "  holdfast endpoint weight web/a2 20\n  holdfast endpoint weight web/a2 100 --over 10m --abort-on 'errors>1%'",
		Args:    wants(2, 2, endpointWanted+", and a weight"),
		RunE: asking(func(c *client, args []string) error {
			q, err := endpointRequest("weight", args[0])
			if err != nil {
				return err
			}
			q.Weight, q.Force, q.Guard = -1, force, g.guard()
			if args[1] != fileWeight {
				n, err := strconv.Atoi(args[1])
				if err != nil || n < 0 || n > 1000 {
					return &exit{exitUsage, fmt.Errorf("weight: %q is not a whole number from 0 to 1000, or %s", args[1], fileWeight)}
				}
				q.Weight = n
			}
			switch {
			case over < 0:
				return &exit{exitUsage, errors.New("weight: --over is not negative")}
			case over == 0 && abortOn != "":
				return &exit{exitUsage, errors.New("weight: --abort-on is for a gradual change: add --over 10m")}
			case over > 0 && q.Weight < 0:
				return &exit{exitUsage, errors.New("weight: --over wants a number; `file` is at once")}
			case over > 0 && q.Endpoint == "*":
				return &exit{exitUsage, errors.New("weight: --over is for one endpoint")}
			}
			if over > 0 {
				return c.shiftWeight(node.ShiftRequest{Guard: q.Guard, Backend: q.Backend, Endpoint: q.Endpoint, Weight: q.Weight, Over: over, AbortOn: abortOn})
			}
			return c.setEndpoint(q, patience{})
		}),
	}
	x.Flags().BoolVar(&force, "force", false, "0 also if nothing else serves, and what is new will fail")
	x.Flags().DurationVar(&over, "over", 0, "get there gradually, in so long")
	x.Flags().StringVar(&abortOn, "abort-on", "", "with --over: drop back if this comes true, as 'errors>1%,p99>250ms'")
	g.register(x)
	return x
}

func endpointRequest(do, full string) (node.EndpointRequest, error) {
	backend, name, ok := strings.Cut(full, "/")
	if !ok || backend == "" || name == "" {
		return node.EndpointRequest{}, &exit{exitUsage, fmt.Errorf("%s: %q: wants %s", do, full, endpointWanted)}
	}
	return node.EndpointRequest{Backend: backend, Endpoint: name, Do: do}, nil
}

// patience says whether and how long to wait until nothing is in flight.
type patience struct {
	wait bool
	max  time.Duration // 0: no bound
}

// setEndpoint asks for a change, tells what it came to and waits if it shall.
func (c *client) setEndpoint(q node.EndpointRequest, w patience) error {
	began := time.Now()
	silent := c.silently()
	var r node.EndpointReport
	if _, err := ask(silent, c.api.SetEndpoint, wire.To[api.EndpointRequest](q), &r); err != nil {
		return c.refusedEndpoint(q, err)
	}
	p := progress{json: c.json, waits: w.wait, terminal: sock.IsTerminal(os.Stdout), first: r.InFlight, last: r.InFlight, began: began, told: time.Now()}
	p.name = q.Backend + "/" + q.Endpoint
	p.begin(&r, q)
	if !w.wait {
		return p.end("")
	}
	if q.Do == "ready" {
		return awaitServing(silent, &p, q, w)
	}
	heard := time.Now()
	for {
		states, err := silent.endpoints()
		if err != nil && time.Since(heard) < silenceMax {
			time.Sleep(waitPoll) // it may just be handing over to another process
			continue
		}
		if err != nil {
			return errors.Join(p.end(""), err)
		}
		inFlight, changed, here := int64(0), "", map[string]bool{}
		for _, e := range states {
			if !asked(&e, q.Backend, q.Endpoint) {
				continue
			}
			here[e.Name] = true
			inFlight += e.InFlight
			if e.Admin == "ready" {
				changed = e.Name
			}
		}
		left, err := silent.removed(r.Each, here)
		if err != nil {
			if time.Since(heard) < silenceMax {
				time.Sleep(waitPoll)
				continue
			}
			return errors.Join(p.end(""), err)
		}
		heard = time.Now()
		inFlight += left
		switch {
		case changed != "":
			return errors.Join(p.end(""), &exit{exitFailed, fmt.Errorf("%s: somebody made it ready meanwhile; not waiting any more", changed)})
		case inFlight == 0:
			p.tell(0)
			done := fmt.Sprintf(": done in %s", short(time.Since(began)))
			if r.Sticky {
				done += "; clients sticky to it still come, endpoint maint sends them elsewhere"
			}
			return p.end(done)
		case w.max > 0 && time.Since(began) > w.max:
			p.tell(inFlight)
			return errors.Join(p.end(""), &exit{exitFailed, fmt.Errorf("%s: %d still in flight after %s; it stays as it is now\nsee: holdfast flows --endpoint %s",
				p.name, inFlight, short(w.max), p.name)})
		}
		p.tell(inFlight)
		time.Sleep(waitPoll)
	}
}

// awaitServing waits until all endpoints that were made ready serve.
func awaitServing(silent *client, p *progress, q node.EndpointRequest, w patience) error {
	for heard := p.began; ; time.Sleep(waitPoll) {
		states, err := silent.endpoints()
		if err != nil {
			if time.Since(heard) < silenceMax {
				continue // it may just be handing over to another process
			}
			return errors.Join(p.end(""), err)
		}
		heard = time.Now()
		taken, idle, here := "", "", 0
		for _, e := range states {
			if !asked(&e, q.Backend, q.Endpoint) {
				continue
			}
			here++
			if e.Admin != "ready" {
				taken = fmt.Sprintf("%s: somebody made it %s meanwhile; not waiting any more", e.Name, e.Admin)
			}
			if !e.Serves && idle == "" {
				idle = e.Name + ": " + unready(e.State, e.Ejected, e.SinceSeconds, e.Why)
			}
		}
		switch {
		case taken != "":
			return errors.Join(p.end(""), &exit{exitFailed, errors.New(taken)})
		case here == 0:
			return errors.Join(p.end(""), &exit{exitFailed, fmt.Errorf("%s is in no configuration any more", p.name)})
		case idle == "":
			return p.serves(time.Since(p.began))
		case w.max > 0 && time.Since(p.began) > w.max:
			return errors.Join(p.end(""), &exit{exitFailed, fmt.Errorf("%s does not serve after %s; it stays ready, and serves when it can\n%s", p.name, short(w.max), idle)})
		}
	}
}

// unready says why an endpoint that is ready does not serve yet.
func unready(state string, ejected bool, seconds float64, why string) string {
	since := short(time.Duration(seconds * 1e9))
	text := "its check says " + state + " since " + since
	switch {
	case ejected:
		text = "ejected, for clients met failures"
	case state == "checking":
		text = "its first check is not done"
	}
	if why != "" {
		text += " (" + why + ")"
	}
	return text
}

// removed is what is in flight at those of all that are not here: they have left
// the configuration, or their name has another address, and what they serve goes on.
func (c *client) removed(all []node.EndpointChange, here map[string]bool) (inFlight int64, err error) {
	if !slices.ContainsFunc(all, func(x node.EndpointChange) bool { return !here[x.Endpoint] }) {
		return 0, nil
	}
	s, err := c.status()
	if err != nil {
		return 0, err
	}
	for _, x := range all {
		for _, e := range s.Endpoints {
			if e.Name == x.Endpoint && !here[x.Endpoint] {
				inFlight += e.InUse + e.Foreign
			}
		}
	}
	return inFlight, nil
}

// progress prints how much is in flight: on a terminal in one line that is
// redrawn, elsewhere in a line for each change, as objects with --json.
type progress struct {
	json, terminal bool
	waits          bool
	name, head     string
	first, last    int64
	idle           int // that are ready and do not serve yet
	began, told    time.Time
	err            error // of printing
}

// flight is a line of `--json` after the first.
type flight struct {
	Endpoint string  `json:"endpoint"`
	InFlight int64   `json:"in_flight"`
	Done     bool    `json:"done,omitempty"`
	Millis   float64 `json:"millis,omitempty"`
}

func (p *progress) object(v any) {
	if err := json.NewEncoder(os.Stdout).Encode(v); err != nil && p.err == nil {
		p.err = err
	}
}

func (p *progress) print(text string) {
	if _, err := os.Stdout.WriteString(text); err != nil && p.err == nil {
		p.err = err
	}
}

// begin tells what has been done.
func (p *progress) begin(r *node.EndpointReport, q node.EndpointRequest) {
	if p.json {
		p.object(r)
		return
	}
	p.head = endpointLine(r, q)
	if p.waits {
		p.head = strings.TrimSuffix(p.head, waitHint)
	}
	if p.waits && q.Do != "ready" {
		p.head += fmt.Sprintf("; in flight %d", p.first)
	} else if q.Do != "ready" && q.Do != "weight" {
		p.head += fmt.Sprintf("; %d in flight", p.first)
	}
	if r.Note != "" {
		p.print("note: " + r.Note + "\n")
	}
	if q.Do == "ready" {
		for _, x := range r.Each {
			if !x.Serves {
				p.idle++
			}
		}
	}
	p.print(p.head)
	if !p.terminal && p.waits {
		p.print("\n")
	}
}

// serves ends the waiting for what is ready.
func (p *progress) serves(took time.Duration) error {
	switch {
	case p.json:
		p.object(flight{Endpoint: p.name, Done: true, Millis: float64(took.Milliseconds())})
	case p.terminal && p.idle == 0:
		p.print("\n")
	case p.terminal:
		p.print("\n" + p.name + " serves after " + short(took) + "\n")
	case p.idle > 0:
		p.print(p.name + " serves after " + short(took) + "\n")
	}
	if p.err != nil {
		return &exit{exitFailed, p.err}
	}
	return nil
}

// endpointLine says what a change came to, without what is in flight.
func endpointLine(r *node.EndpointReport, q node.EndpointRequest) string {
	if q.Do == "ready" {
		if line := readyYetIdle(r); line != "" {
			return line
		}
	}
	what := r.Is
	if r.Was == r.Is {
		what += " as before,"
	}
	line := fmt.Sprintf("%s %s on all %d loops after %s", r.Endpoint, what, r.Loops, short(time.Duration(r.EffectiveMillis*float64(time.Millisecond))))
	if q.Do == "hold" {
		hold := node.HoldTime
		if q.Seconds > 0 {
			hold = secondsOf(q.Seconds)
		}
		line += ", for " + short(hold) + " at most"
	}
	return line
}

const waitHint = " (--wait waits for that)"

// readyYetIdle says what keeps those from serving that were made ready; "" if
// nothing does.
func readyYetIdle(r *node.EndpointReport) string {
	serving, first := 0, ""
	for _, x := range r.Each {
		switch {
		case x.Serves:
			serving++
		case first == "":
			state := x.Health
			if x.Is != "ejected" && x.Is != "ready" {
				state = x.Is // also of an agent
			}
			if first = unready(state, x.Ejected, x.SinceSeconds, x.Why); len(r.Each) > 1 {
				first = x.Endpoint + ": " + first
			}
		}
	}
	switch {
	case first == "":
		return ""
	case len(r.Each) == 1:
		return fmt.Sprintf("%s is ready, %s: it serves when it is up%s", r.Endpoint, first, waitHint)
	}
	return fmt.Sprintf("%s is ready, %d of %d serve (%s): each serves when it is up%s", r.Endpoint, serving, len(r.Each), first, waitHint)
}

// tell tells that so many are in flight now.
func (p *progress) tell(n int64) {
	if n == p.last || p.json && n == 0 {
		p.last = n
		return
	}
	switch {
	case p.json:
		p.object(flight{Endpoint: p.name, InFlight: n})
	case p.terminal:
		p.print(clearLine + wrapOff + p.head + " ... " + strconv.FormatInt(n, 10) + wrapOn)
	case n == 0: // stands in the last line
	case time.Since(p.told) >= tellEvery:
		p.print(fmt.Sprintf("%s in flight %d\n", p.name, n))
	default:
		return // told later, if it stays so
	}
	p.last, p.told = n, time.Now()
}

// end closes the line; done is empty unless all has been waited for.
func (p *progress) end(done string) error {
	switch {
	case p.json && done != "":
		p.object(flight{Endpoint: p.name, Done: true, Millis: float64(time.Since(p.began).Milliseconds())})
	case p.json:
	case p.terminal, !p.waits:
		p.print(done + "\n")
	case done != "":
		p.print(fmt.Sprintf("%s in flight 0%s\n", p.name, done))
	}
	if p.err != nil {
		return &exit{exitFailed, p.err}
	}
	return nil
}

// refusedEndpoint adds to a refusal the names that were meant, perhaps.
func (c *client) refusedEndpoint(q node.EndpointRequest, err error) error {
	var e *exit
	if !errors.As(err, &e) || e.code != exitRefused {
		return err
	}
	states, err2 := c.endpoints()
	if err2 != nil {
		return err
	}
	var names, backends []string
	for _, s := range states {
		names = append(names, s.Name)
		if len(backends) == 0 || backends[len(backends)-1] != s.Backend {
			backends = append(backends, s.Backend)
		}
	}
	return unknownEndpoint(q.Backend, q.Endpoint, names, backends, err)
}

// unknownEndpoint says that there is no such endpoint and which one may be
// meant. If there is one, err is about something else and stays.
func unknownEndpoint(backend, name string, names, backends []string, err error) error {
	full := backend + "/" + name
	for _, n := range names {
		if n == full || strings.HasPrefix(n, full+"/") || name == "*" && strings.HasPrefix(n, backend+"/") {
			return err
		}
	}
	if name == "*" {
		return &exit{exitRefused, fmt.Errorf("refused: no backend %q%s; there are: %s", backend, meant(backend, backends), some(backends))}
	}
	return &exit{exitRefused, fmt.Errorf("refused: no endpoint %q%s; there are: %s", full, meant(full, names), some(names))}
}

// some is the first of many names.
func some(names []string) string {
	const most = 12
	if len(names) > most {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}

func endpointListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list [BACKEND[/ENDPOINT]]", Short: "Show endpoints, their states and what is in flight", Args: wants(0, 1, "one BACKEND or BACKEND/ENDPOINT at most"),
		RunE: asking(func(c *client, args []string) error {
			all, err := c.endpoints()
			if err != nil {
				return err
			}
			if len(args) > 0 {
				if all, err = chosen(all, args[0]); err != nil {
					return err
				}
			}
			if c.json {
				if err := json.NewEncoder(os.Stdout).Encode(all); err != nil {
					return &exit{exitFailed, err}
				}
				return nil
			}
			fmt.Print(endpointTable(all, nil).String())
			return nil
		}),
	}
}

// asked tells whether e is meant by name: its own, "*", or a host name of which
// it is an address.
func asked(e *node.EndpointState, backend, name string) bool {
	full := backend + "/" + name
	return e.Backend == backend && (name == "*" || e.Name == full || strings.HasPrefix(e.Name, full+"/"))
}

// chosen gives the endpoints of a backend, or one endpoint.
func chosen(all []node.EndpointState, what string) ([]node.EndpointState, error) {
	backend, name, one := strings.Cut(what, "/")
	if !one {
		name = "*"
	}
	var out []node.EndpointState
	var names, backends []string
	for _, e := range all {
		if asked(&e, backend, name) {
			out = append(out, e)
		}
		names = append(names, e.Name)
		if len(backends) == 0 || backends[len(backends)-1] != e.Backend {
			backends = append(backends, e.Backend)
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	return nil, unknownEndpoint(backend, name, names, backends, nil)
}
