package netadmin

import (
	"fmt"
	"time"
)

// tendRules looks whether the tables are still there. Firewalls are loaded
// anew by files that begin with "flush ruleset", which takes the tables of
// everybody: then an address would be answered for by whoever has it, and what
// is diverted be reset. A second may pass until they are there again. Being
// told by the kernel would be quicker and cost each lot of flows more than the
// lot itself: it then tells of every element.
func (a *Admin) tendRules() error {
	a.vipMu.Lock()
	defer a.vipMu.Unlock()
	a.steerMu.Lock()
	defer a.steerMu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return ErrClosed
	}
	tables, err := a.rules.conn.ListTables()
	if err != nil {
		return fmt.Errorf("netadmin: list nft tables: %w", err)
	}
	found := 0
	for _, t := range tables {
		if t.Name == a.cfg.Table && (t.Family == a.rules.netdev.Family || t.Family == a.rules.inet.Family) {
			found++
		}
	}
	switch {
	case found < 2:
		a.cfg.Log.Error("somebody has removed the nft tables; they are made anew", "table", a.cfg.Table)
	case a.rules.doubt:
		// A process that stood still between a change and its answer does not know
		// whether it was made; and from then on each change of the same is refused.
		a.cfg.Log.Error("a change of nft sets failed; all are made anew", "table", a.cfg.Table)
	default:
		return nil
	}
	a.rules.doubt = false
	a.counters.Rebuilt++
	if err := a.rebuild(); err != nil {
		a.rules.doubt = true
		return fmt.Errorf("netadmin: make the rules anew: %w", err)
	}
	return nil
}

// rebuild makes all rules again, of what is known here. What rules had noted
// by themselves, as who follows, is lost. All mutexes are held.
func (a *Admin) rebuild() error {
	r, now := a.rules, time.Now()
	if err := a.removeTableLocked(a.cfg.Table); err != nil {
		return err
	}
	if err := r.create(a.tap.index); err != nil {
		return err
	}
	for _, p := range a.peers {
		if err := r.addPeer(p); err != nil {
			return err
		}
	}
	list := a.sortedVIPs()
	for _, x := range list {
		v := a.vips[x]
		if left := v.ownUntil.Sub(now); left >= time.Millisecond {
			if err := r.let(r.vips.lease, x, left, false); err != nil {
				return err
			}
		}
		if left := v.guestUntil.Sub(now); left >= time.Millisecond {
			if err := r.let(r.vips.guest, x, left, false); err != nil {
				return err
			}
		}
		if v.moving {
			if err := r.move(x, true); err != nil {
				return err
			}
		}
		if err := r.lead(x, wayUsual, wayTo(v.lead)); err != nil {
			return err
		}
		if err := r.forward(x, wayUsual, wayTo(v.forward)); err != nil {
			return err
		}
	}
	if err := r.learnOnTo(a.learning); err != nil {
		return err
	}
	if err := r.fenceTo(list); err != nil {
		return err
	}
	n := 0
	for t, e := range a.tuples {
		r.queue(t, wayUsual, e.way())
		if n++; n%tuplesPerFlush == 0 {
			if err := r.flush(); err != nil {
				return err
			}
		}
	}
	if err := r.flush(); err != nil {
		return err
	}
	if s := &a.steering; len(s.steered) > 0 {
		return r.steerTo(s.own, s.steered)
	}
	return nil
}
