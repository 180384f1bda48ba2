package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/loop"
)

// browse asks again and again until the test ends, and counts answers by status.
func browse(t *testing.T, vip string) (well, ill *atomic.Int64) {
	t.Helper()
	well, ill = new(atomic.Int64), new(atomic.Int64)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ended below
		defer close(done)
		client := &http.Client{Transport: &http.Transport{}}
		defer client.CloseIdleConnections()
		for ctx.Err() == nil {
			q, err := http.NewRequestWithContext(ctx, "GET", "http://"+vip+"/", nil)
			if err != nil {
				return
			}
			r, err := client.Do(q)
			if err != nil {
				continue
			}
			_ = r.Body.Close()
			if r.StatusCode == 200 {
				well.Add(1)
			} else {
				ill.Add(1)
			}
		}
	}()
	t.Cleanup(func() { stop(); <-done })
	await(t, "nothing is served", func() bool { return well.Load() > 50 })
	return well, ill
}

// pair is a service for HTTP with two servers, of which the first is used.
func pair(t *testing.T) (text, good, ill, vip string) {
	t.Helper()
	good, ill, vip = failing(t, func() bool { return false }), failing(t, func() bool { return true }), free(t)
	return fmt.Sprintf("node: { loops: 2 }\nlisteners:\n  web: { vip: %q, protocol: http, backend: app }\nbackends:\n  app:\n    endpoints:\n      - { name: a, address: %q }\n", vip, good), good, ill, vip
}

// A change that does harm is rolled back by itself, as a generation with the
// figures as its reason; meanwhile other changes are refused and orders are not.
func TestCanaryRollsBack(t *testing.T) {
	text, good, ill, vip := pair(t)
	r := start(t, text)
	well, bad := browse(t, vip)
	q := edited("endpoint/app/a", "address", ill)
	q.Canary = time.Hour
	c := r.asks(q)
	if c.Generation != 2 || !strings.Contains(c.Canary, "watched") {
		t.Fatalf("%+v", c)
	}
	if _, err := r.Change(t.Context(), edited("endpoint/app/a", "weight", "3")); !errors.Is(err, ErrCanary) {
		t.Errorf("another change meanwhile: %v", err)
	}
	if _, err := r.SetEndpoint(EndpointRequest{Guard: anna, Backend: "app", Endpoint: "a", Do: "weight", Weight: 9}); err != nil {
		t.Errorf("an order meanwhile: %v", err)
	}
	await(t, "it is not rolled back", func() bool { return r.Generations(1)[0].Kind == "canary-rollback" })
	g := r.Generations(1)[0]
	if g.Generation != 4 || g.By.Name != "canary" || !strings.Contains(g.By.Reason, "errors>+1%") {
		t.Errorf("%+v", g)
	}
	if a := r.Config().Backends["app"].Endpoint("a").Address(); a != good {
		t.Errorf("it is at %s, want %s", a, good)
	}
	if o := r.state.current().orderOf("app/a"); o.Weight != 9 {
		t.Errorf("the order went with it: %+v", o)
	}
	was, failed := well.Load(), bad.Load()
	await(t, "it does not serve", func() bool { return well.Load() > was+50 })
	if failed == 0 {
		t.Error("nothing had failed")
	}
	if s := r.ConfigState(); !strings.Contains(s.Canary, "rolled back") || !s.CanaryEnds.IsZero() {
		t.Errorf("%+v", s)
	}
	r.asks(edited("endpoint/app/a", "weight", "3"))
}

