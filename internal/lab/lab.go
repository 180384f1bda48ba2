package lab

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"
)

// A lab is a scenario. It notes in the verdict what it found; an error is what
// kept it from finding anything.
type lab struct {
	what  string
	run   func(ctx context.Context, o Options, out io.Writer, v *Verdict) error
	limit time.Duration // of a full run
	root  bool          // its processes change their user, or are a systemd
	tags  string        // with which the product is built
}

// labs are all that there are, by name.
var labs = map[string]lab{
	"corpora":        {what: "streams that readers understand differently, through the balancer", run: corpora, limit: 2 * time.Minute},
	"durable":        {what: "kill -9 in the middle of changes, torn and full disks, two writers, wrong files", run: durable, limit: 20 * time.Minute},
	"four-distances": {what: "flows of all kinds move at four distances: config, loop, process, host", run: fourDistances, limit: 40 * time.Minute},
	"hostile":        {what: "slow and hostile HTTP clients, and one that means no harm", run: hostility, limit: 6 * time.Minute},
	"ledger":         {what: "limits, shares, queues and ten thousand checks, counted at the servers", run: ledgerLab, limit: 8 * time.Minute},
	"march":          {what: "an upgrade fails, or a process dies or stands still, at each call of it", run: marching, limit: 60 * time.Minute, tags: "planted"},
	"migrate":        {what: "VIPs with all their flows go to another host and back under new connections, with servers on the host that is left", run: migrating, limit: 40 * time.Minute},
	"migrate-march":  {what: "a move between hosts comes to harm at one moment after another, at either node", run: migrateMarching, limit: 60 * time.Minute},
	"misbehave":      {what: "servers that turn bad one after another, and what becomes of it", run: misbehaving, limit: 6 * time.Minute},
	"previous":       {what: "flows of all kinds between the release before this one and this one, up and down", run: previous, limit: 15 * time.Minute},
	"reload":         {what: "a thousand services, and another configuration ten times a second", run: reloading, limit: 30 * time.Minute},
	"rolling":        {what: "servers are restarted behind the balancer, and no request fails", run: rolling, limit: 12 * time.Minute},
	"rolling-hosts":  {what: "four nodes are evacuated one after another under load, and started anew", run: rollingHosts, limit: 5 * time.Minute},
	"saturated":      {what: "VIPs move while the processors have more to do than they can", run: saturated, limit: 5 * time.Minute},
	"seed-000":       {what: "the servers run on the host that is evacuated", run: seed000, limit: 5 * time.Minute},
	"soak":           {what: "all kinds of HTTP clients and failing backends under moves, for long", run: soaking, limit: 13 * time.Minute},
	"systemd":        {what: "the unit of packaging/ under systemd as process 1: reloads, kill -9, stop, a socket unit", run: underSystemd, limit: 8 * time.Minute, root: true},
	"tunnel":         {what: "VIPs move between hosts of two networks, by a tunnel and by routes", run: tunneled, limit: 5 * time.Minute},
	"upgrade":        {what: "a hundred upgrades in place under all traffic, and ten thousand flows; beside reloads of others", run: upgrading, limit: 30 * time.Minute},
	"vanished-peers": {what: "clients that vanish without a word are gone in time", run: vanishedPeers, limit: 2 * time.Minute},
	"vtc":            {what: "cases of varnishtest, each with a client and a server around the balancer", run: vtc, limit: 5 * time.Minute},
}

// Stages of a re-executed program.
const (
	stageWorld = "world" // inside the namespaces
	stageBlind = "blind" // the relay of the sabotage blind-relay
)

// shortLimit is the most that a short run may take, building included.
const shortLimit = 43 * time.Second

// shortLimit is that of this run: between two releases there is as much to do again.
func (o Options) shortLimit() time.Duration {
	if o.Previous != "" {
		return 2 * shortLimit
	}
	return shortLimit
}

