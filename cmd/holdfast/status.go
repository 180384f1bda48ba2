package main

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// rowsMax is how many listeners, backends and endpoints each `status` lists unless
// it is told to list all; those come first of which there is most to say.
const rowsMax = 20

func statusCommand() *cobra.Command {
	var verbose bool
	x := &cobra.Command{
		Use:   "status",
		Short: "Show what the running holdfast is doing",
		Long: "One line says how it is; then listeners, backends and endpoints, and the sums that must\n" +
			"balance. Of many those are listed of which there is most to say; --verbose lists all.",
		Args: wants(0, 0, "no argument"),
		RunE: asking(func(c *client, _ []string) error {
			var s node.Status
			told, err := ask(c, c.api.Status, &api.StatusRequest{}, &s)
			if err != nil || !told {
				return err
			}
			endpoints, err := c.endpoints()
			if err != nil {
				return err
			}
			fmt.Print(statusText(&s, endpoints, verbose))
			return nil
		}),
	}
	x.Flags().BoolVar(&verbose, "verbose", false, "list all, however many")
	return x
}

// stateOf says how an endpoint is: what an operator or its agent wants of it, or
// what checks and clients find; and the latter also beside the former if it is bad.
func stateOf(e *node.EndpointState) string {
	if e.State != e.Health && (e.Health == "down" || e.Health == "checking") {
		return e.State + ", " + e.Health
	}
	return e.State
}

// weightOf is the weight that counts, with the one it was made from if that is
// another one.
func weightOf(e *node.EndpointState) string {
	if e.EffectiveWeight != float64(e.Weight) {
		return fmt.Sprintf("%.3g of %d", e.EffectiveWeight, e.Weight)
	}
	return strconv.Itoa(e.Weight)
}

// endpointTable lists endpoints. rates, if there are any, has what happened in
// the last second at each, by name.
func endpointTable(all []node.EndpointState, rates map[string]rate) *table {
	t := &table{head: []string{"ENDPOINT", "ADDRESS", "STATE", ">WEIGHT", ">IN FLIGHT", ">LATENCY", ">TRIES", ">FAILED"}}
	if rates != nil {
		t.head = append(t.head, ">REQ/S", ">5XX/S")
	}
	t.head = append(t.head, "SINCE, WHY")
	for i := range all {
		e := &all[i]
		latency := "-"
		if e.LatencyMillis > 0 {
			latency = short(time.Duration(e.LatencyMillis * 1e6))
		}
		row := []string{e.Name, e.Address, stateOf(e), weightOf(e), thousands(e.InFlight), latency, thousands(e.Tries), thousands(e.Failures)}
		if rates != nil {
			r := rates[e.Name]
			row = append(row, perSecond(r.requests), perSecond(r.errors))
		}
		t.add(append(row, why(e))...)
	}
	return t
}

// why says since when an endpoint is as it is, and what its last check or
// failure said.
func why(e *node.EndpointState) string {
	text := short(time.Duration(e.SinceSeconds * 1e9))
	if e.ReadySeconds > 0 {
		text += ", ready in " + short(secondsOf(e.ReadySeconds))
	}
	if e.EjectedSeconds > 0 {
		text += ", ejected for " + short(secondsOf(e.EjectedSeconds))
	}
	if e.Backup {
		text += ", backup"
	}
	if e.Agent != "" {
		text += ", agent: " + e.Agent
	}
	if bad := complaint(e); bad != "" {
		text += ", " + bad
	}
	return text
}

// complaint is what a check or an agent has against an endpoint. That it is well
// needs no words.
func complaint(e *node.EndpointState) string {
	switch e.Health {
	case "up", "unknown":
		return ""
	}
	return e.Why
}

