package admin

import (
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/holdfast-lb/holdfast/internal/node"
)

// Bounds of /metrics over TCP, where anybody may ask.
const (
	scrapesMax     = 2 // at one time; more are refused
	scrapeTime     = 10 * time.Second
	scrapeHead     = 8 << 10
	scrapeIdle     = 2 * time.Minute // between two scrapes of one connection
	connectionsMax = 64
)

// collector gives a node's metrics to the library. The node counts; nothing is
// counted here.
type collector struct {
	measure func() []node.Family
	descs   map[string]*prometheus.Desc
}

func newCollector(measure func() []node.Family) *collector {
	c := &collector{measure, map[string]*prometheus.Desc{}}
	for _, m := range node.Metrics() {
		c.descs[m.Name] = prometheus.NewDesc(m.Name, m.Help, m.Labels, nil)
	}
	return c
}

// Describe is the library's.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		out <- d
	}
}

// Collect is the library's.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	for _, f := range c.measure() {
		desc := c.descs[f.Name]
		for _, s := range f.Samples {
			switch f.Kind {
			case node.Counter:
				out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, s.Value, s.Values...)
			case node.Gauge:
				out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, s.Value, s.Values...)
			case node.Distribution:
				count, sum, buckets := s.Buckets()
				out <- prometheus.MustNewConstHistogram(desc, count, sum, buckets, s.Values...)
			}
		}
	}
}

// metricsHandler serves the metrics of n, two at a time at most.
func metricsHandler(n *node.Node, log *slog.Logger) http.Handler {
	own := prometheus.NewRegistry() // never the library's default one: others put theirs there
	own.MustRegister(newCollector(n.Measure))
	all := promhttp.HandlerFor(own, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelError), MaxRequestsInFlight: scrapesMax,
		DisableCompression: true, // the processor is the loops'
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.Left() {
			// The successor counts on from what this process had told it. What this one
			// still says would be less.
			http.Error(w, "this process has handed over to another one; ask again", http.StatusServiceUnavailable)
			return
		}
		all.ServeHTTP(w, r)
	})
}

// serveScrapes serves /metrics over TCP, and what more registers.
func serveScrapes(l net.Listener, metrics http.Handler, log *slog.Logger, more ...func(*http.ServeMux)) *service {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	for _, register := range more {
		register(mux)
	}
	return serveOn(&http.Server{
		Handler: mux, MaxHeaderBytes: scrapeHead,
		ReadHeaderTimeout: scrapeTime, ReadTimeout: scrapeTime, WriteTimeout: 3 * scrapeTime, IdleTimeout: scrapeIdle,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug), // what strangers do wrong
	}, &limited{Listener: l, free: make(chan struct{}, connectionsMax)}, func(err error) {
		log.Error("the listener for metrics failed", "error", err)
	})
}

// limited is a listener that has no more than a number of connections open; more
// are closed at once.
type limited struct {
	net.Listener
	free chan struct{}
}

// Accept gives the next connection that may stay.
func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.free <- struct{}{}:
			return &counted{Conn: c, back: func() { <-l.free }}, nil
		default:
			_ = c.Close()
		}
	}
}

type counted struct {
	net.Conn
	once sync.Once
	back func()
}

// Close closes the connection and makes room for another.
func (c *counted) Close() error {
	c.once.Do(c.back)
	return c.Conn.Close()
}
