package admin

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// service is a server and the listener it serves.
type service struct {
	http   *http.Server
	l      net.Listener
	ending atomic.Bool
	done   chan struct{} // closed when it accepts no more

	// mu guards open.
	mu   sync.Mutex
	open map[net.Conn]bool // true: nothing is asked there now
}

// serveOn serves l until close or drain; failed is told if it ends before.
func serveOn(x *http.Server, l net.Listener, failed func(error)) *service {
	s := &service{http: x, l: l, done: make(chan struct{}), open: map[net.Conn]bool{}}
	x.ConnState = func(c net.Conn, state http.ConnState) {
		s.mu.Lock()
		defer s.mu.Unlock()
		switch state {
		case http.StateNew, http.StateActive:
			s.open[c] = false
		case http.StateIdle:
			s.open[c] = true
		case http.StateClosed, http.StateHijacked:
			delete(s.open, c)
		}
	}
	go func() { // ends with close or drain
		defer close(s.done)
		if err := s.http.Serve(l); !s.ending.Load() {
			failed(err)
		}
	}()
	return s
}

// asked counts connections with a question that has no answer yet, or of which
// that is not known.
func (s *service) asked() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, idle := range s.open {
		if !idle {
			n++
		}
	}
	return n
}

// drainLook is the time between two looks whether everybody has left, byeTime how
// long connections of HTTP/2 may take to read that theirs ends.
const (
	drainLook = 5 * time.Millisecond
	byeTime   = 200 * time.Millisecond
)

// drain ends s once all who were accepted have their answers, or with ctx.
// Shutdown of net/http is not for this: it closes a connection whose first
// request is still to be read, and overlooks one that was just accepted. When
// only idle ones are left it serves to say farewell on those of HTTP/2.
func (s *service) drain(ctx context.Context) {
	s.ending.Store(true)
	_ = s.l.Close()
	<-s.done // all that were accepted are counted
	s.http.SetKeepAlivesEnabled(false)
	look := time.NewTicker(drainLook)
	defer look.Stop()
	for s.asked() > 0 && ctx.Err() == nil {
		select {
		case <-look.C:
		case <-ctx.Done():
		}
	}
	bye, enough := context.WithTimeout(ctx, byeTime)
	defer enough()
	_ = s.http.Shutdown(bye)
	s.close()
}

// close ends s and whatever is under way.
func (s *service) close() {
	s.ending.Store(true)
	_ = s.http.Close()
	<-s.done
}
