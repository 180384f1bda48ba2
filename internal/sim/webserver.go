package sim

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// webServer answers the requests of one connection as they are planned, unless
// it misbehaves.
type webServer struct {
	h    *web
	name string
	svc  *service
	s    *Sock
	calm bool

	gulp, mouth int
	in          []byte
	cur         *ask
	body        content
	got         int
	misdeed     misdeed
	dieAfter    int // octets of the request's content
	byRST       bool
	out         []byte
	cut         int // dies when so much of out is left, 0 = not
	answering   bool
	served      int
	bye         bool         // it has said that the connection ends
	endAt       flow.Instant // ends then, if it is idle; 0 = never
	spite       bool         // it ends, if it is idle, just when it may be needed
	sleeps      flow.Instant
	tube        *tube
	drains      bool // all is said; what still comes is read and thrown away
	over        bool
	byFIN       bool // it was the first to end, and not by RST
	excused     string
}

// misdeed is what a server does wrong with a request.
type misdeed uint8

const (
	behaves   misdeed = iota
	dies              // before it answers
	babbles           // what is no answer
	stops             // within the head of the answer
	truncates         // within its content
	sleeps            // for long
	goesOn            // says more than the answer
)

func (h *web) server(svc *service, s *Sock, calm bool) {
	r := h.w.net.rng
	p := &webServer{
		h: h, name: fmt.Sprintf("web-server-%s-%d", svc.name, svc.n), svc: svc, s: s, calm: calm,
		gulp: []int{50, 2000, 70000}[r.IntN(3)], mouth: []int{20, 2000, 70000}[r.IntN(3)],
	}
	p.spite = !calm && r.IntN(4) == 0
	s.owner = p
	if s.peer.excused != "" {
		p.excuse(s.peer.excused)
	}
	h.servers = append(h.servers, p)
	h.active = append(h.active, p)
}

func (p *webServer) excuse(why string) {
	if p.excused == "" {
		p.excused = why
	}
	if p.cur != nil {
		p.cur.spoil(why)
	}
}

func (p *webServer) fault(format string, args ...any) {
	p.h.w.fail("%s: %s; %v", p.name, fmt.Sprintf(format, args...), p)
}

func (p *webServer) ended() bool { return p.over }

func (p *webServer) String() string {
	s := fmt.Sprintf("%s at %v served %d, misdeed %d, %d octets unsaid, bye %t drains %t over %t excused %q tube %v (dead %t, rcv %d, snd %d)", p.name, p.svc.at, p.served, p.misdeed, len(p.out), p.bye, p.drains, p.over, p.excused, p.tube,
		p.s.dead, len(p.s.rcv), len(p.s.snd))
	if p.cur != nil {
		s += ", now " + p.cur.String()
	}
	return s
}

func (p *webServer) step(last bool) bool {
	if p.over {
		return false
	}
	if p.h.w.net.rng.IntN(2) == 0 {
		return p.hear() || p.say(last)
	}
	return p.say(last) || p.hear()
}

// die ends the connection at once: by RST, or as a process does that closes it.
func (p *webServer) die(rst bool) {
	p.over = true
	p.h.w.note("%s ends, by RST %t, after %d requests, %v", p.name, rst, p.served, p.cur)
	if rst {
		p.s.orphan = true
		p.s.reset()
		return
	}
	p.byFIN = len(p.s.rcv) == 0
	p.s.close()
}

func (p *webServer) say(last bool) bool {
	w := p.h.w
	now := w.net.now
	if now < p.sleeps && !last {
		return false
	}
	switch {
	case len(p.out) > p.cut:
		n, e := p.s.send(p.out[:min(len(p.out)-p.cut, p.mouth)])
		p.out = p.out[n:]
		if n == 0 && e != 0 {
			return p.s.dead && p.lost()
		}
		if n > 0 && p.cur != nil {
			p.cur.heard = true
		}
		return n > 0
	case p.cut > 0:
		p.die(p.byRST)
		return true
	case p.tube != nil:
		did, e := p.tube.say(p.s, p.h.room[:p.mouth])
		if e != 0 && !did {
			return p.s.dead && p.lost()
		}
		p.tubeEnd()
		return did
	case p.drains:
		return false
	case p.answering:
		p.answered()
		return true
	case p.served > 0 && p.cur == nil && len(p.in) == 0 && (p.endAt != 0 && now >= p.endAt || last || p.spite && p.h.risky()):
		if !p.bye {
			p.h.idleDeaths++
		}
		// RST would take from the answer what is still on its way.
		p.die(p.byRST && !last && !p.bye && len(p.s.snd) == 0)
		return true
	}
	return false
}

