package flow

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// books hold what a test world is told of exchanges.
type books struct {
	told     []string // by the step under way
	numbers  []uint32 // of all records, in order
	status   []int
	in, out  uint64 // octets of all of them
	pending  string // what the record of a flow would be that was frozen
	headless bool   // the last one was of a request whose head never came
	wrong    error  // the first record that cannot be
	piped    bool   // pipes hold octets, so a flow knows of them at another time
}

// take is a [Desk]'s Report.
func (k *books) take(r *Record) {
	k.told = append(k.told, "record "+k.describe(r))
	k.numbers = append(k.numbers, r.Number)
	k.status = append(k.status, r.Status)
	k.headless = r.Head < 0
	k.in += r.In
	k.out += r.Out
	if err := impossibleRecord(r); err != nil && k.wrong == nil {
		k.wrong = fmt.Errorf("%w: %s", err, k.told[len(k.told)-1])
	}
}

// sum takes what a flow that is removed has not told.
func (k *books) sum(now Instant, f *Flow) {
	var r Record
	if f.work != nil && f.Sum(now, &r) {
		k.take(&r)
	}
}

// promised is what a flow would tell if it ended now.
func (k *books) promised(now Instant, f *Flow) string {
	var r Record
	if !f.Sum(now, &r) {
		return "nothing"
	}
	return k.describe(&r)
}

func (k *books) lines() (out string) {
	for _, line := range k.told {
		out += "\n  " + line
	}
	return out
}

// describe writes all of a record but what a move may change.
func (k *books) describe(r *Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%x/%d %v %v %v, %d attempts, %v", r.Flow, r.Number, r.Listener.Ref.Name, r.Protocol, r.Client, r.Attempts, r.Cause)
	if !k.piped {
		fmt.Fprintf(&b, " in %v", r.Phase)
	}
	for _, x := range []struct {
		name string
		on   bool
	}{{"stuck", r.Stuck}, {"reused", r.Reused}, {"own", r.Own}, {"tunnel", r.Tunnel}} {
		if x.on {
			b.WriteString(" " + x.name)
		}
	}
	if r.Route >= 0 {
		fmt.Fprintf(&b, ", route %d", r.Route)
	}
	if r.Backend != nil {
		fmt.Fprintf(&b, ", backend %s", r.Backend.Ref.Name)
	}
	if r.Endpoint != nil {
		fmt.Fprintf(&b, ", endpoint %s", r.Endpoint.Name)
	}
	fmt.Fprintf(&b, ", status %d of 1.%d, total %v", r.Status, r.Minor, r.Total)
	for _, x := range []struct {
		name string
		took time.Duration
	}{{"head", r.Head}, {"wait", r.Wait}, {"connect", r.Connect}, {"answer", r.Answer}} {
		if x.took >= 0 {
			fmt.Fprintf(&b, " %s %v", x.name, x.took)
		}
	}
	if !k.piped {
		fmt.Fprintf(&b, ", in %d out %d", r.In, r.Out)
	}
	if n := r.Note; n.Method != nil {
		fmt.Fprintf(&b, ", %.40q %.40q %.40q %.40q", n.Method, n.Target, n.Host, n.Agent)
	}
	return b.String()
}

// impossibleRecord tells what in a record could not be.
func impossibleRecord(r *Record) error {
	parts := time.Duration(0)
	for _, part := range []time.Duration{r.Head, r.Wait, r.Connect, r.Answer} {
		if part < -1 {
			return errors.New("a part of a negative time")
		}
		parts += max(0, part)
	}
	switch {
	case r.Listener == nil || r.Flow == 0:
		return errors.New("a record of nothing")
	case parts > r.Total:
		return errors.New("its parts are longer than it")
	case r.Cause == NotEnded || int(r.Cause) >= Causes:
		return errors.New("it ended for no reason")
	case r.In > 1<<40 || r.Out > 1<<40:
		return errors.New("more octets than there are")
	case r.Endpoint != nil && (r.Backend == nil || r.Endpoint.Backend != r.Backend.Ref.Name), r.Attempts > 0 && r.Endpoint == nil && r.Number > 0:
		return errors.New("an endpoint of no backend, or an attempt at none")
	case r.Number > 0 && r.Head < 0 && r.Cause == Finished:
		return errors.New("it went well without a head")
	case len(r.Note.Method) > noteMethodMax || len(r.Note.Target) > noteTargetMax || len(r.Note.Host) > noteHostMax || len(r.Note.Agent) > noteAgentMax:
		return errors.New("a note that is too long")
	}
	return nil
}