// Main runs the lab that the arguments name and returns the exit status: 0 if
// every figure holds, 1 if not, 2 for a wrong argument.
func Main(args []string) int {
	if os.Getenv(stageEnv) == stageBlind {
		_, _ = fmt.Fprintln(os.Stderr, BlindMain(args, os.Stdout)) // it ends by an error only
		return 1
	}
	if os.Getenv(stageEnv) == stageOrigin {
		_, _ = fmt.Fprintln(os.Stderr, OriginMain(args, os.Stdout)) // it ends by an error only
		return 1
	}
	if os.Getenv(stageEnv) == stageReload {
		_, _ = fmt.Fprintln(os.Stderr, reloadMain(args, os.Stdout)) // it ends by an error only
		return 1
	}
	if os.Getenv(stageEnv) == stageEcho {
		_, _ = fmt.Fprintln(os.Stderr, echoMain(args, os.Stdout)) // it ends by an error only
		return 1
	}
	if os.Getenv(stageEnv) == stageStand {
		if err := standMain(args, os.Stdout); err != nil {
			_, _ = fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	if os.Getenv(stageEnv) == stageSystemd {
		_, _ = fmt.Fprintln(os.Stderr, systemdMain(args)) // it becomes another program, or ends by an error
		return 1
	}
	o, name, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		return 2
	}
	o.began = time.Now()
	if os.Getenv(stageEnv) == stageWorld {
		return inside(name, o)
	}
	status, err := outside(name, o)
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return status
}

func parse(args []string) (Options, string, error) {
	var o Options
	var name, distances string
	f := flag.NewFlagSet("holdfast-lab", flag.ContinueOnError)
	f.StringVar(&name, "lab", "", "which `lab`: "+strings.Join(labNames(), ", "))
	f.BoolVar(&o.Short, "short", false, "end within 45 s")
	f.StringVar(&o.Sabotage, "sabotage", "", "break the run, to see whether the lab notices: "+strings.Join(Sabotages, ", "))
	f.StringVar(&distances, "distances", "config,loop,process,host", "what to move, a `list`; empty: nothing moves")
	f.IntVar(&o.Flows, "flows", 0, "how many `flows`; 0: as the lab likes")
	f.IntVar(&o.Moves, "moves", 0, "how many `moves` of each distance; 0: as the lab likes")
	f.Uint64Var(&o.Seed, "seed", 1, "of all octets and periods")
	f.StringVar(&o.Binary, "binary", "", "`path` of the product; empty: build ./cmd/holdfast")
	f.StringVar(&o.Balancer, "balancer", "holdfast", "holdfast, or a `substitute` to try the lab itself: haproxy, direct; nginx for corpora and vtc")
	f.StringVar(&o.Corpus, "corpus", "", "`directory` of further *.jsonl for the lab corpora")
	f.StringVar(&o.VTC, "vtc", "", "`directory` of further *.vtc for the lab vtc")
	f.IntVar(&o.Applies, "applies", 0, "the lab reload: only so `many` changes, one after another, and what they leave behind")
	f.StringVar(&o.Previous, "previous", "", "`path` of the release before this one, for the lab previous; empty: build what internal/frozen/testdata/releases.txt says")
	f.StringVar(&o.Systemd, "systemd", "", "`directory` with another systemd for the lab systemd, as its packages unpack")
	f.StringVar(&o.Out, "out", "", "`directory` for the table of the lab reload, such as docs/benchmarks")
	f.BoolVar(&o.FiguresOnly, "figures-only", false, "a missed goal of speed is no failure")
	if err := f.Parse(args); err != nil {
		return o, name, err
	}
	if _, ok := labs[name]; !ok {
		return o, name, fmt.Errorf("lab %q: one of %s", name, strings.Join(labNames(), ", "))
	}
	if o.Sabotage != "" && !slices.Contains(Sabotages, o.Sabotage) {
		return o, name, fmt.Errorf("sabotage %q: one of %s", o.Sabotage, strings.Join(Sabotages, ", "))
	}
	if o.Systemd != "" {
		var err error
		if o.Systemd, err = filepath.Abs(o.Systemd); err != nil {
			return o, name, err
		}
	}
	if distances != "" {
		o.Distances = strings.Split(distances, ",")
	}
	return o, name, nil
}

func labNames() []string {
	var names []string
	for n := range labs {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// Environment from outside to inside.
const (
	dirEnv    = "HOLDFAST_LAB_DIR"
	binaryEnv = "HOLDFAST_LAB_BINARY"
	beganEnv  = "HOLDFAST_LAB_BEGAN"
)

// outside builds the product and enters the namespaces.
func outside(name string, o Options) (int, error) {
	group := ""
	if labs[name].root {
		made, remove, reason, err := systemdPrepared()
		if err != nil {
			return 1, err
		}
		if reason != "" {
			return sayNoSystemd(reason), nil
		}
		defer remove()
		group = made
	}
	dir, err := os.MkdirTemp("", "holdfast-lab-")
	if err != nil {
		return 1, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary := o.Binary
	if binary == "" && o.Balancer == "holdfast" && o.Sabotage != BlindRelay {
		binary = filepath.Join(dir, "holdfast")
		build := exec.Command("go", "build", "-tags", labs[name].tags, "-o", binary, "./cmd/holdfast")
		if msg, err := build.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("lab: build ./cmd/holdfast: %w\n%s", err, msg)
		}
	}
	if binary != "" {
		if binary, err = filepath.Abs(binary); err != nil {
			return 1, err
		}
	}
	if name == "previous" {
		if reason, err := preparePrevious(o, dir); err != nil || reason != "" {
			return sayNothingShown(reason), err
		}
		o.began = time.Now() // building takes as long again
	}
	env := []string{
		dirEnv + "=" + dir, binaryEnv + "=" + binary,
		beganEnv + "=" + o.began.Format(time.RFC3339Nano),
	}
	if !labs[name].root {
		return Enter(stageWorld, env)
	}
	return EnterAsRoot(stageWorld, append(env, cgroupEnv+"="+group))
}

// inside runs the lab, and judges what there is when time is over.
func inside(name string, o Options) int {
	if err := settle(); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		return 1
	}
	o.dir, o.Binary = os.Getenv(dirEnv), os.Getenv(binaryEnv)
	if name == "previous" {
		o.Previous = previousBinary(o.dir)
	} else {
		o.Previous = ""
	}
	if t, err := time.Parse(time.RFC3339Nano, os.Getenv(beganEnv)); err == nil {
		o.began = t
	}
	limit := labs[name].limit
	if o.Short {
		limit = o.shortLimit()
	}
	v := newVerdict(name, o.began)
	v.Figure("short", o.Short)
	v.Figure("seed", o.Seed)
	v.Figure("sabotage", o.Sabotage)
	v.Figure("balancer", o.Balancer)
	ctx, cancel := context.WithTimeout(context.Background(), time.Until(o.began.Add(limit)))
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- labs[name].run(ctx, o, os.Stdout, v) }()
	select {
	case err := <-done:
		if err != nil {
			v.Broken(err)
		}
	case <-ctx.Done():
		v.Broken(fmt.Errorf("out of time after %v", limit))
	}
	if v.Conclude(os.Stdout, o.FiguresOnly) {
		return 0
	}
	return 1
}
