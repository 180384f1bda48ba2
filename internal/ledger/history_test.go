package ledger_test

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// asker is one that holds a slot, or waits for one.
type asker struct {
	asking ledger.Asking
	of     *config.Backend
	want   string // full name of what it is sticky to
	waiter *ledger.Waiter
	grant  ledger.Grant
	since  int // the operation with which it came
}

// model does what the ledger does, slowly and plainly.
type model struct {
	r        *rand.Rand
	l        *ledger.Ledger
	b        *ledger.Backend
	versions []*config.Backend
	current  *config.Backend
	standing map[string]ledger.Standing
	foreign  map[string]int64
	holding  []*asker
	waiting  []*asker
	rung     []uint64
	paused   bool
	op       int
	wrong    string
}

// history tries a history of everything that can happen to one backend, and compares
// the ledger with the model after each step.
func history(seed uint64) string {
	r := rand.New(rand.NewPCG(seed, 4))
	m := &model{r: r, standing: map[string]ledger.Standing{}, foreign: map[string]int64{}}
	m.l = newLedger(func(_ int, token uint64) { m.rung = append(m.rung, token) })
	m.b = m.l.Backend("b")
	for v := range 2 {
		n := 1 + r.IntN(6)
		if seed%16 == 0 {
			n += 64 // endpoints share the bits of what was tried
		}
		weights := make([]int, n)
		for i := range weights {
			weights[i] = []int{0, 1, 3, 100, 100, 1000}[r.IntN(6)]
		}
		m.versions = append(m.versions, backend(uint64(v+1), weights, func(c *config.Backend) {
			c.Balance = config.Balance(r.IntN(5))
			c.Sticky = &config.Sticky{Kind: config.StickyCookie}
			c.ConnectionsPerEndpoint = r.IntN(4)
			c.QueueMax = []int{0, 2, 100}[r.IntN(3)]
			c.PreferLocal = r.IntN(2) == 0
			if c.Balance == config.Maglev && r.IntN(2) == 0 {
				c.Hash.Load = 101 + r.IntN(100)
			}
			for _, e := range c.Endpoints {
				e.Backup = r.IntN(4) == 0
				e.Zone = []string{"", "here", "there"}[r.IntN(3)]
				e.Node = []string{"", "n1", "n3"}[r.IntN(3)]
				if r.IntN(4) == 0 {
					e.ConnectionsMax = 1 + r.IntN(3)
				}
			}
		}))
	}
	m.govern(1) // so that both are known: what no version has is forgotten
	m.govern(0)
	for m.op = 1; m.op <= 300 && m.wrong == ""; m.op++ {
		m.step()
		m.reconsider()
		m.collect()
		m.judge()
	}
	if m.wrong != "" {
		return fmt.Sprintf("operation %d: %s", m.op-1, m.wrong)
	}
	return ""
}

func (m *model) fail(format string, args ...any) {
	if m.wrong == "" {
		m.wrong = fmt.Sprintf(format, args...)
	}
}

func (m *model) step() {
	r := m.r
	switch r.IntN(16) {
	case 0, 1, 2, 3, 4, 5:
		m.ask()
	case 6, 7, 8, 9:
		if n := len(m.holding); n > 0 {
			i := r.IntN(n)
			a := m.holding[i]
			m.holding = slices.Delete(m.holding, i, i+1)
			a.grant.Account.Release()
		}
	case 10:
		if n := len(m.waiting); n > 0 {
			i := r.IntN(n)
			a := m.waiting[i]
			if g := m.b.Withdraw(a.waiter); g.Endpoint != nil {
				m.fail("withdrew one that had been granted %s unheard", g.Endpoint.Name)
			}
			m.waiting = slices.Delete(m.waiting, i, i+1)
		}
	case 11, 12:
		e := m.any()
		m.b.Stand(e, func(s *ledger.Standing) {
			*s = ledger.Standing{Weight: -1, Permille: 1000}
			switch r.IntN(3) {
			case 0:
				s.Admin = ledger.Admin(r.IntN(4))
			case 1:
				s.Health = ledger.Health(r.IntN(5))
				s.Ejected = r.IntN(4) == 0
				s.Weight = []int{-1, -1, 0, 50}[r.IntN(4)]
				s.Permille = []int{0, 1, 500, 1000, 1000}[r.IntN(5)]
			}
			m.standing[e] = *s
		})
	case 13:
		m.govern(r.IntN(2))
	case 14:
		if m.paused = !m.paused; m.paused {
			m.l.Pause()
		} else {
			m.l.Resume()
		}
	case 15:
		if n := len(m.holding); n > 0 && r.IntN(2) == 0 { // one goes to another process, one comes
			i := r.IntN(n)
			a := m.holding[i]
			m.foreign[a.grant.Account.Name]++
			a.grant.Account.Forget(1)
			m.holding = slices.Delete(m.holding, i, i+1)
			break
		}
		e := m.any()
		if c := m.current; m.foreign[e] > 0 && r.IntN(2) == 0 {
			if of := c.Endpoint(e[len("b/"):]); of != nil {
				m.foreign[e]--
				account := m.b.Endpoint(e)
				account.Import(1)
				m.holding = append(m.holding, &asker{of: c, grant: ledger.Grant{Endpoint: of, Account: account}})
				break
			}
		}
		n := int64(r.IntN(3) - 1)
		m.foreign[e] = max(0, m.foreign[e]+n)
		m.b.Endpoint(e).AddForeign(n)
	}
}

