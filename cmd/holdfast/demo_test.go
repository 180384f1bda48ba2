package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
	"github.com/holdfast-lb/holdfast/internal/demo"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// The demo is the first thing that anybody sees: it makes its tour, loses
// nothing, says so in its exit status, and leaves nothing behind.
func TestDemo(t *testing.T) {
	t.Parallel() // most of it is waiting
	dir := t.TempDir()
	cmd := holdfast(t, "demo", "--duration", "18s", "--flows", "60", "--json")
	cmd.Env = append(cmd.Env, "TMPDIR="+dir)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out, errs.Bytes())
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	var s demoSummary
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &s); err != nil {
		t.Fatalf("last line: %v\n%s", err, out)
	}
	if !s.OK || s.Errors != 0 || s.Lost != 0 || s.Wrong != 0 || len(s.Faults) != 0 {
		t.Errorf("not ok: %+v", s)
	}
	if s.Seconds < 17.5 || s.Flows != 60 || s.Opened < 160 || s.RoundTrips < 500 || s.Octets < 10<<20 || s.P99 <= 0 ||
		s.Requests < 500 || s.Servers["a1"] < 100 || s.Servers["a2"] < 100 {
		t.Errorf("too little came through: %+v", s)
	}
	for _, distance := range []string{"config", "loop", "process"} {
		// What the tour adds and takes back is two changes more.
		if n := s.Moves[distance]; n != 1 && (distance != "config" || n != 3) || s.MovedFlows[distance] < 60 {
			t.Errorf("%s: %d moves of %d flows, want one of all 60", distance, s.Moves[distance], s.MovedFlows[distance])
		}
	}
	for _, want := range []string{"-- holdfast reload: ", "-- holdfast rebalance --all: ", "-- holdfast upgrade: ", "--name a3 --weight 20: checked and in rotation after ", "; holdfast config rollback ",
		"-- holdfast endpoint maint web/a1 --wait: out on all ", "-- holdfast endpoint hold web/a2", "export " + socketEnv + "=" + dir,
		" endpoint maint web/a1 --wait", " endpoint ready web/a1 --wait", "\n  kill "} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the tour does not say %q:\n%s", want, out)
		}
	}
	leftNothing(t, dir)
}

// While all requests are held the line says so, though TCP goes on.
func TestDemoShowsHeldRequests(t *testing.T) {
	s := show{before: demo.Figures{RoundTrips: 100}, beforeWeb: demo.WebFigures{Requests: 500}}
	st := node.Status{Queued: map[string]int{"web": 20}}
	line := s.figuresLine(demo.Figures{RoundTrips: 1600}, demo.WebFigures{Requests: 500, Errors: 2}, &st, 1)
	for _, want := range []string{"HTTP 0 requests/s (p99 0.0 ms, waiting 20, errors 2)", "TCP 1500 round trips/s"} {
		if !strings.Contains(line, want) {
			t.Errorf("no %q in %q", want, line)
		}
	}
}

