package config

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// What a key needs beside it, so that a file with it is right: an assignment
// for each, or, after a dash, a key that must not be there. It holds for all
// that is below the key as well.
var needs = map[string][]string{
	"nodes":                          {"nodes=" + someNodes, "cluster=" + someIdentity},
	"vips":                           {"nodes=" + someNodes, "cluster=" + someIdentity, "vips=" + someVIPs},
	"backends.NAME.endpoints[].node": {"nodes={ n1: { address: 192.168.7.1:7443, device: eth0, sourcePorts: 20000-29999 } }", "node={ name: n1 }", "cluster=" + someIdentity},
	"node.admin.api":                 {"node.admin.api=" + someAPI},
	"listeners.NAME.accessLog":       {"accessLog={}"}, "listeners.NAME.http": {"listeners.NAME.protocol=http"},
	"listeners.NAME.routes":                       {"listeners.NAME.protocol=http", "listeners.NAME.routes[].backend=b"},
	"listeners.NAME.routes[].backends":            {"-listeners.NAME.routes[].backend", "listeners.NAME.routes[].backends[].name=b"},
	"listeners.NAME.routes[].redirect":            {"-listeners.NAME.routes[].backend", "listeners.NAME.routes[].redirect.path=/x"},
	"listeners.NAME.routes[].respond":             {"-listeners.NAME.routes[].backend", "listeners.NAME.routes[].respond.status=200"},
	"listeners.NAME.routes[].rewrite.prefix":      {"listeners.NAME.routes[].match.path=/a"},
	"listeners.NAME.routes[].rewrite":             {"listeners.NAME.routes[].match.path=/a"},
	"listeners.NAME.routes[].rewrite.regex":       {"listeners.NAME.routes[].rewrite.replacement=/x"},
	"listeners.NAME.routes[].rewrite.replacement": {"listeners.NAME.routes[].rewrite.regex=/x"},
	"listeners.NAME.movable":                      {"nodes=" + someNodes, "cluster=" + someIdentity, "backends.NAME.source=vip"},
	"listeners.NAME.proxyProtocol":                {"listeners.NAME.proxyProtocol.from=10.0.0.0/8"},
	"backends.NAME.answerTimeout":                 {"listeners.NAME.protocol=http"},
	"backends.NAME.hash":                          {"backends.NAME.balance=maglev", "listeners.NAME.protocol=http"},
	"backends.NAME.hash.name":                     {"backends.NAME.hash.by=header"},
	"backends.NAME.preferLocal":                   {"node.zone=a"},
	"backends.NAME.retry.on":                      {"listeners.NAME.protocol=http"},
	"backends.NAME.fallback.backend":              {"backends=" + `{ b: { endpoints: [ { address: 10.0.0.1:80 } ] }, spare: { endpoints: [ { address: 10.0.0.2:80 } ] } }`},
	"backends.NAME.fallback.respond":              {"listeners.NAME.protocol=http", "backends.NAME.fallback.respond.status=503"},
	"backends.NAME.endpoints[].drop":              {"-backends.NAME.endpoints[].address"},
	"backends.NAME.endpoints[].check":             {"backends.NAME.check={}", "backends.NAME.endpoints[].check.port=9"},
	"backends.NAME.sticky.cookie":                 {"listeners.NAME.protocol=http", "backends.NAME.sticky.cookie.name=hf"},
	"backends.NAME.sticky.cookie.sameSite":        {"backends.NAME.sticky.cookie.secure=true"},
	"backends.NAME.sticky.header":                 {"listeners.NAME.protocol=http", "backends.NAME.sticky.header.name=X-A"},
	"backends.NAME.check.agent":                   {"backends.NAME.check.agent.port=9777", "backends.NAME.check.tcp={}"},
	"backends.NAME.eject.consecutive":             {"backends.NAME.eject.rate=50%"},
	"backends.NAME.eject.time":                    {"backends.NAME.eject.timeMax=24h"},
	"backends.NAME.eject.timeMax":                 {"backends.NAME.eject.time=100ms"},
	"listeners.NAME.rate":                         {"listeners.NAME.rate.connections=1/s"},
	"listeners.NAME.sourceRate":                   {"listeners.NAME.sourceRate.connections=1/s"},
	"listeners.NAME.http.rate":                    {"listeners.NAME.http.rate.requests=1/s"},
	"listeners.NAME.http.sourceRate":              {"listeners.NAME.http.sourceRate.requests=1/s"},
	"listeners.NAME.routes[].rate":                {"listeners.NAME.routes[].rate.requests=1/s"},
	"listeners.NAME.routes[].sourceRate":          {"listeners.NAME.routes[].sourceRate.requests=1/s"},
	"listeners.NAME.http.limits.line":             {"listeners.NAME.http.limits.head=16KiB"},
	"cluster":                                     {"nodes=" + someNodes, "cluster=" + someIdentity},
	"listeners.NAME.routes[].backends[].weight":   {"listeners.NAME.routes[].backends=[ { name: b }, { name: b2 } ]", "backends=" + `{ b: { endpoints: [ { address: 10.0.0.1:80 } ] }, b2: { endpoints: [ { address: 10.0.0.2:80 } ] } }`},
	"listeners.NAME.http.limits.head":             {"listeners.NAME.http.limits.line=256B"},
}

