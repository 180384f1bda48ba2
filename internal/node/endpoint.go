package node

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/health"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// EndpointRequest is what an operator wants of endpoints.
type EndpointRequest struct {
	Guard
	Backend string `json:"backend"`
	// Endpoint is a name in the backend, or "*" for all. A host name stands for all
	// its addresses.
	Endpoint string `json:"endpoint"`
	// Do is one of quiesce, ready, maint, hold, weight.
	Do string `json:"do"`
	// Weight is that of Do weight, 0 to 1000; -1 is the file's.
	Weight int `json:"weight,omitempty"`
	// Seconds is how long a hold lasts; then the endpoint is ready by itself. 0 is
	// HoldTime.
	Seconds float64 `json:"seconds,omitempty"`
	// Force takes out also what nothing else can stand in for: without it that is
	// refused.
	Force bool `json:"force,omitempty"`
}

// HoldTime is how long a hold lasts of which nobody says how long: about as
// long as a server takes to restart, and no request waits for ever.
const HoldTime = 60 * time.Second

// weightMost is the largest weight, as in the file.
const weightMost = 1000

// EndpointReport tells what became of it.
type EndpointReport struct {
	Endpoint string `json:"endpoint"` // as asked for, in full: "web/a1", "web/*"
	Was      string `json:"was"`      // state; of several endpoints of different ones "mixed"
	Is       string `json:"is"`
	InFlight int64  `json:"in_flight"` // what is still under way there
	// EffectiveMillis is what it took until no loop chooses by the old state any
	// more and no idle connection is left.
	EffectiveMillis float64          `json:"effective_ms"`
	Loops           int              `json:"loops"`
	IdleClosed      int              `json:"idle_closed"`
	Serving         int              `json:"serving"` // endpoints of the backend that serve what is new
	Each            []EndpointChange `json:"each,omitempty"`
	// Generation is that of the desired state with the order in it. A hold is not in
	// it: it ends by itself.
	Generation uint64 `json:"generation"`
	// Durable is yes, pending, or no with the reason, as in [ChangeReport].
	Durable string `json:"durable,omitempty"`
	// Sticky: clients that are sticky to it go on to come, so nothing in flight is
	// true for the moment only.
	Sticky bool `json:"sticky,omitempty"`
	// Note is what an operator may not have thought of.
	Note string `json:"note,omitempty"`
}

// EndpointChange is what became of one endpoint.
type EndpointChange struct {
	Endpoint string `json:"endpoint"`
	Was      string `json:"was"`
	Is       string `json:"is"`
	InFlight int64  `json:"in_flight"`
	Serves   bool   `json:"serves"` // what is new, but for a weight of 0
	// Health is what checks and its agent say of it, Why in their words, and
	// SinceSeconds for how long.
	Health       string  `json:"health"`
	Ejected      bool    `json:"ejected,omitempty"`
	Why          string  `json:"why,omitempty"`
	SinceSeconds float64 `json:"since_seconds"`
}

// Admin states by what one does to come to them.
var admins = map[string]ledger.Admin{"quiesce": ledger.Quiescing, "ready": ledger.Ready, "maint": ledger.Maintenance, "hold": ledger.Held}

// order understands q.
func (q *EndpointRequest) order() (health.Order, error) {
	if q.Do == "weight" {
		if q.Weight < -1 || q.Weight > weightMost {
			return health.Order{}, fmt.Errorf("node: weight %d: want 0 to %d, or -1 for the file's", q.Weight, weightMost)
		}
		return health.Order{Weight: q.Weight, Weigh: true}, nil
	}
	admin, ok := admins[q.Do]
	if !ok {
		return health.Order{}, fmt.Errorf("node: %q is nothing to do with an endpoint: want quiesce, ready, maint, hold or weight", q.Do)
	}
	o := health.Order{Admin: admin}
	if admin == ledger.Held {
		o.For = HoldTime
		if q.Seconds < 0 || q.Seconds > 86400 {
			return health.Order{}, fmt.Errorf("node: a hold of %g s: want up to a day", q.Seconds)
		}
		if q.Seconds > 0 {
			// Less than a nanosecond would be no time, which is one that never ends.
			o.For = max(time.Millisecond, time.Duration(q.Seconds*float64(time.Second)))
		}
	}
	return o, nil
}

// SetEndpoint does what an operator wants of an endpoint. When it returns, it is
// in force on every loop: nothing is chosen by the old state any more, and of
// an endpoint that does not serve no idle connection is left. All but a hold is
// a generation of the desired state.
func (n *Node) SetEndpoint(q EndpointRequest) (*EndpointReport, error) {
	return once(context.Background(), n, q.Guard, q, func() (*EndpointReport, error) { return n.setEndpoint(q, "order") })
}

