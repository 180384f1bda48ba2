package node

import (
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
)

// flowSide is what the node knows of flows beside those that follow the
// configuration in force: what goes on under old objects, what is still to
// follow, what is shed, what was ended.
type flowSide struct {
	kernel  kernelSide
	applies applies

	// mu guards what follows.
	mu     sync.Mutex
	sheds  map[string]*shed         // by backend
	killed map[[2]string]uint64     // by listener and how
	left   map[config.Ref]time.Time // when an object left the configuration
}

// beginFlows starts what looks after flows, and gives what ends it.
func (n *Node) beginFlows() (end func()) {
	s := &n.side
	s.sheds, s.killed, s.left = map[string]*shed{}, map[[2]string]uint64{}, map[config.Ref]time.Time{}
	if err := s.kernel.open(); err != nil {
		n.log.Warn("the kernel's counters of silent loss cannot be read; reports of changes go without them", "error", err)
	}
	end = every(sheddingEvery, n.endSheds)
	return func() {
		end()
		s.kernel.close()
	}
}

// expects refuses a write whose writer has seen another generation.
func (n *Node) expects(g Guard) error {
	if in := n.Generation(); g.Expect != 0 && g.Expect != in {
		return fmt.Errorf("node: generation %d is in force, %d was expected: %w", in, g.Expect, ErrChanged)
	}
	return nil
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
