package node

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/loop"
)

// Bounds of what a node remembers of the last minutes. It is at most some 200 KiB,
// and goes along with an upgrade.
const (
	HistorySpan   = 10 * time.Minute
	historyEvery  = time.Second
	historyMax    = int(HistorySpan / historyEvery)
	historyShares = 12 // listeners that are told apart in a moment
	// unseenAfter is how long after the last look loops are still asked for what
	// they have ended.
	unseenAfter = 15 * time.Minute
)

// Moment is how a node was in one second.
type Moment struct {
	At   int64 `json:"t"` // seconds since 1970
	Open int64 `json:"n"` // client connections, of all listeners
	// Shares are those of the listeners that have most, the largest first; what
	// lacks to Open is of others.
	Shares []Share `json:"s,omitempty"`
	// Counted tells that Policy and Lost are known: nobody counts while nobody
	// looks. They are what ended since the moment before that was counted.
	Counted bool   `json:"c,omitempty"`
	Policy  uint64 `json:"p,omitempty"` // flows ended as the configuration or an operator wants
	Lost    uint64 `json:"l,omitempty"` // flows that we broke
	Marks   []Mark `json:"m,omitempty"`
}

// Share is how many connections a listener has.
type Share struct {
	Listener string `json:"l"`
	Open     int64  `json:"n"`
}

// Mark is a change or a move that was made since the moment before.
type Mark struct {
	What  string `json:"w"` // reload, rebalance, upgrade, upgrade aborted, moved away, moved here
	Count uint64 `json:"n"` // how many of them; of what came from another host: how many flows
}

// history is what is remembered.
type history struct {
	// mu guards what follows.
	mu      sync.Mutex
	moments []Moment // the oldest first
	last    tally
	looked  time.Time // when somebody looked last
}

// tally is what the counters were at the last moment.
type tally struct {
	Moves   map[string]uint64 `json:"moves,omitempty"` // by distance
	Aborted uint64            `json:"-"`               // each process counts its own
	Arrived uint64            `json:"arrived,omitempty"`
	Policy  uint64            `json:"policy,omitempty"`
	Lost    uint64            `json:"lost,omitempty"`
}

// portableHistory is what a successor goes on with.
type portableHistory struct {
	Moments []Moment `json:"moments,omitempty"`
	Last    tally    `json:"last"`
}

// Parties sums why flows ended by who ended them. Broken are flows that we
// broke.
func (t *Totals) Parties() (client, server, policy, broken uint64) {
	for cause, k := range t.Ended {
		switch cause {
		case flow.Finished.String(), flow.ClientReset.String():
			client += k
		case flow.BackendReset.String():
			server += k
		case flow.Broken.String():
			broken += k
		default:
			policy += k
		}
	}
	return client, server, policy, broken
}

// LostInAll is how many flows were lost: broken by an invariant, or not kept by
// a move. A move between processes or hosts counts those both as lost and as
// reset.
func (t *Totals) LostInAll() uint64 {
	return t.Lost - min(t.Lost, t.LostMoving) + max(t.LostMoving, t.ResetByMove)
}

// remember begins to note a moment each second, and gives what ends it.
func (n *Node) remember() (end func()) {
	n.history.mu.Lock()
	n.history.looked = time.Now() // somebody who begins a node will look
	n.history.mu.Unlock()
	return every(historyEvery, n.note)
}

// note notes the moment now. While flows go to a successor or come from a
// predecessor no process knows them all, and there is none.
func (n *Node) note(now time.Time) {
	n.mu.Lock()
	away := n.leaving || n.successor != 0
	c := n.gen.Config
	n.mu.Unlock()
	if away || n.heir.Load() || n.stopped.Load() {
		return
	}
	n.observe(now, c)
}

