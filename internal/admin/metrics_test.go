package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/node"
)

// served is a node with its admin socket, and how to ask there.
type served struct {
	*node.Node
	t      *testing.T
	http   *http.Client
	server *Server
	vip    string // of HTTP
	path   string // of the socket
	source string // of the configuration
}

// addresses counts those that were given to tests.
var addresses atomic.Int32

// port is an address nobody listens on. Its port is none that the kernel gives
// to a connection (net.ipv4.ip_local_port_range begins at 32768): one that was free a
// moment ago is somebody's a moment later.
func port(t *testing.T) string {
	t.Helper()
	for range 1000 {
		n := (os.Getpid()*61 + int(addresses.Add(1))) % 20000
		l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", 12000+n))
		if err == nil {
			_ = l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no port is free")
	return ""
}

// serving begins a node with all that is counted; more goes into its node section.
func serving(t *testing.T, more string) *served { return servingAs(t, more, nil) }

// servingAs is serving with other options.
func servingAs(t *testing.T, more string, set func(*node.Options)) *served {
	t.Helper()
	backend := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = backend.Serve(l) }() // ends with the test
	t.Cleanup(func() { _ = backend.Close() })
	s := &served{t: t, vip: port(t)}
	source := fmt.Sprintf(`
node: { loops: 2%s }
listeners:
  web: { vip: %q, protocol: http, routes: [ { match: { path: { prefix: / } }, backend: app } ] }
  raw: { vip: %q, backend: app }
backends:
  app: { endpoints: [ { name: a, address: %q }, { name: b, address: %q, weight: 0 } ] }
`, more, s.vip, port(t), l.Addr(), l.Addr())
	dir := t.TempDir()
	level := new(slog.LevelVar)
	o := node.Options{File: "holdfast.yaml", Source: []byte(source), Log: slog.New(slog.DiscardHandler), Level: level}
	if set != nil {
		set(&o)
	}
	s.source = source
	s.Node, err = node.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Node.Stop)
	path := filepath.Join(dir, "admin.sock")
	server, err := Serve(s.Node, path, o.Log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close(true) })
	s.server = server
	s.path = path
	s.http = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	return s
}

