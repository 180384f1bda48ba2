package loop

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/planted"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// Parked is a flow that its loop has let go of: in no poller, no wheel and no
// table, and frozen. Nobody else can find it; whoever has the Parked owns its
// descriptors and the endpoint's slot that goes with it.
type Parked struct {
	Frozen  *frozen.Flow
	FDs     []sock.FD // client, then backend if it has one
	Account *ledger.Endpoint
	Since   flow.Instant // when it stopped being served, on the host's clock
	Kind    string       // what it was doing, for the histogram of a move
	Octets  int          // it carries: unsent, or out of a pipe
	// Source is whom it counts for among the sources of its listener; nil if it
	// does not. It goes on counting until LeaveSource.
	Source *Source
}

// Source is a client as the limits of a listener for each source know it.
type Source struct {
	Listener *config.Listener
	Address  netip.Addr
}

// LeaveSource ends that p counts here for its source: it is another process's
// from now on, or nobody's.
func (p *Parked) LeaveSource(l *ledger.Ledger) { p.Source.leave(l) }

func (x *Source) leave(l *ledger.Ledger) {
	if x != nil {
		l.LeaveSource(x.Listener, x.Address)
	}
}

// The kinds of flows in a report of a move.
const (
	KindQueued         = "queued"
	KindDialing        = "dialing"
	KindIdle           = "idle"
	KindBulk           = "bulk-splice"
	KindHalfClosed     = "half-closed"
	KindHalfClosedBulk = "half-closed-splice"
	KindToClient       = "backpressured-to-client"
	KindToBackend      = "backpressured-to-backend"
	KindBothWays       = "backpressured-both-ways"
	KindGreeting       = "greeting"
	KindHTTPIdle       = "http-idle"
	KindHTTPHead       = "http-head"
	KindHTTPRequest    = "http-request"
	KindHTTPPipelined  = "http-pipelined"
	KindHTTPResponse   = "http-response"
	KindHTTPSplice     = "http-splice"
	KindHTTPAnswer     = "http-answer"
	KindHTTPLinger     = "http-lingering"
	KindTunnel         = "http-tunnel"
	KindTunnelSplice   = "http-tunnel-splice"
	KindSunk           = "sunk"
)

// Kinds are all of them, as a person filters flows by them. Never written to.
var Kinds = []string{
	KindQueued, KindDialing, KindIdle, KindBulk, KindHalfClosed, KindHalfClosedBulk, KindToClient,
	KindToBackend, KindBothWays, KindGreeting, KindHTTPIdle, KindHTTPHead, KindHTTPRequest, KindHTTPPipelined,
	KindHTTPResponse, KindHTTPSplice, KindHTTPAnswer, KindHTTPLinger, KindTunnel, KindTunnelSplice, KindSunk,
}

var phaseKinds = [...]string{
	flow.Greeting: KindGreeting, flow.Idle: KindHTTPIdle, flow.Head: KindHTTPHead, flow.Request: KindHTTPRequest,
	flow.Pipelined: KindHTTPPipelined, flow.Response: KindHTTPResponse, flow.Answer: KindHTTPAnswer,
	flow.Linger: KindHTTPLinger, flow.Tunnel: KindTunnel,
}

func (l *Loop) kind(s *slot) string {
	f := &s.flow
	switch f.State() {
	case flow.Queued:
		return KindQueued
	case flow.Dialing:
		return KindDialing
	case flow.Sunk:
		return KindSunk
	}
	held := func(side flow.Side) int {
		if p := l.leg(s, side).pipe; p != noPipe {
			return l.pipes.all[p].held
		}
		return 0
	}
	// A direction with octets that its kernel would not take is backpressured,
	// be they in a block or in a pipe.
	c, b := f.Unsent(flow.Client)+held(flow.Backend), f.Unsent(flow.Backend)+held(flow.Client)
	half := f.Ended(flow.Client) || f.Ended(flow.Backend)
	piped := s.client.pipe != noPipe || l.leg(s, flow.Backend).pipe != noPipe
	switch phase := f.Phase(); {
	case phase == flow.Octets:
	case piped && phase == flow.Tunnel:
		return KindTunnelSplice
	case piped:
		return KindHTTPSplice
	default:
		return phaseKinds[phase]
	}
	switch {
	case half && piped:
		return KindHalfClosedBulk
	case piped:
		return KindBulk
	case half:
		return KindHalfClosed
	case c > 0 && b > 0:
		return KindBothWays
	case c > 0:
		return KindToClient
	case b > 0:
		return KindToBackend
	}
	return KindIdle
}

