package sim

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/holdfast-lb/holdfast/internal/balance"
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// Proc is one process of the balancer: what package node makes, over simulated
// kernels and without goroutines.
type Proc struct {
	name     string
	w        *World
	host     *Host
	fds      *FDs
	kernels  []*Kernel
	shared   *loop.Shared
	objects  *registry
	gen      *loop.Generation
	source   string
	log      *bytes.Buffer
	dead     bool
	leaving  bool // it hands everything over
	arriving bool // it takes over
	gave     bool // it has handed something over and is to end
	crashed  bool // it was killed
	stopped  bool // it stands still, as by SIGSTOP
	// It drains, and the process that serves does not know what it holds.
	forgotten bool
	drains    map[uint64]bool // flows that its successor has refused
	goesOn    flow.Instant    // then it does no more; 0: never
	tasks     []*task
	carriers  []*carrier
	talks     map[string]*hostTaker // in which flows of other hosts have come
	unsure    bool                  // the talk in which its flows leave has broken, and it may not know
}

// shell is a process that knows nothing yet.
func (w *World) shell(name string, h *Host, fds *FDs) *Proc {
	p := &Proc{name: name, w: w, host: h, fds: fds, objects: &registry{map[config.Ref]any{}}, log: &bytes.Buffer{}, shared: &loop.Shared{}, talks: map[string]*hostTaker{}}
	p.gen = &loop.Generation{Config: &config.Config{}}
	p.shared.Ledger = ledger.New(ledger.Options{Policy: balance.Policy{}, Ring: func(int, uint64) {}})
	w.procs = append(w.procs, p)
	return p
}

// newProc begins a process under the configuration in source.
func (w *World) newProc(name string, h *Host, source string, inherited map[string]sock.FD, fds *FDs, firstID, generation uint64) (*Proc, error) {
	p := w.shell(name, h, fds)
	return p, p.begin(source, inherited, firstID, generation)
}

// begin makes of a shell a process that serves; inherited listeners by VIP are its
// own from now on.
func (p *Proc) begin(source string, inherited map[string]sock.FD, firstID, generation uint64) error {
	w := p.w
	c, _, err := config.Parse("sim.yaml", []byte(source), nil)
	if err != nil {
		return err
	}
	p.source = source
	shared := &loop.Shared{Objects: p.objects, Log: slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelError}))}
	shared.Sinks = w.policy.recordsOf(w.loops)
	shared.NextID.Store(firstID)
	shared.Ledger = ledger.New(ledger.Options{
		Policy: balance.Policy{},
		Ring:   func(loop int, token uint64) { shared.Loops[loop].Ring(token) },
		Open: func() {
			for _, l := range shared.Loops {
				l.Do(func(l *loop.Loop) { l.ResumeAccepting() })
			}
		},
		Node: c.Node.Name,
		Zone: c.Node.Zone,
	})
	p.shared = shared
	if p.gen, err = p.open(c, nil, inherited, generation); err != nil {
		return err
	}
	for i := range w.loops {
		k := &Kernel{net: w.net, fds: p.fds, noise: w.noise}
		p.kernels = append(p.kernels, k)
		shared.Loops = append(shared.Loops, loop.New(i, k, shared, w.net.rng.Uint64()))
	}
	p.setLimits(c)
	p.objects.addConfig(c)
	w.policy.inherit(p)
	for _, l := range shared.Loops {
		l.SetGeneration(p.gen)
	}
	return nil
}

func (p *Proc) setLimits(c *config.Config) {
	p.shared.Ledger.Node.SetMax(c.Node.ConnectionsMax)
	for _, l := range c.SortedListeners() {
		p.shared.Ledger.Listener(l.Ref.Name).SetMax(l.ConnectionsMax)
	}
	for _, b := range c.SortedBackends() {
		p.shared.Ledger.Backend(b.Ref.Name).Govern(b)
	}
}

