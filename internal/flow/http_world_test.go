package flow

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/proxyproto"
)

// httpObjects is the configuration of the tests of HTTP: a listener for each
// way in, backends with and without a PROXY header on the way out.
var httpObjects = func() exact {
	const (
		web = `
    protocol: http
    backend: many
    routes:
      - { match: { path: /moved/ }, redirect: { host: elsewhere, status: 308 } }
      - { match: { path: /hello/ }, respond: { status: 200, body: "hello\n" } }
      - { match: { path: /told/ }, backend: told }
      - { match: { path: /quick/ }, backend: many, answerTimeout: 1s }
      - { match: { path: /again/ }, backend: again, priority: high }
      - { match: { path: /stick/ }, backend: sticky, headers: { response: { remove: [ Set-Cookie ], set: { X-Edited: "1" } } } }
      - { match: { path: /plainly/ }, backend: open }
      - { match: { path: /hash/ }, backend: hashed, priority: low }
      - { match: { path: /sink/ }, backend: sinks }
      - { match: { path: /falls/ }, backend: falls, rate: { requests: 5/s } }
      - { match: { path: /sorry/ }, backend: sorry }
    http:
      via: lb
      limits: { head: 1KiB, line: 300B, body: 64KiB }
      timeouts: { header: 5s, body: 8s, tunnel: 60s, keepalive: `
		many = `
    connectTimeout: 1s
    answerTimeout: 3s
    retry: { max: 2 }
    limits: { queue: 10, queueTime: 4s }
    endpoints: [ { name: e1, address: 10.0.0.31:80 }, { name: e2, address: 10.0.0.32:80 }, { name: e3, address: 10.0.0.33:80 } ]`
	)
	retrying := strings.Replace(many, "retry: { max: 2 }", "retry: { max: 2, on: [ connect, reset, 503 ], budget: 20% }", 1)
	c, _, err := config.Parse("test.yaml", []byte(`
listeners:
  web:
    vip: 10.0.0.5:80`+web+`20s }
  greeted:
    vip: 10.0.0.5:81
    proxyProtocol: { from: [ 192.0.2.0/24 ] }`+web+`20s }
  brief:
    vip: 10.0.0.5:82
    accessLog: off
    proxyProtocol: { from: [ 192.0.2.0/24 ] }`+web+`0s }
  strict: { vip: 10.0.0.5:83, protocol: http, routes: [ { match: { path: /only/ }, backend: many } ] }
  plain: { vip: 10.0.0.5:84, backend: toldToo, proxyProtocol: { from: [ 192.0.2.0/24 ] } }
accessLog: { to: stderr }
backends:
  many:`+many+`
  again:`+retrying+`
  sticky:`+retrying+`
    sticky: { cookie: { name: hf, key: "`+cookieKeyOfTests+`", maxAge: 1h, secure: true, sameSite: Lax, domain: example.org } }
  open:`+many+`
    sticky: { cookie: { name: hf } }
  hashed:`+many+`
    balance: maglev
    hash: { by: header, name: X-User }
  sinks:
    endpoints: [ { name: e1, drop: hold }, { name: e2, drop: reset }, { name: e3, drop: 503 } ]
  falls:`+retrying+`
    fallback: { backend: sticky }
  sorry:`+retrying+`
    fallback: { respond: { status: 200, body: "sorry\n" } }
  told:`+many+`
    proxyProtocol: v1
  toldToo:`+many+`
    proxyProtocol: v2
`), nil)
	if err != nil {
		panic(err)
	}
	return exact{c}
}()

const cookieKeyOfTests = "a key of the tests, long enough"

// wallAt is the time on the wall when a world begins, in seconds.
const wallAt = 1_700_000_000

// greetedAs is whom PROXY headers speak of.
var greetedAs = netip.MustParseAddrPort("198.51.100.9:99")

// httpScratch is small, so that many turns fit into a short script, and holds
// the largest head that is allowed.
const httpScratch = 2 << 10

// junk is what lies in the scratch and where heads are built, between steps.
var junk = [Headroom]byte([]byte(strings.Repeat("junk", Headroom/4)))

