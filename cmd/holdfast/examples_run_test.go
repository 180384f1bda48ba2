package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// example runs a file of examples/ at fresh ports, which the variables say.
func example(t *testing.T, name string, variables ...string) *running {
	t.Helper()
	return begin(t, variables, "run", "-c", "../../examples/"+name)
}

// port is a variable for a listener's port, with the address that it comes to.
func port(t *testing.T, name string) (variable, address string) {
	t.Helper()
	address = freshAddress(t)
	return name + "=" + portOf(address), address
}

// echo is a server for TCP that says its name, and then all that it is told.
// Each of first, if there is any, is what it reads and does not say.
type echo struct {
	net.Listener
	address string
}

func newEcho(t *testing.T, name string, first func(in *bufio.Reader) string) *echo {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return echoAt(t, l, name, first)
}

func echoAt(t *testing.T, l net.Listener, name string, first func(in *bufio.Reader) string) *echo {
	e := &echo{l, l.Addr().String()}
	t.Cleanup(func() { _ = e.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				defer func() { _ = c.Close() }()
				in := bufio.NewReader(c)
				said := ""
				if first != nil {
					said = first(in)
				}
				_, _ = io.WriteString(c, name+said+"\n")
				_, _ = io.Copy(c, in)
			}()
		}
	}()
	return e
}

// echoes wants a line back.
func (w *dialog) echoes(text string) {
	w.t.Helper()
	w.send(text + "\n")
	if got := w.line(); got != text {
		w.t.Errorf("said %q, heard %q", text, got)
	}
}

// upgraded upgrades h and wants no flow lost. The successor ends with the test.
func (r *running) upgraded() {
	r.t.Helper()
	out := r.must(0, []string{"upgrade"}, "done: process ", ", 0 lost")
	var from, to int
	if _, err := fmt.Sscanf(out[strings.Index(out, "done: "):], "done: process %d -> %d", &from, &to); err != nil {
		r.t.Fatalf("%v: %s", err, out)
	}
	r.successor(to)
}

func TestExampleDualStack(t *testing.T) {
	a4 := newEcho(t, "a4", nil)
	anyPort, _ := port(t, "ANY_PORT")
	localPort, _ := port(t, "LOCAL_PORT")
	example(t, "dual-stack.yaml", anyPort, localPort, "APP4="+a4.address, "APP6="+a4.address)
	for _, address := range []string{"127.0.0.1:" + strings.TrimPrefix(anyPort, "ANY_PORT="), "[::1]:" + strings.TrimPrefix(anyPort, "ANY_PORT="),
		"127.0.0.1:" + strings.TrimPrefix(localPort, "LOCAL_PORT="), "[::1]:" + strings.TrimPrefix(localPort, "LOCAL_PORT=")} {
		w := dialHTTP(t, address)
		if name := w.line(); name != "a4" {
			t.Errorf("%s: %q", address, name)
		}
		w.echoes("both families")
	}
}

// Sessions of TCP stay through a reload, a change of loop and an upgrade.
func TestExamplesThatKeepSessions(t *testing.T) {
	for name, variable := range map[string][2]string{
		"iperf3.yaml": {"IPERF3_PORT", "IPERF3_1"}, "redis.yaml": {"REDIS_PORT", "REDIS1"}, "ssh.yaml": {"SSH_PORT", "SSH1"},
		"postgres.yaml": {"PG_PORT", "PG1"},
	} {
		t.Run(name, func(t *testing.T) {
			server := newEcho(t, "server", nil)
			vipPort, vip := port(t, variable[0])
			h := example(t, name, vipPort, variable[1]+"="+server.address, "PG2="+server.address)
			w := dialHTTP(t, vip)
			if got := w.line(); got != "server" {
				t.Fatalf("%q", got)
			}
			h.must(0, []string{"reload"}, "nothing to do: generation 1 says the same, 0 flows touched")
			h.must(0, []string{"rebalance", "--all"}, "1 flow moved")
			h.upgraded()
			w.echoes("still here")
			h.must(0, []string{"flows"}, "  2x  ")
		})
	}
}

