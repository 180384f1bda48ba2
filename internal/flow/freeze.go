package flow

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/h1"
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

// Changer is an [Objects] under which flows adopt a change. It knows what there was
// before, so that a request under way keeps its route if that is still there:
// who waits with a priority goes on to wait with it.
type Changer interface {
	// Was is the listener of that name and version; nil if it is not known.
	Was(name string, version uint64) *config.Listener
	// WasBackend and WasEndpoint are those.
	WasBackend(name string, version uint64) *config.Backend
	WasEndpoint(name string, version uint64) *config.Endpoint
}

// dialsAs tells whether a leg that was dialled under the objects of z is one that f
// would dial under its own. Which versions those are matters only by what they
// say of that.
func (f *Flow) dialsAs(z *frozen.Flow, objects Objects) bool {
	if z.Endpoint.GetVersion() == f.endpoint.Ref.Version && z.Backend.GetVersion() == f.backend.Ref.Version && z.Listener.GetVersion() == f.listener.Ref.Version {
		return true
	}
	c, ok := objects.(Changer)
	if !ok {
		return false
	}
	l, b, e := c.Was(z.Listener.GetName(), z.Listener.GetVersion()), c.WasBackend(z.Backend.GetName(), z.Backend.GetVersion()), c.WasEndpoint(z.Endpoint.GetName(), z.Endpoint.GetVersion())
	if l == nil || b == nil || e == nil {
		return false
	}
	return e.Ref.Name == f.endpoint.Ref.Name && e.Addr == f.endpoint.Addr && e.Unix == f.endpoint.Unix &&
		b.Source == f.backend.Source && b.SourceVIP == f.backend.SourceVIP && b.ProxyHeader == f.backend.ProxyHeader &&
		l.VIP.Addr() == f.listener.VIP.Addr() && l.Movable == f.listener.Movable
}

// sameRoute gives the place in is of the route at n in was; -1 if it is not there.
func sameRoute(was, is *config.Listener, n int64) int16 {
	if was == nil || is.Protocol != config.HTTP || was.Protocol != config.HTTP || n < 0 || n >= int64(len(was.Rules.Routes)) {
		return -1
	}
	route := was.Rules.Routes[n]
	if n < int64(len(is.Rules.Routes)) && reflect.DeepEqual(route, is.Rules.Routes[n]) {
		return int16(n)
	}
	return int16(slices.IndexFunc(is.Rules.Routes, func(r *config.Route) bool { return reflect.DeepEqual(route, r) }))
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
		Id:            f.id,
		State:         frozen.Flow_State(f.state),
		Listener:      ref(f.listener.Ref),
		AgeNanos:      uint64(max(0, now-f.born)),
		Moves:         f.moves,
		ClientAddress: f.client.freeze(),
	}
	planted.Zero(29, &out.AgeNanos)
	deadline := f.at
	switch f.state {
	case Relaying, Answering, Sunk:
		deadline = after(f.at, f.patience())
	}
	if deadline != 0 {
		// 0 means none, so what has passed already is one nanosecond away.
		out.LeftNanos = uint64(max(1, deadline-now))
	}
	if f.work == nil {
		out.Client = &frozen.Leg{Received: f.received, Sent: f.sent}
		out.H1 = &frozen.H1{Requests: uint64(f.requests)}
		return out, nil
	}
	if f.backend != nil {
		out.Backend = ref(f.backend.Ref)
	}
	c, b := &f.legs[Client], &f.legs[Backend]
	out.Place, out.Attempts, out.Tried = f.place, uint32(b.attempts), f.tried
	out.WaitMicros, out.ConnectMicros, out.Facts = uint32(c.spent), uint32(b.spent), uint32(b.facts)
	planted.Zero(4, &out.Place)
	planted.Zero(21, &out.Tried)
	out.Client = f.legs[Client].freeze()
	if f.endpoint != nil {
		out.Endpoint = ref(f.endpoint.Ref)
	}
	if f.state == Relaying && f.endpoint != nil || f.x == nil && len(f.legs[Backend].due()) > 0 {
		out.Legs = []*frozen.Leg{f.legs[Backend].freeze()}
	}
	switch {
	case f.x != nil:
		f.freezeExchange(out)
	case f.listener.Protocol == config.HTTP:
		t := f.entry
		out.H1 = &frozen.H1{
			Requests: uint64(f.requests), Tunnel: true, Received: f.received, Sent: f.sent,
			Status: uint32(t.status), Route: uint32(t.route), Minor: uint32(t.minor),
		}
	}
	if f.entry != nil && !planted.Bug(56) {
		out.H1.Entry = f.entry.freeze(now)
	}
	return out, nil
}

