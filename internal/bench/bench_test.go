package bench

import (
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var rewrite = flag.Bool("rewrite", false, "renew the files in testdata")

func TestMain(m *testing.M) {
	Child() // the tests start themselves as generator and backend, too
	os.Exit(m.Run())
}

// servedBy gives a port on which each connection is served by serve, until the
// test ends.
func servedBy(t *testing.T, serve func(net.Conn)) (port int) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { serve(conn); _ = conn.Close() }()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-ended
	})
	return l.Addr().(*net.TCPAddr).Port
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{
		{nil, 0},
		{[]float64{3}, 3},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 1, 3, 2}, 2.5},
	} {
		before := slices.Clone(c.values)
		if got := median(c.values); got != c.want || !slices.Equal(before, c.values) {
			t.Errorf("median(%v) = %v, want %v, and %v as before", before, got, c.want, c.values)
		}
	}
}

func TestRounded(t *testing.T) {
	for _, c := range []struct{ in, want float64 }{{0, 0}, {8.22456, 8.225}, {120931.4, 120900}, {0.93339, 0.9334}, {-12.3456, -12.35}} {
		if got := rounded(c.in); got != c.want {
			t.Errorf("rounded(%v) = %v, want %v", c.in, got, c.want)
		}
	}
}

// Every bucket holds what its bounds say, and none is out of range.
func TestBuckets(t *testing.T) {
	for _, ns := range []uint64{0, 1, 63, 64, 65, 127, 128, 129, 1000, 1 << 20, 1<<20 + 12345, 1<<63 - 1} {
		i := bucketOf(ns)
		if low, next := bucketLow(i), bucketLow(i+1); ns < low || ns >= next && next > low {
			t.Errorf("%d ns is in bucket %d, which is [%d, %d)", ns, i, low, next)
		}
		if i >= len(histogram{}.buckets) {
			t.Errorf("%d ns is in bucket %d of %d", ns, i, len(histogram{}.buckets))
		}
	}
}

func TestQuantile(t *testing.T) {
	var h histogram
	if got := h.quantile(0.5); got != 0 {
		t.Errorf("quantile of nothing is %v", got)
	}
	for i := 1; i <= 1000; i++ {
		h.add(time.Duration(i) * time.Microsecond)
	}
	for _, c := range []struct {
		q    float64
		want time.Duration
	}{{0.5, 500 * time.Microsecond}, {0.99, 990 * time.Microsecond}, {1, 1000 * time.Microsecond}} {
		if got := h.quantile(c.q); got < c.want*98/100 || got > c.want*102/100 {
			t.Errorf("quantile(%v) = %v, want %v within 2 %%", c.q, got, c.want)
		}
	}
}

func TestParseResident(t *testing.T) {
	got, err := parseResident("55d0-7ffc ---p 00000000 00:00 0 [rollup]\nRss:                1516 kB\nPss:  9 kB\n")
	if got != 1516<<10 || err != nil {
		t.Errorf("got %d, %v", got, err)
	}
	if _, err := parseResident("Pss: 9 kB\n"); !errors.Is(err, errNoResident) {
		t.Errorf("without Rss: %v", err)
	}
}

func TestVersionPattern(t *testing.T) {
	for said, want := range map[string]string{
		"HAProxy version 2.6.12-1+deb12u4 2026/01/01 - https://haproxy.org/": "2.6.12-1+deb12u4",
		"nginx version: nginx/1.22.1\n":                                      "1.22.1",
	} {
		m := versionPattern.FindStringSubmatch(said)
		if m == nil || m[1] != want {
			t.Errorf("%q: %q, want %q", said, m, want)
		}
	}
}

func TestModelName(t *testing.T) {
	if got := modelName("processor\t: 0\nmodel name\t: A CPU @ 2 GHz\n"); got != "A CPU @ 2 GHz" {
		t.Errorf("got %q", got)
	}
}

