package main

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// configVerbs are the verbs of `config` that ask the running holdfast.
func configVerbs() []*cobra.Command {
	return []*cobra.Command{
		configDiffCommand(), configHistoryCommand(), configRollbackCommand(), configExportCommand(),
		configSetCommand(), configUnsetCommand(), configDeleteCommand(), configRevertCommand(),
	}
}

func (c *client) configState() (*node.ConfigState, error) {
	var s node.ConfigState
	if _, err := ask(c.silently(), c.api.GetConfig, &api.GetConfigRequest{}, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

// generationList is the answer of the method History.
type generationList struct {
	Generations []node.GenerationInfo `json:"generations"`
}

func configDiffCommand() *cobra.Command {
	var since uint64
	var f changeFlags
	x := &cobra.Command{
		Use:   "diff [FILE]",
		Short: "What applying FILE would do; without FILE: where file and desired state differ",
		Long: "With FILE (- is standard input) it prints the plan that holdfast apply FILE would carry out, and what\n" +
			"would become of flows. Without, it names what was changed at run time and the file does not say, and\n" +
			"what a reload of the file would do if that was edited. --since N prints what has changed since\n" +
			"generation N, and who did it.",
		Example: "  holdfast config diff holdfast.yaml\n  holdfast config diff\n  holdfast config diff --since 41",
		Args:    wants(0, 1, "one FILE at most, or - for standard input"),
		RunE: asking(func(c *client, args []string) error {
			if since > 0 && len(args) > 0 {
				return &exit{exitUsage, fmt.Errorf("diff: either FILE or --since")}
			}
			switch {
			case since > 0:
				return c.changesSince(since)
			case len(args) == 0:
				return c.drift()
			}
			name, source, err := readSource(args[0])
			if err != nil {
				return &exit{exitFailed, err}
			}
			f.dryRun, f.wait, c.sent = true, waitEffective, name
			return c.change(&f, "diff", node.ChangeRequest{Source: source}, nil)
		}),
	}
	x.Flags().Uint64Var(&since, "since", 0, "what has changed since this generation")
	x.Flags().StringVar(&f.edits, "edits", "", "as for apply: keep, discard or refuse")
	x.Flags().StringVar(&f.flows, "flows", "", "as for apply: keep, adopt or close")
	return x
}

// drift prints where file and desired state say different things.
func (c *client) drift() error {
	var s node.ConfigState
	told, err := ask(c, c.api.GetConfig, &api.GetConfigRequest{}, &s)
	if err != nil || !told {
		return err
	}
	for _, d := range s.Edits {
		fmt.Println(driftLine(&d))
	}
	switch {
	case s.FileDiffers:
		fmt.Printf("%s is not what was applied last; applied, it would do this:\n", s.File)
		_, err := c.tellChange(c.api.Diff, node.ChangeRequest{Reread: true, DryRun: true}, nil)
		return err
	case len(s.Edits) == 0:
		fmt.Printf("no difference: %s says all of generation %d\n", s.File, s.Generation)
	default:
		fmt.Printf("%s beside the file, in force over reloads; holdfast config export prints a file that says them, config revert OBJECT takes one back\n",
			count(len(s.Edits), "change"))
	}
	return nil
}

// changesSince prints the plans of the generations after one.
func (c *client) changesSince(since uint64) error {
	var all generationList
	told, err := ask(c, c.api.History, &api.HistoryRequest{}, &all)
	if err != nil || !told {
		return err
	}
	kept := all.Generations
	if n := len(kept); n == 0 || kept[n-1].Generation > since+1 {
		oldest := "none"
		if n > 0 {
			oldest = fmt.Sprint(kept[n-1].Generation)
		}
		return &exit{exitRefused, fmt.Errorf("refused: generation %d is not kept any more; the oldest that is: %s", since, oldest)}
	}
	if kept[0].Generation < since {
		return &exit{exitRefused, fmt.Errorf("refused: there is no generation %d yet; in force is %d", since, kept[0].Generation)}
	}
	slices.Reverse(kept)
	n := 0
	for _, g := range kept {
		if g.Generation <= since {
			continue
		}
		n++
		fmt.Printf("generation %d, %s%s\n%s", g.Generation, g.Kind, by(g.By, g.At), indented(g.Plan))
	}
	fmt.Printf("%s since generation %d\n", count(n, "change"), since)
	return nil
}

// indented puts text two columns to the right.
func indented(text string) string {
	var out strings.Builder
	for line := range strings.Lines(planText(text)) {
		out.WriteString("  " + line)
	}
	return out.String()
}

func configHistoryCommand() *cobra.Command {
	var most int
	x := &cobra.Command{
		Use:   "history",
		Short: "Generations, the newest first: when, who, how, what, why",
		Args:  wants(0, 0, "no argument"),
		RunE: asking(func(c *client, _ []string) error {
			if most < 0 {
				return &exit{exitUsage, fmt.Errorf("history: --max is not negative; 0 is for all")}
			}
			var all generationList
			told, err := ask(c, c.api.History, &api.HistoryRequest{Max: int64(most)}, &all)
			if err != nil || !told {
				return err
			}
			fmt.Print(historyTable(all.Generations, time.Now()).String())
			return nil
		}),
	}
	x.Flags().IntVar(&most, "max", 20, "how many at most, 0 for all that are kept")
	return x
}

func historyTable(all []node.GenerationInfo, now time.Time) *table {
	t := &table{head: []string{">GENERATION", "AGO", "BY", "KIND", "WHAT", "STATE", "WHY"}}
	for _, g := range all {
		var state []string
		if g.InForce {
			state = append(state, "in force")
		}
		if !g.Durable {
			state = append(state, "not durable")
		}
		t.add(fmt.Sprint(g.Generation), short(max(0, now.Sub(g.At).Round(time.Second))), g.By.Name, g.Kind, whatChanged(&g), strings.Join(state, ", "), g.By.Reason)
	}
	return t
}

// whatChanged is a plan in some words: itself if it is one line.
func whatChanged(g *node.GenerationInfo) string {
	plan := strings.TrimSpace(g.Plan)
	if plan == "" {
		return "-"
	}
	if !strings.Contains(plan, "\n") {
		return oneLine(plan)
	}
	first, _, _ := strings.Cut(plan, "\n")
	if g.Impact == (node.Impact{}) {
		return fmt.Sprintf("%s; and %d more", oneLine(first), strings.Count(plan, "\n"))
	}
	return objectWords(&g.Impact, g.Plan)
}

func configRollbackCommand() *cobra.Command {
	var f changeFlags
	x := &cobra.Command{
		Use:   "rollback GENERATION",
		Short: "Bring back what an earlier generation desired; that is a generation of its own",
		Long: "Brings back the whole desired state of an earlier generation: the file as it was applied then, and what\n" +
			"had been changed at run time, and what was ordered of endpoints: one that is in maintenance now and was\n" +
			"not then serves again, and the answer says so. The file on disk stays as it is; once it is edited, a\n" +
			"reload applies it again.",
		Example: "  holdfast config history\n  holdfast config rollback 41",
		Args:    wants(1, 1, "a GENERATION, as config history lists them"),
		RunE: asking(func(c *client, args []string) error {
			n, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil || n == 0 {
				return &exit{exitUsage, fmt.Errorf("rollback: %q is no generation; holdfast config history lists them", args[0])}
			}
			return c.change(&f, "rollback", node.ChangeRequest{Rollback: n}, func(r *node.ChangeReport) string {
				return fmt.Sprintf("generation %d = %d,", r.Generation, n)
			})
		}),
	}
	f.register(x, false)
	return x
}

func configExportCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "export",
		Short: "Print a file that says all that is desired now, changes at run time with it",
		Args:  wants(0, 0, "no argument"),
		RunE: asking(func(c *client, _ []string) error {
			var s node.ConfigState
			told, err := ask(c, c.api.GetConfig, &api.GetConfigRequest{}, &s)
			if err != nil || !told {
				return err
			}
			return printText(string(s.Source))
		}),
	}
}

