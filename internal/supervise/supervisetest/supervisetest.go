// Package supervisetest stands in for systemd in tests: the other end of the notify
// socket, and the store of listening sockets. What it does is what sd_notify(3),
// sd_pid_notify_with_fds(3) and sd_listen_fds(3) say of a service of
// Type=notify-reload. The lab systemd runs the real one, of the release that there is.
package supervisetest

import (
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/sock"
)

// readMillis is how long one read waits before it looks whether all is over.
const readMillis = 50

// patience is how long is waited for what must come.
const patience = 20 * time.Second

// Supervisor is the stand-in. It reads datagrams one after another, holds
// descriptors by name, each socket once, and closes that of a barrier.
type Supervisor struct {
	Path string // of its socket

	t       *testing.T
	channel sock.Channel
	over    chan struct{}
	done    chan struct{}

	mu    sync.Mutex // guards what follows
	state State
	fds   map[string]sock.FD
	order []string // of what is in fds
}

// State is what a supervisor knows of its service.
type State struct {
	Said    []string // all datagrams but barriers
	Main    int      // process
	Ready   int      // how often it has said so
	Reload  int      // how often it has begun to
	Moment  int64    // of the last reload: CLOCK_MONOTONIC in microseconds
	Stops   bool
	Status  string
	Kept    []string // names of what is in the store
	Strange []string // what no supervisor knows
}

// New begins to listen, until the test ends.
func New(t *testing.T) *Supervisor {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf-") // short: the path of a socket is bounded
	if err != nil {
		t.Fatal(err)
	}
	s := &Supervisor{Path: filepath.Join(dir, "notify"), t: t, over: make(chan struct{}), done: make(chan struct{}), fds: map[string]sock.FD{}}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.Path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	file, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := sock.Dup(int(file.Fd())) // Fd makes it one that waits
	if err != nil {
		t.Fatal(err)
	}
	_ = file.Close()
	_ = conn.Close()
	s.channel = sock.ChannelFrom(fd)
	if err := s.channel.SetTimeout(readMillis); err != nil {
		t.Fatal(err)
	}
	go s.read() // ended below
	t.Cleanup(func() {
		close(s.over)
		<-s.done
		_ = s.channel.Close()
		for _, fd := range s.fds {
			fd.Close()
		}
		_ = os.RemoveAll(dir)
	})
	return s
}

func (s *Supervisor) read() {
	defer close(s.done)
	b := make([]byte, 8192)
	for {
		select {
		case <-s.over:
			return
		default:
		}
		n, fds, err := s.channel.Receive(b)
		if err != nil {
			continue // its time is over: look again
		}
		s.mu.Lock()
		s.take(string(b[:n]), fds)
		s.mu.Unlock()
	}
}

// take does what one datagram asks for.
func (s *Supervisor) take(text string, fds []sock.FD) {
	fields := map[string]string{}
	for l := range strings.SplitSeq(text, "\n") {
		name, value, ok := strings.Cut(l, "=")
		if !ok {
			s.state.Strange = append(s.state.Strange, text)
		}
		fields[name] = value
	}
	if fields["BARRIER"] != "1" {
		s.state.Said = append(s.state.Said, text)
	}
	for name, value := range fields {
		switch name {
		case "READY":
			s.state.Ready++
		case "RELOADING":
			s.state.Reload++
		case "STOPPING":
			s.state.Stops = true
		case "STATUS":
			s.state.Status = value
		case "MAINPID":
			s.state.Main, _ = strconv.Atoi(value)
		case "MONOTONIC_USEC":
			s.state.Moment, _ = strconv.ParseInt(value, 10, 64)
		case "MAINPIDFDID", "EXTEND_TIMEOUT_USEC", "FDSTORE", "FDSTOREREMOVE", "FDNAME", "BARRIER":
		default:
			s.state.Strange = append(s.state.Strange, text)
		}
	}
	name := fields["FDNAME"]
	switch {
	case fields["FDSTORE"] == "1":
		for _, fd := range fds {
			s.store(name, fd)
		}
		return
	case fields["FDSTOREREMOVE"] == "1":
		if fd, ok := s.fds[name]; ok {
			fd.Close()
			delete(s.fds, name)
			s.order = slices.DeleteFunc(s.order, func(x string) bool { return x == name })
		}
	}
	for _, fd := range fds {
		fd.Close()
	}
}

// store keeps a socket, unless it is kept already: two that listen at one address
// are one.
func (s *Supervisor) store(name string, fd sock.FD) {
	for _, x := range s.fds {
		if sock.LocalAddr(x) == sock.LocalAddr(fd) {
			fd.Close()
			return
		}
	}
	if _, taken := s.fds[name]; taken || strings.ContainsAny(name, ":\n") || name == "" || len(name) > 255 {
		s.state.Strange = append(s.state.Strange, "name "+name)
		fd.Close()
		return
	}
	s.fds[name] = fd
	s.order = append(s.order, name)
}

// State is what it knows now.
func (s *Supervisor) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.state
	x.Said, x.Strange = slices.Clone(x.Said), slices.Clone(x.Strange)
	x.Kept = slices.Sorted(maps.Keys(s.fds))
	return x
}

// Await waits until what it knows is as wanted, and gives it.
func (s *Supervisor) Await(what string, is func(State) bool) State {
	s.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		x := s.State()
		if is(x) {
			return x
		}
		if time.Now().After(end) {
			s.t.Fatalf("it never came to that: %s; it was %+v", what, x)
		}
	}
}

// Hand makes cmd, which is not started, a process of the service: it knows the
// socket and is given all that is kept, under the names that it has. others are
// handed on before that, as if a socket unit had opened them.
func (s *Supervisor) Hand(cmd *exec.Cmd, others map[string]*os.File) {
	s.t.Helper()
	var names []string
	for _, name := range slices.Sorted(maps.Keys(others)) {
		names = append(names, name)
		cmd.ExtraFiles = append(cmd.ExtraFiles, others[name])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range s.order {
		fd, err := s.fds[name].Dup()
		if err != nil {
			s.t.Fatal(err)
		}
		file := os.NewFile(uintptr(fd.Disown()), name) // closed with the test
		s.t.Cleanup(func() { _ = file.Close() })
		names = append(names, name)
		cmd.ExtraFiles = append(cmd.ExtraFiles, file)
	}
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+s.Path, fmt.Sprint("LISTEN_FDS=", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	// The number of the process is known to itself only.
	cmd.Args = append([]string{"/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
}
