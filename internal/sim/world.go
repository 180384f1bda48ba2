package sim

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/move"
)

// World is everything: the network, hosts, processes, clients and servers.
type World struct {
	seed     uint64
	net      *Net
	hosts    []*Host
	procs    []*Proc // all that ever were
	peers    []*Peer
	web      *web    // nil: nobody speaks HTTP here
	policy   *policy // nil: all endpoints are alike
	storm    *storm  // nil: the configuration changes now and then
	services []*service
	shape    shape
	loops    int
	fdsMax   int
	noise    bool
	calm     bool
	bulk     bool
	flood    bool
	chase    bool
	releases int
	refusals int
	march    march
	restarts int
	upgrades int // that were done
	aborts   int
	idles    int // legs that went along
	stalls   int
	lost     int // flows of which nobody knew who had served them

	cut        map[string]bool     // by host: what it says does not reach the other
	healed     flow.Instant        // when the link is whole again; 0: at the end of the story
	talked     int                 // conversations of hosts
	came       int                 // flows, to another host
	gaveUp     map[move.Tuple]bool // by a giver that could not know
	hostMoves  int
	hostAborts int

	queuedAt  map[inTurn]uint64 // the turn after which a flow was first seen with a place
	lines     []inLine
	unordered map[inTurn]bool // of those: not compared with others
	simmers   map[uint64]simmer
	inFlight  map[uint64]*Proc  // flows that are in no table: who owns them
	slotOf    map[uint64]string // the endpoint that such a flow holds a slot of
	letBy     map[uint64]string // the listener by which such a flow came
	let       map[string]int    // flows by listener, at the last look
	perEnd    map[string]int    // and by endpoint
	owners    map[uint64]string // and whose they are
	tally     loop.Counters     // of processes that are no more
	trace     []string
	turns     int
	stalled   int // the loop of this number stands still, in all processes
	stallEnd  int // until this turn
	failed    error
}

// shape is what a seed makes of the configuration.
type shape struct {
	endpoints  int
	perEnd     int // connections per endpoint, 0 = no limit
	queue      int
	listenMax  int
	onChange   string
	balance    string
	idle       string
	unix, loop bool // some endpoints are unix sockets, or on loopback
	broken     int  // endpoints that refuse or swallow
	revision   int
	gone       int // endpoints left out of later revisions

	canary time.Duration // for how long the first lot of an upgrade is observed
	plain  bool          // the giver is of a release without features
	elder  bool          // the taker is
	picky  int           // takers cannot hold one flow in so many; 0: they hold all
	fickle bool          // somebody may change his mind about upgrades
}

// service is the server side of one endpoint.
type service struct {
	name     string
	web      bool
	endpoint int // which one; of HTTP: how often it has got another address, and the turn since which it is no endpoint
	moves    int
	leftAt   int
	at       netip.AddrPort
	unix     string
	listener *Listener
	n        int
}

// Scenario says what may happen besides traffic.
type Scenario struct {
	Reloads, Rebalances, Upgrades, Migrations int
	Crash                                     bool // something happens at a call of an upgrade
	Clients                                   int
	Web                                       int  // clients that speak HTTP
	FailAt                                    int  // the call of this number fails
	FailUpgrade                               bool // count and fail only calls while an upgrade goes on
	March                                     march
	FaultOdds                                 int
	Calm                                      bool // no resets, no sleepers, no noise
	Limited                                   bool // endpoints take few connections at once
	Bulk                                      bool // more of the peers have much to say
	Flood                                     bool // and some very much
	Chase                                     bool // flows move when they have become streams
	Policy                                    bool // endpoints differ, sources and rates are bounded
	Stands                                    int  // changes of how endpoints stand
	Storm                                     bool // the configuration changes all the time
}

func (w *World) fail(format string, args ...any) {
	if w.failed == nil {
		w.failed = fmt.Errorf(format, args...)
	}
}

const traceMax = 60

// note adds to the trace of what has happened.
func (w *World) note(format string, args ...any) {
	if len(w.trace) == traceMax {
		w.trace = append(w.trace[:0], w.trace[traceMax/2:]...)
	}
	w.trace = append(w.trace, fmt.Sprintf("%9v %s", time.Duration(w.net.now-flow.Instant(time.Hour)).Round(time.Millisecond), fmt.Sprintf(format, args...)))
}

