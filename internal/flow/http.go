package flow

import (
	"bytes"
	"net/netip"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/h1"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/planted"
	"github.com/holdfast-lb/holdfast/internal/proxyproto"
)

// Headroom is how far behind the beginning of a [Desk]'s scratch received
// octets lie: a head that is written anew grows into it, so that the body that
// came behind it stays where it is.
const Headroom = 4 << 10

// Desk is what a runner lends a flow for the time of one Step: nothing on it
// outlives the turn. It belongs to one runner.
type Desk struct {
	// Scratch has Headroom and then room for received octets, which the
	// Received event must show there.
	Scratch []byte
	// Build is where heads are written.
	Build []byte
	// Config rules new requests.
	Config *config.Config
	// VIPs are the listeners in force by their VIP; nil: none has changed its name or
	// its VIP.
	VIPs map[netip.AddrPort]*config.Listener
	// From is set by a Step in which the flow comes under another listener: the one
	// that it was under. The runner takes and clears it after that Step.
	From   *config.Listener
	Lender *Lender
	Tally  Tally

	// Limits judges requests by the rates of their listener and route; nil has
	// none. It is asked only where there are some.
	Limits Limiter
	// Retries is asked before a response is thrown away to try again; nil always
	// lets.
	Retries Retrier
	// Wall is the time now in seconds of the epoch, for cookies that end. The
	// runner sets it, at most some seconds late.
	Wall int64
	// Report is called at the end of each exchange that ends before its flow, within
	// a Step; nil wants no records. The Record, and all it points to but objects of
	// the configuration, is valid during the call only. What is under way when a
	// flow ends is not reported: a runner asks for it by [Flow.Sum] before it drops a
	// flow, be it Done or not.
	Report func(*Record)
	// Outcome is what the last Steps of one flow have shown of the endpoint whose slot
	// it holds, or held. The runner looks, and clears it, before it gives the slot back.
	Outcome Outcome

	head    h1.Head
	picks   uint64 // requests shared by weight so far
	record  Record
	asking  ledger.Asking
	cookies cookies
	// The latest listener that was found to be in force, and by which configuration.
	ruling  *config.Listener
	ruledBy *config.Config
}

// Limiter holds the rates of requests, over all runners. A [ledger.Ledger] is
// one.
type Limiter interface {
	// Pass counts a request of source under the rates of lis and its route (an
	// index, -1 for none) and gives 0; or it counts nothing and gives how long to
	// wait.
	Pass(now int64, lis *config.Listener, route int, source netip.Addr) time.Duration
}

// Retrier holds the budgets of retries, over all runners.
type Retrier interface {
	// AllowRetry tells whether a further attempt for a request of c is within the
	// budget of retries, and an endpoint is there that serves and is not in
	// a.Tried. If so it is counted; Asking.Retry is then not set for it.
	AllowRetry(c *config.Backend, a *ledger.Asking) bool
}

// Tally counts what the flows of a runner did.
type Tally struct {
	Requests  uint64    // begun to be forwarded, or answered
	Responses [6]uint64 // by class: [2] are 2xx; without those of [0]
	Own       uint64    // of these, answers of our own
	Repeated  uint64    // requests sent again, since a pooled leg was dead
	Retried   uint64    // requests sent to another endpoint, since a new leg broke or its response was not wanted
	Reused    uint64    // requests sent on a pooled leg
	Tunnels   uint64    // upgrades and CONNECTs that were granted
}

// NewDesk makes the desk of a runner.
func NewDesk(l *Lender) *Desk {
	return &Desk{Scratch: make([]byte, Headroom+BlockBytes), Build: make([]byte, 0, 2*BlockBytes), Lender: l}
}

// exchange is what an HTTP flow has beside its legs from the first octet of a
// request to the last of the response.
type exchange struct {
	in     [2]inbox      `frozen:"Leg.h1"`
	body   [2]h1.Body    `frozen:"H1Leg.body"` // of the message from that leg, as far as it was passed
	method h1.Method     `frozen:"H1.method"`
	minor  uint8         `frozen:"H1.minor"`
	status uint16        `frozen:"H1.status"` // 0: the head of the final response has not come
	route  int16         `frozen:"H1.route"`  // 1 + index among the listener's routes, 0: none yet
	stuck  uint32        `frozen:"H1.stuck"`  // 1 + index of the endpoint that a valid cookie names, 0: none does
	key    uint64        `frozen:"H1.key"`    // what an endpoint is chosen by; 0 is nothing
	flags  exchangeFlags `frozen:"H1.flags"`
}

// exchangeFlags are facts about an exchange. Append, never renumber.
type exchangeFlags uint32

const (
	last       exchangeFlags = 1 << iota // the client's connection ends after the response
	reused                               // the backend leg served before
	fresh                                // it must not: a pooled one was dead already
	repeatable                           // the request may be sent again while no response has begun
	dechunked                            // the response's chunks are taken apart
	spoilt                               // the backend leg is good for nothing after the response
	upgrading                            // the client asked for another protocol
	begun                                // something was passed on in response, be it a 1xx
	greeting                             // a PROXY header is still to come
	deafened                             // the backend takes no more of the request
	ours                                 // the answer is our own
	parting                              // the client said itself that it asks for nothing more
	bad                                  // the answer is our own, and the client is to blame
	severed                              // the backend takes no more because it has gone: an end that is read is none
	stray                                // key is Maglev's, not the client's: the request has not the field that its table goes by
	halted                               // an operator ends the flow with this exchange
)

