package vip

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// The world of the exploration: time in ticks, a lease of two, and messages that are
// lost or late. Every state that can be reached is looked at.
const lease = 2

const nodesMost = 3

var allNodes = []string{"a", "b", "c"}

// answered are the answers that a question has had so far.
type answered struct {
	under bool
	ago   int8 // ticks since it was asked
	has   [nodesMost]bool
	is    [nodesMost]Record
}

func (x *answered) answers() map[string]Record {
	m := map[string]Record{}
	for i, ok := range x.has {
		if ok {
			m[allNodes[i]] = x.is[i]
		}
	}
	return m
}

// host is one node: its disk, its process and its kernel.
type host struct {
	disk Record
	dead bool
	// The process. Times are ticks from now.
	until    int8
	anyBegun bool
	begun    Record
	giving   bool
	agreed   int8 // ticks ago and one more; 0: not
	granted  int8 // the same
	taking   bool
	living   [nodesMost]bool
	told     bool // the record is yielded and the kernel's lease is ended for certain
	round    answered
	start    answered // of a move
	kernel   int8     // what is left of its lease
}

// world is comparable, so that states can be remembered.
type world struct {
	majority bool
	n        int8
	hosts    [nodesMost]host
	// What may still happen.
	begins, cancels, crashes, takes, failures int8
}

func (w *world) circle() Circle {
	return Circle{Nodes: allNodes[:w.n], Majority: w.majority, Lease: lease}
}

const present = 1000 // the clock: all times in a state are relative to it

func (w *world) seat(i int) *Seat {
	h := &w.hosts[i]
	s := NewSeat(allNodes[i], "a", w.circle(), h.disk, 0)
	if h.until > 0 {
		s.until = present + Instant(h.until)
	}
	if h.anyBegun {
		r := h.begun
		s.begun = &r
	}
	s.giving = h.giving
	if h.granted > 0 {
		s.granted = present - Instant(h.granted-1)
	}
	s.taking = h.taking
	for i, ok := range h.living {
		if ok {
			s.living = append(s.living, allNodes[i])
		}
	}
	if h.agreed > 0 {
		s.agreed = present - Instant(h.agreed-1)
	}
	return s
}

// put takes back what the seat knows.
func (w *world) put(i int, s *Seat) {
	h := &w.hosts[i]
	h.until, h.agreed, h.anyBegun, h.begun = 0, 0, s.begun != nil, Record{}
	if s.until > present {
		h.until = int8(s.until - present)
	}
	if s.begun != nil {
		h.begun = *s.begun
	}
	h.giving = s.giving
	h.granted, h.taking, h.living = 0, s.taking, [nodesMost]bool{}
	for _, name := range s.living {
		h.living[slices.Index(allNodes, name)] = true
	}
	if s.granted != 0 && present-s.granted < lease {
		h.granted = int8(present-s.granted) + 1
	}
	if s.agreed != 0 {
		h.agreed = int8(min(present-s.agreed, waitLeases*lease)) + 1
	}
}

// restart is what a process begins with; the kernel's lease is what it was.
func (w *world) restart(i int) {
	h := &w.hosts[i]
	disk, kernel := h.disk, h.kernel
	*h = host{disk: disk, kernel: kernel, dead: h.dead}
	if disk.Holder() == allNodes[i] {
		h.until = kernel
	} else {
		h.kernel = 0
	}
	h.told = true
}

// outcomes of a step: as it should be, the process ends before or after the write, the disk refuses.
const (
	well = iota
	diesBefore
	diesAfter
	refuses
	outcomesMost
)

// do carries a step out; false: not to the end.
func (w *world) do(i int, s *Seat, x Step, how int) bool {
	h := &w.hosts[i]
	if x.Disown {
		h.kernel = 0
	}
	if how == diesBefore {
		w.restart(i)
		return false
	}
	if x.Write != nil {
		if err := x.Write.Check(); err != nil {
			panic(err)
		}
		if how == refuses {
			w.put(i, s)
			return false
		}
		h.disk = *x.Write
		h.told = false
		if how == diesAfter {
			w.restart(i)
			return false
		}
		s.Wrote(*x.Write)
	}
	if x.Own > 0 {
		h.kernel = int8(x.Own)
	}
	w.put(i, s)
	return true
}

// ways are the outcomes of a step that the budget allows.
func (w *world) ways(x Step) []int {
	ways := []int{well}
	if x.Write != nil {
		if w.crashes > 0 {
			ways = append(ways, diesBefore, diesAfter)
		}
		if w.failures > 0 {
			ways = append(ways, refuses)
		}
	}
	return ways
}