func (w *World) counted(c *loop.Counters) {
	for i, n := range c.Ended {
		w.tally.Ended[i] += n
	}
	w.tally.Lost += c.Lost
	w.tally.Panics += c.Panics
	w.tally.Accepted += c.Accepted
	w.tally.Adopted += c.Adopted
	w.tally.Parked += c.Parked
	w.tally.Relayed += c.Relayed
	w.tally.Retries += c.Retries
	w.tally.AcceptPause += c.AcceptPause
	for i, n := range c.Refused {
		w.tally.Refused[i] += n
	}
}

// NewWorld makes the world of a seed: one host, or two if flows migrate.
func NewWorld(seed uint64, sc Scenario) *World {
	w := &World{seed: seed, net: newNet(seed), inFlight: map[uint64]*Proc{}, slotOf: map[uint64]string{}, letBy: map[uint64]string{}, let: map[string]int{}, owners: map[uint64]string{}, perEnd: map[string]int{}, queuedAt: map[inTurn]uint64{}, unordered: map[inTurn]bool{}, simmers: map[uint64]simmer{}, gaveUp: map[move.Tuple]bool{}, fdsMax: 4000}
	w.net.listening = w.listening
	r := w.net.rng
	w.loops = 1 + r.IntN(3)
	w.bulk, w.flood, w.chase = sc.Bulk, sc.Flood, sc.Chase
	w.noise = !sc.Calm && r.IntN(2) == 0
	w.shape = shape{
		endpoints: 1 + r.IntN(3), onChange: []string{"keep", "adopt", "close"}[r.IntN(3)], balance: []string{"least", "round-robin"}[r.IntN(2)],
		idle: []string{"0s", "1h"}[r.IntN(2)], unix: r.IntN(4) == 0, loop: r.IntN(2) == 0,
	}
	if sc.Calm {
		w.shape.onChange = "adopt"
	}
	if sc.Limited || r.IntN(2) == 0 {
		w.shape.perEnd, w.shape.queue = 1+r.IntN(3), 50
		if !sc.Calm && r.IntN(4) == 0 {
			w.shape.queue = 1 + r.IntN(3)
		}
	}
	if !sc.Calm && r.IntN(4) == 0 {
		w.shape.broken = r.IntN(w.shape.endpoints)
	}
	if r.IntN(3) == 0 {
		w.shape.listenMax = 2 + r.IntN(4)
	}
	if sc.Storm {
		w.storm = &storm{w: w}
		w.shape.onChange, w.shape.listenMax = []string{"keep", "adopt"}[r.IntN(2)], 0
	}
	if sc.Policy {
		w.policy = newPolicy(w)
		w.shape.endpoints = max(2, w.shape.endpoints)
		w.shape.queue = max(w.shape.queue, 500)
	}
	for i := range w.shape.endpoints {
		w.serve(i)
	}
	if w.calm = sc.Calm; sc.Web > 0 {
		w.web = newWeb(w, sc)
	}
	if p := w.policy; p != nil {
		w.net.sinks = p.sink[0] != ""
		w.net.accepted = p.checkRate
	}
	w.net.faults = Faults{At: sc.FailAt, Odds: sc.FaultOdds}
	if w.march = sc.March; sc.FailUpgrade {
		w.net.faults.only = w.upgrading
	}
	w.shape.canary = time.Duration(r.IntN(2)) * 20 * time.Millisecond
	w.shape.plain, w.shape.elder = r.IntN(8) == 0, r.IntN(8) == 0
	if !sc.Calm && r.IntN(4) == 0 {
		w.shape.picky = 2 + r.IntN(10)
	}
	w.shape.fickle = !sc.Calm && r.IntN(8) == 0
	for i := range 1 + min(1, sc.Migrations) {
		h := &Host{w: w, name: fmt.Sprintf("h%d", i+1)}
		w.hosts = append(w.hosts, h)
		p, err := w.newProc(h.name, h, w.yaml(), nil, newFDs(w.net, w.fdsMax), uint64(i+1)<<40, 1)
		if err != nil {
			panic(err)
		}
		h.proc = p
		p.accepting(true)
	}
	for _, h := range w.hosts {
		h.sit()
	}
	w.rounds() // who is at home owns the VIPs
	return w
}

