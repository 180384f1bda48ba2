package node

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// A peer owes an answer from the first question that had none, however often it is asked
// again, until it answers anything.
func TestSilences(t *testing.T) {
	var s silences
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	want := func(peer string, after, want time.Duration) {
		t.Helper()
		if got := s.of(peer, at.Add(after)); got != want {
			t.Errorf("after %v %s has been silent for %v, want %v", after, peer, got, want)
		}
	}
	want("n3", 0, 0)
	s.asked("n3", at)
	s.asked("n3", at.Add(2*time.Second))
	want("n3", 3*time.Second, 3*time.Second)
	want("n4", 3*time.Second, 0)
	s.answered("n3")
	want("n3", 9*time.Second, 0)
	s.asked("n3", at.Add(10*time.Second))
	want("n3", 11*time.Second, time.Second)
}

// Who moves a VIP whose owner is dead hears what to do; of another node's death, or of the
// owner's refusal, it is no matter of taking.
func TestDeadOwner(t *testing.T) {
	gone := &unreached{"n1", context.DeadlineExceeded}
	for _, c := range []struct {
		err   error
		owner string
		takes bool
	}{
		{gone, "n1", true},
		{gone, "n3", false},
		{errors.New("refused"), "n1", false},
	} {
		if err := deadOwner(c.err, "", c.owner); strings.Contains(err.Error(), "holdfast vips") != c.takes || strings.Contains(err.Error(), "take ") {
			t.Errorf("%v of an evacuation of %s: %v", c.err, c.owner, err)
		}
		err := deadOwner(c.err, "shop", c.owner)
		if got := strings.Contains(err.Error(), "holdfast vips take shop"); got != c.takes {
			t.Errorf("%v of %s: %v", c.err, c.owner, err)
		}
		if !errors.Is(err, c.err) {
			t.Errorf("%v is not in %v", c.err, err)
		}
	}
}
