// Package probe asks endpoints and the agents beside them how they are: ten
// thousand of them without a burst, each in its own time. What an answer means
// is not its affair; package health judges.
//
// One goroutine knows the schedule. Each probe is a short goroutine of its own,
// of which only so many run at once. Those that time out have places apart, so
// that a rack that has died delays nobody's probe but its own.
package probe

import (
	"container/heap"
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/health"
)

// Target is what is probed in one manner: an endpoint, or its agent.
type Target struct {
	Name  string // of the endpoint, in full
	Agent bool   // the agent is asked, not the endpoint
	// Network is "tcp" or "unix", Address what net.Dial takes.
	Network, Address string
	Source           netip.Addr // where to dial from; invalid: the kernel chooses
	Check            *config.Check
	// New: nothing is known of it, so it is probed at once, and not when its turn
	// in the interval comes.
	New   bool
	Every time.Duration // the interval until a judge says another
}

// Targets are all that is to be probed of c. known tells of which endpoints
// something is known.
func Targets(c *config.Backend, known func(endpoint string) bool) []Target {
	if c.Check == nil {
		return nil
	}
	var all []Target
	for _, e := range c.Endpoints {
		if e.Drop != config.NoDrop || e.Unix == "" && !e.Addr.IsValid() {
			continue
		}
		t := Target{Name: e.Ref.Name, Network: "tcp", Check: c.Check, New: !known(e.Ref.Name), Every: c.Check.Interval}
		if c.Source.IsValid() && c.Source.Is4() == e.Addr.Addr().Is4() {
			t.Source = c.Source
		}
		at := func(port uint16) string {
			if port == 0 {
				port = e.Addr.Port()
			}
			return net.JoinHostPort(e.Addr.Addr().String(), strconv.Itoa(int(port)))
		}
		if c.Check.Kind != config.CheckAgent {
			probe := t
			switch {
			case e.Unix != "":
				probe.Network, probe.Address, probe.Source = "unix", e.Unix, netip.Addr{}
			case e.CheckPort != 0:
				probe.Address = at(e.CheckPort)
			default:
				probe.Address = at(c.Check.Port)
			}
			all = append(all, probe)
		}
		if a := c.Check.Agent; a != nil && e.Unix == "" {
			t.Agent, t.Address, t.Every = true, at(a.Port), a.Interval
			all = append(all, t)
		}
	}
	return all
}

// Judge takes the result of a probe and says how long the next one of the same
// target is away. It is called from many goroutines.
type Judge func(t *Target, r health.Result) time.Duration

// atOnce bounds the probes that run at once; as many places more are for those
// whose last probe timed out.
const atOnce = 256

// Engine probes targets from New to Stop.
type Engine struct {
	judge  Judge
	began  time.Time
	ctx    context.Context // ends what is under way; of Stop alone
	cancel context.CancelFunc
	wake   chan struct{}
	all    sync.WaitGroup

	// mu guards all below.
	mu      sync.Mutex
	tasks   map[key]*task
	queue   schedule
	lanes   [2]lane // of sound ones, of those that timed out
	live    map[net.Conn]struct{}
	added   uint64
	stats   Stats
	stopped bool
}

type key struct {
	name  string
	agent bool
}

// task is one target and when it is due.
type task struct {
	target  *Target
	request []byte        // of an HTTP check
	due     time.Duration // since the engine began
	phase   float64       // where in each interval it is due, from 0 to 1
	at      int           // in the schedule; -1: it waits for a place, or is under way
	slow    bool          // its last probe timed out
	gone    bool
	soon    bool // it shall be probed again at once: the target is another
}

// lane is a number of places for probes, and who waits for one.
type lane struct {
	running int
	waiting []*task
}

// Stats are figures of an engine.
type Stats struct {
	Targets int    `json:"targets"`
	Running int    `json:"running"`
	Waiting int    `json:"waiting"` // due, but no place is free
	Probes  uint64 `json:"probes"`  // that were begun
	// LateMax is by how much a probe began late at most since the last look.
	LateMax time.Duration `json:"late_max"`
}

