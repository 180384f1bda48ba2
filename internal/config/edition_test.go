package config

import (
	"fmt"
	"testing"
)

// Taking back one of many patches leaves the others as they are made, and the rest
// of the file as it is written; what came by its patch alone is made from the file.
func TestTakenBack(t *testing.T) {
	base, _, err := Read("f", []byte(services(20)), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := base
	const many = 12
	for i := range many {
		if d, err = d.Patch(Patch{Object: fmt.Sprintf("endpoint/s%d/new", i), Value: "{ address: 10.9.9.9:80 }"}); err != nil {
			t.Fatal(err)
		}
	}
	if d, err = d.Patch(Patch{Object: "backend/alone", Value: "{ endpoints: [ { address: 10.9.9.9:80 } ] }"}); err != nil {
		t.Fatal(err)
	}
	inPlace := func(rest []Patch) bool {
		e, err := newEdition(base, d)
		if err != nil {
			t.Fatal(err)
		}
		before, had := byObject(d.patches, e.fail)
		_, order := byObject(rest, e.fail)
		return e.without(had, order, before) != nil
	}
	if all := d.patches; !inPlace(append(all[:3:3], all[4:]...)) || inPlace(all[:many]) {
		t.Error("taking back a patch among others is done in place, that of a backend of its own is not")
	}
	// Taken back and made again at once, it comes behind the others.
	again := Patch{Object: "endpoint/s0/new", Value: "{ address: 10.9.9.9:80 }"}
	if d, err = d.Patch(Patch{Object: again.Object, Delete: true}, again); err != nil || d.Config().Backends["s0"].Endpoint("new") == nil {
		t.Fatalf("it is gone: %v\n%s", err, d.Source())
	}
	if d, err = d.Patch(Patch{Object: "backend/alone", Delete: true}); err != nil {
		t.Fatal(err)
	}
	for i := range many {
		k := i * 5 % many
		if d, err = d.Patch(Patch{Object: fmt.Sprintf("endpoint/s%d/new", k), Delete: true}); err != nil {
			t.Fatal(err)
		}
		again, err := base.Patch(d.Patches()...)
		if err != nil || len(d.Patches()) != many-1-i || string(again.Source()) != string(d.Source()) {
			t.Fatalf("%d patches are left after %d were taken back: %v\n%s\nnot\n%s", len(d.Patches()), i+1, err, d.Source(), again.Source())
		}
		checkPatched(t, string(base.Source()), d)
	}
}
