package node

import (
	"maps"
	"slices"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// Keeper is who holds listening sockets open while no process has them. Its
// functions are called by one goroutine at a time; nil ones are not.
type Keeper struct {
	// Keep is told of each listener that this process has: with the same socket again
	// after an upgrade. The descriptor stays the node's.
	Keep func(vip string, fd sock.FD)
	// Forget is told of those that are about to be closed. When it returns nobody but
	// this process has them open, or clients would wait in their queues for nobody.
	Forget func(vips ...string)
}

// InheritedKey is the name in Options.Inherited of a socket that listens at vip, an
// address and port; dual: for IPv4 as well.
func InheritedKey(vip string, dual bool) string {
	if dual {
		return vip + "+4"
	}
	return vip
}

// keep has the keeper hold these.
func (n *Node) keep(opened ...*loop.Listening) {
	if n.keeper.Keep == nil {
		return
	}
	for _, x := range opened {
		n.keeper.Keep(vipKey(x.Object), x.FD)
	}
}

// unkeep has the keeper let these go.
func (n *Node) unkeep(closed []*loop.Listening) {
	if n.keeper.Forget == nil || len(closed) == 0 {
		return
	}
	vips := make([]string, len(closed))
	for i, x := range closed {
		vips[i] = vipKey(x.Object)
	}
	n.keeper.Forget(vips...)
}

// closeStrange closes inherited listeners that c does not name, before any of its own
// is opened: they may be in the way. A predecessor keeps its own ones.
func (n *Node) closeStrange(c *config.Config, o *Options) {
	known := map[string]bool{}
	for _, l := range c.Listeners {
		known[vipKey(l)] = true
	}
	if c.Node.Metrics.IsValid() {
		known[scrapeKind+c.Node.Metrics.String()] = true
	}
	if at := apiAddr(&c.Node); at.IsValid() {
		known[apiKind+at.String()] = true
	}
	if c.Cluster != nil {
		known[clusterKey] = true
	}
	for vip, fd := range o.Inherited {
		if known[vip] {
			continue
		}
		if o.Quiet {
			// A predecessor serves it, and has said what it is.
			n.strange = append(n.strange, vip)
		} else {
			o.Log.Warn("an inherited listener is not in the configuration and is closed", "vip", vip)
			if n.keeper.Forget != nil {
				n.keeper.Forget(vip)
			}
		}
		fd.Close()
		delete(o.Inherited, vip)
	}
}

// Successor is the process that serves in place of this one; 0: there is none.
func (n *Node) Successor() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.successor
}

// takeListeners makes the listeners this process's own, which its predecessor has left:
// those that went with its configuration are closed now, and not before, for they
// would have been closed to the predecessor, too.
func (n *Node) takeListeners() {
	s := &n.retiring
	s.mu.Lock()
	later := s.later
	s.later = nil
	s.running.Add(1)
	s.mu.Unlock()
	n.retire(later...)
	go func() { // waited for by endRetiring
		defer s.running.Done()
		n.change.Lock()
		defer n.change.Unlock()
		n.mu.Lock()
		g := n.gen
		n.mu.Unlock()
		if n.keeper.Forget != nil && len(n.strange) > 0 {
			n.keeper.Forget(n.strange...)
		}
		n.keep(slices.Collect(maps.Values(g.Listening))...)
	}()
}

// LetListenersGo closes the listeners, and the doors of metrics and API, of a process
// that has handed over and may have flows left. It had not accepted any more; but as
// long as it has them open they are, even when its successor has closed them, and who
// comes then would wait for nobody.
func (n *Node) LetListenersGo() {
	n.change.Lock()
	defer n.change.Unlock()
	if n.Successor() == 0 {
		return
	}
	n.closeDoors()
	n.closeOpen()
}

// closeOpen closes the listeners that are open, without a look at what waits there.
func (n *Node) closeOpen() {
	n.mu.Lock()
	old := n.gen
	n.gen = &loop.Generation{Number: old.Number, Config: old.Config, Listening: map[string]*loop.Listening{}}
	g := n.gen
	n.mu.Unlock()
	if !n.stopped.Load() {
		n.askAll(func(l *loop.Loop) { l.SetGeneration(g) })
	}
	for _, x := range old.Listening {
		x.FD.Close()
	}
}
