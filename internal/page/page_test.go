package page

import (
	"bytes"
	"flag"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/node"
)

var rewrite = flag.Bool("rewrite", false, "write the golden pages")

const source = `
listeners:
  web:
    vip: 127.0.0.1:8080
    protocol: http
    routes:
      - { match: { host: api.example.org, path: { prefix: /v1/ } }, backend: api }
      - { match: { path: { prefix: /old } }, redirect: { path: /new } }
      - { backend: web }
  sql: { vip: 127.0.0.1:5432, backend: sql }
backends:
  web: { endpoints: [ { name: a1, address: 127.0.0.1:9001 }, { name: a2, address: 127.0.0.1:9002, weight: 50 } ] }
  api: { endpoints: [ { name: b1, address: 127.0.0.1:9003 } ] }
  sql: { endpoints: [ { name: db1, address: 127.0.0.1:9004 }, { name: db2, address: 127.0.0.1:9005, backup: true } ] }
`

func parsed(t *testing.T) *config.Config {
	t.Helper()
	c, _, err := config.Parse("holdfast.yaml", []byte(source), nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// snapshot is a node that has served for a while.
func snapshot(t *testing.T, v View) *Snapshot {
	t.Helper()
	s := &Snapshot{View: v, Query: url.Values{}, Look: &node.Look{
		Node: "n1", Release: "1.2.3", PID: 4711, Generation: 42, Up: 90 * time.Minute, Config: parsed(t), OnOld: 3,
		Balance: node.Balance{
			Totals: node.Totals{
				Accepted: 1204118, Ended: map[string]uint64{"finished": 803000, "client-reset": 500, "backend-reset": 399300, "idle-timeout": 61}, Refused: 53,
				Moves: map[string]uint64{"config": 2, "process": 1}, MovedFlows: map[string]uint64{"config": 30, "process": 1204},
			},
			Open: 1204, Holds: true,
		},
		Oldest:    &node.FlowStatus{ID: "f-1", Listener: "sql", AgeSeconds: 19*86400 + 3*3600, Moves: 218},
		Connected: map[string]int64{"web": 1000, "sql": 204}, Queued: map[string]int{"api": 7},
		Endpoints: []node.EndpointState{
			{Name: "api/b1", Backend: "api", Address: "127.0.0.1:9003", State: "down", Health: "down", Why: "connection refused", SinceSeconds: 40, Weight: 1, EffectiveWeight: 1},
			{Name: "sql/db1", Backend: "sql", Address: "127.0.0.1:9004", State: "ready", Health: "unknown", Serves: true, SinceSeconds: 5400, Weight: 1, EffectiveWeight: 1, InFlight: 204},
			{Name: "sql/db2", Backend: "sql", Address: "127.0.0.1:9005", State: "ready", Health: "unknown", Serves: true, Backup: true, SinceSeconds: 5400, Weight: 1, EffectiveWeight: 1},
			{Name: "web/a1", Backend: "web", Address: "127.0.0.1:9001", State: "up", Health: "up", Serves: true, SinceSeconds: 5400, Weight: 100, EffectiveWeight: 20, InFlight: 3},
			{Name: "web/a2", Backend: "web", Address: "127.0.0.1:9002", State: "quiescing", Admin: "quiescing", Health: "up", SinceSeconds: 12, Weight: 50, EffectiveWeight: 50},
		},
		Paces: map[node.Path]node.Pace{},
		LastUpgrade: &node.UpgradeStatus{At: time.Date(2026, 3, 1, 11, 0, 0, 0, time.UTC), Result: "done", Was: 4710,
			Move: &node.Report{Flows: 20110, PID: 4711, From: "1.4.0", To: "1.5.0", Pause: node.Pause{Max: 2900}}},
		Residue: []node.ResidueStatus{{PID: 4710, Release: "1.4.0", Flows: 3, Until: time.Date(2026, 3, 1, 11, 10, 0, 0, time.UTC)}},
	}}
	pace := func(p node.Path, perSecond, errors float64) {
		s.Look.Paces[p] = node.Pace{PerSecond: perSecond, ErrorsPerSecond: errors, P50: 1500 * time.Microsecond, P99: 48 * time.Millisecond}
	}
	pace(node.Path{Listener: "web", Route: node.AnyRoute}, 1000, 10)
	pace(node.Path{Listener: "web", Route: 0}, 200, 10)
	pace(node.Path{Listener: "web", Route: 2}, 800, 0)
	pace(node.Path{Listener: "web", Route: 0, Backend: "api"}, 200, 10)
	pace(node.Path{Listener: "web", Route: 2, Backend: "web"}, 800, 0)
	pace(node.Path{Route: node.AnyRoute, Backend: "api"}, 200, 10)
	pace(node.Path{Route: node.AnyRoute, Backend: "web"}, 800, 0)
	pace(node.Path{Route: node.AnyRoute, Backend: "api", Endpoint: "b1"}, 200, 10)
	pace(node.Path{Route: node.AnyRoute, Backend: "web", Endpoint: "a1"}, 800, 0)
	for at := range int64(100) {
		if at == 61 || at == 62 {
			continue // an upgrade
		}
		m := node.Moment{At: 1e9 + at, Open: 1200 + at%3, Shares: []node.Share{{Listener: "web", Open: 996 + at%3}, {Listener: "sql", Open: 204}}, Counted: at >= 10}
		switch at {
		case 30, 32:
			m.Marks = []node.Mark{{What: "reload", Count: 1}}
		case 63:
			m.Marks = []node.Mark{{What: "upgrade", Count: 1}}
		case 80:
			m.Policy = 61
		}
		s.History = append(s.History, m)
	}
	at := time.Date(2026, 3, 1, 12, 30, 0, 0, time.UTC)
	anna := node.Author{Name: "anna", Reason: "more room"}
	s.Changes = &node.Changes{
		At: at, Generation: 42, File: "/etc/holdfast.yaml", FileDiffers: true, Durable: "yes",
		Edits: []node.Drift{{Object: "endpoint/web/a2", Field: "weight", File: "50", Runtime: "20", By: anna, At: at.Add(-time.Hour)}, {Object: "backend/api", Field: "connectTimeout", Runtime: "2s", By: anna, At: at.Add(-time.Minute)}},
		Generations: []node.GenerationInfo{
			{Generation: 42, At: at, By: anna, Kind: "edit", Plan: "~ endpoint web/a2: weight 50 -> 20\n", InForce: true, Impact: node.Impact{EndpointsChanged: 1, WeightsChanged: 1, FlowsUntouched: 1204}},
			{Generation: 41, At: at.Add(-time.Hour), By: node.Author{Name: "file"}, Kind: "file", Plan: strings.Repeat("+ endpoint web/x\n", 20), Durable: true, Impact: node.Impact{EndpointsAdded: 20, FlowsClosed: 2, FlowsDrain: 12}},
		},
		Canary: "watching until 12:31:00", CanaryEnds: at.Add(time.Minute),
		Shifts:    []node.ShiftState{{Object: "endpoint/web/a1", From: 0, To: 100, Weight: 40, Ends: at.Add(time.Hour), AbortOn: "errors>1%"}},
		Following: []node.FollowStatus{{Generation: 41, On: "close", PerSecond: 10, Followed: 90, Left: 1100}},
		Sheds:     []node.ShedStatus{{Backend: "api", Percent: 12.5, As: "503", Until: at.Add(time.Hour), Turned: 1234, By: anna}},
		Removing:  []node.RemovalStatus{{Object: "endpoint/sql/db2", Phase: "quiescing", InFlight: 3, Then: "fin", By: anna}},
		Kernel:    map[string]uint64{"OutRsts": 17, "ListenDrops": 2}, Late: 1,
		OnOld: 3, OldObjects: []node.OldObject{{Object: "listener/sql", Version: "00000000000000ff", Flows: 2, AgeSeconds: 7200}, {Object: "endpoint/web/a0", Version: "1", Flows: 1, AgeSeconds: 60, Gone: true}},
		Oldest: 2 * time.Hour,
	}
	s.Flows = []node.FlowStatus{
		{ID: "f-1", Listener: "sql", Client: "203.0.113.9:51122", Endpoint: "sql/db1", Kind: "idle", Why: "nothing has moved for 3s", AgeSeconds: 1652400, In: 3 << 20, Out: 900, Moves: 218, Loop: 1},
		{ID: "f-2", Listener: "web", Client: "203.0.113.7:40000", Kind: "http-idle", Why: "waits for the client's next request", AgeSeconds: 71, In: 100, Out: 5000, Requests: 12},
	}
	if v == Cluster {
		s.Look.Cluster = cluster
	}
	return s
}

// cluster is one in which n1 is being evacuated.
var cluster = node.ClusterLook{
	Nodes: []node.NodeStatus{
		{Name: "n1", Address: "192.168.7.1:7443", Self: true, Labels: map[string]string{"rack": "a", "row": "<2>"}, Evacuating: true, Flows: 1204},
		{Name: "n2", Address: "192.168.7.2:7443", HeardSeconds: -1},
		{Name: "n3", Address: "192.168.7.3:7443", HeardSeconds: 0.4, Flows: 7},
		{Name: "n4", Address: "192.168.7.4:7443", HeardSeconds: 93, Flows: 1},
	},
	VIPs: []node.VIPStatus{
		{Name: "shop", Address: netip.MustParsePrefix("192.0.2.10/24"), Home: "n1", Owner: "n1", To: "n3", State: "moving", Epoch: 4},
		{Name: "pg", Address: netip.MustParsePrefix("192.0.2.11/24"), Home: "n1", Owner: "n3", State: "elsewhere", Epoch: 2},
		{Name: "mail", Address: netip.MustParsePrefix("2001:db8::1/64"), Home: "n4", Owner: "n4", State: "silent", Why: "no majority answers", Epoch: 1},
		{Name: "dead", Address: netip.MustParsePrefix("192.0.2.14/24"), Home: "n4", Owner: "n4", State: "elsewhere", Why: "n4 owned it last and has not answered for 93s", Epoch: 1},
		{Name: "lone", Address: netip.MustParsePrefix("192.0.2.12/24"), Home: "n2", State: "elsewhere"},
		{Name: "gone", Address: netip.MustParsePrefix("192.0.2.13/24"), Home: "n9", Owner: "n9", State: "elsewhere"},
	},
	Moving: &node.Progress{Phase: "flows", VIP: "shop", From: "n1", To: "n3", Flows: 400, FlowsTotal: 1204, Text: "400 of 1,204 flows"},
	LastMove: &node.MoveStatus{At: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), VIP: "pg", From: "n1", To: "n3", Result: "done",
		Move: &node.Report{Flows: 9021, Pause: node.Pause{Max: 9300}}},
	HostResidue: []node.HostResidue{{VIP: "pg", To: "n3", Flows: 3}},
}

// A VIP is in the column of one node, whatever is known of its owner.
func TestEachVIPIsInOneColumn(t *testing.T) {
	in := map[string][]string{}
	for _, c := range (view{snapshot(t, Cluster)}).Columns() {
		for _, b := range c.Badges {
			in[b.Name] = append(in[b.Name], c.Name)
		}
	}
	want := map[string][]string{"shop": {"n1"}, "pg": {"n3"}, "mail": {"n4"}, "dead": {"n4"}, "lone": {"n2"}, "gone": {"n1"}}
	if !maps.EqualFunc(in, want, slices.Equal) {
		t.Errorf("columns by VIP: %v, want %v", in, want)
	}
}

func rendered(t *testing.T, s *Snapshot) string {
	t.Helper()
	var out bytes.Buffer
	if err := Page(&out, s); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// The pages are what they were.
func TestPagesAreStable(t *testing.T) {
	for _, v := range Views {
		got := strings.ReplaceAll(rendered(t, snapshot(t, v)), stamp, "STAMP")
		name := filepath.Join("testdata", string(v)+".html")
		if *rewrite {
			if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			a, b := strings.Split(got, "\n"), strings.Split(string(want), "\n")
			for i := range min(len(a), len(b)) {
				if a[i] != b[i] {
					t.Errorf("%s, line %d (go test ./internal/page -rewrite writes it anew)\n got: %s\nwant: %s", name, i+1, a[i], b[i])
					break
				}
			}
			if len(a) != len(b) {
				t.Errorf("%s: %d lines, want %d", name, len(a), len(b))
			}
		}
	}
}

// active is what no page may have but for its one script: the policy forbids it,
// and a name that made it would have escaped.
var active = regexp.MustCompile(`(?i)<script|<style|<iframe|<img|<object|<embed|\sstyle=|\son[a-z]+=|javascript:`)

// Names cannot be like this by the configuration. Whatever they are, and whatever
// was asked for, they stay text.
func TestHostileNamesStayText(t *testing.T) {
	const evil = `"'><script>alert(1)</script><img src=x onerror=alert(1)>` + "</title></svg>\n\n data: x `${x}`{{.}}\x00"
	for _, v := range Views {
		s := snapshot(t, v)
		plain := len(active.FindAllString(rendered(t, s), -1))
		if plain != 1 {
			t.Errorf("%s: %d active parts, want one script", v, plain)
		}
		s.Look.Node, s.Look.Release, s.Trouble, s.Clients = evil, evil, evil, true
		for i := range s.Look.Endpoints {
			e := &s.Look.Endpoints[i]
			e.Name, e.Address, e.State, e.Why, e.Agent = e.Backend+"/"+evil, evil, evil, evil, evil
		}
		for i := range s.Flows {
			f := &s.Flows[i]
			f.ID, f.Listener, f.Client, f.Endpoint, f.Kind, f.Why = evil, evil, evil, evil, evil, evil
		}
		s.Look.Oldest.ID, s.Look.Oldest.Listener = evil, evil
		c := s.Changes
		c.File, c.Durable, c.Canary = evil, evil, evil
		by := node.Author{Name: evil, Reason: evil}
		c.Edits = []node.Drift{{Object: evil, Field: evil, File: evil, Runtime: evil, By: by}}
		c.Generations = []node.GenerationInfo{{By: by, Kind: evil, Plan: evil}}
		c.Shifts, c.Following = []node.ShiftState{{Object: evil, AbortOn: evil}}, []node.FollowStatus{{On: evil}}
		c.Sheds, c.Removing = []node.ShedStatus{{Backend: evil, As: evil}}, []node.RemovalStatus{{Object: evil, Phase: evil, Then: evil}}
		c.OldObjects, c.Kernel = []node.OldObject{{Object: evil}}, map[string]uint64{evil: 1}
		for _, name := range []string{"listener", "backend", "endpoint", "state", "older", "client"} {
			if v == Traffic && (name == "listener" || name == "backend") {
				continue // it would show nothing
			}
			s.Query.Set(name, evil)
		}
		for i := range s.History {
			s.History[i].Shares = []node.Share{{Listener: evil, Open: 5}}
			s.History[i].Marks = []node.Mark{{What: evil, Count: 1}}
		}
		s.Look.Config.Listeners["web"].Ref.Name = evil
		s.Look.Config.Backends["web"].Ref.Name = evil
		s.Look.Config.Listeners["web"].Rules.Routes[0].Match.Hosts = []string{evil}
		got := rendered(t, s)
		if !strings.Contains(got, "&lt;script&gt;") {
			t.Errorf("%s: the name is not there at all", v)
		}
		for _, bad := range []string{"<script>alert", "<img", "</script><"} {
			if strings.Contains(got, bad) {
				t.Errorf("%s: %q escaped", v, bad)
			}
		}
		if n := strings.Count(got, "<script"); n != 1 {
			t.Errorf("%s: %d scripts", v, n)
		}
	}
}

// A sum that does not balance, and a loss, are seen on every page.
func TestWhatIsLostIsRed(t *testing.T) {
	for _, v := range Views {
		for _, c := range []struct {
			name    string
			change  func(*node.Balance)
			mood    string
			verdict string
		}{
			{"balances", func(*node.Balance) {}, "", "balances"},
			{"in passing", func(b *node.Balance) { b.Passing = 2 }, "", "balances"},
			{"moving", func(b *node.Balance) { b.Holds, b.Moving, b.Passing = false, true, 7 }, "odd", "7 on the way"},
			{"missing", func(b *node.Balance) { b.Holds, b.Passing = false, 7 }, "bad", "off by 7"},
			{"lost", func(b *node.Balance) { b.Lost, b.Ended["broken"] = 1, 1 }, "bad", "1 lost"},
			{"reset by a move", func(b *node.Balance) { b.ResetByMove, b.Lost, b.LostMoving = 3, 2, 2 }, "bad", "3 lost"},
		} {
			s := snapshot(t, v)
			c.change(&s.Look.Balance)
			got := rendered(t, s)
			if want := `<div class="proof ` + c.mood + `"`; !strings.Contains(got, want) || !strings.Contains(got, "<p>"+c.verdict+"</p>") {
				t.Errorf("%s, %s: not %q and %q", v, c.name, want, c.verdict)
			}
			if loss := strings.Contains(got, `class="lost bad"`); v == Overview && loss != (s.Look.Balance.LostInAll() > 0) {
				t.Errorf("%s: the large number is red: %t", c.name, loss)
			}
		}
	}
}

// The terms of the strip add up to what came, whatever they are.
func TestTermsAddUp(t *testing.T) {
	s := snapshot(t, Overview)
	b := &s.Look.Balance
	b.Arrived, b.Left, b.Stayed, b.LostMoving = 100, 60, 5, 2
	b.Ended["broken"], b.Passing = 3, 1
	b.Open = int64(b.Accepted+b.Arrived) - (803000 + 500 + 399300 + 61 + 53) - 60 - 5 - 2 - 3 - 1
	left, right, over := int64(0), int64(0), false
	for _, x := range (view{s}).Sum() {
		over = over || x.Sign == "="
		if over {
			right += x.Count
		} else {
			left += x.Count
		}
	}
	if left != right || left != 1204218 {
		t.Errorf("%d = %d", left, right)
	}
}

// Addresses of clients are shown only where they may be.
func TestClients(t *testing.T) {
	s := snapshot(t, Flows)
	if strings.Contains(rendered(t, s), "203.0.113.") {
		t.Error("the address of a client is shown")
	}
	s.Clients = true
	if got := rendered(t, s); !strings.Contains(got, "203.0.113.9:51122") || !strings.Contains(got, `name="client"`) {
		t.Error("no address of a client is shown")
	}
}

// Who changed what, and how, is shown only where addresses of clients are.
func TestAuthors(t *testing.T) {
	s := snapshot(t, Changes)
	hidden := []string{"anna", "more room", "weight 50", "<td>20<"}
	got := rendered(t, s)
	for _, what := range hidden {
		if strings.Contains(got, what) {
			t.Errorf("%q is shown", what)
		}
	}
	s.Clients = true
	got = rendered(t, s)
	for _, what := range append(hidden, "and 8 more", "1 weight, 0 closed", "20 endpoints added, 12 drain, 2 closed", "ListenDrops<td class=\"n hot\">2<", "OutRsts<td class=\"n\">17<", "1,100</b> connections are still to follow") {
		if !strings.Contains(got, what) {
			t.Errorf("%q is not shown", what)
		}
	}
}

// Many listeners and endpoints make a page that is not much larger.
func TestPagesAreBounded(t *testing.T) {
	s := snapshot(t, Overview)
	s.Look.Endpoints = nil
	for i := range 5000 {
		e := node.EndpointState{Name: "web/x" + strconv.Itoa(i), Backend: "web", State: "up", Serves: i != 4999}
		if i == 4999 {
			e.State, e.Health = "down", "down"
		}
		s.Look.Endpoints = append(s.Look.Endpoints, e)
	}
	for i := range s.History {
		s.History[i].Shares = nil
		for k := range 12 {
			s.History[i].Shares = append(s.History[i].Shares, node.Share{Listener: string(rune('a' + (i*12+k)%40)), Open: int64(k + i%5)})
		}
		s.History[i].Open = 500
	}
	got := rendered(t, s)
	if n := len(view{s}.River().Bands); n != riverBands+1 {
		t.Errorf("%d bands", n)
	}
	if !strings.Contains(got, ">down<") || !strings.Contains(got, "4,800 more") || len(got) > 400<<10 {
		t.Errorf("%d octets; the one that is down is listed: %t", len(got), strings.Contains(got, ">down<"))
	}
	s.View = Changes
	for range 1000 {
		s.Changes.Edits = append(s.Changes.Edits, s.Changes.Edits[0])
	}
	s.Changes.Generations[1].Plan = strings.Repeat(strings.Repeat("x", 2000)+"\n", 1000)
	s.Clients = true
	if got := rendered(t, s); len(got) > 100<<10 || !strings.Contains(got, "902 more") {
		t.Errorf("%d octets", len(got))
	}
	s.View = Traffic
	if got := rendered(t, s); len(got) > 100<<10 || !strings.Contains(got, "more endpoints") {
		t.Errorf("%d octets", len(got))
	}
}

// The river says what it shows, begins with nothing, and a loss is in its gutter.
func TestRiver(t *testing.T) {
	s := snapshot(t, Overview)
	r := view{s}.River()
	if r.Lost != 0 || r.Policy != 61 || len(r.Pins) != 2 || r.Pins[0].Title != "reload × 2" || r.Pins[1].Text != "U" || len(r.Blank) != 1 || len(r.Bands) != 2 {
		t.Errorf("%+v", r)
	}
	if want := "1,200 connections open now, at most 1,202 in the last 1 min 39 s; lost: 0"; r.Words != want {
		t.Errorf("%q, want %q", r.Words, want)
	}
	s.History[90].Lost = 2
	r = view{s}.River()
	if r.Lost != 2 || !slices.ContainsFunc(r.Bars, func(b bar) bool { return b.Class == "lostbar" && b.H >= 3 }) {
		t.Errorf("a loss is not shown: %+v", r.Bars)
	}
	for _, few := range []int{0, 1} {
		s.History = s.History[:few]
		if r := (view{s}).River(); !r.Empty {
			t.Errorf("%d moments: %+v", few, r)
		}
		rendered(t, s)
	}
	// Idle: a level river of nothing.
	s.History = []node.Moment{{At: 1}, {At: 2}, {At: 3}}
	rendered(t, s)
}

func TestWords(t *testing.T) {
	for seconds, want := range map[float64]string{0: "0 ms", 0.25: "250 ms", 1: "1 s", 61: "1 min 1 s", 3600: "1 h", 90061: "1 d 1 h", 1728000: "20 d"} {
		if got := ago(seconds); got != want {
			t.Errorf("%g: %q, want %q", seconds, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", -1234567: "-1,234,567"} {
		if got := thousands(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
	for n, want := range map[int64]int64{0: 4, 4: 4, 5: 8, 13: 16, 17: 20, 21: 40, 130: 160, 1202: 1600} {
		if got := nice(n); got != want {
			t.Errorf("%d: %d, want %d", n, got, want)
		}
	}
}
