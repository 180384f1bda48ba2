package node

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/move"
)

var recordAs = flag.String("record-knowledge", "", "write what this release tells a successor to testdata/knowledge, under the name of a release")

// toldSite is the configuration of what lies in testdata/knowledge.
const toldSite = `node: { loops: 1 }
listeners: { web: { vip: "127.211.84.7:8473", protocol: http, backend: app } }
backends:
  app:
    sticky: { header: { name: X-User } }
    eject: { consecutive: 5, share: 50%, time: 1h, timeMax: 2h }
    endpoints: [ { name: a, address: "127.0.0.1:9" }, { name: b, address: "127.0.0.1:10" }, { name: c, address: "127.0.0.1:11" } ]
  other: { endpoints: [ { name: d, address: "127.0.0.1:12" } ] }
`

// known is a node in which happened what testdata/knowledge tells of.
func known(t *testing.T) *running {
	n := start(t, toldSite)
	by := Guard{Author: Author{Name: "anna"}}
	for _, q := range []EndpointRequest{
		{Guard: by, Backend: "app", Endpoint: "a", Do: "weight", Weight: 30},
		{Guard: by, Backend: "app", Endpoint: "b", Do: "quiesce"},
	} {
		if _, err := n.SetEndpoint(q); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.Shed(ShedRequest{Guard: Guard{Author: by.Author, Key: "k1"}, Backend: "other", Percent: 25, As: "reset"}); err != nil {
		t.Fatal(err)
	}
	for key := uint64(1); key <= 20; key++ {
		n.shared.Ledger.Backend("app").Learn(key, fmt.Sprintf("app/%c", 'a'+rune(key%3)))
	}
	for range 6 {
		n.account("app/c").Note(1, false, 0)
	}
	n.watch.tick(true)
	return n
}

// telling gives all that n tells a successor, from the heritage on.
func telling(t *testing.T, n *running) (heritage json.RawMessage, parts [][]byte) {
	t.Helper()
	h, _ := n.heritage()
	send := func(k move.Knowledge) error {
		body, err := json.Marshal(k)
		parts = append(parts, body)
		return err
	}
	early, err := n.tellEarly(send)
	if err == nil {
		n.watch.leave(true)
		err = n.tellLast(early, send)
		n.watch.begin()
	}
	if err != nil {
		t.Fatal(err)
	}
	return h.State, parts
}

// What each release has told, and what this one tells, is understood: a successor is
// in force as it was, and knows what was known.
func TestKnowledgeOfEarlierReleases(t *testing.T) {
	dirs, err := filepath.Glob("testdata/knowledge/*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no knowledge of any release: %v", err)
	}
	type told struct {
		state json.RawMessage
		parts [][]byte
	}
	all := map[string]told{}
	for _, dir := range dirs {
		x := told{}
		if x.state, err = os.ReadFile(filepath.Join(dir, "state.json")); err != nil {
			t.Fatal(err)
		}
		for i := 1; ; i++ {
			body, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i, ".json")))
			if errors.Is(err, fs.ErrNotExist) {
				break
			}
			x.parts = append(x.parts, body)
		}
		all[filepath.Base(dir)] = x
	}
	n := known(t)
	state, parts := telling(t, n)
	n.Stop()
	all["this one"] = told{state, parts}
	if *recordAs != "" {
		dir := filepath.Join("testdata", "knowledge", *recordAs)
		files := map[string][]byte{"state.json": state}
		for i, body := range parts {
			files[fmt.Sprint(i+1, ".json")] = body
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, body := range files {
			if err := os.WriteFile(filepath.Join(dir, name), body, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for release, x := range all {
		t.Run(release, func(t *testing.T) {
			heir, err := Start(Options{File: filepath.Join(t.TempDir(), "none.yaml"), Log: slog.New(slog.DiscardHandler), Quiet: true, Heritage: x.state})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(heir.Stop)
			heir.heir.Store(true)
			for _, body := range x.parts {
				if err := heir.learn(move.Message{Kind: move.Inherit, Body: body}); err != nil {
					t.Fatal(err)
				}
			}
			if g := heir.Generation(); g != 3 {
				t.Errorf("generation %d", g)
			}
			for _, e := range heir.EndpointStates() {
				got := fmt.Sprintf("%s %d", e.State, e.Weight)
				if want := map[string]string{"app/a": "ready 30", "app/b": "quiescing 100", "app/c": "ejected 100", "other/d": "ready 100"}[e.Name]; got != want {
					t.Errorf("%s is %s, want %s", e.Name, got, want)
				}
			}
			if all := heir.shedding(); len(all) != 1 || all[0].Percent != 25 || all[0].As != "reset" {
				t.Errorf("shed: %+v", all)
			}
			if k := heir.shared.Ledger.Backend("app").Stats().Learned; k != 20 {
				t.Errorf("%d clients are sticky, there were 20", k)
			}
		})
	}
}

// What another release tells beside or in another form is left out: nothing of it
// ends the successor, or the rest of what it was told.
func TestStrangeKnowledge(t *testing.T) {
	n := start(t, toldSite)
	n.heir.Store(true)
	parts := []string{`{}`, `{"strange": {"a": 1}}`}
	for _, part := range []string{"health", "sticky", "flows", "state", "ledger", "events"} {
		for _, body := range []string{`1`, `"x"`, `[]`, `{}`, `null`, `[1]`, `{"app": 1}`, `{"app": null}`, `{"app": {"packed": "AAAA", "keys": [1], "of": [7], "ageMillis": [-1]}}`,
			`[{"backend": "app", "breaker": "ajar", "endpoints": [{"name": "app/x"}, {"name": "app/a", "weight": -1, "admin": "??", "health": "??", "run": -1}]}]`,
			`{"backends": {"app": {"budget": {"requests": 5, "retries": [-1, 2]}, "endpoints": {"app/a": {"took": -1, "ago": -1}}}}, "listeners": {"web": {"rates": {"x": -1}, "sources": {"y": "AAAA"}}, "none": {}}}`,
			`{"since": 99}`, `{"state": "e30="}`, `[{"seq": 0}, {"seq": 18446744073709551615}]`, `{"sheds": {"app": {"as": "?"}}, "followers": [{}]}`} {
			parts = append(parts, fmt.Sprintf(`{%q: %s}`, part, body))
		}
	}
	for _, body := range parts {
		if err := n.learn(move.Message{Kind: move.Inherit, Body: []byte(body)}); err != nil {
			t.Errorf("%s: %v", body, err)
		}
	}
	if len(n.EndpointStates()) != 4 || n.Generation() != 1 {
		t.Errorf("generation %d, endpoints %+v", n.Generation(), n.EndpointStates())
	}
	for _, e := range n.EndpointStates() {
		if e.State != "ready" || e.Weight != 100 {
			t.Errorf("%s is %s, weight %d", e.Name, e.State, e.Weight)
		}
	}
}

// Each test that the table of what goes along names is there.
func TestAlongDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/design/0019-what-goes-along.md")
	if err != nil {
		t.Fatal(err)
	}
	var tests strings.Builder
	files, err := filepath.Glob("../*/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	commands, err := filepath.Glob("../../cmd/*/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(files, commands...) {
		body, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		tests.Write(body)
	}
	named := regexp.MustCompile(`Test\w+`).FindAllString(string(text), -1)
	if len(named) < 20 {
		t.Errorf("%d tests are named", len(named))
	}
	for _, name := range named {
		if !strings.Contains(tests.String(), "func "+name+"(") {
			t.Errorf("there is no %s", name)
		}
	}
}
