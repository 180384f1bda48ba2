package sim

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/loop"
)

// policy is the part of a world in which endpoints differ: they have weights,
// limits of their own and standings that an operator changes, clients come back
// to them, sources and rates are bounded, and some endpoints are no servers.
type policy struct {
	w      *World
	stands map[string]*stand // by full name
	barren map[string]*spell // by backend: when nothing was to be had of it
	ops    []*op             // under way
	notes  map[exchangeOf]*told
	told   uint64 // records in all
	denied int    // clients that nobody may serve
	jar    []string
	jarOf  []int

	weights    [2][4]int // of pool, of app
	own        [2]int    // the limit of the first endpoint, 0 = that of all
	sink       [2]string // what a further endpoint does, "" = there is none
	sticky     [2]string // how clients come back
	sourceMax  int
	connRate   int // connections a second to each listener for HTTP, 0 = any
	connBurst  int
	askRate    int
	usesDenied bool
}

// stand is how an endpoint stands in all processes.
type stand struct {
	standing ledger.Standing
	changed  int // the turn
	outSince int // the turn since which it is given nothing new; 0: it is
	settled  bool
}

// spell is when something was last the case.
type spell struct {
	now   bool
	ever  bool
	until int // the turn; 0 never
}

// op is one change of a standing, until every loop has closed its idle legs.
type op struct {
	full  string
	tasks []*task
	procs []*Proc
	turn  int
}

// exchangeOf names what has one record: of HTTP a request, else a flow.
type exchangeOf struct {
	flow   uint64
	number uint32
}

// told is what a record said.
type told struct {
	target string
	client netip.AddrPort
	status int
	http   bool
	n      int
}

func newPolicy(w *World) *policy {
	r := w.net.rng
	p := &policy{w: w, stands: map[string]*stand{}, barren: map[string]*spell{"pool": {}, "app": {}}, notes: map[exchangeOf]*told{}}
	for k := range p.weights {
		for i := range p.weights[k] {
			p.weights[k][i] = 1 + r.IntN(4)
		}
		if r.IntN(3) == 0 {
			p.own[k] = 1 + r.IntN(4)
		}
	}
	if r.IntN(4) == 0 {
		p.sink[0] = []string{"reset", "hold", "503"}[r.IntN(3)]
	}
	if r.IntN(4) == 0 {
		p.sink[1] = []string{"reset", "hold", "503"}[r.IntN(3)]
	}
	if r.IntN(3) == 0 {
		p.sticky[0] = "source: {}"
	}
	p.sticky[1] = []string{"", "cookie: { name: hf }", "cookie: { name: hf, maxAge: 1h, key: 0123456789abcdef0123456789abcdef }", "source: {}"}[r.IntN(4)]
	if r.IntN(3) == 0 {
		p.sourceMax = 1 + r.IntN(4)
	}
	if r.IntN(3) == 0 {
		p.connRate, p.connBurst = 1+r.IntN(20), 1+r.IntN(3)
	}
	if r.IntN(4) == 0 {
		p.askRate = 5 + r.IntN(50)
	}
	p.usesDenied = r.IntN(3) == 0
	return p
}

// source is the address of a new client; some have no business here.
func (p *policy) source(from netip.Addr) (a netip.Addr, denied bool) {
	if p == nil {
		return from, false
	}
	r := p.w.net.rng
	if p.usesDenied && r.IntN(6) == 0 {
		p.denied++
		return deniedSource, true
	}
	return netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + r.IntN(4))}), false
}

var deniedSource = netip.MustParseAddr("192.0.2.66")

