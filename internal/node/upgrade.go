package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// InheritEnv names the descriptor of the channel to the predecessor.
const InheritEnv = "HOLDFAST_INHERIT_FD"

const (
	// startTime bounds how long a new binary may take until it could serve.
	startTime = 20 * time.Second
	// answerTime bounds each answer while flows move.
	answerTime = 5 * time.Second
	// processChunk is how many flows move to another process at once: each
	// waits for its whole batch, and the loop for the freezing of it.
	processChunk = 8
)

// successorGap is how many identities, and places in queues, are left for what
// the predecessor accepts after it has told its last ones, until its successor
// serves. Without it two flows had one identity, and a connection that came
// late stood in the queue before those that had waited.
const successorGap = 1 << 24

func (n *Node) greeting() move.Greeting {
	return move.Greeting{Protocol: move.Protocol, Format: frozen.Format, Release: Release, Node: n.Config().Node.Name, PID: pid}
}

// upgrade starts q.Binary ("" is the one that runs now) as the successor of this
// process and hands everything over to it: listeners, then flows, in small
// batches. If the successor does not come up, refuses or dies, this process
// goes on; only flows that the successor had already taken die with it. r is
// what has been done, whatever came of it.
func (n *Node) upgrade(_ context.Context, q UpgradeRequest, r *Report, tell func(Progress)) error {
	n.change.Lock()
	defer n.change.Unlock()
	if err := n.inCharge(); err != nil {
		return err
	}
	if pid == 1 {
		return errors.New("node: as process 1 of a container it cannot be replaced: everything would end with it; start it under an init")
	}
	binary := q.Binary
	began := time.Now()
	n.awaitRetired()
	if binary == "" {
		// The path as it is now, not /proc/self/exe: a new file may have been
		// put in its place.
		path, err := os.Executable()
		if err != nil {
			return fmt.Errorf("node: %w", err)
		}
		binary = path
	}
	near, far, err := sock.ChannelPair()
	if err != nil {
		return err
	}
	carrier := move.NewLocal(near)
	defer func() { _ = carrier.Close() }()
	args := []string{"run", "-c", n.file}
	if n.level != nil {
		args = append(args, "--log", n.level.Level().String())
	}
	child := exec.Command(binary, args...)
	child.Env = append(os.Environ(), InheritEnv+"=3")
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	file := os.NewFile(uintptr(far.FD().Disown()), "successor") // closed below, or by exec
	child.ExtraFiles = []*os.File{file}
	err = child.Start()
	_ = file.Close()
	if err != nil {
		return fmt.Errorf("node: start %s: %w", binary, err)
	}
	gone := make(chan struct{})
	go func() { // ends with the child; if we go first, init reaps it
		_ = child.Wait() // how it ended is in its own log
		close(gone)
	}()
	tell(Progress{Phase: "starting", Text: fmt.Sprintf("new process %d", child.Process.Pid), PID: child.Process.Pid})
	if done, err := n.handOver(carrier, r); err != nil {
		if !done {
			_ = child.Process.Kill()
			<-gone
		}
		// Once all was handed over the other process is never killed: it has
		// every flow. It says so late, or it has died of itself.
		select {
		case <-gone:
			_ = os.Remove(PreparedSocket(n.Config().Node.AdminSocket, child.Process.Pid)) // if it got that far
			return n.abort(r, err)
		case <-time.After(settleTime):
		}
		n.log.Warn("the new process has everything and has not said so", "successor", child.Process.Pid, "error", err)
	}
	n.mu.Lock()
	n.successor = child.Process.Pid
	n.mu.Unlock()
	if n.host.listener != nil {
		_ = n.host.listener.Close() // peers speak to the successor now
	}
	r.PID = child.Process.Pid
	n.log.Info("upgrade done", "flows", r.Flows, "refused", r.Refused, "lost", r.Lost, "successor", r.PID, "took", time.Since(began))
	r.done(began)
	return nil
}