// New sessions come to the backup while the first server is down, and to that
// one again when it is back.
func TestExamplePostgresBackup(t *testing.T) {
	db1, db2 := newEcho(t, "db1", nil), newEcho(t, "db2", nil)
	vipPort, vip := port(t, "PG_PORT")
	h := example(t, "postgres.yaml", vipPort, "PG1="+db1.address, "PG2="+db2.address)
	eventually(t, "both are up", func() bool { return strings.Count(states(h, "up"), "databases/") == 2 })
	who := func() string { return dialHTTP(t, vip).line() }
	old := dialHTTP(t, vip)
	if got := old.line(); got != "db1" || who() != "db1" {
		t.Errorf("with both up: %s", got)
	}
	_ = db1.Close()
	eventually(t, "db1 is down", func() bool { return strings.Contains(states(h, "down"), "databases/db1") })
	if got := who(); got != "db2" {
		t.Errorf("db1 is down: %s", got)
	}
	old.echoes("open sessions are not touched")
	l, err := net.Listen("tcp", db1.address)
	if err != nil {
		t.Fatal(err)
	}
	echoAt(t, l, "db1", nil)
	eventually(t, "db1 is up", func() bool { return strings.Contains(states(h, "up"), "databases/db1") })
	if got := who(); got != "db1" {
		t.Errorf("db1 is back: %s", got)
	}
}

// states lists the endpoints in a state.
func states(h *running, state string) string {
	all, err := clientOf(h.socket, false).endpoints()
	if err != nil {
		return err.Error()
	}
	out := ""
	for _, e := range all {
		if e.State == state {
			out += e.Name + " "
		}
	}
	return out
}

func TestExampleUnixSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "hf-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	l, err := net.Listen("unix", filepath.Join(dir, "pg"))
	if err != nil {
		t.Fatal(err)
	}
	echoAt(t, l, "db", nil)
	vipPort, vip := port(t, "PG_PORT")
	h := example(t, "unix-socket.yaml", vipPort, "PG_SOCKET="+filepath.Join(dir, "pg"))
	w := dialHTTP(t, vip)
	if got := w.line(); got != "db" {
		t.Errorf("%q", got)
	}
	h.upgraded()
	w.echoes("still here")
}

// Who the client is comes in by a header, and goes out by one.
func TestExampleProxyProtocol(t *testing.T) {
	web := newEcho(t, "", func(in *bufio.Reader) string {
		line, _ := in.ReadString('\n')
		r, err := http.ReadRequest(in)
		if err != nil {
			return err.Error()
		}
		body := strings.TrimSpace(line) + ", " + r.Header.Get("Forwarded")
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	})
	webPort, vip := port(t, "WEB_PORT")
	pgPort, _ := port(t, "PG_PORT")
	example(t, "proxy-protocol.yaml", webPort, pgPort, "WEB1="+web.address, "PG1="+web.address)
	w := dialHTTP(t, vip)
	w.send("PROXY TCP4 203.0.113.9 192.0.2.1 51122 443\r\n")
	w.ask("/")
	if _, body := w.answered(); !strings.HasPrefix(body, "PROXY TCP4 203.0.113.9 ") || !strings.Contains(body, `for=203.0.113.9`) {
		t.Errorf("the server heard %q", body)
	}
	w = dialHTTP(t, vip)
	w.ask("/") // without a header
	if _, err := http.ReadResponse(w.in, nil); err == nil {
		t.Error("one that says not who it is is served")
	}
}