func (n *Node) observe(now time.Time, c *config.Config) {
	m := Moment{At: now.Unix(), Open: n.shared.Ledger.Node.InUse()}
	for name := range c.Listeners {
		if open := n.shared.Ledger.Listener(name).InUse(); open > 0 {
			m.Shares = append(m.Shares, Share{name, open})
		}
	}
	slices.SortFunc(m.Shares, func(a, b Share) int {
		return cmp.Or(cmp.Compare(b.Open, a.Open), cmp.Compare(a.Listener, b.Listener))
	})
	m.Shares = slices.Clip(m.Shares[:min(len(m.Shares), historyShares)])

	h := &n.history
	h.mu.Lock()
	m.Counted = now.Sub(h.looked) < unseenAfter
	h.mu.Unlock()
	next := n.totals.tallied()
	if m.Counted { // not under mu: loops answer in their time
		next.Policy, next.Lost = n.losses()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, x := range []struct{ distance, what string }{{"config", "reload"}, {"loop", "rebalance"}, {"process", "upgrade"}, {"host", "moved away"}} {
		k := less(next.Moves[x.distance], h.last.Moves[x.distance])
		if x.distance == "process" {
			m.mark("upgrade aborted", less(next.Aborted, h.last.Aborted))
		}
		m.mark(x.what, k)
	}
	m.mark("moved here", less(next.Arrived, h.last.Arrived))
	if m.Counted {
		m.Policy, m.Lost = less(next.Policy, h.last.Policy), less(next.Lost, h.last.Lost)
	} else {
		next.Policy, next.Lost = h.last.Policy, h.last.Lost
	}
	h.last = next
	h.add(m)
}

// less is a - b, or nothing: counts that began anew are none.
func less(a, b uint64) uint64 { return a - min(a, b) }

func (m *Moment) mark(what string, count uint64) {
	if count > 0 {
		m.Marks = append(m.Marks, Mark{what, count})
	}
}

// add adds m as the latest; the caller holds mu. A clock that was set back begins
// a new history.
func (h *history) add(m Moment) {
	if k := len(h.moments); k > 0 && m.At < h.moments[k-1].At {
		h.moments = nil
	}
	from := m.At - int64(HistorySpan/time.Second)
	old := 0
	for old < len(h.moments) && (h.moments[old].At <= from || len(h.moments)-old >= historyMax) {
		old++
	}
	h.moments = append(slices.Delete(h.moments, 0, old), m)
}

// tallied is what next to nothing is to be done for.
func (t *totals) tallied() tally {
	t.mu.Lock()
	defer t.mu.Unlock()
	moves := make(map[string]uint64, len(t.t.Moves))
	for distance, k := range t.t.Moves {
		moves[distance] = k
	}
	return tally{Moves: moves, Aborted: t.aborts["process"], Arrived: t.t.Arrived}
}

// losses asks each loop once.
func (n *Node) losses() (policy, lost uint64) {
	n.totals.mu.Lock()
	sum := Totals{Ended: map[string]uint64{}, Lost: n.totals.t.Lost, LostMoving: n.totals.t.LostMoving, ResetByMove: n.totals.t.ResetByMove}
	for cause, k := range n.totals.t.Ended {
		sum.Ended[cause] = k
	}
	n.totals.mu.Unlock()
	for _, l := range n.shared.Loops {
		var c loop.Counters
		l.Ask(func(l *loop.Loop) { c = l.Counters() })
		for cause, k := range c.Ended {
			if k > 0 {
				sum.Ended[flow.Cause(cause).String()] += k
			}
		}
		sum.Lost += c.Lost
		sum.LostMoving += c.LostMoving
	}
	_, _, policy, _ = sum.Parties()
	return policy, sum.LostInAll()
}

// History gives the moments of the last ten minutes, the oldest first. That
// somebody asks has loops be asked, for a while, for what they end.
func (n *Node) History() []Moment {
	h := &n.history
	h.mu.Lock()
	defer h.mu.Unlock()
	h.looked = time.Now()
	return slices.Clone(h.moments) // a moment does not change once it is noted
}

func (h *history) portable() *portableHistory {
	h.mu.Lock()
	defer h.mu.Unlock()
	return &portableHistory{slices.Clone(h.moments), h.last}
}

// inherit goes on where a predecessor was.
func (h *history) inherit(p *portableHistory) {
	if p == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	own := h.moments
	h.moments = nil
	for _, m := range p.Moments {
		h.add(m)
	}
	for _, m := range own {
		h.add(m)
	}
	h.last = p.Last
}