// PreparedSocket is where process pid binds its admin socket before it may have
// its place at path.
func PreparedSocket(path string, pid int) string { return fmt.Sprintf("%s.%d", path, pid) }

// abort goes on after a new process that has ended before it could take over.
func (n *Node) abort(r *Report, err error) error {
	n.mu.Lock()
	n.leaving = false
	n.mu.Unlock()
	n.shared.Fixed.Store(false)
	n.watch.begin()
	if n.shared.Ledger.Paused() {
		n.shared.Ledger.Alone()
		n.shared.Ledger.Resume()
	}
	for _, l := range n.shared.Loops {
		l.Do(func(l *loop.Loop) { l.SetAccepting(true) })
	}
	n.told.Store(false)
	r.paused(nil, r.given) // what it had taken died with it
	n.totals.aborted(r.Lost)
	n.removeOtherRules()
	n.log.Warn("upgrade aborted; this process goes on", "error", err, "lost", r.Lost)
	if r.Lost > 0 {
		return fmt.Errorf("node: upgrade aborted, this process goes on; %d flows that the new one had taken are lost: %w", r.Lost, err)
	}
	return fmt.Errorf("node: upgrade aborted, this process goes on: %w", err)
}

// settleTime is how long a successor that fell silent after it was given all
// may take to die of what silenced it.
const settleTime = 2 * time.Second

// handOver speaks the giver's part of the protocol from greeting to end. done
// tells that the successor was told to go on alone; an error then means only
// that it has not answered.
func (n *Node) handOver(c move.Carrier, r *Report) (done bool, err error) {
	if err := n.introduce(c); err != nil {
		return false, err
	}
	if err := n.giveAll(c, r); err != nil {
		return false, err
	}
	n.totals.note(r)
	n.told.Store(true)
	estate := n.estate()
	estate.MovedFlows["process"] += uint64(r.Flows)
	estate.Moves["process"]++
	estate.ResetByMove += uint64(r.Lost)
	estate.Stayed += uint64(n.flows())
	if err := c.SetTimeout(startTime); err != nil {
		return false, err
	}
	if err := move.SendJSON(c, move.Done, estate.bounded(estateMax)); err != nil {
		return false, err // it was not delivered: a seqpacket message is taken whole or not
	}
	if _, err = move.Expect(c, move.Settled); err == nil {
		n.totals.tally(r)
	}
	return true, err
}

// errNoHoldfast is that the new process has ended before it said a word.
var errNoHoldfast = errors.New("the new process ended at once, without a word to us: it could not begin (its own log says why), or is no Holdfast")

// introduce brings the successor to the point where it accepts new
// connections in our place.
func (n *Node) introduce(c move.Carrier) error {
	if err := c.SetTimeout(startTime); err != nil {
		return err
	}
	m, err := move.Expect(c, move.Hello)
	if err != nil {
		if gone(err) { // end of file, which means nothing to whoever asked for it
			return errNoHoldfast
		}
		return fmt.Errorf("the new process did not come up: %w", err)
	}
	var hello move.Greeting
	if err := m.Into(&hello); err != nil {
		return err
	}
	if err := hello.Check(); err != nil {
		return err
	}
	// From here on only the successor grants what is limited.
	n.shared.Ledger.Pause()
	heritage, fds := n.heritage()
	// The kernel takes a limited number of descriptors with one message; those
	// that do not fit come with more messages, which say nothing else.
	first := min(len(fds), sock.RightsMax)
	if err := move.SendJSON(c, move.Inherit, heritage, fds[:first]...); err != nil {
		return err
	}
	for rest := range slices.Chunk(fds[first:], sock.RightsMax) {
		if err := c.Send(move.Message{Kind: move.Inherit, FDs: rest}); err != nil {
			return err
		}
	}
	if _, err := move.Expect(c, move.Ready); err != nil {
		return err
	}
	if err := c.SetTimeout(answerTime); err != nil {
		return err
	}
	n.host.intake.Lock() // a batch from another host is taken whole, or refused
	n.mu.Lock()
	n.leaving = true
	n.mu.Unlock()
	n.host.intake.Unlock()
	n.shared.Fixed.Store(true)
	// Connections that arrive from here on wait in the shared queue until the
	// successor accepts them; none is ever refused.
	for _, l := range n.shared.Loops {
		l.Ask(func(l *loop.Loop) { l.SetAccepting(false) })
	}
	// Endpoints are watched by one process at a time, and what it knows of them is
	// handed over at the last moment.
	n.watch.leave(true)
	if hello.Late {
		if err := n.sendKnowledge(c); err != nil {
			return err
		}
	}
	n.leaveJournal()
	// What the gates count can only become less here, for nothing is accepted.
	return move.SendJSON(c, move.Accept, n.shared.Ledger.Places())
}