// open makes the generation of c, as node.open does.
func (p *Proc) open(c *config.Config, old *loop.Generation, inherited map[string]sock.FD, number uint64) (*loop.Generation, error) {
	g := &loop.Generation{Number: number, Config: c, Listening: map[string]*loop.Listening{}}
	have := maps.Clone(inherited)
	if have == nil {
		have = map[string]sock.FD{}
	}
	if old != nil {
		for _, x := range old.Listening {
			have[x.Object.VIP.String()] = x.FD
		}
	}
	for _, l := range c.SortedListeners() {
		name := l.Ref.Name
		if old != nil {
			if was := old.Listening[name]; was != nil && was.Object == l && was.Backend == c.Backends[l.BackendName] {
				g.Listening[name] = was
				continue
			}
		}
		x := &loop.Listening{Object: l, Backend: c.Backends[l.BackendName], Gate: p.shared.Ledger.Listener(name)}
		fd, ok := have[l.VIP.String()]
		if !ok {
			var err error
			if fd, err = p.fds.listen(l.VIP, 64); err != nil {
				return nil, err
			}
		}
		x.FD = fd
		g.Listening[name] = x
	}
	return g, nil
}

func (p *Proc) accepting(on bool) {
	for _, l := range p.shared.Loops {
		l.Do(func(l *loop.Loop) { l.SetAccepting(on) })
	}
}

// relook finds what another process was woken for.
func (p *Proc) relook() {
	for _, l := range p.shared.Loops {
		l.Do((*loop.Loop).Relook)
	}
}

// account finds the ledger's account of an endpoint by its full name.
func (p *Proc) account(endpoint string) *ledger.Endpoint {
	backend, _, _ := strings.Cut(endpoint, "/")
	return p.shared.Ledger.Backend(backend).Endpoint(endpoint)
}

func (p *Proc) flows() (n int) {
	for _, l := range p.shared.Loops {
		n += l.Load()
	}
	return n
}

// crash ends the process as SIGKILL does.
func (p *Proc) crash() {
	p.dead, p.crashed = true, true
	for _, t := range p.tasks {
		t.kill()
	}
	p.stopped = false
	maps.DeleteFunc(p.w.inFlight, func(_ uint64, of *Proc) bool { return of == p })
	maps.DeleteFunc(p.w.net.holds, func(_ move.Tuple, by *Proc) bool { return by == p })
	p.count()
	p.closePollers()
	for _, c := range p.carriers {
		_ = c.Close()
	}
	p.fds.crash()
}

// closePollers is what the end of a process does to its epoll instances.
func (p *Proc) closePollers() {
	for _, k := range p.kernels {
		for len(k.watches) > 0 {
			k.watches[0].forget()
		}
	}
}

// exit is the orderly end of a process that has given all it had.
func (p *Proc) exit() {
	for _, l := range p.shared.Loops {
		l.SetAccepting(false)
		for _, i := range l.Slots(0, nil) {
			l.Kill(i)
		}
		l.Turn(false)
		l.CloseIdle("")
		l.Free()
	}
	for _, name := range slices.Sorted(maps.Keys(p.gen.Listening)) {
		p.fds.close(p.gen.Listening[name].FD)
	}
	p.closePollers()
	if n := p.fds.count(); n > 0 {
		p.w.fail("%s ends and leaves %d descriptors open", p.name, n)
	}
	if p.w.policy != nil {
		p.shared.Ledger.Alone() // what the successor holds is not judged here
		p.w.policy.gone(p, true)
	}
	p.count()
	p.dead = true
	for _, t := range p.tasks {
		t.kill() // what it hears of a process before it
	}
	for _, c := range p.carriers {
		_ = c.Close()
	}
	p.fds.dead = true
}

// count adds what the loops have counted to the world's.
func (p *Proc) count() {
	for _, l := range p.shared.Loops {
		p.w.counted(&l.Count)
	}
}

// registry is the table of objects of a process, as in package node.
type registry struct{ objects map[config.Ref]any }

func (r *registry) add(o any) {
	put := func(ref config.Ref, o any) {
		if r.objects[ref] == nil {
			r.objects[ref] = o
		}
	}
	switch o := o.(type) {
	case *config.Listener:
		put(o.Ref, o)
	case *config.Backend:
		put(o.Ref, o)
		for _, e := range o.Endpoints {
			put(e.Ref, e)
		}
	case *config.Endpoint:
		put(o.Ref, o)
	}
}

