package config

import (
	"strings"
	"testing"
)

// What becomes of patches when the file changes.
func TestRebase(t *testing.T) {
	old := document(t, patched)
	changed := func(pairs ...string) string { return strings.NewReplacer(pairs...).Replace(patched) }
	for _, c := range []struct {
		name    string
		file    string // the new one
		patch   Patch
		became  string
		file2   string // what it says
		runtime string
		why     string
	}{
		{"of something else", changed("weight: 50", "weight: 60"), Patch{Object: "endpoint/web/a1", Field: "weight", Value: "7"}, PatchKept, "100", "7", ""},
		{"the file says another thing", changed("weight: 50", "weight: 60"), Patch{Object: "endpoint/web/a2", Field: "weight", Value: "7"}, PatchKept, "60", "7", ""},
		{"the file says the same", changed("weight: 50", "weight: 7"), Patch{Object: "endpoint/web/a2", Field: "weight", Value: "7"}, PatchAbsorbed, "7", "7", ""},
		{"by default", changed(", weight: 50", ""), Patch{Object: "endpoint/web/a2", Field: "weight", Value: "100"}, PatchAbsorbed, "100", "100", ""},
		{"the endpoint is gone", changed("      - { name: a2, address: 10.0.0.2:80, weight: 50 }\n", ""), Patch{Object: "endpoint/web/a2", Field: "weight", Value: "7"}, PatchDropped, "", "7", `no endpoint "a2" in backend web; there are: a1`},
		{"what is deleted is gone", changed("      - { name: a2, address: 10.0.0.2:80, weight: 50 }\n", ""), Patch{Object: "endpoint/web/a2", Delete: true}, PatchAbsorbed, "", "", ""},
		{"what is deleted is there", changed("weight: 50", "weight: 60"), Patch{Object: "endpoint/web/a2", Delete: true}, PatchKept, "{address: '10.0.0.2:80', name: a2, weight: 60}", "", ""},
		{"what was made is made by the file", changed("weight: 50 }", "weight: 50 }\n      - { name: a3, address: 10.0.0.3:80 }"), Patch{Object: "endpoint/web/a3", Value: "{ address: 10.0.0.3:80 }"}, PatchAbsorbed, "{address: '10.0.0.3:80', name: a3}", "{address: '10.0.0.3:80', name: a3}", ""},
		{"in another way", changed("weight: 50 }", "weight: 50 }\n      - { name: a3, address: 10.0.0.4:80 }"), Patch{Object: "endpoint/web/a3", Value: "{ address: 10.0.0.3:80 }"}, PatchKept, "{address: '10.0.0.4:80', name: a3}", "{address: '10.0.0.3:80', name: a3}", ""},
		{"of a backend that is gone", "listeners: {}\n", Patch{Object: "endpoint/web/a3", Value: "{ address: 10.0.0.3:80 }"}, PatchDropped, "", "", `no backend "web"; there is none`},
		{"a listener of its own", "backends:\n  web: { endpoints: [ { address: 10.0.0.1:80 } ] }\n", Patch{Object: "listener/new", Value: "{ vip: 10.0.0.5:81, backend: web }"}, PatchKept, "", "{vip: '10.0.0.5:81', backend: web}", ""},
		{"a field of a listener that is gone", "backends:\n  web: { endpoints: [ { address: 10.0.0.1:80 } ] }\n", Patch{Object: "listener/web", Field: "connectionsMax", Value: "7"}, PatchDropped, "", "7", `no listener "web"; there is none`},
		{"a route that is gone", changed("      - { name: api, match: { path: /api/ }, backend: api }\n", ""), Patch{Object: "route/web/api", Field: "priority", Value: "high"}, PatchDropped, "", "high", `no route "api" in listener web; there is none`},
		{"of the node", changed("name: n1", "name: n1, zone: a"), Patch{Object: "node", Field: "zone", Value: "a"}, PatchAbsorbed, "a", "a", ""},
		{"of a log that there is not any more", changed(), Patch{Object: "accessLog", Field: "format", Value: "text"}, PatchKept, "", "text", ""},
	} {
		if c.became != PatchAbsorbed || c.patch.Object == "endpoint/web/a2" && c.patch.Value != "100" {
			if _, err := old.Patch(c.patch); err != nil {
				t.Errorf("%s: on the old file: %v", c.name, err)
			}
		}
		base, _, err := Read("holdfast.yaml", []byte(c.file), lookup, old)
		if err != nil {
			t.Fatal(err)
		}
		next, told, err := base.Rebase([]Patch{c.patch})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		want := Rebased{c.patch, c.became, c.file2, c.runtime, c.why}
		if told[0] != want {
			t.Errorf("%s:\n got %+v\nwant %+v", c.name, told[0], want)
		}
		if kept := len(next.Patches()) == 1; kept != (c.became == PatchKept) {
			t.Errorf("%s: patches %v", c.name, next.Patches())
		}
		if c.became != PatchKept && next != base {
			t.Errorf("%s: another document", c.name)
		}
	}
}