// Of more than the endpoint takes, the others wait, and are served in their turn.
func TestExampleLimits(t *testing.T) {
	server := newEcho(t, "b1", nil)
	webPort, _ := port(t, "WEB_PORT")
	batchPort, batch := port(t, "BATCH_PORT")
	h := example(t, "limits.yaml", webPort, batchPort, "BATCH1="+server.address)
	var all []*dialog
	for range 10 {
		w := dialHTTP(t, batch)
		if w.line() != "b1" {
			t.Fatal("not served")
		}
		all = append(all, w)
	}
	waiting := dialHTTP(t, batch)
	eventually(t, "one waits", func() bool {
		out, _, _ := h.verb("status")
		return strings.Contains(out, "batch        1/1         10       1 ")
	})
	_ = all[3].Close()
	if got := waiting.line(); got != "b1" {
		t.Errorf("%q", got)
	}
}

func TestExampleWeb(t *testing.T) {
	web, api := newNamed(t, "web"), newNamed(t, "api")
	webPort, vip := port(t, "WEB_PORT")
	example(t, "web.yaml", webPort, "WEB1="+web.address, "WEB2="+web.address, "API1="+api.address, "API2="+api.address, "APINEXT="+api.address)
	for _, c := range []struct {
		path, field string
		status      int
		body        string // begins with it
	}{
		{"/", "", http.StatusOK, "web GET /"},
		{"/ping", "", http.StatusOK, "pong"},
		{"/internal/x", "", http.StatusNotFound, "no such page"},
		{"/help", "", http.StatusMovedPermanently, ""},
		{"/", "Host: example.org", http.StatusPermanentRedirect, ""},
		{"/assets/a.css", "", http.StatusOK, "web GET /assets/a.css"},
	} {
		fields := []string{}
		if c.field != "" {
			fields = append(fields, c.field)
		}
		status, _, body, header := get(t, "http://"+vip+c.path, fields...)
		if status != c.status || !strings.HasPrefix(body, c.body) {
			t.Errorf("%s %s: %d %q, want %d %q", c.path, c.field, status, body, c.status, c.body)
		}
		if c.path == "/assets/a.css" && header.Get("Cache-Control") != "public, max-age=86400" {
			t.Errorf("Cache-Control: %q", header.Get("Cache-Control"))
		}
	}
}

// A chat: an upgrade becomes a tunnel, which stays through an upgrade of ours.
func TestExampleWebSocket(t *testing.T) {
	chat := newEcho(t, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r", func(in *bufio.Reader) string {
		r, err := http.ReadRequest(in)
		if err != nil || r.Header.Get("Upgrade") != "websocket" {
			return fmt.Sprint(" no upgrade ", err)
		}
		return ""
	})
	pages := newNamed(t, "page")
	webPort, vip := port(t, "WEB_PORT")
	h := example(t, "websocket.yaml", webPort, "PAGES1="+pages.address, "SOCKETS1="+chat.address, "SOCKETS2="+chat.address)
	if _, server, _, _ := get(t, "http://"+vip+"/"); server != "page" {
		t.Errorf("a page of %q", server)
	}
	w := dialHTTP(t, vip)
	w.send("GET /socket/room HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
	r, err := http.ReadResponse(w.in, nil)
	if err != nil || r.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v %v", r, err)
	}
	w.echoes("hello")
	h.must(0, []string{"endpoint", "quiesce", "sockets/*", "--force"}, "quiescing on all", "1 in flight")
	w.echoes("quiescing lets open chats go on")
	h.upgraded()
	w.echoes("still here")
	h.must(0, []string{"flows", "--endpoint", "sockets/s1"})
	h.must(0, []string{"endpoint", "list"}, "quiescing") // what an operator said holds over the upgrade
}

