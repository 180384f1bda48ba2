package admin

import (
	"context"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// service is a server and the listener it serves.
type service struct {
	http   *http.Server
	l      net.Listener
	open   atomic.Int64 // connections
	ending atomic.Bool
	done   chan struct{} // closed when it accepts no more
}

// serveOn serves l until close or drain; failed is told if it ends before.
func serveOn(x *http.Server, l net.Listener, failed func(error)) *service {
	s := &service{http: x, l: l, done: make(chan struct{})}
	x.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			s.open.Add(1)
		case http.StateClosed, http.StateHijacked:
			s.open.Add(-1)
		case http.StateActive, http.StateIdle:
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

// drainLook is the time between two looks whether everybody has left.
const drainLook = 5 * time.Millisecond

// drain ends s once all who were accepted have their answers, or with ctx.
// Shutdown of net/http is not for this: it closes a connection whose first
// request is still to be read, and overlooks one that was just accepted.
func (s *service) drain(ctx context.Context) {
	s.ending.Store(true)
	_ = s.l.Close()
	<-s.done // all that were accepted are counted
	s.http.SetKeepAlivesEnabled(false)
	look := time.NewTicker(drainLook)
	defer look.Stop()
	for s.open.Load() > 0 && ctx.Err() == nil {
		select {
		case <-look.C:
		case <-ctx.Done():
		}
	}
	s.close()
}

// close ends s and whatever is under way.
func (s *service) close() {
	s.ending.Store(true)
	_ = s.http.Close()
	<-s.done
}