// back is the kernel of a backend leg, and the server behind it.
type back struct {
	kern
	number    int
	endpoint  *config.Endpoint
	pending   []byte   // what the server is about to say
	muttering bool     // and only says with what comes next
	slow      bool     // the server takes octets only when the script says so
	idle      bool     // between two flows' requests, in the pool
	told      bool     // a PROXY header comes first
	raw       bool     // it said what the script says, be it HTTP or not
	answered  int      // requests that the server has answered, or begun to
	tunnel    int      // 1 + where in got a tunnel begins; 0: there is none
	tunneled  int      // octets the server said in the tunnel
	parting   bool     // it said that it ends
	busy      []string // targets of requests that it answered 503
}

// request is what the client asks for.
type request struct {
	method, target string
	body           int // octets of content
	minor          int
	tunnel         bool   // octets follow that are no HTTP, if it is granted
	stuck          string // the endpoint that its cookie names
	good           int    // until when, in seconds
}

// hop is one step of a script.
type hop struct {
	verb string
	side Side
	n    int
	text string
	arg  string
}

func (o hop) String() string {
	who := ""
	switch o.verb {
	case "says", "takes", "room", "fin", "rst", "slow", "body", "vanishes":
		who = o.side.String() + " "
	case "answers", "mutters":
		who = "backend "
	}
	out := who + o.verb
	if o.arg != "" {
		out += " " + o.arg
	}
	if o.n != 0 || slices.Contains([]string{"takes", "room"}, o.verb) {
		out += " " + strconv.Itoa(o.n)
	}
	if o.text != "" {
		out += " " + strconv.Quote(o.text)
	}
	return out
}

// httpScript is what happens, and what the client asked for by it.
type httpScript struct {
	listener string
	bulk     bool // use pipes where the flow wants
	manual   bool // the script says what becomes of dials
	raw      bool // the client says what is no HTTP
	asked    []request
	hops     []hop
	pace     []int // octets a step that each peer says: all if empty
}

// httpWorld is a flow that speaks HTTP, between the kernel of its client's leg
// and those of its backend legs, one after another.
type httpWorld struct {
	*httpScript
	moving
	desk    *Desk
	client  kern
	pending []byte // what the client is about to say
	slow    bool
	backs   []*back
	cur     *back // the flow's
	dialing bool  // a leg is being dialled
	rough   bool  // what came in a pipe met an end: how far octets got may differ
	acts    int
	beats   int
	at      int // the step under way
	// What would explain an answer of ours.
	refused, troubled, waited, expired bool
	wait                               time.Duration // what the rates say
	limited                            int           // requests that had to wait
	stingy                             bool          // no budget for retries
	paidFor                            int           // retries that the budget gave
	tunneled                           int           // octets the client said in a tunnel
	done                               bool
	moved                              bool
	statuses                           []int // of the final answers that the client got
}

func newHTTPWorld(s *httpScript) *httpWorld {
	w := &httpWorld{httpScript: s, moving: moving{now: 1e9}}
	w.desk = NewDesk(&w.lender)
	w.desk.Scratch = make([]byte, Headroom+httpScratch)
	w.desk.Build = make([]byte, 0, 2*httpScratch)
	w.desk.Config = httpObjects.Config
	w.desk.Limits, w.desk.Retries, w.desk.Report = w, w, w.books.take
	w.desk.Wall = wallAt
	w.piped = s.bulk
	w.client.room = 1 << 20
	l := httpObjects.Listeners[s.listener]
	var b *config.Backend
	if l.Protocol == config.TCP {
		b = httpObjects.Backends[l.BackendName]
	}
	w.f = New(w.now, 0xabc<<40|7, l, b, AddressOf(netip.MustParseAddrPort("192.0.2.7:4711")), &w.lender)
	return w
}

func (w *httpWorld) Steps() int { return len(w.hops) }

// Scratch is the runner's: after a step nobody may rely on it, nor on what was
// built.
func (w *httpWorld) Scratch() []byte {
	copy(w.desk.Build[:cap(w.desk.Build)], junk[:])
	copy(w.desk.Scratch, junk[:])
	return w.desk.Scratch[Headroom:]
}

func (w *httpWorld) step(e Event) bool {
	e.Desk = w.desk
	w.desk.Outcome = Outcome{}
	w.f.Step(w.now, e)
	if o := w.desk.Outcome; o.Set {
		w.told = append(w.told, fmt.Sprintf("outcome good %t after %v", o.Good, o.Took))
		if o.Took < 0 || w.cur == nil {
			panic("an outcome of no endpoint")
		}
	}
	return true
}

