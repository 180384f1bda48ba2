package balance_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/balance"
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// scene is a backend with a ledger under it: who picks is told to hold, so that the
// counts are real.
type scene struct {
	c *config.Backend
	b *ledger.Backend
}

func newScene(by config.Balance, weights []int, change func(*config.Backend)) *scene {
	c := &config.Backend{Ref: config.Ref{Name: "b", Version: 1}, Balance: by}
	for i, w := range weights {
		name := fmt.Sprintf("e%d", i)
		c.Endpoints = append(c.Endpoints, &config.Endpoint{Ref: config.Ref{Name: "b/" + name, Version: 1}, Name: name, Weight: w})
	}
	if change != nil {
		change(c)
	}
	return sceneAt("n1", c)
}

// sceneAt is c as a node of this name chooses from it.
func sceneAt(node string, c *config.Backend) *scene {
	l := ledger.New(ledger.Options{Policy: balance.Policy{}, Ring: func(int, uint64) {}, Open: func() {}, Node: node, Zone: "here"})
	s := &scene{c, l.Backend("b")}
	s.b.Govern(c)
	return s
}

func (s *scene) stand(i int, to ledger.Standing) {
	s.b.Stand(s.c.Endpoints[i].Ref.Name, func(o *ledger.Standing) { *o = to })
}

func is(h ledger.Health) ledger.Standing {
	return ledger.Standing{Health: h, Weight: -1, Permille: 1000}
}

// take holds one more; -1: there is none.
func (s *scene) take(a ledger.Asking) (int, *ledger.Endpoint) {
	g, w, _ := s.b.Secure(s.c, &a)
	if w != nil {
		s.b.Withdraw(w)
	}
	if g.Endpoint == nil {
		return -1, nil
	}
	var i int
	if _, err := fmt.Sscanf(g.Endpoint.Name, "e%d", &i); err != nil {
		panic(err)
	}
	return i, g.Account
}

// touch is take that gives back at once.
func (s *scene) touch(a ledger.Asking) int {
	i, account := s.take(a)
	if account != nil {
		account.Release()
	}
	return i
}

func repeat(w, n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = w
	}
	return out
}

// The shares of round robin and random are those of the weights within 2 percent,
// with one loop and with four, whose turns are one sequence; and so they are among
// the rest while the standings of two endpoints change all the time.
func TestShares(t *testing.T) {
	weights := map[string][]int{
		"equal":  repeat(100, 7),
		"mixed":  {100, 50, 200, 1, 1000, 333, 7},
		"primes": {997, 991, 983, 977, 971, 967, 953}, // no sequence of whole numbers is short enough
		"zero":   {100, 0, 300},
	}
	for _, by := range []config.Balance{config.RoundRobin, config.Random} {
		for name, w := range weights {
			for _, loops := range []int{1, 4} {
				for _, changing := range []bool{false, true} {
					t.Run(fmt.Sprintf("%v, %s, %d loops, changing %v", by, name, loops, changing), func(t *testing.T) {
						all := w
						if changing {
							all = append(append([]int{}, w...), 100, 300)
						}
						s := newScene(by, all, nil)
						counts := make([]atomic.Int64, len(all))
						var done atomic.Bool
						var operator, workers sync.WaitGroup
						if changing {
							operator.Go(func() {
								for k := 0; !done.Load(); k++ {
									s.stand(len(w)+k%2, is(ledger.Health(2+k/2%2)))
									time.Sleep(time.Microsecond) // else it does little but to rebuild
								}
							})
						}
						total := 1 << 16
						if testing.Short() {
							total = 1 << 14
						}
						for range loops {
							workers.Go(func() {
								for range total / loops {
									counts[s.touch(ledger.Asking{})].Add(1)
								}
							})
						}
						workers.Wait()
						done.Store(true)
						operator.Wait()
						sum, got := 0, int64(0)
						for i := range w {
							sum += w[i]
							got += counts[i].Load()
						}
						for i := range w {
							want := float64(got) * float64(w[i]) / float64(sum)
							// By chance few come to a small one: four standard deviations.
							slack := 0.02*want + 1
							if by == config.Random || changing {
								slack += 4 * math.Sqrt(want)
							}
							if n := float64(counts[i].Load()); math.Abs(n-want) > slack {
								t.Errorf("e%d with weight %d of %d got %.0f of %d, want %.0f", i, w[i], sum, n, got, want)
							}
						}
					})
				}
			}
		}
	}
}