// setEndpoint is SetEndpoint of a kind of the history.
func (n *Node) setEndpoint(q EndpointRequest, kind string) (*EndpointReport, error) {
	o, err := q.order()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	w := n.watch
	s := &n.state
	for {
		s.swap.Lock()
		w.mu.Lock()
		if !w.given {
			break
		}
		// A successor has been told how things are. What comes of it is known when
		// the upgrade is over.
		w.mu.Unlock()
		s.swap.Unlock()
		n.change.Lock()
		err := n.inCharge()
		n.change.Unlock()
		if err != nil {
			return nil, err
		}
	}
	d := s.current()
	if err := d.expected(q.Expect); err != nil {
		w.mu.Unlock()
		s.swap.Unlock()
		return nil, err
	}
	r, closing, err := w.order(q, o)
	if err == nil {
		w.noteOrdered(q.Backend)
	}
	w.mu.Unlock()
	if err != nil {
		s.swap.Unlock()
		return nil, err
	}
	n.commitOrder(q, o, d, r, kind)
	s.swap.Unlock()
	// Each loop ends its turn before it looks into its mailbox: what it chose by
	// the old state it has counted by then.
	var idle atomic.Int64
	n.askAll(func(l *loop.Loop) {
		for _, name := range closing {
			idle.Add(int64(l.CloseIdle(name)))
		}
	})
	r.Loops, r.IdleClosed = len(n.shared.Loops), int(idle.Load())
	for i := range r.Each {
		x := &r.Each[i]
		x.InFlight = inFlight(n.account(x.Endpoint))
		r.InFlight += x.InFlight
	}
	r.EffectiveMillis = millis(time.Since(began))
	r.Durable = s.durable(r.Generation)
	n.log.Info("endpoint ordered", "endpoint", r.Endpoint, "was", r.Was, "is", r.Is, "in_flight", r.InFlight, "generation", r.Generation, "by", q.Name, "took", time.Since(began))
	return r, nil
}

// commitOrder makes an order that is in force in the ledger part of the desired
// state. The caller holds swap.
func (n *Node) commitOrder(q EndpointRequest, o health.Order, d *desired, r *EndpointReport, kind string) {
	admin, kept := adminWord(o.Admin)
	if !kept {
		admin = readyWord // which it will be when the hold is over
	}
	names := []string{q.Backend + "/" + q.Endpoint}
	if q.Endpoint == "*" {
		names = names[:0]
		if b := d.doc.Config().Backends[q.Backend]; b != nil {
			for _, e := range b.Endpoints {
				names = append(names, q.Backend+"/"+e.Name)
			}
		}
	}
	next := d.order(names, o.Weigh, o.Weight, admin, q.Author, time.Now())
	next.Kind = kind
	if r.Generation = d.Generation; !d.says(next) {
		// In the words of what is desired: a state that checks see is none of it.
		i, _ := n.commit(next, d, ordersText(d.orders, next.orders), Impact{})
		r.Generation = i.Generation
		n.noteApply(kind, "applied")
	}
	n.tell("endpoint", "endpoint/"+r.Endpoint, q.Author, map[string]string{"was": r.Was, "is": r.Is}, "%s is %s, was %s", r.Endpoint, r.Is, r.Was)
}

