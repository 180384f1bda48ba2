package ledger_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// loops stands for n event loops: each does its rounds on a goroutine of its own.
func loops(n, rounds int, do func(loop, round int, r *rand.Rand)) {
	var all sync.WaitGroup
	for loop := range n {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(loop), 1))
			for k := range rounds {
				do(loop, k, r)
			}
		})
	}
	all.Wait()
}

func rounds(t *testing.T, n int) int {
	if testing.Short() {
		return n / 10
	}
	return n
}

// patience ends a test that would hang; nothing is measured by it.
const patience = 2 * time.Minute

// Four loops use limited endpoints, wait, and release, while standings
// change: no endpoint ever has one more than its limit, and nobody
// waits for ever (a lost wake-up would end the test by patience).
func TestLimitsHoldOnFourLoops(t *testing.T) {
	for balancing := config.RoundRobin; balancing <= config.Maglev; balancing++ {
		t.Run(balancing.String(), func(t *testing.T) {
			c := backend(1, []int{100, 50, 200}, func(c *config.Backend) {
				c.Balance = balancing
				c.ConnectionsPerEndpoint = 2
				c.Endpoints[1].ConnectionsMax = 1
				c.QueueMax = 0
				c.Sticky = &config.Sticky{Kind: config.StickyCookie}
			})
			bells := [4]chan uint64{}
			for i := range bells {
				bells[i] = make(chan uint64, 1000)
			}
			b := newLedger(func(loop int, token uint64) { bells[loop] <- token }).Backend("b")
			b.Govern(c)
			var gauge [3]atomic.Int64
			var over, stalled atomic.Int64
			stop := make(chan struct{})
			var operator sync.WaitGroup
			operator.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					stand(b, i%3, as(ledger.Admin(i/3%4), ledger.Health(i/5%2*2)))
					stand(b, i%3, as(ledger.Ready, ledger.Up))
				}
			})
			loops(4, rounds(t, 20000), func(loop, round int, r *rand.Rand) {
				a := ledger.Asking{Loop: loop, Token: uint64(round), Class: config.Priority(r.IntN(3)), Key: r.Uint64(), Stuck: max(0, r.IntN(8)-4)}
				g, w, answer := b.Secure(c, &a)
				if answer == ledger.Waiting {
					select {
					case <-bells[loop]:
						g = b.Collect(w)
					case <-time.After(patience):
						stalled.Add(1)
						return
					}
				}
				if g.Endpoint == nil {
					return
				}
				i := g.Endpoint.Name[1] - '0'
				if n := gauge[i].Add(1); n > g.Account.Limit() {
					over.Add(1)
				}
				if r.IntN(8) == 0 {
					time.Sleep(time.Microsecond)
				}
				gauge[i].Add(-1)
				g.Account.Release()
			})
			close(stop)
			operator.Wait()
			if over.Load() != 0 || stalled.Load() != 0 {
				t.Errorf("a limit was exceeded %d times, %d waited in vain", over.Load(), stalled.Load())
			}
			if b.InUse() != 0 || b.Waiting() != 0 {
				t.Errorf("at the end %d are in use, %d wait", b.InUse(), b.Waiting())
			}
		})
	}
}

// process is one of several that serve after each other.
type process struct {
	l *ledger.Ledger
	b *ledger.Backend
}

// held is a connection that some process holds.
type held struct {
	by *process
	e  int
}

func (h held) account() *ledger.Endpoint { return h.by.b.Endpoint(fmt.Sprintf("b/e%d", h.e)) }

// pool is where all loops keep what they hold, so that anybody may end or move it.
type pool struct {
	mu  sync.Mutex
	all []held
}

func (p *pool) put(h held) {
	p.mu.Lock()
	p.all = append(p.all, h)
	p.mu.Unlock()
}

// take removes one of those that by holds (nil: anybody).
func (p *pool) take(by *process) (held, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, h := range p.all {
		if by == nil || h.by == by {
			p.all[i] = p.all[len(p.all)-1]
			p.all = p.all[:len(p.all)-1]
			return h, true
		}
	}
	return held{}, false
}