// A change that does none stays when its time is over; one that is settled before
// stays or goes as was asked.
func TestCanaryStaysOrIsSettled(t *testing.T) {
	text, _, _, vip := pair(t)
	r := start(t, text)
	browse(t, vip)
	q := edited("endpoint/app/a", "weight", "7")
	q.Canary = 300 * time.Millisecond
	r.asks(q)
	await(t, "it is watched for ever", func() bool { return r.state.watched() == nil })
	if g := r.Generations(1)[0]; g.Generation != 2 || g.Kind != "edit" {
		t.Errorf("%+v", g)
	}
	for _, keep := range []bool{true, false} {
		before := r.Config().Backends["app"].Endpoint("a").Weight
		q := edited("endpoint/app/a", "weight", fmt.Sprint(before+1))
		q.Canary = time.Hour
		r.asks(q)
		s, err := r.Settle(t.Context(), SettleRequest{Guard: anna, Keep: keep})
		if err != nil {
			t.Fatal(err)
		}
		want := before
		if keep {
			want++
		}
		if got := r.Config().Backends["app"].Endpoint("a").Weight; got != want || r.state.watched() != nil {
			t.Errorf("keep %v: weight %d, want %d; %+v", keep, got, want, s)
		}
	}
	if _, err := r.Settle(t.Context(), SettleRequest{Keep: true}); err == nil {
		t.Error("what is not watched is settled")
	}
}

// A canary goes on in the process that comes after.
func TestCanaryOutlastsUpgrade(t *testing.T) {
	text, good, ill, vip := pair(t)
	r := start(t, text)
	browse(t, vip)
	q := edited("endpoint/app/a", "address", ill)
	q.Canary, q.AbortOn = time.Hour, "p99>1h"
	r.asks(q)
	heir, _, done, given, taken := succeed(t, r, 0, func(*Node) error { return nil }, nothing)
	if !done || given != nil || taken != nil {
		t.Fatal(done, given, taken)
	}
	if _, err := heir.Change(t.Context(), edited("endpoint/app/a", "weight", "3")); !errors.Is(err, ErrCanary) {
		t.Errorf("another change: %v", err)
	}
	if _, err := heir.Settle(t.Context(), SettleRequest{Guard: anna}); err != nil {
		t.Fatal(err)
	}
	if a := heir.Config().Backends["app"].Endpoint("a").Address(); a != good || heir.Generation() != 3 {
		t.Errorf("generation %d, at %s", heir.Generation(), a)
	}
}

