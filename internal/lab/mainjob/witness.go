package mainjob

import (
	"fmt"
	"sync"
	"time"
)

// witness asks one session again and again who is at its other end.
type witness struct {
	name string
	// ask makes one exchange and gives the identity of the other end; "" if
	// this exchange did not tell.
	ask func() (string, error)

	mu       sync.Mutex // guards what follows, and ask
	asked    int
	identity string // the first
	changes  []string
	err      error // the session is dead
}

// once asks once. A session that is dead is not asked again.
func (w *witness) once() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	id, err := w.ask()
	w.asked++
	switch {
	case err != nil:
		w.err = err
	case id == "" || id == w.identity:
	case w.identity == "":
		w.identity = id
	default:
		w.changes = append(w.changes, fmt.Sprintf("%s: %q has become %q", w.name, w.identity, id))
		w.identity = id
	}
	return err
}

// keep asks at each interval until stop is closed. Whoever calls it waits for
// it to return.
func (w *witness) keep(every time.Duration, stop <-chan struct{}) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			if w.once() != nil {
				return
			}
		}
	}
}

// when says what is going on.
type when int32

const (
	quiet   when = iota // nothing: before the first event and between two
	reload              // the configuration changes
	rebal               // flows move between loops
	upgrade             // flows move to a new process
	migrate             // flows move to another host
	whens
)

func (w when) String() string { return [whens]string{"quiet", "config", "loop", "process", "host"}[w] }

// stalls are the longest waits for an answer, by what was going on.
type stalls struct {
	mu      sync.Mutex // guards all below
	longest [whens]time.Duration
	count   [whens]int
	late    [whens]int // that took longer than lateAfter
}

// most is the longest of all.
func (s *stalls) most() (d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.longest {
		d = max(d, x)
	}
	return d
}

// lateAfter is what a person does not notice and a program seldom does.
const lateAfter = 10 * time.Millisecond

func (s *stalls) add(w when, d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.longest[w] = max(s.longest[w], d)
	s.count[w]++
	if d > lateAfter {
		s.late[w]++
	}
}
