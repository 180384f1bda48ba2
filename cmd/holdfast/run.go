package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-lb/holdfast/internal/admin"
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/journal"
	"github.com/holdfast-lb/holdfast/internal/node"
	"github.com/holdfast-lb/holdfast/internal/sock"
	"github.com/holdfast-lb/holdfast/internal/supervise"
)

const defaultSocket = "/run/holdfast/admin.sock"

// graceDefault is how long what is under way may take when the process is told
// to end, graceEnv what a successor is to do: it is started with the file alone.
const (
	graceDefault = 30 * time.Second
	graceEnv     = "HOLDFAST_GRACE"
)

func runCommand() *cobra.Command {
	var file, name string
	level := new(slog.LevelVar)
	grace := graceDefault
	if d, err := time.ParseDuration(os.Getenv(graceEnv)); err == nil && d >= 0 {
		grace = d
	}
	c := &cobra.Command{
		Use:   "run -c FILE",
		Short: "Run the load balancer",
		Long: "Runs in the foreground, and prints one line when it is ready.\n\n" +
			"  SIGTERM, SIGINT  end: VIPs go to another node with their flows (cluster.onStop), listeners are closed,\n" +
			"                   idle clients are sent away, what is under way goes on, all for --grace at most; a\n" +
			"                   second signal ends at once\n" +
			"  SIGHUP           reads the file again, as holdfast reload does\n" +
			"  SIGUSR1          opens the access log anew, after it was renamed\n" +
			"  SIGUSR2          hands everything over to a new process, as holdfast upgrade does\n\n" +
			"To replace the process without any end, use holdfast upgrade. Under systemd see packaging/: the\n" +
			"unit is told which process is the main one, and keeps the listeners while there is none.\n\n" +
			"What is desired is kept in generations, in the directory node.state; without that in\n" +
			"$STATE_DIRECTORY, or a place of its own for each file below /var/lib/holdfast (as root) or\n" +
			"~/.local/state/holdfast. node.state: none keeps nothing.",
		Args: wants(0, 1, "one FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			file, err := given("run", file, args)
			if err != nil {
				return err
			}
			if err := beNode("run", name); err != nil {
				return err
			}
			path, err := filepath.Abs(file)
			if err != nil {
				return &exit{exitFailed, err}
			}
			if grace < 0 {
				return &exit{exitUsage, errors.New("run: --grace is not negative")}
			}
			netadmin, err := privileged(path)
			if err != nil {
				return &exit{exitFailed, err}
			}
			return runHere(node.Options{File: path, Level: level, Netadmin: netadmin}, grace, "")
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "configuration file")
	nodeFlag(c, &name)
	c.Flags().DurationVar(&grace, "grace", grace, "how long what is under way may take after SIGTERM; $"+graceEnv+" sets the default")
	c.Flags().TextVar(level, "log", level, "log `level`: debug, info, warn, error")
	return c
}

func nodeFlag(c *cobra.Command, name *string) {
	c.Flags().StringVar(name, "node", "", "which of the file's nodes this is; else $"+config.NodeVariable+", else the host's name if a node has it")
}

// beNode makes this process, and its successors, the node of that name, if it has any.
func beNode(verb, name string) error {
	if name == "" {
		return nil
	}
	if err := config.CheckName(name); err != nil {
		return &exit{exitUsage, fmt.Errorf("%s: --node %q: %w", verb, name, err)}
	}
	if err := os.Setenv(config.NodeVariable, name); err != nil {
		return &exit{exitFailed, err}
	}
	return nil
}

// runHere runs until the end of the process's time; ready, if there is any, is
// said instead of what run says.
func runHere(o node.Options, grace time.Duration, ready string) error {
	if err := os.Setenv(graceEnv, grace.String()); err != nil {
		return &exit{exitFailed, err}
	}
	log, out := newUnheard(os.Stderr), newUnheard(os.Stdout)
	defer log.end()
	defer out.end()
	o.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: o.Level}))
	s := supervise.FromEnvironment(o.Log)
	supervised(&o, s)
	if err := run(o, s, out, grace, ready); err != nil {
		return failed(err)
	}
	return nil
}