// inbox holds octets that a leg said and that are not digested: half a head,
// or what the client asks for next.
type inbox struct {
	buf     []byte `frozen:"H1Leg.unread"`
	off     uint32 `frozen:"H1Leg.unread"`
	scanned uint32 `frozen:"H1Leg.scanned"` // of buf[off:]
	lent    bool   `frozen:"-" why:"tells where buf lies"`
	starved bool   `frozen:"-" why:"found out again by looking"`
}

func (in *inbox) rest() []byte { return in.buf[in.off:] }

// fill makes octets the contents: all that is not digested.
func (in *inbox) fill(octets []byte, l *Lender) {
	if in.lent {
		l.giveBack(in.buf)
	}
	in.buf, in.off, in.lent, in.starved = octets, 0, false, false
}

func (in *inbox) take(n int) {
	in.off += uint32(n)
	in.scanned, in.starved = 0, false
}

func (in *inbox) settle(l *Lender) {
	switch left := in.rest(); {
	case len(in.buf) == 0:
	case len(left) == 0:
		in.drop(l)
	case !in.lent:
		in.buf, in.off, in.lent = l.lend(left), 0, true
	}
}

func (in *inbox) drop(l *Lender) {
	if in.lent {
		l.giveBack(in.buf)
	}
	*in = inbox{}
}

// begin makes the place for an exchange.
func (f *Flow) begin(l *Lender) {
	if f.work == nil {
		f.work = l.works.lend()
	}
	if f.x == nil {
		f.x = l.exchanges.lend()
	}
}

// Unread are octets that came from the leg and must be shown again, before
// those that come next: half a head. Valid until the next Step or Settle.
func (f *Flow) Unread(s Side) []byte {
	if f.work == nil || f.x == nil {
		return nil
	}
	return f.x.in[s].rest()
}

// Phase is how far an exchange has come.
type Phase uint8

// The phases. All but Octets and the last three are of flows that speak HTTP; Queue
// and Connect are of a [Record] only.
const (
	Octets    Phase = iota // they pass as they are
	Greeting               // a PROXY header is to come
	Idle                   // between requests
	Head                   // half of a head is here
	Request                // a request is passed on, or its answer awaited
	Pipelined              // so, and more of the client's octets are here
	Response               // the response passes
	Answer                 // one of our own
	Linger                 // nothing but the client's end is awaited
	Tunnel                 // octets pass as they are, since an upgrade or CONNECT
	Sink                   // what comes is thrown away
	Queue                  // an endpoint is awaited
	Connect                // the backend leg is awaited
	phasesEnd              // not a phase
)

var phaseNames = [...]string{"octets", "greeting", "idle", "head", "request", "pipelined", "response", "answer", "linger", "tunnel", "sink", "queue", "connect"}

// String gives the word for p.
func (p Phase) String() string { return phaseNames[p] }

// Phase tells how far the flow's exchange has come.
func (f *Flow) Phase() Phase {
	switch {
	case f.work == nil:
		return Idle
	case f.state == Sunk:
		return Sink
	case f.x == nil && f.listener.Protocol == config.HTTP:
		return Tunnel
	case f.x == nil:
		return Octets
	case f.state == Answering:
		return Answer
	case f.state == Lingering:
		return Linger
	case f.x.flags&greeting != 0:
		return Greeting
	case f.state == Reading:
		return Head
	case len(f.x.in[Client].rest()) > 0:
		return Pipelined
	case f.x.status != 0:
		return Response
	}
	return Request
}

// wantsHTTP says what a flow that speaks HTTP wants in the states that only
// such a flow has, and when it relays.
func (f *Flow) wantsHTTP(w *Wants) {
	switch f.state {
	case Reading:
		w.Deadline = f.at
		if f.work != nil && len(f.legs[Client].due()) > 0 {
			// Of the response before: another host's kernel would not take it.
			w.Out[Client] = f.legs[Client].due()
			return
		}
		if f.work == nil || f.x == nil || len(f.x.in[Client].rest()) == 0 {
			w.Read[Client] = true
			return
		}
		w.Resume = !f.x.in[Client].starved
		w.Read[Client] = !w.Resume
	case Relaying:
		c, b, x := &f.legs[Client], &f.legs[Backend], f.x
		w.Out[Client], w.Out[Backend] = c.due(), b.due()
		f.wantsBody(w, Client, len(b.due()) == 0 && x.flags&deafened == 0)
		if f.endpoint != nil && !b.broken {
			if x.status != 0 {
				f.wantsBody(w, Backend, len(c.due()) == 0)
			} else {
				w.Read[Backend] = len(c.due()) == 0
			}
		}
		w.Deadline = after(f.at, f.patience())
	case Answering:
		w.Out[Client] = f.legs[Client].due()
		w.Deadline = after(f.at, f.patience())
	case Lingering:
		w.Out[Client] = f.legs[Client].due()
		w.Shut[Client] = !f.legs[Client].shut
		w.Read[Client] = f.legs[Client].shut
		w.Deadline = f.at
	}
}

