package sim

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/loop"
)

// check looks at the world after a turn.
func (w *World) check() {
	if w.failed != nil {
		return
	}
	if w.net.bad != nil {
		w.fail("kernel: %v", w.net.bad)
		return
	}
	for _, p := range w.peers {
		if p.bad != nil {
			w.fail("%v", p.bad)
			return
		}
	}
	w.checkHosts()
	owners, perEnd := w.owners, w.perEnd
	clear(owners)
	clear(perEnd)
	clear(w.let)
	for id, p := range w.inFlight {
		if !p.dead {
			owners[id] = p.name + " (on its way)"
			if name := w.slotOf[id]; name != "" {
				perEnd[name]++
			}
			w.let[w.letBy[id]]++
		}
	}
	w.lines = w.lines[:0]
	for _, p := range w.procs {
		if p.dead {
			continue
		}
		for i, l := range p.shared.Loops {
			if l.Count.Panics > 0 || l.Count.Lost > 0 {
				w.fail("%s loop %d: %d panics, %d flows lost", p.name, i, l.Count.Panics, l.Count.Lost)
				return
			}
			if n := l.Lent(); n > l.Load()*2*flow.BlockBytes {
				w.fail("%s loop %d: %d octets lent to %d flows", p.name, i, n, l.Load())
				return
			}
			slots := l.Slots(0, nil)
			w.checkFlows(p, l, slots, owners, perEnd)
			w.checkLodges(p, l, slots)
		}
	}
	w.checkLimits(perEnd)
	if w.policy != nil {
		w.policy.check()
		w.checkServed()
	}
}

// checkServed wants that no client of TCP came to an endpoint which was out of
// service when it began.
func (w *World) checkServed() {
	for _, p := range w.peers {
		if p.svc == nil || p.judged {
			continue
		}
		c := p.across()
		if c == nil || !c.client {
			continue
		}
		p.judged = true
		x := w.policy.stand("pool/" + p.svc.name)
		if x.outSince == 0 || c.turn <= x.changed || w.policy.sticky[0] != "" && keepsSticky(&x.standing) {
			continue
		}
		w.fail("%v of turn %d came to %s, which is out of service since turn %d: %+v", c, c.turn, p.svc.name, x.outSince, x.standing)
	}
}

// hold notes that a flow is in no table: it is p's.
func (w *World) hold(x loop.Parked, p *Proc) {
	w.inFlight[x.Frozen.Id] = p
	w.letBy[x.Frozen.Id] = x.Frozen.Listener.Name
	delete(w.slotOf, x.Frozen.Id)
	if x.Frozen.Endpoint != nil {
		w.slotOf[x.Frozen.Id] = x.Frozen.Endpoint.Name
	}
}

// simmer is when a flow was first seen with octets below its leg's threshold,
// and how many it had read then.
type simmer struct {
	at     flow.Instant
	octets uint64
}

// unseenMax is for how many turns a flow can be in no table: a stall of the
// loop that is to have it, and some.
const unseenMax = 700

// inTurn is a request of a flow, or the flow.
type inTurn struct {
	flow    uint64
	request int
}

// inLine is a flow that waits.
type inLine struct{ place, since uint64 }

// checkLimits looks at what is bounded over all processes of a host. Between
// hosts limits are each one's own, and a reload may lower one below what is
// held already.
func (w *World) checkLimits(perEnd map[string]int) {
	if len(w.hosts) > 1 {
		return
	}
	// A third process does not know what drains in the first: limits are divided by
	// two.
	third := slices.ContainsFunc(w.procs, func(p *Proc) bool { return !p.dead && p.forgotten })
	if w.shape.revision == 0 && !third {
		for name, most := range w.ends() {
			if n := perEnd[name]; most > 0 && n > most {
				w.fail("%d connections or requests are open to %s, the limit is %d", n, name, most)
			}
		}
		for name, n := range w.let {
			most := w.shape.listenMax
			if w.web != nil && name != w.storm.tcpName() {
				most = w.web.shape.listenMax
			}
			if most > 0 && n > most {
				w.fail("%d connections came by %s, the limit is %d", n, name, most)
			}
		}
	}
	slices.SortFunc(w.lines, func(a, b inLine) int { return cmp.Compare(a.place, b.place) })
	for i := range w.lines[:max(0, len(w.lines)-1)] {
		// A flow may wait unseen in the mailbox of a loop that stands still.
		if a, b := w.lines[i], w.lines[i+1]; a.since > b.since+unseenMax {
			w.fail("place %d, since turn %d, comes before place %d, since turn %d", a.place, a.since, b.place, b.since)
		}
	}
}

