// Package health judges endpoints: by what probes find, by what their agents
// say, by what clients meet, and by what an operator orders. It is a machine:
// facts and the time come in as arguments, standings for the ledger and
// transitions for the log come out.
//
// Four axes are kept apart for each endpoint, so that none forgets what another
// has said: the operator's order, the checks, the agent, and ejection by what
// clients met. The standing is what they are together.
//
//	checks:   checking -> up <-> draining     checking -> down <-> up
//	ejection: in -> out, for a growing time -> in
//	breaker:  closed -> open -> half-open -> closed, or open again
package health

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// Instant is a time in nanoseconds of a clock that never goes back. 0 is none.
type Instant int64

// after is the instant d later.
func (t Instant) after(d time.Duration) Instant { return t + Instant(d) }

// since is the time from one instant to t.
func (t Instant) since(from Instant) time.Duration { return time.Duration(t - from) }

// What says what a transition is. The words are those of logs and metrics.
type What string

// The transitions.
const (
	Up          What = "up"          // checks found it well
	Down        What = "down"        // checks found it dead, or its agent says so
	Draining    What = "draining"    // a check or the agent asks for nothing new
	Ejected     What = "ejected"     // clients met failures
	Returned    What = "returned"    // an ejection is over
	Spared      What = "spared"      // it should be ejected, and the share is used up
	Ordered     What = "ordered"     // the operator's state is another
	AgentOrder  What = "agent"       // what the agent says of state or weight is another
	BreakerMove What = "breaker"     // the backend's breaker has moved
	Readdressed What = "readdressed" // the name is now another server
)

// ByOperator is the Why of what an operator has ordered: who took the order
// tells of it.
const ByOperator = "by an operator"

// Transition is one change that a person may want to know of.
type Transition struct {
	Backend  string
	Endpoint string // full name; "" of the whole backend
	What     What
	State    string        // what it is now, as in "quiescing" or "open"
	Why      string        // as in "3 probes failed: connection refused"
	For      time.Duration // of an ejection or a hold; else 0
	First    bool          // what is found of an endpoint when a process begins
}

// Result is what a probe has found.
type Result struct {
	Good  bool
	Drain bool   // with Good: it answered that it wants nothing new
	Why   string // of what is not good; of what is, what was answered: "status 200"
	Took  time.Duration
	// Said are the words of an agent; nil of other probes.
	Said *Said
}

// Tries is what the ledger has counted for an endpoint or a backend.
type Tries struct {
	Attempts, Failures uint64
	Consecutive        int // failures since the last success; not of a backend
}

// Counts are for metrics; they never fall.
type Counts struct {
	Passed    uint64            `json:"passed"`  // probes
	Drained   uint64            `json:"drained"` // probes that asked for draining
	Failed    uint64            `json:"failed"`
	Ejections map[string]uint64 `json:"ejections"` // by reason
}

// Reasons of ejections.
const (
	reasonConsecutive = "consecutive"
	reasonRate        = "rate"
	reasonSpared      = "spared"
)

// Backend judges the endpoints of one backend. Its caller serializes calls.
type Backend struct {
	Name string

	of        *config.Backend
	endpoints map[string]*endpoint // by full name
	order     []*endpoint          // as in of
	breaker   breaker
	counts    Counts
	away      map[string]bool // nodes that are to be free; see Evacuate

	dirty map[string]bool // endpoints whose standing may have changed since Take
	out   []Transition
}

// endpoint is what is known of one.
type endpoint struct {
	name string // full
	of   *config.Endpoint

	// The operator's.
	admin     ledger.Admin
	weight    int     // -1: the file's
	readyAt   Instant // a hold ends by itself; 0: none does
	orderedAt Instant

	// The checks'.
	checked ledger.Health // Unknown: none is configured
	run     int           // results in a row that speak against checked
	need    int           // while Checking: results for up
	first   bool          // of a fresh process: no slow start at its first up
	anew    bool          // what was counted of it is another server's; see Met
	why     string        // of the last probe
	took    time.Duration // of the last probe
	since   Instant       // of checked

	agent agent

	// Ejection.
	ejectedUntil Instant // 0: it is not
	returnedAt   Instant
	times        int // ejections that are not forgotten
	last         time.Duration
	base         uint64 // attempts before the last return: what was then does not count
	seen         Tries  // when last looked
	spared       bool   // was told of
	window       *window

	rampFrom Instant         // of slow start; 0: none is under way
	standing ledger.Standing // as given out
	given    bool
}

