package ledger

import "github.com/holdfast-lb/holdfast/internal/config"

// Prune forgets the accounts of listeners and backends that c has not and under which
// nothing is counted, the second time it meets them: else names that come and go
// would pile up. Of backends it forgets the versions that nobody uses. Between two calls must lie more than a flow is ever on its way, and
// more than a loop takes to forget them.
func (l *Ledger) Prune(c *config.Config) {
	l.all((*Backend).pruneVersions) // not under mu: it waits for who makes a roster
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, b := range l.backends {
		idle := c.Backends[name] == nil && b.idle()
		if idle && b.absent {
			delete(l.backends, name)
		}
		b.absent = idle
	}
	for name, g := range l.listeners {
		idle := c.Listeners[name] == nil && g.inUse.Load() == 0 && g.foreign.Load() == 0
		if idle && g.absent {
			delete(l.listeners, name)
			l.rates.forget(name, &l.limits)
		}
		g.absent = idle
	}
}

// idle tells whether nobody holds or waits for anything of b.
func (b *Backend) idle() bool {
	if b.waiting.Load() > 0 || b.shed.Load() != 0 {
		return false
	}
	b.names.Lock()
	defer b.names.Unlock()
	for _, e := range b.endpoints {
		if e.held.Load() != 0 {
			return false
		}
	}
	return true
}
