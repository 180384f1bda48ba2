package health_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/health"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// judged is a judge with a clock of its own, and what the ledger would count.
type judged struct {
	*testing.T
	*health.Backend
	of    *config.Backend
	now   health.Instant
	tries map[string]health.Tries
	total health.Tries
	state map[string]ledger.Standing
}

// backend is one with endpoints of these names, each "name" or "name=address".
func backend(x config.Backend, names ...string) *config.Backend {
	x.Ref.Name = "web"
	for _, n := range names {
		n, address, _ := strings.Cut(n, "=")
		e := &config.Endpoint{Backend: "web", Name: n, Host: address, Port: 80, Weight: 100}
		e.Ref.Name = "web/" + n
		x.Endpoints = append(x.Endpoints, e)
	}
	return &x
}

var checked = config.Check{Kind: config.CheckHTTP, Interval: 2 * time.Second, FastInterval: 500 * time.Millisecond, DownInterval: 4 * time.Second, Rise: 2, Fall: 3}

func judge(t *testing.T, of *config.Backend, fresh bool) *judged {
	j := &judged{T: t, Backend: health.New("web"), of: of, now: 1, tries: map[string]health.Tries{}, state: map[string]ledger.Standing{}}
	j.Govern(j.now, of, fresh)
	return j
}

// take puts in force what has changed and gives the transitions as words.
func (j *judged) take() string {
	t := j.Take()
	for name, s := range t.Standings {
		j.state[name] = s
	}
	var out []string
	for _, x := range t.Transitions {
		out = append(out, strings.TrimSuffix(strings.TrimPrefix(x.Endpoint, "web/")+" "+string(x.What)+" "+x.State, " "+string(x.What)))
	}
	return strings.Join(out, ", ")
}

func (j *judged) want(what string) {
	j.Helper()
	if got := j.take(); got != what {
		j.Fatalf("at %v: %q, want %q", time.Duration(j.now), got, what)
	}
}

// wantState wants a standing in the words of its parts.
func (j *judged) wantState(name, what string) {
	j.Helper()
	j.take()
	s := j.state["web/"+name]
	got := fmt.Sprintf("%v %v", s.Admin, s.Health)
	if s.Ejected {
		got += " ejected"
	}
	if s.Weight >= 0 {
		got += fmt.Sprintf(" weight %d", s.Weight)
	}
	if s.Permille != 1000 {
		got += fmt.Sprintf(" %d‰", s.Permille)
	}
	if got != what {
		j.Fatalf("%s is %q, want %q", name, got, what)
	}
}

func (j *judged) probe(name, result string) {
	r := health.Result{Good: result != "bad", Drain: result == "drain", Why: result, Took: time.Millisecond}
	if line, ok := strings.CutPrefix(result, "agent "); ok {
		said, err := health.ParseAgent(line)
		if err != nil {
			j.Fatal(err)
		}
		r.Said = said
	}
	j.Probed(j.now, "web/"+name, r)
}

// pass lets time pass, with a tick at each second and when one is due.
func (j *judged) pass(d time.Duration) {
	end := j.now + health.Instant(d)
	for j.now < end {
		next := min(end, j.now+health.Instant(time.Second))
		if at := j.Next(j.now); at > j.now {
			next = min(next, at)
		}
		j.now = next
		j.Tick(j.now, j.total, func(name string) health.Tries { return j.tries[name] })
	}
}

// serve lets clients meet n outcomes at an endpoint.
func (j *judged) serve(name string, good bool, n int) {
	t := j.tries["web/"+name]
	t.Attempts += uint64(n)
	j.total.Attempts += uint64(n)
	if good {
		t.Consecutive = 0
	} else {
		t.Failures += uint64(n)
		j.total.Failures += uint64(n)
		t.Consecutive += n
	}
	j.tries["web/"+name] = t
}