func (w *world) spend(how int) {
	switch how {
	case diesBefore, diesAfter:
		w.crashes--
	case refuses:
		w.failures--
	}
}

// each calls f with every next state and what happened.
func (w world) each(f func(w world, what string)) {
	for i := range int(w.n) {
		if w.hosts[i].dead {
			if w.hosts[i].kernel == 0 {
				x := w
				x.hosts[i].dead = false
				x.restart(i)
				f(x, allNodes[i]+" is switched on")
			}
			continue
		}
		w.rounds(i, f)
		w.moves(i, f)
		if w.crashes > 0 {
			x := w
			x.crashes--
			x.restart(i)
			f(x, allNodes[i]+" begins anew")
			x = w
			x.crashes--
			x.hosts[i].dead = true
			f(x, allNodes[i]+" dies")
		}
	}
	f(w.tick(), "tick")
}

func (w world) tick() world {
	for i := range w.hosts {
		h := &w.hosts[i]
		h.until, h.kernel = max(0, h.until-1), max(0, h.kernel-1)
		if h.granted > 0 {
			if h.granted++; h.granted > lease {
				h.granted = 0
			}
		}
		if h.agreed > 0 {
			h.agreed = min(h.agreed+1, waitLeases*lease+1)
		}
		for _, q := range []*answered{&h.round, &h.start} {
			if q.under {
				q.ago = min(q.ago+1, lease)
			}
		}
	}
	return w
}

// hear tells node j what i has, with the outcome of what j does then.
func (w world) hear(j int, r Record, f func(w world, ok bool, what string)) {
	s := w.seat(j)
	x := s.Hear(present, r)
	for _, how := range w.ways(x) {
		next, s := w, w.seat(j)
		ok := next.do(j, s, s.Hear(present, r), how)
		next.spend(how)
		f(next, ok, [...]string{"", ", dies before", ", dies after", ", disk full"}[how])
	}
}

// rounds begins a round, has one more node answer, and ends it at any time.
func (w world) rounds(i int, f func(world, string)) {
	h, me := &w.hosts[i], allNodes[i]
	if !h.round.under {
		x := w
		x.hosts[i].round = answered{under: true}
		f(x, me+" asks")
		return
	}
	for j := range int(w.n) {
		if j == i || h.round.has[j] || w.hosts[j].dead {
			continue
		}
		w.hear(j, h.disk, func(next world, ok bool, what string) {
			f(next, allNodes[j]+" hears "+me+what) // and its answer is lost
			if ok {
				next.hosts[i].round.has[j], next.hosts[i].round.is[j] = true, next.hosts[j].disk
				f(next, allNodes[j]+" answers "+me)
			}
		})
	}
	asked := present - Instant(h.round.ago)
	s := w.seat(i)
	for _, how := range w.ways(s.Round(asked, present, h.round.answers())) {
		next, s := w, w.seat(i)
		next.hosts[i].round = answered{}
		next.do(i, s, s.Round(asked, present, h.round.answers()), how)
		next.spend(how)
		f(next, fmt.Sprintf("%s ends its round (%d)", me, how))
	}
}

