package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/sock"
	"github.com/holdfast-lb/holdfast/internal/supervise/supervisetest"
)

// unit is a service under a stand-in for systemd: what is left of it when a test
// ends is killed.
type unit struct {
	*supervisetest.Supervisor
	t      *testing.T
	dir    string
	file   string
	socket string
	log    string
	begun  []*exec.Cmd
}

func newUnit(t *testing.T, text string) *unit {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf-") // short: the path of a socket is bounded
	if err != nil {
		t.Fatal(err)
	}
	u := &unit{Supervisor: supervisetest.New(t), t: t, dir: dir, file: filepath.Join(dir, "holdfast.yaml"), socket: filepath.Join(dir, "s"), log: filepath.Join(dir, "log")}
	if err := os.WriteFile(u.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		u.kill()
		if b, _ := os.ReadFile(u.log); t.Failed() {
			t.Logf("log:\n%s\nsaid: %q", b, u.State().Said)
		}
		_ = os.RemoveAll(dir)
	})
	return u
}

// start starts it with what is kept, and with sockets of other units, and waits until
// it is ready.
func (u *unit) start(others map[string]*os.File) supervisetest.State {
	u.t.Helper()
	cmd := holdfast(u.t, "run", "-c", u.file)
	cmd.Env = append(cmd.Env, socketEnv+"="+u.socket, "STATE_DIRECTORY="+filepath.Join(u.dir, "state"))
	u.Hand(cmd, others)
	// A file: a successor writes to it after this process is gone.
	out, err := os.OpenFile(u.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		u.t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	cmd.Stdout, cmd.Stderr = out, out
	before := u.State()
	if err := cmd.Start(); err != nil {
		u.t.Fatal(err)
	}
	u.begun = append(u.begun, cmd)
	return u.Await("it is ready", func(x supervisetest.State) bool { return x.Ready > before.Ready })
}

// kill ends the main process as kill -9 does, and those that were started.
func (u *unit) kill() {
	if p, err := os.FindProcess(u.State().Main); err == nil && p.Pid > 1 {
		_ = p.Kill()
		for !sock.Gone(p) && !zombie(p.Pid) {
			time.Sleep(time.Millisecond)
		}
	}
	for _, cmd := range u.begun {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	u.begun = nil
}

// zombie tells whether a process has ended and nobody has asked how.
func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(b), ") Z ")
}

func (u *unit) signal(s syscall.Signal) {
	u.t.Helper()
	p, err := os.FindProcess(u.State().Main)
	if err == nil {
		err = p.Signal(s)
	}
	if err != nil {
		u.t.Fatal(err)
	}
}

