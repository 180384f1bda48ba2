package main

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/node"
)

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 s", 157 * time.Microsecond: "157 us", 3100 * time.Microsecond: "3.1 ms", 42 * time.Millisecond: "42 ms",
		4200 * time.Millisecond: "4.2 s", 61 * time.Second: "1m01s", 134 * time.Minute: "2h14m", 75 * time.Hour: "3d03h", -time.Second: "-1.0 s",
	} {
		if got := short(d); got != want {
			t.Errorf("short(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestSizes(t *testing.T) {
	for n, want := range map[float64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 88 << 20: "88.0 MiB", 1 << 40: "1.0 TiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%v) = %q, want %q", n, got, want)
		}
	}
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", -1204118: "-1,204,118"} {
		if got := thousands(n); got != want {
			t.Errorf("thousands(%d) = %q, want %q", n, got, want)
		}
	}
	if got := count(1, "flow") + ", " + count(1204, "flow"); got != "1 flow, 1,204 flows" {
		t.Error(got)
	}
}

// What a cell says is the number it was made from, so that rows sort.
func TestNumbersOfCells(t *testing.T) {
	for cell, want := range map[string]float64{
		"1,204": 1204, "3.1 MiB": 3.1 * (1 << 20), "6x": 6, "12 ms": 0.012, "-": -1, "": -1, "0": 0, "2/3": 2,
	} {
		if got := number(cell); math.Abs(got-want) > 0.001*math.Abs(want) {
			t.Errorf("number(%q) = %v, want %v", cell, got, want)
		}
	}
}

func TestMeant(t *testing.T) {
	names := []string{"quiesce", "ready", "web/a1", "web/a2"}
	for got, want := range map[string]string{
		"quiese": "quiesce", "redy": "ready", "web/b1": "web/a1", "wep/a2": "web/a2", "database": "", "ready": "", "": "",
	} {
		text := meant(got, names)
		if want == "" && text != "" || want != "" && text != `; did you mean "`+want+`"?` {
			t.Errorf("meant(%q) = %q, want %q", got, text, want)
		}
	}
}

func TestTable(t *testing.T) {
	tab := table{head: []string{"NAME", ">OPEN", "WHY"}}
	tab.add("web", "1,204", "")
	tab.add("ångström", "7", "so")
	want := "NAME       OPEN  WHY\nweb       1,204\nångström      7  so\n"
	if got := tab.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	tab.sortBy("OPEN", true)
	if tab.rows[0][0] != "ångström" {
		t.Errorf("the smallest first: %v", tab.rows)
	}
	if tab.sortBy("OPEN", false); tab.rows[0][0] != "web" {
		t.Errorf("the largest first: %v", tab.rows)
	}
}

// Rates and quantiles of `top` come from two looks at the metrics.
func TestMetricsBecomeRates(t *testing.T) {
	text := func(ok, bad, fast, slow string) string {
		return `# HELP holdfast_requests_total so
# TYPE holdfast_requests_total counter
holdfast_requests_total{backend="web",code="2xx",listener="a \"b\" \\ } c",route="0"} ` + ok + `
holdfast_requests_total{backend="web",code="5xx",listener="a \"b\" \\ } c",route=""} ` + bad + `
holdfast_requests_total{backend="",code="4xx",listener="a \"b\" \\ } c",route=""} 5
holdfast_endpoint_requests_total{backend="web",code="2xx",endpoint="a1"} ` + ok + `
holdfast_sent_bytes_total{listener="a \"b\" \\ } c"} 1e+03
holdfast_request_duration_seconds_bucket{backend="web",listener="x",route="0",le="0.01"} ` + fast + `
holdfast_request_duration_seconds_bucket{backend="web",listener="x",route="0",le="0.5"} ` + slow + `
holdfast_request_duration_seconds_bucket{backend="web",listener="x",route="0",le="+Inf"} ` + slow + `
go_goroutines 7
nonsense
`
	}
	const name = `a "b" \ } c`
	l1, b1, e1 := countsOf(metricsOf([]byte(text("100", "1", "100", "100"))))
	l2, b2, e2 := countsOf(metricsOf([]byte(text("300", "3", "198", "200"))))
	if l1[name] == nil || l1[name].requests != 106 || l1[name].refused != 5 || l1[name].out != 1000 {
		t.Fatalf("listeners: %+v", l1)
	}
	got := ratesOf(l1, l2, 2)[name]
	if got.requests != 101 || got.errors != 1 || got.refused != 0 || got.out != 0 {
		t.Errorf("rates of the listener: %+v", got)
	}
	if got := ratesOf(b1, b2, 2)["web"]; got.requests != 101 || got.p99 != 500*time.Millisecond {
		t.Errorf("rates of the backend: %+v", got)
	}
	if got := ratesOf(e1, e2, 4)["web/a1"]; got.requests != 50 {
		t.Errorf("rates of the endpoint: %+v", got)
	}
	if got := ratesOf(b2, b1, 2)["web"]; got.requests != 0 || got.p99 != 0 {
		t.Errorf("counts that fell are no rate: %+v", got)
	}
	if got := strings.Join([]string{perSecond(0), perSecond(1.25), perSecond(4812.3)}, " "); got != "0 1.2 4,812" {
		t.Error(got)
	}
}

// Flows that died with a new process are lost, though no loop has lost them; and what
// came of an upgrade is said once.
func TestStatusSaysWhatWasLost(t *testing.T) {
	s := &node.Status{Node: "n1", LastUpgrade: &node.UpgradeStatus{Result: "failed", Why: "aborted: lost 2 flows that the new process had taken"}}
	s.ResetByMove = 2
	text := statusText(s, nil, false)
	for _, want := range []string{"0 flows, lost 2 (release", "ago: lost 2 flows that"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}
