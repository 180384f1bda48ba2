package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// rollingHosts is the lab rolling-hosts: four nodes, each the home of a VIP, are
// evacuated one after another by one command, are started anew when they are free, and
// return; flows of all kinds stand all the time, and new connections come.
func rollingHosts(ctx context.Context, o Options, out io.Writer, v *Verdict) error {
	x := migrateScene{name: "4 nodes", flows: 1000, rate: 500, rolling: true, nodes: []string{"n1", "n2", "n3", "n4"},
		vips: []clusterVIP{
			{"shop", vip4, "n1"}, {"shop6", vip6, "n2"},
			{"mail", netip.MustParseAddr("10.9.0.101"), "n3"}, {"mail6", netip.MustParseAddr("fd09::101"), "n4"},
		}}
	if o.Short {
		x.flows, x.rate = 200, 200
	}
	if o.Flows > 0 {
		x.flows = o.Flows
	}
	r := &migrateRun{migrateScene: x, scene: &scene{Options: o, ctx: ctx, out: out, v: v, doors: map[string]*Door{}}}
	defer r.close()
	return r.all()
}

// rollingServices have their servers on a host that is no node, for those on a node
// end with it; new connections go to the servers beside the balancers.
func (r *migrateRun) rollingServices() []clusterService {
	on := []string{apart}
	all := []clusterService{
		{name: "dial", vip: "shop", port: 446, door: 9003, on: on, shut: true},
		{name: "queue", vip: "mail", port: 447, door: 9004, on: on, slots: max(2, r.mix[QueueHolder])},
		{name: "web", vip: "shop", port: 80, door: 9080, on: on, http: true},
		{name: "web6", vip: "mail6", port: 80, door: 9080, on: on, http: true},
		{name: "webgone", vip: "shop6", port: 81, door: 9081, on: on, http: true, gone: true},
		{name: "webdial", vip: "mail", port: 82, door: 9082, on: on, http: true, shut: true},
		{name: "webqueue", vip: "shop", port: 83, door: 9083, on: on, http: true, slots: httpSlots(r.web_)},
	}
	for i, v := range r.vips {
		all = append(all,
			clusterService{name: "main-" + v.name, vip: v.name, port: 443, door: uint16(9100 + i), on: on},
			clusterService{name: "gone-" + v.name, vip: v.name, port: 445, door: uint16(9200 + i), on: on, gone: true},
			clusterService{name: "new-" + v.name, vip: v.name, port: newPort, door: uint16(9300 + i), on: r.nodes})
	}
	return all
}

var rollingOver = []string{"main-shop", "main-shop6", "main-mail", "main-mail6", "main-shop", "main-shop6", "main-mail", "main-mail6",
	"gone-shop", "gone-shop6", "gone-mail", "gone-mail6"}

// turn is what was seen of one node's evacuation.
type turn struct {
	node     string
	free     time.Time // its hook began
	returned time.Time // the next one's hook began, or all was over
}

// roll runs the command and plays the operator's hook: a node that is free is killed
// and started anew.
func (r *migrateRun) roll() error {
	defer r.countMoves()()
	asks, done := filepath.Join(r.dir, "hook.asks"), filepath.Join(r.dir, "hook.done")
	hook := fmt.Sprintf("echo {host} > %[1]s.new; mv %[1]s.new %[1]s; while test ! -e %[2]s; do sleep 0.02; done; rm %[2]s", asks, done)
	// It gets VIPs itself before its turn comes, and a node that returns asks it for them.
	asked := r.nodes[1]
	n := r.b.nodes[asked]
	r.phase("evacuate --rolling at %s", asked)
	r.traffic.During(HostMove)
	r.startGaps(nil)
	began := time.Now()
	result := make(chan error, 1)
	var out []byte
	go func() {
		var err error
		out, err = n.host.Output(r.ctx, r.b.binary, "evacuate", "--rolling", "--hook", hook, "--socket", n.socket, "--json")
		result <- err
	}()
	for {
		select {
		case err := <-result:
			r.traffic.During(Opening)
			r.takeGaps(nil, &r.gaps[1])
			if n := len(r.turns); n > 0 {
				r.turns[n-1].returned = time.Now()
			}
			if err != nil {
				return fmt.Errorf("evacuate --rolling: %w: %s", err, bytes.TrimSpace(out[max(0, len(out)-600):]))
			}
			r.phase("all nodes have been free once, in %v", time.Since(began).Round(time.Millisecond))
			return r.readRolling(out)
		case <-time.After(5 * time.Millisecond):
		}
		b, err := os.ReadFile(asks)
		if err != nil {
			continue
		}
		_ = os.Remove(asks)
		if err := r.reboot(strings.TrimSpace(string(b))); err != nil {
			return err
		}
		if err := os.WriteFile(done, nil, 0o600); err != nil {
			return err
		}
	}
}

