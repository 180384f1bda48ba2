package loop

import (
	"fmt"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// A leg that was muted, since the client took nothing, is heard of again when it
// has been in its pool.
func TestMutedLegIsPooled(t *testing.T) {
	const size = 64 << 20 // more than all queues on the way hold
	w := newWeb(t, "")
	near := w.client()
	far := w.ask(near)
	w.says(far, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size))
	w.hears(near, "\r\n\r\n")
	some := make([]byte, 64<<10)
	sent, got := 0, 0
	send := func() {
		if n, e := sock.Send(far, some[:min(len(some), size-sent)]); e == 0 {
			sent += n
		}
	}
	w.until("a muted leg", func() bool {
		send()
		i := w.l.Slots(0, nil)[0]
		return w.l.leg(w.l.at(i), flow.Backend).has(muted)
	})
	if sent == size {
		t.Fatal("all of the response fits the queues")
	}
	w.until("the end of the response", func() bool {
		if sent < size {
			send()
		}
		if n, e := sock.Recv(near, some); e == 0 && n > 0 {
			got += n
		}
		return got == size
	})
	w.until("an idle leg", func() bool { return w.l.Idle() == 1 })
	w.says(near, plainGet)
	w.hears(far, "\r\n\r\n")
	w.says(far, plainAnswer)
	w.hears(near, "hello")
}

// A slot in which one stream after the other simmers is looked at once at a time:
// the second look would find nothing, and take the stream for one that has ended.
func TestSlotSimmersOnce(t *testing.T) {
	w := newWeb(t, "")
	near := w.client()
	far := w.ask(near)
	w.says(far, "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello ")
	w.hears(near, "hello ")
	i := w.l.Slots(0, nil)[0]
	s := w.l.at(i)
	for range 3 { // as if the leg had been in its pool between
		w.l.far(s.far - 1).brew = 0
		w.l.simmer(i, s, flow.Backend, bulkThreshold)
	}
	w.says(far, "w")
	w.l.stirred = 0
	w.l.stir()
	if n, brew := len(w.l.simmers), w.l.far(s.far-1).brew; n != 1 || brew != thickBackend|simmering {
		t.Errorf("%d times in the list, %b; want once, and a stream still", n, brew)
	}
	w.says(far, "orld")
	w.hears(near, "world")
}