// Pass is what the rates say: a [Limiter].
func (w *httpWorld) Pass(_ int64, l *config.Listener, route int, source netip.Addr) time.Duration {
	if l.Rules.Routes[route].Rate == nil || source != w.f.Client().Addr() {
		panic("asked without need")
	}
	if w.wait > 0 {
		w.limited++
	}
	return w.wait
}

// AllowRetry is what the budget says: a [Retrier].
func (w *httpWorld) AllowRetry(c *config.Backend, a *ledger.Asking) bool {
	if !a.Retry || a.Tried == 0 || c != w.f.Backend() {
		panic("asked for the wrong thing")
	}
	if !w.stingy {
		w.paidFor++
	}
	return !w.stingy
}

// leg is the kernel of a leg; of the backend's it may be nil.
func (w *httpWorld) leg(s Side) *kern {
	switch {
	case s == Client:
		return &w.client
	case w.cur == nil:
		return nil
	}
	return &w.cur.kern
}

// target is the backend leg that the script means: the flow's, or the last.
func (w *httpWorld) target() *back {
	if w.cur != nil || len(w.backs) == 0 {
		return w.cur
	}
	return w.backs[len(w.backs)-1]
}

func (w *httpWorld) Step(i int) {
	w.at = i
	w.told = nil
	o := w.hops[i]
	b := w.target()
	switch o.verb {
	case "says":
		if o.side == Client {
			w.pending = append(w.pending, o.text...)
		} else if b != nil {
			b.pending, b.raw, w.troubled = append(b.pending, o.text...), true, true
		}
	case "body": // octets of a tunnel
		if o.side == Client {
			w.pending = append(w.pending, octets(Client, w.tunneled, o.n)...)
			w.tunneled += o.n
		} else if b != nil && b.tunnel > 0 {
			b.pending = append(b.pending, octets(Backend, b.tunneled, o.n)...)
			b.tunneled += o.n
		}
	case "answers", "mutters":
		if b != nil && !b.fin && !b.rst {
			w.answers(b, o.arg, o.n)
			b.muttering = o.verb == "mutters"
		}
	case "fin":
		w.beatAll(o.side, o.arg == "now")
		if o.side == Client {
			w.client.fin = w.client.fin || !w.client.rst && !w.client.closed
		} else if b != nil {
			b.fin = b.fin || !b.rst && !b.closed
			w.troubled = true
			w.rough = w.rough || w.bulk
		}
	case "rst":
		w.beatAll(o.side, o.arg == "now")
		if o.side == Client {
			if !w.client.closed {
				w.client.rst, w.client.out = true, nil
				w.rough = true
			}
		} else if b != nil && !b.closed {
			b.rst, b.out = true, nil
			w.troubled = true
			w.rough = w.rough || w.bulk
		}
	case "vanishes": // the kernel gives up on the peer, without a read
		w.troubled = true
		if o.side == Client {
			w.client.rst, w.client.out, w.rough = true, nil, true
		}
		if b != nil && o.side == Backend {
			b.rst, b.fin, b.in, b.out = true, true, nil, nil
			w.rough = w.rough || w.bulk
		}
		if w.f.State() == Relaying && (o.side == Client || w.cur != nil) && !isBroken(&w.f, o.side) {
			w.step(Event{Kind: Broke, Leg: o.side})
		}
	case "slow":
		if o.side == Client {
			w.slow = true
		} else if b != nil {
			b.slow = true
		}
	case "takes":
		if o.side == Client {
			w.client.take(o.n)
		} else if b != nil {
			b.take(o.n)
		}
	case "room":
		if o.side == Client {
			w.client.room = o.n
		} else if b != nil {
			b.room = o.n
		}
	case "secured":
		w.secured(o.n)
	case "unavailable", "rejected", "tripped", "spent":
		if w.f.State() == Queued {
			w.refused = true
			e := Event{Kind: Unavailable, Why: map[string]Cause{"tripped": BreakerOpen, "spent": RetriesSpent}[o.verb]}
			if o.verb == "rejected" {
				e.Kind = Rejected
			}
			w.step(e)
		}
	case "limited":
		w.wait = time.Duration(o.n) * time.Millisecond
	case "stingy":
		w.stingy = o.n == 0
	case "dialed":
		w.dialed(o.arg == "fresh")
	case "dial-failed":
		if w.f.State() == Dialing {
			w.refused = true
			w.dialing = false
			w.step(Event{Kind: DialFailed})
		}
	case "place":
		if w.f.State() == Queued && w.f.Place() == 0 {
			w.f.SetPlace(uint64(i) + 41)
		}
	case "wait":
		w.now = w.now.Add(time.Duration(o.n) * time.Millisecond)
		w.desk.Wall = wallAt + int64(w.now/1e9)
		w.waited = true
		var wants Wants
		if w.f.Wants(&wants); wants.Deadline != 0 && wants.Deadline <= w.now && !wants.Done {
			w.expired = true
			w.step(Event{Kind: Expired})
		}
	case "kill":
		if w.f.State() != Done && o.n&2 != 0 {
			w.finish(func(e Event) { w.step(e) })
		} else if w.f.State() != Done {
			w.step(Event{Kind: Kill, Why: []Cause{NotEnded, Shed}[o.n&1]})
		}
	case "tick":
	default:
		panic(o.verb)
	}
	w.beat()
	w.run()
}