// moves are what the giver, the taker and the operator do.
func (w world) moves(i int, f func(world, string)) {
	h, me := &w.hosts[i], allNodes[i]
	try := func(what string, g func(s *Seat) (Step, error), then func(x *world)) {
		s := w.seat(i)
		x, err := g(s)
		if err != nil {
			next := w
			next.put(i, s)
			then(&next)
			f(next, me+" may not "+what)
			return
		}
		for _, how := range w.ways(x) {
			next, s := w, w.seat(i)
			x, _ := g(s)
			next.do(i, s, x, how)
			next.spend(how)
			then(&next)
			f(next, fmt.Sprintf("%s: %s (%d)", me, what, how))
		}
	}
	if w.begins > 0 && !h.start.under {
		for j := range int(w.n) {
			s := w.seat(i)
			if _, err := s.Begin(present, allNodes[j]); err != nil {
				continue
			}
			next := w
			next.begins--
			next.put(i, s)
			next.hosts[i].start = answered{under: true}
			f(next, me+" begins a move to "+allNodes[j])
		}
	}
	if h.start.under {
		for j := range int(w.n) {
			if j == i || h.start.has[j] || !h.anyBegun || w.hosts[j].dead {
				continue
			}
			w.hear(j, h.begun, func(next world, ok bool, what string) {
				f(next, allNodes[j]+" hears of the move"+what)
				if ok {
					next.hosts[i].start.has[j], next.hosts[i].start.is[j] = true, next.hosts[j].disk
					f(next, allNodes[j]+" agrees to the move")
				}
			})
		}
		try("begun", func(s *Seat) (Step, error) { return s.Begun(present, h.start.answers()) },
			func(x *world) { x.hosts[i].start = answered{} })
	}
	if w.cancels > 0 && h.giving {
		try("cancel", (*Seat).Cancel, func(x *world) { x.cancels-- })
	}
	if h.giving {
		try("yield", (*Seat).Yield, func(*world) {})
	}
	if h.disk.Stage == Yielded && h.disk.From == me {
		if !h.told {
			next := w
			s := next.seat(i)
			s.Disowned()
			next.put(i, s)
			next.hosts[i].kernel, next.hosts[i].told = 0, true
			f(next, me+" disowns")
		} else if j := slices.Index(allNodes, h.disk.Owner); !w.hosts[j].dead {
			s := w.seat(j)
			if x, err := s.Accept(present, h.disk); err == nil {
				for _, how := range w.ways(x) {
					next, s := w, w.seat(j)
					x, _ := s.Accept(present, h.disk)
					next.do(j, s, x, how)
					next.spend(how)
					f(next, fmt.Sprintf("%s accepts (%d)", allNodes[j], how))
				}
			}
		}
	}
	if w.takes > 0 {
		w.take(i, f)
	}
}

// take is the operator's word. Without a majority it has to be true: who does not
// answer is off.
func (w world) take(i int, f func(world, string)) {
	answers, holds := map[string]Record{}, ""
	for j := range int(w.n) {
		if j == i || w.hosts[j].dead {
			continue
		}
		answers[allNodes[j]] = w.hosts[j].disk
		if w.hosts[j].until > 0 {
			holds = allNodes[j]
		}
	}
	say := func(answers map[string]Record, holds string) {
		s := w.seat(i)
		x, err := s.Take(present, answers, holds)
		if err != nil {
			return
		}
		for _, how := range w.ways(x) {
			next, s := w, w.seat(i)
			x, _ := s.Take(present, answers, holds)
			next.takes--
			next.do(i, s, x, how)
			next.spend(how)
			f(next, fmt.Sprintf("%s takes it (%d)", allNodes[i], how))
		}
	}
	say(answers, holds)
	if !w.majority {
		return
	}
	for name, r := range answers { // others are cut off, whatever they own
		say(map[string]Record{name: r}, "")
	}
}

// owners are the hosts whose kernel lets the address pass.
func (w *world) owners() (own []string) {
	for i := range int(w.n) {
		if w.hosts[i].kernel > 0 {
			own = append(own, allNodes[i])
		}
	}
	return own
}

// heal makes everything reachable and quick, and tells who owns it in the end.
func (w world) heal() (world, error) {
	for i := range int(w.n) {
		if w.hosts[i].dead {
			for w.hosts[i].kernel > 0 {
				w = w.tick()
			}
			w.hosts[i].dead = false
			w.restart(i)
		}
		w.hosts[i].round, w.hosts[i].start = answered{}, answered{}
		if w.hosts[i].anyBegun {
			s := w.seat(i)
			_, _ = s.Begun(present, nil)
			w.put(i, s)
		}
	}
	w.crashes, w.failures = 0, 0
	for range 20 {
		for i := range int(w.n) {
			if h := w.hosts[i]; h.disk.Stage == Yielded && h.disk.From == allNodes[i] {
				s := w.seat(i)
				s.Disowned()
				w.put(i, s)
				w.hosts[i].kernel = 0
				j := slices.Index(allNodes, h.disk.Owner)
				s = w.seat(j)
				if x, err := s.Accept(present, h.disk); err == nil {
					w.do(j, s, x, well)
				}
			}
			for range 4 { // as long as there is something to write, at once again
				q := answered{}
				for j := range int(w.n) {
					if j == i {
						continue
					}
					s := w.seat(j)
					w.do(j, s, s.Hear(present, w.hosts[i].disk), well)
					q.has[j], q.is[j] = true, w.hosts[j].disk
				}
				s := w.seat(i)
				x := s.Round(present, present, q.answers())
				w.do(i, s, x, well)
				if two := w.owners(); len(two) > 1 {
					return w, fmt.Errorf("while it heals: owners %v", two)
				}
				if x.Write == nil {
					break
				}
			}
		}
		w = w.tick()
	}
	own := w.owners()
	if len(own) != 1 {
		return w, fmt.Errorf("owners %v when everything is reachable again", own)
	}
	for i := range int(w.n) {
		if !w.hosts[i].disk.Same(w.hosts[0].disk) || w.hosts[i].disk.Holder() != own[0] {
			return w, fmt.Errorf("%s owns it, and %s has %v", own[0], allNodes[i], w.hosts[i].disk)
		}
	}
	return w, nil
}