// Seed 002's four lines: a server leaves when its check port is closed, and the
// same server goes on as its own backup when nobody else is left.
func TestExampleRolling(t *testing.T) {
	a, b := newNamed(t, "a"), newNamed(t, "b")
	checks := map[string]net.Listener{}
	open := func(name, address string) {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		checks[name] = l
	}
	open("a", "127.0.0.1:0")
	open("b", "127.0.0.1:0")
	webPort, vip := port(t, "WEB_PORT")
	h := example(t, "rolling.yaml", webPort, "WEB_A="+a.address, "WEB_B="+b.address,
		"CHECK_A="+portOf(checks["a"].Addr().String()), "CHECK_B="+portOf(checks["b"].Addr().String()))
	eventually(t, "all are up", func() bool { return strings.Count(states(h, "up"), "web/") == 4 })
	served := func() map[string]int {
		by := map[string]int{}
		for range 8 {
			status, server, _, _ := get(t, "http://"+vip+"/")
			if by[server]++; status != http.StatusOK {
				t.Errorf("status %d", status)
			}
		}
		return by
	}
	if by := served(); by["a"] != 4 || by["b"] != 4 {
		t.Errorf("both serve: %v", by)
	}
	for _, name := range []string{"a", "b"} {
		at := checks[name].Addr().String()
		_ = checks[name].Close()
		eventually(t, name+" has left", func() bool { return strings.Contains(states(h, "down"), "web/"+name+" ") })
		if by := served(); by[name] != 0 {
			t.Errorf("%s has left: %v", name, by)
		}
		open(name, at)
		eventually(t, name+" is back", func() bool { return strings.Count(states(h, "up"), "web/") == 4 })
	}
	_ = checks["a"].Close()
	_ = checks["b"].Close()
	eventually(t, "both have left", func() bool { return strings.Count(states(h, "down"), "web/") == 2 })
	if by := served(); by["a"]+by["b"] != 8 {
		t.Errorf("as their own backups: %v", by)
	}
}

// The same by hand, each server in turn, while somebody asks all the time.
func TestExampleRollingByHand(t *testing.T) {
	servers := map[string]*named{"a": newNamed(t, "a"), "b": newNamed(t, "b")}
	webPort, vip := port(t, "WEB_PORT")
	checkA, checkB := newEcho(t, "", nil), newEcho(t, "", nil)
	h := example(t, "rolling.yaml", webPort, "WEB_A="+servers["a"].address, "WEB_B="+servers["b"].address,
		"CHECK_A="+portOf(checkA.address), "CHECK_B="+portOf(checkB.address))
	eventually(t, "all are up", func() bool { return strings.Count(states(h, "up"), "web/") == 4 })
	stop, asked := make(chan struct{}), make(chan [2]int)
	go func() { // ends with stop
		good, bad := 0, 0
		for {
			select {
			case <-stop:
				asked <- [2]int{good, bad}
				return
			default:
			}
			answer, err := http.Get("http://" + vip + "/")
			if err != nil || answer.StatusCode != http.StatusOK {
				bad++
			} else {
				good++
			}
			if err == nil {
				_, _ = io.Copy(io.Discard, answer.Body)
				_ = answer.Body.Close()
			}
		}
	}()
	for _, name := range []string{"a", "b"} {
		h.must(0, []string{"endpoint", "maint", "web/" + name, "--wait"}, "in flight 0: done in ")
		servers[name].Close()
		servers[name] = namedAt(t, name, servers[name].address)
		h.must(0, []string{"endpoint", "ready", "web/" + name, "--wait"}, "web/"+name)
	}
	close(stop)
	if n := <-asked; n[0] < 10 || n[1] != 0 {
		t.Errorf("%d requests were answered, %d were not", n[0], n[1])
	}
}

