package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/node"
	"github.com/holdfast-lb/holdfast/internal/sock"
	"github.com/holdfast-lb/holdfast/internal/supervise"
)

const (
	// statusEvery is how often the line is looked at that a supervisor shows.
	statusEvery = 10 * time.Second
	// stopRest is how long the end may take beside its grace.
	stopRest = 10 * time.Second
	// upgradeMost is how long a supervisor waits for an upgrade that it asked for
	// before it goes on without: longer than the new process may take to start and
	// to take all.
	upgradeMost = 2 * time.Minute
	// successorEvery is how often a process that was replaced, and has flows left,
	// looks for its successor.
	successorEvery = 100 * time.Millisecond
)

// keptPrefix begins the names of the listeners that a supervisor keeps for us.
const keptPrefix = "vip-"

// keptName is the name of a listener in a supervisor's store: no colon may be in it.
func keptName(vip string) string { return keptPrefix + strings.ReplaceAll(vip, ":", "_") }

// supervised brings o together with who started this process: listeners that it
// handed on are used, and all of ours are kept by it.
func supervised(o *node.Options, s *supervise.Supervisor) {
	all, faults := supervise.Activated()
	for _, err := range faults {
		o.Log.Warn("what was handed on is not used", "error", err)
	}
	if len(all) > 0 {
		o.Inherited = map[string]sock.FD{}
		for _, l := range all {
			o.Inherited[node.InheritedKey(l.At.String(), l.Dual)] = l.FD
			o.Log.Info("a listener was handed on", "vip", l.At, "name", l.Name)
		}
	}
	if !s.Listens() {
		return
	}
	o.Keeper = node.Keeper{
		Keep: func(vip string, fd sock.FD) { s.Store(keptName(vip), fd) },
		Forget: func(vips ...string) {
			names := make([]string, len(vips))
			for i, vip := range vips {
				names[i] = keptName(vip)
			}
			s.Forget(names...)
		},
	}
}

// serving says in one line what is served.
func serving(n *node.Node) string {
	return fmt.Sprintf("serves %s, generation %d, release %s", count(len(n.Config().Listeners), "listener"), n.Generation(), node.Release)
}

// upgradeBySignal hands over to a new process of the file that this one was started
// from, and tells whether it has. The supervisor hears when it begins, and when
// nothing has come of it; else it hears of the new process by that itself.
func upgradeBySignal(n *node.Node, s *supervise.Supervisor, log *slog.Logger) bool {
	s.Reloading("upgrade: a new process is started", upgradeMost)
	q := node.UpgradeRequest{Guard: node.Guard{Author: node.Author{Name: "signal", Reason: "SIGUSR2"}}}
	err := n.Upgrade(context.Background(), q, func(p node.Progress) { s.Status("upgrade: " + p.Phase + ": " + p.Text) })
	if err == nil {
		return true
	}
	log.Error("the upgrade that SIGUSR2 asked for was not done; this process goes on", "error", err)
	s.Unchanged(fmt.Sprintf("%s; the last upgrade was not done: %v", serving(n), err))
	return false
}

// drain waits until flows that the successor refused have ended, as long as they may
// take, and tells whether they have. Under a supervisor it does not outlive the
// successor: a unit that is not empty is not started again, and nobody would serve.
func drain(n *node.Node, s *supervise.Supervisor, log *slog.Logger) bool {
	done := make(chan bool, 1)
	go func() { done <- n.WaitEmpty(n.DrainTime()) }() // ends with the flows, or with the process
	heir, err := os.FindProcess(n.Successor())
	if err != nil || !s.Listens() {
		return <-done
	}
	empty, orphaned := emptyOrOrphaned(done, heir)
	if orphaned {
		log.Error("the new process has ended; flows that it had refused end with this one, so that the unit is started again", "successor", heir.Pid)
	}
	return empty || orphaned
}

// emptyOrOrphaned waits for what done says, or for the end of heir.
func emptyOrOrphaned(done <-chan bool, heir *os.Process) (empty, orphaned bool) {
	look := time.NewTicker(successorEvery)
	defer look.Stop()
	for {
		select {
		case empty = <-done:
			return empty, false
		case <-look.C:
			if sock.Gone(heir) {
				return false, true
			}
		}
	}
}
