package node

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// echo is a server that sends back what it gets, and ends when its peer does.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

// addresses counts those that were given to tests.
var addresses atomic.Int32

// free is an address nobody listens on.
func free(t *testing.T) string {
	t.Helper()
	// An address that no other test has, of this process or another: a port that was
	// free a moment ago on one that all share is somebody's connection a moment later.
	n := addresses.Add(1)
	l, err := net.Listen("tcp4", fmt.Sprintf("127.%d.%d.%d:0", 100+n>>8&63, os.Getpid()&255, n&255))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

type running struct {
	*Node
	t    *testing.T
	file string
}

func start(t *testing.T, text string) *running {
	t.Helper()
	r := &running{t: t, file: filepath.Join(t.TempDir(), "holdfast.yaml")}
	r.write(text)
	n, err := Start(Options{File: r.file, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Stop)
	r.Node = n
	return r
}

func (r *running) write(text string) {
	r.t.Helper()
	if err := os.WriteFile(r.file, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *running) reload(text string) *ChangeReport {
	r.t.Helper()
	r.write(text)
	report, err := r.Reload()
	if err != nil {
		r.t.Fatal(err)
	}
	return report
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// says sends what and wants it back.
func says(t *testing.T, c net.Conn, what string) {
	t.Helper()
	if _, err := io.WriteString(c, what); err != nil {
		t.Fatalf("send %q: %v", what, err)
	}
	got := make([]byte, len(what))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != what {
		t.Fatalf("got %q (%v), want %q", got, err, what)
	}
}

func yaml(vip, endpoint, listener, backend string) string {
	return fmt.Sprintf("node: { loops: 2 }\nlisteners: { web: { vip: %q, backend: app %s } }\nbackends: { app: { endpoints: [ { name: a, address: %q } ] %s } }\n",
		vip, listener, endpoint, backend)
}

// A reload with the same contents touches nothing; one that changes the
// listener leaves flows under their old objects, lets them adopt the new ones,
// or ends them, as the new listener says.
func TestReloadFollowsOnChange(t *testing.T) {
	vip, server := free(t), echo(t)
	r := start(t, yaml(vip, server, "", ""))
	c := dial(t, vip)
	says(t, c, "before")

	if again := r.reload(yaml(vip, server, "", "")); again.Generation != 1 || again.Plan != "" || again.Flows != 0 {
		t.Errorf("the same again: generation %d, plan %q, %d flows", again.Generation, again.Plan, again.Flows)
	}
	keep := r.reload(yaml(vip, server, ", idleTimeout: 1h", ""))
	if keep.Generation != 2 || keep.Flows != 0 || keep.Closed != 0 {
		t.Errorf("keep: %+v", keep)
	}
	says(t, c, "kept")
	if s := r.Status(); s.OnOld != 1 || s.Flows != 1 {
		t.Errorf("kept: %d of %d flows on old objects, want 1 of 1", s.OnOld, s.Flows)
	}
	adopt := r.reload(yaml(vip, server, ", idleTimeout: 2h, onChange: adopt", ""))
	if adopt.Flows != 1 || adopt.Lost != 0 {
		t.Errorf("adopt: %+v", adopt)
	}
	says(t, c, "adopted")
	if s := r.Status(); s.OnOld != 0 || s.Flows != 1 || s.Moves["config"] != 2 {
		t.Errorf("adopted: %d on old objects of %d, %d moves", s.OnOld, s.Flows, s.Moves["config"])
	}
	if closed := r.reload(yaml(vip, server, ", idleTimeout: 3h, onChange: close", "")); closed.Closed != 1 {
		t.Errorf("close: %+v", closed)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a flow that the configuration ends reads %v, want a reset", err)
	}
}

// flows waits until the node has so many, and lists them.
func (r *running) flows(want int) []FlowStatus {
	r.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		all, err := r.Flows(FlowFilter{})
		if err != nil {
			r.t.Fatal(err)
		}
		if len(all) == want {
			return all
		}
		if time.Now().After(end) {
			r.t.Fatalf("%d flows, want %d", len(all), want)
		}
	}
}

// A flow that has taken the slot of one that was to be ended, or to adopt a
// change, is let alone.
func TestChangeLeavesNewTenantsAlone(t *testing.T) {
	vip, server := free(t), echo(t)
	one := func(listener string) string {
		return strings.Replace(yaml(vip, server, listener, ""), "loops: 2", "loops: 1", 1)
	}
	for _, word := range []string{"close", "adopt"} {
		r := start(t, one(""))
		first := dial(t, vip)
		says(t, first, "first")
		c, _, err := Parse(r.file, []byte(one(", idleTimeout: 1h, onChange: "+word)))
		if err != nil {
			t.Fatal(err)
		}
		l := r.shared.Loops[0]
		x, rule := newFollowing(config.Diff(r.Config(), c), FlowsPolicy{}, true), newRuling(c)
		adopt, kill := x.list(l, rule)
		listed := append(adopt, kill...)
		if len(listed) != 1 {
			t.Fatalf("%s: %d flows are to follow, want 1", word, len(listed))
		}
		_ = first.Close()
		r.flows(0)
		second := dial(t, vip)
		says(t, second, "second")
		var slot uint32
		l.Ask(func(l *loop.Loop) { slot = tenants(l)[0].slot })
		if slot != listed[0].slot {
			t.Fatalf("%s: the second flow is in slot %d, so this proved nothing", word, slot)
		}
		report := newReport("config")
		r.adoptSome(l, x, rule, adopt, report)
		closed := r.endSome(l, x, rule, kill)
		if report.Flows != 0 || closed != 0 {
			t.Errorf("%s: %d flows adopted, %d closed, want none", word, report.Flows, closed)
		}
		says(t, second, "still there")
		r.Stop()
	}
}

// The oldest flows of all loops are listed, in order.
func TestFlowsOldestFirst(t *testing.T) {
	vip, server := free(t), echo(t)
	r := start(t, yaml(vip, server, "", ""))
	var want []string
	for i := range 6 {
		c := dial(t, vip)
		says(t, c, fmt.Sprint("flow ", i))
		time.Sleep(20 * time.Millisecond) // more than a move takes from an age
		want = append(want, c.LocalAddr().String())
	}
	if _, err := r.Rebalance(false); err != nil { // some to each loop
		t.Fatal(err)
	}
	loops := map[int]bool{}
	for _, most := range []int{0, 1, 3, 6, 100} {
		all, err := r.Flows(FlowFilter{Max: most})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range all {
			got = append(got, f.Client)
			loops[f.Loop] = true
		}
		expect := want
		if most > 0 {
			expect = want[:min(most, len(want))]
		}
		if !slices.Equal(got, expect) {
			t.Errorf("max %d: %v, want %v", most, got, expect)
		}
	}
	if len(loops) != 2 {
		t.Errorf("flows on %d loops, so this proved little", len(loops))
	}
	if _, err := r.Flows(FlowFilter{Max: -1}); err == nil {
		t.Error("a negative number of flows was listed")
	}
}

// A configuration that comes back finds its flows under its own objects.
func TestReloadBackAndForth(t *testing.T) {
	vip, server := free(t), echo(t)
	a, b := yaml(vip, server, ", onChange: close", ", connectTimeout: 3s"), yaml(vip, server, ", idleTimeout: 1h", ", connectTimeout: 4s")
	r := start(t, a)
	c := dial(t, vip)
	says(t, c, "under a")
	object := r.Config().Listeners["web"]
	r.reload(b)
	if s := r.Status(); s.OnOld != 1 {
		t.Errorf("under b: %d flows on old objects, want 1", s.OnOld)
	}
	if report := r.reload(a); report.Closed != 0 || report.Flows != 0 {
		t.Errorf("back to a: %d closed, %d moved, want none", report.Closed, report.Flows)
	}
	says(t, c, "under a again")
	if s := r.Status(); s.OnOld != 0 || s.Flows != 1 {
		t.Errorf("back to a: %d of %d flows on old objects, want 0 of 1", s.OnOld, s.Flows)
	}
	if r.Config().Listeners["web"] != object {
		t.Error("equal objects are not one")
	}
}

// An endpoint that has left the configuration is shown as long as it is in use.
func TestStatusShowsRemovedEndpoints(t *testing.T) {
	vip, server, other := free(t), echo(t), echo(t)
	r := start(t, yaml(vip, server, "", ""))
	c := dial(t, vip)
	says(t, c, "before")
	r.reload(strings.ReplaceAll(strings.Replace(yaml(vip, other, "", ""), "name: a", "name: b", 1), "app", "shop"))
	want := []EndpointStatus{{Name: "shop/b", Address: other}, {Name: "app/a", Address: server, InUse: 1, Removed: true}}
	if got := r.Status().Endpoints; !slices.Equal(got, want) {
		t.Errorf("endpoints %+v, want %+v", got, want)
	}
	_ = c.Close()
	r.flows(0)
	if got := r.Status().Endpoints; !slices.Equal(got, want[:1]) {
		t.Errorf("endpoints %+v, want %+v", got, want[:1])
	}
}

// Few open files leave few for flows, but never none.
func TestRoomFor(t *testing.T) {
	for _, x := range []struct{ files, loops, room int }{
		{1 << 20, 8, 1<<19 - 2304}, {20000, 2, 9232}, {4096, 8, 1536}, {1024, 4, 384}, {64, 1, 24}, {1, 1, 1},
	} {
		room, kept := roomFor(x.files, x.loops)
		if room != x.room || 2*room+kept > max(2, x.files) {
			t.Errorf("%d files, %d loops: room for %d flows with %d kept, want %d", x.files, x.loops, room, kept, x.room)
		}
	}
}

// Work for the control side needs something to check.
func TestBusyWithoutEndpoints(t *testing.T) {
	r := start(t, "node: { loops: 1 }\n")
	if _, err := r.Busy(time.Millisecond, 1, 1000); err == nil {
		t.Error("checks of no endpoint were made")
	}
	if report, err := r.Busy(time.Millisecond, 1, 0); err != nil || report.Parses != 1 {
		t.Errorf("parses alone: %+v, %v", report, err)
	}
}

// A bad file changes nothing, and the error names the place.
func TestBadReloadChangesNothing(t *testing.T) {
	vip, server := free(t), echo(t)
	r := start(t, yaml(vip, server, "", ""))
	c := dial(t, vip)
	says(t, c, "before")
	r.write(strings.Replace(yaml(vip, server, "", ""), "backend: app", "backend: apq", 1))
	_, err := r.Reload()
	var bad *config.Errors
	if !errors.As(err, &bad) || !strings.Contains(err.Error(), "holdfast.yaml:2:") {
		t.Fatalf("reload of a bad file: %v", err)
	}
	if r.Generation() != 1 {
		t.Errorf("generation %d, want 1", r.Generation())
	}
	says(t, c, "after")
	says(t, dial(t, vip), "new")
}

// A listener that is renamed, or whose policy changes, keeps its socket; one
// whose address is taken leaves everything as it was.
func TestListenersKeepTheirSockets(t *testing.T) {
	vip, server := free(t), echo(t)
	r := start(t, yaml(vip, server, "", ""))
	fd := r.gen.Listening["web"].FD
	text := strings.Replace(yaml(vip, server, "", ""), "web:", "shop:", 1)
	r.reload(text)
	if got := r.gen.Listening["shop"].FD; got != fd {
		t.Errorf("renamed: descriptor %d, was %d", got, fd)
	}
	says(t, dial(t, vip), "renamed")
	busy, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = busy.Close() }()
	r.write(yaml(busy.Addr().String(), server, "", ""))
	if _, err := r.Reload(); err == nil {
		t.Error("a listener on a taken address was accepted")
	}
	if r.Generation() != 2 {
		t.Errorf("generation %d, want 2", r.Generation())
	}
	says(t, dial(t, vip), "still there")
}

// An endpoint that refuses costs the client nothing while another one is there.
func TestRetryOnAnotherEndpoint(t *testing.T) {
	vip, server, dead := free(t), echo(t), free(t)
	text := fmt.Sprintf("node: { loops: 1 }\nlisteners: { web: { vip: %q, backend: app } }\nbackends: { app: { endpoints: [ { name: a, address: %q }, { name: b, address: %q } ] } }\n", vip, dead, server)
	r := start(t, text)
	for i := range 8 {
		says(t, dial(t, vip), fmt.Sprint("try ", i))
	}
	s := r.Status()
	if s.Retries == 0 {
		t.Error("no endpoint was retried, so this proved nothing")
	}
	for _, e := range s.Endpoints {
		if e.Name == "app/a" && (e.Errors == 0 || e.InUse != 0) {
			t.Errorf("dead endpoint: %d errors, %d in use", e.Errors, e.InUse)
		}
	}
}

// With no endpoint to connect to the client is reset, not left in the dark.
func TestNoEndpoint(t *testing.T) {
	vip := free(t)
	r := start(t, yaml(vip, free(t), "", ""))
	// The reset may come before the client has noticed that it is connected.
	c, err := net.Dial("tcp4", vip)
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, err = c.Read(make([]byte, 1))
		_ = c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client sees %v, want a reset", err)
	}
	if n := r.Status().Ended["no-endpoint"]; n != 1 {
		t.Errorf("%d flows ended for want of an endpoint, want 1", n)
	}
}

// An endpoint's limit holds over both loops, and who waits is served in order.
func TestLimitAndQueue(t *testing.T) {
	vip, server := free(t), echo(t)
	r := start(t, yaml(vip, server, "", ", limits: { connectionsPerEndpoint: 1, queue: 10, queueTime: 20s }"))
	first := dial(t, vip)
	says(t, first, "first")
	var waiting []net.Conn
	for i := range 4 {
		c := dial(t, vip)
		_, _ = fmt.Fprintf(c, "%d", i)
		await(t, fmt.Sprintf("never do %d wait", i+1), func() bool { return r.Status().Queued["app"] == i+1 })
		waiting = append(waiting, c)
	}
	_ = first.Close()
	for i, c := range waiting {
		got := make([]byte, 1)
		if _, err := io.ReadFull(c, got); err != nil || int(got[0]-'0') != i {
			t.Fatalf("waiter %d: %q, %v", i, got, err)
		}
		for _, e := range r.Status().Endpoints {
			if e.InUse > 1 {
				t.Fatalf("%d connections, the limit is 1", e.InUse)
			}
		}
		_ = c.Close()
	}
}

// Flows to an endpoint on a unix socket are relayed and move like others.
func TestUnixEndpoint(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	vip := free(t)
	r := start(t, yaml(vip, "unix:"+path, "", ""))
	c := dial(t, vip)
	says(t, c, "over a unix socket")
	if report, err := r.Rebalance(true); err != nil || report.Flows != 1 || report.Lost != 0 {
		t.Fatalf("rebalance: %+v, %v", report, err)
	}
	says(t, c, "on another loop")
	_ = c.(*net.TCPConn).CloseWrite()
	if rest, err := io.ReadAll(c); err != nil || len(rest) != 0 {
		t.Errorf("after a half-close: %q, %v", rest, err)
	}
}

// A FIN in one direction leaves the other open, in both orders; a reset on
// one leg is a reset on the other.
func TestHalfCloseAndReset(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	vip := free(t)
	start(t, yaml(vip, l.Addr().String(), "", ""))
	pair := func() (client, server *net.TCPConn) {
		client = dial(t, vip).(*net.TCPConn)
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = s.SetDeadline(time.Now().Add(20 * time.Second))
		return client, s.(*net.TCPConn)
	}
	for _, name := range []string{"client first", "server first"} {
		a, b := pair()
		if name == "server first" {
			a, b = b, a
		}
		_, _ = io.WriteString(a, "last words")
		_ = a.CloseWrite()
		if got, err := io.ReadAll(b); err != nil || string(got) != "last words" {
			t.Fatalf("%s: %q, %v", name, got, err)
		}
		for range 3 { // the other half still works
			_, _ = io.WriteString(b, "more")
			got := make([]byte, 4)
			if _, err := io.ReadFull(a, got); err != nil {
				t.Fatalf("%s: other half: %v", name, err)
			}
		}
		_ = b.CloseWrite()
		if got, err := io.ReadAll(a); err != nil || len(got) != 0 {
			t.Fatalf("%s: end: %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"client resets", "server resets"} {
		a, b := pair()
		if name == "server resets" {
			a, b = b, a
		}
		_ = a.SetLinger(0)
		_ = a.Close()
		if _, err := b.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: the other side reads %v, want a reset", name, err)
		}
	}
}

// What cannot change in a running process is said, and waits for an upgrade.
func TestPlanSaysWhatTakesAnUpgrade(t *testing.T) {
	vip, server := free(t), echo(t)
	r := start(t, yaml(vip, server, "", ""))
	report := r.reload(strings.Replace(yaml(vip, server, "", ""), "loops: 2", "loops: 1", 1))
	if !strings.Contains(report.Plan, "node.loops: takes effect with the next upgrade") {
		t.Errorf("plan %q", report.Plan)
	}
	// Back to what runs: nothing waits for an upgrade.
	if report = r.reload(yaml(vip, server, "", "")); strings.Contains(report.Plan, "next upgrade") || report.Unchanged {
		t.Errorf("%+v", report)
	}
	if report = r.reload(yaml(vip, server, "", "")); !report.Unchanged || report.Generation != 3 {
		t.Errorf("%+v", report)
	}
	if _, err := r.Migrate("elsewhere"); err == nil {
		t.Error("migrate without a cluster succeeded")
	}
}

// Stopping gives every descriptor back.
func TestStopLeaksNothing(t *testing.T) {
	before := sock.Open()
	vip, server := free(t), echo(t)
	file := filepath.Join(t.TempDir(), "holdfast.yaml")
	if err := os.WriteFile(file, []byte(yaml(vip, server, "", "")), 0o600); err != nil {
		t.Fatal(err)
	}
	n, err := Start(Options{File: file, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		c := dial(t, vip)
		says(t, c, strings.Repeat("x", 100_000))
	}
	n.Stop()
	if after := sock.Open(); after != before {
		t.Errorf("%d descriptors are left", after-before)
	}
}