// Park takes the flow of slot i out of the loop, frozen. ok is false if there
// is none, or if it ended in the attempt. It must be called between turns.
func (l *Loop) Park(i uint32) (p Parked, ok bool) {
	s := l.at(i)
	if !s.live {
		return p, false
	}
	p.Kind, p.Since = l.kind(s), l.k.Now()
	for side := flow.Client; side <= flow.Backend; side++ {
		l.thin(s, side) // the threshold is the socket's, and would go along
		if g := l.leg(s, side); g.has(watched) && g.fd >= 0 {
			_ = l.k.Unwatch(g.fd)
			g.is &^= watched
		}
	}
	if q := l.waiting[i]; q.place != nil && !planted.Bug(12) {
		// It leaves the queue and keeps its place. What it was granted and has
		// not heard of yet, it hears now.
		delete(l.waiting, i)
		if g := q.book.Withdraw(q.place); g.Endpoint != nil && !planted.Bug(13) {
			l.granted(i, s, g)
		}
	}
	for side := flow.Client; side <= flow.Backend; side++ {
		if l.leg(s, side).pipe != noPipe && !l.emptyPipe(s, side) {
			l.lose(1)
			l.remove(i, s, [2]bool{true, true}, flow.Broken)
			return p, false
		}
	}
	if s.flow.Unsettled() {
		s.flow.Settle(&l.lender)
	}
	p.Octets = s.flow.Unsent(flow.Client) + s.flow.Unsent(flow.Backend) + len(s.flow.Unread(flow.Client)) + len(s.flow.Unread(flow.Backend))
	z, err := s.flow.Freeze(l.now)
	if err != nil {
		// Only a flow that is Done refuses, and one that is Done has no slot.
		l.shared.Log.Error("a flow would not freeze", "flow", flowName(s.flow.ID()), "error", err)
		l.lose(1)
		l.remove(i, s, [2]bool{true, true}, flow.Broken)
		return p, false
	}
	p.Frozen = z
	if s.far != 0 {
		p.Account = l.far(s.far - 1).account
	}
	if s.sourced {
		p.Source = &Source{s.flow.Listener(), s.flow.Client().Addr()}
	}
	p.FDs = append(p.FDs, s.client.fd)
	if b := l.leg(s, flow.Backend).fd; b >= 0 {
		p.FDs = append(p.FDs, b)
		if len(z.Legs) == 0 {
			z.Legs = []*frozen.Leg{{}} // being dialled
		}
	}
	s.flow.Drop(&l.lender)
	l.Count.Parked++
	if planted.Bug(6) {
		return p, true
	}
	l.leave(i, s)
	return p, true
}

// emptyPipe moves what a pipe holds into the flow, as octets due to the other
// leg: a pipe is the loop's and stays.
func (l *Loop) emptyPipe(s *slot, side flow.Side) bool {
	g := l.leg(s, side)
	p := &l.pipes.all[g.pipe]
	buf := make([]byte, p.held)
	for got := 0; got < len(buf); {
		n, e := l.k.ReadPipe(p.r, buf[got:])
		if e != 0 || n == 0 {
			return false
		}
		got += n
	}
	p.held = 0
	planted.Cut(7, &buf)
	l.giveBack(g)
	l.Count.Octets[side] += uint64(len(buf))
	s.flow.Absorb(side.Other(), buf, &l.lender)
	return true
}

// Slots lists the slots that hold flows for which want is true (nil: all), at
// most max of them (0: no bound).
func (l *Loop) Slots(max int, want func(f *flow.Flow) bool) []uint32 {
	var out []uint32
	l.each(func(i uint32, s *slot) {
		if (max == 0 || len(out) < max) && (want == nil || want(&s.flow)) {
			out = append(out, i)
		}
	})
	return out
}

// Flow is the flow in slot i, to look at between turns; nil if there is none.
func (l *Loop) Flow(i uint32) *flow.Flow {
	if s := l.at(i); s.live {
		return &s.flow
	}
	return nil
}

// Kind tells what the flow in slot i is doing, in the words of a move's report.
func (l *Loop) Kind(i uint32) string { return l.kind(l.at(i)) }

// Leg is the descriptor of one leg of the flow in slot i, to look at; it stays
// the loop's.
func (l *Loop) Leg(i uint32, side flow.Side) sock.FD { return l.leg(l.at(i), side).fd }

// Kill ends the flow in slot i by RST.
func (l *Loop) Kill(i uint32) {
	if s := l.at(i); s.live {
		l.step(s, flow.Event{Kind: flow.Kill})
		l.guard(i)
	}
}

