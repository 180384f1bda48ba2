package config

import "testing"

// What was made at run time can be taken away at run time: then there is no patch
// left, unless what it is a part of would have it by itself.
func TestMadeAndDeleted(t *testing.T) {
	d := document(t, patched)
	for _, p := range []Patch{
		{Object: "endpoint/web/new", Value: "{ address: 10.0.9.1:80 }"},
		{Object: "backend/new", Value: "{ endpoints: [ { address: 10.0.9.1:80 } ] }"},
		{Object: "listener/new", Value: "{ vip: 10.0.0.5:81, backend: web }"},
		{Object: "accessLog", Value: "{}"},
	} {
		next, err := d.Patch(p)
		if err != nil {
			t.Fatal(err)
		}
		p.Delete, p.Value = true, ""
		if next, err = next.Patch(p); err != nil || len(next.Patches()) != 0 || !Diff(d.Config(), next.Config()).Empty() {
			t.Errorf("%s: %v, %v", p.Object, next, err)
		}
	}
	next, err := d.Patch(Patch{Object: "backend/new", Value: "{ endpoints: [ { name: a, address: 10.0.9.1:80 }, { name: b, address: 10.0.9.2:80 } ] }"},
		Patch{Object: "endpoint/new/a", Value: "{ address: 10.0.9.3:80 }"}, Patch{Object: "endpoint/new/a", Delete: true})
	if err != nil || len(next.Config().Backends["new"].Endpoints) != 1 {
		t.Errorf("a part of what was made: %v, %v", next, err)
	}
}