func (n *Node) heritage() (move.Heritage, []sock.FD) {
	n.mu.Lock()
	g := n.gen
	n.mu.Unlock()
	d := n.state.current()
	h := move.Heritage{Generation: d.Generation, Source: d.doc.Source(), File: n.file, State: n.portableState(), Held: n.shared.Ledger.Held(), LastID: n.shared.NextID.Load(), LastPlace: n.shared.Ledger.LastPlace()}
	var fds []sock.FD
	for _, x := range g.Listening {
		h.Listeners = append(h.Listeners, vipKey(x.Object))
		fds = append(fds, x.FD)
	}
	for key, fd := range n.hostDescriptors() {
		h.Listeners = append(h.Listeners, key)
		fds = append(fds, fd)
	}
	for _, d := range []*door{&n.scrape, &n.api} {
		if d.fd >= 0 {
			h.Listeners = append(h.Listeners, d.key)
			fds = append(fds, d.fd)
		}
	}
	h.Host = n.hostHeritage()
	h.Names, _ = json.Marshal(n.names.answers()) // addresses and durations cannot fail
	return h, fds
}

// giveAll moves the flows of all loops until none is left but refused ones.
func (n *Node) giveAll(c move.Carrier, r *Report) error {
	sent := map[config.Ref]bool{}
	refused := map[uint64]bool{}
	// A connection that another loop had accepted may come in meanwhile, so
	// loops are gone through until nothing new is found.
	for {
		found := 0
		for _, l := range n.shared.Loops {
			var slots []uint32
			l.Ask(func(l *loop.Loop) {
				slots = l.Slots(0, func(f *flow.Flow) bool { return !refused[f.ID()] })
			})
			found += len(slots)
			for len(slots) > 0 {
				dealt, err := n.giveBatch(c, l, slots[:min(processChunk, len(slots))], r, sent, refused)
				if err != nil {
					return err
				}
				slots = slots[dealt:]
			}
		}
		if found == 0 {
			return nil
		}
	}
}

// giveBatch moves the flows in some slots of one loop to the successor, and
// tells how many of the slots it has dealt with. A slot may hold another flow
// than when it was listed; that one is as welcome.
func (n *Node) giveBatch(c move.Carrier, l *loop.Loop, slots []uint32, r *Report, sent map[config.Ref]bool, refused map[uint64]bool) (dealt int, err error) {
	var parked []loop.Parked
	l.Ask(func(l *loop.Loop) { parked, dealt = l.ParkMany(slots) })
	if len(parked) == 0 {
		return dealt, nil
	}
	return dealt, n.give(c, l, parked, r, sent, refused)
}

