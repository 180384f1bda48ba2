package node

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// web is a server for HTTP that can be told how to behave.
type web struct {
	name    string
	address string
	served  atomic.Int64 // requests that were answered
	checks  atomic.Int64 // probes that were answered
	status  atomic.Int64 // of answers to probes
	fails   atomic.Bool  // requests are answered 503
	slow    chan struct{}
	server  *http.Server
	listen  net.Listener
}

func appServer(t *testing.T, name string) *web {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &web{name: name, address: l.Addr().String(), slow: make(chan struct{}), listen: l}
	w.status.Store(200)
	w.server = &http.Server{Handler: w}
	done := make(chan struct{})
	go func() { // ended by Close
		defer close(done)
		_ = w.server.Serve(l)
	}()
	t.Cleanup(func() { _ = w.server.Close(); <-done })
	return w
}

// ServeHTTP answers probes of /check, waits for slow with /slow.
func (w *web) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/check":
		w.checks.Add(1)
		out.WriteHeader(int(w.status.Load()))
		return
	case w.fails.Load():
		out.WriteHeader(http.StatusServiceUnavailable)
		return
	case r.URL.Path == "/slow":
		<-w.slow
	}
	w.served.Add(1)
	_, _ = io.WriteString(out, w.name)
}

// farm is a node with servers behind it.
type farm struct {
	*running
	vip  string
	text string
	webs map[string]*web
}

func startFarm(t *testing.T, backend string, names ...string) *farm {
	t.Helper()
	f := &farm{vip: free(t), webs: map[string]*web{}}
	var list []string
	for _, n := range names {
		f.webs[n] = appServer(t, n)
		list = append(list, fmt.Sprintf("{ name: %s, address: %q }", n, f.webs[n].address))
	}
	f.text = fmt.Sprintf("node: { loops: 2 }\nlisteners: { web: { vip: %q, protocol: http, backend: web } }\nbackends:\n  web: { %s endpoints: [ %s ] }\n",
		f.vip, backend, strings.Join(list, ", "))
	f.running = start(t, f.text)
	return f
}

// load is clients that send requests one after the other, on connections that
// stay, until ended.
type load struct {
	vip    string
	end    atomic.Bool
	all    sync.WaitGroup
	good   atomic.Int64
	failed atomic.Int64
	mu     sync.Mutex
	why    []string
	by     map[string]int // answers by server
}

func clients(t *testing.T, vip string, n int) *load {
	t.Helper()
	l := &load{vip: vip, by: map[string]int{}}
	for range n {
		l.all.Go(func() {
			var c net.Conn
			var r *bufio.Reader
			for !l.end.Load() {
				if c == nil {
					var err error
					if c, err = net.Dial("tcp4", vip); err != nil {
						l.fail(err)
						continue
					}
					r = bufio.NewReader(c)
				}
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				if err := l.one(c, r); err != nil {
					l.fail(err)
					_ = c.Close()
					c = nil
				}
			}
			if c != nil {
				_ = c.Close()
			}
		})
	}
	t.Cleanup(func() { l.end.Store(true); l.all.Wait() })
	return l
}

func (l *load) one(c net.Conn, r *bufio.Reader) error {
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: web\r\n\r\n"); err != nil {
		return err
	}
	a, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(a.Body)
	if err != nil {
		return err
	}
	if a.StatusCode != 200 {
		return fmt.Errorf("status %d: %s", a.StatusCode, body)
	}
	l.good.Add(1)
	l.mu.Lock()
	l.by[string(body)]++
	l.mu.Unlock()
	return nil
}

func (l *load) fail(err error) {
	l.failed.Add(1)
	l.mu.Lock()
	if len(l.why) < 5 {
		l.why = append(l.why, err.Error())
	}
	l.mu.Unlock()
	time.Sleep(time.Millisecond)
}

// more waits until n more requests were answered.
func (l *load) more(t *testing.T, n int64) {
	t.Helper()
	was := l.good.Load()
	await(t, "requests are not answered", func() bool { return l.good.Load() >= was+n })
}

// stop ends the clients and wants that nothing has failed.
func (l *load) stop(t *testing.T) {
	t.Helper()
	l.end.Store(true)
	l.all.Wait()
	if l.failed.Load() != 0 || l.good.Load() == 0 {
		t.Errorf("%d requests failed, %d did not: %q", l.failed.Load(), l.good.Load(), l.why)
	}
}