// failed gives an error of the configuration the exit code "refused".
func failed(err error) error {
	var bad *config.Errors
	if errors.As(err, &bad) {
		return &exit{exitRefused, fmt.Errorf("%w\n%s; nothing was changed", err, count(len(bad.Problems), "error"))}
	}
	if errors.Is(err, journal.ErrLocked) {
		err = fmt.Errorf("%w\nit may be another Holdfast; end that one, or set node.state to a directory of its own", err)
	}
	return &exit{exitFailed, err}
}

// run is the life of the data plane, whether it starts fresh or succeeds
// another process.
func run(options node.Options, sup *supervise.Supervisor, out io.Writer, grace time.Duration, ready string) error {
	log := options.Log
	// What serves flows allocates nothing, but what moves them does, and the
	// collector's work would lie in their pauses: with 50 the p99 between loops was
	// 2.6 ms instead of 0.6, and a move took half as long again. It is paid with memory
	// (85 MB instead of 50 with 1,000 services and 2,000 flows). What changes of the
	// configuration leave behind is collected after them, see node's tidy.go.
	debug.SetGCPercent(gcPercent)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	// Whoever reads our output may go away: without this the next line would end
	// the process (package os/signal), and all flows with it.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	if inherited := os.Getenv(node.InheritEnv); inherited != "" {
		_ = os.Unsetenv(node.InheritEnv) // not for children of ours
		fd, err := strconv.Atoi(inherited)
		if err != nil {
			return fmt.Errorf("holdfast: %s=%q: not a descriptor", node.InheritEnv, inherited)
		}
		var server *admin.Server
		keepState(&options)
		collect := collectLater()
		s, err := node.Succeed(fd, options, func(n *node.Node) (err error) {
			server, err = admin.Prepare(n, n.Config().Node.AdminSocket, log)
			return err
		})
		if err != nil {
			if server != nil {
				server.Close(true)
			}
			return err
		}
		if err := s.Run(func() error {
			err := server.Publish()
			// Whatever becomes of the predecessor, this process is the one now.
			sup.Ready(os.Getpid(), serving(s.Node))
			return err
		}); err != nil {
			// The predecessor goes on with what it had not handed over; what
			// it had, ends here.
			server.Close(true)
			s.Node.Stop()
			return err
		}
		collect()
		return serve(s.Node, server, sup, signals, log, out, grace, ready)
	}

	if err := alone(options.File); err != nil {
		return err
	}
	keepState(&options)
	n, err := node.Start(options)
	if err != nil {
		return err
	}
	server, err := admin.Serve(n, n.Config().Node.AdminSocket, log)
	if err != nil {
		n.Stop()
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w\nset node.admin.socket to a path you may write", err)
		}
		return err
	}
	sup.Ready(os.Getpid(), serving(n))
	return serve(n, server, sup, signals, log, out, grace, ready)
}

const (
	gcPercent = 400
	// takeMemory is the heap, in octets, from which on a process collects although
	// flows arrive.
	takeMemory = 1 << 30
)

// collectLater puts collecting off until it is told again: a process that has just
// begun has a small heap, and would collect it several times just while flows arrive,
// in their pauses.
func collectLater() (again func()) {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(takeMemory)
	return func() {
		if debug.SetMemoryLimit(-1) == takeMemory { // else the configuration has said another
			debug.SetMemoryLimit(math.MaxInt64)
		}
		debug.SetGCPercent(gcPercent)
	}
}

// readyLine says what is served.
func readyLine(n *node.Node) string {
	c := n.Config()
	states := n.EndpointStates()
	up, checking := 0, 0
	for _, e := range states {
		if e.Serves {
			up++
		} else if e.Health == "checking" {
			checking++
		}
	}
	serving := fmt.Sprintf("%d serving", up)
	if checking > 0 {
		serving += fmt.Sprintf(", %d being checked", checking)
	}
	return fmt.Sprintf("ready: %s, %s (%s), generation %d, release %s, admin %s",
		count(len(c.Listeners), "listener"), count(len(states), "endpoint"), serving, n.Generation(), node.Release, c.Node.AdminSocket)
}

