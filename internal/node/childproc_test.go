package node

import (
	"bufio"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// A script that has the successor as a process of its own: with the script ends the
// process that answers. One that is nobody's is refused.
func TestChildOfScriptEnds(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "sleep 600 & echo $!; wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	real, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: cmd}
	if err := c.is(os.Getpid()); err == nil {
		t.Error("a process that is no descendant is accepted")
	}
	if err := c.is(real); err != nil {
		t.Error(err)
	}
	c.kill()
	_ = cmd.Wait() // it was killed
	c.awaitReal()
	if _, state := parentOf(real); state != "" && state != "Z" {
		t.Errorf("process %d is still there: %s", real, state)
	}
}
