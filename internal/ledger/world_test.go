package ledger_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/balance"
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// backend makes a version of backend "b" with endpoints e0, e1, ... of these
// weights; change may change it before it is used.
func backend(version uint64, weights []int, change func(*config.Backend)) *config.Backend {
	b := &config.Backend{Ref: config.Ref{Kind: config.BackendKind, Name: "b", Version: version}, QueueMax: 1000, QueueTime: time.Second}
	for i, w := range weights {
		name := fmt.Sprintf("e%d", i)
		b.Endpoints = append(b.Endpoints, &config.Endpoint{
			Ref:     config.Ref{Kind: config.EndpointKind, Name: "b/" + name, Version: version},
			Backend: "b", Name: name, Weight: w,
		})
	}
	if change != nil {
		change(b)
	}
	return b
}

func equal(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = config.DefaultWeight
	}
	return out
}

// newLedger makes a ledger with the real policy; ring may be nil.
func newLedger(ring func(int, uint64)) *ledger.Ledger {
	if ring == nil {
		ring = func(int, uint64) {}
	}
	return ledger.New(ledger.Options{Policy: balance.Policy{}, Ring: ring, Open: func() {}, Node: "n1", Zone: "here"})
}

func governed(c *config.Backend) *ledger.Backend {
	b := newLedger(nil).Backend(c.Ref.Name)
	b.Govern(c)
	return b
}

func stand(b *ledger.Backend, i int, s ledger.Standing) {
	b.Stand(fmt.Sprintf("b/e%d", i), func(o *ledger.Standing) { *o = s })
}

func as(admin ledger.Admin, health ledger.Health) ledger.Standing {
	return ledger.Standing{Admin: admin, Health: health, Weight: -1, Permille: 1000}
}

// secure is Secure that must not wait; it gives the endpoint's name, or what was
// answered instead.
func secure(b *ledger.Backend, c *config.Backend, a ledger.Asking) (string, ledger.Grant) {
	g, w, answer := b.Secure(c, &a)
	if w != nil {
		return "waits", g
	}
	if answer != ledger.Secured {
		return [...]string{"", "", "full", "none", "tripped", "spent"}[answer], g
	}
	return g.Endpoint.Name, g
}

// A property is judged by what it says is wrong: "" is nothing. The same ones judge
// the ledger, and find the planted bugs.
type property struct {
	name string
	try  func(seed uint64) string
}

var properties = []property{
	{"history", history},
	{"classes", classesInOrder},
	{"expiry", entriesExpire},
	{"burst", burstThenRate},
	{"shed", shareIsShed},
	{"divided", limitsHold},
}

func TestProperties(t *testing.T) {
	seeds := uint64(400)
	if testing.Short() {
		seeds = 60
	}
	for _, p := range properties {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed <= seeds; seed++ {
				if wrong := p.try(seed); wrong != "" {
					t.Fatalf("seed %d: %s", seed, wrong)
				}
			}
		})
	}
}
