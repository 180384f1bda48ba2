package flow

import (
	"strings"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/frozen"
)

// What a restored socket would not take of the response before is due to a flow
// that is idle. As long as its client takes some it is not too late for it; if
// it takes none it ends by RST, for FIN would say that it has got all.
func TestIdleAndYetDue(t *testing.T) {
	z := httpSample(t, "idle")
	z.Client.Unsent = []byte("the rest")
	z.Client.Sent -= uint64(len(z.Client.Unsent))
	f, err := Thaw(1, z, httpObjects)
	if err != nil {
		t.Fatal(err)
	}
	var lender Lender
	desk := NewDesk(&lender)
	wants := func(due string) (w Wants) {
		t.Helper()
		if f.Wants(&w); f.State() != Reading || string(w.Out[Client]) != due || w.Read[Client] {
			t.Fatalf("%v wants %+v, %q is due", f.State(), w, due)
		}
		return w
	}
	before := wants("the rest").Deadline
	f.Step(before-1, Event{Kind: Wrote, Leg: Client, N: 4, Desk: desk})
	w := wants("rest")
	if w.Deadline <= before {
		t.Errorf("the client has taken some and its deadline is still %d", w.Deadline)
	}
	f.Step(w.Deadline, Event{Kind: Expired, Desk: desk})
	if f.Wants(&w); !w.Done || !w.Abort[Client] || f.Cause() != IdleTimeout {
		t.Errorf("it ended as %v, by RST: %t", f.Cause(), w.Abort[Client])
	}
	f.Drop(&lender)

	// One that takes all is as idle as any other.
	if f, err = Thaw(1, &frozen.Flow{
		Id: z.Id, State: z.State, Listener: z.Listener, LeftNanos: z.LeftNanos, H1: z.H1,
		Client: &frozen.Leg{Unsent: []byte("rest")},
	}, httpObjects); err != nil {
		t.Fatal(err)
	}
	f.Step(2, Event{Kind: Wrote, Leg: Client, N: 4, Desk: desk})
	if f.Wants(&w); !w.Read[Client] || f.Phase() != Idle {
		t.Errorf("all is taken, and it is %v: %+v", f.Phase(), w)
	}
	f.Step(w.Deadline, Event{Kind: Expired, Desk: desk})
	if f.Wants(&w); !w.Done || w.Abort[Client] {
		t.Errorf("idle for too long it wants %+v", w)
	}
}

// Who begins a request by HEAD takes what follows the head of our answer for the
// next one: there is nothing, also if its own head never comes to its end.
func TestTooSlowToAskForAHead(t *testing.T) {
	for half, body := range map[string]bool{"HEAD /1 HTTP/1.1\r\nHo": false, "HEAD ": false, "GET /1 HTT": true, "HEADS ": true} {
		c := newCycle(t)
		c.say(Client, half)
		if c.f.Unsettled() {
			c.f.Settle(c.d.Lender)
		}
		var w Wants
		c.f.Wants(&w)
		c.now = w.Deadline
		c.step(Event{Kind: Expired})
		c.f.Wants(&w)
		if got := string(w.Out[Client]); !strings.HasPrefix(got, "HTTP/1.1 408 ") || strings.HasSuffix(got, "\r\n\r\n") == body {
			t.Errorf("%q is answered %q", half, got)
		}
	}
}