// statusText is what `status` prints.
func statusText(s *node.Status, endpoints []node.EndpointState, verbose bool) string {
	var out strings.Builder
	var idle []string // that serve nothing new
	for i := range endpoints {
		if e := &endpoints[i]; !e.Serves {
			text := e.Name + ": " + stateOf(e)
			if bad := complaint(e); bad != "" {
				text += ", " + bad
			}
			idle = append(idle, fmt.Sprintf("%s, %s", text, short(secondsOf(e.SinceSeconds))))
		}
	}
	what := count(len(endpoints), "endpoint")
	if len(idle) > 0 {
		text := idle[0]
		if len(idle) > 1 {
			text += fmt.Sprintf("; and %d more", len(idle)-1)
		}
		what = fmt.Sprintf("%d of %d endpoints not serving (%s)", len(idle), len(endpoints), text)
	}
	fmt.Fprintf(&out, "%s generation %d: %s, %s, %s, lost %d (release %s, pid %d, up %s)\n\n",
		nodeWords(s.Node), s.Generation, count(len(s.Listeners), "listener"), what, count(s.Flows, "flow"), s.LostInAll(), s.Release, s.PID, short(secondsOf(s.UpSeconds)))

	listeners := table{head: []string{"LISTENER", "VIP", ">CONNECTIONS"}}
	busiest := func(a, b node.ListenerStatus) int { return cmp.Compare(b.Connections, a.Connections) }
	for _, l := range first(s.Listeners, verbose, busiest) {
		listeners.add(l.Name, l.VIP, thousands(l.Connections))
	}
	out.WriteString(listeners.String() + more(len(s.Listeners), verbose) + "\n")

	if backends := backendTable(s, endpoints, nil); len(backends.rows) > 0 {
		worst := map[string]int{} // how many endpoints of each do not serve
		for i := range endpoints {
			worst[endpoints[i].Backend] += boolInt(!endpoints[i].Serves)
		}
		all := len(backends.rows)
		backends.rows = first(backends.rows, verbose, func(a, b []string) int { return cmp.Compare(worst[b[0]], worst[a[0]]) })
		out.WriteString(backends.String() + more(all, verbose) + "\n")
	}
	listed := first(endpoints, verbose, worse)
	if len(listed) > 0 {
		out.WriteString(endpointTable(listed, nil).String())
	}
	out.WriteString(more(len(endpoints), verbose))
	for _, e := range s.Endpoints {
		if e.Removed {
			fmt.Fprintf(&out, "%s (%s) is in no configuration any more and has %d in use\n", e.Name, e.Address, e.InUse)
		}
	}
	out.WriteString("\n")
	desired(&out, s)
	sums(&out, s)
	return out.String()
}

// oldMax is how many old objects with flows on them `status` lists.
const oldMax = 5

// desired says how it stands with what is desired, and what is under way with it.
func desired(out *strings.Builder, s *node.Status) {
	text := "durable"
	switch why, isNot := strings.CutPrefix(s.Durable, "no"); {
	case isNot:
		text = "NOT durable" + why
	case s.Durable == "pending":
		text = "not durable yet"
	}
	switch s.Drift {
	case 0:
		text += "; the file says all of it"
	default:
		text += fmt.Sprintf("; %s beside the file (holdfast config diff)", count(s.Drift, "change"))
	}
	if s.FileDiffers {
		text += "; the file on disk is not what was applied last (holdfast config diff)"
	}
	if s.Waiting > 0 {
		text += fmt.Sprintf("; %s waiting", count(s.Waiting, "change"))
	}
	fmt.Fprintf(out, "desired   generation %d %s\n", s.Generation, text)
	if s.Canary != "" {
		hint := ""
		if strings.Contains(s.Canary, " is watched until ") {
			hint = " (holdfast canary keep, or rollback)"
		}
		fmt.Fprintf(out, "canary    %s%s\n", s.Canary, hint) // of one that is settled what came of it
	}
	for _, x := range s.Shifts {
		what := strings.TrimPrefix(x.Object, "endpoint/")
		fmt.Fprintf(out, "shift     weight of %s: %d, from %d to %d in %s", what, x.Weight, x.From, x.To, short(max(0, time.Until(x.Ends).Round(time.Second))))
		if x.AbortOn != "" {
			fmt.Fprintf(out, ", back if %s", x.AbortOn)
		}
		out.WriteString(by(x.By, time.Time{}) + "\n")
	}
	for _, x := range s.Sheds {
		fmt.Fprintf(out, "shed      %s: %g %% of what is new by %s, %s so far", x.Backend, x.Percent, x.As, thousands(x.Turned))
		if !x.Until.IsZero() {
			fmt.Fprintf(out, ", for %s more", short(max(0, time.Until(x.Until).Round(time.Second))))
		}
		fmt.Fprintf(out, "%s (holdfast backend shed %s 0%%)\n", by(x.By, time.Time{}), x.Backend)
	}
	for _, x := range s.Removing {
		fmt.Fprintf(out, "removing  %s: %s, in flight %s%s\n", x.Object, x.Phase, thousands(x.InFlight), by(x.By, time.Time{}))
	}
	for _, x := range s.Following {
		fmt.Fprintf(out, "follow    generation %d: %s have followed, %s are left, %g a second\n", x.Generation, thousands(x.Followed), thousands(x.Left), x.PerSecond)
	}
	for i, x := range s.OldObjects {
		if i == oldMax {
			fmt.Fprintf(out, "old       ... and %d more\n", len(s.OldObjects)-i)
			break
		}
		how := "replaced"
		if x.Gone {
			how = "taken away"
		}
		fmt.Fprintf(out, "old       %s go on under %s as it was, %s %s ago\n", count(x.Flows, "flow"), x.Object, how, short(secondsOf(x.AgeSeconds)))
	}
	upgrades(out, s)
	cluster(out, s)
	if lost := lossWords(s.Kernel); lost != "" {
		fmt.Fprintf(out, "kernel    around changes it dropped who came to a listener of this machine: %s\n", lost)
	}
}

