package health_test

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/health"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// A node that flows come to takes from the other one what it does not know itself, and
// nothing else: no order, no count, no verdict in place of its own.
func TestMerge(t *testing.T) {
	of := config.Backend{
		Eject:   &config.Eject{Consecutive: 5, Share: 50, Time: time.Minute, TimeMax: time.Hour},
		Breaker: &config.Breaker{Rate: 50, Least: 20, Window: 10 * time.Second, Open: time.Minute, Probes: 1},
	}
	there, here := judge(t, backend(of, "a", "b", "c", "d"), true), judge(t, backend(of, "a", "b", "c", "d"), true)
	for _, j := range []*judged{there, here} {
		j.Met(func(string) health.Tries { return health.Tries{} })
		j.pass(time.Second)
	}
	there.serve("a", false, 5)
	there.pass(time.Second)
	there.Order(there.now, "web/d", health.Order{Admin: ledger.Maintenance})
	there.serve("b", false, 30) // opens the breaker
	there.pass(time.Second)
	said := over(t, there.Save(there.now))
	before := here.Counts()
	here.Merge(here.now, said)
	if told := here.take(); !strings.Contains(told, "a ejected") {
		t.Errorf("an ejection that nobody here has made is not told of: %q", told)
	}
	if !here.state["web/a"].Ejected || here.state["web/c"].Ejected {
		t.Errorf("ejected here: a %t, c %t, want a alone", here.state["web/a"].Ejected, here.state["web/c"].Ejected)
	}
	if here.Breaker() != ledger.Open {
		t.Errorf("the breaker is %v", here.Breaker())
	}
	if here.state["web/d"].Admin != ledger.Ready {
		t.Errorf("the order of the other node's operator is obeyed here: %v", here.state["web/d"].Admin)
	}
	if len(here.Counts().Ejections) != len(before.Ejections) {
		t.Errorf("what happened there is counted here: %v", here.Counts())
	}
	here.pass(2 * time.Minute)
	here.take()
	if here.state["web/a"].Ejected {
		t.Error("it is ejected for ever")
	}
}

// An endpoint that was not probed here yet stands as it does there; one that was keeps
// the verdict of this node, from where it may be reached when it is not from there.
func TestMergeOfProbes(t *testing.T) {
	of := config.Backend{Check: &config.Check{Rise: 2, Fall: 2}}
	there, here := judge(t, backend(of, "a", "b"), true), judge(t, backend(of, "a", "b"), true)
	for range 3 {
		there.probe("a", "good")
		there.probe("b", "bad")
		here.probe("b", "good")
	}
	here.Merge(here.now, over(t, there.Save(there.now)))
	here.take()
	if a, b := here.state["web/a"].Health, here.state["web/b"].Health; a != ledger.Up || b != ledger.Up {
		t.Errorf("a is %v, b is %v, want both up", a, b)
	}
}
