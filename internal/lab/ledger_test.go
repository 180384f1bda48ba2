package lab

import (
	"math"
	"testing"
	"time"
)

// The lab of the ledger finds each way in which a queue can be out of turn.
func TestOutOfTurn(t *testing.T) {
	came := []waiter{{"low", 0}, {"normal", 1}, {"high", 2}, {"normal", 3}, {"high", 4}, {"low", 5}}
	want := []waiter{{"high", 2}, {"high", 4}, {"normal", 1}, {"normal", 3}, {"low", 0}, {"low", 5}}
	if at := outOfTurn(inTurn(came), want); at >= 0 {
		t.Errorf("in turn: %v, want %v", inTurn(came), want)
	}
	for _, c := range []struct {
		name string
		got  []waiter
		at   int
	}{
		{"as they came", came, 0},
		{"two of a class", []waiter{{"high", 4}, {"high", 2}, {"normal", 1}, {"normal", 3}, {"low", 0}, {"low", 5}}, 0},
		{"one overtakes another class", []waiter{{"high", 2}, {"high", 4}, {"normal", 1}, {"low", 0}, {"normal", 3}, {"low", 5}}, 3},
		{"one is lost", want[:5], 5},
		{"one comes twice", append(want[:6:6], want[5]), 6},
	} {
		if at := outOfTurn(c.got, want); at != c.at {
			t.Errorf("%s: %d, want %d", c.name, at, c.at)
		}
	}
}

// A burst shows in the spread, be it in one piece of the time or at its edge.
func TestSpread(t *testing.T) {
	from := time.Unix(1000, 0)
	var even []arrival
	for i := range 1000 {
		even = append(even, arrival{when: from.Add(time.Duration(i) * time.Millisecond)})
	}
	to := from.Add(time.Second)
	if most, mean := spread(even, from, to, 10*time.Millisecond); most != 10 || mean != 10 {
		t.Errorf("one each ms: at most %d, %.1f in the mean, of 10", most, mean)
	}
	for range 50 {
		even = append(even, arrival{when: to.Add(-time.Millisecond)})
	}
	if most, mean := spread(even, from, to, 10*time.Millisecond); most != 60 || mean != 10.5 {
		t.Errorf("with 50 at once: at most %d of 60, %.1f of 10.5 in the mean", most, mean)
	}
}

// Shares are of what came since, and of nothing they are nothing.
func TestShare(t *testing.T) {
	before := [badServers]int64{100, 100, 100, 100}
	if got := share([badServers]int64{110, 130, 100, 160}, before, 3); math.Abs(got-60) > 1e-9 {
		t.Errorf("60 of 100 are %.1f %%", got)
	}
	if got := share(before, before, 0); got != 0 {
		t.Errorf("of nothing %.1f %%", got)
	}
}
