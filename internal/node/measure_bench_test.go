package node

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/loop"
)

// BenchmarkMeasure collects the metrics of 10,000 endpoints, all of which have
// served. What a loop does for it comes in pieces, each between two turns.
func BenchmarkMeasure(b *testing.B) {
	const backends, each = 10, 1000
	t := &testing.T{}
	web, server := free(t), &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	_, port, _ := strings.Cut(free(t), ":")
	server.Addr = "0.0.0.0:" + port
	go func() { _ = server.ListenAndServe() }() // ends with Close
	defer func() { _ = server.Close() }()
	var text strings.Builder
	fmt.Fprintf(&text, "node: { loops: 2 }\nlisteners:\n  web:\n    vip: %q\n    protocol: http\n    routes:\n", web)
	for i := range backends {
		fmt.Fprintf(&text, "      - { match: { path: { prefix: /%d/ } }, backend: b%d }\n", i, i)
	}
	text.WriteString("backends:\n")
	for i := range backends {
		fmt.Fprintf(&text, "  b%d:\n    reuse: { idle: 0 }\n    endpoints:\n", i)
		for k := range each {
			fmt.Fprintf(&text, "      - { name: e%d, address: \"127.%d.%d.%d:%s\" }\n", k, i+1, k/200, k%200+1, port)
		}
	}
	n, err := Start(Options{File: "x", Source: []byte(text.String()), Log: discard()})
	if err != nil {
		b.Fatal(err)
	}
	defer n.Stop()
	var wg sync.WaitGroup
	for i := range backends {
		wg.Add(1)
		go func() {
			defer wg.Done()
			client := http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4}}
			for range each + each/10 {
				r, err := client.Get(fmt.Sprintf("http://%s/%d/", web, i))
				if err != nil {
					b.Error(err)
					return
				}
				_ = r.Body.Close()
			}
			client.CloseIdleConnections()
		}()
	}
	wg.Wait()
	samples := 0
	for b.Loop() {
		samples = 0
		for _, f := range n.Measure() {
			samples += len(f.Samples)
		}
	}
	b.ReportMetric(float64(samples), "samples")
	// What of it happens between the turns of a loop, piece by piece.
	var pieces []time.Duration
	series := 0
	for range 20 {
		series = 0
		for _, l := range n.shared.Loops {
			for from, more := 0, true; more; {
				copies := make([]loop.Series, 0, seriesChunk)
				l.Ask(func(l *loop.Loop) {
					began := time.Now()
					from, more = l.SeriesFrom(from, seriesChunk, func(_ loop.SeriesKey, x *loop.Series) { copies = append(copies, *x) })
					pieces = append(pieces, time.Since(began))
				})
				series += len(copies)
			}
			for from, more := uint32(0), true; more; {
				l.Ask(func(l *loop.Loop) {
					began := time.Now()
					from, more = l.Look(from, lookPlaces, func(uint32, *flow.Flow) {})
					pieces = append(pieces, time.Since(began))
				})
			}
		}
	}
	slices.Sort(pieces)
	b.ReportMetric(float64(series), "series")
	b.ReportMetric(float64(len(pieces)/20), "pieces")
	b.ReportMetric(float64(pieces[len(pieces)/2].Microseconds()), "p50-piece-us")
	b.ReportMetric(float64(pieces[len(pieces)*99/100].Microseconds()), "p99-piece-us")
}
