package node

import (
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/loop"
)

// Bounds of looking at a node again and again.
const (
	lookEvery = time.Second
	// lookShare: a look that took long is not taken again before so many times as
	// long have passed, so that looking takes a twentieth of a processor at most.
	lookShare = 20
	// paceOver is the least time over which rates and quantiles are taken, paceMax
	// how long what they are compared with is of use.
	paceOver = 10 * time.Second
	paceMax  = 2 * time.Minute
	// balanceTries bounds how often counts are read again that do not balance.
	balanceTries = 4
	balanceWait  = 5 * time.Millisecond
)

// AnyRoute is the route of a [Path] over all routes.
const AnyRoute = -2

// Path says of what a [Pace] is; an empty name is any.
type Path struct {
	Listener string
	Route    int // index among the listener's; -1: none, or [AnyRoute]
	Backend  string
	Endpoint string // its short name
}

// Pace is how much was served in the last seconds, in requests, or flows without
// HTTP, that ended.
type Pace struct {
	PerSecond, ErrorsPerSecond float64 // errors: 5xx; without HTTP what the server or we have ended
	P50, P99                   time.Duration
}

// Look is how a node is, for a page that is shown again and again.
type Look struct {
	At         time.Time
	Node       string
	Release    string
	PID        int
	Generation uint64
	Up         time.Duration
	Balance    Balance
	OnOld      int         // flows under objects that the configuration has no longer
	Oldest     *FlowStatus // nil: there is none
	Connected  map[string]int64
	Queued     map[string]int
	Endpoints  []EndpointState
	Paces      map[Path]Pace // nil: the first look, there is nothing to compare with
	Config     *config.Config
	// Upgrading, LastUpgrade and Residue are as in [Status].
	Upgrading   *Progress
	LastUpgrade *UpgradeStatus
	Cluster     ClusterLook
	Residue     []ResidueStatus
}

// Balance is the sum that must balance: what came is open, or has ended, or went.
type Balance struct {
	Totals
	Open int64
	// Passing are connections on their way between two loops, or between two
	// looks at the counters, which are never read at one instant.
	Passing int64
	// Holds: every connection is accounted for. Moving: it does not, and a change
	// or a move is under way, whose flows no loop has.
	Holds, Moving bool
}

// looks is how the node was when somebody looked.
type looks struct {
	// mu guards what follows; it is held while one looks, so that many who look at
	// once cost as much as one.
	mu    sync.Mutex
	last  *Look
	again time.Time // not before
	// Counts to compare with: one is at least paceOver old once there are two.
	early, late *lookCounts
}

type lookCounts struct {
	at     time.Time
	series map[Path]*lookSeries
}

type lookSeries struct {
	requests, errors uint64
	took             loop.Histogram
}

// Look tells how the node is, or how it was a second ago if somebody has looked
// then. Nobody may change what it gives.
func (n *Node) Look() *Look {
	n.history.mu.Lock()
	n.history.looked = time.Now()
	n.history.mu.Unlock()
	k := &n.looks
	k.mu.Lock()
	defer k.mu.Unlock()
	began := time.Now()
	if k.last != nil && (began.Before(k.again) || n.stopped.Load()) {
		return k.last
	}
	k.last = n.look(began, k)
	k.again = began.Add(max(lookEvery*9/10, time.Since(began)*lookShare))
	return k.last
}

func (n *Node) look(now time.Time, k *looks) *Look {
	n.mu.Lock()
	g := n.gen
	n.mu.Unlock()
	c := g.Config
	s := &Look{
		At: now, Node: c.Node.Name, Release: Release, PID: pid, Generation: n.Generation(), Up: now.Sub(n.started), Config: c,
		Connected: map[string]int64{}, Queued: map[string]int{}, Endpoints: n.EndpointStates(), Balance: n.balance(),
	}
	s.Upgrading, s.LastUpgrade, s.Residue = n.upgrades.look()
	s.Cluster = n.clusterLook()
	for name := range c.Listeners {
		s.Connected[name] = n.shared.Ledger.Listener(name).InUse()
	}
	for name := range c.Backends {
		s.Queued[name] = n.shared.Ledger.Backend(name).Waiting()
	}
	rule := newRuling(c)
	var first *tenant
	var on *loop.Loop
	n.eachFlow(func(l *loop.Loop, i uint32, f *flow.Flow) {
		if rule.old(f) && !rule.between(f) {
			s.OnOld++
		}
		if first == nil || f.Born() < first.born {
			first, on = &tenant{i, f.ID(), f.Born()}, l
		}
	})
	if first != nil {
		inChunks(on, []tenant{*first}, func(l *loop.Loop, t tenant, f *flow.Flow) {
			x := statusOf(l, t.slot, f)
			s.Oldest = &x
		})
	}
	counts := n.lookCounts(now, c)
	if base := k.base(now); base != nil {
		s.Paces = paces(base, counts)
	}
	k.keep(counts)
	return s
}

