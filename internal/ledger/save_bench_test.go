package ledger_test

import (
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// A table of a million entries: in bulk, while all is served, and what a thousand
// clients have changed, while nobody is accepted.
func BenchmarkEachTable(b *testing.B) {
	const clients = 1_000_000
	c := backend(1, equal(8), func(c *config.Backend) {
		c.Sticky = &config.Sticky{Kind: config.StickySource, TableMax: 2 * clients, MaxAge: time.Hour}
	})
	l := newLedger(nil)
	book := l.Backend("b")
	book.Govern(c)
	now := int64(1e12)
	come := func(key uint64) {
		now++
		g, _, _ := book.Secure(c, &ledger.Asking{Key: key, Now: now})
		g.Account.Release()
	}
	for key := uint64(1); key <= clients; key++ {
		come(key)
	}
	told := func(b *testing.B, since *ledger.Mark) *ledger.Mark {
		n := 0
		mark, err := l.EachTable(since, func(_ string, t *ledger.Table) error { n += len(t.Packed) / 16; return nil })
		if err != nil || n == 0 {
			b.Fatal(n, err)
		}
		b.ReportMetric(float64(n), "entries/op")
		return mark
	}
	b.Run("bulk", func(b *testing.B) {
		for b.Loop() {
			told(b, nil)
		}
	})
	b.Run("changed", func(b *testing.B) {
		mark := told(b, nil)
		now++
		for key := uint64(1); key <= 1000; key++ {
			come(key * 997)
		}
		for b.Loop() {
			told(b, mark)
		}
	})
}

// A whole ledger's knowledge of 2,000 endpoints.
func BenchmarkSave(b *testing.B) {
	const endpoints = 2000
	l := newLedger(nil)
	weights := equal(endpoints)
	c := backend(1, weights, nil)
	book := l.Backend("b")
	book.Govern(c)
	now := int64(1e12)
	for _, e := range c.Endpoints {
		book.Endpoint(e.Ref.Name).Note(now, true, time.Millisecond)
	}
	for b.Loop() {
		if s := l.Save(now, now); len(s.Backends["b"].Endpoints) != endpoints {
			b.Fatal(len(s.Backends["b"].Endpoints))
		}
	}
}