// freezeExchange adds what joins the legs of a flow that speaks HTTP. Both
// counts of the client leg become one, and the request is apart from its leg,
// for it is there before there is one.
func (f *Flow) freezeExchange(out *frozen.Flow) {
	x, b := f.x, &f.legs[Backend]
	out.H1 = &frozen.H1{
		Requests: uint64(f.requests), Method: uint32(x.method), Minor: uint32(x.minor),
		Status: uint32(x.status), Route: uint32(x.route), Flags: uint32(x.flags),
		Request: b.due(), Key: x.key,
	}
	if x.stuck > 0 {
		out.H1.Stuck = f.backend.Endpoints[x.stuck-1].Name
	}
	if b.keep {
		out.H1.Request, out.H1.RequestSent = b.buf, b.off
	}
	if planted.Bug(36) {
		out.H1.Flags &^= uint32(last)
	}
	if planted.Bug(44) {
		out.H1.Flags &^= uint32(spoilt)
	}
	if cap(b.buf) <= BlockBytes {
		out.H1.Request = append([]byte(nil), out.H1.Request...)
	}
	out.Client.Received += f.received
	out.Client.Sent += f.sent
	out.Client.H1 = x.freeze(Client)
	if len(out.Legs) > 0 {
		out.Legs[0].Unsent = nil
		out.Legs[0].H1 = x.freeze(Backend)
	}
}

func (x *exchange) freeze(s Side) *frozen.H1Leg {
	in := &x.in[s]
	z := &frozen.H1Leg{Unread: append([]byte(nil), in.rest()...), Scanned: in.scanned, Body: x.body[s].Freeze()}
	planted.Cut(31, &z.Unread)
	planted.Zero(33, &z.Body)
	return z
}

func (t *entry) freeze(now Instant) *frozen.Entry {
	z := &frozen.Entry{
		AgeNanos: uint64(max(0, now-t.begun)), Received: t.in, Sent: t.out,
		HeadMicros: uint32(t.head), AnswerMicros: uint32(t.answer),
		Cause: uint32(t.cause), Phase: uint32(t.phase), Source: t.source.freeze(), Reused: t.reused,
	}
	if t.endpoint != nil {
		z.Endpoint = t.endpoint.Name
	}
	if t.note != nil {
		n := t.told()
		z.Noted = true
		z.Method, z.Target, z.Host, z.Agent = bytes.Clone(n.Method), bytes.Clone(n.Target), bytes.Clone(n.Host), bytes.Clone(n.Agent)
	}
	return z
}

func (a Address) freeze() []byte {
	if a == (Address{}) {
		return nil
	}
	out, _ := a.AddrPort().Addr().AppendBinary(make([]byte, 0, 18)) // it cannot fail, and there is no zone
	return binary.BigEndian.AppendUint16(out, a.port)
}

