package probe

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/health"
)

// server accepts connections and lets do answer each.
func server(t testing.TB, network, address string, do func(c net.Conn)) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); all.Wait() })
	all.Go(func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer func() { _ = c.Close() }()
				do(c)
			})
		}
	})
	return l
}

// head reads a request's head.
func head(c net.Conn) string {
	var b strings.Builder
	for r := bufio.NewReader(c); !strings.HasSuffix(b.String(), "\r\n\r\n"); {
		line, err := r.ReadString('\n')
		b.WriteString(line)
		if err != nil {
			break
		}
	}
	return b.String()
}

// says answers a request with octets, a few at a time.
func says(octets string) func(c net.Conn) {
	return func(c net.Conn) {
		_ = head(c)
		for rest := octets; len(rest) > 0; {
			n := min(len(rest), 1000)
			if _, err := io.WriteString(c, rest[:n]); err != nil {
				return
			}
			rest = rest[n:]
		}
	}
}

// hangs answers nothing until its peer goes.
func hangs(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

var ok = []config.StatusRange{{First: 200, Last: 299}}

func httpCheck() config.Check {
	return config.Check{Kind: config.CheckHTTP, Method: "GET", Path: "/ok", Statuses: ok, Interval: time.Second, Timeout: 10 * time.Second, Rise: 1, Fall: 1}
}

// once probes a target that is alone.
func once(t *testing.T, x Target) health.Result {
	t.Helper()
	got := make(chan health.Result, 1)
	e := New(func(_ *Target, r health.Result) time.Duration {
		select {
		case got <- r:
		default:
		}
		return time.Hour
	})
	defer e.Stop()
	x.New, x.Every = true, time.Hour
	if x.Network == "" {
		x.Network = "tcp"
	}
	e.Set([]Target{x})
	select {
	case r := <-got:
		return r
	case <-time.After(30 * time.Second):
		t.Fatal("no result")
	}
	return health.Result{}
}

func TestHTTP(t *testing.T) {
	long := strings.Repeat("x", 70<<10)
	for _, c := range []struct {
		name   string
		answer func(c net.Conn)
		change func(x *config.Check)
		want   string // good, drain or bad, and why
	}{
		{"well", says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), nil, "good status 200"},
		{"without content", says("HTTP/1.1 204 No Content\r\n\r\n"), nil, "good status 204"},
		{"HTTP/1.0", says("HTTP/1.0 200 OK\r\n\r\nhello"), nil, "good status 200"},
		{"another status", says("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"), nil, "bad status 503"},
		{"interim responses", says("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"), nil, "good status 200"},
		{"asks for draining", says("HTTP/1.1 404 Gone\r\n\r\n"), func(x *config.Check) { x.Drain = []config.StatusRange{{First: 404, Last: 404}} }, "drain status 404"},
		{"a long head", says("HTTP/1.1 200 OK\r\nX: " + long[:9000] + "\r\n\r\n"), nil, "good status 200"},
		{"a head without end", says("HTTP/1.1 200 OK\r\nX: " + long + "\r\n\r\n"), nil, "bad no HTTP: the head is too long"},
		{"content", says("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nstatus: fine"), func(x *config.Check) { x.Body = regexp.MustCompile("fine$") }, "good status 200"},
		{"other content", says("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfail"), func(x *config.Check) { x.Body = regexp.MustCompile("fine") }, `bad status 200, but the content does not match "fine"`},
		{"content in chunks", says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nfin\r\n1;x=y\r\ne\r\n0\r\n\r\n"), func(x *config.Check) { x.Body = regexp.MustCompile("^fine$") }, "good status 200"},
		{"content until the end", says("HTTP/1.1 200 OK\r\n\r\n" + long[:60000] + "fine"), func(x *config.Check) { x.Body = regexp.MustCompile("fine") }, "good status 200"},
		{"beyond what is looked at", says("HTTP/1.1 200 OK\r\n\r\n" + long + "fine"), func(x *config.Check) { x.Body = regexp.MustCompile("fine") }, `bad status 200, but the content does not match "fine"`},
		{"content cut off", says("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nfine"), func(x *config.Check) { x.Body = regexp.MustCompile("fine") }, "bad closed without a full answer"},
		{"HEAD", says("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n"), func(x *config.Check) { x.Method, x.Body = "HEAD", regexp.MustCompile("^$") }, "good status 200"},
		{"no HTTP", says("220 mail ready\r\n\r\n"), nil, "bad no HTTP"},
		{"closed", func(net.Conn) {}, nil, "bad "},
		{"silent", hangs, func(x *config.Check) { x.Timeout = 50 * time.Millisecond }, "bad no answer in 50ms"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := server(t, "tcp4", "127.0.0.1:0", c.answer)
			x := httpCheck()
			if c.change != nil {
				c.change(&x)
			}
			r := once(t, Target{Name: "web/a", Address: l.Addr().String(), Check: &x})
			got := "bad "
			if r.Drain {
				got = "drain "
			} else if r.Good {
				got = "good "
			}
			if got += r.Why; !strings.HasPrefix(got, c.want) || strings.HasSuffix(c.want, "fine\"") && got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
			if r.Took <= 0 {
				t.Errorf("it took %v", r.Took)
			}
		})
	}
}

