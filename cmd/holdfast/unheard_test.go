package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Nobody reads what it writes, and the pipe is full: it serves, its checks are
// put in force, verbs are answered, and it ends when it is told to.
func TestNobodyReadsTheLog(t *testing.T) {
	s, vip := newSlowServer(t), freshAddress(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	fd := int(w.Fd()) // once: each call makes it blocking again
	if err := syscall.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	for size := 4096; size > 0; {
		if _, err := syscall.Write(fd, make([]byte, size)); errors.Is(err, syscall.EAGAIN) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "holdfast.yaml")
	text := strings.Replace(oneServer, "web: { endpoints", "web: { check: { tcp: {}, interval: 50ms, fall: 1 }, endpoints", 1)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	short, err := os.MkdirTemp("", "hf-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(short) }()
	h := &running{t: t, socket: filepath.Join(short, "s"), ended: make(chan error, 1), out: &lockedBuffer{}}
	h.cmd = holdfast(t, "run", "-c", file, "--log", "debug", "--grace", "0s")
	h.cmd.Env = append(h.cmd.Env, socketEnv+"="+h.socket, "STATE_DIRECTORY="+filepath.Join(dir, "state"), "VIP="+vip, "A1="+s.address())
	h.cmd.Stdout, h.cmd.Stderr = w, w
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	go func() { h.ended <- h.cmd.Wait() }() // ends with the process
	t.Cleanup(h.kill)

	eventually(t, "it is up", func() bool {
		return strings.Contains(states(h, "up"), "web/a1")
	})
	h.must(0, []string{"endpoint", "hold", "web/a1"}, "held on all 2 loops")
	h.must(0, []string{"endpoint", "ready", "web/a1"}, "web/a1 up on all 2 loops")
	h.signal(syscall.SIGTERM)
	if err := h.wait(); err != nil {
		t.Error(err)
	}
}