// New makes a judge without endpoints.
func New(name string) *Backend {
	return &Backend{Name: name, endpoints: map[string]*endpoint{}, dirty: map[string]bool{}, counts: Counts{Ejections: map[string]uint64{}}}
}

// Govern brings b to c. Endpoints that stay keep all that is known of them.
// fresh: this process has just begun and nobody has told it anything, so one
// good probe is enough for an endpoint to serve; one that comes later needs as
// many as one that was down.
func (b *Backend) Govern(now Instant, c *config.Backend, fresh bool) {
	was := b.of
	b.of = c
	keep := make(map[string]*endpoint, len(c.Endpoints))
	b.order = b.order[:0]
	for _, x := range c.Endpoints {
		e := b.endpoints[x.Ref.Name]
		if e == nil {
			e = &endpoint{name: x.Ref.Name, weight: -1, agent: agent{permille: whole}, since: now, standing: ledger.Standing{Weight: -1, Permille: whole}}
			b.succeed(e, x)
			b.begin(e, x, now, fresh)
		} else {
			b.follow(e, x, was, now)
		}
		e.of = x
		if c.Eject != nil && c.Eject.Rate > 0 {
			if e.window == nil {
				e.window = &window{}
			}
		} else {
			e.window = nil
		}
		if c.Eject == nil {
			e.ejectedUntil, e.times = 0, 0
		}
		if c.Check == nil || c.Check.Agent == nil && c.Check.Kind != config.CheckAgent {
			e.agent = agent{permille: whole}
		}
		keep[e.name] = e
		b.order = append(b.order, e)
		b.touch(e, now)
	}
	b.endpoints = keep
	maps.DeleteFunc(b.dirty, func(name string, _ bool) bool { return keep[name] == nil })
	if c.Breaker == nil || was == nil {
		// The ledger is told: it may know one that is open, of a backend of this
		// name that was there before, and nothing would ever close that.
		b.breaker = breaker{moved: true}
	}
}

// succeed gives an address that its name has from now on the order that all the
// addresses had that the name had before: a server that comes back elsewhere is
// the one that was taken out.
func (b *Backend) succeed(e *endpoint, x *config.Endpoint) {
	name, is := nameOf(x)
	if !is {
		return
	}
	var one *endpoint
	for _, o := range b.endpoints {
		if other, is := nameOf(o.of); !is || other != name {
			continue
		}
		if one != nil && (one.admin != o.admin || one.weight != o.weight) {
			return
		}
		if one == nil || o.readyAt > one.readyAt {
			one = o
		}
	}
	if one != nil && one.of.Weight == x.Weight {
		e.weight = one.weight
	}
	if one != nil {
		e.admin, e.readyAt, e.orderedAt = one.admin, one.readyAt, one.orderedAt
	}
}

// nameOf is the full name of which x is one address.
func nameOf(x *config.Endpoint) (name string, is bool) {
	if x.Host == "" || !x.Addr.IsValid() {
		return "", false
	}
	i := strings.LastIndexByte(x.Ref.Name, '/')
	return x.Ref.Name[:max(0, i)], true
}

// Met tells what clients had met when an endpoint came, or became another
// server: that does not count against it. It is for after Govern.
func (b *Backend) Met(each func(name string) Tries) {
	for _, e := range b.order {
		if !e.anew {
			continue
		}
		t := each(e.name)
		e.anew, e.base, e.seen = false, t.Attempts, t
		if e.window != nil {
			e.window.n = 0
		}
	}
}

// probed tells whether probes judge x under c.
func probed(c *config.Backend, x *config.Endpoint) bool {
	return c.Check != nil && x.Drop == config.NoDrop
}

// begin puts an endpoint that is new where it starts.
func (b *Backend) begin(e *endpoint, x *config.Endpoint, now Instant, fresh bool) {
	e.run, e.since, e.first, e.anew = 0, now, fresh, true
	if !probed(b.of, x) {
		e.checked = ledger.Unknown
		return
	}
	e.checked, e.need, e.why = ledger.Checking, max(1, b.of.Check.Rise), "not probed yet"
	if fresh {
		e.need = 1
	}
}

