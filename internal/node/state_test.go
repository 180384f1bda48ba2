package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/journal"
	"github.com/holdfast-lb/holdfast/internal/move"
)

// shop is a file with a few services, of which each has a server that echoes.
func shop(t *testing.T, services int) (text string, vips []string) {
	t.Helper()
	server := echo(t)
	var listeners, backends strings.Builder
	for i := range services {
		vip := free(t)
		vips = append(vips, vip)
		fmt.Fprintf(&listeners, "  s%d: { vip: %q, backend: s%d }\n", i, vip, i)
		fmt.Fprintf(&backends, "  s%d:\n    endpoints:\n      - { name: a, address: %q }\n      - { name: b, address: %q, weight: 50 }\n", i, server, server)
	}
	return "# the shop\nnode: { loops: 2 }\nlisteners:\n" + listeners.String() + "backends:\n" + backends.String(), vips
}

// startIn begins a node with a journal in dir.
func startIn(t *testing.T, file, dir string) (*Node, error) {
	t.Helper()
	n, err := Start(Options{File: file, State: dir, Log: slog.New(slog.DiscardHandler)})
	if err == nil {
		t.Cleanup(n.Stop)
	}
	return n, err
}

func (r *running) asks(q ChangeRequest) *ChangeReport {
	r.t.Helper()
	report, err := r.Change(context.Background(), q)
	if err != nil {
		r.t.Fatal(err)
	}
	return report
}

var anna = Guard{Author: Author{Name: "anna", Reason: "a test"}}

// set is an edit of one field.
func edited(object, field, value string) ChangeRequest {
	return ChangeRequest{Guard: anna, Edits: []config.Patch{{Object: object, Field: field, Value: value}}}
}

// An edit lies over the file: a reload of the file keeps it and says so, until the
// file says the same, or it is taken back.
func TestEditsOutlastReloads(t *testing.T) {
	text, vips := shop(t, 2)
	r := start(t, text)
	e := r.asks(edited("endpoint/s0/a", "weight", "7"))
	if e.Generation != 2 || e.Plan != "~ endpoint s0/a: weight 100 -> 7\n" || e.Impact.EndpointsChanged != 1 || e.Impact.WeightsChanged != 1 {
		t.Fatalf("%+v", e)
	}
	weight := func() int { return r.Config().Backends["s0"].Endpoint("a").Weight }
	same := r.reload(text)
	if weight() != 7 || !same.Unchanged || same.Generation != 2 {
		t.Errorf("the same file: weight %d, %+v", weight(), same)
	}
	other := strings.Replace(text, "weight: 50", "weight: 51", 1)
	kept := r.reload(other)
	if weight() != 7 || len(kept.Edits) != 1 || kept.Edits[0].Became != "kept" || kept.Edits[0].By.Name != "anna" {
		t.Errorf("another file: weight %d, %+v", weight(), kept)
	}
	s := r.ConfigState()
	if len(s.Edits) != 1 || s.Edits[0].Object != "endpoint/s0/a" || s.Edits[0].Runtime != "7" || s.FileDiffers {
		t.Errorf("drift: %+v", s)
	}
	if !bytes.Contains(s.Source, []byte("# the shop")) || !bytes.Contains(s.Source, []byte("weight: 7")) {
		t.Errorf("source:\n%s", s.Source)
	}
	absorbed := r.reload(strings.Replace(other, "name: a,", "name: a, weight: 7,", 1))
	if weight() != 7 || len(absorbed.Edits) != 1 || absorbed.Edits[0].Became != "absorbed" || len(r.ConfigState().Edits) != 0 {
		t.Errorf("the file says it, too: %+v", absorbed)
	}
	r.asks(edited("endpoint/s0/a", "weight", "9"))
	back := r.asks(ChangeRequest{Guard: anna, Revert: []config.Patch{{Object: "endpoint/s0/a", Field: "weight"}}})
	if weight() != 7 || back.Plan != "~ endpoint s0/a: weight 9 -> 7\n" {
		t.Errorf("reverted: weight %d, %+v", weight(), back)
	}
	if _, err := r.Change(t.Context(), ChangeRequest{Guard: anna, Revert: []config.Patch{{Object: "endpoint/s0/a"}}}); err == nil {
		t.Error("what was not edited is reverted")
	}
	c := dial(t, vips[0])
	says(t, c, "still there")
}

