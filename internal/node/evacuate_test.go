package node

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// What nodes tell one another of evacuations comes out the same in whatever order it
// comes, and is there again after a restart.
func TestMarksComeOutTheSame(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	said := []map[string]marked{
		{"n1": {true, at, Author{Name: "anna"}}},
		{"n1": {false, at.Add(time.Second), Author{}}, "n3": {true, at, Author{}}},
		{"n1": {true, at.Add(2 * time.Second), Author{}}},
		{"n3": {false, at.Add(-time.Second), Author{}}}, // older than what is known
	}
	want := []string{"n1", "n3"}
	var orders func(rest, done []int)
	orders = func(rest, done []int) {
		if len(rest) > 0 {
			for i := range rest {
				orders(slices.Delete(slices.Clone(rest), i, i+1), append(slices.Clone(done), rest[i]))
			}
			return
		}
		dir := t.TempDir()
		var m marks
		if err := m.open(dir); err != nil {
			t.Fatal(err)
		}
		for _, i := range done {
			if _, err := m.merge(said[i]); err != nil {
				t.Fatal(err)
			}
			if changed, err := m.merge(said[i]); changed || err != nil {
				t.Errorf("%v: said again, %d changes something: %v", done, i, err)
			}
		}
		var again marks
		if err := again.open(dir); err != nil {
			t.Fatal(err)
		}
		if got := m.names(); !slices.Equal(got, want) || !slices.Equal(again.names(), want) {
			t.Errorf("%v: %v, and after a restart %v, want %v", done, got, again.names(), want)
		}
	}
	orders([]int{0, 1, 2, 3}, nil)
}

// What cannot be written down is not in force: it would be forgotten by the reboot for
// which it is.
func TestMarkThatIsNotDurable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var m marks
	if err := m.open(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if changed, err := m.merge(map[string]marked{"n1": {true, time.Now(), Author{}}}); err == nil || changed || m.evacuating("n1") {
		t.Errorf("changed %v, error %v, evacuating %v", changed, err, m.evacuating("n1"))
	}
}

// A share of the flows is that share, of any numbers that flows have, and another pass
// wants the same ones.
func TestShareOfFlows(t *testing.T) {
	for _, share := range []float64{0.01, 0.3, 0.5, 0.99} {
		for _, origin := range []uint64{1, 0xa1b2c3 << 40} {
			const all = 20000
			k := 0
			for i := range uint64(all) {
				if float64(spread(origin+i)) < share*(1<<32) {
					k++
				}
			}
			if got := float64(k) / all; got < share-0.02 || got > share+0.02 {
				t.Errorf("a share of %g of flows from %x on is %g", share, origin, got)
			}
		}
	}
}

// An order tells who asks late the last step of each phase, and each step once.
func TestOrderTellsEachPhase(t *testing.T) {
	o := &order{}
	for _, p := range []Progress{{Phase: "plan"}, {Phase: "flows", Flows: 1}, {Phase: "flows", Flows: 2}, {Phase: "address"}} {
		o.note(p)
	}
	asked := func(seen int) (phases []string, flows int) {
		o.asked = o.first + len(o.steps)
		for _, p := range o.steps[seen-o.first:] {
			phases = append(phases, p.Phase)
			flows = max(flows, p.Flows)
		}
		return phases, flows
	}
	if phases, flows := asked(0); !slices.Equal(phases, []string{"plan", "flows", "address"}) || flows != 2 {
		t.Errorf("%v, %d flows", phases, flows)
	}
	// What was told is not written over.
	o.note(Progress{Phase: "address", Flows: 7})
	if phases, flows := asked(3); !slices.Equal(phases, []string{"address"}) || flows != 7 {
		t.Errorf("%v, %d flows", phases, flows)
	}
	for range 3 * orderSteps {
		o.note(Progress{Phase: "a"})
		o.note(Progress{Phase: "b"})
	}
	if len(o.steps) != orderSteps {
		t.Errorf("%d steps wait", len(o.steps))
	}
}

// The time that is left is what flows have taken so far, of each VIP for itself.
func TestMovePace(t *testing.T) {
	var a pace
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		p     Progress
		after time.Duration
		want  float64
	}{
		{Progress{Phase: "plan"}, 0, 0},
		{Progress{Phase: "flows", VIP: "a", FlowsTotal: 400}, 0, 0},
		{Progress{Phase: "flows", VIP: "a", Flows: 100, FlowsTotal: 400}, 2 * time.Second, 6},
		{Progress{Phase: "flows", VIP: "a", Flows: 300, FlowsTotal: 400}, 3 * time.Second, 1},
		{Progress{Phase: "flows", VIP: "a", Flows: 400, FlowsTotal: 400}, 4 * time.Second, 0},
		{Progress{Phase: "flows", VIP: "b", Flows: 10, FlowsTotal: 30}, 10 * time.Second, 0},
		{Progress{Phase: "flows", VIP: "b", Flows: 20, FlowsTotal: 30}, 11 * time.Second, 1},
	} {
		if got := a.eta(&c.p, at.Add(c.after)); got != c.want {
			t.Errorf("after %v of %+v: %g s, want %g", c.after, c.p, got, c.want)
		}
	}
}
