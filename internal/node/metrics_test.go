package node

import (
	"encoding/json"
	"flag"
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
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/move"
)

var rewrite = flag.Bool("rewrite", false, "write docs/metrics.md")

const metricsHead = `# Metrics

Served on ` + "`GET /metrics`" + ` of the admin socket, and over TCP where ` + "`node.admin.metrics`" + ` says, in Prometheus' text format.
[alerts.yml](alerts.yml) has an alert for each promise and a burn rate to begin with.

- Counters never fall: not by a reload, not by a move, and after an upgrade the new process counts on from what the old one
  had told it. They begin anew with a process that nobody precedes, or whose predecessor died while it handed over. A scrape
  that comes in the milliseconds in which counts are handed over is answered 503.
- Labels are names of the configuration or words of the table; nothing that a client sent is one. What the configuration no
  longer has is not shown; it is still counted, should it come back.
- A scrape asks each loop through its mailbox, for a little at a time.
- Durations are shown in buckets of 1, 2 and 5 in each decade from 50 us to 50 s.
- There is no metric for octets that are unaccounted for: what is sent to clients is not what backends sent (heads are
  rewritten, flows are reset), so a running node cannot tell. The labs know every octet that they send, and compare.

| metric | kind | labels | what |
|---|---|---|---|
`

// metricsDocument is docs/metrics.md.
func metricsDocument() string {
	var b strings.Builder
	b.WriteString(metricsHead)
	for _, m := range Metrics() {
		fmt.Fprintf(&b, "| `%s` | %v | %s | %s |\n", m.Name, m.Kind, strings.Join(m.Labels, ", "), m.Help)
	}
	return b.String()
}

// The table for operators is what the code says; -rewrite writes it anew.
func TestMetricsDocument(t *testing.T) {
	const name = "../../docs/metrics.md"
	want := metricsDocument()
	if *rewrite {
		if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the code says: go test ./internal/node -run MetricsDocument -rewrite", name)
	}
}

// Names are as Prometheus wants them: counters end in _total, and units are base
// units, last before it.
func TestMetricNames(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range Metrics() {
		if seen[m.Name] {
			t.Errorf("%s is there twice", m.Name)
		}
		seen[m.Name] = true
		if (m.Kind == Counter) != strings.HasSuffix(m.Name, "_total") {
			t.Errorf("%s is a %v", m.Name, m.Kind)
		}
		if m.Kind == Distribution && !strings.HasSuffix(m.Name, "_seconds") {
			t.Errorf("%s is a histogram of what?", m.Name)
		}
		if strings.Contains(m.Name, "milli") || strings.Contains(m.Name, "octets") {
			t.Errorf("%s: not a base unit", m.Name)
		}
		if m.Help == "" || !strings.HasSuffix(m.Help, ".") || strings.Contains(m.Help, "|") {
			t.Errorf("%s: help %q", m.Name, m.Help)
		}
	}
}

// observed are the samples of all counters and histograms, by name and labels.
func observed(families []Family) map[string]float64 {
	all := map[string]float64{}
	for _, f := range families {
		if f.Kind == Gauge {
			continue
		}
		for _, s := range f.Samples {
			key := f.Name + "{" + strings.Join(s.Values, ",") + "}"
			if f.Kind == Distribution {
				count, sum, buckets := s.Buckets()
				all[key+" count"], all[key+" sum"] = float64(count), sum
				for bound, k := range buckets {
					all[fmt.Sprintf("%s %g", key, bound)] = float64(k)
				}
				continue
			}
			all[key] = s.Value
		}
	}
	return all
}

// grown checks that nothing has fallen or vanished, and gives now.
func grown(t *testing.T, what string, before map[string]float64, families []Family) map[string]float64 {
	t.Helper()
	now := observed(families)
	for key, was := range before {
		is, ok := now[key]
		if !ok && was != 0 {
			t.Errorf("%s: %s was %g and is gone", what, key, was)
		} else if is < was {
			t.Errorf("%s: %s fell from %g to %g", what, key, was, is)
		}
	}
	return now
}