// New begins an engine without targets.
func New(judge Judge) *Engine {
	e := &Engine{judge: judge, began: time.Now(), wake: make(chan struct{}, 1), tasks: map[key]*task{}, live: map[net.Conn]struct{}{}}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.all.Add(1)
	go e.schedule() // ended by Stop
	return e
}

// Set makes targets all that is probed. Those that it had keep their turn; a
// target whose address is another is as a new one.
func (e *Engine) Set(targets []Target) {
	e.mu.Lock()
	defer e.mu.Unlock()
	keep := make(map[key]bool, len(targets))
	for _, t := range targets {
		keep[key{t.Name, t.Agent}] = true
	}
	e.watch(targets)
	for k := range e.tasks {
		if !keep[k] {
			e.forget(k)
		}
	}
	e.stir()
}

// Replace is Set for those that change among many: gone are what it had of these,
// and next is what there is in place of them.
func (e *Engine) Replace(gone, next []Target) {
	e.mu.Lock()
	defer e.mu.Unlock()
	keep := make(map[key]bool, len(next))
	for _, t := range next {
		keep[key{t.Name, t.Agent}] = true
	}
	e.watch(next)
	for _, t := range gone {
		if k := (key{t.Name, t.Agent}); !keep[k] {
			e.forget(k)
		}
	}
	e.stir()
}

// forget ends the probing of one. The caller holds mu.
func (e *Engine) forget(k key) {
	x := e.tasks[k]
	if x == nil {
		return
	}
	x.gone = true
	if x.at >= 0 {
		heap.Remove(&e.queue, x.at)
	}
	delete(e.tasks, k)
}

// watch has targets be probed. The caller holds mu.
func (e *Engine) watch(targets []Target) {
	now := time.Since(e.began)
	var fresh []*task
	for i := range targets {
		t := &targets[i]
		k := key{t.Name, t.Agent}
		x := e.tasks[k]
		switch {
		case x == nil:
			// Steps of the golden ratio: however many there are, and whichever of
			// them leave, their phases lie evenly.
			const golden = 0.6180339887498949
			e.added++
			phase := float64(e.added) * golden
			x = &task{at: -1, phase: phase - float64(uint64(phase))}
			e.tasks[k] = x
			if t.New {
				fresh = append(fresh, x)
			} else {
				e.plan(x, now, t.Every)
			}
		case *x.target == *t:
			continue
		case x.target.Address != t.Address:
			x.slow = false
			if x.at < 0 {
				x.soon = true
			} else {
				heap.Remove(&e.queue, x.at)
				fresh = append(fresh, x)
			}
		case x.at >= 0 && x.due-now > max(t.Every, time.Millisecond):
			// It was planned when checks were further apart.
			heap.Remove(&e.queue, x.at)
			e.plan(x, now, t.Every)
		}
		x.target, x.request = t, request(t)
	}
	// Many new ones share a tenth of their interval.
	span := time.Duration(len(fresh)) * time.Millisecond
	for i, x := range fresh {
		x.due = now + min(span, x.target.Every/10)*time.Duration(i)/time.Duration(len(fresh))
		heap.Push(&e.queue, x)
	}
}

// Current tells whether a result of t is still wanted. Called under the lock
// under which Set is, it cannot change its mind meanwhile.
func (e *Engine) Current(t *Target) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	x := e.tasks[key{t.Name, t.Agent}]
	return !e.stopped && x != nil && x.target.Address == t.Address
}

// plan puts x where its phase comes round again, half an interval away at
// least: so targets lie evenly over the interval whatever happened to each. A
// little chance keeps them from falling in step with what else has a period.
func (e *Engine) plan(x *task, now, every time.Duration) {
	every = max(every, time.Millisecond)
	earliest := now + every/2
	due := earliest - earliest%every + time.Duration(x.phase*float64(every))
	if due < earliest {
		due += every
	}
	x.due = due + time.Duration((rand.Float64()-0.5)*float64(every)/jitter)
	heap.Push(&e.queue, x)
}

// jitter is what part of the interval a probe is early or late by chance, both
// together.
const jitter = 10

