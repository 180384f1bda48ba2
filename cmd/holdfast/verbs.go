package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/holdfast-lb/holdfast/internal/admin"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// client asks the running holdfast over its admin socket.
type client struct {
	http   http.Client
	socket string
	json   bool
}

func newClient(c *cobra.Command) *client {
	socket, _ := c.Flags().GetString("socket")
	asJSON, _ := c.Flags().GetBool("json")
	return clientOf(socket, asJSON)
}

// clientOf asks at socket. Each question has a connection of its own: the next
// one may be for a successor.
func clientOf(socket string, asJSON bool) *client {
	return &client{socket: socket, json: asJSON, http: http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}}
}

// ask sends request (nil: GET) and decodes the answer into out. Under --json
// the answer is printed as it came and told is false.
func (c *client) ask(path string, request, out any) (told bool, err error) {
	method, body := http.MethodGet, io.Reader(nil)
	if request != nil {
		b, err := json.Marshal(request)
		if err != nil {
			return false, &exit{exitFailed, err}
		}
		method, body = http.MethodPost, bytes.NewReader(b)
	}
	r, err := http.NewRequest(method, "http://holdfast"+path, body)
	if err != nil {
		return false, &exit{exitFailed, err}
	}
	answer, err := c.http.Do(r)
	if err != nil {
		return false, &exit{exitFailed, c.silent(err)}
	}
	defer func() { _ = answer.Body.Close() }()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		return false, &exit{exitFailed, err}
	}
	if answer.StatusCode != http.StatusOK {
		var p admin.Problem
		if json.Unmarshal(b, &p) != nil || p.Error == "" {
			p.Error = answer.Status
		}
		code := exitFailed
		if answer.StatusCode == http.StatusUnprocessableEntity || answer.StatusCode == http.StatusConflict {
			code = exitRefused
		}
		if c.json {
			os.Stdout.Write(b)
		}
		return false, &exit{code, fmt.Errorf("refused: %s", p.Error)}
	}
	if c.json {
		if _, err := os.Stdout.Write(b); err != nil {
			return false, &exit{exitFailed, err}
		}
		return false, nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return false, &exit{exitFailed, err}
	}
	return true, nil
}

// silent says why nobody answers, and what to do about it.
func (c *client) silent(err error) error {
	var dial *net.OpError
	unreached := errors.As(err, &dial) && dial.Op == "dial" // no such file, or nobody listens there
	var cause *os.SyscallError
	if errors.As(err, &cause) {
		err = cause.Err // without the request that nobody has typed
	}
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s: %w: it answers only its owner; ask as the user that runs holdfast", c.socket, err)
	case unreached:
		return fmt.Errorf("no holdfast answers at %s: %w\nstart one with: holdfast run -c FILE; name another socket with --socket or $%s",
			c.socket, err, socketEnv)
	}
	return fmt.Errorf("no answer from %s: %w", c.socket, err)
}

// report prints what a move has done.
func (c *client) report(path string, request any, verb string) error {
	before := 0
	if path == "/v1/upgrade" && !c.json {
		var s node.Status
		if _, err := c.ask("/v1/status", nil, &s); err != nil {
			return err
		}
		before = s.PID
	}
	var r node.Report
	told, err := c.ask(path, request, &r)
	if err != nil || !told {
		return err
	}
	if r.Plan != "" {
		fmt.Print(r.Plan)
	}
	line := reportLine(&r, verb)
	if before != 0 {
		line = fmt.Sprintf("process %d -> %d; %s", before, r.PID, line)
	}
	fmt.Println(line)
	if r.Lost > 0 {
		return &exit{code: exitFailed}
	}
	return nil
}

// reportLine is what a move has done, without its plan.
func reportLine(r *node.Report, verb string) string {
	if r.Unchanged {
		return fmt.Sprintf("%s in %.1f ms: unchanged, generation %d", verb, r.Millis, r.Generation)
	}
	out := fmt.Sprintf("%s in %.1f ms: %s moved with %d octets", verb, r.Millis, count(r.Flows, "flow"), r.Octets)
	if r.Flows > 0 {
		out += fmt.Sprintf(", pause p50 %.2f ms, p99 %.2f ms, max %.2f ms", r.Pause.P50/1000, r.Pause.P99/1000, r.Pause.Max/1000)
	}
	if r.Closed > 0 {
		out += fmt.Sprintf(", %d closed as configured", r.Closed)
	}
	for _, why := range sortedKeys(r.Reasons) {
		out += fmt.Sprintf(", %d stayed (%s)", r.Reasons[why], why)
	}
	return fmt.Sprintf("%s, %d lost", out, r.Lost)
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func reloadCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "reload [FILE]",
		Short: "Apply the configuration file again, or another one",
		Args:  wants(0, 1, "one FILE at most"),
		RunE: func(c *cobra.Command, args []string) error {
			var q admin.ReloadRequest
			if len(args) > 0 {
				var err error
				if q.Source, err = os.ReadFile(args[0]); err != nil {
					return &exit{exitFailed, err}
				}
			}
			return newClient(c).report("/v1/reload", q, "reloaded")
		},
	}
}

func rebalanceCommand() *cobra.Command {
	var all bool
	x := &cobra.Command{
		Use:   "rebalance",
		Short: "Move flows between event loops until they are even",
		Args:  wants(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			return newClient(c).report("/v1/rebalance", admin.RebalanceRequest{All: all}, "rebalanced")
		},
	}
	x.Flags().BoolVar(&all, "all", false, "move every flow to the next loop")
	return x
}

func upgradeCommand() *cobra.Command {
	var binary string
	x := &cobra.Command{
		Use:   "upgrade",
		Short: "Hand everything over to a new process: listeners and live flows",
		Args:  wants(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			q := admin.UpgradeRequest{}
			if binary != "" {
				var err error
				if q.Binary, err = filepath.Abs(binary); err != nil {
					return &exit{exitFailed, err}
				}
			}
			return newClient(c).report("/v1/upgrade", q, "upgraded")
		},
	}
	x.Flags().StringVar(&binary, "binary", "", "the new binary (default: the file the running one was started from)")
	return x
}

func migrateCommand() *cobra.Command {
	var to string
	x := &cobra.Command{
		Use:   "migrate --to NODE",
		Short: "Move the flows of movable listeners to another host",
		Args:  wants(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			if to == "" {
				return &exit{exitUsage, errors.New("migrate: wants --to NODE, a peer named in the configuration")}
			}
			return newClient(c).report("/v1/migrate", admin.MigrateRequest{To: to}, "migrated to "+to)
		},
	}
	x.Flags().StringVar(&to, "to", "", "a peer named in the configuration")
	return x
}