// answered: all of the answer is said.
func (p *webServer) answered() {
	w := p.h.w
	a := p.cur
	switch {
	case a.tunnels():
		p.answering = false
		p.served++
		p.cur = nil
		p.tube = &tube{key: a.down(), total: a.answerSize, peerKey: a.up(), peerTotal: a.size, open: true, ask: a}
		p.tube.hear(p.in, p.fault)
		p.in = nil
		return
	case a.answerFraming == untilClose && !a.bare():
		p.byFIN = true
		p.s.shutdown()
		p.drains = true
		return
	case !p.body.over: // an early answer: the rest of the request may come yet
		p.drains = true
		return
	}
	p.answering = false
	p.cur = nil
	p.served++
	p.s.peer.served, p.s.peer.asked = true, false
	r := w.net.rng
	p.byRST = r.IntN(2) == 0
	if p.bye = a.farewell; p.bye {
		p.endAt = w.net.now.Add(time.Duration(r.IntN(int(3 * time.Second))))
	} else if p.endAt = 0; !p.calm && r.IntN(3) == 0 {
		p.endAt = w.net.now.Add(time.Duration(r.IntN(1 + r.IntN(int(time.Second)))))
	}
}

func (p *webServer) hear() bool {
	if p.answering && len(p.out) == 0 && p.cut == 0 && !p.drains {
		p.answered() // before it hears what comes next
	}
	b := p.h.room[:p.gulp]
	n, e := p.s.recv(b)
	switch {
	case n > 0:
		if p.tube != nil {
			p.tube.hear(b[:n], p.fault)
			return true
		}
		if p.drains && p.body.over {
			return true
		}
		p.in = append(p.in, b[:n]...)
		for p.h.w.failed == nil && !p.over && p.digest() {
		}
		if a := p.cur; a != nil && p.body.over && len(p.in) > 0 && a.kind == plainAsk && !p.over {
			p.fault("%d octets behind a request that is not answered", len(p.in))
		}
		return true
	case e == 0 && !(p.s.dead && !p.s.finIn):
		if p.tube != nil && !p.tube.fin {
			p.tube.ended(p.fault, cmp.Or(p.excused, p.tube.ask.harm))
			p.tubeEnd()
			return true
		}
		if p.tube != nil {
			return false
		}
		// The balancer has given up, or needs the leg no more.
		p.die(p.answering && !p.drains)
		return true
	case e == 0 || p.s.dead:
		return p.lost()
	}
	return false
}

func (p *webServer) tubeEnd() {
	if p.tube.shut && p.tube.fin && !p.over {
		p.over = true
		p.s.close()
	}
}

func (p *webServer) lost() bool {
	p.over = true
	p.s.orphan = true
	return true
}

func (p *webServer) digest() bool {
	if p.cur == nil {
		h, n, err := cutHead(p.in)
		if err != nil {
			p.fault("no head: %v", err)
		}
		if n == 0 || err != nil {
			return false
		}
		p.in = p.in[n:]
		p.begins(&h)
		return p.h.w.failed == nil
	}
	n, data, err := p.body.next(p.in)
	if err != nil {
		p.fault("in a request's body: %v", err)
		return false
	}
	if len(data) > 0 {
		if at := same(data, p.cur.up(), p.got); at >= 0 || p.got+len(data) > p.cur.size {
			p.fault("octet %d of the request's content is wrong (%d of %d)", at, p.got+len(data), p.cur.size)
			return false
		}
	}
	p.got += len(data)
	p.in = p.in[n:]
	if p.misdeed == dies && p.got >= p.dieAfter && (p.body.over || p.dieAfter < p.cur.size) {
		p.dieUnheard()
		return false
	}
	if p.body.over && n > 0 {
		if p.got != p.cur.size {
			p.fault("a request with %d octets, not %d", p.got, p.cur.size)
			return false
		}
		switch {
		case !p.answering:
			p.answer()
		case p.drains:
			p.drains = false
			p.answered()
		}
	}
	return n > 0
}

