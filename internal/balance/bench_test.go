package balance_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/balance"
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

var sizes = []int{10, 1000, 10000}

// BenchmarkSecure is one request: a slot is taken and given back. With a limit the
// endpoints have room.
func BenchmarkSecure(b *testing.B) {
	for by := config.RoundRobin; by <= config.Maglev; by++ {
		for _, n := range sizes {
			for _, limit := range []int{0, 1000} {
				s := newScene(by, repeat(100, n), func(c *config.Backend) {
					c.ConnectionsPerEndpoint = limit
					c.Hash.Load = 125
				})
				b.Run(fmt.Sprintf("%v/%d/limit-%d", by, n, limit), func(b *testing.B) {
					b.ReportAllocs()
					for k := 0; b.Loop(); k++ {
						g, _, _ := s.b.Secure(s.c, &ledger.Asking{Key: uint64(k + 1), Now: int64(k) * 1000})
						g.Account.Release()
					}
				})
			}
		}
	}
}

// BenchmarkSecureBusy is one request while a thousand connections are held, and every
// endpoint has one at least: least has to look at all that it looks at.
func BenchmarkSecureBusy(b *testing.B) {
	for _, by := range []config.Balance{config.Least, config.P2C} {
		for _, n := range sizes {
			s := newScene(by, repeat(100, n), nil)
			for range max(1000, 2*n) {
				s.take(ledger.Asking{})
			}
			b.Run(fmt.Sprintf("%v/%d", by, n), func(b *testing.B) {
				for k := 0; b.Loop(); k++ {
					g, _, _ := s.b.Secure(s.c, &ledger.Asking{Key: uint64(k + 1), Now: int64(k) * 1000})
					g.Account.Release()
				}
			})
		}
	}
}

// BenchmarkSecureLoops is the same from all processors at once.
func BenchmarkSecureLoops(b *testing.B) {
	for by := config.RoundRobin; by <= config.Maglev; by++ {
		s := newScene(by, repeat(100, 100), func(c *config.Backend) { c.ConnectionsPerEndpoint = 1000 })
		b.Run(by.String(), func(b *testing.B) {
			var loop atomic.Int64
			b.RunParallel(func(p *testing.PB) {
				a := ledger.Asking{Loop: int(loop.Add(1))}
				for p.Next() {
					a.Key++
					g, _, _ := s.b.Secure(s.c, &a)
					g.Account.Release()
				}
			})
		})
	}
}

// BenchmarkRoster is what a change of one standing costs, and for Maglev a change of
// the file.
func BenchmarkRoster(b *testing.B) {
	for by := config.RoundRobin; by <= config.Maglev; by++ {
		for _, n := range sizes {
			s := newScene(by, repeat(100, n), nil)
			b.Run(fmt.Sprintf("%v/%d", by, n), func(b *testing.B) {
				for k := 0; b.Loop(); k++ {
					s.stand(n/2, is(ledger.Health(2+k%2)))
				}
			})
		}
	}
	for _, n := range sizes {
		weights := repeat(100, n)
		for i := range weights {
			weights[i] = 1 + i%7
		}
		for _, by := range []config.Balance{config.RoundRobin, config.Maglev} {
			s := newScene(by, weights, nil)
			accounts := make([]*ledger.Endpoint, n)
			for i := range accounts {
				accounts[i] = s.b.Endpoint(s.c.Endpoints[i].Ref.Name)
			}
			b.Run(fmt.Sprintf("from-nothing/%v/%d", by, n), func(b *testing.B) {
				for b.Loop() {
					balance.Policy{}.Roster(s.c, accounts, ledger.Here{}, nil)
				}
			})
		}
	}
}

// BenchmarkQueue is one request while all endpoints are full and a hundred wait: a slot
// is released, the first waiter gets it, and another one comes to wait.
func BenchmarkQueue(b *testing.B) {
	for _, n := range sizes {
		c := newScene(config.RoundRobin, repeat(100, n), func(c *config.Backend) { c.ConnectionsPerEndpoint = 1 }).c
		rung := uint64(0)
		l := ledger.New(ledger.Options{Policy: balance.Policy{}, Ring: func(_ int, token uint64) { rung = token }, Open: func() {}})
		book := l.Backend("b")
		book.Govern(c)
		var held []*ledger.Endpoint
		waiters := map[uint64]*ledger.Waiter{}
		token := uint64(0)
		ask := func() {
			token++
			g, w, _ := book.Secure(c, &ledger.Asking{Token: token})
			if w == nil {
				held = append(held, g.Account)
			} else {
				waiters[token] = w
			}
		}
		for range n + 100 {
			ask()
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for k := 0; b.Loop(); k++ {
				i := k * 7919 % n
				held[i].Release()
				held[i] = book.Collect(waiters[rung]).Account
				delete(waiters, rung)
				ask()
			}
		})
	}
}
