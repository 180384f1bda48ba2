package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-lb/holdfast/internal/node"
)

// otherWords are what people type who mean another verb: they are told which.
func otherWords() (all []*cobra.Command) {
	say := func(word string, what func(args []string) string) {
		all = append(all, &cobra.Command{
			Use: word, Hidden: true, DisableFlagParsing: true,
			RunE: func(_ *cobra.Command, args []string) error {
				return &exit{exitUsage, fmt.Errorf("holdfast: no verb %q; %s", word, what(args))}
			},
		})
	}
	for _, do := range []string{"quiesce", "ready", "maint", "hold", "weight"} {
		say(do, func(args []string) string {
			if len(args) == 0 {
				args = []string{"BACKEND/ENDPOINT"}
			}
			return "did you mean: holdfast endpoint " + do + " " + strings.Join(args, " ")
		})
	}
	for _, word := range []string{"stop", "quit", "shutdown"} {
		say(word, func([]string) string {
			return "send SIGTERM to the process, as kill PID: what is under way is ended in order; holdfast status says the PID"
		})
	}
	return all
}

// askTime bounds the question whether somebody is there already.
const askTime = 2 * time.Second

// alone refuses to begin where another Holdfast runs: without it the first that
// is said of that is a listener whose address is in use.
func alone(file string) error {
	source, err := os.ReadFile(file)
	if err != nil {
		return nil // node.Start says so
	}
	c, _, err := node.Parse(file, source)
	if err != nil {
		return nil
	}
	s, err := clientOf(c.Node.AdminSocket, false).within(askTime).status()
	if err != nil || s.PID == 0 {
		return nil
	}
	return fmt.Errorf("another Holdfast runs here: process %d answers at %s\nholdfast reload changes its configuration, holdfast upgrade replaces it, kill %d ends it; or name another socket in node.admin.socket",
		s.PID, c.Node.AdminSocket, s.PID)
}

// nodeWords names a node. One without a name of its own is "node", and that once.
func nodeWords(name string) string {
	if name == "node" {
		return name
	}
	return "node " + name
}
