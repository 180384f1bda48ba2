package loop

import (
	"slices"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// lend has duplicates made of all that the loop has, as of another process.
func (w *web) lend() (cookies []uint64) {
	w.t.Helper()
	w.l.Lend(func(fds []sock.FD) {
		for _, fd := range fds {
			c, err := sock.Cookie(fd)
			if err != nil {
				w.t.Fatal(err)
			}
			cookies = append(cookies, c)
			other, err := fd.Dup()
			if err != nil {
				w.t.Fatal(err)
			}
			w.t.Cleanup(other.Close)
		}
	})
	return cookies
}

// hearsEnd waits for the end of a connection, and tells whether it is RST.
func (w *web) hearsEnd(fd sock.FD) (reset bool) {
	w.t.Helper()
	w.until("the end", func() bool {
		n, e := sock.Recv(fd, make([]byte, 4096))
		reset = e != 0 && e != sock.Again
		return reset || n == 0 && e == 0
	})
	return reset
}

// While another process has duplicates of all sockets, each end of a leg is heard
// at once by its peer, nothing of it is left in the poller, and its cookie is told:
// of a flow that ends, of one that is killed, of a leg that is idle.
func TestLentLegsEndAtOnce(t *testing.T) {
	for _, c := range []struct {
		name  string
		end   func(w *web, near, far sock.FD)
		reset [2]bool // what the client, and the endpoint, hear
		legs  int     // that end
	}{
		{"the client goes", func(_ *web, near, _ sock.FD) { near.Shutdown() }, [2]bool{}, 1},
		{"the flow is killed between two requests", func(w *web, _, _ sock.FD) { w.l.Kill(w.l.Slots(1, nil)[0]) }, [2]bool{}, 1},
		{"the idle leg is closed", func(w *web, _, _ sock.FD) { w.l.CloseIdle("") }, [2]bool{}, 1},
		{"the endpoint closes the idle leg", func(_ *web, _, far sock.FD) { far.Shutdown() }, [2]bool{}, 1},
		{"the flow is killed under a request", func(w *web, near, far sock.FD) {
			w.says(near, plainGet)
			w.hears(far, "\r\n\r\n")
			w.l.Kill(w.l.Slots(1, nil)[0])
		}, [2]bool{true, true}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWeb(t, "")
			near := w.client()
			far := w.exchange(near)
			cookies := w.lend()
			if len(cookies) != 2 {
				t.Fatalf("%d descriptors were lent, want those of 2 legs", len(cookies))
			}
			c.end(w, near, far)
			idle, flows := 1, 1
			w.until("the end of what ends", func() bool {
				idle, flows = w.l.Idle(), len(w.l.Slots(0, nil))
				return idle+flows <= 2-c.legs
			})
			if flows == 0 {
				if got := w.hearsEnd(near); got != c.reset[0] {
					t.Errorf("the client hears RST: %t, want %t", got, c.reset[0])
				}
			}
			if idle == 0 {
				if got := w.hearsEnd(far); got != c.reset[1] {
					t.Errorf("the endpoint hears RST: %t, want %t", got, c.reset[1])
				}
			}
			dropped := w.l.Dropped()
			if len(dropped) != c.legs {
				t.Errorf("%d cookies are told, want %d", len(dropped), c.legs)
			}
			for _, x := range dropped {
				if !slices.Contains(cookies, x) {
					t.Errorf("cookie %d is told, lent were %v", x, cookies)
				}
			}
			if again := w.l.Dropped(); len(again) != 0 {
				t.Errorf("%d cookies are told twice", len(again))
			}
			// What the peers of ended legs still say wakes nobody.
			for w.l.Turn(false) {
			}
			for _, fd := range []sock.FD{near, far} {
				if fd == near && flows == 0 || fd == far && idle == 0 {
					_, _ = sock.Send(fd, []byte("hello?"))
					fd.Shutdown()
				}
			}
			if w.l.Turn(false) {
				t.Error("the loop hears of a leg that it has closed")
			}
		})
	}
}

// Without duplicates closing is what it was, and nobody's cookie is asked for.
func TestNotLent(t *testing.T) {
	w := newWeb(t, "")
	near := w.client()
	w.exchange(near)
	w.l.Lend(nil)
	w.l.EndLending()
	k := &lentCalls{Kernel: w.l.k}
	w.l.k = k
	near.Shutdown()
	w.until("the end of the flow", func() bool { return len(w.l.Slots(0, nil)) == 0 })
	w.l.CloseIdle("")
	w.l.k = k.Kernel
	if k.lent != 0 || k.unwatched != 0 || len(w.l.Dropped()) != 0 {
		t.Errorf("%d calls as of a lent socket, %d taken out of the poller", k.lent, k.unwatched)
	}
}

// lentCalls is a kernel that counts what only lent sockets cost.
type lentCalls struct {
	Kernel
	lent, unwatched int
}

func (k *lentCalls) Unwatch(fd sock.FD) sock.Errno {
	k.unwatched++
	return k.Kernel.Unwatch(fd)
}

func (k *lentCalls) Cookie(fd sock.FD) (uint64, error) {
	k.lent++
	return k.Kernel.Cookie(fd)
}

func (k *lentCalls) CloseLent(fd sock.FD) {
	k.lent++
	k.Kernel.CloseLent(fd)
}

func (k *lentCalls) CloseResetLent(fd sock.FD) {
	k.lent++
	k.Kernel.CloseResetLent(fd)
}

// A TCP flow whose client vanishes by RST while its sockets are lent: the endpoint
// hears it at once.
func TestLentFlowBreaks(t *testing.T) {
	w := newWorld(t, 1)
	l := w.loops[0]
	c := w.dial()
	w.turn(func() bool {
		all := l.Slots(1, nil)
		return len(all) == 1 && l.Flow(all[0]).State() == flow.Relaying
	})
	var lent []sock.FD
	l.Lend(func(fds []sock.FD) {
		for _, fd := range fds {
			other, err := fd.Dup()
			if err != nil {
				t.Fatal(err)
			}
			lent = append(lent, other)
		}
	})
	near := dup(t, c)
	near.CloseResetLent()
	w.turn(func() bool { return len(l.Slots(0, nil)) == 0 })
	if n := len(l.Dropped()); n != 2 || len(lent) != 2 {
		t.Errorf("%d cookies told, %d sockets lent, want 2", n, len(lent))
	}
	for _, fd := range lent {
		if _, e := sock.Send(fd, []byte("x")); e == 0 {
			t.Error("a socket of a flow that has ended still sends")
		}
		fd.Close()
	}
}

// While its flows are about to move a loop puts little into its pipes: what is in
// them goes along.
func TestLentLoopKeepsItsPipesShallow(t *testing.T) {
	most := func(lend bool, least int) (held int) {
		w := newWorld(t, 1)
		l := w.loops[0]
		if lend {
			l.Lend(func([]sock.FD) {})
		}
		c := dup(t, w.dial())
		some := make([]byte, 256<<10)
		stuck := 0
		w.turn(func() bool { // the echo is not read, so all queues on its way fill
			if _, e := sock.Send(c, some); e == 0 {
				stuck = 0
			} else if stuck++; stuck < 100 {
				return false
			}
			for _, p := range l.pipes.all {
				held = max(held, p.held)
			}
			return stuck >= 100 && held >= least
		})
		return held
	}
	if n := most(true, 1); n > lentBytes {
		t.Errorf("a pipe holds %d octets, at most %d are to go along", n, lentBytes)
	}
	most(false, lentBytes+1) // it comes to that, else the above shows nothing
}
