package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"
)

// OldStays is the sabotage of the lab upgrade alone: beside the process that
// serves another one is left over, as peers leave theirs.
const OldStays = "old-stays"

// upgradeWay is how one upgrade is made.
type upgradeWay int

const (
	byVerb    upgradeWay = iota
	byFile               // with another file: another number of loops
	afterLoad            // the configuration is replaced just before
	bySignal             // SIGUSR2
	upgradeWays
)

var upgradeWayNames = [upgradeWays]string{"verb", "another file and number of loops", "verb, just after a reload", "SIGUSR2"}

func (w upgradeWay) String() string { return upgradeWayNames[w] }

// wayOf says how the i-th upgrade is made, if the product knows that way.
func wayOf(i int) upgradeWay {
	switch i % 10 {
	case 1, 6:
		return byFile
	case 2, 7:
		return afterLoad
	case 3, 8:
		return bySignal
	}
	return byVerb
}

// upgradeSide is the product as the balancer of the first scene.
type upgradeSide struct {
	at       *Host
	services []Service
	node     *shopNode
	variant  int // of the configuration
	loops    int

	way   upgradeWay     // of the next upgrade
	last  *upgradeReport // of the last one
	made  [upgradeWays]int
	can   [upgradeWays]bool
	leave Histogram // from the answer until the old process is gone
}

// gone are the services that only the first configuration has.
func gone(s Service) bool { return strings.HasPrefix(s.Name, "was") }

// config is the configuration of a variant: the first one has all services,
// those that follow differ from each other in what most flows are ruled by.
func (b *upgradeSide) config(variant, loops int) string {
	var s strings.Builder
	fmt.Fprintf(&s, "node: { name: n1, loops: %d, admin: { socket: SOCKET } }\nlisteners:\n", loops)
	for _, v := range b.services {
		if gone(v) && variant > 0 {
			continue
		}
		idle := fmt.Sprintf("%dh", 1+variant)
		if v.Slots > 0 {
			idle = "1h" // who waits, waits under what there is
		}
		protocol := "tcp, idleTimeout: " + idle
		if v.HTTP {
			protocol = fmt.Sprintf("http, http: { timeouts: { header: 10m, body: 10m, keepalive: 1h, tunnel: %s } }", idle)
		}
		fmt.Fprintf(&s, "  %s: { vip: \"%v\", protocol: %s, backend: %s, onChange: keep }\n", v.Name, v.VIP, protocol, v.Name)
	}
	s.WriteString("backends:\n")
	for _, v := range b.services {
		if gone(v) && variant > 0 {
			continue
		}
		fmt.Fprintf(&s, "  %s:\n    connectTimeout: 30m\n", v.Name)
		if v.HTTP {
			s.WriteString("    answerTimeout: 30m\n")
		}
		fmt.Fprintf(&s, "    limits: { connectionsPerEndpoint: %d, queue: 1000, queueTime: 30m }\n", v.Slots)
		fmt.Fprintf(&s, "    endpoints: [ { name: s1, address: \"%v\" } ]\n", v.To)
	}
	return s.String()
}

// Start runs it.
func (b *upgradeSide) Start(ctx context.Context) (err error) {
	b.loops = 2
	if b.node, err = startTraced(ctx, b.node.binary, b.at, "n1", b.config(0, b.loops)); err != nil {
		return err
	}
	b.can = [upgradeWays]bool{byVerb: true, afterLoad: true, byFile: b.node.understands(ctx, "--config", "upgrade"),
		bySignal: b.node.understands(ctx, "SIGUSR2", "run")}
	return nil
}

// replace goes over to another variant of the configuration.
func (b *upgradeSide) replace(ctx context.Context) error {
	b.variant = 1 + b.variant%2
	text := b.node.filled(b.config(b.variant, b.loops))
	return b.node.change(ctx, map[string]any{"source": text, "runtime_edits": "discard"}, &changeReport{})
}

