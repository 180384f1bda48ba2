package node

import (
	"net"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/sock"
)

// A process that has handed over, and has flows left, holds no listener open: what its
// successor closes is closed. Its flows go on, and nothing is closed twice at its end.
func TestListenersAreLetGo(t *testing.T) {
	vip, server := free(t), echo(t)
	n := start(t, yaml(vip, server, "", ""))
	conn := dial(t, vip)
	says(t, conn, "before")
	n.LetListenersGo() // nobody has succeeded it
	says(t, dial(t, vip), "new")
	n.mu.Lock()
	n.successor = 1
	n.mu.Unlock()
	open := sock.Open()
	n.LetListenersGo()
	n.LetListenersGo()
	if now := sock.Open(); now != open-1 {
		t.Errorf("%d descriptors are closed, want one", open-now)
	}
	if c, err := net.Dial("tcp", vip); err == nil {
		_ = c.Close()
		t.Error("the listener is open still")
	}
	says(t, conn, "after")
}
