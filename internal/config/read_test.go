package config

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// asParsed fails if what Read gave for src is not what Parse gives.
func asParsed(t *testing.T, src string, d *Document, w Warnings, err error) {
	t.Helper()
	c, warnings, bad := Parse("f", []byte(src), lookup)
	switch {
	case fmt.Sprint(bad) != fmt.Sprint(err):
		t.Fatalf("%s\n----\nread: %v\nparsed: %v", src, err, bad)
	case w.String() != warnings.String():
		t.Fatalf("%s\n----\nread:\n%v\nparsed:\n%v", src, w, warnings)
	case (d == nil) != (c == nil):
		t.Fatalf("%s\n----\nread: %v\nparsed: %v", src, d, c)
	case d == nil:
		return
	}
	if p := Diff(c, d.Config()); !p.Empty() {
		t.Fatalf("%s\n----\nread is otherwise than parsed:\n%v", src, p)
	}
	if len(c.Listeners) != len(d.Config().Listeners) || len(c.Backends) != len(d.Config().Backends) {
		t.Fatalf("%s\n----\n%v", src, d.Config())
	}
	if string(d.Source()) != src {
		t.Fatalf("the source is\n%s\nnot\n%s", d.Source(), src)
	}
}

// corpus has all files of the tests.
func corpus(t testing.TB) []string {
	t.Helper()
	var all []string
	examples, err := filepath.Glob("../../examples/*.yaml")
	if err != nil || len(examples) == 0 {
		t.Fatal(err)
	}
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(err)
	}
	for _, name := range append(files, examples...) {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(src))
	}
	for _, name := range []string{"testdata/problems.txt", "testdata/wrong.txt"} {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, section := range strings.Split(string(src), "=== ")[1:] {
			_, rest, _ := strings.Cut(section, "\n")
			text, _, _ := strings.Cut(rest, "----\n")
			all = append(all, text)
		}
	}
	return append(all, patched, services(6), edgy)
}

// edgy is lawful, and may be cut wrongly by who does not look well.
const edgy = `# head

# of the node
node:
  name: n1

x-mine: &a |
  listeners:
    no: {}
x-more: [ 1,
  2 ]
listeners:   # all of them

  # of a
  a:
    vip: 10.0.0.5:80
    protocol: http
    routes:
    - match: { path: /a }
      respond:
        status: 200
        body: |+
          # no comment

          b: "x"

    # of the route
    - respond: { status: 200, body: "quoted
          # no comment
          c: { vip: ':81' }" }
  "b":
    backend: two
    vip: 10.0.0.5:81
# at the left
  'c': { vip: 10.0.0.5:82,
    backend: two,
  }
  # nothing below
backends:
    # two
    two:
        endpoints: [ { address: 10.0.0.1:80 } ]

    three: { endpoints: [ { address: "${DB2}:80" } ], answerTimeout: 5s }
# the end
`

// mutate changes one thing of a file.
func mutate(r *rand.Rand, src string, others []string) string {
	lines := strings.SplitAfter(src, "\n")
	i, j := r.IntN(len(lines)), r.IntN(len(lines))
	switch r.IntN(9) {
	case 0:
		lines = slices.Delete(lines, i, i+1)
	case 1:
		lines = slices.Insert(lines, j, lines[i])
	case 2:
		lines[i], lines[j] = lines[j], lines[i]
	case 3: // the indentation
		lines[i] = " " + lines[i]
	case 4:
		lines[i] = strings.TrimPrefix(lines[i], " ")
	case 5:
		signs := []string{"#", "\"", "'", "|", "{", "}", "[", "]", ":", "-", "\t", "\r", " ", "\n", "&", "*", "?", "%", "...", "---\n", "1", "a", "!", ">", "\u2028", "${DB2}"}
		at := 0
		if len(lines[i]) > 0 {
			at = r.IntN(len(lines[i]))
		}
		lines[i] = lines[i][:at] + signs[r.IntN(len(signs))] + lines[i][at:]
	case 6: // a run of lines elsewhere
		n := min(1+r.IntN(4), len(lines)-i)
		run := slices.Clone(lines[i : i+n])
		lines = slices.Delete(lines, i, i+n)
		lines = slices.Insert(lines, r.IntN(len(lines)+1), run...)
	case 7:
		other := strings.SplitAfter(others[r.IntN(len(others))], "\n")
		k := r.IntN(len(other))
		lines = slices.Insert(lines, i, other[k:min(k+1+r.IntN(4), len(other))]...)
	case 8: // one sign less
		if len(lines[i]) > 0 {
			at := r.IntN(len(lines[i]))
			lines[i] = lines[i][:at] + lines[i][at+1:]
		}
	}
	return strings.Join(lines, "")
}