// ofListener is what the configuration says of each listener: with commas before,
// or, for HTTP, with semicolons between.
func (p *policy) ofListener(web bool) string {
	if p == nil {
		return ""
	}
	all := []string{"deny: [ 192.0.2.64/28 ]"}
	if p.sourceMax > 0 {
		all = append(all, fmt.Sprintf("sourceConnectionsMax: %d", p.sourceMax))
	}
	if web && p.connRate > 0 {
		all = append(all, fmt.Sprintf("rate: { connections: %d/s, burst: %d }", p.connRate, p.connBurst))
	}
	if web {
		return strings.Join(all, ";")
	}
	return ", " + strings.Join(all, ", ")
}

// webListener is what it says of a listener for HTTP, a line each.
func (p *policy) webListener(b *strings.Builder) {
	for line := range strings.SplitSeq(p.ofListener(true), ";") {
		if line != "" {
			b.WriteString("    " + line + "\n")
		}
	}
}

// ofRules is what it says of requests, with commas before.
func (p *policy) ofRules() string {
	if p == nil || p.askRate == 0 {
		return ""
	}
	return fmt.Sprintf(", rate: { requests: %d/s, burst: %d }", p.askRate, 1+p.askRate/5)
}

// kind is the index of a backend in what is there for both.
func kind(backend string) int {
	if backend == "app" {
		return 1
	}
	return 0
}

// ofBackend is what the configuration says of a backend, a line each.
func (p *policy) ofBackend(b *strings.Builder, backend string) {
	if p != nil && p.sticky[kind(backend)] != "" {
		fmt.Fprintf(b, "    sticky: { %s }\n", p.sticky[kind(backend)])
	}
}

// ofEndpoint is what it says of one, with commas before.
func (p *policy) ofEndpoint(backend string, i int) string {
	if p == nil {
		return ""
	}
	s := fmt.Sprintf(", weight: %d", p.weights[kind(backend)][i])
	if i == 0 && p.own[kind(backend)] > 0 {
		s += fmt.Sprintf(", connections: %d", p.own[kind(backend)])
	}
	return s
}

// sinks are further endpoints.
func (p *policy) sinks(b *strings.Builder, backend string) {
	if p != nil && p.sink[kind(backend)] != "" {
		fmt.Fprintf(b, "      - { name: zz, drop: %q, weight: 1 }\n", p.sink[kind(backend)])
	}
}

// limit is how many connections or requests an endpoint takes at once under the
// first configuration; 0 is any.
func (p *policy) limit(backend string, i, all int) int {
	if p != nil && i == 0 && p.own[kind(backend)] > 0 {
		return p.own[kind(backend)]
	}
	return all
}

// stand is how an endpoint stands; it is made when it is first asked for.
func (p *policy) stand(full string) *stand {
	s := p.stands[full]
	if s == nil {
		s = &stand{standing: ledger.Standing{Weight: -1, Permille: 1000}, settled: true}
		p.stands[full] = s
	}
	return s
}

// endpoints are the full names of those of a backend that are servers.
func (p *policy) endpoints(backend string) (all []string) {
	n := p.w.shape.endpoints
	if backend == "app" {
		n = p.w.webEndpoints()
	}
	for i := range n {
		all = append(all, fmt.Sprintf("%s/%s%d", backend, map[string]string{"pool": "e", "app": "a"}[backend], i))
	}
	return all
}

func takes(s *ledger.Standing) bool {
	return s.Admin == ledger.Ready && !s.Ejected && s.Weight != 0
}

// keepsSticky tells whether an endpoint that stands so serves those that were
// there before.
func keepsSticky(s *ledger.Standing) bool {
	return (s.Admin == ledger.Ready || s.Admin == ledger.Quiescing) && !s.Ejected
}