// Each line is what probes find and what is said about it in the end; the state
// that endpoint a is in then; and how long the next probe is away.
func TestChecks(t *testing.T) {
	for _, c := range []struct {
		name, fresh, probes, says, state string
		next                             time.Duration
	}{
		{"before the first probe it is held", "fresh", "", "", "held checking", 500 * time.Millisecond},
		{"one good probe at the start", "fresh", "good", "a up", "ready up", 2 * time.Second},
		{"a new one needs as many as rise", "", "good", "", "held checking", 500 * time.Millisecond},
		{"and has them", "", "good good", "a up", "ready up", 2 * time.Second},
		{"in a row", "", "good bad good", "", "held checking", 500 * time.Millisecond},
		{"dead from the start", "fresh", "bad bad bad", "a down", "ready down", 4 * time.Second},
		{"a flake at the start", "fresh", "bad good", "a up", "ready up", 2 * time.Second},
		{"fewer than fall", "fresh", "good bad bad", "a up", "ready up", 500 * time.Millisecond},
		{"fewer than fall, again and again", "fresh", "good bad bad good bad bad good", "a up", "ready up", 2 * time.Second},
		{"fall", "fresh", "good bad bad bad", "a up, a down", "ready down", 4 * time.Second},
		{"on the way up", "fresh", "bad bad bad good", "a down", "ready down", 500 * time.Millisecond},
		{"rise", "fresh", "bad bad bad good good", "a down, a up", "ready up", 2 * time.Second},
		{"rise, not in a row", "fresh", "bad bad bad good bad good", "a down", "ready down", 500 * time.Millisecond},
		{"drain at once", "fresh", "good drain", "a up, a draining", "ready draining", 2 * time.Second},
		{"and back at once", "fresh", "good drain good", "a up, a draining, a up", "ready up", 2 * time.Second},
		{"draining from the start", "fresh", "drain", "a draining", "ready draining", 2 * time.Second},
		{"draining dies", "fresh", "drain bad bad bad", "a draining, a down", "ready down", 4 * time.Second},
		{"from down to draining", "fresh", "bad bad bad drain drain", "a down, a draining", "ready draining", 2 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := judge(t, backend(config.Backend{Check: &checked}, "a"), c.fresh != "")
			j.take()
			for _, p := range strings.Fields(c.probes) {
				j.probe("a", p)
			}
			j.want(c.says)
			j.wantState("a", c.state)
			if d := j.Interval("web/a"); d != c.next {
				t.Errorf("the next probe is %v away, want %v", d, c.next)
			}
		})
	}
}

// The words of agents, as HAProxy's manual has them.
func TestParseAgent(t *testing.T) {
	for _, c := range []struct {
		line string
		want string // admin, health, thousandths
	}{
		{"up\n", "0 1 -1"},
		{"ready up 75%\n", "1 1 750"},
		{"DRAIN", "2 0 -1"},
		{"maint, 50%\r\nmore", "3 0 500"},
		{"down#disk is full, up again soon", "0 2 -1"},
		{"stopped", "0 2 -1"},
		{"failed\t0%", "0 2 0"},
		{"150%", "0 0 1000"},
		{"maxconn:30 up", "0 1 -1"},
		{"", "error"},
		{"hello", "error"},
		{"-5%", "error"},
		{"#up", "error"},
	} {
		got := "error"
		if s, err := health.ParseAgent(c.line); err == nil {
			got = fmt.Sprint(s.Admin, s.Health, s.Permille)
		}
		if got != c.want {
			t.Errorf("%q: %s, want %s", c.line, got, c.want)
		}
	}
}

