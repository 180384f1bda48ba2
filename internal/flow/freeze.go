package flow

import (
	"fmt"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/planted"
)

// UnsentMax bounds the octets due to one leg of a flow that is thawed: a pipe
// of 256 KiB and a block, doubled. More is refused.
const UnsentMax = 1 << 20

// Objects finds the object that a frozen flow names; nil when there is none of
// that name and version. Whoever thaws decides what a name stands for: the
// same version, or, when flows adopt a change, the current one.
type Objects interface {
	Listener(name string, version uint64) *config.Listener
	Backend(name string, version uint64) *config.Backend
	Endpoint(name string, version uint64) *config.Endpoint
}

// Freeze puts f down: the portable form of all it is at now. The flow must be
// at rest and not Done; its turn is over, so no octet of it lies in scratch.
// The result refers to nothing of f that is still to change. Descriptors and sockets are added by the
// carrier, which also tells the ledgers; neither is known here.
func (f *Flow) Freeze(now Instant) (*frozen.Flow, error) {
	if f.state == Done {
		return nil, &frozen.Refused{What: "flow", Why: "it has ended"}
	}
	out := &frozen.Flow{
		Id:       f.id,
		State:    frozen.Flow_State(f.state),
		Listener: ref(f.listener.Ref),
		Backend:  ref(f.backend.Ref),
		AgeNanos: uint64(max(0, now-f.born)),
		Place:    f.place,
		Attempts: uint32(f.attempts),
		Tried:    f.tried,
		Moves:    f.moves,
		Client:   f.legs[Client].freeze(),
	}
	planted.Zero(4, &out.Place)
	planted.Zero(21, &out.Tried)
	planted.Zero(29, &out.AgeNanos)
	if f.endpoint != nil {
		out.Endpoint = ref(f.endpoint.Ref)
	}
	deadline := f.at
	if f.state == Relaying {
		out.Legs = []*frozen.Leg{f.legs[Backend].freeze()}
		deadline = after(f.at, f.listener.IdleTimeout)
	}
	if deadline != 0 {
		// 0 means none, so what has passed already is one nanosecond away.
		out.LeftNanos = uint64(max(1, deadline-now))
	}
	return out, nil
}

func ref(r config.Ref) *frozen.Ref { return &frozen.Ref{Name: r.Name, Version: r.Version} }

func (h *half) freeze() *frozen.Leg {
	z := &frozen.Leg{
		Ended: h.ended && !planted.Bug(1), Shut: h.shut && !planted.Bug(2), Broken: h.broken,
		Received: h.received, Sent: h.sent,
	}
	if z.Unsent = h.due(); cap(h.buf) <= BlockBytes {
		// A block goes back to its lender. What is larger is the flow's own and
		// is never written again, so it is passed on as it lies.
		z.Unsent = append([]byte(nil), z.Unsent...)
	}
	return z
}

// Thaw picks a flow up at now. It holds to everything that the flow itself
// would have ensured: what could not be is a [frozen.Refused] and never
// becomes a flow. The flow takes z's octets over as they lie.
func Thaw(now Instant, z *frozen.Flow, objects Objects) (Flow, error) {
	f := Flow{
		id: z.Id, state: State(z.State), place: z.Place, tried: z.Tried,
		moves: z.Moves + 1, born: now - Instant(z.AgeNanos),
	}
	if err := f.thawObjects(z, objects); err != nil {
		return Flow{}, err
	}
	if z.Attempts > uint32(f.backend.RetryMax) && z.Attempts > 255 || z.LeftNanos > uint64(1<<62) || z.AgeNanos > uint64(1<<62) {
		return Flow{}, refused("flow", "attempts %d, left %d, age %d: out of bounds", z.Attempts, z.LeftNanos, z.AgeNanos)
	}
	f.attempts = uint8(min(z.Attempts, 255))
	if z.Client == nil {
		return Flow{}, refused("client", "missing")
	}
	if err := f.legs[Client].thaw(z.Client); err != nil {
		return Flow{}, err
	}
	switch f.state {
	case Queued, Dialing:
		if len(z.Legs) > 1 || (len(z.Legs) == 1 && !virgin(z.Legs[0])) || !virgin(z.Client) {
			return Flow{}, refused("leg", "octets or ends before a backend leg is connected")
		}
		if z.LeftNanos > 0 && !planted.Bug(17) {
			f.at = now + Instant(z.LeftNanos)
		}
	case Relaying:
		if len(z.Legs) != 1 {
			return Flow{}, refused("leg", "%d backend legs, a TCP flow has 1", len(z.Legs))
		}
		if err := f.legs[Backend].thaw(z.Legs[0]); err != nil {
			return Flow{}, err
		}
		if err := f.checkHalves(); err != nil {
			return Flow{}, err
		}
		f.at = now
		if idle := f.listener.IdleTimeout; idle > 0 && z.LeftNanos > 0 {
			f.at = now.Add(min(0, time.Duration(z.LeftNanos)-idle))
		}
	}
	return f, nil
}