// What flows cost: a pair of TCP has a Flow and a work, an idle client of HTTP a
// Flow.
func TestSizes(t *testing.T) {
	for _, c := range []struct {
		of        string
		got, most uintptr
	}{
		{"a flow", unsafe.Sizeof(Flow{}), 88},
		{"a work", unsafe.Sizeof(work{}), 160},
		{"an exchange", unsafe.Sizeof(exchange{}), 240},
		{"an entry", unsafe.Sizeof(entry{}), 112},
	} {
		if c.got > c.most {
			t.Errorf("%s has %d octets, want at most %d", c.of, c.got, c.most)
		}
	}
}

// always lets requests pass and be tried again.
type always struct{ passes, retries int }

func (a *always) Pass(int64, *config.Listener, int, netip.Addr) time.Duration {
	a.passes++
	return 0
}

func (a *always) AllowRetry(*config.Backend, *ledger.Asking) bool {
	a.retries++
	return true
}

// cycle is one request and its response on a flow, as a loop would do it: with a
// note, a record, a cookie that is read or set, rates, a trusted proxy, and, if
// busy, a response that is thrown away. It gives how many records came.
type cycle struct {
	t       testing.TB
	f       Flow
	now     Instant
	d       *Desk
	asking  ledger.Asking
	records int
	good    int
}

func (c *cycle) step(e Event) {
	e.Desk = c.d
	c.f.Step(c.now, e)
	if c.d.Outcome.Set && c.d.Outcome.Good {
		c.good++
	}
	c.d.Outcome = Outcome{}
	c.now += 1e6
}

func (c *cycle) say(s Side, text string) {
	if c.f.Unsettled() {
		c.f.Settle(c.d.Lender)
	}
	room := c.d.Scratch[Headroom:]
	before := copy(room, c.f.Unread(s))
	n := copy(room[before:], text)
	c.step(Event{Kind: Received, Leg: s, Octets: room[:before+n], N: n})
}

func (c *cycle) flush(s Side) {
	var w Wants
	if c.f.Wants(&w); len(w.Out[s]) == 0 {
		c.t.Fatalf("nothing is due to the %v: %v", s, c.f.State())
	}
	c.step(Event{Kind: Wrote, Leg: s, N: len(w.Out[s])})
}

func (c *cycle) ask(request string, endpoint int, responses ...string) {
	c.say(Client, request)
	for _, response := range responses {
		c.f.Ask(&c.asking)
		c.step(Event{Kind: Secured, Endpoint: c.f.Backend().Endpoints[endpoint]})
		c.step(Event{Kind: Dialed})
		c.flush(Backend)
		c.say(Backend, response)
		endpoint++
	}
	c.flush(Client)
	if c.f.Phase() != Idle {
		c.t.Fatalf("it is %v", c.f.Phase())
	}
}

// newCycle is a flow to the listener "behind" of these tests.
func newCycle(t testing.TB) *cycle {
	conf, _, err := config.Parse("test.yaml", []byte(`
listeners:
  behind:
    vip: 10.0.0.5:80
    protocol: http
    backend: sticky
    http: { trust: [ 192.0.2.0/24 ], rate: { requests: 100/s } }
backends:
  sticky:
    balance: maglev
    hash: { by: cookie, name: user }
    retry: { max: 2, on: [ connect, reset, 503 ], budget: 20% }
    sticky: { cookie: { name: hf, key: "`+cookieKeyOfTests+`", maxAge: 1h } }
    endpoints: [ { name: e1, address: 10.0.0.31:80 }, { name: e2, address: 10.0.0.32:80 }, { name: e3, address: 10.0.0.33:80 } ]
accessLog: { to: stderr }
`), nil)
	if err != nil {
		t.Fatal(err)
	}
	l := new(Lender)
	c := &cycle{t: t, now: 1e9, d: NewDesk(l)}
	c.d.Config, c.d.Wall = conf, wallAt
	c.d.Limits, c.d.Retries = &always{}, &always{}
	c.f = New(c.now, 1, conf.Listeners["behind"], nil, AddressOf(netip.MustParseAddrPort("192.0.2.7:4711")), l)
	return c
}