// serve makes the server of endpoint i.
func (w *World) serve(i int) {
	s := &service{name: fmt.Sprintf("e%d", i), endpoint: i}
	switch {
	case w.shape.unix && i == 0:
		s.unix = "/run/e0.sock"
	case w.shape.loop:
		s.at = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(10 + i)}), 7000)
	default:
		s.at = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 1, byte(10 + i)}), 7000)
	}
	s.listener = &Listener{at: s.at, backlog: 64}
	if s.unix != "" {
		w.net.unix[s.unix] = s.listener
	} else {
		w.net.routes[s.at] = s.listener
		if i >= w.shape.endpoints-w.shape.broken {
			w.net.behaviour[s.at] = behaviour(1 + w.net.rng.IntN(2))
		}
	}
	w.services = append(w.services, s)
}

var vip = netip.MustParseAddrPort("10.0.0.5:80")

// yaml is the configuration of the world's shape.
func (w *World) yaml() string {
	s := &w.shape
	var b strings.Builder
	if w.policy != nil {
		b.WriteString("accessLog: { to: stdout }\n")
	}
	fmt.Fprintf(&b, "node: { name: n, loops: %d, admin: { socket: /run/a.sock } }\n", w.loops)
	fmt.Fprintf(&b, "listeners:\n  %s: { vip: %q, backend: pool, idleTimeout: %s, onChange: %s", w.storm.tcpName(), vip, s.idle, s.onChange)
	if s.listenMax > 0 {
		fmt.Fprintf(&b, ", connectionsMax: %d", s.listenMax)
	}
	b.WriteString(w.policy.ofListener(false))
	fmt.Fprintf(&b, ", backlog: %d }\n", 100+s.revision)
	w.storm.more(&b)
	if w.web != nil {
		w.web.listeners(&b, s.revision)
	}
	fmt.Fprintf(&b, "backends:\n  pool:\n    balance: %s\n    connectTimeout: 2s\n    retry: { max: 4 }\n", s.balance)
	switch {
	case s.perEnd > 0:
		fmt.Fprintf(&b, "    limits: { connectionsPerEndpoint: %d, queue: %d, queueTime: 10m }\n", s.perEnd, s.queue)
	case w.policy != nil:
		fmt.Fprintf(&b, "    limits: { queue: %d, queueTime: 10m }\n", s.queue)
	}
	w.policy.ofBackend(&b, "pool")
	b.WriteString("    endpoints:\n")
	for i, e := range w.services[:s.endpoints-s.gone] {
		address := e.at.String()
		if e.unix != "" {
			address = "unix:" + e.unix
		}
		fmt.Fprintf(&b, "      - { name: %s, address: %q%s%s }\n", e.name, address, w.policy.ofEndpoint("pool", i), w.storm.weight(i))
	}
	w.policy.sinks(&b, "pool")
	if w.web != nil {
		w.web.backends(&b)
	}
	return b.String()
}

// client begins a client.
func (w *World) client(calm bool) { w.clientAt(w.storm.vip(), calm) }

// clientAt begins a client of a VIP.
func (w *World) clientAt(at netip.AddrPort, calm bool) {
	from, denied := w.policy.source(netip.AddrFrom4([4]byte{192, 0, 2, 1}))
	near, _ := w.net.pair(netip.AddrPortFrom(from, w.net.port()), at)
	p := w.peer(fmt.Sprintf("client-%d", len(w.peers)), near, calm)
	p.client, p.denied, p.turn = true, denied, w.turns
	w.net.connect(near, at)
}

func (w *World) peer(name string, s *Sock, calm bool) *Peer {
	r := w.net.rng
	p := &Peer{name: name, net: w.net, s: s, key: r.Uint64() | 1, born: w.net.now}
	sizes := []int{headLen, 200, 5000, 20000, 70000, 200000}
	if w.bulk && r.IntN(2) == 0 {
		sizes = []int{200000, 400000}
	}
	if w.flood { // beyond what makes a stream of a transfer
		sizes = []int{6 << 20, 200}
	}
	p.plan = plan{
		total: headLen + r.IntN(1+sizes[r.IntN(len(sizes))]),
		hold:  r.IntN(3) == 0,
		gulp:  []int{100, 4000, 70000}[r.IntN(3)],
		mouth: []int{100, 4000, 70000}[r.IntN(3)],
	}
	if w.chase { // all are streams, and none ends by itself
		p.plan.total, p.plan.hold = p.plan.total+(5<<20), true
	}
	if p.plan.total > 1<<20 { // in sips this would take for ever
		p.plan.gulp, p.plan.mouth = 70000, 70000
		for _, x := range []*Sock{s, s.peer} {
			x.sndCap, x.rcvCap = max(x.sndCap, 90<<10), max(x.rcvCap, 90<<10)
		}
	}
	switch r.IntN(6) {
	case 0:
		p.plan.after = -1
	case 1:
		p.plan.after = headLen
	}
	if !calm {
		p.plan.reset = r.IntN(8) == 0
		if r.IntN(3) == 0 {
			p.plan.sloth, p.plan.sleepMS = 1+r.IntN(20), 1+r.IntN(3000)
		}
	}
	w.net.peers[p.key] = p
	s.owner = p
	w.peers = append(w.peers, p)
	return p
}

