package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stageStand is the stage of a re-executed program that is one of the servers
// which are restarted.
const stageStand = "stand"

// standMain is a stand in a process of its own. The arguments are its name, its
// address, that of its check, the unix socket by which it is told, the seed, and
// how long it warms up before it listens. SIGTERM ends it gracefully.
func standMain(args []string, out io.Writer) error {
	if len(args) != 6 {
		return fmt.Errorf("lab: server: %d arguments", len(args))
	}
	seed, err := strconv.ParseUint(args[4], 10, 64)
	if err != nil {
		return err
	}
	warm, err := time.ParseDuration(args[5])
	if err != nil {
		return err
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	time.Sleep(warm) // who connects now is refused
	_ = os.Remove(args[3])
	tell, err := net.Listen("unix", args[3])
	if err != nil {
		return err
	}
	s, err := newStand(args[0], args[1], seed)
	if err != nil {
		return err
	}
	k := &checkPort{addr: args[2]}
	mux := http.NewServeMux()
	mux.HandleFunc("/busy", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, s.busy()) })
	mux.HandleFunc("/served", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, s.served.Load()) })
	mux.HandleFunc("/check/{how}", func(w http.ResponseWriter, r *http.Request) {
		if err := k.turn(r.PathValue("how")); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	told := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	go func() { _ = told.Serve(tell) }() // ends with the process
	if _, err := fmt.Fprintf(out, "ready: %s %d\n", args[0], os.Getpid()); err != nil {
		return err
	}
	<-term
	s.finish()
	return nil
}

// checkPort is the check's own port of a server: open, closed, or saying by 404
// that the server is about to leave.
type checkPort struct {
	addr string

	mu     sync.Mutex // guards all below
	server *http.Server
	status int
}

func (k *checkPort) turn(how string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch how {
	case "close":
		if k.server != nil {
			_ = k.server.Close()
			k.server = nil
		}
		return nil
	case "open":
		k.status = http.StatusOK
	case "drain":
		k.status = http.StatusNotFound
	default:
		return errors.New("open, drain or close")
	}
	if k.server != nil {
		return nil
	}
	lis, err := net.Listen("tcp", k.addr)
	if err != nil {
		return err
	}
	k.server = &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		k.mu.Lock()
		status := k.status
		k.mu.Unlock()
		w.WriteHeader(status)
	})}
	go func(s *http.Server) { _ = s.Serve(lis) }(k.server) // ends with turn("close")
	return nil
}

// shopServer is such a process as its operator sees it.
type shopServer struct {
	name, addr, check string
	seed              uint64
	host              *Host
	warm              time.Duration

	process *Process
	starts  int
	tell    *http.Client
}

func newShopServer(h *Host, name, addr, check string, seed uint64, warm time.Duration) *shopServer {
	s := &shopServer{name: name, addr: addr, check: check, seed: seed, host: h, warm: warm}
	s.tell = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", s.socket())
	}}}
	return s
}

func (s *shopServer) socket() string { return filepath.Join(s.host.world.Dir, "server-"+s.name) }

// start runs it, and returns when it serves. Its check's port is open then
// unless it shall stay closed.
func (s *shopServer) start(ctx context.Context, check bool) error {
	s.starts++
	var err error
	s.process, err = s.host.Start(fmt.Sprintf("server-%s-%d", s.name, s.starts), []string{stageEnv + "=" + stageStand},
		"/proc/self/exe", s.name, s.addr, s.check, s.socket(), strconv.FormatUint(s.seed, 10), s.warm.String())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	if err := s.process.WaitLine(ctx, "ready:"); err != nil || !check {
		return err
	}
	return s.say(ctx, "/check/open")
}

// say tells the server something.
func (s *shopServer) say(ctx context.Context, what string) error {
	_, err := s.hear(ctx, what)
	return err
}

// hear asks the server something.
func (s *shopServer) hear(ctx context.Context, what string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://server"+what, nil)
	if err != nil {
		return "", err
	}
	res, err := s.tell.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("lab: server %s: %s: %s", s.name, what, b)
	}
	return string(b), err
}

// awaitIdle waits until no request is under way at the server, by its own count.
func (s *shopServer) awaitIdle(ctx context.Context) error {
	for {
		n, err := s.hear(ctx, "/busy")
		if err != nil || n == "0" {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("lab: server %s: %s requests under way: %w", s.name, n, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// kill ends the process at once: whatever is under way there is lost.
func (s *shopServer) kill() { s.process.Kill() }

// finish ends the process gracefully, as a good server does when it is told.
func (s *shopServer) finish(ctx context.Context) error {
	if err := unix.Kill(s.process.Pid, unix.SIGTERM); err != nil {
		return err
	}
	select {
	case <-s.process.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("lab: server %s does not end: %w", s.name, ctx.Err())
	}
}
