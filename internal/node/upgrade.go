package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// InheritEnv names the descriptor of the channel to the predecessor.
const InheritEnv = "HOLDFAST_INHERIT_FD"

// answerTime bounds each answer while flows move to another host.
const answerTime = 5 * time.Second

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
func (n *Node) upgrade(ctx context.Context, q UpgradeRequest, r *Report, tell func(Progress)) error {
	if pid == 1 {
		return errors.New("node: as process 1 of a container it cannot be replaced: everything would end with it; start it under an init")
	}
	binary := q.Binary
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ends, cancel)()
	still, err := n.stillVIPs(ctx, tell)
	if err != nil {
		return err
	}
	defer still()
	n.change.Lock()
	defer n.change.Unlock()
	if err := n.inCharge(); err != nil {
		return err
	}
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
	kept := false // by what tells of the residue
	defer func() {
		if !kept {
			_ = carrier.Close()
		}
	}()
	file := n.file
	if q.File != "" {
		file = q.File // from now on it is that one
	}
	args := []string{"run", "-c", file}
	if n.level != nil {
		args = append(args, "--log", n.level.Level().String())
	}
	cmd := exec.Command(binary, args...)
	child := &child{cmd: cmd}
	cmd.Env = append(os.Environ(), InheritEnv+"=3")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	end := os.NewFile(uintptr(far.FD().Disown()), "successor") // closed below, or by exec
	cmd.ExtraFiles = []*os.File{end}
	err = cmd.Start()
	_ = end.Close()
	if err != nil {
		return fmt.Errorf("node: start %s: %w", binary, err)
	}
	gone := make(chan struct{})
	go func() { // ends with the child; if we go first, init reaps it
		_ = cmd.Wait() // how it ended is in its own log
		close(gone)
	}()
	g := newGiver(ctx, n, q, r, tell)
	g.pid, g.child = cmd.Process.Pid, child
	tell(Progress{Phase: "starting", Text: fmt.Sprintf("new process %d", g.pid), PID: g.pid})
	// Before the first flow is another's nothing is lost by ending a process that does
	// not even come up.
	unwatch := context.AfterFunc(ctx, func() {
		if g.begins.Load() {
			child.kill()
		}
	})
	defer unwatch()
	given, err := n.handOver(carrier, g)
	if err != nil && !given.Committed && n.ends.Err() != nil {
		err = errors.New("this process was told to end")
	} else if err != nil && !given.Committed && ctx.Err() != nil {
		err = &plainError{"who asked for it does not want it any more", ctx.Err()}
	}
	if err != nil && !given.Done {
		g.resume() // before the other's end: that may take a moment
		child.kill()
		<-gone
		child.awaitReal() // the channel is closed after its end, not before
	}
	if err != nil {
		// Once all was handed over the other process is never killed: it has
		// every flow. It says so late, or it has died of itself.
		select {
		case <-gone:
			_ = os.Remove(PreparedSocket(n.Config().Node.AdminSocket, g.pid)) // if it got that far
			return n.abort(g, err)
		case <-time.After(settleTime):
		}
		n.log.Warn("the new process has everything and has not said so", "successor", g.pid, "error", err)
	}
	n.mu.Lock()
	n.successor = g.pid
	n.mu.Unlock()
	if n.host.listener != nil {
		n.letPeersGo()
	}
	r.PID = g.pid
	n.log.Info("upgrade done", "flows", r.Flows, "refused", r.Refused, "lost", r.Lost, "residue", r.Residue, "successor", r.PID, "took", time.Since(began))
	r.done(began)
	n.drainResidue(g, carrier, given.Residue)
	kept = true
	return nil
}

// PreparedSocket is where process pid binds its admin socket before it may have
// its place at path.
func PreparedSocket(path string, pid int) string { return fmt.Sprintf("%s.%d", path, pid) }

// abort goes on after a new process that has ended before it could take over.
func (n *Node) abort(g *giver, err error) error {
	r := g.r
	n.mu.Lock()
	n.leaving = false
	n.mu.Unlock()
	g.Unlend()
	n.letGoOfVIPs(false)
	n.shared.Fixed.Store(false)
	n.watch.begin()
	n.shared.Ledger.Alone()
	if g.paused {
		g.paused = false
		n.shared.Ledger.Resume()
	}
	for _, l := range n.shared.Loops {
		l.Do(func(l *loop.Loop) {
			l.SetAccepting(true)
			l.Relook() // what the other process was woken for
		})
	}
	n.told.Store(false)
	r.paused(nil, r.given) // what it had taken died with it
	if r.Lost > 0 {
		r.LostFlows = g.given
		n.log.Error("flows are lost with the new process", "flows", r.Lost, "who", g.given)
	}
	n.totals.aborted(r.Lost)
	n.log.Warn("upgrade aborted; this process goes on", "error", err, "lost", r.Lost)
	if r.Lost > 0 {
		return fmt.Errorf("node: aborted: lost %s that the new process had taken; this process goes on: %w", count(r.Lost, "flow"), plainCause(err))
	}
	return fmt.Errorf("node: aborted: nothing moved%s; this process goes on: %w", r.longest(), plainCause(err))
}

