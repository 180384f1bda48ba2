package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// fleet is what clients of one backend have seen. What a client cannot excuse
// is a failure of the lab.
type fleet struct {
	name string
	to   netip.AddrPort
	// trouble is what excuses errors here; nil: nothing does.
	trouble *trouble
	began   time.Time // of the run, for the text
	// say is told at once of what is not excused; may be nil.
	say func(format string, args ...any)

	mu          sync.Mutex // guards all below
	right       int
	undisturbed int // right, and no trouble near
	excused     map[string]int
	wrong       []string // never excused
	unexplained []string
	messages    int // of WebSockets
}

// note judges one exchange that began at a moment and has ended now.
func (f *fleet) note(what fmt.Stringer, began time.Time, err error) {
	now := time.Now()
	near := f.trouble != nil && f.trouble.near(began, now)
	f.mu.Lock()
	defer f.mu.Unlock()
	text := func() string {
		return fmt.Sprintf("%s at %.2f s, for %v: %v: %v", f.name, now.Sub(f.began).Seconds(), now.Sub(began).Round(time.Millisecond), what, err)
	}
	var w wrongError
	switch {
	case err == nil:
		if f.right++; !near {
			f.undisturbed++
		}
	case errors.As(err, &w):
		f.wrong = append(f.wrong, text())
		f.tell(f.wrong)
	case near:
		if f.excused == nil {
			f.excused = map[string]int{}
		}
		f.excused[kindOf(err)]++
	default:
		f.unexplained = append(f.unexplained, text())
		f.tell(f.unexplained)
	}
}

// tell says the last of all, and after some no more.
func (f *fleet) tell(all []string) {
	const most = 50
	if f.say != nil && len(all) <= most {
		f.say("  %s", all[len(all)-1])
	}
}

// kindOf is an error's text without what differs from one to the next.
func kindOf(err error) string {
	var s statusError
	if errors.As(err, &s) {
		return s.Error()
	}
	for e := err; e != nil; e = errors.Unwrap(e) {
		err = e
	}
	return err.Error()
}

func (f *fleet) excuses() (n int) {
	for _, k := range f.excused {
		n += k
	}
	return n
}

// judge writes the fleet's figures.
func (f *fleet) judge(v *Verdict) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v.Say("%s: %d exchanges and %d WebSocket messages right; excused %v", f.name, f.right, f.messages, f.excused)
	for i, x := range append(append([]string(nil), f.wrong...), f.unexplained...) {
		if i == 20 {
			v.Say("  ...")
			break
		}
		v.Say("  %s", x)
	}
	v.Must(f.right > 0, f.name+": exchanges whose every octet was right", fmt.Sprint(f.right), "more than 0")
	v.Zero(f.name+": wrong octets, answers and ends", len(f.wrong))
	v.Zero(f.name+": errors that nothing explains", len(f.unexplained))
	v.Figure(f.name, map[string]any{"right": f.right, "messages": f.messages, "undisturbed": f.undisturbed,
		"wrong": len(f.wrong), "unexplained": len(f.unexplained), "excused": f.excused})
}

// trouble keeps the times at which an endpoint was down.
type trouble struct {
	mu     sync.Mutex // guards all below
	spans  []span
	counts map[string]int
}

// span is one of them; a zero end is not over.
type span struct{ from, to time.Time }

// aftermath is how long an error may come after its cause is over: by then the
// last connection of before it has been found broken.
const aftermath = time.Second

func (t *trouble) begin(what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.counts == nil {
		t.counts = map[string]int{}
	}
	t.counts[what]++
	t.spans = append(t.spans, span{from: time.Now()})
}

func (t *trouble) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.spans[len(t.spans)-1].to = time.Now()
}

// near says whether there was any between two moments.
func (t *trouble) near(from, to time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.spans {
		if to.After(s.from) && (s.to.IsZero() || from.Before(s.to.Add(aftermath))) {
			return true
		}
	}
	return false
}