// Whatever becomes of a file, what is read of it with the help of what was read
// before is what is read of the whole.
func TestReadIsParse(t *testing.T) {
	files := corpus(t)
	turns := 250
	if testing.Short() {
		turns = 60
	}
	quick := 0
	for n, src := range files {
		r := rand.New(rand.NewPCG(1, uint64(n)))
		var was *Document
		now := src
		for range turns / (1 + len(src)/500) {
			d, w, err := Read("f", []byte(now), lookup, was)
			asParsed(t, now, d, w, err)
			if d != nil {
				was = d
				if d.chunks != nil {
					quick++
				}
			}
			if err != nil && r.IntN(3) > 0 {
				now = src
			}
			now = mutate(r, now, files)
		}
	}
	if quick < turns {
		t.Errorf("only %d files were cut", quick)
	}
}

// Files that follow one another, of which each was read with the help of the one
// before, as a reload does.
func FuzzRead(f *testing.F) {
	files := corpus(f)
	for i := range files {
		f.Add([]byte(files[i]), []byte(files[(i+1)%len(files)]))
		f.Add([]byte(files[i]), []byte(mutate(rand.New(rand.NewPCG(2, uint64(i))), files[i], files)))
	}
	f.Fuzz(func(t *testing.T, before, src []byte) {
		was, w, err := Read("f", before, lookup, nil)
		asParsed(t, string(before), was, w, err)
		d, w, err := Read("f", src, lookup, was)
		asParsed(t, string(src), d, w, err)
		if was != nil && d != nil {
			again, w, err := Read("f", before, lookup, d)
			asParsed(t, string(before), again, w, err)
		}
	})
}

