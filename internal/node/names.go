package node

import (
	"context"
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
	n *Node
	// mu guards resolver for those who do not own it.
	mu       sync.Mutex
	resolver *resolve.Resolver // nil: nothing has a name
	asked    *config.Config    // and what hosts found in it
	found    []string
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

// prepare asks for the names of c, and waits for them for at most d. The result
// must be kept or ended. known are answers of somebody who was asked before, nil
// if there is none.
func (x *naming) prepare(c *config.Config, known map[string]resolve.Answer, d time.Duration) *named {
	m := &named{x: x, of: c, resolver: x.resolver, Config: c}
	hosts := x.hosts(c)
	if len(hosts) == 0 {
		m.resolver = nil
		return m
	}
	if x.resolver == nil || !slices.Equal(x.servers, c.Node.DNS) {
		if x.resolver != nil {
			known = joinAnswers(x.resolver.Answers(), known)
		}
		m.resolver = resolve.New(resolve.Options{Servers: c.Node.DNS, Changed: x.tell, Failed: x.failed})
	}
	watched := hosts
	if m.resolver == x.resolver && x.of != nil {
		watched = append(hostsOf(x.of), hosts...) // until it is known whether c comes in force
	}
	m.resolver.Set(watched, known)
	if d > 0 {
		m.resolver.Wait(d)
	}
	m.Config = resolved(c, m.resolver.Answers())
	return m
}

func joinAnswers(a, b map[string]resolve.Answer) map[string]resolve.Answer {
	all := make(map[string]resolve.Answer, len(a)+len(b))
	maps.Copy(all, a)
	maps.Copy(all, b)
	return all
}

// strange gives the names of c that nobody has asked for. It is called by who has
// the turn to change the configuration.
func (x *naming) strange(c *config.Config) []string {
	hosts := x.hosts(c)
	if len(hosts) == 0 {
		return nil
	}
	answers := x.answers()
	return slices.DeleteFunc(hosts, func(host string) bool {
		_, known := answers[host]
		return known
	})
}

// askNames asks for names beside all that goes on, and waits for them for a while.
func askNames(ctx context.Context, c *config.Config, hosts []string) map[string]resolve.Answer {
	r := resolve.New(resolve.Options{Servers: c.Node.DNS, Changed: func() {}, Failed: func(string, error) {}})
	defer r.Stop()
	r.Set(hosts, nil)
	asked := make(chan struct{})
	go func() { // ends within resolveTime
		r.Wait(resolveTime)
		close(asked)
	}()
	select {
	case <-asked:
	case <-ctx.Done():
	}
	return r.Answers()
}

// preview is c with the addresses that are known now.
func (x *naming) preview(c *config.Config) *config.Config {
	if len(x.hosts(c)) == 0 {
		return c
	}
	return resolved(c, x.answers())
}

// keep puts it in force.
func (m *named) keep() {
	x := m.x
	m.kept = true
	was := x.resolver
	x.mu.Lock()
	x.resolver = m.resolver
	x.mu.Unlock()
	if was != nil && was != m.resolver {
		was.Stop()
	}
	x.servers, x.of = m.of.Node.DNS, m.of
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

// hosts are the names of c, each once. What was asked last is remembered: a change
// asks several times, and most configurations have no names.
func (x *naming) hosts(c *config.Config) []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.asked != c {
		x.asked, x.found = c, hostsOf(c)
	}
	return slices.Clone(x.found)
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

// resolved is c with the addresses that answers say.
func resolved(c *config.Config, answers map[string]resolve.Answer) *config.Config {
	names := c.Names()
	if len(names) == 0 {
		return c
	}
	all := config.Resolved{}
	for _, name := range names {
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
	x.mu.Lock()
	r := x.resolver
	x.mu.Unlock()
	if r == nil {
		return nil
	}
	return r.Answers()
}

// stop ends it. It waits for nobody who holds Node.change.
func (x *naming) stop() {
	x.once.Do(func() {
		close(x.end)
		if x.ended != nil {
			<-x.ended
		}
		x.mu.Lock() // a change may be under way
		r := x.resolver
		x.mu.Unlock()
		if r != nil {
			r.Stop()
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
	old := n.gen
	n.mu.Unlock()
	c := n.reuse(resolved(x.of, x.resolver.Answers()), old.Config)
	plan := config.Diff(old.Config, c)
	if plan.Empty() {
		return
	}
	r := newReport("config")
	if err := n.bring(&bringing{c: c, plan: plan, old: old, report: r}); err != nil {
		n.log.Error("the addresses of names have changed, and could not be put in force", "error", err)
		return
	}
	n.noteApply("names", "applied")
	n.tell("endpoint", "", Author{Name: "names"}, nil, "addresses of names changed: %s", brief(plan.String()))
	n.log.Info("addresses of names changed", "plan", strings.TrimSpace(plan.String()), "flows", r.Flows)
}