func thawAddress(b []byte) (Address, error) {
	if len(b) == 0 {
		return Address{}, nil
	}
	if ip, ok := netip.AddrFromSlice(b[:len(b)-min(2, len(b))]); ok && !ip.Is4In6() {
		return AddressOf(netip.AddrPortFrom(ip, binary.BigEndian.Uint16(b[len(b)-2:]))), nil
	}
	return Address{}, refused("client_address", "%d octets", len(b))
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
	f := Flow{id: z.Id, state: State(z.State), moves: z.Moves + 1, born: now - Instant(z.AgeNanos)}
	var err error
	if f.client, err = thawAddress(z.ClientAddress); err != nil {
		return Flow{}, err
	}
	if z.LeftNanos > uint64(1<<62) || z.AgeNanos > uint64(1<<62) || z.Attempts > math.MaxUint8 {
		return Flow{}, refused("flow", "attempts %d, left %d, age %d: out of bounds", z.Attempts, z.LeftNanos, z.AgeNanos)
	}
	if err := f.thawObjects(z, objects); err != nil {
		return Flow{}, err
	}
	if z.Client == nil {
		return Flow{}, refused("client", "missing")
	}
	if z.LeftNanos > 0 && !planted.Bug(17) {
		f.at = now + Instant(z.LeftNanos)
	}
	if f.work == nil {
		if c := z.Client; len(c.Unsent) > 0 || c.Ended || c.Shut || c.Broken || len(z.Legs) > 0 {
			return Flow{}, refused("client", "octets or ends between two requests")
		}
		f.received, f.sent = z.Client.Received, z.Client.Sent
		return f, nil
	}
	if known := stuck | paid | parted; z.Facts&^uint32(known) != 0 || facts(z.Facts)&parted != 0 && (f.state != Relaying || f.x != nil) {
		return Flow{}, refused("flow", "facts %x: not known to this release", z.Facts)
	}
	c, b := &f.legs[Client], &f.legs[Backend]
	if f.place = z.Place; f.backend == nil || f.backend.Ref.Version == z.Backend.Version {
		f.tried = z.Tried // of another version the bits would mean other endpoints
	}
	b.attempts, b.facts, b.spent, c.spent = uint8(z.Attempts), facts(z.Facts), micros(z.ConnectMicros), micros(z.WaitMicros)
	if err := f.legs[Client].thaw(z.Client); err != nil {
		return Flow{}, err
	}
	if len(z.Legs) > 1 {
		return Flow{}, refused("leg", "%d backend legs, there is at most 1", len(z.Legs))
	}
	if len(z.Legs) == 1 {
		if err := f.legs[Backend].thaw(z.Legs[0]); err != nil {
			return Flow{}, err
		}
	}
	if f.x != nil {
		err = f.thawExchange(z, objects)
	} else {
		err = f.checkOctets(z)
	}
	if err != nil {
		return Flow{}, err
	}
	if err := f.thawEntry(now, z); err != nil {
		return Flow{}, err
	}
	if f.state == Relaying || f.state == Answering || f.state == Sunk {
		f.at = now
		if patience := f.patience(); patience > 0 && z.LeftNanos > 0 {
			f.at = now.Add(min(0, time.Duration(z.LeftNanos)-patience))
		}
	}
	return f, nil
}

// checkOctets: a flow whose octets pass as they are.
func (f *Flow) checkOctets(z *frozen.Flow) error {
	if h := z.H1; h != nil { // a tunnel
		f.received, f.sent = h.Received, h.Sent
	}
	if f.state == Relaying {
		if len(z.Legs) != 1 {
			return refused("leg", "%d backend legs, a TCP flow has 1", len(z.Legs))
		}
		if f.finishing() {
			return f.checkParting()
		}
		return f.checkHalves()
	}
	c, b := &f.legs[Client], &f.legs[Backend]
	if f.state == Sunk {
		if len(z.Legs) > 0 || len(c.due()) > 0 || c.sent > 0 || c.ended || c.shut || c.broken {
			return refused("leg", "octets or ends of a flow in a sink")
		}
		return nil
	}
	early := uint64(len(b.due())) // what came behind a PROXY header
	if len(f.listener.ProxyFrom) == 0 && early > 0 || c.received != early || len(c.due()) > 0 || c.sent > 0 ||
		c.ended || c.shut || c.broken || b.ended || b.shut || b.broken || b.sent > 0 || b.received > 0 {
		return refused("leg", "octets or ends before a backend leg is connected")
	}
	return nil
}

