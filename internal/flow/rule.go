package flow

import (
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/planted"
)

// What is under way ends as it began, but between two requests a flow comes under
// what is in force: what a route or a limit says holds for the next request of
// all clients, those that have been here for a week as well.

// InForce is what l has become: the listener of its name, or, if that is gone, the
// one that has its VIP now, under another name. It is nil if there is none that
// speaks HTTP.
func (d *Desk) InForce(l *config.Listener) *config.Listener {
	if l == d.ruling && d.Config == d.ruledBy {
		return l // nearly always, and without a look at a name
	}
	now := d.Config.Listeners[l.Ref.Name]
	if now == nil {
		now = d.VIPs[l.VIP]
	}
	if now == nil || now.Rules == nil {
		return nil
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
