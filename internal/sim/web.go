package sim

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// web is the part of a world that speaks HTTP: two VIPs, one backend with
// servers of its own, clients. Every request has an identity that its answer
// must have as well, and a plan that both its client and its server know.
type web struct {
	w        *World
	shape    webShape
	services []*service // all that ever were; the last of each name is current
	asks     []*ask     // by identity, from 1 on
	clients  []*webClient
	servers  []*webServer
	active   []webPeer // that have not come to their end
	room     []byte    // for whoever reads or writes now

	idleDeaths int    // servers that ended a connection between two requests, or said what nobody asked
	unsafe502  []*ask // requests that could not be sent again and were answered 502 without a reason that is known
	safe502    []*ask // the same of requests that could
	junk       int    // servers that said what nobody asked
	cutOff     []*webClient
}

// webPeer is a client or a server.
type webPeer interface {
	step(last bool) bool
	ended() bool
	String() string
}

// owner is who has a simulated socket and hears why it may end early.
type owner interface{ excuse(why string) }

// webShape is what a seed makes of the configuration for HTTP.
type webShape struct {
	endpoints int
	perEnd    int
	queue     int
	onChange  string
	balance   string
	idle      int // legs kept for further requests
	idleTime  string
	fromVIP   bool
	broken    int
	hurried   bool // short timeouts
	gone      int
	listenMax int
}

var webVIPs = [...]netip.AddrPort{netip.MustParseAddrPort("10.0.0.5:81"), netip.MustParseAddrPort("10.0.0.6:81")}

func newWeb(w *World, sc Scenario) *web {
	r := w.net.rng
	h := &web{w: w, room: make([]byte, 70000)}
	w.net.first = h.first
	h.shape = webShape{
		endpoints: 1 + r.IntN(3), queue: 200,
		onChange: []string{"keep", "adopt", "close"}[r.IntN(3)], balance: []string{"least", "round-robin"}[r.IntN(2)],
		idle: r.IntN(4), idleTime: []string{"1s", "10m"}[r.IntN(2)], fromVIP: r.IntN(3) == 0,
	}
	if sc.Calm {
		h.shape.onChange = "adopt"
	}
	if sc.Limited || r.IntN(2) == 0 {
		h.shape.perEnd = 1 + r.IntN(3)
		if !sc.Calm && r.IntN(4) == 0 {
			h.shape.queue = 1 + r.IntN(3)
		}
	}
	if !sc.Calm {
		h.shape.hurried = r.IntN(5) == 0
		if r.IntN(4) == 0 {
			h.shape.broken = r.IntN(h.shape.endpoints)
		}
	}
	if r.IntN(4) == 0 {
		h.shape.listenMax = 2 + r.IntN(4)
	}
	if sc.Storm {
		h.shape.onChange, h.shape.listenMax, h.shape.hurried = w.shape.onChange, 0, false
	}
	if sc.Policy {
		h.shape.endpoints = max(2, h.shape.endpoints)
		h.shape.queue = max(h.shape.queue, 500)
	}
	for i := range h.shape.endpoints {
		h.serve(fmt.Sprintf("a%d", i), i, 0)
		if i >= h.shape.endpoints-h.shape.broken {
			if s := h.current(i); s.unix == "" {
				w.net.behaviour[s.at] = behaviour(1 + r.IntN(2))
			}
		}
	}
	return h
}

// serve makes the server of endpoint i, at an address of its own for each turn
// that it has taken.
func (h *web) serve(name string, i, turn int) {
	n := h.w.net
	s := &service{name: name, web: true, endpoint: i, moves: turn}
	switch {
	case turn == 0 && i == 0 && !h.shape.fromVIP && n.rng.IntN(4) == 0:
		s.unix = "/run/" + name + ".sock"
	default:
		s.at = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 2, byte(10 + i)}), uint16(8000+turn))
	}
	s.listener = &Listener{at: s.at, backlog: 64}
	if s.unix != "" {
		n.unix[s.unix] = s.listener
	} else {
		n.routes[s.at] = s.listener
	}
	h.services = append(h.services, s)
}

// current is the server that endpoint i names now.
func (h *web) current(i int) *service {
	for _, s := range slices.Backward(h.services) {
		if s.endpoint == i {
			return s
		}
	}
	panic("sim: no such endpoint")
}