// exampleResult has every field set, so that the golden file shows them all.
func exampleResult() Result {
	r := Result{Row: "tcp-echo", Title: "64 octets there and back, 64 connections", Unit: "us/op", Goal: 0.8, Rounds: 3, Short: true,
		Machine: Machine{CPU: "A CPU", CPUs: 2, Kernel: "6.18.0", Congestion: "cubic", TimeWaits: "4096", Namespace: true, Go: "go1.26", Load: "0.10 0.20 0.30 1/80 99",
			Versions: map[string]string{holdfast: "v1.0.0", haproxy: "2.6.12", nginx: "1.22.1"}},
		Command: "go run ./cmd/holdfast-bench -row tcp-echo -short"}
	sample := func(cpu, each time.Duration) loadResult {
		return loadResult{Ops: 1000, Seconds: 0.5, CPU: cpu, P50: each, P99: 3 * each, Max: 9 * each}
	}
	r.summarize([]*side{
		{proxy: proxy{name: holdfast}, samples: []loadResult{sample(6*time.Millisecond, 400*time.Microsecond), sample(7*time.Millisecond, 410*time.Microsecond), sample(5*time.Millisecond, 390*time.Microsecond)}},
		{proxy: proxy{name: haproxy}, samples: []loadResult{sample(9*time.Millisecond, 500*time.Microsecond)}},
		{proxy: proxy{name: nginx}, samples: []loadResult{sample(8*time.Millisecond, 500*time.Microsecond)}},
	})
	return r
}

// golden compares got with a file in testdata, or renews the file.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s\nwant:\n%s", path, got, want)
	}
}

// The JSON object is read by others: a change of testdata/result.json is a
// change of a contract, and adding a field is the only harmless one.
func TestResultContract(t *testing.T) {
	r := exampleResult()
	r.ResidentBytesPerPair = map[string]float64{holdfast: 128, haproxy: 3377, nginx: 9867}
	r.Busy = compareBusy([]loadResult{{P99: 100, Max: 1000}}, []loadResult{{P99: 150, Max: 1200}})
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "result.json", string(b)+"\n")

	var without Result
	without.summarize([]*side{{proxy: proxy{name: nginx}, samples: []loadResult{{Ops: 1, CPU: 1}}}})
	if without.Ratio != nil || without.Peer != nginx {
		t.Errorf("without Holdfast: ratio %v of %q", without.Ratio, without.Peer)
	}
}

// The best peer is the cheapest other, by memory where a row measures that.
func TestCompare(t *testing.T) {
	r := exampleResult()
	if r.Peer != nginx || r.Ratio == nil || *r.Ratio != 0.75 {
		t.Errorf("ratio %v of %q, want 0.75 of nginx", r.Ratio, r.Peer)
	}
	r = Result{}
	r.summarize([]*side{
		{proxy: proxy{name: holdfast}, samples: []loadResult{{Ops: 1}}, resident: []float64{100, 120, 110}},
		{proxy: proxy{name: haproxy}, samples: []loadResult{{Ops: 1}}, resident: []float64{1100}},
		{proxy: proxy{name: nginx}, samples: []loadResult{{Ops: 1}}, resident: []float64{9000}},
	})
	if r.Peer != haproxy || r.Ratio == nil || *r.Ratio != 0.1 || r.Spread[holdfast] != [2]float64{100, 120} {
		t.Errorf("ratio %v of %q, spread %v; want 0.1 of haproxy, 100 to 120", r.Ratio, r.Peer, r.Spread)
	}
	r = Result{Busy: compareBusy([]loadResult{{P99: 100, Max: 1000}}, []loadResult{{P99: 150, Max: 1200}})}
	r.compare()
	if r.Ratio == nil || *r.Ratio != 1.5 || r.Busy.MaxRatio != 1.2 {
		t.Errorf("busy: %v, %+v", r.Ratio, r.Busy)
	}
}

func TestPage(t *testing.T) {
	idle := exampleResult()
	idle.Row, idle.Unit = "tcp-idle", "octets/pair"
	idle.ResidentBytesPerPair = map[string]float64{holdfast: 128}
	busy := Result{Row: "control-busy", Busy: &Busy{P99Ratio: 1.2, MaxRatio: 1.4}}
	busy.compare()
	page, err := renewPage("", []Result{exampleResult(), idle, busy})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "page.md", page)

	// What is written by hand stays; doing it twice changes nothing.
	edited := strings.Replace(page, "# Benchmarks\n", "# Benchmarks\n\nBy hand.\n", 1) + "After.\n"
	again, err := renewPage(edited, []Result{exampleResult(), idle, busy})
	if err != nil || again != edited {
		t.Errorf("renewed page differs (%v):\n%s", err, again)
	}
	if _, err := renewPage("no marks", nil); err == nil {
		t.Error("a page without the marks was overwritten")
	}
}