// A request allocates nothing, whatever is noted, hashed, signed, counted, tried
// again and recorded of it.
func TestRequestAllocatesNothing(t *testing.T) {
	const ok, busy = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"
	head := "GET /a?b HTTP/1.1\r\nHost: www.example.org\r\nUser-Agent: test/1\r\nX-Forwarded-For: 2001:db8::7, 192.0.2.9\r\n"
	c, client := newCycle(t), netip.MustParseAddr("2001:db8::7")
	c.d.Report = func(r *Record) {
		c.records++
		if err := impossibleRecord(r); err != nil || string(r.Note.Agent) != "test/1" || r.Client.Addr() != client || r.Status/100 != 2 && r.Status != 503 {
			t.Errorf("%v: %+v", err, r)
		}
	}
	cookie := func(c string) string { return head + "Cookie: user=1; hf=" + c + "\r\n\r\n" }
	for _, x := range []struct {
		name, request string
		responses     []string
	}{
		{"a cookie is set", head + "\r\n", []string{ok}},
		{"a cookie is read", cookie(goodCookie("sticky", "e1", wallAt+9)), []string{ok}},
		{"a cookie is forged", cookie(goodCookie("stick", "e1", wallAt+9)), []string{ok}},
		{"responses are thrown away", head + "\r\n", []string{busy, busy, ok}},
		{"the last one is not", head + "\r\n", []string{busy, busy, busy}},
	} {
		request := func() { c.ask(x.request, 0, x.responses...) }
		request()
		was := c.records
		if n := testing.AllocsPerRun(200, request); n != 0 {
			t.Errorf("%s: %v allocations", x.name, n)
		}
		if got := c.records - was; got != 201 {
			t.Errorf("%s: %d records of 201 requests", x.name, got)
		}
	}
	if p := c.d.Limits.(*always).passes; p != c.records || c.d.Retries.(*always).retries == 0 || c.good == 0 {
		t.Errorf("%d of %d requests were counted, %d retries, %d good outcomes", p, c.records, c.d.Retries.(*always).retries, c.good)
	}
}

// What a request costs in the machine, without a kernel: alone, with a record, a
// note, a cookie.
func BenchmarkRequest(b *testing.B) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	head := "GET /a?b HTTP/1.1\r\nHost: www.example.org\r\nUser-Agent: test/1\r\nAccept: */*\r\n"
	for _, x := range []struct {
		name                 string
		record, note, sticky bool
		fields               string
	}{
		{"alone", false, false, false, ""},
		{"record", true, false, false, ""},
		{"record-and-note", true, true, false, ""},
		{"cookie-read", true, true, true, "Cookie: hf=" + goodCookie("sticky", "e1", wallAt+9) + "\r\n"},
		{"cookie-set", true, true, true, ""},
	} {
		b.Run(x.name, func(b *testing.B) {
			c := newCycle(b)
			conf := *c.d.Config
			if !x.note {
				conf.AccessLog = nil
			}
			if !x.sticky {
				plain := *conf.Backends["sticky"]
				plain.Sticky, plain.Balance = nil, config.RoundRobin
				conf.Backends = map[string]*config.Backend{"sticky": &plain}
			}
			request := head + x.fields + "\r\n"
			c.d.Config = &conf
			if x.record {
				c.d.Report = func(*Record) { c.records++ }
			}
			c.ask(request, 0, ok)
			b.ReportAllocs()
			for b.Loop() {
				c.ask(request, 0, ok)
			}
		})
	}
}
