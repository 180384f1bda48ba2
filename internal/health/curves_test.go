package health_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/balance"
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/health"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

var rewrite = flag.Bool("rewrite", false, "write docs/health-curves.md anew")

// world is a backend in front of endpoints that misbehave as a test says: the
// real ledger, the real choice and the real judge, on a clock of its own. Each
// request is over at once.
type world struct {
	t       *testing.T
	of      *config.Backend
	book    *ledger.Backend
	judge   *health.Backend
	now     time.Duration
	seed    uint64
	alarmed bool
	fails   func(endpoint string, at time.Duration) int // percent of attempts
	said    []string                                    // transitions since the last row

	asked, failed, tripped, spent, tries int            // since the last row
	by                                   map[string]int // attempts
}

func newWorld(t *testing.T, of *config.Backend, fails func(endpoint string, at time.Duration) int) *world {
	w := &world{t: t, of: of, now: time.Hour, fails: fails, by: map[string]int{}}
	l := ledger.New(ledger.Options{Policy: balance.Policy{}, Ring: func(int, uint64) {}, Open: func() {}, Alarm: func(string) { w.alarmed = true }})
	w.book, w.judge = l.Backend("web"), health.New("web")
	w.judge.Govern(health.Instant(w.now), of, true)
	w.book.Govern(of)
	w.obey()
	return w
}

// at is the time since the beginning.
func (w *world) at() time.Duration { return w.now - time.Hour }

// obey puts in force what the judge has said.
func (w *world) obey() {
	t := w.judge.Take()
	changes := map[string]func(*ledger.Standing){}
	for name, s := range t.Standings {
		changes[name] = func(x *ledger.Standing) { *x = s }
	}
	w.book.StandMany(changes)
	if t.Breaker != nil {
		w.book.SetBreaker(t.Breaker.State, t.Breaker.Probes)
	}
	for _, x := range t.Transitions {
		name := strings.TrimPrefix(x.Endpoint, "web/")
		if name == "" {
			name = "breaker"
		}
		state := x.State
		if x.For > 0 {
			state += fmt.Sprintf(" for %v", x.For)
		}
		w.said = append(w.said, name+" "+state)
	}
}

func (w *world) tick() {
	tries := func(a, f uint64) health.Tries { return health.Tries{Attempts: a, Failures: f} }
	w.judge.Tick(health.Instant(w.now), tries(w.book.Tries()), func(name string) health.Tries {
		e := w.book.Endpoint(name)
		t := tries(e.Tries())
		t.Consecutive = e.Consecutive()
		return t
	})
	w.obey()
}

// chance is below percent in as many of a hundred cases, the same ones each time.
func (w *world) chance(percent int) bool {
	w.seed = w.seed*6364136223846793005 + 1442695040888963407
	return int(w.seed>>33%100) < percent
}

// request is one request of a client, with its retries.
func (w *world) request() {
	w.asked++
	a := ledger.Asking{Now: int64(w.now)}
	for try := 0; ; try++ {
		a.Retry = try > 0
		g, waiter, answer := w.book.Secure(w.of, &a)
		if answer == ledger.Waiting {
			w.book.Withdraw(waiter)
		}
		switch {
		case answer == ledger.Tripped:
			w.tripped++
		case answer == ledger.Spent:
			w.spent++
		}
		if g.Endpoint == nil {
			w.failed++
			return
		}
		w.tries++
		w.by[g.Endpoint.Name]++
		good := !w.chance(w.fails(g.Endpoint.Name, w.at()))
		g.Account.Note(int64(w.now), good, 0)
		g.Account.Release()
		if w.alarmed {
			w.alarmed = false
			w.tick()
		}
		if good {
			return
		}
		if try == w.of.RetryMax {
			w.failed++
			return
		}
	}
}

// second lets a second pass with so many requests, spread evenly.
func (w *world) second(requests int) {
	end := w.now + time.Second
	for i := range requests {
		at := end - time.Second + time.Second*time.Duration(i)/time.Duration(requests)
		w.until(at)
		w.request()
	}
	w.until(end)
	w.tick()
}

func (w *world) until(at time.Duration) {
	for {
		next := time.Duration(w.judge.Next(health.Instant(w.now)))
		if next == 0 || next > at || next <= w.now {
			break
		}
		w.now = next
		w.tick()
	}
	w.now = at
}

// reset begins a row.
func (w *world) reset() {
	w.asked, w.failed, w.tripped, w.spent, w.tries = 0, 0, 0, 0, 0
	clear(w.by)
	w.said = nil
}

func bar(n, of, width int) string {
	if n <= 0 || of <= 0 {
		return ""
	}
	return strings.Repeat("#", max(1, min(width, (n*width+of/2)/of)))
}

