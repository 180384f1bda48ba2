package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-lb/holdfast/internal/admin"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// tour is what the demo does by itself, one station after another.
func (d *demonstration) tour() []func() error {
	return []func() error{
		func() error {
			if err := d.holdfast.configure("2h"); err != nil {
				return err
			}
			return d.move("holdfast reload", "/v1/reload", admin.ReloadRequest{}, "reloaded")
		},
		func() error {
			return d.move("holdfast rebalance --all", "/v1/rebalance", admin.RebalanceRequest{All: true}, "rebalanced")
		},
		func() error {
			return d.move("holdfast upgrade", "/v1/upgrade", admin.UpgradeRequest{}, "upgraded")
		},
		func() error {
			d.invite()
			return nil
		},
	}
}

// move asks Holdfast for a move and tells in one line what it has done.
func (d *demonstration) move(command, path string, request any, verb string) error {
	var r node.Report
	if _, err := d.holdfast.client.ask(path, request, &r); err != nil {
		return fmt.Errorf("%s: %w\n%s", command, err, d.holdfast.tail())
	}
	line := reportLine(&r, verb)
	switch r.Distance {
	case "config":
		line = strings.TrimSpace(r.Plan) + "; " + line
	case "process":
		line = fmt.Sprintf("process %d -> %d; %s", d.holdfast.pid, r.PID, line)
	}
	d.holdfast.know(r.PID)
	d.say("-- %s: %s", command, line)
	return nil
}

// invite says what a person can do now, and what will be seen.
func (d *demonstration) invite() {
	h := d.holdfast
	exe := h.exe
	if wd, err := os.Getwd(); err == nil {
		if short, err := filepath.Rel(wd, exe); err == nil && !strings.HasPrefix(short, "..") {
			exe = "./" + short
		}
	}
	var out strings.Builder
	out.WriteString("\ntry in a second terminal, and watch that flows stay and lost stays 0:\n")
	for _, c := range [][2]string{
		{"upgrade", "another process takes over all flows, this one ends: status shows another pid"},
		{"rebalance --all", "each flow goes to another event loop, that is to another thread"},
		{"reload", "the file as it is changes nothing; edit it first, or type the next line"},
		{"", "every flow adopts another idle timeout: a new generation"},
		{"status", "where flows are, and the sum that balances: accepted = ended + open"},
		{"flows --max 10", "the oldest flows, and how often each has moved"},
	} {
		if c[0] == "" {
			fmt.Fprintf(&out, "  sed -i 's/idleTimeout: .*/idleTimeout: 3h/' %s && %s reload --socket %s\n      %s\n", h.file, exe, h.socket, c[1])
			continue
		}
		fmt.Fprintf(&out, "  %s %s --socket %s\n      %s\n", exe, c[0], h.socket, c[1])
	}
	d.say("%s", out.String())
}