// follow brings an endpoint that stays under a new configuration.
func (b *Backend) follow(e *endpoint, x *config.Endpoint, was *config.Backend, now Instant) {
	if e.of.Weight != x.Weight {
		e.weight = -1 // what was said last holds
	}
	switch {
	case e.of.Address() != x.Address():
		// Another server under an old name: the order is the operator's and stays.
		e.ejectedUntil, e.times, e.rampFrom = 0, 0, 0
		e.agent = agent{permille: whole}
		b.begin(e, x, now, false)
		if e.checked == ledger.Checking {
			b.tell(e, Readdressed, x.Address(), "its address is another", 0)
		}
	case !probed(b.of, x):
		e.checked, e.run, e.why = ledger.Unknown, 0, ""
	case !probed(was, e.of):
		// It has served without being probed: only failures end that.
		e.checked, e.run, e.why, e.since = ledger.Up, 0, "not probed yet", now
	}
}

// Probed notes what a probe of the endpoint has found.
func (b *Backend) Probed(now Instant, name string, r Result) {
	e := b.endpoints[name]
	if e == nil || b.of.Check == nil {
		return
	}
	switch {
	case !r.Good:
		b.counts.Failed++
	case r.Drain:
		b.counts.Drained++
	default:
		b.counts.Passed++
	}
	if r.Said != nil {
		b.said(e, now, r.Said)
	}
	if b.of.Check.Kind == config.CheckAgent || r.Said == nil {
		e.why, e.took = r.Why, r.Took
		b.step(e, now, r)
	}
	b.touch(e, now)
}

// AgentSilent notes that the agent beside a checked endpoint did not answer:
// what it said last stays in force.
func (b *Backend) AgentSilent(now Instant, name, why string) {
	if e := b.endpoints[name]; e != nil {
		b.counts.Failed++
		e.agent.why = why
	}
}

// step brings the axis of the checks on.
func (b *Backend) step(e *endpoint, now Instant, r Result) {
	better := ledger.Up
	if r.Drain {
		better = ledger.Draining
	}
	move := func(to ledger.Health, why string) {
		e.checked, e.run, e.since = to, 0, now
		b.tell(e, What(to.String()), to.String(), why, 0)
		b.out[len(b.out)-1].First = e.first && to != ledger.Down
	}
	switch e.checked {
	case ledger.Unknown:
	case ledger.Checking:
		// run counts up with good ones, down with others.
		if r.Good {
			if e.run = max(e.run, 0) + 1; e.run >= e.need {
				move(better, r.Why)
			}
		} else if e.run = min(e.run, 0) - 1; -e.run >= max(1, b.of.Check.Fall) {
			move(ledger.Down, r.Why)
			e.first = false
		}
	case ledger.Up, ledger.Draining:
		switch {
		case !r.Good:
			if e.run++; e.run >= max(1, b.of.Check.Fall) {
				move(ledger.Down, fmt.Sprintf("%s: %s", probes(e.run, "failed"), r.Why))
			}
		case e.checked != better:
			move(better, r.Why) // it says so itself: nothing to be made sure of
		default:
			e.run = 0
		}
	case ledger.Down:
		if !r.Good {
			e.run = 0
		} else if e.run++; e.run >= max(1, b.of.Check.Rise) {
			move(better, fmt.Sprintf("%s: %s", probes(e.run, "passed"), r.Why))
		}
	default:
		panic("health: a state that is none: " + e.checked.String())
	}
}

func probes(n int, did string) string {
	if n == 1 {
		return "a probe " + did
	}
	return fmt.Sprintf("%d probes %s", n, did)
}

// Interval is how long the next probe of the endpoint is away.
func (b *Backend) Interval(name string) time.Duration {
	e, c := b.endpoints[name], b.of.Check
	if e == nil || c == nil {
		return time.Second
	}
	every := c.Interval
	switch {
	case e.checked == ledger.Checking || e.run != 0:
		every = cmp.Or(c.FastInterval, c.Interval)
	case e.checked == ledger.Down:
		every = cmp.Or(c.DownInterval, c.Interval)
	}
	return max(every, time.Millisecond)
}

// Order is what an operator wants of an endpoint.
type Order struct {
	Admin  ledger.Admin
	For    time.Duration // of Held: then it is ready by itself; 0: it is not
	Weight int           // with Weigh
	Weigh  bool          // the order is about the weight alone; -1 is the file's
}

