package lab

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// migrating is the lab migrate: the VIPs go from n1 to n3 and back, again and again,
// with all flows, under new connections all the time. Every node has servers beside
// it, so that most flows have their backend on the host that is evacuated.
func migrating(ctx context.Context, o Options, out io.Writer, v *Verdict) error {
	l := &migrateLab{Options: o}
	for i, x := range migrateScenes(o) {
		// What nodes keep is of one scene.
		o := o
		o.dir = filepath.Join(o.dir, fmt.Sprint(i))
		if err := os.Mkdir(o.dir, 0o700); err != nil {
			return err
		}
		r := &migrateRun{migrateScene: aPair(x), scene: &scene{Options: o, ctx: ctx, out: out, v: v, doors: map[string]*Door{}}}
		l.runs = append(l.runs, r)
		r.phase("== %s", x)
		err := r.all()
		r.close()
		if err != nil {
			v.Broken(fmt.Errorf("%s: %w", x, err))
			break
		}
	}
	l.figures(v)
	return l.write()
}

// migrateLab is all scenes of a run.
type migrateLab struct {
	Options
	runs []*migrateRun
}

// migrateScene is one part of the lab.
type migrateScene struct {
	name  string
	flows int
	trips int // there and back
	rate  int // new connections a second
	// loss: one frame in a hundred that a host sends does not arrive.
	loss bool
	// idle: flows that say nothing, so that all that processors do is the move.
	idle bool

	nodes []string
	vips  []clusterVIP
	// tunnel: the nodes are in different networks.
	tunnel bool
	// saturated: as much as the processors can carry, all the time.
	saturated bool
	// rolling: all nodes are evacuated one after another, and started anew.
	rolling bool
}

// aPair of nodes, of which the first one has both VIPs at first.
func aPair(x migrateScene) migrateScene {
	x.nodes = []string{"n1", "n3"}
	x.vips = []clusterVIP{{"shop", vip4, "n1"}, {"shop6", vip6, "n1"}}
	return x
}

func (x migrateScene) String() string { return x.name }

// migrateScenes are those of a run.
func migrateScenes(o Options) []migrateScene {
	if o.Short {
		n, trips := 300, 2
		if o.Flows > 0 {
			n = o.Flows
		}
		if o.Moves > 0 {
			trips = o.Moves
		}
		return []migrateScene{{name: fmt.Sprintf("%d flows", n), flows: n, trips: trips, rate: 300}}
	}
	trips := 10
	if o.Moves > 0 {
		trips = o.Moves
	}
	all := []migrateScene{
		{name: "2000 flows", flows: 2000, trips: trips, rate: 2000},
		{name: "9000 flows", flows: 9000, trips: trips, rate: 2000},
		{name: "2000 flows, 1 % loss", flows: 2000, trips: trips, rate: 2000, loss: true},
		{name: "2000 silent flows", flows: 2000, trips: trips, idle: true},
	}
	if o.Flows > 0 {
		all = slices.DeleteFunc(all, func(x migrateScene) bool { return x.flows != o.Flows })
		if len(all) == 0 {
			all = []migrateScene{{name: fmt.Sprintf("%d flows", o.Flows), flows: o.Flows, trips: trips, rate: 2000}}
		}
	}
	return all
}

// migrateServices are what the flows of a scene need.
func (r *migrateRun) services() []clusterService {
	if r.rolling {
		return r.rollingServices()
	}
	both, first, last := r.nodes, r.nodes[:1], r.nodes[1:]
	return []clusterService{
		{name: "main", vip: "shop", port: 443, door: 9000, on: both},
		{name: "main6", vip: "shop6", port: 443, door: 9000, on: both},
		{name: "far", vip: "shop", port: 444, door: 9001, on: last},
		{name: "far6", vip: "shop6", port: 444, door: 9001, on: last},
		{name: "gone", vip: "shop", port: 445, door: 9002, on: both, gone: true},
		{name: "gone6", vip: "shop6", port: 445, door: 9002, on: both, gone: true},
		{name: "dial", vip: "shop", port: 446, door: 9003, on: first, shut: true},
		{name: "queue", vip: "shop", port: 447, door: 9004, on: first, slots: max(2, r.mix[QueueHolder])},
		{name: "new", vip: "shop", port: 448, door: 9005, on: both},
		{name: "new6", vip: "shop6", port: 448, door: 9005, on: both},
		{name: "web", vip: "shop", port: 80, door: 9080, on: both, http: true},
		{name: "web6", vip: "shop6", port: 80, door: 9080, on: both, http: true},
		{name: "webgone", vip: "shop6", port: 81, door: 9081, on: both, http: true, gone: true},
		{name: "webdial", vip: "shop", port: 82, door: 9082, on: first, http: true, shut: true},
		{name: "webqueue", vip: "shop", port: 83, door: 9083, on: first, http: true, slots: httpSlots(r.web_)},
	}
}

