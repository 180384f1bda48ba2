package node

import (
	"encoding/json"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/move"
)

const (
	// drainTime is how long flows that a successor refused may go on if nobody says
	// otherwise.
	drainTime = 10 * time.Minute
	// residueEvery is the time between two tellings of what drains.
	residueEvery = time.Second
)

// residue is what a process that has handed over tells its successor of what is
// left.
type residue struct {
	g       *giver
	c       move.Carrier // its own
	listens bool         // the successor does
	until   time.Time
}

// drainResidue begins to tell the successor what drains here, if it listens. c is
// its own from now on.
func (n *Node) drainResidue(g *giver, c move.Carrier, listens bool) {
	d := g.q.Drain
	if d == 0 {
		d = drainTime
	}
	until := time.Now().Add(d)
	n.mu.Lock()
	n.drainUntil = until
	n.mu.Unlock()
	n.residue <- residue{g, c, listens, until} // there is room: a process hands over once
}

// tellResidue tells what drains once a second until nothing does. It gives what
// ends it.
func (n *Node) tellResidue() (end func()) {
	over, done := make(chan struct{}), make(chan struct{})
	go func() { // ended by end
		defer close(done)
		select {
		case <-over:
		case r := <-n.residue:
			defer func() { _ = r.c.Close() }()
			t := time.NewTicker(residueEvery)
			defer t.Stop()
			err := r.c.SetTimeout(residueEvery)
			for left := 1; r.listens && left > 0 && (err == nil || !move.Gone(err)); {
				now := n.remains(r.g, r.until)
				left = now.Flows
				err = move.SendJSON(r.c, move.Residue, now)
				select {
				case <-over:
					return
				case <-t.C:
				}
			}
		}
	}()
	return func() { close(over); <-done }
}

// remains are the flows that are still here, by why they were refused.
func (n *Node) remains(g *giver, until time.Time) move.Remains {
	r := move.Remains{PID: pid, Reasons: map[string]int{}, Until: until}
	if g.speaks(move.FeatureShare) {
		share, err := json.Marshal(n.shared.Ledger.Drain())
		if err != nil { // names and numbers
			panic(err)
		}
		r.Share = share
	}
	for _, l := range n.shared.Loops {
		l.Ask(func(l *loop.Loop) {
			l.Slots(0, func(f *flow.Flow) bool {
				r.Flows++
				if x := f.Listener(); x.Movable && x.VIPName != "" {
					if r.VIPs == nil {
						r.VIPs = map[string]int{}
					}
					r.VIPs[x.VIPName]++
				}
				if no := g.refused[f.ID()]; no != nil {
					r.Reasons[no.why]++
				}
				return false
			})
		})
	}
	return r
}

// DrainTime is how long what a successor refused may still go on here.
func (n *Node) DrainTime() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Until(n.drainUntil)
}