// relayLeast is how much of a body must be left for splice to be worth it.
const relayLeast = 32 << 10

// wantsBody says what is wanted of the leg whose message's body passes.
func (f *Flow) wantsBody(w *Wants, side Side, room bool) {
	body := &f.x.body[side]
	if body.Done() || !room || f.legs[side].ended || len(f.x.in[side].rest()) > 0 {
		return
	}
	w.Read[side], w.Most[side] = true, body.Bare()
	w.Relay[side] = w.Most[side] >= relayLeast && f.legs[side].bulk()
}

func (f *Flow) answerTimeout() time.Duration {
	if rt := f.ruling(); rt != nil && rt.AnswerTimeout != 0 {
		return rt.AnswerTimeout
	}
	return f.backend.AnswerTimeout
}

// reading is what a flow hears before it knows where a request goes.
func (f *Flow) reading(now Instant, e *Event) {
	switch e.Kind {
	case Received:
		first := f.work == nil || f.x == nil || blank(f.x.in[Client].rest())
		f.begin(e.Desk.Lender)
		f.enter(now, 0, e.Desk.Lender)
		if first && f.x.flags&greeting == 0 && !blank(e.Octets) {
			f.comeUnder(e.Desk)
			f.entry.begun = now
			f.at = after(now, headTimeout(f.listener))
		}
		f.legs[Client].received += uint64(e.N)
		f.x.in[Client].fill(e.Octets, e.Desk.Lender)
		f.digest(now, e.Desk)
	case Wrote:
		f.took(e)
		if len(f.x.in[Client].rest()) == 0 && f.x.flags&greeting == 0 {
			f.at = after(now, idleTimeout(f.listener.Rules)) // it still reads
			if len(f.legs[Client].due()) == 0 {
				f.rest(e.Desk.Lender)
			}
		}
	case Resumed:
		f.digest(now, e.Desk)
	case Ended:
		f.end(Finished)
		if f.work != nil && len(f.x.in[Client].rest()) > 0 {
			f.cause = ClientReset // in the midst of a head
		}
	case Broke:
		f.end(ClientReset)
	case Expired:
		switch {
		case f.work == nil || len(f.x.in[Client].rest()) == 0 || f.x.flags&greeting == 0 && blank(f.x.in[Client].rest()):
			f.end(IdleTimeout)
			// FIN would say that a response which is still due was sent.
			if f.work == nil || len(f.legs[Client].due()) == 0 {
				f.marks |= gentle
			}
		case f.x.flags&greeting != 0:
			f.end(HeadTimeout)
		default:
			f.guess()
			f.answer(now, e.Desk, 408, HeadTimeout)
		}
	case Kill:
		f.kill(e)
		if f.work == nil {
			f.marks |= gentle // the last response may still be under way
		}
	default:
		f.impossible(e)
	}
}

// limits are those of the heads, of requests and of responses.
func limits(r *config.Rules) h1.Limits {
	return h1.Limits{LineMax: r.LineMax, HeadMax: r.HeadMax, FieldsMax: r.FieldsMax}
}

// blank tells that b has nothing of a request yet: some clients say an empty line
// behind a body, and what they ask for next, if anything, comes later.
func blank(b []byte) bool { return len(b) <= 2 && string(b) == "\r\n"[:len(b)] }

// digest looks at what the client said: a PROXY header, a request's head.
func (f *Flow) digest(now Instant, d *Desk) {
	in := &f.x.in[Client]
	if f.x.flags&greeting != 0 && !f.greeted(now, d) {
		return
	}
	if f.listener.Rules == nil {
		f.sayNothing(d)
		return
	}
	if len(in.rest()) == 0 {
		return
	}
	f.comeUnder(d)
	lim := limits(f.listener.Rules)
	size, scanned, err := h1.Scan(in.rest(), int(in.scanned), &lim)
	if err == nil && size == 0 {
		in.scanned, in.starved = uint32(scanned), true
		return
	}
	h := &d.head
	if err == nil {
		err = h.Request(in.rest()[:size], &lim)
	}
	d.Tally.Requests++
	f.requests++
	f.entry.head = microsOf(f.lived(now))
	if err != nil {
		f.guess()
		f.refuse(now, d, err)
		return
	}
	f.request(now, d, h, size)
}

// guess notes how to answer a request whose head was not understood, or is not all
// there.
func (f *Flow) guess() {
	f.x.method, f.x.minor = h1.OtherMethod, 1 // not those of the request before
	if bytes.HasPrefix(f.x.in[Client].rest(), []byte("HEAD ")) {
		f.x.method = h1.HEAD // who asked so takes a body for the next answer
	}
}

// sayNothing turns a greeted flow without HTTP into what it would have been
// without a greeting: what came behind the header is due to the backend.
func (f *Flow) sayNothing(d *Desk) {
	in := &f.x.in[Client]
	b := &f.legs[Backend]
	b.buf, b.off, b.lent = in.buf, in.off, in.lent
	if len(in.rest()) == 0 && in.lent {
		d.Lender.giveBack(in.buf)
		b.buf, b.off, b.lent = nil, 0, false
	}
	*in = inbox{}
	d.Lender.exchanges.giveBack(f.x)
	f.x = nil
	f.become(Queued)
}

