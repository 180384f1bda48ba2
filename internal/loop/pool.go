package loop

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/planted"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// Backend legs that are idle between requests belong to the loop. A pool holds
// those that any flow may take which would dial the same: the same version of
// an endpoint, from the same address, within the same ports and with the same
// bounds. (A leg that was dialled for VIP v is not used for VIP w, else it could
// not move with w; nor is one for a listener whose flows move, unless it was
// dialled for that.) The latest comes first, so what is too many grows old and
// is closed.

// idle are all idle legs of a loop.
type idle struct {
	pools   map[*config.Endpoint]*pool
	n       int
	sweepAt flow.Instant
}

// pool holds idle legs of one kind: links are index + 1, 0 is none.
type pool struct {
	endpoint     *config.Endpoint
	source       netip.Addr
	portMin      uint16 // of sock.DialSpec, as are the next
	portMax      uint16
	mss, buffer  int
	policy       *config.Backend // whose limits hold
	oldest, last uint32
	n            int
	next         *pool // of the same endpoint, from another address
	gone         bool  // the endpoint has left the configuration
}

// endpoints are those that have pools, in an order that is the same each time a
// history is lived through.
func (x *idle) endpoints() []*config.Endpoint {
	if len(x.pools) == 0 {
		return nil
	}
	return inOrder(slices.Collect(maps.Keys(x.pools)))
}

// versions are those of one endpoint, by its full name, that have pools.
func (x *idle) versions(endpoint string) (all []*config.Endpoint) {
	for e := range x.pools {
		if e.Ref.Name == endpoint {
			all = append(all, e)
		}
	}
	return inOrder(all)
}

func inOrder(all []*config.Endpoint) []*config.Endpoint {
	slices.SortFunc(all, func(a, b *config.Endpoint) int {
		return cmp.Or(cmp.Compare(a.Ref.Name, b.Ref.Name), cmp.Compare(a.Ref.Version, b.Ref.Version))
	})
	return all
}

// sweepEvery is how often idle legs are looked at for their age.
const sweepEvery = time.Second

// pool is the one in which the leg that a flow is about to dial would rest;
// nil if it would in none. l.spec says from where.
func (l *Loop) pool(s *slot) *pool {
	b := s.flow.Backend()
	if s.flow.Speaks() != config.HTTP || b.IdleMax == 0 || b.ProxyHeader != config.NoProxyHeader {
		return nil
	}
	e := s.flow.Endpoint()
	first := l.idle.pools[e]
	for p := first; p != nil; p = p.next {
		if p.dials(&l.spec) {
			p.policy = b
			return p
		}
	}
	x := &l.spec
	p := &pool{endpoint: e, source: x.Source, portMin: x.PortMin, portMax: x.PortMax, mss: x.MSS, buffer: x.Buffer, policy: b, next: first}
	l.idle.pools[e] = p
	return p
}

// dials tells whether the legs of p were dialled as x says.
func (p *pool) dials(x *sock.DialSpec) bool {
	return p.source == x.Source && p.portMin == x.PortMin && p.portMax == x.PortMax && p.mss == x.MSS && p.buffer == x.Buffer
}

// rest puts the leg that a flow leaves into its pool; false if it may not.
func (l *Loop) rest(s *slot) bool {
	k := s.far - 1
	b := l.far(k)
	p := b.pool
	if p == nil || p.gone || b.is&(over|failed|deaf) != 0 || b.brew&thickBackend != 0 || !b.has(watched) || p.n >= p.policy.IdleMax || b.pipe != noPipe {
		return false
	}
	if !serves(p.endpoint, b.account.Standing()) && !planted.Bug(57) {
		return false // nobody would come for it, and who takes the endpoint out waits for its end
	}
	if b.has(readable) {
		// Of a body whose length is known no more is read than that. What there
		// is beyond it was not asked for.
		if _, e := l.k.Peek(b.fd); e != sock.Again {
			return false
		}
		if l.drained(b.owner, s, flow.Backend); planted.Bug(43) {
			b.is |= muted
			l.rewatch(b.owner, s, flow.Backend)
		}
	}
	if !b.lively {
		b.lively = true
		if p.endpoint.Unix == "" {
			l.k.Enliven(b.fd, Life(s.flow.Listener()))
		}
	}
	s.far = 0
	b.account, b.owner, b.since = nil, none, l.now
	b.brew, b.relayed = 0, 0 // the list of those that simmer has its flow, not the next one
	b.prev, b.next = p.last, 0
	if p.last != 0 {
		l.far(p.last - 1).next = k + 1
	} else {
		p.oldest = k + 1
	}
	p.last = k + 1
	p.n++
	l.idle.n++
	return true
}

// serves tells whether an endpoint that stands so is given anything new.
func serves(e *config.Endpoint, s ledger.Standing) bool {
	weight := e.Weight
	if s.Weight >= 0 {
		weight = s.Weight
	}
	return s.Admin == ledger.Ready && (s.Health == ledger.Unknown || s.Health == ledger.Up) && !s.Ejected && weight > 0
}

