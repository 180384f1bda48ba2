package loop

import (
	"fmt"
	"net"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// interrupted is a kernel in which something happens at the first read of a turn.
type interrupted struct {
	Kernel
	at    func()
	reads int
}

func (k *interrupted) Recv(fd sock.FD, b []byte) (int, sock.Errno) {
	if k.reads++; k.at != nil {
		do := k.at
		k.at = nil
		do()
	}
	return k.Kernel.Recv(fd, b)
}

// Flows that come to a loop which has many others to deal with are served after the
// one of the moment, not after all: they stand still meanwhile.
func TestParcelDoesNotWaitForATurn(t *testing.T) {
	t.Run("events", func(t *testing.T) { parcelInATurn(t, true) })
	t.Run("what is left of the turn before", func(t *testing.T) { parcelInATurn(t, false) })
}

func parcelInATurn(t *testing.T, events bool) {
	w := newWorld(t, 2)
	here, there := w.loops[0], w.loops[1]
	here.shared.Fixed.Store(true)
	const flows = 40
	var clients []net.Conn
	for range flows + 1 {
		c := w.dial()
		clients = append(clients, c)
		_, _ = fmt.Fprint(c, "x")
	}
	w.turn(func() bool {
		there.SendTo(here, there.Slots(0, nil), nil)
		n := 0
		for _, i := range here.Slots(0, nil) {
			if here.Flow(i).State() == flow.Relaying && here.Flow(i).Sent(flow.Client) == 1 {
				n++
			}
		}
		return n == flows+1
	})
	for here.Turn(false) || there.Turn(false) {
	}
	parked, _ := here.ParkMany(here.Slots(1, nil))
	p, err := Pack(parked)
	if err != nil {
		t.Fatal(err)
	}
	adopted := 0
	k := &interrupted{Kernel: here.k, at: func() { here.Deliver(p) }}
	p.Adopted = func([]int64, int) { adopted = k.reads }
	here.k = k
	for _, c := range clients {
		if events {
			_, _ = fmt.Fprint(c, "y")
		}
	}
	for _, i := range here.Slots(0, nil) { // all have something to read
		if events {
			break
		}
		s := here.at(i)
		s.client.is |= readable
		if s.again {
			t.Fatal("a flow is in the list already")
		}
		s.again = true
		here.again = append(here.again, i)
	}
	here.Turn(false)
	here.k = k.Kernel
	if k.reads < flows {
		t.Fatalf("%d reads in the turn, want one of each of %d flows", k.reads, flows)
	}
	// The flow of the moment may read both of its legs, and so does the one that came.
	if adopted == 0 || adopted > 4 {
		t.Errorf("what came is served after %d reads of others", adopted)
	}
}
