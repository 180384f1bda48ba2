package loop

import (
	"strings"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/config"
)

// A request whose pooled leg was dead asks for an endpoint again, and is not asked
// about again by an order to shed: it would be turned away twice as often.
func TestDeadPooledLegIsNotShedTwice(t *testing.T) {
	w := newWeb(t, "")
	near := w.client()
	far := w.exchange(near)
	book := w.l.shared.Ledger.Backend("b")
	book.Shed(500, config.Drop503) // the first, not the second, the third
	w.says(near, plainGet)
	w.hears(near, "no server is ready\n")
	w.says(near, plainGet)
	w.hears(far, "\r\n\r\n")
	delete(w.open, far)
	far.CloseReset()
	far = w.accept()
	w.hears(far, "\r\n\r\n")
	w.says(far, plainAnswer)
	if got := w.hears(near, "hello"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("%q", got)
	}
	if n := book.Shedded()[config.Drop503]; n != 1 {
		t.Errorf("%d of 2 requests were shed", n)
	}
}

// force puts another version of the only listener in force.
func (w *web) force(lis *config.Listener) {
	c := *w.l.gen.Config
	c.Listeners = map[string]*config.Listener{"e": lis}
	x := *w.l.gen.Listening["e"]
	x.Object = lis
	w.l.shared.Objects = exact{&c}
	w.l.SetGeneration(&Generation{Number: w.l.gen.Number + 1, Config: &c, Listening: map[string]*Listening{"e": &x}})
}

// A connection that comes under a listener which tells sources apart otherwise counts
// there, and not where it has counted before, also when that comes back.
func TestSourcesOfTheNextRequest(t *testing.T) {
	w := newWebOf(t, "sourceRate: { connections: 1000/s, bits4: 32 }, sourceConnectionsMax: 2", "")
	one := w.l.gen.Config.Listeners["e"]
	two, rate := *one, *one.SourceRate
	two.Ref.Version++
	rate.Bits4 = 24
	two.SourceRate = &rate

	near := w.client()
	far := w.exchange(near)
	w.force(&two)
	w.says(near, plainGet)
	w.hears(far, "\r\n\r\n")
	w.says(far, plainAnswer)
	w.hears(near, "hello")
	w.dial()
	w.until("two flows", func() bool { return w.l.Load() == 2 })
	if how := w.ends(w.dial()); how != "RST" {
		t.Errorf("the third ends by %s", how)
	}
	for _, i := range w.l.Slots(0, nil) {
		w.l.Kill(i)
	}
	w.force(one)
	w.dial()
	w.dial()
	w.until("two flows", func() bool { return w.l.Load() == 2 })
	if how := w.ends(w.dial()); how != "RST" {
		t.Errorf("the next third ends by %s", how)
	}
}
