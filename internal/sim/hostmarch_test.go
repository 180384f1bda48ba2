package sim

import (
	"testing"
	"time"
)

// moves are histories in which the VIPs and all flows go to another host, each to be
// marched through.
var moves = []struct {
	name string
	seed uint64
	sc   Scenario
	long bool // for the whole march only
}{
	{"connections", 15, Scenario{Clients: 6, Migrations: 1}, false},
	{"HTTP", 8, Scenario{Web: 5, Migrations: 1}, false},
	{"a queue", 73, Scenario{Clients: 4, Web: 2, Migrations: 3, Limited: true}, false},
	{"there and back", 55, Scenario{Clients: 4, Web: 2, Migrations: 3, Limited: true}, true},
	{"policy", 34, Scenario{Clients: 3, Web: 5, Migrations: 2, Policy: true, Stands: 3}, true},
	{"beside an upgrade", 33, Scenario{Clients: 6, Migrations: 1, Upgrades: 1}, true},
}

// hostTally is what marches between hosts have come to.
type hostTally struct{ steps, moves, aborts, restarts, lost, came, refused int }

func (y *hostTally) add(w *World) {
	y.steps++
	y.moves += w.hostMoves
	y.aborts += w.hostAborts
	y.restarts += w.restarts
	y.lost += w.lost
	y.came += w.came
	y.refused += w.refusals
}

// At each call by which the two hosts speak while an address and its flows move, the
// call fails, or the process dies, or it stands still, or the link is cut in one direction or
// in both, for a while or until the end. Whatever it is: no flow has two owners, no
// two hosts answer for an address and one does in the end, no octet is wrong, nobody
// is lost but who was with a process that died or of whom nobody could know.
func TestHostMarch(t *testing.T) {
	whats := []march{
		{do: callFails}, {do: procDies},
		{do: procStops, stop: 300 * time.Millisecond}, {do: procStops, stop: 8 * time.Second}, {do: procStops},
		{do: linkHalf, stop: time.Second}, {do: linkHalf},
		{do: linkCut, stop: time.Second}, {do: linkCut, stop: 10 * time.Second}, {do: linkCut},
	}
	step := 1
	if *every > 1 {
		step = 7
	}
	for _, m := range moves {
		if m.long && step > 1 {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			var told hostTally
			for _, what := range whats {
				for _, side := range []string{"host giver", "host taker"} {
					for k := 1; ; k += step {
						sc := m.sc
						sc.March = what
						sc.March.side, sc.March.at = side, k
						w := NewWorld(m.seed, sc)
						if err := w.Run(sc); err != nil {
							t.Fatalf("seed %d: %s %v for %v at call %d, %s: %v", m.seed, side, what.do, what.stop, k, w.march.hit, err)
						}
						if w.march.hit == "" {
							break
						}
						if what.do == callFails && w.lost > 0 {
							t.Fatalf("seed %d: %s %v at call %d, %s: %d flows are lost, though the hosts could ask each other", m.seed, side, what.do, k, w.march.hit, w.lost)
						}
						told.add(w)
					}
				}
			}
			t.Logf("%+v", told)
			if told.steps < 50 || told.moves == 0 || told.aborts == 0 || told.restarts == 0 || told.came < 80 || told.lost == 0 {
				t.Errorf("too little has happened: %+v", told)
			}
		})
	}
}

// The call of number k of a kernel, a disk or a rule fails while VIPs and flows move.
func TestHostKernelMarch(t *testing.T) {
	step := *every
	if testing.Short() {
		step = 9
	}
	for _, m := range moves {
		if m.long && step > 1 {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			failed := map[string]int{}
			for k := 1; ; k += step {
				sc := m.sc
				sc.FailAt, sc.FailUpgrade = k, true
				w := NewWorld(m.seed, sc)
				if err := w.Run(sc); err != nil {
					t.Fatalf("seed %d, call %d (%s) failed: %v", m.seed, k, w.net.faults.Last, err)
				}
				if w.net.faults.Last == "" {
					t.Logf("%d calls, one failed at a time: %v", k-1, failed)
					break
				}
				failed[w.net.faults.Last]++
				if w.lost > 0 {
					t.Fatalf("seed %d, call %d (%s) failed, and %d flows are lost", m.seed, k, w.net.faults.Last, w.lost)
				}
			}
		})
	}
}