// Processes follow each other in upgrades, as docs/design/0007 has it, while four
// loops connect and disconnect: all together never exceed a limit.
func TestLimitsHoldOverUpgrades(t *testing.T) {
	const limit = 3
	c := backend(1, equal(2), func(c *config.Backend) { c.ConnectionsPerEndpoint = limit; c.QueueMax = 0 })
	begin := func() *process {
		l := newLedger(nil)
		p := &process{l, l.Backend("b")}
		p.b.Govern(c)
		return p
	}
	var now atomic.Pointer[process]
	now.Store(begin())
	var gauge [2]atomic.Int64
	var over, granted atomic.Int64
	var flows pool
	var done atomic.Bool
	var all sync.WaitGroup
	for loop := range 4 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(loop), 2))
			for !done.Load() {
				p := now.Load()
				g, w, answer := p.b.Secure(c, &ledger.Asking{Loop: loop})
				if answer == ledger.Waiting {
					g = p.b.Withdraw(w)
				}
				if g.Endpoint != nil {
					h := held{p, int(g.Endpoint.Name[1] - '0')}
					granted.Add(1)
					if gauge[h.e].Add(1) > limit {
						over.Add(1)
					}
					flows.put(h)
				}
				if r.IntN(2) == 0 || g.Endpoint == nil {
					if h, ok := flows.take(nil); ok {
						gauge[h.e].Add(-1)
						h.account().Release()
					}
				}
			}
		})
	}
	for range rounds(t, 300) {
		from, to := now.Load(), begin()
		to.l.Pause()
		from.l.Pause()
		for name, n := range from.l.Held() {
			to.b.Endpoint(name).AddForeign(n)
		}
		now.Store(to)
		for len(from.l.Held()) > 0 { // some are still on their way into the pool
			h, ok := flows.take(from)
			if !ok {
				runtime.Gosched()
				continue
			}
			h.account().Forget(1)
			h.by = to
			h.account().Import(1)
			flows.put(h)
		}
		to.l.Alone()
		to.l.Resume()
		for before := granted.Load(); granted.Load() == before; {
			runtime.Gosched()
		}
	}
	done.Store(true)
	all.Wait()
	if over.Load() > 0 {
		t.Errorf("a limit was exceeded %d times", over.Load())
	}
	for h, ok := flows.take(nil); ok; h, ok = flows.take(nil) {
		h.account().Release()
	}
	if left := now.Load().l.Held(); len(left) > 0 {
		t.Errorf("at the end the last process holds %v", left)
	}
}

// Both processes of an upgrade are asked all the time, by four loops, while a few flows
// go before the switch and the others after it, and while the taker stalls: together they
// never exceed a limit.
func TestLimitsHoldWhileBothServe(t *testing.T) {
	const limit = 3
	c := backend(1, equal(2), func(c *config.Backend) { c.ConnectionsPerEndpoint = limit; c.QueueMax = 0 })
	begin := func() *process {
		l := newLedger(nil)
		p := &process{l, l.Backend("b")}
		p.b.Govern(c)
		return p
	}
	var serve [2]atomic.Pointer[process] // either is asked
	first := begin()
	serve[0].Store(first)
	serve[1].Store(first)
	var gauge [2]atomic.Int64
	var over, granted atomic.Int64
	var flows pool
	var done atomic.Bool
	var all sync.WaitGroup
	var asking sync.RWMutex // written by who takes a process away from those who ask
	for loop := range 4 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(loop), 3))
			for !done.Load() {
				asking.RLock()
				p := serve[r.IntN(2)].Load()
				g, w, answer := p.b.Secure(c, &ledger.Asking{Loop: loop})
				if answer == ledger.Waiting {
					g = p.b.Withdraw(w)
				}
				if g.Endpoint != nil {
					h := held{p, int(g.Endpoint.Name[1] - '0')}
					granted.Add(1)
					if gauge[h.e].Add(1) > limit {
						over.Add(1)
					}
					flows.put(h)
				}
				asking.RUnlock()
				if r.IntN(2) == 0 || g.Endpoint == nil {
					if h, ok := flows.take(nil); ok {
						gauge[h.e].Add(-1)
						h.account().Release()
					}
				}
			}
		})
	}
	r := rand.New(rand.NewPCG(1, 3))
	for range rounds(t, 150) {
		from, to := serve[0].Load(), begin()
		to.l.Await()
		move := func() {
			h, ok := flows.take(from)
			if !ok {
				runtime.Gosched()
				return
			}
			was := h.account()
			h.by = to
			h.account().Import(1) // it has it before the other forgets
			was.Forget(1)
			flows.put(h)
		}
		serve[1].Store(to)
		for range r.IntN(4) {
			move()
		}
		body, err := json.Marshal(from.l.Yield())
		var share ledger.Share
		if err := errors.Join(err, json.Unmarshal(body, &share)); err != nil {
			t.Fatal(err)
		}
		to.l.Switched(share)
		for range r.IntN(4) {
			move()
		}
		from.l.Stalled(true)
		runtime.Gosched()
		from.l.Stalled(false)
		asking.Lock()
		serve[0].Store(to)
		asking.Unlock()
		for len(from.l.Held()) > 0 {
			move()
		}
		to.l.Alone()
		for before := granted.Load(); granted.Load() == before; {
			runtime.Gosched()
		}
	}
	done.Store(true)
	all.Wait()
	if over.Load() > 0 {
		t.Errorf("a limit was exceeded %d times", over.Load())
	}
	for h, ok := flows.take(nil); ok; h, ok = flows.take(nil) {
		h.account().Release()
	}
	if left := serve[0].Load().l.Held(); len(left) > 0 {
		t.Errorf("at the end the last process holds %v", left)
	}
}

