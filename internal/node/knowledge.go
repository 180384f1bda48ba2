package node

import (
	"encoding/json"
	"fmt"

	"github.com/holdfast-lb/holdfast/internal/health"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// A message holds so many endpoints, or entries of sticky tables: a few MiB,
// far from what a carrier takes.
const (
	savedChunk  = 10_000
	stickyChunk = 100_000
)

// heirKnows is what a successor knows already.
type heirKnows struct {
	at     health.Instant
	health map[string]health.Saved // by backend, as of at
	tables *ledger.Mark
	clock  int64 // of what the ledger has learnt
}

// tellEarly tells the successor all that is much, while this process serves: how
// endpoints stand, who belongs where, and what rates sources have used. tellLast
// tells what has changed since.
func (n *Node) tellEarly(send func(move.Knowledge) error) (*heirKnows, error) {
	t := &heirKnows{at: n.watch.now(), health: map[string]health.Saved{}, clock: sock.Monotonic()}
	saved := n.watch.save(t.at)
	for _, s := range saved {
		t.health[s.Backend] = s
	}
	if err := sendHealth(saved, send); err != nil {
		return nil, err
	}
	if err := n.sendLedger(t.clock, 0, send); err != nil {
		return nil, err
	}
	var err error
	t.tables, err = n.shared.Ledger.EachTable(nil, sendTable(send))
	return t, err
}

// tellLast tells the successor what has changed since tellEarly, and what is being
// done to flows and to the desired state. Without t it tells all, in the form that every
// release reads. Nothing is accepted meanwhile, so it is little.
func (n *Node) tellLast(t *heirKnows, send func(move.Knowledge) error) error {
	var saved []health.Saved
	if now := n.watch.now(); t == nil {
		saved = n.watch.save(now)
	} else {
		saved = n.watch.saveSince(now, t)
	}
	if err := sendHealth(saved, send); err != nil {
		return err
	}
	var began *desired
	if t != nil {
		n.state.mu.Lock()
		began = n.state.told
		n.state.mu.Unlock()
	}
	n.state.swap.Lock() // an order that is in force is part of the state then
	state := n.portableSince(began)
	n.state.swap.Unlock()
	if err := send(move.Knowledge{State: state}); err != nil {
		return err
	}
	flows, err := n.portableSide()
	if err != nil {
		return fmt.Errorf("node: what is being done to flows: %w", err)
	}
	if err := send(move.Knowledge{Flows: flows}); err != nil {
		return err
	}
	if t == nil {
		return n.sendTables(send)
	}
	if err := n.sendLedger(sock.Monotonic(), t.clock, send); err != nil {
		return err
	}
	if _, err = n.shared.Ledger.EachTable(t.tables, sendTable(send)); err != nil {
		return err
	}
	return send(move.Knowledge{Events: n.events.portable()})
}

// sendHealth sends what judges have saved, in parts.
func sendHealth(saved []health.Saved, send func(move.Knowledge) error) error {
	var some []health.Saved
	count := 0
	for i, s := range saved {
		some = append(some, s)
		if count += len(s.Endpoints); count < savedChunk && i < len(saved)-1 {
			continue
		}
		body, err := json.Marshal(some)
		if err != nil {
			return fmt.Errorf("node: standings: %w", err)
		}
		if err := send(move.Knowledge{Health: body}); err != nil {
			return err
		}
		some, count = nil, 0
	}
	return nil
}

// sendLedger sends what the ledger has learnt, of sources that have come since.
func (n *Node) sendLedger(now, since int64, send func(move.Knowledge) error) error {
	body, err := json.Marshal(n.shared.Ledger.Save(now, since))
	if err != nil {
		return fmt.Errorf("node: what the ledger has learnt: %w", err)
	}
	return send(move.Knowledge{Ledger: body})
}

// sendTable gives what sends parts of sticky tables.
func sendTable(send func(move.Knowledge) error) func(backend string, t *ledger.Table) error {
	return func(backend string, t *ledger.Table) error {
		body, err := json.Marshal(ledger.Tables{backend: t})
		if err != nil {
			return err
		}
		return send(move.Knowledge{Sticky: body})
	}
}

// sendTables sends the sticky tables in the form that every release reads.
func (n *Node) sendTables(send func(move.Knowledge) error) error {
	part := sendTable(send)
	for name, t := range n.shared.Ledger.Tables() {
		for from := 0; from < len(t.Keys); from += stickyChunk {
			to := min(len(t.Keys), from+stickyChunk)
			err := part(name, &ledger.Table{Endpoints: t.Endpoints, Keys: t.Keys[from:to], Of: t.Of[from:to], Millis: t.Millis[from:to]})
			if err != nil {
				return fmt.Errorf("node: sticky table: %w", err)
			}
		}
	}
	return nil
}

// learn takes a message of what tellEarly and tellLast tell.
func (n *Node) learn(m move.Message) error {
	var k move.Knowledge
	if err := m.Into(&k); err != nil {
		return err
	}
	n.know(k)
	return nil
}

// know takes a part of what tellEarly and tellLast tell. What cannot be read is found
// out anew: it is no reason to end.
func (n *Node) know(k move.Knowledge) {
	read := func(text json.RawMessage, into any, what string) bool {
		if len(text) == 0 {
			return false
		}
		err := json.Unmarshal(text, into)
		if err != nil {
			n.log.Warn("what the predecessor knew is not readable and begins anew", "what", what, "error", err)
		}
		return err == nil
	}
	var saved []health.Saved
	if read(k.Health, &saved, "health of endpoints") {
		n.watch.restore(saved)
	}
	var learnt ledger.Saved
	if read(k.Ledger, &learnt, "rates, budgets, latencies") {
		n.shared.Ledger.Restore(sock.Monotonic(), learnt)
	}
	var tables ledger.Tables
	if read(k.Sticky, &tables, "sticky tables") {
		n.shared.Ledger.Inherit(sock.Monotonic(), tables)
	}
	var events []Event
	if read(k.Events, &events, "events") {
		n.events.before(events)
	}
	if len(k.State) > 0 {
		if err := n.learnState(k.State); err != nil {
			n.log.Warn("what the predecessor was told at last of the desired state is not readable", "error", err)
		}
	}
	if len(k.Flows) > 0 {
		if err := n.inheritSide(k.Flows); err != nil {
			n.log.Warn("what the predecessor was doing to flows is not readable, and ends", "error", err)
		}
	}
}
