package ledger_test

import (
	"fmt"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/config"
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
