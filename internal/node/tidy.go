package node

import (
	"runtime"
	runtimemetrics "runtime/metrics"
	"sync/atomic"
)

// litterMax is how much of the heap may be garbage of changes, in octets. The
// collector is set to run seldom, for the loops leave next to nothing behind: left
// to it, ten configurations a second would be five times the memory.
const litterMax = 8 << 20

// tidying collects what changes leave behind.
type tidying struct {
	under atomic.Bool // one is enough
}

// tidy collects garbage if there is much. It returns at once.
func (t *tidying) tidy() {
	if t.under.Swap(true) {
		return
	}
	go func() { // ends with the collection
		defer t.under.Store(false)
		if litter() > litterMax {
			runtime.GC()
		}
	}()
}

// litter is what was allocated since the last collection, in octets.
func litter() uint64 {
	s := []runtimemetrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"}}
	runtimemetrics.Read(s)
	return less(s[0].Value.Uint64(), s[1].Value.Uint64())
}
