package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// meddling is a carrier that lets something happen before each message of the giver.
type meddling struct {
	move.Carrier
	before func(move.Message)
}

func (m *meddling) Send(x move.Message) error {
	m.before(x)
	return m.Carrier.Send(x)
}

// along is succeed for an upgrade that must do, with something before each message of
// the giver.
func along(t *testing.T, of *running, prepare func(*Node) error, before func(move.Message)) *Node {
	t.Helper()
	near, far, err := sock.ChannelPair()
	if err != nil {
		t.Fatal(err)
	}
	c := move.NewLocal(near)
	var heir *Node
	var taken error
	end := make(chan struct{})
	go func() { // waited for below
		defer close(end)
		s, err := Succeed(far.FD().Disown(), Options{File: of.file, Log: slog.New(slog.DiscardHandler)}, prepare)
		if taken = err; err == nil {
			heir = s.Node
			t.Cleanup(heir.Stop)
			taken = s.Run(nothing)
		}
	}()
	g := newGiver(t.Context(), of.Node, UpgradeRequest{Canary: -1}, newReport("process"), nil)
	how, given := of.handOver(&meddling{c, before}, g)
	_ = c.Close()
	<-end
	if given != nil || taken != nil || !how.Done {
		t.Fatalf("given: %v, taken: %v, done %t", given, taken, how.Done)
	}
	return heir
}

func nobody(move.Message) {}

// What is ordered, shed, shifted and counted while a successor starts is in force in
// it, and who has seen an event sees the next one.
func TestWhatIsDoneMeanwhileGoesAlong(t *testing.T) {
	vip, one, two := free(t), webServer(t), webServer(t)
	old := start(t, fmt.Sprintf(`
node: { loops: 2 }
listeners: { web: { vip: %q, protocol: http, backend: app } }
backends:
  app: { endpoints: [ { name: a, address: %q }, { name: b, address: %q } ] }
  other: { endpoints: [ { name: c, address: %q } ] }
`, vip, one, two, one))
	ctx := t.Context()
	by := Guard{Author: Author{Name: "anna"}}
	if _, err := old.SetEndpoint(EndpointRequest{Guard: by, Backend: "app", Endpoint: "a", Do: "weight", Weight: 30}); err != nil {
		t.Fatal(err)
	}
	seen, err := old.Watch(0)
	if err != nil {
		t.Fatal(err)
	}
	defer seen.Close()
	keyed := Guard{Author: by.Author, Key: "k1"}
	heir := along(t, old, func(*Node) error {
		// The successor has begun with what was before.
		for _, err := range []error{
			func() error {
				_, err := old.SetEndpoint(EndpointRequest{Guard: by, Backend: "app", Endpoint: "b", Do: "maint"})
				return err
			}(),
			func() error {
				_, err := old.Shed(ShedRequest{Guard: keyed, Backend: "other", Percent: 50})
				return err
			}(),
			func() error {
				_, _, err := old.beginShift(ShiftRequest{Guard: by, Backend: "app", Endpoint: "a", Weight: 90, Over: time.Hour}, nil)
				return err
			}(),
		} {
			if err != nil {
				return err
			}
		}
		return nil
	}, nobody)
	if was, is := old.Generation(), heir.Generation(); was != is || is != 3 {
		t.Errorf("generation %d, it was %d, want 3", is, was)
	}
	var kinds []string
	for _, g := range heir.Generations(0) {
		kinds = append(kinds, g.Kind)
	}
	if got := strings.Join(kinds, " "); got != "order order start" {
		t.Errorf("the history is of %s", got)
	}
	for _, e := range heir.EndpointStates() {
		if want := map[string]string{"app/a": "ready", "app/b": "maintenance", "other/c": "ready"}[e.Name]; e.Admin != want {
			t.Errorf("%s is %s, want %s", e.Name, e.Admin, want)
		}
	}
	if all := heir.shedding(); len(all) != 1 || all[0].Backend != "other" || all[0].By.Name != "anna" {
		t.Errorf("shed: %+v", all)
	}
	if all := heir.Shifts(); len(all) != 1 || all[0].To != 90 || all[0].From != 30 {
		t.Errorf("shifted: %+v", all)
	}
	again, err := heir.Shed(ShedRequest{Guard: keyed, Backend: "other", Percent: 50})
	if err != nil || again.Was != 0 {
		t.Errorf("what was asked for under a key was done again: %+v, %v", again, err)
	}
	// Whoever watched goes on where he was.
	read, _ := seen.Place()
	next, err := heir.Watch(read)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	var got []string
	for last := read; len(got) < 3; {
		e, err := next.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == "missed" || e.Seq != last+1 {
			t.Fatalf("after event %d comes %+v", last, e)
		}
		last = e.Seq
		got = append(got, e.Kind)
	}
	if kinds := strings.Join(got, " "); kinds != "endpoint shed upgrade" {
		t.Errorf("events are %s", kinds)
	}
}

