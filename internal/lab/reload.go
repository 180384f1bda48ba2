package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/rpc"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// reloading is the test of many services whose configuration changes ten times a
// second, each time really, under new, kept and held connections; beside us
// Debian's haproxy and nginx. Then what one change takes, and what others than
// those concerned notice of it.
func reloading(ctx context.Context, o Options, out io.Writer, v *Verdict) error {
	w, here, err := newLoopback(o.dir)
	if err != nil {
		return err
	}
	defer w.Close()
	r := &reloadLab{Options: o, ctx: ctx, out: out, v: v, here: here, services: 1000, seconds: 60, control: 60, peers: 60, peersControl: 20,
		load: ReloadLoad{PerSec: 300, Kept: 30, Idle: 100}, probes: 30, period: 4 * time.Second, ones: 300, apart: 10 * time.Second}
	if o.Short {
		r.services, r.seconds, r.control, r.peers, r.peersControl = 200, 4, 1, 1, 0
		r.load.Idle, r.probes, r.period, r.ones, r.apart = 40, 6, time.Second, 12, 500*time.Millisecond
	}
	if o.Sabotage != "" {
		r.control = 1
	}
	if err := r.room(); err != nil {
		return err
	}
	if o.Applies > 0 {
		return r.longRun()
	}
	if err := r.ours(); err != nil {
		return err
	}
	if o.Sabotage == "" {
		if err := r.beside(); err != nil {
			return err
		}
		if err := r.single(); err != nil {
			return err
		}
	}
	r.judge()
	return r.write()
}

type reloadLab struct {
	Options
	ctx  context.Context
	out  io.Writer
	v    *Verdict
	here *Host

	services            int
	seconds, control    int // of ours with applies, and without
	peers, peersControl int
	held                int // flows that are opened while configurations change
	load                ReloadLoad
	probes              int           // of each kind: held flows that say something all the time
	period              time.Duration // from piece to piece of the other ones
	ones                int           // single changes of each kind
	apart               time.Duration // of each part of the last scene
	nofile              int
	results             []*reloadResult
	singles             []singleResult
	aparts              []apartResult
	fsync               Histogram // of the disk of the journal
}

func (r *reloadLab) phase(format string, args ...any) {
	_, _ = fmt.Fprintf(r.out, "== %6.2f s  %s\n", time.Since(r.began).Seconds(), fmt.Sprintf(format, args...))
}

// appliesPerSecond is how often configurations change.
const appliesPerSecond = 10

// lateAfter is how long a change may take: the next one is due then.
const lateAfter = time.Second / appliesPerSecond

// room says how many held flows there may be: a flow has two descriptors in the
// balancer, and two more in the process of its ends.
func (r *reloadLab) room() error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return err
	}
	r.nofile = int(min(lim.Max, 1<<20))
	if need := 2*r.services + 1000; r.nofile < need {
		return fmt.Errorf("lab: RLIMIT_NOFILE is %d, and %d services need %d", r.nofile, r.services, need)
	}
	// Beside them there are a listener for each service, idle legs to the
	// servers, the load, and some that are not for flows.
	r.held = (r.nofile - r.services - 2500) / 2
	if r.Short {
		r.held = 40 * r.seconds
	}
	if r.Flows > 0 {
		r.held = r.Flows
	}
	if r.held <= 0 {
		return fmt.Errorf("lab: RLIMIT_NOFILE of %d leaves no room for held flows", r.nofile)
	}
	return nil
}

// reloadResult is one run: one row of the table.
type reloadResult struct {
	who       string
	seconds   int
	due       int // generations
	tried     int
	effective int // that showed in answers
	late      int
	took      Histogram // until it showed
	asked     Histogram // until the balancer said so, if it does
	most      weight
	rss, own  int // octets, at the end: resident; each page that is shared counted once
	files     int // descriptors, at the end
	held      int // flows that were open at once
	report    ReloadReport
	wrong     []string
	ended     string // why it ended early
	counters  map[string]int64
	silent    map[string]uint64
}

func (x *reloadResult) heldBroken() (n int) {
	for k := range x.report.Counts.Broken {
		n += x.report.Counts.Broken[k] + x.report.Counts.Unopened[k]
	}
	return n
}

func (x *reloadResult) idleClosed() int {
	c := &x.report.Counts
	return c.IdleClosed + c.KeptClosed
}

// stall is the delay of what is under way, in the phases of the run.
func (x *reloadResult) delay(of int) ReloadDelay {
	d := x.report.Delays[phaseQuiet][of]
	if a := x.report.Delays[phaseApplies][of]; a.N > 0 {
		d = a
	}
	return d
}

