package lab

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
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// newLoopback makes a world of one host, which is the namespace that the lab
// itself is in: clients, balancer and servers meet on lo. Labs that judge by
// counts and move nothing between hosts need no cables.
func newLoopback(dir string) (*World, *Host, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, nil, fmt.Errorf("lab: netlink: %w", err)
	}
	w := &World{Dir: dir, Hosts: map[string]*Host{}, nl: nl, procs: newProcesses(true), alone: true}
	h := &Host{Name: "here", world: w}
	if h.ns, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return nil, nil, fmt.Errorf("lab: own namespace: %w", err)
	}
	if h.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, nil, err
	}
	w.Hosts[h.Name] = h
	lo, err := nl.LinkByName("lo")
	if err == nil {
		err = nl.LinkSetUp(lo)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("lab: lo: %w", err)
	}
	// Many short connections leave many TIME_WAITs behind.
	return w, h, h.Sysctl("net/ipv4/ip_local_port_range", "10000 65000")
}

// shopNode is one Holdfast on a host, known by its file and its admin socket.
type shopNode struct {
	binary  string
	host    *Host
	name    string
	socket  string
	process *Process
	pid     int
	api     *http.Client
}

// startNode runs the product with a configuration, in which SOCKET stands for
// the place of its admin socket.
func startNode(ctx context.Context, binary string, at *Host, name, text string) (*shopNode, error) {
	n := &shopNode{binary: binary, host: at, name: name, socket: filepath.Join(at.world.Dir, name+".sock")}
	n.api = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", n.socket)
	}}}
	file, err := n.write(text)
	if err != nil {
		return nil, err
	}
	if n.process, err = at.Start(name, nil, binary, "run", "--grace", "0s", "-c", file); err != nil {
		return nil, err
	}
	n.pid = n.process.Pid
	ctx, cancel := context.WithTimeout(ctx, 2*readyPatience)
	defer cancel()
	return n, n.process.WaitLine(ctx, "ready:")
}

// write puts a configuration where the node reads it.
func (n *shopNode) write(text string) (string, error) {
	file := filepath.Join(n.host.world.Dir, n.name+".yaml")
	return file, os.WriteFile(file, []byte(n.filled(text)), 0o600)
}

// filled is a configuration with the place of the admin socket.
func (n *shopNode) filled(text string) string { return strings.Replace(text, "SOCKET", n.socket, 1) }

// command runs one of the product's own commands, as a person would type it.
func (n *shopNode) command(ctx context.Context, args ...string) (string, error) {
	argv := append(append([]string{n.binary}, args...), "--socket", n.socket)
	out, err := n.host.Output(ctx, argv...)
	return string(out), err
}

// call asks the node for one thing, as curl would: a method of its API and a
// message in JSON.
func (n *shopNode) call(ctx context.Context, method string, q, into any) error {
	body, err := json.Marshal(q)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, movePatience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://node/holdfast.v1.Node/"+method, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := n.api.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return &refusal{method, res.StatusCode, string(text)}
	}
	if into == nil {
		return nil
	}
	// Of what tells its steps the last line counts.
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return json.Unmarshal(lines[len(lines)-1], into)
}

// upgraded is the last of the steps that the product tells of an upgrade.
type upgraded struct {
	Move *MoveReport `json:"move"`
}

// report is what the upgrade has done.
func (u *upgraded) report() (*MoveReport, error) {
	if u.Move == nil {
		return nil, errors.New("lab: upgrade: the last step has no report")
	}
	return u.Move, nil
}

// succeed has another process of the same binary take over, asked as curl would.
func (n *shopNode) succeed(ctx context.Context) (*MoveReport, error) {
	var u upgraded
	if err := n.call(ctx, "Upgrade", map[string]any{"binary": n.binary}, &u); err != nil {
		return nil, err
	}
	return u.report()
}

// refusal is an answer of the API that is not the wanted one.
type refusal struct {
	method string
	status int
	text   string
}

func (r *refusal) Error() string {
	return fmt.Sprintf("lab: %s: status %d: %s", r.method, r.status, r.text)
}

// apply has the node go over to another configuration.
func (n *shopNode) apply(ctx context.Context, text string) (*MoveReport, error) {
	if _, err := n.write(text); err != nil {
		return nil, err
	}
	r := &MoveReport{}
	return r, n.call(ctx, "Apply", map[string]any{"reread": true}, r)
}

// changeReport is the part of what the product says of a change that the labs
// look at.
type changeReport struct {
	Generation      uint64            `json:"generation"`
	Unchanged       bool              `json:"unchanged"`
	Plan            string            `json:"plan"`
	EffectiveMillis float64           `json:"effective_ms"`
	Durable         string            `json:"durable"`
	DurableMillis   float64           `json:"durable_ms"`
	Closed          int               `json:"closed"`
	Lost            int               `json:"lost"`
	Kernel          map[string]uint64 `json:"kernel"`
	ArrivedLate     uint64            `json:"arrived_late"`
	Millis          float64           `json:"millis"`
}

// change asks for another desired state.
func (n *shopNode) change(ctx context.Context, q map[string]any, into *changeReport) error {
	return n.call(ctx, "Apply", q, into)
}

// order asks for another state of endpoints.
func (n *shopNode) order(ctx context.Context, q map[string]any, into any) error {
	return n.call(ctx, "SetEndpoint", q, into)
}

// endpointView is the part of what the product says of an endpoint that the
// labs look at.
type endpointView struct {
	Name           string  `json:"name"`
	State          string  `json:"state"`
	Serves         bool    `json:"serves"`
	Ejected        bool    `json:"ejected"`
	EjectedSeconds float64 `json:"ejected_seconds"`
	Weight         float64 `json:"effective_weight"`
	InFlight       int     `json:"in_flight"`
	Tries          uint64  `json:"tries"`
	Failures       uint64  `json:"failures"`
	SinceSeconds   float64 `json:"since_seconds"`
}

// endpoints are those of the node, by name.
func (n *shopNode) endpoints(ctx context.Context) (map[string]endpointView, error) {
	var all struct {
		Endpoints []endpointView `json:"endpoints"`
	}
	if err := n.call(ctx, "Endpoints", struct{}{}, &all); err != nil {
		return nil, err
	}
	m := map[string]endpointView{}
	for _, e := range all.Endpoints {
		m[e.Name] = e
	}
	return m, nil
}

// await waits until an endpoint is as wanted.
func (n *shopNode) await(ctx context.Context, name, what string, ok func(endpointView) bool) error {
	for {
		all, err := n.endpoints(ctx)
		if err != nil {
			return err
		}
		if ok(all[name]) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("lab: %s is %s, never %s: %w", name, all[name].State, what, ctx.Err())
		case <-time.After(15 * time.Millisecond):
		}
	}
}

// status is the node's own account.
func (n *shopNode) status(ctx context.Context) (*Status, error) {
	s := &Status{}
	return s, n.call(ctx, "Status", struct{}{}, s)
}

// judgePromises looks at the counters that the product promises to keep at zero.
func (n *shopNode) judgePromises(ctx context.Context, v *Verdict) {
	s, err := n.status(ctx)
	if err != nil {
		v.Broken(err)
		return
	}
	v.Zero("flows_reset_by_move_total", int(s.ResetByMove))
	v.Zero("flows lost, by the product's own account", int(s.Lost+s.LostTotal))
}

// errorText bounds what is printed of an error.
func errorText(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		err = fmt.Errorf("%s: %w", op.Op, op.Err)
	}
	s := strings.ReplaceAll(err.Error(), "\n", " ")
	return s[:min(len(s), 120)]
}
