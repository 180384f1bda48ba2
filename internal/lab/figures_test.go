package lab

import (
	"bytes"
	"encoding/json"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestPooledPauses(t *testing.T) {
	for _, tt := range []struct {
		name string
		of   []weightedPause
		want PauseMicros
	}{
		{"none", nil, PauseMicros{}},
		{"one move", []weightedPause{{1000, PauseMicros{100, 500, 900}}}, PauseMicros{100, 500, 900}},
		{"equal moves", []weightedPause{{1000, PauseMicros{100, 500, 900}}, {10, PauseMicros{100, 500, 900}}}, PauseMicros{100, 500, 900}},
		{"a slow move of few flows hardly counts", []weightedPause{{100000, PauseMicros{100, 500, 900}}, {10, PauseMicros{9000, 9500, 9900}}}, PauseMicros{100, 500, 9900}},
		{"a slow move of many does", []weightedPause{{1000, PauseMicros{100, 500, 900}}, {1000, PauseMicros{8000, 9000, 9900}}}, PauseMicros{483, 8980, 9900}},
		{"all alike", []weightedPause{{5, PauseMicros{70, 70, 70}}}, PauseMicros{70, 70, 70}},
	} {
		var p pauses
		for _, x := range tt.of {
			p.add(x.flows, x.p)
		}
		got := p.pooled()
		near := func(a, b float64) bool { return math.Abs(a-b) <= 0.06*b+0.001 }
		if !near(got.P50, tt.want.P50) || !near(got.P99, tt.want.P99) || got.Max != tt.want.Max {
			t.Errorf("%s: got %+v, want about %+v", tt.name, got, tt.want)
		}
	}
}

func TestHistogram(t *testing.T) {
	var h, o Histogram
	if h.Quantile(0.5) != 0 {
		t.Error("an empty histogram has a quantile")
	}
	for i := 1; i <= 1000; i++ {
		h.Add(time.Duration(i) * 10 * time.Microsecond)
	}
	o.Add(time.Hour)
	h.Merge(&o)
	for q, want := range map[float64]time.Duration{0.5: 5 * time.Millisecond, 0.99: 9900 * time.Microsecond} {
		if got := h.Quantile(q); got < want || got > want*9/8+time.Microsecond {
			t.Errorf("quantile %v: got %v, want %v to an eighth more", q, got, want)
		}
	}
	if h.Max != time.Hour || h.N != 1001 {
		t.Errorf("max %v of %d", h.Max, h.N)
	}
	for d := time.Duration(0); d < time.Minute; d = d*9/8 + time.Microsecond {
		if top := bucketTop(bucket(d)); top < d || float64(top) > float64(d)*1.13+2000 {
			t.Errorf("%v falls into a bucket up to %v", d, top)
		}
	}
}

func TestWorstStallsAreKept(t *testing.T) {
	var s, all stalls
	for i := range 50 {
		s.add(Stall{During: Loop, Took: time.Duration(i*37%50) * time.Millisecond})
	}
	all.merge(&s)
	for i, x := range all.worst[Loop] {
		if want := time.Duration(49-i) * time.Millisecond; x.Took != want {
			t.Errorf("%d: got %v, want %v", i, x.Took, want)
		}
	}
	if len(all.worst[Loop]) != worstKept {
		t.Errorf("%d kept", len(all.worst[Loop]))
	}
}

// TestVerdict proves that each kind of bad figure makes a run fail, that the
// last line is the JSON object, and that only -figures-only forgives goals.
func TestVerdict(t *testing.T) {
	for _, tt := range []struct {
		name        string
		note        func(*Verdict)
		figuresOnly bool
		ok          bool
	}{
		{"nothing was looked at", func(*Verdict) {}, false, false},
		{"all holds", func(v *Verdict) { v.Zero("lost", 0); v.Goal(true, "p99", "1", "2") }, false, true},
		{"one lost", func(v *Verdict) { v.Zero("lost", 1); v.Goal(true, "p99", "1", "2") }, true, false},
		{"goal missed", func(v *Verdict) { v.Zero("lost", 0); v.Goal(false, "p99", "3", "2") }, false, false},
		{"goal missed and forgiven", func(v *Verdict) { v.Zero("lost", 0); v.Goal(false, "p99", "3", "2") }, true, true},
		{"broken", func(v *Verdict) { v.Zero("lost", 0); v.Broken(errGreeting) }, true, false},
	} {
		v := newVerdict("x", time.Now())
		tt.note(v)
		var out bytes.Buffer
		if ok := v.Conclude(&out, tt.figuresOnly); ok != tt.ok {
			t.Errorf("%s: ok %v", tt.name, ok)
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		var figures struct {
			OK bool `json:"ok"`
		}
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &figures); err != nil || figures.OK != tt.ok {
			t.Errorf("%s: last line %q: %v", tt.name, lines[len(lines)-1], err)
		}
	}
}

func judged(m *mover, made []Label) (failures int) {
	v := newVerdict("x", time.Now())
	m.Judge(v, made)
	for _, c := range v.checks {
		if !c.ok && !c.goal {
			failures++
		}
	}
	return failures
}

// TestMoverJudges proves that a report with a refusal, a loss or too few flows
// with octets is not taken for a good one.
func TestMoverJudges(t *testing.T) {
	good := MoveReport{Distance: "loop", Flows: 100, WithOctets: 40, Pause: PauseMicros{10, 20, 30}}
	for _, tt := range []struct {
		name   string
		change func(*MoveReport)
		doubt  bool
		want   int
		whole  int
	}{
		{"good", func(*MoveReport) {}, false, 0, 1},
		{"refused", func(r *MoveReport) { r.Refused = 1; r.Reasons = map[string]int{"handshake": 1} }, false, 1, 0},
		{"lost", func(r *MoveReport) { r.Lost = 1 }, false, 1, 1},
		{"empty flows", func(r *MoveReport) { r.WithOctets = 20 }, false, 1, 1},
		{"not all", func(r *MoveReport) { r.Flows = 99 }, true, 1, 0},
		{"another distance", func(r *MoveReport) { r.Distance = "process" }, true, 1, 1},
		{"states", func(r *MoveReport) { r.States = map[string]int{"http-idle": 3} }, false, 0, 1},
	} {
		r := good
		tt.change(&r)
		m := &mover{standing: 100, say: func(string, ...any) {}}
		m.account(Loop, &r)
		place := Place{PID: 1} // this process tree's first, which is alive
		m.doubt(Loop, &r, place, place, nil, nil)
		if got := judged(m, []Label{Loop}); got != tt.want || (len(m.doubts) > 0) != tt.doubt || m.whole != tt.whole {
			t.Errorf("%s: %d failures, doubts %q, %d whole moves", tt.name, got, m.doubts, m.whole)
		}
		if n := m.stateOf[Loop]["http-idle"]; n != r.States["http-idle"] {
			t.Errorf("%s: %d flows in a state at this distance", tt.name, n)
		}
	}
}

func TestParseTCPSocket(t *testing.T) {
	for line, want := range map[string]TCPSocket{
		"   0: 6400090A:01BB 1400090A:C350 01 00000000:00000010 00:00000000 00000000 0 0 1 1 0 20 4 30 10 -1": {
			netip.MustParseAddrPort("10.9.0.100:443"), netip.MustParseAddrPort("10.9.0.20:50000"), 1, 16},
		"   1: 000009FD000000000000000000010000:01BB 00000000000000000000000000000000:0000 0A 00000000:00000002 00:00000000": {
			netip.MustParseAddrPort("[fd09::100]:443"), netip.MustParseAddrPort("[::]:0"), tcpListen, 2},
	} {
		got, err := parseTCPSocket(line)
		if err != nil || got != want {
			t.Errorf("%q: got %v, %v", line, got, err)
		}
	}
	for _, bad := range []string{"", "0: x y 01 0:0", "0: 0A:1 0A:1 01 0:0", "0: 6400090A:01BB 1400090A:C350 zz 0:0"} {
		if _, err := parseTCPSocket(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestMixAddsUp(t *testing.T) {
	for _, n := range []int{100, 200, 999, 2000, 5000} {
		sum := 0
		for k, c := range mixOf(n) {
			sum += c
			if c < 0 || c == 0 && mixShares[k] > 0 {
				t.Errorf("%d flows: %d of %v", n, c, Kind(k))
			}
		}
		if sum != n {
			t.Errorf("%d flows: the mix has %d", n, sum)
		}
	}
}
