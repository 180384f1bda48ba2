package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/node"
)

// Verbs that wait, and those that come while another process takes over, have their
// answer: of the successor, if need be. None is done twice.
func TestVerbsLiveThroughUpgrades(t *testing.T) {
	server := newEcho(t, "a", nil)
	vip := freshAddress(t)
	h := runFile(t, fmt.Sprintf(`
node: { admin: { socket: "${HOLDFAST_SOCKET}" } }
listeners:
  web: { vip: %q, backend: app }
  old: { vip: %q, backend: app }
backends: { app: { endpoints: [ { name: a, address: %q }, { name: b, address: %[3]q } ] } }
`, freshAddress(t), vip, server.address))
	conn, err := net.Dial("tcp4", vip)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "a\n" {
		t.Fatal(line, err)
	}
	shift := h.start("endpoint", "weight", "app/a", "10", "--over", "3s")
	remove := h.start("listener", "remove", "old", "--drain")
	h.await("it is not being removed", func(s *node.Status) bool { return len(s.Removing) == 1 && len(s.Shifts) == 1 })
	h.upgraded()
	h.await("the removal does not go on", func(s *node.Status) bool { return len(s.Removing) == 1 && len(s.Shifts) == 1 })
	h.upgraded()
	h.await("the removal does not go on", func(s *node.Status) bool { return len(s.Removing) == 1 })
	_ = conn.Close()
	if out, errs, status := remove(); status != 0 || !strings.Contains(out, "old: done after") {
		t.Errorf("remove: %d\n%s%s", status, out, errs)
	}
	if out, errs, status := shift(); status != 0 || !strings.Contains(out, "weight 10, generation") {
		t.Errorf("shift: %d\n%s%s", status, out, errs)
	}
	// Writes that come at any time of an upgrade, one after another.
	was := h.status().Generation
	const writes = 40
	done := make(chan struct{})
	go func() { // ends with the last write
		defer close(done)
		for i := range writes {
			if out, errs, status := h.start("config", "set", "endpoint/app/b.weight", fmt.Sprint(100+i+1))(); status != 0 {
				t.Errorf("write %d: %d\n%s%s", i, status, out, errs)
			}
		}
	}()
	// Between two upgrades there is time for a write: one that meets upgrades without end is
	// given up after a while.
	for n, over := 0, false; !over; n++ {
		h.upgraded()
		select {
		case <-done:
			over = true
		case <-time.After(time.Duration(n%8) * 10 * time.Millisecond):
		}
	}
	if is := h.status().Generation; is != was+writes {
		t.Errorf("generation %d after %d writes, was %d", is, writes, was)
	}
}

// --json tells of each step in a line, and the last one has the report; status has it
// afterwards, and a refusal is one.
func TestUpgradeInJSON(t *testing.T) {
	h := runFile(t, fmt.Sprintf(`
node: { admin: { socket: "${HOLDFAST_SOCKET}" } }
listeners: { web: { vip: %q, backend: app } }
backends: { app: { endpoints: [ { name: a, address: "127.0.0.1:1" } ] } }
`, freshAddress(t)))
	before := h.status()
	out := h.must(0, []string{"upgrade", "--json", "--reason", "a test"})
	var last node.Progress
	phases := map[string]bool{}
	for line := range strings.Lines(out) {
		last = node.Progress{}
		if err := json.Unmarshal([]byte(line), &last); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		phases[last.Phase] = true
	}
	if !last.Done || last.Move == nil || last.Move.PID == before.PID || last.Move.From == "" || !phases["starting"] || !phases["greeting"] || !phases["switching"] {
		t.Errorf("%v, %+v", phases, last)
	}
	h.successor(last.Move.PID)
	u := h.status().LastUpgrade
	if u == nil || u.Result != "done" || u.Was != before.PID || u.By.Reason != "a test" || u.Move.PID != last.Move.PID {
		t.Errorf("%+v", u)
	}
	h.must(0, []string{"status"}, fmt.Sprintf("upgrade   done 0 s ago: process %d -> %d, 0 flows moved", before.PID, last.Move.PID), `"a test"`)
	h.must(exitRefused, []string{"upgrade", "--expect", "99"}, "generation")
	h.must(exitUsage, []string{"upgrade", "--drain", "-1s"}, "--drain")
	if s := h.status(); s.PID != last.Move.PID || s.LastUpgrade.Result != "done" {
		t.Errorf("process %d, %+v", s.PID, s.LastUpgrade)
	}
}

// status asks for its status.
func (r *running) status() *node.Status {
	r.t.Helper()
	s, err := clientOf(r.socket, false).status()
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// await waits until its status is as wanted.
func (r *running) await(what string, is func(s *node.Status) bool) {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(r.status()); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatal(what)
		}
	}
}

// successor has a process that serves in place of the first end with the test.
func (r *running) successor(pid int) {
	r.t.Helper()
	p, err := os.FindProcess(pid)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = p.Kill() })
}
