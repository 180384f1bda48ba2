package loop

import (
	"cmp"
	"slices"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/planted"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// Change is the difference between two generations. It is made once, off the
// loops, for all of them: what a loop does of it grows with what has changed, not
// with what there is. It is immutable.
type Change struct {
	Old, New *Generation // Old is nil at the start

	// Of the listening sockets: those that are new, those that were there under
	// another object, name or backend, and those that are there no more.
	opened, renewed, closed []*Listening

	listeners []listenerStep
	backends  []backendStep
}

// listenerStep is a listener that came (was is nil), went (is is nil) or has become
// another; so is backendStep.
type listenerStep struct{ was, is *config.Listener }

type backendStep struct{ was, is *config.Backend }

// Compare makes the Change from old, which may be nil, to g.
func Compare(old, g *Generation) *Change {
	c := &Change{Old: old, New: g}
	var before map[string]*Listening
	var was config.Config
	if old != nil {
		before, was = old.Listening, *old.Config
	}
	stays := map[sock.FD]bool{}
	var sockets map[sock.FD]bool // of before; made when it is needed
	same := 0                    // names that are in both: mostly all are, and there is no need to look for others
	for name, x := range g.Listening {
		if y := before[name]; y == x {
			same++
			continue
		} else if y != nil && y.FD == x.FD {
			same++
			stays[x.FD] = true
			c.renewed = append(c.renewed, x)
			continue
		}
		if sockets == nil {
			sockets = make(map[sock.FD]bool, len(before))
			for _, y := range before {
				sockets[y.FD] = true
			}
		}
		if sockets[x.FD] {
			stays[x.FD] = true
			c.renewed = append(c.renewed, x)
		} else {
			c.opened = append(c.opened, x)
		}
	}
	if same < len(before) {
		for name, y := range before {
			if g.Listening[name] != y && !stays[y.FD] {
				c.closed = append(c.closed, y)
			}
		}
	}
	same = 0
	for name, l := range g.Config.Listeners {
		b := was.Listeners[name]
		if b != nil {
			same++
		}
		if b != l && (b == nil || b.Ref != l.Ref) {
			c.listeners = append(c.listeners, listenerStep{b, l})
		}
	}
	if same < len(was.Listeners) {
		for name, l := range was.Listeners {
			if g.Config.Listeners[name] == nil {
				c.listeners = append(c.listeners, listenerStep{l, nil})
			}
		}
	}
	same = 0
	for name, b := range g.Config.Backends {
		w := was.Backends[name]
		if w != nil {
			same++
		}
		if w != b && (w == nil || w.Ref != b.Ref) {
			c.backends = append(c.backends, backendStep{w, b})
		}
	}
	if same < len(was.Backends) {
		for name, b := range was.Backends {
			if g.Config.Backends[name] == nil {
				c.backends = append(c.backends, backendStep{b, nil})
			}
		}
	}
	// Maps have no order, and a history must be the same each time it is lived
	// through.
	for _, all := range [][]*Listening{c.opened, c.renewed, c.closed} {
		slices.SortFunc(all, func(a, b *Listening) int { return cmp.Compare(a.Object.Ref.Name, b.Object.Ref.Name) })
	}
	slices.SortFunc(c.listeners, func(a, b listenerStep) int { return cmp.Compare(a.name(), b.name()) })
	slices.SortFunc(c.backends, func(a, b backendStep) int { return cmp.Compare(a.name(), b.name()) })
	return c
}

func (x listenerStep) name() string {
	if x.is != nil {
		return x.is.Ref.Name
	}
	return x.was.Ref.Name
}

func (x backendStep) name() string {
	if x.is != nil {
		return x.is.Ref.Name
	}
	return x.was.Ref.Name
}

// Closed are the listeners whose sockets no loop watches any more once all have
// advanced: they are to be retired.
func (c *Change) Closed() []*Listening { return c.closed }

// Opened are the listeners that were not there.
func (c *Change) Opened() []*Listening { return c.opened }

// SetGeneration makes g rule new flows: [Loop.Advance], for who has no Change.
func (l *Loop) SetGeneration(g *Generation) { l.Advance(Compare(l.gen, g)) }

// Advance makes c.New rule new flows and requests. Listeners that are new are
// watched if the loop is accepting; those that are gone are no longer. Flows are
// not touched: each goes on under the objects that it names, and one of HTTP comes
// under what is in force with its next request.
func (l *Loop) Advance(c *Change) {
	if c.Old != l.gen {
		c = Compare(l.gen, c.New)
	}
	l.gen = c.New
	l.desk.Config = c.New.Config
	for _, x := range c.closed {
		l.forgetListener(x)
	}
	for _, x := range c.renewed {
		if n, known := l.numbers[x.FD]; known && !planted.Bug(80) {
			l.listening[n] = x
		}
		delete(l.full, x.FD) // its limits and rates may be others now
	}
	for _, x := range c.opened {
		l.numberListener(x)
	}
	if l.open && !l.paused {
		for _, all := range [][]*Listening{c.renewed, c.opened} {
			for _, x := range all {
				if !l.paused { // as it is since the kernel would not watch one
					l.watchListener(x)
				}
			}
		}
	}
	l.relodge(c)
	l.repool(c)
	l.series.prune(c.New.Config)
}

// numberListener gives a socket its number, for its events.
func (l *Loop) numberListener(x *Listening) {
	var n int
	if k := len(l.unnumbered); k > 0 {
		n, l.unnumbered = l.unnumbered[k-1], l.unnumbered[:k-1]
	} else {
		n = len(l.listening)
		l.listening = append(l.listening, nil)
	}
	l.numbers[x.FD], l.listening[n] = n, x
}

// forgetListener forgets a socket. It is called between turns, so no event of it is
// still to be handled, and its number is free.
func (l *Loop) forgetListener(x *Listening) {
	l.unwatchListener(x)
	delete(l.full, x.FD)
	if n, known := l.numbers[x.FD]; known {
		delete(l.numbers, x.FD)
		l.listening[n] = nil
		l.unnumbered = append(l.unnumbered, n)
	}
}