// run lets the flow and its peers do all they can.
func (w *httpWorld) run() {
	for more := true; more; {
		w.drive()
		more = w.take()
	}
}

// beat lets peers say what they are about to, at the pace of the script.
func (w *httpWorld) beat() {
	most := 1 << 30
	if len(w.pace) > 0 {
		most = w.pace[w.beats%len(w.pace)]
		w.beats++
	}
	say := func(k *kern, pending *[]byte) {
		n := min(most, len(*pending))
		if !k.fin && !k.rst && !k.closed {
			k.in = append(k.in, (*pending)[:n]...)
			k.said += n
		}
		*pending = (*pending)[n:]
	}
	say(&w.client, &w.pending)
	for _, b := range w.backs {
		if !b.muttering {
			say(&b.kern, &b.pending)
		}
		b.muttering = false
	}
}

// beatAll: what a peer was about to say comes before its end, or never.
func (w *httpWorld) beatAll(s Side, never bool) {
	if never {
		if s == Client {
			w.pending = nil
		} else if b := w.target(); b != nil {
			b.pending = nil
		}
		return
	}
	pace := w.pace
	w.pace = nil
	if s == Client {
		backs := w.backs
		w.backs = nil
		w.beat()
		w.backs = backs
	} else {
		pending := w.pending
		w.pending = nil
		w.beat()
		w.pending = pending
	}
	w.pace = pace
}

func (k *kern) take(n int) bool {
	n = min(n, len(k.out))
	k.got, k.out = append(k.got, k.out[:n]...), k.out[n:]
	return n > 0
}

// take lets peers take what they do not leave on purpose, and tells whether
// there was any.
func (w *httpWorld) take() (some bool) {
	if !w.slow {
		some = w.client.take(1 << 30)
	}
	for _, b := range w.backs {
		if !b.slow && b.take(1<<30) {
			some = true
		}
	}
	for s := Client; s <= Backend; s++ {
		if k := w.leg(s); k != nil && k.shut && len(k.out) == 0 && !k.wiped && !k.rst {
			k.ended = true
		}
	}
	return some
}

func (w *httpWorld) secured(n int) {
	if w.f.State() == Queued {
		var a ledger.Asking
		w.f.Ask(&a)
		ends := w.f.Backend().Endpoints
		if ends[0].Drop != config.NoDrop {
			w.refused = true
		}
		if i := a.Stuck - 1; i >= 0 && a.Tried>>i&1 == 0 && !w.manual {
			n = i
		}
		w.step(Event{Kind: Secured, Endpoint: ends[n%len(ends)], Stuck: n%len(ends) == a.Stuck-1})
	}
}