// order puts an operator's order in force in the ledger. closing are those that
// do not serve now. The caller holds mu.
func (w *watch) order(q EndpointRequest, o health.Order) (r *EndpointReport, closing []string, err error) {
	j := w.judges[q.Backend]
	if j == nil {
		return nil, nil, missingf("node: no backend %q; there are: %s", q.Backend, some(slices.Sorted(maps.Keys(w.judges))))
	}
	now := w.now()
	r = &EndpointReport{Endpoint: q.Backend + "/" + q.Endpoint}
	before := map[string]string{}
	for _, v := range j.Views(now) {
		short := strings.TrimPrefix(v.Name, q.Backend+"/")
		if q.Endpoint == "*" || short == q.Endpoint || strings.HasPrefix(short, q.Endpoint+"/") {
			before[v.Name] = stateOf(v)
		}
	}
	if len(before) == 0 {
		var names []string
		for _, full := range j.Names() {
			names = append(names, strings.TrimPrefix(full, q.Backend+"/"))
		}
		return nil, nil, missingf("node: backend %s has no endpoint %q; there are: %s", q.Backend, q.Endpoint, some(names))
	}
	if err := w.lastOnes(j, before, q, o, now); err != nil {
		return nil, nil, err
	}
	for name := range before {
		j.Order(now, name, o)
	}
	w.put(j, now) // idle connections are closed by who waits for it
	w.stir()      // there may be a time to come back at
	for _, v := range j.Views(now) {
		was, asked := before[v.Name]
		if !asked {
			continue
		}
		is := stateOf(v)
		if o.Weigh {
			is = fmt.Sprintf("weight %d", v.Weight)
		}
		if !health.Serves(v.Standing) {
			closing = append(closing, v.Name)
		}
		r.Each = append(r.Each, EndpointChange{
			Endpoint: v.Name, Was: was, Is: is, Serves: health.Serves(v.Standing),
			Health: v.Standing.Health.String(), Ejected: v.Standing.Ejected, Why: v.Why, SinceSeconds: v.Since.Seconds(),
		})
		r.Was, r.Is = joinState(r.Was, was), joinState(r.Is, is)
	}
	serving := 0
	for _, name := range j.Names() {
		if j.serving[name] {
			serving++
		}
	}
	r.Serving = serving
	if serving == 0 && !o.Weigh && o.Admin != ledger.Ready {
		switch {
		case o.Admin == ledger.Held:
			r.Note = fmt.Sprintf("nothing else of %s serves: new requests wait, for %v at most", q.Backend, j.of.QueueTime)
		case j.of.Fallback != nil:
			r.Note = fmt.Sprintf("nothing of %s serves: its fallback does", q.Backend)
		default:
			r.Note = fmt.Sprintf("nothing of %s serves: what is new fails", q.Backend)
		}
	} else if o.Admin == ledger.Quiescing && !o.Weigh && j.of.Sticky != nil {
		// Who waits for nothing in flight would restart it under them.
		r.Sticky = true
		r.Note = fmt.Sprintf("clients sticky to it still come: to restart it: holdfast endpoint maint %s --wait", r.Endpoint)
	}
	return r, closing, nil
}

// lastOnes refuses an order after which nothing serves what is new, if something
// does now: it would fail, and people come to that by a slip. Where requests
// would wait, or go to a fallback, nothing is refused. The caller holds mu.
func (w *watch) lastOnes(j *judge, asked map[string]string, q EndpointRequest, o health.Order, now health.Instant) error {
	takes := o.Weigh && o.Weight == 0 || !o.Weigh && (o.Admin == ledger.Quiescing || o.Admin == ledger.Maintenance)
	if !takes || q.Force {
		return nil
	}
	var out, others []string
	for _, v := range j.Views(now) {
		_, meant := asked[v.Name]
		switch serves := health.Serves(v.Standing) && v.Weight > 0; {
		case serves && meant:
			out = append(out, v.Name)
		case serves, !meant && v.Standing.Admin == ledger.Held:
			return nil
		case !meant:
			word := stateOf(v)
			if health.Serves(v.Standing) {
				word = "weight 0"
			}
			others = append(others, v.Name+" is "+word)
		}
	}
	if len(out) == 0 {
		return nil
	}
	if f := j.of.Fallback; f != nil {
		if f.Respond != nil {
			return nil
		}
		if other := w.judges[f.Backend]; other != nil && slices.Contains(slices.Collect(maps.Values(other.serving)), true) {
			return nil
		}
	}
	why := ""
	if len(others) > 0 {
		why = " (" + some(others) + ")"
	}
	what := "is the last endpoint of " + q.Backend + " that serves"
	if len(out) > 1 {
		what = "are all endpoints of " + q.Backend + " that serve"
	}
	return fmt.Errorf("%s %s%s: what is new would fail; `holdfast endpoint hold %s/%s` lets requests wait instead, --force (force in the API) does it all the same",
		some(out), what, why, q.Backend, q.Endpoint)
}

// inFlight is what is under way at an endpoint. While flows move to another
// process some of it is there, and it would be too early to end the server.
func inFlight(x *ledger.Endpoint) int64 { return x.InUse() + x.Foreign() }

// joinState is the state of several.
func joinState(a, b string) string {
	if a == "" || a == b {
		return b
	}
	return "mixed"
}

// namesShown bounds a list in an error.
const namesShown = 12

func some(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	if len(names) > namesShown {
		return strings.Join(names[:namesShown], ", ") + fmt.Sprintf(" and %d more", len(names)-namesShown)
	}
	return strings.Join(names, ", ")
}

