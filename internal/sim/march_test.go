package sim

import (
	"fmt"
	"testing"
	"time"
)

// marches are histories with something of everything in them: most kinds of calls (40 of
// them in all) in few calls, so that each second one can fail in turn.
var marches = []struct {
	name string
	seed uint64
	sc   Scenario
}{
	{"upgrade", 26, Scenario{Clients: 5, Upgrades: 2, Rebalances: 1}},
	{"upgrade with a queue", 108, Scenario{Clients: 7, Upgrades: 1, Limited: true}},
	{"migration", 232, Scenario{Clients: 5, Migrations: 2}},
	{"upgrade with HTTP", 116, Scenario{Web: 4, Upgrades: 1, Rebalances: 1}},
	{"migration with HTTP", 122, Scenario{Web: 2, Migrations: 1}},
	{"reload", 117, Scenario{Clients: 5, Reloads: 3, Rebalances: 2}},
}

// The call of number k fails, for k = 1, 2, ... until none does: whatever it
// is (of the kernel, of the channel between processes), no flow has two
// owners, no octet is wrong, nothing leaks, nothing hangs.
func TestFailureMarch(t *testing.T) {
	step := *every
	if testing.Short() {
		step = 9
	}
	for _, m := range marches {
		t.Run(m.name, func(t *testing.T) {
			failed := map[string]int{}
			for k := 1; ; k += step {
				sc := m.sc
				sc.FailAt = k
				w := NewWorld(m.seed, sc)
				if err := w.Run(sc); err != nil {
					t.Fatalf("seed %d, call %d (%s) failed: %v", m.seed, k, w.net.faults.Last, err)
				}
				if w.net.faults.Last == "" {
					t.Logf("%d calls, one failed at a time: %v", k-1, failed)
					break
				}
				failed[w.net.faults.Last]++
			}
			if step <= 3 && len(failed) < 4 {
				t.Errorf("only %v ever failed", failed)
			}
		})
	}
}

// upgrades are histories in which processes hand over, each to be marched through.
var upgrades = []struct {
	name  string
	seeds []uint64
	sc    Scenario
}{
	{"connections", []uint64{5}, Scenario{Clients: 6, Upgrades: 1}},
	{"a queue", []uint64{129, 31}, Scenario{Clients: 8, Upgrades: 1, Limited: true}},
	{"HTTP", []uint64{158}, Scenario{Web: 6, Upgrades: 1}},
	{"policy", []uint64{68}, Scenario{Clients: 3, Web: 5, Upgrades: 1, Policy: true, Stands: 3}},
}

// At each call by which the sides of an upgrade speak, the call fails, or the process
// dies, or it stands still for a while, or until it is killed. Whatever it is: no flow
// has two owners, no octet is wrong, no limit is exceeded by the two together, nobody is
// lost but who was with a process that died or of whom nobody knows, and somebody goes on
// serving.
func TestUpgradeMarch(t *testing.T) {
	whats := []march{
		{do: callFails}, {do: procDies}, {do: procStops, stop: 20 * time.Millisecond}, {do: procStops, stop: 700 * time.Millisecond},
		{do: procStops, stop: time.Minute}, {do: procStops},
	}
	for _, u := range upgrades {
		t.Run(u.name, func(t *testing.T) {
			seeds := u.seeds
			if *every == 1 {
				for more := range uint64(4) {
					seeds = append(seeds, seeds[0]+1+more)
				}
			}
			var told tally
			for _, seed := range seeds {
				for _, what := range whats {
					for _, side := range []string{"giver", "taker"} {
						for k := 1; ; k++ {
							sc := u.sc
							sc.March = what
							sc.March.side, sc.March.at = side, k
							w := NewWorld(seed, sc)
							if err := w.Run(sc); err != nil {
								t.Fatalf("seed %d: %s %v for %v at call %d, %s: %v", seed, side, what.do, what.stop, k, w.march.hit, err)
							}
							if w.march.hit == "" {
								break
							}
							told.add(w)
						}
					}
				}
			}
			t.Logf("%+v", told)
			if told.steps < 50 || told.upgrades == 0 || told.aborts == 0 || told.restarts == 0 || told.stalls == 0 {
				t.Errorf("too little has happened: %+v", told)
			}
		})
	}
}