// What an edit belongs to goes from the file: then it is dropped, and told of. A
// reload that may not meet edits is refused, one that discards them does.
func TestEditsDroppedRefusedDiscarded(t *testing.T) {
	text, _ := shop(t, 2)
	r := start(t, text)
	r.asks(edited("endpoint/s1/b", "weight", "3"))
	refused := ChangeRequest{Guard: anna, Source: []byte(strings.Replace(text, "weight: 50", "weight: 51", 1)), RuntimeEdits: "refuse"}
	if _, err := r.Change(t.Context(), refused); err == nil || !strings.Contains(err.Error(), "endpoint/s1/b weight") {
		t.Errorf("refuse: %v", err)
	}
	discarded := refused
	discarded.RuntimeEdits = "discard"
	if d := r.asks(discarded); len(d.Edits) != 1 || d.Edits[0].Became != "discarded" || r.Config().Backends["s1"].Endpoint("b").Weight != 50 {
		t.Errorf("discard: %+v", d)
	}
	r.asks(edited("endpoint/s1/b", "weight", "3"))
	i := strings.LastIndex(text, "      - { name: b,")
	if d := r.reload(text[:i]); len(d.Edits) != 1 || d.Edits[0].Became != "dropped" || d.Edits[0].Why == "" {
		t.Errorf("the endpoint is gone: %+v", d)
	}
}

// What was applied in place of the file stays when the file, which has not
// changed, is read again, and goes when the file is another one.
func TestAppliedInPlaceOfTheFile(t *testing.T) {
	text, _ := shop(t, 2)
	r := start(t, text)
	other := strings.Replace(text, "weight: 50", "weight: 51", 1)
	r.asks(ChangeRequest{Guard: anna, Source: []byte(other)})
	if !r.ConfigState().FileDiffers {
		t.Error("nobody says that the file differs")
	}
	if s := r.reload(text); !s.Unchanged || len(s.Warnings) == 0 || r.Config().Backends["s0"].Endpoint("b").Weight != 51 {
		t.Errorf("the file as it was: %+v", s)
	}
	if s := r.reload(strings.Replace(text, "weight: 50", "weight: 52", 1)); s.Unchanged || r.Config().Backends["s0"].Endpoint("b").Weight != 52 || r.ConfigState().FileDiffers {
		t.Errorf("another file: %+v", s)
	}
}

// An expected generation that is not in force refuses, whoever made the other one.
func TestExpectedGeneration(t *testing.T) {
	text, _ := shop(t, 2)
	r := start(t, text)
	q := edited("endpoint/s0/a", "weight", "7")
	q.Expect = 1
	r.asks(q)
	if _, err := r.Change(t.Context(), q); !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), "anna") {
		t.Errorf("a writer that has seen 1: %v", err)
	}
	if _, err := r.SetEndpoint(EndpointRequest{Guard: Guard{Expect: 1}, Backend: "s0", Endpoint: "a", Do: "weight", Weight: 3}); !errors.Is(err, ErrChanged) {
		t.Errorf("an order that expects 1: %v", err)
	}
	o, err := r.SetEndpoint(EndpointRequest{Guard: Guard{Expect: 2}, Backend: "s0", Endpoint: "a", Do: "weight", Weight: 3})
	if err != nil || o.Generation != 3 {
		t.Errorf("%+v, %v", o, err)
	}
}