// thawEntry: what the record will say. Of a flow of an earlier release that has
// none there is one all the same, which knows less.
func (f *Flow) thawEntry(now Instant, z *frozen.Flow) error {
	e, early := z.H1.GetEntry(), f.x != nil && f.x.flags&greeting != 0 && len(f.x.in[Client].rest()) == 0
	http := f.listener.Protocol == config.HTTP
	switch {
	case !http || f.state == Lingering:
		if e != nil {
			return refused("entry", "%v, of %v", f.state, f.listener.Protocol)
		}
		return nil
	case e == nil && early:
		return nil
	case e == nil:
		in := 0
		if f.x != nil {
			in = len(f.x.in[Client].rest())
		}
		f.entry = &entry{begun: now, in: f.Received(Client) - min(uint64(in), f.Received(Client)), out: f.Sent(Client)}
		if f.state != Reading {
			f.entry.head = microsOf(0)
		}
		f.entry.endpoint = f.endpoint
	default:
		if e.AgeNanos > uint64(1<<62) || e.Received > f.Received(Client) || e.Sent > f.Sent(Client) || e.Cause >= uint32(causesEnd) || e.Phase >= uint32(phasesEnd) {
			return refused("entry", "age %d, received %d, sent %d, cause %d, phase %d: out of bounds", e.AgeNanos, e.Received, e.Sent, e.Cause, e.Phase)
		}
		// An answer may be that a head does not come.
		if (e.HeadMicros == 0) != (f.state == Reading) && (e.HeadMicros != 0 || f.state != Answering) {
			return refused("entry", "%v, and its head is there: %t", f.state, e.HeadMicros != 0)
		}
		t := &entry{
			begun: now - Instant(e.AgeNanos), in: e.Received, out: e.Sent, head: micros(e.HeadMicros), answer: micros(e.AnswerMicros),
			cause: Cause(e.Cause), phase: Phase(e.Phase), reused: e.Reused,
		}
		var err error
		if t.source, err = thawAddress(e.Source); err != nil {
			return err
		}
		if f.backend != nil && e.Endpoint != "" {
			t.endpoint = f.backend.Endpoint(e.Endpoint)
		}
		if len(e.Method) > noteMethodMax || len(e.Target) > noteTargetMax || len(e.Host) > noteHostMax || len(e.Agent) > noteAgentMax {
			return refused("entry", "a note of %d, %d, %d and %d octets", len(e.Method), len(e.Target), len(e.Host), len(e.Agent))
		}
		if e.Noted {
			t.note = make([]byte, 0, len(e.Method)+len(e.Target)+len(e.Host)+len(e.Agent))
			for i, part := range [][]byte{e.Method, e.Target, e.Host, e.Agent} {
				t.keep(i, part, noteTargetMax)
			}
		}
		f.entry = t
	}
	if h := z.H1; h.Tunnel {
		if h.Status > 999 || h.Route > math.MaxInt16 || h.Minor > 1 {
			return refused("h1", "status %d, route %d, minor %d of a tunnel: not known to this release", h.Status, h.Route, h.Minor)
		}
		f.entry.status, f.entry.minor = uint16(h.Status), uint8(h.Minor)
		if f.listener.Ref.Version == z.Listener.Version {
			f.entry.route = int16(h.Route)
		}
	}
	return nil
}

// exchangeFlagsAll are those that this release knows.
const exchangeFlagsAll = halted<<1 - 1