// What a key must not have beside it if its default is asked for.
var defaultNeeds = map[string][]string{
	"listeners.NAME.http.limits.line": {"-listeners.NAME.http.limits.head"},
	"listeners.NAME.http.limits.head": {"-listeners.NAME.http.limits.line"},
	"backends.NAME.eject.time":        {"-backends.NAME.eject.timeMax"},
	"backends.NAME.eject.timeMax":     {"-backends.NAME.eject.time"},
}

const someAPI = `{ listen: 192.168.7.1:7444, certificate: /a, key: /b, trust: /c, roles: { anna: admin } }`

const (
	someIdentity = `{ identity: { certificate: /a, key: /b, trust: /c } }`
	someNodes    = `{ node: { address: 192.168.7.1:7443, device: eth0, sourcePorts: 20000-29999 }, n1: { address: 192.168.7.2:7443, device: eth0, sourcePorts: 40000-49999 } }`
	someVIPs     = `{ v: { address: 192.0.2.10/24, home: node } }`
)

// file is a document that a test builds key by key.
type file struct {
	t    *testing.T
	root *yaml.Node
}

func parseYAML(t *testing.T, src string) *yaml.Node {
	t.Helper()
	var document yaml.Node
	if err := yaml.Unmarshal([]byte(src), &document); err != nil {
		t.Fatalf("%s: %v", src, err)
	}
	return document.Content[0]
}

func newFile(t *testing.T) *file {
	return &file{t, parseYAML(t, `
listeners: { l: { vip: 10.0.0.5:80, backend: b } }
backends: { b: { endpoints: [ { address: 10.0.0.1:80 } ] } }
`)}
}

// fileFor builds a file in which the key at path may stand.
func fileFor(t *testing.T, path string) *file {
	f := newFile(t)
	parts := strings.Split(path, ".")
	for i := range parts {
		// The needs of a list are those of its items.
		prefix := strings.Join(parts[:i+1], ".")
		f.apply(needs[strings.TrimSuffix(prefix, "[]")])
	}
	return f
}

func (f *file) apply(all []string) {
	for _, need := range all {
		if path, gone := strings.CutPrefix(need, "-"); gone {
			f.remove(path)
			continue
		}
		path, value, _ := strings.Cut(need, "=")
		f.set(path, value)
	}
}

// names are what stands for NAME.
var standing = map[string]string{"listeners": "l", "backends": "b", "nodes": "node", "vips": "v"}

// walk goes to the mapping that has the last key of path. It makes what is
// missing if make says so, else it gives nil.
func (f *file) walk(path string, make bool) (*yaml.Node, string) {
	parts := strings.Split(path, ".")
	n, last := f.root, ""
	for i, part := range parts {
		if part == "NAME" {
			part = standing[last]
		}
		last = part
		if i == len(parts)-1 {
			return n, part
		}
		part, list := strings.CutSuffix(part, "[]")
		next := child(n, part)
		if next == nil || next.Kind == yaml.ScalarNode {
			if !make {
				return nil, ""
			}
			next = &yaml.Node{Kind: yaml.MappingNode}
			if list {
				next.Kind = yaml.SequenceNode
			}
			put(n, part, next)
		}
		if list {
			if len(next.Content) == 0 {
				next.Content = []*yaml.Node{{Kind: yaml.MappingNode}}
			}
			next = next.Content[0]
		}
		n = next
	}
	return n, last
}

func child(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

func put(n *yaml.Node, key string, value *yaml.Node) {
	for i := 0; i < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			n.Content[i+1] = value
			return
		}
	}
	n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: key}, value)
}

func (f *file) set(path, value string) {
	f.t.Helper()
	n, key := f.walk(path, true)
	put(n, key, parseYAML(f.t, value))
}

func (f *file) remove(path string) {
	n, key := f.walk(path, false)
	if n == nil {
		return
	}
	for i := 0; i < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			n.Content = slices.Delete(n.Content, i, i+2)
			return
		}
	}
}

func (f *file) text() string {
	out, err := yaml.Marshal(f.root)
	if err != nil {
		f.t.Fatal(err)
	}
	return string(out)
}

func (f *file) parse() error {
	_, _, err := Parse("f", []byte(f.text()), lookup)
	return err
}

// inFile gives path as messages have it.
func inFile(path string) string {
	path = strings.ReplaceAll(path, "listeners.NAME", "listeners.l")
	path = strings.ReplaceAll(path, "backends.NAME", "backends.b")
	path = strings.ReplaceAll(path, "nodes.NAME", "nodes.node")
	path = strings.ReplaceAll(path, "vips.NAME", "vips.v")
	return strings.ReplaceAll(path, "[]", "[0]")
}

