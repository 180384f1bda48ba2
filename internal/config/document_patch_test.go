package config

import (
	"errors"
	"strings"
	"testing"
)

const patched = `# the shop
node: { name: n1 }
listeners:
  # the front
  web:
    vip: 10.0.0.5:80   # public
    protocol: http
    routes:
      - { name: api, match: { path: /api/ }, backend: api }
      - { backend: web }
backends:
  web:
    endpoints:
      - { name: a1, address: 10.0.0.1:80 }   # the old one
      - { name: a2, address: 10.0.0.2:80, weight: 50 }

  # the interface
  api:
    endpoints: [ { address: 10.0.1.1:80 } ]
`

func document(t *testing.T, src string) *Document {
	t.Helper()
	d, _, err := Read("holdfast.yaml", []byte(src), lookup, nil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestPatch(t *testing.T) {
	d := document(t, patched)
	for _, c := range []struct {
		name    string
		patches []Patch
		plan    string
	}{
		{"a weight", []Patch{{Object: "endpoint/web/a2", Field: "weight", Value: "7"}}, "~ endpoint web/a2: weight 50 -> 7\n"},
		{"a new key", []Patch{{Object: "endpoint/web/a1", Field: "weight", Value: "7"}}, "~ endpoint web/a1: weight 100 -> 7\n"},
		{"a default", []Patch{{Object: "endpoint/web/a2", Field: "weight", Delete: true}}, "~ endpoint web/a2: weight 50 -> 100\n"},
		{"as it is", []Patch{{Object: "endpoint/web/a2", Field: "weight", Value: "50"}}, ""},
		{"its default", []Patch{{Object: "endpoint/web/a1", Field: "weight", Value: "100"}}, ""},
		{"there and back", []Patch{{Object: "endpoint/web/a2", Field: "weight", Value: "7"}, {Object: "endpoint/web/a2", Field: "weight", Value: "50"}}, ""},
		{"an endpoint", []Patch{{Object: "endpoint/web/a3", Value: "{ address: 10.0.0.3:80 }"}}, "+ endpoint web/a3 10.0.0.3:80\n"},
		{"an endpoint by its address", []Patch{{Object: "endpoint/api/10.0.1.2:80", Value: `{ "address": "10.0.1.2:80" }`}}, "+ endpoint api/10.0.1.2:80\n"},
		{"an endpoint less", []Patch{{Object: "endpoint/web/a1", Delete: true}}, "- endpoint web/a1 10.0.0.1:80\n"},
		{"a section", []Patch{{Object: "backend/web", Field: "check.interval", Value: "5s"}}, "~ backend web: + check\n"},
		{"a listener and its backend", []Patch{{Object: "listener/new", Value: "{ vip: 10.0.0.5:81, backend: new }"}, {Object: "backend/new", Value: "endpoints: [ { address: 10.0.2.1:80 } ]"}},
			"+ backend new\n+ endpoint new/10.0.2.1:80\n+ listener new 10.0.0.5:81\n"},
		{"a node", []Patch{{Object: "node", Field: "connectionsMax", Value: "1000"}}, "~ node: connectionsMax 0 -> 1000\n"},
		{"a log", []Patch{{Object: "accessLog", Value: "{}"}}, "+ accessLog json to stdout\n"},
	} {
		next, err := d.Patch(c.patches...)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := Diff(d.Config(), next.Config()).String(); got != c.plan {
			t.Errorf("%s: got\n%swant\n%s", c.name, got, c.plan)
		}
		if (c.plan == "") != (len(next.Patches()) == 0) {
			t.Errorf("%s: patches %v", c.name, next.Patches())
		}
		again := document(t, string(next.Source()))
		if p := Diff(again.Config(), next.Config()); !p.Empty() {
			t.Errorf("%s: its source says\n%s%s", c.name, next.Source(), p)
		}
		if twice, err := d.Patch(next.Patches()...); err != nil || string(twice.Source()) != string(next.Source()) {
			t.Errorf("%s: twice: %v", c.name, err)
		}
		for _, comment := range []string{"# the shop", "# the front", "# public", "# the interface"} {
			if !strings.Contains(string(next.Source()), comment) {
				t.Errorf("%s: %s is lost\n%s", c.name, comment, next.Source())
			}
		}
	}
}

func TestPatchErrors(t *testing.T) {
	d := document(t, patched)
	for _, c := range []struct {
		patch Patch
		want  string
	}{
		{Patch{Object: "endpoint/web/a2", Field: "weight", Value: "2000"}, "endpoint/web/a2.weight: backends.web.endpoints[1].weight: 2000 must be 0 to 1000"},
		{Patch{Object: "endpoint/web/a2", Field: "wieght", Value: "20"}, `endpoint/web/a2.wieght: backends.web.endpoints[1].wieght: unknown key; did you mean "weight"?`},
		{Patch{Object: "endpoint/web/a4", Field: "weight", Value: "20"}, `endpoint/web/a4.weight: no endpoint "a4" in backend web; there are: a1, a2`},
		{Patch{Object: "endpoint/wbe/a2", Field: "weight", Value: "20"}, `endpoint/wbe/a2.weight: no backend "wbe"; there are: api, web`},
		{Patch{Object: "endpont/web/a2", Field: "weight", Value: "20"}, `endpont/web/a2.weight: endpont is no kind of object; did you mean "endpoint"?`},
		{Patch{Object: "backend/api", Delete: true}, `backend/api: listeners.web.routes[0].backend: no backend "api"; there are: web`},
	} {
		next, err := d.Patch(c.patch)
		var bad *Errors
		if !errors.As(err, &bad) || next != nil {
			t.Errorf("%v: %v", c.patch, err)
		} else if err.Error() != c.want {
			t.Errorf("%v:\n got %v\nwant %s", c.patch, err, c.want)
		}
	}
}
