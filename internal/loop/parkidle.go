package loop

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/planted"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// IdleLeg is a backend leg without a flow that its loop has let go of: in no poller
// and no pool. Nothing is under way on it, so who has no use for it may close it.
// Whoever has the IdleLeg owns its descriptor.
type IdleLeg struct {
	Frozen *frozen.IdleLeg
	FD     sock.FD
}

// GiveIdle takes up to max idle legs out of the pools, from each its part, and the
// oldest first: the latest are those that the flows which are still here will take.
func (l *Loop) GiveIdle(max int) []IdleLeg {
	n := l.idle.n
	if max = min(max, n); max <= 0 {
		return nil
	}
	now := l.k.Now()
	out := make([]IdleLeg, 0, max)
	give := func(p *pool, most int) {
		for ; most > 0 && p.n > 0 && len(out) < max; most-- {
			k := p.oldest - 1
			b := l.far(k)
			out = append(out, IdleLeg{freezeIdle(p, now-b.since), b.fd})
			_ = l.k.Unwatch(b.fd)
			l.unlink(k, b)
			if planted.Bug(86) {
				break
			}
			l.freeLeg(k)
		}
	}
	for _, at := range l.idle.all {
		for p := at.pools; p != nil; p = p.next {
			give(p, p.n*max/n)
		}
	}
	for len(out) < max { // what rounding has left
		for _, at := range l.idle.all {
			for p := at.pools; p != nil; p = p.next {
				give(p, 1)
			}
		}
	}
	return out
}

func freezeIdle(p *pool, age flow.Instant) *frozen.IdleLeg {
	key, e := &p.server.key, p.server.endpoint
	z := &frozen.IdleLeg{
		Backend: e.Backend, Endpoint: e.Name, Unix: key.unix, Source: p.source.AsSlice(), PortMin: uint32(p.portMin), PortMax: uint32(p.portMax),
		Mss: uint32(p.mss), Buffer: uint32(p.buffer), IdleNanos: uint64(max(0, age)),
	}
	if key.addr.IsValid() {
		z.Address = binary.BigEndian.AppendUint16(key.addr.Addr().AsSlice(), key.addr.Port())
	}
	return z
}

// PackIdle is the form of idle legs for another process, and their descriptors,
// which stay the caller's.
func PackIdle(legs []IdleLeg) (octets []byte, fds []sock.FD, err error) {
	var batch frozen.Batch
	for _, x := range legs {
		fds = append(fds, x.FD)
		x.Frozen.Fd = uint32(len(fds))
		batch.Idle = append(batch.Idle, x.Frozen)
	}
	octets, err = batch.Encode()
	return octets, fds, err
}

// UnpackIdle reads what PackIdle wrote. Every descriptor is that of one leg; on an
// error all are still the caller's.
func UnpackIdle(octets []byte, fds []sock.FD) ([]IdleLeg, error) {
	batch, err := frozen.Decode(octets)
	if err != nil {
		return nil, err
	}
	if len(batch.Flows) > 0 || len(batch.Idle) != len(fds) {
		return nil, &frozen.Refused{What: "idle leg", Why: fmt.Sprintf("%d of them, with %d descriptors and %d flows", len(batch.Idle), len(fds), len(batch.Flows))}
	}
	all := make([]IdleLeg, len(fds))
	for i, z := range batch.Idle {
		if int(z.Fd) != i+1 {
			return nil, &frozen.Refused{What: "idle leg", Why: fmt.Sprintf("descriptor %d of %d at place %d", z.Fd, len(fds), i+1)}
		}
		if err := checkIdle(z); err != nil {
			return nil, err
		}
		all[i] = IdleLeg{z, fds[i]}
	}
	return all, nil
}