// change does what an operator, or a judge of endpoints, does to one of them.
func (p *policy) change() {
	w, r := p.w, p.w.net.rng
	backend := "pool"
	if w.web != nil && r.IntN(3) > 0 {
		backend = "app"
	}
	all := p.endpoints(backend)
	full := all[r.IntN(len(all))]
	s := p.stand(full)
	if !s.settled {
		return // one at a time
	}
	was := s.standing
	switch r.IntN(8) {
	case 0, 1:
		s.standing.Admin = ledger.Quiescing
	case 2:
		s.standing.Admin = ledger.Maintenance
	case 3:
		s.standing.Admin = ledger.Held
	case 4:
		s.standing.Weight = []int{0, 1, 300, -1}[r.IntN(4)]
	case 5:
		s.standing.Ejected = !s.standing.Ejected
	default:
		s.standing = ledger.Standing{Weight: -1, Permille: []int{1000, 300}[r.IntN(2)]}
	}
	p.apply(full, was)
}

// ready puts all endpoints back into service.
func (p *policy) ready() {
	for _, full := range slices.Sorted(maps.Keys(p.stands)) {
		if s := p.stands[full]; !takes(&s.standing) {
			was := s.standing
			s.standing = ledger.Standing{Weight: -1, Permille: 1000}
			p.apply(full, was)
		}
	}
}

// apply makes the standing of an endpoint hold in every process, and has each
// loop close the idle legs of one that is taken out, as package node does.
func (p *policy) apply(full string, was ledger.Standing) {
	w, s := p.w, p.stand(full)
	backend, _, _ := strings.Cut(full, "/")
	w.note("%s stands %+v", full, s.standing)
	o := &op{full: full, turn: w.turns}
	s.changed, s.settled = w.turns, false
	for _, x := range w.procs {
		if x.dead {
			continue
		}
		got := x.shared.Ledger.Backend(backend).Stand(full, func(to *ledger.Standing) { *to = s.standing })
		if got != s.standing {
			w.fail("%s: %s is to stand %+v, and stands %+v", x.name, full, s.standing, got)
		}
		if !takes(&s.standing) {
			o.procs = append(o.procs, x)
			o.tasks = append(o.tasks, x.task("close idle legs", func(t *task) {
				for _, l := range x.shared.Loops {
					t.ask(l, func(l *loop.Loop) { l.CloseIdle(full) })
				}
			}))
		}
	}
	switch now := takes(&s.standing); {
	case now:
		s.outSince = 0
	case takes(&was):
		s.outSince = w.turns
	}
	p.ops = append(p.ops, o)
	p.look()
}

// inherit makes a new process know how endpoints stand.
func (p *policy) inherit(x *Proc) {
	if p == nil {
		return
	}
	for full, s := range p.stands {
		backend, _, _ := strings.Cut(full, "/")
		x.shared.Ledger.Backend(backend).Stand(full, func(to *ledger.Standing) { *to = s.standing })
	}
}

// look sees which backends have nobody that serves or is held.
func (p *policy) look() {
	for backend, b := range p.barren {
		some := p.sink[kind(backend)] != ""
		for _, full := range p.endpoints(backend) {
			s := p.stand(full).standing
			some = some || takes(&s) || s.Admin == ledger.Held
		}
		if b.now && some {
			b.until = p.w.turns
		}
		b.now = !some
		b.ever = b.ever || b.now
	}
}

// wasBarren tells whether at some time since the turn there was nobody.
func (p *policy) wasBarren(backend string, since int) bool {
	if p == nil {
		return false
	}
	b := p.barren[backend]
	return b.now || b.until > 0 && b.until >= since
}

// check looks at the world after a turn.
func (p *policy) check() {
	w := p.w
	p.ops = slices.DeleteFunc(p.ops, func(o *op) bool {
		for i, t := range o.tasks {
			if !t.over && !o.procs[i].dead {
				return false
			}
		}
		p.stand(o.full).settled = true
		return true
	})
	for _, x := range w.procs {
		if x.dead {
			continue
		}
		for _, l := range x.shared.Loops {
			for full, s := range p.stands {
				if n := l.IdleTo(full); n > 0 && s.outSince > 0 && s.settled {
					w.fail("%s: %d legs to %s are idle, which is out of service since turn %d", x.name, n, full, s.outSince)
					return
				}
			}
		}
		if p.sourceMax > 0 && len(w.hosts) == 1 {
			p.checkSources(x)
		}
	}
}

