package ledger_test

import (
	"testing"

	"github.com/holdfast-lb/holdfast/internal/balance"
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// A flow that has tried an endpoint in vain waits for another one: it must not
// be granted the first again because that one, being down, has room. Those
// behind it, who have not tried it, may have it.
func TestGrantKeepsToWhatWasNotTried(t *testing.T) {
	c, _, err := config.Parse("test.yaml", []byte(`
listeners: { a: { vip: 10.0.0.5:80, backend: b } }
backends:
  b:
    limits: { connectionsPerEndpoint: 1, queue: 10, queueTime: 1s }
    endpoints: [ { name: down, address: 10.0.0.1:80 }, { name: up, address: 10.0.0.2:80 } ]
`), nil)
	if err != nil {
		t.Fatal(err)
	}
	var rung []uint64
	l := ledger.New(ledger.Options{Policy: balance.Policy{}, Ring: func(_ int, token uint64) { rung = append(rung, token) }, Open: func() {}})
	of := c.Backends["b"]
	b := l.Backend("b")
	b.Govern(of)
	up, _, _ := b.Secure(of, &ledger.Asking{Tried: 1, Token: 1}) // the first has tried "down" and gets "up"
	if up.Endpoint == nil || up.Endpoint.Name != "up" {
		t.Fatalf("secured %+v", up)
	}
	_, second, answer := b.Secure(of, &ledger.Asking{Tried: 1, Token: 2}) // the second has tried it, too
	if answer != ledger.Waiting || len(rung) != 0 {
		t.Fatalf("answer %v, rung for %v: it was granted what it had tried", answer, rung)
	}
	g, _, answer := b.Secure(of, &ledger.Asking{Token: 3}) // the third may have "down"
	if answer != ledger.Secured || g.Endpoint.Name != "down" {
		t.Fatalf("the third got %+v, %v", g, answer)
	}
	up.Account.Release()
	if g := b.Collect(second); g.Endpoint == nil || g.Endpoint.Name != "up" {
		t.Fatalf("the second got %+v", g)
	}
	if b.Waiting() != 0 || len(rung) != 1 {
		t.Errorf("waiting %d, rung %v", b.Waiting(), rung)
	}
}
