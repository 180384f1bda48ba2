package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// upgradeReport is what the product says of an upgrade.
type upgradeReport struct {
	MoveReport
	Kinds     map[string]kindReport `json:"kinds"` // by what flows were doing
	Residue   int                   `json:"residue"`
	Canary    int                   `json:"canary_flows"`
	LostFlows []string              `json:"lost_flows"`
	Listeners int                   `json:"listeners"`
	IdleLegs  int                   `json:"idle_legs"`
	Copied    int                   `json:"copied"`
	Phases    map[string]float64    `json:"phases_ms"`
}

// kindReport is what moved of one kind of flow.
type kindReport struct {
	Flows  int    `json:"flows"`
	Octets uint64 `json:"octets"` // under way in them
	Frozen uint64 `json:"frozen"` // octets of their frozen forms
}

// readUpgrade finds the report in what the verb wrote: objects one behind
// another, of which the last one has it as "move", or is the report itself.
func readUpgrade(out []byte) (*upgradeReport, error) {
	d := json.NewDecoder(bytes.NewReader(out))
	var last json.RawMessage
	for d.More() {
		if err := d.Decode(&last); err != nil {
			return nil, fmt.Errorf("lab: holdfast upgrade: %w in %q", err, out)
		}
	}
	var step struct {
		Phase  string          `json:"phase"`
		Failed string          `json:"failed"`
		Move   json.RawMessage `json:"move"`
	}
	if err := json.Unmarshal(last, &step); err != nil {
		return nil, fmt.Errorf("lab: holdfast upgrade: %w in %q", err, out)
	}
	if step.Failed != "" || step.Phase != "" && step.Move == nil {
		return nil, fmt.Errorf("lab: holdfast upgrade ended in %s", last)
	}
	if step.Move != nil {
		last = step.Move
	}
	r := &upgradeReport{}
	if err := json.Unmarshal(last, r); err != nil {
		return nil, fmt.Errorf("lab: holdfast upgrade: %w in %q", err, out)
	}
	if r.PID == 0 {
		return nil, fmt.Errorf("lab: holdfast upgrade tells of no process: %q", out)
	}
	return r, nil
}

// upgrade has the node replaced by the verb, as a person would.
func (n *shopNode) upgrade(ctx context.Context, more ...string) (*upgradeReport, error) {
	argv := append([]string{n.binary, "upgrade", "--binary", n.binary, "--socket", n.socket, "--json"}, more...)
	out, err := n.host.Output(ctx, argv...)
	if err != nil { // why, is the last thing that it writes
		return nil, fmt.Errorf("%w: %s", err, bytes.TrimSpace(out[max(0, len(out)-600):]))
	}
	r, err := readUpgrade(out)
	if err == nil {
		n.succeeded(r.PID)
	}
	return r, err
}

// succeeded notes who serves now.
func (n *shopNode) succeeded(pid int) {
	n.pid = pid
	n.api.CloseIdleConnections()
}

// signalPatience is how long an upgrade that nobody reports of may take.
const signalPatience = 20 * time.Second

// upgradeBySignal has it replaced by SIGUSR2. Nobody waits for a report then; the
// successor knows what came of it.
func (n *shopNode) upgradeBySignal(ctx context.Context) (*upgradeReport, error) {
	was := n.pid
	if err := unix.Kill(was, unix.SIGUSR2); err != nil {
		return nil, err
	}
	var s struct {
		PID  int `json:"pid"`
		Last struct {
			Was  int            `json:"was_pid"`
			Move *upgradeReport `json:"move"`
		} `json:"last_upgrade"`
	}
	var err error
	if !eventually(signalPatience, func() bool {
		n.api.CloseIdleConnections() // whoever answers shall be asked
		err = n.call(ctx, "Status", struct{}{}, &s)
		return err == nil && s.PID != was && s.Last.Was == was && s.Last.Move != nil
	}) {
		return nil, fmt.Errorf("lab: %v after SIGUSR2 to process %d process %d serves, whose last upgrade was of process %d (%v)", signalPatience, was, s.PID, s.Last.Was, err)
	}
	n.succeeded(s.PID)
	s.Last.Move.PID = s.PID
	return s.Last.Move, nil
}

// loops is how many the node has, by its metrics.
func (n *shopNode) loops(ctx context.Context) (int, error) {
	text, err := n.metrics(ctx)
	return strings.Count(text, "\nholdfast_loop_flows{"), err
}

// understands says whether a verb of the product knows a word, by its own help.
func (n *shopNode) understands(ctx context.Context, word string, verb ...string) bool {
	out, err := n.host.Output(ctx, append(append([]string{n.binary}, verb...), "--help")...)
	return err == nil && bytes.Contains(out, []byte(word))
}

// metrics are what the node shows at /metrics.
func (n *shopNode) metrics(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node/metrics", nil)
	if err != nil {
		return "", err
	}
	res, err := n.api.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("lab: /metrics: status %d", res.StatusCode)
	}
	return string(text), err
}

// collectorTrace makes the collector of Go say what each of its runs took.
const collectorTrace = "GODEBUG=gctrace=1"

// collectorLine is what it says: the times for which everything stood are the
// first and the third.
var collectorLine = regexp.MustCompile(`(?m)^gc \d+ @[0-9.]+s \d+%: ([0-9.]+)\+([0-9.]+)\+([0-9.]+) ms clock`)

// collections is what the collector took, of all processes that wrote to a log.
type collections struct {
	stops Histogram // everything stood
	marks Histogram // it worked beside everything else
}

func readCollections(log string) (c collections) {
	text, _ := os.ReadFile(log)
	for _, m := range collectorLine.FindAllSubmatch(text, -1) {
		var x [3]float64
		for i := range x {
			x[i], _ = strconv.ParseFloat(string(m[i+1]), 64)
		}
		c.stops.Add(floatMillis(x[0] + x[2]))
		c.marks.Add(floatMillis(x[1]))
	}
	return c
}

// startTraced is startNode with the collector's trace, which successors go on
// with.
func startTraced(ctx context.Context, binary string, at *Host, name, text string) (*shopNode, error) {
	was := os.Getenv("GODEBUG")
	_ = os.Setenv("GODEBUG", strings.TrimPrefix(collectorTrace, "GODEBUG="))
	defer func() { _ = os.Setenv("GODEBUG", was) }()
	return startNode(ctx, binary, at, name, text)
}

// oldProcesses are those of the program but the one that serves.
func (n *shopNode) oldProcesses() (old []int) {
	for _, pid := range running(n.binary) {
		if pid != n.pid && !isVerb(pid) {
			old = append(old, pid)
		}
	}
	return old
}

// isVerb says whether a process is one of the product's commands and no node.
func isVerb(pid int) bool {
	line, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	argv := bytes.Split(line, []byte{0})
	return len(argv) > 1 && string(argv[1]) != "run"
}
