package loop

import (
	"time"

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
		s.flow.Wants(w)
		more := false
		switch {
		case w.Done:
			l.remove(i, s, w.Abort, s.flow.Cause())
			return
		case w.Secure:
			more = l.secure(i, s)
		case w.Dial:
			more = l.dial(i, s)
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
	if s.flow.Unsettled() && !planted.Bug(16) {
		s.flow.Settle(&l.lender)
	}
	for side := flow.Client; side <= flow.Backend; side++ {
		if g := &s.legs[side]; !g.has(watched) && g.fd >= 0 {
			l.watch(i, s, side)
		}
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

// livelyAfter is when a backend leg is told to look after its peer: five calls
// that a flow which has ended by then is spared.
const livelyAfter = time.Second

// lookAt is when the flow's legs are to be looked at next; 0 is never.
func (l *Loop) lookAt(s *slot) flow.Instant {
	switch state := s.flow.State(); {
	case state == flow.Dialing && s.legs[flow.Backend].fd < 0:
		return l.now.Add(tick) // a unix socket's backlog was full
	case state != flow.Relaying:
		return 0
	case !s.lively:
		return max(l.now, s.flow.Born().Add(livelyAfter))
	}
	if s.legs[flow.Client].has(failed) || s.legs[flow.Backend].has(failed) {
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
	if s.flow.State() != flow.Relaying || l.now < s.flow.Born().Add(livelyAfter) {
		return
	}
	unix := s.flow.Endpoint().Unix != ""
	if !s.lively {
		s.lively = true
		if !unix {
			l.k.Enliven(s.legs[flow.Backend].fd, Life(s.flow.Listener()))
		}
	}
	silence := s.flow.Listener().UserTimeout
	still := s.flow.Still(l.now)
	for side := flow.Client; side <= flow.Backend; side++ {
		if silence > 0 && !(unix && side == flow.Backend) && l.k.Vanished(s.legs[side].fd, silence) {
			l.Count.Vanished++
			s.flow.Step(l.now, flow.Event{Kind: flow.Broke, Leg: side})
			return
		}
		if s.legs[side].has(failed) && still >= flow.LingerMax {
			// It was reset. What it said before is the other leg's due, but that
			// one takes nothing.
			s.flow.Step(l.now, flow.Event{Kind: flow.Broke, Leg: side})
			return
		}
	}
}

// hasten sees that what is sent to the backend does not wait for what was sent
// before. The first octets go out at once anyway, and to a client all do: its
// leg has the option from the listener.
func (l *Loop) hasten(s *slot, side flow.Side) {
	if side == flow.Backend && !s.prompt && s.flow.Sent(flow.Backend) > 0 {
		s.prompt = true
		if s.flow.Endpoint().Unix == "" {
			l.k.NoDelay(s.legs[flow.Backend].fd)
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
	g := &s.legs[side]
	if !g.has(writable) || (s.pending && side == flow.Backend) {
		g.is |= outAlso
	}
	if e := l.k.Watch(g.fd, g.interest(), data(i, s, side)); e != 0 {
		l.shared.Log.Warn("the kernel would not watch a leg", "flow", s.flow.ID(), "leg", side, "error", e)
		l.fail(i, s, side)
		return
	}
	g.is |= watched
}

// rewatch brings the poller to what the leg is to be watched for now. What is
// ready is reported again, so nothing is missed.
func (l *Loop) rewatch(i uint32, s *slot, side flow.Side) {
	if g := &s.legs[side]; g.has(watched) {
		_ = l.k.Rewatch(g.fd, g.interest(), data(i, s, side))
	}
}

// mute stops reports of a leg that is known to be readable and is not read,
// because the other leg takes nothing: each segment that comes would wake the
// loop for nothing. The end of the leg is still reported.
func (l *Loop) mute(i uint32, s *slot, side flow.Side) {
	if g := &s.legs[side]; g.has(readable) && !g.has(muted) {
		g.is |= muted
		l.rewatch(i, s, side)
	}
}

// drained notes that nothing more can be read from a leg now.
func (l *Loop) drained(i uint32, s *slot, side flow.Side) {
	g := &s.legs[side]
	g.is &^= readable
	if g.has(muted) && !planted.Bug(26) {
		g.is &^= muted
		l.rewatch(i, s, side)
	}
}

// fail treats a leg that cannot be watched like one that broke, next turn.
func (l *Loop) fail(i uint32, s *slot, side flow.Side) {
	s.legs[side].is |= failed | over | watched | deaf // watched: it is not tried again
	if !s.again {
		s.again = true
		l.again = append(l.again, i)
	}
}

// exhausted notes that the kernel took less than was given: writing waits for
// the report that there is room again.
func (l *Loop) exhausted(i uint32, s *slot, side flow.Side) {
	g := &s.legs[side]
	g.is &^= writable
	if !g.has(outAlso) && !planted.Bug(25) {
		g.is |= outAlso
		l.rewatch(i, s, side)
	}
}

// exchange does one thing that a relaying flow wants and tells whether it did.
func (l *Loop) exchange(i uint32, s *slot, w *flow.Wants, budget *int) bool {
	for side := flow.Client; side <= flow.Backend; side++ {
		g := &s.legs[side]
		if out := w.Out[side]; len(out) > 0 {
			if g.has(writable) {
				l.hasten(s, side)
				n, e := l.k.Send(g.fd, out)
				switch {
				case e == sock.Again:
					l.exhausted(i, s, side)
				case e != 0:
					s.flow.Step(l.now, flow.Event{Kind: flow.Broke, Leg: side})
					return true
				default:
					if n < len(out) {
						l.exhausted(i, s, side)
					}
					*budget -= n
					if planted.Bug(14) {
						n = len(out)
					}
					s.flow.Step(l.now, flow.Event{Kind: flow.Wrote, Leg: side, N: n})
					return true
				}
			}
		} else if w.Shut[side] {
			if !planted.Bug(8) {
				l.k.Shutdown(g.fd)
			}
			s.flow.Step(l.now, flow.Event{Kind: flow.HasShut, Leg: side})
			return true
		}
	}
	for side := flow.Client; side <= flow.Backend; side++ {
		g := &s.legs[side]
		if g.has(deaf) {
			g.is &^= deaf
			s.flow.Step(l.now, flow.Event{Kind: flow.Broke, Leg: side})
			return true
		}
		if w.Relay[side] && (g.pipe != noPipe || g.has(readable) && !g.has(urgent)) && l.borrow(s, side) {
			if l.relay(i, s, side, budget) {
				return true
			}
			continue
		}
		if w.Read[side] && g.has(readable) {
			if l.read(i, s, side) {
				return true
			}
			continue
		}
		if g.has(failed) && s.flow.Ended(side) {
			// It has said FIN before, so reading will not tell.
			g.is &^= failed
			s.flow.Step(l.now, flow.Event{Kind: flow.Broke, Leg: side})
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
	g := &s.legs[side]
	n, e := l.k.Recv(g.fd, l.scratch)
	switch {
	case e == sock.Again:
		l.drained(i, s, side)
		return false
	case e != 0:
		s.flow.Step(l.now, flow.Event{Kind: flow.Broke, Leg: side})
	case n == 0:
		g.is &^= readable
		s.flow.Step(l.now, flow.Event{Kind: flow.Ended, Leg: side})
	default:
		full := n == len(l.scratch)
		if !full && (!g.has(over|urgent) || planted.Bug(15)) {
			// All that had come is read; more makes a new report (epoll(7)).
			l.drained(i, s, side)
		}
		l.Count.Octets[side] += uint64(n)
		s.flow.Step(l.now, flow.Event{Kind: flow.Received, Leg: side, Octets: l.scratch[:n], Full: full})
	}
	return true
}

// secure asks the ledger for an endpoint with room.
func (l *Loop) secure(i uint32, s *slot) bool {
	if s.account != nil { // an attempt has failed: what it held goes back
		l.letGo(s)
	}
	if s.legs[flow.Client].has(failed) {
		s.flow.Step(l.now, flow.Event{Kind: flow.Broke, Leg: flow.Client})
		return true
	}
	if l.waiting[i] != nil {
		return false
	}
	if planted.Bug(22) && s.flow.Moves() > 0 {
		s.flow.SetPlace(0)
	}
	b := s.flow.Backend()
	g, w, answer := l.book(b.Ref.Name).Secure(b, s.flow.Tried(), s.flow.Place(), l.index, data(i, s, flow.Client))
	switch answer {
	case ledger.Secured:
		l.granted(s, g)
	case ledger.Waiting:
		s.flow.SetPlace(w.Place())
		l.waiting[i] = w
		return false
	case ledger.Full:
		s.flow.Step(l.now, flow.Event{Kind: flow.Rejected})
	case ledger.None:
		s.flow.Step(l.now, flow.Event{Kind: flow.Unavailable})
	}
	return true
}

func (l *Loop) granted(s *slot, g ledger.Grant) {
	s.account = g.Account
	s.flow.Step(l.now, flow.Event{Kind: flow.Secured, Endpoint: g.Endpoint})
}

// served fetches what the ledger has granted to the waiter in the slot that
// token names, if that is still there.
func (l *Loop) served(token uint64) {
	i := uint32(token) >> 1
	if int(i) >= l.table.size() {
		return
	}
	s := l.at(i)
	if !s.live || data(i, s, flow.Client) != token {
		return // it left; whoever parked or removed it has taken the grant
	}
	w := l.waiting[i]
	if w == nil {
		return
	}
	g := l.book(s.flow.Backend().Ref.Name).Collect(w)
	if g.Endpoint == nil {
		return
	}
	delete(l.waiting, i)
	l.granted(s, g)
	l.guard(i)
}

// letGo closes the leg of an attempt and gives the endpoint's slot back.
func (l *Loop) letGo(s *slot) {
	g := &s.legs[flow.Backend]
	l.k.Close(g.fd)
	if planted.Bug(18) {
		l.k.Close(g.fd)
	}
	*g = leg{fd: sock.NoFD, pipe: noPipe, is: readable | writable}
	s.pending, s.prompt, s.lively = false, false, false
	s.account.Release()
	s.account = nil
}

// dial opens the backend leg, or sees how far it is.
func (l *Loop) dial(i uint32, s *slot) bool {
	if s.legs[flow.Client].has(failed) {
		s.flow.Step(l.now, flow.Event{Kind: flow.Broke, Leg: flow.Client})
		return true
	}
	g := &s.legs[flow.Backend]
	if g.fd < 0 {
		l.spec = l.dialSpec(s) // the loop's own: a pointer to a local one would be allocated
		fd, pending, e := l.k.Dial(&l.spec)
		if e == sock.Again && l.spec.Unix != "" {
			return false // its backlog is full: the clock tries again (lookAt)
		}
		if e != 0 {
			l.dialFailed(s, e)
			return true
		}
		*g = leg{fd: fd, pipe: noPipe}
		if s.pending = pending; !pending {
			g.is = readable | writable
			s.flow.Step(l.now, flow.Event{Kind: flow.Dialed})
			return true
		}
		// Over loopback the handshake is over before connect returns, though
		// it does not say so; elsewhere this costs one call in vain.
		if !l.spec.Addr.Addr().IsLoopback() {
			return false
		}
	} else if g.has(deaf) {
		l.dialFailed(s, sock.NoMemory)
		return true
	} else if !s.pending {
		// A leg that came with a move: it may be connected by now.
		s.pending = true
	} else if !g.has(writable) && !g.has(over) {
		return false
	}
	switch e := l.k.DialResult(g.fd); e {
	case 0:
		s.pending = false
		// What may have come already is reported: by now if the leg is watched,
		// else when it will be.
		g.is |= writable
		if g.has(failed) {
			g.is &^= over | failed
		}
		s.flow.Step(l.now, flow.Event{Kind: flow.Dialed})
		return true
	case sock.InProgress:
		g.is &^= writable | readable | over
		return false
	default:
		l.dialFailed(s, e)
		return true
	}
}

func (l *Loop) dialFailed(s *slot, e sock.Errno) {
	s.account.CountError()
	l.Count.Retries++
	l.shared.Log.Debug("endpoint not reached", "flow", s.flow.ID(), "endpoint", s.flow.Endpoint().Ref.Name, "error", e)
	s.flow.Step(l.now, flow.Event{Kind: flow.DialFailed})
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
			spec.Source = sock.LocalAddr(s.legs[flow.Client].fd).Addr()
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

// remove ends the flow in slot i: everything it held goes back.
func (l *Loop) remove(i uint32, s *slot, abort [2]bool, cause flow.Cause) {
	if w := l.waiting[i]; w != nil {
		delete(l.waiting, i)
		if g := l.book(s.flow.Backend().Ref.Name).Withdraw(w); g.Endpoint != nil {
			g.Account.Release()
		}
	}
	for side := flow.Client; side <= flow.Backend; side++ {
		g := &s.legs[side]
		if g.pipe != noPipe {
			l.pipes.discard(l.k, g.pipe)
		}
		if abort[side] && !planted.Bug(20) {
			l.k.CloseReset(g.fd)
		} else {
			l.k.Close(g.fd)
		}
	}
	if s.account != nil && !planted.Bug(11) {
		s.account.Release()
	}
	if !planted.Bug(28) {
		l.gate(s.flow.Listener().Ref.Name).Leave()
	}
	l.shared.Ledger.Node.Leave()
	l.Count.Ended[cause]++
	s.flow.Drop(&l.lender)
	l.leave(i, s)
}

// book and gate find accounts by name; a loop asks the ledger once for each.
func (l *Loop) book(name string) *ledger.Backend {
	b := l.books[name]
	if b == nil {
		b = l.shared.Ledger.Backend(name)
		l.books[name] = b
	}
	return b
}

func (l *Loop) gate(name string) *ledger.Gate {
	g := l.gates[name]
	if g == nil {
		g = l.shared.Ledger.Listener(name)
		l.gates[name] = g
	}
	return g
}
