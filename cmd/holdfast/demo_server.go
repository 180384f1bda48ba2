package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-lb/holdfast/internal/demo"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

const (
	// farewell is how long an example server that is told to end says so to
	// checks before it does: some intervals of the demo's check.
	farewell = time.Second
	// reviveTime is the time between the end of an example server and its next
	// beginning.
	reviveTime = 300 * time.Millisecond
)

// exampleServer is a child that serves pages, and is started again whenever it
// ends: so people can try what becomes of requests when a server restarts.
type exampleServer struct {
	exe, name, address string
	say                func(format string, args ...any)

	running chan struct{} // closed when the last child has ended
	ending  chan struct{}
	once    sync.Once
	pid     atomic.Int64
	starts  atomic.Int64
}

func startExampleServer(exe, name string, say func(string, ...any)) (*exampleServer, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	s := &exampleServer{exe: exe, name: name, address: address, say: say, running: make(chan struct{}), ending: make(chan struct{})}
	cmd, in, err := s.start()
	if err != nil {
		return nil, err
	}
	go s.keep(cmd, in) // ends with end
	for deadline := time.Now().Add(startTime); ; time.Sleep(10 * time.Millisecond) {
		if s.answers() {
			return s, nil
		}
		if time.Now().After(deadline) {
			s.end()
			return nil, fmt.Errorf("demo: server %s does not answer at %s", name, address)
		}
	}
}

// start starts a child. It ends when its standard input does, so also when we
// are no more.
func (s *exampleServer) start() (*exec.Cmd, io.Closer, error) {
	cmd := exec.Command(s.exe, "demo", "server", s.name, s.address)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	sock.Apart(cmd)
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	s.pid.Store(int64(cmd.Process.Pid))
	s.starts.Add(1)
	return cmd, in, nil
}

// keep starts one child after another until end.
func (s *exampleServer) keep(cmd *exec.Cmd, in io.Closer) {
	defer close(s.running)
	for {
		gone := make(chan struct{})
		go func() { // ends with the child
			_ = cmd.Wait()
			close(gone)
		}()
		select {
		case <-s.ending:
			_ = in.Close()
			<-gone
			return
		case <-gone:
		}
		select {
		case <-s.ending:
			return
		case <-time.After(reviveTime):
		}
		var err error
		if cmd, in, err = s.start(); err != nil {
			s.say("server %s: %v", s.name, err)
			return
		}
		s.say("server web/%s has ended and is started again: process %d", s.name, s.pid.Load())
	}
}

// answers tells whether it is well.
func (s *exampleServer) answers() bool {
	c := http.Client{Timeout: time.Second}
	defer c.CloseIdleConnections()
	r, err := c.Get("http://" + s.address + "/healthz")
	if err != nil {
		return false
	}
	_ = r.Body.Close()
	return r.StatusCode == http.StatusOK
}

// restart does what `kill PID` does, and waits until the next one answers.
func (s *exampleServer) restart() error {
	before := s.starts.Load()
	p, err := os.FindProcess(int(s.pid.Load()))
	if err == nil {
		err = p.Signal(syscall.SIGTERM)
	}
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(startTime); s.starts.Load() == before || !s.answers(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("demo: server %s did not come back", s.name)
		}
	}
	return nil
}

// end ends the child for good. A second call does nothing.
func (s *exampleServer) end() {
	s.once.Do(func() { close(s.ending) })
	<-s.running
}

// demoServerCommand is what the children are: not for people, so not in help.
func demoServerCommand() *cobra.Command {
	return &cobra.Command{
		Use: "server NAME ADDRESS", Hidden: true, Args: wants(2, 2, "NAME and ADDRESS"),
		Short: "An example server, until its standard input ends",
		RunE: func(_ *cobra.Command, args []string) error {
			if err := serveExample(args[0], args[1]); err != nil {
				return &exit{exitFailed, err}
			}
			return nil
		},
	}
}

// serveExample serves until standard input ends, or SIGTERM says so: then
// checks are told first, and requests under way are answered.
func serveExample(name, address string) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", address)
	if err != nil {
		return err
	}
	page := demo.Page(name)
	var leaving atomic.Bool
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if leaving.Load() && r.URL.Path == "/healthz" {
			http.Error(w, "leaving", http.StatusServiceUnavailable)
			return
		}
		page.ServeHTTP(w, r)
	})}
	alone := make(chan struct{})
	go func() { // ends with standard input, or with the process
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(alone)
	}()
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	select {
	case err = <-served:
		return err
	case <-alone:
		return server.Close()
	case <-signals:
	}
	leaving.Store(true)
	select {
	case <-alone:
	case <-signals: // impatient
	case <-time.After(farewell):
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}
