package node

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/journal"
)

// meanwhile begins a change, and does what comes after it has read the state and
// before it takes effect.
func (r *running) meanwhile(change func() error, do func()) {
	r.t.Helper()
	r.change.Lock() // as an upgrade or a move has it
	done := make(chan error, 1)
	go func() { done <- change() }()
	await(r.t, "the change to have the turn", func() bool { return len(r.state.turn) == 0 })
	time.Sleep(10 * time.Millisecond) // to have read the state, too; if it has not, less is proved
	do()
	r.change.Unlock()
	if err := <-done; err != nil {
		r.t.Fatal(err)
	}
}

// ordered orders something of the endpoint s0/b.
func (r *running) ordered(do string, weight int) {
	r.t.Helper()
	if _, err := r.SetEndpoint(EndpointRequest{Guard: anna, Backend: "s0", Endpoint: "b", Do: do, Weight: weight}); err != nil {
		r.t.Fatal(err)
	}
}

// is gives how the endpoint s0/b is in the ledger, which must be what is desired.
func (r *running) is() string {
	r.t.Helper()
	o := r.state.current().orderOf("s0/b")
	for _, e := range r.EndpointStates() {
		if e.Name != "s0/b" {
			continue
		}
		if want := o.Admin; want != e.Admin && (want != "" || e.Admin != readyWord) {
			r.t.Errorf("it is %s, and the desired state says %q", e.Admin, want)
		}
		return e.Admin
	}
	return "gone"
}

// An order that is given while a canary is being rolled back stays.
func TestOrderWhileACanaryIsRolledBack(t *testing.T) {
	text, _ := shop(t, 1)
	r := start(t, text)
	q := edited("endpoint/s0/a", "weight", "7")
	q.Canary = time.Hour
	r.asks(q)
	r.meanwhile(func() error {
		_, err := r.Settle(context.Background(), SettleRequest{Guard: anna})
		return err
	}, func() { r.ordered("quiesce", 0) })
	if is := r.is(); is != "quiescing" || r.Config().Backends["s0"].Endpoint("a").Weight != 100 {
		t.Errorf("it is %s; %v", is, r.Config().Backends["s0"].Endpoint("a"))
	}
}

// An order that is given while another thing is reverted stays, and one that is
// meant by the revert does not.
func TestOrderWhileSomethingIsReverted(t *testing.T) {
	text, _ := shop(t, 1)
	for revert, want := range map[string]string{"endpoint/s0/a": "quiescing", "*": "ready"} {
		r := start(t, text)
		r.asks(edited("endpoint/s0/a", "weight", "7"))
		r.meanwhile(func() error {
			_, err := r.Change(context.Background(), ChangeRequest{Guard: anna, Revert: []config.Patch{{Object: revert}}})
			return err
		}, func() { r.ordered("quiesce", 0) })
		if is := r.is(); is != want {
			t.Errorf("%s is reverted: it is %s", revert, is)
		}
		r.Stop()
	}
}

// Who takes an order back, by its name or by an earlier generation, takes it back
// where requests go, too, though no configuration has changed since it was given.
func TestOrdersAreTakenBack(t *testing.T) {
	text, _ := shop(t, 1)
	r := start(t, text)
	for _, back := range []ChangeRequest{{Guard: anna, Revert: []config.Patch{{Object: "endpoint/s0/b"}}}, {Guard: anna, Rollback: 1}} {
		r.ordered("quiesce", 0)
		r.asks(back)
		if is := r.is(); is != "ready" {
			t.Errorf("it is %s", is)
		}
	}
}

// A shift that ends because the weight is desired otherwise leaves the endpoint
// with that weight, not with the one of its last step.
func TestShiftLeavesWhatIsDesired(t *testing.T) {
	text, _ := shop(t, 1)
	r := start(t, text)
	r.ordered("weight", 30)
	r.ordered("weight", -1)
	ended := make(chan error, 1)
	go func() {
		ended <- r.Shift(context.Background(), ShiftRequest{Guard: anna, Backend: "s0", Endpoint: "b", Weight: 0, Over: time.Hour}, func(Progress) {})
	}()
	await(t, "the shift to begin", func() bool { return len(r.Shifts()) == 1 })
	if err := r.weigh("s0/b", 17); err != nil { // as a step does
		t.Fatal(err)
	}
	r.asks(ChangeRequest{Guard: anna, Rollback: 2})
	if err := <-ended; err == nil {
		t.Error("the shift has come to its end")
	}
	await(t, "the weight that is desired", func() bool {
		for _, e := range r.EndpointStates() {
			if e.Name == "s0/b" && e.Weight == 30 {
				return true
			}
		}
		return false
	})
}