// dialed connects the leg that is wanted: one of the pool, if it may, or one
// that is new.
func (w *httpWorld) dialed(fresh bool) {
	if w.f.State() != Dialing {
		return
	}
	w.dialing = false
	e := Event{Kind: Dialed, Local: netip.MustParseAddrPort("10.0.0.5:80")}
	told := w.f.Backend().ProxyHeader != config.NoProxyHeader
	if !fresh && !w.f.Fresh() && !told && w.f.Speaks() == config.HTTP {
		for _, b := range slices.Backward(w.backs) {
			if !b.idle || b.endpoint != w.f.Endpoint() {
				continue
			}
			b.idle = false
			if w.f.Wary() && (len(b.in) > 0 || b.fin || b.rst) {
				b.closed = true
				continue
			}
			w.cur = b
			e.Reused = true
			w.step(e)
			return
		}
	}
	b := &back{number: len(w.backs), endpoint: w.f.Endpoint(), told: told}
	b.room = 1 << 20
	w.backs = append(w.backs, b)
	w.cur = b
	w.step(e)
}

// drive does what the loop's drive does, with levels instead of edges.
func (w *httpWorld) drive() {
	var wants Wants
	for {
		if w.acts++; w.acts > 1e6 {
			panic("the flow never comes to rest: " + w.Observe())
		}
		w.f.Wants(&wants)
		if (w.cur != nil || w.dialing) && w.f.Endpoint() == nil {
			w.letGo()
		}
		if wants.Done {
			w.end(wants.Abort)
			return
		}
		if !w.act(&wants) {
			break
		}
	}
	if w.f.Unsettled() {
		w.f.Settle(&w.lender)
	}
}

// letGo parts the flow from its backend leg.
func (w *httpWorld) letGo() {
	w.pipes = [2][]byte{}
	if w.dialing {
		if w.f.Reusable() {
			panic("a leg that was never connected is to be reused")
		}
		w.dialing = false
	}
	b := w.cur
	w.cur = nil
	if b == nil {
		return
	}
	if w.f.Reusable() && len(b.in) == 0 && !b.fin && !b.rst {
		b.idle = true
		return
	}
	b.close(false)
}

func (k *kern) close(abort bool) {
	if k.closed {
		return
	}
	k.closed = true
	if abort || len(k.in) > 0 {
		k.out, k.wiped = nil, true
	} else {
		k.shut = true
	}
}

func (w *httpWorld) end(abort [2]bool) {
	if w.done {
		return
	}
	w.done = true
	w.client.close(abort[Client])
	if w.cur != nil {
		w.cur.close(abort[Backend])
	}
	w.sum(w.now, &w.f)
	w.f.Drop(&w.lender)
	w.pipes = [2][]byte{}
}

// act does one thing that the flow wants and tells whether it did.
func (w *httpWorld) act(wants *Wants) bool {
	switch {
	case wants.Secure:
		if w.client.rst {
			return w.step(Event{Kind: Broke, Leg: Client})
		}
		if w.manual {
			return false
		}
		for i := range w.f.Backend().Endpoints {
			if w.f.Tried()>>i&1 == 0 {
				w.secured(i)
				return true
			}
		}
		return w.step(Event{Kind: Unavailable})
	case wants.Dial:
		w.dialing = true
		if w.client.rst {
			return w.step(Event{Kind: Broke, Leg: Client})
		}
		if w.manual {
			return false
		}
		w.dialed(false)
		return true
	case wants.Resume:
		if w.f.Unsettled() {
			w.f.Settle(&w.lender)
		}
		return w.step(Event{Kind: Resumed})
	}
	for s := Client; s <= Backend; s++ {
		k := w.leg(s)
		if out := wants.Out[s]; len(out) > 0 {
			if k.rst {
				kind := Broke
				if s == Backend && w.f.Speaks() == config.HTTP {
					kind = Deafened
				}
				return w.step(Event{Kind: kind, Leg: s})
			}
			if n := min(len(out), k.room-len(k.out)); n > 0 {
				k.out = append(k.out, out[:n]...)
				return w.step(Event{Kind: Wrote, Leg: s, N: n})
			}
		} else if wants.Shut[s] {
			k.shut = true
			return w.step(Event{Kind: HasShut, Leg: s})
		}
	}
	for s := Client; s <= Backend; s++ {
		k := w.leg(s)
		if w.bulk && (wants.Relay[s] || wants.Read[s] && len(w.pipes[s]) > 0) {
			if w.relay(s, wants.Most[s]) {
				return true
			}
			continue
		}
		if wants.Read[s] {
			if w.f.Unsettled() {
				w.f.Settle(&w.lender)
			}
			room := w.desk.Scratch[Headroom:]
			before := copy(room, w.f.Unread(s))
			if before == len(room) {
				panic("there is no room to read into")
			}
			n := copy(room[before:], k.in)
			switch {
			case n > 0:
				k.in = k.in[n:]
				return w.step(Event{Kind: Received, Leg: s, Octets: room[:before+n], N: n, Full: before+n == len(room)})
			case k.rst && !k.fin:
				return w.step(Event{Kind: Broke, Leg: s})
			case k.fin:
				return w.step(Event{Kind: Ended, Leg: s})
			}
		}
		if k != nil && k.rst && !isBroken(&w.f, s) && (w.f.Ended(s) || s == Client && !wants.Read[s] && w.f.Speaks() == config.HTTP) {
			return w.step(Event{Kind: Broke, Leg: s})
		}
	}
	return false
}

