package balance_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

const keys = 100000

func (s *scene) placed() []int {
	out := make([]int, keys)
	for k := range out {
		out[k] = s.touch(ledger.Asking{Key: uint64(k + 1)})
	}
	return out
}

// Keys are spread by weight.
func TestMaglevShares(t *testing.T) {
	weights := []int{100, 100, 300, 50, 1000, 0}
	s := newScene(config.Maglev, weights, nil)
	counts := make([]float64, len(weights))
	for _, i := range s.placed() {
		counts[i]++
	}
	for i, w := range weights {
		want := keys * float64(w) / 1550
		if math.Abs(counts[i]-want) > 0.02*want+4*math.Sqrt(want) {
			t.Errorf("e%d with weight %d has %.0f keys, want %.0f", i, w, counts[i], want)
		}
	}
}

// When one of a hundred goes down, its keys move and no other one; when it comes back
// all are where they were. Where they go they are spread over all.
func TestMaglevMovesOnlyWhatIsDown(t *testing.T) {
	s := newScene(config.Maglev, repeat(100, 100), nil)
	before := s.placed()
	s.stand(42, is(ledger.Down))
	heirs, moved := map[int]int{}, 0
	for k, i := range s.placed() {
		if was := before[k]; was == 42 {
			moved++
			heirs[i]++
		} else if i != was {
			t.Fatalf("key %d moved from e%d, which is up, to e%d", k, was, i)
		}
	}
	if len(heirs) < 95 {
		t.Errorf("the %d keys of one went to %d others only", moved, len(heirs))
	}
	s.stand(42, is(ledger.Up))
	for k, i := range s.placed() {
		if i != before[k] {
			t.Fatalf("key %d did not come back to e%d", k, before[k])
		}
	}
}

// When one of a hundred is taken out of the file, fewer than twice as many keys move as
// must.
func TestMaglevMovesFewWhenTheFileChanges(t *testing.T) {
	s := newScene(config.Maglev, repeat(100, 100), nil)
	before := s.placed()
	without := newScene(config.Maglev, repeat(100, 100), func(c *config.Backend) {
		c.Endpoints = append(c.Endpoints[:42:42], c.Endpoints[43:]...)
	})
	moved, must := 0, 0
	for k, i := range without.placed() {
		if before[k] == 42 {
			must++
		}
		if before[k] != i {
			moved++
		}
	}
	t.Logf("%d of %d keys moved, %d had to", moved, keys, must)
	if moved >= 2*must {
		t.Errorf("%d keys moved, %d had to", moved, must)
	}
}

// An endpoint that starts slowly gets its own keys back little by little, and none that
// it had leaves again.
func TestMaglevRampIsMonotone(t *testing.T) {
	s := newScene(config.Maglev, repeat(100, 10), nil)
	before := s.placed()
	had := map[int]bool{}
	for _, permille := range []int{100, 300, 700, 1000} {
		s.stand(3, ledger.Standing{Weight: -1, Permille: permille})
		now := s.placed()
		for k := range had {
			if now[k] != 3 {
				t.Fatalf("key %d left again at %d permille", k, permille)
			}
		}
		for k, i := range now {
			if i == 3 {
				had[k] = true
				if before[k] != 3 {
					t.Fatalf("key %d of e%d went to the one that starts", k, before[k])
				}
			}
		}
	}
}

// With a bound on the load no endpoint is ever given more than its part of all, however
// uneven the keys are; and those of a key that is asked for often spread in its order.
func TestMaglevLoadIsBounded(t *testing.T) {
	for _, load := range []int{101, 125, 200} {
		weights := []int{100, 100, 300, 50, 1000, 100}
		s := newScene(config.Maglev, weights, func(c *config.Backend) { c.Hash.Load = load })
		r := rand.New(rand.NewPCG(uint64(load), 1))
		var held []*ledger.Endpoint
		for range 20000 {
			if len(held) > 0 && r.IntN(5) < 2 {
				i := r.IntN(len(held))
				held[i].Release()
				held[i] = held[len(held)-1]
				held = held[:len(held)-1]
				continue
			}
			i, account := s.take(ledger.Asking{Key: 1 + r.Uint64N(3)})
			held = append(held, account)
			bound := math.Ceil(float64(load) / 100 * float64(len(held)) * float64(weights[i]) / 1650)
			if n := account.InUse(); float64(n) > bound {
				t.Fatalf("load %d: e%d has %d of %d, its bound is %.0f", load, i, n, len(held), bound)
			}
		}
	}
}

// The bound holds over loops, but for those who are between their count and the sum.
func TestMaglevLoadIsBoundedOnFourLoops(t *testing.T) {
	const loops = 4
	s := newScene(config.Maglev, repeat(100, 8), func(c *config.Backend) { c.Hash.Load = 125 })
	var over atomic.Int64
	var all sync.WaitGroup
	var held [loops][]*ledger.Endpoint
	for loop := range loops {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(loop), 1))
			mine := &held[loop]
			for range 20000 {
				if n := len(*mine); n > 200 {
					i := r.IntN(n)
					(*mine)[i].Release()
					(*mine)[i] = (*mine)[n-1]
					*mine = (*mine)[:n-1]
				}
				_, account := s.take(ledger.Asking{Key: 1 + r.Uint64N(4), Loop: loop})
				*mine = append(*mine, account)
				// Each loop has one more or one less: so far the sum may have fallen since.
				if n, sum := account.InUse(), s.b.InUse(); float64(n) > math.Ceil(1.25*float64(sum+2*loops)/8)+loops {
					over.Add(1)
				}
			}
		})
	}
	all.Wait()
	for _, accounts := range held {
		for _, account := range accounts {
			account.Release()
		}
	}
	if n := over.Load(); n > 0 {
		t.Errorf("the bound was exceeded %d times", n)
	}
	if n := s.b.InUse(); n != 0 {
		t.Errorf("at the end %d are in use", n)
	}
}

// The place of a key is the same on every host and in every release: these may only
// change together with a note for those who upgrade.
func TestMaglevPlacesStay(t *testing.T) {
	s := newScene(config.Maglev, []int{100, 100, 300, 50, 1000, 100, 100, 100}, nil)
	got := ""
	for k := range 24 {
		got += fmt.Sprint(s.touch(ledger.Asking{Key: uint64(k)*0x9e3779b97f4a7c15 + 1}))
	}
	if want := "544451144742041042446412"; got != want {
		t.Errorf("keys are at %s, were at %s", got, want)
	}
}
