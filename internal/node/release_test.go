package node

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

var updateTold = flag.Bool("update-told", false, "write what this code tells its successor to testdata/told/head.json")

// spoken is one message of an upgrade without flows, as it went over the channel.
type spoken struct {
	From string          `json:"from"` // giver or taker
	Kind string          `json:"kind"`
	Body json.RawMessage `json:"body,omitempty"`
}

// recording is the carrier of a giver that keeps what is said.
type recording struct {
	move.Carrier
	mu  sync.Mutex // guards all
	all []spoken
}

func (r *recording) note(from string, m move.Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, spoken{from, m.Kind.String(), bytes.Clone(m.Body)})
}

func (r *recording) Send(m move.Message) error {
	err := r.Carrier.Send(m)
	if err == nil {
		r.note("giver", m)
	}
	return err
}

func (r *recording) Receive() (move.Message, error) {
	m, err := r.Carrier.Receive()
	if err == nil {
		r.note("taker", m)
	}
	return m, err
}

// toldSetting is a node that has something of everything to tell: orders, a shed, a shift, a
// checked endpoint, clients that belong somewhere, requests that were counted.
func toldSetting(t *testing.T) *running {
	t.Helper()
	vip, one, two := free(t), webServer(t), webServer(t)
	n := start(t, fmt.Sprintf(`
node: { name: told, loops: 2 }
listeners: { web: { vip: %q, protocol: http, backend: app, rate: { connections: 1000/s } } }
backends:
  app:
    sticky: { source: { maxAge: 8h, bits4: 32 } }
    check: { tcp: {}, interval: 1h }
    endpoints: [ { name: a, address: %q }, { name: b, address: %q } ]
  other:
    endpoints: [ { name: c, address: %q } ]
`, vip, one, two, one))
	by := Guard{Author: Author{Name: "anna", Reason: "why"}}
	if _, err := n.SetEndpoint(EndpointRequest{Guard: by, Backend: "app", Endpoint: "a", Do: "weight", Weight: 30}); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if got := get(t, vip, "/"); got != 200 {
			t.Fatalf("request %d: %d", i, got)
		}
	}
	if got := get(t, vip, "/bad"); got != 500 {
		t.Fatalf("a bad one: %d", got)
	}
	if _, err := n.SetEndpoint(EndpointRequest{Guard: by, Backend: "app", Endpoint: "b", Do: "maint"}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Shed(ShedRequest{Guard: by, Backend: "other", Percent: 50}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.beginShift(ShiftRequest{Guard: by, Backend: "app", Endpoint: "a", Weight: 90, Over: time.Hour}, nil); err != nil {
		t.Fatal(err)
	}
	if !n.WaitEmpty(30 * time.Second) {
		t.Fatal("flows are left")
	}
	return n
}

// record has a successor take over and gives what was said, and the directory of
// its file.
func record(t *testing.T) (all []spoken, dir string) {
	t.Helper()
	old := toldSetting(t)
	near, far, err := sock.ChannelPair()
	if err != nil {
		t.Fatal(err)
	}
	c := &recording{Carrier: move.NewLocal(near)}
	end := make(chan error, 1)
	go func() { // waited for below
		s, err := Succeed(far.FD().Disown(), Options{File: old.file, Log: slog.New(slog.DiscardHandler)}, func(*Node) error { return nil })
		if err == nil {
			t.Cleanup(s.Node.Stop)
			err = s.Run(nothing)
		}
		end <- err
	}()
	g := newGiver(t.Context(), old.Node, UpgradeRequest{Canary: -1}, newReport("process"), nil)
	how, given := old.handOver(c, g)
	_ = c.Close()
	if taken := <-end; taken != nil || given != nil || !how.Done {
		t.Fatalf("given: %v, taken: %v, done %t", given, taken, how.Done)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// What goes along with descriptors is for those who have them.
	return slices.DeleteFunc(c.all, func(x spoken) bool { return slices.Contains([]string{"copy", "copied", "idle"}, x.Kind) }), filepath.Dir(old.file)
}

const toldDir = "testdata/told"

// writeTold keeps what was said, without where the test ran.
func writeTold(t *testing.T, file string, all []spoken, dir string) {
	t.Helper()
	text, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.ReplaceAll(text, []byte(dir), []byte("/etc/holdfast"))
	if err := os.MkdirAll(toldDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(toldDir, file), append(text, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

// What a release of the window tells its successor beside flows, this one understands, part by
// part; and it answers in the order in which that release listens. What this
// code tells is in head.json, and becomes the file of the next release.
func TestToldByReleases(t *testing.T) {
	if *updateTold {
		all, dir := record(t)
		writeTold(t, "head.json", all, dir)
	}
	for _, release := range append(toldWindow(t), "head") {
		t.Run(release, func(t *testing.T) {
			understands(t, readTold(t, release))
		})
	}
}

// What this code tells a successor of an older release has all that one told, under the
// same names, and comes in the order in which that one listens: a downgrade is the
// same operation.
func TestTellsReleases(t *testing.T) {
	for _, release := range toldWindow(t) {
		t.Run(release, func(t *testing.T) { tells(t, readTold(t, release)) })
	}
}

// tells has a node of this code hand over to a recorded successor.
func tells(t *testing.T, all []spoken) {
	t.Helper()
	old := toldSetting(t)
	near, far, err := sock.ChannelPair()
	if err != nil {
		t.Fatal(err)
	}
	taker := move.NewLocal(far)
	if err := taker.SetTimeout(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	is, was := map[string]bool{}, map[string]bool{}
	end := make(chan error, 1)
	go func() { // waited for below
		end <- func() error {
			var ahead *move.Message // one that came where the recording had one more
			for _, x := range all {
				k := kindOf(t, x.Kind)
				if x.From == "taker" {
					if err := taker.Send(move.Message{Kind: k, Body: x.Body}); err != nil {
						return err
					}
					continue
				}
				paths(was, x.Kind, x.Body)
				for got := false; !got; {
					m := ahead
					ahead = nil
					if m == nil {
						next, err := taker.Receive()
						if err != nil {
							return fmt.Errorf("waiting for %v: %w", k, err)
						}
						m = &next
					}
					for _, fd := range m.FDs {
						fd.Close()
					}
					switch got = m.Kind == k; {
					case got:
						paths(is, m.Kind.String(), m.Body)
					case k == move.Inherit: // of knowledge there may be less
						ahead, got = m, true
					case m.Kind == move.Inherit: // or more
						paths(is, m.Kind.String(), m.Body)
					default:
						return fmt.Errorf("%v came where %v was due", m.Kind, k)
					}
				}
			}
			return nil
		}()
	}()
	g := newGiver(t.Context(), old.Node, UpgradeRequest{Canary: -1}, newReport("process"), nil)
	how, given := old.handOver(move.NewLocal(near), g)
	if taken := <-end; taken != nil || given != nil || !how.Done {
		t.Fatalf("given: %v, taken: %v, done %t", given, taken, how.Done)
	}
	_ = taker.Close()
	if len(was) < 50 {
		t.Errorf("only %d names in the recording: %v", len(was), was)
	}
	// Whether somebody had to wait for the first check, and so the time that was waited,
	// is left to chance.
	delete(was, "done.series.w")
	for path := range was {
		if !is[path] {
			t.Errorf("%s is not told any more", path)
		}
	}
}

// paths notes all names in a JSON text, each with those around it. Names that are
// addresses differ from run to run.
func paths(all map[string]bool, at string, text json.RawMessage) {
	var object map[string]json.RawMessage
	var array []json.RawMessage
	switch {
	case json.Unmarshal(text, &object) == nil && object != nil:
		for name, x := range object {
			if strings.Contains(name, "127.0.0.1:") {
				name = "an address"
			}
			all[at+"."+name] = true
			paths(all, at+"."+name, x)
		}
	case json.Unmarshal(text, &array) == nil:
		for _, x := range array {
			paths(all, at, x)
		}
	}
}

// toldWindow is the releases of the window.
func toldWindow(t *testing.T) (releases []string) {
	t.Helper()
	text, err := os.ReadFile("../frozen/testdata/releases.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] != "#" {
			releases = append(releases, f[0])
		}
	}
	if len(releases) == 0 {
		t.Fatal("the window is empty")
	}
	return releases
}

func readTold(t *testing.T, release string) (all []spoken) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(toldDir, release+".json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// kindOf finds a kind of message by its name.
func kindOf(t *testing.T, name string) move.Kind {
	t.Helper()
	for k := move.Kind(1); k < 255; k++ {
		if k.String() == name {
			return k
		}
	}
	t.Fatalf("no kind of message is called %q", name)
	return 0
}

// understands has a node of this code take over from a recording, and looks what it
// knows then.
func understands(t *testing.T, all []spoken) {
	t.Helper()
	near, far, err := sock.ChannelPair()
	if err != nil {
		t.Fatal(err)
	}
	c := move.NewLocal(near)
	if err := c.SetTimeout(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	var heir *Node
	end := make(chan error, 1)
	go func() { // waited for below
		s, err := Succeed(far.FD().Disown(), Options{Log: slog.New(slog.DiscardHandler)}, func(*Node) error { return nil })
		if err == nil {
			heir = s.Node
			err = s.Run(nothing)
		}
		end <- err
	}()
	var heritage move.Heritage
	var estate Estate
	for i, x := range all {
		k := kindOf(t, x.Kind)
		if x.From == "taker" {
			m, err := c.Receive()
			if err != nil || m.Kind != k {
				t.Fatalf("message %d: %v (%v), want %v", i, m.Kind, err, k)
			}
			continue
		}
		m := move.Message{Kind: k, Body: x.Body}
		if k == move.Inherit && heritage.Listeners == nil {
			if err := json.Unmarshal(x.Body, &heritage); err != nil {
				t.Fatal(err)
			}
			for range heritage.Listeners {
				m.FDs = append(m.FDs, listening(t))
			}
		}
		if k == move.Done {
			if err := json.Unmarshal(x.Body, &estate); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Send(m); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	_ = c.Close()
	if err := <-end; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(heir.Stop)
	if heritage.Generation == 0 || estate.Accepted == 0 {
		t.Fatal("the recording has no heritage, or no estate")
	}
	knows(t, heir, &heritage, &estate)
}

// listening is a socket as a predecessor hands it over.
func listening(t *testing.T) sock.FD {
	t.Helper()
	fd, err := sock.Listen(sock.ListenSpec{Addr: netip.MustParseAddrPort(free(t)), Backlog: 16})
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// knows looks for all of toldSetting in a successor.
func knows(t *testing.T, heir *Node, h *move.Heritage, e *Estate) {
	t.Helper()
	if g := heir.Generation(); g != h.Generation {
		t.Errorf("generation %d, told was %d", g, h.Generation)
	}
	if id := heir.shared.NextID.Load(); id < h.LastID {
		t.Errorf("identities go on after %d, told was %d", id, h.LastID)
	}
	var kinds []string
	for _, g := range heir.Generations(0) {
		kinds = append(kinds, g.Kind+" by "+g.By.Name)
	}
	if got := strings.Join(kinds, ", "); !strings.HasPrefix(got, "order by anna, order by anna, start by ") {
		t.Errorf("the history is %s", got)
	}
	for _, x := range heir.EndpointStates() {
		want := map[string]string{"app/a": "ready", "app/b": "maintenance", "other/c": "ready"}[x.Name]
		if x.Admin != want {
			t.Errorf("%s is %s, want %s", x.Name, x.Admin, want)
		}
	}
	if all := heir.shedding(); len(all) != 1 || all[0].Backend != "other" || all[0].Percent != 50 || all[0].By.Name != "anna" || all[0].By.Reason != "why" {
		t.Errorf("shed: %+v", all)
	}
	if all := heir.Shifts(); len(all) != 1 || all[0].Object != "endpoint/app/a" || all[0].From != 30 || all[0].To != 90 {
		t.Errorf("shifted: %+v", all)
	}
	if x := heir.shared.Ledger.Tables()["app"]; x == nil || len(x.Keys) != 1 || !slices.ContainsFunc(x.Endpoints, func(s string) bool { return strings.HasSuffix(s, "a") || strings.HasSuffix(s, "b") }) {
		t.Errorf("who belongs where: %+v", x)
	}
	checked := 0
	for _, b := range heir.watch.save(heir.watch.now()) {
		if b.Backend == "app" {
			checked = len(b.Endpoints)
		}
	}
	if checked != 2 {
		t.Errorf("%d endpoints of app are judged, want 2", checked)
	}
	s := heir.Status()
	if s.Accepted != e.Accepted || s.Requests != e.Requests || s.Requests != 6 || s.Responses["2xx"] != 5 || s.Responses["5xx"] != 1 {
		t.Errorf("accepted %d, requests %d, responses %v; told was %d, %d", s.Accepted, s.Requests, s.Responses, e.Accepted, e.Requests)
	}
}