// upgrades says what is under way of an upgrade, what came of the last one, and
// what replaced processes still have.
func upgrades(out *strings.Builder, s *node.Status) {
	if p := s.Upgrading; p != nil {
		fmt.Fprintf(out, "upgrade   %s\n", underWay(p))
	}
	if u := s.LastUpgrade; u != nil {
		text := plainText(u.Why)
		if u.Result == "done" && u.Move != nil {
			text = fmt.Sprintf("process %d -> %d, %s moved in %s, %d lost", u.Was, u.Move.PID, count(u.Move.Flows, "flow"), short(millisOf(u.Move.Millis)), u.Move.Lost)
		}
		text = strings.TrimPrefix(text, "aborted: ")
		fmt.Fprintf(out, "upgrade   %s %s ago: %s%s\n", u.Result, short(max(0, time.Since(u.At).Round(time.Second))), text, by(u.By, time.Time{}))
	}
	for i := range s.Residue {
		fmt.Fprintf(out, "residue   %s\n", residueLine(&s.Residue[i]))
	}
}

// cluster says how the cluster is: who is being evacuated, where VIPs are, what moves,
// and what came of the last move.
func cluster(out *strings.Builder, s *node.Status) {
	for _, line := range hostLines(s) {
		fmt.Fprintf(out, "%-9s %s\n", line[0], line[1])
	}
	if u := s.LastMove; u != nil {
		text := plainText(u.Why)
		if r := u.Move; u.Result == "done" && r != nil {
			where := u.VIP + " " + u.From + " -> " + u.To
			switch {
			case u.What == "evacuate":
				where = u.From + " was freed"
			case u.What == "return":
				where = u.To + " has returned"
			case u.VIP == "":
				where = u.From + " -> " + u.To
			}
			text = fmt.Sprintf("%s, %s moved in %s, %d lost, pause max %s", where,
				count(r.Flows, "flow"), short(millisOf(r.Millis)), r.Lost, short(microsOf(r.Pause.Max)))
		}
		text = strings.TrimPrefix(text, "aborted: ")
		fmt.Fprintf(out, "move      %s %s ago: %s%s\n", u.Result, short(max(0, time.Since(u.At).Round(time.Second))), text, by(u.By, time.Time{}))
	}
}