const objectsWanted = "an OBJECT: node, accessLog, cluster, nodes, vips, listener/NAME, backend/NAME, endpoint/BACKEND/NAME or route/LISTENER/NAME"

const objectsHelp = "OBJECT is node, accessLog, cluster, nodes, vips, listener/NAME, backend/NAME, endpoint/BACKEND/NAME\n" +
	"or route/LISTENER/NAME; FIELD is a key of it, with dots where it lies deeper, as check.interval.\n"

var objectKinds = []string{"node", "accessLog", "cluster", "nodes", "vips", "listener", "backend", "endpoint", "route"}

func configSetCommand() *cobra.Command {
	var f changeFlags
	var before string
	x := &cobra.Command{
		Use:   "set OBJECT[.FIELD] VALUE",
		Short: "Change or create an object, or a field of one, at run time",
		Long: "Sets a field, or with no field the whole object, which may be a new one. VALUE is as in the file: YAML\n" +
			"or JSON; - reads it from standard input. It stays in force over reloads and restarts until the file\n" +
			"says the same, or config revert.\n\n" + objectsHelp,
		Example: "  holdfast config set listener/web.idleTimeout 2h\n" +
			"  holdfast config set endpoint/web/a9 '{ address: 10.0.0.19:8080, weight: 50 }'\n" +
			"  holdfast config set route/web/beta '{ match: { path: /beta/ }, backend: beta }' --before main",
		Args: wants(2, 3, objectsWanted+", and a VALUE"),
		RunE: asking(func(c *client, args []string) error {
			value := args[len(args)-1]
			if value == "-" {
				b, err := io.ReadAll(os.Stdin)
				if err != nil {
					return &exit{exitFailed, err}
				}
				value = string(b)
			}
			p, err := c.place(args[:len(args)-1])
			if err != nil {
				return err
			}
			p.Value, p.Before = value, before
			return c.edit(&f, "set", p)
		}),
	}
	x.Flags().StringVar(&before, "before", "", "of a new route: the name of the one it comes before; '*' is first, without it last")
	f.register(x, false)
	return x
}

