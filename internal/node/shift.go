package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/health"
)

const (
	// shiftMost is how long a weight may take to its end.
	shiftMost = 24 * time.Hour
	// shiftSteps is how many steps a shift has at most, shiftEvery the least time
	// between two: each step makes rosters anew.
	shiftSteps = 100
	shiftEvery = 250 * time.Millisecond
	// shiftsMax bounds the shifts at once.
	shiftsMax = 64
)

// shift moves one endpoint's weight. Its steps are no generations: until the end
// the desired state says what it said before, and a process that dies in the
// middle begins again with that.
type shift struct {
	Object   string        `json:"object"` // "backend/endpoint"
	From     int           `json:"from"`
	Was      int           `json:"was"` // the order before; -1: the file's
	To       int           `json:"to"`
	Weight   int           `json:"weight"` // ordered last
	Began    time.Time     `json:"began"`
	Over     time.Duration `json:"over"`
	AbortOn  string        `json:"abort_on,omitempty"`
	By       Author        `json:"by"`
	Before   *figures      `json:"before"`  // what was counted of its backend until it began
	Counted  *figures      `json:"counted"` // and of the endpoint
	Baseline *baseline     `json:"baseline,omitempty"`
	abort    []threshold
	stepped  time.Time
	progress Progress
	more     chan struct{} // closed when progress is another
}

// weightAt is the weight at a time.
func (x *shift) weightAt(now time.Time) int {
	done := float64(now.Sub(x.Began)) / float64(x.Over)
	done = min(1, max(0, done))
	return x.From + int(float64(x.To-x.From)*done+0.5*sign(x.To-x.From))
}

func sign(n int) float64 {
	if n < 0 {
		return -1
	}
	return 1
}

