package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
)

const (
	// canaryMost is how long a change may be watched.
	canaryMost = 24 * time.Hour
	// canaryLook is the time between two looks.
	canaryLook = 250 * time.Millisecond
)

// canary is a change that is watched, and rolled back if it does harm. A node has
// one at a time: of two nobody could say which one did it.
type canary struct {
	Generation uint64    `json:"generation"`
	Back       uint64    `json:"back"`  // to this one
	State      []byte    `json:"state"` // which said this
	By         Author    `json:"by"`
	Began      time.Time `json:"began"`
	Ends       time.Time `json:"ends"`
	AbortOn    string    `json:"abort_on"`
	Scope      scope     `json:"scope"`
	// Before is what was counted until the change, From where counting begins.
	Before *figures `json:"before"`
	// Baseline is what the change is compared with.
	Baseline *baseline `json:"baseline,omitempty"`

	abort  []threshold
	failed string // why it could not be rolled back, as the log was told
}

// ErrCanary: a change is watched, and no other is made meanwhile.
var ErrCanary = errors.New("a canary is watched")

// watched refuses another change while a canary is watched.
func (s *stateSide) watched() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.canary
	if c == nil {
		return nil
	}
	return fmt.Errorf("node: generation %d by %s is watched until %s; keep it or roll it back first: %w",
		c.Generation, cmp.Or(c.By.Name, "nobody"), c.Ends.Format(time.TimeOnly), ErrCanary)
}

// canaryText is what status says of it.
func (s *stateSide) canaryText() (text string, ends time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.canary; c != nil {
		return c.String(), c.Ends
	}
	return s.settled, time.Time{}
}

func (c *canary) String() string {
	return fmt.Sprintf("generation %d is watched until %s; %s takes it back; %s", c.Generation, c.Ends.Format(time.TimeOnly), c.AbortOn, c.Baseline)
}

// canaryBaseline counts what was before a change that is going to be watched.
func (n *Node) canaryBaseline(plan config.Plan) (s scope, before *figures, compared *baseline) {
	s = scopeOf(plan)
	before = n.figuresOf(s)
	return s, before, n.state.baselineOf(s, before, time.Now())
}

// beginCanary watches the change that was just made.
func (n *Node) beginCanary(q ChangeRequest, was *desired, i GenerationInfo, s scope, before *figures, compared *baseline) string {
	now := time.Now()
	c := &canary{Generation: i.Generation, Back: was.Generation, State: was.encode(), By: i.By, Began: now, Ends: now.Add(q.Canary), AbortOn: cmp.Or(q.AbortOn, canaryAbort), Scope: s, Before: before, Baseline: compared}
	c.abort, _ = parseAbort(c.AbortOn) // was read when the change was asked for
	n.state.mu.Lock()
	n.state.canary, n.state.settled = c, ""
	n.state.mu.Unlock()
	n.tell("canary", "", c.By, nil, "%s", c)
	return c.String()
}

// lookAtCanary judges the canary that is watched, if there is one.
func (n *Node) lookAtCanary(ctx context.Context, now time.Time) {
	s := &n.state
	s.mu.Lock()
	c := s.canary
	s.mu.Unlock()
	if c == nil || n.handingOver() {
		return
	}
	seen := n.figuresOf(c.Scope).since(c.Before)
	if why := judgeBy(c.abort, seen, c.Baseline.or(c.Before)); why != "" {
		if _, err := n.endCanary(ctx, c, Author{Name: "canary", Reason: why}, false, seen); err != nil && err.Error() != c.failed {
			c.failed = err.Error() // once: it is tried again at each look
			n.log.Error("a canary could not be rolled back; it is tried again and again, holdfast canary keep ends it", "generation", c.Generation, "why", why, "error", err)
		}
		return
	}
	if !now.Before(c.Ends) {
		_, _ = n.endCanary(ctx, c, Author{Name: "canary"}, true, seen) // keeping cannot fail
	}
}

// Settle ends the canary that is watched: the change stays, or is rolled back.
func (n *Node) Settle(ctx context.Context, q SettleRequest) (*ChangeReport, error) {
	return once(ctx, n, q.Guard, q, func() (*ChangeReport, error) {
		s := &n.state
		s.mu.Lock()
		c := s.canary
		s.mu.Unlock()
		if c == nil {
			return nil, errors.New("node: no canary is watched")
		}
		if err := s.current().expected(q.Expect); err != nil {
			return nil, err
		}
		return n.endCanary(ctx, c, q.Author, q.Keep, n.figuresOf(c.Scope).since(c.Before))
	})
}