// give moves flows that were parked to the successor, or back to their loop.
func (n *Node) give(c move.Carrier, l *loop.Loop, parked []loop.Parked, r *Report, sent map[config.Ref]bool, refused map[uint64]bool) error {
	var objects []*frozen.Object
	for _, p := range parked {
		objects = append(objects, n.registry.portable(p.Frozen, sent)...)
	}
	parcel, err := loop.Pack(parked, objects...)
	if err != nil {
		return errors.Join(err, n.takeBack(l, parcel, parked))
	}
	r.parked(parked)
	err = c.Send(move.Message{Kind: move.Offer, Body: parcel.Octets, FDs: parcel.FDs})
	if err == nil {
		_, err = move.Expect(c, move.Taken)
	}
	if err != nil { // before the commit all of it is still ours
		var no *frozen.Refused
		if errors.As(err, &no) {
			for _, p := range parked {
				r.unpark(p)
				r.refuse(1, no.What+": "+no.Why)
				refused[p.Frozen.Id] = true
			}
			return n.takeBack(l, parcel, parked)
		}
		return errors.Join(err, n.takeBack(l, parcel, parked))
	}
	since := make([]int64, len(parked))
	for i, p := range parked {
		since[i] = int64(p.Since)
	}
	if err = move.SendJSON(c, move.Commit, since); err != nil {
		// It was not delivered: a seqpacket message is taken whole or not.
		return errors.Join(err, n.takeBack(l, parcel, parked))
	}
	m, err := move.Expect(c, move.Adopted)
	var a move.Adoption
	if err == nil {
		err = m.Into(&a)
	}
	if err != nil {
		// The successor may have served them before it died: what it read and
		// wrote nobody knows, so they cannot go on.
		r.paused(nil, len(parked))
		for _, fd := range parcel.FDs {
			fd.CloseReset()
		}
		n.forget(parked, true)
		return err
	}
	r.paused(a.Pauses, a.Lost)
	r.given += len(parked) - a.Lost
	for _, fd := range parcel.FDs {
		fd.Close() // the successor has its own; nothing is sent
	}
	n.forget(parked, false)
	return nil
}

// takeBack gives flows that were not handed over to their loop again.
func (n *Node) takeBack(l *loop.Loop, p *loop.Parcel, parked []loop.Parked) error {
	if p.Octets == nil {
		return fmt.Errorf("node: %d flows could not be encoded and are lost", len(parked))
	}
	done := make(chan int, 1)
	p.Adopted = func(_ []int64, lost int) { done <- lost }
	l.Deliver(p)
	if lost := <-done; lost > 0 {
		return fmt.Errorf("node: %d flows could not be taken back", lost)
	}
	return nil
}

// forget ends the accounts of flows that have left. What they held the other
// process holds now, unless they are lost.
func (n *Node) forget(parked []loop.Parked, lost bool) {
	for _, p := range parked {
		if p.Account != nil {
			if lost {
				p.Account.Release()
			} else {
				p.Account.Forget(1)
			}
		}
		p.LeaveSource(n.shared.Ledger)
		n.shared.Ledger.Listener(p.Frozen.Listener.Name).Leave()
		n.shared.Ledger.Node.Leave()
	}
}

// Succession is the taker's side of an upgrade.
type Succession struct {
	carrier  *move.Local
	heritage move.Heritage
	Node     *Node
	log      *slog.Logger
}

// Succeed greets the predecessor over fd, takes the heritage and begins a node
// that does not accept yet. prepare does for that node whatever else may fail:
// the predecessor hears that we are ready after it, and goes on if we are not.
func Succeed(fd int, o Options, prepare func(*Node) error) (*Succession, error) {
	s := &Succession{carrier: move.NewLocal(sock.ChannelFrom(sock.Own(fd))), log: o.Log}
	if err := s.carrier.SetTimeout(startTime); err != nil {
		return nil, err
	}
	err := move.SendJSON(s.carrier, move.Hello, move.Greeting{Protocol: move.Protocol, Format: frozen.Format, Release: Release, PID: pid, Late: true})
	if err != nil {
		return nil, err
	}
	m, err := move.Expect(s.carrier, move.Inherit)
	if err != nil {
		return nil, err
	}
	if err = m.Into(&s.heritage); err != nil {
		return nil, err
	}
	h := &s.heritage
	fds := m.FDs
	for len(fds) < len(h.Listeners) {
		more, err := move.Expect(s.carrier, move.Inherit)
		if err != nil {
			return nil, err
		}
		if len(more.FDs) == 0 {
			break
		}
		fds = append(fds, more.FDs...)
	}
	if len(fds) != len(h.Listeners) {
		return nil, fmt.Errorf("node: %d descriptors for %d listeners", len(fds), len(h.Listeners))
	}
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
	if s.Node, err = Start(o); err != nil {
		_ = move.SendJSON(s.carrier, move.Refuse, move.Refusal{What: "configuration", Why: err.Error()})
		return nil, err
	}
	if err := prepare(s.Node); err != nil {
		_ = move.SendJSON(s.carrier, move.Refuse, move.Refusal{What: "start", Why: err.Error()})
		s.Node.Stop()
		return nil, err
	}
	s.Node.shared.Ledger.PlacesAfter(h.LastPlace + successorGap)
	// Until all flows are here waiting ones come in any order, and one that came
	// early must not be served before one that is still to come.
	s.Node.heir.Store(true)
	s.Node.shared.Ledger.Pause()
	for name, held := range h.Held {
		s.Node.account(name).AddForeign(held)
	}
	if err := s.carrier.Send(move.Message{Kind: move.Ready}); err != nil {
		s.Node.Stop()
		return nil, err
	}
	return s, nil
}