// What an agent says, what an operator orders and what checks find do not
// overwrite one another.
func TestAxesAreApart(t *testing.T) {
	x := checked
	x.Agent = &config.Agent{Port: 1, Interval: time.Second}
	j := judge(t, backend(config.Backend{Check: &x}, "a"), true)
	for _, c := range []struct{ do, says, state string }{
		{"agent up 50%", "a agent 50%", "held checking 500‰"},
		{"good", "a up", "ready up 500‰"},
		{"agent maint", "a agent maintenance", "maintenance up 500‰"},
		{"quiesce", "a ordered quiescing", "quiescing up 500‰"},
		{"agent ready", "a agent 50%", "quiescing up 500‰"},
		{"agent maint 100%", "a agent maintenance", "quiescing up"},
		{"ready", "a ordered ready", "maintenance up"},
		{"agent drain", "a agent draining", "ready draining"},
		{"agent down", "a agent down", "ready down"},
		{"good", "", "ready down"},
		{"agent ready up", "a agent 100%", "ready up"},
		{"weight 30", "a ordered weight 30", "ready up weight 30"},
		{"agent ready up", "", "ready up weight 30"},
		{"maint", "a ordered maintenance", "maintenance up weight 30"},
		{"bad", "", "maintenance up weight 30"},
		{"bad", "", "maintenance up weight 30"},
		{"bad", "a down", "maintenance down weight 30"},
		{"ready", "a ordered ready", "ready down weight 30"},
	} {
		switch word, _, _ := strings.Cut(c.do, " "); word {
		case "agent", "good", "bad":
			j.probe("a", c.do)
		case "weight":
			j.Order(j.now, "web/a", health.Order{Weight: 30, Weigh: true})
		case "quiesce":
			j.Order(j.now, "web/a", health.Order{Admin: ledger.Quiescing})
		case "maint":
			j.Order(j.now, "web/a", health.Order{Admin: ledger.Maintenance})
		case "ready":
			j.Order(j.now, "web/a", health.Order{Admin: ledger.Ready})
		}
		if got := j.take(); got != c.says {
			t.Fatalf("%s: %q, want %q", c.do, got, c.says)
		}
		j.wantState("a", c.state)
	}
}

// An agent alone is the check, too: one that does not answer is down.
func TestAgentAlone(t *testing.T) {
	j := judge(t, backend(config.Backend{Check: &config.Check{Kind: config.CheckAgent, Interval: time.Second, Rise: 1, Fall: 2, Agent: &config.Agent{Port: 1, Interval: time.Second}}}, "a"), true)
	j.wantState("a", "held checking")
	j.probe("a", "agent up 20%")
	j.wantState("a", "ready up 200‰")
	j.probe("a", "bad")
	j.wantState("a", "ready up 200‰")
	j.probe("a", "bad")
	j.wantState("a", "ready down 200‰")
	j.probe("a", "agent drain")
	j.wantState("a", "ready draining 200‰")
}

// A hold ends by itself, and a later order outlives the time of an earlier one.
func TestHold(t *testing.T) {
	j := judge(t, backend(config.Backend{}, "a"), true)
	j.take()
	hold := health.Order{Admin: ledger.Held, For: 5 * time.Second}
	j.Order(j.now, "web/a", hold)
	j.want("a ordered held")
	j.pass(4 * time.Second)
	j.wantState("a", "held unknown")
	j.pass(time.Second)
	j.wantState("a", "ready unknown")
	j.Order(j.now, "web/a", hold)
	j.Order(j.now, "web/a", health.Order{Admin: ledger.Maintenance})
	j.pass(10 * time.Second)
	j.wantState("a", "maintenance unknown")
}

// What comes back gets its weight step by step; what was there from the start
// has it at once.
func TestSlowStart(t *testing.T) {
	j := judge(t, backend(config.Backend{Check: &checked, SlowStart: 10 * time.Second}, "a"), true)
	j.probe("a", "good")
	j.wantState("a", "ready up")
	for range 3 {
		j.probe("a", "bad")
	}
	j.wantState("a", "ready down")
	j.probe("a", "good")
	j.probe("a", "good")
	last, seen := 0, map[int]bool{}
	for range 100 {
		j.take()
		p := j.state["web/a"].Permille
		if p < last {
			t.Fatalf("%d‰ after %d‰", p, last)
		}
		last, seen[p] = p, true
		j.pass(100 * time.Millisecond)
	}
	j.wantState("a", "ready up")
	if len(seen) < 20 || len(seen) > 22 || !seen[47] {
		t.Errorf("steps %v, want some 20 from 47", seen)
	}
	if n := j.Next(j.now); n != 0 {
		t.Errorf("there is something to do at %v after it", time.Duration(n))
	}
	j.Order(j.now, "web/a", health.Order{Admin: ledger.Quiescing})
	j.wantState("a", "quiescing up")
	j.Order(j.now, "web/a", health.Order{Admin: ledger.Ready}) // a server that was restarted is cold
	j.wantState("a", "ready up 47‰")
}

