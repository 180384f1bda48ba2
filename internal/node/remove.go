package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/loop"
)

// How a removal looks at what is still under way.
const (
	removeLook = 20 * time.Millisecond
	removeTell = time.Second // it says at least so often how far it is
)

// removal is one that is under way.
type removal struct {
	n     *Node
	q     RemoveRequest
	kind  string // endpoint, backend, listener
	name  string // in full
	began time.Time
	tell  func(Progress)
	way   string          // "": what is left at the deadline goes on
	ended map[uint64]bool // flows that were ended, which takes a while by fin
	last  Progress        // written under flowSide.mu
	told  time.Time
	// What a successor goes on with, under flowSide.mu.
	was  string // how the endpoint was
	left bool   // the listener or backend has left the desired state
	// resumed: it was begun by a predecessor.
	resumed bool
}

// Remove takes an endpoint, a backend or a listener out of the desired state, and
// tells how far it is. A listener and a backend leave it first, so that nothing
// new comes; an endpoint gets nothing new, and leaves it when nothing is under
// way there any more. When ctx ends before that, the endpoint is as it was.
func (n *Node) Remove(ctx context.Context, q RemoveRequest, tell func(Progress)) error {
	told := false
	last, err := once(ctx, n, q.Guard, q, func() (*Progress, error) {
		told = true
		return n.remove(ctx, q, tell)
	})
	if err == nil && !told && tell != nil { // it was done before
		tell(*last)
	}
	return err
}

func (n *Node) remove(ctx context.Context, q RemoveRequest, tell func(Progress)) (*Progress, error) {
	x := &removal{n: n, q: q, began: time.Now(), tell: tell}
	if err := x.resume(); err != nil {
		return nil, err
	}
	if !x.resumed {
		if err := x.check(); err != nil {
			return nil, err
		}
		// What cannot leave the desired state is not drained first.
		if _, err := n.Change(ctx, x.leaving(true)); err != nil {
			return nil, err
		}
	}
	by := q.Author
	n.side.removal(x, true)
	defer n.side.removal(x, false)
	n.tell("remove", q.Object, by, nil, "%s is being removed", q.Object)
	var err error
	if x.kind == "endpoint" {
		err = x.endpoint(ctx)
	} else {
		err = x.object(ctx)
	}
	if err != nil && n.handedOver() && q.Key != "" {
		return nil, n.inCharge() // the successor goes on with it when it is asked
	}
	if err != nil {
		x.say(Progress{Phase: "aborted", InFlight: x.last.InFlight, Cut: x.last.Cut, Done: true, Failed: err.Error(), Text: err.Error()})
		n.tell("remove", q.Object, by, nil, "%s is not removed: %v", q.Object, err)
		return nil, err
	}
	n.tell("remove", q.Object, by, map[string]string{"cut": strconv.Itoa(x.last.Cut), "in_flight": strconv.FormatInt(x.last.InFlight, 10)},
		"%s is removed; %s cut, %d go on", q.Object, count(x.last.Cut, "flow"), x.last.InFlight)
	return &x.last, nil
}

// check understands the request, and refuses it before anything is done.
func (x *removal) check() error {
	n, q := x.n, &x.q
	if err := n.state.current().expected(q.Expect); err != nil {
		return err
	}
	if err := n.state.watched(); err != nil {
		return err
	}
	var ok bool
	if x.kind, x.name, ok = strings.Cut(q.Object, "/"); !ok {
		return fmt.Errorf("node: %q is nothing that can be removed: want endpoint/BACKEND/NAME, backend/NAME or listener/NAME", q.Object)
	}
	c := n.Config()
	switch x.kind {
	case "listener":
		ok = c.Listeners[x.name] != nil
	case "backend":
		ok = c.Backends[x.name] != nil
	case "endpoint":
		backend, name, _ := strings.Cut(x.name, "/")
		b := c.Backends[backend]
		ok = b != nil && len(endpointsOf(b, name)) > 0
	default:
		return fmt.Errorf("node: a %s cannot be removed so: want endpoint/BACKEND/NAME, backend/NAME or listener/NAME", x.kind)
	}
	if !ok {
		return missingf("node: there is no %s", q.Object)
	}
	if q.Deadline < 0 {
		return fmt.Errorf("node: a deadline of %v: want 0, which is none, or more", q.Deadline)
	}
	if !q.Drain && q.Deadline > 0 {
		return errors.New("node: a deadline is for what drains; say so with drain")
	}
	if q.Then == "migrate" {
		return x.mayMigrate(c)
	}
	if q.To != "" {
		return fmt.Errorf("node: to %s is where flows are moved, with then migrate", q.To)
	}
	if q.Then != "" {
		var err error
		if x.way, err = wayOf(q.Then); err != nil {
			return err
		}
	}
	return nil
}