// dieUnheard ends the connection before a final answer has begun. On a leg that
// served before, a request that is repeatable is to be sent again.
func (p *webServer) dieUnheard() {
	a := p.cur
	if !a.repeatable() || p.served == 0 || a.heard {
		a.spoil("its server died")
	}
	p.die(p.byRST)
}

// begins looks at the head of a request.
func (p *webServer) begins(h *head) {
	w := p.h.w
	id, _ := strconv.Atoi(h.get("x-id"))
	if id < 1 || id > len(p.h.asks) {
		p.fault("a request that nobody made: %q", h.line)
		return
	}
	a := p.h.asks[id-1]
	p.cur = a
	parts := strings.Split(h.line, " ")
	target := fmt.Sprintf("/r/%d", id)
	if a.kind == connectAsk {
		target = "far.example:443"
	}
	f, n, err := h.framed(false)
	switch {
	case len(parts) != 3 || parts[0] != a.method || parts[1] != target || parts[2] != "HTTP/1.1":
		p.fault("%q", h.line)
	case err != nil:
		p.fault("%v", err)
	case f != a.framing || f == byLength && n != a.size:
		p.fault("the request is framed by %v (%d)", f, n)
	case p.bye:
		p.fault("a request on a connection that was said to end")
	case a.kind != plainAsk && a.kind != upgradeAsk && a.kind != connectAsk:
		p.fault("a request that leads to no server")
	case p.h.shape.fromVIP && p.svc.unix == "" && p.s.remote.Addr() != a.client.vip:
		p.fault("a request to %v comes from %v", a.client.vip, p.s.remote.Addr())
	case len(w.hosts) == 1 && p.svc.leftAt != 0 && a.begunAt > p.svc.leftAt:
		p.fault("a request of turn %d, the endpoint has left in turn %d", a.begunAt, p.svc.leftAt)
	}
	p.h.w.policy.arrives(a, p)
	if len(a.arrivals) > 0 {
		was := a.arrivals[len(a.arrivals)-1]
		switch {
		case !a.repeatable():
			p.fault("a request that may be sent but once arrives again, first at %v", was)
		case p.served > 0:
			p.fault("a request arrives again, on a leg that served before")
		case len(a.arrivals) > 1:
			p.fault("a request arrives for the third time")
		case was.served == 0 && was.excused == "":
			p.fault("a request arrives again, its first leg was new: %v", was)
		case !was.over && was.excused == "":
			p.fault("a request arrives again, its first leg is well: %v", was)
		case a.heard && was.byFIN:
			p.fault("a request arrives again, it was answered: %v", was)
		}
	}
	if w.failed != nil {
		return
	}
	a.arrivals = append(a.arrivals, p)
	a.said, a.heard = 0, false
	if p.excused != "" {
		a.spoil(p.excused)
	}
	p.body, p.got, p.answering, p.misdeed = newContent(f, n), 0, false, behaves
	if a.kind != plainAsk {
		p.body = newContent(bodiless, 0)
	}
	r := w.net.rng
	if !p.calm && r.IntN(7) == 0 {
		p.misdeed = misdeed(1 + r.IntN(int(goesOn)))
		p.byRST = r.IntN(2) == 0
		p.dieAfter = r.IntN(1 + a.size)
		if p.misdeed == sleeps && p.h.shape.hurried {
			p.sleeps = w.net.now.Add(time.Duration(1+r.IntN(5000)) * time.Millisecond)
		}
		if p.misdeed == dies && (p.body.over || p.dieAfter == 0) {
			p.dieUnheard()
			return
		}
	}
	if p.spite && p.served > 0 && p.body.over && a.kind == plainAsk && r.IntN(2) == 0 {
		p.byRST = r.IntN(2) == 0
		p.dieUnheard()
		return
	}
	if a.expect && !a.early && r.IntN(4) > 0 {
		p.interim(100, "Continue")
	}
	if p.body.over || a.early {
		p.answer()
	}
}

func (p *webServer) interim(status int, reason string) {
	p.out = fmt.Appendf(p.out, "HTTP/1.1 %d %s\r\nX-Id: %d\r\n\r\n", status, reason, p.cur.id)
	p.cur.said++
}

