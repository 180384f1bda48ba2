package lab

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// end ends the process that serves now and waits until it has gone.
func (n *shopNode) end() {
	_ = unix.Kill(n.pid, unix.SIGTERM)
	if !eventually(5*time.Second, func() bool { return !Alive(n.pid) }) {
		killPID(n.pid)
	}
}

// waiter is one request of the queue's scene.
type waiter struct {
	class string
	place int // in the order of arrival
}

func (w waiter) String() string { return fmt.Sprintf("%s %d", w.class, w.place) }

// inTurn puts waiters in the order in which they are due: by class, then by
// arrival.
func inTurn(all []waiter) []waiter {
	rank := map[string]int{"high": 0, "normal": 1, "low": 2}
	due := slices.Clone(all)
	slices.SortStableFunc(due, func(a, b waiter) int {
		if rank[a.class] != rank[b.class] {
			return rank[a.class] - rank[b.class]
		}
		return a.place - b.place
	})
	return due
}

// outOfTurn gives the first place at which two orders differ, -1 for none.
func outOfTurn(got, want []waiter) int {
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			return i
		}
	}
	return -1
}

// queue has requests of three classes wait for the only slot of an endpoint,
// over all loops, moves them, and looks in which order they come to the server.
func (l *ledgerRun) queue(m *mixer) error {
	n := 200
	if l.Short {
		n = 45
	}
	l.phase("%d loops: the order of %d that wait", m.loops, n)
	var mu sync.Mutex
	var got []waiter
	s := &stand{name: "s9", addr: fmt.Sprintf("127.0.1.9:%d", shopPort), seed: l.Seed, gate: make(chan struct{}), at: map[net.Conn]bool{}}
	s.onRequest = func(req *http.Request) {
		w := waiter{class: strings.TrimPrefix(req.URL.Path, "/")}
		if _, err := fmt.Sscanf(req.URL.Query().Get("place"), "%d", &w.place); err == nil && w.place >= 0 {
			mu.Lock()
			got = append(got, w)
			mu.Unlock()
		}
	}
	if err := s.begin(); err != nil {
		return err
	}
	defer s.close()
	c := newCrowd(l.ctx, "127.0.0.1:8102", l.Seed)
	send := func(class string, place int) {
		c.all.Go(func() { // ends with its answer
			x := &caller{to: c.to, seed: c.seed}
			defer x.close()
			c.note(x.ask("/"+class, 50, 0, fmt.Sprintf("&place=%d", place), ""))
		})
	}
	send("normal", -1) // has the slot
	if !eventually(5*time.Second, func() bool { return s.came.Load() == 1 }) {
		close(s.gate)
		return fmt.Errorf("lab: the first request did not come")
	}
	var all []waiter
	for i := range n {
		w := waiter{[]string{"low", "normal", "high"}[mix(l.Seed+uint64(i))%3], i}
		all = append(all, w)
		send(w.class, i)
		// The next one does not go before this one has its place.
		if !eventually(5*time.Second, func() bool {
			st, err := m.node.status(l.ctx)
			return err == nil && st.Queued["queue"] == i+1
		}) {
			close(s.gate)
			return fmt.Errorf("lab: request %d does not wait", i)
		}
		if i%15 == 14 {
			m.upgrade = !l.Short && i == 104
			if err := m.move(l.ctx); err != nil {
				close(s.gate)
				return err
			}
		}
	}
	close(s.gate)
	err := m.during(c.all.Wait)
	want := inTurn(all)
	at := outOfTurn(got, want)
	text := fmt.Sprintf("%d in turn", len(got))
	if at >= 0 {
		text = fmt.Sprintf("the %d. of %d is out of turn: %v, want %v", at+1, len(got), got[min(at, len(got)):min(at+3, len(got))], want[min(at, len(want)):min(at+3, len(want))])
	}
	l.v.Must(at < 0, fmt.Sprintf("order of the queue with %d loops", m.loops), text, fmt.Sprintf("%d in turn", n))
	l.v.Zero(fmt.Sprintf("requests failed in the queue with %d loops", m.loops), c.failed())
	l.v.Must(s.most.Load() == 1, fmt.Sprintf("most requests at its endpoint with %d loops", m.loops), fmt.Sprint(s.most.Load()), "1")
	return err
}