// listeners and backends are the configuration's parts for HTTP.
func (h *web) listeners(b *strings.Builder, revision int) {
	s := &h.shape
	for i, at := range webVIPs {
		fmt.Fprintf(b, "  %s:\n    vip: %q\n    protocol: http\n    onChange: %s\n    backlog: %d\n", h.w.storm.site(i), at, s.onChange, 100+revision)
		if s.listenMax > 0 {
			fmt.Fprintf(b, "    connectionsMax: %d\n", s.listenMax)
		}
		h.w.policy.webListener(b)
		b.WriteString("    routes:\n")
		b.WriteString("      - { match: { path: { exact: /ping } }, respond: { status: 200, body: \"pong\\n\" } }\n")
		h.w.storm.route(b, revision)
		b.WriteString("      - { match: { path: /r/ }, backend: app }\n")
		b.WriteString("      - { match: { method: [ CONNECT ] }, backend: app }\n")
		timeouts := "header: 1h, body: 24h, keepalive: 24h, tunnel: 0s"
		if s.hurried {
			timeouts = "header: 1s, body: 2s, keepalive: 3s, tunnel: 5s"
		}
		fmt.Fprintf(b, "    http: { timeouts: { %s }%s }\n", timeouts, h.w.policy.ofRules())
	}
}

func (h *web) backends(b *strings.Builder) {
	s := &h.shape
	answer := "24h"
	if s.hurried {
		answer = "2s"
	}
	fmt.Fprintf(b, "  app:\n    balance: %s\n    connectTimeout: 2s\n    answerTimeout: %s\n    retry: { max: 4 }\n", s.balance, answer)
	fmt.Fprintf(b, "    reuse: { idle: %d, time: %s }\n", s.idle, s.idleTime)
	if s.fromVIP {
		b.WriteString("    source: vip\n")
	}
	switch {
	case s.perEnd > 0:
		fmt.Fprintf(b, "    limits: { connectionsPerEndpoint: %d, queue: %d, queueTime: 1h }\n", s.perEnd, s.queue)
	case h.w.policy != nil:
		fmt.Fprintf(b, "    limits: { queue: %d, queueTime: 1h }\n", s.queue)
	}
	h.w.policy.ofBackend(b, "app")
	b.WriteString("    endpoints:\n")
	for i := range s.endpoints - s.gone {
		e := h.current(i)
		address := e.at.String()
		if e.unix != "" {
			address = "unix:" + e.unix
		}
		fmt.Fprintf(b, "      - { name: a%d, address: %q%s%s }\n", i, address, h.w.policy.ofEndpoint("app", i), h.w.storm.weight(i))
	}
	h.w.policy.sinks(b, "app")
}

// change alters what the next reload brings. done is to be called when that has
// come into force.
func (h *web) change() (done func()) {
	r := h.w.net.rng
	s := &h.shape
	left := []*service{}
	switch r.IntN(5) {
	case 0:
		if s.perEnd > 0 {
			s.perEnd = s.perEnd%3 + 1
		}
	case 1:
		was := s.gone
		if h.w.policy == nil {
			s.gone = r.IntN(s.endpoints)
		}
		for i := range s.endpoints {
			if e := h.current(i); i >= s.endpoints-s.gone && i < s.endpoints-was {
				left = append(left, e)
			} else if i < s.endpoints-s.gone {
				e.leftAt = 0
			}
		}
	case 2, 3: // an endpoint of the same name is elsewhere
		was := h.current(r.IntN(s.endpoints))
		h.serve(was.name, was.endpoint, was.moves+1)
		if b := h.w.net.behaviour[was.at]; b != answers && was.unix == "" {
			h.w.net.behaviour[h.current(was.endpoint).at] = b
		}
		left = append(left, was)
	case 4:
		s.idle = r.IntN(4)
	}
	return func() {
		for _, e := range left {
			if e.leftAt == 0 {
				e.leftAt = h.w.turns
			}
		}
	}
}

// accept lets the servers accept what waits for them.
func (h *web) accept(calm bool) bool {
	any := false
	for _, s := range h.services {
		for len(s.listener.queue) > 0 {
			x := s.listener.queue[0]
			s.listener.queue = s.listener.queue[1:]
			s.n++
			s.n++
			h.server(s, x, calm)
			any = true
		}
	}
	return any
}