// Of many writers that expect the same generation one wins.
func TestTwoWriters(t *testing.T) {
	text, _ := shop(t, 2)
	r := start(t, text)
	var all sync.WaitGroup
	won := make(chan int, 20)
	for i := range 20 {
		all.Go(func() {
			q := edited("endpoint/s0/a", "weight", fmt.Sprint(200+i))
			q.Expect = 1
			if _, err := r.Change(context.Background(), q); err == nil {
				won <- 200 + i
			} else if !errors.Is(err, ErrChanged) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	close(won)
	if len(won) != 1 {
		t.Fatalf("%d writers won", len(won))
	}
	if w := <-won; r.Config().Backends["s0"].Endpoint("a").Weight != w || r.Generation() != 2 {
		t.Errorf("generation %d, and the winner's weight %d is not in force", r.Generation(), w)
	}
}

// A write that is sent again under its key has the first one's answer; the key
// with another request is refused; a refused write may be sent again.
func TestIdempotency(t *testing.T) {
	text, _ := shop(t, 2)
	r := start(t, text)
	q := edited("endpoint/s0/a", "weight", "7")
	q.Key = "k1"
	a := r.asks(q)
	b := r.asks(q)
	if a.Generation != 2 || b.Generation != 2 || b.Plan != a.Plan || r.Generation() != 2 {
		t.Errorf("%+v, then %+v", a, b)
	}
	other := edited("endpoint/s0/a", "weight", "8")
	other.Key = "k1"
	if _, err := r.Change(t.Context(), other); !errors.Is(err, ErrKey) {
		t.Errorf("another request under the key: %v", err)
	}
	bad := edited("endpoint/s0/zz", "weight", "8")
	bad.Key = "k2"
	for range 2 {
		if _, err := r.Change(t.Context(), bad); err == nil || errors.Is(err, ErrKey) {
			t.Errorf("a wrong edit: %v", err)
		}
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			x := edited("endpoint/s0/a", "weight", "9")
			x.Key = "k3"
			if y, err := r.Change(context.Background(), x); err != nil || y.Generation != 3 {
				t.Errorf("%+v, %v", y, err)
			}
		})
	}
	all.Wait()
	if r.Generation() != 3 {
		t.Errorf("one write of eight at once was made %d times", r.Generation()-2)
	}
	// Long answers are forgotten before there are too many of them.
	var k keys
	for i := range 10 {
		k.add(fmt.Sprint(i), &keyed{At: time.Now(), Answer: make([]byte, keysBytes/4)})
	}
	if k.bound(); len(k.all) != 4 || k.find("9", time.Now()) == nil || k.find("5", time.Now()) != nil {
		t.Errorf("%d long answers are kept", len(k.all))
	}
}

// A rollback is a new generation that says what an old one said, its orders too.
func TestRollback(t *testing.T) {
	text, _ := shop(t, 2)
	r := start(t, text)
	r.asks(edited("endpoint/s0/a", "weight", "7")) // 2
	if _, err := r.SetEndpoint(EndpointRequest{Guard: anna, Backend: "s1", Endpoint: "b", Do: "maint"}); err != nil {
		t.Fatal(err)
	}
	r.asks(ChangeRequest{Guard: anna, Edits: []config.Patch{{Object: "backend/s1", Field: "connectTimeout", Value: "9s"}}}) // 4
	state := func() string {
		for _, s := range r.EndpointStates() {
			if s.Name == "s1/b" {
				return s.State
			}
		}
		return "none"
	}
	if state() != "maintenance" {
		t.Fatal(state())
	}
	back := r.asks(ChangeRequest{Guard: anna, Rollback: 1})
	if back.Generation != 5 || state() != "ready" || r.Config().Backends["s0"].Endpoint("a").Weight != 100 || len(r.ConfigState().Edits) != 0 {
		t.Errorf("back to 1: %+v, state %s", back, state())
	}
	forth := r.asks(ChangeRequest{Guard: anna, Rollback: 4})
	if forth.Generation != 6 || state() != "maintenance" || r.Config().Backends["s0"].Endpoint("a").Weight != 7 || r.Config().Backends["s1"].ConnectTimeout != 9*time.Second {
		t.Errorf("forth to 4: %+v, state %s", forth, state())
	}
	if _, err := r.Change(t.Context(), ChangeRequest{Guard: anna, Rollback: 99}); err == nil {
		t.Error("back to what never was")
	}
	var kinds []string
	for _, i := range r.Generations(0) {
		kinds = append(kinds, fmt.Sprintf("%d %s", i.Generation, i.Kind))
	}
	if want := []string{"6 rollback", "5 rollback", "4 edit", "3 order", "2 edit", "1 start"}; !slices.Equal(kinds, want) {
		t.Errorf("history %q", kinds)
	}
}

// With a journal edits and orders outlast the process, however it ends; a file
// that has changed meanwhile is brought in under them.
func TestRestart(t *testing.T) {
	text, _ := shop(t, 2)
	dir := t.TempDir()
	file, state := filepath.Join(dir, "f.yaml"), filepath.Join(dir, "state")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(text)
	n, err := startIn(t, file, state)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := startIn(t, file, state); err == nil {
		t.Fatal("two processes have one state")
	}
	q := edited("endpoint/s0/a", "weight", "7")
	q.WaitDurable = true
	if r, err := n.Change(t.Context(), q); err != nil || r.Durable != "yes" || r.DurableMillis < r.EffectiveMillis {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := n.SetEndpoint(EndpointRequest{Guard: anna, Backend: "s1", Endpoint: "b", Do: "quiesce"}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.SetEndpoint(EndpointRequest{Guard: anna, Backend: "s1", Endpoint: "a", Do: "hold"}); err != nil {
		t.Fatal(err)
	}
	n.Stop()
	check := func(n *Node, generation uint64, kind string) {
		t.Helper()
		states := map[string]string{}
		for _, s := range n.EndpointStates() {
			states[s.Name] = s.State
		}
		if n.Generation() != generation || n.Config().Backends["s0"].Endpoint("a").Weight != 7 || states["s1/b"] != "quiescing" || states["s1/a"] != "ready" {
			t.Errorf("generation %d, want %d; %v", n.Generation(), generation, states)
		}
		if got := n.Generations(1)[0]; got.Kind != kind || !got.Durable {
			t.Errorf("%+v, want a durable %s", got, kind)
		}
	}
	if n, err = startIn(t, file, state); err != nil {
		t.Fatal(err)
	}
	check(n, 3, "order")
	n.Stop()
	write(strings.Replace(text, "weight: 50", "weight: 51", 1))
	if n, err = startIn(t, file, state); err != nil {
		t.Fatal(err)
	}
	await(t, "the change of the file is not durable", func() bool { return n.Generations(1)[0].Durable })
	check(n, 4, "start")
	if w := n.Config().Backends["s0"].Endpoint("b").Weight; w != 51 {
		t.Errorf("the file's weight is %d", w)
	}
	if r, err := n.Change(t.Context(), ChangeRequest{Guard: anna, Rollback: 1}); err != nil || r.Generation != 5 || n.Config().Backends["s0"].Endpoint("b").Weight != 50 {
		t.Errorf("back to what another process wrote: %+v, %v", r, err)
	}
	n.Stop()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if n, err = startIn(t, file, state); err != nil {
		t.Fatalf("without the file: %v", err)
	}
	if n.Generation() != 5 {
		t.Errorf("generation %d", n.Generation())
	}
	n.Stop()
	if _, err := startIn(t, file, ""); err == nil {
		t.Error("without file and journal it begins")
	}
}

// Reloads that wait together are one, changes beyond the bound are refused, and
// all that were accepted are made.
func TestBursts(t *testing.T) {
	text, _ := shop(t, 1)
	r := start(t, text)
	r.Node.change.Lock() // as an upgrade would
	var all sync.WaitGroup
	var mu sync.Mutex
	done, busy, superseded := 0, 0, 0
	r.write(strings.Replace(text, "weight: 50", "weight: 51", 1))
	for i := range 100 {
		switch i {
		case 1: // the first one has the turn, so that all others wait
			await(t, "the turn is free", func() bool { return len(r.Node.state.turn) == 0 })
		case 10: // who reads a file comes later than those that come after
			await(t, "the file does not wait", func() bool { return r.Node.state.waiting.Load() > 0 })
		}
		all.Go(func() {
			q := edited("endpoint/s0/a", "weight", fmt.Sprint(i+1))
			if 0 < i && i < 10 {
				q = ChangeRequest{Reread: true}
			}
			x, err := r.Change(context.Background(), q)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, ErrBusy):
				busy++
			case err != nil:
				t.Error(err)
			default:
				done++
				if x.Superseded {
					superseded++
				}
			}
		})
	}
	await(t, "nobody is refused", func() bool { mu.Lock(); defer mu.Unlock(); return busy >= 100-1-waitingMax-10 })
	// What is ordered of an endpoint waits for nobody.
	if _, err := r.SetEndpoint(EndpointRequest{Backend: "s0", Endpoint: "b", Do: "quiesce"}); err != nil {
		t.Error(err)
	}
	r.Node.change.Unlock()
	all.Wait()
	if done+busy != 100 || superseded == 0 {
		t.Errorf("%d done, %d busy, %d superseded", done, busy, superseded)
	}
	if w := r.Config().Backends["s0"].Endpoint("b").Weight; w != 51 {
		t.Errorf("the file was not read: weight %d", w)
	}
}

// Files that are wrong change nothing, and say why.
func TestBadFilesChangeNothing(t *testing.T) {
	text, vips := shop(t, 2)
	r := start(t, text)
	r.asks(edited("endpoint/s0/a", "weight", "7"))
	before, g := r.Config(), r.gen
	c := dial(t, vips[0])
	bad := [][]byte{[]byte("listeners: ["), []byte(""), []byte(strings.Replace(text, "weight: 50", "weight: 5000", 1)), []byte(strings.Replace(text, "backend: s0", "backend: sx", 1))}
	corpus, err := os.ReadFile("../config/testdata/wrong.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range strings.Split(string(corpus), "\n=== ") {
		_, c, _ = strings.Cut(c, "\n")
		c, _, _ = strings.Cut(c, "\n----\n")
		if _, _, err := Parse("corpus", []byte(c)); err != nil {
			bad = append(bad, []byte(c))
		}
	}
	if len(bad) < 50 {
		t.Errorf("only %d wrong files", len(bad))
	}
	// A listener at a place that is taken, and one more that could be opened.
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	bad = append(bad, []byte(strings.Replace(text, "listeners:\n", fmt.Sprintf("listeners:\n  new: { vip: %q, backend: s0 }\n  taken: { vip: %q, backend: s0 }\n", free(t), taken.Addr()), 1)))
	for i, b := range bad {
		r.write(string(b))
		if _, err := r.Change(t.Context(), ChangeRequest{Reread: true}); err == nil {
			t.Errorf("file %d is accepted", i)
		}
		if _, err := r.Change(t.Context(), ChangeRequest{Source: append(b, '\n')}); err == nil {
			t.Errorf("source %d is accepted", i)
		}
	}
	if r.Config() != before || r.gen != g || r.Generation() != 2 || len(r.Generations(0)) != 2 {
		t.Errorf("generation %d, %d in the history", r.Generation(), len(r.Generations(0)))
	}
	says(t, c, "nothing happened")
}

// The same again is free, and so are all objects that a change does not concern.
func TestUnaffectedIsUntouched(t *testing.T) {
	text, vips := shop(t, 4)
	r := start(t, text)
	c := dial(t, vips[1])
	says(t, c, "before")
	before := r.Config()
	judges := map[string]*judge{}
	for name, j := range r.watch.judges {
		judges[name] = j
	}
	gates := r.gen.Listening["s1"]
	for range 3 {
		if x := r.reload(text); !x.Unchanged || x.Flows+x.Closed+x.Lost != 0 {
			t.Errorf("the same again: %+v", x)
		}
	}
	if r.Config() != before || r.Generation() != 1 {
		t.Error("the same again made another configuration")
	}
	r.asks(edited("endpoint/s0/a", "weight", "7"))
	r.reload(strings.Replace(text, "s3: { vip", "s3: { idleTimeout: 3h, vip", 1))
	after := r.Config()
	for _, name := range []string{"s1", "s2"} {
		if after.Listeners[name] != before.Listeners[name] || after.Backends[name] != before.Backends[name] {
			t.Errorf("%s is another object", name)
		}
		if r.watch.judges[name] != judges[name] || r.watch.judges[name].of != before.Backends[name] {
			t.Errorf("%s is judged anew", name)
		}
	}
	if r.gen.Listening["s1"] != gates {
		t.Error("s1 listens anew")
	}
	if after.Backends["s0"] == before.Backends["s0"] || after.Listeners["s3"] == before.Listeners["s3"] {
		t.Error("nothing has changed")
	}
	says(t, c, "after")
	if s := r.Status(); s.OnOld != 0 {
		t.Errorf("%d flows on old objects", s.OnOld)
	}
}

// What would be done is told and not done, and then it is exactly what is done.
func TestDryRun(t *testing.T) {
	text, _ := shop(t, 3)
	r := start(t, text)
	other := strings.Replace(strings.Replace(text, "weight: 50", "weight: 51", 1), "  s2: { vip", "  s9: { vip", 1)
	q := ChangeRequest{Guard: anna, Source: []byte(other), DryRun: true}
	dry := r.asks(q)
	if !dry.DryRun || dry.Generation != 1 || r.Generation() != 1 || dry.Plan == "" {
		t.Errorf("%+v", dry)
	}
	q.DryRun = false
	if done := r.asks(q); done.Plan != dry.Plan || done.Impact != dry.Impact || done.Generation != 2 {
		t.Errorf("told:\n%s%+v\ndone:\n%s%+v", dry.Plan, dry.Impact, done.Plan, done.Impact)
	}
}

// Those who watch are told of every change in order, and from where they were.
func TestEvents(t *testing.T) {
	text, _ := shop(t, 1)
	r := start(t, text)
	w, err := r.Watch(0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for i := range 3 {
		r.asks(edited("endpoint/s0/a", "weight", fmt.Sprint(i)))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var seqs []uint64
	for g := uint64(2); g <= 4; {
		e, err := w.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(seqs) > 0 && e.Seq != seqs[len(seqs)-1]+1 {
			t.Errorf("%d after %d", e.Seq, seqs[len(seqs)-1])
		}
		seqs = append(seqs, e.Seq)
		if e.Kind == "generation" {
			if e.Generation != g || e.By != "anna" {
				t.Errorf("%+v, want generation %d", e, g)
			}
			g++
		}
	}
	again, err := r.Watch(seqs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if e, err := again.Next(ctx); err != nil || e.Seq != seqs[0]+1 {
		t.Errorf("resumed: %+v, %v", e, err)
	}
	for range eventsMax + 10 {
		r.events.note(Event{Kind: "log"})
	}
	if e, err := w.Next(ctx); err != nil || e.Kind != "missed" {
		t.Errorf("a reader that was too slow: %+v, %v", e, err)
	}
	if e, err := w.Next(ctx); err != nil || e.Kind != "log" {
		t.Errorf("and then: %+v, %v", e, err)
	}
	short, stop := context.WithCancel(t.Context())
	stop()
	late, err := r.Watch(0)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	if _, err := late.Next(short); !errors.Is(err, context.Canceled) {
		t.Errorf("nothing to come: %v", err)
	}
}

// disk is a directory in memory that can be full.
type disk struct {
	mu    sync.Mutex
	files map[string]*inMemory
	full  bool
}

type inMemory struct {
	d *disk
	b []byte
}

var errFull = errors.New("no space left on device")

func (d *disk) Lock() (io.Closer, error) { return io.NopCloser(nil), nil }

func (d *disk) List() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.files)), nil
}

func (d *disk) Open(name string) (journal.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.files[name]; f != nil {
		return f, nil
	}
	return nil, os.ErrNotExist
}

func (d *disk) Create(name string) (journal.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.full {
		return nil, errFull
	}
	d.files[name] = &inMemory{d: d}
	return d.files[name], nil
}

func (d *disk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files[to] = d.files[from]
	delete(d.files, from)
	return nil
}

func (d *disk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.files, name)
	return nil
}