func (w *World) checkFlows(p *Proc, l *loop.Loop, slots []uint32, owners map[uint64]string, perEnd map[string]int) {
	for _, i := range slots {
		f := l.Flow(i)
		if was := owners[f.ID()]; was != "" {
			w.fail("flow %x has two owners: %s and %s", f.ID(), was, p.name)
			return
		}
		owners[f.ID()] = p.name
		turn := inTurn{f.ID(), f.Requests()}
		if s := f.State(); f.Place() != 0 && (s == flow.Queued || s == flow.Dialing || s == flow.Relaying) && w.queuedAt[turn] == 0 {
			w.queuedAt[turn] = uint64(w.turns)
			// Who begins to wait in a taker that grants nothing yet, or in what
			// drains, and those who do in the other process, are in no order.
			w.unordered[turn] = p.arriving || p.gave || p.drains[f.ID()]
		}
		w.let[f.Listener().Ref.Name]++
		if e := f.Endpoint(); e != nil {
			perEnd[e.Ref.Name]++
		} else if f.Place() != 0 && f.State() == flow.Queued {
			if !w.unordered[turn] {
				w.lines = append(w.lines, inLine{f.Place(), w.queuedAt[turn]})
			}
		}
		client, backend := l.Leg(i, flow.Client), l.Leg(i, flow.Backend)
		c := p.fds.sock(client, "look at the client leg")
		if c == nil {
			continue
		}
		var b *Sock
		if backend >= 0 {
			b = p.fds.sock(backend, "look at the backend leg")
		}
		if w.web != nil && f.Listener().Protocol == config.HTTP {
			w.web.checkFlow(f, c, b)
		}
		if b != nil {
			c.mate, b.mate = b, c
		}
		if c.gone || c.held && w.inFlight[f.ID()] == nil {
			w.fail("flow %x is in a table of %s, its socket has moved away", f.ID(), p.name)
		}
		for s := flow.Client; s <= flow.Backend; s++ {
			if n := f.Unsent(s); n > flow.UnsentMax {
				w.fail("flow %x holds %d octets for its %v", f.ID(), n, s)
			}
		}
	}
}

// stuck wants, when nothing can happen but by the clock, that this is right.
func (w *World) stuck() {
	if w.failed != nil || w.net.bad != nil {
		return
	}
	for _, p := range w.procs {
		if p.dead || p.stopped {
			continue
		}
		for _, l := range p.shared.Loops {
			for _, i := range l.Slots(0, nil) {
				w.stuckFlow(p, l, i)
			}
		}
		w.stuckQueue(p)
	}
}