func lines(out *strings.Builder, title, text string, rows func(line func(format string, args ...any))) {
	fmt.Fprintf(out, "\n## %s\n\n%s\n\n```\n", title, text)
	rows(func(format string, args ...any) {
		out.WriteString(strings.TrimRight(fmt.Sprintf(format, args...), " ") + "\n")
	})
	out.WriteString("```\n")
}

func farmOf(x config.Backend, n int) *config.Backend {
	var names []string
	for i := range n {
		names = append(names, string(rune('a'+i)))
	}
	of := backend(x, names...)
	for i, e := range of.Endpoints { // it has an address, else nothing is sent to it
		e.Host, e.Unix = "", fmt.Sprintf("/run/%d.sock", i)
	}
	return of
}

// The curves of docs/health-curves.md: what clients see while endpoints misbehave.
// The file is what this test computes, to the letter.
func TestCurves(t *testing.T) {
	var out strings.Builder
	out.WriteString("# Curves of endpoints that misbehave\n\nWritten by `go test ./internal/health -run Curves -rewrite`; the test fails when they change. The real ledger,\nthe real choice and the real judge run on a clock of the test; each row is one second, each `#` a share of it.\n")
	ejection(t, &out)
	circuit(t, &out)
	panicking(t, &out)
	slowly(t, &out)
	budget(t, &out)
	const name = "../../docs/health-curves.md"
	if *rewrite {
		if err := os.WriteFile(name, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	was, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if string(was) != out.String() {
		a, b := strings.Split(string(was), "\n"), strings.Split(out.String(), "\n")
		for i := range min(len(a), len(b)) {
			if a[i] != b[i] {
				t.Fatalf("%s: line %d is\n%s\nand now\n%s\n(-rewrite writes it anew; say in the commit why each line changed)", name, i+1, a[i], b[i])
			}
		}
		t.Fatalf("%s: %d lines, and now %d", name, len(a), len(b))
	}
}

func ejection(t *testing.T, out *strings.Builder) {
	of := farmOf(config.Backend{Eject: &config.Eject{Consecutive: 5, Time: 4 * time.Second, TimeMax: 16 * time.Second, Share: 50}}, 4)
	w := newWorld(t, of, func(e string, at time.Duration) int {
		if e == "c" && at >= 5*time.Second && at < 40*time.Second {
			return 100
		}
		return 0
	})
	after, all := 0, 0
	lines(out, "Ejection", "Four endpoints, 200 requests a second, no retries. From 5 s to 40 s every request to c fails. Eject: 5 in a row, 4 s,\ntwice as long each time, 16 s at most. Without it a quarter of all requests failed for 35 s.", func(line func(string, ...any)) {
		line("    s  to c  failed")
		for i := range 70 {
			w.reset()
			w.second(200)
			if i >= 6 {
				after += w.failed
			}
			all += w.failed
			line("%5d %5d  %6d  %-10s %s", i+1, w.by["c"], w.failed, bar(w.by["c"], 100, 10), strings.Join(w.said, ", "))
		}
	})
	fmt.Fprintf(out, "\n%d requests failed in all, %d of them after the first second; without ejection it had been 1,750.\n", all, after)
	if all > 40 || w.by["c"] != 50 {
		t.Errorf("ejection: %d failed; c has %d of 200 in the end", all, w.by["c"])
	}
}

func circuit(t *testing.T, out *strings.Builder) {
	of := farmOf(config.Backend{Breaker: &config.Breaker{Rate: 50, Least: 20, Window: 5 * time.Second, Open: 4 * time.Second, Probes: 3}}, 3)
	w := newWorld(t, of, func(_ string, at time.Duration) int {
		if at >= 6*time.Second && at < 22*time.Second {
			return 90
		}
		return 0
	})
	during := 0
	lines(out, "Circuit breaker", "Three endpoints, 100 requests a second. From 6 s to 22 s nine of ten attempts fail at each. Breaker: 50 % of at least 20 in\n5 s; then nothing for 4 s; then 3 probes.", func(line func(string, ...any)) {
		line("    s  sent  refused")
		for i := range 32 {
			w.reset()
			w.second(100)
			if i >= 10 && i < 22 {
				during += w.tries
			}
			line("%5d %5d  %7d  %-10s %s", i+1, w.tries, w.tripped, bar(w.tries, 100, 10), strings.Join(w.said, ", "))
		}
	})
	fmt.Fprintf(out, "\nFrom 10 s to 22 s the endpoints got %d attempts in place of 1,200.\n", during)
	if during > 30 || w.tries != 100 || w.failed != 0 {
		t.Errorf("breaker: %d attempts while it should be open; in the end %d sent, %d failed", during, w.tries, w.failed)
	}
}

func panicking(t *testing.T, out *strings.Builder) {
	for _, percent := range []int{0, 50} {
		check := config.Check{Interval: time.Second, Rise: 1, Fall: 1}
		of := farmOf(config.Backend{Check: &check, Panic: percent}, 10)
		// An endpoint can do 40 requests a second; beyond that they fail.
		var w *world
		w = newWorld(t, of, func(e string, _ time.Duration) int {
			if w.by[e] > 40 {
				return 100
			}
			return 0
		})
		probe := func(e string, good bool) {
			w.judge.Probed(health.Instant(w.now), "web/"+e, health.Result{Good: good})
			w.obey()
		}
		for _, e := range of.Endpoints {
			probe(e.Name, true)
		}
		worst := 0
		title := "Without a panic threshold"
		if percent > 0 {
			title = "With a panic threshold of 50 %"
		}
		lines(out, title, "Ten endpoints, 200 requests a second; each can answer 40, and the rest fail. From 3 s on the checks lose one each second,\nthough all work (what is checked is broken, not they); from 14 s on they find them again.", func(line func(string, ...any)) {
			line("    s  up  served by  failed")
			for i := range 26 {
				w.reset()
				switch {
				case i >= 3 && i < 12:
					probe(string(rune('a'+i-3)), false)
				case i >= 14 && i < 23:
					probe(string(rune('a'+i-14)), true)
				}
				up := 0
				for _, v := range w.judge.Views(health.Instant(w.now)) {
					if v.Standing.Health == ledger.Up {
						up++
					}
				}
				w.second(200)
				worst = max(worst, w.failed)
				line("%5d %3d %10d  %6d  %s", i+1, up, len(w.by), w.failed, bar(w.failed, 200, 20))
			}
		})
		if (percent == 0) != (worst > 100) || percent > 0 && worst > 0 {
			t.Errorf("panic %d %%: %d failed in the worst second", percent, worst)
		}
	}
}

func slowly(t *testing.T, out *strings.Builder) {
	check := config.Check{Interval: time.Second, Rise: 1, Fall: 1}
	of := farmOf(config.Backend{Check: &check, SlowStart: 20 * time.Second}, 4)
	w := newWorld(t, of, func(string, time.Duration) int { return 0 })
	probe := func(e string, good bool) {
		w.judge.Probed(health.Instant(w.now), "web/"+e, health.Result{Good: good})
		w.obey()
	}
	for _, e := range of.Endpoints {
		probe(e.Name, true)
	}
	last := 0
	lines(out, "Slow start", "Four endpoints of the same weight, 1,000 requests a second. d goes down at 2 s and comes back at 5 s; slowStart 20 s.", func(line func(string, ...any)) {
		line("    s  to d")
		for i := range 28 {
			w.reset()
			if i == 2 || i == 5 {
				probe("d", i == 5)
			}
			w.second(1000)
			if i >= 5 && w.by["d"] < last-1 {
				t.Errorf("slow start: %d after %d", w.by["d"], last)
			}
			last = w.by["d"]
			line("%5d %5d  %-26s %s", i+1, w.by["d"], bar(w.by["d"], 1000, 100), strings.Join(w.said, ", "))
		}
	})
	if last < 249 || last > 251 {
		t.Errorf("slow start: %d of 1000 in the end", last)
	}
}

func budget(t *testing.T, out *strings.Builder) {
	type second struct{ tries, failed, spent int }
	run := func(percent int) (all []second) {
		of := farmOf(config.Backend{RetryMax: 3, Retry: config.Retry{Budget: percent}}, 4)
		w := newWorld(t, of, func(_ string, at time.Duration) int {
			if at >= 5*time.Second && at < 20*time.Second {
				return 80
			}
			return 0
		})
		for range 26 {
			w.reset()
			w.second(200)
			all = append(all, second{w.tries, w.failed, w.spent})
		}
		return all
	}
	free, bound := run(0), run(20)
	more := 0 // attempts that were retries
	lines(out, "Retry budget", "Four endpoints, 200 requests a second, up to 3 retries each. From 5 s to 20 s 80 % of all attempts fail. With a budget of\n20 % of the requests of the last second (and the ten a second that are always allowed) what is sick is not asked\nthree times as much.", func(line func(string, ...any)) {
		line("    s  attempts without        with    not retried")
		for i := range free {
			line("%5d %5d %-17s %5d %-8s %5d", i+1, free[i].tries, bar(free[i].tries, 600, 16), bound[i].tries, bar(bound[i].tries, 600, 16), bound[i].spent)
			more += bound[i].tries - 200
		}
	})
	// 15 s at 20 % and ten a second, and what the second before had not used.
	if more > 15*(40+10)+40 || free[10].tries < 500 {
		t.Errorf("retry budget: %d retries, and without it %d attempts a second for 200 requests", more, free[10].tries)
	}
}
