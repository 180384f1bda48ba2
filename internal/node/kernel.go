package node

import (
	"maps"
	"sync"

	"github.com/holdfast-lb/holdfast/internal/sock"
)

// kernelSide reads the kernel's counters of what is lost silently. They are of
// the whole network namespace: what they say of a change is by when it happened,
// not by whom.
type kernelSide struct {
	// mu guards what follows.
	mu     sync.Mutex
	reader *sock.LossReader // nil: there is none here
	grown  map[string]uint64
	late   uint64
}

// kernelMark is what the counters were.
type kernelMark struct {
	at   sock.Losses
	read bool
}

// open begins to read; without the counters everything else works.
func (k *kernelSide) open() (err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.grown = map[string]uint64{}
	for _, name := range sock.Lossy {
		k.grown[name] = 0
	}
	k.reader, err = sock.OpenLosses()
	return err
}

func (k *kernelSide) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.reader != nil {
		k.reader.Close()
		k.reader = nil
	}
}

// kernelBefore notes the kernel's counters before a change.
func (n *Node) kernelBefore() (m kernelMark) {
	k := &n.side.kernel
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.reader != nil {
		m.read = k.reader.Read(&m.at) == nil
	}
	return m
}

// kernelAfter tells by how much each has grown since, those that did not left
// out, and keeps the sum for status and metrics.
func (n *Node) kernelAfter(before kernelMark) map[string]uint64 {
	k := &n.side.kernel
	k.mu.Lock()
	defer k.mu.Unlock()
	var now sock.Losses
	if !before.read || k.reader == nil || k.reader.Read(&now) != nil {
		return nil
	}
	grown := now.Since(&before.at)
	for name, by := range grown {
		k.grown[name] += by
	}
	if len(grown) == 0 {
		return nil
	}
	return grown
}

// arrivedLate notes connections that came to a listener while it was closed.
func (n *Node) arrivedLate(connections uint64) {
	k := &n.side.kernel
	k.mu.Lock()
	k.late += connections
	k.mu.Unlock()
}

// sums are all that was kept since the process began.
func (k *kernelSide) sums() (grown map[string]uint64, late uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.grown), k.late
}

// seen is sums without what has never grown.
func (k *kernelSide) seen() (grown map[string]uint64, late uint64) {
	grown, late = k.sums()
	maps.DeleteFunc(grown, func(_ string, by uint64) bool { return by == 0 })
	return grown, late
}
