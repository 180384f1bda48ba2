package node

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/move"
)

// What a node with 10,000 endpoints and 1,000 answers under keys tells a successor:
// early, while all is served, and last, while nobody is accepted.
func BenchmarkTell(b *testing.B) {
	var text strings.Builder
	text.WriteString("node: { loops: 1 }\nlisteners: { web: { vip: \"127.211.84.8:8473\", backend: b0 } }\nbackends:\n")
	for i := range 1000 {
		fmt.Fprintf(&text, "  b%d: { check: { http: { path: /health } }, endpoints: [", i)
		for k := range 10 {
			fmt.Fprintf(&text, " { name: e%d, address: \"127.0.%d.%d:9\" },", k, i/250, i%250)
		}
		text.WriteString(" ] }\n")
	}
	file := filepath.Join(b.TempDir(), "holdfast.yaml")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	n, err := Start(Options{File: file, Log: slog.New(slog.DiscardHandler), Quiet: true})
	if err != nil {
		b.Fatal(err)
	}
	defer n.Stop()
	for i := range 1000 {
		n.state.keys.add(fmt.Sprint("key", i), &keyed{Sum: strings.Repeat("0", 64), At: time.Now(), Answer: json.RawMessage(`"` + strings.Repeat("x", 1000) + `"`)})
	}
	n.heritage()
	octets := 0
	send := func(k move.Knowledge) error {
		body, err := json.Marshal(k)
		octets += len(body)
		return err
	}
	early, err := n.tellEarly(send)
	if err != nil {
		b.Fatal(err)
	}
	for name, tell := range map[string]func() error{
		"early": func() error { _, err := n.tellEarly(send); return err },
		"last":  func() error { return n.tellLast(early, send) },
		"all":   func() error { return n.tellLast(nil, send) },
	} {
		b.Run(name, func(b *testing.B) {
			octets = 0
			for b.Loop() {
				if err := tell(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(octets)/float64(b.N), "octets/op")
		})
	}
}
