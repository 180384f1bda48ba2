package lab

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// ledgerLab counts at the servers what the ledger promises: that no limit is
// exceeded by one, that shares are those of the weights, that queues keep their
// order, with one loop and with four, while flows move all the time. And that
// ten thousand checks are no burst.
func ledgerLab(ctx context.Context, o Options, out io.Writer, v *Verdict) error {
	w, here, err := newLoopback(o.dir)
	if err != nil {
		return err
	}
	defer w.Close()
	l := &ledgerRun{Options: o, ctx: ctx, out: out, v: v, here: here}
	for _, loops := range []int{1, 4} {
		if err := l.promises(loops); err != nil {
			return fmt.Errorf("with %d loops: %w", loops, err)
		}
	}
	return l.checks()
}

type ledgerRun struct {
	Options
	ctx  context.Context
	out  io.Writer
	v    *Verdict
	here *Host
}

func (l *ledgerRun) phase(format string, args ...any) {
	_, _ = fmt.Fprintf(l.out, "== %6.2f s  %s\n", time.Since(l.began).Seconds(), fmt.Sprintf(format, args...))
}

// Limits of the endpoints, and weights of those that share.
const (
	limitRequests    = 5
	limitConnections = 4
)

var shareWeights = []int{50, 30, 15, 5}

// shareKinds are the ways to share, each with a listener of its own.
var shareKinds = []string{"round-robin", "random", "least", "p2c"}

// config has two variants, which differ so that going from one to the other
// re-rules every flow, and not in what is counted.
func (l *ledgerRun) config(loops, variant int) string {
	var s strings.Builder
	fmt.Fprintf(&s, "node: { name: ledger, loops: %d, admin: { socket: SOCKET } }\nlisteners:\n", loops)
	listen := func(name string, port int, more string) {
		fmt.Fprintf(&s, "  %s: { vip: \"127.0.0.1:%d\", onChange: adopt, backend: %s%s }\n", name, port, name, more)
	}
	web := fmt.Sprintf(", protocol: http, http: { timeouts: { keepalive: %dh } }", 1+variant)
	listen("requests", 8100, web)
	listen("connections", 8101, fmt.Sprintf(", idleTimeout: %dh", 1+variant))
	for i, k := range shareKinds {
		listen(k, 8110+i, web)
	}
	listen("queue", 8102, web+`, routes: [ { match: { path: /high }, backend: queue, priority: high }, { match: { path: /low }, backend: queue, priority: low } ]`)
	s.WriteString("backends:\n")
	backend := func(name, more string) {
		fmt.Fprintf(&s, "  %s:\n    eject: off\n    connectTimeout: %ds\n%s    endpoints:\n", name, 5+variant, more)
	}
	endpoint := func(n, port int, more string) {
		fmt.Fprintf(&s, "      - { name: s%d, address: \"127.0.1.%d:%d\"%s }\n", n, n, port, more)
	}
	backend("requests", fmt.Sprintf("    balance: least\n    limits: { connectionsPerEndpoint: %d, queue: 5000, queueTime: 15s }\n", limitRequests))
	for n := 1; n <= 4; n++ {
		endpoint(n, shopPort, "")
	}
	backend("connections", fmt.Sprintf("    limits: { connectionsPerEndpoint: %d, queue: 5000, queueTime: 15s }\n", limitConnections))
	for n := 1; n <= 2; n++ {
		endpoint(n, shopPort+1, "")
	}
	for _, k := range shareKinds {
		backend(k, "    balance: "+k+"\n")
		for i, w := range shareWeights {
			endpoint(i+1, shopPort, fmt.Sprintf(", weight: %d", w))
		}
	}
	backend("queue", "    limits: { queue: 5000, queueTime: 5m }\n")
	endpoint(9, shopPort, ", connections: 1")
	return s.String()
}

// promises tries all that is exact, with so many loops.
func (l *ledgerRun) promises(loops int) error {
	var stands []*stand
	for n := 1; n <= 4; n++ {
		s, err := newStand(fmt.Sprintf("s%d", n), fmt.Sprintf("127.0.1.%d:%d", n, shopPort), l.Seed)
		if err != nil {
			return err
		}
		defer s.close()
		stands = append(stands, s)
	}
	var lines []*lineServer
	for n := 1; n <= 2; n++ {
		s, err := newLineServer(fmt.Sprintf("127.0.1.%d:%d", n, shopPort+1))
		if err != nil {
			return err
		}
		defer s.close()
		lines = append(lines, s)
	}
	node, err := startNode(l.ctx, l.Binary, l.here, fmt.Sprintf("ledger-%d", loops), l.config(loops, 0))
	if err != nil {
		return err
	}
	defer func() { node.end() }()
	m := &mixer{l: l, node: node, loops: loops}
	if err := l.limits(m, stands, lines); err != nil {
		return err
	}
	for _, s := range stands {
		s.most.Store(0)
	}
	for i, kind := range shareKinds {
		if err := l.share(m, stands, i, kind); err != nil {
			return err
		}
	}
	if err := l.queue(m); err != nil {
		return err
	}
	node.judgePromises(l.ctx, l.v)
	if l.v.Wrong() {
		l.v.Say("-- log of the balancer\n%s", node.process.Tail(20))
	}
	return nil
}