// A client stays where it was: by cookie, by field, by address.
func TestExampleSticky(t *testing.T) {
	w1, w2 := newNamed(t, "w1"), newNamed(t, "w2")
	webPort, vip := port(t, "WEB_PORT")
	h := example(t, "sticky.yaml", webPort, "WEB1="+w1.address, "WEB2="+w2.address)
	both := map[string]bool{}
	for i := range 4 {
		if i%2 == 1 { // it is round robin, and below an even number of times
			get(t, "http://"+vip+"/")
		}
		_, first, _, header := get(t, "http://"+vip+"/")
		both[first] = true
		cookie, _, _ := strings.Cut(header.Get("Set-Cookie"), ";")
		if !strings.HasPrefix(cookie, "hf=") || !strings.Contains(header.Get("Set-Cookie"), "SameSite=Lax") || strings.Contains(cookie, "127.0.0.1") {
			t.Fatalf("Set-Cookie: %q", header.Get("Set-Cookie"))
		}
		for range 5 {
			_, again, _, header := get(t, "http://"+vip+"/", "Cookie: "+cookie)
			if again != first || header.Get("Set-Cookie") != "" {
				t.Errorf("first %s, then %s with %q", first, again, header.Get("Set-Cookie"))
			}
		}
		// A quiescing endpoint serves its own, in maintenance it does not.
		h.must(0, []string{"endpoint", "quiesce", "by-cookie/" + first, "--wait"}, "quiescing", "note: clients sticky to it still come", "; clients sticky to it still come")
		if _, again, _, _ := get(t, "http://"+vip+"/", "Cookie: "+cookie); again != first {
			t.Errorf("quiescing %s, served by %s", first, again)
		}
		if _, other, _, _ := get(t, "http://"+vip+"/"); other == first {
			t.Errorf("quiescing %s serves somebody new", first)
		}
		h.must(0, []string{"endpoint", "maint", "by-cookie/" + first}, "maintenance")
		if _, other, _, header := get(t, "http://"+vip+"/", "Cookie: "+cookie); other == first || header.Get("Set-Cookie") == "" {
			t.Errorf("%s in maintenance, served by %s with %q", first, other, header.Get("Set-Cookie"))
		}
		h.must(0, []string{"endpoint", "ready", "by-cookie/" + first}, "ready")
		// Nobody chooses an endpoint by a cookie of his own.
		if _, _, _, header := get(t, "http://"+vip+"/", "Cookie: "+cookie[:len(cookie)-2]+"xx"); header.Get("Set-Cookie") == "" {
			t.Error("a forged cookie is believed")
		}
	}
	if len(both) != 2 {
		t.Errorf("served by %v", both)
	}
	for _, session := range []string{"s1", "s2", "s3"} {
		_, first, _, _ := get(t, "http://"+vip+"/api/", "X-Session: "+session)
		for range 5 {
			if _, again, _, _ := get(t, "http://"+vip+"/api/", "X-Session: "+session); again != first {
				t.Errorf("session %s: first %s, then %s", session, first, again)
			}
		}
	}
	_, first, _, _ := get(t, "http://"+vip+"/files/")
	for range 5 {
		if _, again, _, _ := get(t, "http://"+vip+"/files/"); again != first {
			t.Errorf("by address: first %s, then %s", first, again)
		}
	}
}

// The backup serves while the first does not, and a page when nobody does.
func TestExampleBackup(t *testing.T) {
	w1, spare := newNamed(t, "w1"), newNamed(t, "spare")
	webPort, vip := port(t, "WEB_PORT")
	h := example(t, "backup.yaml", webPort, "WEB1="+w1.address, "SPARE="+spare.address)
	eventually(t, "both are up", func() bool { return strings.Count(states(h, "up"), "web/") == 2 })
	for range 4 {
		if _, server, _, _ := get(t, "http://"+vip+"/"); server != "w1" {
			t.Errorf("with both up: %s", server)
		}
	}
	w1.Close()
	eventually(t, "w1 is down", func() bool { return strings.Contains(states(h, "down"), "web/w1") })
	if status, server, _, _ := get(t, "http://"+vip+"/"); status != http.StatusOK || server != "spare" {
		t.Errorf("w1 is down: %d from %s", status, server)
	}
	spare.Close()
	eventually(t, "nobody is up", func() bool { return strings.Count(states(h, "down"), "web/") == 2 })
	status, _, body, header := get(t, "http://"+vip+"/")
	if status != http.StatusServiceUnavailable || !strings.Contains(body, "back in a few minutes") || header.Get("Content-Type") != "text/html" {
		t.Errorf("nobody is up: %d %q %v", status, body, header)
	}
}