// greeted takes the PROXY header, if all of it is there.
func (f *Flow) greeted(now Instant, d *Desk) bool {
	in := &f.x.in[Client]
	n, source, _, local, err := proxyproto.Parse(in.rest())
	switch {
	case err != nil:
		f.end(BadRequest) // who does not greet as agreed is told nothing
		return false
	case n == 0:
		in.starved = true
		return false
	}
	in.take(n)
	// It was not the client's to pass on.
	f.legs[Client].received -= uint64(n)
	f.x.flags &^= greeting
	if !local {
		f.client = AddressOf(source)
	}
	switch {
	case f.listener.Rules == nil:
		f.at = after(now, f.backend.QueueTime)
		return true
	case len(in.rest()) > 0:
		f.at = after(now, f.listener.Rules.HeaderTimeout)
	default:
		f.at = after(now, idleTimeout(f.listener.Rules))
	}
	f.entry.begun = now
	return true
}

// request deals with a head that was parsed and is size octets long.
func (f *Flow) request(now Instant, d *Desk, h *h1.Head, size int) {
	x := f.x
	rules := f.listener.Rules
	x.method, x.minor, x.status, x.route = h.Method, h.Minor, 0, 0
	x.flags &= greeting
	switch {
	case h.Close:
		x.flags |= last | parting
	case rules.KeepaliveTimeout == 0 || d.InForce(f.listener) == nil || h.Method == h1.CONNECT:
		// The listener is gone, or speaks something else; or, what was said in the
		// hope of a tunnel is not taken for a request if there is none.
		x.flags |= last
	}
	if upgrades(h) || h.Method == h1.CONNECT {
		x.flags |= upgrading
	}
	x.body[Client] = h1.NewBody(h.Framing, h.Length)
	x.body[Backend] = h1.Body{}
	in := &x.in[Client]
	in.take(size)
	source := f.source(h)
	f.note(d, h, source)
	if rules.BodyMax > 0 && h.Framing == h1.ByLength && h.Length > rules.BodyMax {
		f.answer(now, d, 413, BadRequest)
		return
	}
	n := route(rules, h, source)
	if wait := f.limited(now, d, n, source); wait > 0 {
		x.route = int16(n + 1)
		f.blame(RateLimited)
		f.give(now, d, appendLimited(d.Build[:0], wait, h.Method == h1.HEAD, f.closes(), h.Minor), 429)
		return
	}
	if dotted(h.Path.Of(h.Octets)) && (n >= 0 && rules.Routes[n].Match.ByPath() || f.anyByPath()) {
		// Where it leads depends on who resolves the dots.
		f.answer(now, d, 400, BadRequest)
		return
	}
	if n < 0 {
		f.give(now, d, appendAnswer(d.Build[:0], 404, h.Method == h1.HEAD, f.closes(), h.Minor), 404)
		return
	}
	rt := rules.Routes[n]
	x.route = int16(n + 1)
	switch {
	case rt.Redirect != nil:
		f.give(now, d, appendRedirect(d.Build[:0], h, rt.Redirect, f.cameBy(h), f.closes(), h.Minor), rt.Redirect.Status)
		return
	case rt.Respond != nil:
		f.giveRespond(now, d, rt.Respond)
		return
	}
	d.picks++
	b := d.Config.Backends[choose(rt, d.picks)]
	if b == nil {
		// The listener has left the configuration, and its backends as well.
		x.flags |= last
		f.answer(now, d, 503, NoEndpoint)
		return
	}
	f.backend, f.place, f.tried = b, 0, 0
	f.known(d, h, source)
	f.at = after(now, b.QueueTime)
	f.become(Queued)

	p := party{client: f.client.AddrPort().Addr(), trusted: f.trusted(), vip: f.listener.VIP, id: f.id, number: uint64(f.requests)}
	head := appendRequest(d.Build[:0], h, rules, rt, &p)
	if (h.Method.Idempotent() || planted.Bug(35)) && x.body[Client].Done() && x.flags&upgrading == 0 {
		x.flags |= repeatable
	}
	rest := in.rest()
	taken, out := 0, 0
	if !x.body[Client].Done() {
		var err *h1.Error
		if taken, out, err = x.body[Client].Feed(rest, false); err != nil {
			f.refuse(now, d, err)
			return
		}
		in.take(taken)
	}
	leg := &f.legs[Backend]
	leg.buf, leg.off, leg.lent = d.place(head, rest[:out]), 0, false
	leg.received, leg.sent = 0, 0
	// What is known of the leg of the request before is not of this one.
	leg.ended, leg.broken, leg.fulls = false, false, 0
	if x.flags&repeatable != 0 {
		leg.keep = true
	}
	if f.large(Client) {
		f.legs[Client].fulls = bulkAfter
	}
	if f.excessive() {
		f.answer(now, d, 413, BadRequest)
	}
}

// trusted tells whether the client is a proxy whose word about its own clients
// counts.
func (f *Flow) trusted() bool {
	trust := f.listener.Rules.Trust
	return len(trust) > 0 && config.Holds(trust, f.client.AddrPort().Addr())
}