// verb asks it, and wants it to be done.
func (u *unit) verb(args ...string) {
	u.t.Helper()
	if out, err := holdfast(u.t, append(args, "--socket", u.socket)...).CombinedOutput(); err != nil {
		u.t.Fatalf("holdfast %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

const unitText = `
node: { loops: 2, admin: { socket: "${HOLDFAST_SOCKET}" } }
listeners:
  web: { vip: "%s", protocol: http, backend: web }
  other: { vip: "%s", protocol: http, backend: web }
backends:
  web: { endpoints: [ { name: a, address: "%s" } ] }
`

// The signal starts a successor: the supervisor hears RELOADING with the moment, then
// READY with the successor's number, which now is the main process; the connection
// goes on, and what is kept stays the same.
func TestUpgradeBySignalIsAReload(t *testing.T) {
	server := newNamed(t, "a")
	web, other := freshAddress(t), freshAddress(t)
	u := newUnit(t, fmt.Sprintf(unitText, web, other, server.address))
	first := u.start(nil)
	kept := []string{keptName(web), keptName(other)}
	slices.Sort(kept)
	if !slices.Equal(first.Kept, kept) {
		t.Errorf("kept %q, want %q", first.Kept, kept)
	}
	c := dialHTTP(t, web)
	for i := range 3 {
		c.ask("/before")
		if status, _ := c.answered(); status != 200 {
			t.Fatalf("status %d", status)
		}
		before, moment := u.State(), sock.Monotonic()/1000
		u.signal(syscall.SIGUSR2)
		after := u.Await("there is a successor", func(x supervisetest.State) bool { return x.Ready > before.Ready && x.Main != before.Main })
		if after.Reload != i+1 || after.Moment < moment {
			t.Errorf("reloads: %d, the last at %d, after %d", after.Reload, after.Moment, moment)
		}
		if !slices.Equal(after.Kept, kept) {
			t.Errorf("kept %q, want %q", after.Kept, kept)
		}
		eventually(t, "the old process is gone", func() bool { return ended(before.Main) })
	}
	c.ask("/after")
	if status, body := c.answered(); status != 200 || !strings.Contains(body, "/after") {
		t.Errorf("status %d, %q", status, body)
	}
	if x := u.State(); len(x.Strange) > 0 {
		t.Errorf("no supervisor knows %q", x.Strange)
	}
}

func ended(pid int) bool {
	p, err := os.FindProcess(pid)
	return err != nil || sock.Gone(p) || zombie(pid)
}

// A successor that cannot begin: the reload ends with the old process, which serves
// on and says so.
func TestUpgradeBySignalThatIsNotDone(t *testing.T) {
	server := newNamed(t, "a")
	web, other := freshAddress(t), freshAddress(t)
	u := newUnit(t, fmt.Sprintf(unitText, web, other, server.address))
	// A copy that can be broken.
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(exe)
	copied := filepath.Join(u.dir, "holdfast")
	if err == nil {
		err = os.WriteFile(copied, b, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := holdfast(t, "run", "-c", u.file)
	cmd.Path = copied
	cmd.Env = append(cmd.Env, socketEnv+"="+u.socket, "STATE_DIRECTORY="+filepath.Join(u.dir, "state"))
	u.Hand(cmd, nil)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	u.begun = append(u.begun, cmd)
	before := u.Await("it is ready", func(x supervisetest.State) bool { return x.Ready == 1 })
	if err := os.Remove(copied); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(copied, []byte("#!/bin/sh\nexit 7\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	u.signal(syscall.SIGUSR2)
	after := u.Await("the reload is over", func(x supervisetest.State) bool { return x.Reload == 1 && x.Ready == 2 })
	if after.Main != before.Main || !strings.Contains(after.Status, "not done") {
		t.Errorf("main %d, was %d; status %q", after.Main, before.Main, after.Status)
	}
	if status, _, _, _ := get(t, "http://"+web); status != 200 {
		t.Errorf("status %d", status)
	}
}

// After kill -9 connections wait in the queues of the listeners that the supervisor
// keeps, and the next process answers them, by the state that was desired then: a
// change at run time is in force again, though the file does not know of it.
func TestListenersOutliveACrash(t *testing.T) {
	server, second := newNamed(t, "a"), newNamed(t, "b")
	web, other := freshAddress(t), freshAddress(t)
	u := newUnit(t, fmt.Sprintf(unitText, web, other, server.address))
	u.start(nil)
	u.verb("config", "set", "endpoint/web/a.address", second.address)
	if _, from, _, _ := get(t, "http://"+web); from != "b" {
		t.Fatalf("before: %s answers", from)
	}
	for range 2 {
		u.kill()
		var waiting []*dialog
		for i := range 20 {
			c := dialHTTP(t, web)
			c.ask(fmt.Sprint("/waits/", i))
			waiting = append(waiting, c)
		}
		u.start(nil)
		for i, c := range waiting {
			if status, body := c.answered(); status != 200 || body != fmt.Sprint("b GET /waits/", i) {
				t.Errorf("%d: %d %q", i, status, body)
			}
			_ = c.Close()
		}
	}
}

// What a change takes away, nobody listens at any more when the change is done; what
// it brings is kept. When the process is told to end the store is empty before it
// drains: who comes is refused and does not wait.
func TestWhatIsKeptFollows(t *testing.T) {
	server := newNamed(t, "a")
	web, other, third := freshAddress(t), freshAddress(t), freshAddress(t)
	u := newUnit(t, fmt.Sprintf(unitText, web, other, server.address))
	u.start(nil)
	text := strings.Replace(fmt.Sprintf(unitText, web, third, server.address), "  other:", "  third:", 1)
	if err := os.WriteFile(u.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	u.verb("reload")
	if c, err := net.Dial("tcp", other); err == nil {
		_ = c.Close()
		t.Errorf("%s was removed and takes connections", other)
	}
	want := []string{keptName(web), keptName(third)}
	slices.Sort(want)
	u.Await("the new one is kept", func(x supervisetest.State) bool { return slices.Equal(x.Kept, want) })

	slow := dialHTTP(t, web) // half a request: it is under way
	slow.send("GET / HTTP/1.1\r\n")
	eventually(t, "it is accepted", func() bool {
		out, err := holdfast(t, "flows", "--socket", u.socket).Output()
		return err == nil && strings.Contains(string(out), slow.LocalAddr().String())
	})
	u.signal(syscall.SIGTERM)
	x := u.Await("it ends", func(x supervisetest.State) bool { return x.Stops && len(x.Kept) == 0 })
	if !strings.Contains(strings.Join(x.Said, "\n"), "STOPPING=1\nEXTEND_TIMEOUT_USEC=") {
		t.Errorf("said %q", x.Said)
	}
	for _, at := range []string{web, third} {
		eventually(t, at+" refuses", func() bool {
			c, err := net.Dial("tcp", at)
			if err == nil {
				_ = c.Close()
			}
			return err != nil
		})
	}
	slow.send("Host: test\r\n\r\n")
	if status, _ := slow.answered(); status != 200 {
		t.Errorf("what was under way: status %d", status)
	}
}

// Sockets of a socket unit are used for the listeners of their addresses, once; what
// is no listener's is closed, so that what the file wants there can be opened.
func TestSocketActivation(t *testing.T) {
	server := newNamed(t, "a")
	files := map[string]*os.File{}
	at := map[string]string{}
	for _, name := range []string{"web", "strange"} {
		// As a socket unit opens it, unless told: TCP, not MPTCP as Go would.
		var plain net.ListenConfig
		plain.SetMultipathTCP(false)
		l, err := plain.Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		at[name] = l.Addr().String()
		if files[name], err = l.(*net.TCPListener).File(); err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
	}
	u := newUnit(t, fmt.Sprintf(unitText, at["web"], freshAddress(t), server.address))
	early := dialHTTP(t, at["web"])
	early.ask("/early")
	u.start(files)
	if status, body := early.answered(); status != 200 || body != "a GET /early" {
		t.Errorf("who came before the process: %d %q", status, body)
	}
	// Ours are closed; what is left of them is the process's.
	for _, f := range files {
		_ = f.Close()
	}
	if c, err := net.Dial("tcp", at["strange"]); err == nil {
		_ = c.Close()
		t.Error("what no listener names is open")
	}
	before := u.State()
	u.signal(syscall.SIGUSR2)
	u.Await("there is a successor", func(x supervisetest.State) bool { return x.Ready > before.Ready && x.Main != before.Main })
	if status, _, _, _ := get(t, "http://"+at["web"]+"/late"); status != 200 {
		t.Errorf("after an upgrade: status %d", status)
	}
}

// With another file the new process opens and closes listeners only when it serves: as
// long as the old one may go on, its listeners are as they were, to clients and to the
// supervisor. When it serves they are as the new file says.
func TestListenersWhileUpgradeMayFail(t *testing.T) {
	server := newNamed(t, "a")
	web, other, third := freshAddress(t), freshAddress(t), freshAddress(t)
	u := newUnit(t, fmt.Sprintf(unitText, web, other, server.address))
	u.start(nil)
	file := filepath.Join(u.dir, "other.yaml")
	text := strings.Replace(fmt.Sprintf(unitText, web, third, server.address), "  other:", "  third:", 1)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	kept := func(vips ...string) (names []string) {
		for _, vip := range vips {
			names = append(names, keptName(vip))
		}
		slices.Sort(names)
		return names
	}
	held := dialHTTP(t, web) // what the new process watches first
	held.ask("/held")
	held.answered()

	cmd := holdfast(t, "upgrade", "--config", file, "--canary", "1m", "--socket", u.socket, "--json")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	heir := 0
	for in := bufio.NewScanner(out); in.Scan(); {
		var step struct {
			Phase string `json:"phase"`
			PID   int    `json:"pid"`
		}
		if err := json.Unmarshal(in.Bytes(), &step); err != nil {
			t.Fatalf("%s: %v", in.Bytes(), err)
		}
		if step.PID != 0 && step.PID != u.State().Main {
			heir = step.PID
		}
		if step.Phase != "canary" {
			continue
		}
		if status, _, _, _ := get(t, "http://"+other); status != 200 {
			t.Errorf("while the canary is watched: status %d", status)
		}
		if x := u.State(); !slices.Equal(x.Kept, kept(web, other)) {
			t.Errorf("while the canary is watched %q are kept", x.Kept)
		}
		if p, err := os.FindProcess(heir); err != nil || p.Kill() != nil {
			t.Errorf("the new process is %d: %v", heir, err)
		}
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the upgrade is done, though the new process died")
	}
	if status, _, _, _ := get(t, "http://"+other); status != 200 {
		t.Errorf("after the upgrade that was not done: status %d", status)
	}
	if x := u.State(); !slices.Equal(x.Kept, kept(web, other)) {
		t.Errorf("after the upgrade that was not done %q are kept", x.Kept)
	}
	if c, err := net.Dial("tcp", third); err == nil {
		_ = c.Close()
		t.Error("what only the new file names is open")
	}

	u.verb("upgrade", "--config", file)
	u.Await("what the new file names is kept", func(x supervisetest.State) bool { return slices.Equal(x.Kept, kept(web, third)) })
	if status, _, _, _ := get(t, "http://"+third); status != 200 {
		t.Errorf("after the upgrade: status %d", status)
	}
	eventually(t, "what the new file does not name refuses", func() bool {
		c, err := net.Dial("tcp", other)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
}

// A process that drains what its successor refused ends with its flows, whatever
// becomes of the successor; and with the successor, however many flows there are.
func TestDrainingEndsWithTheSuccessor(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	reaped := make(chan struct{})
	go func() { // ends with the process
		_ = cmd.Wait()
		close(reaped)
	}()
	for _, all := range []bool{true, false} {
		done := make(chan bool, 1)
		done <- all
		if empty, orphaned := emptyOrOrphaned(done, cmd.Process); empty != all || orphaned {
			t.Errorf("flows that have all ended (%t): empty %t, orphaned %t", all, empty, orphaned)
		}
	}
	over := make(chan [2]bool)
	go func() { // ends below
		empty, orphaned := emptyOrOrphaned(make(chan bool), cmd.Process)
		over <- [2]bool{empty, orphaned}
	}()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-reaped
	if got := <-over; got != [2]bool{false, true} {
		t.Errorf("the successor has died: %v", got)
	}
}