// mixer moves all flows again and again: with several loops between them, with
// one by a change of the configuration; and now and then to another process.
type mixer struct {
	l     *ledgerRun
	node  *shopNode
	loops int

	variant int
	flows   int
	moves   int
	upgrade bool // at the next one
	took    time.Duration
}

// movesPerSecond is how many flows shall move in each second, at least.
const movesPerSecond = 200

// move moves all flows once.
func (m *mixer) move(ctx context.Context) error {
	r := &MoveReport{}
	var err error
	switch {
	case m.upgrade:
		m.upgrade = false
		if r, err = m.node.succeed(ctx); err == nil {
			m.node.pid = r.PID
			m.node.api.CloseIdleConnections()
		}
	case m.loops > 1:
		err = m.node.call(ctx, "Rebalance", map[string]any{"all": true}, r)
	default:
		m.variant ^= 1
		r, err = m.node.apply(ctx, m.l.config(m.loops, m.variant))
	}
	if err != nil {
		return err
	}
	m.flows += r.Flows
	m.moves++
	return nil
}

// during moves flows until done returns, and counts.
func (m *mixer) during(done func()) error {
	ctx, stop := context.WithCancel(m.l.ctx)
	m.flows, m.moves = 0, 0
	began := time.Now()
	errc := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if err := m.move(m.l.ctx); err != nil {
				errc <- err
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
		errc <- nil
	}()
	done()
	stop()
	err := <-errc
	m.took = time.Since(began)
	return err
}

// said is what was moved meanwhile.
func (m *mixer) said() string {
	return fmt.Sprintf("%d moves of %d flows, %.0f/s", m.moves, m.flows, m.rate())
}

func (m *mixer) rate() float64 { return float64(m.flows) / m.took.Seconds() }

// limits asks for far more than the endpoints may have, and has the servers count.
func (l *ledgerRun) limits(m *mixer, stands []*stand, lines []*lineServer) error {
	long := 15 * time.Second
	if l.Short {
		long = 1200 * time.Millisecond
	}
	l.phase("%d loops: limits", m.loops)
	web := newCrowd(l.ctx, "127.0.0.1:8100", l.Seed)
	web.keepAlive(60, 0, 5*time.Millisecond)
	tcp := newCrowd(l.ctx, "127.0.0.1:8101", l.Seed)
	tcp.each(30, 0, false, func(_ *caller, r *rand.Rand) { tcp.note(answered{Status: 200}, lineSession(tcp.to, r)) })
	m.upgrade = !l.Short
	stands[0].drops.Store(l.Sabotage == DropOctet)
	err := m.during(func() { time.Sleep(long) })
	web.end()
	tcp.end()
	with := fmt.Sprintf(" with %d loops", m.loops)
	for _, s := range stands {
		l.v.Must(s.most.Load() == limitRequests, "most requests open at "+s.name+with, fmt.Sprint(s.most.Load()), fmt.Sprint(limitRequests))
	}
	for i, s := range lines {
		l.v.Must(s.most.Load() == limitConnections, fmt.Sprintf("most connections open at s%d", i+1)+with, fmt.Sprint(s.most.Load()), fmt.Sprint(limitConnections))
	}
	l.v.Zero("requests failed at the limit"+with, web.failed())
	l.v.Zero("connections failed at the limit"+with, tcp.failed())
	l.v.Must(m.flows > 0, "flows moved meanwhile"+with, fmt.Sprint(m.flows), "more than 0")
	l.v.Goal(m.rate() >= movesPerSecond, "flows moved in a second"+with, fmt.Sprintf("%.0f", m.rate()), fmt.Sprintf("at least %d", movesPerSecond))
	l.v.Say("limits, %d loops: %d requests, %d connections, %s; %s %s", m.loops, web.answers(), tcp.answers(), m.said(), web.failures(), tcp.failures())
	l.v.Figure(fmt.Sprintf("limits_%d_loops", m.loops), map[string]any{"requests": web.answers(), "connections": tcp.answers(), "moved_per_second": m.rate()})
	return err
}

// shareGoal is how far a share may be from that of its weight: 2 % of it with
// round robin, and 2 points where chance or load decides.
const shareGoal = 2