func (w *World) stuckFlow(p *Proc, l *loop.Loop, i uint32) {
	f := l.Flow(i)
	legs := [2]*Sock{}
	for s := flow.Client; s <= flow.Backend; s++ {
		if fd := l.Leg(i, s); fd >= 0 {
			legs[s] = p.fds.sock(fd, "look")
		}
	}
	if f.Phase() != flow.Tunnel && f.Speaks() == config.HTTP && f.State() != flow.Sunk && f.State() != flow.Dialing && f.State() != flow.Queued {
		w.stuckWeb(f, legs, l.Kind(i))
		return
	}
	switch f.State() {
	case flow.Sunk:
		if c := legs[flow.Client]; c != nil && (len(c.rcv) > 0 || c.finIn || c.dead) {
			w.fail("lost wakeup: flow %x is sunk, %d octets of its client are not read, FIN %t RST %t", f.ID(), len(c.rcv), c.finIn, c.dead)
		}
	case flow.Dialing:
		if b := legs[flow.Backend]; b != nil && (b.connected || b.dead) {
			w.fail("lost wakeup: flow %x dials, its leg is connected %t dead %t", f.ID(), b.connected, b.dead)
		}
	case flow.Relaying:
		for s := flow.Client; s <= flow.Backend; s++ {
			from, to := legs[s], legs[s.Other()]
			if from == nil || to == nil || to.dead || from.unwatched || to.unwatched {
				continue
			}
			due := f.Unsent(s.Other())
			switch {
			case !to.roomy():
			case due > 0:
				w.fail("lost wakeup: flow %x: %d octets are due to the %v, which has room for %d", f.ID(), due, s.Other(), to.free())
			case len(from.rcv) > 0 && len(from.rcv) < from.lowat:
				// Bulk simmers, and the clock looks at it, which must not last.
				since, known := w.simmers[f.ID()]
				if !known || since.octets != f.Received(s) {
					w.simmers[f.ID()] = simmer{w.net.now, f.Received(s)}
				} else if w.net.now > since.at.Add(100*time.Millisecond) {
					w.fail("lost wakeup: flow %x: %d octets of the %v, below a threshold of %d, are not read for %v", f.ID(), len(from.rcv), s, from.lowat, time.Duration(w.net.now-since.at))
				}
			case len(from.rcv) > 0:
				w.fail("lost wakeup: flow %x: %d octets of the %v are not read, the other leg has room for %d", f.ID(), len(from.rcv), s, to.free())
			case from.finIn && !f.Ended(s):
				w.fail("lost wakeup: flow %x: FIN of the %v is not read", f.ID(), s)
			case from.finIn && !to.finOut:
				w.fail("flow %x: FIN of the %v is not handed on", f.ID(), s)
			case from.dead:
				w.fail("lost wakeup: flow %x: the %v has reset, nothing is due to the other leg", f.ID(), s)
			}
		}
	}
}

func (w *World) stuckQueue(p *Proc) {
	if p.leaving || p.arriving {
		return
	}
	c := p.gen.Config
	for _, b := range c.SortedBackends() {
		book := p.shared.Ledger.Backend(b.Ref.Name)
		// One that has tried an endpoint in vain may wait for another, full one.
		fresh := 0
		for _, l := range p.shared.Loops {
			fresh += len(l.Slots(0, func(f *flow.Flow) bool {
				return f.State() == flow.Queued && f.Tried() == 0 && f.Backend().Ref.Name == b.Ref.Name && !awaitsOne(f)
			}))
		}
		if book.Waiting() == 0 || fresh == 0 {
			continue
		}
		for _, e := range b.Endpoints {
			stands := book.Endpoint(e.Ref.Name).Standing()
			if takes(&stands) && book.Endpoint(e.Ref.Name).Room() && w.shape.broken == 0 && (w.web == nil || w.web.shape.broken == 0) {
				w.fail("%s: %d flows wait for %s, endpoint %s has room (holds %d, foreign %d)", p.name, book.Waiting(), b.Ref.Name, e.Name, book.Endpoint(e.Ref.Name).InUse(), book.Endpoint(e.Ref.Name).Foreign())
				return
			}
		}
	}
}

// awaitsOne tells whether a flow that waits does so for an endpoint that its
// client has been at before, though others may have room.
func awaitsOne(f *flow.Flow) bool {
	var a ledger.Asking
	f.Ask(&a)
	return a.Stuck != 0 || a.Key != 0
}

