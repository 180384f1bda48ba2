package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Everything of a file with every key, as it is after Parse: what was
// written, what was defaulted, and the versions, which must not change from
// one release to the next.
func TestGoodFile(t *testing.T) {
	c, warnings, err := Parse("good.yaml", []byte(read(t, "good.yaml")), lookup)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	fmt.Fprintf(&out, "warnings %q\n", warnings.String())
	fmt.Fprintf(&out, "node %+v\n", c.Node)
	shared := *c.Cluster
	shared.Nodes = nil
	fmt.Fprintf(&out, "cluster %+v\n", shared)
	for _, n := range c.Cluster.SortedNodes() {
		fmt.Fprintf(&out, "  %+v\n", *n)
	}
	for _, v := range c.SortedVIPs() {
		fmt.Fprintf(&out, "vip %+v\n", *v)
	}
	fmt.Fprintf(&out, "accessLog %+v\n", *c.AccessLog)
	for _, l := range c.SortedListeners() {
		fmt.Fprintf(&out, "%v\n  %s\n", l.Ref, l.Encode())
	}
	for _, b := range c.SortedBackends() {
		fmt.Fprintf(&out, "%v\n  %s\n", b.Ref, b.Encode())
		for _, e := range b.Endpoints {
			fmt.Fprintf(&out, "%v\n  %s\n", e.Ref, e.Encode())
		}
	}
	golden(t, "good.txt", out.String())
}

// The smallest file has all defaults.
func TestDefaults(t *testing.T) {
	const small = `
listeners: { a: { vip: ":80", backend: b } }
backends: { b: { endpoints: [ { address: 10.0.0.1:80 } ] } }
`
	const full = `
node: { name: node, loops: auto, connectionsMax: 0, admin: { socket: /run/holdfast/admin.sock } }
listeners:
  a:
    { vip: "[::]:80", protocol: tcp, backend: b, idleTimeout: 10m, connectionsMax: 0, backlog: 4096,
      keepalive: { idle: 10s, interval: 3s, count: 4 }, userTimeout: 20s, onChange: keep, movable: false }
backends:
  b:
    { balance: round-robin, connectTimeout: 5s, retry: { max: 2 }, source: "",
      limits: { connectionsPerEndpoint: 0, queue: 1000, queueTime: 10s },
      endpoints: [ { name: "10.0.0.1:80", address: 10.0.0.1:80 } ], proxyProtocol: none, answerTimeout: 60s, reuse: { idle: 64, time: 30s } }
`
	if d := Diff(must(t, small), must(t, full)); !d.Empty() {
		t.Errorf("defaults are not what they are said to be:\n%s", d)
	}
}

// The same for HTTP.
func TestDefaultsOfRules(t *testing.T) {
	const small = `
listeners: { a: { vip: ":80", protocol: http, routes: [ { match: { path: /a }, redirect: { path: / } }, { backend: b } ] } }
backends: { b: { endpoints: [ { address: 10.0.0.1:80 } ] } }
`
	const full = `
listeners:
  a:
    vip: ":80"
    protocol: http
    backend: b
    routes: [ { match: { path: { prefix: /a } }, redirect: { path: /, status: 307 } } ]
    http:
      forwarded: x-forwarded
      limits: { line: 8KiB, head: 16KiB, fields: 100, body: 0 }
      timeouts: { header: 10s, body: 30s, keepalive: 60s, tunnel: 1h }
backends: { b: { endpoints: [ { address: 10.0.0.1:80 } ] } }
`
	if d := Diff(must(t, small), must(t, full)); !d.Empty() {
		t.Errorf("defaults are not what they are said to be:\n%s", d)
	}
}

// Where order means nothing, and where upper case does, is not part of a
// version.
func TestVersionsOfEqualRules(t *testing.T) {
	one := must(t, `
listeners:
  a:
    vip: ":80"
    protocol: http
    routes:
      - match: { host: [ A.example, b.example ], method: [ PUT, GET ], header: { X-A: a, X-B: b }, query: { v: a, w: b } }
        backends: [ { name: b, weight: 1 }, { name: c, weight: 2 } ]
        headers: { request: { remove: [ X-C, X-D ], set: { X-E: e, X-F: f }, add: { X-G: [ g, h ] } } }
    http: { trust: [ 10.0.0.0/8, 192.0.2.0/24 ], limits: { head: 8KiB } }
backends: { b: { endpoints: [ { address: 10.0.0.1:80 } ] }, c: { endpoints: [ { address: 10.0.0.1:80 } ] } }
`)
	two := must(t, `
listeners:
  a:
    vip: ":80"
    protocol: http
    routes:
      - match: { query: { w: b, v: a }, header: { X-B: b, X-A: a }, method: [ GET, PUT ], host: [ B.EXAMPLE, a.example ] }
        backends: [ { name: c, weight: 2 }, { name: b } ]
        headers: { request: { add: { X-G: [ g, h ] }, set: { X-F: f, X-E: e }, remove: [ X-D, X-C ] } }
    http: { limits: { line: 8192B, head: 8192B }, trust: [ 192.0.2.0/24, 10.0.0.0/8 ] }
backends: { b: { endpoints: [ { address: 10.0.0.1:80 } ] }, c: { endpoints: [ { address: 10.0.0.1:80 } ] } }
`)
	if d := Diff(one, two); !d.Empty() {
		t.Errorf("equal contents differ:\n%s", d)
	}
}