// cameBy is the scheme by which a client asks: what a proxy before us that is
// trusted says, else our own.
func (f *Flow) cameBy(h *h1.Head) string {
	if i := h.Index(h1.XForwardedProto); i >= 0 && f.trusted() && same(h.Fields[i].Value.Of(h.Octets), "https") {
		return "https"
	}
	return "http"
}

// anyByPath tells whether a path decides anything here.
func (f *Flow) anyByPath() bool {
	for _, rt := range f.listener.Rules.Routes {
		if rt.Match.ByPath() {
			return true
		}
	}
	return false
}

// excessive tells whether the client sends more content than it may.
func (f *Flow) excessive() bool {
	most := f.listener.Rules.BodyMax
	return most > 0 && f.x.body[Client].Content() > most
}

// large tells whether the rest of a body is worth a pipe at once.
func (f *Flow) large(s Side) bool { return f.x.body[s].Bare() >= 2*relayLeast }

// place gives head and rest in one piece. Where rest lies in the scratch, there
// may be room for the head in front of it. head is in Build.
func (d *Desk) place(head, rest []byte) []byte {
	if len(rest) == 0 {
		return head
	}
	// Slices of the scratch end where it ends, so their capacities tell how far
	// apart they begin.
	at := cap(d.Scratch) - cap(rest)
	if at >= len(head) && at < len(d.Scratch) && &d.Scratch[at] == &rest[0] {
		copy(d.Scratch[at-len(head):], head)
		return d.Scratch[at-len(head) : at+len(rest)]
	}
	return append(head, rest...)
}

// closes tells whether the client's connection ends with an answer of our own:
// because it was to, or because the request has a body that nobody reads.
func (f *Flow) closes() bool {
	if !f.x.body[Client].Done() {
		f.x.flags |= last
	}
	return f.x.flags&last != 0
}

// refuse answers what is no request and ends the connection.
func (f *Flow) refuse(now Instant, d *Desk, err *h1.Error) { f.answer(now, d, err.Status, BadRequest) }

// answer gives up on the request: the client is told by status, if it was told
// nothing yet, or else by RST. Whether its connection goes on depends on what
// is left of the request.
func (f *Flow) answer(now Instant, d *Desk, status int, c Cause) {
	x := f.x
	if x.status != 0 && f.state != Reading {
		f.end(c)
		return
	}
	if c == BadRequest || c == HeadTimeout {
		x.flags |= last | bad
	}
	f.blame(c)
	if len(f.legs[Client].due()) > 0 {
		f.Settle(d.Lender) // a 1xx may lie where the answer is to be built
	}
	f.give(now, d, appendAnswer(d.Build[:0], status, x.method == h1.HEAD, f.closes(), x.minor), status)
}

// giveRespond answers by what the configuration says.
func (f *Flow) giveRespond(now Instant, d *Desk, rs *config.Respond) {
	if len(f.legs[Client].due()) > 0 {
		f.Settle(d.Lender)
	}
	f.give(now, d, appendRespond(d.Build[:0], rs, f.x.method == h1.HEAD, f.closes(), f.x.minor), rs.Status)
}

// give sends an answer of our own.
func (f *Flow) give(now Instant, d *Desk, octets []byte, status int) {
	f.legs[Backend].drop(d.Lender)
	f.part(false)
	f.x.status = uint16(status)
	f.x.flags |= ours
	c := &f.legs[Client]
	if due := c.due(); len(due) > 0 { // a 1xx
		octets = joined(due, octets)
	}
	c.drop(d.Lender)
	c.buf, c.off, c.lent = octets, 0, false
	f.at = now
	d.Tally.Responses[status/100]++
	d.Tally.Own++
	f.become(Answering)
}

// answering sends it.
func (f *Flow) answering(now Instant, e *Event) {
	switch e.Kind {
	case Wrote:
		f.wrote(now, e)
		if len(f.legs[Client].due()) == 0 {
			f.over(now, e.Desk)
		}
	case Crept:
		f.crept(now, e)
	case Broke, Deafened:
		f.end(ClientReset)
	case Expired:
		f.end(IdleTimeout)
	case Kill:
		f.kill(e)
	default:
		f.impossible(e)
	}
}

func (f *Flow) wrote(now Instant, e *Event) {
	f.took(e)
	f.at = now
}

// lingering waits until the client has taken what was sent: a socket that is
// closed while octets of the peer are unread answers by RST, which takes the
// answer away from whom it was for (RFC 9112, section 9.6).
func (f *Flow) lingering(now Instant, e *Event) {
	cause := Finished
	switch {
	case f.x.flags&halted != 0:
		cause = Killed
	case f.x.flags&bad != 0 && f.x.status == 408:
		cause = HeadTimeout
	case f.x.flags&bad != 0:
		cause = BadRequest
	case f.x.flags&ours != 0:
		cause = Refused
	}
	switch e.Kind {
	case Wrote:
		f.took(e)
	case HasShut:
		f.legs[Client].shut = true
	case Received:
		// Thrown away, until it ends or its time is over: a client that only
		// writes must not lose the answer for that.
		f.legs[Client].received += uint64(e.N)
	case Ended, Expired, Broke, Deafened:
		f.end(cause)
		f.marks |= gentle
	case Kill:
		f.kill(e)
	default:
		f.impossible(e)
	}
}

