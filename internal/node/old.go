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
	// mu guards what follows.
	mu     sync.Mutex
	sheds  map[string]*shed         // by backend
	killed map[[2]string]uint64     // by listener and how
	kernel map[string]uint64        // how much the kernel's counters grew around changes
	late   uint64                   // connections that came to a listener while it was closed
	left   map[config.Ref]time.Time // when an object left the configuration
}

// beginFlows starts what looks after flows, and gives what ends it.
func (n *Node) beginFlows() (end func()) {
	s := &n.side
	s.sheds, s.killed, s.kernel, s.left = map[string]*shed{}, map[[2]string]uint64{}, map[string]uint64{}, map[config.Ref]time.Time{}
	return every(sheddingEvery, n.endSheds)
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
