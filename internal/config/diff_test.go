package config

import (
	"fmt"
	"strings"
	"testing"
)

// Every kind of change, in both directions, from nothing and to nothing.
func TestDiff(t *testing.T) {
	old, new := must(t, read(t, "old.yaml")), must(t, read(t, "new.yaml"))
	without := *old
	without.Cluster = nil
	var out strings.Builder
	for _, c := range []struct {
		title    string
		old, new *Config
	}{
		{"old.yaml -> new.yaml", old, new},
		{"new.yaml -> old.yaml", new, old},
		{"nothing -> old.yaml", nil, old},
		{"old.yaml -> nothing", old, nil},
		{"old.yaml -> old.yaml without cluster", old, &without},
		{"old.yaml -> old.yaml", old, old},
	} {
		plan := Diff(c.old, c.new)
		if plan.Empty() != (plan.String() == "") {
			t.Errorf("%s: Empty is %v, String is %q", c.title, plan.Empty(), plan)
		}
		out.WriteString("# " + c.title + "\n" + plan.String() + "\n")
	}
	golden(t, "diff.txt", out.String())
}

// What a listener for HTTP says of its rules when they change: routes by their
// numbers, one that comes between others alone.
func TestDiffOfRules(t *testing.T) {
	old, new := must(t, read(t, "http-old.yaml")), must(t, read(t, "http-new.yaml"))
	golden(t, "http-diff.txt", fmt.Sprintf("# http-old.yaml -> http-new.yaml\n%v\n# http-new.yaml -> http-old.yaml\n%v", Diff(old, new), Diff(new, old)))
	next := new.Reuse(old)
	if d := Diff(new, next); !d.Empty() {
		t.Errorf("contents changed:\n%s", d)
	}
	if again := must(t, read(t, "http-old.yaml")).Reuse(old); again.Listeners["web"] != old.Listeners["web"] {
		t.Error("an unchanged listener for HTTP is another object")
	}
}

// What is said of policies that change. No secret is.
func TestDiffOfPolicies(t *testing.T) {
	old, new := must(t, read(t, "policy-old.yaml")), must(t, read(t, "policy-new.yaml"))
	text := fmt.Sprintf("# policy-old.yaml -> policy-new.yaml\n%v\n# policy-new.yaml -> policy-old.yaml\n%v", Diff(old, new), Diff(new, old))
	golden(t, "policy-diff.txt", text)
	for _, secret := range []string{"two-keys", "Bearer"} {
		if strings.Contains(text, secret) {
			t.Errorf("%q is told", secret)
		}
	}
	if next := new.Reuse(old); !Diff(new, next).Empty() {
		t.Errorf("contents changed:\n%s", Diff(new, next))
	}
}

// What is listed where: a backend whose endpoints alone changed is changed,
// for its object is another; endpoints of added backends are added.
func TestPlanLists(t *testing.T) {
	plan := Diff(must(t, read(t, "old.yaml")), must(t, read(t, "new.yaml")))
	var backends, added, removed, changed []string
	for _, c := range plan.BackendsChanged {
		backends = append(backends, c.New.Ref.Name)
	}
	for _, e := range plan.EndpointsAdded {
		added = append(added, e.Ref.Name)
	}
	for _, e := range plan.EndpointsRemoved {
		removed = append(removed, e.Ref.Name)
	}
	for _, c := range plan.EndpointsChanged {
		changed = append(changed, c.New.Ref.Name)
	}
	for _, c := range []struct {
		what string
		got  []string
		want string
	}{
		{"backends changed", backends, "mail primary same"},
		{"endpoints added", added, "fresh/f primary/db3"},
		{"endpoints removed", removed, "old/o primary/10.0.0.39:5432"},
		{"endpoints changed", changed, "mail/m primary/db2"},
	} {
		if got := strings.Join(c.got, " "); got != c.want {
			t.Errorf("%s: got %s, want %s", c.what, got, c.want)
		}
	}
}

// Objects that did not change are the same pointers in the next generation;
// contents are those of the new one, and neither config is touched.
func TestReuse(t *testing.T) {
	old, new := must(t, read(t, "old.yaml")), must(t, read(t, "new.yaml"))
	if new.Reuse(nil) != new {
		t.Error("nothing to reuse, but another config")
	}
	next := new.Reuse(old)
	if d := Diff(new, next); !d.Empty() {
		t.Errorf("contents changed:\n%s", d)
	}
	db1 := old.Backends["primary"].Endpoint("db1")
	if next.Backends["primary"].Endpoint("db1") != db1 {
		t.Error("an unchanged endpoint of a changed backend is another object")
	}
	if new.Backends["primary"].Endpoint("db1") == db1 {
		t.Error("the new config was touched")
	}
	if next.Backends["primary"].Endpoint("db2") == old.Backends["primary"].Endpoint("db2") {
		t.Error("a changed endpoint is the old object")
	}
	again := must(t, read(t, "old.yaml")).Reuse(old)
	for name, l := range again.Listeners {
		if l != old.Listeners[name] {
			t.Errorf("listener %s is another object", name)
		}
	}
	for name, b := range again.Backends {
		if b != old.Backends[name] {
			t.Errorf("backend %s is another object", name)
		}
	}
	if again.Cluster != old.Cluster {
		t.Error("the cluster is another object")
	}
	checkConfig(t, next)
}

func TestLookup(t *testing.T) {
	old, new := must(t, read(t, "old.yaml")), must(t, read(t, "new.yaml"))
	for _, ref := range []Ref{
		old.Listeners["pg"].Ref, old.Backends["primary"].Ref, old.Backends["primary"].Endpoint("db2").Ref,
		old.Listeners["gone"].Ref, old.Backends["old"].Ref, old.Backends["old"].Endpoints[0].Ref,
	} {
		if got, ok := old.Lookup(ref); !ok || got.(interface{ ref() Ref }).ref() != ref {
			t.Errorf("%v: got %v, %v", ref, got, ok)
		}
		if got, ok := new.Lookup(ref); ok {
			t.Errorf("%v: got %v of another config", ref, got)
		}
	}
	if got, ok := old.Lookup(Ref{}); ok {
		t.Errorf("the zero Ref: got %v", got)
	}
}
