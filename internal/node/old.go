package node

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/loop"
)

// flowSide is what the node knows of flows beside those that follow the
// configuration in force: what goes on under old objects, what is still to
// follow, what is shed, what was ended.
type flowSide struct {
	kernel  kernelSide
	applies applies
	look    changesLook

	// mu guards what follows.
	mu        sync.Mutex
	sheds     map[string]*shed         // by backend
	killed    map[[2]string]uint64     // by listener and how
	left      map[config.Ref]time.Time // when an object left the configuration
	followers map[*follower]bool
	removals  map[*removal]bool
	begun     []portableRemoval // by a predecessor

	// life ends with the node, and running are those who end with it.
	life    context.Context
	running sync.WaitGroup
}

// beginFlows starts what looks after flows, and gives what ends it.
func (n *Node) beginFlows() (end func()) {
	s := &n.side
	s.sheds, s.killed, s.left, s.followers, s.removals = map[string]*shed{}, map[[2]string]uint64{}, map[config.Ref]time.Time{}, map[*follower]bool{}, map[*removal]bool{}
	life, stop := context.WithCancel(context.Background())
	s.life = life
	if err := s.kernel.open(); err != nil {
		n.log.Warn("the kernel's counters of silent loss cannot be read; reports of changes go without them", "error", err)
	}
	sheds, left := every(sheddingEvery, n.endSheds), every(forgetEvery, func(time.Time) { n.forgetLeft() })
	return func() {
		stop()
		s.running.Wait()
		sheds()
		left()
		s.kernel.close()
	}
}

// tell notes an event that is no change of the desired state.
func (n *Node) tell(kind, object string, by Author, fields map[string]string, format string, args ...any) {
	n.events.note(Event{Kind: kind, Object: object, Generation: n.Generation(), By: by.Name, Fields: fields, Text: fmt.Sprintf(format, args...)})
}