// entries of which each pair may or may not go together, and says so.
var (
	someListeners = []string{
		"{ vip: '10.0.0.%d:80', backend: %s }",
		"{ vip: '10.0.0.%d:80', backend: %s, accessLog: on }",
		"{ vip: '10.0.0.%d:80', backend: %s, movable: true }",
		"{ vip: 'v:8%d', backend: %s }",
		"{ vip: '10.0.0.%d:80', backend: %s, connectionsMax: 7 }",
		"{ vip: '[2001:db8::%d]:80', backend: %s }",
		"{ vip: ':8%d', backend: %s }",
		"{ vip: '10.0.0.%d:80', protocol: http, backend: %s }",
		"{ vip: '10.0.0.%d:80', protocol: http, routes: [ { backend: %s } ], backend: b1 }",
		"{ vip: '10.0.0.%d:80', protocol: http, routes: [ { backends: [ { name: %s }, { name: b0, weight: 2 } ] } ] }",
		"{ vip: '10.0.0.%d:80', protocol: http, routes: [ { match: { path: /a }, backend: %s }, { match: { path: /a }, backend: b2 } ] }",
		"{ vip: '0.0.0.0:8%d', backend: %s }",
	}
	someBackends = []string{
		"endpoints: [ { address: '10.1.0.1:80' } ]",
		"endpoints: [ { address: '10.1.0.1:80', weight: 7 } ]",
		"endpoints: [ { address: '10.1.0.1:80', zone: a }, { address: '10.1.0.2:80', zone: b } ]",
		"endpoints: [ { address: '10.1.0.1:80', zone: b } ], preferLocal: true",
		"endpoints: [ { address: '10.1.0.1:80', zone: a } ], preferLocal: true",
		"endpoints: [ { address: 'unix:/a' } ]",
		"endpoints: [ { address: '10.1.0.1:80' } ], source: vip",
		"endpoints: [ { name: z, address: '[2001:db8::9]:80' }, { name: a, address: '10.1.0.1:80' } ], source: vip",
		"endpoints: [ { name: a, address: '[2001:db8::9]:80' }, { name: z, address: '10.1.0.1:80' } ], source: vip",
		"endpoints: [ { address: '10.1.0.1:80' } ], source: 10.0.0.9",
		"endpoints: [ { address: '10.1.0.1:80' } ], source: ''",
		"endpoints: [ { address: '10.1.0.1:80' } ], answerTimeout: 5s",
		"endpoints: [ { address: '10.1.0.1:80' } ], reuse: { idle: 1 }",
		"endpoints: [ { address: '10.1.0.1:80' } ], sticky: { source: {} }",
		"endpoints: [ { address: '10.1.0.1:80' } ], sticky: { cookie: { name: a } }",
		"endpoints: [ { address: '10.1.0.1:80' } ], sticky: { cookie: { name: a, path: /x } }",
		"endpoints: [ { address: '10.1.0.1:80' } ], sticky: { header: { name: a } }",
		"endpoints: [ { address: '10.1.0.1:80' } ], balance: maglev, hash: { by: path }",
		"endpoints: [ { address: '10.1.0.1:80' } ], balance: maglev",
		"endpoints: [ { address: '10.1.0.1:80' } ], retry: { on: [ connect, reset ] }",
		"endpoints: [ { address: '10.1.0.1:80' } ], retry: { on: [ connect, 503 ] }",
		"endpoints: [ { address: '10.1.0.1:80' } ], fallback: { backend: b0 }",
		"endpoints: [ { address: '10.1.0.1:80' } ], fallback: { backend: b1 }",
		"endpoints: [ { address: '10.1.0.1:80' } ], fallback: { respond: { status: 503 } }",
		"endpoints: [ { address: '10.1.0.1:80', weight: 0 } ]",
	}
	someTops = []string{
		"", "accessLog: {}\n", "node: { zone: a }\n", "node: { zone: b, admin: { metrics: '10.0.0.1:80' } }\n",
		"cluster: " + someIdentity + "\nnodes: " + someNodes + "\n",
		"cluster: " + someIdentity + "\nnodes: " + someNodes + "\nvips: " + someVIPs + "\n",
	}
)

// What entries ask of each other is asked again when one of them changes: each
// pair that may follow one another, among all that may stand beside them, if
// nothing was said of the first.
func TestReadAsksAgain(t *testing.T) {
	silent, spoke := 0, 0
	for _, top := range someTops {
		for _, beside := range []string{"endpoints: [ { address: '10.1.0.9:80' } ]", "endpoints: [ { address: '10.1.0.9:80' } ], sticky: { cookie: { name: a } }"} {
			file := func(listener, backend string) string {
				return top + "listeners:\n  l: " + fmt.Sprintf(listener, 1, "b0") + "\n" +
					"  m: { vip: '10.0.0.99:90', protocol: http, backend: b1 }\n  n: { vip: '10.0.0.99:91', protocol: http, backend: b2 }\n" +
					"backends:\n  b0: { " + backend + " }\n  b1: { " + beside + " }\n  b2: { endpoints: [ { address: '10.1.0.8:80' } ] }\n"
			}
			follow := func(was *Document, src string) {
				d, w, err := Read("f", []byte(src), lookup, was)
				asParsed(t, src, d, w, err)
				if err != nil || len(w) > 0 {
					spoke++
				}
			}
			for _, listener := range someListeners {
				for _, backend := range someBackends {
					was, w, err := Read("f", []byte(file(listener, backend)), lookup, nil)
					if err != nil || len(w) > 0 {
						continue
					}
					silent++
					for _, other := range someBackends {
						follow(was, file(listener, other))
					}
					for _, other := range someListeners {
						follow(was, file(other, backend))
					}
				}
			}
		}
	}
	if silent < 100 || spoke < 1000 {
		t.Errorf("%d files were right, of %d that followed something was said", silent, spoke)
	}
}

