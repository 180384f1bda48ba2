package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
	"github.com/holdfast-lb/holdfast/internal/admin/wire"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// eventKinds are the kinds of events, as the API names them.
var eventKinds = []string{"generation", "endpoint", "listener", "canary", "shift", "follow", "remove", "shed", "kill", "move", "upgrade", "log", "missed"}

func eventsCommand() *cobra.Command {
	var from uint64
	var forever bool
	var kinds []string
	x := &cobra.Command{
		Use:   "events",
		Short: "What has happened: changes, endpoints, canaries, moves; -f goes on with what happens",
		Long: "Prints the events that are kept, the oldest first, and ends; with -f it goes on with what happens,\n" +
			"over upgrades too. Each has a number: --from N begins there, so nothing is missed between two calls.\n" +
			"With -f and without --from it begins now.\n\n" +
			"After an upgrade the numbers go on, and the latest that were kept go along. After a restart they begin at 1.",
		Example: "  holdfast events\n  holdfast events -f --kind generation,endpoint\n  holdfast events -f --from 1205 --json",
		Args:    wants(0, 0, "no argument"),
		RunE: asking(func(c *client, _ []string) error {
			for _, k := range kinds {
				if !slices.Contains(eventKinds, k) {
					return &exit{exitUsage, fmt.Errorf("events: no kind %q%s; there are: %s", k, meant(k, eventKinds), strings.Join(eventKinds, ", "))}
				}
			}
			after := max(from, 1) - 1
			if after == 0 && (!forever || from > 0) {
				after = math.MaxUint64 // all that are kept; 0 is what is to come
			}
			return c.events(after, kinds, forever)
		}),
	}
	x.Flags().BoolVarP(&forever, "follow", "f", false, "go on with what happens")
	x.Flags().Uint64Var(&from, "from", 0, "the number of the first event that is wanted")
	x.Flags().StringSliceVar(&kinds, "kind", nil, "only of these kinds: "+strings.Join(eventKinds, ", "))
	return x
}

// events prints the events after that number; 0 is those that are to come.
func (c *client) events(after uint64, kinds []string, forever bool) error {
	for {
		seen, err := c.someEvents(after, kinds, forever)
		switch {
		case err == nil && !forever:
			return nil
		case !forever, connect.CodeOf(err) != connect.CodeUnavailable, seen == 0:
			var call *connect.Error
			if errors.As(err, &call) {
				return c.refusal(err)
			}
			return err
		}
		// It has handed over to another process, which counts on.
		if after = seen; !c.back() {
			return &exit{exitFailed, fmt.Errorf("no answer from %s for %s; the last event was %d", c.at, short(silenceMax), seen)}
		}
	}
}

// back waits until somebody answers again.
func (c *client) back() bool {
	for deadline := time.Now().Add(silenceMax); time.Now().Before(deadline); time.Sleep(waitPoll) {
		if _, err := c.status(); err == nil {
			return true
		}
	}
	return false
}

// someEvents prints events until the stream ends, or all there were when it began
// are told. seen is the number of the last.
func (c *client) someEvents(after uint64, kinds []string, forever bool) (seen uint64, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stream, err := c.api.Watch(ctx, &api.WatchRequest{After: after})
	if err != nil {
		return after, err
	}
	defer func() { _ = stream.Close() }()
	told := false
	for last := uint64(0); stream.Receive(); {
		m := stream.Msg()
		seen = m.GetSeq()
		if m.GetKind() == "watching" {
			if last, err = strconv.ParseUint(m.GetFields()["last"], 10, 64); err != nil {
				return seen, &exit{exitFailed, err}
			}
		} else if len(kinds) == 0 || m.GetKind() == "missed" || slices.Contains(kinds, m.GetKind()) {
			if err := c.tellEvent(m); err != nil {
				return seen, err
			}
			told = true
		}
		if !forever && seen >= last {
			if !told && !c.json {
				fmt.Fprintln(os.Stderr, "no events")
			}
			return seen, nil
		}
	}
	return seen, stream.Err()
}

func (c *client) tellEvent(m *api.Event) error {
	if c.json {
		return printMessage(m)
	}
	var e node.Event
	err := wire.From(m, &e)
	if err == nil {
		_, err = fmt.Println(eventLine(&e))
	}
	if err != nil {
		return &exit{exitFailed, err}
	}
	return nil
}

// eventLine is one event in words. Most say themselves at which generation, and
// who did it.
func eventLine(e *node.Event) string {
	what := e.Text
	if _, name, is := strings.Cut(e.Object, "/"); is && !strings.Contains(what, name) {
		what = name + ": " + what
	}
	text := fmt.Sprintf("%d  %s  %-10s  %s", e.Seq, e.At.Local().Format("15:04:05.000"), e.Kind, what)
	if e.By != "" && !strings.Contains(e.Text, e.By) {
		text += " (" + e.By + ")"
	}
	return text
}

// printJSON prints what is no message of the API as one line of JSON.
func printJSON(v any) error {
	if err := json.NewEncoder(os.Stdout).Encode(v); err != nil {
		return &exit{exitFailed, err}
	}
	return nil
}
