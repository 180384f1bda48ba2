package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// rolling restarts the servers behind the balancer, each really: its process
// ends and another one takes its place, which refuses connections while it
// warms up. Meanwhile clients of all kinds ask, and know each octet of their
// answers. Whatever fails is counted, and nothing is tried again on the sly:
// the product's own retries are off where it restarts by command.
func rolling(ctx context.Context, o Options, out io.Writer, v *Verdict) error {
	w, here, err := newLoopback(o.dir)
	if err != nil {
		return err
	}
	defer w.Close()
	r := &rollingLab{Options: o, ctx: ctx, out: out, v: v, here: here, pause: 500 * time.Millisecond, warm: time.Second,
		alone: 5 * time.Second, rounds: 3, crowds: 1, inter: 2 * time.Second}
	if o.Short {
		r.pause, r.warm, r.alone = 100*time.Millisecond, 200*time.Millisecond, 1500*time.Millisecond
		r.rounds, r.crowds, r.inter = 1, 3, 200*time.Millisecond
	}
	scenes := []rollingScene{
		{"by hand", "127.0.0.1:8081", r.byHand, true},
		{"hold, the only server", "127.0.0.1:8082", r.holdOne, true},
		{"hold, one after another", "127.0.0.1:8083", r.holdAll, true},
		{"seed 002, its four lines", "127.0.0.1:8084", r.seedLines, true},
		{"check port and sticky clients", "127.0.0.1:8085", r.checkPorts, true},
		{"haproxy, seed 002's four lines", "127.0.0.1:8091", r.haproxyLines, false},
		{"haproxy, the only server", "127.0.0.1:8092", r.haproxyOne, false},
	}
	if _, err := os.Stat(haproxyPath); err != nil {
		v.Say("%s is not here: nothing is shown beside it (make deps installs it)", haproxyPath)
		scenes = slices.DeleteFunc(scenes, func(s rollingScene) bool { return !s.ours })
	}
	if err := r.open(); err != nil {
		return err
	}
	if !o.Short {
		for _, s := range scenes {
			r.play(s)
		}
	} else {
		// A short run has them all at once: they share the balancer and no server.
		var all sync.WaitGroup
		for _, s := range scenes {
			all.Go(func() { r.play(s) })
		}
		all.Wait()
	}
	ours := 0
	for _, x := range r.ours {
		ours += x
	}
	v.Figure("failed", ours)
	v.Figure("restarts", r.restarts)
	v.Must(r.restarts > 0, "restarts behind Holdfast", fmt.Sprint(r.restarts), "more than 0")
	e := &r.effective
	v.Say("orders in force on every loop: %d, p50 %s, p99 %s, max %s", e.N, ms(e.Quantile(0.5)), ms(e.Quantile(0.99)), ms(e.Max))
	v.Figure("effective_ms", map[string]float64{"p50": millis(e.Quantile(0.5)), "max": millis(e.Max)})
	v.Goal(e.Quantile(0.5) <= effectiveGoal, "an order is in force on every loop after", ms(e.Quantile(0.5)), "at most "+ms(effectiveGoal))
	r.node.judgePromises(ctx, v)
	if v.Wrong() {
		v.Say("-- log of the balancer\n%s", r.node.process.Tail(40))
	}
	return nil
}

// rollingScene is one way to restart servers, with clients of its own.
type rollingScene struct {
	name string
	vip  string
	act  func(c *crowd) (restarts int, err error)
	ours bool
}

// effectiveGoal is how long an order may take: the switch of 2002 took 20 to 25 ms.
const effectiveGoal = 20 * time.Millisecond

type rollingLab struct {
	Options
	ctx    context.Context
	out    io.Writer
	v      *Verdict
	here   *Host
	node   *shopNode
	pause  time.Duration // between the end of a server and its new start
	warm   time.Duration // while a server refuses connections, after that
	inter  time.Duration // of the checks of seed 002
	alone  time.Duration // the same of a server that is the only one
	rounds int
	crowds int // each scene has so much less of a load

	mu        sync.Mutex // guards all below
	ours      []int      // failures, by scene
	restarts  int
	effective Histogram // of orders, until they were in force on every loop
}

func (r *rollingLab) phase(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, _ = fmt.Fprintf(r.out, "== %6.2f s  %s\n", time.Since(r.began).Seconds(), fmt.Sprintf(format, args...))
}

// shopAddr is an address of a scene's n-th server.
func shopAddr(scene, n, port int) string { return fmt.Sprintf("127.0.%d.%d:%d", scene, n, port) }