var ejecting = config.Eject{Consecutive: 5, Rate: 50, Least: 20, Window: 10 * time.Second, Time: 10 * time.Second, TimeMax: 35 * time.Second, Share: 50}

func TestEjection(t *testing.T) {
	j := judge(t, backend(config.Backend{Eject: &ejecting}, "a", "b", "c", "d"), true)
	j.take()
	j.serve("a", false, 4)
	j.pass(time.Second)
	j.want("")
	j.serve("a", false, 1)
	j.pass(time.Second)
	j.want("a ejected")
	j.wantState("a", "ready unknown ejected")
	j.pass(9 * time.Second)
	j.want("")
	j.pass(time.Second)
	j.want("a returned in service")
	// What failed before is forgotten, also though no attempt was good since.
	j.pass(time.Second)
	j.want("")
	// The next ones are longer, up to a bound.
	for _, long := range []time.Duration{20, 35, 35} {
		j.serve("a", false, 5)
		j.pass(time.Second)
		j.want("a ejected")
		j.pass(long*time.Second - time.Second)
		j.want("")
		j.pass(time.Second)
		j.want("a returned in service")
	}
	// Standing well for as long takes one back.
	for range 35 + 35 + 35 + 35 {
		j.serve("a", true, 1)
		j.pass(time.Second)
	}
	j.serve("a", false, 5)
	j.pass(time.Second)
	j.want("a ejected")
	j.pass(10 * time.Second)
	j.want("a returned in service")
}

// A rate ejects, too, and only what is within the window counts.
func TestEjectionByRate(t *testing.T) {
	j := judge(t, backend(config.Backend{Eject: &ejecting}, "a", "b"), true)
	j.take()
	mix := func(good, bad int) {
		for range bad {
			j.serve("a", false, 1)
			j.serve("a", true, 1)
			good--
		}
		j.serve("a", true, good)
	}
	mix(100, 30)
	j.pass(11 * time.Second)
	j.want("")
	mix(9, 9) // half of them, but too few
	j.pass(2 * time.Second)
	j.want("")
	mix(11, 11) // those from before the last ten seconds would hide these
	j.pass(2 * time.Second)
	j.want("a ejected")
}

// Who fails for as long as it was out has not stood well for so long.
func TestEjectionGrowsWhereAShareFails(t *testing.T) {
	x := ejecting
	x.Time = time.Second
	j := judge(t, backend(config.Backend{Eject: &x}, "a", "b"), true)
	j.pass(time.Second)
	j.take()
	for _, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
		for range 20 {
			j.serve("a", false, 1)
			j.serve("a", true, 1)
		}
		j.pass(time.Second)
		j.want("a ejected")
		if got := j.Views(j.now)[0].Ejected; got != want {
			t.Errorf("ejected for %v, want %v", got, want)
		}
		j.pass(want)
		j.want("a returned in service")
	}
}

// No more are out than the share, of two always one may go, and never the last.
func TestEjectionIsCapped(t *testing.T) {
	for _, c := range []struct {
		share, all, want int
	}{{50, 4, 2}, {50, 5, 2}, {10, 4, 1}, {10, 2, 1}, {10, 1, 0}, {90, 2, 1}, {99, 10, 9}, {100, 2, 2}, {100, 1, 1}} {
		x := ejecting
		x.Share = c.share
		var names []string
		for i := range c.all {
			names = append(names, fmt.Sprint("e", i))
		}
		j := judge(t, backend(config.Backend{Eject: &x}, names...), true)
		for _, n := range names {
			j.serve(n, false, 9)
		}
		j.pass(time.Second)
		said := j.take()
		if got := strings.Count(said, "ejected"); got != c.want {
			t.Errorf("%d %% of %d: %d ejected, want %d: %s", c.share, c.all, got, c.want, said)
		}
		if got := strings.Count(said, "spared"); got != c.all-c.want {
			t.Errorf("%d %% of %d: %d spared: %s", c.share, c.all, got, said)
		}
		j.pass(2 * time.Second)
		if said := j.take(); said != "" {
			t.Errorf("%d %% of %d: said again: %s", c.share, c.all, said)
		}
		if n := j.Counts().Ejections; n["consecutive"] != uint64(c.want) || n["spared"] != uint64(c.all-c.want) {
			t.Errorf("%d %% of %d: counts %v", c.share, c.all, n)
		}
	}
}

