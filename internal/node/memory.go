package node

import (
	"bytes"
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/holdfast-lb/holdfast/internal/loop"
)

// Memory is looked at every memoryEvery. From shedFrom percent of the bound on
// accepting pauses and idle clients are closed, until it is below shedUntil.
// Go's runtime is told to collect what it takes to stay below collectAt percent,
// so that there is something to give back before anybody is sent away.
const (
	memoryEvery = 500 * time.Millisecond
	shedFrom    = 90
	shedUntil   = 85
	collectAt   = 80
	// shedShare is the part of a loop's flows that are closed at once, if they are
	// idle, but shedLeast at least; shedChunk are closed in one turn.
	shedShare = 16
	shedLeast = 64
	shedChunk = 64
	// returnEvery bounds how often the runtime is made to give memory back at
	// once: it costs a collection.
	returnEvery = 2 * time.Second
)

// memory watches what the process uses.
type memory struct {
	pauses   atomic.Uint64 // times that accepting paused
	max      uint64        // as the runtime was told
	shedding bool
	returned time.Time
	from     time.Time // of shedding
	closed   int
}

// resident is the memory of the process that is resident, in octets; 0 if the
// kernel does not tell.
func (m *memory) resident() uint64 {
	b, err := os.ReadFile("/proc/self/statm") // proc(5): in pages; the second is resident
	if err != nil {
		return 0
	}
	f := bytes.Fields(b)
	if len(f) < 2 {
		return 0
	}
	pages, err := strconv.ParseUint(string(f[1]), 10, 64)
	if err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize())
}

// short tells whether memory is to be shed from now on.
func short(was bool, used, bound uint64) bool {
	switch {
	case bound == 0:
		return false
	case was:
		return used >= bound/100*shedUntil
	}
	return used >= bound/100*shedFrom
}

// bound tells the runtime a bound that it has not heard of.
func (m *memory) bound(octets uint64) {
	if octets == m.max {
		return
	}
	m.max = octets
	limit := int64(math.MaxInt64) // none
	if octets > 0 {
		limit = int64(octets / 100 * collectAt)
	}
	debug.SetMemoryLimit(limit)
}

// watchMemory looks once, and acts.
func (n *Node) watchMemory(now time.Time) {
	m := &n.memory
	bound := n.Config().Node.MemoryMax
	m.bound(bound)
	if bound == 0 && !m.shedding {
		return
	}
	used := m.resident()
	was := m.shedding
	m.shedding = short(was, used, bound)
	n.shared.Shedding.Store(m.shedding)
	switch {
	case m.shedding && !was:
		m.pauses.Add(1)
		m.from, m.closed = now, 0
		n.log.Warn("memory is short: accepting pauses, idle clients are closed", "resident", used, "bound", bound)
	case was && !m.shedding:
		n.reopen()
		n.log.Info("memory suffices again: accepting goes on", "resident", used, "bound", bound, "closed", m.closed, "took", now.Sub(m.from))
	}
	if !m.shedding {
		return
	}
	for _, l := range n.shared.Loops {
		for left := max(shedLeast, l.Load()/shedShare); left > 0; left -= shedChunk {
			k := 0
			l.Ask(func(l *loop.Loop) { k = l.ShedIdle(min(left, shedChunk)) })
			if m.closed += k; k == 0 {
				break // nobody is idle
			}
		}
	}
	if now.Sub(m.returned) >= returnEvery {
		m.returned = now
		debug.FreeOSMemory()
	}
}
