package vip

import (
	"strings"
	"testing"
)

var two = Circle{Nodes: []string{"a", "b"}, Lease: 100}

// rounds lets time pass with rounds that nobody answers, and tells when the seat first
// owned the address; 0: not at all.
func rounds(t *testing.T, s *Seat, from, to Instant) Instant {
	t.Helper()
	for now := from; now < to; now += 10 {
		for range 5 {
			x := s.Round(now, now, nil)
			if x.Own > 0 {
				return now
			}
			if x.Write == nil {
				break
			}
			s.Wrote(*x.Write)
		}
	}
	return 0
}

// Who takes an address from a dead owner waits until its leases have ended, then owns it
// for as long as the other node is off; after it has begun anew it is silent until somebody
// confirms it.
func TestTakeFromTheDead(t *testing.T) {
	s := NewSeat("b", "a", two, Record{Epoch: 4, Stage: Owned, Owner: "a"}, 0)
	if at := rounds(t, s, 1000, 3000); at != 0 {
		t.Fatalf("owned at %d without a claim", at)
	}
	x, err := s.Take(3000, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	s.Wrote(*x.Write)
	at := rounds(t, s, 3000, 9000)
	if at < 3000+waitLeases*Instant(two.Lease) || at > 3300 {
		t.Fatalf("claimed at 3000, owned at %d", at)
	}
	for now := at; now < at+1000; now += 30 {
		if x := s.Round(now, now, nil); x.Own == 0 {
			t.Fatalf("at %d: %+v", now, x)
		}
	}
	again := NewSeat("b", "a", two, s.Record(), 0)
	if at := rounds(t, again, 9000, 12000); at != 0 {
		t.Fatalf("owned at %d though nobody confirmed it", at)
	}
	if x := again.Round(12000, 12000, nil); !strings.Contains(x.Why, "vips take") {
		t.Fatalf("silent for %q", x.Why)
	}
	if x := again.Round(12000, 12000, map[string]Record{"a": again.Record()}); x.Own != two.Lease {
		t.Fatalf("confirmed: %+v", x)
	}
	// The kernel's lease of the process before is as good.
	if x := NewSeat("b", "a", two, s.Record(), 12050).Round(12000, 12000, nil); x.Own != two.Lease {
		t.Fatalf("with what the process before it left: %+v", x)
	}
}

// A node that is alive is not robbed, and its lease is counted from the question.
func TestTakeFromTheLiving(t *testing.T) {
	r := Record{Epoch: 4, Stage: Owned, Owner: "a"}
	a := NewSeat("a", "a", two, r, 0)
	if x := a.Round(1000, 1040, map[string]Record{"b": r}); x.Own != 60 || a.Until() != 1100 {
		t.Fatalf("%+v until %d", x, a.Until())
	}
	b := NewSeat("b", "a", two, r, 0)
	if _, err := b.Take(1050, map[string]Record{"a": r}, "a"); err == nil {
		t.Fatal("taken from an owner that answers")
	}
	x, err := b.Take(1050, nil, "") // the operator is wrong
	if err != nil {
		t.Fatal(err)
	}
	b.Wrote(*x.Write)
	x = a.Hear(1060, b.Record())
	if x.Disown || x.Write == nil || x.Write.Epoch <= b.Record().Epoch || x.Write.Owner != "a" {
		t.Fatalf("a claim while the lease lasts: %+v", x)
	}
}

// Without a majority a yielded address is owned at once, though a third node is off.
func TestYieldWhileAThirdIsOff(t *testing.T) {
	c := Circle{Nodes: []string{"a", "b", "c"}, Lease: 100}
	b := NewSeat("b", "a", c, Record{Epoch: 2, Stage: Moving, From: "a", Owner: "b"}, 0)
	yielded := Record{Epoch: 2, Stage: Yielded, From: "a", Owner: "b"}
	x, err := b.Accept(1000, yielded)
	if err != nil {
		t.Fatal(err)
	}
	b.Wrote(*x.Write)
	if x := b.Round(1001, 1001, map[string]Record{"a": yielded}); x.Own != c.Lease {
		t.Fatalf("%+v", x)
	}
	c.Majority = true
	b = NewSeat("b", "a", c, Record{Epoch: 2, Stage: Moving, From: "a", Owner: "b"}, 0)
	x, err = b.Accept(1000, yielded)
	if err != nil {
		t.Fatal(err)
	}
	b.Wrote(*x.Write)
	if x := b.Round(1001, 1001, nil); x.Own != 0 || x.Why == "" {
		t.Fatalf("alone, where a majority has to agree: %+v", x)
	}
}

// A move that is undone while the disk refuses is undone by a later round: else no other
// one could begin.
func TestCancelThatIsNotWritten(t *testing.T) {
	s := NewSeat("a", "a", two, Record{Epoch: 4, Stage: Owned, Owner: "a"}, 1000)
	r, err := s.Begin(1, "b")
	if err == nil {
		_, err = s.Begun(1, map[string]Record{"b": r})
	}
	if err != nil {
		t.Fatal(err)
	}
	s.Wrote(r)
	if _, err := s.Cancel(); err != nil {
		t.Fatal(err)
	}
	x := s.Round(2, 2, map[string]Record{"b": r})
	if x.Write == nil || x.Write.Stage != Claimed || x.Write.Owner != "a" || s.Giving() {
		t.Errorf("after a cancel that was not written: %+v, giving %v", x, s.Giving())
	}
}
