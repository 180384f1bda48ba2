package node

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
)

// registry finds every object that a flow of this process may name: those of
// the generation in force, and older ones as long as flows name them. It
// implements flow.Objects for exact versions.
type registry struct {
	// mu guards all below.
	mu      sync.RWMutex
	objects map[config.Ref]*registered
}

type registered struct {
	object any
	seen   time.Time // when it was last known to be named
}

// unseenMax is how long an object stays that neither the generation nor any
// flow in a table names: at least two looks at all flows (sweepEvery) pass. A flow
// that is between two tables is in none, but no host is waited for that long
// (answerTime), and between two processes nothing is forgotten. What ten changes a
// second leave behind in this time is a good part of what they cost.
const unseenMax = 25 * time.Second

func newRegistry() *registry { return &registry{objects: map[config.Ref]*registered{}} }

// add notes objects as named at now; one that is there already stays, so that
// equal objects are one.
func (r *registry) add(now time.Time, objects ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range objects {
		switch o := o.(type) {
		case *config.Listener:
			r.put(now, o.Ref, o)
		case *config.Backend:
			r.put(now, o.Ref, o)
			for _, e := range o.Endpoints {
				r.put(now, e.Ref, e)
			}
		case *config.Endpoint:
			r.put(now, o.Ref, o)
		}
	}
}

func (r *registry) put(now time.Time, ref config.Ref, o any) {
	if was := r.objects[ref]; was != nil {
		was.seen = now
		return
	}
	r.objects[ref] = &registered{object: o, seen: now}
}

// addPlan notes the objects that a plan brings.
func (r *registry) addPlan(now time.Time, p config.Plan) {
	for _, l := range p.ListenersAdded {
		r.add(now, l)
	}
	for _, l := range p.ListenersChanged {
		r.add(now, l.New)
	}
	for _, b := range p.BackendsAdded {
		r.add(now, b)
	}
	for _, b := range p.BackendsChanged {
		r.add(now, b.New)
	}
}

// addConfig notes all objects of c.
func (r *registry) addConfig(now time.Time, c *config.Config) {
	for _, l := range c.Listeners {
		r.add(now, l)
	}
	for _, b := range c.Backends {
		r.add(now, b)
	}
}

// reuse gives a config with the contents of c in which every object that is
// registered in the same version is the registered one: so equal objects are
// the same pointers, also with those of a generation before the last, under
// which there may be flows.
func (r *registry) reuse(c *config.Config) *config.Config {
	known := &config.Config{Listeners: map[string]*config.Listener{}, Backends: map[string]*config.Backend{}}
	for name, l := range c.Listeners {
		if was := r.Listener(name, l.Ref.Version); was != nil {
			known.Listeners[name] = was
		}
	}
	for name, b := range c.Backends {
		if was := r.Backend(name, b.Ref.Version); was != nil {
			known.Backends[name] = was
			continue
		}
		some := &config.Backend{}
		for _, e := range b.Endpoints {
			if was := r.Endpoint(e.Ref.Name, e.Ref.Version); was != nil {
				some.Endpoints = append(some.Endpoints, was)
			}
		}
		known.Backends[name] = some
	}
	return c.Reuse(known)
}

// prune forgets what nobody has named for a while and tells how many objects
// are left.
func (r *registry) prune(now time.Time) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	for ref, x := range r.objects {
		if now.Sub(x.seen) > unseenMax {
			delete(r.objects, ref)
		}
	}
	return len(r.objects)
}

func (r *registry) find(kind config.Kind, name string, version uint64) any {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if x := r.objects[config.Ref{Kind: kind, Name: name, Version: version}]; x != nil {
		return x.object
	}
	return nil
}

func (r *registry) Listener(name string, version uint64) *config.Listener {
	o, _ := r.find(config.ListenerKind, name, version).(*config.Listener)
	return o
}