// serve waits for the end of the process's time.
func serve(n *node.Node, server *admin.Server, sup *supervise.Supervisor, signals chan os.Signal, log *slog.Logger, out io.Writer, grace time.Duration, ready string) error {
	if ready == "" {
		ready = readyLine(n)
	}
	fmt.Fprintln(out, ready)
	// One reload at a time, and one more if it is asked for meanwhile; a signal
	// to stop waits for none.
	reloads := make(chan struct{}, 1)
	defer close(reloads)
	go func() { // ends with serve
		for range reloads {
			if _, err := n.Reload(); err != nil {
				log.Error("reload refused; the configuration in force goes on", "error", err)
			}
		}
	}()
	upgraded := make(chan bool) // tells whether an upgrade by signal has come to its end
	upgrading := false
	left := server.Left
	var empty chan struct{} // closed when a process that was replaced has nothing left
	leave := func() {
		// The successor has the admin socket's place; ours ends when the
		// answer that told of the upgrade is out.
		left = nil
		empty = make(chan struct{})
		sup.MainPID(n.Successor()) // it says so as well, but may not be heard before we do
		go func() {                // ends with its flows, or with the process
			defer close(empty)
			server.Drain()
			server.Close(true) // our file, if the successor's has another place
			n.LetListenersGo()
			if !drain(n, sup, log) {
				log.Warn("flows that the successor refused are ended: their time is over")
			}
		}()
	}
	status := time.NewTicker(statusEvery)
	defer status.Stop()
	said := serving(n)
	for {
		select {
		case s := <-signals:
			switch s {
			case syscall.SIGHUP:
				select {
				case reloads <- struct{}{}:
				default:
				}
				continue
			case syscall.SIGUSR1:
				n.ReopenLog()
				continue
			case syscall.SIGUSR2:
				if upgrading || empty != nil {
					log.Warn("an upgrade is under way or done already", "signal", s.String())
					continue
				}
				upgrading = true
				go func() { upgraded <- upgradeBySignal(n, sup, log) }() // ends with the upgrade, or with the process
				continue
			}
			log.Info("stopping", "signal", s.String(), "grace", grace)
			if empty == nil {
				sup.Stopping("ends: nothing new is accepted", grace+stopRest)
			}
			finish(n, signals, log, out, grace)
			server.Close(true)
			n.Stop()
			return nil
		case done := <-upgraded:
			if upgrading = false; done {
				leave()
			}
		case <-left:
			leave()
		case <-status.C:
			// A unit's status is a line that people look at.
			if now := serving(n); empty == nil && !upgrading && now != said {
				said = now
				sup.Status(said)
			}
		case <-empty:
			n.Stop()
			return nil
		}
	}
}

// finish lets what is under way end, for grace at most or until another signal
// to end comes. The verbs are answered meanwhile.
func finish(n *node.Node, signals chan os.Signal, log *slog.Logger, out io.Writer, grace time.Duration) {
	hurry, done := make(chan struct{}), make(chan struct{})
	go func() { // ends with finish
		for {
			select {
			case s := <-signals:
				if s == syscall.SIGTERM || s == syscall.SIGINT {
					close(hurry)
					return
				}
			case <-done:
				return
			}
		}
	}()
	defer close(done)
	began, terminal, open := time.Now(), sock.IsTerminal(os.Stdout), false
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	go func() { // ends with finish
		select {
		case <-hurry:
			cancel()
		case <-ctx.Done():
		}
	}()
	tell := func(text string) { fmt.Fprintln(out, "stopping: "+text) }
	n.LeaveVIPs(ctx, tell)
	// Neighbours learn where a VIP is while the other listeners drain.
	settled := make(chan struct{})
	go func() { // ends with ctx
		defer close(settled)
		n.SettleVIPs(ctx, tell)
	}()
	left := n.Drain(max(0, grace-time.Since(began)), hurry, func(left int) {
		text := fmt.Sprintf("stopping: nothing new is accepted; %s under way, %s at most; a second signal ends at once",
			count(left, "flow"), short(max(0, grace-time.Since(began))))
		switch {
		case terminal:
			fmt.Fprint(out, clearLine+text)
			open = true
		case !open:
			fmt.Fprintln(out, text)
			open = true
		}
	})
	<-settled
	if terminal && open {
		fmt.Fprintln(out)
	}
	fmt.Fprintf(out, "stopped after %s: %s reset\n", short(time.Since(began)), count(left, "flow"))
	if left > 0 {
		log.Warn("flows that are still under way are reset", "flows", left, "after", time.Since(began).Round(time.Millisecond))
	}
}