// stateOf is the one word for how an endpoint is: the operator's if it is not
// ready, else what else keeps it from serving, else how good it is known to be.
func stateOf(v health.View) string {
	s := v.Standing
	switch {
	case v.Admin != ledger.Ready:
		return v.Admin.String()
	case s.Health == ledger.Checking || s.Health == ledger.Down:
		return s.Health.String()
	case s.Ejected:
		return "ejected"
	case s.Admin != ledger.Ready: // its agent's wish
		return s.Admin.String()
	case s.Health == ledger.Unknown:
		return "ready"
	}
	return s.Health.String()
}

// EndpointState is how one endpoint is: for status, metrics and people.
type EndpointState struct {
	Name    string `json:"name"` // in full
	Backend string `json:"backend"`
	Address string `json:"address"`
	// State is one word: ready (nobody checks it), up, checking, down, draining,
	// ejected, quiescing, held, maintenance.
	State   string `json:"state"`
	Admin   string `json:"admin"`  // the operator's
	Health  string `json:"health"` // of checks and agent
	Ejected bool   `json:"ejected"`
	Serves  bool   `json:"serves"` // what is new, but for a weight of 0
	Backup  bool   `json:"backup,omitempty"`
	Zone    string `json:"zone,omitempty"`

	Why             string  `json:"why,omitempty"`   // what the last probe said
	Agent           string  `json:"agent,omitempty"` // what its agent said
	SinceSeconds    float64 `json:"since_seconds"`   // how long its health is what it is
	EjectedSeconds  float64 `json:"ejected_seconds,omitempty"`
	ReadySeconds    float64 `json:"ready_seconds,omitempty"` // until a hold ends by itself
	Weight          int     `json:"weight"`                  // the file's or the operator's
	EffectiveWeight float64 `json:"effective_weight"`        // with slow start and what the agent says
	InFlight        int64   `json:"in_flight"`
	ConnectionsMax  int     `json:"connections_max,omitempty"`
	CheckMillis     float64 `json:"check_ms,omitempty"`   // what the last probe took
	LatencyMillis   float64 `json:"latency_ms,omitempty"` // of answers to clients: the slowest, as it has decayed since
	Tries           uint64  `json:"tries"`
	Failures        uint64  `json:"failures"`
	Errors          uint64  `json:"errors"` // connections that could not be opened
}

// EndpointStates tells of every endpoint how it is, by backend and name.
func (n *Node) EndpointStates() []EndpointState {
	w := n.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	var out []EndpointState
	for _, name := range slices.Sorted(maps.Keys(w.judges)) {
		j := w.judges[name]
		if j.pending {
			w.flush(j, now) // what is told is in force
		}
		for i, v := range j.Views(now) {
			out = append(out, j.state(j.of.Endpoints[i], v))
		}
	}
	return out
}

func (j *judge) state(e *config.Endpoint, v health.View) EndpointState {
	x := j.accounts[v.Name]
	attempts, failures := x.Tries()
	s := EndpointState{
		Name: v.Name, Backend: j.Name, Address: v.Address, State: stateOf(v),
		Admin: v.Admin.String(), Health: v.Standing.Health.String(), Ejected: v.Standing.Ejected, Serves: health.Serves(v.Standing),
		Backup: e.Backup, Zone: e.Zone, Why: v.Why, Agent: v.Agent,
		SinceSeconds: v.Since.Seconds(), EjectedSeconds: v.Ejected.Seconds(), ReadySeconds: v.Ready.Seconds(),
		Weight: v.Weight, EffectiveWeight: float64(v.Weight) * float64(v.Standing.Permille) / 1000,
		InFlight: inFlight(x), ConnectionsMax: j.of.ConnectionsPerEndpoint,
		CheckMillis: millis(v.Took), LatencyMillis: latencyOf(x).Seconds() * 1000,
		Tries: attempts, Failures: failures, Errors: x.Errors(),
	}
	if e.ConnectionsMax > 0 {
		s.ConnectionsMax = e.ConnectionsMax
	}
	return s
}

// latencyLeast is what latency has decayed to when it tells nothing any more.
const latencyLeast = time.Microsecond

// latencyOf is the endpoint's latency as balancing sees it now; 0: none is known.
func latencyOf(x *ledger.Endpoint) time.Duration {
	d := time.Duration(x.LatencyAt(sock.Monotonic())) // the loops' clock
	if d < latencyLeast {
		return 0
	}
	return d
}

// backendOf is the backend of an endpoint's full name.
func backendOf(endpoint string) string {
	backend, _, _ := strings.Cut(endpoint, "/")
	return backend
}