// Move makes an upgrade the way that is due.
func (b *upgradeSide) Move(ctx context.Context, d Label) (*MoveReport, error) {
	if d != ProcessMove {
		return nil, fmt.Errorf("lab: %v is no upgrade", d)
	}
	was := b.node.pid
	way := b.way
	if !b.can[way] {
		way = byVerb
	}
	var err error
	switch way {
	case bySignal:
		b.last, err = b.node.upgradeBySignal(ctx)
	case byFile:
		b.loops = 1 + b.loops%3
		var file string
		if file, err = b.node.write(b.config(b.variant, b.loops)); err == nil {
			b.last, err = b.node.upgrade(ctx, "--config", file)
		}
		if err == nil {
			var n int
			if n, err = b.node.loops(ctx); err == nil && n != b.loops {
				err = fmt.Errorf("lab: the file asks for %d loops, and the new process has %d", b.loops, n)
			}
		}
	case afterLoad:
		if err = b.replace(ctx); err == nil {
			b.last, err = b.node.upgrade(ctx)
		}
	default:
		b.last, err = b.node.upgrade(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("%v: %w", way, err)
	}
	b.made[way]++
	answered := time.Now()
	if eventually(leavePatience, func() bool { return !Alive(was) }) {
		b.leave.Add(time.Since(answered))
	}
	return &b.last.MoveReport, nil
}

// Serving says which process it is.
func (b *upgradeSide) Serving() Place { return Place{Host: b.at, PID: b.node.pid} }

// Status asks it.
func (b *upgradeSide) Status(ctx context.Context) (*Status, error) { return b.node.status(ctx) }

// Flows lists its flows.
func (b *upgradeSide) Flows(ctx context.Context) ([]FlowStatus, error) {
	var all struct {
		Flows []FlowStatus `json:"flows"`
	}
	h := Holdfast{Binary: b.node.binary}
	err := h.verb(ctx, &holdfastNode{host: b.at, socket: b.node.socket}, &all, "flows", "--max", "0")
	return all.Flows, err
}

// Logs is the end of what its processes wrote.
func (b *upgradeSide) Logs() string { return b.node.process.Tail(60) }

// hundredRun is the first scene: the traffic of the lab four-distances, of which
// the larger part is opened before its services are gone.
type hundredRun struct {
	*longRun
	u    *upgradeLab
	side *upgradeSide
	echo *echoPair
	x    *upgradeScene
	old  int // processes that were left over
}

// hundredEchoPort is where the echo flows' server listens.
const hundredEchoPort = 9100

// setHundred builds all up to a balancer that is ready.
func (u *upgradeLab) setHundred() (*hundredRun, error) {
	s := &scene{Options: u.Options, ctx: u.ctx, out: u.out, v: u.v, doors: map[string]*Door{}}
	tcp, web := mixOf(u.small*7/10), httpMixOf(u.small*3/10)
	tcp[Queued] = max(tcp[Queued], u.small/10) // enough that their order says something
	web[HTTPWebSocket] = max(web[HTTPWebSocket], u.small/20)
	h := &hundredRun{longRun: &longRun{scene: s, mix: tcp, http: &httpRun{scene: s, mix: web}}, u: u, x: &upgradeScene{name: "hundred"}}
	var err error
	if s.world, err = NewWorld(u.dir, hosts); err != nil {
		return h, err
	}
	client, n1, server := s.world.Host("client"), s.world.Host("n1"), s.world.Host("server")
	s.traffic = NewTraffic(u.Seed, u.Short)
	s.web = NewHTTPTraffic(s.traffic, client)
	if s.servers, err = s.traffic.NewEngine(server); err != nil {
		return h, err
	}
	if s.clients, err = s.traffic.NewEngine(client); err != nil {
		return h, err
	}
	for _, x := range []struct {
		serviceSpec
		vipPort uint16
	}{
		{serviceSpec{name: "was", port: 9000}, 440}, {serviceSpec{name: "was6", port: 9003}, 440}, {serviceSpec{name: "wasweb", port: 9083, http: true}, 79},
		{serviceSpec{name: "main", port: 9004}, 443}, {serviceSpec{name: "main6", port: 9005}, 443},
		{serviceSpec{name: "dial", port: 9001, shut: true}, 444}, {serviceSpec{name: "queue", port: 9002, slots: tcp[QueueHolder]}, 445},
		{serviceSpec{name: "web", port: 9080, http: true}, 80}, {serviceSpec{name: "web6", port: 9080, http: true}, 80},
		{serviceSpec{name: "webdial", port: 9081, http: true, shut: true}, 81}, {serviceSpec{name: "webqueue", port: 9082, http: true, slots: httpSlots(web)}, 82},
	} {
		at, vip := server.V4, n1.V4
		if strings.HasSuffix(x.name, "6") {
			at, vip = server.V6, n1.V6
		}
		d, err := s.servers.Listen(netip.AddrPortFrom(at, x.port), x.shut)
		if err != nil {
			return h, err
		}
		if x.http {
			s.web.Serve(d)
		}
		s.doors[x.name] = d
		s.services = append(s.services, Service{Name: x.name, VIP: netip.AddrPortFrom(vip, x.vipPort), To: d.Addr, Slots: x.slots, HTTP: x.http})
	}
	echo := Service{Name: "echo", VIP: netip.AddrPortFrom(n1.V4, 446), To: netip.AddrPortFrom(server.V4, hundredEchoPort)}
	back, err := u.echoServer(server, echo.To)
	if err != nil {
		return h, err
	}
	h.side = &upgradeSide{at: n1, services: append(s.services, echo), node: &shopNode{binary: u.Binary}}
	s.balancer = h.side
	if err := h.side.Start(u.ctx); err != nil {
		return h, err
	}
	if h.echo, err = u.echoClient(client, "hundred", back, echo.VIP); err != nil {
		return h, err
	}
	s.mover = &mover{world: s.world, balancer: h.side, traffic: s.traffic, from: client, say: s.phase, emptyMayMove: true}
	for _, x := range s.services {
		if x.HTTP {
			s.mover.pooled = append(s.mover.pooled, x.To)
		}
	}
	s.counters = s.count()
	return h, nil
}

// lasting are the kinds of HTTP whose last request goes on for ever: it stays
// under the objects under which it began.
var lasting = map[HTTPKind]bool{HTTPWebSocket: true, HTTPConnect: true, HTTPConnectHalf: true}

// openOld opens flows on services that are taken away then.
func (h *hundredRun) openOld() error {
	for k := range Kind(kinds) {
		switch k {
		case Queued, QueueHolder, Short, Silent, Dialing:
			continue
		}
		n := h.mix[k] * 4 / 5
		h.flows = append(h.flows, h.open(k, n/2, "was6")...)
		h.flows = append(h.flows, h.open(k, n-n/2, "was")...)
		h.mix[k] -= n
	}
	tunnels := 0
	for k := range HTTPKind(httpKinds) {
		if lasting[k] {
			h.http.flows = append(h.http.flows, h.http.open(k, h.http.mix[k], "wasweb")...)
			tunnels += h.http.mix[k]
			h.http.mix[k] = 0
		}
	}
	h.phase("opening %d flows and %d tunnels of HTTP under what will be gone", len(h.flows), tunnels)
	if err := h.traffic.AwaitEach(15*time.Second, "flows to be served", h.flows, func(f *Flow) bool { return f.Served.Load() != 0 }); err != nil {
		return err
	}
	if !eventually(15*time.Second, func() bool {
		st, err := h.side.Status(h.ctx)
		if err != nil {
			return false
		}
		n := 0
		for state, k := range st.ByState {
			if strings.HasPrefix(state, "http-tunnel") {
				n += k
			}
		}
		return n >= tunnels
	}) {
		return errors.New("lab: the tunnels of HTTP do not come about")
	}
	return h.side.replace(h.ctx)
}

// openAll opens all flows, the larger part before the configuration changes.
func (h *hundredRun) openAll() error {
	if err := h.openOld(); err != nil {
		return err
	}
	h.Flows = 0
	for _, n := range h.mix {
		h.Flows += n
	}
	old, tunnels := h.flows, h.http.flows
	mix, web := h.mix, h.http.mix
	h.flows, h.http.flows = nil, nil
	if err := h.longRun.openAll(); err != nil {
		return err
	}
	h.mix, h.http.mix = mix, web
	h.flows, h.http.flows = append(old, h.flows...), append(tunnels, h.http.flows...)
	// What has been opened first stands, too; the echo flows and what renews
	// itself between two requests come on top.
	h.mover.standing += len(old) + len(tunnels)
	h.x.flows = h.mover.standing + echoFlows
	h.http.look(h.ctx, Opening)
	return nil
}

// hundredSpan is how long clients are looked at around an upgrade.
const hundredSpan = 600 * time.Millisecond

// moveAll makes the upgrades.
func (h *hundredRun) moveAll() error {
	h.phase("%d upgrades", h.u.upgrades)
	for i := range h.u.upgrades {
		if i == h.u.upgrades/2 {
			h.strike()
			if err := h.leaveOver(); err != nil {
				return err
			}
		}
		if i == h.u.upgrades-1-h.u.upgrades/5 {
			h.drainQueue() // its flows are served while the last upgrades go on
		}
		h.side.way = wayOf(i)
		if _, err := h.echo.look(); err != nil {
			return err
		}
		began := time.Now()
		if err := h.mover.Move(h.ctx, ProcessMove); err != nil {
			h.v.Must(false, "upgrades", err.Error(), "no error")
			return errNoDistance
		}
		if !eventually(leavePatience, func() bool { return len(h.side.node.oldProcesses()) == 0 }) {
			h.old += len(h.side.node.oldProcesses())
		}
		time.Sleep(time.Until(began.Add(hundredSpan)))
		h.x.note(h.side.last)
		e, err := h.echo.look()
		if err != nil {
			return err
		}
		if len(e.Faults) > 0 {
			h.v.Must(false, "echo flows", strings.Join(e.Faults, "; "), "no error")
			return errNoDistance
		}
		h.x.seen = append(h.x.seen, e.Worst...)
		h.x.words[1] = worse(h.x.words[1], e.Delay)
		if st := h.mover.status(h.ctx); st != nil && (i == 0 || st.OnOld < h.x.onOld) {
			h.x.onOld = st.OnOld
		}
		if h.ctx.Err() != nil {
			return h.ctx.Err()
		}
	}
	return nil
}

// leaveOver is the sabotage OldStays.
func (h *hundredRun) leaveOver() error {
	if h.Sabotage != OldStays {
		return nil
	}
	h.phase("sabotage: %s", OldStays)
	text := "node: { name: left, admin: { socket: SOCKET } }\n"
	_, err := startNode(h.ctx, h.side.node.binary, h.world.Host("n1"), "left", text)
	return err
}

// hundred is the first scene.
func (u *upgradeLab) hundred() error {
	u.phase("a world for %d flows and %d upgrades", u.small, u.upgrades)
	h, err := u.setHundred()
	defer h.end()
	if err != nil {
		return err
	}
	u.scenes = append(u.scenes, h.x)
	if err = h.openAll(); err == nil {
		if u.appetites[0], err = appetiteOf(h.side.node.pid); err != nil {
			return err
		}
		h.phase("%v without upgrades", u.control)
		h.traffic.During(Control)
		h.x.quiet, h.x.words[0], err = h.echo.windows(u.ctx, u.control, hundredSpan)
		h.traffic.During(Opening)
	}
	if err == nil {
		err = h.moveAll()
	}
	if err == nil {
		u.appetites[1], err = appetiteOf(h.side.node.pid)
	}
	if err != nil && !errors.Is(err, errNoDistance) {
		u.v.Broken(err)
	}
	h.finish(err != nil)
	h.sayStuck()
	u.collected = readCollections(h.side.node.process.Log)
	h.judge()
	return nil
}

// sayStuck tells where the octets of flows are that have not ended: what the
// product knows of them, and the queues of their sockets.
func (h *hundredRun) sayStuck() {
	by, _ := h.traffic.Lost()
	if by[Unfinished] == 0 {
		return
	}
	text, err := h.side.node.command(h.ctx, "flows", "--max", "50")
	h.v.Say("flows that have not ended (%v):\n%s", err, text)
	for _, name := range []string{"client", "n1", "server"} {
		_ = h.world.Host(name).Do(func() error {
			for _, file := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
				text, err := os.ReadFile(file)
				if err != nil {
					return err
				}
				for line := range strings.Lines(string(text)) {
					// sl local_address rem_address st tx_queue:rx_queue tr:when retransmits
					if f := strings.Fields(line); len(f) > 6 && f[3] != "06" && f[4] != "00000000:00000000" {
						h.v.Say("  socket of %-6s %s -> %s, state %s, queues tx:rx %s, timer %s, %s", name, f[1], f[2], f[3], f[4], f[5], f[6])
					}
				}
			}
			return nil
		})
	}
}