// What is asked, from where, and under which name.
func TestRequest(t *testing.T) {
	got := make(chan string, 1)
	l := server(t, "tcp4", "127.0.0.1:0", func(c net.Conn) {
		from, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		got <- from + " " + head(c)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
	})
	x := httpCheck()
	x.Headers = []config.Edit{{Name: "X-Check", Value: "1"}}
	target := Target{Name: "web/a", Address: l.Addr().String(), Check: &x, Source: netip.MustParseAddr("127.0.0.9")}
	if r := once(t, target); !r.Good {
		t.Fatal(r)
	}
	want := "127.0.0.9 GET /ok HTTP/1.1\r\nHost: " + l.Addr().String() + "\r\nX-Check: 1\r\nUser-Agent: holdfast-check\r\nConnection: close\r\n\r\n"
	if s := <-got; s != want {
		t.Errorf("asked %q, want %q", s, want)
	}
	x.Host, x.Method = "shop.example", "OPTIONS"
	x.Headers = []config.Edit{{Name: "user-agent", Value: "mine"}}
	target.Source = netip.Addr{}
	if r := once(t, target); !r.Good {
		t.Fatal(r)
	}
	want = "127.0.0.1 OPTIONS /ok HTTP/1.1\r\nHost: shop.example\r\nuser-agent: mine\r\nConnection: close\r\n\r\n"
	if s := <-got; s != want {
		t.Errorf("asked %q, want %q", s, want)
	}
}

