package node

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/frozen"
)

// child is what was started as the successor: a process, or a script that has the
// successor as a process of its own.
type child struct {
	cmd  *exec.Cmd
	mu   sync.Mutex
	real *os.Process // that answers, if it is another; nil: it is not
}

// is notes which process answers. One that could not be ended is refused: an upgrade
// that comes to nothing needs its end, for to a taker that lives the end of the channel
// is our death, and it would end our flows and serve beside us.
func (c *child) is(pid int) error {
	if c == nil || pid == 0 || pid == c.cmd.Process.Pid { // nil: nothing was started
		return nil
	}
	p, err := os.FindProcess(pid) // held first: its number may be another's later
	if err == nil && !descends(pid, c.cmd.Process.Pid) {
		err = fmt.Errorf("it is no descendant of process %d", c.cmd.Process.Pid)
	}
	if err != nil {
		return &frozen.Refused{What: "new process", Why: fmt.Sprintf("process %d answers, which could not be ended (%v): a script is to exec holdfast", pid, err)}
	}
	c.mu.Lock()
	c.real = p
	c.mu.Unlock()
	return nil
}

// kill ends it.
func (c *child) kill() {
	c.mu.Lock()
	real := c.real
	c.mu.Unlock()
	if real != nil {
		_ = real.Kill() // it may have ended
	}
	_ = c.cmd.Process.Kill()
}

// realEnd bounds the wait for a process that was killed and is not our child.
const realEnd = 5 * time.Second

// awaitReal waits for the end of the process that answered, if that was not our child.
func (c *child) awaitReal() {
	c.mu.Lock()
	real := c.real
	c.mu.Unlock()
	for end := time.Now().Add(realEnd); real != nil && time.Now().Before(end); time.Sleep(time.Millisecond) {
		if _, state := parentOf(real.Pid); state == "" || state == "Z" {
			return
		}
	}
}

// descendMost bounds how many parents are looked at.
const descendMost = 64

func descends(pid, from int) bool {
	for range descendMost {
		if pid == from {
			return true
		}
		if pid, _ = parentOf(pid); pid <= 1 {
			return false
		}
	}
	return false
}

// parentOf gives the parent of a process, and its state; "": there is none.
func parentOf(pid int) (parent int, state string) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, ""
	}
	// The name may have blanks and brackets in it.
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(f) < 2 {
		return 0, ""
	}
	parent, _ = strconv.Atoi(f[1])
	return parent, f[0]
}
