package node

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
)

func nothingThere(string) (string, bool) { return "", false }

// village is a file with three backends of up to three endpoints, some of which
// are not there, with weights by chance.
func village(r *rand.Rand) string {
	var b strings.Builder
	b.WriteString("listeners:\n  l: { vip: \"127.0.0.1:80\", protocol: http, backend: b0 }\nbackends:\n")
	for i := range 3 {
		fmt.Fprintf(&b, "  b%d:\n    connectTimeout: %ds\n    endpoints:\n", i, 1+r.IntN(3))
		for k := range 3 {
			if k == 0 || r.IntN(4) > 0 {
				fmt.Fprintf(&b, "      - { name: e%d, address: \"10.0.%d.%d:80\", weight: %d } # %d\n", k, i, k+1, 1+r.IntN(4), r.IntN(3))
			}
		}
	}
	return b.String()
}

// any request may come at any state.
func anyChange(r *rand.Rand, d *desired, sums *int) asked {
	*sums++
	a := asked{by: Author{Name: fmt.Sprint("w", r.IntN(3))}, at: time.Unix(int64(*sums), 0).UTC(), kind: "edit"}
	object := fmt.Sprintf("endpoint/b%d/e%d", r.IntN(3), r.IntN(3))
	switch r.IntN(8) {
	case 0, 1:
		a.text, a.kind = []byte(village(r)), "file"
		a.file, a.sum = true, textSum(a.text)
		a.mode = []string{"", "keep", "discard", "refuse"}[r.IntN(4)]
	case 2:
		a.text, a.kind = []byte(village(r)), "apply"
	case 3:
		a.revert = []config.Patch{{Object: []string{"*", object}[r.IntN(2)]}}
	case 4:
		a.edits = []config.Patch{{Object: object, Delete: true}}
	case 5:
		a.edits = []config.Patch{{Object: object, Value: fmt.Sprintf("{ address: \"10.9.0.%d:80\" }", 1+r.IntN(9))}}
	default:
		a.edits = []config.Patch{{Object: object, Field: "weight", Value: fmt.Sprint(1 + r.IntN(4))}, {Object: fmt.Sprintf("backend/b%d", r.IntN(3)), Field: "connectTimeout", Value: fmt.Sprintf("%ds", 1+r.IntN(3))}}
	}
	return a
}

// Whatever is asked of a state: what comes is what it says to disk and back; what
// was edited is in force, or was told to have ended; and each earlier state can be
// brought back as it was.
func TestDesiredAtRandom(t *testing.T) {
	t.Parallel()
	read := reader{"f.yaml", nothingThere}
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 7))
		b, err := first(read, []byte(village(r)), Author{Name: "start"}, time.Unix(0, 0).UTC())
		if err != nil {
			t.Fatal(err)
		}
		d := b.next
		d.Generation = 1
		kept := [][]byte{d.encode()}
		sums := 0
		made := 0
		for step := range 25 {
			fail := func(format string, args ...any) {
				t.Helper()
				t.Fatalf("seed %d, step %d: %s", seed, step, fmt.Sprintf(format, args...))
			}
			var next *desired
			switch r.IntN(6) {
			case 0:
				name := fmt.Sprintf("b%d/e%d", r.IntN(3), r.IntN(3))
				if endpointOf(d.doc.Config(), name) == nil {
					continue
				}
				weigh := r.IntN(2) == 0
				next = d.order([]string{name}, weigh, r.IntN(4)-1, []string{readyWord, "quiescing", "maintenance"}[r.IntN(3)], Author{Name: "op"}, time.Unix(int64(step), 0).UTC())
			case 1:
				i := r.IntN(len(kept))
				b, err := d.back(read, kept[i], asked{by: Author{Name: "back"}, kind: "rollback"})
				if err != nil {
					fail("back to %d: %v", i+1, err)
				}
				next = b.next
				was, _, err := decode(read, kept[i], nil)
				if err != nil {
					fail("%v", err)
				}
				if string(was.doc.Source()) != string(next.doc.Source()) || !maps.Equal(was.orders, next.orders) || !maps.Equal(was.edited, next.edited) {
					fail("back to %d is something else", i+1)
				}
			default:
				before := d.encode()
				a := anyChange(r, d, &sums)
				b, err := d.then(read, a)
				if string(d.encode()) != string(before) {
					fail("the state before was changed")
				}
				if err != nil {
					continue
				}
				next = b.next
				checkEdits(fail, d, next, a, b)
			}
			made++
			next.Generation = d.Generation + 1
			again, _, err := decode(read, next.encode(), d)
			if err != nil {
				fail("what was written cannot be read: %v", err)
			}
			if string(again.encode()) != string(next.encode()) || string(again.doc.Source()) != string(next.doc.Source()) || !reflect.DeepEqual(again.drift(), next.drift()) {
				fail("read again it says\n%s\nand not\n%s", again.encode(), next.encode())
			}
			if !config.Diff(again.doc.Config(), next.doc.Config()).Empty() {
				fail("read again it is another configuration")
			}
			for name := range next.orders {
				if endpointOf(next.doc.Config(), name) == nil {
					fail("an order of %s, which is not there", name)
				}
			}
			d = next
			kept = append(kept, d.encode())
		}
		if made == 0 {
			t.Errorf("seed %d: nothing was made", seed)
		}
	}
}