// Order does what an operator wants. It tells whether anything changed.
func (b *Backend) Order(now Instant, name string, o Order) bool {
	e := b.endpoints[name]
	if e == nil {
		return false
	}
	was := *e
	if o.Weigh {
		e.weight = o.Weight
		if e.weight != was.weight {
			b.tell(e, Ordered, weightWord(o.Weight), ByOperator, 0)
		}
	} else {
		e.admin, e.readyAt, e.orderedAt = o.Admin, 0, now
		if o.Admin == ledger.Held && o.For > 0 {
			e.readyAt = now.after(o.For)
		}
		if o.Admin == ledger.Ready && e.ejectedUntil != 0 {
			b.back(e, now, ByOperator)
		}
		if e.admin != was.admin {
			b.tell(e, Ordered, o.Admin.String(), ByOperator, o.For)
		}
	}
	b.touch(e, now)
	return e.admin != was.admin || e.weight != was.weight || e.readyAt != was.readyAt || e.ejectedUntil != was.ejectedUntil
}

func weightWord(w int) string {
	if w < 0 {
		return "the file's weight"
	}
	return fmt.Sprintf("weight %d", w)
}

// tell notes a transition.
func (b *Backend) tell(e *endpoint, what What, state, why string, d time.Duration) {
	t := Transition{Backend: b.Name, What: what, State: state, Why: why, For: d}
	if e != nil {
		t.Endpoint = e.name
	}
	b.out = append(b.out, t)
}

// health is what checks and agent say together.
func (e *endpoint) health() ledger.Health {
	switch {
	case e.agent.down || e.checked == ledger.Down:
		return ledger.Down
	case e.checked == ledger.Checking:
		return ledger.Checking
	case e.agent.drain:
		return ledger.Draining
	}
	return e.checked
}

// effective is the admin state in force. An operator's order stands before what
// an agent says. One on a node that is to be free gets nothing new. One that was never
// probed is held: those who find nothing else wait for its first probe, instead of
// failing before anybody knows.
func (b *Backend) effective(e *endpoint) ledger.Admin {
	switch {
	case e.admin != ledger.Ready:
		return e.admin
	case e.agent.maint:
		return ledger.Maintenance
	case b.away[e.of.Node]:
		return ledger.Quiescing
	case e.health() == ledger.Checking:
		return ledger.Held
	}
	return ledger.Ready
}

// Serves tells whether an endpoint that stands so gets anything new, but for its
// weight and for panic.
func Serves(s ledger.Standing) bool {
	return s.Admin == ledger.Ready && (s.Health == ledger.Up || s.Health == ledger.Unknown) && !s.Ejected
}

// touch renews the standing of e and begins a slow start if it comes back.
func (b *Backend) touch(e *endpoint, now Instant) {
	if Serves(b.stand(e, now)) {
		if !e.first && !(e.given && Serves(e.standing)) && b.of.SlowStart > 0 {
			e.rampFrom = now
		}
		e.first = false
	}
	b.renew(e, now)
}

// renew notes the standing of e for Take if it is another one.
func (b *Backend) renew(e *endpoint, now Instant) {
	s := b.stand(e, now)
	if s != e.standing || !e.given {
		e.standing, e.given = s, true
		b.dirty[e.name] = true
	}
}

// stand is the standing of e now.
func (b *Backend) stand(e *endpoint, now Instant) ledger.Standing {
	s := ledger.Standing{Admin: b.effective(e), Health: e.health(), Ejected: e.ejectedUntil != 0, Weight: e.weight}
	if !Serves(s) || b.of.SlowStart == 0 {
		e.rampFrom = 0
	}
	if s.Permille = e.agent.permille * b.ramp(e, now) / whole; s.Permille == 0 && e.agent.permille > 0 {
		s.Permille = 1
	}
	return s
}

// whole is all of a weight, in thousandths.
const whole = 1000

// Slow start goes in steps: no more of them than rampSteps, none shorter than
// rampStep, for each makes new rosters.
const (
	rampSteps = 20
	rampStep  = 250 * time.Millisecond
)

func (b *Backend) rampStep() time.Duration { return max(rampStep, b.of.SlowStart/rampSteps) }

// ramp is the share of the weight that slow start gives now.
func (b *Backend) ramp(e *endpoint, now Instant) int {
	if e.rampFrom == 0 {
		return whole
	}
	step := b.rampStep()
	gone := now.since(e.rampFrom)
	if gone >= b.of.SlowStart {
		e.rampFrom = 0
		return whole
	}
	// The first step is not 0: what gets nothing never warms up.
	return int((gone/step + 1) * whole * step / (b.of.SlowStart + step))
}