// Run takes flows until the predecessor is done, or has died after it let us
// accept: then we own what was committed to us and go on alone. settle is
// called last, to take over what only one process can hold: the place of the
// admin socket. Flows do not depend on it, so its failure is only logged.
func (s *Succession) Run(settle func() error) error {
	defer func() { _ = s.carrier.Close() }()
	n := s.Node
	var t taking
	defer t.drop(sock.FD.Close)
	for {
		m, err := s.carrier.Receive()
		if err == nil && m.Kind == move.Done {
			return s.finish(m, settle)
		}
		if err == nil {
			err = s.step(&t, m)
		}
		switch {
		case err == nil:
		case t.accepting && gone(err):
			// What it had not committed has ended with it: not in peace.
			t.drop(sock.FD.CloseReset)
			n.totals.inherit(&Totals{Accepted: uint64(t.flows)}) // so that the counts balance
			n.alone()
			n.removeOtherRules()
			s.settle(settle)
			n.log.Warn("the predecessor died while it handed over; this process goes on with what it had got", "flows", n.flows(), "error", err)
			return nil
		default:
			return fmt.Errorf("node: succession: %w", err)
		}
	}
}

// gone tells that the other end of a channel is closed.
func gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, sock.BrokenPipe) || errors.Is(err, sock.Reset)
}

// taking is what a successor knows between two messages.
type taking struct {
	accepting bool // new connections are ours
	offered   *frozen.Batch
	fds       []sock.FD // of what is offered
	flows     int       // that were committed to us
}

// drop gives up what was offered and not committed.
func (t *taking) drop(end func(sock.FD)) {
	for _, fd := range t.fds {
		end(fd)
	}
	t.offered, t.fds = nil, nil
}

// step does what one message before Done asks for.
func (s *Succession) step(t *taking, m move.Message) (err error) {
	n := s.Node
	switch m.Kind {
	case move.Inherit:
		return n.learn(m)
	case move.Accept:
		places := map[string]int64{}
		if len(m.Body) > 0 { // a release that does not tell
			if err := m.Into(&places); err != nil {
				return err
			}
		}
		n.shared.Ledger.PlacesElsewhere(places)
		t.accepting = true
		n.watch.begin()
		for _, l := range n.shared.Loops {
			l.Do(func(l *loop.Loop) { l.SetAccepting(true) })
		}
		// From now on only its end would tell us to go on alone.
		return s.carrier.SetTimeout(0)
	case move.Offer:
		t.drop(sock.FD.Close)
		t.fds = m.FDs
		if t.offered, err = n.examine(m.Body, len(m.FDs)); err != nil {
			t.drop(sock.FD.Close)
			return s.refuse(err)
		}
		return s.carrier.Send(move.Message{Kind: move.Taken})
	case move.Commit:
		var since []int64
		if err := m.Into(&since); err != nil || t.offered == nil || len(since) != len(t.offered.Flows) {
			return fmt.Errorf("node: a commit without an offer that it fits (%v)", err)
		}
		a := n.take(t.offered, t.fds, since)
		t.flows += len(since)
		t.offered, t.fds = nil, nil
		return move.SendJSON(s.carrier, move.Adopted, a)
	case move.Abort:
		t.drop(sock.FD.Close)
		return nil
	}
	return fmt.Errorf("node: %v came out of turn", m.Kind)
}

