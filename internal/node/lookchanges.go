package node

import (
	"sync"
	"time"
)

// changesShown bounds the generations that a [Changes] has.
const changesShown = 100

// Changes is what has been done to the desired state and what is still being done
// because of it, for a page that is shown again and again.
type Changes struct {
	At          time.Time
	Generation  uint64
	File        string
	FileDiffers bool
	Durable     string
	Edits       []Drift // of the desired state, that the file does not say
	Generations []GenerationInfo
	Canary      string
	CanaryEnds  time.Time
	Shifts      []ShiftState
	Following   []FollowStatus
	Sheds       []ShedStatus
	Removing    []RemovalStatus
	// Kernel is by how much the kernel's counters of silent loss grew around
	// changes, Late how many connections came to a listener while it closed.
	Kernel map[string]uint64
	Late   uint64
	// OnOld flows are under OldObjects, of which the oldest was replaced Oldest ago.
	OnOld      int
	OldObjects []OldObject
	Oldest     time.Duration
}

// changesLook is how it was when somebody looked.
type changesLook struct {
	// mu guards what follows; it is held while one looks, so that many who look at
	// once cost as much as one.
	mu    sync.Mutex
	last  *Changes
	again time.Time // not before
}

// Changes tells of changes as they are, or as they were a second ago if somebody
// has looked then. Nobody may change what it gives.
func (n *Node) Changes() *Changes {
	k := &n.side.look
	k.mu.Lock()
	defer k.mu.Unlock()
	began := time.Now()
	if k.last != nil && (began.Before(k.again) || n.stopped.Load()) {
		return k.last
	}
	olds := newOldCount(n.Config())
	n.eachOld(olds)
	state := n.ConfigState()
	c := &Changes{
		At: began, Generation: state.Generation, File: state.File, FileDiffers: state.FileDiffers, Durable: state.Durable, Edits: state.Edits,
		Generations: n.Generations(changesShown), Canary: state.Canary, CanaryEnds: state.CanaryEnds, Shifts: state.Shifts,
		Following: n.side.followingNow(), Sheds: n.shedding(), Removing: n.side.removingNow(), OnOld: olds.flows,
	}
	c.Kernel, c.Late = n.side.kernel.seen()
	c.OldObjects, c.Oldest = n.side.oldest(olds, began)
	k.last = c
	k.again = began.Add(max(lookEvery*9/10, time.Since(began)*lookShare))
	return c
}
