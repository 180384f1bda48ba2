package node

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/health"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/probe"
)

// watch puts in force what the judges of package health say. Its probes run in
// one process of a node at a time: they begin when this one accepts and end
// when a successor does.
type watch struct {
	n       *Node
	began   time.Time
	wake    chan struct{}
	alarmed atomic.Bool // somebody failed: judge now and not at the next second

	// mu guards what follows, and that standings reach the ledger in the order in
	// which they were judged.
	mu      sync.Mutex
	judges  map[string]*judge // by backend
	ordered map[string]bool   // backends with orders
	away    map[string]bool   // nodes that are to be free
	engine  *probe.Engine     // nil while another process watches
	end     chan struct{}     // of the goroutine that ticks; nil while there is none
	ended   chan struct{}
	given   bool           // a successor has it all: nothing may be changed here
	lines   int            // logged in this second
	unsaid  map[string]int // by transition: what was too much for it
	sayAt   health.Instant // its end
}

// judge is the one of a backend, and what it judges by.
type judge struct {
	*health.Backend
	of       *config.Backend
	book     *ledger.Backend
	accounts map[string]*ledger.Endpoint // by full name
	serving  map[string]bool             // as put in force
	tickedAt health.Instant
	flushed  health.Instant
	pending  bool // it has something to put in force
}

// Checks of many endpoints of one backend come to their ends together, and each
// change makes new rosters: those within so long are put in force together.
const flushEvery = 20 * time.Millisecond

// judgeEvery is how often what clients met is judged without an alarm.
const judgeEvery = time.Second

func newWatch(n *Node) *watch {
	return &watch{n: n, began: time.Now(), wake: make(chan struct{}, 1), judges: map[string]*judge{}}
}

func (w *watch) now() health.Instant { return health.Instant(1 + time.Since(w.began)) }

// alarm has the judges look at once. It is called from loops and never blocks.
func (w *watch) alarm(string) {
	if !w.alarmed.Swap(true) {
		w.stir()
	}
}

func (w *watch) stir() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// govern brings judges and probes to c. fresh: the process has just begun.
func (w *watch) govern(c *config.Config, fresh bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	for _, b := range c.Backends {
		w.rule(b, now, fresh)
	}
	for name := range w.judges {
		if c.Backends[name] == nil {
			delete(w.judges, name)
		}
	}
	w.target()
	w.stir()
}

// follow is govern for what a plan has changed, which gave c.
func (w *watch) follow(p config.Plan) {
	if len(p.BackendsAdded)+len(p.BackendsChanged)+len(p.BackendsRemoved) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	var gone, next []probe.Target
	one := func(b *config.Backend) {
		if j := w.judges[b.Ref.Name]; j != nil {
			gone = append(gone, w.targets(j)...)
		}
		next = append(next, w.targets(w.rule(b, now, false))...)
	}
	for _, b := range p.BackendsAdded {
		one(b)
	}
	for _, c := range p.BackendsChanged {
		one(c.New)
	}
	for _, b := range p.BackendsRemoved {
		if j := w.judges[b.Ref.Name]; j != nil {
			gone = append(gone, w.targets(j)...)
			delete(w.judges, b.Ref.Name)
		}
	}
	if w.engine != nil {
		w.engine.Replace(gone, next)
	}
	w.stir()
}

// rule brings the judge of a backend to b. The caller holds mu.
func (w *watch) rule(b *config.Backend, now health.Instant, fresh bool) *judge {
	name := b.Ref.Name
	j := w.judges[name]
	if j == nil {
		j = &judge{Backend: health.New(name), book: w.n.shared.Ledger.Backend(name), serving: map[string]bool{}}
		j.Evacuate(now, w.away)
		w.judges[name] = j
	}
	if j.of == b {
		return j
	}
	j.of = b
	j.Govern(now, b, fresh)
	j.accounts = make(map[string]*ledger.Endpoint, len(b.Endpoints))
	for _, e := range b.Endpoints {
		j.accounts[e.Ref.Name] = j.book.Endpoint(e.Ref.Name)
	}
	j.Met(j.tries)
	for name := range j.serving {
		if j.accounts[name] == nil {
			delete(j.serving, name)
		}
	}
	w.flush(j, now)
	return j
}

// targets are what is probed for a judge.
func (w *watch) targets(j *judge) []probe.Target {
	return probe.Targets(j.of, func(endpoint string) bool { return !j.Unprobed(endpoint) })
}

