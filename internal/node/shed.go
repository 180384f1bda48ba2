package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/loop"
)

const (
	// sheddingEvery is how often it is seen whether what is shed has its end.
	sheddingEvery = 100 * time.Millisecond
	// shedMost bounds how long one may say that something is shed.
	shedMost = 30 * 24 * time.Hour
)

// sinks are what shedding does, by the word.
var sinks = map[string]config.Drop{"reset": config.DropReset, "hold": config.DropHold, "503": config.Drop503}

// shed is what is turned away at a backend. A successor goes on with it.
type shed struct {
	Percent float64   `json:"percent"`
	As      string    `json:"as"`
	Until   time.Time `json:"until,omitzero"`
	By      Author    `json:"by"`
	Turned  uint64    `json:"turned"` // by predecessors since it began
	before  uint64    // what the account of the backend had when it began here
}

// Shed turns away a share of what is new at a backend, for a while. It returns
// when no loop chooses by what was before. What is shed is no part of the desired
// state: it ends with its time, with the backend, or with the process, though
// not with an upgrade.
func (n *Node) Shed(q ShedRequest) (*ShedReport, error) {
	return once(context.Background(), n, q.Guard, q, func() (*ShedReport, error) { return n.shed(q) })
}

func (n *Node) shed(q ShedRequest) (*ShedReport, error) {
	began := time.Now()
	if err := n.state.current().expected(q.Expect); err != nil {
		return nil, err
	}
	q.As = cmp.Or(q.As, "503")
	how, ok := sinks[q.As]
	switch {
	case !ok:
		return nil, fmt.Errorf("node: %q is nothing to do with what is shed: want reset, hold or 503", q.As)
	case !(q.Percent >= 0 && q.Percent <= 100): // not a number is neither
		return nil, fmt.Errorf("node: shed %g %%: want 0, which ends it, to 100", q.Percent)
	case q.Percent > 0 && permilleOf(q.Percent) == 0:
		return nil, fmt.Errorf("node: shed %g %%: want 0.1 or more, or 0, which ends it", q.Percent)
	case q.For < 0 || q.For > shedMost:
		return nil, fmt.Errorf("node: shed for %v: want up to %v, or 0, which is until it is ended", q.For, shedMost)
	}
	n.change.Lock() // a successor is told of all, or asked itself
	defer n.change.Unlock()
	if err := n.inCharge(); err != nil {
		return nil, err
	}
	c := n.Config()
	if c.Backends[q.Backend] == nil {
		return nil, missingf("node: no backend %q; there are: %s", q.Backend, some(slices.Sorted(maps.Keys(c.Backends))))
	}
	r := &ShedReport{Backend: q.Backend, Percent: float64(permilleOf(q.Percent)) / 10, Loops: len(n.shared.Loops)}
	book := n.shared.Ledger.Backend(q.Backend)
	s := &n.side
	s.mu.Lock()
	if was := s.sheds[q.Backend]; was != nil {
		r.Was = was.Percent
	}
	if r.Percent == 0 {
		delete(s.sheds, q.Backend)
	} else {
		x := &shed{Percent: r.Percent, As: q.As, By: q.Author, before: turned(book)}
		if q.For > 0 {
			x.Until = began.Add(q.For)
		}
		r.As, r.Until = q.As, x.Until
		s.sheds[q.Backend] = x
	}
	book.Shed(permilleOf(q.Percent), how)
	s.mu.Unlock()
	for _, l := range n.shared.Loops { // each ends its turn before it answers
		l.Ask(func(*loop.Loop) {})
	}
	r.Millis = millis(time.Since(began))
	n.log.Info("shedding", "backend", q.Backend, "percent", r.Percent, "was", r.Was, "as", r.As, "until", r.Until, "by", q.Name)
	until := "until it is ended"
	if !r.Until.IsZero() {
		until = "until " + r.Until.Format(time.RFC3339)
	}
	if r.Percent == 0 {
		n.tell("shed", "backend/"+q.Backend, q.Author, nil, "nothing of %s is shed any more", q.Backend)
	} else {
		n.tell("shed", "backend/"+q.Backend, q.Author, map[string]string{"percent": strconv.FormatFloat(r.Percent, 'f', -1, 64), "as": r.As},
			"%g %% of what is new at %s is turned away (%s) %s", r.Percent, q.Backend, r.As, until)
	}
	return r, nil
}

func permilleOf(percent float64) int { return int(math.Round(percent * 10)) }

// turned is what a backend has turned away, however.
func turned(b *ledger.Backend) (sum uint64) {
	for _, k := range b.Shedded() {
		sum += k
	}
	return sum
}

// endSheds ends what is shed whose time has come, or whose backend has left.
func (n *Node) endSheds(now time.Time) {
	s := &n.side
	s.mu.Lock()
	none := len(s.sheds) == 0
	s.mu.Unlock()
	if none {
		return
	}
	c := n.Config()
	ended := map[string]*shed{}
	s.mu.Lock()
	for name, x := range s.sheds {
		if c.Backends[name] == nil || !x.Until.IsZero() && !now.Before(x.Until) {
			n.shared.Ledger.Backend(name).Shed(0, config.NoDrop)
			delete(s.sheds, name)
			ended[name] = x
		}
	}
	s.mu.Unlock()
	for name, x := range ended {
		k := x.Turned + turned(n.shared.Ledger.Backend(name)) - x.before
		n.log.Info("shedding ended", "backend", name, "turned_away", k)
		n.tell("shed", "backend/"+name, x.By, map[string]string{"percent": "0", "turned_away": strconv.FormatUint(k, 10)},
			"nothing of %s is shed any more; %d were turned away", name, k)
	}
}

// shedding tells what is shed now, by backend.
func (n *Node) shedding() (all []ShedStatus) {
	s := &n.side
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.sheds)) {
		x := s.sheds[name]
		all = append(all, ShedStatus{
			Backend: name, Percent: x.Percent, As: x.As, Until: x.Until, By: x.By,
			Turned: x.Turned + turned(n.shared.Ledger.Backend(name)) - x.before,
		})
	}
	return all
}

// portableSheds are what a successor goes on with; the caller holds change.
func (n *Node) portableSheds() json.RawMessage {
	s := &n.side
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]shed{}
	for name, x := range s.sheds {
		y := *x
		y.Turned += turned(n.shared.Ledger.Backend(name)) - x.before
		out[name] = y
	}
	b, _ := json.Marshal(out) // times and numbers cannot fail
	return b
}

// inheritSheds goes on with what a predecessor shed.
func (n *Node) inheritSheds(b json.RawMessage) error {
	if len(b) == 0 {
		return nil
	}
	var all map[string]*shed
	if err := json.Unmarshal(b, &all); err != nil {
		return fmt.Errorf("what is shed: %w", err)
	}
	s := &n.side
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for name, x := range all {
		how, ok := sinks[x.As]
		if !ok {
			errs = append(errs, fmt.Errorf("what is shed at %s: %q", name, x.As))
			continue
		}
		book := n.shared.Ledger.Backend(name)
		x.before = turned(book)
		s.sheds[name] = x
		book.Shed(permilleOf(x.Percent), how)
	}
	return errors.Join(errs...)
}