// tally is what marches have come to.
type tally struct{ steps, upgrades, aborts, restarts, stalls, lost, refused, idles int }

func (y *tally) add(w *World) {
	y.steps++
	y.upgrades += w.upgrades
	y.aborts += w.aborts
	y.restarts += w.restarts
	y.stalls += w.stalls
	y.lost += w.lost
	y.refused += w.refusals
	y.idles += w.idles
}

// The call of number k of either process's kernel fails while an upgrade goes on.
func TestUpgradeKernelMarch(t *testing.T) {
	step := *every
	if testing.Short() {
		step = 9
	}
	for _, u := range upgrades {
		t.Run(u.name, func(t *testing.T) {
			for _, seed := range u.seeds {
				failed := map[string]int{}
				for k := 1; ; k += step {
					sc := u.sc
					sc.FailAt, sc.FailUpgrade = k, true
					w := NewWorld(seed, sc)
					if err := w.Run(sc); err != nil {
						t.Fatalf("seed %d, call %d (%s) failed: %v", seed, k, w.net.faults.Last, err)
					}
					if w.net.faults.Last == "" {
						t.Logf("%d calls, one failed at a time: %v", k-1, failed)
						break
					}
					failed[w.net.faults.Last]++
				}
			}
		})
	}
}

// A history is the same each time it is lived through: else a seed that fails
// could not be looked at again.
func TestHistoriesRepeat(t *testing.T) {
	for seed := range uint64(40) {
		var told [2]string
		for i := range told {
			sc := scenario(seed)
			w := NewWorld(seed, sc)
			if err := w.Run(sc); err != nil {
				t.Fatal(err)
			}
			told[i] = fmt.Sprint(w.turns, w.net.now, w.net.nextPort, w.tally, len(w.peers), w.trace)
			for _, p := range w.peers {
				told[i] += fmt.Sprintln(p)
			}
		}
		if told[0] != told[1] {
			t.Fatalf("seed %d went two ways:\n%s\n%s", seed, told[0], told[1])
		}
	}
}

// A listener that the kernel would not watch once is watched later. Before, a
// node with one loop never accepted again.
func TestListenerIsWatchedAgain(t *testing.T) {
	sc := Scenario{Clients: 3, FailAt: 1, Calm: true}
	for seed := range uint64(20) {
		w := NewWorld(seed, sc)
		if err := w.Run(sc); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if w.net.faults.Last != "watch" {
			t.Fatalf("%q failed", w.net.faults.Last)
		}
	}
}

// A client leg that the kernel would not watch is broken to its flow, which says what is
// due to the backend and hears it no more, though the client's kernel knows of nothing.
func TestUnwatchedLegIsBroken(t *testing.T) {
	sc := Scenario{Clients: 6, Upgrades: 1, FailAt: 208, FailUpgrade: true}
	w := NewWorld(37, sc)
	if err := w.Run(sc); err != nil || w.net.faults.Last != "watch" {
		t.Fatalf("%q failed: %v", w.net.faults.Last, err)
	}
}

// A leg that streams is reported from a threshold on only; that is a state of
// the socket, so it goes along with a move to a loop that knows nothing of it.
func TestStreamsMove(t *testing.T) {
	sc := Scenario{Clients: 2, Flood: true, Calm: true, Chase: true}
	seeds := uint64(40)
	if testing.Short() {
		seeds = 10
	}
	set := 0
	for seed := range seeds {
		w := NewWorld(seed, sc)
		if err := w.Run(sc); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		set += w.net.thresholds
	}
	if set < 10 {
		t.Errorf("a threshold was set %d times: no streams", set)
	}
}