// mayMigrate tells whether what is left may go to the peer.
func (x *removal) mayMigrate(c *config.Config) error {
	l := c.Listeners[x.name]
	switch {
	case x.kind != "listener":
		return fmt.Errorf("node: flows move to a peer with their listener; of %s they cannot: want rst or fin", x.q.Object)
	case c.Cluster == nil:
		return errors.New("node: the configuration has no cluster section, so there is no other host; see docs/operate.md")
	case x.q.To == c.Node.Name || !c.Cluster.Peers[x.q.To].IsValid():
		return fmt.Errorf("node: no other peer %q; there are: %v", x.q.To, c.Cluster.SortedPeers())
	case !l.Movable:
		return fmt.Errorf("node: the flows of %s cannot move to another host: movable is not set", x.q.Object)
	}
	x.way = "migrate"
	return nil
}

// endpointsOf are those of a backend that a name in a file stands for: itself, or
// the addresses of a host.
func endpointsOf(b *config.Backend, name string) (all []*config.Endpoint) {
	for _, e := range b.Endpoints {
		if e.Name == name || strings.HasPrefix(e.Name, name+"/") {
			all = append(all, e)
		}
	}
	return all
}

// endpoint removes one from its backend.
func (x *removal) endpoint(ctx context.Context) error {
	backend, name, _ := strings.Cut(x.name, "/")
	n, b := x.n, x.n.Config().Backends[backend]
	var full []string
	if b != nil {
		for _, e := range endpointsOf(b, name) {
			full = append(full, e.Ref.Name)
		}
	}
	if len(full) == 0 { // only one that was resumed comes here: the predecessor did all but say so
		x.done(0, &ChangeReport{Generation: n.Generation()})
		return nil
	}
	if len(full) == len(b.Endpoints) {
		return fmt.Errorf("node: %s is the last endpoint of %s: remove the backend, or add another one first", x.q.Object, backend)
	}
	was := x.was
	if !x.resumed {
		was = n.adminOf(backend, full)
		n.side.mu.Lock()
		x.was = was
		n.side.mu.Unlock()
	}
	// Out of rotation first: what is sticky to it finds another one, too.
	if _, err := n.SetEndpoint(EndpointRequest{Guard: Guard{Author: x.q.Author}, Backend: backend, Endpoint: name, Do: "maint", Force: x.q.Force}); err != nil {
		return err
	}
	// What cannot be brought back is told: nobody should take it for being in service.
	back := func(why error) error {
		if n.handedOver() && x.q.Key != "" {
			return why // it is the successor's
		}
		if was == "" {
			return fmt.Errorf("%w; it stays in maintenance: holdfast endpoint ready %s/%s", why, backend, name)
		}
		_, err := n.SetEndpoint(EndpointRequest{Guard: Guard{Author: x.q.Author}, Backend: backend, Endpoint: name, Do: was, Force: true})
		if err != nil {
			return fmt.Errorf("%w; it stays in maintenance (%w): holdfast endpoint ready %s/%s", why, err, backend, name)
		}
		return why
	}
	inFlight := func() (sum int64) {
		for _, name := range full {
			sum += inFlight(n.account(name))
		}
		return sum
	}
	mine := func(_ *loop.Loop, _ uint32, f *flow.Flow) bool {
		e := f.Endpoint()
		return e != nil && slices.Contains(full, e.Ref.Name)
	}
	if x.q.Drain {
		if err := x.drain(ctx, "quiescing", inFlight); err != nil {
			return back(err)
		}
	}
	if err := x.cut(ctx, inFlight, mine); err != nil {
		return back(err)
	}
	r, err := x.leave(ctx)
	if err != nil {
		return back(err)
	}
	x.done(inFlight(), r)
	return nil
}

