package sim

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
)

// webClient sends requests over one connection and checks every octet of the
// answers.
type webClient struct {
	h     *web
	name  string
	s     *Sock
	vip   netip.Addr
	minor int
	plan  webPlan

	asks     []*ask // begun, in order
	out      []byte // of the latest one, still to be sent
	pause    int    // this much of out waits for 100 (Continue); 0 = none does
	patience flow.Instant
	thinks   flow.Instant // begins nothing until then
	said     int
	shut     bool

	in       []byte
	answered int // of asks
	interims int // answers of 1xx to the present one
	head     *head
	body     content
	status   int
	own      bool
	got      int // octets of the present answer's content
	text     []byte
	read     int
	sleeps   flow.Instant
	tube     *tube

	closing  bool // the balancer said that it ends with an answer that has come
	fin, rst bool
	closed   bool
	excused  string
	aborted  bool
	numb     bool // it is not interested in what comes any more
	denied   bool // nobody may serve it
	cookie   string
	cookieOf int // 1 + the endpoint that it is of
}

// webPlan is what a client does.
type webPlan struct {
	requests    int
	depth       int  // requests under way at once
	closesEarly bool // says FIN when all is asked, before it is answered
	hasty       bool // says FIN as soon as it hears that the end has come
	gulp, mouth int
	sloth       int
	abortSaid   int // ends after so many octets said, 0 = never
	abortRead   int
	abortByFIN  bool
	eager       bool // sends what the tunnel is for along with the request for it
}

// client begins a client.
func (h *web) client(calm bool) {
	w := h.w
	r := w.net.rng
	vip := webVIPs[r.IntN(len(webVIPs))]
	from, denied := w.policy.source(netip.AddrFrom4([4]byte{192, 0, 2, 2}))
	near, _ := w.net.pair(netip.AddrPortFrom(from, w.net.port()), vip)
	c := &webClient{denied: denied, h: h, name: fmt.Sprintf("web-client-%d", len(h.clients)), s: near, vip: vip.Addr(), minor: 1}
	c.plan = webPlan{
		requests: 1 + r.IntN(6), depth: 1, hasty: r.IntN(2) == 0, closesEarly: r.IntN(6) == 0,
		gulp: []int{50, 2000, 70000}[r.IntN(3)], mouth: []int{20, 2000, 70000}[r.IntN(3)], eager: r.IntN(4) == 0,
	}
	if r.IntN(2) == 0 {
		c.plan.depth = 1 + r.IntN(4)
	}
	if r.IntN(6) == 0 {
		c.minor = 0
	}
	if !calm {
		if r.IntN(3) == 0 {
			c.plan.sloth = 1 + r.IntN(20)
		}
		after := 1 + r.IntN([]int{100, 2000, 100000}[r.IntN(3)])
		switch r.IntN(16) {
		case 0:
			c.plan.abortSaid = after
		case 1:
			c.plan.abortSaid, c.plan.abortByFIN = after, true
		case 2:
			c.plan.abortRead = after
		}
	}
	if p := w.policy; p != nil && len(p.jar) > 0 && r.IntN(2) == 0 {
		k := r.IntN(len(p.jar)) // somebody comes back
		c.cookie, c.cookieOf = p.jar[k], p.jarOf[k]
	}
	near.owner = c
	h.clients = append(h.clients, c)
	h.active = append(h.active, c)
	w.net.connect(near, vip)
}

func (c *webClient) fault(format string, args ...any) {
	c.h.w.fail("%s: %s; %v", c.name, fmt.Sprintf(format, args...), c)
}

func (c *webClient) excuse(why string) {
	if c.excused == "" {
		c.excused = why
	}
	for _, a := range c.asks[c.answered:] {
		a.spoil(why)
	}
}

// spoil notes why an answer may be another one than planned.
func (a *ask) spoil(why string) {
	if a.harm == "" {
		a.harm = why
	}
}

func (c *webClient) ended() bool { return c.closed }

