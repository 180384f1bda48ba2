package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-lb/holdfast/internal/node"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// demoHoldfast is the Holdfast of the demo: a child process, and later the
// process that succeeded it.
type demoHoldfast struct {
	exe, dir     string
	file, socket string
	tcp, web     string // where clients connect
	page         string // for a browser
	server       string // for TCP
	pages        []*exampleServer
	client       *client
	keeper       *demoKeeper
	ended        bool

	mu    sync.Mutex          // guards what follows
	pid   int                 // that serves, as far as we know
	known map[int]*os.Process // all that have served
}

// startTime is how long Holdfast may take until it answers, stopTime until it
// has ended.
const (
	startTime = 10 * time.Second
	stopTime  = 5 * time.Second
)

// startDemoHoldfast runs this very program in front of server and of two example
// servers for HTTP. say tells people of these.
func startDemoHoldfast(server string, say func(string, ...any)) (*demoHoldfast, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "holdfast-demo-")
	if err != nil {
		return nil, err
	}
	h := &demoHoldfast{
		exe: exe, dir: dir, server: server, file: filepath.Join(dir, "holdfast.yaml"), socket: filepath.Join(dir, "admin.sock"),
		known: map[int]*os.Process{},
	}
	if h.keeper, err = startKeeper(exe, dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	h.client = clientOf(h.socket, false)
	h.client.http.Timeout = time.Minute
	for _, name := range []string{"a1", "a2"} {
		page, err := startExampleServer(exe, name, say)
		if err != nil {
			return nil, errors.Join(err, h.end())
		}
		h.pages = append(h.pages, page)
	}
	if err := h.start(); err != nil {
		return nil, errors.Join(err, h.end())
	}
	return h, nil
}

func (h *demoHoldfast) start() error {
	var err error
	if h.tcp, err = freeAddress(); err != nil {
		return err
	}
	if h.web, err = freeAddress(); err != nil {
		return err
	}
	if h.page, err = freeAddress(); err != nil {
		return err
	}
	if err = h.configure("1h"); err != nil {
		return err
	}
	// A file, not a pipe: successors go on writing to it.
	log, err := os.Create(h.log())
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(h.exe, "run", "-c", h.file)
	cmd.Stdout, cmd.Stderr = log, log
	sock.Apart(cmd) // Ctrl-C is for us; the flows end first
	if err := cmd.Start(); err != nil {
		return err
	}
	h.know(cmd.Process.Pid)
	gone := make(chan struct{})
	go func() { // ends with the child
		_ = cmd.Wait()
		close(gone)
	}()
	for deadline := time.Now().Add(startTime); ; time.Sleep(10 * time.Millisecond) {
		if _, err = h.status(); err == nil {
			return nil
		}
		select {
		case <-gone:
			return fmt.Errorf("demo: holdfast ended:\n%s", h.tail())
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("demo: holdfast does not answer: %w\n%s", err, h.tail())
		}
	}
}

// freeAddress finds a port of loopback that nobody listens at.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// configure writes the file. Two loops at least, so that there is something
// to rebalance.
func (h *demoHoldfast) configure(idle string) error {
	loops := min(max(2, runtime.NumCPU()), 4)
	text := fmt.Sprintf(`node: { name: demo, loops: %d, admin: { socket: %s, metrics: %s }, state: %s }
listeners:
  web:
    vip: %s
    protocol: http
    backend: web
    onChange: adopt
  tcp:
    vip: %s
    backend: tcp
    idleTimeout: %s
    onChange: adopt
backends:
  web:
    # A server that is about to end answers 503 to its check: it drains.
    check: { http: { path: /healthz, drain: 503 }, interval: 200ms, fastInterval: 200ms, downInterval: 200ms, rise: 1 }
    endpoints:
      - { name: a1, address: "%s" }
      - { name: a2, address: "%s" }
  tcp: { endpoints: [ { name: t1, address: "%s" } ] }
`, loops, h.socket, h.page, filepath.Join(h.dir, "state"), h.web, h.tcp, idle, h.pages[0].address, h.pages[1].address, h.server)
	return os.WriteFile(h.file, []byte(text), 0o600)
}

// status asks the process that serves now, and notes which one it is.
func (h *demoHoldfast) status() (*node.Status, error) {
	s, err := h.client.status()
	if err != nil {
		return nil, err
	}
	h.know(s.PID)
	return s, nil
}

// know notes that the process with this identity serves now. It is held on to
// at once, so that the number cannot come to mean another process.
func (h *demoHoldfast) know(pid int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pid = pid
	if h.known[pid] == nil {
		if p, err := os.FindProcess(pid); err == nil {
			h.known[pid] = p
		}
	}
}

// serving is the process that serves, as far as we know.
func (h *demoHoldfast) serving() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.pid
}

func (h *demoHoldfast) log() string { return filepath.Join(h.dir, "log") }

// tail is the end of what Holdfast has written.
func (h *demoHoldfast) tail() string {
	const lines = 10
	text, _ := os.ReadFile(h.log())
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// end ends the process that serves, waits for all that have, and leaves
// nothing behind. A second call does nothing.
func (h *demoHoldfast) end() error {
	if h.ended {
		return nil
	}
	h.ended = true
	deadline := time.Now().Add(stopTime)
	// Another one may have taken over since we looked: whoever answers is told.
	for time.Now().Before(deadline) {
		_, err := h.status()
		for _, p := range h.known {
			if p.Pid == h.pid {
				_ = p.Signal(syscall.SIGTERM)
			}
		}
		if err != nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	// One that took over and was replaced before we ever looked is our child by
	// now, if it has not ended.
	for _, pid := range h.children() {
		if h.known[pid] == nil {
			if h.know(pid); h.known[pid] != nil {
				_ = h.known[pid].Signal(syscall.SIGTERM)
			}
		}
	}
	var left []string
	for pid, p := range h.known {
		if !gone(p, time.Until(deadline)) {
			left = append(left, fmt.Sprint(pid))
			_ = p.Kill()
			gone(p, time.Second)
		}
	}
	for _, page := range h.pages {
		page.end()
	}
	_ = os.RemoveAll(h.dir)
	h.keeper.end()
	if len(left) > 0 {
		return fmt.Errorf("demo: process %s did not end when told; killed", strings.Join(left, ", "))
	}
	return nil
}

// children lists the processes that run our file and have us as their parent.
func (h *demoHoldfast) children() (pids []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		stat, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		// pid (name) state parent ...
		_, after, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(after)
		if len(fields) < 2 || fields[1] != strconv.Itoa(os.Getpid()) {
			continue
		}
		line, _ := os.ReadFile(filepath.Join(filepath.Dir(name), "cmdline"))
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err == nil && strings.Contains(string(line), h.file) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// gone waits until p has ended, d at most. It need not be our child.
func gone(p *os.Process, d time.Duration) bool {
	for deadline := time.Now().Add(d); ; time.Sleep(10 * time.Millisecond) {
		// A child of ours that has ended stays a zombie until we wait for it.
		// Waiting for one that runs would block, or fail if it is no child.
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid))
		if err != nil {
			return true
		}
		if _, after, ok := strings.Cut(string(stat), ") "); ok && strings.HasPrefix(after, "Z") {
			_, _ = p.Wait()
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}
