package node

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
)

// What changes leave behind is bounded: the configuration in force and its document
// have the same objects, and a file of which little changed is not copied often.
func TestChangesShareObjects(t *testing.T) {
	text := town(200)
	n, err := Start(Options{Source: []byte(text), Log: slog.New(slog.DiscardHandler), File: filepath.Join(t.TempDir(), "f.yaml")})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Stop()
	apply := func(i int) (allocated uint64) {
		k := i % 100
		text = strings.Replace(text, fmt.Sprintf("10.2.0.%d:80\", weight: 50", k), fmt.Sprintf("10.2.0.%d:80\", weight: %d", k, 100+i), 1)
		s := []byte(text)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := n.Change(context.Background(), ChangeRequest{Source: s}); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	const applies = 60
	least := uint64(1 << 40) // what others do meanwhile is none of it
	for i := range applies {
		least = min(least, apply(i))
	}
	apart := 0
	c, doc := n.Config(), n.state.current().doc.Config()
	for name, b := range doc.Backends {
		if c.Backends[name] != b {
			apart++
		}
	}
	for name, l := range doc.Listeners {
		if c.Listeners[name] != l {
			apart++
		}
	}
	if apart > 0 {
		t.Errorf("%d objects are there twice after %d applies", apart, applies)
	}
	if most := uint64(6 * len(text)); least > most {
		t.Errorf("an apply of one weight among 200 services, %d octets, allocates %d octets, at most %d", len(text), least, most)
	}
	t.Logf("%d octets for a file of %d", least, len(text))
}

// Objects that nobody names any more are forgotten within three looks, those that
// came later stay; while flows are between two processes nothing is forgotten.
func TestForgetsWhatNobodyNames(t *testing.T) {
	r := start(t, yaml(free(t), echo(t), "", ""))
	add := func(at time.Time, version uint64) {
		r.registry.add(at, &config.Endpoint{Ref: config.Ref{Kind: config.EndpointKind, Name: "app/gone", Version: version}})
	}
	has := func(version uint64) bool { return r.registry.Endpoint("app/gone", version) != nil }
	now := time.Now()
	for version := range uint64(500) {
		add(now, version)
	}
	add(now.Add(2*sweepEvery), 500)
	in := len(r.registry.objects) - 501
	r.heir.Store(true)
	r.sweep(now.Add(3 * sweepEvery))
	if !has(1) {
		t.Fatal("it is forgotten while flows are on their way")
	}
	r.heir.Store(false)
	r.sweep(now.Add(2 * sweepEvery))
	if !has(1) {
		t.Error("it is forgotten at the second look: a flow may be between two loops")
	}
	r.sweep(now.Add(3 * sweepEvery))
	r.registry.mu.RLock()
	left := len(r.registry.objects)
	r.registry.mu.RUnlock()
	if left != in+1 || !has(500) {
		t.Errorf("%d objects are left of 501 that nobody names, want the last, %t", left-in, has(500))
	}
}