func await(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

func (f *farm) order(do, endpoint string) *EndpointReport {
	f.t.Helper()
	r, err := f.SetEndpoint(EndpointRequest{Backend: "web", Endpoint: endpoint, Do: do})
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

// force is order of the last one that serves.
func (f *farm) force(do, endpoint string) *EndpointReport {
	f.t.Helper()
	r, err := f.SetEndpoint(EndpointRequest{Backend: "web", Endpoint: endpoint, Do: do, Force: true})
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

func (f *farm) state(endpoint string) EndpointState {
	f.t.Helper()
	return stateOfEndpoint(f.t, f.Node, endpoint)
}

func stateOfEndpoint(t *testing.T, n *Node, endpoint string) EndpointState {
	t.Helper()
	for _, s := range n.EndpointStates() {
		if s.Name == "web/"+endpoint {
			return s
		}
	}
	t.Fatalf("no endpoint %s", endpoint)
	return EndpointState{}
}

// Orders under load, on two loops between which flows move: when the order
// returns and what was under way is done, nothing comes to an endpoint that is
// out; and no request fails for any of it.
func TestOrdersUnderLoad(t *testing.T) {
	f := startFarm(t, "", "a", "b", "c")
	l := clients(t, f.vip, 8)
	l.more(t, 200)
	for _, do := range []string{"quiesce", "maint", "hold"} {
		for _, name := range []string{"a", "b", "c"} {
			r := f.order(do, name)
			if r.Was != "ready" || r.Is != map[string]string{"quiesce": "quiescing", "maint": "maintenance", "hold": "held"}[do] || r.Loops != 2 || r.Serving != 2 || r.Note != "" {
				t.Fatalf("%s %s: %+v", do, name, r)
			}
			await(t, "what is under way does not end", func() bool { return f.state(name).InFlight == 0 })
			was := f.webs[name].served.Load()
			if _, err := f.Rebalance(true); err != nil {
				t.Fatal(err)
			}
			l.more(t, 200)
			if n := f.webs[name].served.Load() - was; n != 0 {
				t.Fatalf("%d requests came to %s after %s", n, name, do)
			}
			if r := f.order("ready", name); r.Is != "ready" || r.Serving != 3 {
				t.Fatalf("%+v", r)
			}
			await(t, "nothing comes back", func() bool { return f.webs[name].served.Load() > was+10 })
		}
	}
	// A weight of 0 gets nothing, and the file's comes back by -1.
	if r, err := f.SetEndpoint(EndpointRequest{Backend: "web", Endpoint: "a", Do: "weight", Weight: 0}); err != nil || r.Is != "weight 0" {
		t.Fatalf("%+v, %v", r, err)
	}
	await(t, "what is under way does not end", func() bool { return f.state("a").InFlight == 0 })
	was := f.webs["a"].served.Load()
	l.more(t, 200)
	if n := f.webs["a"].served.Load() - was; n != 0 {
		t.Errorf("%d requests came to a weight of 0", n)
	}
	if _, err := f.SetEndpoint(EndpointRequest{Backend: "web", Endpoint: "a", Do: "weight", Weight: -1}); err != nil {
		t.Fatal(err)
	}
	await(t, "the file's weight does not come back", func() bool { return f.webs["a"].served.Load() > was+10 })
	l.stop(t)
}

// All endpoints of a backend are held: requests wait, and none fails.
func TestHoldMakesRequestsWait(t *testing.T) {
	f := startFarm(t, "limits: { queueTime: 20s },", "a")
	l := clients(t, f.vip, 4)
	l.more(t, 50)
	r := f.order("hold", "*")
	if r.Serving != 0 || !strings.Contains(r.Note, "wait") {
		t.Errorf("%+v", r)
	}
	await(t, "requests do not wait", func() bool { return f.Status().Queued["web"] == 4 })
	was := f.webs["a"].served.Load()
	// The server restarts: its connections end, and nobody notices.
	f.webs["a"].server.SetKeepAlivesEnabled(false)
	f.webs["a"].server.SetKeepAlivesEnabled(true)
	if n := f.webs["a"].served.Load(); n != was {
		t.Errorf("%d requests came to what is held", n-was)
	}
	f.order("ready", "a")
	l.more(t, 50)
	// A hold ends by itself.
	if _, err := f.SetEndpoint(EndpointRequest{Backend: "web", Endpoint: "a", Do: "hold", Seconds: 0.2}); err != nil {
		t.Fatal(err)
	}
	if s := f.state("a"); s.State != "held" || s.ReadySeconds <= 0 {
		t.Errorf("%+v", s)
	}
	l.more(t, 50)
	if s := f.state("a"); s.State != "ready" {
		t.Errorf("%+v", s)
	}
	// However short it is.
	if _, err := f.SetEndpoint(EndpointRequest{Backend: "web", Endpoint: "a", Do: "hold", Seconds: 1e-12}); err != nil {
		t.Fatal(err)
	}
	await(t, "the hold does not end", func() bool { return f.state("a").State == "ready" })
	l.stop(t)
}

// An order tells what is still under way, idle connections are gone when it
// returns, and wrong ones are refused in words.
func TestOrderReports(t *testing.T) {
	f := startFarm(t, "", "a", "b")
	c := dial(t, f.vip)
	r := bufio.NewReader(c)
	l := &load{by: map[string]int{}}
	for range 4 { // an idle connection to each
		if err := l.one(c, r); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.Status().IdleLegs; n != 2 {
		t.Fatalf("%d idle legs", n)
	}
	if x := f.order("quiesce", "b"); x.IdleClosed != 1 || x.InFlight != 0 {
		t.Errorf("%+v", x)
	}
	if _, err := io.WriteString(c, "GET /slow HTTP/1.1\r\nHost: web\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	await(t, "the request does not come", func() bool { return f.state("a").InFlight == 1 })
	// As while it moves to another process: a server that is in use there must not
	// be ended.
	f.account("web/a").Forget(1)
	if x := f.force("quiesce", "a"); x.InFlight != 1 || f.state("a").InFlight != 1 {
		t.Errorf("%+v", x)
	}
	f.account("web/a").Import(1)
	x := f.force("maint", "a")
	if x.InFlight != 1 || x.Serving != 0 || !strings.Contains(x.Note, "fails") {
		t.Errorf("%+v", x)
	}
	close(f.webs["a"].slow)
	await(t, "the request does not end", func() bool { return f.state("a").InFlight == 0 })
	if a, err := http.ReadResponse(r, nil); err != nil || a.StatusCode != 200 {
		t.Errorf("%v, %v", a, err)
	}
	if x := f.order("ready", "*"); x.Was != "mixed" || x.Is != "ready" || len(x.Each) != 2 || x.Endpoint != "web/*" {
		t.Errorf("%+v", x)
	}
	for _, c := range []struct {
		q    EndpointRequest
		want string
	}{
		{EndpointRequest{Backend: "wbe", Endpoint: "a", Do: "ready"}, `no backend "wbe"; there are: web`},
		{EndpointRequest{Backend: "web", Endpoint: "c", Do: "ready"}, `no endpoint "c"; there are: a, b`},
		{EndpointRequest{Backend: "web", Endpoint: "a", Do: "kill"}, `"kill" is nothing to do`},
		{EndpointRequest{Backend: "web", Endpoint: "a", Do: "weight", Weight: 1001}, "want 0 to 1000"},
		{EndpointRequest{Backend: "web", Endpoint: "a", Do: "hold", Seconds: -1}, "up to a day"},
	} {
		if _, err := f.SetEndpoint(c.q); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.q, err, c.want)
		}
	}
}

// The last endpoint that serves is not taken out by a slip: nothing changes. It is
// where requests wait or go elsewhere instead of failing, and with force.
func TestTheLastOneStays(t *testing.T) {
	f := startFarm(t, quick, "a", "b")
	for n := range f.webs {
		await(t, "it does not come up", func() bool { return f.state(n).State == "up" })
	}
	refused := func(do, endpoint, want string) {
		t.Helper()
		before := f.state("a").State + f.state("b").State
		_, err := f.SetEndpoint(EndpointRequest{Backend: "web", Endpoint: endpoint, Do: do})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "endpoint hold web/"+endpoint) || !strings.Contains(err.Error(), "--force") {
			t.Errorf("%s %s: %v, want %q", do, endpoint, err, want)
		}
		if after := f.state("a").State + f.state("b").State; after != before {
			t.Errorf("%s %s was refused, and came to %s from %s", do, endpoint, after, before)
		}
	}
	refused("maint", "*", "web/a, web/b are all endpoints of web that serve: ")
	f.webs["b"].status.Store(500)
	await(t, "it does not go down", func() bool { return f.state("b").State == "down" })
	for _, do := range []string{"quiesce", "maint", "weight"} { // a weight of 0
		refused(do, "a", "web/a is the last endpoint of web that serves (web/b is down)")
	}
	l := clients(t, f.vip, 2)
	l.more(t, 20)
	l.stop(t)
	f.order("quiesce", "b") // serves nothing anyway
	f.order("hold", "a")    // requests wait
	f.order("maint", "a")   // and waited before
	if r := f.order("ready", "b"); len(r.Each) != 1 || r.Each[0].Serves || r.Each[0].Health != "down" || r.Each[0].Why == "" {
		t.Errorf("%+v", r)
	}
	f.order("ready", "a")
	f.order("hold", "b")
	if r := f.order("maint", "a"); r.Serving != 0 { // requests wait for b
		t.Errorf("%+v", r)
	}
	f.order("ready", "*")
	if r := f.force("maint", "a"); r.Is != "maintenance" || !strings.Contains(r.Note, "fails") {
		t.Errorf("%+v", r)
	}
}

// With a fallback nothing fails when the last one is taken out.
func TestTheLastOneHasAFallback(t *testing.T) {
	f := startFarm(t, "fallback: { respond: { status: 503 } },", "a")
	if r := f.order("maint", "a"); !strings.Contains(r.Note, "its fallback does") {
		t.Errorf("%+v", r)
	}
}

// While an endpoint of a backend with sticky is quiescing, nothing in flight is
// true for the moment only, and the report says so.
func TestQuiesceTellsOfSticky(t *testing.T) {
	f := startFarm(t, "sticky: { cookie: { name: hf } },", "a", "b")
	if r := f.order("quiesce", "a"); !r.Sticky || r.Note != "clients sticky to it still come: to restart it: holdfast endpoint maint web/a --wait" {
		t.Errorf("%+v", r)
	}
	if r := f.order("maint", "a"); r.Sticky || r.Note != "" {
		t.Errorf("%+v", r)
	}
}

// What is shown as latency is what balancing sees: it decays.
func TestLatencyDecays(t *testing.T) {
	f := startFarm(t, "", "a")
	x, now := f.account("web/a"), sock.Monotonic()
	x.Note(now-int64(9*time.Second), false, 0)
	old := f.state("a").LatencyMillis
	if old <= 0 || old > 60 { // 1 s, and three times the constant of 3 s: 50 ms at most
		t.Errorf("%g ms", old)
	}
	x.Note(sock.Monotonic(), false, 0)
	if ms := f.state("a").LatencyMillis; ms <= old || ms > 1000 {
		t.Errorf("%g ms after %g", ms, old)
	}
}

const quick = "check: { http: { path: /check, drain: [404] }, interval: 20ms, fall: 2, rise: 2, timeout: 10s },"

// A node that begins under load serves from its first good probe on; what comes
// before that waits. So does what comes to endpoints that a reload brings.
func TestStartUnderLoad(t *testing.T) {
	f := &farm{vip: free(t), webs: map[string]*web{"a": appServer(t, "a"), "b": appServer(t, "b")}}
	text := func(name string) string {
		return fmt.Sprintf("node: { loops: 2 }\nlisteners: { web: { vip: %q, protocol: http, backend: web } }\nbackends: { web: { %s endpoints: [ { name: %s, address: %q } ] } }\n",
			f.vip, quick, name, f.webs[name].address)
	}
	f.running = start(t, text("a"))
	l := clients(t, f.vip, 4)
	l.more(t, 100)
	if s := f.state("a"); s.State != "up" || s.Why != "status 200" || s.CheckMillis <= 0 {
		t.Errorf("%+v", s)
	}
	f.reload(text("b"))
	was := f.webs["b"].served.Load()
	await(t, "the new one does not serve", func() bool { return f.webs["b"].served.Load() > was+50 })
	l.stop(t)
	if f.webs["b"].checks.Load() < 2 {
		t.Error("the new one served before it was up")
	}
}

// What checks find rules who gets requests, and nobody notices.
func TestChecksRule(t *testing.T) {
	f := startFarm(t, quick, "a", "b")
	l := clients(t, f.vip, 4)
	until := func(name, state string) {
		t.Helper()
		await(t, name+" is never "+state, func() bool { return f.state(name).State == state })
	}
	until("a", "up")
	until("b", "up")
	for _, c := range []struct {
		status int64
		state  string
	}{{503, "down"}, {200, "up"}, {404, "draining"}, {200, "up"}} {
		f.webs["b"].status.Store(c.status)
		until("b", c.state)
		await(t, "what is under way does not end", func() bool { return c.state == "up" || f.state("b").InFlight == 0 })
		was := f.webs["b"].served.Load()
		l.more(t, 100)
		if n := f.webs["b"].served.Load() - was; (n > 0) != (c.state == "up") {
			t.Errorf("%d requests came while it is %s", n, c.state)
		}
	}
	l.stop(t)
	s := f.HealthStats()
	if x := s.Counts["web"]; x.Passed == 0 || x.Failed < 2 || x.Drained == 0 || s.Engine.Targets != 2 {
		t.Errorf("%+v", s)
	}
}

// Whoever fails clients is ejected, and comes back.
func TestEjectionUnderLoad(t *testing.T) {
	f := startFarm(t, "eject: { consecutive: 5, time: 300ms }, retry: { max: 2, on: [ connect, 503 ] },", "a", "b", "c")
	l := clients(t, f.vip, 4)
	l.more(t, 50)
	f.webs["b"].fails.Store(true)
	await(t, "it is never ejected", func() bool { return f.state("b").State == "ejected" })
	if s := f.state("b"); s.EjectedSeconds <= 0 || s.Serves || s.Failures < 5 {
		t.Errorf("%+v", s)
	}
	f.webs["b"].fails.Store(false)
	was := f.webs["b"].served.Load()
	await(t, "it never comes back", func() bool { return f.webs["b"].served.Load() > was+20 })
	l.stop(t)
	if n := f.HealthStats().Counts["web"].Ejections["consecutive"]; n == 0 {
		t.Error("the ejection was not counted")
	}
}

// Orders, health and what an operator said of weights go along with an upgrade;
// checks are made by one process at a time.
func TestUpgradeKeepsStandings(t *testing.T) {
	f := startFarm(t, quick+" slowStart: 1h,", "a", "b", "c", "d")
	for n := range f.webs {
		await(t, "it does not come up", func() bool { return f.state(n).State == "up" })
	}
	f.order("quiesce", "a")
	if _, err := f.SetEndpoint(EndpointRequest{Backend: "web", Endpoint: "b", Do: "weight", Weight: 7}); err != nil {
		t.Fatal(err)
	}
	f.webs["c"].status.Store(500)
	await(t, "it does not go down", func() bool { return f.state("c").State == "down" })
	f.order("hold", "d")
	f.order("ready", "d") // slowly
	describe := func(n *Node) string {
		var out []string
		for _, s := range n.EndpointStates() {
			out = append(out, fmt.Sprintf("%s %s %s %s %d %.0f", s.Name, s.State, s.Admin, s.Health, s.Weight, s.EffectiveWeight))
		}
		return strings.Join(out, "\n")
	}
	before := describe(f.Node)
	passed := f.HealthStats().Counts["web"].Passed
	l := clients(t, f.vip, 4)
	l.more(t, 50)

	// One that does not come up changes nothing.
	failed, r, done, given, _ := succeed(t, f.running, 0, func(*Node) error { return fmt.Errorf("no room") }, nothing)
	if failed != nil || done || given == nil {
		t.Fatalf("done %t, given %v", done, given)
	}
	_ = f.abort(r, given)
	if is := describe(f.Node); is != before {
		t.Errorf("before\n%s\nand after an upgrade that came to nothing\n%s", before, is)
	}
	checks := f.webs["b"].checks.Load()
	await(t, "checks do not go on", func() bool { return f.webs["b"].checks.Load() > checks+3 })
	f.order("maint", "b")
	f.order("ready", "b")
	before = describe(f.Node)

	heir, _, done, given, taken := succeed(t, f.running, 0, func(*Node) error { return nil }, nothing)
	if !done || given != nil || taken != nil {
		t.Fatal(done, given, taken)
	}
	if is := describe(heir); is != before {
		t.Errorf("before\n%s\nand after\n%s", before, is)
	}
	if n := heir.HealthStats().Counts["web"].Passed; n < passed {
		t.Errorf("%d probes had passed, now %d", passed, n)
	}
	if f.HealthStats().Engine.Targets != 0 || heir.HealthStats().Engine.Targets != 4 {
		t.Errorf("both or none probe: %+v and %+v", f.HealthStats().Engine, heir.HealthStats().Engine)
	}
	was := f.webs["a"].served.Load()
	l.more(t, 100)
	if n := f.webs["a"].served.Load() - was; n != 0 {
		t.Errorf("%d requests came to what was quiescing before", n)
	}
	f.webs["c"].status.Store(200)
	await(t, "the heir does not check", func() bool { return stateOfEndpoint(t, heir, "c").State == "up" })
	l.stop(t)
}

// Whom a sticky table knows stays where it belongs when the process is another
// one, also if it had no connection open meanwhile.
func TestUpgradeKeepsStickyClients(t *testing.T) {
	f := startFarm(t, "sticky: { header: { name: X-Session } },", "a", "b", "c", "d")
	ask := func(session int) string {
		t.Helper()
		c := dial(t, f.vip)
		defer func() { _ = c.Close() }()
		if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: web\r\nX-Session: s%d\r\n\r\n", session); err != nil {
			t.Fatal(err)
		}
		a, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(a.Body)
		if err != nil || a.StatusCode != 200 {
			t.Fatal(a.StatusCode, err)
		}
		return string(body)
	}
	const sessions = 40
	var was [sessions]string
	for i := range was {
		was[i] = ask(i)
	}
	await(t, "flows do not end", func() bool { return f.Status().Flows == 0 })
	_, _, done, given, taken := succeed(t, f.running, 0, func(*Node) error { return nil }, nothing)
	if !done || given != nil || taken != nil {
		t.Fatal(done, given, taken)
	}
	for i := range was { // four endpoints in turn would not all meet theirs again
		if is := ask(sessions - 1 - i); is != was[sessions-1-i] {
			t.Errorf("session %d was at %s, and is at %s", sessions-1-i, was[sessions-1-i], is)
		}
	}
}

// A network that fails takes many endpoints with it: what the log says of it is
// bounded, and nothing is lost from it.
func TestManyTransitionsAreCounted(t *testing.T) {
	nobody := free(t)
	var text strings.Builder
	const n = 3 * linesMax
	for i := range n {
		fmt.Fprintf(&text, "{ name: e%d, address: %q }, ", i, nobody)
	}
	r := &running{t: t, file: filepath.Join(t.TempDir(), "holdfast.yaml")}
	r.write(fmt.Sprintf("listeners: { web: { vip: %q, protocol: http, backend: web } }\nbackends: { web: { check: { tcp: {}, interval: 10ms, fall: 1 }, endpoints: [ %s ] } }\n", free(t), text.String()))
	var mu sync.Mutex
	var log strings.Builder
	node, err := Start(Options{File: r.file, Log: slog.New(slog.NewTextHandler(writer(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return log.Write(p)
	}), nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer node.Stop()
	told := func() (lines, counted int) {
		mu.Lock()
		defer mu.Unlock()
		for line := range strings.Lines(log.String()) {
			var k int
			switch {
			case strings.Contains(line, "endpoint down"):
				lines++
			case strings.Contains(line, "many endpoints"):
				if _, err := fmt.Sscanf(line[strings.Index(line, " down="):], " down=%d", &k); err != nil {
					t.Fatal(line, err)
				}
				counted += k
			}
		}
		return lines, counted
	}
	await(t, "not all are told of", func() bool { lines, counted := told(); return lines+counted == n })
	if _, counted := told(); counted == 0 {
		t.Error("each has a line")
	}
}

type writer func(p []byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// A successor that dies after it was told all leaves a process that watches on.
func TestFailedUpgradeAfterAcceptWatchesOn(t *testing.T) {
	f := startFarm(t, quick, "a", "b")
	await(t, "it does not come up", func() bool { return f.state("a").State == "up" })
	f.order("quiesce", "b")
	heir, r, done, given, _ := succeed(t, f.running, move.Done, func(*Node) error { return nil }, nothing) // before Done
	if done || given == nil || heir == nil {
		t.Fatal(done, given)
	}
	heir.Stop()
	_ = f.abort(r, given)
	if s := f.state("b"); s.State != "quiescing" {
		t.Errorf("%+v", s)
	}
	f.webs["a"].status.Store(500)
	await(t, "it does not check any more", func() bool { return f.state("a").State == "down" })
	if r := f.order("ready", "b"); r.Was != "quiescing" {
		t.Errorf("%+v", r)
	}
}

// Names: endpoints follow the answers of a DNS server, requests do not fail for
// it, and a successor begins with the same addresses without asking.
func TestNames(t *testing.T) {
	zone := dnsServer(t)
	// Two servers with one port, as a name has.
	one, err := net.Listen("tcp4", "127.0.1.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(one.Addr().String())
	two, err := net.Listen("tcp4", "127.0.1.2:"+port)
	if err != nil {
		t.Fatal(err)
	}
	var served [2]atomic.Int64
	for i, l := range []net.Listener{one, two} {
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			served[i].Add(1)
			_, _ = io.WriteString(w, "ok")
		})}
		done := make(chan struct{})
		go func() { _ = s.Serve(l); close(done) }()
		t.Cleanup(func() { _ = s.Close(); <-done })
	}
	zone.set("127.0.1.1")
	vip := free(t)
	n := start(t, fmt.Sprintf("node: { loops: 2, dns: [ %q ] }\nlisteners: { web: { vip: %q, protocol: http, backend: web } }\nbackends: { web: { endpoints: [ { name: app, address: \"app.test:%s\" } ] } }\n",
		zone.addr, vip, port))
	l := clients(t, vip, 4)
	l.more(t, 20)
	names := func(n *Node) []string {
		var out []string
		for _, s := range n.EndpointStates() {
			out = append(out, s.Name)
		}
		return out
	}
	if got := names(n.Node); !slices.Equal(got, []string{"web/app/127.0.1.1"}) {
		t.Fatalf("endpoints %v", got)
	}
	generation := n.Generation()
	zone.set("127.0.1.2", "127.0.1.1")
	await(t, "the other address gets nothing", func() bool { return served[1].Load() > 10 })
	zone.set("127.0.1.2")
	await(t, "the address that is gone stays", func() bool { return slices.Equal(names(n.Node), []string{"web/app/127.0.1.2"}) })
	if g := n.Generation(); g != generation { // addresses are found out, not desired
		t.Errorf("generation %d, and %d before", g, generation)
	}
	if r, err := n.SetEndpoint(EndpointRequest{Backend: "web", Endpoint: "app", Do: "weight", Weight: 5}); err != nil || len(r.Each) != 1 {
		t.Errorf("an order by the name: %+v, %v", r, err)
	}
	zone.set() // no answer is good: the last one stays
	l.more(t, 50)
	if r, err := n.Reload(); err != nil || r.Plan != "" {
		t.Errorf("%+v, %v", r, err)
	}
	heir, _, done, given, taken := succeed(t, n, 0, func(*Node) error { return nil }, nothing)
	if !done || given != nil || taken != nil {
		t.Fatal(done, given, taken)
	}
	if got := names(heir); !slices.Equal(got, []string{"web/app/127.0.1.2"}) || heir.Generation() != n.Generation() {
		t.Errorf("the heir has %v, generation %d", got, heir.Generation())
	}
	l.more(t, 50)
	zone.set("127.0.1.1")
	await(t, "the heir does not follow", func() bool { return slices.Equal(names(heir), []string{"web/app/127.0.1.1"}) })
	l.more(t, 50)
	l.stop(t)
}

// dnsZone answers every question for addresses with the same ones.
type dnsZone struct {
	addr  string
	mu    sync.Mutex
	addrs []string
}

func (z *dnsZone) set(addrs ...string) {
	z.mu.Lock()
	z.addrs = addrs
	z.mu.Unlock()
}

func dnsServer(t *testing.T) *dnsZone {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	z := &dnsZone{addr: c.LocalAddr().String()}
	done := make(chan struct{})
	go func() { // ends with the socket
		defer close(done)
		b := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(z.answer(b[:n]), from)
		}
	}()
	t.Cleanup(func() { _ = c.Close(); <-done })
	return z
}

// answer makes a response to q (RFC 1035, section 4.1): the header, the question,
// and an A record of 1 s for each address, if A was asked for.
func (z *dnsZone) answer(q []byte) []byte {
	z.mu.Lock()
	defer z.mu.Unlock()
	end := 12
	for q[end] != 0 {
		end += int(q[end]) + 1
	}
	end += 5
	a := append([]byte{q[0], q[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, q[12:end]...)
	if q[end-3] != 1 {
		return a
	}
	if len(z.addrs) == 0 {
		a[3] = 0x82 // SERVFAIL
	}
	a[7] = byte(len(z.addrs))
	for _, s := range z.addrs {
		ip := net.ParseIP(s).To4()
		a = append(a, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, ip[0], ip[1], ip[2], ip[3])
	}
	return a
}