// object removes a listener or a backend: nothing new comes once it has left the
// desired state, and then what is under way drains.
func (x *removal) object(ctx context.Context) error {
	r := &ChangeReport{Generation: x.n.Generation()}
	if !x.left {
		var err error
		if r, err = x.leave(ctx); err != nil {
			return err
		}
		x.n.side.mu.Lock()
		x.left = true
		x.n.side.mu.Unlock()
	}
	mine := func(_ *loop.Loop, _ uint32, f *flow.Flow) bool { return x.under(f) }
	inFlight := func() (sum int64) {
		x.n.eachFlow(func(l *loop.Loop, i uint32, f *flow.Flow) {
			if x.under(f) {
				sum++
			}
		})
		return sum
	}
	if x.q.Drain {
		if err := x.drain(ctx, "draining", inFlight); err != nil {
			return fmt.Errorf("%w; it has left the desired state already, and its flows go on", err)
		}
	}
	if err := x.cut(ctx, inFlight, mine); err != nil {
		return err
	}
	x.done(inFlight(), r)
	return nil
}

// under tells whether f is under what was removed, and not under what may have
// come in its place.
func (x *removal) under(f *flow.Flow) bool {
	if x.ended[f.ID()] {
		return false
	}
	c := x.n.Config()
	if x.kind == "listener" {
		was, is := f.Listener(), c.Listeners[x.name]
		return was.Ref.Name == x.name && (is == nil || is.Ref != was.Ref)
	}
	was, is := f.Backend(), c.Backends[x.name]
	return was != nil && was.Ref.Name == x.name && !same(is, was)
}

// drain waits until nothing is in flight, the deadline, or the end of ctx, which
// alone is an error.
func (x *removal) drain(ctx context.Context, phase string, inFlight func() int64) error {
	for {
		began := time.Now()
		for x.n.handingOver() { // what has gone to another process has not ended
			if err := x.n.inCharge(); err != nil {
				return err
			}
			if err := sleep(ctx, removeLook); err != nil {
				return err
			}
		}
		k := inFlight()
		if x.n.handingOver() {
			continue
		}
		// Of a listener or a backend all flows are looked at: that takes a tenth of
		// the time at most.
		wait := min(max(removeLook, 9*time.Since(began)), removeTell)
		x.say(Progress{Phase: phase, InFlight: k, Text: fmt.Sprintf("%d in flight", k)})
		if k == 0 || x.q.Deadline > 0 && time.Since(x.began) >= x.q.Deadline {
			return nil
		}
		if x.q.Deadline > 0 {
			wait = min(wait, time.Until(x.began.Add(x.q.Deadline)))
		}
		if err := sleep(ctx, max(wait, time.Millisecond)); err != nil {
			return fmt.Errorf("node: removing %s was given up after %v with %d in flight: %w", x.q.Object, time.Since(x.began).Round(time.Millisecond), k, context.Cause(ctx))
		}
	}
}

// cut deals with what is left as Then says.
func (x *removal) cut(ctx context.Context, inFlight func() int64, mine func(*loop.Loop, uint32, *flow.Flow) bool) error {
	if x.way == "" || inFlight() == 0 {
		return nil
	}
	if x.way == "migrate" {
		r, err := x.n.migrate(x.q.To, x.under)
		if err != nil {
			return err
		}
		x.say(Progress{Phase: "cutting", InFlight: inFlight(), Cut: r.Flows, Text: fmt.Sprintf("%s moved to %s, %d could not", count(r.Flows, "flow"), x.q.To, r.Refused)})
		return nil
	}
	killed, err := x.n.killFlows(ctx, x.way, 0, newPacer(time.Now(), 0, 0, rand.Float64), mine)
	x.ended = killed
	x.say(Progress{Phase: "cutting", InFlight: inFlight(), Cut: len(killed), Text: fmt.Sprintf("%s ended by %s", count(len(killed), "flow"), x.way)})
	return err
}

// leave takes the object out of the desired state.
func (x *removal) leave(ctx context.Context) (*ChangeReport, error) {
	return x.n.Change(context.WithoutCancel(ctx), x.leaving(false))
}