// A version depends on contents, not on how they are written or ordered.
func TestVersionsOfEqualContents(t *testing.T) {
	one := must(t, `
listeners:
  a: { vip: 10.0.0.5:80, backend: b, idleTimeout: 600s }
backends:
  b: { endpoints: [ { name: x, address: "${DB2}:80" }, { name: y, address: "[2001:DB8:0::1]:80" } ] }
`)
	two := must(t, `
backends:
  b:
    endpoints:
      - { address: "[2001:db8::1]:80", name: y }
      - { address: 10.0.0.32:80, name: "x" }
    source: "${EMPTY}"
listeners:
  a: { backend: b, vip: "10.0.0.5:80", movable: "${NO:-false}", keepalive: { count: "${COUNT}" } }
`)
	if d := Diff(one, two); !d.Empty() {
		t.Errorf("equal contents differ:\n%s", d)
	}
	if one.Listeners["a"].Ref != two.Listeners["a"].Ref || one.Backends["b"].Ref != two.Backends["b"].Ref {
		t.Errorf("got %v and %v, want equal refs", one.Listeners["a"].Ref, two.Listeners["a"].Ref)
	}
}

// Neither the ends of lines nor a byte order mark change what a file says.
func TestLineEnds(t *testing.T) {
	src := read(t, "old.yaml")
	for name, other := range map[string]string{
		"CRLF": strings.ReplaceAll(src, "\n", "\r\n"),
		"BOM":  "\ufeff" + src,
	} {
		if d := Diff(must(t, src), must(t, other)); !d.Empty() {
			t.Errorf("%s:\n%s", name, d)
		}
	}
}

// Octets that no text of YAML holds are found, though YAML does not say where.
func TestBadCharacters(t *testing.T) {
	for src, want := range map[string]string{
		"node:\n  name: \u00e9\x01\n": "f:2:10: not YAML: control characters are not allowed (value: 1)",
		"node:\n  name: \xff\n":       "f:2:9: not YAML: invalid leading UTF-8 octet (value: 255)",
		"\x00":                        "f:1:1: not YAML: control characters are not allowed (value: 0)",
		"node: \ufffe\n":              "f:1:7: not YAML: control characters are not allowed (value: 65534)",
	} {
		if got := said(Parse("f", []byte(src), nil)); got != want {
			t.Errorf("%q:\n got %s\nwant %s", src, got, want)
		}
	}
}

// Each section of problems.txt is a file, "----", and all that Parse says of
// it, word by word.
func TestProblems(t *testing.T) {
	var out strings.Builder
	for _, section := range strings.Split(read(t, "problems.txt"), "=== ")[1:] {
		name, rest, _ := strings.Cut(section, "\n")
		src, want, found := strings.Cut(rest, "----\n")
		if !found {
			t.Fatalf("%s: no ----", name)
		}
		got := said(Parse("f", []byte(src), lookup))
		if want = strings.TrimSpace(want); got != want && !*rewrite {
			t.Errorf("%s\n%s----\n got %s\nwant %s", name, src, got, want)
		}
		fmt.Fprintf(&out, "=== %s\n%s----\n%s\n\n", name, src, got)
	}
	if *rewrite {
		golden(t, "problems.txt", out.String())
	}
}

// said gives errors and warnings as they are printed.
func said(c *Config, w Warnings, err error) string {
	lines := Lines(w, err)
	if c == nil {
		return lines
	}
	return strings.TrimPrefix(lines+"\nok", "\n")
}

// All faults of a file in one go, each kind of them, in the order of lines.
func TestManyProblems(t *testing.T) {
	c, w, err := Parse("holdfast.yaml", []byte(read(t, "many.yaml")), lookup)
	golden(t, "many.txt", said(c, w, err)+"\n")
	var all *Errors
	if !errors.As(err, &all) {
		t.Fatalf("got %T, want *Errors", err)
	}
	if !slices.IsSortedFunc(all.Problems, func(a, b Problem) int { return a.Line - b.Line }) {
		t.Error("not in the order of lines")
	}
}