func (h *hundredRun) end() {
	if h.echo != nil {
		h.echo.end()
	}
	h.scene.close()
}

// Growth by a hundred upgrades: what pools and the collector hold at the moment
// differs by so much.
const (
	upgradeGrowthFDs = 24
	upgradeGrowthRSS = 16 << 20
)

func (h *hundredRun) judge() {
	made := []Label{ProcessMove}
	h.x.leave = h.side.leave
	h.judgeStatus()
	h.judgeTraffic(h.flows)
	h.http.judge(made)
	h.judgeQueue()
	h.judgeStalls(h.traffic.Stalled(), made)
	h.mover.Judge(h.v, made)
	h.x.judge(h.v)
	h.v.Must(h.x.n == h.u.upgrades, "upgrades made", fmt.Sprint(h.x.n), fmt.Sprint(h.u.upgrades))
	h.v.Zero("old processes left by upgrades", h.old)
	for w := range upgradeWays {
		h.v.Say("upgrades by %v: %d", w, h.side.made[w])
		if h.u.upgrades >= 4 {
			h.v.Must(h.side.made[w] > 0 || h.Sabotage != "", "upgrades by "+w.String(), fmt.Sprint(h.side.made[w]), "more than 0")
		}
	}
	was, is := h.u.appetites[0], h.u.appetites[1]
	c := h.u.collected
	h.v.Say("the first process had %v; the last one, after %d upgrades, %v", was, h.x.n, is)
	h.v.Say("collector over all processes: %d runs, everything stood %s, beside the loops %s", c.stops.N, quantiles(&c.stops), quantiles(&c.marks))
	if is.pid != 0 {
		h.v.Must(is.fds <= was.fds+upgradeGrowthFDs, "descriptors after all upgrades", fmt.Sprint(is.fds), fmt.Sprintf("at most %d more than %d", upgradeGrowthFDs, was.fds))
		h.v.Must(is.rssBytes <= was.rssBytes+upgradeGrowthRSS, "memory after all upgrades", fmt.Sprintf("%.1f MB", megabytes(is.rssBytes)), fmt.Sprintf("at most %.1f MB more than %.1f MB", megabytes(upgradeGrowthRSS), megabytes(was.rssBytes)))
	}
	h.v.Figure("rss_mb", []float64{megabytes(was.rssBytes), megabytes(is.rssBytes)})
	h.v.Figure("descriptors", []int{was.fds, is.fds})
	h.v.Figure("collector", map[string]any{"runs": c.stops.N, "stop_p99_ms": millis(c.stops.Quantile(0.99)), "stop_max_ms": millis(c.stops.Max), "mark_max_ms": millis(c.marks.Max)})
	h.sayLogs()
}
