package loop

import (
	"slices"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/planted"
)

// lodge is what a loop keeps for one version of a listener or backend: the
// accounts of its name, and how many flows name it. So how many flows are under
// objects that are no longer in force is known without a look at any flow. It
// is found by the object's pointer, which is cheaper than by its name.
type lodge struct {
	listener *config.Listener // this, or
	backend  *config.Backend  // that
	gate     *ledger.Gate
	book     *ledger.Backend
	door     *Door
	// flows that name the listener; of a backend, those that have an endpoint of it.
	flows int
	since flow.Instant // since when it is not in force; 0: it is
}

// lodges are those of a loop: of all that is in force and was used, and of what
// is not in force as long as flows name it.
type lodges struct {
	listeners map[*config.Listener]*lodge
	backends  map[*config.Backend]*lodge
	old       []*lodge // with since
	// The latest ones.
	listener, backend *lodge
}

// under is the lodge of a listener.
func (l *Loop) under(x *config.Listener) *lodge {
	d := &l.lodges
	if d.listener != nil && d.listener.listener == x {
		return d.listener
	}
	at := d.listeners[x]
	if at == nil {
		at = &lodge{listener: x, gate: l.shared.Ledger.Listener(x.Ref.Name), door: l.named(x.Ref.Name)}
		d.listeners[x] = at
		if l.gen != nil {
			if now := l.gen.Config.Listeners[x.Ref.Name]; now != x && (now == nil || now.Ref != x.Ref) {
				l.outdate(at)
			}
		}
	}
	d.listener = at
	return at
}

// backendLodge is the lodge of a backend.
func (l *Loop) backendLodge(x *config.Backend) *lodge {
	d := &l.lodges
	if d.backend != nil && d.backend.backend == x {
		return d.backend
	}
	at := d.backends[x]
	if at == nil {
		at = &lodge{backend: x, book: l.shared.Ledger.Backend(x.Ref.Name)}
		d.backends[x] = at
		if l.gen != nil {
			if now := l.gen.Config.Backends[x.Ref.Name]; now != x && (now == nil || now.Ref != x.Ref) {
				l.outdate(at)
			}
		}
	}
	d.backend = at
	return at
}

func (l *Loop) outdate(at *lodge) {
	if at.since == 0 {
		at.since = l.now
		l.lodges.old = append(l.lodges.old, at)
	}
}

// relodge notes what is in force and what is no longer.
func (l *Loop) relodge(c *Change) {
	d := &l.lodges
	revived := false
	revive := func(at *lodge) {
		if at != nil && at.since != 0 {
			at.since = 0
			revived = true
		}
	}
	for _, x := range c.listeners {
		if at := d.listeners[x.was]; at != nil {
			l.outdate(at)
		}
		revive(d.listeners[x.is])
		if x.was != nil && l.desk.VIPs[x.was.VIP] == x.was {
			delete(l.desk.VIPs, x.was.VIP)
		}
	}
	for _, x := range c.listeners {
		if x.is != nil {
			l.desk.VIPs[x.is.VIP] = x.is
		}
	}
	for _, x := range c.backends {
		if at := d.backends[x.was]; at != nil {
			l.outdate(at)
		}
		revive(d.backends[x.is])
	}
	if revived {
		d.old = slices.DeleteFunc(d.old, func(at *lodge) bool { return at.since == 0 })
	}
	l.unlodge()
}

// unlodge forgets what is not in force and has no flows any more.
func (l *Loop) unlodge() {
	d := &l.lodges
	kept := d.old[:0]
	for _, at := range d.old {
		if at.flows > 0 {
			kept = append(kept, at)
			continue
		}
		// Who holds a pointer to it does so for a step at most.
		delete(d.listeners, at.listener)
		delete(d.backends, at.backend)
		if d.listener == at {
			d.listener = nil
		}
		if d.backend == at {
			d.backend = nil
		}
	}
	clear(d.old[len(kept):])
	d.old = kept
}

// moveIn notes that the flow has come under another listener between two requests.
// What it counts under goes with it.
func (l *Loop) moveIn(s *slot) {
	was, is := l.desk.From, s.flow.Listener()
	l.desk.From = nil
	from, to := l.under(was), l.under(is)
	from.flows--
	to.flows++
	if planted.Bug(72) {
		return
	}
	if was.Ref.Name != is.Ref.Name { // so have its limits
		to.gate.Admit()
		from.gate.Leave()
	}
	// Whether sources are limited, and how they are told apart, may be another thing
	// in each version.
	sourced := s.sourced
	if s.sourced = limitsSources(is); s.sourced {
		l.shared.Ledger.AdmitSource(is, s.flow.Client().Addr())
	}
	if sourced {
		l.shared.Ledger.LeaveSource(was, s.flow.Client().Addr())
	}
}

// OldObject is a listener or a backend that is not in force and that flows name.
type OldObject struct {
	Ref   config.Ref
	Flows int // of a listener, all; of a backend, those that have an endpoint of it
	// Since is when it left, on the loop's clock; or, if it came with a flow that
	// moved, when that was.
	Since flow.Instant
}

// OldObjects calls do for each object that flows of the loop name and that is not
// in force; to be called on the loop's thread. It looks at no flow. A flow of
// HTTP between two requests is under the listener of the one before.
func (l *Loop) OldObjects(do func(OldObject)) {
	for _, at := range l.lodges.old {
		if at.flows > 0 {
			do(OldObject{at.ref(), at.flows, at.since})
		}
	}
}

func (at *lodge) ref() config.Ref {
	if at.listener != nil {
		return at.listener.Ref
	}
	return at.backend.Ref
}

// FlowsUnder is how many flows of the loop name the listener; FlowsTo how many have
// an endpoint of the backend. To be called on the loop's thread; neither looks
// at any flow.
func (l *Loop) FlowsUnder(x *config.Listener) int {
	if at := l.lodges.listeners[x]; at != nil {
		return at.flows
	}
	return 0
}

// FlowsTo is described at [Loop.FlowsUnder].
func (l *Loop) FlowsTo(x *config.Backend) int {
	if at := l.lodges.backends[x]; at != nil {
		return at.flows
	}
	return 0
}
