package ledger_test

import (
	"testing"

	"github.com/holdfast-lb/holdfast/internal/balance"
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// One that waits and moves goes on to wait, whatever the breaker does meanwhile; a
// further attempt does not.
func TestBreakerLetsWaitersMove(t *testing.T) {
	c := backend(1, equal(1), func(c *config.Backend) {
		c.Breaker, c.ConnectionsPerEndpoint = &config.Breaker{}, 1
	})
	b := governed(c)
	_, first := secure(b, c, ledger.Asking{})
	_, w, answer := b.Secure(c, &ledger.Asking{})
	if answer != ledger.Waiting {
		t.Fatal(answer)
	}
	b.SetBreaker(ledger.Open, 0)
	b.Withdraw(w)
	_, moved, answer := b.Secure(c, &ledger.Asking{Place: w.Place()})
	if answer != ledger.Waiting {
		t.Fatalf("it moved, and the answer is %d", answer)
	}
	if name, _ := secure(b, c, ledger.Asking{Place: 99, Retry: true}); name != "tripped" {
		t.Errorf("a further attempt: %s", name)
	}
	first.Account.Release()
	if g := b.Collect(moved); g.Endpoint == nil {
		t.Error("nothing was granted")
	}
	// It took no probe, so it gives none back.
	b.SetBreaker(ledger.HalfOpen, 0)
	_, w, _ = b.Secure(c, &ledger.Asking{Place: moved.Place()})
	b.Withdraw(w)
	if name, _ := secure(b, c, ledger.Asking{}); name != "tripped" {
		t.Errorf("a request gets %s by a probe that never was", name)
	}
}

// Who waits is sent to what its backend falls back to when nothing is left to wait
// for, and not before; without a fallback it waits on.
func TestNothingIsLeftToWaitFor(t *testing.T) {
	for _, falls := range []bool{false, true} {
		c := backend(1, equal(2), func(c *config.Backend) {
			c.ConnectionsPerEndpoint = 1
			if falls {
				c.Fallback = &config.Fallback{Backend: "c"}
			}
		})
		rung := 0
		b := newLedger(func(int, uint64) { rung++ }).Backend("b")
		b.Govern(c)
		secure(b, c, ledger.Asking{})
		secure(b, c, ledger.Asking{})
		_, w, answer := b.Secure(c, &ledger.Asking{})
		if answer != ledger.Waiting {
			t.Fatal(answer)
		}
		stand(b, 0, as(ledger.Ready, ledger.Down))
		stand(b, 1, as(ledger.Held, ledger.Up))
		if b.Dismissed(w) || rung != 0 {
			t.Fatal("it is sent away, but an endpoint is held")
		}
		stand(b, 1, as(ledger.Ready, ledger.Down))
		if b.Dismissed(w) != falls || (rung == 1) != falls || (b.Waiting() == 0) != falls {
			t.Errorf("fallback %t: sent away %t, the bell rang %d times, %d wait", falls, b.Dismissed(w), rung, b.Waiting())
		}
		if _, _, answer = b.Secure(c, &ledger.Asking{Place: w.Place()}); answer != ledger.None {
			t.Errorf("it asks again: %d", answer)
		}
		if g := b.Withdraw(w); g.Endpoint != nil || b.Waiting() != 0 {
			t.Errorf("withdrawn: %v, %d wait", g, b.Waiting())
		}
	}
}

// meddled has a standing changed in the midst of somebody's asking.
type meddled struct {
	ledger.Roster
	meddle *func()
}

func (m meddled) Sticky(i int) bool {
	was := m.Roster.Sticky(i)
	if *m.meddle != nil {
		(*m.meddle)()
	}
	return was
}

type meddling struct{ meddle *func() }

func (m meddling) Roster(c *config.Backend, all []*ledger.Endpoint, here ledger.Here, old ledger.Roster) ledger.Roster {
	if o, ok := old.(meddled); ok {
		old = o.Roster
	}
	return meddled{balance.Policy{}.Roster(c, all, here, old), m.meddle}
}

// Who decides to wait for an endpoint at the instant at which it is taken out of
// service does not wait for it.
func TestStandWhileSomebodyBeginsToWait(t *testing.T) {
	var meddle func()
	l := ledger.New(ledger.Options{Policy: meddling{&meddle}, Ring: func(int, uint64) {}, Open: func() {}})
	c := backend(1, equal(2), func(c *config.Backend) {
		c.ConnectionsPerEndpoint, c.Sticky = 1, &config.Sticky{Kind: config.StickyCookie}
	})
	b := l.Backend("b")
	b.Govern(c)
	secure(b, c, ledger.Asking{Stuck: 1})
	calls := 0
	meddle = func() {
		if calls++; calls != 2 { // the first is of the attempt without the queue
			return
		}
		meddle = nil
		done := make(chan struct{})
		go func() {
			stand(b, 0, as(ledger.Maintenance, ledger.Up))
			close(done)
		}()
		<-done
	}
	if name, _ := secure(b, c, ledger.Asking{Stuck: 1}); name != "e1" || calls != 2 {
		t.Errorf("it gets %s, after %d calls", name, calls)
	}
}

// A key that is of the hash alone is in no table: it would push out clients' own.
func TestHashesAreNotLearned(t *testing.T) {
	c := backend(1, equal(2), func(c *config.Backend) {
		c.Balance, c.Sticky = config.Maglev, &config.Sticky{Kind: config.StickyHeader, TableMax: 100, MaxAge: 1}
	})
	b := governed(c)
	for i := range 50 {
		secure(b, c, ledger.Asking{Key: uint64(i + 1), Hashed: true, Now: 1})
	}
	if n := b.Stats().Learned; n != 0 {
		t.Errorf("%d are learned", n)
	}
	if secure(b, c, ledger.Asking{Key: 1, Now: 1}); b.Stats().Learned != 1 {
		t.Errorf("%d clients are learned", b.Stats().Learned)
	}
}