// servers accept what waits for them.
func (w *World) serveAll(calm bool) bool {
	any := false
	for _, s := range w.services {
		for len(s.listener.queue) > 0 {
			x := s.listener.queue[0]
			s.listener.queue = s.listener.queue[1:]
			s.n++
			p := w.peer(fmt.Sprintf("server-%s-%d", s.name, s.n), x, calm)
			p.svc = s
			if x.peer.excused != "" {
				p.excuse(x.peer.excused)
			}
			any = true
		}
	}
	if w.web != nil {
		any = w.web.accept(calm) || any
	}
	return any
}

// Run lets the history of the seed happen and judges it.
func (w *World) Run(sc Scenario) error {
	w.story(sc)
	if w.failed == nil {
		w.finish()
	}
	if w.failed == nil {
		return nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%v\n", w.failed)
	for _, line := range w.trace {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	for _, p := range w.procs {
		fmt.Fprintf(&b, "  %v\n", p)
		if p.log.Len() > 0 {
			fmt.Fprintf(&b, "%.4000s\n", p.log.String())
		}
	}
	for _, p := range w.procs {
		for i, l := range p.shared.Loops {
			for _, k := range l.Slots(0, nil) {
				f := l.Flow(k)
				fmt.Fprintf(&b, "  %s loop %d: flow %x, %s (%v), %d requests; client leg %v, backend leg %v\n", p.name, i, f.ID(), l.Kind(k), f.State(), f.Requests(), p.fds.look(l.Leg(k, flow.Client)), p.fds.look(l.Leg(k, flow.Backend)))
				if z, err := f.Freeze(w.net.now); err == nil && z.H1 != nil {
					fmt.Fprintf(&b, "    %.2000v\n", z)
				}
			}
		}
	}
	for _, p := range w.peers {
		if !p.closed {
			fmt.Fprintf(&b, "  %v\n", p)
		}
	}
	if w.web != nil {
		fmt.Fprintf(&b, "  the configuration of HTTP: %+v\n", w.web.shape)
		for _, p := range w.web.active {
			if !p.ended() {
				fmt.Fprintf(&b, "  %v\n", p)
			}
		}
	}
	return fmt.Errorf("%s", b.String())
}

// story is the main part: traffic, and everything else as ordinary events.
func (w *World) story(sc Scenario) {
	r := w.net.rng
	w.net.faults.on = true
	events := sc.Clients + sc.Web + sc.Reloads + sc.Rebalances + sc.Upgrades + sc.Migrations + sc.Stands
	left := sc
	pace := []int{20, 60, 250}[r.IntN(3)] // steps from one event to the next
	rests := 0
	for quiet := 0; w.failed == nil && !w.endless(); {
		if events > 0 && r.IntN(pace) == 0 {
			switch k := r.IntN(events); {
			case k < left.Clients:
				left.Clients--
				w.client(sc.Calm)
			case k < left.Clients+left.Reloads:
				left.Reloads--
				w.change()
			case k < left.Clients+left.Reloads+left.Rebalances:
				left.Rebalances--
				if p := w.idleProc(0); p != nil {
					w.note("%s: rebalance", p.name)
					p.rebalance()
				}
			case k < left.Clients+left.Reloads+left.Rebalances+left.Upgrades:
				left.Upgrades--
				if p := w.idleProc(r.IntN(len(w.hosts))); p != nil {
					if sc.Crash && w.march.hit == "" {
						w.march.choose(r)
					}
					w.note("%s: upgrade", p.name)
					p.upgrade()
				}
			case k >= events-left.Web:
				left.Web--
				w.web.client(sc.Calm)
			case k >= events-left.Web-left.Stands:
				left.Stands--
				w.policy.change()
			default:
				left.Migrations--
				from := r.IntN(2)
				if p, q := w.idleProc(from), w.idleProc(1-from); p != nil && q != nil {
					if sc.Crash && w.march.hit == "" {
						w.march.chooseHost(r)
					}
					w.note("%s: migrate to %s", p.name, q.name)
					p.migrate(q)
				}
			}
			events = left.Clients + left.Web + left.Reloads + left.Rebalances + left.Upgrades + left.Migrations + left.Stands
		}
		if sc.Chase && w.net.thickened {
			w.net.thickened = false
			if p := w.idleProc(0); p != nil {
				w.note("%s: rebalance in the middle of a stream", p.name)
				p.rebalance()
			}
		}
		if w.step(sc.Calm, false) {
			quiet = 0
		} else if quiet++; quiet > 30 {
			if w.settled(sc.Calm, false) {
				// What only the clock finds has to be found soon.
				if events == 0 {
					if rests++; rests > 4 && !(rests < restsMost && w.waits()) {
						return
					}
					if w.policy != nil && rests > 1 {
						w.policy.ready() // who waits for what is held waits no longer
					}
				}
				w.pass(time.Duration(1 + r.IntN(int(500*time.Millisecond))))
			}
			quiet = 0
		}
	}
}

// endless notes a story that does not come to its end: a bug of the world, or
// of a loop that is never done.
func (w *World) endless() bool {
	if w.turns > 5e6 {
		w.fail("after %d steps the story still goes on", w.turns)
	}
	return w.failed != nil
}

// idleProc is the process of a host, if its control side is free.
func (w *World) idleProc(host int) *Proc {
	p := w.hosts[host].proc
	if p.dead || p.leaving || p.gave || p.arriving || p.stopped {
		return nil
	}
	for _, t := range p.tasks {
		if !t.over && !t.aside {
			return nil
		}
	}
	return p
}

// change reloads a process with another configuration.
func (w *World) change() {
	r := w.net.rng
	p := w.idleProc(r.IntN(len(w.hosts)))
	if p == nil {
		return
	}
	s := &w.shape
	s.revision++
	w.storm.change()
	switch r.IntN(4) {
	case 0:
		if s.perEnd > 0 {
			s.perEnd = s.perEnd%3 + 1
		}
	case 1:
		if w.policy == nil { // one that is away for long is forgotten, and with it how it stands
			s.gone = r.IntN(s.endpoints)
		}
	case 2:
		if s.listenMax > 0 {
			s.listenMax = 2 + r.IntN(4)
		}
	}
	w.note("%s: reload, revision %d", p.name, s.revision)
	if w.web == nil {
		p.reload(w.yaml(), nil)
		return
	}
	done, revision := w.web.change(), s.revision
	p.reload(w.yaml(), func() { done(); w.storm.inForce(revision) })
	w.storm.begin()
}

// step does one thing, chosen by chance, and checks the world. It tells
// whether there was anything to do.
func (w *World) step(calm, last bool) bool {
	r := w.net.rng
	did := false
	w.wake()
	w.revive()
	w.beat()
	switch k := r.IntN(100); {
	case k < 40:
		p, i := w.procs[r.IntN(len(w.procs))], r.IntN(w.loops)
		if w.turns >= w.stallEnd && r.IntN(50) == 0 {
			// One loop gets no processor for a while, and its mailbox fills.
			w.stalled, w.stallEnd = i, w.turns+50+r.IntN(500)
		}
		if p.runs(i) && (i != w.stalled || w.turns >= w.stallEnd) {
			did = w.turn(p, i)
		} else {
			did = p.runs(i)
		}
	case k < 70:
		if ready := w.net.ready(); len(ready) > 0 {
			w.net.do(ready[r.IntN(len(ready))])
			did = true
		}
	case k < 92:
		did = w.serveAll(calm)
		n, m := len(w.peers), 0
		if w.web != nil {
			m = len(w.web.active)
		}
		did = w.storm.step(last) || did
		if n+m > 0 {
			if i := r.IntN(n + m); i < n {
				did = w.peers[i].step(last) || did
			} else {
				did = w.web.active[i-n].step(last) || did
			}
		}
	case k < 98:
		did = w.tasks()
	default:
		tick := 3 * time.Millisecond
		if w.flood { // a stream is one that never rests for so long
			tick = 20 * time.Microsecond
		}
		w.net.now = w.net.now.Add(time.Duration(1 + r.IntN(int(tick))))
	}
	w.turns++
	if w.turns%256 == 0 {
		w.net.sweep()
		if w.web != nil {
			w.web.sweep()
		}
	}
	return did
}

// turn is one turn of one loop, with a look at everything after it.
func (w *World) turn(p *Proc, i int) bool {
	did := p.shared.Loops[i].Turn(false)
	if did || w.turns%16 == 0 {
		w.check()
	}
	return did
}

// tasks steps one task of one process.
func (w *World) tasks() bool {
	for _, p := range w.procs {
		if p.dead || p.stopped {
			continue
		}
		for _, t := range p.tasks {
			if t.step() {
				if p.gave && !p.dead && t.over && !slices.ContainsFunc(p.tasks, func(t *task) bool { return !t.over && !t.aside }) {
					p.exit()
				}
				w.check()
				return true
			}
		}
	}
	return false
}

// settled does all that can be done without the clock, and then wants that
// nothing that should go on stands still. It tells whether there was nothing.
func (w *World) settled(calm, last bool) bool {
	idle := 0
	for range 2000000 {
		w.wake()
		w.revive()
		w.beat()
		did := w.serveAll(calm)
		for _, p := range w.procs {
			for i := 0; p.runs(i); i++ {
				did = w.turn(p, i) || did
			}
		}
		if ready := w.net.ready(); len(ready) > 0 {
			w.net.do(ready[0])
			did = true
		}
		for k := range w.peers {
			did = w.peers[k].step(last) || did
		}
		if w.web != nil {
			for _, p := range w.web.active {
				did = p.step(last) || did
			}
		}
		did = w.storm.step(last) || did
		did = w.tasks() || did
		if w.failed != nil || w.net.bad != nil {
			w.check()
			return true
		}
		if !did {
			// Twice, since noise may hide the end of it.
			if idle++; idle > 1 {
				w.stuck()
				return true
			}
		} else {
			idle = 0
			if !last {
				return false
			}
		}
	}
	w.fail("the world never comes to rest")
	return true
}

// pass lets time go by.
func (w *World) pass(d time.Duration) {
	for _, dl := range w.net.dials {
		if dl.at > w.net.now {
			d = min(d, time.Duration(dl.at-w.net.now))
		}
	}
	w.net.now = w.net.now.Add(d)
}

// finish lets everybody say what is left and end, and then looks for anything
// that remains.
func (w *World) finish() {
	w.net.faults.on = false
	w.endStopped()
	w.heal(true)
	if w.policy != nil {
		w.policy.ready()
	}
	for round := 0; w.failed == nil; round++ {
		w.settled(false, true)
		w.drainSinks()
		open := 0
		for _, p := range w.peers {
			if !p.closed && !p.rst {
				open++
			}
		}
		if w.web != nil {
			open += w.web.open()
		}
		open += w.storm.open()
		if open == 0 && w.flows() == 0 && !w.busy() {
			break
		}
		if round > 400 {
			w.fail("%d peers and %d flows never end, or a control side (%t)", open, w.flows(), w.busy())
			return
		}
		w.pass(time.Duration(1+round) * 50 * time.Millisecond)
	}
	if w.failed == nil {
		w.owned()
		w.remains()
	}
}

// drainSinks ends, as an operator would, the flows that a sink holds: nothing
// else does.
func (w *World) drainSinks() {
	for _, p := range w.procs {
		if p.dead || p.stopped {
			continue
		}
		for _, l := range p.shared.Loops {
			for _, i := range l.Slots(0, func(f *flow.Flow) bool { return f.State() == flow.Sunk }) {
				l.Kill(i)
			}
		}
	}
}

// busy tells whether a control side has something to do still.
func (w *World) busy() bool {
	for _, p := range w.procs {
		if !p.dead && slices.ContainsFunc(p.tasks, func(t *task) bool { return !t.over }) {
			return true
		}
	}
	return false
}

func (w *World) flows() (n int) {
	for _, p := range w.procs {
		if !p.dead {
			n += p.flows()
		}
	}
	return n + len(w.inFlight)
}
