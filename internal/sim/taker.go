package sim

import (
	"encoding/json"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// taker is a process that begins, as package move needs it.
type taker struct {
	p    *Proc
	t    *task
	took int
	held map[string]int64 // by the giver, when it began
}

var _ move.Taker = (*taker)(nil)

// succeed is the life of a successor until it is the one process of its host.
func (p *Proc) succeed(far *carrier) {
	x := &taker{p: p}
	p.task("succeed", func(t *task) {
		far.t, x.t = t, t
		hello := move.Greeting{Protocol: move.Protocol, Format: frozen.Format, Release: p.name, Late: true, Features: move.Features()}
		if p.w.shape.elder {
			hello.Features = nil
		}
		taking, err := move.Greet(far, x, hello)
		if err == nil {
			err = taking.Run()
		}
		if err != nil {
			p.w.note("%s: succession ended: %v", p.name, err)
			p.crash() // it closes the channel, too
			return
		}
		p.task("residue", func(t *task) {
			far.t, x.t = t, t
			taking.Watch()
			_ = far.Close()
		}).aside = true
	})
}

// Begin makes the process that the giver's configuration describes.
func (x *taker) Begin(h *move.Heritage, fds []sock.FD) (move.Readiness, error) {
	inherited := map[string]sock.FD{}
	for i, fd := range fds {
		inherited[h.Listeners[i]] = fd
	}
	p := x.p
	p.arriving, x.held = true, h.Held
	if err := p.begin(string(h.Source), inherited, h.LastID+successorGap, h.Generation); err != nil {
		return move.Readiness{}, err
	}
	p.shared.Ledger.PlacesAfter(h.LastPlace + successorGap)
	p.shared.Ledger.Await()
	return move.Readiness{Room: x.Room(), FileLimit: p.fds.max}, nil
}

// Learn hears nothing: standings are the world's.
func (x *taker) Learn(move.Knowledge) error { return nil }

// Room is what is left of the table of descriptors.
func (x *taker) Room() int { return x.p.fds.max - x.p.fds.count() }

// Cookie is the kernel's name of a socket.
func (x *taker) Cookie(fd sock.FD) (uint64, error) { return x.p.cookie(fd) }

// Close ends a duplicate.
func (x *taker) Close(fd sock.FD) { x.p.fds.close(fd) }

// Reset ends a socket that has no owner any more.
func (x *taker) Reset(fd sock.FD) {
	if s := x.p.fds.sock(fd, "reset"); s != nil {
		s.excuse("its process died")
	}
	x.p.fds.closeReset(fd)
}

// Examine decodes a lot. A picky process holds not all that another one does.
func (x *taker) Examine(octets []byte, fds []sock.FD) (any, error) {
	batch, err := frozen.Decode(octets)
	if err != nil {
		return nil, err
	}
	if err := x.p.objects.receive(batch.Objects); err != nil {
		return nil, err
	}
	var no move.Unheld
	if w := x.p.w; w.shape.picky > 0 {
		for _, z := range batch.Flows {
			if mix(w.seed, z.Id)%uint64(w.shape.picky) == 0 {
				no = append(no, move.Refusal{Flow: z.Id, What: "flow", Why: "it is of a release that this one does not know"})
			}
		}
	}
	thawed, wrong := loop.Thaw(x.p.shared.Loops[0].Now(), batch, len(fds), x.p.objects)
	for i, err := range wrong {
		no = append(no, move.Refusal{Flow: batch.Flows[i].Id, What: "flow", Why: err.Error()})
	}
	if len(no) > 0 {
		return nil, no
	}
	return thawed, nil
}

// Adopt serves what was examined.
func (x *taker) Adopt(lot any, fds []sock.FD, since []int64) move.Adoption {
	x.took += len(since)
	parcel := &loop.Parcel{Thawed: lot.(*loop.Thawed), FDs: fds, Since: make([]flow.Instant, len(since))}
	x.p.adopt(x.t, parcel.Thawed.Batch, parcel, true)
	return move.Adoption{Pauses: make([]int64, len(since))}
}

// AdoptIdle puts idle backend legs into the pools.
func (x *taker) AdoptIdle(octets []byte, fds []sock.FD) error {
	legs, err := loop.UnpackIdle(octets, fds)
	if err != nil {
		return err
	}
	loops := x.p.shared.Loops
	for i := range legs {
		l := loops[i%len(loops)]
		l.Do(func(l *loop.Loop) { l.TakeIdle(legs[i : i+1]) })
	}
	return nil
}

// Accept begins to accept, and to grant what the giver does not keep.
func (x *taker) Accept(a move.Acceptance) {
	if a.Share != nil {
		x.share(a.Share)
	} else { // of a release that does not divide limits
		x.p.shared.Ledger.Switched(ledger.Share{Held: x.held, Places: a.Places})
	}
	x.p.accepting(true)
}

// Observe tells how what was adopted has fared.
func (x *taker) Observe() move.Sight {
	n := len(x.p.shared.Loops)
	s := move.Sight{Alive: x.p.flows(), Ended: x.took - x.p.flows(), Loops: n, Of: n}
	for _, l := range x.p.shared.Loops {
		s.Lost += int(l.Count.Lost)
		s.Panics += int(l.Count.Panics)
	}
	return s
}

// Finish makes this the process of its host.
func (x *taker) Finish([]byte) {
	x.p.arriving = false
	x.p.shared.Ledger.Arrived()
	x.p.relook()
}

// Orphaned goes on with what was committed.
func (x *taker) Orphaned(accepting bool, why error) {
	x.p.w.note("%s: its predecessor is gone: %v", x.p.name, why)
	x.p.arriving = false
	x.p.shared.Ledger.Alone()
	x.p.host.proc = x.p
	if !accepting {
		x.p.accepting(true)
	}
	x.p.relook()
}

// Remains leaves to what drains in the giver what it holds of limits.
func (x *taker) Remains(r *move.Remains) {
	if r == nil {
		x.p.shared.Ledger.Alone()
		return
	}
	x.share(r.Share)
}

func (x *taker) share(text []byte) {
	var s ledger.Share
	if err := json.Unmarshal(text, &s); err != nil {
		panic(err)
	}
	x.p.shared.Ledger.Switched(s)
}
