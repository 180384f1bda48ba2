package node

import (
	"fmt"
	"net"
	"testing"
	"time"
)

// BenchmarkObserve is what is done each second for the history, and for a page that
// somebody looks at, with 5000 open connections.
func BenchmarkObserve(b *testing.B) {
	const flows = 5000
	web := free(&testing.T{})
	n, err := Start(Options{File: "x", Source: fmt.Appendf(nil, `
node: { loops: 2 }
listeners: { web: { vip: %q, protocol: http, backend: app } }
backends: { app: { endpoints: [ { address: "127.0.0.1:1" } ] } }
`, web), Log: discard()})
	if err != nil {
		b.Fatal(err)
	}
	defer n.Stop()
	for range flows {
		c, err := net.Dial("tcp4", web)
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = c.Close() }()
	}
	for n.flows() < flows {
		time.Sleep(time.Millisecond)
	}
	c := n.Config()
	b.Run("unseen", func(b *testing.B) {
		for range b.N {
			n.observe(time.Now().Add(2*unseenAfter), c)
		}
	})
	b.Run("seen", func(b *testing.B) {
		for range b.N {
			n.history.mu.Lock()
			n.history.looked = time.Now()
			n.history.mu.Unlock()
			n.observe(time.Now(), c)
		}
	})
	b.Run("look", func(b *testing.B) {
		var k looks
		for range b.N {
			n.look(time.Now(), &k)
		}
	})
}
