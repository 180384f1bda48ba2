package sim

import (
	"flag"
	"fmt"
	"testing"
)

var (
	seeds = flag.Int("seeds", seedsDefault, "how many histories TestSeeds lives through")
	every = flag.Int("march", marchDefault, "TestFailureMarch fails each call whose number is a multiple of this, less one")
	only  = flag.Uint64("seed", 0, "the one history to live through")
)

// scenario is what happens in the history of a seed.
func scenario(seed uint64) Scenario {
	sc := Scenario{Clients: 3 + int(seed%9), Rebalances: int(seed>>1) % 4, Reloads: int(seed>>2) % 3}
	switch seed % 5 {
	case 0:
		sc.Upgrades = 2
	case 1:
		sc.Migrations = 2
	case 2:
		sc.Upgrades, sc.Crash = 3, true
	case 3:
		sc.Upgrades, sc.Migrations, sc.Limited = 1, 1, true
	case 4: // a day of moves between loops
		sc.Rebalances, sc.Limited = 12, seed%2 == 0
	}
	sc.Bulk = seed%3 == 1
	sc.Calm = seed%7 == 0
	if seed%40 == 13 {
		sc.Flood, sc.Clients = true, 3
	}
	if seed%2 == 0 && !sc.Flood {
		sc.Web, sc.Clients = sc.Clients, sc.Clients/3
	}
	if seed%11 == 5 {
		sc.FaultOdds = 300
	}
	if seed>>2&1 == 1 && !sc.Flood {
		sc.Policy, sc.Stands = true, 4+int(seed>>3)%12
	}
	return sc
}

// handovers is what happens in a history of upgrades, each of which may come to harm.
func handovers(seed uint64) Scenario {
	sc := Scenario{Upgrades: 4, Crash: true, Clients: 4 + int(seed%7), Rebalances: int(seed>>1) % 3, Limited: seed%2 == 0, Calm: seed%5 == 0}
	switch seed % 3 {
	case 1:
		sc.Web = 6
	case 2:
		sc.Web, sc.Policy, sc.Stands = 5, true, 4
	}
	if seed%8 == 7 {
		sc.Reloads = 3
	}
	if seed%11 == 3 {
		sc.FaultOdds, sc.FailUpgrade = 200, true
	}
	return sc
}

// crossings is what happens in a history of moves to another host and back, each of
// which may come to harm.
func crossings(seed uint64) Scenario {
	sc := Scenario{Migrations: 4, Crash: true, Clients: 6 + int(seed%9), Rebalances: int(seed>>1) % 3, Limited: seed%2 == 0, Calm: seed%5 == 0}
	switch seed % 3 {
	case 1:
		sc.Web = 6
	case 2:
		sc.Web, sc.Policy, sc.Stands = 5, true, 4
	}
	if seed%8 == 7 {
		sc.Upgrades = 1
	}
	if seed%11 == 3 {
		sc.FaultOdds, sc.FailUpgrade = 200, true
	}
	return sc
}

// VIPs and flows go from host to host again and again, calls fail, processes die and
// stand still, and the hosts lose sight of each other.
func TestCrossings(t *testing.T) {
	var told hostTally
	histories(t, crossings, told.add)
	t.Logf("%+v", told)
}

// Processes hand over again and again, calls fail, processes die and stand still.
func TestHandovers(t *testing.T) {
	var told tally
	histories(t, handovers, told.add)
	t.Logf("%+v", told)
}

// histories lives through a tenth as many histories of a kind as TestSeeds, and tells of each.
func histories(t *testing.T, of func(seed uint64) Scenario, tell func(*World)) {
	t.Helper()
	n := max(5, uint64(*seeds)/10)
	if testing.Short() {
		n = min(n, 10)
	}
	for seed := uint64(1); seed <= n; seed++ {
		if *only != 0 && seed != *only {
			continue
		}
		sc := of(seed)
		w := NewWorld(seed, sc)
		if err := w.Run(sc); err != nil {
			t.Fatalf("seed %d: %v\nrerun: go test ./internal/sim -run %s -seed %d", seed, err, t.Name(), seed)
		}
		tell(w)
	}
}

func live(seed uint64) error {
	sc := scenario(seed)
	if err := NewWorld(seed, sc).Run(sc); err != nil {
		return fmt.Errorf("seed %d: %w\nrerun: go test ./internal/sim -run TestSeeds -seed %d", seed, err, seed)
	}
	return nil
}

// The configuration changes all the time, in all that it has, and who is served goes
// on to be served, by what is in force.
func TestStorm(t *testing.T) {
	n := max(5, uint64(*seeds)/25)
	if testing.Short() {
		n = min(n, 8)
	}
	for seed := uint64(1); seed <= n; seed++ {
		if *only != 0 && seed != *only {
			continue
		}
		sc := stormy(seed)
		if err := NewWorld(seed, sc).Run(sc); err != nil {
			t.Fatalf("seed %d: %v\nrerun: go test ./internal/sim -run TestStorm -seed %d", seed, err, seed)
		}
	}
}

// Each seed is a history: traffic, moves at all distances, crashes, faults.
func TestSeeds(t *testing.T) {
	if *only != 0 {
		if err := live(*only); err != nil {
			t.Fatal(err)
		}
		return
	}
	n := *seeds
	if testing.Short() {
		n = min(n, 100)
	}
	for seed := range uint64(n) {
		if err := live(seed + 1); err != nil {
			t.Fatal(err)
		}
	}
}