func TestTCPAndAgent(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	_ = l.Close()
	echo := func(c net.Conn) {
		b := make([]byte, 100)
		n, _ := c.Read(b)
		_, _ = c.Write(b[:n])
	}
	line := func(s string) func(c net.Conn) {
		return func(c net.Conn) { _, _ = io.WriteString(c, s) }
	}
	for _, c := range []struct {
		name, network, address string
		answer                 func(c net.Conn)
		check                  config.Check
		want                   string
	}{
		{"it listens", "tcp", "127.0.0.1:0", hangs, config.Check{}, "good connected"},
		{"on a unix socket", "unix", socket, hangs, config.Check{}, "good connected"},
		{"nobody listens", "tcp", nobody, nil, config.Check{}, "bad connection refused"},
		{"the answer is expected", "tcp", "127.0.0.1:0", echo, config.Check{Send: "PING\r\n", Expect: "PI"}, "good answered as expected"},
		{"a greeting", "tcp", "127.0.0.1:0", line("220 mail\r\n"), config.Check{Expect: "220 "}, "good answered as expected"},
		{"another answer", "tcp", "127.0.0.1:0", line("500 no\r\n"), config.Check{Expect: "220 "}, `bad answered "500 ", want "220 "`},
		{"too little", "tcp", "127.0.0.1:0", line("22"), config.Check{Expect: "220 "}, "bad closed without a full answer"},
		{"agent", "tcp", "127.0.0.1:0", line("up 50%\n"), config.Check{Agent: &config.Agent{}}, "good agent: up 50%"},
		{"agent that does not end its line", "tcp", "127.0.0.1:0", line("drain"), config.Check{Agent: &config.Agent{}}, "good agent: drain"},
		{"agent that is asked", "tcp", "127.0.0.1:0", echo, config.Check{Agent: &config.Agent{Send: "ready\n"}}, "good agent: ready"},
		{"agent without a word", "tcp", "127.0.0.1:0", line("hi\n"), config.Check{Agent: &config.Agent{}}, `bad no word of an agent in "hi"`},
		{"agent that says nothing", "tcp", "127.0.0.1:0", func(net.Conn) {}, config.Check{Agent: &config.Agent{}}, "bad closed without a full answer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			address := c.address
			if c.answer != nil {
				address = server(t, c.network, c.address, c.answer).Addr().String()
			}
			c.check.Timeout = 10 * time.Second
			r := once(t, Target{Name: "web/a", Network: c.network, Address: address, Agent: c.check.Agent != nil, Check: &c.check})
			got := "bad " + r.Why
			if r.Good {
				got = "good " + r.Why
			}
			if got != c.want || (r.Said != nil) != (r.Good && c.check.Agent != nil) {
				t.Errorf("%q (%+v), want %q", got, r.Said, c.want)
			}
		})
	}
}