// migrateRun is one scene of the lab.
type migrateRun struct {
	*scene
	migrateScene
	b      *cluster
	wire   *Wire
	asker  *Asker
	routes *routes // of nodes in different networks; else nil

	churners *engine            // of the new connections
	engines  map[string]*engine // of the servers, by host
	mix      [kinds]int
	web_     [httpKinds]int
	flows    []*Flow
	steady   []*Flow
	holders  []*Flow
	queued   []*Flow
	http     []*HTTPFlow
	stop     func(time.Duration) error // the new connections

	local    float64 // share of the flows whose server is on the host that is evacuated first
	moves    []*hostMove
	gaps     [2]Histogram                // of steady flows without moves and with them, the interval taken off
	serving  map[string]float64          // processors that a node takes without moves
	busy     []float64                   // share of all processors that was at work without moves
	machine  float64                     // the same of all that runs here
	talk     float64                     // octets a second between nodes without moves
	retrans  map[string]int64            // segments sent again during the moves, by host
	while    map[string]map[string]int64 // why
	quiet    map[string]map[string]int64 // the same without moves
	moving   time.Duration               // how long these were counted
	still    time.Duration
	asked    int64
	turns    []turn // of a rolling evacuation
	struck   bool
	doubts   []string        // what the product said and the kernels did not
	silences []time.Duration // between the last claim of one host and the first of the other
}

// hostMove is one VIP's move from one host to another.
type hostMove struct {
	vip      clusterVIP
	from, to string
	began    time.Time
	ended    time.Time
	report   *hostReport
	cpu      map[string]time.Duration // of the processes of each node, serving included
	machine  time.Duration            // of all processors
	talk     int64                    // octets between the nodes
}

func (m *hostMove) took() time.Duration { return m.ended.Sub(m.began) }

// mixes says how many flows of each kind there are: two thousand of all kinds, and
// what is more says a few octets now and then.
func (r *migrateRun) mixes() {
	if r.idle {
		r.mix[Silent] = r.migrateScene.flows
		return
	}
	base := min(r.migrateScene.flows, 2000)
	if r.saturated {
		r.mix[Flood], r.mix[FloodUp] = base/10, base/10
		base = base * 8 / 10
	}
	r.mix = mixOf(base * 7 / 10)
	r.web_ = httpMixOf(base * 2 / 10)
	r.mix[Steady] = base / 20
	all := 0
	for _, n := range r.mix {
		all += n
	}
	for _, n := range r.web_ {
		all += n
	}
	rest := max(r.migrateScene.flows-all, 0)
	r.mix[Idle] += rest / 2
	r.mix[Silent] += rest - rest/2
}

// all is the scene from its world to its verdict.
func (r *migrateRun) all() error {
	r.mixes()
	if err := r.stage(); err != nil {
		return err
	}
	err := r.openAll()
	if err == nil {
		r.control(true)
		if r.rolling {
			err = r.roll()
		} else {
			err = r.travel()
		}
	}
	if err == nil {
		r.control(false)
	}
	if err != nil {
		if r.struck {
			r.v.Must(false, r.what("moves after the sabotage"), err.Error(), "no error")
		} else {
			r.v.Broken(fmt.Errorf("%s: %w", r.migrateScene, err))
		}
	}
	r.finish(err != nil)
	r.judge()
	r.sayLogs()
	return nil
}

// bufferMost bounds what the kernels of the nodes queue for one socket, as the goal
// for pauses says: octets.
const bufferMost = 512 << 10