func checkIdle(z *frozen.IdleLeg) error {
	if z.PortMin > math.MaxUint16 || z.PortMax > math.MaxUint16 || z.Mss > math.MaxInt32 || z.Buffer > math.MaxInt32 || z.IdleNanos > 1<<62 {
		return &frozen.Refused{What: "idle leg", Why: fmt.Sprintf("ports %d to %d, segments of %d, queues of %d, idle for %d ns: out of bounds", z.PortMin, z.PortMax, z.Mss, z.Buffer, z.IdleNanos)}
	}
	if n := len(z.Address); n != 0 && n != 6 && n != 18 {
		return &frozen.Refused{What: "idle leg", Why: fmt.Sprintf("an address of %d octets", n)}
	}
	if n := len(z.Source); n != 0 && n != 4 && n != 16 {
		return &frozen.Refused{What: "idle leg", Why: fmt.Sprintf("a source of %d octets", n)}
	}
	return nil
}

// TakeIdle puts idle legs into the pools of this loop and tells how many. Those that
// no flow here would take, or that are too old or too many, are closed. It must be called
// between turns.
func (l *Loop) TakeIdle(legs []IdleLeg) (taken int) {
	now := l.k.Now()
	for _, x := range legs {
		if l.takeIdle(now, x) {
			taken++
			continue
		}
		l.close(x.FD)
	}
	return taken
}

func (l *Loop) takeIdle(now flow.Instant, x IdleLeg) bool {
	p, since := l.poolOf(x.Frozen), now-flow.Instant(x.Frozen.IdleNanos)
	if p == nil || p.server.gone || p.n >= p.server.policy.IdleMax || now >= since.Add(p.server.policy.IdleTime) {
		return false
	}
	if _, e := l.k.Peek(x.FD); e != sock.Again {
		// Its peer has closed it, or said what nobody asked for, while nobody watched; a
		// flow may come for it before the poller tells.
		return false
	}
	k := l.table.legs.take()
	b := l.far(k)
	*b = backendLeg{
		leg: leg{fd: x.FD, pipe: noPipe, is: writable | watched}, owner: none, live: true, lively: true,
		incarnation: (b.incarnation + 1) & incarnationMask, pool: p, since: since,
	}
	if l.k.Watch(x.FD, b.interest(), legData(k, b)) != 0 {
		l.freeLeg(k)
		return false
	}
	l.insert(k, b)
	return true
}

// insert puts an idle leg into its pool, in its place by age: who has come since is
// younger, mostly.
func (l *Loop) insert(k uint32, b *backendLeg) {
	p := b.pool
	b.prev, b.next = p.last, 0
	for b.prev != 0 && l.far(b.prev-1).since > b.since {
		b.prev, b.next = l.far(b.prev-1).prev, b.prev
	}
	if b.prev != 0 {
		l.far(b.prev - 1).next = k + 1
	} else {
		p.oldest = k + 1
	}
	if b.next != 0 {
		l.far(b.next - 1).prev = k + 1
	} else {
		p.last = k + 1
	}
	p.n++
	l.idle.n++
}

// poolOf is the pool whose legs were dialled as this one was; nil if nobody here
// would dial so, or the endpoint serves nothing new.
func (l *Loop) poolOf(z *frozen.IdleLeg) *pool {
	if l.gen == nil {
		return nil
	}
	b := l.gen.Config.Backends[z.Backend]
	if b == nil || b.IdleMax == 0 || b.ProxyHeader != config.NoProxyHeader {
		return nil
	}
	e := b.Endpoint(z.Endpoint)
	if e == nil || e.Unix != z.Unix {
		return nil
	}
	var addr netip.AddrPort
	if n := len(z.Address); n > 2 {
		ip, _ := netip.AddrFromSlice(z.Address[:n-2])
		addr = netip.AddrPortFrom(ip, binary.BigEndian.Uint16(z.Address[n-2:]))
	}
	if addr != e.Addr || !serves(e, l.backendLodge(b).book.Endpoint(e.Ref.Name).Standing()) {
		return nil
	}
	source, _ := netip.AddrFromSlice(z.Source)
	return l.server(e, b).pool(&sock.DialSpec{
		Source: source, PortMin: uint16(z.PortMin), PortMax: uint16(z.PortMax), MSS: int(z.Mss), Buffer: int(z.Buffer),
	})
}
