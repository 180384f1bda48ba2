package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/loop"
)

// alter applies a text with a policy for flows.
func (r *running) alter(text string, p FlowsPolicy) *ChangeReport {
	r.t.Helper()
	report, err := r.Change(context.Background(), ChangeRequest{Guard: Guard{Author: Author{Name: "test"}}, Source: []byte(text), Flows: p})
	if err != nil {
		r.t.Fatal(err)
	}
	return report
}

// talkers are connections over which something was said.
func talkers(t *testing.T, vip string, n int) (all []net.Conn) {
	t.Helper()
	for i := range n {
		c := dial(t, vip)
		says(t, c, fmt.Sprint("hello ", i))
		all = append(all, c)
		time.Sleep(5 * time.Millisecond) // for their order is that of their ages, which move in milliseconds
	}
	return all
}

// event waits for one of a kind, among those after seq.
func event(t *testing.T, w *Watcher, kind, text string) Event {
	t.Helper()
	ctx, end := context.WithTimeout(context.Background(), 20*time.Second)
	defer end()
	for {
		e, err := w.Next(ctx)
		if err != nil {
			t.Fatalf("no event of kind %s with %q: %v", kind, text, err)
		}
		if e.Kind == kind && strings.Contains(e.Text, text) {
			return e
		}
	}
}

func (r *running) watching() *Watcher {
	r.t.Helper()
	w, err := r.Watch(0)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(w.Close)
	return w
}

// reset wants that a connection was reset, ended that it came to an orderly end.
func reset(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %v, want a reset", err)
	}
}

// oneReset waits until one of the connections is reset, and tells which.
func oneReset(t *testing.T, all []net.Conn) (which int) {
	t.Helper()
	await(t, "none is reset", func() bool {
		for i, c := range all {
			_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
			_, err := c.Read(make([]byte, 1))
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
			if errors.Is(err, syscall.ECONNRESET) {
				which = i
				return true
			}
		}
		return false
	})
	return which
}

// refused wants that a connection is reset, be it before or after it is there.
func refused(t *testing.T, vip string) {
	t.Helper()
	c, err := net.Dial("tcp4", vip)
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, err = c.Read(make([]byte, 1))
		_ = c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v, want a reset", err)
	}
}

func ended(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read %v, want the end", err)
	}
}

// What one change says of flows is stronger than what their listener says, and is
// of that change only.
func TestPolicyOfOneChange(t *testing.T) {
	vip, server := free(t), echo(t)
	for _, x := range []struct {
		listener, on  string
		adopt, closed int
	}{
		{"close", "keep", 0, 0}, {"close", "adopt", 1, 0}, {"keep", "adopt", 1, 0}, {"keep", "close", 0, 1}, {"adopt", "", 1, 0}, {"close", "", 0, 1},
	} {
		r := start(t, yaml(vip, server, ", onChange: "+x.listener, ""))
		c := talkers(t, vip, 1)[0]
		report := r.alter(yaml(vip, server, ", idleTimeout: 1h, onChange: "+x.listener, ""), FlowsPolicy{On: x.on})
		if report.Flows != x.adopt || report.Closed != x.closed || report.Following != 0 || report.Lost != 0 {
			t.Errorf("%+v: %d adopted, %d closed, %d following", x, report.Flows, report.Closed, report.Following)
		}
		if report.Impact.FlowsAdopt != x.adopt || report.Impact.FlowsClosed != x.closed || report.Impact.FlowsUntouched != 1-x.adopt-x.closed {
			t.Errorf("%+v: impact %+v", x, report.Impact)
		}
		if x.closed == 1 {
			reset(t, c)
		} else {
			says(t, c, "still here")
			if old := r.Status().OnOld; old != 1-x.adopt {
				t.Errorf("%+v: %d flows on old objects", x, old)
			}
		}
		r.Stop()
	}
}

// Weights, and endpoints that come, are nothing to the flows of a backend: they
// are under no old object, and no policy concerns them. Those whose endpoint goes
// are.
func TestWeightsAreNothingToFlows(t *testing.T) {
	vip, a, b := free(t), echo(t), echo(t)
	text := func(weight int, also string) string {
		return fmt.Sprintf("node: { loops: 2 }\nlisteners: { web: { vip: %q, backend: app } }\nbackends: { app: { endpoints: [ { name: a, address: %q, weight: %d } %s ] } }\n", vip, a, weight, also)
	}
	second := fmt.Sprintf(", { name: b, address: %q, weight: 0 }", b)
	r := start(t, text(10, ""))
	c := talkers(t, vip, 1)[0]
	for _, x := range []string{text(20, ""), text(20, second), text(0, second)} {
		report := r.alter(x, FlowsPolicy{On: "close"})
		if report.Closed != 0 || report.Impact.FlowsClosed != 0 || report.Impact.FlowsUntouched != 1 {
			t.Errorf("%q: %d closed, impact %+v", report.Plan, report.Closed, report.Impact)
		}
		says(t, c, "nothing happened")
		if s := r.Status(); s.OnOld != 0 || len(s.OldObjects) != 0 {
			t.Errorf("%q: %d flows on %+v", report.Plan, s.OnOld, s.OldObjects)
		}
	}
	without := strings.Replace(text(0, second), fmt.Sprintf("{ name: a, address: %q, weight: 0 } ,", a), "", 1)
	report := r.alter(without, FlowsPolicy{})
	if report.Closed != 0 || report.Impact.FlowsDrain != 1 || report.Impact.EndpointsRemoved != 1 {
		t.Errorf("%q: %d closed, impact %+v", report.Plan, report.Closed, report.Impact)
	}
	says(t, c, "it goes on where it was")
	s := r.Status()
	if s.OnOld != 1 || len(s.OldObjects) != 1 || s.OldObjects[0].Object != "endpoint/app/a" || !s.OldObjects[0].Gone || s.OldObjects[0].Flows != 1 || s.OldestSeconds <= 0 {
		t.Errorf("%d flows on %+v, the oldest since %g s", s.OnOld, s.OldObjects, s.OldestSeconds)
	}
	if age := value(t, r.Measure(), "oldest_generation_age_seconds"); age < s.OldestSeconds {
		t.Errorf("the oldest object left %g s ago, and %g s before", age, s.OldestSeconds)
	}
}