// driver is the process with all clients and servers.
type driver struct {
	*rpc.Client
	process *Process
}

func (r *reloadLab) driver(name string) (*driver, error) {
	socket := filepath.Join(r.here.world.Dir, name+".driver")
	p, err := r.here.Start(name+"-driver", []string{stageEnv + "=" + stageReload}, "/proc/self/exe", fmt.Sprint(r.Seed), socket,
		"a="+serverA, "b="+serverB, "apart="+serverApart, "other="+serverOther)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.ctx, readyPatience)
	defer cancel()
	if err := p.WaitLine(ctx, "ready:"); err != nil {
		return nil, err
	}
	c, err := rpc.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	return &driver{c, p}, nil
}

func (d *driver) end() {
	_ = d.Close()
	d.process.Kill()
}

// begin starts the balancer with the services and the traffic, and waits until
// every service answers.
func (r *reloadLab) begin(name string, side reloadSide, f *serviceFleet, y *syntax) (*driver, error) {
	d, err := r.driver(name)
	if err != nil {
		return nil, err
	}
	if err := side.start(r.ctx, y.file(f)); err != nil {
		return d, err
	}
	all := f.ports(func(service) bool { return true })
	client, err := newReloadDriver(r.Seed, nil)
	if err != nil {
		return d, err
	}
	for _, port := range all {
		// What is checked serves after its first check.
		err := errors.New("")
		if !eventually(20*time.Second, func() bool { err = client.once(loopbackPort(port)); return err == nil }) {
			return d, fmt.Errorf("lab: %s: the service at %d does not answer: %w\n%s", name, port, err, side.logs())
		}
	}
	q := r.load
	q.All, q.Ports = all, f.ports(func(s service) bool { return s.class != classTCP })
	if err := d.Call("Driver.Load", q, new(bool)); err != nil {
		return d, err
	}
	tcp, web := f.ports(func(s service) bool { return s.class == classTCP }), f.ports(func(s service) bool { return s.class == classRoutes })
	var probes []ReloadHeld
	for i := range r.probes {
		probes = append(probes, ReloadHeld{Kind: int(heldTCP), Port: tcp[i%len(tcp)], Period: probePeriod, N: 1},
			ReloadHeld{Kind: int(heldWebSocket), Port: web[i%len(web)], Period: probePeriod, N: 1},
			ReloadHeld{Kind: int(heldStream), Port: web[i%len(web)], Period: probePeriod, N: 1})
	}
	opened := 0
	if err := d.Call("Driver.Open", probes, &opened); err != nil {
		return d, err
	}
	if opened < len(probes) {
		return d, fmt.Errorf("lab: %s: %d of %d held flows could be opened: %s", name, opened, len(probes), r.faults(d))
	}
	return d, nil
}

func (r *reloadLab) faults(d *driver) string {
	var x ReloadReport
	if err := d.Call("Driver.Look", true, &x); err != nil {
		return err.Error()
	}
	return strings.Join(x.Faults, "\n")
}

// probePeriod is how often a probe says something: a stall of this length cannot
// hide from it.
const probePeriod = 50 * time.Millisecond

// run is one run of so many seconds, with applies or without any.
func (r *reloadLab) run(name string, side reloadSide, y *syntax, seconds int, applies bool) (*reloadResult, error) {
	x := &reloadResult{who: name, seconds: seconds, due: seconds * appliesPerSecond}
	f := newServiceFleet(r.services)
	d, err := r.begin(name, side, f, y)
	if d != nil {
		defer d.end()
	}
	defer side.stop()
	if err != nil {
		return x, err
	}
	time.Sleep(time.Second) // what begins together shall have begun
	before, err := r.here.Counters()
	if err != nil {
		return x, err
	}
	phase := phaseQuiet
	if applies {
		phase = phaseApplies
	}
	if err := d.Call("Driver.Phase", phase, new(ReloadPhase)); err != nil {
		return x, err
	}
	stop, weighed := make(chan struct{}), make(chan weight, 1)
	go func() { weighed <- watchWeight(side.program(), stop) }()
	s := &reloadRun{reloadLab: r, x: x, f: f, y: y, d: d, side: side, applies: applies, until: time.Now().Add(time.Duration(seconds) * time.Second)}
	err = s.applyAll()
	close(stop)
	x.most = <-weighed
	if err != nil {
		return x, err
	}
	w := weigh(side.program())
	x.rss, x.own, x.files = w.rss, proportional(side.program()), openFiles(side.program())
	after, err := r.here.Counters()
	if err != nil {
		return x, err
	}
	x.counters = map[string]int64{}
	for _, k := range reloadCounters {
		x.counters[k] = after[k] - before[k]
	}
	if h, ok := side.(*reloadHoldfast); ok {
		x.silent = h.silent
		st, err := h.node.status(r.ctx)
		if err != nil {
			return x, err
		}
		if st.ResetByMove+st.Lost+st.LostTotal > 0 {
			x.wrong = append(x.wrong, fmt.Sprintf("the product's own account: %d reset by a move, %d lost", st.ResetByMove, st.Lost+st.LostTotal))
		}
	}
	return x, d.Call("Driver.Finish", true, &x.report)
}

