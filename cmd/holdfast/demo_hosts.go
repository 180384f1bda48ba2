package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
	"github.com/holdfast-lb/holdfast/internal/admin/wire"
	"github.com/holdfast-lb/holdfast/internal/demo"
	"github.com/holdfast-lb/holdfast/internal/hosts"
	"github.com/holdfast-lb/holdfast/internal/node"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// The network of `demo --hosts`.
const (
	hostsVIP  = "shop"
	hostsAddr = "10.9.0.100"
	hostsPort = "443"
	hostsBits = 24
	appPort   = "9000"
)

var hostsNodes = []struct{ name, addr, ports, server string }{
	{"n1", "10.9.0.1", "20000-29999", "a1"},
	{"n3", "10.9.0.3", "30000-39999", "a3"},
}

// hostsStep is the time between two stations of the demo when nobody looks.
const hostsStep = 3 * time.Second

// enterHosts runs the demo of moves between hosts in a network of its own.
func enterHosts(flows int, duration time.Duration, asJSON bool) error {
	inside, err := hosts.Inside()
	if err != nil {
		return &exit{exitFailed, err}
	}
	if !inside {
		status, err := hosts.Enter()
		switch {
		case err != nil:
			return &exit{exitFailed, err}
		case status != 0:
			return &exit{code: status} // it has said why
		}
		return nil
	}
	d := &hostsDemo{flows: flows, duration: duration, terminal: sock.IsTerminal(os.Stdout) && sock.IsTerminal(os.Stdin)}
	defer d.end()
	if err := d.begin(); err != nil {
		return &exit{exitFailed, err}
	}
	if d.terminal {
		err = d.picture()
	} else {
		err = d.byItself()
	}
	return d.conclude(asJSON, err)
}

// hostsDemo is one run of it.
type hostsDemo struct {
	flows    int
	duration time.Duration // 0: until q
	terminal bool

	dir     string
	net     *hosts.Net
	nodes   []*hostsNode
	traffic *demo.Traffic
	began   time.Time

	// mu guards what follows.
	mu      sync.Mutex
	moving  string     // what is under way; "": nothing
	away    *hostsNode // is free; e has it return
	enough  func()     // ends an evacuation that waits for its last connections
	step    node.Progress
	moves   int // that are done
	moved   int // flows in them
	last    string
	trouble error
}

// hostsNode is one Holdfast of the demo.
type hostsNode struct {
	name, server string
	host         *hosts.Host
	process      *hosts.Process
	client       *client

	// mu guards what follows.
	mu     sync.Mutex
	status node.Status
	rates  [2]float64 // octets a second from clients, and from servers
	at     time.Time
}

func (d *hostsDemo) begin() (err error) {
	if d.dir, err = os.MkdirTemp("", "holdfast-demo-"); err != nil {
		return err
	}
	specs := []hosts.Spec{{Name: "client", Addr: netip.MustParsePrefix(fmt.Sprintf("10.9.0.9/%d", hostsBits))}}
	for _, x := range hostsNodes {
		specs = append(specs, hosts.Spec{Name: x.name, Addr: netip.MustParsePrefix(fmt.Sprintf("%s/%d", x.addr, hostsBits))})
	}
	if d.net, err = hosts.New(d.dir, specs...); err != nil {
		return err
	}
	var names []string
	for _, x := range hostsNodes {
		names = append(names, x.name)
	}
	if err := demo.Identities(d.dir, names...); err != nil {
		return err
	}
	file := filepath.Join(d.dir, "holdfast.yaml")
	if err := os.WriteFile(file, []byte(hostsConfig(d.dir)), 0o600); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	var servers []net.Listener
	for _, x := range hostsNodes {
		n := &hostsNode{name: x.name, server: x.server, host: d.net.Host(x.name), client: clientOf(filepath.Join(d.dir, x.name+".sock"), false)}
		d.nodes = append(d.nodes, n)
		err := n.host.Do(func() error {
			l, err := demo.Listen(net.JoinHostPort(x.addr, appPort))
			servers = append(servers, l)
			return err
		})
		if err != nil {
			return err
		}
		if n.process, err = n.host.Start(x.name, []string{"HOLDFAST_NODE=" + x.name}, exe, "run", "-c", file); err != nil {
			return err
		}
	}
	client := d.net.Host("client")
	d.traffic = demo.StartAt(func(ctx context.Context, target string) (c net.Conn, err error) {
		return c, client.Do(func() error {
			c, err = demo.Direct(ctx, target)
			return err
		})
	}, servers...)
	if err := d.awaitNodes(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTime)
	defer cancel()
	if err := d.traffic.Open(ctx, net.JoinHostPort(hostsAddr, hostsPort), d.flows); err != nil {
		return fmt.Errorf("%w\n%s", err, d.tails())
	}
	d.began = time.Now()
	d.traffic.Look() // opening is no figure
	return nil
}