// share has many requests shared by one algorithm, and counts who got them.
func (l *ledgerRun) share(m *mixer, stands []*stand, i int, kind string) error {
	enough := 20_000
	if l.Short && kind != "round-robin" {
		enough = 3_000
	}
	l.phase("%d loops: shares of %s", m.loops, kind)
	before := make([]int64, len(stands))
	for k, s := range stands {
		before[k] = s.served.Load()
	}
	c := newCrowd(l.ctx, fmt.Sprintf("127.0.0.1:%d", 8110+i), l.Seed)
	think := time.Duration(0)
	if kind == "least" {
		think = 4 * time.Millisecond // it goes by what is under way
	}
	c.each(40, 0, false, func(x *caller, r *rand.Rand) { c.note(x.ask("/o", 100, jitterOf(r, think), "", "")) })
	err := m.during(func() {
		for c.answers() < enough && c.failed() == 0 && l.ctx.Err() == nil {
			time.Sleep(5 * time.Millisecond)
		}
	})
	c.end()
	with := fmt.Sprintf(" of %s with %d loops", kind, m.loops)
	l.v.Zero("requests failed"+with, c.failed())
	all := int64(0)
	for k, s := range stands {
		all += s.served.Load() - before[k]
	}
	var said []string
	worst, points := 0.0, 0.0
	for k, s := range stands {
		got, want := 100*float64(s.served.Load()-before[k])/float64(max(1, all)), float64(shareWeights[k])
		said = append(said, fmt.Sprintf("%.2f %%", got))
		off := got - want
		if off < 0 {
			off = -off
		}
		points = max(points, off)
		worst = max(worst, 100*off/want)
	}
	text := strings.Join(said, ", ")
	switch kind {
	case "round-robin":
		l.v.Must(worst <= shareGoal, "worst share"+with, fmt.Sprintf("%.2f %% off its weight (%s)", worst, text), fmt.Sprintf("at most %d %%", shareGoal))
	case "random", "least":
		most := shareGoal
		if all < 20_000 || kind == "least" {
			most *= 2 // there is more of chance in few
		}
		l.v.Must(points <= float64(most), "worst share"+with, fmt.Sprintf("%.2f points off (%s)", points, text), fmt.Sprintf("at most %d points", most))
	}
	l.v.Say("shares of %-11s %d loops: %6d requests: %s for weights %v; %s", kind+",", m.loops, all, text, shareWeights, m.said())
	l.v.Figure(fmt.Sprintf("shares_%s_%d_loops", strings.ReplaceAll(kind, "-", "_"), m.loops), map[string]any{"requests": all, "worst_percent": worst, "worst_points": points})
	return err
}

// lineServer is a server of a protocol of lines that counts its connections. One
// counts until its client has said bye, not until it is closed: a balancer may
// open another one then, and what comes first is the kernel's affair.
type lineServer struct {
	lis        net.Listener
	open, most atomic.Int64
	all        sync.WaitGroup
	mu         sync.Mutex // guards at
	at         map[net.Conn]bool
}

func newLineServer(addr string) (*lineServer, error) {
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	s := &lineServer{lis: lis, at: map[net.Conn]bool{}}
	s.all.Go(func() { // ends with the listener
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.at[c] = true
			s.mu.Unlock()
			s.all.Go(func() { s.serve(c) })
		}
	})
	return s, nil
}

func (s *lineServer) serve(c net.Conn) {
	defer func() {
		_ = c.Close()
		s.mu.Lock()
		delete(s.at, c)
		s.mu.Unlock()
	}()
	now := s.open.Add(1)
	for most := s.most.Load(); now > most && !s.most.CompareAndSwap(most, now); most = s.most.Load() {
	}
	in := bufio.NewReaderSize(c, 256)
	for {
		line, err := in.ReadString('\n')
		if err != nil || line == "bye\n" {
			s.open.Add(-1)
			_, _ = io.WriteString(c, line)
			return
		}
		time.Sleep(5 * time.Millisecond)
		if _, err := io.WriteString(c, line); err != nil {
			s.open.Add(-1)
			return
		}
	}
}

func (s *lineServer) close() {
	_ = s.lis.Close()
	s.mu.Lock()
	for c := range s.at {
		reset(c)
	}
	s.mu.Unlock()
	s.all.Wait()
}

// lineSession is a client's: some lines, each of which comes back, and bye.
func lineSession(to string, r *rand.Rand) error {
	c, err := net.DialTimeout("tcp", to, callerPatience)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(callerPatience))
	in := bufio.NewReaderSize(c, 256)
	for i := range 4 {
		say := fmt.Sprintf("%d %d\n", i, r.Uint64())
		if i == 3 {
			say = "bye\n"
		}
		if _, err := io.WriteString(c, say); err != nil {
			return err
		}
		got, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		if got != say {
			return wrongAnswer{fmt.Sprintf("%q, want %q", got, say)}
		}
	}
	return nil
}