// Between two requests a client is under nothing old: the next one is ruled by
// what is in force. While a request is under way it is.
func TestIdleClientsAreNotOld(t *testing.T) {
	f := startFarm(t, "", "a")
	ask := func(c net.Conn, path string) {
		if _, err := io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: web\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	idle, busy := dial(t, f.vip), dial(t, f.vip)
	ask(idle, "/")
	if _, err := http.ReadResponse(bufio.NewReader(idle), nil); err != nil {
		t.Fatal(err)
	}
	ask(busy, "/slow")
	await(t, "nothing is under way", func() bool { return f.state("a").InFlight == 1 })
	f.alter(strings.Replace(f.text, "protocol: http", "protocol: http, http: { timeouts: { keepalive: 1h } }", 1), FlowsPolicy{})
	s := f.Status()
	if s.OnOld != 1 || len(s.OldObjects) != 1 || s.OldObjects[0].Object != "listener/web" || f.Look().OnOld != 1 {
		t.Errorf("%d under %+v, and %d on the page, want the one that asks", s.OnOld, s.OldObjects, f.Look().OnOld)
	}
	close(f.webs["a"].slow)
	await(t, "it is still under way", func() bool { return f.Status().OnOld == 0 })
	// Who is to be closed is closed, idle or not.
	report := f.alter(strings.Replace(f.text, "protocol: http", "protocol: http, http: { timeouts: { keepalive: 2h } }", 1), FlowsPolicy{On: "close"})
	if report.Closed != 2 || report.Impact.FlowsClosed != 2 {
		t.Errorf("%d closed, impact %+v", report.Closed, report.Impact)
	}
}

// What waits for an endpoint adopts a change, too, though it is at no endpoint.
func TestWaitingFlowsAdopt(t *testing.T) {
	vip, server, other := free(t), echo(t), echo(t)
	text := func(more string) string {
		return fmt.Sprintf("node: { loops: 2 }\nlisteners: { web: { vip: %q, backend: app, onChange: adopt } }\nbackends: { app: { limits: { queueTime: 1m } %s } }\n", vip, more)
	}
	r := start(t, text(fmt.Sprintf(", endpoints: [ { name: a, address: %q } ]", server)))
	if _, err := r.SetEndpoint(EndpointRequest{Backend: "app", Endpoint: "a", Do: "hold"}); err != nil {
		t.Fatal(err)
	}
	c := dial(t, vip)
	await(t, "it does not wait", func() bool { return r.Status().Queued["app"] == 1 })
	r.alter(text(fmt.Sprintf(", connectTimeout: 3s, endpoints: [ { name: a, address: %q } ]", server)), FlowsPolicy{})
	if s := r.Status(); s.OnOld != 0 || s.Queued["app"] != 1 {
		t.Errorf("%d flows are under old objects, %d wait", s.OnOld, s.Queued["app"])
	}
	r.alter(text(fmt.Sprintf(", connectTimeout: 3s, endpoints: [ { name: a, address: %q }, { name: b, address: %q } ]", server, other)), FlowsPolicy{})
	says(t, c, "it has found the one that came")
}

// A listener that has another name goes on: its flows may adopt it as any change.
func TestRenamedListener(t *testing.T) {
	vip, server := free(t), echo(t)
	for on, want := range map[string]struct{ adopt, closed, drain int }{"": {0, 0, 0}, "adopt": {2, 0, 0}, "close": {0, 2, 0}} {
		r := start(t, yaml(vip, server, "", ""))
		all := talkers(t, vip, 2)
		report := r.alter(strings.Replace(yaml(vip, server, "", ""), "web:", "shop:", 1), FlowsPolicy{On: on})
		if i := report.Impact; report.Flows != want.adopt || report.Closed != want.closed || i.FlowsAdopt != want.adopt || i.FlowsClosed != want.closed || i.FlowsDrain != want.drain {
			t.Errorf("%q: %d adopted, %d closed, impact %+v", on, report.Flows, report.Closed, i)
		}
		for _, c := range all {
			if on == "close" {
				reset(t, c)
			} else {
				says(t, c, "still here")
			}
		}
		for _, f := range r.Status().OldObjects {
			if on != "" || f.Object != "listener/web" || !f.Gone {
				t.Errorf("%q: %+v", on, f)
			}
		}
		if n := r.shared.Ledger.Listener("shop").InUse(); on == "adopt" && n != 2 {
			t.Errorf("%d count for the new name", n)
		}
		r.Stop()
	}
}

// What a plan will do to flows is told before, and is what it does.
func TestImpact(t *testing.T) {
	first, second, server, other := free(t), free(t), echo(t), echo(t)
	text := func(one, app string) string {
		return fmt.Sprintf("node: { loops: 2 }\nlisteners:\n  two: { vip: %q, backend: other }\n%sbackends:\n  other: { endpoints: [ { name: a, address: %q } ] }\n  app: { %s }\n", second, one, server, app)
	}
	one := fmt.Sprintf("  one: { vip: %q, backend: app }\n", first)
	both := fmt.Sprintf("endpoints: [ { name: a, address: %q }, { name: b, address: %q } ]", server, other)
	r := start(t, text(one, both))
	talkers(t, first, 4)
	talkers(t, second, 3)
	only := fmt.Sprintf("endpoints: [ { name: a, address: %q } ]", server)
	for _, x := range []struct {
		what, text                      string
		on                              string
		adopt, closed, drain, untouched int
	}{
		{"nothing", text(one, both), "close", 0, 0, 0, 7},
		{"an endpoint goes", text(one, only), "", 0, 0, 2, 5},
		{"an endpoint goes, and its flows", text(one, only), "close", 0, 2, 0, 5},
		{"rules of a backend", text(one, "connectTimeout: 3s, "+both), "", 0, 0, 0, 7},
		{"rules of a backend, adopted", text(one, "connectTimeout: 3s, "+both), "adopt", 4, 0, 0, 3},
		{"a listener goes", text("", both), "", 0, 0, 4, 3},
		{"a listener goes, and its flows", text("", both), "close", 0, 4, 0, 3},
		{"a listener goes, and nothing is to adopt", text("", both), "adopt", 0, 0, 4, 3},
		{"a listener goes, and an endpoint", text("", only), "", 0, 0, 4, 3},
	} {
		report, err := r.Change(context.Background(), ChangeRequest{Source: []byte(x.text), Flows: FlowsPolicy{On: x.on}, DryRun: true})
		if err != nil {
			t.Fatal(err)
		}
		if i := report.Impact; i.FlowsAdopt != x.adopt || i.FlowsClosed != x.closed || i.FlowsDrain != x.drain || i.FlowsUntouched != x.untouched {
			t.Errorf("%s: %d adopt, %d closed, %d drain, %d untouched; want %d, %d, %d, %d", x.what, i.FlowsAdopt, i.FlowsClosed, i.FlowsDrain, i.FlowsUntouched, x.adopt, x.closed, x.drain, x.untouched)
		}
		if r.Generation() != 1 {
			t.Fatalf("%s: a dry run is generation %d", x.what, r.Generation())
		}
	}
	report := r.alter(text("", only), FlowsPolicy{On: "close"})
	if report.Closed != 4 || report.Impact.FlowsClosed != 4 {
		t.Errorf("%d closed, impact %+v", report.Closed, report.Impact)
	}
	r.flows(3)
}

// Flows may follow a change in their time: it is told how far they are, and when
// they are done.
func TestFlowsFollowPaced(t *testing.T) {
	const n = 24
	for _, on := range []string{"close", "adopt"} {
		vip, server := free(t), echo(t)
		r := start(t, yaml(vip, server, "", ""))
		all := talkers(t, vip, n)
		w := r.watching()
		report := r.alter(yaml(vip, server, ", idleTimeout: 1h", ""), FlowsPolicy{On: on, PerSecond: 100, Jitter: 1})
		if report.Following != n || report.Closed != 0 || report.Flows != 0 {
			t.Fatalf("%s: %d following, %d closed, %d adopted", on, report.Following, report.Closed, report.Flows)
		}
		done := event(t, w, "follow", fmt.Sprintf("flows have followed generation %d", report.Generation))
		if done.Fields["followed"] != fmt.Sprint(n) || done.Fields["left"] != "0" {
			t.Errorf("%s: %+v", on, done)
		}
		await(t, "it is not over", func() bool { return len(r.Status().Following) == 0 })
		if s := r.Status(); s.OnOld != 0 {
			t.Errorf("%s: %d flows on old objects", on, s.OnOld)
		}
		for _, c := range all {
			if on == "close" {
				reset(t, c)
			} else {
				says(t, c, "adopted")
			}
		}
		r.Stop()
	}
}

// A later change takes over what it touches, and nothing else.
func TestLaterChangeSupersedes(t *testing.T) {
	first, second, server := free(t), free(t), echo(t)
	text := func(a, b, weight string) string {
		return fmt.Sprintf("node: { loops: 2 }\nlisteners:\n  one: { vip: %q, backend: app %s }\n  two: { vip: %q, backend: app %s }\nbackends: { app: { endpoints: [ { name: a, address: %q %s } ] } }\n", first, a, second, b, server, weight)
	}
	slower := func(text string) string {
		return strings.Replace(text, "app: { endpoints", "app: { connectTimeout: 3s, endpoints", 1)
	}
	r := start(t, text("", "", ""))
	one, two := talkers(t, first, 3), talkers(t, second, 2)
	// Slowly enough that the test sees it: nothing is due but the first.
	report := r.alter(slower(text("", "", "")), FlowsPolicy{On: "close", PerSecond: 0.0001})
	if report.Following != 5 {
		t.Fatalf("%d are following", report.Following)
	}
	await(t, "the first one is not closed", func() bool { return r.Status().Flows == 4 })
	reset(t, one[0]) // the oldest
	r.alter(slower(text("", "", ", weight: 7")), FlowsPolicy{})
	if s := r.Status(); len(s.Following) != 1 || s.Following[0].Followed != 1 || s.Following[0].Left != 4 || s.Following[0].Generation != report.Generation {
		t.Errorf("after a weight: %+v", s.Following)
	}
	var w *follower
	r.side.mu.Lock()
	for x := range r.side.followers {
		w = x
	}
	r.side.mu.Unlock()
	if n := len(r.stragglers(w, nil)); n != 4 {
		t.Errorf("after a weight %d are to follow, want 4", n)
	}
	r.alter(slower(text(", idleTimeout: 2h", "", ", weight: 7")), FlowsPolicy{})
	left := r.stragglers(w, nil)
	if len(left) != 2 {
		t.Errorf("%d are still to follow, want the 2 of the listener that the later change did not touch", len(left))
	}
	for _, c := range append(one[1:], two...) {
		says(t, c, "still here")
	}
}

// Only so many changes may be followed at once; one more is refused, and has
// changed nothing.
func TestFollowersAreBounded(t *testing.T) {
	vip, server := free(t), echo(t)
	var listeners []string
	vips := make([]string, followersMax+2)
	for i := range vips {
		vips[i] = free(t)
	}
	text := func(changed int) string {
		listeners = listeners[:0]
		for i, v := range vips {
			idle := ""
			if i < changed {
				idle = ", idleTimeout: 1h"
			}
			listeners = append(listeners, fmt.Sprintf("  l%d: { vip: %q, backend: app%s }\n", i, v, idle))
		}
		return fmt.Sprintf("node: { loops: 1 }\nlisteners:\n%sbackends: { app: { endpoints: [ { name: a, address: %q } ] } }\n", strings.Join(listeners, ""), server)
	}
	_ = vip
	r := start(t, text(0))
	for _, v := range vips {
		talkers(t, v, 2)
	}
	slow := FlowsPolicy{On: "close", PerSecond: 0.0001}
	for i := range followersMax {
		if report := r.alter(text(i+1), slow); report.Following != 2 {
			t.Fatalf("change %d: %d following", i, report.Following)
		}
	}
	before := r.Generation()
	_, err := r.Change(context.Background(), ChangeRequest{Source: []byte(text(followersMax + 1)), Flows: slow})
	if !errors.Is(err, ErrBusy) || r.Generation() != before {
		t.Errorf("one more: %v, generation %d, was %d", err, r.Generation(), before)
	}
	if report := r.alter(text(followersMax+1), FlowsPolicy{On: "close"}); report.Closed != 2 {
		t.Errorf("at once: %+v", report)
	}
}

// What is no policy is refused, and changes nothing.
func TestBadPolicies(t *testing.T) {
	vip, server := free(t), echo(t)
	r := start(t, yaml(vip, server, "", ""))
	for _, p := range []FlowsPolicy{{On: "drop"}, {PerSecond: -1}, {PerSecond: 2e9}, {Jitter: 1.5}, {Jitter: -0.1}} {
		if _, err := r.Change(context.Background(), ChangeRequest{Source: []byte(yaml(vip, server, ", idleTimeout: 1h", "")), Flows: p}); err == nil || r.Generation() != 1 {
			t.Errorf("%+v: %v, generation %d", p, err, r.Generation())
		}
	}
}

// A pace is kept on the mean, whatever is left to chance, and what was missed is
// not all made up for at once.
func TestPacer(t *testing.T) {
	for _, jitter := range []float64{0, 0.5, 1} {
		now := time.Unix(1000, 0)
		turn := 0.0
		p := newPacer(now, 50, jitter, func() float64 { turn += 0.25; return turn - float64(int(turn)) })
		done := 0
		for end := now.Add(10 * time.Second); now.Before(end); now = now.Add(time.Millisecond) {
			k, wait := p.take(now, 8)
			done += k
			if k == 0 && (wait <= 0 || wait > 40*time.Millisecond) {
				t.Fatalf("jitter %g: nothing is due, and the wait is %v", jitter, wait)
			}
		}
		// Quarters of the interval have a mean of 3/8 of twice the interval.
		want := 500 / (1 - jitter/4)
		if float64(done) < want*0.97 || float64(done) > want*1.03 {
			t.Errorf("jitter %g: %d in 10 s, want about %.0f", jitter, done, want)
		}
		now = now.Add(time.Minute)
		sum := 0
		for k, _ := p.take(now, 8); k > 0; k, _ = p.take(now, 8) {
			sum += k
		}
		if sum > 50 {
			t.Errorf("jitter %g: after a minute of standing still %d are due at once", jitter, sum)
		}
	}
	p := newPacer(time.Unix(0, 0), 0, 0, nil)
	if k, _ := p.take(time.Unix(0, 0), 8); k != 8 {
		t.Errorf("without a pace %d of 8 are due", k)
	}
}

// Flows are ended by what they are; nothing is ended because nobody said what.
func TestKill(t *testing.T) {
	first, second, server := free(t), free(t), echo(t)
	r := start(t, fmt.Sprintf("node: { loops: 2 }\nlisteners:\n  one: { vip: %q, backend: app }\n  two: { vip: %q, backend: app }\nbackends: { app: { endpoints: [ { name: a, address: %q } ] } }\n", first, second, server))
	one, two := talkers(t, first, 6), talkers(t, second, 3)
	ctx := context.Background()
	for _, q := range []KillRequest{
		{}, {Filter: FlowFilter{Listener: "one"}, Then: "bury"}, {ID: "one"}, {All: true, PerSecond: -1}, {All: true, Filter: FlowFilter{Max: -1}},
		{All: true, Guard: Guard{Expect: 77}},
	} {
		if report, err := r.Kill(ctx, q); err == nil {
			t.Errorf("%+v killed %d", q, report.Killed)
		}
	}
	w := r.watching()
	flows := r.flows(9)
	report, err := r.Kill(ctx, KillRequest{Guard: Guard{Author: Author{Name: "anna"}}, ID: flows[0].ID})
	if err != nil || report.Killed != 1 || report.Left != 0 {
		t.Fatalf("one: %+v, %v", report, err)
	}
	reset(t, one[0])
	if e := event(t, w, "kill", "1 flow ended"); e.By != "anna" {
		t.Errorf("%+v", e)
	}
	report, err = r.Kill(ctx, KillRequest{Filter: FlowFilter{Listener: "one", Max: 2}, Then: "fin"})
	if err != nil || report.Killed != 2 {
		t.Fatalf("two of them: %+v, %v", report, err)
	}
	over := map[net.Conn]bool{}
	look := func() bool {
		for _, c := range one[1:] {
			if over[c] {
				continue
			}
			_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
				over[c] = true
				_ = c.Close()
			} else if n, timed := err.(net.Error); !timed || !n.Timeout() {
				t.Errorf("by fin: %v", err)
			}
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		}
		return len(over) >= 2
	}
	await(t, "two come to an orderly end", look)
	r.flows(6)
	if look(); len(over) != 2 {
		t.Errorf("%d came to an orderly end, want 2", len(over))
	}
	report, err = r.Kill(ctx, KillRequest{Filter: FlowFilter{Listener: "one"}, PerSecond: 200})
	if err != nil || report.Killed != 3 || report.Left != 0 {
		t.Fatalf("the rest, paced: %+v, %v", report, err)
	}
	for _, c := range two {
		says(t, c, "not meant")
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if report, err = r.Kill(ended, KillRequest{All: true}); err != nil || report.Killed != 0 || report.Left != 3 {
		t.Fatalf("for nobody: %+v, %v", report, err)
	}
	if report, err = r.Kill(ctx, KillRequest{All: true}); err != nil || report.Killed != 3 {
		t.Fatalf("all: %+v, %v", report, err)
	}
	m := r.settled()
	if rst, fin, two := value(t, m, "flows_killed_total", "one", "rst"), value(t, m, "flows_killed_total", "one", "fin"), value(t, m, "flows_killed_total", "two", "rst"); rst != 4 || fin != 2 || two != 3 {
		t.Errorf("counted %g by rst, %g by fin, %g of the other listener", rst, fin, two)
	}
}

// told collects the progress of a removal.
type told struct {
	mu  sync.Mutex
	all []Progress
}

func (x *told) tell(p Progress) {
	x.mu.Lock()
	x.all = append(x.all, p)
	x.mu.Unlock()
}

// seen waits until a phase was told with so many in flight.
func (x *told) seen(t *testing.T, phase string, inFlight int64) {
	t.Helper()
	await(t, fmt.Sprintf("%s with %d in flight is not told", phase, inFlight), func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		return slices.ContainsFunc(x.all, func(p Progress) bool { return p.Phase == phase && p.InFlight == inFlight })
	})
}