// obeyed gives the backends that have orders in d, or had some when this was
// asked the last time. The caller holds mu.
func (w *watch) obeyed(d *desired) []string {
	all := w.ordered
	w.ordered = map[string]bool{}
	for name := range d.orders {
		w.ordered[backendOf(name)] = true
	}
	if all == nil {
		all = map[string]bool{}
	}
	maps.Copy(all, w.ordered)
	return slices.Collect(maps.Keys(all))
}

// noteOrdered notes that an endpoint of a backend may be as it was ordered, so
// that it is looked at when the order is taken back. The caller holds mu.
func (w *watch) noteOrdered(backend string) {
	if w.ordered == nil {
		w.ordered = map[string]bool{}
	}
	w.ordered[backend] = true
}

// target tells the engine what is to be probed. The caller holds mu.
func (w *watch) target() {
	if w.engine == nil {
		return
	}
	var all []probe.Target
	for _, j := range w.judges {
		all = append(all, w.targets(j)...)
	}
	w.engine.Set(all)
}

// begin lets the probes run, and time pass; again after leave, if the successor
// did not come up.
func (w *watch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.given = false
	if w.end != nil {
		return
	}
	w.engine = probe.New(w.probed)
	w.end, w.ended = make(chan struct{}), make(chan struct{})
	w.target()
	go w.run(w.end, w.ended) // ended by leave
}

// leave ends the probes, and with given all changes: what Save tells from now on
// stays true until begin.
func (w *watch) leave(given bool) {
	w.mu.Lock()
	engine, end, ended := w.engine, w.end, w.ended
	w.engine, w.end, w.given = nil, nil, given
	w.mu.Unlock()
	if end != nil {
		close(end)
		<-ended
		engine.Stop()
	}
}

// probed takes the result of a probe to its judge.
func (w *watch) probed(t *probe.Target, r health.Result) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	j := w.judges[backendOf(t.Name)]
	if j == nil || w.engine == nil || !w.engine.Current(t) {
		return t.Every // nobody wants it any more
	}
	now := w.now()
	if t.Agent && !r.Good && t.Check.Kind != config.CheckAgent {
		j.AgentSilent(now, t.Name, r.Why)
	} else {
		j.Probed(now, t.Name, r)
	}
	w.soon(j, now)
	if t.Agent {
		return t.Check.Agent.Interval
	}
	return j.Interval(t.Name)
}

// soon puts in force what a judge has said, at once if it has been silent for a
// while. The caller holds mu.
func (w *watch) soon(j *judge, now health.Instant) {
	if !j.Changed() {
		return
	}
	if now-j.flushed >= health.Instant(flushEvery) {
		w.flush(j, now)
	} else if !j.pending {
		j.pending = true
		w.stir()
	}
}

// flush puts in force what a judge has said since the last time, and has idle
// connections closed to whatever serves no more. The caller holds mu.
func (w *watch) flush(j *judge, now health.Instant) {
	out := w.put(j, now)
	for _, l := range w.n.shared.Loops {
		for _, name := range out {
			l.Do(func(l *loop.Loop) { l.CloseIdle(name) })
		}
	}
}

// put is flush without connections: it gives the endpoints that serve no more.
func (w *watch) put(j *judge, now health.Instant) (out []string) {
	j.flushed, j.pending = now, false
	t := j.Take()
	if len(t.Standings) > 0 {
		changes := make(map[string]func(*ledger.Standing), len(t.Standings))
		for name, s := range t.Standings {
			changes[name] = func(x *ledger.Standing) { *x = s }
			serves := health.Serves(s)
			if j.serving[name] && !serves {
				out = append(out, name)
			}
			j.serving[name] = serves
		}
		j.book.StandMany(changes)
	}
	if t.Breaker != nil {
		j.book.SetBreaker(t.Breaker.State, t.Breaker.Probes)
	}
	for _, x := range t.Transitions {
		w.log(x)
	}
	return out
}

// linesMax bounds the lines of transitions in a second. A network that fails
// takes thousands of endpoints with it: then the others are counted.
const linesMax = 100

// say tells what was too much for the second that is over. The caller holds mu.
func (w *watch) say(now health.Instant) {
	if now < w.sayAt {
		return
	}
	if len(w.unsaid) > 0 {
		var args []any
		for _, what := range slices.Sorted(maps.Keys(w.unsaid)) {
			args = append(args, what, w.unsaid[what])
		}
		w.n.log.Warn("many endpoints changed at once; not each was told of", args...)
	}
	w.lines, w.unsaid, w.sayAt = 0, map[string]int{}, now+health.Instant(time.Second)
}