// over ends an exchange whose response was sent to the last octet: for the next
// request, or for ever.
func (f *Flow) over(now Instant, d *Desk) {
	x := f.x
	f.tell(now, d)
	switch {
	case x.flags&last != 0 && (x.flags&(parting|bad) != parting || x.body[Client].Framing() != h1.NoBody || len(x.in[Client].rest()) > 0):
		// Who asked for the end says no more, but for what some say behind a body:
		// an empty line (RFC 9112, section 2.2).
		f.at = now.Add(LingerMax)
		f.become(Lingering)
		f.legs[Backend].drop(d.Lender)
		x.in[Client].drop(d.Lender)
	case x.flags&last != 0:
		f.end(Finished)
	default:
		f.become(Reading)
		f.at = after(now, idleTimeout(f.listener.Rules))
		if rest := x.in[Client].rest(); len(rest) > 0 {
			if !blank(rest) {
				f.at = after(now, f.listener.Rules.HeaderTimeout)
			}
			// Pipelined: the place is used again.
			f.legs[Backend].drop(d.Lender)
			f.legs[Client].drop(d.Lender)
			f.backend = nil
			for i := range f.legs {
				f.legs[i].attempts, f.legs[i].facts, f.legs[i].spent = 0, 0, 0
			}
			x.in[Backend].drop(d.Lender)
			in := x.in[Client]
			in.scanned, in.starved = 0, false
			*x = exchange{in: [2]inbox{Client: in}}
			f.enter(now, len(rest), d.Lender)
			return
		}
		f.rest(d.Lender)
	}
}

// rest gives back all but what an idle flow needs.
func (f *Flow) rest(l *Lender) {
	c := &f.legs[Client]
	f.received += c.received
	f.sent += c.sent
	f.Drop(l)
}

// dialed begins what follows once the backend leg is there.
func (f *Flow) dialed(e *Event) {
	if f.x != nil {
		if e.Reused {
			f.x.flags |= reused
			e.Desk.Tally.Reused++
		} else {
			f.x.flags &^= reused
		}
	}
	if v := f.backend.ProxyHeader; v != config.NoProxyHeader {
		h := &f.legs[Backend]
		var room [proxyproto.HeadMost]byte
		header := proxyproto.Append(room[:0], uint8(v), f.client.AddrPort(), e.Local)
		octets := joined(header, h.due())
		h.drop(e.Desk.Lender)
		h.buf = octets
		if f.x == nil {
			// Octets of ours: the account of what passed begins behind them.
			f.legs[Client].received += uint64(len(header))
		} else {
			f.x.flags |= spoilt // the leg speaks for this client alone
			f.x.flags &^= repeatable
		}
	}
}

// exchanging is what a flow hears while a request and its response pass.
func (f *Flow) exchanging(now Instant, e *Event) {
	leg := &f.legs[e.Leg]
	switch e.Kind {
	case Received:
		leg.received += uint64(e.N)
		f.at = now
		if e.Leg == Client {
			f.content(now, e)
		} else {
			f.response(now, e)
		}
	case Wrote:
		f.wrote(now, e)
	case Relayed:
		leg.received += uint64(e.N)
		f.legs[e.Leg.Other()].sent += uint64(e.N)
		f.x.body[e.Leg].Passed(uint64(e.N))
		f.at = now
		if e.Leg == Client && f.excessive() {
			f.answer(now, e.Desk, 413, BadRequest)
			return
		}
	case Slackened:
		leg.fulls = 0
		return
	case Crept:
		f.crept(now, e)
		return
	case Ended:
		f.ended(now, e)
	case Broke, Deafened:
		f.broke(now, e)
	case Expired:
		switch {
		case f.x.status != 0:
			f.end(IdleTimeout)
		case f.x.flags&deafened != 0:
			f.shown(now, e.Desk, false)
			f.answer(now, e.Desk, 502, BackendReset)
		case !f.x.body[Client].Done() && len(f.legs[Backend].due()) == 0:
			f.answer(now, e.Desk, 408, HeadTimeout) // the client did not go on
		default:
			f.shown(now, e.Desk, false)
			f.answer(now, e.Desk, 504, AnswerTimeout)
		}
		return
	case Kill:
		f.kill(e)
		return
	default:
		f.impossible(e)
	}
	if f.state == Relaying && f.x != nil {
		f.progress(now, e.Desk)
	}
}

// content passes on what the client says after the head.
func (f *Flow) content(now Instant, e *Event) {
	x := f.x
	in := &x.in[Client]
	n, out, err := x.body[Client].Feed(e.Octets, false)
	if err != nil {
		x.flags |= spoilt
		f.refuse(now, e.Desk, err)
		return
	}
	if n < len(e.Octets) {
		in.fill(e.Octets[n:], e.Desk.Lender) // the next request
	}
	h := &f.legs[Backend]
	h.drop(e.Desk.Lender)
	h.buf = e.Octets[:out]
	f.full(Client, e.Full)
	if f.excessive() {
		f.answer(now, e.Desk, 413, BadRequest)
	}
}