func configUnsetCommand() *cobra.Command {
	var f changeFlags
	x := &cobra.Command{
		Use:     "unset OBJECT.FIELD",
		Short:   "Give a field its default at run time",
		Long:    "Gives a field its default, whatever the file says, until config revert.\n\n" + objectsHelp,
		Example: "  holdfast config unset backend/web.check.interval",
		Args:    wants(1, 2, "OBJECT.FIELD"),
		RunE: asking(func(c *client, args []string) error {
			p, err := c.place(args)
			if err != nil {
				return err
			}
			if p.Field == "" {
				return &exit{exitUsage, fmt.Errorf("unset: %s is a whole object; holdfast config delete %s takes it away, or name a field of it", p.Object, p.Object)}
			}
			p.Delete = true
			return c.edit(&f, "unset", p)
		}),
	}
	f.register(x, false)
	return x
}

func configDeleteCommand() *cobra.Command {
	var f changeFlags
	x := &cobra.Command{
		Use:   "delete OBJECT",
		Short: "Take an object away at run time; its flows go on as onChange says",
		Long: "Takes an object away at once. To see its flows out: holdfast endpoint remove, listener remove and\n" +
			"backend remove.\n\n" + objectsHelp,
		Example: "  holdfast config delete route/web/beta",
		Args:    wants(1, 1, objectsWanted),
		RunE: asking(func(c *client, args []string) error {
			p, err := c.place(args)
			if err != nil {
				return err
			}
			if p.Field != "" {
				return &exit{exitUsage, fmt.Errorf("delete: %s is a field; holdfast config unset %s gives it its default", args[0], args[0])}
			}
			p.Delete = true
			return c.edit(&f, "delete", p)
		}),
	}
	f.register(x, false)
	return x
}

func configRevertCommand() *cobra.Command {
	var f changeFlags
	var all bool
	x := &cobra.Command{
		Use:   "revert OBJECT[.FIELD] | --all",
		Short: "Take back what was changed at run time: the file rules again",
		Long: "Takes back what was changed at run time: one field, all of an object, or with --all everything. Then\n" +
			"the file rules again. holdfast config diff lists what there is.\n\n" + objectsHelp,
		Example: "  holdfast config revert endpoint/web/a1.weight\n  holdfast config revert --all",
		Args:    wants(0, 2, objectsWanted+", or --all"),
		RunE: asking(func(c *client, args []string) (err error) {
			if all == (len(args) > 0) {
				return &exit{exitUsage, fmt.Errorf("revert: wants %s; or --all", objectsWanted)}
			}
			p := config.Patch{Object: "*"}
			if !all {
				if p, err = c.place(args); err != nil {
					return err
				}
			}
			return c.change(&f, "revert", node.ChangeRequest{Revert: []config.Patch{p}}, nil)
		}),
	}
	x.Flags().BoolVar(&all, "all", false, "everything that was changed at run time")
	f.register(x, false)
	return x
}

// edit changes one object, or one field.
func (c *client) edit(f *changeFlags, verb string, p config.Patch) error {
	return c.change(f, verb, node.ChangeRequest{Edits: []config.Patch{p}}, nil)
}

// place tells object and field apart, given as one word or as two.
func (c *client) place(words []string) (p config.Patch, err error) {
	p.Object = words[0]
	kind, _, _ := strings.Cut(p.Object, "/")
	kind, _, _ = strings.Cut(kind, ".")
	if !slices.Contains(objectKinds, kind) {
		return p, &exit{exitUsage, fmt.Errorf("%q is no object%s; wants %s", words[0], meant(kind, objectKinds), objectsWanted)}
	}
	if len(words) > 1 {
		p.Field = words[1]
		return p, nil
	}
	// Names have dots, too: those that are there are known.
	var names []string
	if strings.Contains(p.Object, "/") && strings.Contains(p.Object, ".") {
		if names, err = c.objects(); err != nil {
			return p, err
		}
	}
	p.Object, p.Field = cutField(words[0], names)
	return p, nil
}

// objects lists the objects with names that there are.
func (c *client) objects() (names []string, err error) {
	s, err := c.status()
	if err != nil {
		return nil, err
	}
	for _, l := range s.Listeners {
		names = append(names, "listener/"+l.Name)
	}
	for _, b := range s.Backends {
		names = append(names, "backend/"+b.Name)
	}
	for _, e := range s.Endpoints {
		if !e.Removed {
			names = append(names, "endpoint/"+e.Name)
		}
	}
	return names, nil
}

// fieldsAtEnd is what looks like keys behind a name.
var fieldsAtEnd = regexp.MustCompile(`(\.[a-z][A-Za-z0-9]*)+$`)

// cutField cuts text behind the longest of the names that it begins with; with
// none of them, where keys begin at its end.
func cutField(text string, names []string) (object, field string) {
	best := ""
	for _, name := range names {
		if name == text {
			return text, ""
		}
		if strings.HasPrefix(text, name+".") && len(name) > len(best) {
			best = name
		}
	}
	if best == "" {
		if at := fieldsAtEnd.FindStringIndex(text); at != nil {
			best = text[:at[0]]
		}
	}
	if best == "" {
		return text, ""
	}
	return best, text[len(best)+1:]
}
