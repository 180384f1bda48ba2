package node

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/loop"
)

// applies counts changes of the desired state, for metrics.
type applies struct {
	// mu guards what follows.
	mu    sync.Mutex
	count map[[2]string]uint64 // by kind and result
	took  map[string]*loop.Histogram
}

// Kinds, results and phases of changes, that are there with 0 from the beginning.
var (
	applyKinds   = []string{"start", "file", "apply", "edit", "order", "rollback", "canary-rollback", "shift", "names"}
	applyResults = []string{"applied", "unchanged", "refused"}
	applyPhases  = []string{"plan", "effective", "durable"}
)

// noteApply counts a change by its kind, as in [GenerationInfo], and by its
// result: applied, unchanged or refused.
func (n *Node) noteApply(kind, result string) {
	if !slices.Contains(applyKinds, kind) {
		kind = "apply"
	}
	a := &n.side.applies
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.count == nil {
		a.count = map[[2]string]uint64{}
	}
	a.count[[2]string{kind, result}]++
}

// notePhase notes how long a phase of a change took: plan, which is until nothing
// was left but to do it; effective, from the request until every loop rules by
// it; durable, from the request until it is on the disk.
func (n *Node) notePhase(phase string, took time.Duration) {
	a := &n.side.applies
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.took[phase]
	if h == nil {
		if a.took == nil {
			a.took = map[string]*loop.Histogram{}
		}
		h = &loop.Histogram{}
		a.took[phase] = h
	}
	h.Note(took)
}

func (a *applies) gather(g *gathering) {
	for _, kind := range applyKinds {
		for _, result := range applyResults {
			g.add(appliesTotal, 0, kind, result)
		}
	}
	for _, phase := range applyPhases {
		g.merge(applySeconds, &loop.Histogram{}, phase)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, k := range a.count {
		g.add(appliesTotal, float64(k), key[0], key[1])
	}
	for _, phase := range slices.Sorted(maps.Keys(a.took)) {
		g.merge(applySeconds, a.took[phase], phase)
	}
}