func (m *model) any() string {
	c := m.versions[m.r.IntN(2)]
	return c.Endpoints[m.r.IntN(len(c.Endpoints))].Ref.Name
}

func (m *model) govern(i int) {
	m.current = m.versions[i]
	m.b.Govern(m.current)
}

func (m *model) ask() {
	r := m.r
	a := &asker{of: m.versions[r.IntN(2)], since: m.op}
	a.asking = ledger.Asking{Class: config.Priority(r.IntN(3)), Token: uint64(m.op), Key: r.Uint64N(50), Now: int64(m.op) * 1e9}
	if r.IntN(3) == 0 {
		a.asking.Tried = r.Uint64N(8)
	}
	if r.IntN(3) == 0 {
		i := r.IntN(len(a.of.Endpoints))
		a.asking.Stuck, a.want = 1+i, a.of.Endpoints[i].Ref.Name
	}
	if i := a.asking.Stuck - 1; i >= 0 && (a.asking.Tried&(1<<(i%64)) != 0 || !m.waits(a.want, a.of)) {
		a.want = ""
	}
	before := m.b.Waiting()
	g, w, answer := m.b.Secure(a.of, &a.asking)
	a.grant, a.waiter = g, w
	switch answer {
	case ledger.Secured:
		c := a.of // or, if others wait, the version in force
		if !slices.Contains(c.Endpoints, g.Endpoint) {
			c = m.current
		}
		m.granted(a, c)
	case ledger.Waiting:
		a.asking.Place = w.Place()
		m.waiting = append(m.waiting, a)
	case ledger.Full:
		if a.of.QueueMax == 0 || before < a.of.QueueMax {
			m.fail("full with %d waiting of %d", before, a.of.QueueMax)
		}
	case ledger.None:
		if all := m.fit(a, a.of); len(all) > 0 {
			m.fail("none for one that has tried %b, but %v would serve it", a.asking.Tried, all)
		}
	default:
		m.fail("answer %v", answer)
	}
}

// reconsider: who waits for an endpoint that does not serve it any more waits for any.
func (m *model) reconsider() {
	for _, a := range m.waiting {
		if a.want != "" && !m.waits(a.want, m.current) {
			a.want = ""
		}
	}
}

func (m *model) waits(name string, c *config.Backend) bool {
	s := m.standingOf(name)
	return slices.ContainsFunc(c.Endpoints, func(e *config.Endpoint) bool { return e.Ref.Name == name }) &&
		(s.Admin == ledger.Held || s.Admin <= ledger.Quiescing && s.Health != ledger.Checking && s.Health != ledger.Down && !s.Ejected)
}

// collect fetches what bells were rung for.
func (m *model) collect() {
	for _, token := range m.rung {
		i := slices.IndexFunc(m.waiting, func(a *asker) bool { return a.asking.Token == token })
		if i < 0 {
			m.fail("the bell rang for %d, who does not wait", token)
			return
		}
		a := m.waiting[i]
		m.waiting = slices.Delete(m.waiting, i, i+1)
		if a.grant = m.b.Collect(a.waiter); a.grant.Endpoint == nil {
			m.fail("the bell rang for nothing")
			return
		}
		m.granted(a, m.current)
	}
	m.rung = m.rung[:0]
}