// Ports, sources and agents of endpoints.
func TestTargets(t *testing.T) {
	x := config.Check{Kind: config.CheckHTTP, Port: 9000, Interval: time.Second, Agent: &config.Agent{Port: 7777, Interval: 3 * time.Second}}
	b := &config.Backend{Check: &x, Source: netip.MustParseAddr("10.0.0.9")}
	add := func(e config.Endpoint) {
		e.Ref.Name = "web/" + e.Name
		b.Endpoints = append(b.Endpoints, &e)
	}
	add(config.Endpoint{Name: "a", Addr: netip.MustParseAddrPort("10.0.0.1:80")})
	add(config.Endpoint{Name: "b", Addr: netip.MustParseAddrPort("[2001:db8::1]:80"), CheckPort: 2001})
	add(config.Endpoint{Name: "c", Unix: "/run/app.sock"})
	add(config.Endpoint{Name: "d", Drop: config.DropReset})
	add(config.Endpoint{Name: "e", Host: "app", Port: 80})
	known := func(e string) bool { return e == "web/a" }
	list := func() string {
		var out []string
		for _, x := range Targets(b, known) {
			out = append(out, fmt.Sprint(x.Name, x.Agent, " ", x.Network, " ", x.Address, " ", x.Source, " ", x.New, " ", x.Every))
		}
		return strings.Join(out, "\n")
	}
	want := `web/afalse tcp 10.0.0.1:9000 10.0.0.9 false 1s
web/atrue tcp 10.0.0.1:7777 10.0.0.9 false 3s
web/bfalse tcp [2001:db8::1]:2001 invalid IP true 1s
web/btrue tcp [2001:db8::1]:7777 invalid IP true 3s
web/cfalse unix /run/app.sock invalid IP true 1s`
	if got := list(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	x.Kind, x.Port = config.CheckAgent, 0
	if got := list(); strings.Contains(got, "false tcp") || !strings.Contains(got, "web/atrue tcp 10.0.0.1:7777") {
		t.Errorf("an agent alone:\n%s", got)
	}
	b.Check = nil
	if got := list(); got != "" {
		t.Errorf("without checks: %s", got)
	}
}

// Whatever happened to each of many targets, they lie evenly over their
// interval: no tenth of it has 1.3 times its part.
func TestSpread(t *testing.T) {
	e := &Engine{judge: nil, tasks: map[key]*task{}, wake: make(chan struct{}, 1), began: time.Now()}
	const n, every = 10_000, 2 * time.Second
	all := make([]Target, n)
	for i := range all {
		all[i] = Target{Name: fmt.Sprint("web/", i), Check: &config.Check{}, Every: every}
	}
	e.Set(all)
	spread := func(what string) {
		t.Helper()
		var tenths [10]int
		lo, hi := time.Duration(1<<62), time.Duration(0)
		for _, x := range e.queue {
			tenths[(x.due%every+every)%every*10/every]++
			lo, hi = min(lo, x.due), max(hi, x.due)
		}
		for i, k := range tenths {
			if k > n/10*13/10 || k < n/10*7/10 {
				t.Errorf("%s: %d of %d in tenth %d: %v", what, k, n, i, tenths)
				break
			}
		}
		if hi-lo > every*12/10 {
			t.Errorf("%s: from %v to %v", what, lo, hi)
		}
	}
	spread("at first")
	// All results come in one instant, as after a pause of the machine.
	queue := e.queue
	e.queue = nil
	for _, x := range queue {
		x.at = -1
		e.plan(x, 77*time.Second, every)
	}
	spread("after a jam")
	for _, x := range e.queue {
		if x.due < 77*time.Second+every/2-every/(2*jitter) {
			t.Fatalf("one comes again after %v", x.due-77*time.Second)
		}
	}
	// New ones share a tenth of the interval.
	for i := range all {
		all[i].Name, all[i].New = "new/"+all[i].Name, true
	}
	now := time.Since(e.began)
	e.Set(all)
	var parts [10]int
	for _, x := range e.queue {
		if d := x.due - now; d < 0 || d > every/10+time.Since(e.began) {
			t.Fatalf("a new one is due in %v", d)
		}
		parts[min(9, (x.due-e.queue[0].due)*100/every)]++
	}
	for i, k := range parts {
		if k < n/10-2 || k > n/10+2 {
			t.Errorf("%d new ones in part %d: %v", k, i, parts)
		}
	}
	if len(e.queue) != n || len(e.tasks) != n {
		t.Errorf("%d in the schedule, %d known", len(e.queue), len(e.tasks))
	}
}

// Those that never answer have places of their own: once they are known, they
// may take for ever and others are probed on.
func TestTheDeadDelayNobody(t *testing.T) {
	dead := server(t, "tcp4", "127.0.0.1:0", hangs)
	live := server(t, "tcp4", "127.0.0.1:0", says("HTTP/1.1 200 OK\r\n\r\n"))
	short, long, good := httpCheck(), httpCheck(), httpCheck()
	short.Timeout, long.Timeout = 20*time.Millisecond, time.Hour
	var fails, passes atomic.Int64
	e := New(func(x *Target, r health.Result) time.Duration {
		if r.Good {
			passes.Add(1)
		} else {
			fails.Add(1)
		}
		return time.Millisecond
	})
	defer e.Stop()
	const n = atOnce + 50
	set := func(x *config.Check) {
		all := []Target{{Name: "web/live", Network: "tcp", Address: live.Addr().String(), Check: &good, New: true, Every: time.Millisecond}}
		for i := range n {
			all = append(all, Target{Name: fmt.Sprint("web/", i), Network: "tcp", Address: dead.Addr().String(), Check: x, New: true, Every: time.Millisecond})
		}
		e.Set(all)
	}
	until := func(what string, f func() bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s; %+v, %d passed, %d failed", what, e.Stats(), passes.Load(), fails.Load())
			}
		}
	}
	set(&short)
	until("the dead are not found", func() bool { return fails.Load() > 3*n })
	set(&long)
	until("the places for the dead do not fill", func() bool { return e.Stats().Running >= atOnce })
	was := passes.Load()
	until("the live one is not probed", func() bool { return passes.Load() > was+20 })
	if s := e.Stats(); s.Running > 2*atOnce || s.Targets != n+1 {
		t.Errorf("%+v", s)
	}
}

