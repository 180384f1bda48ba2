package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/node"
)

const twoServers = `# one of each
node: { loops: 2, admin: { socket: "${HOLDFAST_SOCKET}" } }
listeners:
  web: { vip: "${VIP}", protocol: http, routes: [ { name: main, backend: web } ] }
  old: { vip: "${OLD}", protocol: tcp, backend: web }
backends:
  web: { endpoints: [ { name: a1, address: "${A1}" }, { name: a2, address: "${A2}" } ] }
`

// changed is a Holdfast in front of two servers, its file, and another file.
func changed(t *testing.T) (h *running, file, next string, a [3]*named, vip string) {
	t.Helper()
	dir, vip, old := t.TempDir(), freshAddress(t), freshAddress(t)
	for i, name := range []string{"a1", "a2", "a3"} {
		a[i] = newNamed(t, name)
	}
	file, next = filepath.Join(dir, "holdfast.yaml"), filepath.Join(dir, "next.yaml")
	for name, text := range map[string]string{file: twoServers, next: strings.Replace(twoServers, `name: a2`, `name: a2, weight: 50`, 1)} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h = begin(t, []string{"VIP=" + vip, "OLD=" + old, "A1=" + a[0].address, "A2=" + a[1].address}, "run", "-c", file)
	return h, file, next, a, vip
}

