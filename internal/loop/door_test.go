package loop

import (
	"fmt"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/config"
)

// However many names come and go: the listener in force, and one that a flow is under,
// are told apart, and of the others nothing is lost.
func TestDoorsOfNamesThatAreGone(t *testing.T) {
	w := newWeb(t, "")
	w.client()
	w.until("a flow", func() bool { return w.l.Load() == 1 })
	held := w.l.gen.Config.Listeners["e"]
	var last *config.Listener
	const names = 2*doorsMax + 10
	for i := range names {
		if i%doorsMax == 0 {
			w.l.now += shutEvery
		}
		last = &config.Listener{Ref: config.Ref{Kind: config.ListenerKind, Name: fmt.Sprint("l", i), Version: 1}}
		c := *w.l.gen.Config
		c.Listeners = map[string]*config.Listener{last.Ref.Name: last}
		w.l.SetGeneration(&Generation{Number: uint64(i + 2), Config: &c})
		w.l.door(last).Accepted++
		w.l.door(last).Refused[Denied]++
	}
	var sum Door
	count := 0
	w.l.Doors(func(_ string, d *Door) { count++; sum.add(d) })
	if sum.Accepted != names+1 || sum.Refused[Denied] != names || count > doorsMax+1 {
		t.Errorf("%d doors, %d accepted, %d denied", count, sum.Accepted, sum.Refused[Denied])
	}
	for _, x := range []*config.Listener{held, last} {
		if d := w.l.doors.all[x.Ref.Name]; d == nil || d != w.l.door(x) || d.Accepted != 1 {
			t.Errorf("%s: %+v", x.Ref.Name, d)
		}
	}
}

// What finds series without their names keeps no object that has left, for longer
// than until the next look.
func TestSeriesKeepNoObjects(t *testing.T) {
	w := newWeb(t, "")
	near := w.client()
	far := w.exchange(near)
	was := w.l.gen.Config.Listeners["e"]
	known := func() (n int) {
		for i := range w.l.series.known {
			if w.l.series.known[i].listener == was {
				n++
			}
		}
		return n
	}
	if known() == 0 {
		t.Fatal("what was served has no series")
	}
	is := *was
	is.Ref.Version++
	w.force(&is)
	w.says(near, plainGet)
	w.hears(far, "\r\n\r\n")
	w.says(far, plainAnswer)
	w.hears(near, "hello")
	w.until("nothing knows the old version", func() bool { return known() == 0 })
}