func (d *disk) Sync() error { return nil }

func (d *disk) fill(full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = full
}

func (f *inMemory) ReadAt(p []byte, at int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if at >= int64(len(f.b)) {
		return 0, io.EOF
	}
	n := copy(p, f.b[at:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *inMemory) WriteAt(p []byte, at int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.full {
		return 0, errFull
	}
	if end := int(at) + len(p); end > len(f.b) {
		f.b = append(f.b, make([]byte, end-len(f.b))...)
	}
	return copy(f.b[at:], p), nil
}

func (f *inMemory) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return int64(len(f.b)), nil
}

func (f *inMemory) Truncate(size int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.b = f.b[:size]
	return nil
}

func (f *inMemory) Sync() error  { return nil }
func (f *inMemory) Close() error { return nil }

// A disk that is full keeps nobody from changing anything: what is effective and
// not durable says so, and is durable once there is room.
func TestFullDisk(t *testing.T) {
	text, _ := shop(t, 1)
	r := start(t, text)
	d := &disk{files: map[string]*inMemory{}}
	j, err := journal.Open(journal.Options{Dir: "memory", FS: d})
	if err != nil {
		t.Fatal(err)
	}
	r.state.mu.Lock()
	r.state.journal = j
	r.state.mu.Unlock()
	change := func(weight int) *ChangeReport {
		q := edited("endpoint/s0/a", "weight", fmt.Sprint(weight))
		q.WaitDurable = true
		return r.asks(q)
	}
	if x := change(2); x.Durable != "yes" {
		t.Fatalf("%+v", x)
	}
	d.fill(true)
	if x := change(3); !strings.HasPrefix(x.Durable, "no: ") || !strings.Contains(x.Durable, errFull.Error()) || x.Generation != 3 {
		t.Errorf("on a full disk: %+v", x)
	}
	if o, err := r.SetEndpoint(EndpointRequest{Guard: anna, Backend: "s0", Endpoint: "b", Do: "maint"}); err != nil || !strings.HasPrefix(o.Durable, "no: ") {
		t.Errorf("%+v, %v", o, err)
	}
	if w := r.Config().Backends["s0"].Endpoint("a").Weight; w != 3 {
		t.Errorf("weight %d", w)
	}
	g := r.Generations(0)
	if g[0].Durable || g[1].Durable || !g[2].Durable || !strings.HasPrefix(r.ConfigState().Durable, "no: ") {
		t.Errorf("%+v", g)
	}
	d.fill(false)
	await(t, "there is room, and nothing is durable", func() bool { return r.ConfigState().Durable == "yes" })
	if e, any := j.Last(); !any || e.Generation != 4 {
		t.Errorf("%+v", e)
	}
	for _, i := range r.Generations(0) {
		if i.Generation >= 2 && !i.Durable {
			t.Errorf("%+v", i)
		}
	}
}

// A successor that dies leaves the journal to the process that goes on.
func TestAbortTakesTheJournalBack(t *testing.T) {
	text, _ := shop(t, 1)
	dir := t.TempDir()
	file := filepath.Join(dir, "f.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	n, err := startIn(t, file, filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	heir, r, done, given, _ := succeed(t, &running{Node: n, t: t, file: file}, move.Done, func(*Node) error { return nil }, nothing)
	if done || given == nil {
		t.Fatalf("done %t, given: %v", done, given)
	}
	heir.Stop()
	_ = n.abort(r, given)
	if x, err := n.Change(t.Context(), edited("endpoint/s0/a", "weight", "7")); err != nil || x.Generation != 2 {
		t.Fatalf("%+v, %v", x, err)
	}
	await(t, "it is not durable", func() bool { return n.ConfigState().Durable == "yes" })
	if e, err := n.state.journal.At(2); err != nil || !bytes.Contains(e.State, []byte(`"7"`)) {
		t.Errorf("%s, %v", e.State, err)
	}
}

// An upgrade carries edits, orders, keys, the history and the numbers of events.
func TestStateOutlastsUpgrade(t *testing.T) {
	text, _ := shop(t, 2)
	dir := t.TempDir()
	file, state := filepath.Join(dir, "f.yaml"), filepath.Join(dir, "state")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	n, err := startIn(t, file, state)
	if err != nil {
		t.Fatal(err)
	}
	q := edited("endpoint/s0/a", "weight", "7")
	q.Key = "once"
	if _, err := n.Change(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	if _, err := n.SetEndpoint(EndpointRequest{Guard: anna, Backend: "s1", Endpoint: "b", Do: "quiesce"}); err != nil {
		t.Fatal(err)
	}
	heir, _, done, given, taken := succeed(t, &running{Node: n, t: t, file: file}, 0, func(*Node) error { return nil }, nothing)
	if !done || given != nil || taken != nil {
		t.Fatal(done, given, taken)
	}
	if heir.Generation() != 3 || len(heir.ConfigState().Edits) != 2 {
		t.Errorf("generation %d, %+v", heir.Generation(), heir.ConfigState().Edits)
	}
	if r, err := heir.Change(t.Context(), q); err != nil || r.Generation != 2 || heir.Generation() != 3 {
		t.Errorf("the same key: %+v, %v", r, err)
	}
	if r, err := heir.Change(t.Context(), edited("endpoint/s0/a", "weight", "8")); err != nil || r.Generation != 4 {
		t.Errorf("%+v, %v", r, err)
	}
	if heir.events.last <= n.events.last {
		t.Errorf("event %d after %d", heir.events.last, n.events.last)
	}
}

// failing is a server for HTTP whose answers can be made errors.
func failing(t *testing.T, fails func() bool) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if fails() {
			w.WriteHeader(500)
			return
		}
		_, _ = io.WriteString(w, "well")
	})}
	go func() { _ = s.Serve(l) }() // ends with the test
	t.Cleanup(func() { _ = s.Close() })
	return l.Addr().String()
}

