package loop

import (
	"testing"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// endless is a kernel in which a peer has always more to say, up to a bound.
type endless struct {
	Kernel
	reads, most int
}

func (k *endless) Recv(fd sock.FD, b []byte) (int, sock.Errno) {
	if k.reads == k.most {
		return 0, sock.Again
	}
	k.reads++
	return len(b), 0
}

// What is read and thrown away counts against a flow's part of a turn as what
// is passed on does: a client that says more and more behind the end of its
// connection keeps no other waiting.
func TestWhatIsThrownAwayHasABudget(t *testing.T) {
	w := newWeb(t, "")
	near := w.client()
	w.open[near] = true
	w.says(near, "no request\r\n\r\n")
	w.until("lingering", func() bool {
		all := w.l.Slots(1, nil)
		return len(all) == 1 && w.l.Flow(all[0]).State() == flow.Lingering
	})
	k := &endless{Kernel: w.l.k, most: 10 * octetsMax / flow.BlockBytes}
	w.l.k = k
	w.says(near, "more")
	w.until("a read", func() bool { return k.reads > 0 })
	w.l.k = k.Kernel
	if most := octetsMax/flow.BlockBytes + 1; k.reads > most {
		t.Errorf("%d reads in one turn, at most %d are a flow's part", k.reads, most)
	}
}