// What did not change is the same object, and nothing of it is read again; who
// changes the environment changes what is read.
func TestReadKeeps(t *testing.T) {
	src := services(20)
	was := document(t, src)
	d, _, err := Read("f", []byte(strings.Replace(src, "9001\" }", "9002\" }", 1)), lookup, was)
	if err != nil {
		t.Fatal(err)
	}
	same, other := 0, 0
	for name, b := range d.Config().Backends {
		if b == was.Config().Backends[name] {
			same++
		} else {
			other++
		}
	}
	if same != 19 || other != 1 {
		t.Errorf("%d backends are the same, %d are not", same, other)
	}
	if l := d.Config().Listeners; fmt.Sprintf("%p", l) != fmt.Sprintf("%p", was.Config().Listeners) {
		t.Error("no listener changed, but the map did")
	}
	if again, _, _ := Read("f", []byte(src), lookup, was); fmt.Sprintf("%p", again.Config().Backends) != fmt.Sprintf("%p", was.Config().Backends) {
		t.Error("nothing changed, but the map did")
	}

	address := "10.0.0.9"
	environment := func(string) (string, bool) { return address, true }
	const withVariable = "listeners:\n  a: { vip: ':80', backend: b }\nbackends:\n  b: { endpoints: [ { address: \"${A}:80\" } ] }\n"
	first, _, err := Read("f", []byte(withVariable), environment, nil)
	if err != nil {
		t.Fatal(err)
	}
	address = "10.0.0.10"
	second, _, err := Read("f", []byte(withVariable), environment, first)
	if err != nil || second.Config().Backends["b"].Endpoints[0].Name != "10.0.0.10:80" {
		t.Errorf("%v %v", err, second.Config().Backends["b"].Endpoints[0])
	}
}

// An old file is let go, whatever of its objects lives on.
func TestReadHoldsNoOldText(t *testing.T) {
	was := document(t, services(20))
	d, _, err := Read("f", []byte(strings.Replace(services(20), "9001\" }", "9002\" }", 1)), lookup, was)
	if err != nil {
		t.Fatal(err)
	}
	at := 0
	for _, c := range d.chunks {
		if !strings.HasPrefix(d.source[at:], c.text) {
			t.Fatalf("at %d there is not %q", at, c.text)
		}
		if a, b := []byte(d.source[at:at+1]), []byte(c.text[:1]); a[0] != b[0] {
			t.Fatal("another text")
		}
		at += len(c.text)
	}
	if at != len(d.source) {
		t.Errorf("chunks have %d octets of %d", at, len(d.source))
	}
}

// What thousands of files leave behind is what one does: no old text and no old
// object is held by what did not change since.
func TestReadIsFlat(t *testing.T) {
	const services200, turns, early = 200, 1500, 10
	src := services(services200)
	d := document(t, src)
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	var before uint64
	for i := range turns {
		if i == early {
			before = heap()
		}
		// Each turn another service changes, so that in the end each is of another turn.
		old := fmt.Sprintf("  s%d: { check: { tcp: {}, interval: 5s }", i%services200)
		next, _, err := Read("f", []byte(strings.Replace(src, old, strings.Replace(old, "5s", fmt.Sprintf("%ds", i%50+6), 1), 1)), lookup, d)
		if err != nil {
			t.Fatal(err)
		}
		if d, err = next.Patch(Patch{Object: fmt.Sprintf("endpoint/s%d/a", i*7%services200), Field: "weight", Value: fmt.Sprint(i%99 + 1)}); err != nil {
			t.Fatal(err)
		}
	}
	if after := heap(); after > before+1<<20 {
		t.Errorf("%d octets after %d turns, %d after %d", after, turns, before, early)
	}
	runtime.KeepAlive(d)
}

// A file of another name, of which the same is said, is named in what is said.
func TestReadNamesItsFile(t *testing.T) {
	const src = "listeners: {}\nbackends:\n  # spare\n  b: { endpoints: [ { address: 10.0.0.1:80, weight: 0 } ] }\n"
	was, first, err := Read("one.yaml", []byte(src), nil, nil)
	if err != nil || len(first) != 2 {
		t.Fatalf("%v %v", err, first)
	}
	_, second, err := Read("two.yaml", []byte(src), nil, was)
	if err != nil || second.String() != strings.ReplaceAll(first.String(), "one.yaml", "two.yaml") {
		t.Errorf("%v\n%v\n%v", err, first, second)
	}
}
