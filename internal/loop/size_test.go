package loop

import (
	"testing"
	"unsafe"

	"github.com/holdfast-lb/holdfast/internal/flow"
)

// An idle pair costs its slot and little else, so the slot's size is what a
// user sees as memory per connection.
func TestSlotIsSmall(t *testing.T) {
	if n := unsafe.Sizeof(slot{}); n > 128 {
		t.Errorf("a slot has %d octets (flow %d, leg %d, timer %d), want at most 128", n,
			unsafe.Sizeof(flow.Flow{}), unsafe.Sizeof(leg{}), unsafe.Sizeof(timer{}))
	}
	if n := unsafe.Sizeof([chunkPlaces]slot{}); n > 64<<10 || n < 60<<10 {
		t.Errorf("a chunk has %d octets; the allocator gives 64 KiB for it", n)
	}
}