// wake gives the flow the latest leg of the pool; false if there is none.
func (l *Loop) wake(i uint32, s *slot, p *pool) bool {
	for p.last != 0 {
		k := p.last - 1
		b := l.far(k)
		l.unlink(k, b)
		if (s.flow.Wary() || l.now-b.since > rested || l.rumoured(k, b)) && !planted.Bug(32) {
			// Its peer may have closed it without our having heard of it yet, or
			// said what must not become the answer to this request.
			if _, e := l.k.Peek(b.fd); e != sock.Again {
				l.closeIdle(k, b)
				continue
			}
		}
		b.owner, b.account = i, l.far(s.far-1).account
		l.freeLeg(s.far - 1)
		s.far = k + 1
		return true
	}
	return false
}

// rested is from when on a leg is looked at whatever the request. Servers close
// legs that were idle for long, and some say so first, by a response to nothing;
// one that has just answered does neither.
const rested = flow.Instant(50 * time.Millisecond)

// rumoured tells whether an event of the leg is still to be handled.
func (l *Loop) rumoured(k uint32, b *backendLeg) bool {
	data := legData(k, b)
	for i := l.next; i < l.n; i++ {
		if l.events[i].Data() == data {
			return true
		}
	}
	return false
}

// unlink takes an idle leg out of its pool.
func (l *Loop) unlink(k uint32, b *backendLeg) {
	p := b.pool
	if b.prev != 0 {
		l.far(b.prev - 1).next = b.next
	} else {
		p.oldest = b.next
	}
	if b.next != 0 {
		l.far(b.next - 1).prev = b.prev
	} else {
		p.last = b.prev
	}
	b.prev, b.next = 0, 0
	p.n--
	l.idle.n--
}

// closeOldest closes the leg that has been in the pool for the longest time.
func (l *Loop) closeOldest(p *pool) {
	k := p.oldest - 1
	b := l.far(k)
	l.unlink(k, b)
	l.closeIdle(k, b)
}

func (l *Loop) closeIdle(k uint32, b *backendLeg) {
	fd := b.fd
	l.freeLeg(k)
	l.k.Close(fd)
}

// unasked deals with an event of an idle leg: the peer has closed it, or says
// what nobody asked for. Some events tell what is known.
func (l *Loop) unasked(k uint32, b *backendLeg) {
	if _, e := l.k.Peek(b.fd); e == sock.Again {
		return
	}
	l.unlink(k, b)
	l.closeIdle(k, b)
}

// sweep closes what was idle for too long, or serves an endpoint that has left
// the configuration.
func (l *Loop) sweep() {
	l.idle.sweepAt = l.now.Add(sweepEvery)
	for _, e := range l.idle.endpoints() {
		first := l.idle.pools[e]
		gone := false
		if l.gen != nil {
			_, there := l.gen.Config.Lookup(e.Ref)
			gone = !there
		}
		for p := first; p != nil; p = p.next {
			p.gone = gone
			for p.oldest != 0 {
				if since := l.far(p.oldest - 1).since; !gone && l.now < since.Add(p.policy.IdleTime) && p.n <= p.policy.IdleMax {
					break
				}
				l.closeOldest(p)
			}
		}
		if gone {
			delete(l.idle.pools, e)
		}
	}
}

// shrink closes idle legs for want of descriptors; false if there are none.
func (l *Loop) shrink() bool {
	const enough = 64
	closed := 0
	for _, e := range l.idle.endpoints() {
		for p := l.idle.pools[e]; p != nil; p = p.next {
			for p.oldest != 0 && closed < enough {
				l.closeOldest(p)
				closed++
			}
		}
	}
	return closed > 0
}

// Idle is how many backend legs are idle; to be asked for on the loop's thread.
func (l *Loop) Idle() int { return l.idle.n }

// IdleTo is how many of them lead to the endpoint of that full name.
func (l *Loop) IdleTo(endpoint string) (n int) {
	for e, p := range l.idle.pools {
		for ; p != nil && e.Ref.Name == endpoint; p = p.next {
			n += p.n
		}
	}
	return n
}

// CloseIdle closes the idle legs of the endpoint of that full name, or all if it
// is "", and tells how many there were: of an endpoint that is taken out of
// service, a process that ends, or a host that is left.
func (l *Loop) CloseIdle(endpoint string) (closed int) {
	all := l.idle.versions(endpoint)
	if endpoint == "" {
		all = l.idle.endpoints()
	}
	for _, e := range all {
		for p := l.idle.pools[e]; p != nil; p = p.next {
			for p.oldest != 0 {
				l.closeOldest(p)
				closed++
			}
		}
	}
	return closed
}

// ShedIdle closes up to n clients that are between two requests, because memory
// is short, and tells how many: each of them can connect again.
func (l *Loop) ShedIdle(n int) int {
	if n <= 0 {
		return 0
	}
	all := l.Slots(n, func(f *flow.Flow) bool { return f.State() == flow.Reading && f.Phase() == flow.Idle })
	for _, i := range all {
		l.step(l.at(i), flow.Event{Kind: flow.Kill, Why: flow.Shed})
		l.guard(i)
	}
	l.Count.Shed += uint64(len(all))
	return len(all)
}
