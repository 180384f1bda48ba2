package loop

import (
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
// those that any flow may take which would dial the same: the same server under
// the same name, from the same address, within the same ports and with the same
// bounds. (A leg that was dialled for VIP v is not used for VIP w, else it could
// not move with w; nor is one for a listener whose flows move, unless it was
// dialled for that.) What a version of an endpoint or its backend says beside that,
// as its weight, is no reason to dial again. The latest comes first, so what is
// too many grows old and is closed.

// idle are all idle legs of a loop.
type idle struct {
	servers map[serverKey]*server
	// of are the servers of versions of endpoints, which are found sooner.
	of      map[*config.Endpoint]*server
	all     []*server // in the order in which they came: the same each time a history is lived through
	n       int
	sweepAt flow.Instant
}

// serverKey is what makes two versions of an endpoint one server.
type serverKey struct {
	name string // full: legs to one address under two names are counted apart
	addr netip.AddrPort
	unix string
}

func keyOf(e *config.Endpoint) serverKey { return serverKey{e.Ref.Name, e.Addr, e.Unix} }

// server has the pools of one server.
type server struct {
	key      serverKey
	endpoint *config.Endpoint // the version in force, or the last one that was
	policy   *config.Backend  // whose limits hold
	versions []*config.Endpoint
	pools    *pool
	gone     bool // it has left the configuration
}

// versionsMax bounds the versions of an endpoint whose server is found at once.
const versionsMax = 4

// pool holds idle legs of one kind: links are index + 1, 0 is none.
type pool struct {
	server       *server
	source       netip.Addr
	portMin      uint16 // of sock.DialSpec, as are the next
	portMax      uint16
	mss, buffer  int
	oldest, last uint32
	n            int
	next         *pool // of the same server, from another address
}

// server is that of an endpoint of the backend that a flow is under.
func (l *Loop) server(e *config.Endpoint, b *config.Backend) *server {
	x := &l.idle
	if at := x.of[e]; at != nil {
		return at
	}
	at := x.servers[keyOf(e)]
	if at == nil {
		at = &server{key: keyOf(e), endpoint: e, policy: b, gone: true}
		if l.gen != nil {
			if now := l.gen.Config.Backends[b.Ref.Name]; now != nil {
				if end := now.Endpoint(e.Name); end != nil && keyOf(end) == at.key {
					at.endpoint, at.policy, at.gone = end, now, false
				}
			}
		}
		x.servers[at.key] = at
		x.all = append(x.all, at)
	}
	if len(at.versions) == versionsMax {
		delete(x.of, at.versions[0])
		at.versions = slices.Delete(at.versions, 0, 1)
	}
	at.versions = append(at.versions, e)
	x.of[e] = at
	return at
}

// repool brings the pools to what has changed. Legs to a server that is no longer
// in the configuration are closed soon, by sweep.
func (l *Loop) repool(c *Change) {
	if len(l.idle.servers) == 0 {
		return
	}
	for _, x := range c.backends {
		if x.was != nil {
			for _, e := range x.was.Endpoints {
				if at := l.idle.servers[keyOf(e)]; at != nil && !planted.Bug(73) {
					at.gone = true
					l.idle.sweepAt = l.now
				}
			}
		}
		if x.is == nil {
			continue
		}
		for _, e := range x.is.Endpoints {
			if at := l.idle.servers[keyOf(e)]; at != nil && !planted.Bug(74) {
				at.endpoint, at.policy, at.gone = e, x.is, false
			}
		}
	}
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
	return l.server(s.flow.Endpoint(), b).pool(&l.spec)
}

// pool is the one whose legs are dialled as x says.
func (at *server) pool(x *sock.DialSpec) *pool {
	for p := at.pools; p != nil; p = p.next {
		if p.dials(x) {
			return p
		}
	}
	p := &pool{server: at, source: x.Source, portMin: x.PortMin, portMax: x.PortMax, mss: x.MSS, buffer: x.Buffer, next: at.pools}
	at.pools = p
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
	if p == nil || p.server.gone || b.is&(over|failed|deaf) != 0 || b.brew&thickBackend != 0 || !b.has(watched) || p.n >= p.server.policy.IdleMax || b.pipe != noPipe {
		return false
	}
	if !serves(p.server.endpoint, b.account.Standing()) && !planted.Bug(57) {
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
		if p.server.key.unix == "" {
			l.k.Enliven(b.fd, Life(s.flow.Listener()))
		}
	}
	s.far = 0
	b.depart()
	b.account, b.owner, b.since = nil, none, l.now
	b.brew, b.relayed = 0, 0 // the list of those that simmer has its flow, not the next one
	l.insert(k, b)
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
		was := l.far(s.far - 1)
		b.owner, b.account, b.lodge = i, was.account, was.lodge
		was.lodge = nil
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
	l.close(fd)
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

// sweepMost bounds how many legs one look closes: each is a system call, and
// nobody is served meanwhile.
const sweepMost = 256

// sweep closes what was idle for too long, or leads to a server that has left
// the configuration.
func (l *Loop) sweep() {
	l.idle.sweepAt = l.now.Add(sweepEvery)
	l.unlodge()
	l.series.forget()
	closed := 0
	kept := l.idle.all[:0]
	for _, at := range l.idle.all {
		left := 0
		for p := at.pools; p != nil; p = p.next {
			for p.oldest != 0 && closed < sweepMost {
				if since := l.far(p.oldest - 1).since; !at.gone && l.now < since.Add(at.policy.IdleTime) && p.n <= at.policy.IdleMax {
					break
				}
				l.closeOldest(p)
				closed++
			}
			left += p.n
		}
		if !at.gone || left > 0 {
			kept = append(kept, at)
			continue
		}
		// A leg that still has a flow and was to rest here is closed instead: the
		// pool says that its server is gone.
		delete(l.idle.servers, at.key)
		for _, e := range at.versions {
			delete(l.idle.of, e)
		}
	}
	clear(l.idle.all[len(kept):])
	l.idle.all = kept
	if closed == sweepMost {
		l.idle.sweepAt = l.now
	}
}

// shrink closes idle legs for want of descriptors; false if there are none.
func (l *Loop) shrink() bool {
	const enough = 64
	closed := 0
	for _, at := range l.idle.all {
		for p := at.pools; p != nil; p = p.next {
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
	for _, at := range l.idle.all {
		for p := at.pools; p != nil && at.key.name == endpoint; p = p.next {
			n += p.n
		}
	}
	return n
}

// CloseIdle closes the idle legs of the endpoint of that full name, or all if it
// is "", and tells how many there were: of an endpoint that is taken out of
// service, a process that ends, or a host that is left.
func (l *Loop) CloseIdle(endpoint string) (closed int) {
	for _, at := range l.idle.all {
		if endpoint != "" && at.key.name != endpoint {
			continue
		}
		for p := at.pools; p != nil; p = p.next {
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
