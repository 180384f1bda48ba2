// Package admin shows the node and asks it to act: JSON over HTTP on a unix
// socket that only its owner can open. The command line uses nothing else.
package admin

import (
	"context"
	"encoding/json"
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
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
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
	// Left is closed when the node has been handed over to a successor.
	Left chan struct{}
}

// drainTime bounds how long Drain waits for who is connected.
const drainTime = 5 * time.Second

// Problem is the body of every answer that is not a success.
type Problem struct {
	Error string `json:"error"`
}

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
	s := &Server{node: n, log: log, path: path, at: fresh, own: own, metrics: metricsHandler(n, log), pages: newPageServer(n), Left: make(chan struct{})}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", s.metrics)
	mux.HandleFunc("GET /v1/status", answer(func(*http.Request) (any, error) { return n.Status(), nil }))
	mux.HandleFunc("GET /v1/flows", answer(s.flows))
	mux.HandleFunc("GET /v1/endpoints", answer(s.endpoints))
	mux.HandleFunc("GET /v1/endpoints/{backend}/{endpoint}", answer(s.endpoint))
	mux.HandleFunc("POST /v1/endpoints", answer(s.setEndpoint))
	mux.HandleFunc("POST /v1/log", answer(s.logLevel))
	mux.HandleFunc("POST /v1/reload", answer(s.reload))
	mux.HandleFunc("POST /v1/rebalance", answer(s.rebalance))
	mux.HandleFunc("POST /v1/migrate", answer(s.migrate))
	mux.HandleFunc("POST /v1/upgrade", s.upgrade)
	mux.HandleFunc("POST /v1/debug/busy", answer(s.busy))
	s.pages.register(mux, true)
	s.http = serveOn(&http.Server{Handler: local(mux), ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10}, l, func(err error) {
		log.Error("the admin socket failed", "error", err)
	})
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
	s.pages.end()
	s.http.close()
	if s.scrapes != nil {
		s.scrapes.close()
	}
	s.pages.wait()
	if st, err := os.Lstat(s.at); remove && err == nil && os.SameFile(st, s.own) {
		_ = os.Remove(s.at)
	}
}

// Drain ends serving after the answers under way, and those to whom it has
// listened already.
func (s *Server) Drain() {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	s.pages.end() // they never end by themselves
	var all sync.WaitGroup
	for _, x := range []*service{s.http, s.scrapes} {
		if x != nil {
			all.Go(func() { x.drain(ctx) })
		}
	}
	all.Wait()
}

func answer(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		write(w, v, err)
	}
}

func write(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		code := http.StatusConflict
		var bad *config.Errors
		if errors.As(err, &bad) {
			code = http.StatusUnprocessableEntity
		}
		w.WriteHeader(code)
		v = Problem{err.Error()}
	}
	_ = json.NewEncoder(w).Encode(v) // the client is gone: nobody to tell
}

// body reads a JSON body of bounded size; an empty one leaves v as it is.
func body(r *http.Request, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(nil, r.Body, 16<<20))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil && r.ContentLength != 0 {
		return fmt.Errorf("admin: request: %w", err)
	}
	return nil
}

func (s *Server) flows(r *http.Request) (any, error) {
	q, err := filterOf(r)
	if err != nil {
		return nil, err
	}
	return s.node.Flows(q)
}

// filterOf reads which flows are wanted: listener, backend, endpoint, state, client
// (an address or a prefix), older (a duration), moved (1) and max.
func filterOf(r *http.Request) (q node.FlowFilter, err error) {
	if err := r.ParseForm(); err != nil {
		return q, fmt.Errorf("admin: %w", err)
	}
	return filterBy(r.Form)
}

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

func (s *Server) endpoints(*http.Request) (any, error) { return s.node.EndpointStates(), nil }

func (s *Server) endpoint(r *http.Request) (any, error) {
	name := r.PathValue("backend") + "/" + r.PathValue("endpoint")
	for _, e := range s.node.EndpointStates() {
		if e.Name == name {
			return e, nil
		}
	}
	return nil, fmt.Errorf("admin: there is no endpoint %s", name)
}

func (s *Server) setEndpoint(r *http.Request) (any, error) {
	var q node.EndpointRequest
	if err := body(r, &q); err != nil {
		return nil, err
	}
	return s.node.SetEndpoint(q)
}

// LogRequest asks for another level of the node's log; without one it only asks.
type LogRequest struct {
	Level *slog.Level `json:"level,omitempty"` // DEBUG, INFO, WARN, ERROR
}

// LogReport tells the level before, and the one now.
type LogReport struct {
	Was slog.Level `json:"was"`
	Is  slog.Level `json:"is"`
}

func (s *Server) logLevel(r *http.Request) (any, error) {
	var q LogRequest
	if err := body(r, &q); err != nil {
		return nil, err
	}
	was, err := s.node.LogLevel(q.Level)
	if err != nil {
		return nil, err
	}
	is := was
	if q.Level != nil {
		is = *q.Level
	}
	return LogReport{was, is}, nil
}

// ReloadRequest asks to apply a configuration; without Source the node's file
// is read again.
type ReloadRequest struct {
	Source []byte `json:"source,omitempty"`
}

func (s *Server) reload(r *http.Request) (any, error) {
	var q ReloadRequest
	if err := body(r, &q); err != nil {
		return nil, err
	}
	if q.Source == nil {
		return s.node.Reload()
	}
	return s.node.Apply(q.Source)
}

// RebalanceRequest asks to move flows between loops.
type RebalanceRequest struct {
	All bool `json:"all"` // every flow, not only as many as evens them out
}

func (s *Server) rebalance(r *http.Request) (any, error) {
	var q RebalanceRequest
	if err := body(r, &q); err != nil {
		return nil, err
	}
	return s.node.Rebalance(q.All)
}

// MigrateRequest asks to move flows to another host.
type MigrateRequest struct {
	To string `json:"to"`
}

func (s *Server) migrate(r *http.Request) (any, error) {
	var q MigrateRequest
	if err := body(r, &q); err != nil {
		return nil, err
	}
	return s.node.Migrate(q.To)
}

// UpgradeRequest asks to hand over to a new process.
type UpgradeRequest struct {
	Binary string `json:"binary,omitempty"` // empty: the file this process was started from
}

func (s *Server) upgrade(w http.ResponseWriter, r *http.Request) {
	var q UpgradeRequest
	err := body(r, &q)
	if err != nil {
		write(w, nil, err)
		return
	}
	report, err := s.node.Upgrade(q.Binary)
	write(w, report, err)
	if err == nil {
		close(s.Left)
	}
}

// BusyRequest asks for work of the control side, to measure what it does to
// the loops that share its process.
type BusyRequest struct {
	Seconds         int `json:"seconds"`
	Parses          int `json:"parses"`
	ChecksPerSecond int `json:"checksPerSecond"`
}

func (s *Server) busy(r *http.Request) (any, error) {
	var q BusyRequest
	if err := body(r, &q); err != nil {
		return nil, err
	}
	if q.Seconds < 1 || q.Seconds > 60 || q.Parses < 0 || q.Parses > 100000 || q.ChecksPerSecond < 0 || q.ChecksPerSecond > 100000 {
		return nil, errors.New("admin: seconds 1-60, parses and checksPerSecond 0-100000")
	}
	return s.node.Busy(time.Duration(q.Seconds)*time.Second, q.Parses, q.ChecksPerSecond)
}
