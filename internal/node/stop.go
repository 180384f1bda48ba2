package node

import (
	"maps"
	"slices"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/loop"
)

const (
	// idleEvery is the time between two looks for clients that have become idle;
	// idleChunk of them are sent away in one turn.
	idleEvery = 20 * time.Millisecond
	idleChunk = 256
)

// Drain begins the end of the process: the listeners are closed, clients of
// HTTP are sent away by FIN once they are between requests, and whatever else is
// under way goes on until it ends, d is over, or hurry is closed. It gives how
// many flows are left, which Stop resets. tell, if not nil, is told how many
// there are, about once a second.
func (n *Node) Drain(d time.Duration, hurry <-chan struct{}, tell func(left int)) int {
	end := time.NewTimer(d)
	defer end.Stop()
	look := time.NewTicker(idleEvery)
	defer look.Stop()
	// An upgrade or a migration may be under way, and take long. One that has moved
	// nothing yet ends now.
	n.end()
	for !n.change.TryLock() {
		select {
		case <-look.C:
		case <-hurry:
			return n.flows()
		case <-end.C:
			return n.flows()
		}
	}
	n.closeListeners()
	n.change.Unlock()
	var told time.Time
	for {
		n.closeIdle()
		left := n.flows()
		if left == 0 && n.retiring.under() == 0 { // nor is anybody in a handshake
			return 0
		}
		if tell != nil && time.Since(told) >= time.Second {
			told = time.Now()
			tell(left)
		}
		select {
		case <-look.C:
		case <-hurry:
			return left
		case <-end.C:
			return left
		}
	}
}

// closeListeners accepts what the kernel has queued already, and nothing after
// that: who comes now is refused and can go elsewhere. The caller holds change.
func (n *Node) closeListeners() {
	if n.inCharge() != nil {
		return // they are a successor's
	}
	n.mu.Lock()
	old := n.gen
	n.ending = true
	n.gen = &loop.Generation{Number: old.Number, Config: old.Config, Listening: map[string]*loop.Listening{}}
	g := n.gen
	n.mu.Unlock()
	for _, l := range n.shared.Loops {
		l.Ask(func(l *loop.Loop) { l.SetGeneration(g) })
	}
	n.retire(slices.Collect(maps.Values(old.Listening))...)
}

// closeIdle sends clients away that are between two requests: they have all
// their answers.
func (n *Node) closeIdle() {
	idle := func(f *flow.Flow) bool { return f.State() == flow.Reading && f.Phase() == flow.Idle }
	for _, l := range n.shared.Loops {
		for more := true; more; {
			l.Ask(func(l *loop.Loop) {
				all := l.Slots(idleChunk, idle)
				for _, i := range all {
					l.Kill(i)
				}
				more = len(all) == idleChunk
			})
		}
	}
}
