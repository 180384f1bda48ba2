package loop

import (
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
)

// Door counts who came by a listener and why they left. The zero value is ready.
type Door struct {
	Accepted uint64
	Refused  [refusalReasons]uint64 // reset when they were accepted
	Ended    [flow.Causes]uint64
}

// doorsMax bounds the listeners that are told apart: their names come from the
// configuration, which may change for years.
const doorsMax = 4096

// doors are those of a loop, by the listener's name, so that they outlive changes
// of the configuration.
type doors struct{ all map[string]*Door }

// named is the door of the listener of that name.
func (d *doors) named(name string) *Door {
	at := d.all[name]
	if at == nil {
		if d.all == nil {
			d.all = map[string]*Door{}
		}
		if len(d.all) >= doorsMax {
			name = ""
		}
		if at = d.all[name]; at == nil {
			at = &Door{}
			d.all[name] = at
		}
	}
	return at
}

// door is that of a listener.
func (l *Loop) door(x *config.Listener) *Door { return l.under(x).door }

// refuse counts a connection that is reset at once.
func (l *Loop) refuse(x *config.Listener, reason int) {
	l.Count.Refused[reason]++
	l.door(x).Refused[reason]++
}

// Doors calls do for the door of each listener, in no order; to be called on the
// loop's thread. What do is given stays the loop's.
func (l *Loop) Doors(do func(listener string, d *Door)) {
	for name, d := range l.doors.all {
		do(name, d)
	}
}
