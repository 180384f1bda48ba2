package main

import (
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
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			path, err := filepath.Abs(file)
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
	_ = c.MarkFlagRequired("config")
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
		s, err := node.Succeed(fd, options)
		if err != nil {
			return err
		}
		var server *admin.Server
		err = s.Run(func() (err error) {
			server, err = admin.Serve(s.Node, s.Node.Config().Node.AdminSocket, true, log)
			return err
		})
		if err != nil {
			// The predecessor goes on with what it had not handed over; what
			// it had, ends here.
			s.Node.Stop()
			return err
		}
		return serve(s.Node, server, signals, log)
	}

	n, err := node.Start(options)
	if err != nil {
		return err
	}
	server, err := admin.Serve(n, n.Config().Node.AdminSocket, false, log)
	if err != nil {
		n.Stop()
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
	for {
		select {
		case s := <-signals:
			if s == syscall.SIGHUP {
				if _, err := n.Reload(); err != nil {
					log.Error("reload refused; the configuration in force goes on", "error", err)
				}
				continue
			}
			log.Info("stopping", "signal", s.String())
			server.Close(true)
			n.Stop()
			return nil
		case <-server.Left:
			// The successor has the admin socket's place; ours ends when the
			// answer that told of the upgrade is out.
			server.Drain()
			if !n.WaitEmpty(drainMax) {
				log.Warn("flows that the successor refused are ended", "after", drainMax)
			}
			n.Stop()
			return nil
		}
	}
}

func checkCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Check a configuration file",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			source, err := os.ReadFile(args[0])
			if err != nil {
				return &exit{exitFailed, err}
			}
			c, warnings, err := node.Parse(args[0], source)
			for _, w := range warnings {
				fmt.Fprintln(os.Stderr, w)
			}
			if err != nil {
				return failed(err)
			}
			endpoints := 0
			for _, b := range c.Backends {
				endpoints += len(b.Endpoints)
			}
			fmt.Printf("%s: ok: %d listeners, %d backends, %d endpoints\n", args[0], len(c.Listeners), len(c.Backends), endpoints)
			return nil
		},
	}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the release", Args: cobra.NoArgs,
		Run: func(*cobra.Command, []string) { fmt.Println("holdfast", node.Release) },
	}
}
