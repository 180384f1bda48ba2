package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// slowServer answers /slow only when it is let, and everything else at once.
type slowServer struct {
	*httptest.Server
	asked, let chan struct{}
}

func newSlowServer(t *testing.T) *slowServer {
	s := &slowServer{asked: make(chan struct{}, 16), let: make(chan struct{}, 16)}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			s.asked <- struct{}{}
			<-s.let
		}
		_, _ = fmt.Fprint(w, "done")
	}))
	t.Cleanup(func() {
		close(s.let)
		s.Close()
	})
	return s
}

func (s *slowServer) address() string { return strings.TrimPrefix(s.URL, "http://") }

const oneServer = `
node: { loops: 2, admin: { socket: "${HOLDFAST_SOCKET}" } }
listeners:
  web: { vip: "${VIP}", protocol: http, backend: web }
backends:
  web: { endpoints: [ { name: a1, address: "${A1}" } ] }
`

// begun starts a request that lasts until the server lets it.
func (s *slowServer) begun(t *testing.T, vip string) chan int {
	status := make(chan int, 1)
	go func() { // ends with the request
		answer, err := http.Get("http://" + vip + "/slow")
		if err != nil {
			status <- 0
			return
		}
		_ = answer.Body.Close()
		status <- answer.StatusCode
	}()
	<-s.asked
	return status
}