func TestBreaker(t *testing.T) {
	of := backend(config.Backend{Breaker: &config.Breaker{Rate: 50, Least: 10, Window: 10 * time.Second, Open: 5 * time.Second, Probes: 3}}, "a")
	j := judge(t, of, true)
	want := func(state ledger.BreakerState, move string) {
		t.Helper()
		if got := j.take(); got != move || j.Breaker() != state {
			t.Fatalf("%q and %v, want %q and %v", got, j.Breaker(), move, state)
		}
	}
	j.serve("a", true, 100)
	j.pass(time.Second)
	j.serve("a", false, 9)
	j.pass(20 * time.Second)
	want(ledger.Closed, "")
	j.serve("a", false, 10)
	j.pass(time.Second)
	want(ledger.Open, " breaker open")
	j.pass(5 * time.Second)
	want(ledger.HalfOpen, " breaker half-open")
	j.serve("a", true, 2)
	j.serve("a", false, 1)
	j.pass(time.Second)
	want(ledger.Open, " breaker open")
	j.pass(5 * time.Second)
	j.serve("a", true, 2)
	j.pass(time.Second)
	want(ledger.HalfOpen, " breaker half-open")
	j.serve("a", true, 1)
	j.pass(time.Second)
	want(ledger.Closed, " breaker closed")
	// Half-open, and none of its probes is heard of: others go.
	j.serve("a", false, 20)
	j.pass(time.Second)
	j.pass(5 * time.Second)
	j.Take()
	j.pass(5 * time.Second)
	if o := j.Take().Breaker; o == nil || o.State != ledger.HalfOpen || o.Probes != 3 {
		t.Errorf("lost probes are not replaced: %+v", o)
	}
}

// A new configuration leaves what it does not change as it was.
func TestGovern(t *testing.T) {
	one := backend(config.Backend{Check: &checked, Eject: &ejecting}, "a", "b=old.example")
	j := judge(t, one, true)
	j.probe("a", "good")
	j.probe("b", "good")
	j.Order(j.now, "web/a", health.Order{Admin: ledger.Quiescing})
	j.Order(j.now, "web/a", health.Order{Weight: 7, Weigh: true})
	j.Order(j.now, "web/b", health.Order{Weight: 7, Weigh: true})
	two := backend(config.Backend{Check: &checked, Eject: &ejecting}, "a", "b=new.example", "c")
	two.Endpoints[1].Weight = 50
	j.Govern(j.now, two, false)
	j.wantState("a", "quiescing up weight 7")
	j.wantState("b", "held checking")
	j.wantState("c", "held checking")
	if !j.Unprobed("web/b") || !j.Unprobed("web/c") || j.Unprobed("web/a") {
		t.Error("who is unprobed is wrong")
	}
	// Without checks all serve; with them again nobody stops serving for it.
	j.Govern(j.now, backend(config.Backend{}, "a", "b=new.example", "c"), false)
	j.wantState("c", "ready unknown")
	j.Govern(j.now, two, false)
	j.wantState("c", "ready up")
	j.probe("c", "bad")
	j.probe("c", "bad")
	j.wantState("c", "ready up")
	j.probe("c", "bad")
	j.wantState("c", "ready down")
	if n := j.Names(); !slices.Equal(n, []string{"web/a", "web/b", "web/c"}) {
		t.Errorf("names %v", n)
	}
}