// granted judges one grant, that was made by version c.
func (m *model) granted(a *asker, c *config.Backend) {
	m.holding = append(m.holding, a)
	name := a.grant.Endpoint.Ref.Name
	if !slices.Contains(m.fit(a, c), name) {
		m.fail("granted %s (standing %+v, stuck to %q, tried %b), but only %v fit", name, m.standingOf(name), a.want, m.tried(a, c), m.fit(a, c))
	}
	if a.grant.Account.Name != name {
		m.fail("granted %s with the account of %s", name, a.grant.Account.Name)
	}
	limit := m.limit(name)
	if n := m.b.Endpoint(name).InUse() + m.foreign[name]; limit > 0 && n > limit {
		m.fail("granted %s as number %d of %d", name, n, limit)
	}
	if m.paused && limit > 0 {
		m.fail("granted %s, which has a limit, while paused", name)
	}
	for _, o := range m.waiting {
		if o.since < m.op && o.comesBefore(a) && slices.Contains(m.fit(o, m.current), name) {
			m.fail("granted %s to class %v place %d before class %v place %d", name, a.asking.Class, a.asking.Place, o.asking.Class, o.asking.Place)
		}
	}
}

func (a *asker) comesBefore(o *asker) bool {
	if a.asking.Class != o.asking.Class {
		return a.asking.Class > o.asking.Class
	}
	return o.asking.Place == 0 || a.asking.Place < o.asking.Place
}

func (m *model) standingOf(name string) ledger.Standing {
	if s, ok := m.standing[name]; ok {
		return s
	}
	return ledger.Standing{Weight: -1, Permille: 1000}
}

func (m *model) tried(a *asker, c *config.Backend) uint64 {
	if a.of == c {
		return a.asking.Tried
	}
	return 0
}

// limit is what the version in force says, or the other one of what that has not.
func (m *model) limit(name string) int64 {
	return m.b.Endpoint(name).Limit()
}

// fit gives the endpoints of c that may serve a, with room or without.
func (m *model) fit(a *asker, c *config.Backend) []string {
	tried := m.tried(a, c)
	for i, e := range c.Endpoints {
		s := m.standingOf(e.Ref.Name)
		if e.Ref.Name != a.want || tried&(1<<(i%64)) != 0 {
			continue
		}
		if s.Admin == ledger.Held || s.Admin <= ledger.Quiescing && s.Health != ledger.Checking && s.Health != ledger.Down && !s.Ejected {
			return []string{a.want}
		}
	}
	for _, backup := range []bool{false, true} {
		var out []string
		for i, e := range c.Endpoints {
			s := m.standingOf(e.Ref.Name)
			w := e.Weight
			if s.Weight >= 0 {
				w = s.Weight
			}
			if e.Backup == backup && tried&(1<<(i%64)) == 0 && s.Admin == ledger.Ready && s.Health != ledger.Checking && s.Health != ledger.Down && s.Health != ledger.Draining && !s.Ejected && w*s.Permille > 0 {
				out = append(out, e.Ref.Name)
			}
		}
		if out != nil {
			return out
		}
	}
	return nil
}

// judge looks at what must hold after every operation.
func (m *model) judge() {
	held := map[string]int64{}
	for _, a := range m.holding {
		held[a.grant.Account.Name]++
	}
	sum := int64(0)
	for _, c := range m.versions {
		for i, e := range c.Endpoints {
			if n := m.b.Endpoint(e.Ref.Name).InUse(); n != held[e.Ref.Name] {
				m.fail("%s holds %d, not %d", e.Name, n, held[e.Ref.Name])
			}
			if n := m.b.Endpoint(e.Ref.Name).Foreign(); n != m.foreign[e.Ref.Name] {
				m.fail("%s counts %d of another process, not %d", e.Name, n, m.foreign[e.Ref.Name])
			}
			if c == m.current {
				want := int64(e.ConnectionsMax)
				if want == 0 {
					want = int64(c.ConnectionsPerEndpoint)
				}
				if got := m.limit(e.Ref.Name); got != want {
					m.fail("the limit of endpoint %d is %d, not %d", i, got, want)
				}
			}
		}
	}
	for _, n := range held {
		sum += n
	}
	if n := m.b.InUse(); n != sum {
		m.fail("the backend holds %d, not %d", n, sum)
	}
	if n := m.b.Waiting(); n != len(m.waiting) {
		m.fail("%d wait, not %d", n, len(m.waiting))
	}
	for _, a := range m.waiting {
		for _, name := range m.fit(a, m.current) {
			e, s := m.b.Endpoint(name), m.standingOf(name)
			if e.Room() && s.Admin != ledger.Held {
				m.fail("class %v place %d waits, but %s has room (%d of %d, standing %+v)", a.asking.Class, a.asking.Place, name, e.InUse(), e.Limit(), s)
			}
		}
	}
}