// thawExchange: the rest of a flow that speaks HTTP.
func (f *Flow) thawExchange(z *frozen.Flow, objects Objects) error {
	h, x := z.H1, f.x
	c, b := &f.legs[Client], &f.legs[Backend]
	switch {
	case h.Method > uint32(h1.PATCH) || h.Minor > 1 || h.Status > 999 || h.Route > math.MaxInt16 || h.Flags&^uint32(exchangeFlagsAll) != 0:
		return refused("h1", "method %d, minor %d, status %d, route %d, flags %x: not known to this release",
			h.Method, h.Minor, h.Status, h.Route, h.Flags)
	case len(h.Request) > UnsentMax || h.RequestSent > uint32(len(h.Request)):
		return refused("h1", "%d of %d octets of a request", h.RequestSent, len(h.Request))
	case h.Tunnel || len(b.due()) > 0:
		return refused("h1", "a tunnel and an exchange")
	case c.broken || b.shut || c.shut != (f.state == Lingering) && c.shut:
		return refused("h1", "ends that this state does not have")
	}
	x.method, x.minor, x.status, x.flags, x.key = h1.Method(h.Method), uint8(h.Minor), uint16(h.Status), exchangeFlags(h.Flags), h.Key
	if f.backend != nil && h.Stuck != "" {
		for i, e := range f.backend.Endpoints {
			if e.Name == h.Stuck {
				x.stuck = uint32(i + 1)
			}
		}
	}
	if f.endpoint != nil && !planted.Bug(38) && !f.dialsAs(z, objects) {
		// It adopts a change, by which another leg would be dialled.
		x.flags |= spoilt
	}
	if f.listener.Ref.Version == z.Listener.Version {
		// Of another version the routes may be others: see Changer.
		x.route = int16(h.Route)
	}
	if x.flags&greeting == 0 { // the header is taken off the count in one piece
		f.received, f.sent = c.received, c.sent
		c.received, c.sent = 0, 0
	}
	if err := x.thaw(Client, z.Client.H1); err != nil {
		return err
	}
	if len(z.Legs) == 1 {
		if err := x.thaw(Backend, z.Legs[0].H1); err != nil {
			return err
		}
	}
	if len(h.Request) > 0 {
		b.buf, b.off = h.Request[:len(h.Request):len(h.Request)], h.RequestSent
		b.lent = len(b.buf) > BlockBytes
	}
	b.keep = !planted.Bug(34) && len(h.Request) > 0 && x.flags&repeatable != 0
	whole := len(b.due()) == 0 && b.off > 0
	over := &x.body[Backend]
	switch c, b := len(x.in[Client].rest()), len(x.in[Backend].rest()); {
	case c > 0 && (f.state == Lingering || f.state == Sunk || f.state != Reading && f.state != Answering && !x.body[Client].Done()),
		b > 0 && (x.status != 0 || b == BlockBytes): // a head of it would not fit
		return refused("h1", "%v, with %d and %d octets unread", f.state, c, b)
	case x.status == 0 && (over.Framing() != h1.NoBody || over.Content() > 0):
		return refused("h1", "a body without a head")
	}
	if f.state != Relaying && len(z.Legs) == 1 && (b.ended || b.broken || b.received > 0 || b.sent > 0 || z.Legs[0].H1 != nil) {
		return refused("leg", "%v, and a backend leg that is connected", f.state)
	}
	switch f.state {
	case Queued, Dialing:
		if len(h.Request) == 0 || h.RequestSent > 0 || x.status != 0 {
			return refused("h1", "%v without a request", f.state)
		}
	case Relaying:
		if (f.endpoint == nil) != (len(z.Legs) == 0) {
			return refused("h1", "an endpoint and no leg, or a leg and no endpoint")
		}
		if f.endpoint == nil && (x.status == 0 || len(c.due()) == 0) || !b.keep && whole {
			return refused("h1", "an exchange that is over")
		}
		if len(c.due()) == 0 && x.status != 0 && over.Done() || b.broken && (x.status == 0 || len(c.due()) == 0) {
			return refused("h1", "a response that is over")
		}
	case Answering:
		if len(h.Request) > 0 {
			return refused("h1", "an answer, and a request to be sent")
		}
		if len(c.due()) == 0 || x.status == 0 {
			return refused("h1", "no answer is due")
		}
	case Sunk:
		if len(h.Request) > 0 || x.status != 0 {
			return refused("h1", "a request or a response in a sink")
		}
	case Lingering:
		if len(c.due()) > 0 && c.shut {
			return refused("h1", "octets are due to a client that was told the end")
		}
		if len(h.Request) > 0 || z.LeftNanos == 0 {
			return refused("h1", "no deadline, or a request to be sent")
		}
	case Reading:
		if len(h.Request) > 0 {
			return refused("h1", "octets of another request")
		}
		if x.flags &= greeting; x.flags != 0 && (c.sent > 0 || len(c.due()) > 0) {
			return refused("h1", "a greeting to come, and octets for the client")
		}
	}
	return nil
}

