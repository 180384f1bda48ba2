package loop

import (
	"time"

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
type doors struct {
	all  map[string]*Door
	shut flow.Instant // when those that nobody uses were made one
}

// shutEvery is how often at most it is looked which doors nobody uses.
const shutEvery = flow.Instant(time.Second)

// named is the door of the listener of that name.
func (l *Loop) named(name string) *Door {
	d := &l.doors
	at := d.all[name]
	if at == nil {
		if d.all == nil {
			d.all = map[string]*Door{}
		}
		if len(d.all) >= doorsMax && (d.shut == 0 || l.now-d.shut >= shutEvery) {
			l.shutDoors()
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

// shutDoors makes the doors of listeners that are neither in force nor named by a flow
// one, that of no name: sums never fall.
func (l *Loop) shutDoors() {
	d := &l.doors
	d.shut = l.now
	used := make(map[string]bool, len(l.lodges.listeners))
	for x := range l.lodges.listeners {
		used[x.Ref.Name] = true
	}
	rest := d.all[""]
	if rest == nil {
		rest = &Door{}
	}
	for name, at := range d.all {
		if name == "" || used[name] || l.gen != nil && l.gen.Config.Listeners[name] != nil {
			continue
		}
		rest.add(at)
		delete(d.all, name)
	}
	d.all[""] = rest
}

func (d *Door) add(o *Door) {
	d.Accepted += o.Accepted
	for i, k := range o.Refused {
		d.Refused[i] += k
	}
	for i, k := range o.Ended {
		d.Ended[i] += k
	}
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