// Each example of the table is taken, and the ends of its bounds; what is beyond
// them is refused at that key, and so is what has another form: the key is read.
func TestTableAndValues(t *testing.T) {
	for _, k := range keys {
		if k.path == "listeners" || k.path == "backends" {
			continue
		}
		for _, value := range append([]string{k.form.example}, k.form.good...) {
			f := fileFor(t, k.path)
			if value == "{}" {
				continue // its keys show it
			}
			f.set(k.path, value)
			if err := f.parse(); err != nil {
				t.Errorf("%s: %s: %v\n%s", k.path, value, err, f.text())
			}
		}
		wrong := append([]string{"{ qqq: 1 }"}, k.form.bad...)
		if k.form.schema["type"] == "object" || k.form.list && k.form.schema == nil {
			wrong = []string{"qqq"}
		} else if k.form.schema == nil {
			wrong = []string{"qqq", "[ 1 ]"}
		}
		for _, value := range wrong {
			f := fileFor(t, k.path)
			f.set(k.path, value)
			if err := f.parse(); err == nil || !strings.Contains(err.Error(), inFile(k.path)) {
				t.Errorf("%s: %s: got %v\n%s", k.path, value, err, f.text())
			}
		}
	}
}

// Each default of the table is what is shown of a file without the key; what
// has none is not shown. What must be given is missed.
func TestTableAndDefaults(t *testing.T) {
	for _, k := range keys {
		if k.form.schema == nil && !k.required() {
			continue
		}
		f := fileFor(t, k.path)
		f.apply(defaultNeeds[k.path])
		f.walk(k.path, true) // the section is there, and perhaps empty
		f.remove(k.path)
		if k.required() {
			name := k.path[strings.LastIndexByte(k.path, '.')+1:]
			if err := f.parse(); err == nil || !strings.Contains(err.Error(), name+" is missing") {
				t.Errorf("%s: without it: %v\n%s", k.path, err, f.text())
			}
			continue
		}
		if k.path == "backends.NAME.eject" {
			continue // its keys show it
		}
		shown, _, err := Show("f", []byte(f.text()), lookup)
		if err != nil {
			if k.otherwise == "" {
				continue // something else is needed then
			}
			t.Errorf("%s: without it: %v\n%s", k.path, err, f.text())
			continue
		}
		got, comment := "", ""
		of := file{t, parseYAML(t, shown)}
		if n, key := of.walk(k.path, false); n != nil {
			if v := child(n, key); v != nil {
				got, comment = v.Value, v.LineComment
				if v.Kind == yaml.SequenceNode {
					got = "["
					for _, item := range v.Content {
						got += item.Value + ", "
					}
					got = strings.TrimSuffix(got, ", ") + "]"
				}
			}
		}
		if k.otherwise != "" && (got != k.otherwise || comment != "# default") {
			t.Errorf("%s: got %q %q, want %q\n%s", k.path, got, comment, k.otherwise, shown)
		}
		if k.otherwise == "" && got != "" && k.absent == "" {
			t.Errorf("%s: has the default %q", k.path, got)
		}
	}
}

// Each section has the keys of the table, and no others.
func TestTableAndKeys(t *testing.T) {
	var visit func(b *branch, path string)
	visit = func(b *branch, path string) {
		if len(b.below) == 0 {
			return
		}
		if !b.single {
			f := newFile(t)
			const wrong = "qqqqqqqqqqqqqqqq"
			at := path
			if path != "" {
				f = fileFor(t, path)
				if b.key != nil && b.form.list {
					at += "[]"
				}
				at += "."
			}
			f.set(at+wrong, "1")
			var want []string
			for _, c := range b.below {
				want = append(want, c.name)
			}
			slices.Sort(want)
			message := fmt.Sprintf("%s%s: unknown key; known here: %s", inFile(at), wrong, strings.Join(want, ", "))
			if err := f.parse(); err == nil || !strings.Contains(err.Error()+"\n", message+"\n") {
				t.Errorf("%s: got %v, want %s\n%s", path, err, message, f.text())
			}
		}
		for _, c := range b.below {
			below := c.name
			if path != "" {
				below = path + "." + c.name
				if b.key != nil && b.form.list {
					below = path + "[]." + c.name
				}
			}
			visit(c, below)
		}
	}
	visit(tree(), "")
}

const (
	referenceBegin = "<!-- written by go test ./internal/config -rewrite: begin -->\n"
	referenceEnd   = "<!-- end -->\n"
)

// The document for operators has the tables as they are.
func TestReferenceIsCurrent(t *testing.T) {
	const file = "../../docs/configuration.md"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), referenceBegin)
	was, after, closed := strings.Cut(rest, referenceEnd)
	if !found || !closed {
		t.Fatalf("%s has no place for the reference", file)
	}
	if was == "\n"+Reference()+"\n" {
		return
	}
	if !*rewrite {
		t.Fatalf("%s is not what the table says; run this test with -rewrite", file)
	}
	if err := os.WriteFile(file, []byte(before+referenceBegin+"\n"+Reference()+"\n"+referenceEnd+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