func (r *registry) Backend(name string, version uint64) *config.Backend {
	o, _ := r.find(config.BackendKind, name, version).(*config.Backend)
	return o
}

func (r *registry) Endpoint(name string, version uint64) *config.Endpoint {
	o, _ := r.find(config.EndpointKind, name, version).(*config.Endpoint)
	return o
}

var frozenKinds = map[config.Kind]frozen.Object_Kind{
	config.ListenerKind: frozen.Object_LISTENER,
	config.BackendKind:  frozen.Object_BACKEND,
	config.EndpointKind: frozen.Object_ENDPOINT,
}

// portable gives the objects that z names and that are not in sent, for a
// receiver that may not have them.
func (r *registry) portable(z *frozen.Flow, sent map[config.Ref]bool) []*frozen.Object {
	var out []*frozen.Object
	carry := func(kind config.Kind, ref *frozen.Ref) {
		if ref == nil {
			return
		}
		key := config.Ref{Kind: kind, Name: ref.Name, Version: ref.Version}
		if sent[key] {
			return
		}
		if o, ok := r.find(kind, ref.Name, ref.Version).(interface{ Encode() []byte }); ok {
			sent[key] = true
			out = append(out, &frozen.Object{Kind: frozenKinds[kind], Name: ref.Name, Version: ref.Version, Encoding: o.Encode()})
		}
	}
	carry(config.ListenerKind, z.Listener)
	carry(config.BackendKind, z.Backend)
	carry(config.EndpointKind, z.Endpoint)
	return out
}

// receive takes the objects of a batch. Each is checked against its version.
func (r *registry) receive(now time.Time, objects []*frozen.Object) error {
	for _, o := range objects {
		kind, known := config.Kind(0), false
		for k, f := range frozenKinds {
			if f == o.Kind {
				kind, known = k, true
			}
		}
		if !known {
			return &frozen.Refused{What: "object " + o.Name, Why: fmt.Sprintf("kind %v is not known to this release", o.Kind)}
		}
		if r.find(kind, o.Name, o.Version) != nil {
			continue
		}
		x, err := config.DecodeObject(kind, o.Name, o.Encoding)
		if err != nil {
			return &frozen.Refused{What: "object " + o.Name, Why: err.Error()}
		}
		r.add(now, x)
		if r.find(kind, o.Name, o.Version) == nil {
			return &frozen.Refused{What: "object " + o.Name, Why: "its contents are of another version"}
		}
	}
	return nil
}

// adopting finds current objects by name, and others by exact version: how
// flows are thawed that adopt a change of the configuration.
type adopting struct {
	current *config.Config
	exact   flow.Objects
}

func (a adopting) Listener(name string, version uint64) *config.Listener {
	was := a.exact.Listener(name, version)
	if was == nil {
		return a.current.Listeners[name]
	}
	if l := flow.Heir(a.current, was); l != nil {
		return l
	}
	return was
}

// Was makes it a [flow.Changer].
func (a adopting) Was(name string, version uint64) *config.Listener {
	return a.exact.Listener(name, version)
}

// WasBackend and WasEndpoint are of it, too.
func (a adopting) WasBackend(name string, version uint64) *config.Backend {
	return a.exact.Backend(name, version)
}

// WasEndpoint is described at WasBackend.
func (a adopting) WasEndpoint(name string, version uint64) *config.Endpoint {
	return a.exact.Endpoint(name, version)
}

func (a adopting) Backend(name string, version uint64) *config.Backend {
	if b := a.current.Backends[name]; b != nil {
		return b
	}
	return a.exact.Backend(name, version)
}

func (a adopting) Endpoint(name string, version uint64) *config.Endpoint {
	backend, short, _ := strings.Cut(name, "/") // no backend's name has one
	if b := a.current.Backends[backend]; b != nil {
		if e := b.Endpoint(short); e != nil {
			return e
		}
	}
	return a.exact.Endpoint(name, version)
}