// Finish ends the flow in slot i so that nothing is lost that was read, by FIN where
// that may be; it is gone after [flow.LingerMax] at the latest, if its peers take
// what is due to them.
func (l *Loop) Finish(i uint32) {
	s := l.at(i)
	if !s.live {
		return
	}
	for side := flow.Client; side <= flow.Backend; side++ {
		l.thin(s, side)
		// What a pipe holds was read.
		if l.leg(s, side).pipe != noPipe && !l.emptyPipe(s, side) {
			l.Kill(i)
			return
		}
		l.leg(s, side).is |= readable // what lay below a threshold was not reported
	}
	l.step(s, flow.Event{Kind: flow.Finish})
	if s.flow.State() != flow.Queued {
		l.unqueue(i)
	}
	l.guard(i)
}

// Parcel is a batch of frozen flows on its way to a loop.
type Parcel struct {
	Octets  []byte  // an encoded frozen.Batch, or
	Thawed  *Thawed // what was made of one already
	FDs     []sock.FD
	Since   []flow.Instant // by flow: when it was parked
	Objects flow.Objects   // what names stand for; nil: the same versions
	// Sources, by flow, is whom it counts for already; nil: they have counted
	// under another ledger, and come under this one now.
	Sources []*Source
	// Adopted is told on the loop's thread how long each flow was not served,
	// and how many could not be thawed and are lost. May be nil.
	Adopted func(pauses []int64, lost int) // nanoseconds
}

// Pack makes the parcel of flows that were parked, with objects for a receiver
// that may not know them. The Parked are the parcel's from now on.
func Pack(all []Parked, objects ...*frozen.Object) (*Parcel, error) {
	batch := frozen.Batch{Objects: objects}
	p := &Parcel{}
	for _, x := range all {
		batch.Flows = append(batch.Flows, x.Frozen)
		x.Frozen.Client.Fd = uint32(len(p.FDs) + 1)
		if len(x.FDs) > 1 {
			x.Frozen.Legs[0].Fd = uint32(len(p.FDs) + 2)
		}
		p.FDs = append(p.FDs, x.FDs...)
		p.Since = append(p.Since, x.Since)
		p.Sources = append(p.Sources, x.Source)
	}
	var room []byte
	if r, ok := encoded.Get().(*[]byte); ok {
		room = *r
	}
	var err error
	p.Octets, err = batch.AppendTo(room[:0])
	return p, err
}

// encoded keeps the room of parcels that were unpacked, for the next ones: a
// fresh quarter of a MiB costs more in page faults than in copying.
var encoded sync.Pool

// Deliver hands a parcel to the loop, from any thread. Flows bring the
// endpoints' slots and the places at the gates that they hold: the ledger is
// not touched, so a carrier from another ledger imports them first.
func (l *Loop) Deliver(p *Parcel) { l.post(letter{kind: parcelLetter, parcel: p}) }

// Thawed are flows of a batch that were picked up and are in no loop yet: whoever
// examines a batch before it is its own need not do so again.
type Thawed struct {
	Batch *frozen.Batch
	flows []flow.Flow // by place in the batch
	used  bool        // a loop has adopted them
}

var errTwice = errors.New("loop: a batch was adopted before")

// Thaw picks up the flows of a batch at a moment of the loops' clock. fds is how many
// descriptors it may name. no has the place of each flow that cannot be, and why;
// then nothing was picked up.
func Thaw(now flow.Instant, batch *frozen.Batch, fds int, objects flow.Objects) (t *Thawed, no map[int]error) {
	t = &Thawed{Batch: batch, flows: make([]flow.Flow, len(batch.Flows))}
	for i, z := range batch.Flows {
		err := namesOf(z, fds)
		if err == nil {
			t.flows[i], err = flow.Thaw(now, z, objects)
		}
		if err != nil {
			if no == nil {
				no = map[int]error{}
			}
			no[i] = err
		}
	}
	if no != nil {
		return nil, no
	}
	return t, nil
}

// namesOf checks the places of the descriptors that a flow names.
func namesOf(z *frozen.Flow, fds int) error {
	for k := -1; k < len(z.Legs); k++ {
		g := z.Client
		if k >= 0 {
			g = z.Legs[k]
		}
		if int(g.GetFd()) > fds {
			return &frozen.Refused{What: "leg", Why: fmt.Sprintf("descriptor %d of %d", g.GetFd(), fds)}
		}
	}
	client, backend := z.Client.GetFd() > 0, len(z.Legs) == 1 && z.Legs[0].GetFd() > 0
	return checkLegs(z, client, backend)
}