func (p *policy) checkSources(x *Proc) {
	type of struct {
		listener string
		source   netip.Addr
	}
	open := map[of]int{}
	for _, l := range x.shared.Loops {
		for _, i := range l.Slots(0, nil) {
			f := l.Flow(i)
			key := of{f.Listener().Ref.Name, f.Client().Addr()}
			if open[key]++; open[key] > p.sourceMax && !p.moved() {
				p.w.fail("%s: %d connections of %v to %s, the limit for a source is %d", x.name, open[key], key.source, key.listener, p.sourceMax)
			}
		}
	}
}

// moved tells whether flows have come from other processes, which count their
// sources for themselves.
func (p *policy) moved() bool { return len(p.w.procs) > len(p.w.hosts) }

// arrives judges that a request comes to the endpoint of a server.
func (p *policy) arrives(a *ask, s *webServer) {
	if p == nil {
		return
	}
	full := fmt.Sprintf("app/a%d", s.svc.endpoint)
	x := p.stand(full)
	if x.outSince > 0 && a.begunAt > x.outSince && a.begunAt > x.changed {
		known := strings.HasPrefix(p.sticky[1], "source") || a.stuckTo == s.svc.endpoint+1
		if !known || !keepsSticky(&x.standing) {
			s.fault("a request of turn %d, %s is out of service since turn %d: %+v", a.begunAt, full, x.outSince, x.standing)
		}
	}
	if a.stuckTo == 0 || a.stuckTo == s.svc.endpoint+1 || len(a.arrivals) > 0 {
		return
	}
	to := fmt.Sprintf("app/a%d", a.stuckTo-1)
	y := p.stand(to)
	if keepsSticky(&y.standing) && a.begunAt > y.changed && p.quiet() {
		s.fault("a request of a client of %s", to)
	}
}

// quiet tells whether no connect has ever failed.
func (p *policy) quiet() bool {
	n := p.w.tally.Retries
	for _, x := range p.w.procs {
		if !x.dead {
			for _, l := range x.shared.Loops {
				n += l.Count.Retries
			}
		}
	}
	return n == 0
}

// record is a [loop.Sink] that remembers for which exchange it was told.
type record struct{ p *policy }

// Note wants that nothing is told twice.
func (s record) Note(_ flow.Instant, r *flow.Record) {
	key := exchangeOf{r.Flow, r.Number}
	x := s.p.notes[key]
	if x == nil {
		x = &told{target: string(r.Note.Target), client: r.Client, status: r.Status, http: r.Number > 0}
		s.p.notes[key] = x
	}
	s.p.told++
	if x.n++; x.n > 1 {
		s.p.w.fail("flow %x, request %d: %d records, the first %+v, this one %+v", r.Flow, r.Number, x.n, *x, *r)
	}
	if r.Total < 0 || r.In > 1<<40 || r.Out > 1<<40 {
		s.p.w.fail("flow %x, request %d: %+v", r.Flow, r.Number, *r)
	}
}

// Flush has nothing to do: all is remembered at once.
func (record) Flush(flow.Instant) {}

// recordsOf is a sink for each loop of a process.
func (p *policy) recordsOf(loops int) (all []loop.Sink) {
	if p != nil {
		for range loops {
			all = append(all, record{p})
		}
	}
	return all
}

