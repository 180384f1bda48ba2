package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Holdfast is the product: a process on each of the nodes, one of which owns
// the VIPs and serves.
type Holdfast struct {
	Binary   string
	Services []Service
	Nodes    []*Host // two of them, the owner first
	// Cluster says whether flows may move between the nodes. It needs
	// /dev/net/tun, which not everybody may open.
	Cluster bool

	nodes  map[string]*holdfastNode
	active string
}

type holdfastNode struct {
	host    *Host
	process *Process // the first one; upgrades replace it
	pid     int      // that serves now
	socket  string
	files   [2]string // configurations that take turns
	which   int
}

// readyPatience is how long a process may take until it says so.
const readyPatience = 10 * time.Second

// Start runs both nodes.
func (b *Holdfast) Start(ctx context.Context) error {
	dir := b.Nodes[0].world.Dir
	if err := writeIdentities(dir, b.Nodes...); err != nil {
		return err
	}
	b.nodes = map[string]*holdfastNode{}
	for i, h := range b.Nodes {
		n := &holdfastNode{host: h, socket: filepath.Join(dir, h.Name+".sock")}
		for k := range n.files {
			n.files[k] = filepath.Join(dir, fmt.Sprintf("%s-%d.yaml", h.Name, k))
			if err := os.WriteFile(n.files[k], []byte(b.config(i, k)), 0o600); err != nil {
				return err
			}
		}
		var err error
		if n.process, err = h.Start(h.Name, nil, b.Binary, "run", "--grace", "0s", "-c", n.files[0]); err != nil {
			return err
		}
		n.pid = n.process.Pid
		b.nodes[h.Name] = n
	}
	b.active = b.Nodes[0].Name
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	for _, n := range b.nodes {
		if err := n.process.WaitLine(ctx, "ready:"); err != nil {
			return err
		}
	}
	return nil
}

// sourcePorts keeps the nodes' dials apart: both dial from the VIP while flows
// move.
var sourcePorts = [2]string{"20000-39999", "40000-60999"}

// config is what node i reads. Its two variants differ in objects that the
// flows name, so that going from one to the other re-rules every flow, and so do
// the nodes: a flow that has come over is ruled anew by the next change. They do
// not differ in what the lab measures.
func (b *Holdfast) config(i, variant int) string {
	var s strings.Builder
	h, dir := b.Nodes[i], b.Nodes[0].world.Dir
	which := 2*i + variant
	idle, balance := fmt.Sprintf("%dh", which), [2]string{"round-robin", "least"}[variant]
	dial, queue := fmt.Sprintf("%dm", 30+which), 1000+which
	fmt.Fprintf(&s, "node: { name: %s, loops: 2, admin: { socket: %s } }\n", h.Name, filepath.Join(dir, h.Name+".sock"))
	fmt.Fprintf(&s, "listeners:\n")
	for _, v := range b.Services {
		protocol := "tcp, idleTimeout: " + idle
		if v.HTTP {
			protocol = fmt.Sprintf("http, http: { timeouts: { header: 10m, body: 10m, keepalive: %dh, tunnel: %s } }", 1+which, idle)
		}
		fmt.Fprintf(&s, "  %s: { vip: \"%v\", protocol: %s, backend: %s, onChange: adopt, movable: %v }\n", v.Name, v.VIP, protocol, v.Name, b.Cluster)
	}
	fmt.Fprintf(&s, "backends:\n")
	for _, v := range b.Services {
		fmt.Fprintf(&s, "  %s:\n    balance: %s\n    connectTimeout: %s\n    source: vip\n", v.Name, balance, dial)
		if v.HTTP {
			fmt.Fprintf(&s, "    answerTimeout: %s\n", dial)
		}
		fmt.Fprintf(&s, "    limits: { connectionsPerEndpoint: %d, queue: %d, queueTime: 30m }\n", v.Slots, queue)
		fmt.Fprintf(&s, "    endpoints: [ { name: s1, address: \"%v\" } ]\n", v.To)
	}
	if !b.Cluster {
		return s.String()
	}
	fmt.Fprintf(&s, "cluster: { identity: { certificate: %[1]s/%[2]s.crt, key: %[1]s/%[2]s.key, trust: %[1]s/ca.crt } }\nnodes:\n", dir, h.Name)
	for k, p := range b.Nodes {
		fmt.Fprintf(&s, "  %s: { address: %v:7443, device: eth0, sourcePorts: %s }\n", p.Name, p.V4, sourcePorts[k])
	}
	return s.String()
}

// Move runs the verb of a distance at the node that serves.
func (b *Holdfast) Move(ctx context.Context, d Label) (*MoveReport, error) {
	n := b.nodes[b.active]
	r := &MoveReport{}
	var err error
	switch d {
	case Config:
		n.which ^= 1
		err = b.verb(ctx, n, r, "apply", n.files[n.which])
		r.Distance = d.String() // of a change it goes without saying
	case Loop:
		err = b.verb(ctx, n, r, "rebalance", "--all")
	case ProcessMove:
		var u upgraded
		if err = b.verb(ctx, n, &u, "upgrade", "--binary", b.Binary); err != nil {
			return r, err
		}
		if r, err = u.report(); err == nil {
			n.pid = r.PID
		}
	case HostMove:
		to := b.Nodes[0].Name
		if to == b.active {
			to = b.Nodes[1].Name
		}
		var u upgraded // its last step has the report, as that of an upgrade
		if err = b.verb(ctx, n, &u, "migrate", "--to", to); err != nil {
			return r, err
		}
		if r, err = u.report(); err == nil {
			b.active = to
		}
	default:
		panic("lab: " + d.String() + " is no distance")
	}
	return r, err
}

func (b *Holdfast) verb(ctx context.Context, n *holdfastNode, into any, args ...string) error {
	argv := append([]string{b.Binary}, args...)
	out, err := n.host.Output(ctx, append(argv, "--socket", n.socket, "--json")...)
	if err != nil {
		return err
	}
	// A report may be indented, or the last of several lines.
	if json.Unmarshal(out, into) == nil {
		return nil
	}
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	if err := json.Unmarshal(lines[len(lines)-1], into); err != nil {
		return fmt.Errorf("lab: holdfast %s: %w in %q", args[0], err, out)
	}
	return nil
}

// Serving says which process on which host should hold the flows.
func (b *Holdfast) Serving() Place {
	n := b.nodes[b.active]
	return Place{Host: n.host, PID: n.pid}
}

// Status asks the node that serves.
func (b *Holdfast) Status(ctx context.Context) (*Status, error) {
	return b.StatusOf(ctx, b.active)
}

// StatusOf asks the node of a host.
func (b *Holdfast) StatusOf(ctx context.Context, host string) (*Status, error) {
	s := &Status{}
	return s, b.verb(ctx, b.nodes[host], s, "status")
}

// Flows lists the flows of the node that serves.
func (b *Holdfast) Flows(ctx context.Context) ([]FlowStatus, error) {
	var all struct {
		Flows []FlowStatus `json:"flows"`
	}
	err := b.verb(ctx, b.nodes[b.active], &all, "flows", "--max", "0")
	return all.Flows, err
}

// Logs is the end of what both nodes wrote.
func (b *Holdfast) Logs() string {
	var s strings.Builder
	for _, h := range b.Nodes {
		if n := b.nodes[h.Name]; n != nil && n.process != nil {
			fmt.Fprintf(&s, "-- %s (pid %d)\n%s\n", h.Name, n.pid, n.process.Tail(30))
		}
	}
	return s.String()
}
