package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// running is a Holdfast that a test has started.
type running struct {
	t      *testing.T
	cmd    *exec.Cmd
	socket string
	ended  chan error
	out    *lockedBuffer
	ready  string // its first line
}

// lockedBuffer collects what a process writes.
type lockedBuffer struct {
	lines chan string
	all   bytes.Buffer // owned by the reader until lines is closed
}

// begin runs Holdfast by these arguments until the test ends, or end is called.
// Variables are NAME=value.
func begin(t *testing.T, variables []string, args ...string) *running {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf-") // short: the path of a socket is bounded
	if err != nil {
		t.Fatal(err)
	}
	r := &running{t: t, socket: filepath.Join(dir, "s"), ended: make(chan error, 1), out: &lockedBuffer{lines: make(chan string, 64)}}
	r.cmd = holdfast(t, args...)
	r.cmd.Env = append(append(r.cmd.Env, socketEnv+"="+r.socket, "STATE_DIRECTORY="+filepath.Join(dir, "state")), variables...)
	pipe, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	r.cmd.Stderr = &log
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the process
		in := bufio.NewScanner(pipe)
		for in.Scan() {
			r.out.all.WriteString(in.Text() + "\n")
			select {
			case r.out.lines <- in.Text():
			default: // nobody waits for it
			}
		}
		close(r.out.lines)
		r.ended <- r.cmd.Wait()
	}()
	t.Cleanup(func() {
		r.kill()
		_ = os.RemoveAll(dir)
		if t.Failed() {
			t.Logf("holdfast %s:\n%s%s", strings.Join(args, " "), r.out.all.Bytes(), log.Bytes())
		}
	})
	line, ok := <-r.out.lines
	if !ok {
		t.Fatal("it ended at once")
	}
	r.ready = line
	return r
}

// runFile runs a configuration.
func runFile(t *testing.T, text string, variables ...string) *running {
	t.Helper()
	file := filepath.Join(t.TempDir(), "holdfast.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return begin(t, variables, "run", "-c", file)
}

// says waits for a line of its output with this text.
func (r *running) says(text string) string {
	r.t.Helper()
	for line := range r.out.lines {
		if strings.Contains(line, text) {
			return line
		}
	}
	r.t.Fatalf("it has not said %q", text)
	return ""
}

func (r *running) signal(s syscall.Signal) {
	r.t.Helper()
	if err := r.cmd.Process.Signal(s); err != nil {
		r.t.Fatal(err)
	}
}

// wait waits for the end of the process.
func (r *running) wait() error {
	err := <-r.ended
	r.ended <- err
	return err
}

func (r *running) kill() {
	_ = r.cmd.Process.Kill()
	_ = r.wait()
}

// verb asks it, and gives what is printed and the exit status.
func (r *running) verb(args ...string) (out, errs string, status int) {
	r.t.Helper()
	return r.start(args...)()
}

// start begins to ask it; what it gives waits for the answer.
func (r *running) start(args ...string) func() (out, errs string, status int) {
	r.t.Helper()
	cmd := holdfast(r.t, append(args, "--socket", r.socket)...)
	cmd.Env = append(cmd.Env, "STATE_DIRECTORY="+r.socket+".state") // should it begin to run
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	return func() (string, string, int) {
		err := cmd.Wait()
		var e *exec.ExitError
		if err != nil && !errors.As(err, &e) {
			r.t.Fatal(err)
		}
		return out.String(), errs.String(), cmd.ProcessState.ExitCode()
	}
}

// must asks it and wants this exit status, and all texts in what is printed.
func (r *running) must(status int, args []string, texts ...string) string {
	r.t.Helper()
	out, errs, got := r.verb(args...)
	for _, text := range texts {
		if !strings.Contains(out+errs, text) {
			r.t.Errorf("holdfast %s does not say %q", strings.Join(args, " "), text)
		}
	}
	if got != status {
		r.t.Errorf("holdfast %s: exit status %d, want %d", strings.Join(args, " "), got, status)
	}
	if r.t.Failed() {
		r.t.Logf("holdfast %s:\n%s%s", strings.Join(args, " "), out, errs)
	}
	return out
}

// freshAddress is a place where nobody listens.
func freshAddress(t *testing.T) string {
	t.Helper()
	a, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func portOf(address string) string { return address[strings.LastIndexByte(address, ':')+1:] }

// named is a server for HTTP that says its name, and what it was asked for.
type named struct {
	*httptest.Server
	address string
}

func newNamed(t *testing.T, name string) *named { return namedAt(t, name, "127.0.0.1:0") }

func namedAt(t *testing.T, name, address string) *named {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &named{Server: httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Server", name)
		_, _ = fmt.Fprintf(w, "%s %s %s", name, r.Method, r.URL.Path)
	}))}
	_ = s.Listener.Close()
	s.Listener = l
	s.Start()
	s.address = l.Addr().String()
	t.Cleanup(s.Close)
	return s
}

// get asks for a page on a connection of its own, with fields as Name: value.
func get(t *testing.T, url string, fields ...string) (status int, server, body string, header http.Header) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		if r.Header.Add(name, value); name == "Host" {
			r.Host = value
		}
	}
	c := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	answer, err := c.Do(r)
	if err != nil {
		t.Fatalf("%s: %v", url, err)
	}
	defer func() { _ = answer.Body.Close() }()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatalf("%s: %v", url, err)
	}
	return answer.StatusCode, answer.Header.Get("X-Server"), string(b), answer.Header
}

// eventually waits until it is so.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came to that: %s", what)
		}
	}
}

// dialog is a client's connection, by hand.
type dialog struct {
	t *testing.T
	net.Conn
	in *bufio.Reader
}

func dialHTTP(t *testing.T, address string) *dialog {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return &dialog{t, c, bufio.NewReader(c)}
}

func (w *dialog) send(text string) {
	w.t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		w.t.Fatal(err)
	}
}

func (w *dialog) ask(path string) {
	w.t.Helper()
	w.send("GET " + path + " HTTP/1.1\r\nHost: test\r\n\r\n")
}

// answered reads a response whole.
func (w *dialog) answered() (status int, body string) {
	w.t.Helper()
	r, err := http.ReadResponse(w.in, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// ends wants the end of the connection, by FIN.
func (w *dialog) ends() {
	w.t.Helper()
	if b, err := io.ReadAll(w.in); err != nil || len(b) > 0 {
		w.t.Errorf("%q, %v; want the end", b, err)
	}
}

// line reads a line without its end.
func (w *dialog) line() string {
	w.t.Helper()
	s, err := w.in.ReadString('\n')
	if err != nil {
		w.t.Fatalf("%q, %v", s, err)
	}
	return strings.TrimRight(s, "\r\n")
}