// When Stand returns nothing is granted by the old standing, on any loop: neither to
// flows of the version in force, nor of an older one.
func TestStandIsInForceWhenItReturns(t *testing.T) {
	old := backend(1, equal(3), nil)
	c := backend(2, equal(3), nil)
	b := governed(old)
	b.Govern(c)
	// quiet counts up after e0 was quiesced and before it is made ready again: if it is
	// odd before a grant and the same after it, that may not have been e0.
	var quiet atomic.Int64
	var wrong, given atomic.Int64
	var done atomic.Bool
	var operator sync.WaitGroup
	operator.Go(func() {
		for !done.Load() {
			stand(b, 0, as(ledger.Quiescing, ledger.Unknown))
			quiet.Add(1)
			for range 20 {
				runtime.Gosched()
			}
			quiet.Add(1)
			stand(b, 0, as(ledger.Ready, ledger.Unknown))
		}
	})
	loops(4, rounds(t, 200000), func(loop, round int, r *rand.Rand) {
		of := c
		if r.IntN(4) == 0 {
			of = old
		}
		before := quiet.Load()
		g, _, _ := b.Secure(of, &ledger.Asking{Loop: loop})
		if g.Endpoint.Name == "e0" {
			given.Add(1)
			if before%2 == 1 && quiet.Load() == before {
				wrong.Add(1)
			}
		}
		g.Account.Release()
	})
	done.Store(true)
	operator.Wait()
	if wrong.Load() > 0 {
		t.Errorf("after Stand had returned, e0 was granted %d times", wrong.Load())
	}
	if given.Load() == 0 {
		t.Error("e0 was never granted: nothing is proven")
	}
}

// Many who change standings at once, each with one endpoint, all have their change in
// force when they return.
func TestStandsAtOnce(t *testing.T) {
	c := backend(1, equal(64), nil)
	b := governed(c)
	loops(8, rounds(t, 400), func(loop, round int, r *rand.Rand) {
		i := loop*8 + r.IntN(8)
		stand(b, i, as(ledger.Maintenance, ledger.Unknown))
		for range 64 {
			g, _, _ := b.Secure(c, &ledger.Asking{Loop: loop})
			if g.Endpoint == c.Endpoints[i] {
				t.Errorf("%s was granted in maintenance", g.Endpoint.Name)
			}
			g.Account.Release()
		}
		stand(b, i, as(ledger.Ready, ledger.Unknown))
	})
	if n := b.Roster().Serving(); n != 64 {
		t.Errorf("%d serve at the end, not 64", n)
	}
}

// One rate is exact over all loops: within a window no more pass than the burst and
// what the rate gives, and if enough ask no fewer.
func TestRatesAreExactOverLoops(t *testing.T) {
	const every, burst = 1000, 50
	lis := &config.Listener{Ref: config.Ref{Name: "web"}, ConnectionRate: &config.Rate{Count: 1e6, Per: time.Second, Burst: burst}}
	l := newLedger(nil)
	var clock, passed atomic.Int64
	clock.Store(1e9)
	n := rounds(t, 100000)
	loops(4, n, func(int, int, *rand.Rand) {
		now := clock.Add(every / 4) // each asks at an instant of its own
		if l.AcceptWait(now, lis) == 0 {
			passed.Add(1)
		}
	})
	// One in four may pass, and the burst beside. Loops that come late with an early
	// instant may find its moment given to one that came before them.
	want := int64(n) + burst
	if got := passed.Load(); got > want || got < want-want/20 {
		t.Errorf("%d passed of %d, %d should", got, 4*n, want)
	}
}