// Shift moves the weight of an endpoint step by step, and tells of each. It goes
// on when ctx ends: only the telling does.
func (n *Node) Shift(ctx context.Context, q ShiftRequest, tell func(Progress)) error {
	if q.Over <= 0 || q.Over > shiftMost {
		return fmt.Errorf("node: a shift over %v: want up to %v", q.Over, shiftMost)
	}
	if q.Weight < 0 || q.Weight > weightMost {
		return fmt.Errorf("node: weight %d: want 0 to %d", q.Weight, weightMost)
	}
	if q.Endpoint == "*" {
		return errors.New("node: one endpoint is shifted, not all")
	}
	abort, err := parseAbort(q.AbortOn)
	if err != nil {
		return err
	}
	// A shift that is sent again under its key is followed, not begun once more.
	var x *shift
	began, err := once(ctx, n, q.Guard, q, func() (st *ShiftState, err error) {
		x, st, err = n.beginShift(q, abort)
		return st, err
	})
	if err != nil {
		return err
	}
	name := strings.TrimPrefix(began.Object, "endpoint/")
	if x == nil {
		n.state.mu.Lock()
		x = n.state.shifts[name]
		n.state.mu.Unlock()
	}
	if x == nil { // sent again, after its end
		tell(Progress{Phase: "done", Text: "it has ended before", Done: true, Weight: q.Weight})
		return nil
	}
	for {
		n.state.mu.Lock()
		p, more := x.progress, x.more
		n.state.mu.Unlock()
		tell(p)
		if p.Done {
			if p.Failed != "" {
				return fmt.Errorf("node: %s: %s", name, p.Failed)
			}
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (n *Node) beginShift(q ShiftRequest, abort []threshold) (*shift, *ShiftState, error) {
	s := &n.state
	if err := n.inCharge(); err != nil {
		return nil, nil, err
	}
	d := s.current()
	if err := d.expected(q.Expect); err != nil {
		return nil, nil, err
	}
	name := q.Backend + "/" + q.Endpoint
	e := endpointOf(n.Config(), name)
	if e == nil {
		e = endpointOf(d.doc.Config(), name)
	}
	if e == nil {
		return nil, nil, missingf("node: there is no endpoint %s", name)
	}
	was := d.orderOf(name).Weight
	from := was
	if from < 0 {
		from = e.Weight
	}
	backend := scope{Backends: map[string]bool{q.Backend: true}}
	before := n.figuresOf(backend)
	x := &shift{
		Object: name, From: from, Was: was, To: q.Weight, Weight: from, Began: time.Now(), Over: q.Over, AbortOn: q.AbortOn, By: q.Author, abort: abort,
		Before: before, Baseline: s.baselineOf(backend, before, time.Now()), Counted: n.figuresOf(scope{Endpoint: name}), more: make(chan struct{}),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.shifts[name]; old != nil {
		return nil, nil, fmt.Errorf("node: %s is being shifted to weight %d by %s already", name, old.To, cmp.Or(old.By.Name, "nobody"))
	}
	if len(s.shifts) >= shiftsMax {
		return nil, nil, fmt.Errorf("node: %d endpoints are shifted already: %w", shiftsMax, ErrBusy)
	}
	s.shifts[name] = x
	x.say("shifting", fmt.Sprintf("weight %d, to %d over %v", x.Weight, x.To, x.Over), x.Began)
	st := x.state()
	return x, &st, nil
}

// say tells of a step. The caller holds mu.
func (x *shift) say(phase, text string, now time.Time) {
	x.progress = Progress{Phase: phase, Text: text, Seconds: now.Sub(x.Began).Seconds(), Weight: x.Weight, Done: phase == "done" || phase == "aborted"}
	close(x.more)
	x.more = make(chan struct{})
}

func (x *shift) state() ShiftState {
	return ShiftState{Object: "endpoint/" + x.Object, From: x.From, To: x.To, Weight: x.Weight, Ends: x.Began.Add(x.Over), AbortOn: x.AbortOn, By: x.By}
}

// Shifts are the weights that move now.
func (n *Node) Shifts() []ShiftState {
	s := &n.state
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []ShiftState
	for _, name := range slices.Sorted(maps.Keys(s.shifts)) {
		all = append(all, s.shifts[name].state())
	}
	return all
}

// stepShifts brings each shift on.
func (n *Node) stepShifts(now time.Time) {
	s := &n.state
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.shifts))
	s.mu.Unlock()
	if len(all) == 0 || n.handingOver() {
		return
	}
	for _, x := range all {
		n.stepShift(x, now)
	}
}

func (n *Node) stepShift(x *shift, now time.Time) {
	s := &n.state
	if len(x.abort) > 0 {
		seen := n.figuresOf(scope{Endpoint: x.Object}).since(x.Counted)
		if why := judgeBy(x.abort, seen, x.Baseline.or(x.Before)); why != "" {
			n.endShift(x, now, why+"; "+x.Baseline.String())
			return
		}
	}
	if s.current().orderOf(x.Object).Weight != x.Was {
		n.forgetShift(x, now, "its weight was ordered otherwise")
		// A step may have come after the order, and whoever went back to an earlier
		// state has left out what was being shifted.
		n.weighAsOrdered(x.Object)
		return
	}
	end := !now.Before(x.Began.Add(x.Over))
	weight := x.weightAt(now)
	if !end && (weight == x.Weight || now.Sub(x.stepped) < max(shiftEvery, x.Over/shiftSteps)) {
		return
	}
	if end {
		n.endShift(x, now, "")
		return
	}
	if err := n.weigh(x.Object, weight); err != nil {
		n.forgetShift(x, now, err.Error())
		return
	}
	s.mu.Lock()
	x.Weight, x.stepped = weight, now
	x.say("shifting", fmt.Sprintf("weight %d of %d", weight, x.To), now)
	s.mu.Unlock()
}

// weigh orders a weight that is not part of the desired state yet.
func (n *Node) weigh(name string, weight int) error {
	backend, endpoint, _ := strings.Cut(name, "/")
	w := n.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.given {
		return nil // the next process goes on
	}
	_, _, err := w.order(EndpointRequest{Backend: backend, Endpoint: endpoint, Do: "weight", Weight: weight, Force: true}, health.Order{Weight: weight, Weigh: true})
	return err
}

// weighAsOrdered brings an endpoint to the weight that the desired state says.
func (n *Node) weighAsOrdered(name string) {
	n.state.swap.Lock()
	defer n.state.swap.Unlock()
	_ = n.weigh(name, n.state.current().orderOf(name).Weight) // it may have left meanwhile
}

// endShift ends a shift where it was to go, or for why where it came from.
func (n *Node) endShift(x *shift, now time.Time, why string) {
	backend, endpoint, _ := strings.Cut(x.Object, "/")
	by := x.By
	q := EndpointRequest{Guard: Guard{Author: by}, Backend: backend, Endpoint: endpoint, Do: "weight", Weight: x.To, Force: true}
	if why != "" {
		if err := n.weigh(x.Object, x.Was); err != nil {
			why += "; " + err.Error()
		}
		s := &n.state
		s.mu.Lock()
		x.Weight = x.From
		s.mu.Unlock()
		n.forgetShift(x, now, why)
		return
	}
	r, err := n.setEndpoint(q, "shift")
	if err != nil {
		n.forgetShift(x, now, err.Error())
		n.weighAsOrdered(x.Object) // it has the weight of the last step
		return
	}
	s := &n.state
	s.mu.Lock()
	delete(s.shifts, x.Object)
	x.Weight = x.To
	x.say("done", fmt.Sprintf("weight %d, generation %d", x.To, r.Generation), now)
	s.mu.Unlock()
	n.tell("shift", "endpoint/"+x.Object, by, nil, "weight %d after %v", x.To, now.Sub(x.Began).Round(time.Second))
}

// forgetShift ends a shift that has not come to its end.
func (n *Node) forgetShift(x *shift, now time.Time, why string) {
	s := &n.state
	s.mu.Lock()
	delete(s.shifts, x.Object)
	x.say("aborted", why, now)
	x.progress.Failed = why
	s.mu.Unlock()
	n.tell("shift", "endpoint/"+x.Object, x.By, nil, "aborted at weight %d: %s", x.Weight, why)
	n.log.Warn("shift of a weight aborted", "endpoint", x.Object, "weight", x.Weight, "why", why)
}
