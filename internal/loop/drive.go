package loop

import (
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/planted"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// drive brings what is there to what the flow in slot i wants, until it wants
// nothing that can be had now. It may end the flow and empty the slot.
func (l *Loop) drive(i uint32, s *slot) {
	w := &l.wants
	budget := octetsMax
	for {
		if l.desk.Outcome.Set {
			l.noteOutcome(s)
		}
		s.flow.Wants(w)
		if s.far != 0 && s.flow.Endpoint() == nil {
			l.letGo(s) // an attempt has failed, or a request is over
		}
		more := false
		switch {
		case w.Done:
			l.remove(i, s, w.Abort, s.flow.Cause())
			return
		case w.Secure:
			more = l.secure(i, s) || len(w.Out[flow.Client]) > 0 && l.exchange(i, s, w, &budget)
		case w.Dial:
			more = l.dial(i, s) || len(w.Out[flow.Client]) > 0 && l.exchange(i, s, w, &budget)
		case w.Resume:
			if s.flow.Unsettled() {
				s.flow.Settle(&l.lender)
			}
			l.step(s, flow.Event{Kind: flow.Resumed})
			budget -= resumeCost
			more = true
		default:
			more = l.exchange(i, s, w, &budget)
		}
		if !more {
			break
		}
		if budget <= 0 {
			if !s.again {
				s.again = true
				l.again = append(l.again, i)
			}
			break
		}
	}
	if l.desk.Outcome.Set {
		l.noteOutcome(s)
	}
	if s.flow.Unsettled() && !planted.Bug(16) {
		s.flow.Settle(&l.lender)
	}
	if !s.client.has(watched) && !l.lazy(s, w) {
		l.watch(i, s, flow.Client)
	}
	if s.far != 0 && l.far(s.far-1).fd >= 0 && !l.far(s.far-1).has(watched) {
		l.watch(i, s, flow.Backend)
	}
	at, t := w.Deadline, &s.timer
	if look := l.lookAt(s); look != 0 && (at == 0 || look < at) {
		at = look
	}
	switch {
	case at == 0:
		l.disarm(i, t)
	case t.bucket < 0 || l.wheel.due(at) < t.at:
		l.arm(i, t, at)
	}
}

// resumeCost is what a pipelined request counts against the octets of a turn.
const resumeCost = 4 << 10

// lazy tells whether the client leg need not be watched yet: its request was
// there when it was accepted, the answer is awaited, and many such connections
// are closed right behind it. If it is late the clock sees to it.
func (l *Loop) lazy(s *slot, w *flow.Wants) bool {
	return s.flow.Speaks() == config.HTTP && s.flow.State() != flow.Reading && !w.Read[flow.Client] &&
		s.client.has(writable) && l.now < s.flow.Born().Add(tick)
}

// livelyAfter is when a backend leg is told to look after its peer: five calls
// that a flow which has ended by then is spared.
const livelyAfter = time.Second

// lookAt is when the flow's legs are to be looked at next; 0 is never.
func (l *Loop) lookAt(s *slot) flow.Instant {
	state := s.flow.State()
	switch {
	case state == flow.Dialing && l.far(s.far-1).fd < 0:
		return l.now.Add(tick) // a unix socket's backlog was full
	case !s.client.has(watched):
		return s.flow.Born().Add(tick)
	case state != flow.Relaying:
		return 0
	case s.far != 0 && !l.far(s.far-1).lively:
		return max(l.now, l.far(s.far-1).since.Add(livelyAfter))
	}
	if s.client.has(failed) || l.leg(s, flow.Backend).has(failed) {
		return l.now.Add(time.Second)
	}
	if silence := s.flow.Listener().UserTimeout; silence > 0 {
		return l.now.Add(silence / 8)
	}
	return 0
}

// look sees whether the peers of the flow's legs are still there. The kernel
// does so for legs on which nothing is outstanding; for the others its answer
// would be wrong (sock.Vanished).
func (l *Loop) look(s *slot) {
	if s.flow.State() != flow.Relaying {
		return
	}
	unix := s.flow.Endpoint() != nil && s.flow.Endpoint().Unix != ""
	if s.far != 0 {
		if b := l.far(s.far - 1); !b.lively && l.now >= b.since.Add(livelyAfter) {
			b.lively = true
			if !unix {
				l.k.Enliven(b.fd, Life(s.flow.Listener()))
			}
		}
	}
	if l.now < s.flow.Born().Add(livelyAfter) {
		return
	}
	silence := s.flow.Listener().UserTimeout
	still := s.flow.Still(l.now)
	for side := flow.Client; side <= flow.Backend; side++ {
		g := l.leg(s, side)
		if g.fd < 0 {
			continue
		}
		if silence > 0 && !(unix && side == flow.Backend) && l.k.Vanished(g.fd, silence) {
			l.Count.Vanished++
			l.step(s, flow.Event{Kind: flow.Broke, Leg: side})
			return
		}
		if g.has(failed) && still >= flow.LingerMax {
			// It was reset. What it said before is the other leg's due, but that
			// one takes nothing.
			l.step(s, flow.Event{Kind: flow.Broke, Leg: side})
			return
		}
	}
}

// hasten sees that what is sent to the backend does not wait for what was sent
// before. The first octets go out at once anyway, and to a client all do: its
// leg has the option from the listener.
func (l *Loop) hasten(s *slot, side flow.Side) {
	if side == flow.Client {
		return
	}
	if b := l.far(s.far - 1); !b.prompt && (b.pool != nil || s.flow.Sent(flow.Backend) > 0) {
		b.prompt = true
		if s.flow.Endpoint().Unix == "" {
			l.k.NoDelay(b.fd)
		}
	}
}

// interest is what a leg is watched for.
func (g *leg) interest() sock.Ready {
	r := sock.PeerShut | sock.Urgent
	if !g.has(muted) {
		r |= sock.Readable
	}
	if g.has(outAlso) {
		r |= sock.Writable
	}
	return r
}

// watch registers a leg. What is ready already is reported at once, so nothing
// that came since the last read is missed.
func (l *Loop) watch(i uint32, s *slot, side flow.Side) {
	g := l.leg(s, side)
	if !g.has(writable) || (side == flow.Backend && l.far(s.far-1).pending) {
		g.is |= outAlso
	}
	if e := l.k.Watch(g.fd, g.interest(), l.data(i, s, side)); e != 0 {
		l.shared.Log.Warn("the kernel would not watch a leg", "flow", flowName(s.flow.ID()), "leg", side, "error", e)
		l.fail(i, s, side)
		return
	}
	g.is |= watched
}

// rewatch brings the poller to what the leg is to be watched for now. What is
// ready is reported again, so nothing is missed.
func (l *Loop) rewatch(i uint32, s *slot, side flow.Side) {
	if g := l.leg(s, side); g.has(watched) {
		_ = l.k.Rewatch(g.fd, g.interest(), l.data(i, s, side))
	}
}

// mute stops reports of a leg that is known to be readable and is not read,
// because the other leg takes nothing: each segment that comes would wake the
// loop for nothing. The end of the leg is still reported.
func (l *Loop) mute(i uint32, s *slot, side flow.Side) {
	if g := l.leg(s, side); g.has(readable) && !g.has(muted) {
		g.is |= muted
		l.rewatch(i, s, side)
	}
}

// drained notes that nothing more can be read from a leg now.
func (l *Loop) drained(i uint32, s *slot, side flow.Side) {
	g := l.leg(s, side)
	g.is &^= readable
	if g.has(muted) && !planted.Bug(26) {
		g.is &^= muted
		l.rewatch(i, s, side)
	}
}

// fail treats a leg that cannot be watched like one that broke, next turn.
func (l *Loop) fail(i uint32, s *slot, side flow.Side) {
	l.leg(s, side).is |= failed | over | watched | deaf // watched: it is not tried again
	if !s.again {
		s.again = true
		l.again = append(l.again, i)
	}
}

// exhausted notes that the kernel took less than was given: writing waits for
// the report that there is room again.
func (l *Loop) exhausted(i uint32, s *slot, side flow.Side) {
	g := l.leg(s, side)
	g.is &^= writable
	if !g.has(outAlso) && !planted.Bug(25) {
		g.is |= outAlso
		l.rewatch(i, s, side)
	}
}

// exchange does one thing that a relaying flow wants and tells whether it did.
func (l *Loop) exchange(i uint32, s *slot, w *flow.Wants, budget *int) bool {
	for side := flow.Client; side <= flow.Backend; side++ {
		g := l.leg(s, side)
		if out := w.Out[side]; len(out) > 0 {
			if g.has(writable) {
				l.hasten(s, side)
				n, e := l.k.Send(g.fd, out)
				switch {
				case e == sock.Again:
					l.exhausted(i, s, side)
				case e != 0:
					kind := flow.Broke
					if side == flow.Backend && s.flow.Speaks() == config.HTTP {
						kind = flow.Deafened // it may have answered before
					}
					l.step(s, flow.Event{Kind: kind, Leg: side, Severed: e != sock.BrokenPipe})
					return true
				default:
					if n < len(out) {
						l.exhausted(i, s, side)
					}
					*budget -= n
					if planted.Bug(14) {
						n = len(out)
					}
					l.step(s, flow.Event{Kind: flow.Wrote, Leg: side, N: n})
					return true
				}
			}
		} else if w.Shut[side] {
			if !planted.Bug(8) {
				l.k.Shutdown(g.fd)
			}
			l.step(s, flow.Event{Kind: flow.HasShut, Leg: side})
			return true
		}
	}
	for side := flow.Client; side <= flow.Backend; side++ {
		g := l.leg(s, side)
		if g.has(deaf) {
			g.is &^= deaf
			l.step(s, flow.Event{Kind: flow.Broke, Leg: side})
			return true
		}
		// What a pipe holds comes before all that could be read, though the rest
		// may be too little by now to begin with a pipe.
		held := g.pipe != noPipe && l.pipes.all[g.pipe].held > 0
		if (w.Relay[side] || w.Read[side] && held) && (g.pipe != noPipe || g.has(readable) && !g.has(urgent)) && l.borrow(s, side) {
			if l.relay(i, s, side, w.Most[side], budget) {
				return true
			}
			continue
		}
		if w.Read[side] && g.has(readable) {
			if l.read(i, s, side) {
				if !s.flow.Unsettled() {
					*budget -= flow.BlockBytes // thrown away: what is passed on counts when it is sent
				}
				return true
			}
			continue
		}
		if g.has(failed) && (s.flow.Ended(side) || side == flow.Client && !w.Read[side] && s.flow.Speaks() == config.HTTP) {
			// It has said FIN before, so reading will not tell; or it asked, and
			// will not hear the answer.
			g.is &^= failed
			l.step(s, flow.Event{Kind: flow.Broke, Leg: side})
			return true
		}
	}
	return false
}

// read takes octets from a leg into the scratch and tells the flow.
func (l *Loop) read(i uint32, s *slot, side flow.Side) bool {
	if s.flow.Unsettled() {
		s.flow.Settle(&l.lender) // what lies in the scratch would be overwritten
	}
	g := l.leg(s, side)
	room := l.desk.Scratch[flow.Headroom:]
	before := copy(room, s.flow.Unread(side))
	n, e := l.k.Recv(g.fd, room[before:])
	switch {
	case e == sock.Again:
		l.drained(i, s, side)
		return false
	case e != 0:
		l.step(s, flow.Event{Kind: flow.Broke, Leg: side})
	case n == 0:
		g.is &^= readable
		l.step(s, flow.Event{Kind: flow.Ended, Leg: side})
	default:
		full := before+n == len(room)
		if !full && (!g.has(over|urgent) || planted.Bug(15)) {
			// All that had come is read; more makes a new report (epoll(7)).
			l.drained(i, s, side)
		}
		l.Count.Octets[side] += uint64(n)
		l.step(s, flow.Event{Kind: flow.Received, Leg: side, Octets: room[:before+n], N: n, Full: full})
	}
	return true
}

// secure asks the ledger for an endpoint with room.
func (l *Loop) secure(i uint32, s *slot) bool {
	if s.client.has(failed) {
		l.step(s, flow.Event{Kind: flow.Broke, Leg: flow.Client})
		return true
	}
	if l.waiting[i].place != nil {
		return false
	}
	if planted.Bug(22) && s.flow.Moves() > 0 {
		s.flow.SetPlace(0)
	}
	b, a := s.flow.Backend(), &l.asking
	s.flow.Ask(a)
	a.Loop, a.Token, a.Now = l.index, token(i, s), int64(l.now)
	book := l.backendLodge(b).book
	g, w, answer := book.Secure(b, a)
	switch answer {
	case ledger.Secured:
		l.granted(i, s, g)
	case ledger.Waiting:
		s.flow.SetPlace(w.Place())
		l.waiting[i] = inQueue{w, book}
		return false
	case ledger.Full:
		l.step(s, flow.Event{Kind: flow.Rejected})
	case ledger.None:
		l.step(s, flow.Event{Kind: flow.Unavailable, Why: flow.NoEndpoint})
	case ledger.Tripped:
		l.step(s, flow.Event{Kind: flow.Unavailable, Why: flow.BreakerOpen})
	case ledger.Shed:
		l.step(s, flow.Event{Kind: flow.TurnedAway, Drop: g.Drop})
	case ledger.Spent:
		l.step(s, flow.Event{Kind: flow.Unavailable, Why: flow.RetriesSpent})
	}
	return true
}

// budgets are those for retries, of all backends.
type budgets struct{ l *Loop }

// AllowRetry asks the backend's account.
func (b budgets) AllowRetry(c *config.Backend, a *ledger.Asking) bool {
	return b.l.backendLodge(c).book.AllowRetry(c, a)
}

// inQueue is a flow's place in the queue of a backend, which need not be the one
// that the flow goes to by now.
type inQueue struct {
	place *ledger.Waiter
	book  *ledger.Backend
}

func (l *Loop) granted(i uint32, s *slot, g ledger.Grant) {
	l.attach(i, s).account = g.Account
	l.step(s, flow.Event{Kind: flow.Secured, Endpoint: g.Endpoint, Stuck: g.Stuck})
}

// served fetches what the ledger has granted to the waiter in the slot that
// the token names, if that is still there.
func (l *Loop) served(of uint64) {
	i := uint32(of) >> 1
	if int(i) >= l.table.slots.size() {
		return
	}
	s := l.at(i)
	if !s.live || token(i, s) != of {
		return // it left; whoever parked or removed it has taken the grant
	}
	q := l.waiting[i]
	if q.place == nil {
		return
	}
	g := q.book.Collect(q.place)
	if g.Endpoint == nil {
		if q.book.Dismissed(q.place) {
			delete(l.waiting, i)
			l.guard(i) // it asks again, and is told that there is none
		}
		return
	}
	delete(l.waiting, i)
	l.granted(i, s, g)
	l.guard(i)
}

// letGo parts a flow from its backend leg, which is idle from now on or closed,
// and gives the endpoint's slot back.
func (l *Loop) letGo(s *slot) {
	b := l.far(s.far - 1)
	account := b.account
	if b.fd < 0 {
		l.detach(s)
	} else {
		l.thin(s, flow.Client)
		l.thin(s, flow.Backend)
		if p := b.pipe; p != noPipe {
			b.pipe = noPipe
			l.pipes.discard(l.k, p)
		}
		if !s.flow.Reusable() || !l.rest(s) {
			fd := b.fd
			l.detach(s)
			l.close(fd)
			if planted.Bug(18) {
				l.close(fd)
			}
		}
	}
	if p := s.client.pipe; p != noPipe {
		// What the backend would not take any more of a request.
		l.pipes.discard(l.k, p)
		s.client.pipe = noPipe
	}
	account.Release()
}

// dial opens the backend leg or takes an idle one, or sees how far it is.
func (l *Loop) dial(i uint32, s *slot) bool {
	if s.client.has(failed) {
		l.step(s, flow.Event{Kind: flow.Broke, Leg: flow.Client})
		return true
	}
	if l.far(s.far-1).fd < 0 {
		l.spec = l.dialSpec(s) // the loop's own: a pointer to a local one would be allocated
		p := l.pool(s)
		if p != nil && !s.flow.Fresh() && l.wake(i, s, p) {
			l.step(s, flow.Event{Kind: flow.Dialed, Reused: true})
			return true
		}
		fd, pending, e := l.k.Dial(&l.spec)
		if e == sock.ManyFiles && l.shrink() {
			fd, pending, e = l.k.Dial(&l.spec)
		}
		if e == sock.Again && l.spec.Unix != "" || e == sock.ManyFiles || e == sock.NoAddress && s.flow.Listener().Movable {
			// Its backlog is full, or we are, or the VIP to dial from is not here, as when this process
			// has stood still for longer than its lease: the clock tries again (lookAt).
			return false
		}
		if e != 0 {
			l.dialFailed(s, e)
			return true
		}
		b := l.far(s.far - 1)
		b.begin(fd, l.now, 0)
		b.pool = p
		if b.pending = pending; !pending {
			b.is = readable | writable
			l.dialed(s)
			return true
		}
		// Over loopback the handshake is over before connect returns, though
		// it does not say so; elsewhere this costs one call in vain.
		if !l.spec.Addr.Addr().IsLoopback() {
			return false
		}
	}
	switch b := l.far(s.far - 1); {
	case b.has(deaf):
		l.dialFailed(s, sock.NoMemory)
		return true
	case !b.pending:
		// A leg that came with a move: it may be connected by now.
		b.pending = true
	case b.has(watched) && !b.has(writable) && !b.has(over):
		return false
	}
	b := l.far(s.far - 1)
	switch e := l.k.DialResult(b.fd); e {
	case 0:
		b.pending = false
		// What may have come already is reported: by now if the leg is watched,
		// else when it will be.
		b.is |= writable
		if b.has(failed) {
			b.is &^= over | failed
		}
		l.dialed(s)
		return true
	case sock.InProgress:
		b.is &^= writable | readable | over
		return false
	default:
		l.dialFailed(s, e)
		return true
	}
}

// dialed tells a flow that its leg is there.
func (l *Loop) dialed(s *slot) {
	e := flow.Event{Kind: flow.Dialed}
	if s.flow.Backend().ProxyHeader != config.NoProxyHeader {
		e.Local = sock.LocalAddr(s.client.fd)
	}
	l.step(s, e)
}

func (l *Loop) dialFailed(s *slot, e sock.Errno) {
	if e == sock.NoPort || e == sock.NoAddress {
		// The address to dial from is not here, as that of a VIP whose lease has ended, or has no
		// port left: nothing was sent, and nothing is known of the endpoint.
		l.Count.Retries++
	} else {
		l.unreached(s)
	}
	l.shared.Log.Debug("endpoint not reached", "flow", flowName(s.flow.ID()), "endpoint", s.flow.Endpoint().Ref.Name, "error", e)
	l.step(s, flow.Event{Kind: flow.DialFailed})
}

// unreached notes an attempt to connect that came to nothing.
func (l *Loop) unreached(s *slot) {
	a := l.far(s.far - 1).account
	a.CountError()
	if !planted.Bug(58) {
		a.Note(int64(l.now), false, 0)
	}
	l.Count.Retries++
}

// movableMSS clamps the segments of legs that may move between hosts, so that
// a leg which began over loopback fits the network it ends on.
const movableMSS = 1380

func (l *Loop) dialSpec(s *slot) sock.DialSpec {
	b, e, lis := s.flow.Backend(), s.flow.Endpoint(), s.flow.Listener()
	if e.Unix != "" {
		return sock.DialSpec{Unix: e.Unix}
	}
	spec := sock.DialSpec{Addr: e.Addr, Source: b.Source}
	if b.SourceVIP {
		if spec.Source = lis.VIP.Addr(); spec.Source.IsUnspecified() {
			spec.Source = sock.LocalAddr(s.client.fd).Addr()
		}
	}
	if c := l.gen.Config.Cluster; c != nil && lis.Movable {
		spec.MSS, spec.Buffer = movableMSS, movableBuffer
		if spec.Source.IsValid() {
			spec.PortMin, spec.PortMax = c.SourcePortFirst, c.SourcePortLast
		}
	}
	return spec
}

// unqueue takes a flow that waits no longer out of the queue. What it was granted
// and has not heard of yet goes back.
func (l *Loop) unqueue(i uint32) {
	q := l.waiting[i]
	if q.place == nil {
		return
	}
	delete(l.waiting, i)
	if g := q.book.Withdraw(q.place); g.Endpoint != nil {
		g.Account.Release()
	}
}

// remove ends the flow in slot i: everything it held goes back.
func (l *Loop) remove(i uint32, s *slot, abort [2]bool, cause flow.Cause) {
	l.unqueue(i)
	l.sumUp(s, cause)
	for side := flow.Client; side <= flow.Backend; side++ {
		g := l.leg(s, side)
		if g.pipe != noPipe {
			l.pipes.discard(l.k, g.pipe)
			g.pipe = noPipe
		}
		if g.fd < 0 {
			continue
		}
		if abort[side] && !planted.Bug(20) {
			l.closeReset(g.fd)
		} else {
			l.close(g.fd)
		}
	}
	if s.far != 0 && !planted.Bug(11) {
		l.far(s.far - 1).account.Release()
	}
	at := l.under(s.flow.Listener())
	if !planted.Bug(28) {
		at.gate.Leave()
	}
	l.shared.Ledger.Node.Leave()
	if s.sourced && !planted.Bug(59) {
		l.shared.Ledger.LeaveSource(s.flow.Listener(), s.flow.Client().Addr())
	}
	l.Count.Ended[cause]++
	at.door.Ended[cause]++
	s.flow.Drop(&l.lender)
	l.leave(i, s)
}
