//go:build planted

package node

import (
	"fmt"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/planted"
)

// A listener that is closed while a handshake with it is under way is not there any
// more when it is wanted back; one whose queue was not looked at is closed at once.
func TestPlanted(t *testing.T) {
	for _, n := range []int{76} {
		to, a, b := echo(t), free(t), free(t)
		one := fmt.Sprintf("listeners:\n  a: { vip: %q, backend: e }\n", a)
		both := one + fmt.Sprintf("  b: { vip: %q, backend: e }\n", b)
		rest := fmt.Sprintf("backends:\n  e: { endpoints: [ { name: e, address: %q } ] }\n", to)
		x := start(t, both+rest)
		unheard(t, b)
		planted.Set(n)
		x.reload(one + rest)
		await(t, "the listener is still there: the bug was not found", func() bool {
			x.retiring.mu.Lock()
			defer x.retiring.mu.Unlock()
			return len(x.retiring.by) == 0
		})
		planted.Set(0)
		if x.revive(b) != nil {
			t.Errorf("bug %d, %s, was not found", n, planted.All[n])
		}
	}
}