func TestSave(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "benchmarks")
	r := exampleResult()
	if err := r.save(dir); err != nil {
		t.Fatal(err)
	}
	got, err := loadResults(dir)
	if err != nil || len(got) != 1 || *got[0].Ratio != *r.Ratio {
		t.Errorf("read %+v, %v", got, err)
	}
	if page, err := os.ReadFile(dir + ".md"); err != nil || !strings.Contains(string(page), "| tcp-echo | us/op | 6.00 (5.00-7.00) |") {
		t.Errorf("page: %v\n%s", err, page)
	}
}

func TestTable(t *testing.T) {
	r := exampleResult()
	var b strings.Builder
	writeTable(&b, &r, DefaultPeers())
	golden(t, "table.txt", b.String())
}

// Each template uses only settings that exist, and those that matter; on rows
// of HTTP all proxies speak it.
func TestTemplates(t *testing.T) {
	for _, row := range rows {
		s := settings{Port: 20001, BackendPort: 20002, Loops: row.loops, Dir: t.TempDir(), FilesMax: 20000, ConnectionsMax: 9500, NginxStream: "/m.so"}
		s.forRow(&row)
		for _, name := range []string{"holdfast.yaml", "haproxy.cfg", "nginx.conf"} {
			path, err := proxy{name: name, template: name}.configure(s)
			if err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			wants := []string{"127.0.0.1:20001", "127.0.0.1:20002"}
			if row.backend == "http" {
				wants = append(wants, "http")
			} else if strings.Contains(string(text), "http") {
				t.Errorf("%s, row %s, is of HTTP:\n%s", name, row.name, text)
			}
			for _, want := range wants {
				if !strings.Contains(string(text), want) {
					t.Errorf("%s, row %s, lacks %q:\n%s", name, row.name, want, text)
				}
			}
		}
	}
}

func TestFreePorts(t *testing.T) {
	ports, err := freePorts(6)
	if err != nil || len(slices.Compact(slices.Sorted(slices.Values(ports)))) != 6 {
		t.Errorf("%v, %v", ports, err)
	}
}

func TestRows(t *testing.T) {
	for _, r := range rows {
		if r.run == nil || r.loops < 1 || r.load.Conns < 1 || r.unit == "" || r.title == "" {
			t.Errorf("row %q is incomplete: %+v", r.name, r)
		}
	}
}

// A stream is accepted whole, in any cut, and refused with one octet wrong,
// missing or too many, also where it was not looked at.
func TestStreamCheck(t *testing.T) {
	const octets, skipFrom, skipTo = 5000, 1000, 3000
	want := pattern(octets + patternPeriod)
	whole := append(pattern(octets), 0, 0, 0, 0, 0, 0, octets>>8, octets&0xff)
	for _, c := range []struct {
		name string
		in   []byte
		ok   bool
	}{
		{"whole", whole, true},
		{"wrong octet", append(append(slices.Clone(whole[:10]), whole[10]+1), whole[11:]...), false},
		{"last octet of pattern wrong", append(append(slices.Clone(whole[:octets-1]), whole[octets-1]+1), whole[octets:]...), false},
		{"octet lost", append(slices.Clone(whole[:2000]), whole[2001:]...), false},
		{"octet doubled", append(slices.Clone(whole[:2000]), whole[1999:]...), false},
		{"a period lost", append(slices.Clone(whole[:2000]), whole[2000+patternPeriod:]...), false},
		{"cut short", whole[:octets], false},
	} {
		for _, cut := range []int{1, 3, 7, 8, 9, 250, 6000} {
			err := func() error {
				var s stream
				for at := 0; at < len(c.in); {
					next := min(at+cut, len(c.in))
					if at >= skipFrom && next <= skipTo {
						if err := s.skip(next-at, want); err != nil {
							return err
						}
					} else if err := s.check(c.in[at:next], want); err != nil {
						return err
					}
					at = next
				}
				return s.finish()
			}()
			if (err == nil) != c.ok {
				t.Errorf("%s, cut in %d: %v", c.name, cut, err)
			}
		}
	}
}

