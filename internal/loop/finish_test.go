package loop

import (
	"strings"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// A response that is under way when its flow is ended by FIN ends where it is: the
// client gets what was read, and then the end, not a reset.
func TestFinishSendsWhatWasRead(t *testing.T) {
	w := newWeb(t, "")
	near := w.client()
	far := w.ask(near)
	w.says(far, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
	w.hears(near, "hello\r\n")
	w.says(far, "6\r\n world\r\n")
	i := w.l.Slots(0, nil)[0]
	w.until("all is read", func() bool { return w.l.Flow(i).Received(flow.Backend) > 60 })
	w.l.Finish(i)
	w.hears(near, " world\r\n")
	w.until("the end", func() bool { n, e := sock.Recv(near, make([]byte, 1)); return n == 0 && e == 0 })
	near.Shutdown()
	w.until("nothing is left", func() bool { return w.l.Load() == 0 })
	if n := w.l.Count.Ended[flow.Killed]; n != 1 {
		t.Errorf("%d were killed: %v", n, w.l.Count.Ended)
	}
}

// A request that is not answered yet is, by 503; one that is not there is none.
func TestFinishAnswers(t *testing.T) {
	w := newWeb(t, "")
	near, idle := w.client(), w.client()
	w.ask(near)
	w.until("both", func() bool { return w.l.Load() == 2 })
	for _, i := range w.l.Slots(0, nil) {
		w.l.Finish(i)
	}
	if got := w.hears(near, "no server is ready\n"); !strings.HasPrefix(got, "HTTP/1.1 503 ") || !strings.Contains(got, "Connection: close") {
		t.Errorf("%q", got)
	}
	for _, fd := range []sock.FD{near, idle} {
		w.until("the end", func() bool { n, e := sock.Recv(fd, make([]byte, 1)); return n == 0 && e == 0 })
		fd.Shutdown()
	}
	w.until("nothing is left", func() bool { return w.l.Load() == 0 })
}

// What is shed is answered, or held; what is held is frozen and thawed without an
// endpoint, and nothing is counted at any.
func TestShedAnswersAndHolds(t *testing.T) {
	w := newWeb(t, "")
	book := w.l.shared.Ledger.Backend("b")
	book.Shed(1000, config.Drop503)
	near := w.client()
	w.says(near, plainGet)
	if got := w.hears(near, "no server is ready\n"); !strings.HasPrefix(got, "HTTP/1.1 503 ") {
		t.Errorf("%q", got)
	}
	book.Shed(1000, config.DropHold)
	w.says(near, plainGet)
	state := func() flow.State {
		if all := w.l.Slots(0, nil); len(all) == 1 {
			return w.l.Flow(all[0]).State()
		}
		return flow.Done
	}
	w.until("it is held", func() bool { return state() == flow.Sunk })
	parked, _ := w.l.ParkMany(w.l.Slots(0, nil))
	p, err := Pack(parked)
	if err != nil || len(parked) != 1 || parked[0].Account != nil {
		t.Fatal(len(parked), err)
	}
	w.l.Deliver(p)
	w.until("it is held again", func() bool { return state() == flow.Sunk })
	book.Shed(0, config.NoDrop)
	if n := book.InUse(); n != 0 {
		t.Errorf("%d count at endpoints", n)
	}
	if n := book.Shedded(); n[config.Drop503] != 1 || n[config.DropHold] != 1 {
		t.Errorf("%v were shed", n)
	}
	if n := w.l.Count.Lost; n != 0 {
		t.Errorf("%d lost", n)
	}
}