// stage builds all up to nodes that serve.
func (r *migrateRun) stage() error {
	r.phase("world: hosts on a bridge, %v with servers beside their balancers", r.nodes)
	var err error
	if r.world, err = NewWorld(r.dir, r.specs()); err != nil {
		return err
	}
	client := r.world.Host("client")
	var nodes []*Host
	for _, n := range r.nodes {
		nodes = append(nodes, r.world.Host(n))
	}
	for _, h := range append([]*Host{client}, nodes...) {
		sysctls := [][2]string{
			// Else new connections of a minute at this rate run out of ports.
			{"net/ipv4/tcp_tw_reuse", "1"},
			{"net/core/somaxconn", "16384"},
		}
		if h != client {
			sysctls = append(sysctls, [2]string{"net/ipv4/tcp_rmem", fmt.Sprintf("4096 131072 %d", bufferMost)},
				[2]string{"net/ipv4/tcp_wmem", fmt.Sprintf("4096 65536 %d", bufferMost)})
		}
		for _, set := range sysctls {
			if err := h.Sysctl(set[0], set[1]); err != nil {
				return err
			}
		}
	}
	r.traffic = NewTraffic(r.Seed, r.Short)
	r.web = NewHTTPTraffic(r.traffic, client)
	r.web.nextID += 1 << 22 // short flows are many
	if r.scene.clients, err = r.traffic.NewEngine(client); err != nil {
		return err
	}
	if r.churners, err = r.traffic.NewEngine(client); err != nil {
		return err
	}
	r.churners.connects = 1000
	r.engines = map[string]*engine{}
	r.b = &cluster{binary: r.Binary, dir: r.dir, hosts: nodes, vips: r.vips, services: r.services(), doors: map[string]map[string]*Door{},
		settings: map[string]string{"settle": "1s"}, routed: r.tunnel}
	for _, h := range append([]*Host{r.world.Host(apart)}, nodes...) {
		if r.engines[h.Name], err = r.traffic.NewEngine(h); err != nil {
			return err
		}
	}
	for _, x := range r.b.services {
		r.b.doors[x.name] = map[string]*Door{}
		for _, on := range x.on {
			at := r.world.Host(on).V4
			if r.b.at(x).Addr().Is6() {
				at = r.world.Host(on).V6
			}
			d, err := r.engines[on].Listen(netip.AddrPortFrom(at, x.door), x.shut)
			if err != nil {
				return err
			}
			if x.http {
				r.web.Serve(d)
			}
			r.b.doors[x.name][on] = d
		}
		r.scene.services = append(r.scene.services, Service{Name: x.name, VIP: r.b.at(x)})
	}
	if r.wire, err = NewWire(r.world, nodes...); err != nil {
		return err
	}
	var addrs []netip.Addr
	for _, v := range r.vips {
		addrs = append(addrs, v.addr)
	}
	r.wire.About(addrs...)
	if err := r.countTalk(); err != nil {
		return err
	}
	if r.tunnel {
		r.b.settings["tunnel"] = "{ vxlan: { id: 77, port: 4790 } }"
		r.routes = startRoutes(r.world, nodes, "hf-vips", addrs)
	} else if r.asker, err = Ask(r.world.Host("judge"), askEvery, addrs...); err != nil {
		return err
	}
	r.phase("balancer: holdfast on %v, from one file", r.nodes)
	if err := r.b.Start(r.ctx); err != nil {
		return err
	}
	r.balancer = r.b
	r.counters = r.count()
	return r.b.awaitHome(r.ctx, readyPatience)
}

// specs are the hosts.
func (r *migrateRun) specs() []HostSpec {
	if r.tunnel {
		return tunnelHosts()
	}
	return clusterHosts(r.nodes)
}

// askEvery is the time between two questions who has an address.
const askEvery = 5 * time.Millisecond

// closing ends what the scene itself does not know of.
func (r *migrateRun) close() {
	if r.asker != nil {
		r.asker.Close()
	}
	if r.routes != nil {
		r.routes.close()
	}
	if r.wire != nil {
		r.wire.Close()
	}
	r.scene.close()
}

// over are the services over which flows of most kinds are spread: with servers on
// both hosts, on the other one only, and on objects that will be gone.
func (r *migrateRun) over() []string {
	if r.rolling {
		return rollingOver
	}
	return []string{"main", "main6", "main", "main6", "main", "main6", "gone", "gone6", "far", "far6"}
}

// webServices are those of HTTP. Where the configuration has an object no more, its next
// request is refused; what makes none lives on: tunnels.
func webServices(k HTTPKind) []string {
	switch k {
	case HTTPDialing:
		return []string{"webdial"}
	case HTTPQueued:
		return []string{"webqueue"}
	case HTTPWebSocket, HTTPConnect, HTTPConnectHalf:
		return []string{"webgone", "web", "web6"}
	}
	return []string{"web", "web6"}
}

