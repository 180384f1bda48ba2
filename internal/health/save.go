package health

import (
	"slices"
	"time"

	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// Saved is all that one process leaves to the next about a backend. Of
// deadlines it holds what is left of them.
type Saved struct {
	Backend     string          `json:"backend"`
	Breaker     string          `json:"breaker,omitempty"` // "" is closed
	BreakerLeft time.Duration   `json:"breaker_left,omitempty"`
	Window      []SavedCounts   `json:"window,omitempty"` // of a closed breaker
	Counts      Counts          `json:"counts"`
	Endpoints   []SavedEndpoint `json:"endpoints"`
}

// SavedEndpoint is what is known of one endpoint.
type SavedEndpoint struct {
	SavedFacts
	// Window are the attempts of the last while.
	Window []SavedCounts `json:"window,omitempty"`
}

func (z *SavedEndpoint) equal(o *SavedEndpoint) bool {
	return z.SavedFacts == o.SavedFacts && slices.Equal(z.Window, o.Window)
}

// SavedFacts are what can be compared of it.
type SavedFacts struct {
	Name      string        `json:"name"`    // full
	Address   string        `json:"address"` // whose health this is
	Admin     string        `json:"admin"`
	Weight    int           `json:"weight"` // of the operator; -1: none
	ReadyIn   time.Duration `json:"ready_in,omitempty"`
	Health    string        `json:"health"` // of the checks
	Run       int           `json:"run,omitempty"`
	Need      int           `json:"need,omitempty"`
	First     bool          `json:"first,omitempty"`
	Why       string        `json:"why,omitempty"`
	Took      time.Duration `json:"took,omitempty"`
	Since     time.Duration `json:"since"` // so long ago
	Agent     SavedAgent    `json:"agent,omitzero"`
	Ejected   time.Duration `json:"ejected,omitempty"` // so long from now on
	Ejections int           `json:"ejections,omitempty"`
	Ejection  time.Duration `json:"ejection,omitempty"` // how long the last one was
	Returned  time.Duration `json:"returned,omitempty"` // so long ago
	Ramp      time.Duration `json:"ramp,omitempty"`     // how long slow start is under way
	// Tried are the attempts since it returned last, or came, as of the last look at
	// them.
	Tried uint64 `json:"tried,omitempty"`
}

// SavedCounts are attempts that came after an instant of a window, so long ago.
type SavedCounts struct {
	Ago      time.Duration `json:"ago"`
	Attempts uint64        `json:"attempts"`
	Failures uint64        `json:"failures"`
}

// save gives what restore needs. total is what was counted as of the last look.
func (w *window) save(now Instant, total Tries) []SavedCounts {
	if w == nil || w.n == 0 || total.Attempts == w.attempts[0] {
		return nil // nothing has come since it began
	}
	out := make([]SavedCounts, w.n)
	for i := range out {
		out[i] = SavedCounts{now.since(w.at[i]), total.Attempts - w.attempts[i], total.Failures - w.failures[i]}
	}
	return out
}

// restore takes over a window. What is counted in this process begins at 0: what
// was before lies below it, and differences are right though they wrap around.
func (w *window) restore(now Instant, all []SavedCounts) {
	w.n = 0
	for _, x := range all[max(0, len(all)-len(w.at)):] {
		w.at[w.n], w.attempts[w.n], w.failures[w.n] = now-Instant(max(0, x.Ago)), -x.Attempts, -x.Failures
		w.n++
	}
}

// SavedAgent is what an agent has said.
type SavedAgent struct {
	Drain bool   `json:"drain,omitempty"`
	Maint bool   `json:"maint,omitempty"`
	Down  bool   `json:"down,omitempty"`
	Less  int    `json:"less,omitempty"` // thousandths of the weight that it does not want
	Line  string `json:"line,omitempty"`
}

// Save gives what Restore needs in another process.
func (b *Backend) Save(now Instant) Saved {
	s := Saved{Backend: b.Name, Counts: b.Counts()}
	if b.breaker.state != ledger.Closed {
		s.Breaker = b.breaker.state.String()
		s.BreakerLeft = b.breaker.until.since(now)
	} else {
		s.Window = b.breaker.window.save(now, b.breaker.seen)
	}
	for _, e := range b.order {
		z := SavedEndpoint{SavedFacts: SavedFacts{
			Name: e.name, Address: e.of.Address(), Admin: e.admin.String(), Weight: e.weight, Health: e.checked.String(),
			Run: e.run, Need: e.need, First: e.first, Why: e.why, Took: e.took, Since: now.since(e.since),
			Agent:     SavedAgent{Drain: e.agent.drain, Maint: e.agent.maint, Down: e.agent.down, Less: whole - e.agent.permille, Line: e.agent.why},
			Ejections: e.times, Ejection: e.last, Tried: e.seen.Attempts - e.base,
		}, Window: e.window.save(now, e.seen)}
		if e.readyAt != 0 {
			z.ReadyIn = max(1, e.readyAt.since(now))
		}
		if e.ejectedUntil != 0 {
			z.Ejected = max(1, e.ejectedUntil.since(now))
		}
		if e.returnedAt != 0 {
			z.Returned = max(1, now.since(e.returnedAt))
		}
		if e.rampFrom != 0 {
			z.Ramp = max(1, now.since(e.rampFrom))
		}
		s.Endpoints = append(s.Endpoints, z)
	}
	return s
}

// Same tells whether two that were saved as of one instant say the same.
func (s *Saved) Same(o *Saved) bool {
	return s.Breaker == o.Breaker && s.BreakerLeft == o.BreakerLeft && slices.Equal(s.Window, o.Window) && !s.Counts.since(o.Counts).any() &&
		slices.EqualFunc(s.Endpoints, o.Endpoints, func(a, b SavedEndpoint) bool { return a.equal(&b) })
}

// Since is what of s was not told by was: what is otherwise in then, which was saved as of
// the same instant as was, and what was counted since.
func (s Saved) Since(then, was Saved) Saved {
	known := make(map[string]*SavedEndpoint, len(was.Endpoints))
	for i := range was.Endpoints {
		known[was.Endpoints[i].Name] = &was.Endpoints[i]
	}
	same := map[string]bool{}
	for i := range then.Endpoints {
		if e := &then.Endpoints[i]; known[e.Name] != nil && e.equal(known[e.Name]) {
			same[e.Name] = true
		}
	}
	all := s.Endpoints
	s.Endpoints = nil
	for _, e := range all {
		if !same[e.Name] {
			s.Endpoints = append(s.Endpoints, e)
		}
	}
	s.Counts = s.Counts.since(was.Counts)
	return s
}

func (c Counts) since(was Counts) Counts {
	out := Counts{Passed: c.Passed - was.Passed, Drained: c.Drained - was.Drained, Failed: c.Failed - was.Failed}
	for reason, n := range c.Ejections {
		if n -= was.Ejections[reason]; n > 0 {
			if out.Ejections == nil {
				out.Ejections = map[string]uint64{}
			}
			out.Ejections[reason] = n
		}
	}
	return out
}

func (c Counts) any() bool { return c.Passed|c.Drained|c.Failed != 0 || len(c.Ejections) > 0 }

// find gives the value of which word is the String; def if there is none, as of
// a word that another release uses.
func find[T interface{ String() string }](word string, def T, all ...T) T {
	for _, v := range all {
		if v.String() == word {
			return v
		}
	}
	return def
}

// Restore takes over what another process has saved, after Govern. Endpoints
// that it did not know stay as Govern left them.
func (b *Backend) Restore(now Instant, s Saved) {
	b.counts.Passed += s.Counts.Passed
	b.counts.Drained += s.Counts.Drained
	b.counts.Failed += s.Counts.Failed
	for reason, n := range s.Counts.Ejections {
		b.counts.Ejections[reason] += n
	}
	if b.of.Breaker != nil {
		state := find(s.Breaker, ledger.Closed, ledger.Open, ledger.HalfOpen)
		if state == ledger.HalfOpen {
			// Which of its probes are still under way nobody knows: new ones go.
			state, s.BreakerLeft = ledger.Open, 0
		}
		if state == ledger.Open {
			b.breaker.state, b.breaker.until, b.breaker.moved = state, now.after(max(1, s.BreakerLeft)), true
		} else {
			b.breaker.moved = b.breaker.moved || b.breaker.state != state
			b.breaker.state, b.breaker.until = state, 0
			b.breaker.window.restore(now, s.Window)
		}
	}
	for _, z := range s.Endpoints {
		e := b.endpoints[z.Name]
		if e == nil {
			continue
		}
		e.admin = find(z.Admin, ledger.Ready, ledger.Quiescing, ledger.Held, ledger.Maintenance)
		e.weight = z.Weight
		if e.readyAt = 0; z.ReadyIn > 0 {
			e.readyAt = now.after(z.ReadyIn)
		}
		if e.of.Address() == z.Address {
			b.restore(e, now, z)
		}
		e.given = false // it is news to this process's ledger
		b.renew(e, now)
	}
}

// restore takes what was known of the server itself.
func (b *Backend) restore(e *endpoint, now Instant, z SavedEndpoint) {
	back := func(d time.Duration) Instant { return now - Instant(max(0, d)) }
	if e.checked != ledger.Unknown {
		if h := find(z.Health, ledger.Unknown, ledger.Checking, ledger.Up, ledger.Down, ledger.Draining); h != ledger.Unknown {
			e.checked, e.run, e.need, e.first = h, z.Run, max(1, z.Need), z.First
			e.why, e.took, e.since = z.Why, z.Took, back(z.Since)
		} else {
			e.checked, e.run = ledger.Up, 0 // it served without being probed
		}
		e.agent = agent{z.Agent.Drain, z.Agent.Maint, z.Agent.Down, min(whole, max(0, whole-z.Agent.Less)), z.Agent.Line}
	}
	if b.of.Eject != nil {
		e.times, e.last = max(0, z.Ejections), z.Ejection
		if e.ejectedUntil = 0; z.Ejected > 0 {
			e.ejectedUntil = now.after(z.Ejected)
		}
		if e.returnedAt = 0; z.Returned > 0 {
			e.returnedAt = back(z.Returned)
		}
		e.base = -z.Tried // as in a window: this process counts from 0
		if e.window != nil {
			e.window.restore(now, z.Window)
		}
	}
	if e.rampFrom = 0; z.Ramp > 0 {
		e.rampFrom = back(z.Ramp)
	}
}
