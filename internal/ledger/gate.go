package ledger

import "sync/atomic"

// Gate counts connections against a limit: of the node, or of a listener.
type Gate struct {
	inUse atomic.Int64
	// foreign are connections that another process still serves under the
	// same limit, while it hands over to this one.
	foreign atomic.Int64
	max     atomic.Int64 // 0 = none
	barred  atomic.Bool  // another process lets in; see Ledger.Yield
	shut    atomic.Bool  // somebody was turned away and wants to know when to come back
	open    func()
	absent  bool // as that of a Backend
}

// SetMax changes the limit; 0 is none.
func (g *Gate) SetMax(n int) {
	g.max.Store(int64(n))
	g.reopen()
}

// InUse is how many connections passed and have not left.
func (g *Gate) InUse() int64 { return g.inUse.Load() }

// Enter takes a place, or tells that there is none; then open is called once
// there may be one again.
func (g *Gate) Enter() bool {
	n := g.inUse.Add(1)
	if limit := g.max.Load(); (limit == 0 || n+g.foreign.Load() <= limit) && !g.barred.Load() {
		return true
	}
	g.shut.Store(true)
	g.Leave() // if a place was freed meanwhile, this calls open at once
	return false
}

// Admit takes a place whether there is one or not: for flows that move here,
// which were let in elsewhere.
func (g *Gate) Admit() { g.inUse.Add(1) }

// Import is Admit for a flow that AddForeign has counted.
func (g *Gate) Import() {
	g.inUse.Add(1) // first: the two together never seem less than they are
	g.AddForeign(-1)
}

// AddForeign changes what another process holds under the limit. It never
// falls below zero.
func (g *Gate) AddForeign(n int64) {
	for {
		was := g.foreign.Load()
		if g.foreign.CompareAndSwap(was, max(0, was+n)) {
			break
		}
	}
	if n < 0 {
		g.tell(g.inUse.Load())
	}
}

// Leave gives a place back.
func (g *Gate) Leave() {
	g.tell(g.inUse.Add(-1))
}

// tell calls open if somebody waits and n places in use leave one.
func (g *Gate) tell(n int64) {
	if g.shut.Load() {
		if limit := g.max.Load(); (limit == 0 || n+g.foreign.Load() < limit) && !g.barred.Load() {
			g.reopen()
		}
	}
}

func (g *Gate) reopen() {
	if g.shut.Swap(false) && g.open != nil {
		g.open()
	}
}
