package node

import (
	"encoding/json"
	"fmt"

	"github.com/holdfast-lb/holdfast/internal/health"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/move"
)

// A message holds so many endpoints, or entries of sticky tables: a few MiB,
// far from what a carrier takes.
const (
	savedChunk  = 10_000
	stickyChunk = 100_000
)

// sendKnowledge tells the successor how endpoints stand, who belongs where, and
// what is being done to flows.
func (n *Node) sendKnowledge(c move.Carrier) error {
	send := func(k move.Knowledge) error { return move.SendJSON(c, move.Inherit, k) }
	var some []health.Saved
	count := 0
	flush := func() error {
		body, err := json.Marshal(some)
		if err != nil {
			return fmt.Errorf("node: standings: %w", err)
		}
		some, count = nil, 0
		return send(move.Knowledge{Health: body})
	}
	for _, s := range n.watch.save() {
		some = append(some, s)
		if count += len(s.Endpoints); count >= savedChunk {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	if err := send(move.Knowledge{State: n.portableState()}); err != nil {
		return err
	}
	flows, err := n.portableSide()
	if err != nil {
		return fmt.Errorf("node: what is being done to flows: %w", err)
	}
	if err := send(move.Knowledge{Flows: flows}); err != nil {
		return err
	}
	for name, t := range n.shared.Ledger.Tables() {
		for from := 0; from < len(t.Keys); from += stickyChunk {
			to := min(len(t.Keys), from+stickyChunk)
			part := &ledger.Table{Endpoints: t.Endpoints, Keys: t.Keys[from:to], Of: t.Of[from:to], Millis: t.Millis[from:to]}
			body, err := json.Marshal(ledger.Tables{name: part})
			if err != nil {
				return fmt.Errorf("node: sticky table: %w", err)
			}
			if err := send(move.Knowledge{Sticky: body}); err != nil {
				return err
			}
		}
	}
	return nil
}

// learn takes what sendKnowledge tells. What cannot be read is found out anew:
// it is no reason to end.
func (n *Node) learn(m move.Message) error {
	var k move.Knowledge
	if err := m.Into(&k); err != nil {
		return err
	}
	if len(k.Health) > 0 {
		var saved []health.Saved
		if err := json.Unmarshal(k.Health, &saved); err != nil {
			n.log.Warn("what the predecessor knew of endpoints is not readable; they are checked anew", "error", err)
		} else {
			n.watch.restore(saved)
		}
	}
	if len(k.State) > 0 {
		if err := n.learnState(k.State); err != nil {
			n.log.Warn("what the predecessor was told at last of the desired state is not readable", "error", err)
		}
	}
	if len(k.Sticky) > 0 {
		var tables ledger.Tables
		if err := json.Unmarshal(k.Sticky, &tables); err != nil {
			n.log.Warn("the predecessor's sticky tables are not readable", "error", err)
		} else {
			n.shared.Ledger.Inherit(tables)
		}
	}
	if len(k.Flows) > 0 {
		if err := n.inheritSide(k.Flows); err != nil {
			n.log.Warn("what the predecessor was doing to flows is not readable, and ends", "error", err)
		}
	}
	return nil
}