// Ports of servers and of their checks.
const (
	shopPort  = 7000
	shopCheck = 7500
)

// open runs the balancer.
func (r *rollingLab) open() error {
	var s strings.Builder
	s.WriteString("node: { name: rolling, loops: 2, admin: { socket: SOCKET } }\nlisteners:\n")
	for i, name := range []string{"web", "solo", "held", "seed", "shop"} {
		fmt.Fprintf(&s, "  %s: { vip: \"127.0.0.1:%d\", protocol: http, backend: %s }\n", name, 8081+i, name)
	}
	s.WriteString("backends:\n")
	endpoints := func(scene, n int, more string) {
		s.WriteString("    endpoints:\n")
		for i := range n {
			fmt.Fprintf(&s, "      - { name: a%d, address: \"%s\"%s }\n", i+1, shopAddr(scene, i+1, shopPort), more)
		}
	}
	for i, name := range []string{"web", "solo", "held"} {
		fmt.Fprintf(&s, "  %s:\n    eject: off\n    retry: { max: 0 }\n    limits: { queue: 1000, queueTime: 15s }\n", name)
		endpoints(i+1, [...]int{4, 1, 4}[i], "")
	}
	fmt.Fprintf(&s, `  seed:
    check: { tcp: {}, interval: %[1]v, fastInterval: %[1]v, fall: 3, rise: 2 }
    endpoints:
      - { name: webA, address: "127.0.0.1:1000", check: { port: 2000 } }
      - { name: webB, address: "127.0.0.1:1001", check: { port: 2001 } }
      - { name: bkpA, address: "127.0.0.1:1000", check: { port: 1000 }, backup: true }
      - { name: bkpB, address: "127.0.0.1:1001", check: { port: 1001 }, backup: true }
`, r.inter)
	fmt.Fprintf(&s, "  shop:\n    eject: off\n    retry: { max: 0 }\n    sticky: { cookie: { name: hf, key: no-secret-in-a-lab } }\n"+
		"    check: { http: { path: /, status: 200, drain: 404 }, port: %d, interval: %v, fall: 2, rise: 1 }\n", shopCheck, r.inter/4)
	endpoints(5, 4, "")
	var err error
	if r.node, err = startNode(r.ctx, r.Binary, r.here, "rolling", s.String()); err != nil {
		return err
	}
	return nil
}

// play runs one scene under load and judges it.
func (r *rollingLab) play(s rollingScene) {
	c := newCrowd(r.ctx, s.vip, r.Seed)
	began := time.Now()
	restarts, err := s.act(c)
	c.end()
	failed := c.failed()
	r.mu.Lock()
	if s.ours {
		r.ours = append(r.ours, failed)
		r.restarts += restarts
	}
	r.mu.Unlock()
	r.v.Say("%-32s %2d restarts in %4.1f s, %6d requests right (%d long downloads, %d WebSockets), longest %s, failed %d %s",
		s.name, restarts, time.Since(began).Seconds(), c.answers(), c.bulk, c.sockets, ms(c.took.Max), failed, c.failures())
	if failed > 0 {
		r.v.Say("    %s", strings.Join(c.first, "\n    "))
	}
	if err != nil {
		r.v.Broken(fmt.Errorf("%s: %w", s.name, err))
	}
	if s.ours {
		r.v.Zero("requests failed: "+s.name, failed)
		r.v.Must(c.answers() > 0 && c.bulk > 0 && c.sockets > 0, "requests answered: "+s.name,
			fmt.Sprintf("%d, %d long, %d WebSockets", c.answers(), c.bulk, c.sockets), "more than 0 of each")
	}
	r.v.Figure(strings.NewReplacer(" ", "_", ",", "", "'", "").Replace(s.name),
		map[string]any{"restarts": restarts, "requests": c.answers(), "failed": failed, "longest_ms": millis(c.took.Max)})
}

// load sends all kinds of clients.
func (r *rollingLab) load(c *crowd) {
	long := 1500 * time.Millisecond
	if r.Short {
		long = 500 * time.Millisecond
	}
	c.keepAlive(max(4, 24/r.crowds), 30*time.Millisecond, 10*time.Millisecond)
	c.each(max(2, 6/r.crowds), 30*time.Millisecond, false, func(x *caller, rnd *rand.Rand) {
		c.note(x.ask("/o", 500, jitterOf(rnd, 5*time.Millisecond), "", "Connection: close\r\n"))
		x.close()
	})
	c.each(max(1, 4/r.crowds), 100*time.Millisecond, false, func(x *caller, rnd *rand.Rand) {
		a, err := x.ask("/long", 300_000, jitterOf(rnd, long), "", "")
		c.note(a, err)
		if err == nil && a.Status == 200 {
			c.mu.Lock()
			c.bulk++
			c.mu.Unlock()
		}
	})
	c.each(max(1, 4/r.crowds), 100*time.Millisecond, false, func(_ *caller, rnd *rand.Rand) {
		err := c.talk(rnd, jitterOf(rnd, long))
		c.mu.Lock()
		defer c.mu.Unlock()
		if err != nil {
			c.fail("WebSocket: " + errorText(err))
			return
		}
		c.sockets++
	})
}