// The order for work reaches the admin socket as the contract has it, and a
// refusal is an error.
func TestAskBusy(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 1)
	status := http.StatusOK
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // compared below
		said <- r.Method + " " + r.URL.Path + " " + string(body)
		w.WriteHeader(status)
	})}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = server.Serve(l) }() // until Close
	defer func() { _ = server.Close(); <-ended }()

	order := busyOrder{Seconds: 3, Parses: 1000, ChecksPerSecond: 1000}
	if err := askBusy(t.Context(), socket, order); err != nil {
		t.Fatal(err)
	}
	if got, want := <-said, `POST /holdfast.v1.Node/Busy {"seconds":3,"parses":1000,"checks_per_second":1000}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	status = http.StatusNotFound
	if err := askBusy(t.Context(), socket, order); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("refused with 404: %v", err)
	}
	<-said
}

// startBackend starts a backend child for the time of a test.
func startBackend(t *testing.T, spec backendSpec) int {
	t.Helper()
	ports, err := freePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	spec.Ports = ports
	b, err := startChild("backend", spec, filepath.Join(t.TempDir(), "err"), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.stop)
	if _, err := b.line("ready", readyMax); err != nil {
		t.Fatal(err)
	}
	return ports[0]
}

// load runs a generator child as a round does.
func load(t *testing.T, spec loadSpec) (loadResult, error) {
	t.Helper()
	spec.Warmup, spec.Measure, spec.PIDs = 20*time.Millisecond, 200*time.Millisecond, []int{os.Getpid()}
	p, err := startChild("load", spec, filepath.Join(t.TempDir(), "err"), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	if spec.Kind == "idle" {
		if _, err := p.line("open", readyMax); err != nil {
			return loadResult{}, err
		}
		if _, err := io.WriteString(p.stdin, "\n"); err != nil {
			t.Fatal(err)
		}
	}
	line, err := p.line("{", 2*drainMax)
	if err != nil {
		return loadResult{}, err
	}
	var r loadResult
	return r, json.Unmarshal([]byte(line), &r)
}

// Each kind of load works against its backend with no proxy between.
func TestLoadDirect(t *testing.T) {
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			spec := row.load
			b := backendSpec{Kind: row.backend, Bytes: spec.Bytes}
			if row.merged {
				ports, err := freePorts(1)
				if err != nil {
					t.Fatal(err)
				}
				spec.Port, b.Ports, spec.Backend = ports[0], ports, &b
			} else {
				spec.Port = startBackend(t, b)
			}
			spec.Conns = min(spec.Conns, 150)
			spec.Rate = min(spec.Rate, 2000)
			r, err := load(t, spec)
			if err != nil {
				t.Fatal(err)
			}
			if r.Ops <= 0 || r.Seconds <= 0 {
				t.Errorf("nothing done: %+v", r)
			}
			if spec.Rate > 0 {
				// What began late on a busy machine is caught up; without a rate it is ten times as much.
				if rate := r.Ops / r.Seconds; rate > 1.5*float64(spec.Rate) {
					t.Errorf("%.0f a second, want %d", rate, spec.Rate)
				}
			}
		})
	}
}

// A proxy that loses a connection or spoils an octet fails the round.
func TestLoadFaults(t *testing.T) {
	for _, c := range []struct {
		name  string
		kinds []string // those that go far enough to see it
		serve func(net.Conn)
		want  string
	}{
		{"closes at once", []string{"keep", "connect", "idle"}, func(c net.Conn) {}, "connection"},
		{"spoils an octet", []string{"keep"}, func(c net.Conn) {
			b := make([]byte, 64)
			for n := 0; ; n++ {
				if _, err := io.ReadFull(c, b); err != nil {
					return
				}
				if n == 3 {
					b[40] ^= 1
				}
				_, _ = c.Write(b) // the generator notices
			}
		}, "want"},
		{"sends one octet too many", []string{"keep", "connect", "idle"}, func(c net.Conn) {
			b := make([]byte, 65)
			_, _ = io.ReadFull(c, b[:64])
			_, _ = c.Write(b)
			_, _ = io.Copy(io.Discard, c)
		}, "too many"},
	} {
		for _, kind := range c.kinds {
			t.Run(c.name+", "+kind, func(t *testing.T) {
				_, err := load(t, loadSpec{Kind: kind, Talk: "echo", Port: servedBy(t, c.serve), Conns: 2, Bytes: 64})
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("error %v, want one with %q", err, c.want)
				}
			})
		}
	}
}