func (c *webClient) String() string {
	s := fmt.Sprintf("%s begun %d of %d, answered %d, %d octets unsent, shut %t fin %t rst %t closed %t closing %t aborted %t excused %q tube %v (dead %t, rcv %d, snd %d)", c.name, len(c.asks), c.plan.requests, c.answered, len(c.out),
		c.shut, c.fin, c.rst, c.closed, c.closing, c.aborted, c.excused, c.tube, c.s.dead, len(c.s.rcv), len(c.s.snd))
	if c.answered < len(c.asks) {
		s += ", now " + c.asks[c.answered].String()
	}
	return s
}

func (c *webClient) step(last bool) bool {
	if c.closed || !c.s.connected && !c.s.dead {
		return false
	}
	if c.h.w.net.rng.IntN(2) == 0 {
		return c.hear(last) || c.say(last)
	}
	return c.say(last) || c.hear(last)
}

// text writes a request.
func (c *webClient) encode(a *ask) {
	r := c.h.w.net.rng
	target := fmt.Sprintf("/r/%d", a.id)
	extra := ""
	switch a.kind {
	case pingAsk:
		target = "/ping"
	case nowhereAsk:
		target = "/nowhere"
	case connectAsk:
		target = "far.example:443"
	case upgradeAsk:
		extra = "Connection: Upgrade\r\nUpgrade: octets\r\n"
	case badAsk:
		extra = "Content-Length: 1\r\nContent-Length: 2\r\n"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.%d\r\nHost: %s\r\nX-Id: %d\r\n", a.method, target, a.minor, "far.example:443", a.id)
	b.WriteString(extra)
	if c.cookie != "" {
		fmt.Fprintf(&b, "Cookie: a=b; %s\r\n", c.cookie)
		a.stuckTo = c.cookieOf
	}
	for range r.IntN(4) {
		fmt.Fprintf(&b, "X-Fill: %s\r\n", strings.Repeat("x", r.IntN(300)))
	}
	switch {
	case a.closes && a.minor == 1:
		b.WriteString("Connection: close\r\n")
	case !a.closes && a.minor == 0:
		b.WriteString("Connection: keep-alive\r\n")
	}
	body := []byte{}
	if a.framing != bodiless {
		body = make([]byte, a.size)
		fill(body, a.up(), 0)
	}
	switch a.framing {
	case byLength:
		fmt.Fprintf(&b, "Content-Length: %d\r\n", a.size)
	case chunked:
		b.WriteString("Transfer-Encoding: chunked\r\n")
		body = inChunks(body, r.IntN)
	}
	if a.expect {
		b.WriteString("Expect: 100-continue\r\n")
	}
	b.WriteString("\r\n")
	c.pause = 0
	if a.expect {
		c.pause = len(body)
		c.patience = c.h.w.net.now.Add(time.Duration(r.IntN(int(2 * time.Second))))
	}
	c.out = append([]byte(b.String()), body...)
	if a.tunnels() {
		c.tube = &tube{key: a.up(), total: a.size, peerKey: a.down(), peerTotal: a.answerSize}
		if c.plan.eager {
			n := r.IntN(1 + min(a.size, 3000))
			early := make([]byte, n)
			fill(early, a.up(), 0)
			c.out, c.tube.said = append(c.out, early...), n
		}
	}
}

// next begins a request, if the client may.
func (c *webClient) next(last bool) bool {
	w := c.h.w
	if c.closing || c.shut || len(c.asks) >= c.plan.requests || len(c.asks)-c.answered >= c.plan.depth || w.net.now < c.thinks && !last {
		return false
	}
	if n := len(c.asks); n > 0 {
		if a := c.asks[n-1]; a.closes || a.kind == badAsk || (a.kind == upgradeAsk || a.kind == connectAsk) && !a.done {
			return false
		}
	}
	a := c.h.newAsk(c, w.calm)
	a.begunAt = w.turns
	c.asks = append(c.asks, a)
	c.encode(a)
	if w.net.rng.IntN(3) == 0 {
		c.thinks = w.net.now.Add(time.Duration(w.net.rng.IntN(int(time.Second))))
	}
	return true
}

func (c *webClient) say(last bool) bool {
	w := c.h.w
	if c.shut || c.rst {
		return false
	}
	p := &c.plan
	switch {
	case c.closing && len(c.out) > 0 && w.net.rng.IntN(3) == 0:
		c.out = nil // nobody will look at it
		return true
	case len(c.out) > 0:
		n := min(p.mouth, len(c.out))
		if waits := len(c.out) - c.pause; c.pause > 0 {
			if waits == 0 {
				if w.net.now < c.patience && !last && c.answered < len(c.asks) {
					return false
				}
				c.pause = 0
			} else {
				n = min(n, waits)
			}
		}
		if p.abortSaid > 0 {
			if c.said >= p.abortSaid {
				return c.abort()
			}
			n = min(n, p.abortSaid-c.said)
		}
		n, e := c.s.send(c.out[:n])
		c.out = c.out[n:]
		c.said += n
		if e != 0 && n == 0 {
			return c.s.dead && c.lost()
		}
		return n > 0
	case c.tube != nil && c.tube.open:
		did, e := c.tube.say(c.s, c.h.room[:p.mouth])
		if e != 0 && !did {
			return c.s.dead && c.lost()
		}
		if c.tube.shut {
			c.shut = true
			c.end()
		}
		return did
	case c.next(last):
		return true
	case c.finished():
		c.shut = true
		c.s.shutdown()
		c.end()
		return true
	}
	return false
}

// finished tells whether the client says FIN now.
func (c *webClient) finished() bool {
	n := len(c.asks)
	asked := n > 0 && (n >= c.plan.requests || c.asks[n-1].closes || c.asks[n-1].kind == badAsk)
	switch {
	case c.fin:
		return true
	case c.closing: // and not within the answer: a request that is cut off is none
		return c.plan.hasty && c.head == nil
	case c.tube != nil:
		return false
	case asked && c.plan.closesEarly:
		return true
	}
	return asked && c.answered == n && !c.asks[n-1].closes
}

// abort ends the connection in the midst of what is said or heard.
func (c *webClient) abort() bool {
	c.aborted = true
	c.excuse("it ended in the midst")
	if c.plan.abortByFIN {
		c.plan.abortSaid, c.out = 0, nil
		c.shut = true
		c.s.shutdown()
		c.end()
		return true
	}
	c.closed = true
	c.s.excuse("its peer reset it")
	c.s.orphan = true
	c.s.reset()
	return true
}

func (c *webClient) hear(last bool) bool {
	w := c.h.w
	if c.fin || c.rst {
		return false
	}
	if w.net.now < c.sleeps && !last {
		return false
	}
	if c.plan.sloth > 0 && !last && w.net.rng.IntN(c.plan.sloth) == 0 {
		c.sleeps = w.net.now.Add(time.Duration(1+w.net.rng.IntN(1000)) * time.Millisecond)
		return true
	}
	b := c.h.room[:c.plan.gulp]
	n, e := c.s.recv(b)
	switch {
	case n > 0:
		if c.denied {
			c.fault("it is denied and got %d octets", n)
		}
		c.read += n
		c.in = append(c.in, b[:n]...)
		for w.failed == nil && !c.closed && c.digest() {
		}
		if c.plan.abortRead > 0 && c.read >= c.plan.abortRead && !c.closed {
			c.plan.abortByFIN = false
			c.abort()
		}
		return true
	case e == 0 && !(c.s.dead && !c.s.finIn):
		c.fin = true
		c.atFIN()
		c.end()
		return true
	case e == 0 || c.s.dead:
		return c.lost()
	}
	return false
}

// lost notes RST.
func (c *webClient) lost() bool {
	if c.rst {
		return false
	}
	// What came before it is still to be read.
	for len(c.s.rcv) > 0 {
		b := make([]byte, len(c.s.rcv))
		n, _ := c.s.recv(b)
		c.in = append(c.in, b[:n]...)
		for c.h.w.failed == nil && c.digest() {
		}
	}
	c.rst, c.closed = true, true
	c.s.orphan = true
	c.cutOff()
	return true
}

// cutOff sees whether the end is one that something explains.
func (c *webClient) cutOff() {
	if c.excused != "" || c.closing && c.head == nil {
		return
	}
	// It was told the end and goes on talking: that is listened to for a while only, and
	// RST throws away what it has not read (RFC 9112, section 9.6).
	if c.closing && len(c.out) > 0 {
		return
	}
	for _, a := range c.asks[c.answered:] {
		if a.harm != "" {
			return
		}
	}
	c.h.cutOff = append(c.h.cutOff, c)
}

// atFIN judges FIN: it may come between answers, or at the end of one that
// nothing else ends.
func (c *webClient) atFIN() {
	switch {
	case c.numb:
		return
	case c.tube != nil && c.tube.open:
		c.tube.ended(c.fault, c.excused)
		return
	case c.head != nil && c.body.framing == untilClose:
		if a := c.asks[c.answered]; c.got != a.wanted() && strings.Contains(c.excused, "process") {
			return // the kernel closes what a dead process had
		}
		c.over()
		return
	case (c.head != nil || len(c.in) > 0) && c.excused == "":
		c.fault("FIN in the midst of an answer")
		return
	}
	if done := c.answered == len(c.asks); !c.closing && !(done && c.shut) {
		c.cutOff()
	}
	c.closing = true
}

// wanted is how much content the answer has on its way to the client.
func (a *ask) wanted() int {
	if a.bare() {
		return 0
	}
	return a.answerSize
}

func (c *webClient) end() {
	if c.shut && c.fin && !c.closed {
		c.closed = true
		c.s.close()
	}
}

// digest takes the next piece of what has come.
func (c *webClient) digest() bool {
	if c.numb {
		c.in = nil
		return false
	}
	if c.tube != nil && c.tube.open {
		n := len(c.in)
		c.tube.hear(c.in, c.fault)
		c.in = nil
		return n > 0
	}
	if c.head == nil {
		h, n, err := cutHead(c.in)
		if err != nil {
			c.fault("no head: %v", err)
		}
		if n == 0 || err != nil {
			return false
		}
		c.in = c.in[n:]
		if c.answered >= len(c.asks) {
			c.fault("an answer to nothing: %q", h.line)
			return false
		}
		return c.begins(c.asks[c.answered], &h)
	}
	n, data, err := c.body.next(c.in)
	if err != nil {
		c.fault("in an answer's body: %v", err)
		return false
	}
	if c.own {
		c.text = append(c.text, data...)
	} else if len(data) > 0 {
		a := c.asks[c.answered]
		if at := same(data, a.down(), c.got); at >= 0 || c.got+len(data) > a.wanted() {
			c.fault("octet %d of the answer is wrong (%d of %d)", at, c.got+len(data), a.wanted())
			return false
		}
	}
	c.got += len(data)
	c.in = c.in[n:]
	if c.body.over {
		c.over()
		return true
	}
	return n > 0
}

// begins looks at the head of an answer.
func (c *webClient) begins(a *ask, h *head) bool {
	parts := strings.SplitN(h.line, " ", 3)
	status, err := 0, error(nil)
	if len(parts) == 3 && parts[0] == "HTTP/1.1" {
		status, err = strconv.Atoi(parts[1])
	}
	if status == 0 || err != nil {
		c.fault("no status line: %q", h.line)
		return false
	}
	id := h.get("x-id")
	c.own = id == ""
	if !c.own && id != strconv.Itoa(a.id) {
		c.fault("an answer (%d) to request %s", status, id)
		return false
	}
	if status < 200 && status != 101 {
		if c.own || a.minor == 0 {
			c.fault("an interim answer %d", status)
			return false
		}
		c.interims++
		c.pause = 0
		return true
	}
	if !c.own && c.interims != a.said && a.minor == 1 {
		c.fault("%d interim answers came before the final one, %d were sent", c.interims, a.said)
		return false
	}
	c.interims, c.status = 0, status
	if !c.own {
		c.keepCookie(a, h)
	}
	if c.own {
		c.judgeOwn(a, status)
	} else if status != a.status {
		c.fault("status %d", status)
		return false
	}
	if h.says("connection", "close") || a.minor == 0 && !h.says("connection", "keep-alive") {
		c.closing = true
	}
	if !c.own && a.tunnels() {
		c.closing = false
		a.done = true
		c.answered++
		c.tube.open = true
		return true
	}
	if a.tunnels() { // it was refused
		if c.tube.said > 0 {
			c.excuse("what it said early is no request")
			c.out, c.numb, c.closing = nil, true, true
		}
		c.tube = nil
	}
	f, n, err := h.framed(true)
	if a.bare() && !c.own || a.method == "HEAD" {
		f = bodiless
	}
	if err != nil {
		c.fault("%v", err)
		return false
	}
	if want := a.framedAs(); !c.own && (f != want || f == byLength && n != a.answerSize) {
		c.fault("the answer is framed by %v (%d), not %v", f, n, want)
		return false
	}
	if f == untilClose && !c.closing {
		c.fault("an answer until the end, which is not said")
		return false
	}
	c.head, c.body, c.got, c.text = h, newContent(f, n), 0, nil
	if c.body.over {
		c.over()
	}
	return true
}

// framedAs is how the answer's end is to be known to the client.
func (a *ask) framedAs() framing {
	switch {
	case a.bare():
		return bodiless
	case a.answerFraming == chunked && a.minor == 0:
		return untilClose
	}
	return a.answerFraming
}

// over ends an answer that is whole.
func (c *webClient) over() {
	a := c.asks[c.answered]
	switch {
	case c.own && a.method != "HEAD" && c.status >= 400 && !strings.HasPrefix(string(c.text), fmt.Sprint(c.status, " ")):
		c.fault("an answer of the balancer's own: %q", c.text)
	case c.own && c.status == 200 && string(c.text) != "pong\n" && a.method != "HEAD":
		c.fault("an answer of the balancer's own: %q", c.text)
	case !c.own && c.got != a.wanted():
		c.fault("an answer with %d octets, not %d", c.got, a.wanted())
	}
	a.done = true
	c.answered++
	c.head = nil
}

// judgeOwn sees whether there is a reason for an answer that no server gave.
func (c *webClient) judgeOwn(a *ask, status int) {
	h := c.h
	a.own = status
	if status >= 500 {
		h.w.note("%s: the balancer answers %d to request %d", c.name, status, a.id)
	}
	faults := h.w.net.faults.Last != ""
	ok := false
	switch {
	case status == 429:
		ok = h.w.policy != nil && h.w.policy.askRate > 0
	case a.kind == badAsk:
		ok = status == 400
	case a.kind == pingAsk:
		ok = status == 200
	case a.kind == nowhereAsk:
		ok = status == 404
	case c.excused != "" || a.harm != "":
		ok = status >= 400
	case status == 502 && a.repeatable():
		h.safe502 = append(h.safe502, a)
		ok = true
	case status == 502:
		h.unsafe502 = append(h.unsafe502, a)
		ok = true
	case status == 503 && h.w.policy != nil && (h.w.policy.wasBarren("app", a.begunAt) || h.w.policy.sink[1] == "503"):
		ok = true
	case status == 503:
		ok = faults || h.shape.broken > 0 || h.shape.queue < 50
	case status == 504:
		ok = faults || h.shape.broken > 0 || h.shape.hurried
	case status == 408:
		ok = h.shape.hurried
	}
	if !ok {
		c.fault("the balancer answers %d by itself", status)
	}
}

// keepCookie looks at the cookie of an answer: there is one if the client had
// none of the endpoint that answers, and it keeps that.
func (c *webClient) keepCookie(a *ask, h *head) {
	p := c.h.w.policy
	if p == nil || !strings.HasPrefix(p.sticky[1], "cookie") || len(a.arrivals) == 0 {
		return
	}
	by := a.arrivals[len(a.arrivals)-1].svc.endpoint + 1
	set, _, _ := strings.Cut(h.get("set-cookie"), ";")
	switch {
	case a.tunnels():
	case set == "" && a.stuckTo != by:
		c.fault("no cookie for endpoint %d, it had one of %d", by-1, a.stuckTo-1)
	case set != "" && a.stuckTo == by:
		c.fault("one more cookie for endpoint %d", by-1)
	case set != "" && !strings.HasPrefix(set, "hf="):
		c.fault("the cookie %q", set)
	}
	if set != "" {
		c.cookie, c.cookieOf = set, by
		p.jar, p.jarOf = append(p.jar, set), append(p.jarOf, by)
	}
}