// full notes whether reads from a leg come full.
func (f *Flow) full(s Side, full bool) {
	leg := &f.legs[s]
	if !full {
		leg.fulls = 0
	} else if leg.fulls < bulkAfter {
		leg.fulls++
	}
}

// response passes on what the backend says: heads, and the body of the last.
func (f *Flow) response(now Instant, e *Event) {
	x, d := f.x, e.Desk
	in, c := &x.in[Backend], &f.legs[Client]
	if !f.picky() {
		f.unkeep(d)
	}
	if x.status != 0 {
		n, out, err := x.body[Backend].Feed(e.Octets, x.flags&dechunked != 0)
		if err != nil {
			f.end(BadResponse)
			return
		}
		if n < len(e.Octets) {
			x.flags |= spoilt // it says more than it was asked for
		}
		c.buf, c.off, c.lent = e.Octets[:out], 0, false
		f.full(Backend, e.Full)
		return
	}
	rules := f.listener.Rules
	lim := limits(rules)
	rt := f.ruling()
	in.fill(e.Octets, d.Lender)
	h, out := &d.head, d.Build[:0]
	for {
		size, scanned, err := h1.Scan(in.rest(), int(in.scanned), &lim)
		if err == nil && size == 0 {
			in.scanned = uint32(scanned)
			break
		}
		if err == nil {
			err = h.Response(in.rest()[:size], x.method, &lim)
		}
		if err != nil || h.Status == 101 && (x.flags&upgrading == 0 || x.method == h1.CONNECT) {
			f.shown(now, d, false)
			f.answer(now, d, 502, BadResponse)
			return
		}
		if h.Status == 101 || x.method == h1.CONNECT && h.Status/100 == 2 {
			f.answered(now, d, h.Status)
			var own []byte
			if h.Status == 101 { // no other response will come; a client takes cookies of this one (RFC 6455, section 4.1)
				own = f.cookie(d, h)
			}
			out = appendResponse(out, h, rules, rt, own, x.minor, false, false)
			in.take(size)
			f.tunnel(d, out, h.Status)
			return
		}
		if h.Status < 200 {
			if x.minor > 0 && !planted.Bug(42) { // RFC 9110, section 15.2: none to HTTP/1.0
				if len(out)+size > cap(out)/2 {
					f.shown(now, d, false)
					f.answer(now, d, 502, BadResponse) // no end of them
					return
				}
				f.unkeep(d)
				out = appendResponse(out, h, rules, rt, nil, 1, false, false)
				d.Tally.Responses[1]++
			}
			in.take(size)
			if len(in.rest()) == 0 {
				break
			}
			continue
		}
		f.answered(now, d, h.Status)
		if f.unwanted(now, d, h, size) {
			return
		}
		f.unkeep(d)
		x.status = uint16(h.Status)
		d.Tally.Responses[min(h.Status/100, 5)]++
		if h.Close || h.Framing == h1.UntilClose {
			x.flags |= spoilt
		}
		if h.Framing == h1.UntilClose || !x.body[Client].Done() {
			x.flags |= last
		}
		if h.Framing == h1.Chunked && x.minor == 0 {
			x.flags |= dechunked | last
		}
		out = appendResponse(out, h, rules, rt, f.cookie(d, h), x.minor, x.flags&last != 0, x.flags&dechunked != 0)
		x.body[Backend] = h1.NewBody(h.Framing, h.Length)
		in.take(size)
		rest := in.rest()
		n, pass := 0, 0
		if !x.body[Backend].Done() {
			var err *h1.Error
			if n, pass, err = x.body[Backend].Feed(rest, x.flags&dechunked != 0); err != nil {
				f.answer(now, d, 502, BadResponse)
				return
			}
		}
		if n < len(rest) {
			x.flags |= spoilt
		}
		out = d.place(out, rest[:pass])
		in.drop(d.Lender)
		if f.large(Backend) {
			f.legs[Backend].fulls = bulkAfter
		}
		break
	}
	if len(out) > 0 {
		x.flags |= begun
		c.buf, c.off, c.lent = out, 0, false
	}
	// A head of the response that is half read waits in the inbox.
}

// ruling is the route of the exchange, nil if the listener that had it is gone.
func (f *Flow) ruling() *config.Route {
	if n := int(f.x.route) - 1; n >= 0 && n < len(f.listener.Rules.Routes) {
		return f.listener.Rules.Routes[n]
	}
	return nil
}

// tunnel ends HTTP on the flow: from now on octets pass as they are.
func (f *Flow) tunnel(d *Desk, head []byte, status int) {
	x, t := f.x, f.entry
	t.status, t.route, t.minor, t.reused = uint16(status), x.route, x.minor, x.flags&reused != 0
	t.compact(d.Lender)
	c, b := &f.legs[Client], &f.legs[Backend]
	rest := x.in[Backend].rest()
	c.buf, c.off, c.lent = d.place(head, rest), 0, false
	x.in[Backend].drop(d.Lender)
	if in := &x.in[Client]; len(in.rest()) > 0 {
		// It said more than the request in the hope of a tunnel.
		octets := joined(b.due(), in.rest())
		in.drop(d.Lender)
		b.drop(d.Lender)
		b.buf = octets
	}
	d.Lender.exchanges.giveBack(x)
	f.x = nil
	d.Tally.Tunnels++
	d.Tally.Responses[1]++
	// The accounts of a tunnel must balance, as those of TCP do.
	f.received += c.received - uint64(len(b.due()))
	f.sent += c.sent
	c.received, c.sent = uint64(len(b.due())), 0
	b.received, b.sent = uint64(len(c.buf)), 0
}