// Bounds hold where yaml itself would not stop.
func TestLargeFiles(t *testing.T) {
	var many strings.Builder
	many.WriteString("listeners: { a: { vip: ':80', backend: b } }\nbackends:\n  b:\n    endpoints:\n")
	for i := range endpointsMax + 1 {
		fmt.Fprintf(&many, "    - { address: 10.0.%d.%d:80 }\n", i/256, i%256)
	}
	list := func(n int, item string) string {
		return "[" + strings.TrimSuffix(strings.Repeat(item+", ", n), ", ") + "]"
	}
	web := func(rest string) string {
		return "listeners: { a: { vip: ':80', protocol: http, backend: b, " + rest + " } }\nbackends: { b: { endpoints: [ { address: 10.0.0.1:80 } ] } }\n"
	}
	fields := func(n int) string {
		var all strings.Builder
		for i := range n {
			fmt.Fprintf(&all, "X-%d: %s, ", i, strings.Repeat("a", 64))
		}
		return "{" + all.String() + "}"
	}
	for name, c := range map[string]struct{ src, want string }{
		"routes":    {web("routes: " + list(routesMax+1, "{ backend: b }")), "listeners.a.routes: 1001 routes; a listener has at most 1000"},
		"networks":  {web("http: { trust: " + list(prefixesMax+1, "10.0.0.0/8") + " }"), "listeners.a.http.trust: 1025 of them; at most 1024 are taken"},
		"hosts":     {web("routes: [ { backend: b, match: { host: " + list(wordsMax+1, "a") + " } } ]"), "listeners.a.routes[0].match.host: 257 of them; at most 256 are taken"},
		"headers":   {web("routes: [ { backend: b, match: { header: " + fields(pairsMax+1) + " } } ]"), "listeners.a.routes[0].match.header: 65 of them; at most 64 are taken"},
		"shares":    {web("routes: [ { backends: " + list(sharesMax+1, "{ name: b }") + " } ]"), "listeners.a.routes[0].backends: 65 backends; a route has at most 64"},
		"edits":     {web("routes: [ { backend: b, headers: { request: { set: " + fields(editsMax+1) + " } } } ]"), "listeners.a.routes[0].headers.request: 65 fields; at most 64 are taken"},
		"fields":    {web("routes: [ { backend: b, headers: { request: { set: " + fields(editsMax) + " } } } ]"), "listeners.a.routes[0].headers.request: 4598 octets of fields; at most 4096 are taken"},
		"body":      {web("routes: [ { respond: { status: 200, body: " + strings.Repeat("a", respondMax+1) + " } } ]"), "listeners.a.routes[0].respond.body: 8193 octets; at most 8192 are taken"},
		"regex":     {web("routes: [ { backend: b, match: { path: { regex: " + strings.Repeat("a", regexMax+1) + " } } } ]"), "an expression has 1 to 1024 octets"},
		"object":    {web("routes: " + list(400, "{ respond: { status: 200, body: "+strings.Repeat("<", respondMax)+" } }")), "f:1:14: listeners.a: its form for moves has 19690246 octets; at most 16777216 are taken"},
		"steps":     {web("routes: [ { backend: b, match: { path: { regex: '(a{1000})(b{1000})' } } } ]"), "an expression of 2006 steps; at most 1000 are taken"},
		"octets":    {strings.Repeat("#", sourceMax+1), "f:1:1: the file has 4194305 octets; at most 4194304 are taken"},
		"endpoints": {many.String(), "f:5:5: backends.b.endpoints: 16385 endpoints; a backend has at most 16384"},
	} {
		got := said(Parse("f", []byte(c.src), nil))
		if _, _, err := Parse("f", []byte(c.src), nil); err != nil {
			got = err.Error() // without warnings
		}
		if !strings.Contains(got, c.want) || strings.Contains(got, "\n") {
			t.Errorf("%s: got %.300s, want %s", name, got, c.want)
		}
	}
	for _, depth := range []int{depthMax + 1, 5_000, 200_000} {
		for _, src := range []string{
			"node: " + strings.Repeat("[", depth) + strings.Repeat("]", depth),
			"node: " + strings.Repeat("{a: ", depth) + strings.Repeat("}", depth),
		} {
			_, _, err := Parse("f", []byte(src), nil)
			if err == nil || len(err.Error()) > 1000 {
				t.Errorf("%d levels: got %v", depth, err)
			}
		}
	}
}

// What Parse gives is what check and DecodeObject ask for.
func checkConfig(t *testing.T, c *Config) {
	t.Helper()
	same := func(kind Kind, ref Ref, data []byte) {
		got, err := DecodeObject(kind, ref.Name, data)
		if err != nil {
			t.Errorf("%v: %v", ref, err)
			return
		}
		if is := got.(interface{ ref() Ref }).ref(); is != ref {
			t.Errorf("%v decodes as %v", ref, is)
		}
		if _, ok := c.Lookup(ref); !ok {
			t.Errorf("%v is not found", ref)
		}
	}
	for _, l := range c.Listeners {
		same(ListenerKind, l.Ref, l.Encode())
	}
	for _, b := range c.Backends {
		same(BackendKind, b.Ref, b.Encode())
		for _, e := range b.Endpoints {
			same(EndpointKind, e.Ref, e.Encode())
		}
	}
}
