package ledger_test

import (
	"fmt"
	"math/rand/v2"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// shareIsShed: the share is exact over a thousand, and over a few it is nearly so; who
// has waited, or tries again, is not asked about twice; and it ends.
func shareIsShed(seed uint64) (wrong string) {
	rng := rand.New(rand.NewPCG(seed, 78))
	c := backend(1, equal(2), nil)
	b := governed(c)
	turned := func(n int, a ledger.Asking) (shed int) {
		for range n {
			a := a
			switch g, _, answer := b.Secure(c, &a); answer {
			case ledger.Shed:
				if shed++; g.Drop != config.Drop503 || g.Endpoint != nil {
					wrong = fmt.Sprintf("turned away with %+v", g)
				}
			case ledger.Secured:
				g.Account.Release()
			default:
				wrong = fmt.Sprintf("answer %d", answer)
			}
		}
		return shed
	}
	total := uint64(0)
	for _, permille := range []int{1, rng.IntN(1001), 1000, 0} {
		b.Shed(permille, config.Drop503)
		if p, how := b.Shedding(); p != permille || permille > 0 && how != config.Drop503 {
			return fmt.Sprintf("%d permille by %v, want %d", p, how, permille)
		}
		n := 0
		for range 20 {
			k := turned(50, ledger.Asking{})
			if want := permille * 50 / 1000; k < want-2 || k > want+3 {
				return fmt.Sprintf("%d permille: %d of 50", permille, k)
			}
			n += k
		}
		if n != permille {
			return fmt.Sprintf("%d of 1000, want %d", n, permille)
		}
		total += uint64(n)
	}
	b.Shed(1000, config.Drop503)
	for _, a := range []ledger.Asking{{Place: 7}, {Tried: 1}, {Retry: true, Tried: 1}, {Again: true}} {
		if n := turned(10, a); n != 0 {
			return fmt.Sprintf("of who has place %d and has tried %b, %d of 10 were turned away", a.Place, a.Tried, n)
		}
	}
	if n := b.Shedded()[config.Drop503]; n != total {
		return fmt.Sprintf("%d counted, want %d", n, total)
	}
	b.Shed(0, config.Drop503)
	if n := turned(100, ledger.Asking{}); n != 0 {
		return fmt.Sprintf("%d after the end", n)
	}
	return wrong
}