// risky tells whether something is on its way to a server that may be sent but
// once.
func (h *web) risky() bool {
	for _, c := range h.clients {
		if n := len(c.asks); n > c.answered && !c.closed {
			if a := c.asks[n-1]; a.kind == plainAsk && !a.repeatable() && len(a.arrivals) == 0 && a.harm == "" {
				return true
			}
		}
	}
	return false
}

// sweep forgets those who have ended.
func (h *web) sweep() {
	h.active = slices.DeleteFunc(h.active, webPeer.ended)
}

func (h *web) open() (n int) {
	for _, p := range h.active {
		if !p.ended() {
			n++
		}
	}
	return n
}

// checkFlow looks at a flow that speaks HTTP, after a turn.
func (h *web) checkFlow(f *flow.Flow, c, b *Sock) {
	if b == nil {
		if c.mate != nil {
			c.mate.mate, c.mate = nil, nil
		}
		return
	}
	for _, s := range []*Sock{c, b} {
		if m := s.mate; m != nil && m != c && m != b {
			m.mate = nil
		}
	}
}

// first looks at the first octets that a leg which served before is given of a
// request. It was idle at the end of the last turn.
func (h *web) first(s *Sock, b []byte) {
	if !s.finIn && !s.dead {
		return
	}
	text, _, _ := cutHead(b)
	if id, _ := strconv.Atoi(text.get("x-id")); id > 0 && id <= len(h.asks) && !h.asks[id-1].repeatable() {
		h.w.fail("a leg that was dead already is taken for what can be sent but once: %v", h.asks[id-1])
	}
}

// stuckWeb wants that a flow for which nothing can happen but by the clock
// wants nothing that could be had.
func (w *World) stuckWeb(f *flow.Flow, legs [2]*Sock, kind string) {
	var wants flow.Wants
	f.Wants(&wants)
	for s := flow.Client; s <= flow.Backend; s++ {
		leg := legs[s]
		if leg == nil || !leg.connected {
			continue
		}
		switch {
		case leg.dead && !wants.Read[s]:
		case len(wants.Out[s]) > 0 && leg.roomy():
			w.fail("lost wakeup: flow %x, %v: %d octets are due to the %v, which has room for %d", f.ID(), f.Phase(), len(wants.Out[s]), s, leg.free())
		case wants.Shut[s]:
			w.fail("flow %x: FIN to the %v is not sent", f.ID(), s)
		case kind == loop.KindHTTPSplice && legs[s.Other()] != nil && !legs[s.Other()].roomy():
			// A pipe may be full of what the other leg does not take.
		case wants.Read[s] && leg.mask()&sock.Readable != 0:
			w.fail("lost wakeup: flow %x, phase %d: %d octets of the %v are not read, FIN %t RST %t", f.ID(), f.Phase(), len(leg.rcv), s, leg.finIn, leg.dead)
		case wants.Resume:
			w.fail("flow %x: a request that is here is not looked at", f.ID())
		}
	}
}

// judge looks at the end at what became of each request and each connection.
func (h *web) judge() {
	w := h.w
	e := &w.tally.Ended
	strays := int(w.net.strays)
	if len(h.safe502) > strays+h.junk {
		w.fail("%d requests that could have been sent again were answered 502 and nothing says why (%d strays); one is %v, served by %v", len(h.safe502), strays, h.safe502[0], h.safe502[0].arrivals)
	}
	if len(h.unsafe502) > strays+h.idleDeaths {
		w.fail("%d requests were answered 502 and nothing says why (%d strays, %d servers ended between requests); one is %v, served by %v", len(h.unsafe502), strays, h.idleDeaths, h.unsafe502[0], h.unsafe502[0].arrivals)
	}
	decided := int(e[flow.Killed]+e[flow.IdleTimeout]+e[flow.HeadTimeout]+w.refused()) + strays
	if len(h.cutOff) > decided {
		w.fail("%d clients were cut off and only %d decisions say why (ended by cause: %v); one is %v; its requests %v, served by %v", len(h.cutOff), decided, *e, h.cutOff[0], h.cutOff[0].asks, h.cutOff[0].servers())
	}
}

// servers are those that a client's requests have come to.
func (c *webClient) servers() (all []*webServer) {
	for _, a := range c.asks {
		all = append(all, a.arrivals...)
	}
	return all
}
