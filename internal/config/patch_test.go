package config

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// object names something to patch, of those that d has or of none.
func anObject(r *rand.Rand, d *Document) string {
	listeners, backends := d.Config().SortedListeners(), d.Config().SortedBackends()
	switch r.IntN(8) {
	case 0:
		return "node"
	case 1:
		return "accessLog"
	case 2:
		return "backend/new"
	case 3, 4:
		if len(backends) > 0 {
			b := backends[r.IntN(len(backends))]
			if r.IntN(3) == 0 || len(b.Endpoints) == 0 {
				return "backend/" + b.Ref.Name
			}
			if r.IntN(4) == 0 {
				return "endpoint/" + b.Ref.Name + "/new"
			}
			return "endpoint/" + b.Ref.Name + "/" + b.Endpoints[r.IntN(len(b.Endpoints))].Name
		}
	case 5, 6:
		if len(listeners) > 0 {
			l := listeners[r.IntN(len(listeners))]
			if l.Rules != nil && r.IntN(2) == 0 {
				if name := l.Rules.Routes[r.IntN(len(l.Rules.Routes))].Name; name != "" {
					return "route/" + l.Ref.Name + "/" + name
				}
				return "route/" + l.Ref.Name + "/new"
			}
			return "listener/" + l.Ref.Name
		}
	}
	return "listener/new"
}

// aPatch is one that may be right.
func aPatch(r *rand.Rand, d *Document) Patch {
	pick := func(all ...string) string { return all[r.IntN(len(all))] }
	p := Patch{Object: anObject(r, d)}
	kind, _, _ := strings.Cut(p.Object, "/")
	backend := "new"
	if all := d.Config().SortedBackends(); len(all) > 0 {
		backend = all[r.IntN(len(all))].Ref.Name
	}
	if r.IntN(5) == 0 {
		p.Delete = true
		if r.IntN(2) == 0 {
			return p
		}
	}
	set := func(field, value string) Patch {
		p.Field = field
		if !p.Delete {
			p.Value = value
		}
		return p
	}
	switch whole := r.IntN(4) == 0 && !p.Delete; {
	case kind == "node":
		return set(pick("connectionsMax", "zone", "memory.max", "watchFile"), pick("0", "100", "a", "true", "false", "1MiB", "512MiB"))
	case kind == "accessLog":
		if whole {
			p.Value = "{}"
			return p
		}
		return set(pick("format", "to"), pick("text", "json", "stderr", "/a"))
	case kind == "backend":
		if whole {
			p.Value = fmt.Sprintf("{ endpoints: [ { name: x, address: 10.9.0.%d:80 } ] }", 1+r.IntN(9))
			return p
		}
		return set(pick("balance", "connectTimeout", "check.interval", "check", "eject", "retry.max"), pick("least", "2s", "{}", "off", "1", "{ tcp: {} } # as it is"))
	case kind == "endpoint":
		if whole {
			p.Value = fmt.Sprintf("{ address: '10.9.1.%d:80', weight: %d }", 1+r.IntN(9), r.IntN(1000))
			return p
		}
		return set(pick("weight", "backup", "zone", "address", "connections"), pick("0", "1", "100", "true", "a", "10.9.2.1:80"))
	case kind == "route":
		if whole {
			p.Value = fmt.Sprintf("match: { path: /%d }\nbackend: %s", r.IntN(4), backend)
			p.Before = pick("", "", "*", "new", "api")
			return p
		}
		return set(pick("priority", "answerTimeout", "match.path", "backend"), pick("high", "5s", "/x", backend))
	case whole:
		p.Value = fmt.Sprintf("{ vip: 10.8.0.%d:80, backend: %s }", 1+r.IntN(9), backend)
		return p
	}
	return set(pick("vip", "backend", "connectionsMax", "onChange", "accessLog"), pick("10.8.1.1:90", backend, "7", "close", "keep", "on"))
}

// Patches, one after the other and all at once, on files of all kinds: what comes
// of them is what the source says, what was not touched is there in its words, and
// nothing is otherwise if it is done from the file again.
func TestPatchesHold(t *testing.T) {
	files := corpus(t)
	turns := 25
	if testing.Short() {
		turns = 8
	}
	made, refused := 0, 0
	for n, src := range files {
		base, _, err := Read("f", []byte(src), lookup, nil)
		if err != nil {
			continue
		}
		r := rand.New(rand.NewPCG(3, uint64(n)))
		d := base
		for range turns {
			ask := []Patch{aPatch(r, d)}
			for r.IntN(3) == 0 {
				ask = append(ask, aPatch(r, d))
			}
			next, err := d.Patch(ask...)
			var bad *Errors
			if err != nil {
				if refused++; !errors.As(err, &bad) || len(bad.Problems) == 0 || next != nil {
					t.Fatalf("%v", err)
				}
				for _, p := range bad.Problems {
					if p.Line != 0 || p.Text == "" || strings.ContainsAny(p.String(), "\n\r") {
						t.Fatalf("%+v\n%v", p, ask)
					}
				}
				continue
			}
			made++
			d = next
			checkPatched(t, src, d)
		}
		if rest, err := d.Base().Patch(d.Patches()...); err != nil || string(rest.Source()) != string(d.Source()) {
			t.Fatalf("%s\n----\nagain from the file: %v", src, err)
		}
	}
	if made < turns || refused < turns {
		t.Errorf("%d patches were made, %d refused", made, refused)
	}
}