// gone judges a process that has ended or is about to: it has noted each connect
// that failed, and nobody counts any more under his source.
func (p *policy) gone(x *Proc, empty bool) {
	for _, e := range x.shared.Ledger.Endpoints() {
		if _, failures := e.Tries(); failures < e.Errors() {
			p.w.fail("%s: %s: %d failures are noted, %d connects have failed", x.name, e.Name, failures, e.Errors())
		}
	}
	if p.sourceMax == 0 || !empty {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(x.gen.Listening)) {
		lis := x.gen.Listening[name].Object
		for i := range 4 {
			a := netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i)})
			for n := range p.sourceMax {
				if !x.shared.Ledger.EnterSource(int64(p.w.net.now), lis, a) {
					p.w.fail("%s: %v still has %d connections to %s at the end", x.name, a, p.sourceMax-n, name)
					return
				}
			}
			if x.shared.Ledger.EnterSource(int64(p.w.net.now), lis, a) {
				p.w.fail("%s: %v may have more than %d connections to %s", x.name, a, p.sourceMax, name)
			}
		}
	}
}

// judge looks at the records when all is over: one for each request that came to
// a server, and one for each client that came through without HTTP.
func (p *policy) judge() {
	w := p.w
	byTarget, byClient := map[string]*told{}, map[netip.AddrPort]*told{}
	for _, x := range p.notes {
		if x.http {
			byTarget[x.target] = x
		} else {
			byClient[x.client] = x
		}
	}
	if p.must() && w.tally.Ended[flow.NoEndpoint] > 0 {
		w.fail("%d flows found no endpoint, though at all times one served or was held", w.tally.Ended[flow.NoEndpoint])
	}
	crashed := slices.ContainsFunc(w.procs, func(x *Proc) bool { return x.crashed })
	if crashed || w.lost > 0 {
		return // what it had not told yet, or nobody knows who had, nobody tells
	}
	for _, c := range w.peers {
		if c.client && c.got > 0 && byClient[c.s.local] == nil {
			w.fail("nothing was recorded of the flow of %v", c)
		}
	}
	if w.web == nil {
		return
	}
	for _, a := range w.web.asks {
		if a.kind != plainAsk || len(a.arrivals) == 0 {
			continue
		}
		switch x := byTarget[fmt.Sprintf("/r/%d", a.id)]; {
		case x == nil:
			w.fail("nothing was recorded of %v", a)
		case a.done && a.own == 0 && x.status != a.status:
			w.fail("status %d was recorded of %v", x.status, a)
		case a.own != 0 && x.status != a.own && x.status != a.status:
			w.fail("status %d was recorded of %v", x.status, a)
		}
	}
}

// must tells whether every client without HTTP must find an endpoint sooner or
// later.
func (p *policy) must() bool {
	w := p.w
	return w.shape.broken == 0 && w.net.faults.Last == "" && p.quiet() && !p.barren["pool"].ever && !p.barren["app"].ever && (w.web == nil || w.web.shape.broken == 0)
}

// refused counts connections that were reset when they were accepted, or ended
// by a sink: reasons for an end.
func (w *World) refused() (n uint64) {
	for _, k := range w.tally.Refused {
		n += k
	}
	return n + w.tally.Ended[flow.Dropped] + w.tally.Ended[flow.RateLimited]
}

// acceptedAt counts what a process has accepted at one listener.
type acceptedAt struct {
	since flow.Instant
	n     int
}

// checkRate wants that a process has never accepted more than its rate allows.
func (p *policy) checkRate(t *FDs, l *Listener) {
	if p.connRate == 0 || t.rest || !slices.Contains(webVIPs[:], l.at) {
		return
	}
	x := t.accepted[l]
	if x == nil {
		x = &acceptedAt{since: p.w.net.now}
		if t.accepted == nil {
			t.accepted = map[*Listener]*acceptedAt{}
		}
		t.accepted[l] = x
	}
	x.n++
	every := time.Second / time.Duration(p.connRate)
	if most := p.connBurst + 1 + int(time.Duration(p.w.net.now-x.since)/every); x.n > most && p.w.shape.revision == 0 {
		p.w.fail("%d connections were accepted at %v in %v, at most %d a second and %d at once may be", x.n, l.at, time.Duration(p.w.net.now-x.since), p.connRate, p.connBurst)
	}
}