func (w *world) String() string {
	var b strings.Builder
	for i := range int(w.n) {
		h := &w.hosts[i]
		fmt.Fprintf(&b, "  %s: %v, kernel %d, until %d, dead %v, giving %v, agreed %d\n", allNodes[i], h.disk, h.kernel, h.until, h.dead, h.giving, h.agreed)
	}
	return b.String()
}

// settled is a world in which a owns the address.
func settled(n int, majority bool) world {
	w := world{majority: majority, n: int8(n)}
	for i := range n {
		w.hosts[i].disk = Record{Epoch: 1, Stage: Owned, Owner: "a"}
	}
	w.hosts[0].until, w.hosts[0].kernel = lease, lease
	return w
}

// Whatever is lost or late, whoever dies or stands still at any step of either
// transaction: no two kernels let an address pass, and when all nodes are
// reachable again exactly one does.
func TestNeverTwoOwners(t *testing.T) {
	for _, c := range []struct {
		name string
		w    world
	}{
		{"two nodes, a move that comes to harm", func() world { w := settled(2, false); w.begins, w.cancels, w.crashes = 1, 1, 1; return w }()},
		{"two nodes, a full disk", func() world { w := settled(2, false); w.begins, w.cancels, w.failures = 1, 1, 1; return w }()},
		{"two nodes, an owner that is dead", func() world { w := settled(2, false); w.crashes, w.takes = 1, 1; return w }()},
		{"two nodes, there and back", func() world { w := settled(2, false); w.begins = 2; return w }()},
	} {
		t.Run(c.name, func(t *testing.T) { explore(t, c.w, 0) })
	}
}

func explore(t *testing.T, begin world, most int) {
	type from struct {
		w    world
		what string
	}
	came := map[world]from{begin: {}}
	path := func(w world) string {
		var steps []string
		for w != begin {
			f := came[w]
			steps = append(steps, f.what+"\n"+w.String())
			w = f.w
		}
		slices.Reverse(steps)
		return strings.Join(steps, "")
	}
	queue := []world{begin}
	for at := 0; at < len(queue); at++ {
		w := queue[at]
		// To heal takes fifty times as long as to look; every state has one
		// near it that is healed.
		if at%16 == 0 {
			if _, err := w.heal(); err != nil {
				t.Fatalf("after %d states: %v\n%s", at, err, path(w))
			}
		}
		w.each(func(next world, what string) {
			if _, ok := came[next]; ok {
				return
			}
			came[next] = from{w, what}
			if two := next.owners(); len(two) > 1 {
				t.Fatalf("two owners: %v\n%s", two, path(next))
			}
			if most == 0 || len(queue) < most {
				queue = append(queue, next)
			}
		})
	}
	t.Logf("%d states", len(came))
}

// Three nodes have too many states for all of them: random walks through them.
func TestNeverTwoOwnersAmongThree(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 0))
	ended := map[string]int{}
	for walk := range 1000 {
		w := settled(3, true)
		w.begins, w.cancels, w.crashes, w.takes, w.failures = 3, 2, 4, 3, 2
		var steps []string
		for range 80 {
			var next []world
			var what []string
			w.each(func(x world, s string) { next, what = append(next, x), append(what, s) })
			k := r.IntN(len(next))
			w = next[k]
			steps = append(steps, what[k]+"\n"+w.String())
			if two := w.owners(); len(two) > 1 {
				t.Fatalf("walk %d: two owners: %v\n%s", walk, two, strings.Join(steps, ""))
			}
		}
		healed, err := w.heal()
		if err != nil {
			t.Fatalf("walk %d: %v\n%s\n%v", walk, err, strings.Join(steps, ""), &healed)
		}
		ended[healed.owners()[0]]++
	}
	if len(ended) != 3 {
		t.Fatalf("who owned it in the end: %v; the walks go nowhere", ended)
	}
	t.Logf("in the end it was owned by %v", ended)
}