// A successor that has applied a file of its own before it was ready keeps it, under
// what was ordered meanwhile; its generation comes after those of the predecessor.
func TestSuccessorKeepsTheFileItApplied(t *testing.T) {
	vip, one := free(t), webServer(t)
	text := func(more string) string {
		return fmt.Sprintf("node: { loops: 1 }\nlisteners: { web: { vip: %q, protocol: http, backend: app } }\nbackends: { app: { endpoints: [ { name: a, address: %q }, { name: b, address: %q } %s ] } }\n", vip, one, one, more)
	}
	old := start(t, text(""))
	heir := along(t, old, func(n *Node) error {
		if _, err := n.Change(t.Context(), ChangeRequest{Source: []byte(text(", { name: c, address: \"127.0.0.1:9\" }"))}); err != nil {
			return err
		}
		_, err := old.SetEndpoint(EndpointRequest{Backend: "app", Endpoint: "a", Do: "maint"})
		return err
	}, nobody)
	if g := heir.Generation(); old.Generation() != 2 || g != 3 {
		t.Errorf("generation %d after %d, want 3 after 2", g, old.Generation())
	}
	var kinds []string
	for _, g := range heir.Generations(0) {
		kinds = append(kinds, fmt.Sprintf("%d %s", g.Generation, g.Kind))
	}
	if got := strings.Join(kinds, ", "); got != "3 apply, 2 order, 1 start" {
		t.Errorf("the history is of %s", got)
	}
	if n := len(heir.Config().Backends["app"].Endpoints); n != 3 {
		t.Errorf("%d endpoints, the file that was applied has 3", n)
	}
	if s := heir.EndpointStates()[0]; s.Admin != "maintenance" {
		t.Errorf("%s is %s", s.Name, s.Admin)
	}
	// It can go back to what was before, and is in order with itself.
	if _, err := heir.Change(t.Context(), ChangeRequest{Rollback: 2}); err != nil {
		t.Error(err)
	}
	if n := len(heir.Config().Backends["app"].Endpoints); n != 2 {
		t.Errorf("%d endpoints after a rollback", n)
	}
}