// finish makes this process the one that serves. Nothing that fails from here
// on ends it: nobody else has the flows.
func (s *Succession) finish(m move.Message, settle func() error) error {
	n := s.Node
	var e Estate
	if err := m.Into(&e); err != nil {
		n.log.Warn("the predecessor's counts are not readable and begin anew", "error", err)
	} else {
		n.inherit(&e)
	}
	// Flows that it keeps because we refused them count no longer.
	n.alone()
	n.keepJournal()
	s.settle(settle)
	if err := s.carrier.Send(move.Message{Kind: move.Settled}); err != nil {
		n.log.Warn("the predecessor has not heard that all is taken over", "error", err)
	}
	n.log.Info("took over", "flows", n.flows(), "generation", s.heritage.Generation)
	return nil
}

func (s *Succession) settle(settle func() error) {
	if err := settle(); err != nil {
		s.Node.log.Warn("this process serves, but cannot be reached where its predecessor was", "error", err)
	}
}

func (s *Succession) refuse(why error) error {
	r := move.Refusal{What: "flow", Why: why.Error()}
	var no *frozen.Refused
	if errors.As(why, &no) {
		r = move.Refusal{What: no.What, Why: no.Why, Retry: no.Retry}
	}
	return move.SendJSON(s.carrier, move.Refuse, r)
}

// examine decodes an offer and sees that each flow of it could be thawed here.
func (n *Node) examine(octets []byte, fds int) (*frozen.Batch, error) {
	batch, err := frozen.Decode(octets)
	if err != nil {
		return nil, err
	}
	if err := n.registry.receive(time.Now(), batch.Objects); err != nil {
		return nil, err
	}
	for _, z := range batch.Flows {
		if _, err := flow.Thaw(0, z, n.registry); err != nil {
			return nil, err
		}
		for _, g := range append([]*frozen.Leg{z.Client}, z.Legs...) {
			if int(g.Fd) > fds {
				return nil, &frozen.Refused{What: "leg", Why: fmt.Sprintf("descriptor %d of %d", g.Fd, fds)}
			}
		}
	}
	return batch, nil
}

// take makes flows ours: the ledger learns what they hold, and a loop adopts
// them. It returns when they are served.
func (n *Node) take(batch *frozen.Batch, fds []sock.FD, since []int64) move.Adoption {
	for _, z := range batch.Flows {
		if z.Endpoint != nil {
			n.account(z.Endpoint.Name).Import(1)
		}
		listener, node := n.shared.Ledger.Listener(z.Listener.Name), &n.shared.Ledger.Node
		if since != nil { // from a predecessor, which had counted them
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
	p := &loop.Parcel{FDs: fds}
	for _, t := range since {
		p.Since = append(p.Since, flow.Instant(t))
	}
	octets, err := batch.Encode()
	if err != nil { // it was decoded a moment ago
		panic(err)
	}
	p.Octets = octets
	done := make(chan move.Adoption, 1)
	p.Adopted = func(pauses []int64, lost int) { done <- move.Adoption{Pauses: pauses, Lost: lost} }
	to.Deliver(p)
	return <-done
}

// flows counts what the loops hold.
func (n *Node) flows() int {
	total := 0
	for _, l := range n.shared.Loops {
		total += l.Load()
	}
	return total
}

// WaitEmpty returns when no flow is left, or after d.
func (n *Node) WaitEmpty(d time.Duration) bool {
	for end := time.Now().Add(d); n.flows() > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}