// checkEdits: of each edit at run time before a change of the file it is known what
// became of it.
func checkEdits(fail func(string, ...any), d, next *desired, a asked, b *became) {
	if len(next.edited) != len(next.doc.Patches()) {
		fail("%d edits, and %d are signed", len(next.doc.Patches()), len(next.edited))
	}
	for p, s := range next.edited {
		if s.By.Name == "" {
			fail("%v is nobody's", p)
		}
	}
	if a.text == nil {
		return
	}
	told := map[place]string{}
	for _, x := range b.edits {
		told[place{x.Object, x.Field}] = x.Became
	}
	still := map[place]bool{}
	for _, p := range next.doc.Patches() {
		still[placeOf(p)] = true
	}
	for _, p := range d.doc.Patches() {
		became := told[placeOf(p)]
		if became == "" || (became == "kept") != still[placeOf(p)] {
			fail("%v became %q, and is there: %v", placeOf(p), became, still[placeOf(p)])
		}
		if a.mode == "refuse" && became != "absorbed" {
			fail("%v became %q, though that was to be refused", placeOf(p), became)
		}
	}
	for name, o := range d.orders {
		if _, there := next.orders[name]; !there && o.Admin != "" && told[place{"endpoint/" + name, stateField}] == "" {
			fail("the order of %s is gone, and nobody says so", name)
		}
	}
}

// An order by the name of a host is one of all its addresses, and a later one of
// an address of that alone.
func TestOrdersOfNames(t *testing.T) {
	b, err := first(reader{"f", nothingThere}, []byte("listeners: { l: { vip: \"127.0.0.1:80\", backend: b } }\nbackends: { b: { endpoints: [ { name: app, address: \"app.test:80\" } ] } }\n"), Author{}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	d := b.next.order([]string{"b/app"}, false, 0, "quiescing", Author{}, time.Time{})
	d = d.order([]string{"b/app/10.0.0.1"}, false, 0, "maintenance", Author{}, time.Time{})
	if one, other := d.orderOf("b/app/10.0.0.1").Admin, d.orderOf("b/app/10.0.0.2").Admin; one != "maintenance" || other != "quiescing" {
		t.Errorf("%s and %s", one, other)
	}
	d = d.order([]string{"b/app"}, true, 7, "", Author{}, time.Time{})
	if one, other := d.orderOf("b/app/10.0.0.1"), d.orderOf("b/app/10.0.0.2"); one.Weight != 7 || other.Weight != 7 || one.Admin != "maintenance" {
		t.Errorf("%+v and %+v", one, other)
	}
	d = d.order([]string{"b/app"}, false, 0, readyWord, Author{}, time.Time{})
	if one, other := d.orderOf("b/app/10.0.0.1"), d.orderOf("b/app/10.0.0.2"); one.Admin != "" || other.Admin != "" {
		t.Errorf("%+v and %+v", one, other)
	}
}
