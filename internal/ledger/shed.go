package ledger

import "github.com/holdfast-lb/holdfast/internal/config"

// An order to shed turns away a share of what is new at a backend: before any
// endpoint is chosen, whatever its class, and each flow or request once, so that
// neither a retry nor a move counts it twice. It is one word, for those who ask look
// at it each time: the share in permille in the low half, what is done above it.

const shedHow = 16

// Shed turns away so many of a thousand that ask for a first endpoint from now on,
// each as a sink would that does how; 0 ends it. The share is exact over each
// thousand, and nearly so over a few.
func (b *Backend) Shed(permille int, how config.Drop) {
	permille = min(max(0, permille), 1000)
	if permille == 0 || how == config.NoDrop {
		b.shed.Store(0)
		return
	}
	b.shed.Store(uint32(how)<<shedHow | uint32(permille))
}

// Shedding is the order in force; 0 is none.
func (b *Backend) Shedding() (permille int, how config.Drop) {
	x := b.shed.Load()
	return int(x & (1<<shedHow - 1)), config.Drop(x >> shedHow)
}

// scatter is the prime next to 1000 divided by the golden ratio: its multiples
// modulo 1000 meet each number once, and any few in a row lie apart. So what is shed
// does not follow a rhythm of those who ask.
const scatter = 619

// sheds tells whether the one that asks now is turned away, by an order that is
// in force.
func (b *Backend) sheds(order uint32) (config.Drop, bool) {
	n := b.shedTurn.Add(1) - 1
	if uint32(n%1000*scatter%1000) >= order&(1<<shedHow-1) {
		return config.NoDrop, false
	}
	how := config.Drop(order >> shedHow)
	b.shedded[how].Add(1)
	return how, true
}

// hows is how many things a sink may do, and nothing.
const hows = config.Drop503 + 1

// Shedded counts what was turned away by orders to shed, by what was done.
func (b *Backend) Shedded() (n [hows]uint64) {
	for how := range n {
		n[how] = b.shedded[how].Load()
	}
	return n
}