// hostLines are what status and top say of the cluster: a word and its line.
func hostLines(s *node.Status) (lines [][2]string) {
	for _, x := range s.Nodes {
		switch {
		case x.Evacuating && x.Self && s.Free:
			lines = append(lines, [2]string{"node", x.Name + " is evacuated and free (holdfast return)"})
		case x.Evacuating:
			lines = append(lines, [2]string{"node", x.Name + " is being evacuated: its servers get nothing new (holdfast return --node " + x.Name + ")"})
		}
		if !x.Self && x.HeardSeconds > heardLately {
			lines = append(lines, [2]string{"node", fmt.Sprintf("%s has not answered for %s", x.Name, short(secondsOf(x.HeardSeconds)))})
		}
		if !x.Self && x.HeardSeconds < 0 && s.UpSeconds > heardLately {
			lines = append(lines, [2]string{"node", x.Name + " has not answered yet"})
		}
	}
	for _, v := range s.VIPs {
		owner := v.Owner
		if owner == "" { // no record of one has been found yet
			owner = "an unknown node"
		}
		text := fmt.Sprintf("%s (%s) on %s", v.Name, v.Address, owner)
		switch v.State {
		case "owned":
			text += ", which is this node"
		case "moving":
			text += " -> " + v.To
		case "guest":
			text += "; what comes late is sent on to it"
		case "silent":
			text += ", but SILENT: " + v.Why
		case "elsewhere":
			if v.Why != "" {
				text += ", but " + v.Why
			}
		}
		lines = append(lines, [2]string{"vip", text})
	}
	if p := s.Moving; p != nil {
		lines = append(lines, [2]string{"move", underWay(p)})
	}
	for _, r := range s.HostResidue {
		var why []string
		for _, name := range sortedKeys(r.Reasons) {
			why = append(why, fmt.Sprintf("%s %s", thousands(r.Reasons[name]), name))
		}
		lines = append(lines, [2]string{"residue", fmt.Sprintf("%s of VIP %s go on here, which %s owns now (%s); what is left is ended in %s",
			count(r.Flows, "flow"), r.VIP, r.To, strings.Join(why, ", "), short(max(0, time.Until(r.Until).Round(time.Second))))})
	}
	return lines
}

// underWay is how far an upgrade or a move is.
func underWay(p *node.Progress) string {
	return fmt.Sprintf("under way for %s: %s", short(secondsOf(p.Seconds)), strings.TrimPrefix(p.Phase+": "+p.Text, ": "))
}

// residueLine is what a replaced process still has.
func residueLine(r *node.ResidueStatus) string {
	var why []string
	for _, name := range sortedKeys(r.Reasons) {
		why = append(why, fmt.Sprintf("%s %s", thousands(r.Reasons[name]), name))
	}
	return fmt.Sprintf("%s in process %d of release %s, which was replaced (%s); what is left is ended in %s",
		count(r.Flows, "flow"), r.PID, cmp.Or(r.Release, "unknown"), strings.Join(why, ", "), short(max(0, time.Until(r.Until).Round(time.Second))))
}

// secondsOf is a duration as reports have it.
func secondsOf(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }

// first gives the rows to list of many.
func first[T any](all []T, verbose bool, order func(a, b T) int) []T {
	if verbose || len(all) <= rowsMax {
		return all
	}
	all = slices.Clone(all)
	slices.SortStableFunc(all, order)
	return all[:rowsMax]
}

// more says how many rows first has left out.
func more(all int, verbose bool) string {
	if verbose || all <= rowsMax {
		return ""
	}
	return fmt.Sprintf("... and %s more; --verbose lists all\n", thousands(all-rowsMax))
}

// worse has those first that do not serve.
func worse(a, b node.EndpointState) int { return cmp.Compare(boolInt(a.Serves), boolInt(b.Serves)) }

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// sums are the counts that go over all.
func sums(out *strings.Builder, s *node.Status) {
	var states []string
	for _, k := range sortedKeys(s.ByState) {
		states = append(states, fmt.Sprintf("%s %d", k, s.ByState[k]))
	}
	if states == nil {
		states = []string{"none"}
	}
	fmt.Fprintf(out, "flows     %s; on old objects %d; by loop %v\n", strings.Join(states, ", "), s.OnOld, s.Loops)
	var ended []string
	sum := uint64(0)
	for _, k := range sortedKeys(s.Ended) {
		ended = append(ended, fmt.Sprintf("%s %s", k, thousands(s.Ended[k])))
		sum += s.Ended[k]
	}
	if ended == nil {
		ended = []string{"none"}
	}
	fmt.Fprintf(out, "balance   accepted %s + arrived %s = ended %s (%s) + left %s + open %s",
		thousands(s.Accepted), thousands(s.Arrived), thousands(sum), strings.Join(ended, ", "), thousands(s.Left), thousands(s.Flows))
	if s.Totals.Refused > 0 {
		fmt.Fprintf(out, " + refused at once %s", thousands(s.Totals.Refused))
	}
	if s.Stayed > 0 {
		fmt.Fprintf(out, " + left with the old process %s", thousands(s.Stayed))
	}
	out.WriteByte('\n')
	if s.Requests > 0 {
		var classes []string
		for _, k := range sortedKeys(s.Responses) {
			classes = append(classes, fmt.Sprintf("%s %s", k, thousands(s.Responses[k])))
		}
		if classes == nil {
			classes = []string{"none answered yet"}
		}
		fmt.Fprintf(out, "http      %s requests; %s; answered by ourselves %s, sent again %s, on pooled legs %s; %d legs idle\n",
			thousands(s.Requests), strings.Join(classes, ", "), thousands(s.OwnAnswers), thousands(s.Repeated), thousands(s.Reused), s.IdleLegs)
	}
	fmt.Fprintf(out, "moves     %s; flows reset by a move %d\n", movesText(s), s.ResetByMove)
	fmt.Fprintf(out, "room      descriptors %d of %d, room for %s flows, accepting paused %dx\n", s.Descriptors, s.FilesMax, thousands(s.Room), s.Paused)
}

