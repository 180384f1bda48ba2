package flow

import (
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/planted"
)

// What is under way ends as it began, but between two requests a flow comes under
// what is in force: what a route or a limit says holds for the next request of
// all clients, those that have been here for a week as well.

// InForce is what l has become: the listener that has its VIP now, whatever its
// name, for a client that connects anew would come there; or, if nobody has, that of
// its name, which is elsewhere. It is nil if there is none that speaks HTTP.
func (d *Desk) InForce(l *config.Listener) *config.Listener {
	if l == d.ruling && d.Config == d.ruledBy {
		return l // nearly always, and without a look at a name
	}
	now := d.VIPs[l.VIP]
	if now == nil || now.Rules == nil {
		if now = d.Config.Listeners[l.Ref.Name]; now == nil || now.Rules == nil {
			return nil
		}
	}
	if now == l {
		d.ruling, d.ruledBy = l, d.Config
	}
	return now
}

// comeUnder brings a flow that is between two requests under the listener that is
// in force. If there is none it goes on as it began.
func (f *Flow) comeUnder(d *Desk) {
	now := d.InForce(f.listener)
	if now == nil || now == f.listener || planted.Bug(71) {
		return
	}
	d.From, f.listener = f.listener, now
}

// Heir is the listener of c for a flow under was that adopts a change in the midst of
// what it does: as with [Desk.InForce], whoever has the VIP comes first. It is nil
// if there is none that speaks the same.
func Heir(c *config.Config, was *config.Listener) *config.Listener {
	speaks := func(l *config.Listener) bool { return l.Protocol == was.Protocol }
	now := c.Listeners[was.Ref.Name]
	if now == nil || now.VIP != was.VIP { // seldom
		for _, l := range c.Listeners {
			if l.VIP == was.VIP && l.DualStack == was.DualStack && speaks(l) {
				return l
			}
		}
	}
	if now == nil || !speaks(now) {
		return nil
	}
	return now
}