// reloadCounters are the kernel's of what is lost in silence.
var reloadCounters = []string{"ListenDrops", "ListenOverflows", "AttemptFails", "EstabResets", "OutRsts", "TCPAbortOnMemory", "TCPReqQFullDrop", "RetransSegs", "TCPTimeouts"}

// reloadRun is the time in which configurations change.
type reloadRun struct {
	*reloadLab
	x       *reloadResult
	f       *serviceFleet
	y       *syntax
	d       *driver
	side    reloadSide
	applies bool
	until   time.Time

	client *reloadDriver
	same   *keptConn // a client that stays on its connection
	struck bool
}

func (s *reloadRun) applyAll() (err error) {
	if s.client, err = newReloadDriver(s.Seed, nil); err != nil {
		return err
	}
	if _, ours := s.side.(*reloadHoldfast); ours && s.applies {
		if s.same, err = dialKept(loopbackPort(apartPort)); err != nil {
			return err
		}
		defer func() { _ = s.same.c.Close() }()
	}
	began, open, asked := time.Now(), 0, 0
	for i := 1; i <= s.x.due; i++ {
		var text string
		var proofs []proof
		if s.applies {
			proofs = s.f.next(i)
			text = s.y.file(s.f)
		}
		time.Sleep(time.Until(began.Add(time.Duration(i-1) * lateAfter)))
		if time.Now().After(s.until) {
			break
		}
		if s.same == nil && memoryShort() {
			s.x.ended = errNoMemory.Error()
			break
		}
		if s.applies {
			before := s.x.effective
			if err := s.one(i, text, proofs); err != nil {
				return err
			}
			if s.same == nil && s.x.effective == before {
				continue // of a peer that has not gone over there is nothing to open yet
			}
		}
		// As many as are due by now: who is slower shall hold as many in the end.
		share := min(1, float64(time.Since(began)+lateAfter)/float64(s.until.Sub(began)))
		n, opened := int(float64(s.held)*share)-asked, 0
		asked += n
		if err := s.d.Call("Driver.Open", s.plan(i, n), &opened); err != nil {
			return err
		}
		open += opened
		if err := s.strike(i); err != nil {
			return err
		}
	}
	time.Sleep(time.Until(s.until))
	s.x.held = open + 3*s.probes
	return s.ctx.Err()
}

// plan says where n flows are opened under generation i. Without applies it is
// the same kinds of services.
func (s *reloadRun) plan(i, n int) []ReloadHeld {
	all := s.f.heldPlan(i, n)
	for k := range all {
		all[k].Period = s.period
		if !s.applies {
			all[k].Generation, all[k].Path = 0, ""
			all[k].Port = servicePort + s.f.at([]serviceClass{classTCP, classRoutes, classRoutes, classEndpoint}[k], i)
		}
	}
	return slices.DeleteFunc(all, func(q ReloadHeld) bool { return q.N == 0 })
}

// proofEvery is how soon a peer is asked again whether it has gone over.
const proofEvery = 5 * time.Millisecond

// one goes over to generation i and proves it.
func (s *reloadRun) one(i int, text string, proofs []proof) error {
	x := s.x
	x.tried++
	began := time.Now()
	atOnce, err := true, error(nil)
	switch {
	case s.Sabotage == SkipApply && i == x.due/2:
	case s.Sabotage == KillOne && i == x.due/2:
		err = s.side.(*reloadHoldfast).again(s.ctx, text)
	default:
		atOnce, err = s.side.apply(s.ctx, text)
	}
	if err != nil {
		x.wrong = append(x.wrong, fmt.Sprintf("generation %d: %s", i, errorText(err)))
		return s.ctx.Err()
	}
	said := time.Since(began)
	for {
		if err = s.prove(proofs); err == nil || atOnce || time.Now().After(s.until) || s.ctx.Err() != nil {
			break
		}
		time.Sleep(proofEvery)
	}
	took := time.Since(began)
	if atOnce {
		took = said // one request each, sent after the answer: what they took is theirs
		x.asked.Add(said)
	}
	if err != nil {
		if atOnce || len(x.wrong) == 0 {
			x.wrong = append(x.wrong, fmt.Sprintf("generation %d after %v: %s", i, took, errorText(err)))
		}
		return s.ctx.Err()
	}
	x.effective++
	x.took.Add(took)
	if took > lateAfter {
		x.late++
	}
	return nil
}

