package node

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/loop"
)

const (
	// followersMax bounds the changes that flows follow at the same time, paced.
	followersMax = 16
	// followTell is how often it is told how far they are.
	followTell = 5 * time.Second
	// followPause is how long is waited for whoever changes something else.
	followPause = time.Millisecond
)

// follower is a change that flows follow in their time. Its flows are those that
// are under old objects of these names: it holds no list of them, so it goes on in
// a successor as it is.
type follower struct {
	*following // what later changes have touched is guarded by flowSide.mu
	policy     FlowsPolicy
	generation uint64
	stop       context.CancelFunc

	followed, left int // guarded by flowSide.mu
}

// straggler is a flow that has something to do.
type straggler struct {
	tenant
	on   *loop.Loop
	what config.Change
}

// supersede takes from changes that flows still follow what a later one touches.
func (s *flowSide) supersede(x *following) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.followers {
		for name := range x.listeners {
			w.laterListeners[name] = true
		}
		for name := range x.backends {
			w.laterBackends[name] = true
		}
	}
}

// followSlowly begins to let flows follow x, and tells how many have to. The
// caller holds change.
func (n *Node) followSlowly(x *following, p FlowsPolicy, generation uint64) (left int) {
	w := &follower{following: x, policy: p, generation: generation}
	w.left = len(n.stragglers(w, nil))
	if left = w.left; left > 0 {
		n.beginFollower(w)
	}
	return left
}

func (n *Node) beginFollower(w *follower) {
	s := &n.side
	ctx, stop := context.WithCancel(s.life)
	w.stop = stop
	s.mu.Lock()
	s.followers[w] = true
	s.mu.Unlock()
	s.running.Go(func() { // ended by stop, and waited for by beginFlows' end
		n.runFollower(ctx, w)
		stop()
		s.mu.Lock()
		delete(s.followers, w)
		s.mu.Unlock()
	})
}

// stragglers lists the flows that still have to follow, the oldest first, but for
// those that could not.
func (n *Node) stragglers(w *follower, cannot map[uint64]bool) (all []straggler) {
	rule := newRuling(n.Config())
	x := n.side.names(w)
	n.eachFlow(func(l *loop.Loop, i uint32, f *flow.Flow) {
		if what := x.wants(rule, f); what != config.KeepFlows && !cannot[f.ID()] {
			all = append(all, straggler{tenant{i, f.ID(), f.Born()}, l, what})
		}
	})
	slices.SortFunc(all, func(a, b straggler) int { return cmp.Or(cmp.Compare(a.born, b.born), cmp.Compare(a.id, b.id)) })
	return all
}

// names is a copy of what w follows, which later changes may make less.
func (s *flowSide) names(w *follower) *following {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := *w.following
	x.laterListeners, x.laterBackends = maps.Clone(x.laterListeners), maps.Clone(x.laterBackends)
	return &x
}

// runFollower ends when nothing is left to follow, or somebody else goes on.
func (n *Node) runFollower(ctx context.Context, w *follower) {
	began := time.Now()
	p := newPacer(began, w.policy.PerSecond, w.policy.Jitter, rand.Float64)
	r := newReport("config")
	closed, told := 0, began
	cannot := map[uint64]bool{} // what they speak has changed, for example
	if !n.takeChange(ctx) {     // by then a predecessor's flows are here
		return
	}
	n.change.Unlock()
	for {
		list := n.stragglers(w, cannot)
		n.side.progress(w, 0, len(list))
		if len(list) == 0 {
			break
		}
		for len(list) > 0 {
			k, err := p.next(ctx, min(changeChunk, len(list)))
			if err != nil || !n.takeChange(ctx) {
				return
			}
			rule, x := newRuling(n.Config()), n.side.names(w)
			some := list[:k]
			for on, what := range groups(some) {
				switch on.what {
				case config.AdoptFlows:
					for len(what) > 0 {
						what = what[n.adoptSome(on.loop, x, rule, what, r):]
					}
				case config.CloseFlows:
					closed += n.endSome(on.loop, x, rule, what)
				case config.KeepFlows:
				}
			}
			for _, c := range some {
				c.on.Ask(func(l *loop.Loop) {
					if f := c.in(l); f != nil && x.wants(rule, f) != config.KeepFlows {
						cannot[c.id] = true
					}
				})
			}
			n.change.Unlock()
			list = list[k:]
			n.side.progress(w, k, len(list))
			if now := time.Now(); now.Sub(told) >= followTell {
				told = now
				n.tellFollow(w, "%s followed generation %d, %d left", count(w.followed, "flow"), w.generation, w.left)
			}
		}
	}
	if r.done(began); r.Flows > 0 {
		n.totals.move(r)
	}
	n.log.Info("flows have followed a change", "generation", w.generation, "flows", r.Flows, "closed", closed, "took", time.Since(began))
	n.tellFollow(w, "flows have followed generation %d: %d adopted it, %d were closed", w.generation, r.Flows, closed)
}