// A node that was not told by its predecessor of numbers in the journal uses none
// of them again.
func TestNumbersAreNotUsedTwice(t *testing.T) {
	text, _ := shop(t, 1)
	r := start(t, text)
	dir := t.TempDir()
	j, err := journal.Open(journal.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Append(journal.Entry{Generation: 70, Meta: []byte("{}"), State: []byte("{}\n")}).Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	r.state.mu.Lock()
	r.state.dir = dir
	r.state.mu.Unlock()
	await(t, "the journal is not opened", func() bool { return r.ConfigState().Durable == "yes" })
	if r.Generation() != 71 {
		t.Errorf("generation %d", r.Generation())
	}
	if x := r.asks(edited("endpoint/s0/a", "weight", "7")); x.Generation != 72 {
		t.Errorf("%+v", x)
	}
}

// Who only asks what the file would do is told, also where a reload does nothing.
func TestDiffOfTheFile(t *testing.T) {
	text, _ := shop(t, 1)
	r := start(t, text)
	r.asks(ChangeRequest{Guard: anna, Source: []byte(strings.Replace(text, "weight: 50", "weight: 51", 1))})
	x := r.asks(ChangeRequest{Reread: true, DryRun: true})
	if x.Plan != "~ endpoint s0/b: weight 51 -> 50\n" || len(x.Warnings) == 0 || r.Config().Backends["s0"].Endpoint("b").Weight != 51 {
		t.Errorf("%+v", x)
	}
}

// A reload that others have joined is made though who began it has gone.
func TestJoinedReloadIsMade(t *testing.T) {
	text, _ := shop(t, 1)
	r := start(t, text)
	r.write(strings.Replace(text, "weight: 50", "weight: 51", 1))
	r.Node.change.Lock()
	hold := make(chan struct{})
	go func() { // has the turn, and waits for change
		defer close(hold)
		_, _ = r.Change(context.Background(), edited("endpoint/s0/a", "weight", "7"))
	}()
	await(t, "nobody has the turn", func() bool { return len(r.state.turn) == 0 })
	ctx, away := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { // waited for below
		_, err := r.Change(ctx, ChangeRequest{Reread: true})
		first <- err
	}()
	await(t, "no reload waits", func() bool { return r.state.waiting.Load() == 1 })
	go func() { // waited for below
		_, err := r.Change(context.Background(), ChangeRequest{Reread: true})
		second <- err
	}()
	away()
	r.Node.change.Unlock()
	if err := <-second; err != nil {
		t.Error(err)
	}
	<-first
	<-hold
	if w := r.Config().Backends["s0"].Endpoint("b").Weight; w != 51 {
		t.Errorf("weight %d", w)
	}
}

// Generations that were in force and did not come to the disk before the process
// was killed are gone, and so are their numbers: who has seen one must not take
// another state for it.
func TestNumbersThatWereSeenAreNotUsedAgain(t *testing.T) {
	text, _ := shop(t, 1)
	file, dir, copied := filepath.Join(t.TempDir(), "holdfast.yaml"), t.TempDir(), t.TempDir()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	n, err := startIn(t, file, dir)
	if err != nil {
		t.Fatal(err)
	}
	change := func(n *Node, weight string) *ChangeReport {
		t.Helper()
		q := edited("endpoint/s0/a", "weight", weight)
		q.WaitDurable = true
		r, err := n.Change(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	kept := change(n, "7")
	// As a kill leaves it: all but what was to be written next.
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	seen := change(n, "8")
	n.Stop()
	m, err := startIn(t, file, copied)
	if err != nil {
		t.Fatal(err)
	}
	if m.Generation() != kept.Generation {
		t.Fatalf("it begins with %d, not %d", m.Generation(), kept.Generation)
	}
	_, err = m.Change(t.Context(), ChangeRequest{Guard: Guard{Expect: seen.Generation}, Edits: edited("endpoint/s0/a", "weight", "9").Edits})
	if !errors.Is(err, ErrChanged) {
		t.Errorf("who has seen what is gone: %v", err)
	}
	next := change(m, "9")
	if next.Generation <= seen.Generation || next.Generation != numbersSkipped {
		t.Errorf("number %d after %d had been seen", next.Generation, seen.Generation)
	}
	if again := change(m, "10"); again.Generation != next.Generation+1 {
		t.Errorf("number %d after %d", again.Generation, next.Generation)
	}
	m.Stop()
	// Who ended in order had written all, and nothing is left out.
	o, err := startIn(t, file, copied)
	if err != nil {
		t.Fatal(err)
	}
	if last := change(o, "11"); last.Generation != next.Generation+2 {
		t.Errorf("number %d after an orderly end at %d", last.Generation, next.Generation+1)
	}
}