// reboot looks whether a node is free, and starts it anew.
func (r *migrateRun) reboot(name string) error {
	now := time.Now()
	if n := len(r.turns); n > 0 {
		r.turns[n-1].returned = now
	}
	r.turns = append(r.turns, turn{node: name, free: now})
	if n := r.socketsOf(name); n != 0 {
		r.doubtf("%s is said to be free and has %d sockets of flows", name, n)
	}
	if s, err := r.b.statusOf(r.ctx, name); err != nil || !s.Free {
		r.doubtf("%s is said to be free, and its status does not say so: %v", name, err)
	}
	was := r.newOn(name)
	n := r.b.nodes[name]
	r.phase("   %s is free; it is killed and started anew", name)
	for _, p := range []*Process{n.data, n.admin} {
		if p != nil {
			p.Kill()
		}
	}
	ctx, cancel := context.WithTimeout(r.ctx, readyPatience)
	defer cancel()
	if err := r.b.startNode(ctx, n, filepath.Join(r.dir, "part.yaml")); err != nil {
		return err
	}
	if err := n.data.WaitLine(ctx, "ready:"); err != nil {
		return err
	}
	if d := r.newOn(name) - was; d != 0 {
		r.doubtf("%d new connections reached the server on %s while it was evacuated", d, name)
	}
	return nil
}

// newOn is how many new connections the servers of a node have had.
func (r *migrateRun) newOn(node string) (n int64) {
	for _, x := range r.b.services {
		if x.port == newPort {
			n += r.b.doors[x.name][node].Accepted.Load()
		}
	}
	return n
}

// readRolling takes the reports of the single moves out of what the command wrote.
func (r *migrateRun) readRolling(out []byte) error {
	d := json.NewDecoder(bytes.NewReader(out))
	for d.More() {
		var step struct {
			VIP  string      `json:"vip"`
			Move *hostReport `json:"move"`
		}
		if err := d.Decode(&step); err != nil {
			return fmt.Errorf("lab: %w in %q", err, out)
		}
		if step.Move != nil {
			r.moves = append(r.moves, &hostMove{report: step.Move})
		}
	}
	if len(r.turns) != len(r.nodes) {
		r.doubtf("%d of %d nodes were free", len(r.turns), len(r.nodes))
	}
	return nil
}

// rollingTenures are who should answer for a VIP: its home, from some time before that
// was free somebody else, and from some time after it its home again. Who the other one is, is
// the product's choice.
func (r *migrateRun) rollingTenures(v clusterVIP) (macs [][6]byte, windows [][2]time.Time) {
	home := [6]byte(r.b.hostOf(v.home).MAC)
	macs = [][6]byte{home}
	for _, t := range r.turns {
		if t.node != v.home {
			continue
		}
		all := tenures(r.wire.Claims(v.addr))
		if len(all) > 1 {
			macs = append(macs, all[1].mac, home)
		}
		before := r.traffic.start
		for _, other := range r.turns {
			if other.free.Before(t.free) {
				before = other.free
			}
		}
		windows = append(windows, [2]time.Time{before, t.free}, [2]time.Time{t.free, t.returned})
	}
	return macs, windows
}