func (x *exchange) thaw(s Side, z *frozen.H1Leg) error {
	if z == nil {
		return nil
	}
	if len(z.Unread) > BlockBytes || int(z.Scanned) > len(z.Unread) {
		return refused("h1", "%d octets unread, %d of them scanned", len(z.Unread), z.Scanned)
	}
	if len(z.Unread) > 0 {
		x.in[s].buf, x.in[s].scanned = z.Unread[:len(z.Unread):len(z.Unread)], z.Scanned
	}
	if z.Body == nil {
		return nil
	}
	var err error
	x.body[s], err = h1.ThawBody(z.Body)
	return err
}

func (f *Flow) thawObjects(z *frozen.Flow, objects Objects) error {
	switch f.state {
	case Queued, Dialing, Relaying, Reading, Answering, Lingering, Sunk:
	default:
		return refused("state", "%d is not known to this release", z.State)
	}
	l, b, e := z.Listener, z.Backend, z.Endpoint
	if l == nil {
		return refused("object", "no listener is named")
	}
	if f.listener = objects.Listener(l.Name, l.Version); f.listener == nil {
		return refused("object", "no listener %s@%016x here", l.Name, l.Version)
	}
	h := z.H1
	if h.GetRequests() > math.MaxUint32 {
		return refused("h1", "%d requests: out of bounds", h.Requests)
	}
	f.requests = uint32(h.GetRequests())
	http := f.listener.Protocol == config.HTTP
	if http && h == nil || !http && h != nil && exchangeFlags(h.Flags)&greeting == 0 {
		return refused("object", "listener %s speaks %v, the flow does not", l.Name, f.listener.Protocol)
	}
	late := f.state == Queued || f.state == Dialing || f.state == Relaying || f.state == Sunk
	if !http && (f.state == Answering || f.state == Lingering) || h.GetTunnel() && f.state != Relaying {
		return refused("state", "%v, of a flow without HTTP", f.state)
	}
	if f.state == Reading && h == nil || f.state != Reading && exchangeFlags(h.GetFlags())&greeting != 0 {
		return refused("h1", "%v, and a greeting to come: %t", f.state, h != nil)
	}
	if http && f.state == Reading && b == nil && e == nil && z.Client != nil && z.Client.H1 == nil && len(z.Client.Unsent) == 0 && h.GetFlags() == 0 {
		return nil // idle: it holds nothing
	}
	f.work = new(work)
	if h != nil && !h.Tunnel {
		f.x = new(exchange)
		if c, ok := objects.(Changer); ok && f.listener.Ref.Version != l.Version {
			f.x.route = sameRoute(c.Was(l.Name, l.Version), f.listener, int64(h.Route)-1) + 1
		}
	}
	if b == nil && (late || !http) {
		return refused("object", "no backend is named")
	}
	if b != nil {
		if f.backend = objects.Backend(b.Name, b.Version); f.backend == nil {
			return refused("object", "no backend %s@%016x here", b.Name, b.Version)
		}
	}
	// What an order sheds is in a sink without an endpoint.
	if needs := f.state == Dialing || f.state == Relaying; (e == nil) == needs && f.state != Sunk && !(e == nil && f.state == Relaying && f.x != nil) {
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