// The addresses of a host that is shifted are not brought back to the weight of
// before by what else takes effect.
func TestShiftOfAHost(t *testing.T) {
	s := &stateSide{shifts: map[string]*shift{"s0/db": nil}}
	for name, want := range map[string]bool{"s0/db": true, "s0/db/192.0.2.1:80": true, "s0/db2": false, "s1/db": false} {
		if s.shifting(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}

// A file that changes while a canary is watched is applied when that is over.
func TestFileThatChangesDuringACanary(t *testing.T) {
	text, _ := shop(t, 1)
	text = strings.Replace(text, "loops: 2", "loops: 2, watchFile: true", 1)
	r := start(t, text)
	q := edited("endpoint/s0/a", "weight", "7")
	q.Canary = time.Hour
	r.asks(q)
	if err := os.WriteFile(r.file, []byte(strings.Replace(text, "weight: 50", "weight: 51", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(fileSettle + 4*fileLook) // it is looked at; nothing would tell that it is not applied
	if w := r.Config().Backends["s0"].Endpoint("b").Weight; w != 50 {
		t.Fatalf("it is applied while a canary is watched: %d", w)
	}
	if _, err := r.Settle(t.Context(), SettleRequest{Guard: anna, Keep: true}); err != nil {
		t.Fatal(err)
	}
	await(t, "the file to be applied", func() bool { return r.Config().Backends["s0"].Endpoint("b").Weight == 51 })
}

// What flows follow is told by the number of the desired state.
func TestFollowersTellTheGeneration(t *testing.T) {
	text, vips := shop(t, 1)
	r := start(t, text)
	for range 3 { // the first one is due at once
		says(t, dial(t, vips[0]), "hello")
	}
	r.ordered("weight", 3)
	q := edited("listener/s0", "connectionsMax", "77")
	q.Flows = FlowsPolicy{On: "close", PerSecond: 0.001}
	report := r.asks(q)
	if all := r.side.followingNow(); len(all) != 1 || all[0].Generation != report.Generation {
		t.Errorf("%+v, in generation %d", all, report.Generation)
	}
}

// A successor that has not heard all yet leaves the journal alone: what it knows
// is older than what its predecessor has written at last.
func TestAnHeirLeavesTheJournalAlone(t *testing.T) {
	text, _ := shop(t, 1)
	r := start(t, text)
	dir := t.TempDir()
	j, err := journal.Open(journal.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	d := r.state.current()
	newer := d.order([]string{"s0/b"}, false, 0, "quiescing", anna.Author, time.Now())
	newer.Generation = d.Generation + 1
	j.Append(journal.Entry{Generation: newer.Generation, State: newer.encode()})
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	r.heir.Store(true)
	r.state.mu.Lock()
	r.state.dir = dir
	r.state.mu.Unlock()
	r.keepJournal()
	if _, has := r.JournalState(); has || r.Generation() != d.Generation {
		t.Errorf("it has the journal: %v, generation %d", has, r.Generation())
	}
}

// A file that can be read begins, with the edits over it, even if the text that was
// in force last cannot be read any more.
func TestFileStandsInForWhatCannotBeRead(t *testing.T) {
	text, _ := shop(t, 1)
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "holdfast.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("HOLDFAST_TEST_NAME", "n1")
	write(strings.Replace(text, "loops: 2", `loops: 2, name: "${HOLDFAST_TEST_NAME}"`, 1))
	n, err := startIn(t, file, dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Change(t.Context(), edited("endpoint/s0/a", "weight", "7")); err != nil {
		t.Fatal(err)
	}
	if _, err := n.SetEndpoint(EndpointRequest{Guard: anna, Backend: "s0", Endpoint: "b", Do: "quiesce"}); err != nil {
		t.Fatal(err)
	}
	was := n.Generation()
	n.Stop()
	if err := os.Unsetenv("HOLDFAST_TEST_NAME"); err != nil { // t.Setenv brings it back
		t.Fatal(err)
	}
	if _, err := startIn(t, file, dir); err == nil || !strings.Contains(err.Error(), "HOLDFAST_TEST_NAME") || !strings.Contains(err.Error(), dir) {
		t.Errorf("neither can be read: %v", err)
	}
	write(text)
	n, err = Start(Options{File: file, State: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Stop)
	r := &running{t: t, Node: n}
	if w := n.Config().Backends["s0"].Endpoint("a").Weight; w != 7 || r.is() != "quiescing" || n.Generation() <= was {
		t.Errorf("weight %d, b is %s, generation %d after %d", w, r.is(), n.Generation(), was)
	}
}

// Just after an upgrade, when a predecessor has the journal still, who goes back to
// a generation that only the journal has waits for it.
func TestRollbackWaitsForTheJournal(t *testing.T) {
	text, _ := shop(t, 1)
	r := start(t, text)
	dir := t.TempDir()
	j, err := journal.Open(journal.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	j.Append(journal.Entry{Generation: 1, State: r.state.current().encode()})
	r.asks(edited("endpoint/s0/a", "weight", "7"))
	r.state.mu.Lock()
	r.state.dir, r.state.history.kept = dir, nil
	r.state.mu.Unlock()
	r.meanwhile(func() error {
		_, err := r.Change(context.Background(), ChangeRequest{Guard: anna, Rollback: 1})
		return err
	}, func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	if w := r.Config().Backends["s0"].Endpoint("a").Weight; w != 100 {
		t.Errorf("weight %d", w)
	}
}

// The history says of an order what is ordered otherwise: a weight is no state.
func TestHistoryOfOrders(t *testing.T) {
	text, _ := shop(t, 1)
	r := start(t, text)
	r.ordered("quiesce", 0)
	r.ordered("weight", 20)
	all := r.Generations(2)
	if a, b := all[1].Plan, all[0].Plan; a != "~ endpoint s0/b: ready -> quiescing\n" || b != "~ endpoint s0/b: ordered the file's weight -> weight 20\n" {
		t.Errorf("%q, %q", a, b)
	}
}

// A removal that is given up and cannot bring its endpoint back, for another process
// has taken over, says how it stays.
func TestRemovalThatCannotBeTakenBack(t *testing.T) {
	text, vips := shop(t, 1)
	r := start(t, text)
	for range 12 { // both endpoints have some
		says(t, dial(t, vips[0]), "hello")
	}
	ctx, give := context.WithCancel(t.Context())
	defer give()
	err := r.Remove(ctx, RemoveRequest{Guard: anna, Object: "endpoint/s0/b", Drain: true}, func(p Progress) {
		if p.Phase != "quiescing" {
			return
		}
		r.watch.mu.Lock()
		r.watch.given = true // as after an upgrade
		r.watch.mu.Unlock()
		r.mu.Lock()
		r.successor = pid + 1
		r.mu.Unlock()
		give()
	})
	if err == nil || !strings.Contains(err.Error(), "stays in maintenance") || !strings.Contains(err.Error(), "holdfast endpoint ready s0/b") {
		t.Errorf("%v", err)
	}
}

// A text that differs from what was applied in its words only is no generation, and
// who has applied it is told that the disk has it later.
func TestWordsComeToTheDiskLater(t *testing.T) {
	text, _ := shop(t, 1)
	r := start(t, text)
	for i, x := range []struct {
		words           string
		unchanged, told bool
	}{{"# one\n", false, false}, {"# two\n", true, true}, {"# two\n", true, false}} {
		s := r.asks(ChangeRequest{Guard: anna, Source: []byte(x.words + text)})
		if s.Unchanged != x.unchanged || slices.Contains(s.Warnings, wordsLater) != x.told {
			t.Errorf("%d: %+v", i, s)
		}
	}
}