// A file that is right, and is not with the patches, is refused, and the patch is
// named.
func TestRebaseRefuses(t *testing.T) {
	for _, c := range []struct {
		file  string
		patch Patch
		want  string
	}{
		{"backends:\n  other: { endpoints: [ { address: 10.0.0.1:80 } ] }\n", Patch{Object: "listener/new", Value: "{ vip: 10.0.0.5:81, backend: web }"},
			`listener/new: listeners.new.backend: no backend "web"; there are: other`},
		{strings.Replace(patched, "listeners:\n", "listeners:\n  taken: { vip: 10.0.0.5:81, backend: api }\n", 1), Patch{Object: "listener/web", Field: "vip", Value: "10.0.0.5:81"},
			`listener/web.vip: listeners.web.vip: 10.0.0.5:81 is already taken by listener taken (line 4)`},
		{strings.Replace(patched, "protocol: http\n    routes:\n      - { name: api, match: { path: /api/ }, backend: api }\n      - { backend: web }", "backend: web", 1),
			Patch{Object: "backend/web", Field: "retry.on", Value: "[ connect, reset ]"},
			`backend/web.retry.on: backends.web.retry: listener web (line 5) is for tcp and uses this backend, but only requests can be sent again, so on: [connect] is all that is possible`},
	} {
		base := document(t, c.file)
		next, told, err := base.Rebase([]Patch{c.patch})
		if err == nil || err.Error() != c.want || next != nil || told != nil {
			t.Errorf("%v:\n got %v\nwant %s", c.patch, err, c.want)
		}
	}
}

// No secret is told of what differs.
func TestDifferencesHaveNoSecrets(t *testing.T) {
	d := document(t, patched)
	next, err := d.Patch(Patch{Object: "backend/web", Field: "sticky", Value: "{ cookie: { name: hf, key: 0123456789abcdef } }"})
	if err != nil {
		t.Fatal(err)
	}
	all := next.Differences()
	if len(all) != 1 || strings.Contains(all[0].Runtime, "0123456789abcdef") || !strings.Contains(all[0].Runtime, secretShown) {
		t.Errorf("%+v", all)
	}
	if next.Config().Backends["web"].Sticky.Key != "0123456789abcdef" {
		t.Error("the secret is lost")
	}
	// And another secret is another patch, though both are told alike.
	other, err := next.Patch(Patch{Object: "backend/web", Field: "sticky.cookie.key", Value: "fedcba9876543210"})
	if err != nil || other.Config().Backends["web"].Sticky.Key != "fedcba9876543210" {
		t.Errorf("%v %+v", err, other)
	}
}

// Over a reload of a file under patches all that did not change, patched or not,
// is the same object.
func TestRebaseKeepsObjects(t *testing.T) {
	src := services(20)
	d, err := document(t, src).Patch(Patch{Object: "endpoint/s0/a", Field: "weight", Value: "7"}, Patch{Object: "backend/new", Value: "{ endpoints: [ { address: 10.0.0.1:80 } ] }"},
		Patch{Object: "listener/s3", Field: "connectionsMax", Value: "7"})
	if err != nil {
		t.Fatal(err)
	}
	for i, file := range []string{strings.Replace(src, "  s1: { check: { tcp: {}, interval: 5s }", "  s1: { check: { tcp: {}, interval: 6s }", 1), src, "# moved\n" + src} {
		base, _, err := Read("holdfast.yaml", []byte(file), lookup, d)
		if err != nil {
			t.Fatal(err)
		}
		next, _, err := base.Rebase(d.Patches())
		if err != nil {
			t.Fatal(err)
		}
		var other []string
		for name, b := range next.Config().Backends {
			if b != d.Config().Backends[name] {
				other = append(other, name)
			}
		}
		for name, l := range next.Config().Listeners {
			if l != d.Config().Listeners[name] {
				other = append(other, "listener "+name)
			}
		}
		if want := []string{"s1", "s1", ""}[i]; strings.Join(other, " ") != want {
			t.Errorf("file %d: other objects: %v", i, other)
		}
		d = next
	}
}