// two is a node with two echo servers behind one listener.
func two(t *testing.T) (r *running, vip string) {
	vip = free(t)
	return start(t, fmt.Sprintf("node: { loops: 2 }\nlisteners: { web: { vip: %q, backend: app } }\nbackends: { app: { balance: round-robin, endpoints: [ { name: a, address: %q }, { name: b, address: %q } ] } }\n", vip, echo(t), echo(t))), vip
}

// at sorts connections by the endpoint that they are at.
func (r *running) at(all []net.Conn) map[string][]net.Conn {
	r.t.Helper()
	out := map[string][]net.Conn{}
	for _, f := range r.flows(len(all)) {
		for _, c := range all {
			if c.LocalAddr().String() == f.Client {
				out[f.Endpoint] = append(out[f.Endpoint], c)
			}
		}
	}
	return out
}

// An endpoint that is removed gets nothing new, ends what it has, and goes.
func TestRemoveEndpointDrains(t *testing.T) {
	r, vip := two(t)
	mine := r.at(talkers(t, vip, 6))["app/a"]
	if len(mine) != 3 {
		t.Fatalf("%d flows at a", len(mine))
	}
	var steps told
	done := make(chan error)
	go func() { // ends with the removal
		done <- r.Remove(context.Background(), RemoveRequest{Guard: Guard{Author: Author{Name: "anna"}}, Object: "endpoint/app/a", Drain: true}, steps.tell)
	}()
	steps.seen(t, "quiescing", 3)
	if s := r.Status(); len(s.Removing) != 1 || s.Removing[0].Object != "endpoint/app/a" || s.Removing[0].By.Name != "anna" {
		t.Errorf("under way: %+v", s.Removing)
	}
	for _, c := range talkers(t, vip, 4) {
		says(t, c, "new ones come to the other")
	}
	for i, c := range mine {
		_ = c.Close()
		steps.seen(t, "quiescing", int64(len(mine)-1-i))
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	last := steps.all[len(steps.all)-1]
	if last.Phase != "done" || !last.Done || last.Cut != 0 || last.Report == nil || last.Report.Impact.EndpointsRemoved != 1 {
		t.Errorf("at last %+v", last)
	}
	if b := r.Config().Backends["app"]; len(b.Endpoints) != 1 || b.Endpoints[0].Name != "b" {
		t.Errorf("endpoints %v", b.Endpoints)
	}
	if s := r.Status(); len(s.Removing) != 0 {
		t.Errorf("still under way: %+v", s.Removing)
	}
	if err := r.Remove(context.Background(), RemoveRequest{Object: "endpoint/app/b"}, nil); err == nil || len(r.Config().Backends["app"].Endpoints) != 1 {
		t.Errorf("the last one was removed: %v", err)
	}
}

// What is left at the deadline is ended, or goes on where it is.
func TestRemoveEndpointDeadline(t *testing.T) {
	for _, then := range []string{"rst", "fin", ""} {
		r, vip := two(t)
		by := r.at(talkers(t, vip, 4))
		var steps told
		err := r.Remove(context.Background(), RemoveRequest{Object: "endpoint/app/a", Drain: true, Deadline: 20 * time.Millisecond, Then: then}, steps.tell)
		if err != nil {
			t.Fatal(err)
		}
		last := steps.all[len(steps.all)-1]
		cut := 2
		if then == "" {
			cut = 0
		}
		if last.Phase != "done" || last.Cut != cut || steps.all[0].InFlight != 2 {
			t.Errorf("%q: %+v", then, steps.all)
		}
		for _, c := range by["app/a"] {
			switch then {
			case "rst":
				reset(t, c)
			case "fin":
				ended(t, c)
			default:
				says(t, c, "goes on")
			}
		}
		for _, c := range by["app/b"] {
			says(t, c, "not meant")
		}
		r.Stop()
	}
}

// A removal that nobody waits for any more is undone.
func TestRemoveEndpointGivenUp(t *testing.T) {
	r, vip := two(t)
	talkers(t, vip, 2)
	ctx, giveUp := context.WithCancel(context.Background())
	var steps told
	done := make(chan error)
	go func() { // ends with the removal
		done <- r.Remove(ctx, RemoveRequest{Object: "endpoint/app/a", Drain: true}, steps.tell)
	}()
	steps.seen(t, "quiescing", 1)
	if s := stateIn(r.Node, "app/a"); s.Serves {
		t.Errorf("while it is removed: %+v", s)
	}
	giveUp()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("ended by %v", err)
	}
	if s := stateIn(r.Node, "app/a"); !s.Serves || s.Admin != "ready" || len(r.Config().Backends["app"].Endpoints) != 2 {
		t.Errorf("after it was given up: %+v", s)
	}
	if last := steps.all[len(steps.all)-1]; last.Phase != "aborted" || last.Failed == "" || !last.Done {
		t.Errorf("at last %+v", last)
	}
}