// log writes one line for a transition.
func (w *watch) log(t health.Transition) {
	w.say(w.now())
	if w.lines++; w.lines > linesMax && !t.First && t.What != health.Ordered {
		w.unsaid[string(t.What)]++
		w.stir() // to be told of when the second is over
		return
	}
	level := slog.LevelInfo
	switch {
	case t.First: // thousands at once when a node begins
		level = slog.LevelDebug
	case t.Why == health.ByOperator: // SetEndpoint has a line for it
		level = slog.LevelDebug
	case t.What == health.Down, t.What == health.Ejected, t.What == health.Spared, t.What == health.BreakerMove && t.State != ledger.Closed.String():
		level = slog.LevelWarn
	}
	args := []any{"endpoint", t.Endpoint}
	if t.Endpoint == "" {
		args = []any{"backend", t.Backend}
	}
	args = append(args, "state", t.State, "why", t.Why)
	if t.For > 0 {
		args = append(args, "for", t.For)
	}
	subject := "endpoint " + string(t.What)
	if t.Endpoint == "" {
		subject = "backend " + string(t.What)
	}
	w.n.log.Log(context.Background(), level, subject, args...)
	if level > slog.LevelDebug {
		object := "endpoint/" + t.Endpoint
		if t.Endpoint == "" {
			object = "backend/" + t.Backend
		}
		w.n.events.note(Event{Kind: "endpoint", Object: object, Text: fmt.Sprintf("%s %s: %s", t.Endpoint, t.State, t.Why), Fields: map[string]string{"state": t.State, "what": string(t.What), "why": t.Why}})
	}
}

// run does what time brings until end is closed.
func (w *watch) run(end, ended chan struct{}) {
	defer close(ended)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-end:
			return
		case <-w.wake:
		case <-timer.C:
		}
		timer.Reset(w.tick(w.alarmed.Swap(false)))
	}
}

// tick judges what is due, or all that clients' failures are judged of, and
// tells when to come back.
func (w *watch) tick(alarmed bool) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	next := now + health.Instant(time.Hour)
	if w.say(now); len(w.unsaid) > 0 {
		next = w.sayAt
	}
	for _, j := range w.judges {
		due := j.Next(now)
		watches := j.Watches()
		if due != 0 && due <= now || watches && (alarmed || now-j.tickedAt >= health.Instant(judgeEvery)) {
			j.tickedAt = now
			j.Tick(now, j.total(), j.tries)
			if j.Changed() {
				w.flush(j, now) // what is ejected fails someone now
			}
			due = j.Next(now)
		}
		if j.pending {
			if at := j.flushed + health.Instant(flushEvery); at <= now {
				w.flush(j, now)
			} else {
				next = min(next, at)
			}
		}
		if due != 0 {
			next = min(next, due)
		}
		if watches {
			next = min(next, j.tickedAt+health.Instant(judgeEvery))
		}
	}
	return max(time.Duration(next-now), time.Millisecond)
}

// total and tries are what the ledger has counted.
func (j *judge) total() health.Tries {
	attempts, failures := j.book.Tries()
	return health.Tries{Attempts: attempts, Failures: failures}
}

func (j *judge) tries(endpoint string) health.Tries {
	e := j.accounts[endpoint]
	attempts, failures := e.Tries()
	return health.Tries{Attempts: attempts, Failures: failures, Consecutive: e.Consecutive()}
}

// save is what a successor restores, as it is seen from an instant.
func (w *watch) save(now health.Instant) []health.Saved {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]health.Saved, 0, len(w.judges))
	for _, j := range w.judges {
		out = append(out, j.Save(now))
	}
	return out
}

// saveSince is save of what a successor does not know yet.
func (w *watch) saveSince(now health.Instant, t *heirKnows) (out []health.Saved) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, j := range w.judges {
		// As seen from the same instant, what has not changed is the same.
		was, then := t.health[name], j.Save(t.at)
		if !then.Same(&was) {
			out = append(out, j.Save(now).Since(then, was))
		}
	}
	return out
}

// restore takes over what a predecessor has saved.
func (w *watch) restore(saved []health.Saved) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	for _, s := range saved {
		if j := w.judges[s.Backend]; j != nil {
			j.Restore(now, s)
			w.flush(j, now)
		}
	}
	w.target()
}

// HealthStats are figures of checks and of what follows from them.
type HealthStats struct {
	// Counts are by backend. They come along with an upgrade and never fall.
	Counts map[string]health.Counts `json:"counts"`
	Engine probe.Stats              `json:"engine"`
}

// HealthStats gives the figures of checks now.
func (n *Node) HealthStats() HealthStats {
	w := n.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	s := HealthStats{Counts: make(map[string]health.Counts, len(w.judges))}
	for name, j := range w.judges {
		s.Counts[name] = j.Counts()
	}
	if w.engine != nil {
		s.Engine = w.engine.Stats()
	}
	return s
}