// hostsConfig is the one file of both nodes.
func hostsConfig(dir string) string {
	var s strings.Builder
	fmt.Fprintf(&s, `node:
  admin: { socket: "%[1]s/${HOLDFAST_NODE}.sock" }
  state: "%[1]s/${HOLDFAST_NODE}.state"
cluster:
  identity: { certificate: "%[1]s/${HOLDFAST_NODE}.crt", key: "%[1]s/${HOLDFAST_NODE}.key", trust: "%[1]s/ca.crt" }
  netadmin: "%[1]s/${HOLDFAST_NODE}.netadmin"
  settle: 2s
  onStop: stay # both end at once
nodes:
`, dir)
	for _, x := range hostsNodes {
		fmt.Fprintf(&s, "  %s: { address: %s:7443, device: eth0, sourcePorts: %s }\n", x.name, x.addr, x.ports)
	}
	fmt.Fprintf(&s, "vips:\n  %s: { address: %s/%d, home: %s }\n", hostsVIP, hostsAddr, hostsBits, hostsNodes[0].name)
	fmt.Fprintf(&s, "listeners:\n  shop: { vip: \"%s:%s\", protocol: tcp, backend: app, idleTimeout: 1h }\n", hostsVIP, hostsPort)
	s.WriteString("backends:\n  app:\n    source: vip\n    preferLocal: true\n    endpoints:\n")
	for _, x := range hostsNodes {
		fmt.Fprintf(&s, "      - { name: %s, address: \"%s:%s\", node: %s }\n", x.server, x.addr, appPort, x.name)
	}
	return s.String()
}

// awaitNodes waits until all nodes answer and one of them owns the VIP.
func (d *hostsDemo) awaitNodes() error {
	for deadline := time.Now().Add(2 * startTime); ; time.Sleep(20 * time.Millisecond) {
		err := d.look()
		switch {
		case err == nil && d.owner() != nil:
			return nil
		case time.Now().After(deadline):
			return errors.Join(errors.New("demo: no node owns the VIP"), err, errors.New(d.tails()))
		}
		for _, n := range d.nodes {
			if n.process.Ended() {
				return fmt.Errorf("demo: %s has ended\n%s", n.name, d.tails())
			}
		}
	}
}

// look asks all nodes how they are.
func (d *hostsDemo) look() error {
	var bad error
	for _, n := range d.nodes {
		s, err := n.client.status()
		if err != nil {
			bad = errors.Join(bad, fmt.Errorf("%s: %w", n.name, err))
			continue
		}
		n.mu.Lock()
		if seconds := time.Since(n.at).Seconds(); !n.at.IsZero() && seconds > 0 {
			n.rates = [2]float64{float64(s.FromClients-n.status.FromClients) / seconds, float64(s.FromBackends-n.status.FromBackends) / seconds}
		}
		n.status, n.at = *s, time.Now()
		n.mu.Unlock()
	}
	return bad
}

// seen is what the node said last.
func (n *hostsNode) seen() (node.Status, [2]float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.status, n.rates
}

// owner is the node that answers for the VIP; nil: none does.
func (d *hostsDemo) owner() *hostsNode {
	for _, n := range d.nodes {
		if s, _ := n.seen(); n.vip(&s).State == "owned" {
			return n
		}
	}
	return nil
}

func (n *hostsNode) vip(s *node.Status) node.VIPStatus {
	for _, v := range s.VIPs {
		if v.Name == hostsVIP {
			return v
		}
	}
	return node.VIPStatus{}
}

// evacuated tells whether the node is to be free.
func (n *hostsNode) evacuated() bool {
	s, _ := n.seen()
	for _, x := range s.Nodes {
		if x.Self {
			return x.Evacuating
		}
	}
	return false
}