// ask asks the admin socket; body "" is GET.
func (s *served) ask(path, body string) (int, string) {
	s.t.Helper()
	method := http.MethodGet
	if body != "" {
		method = http.MethodPost
	}
	r, err := http.NewRequest(method, "http://holdfast"+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := s.http.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

var sampleLine = regexp.MustCompile(`^(holdfast_[a-z_]+)(\{[^}]*\})? [-+0-9.e]+$`)

// What docs/metrics.md lists is in a scrape, and nothing else is: with its type
// and its labels.
func TestScrapeIsWhatIsDocumented(t *testing.T) {
	s := serving(t, "")
	r, err := http.Get("http://" + s.vip)
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	type row struct{ kind, labels string }
	rows := map[string]row{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(holdfast_[a-z_]+)` \\| (\\w+) \\| ([a-z_, ]*) \\|").FindAllStringSubmatch(string(text), -1) {
		rows[m[1]] = row{m[2], strings.ReplaceAll(strings.TrimSpace(m[3]), " ", "")}
	}
	if len(rows) != len(node.Metrics()) {
		t.Fatalf("%d rows for %d metrics", len(rows), len(node.Metrics()))
	}
	// A request is counted when it is over, which its client may know sooner.
	var scrape string
	for end := time.Now().Add(10 * time.Second); !strings.Contains(scrape, `endpoint_requests_total{backend="app",code="2xx",endpoint="a"} 1`) && time.Now().Before(end); {
		code := 0
		if code, scrape = s.ask("/metrics", ""); code != http.StatusOK {
			t.Fatalf("status %d: %s", code, scrape)
		}
	}
	found := map[string]bool{}
	for line := range strings.Lines(scrape) {
		line = strings.TrimSpace(line)
		if name, kind, ok := strings.Cut(strings.TrimPrefix(line, "# TYPE "), " "); ok && strings.HasPrefix(line, "# TYPE ") {
			if rows[name].kind != kind {
				t.Errorf("%s is a %s, documented as %q", name, kind, rows[name].kind)
			}
			continue
		}
		if strings.HasPrefix(line, "#") {
			continue
		}
		m := sampleLine.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("not a line of metrics: %q", line)
			continue
		}
		name := m[1]
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base := strings.TrimSuffix(name, suffix); rows[base].kind == "histogram" {
				name = base
			}
		}
		var labels []string
		for _, l := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(m[2], -1) {
			if l[1] != "le" {
				labels = append(labels, l[1])
			}
		}
		slices.Sort(labels)
		want := strings.FieldsFunc(rows[name].labels, func(r rune) bool { return r == ',' })
		slices.Sort(want)
		if !slices.Equal(labels, want) {
			t.Errorf("%s has labels %q, documented %q", name, labels, want)
		}
		found[name] = true
	}
	for name := range rows {
		// Those of a VIP or a node are there where the configuration has some.
		if labels := rows[name].labels; !found[name] && labels != "vip" && labels != "node" {
			t.Errorf("%s is documented and not in a scrape", name)
		}
	}
	for name := range found {
		if rows[name] == (row{}) {
			t.Errorf("%s is in a scrape and not documented", name)
		}
	}
}

// Over TCP there are metrics, pages and nothing else, in a server that no stranger keeps
// busy.
func TestMetricsOverTCP(t *testing.T) {
	addr := port(t)
	_ = serving(t, ", admin: { metrics: "+addr+" }")
	get := func(path string) (int, string) {
		r, err := http.Get("http://" + addr + path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Body.Close() }()
		b, _ := io.ReadAll(r.Body)
		return r.StatusCode, string(b)
	}
	if code, text := get("/metrics"); code != 200 || !strings.Contains(text, "holdfast_flows_reset_by_move_total 0") {
		t.Errorf("%d: %s", code, text)
	}
	for _, path := range []string{"/holdfast.v1.Node/Status", "/openapi.yaml", "/debug/pprof/"} {
		if code, _ := get(path); code != http.StatusNotFound {
			t.Errorf("%s: status %d", path, code)
		}
	}
	r, err := http.Post("http://"+addr+"/metrics", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	if r.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: status %d", r.StatusCode)
	}
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, _ = fmt.Fprintf(c, "GET /metrics HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n", strings.Repeat("x", 2*scrapeHead))
	if line, _ := bufio.NewReader(c).ReadString('\n'); !strings.Contains(line, "431") {
		t.Errorf("a large head: %q", line)
	}

	// One more connection than may be open is closed at once; when one leaves,
	// there is room again.
	http.DefaultClient.CloseIdleConnections()
	var open []net.Conn
	for range connectionsMax + 8 {
		c, err := net.Dial("tcp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	last := open[len(open)-1]
	_ = last.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := last.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("one too many reads %v", err)
	}
	for _, c := range open {
		_ = c.Close()
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		r, err := http.Get("http://" + addr + "/metrics")
		if err == nil {
			_ = r.Body.Close()
			break
		}
		if time.Now().After(end) {
			t.Fatalf("no room again: %v", err)
		}
	}
}

// Endpoints are listed, and change when they are told to.
func TestEndpointsOverTheSocket(t *testing.T) {
	s := serving(t, "")
	var all struct{ Endpoints []node.EndpointState }
	if code, text := s.ask("/holdfast.v1.Node/Endpoints", ""); code != 200 || json.Unmarshal([]byte(text), &all) != nil || len(all.Endpoints) != 2 {
		t.Fatalf("%d: %s", code, text)
	}
	if one := all.Endpoints[0]; one.Name != "app/a" || !one.Serves {
		t.Errorf("%+v", one)
	}
	const set = "/holdfast.v1.Node/SetEndpoint"
	if code, text := s.ask(set, `{"backend":"app","endpoint":"a","do":"quiesce","force":true}`); code != 200 || !strings.Contains(text, `"is":"quiescing"`) {
		t.Errorf("%d: %s", code, text)
	}
	if _, text := s.ask("/metrics", ""); !strings.Contains(text, `holdfast_endpoint_state{backend="app",endpoint="a",state="quiescing"} 1`) ||
		!strings.Contains(text, `holdfast_endpoint_up{backend="app",endpoint="a"} 0`) {
		t.Error("the metrics do not tell")
	}
	if code, text := s.ask(set, `{"backend":"app","endpoint":"a","do":"dance"}`); code != 400 || !strings.Contains(text, "dance") {
		t.Errorf("%d: %s", code, text)
	}
	if code, text := s.ask(set, `{"backend":"app","name":"a","do":"ready"}`); code != 400 || !strings.Contains(text, `no field \"name\"`) {
		t.Errorf("%d: %s", code, text)
	}
}

// Flows are asked for by filters; one that is not understood is refused.
func TestFlowsOverTheSocket(t *testing.T) {
	s := serving(t, "")
	c, err := net.Dial("tcp4", s.vip)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	for query, want := range map[string]int{
		"": 1, "?listener=web": 1, "?listener=raw": 0, "?client=127.0.0.0/8&max=5": 1, "?client=127.0.0.1": 1, "?client=::1": 0,
		"?older=1ns": 1, "?older=1h": 0, "?moved=1": 0, "?moved=false": 1, "?kind=queued": 0,
	} {
		code, text := s.ask("/holdfast.v1.Node/Flows"+query, "")
		var all struct{ Flows []node.FlowStatus }
		if err := json.Unmarshal([]byte(text), &all); code != 200 || err != nil || len(all.Flows) != want {
			t.Errorf("%s: %d, %v: %s", query, code, err, text)
		}
	}
	for _, query := range []string{"?lisener=web", "?client=here", "?older=long", "?older=-1s", "?moved=maybe", "?max=-1", "?max=x"} {
		if code, text := s.ask("/holdfast.v1.Node/Flows"+query, ""); code != 400 || !strings.Contains(text, "invalid_argument") {
			t.Errorf("%s: %d %s", query, code, text)
		}
	}
	// A filter that nothing can be meant by ends no flow.
	if code, text := s.ask("/holdfast.v1.Node/Kill", `{"filter":{"older":"-1s"}}`); code != 400 || s.Status().Flows != 1 {
		t.Errorf("%d %s", code, text)
	}
}

// The level of the log is told and changed.
func TestLogLevelOverTheSocket(t *testing.T) {
	s := serving(t, "")
	for _, x := range []struct{ body, want string }{
		{`{}`, `{"was":"INFO","is":"INFO"}`},
		{`{"level":"DEBUG"}`, `{"was":"INFO","is":"DEBUG"}`},
		{`{"level":"warn"}`, `{"was":"DEBUG","is":"WARN"}`},
	} {
		if code, text := s.ask("/holdfast.v1.Node/SetLog", x.body); code != 200 || strings.TrimSpace(text) != x.want {
			t.Errorf("%s: %d %s", x.body, code, text)
		}
	}
	if code, text := s.ask("/holdfast.v1.Node/SetLog", `{"level":"loud"}`); code != 400 {
		t.Errorf("%d %s", code, text)
	}
}