// A round of smooth round robin is exact, and spreads each endpoint evenly: between
// two turns of one lie never more than twice as many others as on the mean.
func TestRoundsAreExactAndSmooth(t *testing.T) {
	for _, w := range [][]int{{5, 1, 1}, {1, 2, 3, 4}, {100, 100, 100}, {10, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, {1000, 1, 500}, repeat(3, 100)} {
		s := newScene(config.RoundRobin, w, nil)
		sum, part := 0, 0
		for _, x := range w {
			sum += x
			for a, b := part, x; ; a, b = b, a%b {
				if b == 0 {
					part = a
					break
				}
			}
		}
		round := sum / part
		counts, last, gap := make([]int, len(w)), make([]int, len(w)), make([]int, len(w))
		for i := range last {
			last[i] = -1
		}
		for k := range 2 * round {
			i := s.touch(ledger.Asking{})
			if k < round {
				counts[i]++
			}
			if last[i] >= 0 {
				gap[i] = max(gap[i], k-last[i])
			}
			last[i] = k
		}
		for i, x := range w {
			if counts[i]*part != x {
				t.Errorf("%v: e%d came %d times in a round of %d", w, i, counts[i], round)
			}
			if mean := float64(round) * float64(part) / float64(x); float64(gap[i]) > 2*mean+1 {
				t.Errorf("%v: e%d came once not for %d turns, on the mean every %.1f", w, i, gap[i], mean)
			}
		}
	}
}

// What an endpoint that is full cannot take all others share, not its neighbour alone.
func TestOthersShareWhatOneCannotTake(t *testing.T) {
	s := newScene(config.RoundRobin, repeat(100, 5), func(c *config.Backend) { c.Endpoints[2].ConnectionsMax = 1 })
	for i, _ := s.take(ledger.Asking{}); i != 2; i, _ = s.take(ledger.Asking{}) {
		continue
	}
	counts := make([]int, 5)
	for range 100000 {
		counts[s.touch(ledger.Asking{})]++
	}
	for i, n := range counts {
		if want := 25000; i != 2 && (n < want*96/100 || n > want*104/100) || i == 2 && n != 0 {
			t.Errorf("e%d got %d, all: %v", i, n, counts)
		}
	}
}

// Slow start: an endpoint that has a part of its weight gets that part.
func TestPermille(t *testing.T) {
	for _, by := range []config.Balance{config.RoundRobin, config.Random, config.Maglev} {
		for _, permille := range []int{1, 100, 500, 1000} {
			s := newScene(by, repeat(100, 10), nil)
			s.stand(3, ledger.Standing{Weight: -1, Permille: permille})
			n, total := 0, 200000
			for k := range total {
				if s.touch(ledger.Asking{Key: uint64(k + 1)}) == 3 {
					n++
				}
			}
			want := float64(total) * float64(permille) / float64(9000+permille)
			if by == config.Maglev { // what it leaves is shared by all, so it has that part of a tenth
				want = float64(total) * float64(permille) / 10000
			}
			if math.Abs(float64(n)-want) > 0.02*want+4*math.Sqrt(want) {
				t.Errorf("%v: with %d permille it got %d of %d, want %.0f", by, permille, n, total, want)
			}
		}
	}
}

// The operator's weight replaces the file's, whatever the way of choosing.
func TestWeightOfTheOperator(t *testing.T) {
	for _, by := range []config.Balance{config.RoundRobin, config.Random, config.Maglev} {
		for _, weight := range []int{0, 25, 300} {
			s := newScene(by, repeat(100, 10), nil)
			s.stand(3, ledger.Standing{Weight: weight, Permille: 1000})
			n, total := 0, 200000
			for k := range total {
				if s.touch(ledger.Asking{Key: uint64(k + 1)}) == 3 {
					n++
				}
			}
			want := float64(total) * float64(weight) / float64(900+weight)
			slack := 0.02*want + 4*math.Sqrt(want)
			if by == config.Maglev {
				slack += 0.15 * want // a smaller weight sheds keys in this way, a larger one is the table's
			}
			if math.Abs(float64(n)-want) > slack {
				t.Errorf("%v: with weight %d it got %d of %d, want %.0f", by, weight, n, total, want)
			}
		}
	}
}

// Backup endpoints serve while no other does, or for who has tried all others in vain;
// never because the others are full.
func TestBackup(t *testing.T) {
	for by := config.RoundRobin; by <= config.Maglev; by++ {
		s := newScene(by, repeat(100, 3), func(c *config.Backend) {
			c.Endpoints[2].Backup = true
			c.ConnectionsPerEndpoint = 5
		})
		got := map[int]int{}
		for range 12 {
			i, _ := s.take(ledger.Asking{})
			got[i]++
		}
		if got[0] != 5 || got[1] != 5 || got[-1] != 2 {
			t.Errorf("%v: full, they got %v", by, got)
		}
		if i := s.touch(ledger.Asking{Tried: 0b011}); i != 2 {
			t.Errorf("%v: having tried the others: %d", by, i)
		}
		s.stand(0, is(ledger.Down))
		if i := s.touch(ledger.Asking{}); i != -1 {
			t.Errorf("%v: with one down and one full: %d", by, i)
		}
		s.stand(1, is(ledger.Down))
		if i := s.touch(ledger.Asking{}); i != 2 {
			t.Errorf("%v: with both down: %d", by, i)
		}
		s.stand(0, is(ledger.Up))
		if i := s.touch(ledger.Asking{}); i != -1 { // full still
			t.Errorf("%v: with one up again: %d", by, i)
		}
	}
}

// Endpoints of the node's zone come first; what they cannot take goes to other zones
// of the same tier.
func TestPreferLocal(t *testing.T) {
	for by := config.RoundRobin; by <= config.Maglev; by++ {
		s := newScene(by, repeat(100, 5), func(c *config.Backend) {
			c.PreferLocal = true
			c.ConnectionsPerEndpoint = 10
			for i, zone := range []string{"here", "there", "here", "", "here"} {
				c.Endpoints[i].Zone = zone
			}
			c.Endpoints[4].Backup = true
		})
		got := make([]int, 5)
		for k := range 20 {
			i, _ := s.take(ledger.Asking{Key: uint64(k + 1)})
			got[i]++
		}
		if got[0] != 10 || got[2] != 10 {
			t.Errorf("%v: the first 20 went to %v", by, got)
		}
		for k := range 20 {
			i, _ := s.take(ledger.Asking{Key: uint64(k + 1)})
			got[i]++
		}
		if got[1] != 10 || got[3] != 10 {
			t.Errorf("%v: 40 went to %v", by, got)
		}
		if i, _ := s.take(ledger.Asking{}); i != -1 {
			t.Errorf("%v: full, it went to %d", by, i)
		}
	}
}

// Before all others come the endpoints on the node's own host, then those of its zone;
// another node finds others local in the same backend. What is local is no more than a
// preference: who has tried it, finds it full, down or quiescing gets another one, and
// who is sticky to another one gets that.
func TestPreferOwnHost(t *testing.T) {
	for by := config.RoundRobin; by <= config.Maglev; by++ {
		at := newScene(by, repeat(100, 5), func(c *config.Backend) {
			c.PreferLocal = true
			c.ConnectionsPerEndpoint = 10
			c.Sticky = &config.Sticky{Kind: config.StickyCookie}
			for i, node := range []string{"n1", "n3", "", "n1", "n1"} {
				c.Endpoints[i].Node = node
			}
			c.Endpoints[2].Zone, c.Endpoints[0].Zone = "here", "there"
			c.Endpoints[4].Backup = true
		})
		fill := func(s *scene, n int) (got [5]int, held []*ledger.Endpoint) {
			for k := range n {
				i, e := s.take(ledger.Asking{Key: uint64(k + 1)})
				if i < 0 {
					t.Fatalf("%v: nothing for the %dth of %d, after %v", by, k+1, n, got)
				}
				got[i]++
				held = append(held, e)
			}
			return got, held
		}
		first, held := fill(at, 20)
		then, more := fill(at, 10)
		last, rest := fill(at, 10)
		if first != [5]int{10, 0, 0, 10, 0} || then != [5]int{0, 0, 10, 0, 0} || last != [5]int{0, 10, 0, 0, 0} {
			t.Errorf("%v: at n1 the first 20, then 10, then 10 went to %v, %v, %v", by, first, then, last)
		}
		if i, _ := at.take(ledger.Asking{}); i != -1 {
			t.Errorf("%v: with all full but the backup: %d", by, i)
		}
		held[0].Release()
		if i, e := at.take(ledger.Asking{}); i != 0 && i != 3 {
			t.Errorf("%v: a slot at home came free, and %d was taken", by, i)
		} else {
			e.Release()
		}
		for _, e := range append(append(held[1:], more...), rest...) {
			e.Release()
		}

		if got, _ := fill(sceneAt("n3", at.c), 10); got != [5]int{0, 10, 0, 0, 0} {
			t.Errorf("%v: at n3 the first 10 went to %v", by, got)
		}
		if got, _ := fill(sceneAt("n2", at.c), 10); got != [5]int{0, 0, 10, 0, 0} {
			t.Errorf("%v: at n2, which has none, the first 10 went to %v", by, got)
		}

		if i := at.touch(ledger.Asking{Tried: 1<<0 | 1<<3}); i != 2 {
			t.Errorf("%v: having tried both at home: %d", by, i)
		}
		at.stand(0, is(ledger.Down))
		at.stand(3, ledger.Standing{Admin: ledger.Quiescing, Weight: -1, Permille: 1000, Health: ledger.Up})
		if i := at.touch(ledger.Asking{}); i != 2 {
			t.Errorf("%v: with one at home down and one quiescing: %d", by, i)
		}
		if i := at.touch(ledger.Asking{Stuck: 1 + 3}); i != 3 {
			t.Errorf("%v: sticky to the one that quiesces: %d", by, i)
		}
		at.stand(0, is(ledger.Up))
		if i := at.touch(ledger.Asking{}); i != 0 {
			t.Errorf("%v: with one at home up again: %d", by, i)
		}
		if i := at.touch(ledger.Asking{Stuck: 1 + 1}); i != 1 {
			t.Errorf("%v: sticky to one that is not local: %d", by, i)
		}
	}
}

// With too few up health is not believed; but endpoints that were taken out stay out,
// and while a backup serves there is no panic.
func TestPanic(t *testing.T) {
	for by := config.RoundRobin; by <= config.Maglev; by++ {
		s := newScene(by, repeat(100, 6), func(c *config.Backend) {
			c.Panic = 50
			c.Endpoints[5].Backup = true
		})
		serving := func() (mask int) {
			for k := range 400 {
				mask |= 1 << s.touch(ledger.Asking{Key: uint64(k + 1)})
			}
			return mask
		}
		see := func(when string, want int, panics bool) {
			t.Helper()
			if got := serving(); got != want || s.b.Roster().Panics() != panics {
				t.Errorf("%v: %s: %06b serve, want %06b; panics %v", by, when, got, want, s.b.Roster().Panics())
			}
		}
		see("all up", 0b011111, false)
		s.stand(5, is(ledger.Down)) // no backup
		s.stand(0, is(ledger.Down))
		s.stand(1, ledger.Standing{Ejected: true, Weight: -1, Permille: 1000})
		see("three of five up, and no backup", 0b011100, false)
		s.stand(2, is(ledger.Down))
		see("two of five up", 0b011111, true)
		s.stand(3, ledger.Standing{Admin: ledger.Quiescing, Weight: -1, Permille: 1000})
		s.stand(4, ledger.Standing{Admin: ledger.Maintenance, Weight: -1, Permille: 1000})
		see("none of three up, two taken out", 0b000111, true)
		s.stand(5, is(ledger.Up))
		see("and a backup", 0b100000, false)
	}
}

// Least takes the one with the fewest for its weight, exactly; and of idle ones takes
// them by weight.
func TestLeast(t *testing.T) {
	weights := []int{100, 200, 50, 400, 100}
	s := newScene(config.Least, weights, nil)
	r := rand.New(rand.NewPCG(1, 1))
	var held []*ledger.Endpoint
	load := make([]float64, len(weights))
	for range 20000 {
		if len(held) > 0 && r.IntN(2) == 0 {
			i := r.IntN(len(held))
			var n int
			if _, err := fmt.Sscanf(held[i].Name, "b/e%d", &n); err != nil {
				t.Fatal(err)
			}
			load[n] -= 1 / float64(weights[n])
			held[i].Release()
			held[i] = held[len(held)-1]
			held = held[:len(held)-1]
			continue
		}
		i, account := s.take(ledger.Asking{})
		for n := range load {
			if load[n] < load[i]-1e-9 {
				t.Fatalf("took e%d with %v, e%d has %v", i, load[i], n, load[n])
			}
		}
		load[i] += 1 / float64(weights[i])
		held = append(held, account)
	}
	for _, account := range held {
		account.Release()
	}
	counts := make([]int, len(weights))
	for range 85000 {
		counts[s.touch(ledger.Asking{})]++
	}
	for i, n := range counts {
		if want := 100 * weights[i]; n < want*98/100 || n > want*102/100 {
			t.Errorf("idle, e%d got %d, want %d", i, n, want)
		}
	}
}

// With more endpoints than least looks at, the fullest has still hardly more than the
// emptiest.
func TestLeastOfMany(t *testing.T) {
	s := newScene(config.Least, repeat(100, 3000), nil)
	counts := make([]int, 3000)
	for range 30000 {
		i, _ := s.take(ledger.Asking{})
		counts[i]++
	}
	for i, n := range counts {
		if n < 9 || n > 11 {
			t.Errorf("e%d has %d, the mean is 10", i, n)
		}
	}
}

// P2C keeps away from an endpoint that answers slowly and from one that refuses at
// once, and comes back to it when that is over.
func TestP2CAvoidsTheSlow(t *testing.T) {
	for name, fault := range map[string]func(e *ledger.Endpoint, now int64){
		"slow":     func(e *ledger.Endpoint, now int64) { e.Note(now, true, 500*time.Millisecond) },
		"refusing": func(e *ledger.Endpoint, now int64) { e.Note(now, false, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(config.P2C, repeat(100, 4), nil)
			now := int64(1e12)
			run := func(bad bool, seconds int) (share float64) {
				n, total := 0, 0
				for end := now + int64(seconds)*1e9; now < end; now += 1e6 {
					i, account := s.take(ledger.Asking{Now: now})
					if i == 0 && bad {
						fault(account, now)
					} else {
						account.Note(now, true, 5*time.Millisecond)
					}
					account.Release()
					total++
					if i == 0 {
						n++
					}
				}
				return float64(n) / float64(total)
			}
			if got := run(false, 20); got < 0.2 || got > 0.3 {
				t.Errorf("all well, it got %.3f", got)
			}
			if got := run(true, 20); got > 0.01 {
				t.Errorf("while it is %s it got %.3f", name, got)
			}
			run(false, 100) // the peak decays, and at 5 ms it is one of all again
			if got := run(false, 20); got < 0.2 || got > 0.3 {
				t.Errorf("well again, it got %.3f", got)
			}
		})
	}
}

// P2C takes the one with less to do, and of two that differ in weight follows it.
func TestP2CTakesTheLessBusy(t *testing.T) {
	s := newScene(config.P2C, []int{100, 300}, nil)
	counts := make([]int, 2)
	for i := range 2 {
		s.b.Endpoint(fmt.Sprintf("b/e%d", i)).Note(1e9, true, time.Millisecond)
	}
	for range 4000 {
		i, _ := s.take(ledger.Asking{Now: 1e9})
		counts[i]++
	}
	if counts[0] < 980 || counts[0] > 1020 {
		t.Errorf("of 4000 that stay they have %v", counts)
	}
}