// begins notes that something is under way; false: something else is.
func (d *hostsDemo) begins(what string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.moving != "" {
		return false
	}
	d.moving, d.step = what, node.Progress{}
	return true
}

// move has the VIP move to the other node.
func (d *hostsDemo) move(ctx context.Context) error {
	from := d.owner()
	if from == nil {
		return errors.New("demo: no node owns the VIP")
	}
	to := d.nodes[0]
	if to == from {
		to = d.nodes[1]
	}
	what := fmt.Sprintf("%s: %s -> %s", hostsVIP, from.name, to.name)
	if !d.begins(what) {
		return nil
	}
	return d.follow(ctx, what, from, from.client.migrate(node.MigrateRequest{VIP: hostsVIP, To: to.name}))
}

// evacuate frees the node that owns the VIP. Long flows go on to use its server, so it
// waits for them: said again, that ends, and the node returns.
func (d *hostsDemo) evacuate(ctx context.Context) error {
	d.mu.Lock()
	enough := d.enough
	d.mu.Unlock()
	if enough != nil {
		enough()
		return nil
	}
	d.mu.Lock()
	away := d.away
	d.away = nil
	d.mu.Unlock()
	if away != nil {
		what := away.name + " returns"
		if !d.begins(what) {
			return nil
		}
		return d.follow(ctx, what, away, away.client.comeBack(node.ReturnRequest{}))
	}
	n := d.owner()
	if n == nil {
		return errors.New("demo: no node owns the VIP")
	}
	what := n.name + " is evacuated"
	if !d.begins(what) {
		return nil
	}
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	d.mu.Lock()
	d.enough = stop
	d.mu.Unlock()
	err := d.follow(waiting, what, n, n.client.evacuate(node.EvacuateRequest{}))
	d.mu.Lock()
	d.enough = nil
	if err == nil {
		d.away = n
	}
	d.mu.Unlock()
	if what := n.name + " returns"; waiting.Err() != nil && ctx.Err() == nil && d.begins(what) {
		return d.follow(ctx, what, n, n.client.comeBack(node.ReturnRequest{}))
	}
	return err
}