// Tick does what time alone brings, and judges what clients met: total is of
// the backend, each gives that of an endpoint.
func (b *Backend) Tick(now Instant, total Tries, each func(name string) Tries) {
	if b.of == nil {
		return
	}
	for _, e := range b.order {
		if e.readyAt != 0 && now >= e.readyAt {
			e.admin, e.readyAt, e.orderedAt = ledger.Ready, 0, now
			b.tell(e, Ordered, e.admin.String(), "the hold's time is over", 0)
		}
	}
	if b.of.Eject != nil {
		b.eject(now, each)
	}
	if b.of.Breaker != nil {
		b.judge(now, total)
	}
	for _, e := range b.order {
		b.touch(e, now)
	}
}

// Watches tells whether Tick must be called every second, and not at Next only.
func (b *Backend) Watches() bool { return b.of != nil && (b.of.Eject != nil || b.of.Breaker != nil) }

// Next is when Tick has something to do that is known by now; 0: never.
func (b *Backend) Next(now Instant) Instant {
	next := Instant(0)
	at := func(t Instant) {
		if t != 0 && (next == 0 || t < next) {
			next = t
		}
	}
	for _, e := range b.order {
		at(e.readyAt)
		at(e.ejectedUntil)
		if e.rampFrom != 0 {
			step := Instant(b.rampStep())
			at(min(e.rampFrom+((now-e.rampFrom)/step+1)*step, e.rampFrom.after(b.of.SlowStart)))
		}
	}
	at(b.breaker.until)
	return next
}

// Taken is what has changed since the last Take.
type Taken struct {
	Standings   map[string]ledger.Standing // by full name; nil: none
	Breaker     *BreakerOrder              // nil: as it was
	Transitions []Transition
}

// Changed tells whether Take has anything to give.
func (b *Backend) Changed() bool { return len(b.dirty) > 0 || len(b.out) > 0 || b.breaker.moved }

// Unprobed tells that nothing is known of the endpoint yet.
func (b *Backend) Unprobed(name string) bool {
	e := b.endpoints[name]
	return e == nil || e.checked == ledger.Checking
}

// Take gives what has changed since the last one, to be put in force.
func (b *Backend) Take() Taken {
	t := Taken{Transitions: b.out}
	b.out = nil
	if len(b.dirty) > 0 {
		t.Standings = make(map[string]ledger.Standing, len(b.dirty))
		for name := range b.dirty {
			t.Standings[name] = b.endpoints[name].standing
		}
		clear(b.dirty)
	}
	if b.breaker.moved {
		b.breaker.moved = false
		o := &BreakerOrder{State: b.breaker.state}
		if b.of.Breaker != nil {
			o.Probes = b.of.Breaker.Probes
		}
		t.Breaker = o
	}
	return t
}

// Counts are copies of the counts.
func (b *Backend) Counts() Counts {
	c := b.counts
	c.Ejections = make(map[string]uint64, len(b.counts.Ejections))
	for reason, n := range b.counts.Ejections {
		c.Ejections[reason] = n
	}
	return c
}

// View is what a person sees of an endpoint.
type View struct {
	Name     string
	Address  string
	Admin    ledger.Admin // the operator's
	Standing ledger.Standing
	Why      string        // what the last probe or the agent said
	Since    time.Duration // how long the health is what it is
	Took     time.Duration // of the last probe
	Ready    time.Duration // until a hold ends by itself; 0: it does not
	Ejected  time.Duration // until it comes back; 0: it is not ejected
	Weight   int           // the file's or the operator's
	Agent    string        // what it said last, "" without one
}

// Views shows all endpoints, in the order of the file.
func (b *Backend) Views(now Instant) []View {
	out := make([]View, 0, len(b.order))
	for _, e := range b.order {
		v := View{Name: e.name, Address: e.of.Address(), Admin: e.admin, Standing: e.standing, Why: e.why, Since: now.since(e.since), Took: e.took, Weight: e.weight, Agent: e.agent.why}
		if e.agent.down {
			v.Why = "agent: " + e.agent.why
		}
		if v.Weight < 0 {
			v.Weight = e.of.Weight
		}
		if e.readyAt != 0 {
			v.Ready = max(0, e.readyAt.since(now))
		}
		if e.ejectedUntil != 0 {
			v.Ejected = max(0, e.ejectedUntil.since(now))
		}
		out = append(out, v)
	}
	return out
}

// Names are the full names of all endpoints, sorted.
func (b *Backend) Names() []string {
	out := make([]string, 0, len(b.order))
	for _, e := range b.order {
		out = append(out, e.name)
	}
	slices.Sort(out)
	return out
}
