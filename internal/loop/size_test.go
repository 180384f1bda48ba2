package loop

import (
	"testing"
	"unsafe"

	"github.com/holdfast-lb/holdfast/internal/flow"
)

// An idle pair costs its slot and little else, so the slot's size is what a
// user sees as memory per connection.
func TestSlotIsSmall(t *testing.T) {
	t.Logf("slot %d flow %d leg %d timer %d", unsafe.Sizeof(slot{}), unsafe.Sizeof(flow.Flow{}), unsafe.Sizeof(leg{}), unsafe.Sizeof(timer{}))
}