func TestParseAbort(t *testing.T) {
	for text, good := range map[string]bool{
		"": true, "errors>1%": true, "errors>+1%,p99>x2": true, "p99>250ms, p50>+1s": true, "errors>0%": true, "p99>x1.5": true,
		"errors": false, "errors>1": false, "errors>101%": false, "errors<1%": false, "p99>1%": false, "p98>1s": false, "p99>x0.5": false, "p99>-1s": false, "errors>NaN%": false, "p99>xNaN": false,
	} {
		if _, err := parseAbort(text); (err == nil) != good {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestThresholds(t *testing.T) {
	of := func(requests, errors uint64, took time.Duration) *figures {
		f := &figures{Requests: requests, Errors: errors}
		for range requests {
			f.Took.Note(took)
		}
		return f
	}
	calm := of(1000, 10, 10*time.Millisecond)
	for _, c := range []struct {
		abort string
		now   *figures
		want  bool
	}{
		{"errors>1%", of(100, 2, 0), true},
		{"errors>2%", of(100, 2, 0), false},
		{"errors>1%", of(judgedLeast-1, 19, 0), false},
		{"errors>+1%", of(100, 2, 0), false},
		{"errors>+1%", of(100, 3, 0), true},
		{"errors>x3", of(100, 4, 0), true},
		{"p99>x2", of(100, 0, 40*time.Millisecond), true},
		{"p99>x2", of(100, 0, 10*time.Millisecond), false},
		{"p50>30ms", of(100, 0, 40*time.Millisecond), true},
		{"p99>+50ms", of(100, 0, 40*time.Millisecond), false},
	} {
		abort, err := parseAbort(c.abort)
		if err != nil {
			t.Fatal(err)
		}
		if why := judgeBy(abort, c.now, calm); (why != "") != c.want {
			t.Errorf("%s with %v: %q, want %v", c.abort, c.now, why, c.want)
		}
	}
	// Of nothing before nothing is a multiple, and no error before is none.
	abort, err := parseAbort("p99>x2,errors>+1%")
	if err != nil {
		t.Fatal(err)
	}
	if why := judgeBy(abort, of(100, 0, time.Second), &figures{}); why != "" {
		t.Error(why)
	}
	if why := judgeBy(abort, of(100, 5, 0), &figures{}); why == "" {
		t.Error("errors of what is new count for nothing")
	}
}

// A weight moves in steps, none of which is a generation; its end is one.
func TestShift(t *testing.T) {
	text, _ := shop(t, 1)
	r := start(t, text)
	var steps []Progress
	err := r.Shift(t.Context(), ShiftRequest{Guard: anna, Backend: "s0", Endpoint: "a", Weight: 20, Over: 2 * time.Second}, func(p Progress) { steps = append(steps, p) })
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i < len(steps); i++ {
		if steps[i].Weight > steps[i-1].Weight {
			t.Errorf("from %d to %d", steps[i-1].Weight, steps[i].Weight)
		}
	}
	last := steps[len(steps)-1]
	if len(steps) < 4 || !last.Done || last.Weight != 20 || r.Generation() != 2 || r.Generations(1)[0].Kind != "shift" || len(r.Shifts()) != 0 {
		t.Errorf("generation %d, %+v", r.Generation(), steps)
	}
	if o := r.state.current().orderOf("s0/a"); o.Weight != 20 {
		t.Errorf("%+v", o)
	}
}

// A shift that does harm goes back to where it began; who does not listen any more
// does not end it.
func TestShiftAborts(t *testing.T) {
	text, _, ill, vip := pair(t)
	r := start(t, text+fmt.Sprintf("      - { name: b, address: %q, weight: 0 }\n", ill))
	browse(t, vip)
	ctx, away := context.WithCancel(t.Context())
	q := ShiftRequest{Guard: anna, Backend: "app", Endpoint: "b", Weight: 100, Over: 10 * time.Second, AbortOn: "errors>50%"}
	err := r.Shift(ctx, q, func(p Progress) { away() })
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if len(r.Shifts()) != 1 {
		t.Fatal("it went with who had asked for it")
	}
	if err := r.Shift(t.Context(), q, func(Progress) {}); err == nil || !strings.Contains(err.Error(), "anna") {
		t.Errorf("another shift of the same: %v", err)
	}
	await(t, "it is not aborted", func() bool { return len(r.Shifts()) == 0 })
	for _, s := range r.EndpointStates() {
		if s.Name == "app/b" && s.Weight != 0 {
			t.Errorf("its weight is %d", s.Weight)
		}
	}
	if r.Generation() != 1 {
		t.Errorf("generation %d", r.Generation())
	}
}

// A file that is watched is applied when it is another one, and one that is wrong
// is refused once.
func TestWatchFile(t *testing.T) {
	text, _ := shop(t, 1)
	text = strings.Replace(text, "loops: 2", "loops: 2, watchFile: true", 1)
	r := start(t, text)
	weight := func() int { return r.Config().Backends["s0"].Endpoint("b").Weight }
	r.write(strings.Replace(text, "weight: 50", "weight: 51", 1))
	await(t, "the file is not applied", func() bool { return weight() == 51 && r.Generation() == 2 })
	if g := r.Generations(1)[0]; g.By.Name != "file" || g.Kind != "file" {
		t.Errorf("%+v", g)
	}
	r.write("listeners: [")
	refused := func() uint64 {
		a := &r.side.applies
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.count[[2]string{"file", "refused"}]
	}
	await(t, "it is not refused", func() bool { return refused() == 1 })
	// Another one, put in its place.
	other := filepath.Join(filepath.Dir(r.file), "other")
	if err := os.WriteFile(other, []byte(strings.Replace(text, "weight: 50", "weight: 53", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(other, r.file); err != nil {
		t.Fatal(err)
	}
	await(t, "the file in its place is not applied", func() bool { return weight() == 53 })
	if k := refused(); k != 1 {
		t.Errorf("a wrong file was refused %d times", k)
	}
}

// What waits for a name holds nobody else up.
func TestNamesHoldNobodyUp(t *testing.T) {
	text, _ := shop(t, 1)
	// Nobody answers there.
	r := start(t, strings.Replace(text, "loops: 2", "loops: 2, dns: [ \"127.9.9.9:5353\" ]", 1))
	slow := make(chan error, 1)
	go func() { // waited for below
		_, err := r.Change(context.Background(), ChangeRequest{Edits: []config.Patch{{Object: "endpoint/s0/n", Value: "{ address: \"nowhere.test:80\" }"}}})
		slow <- err
	}()
	for i := range 5 {
		r.asks(edited("endpoint/s0/a", "weight", fmt.Sprint(i)))
	}
	if err := <-slow; err != nil {
		t.Error(err)
	}
	if c := r.Config().Backends["s0"]; c.Endpoint("a").Weight != 4 {
		t.Errorf("weight %d", c.Endpoint("a").Weight)
	}
	if n := len(r.state.current().doc.Patches()); n != 2 {
		t.Errorf("%d edits", n)
	}
}

// A process that is killed while it watches a canary does not leave it to itself:
// the next one goes back, with the orders that were given meanwhile. What stays,
// stays.
func TestCanaryOfAProcessThatWasKilled(t *testing.T) {
	text, _ := shop(t, 1)
	for _, keep := range []bool{false, true} {
		file, dir, copied := filepath.Join(t.TempDir(), "holdfast.yaml"), t.TempDir(), t.TempDir()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		n, err := startIn(t, file, dir)
		if err != nil {
			t.Fatal(err)
		}
		q := edited("endpoint/s0/a", "weight", "7")
		q.Canary = time.Hour
		if _, err := n.Change(t.Context(), q); err != nil {
			t.Fatal(err)
		}
		if keep {
			if _, err := n.Settle(t.Context(), SettleRequest{Guard: anna, Keep: true}); err != nil {
				t.Fatal(err)
			}
		} else if _, err := n.SetEndpoint(EndpointRequest{Guard: anna, Backend: "s0", Endpoint: "b", Do: "quiesce"}); err != nil {
			t.Fatal(err)
		}
		await(t, "all to be written", func() bool { return n.ConfigState().Durable == durableYes })
		if err := os.CopyFS(copied, os.DirFS(dir)); err != nil { // as a kill leaves it
			t.Fatal(err)
		}
		was := n.Generation()
		n.Stop()
		m, err := startIn(t, file, copied)
		if err != nil {
			t.Fatal(err)
		}
		s, weight := m.ConfigState(), m.Config().Backends["s0"].Endpoint("a").Weight
		first := m.Generations(1)[0]
		switch {
		case keep && (weight != 7 || s.Generation != was):
			t.Errorf("it was kept: weight %d, %+v", weight, first)
		case !keep && (weight != 100 || s.Generation <= was || first.Kind != "canary-rollback" || m.state.current().orderOf("s0/b").Admin != "quiescing"):
			t.Errorf("nobody watches it: weight %d, %+v, %s", weight, first, m.state.current().orderOf("s0/b").Admin)
		}
		await(t, "the start to be written", func() bool { return m.ConfigState().Durable == durableYes })
		m.Stop()
		again, err := startIn(t, file, copied)
		if err != nil {
			t.Fatal(err)
		}
		if again.Generation() != s.Generation || again.Config().Backends["s0"].Endpoint("a").Weight != weight {
			t.Errorf("once more: generation %d after %d", again.Generation(), s.Generation)
		}
		again.Stop()
	}
}

// What is not there is told apart from what is refused.
func TestWhatThereIsNot(t *testing.T) {
	text, _, _, _ := pair(t)
	r := start(t, text)
	_, endpoint := r.SetEndpoint(EndpointRequest{Guard: anna, Backend: "app", Endpoint: "nobody", Do: "quiesce"})
	_, backend := r.SetEndpoint(EndpointRequest{Guard: anna, Backend: "nothing", Endpoint: "a", Do: "quiesce"})
	for _, err := range []error{endpoint, backend, r.Remove(t.Context(), RemoveRequest{Object: "listener/none"}, nil)} {
		if !errors.Is(err, ErrNone) {
			t.Errorf("%v", err)
		}
	}
	if err := r.Remove(t.Context(), RemoveRequest{Object: "listener"}, nil); err == nil || errors.Is(err, ErrNone) {
		t.Errorf("what is no object: %v", err)
	}
}

// Where the journal is takes effect with the next upgrade, and that is said.
func TestStateTakesUpgrade(t *testing.T) {
	text, _, _, _ := pair(t)
	parse := func(more string) *config.Config {
		c, _, err := config.Parse("f", []byte(strings.Replace(text, "loops: 2", "loops: 2"+more, 1)), nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	p := config.Diff(parse(""), parse(", state: none"))
	if what := takesUpgrade(p, p); what != "node.state" {
		t.Errorf("%q", what)
	}
}

// What is compared with is what was in the last minutes, not all that ever was.
func TestBaselineIsOfLately(t *testing.T) {
	of := func(requests, errors uint64) *figures { return &figures{Requests: requests, Errors: errors} }
	key, all, now := loop.SeriesKey{Listener: "web", Backend: "app"}, scope{All: true}, time.Now()
	s := &stateSide{marks: []mark{
		{now.Add(-time.Hour), map[loop.SeriesKey]*figures{key: of(10, 10)}},
		{now.Add(-5 * time.Minute), map[loop.SeriesKey]*figures{key: of(1000, 500)}},
		{now.Add(-time.Minute), map[loop.SeriesKey]*figures{key: of(1900, 500)}},
	}}
	b := s.baselineOf(all, of(2000, 501), now)
	if b.Figures.Requests != 1000 || b.Figures.Errors != 1 || !strings.Contains(b.String(), "before: 1000 requests in 5m0s, errors 0.10%") {
		t.Errorf("%s", b)
	}
	if b := s.baselineOf(all, of(1000+judgedLeast-1, 500), now); b.String() != "before: too few requests to compare with" {
		t.Errorf("%s", b)
	}
	// A canary says what it is compared with.
	text, _, ill, vip := pair(t)
	r := start(t, text)
	browse(t, vip)
	q := edited("endpoint/app/a", "address", ill)
	q.Canary, q.AbortOn = time.Hour, "p99>1h"
	if c := r.asks(q); !strings.Contains(c.Canary, "before: ") {
		t.Errorf("%q", c.Canary)
	}
}

// A canary that waits for its turn holds no shift up.
func TestShiftsDoNotWaitForCanary(t *testing.T) {
	text, _ := shop(t, 1)
	r := start(t, text)
	q := edited("endpoint/s0/a", "weight", "7")
	q.Canary = time.Second
	r.asks(q)
	if err := r.state.take(t.Context()); err != nil {
		t.Fatal(err)
	}
	give := sync.OnceFunc(r.state.give)
	defer give()
	await(t, "the canary does not wait", func() bool { return r.state.waiting.Load() == 1 })
	ctx, away := context.WithCancel(t.Context())
	err := r.Shift(ctx, ShiftRequest{Guard: anna, Backend: "s0", Endpoint: "b", Weight: 0, Over: 10 * time.Second}, func(Progress) { away() })
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	await(t, "the shift waits with the canary", func() bool { s := r.Shifts(); return len(s) == 1 && s[0].Weight < s[0].From })
}

// Orders of what a plan removes are no part of it.
func TestPlanLeavesOutOrdersOfWhatGoes(t *testing.T) {
	text, _ := shop(t, 1)
	r := start(t, text)
	if _, err := r.SetEndpoint(EndpointRequest{Guard: anna, Backend: "s0", Endpoint: "b", Do: "maint"}); err != nil {
		t.Fatal(err)
	}
	q := ChangeRequest{Guard: anna, Edits: []config.Patch{{Object: "endpoint/s0/b", Delete: true}}}
	if c := r.asks(q); strings.Contains(c.Plan, "-> ready") || c.Plan == "" {
		t.Errorf("%s", c.Plan)
	}
}
