// Package admin shows the node and asks it to act: the API of api/holdfast/v1, on
// a unix socket that only its owner can open, and over TCP for those whose
// certificate has a role. The command line uses nothing else. What one asks is
// the node's to do; this package knows who may ask, how much, and keeps what was
// asked.
package admin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/grpchealth"

	"github.com/holdfast-lb/holdfast/api/holdfast/v1/holdfastv1connect"
	"github.com/holdfast-lb/holdfast/internal/node"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// Server serves one node.
type Server struct {
	node *node.Node
	log  *slog.Logger
	http *service
	path string
	at   string      // path, or until Publish a name beside it
	own  os.FileInfo // of our socket, to know it again
	// metrics is served here and, from Publish on, by scrapes; nil: nowhere else.
	metrics http.Handler
	scrapes *service
	pages   *pageServer
	// api is what is served over TCP, from Publish on, by tcp.
	api      http.Handler
	tcp      *service
	lastTLS  atomic.Pointer[tls.Config] // of tcp, that was good
	audit    *audit
	health   *grpchealth.StaticChecker
	underWay atomic.Int64    // requests of the API
	ending   context.Context // done when watchers are to go
	end      context.CancelFunc
	leave    sync.Once
	// Left is closed when the node has been handed over to a successor.
	Left chan struct{}
}

// drainTime bounds how long Drain waits for who is connected.
const drainTime = 5 * time.Second

// Bounds of a request's head.
const (
	headTime = 10 * time.Second
	headMax  = 64 << 10 // octets
)

// Serve opens the unix socket at path, mode 0600, and serves until Close. A
// socket there that answers is an error.
func Serve(n *node.Node, path string, log *slog.Logger) (*Server, error) {
	if err := sock.RemoveStale(path); err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	s, err := Prepare(n, path, log)
	if err != nil {
		return nil, err
	}
	if err := s.Publish(); err != nil {
		s.Close(true)
		return nil, err
	}
	return s, nil
}

// Prepare does all of Serve that may fail while a predecessor has the place: it
// binds and serves beside path, where nobody looks, until Publish.
func Prepare(n *node.Node, path string, log *slog.Logger) (*Server, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	// Now, not when all has been handed over, is the time to say no.
	if err := replaceable(path); err != nil {
		return nil, err
	}
	// Bound beside its place and renamed into it, so that there is a socket at
	// every instant and never one that others may open.
	fresh := node.PreparedSocket(path, os.Getpid())
	_ = os.Remove(fresh)
	old := sock.Umask(0o177)
	l, err := net.Listen("unix", fresh)
	sock.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	own, err := os.Lstat(fresh)
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("admin: %w", err)
	}
	s := &Server{node: n, log: log, path: path, at: fresh, own: own, metrics: metricsHandler(n, log), pages: newPageServer(n), Left: make(chan struct{}),
		audit: &audit{log: log, dir: n.StateDir}, health: grpchealth.NewStaticChecker(holdfastv1connect.NodeName)}
	s.ending, s.end = context.WithCancel(context.Background())
	if err := s.openTCP(); err != nil {
		_ = l.Close()
		_ = os.Remove(fresh)
		return nil, err
	}
	answers := s.apiHandler()
	s.api = s.identified(answers, s.certificateCaller)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", s.metrics)
	mux.Handle("/", s.identified(answers, socketCaller))
	s.pages.register(mux, true)
	s.http = serveOn(&http.Server{
		Handler: local(mux), ReadHeaderTimeout: headTime, MaxHeaderBytes: headMax, ConnContext: bySocket, Protocols: protocols(true),
	}, l, func(err error) { log.Error("the admin socket failed", "error", err) })
	return s, nil
}

// replaceable tells whether our socket may take the place at path: there is
// nothing or another socket, never a file of somebody else's.
func replaceable(path string) error {
	st, err := os.Lstat(path)
	if err == nil && st.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("admin: %s exists and is not a socket", path)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("admin: %w", err)
	}
	return nil
}

// Publish puts the socket into its place; a predecessor's loses it. After an
// error it answers where it was prepared.
func (s *Server) Publish() error {
	if l := s.node.MetricsListener(); l != nil && s.scrapes == nil {
		s.scrapes = serveScrapes(l, s.metrics, s.log, func(mux *http.ServeMux) { s.pages.register(mux, false) })
	}
	s.serveTCP()
	if err := replaceable(s.path); err != nil {
		return fmt.Errorf("%w; this process answers at %s", err, s.at)
	}
	if err := os.Rename(s.at, s.path); err != nil {
		return fmt.Errorf("admin: %w; this process answers at %s", err, s.at)
	}
	s.at = s.path
	return nil
}

// Close ends serving. The socket file goes only if it is still ours.
func (s *Server) Close(remove bool) {
	s.farewell()
	for _, x := range []*service{s.http, s.tcp, s.scrapes} {
		if x != nil {
			x.close()
		}
	}
	s.pages.wait()
	if st, err := os.Lstat(s.at); remove && err == nil && os.SameFile(st, s.own) {
		_ = os.Remove(s.at)
	}
}

// farewell ends what never ends by itself, and says so to who asks for health.
func (s *Server) farewell() {
	s.pages.end()
	s.end()
	s.health.SetStatus(holdfastv1connect.NodeName, grpchealth.StatusNotServing)
}

// Drain ends serving after the answers under way, and those to whom it has
// listened already.
func (s *Server) Drain() {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	s.farewell()
	var all sync.WaitGroup
	for _, x := range []*service{s.http, s.tcp, s.scrapes} {
		if x != nil {
			all.Go(func() { x.drain(ctx) })
		}
	}
	all.Wait()
}

// filterBy reads which flows a page is to show: listener, backend, endpoint, state,
// client (an address or a prefix), older (a duration), moved (1) and max.
func filterBy(form url.Values) (q node.FlowFilter, err error) {
	for name, values := range form {
		v := values[0]
		switch name {
		case "listener":
			q.Listener = v
		case "backend":
			q.Backend = v
		case "endpoint":
			q.Endpoint = v
		case "state":
			q.Kind = v
		case "client":
			if q.Client, err = netip.ParsePrefix(v); err != nil {
				var a netip.Addr
				if a, err = netip.ParseAddr(v); err != nil {
					return q, fmt.Errorf("admin: client: %q is no address and no prefix", v)
				}
				q.Client = netip.PrefixFrom(a, a.BitLen())
			}
		case "older":
			if q.Older, err = time.ParseDuration(v); err != nil || q.Older < 0 {
				return q, fmt.Errorf("admin: older: %q is no duration, as in 90s", v)
			}
		case "moved":
			if q.Moved, err = strconv.ParseBool(v); err != nil {
				return q, fmt.Errorf("admin: moved: %q is neither 1 nor 0", v)
			}
		case "max":
			if q.Max, err = strconv.Atoi(v); err != nil {
				return q, fmt.Errorf("admin: max: %q is not a number", v)
			}
		default:
			return q, fmt.Errorf("admin: %q is no filter; there are listener, backend, endpoint, state, client, older, moved and max", name)
		}
	}
	return q, nil
}