// Somebody in another terminal restarts a server. Then Ctrl-C after somebody in another terminal has upgraded: the process to end
// is one that the demo did not start.
func TestDemoEndsWhatItDidNotStart(t *testing.T) {
	t.Parallel() // most of it is waiting
	dir := t.TempDir()
	cmd := holdfast(t, "demo", "--duration", "30s", "--flows", "20")
	cmd.Env = append(cmd.Env, "TMPDIR="+dir)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out, server, page := bufio.NewScanner(pipe), "", ""
	for out.Scan() && !strings.Contains(out.Text(), " requests/s ") {
		if m := regexp.MustCompile(`web/a1 \S+ \(process (\d+)\)`).FindStringSubmatch(out.Text()); m != nil {
			server = m[1]
		}
		if m := regexp.MustCompile(`a browser shows it at (\S+);`).FindStringSubmatch(out.Text()); m != nil {
			page = m[1]
		}
	}
	shown, err := http.Get(page)
	if err != nil {
		t.Fatal(err)
	}
	if html, err := io.ReadAll(shown.Body); err != nil || !strings.Contains(string(html), "lost since start") {
		t.Errorf("the page at %s: %v\n%s", page, err, html)
	}
	_ = shown.Body.Close()
	sockets, _ := filepath.Glob(dir + "/holdfast-demo-*/admin.sock")
	if len(sockets) != 1 {
		t.Fatalf("admin sockets: %q", sockets)
	}
	// A server that is ended is started again, and is another process then.
	text, err := os.ReadFile(filepath.Join(filepath.Dir(sockets[0]), "holdfast.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	place := regexp.MustCompile(`name: a1, address: "(.*?)"`).FindSubmatch(text)
	pid, err := strconv.Atoi(server)
	if err != nil || place == nil {
		t.Fatalf("process %q of a1, %s", server, text)
	}
	c := clientOf(sockets[0], false)
	var r node.EndpointReport
	if _, err := ask(c, c.api.SetEndpoint, &api.EndpointRequest{Backend: "web", Endpoint: "a1", Do: "quiesce"}, &r); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a1 has ended", func() bool { return syscall.Kill(pid, 0) != nil })
	eventually(t, "a1 serves again", func() bool {
		answer, err := http.Get("http://" + string(place[1]) + "/healthz")
		if err != nil {
			return false
		}
		_ = answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	})
	if _, err := ask(c, c.api.SetEndpoint, &api.EndpointRequest{Backend: "web", Endpoint: "a1", Do: "ready"}, &r); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if text, err := holdfast(t, "upgrade", "--socket", sockets[0]).CombinedOutput(); err != nil {
			t.Fatalf("upgrade: %v\n%s", err, text)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	last, all := "", ""
	for out.Scan() {
		last = out.Text()
		all += last + "\n"
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, all)
	}
	if !strings.HasPrefix(last, "done: ") || !strings.HasSuffix(last, "HTTP errors 0, lost 0, wrong octets 0") {
		t.Errorf("last line %q", last)
	}
	leftNothing(t, dir)
}

// A demo that is killed leaves nothing behind either, whoever of it serves by then.
func TestDemoIsKilled(t *testing.T) {
	dir := t.TempDir()
	cmd := holdfast(t, "demo", "--duration", "30s", "--flows", "20")
	cmd.Env = append(cmd.Env, "TMPDIR="+dir)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewScanner(pipe)
	for out.Scan() && !strings.Contains(out.Text(), " requests/s ") {
		continue
	}
	sockets, _ := filepath.Glob(dir + "/holdfast-demo-*/admin.sock")
	if len(sockets) != 1 {
		t.Fatalf("admin sockets: %q", sockets)
	}
	if text, err := holdfast(t, "upgrade", "--socket", sockets[0]).CombinedOutput(); err != nil {
		t.Fatalf("upgrade: %v\n%s", err, text)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed, as it should be
	eventually(t, "its files are gone", func() bool {
		left, _ := os.ReadDir(dir)
		return len(left) == 0
	})
	leftNothing(t, dir)
}

// leftNothing wants no file in dir, and no process that was told of one.
func leftNothing(t *testing.T, dir string) {
	t.Helper()
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	leftNothingRunning(t, dir)
}

// leftNothingRunning wants no process that was told of a file in dir.
func leftNothingRunning(t *testing.T, dir string) {
	t.Helper()
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var left []string
		for _, name := range lines {
			if b, err := os.ReadFile(name); err == nil && bytes.Contains(b, []byte(dir)) {
				left = append(left, strconv.Quote(string(b)))
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("still running: %s", left)
			return
		}
	}
}

// A VIP moves to another host and back with all its connections, in a network of its
// own; the last line is for programs, and says that nothing was lost.
func TestDemoBetweenHosts(t *testing.T) {
	t.Parallel() // most of it is waiting
	out, err := holdfast(t, "demo", "--hosts", "--json", "--flows", "60", "--duration", "4s").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	var s hostsSummary
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &s); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !s.OK || s.Moves != 2 || s.MovedFlows < 2*60 || s.Lost != 0 || s.Wrong != 0 || s.RoundTrips == 0 {
		t.Errorf("%+v\n%s", s, out)
	}
}