func movesText(s *node.Status) string {
	var moves []string
	for _, k := range []string{"config", "loop", "process", "host"} {
		moves = append(moves, fmt.Sprintf("%s %d (%s flows)", k, s.Moves[k], thousands(s.MovedFlows[k])))
	}
	return strings.Join(moves, ", ")
}

// backendTable sums endpoints up by backend.
func backendTable(s *node.Status, endpoints []node.EndpointState, rates map[string]rate) *table {
	type sum struct {
		all, serving    int
		inFlight        int64
		tries, failures uint64
	}
	by := map[string]*sum{}
	for i := range endpoints {
		e := &endpoints[i]
		x := by[e.Backend]
		if x == nil {
			x = &sum{}
			by[e.Backend] = x
		}
		x.all++
		x.serving += boolInt(e.Serves)
		x.inFlight += e.InFlight
		x.tries += e.Tries
		x.failures += e.Failures
	}
	t := &table{head: []string{"BACKEND", ">SERVING", ">IN FLIGHT", ">QUEUED", ">TRIES", ">FAILED"}}
	if rates != nil {
		t.head = append(t.head, ">REQ/S", ">5XX/S", ">P99")
	}
	for _, name := range sortedKeys(by) {
		x := by[name]
		row := []string{name, fmt.Sprintf("%d/%d", x.serving, x.all), thousands(x.inFlight), thousands(s.Queued[name]), thousands(x.tries), thousands(x.failures)}
		if rates != nil {
			r := rates[name]
			row = append(row, perSecond(r.requests), perSecond(r.errors), quantileText(r.p99))
		}
		t.add(row...)
	}
	return t
}

// flowsFlags are the filters of `flows`, which are those of the API.
type flowsFlags struct {
	listener, backend, endpoint, state, client string
	older                                      time.Duration
	moved                                      bool
	max                                        int
}

// request is what is asked of the API.
func (f *flowsFlags) request() *api.FlowsRequest {
	q := &api.FlowsRequest{Listener: f.listener, Backend: f.backend, Endpoint: f.endpoint, Kind: f.state, Client: f.client, Moved: f.moved, Max: int64(f.max)}
	if f.older > 0 {
		q.Older = durationpb.New(f.older)
	}
	return q
}

// filtered tells whether there are flows that are not wanted.
func (f *flowsFlags) filtered() bool {
	g := *f
	g.max = 0
	return g != flowsFlags{}
}

func flowsCommand() *cobra.Command {
	var f flowsFlags
	x := &cobra.Command{
		Use:   "flows",
		Short: "List open flows, oldest first",
		Long: "Lists open flows, oldest first: who, by which listener, to which endpoint, what it is doing, its\n" +
			"age, its octets and how often it has moved. All filters that are given must hold.",
		Args: wants(0, 0, "no argument"),
		RunE: asking(func(c *client, _ []string) error {
			if f.max < 0 {
				return &exit{exitUsage, fmt.Errorf("flows: --max is not negative; 0 is for all")}
			}
			return listFlows(c, &f)
		}),
	}
	x.Flags().IntVar(&f.max, "max", 100, "how many at most, 0 for all")
	f.register(x)
	x.AddCommand(flowsKillCommand())
	return x
}

