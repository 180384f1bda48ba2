package ledger_test

import (
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// A retry that was allowed before its endpoint is asked for is no request: else
// retries would earn a budget for further ones.
func TestAllowedRetriesAreNoRequests(t *testing.T) {
	c := backend(1, equal(2), func(c *config.Backend) { c.Retry.Budget = 20 })
	b := governed(c)
	now := int64(time.Second)
	for range 1000 {
		secure(b, c, ledger.Asking{Now: now})
	}
	granted := 0
	for range 1000 {
		again := ledger.Asking{Tried: 1, Now: now}
		if b.AllowRetry(c, &again) {
			granted++
			if name, _ := secure(b, c, again); name != "e1" {
				t.Fatalf("the retry got %s", name)
			}
		}
	}
	// The first request begins the window and is not in it.
	if granted != 209 {
		t.Errorf("%d retries for 999 requests, 20 %% are 199, and 10 are always allowed", granted)
	}
}

// Who waited in the queue once keeps its place, but not the right to try again for
// nothing: under overload everybody has waited.
func TestRetriesOfThoseWhoWaitedAreCounted(t *testing.T) {
	c := backend(1, equal(2), func(c *config.Backend) { c.Retry.Budget = 1 })
	b := governed(c)
	now := int64(time.Second)
	granted := 0
	for range 100 {
		if name, _ := secure(b, c, ledger.Asking{Place: 7, Tried: 1, Retry: true, Now: now}); name == "e1" {
			granted++
		}
	}
	if granted != 10 {
		t.Errorf("%d retries without a request, 10 are always allowed", granted)
	}
	// What is let wait is not counted again when it asks in another loop.
	before := b.Stats().Requests
	secure(b, c, ledger.Asking{Place: 8, Now: now})
	if n := b.Stats().Requests; n != before {
		t.Errorf("one that has waited counts as %d requests", n-before)
	}
}