// remains judges the end: nothing may be left, and every story must have ended
// as it had to.
func (w *World) remains() {
	for _, p := range w.procs {
		if p.dead {
			continue
		}
		led := p.shared.Ledger
		if n := led.Node.InUse(); n != 0 {
			w.fail("%s: the node's gate holds %d at the end", p.name, n)
		}
		// Those that have left the configuration as well.
		names := map[string]bool{}
		for name := range led.Places() {
			names[name] = name != ""
		}
		for _, name := range slices.Sorted(maps.Keys(names)) {
			if n := led.Listener(name).InUse(); n != 0 {
				w.fail("%s: the gate of %s holds %d at the end", p.name, name, n)
			}
		}
		for name, n := range led.Held() {
			w.fail("%s: the account of %s holds %d at the end", p.name, name, n)
		}
		for name := range w.ends() {
			if n := p.account(name).Foreign(); n != 0 {
				w.fail("%s: the account of %s counts %d of another process at the end, for ever", p.name, name, n)
			}
		}
		for _, name := range []string{"pool", "app"} {
			if n := led.Backend(name).Waiting(); n != 0 {
				w.fail("%s: %d wait for %s at the end", p.name, n, name)
			}
		}
		want := len(p.gen.Listening)
		for i, l := range p.shared.Loops {
			if n := l.Lent(); n != 0 {
				w.fail("%s loop %d: %d octets are lent at the end", p.name, i, n)
			}
			l.CloseIdle("")
			l.Free()
			if n := len(p.kernels[i].watches); n > len(p.gen.Listening) {
				w.fail("%s loop %d: %d descriptors are watched at the end", p.name, i, n)
			}
		}
		if n := p.fds.count(); n != want {
			w.fail("%s: %d descriptors are open at the end, %d listeners", p.name, n, want)
		}
		if w.policy != nil {
			w.policy.gone(p, true)
		}
		p.count()
	}
	w.explain()
	if w.policy != nil {
		w.policy.judge()
	}
	if w.web != nil && w.failed == nil {
		w.web.judge()
	}
}

// ends gives the full names of all endpoints, each with the number of
// connections, or requests, that it takes at once; 0 is any.
func (w *World) ends() iter.Seq2[string, int] {
	return func(yield func(string, int) bool) {
		for _, s := range w.services {
			if !yield("pool/"+s.name, w.policy.limit("pool", s.endpoint, w.shape.perEnd)) {
				return
			}
		}
		for i := range w.webEndpoints() {
			if !yield("app/a"+strconv.Itoa(i), w.policy.limit("app", i, w.web.shape.perEnd)) {
				return
			}
		}
	}
}

func (w *World) webEndpoints() int {
	if w.web == nil {
		return 0
	}
	return w.web.shape.endpoints
}

// explain finds those who were reset though nothing that happened to them, and
// no decision that was counted, says why.
func (w *World) explain() {
	e := &w.tally.Ended
	decided := e[flow.NoEndpoint] + e[flow.QueueFull] + e[flow.QueueTimeout] + e[flow.IdleTimeout] + e[flow.Killed] + w.net.strays + w.refused()
	unexplained := uint64(0)
	var who *Peer
	for _, p := range w.peers {
		if !p.rst || p.excused != "" || p.reset {
			continue
		}
		if o := p.across(); o != nil && (o.reset || o.excused != "") {
			continue
		}
		if p.s.mate == nil && p.s.peer.mate == nil && p.peerKey == 0 && p.name[0] == 's' {
			continue // its client may have gone before anything was said
		}
		unexplained++
		who = p
	}
	for _, p := range w.peers {
		if p.reset && p.across() == nil {
			decided++ // it may have been anybody's
		}
	}
	if unexplained > 2*decided {
		w.fail("%d ends were reset and only %d decisions say why (ended by cause: %v); one is %v, across %v", unexplained, decided, *e, who, who.across())
	}
	if w.tally.Lost > 0 || w.tally.Panics > 0 {
		w.fail("%d flows lost, %d panics", w.tally.Lost, w.tally.Panics)
	}
}

// across is the peer at the other end of the flow, if that is known.
func (p *Peer) across() *Peer {
	if o := p.other(); o != nil {
		return o
	}
	if m := p.s.peer.mate; m != nil && m.peer != nil {
		if o, ok := m.peer.owner.(*Peer); ok {
			return o
		}
	}
	for _, o := range p.net.peers {
		if o.peerKey == p.key {
			return o
		}
	}
	return nil
}
