package loop

import (
	"maps"
	"slices"

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

// SetGeneration makes g rule new flows. Listeners that are new are watched if
// the loop is accepting; those that are gone are no longer. Flows are not
// touched: each goes on under the objects that it names.
func (l *Loop) SetGeneration(g *Generation) {
	old := l.gen
	l.gen = g
	l.desk.Config = g.Config
	if old != nil {
		for _, name := range old.names() {
			was := old.Listening[name]
			if now := g.Listening[name]; now == nil || now.FD != was.FD {
				l.unwatchListener(was)
			}
		}
	}
	l.numberListeners()
	if l.open && !l.paused {
		l.watchListeners()
	}
}

// names are those of the listeners, in an order that is always the same.
func (g *Generation) names() []string { return slices.Sorted(maps.Keys(g.Listening)) }

// listeners by number, for their events.
func (l *Loop) numberListeners() {
	for _, name := range l.gen.names() {
		x := l.gen.Listening[name]
		n, known := l.numbers[name]
		if !known {
			n = len(l.listening)
			l.numbers[name] = n
			l.listening = append(l.listening, x)
		}
		l.listening[n] = x
	}
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

func (l *Loop) watchListeners() {
	for _, name := range l.gen.names() {
		x := l.gen.Listening[name]
		if l.watched[x.FD] || l.full[x.FD] {
			continue
		}
		if e := l.k.WatchShared(x.FD, listenerBit|uint64(l.numbers[name])); e != 0 {
			l.shared.Log.Error("the kernel would not watch a listener; accepting pauses", "listener", name, "error", e)
			l.pauseAccepting() // which tries again
			return
		}
		l.watched[x.FD] = true
	}
}

func (l *Loop) unwatchListeners() {
	for _, name := range l.gen.names() {
		l.unwatchListener(l.gen.Listening[name])
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
		l.paused = true
		l.Count.AcceptPause++
		l.unwatchListeners()
	}
	l.retryAt = l.now.Add(tick)
}

// pauseListener does so for one listener that has as many connections as it may
// have; the others go on.
func (l *Loop) pauseListener(x *Listening) {
	l.Count.AcceptPause++
	l.unwatchListener(x)
	l.full[x.FD] = true
	l.retryAt = l.now.Add(tick)
}

// ResumeAccepting ends a pause; the ledger calls for it when there is room.
func (l *Loop) ResumeAccepting() {
	if !l.paused && len(l.full) == 0 {
		return
	}
	l.paused = false
	clear(l.full)
	if l.open {
		l.watchListeners()
	}
}

// accept takes what waits at a listener, at most acceptsMax.
func (l *Loop) accept(data uint64) {
	n := int(data &^ listenerBit)
	if n >= len(l.listening) || !l.open || l.paused {
		return
	}
	x := l.listening[n]
	if l.gen.Listening[x.Object.Ref.Name] != x {
		return // it has left the configuration since
	}
	node := &l.shared.Ledger.Node
	// The call that finds nothing more is spared where connections come one by
	// one: only where they come in bursts more than one is asked for at once.
	most := l.eager
	l.eager = min(2*most, acceptsMax)
	for range most {
		if !node.Enter() {
			l.pauseAccepting()
			return
		}
		if !x.Gate.Enter() {
			node.Leave()
			l.pauseListener(x)
			return
		}
		fd, from, e := l.k.Accept(x.FD)
		if e == 0 {
			l.Count.Accepted++
			client := flow.AddressOf(from)
			if to := l.lighter(); to != l {
				to.post(letter{kind: acceptedLetter, accepted: fd, client: client, on: x})
			} else {
				l.begin(fd, client, x)
			}
			continue
		}
		if e == sock.ManyFiles && l.shrink() {
			x.Gate.Leave()
			node.Leave()
			continue
		}
		x.Gate.Leave()
		node.Leave()
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

// begin makes the flow of a connection that was accepted under x.
func (l *Loop) begin(fd sock.FD, client flow.Address, x *Listening) {
	f := flow.New(l.now, l.shared.NextID.Add(1), x.Object, x.Backend, client, &l.lender)
	i, _ := l.enter(f, fd, sock.NoFD)
	l.guard(i)
}
