package lab

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// soak is the long run: clients of many kinds, backends that stay and backends
// that crash, hang and come back, under rebalances, reloads and upgrades.
type soak struct {
	Options
	ctx   context.Context
	out   io.Writer
	v     *Verdict
	world *World

	services []webService
	balancer Balancer
	pid      atomic.Int64 // of it
	origins  []*Origin    // of this process
	victims  []*Origin    // those of them that crash and hang
	mortal   *Process     // the endpoint that is killed
	starts   int          // of it
	saboteur *saboteur

	fleets  map[string]*fleet
	trouble trouble
	scale   *scale
	wrk     *wrkRun

	ids      atomic.Uint32
	sockets  atomic.Int32 // WebSockets that are open
	underway sync.Map     // of *exchange to when it began
	ending   chan struct{}
	loads    sync.WaitGroup
	events   map[Label]int
	refused  map[string]int
	doubts   []string
	oldPIDs  []int
	atRest   appetite // before the load
	longest  map[Label]time.Duration
	eventsMu sync.Mutex // guards events, refused, doubts, oldPIDs, longest
}

// soakPlan is how a run is laid out in time.
type soakPlan struct {
	load                         time.Duration // of all clients
	until                        time.Duration // since the beginning: the load ends by then
	rebalance, reload, upgrade   time.Duration // from one to the next
	peace                        time.Duration // between two troubles
	mixed, pipelined, slow, bulk int           // clients
	sockets                      int
	progress                     time.Duration
}

func (o Options) soakPlan() soakPlan {
	if o.Short {
		return soakPlan{
			load: 26 * time.Second, until: 29 * time.Second,
			rebalance: 1300 * time.Millisecond, reload: 3700 * time.Millisecond, upgrade: 8 * time.Second, peace: 2 * time.Second,
			mixed: 8, pipelined: 3, slow: 4, bulk: 2, sockets: 6, progress: 4 * time.Second,
		}
	}
	return soakPlan{
		load: 10 * time.Minute, until: 11 * time.Minute,
		rebalance: 3 * time.Second, reload: 10 * time.Second, upgrade: time.Minute, peace: 4 * time.Second,
		mixed: 12, pipelined: 4, slow: 6, bulk: 3, sockets: 10, progress: 10 * time.Second,
	}
}

// clientsEnd is how long the longest exchange takes when all is well.
const clientsEnd = 8 * time.Second

// Names of the fleets. The good one never fails. The fickle one closes idle
// connections at random, and its clients send only what may be repeated. The
// bad one crashes, hangs, is killed, and comes back.
const (
	goodFleet   = "good"
	fickleFleet = "fickle"
	badFleet    = "bad"
)

// soaking is the lab.
func soaking(ctx context.Context, o Options, out io.Writer, v *Verdict) error {
	s := &soak{Options: o, ctx: ctx, out: out, v: v, fleets: map[string]*fleet{}, ending: make(chan struct{}),
		events: map[Label]int{}, refused: map[string]int{}, longest: map[Label]time.Duration{}}
	defer s.close()
	if err := s.set(); err != nil {
		return err
	}
	p := o.soakPlan()
	load := min(p.load, time.Until(o.began.Add(p.until)))
	s.phase("load for %v", load.Round(time.Second))
	began := time.Now()
	if err := s.start(p, load); err != nil {
		return err
	}
	broken := s.drive(p, began.Add(load))
	s.phase("the clients end")
	close(s.ending)
	if !waitFor(&s.loads, clientsEnd) {
		s.sayUnderway()
		v.Must(false, "clients that ended", "not all within "+clientsEnd.String(), "all")
	}
	if broken != nil {
		v.Broken(broken)
	}
	s.judge()
	return nil
}