// prove tries all proofs at once, and then on a connection that was there before.
func (s *reloadRun) prove(all []proof) error {
	errs := make([]error, len(all))
	var tries sync.WaitGroup
	for i, p := range all {
		tries.Go(func() { errs[i] = p.prove(s.client) })
	}
	tries.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	if s.same == nil {
		return nil
	}
	p := proof{what: "another route, on a connection that was there before", port: apartPort, generation: fmt.Sprint(s.f.apart), server: "other"}
	head, err := s.same.ask(s.client, "/b", 100)
	if err != nil {
		_ = s.same.c.Close()
		if k, e := dialKept(loopbackPort(apartPort)); e == nil {
			s.same = k
		}
		return fmt.Errorf("%s: %w", p.what, err)
	}
	return p.shows(head)
}

// strike breaks something in the middle of the run if that was asked for.
func (s *reloadRun) strike(i int) error {
	if s.struck || i < s.x.due/2 || s.Sabotage != DropOctet && s.Sabotage != RSTOne || !s.applies {
		return nil
	}
	s.struck = true
	return s.d.Call("Driver.Strike", s.Sabotage, new(bool))
}

func (r *reloadLab) holdfast(name string) *reloadHoldfast {
	return &reloadHoldfast{binary: r.Binary, at: r.here, name: name}
}

// ours runs the product without applies, then with them.
func (r *reloadLab) ours() error {
	for _, applies := range []bool{false, true} {
		name, seconds := "holdfast", r.seconds
		if !applies {
			name, seconds = "holdfast, no applies", r.control
		}
		r.phase("%s: %d services, %d s, %d held flows", name, r.services, seconds, r.held)
		x, err := r.run(strings.NewReplacer(" ", "-", ",", "").Replace(name), r.holdfast(fmt.Sprintf("ours-%v", applies)), holdfastSyntax(), seconds, applies)
		if err != nil {
			return err
		}
		x.who = name
		r.results = append(r.results, x)
		r.say(x)
	}
	return nil
}

// beside runs the peers, where they are installed.
func (r *reloadLab) beside() error {
	nginxDir := filepath.Join(r.here.world.Dir, "nginx")
	// Each generation of them could hold all flows, as ours does: nginx with its two
	// workers, haproxy with two descriptors for each, its listeners and its checks.
	connections, maxconn := r.held+2*r.services+1000, (r.nofile-500)/2-5*r.services/4
	for _, p := range []struct {
		name   string
		path   string
		side   func() reloadSide
		syntax func() *syntax
	}{
		{"haproxy", haproxyPath, func() reloadSide { return &reloadHAProxy{at: r.here, name: "haproxy"} },
			func() *syntax { return haproxySyntax(filepath.Join(r.here.world.Dir, "haproxy.stats"), maxconn) }},
		{"nginx", nginxPath, func() reloadSide { return &reloadNginx{at: r.here, dir: nginxDir} },
			func() *syntax { return nginxSyntax(nginxDir, connections) }},
	} {
		if _, err := os.Stat(p.path); err != nil {
			r.v.Say("%s is not here: nothing is shown beside it (make deps installs it)", p.path)
			continue
		}
		for _, applies := range []bool{false, true} {
			name, seconds := p.name, r.peers
			if !applies {
				name, seconds = p.name+", no applies", r.peersControl
			}
			if seconds == 0 {
				continue
			}
			r.phase("%s: %d services, %d s", name, r.services, seconds)
			_ = os.RemoveAll(nginxDir)
			_ = os.Remove(filepath.Join(r.here.world.Dir, "haproxy.stats"))
			x, err := r.run(p.name+fmt.Sprint(applies), p.side(), p.syntax(), seconds, applies)
			if err != nil {
				return err
			}
			x.who = name
			r.results = append(r.results, x)
			r.say(x)
		}
	}
	return nil
}