// A target that leaves is probed no more; one with another address is as a new
// one, and a result of the old address is not taken for it.
func TestSet(t *testing.T) {
	var mu sync.Mutex
	count := map[string]int{}
	tell := make(chan struct{}, 1)
	var e *Engine
	e = New(func(x *Target, r health.Result) time.Duration {
		mu.Lock()
		defer mu.Unlock()
		if e.Current(x) {
			count[x.Name+" "+x.Address]++
			select {
			case tell <- struct{}{}:
			default:
			}
		}
		return time.Millisecond
	})
	defer e.Stop()
	at := func(name string) string { return filepath.Join(t.TempDir(), name) }
	one, two, three := at("1"), at("2"), at("3")
	for _, a := range []string{one, two, three} {
		server(t, "unix", a, func(net.Conn) {})
	}
	x := config.Check{Timeout: 10 * time.Second}
	set := func(names ...string) {
		mu.Lock()
		defer mu.Unlock()
		var all []Target
		for _, n := range names {
			name, address, _ := strings.Cut(n, " ")
			all = append(all, Target{Name: name, Network: "unix", Address: address, Check: &x, Every: time.Hour, New: true})
		}
		e.Set(all)
		clear(count)
	}
	await := func(want ...string) {
		t.Helper()
		late := time.After(30 * time.Second)
		for {
			mu.Lock()
			n := 0
			for _, k := range want {
				if count[k] >= 5 {
					n++
				}
			}
			got := len(count)
			mu.Unlock()
			if n == len(want) && got == n {
				return
			}
			select {
			case <-tell:
			case <-late:
				t.Fatalf("%v, want %v", count, want)
			}
		}
	}
	set("a "+one, "b "+two)
	await("a "+one, "b "+two)
	set("a " + three)
	await("a " + three)
	set("a "+three, "b "+one)
	await("a "+three, "b "+one)
	set()
	if s := e.Stats(); s.Targets != 0 {
		t.Errorf("%+v", s)
	}
}

// A shorter interval is in force at once, and not when the longer one is over.
func TestShorterInterval(t *testing.T) {
	address := filepath.Join(t.TempDir(), "1")
	server(t, "unix", address, func(net.Conn) {})
	probes := make(chan struct{}, 1)
	e := New(func(x *Target, _ health.Result) time.Duration {
		select {
		case probes <- struct{}{}:
		default:
		}
		return x.Every
	})
	defer e.Stop()
	await := func() {
		t.Helper()
		select {
		case <-probes:
		case <-time.After(30 * time.Second):
			t.Fatal("it is not probed")
		}
	}
	set := func(every time.Duration) {
		e.Set([]Target{{Name: "a", Network: "unix", Address: address, Check: &config.Check{Timeout: 10 * time.Second}, Every: every, New: true}})
	}
	set(time.Hour)
	await()
	for e.Stats().Running > 0 { // until the next one is planned
		time.Sleep(time.Millisecond)
	}
	set(10 * time.Millisecond)
	await()
	await()
}

// Stop does not wait for those that do not answer.
func TestStop(t *testing.T) {
	reached := make(chan struct{}, 10)
	dead := server(t, "tcp4", "127.0.0.1:0", func(c net.Conn) {
		reached <- struct{}{}
		hangs(c)
	})
	x := httpCheck()
	x.Timeout = time.Hour
	e := New(func(*Target, health.Result) time.Duration { return time.Hour })
	e.Set([]Target{{Name: "web/a", Network: "tcp", Address: dead.Addr().String(), Check: &x, New: true, Every: time.Second}})
	<-reached
	e.Stop()
	if s := e.Stats(); s.Running != 0 {
		t.Errorf("%+v", s)
	}
}