func (f *flowsFlags) register(x *cobra.Command) {
	flags := x.Flags()
	flags.StringVar(&f.listener, "listener", "", "of this listener")
	flags.StringVar(&f.backend, "backend", "", "to this backend")
	flags.StringVar(&f.endpoint, "endpoint", "", "to this endpoint, as web/a1")
	flags.StringVar(&f.state, "state", "", "that are doing this, as status and the list name it")
	flags.StringVar(&f.client, "client", "", "from this address or network")
	flags.DurationVar(&f.older, "older", 0, "that have been open for longer, as 1h")
	flags.BoolVar(&f.moved, "moved", false, "that have moved")
}

// known checks that what is filtered by is there: a name that is none would look
// like no flows.
func (f *flowsFlags) known(c *client) error {
	if f.state != "" && !slices.Contains(loop.Kinds, f.state) {
		return &exit{exitUsage, fmt.Errorf("flows: no state %q%s; there are: %s", f.state, meant(f.state, loop.Kinds), strings.Join(loop.Kinds, ", "))}
	}
	if f.listener == "" && f.backend == "" && f.endpoint == "" {
		return nil
	}
	s, err := c.status()
	if err != nil {
		return err
	}
	var listeners, backends, endpoints []string
	for _, l := range s.Listeners {
		listeners = append(listeners, l.Name)
	}
	for _, b := range s.Backends {
		backends = append(backends, b.Name)
	}
	short := map[string]bool{} // names in any backend
	for _, e := range s.Endpoints {
		endpoints = append(endpoints, e.Name)
		_, name, _ := strings.Cut(e.Name, "/")
		short[name] = true
	}
	for _, x := range []struct {
		what, name string
		names      []string
	}{{"listener", f.listener, listeners}, {"backend", f.backend, backends}, {"endpoint", f.endpoint, endpoints}} {
		if x.name == "" || slices.Contains(x.names, x.name) || x.what == "endpoint" && short[x.name] {
			continue
		}
		// What has left the configuration may have flows for a long time.
		g := flowsFlags{max: 1, listener: f.listener, backend: f.backend, endpoint: f.endpoint}
		if old, err := c.flows(g.request()); err != nil || len(old) > 0 {
			return err
		}
		return &exit{exitUsage, fmt.Errorf("flows: no %s %q%s; there are: %s", x.what, x.name, meant(x.name, x.names), some(x.names))}
	}
	return nil
}

func listFlows(c *client, f *flowsFlags) error {
	if err := f.known(c); err != nil {
		return err
	}
	var list flowList
	told, err := ask(c, c.api.Flows, f.request(), &list)
	if err != nil || !told {
		return err
	}
	all := list.Flows
	if len(all) == 0 {
		fmt.Fprintln(os.Stderr, "no flows") // not in a pipe that counts lines
		return nil
	}
	fmt.Print(flowTable(all).String())
	if f.max == 0 || len(all) < f.max {
		return nil
	}
	if f.filtered() {
		fmt.Println("... and maybe more; --max 0 lists all")
		return nil
	}
	s, err := c.status()
	if err != nil {
		return err
	}
	if more := s.Flows - len(all); more > 0 {
		fmt.Printf("... and %s more; --max 0 lists all\n", thousands(more))
	}
	return nil
}

func flowTable(all []node.FlowStatus) *table {
	t := &table{head: []string{"FLOW", "LISTENER", "CLIENT", "ENDPOINT", "STATE", ">AGE", ">IN", ">OUT", ">UNSENT", ">REQUESTS", ">MOVED", ">LOOP"}}
	for _, f := range all {
		endpoint := f.Endpoint
		if endpoint == "" {
			endpoint = "-"
		}
		t.add(f.ID, f.Listener, f.Client, endpoint, f.Kind, short(secondsOf(f.AgeSeconds)), size(float64(f.In)), size(float64(f.Out)),
			size(float64(f.Unsent)), thousands(f.Requests), fmt.Sprintf("%dx", f.Moves), strconv.Itoa(f.Loop))
	}
	return t
}