// openAll opens all flows and takes the objects of some away.
func (r *migrateRun) openAll() error {
	r.phase("opening %d flows", r.migrateScene.flows)
	i := 0
	for k := range Kind(kinds) {
		n := r.mix[k]
		switch k {
		case Queued, QueueHolder, Short:
		case Dialing:
			r.flows = append(r.flows, r.open(k, n, "dial")...)
		default:
			for range n {
				f := r.open(k, 1, r.over()[i%len(r.over())])
				i++
				r.flows = append(r.flows, f...)
				if k == Steady {
					r.steady = append(r.steady, f...)
				}
			}
		}
	}
	r.holders = r.open(QueueHolder, r.mix[QueueHolder], "queue")
	r.flows = append(r.flows, r.holders...)
	served := func(f *Flow) bool { return f.Served.Load() != 0 || f.Kind == Dialing && f.Opened.Load() != 0 }
	if err := r.traffic.AwaitEach(r.openPatience(), "flows to be served", r.flows, served); err != nil {
		return err
	}
	for range r.mix[Queued] {
		f := r.open(Queued, 1, "queue")
		if err := r.traffic.AwaitEach(5*time.Second, "a queued flow to open", f, func(f *Flow) bool { return f.Opened.Load() != 0 }); err != nil {
			return err
		}
		time.Sleep(arrivalGap)
		r.queued = append(r.queued, f...)
	}
	r.flows = append(r.flows, r.queued...)
	i = 0
	for k := range HTTPKind(httpKinds) {
		for range r.web_[k] {
			all := webServices(k)
			f := r.web.NewFlow(k, r.to(all[i%len(all)]))
			i++
			r.http = append(r.http, f)
			r.web.Open(f)
		}
	}
	there := func(f *HTTPFlow) bool {
		return f.Served.Load() != 0 || f.Kind == HTTPDialing && f.Opened.Load() != 0
	}
	if err := r.web.AwaitEach(r.openPatience(), "HTTP flows to be served", r.http, there); err != nil {
		return err
	}
	// Tunnels stand: their next request would be refused.
	err := r.web.AwaitEach(r.openPatience(), "tunnels to stand", r.http, func(f *HTTPFlow) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.due > 1 || f.Kind != HTTPWebSocket && f.Kind != HTTPConnect && f.Kind != HTTPConnectHalf
	})
	if err != nil {
		return err
	}
	part, err := r.b.file(false)
	if err != nil {
		return err
	}
	r.phase("the objects of some flows are taken out of the configuration")
	if err := r.b.apply(r.ctx, part); err != nil {
		return err
	}
	r.local = r.localShare(r.nodes[0])
	if r.rate > 0 {
		r.phase("%d new connections a second", r.rate)
		var to []netip.AddrPort
		for _, x := range r.b.services {
			if x.port == newPort {
				to = append(to, r.b.at(x))
			}
		}
		r.stop = r.churnAt(r.rate, to...)
	}
	return nil
}

// openPatience is how long flows may take until they are served.
func (r *migrateRun) openPatience() time.Duration {
	if r.Short {
		return 8 * time.Second
	}
	return 60 * time.Second
}

// localShare is the share of connections to servers that end on a host.
func (r *migrateRun) localShare(host string) float64 {
	here, all := int64(0), int64(0)
	for _, doors := range r.b.doors {
		for on, d := range doors {
			n := d.Active.Load()
			if all += n; on == host {
				here += n
			}
		}
	}
	return float64(here) / float64(max(all, 1))
}

// churnAt opens short connections at a rate, however late its clock is, until the
// returned function is called.
func (r *migrateRun) churnAt(rate int, to ...netip.AddrPort) (stop func(time.Duration) error) {
	quit, done := make(chan struct{}), make(chan struct{})
	t := r.traffic
	go func() {
		defer close(done)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		began, opened := time.Now(), 0
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			due := int(time.Since(began).Seconds() * float64(rate))
			var flows []*Flow
			for ; opened < due; opened++ {
				flows = append(flows, t.NewFlow(Short, to[opened%len(to)]))
			}
			t.mu.Lock()
			t.shorts.Opened += len(flows)
			t.mu.Unlock()
			r.churners.Open(flows...)
		}
	}()
	return func(patience time.Duration) error {
		close(quit)
		<-done
		return t.Await(patience, "short connections to end", func() (int, int) {
			s, by := t.Shorts(), 0
			t.mu.Lock()
			for _, f := range t.flows {
				if f.Kind == Short && len(f.Faults()) > 0 {
					by++
				}
			}
			t.mu.Unlock()
			return s.Done + by, s.Opened
		})
	}
}