// Rates, sticky clients, ejections and latencies go along with an upgrade: what the
// predecessor had let through the successor does not let through again, and clients
// stay where they are.
func TestWhatIsLearntGoesAlong(t *testing.T) {
	vip, good, bad := free(t), webServer(t), free(t)
	old := start(t, fmt.Sprintf(`
node: { loops: 2 }
listeners:
  web:
    vip: %q
    protocol: http
    http: { rate: { requests: 10/h } }
    routes: [ { match: { path: { prefix: / } }, backend: app } ]
backends:
  app:
    sticky: { header: { name: X-User } }
    eject: { consecutive: 2, share: 50%%, time: 1h, timeMax: 2h }
    endpoints: [ { name: good, address: %q }, { name: alike, address: %q }, { name: bad, address: %q } ]
`, vip, good, good, bad))
	ask := func(user string) int {
		q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+vip+"/x", nil)
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("X-User", user)
		q.Close = true
		r, err := http.DefaultClient.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, r.Body)
		_ = r.Body.Close()
		return r.StatusCode
	}
	served := 0
	for i := range 6 {
		if ask(fmt.Sprint("user", i)) == http.StatusOK {
			served++
		}
	}
	book := old.shared.Ledger.Backend("app")
	table := book.Stats().Learned
	if served == 0 || table == 0 {
		t.Fatalf("%d were served, %d learnt", served, table)
	}
	fails := old.account("app/bad")
	for range 2 { // so that it is ejected even if nobody came to it
		fails.Note(sock.Monotonic(), false, 0)
	}
	old.watch.tick(true)
	heir := along(t, old, func(*Node) error { return nil }, nobody)
	for _, e := range heir.EndpointStates() {
		if out := e.Name == "app/bad"; out != (e.EjectedSeconds > 0) {
			t.Errorf("%s is ejected for %v s", e.Name, e.EjectedSeconds)
		}
	}
	if n := heir.shared.Ledger.Backend("app").Stats().Learned; n != table {
		t.Errorf("%d clients are sticky, there were %d", n, table)
	}
	at := sock.Monotonic()
	for _, name := range []string{"app/good", "app/alike"} {
		was, is := old.account(name).LatencyAt(at), heir.account(name).LatencyAt(at)
		if was > 0 && (is < 0.8*was || is > 1.2*was) {
			t.Errorf("%s: latency %v, it was %v", name, time.Duration(is), time.Duration(was))
		}
	}
	codes := map[int]int{}
	for range 10 {
		codes[ask("user0")]++
	}
	if codes[http.StatusTooManyRequests] != 6 || codes[http.StatusOK] != 4 {
		t.Errorf("of 10 an hour 6 were used, and of 10 more came %v", codes)
	}
}

// No counter falls for whoever scrapes at any moment of an upgrade, from the process
// that answers then, under traffic.
func TestCountersNeverFallOnTheWay(t *testing.T) {
	web, raw, server := free(t), free(t), webServer(t)
	old := start(t, site(web, raw, server, ""))
	idle := dial(t, web)
	says200(t, idle)
	for range 20 {
		get(t, raw, "/x")
	}
	last := observed(old.Measure())
	scrapes := 0
	var once sync.Once
	heir := along(t, old, func(*Node) error { return nil }, func(m move.Message) {
		if m.Kind == move.Copy || m.Kind == move.Drop {
			once.Do(func() { get(t, web, "/x") }) // whoever comes meanwhile
		}
		if !old.Left() { // else it says so, and nothing more
			last = grown(t, "before "+m.Kind.String(), last, old.Measure())
			scrapes++
		}
	})
	last = grown(t, "after all", last, heir.Measure())
	if scrapes < 6 {
		t.Errorf("%d scrapes on the way", scrapes)
	}
	says200(t, idle)
	grown(t, "later", last, heir.Measure())
}

// A change that waits for an upgrade is not done by the process that was replaced; it
// says who answers now, and asked again under its key the successor does it, once.
func TestChangeWaitsForTheSuccessor(t *testing.T) {
	vip, one := free(t), webServer(t)
	old := start(t, yaml(vip, one, "", ""))
	q := ChangeRequest{Guard: Guard{Key: "k"}, Edits: []config.Patch{{Object: "backend/app", Field: "balance", Value: "random"}}}
	old.change.Lock() // as Upgrade does
	result := make(chan error, 1)
	go func() {
		_, err := old.Change(context.WithoutCancel(t.Context()), q)
		result <- err
	}()
	heir := along(t, old, func(*Node) error { return nil }, nobody)
	old.mu.Lock()
	old.successor = 4711
	old.mu.Unlock()
	old.change.Unlock()
	if err := <-result; !errors.Is(err, ErrHandedOver) || !strings.Contains(err.Error(), "4711") {
		t.Fatalf("the change gave %v", err)
	}
	for range 2 {
		r, err := heir.Change(t.Context(), q)
		if err != nil || r.Generation != 2 {
			t.Fatalf("asked again: %+v, %v", r, err)
		}
	}
}