// endCanary keeps the change of c, or takes it back.
func (n *Node) endCanary(ctx context.Context, c *canary, by Author, keep bool, seen *figures) (*ChangeReport, error) {
	began := time.Now()
	s := &n.state
	if err := s.take(ctx); err != nil {
		return nil, err
	}
	defer s.give()
	s.mu.Lock()
	is := s.canary == c
	d := s.now
	s.mu.Unlock()
	if !is {
		return nil, errors.New("node: the canary is settled already")
	}
	if err := n.inCharge(); err != nil {
		return nil, err
	}
	over := func(text string) {
		s.mu.Lock()
		s.canary, s.settled = nil, text
		s.mu.Unlock()
		n.tell("canary", "", by, nil, "%s", text)
		n.log.Info("canary settled", "generation", c.Generation, "kept", keep, "by", by.Name, "outcome", text)
	}
	if keep {
		n.keepTrial(c.Generation)
		text := fmt.Sprintf("generation %d stays: %s; %s", c.Generation, seen, c.Baseline)
		over(text)
		return &ChangeReport{Generation: d.Generation, Was: d.Generation, Unchanged: true, Loops: len(n.shared.Loops), Durable: s.durable(d.Generation), Canary: text, Millis: millis(time.Since(began))}, nil
	}
	by.Reason = cmp.Or(by.Reason, "asked for") + "; " + seen.String() + "; " + c.Baseline.String()
	b, err := d.back(s.reader, c.State, asked{by: by, at: time.Now(), kind: "canary-rollback"})
	if err != nil {
		return nil, err
	}
	// Orders were given to endpoints all the time; they stay.
	b.next.orders = d.orders
	b.edits = b.next.keepOrders(d.doc.Config())
	b.same = d.says(b.next)
	r, err := n.enact(ctx, began, d, b, ChangeRequest{Guard: Guard{Author: by}}, nil)
	if err != nil {
		return nil, err
	}
	text := fmt.Sprintf("generation %d was rolled back to what %d said: %s", c.Generation, c.Back, by.Reason)
	over(text)
	r.Canary = text
	return r, nil
}

// keptFile has the number of the last canary that stayed, beside the journal, for
// that something stays is no generation.
const keptFile = "canary-kept"

// keptWait is how long is waited for the disk to have it: a process that is killed
// before that goes back once more.
const keptWait = time.Second

// keepTrial notes that a canary stays.
func (n *Node) keepTrial(generation uint64) {
	s := &n.state
	s.swap.Lock()
	s.mu.Lock()
	next := *s.now
	next.trial = nil
	s.now = &next
	dir := s.dir
	s.mu.Unlock()
	s.swap.Unlock()
	if dir == "" {
		return
	}
	done := make(chan error, 1)
	go func() { done <- writeKept(dir, generation) }() // ends with the disk's answer
	select {
	case err := <-done:
		if err != nil {
			n.log.Error("that a canary stays is not on the disk; a process that is killed before another change goes back", "generation", generation, "error", err)
		}
	case <-time.After(keptWait):
	}
}

func writeKept(dir string, generation uint64) error {
	path := filepath.Join(dir, keptFile)
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	_, err = f.WriteString(strconv.FormatUint(generation, 10))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	return nil
}

// unwatched takes a canary back that was watched by a process that was killed; nil:
// there is none.
func (s *stateSide) unwatched(kept *desired) (*desired, error) {
	x := kept.trial
	if x == nil {
		return nil, nil
	}
	if text, err := os.ReadFile(filepath.Join(s.dir, keptFile)); err == nil && string(text) == strconv.FormatUint(x.Generation, 10) {
		kept.trial = nil
		return nil, nil
	}
	by := Author{Name: "canary", Reason: "the process ended while it was watched"}
	e, err := s.journal.At(x.Back)
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	b, err := kept.back(s.reader, e.State, asked{by: by, at: time.Now(), kind: "canary-rollback"})
	if err != nil {
		return nil, err
	}
	b.next.orders = kept.orders // which stay
	b.next.keepOrders(kept.doc.Config())
	b.next.Generation = s.number(kept.Generation)
	s.settled = fmt.Sprintf("generation %d was rolled back to what %d said: %s", x.Generation, x.Back, by.Reason)
	return b.next, nil
}

// handingOver tells that another process has, or is being given, the flows.
func (n *Node) handingOver() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.leaving || n.successor != 0 || n.ending || n.heir.Load()
}