func (r *registry) addConfig(c *config.Config) {
	for _, l := range c.Listeners {
		r.add(l)
	}
	for _, b := range c.Backends {
		r.add(b)
	}
}

// reuse makes equal objects the same pointers, as package node does.
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

func (r *registry) Listener(name string, version uint64) *config.Listener {
	o, _ := r.objects[config.Ref{Kind: config.ListenerKind, Name: name, Version: version}].(*config.Listener)
	return o
}

func (r *registry) Backend(name string, version uint64) *config.Backend {
	o, _ := r.objects[config.Ref{Kind: config.BackendKind, Name: name, Version: version}].(*config.Backend)
	return o
}

func (r *registry) Endpoint(name string, version uint64) *config.Endpoint {
	o, _ := r.objects[config.Ref{Kind: config.EndpointKind, Name: name, Version: version}].(*config.Endpoint)
	return o
}

var frozenKinds = map[config.Kind]frozen.Object_Kind{
	config.ListenerKind: frozen.Object_LISTENER,
	config.BackendKind:  frozen.Object_BACKEND,
	config.EndpointKind: frozen.Object_ENDPOINT,
}

// portable gives the objects that z names and that are not in sent.
func (r *registry) portable(z *frozen.Flow, sent map[config.Ref]bool) (out []*frozen.Object) {
	for _, x := range []struct {
		kind config.Kind
		ref  *frozen.Ref
	}{{config.ListenerKind, z.Listener}, {config.BackendKind, z.Backend}, {config.EndpointKind, z.Endpoint}} {
		if x.ref == nil {
			continue
		}
		key := config.Ref{Kind: x.kind, Name: x.ref.Name, Version: x.ref.Version}
		if sent[key] {
			continue
		}
		if o, ok := r.objects[key].(interface{ Encode() []byte }); ok {
			sent[key] = true
			out = append(out, &frozen.Object{Kind: frozenKinds[x.kind], Name: key.Name, Version: key.Version, Encoding: o.Encode()})
		}
	}
	return out
}

func (r *registry) receive(objects []*frozen.Object) error {
	for _, o := range objects {
		for kind, k := range frozenKinds {
			if k != o.Kind {
				continue
			}
			x, err := config.DecodeObject(kind, o.Name, o.Encoding)
			if err != nil {
				return &frozen.Refused{What: "object " + o.Name, Why: err.Error()}
			}
			r.add(x)
			if r.objects[config.Ref{Kind: kind, Name: o.Name, Version: o.Version}] == nil {
				return &frozen.Refused{What: "object " + o.Name, Why: "its contents are of another version"}
			}
		}
	}
	return nil
}

// adopting finds current objects by name, others by exact version.
type adopting struct {
	current *config.Config
	exact   *registry
}

func (a adopting) Listener(name string, version uint64) *config.Listener {
	was := a.exact.Listener(name, version)
	if l := flow.Heir(a.current, was); l != nil {
		return l
	}
	return was
}

func (a adopting) Backend(name string, version uint64) *config.Backend {
	if b := a.current.Backends[name]; b != nil {
		return b
	}
	return a.exact.Backend(name, version)
}

func (a adopting) Endpoint(name string, version uint64) *config.Endpoint {
	backend, short, _ := strings.Cut(name, "/")
	if b := a.current.Backends[backend]; b != nil {
		if e := b.Endpoint(short); e != nil {
			return e
		}
	}
	return a.exact.Endpoint(name, version)
}

func (a adopting) Was(name string, version uint64) *config.Listener {
	return a.exact.Listener(name, version)
}

func (a adopting) WasBackend(name string, version uint64) *config.Backend {
	return a.exact.Backend(name, version)
}

func (a adopting) WasEndpoint(name string, version uint64) *config.Endpoint {
	return a.exact.Endpoint(name, version)
}

func (p *Proc) String() string {
	return fmt.Sprintf("%s flows %d fds %d dead %t", p.name, p.flows(), p.fds.count(), p.dead)
}