func (f *Flow) thawObjects(z *frozen.Flow, objects Objects) error {
	if f.state < Queued || f.state > Relaying {
		return refused("state", "%d is not known to this release", z.State)
	}
	l, b, e := z.Listener, z.Backend, z.Endpoint
	if l == nil || b == nil {
		return refused("object", "listener or backend is not named")
	}
	if f.listener = objects.Listener(l.Name, l.Version); f.listener == nil {
		return refused("object", "no listener %s@%016x here", l.Name, l.Version)
	}
	if f.backend = objects.Backend(b.Name, b.Version); f.backend == nil {
		return refused("object", "no backend %s@%016x here", b.Name, b.Version)
	}
	if (e == nil) != (f.state == Queued) {
		return refused("object", "a flow that is %v and an endpoint: %t", f.state, e != nil)
	}
	if e != nil {
		if f.endpoint = objects.Endpoint(e.Name, e.Version); f.endpoint == nil {
			return refused("object", "no endpoint %s@%016x here", e.Name, e.Version)
		}
	}
	return nil
}

func (h *half) thaw(z *frozen.Leg) error {
	if len(z.Unsent) > UnsentMax {
		return refused("leg", "%d octets unsent, the limit is %d", len(z.Unsent), UnsentMax)
	}
	h.ended, h.shut, h.broken = z.Ended, z.Shut, z.Broken
	planted.Cut(3, &z.Unsent)
	h.received, h.sent = z.Received, z.Sent
	planted.Zero(5, &h.received)
	if len(z.Unsent) > 0 {
		// Cut to its length, it is not taken for one of the lender's blocks.
		h.buf = z.Unsent[:len(z.Unsent):len(z.Unsent)]
		h.lent = len(h.buf) > BlockBytes // a smaller one Settle puts into a block
	}
	return nil
}

// virgin: nothing has come or gone on the leg.
func virgin(z *frozen.Leg) bool {
	return len(z.Unsent) == 0 && !z.Ended && !z.Shut && !z.Broken && z.Received == 0 && z.Sent == 0
}

// checkHalves refuses a relaying flow that the machine would never have come to.
func (f *Flow) checkHalves() error {
	for s := Client; s <= Backend; s++ {
		leg, other := &f.legs[s], &f.legs[s.Other()]
		switch {
		case leg.shut && (!other.ended || len(leg.due()) > 0):
			return refused("leg", "FIN was sent to the %v before all of the other side", s)
		case leg.broken && len(leg.due()) > 0:
			return refused("leg", "octets are due to the broken %v leg", s)
		case !leg.broken && leg.sent+uint64(len(leg.due())) != other.received:
			return refused("leg", "%d octets came from the %v, but %d are sent and %d due", other.received, s.Other(), leg.sent, len(leg.due()))
		}
	}
	done := *f
	done.finish()
	if done.state == Done {
		return refused("flow", "it has ended: %v", done.cause)
	}
	return nil
}

func refused(what, format string, args ...any) error {
	return &frozen.Refused{What: "flow " + what, Why: fmt.Sprintf(format, args...)}
}
