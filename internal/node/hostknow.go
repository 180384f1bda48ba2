package node

import (
	"encoding/json"
	"fmt"

	"github.com/holdfast-lb/holdfast/internal/health"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// Tell tells the peer what this node knows of endpoints and clients: how endpoints
// stand, who belongs where, what rates and budgets have used. The first time it is all, then
// what has changed. The peer has taken it up when it answers what is asked next. Orders
// of operators are not told: each node has its own. Flows tells by itself, before and after; who leads new
// connections to the peer before that tells first.
func (t *hostTalk) Tell() error {
	if err := t.c.SetTimeout(answerTime); err != nil {
		return err
	}
	send := func(k move.Knowledge) error { return move.SendJSON(t.c, move.Inherit, k) }
	n, was := t.n, t.known
	now := &heirKnows{at: n.watch.now(), health: map[string]health.Saved{}, clock: sock.Monotonic()}
	saved := n.watch.save(now.at)
	for _, s := range saved {
		now.health[s.Backend] = s
	}
	if was != nil {
		saved = n.watch.saveSince(now.at, was)
	}
	if err := sendHealth(saved, send); err != nil {
		return err
	}
	learnt, mark := n.shared.Ledger.Save(now.clock, 0), (*ledger.Mark)(nil)
	if was != nil {
		learnt, mark = n.shared.Ledger.Save(now.clock, was.clock), was.tables
		for name, b := range learnt.Backends { // a budget's window is told once
			b.Budget = nil
			learnt.Backends[name] = b
		}
	}
	body, err := json.Marshal(learnt)
	if err != nil {
		return fmt.Errorf("node: what the ledger has learnt: %w", err)
	}
	if err := send(move.Knowledge{Ledger: body}); err != nil {
		return err
	}
	now.tables, err = n.shared.Ledger.EachTable(mark, sendTable(send))
	t.known = now
	return err
}

// takeUp takes up what a peer tells, beside what is known here. What cannot be read is
// left out.
func (n *Node) takeUp(peer string, m move.Message) error {
	var k move.Knowledge
	if err := m.Into(&k); err != nil {
		return err
	}
	read := func(text json.RawMessage, into any) bool {
		if len(text) == 0 {
			return false
		}
		err := json.Unmarshal(text, into)
		if err != nil {
			n.log.Warn("what a peer knows is not readable", "peer", peer, "error", err)
		}
		return err == nil
	}
	var saved []health.Saved
	if read(k.Health, &saved) {
		n.watch.merge(saved)
	}
	var learnt ledger.Saved
	if read(k.Ledger, &learnt) {
		n.shared.Ledger.Merge(sock.Monotonic(), learnt)
	}
	var tables ledger.Tables
	if read(k.Sticky, &tables) {
		n.shared.Ledger.Inherit(sock.Monotonic(), tables)
	}
	return nil
}

// merge takes up what another node knows of endpoints.
func (w *watch) merge(saved []health.Saved) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	for _, s := range saved {
		if j := w.judges[s.Backend]; j != nil {
			j.Merge(now, s)
			w.flush(j, now)
		}
	}
	w.target()
}