// gather adds what is counted by this process.
func (s *flowSide) gather(g *gathering, c *config.Config) {
	s.applies.gather(g)
	grown, late := s.kernel.sums()
	for name, k := range grown {
		g.add(silentLoss, float64(k), name)
	}
	g.add(lateTotal, float64(late))
	for name := range c.Listeners {
		for way := range ways {
			g.add(killedTotal, 0, name, way)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, k := range s.killed {
		g.add(killedTotal, float64(k), key[0], key[1])
	}
}

// forgetEvery is how often objects are forgotten that nobody names.
const forgetEvery = 10 * time.Second

// leftMax bounds the objects of which it is known when they left; those that
// left first are forgotten.
const leftMax = 64 << 10

// noteLeft notes what a plan replaces or takes away, and what comes back.
func (s *flowSide) noteLeft(now time.Time, p config.Plan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range p.ListenersAdded {
		delete(s.left, x.Ref)
	}
	for _, x := range p.ListenersRemoved {
		s.left[x.Ref] = now
	}
	for _, x := range p.ListenersChanged {
		delete(s.left, x.New.Ref)
		s.left[x.Old.Ref] = now
	}
	for _, x := range p.BackendsAdded {
		delete(s.left, x.Ref)
	}
	for _, x := range p.BackendsRemoved {
		s.left[x.Ref] = now
	}
	for _, x := range p.BackendsChanged {
		delete(s.left, x.New.Ref)
		s.left[x.Old.Ref] = now
	}
	for _, x := range p.EndpointsAdded {
		delete(s.left, x.Ref)
	}
	for _, x := range p.EndpointsRemoved {
		s.left[x.Ref] = now
	}
	for _, x := range p.EndpointsChanged {
		delete(s.left, x.New.Ref)
		s.left[x.Old.Ref] = now
	}
}

// forgetLeft forgets the objects that no flow can name any more.
func (n *Node) forgetLeft() {
	s := &n.side
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref := range s.left {
		if n.registry.find(ref.Kind, ref.Name, ref.Version) == nil {
			delete(s.left, ref)
		}
	}
	if over := len(s.left) - leftMax; over > 0 {
		first := slices.SortedFunc(maps.Keys(s.left), func(a, b config.Ref) int { return s.left[a].Compare(s.left[b]) })
		for _, ref := range first[:over] {
			delete(s.left, ref)
		}
	}
}

// portableLeft is when an object left the configuration, for a successor.
type portableLeft struct {
	Kind    config.Kind `json:"kind"`
	Name    string      `json:"name"`
	Version uint64      `json:"version"`
	At      time.Time   `json:"at"`
}

// ruling tells what is old where a configuration is in force. It remembers what
// it has compared, so it serves one caller.
type ruling struct {
	c     *config.Config
	same  map[*config.Backend]bool // versions of backends with the rules of c's
	heirs map[*config.Listener]*config.Listener
}

func newRuling(c *config.Config) *ruling {
	return &ruling{c: c, same: map[*config.Backend]bool{}, heirs: map[*config.Listener]*config.Listener{}}
}

// heir is what has come after a listener, or it itself; nil is nothing.
func (r *ruling) heir(l *config.Listener) *config.Listener {
	x, known := r.heirs[l]
	if !known {
		x = flow.Heir(r.c, l)
		r.heirs[l] = x
	}
	return x
}

// old tells that f is under a listener that the configuration has not, or has in
// another version; under a backend that it has not, or has with other rules; or
// at an endpoint that it has not, or has at another address. Weights, and other
// endpoints of its backend, are nothing to a flow.
func (r *ruling) old(f *flow.Flow) bool {
	_, _, is := r.object(f)
	return is
}

// object is the old object that f is under, if there is one, and whether there is
// none of its name any more.
func (r *ruling) object(f *flow.Flow) (ref config.Ref, gone, is bool) {
	l := f.Listener()
	if now := r.heir(l); now != l && (now == nil || now.Ref != l.Ref) {
		return l.Ref, r.c.Listeners[l.Ref.Name] == nil, true
	}
	b := f.Backend() // nil between requests
	if b == nil {
		return config.Ref{}, false, false
	}
	now := r.c.Backends[b.Ref.Name]
	if now == b {
		return config.Ref{}, false, false
	}
	if now == nil {
		return b.Ref, true, true
	}
	same, known := r.same[b]
	if !known {
		same = sameRules(now, b)
		r.same[b] = same
	}
	if !same {
		return b.Ref, false, true
	}
	if e := f.Endpoint(); e != nil {
		if is := now.Endpoint(e.Name); is == nil || !is.SameServer(e) {
			return e.Ref, is == nil, true
		}
	}
	return config.Ref{}, false, false
}

// between tells whether f is between two requests, and the next one will be under
// what is in force: then it is under nothing old that could rule it.
func (r *ruling) between(f *flow.Flow) bool {
	return f.Listener().Protocol == config.HTTP && f.Phase() == flow.Idle && r.heir(f.Listener()) != nil
}

// sameRules tells whether two versions of a backend rule alike, whatever their
// endpoints.
func sameRules(a, b *config.Backend) bool {
	if a.Ref == b.Ref {
		return true
	}
	x, y := *a, *b
	x.Ref, x.Endpoints, y.Ref, y.Endpoints = config.Ref{}, nil, config.Ref{}, nil
	return reflect.DeepEqual(&x, &y)
}

// oldCount counts flows under old objects.
type oldCount struct {
	*ruling
	flows int
	by    map[config.Ref]*OldObject
}

func newOldCount(c *config.Config) *oldCount {
	return &oldCount{ruling: newRuling(c), by: map[config.Ref]*OldObject{}}
}

func (o *oldCount) add(f *flow.Flow) {
	ref, gone, is := o.object(f)
	if !is || o.between(f) {
		return
	}
	o.flows++
	x := o.by[ref]
	if x == nil {
		x = &OldObject{Object: ref.Kind.String() + "/" + ref.Name, Version: fmt.Sprintf("%016x", ref.Version), Gone: gone}
		o.by[ref] = x
	}
	x.Flows++
}

// eachOld counts the flows of all loops.
func (n *Node) eachOld(o *oldCount) {
	n.eachFlow(func(_ *loop.Loop, _ uint32, f *flow.Flow) { o.add(f) })
}

// oldShown bounds the objects that a status names.
const oldShown = 20

// list gives the objects with most flows, and how long ago the oldest one of all
// was replaced. Of what nobody knows when it left, it is 0: a predecessor of
// another release did not say.
func (s *flowSide) oldest(o *oldCount, now time.Time) (top []OldObject, age time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref, x := range o.by {
		if at, known := s.left[ref]; known {
			since := now.Sub(at)
			x.AgeSeconds = since.Seconds()
			age = max(age, since)
		}
		top = append(top, *x)
	}
	slices.SortFunc(top, func(a, b OldObject) int {
		return cmp.Or(cmp.Compare(b.Flows, a.Flows), cmp.Compare(b.AgeSeconds, a.AgeSeconds), cmp.Compare(a.Object, b.Object), cmp.Compare(a.Version, b.Version))
	})
	return top[:min(len(top), oldShown)], age
}