func (x *removal) leaving(dry bool) ChangeRequest {
	return ChangeRequest{
		Guard:  Guard{Author: x.q.Author},
		Edits:  []config.Patch{{Object: x.q.Object, Delete: true}},
		Flows:  FlowsPolicy{On: "keep"},
		DryRun: dry,
	}
}

func (x *removal) done(inFlight int64, r *ChangeReport) {
	text := "done"
	if inFlight > 0 {
		text = fmt.Sprintf("done; %d go on until they end", inFlight)
	}
	x.say(Progress{Phase: "done", InFlight: inFlight, Cut: x.last.Cut, Text: text, Done: true, Report: r})
}

// portableRemoval is a removal under way as a successor learns of it. It goes on
// when it is asked for again, under its key.
type portableRemoval struct {
	Key   string    `json:"key"`
	Sum   string    `json:"sum"`
	Began time.Time `json:"began"`
	Was   string    `json:"was,omitempty"`
	Left  bool      `json:"left,omitempty"`
}

// removalsMax bounds the removals that are kept for those who ask again.
const removalsMax = 256

// portableRemovals are those under way that have a key; the caller holds mu.
func (s *flowSide) portableRemovals() (all []portableRemoval) {
	for x := range s.removals {
		if sum, err := requestSum(x.q); err == nil && x.q.Key != "" && len(all) < removalsMax {
			all = append(all, portableRemoval{x.q.Key, sum, x.began, x.was, x.left})
		}
	}
	return all
}

// resume goes on with what a predecessor has begun under the same key.
func (x *removal) resume() error {
	if x.q.Key == "" {
		return nil
	}
	sum, err := requestSum(x.q)
	if err != nil {
		return err
	}
	s := &x.n.side
	s.mu.Lock()
	i := slices.IndexFunc(s.begun, func(p portableRemoval) bool { return p.Key == x.q.Key && p.Sum == sum })
	if i < 0 {
		s.mu.Unlock()
		return nil
	}
	p := s.begun[i]
	s.begun = slices.Delete(s.begun, i, i+1)
	s.mu.Unlock()
	x.resumed, x.began, x.was, x.left = true, p.Began, p.Was, p.Left
	x.kind, x.name, _ = strings.Cut(x.q.Object, "/")
	x.way = x.q.Then
	if x.way == "" || x.way == "migrate" {
		return nil
	}
	x.way, err = wayOf(x.q.Then)
	return err
}

// say tells of a step, unless it is the one that was told last.
func (x *removal) say(p Progress) {
	p.Cut = max(p.Cut, x.last.Cut)
	again := p.Phase == x.last.Phase && p.InFlight == x.last.InFlight && !p.Done
	if again && time.Since(x.told) < removeTell {
		return
	}
	p.Seconds = time.Since(x.began).Seconds()
	x.n.side.mu.Lock()
	x.last, x.told = p, time.Now()
	x.n.side.mu.Unlock()
	if x.tell != nil {
		x.tell(p)
	}
}

// doFor is what an operator does for an endpoint to come to an admin state.
var doFor = map[string]string{"ready": "ready", "quiescing": "quiesce", "maintenance": "maint"}

// adminOf is what an operator would do for endpoints to be as they are; "" if
// they differ, or are held, which ends by itself.
func (n *Node) adminOf(backend string, full []string) (do string) {
	for _, s := range n.EndpointStates() {
		if s.Backend != backend || !slices.Contains(full, s.Name) {
			continue
		}
		x := doFor[s.Admin]
		if do != "" && do != x {
			return ""
		}
		do = x
	}
	return do
}

// removal notes that one begins, or is over.
func (s *flowSide) removal(x *removal, begins bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if begins {
		s.removals[x] = true
	} else {
		delete(s.removals, x)
	}
}

// removingNow tells which removals are under way.
func (s *flowSide) removingNow() (all []RemovalStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for x := range s.removals {
		r := RemovalStatus{Object: x.q.Object, Phase: x.last.Phase, InFlight: x.last.InFlight, Then: x.way, By: x.q.Author}
		if x.q.Deadline > 0 {
			r.Deadline = x.began.Add(x.q.Deadline)
		}
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b RemovalStatus) int { return strings.Compare(a.Object, b.Object) })
	return all
}