func checkPatched(t *testing.T, src string, d *Document) {
	t.Helper()
	text := string(d.Source())
	c, warnings, err := Parse(d.file, []byte(text), lookup)
	if err != nil {
		t.Fatalf("%s\n----\n%v\n----\n%s\n----\n%v", src, d.Patches(), text, err)
	}
	if p := Diff(c, d.Config()); !p.Empty() {
		t.Fatalf("%s\n----\n%v\n----\n%s\n----\nthe source says otherwise:\n%v", src, d.Patches(), text, p)
	}
	if warnings.String() != d.Warnings().String() {
		t.Fatalf("%s\n----\n%v\n----\n%s\n----\ngot\n%v\nwant\n%v", src, d.Patches(), text, d.Warnings(), warnings)
	}
	checkConfig(t, d.Config())
	if d.Base() == d {
		if len(d.Patches()) > 0 {
			t.Fatal("a file has patches")
		}
		return
	}
	if string(d.Base().Source()) != src {
		t.Fatalf("the file changed to\n%s", d.Base().Source())
	}
	patches := d.Patches()
	for i, p := range patches {
		if slices.ContainsFunc(patches[:i], func(q Patch) bool { return q.Object == p.Object && q.Field == p.Field }) {
			t.Fatalf("twice: %v", p)
		}
	}
	again, told, err := d.Base().Rebase(patches)
	if err != nil || len(told) != len(patches) {
		t.Fatalf("on its own file: %v", err)
	}
	for _, one := range told {
		if one.Became != PatchKept {
			t.Fatalf("%s\n----\n%v\n%+v", src, patches, one)
		}
	}
	if string(again.Source()) != text {
		t.Fatalf("on its own file:\n%s\nnot\n%s", again.Source(), text)
	}
	if n := len(d.Differences()); n != len(patches) {
		t.Fatalf("%d differences of %d patches", n, len(patches))
	}
}

// Values that YAML is fond of taking for others are what they were asked to be.
func TestPatchValues(t *testing.T) {
	for _, c := range []struct{ value, want string }{
		{"ok", "ok"}, {"'1_0'", "1_0"}, {`"0x10"`, "0x10"}, {"'yes'", "yes"}, {"'~'", "~"}, {`"a\nb\n"`, "a\nb\n"}, {`"  a "`, "  a "}, {`"# a"`, "# a"}, {`"a: b"`, "a: b"},
		{`"a\tb"`, "a\tb"}, {`"\u2028"`, "\u2028"}, {`"\u0085"`, "\u0085"}, {`"\ud83d\ude00"`, "\U0001f600"}, {"|+\n  a\n\n", "a\n\n"}, {">\n  a\n  b\n", "a b\n"}, {`"\e"`, "\x1b"}, {`""`, ""}, {"a # b", "a"},
	} {
		for _, src := range []string{patched, strings.Replace(patched, "  web:\n    vip", "  web: { vip: 10.0.0.5:80, protocol: http, routes: [ { name: no, match: { path: /no }, respond: { status: 200 } } ] }\n  other:\n    vip", 1)} {
			src = strings.Replace(src, "vip: 10.0.0.5:80   #", "vip: 10.0.0.6:80   #", 1)
			d := document(t, src)
			name := d.Config().Listeners["web"].Rules.Routes[0].Name
			next, err := d.Patch(Patch{Object: "route/web/new", Value: "{ match: { path: /new }, respond: { status: 200 } }", Before: name})
			if err == nil {
				next, err = next.Patch(Patch{Object: "route/web/new", Field: "respond.body", Value: c.value})
			}
			if err != nil {
				t.Errorf("%q: %v", c.value, err)
			} else if got := next.Config().Listeners["web"].Rules.Routes[0].Respond.Body; got != c.want {
				t.Errorf("%q: got %q, want %q", c.value, got, c.want)
			} else {
				checkPatched(t, src, next)
			}
		}
	}
}

// Patches on one file after another, with the help of what was made before, are
// what they are on a file that was read for the first time.
func TestRebasesHold(t *testing.T) {
	files := corpus(t)
	rebased, refused := 0, 0
	for n, src := range files {
		base, _, err := Read("f", []byte(src), lookup, nil)
		if err != nil {
			continue
		}
		r := rand.New(rand.NewPCG(5, uint64(n)))
		d := base
		for range 6 {
			if next, err := d.Patch(aPatch(r, d)); err == nil {
				d = next
			}
		}
		now := src
		for range 8 {
			next := mutate(r, now, files)
			file, _, err := Read("f", []byte(next), lookup, d)
			if err != nil {
				continue
			}
			now = next
			fresh, _, err := Read("f", []byte(now), lookup, nil)
			if err != nil {
				t.Fatal(err)
			}
			a, toldA, errA := file.Rebase(d.Patches())
			b, toldB, errB := fresh.Rebase(d.Patches())
			if fmt.Sprint(errA) != fmt.Sprint(errB) {
				t.Fatalf("%s\n----\n%v\n%v\n%v", now, d.Patches(), errA, errB)
			}
			if errA != nil {
				refused++
				continue
			}
			rebased++
			if !slices.Equal(toldA, toldB) || string(a.Source()) != string(b.Source()) || !slices.Equal(a.Patches(), b.Patches()) || !Diff(a.Config(), b.Config()).Empty() {
				t.Fatalf("%s\n----\n%+v\n%+v\n----\n%s\n----\n%s", now, toldA, toldB, a.Source(), b.Source())
			}
			checkPatched(t, now, a)
			d = a
		}
	}
	if rebased < 40 {
		t.Errorf("%d files under patches, %d refused", rebased, refused)
	}
}