// An endpoint is taken out while a request is under way there: the command
// returns when that has ended, not before.
func TestQuiesceWaits(t *testing.T) {
	s, vip := newSlowServer(t), freshAddress(t)
	h := runFile(t, oneServer, "VIP="+vip, "A1="+s.address())
	status := s.begun(t, vip)
	h.must(exitFailed, []string{"endpoint", "quiesce", "web/a1", "--force", "--wait", "--timeout", "100ms"},
		"web/a1 quiescing on all 2 loops after ", "; in flight 1\n", "1 still in flight after 100 ms", "holdfast flows --endpoint web/a1")
	is := func(state string) func() bool {
		return func() bool { return strings.Contains(states(h, state), "web/a1") }
	}
	h.must(0, []string{"endpoint", "ready", "web/a1"}, "ready")
	out := h.start("endpoint", "quiesce", "web/a1", "--wait", "--force")
	eventually(t, "quiescing", is("quiescing"))
	asJSON := h.start("endpoint", "maint", "web/a1", "--wait", "--force", "--json")
	eventually(t, "maintenance", is("maintenance"))
	// Another process has the request then, and they wait for it there.
	h.upgraded()
	h.must(0, []string{"endpoint", "list"}, "  maintenance     100          1  ")
	s.let <- struct{}{}
	if got := <-status; got != http.StatusOK {
		t.Errorf("the request that was under way: %d", got)
	}
	text, errs, code := out()
	if code != 0 || !strings.Contains(text, "; in flight 1\nweb/a1 in flight 0: done in ") {
		t.Errorf("%d\n%s%s", code, text, errs)
	}
	text, errs, code = asJSON()
	lines := strings.Split(strings.TrimSpace(text), "\n")
	var report node.EndpointReport
	var last flight
	if err := json.Unmarshal([]byte(lines[0]), &report); err != nil || code != 0 || report.Is != "maintenance" || report.Loops != 2 {
		t.Errorf("%d %v %+v\n%s%s", code, err, report, text, errs)
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || !last.Done || last.InFlight != 0 {
		t.Errorf("%v %+v\n%s", err, last, text)
	}
}

// An endpoint leaves the configuration while somebody waits for it: what is under
// way there is waited for all the same.
func TestQuiesceOfWhatIsRemoved(t *testing.T) {
	s, vip := newSlowServer(t), freshAddress(t)
	h := runFile(t, oneServer, "VIP="+vip, "A1="+s.address())
	status := s.begun(t, vip)
	out := h.start("endpoint", "quiesce", "web/a1", "--wait", "--force")
	eventually(t, "quiescing", func() bool { return strings.Contains(states(h, "quiescing"), "web/a1") })
	other := strings.ReplaceAll(oneServer, "name: a1", "name: a2")
	client := clientOf(h.socket, false)
	if _, err := ask(client, client.api.Apply, &api.ChangeRequest{Source: other}, &node.ChangeReport{}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { // ends with the command
		text, errs, code := out()
		if code != 0 || !strings.Contains(text, "web/a1 in flight 0: done in ") {
			t.Errorf("%d\n%s%s", code, text, errs)
		}
		close(ended)
	}()
	for range 5 { // it looks several times meanwhile
		h.must(0, []string{"status"}, "web/a1 ("+s.address()+") is in no configuration any more and has 1 in use")
	}
	select {
	case <-ended:
		t.Error("it did not wait")
	default:
	}
	s.let <- struct{}{}
	if got := <-status; got != http.StatusOK {
		t.Errorf("the request that was under way: %d", got)
	}
	<-ended
}

// Who waits is told when somebody else ends the matter.
func TestQuiesceIsTakenBack(t *testing.T) {
	s, vip := newSlowServer(t), freshAddress(t)
	h := runFile(t, oneServer, "VIP="+vip, "A1="+s.address())
	s.begun(t, vip)
	out := h.start("endpoint", "quiesce", "web/a1", "--wait", "--force")
	eventually(t, "quiescing", func() bool { return strings.Contains(states(h, "quiescing"), "web/a1") })
	h.must(0, []string{"endpoint", "ready", "web/a1"}, "web/a1 ready on all 2 loops after ")
	if text, errs, code := out(); code != exitFailed || !strings.Contains(errs, "web/a1: somebody made it ready meanwhile") {
		t.Errorf("%d\n%s%s", code, text, errs)
	}
}

// Requests wait for a server that is held, and none fails.
func TestHold(t *testing.T) {
	s, vip := newSlowServer(t), freshAddress(t)
	h := runFile(t, oneServer, "VIP="+vip, "A1="+s.address())
	h.must(0, []string{"endpoint", "hold", "web/a1", "--for", "1h"}, "web/a1 held on all 2 loops after ", ", for 1h00m at most; 0 in flight")
	done := make(chan int)
	go func() { // ends with the request
		answer, err := http.Get("http://" + vip + "/")
		if err != nil {
			done <- 0
			return
		}
		_ = answer.Body.Close()
		done <- answer.StatusCode
	}()
	eventually(t, "a request waits", func() bool {
		st, err := clientOf(h.socket, false).status()
		return err == nil && st.Queued["web"] == 1
	})
	h.must(0, []string{"endpoint", "ready", "web/*"}, "web/* ready on all 2 loops")
	if got := <-done; got != http.StatusOK {
		t.Errorf("the request that had to wait: %d", got)
	}
}

// Weights, the list, and what is said about what is wrong.
func TestEndpointWords(t *testing.T) {
	s, vip := newSlowServer(t), freshAddress(t)
	h := runFile(t, oneServer, "VIP="+vip, "A1="+s.address())
	if !strings.HasPrefix(h.ready, "ready: 1 listener, 1 endpoint (1 serving), generation 1, release ") || !strings.HasSuffix(h.ready, "admin "+h.socket) {
		t.Errorf("ready: %q", h.ready)
	}
	h.must(0, []string{"endpoint", "weight", "web/a1", "7"}, "web/a1 weight 7 on all 2 loops after ")
	h.must(0, []string{"endpoint", "list"}, "ENDPOINT", "web/a1    "+s.address(), "  ready       7  ")
	h.must(0, []string{"endpoint", "list", "web"}, "web/a1")
	h.must(0, []string{"endpoint", "weight", "web/a1", "file"}, "weight 100 on all")
	for _, c := range []struct {
		status int
		args   string
		want   string
	}{
		{exitRefused, "endpoint quiesce web/a2", `no endpoint "web/a2"; did you mean "web/a1"?; there are: web/a1`},
		{exitRefused, "endpoint hold shop/*", `no backend "shop"; there are: web`},
		{exitRefused, "endpoint list wbe", `no backend "wbe"; did you mean "web"?`},
		{exitRefused, "endpoint list web/b9x", `no endpoint "web/b9x"`},
		{exitUsage, "endpoint quiesce a1", `"a1": wants BACKEND/ENDPOINT, as web/a1`},
		{exitUsage, "endpoint quiesce", "wants BACKEND/ENDPOINT"},
		{exitUsage, "endpoint quiese web/a1", "endpoint: wants list"},
		{exitUsage, "endpoint quiese", `no verb "quiese"; did you mean "quiesce"?`},
		{exitUsage, "endpoint weight web/a1 1001", `"1001" is not a whole number from 0 to 1000`},
		{exitUsage, "endpoint weight web/a1", "and a weight; got web/a1"},
		{exitUsage, "endpoint hold web/a1 --for 1ms", "--for is at least 1s"},
		{exitUsage, "endpoint hold web/a1 --for 0s", "--for is at least 1s"},
		{exitRefused, "endpoint quiesce web/a1", "web/a1 is the last endpoint of web that serves: what is new would fail; `holdfast endpoint hold web/a1` lets requests wait"},
		{exitRefused, "endpoint maint web/* --wait", "--force"},
		{exitRefused, "endpoint weight web/a1 0", "--force"},
		{0, "endpoint weight web/a1 0 --force", "weight 0"},
		{0, "endpoint weight web/a1 file", "weight 100"},
		{0, "endpoint ready web/a1 --wait", "web/a1 ready as before, on all 2 loops"},
		{exitUsage, "quiesce web/a1 --wait", "did you mean: holdfast endpoint quiesce web/a1 --wait"},
		{exitUsage, "stop", "send SIGTERM to the process"},
		{exitUsage, "hold web/a1", "see: holdfast --help"},
		{0, "reload", "says the same, 0 flows touched"},
		{exitUsage, "flows --state idel", `no state "idel"; did you mean "idle"?`},
		{exitUsage, "flows --endpoint web/a9", `no endpoint "web/a9"; did you mean "web/a1"?; there are: web/a1`},
		{exitUsage, "flows --listener wbe", `no listener "wbe"; did you mean "web"?`},
		{exitUsage, "flows --backend shop", `no backend "shop"; there are: web`},
		{0, "flows --listener web", "no flows"},
		{exitUsage, "flows --client nobody --state nix", "no state"},
		{exitUsage, "endpoint quiesce web/a1 --wait --timeout soon", `--timeout: "soon" is not a duration`},
		{exitUsage, "log wran", `"wran" is none of debug, info, warn, error; did you mean "warn"?`},
		{exitRefused, "flows --client nobody", `"nobody" is no address and no prefix`},
	} {
		h.must(c.status, strings.Fields(c.args), c.want)
	}
	h.must(0, []string{"log", "debug"}, "log level info -> debug")
	h.must(0, []string{"log"}, "debug\n")
}

// flows shows what all filters that are given let through.
func TestFlowsFilters(t *testing.T) {
	s, vip := newSlowServer(t), freshAddress(t)
	h := runFile(t, oneServer, "VIP="+vip, "A1="+s.address())
	status := s.begun(t, vip)
	here := []string{"FLOW", "LISTENER", "web/a1", "127.0.0.1:"}
	for _, args := range []string{"", "--listener web", "--backend web", "--endpoint web/a1", "--client 127.0.0.0/8", "--older 1ns --listener web"} {
		h.must(0, strings.Fields("flows "+args), here...)
	}
	for _, args := range []string{"--client 10.0.0.0/8", "--older 1h", "--moved", "--listener web --state queued"} {
		if out := h.must(0, strings.Fields("flows "+args)); strings.Contains(out, "web/a1") {
			t.Errorf("flows %s:\n%s", args, out)
		}
	}
	h.must(0, []string{"status"}, "1 flow, lost 0", "BACKEND", "web/a1  ", "flows reset by a move 0")
	h.must(0, []string{"top", "--once", "--every", "100ms"}, "holdfast top   node   generation 1", "promises   lost 0   reset by a move 0",
		"LISTENER", "BACKEND", "ENDPOINT", "FLOW", "REQ/S", "web/a1")
	s.let <- struct{}{}
	<-status
}

// SIGTERM: who is idle is sent away by FIN, nobody new comes, and what is under
// way is answered.
func TestGracefulEnd(t *testing.T) {
	s, vip := newSlowServer(t), freshAddress(t)
	h := runFile(t, oneServer, "VIP="+vip, "A1="+s.address())
	idle := dialHTTP(t, vip)
	idle.ask("/")
	idle.answered()
	status := s.begun(t, vip)
	h.signal(syscall.SIGTERM)
	h.says("stopping: nothing new is accepted; ")
	idle.ends()
	if _, err := http.Get("http://" + vip + "/"); err == nil {
		t.Error("somebody new is served")
	}
	h.must(exitRefused, []string{"reload"}, "this process is about to end")
	h.must(0, []string{"status"}, "1 flow, ")
	s.let <- struct{}{}
	if got := <-status; got != http.StatusOK {
		t.Errorf("the request under way: %d", got)
	}
	h.says("0 flows reset")
	if err := h.wait(); err != nil {
		t.Error(err)
	}
}

// What does not end is ended: by the second signal, or after the time.
func TestGraceEnds(t *testing.T) {
	for name, second := range map[string]bool{"a second signal": true, "its time is over": false} {
		t.Run(name, func(t *testing.T) {
			s, vip := newSlowServer(t), freshAddress(t)
			grace := "1ms"
			if second {
				grace = "1h"
			}
			h := runFile(t, oneServer, "VIP="+vip, "A1="+s.address(), graceEnv+"="+grace)
			status := s.begun(t, vip)
			h.signal(syscall.SIGTERM)
			if second {
				h.says("stopping: ")
				h.signal(syscall.SIGINT)
			}
			h.says("1 flow reset")
			if got := <-status; got != 0 {
				t.Errorf("the request: %d", got)
			}
			if err := h.wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

// SIGUSR1: the access log goes on in a new file after the old one was renamed.
func TestLogIsReopened(t *testing.T) {
	s, vip, dir := newSlowServer(t), freshAddress(t), t.TempDir()
	log := filepath.Join(dir, "access.log")
	h := runFile(t, oneServer+"accessLog: { format: text, to: "+log+" }\n", "VIP="+vip, "A1="+s.address())
	written := func(name, text string) func() bool {
		return func() bool {
			b, _ := os.ReadFile(filepath.Join(dir, name))
			return strings.Contains(string(b), text)
		}
	}
	get(t, "http://"+vip+"/first")
	eventually(t, "the first request is logged", written("access.log", "/first"))
	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	h.signal(syscall.SIGUSR1)
	eventually(t, "there is a new file", func() bool {
		_, err := os.Stat(log)
		return err == nil
	})
	get(t, "http://"+vip+"/second")
	eventually(t, "the second request is logged", written("access.log", "/second"))
	if written("access.log.1", "/second")() {
		t.Error("the second request is in the old file")
	}
}

// proxy runs without a file, and writes the one that it amounts to.
func TestProxy(t *testing.T) {
	a, vip := newNamed(t, "a"), freshAddress(t)
	file := filepath.Join(t.TempDir(), "holdfast.yaml")
	h := begin(t, nil, "proxy", vip, a.address, "--save", file)
	if want := "http on " + vip + " -> " + a.address + "; admin " + h.socket + "; the file is " + file; h.ready != want {
		t.Errorf("%q, want %q", h.ready, want)
	}
	if status, server, _, _ := get(t, "http://"+vip+"/"); status != http.StatusOK || server != "a" {
		t.Errorf("%d from %q", status, server)
	}
	h.must(0, []string{"reload"}, "nothing to do: generation 1 says the same, 0 flows touched")
	h.must(0, []string{"check", file}, "ok: 1 listener, 1 backend, 1 endpoint")
	for args, want := range map[string]string{
		"proxy " + vip:                              "wants VIP and at least one ENDPOINT",
		"proxy here 127.0.0.1:1":                    `"here": wants an address and a port`,
		"proxy localhost:80 127.0.0.1:1":            `"localhost" is not an address`,
		"proxy :8080 127.0.0.1":                     "address",
		"proxy :8080 127.0.0.1:1 --protocol gopher": "neither http nor tcp",
	} {
		h.must(exitUsage, strings.Fields(args), want)
	}
	h.must(exitFailed, []string{"proxy", vip, a.address, "--save", file}, "file exists")
}

// The file that nobody named stays as long as somebody serves by it.
func TestProxySucceeds(t *testing.T) {
	a, vip, dir := newNamed(t, "a"), freshAddress(t), t.TempDir()
	h := begin(t, []string{"TMPDIR=" + dir}, "proxy", vip, a.address)
	h.upgraded()
	h.says("ready: ") // of the successor
	h.must(0, []string{"reload"}, "nothing to do: generation 1 says the same, 0 flows touched")
	if status, _, _, _ := get(t, "http://"+vip+"/"); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	h = begin(t, []string{"TMPDIR=" + dir}, "proxy", freshAddress(t), a.address)
	before, _ := os.ReadDir(dir)
	h.signal(syscall.SIGTERM)
	if err := h.wait(); err != nil {
		t.Error(err)
	}
	if after, _ := os.ReadDir(dir); len(after) != len(before)-1 {
		t.Errorf("left behind: %v of %v", after, before)
	}
}

// A server is ready again when its check has found it up, and not before: whoever
// waits for that may take the next one out.
func TestReadyWaits(t *testing.T) {
	vip, place := freshAddress(t), freshAddress(t)
	h := runFile(t, strings.Replace(oneServer, "endpoints:", "check: { tcp: {}, interval: 20ms, fastInterval: 20ms, downInterval: 20ms, fall: 2, rise: 2 }, endpoints:", 1),
		"VIP="+vip, "A1="+place)
	eventually(t, "it is down", func() bool { return strings.Contains(states(h, "down"), "web/a1") })
	h.must(0, []string{"endpoint", "maint", "web/a1"}, "web/a1 maintenance on all 2 loops") // serves nothing anyway
	h.must(0, []string{"endpoint", "ready", "web/a1"}, "web/a1 is ready, its check says down since ", "): it serves when it is up (--wait waits for that)")
	h.must(exitFailed, []string{"endpoint", "ready", "web/a1", "--wait", "--timeout", "100ms"},
		"web/a1 does not serve after 100 ms; it stays ready", "web/a1: its check says down since ")
	out, asJSON := h.start("endpoint", "ready", "web/a1", "--wait"), h.start("endpoint", "ready", "web/a1", "--wait", "--json")
	for range 5 { // it looks several times meanwhile
		h.must(0, []string{"endpoint", "list"}, "down")
	}
	namedAt(t, "a1", place)
	text, errs, code := out()
	if code != 0 || !strings.Contains(text, "web/a1 serves after ") || strings.Contains(text, "--wait waits") {
		t.Errorf("%d\n%s%s", code, text, errs)
	}
	if text, errs, code := asJSON(); code != 0 || !strings.Contains(text, `"done":true`) || !strings.Contains(text, `"serves":false`) {
		t.Errorf("%d\n%s%s", code, text, errs)
	}
	if !strings.Contains(states(h, "up"), "web/a1") {
		t.Errorf("it is not up:\n%s", states(h, "up"))
	}
	if status, server, _, _ := get(t, "http://"+vip+"/"); status != http.StatusOK || server != "a1" {
		t.Errorf("%d from %q", status, server)
	}
}

// Who begins a second one is told which one runs, not which address is in use.
func TestAnotherRuns(t *testing.T) {
	s, vip := newSlowServer(t), freshAddress(t)
	h := runFile(t, oneServer, "VIP="+vip, "A1="+s.address())
	file := filepath.Join(t.TempDir(), "second.yaml")
	text := strings.NewReplacer("${HOLDFAST_SOCKET}", h.socket, "${VIP}", vip, "${A1}", s.address()).Replace(oneServer)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	h.must(exitFailed, []string{"run", "-c", file}, fmt.Sprintf("another Holdfast runs here: process %d answers at %s", h.cmd.Process.Pid, h.socket))
	h.must(0, []string{"status"}, "node generation 1: 1 listener")

	// One that wants the same directory for what is desired does not begin either.
	text = strings.NewReplacer(h.socket, h.socket+"2", vip, freshAddress(t)).Replace(text)
	if err := os.WriteFile(file, []byte(strings.Replace(text, "loops: 2,", "loops: 2, state: "+filepath.Join(filepath.Dir(h.socket), "state")+",", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	h.must(exitFailed, []string{"run", "-c", file}, fmt.Sprintf("in use by another process, %d", h.cmd.Process.Pid), "set node.state to a directory of its own")
}

// A binary that is no Holdfast: the answer says so, and nothing counts as a move.
func TestUpgradeToWhatIsNone(t *testing.T) {
	s, vip := newSlowServer(t), freshAddress(t)
	h := runFile(t, oneServer, "VIP="+vip, "A1="+s.address())
	h.must(exitRefused, []string{"upgrade", "--binary", "/bin/true"}, "this process goes on: the new process ended at once", "is no Holdfast")
	h.must(0, []string{"status"}, "process 0 (0 flows)")
}

// A program that runs and says nothing: it is said that it is waited for, and how long
// at most; who does not want to wait ends it. What came of it is said once in status.
func TestUpgradeToWhatIsSilent(t *testing.T) {
	s, vip := newSlowServer(t), freshAddress(t)
	h := runFile(t, oneServer, "VIP="+vip, "A1="+s.address())
	sleeper := filepath.Join(t.TempDir(), "sleeper")
	if err := os.WriteFile(sleeper, []byte("#!/bin/sh\nexec sleep 600\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	verb := holdfast(t, "upgrade", "--binary", sleeper, "--socket", h.socket)
	out, err := verb.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := verb.Start(); err != nil {
		t.Fatal(err)
	}
	lines, said := bufio.NewScanner(out), ""
	for lines.Scan() && said == "" {
		if strings.HasPrefix(lines.Text(), "waiting for") {
			said = lines.Text()
			if err := verb.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
		}
	}
	for lines.Scan() { // until it has ended
	}
	if err := verb.Wait(); err == nil || verb.ProcessState.ExitCode() != exitRefused || said != "waiting for its first word, 20 s at most" {
		t.Errorf("%v, said %q", err, said)
	}
	if text := h.must(0, []string{"status"}, "upgrade   aborted "); strings.Contains(text, "ago: aborted") {
		t.Errorf("%s", text)
	}
}

// What errors are called in the code is not said to people; what causes speak of is.
func TestPlainText(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"node: aborted: nothing moved; this process goes on: move: waiting for seen: EOF", "aborted: nothing moved; this process goes on: waiting for seen: EOF"},
		{"admin: node: open /x: no such file", "open /x: no such file"},
		{"node: refused: frozen: configuration: unknown", "refused: configuration: unknown"},
		{"move: frozen: a: b", "a: b"},
		{"holdfast.yaml:1:1: node: unknown key", "holdfast.yaml:1:1: node: unknown key"},
		{"it cannot move: there is no node", "it cannot move: there is no node"},
	} {
		if got := plainText(c.text); got != c.want {
			t.Errorf("%q: got %q, want %q", c.text, got, c.want)
		}
	}
}