// follow follows a move to its end.
func (d *hostsDemo) follow(ctx context.Context, what string, at *hostsNode, open func(context.Context) (*connect.ServerStreamForClient[api.Progress], error)) error {
	before := d.traffic.Look()
	show := moveShow{}
	p, err := at.client.followed(ctx, hostMove{what: what}, open, func(m *api.Progress) error {
		var p node.Progress
		if err := wire.From(m, &p); err != nil {
			return err
		}
		d.mu.Lock()
		d.step = p
		d.mu.Unlock()
		if d.terminal {
			return nil
		}
		return show.step(m)
	})
	if !d.terminal {
		show.newline()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.moving = ""
	if err != nil {
		d.last = what + ": " + err.Error()
		var said *exit
		if refused := errors.As(err, &said) && said.code == exitRefused; ctx.Err() == nil && !refused {
			d.trouble = errors.New(d.last)
		}
		return err
	}
	after := d.traffic.Look()
	d.last = what + ": done"
	if r := p.Move; r != nil {
		if r.Flows > 0 {
			d.moves++
		}
		d.moved += r.Flows
		if r.Flows == 0 {
			return nil
		}
		d.last = fmt.Sprintf("%s: %s moved, %d lost; not served for p50 %s, p99 %s, max %s; longest round trip of a client meanwhile %s, lost %d",
			what, count(r.Flows, "flow"), r.Lost, short(microsOf(r.Pause.P50)), short(microsOf(r.Pause.P99)), short(microsOf(r.Pause.Max)), short(after.Max), after.Lost-before.Lost)
		if r.Lost > 0 {
			d.trouble = errors.New(d.last)
		}
	}
	return nil
}

// byItself moves there and back and ends.
func (d *hostsDemo) byItself() error {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	fmt.Printf("hosts client, %s and %s on a bridge; the VIP %s (%s:%s) is at home on %s; every octet is checked at both ends\n",
		d.nodes[0].name, d.nodes[1].name, hostsVIP, hostsAddr, hostsPort, d.nodes[0].name)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	step := hostsStep
	if d.duration > 0 {
		step = min(step, d.duration/4)
	}
	next, done := time.After(step), make(chan error, 1)
	before := d.traffic.Look()
	for moves := 0; ; {
		select {
		case <-signals:
			return nil
		case <-tick.C:
			if err := d.look(); err != nil {
				return err
			}
			f := d.traffic.Look()
			fmt.Println(d.line(&before, &f))
			before = f
		case <-next:
			if moves == 2 {
				return nil
			}
			moves++
			next = nil
			go func() { done <- d.move(ctx) }() // ends with the move
		case err := <-done:
			if err != nil {
				return err
			}
			fmt.Println("  " + d.last)
			next = time.After(step)
		}
	}
}

// line is a second of the demo in words.
func (d *hostsDemo) line(before, f *demo.Figures) string {
	var all []string
	for _, n := range d.nodes {
		s, _ := n.seen()
		where := ""
		if n.vip(&s).State == "owned" {
			where = " [" + hostsVIP + "]"
		}
		all = append(all, fmt.Sprintf("%s%s %s", n.name, where, count(s.Flows, "flow")))
	}
	return fmt.Sprintf("%s   %d round trips/s  p99 %s  max %s   %s/s   lost %d  wrong octets %d",
		strings.Join(all, "   "), f.RoundTrips-before.RoundTrips, short(f.P99), short(f.Max), size(float64(f.Octets-before.Octets)), f.Lost, f.Wrong)
}

// hostsSummary is what `demo --hosts --json` ends with.
type hostsSummary struct {
	OK         bool     `json:"ok"`
	Seconds    float64  `json:"seconds"`
	Flows      int      `json:"flows"`
	Opened     uint64   `json:"connections"`
	Octets     uint64   `json:"octets"`
	RoundTrips uint64   `json:"round_trips"`
	P99        float64  `json:"p99_ms"`
	Max        float64  `json:"max_ms"`
	Moves      int      `json:"moves"`
	MovedFlows int      `json:"moved_flows"`
	Lost       int      `json:"lost"`
	Wrong      int      `json:"wrong_octets"`
	Faults     []string `json:"faults"`
}

// conclude ends the traffic and judges.
func (d *hostsDemo) conclude(asJSON bool, trouble error) error {
	seconds := time.Since(d.began).Seconds()
	f := d.traffic.Stop(endTime)
	d.mu.Lock()
	defer d.mu.Unlock()
	if trouble == nil {
		trouble = d.trouble
	}
	s := hostsSummary{
		Seconds: seconds, Flows: d.flows, Opened: f.Opened, Octets: f.Octets, RoundTrips: f.RoundTrips, P99: millis(f.P99), Max: millis(f.Max),
		Moves: d.moves, MovedFlows: d.moved, Lost: f.Lost, Wrong: f.Wrong, Faults: append([]string{}, f.Faults...),
	}
	if trouble != nil {
		s.Faults = append(s.Faults, trouble.Error())
	}
	s.OK = f.Lost == 0 && f.Wrong == 0 && trouble == nil
	for _, fault := range s.Faults {
		fmt.Println("fault: " + fault)
	}
	if !s.OK {
		fmt.Println(d.tails())
	}
	fmt.Printf("done: %.0f s, %d round trips on %d long flows and %d short ones, %.1f MiB checked, p99 %.1f ms, max %.1f ms, %d moves of %s between hosts, lost %d, wrong octets %d\n",
		s.Seconds, s.RoundTrips, s.Flows, max(0, int(s.Opened)-s.Flows), float64(s.Octets)/(1<<20), s.P99, s.Max, s.Moves, count(s.MovedFlows, "flow"), s.Lost, s.Wrong)
	if asJSON {
		b, err := json.Marshal(&s)
		if err != nil { // numbers and texts
			panic(err)
		}
		fmt.Println(string(b))
	}
	if !s.OK {
		return &exit{code: exitFailed}
	}
	return nil
}

// tails are the ends of what the nodes wrote.
func (d *hostsDemo) tails() string {
	const most = 2 << 10
	var s strings.Builder
	for _, n := range d.nodes {
		if n.process == nil {
			continue
		}
		text, _ := os.ReadFile(n.process.Log)
		fmt.Fprintf(&s, "-- %s\n%s\n", n.name, text[max(0, len(text)-most):])
	}
	return s.String()
}

// end takes all down.
func (d *hostsDemo) end() {
	if d.traffic != nil {
		d.traffic.Stop(0)
	}
	if d.net != nil {
		d.net.Close()
	}
	if d.dir != "" {
		_ = os.RemoveAll(d.dir)
	}
}