// set builds all up to a balancer that is ready.
func (s *soak) set() (err error) {
	s.phase("world: hosts on a bridge")
	if s.world, err = NewWorld(s.dir, webHosts); err != nil {
		return err
	}
	server, n1 := s.world.Host("server"), s.world.Host("n1")
	at := func(port int) netip.AddrPort { return netip.AddrPortFrom(server.V4, uint16(port)) }
	add := func(name string, port int) (*Origin, error) {
		o, err := NewOrigin(server, name, at(port), s.Seed)
		if err == nil {
			s.origins = append(s.origins, o)
		}
		return o, err
	}
	service := func(name string, vip int, answer time.Duration, ports ...int) {
		w := webService{name: name, vip: netip.AddrPortFrom(n1.V4, uint16(vip)), header: 10 * time.Second,
			body: 20 * time.Second, keepalive: 30 * time.Second, answer: answer}
		for _, p := range ports {
			w.endpoints = append(w.endpoints, at(p))
		}
		s.services = append(s.services, w)
		s.fleets[name] = &fleet{name: name, to: w.vip, began: s.began, say: s.phase}
	}
	for i := range 3 {
		if _, err := add(fmt.Sprintf("good%d", i+1), 9001+i); err != nil {
			return err
		}
	}
	for i := range 2 {
		o, err := add(fmt.Sprintf("fickle%d", i+1), 9011+i)
		if err != nil {
			return err
		}
		o.IdlePause = 60 * time.Millisecond
	}
	for i := range 2 {
		o, err := add(fmt.Sprintf("bad%d", i+1), 9021+i)
		if err != nil {
			return err
		}
		s.victims = append(s.victims, o)
	}
	service(goodFleet, 8001, 60*time.Second, 9001, 9002, 9003)
	service(fickleFleet, 8002, 60*time.Second, 9011, 9012)
	service(badFleet, 8003, hangPatience, 9021, 9022, mortalPort)
	s.fleets[badFleet].trouble = &s.trouble
	if err := s.revive(); err != nil {
		return err
	}
	if s.balancer, err = webCast(s.Options, n1, s.services); err != nil {
		return err
	}
	if err := s.balancer.Start(s.ctx); err != nil {
		return err
	}
	s.pid.Store(int64(s.balancer.Serving().PID))
	s.phase("balancer: process %d", s.pid.Load())
	if s.Sabotage == DropOctet || s.Sabotage == RSTOne {
		client := s.world.Host("client")
		s.saboteur, err = newSaboteur(client, s.Sabotage, netip.AddrPortFrom(client.V4, 7000), s.fleets[goodFleet].to)
		if err != nil {
			return err
		}
	}
	// One exchange through each service, so that what is made on first use is
	// there before the appetite at rest is taken.
	for _, f := range s.fleets {
		c, err := dialWeb(s.world.Host("client"), f.to, s.Seed, 0)
		if err != nil {
			return err
		}
		x := &exchange{id: s.ids.Add(1), method: "POST", up: 100, down: 100, last: true}
		if err := c.do(x); err != nil {
			return fmt.Errorf("lab: the first exchange with %s: %w", f.name, err)
		}
		c.close()
	}
	time.Sleep(300 * time.Millisecond)
	s.atRest, err = appetiteOf(s.balancer.Serving().PID)
	s.scale = &scale{every: 500 * time.Millisecond, pid: func() int { return int(s.pid.Load()) }}
	return err
}

// start starts the clients, the troubles and the scale.
func (s *soak) start(p soakPlan, load time.Duration) (err error) {
	s.loads.Go(func() { s.scale.weigh(s.ending) })
	if s.wrk, err = s.startWrk(load); err != nil {
		return err
	}
	good, fickle, bad := s.fleets[goodFleet], s.fleets[fickleFleet], s.fleets[badFleet]
	many := func(n int, f func(k int)) {
		for k := range n {
			s.loads.Go(func() { f(k) })
		}
	}
	many(p.mixed, func(k int) { s.mixed(good, k, anyExchange) })
	many(p.mixed/2, func(k int) { s.mixed(fickle, k, repeatable) })
	many(p.mixed/2, func(k int) { s.mixed(bad, k, anyExchange) })
	many(p.pipelined, func(k int) { s.pipelined(good, k) })
	many(p.slow, func(k int) { s.mixed(good, k, slowUpload) })
	many(p.slow, func(k int) { s.mixed(good, k, slowReader) })
	many(p.bulk, func(k int) { s.mixed(good, k, bulky) })
	many(2, func(k int) { s.mixed(good, k, earlyAnswer) })
	many(p.sockets, func(k int) { s.webSocket(good, k) })
	many(2, func(k int) { s.webSocket(bad, p.sockets+k) })
	s.loads.Go(func() { s.makeTrouble(p.peace) })
	return nil
}