// talk opens a WebSocket, has messages echoed for some time, and closes it.
func (c *crowd) talk(rnd *rand.Rand, long time.Duration) error {
	conn, err := net.DialTimeout("tcp", c.to, callerPatience)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(callerPatience))
	ws, _, err := DialWebSocket(conn, "lab", "/ws")
	if err != nil {
		return err
	}
	for range longPieces {
		b := make([]byte, 10+rnd.IntN(500))
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		if err := ws.Send(BinaryMessage, b); err != nil {
			return err
		}
		_, got, err := ws.Receive()
		if err != nil {
			return err
		}
		if string(got) != string(b) {
			return wrongAnswer{"a message of a WebSocket came back as another"}
		}
		time.Sleep(long / longPieces)
	}
	if err := ws.Send(closeFrame, []byte{0x03, 0xe8}); err != nil {
		return err
	}
	if _, _, err := ws.Receive(); !errors.Is(err, errWebSocketClosed) {
		return fmt.Errorf("in place of a close frame: %w", err)
	}
	return nil
}

// servers starts n of a scene.
func (r *rollingLab) servers(scene, n int) ([]*shopServer, error) {
	var all []*shopServer
	for i := range n {
		s := newShopServer(r.here, fmt.Sprintf("%d-a%d", scene, i+1), shopAddr(scene, i+1, shopPort), shopAddr(scene, i+1, shopCheck), r.Seed, 0)
		all = append(all, s)
	}
	return all, r.start(all, true)
}

// start starts servers for the first time; later they will take time to warm up.
func (r *rollingLab) start(all []*shopServer, check bool) error {
	for _, s := range all {
		if err := s.start(r.ctx, check); err != nil {
			return err
		}
		s.warm = r.warm
	}
	return nil
}

// again starts a server that has ended.
func (r *rollingLab) again(s *shopServer, check bool) error {
	time.Sleep(r.pause)
	return s.start(r.ctx, check)
}

// settled lets the load go on for a while without any change.
func (r *rollingLab) settled() { time.Sleep(max(300*time.Millisecond, r.pause)) }

// byCommand restarts each server between two commands. When the first of them
// returns, nothing is in flight any more, it says: so the process is killed.
func (r *rollingLab) byCommand(do, backend string, servers []*shopServer) (restarts int, err error) {
	for i, s := range servers {
		name := fmt.Sprintf("%s/a%d", backend, i+1)
		if r.Sabotage == KillOne && i == 0 {
			s.kill() // nobody was asked
		}
		began := time.Now()
		if err := r.order(do, name, "--wait", "--timeout", "20s"); err != nil {
			return restarts, err
		}
		waited := time.Since(began)
		if !s.process.Ended() {
			busy, err := s.hear(r.ctx, "/busy")
			if err != nil {
				return restarts, err
			}
			r.v.Must(busy == "0", fmt.Sprintf("requests at the server when %s %s --wait returns", do, name), busy, "0")
			s.kill()
		}
		if err := r.again(s, true); err != nil {
			return restarts, err
		}
		if err := r.order("ready", name); err != nil {
			return restarts, err
		}
		restarts++
		r.phase("%s %s: nothing in flight after %v, restarted as pid %d", do, name, waited.Round(time.Millisecond), s.process.Pid)
		r.settled()
		got, err := s.hear(r.ctx, "/served")
		if err != nil {
			return restarts, err
		}
		r.v.Must(got != "0", "answers of "+name+" after its restart", got, "more than 0")
	}
	return restarts, nil
}