// Everything that is known goes along to the next process: what the next second
// brings there is what it would have brought here.
func TestSaveAndRestore(t *testing.T) {
	x := checked
	x.Agent = &config.Agent{Port: 1, Interval: time.Second}
	of := backend(config.Backend{Check: &x, Eject: &ejecting, SlowStart: 10 * time.Second,
		Breaker: &config.Breaker{Rate: 50, Least: 10, Window: 10 * time.Second, Open: 50 * time.Second, Probes: 3}}, "a", "b", "c", "d", "e", "f")
	j := judge(t, of, true)
	for _, n := range []string{"a", "b", "c", "d", "e"} {
		j.probe(n, "good")
	}
	j.pass(time.Second)
	j.Order(j.now, "web/a", health.Order{Admin: ledger.Held, For: 30 * time.Second})
	j.Order(j.now, "web/a", health.Order{Weight: 3, Weigh: true})
	j.serve("b", false, 20)
	j.pass(3 * time.Second) // b is out for 7 more, the breaker is open for 47
	for range 3 {
		j.probe("c", "bad")
	}
	j.probe("c", "good")
	j.probe("d", "agent drain 40%")
	for _, r := range []string{"bad", "bad", "bad", "good", "good"} {
		j.probe("e", r)
	}
	j.pass(3 * time.Second) // e is on its way to its weight
	j.take()
	octets, err := json.Marshal(j.Save(j.now))
	if err != nil {
		t.Fatal(err)
	}
	var saved health.Saved
	if err := json.Unmarshal(octets, &saved); err != nil {
		t.Fatal(err)
	}
	heir := judge(t, of, true)
	heir.now = health.Instant(time.Hour)
	heir.Govern(heir.now, of, true)
	heir.Restore(heir.now, saved)
	first := heir.Take()
	if len(first.Standings) != 6 || first.Breaker == nil || first.Breaker.State != ledger.Open {
		t.Fatalf("the heir's ledger is told %d standings and the breaker %+v", len(first.Standings), first.Breaker)
	}
	heir.state = first.Standings
	if a, b := fmt.Sprint(j.Counts()), fmt.Sprint(heir.Counts()); a != b {
		t.Errorf("counts %s, and after it %s", a, b)
	}
	for i := range 60 {
		for _, n := range j.Names() {
			if a, b := j.state[n], heir.state[n]; a != b {
				t.Fatalf("%d s later %s is %+v, and in the heir %+v", i, n, a, b)
			}
		}
		if j.Breaker() != heir.Breaker() {
			t.Fatalf("%d s later the breaker is %v, and in the heir %v", i, j.Breaker(), heir.Breaker())
		}
		if i == 5 {
			j.probe("c", "good")
			heir.probe("c", "good")
		}
		j.pass(time.Second)
		heir.pass(time.Second)
		if a, b := j.take(), heir.take(); a != b {
			t.Fatalf("%d s later here %q, in the heir %q", i, a, b)
		}
	}
}

// The ledger's breaker is closed when the configuration has none any more, and
// when a backend of that name comes again: nothing else would ever close it.
func TestBreakerGoes(t *testing.T) {
	with := backend(config.Backend{Breaker: &config.Breaker{Rate: 50, Least: 10, Window: 10 * time.Second, Open: 50 * time.Second, Probes: 3}}, "a")
	j := judge(t, with, true)
	if o := j.Take().Breaker; o == nil || o.State != ledger.Closed {
		t.Fatalf("a backend that comes has the breaker %+v", o)
	}
	j.pass(time.Second)
	j.serve("a", false, 20)
	j.pass(time.Second)
	if o := j.Take().Breaker; o == nil || o.State != ledger.Open {
		t.Fatalf("the breaker is %+v", o)
	}
	j.Govern(j.now, backend(config.Backend{}, "a"), false)
	if o := j.Take().Breaker; o == nil || o.State != ledger.Closed {
		t.Errorf("without a breaker it is %+v", o)
	}
	j.Govern(j.now, with, false)
	if o := j.Take().Breaker; o != nil && o.State != ledger.Closed {
		t.Errorf("with a new breaker it is %+v", o)
	}
}

