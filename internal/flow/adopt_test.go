package flow

import (
	"slices"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// changed are objects of which one listener is another version.
type changed struct {
	exact
	is *config.Listener
}

func (c changed) Listener(name string, version uint64) *config.Listener {
	if name == c.is.Ref.Name {
		return c.is
	}
	return c.exact.Listener(name, version)
}

func (c changed) Was(name string, version uint64) *config.Listener {
	return c.exact.Listener(name, version)
}

func (c changed) WasBackend(name string, version uint64) *config.Backend {
	return c.exact.Backend(name, version)
}

func (c changed) WasEndpoint(name string, version uint64) *config.Endpoint {
	return c.exact.Endpoint(name, version)
}

// A request that adopts another version of its listener keeps its route, and so
// its priority, if that is still there, wherever it stands now.
func TestRouteStaysUnderAChange(t *testing.T) {
	z := httpSample(t, "queued")
	was := httpObjects.Listeners[z.Listener.Name]
	n := slices.IndexFunc(was.Rules.Routes, func(r *config.Route) bool { return r.Priority == config.HighPriority })
	if n < 0 {
		t.Fatal("no route of the tests has a high priority")
	}
	z.H1.Route = uint32(n + 1)
	other := func(routes []*config.Route) *config.Listener {
		is, rules := *was, *was.Rules
		is.Ref.Version++
		rules.Routes, is.Rules = routes, &rules
		return &is
	}
	copied := func(r *config.Route) *config.Route { c := *r; return &c }
	var same []*config.Route
	for _, r := range was.Rules.Routes {
		same = append(same, copied(r))
	}
	edited := slices.Clone(same)
	edited[n] = copied(edited[n])
	edited[n].Priority = config.LowPriority
	for _, c := range []struct {
		name   string
		routes []*config.Route
		class  config.Priority
	}{
		{"the same routes", same, config.HighPriority},
		{"one more before it", append([]*config.Route{copied(same[0])}, same...), config.HighPriority},
		{"without those before it", same[n:], config.HighPriority},
		{"without it", slices.Delete(slices.Clone(same), n, n+1), config.NormalPriority},
		{"changed itself", edited, config.NormalPriority},
	} {
		t.Run(c.name, func(t *testing.T) {
			batch := frozen.Batch{Flows: []*frozen.Flow{z}}
			octets, err := batch.AppendTo(nil)
			if err != nil {
				t.Fatal(err)
			}
			again, err := frozen.Decode(octets)
			if err != nil {
				t.Fatal(err)
			}
			f, err := Thaw(5e9, again.Flows[0], changed{httpObjects, other(c.routes)})
			if err != nil {
				t.Fatal(err)
			}
			var a ledger.Asking
			if f.Ask(&a); a.Class != c.class {
				t.Errorf("it waits with priority %v, want %v", a.Class, c.class)
			}
		})
	}
}

// rebuilt are objects of which one backend is another version.
type rebuilt struct {
	exact
	is *config.Backend
}

func (r rebuilt) Backend(name string, version uint64) *config.Backend {
	if name == r.is.Ref.Name {
		return r.is
	}
	return r.exact.Backend(name, version)
}

// A flow that adopts another version of its backend has tried none of its
// endpoints: what it has tried are numbers of the version before.
func TestTriedIsOfAVersion(t *testing.T) {
	z := httpSample(t, "queued")
	z.Tried, z.Attempts = 5, 2
	f, err := Thaw(5e9, z, httpObjects)
	if err != nil || f.Tried() != 5 {
		t.Fatal(f.Tried(), err)
	}
	is := *httpObjects.Backends[z.Backend.Name]
	is.Ref.Version++
	is.Endpoints = is.Endpoints[:1]
	z = httpSample(t, "queued")
	z.Tried, z.Attempts = 5, 2
	f, err = Thaw(5e9, z, rebuilt{httpObjects, &is})
	if err != nil || f.Tried() != 0 || f.Attempt() != 2 {
		t.Errorf("tried %b in %d attempts, %v", f.Tried(), f.Attempt(), err)
	}
}
