package loop

import (
	"net/netip"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// Life is how a leg under l finds out that its peer has vanished.
func Life(l *config.Listener) sock.Life {
	return sock.Life{Idle: l.KeepaliveIdle, Interval: l.KeepaliveInterval, Count: l.KeepaliveCount, Silence: l.UserTimeout}
}

// movableBuffer bounds the kernel's queues of legs that may move between hosts:
// all that is queued goes over while the flow stands still. Left to itself the
// kernel tunes a queue up to tens of MiB, which take seconds.
const movableBuffer = 128 << 10

// Buffer is the bound of a leg's queues in the kernel under l, 0 for none.
func Buffer(l *config.Listener) int {
	if l.Movable {
		return movableBuffer
	}
	return 0
}

// MSS is the clamp of segment size under l, 0 for none.
func MSS(l *config.Listener) int {
	if l.Movable {
		return movableMSS
	}
	return 0
}

// SetAccepting turns accepting on or off.
func (l *Loop) SetAccepting(on bool) {
	l.open = on
	if l.paused = false; on {
		l.watchListeners()
		return
	}
	l.unwatchListeners()
}

// Relook finds what waits at the listeners although nobody will tell: who shares them
// and was woken for it alone (EPOLLEXCLUSIVE) may have ended, or have stopped to
// watch, before it took it. Watching anew looks (fs/eventpoll.c, ep_insert).
func (l *Loop) Relook() {
	if l.open {
		l.unwatchListeners()
		l.watchListeners()
	}
}

func (l *Loop) watchListeners() {
	for _, x := range l.listening {
		if x != nil && !l.watchListener(x) {
			return
		}
	}
}

// watchListener watches a listener that is neither watched nor rests; false if
// accepting pauses, for the kernel would not.
func (l *Loop) watchListener(x *Listening) bool {
	if _, rests := l.full[x.FD]; rests || l.watched[x.FD] {
		return true
	}
	if e := l.k.WatchShared(x.FD, listenerBit|uint64(l.numbers[x.FD])); e != 0 {
		l.shared.Log.Error("the kernel would not watch a listener; accepting pauses", "listener", x.Object.Ref.Name, "error", e)
		l.pauseAccepting() // which tries again
		return false
	}
	l.watched[x.FD] = true
	return true
}

func (l *Loop) unwatchListeners() {
	for _, x := range l.listening {
		if x != nil {
			l.unwatchListener(x)
		}
	}
}

func (l *Loop) unwatchListener(x *Listening) {
	if l.watched[x.FD] {
		_ = l.k.Unwatch(x.FD)
		delete(l.watched, x.FD)
	}
}

// pauseAccepting leaves connections in the kernel's queue until there is room
// for them again: in order, for that queue is one.
func (l *Loop) pauseAccepting() {
	if !l.paused {
		l.Count.AcceptPause++
		l.unwatchListeners()
	}
	l.retryBy(l.now.Add(tick))
	l.paused = true
}

// pauseListener does so for one listener that has as many connections as it may
// have, or has accepted them as fast as it may; the others go on.
func (l *Loop) pauseListener(x *Listening, wait time.Duration, until flow.Instant) {
	l.Count.AcceptPause++
	l.unwatchListener(x)
	l.retryBy(l.now.Add(wait))
	l.full[x.FD] = until
}

// retryBy makes what is paused be looked at then, if it would be later.
func (l *Loop) retryBy(at flow.Instant) {
	if !l.resting() || at < l.retryAt {
		l.retryAt = at
	}
}

// resting tells whether some listener is not watched though the loop accepts.
func (l *Loop) resting() bool { return l.paused || len(l.full) > 0 }

// ResumeAccepting ends pauses but those of listeners that have a time to wait
// for; the ledger calls for it when there is room.
func (l *Loop) ResumeAccepting() {
	if !l.resting() {
		return
	}
	l.paused = false
	next := flow.Instant(0)
	for fd, until := range l.full {
		switch {
		case until <= l.now:
			delete(l.full, fd)
		case next == 0 || until < next:
			next = until
		}
	}
	l.retryAt = next
	if l.open {
		l.watchListeners()
	}
}

// Why a connection that was accepted is reset at once.
const (
	Denied         = iota // its address is in Deny, or not in Allow
	SourceRefused         // its source has too many connections, or opens them too fast
	refusalReasons        // not a reason
)

// RefusalReasons are the words for the reasons, by number.
var RefusalReasons = [refusalReasons]string{"denied", "source"}

// arrival is a connection that was accepted, on its way to its loop.
type arrival struct {
	fd      sock.FD
	client  flow.Address
	on      *Listening
	sourced bool // it counts under its source
}

// limitsSources tells whether x bounds what one source may do. Then no PROXY
// header names another one: the file does not allow both.
func limitsSources(x *config.Listener) bool {
	return x.SourceRate != nil || x.SourceConnectionsMax > 0
}

// admits judges a connection by its address, and counts it under its source if
// that is bounded.
func (l *Loop) admits(x *config.Listener, from netip.Addr) (sourced, ok bool) {
	if config.Holds(x.Deny, from) || len(x.Allow) > 0 && !config.Holds(x.Allow, from) {
		l.refuse(x, Denied)
		return false, false
	}
	if !limitsSources(x) {
		return false, true
	}
	if !l.shared.Ledger.EnterSource(int64(l.now), x, from) {
		l.refuse(x, SourceRefused)
		return false, false
	}
	return true, true
}

// accept takes what waits at a listener, at most acceptsMax.
func (l *Loop) accept(data uint64) {
	n := int(data &^ listenerBit)
	if n >= len(l.listening) || !l.open || l.paused {
		return
	}
	x := l.listening[n]
	if x == nil {
		return // it has left the configuration since
	}
	if l.shared.Shedding.Load() {
		l.pauseAccepting()
		return
	}
	// The call that finds nothing more is spared where connections come one by
	// one: only where they come in bursts more than one is asked for at once.
	most := l.eager
	l.eager = min(2*most, acceptsMax)
	for range most {
		if !l.enterGates(x) {
			return
		}
		fd, from, e := l.k.Accept(x.FD)
		if e == 0 {
			l.Count.Accepted++
			l.door(x.Object).Accepted++
			sourced, ok := l.admits(x.Object, from.Addr())
			if !ok {
				l.closeReset(fd)
				l.leaveGates(x)
				l.unrate(x) // who may not come uses up nothing of what others may
				continue
			}
			a := arrival{fd, flow.AddressOf(from), x, sourced}
			if to := l.lighter(); to != l {
				to.post(letter{kind: acceptedLetter, accepted: a})
			} else {
				l.begin(&a)
			}
			continue
		}
		l.unrate(x)
		l.leaveGates(x)
		if e == sock.ManyFiles && l.shrink() {
			continue
		}
		switch e {
		case sock.Again:
			l.eager = 1
		case sock.Aborted, sock.Interrupted:
			continue // it was reset while it waited; the next one may be well
		case sock.ManyFiles, sock.ManyFilesIn, sock.NoBuffers, sock.NoMemory:
			l.shared.Log.Warn("no descriptors or memory for a connection; accepting pauses", "error", e)
			l.pauseAccepting()
		}
		return
	}
}

// enterGates takes what a connection at x needs before it is accepted: a place
// at the node, one at the listener, and a moment that the rate allows. What must
// wait does so in the backlog, where all loops find it, in order.
func (l *Loop) enterGates(x *Listening) bool {
	node := &l.shared.Ledger.Node
	if !node.Enter() {
		l.pauseAccepting()
		return false
	}
	if !x.Gate.Enter() {
		node.Leave()
		l.pauseListener(x, tick, 0)
		return false
	}
	if x.Object.ConnectionRate != nil {
		if wait := l.shared.Ledger.AcceptWait(int64(l.now), x.Object); wait > 0 {
			l.leaveGates(x)
			l.pauseListener(x, wait, l.now.Add(wait))
			return false
		}
	}
	return true
}

// unrate takes back what the rate has counted in enterGates.
func (l *Loop) unrate(x *Listening) {
	if x.Object.ConnectionRate != nil {
		l.shared.Ledger.AcceptNone(x.Object)
	}
}

func (l *Loop) leaveGates(x *Listening) {
	x.Gate.Leave()
	l.shared.Ledger.Node.Leave()
}

// lighter chooses the loop for a new connection: this one, unless the less
// loaded of two others has clearly less to do.
func (l *Loop) lighter() *Loop {
	all := l.shared.Loops
	if len(all) < 2 {
		return l
	}
	a, b := all[l.rng.IntN(len(all))], all[l.rng.IntN(len(all))]
	if b.load.Load() < a.load.Load() {
		a = b
	}
	mine := l.load.Load()
	if a.load.Load()+2+mine/16 < mine {
		return a
	}
	return l
}

// begin makes the flow of a connection that was accepted.
func (l *Loop) begin(a *arrival) {
	x := a.on
	f := flow.New(l.now, l.shared.NextID.Add(1), x.Object, x.Backend, a.client, &l.lender)
	i, s := l.enter(f, a.fd, sock.NoFD)
	s.sourced = a.sourced
	l.guard(i)
}