func checkLegs(z *frozen.Flow, client, backend bool) error {
	switch {
	case !client:
		return &frozen.Refused{What: "leg", Why: "no descriptor for the client leg"}
	case !backend && flow.State(z.State) == flow.Relaying && z.Endpoint != nil:
		return &frozen.Refused{What: "leg", Why: "no descriptor for the backend leg"}
	}
	return nil
}

// unpack thaws the flows of a parcel, if they are not thawed yet, and adopts them.
func (l *Loop) unpack(p *Parcel) {
	now := l.k.Now()
	l.now = now
	batch, err := p.batch()
	if errors.Is(err, errTwice) { // its descriptors are those of flows that are served
		l.shared.Log.Error("a parcel of flows came twice", "error", err)
		if p.Adopted != nil {
			p.Adopted(nil, 0)
		}
		return
	}
	if err != nil {
		// Both ends of a mailbox are the same code; other carriers decode
		// before they deliver.
		l.shared.Log.Error("a parcel of flows is not readable", "error", err)
		l.lose(len(p.Since))
		for _, fd := range p.FDs {
			l.closeReset(fd)
		}
		for _, x := range p.Sources {
			x.leave(l.shared.Ledger)
		}
		if p.Adopted != nil {
			p.Adopted(nil, len(p.Since))
		}
		return
	}
	objects := p.Objects
	if objects == nil {
		objects = l.shared.Objects
	}
	var pauses []int64
	if len(p.Since) > 0 {
		pauses = make([]int64, 0, len(p.Since))
	}
	lost := 0
	for k, z := range batch.Flows {
		if err := l.adopt(z, p, k, objects); err != nil {
			l.shared.Log.Error("a flow could not be thawed and is lost", "flow", flowName(z.Id), "error", err)
			l.lose(1)
			lost++
			continue
		}
		if k < len(p.Since) {
			pauses = append(pauses, int64(l.k.Now()-p.Since[k]))
		}
	}
	if p.Adopted != nil {
		p.Adopted(pauses, lost)
	}
}

// batch is what the parcel is made of; its octets are used up.
func (p *Parcel) batch() (*frozen.Batch, error) {
	if t := p.Thawed; t != nil {
		if t.used {
			return nil, errTwice
		}
		t.used = true
		return t.Batch, nil
	}
	batch, err := frozen.Decode(p.Octets)
	room := p.Octets
	p.Octets = nil
	encoded.Put(&room) // decoding has kept no part of it
	return batch, err
}

// adopt picks one flow up and serves it at once.
func (l *Loop) adopt(z *frozen.Flow, p *Parcel, k int, objects flow.Objects) error {
	client, backend, err := legFDs(z, p.FDs)
	if err == nil {
		var f flow.Flow
		if p.Thawed != nil {
			f = p.Thawed.flows[k]
		} else {
			f, err = flow.Thaw(l.now, z, objects)
		}
		if err == nil {
			l.settleIn(&f, z, p, k, client, backend)
			return nil
		}
	}
	if p.Sources != nil {
		p.Sources[k].leave(l.shared.Ledger)
	}
	l.closeReset(client)
	l.closeReset(backend)
	return err
}

// settleIn gives a flow that was picked up all that one of this loop has.
func (l *Loop) settleIn(f *flow.Flow, z *frozen.Flow, p *Parcel, k int, client, backend sock.FD) {
	i, s := l.enter(*f, client, backend)
	if e := f.Endpoint(); e != nil {
		if s.far == 0 {
			l.attach(i, s)
		}
		b := l.far(s.far - 1)
		b.account = l.backendLodge(f.Backend()).book.Endpoint(e.Ref.Name)
		if b.fd >= 0 && s.flow.Speaks() == config.HTTP && (!s.flow.Spoilt() || planted.Bug(38)) {
			l.spec = l.dialSpec(s)
			b.pool = l.pool(s)
		}
	}
	if was, is := z.Listener.Name, l.under(f.Listener()); was != f.Listener().Ref.Name {
		is.gate.Admit() // its listener has another name now
		l.shared.Ledger.Listener(was).Leave()
	}
	l.comeUnder(s, p, k)
	l.Count.Adopted++
	l.guard(i)
}

// comeUnder makes the ledger know what it may not yet of a flow that has moved
// here: its source, and which endpoint its client is to come back to.
func (l *Loop) comeUnder(s *slot, p *Parcel, k int) {
	x := s.flow.Listener()
	var was *Source // nil: it came from another process, or counted for nobody
	if p.Sources != nil {
		was = p.Sources[k]
	}
	// It counts for what it leaves until it counts for what it comes under: whether
	// that limits sources, and tells them apart alike, may have changed.
	if s.sourced = limitsSources(x); s.sourced && (was == nil || was.Listener != x) {
		l.shared.Ledger.AdmitSource(x, s.flow.Client().Addr())
	}
	if was != nil && (was.Listener != x || !s.sourced) {
		was.leave(l.shared.Ledger)
	}
	if b, e := s.flow.Backend(), s.flow.Endpoint(); e != nil && b.Sticky != nil && b.Sticky.Kind != config.StickyCookie {
		s.flow.Ask(&l.asking)
		if l.asking.Key != 0 && !l.asking.Hashed {
			l.backendLodge(b).book.Learn(l.asking.Key, e.Ref.Name)
		}
	}
}