// site is a configuration with HTTP and TCP.
func site(web, raw, server, more string) string {
	return fmt.Sprintf(`
node: { loops: 2 }
listeners:
  web: { vip: %q, protocol: http, routes: [ { match: { path: { prefix: / } }, backend: app } ] }
  raw: { vip: %q, backend: app }
backends:
  app: { endpoints: [ { name: a, address: %q } ] }
%s`, web, raw, server, more)
}

// webServer answers every request with its path.
func webServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/bad" {
			w.WriteHeader(http.StatusInternalServerError)
		}
		_, _ = io.WriteString(w, r.URL.Path)
	})}
	go func() { _ = s.Serve(l) }() // ends with the test
	t.Cleanup(func() { _ = s.Close() })
	return l.Addr().String()
}

// get asks for a path on a connection of its own.
func get(t *testing.T, addr, path string) int {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
	r, err := client.Get("http://" + addr + path)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, r.Body)
	_ = r.Body.Close()
	return r.StatusCode
}

func value(t *testing.T, families []Family, name string, labels ...string) float64 {
	t.Helper()
	for _, f := range families {
		if f.Name != metricPrefix+name {
			continue
		}
		for _, s := range f.Samples {
			if slices.Equal(s.Values, labels) {
				return s.Value
			}
		}
		t.Fatalf("%s has no sample for %q: %v", name, labels, f.Samples)
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// settled waits until the flows of a test have ended and are counted.
func (r *running) settled() []Family {
	r.t.Helper()
	r.flows(0)
	return r.Measure()
}

// What was served is counted where it belongs, once.
func TestMeasureCounts(t *testing.T) {
	web, raw, server := free(t), free(t), webServer(t)
	r := start(t, site(web, raw, server, ""))
	for range 5 {
		if code := get(t, web, "/x"); code != 200 {
			t.Fatalf("status %d", code)
		}
	}
	get(t, web, "/bad")
	get(t, raw, "/through")
	all := r.settled()
	for _, x := range []struct {
		want   float64
		name   string
		labels []string
	}{
		{5, "requests_total", []string{"web", "0", "app", "2xx"}},
		{1, "requests_total", []string{"web", "0", "app", "5xx"}},
		{0, "requests_total", []string{"web", "0", "app", "4xx"}},
		{5, "endpoint_requests_total", []string{"app", "a", "2xx"}},
		{1, "endpoint_requests_total", []string{"app", "a", "5xx"}},
		{1, "endpoint_requests_total", []string{"app", "a", "none"}},
		{6, "connections_accepted_total", []string{"web"}},
		{1, "connections_accepted_total", []string{"raw"}},
		{0, "connections_refused_total", []string{"raw", "denied"}},
		{0, "flows_lost_total", []string{"panic"}},
		{0, "flows_lost_total", []string{"move"}},
		{0, "flows_reset_by_move_total", nil},
		{1, "generation", nil},
		{1, "endpoint_up", []string{"app", "a"}},
		{100, "endpoint_weight", []string{"app", "a"}},
		{0, "endpoint_in_flight", []string{"app", "a"}},
		{1, "endpoints_serving", []string{"app"}},
		{0, "log_dropped_total", nil},
		{0, "shedding", nil},
	} {
		if got := value(t, all, x.name, x.labels...); got != x.want {
			t.Errorf("%s%v is %g, want %g", x.name, x.labels, got, x.want)
		}
	}
	s := r.Status()
	for _, l := range s.Listeners {
		if want := map[string]uint64{"web": 6, "raw": 1}[l.Name]; l.Requests != want {
			t.Errorf("status: %s has %d requests, want %d", l.Name, l.Requests, want)
		}
	}
	if b := s.Backends[0]; b.Requests != 7 || b.Codes["5xx"] != 1 || b.Serving != 1 || b.P99Millis <= 0 {
		t.Errorf("status: %+v", b)
	}
}

// No counter falls or vanishes by a reload, a move between loops, or a new
// process that inherits what the old one has counted.
func TestCountersNeverFall(t *testing.T) {
	web, raw, server := free(t), free(t), webServer(t)
	r := start(t, site(web, raw, server, ""))
	open := dial(t, raw)
	if _, err := io.WriteString(open, "GET /open HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		get(t, web, "/x")
	}
	get(t, raw, "/x")
	r.flows(1)
	before := observed(r.Measure())
	if _, err := r.Rebalance(true); err != nil {
		t.Fatal(err)
	}
	before = grown(t, "rebalance", before, r.Measure())
	r.reload(site(web, raw, server, "  spare: { endpoints: [ { name: b, address: \"127.0.0.1:1\" } ] }\n"))
	before = grown(t, "reload", before, r.Measure())
	get(t, web, "/bad")
	_ = open.Close()
	families := r.settled()
	before = grown(t, "traffic", before, families)

	// As an upgrade does it: through JSON, to a process that has served already.
	text, err := json.Marshal(r.estate())
	if err != nil {
		t.Fatal(err)
	}
	r.Stop()
	heir := start(t, site(web, raw, server, ""))
	get(t, web, "/early")
	heir.flows(0)
	var e Estate
	if err := json.Unmarshal(text, &e); err != nil {
		t.Fatal(err)
	}
	heir.inherit(&e)
	before = grown(t, "upgrade", before, heir.Measure())
	if got := value(t, heir.Measure(), "requests_total", "web", "0", "app", "2xx"); got != 21 {
		t.Errorf("%g requests, want 20 of before and 1 of now", got)
	}
	// And once more, so that what was inherited is handed on.
	text, err = json.Marshal(heir.estate())
	if err != nil {
		t.Fatal(err)
	}
	heir.Stop()
	third := start(t, site(web, raw, server, ""))
	e = Estate{}
	if err := json.Unmarshal(text, &e); err != nil {
		t.Fatal(err)
	}
	third.inherit(&e)
	grown(t, "second upgrade", before, third.Measure())
}

// A predecessor of a release that knows only Totals is understood.
func TestInheritTotalsAlone(t *testing.T) {
	r := start(t, site(free(t), free(t), "127.0.0.1:1", ""))
	text, err := json.Marshal(Totals{Accepted: 7, Ended: map[string]uint64{"finished": 7}})
	if err != nil {
		t.Fatal(err)
	}
	var e Estate
	if err := json.Unmarshal(text, &e); err != nil {
		t.Fatal(err)
	}
	r.inherit(&e)
	if got := r.counts().Accepted; got != 7 {
		t.Errorf("accepted %d", got)
	}
}

// A histogram survives the way to a release with other buckets: nothing is lost.
func TestPortableHistogram(t *testing.T) {
	var h, back loop.Histogram
	for d := time.Microsecond; d < 10*time.Minute; d = d * 3 / 2 {
		h.Note(d)
	}
	portableOf(&h).into(&back)
	if back != h {
		t.Errorf("got %v, want %v", back, h)
	}
	odd := &portableHistogram{Counts: [][2]int64{{77_777, 3}, {int64(time.Hour), 2}}, Sum: time.Second}
	var into loop.Histogram
	odd.into(&into)
	if into.Count() != 5 || into.Sum != time.Second || into.Counts[len(loop.Bounds)] != 2 {
		t.Errorf("got %v", into)
	}
}

// Flows are found by what is asked for.
func TestFlowFilters(t *testing.T) {
	web, raw, server := free(t), free(t), echo(t)
	r := start(t, site(web, raw, server, ""))
	a, b := dial(t, raw), dial(t, raw)
	says(t, a, "a")
	says(t, b, "b")
	idle := dial(t, web)
	if _, err := io.WriteString(idle, "GET"); err != nil {
		t.Fatal(err)
	}
	all := r.flows(3)
	for end := time.Now().Add(30 * time.Second); all[2].Kind != loop.KindHTTPHead && time.Now().Before(end); all = r.flows(3) {
		time.Sleep(time.Millisecond)
	}
	for _, x := range []struct {
		what string
		q    FlowFilter
		want int
	}{
		{"all", FlowFilter{}, 3},
		{"listener", FlowFilter{Listener: "raw"}, 2},
		{"no such listener", FlowFilter{Listener: "rew"}, 0},
		{"backend", FlowFilter{Backend: "app"}, 2},
		{"endpoint", FlowFilter{Endpoint: "app/a"}, 2},
		{"endpoint by its own name", FlowFilter{Endpoint: "a"}, 2},
		{"state", FlowFilter{Kind: loop.KindHTTPHead}, 1},
		{"client", FlowFilter{Client: prefix("127.0.0.0/8")}, 3},
		{"other client", FlowFilter{Client: prefix("10.0.0.0/8")}, 0},
		{"older", FlowFilter{Older: time.Hour}, 0},
		{"old enough", FlowFilter{Older: time.Nanosecond}, 3},
		{"moved", FlowFilter{Moved: true}, 0},
		{"most", FlowFilter{Max: 2}, 2},
		{"both", FlowFilter{Listener: "raw", Max: 1, Client: prefix("127.0.0.1/32")}, 1},
	} {
		got, err := r.Flows(x.q)
		if err != nil || len(got) != x.want {
			t.Errorf("%s: %d flows, want %d (%v)", x.what, len(got), x.want, err)
		}
	}
	got, err := r.Flows(FlowFilter{Kind: loop.KindHTTPHead})
	if err != nil || len(got) != 1 || !strings.Contains(got[0].Why, "request's head") || !strings.HasPrefix(got[0].ID, "f-") {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := r.Rebalance(true); err != nil {
		t.Fatal(err)
	}
	if got, _ := r.Flows(FlowFilter{Moved: true}); len(got) != 3 {
		t.Errorf("%d flows have moved, want 3", len(got))
	}
}

// Reasons of refusals stay few, whatever they name.
func TestMoveReasonsAreBounded(t *testing.T) {
	var all totals
	for i := range 3 * reasonsMax {
		r := newReport("host")
		r.refuse(1, fmt.Sprintf("reason %d: flow f-%x", i, i))
		r.refuse(1, "leg: descriptor 3 of 2")
		all.note(r)
	}
	if len(all.refused) > reasonsMax+1 {
		t.Errorf("%d reasons", len(all.refused))
	}
	if k := all.refused[[2]string{"host", "leg"}]; k != 3*reasonsMax {
		t.Errorf("leg: %d", k)
	}
}

// Every cause has a word of its own, by which it goes to another release.
func TestCausesByName(t *testing.T) {
	if len(causesByName) != flow.Causes {
		t.Errorf("%d words for %d causes", len(causesByName), flow.Causes)
	}
}

// Each promise has an alert, and no alert is about what does not exist.
func TestAlerts(t *testing.T) {
	text, err := os.ReadFile("../../docs/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, m := range Metrics() {
		known[m.Name] = true
		if m.Kind == Distribution {
			known[m.Name+"_bucket"], known[m.Name+"_sum"], known[m.Name+"_count"] = true, true, true
		}
		if strings.Contains(m.Help, "Must stay 0") {
			if !strings.Contains(string(text), "increase("+m.Name+"[") {
				t.Errorf("no alert for %s", m.Name)
			}
		}
	}
	for _, name := range regexp.MustCompile(`holdfast_\w+`).FindAllString(string(text), -1) {
		if !known[name] {
			t.Errorf("an alert is about %s", name)
		}
	}
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// An upgrade keeps counters, the flows' series, the place of the access log and
// the listener for metrics; the predecessor says nothing any more.
func TestUpgradeKeepsWhatIsSeen(t *testing.T) {
	web, raw, server, scrapes := free(t), free(t), webServer(t), free(t)
	name := filepath.Join(t.TempDir(), "access.log")
	text := strings.Replace(site(web, raw, server, "accessLog: { to: "+name+" }\n"), "loops: 2", "loops: 2, admin: { metrics: "+scrapes+" }", 1)
	old := start(t, text)
	idle := dial(t, web)
	says200(t, idle)
	for range 10 {
		get(t, web, "/x")
	}
	get(t, raw, "/x")
	old.flows(1)
	if _, err := old.Rebalance(true); err != nil {
		t.Fatal(err)
	}
	before := observed(old.Measure())
	if old.Left() {
		t.Error("it has left")
	}
	heir, _, done, given, taken := succeed(t, old, 0, func(*Node) error { return nil }, nothing)
	if !done || given != nil || taken != nil {
		t.Fatalf("done %t, given: %v, taken: %v", done, given, taken)
	}
	if !old.Left() || heir.Left() {
		t.Error("who speaks is not clear")
	}
	after := grown(t, "upgrade", before, heir.Measure())
	if moved := after[metricPrefix+"moved_flows_total{process}"]; moved != 1 {
		t.Errorf("%g flows moved", moved)
	}
	if k := after[metricPrefix+"move_pause_seconds{process} count"]; k != 1 {
		t.Errorf("%g pauses", k)
	}
	says200(t, idle)
	if got := value(t, heir.Measure(), "requests_total", "web", "0", "app", "2xx"); got != 12 {
		t.Errorf("%g requests, want 12", got)
	}
	// One socket, not two that share an address: whoever connected before the
	// upgrade would be served after it.
	c := dial(t, scrapes)
	got, err := heir.MetricsListener().Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = got.Close() }()
	if got.RemoteAddr().String() != c.LocalAddr().String() {
		t.Errorf("accepted %v, dialled %v", got.RemoteAddr(), c.LocalAddr())
	}
	old.Stop()
	heir.Stop()
	if n := len(logged(t, name)); n != 13 {
		t.Errorf("%d lines, want 13", n)
	}
}

// After an upgrade that came to nothing the node counts and tells as before.
func TestAbortedUpgradeIsCounted(t *testing.T) {
	old := start(t, site(free(t), free(t), webServer(t), ""))
	heir, r, done, given, _ := succeed(t, old, move.Done, func(*Node) error { return nil }, nothing)
	if done || given == nil {
		t.Fatalf("done %t, given: %v", done, given)
	}
	heir.Stop()
	if err := old.abort(r, given); err == nil {
		t.Error("no error")
	}
	if old.Left() {
		t.Error("it says that it has left")
	}
	if n := value(t, old.Measure(), "moves_aborted_total", "process"); n != 1 {
		t.Errorf("%g aborted", n)
	}
	if n := old.Status().Moves["process"]; n != 0 {
		t.Errorf("%d moves, though nothing has moved", n)
	}
}

// Counts of very many endpoints fit into a message: first endpoints are no longer
// told apart, then only totals are left. Sums stay.
func TestEstateIsBounded(t *testing.T) {
	e := Estate{Totals: Totals{Accepted: 9}}
	var h loop.Histogram
	h.Note(time.Millisecond)
	for i := range 1000 {
		e.Series = append(e.Series, portableSeries{
			Listener: "web", Backend: "app", Endpoint: fmt.Sprintf("e%d", i), Requests: [6]uint64{2: 1}, Causes: map[string]uint64{"finished": 1},
			In: 1, Out: 2, Waited: 3, Took: portableOf(&h), Answer: portableOf(&h),
		})
		e.Samples = append(e.Samples, portableSample{endpointTries.Name, []string{"app", fmt.Sprintf("e%d", i)}, 1, nil})
	}
	e.Samples = append(e.Samples, portableSample{trippedTotal.Name, []string{"app"}, 5, nil})
	whole, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct{ most, series, samples int }{
		{len(whole), 1000, 1001}, {len(whole) - 1, 1, 1}, {10, 0, 0},
	} {
		text := e.bounded(x.most)
		var back Estate
		if err := json.Unmarshal(text, &back); err != nil || len(text) > x.most && x.series > 0 {
			t.Fatal(err, len(text))
		}
		if len(back.Series) != x.series || len(back.Samples) != x.samples || back.Accepted != 9 {
			t.Errorf("%d octets: %d series, %d samples, accepted %d", x.most, len(back.Series), len(back.Samples), back.Accepted)
		}
		if x.series == 0 {
			continue
		}
		var requests, causes, answers uint64
		for _, p := range back.Series {
			var h loop.Histogram
			p.Answer.into(&h)
			requests, causes, answers = requests+p.Requests[2], causes+p.Causes["finished"], answers+h.Count()
		}
		if requests != 1000 || causes != 1000 || answers != 1000 {
			t.Errorf("%d octets: %d requests, %d causes, %d answers", x.most, requests, causes, answers)
		}
	}
	if len(e.Series) != 1000 || e.Series[0].Causes["finished"] != 1 {
		t.Error("what was to be sent has changed")
	}
}