// relay moves up to most octets through a pipe.
func (w *httpWorld) relay(s Side, most uint64) bool {
	from, to, p := w.leg(s), w.leg(s.Other()), &w.pipes[s]
	if len(*p) == 0 {
		n := int(min(uint64(len(from.in)), pipeMax, most))
		switch {
		case n > 0:
			*p, from.in = append([]byte(nil), from.in[:n]...), from.in[n:]
		case from.rst && !from.fin:
			return w.step(Event{Kind: Broke, Leg: s})
		default: // also before FIN: a read tells
			return w.step(Event{Kind: Slackened, Leg: s})
		}
	}
	if to.rst {
		kind := Broke
		if s == Client && w.f.Speaks() == config.HTTP {
			kind = Deafened
		}
		return w.step(Event{Kind: kind, Leg: s.Other()})
	}
	n := min(len(*p), to.room-len(to.out))
	if n <= 0 {
		return false
	}
	to.out = append(to.out, (*p)[:n]...)
	*p = (*p)[n:]
	return w.step(Event{Kind: Relayed, Leg: s, N: n})
}

func (w *httpWorld) Freeze() ([]byte, bool, error) {
	octets, ok, err := w.moving.Freeze()
	w.moved = w.moved || ok
	return octets, ok, err
}

func (w *httpWorld) Thaw(octets []byte) error {
	if err := w.thaw(octets, httpObjects); err != nil {
		return err
	}
	w.run()
	return nil
}

func (w *httpWorld) Observe() string {
	var b strings.Builder
	var wants Wants
	w.f.Wants(&wants)
	if w.bulk && w.rough {
		return "rough"
	}
	fmt.Fprintf(&b, "%v", w.f.State())
	if w.f.State() == Done {
		fmt.Fprintf(&b, " %v abort %v", w.f.Cause(), wants.Abort[Client])
	} else if !w.bulk {
		// With pipes the flow knows later what it has: elsewhere these octets lie
		// in it.
		fmt.Fprintf(&b, " phase %d", w.f.Phase())
		if e := w.f.Endpoint(); e != nil {
			fmt.Fprintf(&b, " at %s", e.Name)
		}
		fmt.Fprintf(&b, " tried %b attempt %d place %d", w.f.Tried(), w.f.Attempt(), w.f.Place())
		b.WriteString(" | wants")
		for _, x := range []struct {
			name string
			on   bool
		}{{"secure", wants.Secure}, {"dial", wants.Dial}, {"read-client", wants.Read[Client]}, {"read-backend", wants.Read[Backend]},
			{"shut-client", wants.Shut[Client]}, {"shut-backend", wants.Shut[Backend]}} {
			if x.on {
				b.WriteString(" " + x.name)
			}
		}
	}
	if w.f.State() != Done && wants.Deadline != 0 {
		fmt.Fprintf(&b, " deadline in %v", time.Duration(max(1, wants.Deadline-w.now)))
	}
	fmt.Fprintf(&b, " | requests %d, from %v, age %v", w.f.Requests(), w.f.Client(), time.Duration(w.now-w.f.Born()))
	if !w.bulk && w.f.State() != Done {
		fmt.Fprintf(&b, ", received %d, sent %d", w.f.Received(Client), w.f.Sent(Client))
	}
	b.WriteString(w.lines())
	b.WriteString("\n  client ")
	w.client.observe(&b)
	for _, x := range w.backs {
		fmt.Fprintf(&b, "\n  leg %d", x.number)
		if x == w.cur && !w.bulk {
			b.WriteString(" in use")
		}
		if x.idle && !w.bulk {
			b.WriteString(" idle")
		}
		b.WriteString(" ")
		x.observe(&b)
	}
	return b.String()
}