// answer writes the answer.
func (p *webServer) answer() {
	a := p.cur
	r := p.h.w.net.rng
	p.answering = true
	for range a.interim {
		p.interim([]int{102, 103}[r.IntN(2)], "Wait")
	}
	if p.misdeed == babbles {
		a.spoil("its server babbles")
		p.out = append(p.out, []string{"220 mail.example ESMTP\r\n\r\n", "HTTP/1.1 404 No\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", "HTTP/1.1 200 OK\r\n bad: field\r\n\r\n"}[r.IntN(3)]...)
		p.cut = 0
		p.drains, p.answering = true, false
		return
	}
	before := len(p.out)
	p.out = fmt.Appendf(p.out, "HTTP/1.1 %d Reason %d\r\nX-Id: %d\r\n", a.status, a.status, a.id)
	for range r.IntN(4) {
		p.out = fmt.Appendf(p.out, "X-Fill: %s\r\n", strings.Repeat("y", r.IntN(300)))
	}
	switch {
	case a.tunnels() && a.kind == upgradeAsk:
		p.out = append(p.out, "Connection: Upgrade\r\nUpgrade: octets\r\n"...)
	case a.tunnels() || a.status == 204:
	case a.answerFraming == byLength:
		p.out = fmt.Appendf(p.out, "Content-Length: %d\r\n", a.answerSize)
	case a.answerFraming == chunked:
		p.out = append(p.out, "Transfer-Encoding: chunked\r\n"...)
	case a.answerFraming == bodiless && a.status != 304:
		p.out = append(p.out, "Content-Length: 0\r\n"...)
	}
	if a.farewell && !(a.answerFraming == untilClose && r.IntN(2) == 0) {
		p.out = append(p.out, "Connection: close\r\n"...)
	}
	p.out = append(p.out, "\r\n"...)
	headLen := len(p.out) - before
	if n := a.wanted(); n > 0 && !a.tunnels() {
		body := make([]byte, n)
		fill(body, a.down(), 0)
		if a.answerFraming == chunked {
			body = inChunks(body, r.IntN)
		}
		p.out = append(p.out, body...)
	} else if !a.tunnels() && a.answerFraming == chunked && !a.bare() {
		p.out = append(p.out, inChunks(nil, r.IntN)...)
	}
	bodyLen := len(p.out) - before - headLen
	switch {
	case p.misdeed == stops:
		a.spoil("its server stops in its head")
		p.cut = bodyLen + 1 + r.IntN(headLen-1)
	case p.misdeed == truncates && bodyLen > 1:
		if a.framedAs() == untilClose && a.answerFraming == untilClose {
			p.byRST = true // by FIN it would be whole
		}
		a.spoil("its server stops in its answer")
		p.cut = 1 + r.IntN(bodyLen-1)
	case p.misdeed == goesOn && !a.tunnels() && a.answerFraming != untilClose:
		p.h.idleDeaths++
		p.h.junk++
		p.out = append(p.out, "and more\r\n\r\n"...)
	}
}

// tube is one end of a tunnel.
type tube struct {
	open             bool
	key, peerKey     uint64
	total, peerTotal int
	said, got        int
	shut, fin        bool
	ask              *ask // of a server: what became of it at its client
}

func (t *tube) String() string {
	if t == nil {
		return "none"
	}
	return fmt.Sprintf("open %t said %d of %d got %d of %d shut %t fin %t", t.open, t.said, t.total, t.got, t.peerTotal, t.shut, t.fin)
}

func (t *tube) say(s *Sock, room []byte) (bool, sock.Errno) {
	switch {
	case t.shut:
		return false, 0
	case t.said < t.total:
		b := room[:min(len(room), t.total-t.said, s.free()+1)]
		fill(b, t.key, t.said)
		n, e := s.send(b)
		t.said += n
		return n > 0, e
	}
	t.shut = true
	s.shutdown()
	return true, 0
}

func (t *tube) hear(b []byte, fault func(string, ...any)) {
	if at := same(b, t.peerKey, t.got); at >= 0 || t.got+len(b) > t.peerTotal {
		fault("octet %d of the tunnel is wrong (%d of %d)", at, t.got+len(b), t.peerTotal)
	}
	t.got += len(b)
}

func (t *tube) ended(fault func(string, ...any), excused string) {
	t.fin = true
	if t.got != t.peerTotal && excused == "" {
		fault("FIN after %d of %d octets of the tunnel", t.got, t.peerTotal)
	}
}
