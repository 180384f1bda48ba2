package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A VIP moves between two hosts and back, while no thread of a process that serves has a
// capability, nor can get one, but that to bind ports below 1024. The privileged
// processes beside them have one, or this test would look at the wrong thing.
func TestServesWithoutPrivilege(t *testing.T) {
	t.Parallel() // most of it is waiting
	cmd := holdfast(t, "demo", "--hosts", "--json", "--flows", "40", "--duration", "4s")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with the demo
	const (
		bindService = 1 << 10 // CAP_NET_BIND_SERVICE, include/uapi/linux/capability.h
		netAdmin    = 1 << 12
	)
	serving, privileged, threads := map[int]bool{}, map[int]bool{}, 0
	seen := map[int]int{} // privileged ones, how often
	err := error(nil)
	for running := true; running; {
		select {
		case err = <-ended:
			running = false
		case <-time.After(50 * time.Millisecond):
		}
		for _, pid := range descendants(cmd.Process.Pid) {
			line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			words := strings.Split(string(line), "\x00")
			if len(words) < 2 {
				continue
			}
			switch words[1] {
			case "netadmin":
				seen[pid]++
				for _, c := range capabilities(pid) {
					privileged[pid] = privileged[pid] || c["CapEff"]&netAdmin != 0
				}
			case "run":
				env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
				if !slices.Contains(strings.Split(string(env), "\x00"), renouncedEnv+"=1") {
					continue // it has just begun, and is about to
				}
				for _, c := range capabilities(pid) {
					serving[pid] = true
					threads++
					for name, set := range c {
						if set&^bindService != 0 {
							t.Errorf("process %d that serves: %s %016x", pid, name, set)
						}
					}
				}
			}
		}
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out.Bytes())
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var s hostsSummary
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &s); err != nil {
		t.Fatalf("%v\n%s", err, out.Bytes())
	}
	if !s.OK || s.Moves != 2 || s.MovedFlows < 2*40 {
		t.Errorf("%+v\n%s", s, out.Bytes())
	}
	// Whoever starts a program has a child for a moment that is itself, and Go's first one
	// ends at once (os.checkClonePidfd).
	maps.DeleteFunc(privileged, func(pid int, _ bool) bool { return seen[pid] == 1 })
	if len(serving) != 2 || len(privileged) != 4 { // each with the one that keeps it
		t.Errorf("processes that serve %v, privileged %v", serving, privileged)
	}
	for pid, may := range privileged {
		if !may {
			t.Errorf("privileged process %d has no CAP_NET_ADMIN", pid)
		}
	}
	t.Logf("looked at %d threads", threads)
}

// descendants are the processes that a process has started, and those that they have.
func descendants(pid int) (all []int) {
	lists, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil
	}
	for _, thread := range lists {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, thread.Name()))
		if err != nil {
			continue
		}
		for word := range strings.FieldsSeq(string(text)) {
			if child, err := strconv.Atoi(word); err == nil {
				all = append(append(all, child), descendants(child)...)
			}
		}
	}
	return all
}

// capabilities reads the sets of each thread of a process.
func capabilities(pid int) (all []map[string]uint64) {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil
	}
	for _, thread := range threads {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", pid, thread.Name()))
		if err != nil {
			continue
		}
		c := map[string]uint64{}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, ":")
			switch name {
			case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb":
				if set, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64); err == nil {
					c[name] = set
				}
			}
		}
		if len(c) == 5 {
			all = append(all, c)
		}
	}
	return all
}