// Five at once, then one a second: the sixth is told when to come again.
func TestExampleRates(t *testing.T) {
	w1 := newNamed(t, "w1")
	webPort, vip := port(t, "WEB_PORT")
	example(t, "rates.yaml", webPort, "WEB1="+w1.address)
	good, refused := 0, 0
	for range 40 {
		status, _, _, header := get(t, "http://"+vip+"/login")
		switch {
		case status == http.StatusOK:
			good++
		case status == http.StatusTooManyRequests && header.Get("Retry-After") != "":
			refused++
		default:
			t.Errorf("%d %v", status, header)
		}
	}
	if good < 5 || refused == 0 || good+refused != 40 {
		t.Errorf("%d answered, %d refused", good, refused)
	}
	for path, want := range map[string]int{"/": http.StatusOK, "/reports/": http.StatusOK, "/checkout/": http.StatusOK, "/admin/": http.StatusOK} {
		if status, _, _, _ := get(t, "http://"+vip+path); status != want {
			t.Errorf("%s: %d", path, status)
		}
	}
}

// Sinks get their share: 503, a reset, silence. Weights change while it runs.
func TestExampleDrop(t *testing.T) {
	w1 := newNamed(t, "w1")
	webPort, vip := port(t, "WEB_PORT")
	nullPort, null := port(t, "NULL_PORT")
	h := example(t, "drop.yaml", webPort, nullPort, "WEB1="+w1.address)
	share := func() (full int) {
		for range 50 {
			status, _, _, _ := get(t, "http://"+vip+"/")
			switch status {
			case http.StatusServiceUnavailable:
				full++
			case http.StatusOK:
			default:
				t.Errorf("status %d", status)
			}
		}
		return full
	}
	if full := share(); full != 10 {
		t.Errorf("%d of 50 were shed, want 10", full)
	}
	h.must(0, []string{"endpoint", "weight", "shop/full", "0"}, "weight 0")
	if full := share(); full != 0 {
		t.Errorf("%d of 50 were shed with weight 0", full)
	}
	// Resets and holds in turn.
	h.must(0, []string{"endpoint", "weight", "nobody/null", "0"}, "weight 0")
	c, err := net.Dial("tcp", null)
	if err == nil { // else it was reset before we looked
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		// The kernel tells of a reset once, to whichever comes first.
		_, wrote := io.WriteString(c, "hello\n")
		_, err = c.Read(make([]byte, 1))
		err = errors.Join(wrote, err)
		_ = c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("%v: want a reset", err)
	}
	h.must(0, []string{"endpoint", "weight", "nobody/null", "file"}, "weight 50")
	h.must(0, []string{"endpoint", "weight", "nobody/reset", "0"}, "weight 0")
	w := dialHTTP(t, null)
	w.send("hello\n")
	eventually(t, "it is held", func() bool {
		out, _, _ := h.verb("flows", "--backend", "nobody")
		return strings.Contains(out, "nobody/null")
	})
}

// A name has two addresses, each an endpoint of its own.
func TestExampleNames(t *testing.T) {
	first := newNamed(t, "first")
	second := namedAt(t, "second", "127.0.0.2:"+portOf(first.address))
	dns := startDNS(t, "app.test.", "127.0.0.1", "127.0.0.2")
	webPort, vip := port(t, "WEB_PORT")
	h := example(t, "names.yaml", webPort, "DNS="+dns, "APP=app.test:"+portOf(first.address))
	eventually(t, "both addresses are known", func() bool {
		out, _, _ := h.verb("endpoint", "list")
		return strings.Contains(out, first.address) && strings.Contains(out, second.address)
	})
	by := map[string]int{}
	eventually(t, "both serve", func() bool {
		_, server, _, _ := get(t, "http://"+vip+"/")
		by[server]++
		return by["first"] > 0 && by["second"] > 0
	})
}