// groupKey is where stragglers are and what they do.
type groupKey struct {
	loop *loop.Loop
	what config.Change
}

func groups(list []straggler) map[groupKey][]tenant {
	out := map[groupKey][]tenant{}
	for _, c := range list {
		key := groupKey{c.on, c.what}
		out[key] = append(out[key], c.tenant)
	}
	return out
}

func (s *flowSide) progress(w *follower, followed, left int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.followed += followed
	w.left = left
}

func (n *Node) tellFollow(w *follower, format string, args ...any) {
	n.side.mu.Lock()
	fields := map[string]string{"followed": strconv.Itoa(w.followed), "left": strconv.Itoa(w.left), "generation": strconv.FormatUint(w.generation, 10)}
	n.side.mu.Unlock()
	n.tell("follow", "", Author{}, fields, format, args...)
}

// takeChange takes change for a moment; false if this process has nothing to say
// any more. It lets those go first who change the desired state.
func (n *Node) takeChange(ctx context.Context) bool {
	for {
		if n.change.TryLock() {
			if n.heir.Load() { // flows of a predecessor are still to come
				n.change.Unlock()
			} else if n.inCharge() != nil {
				n.change.Unlock()
				return false
			} else {
				return true
			}
		}
		if sleep(ctx, followPause) != nil {
			return false
		}
	}
}

// followingNow tells which changes flows still follow, the oldest first.
func (s *flowSide) followingNow() (all []FollowStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.followers {
		all = append(all, FollowStatus{Generation: w.generation, On: w.policy.On, PerSecond: w.policy.PerSecond, Followed: w.followed, Left: w.left})
	}
	slices.SortFunc(all, func(a, b FollowStatus) int { return cmp.Compare(a.Generation, b.Generation) })
	return all
}

// portableFollower is a follower that goes on in a successor.
type portableFollower struct {
	Generation uint64      `json:"generation"`
	Policy     FlowsPolicy `json:"policy"`
	Listeners  []string    `json:"listeners,omitempty"`
	Backends   []string    `json:"backends,omitempty"`
	End        bool        `json:"end"`
	// What later changes have touched.
	LaterListeners []string `json:"later_listeners,omitempty"`
	LaterBackends  []string `json:"later_backends,omitempty"`
	Followed       int      `json:"followed"`
}

// portableSide is what a successor goes on with.
type portableSide struct {
	Followers []portableFollower `json:"followers,omitempty"`
	Sheds     json.RawMessage    `json:"sheds,omitempty"`
	Left      []portableLeft     `json:"left,omitempty"`
	Removing  []portableRemoval  `json:"removing,omitempty"`
}

// portable is what a successor goes on with; the caller holds change.
func (n *Node) portableSide() ([]byte, error) {
	s := &n.side
	out := portableSide{Sheds: n.portableSheds()}
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.followers {
		out.Followers = append(out.Followers, portableFollower{
			Generation: w.generation, Policy: w.policy, End: w.end, Followed: w.followed,
			Listeners: slices.Sorted(maps.Keys(w.listeners)), Backends: slices.Sorted(maps.Keys(w.backends)),
			LaterListeners: slices.Sorted(maps.Keys(w.laterListeners)), LaterBackends: slices.Sorted(maps.Keys(w.laterBackends)),
		})
	}
	for ref, at := range s.left {
		out.Left = append(out.Left, portableLeft{ref.Kind, ref.Name, ref.Version, at})
	}
	out.Removing = s.portableRemovals()
	return json.Marshal(out)
}

// inheritSide goes on with what a predecessor has left.
func (n *Node) inheritSide(b []byte) error {
	var in portableSide
	if err := json.Unmarshal(b, &in); err != nil {
		return fmt.Errorf("flows that are to follow a change: %w", err)
	}
	s := &n.side
	s.mu.Lock()
	for _, x := range in.Left {
		ref := config.Ref{Kind: x.Kind, Name: x.Name, Version: x.Version}
		if at, ok := s.left[ref]; !ok || x.At.Before(at) {
			s.left[ref] = x.At
		}
	}
	s.begun = append(s.begun, in.Removing[:min(len(in.Removing), removalsMax)]...)
	s.mu.Unlock()
	for _, x := range in.Followers[:min(len(in.Followers), followersMax)] {
		if n.checkFlows(FlowsPolicy{On: x.Policy.On, PerSecond: x.Policy.PerSecond, Jitter: x.Policy.Jitter}) != nil || x.Policy.PerSecond == 0 {
			continue // of a release that knows other ones
		}
		names := &following{listeners: set(x.Listeners), backends: set(x.Backends), laterListeners: set(x.LaterListeners), laterBackends: set(x.LaterBackends), on: x.Policy.On, end: x.End}
		w := &follower{following: names, policy: x.Policy, generation: x.Generation, followed: x.Followed}
		n.beginFollower(w)
	}
	return n.inheritSheds(in.Sheds)
}

func set(names []string) map[string]bool {
	m := map[string]bool{}
	for _, name := range names {
		m[name] = true
	}
	return m
}
