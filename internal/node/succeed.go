package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// Succession is the taker's side of an upgrade.
type Succession struct {
	carrier move.Carrier
	taking  *move.Taking
	taker   *taker
	Node    *Node
}

// Succeed greets the predecessor over fd, takes the heritage and begins a node
// that does not accept yet. prepare does for that node whatever else may fail:
// the predecessor hears that we are ready after it, and goes on if we are not.
func Succeed(fd int, o Options, prepare func(*Node) error) (*Succession, error) {
	return succeedOver(move.NewLocal(sock.ChannelFrom(sock.Own(fd))), o, prepare)
}

func succeedOver(c move.Carrier, o Options, prepare func(*Node) error) (*Succession, error) {
	s := &Succession{carrier: c}
	s.taker = &taker{canary: map[uint64]bool{}, o: o, log: o.Log, prepare: prepare}
	hello := move.Greeting{Protocol: move.Protocol, Format: frozen.Format, Release: Release, PID: pid, Late: true, Features: features()}
	var err error
	if s.taking, err = move.Greet(s.carrier, s.taker, hello); err != nil {
		if s.taker.n != nil {
			s.taker.n.Stop()
		}
		_ = s.carrier.Close()
		return nil, err
	}
	s.Node = s.taker.n
	return s, nil
}

// Run takes flows until the predecessor is done, or has died after it let us
// accept or had committed something: then we own what was committed to us and go on
// alone. settle is called last, to take over what only one process can hold: the
// place of the admin socket. Flows do not depend on it, so its failure is only logged.
func (s *Succession) Run(settle func() error) error {
	s.taker.settle = func() {
		if err := settle(); err != nil {
			s.Node.log.Warn("this process serves, but cannot be reached where its predecessor was", "error", err)
		}
	}
	if err := s.taking.Run(); err != nil {
		_ = s.carrier.Close()
		return fmt.Errorf("node: %w", err)
	}
	go func() { // ends with the predecessor
		s.taking.Watch()
		_ = s.carrier.Close()
	}()
	return nil
}

// taker is this process as the one that takes over: a [move.Taker].
type taker struct {
	o         Options
	log       *slog.Logger
	prepare   func(*Node) error
	settle    func()
	n         *Node
	h         *move.Heritage
	flows     int // that were committed
	accepting bool
	idle      int             // legs that came
	canary    map[uint64]bool // of these, those that came before we accept
}

// Begin starts the node that takes over.
func (t *taker) Begin(h *move.Heritage, fds []sock.FD) (r move.Readiness, err error) {
	t.h = h
	o := t.o
	o.Source, o.Quiet, o.FirstID, o.Generation = h.Source, true, h.LastID+successorGap, h.Generation-1
	o.Inherited = map[string]sock.FD{}
	for i, vip := range h.Listeners {
		o.Inherited[vip] = fds[i]
	}
	o.HostHeritage, o.Heritage = h.Host, h.State
	if len(h.Names) > 0 {
		if err := json.Unmarshal(h.Names, &o.Names); err != nil {
			o.Log.Warn("the predecessor's names are not readable and are asked for again", "error", err)
		}
	}
	if len(h.Order) > 0 {
		if o.Loops, err = loopsOf(o.File); err != nil {
			return r, &frozen.Refused{What: "configuration", Why: err.Error()}
		}
	}
	n, err := Start(o)
	if err != nil {
		return r, &frozen.Refused{What: "configuration", Why: err.Error()}
	}
	t.n = n
	n.heir.Store(true)
	// The predecessor closes its descriptors of a socket after this process serves it.
	n.askAll(func(l *loop.Loop) { l.Lend(nil) })
	// Until all flows are here waiting ones come in any order, and what is limited is
	// the predecessor's to grant.
	n.shared.Ledger.PlacesAfter(h.LastPlace + successorGap)
	n.shared.Ledger.Await()
	if err = t.obey(h.Order); err == nil {
		err = t.prepare(n)
	}
	if err != nil {
		return r, err
	}
	return move.Readiness{Room: t.Room(), FileLimit: n.fds}, nil
}

// Learn hears what the predecessor knows.
func (t *taker) Learn(k move.Knowledge) error {
	t.n.know(k)
	return nil
}

// Room is for how many descriptors of flows there is room.
func (t *taker) Room() int {
	_, kept := roomFor(t.n.fds, len(t.n.shared.Loops))
	return t.n.fds - kept
}

// Cookie is the kernel's name of a socket.
func (t *taker) Cookie(fd sock.FD) (uint64, error) { return sock.Cookie(fd) }

