package node

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// What is remembered is bounded, however fast and however long moments come, and
// none is of a clock that was set back.
func TestHistoryIsBounded(t *testing.T) {
	var h history
	for at := range int64(3 * historyMax) {
		h.add(Moment{At: at})
	}
	if n := len(h.moments); n != historyMax || h.moments[n-1].At != int64(3*historyMax-1) {
		t.Errorf("%d moments, the last at %d", n, h.moments[n-1].At)
	}
	for range 3 * historyMax {
		h.add(Moment{At: 5000})
	}
	if n := len(h.moments); n != historyMax {
		t.Errorf("%d moments", n)
	}
	h.add(Moment{At: 5000 + int64(HistorySpan/time.Second) - 1})
	if n := len(h.moments); n != historyMax {
		t.Errorf("%d moments: those of the last ten minutes are kept", n)
	}
	h.add(Moment{At: 5000 + int64(HistorySpan/time.Second)})
	if n := len(h.moments); n != 2 {
		t.Errorf("%d moments: those before the last ten minutes go", n)
	}
	h.add(Moment{At: 17})
	if n := len(h.moments); n != 1 {
		t.Errorf("%d moments after the clock was set back", n)
	}
}

func marksOf(all []Moment) (out []string) {
	for _, m := range all {
		for _, k := range m.Marks {
			out = append(out, fmt.Sprintf("%s %d", k.What, k.Count))
		}
	}
	return out
}

// awaitMarks waits until these marks, and no other, were noted.
func awaitMarks(t *testing.T, n *Node, want ...string) {
	t.Helper()
	await(t, fmt.Sprintf("marks %q", want), func() bool { return slices.Equal(marksOf(n.History()), want) })
}

// Changes and moves are marked once, also by a successor, which has the whole
// history; and after each of them every connection is accounted for.
func TestHistoryAndBalanceOverMoves(t *testing.T) {
	web, raw, server := free(t), free(t), webServer(t)
	text := site(web, raw, server, "")
	old := start(t, text)
	idle, other := dial(t, web), dial(t, web)
	says200(t, idle)
	says200(t, other)
	for range 5 {
		get(t, web, "/x")
	}
	old.flows(2)
	balanced := func(n *Node, come, open int) {
		t.Helper()
		b := n.balance()
		if !b.Holds || b.Passing != 0 || b.Open != int64(open) || b.come() != uint64(come) || b.LostInAll() != 0 {
			t.Errorf("%+v, want %d open of %d", b, open, come)
		}
	}
	balanced(old.Node, 7, 2)
	old.reload(strings.Replace(text, "raw: {", "raw: { idleTimeout: 1h,", 1))
	awaitMarks(t, old.Node, "reload 1")
	if _, err := old.Rebalance(true); err != nil {
		t.Fatal(err)
	}
	balanced(old.Node, 7, 2)
	awaitMarks(t, old.Node, "reload 1", "rebalance 1")
	all := old.History()
	if m := all[len(all)-1]; m.Open != 2 || !slices.Equal(m.Shares, []Share{{"web", 2}}) || !m.Counted || m.Lost != 0 {
		t.Errorf("%+v", m)
	}

	heir, _, done, given, taken := succeed(t, old, 0, func(*Node) error { return nil }, nothing)
	if !done || given != nil || taken != nil {
		t.Fatalf("done %t, given: %v, taken: %v", done, given, taken)
	}
	awaitMarks(t, heir, "reload 1", "rebalance 1", "upgrade 1")
	if first := heir.History()[0]; first.At != all[0].At {
		t.Errorf("the first moment is at %d, was at %d", first.At, all[0].At)
	}
	balanced(heir, 7, 2)
	says200(t, idle)
	_ = idle.Close()
	await(t, "one flow", func() bool { return heir.flows() == 1 })
	balanced(heir, 7, 1)
	if s := heir.Look(); s.Oldest == nil || s.Oldest.Moves != 2 || s.Connected["web"] != 1 || !s.Balance.Holds {
		t.Errorf("%+v, oldest %+v", s, s.Oldest)
	}
	_ = other.Close()
	await(t, "no flow", func() bool { return heir.flows() == 0 })
	balanced(heir, 7, 0)
}

// A connection that is refused at once is accounted for, and one that a
// predecessor keeps.
func TestBalanceOfWhatNeverServes(t *testing.T) {
	web, raw, server := free(t), free(t), webServer(t)
	r := start(t, strings.Replace(site(web, raw, server, ""), "raw: {", "raw: { deny: [ 127.0.0.0/8 ],", 1))
	if c, err := net.Dial("tcp4", raw); err == nil { // the reset may come sooner
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("it was let in")
		}
		_ = c.Close()
	}
	await(t, "it is counted", func() bool { return r.counts().Refused == 1 })
	if b := r.balance(); !b.Holds || b.Passing != 0 || b.Accepted != 1 {
		t.Errorf("%+v", b)
	}
	// What is missing is noticed.
	r.totals.inherit(&Totals{Accepted: 3})
	if b := r.balance(); b.Holds || b.Moving || b.Passing != 3 {
		t.Errorf("%+v", b)
	}
	r.totals.inherit(&Totals{Stayed: 3})
	if b := r.balance(); !b.Holds {
		t.Errorf("%+v", b)
	}
}

// While nobody looks loops are not asked; what was lost meanwhile is told later.
func TestHistoryUnseen(t *testing.T) {
	r := start(t, site(free(t), free(t), webServer(t), ""))
	r.mu.Lock()
	r.leaving = true // so that nothing is noted but here
	r.mu.Unlock()
	h := &r.history
	later := time.Now().Add(unseenAfter + time.Minute)
	r.observe(later, r.Config())
	r.totals.inherit(&Totals{Lost: 2, Ended: map[string]uint64{"broken": 2}})
	r.observe(later, r.Config())
	h.mu.Lock()
	last := h.moments[len(h.moments)-1]
	h.looked = later
	h.mu.Unlock()
	if last.Counted || last.Lost != 0 {
		t.Errorf("unseen: %+v", last)
	}
	r.observe(later, r.Config())
	h.mu.Lock()
	last = h.moments[len(h.moments)-1]
	h.mu.Unlock()
	if !last.Counted || last.Lost != 2 {
		t.Errorf("seen again: %+v", last)
	}
}

// Ten minutes of many listeners are a small part of what is sent to a successor.
func TestHistoryIsSmall(t *testing.T) {
	var h history
	for at := range int64(historyMax) {
		m := Moment{At: 1e9 + at, Open: 1e6, Counted: true, Policy: 1e6, Marks: []Mark{{"reload", 1}}}
		for k := range historyShares {
			m.Shares = append(m.Shares, Share{strings.Repeat("x", 60) + fmt.Sprint(k), 1e6})
		}
		h.add(m)
	}
	text, err := json.Marshal(h.portable())
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > 1<<20 || len(text) > estateMax/16 {
		t.Errorf("%d octets", len(text))
	}
}