// checked is what `check --json` prints.
type checked struct {
	File      string    `json:"file"`
	OK        bool      `json:"ok"`
	Errors    []problem `json:"errors"`
	Warnings  []problem `json:"warnings"`
	Listeners int       `json:"listeners,omitempty"`
	Backends  int       `json:"backends,omitempty"`
	Endpoints int       `json:"endpoints,omitempty"`
	Routes    int       `json:"routes,omitempty"` // of all listeners for HTTP
	Nodes     []string  `json:"nodes,omitempty"`  // as each of which it was read; none: as this one
}

// problem is one fault of a file, or one warning.
type problem struct {
	Line   int    `json:"line"`
	Column int    `json:"column"`
	Path   string `json:"path"`
	Text   string `json:"text"`
}

func problems(all []config.Problem) []problem {
	out := []problem{}
	for _, p := range all {
		out = append(out, problem{p.Line, p.Column, p.Path, p.Text})
	}
	return out
}

func checkCommand() *cobra.Command {
	var file, at string
	x := &cobra.Command{
		Use:   "check FILE",
		Short: "Check a configuration file; - is standard input",
		Long: "Check a configuration file; - is standard input. One that is for all nodes of a cluster is checked\n" +
			"as each of them would read it, if nothing says which of them this is.",
		Args: wants(0, 1, "one FILE, or - for standard input"),
		RunE: func(c *cobra.Command, args []string) error {
			name, err := given("check", file, args)
			if err != nil {
				return err
			}
			if err := beNode("check", at); err != nil {
				return err
			}
			asJSON, _ := c.Flags().GetBool("json")
			return check(name, asJSON)
		},
	}
	x.Flags().StringVarP(&file, "config", "c", "", "configuration file, as for run")
	nodeFlag(x, &at)
	return x
}

func check(name string, asJSON bool) error {
	name, source, err := readSource(name)
	if err != nil {
		return &exit{exitFailed, err}
	}
	all := config.Undecided(source, node.Variable)
	c, warnings, err := parseAs(all, name, source)
	result := checked{File: name, OK: err == nil, Errors: []problem{}, Warnings: problems(warnings), Nodes: all}
	if err == nil {
		result.Listeners, result.Backends = len(c.Listeners), len(c.Backends)
		for _, b := range c.Backends {
			result.Endpoints += len(b.Endpoints)
		}
		for _, l := range c.Listeners {
			if l.Rules != nil {
				result.Routes += len(l.Rules.Routes)
			}
		}
	}
	if asJSON {
		var bad *config.Errors
		if errors.As(err, &bad) {
			result.Errors = problems(bad.Problems)
		} else if err != nil {
			result.Errors = []problem{{Text: err.Error()}}
		}
		if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
			return &exit{exitFailed, err}
		}
		if !result.OK {
			return &exit{code: exitRefused}
		}
		return nil
	}
	if err != nil {
		return refused(warnings, err)
	}
	if len(warnings) > 0 {
		fmt.Fprintln(os.Stderr, warnings)
	}
	as := ""
	if len(all) > 0 {
		as = " on " + strings.Join(all, ", ")
	}
	text := fmt.Sprintf("%s: ok%s: %s, %s, %s", name, as, count(result.Listeners, "listener"), count(result.Backends, "backend"), count(result.Endpoints, "endpoint"))
	if result.Routes > 0 {
		text += ", " + count(result.Routes, "route")
	}
	fmt.Println(text)
	return nil
}

// parseAs is [node.Parse] as each of these nodes, until one finds an error; without any,
// as the one that this is.
func parseAs(all []string, name string, source []byte) (c *config.Config, warnings config.Warnings, err error) {
	if len(all) == 0 {
		return node.Parse(name, source)
	}
	for _, at := range all {
		var more config.Warnings
		c, more, err = config.Parse(name, source, func(variable string) (string, bool) {
			if variable == config.NodeVariable {
				return at, true
			}
			return node.Variable(variable)
		})
		for _, w := range more {
			if !slices.Contains(warnings, w) {
				warnings = append(warnings, w)
			}
		}
		if err != nil {
			break
		}
	}
	return c, warnings, err
}

// release is what --version and version print.
func release() string {
	return fmt.Sprintf("holdfast %s (%s, %s/%s)", node.Release, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the release", Args: wants(0, 0, "no argument"),
		Run: func(*cobra.Command, []string) { fmt.Println(release()) },
	}
}
