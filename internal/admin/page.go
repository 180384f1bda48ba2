package admin

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/node"
	"github.com/holdfast-lb/holdfast/internal/page"
)

// Bounds of the pages.
const (
	streamsMax  = 16 // that are open at one time, over both doors
	streamEvery = time.Second
	// flowsEvery: to find the oldest flows is to look at all of them.
	flowsEvery = 3 * time.Second
	// eventTime is how long a reader may take for one event, streamTime how long a
	// stream lives: its browser asks again.
	eventTime  = 10 * time.Second
	streamTime = time.Hour
)

// pageServer serves the pages of a node. They only show.
type pageServer struct {
	node    *node.Node
	streams chan struct{} // has one for each that is open
	open    sync.WaitGroup
	ending  context.Context // done when the pages end
	leave   context.CancelFunc
}

func newPageServer(n *node.Node) *pageServer {
	s := &pageServer{node: n, streams: make(chan struct{}, streamsMax)}
	s.ending, s.leave = context.WithCancel(context.Background())
	return s
}

// end ends all streams; nil has none.
func (s *pageServer) end() {
	if s != nil {
		s.leave()
	}
}

// wait waits until no page is being made any more: making one asks the loops.
func (s *pageServer) wait() {
	if s != nil {
		s.open.Wait()
	}
}

// door is one way to the pages: by the socket, which is its owner's, clients are
// shown; over TCP, where anybody may look, they are not.
type door struct {
	*pageServer
	clients bool
}

// register adds the pages to what mux serves.
func (s *pageServer) register(mux *http.ServeMux, clients bool) {
	d := &door{s, clients}
	for _, v := range page.Views {
		pattern := v.Path()
		if pattern == "/" {
			pattern = "/{$}"
		}
		mux.HandleFunc("GET "+pattern, func(w http.ResponseWriter, r *http.Request) { d.show(w, r, v) })
	}
	mux.HandleFunc("GET /events", d.events)
	for _, name := range []string{"page.css", "page.js"} {
		text, kind, _ := page.Asset(name)
		mux.HandleFunc("GET /"+name, func(w http.ResponseWriter, _ *http.Request) {
			guardPage(w, kind)
			w.Header().Set("Cache-Control", "public, max-age=604800, immutable") // pages ask for them by their contents
			_, _ = w.Write(text)
		})
	}
}

// guardPage sets what a browser is to keep to.
func guardPage(w http.ResponseWriter, kind string) {
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Content-Security-Policy", page.SecurityPolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
}

// snapshot is what a view shows now. What is wrong with the query is on the page.
func (d *door) snapshot(v page.View, q url.Values) *page.Snapshot {
	s := &page.Snapshot{View: v, Look: d.node.Look(), Query: q, Clients: d.clients}
	switch v {
	case page.Overview:
		s.History = d.node.History()
	case page.Changes:
		s.Changes = d.node.Changes()
	case page.Flows:
		f, err := d.filter(q)
		if err == nil {
			s.Flows, err = d.node.Flows(f)
		}
		if err != nil {
			s.Trouble = strings.TrimPrefix(err.Error(), "admin: ")
		}
		if !d.clients {
			for i := range s.Flows {
				s.Flows[i].Client = ""
			}
		}
	}
	return s
}

func (d *door) filter(q url.Values) (node.FlowFilter, error) {
	if q.Get("client") != "" && !d.clients {
		// Who may ask this finds the addresses out.
		return node.FlowFilter{}, fmt.Errorf("client is a filter on the admin socket only")
	}
	f, err := filterBy(q)
	if err == nil && (f.Max == 0 || f.Max > page.FlowsMax) {
		f.Max = page.FlowsMax
	}
	return f, err
}

// asked is the query of a page, without what a form leaves empty.
func asked(r *http.Request) url.Values {
	q := r.URL.Query()
	maps.DeleteFunc(q, func(_ string, values []string) bool { return values[0] == "" })
	return q
}

func (d *door) show(w http.ResponseWriter, r *http.Request, v page.View) {
	d.open.Add(1)
	defer d.open.Done()
	var out bytes.Buffer
	s := d.snapshot(v, asked(r))
	if err := page.Page(&out, s); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	guardPage(w, "text/html; charset=utf-8")
	if s.Trouble != "" {
		w.WriteHeader(http.StatusBadRequest)
	}
	_, _ = w.Write(out.Bytes())
}

// events sends the live part of a view again and again, until the reader leaves or
// the server ends.
func (d *door) events(w http.ResponseWriter, r *http.Request) {
	q := asked(r)
	v := page.View(q.Get("view"))
	q.Del("view")
	if !slices.Contains(page.Views, v) {
		http.Error(w, "no such view", http.StatusNotFound)
		return
	}
	d.open.Add(1)
	defer d.open.Done()
	select {
	case d.streams <- struct{}{}:
		defer func() { <-d.streams }()
	default:
		w.Header().Set("Retry-After", "10")
		http.Error(w, fmt.Sprintf("%d pages are open already; load this one again later", streamsMax), http.StatusServiceUnavailable)
		return
	}
	guardPage(w, "text/event-stream")
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Time{}) // the server's bounds are for scrapes
	every := streamEvery
	if v == page.Flows {
		every = flowsEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	end := time.NewTimer(streamTime)
	defer end.Stop()
	var html, out bytes.Buffer
	for {
		html.Reset()
		out.Reset()
		began := time.Now()
		if page.Live(&html, d.snapshot(v, q)) != nil {
			return
		}
		out.WriteString("retry: 1000\nevent: live\n")
		for line := range strings.Lines(html.String()) {
			if line = strings.TrimSpace(line); line != "" {
				out.WriteString("data: " + line + "\n")
			}
		}
		out.WriteByte('\n')
		took := time.Since(began)
		_ = c.SetWriteDeadline(time.Now().Add(eventTime))
		if _, err := w.Write(out.Bytes()); err != nil || c.Flush() != nil {
			return
		}
		tick.Reset(max(every, 20*took)) // showing is a twentieth of a processor at most
		select {
		case <-tick.C:
		case <-end.C:
			return
		case <-r.Context().Done():
			return
		case <-d.ending.Done():
			return
		}
	}
}

// local refuses what a page of somebody else's may have a browser ask, where the
// socket is led to a port of loopback (as by ssh -L): requests across sites, and
// those to a name that anybody may have let point to loopback.
func local(h http.Handler) http.Handler {
	across := http.NewCrossOriginProtection().Handler(h)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		if strings.Contains(host, ".") && net.ParseIP(host) == nil {
			http.Error(w, "ask by an address, or as localhost", http.StatusForbidden)
			return
		}
		across.ServeHTTP(w, r)
	})
}
