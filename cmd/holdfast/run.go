package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-lb/holdfast/internal/admin"
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/node"
)

const defaultSocket = "/run/holdfast/admin.sock"

// drainMax is how long a process that has been replaced keeps flows that its
// successor refused.
const drainMax = 10 * time.Minute

func runCommand() *cobra.Command {
	var file string
	var level slog.Level
	c := &cobra.Command{
		Use:   "run -c FILE",
		Short: "Run the load balancer",
		Args:  wants(0, 1, "one FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			name, err := given("run", file, args)
			if err != nil {
				return err
			}
			path, err := filepath.Abs(name)
			if err != nil {
				return &exit{exitFailed, err}
			}
			log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
			if err := run(path, log); err != nil {
				return failed(err)
			}
			return nil
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "configuration file")
	c.Flags().TextVar(&level, "log", slog.LevelInfo, "log level: debug, info, warn, error")
	return c
}

// failed gives an error of the configuration the exit code "refused".
func failed(err error) error {
	var bad *config.Errors
	if errors.As(err, &bad) {
		return &exit{exitRefused, fmt.Errorf("%w\n%d errors; nothing was changed", err, len(bad.Problems))}
	}
	return &exit{exitFailed, err}
}

// run is the life of the data plane, whether it starts fresh or succeeds
// another process.
func run(file string, log *slog.Logger) error {
	// The tables of flows are almost free of pointers and a flow at rest holds
	// no buffer, so the heap is small: collecting less often costs little
	// memory and spares the loops' processors.
	debug.SetGCPercent(400)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	options := node.Options{File: file, Log: log}

	if inherited := os.Getenv(node.InheritEnv); inherited != "" {
		_ = os.Unsetenv(node.InheritEnv) // not for children of ours
		fd, err := strconv.Atoi(inherited)
		if err != nil {
			return fmt.Errorf("holdfast: %s=%q: not a descriptor", node.InheritEnv, inherited)
		}
		var server *admin.Server
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
		if err := s.Run(server.Publish); err != nil {
			// The predecessor goes on with what it had not handed over; what
			// it had, ends here.
			server.Close(true)
			s.Node.Stop()
			return err
		}
		return serve(s.Node, server, signals, log)
	}

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
	return serve(n, server, signals, log)
}

// serve waits for the end of the process's time.
func serve(n *node.Node, server *admin.Server, signals chan os.Signal, log *slog.Logger) error {
	c := n.Config()
	endpoints := 0
	for _, b := range c.Backends {
		endpoints += len(b.Endpoints)
	}
	fmt.Printf("ready: %d listeners, %d endpoints, generation %d, release %s, admin %s\n",
		len(c.Listeners), endpoints, n.Generation(), node.Release, c.Node.AdminSocket)
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
	left := server.Left
	var empty chan struct{} // closed when a process that was replaced has nothing left
	for {
		select {
		case s := <-signals:
			if s == syscall.SIGHUP {
				select {
				case reloads <- struct{}{}:
				default:
				}
				continue
			}
			log.Info("stopping", "signal", s.String())
			server.Close(true)
			n.Stop()
			return nil
		case <-left:
			// The successor has the admin socket's place; ours ends when the
			// answer that told of the upgrade is out.
			left = nil
			empty = make(chan struct{})
			go func() { // ends within drainMax, or with the process
				server.Drain()
				server.Close(true) // our file, if the successor's has another place
				if !n.WaitEmpty(drainMax) {
					log.Warn("flows that the successor refused are ended", "after", drainMax)
				}
				close(empty)
			}()
		case <-empty:
			n.Stop()
			return nil
		}
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
	var file string
	x := &cobra.Command{
		Use:   "check FILE",
		Short: "Check a configuration file",
		Args:  wants(0, 1, "one FILE"),
		RunE: func(c *cobra.Command, args []string) error {
			name, err := given("check", file, args)
			if err != nil {
				return err
			}
			asJSON, _ := c.Flags().GetBool("json")
			return check(name, asJSON)
		},
	}
	x.Flags().StringVarP(&file, "config", "c", "", "configuration file, as for run")
	return x
}

func check(name string, asJSON bool) error {
	source, err := os.ReadFile(name)
	if err != nil {
		return &exit{exitFailed, err}
	}
	c, warnings, err := node.Parse(name, source)
	result := checked{File: name, OK: err == nil, Errors: []problem{}, Warnings: problems(warnings)}
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
	if len(warnings) > 0 {
		fmt.Fprintln(os.Stderr, warnings)
	}
	if err != nil {
		return failed(err)
	}
	fmt.Printf("%s: ok: %d listeners, %d backends, %d endpoints", name, result.Listeners, result.Backends, result.Endpoints)
	if result.Routes > 0 {
		fmt.Printf(", %d routes", result.Routes)
	}
	fmt.Println()
	return nil
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the release", Args: wants(0, 0, "no argument"),
		Run: func(*cobra.Command, []string) { fmt.Println("holdfast", node.Release) },
	}
}