// order runs one of the commands for endpoints, and notes how long it took until
// it was in force on every loop.
func (r *rollingLab) order(do, name string, more ...string) error {
	said, err := r.node.command(r.ctx, append([]string{"endpoint", do, name, "--json"}, more...)...)
	if err != nil {
		return err
	}
	var first struct {
		Millis float64 `json:"effective_ms"`
	}
	line, _, _ := strings.Cut(said, "\n")
	if err := json.Unmarshal([]byte(line), &first); err != nil {
		return fmt.Errorf("lab: %s %s: %w in %q", do, name, err, said)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.effective.Add(time.Duration(first.Millis * float64(time.Millisecond)))
	return nil
}

func (r *rollingLab) byHand(c *crowd) (restarts int, err error) {
	servers, err := r.servers(1, 4)
	if err != nil {
		return 0, err
	}
	r.load(c)
	r.settled()
	for range r.rounds {
		n, err := r.byCommand("quiesce", "web", servers)
		if restarts += n; err != nil {
			return restarts, err
		}
	}
	return restarts, nil
}

// holdOne restarts the only server there is: all requests wait for it.
func (r *rollingLab) holdOne(c *crowd) (restarts int, err error) {
	servers, err := r.servers(2, 1)
	if err != nil {
		return 0, err
	}
	servers[0].warm = r.alone
	r.load(c)
	r.settled()
	most := 0
	watching := make(chan struct{})
	watch, stop := context.WithCancel(r.ctx)
	go func() { // ends before holdOne does
		defer close(watching)
		for watch.Err() == nil {
			if st, err := r.node.status(watch); err == nil {
				most = max(most, st.Queued["solo"])
			}
			time.Sleep(25 * time.Millisecond)
		}
	}()
	for range r.rounds {
		n, err2 := r.byCommand("hold", "solo", servers)
		if restarts += n; err2 != nil {
			err = err2
			break
		}
	}
	stop()
	<-watching
	r.v.Must(most > 0, "requests that waited at once while the only server was held", fmt.Sprint(most), "more than 0")
	c.mu.Lock()
	longest := c.took.Max
	c.mu.Unlock()
	r.v.Must(longest >= r.pause+r.alone, "the longest of them, which outlived the restart", ms(longest), "at least "+ms(r.pause+r.alone))
	return restarts, err
}

func (r *rollingLab) holdAll(c *crowd) (restarts int, err error) {
	servers, err := r.servers(3, 4)
	if err != nil {
		return 0, err
	}
	r.load(c)
	r.settled()
	for range r.rounds {
		n, err := r.byCommand("hold", "held", servers)
		if restarts += n; err != nil {
			return restarts, err
		}
	}
	return restarts, nil
}

// restart ends a server gracefully when it has nothing to do, and starts it
// again: the manner of seed 002, where the balancer cannot be asked.
func (r *rollingLab) restart(s *shopServer) error {
	if err := s.awaitIdle(r.ctx); err != nil {
		return err
	}
	if err := s.finish(r.ctx); err != nil {
		return err
	}
	return r.again(s, false)
}

// seedServers are two at the addresses of seed 002 on a host.
func (r *rollingLab) seedServers(host, tag string) ([]*shopServer, error) {
	var all []*shopServer
	for i, x := range []string{"A", "B"} {
		all = append(all, newShopServer(r.here, tag+x, fmt.Sprintf("%s:%d", host, 1000+i), fmt.Sprintf("%s:%d", host, 2000+i), r.Seed, 0))
	}
	return all, r.start(all, true)
}

// rollByCheck closes and opens the check's port of each server, and restarts it
// between when known says that it is out of rotation.
func (r *rollingLab) rollByCheck(servers []*shopServer, known func(i int, up bool) error) (restarts int, err error) {
	for i, s := range servers {
		if err := s.say(r.ctx, "/check/close"); err != nil {
			return restarts, err
		}
		if err := known(i, false); err != nil {
			return restarts, err
		}
		if err := r.restart(s); err != nil {
			return restarts, err
		}
		if err := s.say(r.ctx, "/check/open"); err != nil {
			return restarts, err
		}
		if err := known(i, true); err != nil {
			return restarts, err
		}
		restarts++
		r.phase("%s: its check's port was closed, it was restarted as pid %d", s.name, s.process.Pid)
		r.settled()
	}
	return restarts, nil
}

// rollThenClose restarts each of the servers in its rounds, then closes the check's
// ports of all: everything goes on by the backups, which are the same servers.
func (r *rollingLab) rollThenClose(c *crowd, servers []*shopServer, known func(i int, up bool) error) (restarts int, err error) {
	r.load(c)
	r.settled()
	for range r.rounds {
		n, err := r.rollByCheck(servers, known)
		if restarts += n; err != nil {
			return restarts, err
		}
	}
	for i, s := range servers {
		if err := s.say(r.ctx, "/check/close"); err != nil {
			return restarts, err
		}
		if err := known(i, false); err != nil {
			return restarts, err
		}
	}
	return restarts, nil
}

// seedLines is seed 002, word for word in our file.
func (r *rollingLab) seedLines(c *crowd) (restarts int, err error) {
	servers, err := r.seedServers("127.0.0.1", "seed-")
	if err != nil {
		return 0, err
	}
	names := []string{"seed/webA", "seed/webB"}
	known := func(i int, up bool) error {
		return r.node.await(r.ctx, names[i], map[bool]string{true: "up", false: "down"}[up], func(e endpointView) bool { return e.Serves == up })
	}
	for i := range names {
		if err := known(i, true); err != nil {
			return 0, err
		}
	}
	if restarts, err = r.rollThenClose(c, servers, known); err != nil {
		return restarts, err
	}
	before := c.answers()
	r.settled()
	all, err := r.node.endpoints(r.ctx)
	if err != nil {
		return restarts, err
	}
	r.v.Must(c.answers() > before, "answers by the backups, with both check ports closed", fmt.Sprint(c.answers()-before), "more than 0")
	r.v.Must(all["seed/bkpA"].Tries > 0 && all["seed/bkpB"].Tries > 0, "attempts at the backups",
		fmt.Sprintf("%d and %d", all["seed/bkpA"].Tries, all["seed/bkpB"].Tries), "more than 0 each")
	for i, s := range servers {
		if err := s.say(r.ctx, "/check/open"); err != nil {
			return restarts, err
		}
		if err := known(i, true); err != nil {
			return restarts, err
		}
	}
	r.settled()
	return restarts, nil
}

// checkPorts is the short form: the server says on its check's port that it is
// about to leave, then closes it. Its sticky clients stay till then.
func (r *rollingLab) checkPorts(c *crowd) (restarts int, err error) {
	servers, err := r.servers(5, 4)
	if err != nil {
		return 0, err
	}
	name := func(i int) string { return fmt.Sprintf("shop/a%d", i+1) }
	state := func(i int, want string) error {
		return r.node.await(r.ctx, name(i), want, func(e endpointView) bool { return e.State == want })
	}
	for i := range servers {
		if err := state(i, "up"); err != nil {
			return 0, err
		}
	}
	r.load(c)
	sticky := newCrowd(r.ctx, c.to, c.seed)
	defer sticky.end()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for what, n := range sticky.bad {
			c.bad["sticky: "+what] += n
		}
		c.first = append(c.first, sticky.first...)
		c.good += sticky.good
	}()
	var round atomic.Int64 // in each, all sticky clients are new
	sticky.each(12, 30*time.Millisecond, true, func(x *caller, rnd *rand.Rand) {
		if now := round.Load(); x.round != now {
			x.round, x.cookie = now, ""
		}
		sticky.note(x.ask("/o", 700, jitterOf(rnd, 10*time.Millisecond), "", ""))
	})
	by := func(t *tally, s *shopServer) int {
		t.mu.Lock()
		defer t.mu.Unlock()
		return t.servers[s.name]
	}
	r.settled()
	for range r.rounds {
		for i, s := range servers {
			// Some of the sticky clients shall be its own.
			for has := false; !has && r.ctx.Err() == nil; {
				round.Add(1)
				time.Sleep(200 * time.Millisecond)
				its := by(sticky.tally, s)
				time.Sleep(200 * time.Millisecond)
				has = by(sticky.tally, s) > its
			}
			if err := s.say(r.ctx, "/check/drain"); err != nil {
				return restarts, err
			}
			if err := state(i, "draining"); err != nil {
				return restarts, err
			}
			// What began before ends, however slow the machine is.
			if !c.turned(callerPatience) {
				return restarts, errors.New("lab: requests that began before a drain do not end")
			}
			others, its := by(c.tally, s), by(sticky.tally, s)
			r.settled()
			others, its = by(c.tally, s)-others, by(sticky.tally, s)-its
			r.v.Zero("answers of "+name(i)+" to others while it drains", others)
			r.v.Must(its > 0, "answers of "+name(i)+" to its sticky clients while it drains", fmt.Sprint(its), "more than 0")
			if err := s.say(r.ctx, "/check/close"); err != nil {
				return restarts, err
			}
			if err := state(i, "down"); err != nil {
				return restarts, err
			}
			if err := r.restart(s); err != nil {
				return restarts, err
			}
			if err := s.say(r.ctx, "/check/open"); err != nil {
				return restarts, err
			}
			if err := state(i, "up"); err != nil {
				return restarts, err
			}
			restarts++
			r.phase("%s: drained with %d answers to sticky clients, restarted as pid %d", name(i), its, s.process.Pid)
			r.settled()
		}
	}
	return restarts, nil
}
