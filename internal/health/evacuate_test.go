package health_test

import (
	"testing"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/health"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// What is on a node that is to be free gets nothing new, the rest is as it was; what an
// operator has ordered of an endpoint stands before it and is there afterwards; and
// nothing is told of twice.
func TestEvacuate(t *testing.T) {
	ref := func(name string) config.Ref { return config.Ref{Kind: config.EndpointKind, Name: "app/" + name} }
	c := &config.Backend{Ref: config.Ref{Kind: config.BackendKind, Name: "app"}}
	for name, node := range map[string]string{"a1": "n1", "b1": "n1", "a3": "n3", "far": ""} {
		c.Endpoints = append(c.Endpoints, &config.Endpoint{Ref: ref(name), Backend: "app", Name: name, Node: node, Weight: 100})
	}
	b := health.New("app")
	now := health.Instant(1)
	b.Govern(now, c, true)
	b.Order(now, "app/b1", health.Order{Admin: ledger.Maintenance})
	b.Take()
	for _, step := range []struct {
		what  string
		nodes map[string]bool
		want  map[string]ledger.Admin // of what changes
	}{
		{"n1 goes", map[string]bool{"n1": true}, map[string]ledger.Admin{"app/a1": ledger.Quiescing}},
		{"said again", map[string]bool{"n1": true}, nil},
		{"n3 goes, too", map[string]bool{"n1": true, "n3": true}, map[string]ledger.Admin{"app/a3": ledger.Quiescing}},
		{"n1 returns", map[string]bool{"n3": true}, map[string]ledger.Admin{"app/a1": ledger.Ready}},
		{"all are back", nil, map[string]ledger.Admin{"app/a3": ledger.Ready}},
	} {
		now++
		b.Evacuate(now, step.nodes)
		got := b.Take().Standings
		if len(got) != len(step.want) {
			t.Errorf("%s: changed %v, want %v", step.what, got, step.want)
		}
		for name, want := range step.want {
			if s, ok := got[name]; !ok || s.Admin != want {
				t.Errorf("%s: %s is %v (changed: %v), want %v", step.what, name, s.Admin, ok, want)
			}
		}
	}
}