// drive makes the events until the load is over.
func (s *soak) drive(p soakPlan, until time.Time) error {
	began := time.Now()
	due := map[Label]time.Time{Loop: began.Add(p.rebalance), Config: began.Add(p.reload), ProcessMove: began.Add(p.upgrade)}
	every := map[Label]time.Duration{Loop: p.rebalance, Config: p.reload, ProcessMove: p.upgrade}
	said, struck := began, false
	for time.Now().Before(until) {
		select {
		case <-s.ctx.Done():
			return s.ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
		now := time.Now()
		if now.Sub(said) >= p.progress {
			said = now
			s.phase("%s", s.progress())
		}
		if !struck && now.After(began.Add(until.Sub(began)/2)) {
			struck = true
			s.strike()
		}
		if s.Balancer != "holdfast" && s.Sabotage != BlindRelay {
			continue // it moves nothing
		}
		for _, l := range []Label{ProcessMove, Config, Loop} {
			if now.Before(due[l]) || !slices.Contains(s.Distances, l.String()) {
				continue
			}
			due[l] = now.Add(every[l])
			if err := s.event(l); err != nil {
				return err
			}
		}
	}
	return nil
}

// sayUnderway says which exchanges do not end, and what the product knows of
// their flows.
func (s *soak) sayUnderway() {
	s.underway.Range(func(x, began any) bool {
		s.v.Say("under way for %.1f s: %v", time.Since(began.(time.Time)).Seconds(), x)
		return true
	})
	if h, ok := s.balancer.(*webHoldfast); ok {
		ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
		defer cancel()
		n := h.nodes[h.active]
		text, err := n.host.Output(ctx, h.Binary, "flows", "--max", "0", "--socket", n.socket)
		s.v.Say("flows (%v):\n%s", err, text)
	}
}

// event makes one, and keeps what the product says of it.
func (s *soak) event(l Label) error {
	was := s.balancer.Serving().PID
	ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
	defer cancel()
	r, err := s.balancer.Move(ctx, l)
	if err != nil {
		return fmt.Errorf("%v %d: %w", l, s.events[l]+1, err)
	}
	s.pid.Store(int64(s.balancer.Serving().PID))
	s.eventsMu.Lock()
	defer s.eventsMu.Unlock()
	s.events[l]++
	s.longest[l] = max(s.longest[l], time.Duration(r.Pause.Max*float64(time.Microsecond)))
	for reason, n := range r.Reasons {
		s.refused[fmt.Sprintf("%v: %s", l, reason)] += n
	}
	if r.Lost > 0 {
		s.doubts = append(s.doubts, fmt.Sprintf("%v %d lost %d flows", l, s.events[l], r.Lost))
	}
	if l == ProcessMove && s.Sabotage != BlindRelay {
		s.oldPIDs = append(s.oldPIDs, was)
		if now := s.balancer.Serving().PID; now == was {
			s.doubts = append(s.doubts, fmt.Sprintf("upgrade %d: process %d still serves", s.events[l], was))
		}
	}
	return nil
}

// strike commits the sabotage.
func (s *soak) strike() {
	s.v.Figure("struck", s.Sabotage != "")
	switch s.Sabotage {
	case KillOne:
		s.phase("sabotage: kill -9 %d", s.balancer.Serving().PID)
		killPID(s.balancer.Serving().PID)
	case DropOctet, RSTOne:
		s.phase("sabotage: %s", s.Sabotage)
		s.saboteur.Strike()
	}
}

func (s *soak) progress() string {
	line, wrong, unexplained := "", 0, 0
	for _, name := range []string{goodFleet, fickleFleet, badFleet} {
		f := s.fleets[name]
		f.mu.Lock()
		line += fmt.Sprintf("%s %d", name, f.right)
		if f.trouble != nil {
			line += fmt.Sprintf(" (%d excused)", f.excuses())
		}
		line += ", "
		wrong, unexplained = wrong+len(f.wrong), unexplained+len(f.unexplained)
		f.mu.Unlock()
	}
	s.eventsMu.Lock()
	defer s.eventsMu.Unlock()
	return fmt.Sprintf("%s%d WebSockets; %d rebalances, %d reloads, %d upgrades; %v; wrong %d, unexplained %d",
		line, s.sockets.Load(), s.events[Loop], s.events[Config], s.events[ProcessMove], s.scale.now(), wrong, unexplained)
}

func (s *soak) phase(format string, args ...any) {
	_, _ = fmt.Fprintf(s.out, "%6.1f s  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

func (s *soak) close() {
	if s.saboteur != nil {
		s.saboteur.Close()
	}
	for _, o := range s.origins {
		o.Close()
	}
	if s.world != nil {
		s.world.Close()
	}
}

// waitFor waits, but not for ever.
func waitFor(g *sync.WaitGroup, patience time.Duration) bool {
	done := make(chan struct{})
	go func() {
		g.Wait()
		close(done)
	}()
	select {
	case <-done:
		return true
	case <-time.After(patience):
		return false
	}
}