// Close ends a duplicate.
func (t *taker) Close(fd sock.FD) { fd.Close() }

// Reset ends a socket that has no owner any more, though the predecessor's end may
// not have closed its own descriptor yet.
func (t *taker) Reset(fd sock.FD) { fd.CloseResetLent() }

// Examine reads a lot.
func (t *taker) Examine(octets []byte, fds []sock.FD) (any, error) {
	return t.n.examine(octets, len(fds))
}

// Adopt serves a lot.
func (t *taker) Adopt(lot any, fds []sock.FD, since []int64) move.Adoption {
	thawed := lot.(*loop.Thawed)
	for _, z := range thawed.Batch.Flows {
		if t.accepting {
			break
		}
		t.canary[z.Id] = true
	}
	t.flows += len(thawed.Batch.Flows)
	p := &loop.Parcel{Thawed: thawed, FDs: fds, Since: make([]flow.Instant, len(since))}
	for i, at := range since {
		p.Since[i] = flow.Instant(at)
	}
	return t.n.take(thawed.Batch, p)
}

// AdoptIdle puts idle backend legs into the pools of all loops, in turn. They are no
// reason to end.
func (t *taker) AdoptIdle(octets []byte, fds []sock.FD) error {
	legs, err := loop.UnpackIdle(octets, fds)
	if err != nil {
		t.log.Warn("idle backend legs of the predecessor are of no use here", "legs", len(fds), "error", err)
		for _, fd := range fds {
			fd.Close()
		}
		return nil
	}
	loops := t.n.shared.Loops
	parts := make([][]loop.IdleLeg, len(loops))
	for _, x := range legs {
		parts[t.idle%len(loops)] = append(parts[t.idle%len(loops)], x)
		t.idle++
	}
	for i, l := range loops {
		if len(parts[i]) > 0 {
			l.Do(func(l *loop.Loop) { l.TakeIdle(parts[i]) })
		}
	}
	return nil
}

// Accept begins to accept.
func (t *taker) Accept(a move.Acceptance) {
	n := t.n
	share := ledger.Share{Held: t.h.Held, Places: a.Places} // of a release that does not divide limits
	if len(a.Share) > 0 {
		if err := json.Unmarshal(a.Share, &share); err != nil {
			n.log.Error("what the predecessor keeps of limits is not readable", "error", err)
		}
	}
	t.accepting = true
	n.shared.Ledger.Switched(share)
	n.watch.begin()
	n.askAll(func(l *loop.Loop) { l.SetAccepting(true) })
}

// loopAnswer bounds how long a loop may take to answer while a canary is observed.
const loopAnswer = time.Second

// Observe tells how what was adopted has fared.
func (t *taker) Observe() move.Sight {
	n := t.n
	s := move.Sight{Of: len(n.shared.Loops)}
	// What a loop does not answer in time it may still say later, to nobody.
	answers := make(chan move.Sight, s.Of)
	for _, l := range n.shared.Loops {
		l.Do(func(l *loop.Loop) {
			c := l.Counters()
			alive := l.Slots(0, func(f *flow.Flow) bool { return t.canary[f.ID()] })
			answers <- move.Sight{Alive: len(alive), Lost: int(c.Lost), Panics: int(c.Panics)}
		})
	}
	late := time.After(loopAnswer)
	for range s.Of {
		select {
		case a := <-answers:
			s.Loops, s.Alive, s.Lost, s.Panics = s.Loops+1, s.Alive+a.Alive, s.Lost+a.Lost, s.Panics+a.Panics
		case <-late:
			return s
		}
	}
	s.Ended = max(0, t.flows-s.Alive-s.Lost)
	return s
}

// Finish makes this process the one that serves.
func (t *taker) Finish(estate []byte) {
	n := t.n
	var e Estate
	if err := json.Unmarshal(estate, &e); err != nil {
		n.log.Warn("the predecessor's counts are not readable and begin anew", "error", err)
	} else {
		n.inherit(&e)
	}
	n.alone()
	n.shared.Ledger.Arrived() // flows that it keeps because we refused them still count
	n.askAll(func(l *loop.Loop) {
		l.EndLending()
		l.Relook() // what the predecessor was woken for, if it accepted again meanwhile
	})
	n.keepJournal()
	n.takeListeners()
	t.settle()
	n.log.Info("took over", "flows", n.flows(), "generation", n.Generation())
}