// What clients met at the server that had the name before does not count against
// the one that has it now, nor against one that comes again.
func TestMetBefore(t *testing.T) {
	for _, x := range []config.Eject{
		{Consecutive: 5, Share: 50, Time: 10 * time.Second, TimeMax: time.Minute},
		{Rate: 50, Least: 5, Window: 30 * time.Second, Share: 50, Time: 10 * time.Second, TimeMax: time.Minute},
	} {
		of := func(names ...string) *config.Backend { return backend(config.Backend{Eject: &x}, names...) }
		j := judge(t, of("a=old.example", "b", "c"), true)
		tries := func(name string) health.Tries { return j.tries[name] }
		j.Met(tries)
		j.pass(time.Second)
		j.serve("a", false, 10)
		j.pass(time.Second)
		j.wantState("a", "ready unknown ejected")
		for _, names := range [][]string{{"a=new.example", "b", "c"}, {"b", "c"}, {"a=new.example", "b", "c"}} {
			j.Govern(j.now, of(names...), false)
			j.Met(tries)
			j.pass(3 * time.Second)
			if len(names) == 3 {
				j.wantState("a", "ready unknown")
			}
		}
		j.serve("a", false, 10)
		j.pass(time.Second)
		j.wantState("a", "ready unknown ejected")
	}
}

// A name whose address changes keeps its order: what restarts elsewhere is what
// was taken out. Where its addresses had several, a new one has none.
func TestOrderOfAName(t *testing.T) {
	of := func(addresses ...string) *config.Backend {
		c := backend(config.Backend{})
		for _, a := range addresses {
			e := &config.Endpoint{Backend: "web", Name: "app/" + a, Host: "app.example", Port: 80, Addr: netip.AddrPortFrom(netip.MustParseAddr(a), 80), Weight: 100}
			e.Ref.Name = "web/" + e.Name
			c.Endpoints = append(c.Endpoints, e)
		}
		return c
	}
	j := judge(t, of("10.0.0.1"), true)
	j.Order(j.now, "web/app/10.0.0.1", health.Order{Admin: ledger.Held, For: 30 * time.Second})
	j.Order(j.now, "web/app/10.0.0.1", health.Order{Weight: 7, Weigh: true})
	j.pass(10 * time.Second)
	j.Govern(j.now, of("10.0.0.2"), false)
	j.wantState("app/10.0.0.2", "held unknown weight 7")
	j.pass(19 * time.Second)
	j.wantState("app/10.0.0.2", "held unknown weight 7")
	j.pass(2 * time.Second)
	j.wantState("app/10.0.0.2", "ready unknown weight 7")
	j.Order(j.now, "web/app/10.0.0.2", health.Order{Admin: ledger.Maintenance})
	j.Govern(j.now, of("10.0.0.2", "10.0.0.3"), false)
	j.wantState("app/10.0.0.3", "maintenance unknown weight 7")
	j.Order(j.now, "web/app/10.0.0.3", health.Order{Admin: ledger.Ready})
	j.Govern(j.now, of("10.0.0.2", "10.0.0.3", "10.0.0.4"), false)
	j.wantState("app/10.0.0.4", "ready unknown")
}

// Ejections grow to their bound, however many there are.
func TestEjectionsGrowToTheirBound(t *testing.T) {
	x := config.Eject{Consecutive: 1, Share: 100, Time: 20 * time.Hour, TimeMax: 24 * time.Hour}
	j := judge(t, backend(config.Backend{Eject: &x}, "a"), true)
	for i := range 40 {
		j.serve("a", false, 1)
		j.now += health.Instant(time.Second)
		j.Tick(j.now, j.total, func(name string) health.Tries { return j.tries[name] })
		if left, most := j.Views(j.now)[0].Ejected, 24*time.Hour; i > 0 && left != most {
			t.Fatalf("ejection %d is for %v, want %v", i+1, left, most)
		}
		j.now += health.Instant(24 * time.Hour)
		j.Tick(j.now, j.total, func(name string) health.Tries { return j.tries[name] })
	}
}