// ended: FIN came from a leg, after all it sent.
func (f *Flow) ended(now Instant, e *Event) {
	x, leg := f.x, &f.legs[e.Leg]
	leg.ended = true
	if e.Leg == Client {
		// Half of a request is none. It is told so in case it still listens.
		x.flags |= last | spoilt
		f.answer(now, e.Desk, 400, BadRequest)
		return
	}
	x.flags |= spoilt
	if x.status == 0 {
		f.unanswered(now, e.Desk, 502, BackendReset)
		return
	}
	if x.flags&severed != 0 {
		// A write was told of the reset, so a read is not (net/ipv4/tcp.c,
		// tcp_recvmsg_locked: 0 of a socket that is closed).
		f.broke(now, &Event{Kind: Broke, Leg: Backend, Desk: e.Desk})
		return
	}
	if err := x.body[Backend].End(); err != nil {
		f.truncated()
	}
}

// broke: a leg was reset, or takes nothing any more.
func (f *Flow) broke(now Instant, e *Event) {
	x := f.x
	switch {
	case e.Leg == Client:
		f.end(ClientReset)
	case e.Kind == Deafened:
		// It may have answered before it stopped listening.
		x.flags |= deafened | spoilt
		if e.Severed {
			x.flags |= severed
		}
		if b := &f.legs[Backend]; !b.keep {
			b.drop(e.Desk.Lender)
		} else {
			b.off = uint32(len(b.buf))
		}
	case f.endpoint == nil: // its part is over
	case x.status == 0:
		f.unanswered(now, e.Desk, 502, BackendReset)
	case x.body[Backend].Done():
		// It has answered in full and takes no more of the request. The client's
		// due is whole.
		x.flags |= deafened | spoilt
		f.legs[Backend].drop(e.Desk.Lender)
	default:
		x.flags |= spoilt
		f.truncated()
	}
}

// truncated: the response ends before its end. What came of it is the client's
// due, and then RST: it must not take it for all.
func (f *Flow) truncated() {
	f.legs[Backend].broken = !planted.Bug(40)
	f.x.flags |= last
}

// unanswered: the backend leg is gone and no response has begun. Where that is
// safe the request is sent again: on a leg that is new, if this one was pooled, for
// then it may have been dead before; or else to another endpoint, if that is
// wanted.
func (f *Flow) unanswered(now Instant, d *Desk, status int, c Cause) {
	x, b := f.x, &f.legs[Backend]
	safe := x.flags&(repeatable|begun) == repeatable && b.keep && len(x.in[Backend].rest()) == 0
	if !safe || x.flags&reused == 0 {
		f.shown(now, d, false)
	}
	if safe && x.flags&reused == 0 && f.backend.Retry.Reset && int(b.attempts) < f.backend.RetryMax {
		f.strike()
		f.resend(now, d, false)
		return
	}
	if !safe || x.flags&reused == 0 {
		f.answer(now, d, status, c)
		return
	}
	d.Tally.Repeated++
	x.flags = x.flags&^(reused|deafened|spoilt) | fresh
	b.off, b.ended, b.broken = 0, false, false
	if planted.Bug(37) {
		b.off = 1
	}
	if planted.Bug(41) {
		x.flags &^= fresh
	}
	b.received, b.sent = 0, 0
	f.connected(now)
	f.part(false)
	f.at = after(now, f.backend.QueueTime)
	f.become(Queued)
}

// progress sees how far an exchange has come.
func (f *Flow) progress(now Instant, d *Desk) {
	x := f.x
	c, b := &f.legs[Client], &f.legs[Backend]
	if b.broken {
		switch {
		case len(c.due()) > 0:
		case b.ended:
			f.end(BadResponse)
		default:
			f.end(BackendReset)
		}
		return
	}
	if x.status == 0 || !x.body[Backend].Done() {
		return
	}
	// All of the response is here. The leg is free for others as soon as all of
	// the request is there.
	if f.endpoint != nil {
		whole := (x.body[Client].Done() || planted.Bug(39)) && len(b.due()) == 0 && x.flags&deafened == 0
		if whole || len(c.due()) == 0 || x.flags&deafened != 0 {
			f.part(whole && (x.flags&spoilt == 0 || planted.Bug(30)))
			b.drop(d.Lender)
		}
	}
	if len(c.due()) == 0 {
		f.over(now, d)
	}
}

// idleTimeout is how long a client may take until its next request, or its
// first: where no connection is kept, one that is must not stay for ever.
func idleTimeout(r *config.Rules) time.Duration {
	if r.KeepaliveTimeout == 0 {
		return r.HeaderTimeout
	}
	return r.KeepaliveTimeout
}