// legFDs finds the descriptors that a frozen flow names.
func legFDs(z *frozen.Flow, fds []sock.FD) (client, backend sock.FD, err error) {
	find := func(g *frozen.Leg) sock.FD {
		if n := g.GetFd(); n > 0 && int(n) <= len(fds) {
			return fds[n-1]
		}
		return sock.NoFD
	}
	client, backend = find(z.GetClient()), sock.NoFD
	if len(z.GetLegs()) == 1 {
		backend = find(z.GetLegs()[0])
	}
	return client, backend, checkLegs(z, client >= 0, backend >= 0)
}

// ParkMany parks the flows of some slots, from the first on, until they carry
// octetsAtOnce: what one flow brings along all others of its batch wait for. It
// tells how many slots it has dealt with, at least one.
func (l *Loop) ParkMany(slots []uint32) (all []Parked, dealt int) {
	octets := 0
	for _, i := range slots {
		if octets >= octetsAtOnce {
			break
		}
		dealt++
		if p, ok := l.Park(i); ok {
			all = append(all, p)
			octets += p.Octets
		}
	}
	return all, dealt
}

// octetsAtOnce bounds what a batch carries, unless one flow alone has more.
const octetsAtOnce = 64 << 10

// SendTo moves the flows of some slots to another loop: frozen, through its
// mailbox. It must be called between turns; dealt is that of ParkMany.
func (l *Loop) SendTo(to *Loop, slots []uint32, adopted func([]int64, int)) (sent []Parked, dealt int) {
	sent, dealt = l.ParkMany(slots)
	if len(sent) == 0 {
		return nil, dealt
	}
	p, err := Pack(sent)
	if err != nil { // larger than a batch may be: never, with UnsentMax and few flows
		panic(err)
	}
	p.Adopted = adopted
	to.Deliver(p)
	return sent, dealt
}

// Remake thaws flows in their own loop under other objects: the configuration
// changed and they follow it. Nothing is carried, and yet it is the same path.
func (l *Loop) Remake(slots []uint32, objects flow.Objects, adopted func([]int64, int)) (remade []Parked, dealt int) {
	remade, dealt = l.ParkMany(slots)
	if len(remade) == 0 {
		return nil, dealt
	}
	p, err := Pack(remade)
	if err != nil {
		panic(err)
	}
	p.Objects, p.Adopted = objects, adopted
	l.unpack(p)
	return remade, dealt
}

// restMost bounds how many connections one call of AcceptRest takes: the turn delays
// all others.
const restMost = 64

// AcceptRest takes what still waits at a listener that is to be closed, be there
// room or not: closing would reset it. It tells whether nothing waits any more; else
// it is to be called again.
func (l *Loop) AcceptRest(x *Listening) (empty bool) {
	for range restMost {
		fd, from, e := l.k.Accept(x.FD)
		switch {
		case e == sock.Again:
			return true
		case e == sock.Aborted, e == sock.Interrupted, e == sock.ManyFiles && l.shrink():
			continue
		case e != 0:
			return false
		}
		l.Count.Accepted++
		l.door(x.Object).Accepted++
		sourced, ok := l.admits(x.Object, from.Addr())
		if !ok {
			l.closeReset(fd)
			continue
		}
		l.shared.Ledger.Node.Admit()
		x.Gate.Admit()
		a := arrival{fd, flow.AddressOf(from), x, sourced}
		if to := l.lighter(); to != l && !l.shared.Fixed.Load() {
			to.post(letter{kind: acceptedLetter, accepted: a})
		} else {
			l.begin(&a)
		}
	}
	return false
}

// Now is the loop's clock.
func (l *Loop) Now() flow.Instant { return l.k.Now() }

// Lent is how many octets of blocks flows hold.
func (l *Loop) Lent() int { return l.lender.Lent() }

// Free gives back what a loop that has stopped holds beside flows.
func (l *Loop) Free() {
	for i := range l.pipes.all {
		l.k.Close(l.pipes.all[i].r)
		l.k.Close(l.pipes.all[i].w)
	}
	l.pipes = pipes{}
}
