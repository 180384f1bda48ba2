package config

import (
	"errors"
	"strings"
	"testing"
)

// Any patch of any file is refused, as a patch, or makes a document whose source
// says what its objects are; on another file it is kept, absorbed or dropped.
func FuzzPatch(f *testing.F) {
	for _, p := range []Patch{
		{Object: "endpoint/web/a1", Field: "weight", Value: "7"},
		{Object: "endpoint/web/a3", Value: "{ address: 10.0.0.3:80 }"},
		{Object: "listener/web", Field: "connectionsMax", Value: "7 # few"},
		{Object: "listener/new", Value: "vip: 10.0.0.5:81\nbackend: web\n"},
		{Object: "backend/web", Field: "check.http.headers", Value: "{ X-A: [ b, \"c\\n\" ] }"},
		{Object: "backend/api", Delete: true},
		{Object: "node", Field: "name", Delete: true},
		{Object: "route/web/api", Field: "respond.body", Value: "|\n  a\n\n  # b\n"},
		{Object: "route/web/new", Value: "{ match: { path: '/${DB2}' }, backend: api }", Before: "api"},
		{Object: "cluster", Value: someIdentity},
		{Object: "nodes", Value: someNodes},
		{Object: "vips", Field: "v.home", Value: "n1"},
		{Object: "accessLog", Value: "{ to: &a /b }"},
	} {
		for _, src := range []string{patched, edgy, "listeners: { web: { vip: ':80', backend: web } }\nbackends: { web: { endpoints: [ { name: a1, address: 10.0.0.1:80 } ] } }"} {
			f.Add([]byte(src), p.Object, p.Field, p.Value, p.Before, p.Delete)
		}
	}
	f.Fuzz(func(t *testing.T, src []byte, object, field, value, before string, del bool) {
		base, _, err := Read("f", src, lookup, nil)
		if err != nil {
			return
		}
		p := Patch{Object: object, Field: field, Value: value, Before: before, Delete: del}
		next, err := base.Patch(p)
		var bad *Errors
		switch {
		case errors.As(err, &bad):
			for _, problem := range bad.Problems {
				if problem.Text == "" || strings.ContainsAny(problem.String(), "\n\r") {
					t.Errorf("%+v", problem)
				}
			}
		case err != nil:
			t.Fatalf("%T %v", err, err)
		default:
			checkPatched(t, string(src), next)
		}
		other := document(t, patched)
		if moved, told, err := other.Rebase([]Patch{p}); err == nil {
			checkPatched(t, patched, moved)
			if kept := told[0].Became == PatchKept; kept != (len(moved.Patches()) == 1) {
				t.Errorf("%+v and %v", told, moved.Patches())
			}
		}
	})
}
