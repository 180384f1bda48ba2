package ledger_test

import (
	"fmt"
	"runtime"
	"testing"
	"weak"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// Names that come and go leave nothing; what is held, waited for or in the file stays.
func TestPrune(t *testing.T) {
	l := newLedger(nil)
	c := &config.Config{Listeners: map[string]*config.Listener{"l": {}}, Backends: map[string]*config.Backend{"b": {}}}
	held := l.Backend("held").Endpoint("held/e")
	held.Import(1)
	full := l.Listener("full")
	full.Admit()
	b, gate := l.Backend("b"), l.Listener("l")
	for i := range 1000 {
		l.Backend(fmt.Sprint("gone", i)).Endpoint(fmt.Sprintf("gone%d/e", i))
		l.Listener(fmt.Sprint("gone", i))
	}
	back := l.Backend("gone7")
	l.Prune(c)
	if l.Backend("gone7") != back {
		t.Error("it is forgotten the first time")
	}
	l.Prune(c)
	if l.Backend("gone7") != back {
		t.Error("it is forgotten though it was asked for between")
	}
	l.Prune(c)
	l.Prune(c)
	if l.Backend("gone7") == back {
		t.Error("it is never forgotten")
	}
	l.Prune(c)
	l.Prune(c)
	if l.Backend("held").Endpoint("held/e") != held || l.Listener("full") != full || l.Backend("b") != b || l.Listener("l") != gate {
		t.Error("what is in use is forgotten")
	}
	if n := len(l.Endpoints()); n > 2 {
		t.Errorf("%d accounts are left", n)
	}
	held.Release()
	full.Leave()
	l.Prune(c)
	l.Prune(c)
	if l.Backend("held").Endpoint("held/e") == held || l.Listener("full") == full {
		t.Error("what was in use is never forgotten")
	}
}

// Versions of a backend that nobody names leave nothing: what changes all the time
// keeps one, not as many as flows could be under.
func TestPruneVersions(t *testing.T) {
	l := newLedger(nil)
	b := l.Backend("b")
	version := func(i uint64) *config.Backend {
		e := &config.Endpoint{Ref: config.Ref{Kind: config.EndpointKind, Name: "b/e", Version: i}, Name: "e", Weight: int(i)}
		return &config.Backend{Ref: config.Ref{Kind: config.BackendKind, Name: "b", Version: i}, Endpoints: []*config.Endpoint{e}}
	}
	var made []weak.Pointer[config.Backend]
	var asks, rules *config.Backend
	for i := range uint64(7) {
		c := version(i + 1)
		b.Govern(c)
		made = append(made, weak.Make(c))
		if i == 3 {
			asks = c
		}
		rules = c
	}
	alive := func() (n int) {
		runtime.GC()
		for _, c := range made {
			if c.Value() != nil {
				n++
			}
		}
		return n
	}
	if n := alive(); n != len(made) {
		t.Fatalf("%d versions are kept before anybody looks", n)
	}
	b.AllowRetry(asks, &ledger.Asking{})
	c := &config.Config{Backends: map[string]*config.Backend{"b": rules}}
	l.Prune(c)
	runtime.KeepAlive(asks)
	if n := alive(); n != 2 {
		t.Errorf("%d versions are kept, want the one in force and the one that was asked for", n)
	}
	l.Prune(c)
	if n := alive(); n != 1 {
		t.Errorf("%d versions are kept when nobody asks any more", n)
	}
	runtime.KeepAlive(c)
	runtime.KeepAlive(l)
}
