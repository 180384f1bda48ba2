package node

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/resolve"
)

// resolveTime is how long a start or a reload waits for names that were never
// asked for. What has no answer by then comes later, by itself.
const resolveTime = 3 * time.Second

// changeLook is the time between two looks whether a change is over: who waits
// for it in another way could not be stopped.
const changeLook = 20 * time.Millisecond

// naming keeps the endpoints that are names at the addresses that they have now.
// Whoever holds Node.change owns it.
type naming struct {
	n        *Node
	resolver *resolve.Resolver // nil: nothing has a name
	servers  []netip.AddrPort
	of       *config.Config // in force, as it was written: with names
	changed  chan struct{}  // an answer is another
	once     sync.Once
	end      chan struct{}
	ended    chan struct{} // nil before begin
}

func newNaming(n *Node) *naming {
	return &naming{n: n, changed: make(chan struct{}, 1), end: make(chan struct{})}
}

// begin follows the names from now on: the node has a configuration in force.
func (x *naming) begin() {
	x.ended = make(chan struct{})
	go x.follow() // ended by stop
}

// named is a configuration whose names were asked for, before it is in force.
type named struct {
	x        *naming
	of       *config.Config
	resolver *resolve.Resolver
	Config   *config.Config // with addresses in place of names
	kept     bool
}

// prepare asks for the names of c. The result must be kept or ended. known are
// a predecessor's answers, nil if there is none.
func (x *naming) prepare(c *config.Config, known map[string]resolve.Answer) *named {
	m := &named{x: x, of: c, resolver: x.resolver, Config: c}
	hosts := hostsOf(c)
	if len(hosts) == 0 {
		m.resolver = nil
		return m
	}
	if x.resolver == nil || !slices.Equal(x.servers, c.Node.DNS) {
		if x.resolver != nil {
			known = x.resolver.Answers()
		}
		m.resolver = resolve.New(resolve.Options{Servers: c.Node.DNS, Changed: x.tell, Failed: x.failed})
	}
	watched := hosts
	if m.resolver == x.resolver && x.of != nil {
		watched = append(hostsOf(x.of), hosts...) // until it is known whether c comes in force
	}
	m.resolver.Set(watched, known)
	m.resolver.Wait(resolveTime)
	m.Config = resolved(c, m.resolver)
	return m
}

// keep puts it in force.
func (m *named) keep() {
	x := m.x
	m.kept = true
	if x.resolver != nil && x.resolver != m.resolver {
		x.resolver.Stop()
	}
	x.resolver, x.servers, x.of = m.resolver, m.of.Node.DNS, m.of
	if x.resolver != nil {
		x.resolver.Set(hostsOf(m.of), nil)
	}
}

// end forgets it if it was not kept: what was in force goes on.
func (m *named) end() {
	switch x := m.x; {
	case m.kept || m.resolver == nil:
	case m.resolver != x.resolver:
		m.resolver.Stop()
	default:
		x.resolver.Set(hostsOf(x.of), nil)
	}
}

// hostsOf are the names of c, each once.
func hostsOf(c *config.Config) []string {
	all := map[string]bool{}
	for _, name := range c.Names() {
		host, _ := splitName(name)
		all[host] = true
	}
	return slices.Sorted(maps.Keys(all))
}

// splitName takes one of config's "host:port" apart.
func splitName(name string) (host string, port uint16) {
	i := strings.LastIndexByte(name, ':')
	n, _ := strconv.ParseUint(name[i+1:], 10, 16) // config has checked it
	return name[:i], uint16(n)
}

// resolved is c with the addresses that r knows now.
func resolved(c *config.Config, r *resolve.Resolver) *config.Config {
	answers := r.Answers()
	all := config.Resolved{}
	for _, name := range c.Names() {
		host, port := splitName(name)
		for _, a := range answers[host].Addrs {
			all[name] = append(all[name], netip.AddrPortFrom(a, port))
		}
	}
	return c.Resolve(all)
}

// tell notes that an answer is another; it never blocks.
func (x *naming) tell() {
	select {
	case x.changed <- struct{}{}:
	default:
	}
}

func (x *naming) failed(host string, err error) {
	x.n.log.Warn("a name does not resolve; the last addresses that are known stay", "host", host, "error", err)
}

// follow brings the node to other addresses.
func (x *naming) follow() {
	defer close(x.ended)
	for {
		select {
		case <-x.end:
			return
		case <-x.changed:
			x.n.readdress()
		}
	}
}

// answers are what a successor begins with.
func (x *naming) answers() map[string]resolve.Answer {
	if x.resolver == nil {
		return nil
	}
	return x.resolver.Answers()
}

// stop ends it. It waits for nobody who holds Node.change.
func (x *naming) stop() {
	x.once.Do(func() {
		close(x.end)
		if x.ended != nil {
			<-x.ended
		}
		if x.resolver != nil {
			x.resolver.Stop()
		}
	})
}

// readdress applies the configuration in force with the addresses that its
// names have now. Flows whose endpoint is gone go on with it: that a name
// points elsewhere says nothing about those who are connected. Only those adopt
// the change whose listener says so.
func (n *Node) readdress() {
	x := n.names
	for !n.change.TryLock() {
		select {
		case <-x.end:
			return
		case <-time.After(changeLook):
		}
	}
	defer n.change.Unlock()
	if x.resolver == nil {
		return
	}
	if n.inCharge() != nil {
		x.resolver.Set(nil, nil) // the successor asks now
		return
	}
	n.mu.Lock()
	old, source := n.gen, n.source
	n.mu.Unlock()
	c := n.registry.reuse(resolved(x.of, x.resolver)).Reuse(old.Config)
	plan := config.Diff(old.Config, c)
	if plan.Empty() {
		return
	}
	r := newReport("config")
	if err := n.bring(c, old, source, r, false); err != nil {
		n.log.Error("the addresses of names have changed, and could not be put in force", "error", err)
		return
	}
	n.log.Info("addresses of names changed", "generation", r.Generation, "plan", strings.TrimSpace(plan.String()), "flows", r.Flows)
}