// stir has the scheduler look again.
func (e *Engine) stir() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// schedule begins what is due.
func (e *Engine) schedule() {
	defer e.all.Done()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		e.mu.Lock()
		now := time.Since(e.began)
		for len(e.queue) > 0 && e.queue[0].due <= now {
			e.begin(heap.Pop(&e.queue).(*task))
		}
		wait := time.Hour
		if len(e.queue) > 0 {
			wait = e.queue[0].due - now
		}
		e.mu.Unlock()
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-e.wake:
		case <-e.ctx.Done():
			return
		}
	}
}

// begin gives x a place, or lets it wait for one. The caller holds mu.
func (e *Engine) begin(x *task) {
	l := e.lane(x)
	if l.running >= atOnce {
		l.waiting = append(l.waiting, x)
		return
	}
	l.running++
	e.all.Add(1)
	go e.work(l, x) // ends when nobody waits in the lane; Stop waits for it
}

func (e *Engine) lane(x *task) *lane {
	if x.slow {
		return &e.lanes[1]
	}
	return &e.lanes[0]
}

// work probes x and then those that wait for the place.
func (e *Engine) work(l *lane, x *task) {
	defer e.all.Done()
	for x != nil {
		x = e.one(l, x)
	}
}

// one probes x once and gives who has its place next, nil for none.
func (e *Engine) one(l *lane, x *task) *task {
	e.mu.Lock()
	if x.gone || e.stopped {
		defer e.mu.Unlock()
		return e.next(l)
	}
	x.soon = false
	t, octets := x.target, x.request
	e.stats.Probes++
	e.stats.LateMax = max(e.stats.LateMax, time.Since(e.began)-x.due)
	e.mu.Unlock()

	r, slow := e.probe(t, octets)
	every := e.judge(t, r)

	e.mu.Lock()
	defer e.mu.Unlock()
	if x.slow = slow; !x.gone && !e.stopped {
		now := time.Since(e.began)
		if x.soon {
			x.due, x.slow = now, false
			heap.Push(&e.queue, x)
		} else {
			e.plan(x, now, every)
		}
		if x.at == 0 {
			e.stir() // it is the next one
		}
	}
	return e.next(l)
}

// next gives up a place: to who waits for it, or for good.
func (e *Engine) next(l *lane) *task {
	if len(l.waiting) > 0 && !e.stopped {
		x := l.waiting[0]
		l.waiting = l.waiting[1:]
		return x
	}
	l.running--
	return nil
}

// hold notes a connection under way, so that Stop can end it; false if it has
// come too late.
func (e *Engine) hold(c net.Conn) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.live[c] = struct{}{}
	return !e.stopped
}

func (e *Engine) release(c net.Conn) {
	e.mu.Lock()
	delete(e.live, c)
	e.mu.Unlock()
	_ = c.Close() // it was a probe: nothing of it is awaited
}

// Stop ends all probes and returns when none is under way. Results that come
// late are not wanted, which Current tells.
func (e *Engine) Stop() {
	e.mu.Lock()
	e.stopped = true
	e.cancel()
	for c := range e.live {
		_ = c.SetDeadline(time.Unix(1, 0))
	}
	e.mu.Unlock()
	e.all.Wait()
}

// Stats are the figures now.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.stats
	s.Targets = len(e.tasks)
	for i := range e.lanes {
		s.Running += e.lanes[i].running
		s.Waiting += len(e.lanes[i].waiting)
	}
	e.stats.LateMax = 0
	return s
}

// schedule is a heap by due.
type schedule []*task

// Len is how many there are.
func (s schedule) Len() int { return len(s) }

// Less orders by due.
func (s schedule) Less(i, j int) bool { return s[i].due < s[j].due }

// Swap swaps two.
func (s schedule) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	s[i].at, s[j].at = i, j
}

// Push appends a task.
func (s *schedule) Push(x any) {
	t := x.(*task)
	t.at = len(*s)
	*s = append(*s, t)
}

// Pop takes the last one.
func (s *schedule) Pop() any {
	old := *s
	t := old[len(old)-1]
	old[len(old)-1] = nil
	t.at = -1
	*s = old[:len(old)-1]
	return t
}