func stateIn(n *Node, endpoint string) EndpointState {
	for _, s := range n.EndpointStates() {
		if s.Name == endpoint {
			return s
		}
	}
	return EndpointState{}
}

// A listener goes first and its flows drain then; a backend goes when nothing
// names it.
func TestRemoveListenerAndBackend(t *testing.T) {
	first, second, server := free(t), free(t), echo(t)
	r := start(t, fmt.Sprintf("node: { loops: 2 }\nlisteners:\n  one: { vip: %q, backend: app }\n  two: { vip: %q, backend: other }\nbackends:\n  app: { endpoints: [ { name: a, address: %q } ] }\n  other: { endpoints: [ { name: a, address: %q } ] }\n", first, second, server, server))
	one, others := talkers(t, first, 3), talkers(t, second, 2)
	ctx := context.Background()
	for _, bad := range []RemoveRequest{
		{Object: "one"}, {Object: "listener/three"}, {Object: "endpoint/app"}, {Object: "endpoint/app/b"}, {Object: "node/one"},
		{Object: "listener/one", Deadline: time.Second}, {Object: "listener/one", Drain: true, Deadline: -1}, {Object: "listener/one", Then: "bury"},
		{Object: "listener/one", Guard: Guard{Expect: 99}}, {Object: "backend/app"},
	} {
		if err := r.Remove(ctx, bad, nil); err == nil || len(r.Config().Listeners) != 2 || len(r.Config().Backends) != 2 {
			t.Fatalf("%+v: %v", bad, err)
		}
	}
	var steps told
	done := make(chan error)
	go func() { // ends with the removal
		done <- r.Remove(ctx, RemoveRequest{Object: "listener/one", Drain: true}, steps.tell)
	}()
	steps.seen(t, "draining", 3)
	if c, err := net.Dial("tcp4", first); err == nil {
		t.Error("a listener that is removed accepts")
		_ = c.Close()
	}
	for _, c := range one {
		says(t, c, "drains")
		_ = c.Close()
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := r.Remove(ctx, RemoveRequest{Object: "backend/app"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := r.Remove(ctx, RemoveRequest{Object: "listener/two", Then: "fin"}, steps.tell); err != nil {
		t.Fatal(err)
	}
	for _, c := range others {
		ended(t, c)
	}
	if last := steps.all[len(steps.all)-1]; last.Cut != 2 || len(r.Config().Listeners) != 0 || len(r.Config().Backends) != 1 {
		t.Errorf("at last %+v, %d listeners, %d backends", last, len(r.Config().Listeners), len(r.Config().Backends))
	}
}

// Flows move to a peer with their listener, if they may; what cannot be is refused
// before anything is done, and others are not meant.
func TestRemoveByMigration(t *testing.T) {
	first, second, server := free(t), free(t), echo(t)
	text := fmt.Sprintf("node: { loops: 2, name: n1 }\nlisteners:\n  one: { vip: %q, backend: app }\n  two: { vip: %q, backend: app }\nbackends: { app: { endpoints: [ { name: a, address: %q }, { name: b, address: %q } ] } }\n", first, second, server, server)
	r := start(t, text)
	talkers(t, first, 3)
	talkers(t, second, 2)
	for object, why := range map[string]string{"listener/one": "cluster", "endpoint/app/a": "with their listener", "backend/app": "with their listener"} {
		err := r.Remove(context.Background(), RemoveRequest{Object: object, Then: "migrate", To: "n2"}, nil)
		if err == nil || !strings.Contains(err.Error(), why) || r.Generation() != 1 || stateIn(r.Node, "app/a").Admin != "ready" {
			t.Errorf("%s: %v", object, err)
		}
	}
	if err := r.Remove(context.Background(), RemoveRequest{Object: "listener/one", Then: "rst", To: "n2"}, nil); err == nil || r.Generation() != 1 {
		t.Error("to a peer, by rst:", err)
	}
	x := &removal{n: r.Node, kind: "listener", name: "one"}
	count := func() (sum int) {
		r.eachFlow(func(_ *loop.Loop, _ uint32, f *flow.Flow) {
			if x.under(f) {
				sum++
			}
		})
		return sum
	}
	if n := count(); n != 0 {
		t.Errorf("%d flows would move while their listener is there", n)
	}
	if err := r.Remove(context.Background(), RemoveRequest{Object: "listener/one"}, nil); err != nil {
		t.Fatal(err)
	}
	if n := count(); n != 3 {
		t.Errorf("%d flows would move, want the 3 of the listener that is gone", n)
	}
}

// A share of what is new is turned away, exactly so much, until somebody ends it
// or its time is over.
func TestShed(t *testing.T) {
	f := startFarm(t, "", "a")
	ask := func(n int) (refused int) {
		for range n {
			switch code := get(t, f.vip, "/"); code {
			case http.StatusServiceUnavailable:
				refused++
			case http.StatusOK:
			default:
				t.Fatalf("status %d", code)
			}
		}
		return refused
	}
	for _, q := range []ShedRequest{
		{Backend: "nobody", Percent: 10}, {Backend: "web", Percent: -1}, {Backend: "web", Percent: 101}, {Backend: "web", Percent: 0.01},
		{Backend: "web", Percent: 10, As: "200"}, {Backend: "web", Percent: 10, For: -1}, {Backend: "web", Percent: 10, Guard: Guard{Expect: 99}},
	} {
		if r, err := f.Shed(q); err == nil {
			t.Errorf("%+v: %+v", q, r)
		}
	}
	r, err := f.Shed(ShedRequest{Guard: Guard{Author: Author{Name: "anna"}}, Backend: "web", Percent: 25})
	if err != nil || r.Percent != 25 || r.Was != 0 || r.As != "503" || r.Loops != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	if n := ask(200); n < 48 || n > 52 {
		t.Errorf("%d of 200 are turned away, want 50", n)
	}
	s := f.Status().Sheds
	if len(s) != 1 || s[0].Backend != "web" || s[0].Percent != 25 || s[0].By.Name != "anna" || s[0].Turned < 48 {
		t.Errorf("status %+v", s)
	}
	if ratio := value(t, f.Measure(), "shed_ratio", "web"); ratio != 0.25 {
		t.Errorf("a ratio of %g", ratio)
	}
	if r, err = f.Shed(ShedRequest{Backend: "web"}); err != nil || r.Was != 25 {
		t.Fatalf("%+v, %v", r, err)
	}
	if n := ask(20); n != 0 {
		t.Errorf("%d of 20 are turned away after its end", n)
	}
	w := f.watching()
	if r, err = f.Shed(ShedRequest{Backend: "web", Percent: 100, For: time.Hour}); err != nil || r.Until.IsZero() {
		t.Fatalf("%+v, %v", r, err)
	}
	if n := ask(3); n != 3 {
		t.Errorf("%d of 3 are turned away", n)
	}
	f.endSheds(r.Until.Add(-time.Second))
	if len(f.Status().Sheds) != 1 {
		t.Error("it ended before its time")
	}
	f.endSheds(r.Until)
	if e := event(t, w, "shed", "any more"); e.Object != "backend/web" || e.Fields["turned_away"] != "3" {
		t.Errorf("%+v", e)
	}
	if n := ask(3); n != 0 || len(f.Status().Sheds) != 0 {
		t.Errorf("%d of 3 are turned away after its time, status %+v", n, f.Status().Sheds)
	}
	if k := value(t, f.Measure(), "shed_total", "web", "503"); k < 51 {
		t.Errorf("%g counted", k)
	}
}

// What is shed ends with its backend.
func TestShedEndsWithItsBackend(t *testing.T) {
	vip, server := free(t), echo(t)
	r := start(t, yaml(vip, server, "", ""))
	if _, err := r.Shed(ShedRequest{Backend: "app", Percent: 100, As: "reset"}); err != nil {
		t.Fatal(err)
	}
	refused(t, vip)
	other := strings.ReplaceAll(yaml(vip, server, "", ""), "app", "shop")
	r.alter(other, FlowsPolicy{})
	await(t, "it is still shed", func() bool { return len(r.Status().Sheds) == 0 })
	r.alter(yaml(vip, server, "", ""), FlowsPolicy{})
	says(t, dial(t, vip), "nothing is shed")
}

// A successor goes on with what is shed, with flows that follow a change, and
// knows since when objects are old.
func TestUpgradeGoesOnWithFlows(t *testing.T) {
	vip, server := free(t), echo(t)
	r := start(t, yaml(vip, server, "", ""))
	all := talkers(t, vip, 3)
	report := r.alter(yaml(vip, server, ", idleTimeout: 1h", ""), FlowsPolicy{On: "close", PerSecond: 0.0001})
	if report.Following != 3 {
		t.Fatalf("%d following", report.Following)
	}
	await(t, "the first one is not closed", func() bool { return r.Status().Flows == 2 })
	if _, err := r.Shed(ShedRequest{Guard: Guard{Author: Author{Name: "anna"}}, Backend: "app", Percent: 100, As: "reset"}); err != nil {
		t.Fatal(err)
	}
	refused(t, vip)
	before := r.Status()
	heir, _, done, given, taken := succeed(t, r, 0, func(*Node) error { return nil }, nothing)
	if !done || given != nil || taken != nil {
		t.Fatal(done, given, taken)
	}
	s := heir.Status()
	if len(s.Sheds) != 1 || s.Sheds[0].Percent != 100 || s.Sheds[0].By.Name != "anna" || s.Sheds[0].Turned != 1 {
		t.Errorf("sheds %+v", s.Sheds)
	}
	if s.OldestSeconds < before.OldestSeconds || len(s.OldObjects) != 1 || s.OldObjects[0].Object != "listener/web" {
		t.Errorf("old for %g s, was %g: %+v", s.OldestSeconds, before.OldestSeconds, s.OldObjects)
	}
	refused(t, vip)
	if len(s.Following) != 1 || s.Following[0].Generation != report.Generation {
		t.Fatalf("following %+v", s.Following)
	}
	// A new process begins a new pace, so one is due at once.
	await(t, "the heir does not go on", func() bool { return heir.Status().Following[0].Followed == 2 })
	if left := heir.Status().Following[0].Left; left != 1 {
		t.Errorf("%d are left, want 1", left)
	}
	reset(t, all[0])
	// Which of the others comes next is the heir's to say, whose loops have them in
	// another order.
	left := all[2-oneReset(t, all[1:])]
	says(t, left, "its turn has not come")
}

// What another release has left, or nobody can read, is no reason to end.
func TestInheritSide(t *testing.T) {
	vip, server := free(t), echo(t)
	r := start(t, yaml(vip, server, "", ""))
	for _, bad := range []string{"[]", `{"sheds":[]}`, `{"sheds":{"app":{"percent":10,"as":"song"}}}`} {
		if err := r.inheritSide([]byte(bad)); err == nil || len(r.Status().Sheds) != 0 {
			t.Errorf("%s: %v", bad, err)
		}
	}
	strange := portableSide{Followers: []portableFollower{{Policy: FlowsPolicy{On: "sing", PerSecond: 1}}, {Policy: FlowsPolicy{On: "close"}}}}
	b, err := json.Marshal(strange)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.inheritSide(b); err != nil || len(r.Status().Following) != 0 {
		t.Errorf("%v, %+v", err, r.Status().Following)
	}
}

// What the kernel counts between two looks is told, and summed.
func TestKernelCounters(t *testing.T) {
	vip, server := free(t), echo(t)
	r := start(t, yaml(vip, server, "", ""))
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mark := r.kernelBefore()
	c := dial(t, l.Addr().String())
	says2, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = says2.(*net.TCPConn).SetLinger(0)
	_ = says2.Close() // by RST
	reset(t, c)
	_ = l.Close()
	grown := r.kernelAfter(mark)
	if grown["OutRsts"] == 0 {
		t.Errorf("a reset was sent, and the counters grew by %v", grown)
	}
	if s := r.Status().Kernel["OutRsts"]; s < grown["OutRsts"] {
		t.Errorf("status says %d", s)
	}
	if v := value(t, r.Measure(), "apply_silent_loss_total", "OutRsts"); v < float64(grown["OutRsts"]) {
		t.Errorf("the metric says %g", v)
	}
	if v := value(t, r.Measure(), "apply_silent_loss_total", "ListenDrops"); v < 0 {
		t.Errorf("the metric says %g", v)
	}
}

// Changes are counted by what they were and what came of them.
func TestChangesAreCounted(t *testing.T) {
	vip, server := free(t), echo(t)
	r := start(t, yaml(vip, server, "", ""))
	r.alter(yaml(vip, server, ", idleTimeout: 1h", ""), FlowsPolicy{})
	r.alter(yaml(vip, server, ", idleTimeout: 1h", ""), FlowsPolicy{})
	if _, err := r.Change(context.Background(), ChangeRequest{Source: []byte("listeners: 7\n")}); err == nil {
		t.Fatal("no error")
	}
	m := r.Measure()
	for _, x := range []struct {
		result string
		want   float64
	}{{"applied", 1}, {"unchanged", 1}, {"refused", 1}} {
		if v := value(t, m, "applies_total", "apply", x.result); v != x.want {
			t.Errorf("%s: %g, want %g", x.result, v, x.want)
		}
	}
}

// What is old is judged by what rules a flow, each thing by its name.
func TestRuling(t *testing.T) {
	vip, server := free(t), echo(t)
	c, _, err := Parse("x", []byte(yaml(vip, server, "", "")))
	if err != nil {
		t.Fatal(err)
	}
	b := c.Backends["app"]
	other := *b
	other.ConnectTimeout++
	other.Ref.Version++
	lighter := *b
	light := *b.Endpoints[0]
	light.Weight = 1
	light.Ref.Version++
	lighter.Endpoints = []*config.Endpoint{&light}
	lighter.Ref.Version += 2
	if sameRules(b, &other) || !sameRules(b, &lighter) {
		t.Errorf("another timeout: %t, another weight: %t", sameRules(b, &other), sameRules(b, &lighter))
	}
}

// What is remembered of objects that have left is what somebody may name, and
// bounded.
func TestLeftIsBounded(t *testing.T) {
	vip, server := free(t), echo(t)
	r := start(t, yaml(vip, server, "", ""))
	r.alter(yaml(vip, server, ", idleTimeout: 1h", ""), FlowsPolicy{})
	r.forgetLeft()
	r.side.mu.Lock()
	known := len(r.side.left)
	r.side.left[config.Ref{Kind: config.ListenerKind, Name: "nobody names it"}] = time.Now()
	r.side.mu.Unlock()
	r.forgetLeft()
	r.side.mu.Lock()
	defer r.side.mu.Unlock()
	if known != 1 || len(r.side.left) != 1 {
		t.Errorf("%d are known that left, then %d, want the listener's old version", known, len(r.side.left))
	}
}

// Those that left first are forgotten first.
func TestLeftForgetsTheOldest(t *testing.T) {
	vip, server := free(t), echo(t)
	r := start(t, yaml(vip, server, "", ""))
	began := time.Now()
	objects := make([]any, leftMax+10)
	r.side.mu.Lock()
	for i := range objects {
		ref := config.Ref{Kind: config.EndpointKind, Name: "app/a", Version: uint64(i) + 1}
		objects[i] = &config.Endpoint{Ref: ref}
		r.side.left[ref] = began.Add(time.Duration(i))
	}
	r.side.mu.Unlock()
	r.registry.add(began, objects...)
	r.forgetLeft()
	r.side.mu.Lock()
	defer r.side.mu.Unlock()
	_, first := r.side.left[config.Ref{Kind: config.EndpointKind, Name: "app/a", Version: 10}]
	_, second := r.side.left[config.Ref{Kind: config.EndpointKind, Name: "app/a", Version: 11}]
	if len(r.side.left) != leftMax || first || !second {
		t.Errorf("%d are left, the tenth %t, the eleventh %t", len(r.side.left), first, second)
	}
}