// plainCause says in words for people why an upgrade came to nothing.
func plainCause(err error) error {
	var no *frozen.Refused
	switch {
	case errors.As(err, &no) && err.Error() == no.Error():
		return &refusalCause{no}
	case move.Gone(err):
		return &plainError{"the new process ended", err}
	case errors.Is(err, move.ErrStalled):
		return &plainError{"the new process does not answer any more", err}
	}
	return err
}

// StartTime bounds how long a new process may take until it could serve.
const StartTime = move.StartTime

// errSilent is that what was started runs and says nothing.
var errSilent = fmt.Errorf("the new process has not answered for %v, and was ended: it waited for something (its own log may say for what), or is no Holdfast", StartTime)

// refusalCause is what the new process says against it, without our name for that.
type refusalCause struct{ *frozen.Refused }

func (c *refusalCause) Error() string { return c.What + ": " + c.Why }

func (c *refusalCause) Unwrap() error { return c.Refused }

// settleTime is how long a successor that fell silent after it was given all
// may take to die of what silenced it.
const settleTime = 2 * time.Second

// handOver gives all to the taker at the other end of c.
func (n *Node) handOver(c move.Carrier, g *giver) (move.Given, error) {
	given, err := move.Give(c, g, move.Options{Features: features(), Canary: g.canary()})
	g.enter("")
	g.r.Copied, g.r.IdleLegs = given.Copied, given.Idle
	if given.Done {
		g.n.totals.tally(g.r)
	}
	if errors.Is(err, move.ErrNoWord) { // end of file, which means nothing to whoever asked for it
		err = errNoHoldfast
	}
	if errors.Is(err, move.ErrNoAnswer) {
		err = errSilent
	}
	return given, err
}

// errNoHoldfast is that the new process has ended before it said a word.
var errNoHoldfast = errors.New("the new process ended at once, without a word to us: it could not begin (its own log says why), or is no Holdfast")

// moving notes that flows begin to go to a successor.
func (n *Node) moving() {
	n.host.intake.Lock() // a batch from another host is taken whole, or refused
	n.mu.Lock()
	n.leaving = true
	n.mu.Unlock()
	n.host.intake.Unlock()
}

func (n *Node) heritage() (move.Heritage, []sock.FD) {
	n.mu.Lock()
	g := n.gen
	n.mu.Unlock()
	d := n.state.current()
	h := move.Heritage{Release: Release, PID: pid, Generation: d.Generation, Source: d.doc.Source(), File: n.file, State: n.portableState(), Held: n.shared.Ledger.Held(), LastID: n.shared.NextID.Load(), LastPlace: n.shared.Ledger.LastPlace()}
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

// takeBack gives flows that were not handed over to their loop again.
func (n *Node) takeBack(l *loop.Loop, p *loop.Parcel, parked []loop.Parked) error {
	if p.Octets == nil {
		return fmt.Errorf("node: %s could not be encoded, and lost", count(len(parked), "flow"))
	}
	done := make(chan int, 1)
	p.Adopted = func(_ []int64, lost int) { done <- lost }
	l.Deliver(p)
	if lost := <-done; lost > 0 {
		return fmt.Errorf("node: %s could not be taken back", count(lost, "flow"))
	}
	return nil
}

// forget ends the accounts of flows that have left. What they held the other
// process holds now, unless they are lost.
func (n *Node) forget(parked []loop.Parked, lost bool) {
	l := n.shared.Ledger
	for _, p := range parked {
		at := l.Listener(p.Frozen.Listener.Name)
		if lost {
			if p.Account != nil {
				p.Account.Release()
			}
			p.LeaveSource(l)
			at.Leave()
			l.Node.Leave()
			continue
		}
		if p.Account != nil {
			p.Account.Forget(1)
		}
		if p.Source != nil {
			l.ForgetSource(p.Source.Listener, p.Source.Address)
		}
		at.Forget()
		l.Node.Forget()
	}
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
