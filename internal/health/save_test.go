package health_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/health"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// over is s as it arrives.
func over(t *testing.T, s health.Saved) (out health.Saved) {
	t.Helper()
	octets, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(octets, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// heirOf is a judge in the next process, whose clock and ledger begin anew; but the
// ledger was told who has failed how often in a row.
func heirOf(t *testing.T, j *judged) *judged {
	heir := judge(t, j.of, true)
	heir.now = health.Instant(time.Hour)
	heir.Met(func(string) health.Tries { return health.Tries{} })
	for name, x := range j.tries {
		heir.tries[name] = health.Tries{Consecutive: x.Consecutive}
	}
	return heir
}

// What clients met before an upgrade counts after it: for ejection by failures in a
// row and by their share, and for the breaker, in their windows and no longer.
func TestWindowsGoAlong(t *testing.T) {
	for name, c := range map[string]struct {
		of            config.Backend
		good, bad     int           // before
		later         int           // failures after
		rest          time.Duration // between
		ejected, open bool
	}{
		"in a row":                  {config.Backend{Eject: &config.Eject{Consecutive: 5, Share: 50, Time: time.Minute, TimeMax: time.Hour}}, 0, 4, 1, time.Second, true, false},
		"too few in a row":          {config.Backend{Eject: &config.Eject{Consecutive: 5, Share: 50, Time: time.Minute, TimeMax: time.Hour}}, 0, 3, 1, time.Second, false, false},
		"a share":                   {config.Backend{Eject: &config.Eject{Rate: 50, Least: 20, Window: 10 * time.Second, Share: 50, Time: time.Minute, TimeMax: time.Hour}}, 9, 9, 3, time.Second, true, false},
		"a share of what is past":   {config.Backend{Eject: &config.Eject{Rate: 50, Least: 20, Window: 10 * time.Second, Share: 50, Time: time.Minute, TimeMax: time.Hour}}, 9, 9, 3, 20 * time.Second, false, false},
		"a breaker":                 {config.Backend{Breaker: &config.Breaker{Rate: 50, Least: 20, Window: 10 * time.Second, Open: time.Minute, Probes: 1}}, 9, 9, 3, time.Second, false, true},
		"a breaker of what is past": {config.Backend{Breaker: &config.Breaker{Rate: 50, Least: 20, Window: 10 * time.Second, Open: time.Minute, Probes: 1}}, 9, 9, 3, 20 * time.Second, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			j := judge(t, backend(c.of, "a", "b", "c"), true)
			j.Met(func(string) health.Tries { return health.Tries{} })
			j.pass(time.Second)
			j.serve("a", true, c.good)
			j.serve("a", false, c.bad)
			j.pass(time.Second)
			j.want("")
			heir := heirOf(t, j)
			heir.Restore(heir.now, over(t, j.Save(j.now)))
			for _, x := range []*judged{j, heir} { // the one that goes on is what it is compared with
				x.pass(c.rest)
				x.serve("a", false, c.later)
				x.pass(time.Second)
				x.take()
				if is := x.state["web/a"].Ejected; is != c.ejected {
					t.Errorf("heir %t: ejected %t, want %t", x == heir, is, c.ejected)
				}
				if is := x.Breaker() == ledger.Open; is != c.open {
					t.Errorf("heir %t: breaker open %t, want %t", x == heir, is, c.open)
				}
			}
		})
	}
}

// Told in bulk while all goes on, and again what has changed: the heir knows what it
// would know if it was told all at the end, and is told again of nobody who is as
// before.
func TestToldInBulkAndThenWhatChanged(t *testing.T) {
	x := checked
	of := backend(config.Backend{Check: &x, Eject: &config.Eject{Consecutive: 3, Share: 90, Time: 4 * time.Second, TimeMax: time.Hour}, SlowStart: 10 * time.Second,
		Breaker: &config.Breaker{Rate: 50, Least: 10, Window: 10 * time.Second, Open: 2 * time.Second, Probes: 1}}, "a", "b", "c", "d", "e")
	j := judge(t, of, true)
	for _, n := range []string{"a", "b", "c", "d", "e"} {
		j.probe(n, "good")
	}
	j.pass(time.Second)
	j.serve("a", false, 12) // it is out, and the breaker is open
	j.pass(time.Second)
	j.Order(j.now, "web/d", health.Order{Admin: ledger.Maintenance})
	j.take()
	at := j.now
	early := over(t, j.Save(at))
	if early.Breaker != ledger.Open.String() {
		t.Fatalf("the breaker is %q", early.Breaker)
	}
	j.pass(4 * time.Second) // a comes back
	j.serve("b", true, 1)   // the breaker's probe
	j.pass(time.Second)
	for range 3 {
		j.probe("c", "bad")
	}
	j.take()
	last := j.Save(j.now)
	then := j.Save(at)
	if again := j.Save(at); !then.Same(&again) || then.Same(&early) {
		t.Error("what has changed is not seen, or what has not is")
	}
	changed := last.Since(then, early)
	names := map[string]bool{}
	for _, e := range changed.Endpoints {
		names[e.Name] = true
	}
	if len(names) != 3 || !names["web/a"] || !names["web/b"] || !names["web/c"] {
		t.Errorf("told again of %v, want a, b and c", names)
	}
	all := heirOf(t, j)
	all.Restore(all.now, over(t, last))
	parts := heirOf(t, j)
	parts.Restore(parts.now-health.Instant(5*time.Second), early)
	parts.Restore(parts.now, over(t, changed))
	for i := range 30 {
		all.take()
		parts.take()
		for _, n := range j.Names() {
			if a, b := all.state[n], parts.state[n]; a != b {
				t.Fatalf("%d s later %s is %+v, told in parts %+v", i, n, a, b)
			}
		}
		if a, b := all.Breaker(), parts.Breaker(); a != b {
			t.Fatalf("%d s later the breaker is %v, told in parts %v", i, a, b)
		}
		all.pass(time.Second)
		parts.pass(time.Second)
	}
	if a, b := all.Counts(), parts.Counts(); a.Passed != b.Passed || a.Failed != b.Failed || a.Passed == 0 {
		t.Errorf("counts %+v, told in parts %+v", a, b)
	}
}