// Orphaned goes on after the predecessor's death.
func (t *taker) Orphaned(accepting bool, why error) {
	n := t.n
	if !accepting {
		n.watch.begin()
		n.askAll(func(l *loop.Loop) { l.SetAccepting(true) })
	}
	n.askAll((*loop.Loop).Relook)                        // what the predecessor was woken for
	n.totals.inherit(&Totals{Accepted: uint64(t.flows)}) // so that the counts balance
	n.alone()
	n.shared.Ledger.Alone()
	n.askAll((*loop.Loop).EndLending)
	n.takeListeners()
	t.settle()
	n.log.Warn("the predecessor died while it handed over; this process goes on with what it had got", "flows", n.flows(), "error", why)
}

// Remains hears what drains in the predecessor.
func (t *taker) Remains(r *move.Remains) {
	switch {
	case r == nil: // nothing any more
		r = &move.Remains{PID: t.h.PID}
		t.n.shared.Ledger.Alone()
	case len(r.Share) > 0:
		var share ledger.Share
		if err := json.Unmarshal(r.Share, &share); err != nil {
			t.n.log.Error("what drains in the predecessor holds of limits is not readable", "error", err)
			break
		}
		t.n.shared.Ledger.Switched(share)
	}
	t.n.upgrades.remainVIPs(r.PID, r.VIPs)
	t.n.drains(ResidueStatus{PID: r.PID, Release: t.h.Release, Flows: r.Flows, Reasons: r.Reasons, Until: r.Until})
}

// examine decodes an offer and thaws it.
func (n *Node) examine(octets []byte, fds int) (*loop.Thawed, error) {
	batch, err := n.decode(octets)
	if err != nil {
		return nil, err
	}
	return n.thaw(batch, fds)
}

// thaw picks up the flows of a batch that names so many descriptors. An error is
// [move.Unheld].
func (n *Node) thaw(batch *frozen.Batch, fds int) (*loop.Thawed, error) {
	thawed, no := loop.Thaw(flow.Instant(sock.Monotonic()), batch, fds, n.registry)
	if no == nil {
		return thawed, nil
	}
	var some move.Unheld
	for i, z := range batch.Flows {
		if err := no[i]; err != nil {
			r := move.Refusal{Flow: z.Id, What: "flow", Why: err.Error()}
			var because *frozen.Refused
			if errors.As(err, &because) {
				r.What, r.Why, r.Retry = because.What, because.Why, because.Retry
			}
			some = append(some, r)
		}
	}
	return nil, some
}

// decode reads a batch and the objects that come with it.
func (n *Node) decode(octets []byte) (*frozen.Batch, error) {
	batch, err := frozen.Decode(octets)
	if err != nil {
		return nil, err
	}
	return batch, n.registry.receive(time.Now(), batch.Objects)
}

// take makes flows ours: the ledger learns what they hold, and a loop adopts
// them. It returns when they are served.
func (n *Node) take(batch *frozen.Batch, p *loop.Parcel) move.Adoption {
	for _, z := range batch.Flows {
		if z.Endpoint != nil {
			n.account(z.Endpoint.Name).Import(1)
		}
		listener, node := n.shared.Ledger.Listener(z.Listener.Name), &n.shared.Ledger.Node
		if p.Since != nil { // from a predecessor, which had counted them
			listener.Import()
			node.Import()
		} else {
			listener.Admit()
			node.Admit()
		}
		raise(&n.shared.NextID, z.Id)
	}
	to := n.shared.Loops[0]
	for _, l := range n.shared.Loops {
		if l.Load() < to.Load() {
			to = l
		}
	}
	done := make(chan move.Adoption, 1)
	p.Adopted = func(pauses []int64, lost int) { done <- move.Adoption{Pauses: pauses, Lost: lost} }
	to.Deliver(p)
	return <-done
}

// loopsOf is what a file says of node.loops.
func loopsOf(file string) (*int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	c, _, err := Parse(file, text)
	if err != nil {
		return nil, err
	}
	return &c.Node.Loops, nil
}

// obey applies the configuration with which this process is to begin in place of
// the one in force.
func (t *taker) obey(order json.RawMessage) error {
	if len(order) == 0 {
		return nil
	}
	var q UpgradeRequest
	if err := json.Unmarshal(order, &q); err != nil {
		return fmt.Errorf("node: what is to be applied is not readable: %w", err)
	}
	if _, err := t.n.Change(context.Background(), ChangeRequest{Guard: Guard{Author: q.Author}, Reread: true}); err != nil {
		return &frozen.Refused{What: "configuration", Why: err.Error()}
	}
	return nil
}
