//go:build planted

package planted

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// marchEnv names a file with one line that says what happens to an upgrade, such as
// `kill:17@taker`: what is done, before which call by which of the two sides. It is
// read when an upgrade begins, so that one process can be led through many. What
// calls there were is appended to a file beside it, with ".calls" behind its name.
const marchEnv = "HOLDFAST_MARCH"

// Marching counts the calls by which one side of an upgrade speaks to the other, and
// does at one of them what the march says: it fails, or the process is killed or
// stopped there. It belongs to the carrier of that side.
type Marching struct {
	side  string
	calls *os.File
	do    string
	at    int
	n     int
}

// March begins to count the calls of one side, "giver" or "taker". nil: nothing is
// to happen, and nobody listens.
func March(side string) *Marching {
	path := os.Getenv(marchEnv)
	if path == "" {
		return nil
	}
	line, err := os.ReadFile(path)
	if err != nil {
		panic(fmt.Sprintf("planted: %v", err))
	}
	m := &Marching{side: side}
	if m.calls, err = os.OpenFile(path+".calls", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		panic(fmt.Sprintf("planted: %v", err))
	}
	spec, of, _ := strings.Cut(strings.TrimSpace(string(line)), "@")
	if spec == "" || of != side {
		return m
	}
	do, number, _ := strings.Cut(spec, ":")
	if m.at, err = strconv.Atoi(number); err != nil || m.at < 1 {
		panic(fmt.Sprintf("planted: %s: %q names no call", marchEnv, line))
	}
	m.do = do
	return m
}

// Call is told of each call before it is made. An error is to be returned in its
// place.
func (m *Marching) Call(verb string, what fmt.Stringer) error {
	if m == nil {
		return nil
	}
	m.n++
	// One write of a line is whole, whoever else appends.
	_, _ = fmt.Fprintf(m.calls, "%s %d %d %s %v\n", m.side, os.Getpid(), m.n, verb, what) // who reads misses it
	if m.n != m.at {
		return nil
	}
	switch m.do {
	case "fail":
		return errors.New("planted: this call fails")
	case "kill":
		raise(syscall.SIGKILL)
		select {}
	case "stop":
		raise(syscall.SIGSTOP) // it goes on with SIGCONT
		return nil
	}
	panic(fmt.Sprintf("planted: %s: what is %q?", marchEnv, m.do))
}

// End gives back what a march holds.
func (m *Marching) End() {
	if m != nil {
		_ = m.calls.Close()
	}
}

// raise sends a signal to the process itself.
func raise(sig os.Signal) {
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Signal(sig)
	}
	if err != nil {
		panic(fmt.Sprintf("planted: %v: %v", sig, err))
	}
}