// balance reads the counters, then what is open, then the counters again: what
// happened meanwhile bounds by how much the sum may be off.
func (n *Node) balance() Balance {
	var b Balance
	for try := 1; ; try++ {
		before := n.counts()
		open := int64(0)
		for _, l := range n.shared.Loops {
			l.Ask(func(l *loop.Loop) { open += int64(l.Load()) })
		}
		after := n.counts()
		b = Balance{Totals: before, Open: open, Passing: before.held() - open}
		least := before.held() - int64(after.gone()-before.gone())
		most := before.held() + int64(after.come()-before.come())
		b.Holds = least <= open && open <= most
		if b.Holds && b.Passing == 0 || try == balanceTries {
			break
		}
		time.Sleep(balanceWait)
	}
	if !b.Holds {
		if b.Moving = !n.change.TryLock(); !b.Moving {
			n.change.Unlock()
		}
		n.mu.Lock()
		b.Moving = b.Moving || n.leaving
		n.mu.Unlock()
		b.Moving = b.Moving || n.heir.Load()
	}
	return b
}

// come and gone are what makes and takes connections, held is the difference. A
// flow that could not be thawed is counted as no end, only as lost.
func (t *Totals) come() uint64 { return t.Accepted + t.Arrived }

func (t *Totals) gone() uint64 {
	sum := t.Refused + t.Stayed + t.Left + t.LostMoving
	for _, k := range t.Ended {
		sum += k
	}
	return sum
}

func (t *Totals) held() int64 { return int64(t.come() - t.gone()) }

// base is what counts are compared with; nil: nothing.
func (k *looks) base(now time.Time) *lookCounts {
	if k.late != nil && now.Sub(k.late.at) > paceMax {
		k.early, k.late = nil, nil
	}
	if k.early != nil {
		return k.early
	}
	return k.late
}

// keep has counts be what later ones are compared with.
func (k *looks) keep(counts *lookCounts) {
	if k.late == nil || counts.at.Sub(k.late.at) >= paceOver {
		k.early, k.late = k.late, counts
	}
}

// lookCounts sums what was served by all that is shown.
func (n *Node) lookCounts(now time.Time, c *config.Config) *lookCounts {
	out := &lookCounts{now, map[Path]*lookSeries{}}
	for key, x := range n.series() {
		l := c.Listeners[key.Listener]
		if l == nil {
			continue
		}
		errors := x.Requests[5]
		if l.Protocol == config.TCP {
			for _, cause := range []flow.Cause{flow.BackendReset, flow.NoEndpoint, flow.QueueFull, flow.QueueTimeout, flow.Broken, flow.BreakerOpen, flow.RetriesSpent} {
				errors += x.Causes[cause]
			}
		}
		requests := uint64(0)
		for _, k := range x.Requests {
			requests += k
		}
		paths := []Path{
			{Listener: key.Listener, Route: AnyRoute},
			{Listener: key.Listener, Route: key.Route},
		}
		if key.Backend != "" {
			paths = append(paths, Path{Route: AnyRoute, Backend: key.Backend}, Path{Listener: key.Listener, Route: key.Route, Backend: key.Backend})
			if key.Endpoint != "" {
				paths = append(paths, Path{Route: AnyRoute, Backend: key.Backend, Endpoint: key.Endpoint})
			}
		}
		for _, p := range paths {
			to := out.series[p]
			if to == nil {
				to = &lookSeries{}
				out.series[p] = to
			}
			to.requests += requests
			to.errors += errors
			to.took.Add(&x.Took)
		}
	}
	return out
}

func paces(from, to *lookCounts) map[Path]Pace {
	out := map[Path]Pace{}
	seconds := to.at.Sub(from.at).Seconds()
	if seconds <= 0 {
		return nil
	}
	for p, x := range to.series {
		was := from.series[p]
		if was == nil {
			was = &lookSeries{}
		}
		took := x.took
		for i := range took.Counts {
			took.Counts[i] = less(took.Counts[i], was.took.Counts[i])
		}
		out[p] = Pace{
			PerSecond: float64(less(x.requests, was.requests)) / seconds, ErrorsPerSecond: float64(less(x.errors, was.errors)) / seconds,
			P50: took.Quantile(0.5), P99: took.Quantile(0.99),
		}
	}
	return out
}