// startDNS answers questions for the A records of name over UDP, and has no others.
func startDNS(t *testing.T, name string, addresses ...string) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() { // ends with c
		buf := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			if answer := answerDNS(buf[:n], name, addresses); answer != nil {
				_, _ = c.WriteTo(answer, from)
			}
		}
	}()
	return c.LocalAddr().String()
}

// answerDNS makes the answer to a question (RFC 1035, section 4).
func answerDNS(q []byte, name string, addresses []string) []byte {
	const header = 12
	if len(q) < header {
		return nil
	}
	asked, at := "", header
	for at < len(q) && q[at] != 0 {
		asked += string(q[at+1:at+1+int(q[at])]) + "."
		at += 1 + int(q[at])
	}
	end := at + 5 // the root, type, class
	if end > len(q) {
		return nil
	}
	kind := binary.BigEndian.Uint16(q[at+1:])
	out := append([]byte{}, q[:end]...)
	out[2], out[3] = 0x84, 0 // a response with authority, no error
	clear(out[6:header])
	if !strings.EqualFold(asked, name) {
		out[3] = 3 // there is no such name
		return out
	}
	if kind == 1 {
		binary.BigEndian.PutUint16(out[6:], uint16(len(addresses)))
		for _, a := range addresses {
			out = append(out, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4)
			out = append(out, net.ParseIP(a).To4()...)
		}
	}
	return out
}

// A thousand services start, each is checked and serves, and a reload that
// changes one touches no other.
func TestExampleThousandServices(t *testing.T) {
	a := newNamed(t, "a")
	const first = 20000
	file := filepath.Join(t.TempDir(), "services.yaml")
	out, err := exec.Command("../../examples/services.sh", "1000", fmt.Sprint(first), a.address).Output()
	if err != nil {
		t.Fatal(err)
	}
	// Some of these ports may be somebody's: another address of loopback.
	text := strings.ReplaceAll(string(out), `"127.0.0.1:2`, `"127.77.0.1:2`)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	h := begin(t, nil, "run", "-c", file)
	if !strings.HasPrefix(h.ready, "ready: 1,000 listeners, 1,000 endpoints ") {
		t.Errorf("%q", h.ready)
	}
	h.must(0, []string{"check", file}, "ok: 1,000 listeners, 1,000 backends, 1,000 endpoints, 1,000 routes")
	eventually(t, "all are up", func() bool { return strings.Count(states(h, "up"), "/a ") == 1000 })
	for _, i := range []int{0, 499, 999} {
		if status, server, _, _ := get(t, fmt.Sprintf("http://127.77.0.1:%d/", first+i)); status != http.StatusOK || server != "a" {
			t.Errorf("service %d: %d from %q", i, status, server)
		}
	}
	w := dialHTTP(t, fmt.Sprintf("127.77.0.1:%d", first+7))
	w.ask("/")
	w.answered()
	text = strings.Replace(text, "s500: { check: { tcp: {}, interval: 5s }", "s500: { check: { tcp: {}, interval: 7s }", 1)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	h.must(0, []string{"reload"}, "1 backend changed", "0 closed, 0 lost")
	w.ask("/again")
	if _, body := w.answered(); !strings.HasSuffix(body, "/again") {
		t.Errorf("%q", body)
	}
	h.must(0, []string{"status"}, "1,000 listeners, 1,000 endpoints", "... and 980 more; --verbose lists all")
}

// Every example is run by a test here, but for those that need more hosts than one, whose lab is migrate.
func TestExamplesAreRun(t *testing.T) {
	source, err := os.ReadFile("examples_run_test.go")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../../examples/*")
	if err != nil || len(files) < 15 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		name := filepath.Base(f)
		if name != "three-nodes.yaml" && !strings.Contains(string(source), `"`+name) && !strings.Contains(string(source), "examples/"+name) {
			t.Errorf("no test runs %s", name)
		}
	}
	if _, err := os.Stat("../../examples/three-nodes.yaml"); errors.Is(err, os.ErrNotExist) {
		t.Error("three-nodes.yaml is gone: so should the exception be")
	}
}