func (k *kern) observe(b *strings.Builder) {
	fmt.Fprintf(b, "said %d, out %d, got %d", k.said, len(k.out), len(k.got))
	for _, x := range []struct {
		name string
		on   bool
	}{{"shut", k.shut}, {"peer-read-fin", k.ended}, {"reset", k.wiped}} {
		if x.on {
			b.WriteString(" " + x.name)
		}
	}
}

// Verify sees what must hold at every instant: what was lent, what is due. The
// audit of all that was said comes at the end.
func (w *httpWorld) Verify() error {
	if w.wrong != nil {
		return w.wrong
	}
	if w.f.State() == Done {
		if n := w.lender.Lent(); n != 0 {
			return fmt.Errorf("ended with %d octets lent", n)
		}
		if w.f.work != nil {
			return errors.New("ended with a work")
		}
	} else {
		if n := w.lender.Lent(); n > 4*BlockBytes {
			return fmt.Errorf("%d octets lent to one flow", n)
		}
		if w.f.work != nil && (slices.Contains(w.lender.works, w.f.work) || w.f.x != nil && slices.Contains(w.lender.exchanges, w.f.x)) {
			return errors.New("what was given back is still in use")
		}
		if w.f.state == Reading && w.f.work != nil && w.f.x == nil {
			return errors.New("an idle flow holds a work")
		}
		var wants Wants
		w.f.Wants(&wants)
		for s := Client; s <= Backend; s++ {
			if k := w.leg(s); k != nil && len(wants.Out[s]) > 0 && k.room > len(k.out) {
				return fmt.Errorf("%d octets are due to the %v, its kernel has room for %d, nothing happens", len(wants.Out[s]), s, k.room-len(k.out))
			}
		}
		// Nothing that could go on stands still.
		idle := len(wants.Out[Client])+len(wants.Out[Backend])+len(w.pipes[Client])+len(w.pipes[Backend]) == 0
		if b := w.cur; idle && b != nil && w.f.State() == Relaying && (len(b.in) > 0 || b.fin && !w.f.Ended(Backend)) {
			return fmt.Errorf("leg %d is not read: %d octets, FIN %t", b.number, len(b.in), b.fin)
		}
		if k := &w.client; idle && (w.f.State() == Reading || w.f.State() == Lingering || w.f.State() == Sunk) && (len(k.in) > 0 || k.fin) {
			return fmt.Errorf("the client is not read: %d octets, FIN %t", len(k.in), k.fin)
		}
		if wants.Deadline == 0 && w.f.Phase() != Tunnel && w.f.Phase() != Octets {
			return errors.New("it may wait for ever")
		}
		if w.f.listener.Protocol == config.HTTP && w.f.Phase() != Tunnel {
			if got, want := w.f.Received(Client), uint64(w.client.said-len(w.client.in)-len(w.pipes[Client])-w.greeting()); got != want {
				return fmt.Errorf("%d octets received from the client by its account, it is %d", got, want)
			}
		}
		if w.f.listener.Protocol == config.HTTP {
			if got, want := w.f.Sent(Client), uint64(len(w.client.got)+len(w.client.out)); got != want && !w.client.rst {
				return fmt.Errorf("%d octets sent to the client by its account, it is %d", got, want)
			}
		}
	}
	return w.audit()
}

// greeting is the length of the PROXY header that was taken.
func (w *httpWorld) greeting() int {
	if w.f.listener == nil || len(w.f.listener.ProxyFrom) == 0 || w.f.work != nil && w.f.x != nil && w.f.x.flags&greeting != 0 {
		return 0
	}
	for _, o := range w.hops {
		if o.verb == "says" && o.side == Client {
			n, _, _, _, _ := proxyproto.Parse([]byte(o.text))
			return n
		}
	}
	return 0
}

// whole is all that the peer of a leg gets, unless it is reset.
func (k *kern) whole() []byte { return bytes.Join([][]byte{k.got, k.out}, nil) }
