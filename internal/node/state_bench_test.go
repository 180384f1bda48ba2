package node

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
)

// town is a configuration of many services, each with a listener for HTTP, a
// backend and two endpoints.
func town(services int) string {
	var l, b strings.Builder
	for i := range services {
		fmt.Fprintf(&l, "  s%d: { vip: \"127.%d.%d.1:18080\", protocol: http, backend: s%d }\n", i, 20+i/250, i%250, i)
		fmt.Fprintf(&b, "  s%d:\n    endpoints:\n      - { name: a, address: \"10.1.%d.%d:80\" }\n      - { name: b, address: \"10.2.%d.%d:80\", weight: 50 }\n", i, i/250, i%250, i/250, i%250)
	}
	return "node: { loops: 2 }\nlisteners:\n" + l.String() + "backends:\n" + b.String()
}

// BenchmarkChange measures one change among 1,000 services until it is effective,
// without traffic.
func BenchmarkChange(b *testing.B) {
	const services = 1000
	text := town(services)
	for _, c := range []struct {
		name string
		q    func(i int) ChangeRequest
	}{
		{"weight", func(i int) ChangeRequest {
			return ChangeRequest{Edits: []config.Patch{{Object: fmt.Sprintf("endpoint/s%d/a", i%10), Field: "weight", Value: fmt.Sprint(1 + i/10%900)}}}
		}},
		{"file", func(i int) ChangeRequest {
			s := text
			for k := range 5 {
				s = strings.Replace(s, fmt.Sprintf("10.2.%d.%d:80\", weight: 50", 0, 7*k), fmt.Sprintf("10.2.%d.%d:80\", weight: %d", 0, 7*k, 1+i%900), 1)
			}
			return ChangeRequest{Source: []byte(s)}
		}},
		{"all", func(i int) ChangeRequest {
			return ChangeRequest{Source: []byte(strings.ReplaceAll(text, "weight: 50", fmt.Sprintf("weight: %d", 1+i%900)))}
		}},
		{"endpoint", func(i int) ChangeRequest {
			return ChangeRequest{Edits: []config.Patch{{Object: "endpoint/s5/new", Delete: i%2 == 1, Value: map[bool]string{true: "", false: "{ address: 10.9.9.9:80 }"}[i%2 == 1]}}}
		}},
		{"listener", func(i int) ChangeRequest {
			return ChangeRequest{Edits: []config.Patch{{Object: "listener/new", Delete: i%2 == 1, Value: map[bool]string{true: "", false: "{ vip: 127.30.1.1:18081, backend: s5 }"}[i%2 == 1]}}}
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			n, err := Start(Options{Source: []byte(text), Log: slog.New(slog.DiscardHandler), File: filepath.Join(b.TempDir(), "f.yaml")})
			if err != nil {
				b.Fatal(err)
			}
			defer n.Stop()
			var all []time.Duration
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				r, err := n.Change(context.Background(), c.q(i))
				if err != nil {
					b.Fatal(err)
				}
				all = append(all, time.Duration(r.EffectiveMillis*float64(time.Millisecond)))
			}
			b.StopTimer()
			slices.Sort(all)
			b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-us")
		})
	}
}