// A file is compared, applied, kept in history and taken back; each verb says in
// one line what has come of it.
func TestApplyAndHistory(t *testing.T) {
	t.Parallel() // most of it is waiting
	h, file, next, _, _ := changed(t)
	must := func(status int, command string, texts ...string) string {
		t.Helper()
		return h.must(status, strings.Fields(command), texts...)
	}
	must(0, "apply "+file, "nothing to do: generation 1 says the same, 0 flows touched")
	must(0, "config diff "+next, "~ endpoint web/a2: weight 100 -> 50\n", "would be: ", "1 weight", "nothing was changed, generation 1 goes on")
	must(0, "config diff "+file, "no difference: generation 1 says the same")
	must(0, "config diff", "no difference: "+file+" says all of generation 1")
	out := must(0, "apply "+next+" --reason smaller", "generation 2 effective on 2 loops in ", ", durable in ", "1 weight", "0 closed, 0 lost\n")
	if strings.Count(out, "\n") != 1 {
		t.Errorf("more than a line:\n%s", out)
	}
	must(exitRefused, "apply "+file+" --expect 1", "generation 2 is in force", "1 was expected", "holdfast config diff --since")
	must(0, "config diff", file+" is not what was applied last; applied, it would do this:\n", "weight 50 -> 100")
	must(0, "reload", "what was applied in its place since stays in force", "nothing to do: generation 2 says the same")
	wrong := filepath.Join(filepath.Dir(next), "wrong.yaml")
	if err := os.WriteFile(wrong, []byte(strings.Replace(twoServers, "loops: 2", "loops: two", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	must(exitRefused, "apply "+wrong, "refused: "+wrong+":2:16: node.loops: ")
	must(exitRefused, "config diff "+wrong, "refused: "+wrong+":2:16: node.loops: ")
	must(0, "apply "+file+" --dry-run", "weight 50 -> 100", "nothing was changed, generation 2 goes on")
	must(0, "apply "+file+" --idempotency-key k1 --wait effective", "generation 3 effective")
	must(0, "config rollback 2", "generation 4 = 2, effective on 2 loops in ")
	must(exitRefused, "config rollback 99", "generation 99")
	must(0, "config history", "GENERATION", "rollback", "~ endpoint web/a2: weight 100 -> 50", "in force", "smaller", "start")
	must(0, "config diff --since 2", "generation 3, apply; by ", "  ~ endpoint web/a2: weight 50 -> 100\n", "2 changes since generation 2")
	must(exitRefused, "config diff --since 9", "there is no generation 9 yet; in force is 4")
	must(0, "config export", "# one of each\n", "weight: 50")
	must(0, "status", "node generation 4: ", "desired   generation 4 durable")

	// JSON has the names of the API, and numbers are numbers.
	var r struct {
		Generation, Was uint64
		Impact          struct {
			Weights int `json:"weights_changed"`
		}
		Unchanged bool
		Durable   string
	}
	out = must(0, "apply "+file+" --json")
	if err := json.Unmarshal([]byte(out), &r); err != nil || strings.Count(out, "\n") != 1 || r.Generation != 5 || r.Was != 4 || r.Impact.Weights != 1 || r.Durable != "yes" {
		t.Errorf("%v %+v\n%s", err, r, out)
	}
	out = must(0, "config history --json --max 2")
	var g generationList
	if err := json.Unmarshal([]byte(out), &g); err != nil || len(g.Generations) != 2 || g.Generations[0].Generation != 5 || !g.Generations[0].InForce {
		t.Errorf("%v\n%s", err, out)
	}
	out = must(exitRefused, "config rollback 99 --json")
	var p problemLine
	if err := json.Unmarshal([]byte(out), &p); err != nil || p.Code != "failed_precondition" && p.Code != "not_found" || !strings.Contains(p.Message, "99") {
		t.Errorf("%v\n%s", err, out)
	}

	// A file with mistakes changes nothing.
	bad := filepath.Join(filepath.Dir(file), "bad.yaml")
	if err := os.WriteFile(bad, []byte(strings.Replace(twoServers, "endpoints:", "endponts:", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"apply ", "config diff "} {
		must(exitRefused, verb+bad, `endponts: unknown key; did you mean "endpoints"?`)
	}
	must(0, "status", "node generation 5: ")
	if err := os.Rename(bad, file); err != nil {
		t.Fatal(err)
	}
	must(exitRefused, "reload", `did you mean "endpoints"?`)
	must(0, "status", "node generation 5: ")

	for _, c := range []struct{ args, want string }{
		{"apply", "wants one FILE"}, {"apply a b", "wants one FILE"}, {"apply " + next + " --flows kep", `"kep" is none of keep, adopt, close; did you mean "keep"?`},
		{"apply " + next + " --abort-on p99>2s", "add --canary 30s"}, {"apply " + next + " --wait for", "none of durable, effective"},
		{"reload x.yaml", "holdfast apply x.yaml"}, {"config rollback last", "is no generation"}, {"config histry", `did you mean "history"?`},
		{"canary kep", `did you mean "keep"?`}, {"events --kind shft", `no kind "shft"; did you mean "shift"?`}, {"config set webb.x 1", "is no object"}, {"config unset listener/web", "holdfast config delete listener/web takes it away"},
		{"config delete listener/web.vip", "holdfast config unset listener/web.vip"}, {"config revert", "or --all"}, {"status --server 127.0.0.1:1 --cert x", "--key is missing"},
	} {
		// On the last one the socket is not asked.
		args := strings.Fields(c.args)
		if strings.Contains(c.args, "--server") {
			out, err := holdfast(t, args...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), c.want) {
				t.Errorf("%s: %v\n%s", c.args, err, out)
			}
			continue
		}
		h.must(exitUsage, args, c.want)
	}
}

// What is changed at run time is named as long as the file says another thing,
// stays over a restart, and is taken back by revert.
func TestEditsAtRunTime(t *testing.T) {
	t.Parallel() // most of it is waiting
	h, file, _, a, vip := changed(t)
	must := func(status int, command string, texts ...string) string {
		t.Helper()
		return h.must(status, strings.Fields(command), texts...)
	}
	must(0, "config set listener/web.http.limits.body 10MiB", "generation 2 effective on 2 loops", "1 listener changed")
	must(exitRefused, "config set listener/web.htp.limits.body 10MiB", `unknown key; did you mean "http"?`)
	must(exitRefused, "config set endpoint/web/a7.weight 3", `no endpoint "a7" in backend web`)
	must(0, "config set endpoint/web/a2 weight 7", "generation 3 ")
	must(0, "config diff", "listener/web.http.limits.body: file 0, here 10MiB; by ", "endpoint/web/a2.weight: file 100, here 7", "2 changes beside the file")
	must(0, "status", "2 changes beside the file (holdfast config diff)")
	h.must(0, []string{"config", "set", "route/web/beta", "{ match: { path: /beta/ }, respond: { status: 418 } }", "--before", "main"}, "generation 4 ")
	if status, _, _, _ := get(t, "http://"+vip+"/beta/"); status != 418 {
		t.Errorf("the new route: %d", status)
	}
	must(0, "config delete route/web/beta", "generation 5 ")
	if status, _, _, _ := get(t, "http://"+vip+"/beta/"); status != 200 {
		t.Errorf("without the route: %d", status)
	}
	must(exitRefused, "reload --edits refuse", "refused: ")
	must(0, "reload", "nothing to do: generation 5")

	// Another process, the same file: it goes on where this one was.
	h.signal(syscall.SIGTERM)
	if err := h.wait(); err != nil {
		t.Fatal(err)
	}
	again := begin(t, append([]string{"STATE_DIRECTORY=" + filepath.Join(filepath.Dir(h.socket), "state")}, h.cmd.Env[len(h.cmd.Env)-4:]...), "run", "-c", file)
	again.must(0, []string{"config", "diff"}, "listener/web.http.limits.body: file 0, here 10MiB", "endpoint/web/a2.weight: file 100, here 7")
	again.must(0, []string{"config", "unset", "endpoint/web/a2.weight"}, "1 weight")
	again.must(0, []string{"config", "revert", "listener/web.http"}, "1 listener changed")
	again.must(0, []string{"config", "revert", "--all"})
	again.must(0, []string{"config", "diff"}, "no difference: "+file)

	// Endpoints come and go in the open.
	again.must(0, []string{"endpoint", "add", "web", a[2].address, "--name", "a3"}, "web/a3 in rotation on 2 loops after ", ", 0 lost")
	again.must(exitRefused, []string{"endpoint", "add", "web", a[2].address, "--name", "a3"}, "there is an endpoint web/a3 already, it is ready")
	again.must(0, []string{"endpoint", "add", "web", a[2].address, "--name", "a4", "--canary", "100ms"},
		"web/a4 in rotation on 2 loops after ", "canary: generation ", " is watched until ", " stays: ")
	again.must(0, []string{"config", "revert", "endpoint/web/a4"}, "1 endpoint removed")
	eventually(t, "a3 serves", func() bool { _, server, _, _ := get(t, "http://"+vip+"/"); return server == "a3" })
	again.must(0, []string{"endpoint", "remove", "web/a3", "--drain", "--deadline", "10s"}, "web/a3: done after ", "1 endpoint removed")
	again.must(0, []string{"listener", "remove", "old", "--drain"}, "old: done after ", "1 listener removed")
	again.must(exitRefused, []string{"listener", "remove", "none"}, "refused: ", "none")
	again.must(exitUsage, []string{"endpoint", "remove", "web/a1", "--then", "rts"}, `"rts" is none of rst, fin, migrate; did you mean "rst"?`)
	again.must(exitUsage, []string{"endpoint", "remove", "web/a1", "--deadline", "1s"}, "--deadline is for --drain")
	again.must(0, []string{"endpoint", "weight", "web/a2", "30", "--over", "1s"}, "web/a2 shifting: ", "web/a2: weight 30")
	again.must(0, []string{"endpoint", "list", "web/a2"}, "  30  ")

	// A canary that nothing happens to stays; one is ended early.
	again.must(0, []string{"config", "set", "endpoint/web/a1.weight", "90", "--canary", "1s"}, "canary: generation ", " stays: ")
	wait := again.start("config", "set", "endpoint/web/a1.weight", "80", "--canary", "1h")
	eventually(t, "it is watched", func() bool { out, _, _ := again.verb("status"); return strings.Contains(out, " is watched until ") })
	again.must(exitRefused, []string{"config", "set", "endpoint/web/a1.weight", "70"}, "refused: ")
	again.must(0, []string{"canary", "rollback", "--reason", "no"}, "rolled back: generation ")
	if out, errs, code := wait(); code != exitFailed || !strings.Contains(errs, "which says what was before") {
		t.Errorf("%d\n%s%s", code, out, errs)
	}
	again.must(exitRefused, []string{"canary", "keep"}, "no canary is watched")
	again.must(0, []string{"config", "history"}, "canary-rollback")
	again.must(0, []string{"events", "--kind", "canary"}, "canary")
}

// Flows are ended by filters, and a share of what is new is turned away.
func TestKillAndShed(t *testing.T) {
	h, _, _, _, vip := changed(t)
	c := dialHTTP(t, vip)
	c.ask("/")
	c.answered()
	h.must(exitUsage, []string{"flows", "kill"}, "wants a filter")
	h.must(exitUsage, []string{"flows", "kill", "--listener", "wbe"}, `no listener "wbe"; did you mean "web"?`)
	h.must(exitUsage, []string{"flows", "kill", "--listener", "web"}, "1 flow would be ended; --yes does it")
	h.must(0, []string{"flows", "kill", "--listener", "old"}, "0 flows ended")
	h.must(0, []string{"flows", "kill", "--listener", "web", "--fin", "--yes"}, "1 flow ended in ")
	c.ends()
	h.must(0, []string{"backend", "shed", "web", "100%", "--as", "503", "--for", "10m"}, "web: 100 % of what is new answered 503 until ", "end it early: holdfast backend shed web 0%")
	if status, _, _, _ := get(t, "http://"+vip+"/"); status != 503 {
		t.Errorf("all is shed, but: %d", status)
	}
	h.must(0, []string{"status"}, "shed      web: 100 % of what is new")
	h.must(0, []string{"backend", "shed", "web", "0%"}, "web: nothing is shed any more (was 100 %)")
	if status, _, _, _ := get(t, "http://"+vip+"/"); status != 200 {
		t.Errorf("nothing is shed, but: %d", status)
	}
	h.must(exitUsage, []string{"backend", "shed", "web", "lots"}, "is no share")
	h.must(exitRefused, []string{"backend", "shed", "wbe", "1%"}, "refused: ")
	h.must(0, []string{"events", "--kind", "kill,shed"}, " kill ", " shed ")
}

// Events go on over an upgrade, none of them twice and none missing.
func TestEventsFollow(t *testing.T) {
	h, _, _, _, _ := changed(t)
	cmd := holdfast(t, "events", "-f", "--from", "1", "--json", "--socket", h.socket)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	weigh := func(n string) { h.must(0, []string{"config", "set", "endpoint/web/a1.weight", n}, "effective") }
	lines := json.NewDecoder(out)
	weigh("11")
	weigh("12")
	h.upgraded()
	weigh("13")
	weigh("14")
	var generations []uint64
	var last uint64
	for len(generations) < 4 {
		var e node.Event
		if err := lines.Decode(&e); err != nil {
			t.Fatal(err)
		}
		switch e.Kind {
		case "watching":
			continue
		case "missed":
			t.Errorf("%+v", e)
		case "generation":
			generations = append(generations, e.Generation)
		}
		if e.Seq <= last {
			t.Errorf("event %d after %d", e.Seq, last)
		}
		last = e.Seq
	}
	for i, g := range generations[1:] {
		if g <= generations[i] {
			t.Errorf("generations %v", generations)
		}
	}
}

// What is object and what is field is known by what there is.
func TestCutField(t *testing.T) {
	names := []string{"listener/web", "listener/web.tls", "endpoint/web/10.0.0.1:80", "endpoint/web/a.example.org", "backend/a.b"}
	for text, want := range map[string][2]string{
		"listener/web": {"listener/web", ""}, "listener/web.idleTimeout": {"listener/web", "idleTimeout"}, "listener/web.tls": {"listener/web.tls", ""},
		"listener/web.tls.idleTimeout": {"listener/web.tls", "idleTimeout"}, "endpoint/web/10.0.0.1:80.weight": {"endpoint/web/10.0.0.1:80", "weight"},
		"endpoint/web/10.0.0.1:80": {"endpoint/web/10.0.0.1:80", ""}, "endpoint/web/10.0.0.2:80.weight": {"endpoint/web/10.0.0.2:80", "weight"},
		"endpoint/web/a.example.org.weight": {"endpoint/web/a.example.org", "weight"}, "backend/a.b.check.interval": {"backend/a.b", "check.interval"},
		"node.loops": {"node", "loops"}, "cluster": {"cluster", ""},
	} {
		if object, field := cutField(text, names); object != want[0] || field != want[1] {
			t.Errorf("%s: %q and %q, want %q", text, object, field, want)
		}
	}
}

func TestWordsOfChanges(t *testing.T) {
	r := node.ChangeReport{Generation: 42, Loops: 4, EffectiveMillis: 1.8, Durable: "yes", DurableMillis: 4.9, Flows: 3, Impact: node.Impact{EndpointsAdded: 3, FlowsUntouched: 1204, FlowsDrain: 12}}
	want := "generation 42 effective on 4 loops in 1.8 ms, durable in 4.9 ms: 3 endpoints added; flows: 3 adopted it, 12 drain, 1,204 untouched, 0 closed, 0 lost"
	if got := changeLine(&r); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	r.Durable = "no: no space left on device"
	if got := changeLine(&r); !strings.HasSuffix(got, "; NOT durable: no space left on device") || strings.Contains(got, "durable in") {
		t.Error(got)
	}
	at := time.Now().Add(-2 * time.Hour)
	d := node.Drift{Object: "endpoint/web/a2", Field: "weight", File: "50", Runtime: "80", By: node.Author{Name: "anna", Reason: "hot"}, At: at}
	if got := driftLine(&d); got != `endpoint/web/a2.weight: file 50, here 80; by anna 2h00m ago, "hot"` {
		t.Error(got)
	}
	r = node.ChangeReport{Generation: 7, Loops: 2, Plan: "~ endpoint web/a2: weight 9 -> 8\n~ endpoint web/a1: maintenance -> ready\n~ endpoint web/a2: ordered weight 20 -> the file's weight\n"}
	if got := changeLine(&r); !strings.Contains(got, ": web/a1: maintenance -> ready, web/a2: ordered weight 20 -> the file's weight; flows: ") {
		t.Error(got)
	}
	e := node.Event{Seq: 7, Kind: "shift", Object: "endpoint/web/a2", Text: "weight 20 after 10s", By: "anna"}
	if got := eventLine(&e); !strings.HasSuffix(got, "  shift       web/a2: weight 20 after 10s (anna)") {
		t.Error(got)
	}
	d.Became = "absorbed"
	if got := driftLine(&d); !strings.Contains(got, "the file says the same now") {
		t.Error(got)
	}
	table := historyTable([]node.GenerationInfo{{Generation: 41, At: at, By: node.Author{Name: "anna"}, Kind: "file", Plan: "+ a\n+ b\n", Impact: node.Impact{EndpointsAdded: 2}}}, time.Now()).String()
	if !strings.Contains(table, "41  2h00m  anna  file  2 endpoints added  not durable") {
		t.Error(table)
	}
}
