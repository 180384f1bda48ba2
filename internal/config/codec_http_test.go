package config

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

type pattern = *regexp.Regexp

// rules gives rules in which nothing is left out.
func rules() *Rules {
	expression := func(s string) (e pattern) {
		e, err := parseRegex(s)
		if err != nil {
			panic(err)
		}
		return e
	}
	return &Rules{
		Routes: []*Route{
			{
				Name: "a",
				Match: Match{
					Hosts: []string{"a.example.org"}, Prefix: "/a/", Methods: []string{"GET"},
					Headers: []Pair{{Name: "X-A", Value: "b"}, {Name: "X-B", Present: true}, {Name: "X-C", Regex: expression("a|b")}},
					Query:   []Pair{{Name: "v", Value: "2"}},
					Sources: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
				},
				Backends: []Weighted{{"one", 90}, {"two", 10}},
				Rewrite:  &Rewrite{Prefix: "/b/", HasPrefix: true},
				Request:  []Edit{{RemoveField, "X-C", ""}, {SetField, "X-A", "b"}, {AddField, "X-B", "c"}},
				Response: []Edit{{SetField, "X-A", "b"}}, AnswerTimeout: time.Second,
				Rate: &Rate{10, time.Second, 20}, SourceRate: &SourceRate{Rate{10, time.Minute, 5}, 24, 56}, Priority: HighPriority,
			},
			{
				Match: Match{Exact: "/c"}, Backends: []Weighted{{"one", 1}},
				Rewrite: &Rewrite{Regex: expression("/(.)"), Replacement: "/${1}"}, Priority: NormalPriority,
			},
			{Match: Match{Regex: expression("/d.*")}, Redirect: &Redirect{Status: 308, Scheme: "http", Host: "a.example.org", Path: "/"}, Priority: NormalPriority},
			{Respond: &Respond{Status: 404, Type: "text/plain", Body: "no\n"}, Priority: NormalPriority},
		},
		Trust: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Forwarded: RFC7239, Via: "holdfast", RequestID: "X-Request-ID",
		LineMax: 4096, HeadMax: 8192, FieldsMax: 64, BodyMax: 1 << 20,
		HeaderTimeout: time.Second, BodyTimeout: time.Second, KeepaliveTimeout: time.Second, TunnelTimeout: time.Second,
		Rate: &Rate{1000, time.Second, 1000}, SourceRate: &SourceRate{Rate{10, time.Hour, 1}, 32, 64},
	}
}

func web() *Listener {
	l := listener()
	l.Protocol, l.Rules, l.BackendName, l.IdleTimeout = HTTP, rules(), "", 0
	l.seal("web")
	return l
}

// As TestEveryFieldCounts, for all that is below the rules of a listener.
func TestEveryFieldOfRulesCounts(t *testing.T) {
	// What a field may become, where one more, or a letter more, is not valid.
	elsewhere := map[string]any{
		"Redirect.Status": 307, "Redirect.Scheme": "https", "Match.Prefix": "/z/", "Rewrite.Prefix": "/z/",
		"Rewrite.Replacement": "/x${1}", "Pair.Present": false, "Rewrite.HasPrefix": nil,
		"Rate.Per": nil, "SourceRate.Bits4": 8, "Route.Priority": LowPriority,
	}
	was := web()
	counted := map[string]bool{}
	for n := 0; ; n++ {
		is, skip := web(), n
		name := changeLeaf(t, reflect.ValueOf(is.Rules), &skip, elsewhere)
		if name == "" {
			break
		}
		counted[name] = true
		sortEdits(is.Rules.Routes[0].Request)
		is.seal("web")
		if is.Ref == was.Ref {
			t.Errorf("%s does not change the version", name)
		}
		if Diff(&Config{Listeners: map[string]*Listener{"web": was}}, &Config{Listeners: map[string]*Listener{"web": is}}).String() == "~ listener web: \n" {
			t.Errorf("%s is not in the plan", name)
		}
		got, err := DecodeObject(ListenerKind, "web", is.Encode())
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !reflect.DeepEqual(got, is) {
			t.Errorf("%s: got %+v, want %+v", name, got, is)
		}
	}
	counted["Rewrite.HasPrefix"] = true // goes with Prefix
	counted["Rate.Per"] = true          // TestRates
	counted["SourceRate.Rate"] = true   // is what it has
	for _, typ := range []reflect.Type{
		reflect.TypeFor[Rules](), reflect.TypeFor[Route](), reflect.TypeFor[Match](), reflect.TypeFor[Pair](), reflect.TypeFor[Weighted](),
		reflect.TypeFor[Rate](), reflect.TypeFor[SourceRate](), reflect.TypeFor[Redirect](), reflect.TypeFor[Respond](), reflect.TypeFor[Rewrite](), reflect.TypeFor[Edit](),
	} {
		for i := range typ.NumField() {
			f := typ.Field(i)
			inner := f.Type
			for inner.Kind() == reflect.Pointer && inner != reflect.TypeFor[pattern]() || inner.Kind() == reflect.Slice {
				inner = inner.Elem()
			}
			nested := inner.Kind() == reflect.Struct && inner != reflect.TypeFor[netip.Prefix]()
			if name := typ.Name() + "." + f.Name; f.IsExported() && !nested && !counted[name] {
				t.Errorf("%s was not changed", name)
			}
		}
	}
}

// changeLeaf changes a field below v: the next one after skip others. It gives
// its name, or "" if there are no more. elsewhere has what a field becomes
// where one more, or a letter more, is not valid; nil leaves it as it is.
func changeLeaf(t *testing.T, v reflect.Value, skip *int, elsewhere map[string]any) string {
	expression, err := parseRegex("/x(.)")
	if err != nil {
		t.Fatal(err)
	}
	var visit func(v reflect.Value, skip *int) string
	visit = func(v reflect.Value, skip *int) string {
		switch v.Kind() {
		case reflect.Pointer:
			if v.IsNil() {
				return ""
			}
			return visit(v.Elem(), skip)
		case reflect.Slice:
			for i := range v.Len() {
				if name := visit(v.Index(i), skip); name != "" {
					return name
				}
			}
			return ""
		case reflect.Struct:
			for i := range v.NumField() {
				field, f := v.Type().Field(i), v.Field(i)
				name := v.Type().Name() + "." + field.Name
				to, said := elsewhere[name]
				switch {
				case !field.IsExported():
					continue
				case f.Type() == reflect.TypeFor[pattern]():
					if f.IsNil() {
						continue
					}
					to, said = expression, true
				case name == "Edit.Kind":
					if to, said = SetField, true; f.Uint() == uint64(SetField) {
						to = AddField
					}
				case f.Type() == reflect.TypeFor[[]string]() && f.Len() > 0:
					to, said = []string{"b.example.org"}, true
				case f.Type() == reflect.TypeFor[[]netip.Prefix]() && f.Len() > 0:
					to, said = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/9")}, true
				case f.Kind() == reflect.Pointer, f.Kind() == reflect.Slice, f.Kind() == reflect.Struct:
					if name := visit(f, skip); name != "" {
						return name
					}
					continue
				}
				if f.IsZero() && f.Type() != reflect.TypeFor[EditKind]() || said && to == nil {
					continue // of another kind of route
				}
				if *skip--; *skip >= 0 {
					continue
				}
				switch {
				case said:
					f.Set(reflect.ValueOf(to))
				case f.Kind() == reflect.String:
					f.SetString(f.String() + "x")
				case f.Kind() == reflect.Bool:
					f.SetBool(!f.Bool())
				case f.CanInt():
					f.SetInt(f.Int() + 1)
				case f.CanUint():
					f.SetUint(f.Uint() + 1)
				default:
					t.Fatalf("%s: say here what it may become", name)
				}
				return name
			}
			return ""
		}
		return ""
	}
	return visit(v, skip)
}

// What comes from elsewhere is held to all that a file is held to.
func TestDecodeObjectRefusesRules(t *testing.T) {
	l := string(canonical(web().spec()))
	b := string(canonical(backend().spec()))
	if got, err := DecodeObject(ListenerKind, "web", web().Encode()); err != nil || !reflect.DeepEqual(got, web()) {
		t.Fatalf("got %+v, %v", got, err)
	}
	for _, c := range []struct{ old, new, want string }{
		{`"protocol":"http"`, `"protocol":"tcp"`, "canonical"},
		{`"protocol":"http",`, ``, "routes: are not for tcp"},
		{`"protocol":"http"`, `"protocol":"h2"`, "protocol: \"h2\" is not one of tcp, http"},
		{l[strings.Index(l, `,"rules"`):], `}`, "routes: there is none"},
		{`"backend":""`, `"backend":"one"`, "are for tcp"},
		{`"idleTimeoutNanos":0`, `"idleTimeoutNanos":1000000000`, "are for tcp"},
		{`"routes":[`, `"colour":1,"routes":[`, "unknown field"},
		{l[strings.Index(l, `[{"hosts"`):strings.Index(l, `,"trust"`)], `[]`, "routes: 0; must be 1 to 1001"},
		{l[strings.Index(l, `[{"hosts"`):strings.Index(l, `,"trust"`)], `[` + strings.Repeat(`{"respond":{"status":200,"type":"","body":""}},`, 1001) +
			`{"respond":{"status":200,"type":"","body":""}}]`, "routes: 1002; must be 1 to 1001"},
		{`{"respond":{`, `{"redirect":null,"respond":{`, "canonical"},
		{`{"respond":{`, `{"hosts":[],"respond":{`, "canonical"},
		{`{"respond":{`, `{"backends":[{"name":"one","weight":1}],"respond":{`, "routes[3].backends: does 2 things"},
		{`{"respond":{"status":404,"type":"text/plain","body":"no\n"}}`, `{}`, "routes[3].backends: does 0 things"},
		{`"a.example.org"]`, `"A.example.org"]`, `match: host: "A.example.org": must be "a.example.org"`},
		{`"a.example.org"]`, `"b","a"]`, `"a": is there twice, or not in order`},
		{`"a.example.org"]`, `"a","a"]`, `"a": is there twice, or not in order`},
		{`"prefix":"/a/"`, `"prefix":"a/"`, "path: a path begins with /"},
		{`"prefix":"/a/"`, `"exact":"/a","prefix":"/a/"`, "path: is matched in two ways"},
		{`"prefix":"/a/"`, `"regex":"/a/"`, "rewrite.prefix: replaces what match.path names"},
		{`"prefix":"/b/","hasPrefix":true`, `"prefix":"/b/","hasPrefix":false`, "rewrite: needs one of prefix and regex"},
		{`"prefix":"/b/","hasPrefix":true,"regex":""`, `"prefix":"/b/","hasPrefix":true,"regex":"a"`, "rewrite: needs one of prefix and regex"},
		{`"prefix":"","hasPrefix":false`, `"prefix":"/x","hasPrefix":false`, "rewrite: prefix: there is regex already"},
		{`"prefix":"","hasPrefix":false,"regex":"/(.)"`, `"prefix":"","hasPrefix":false,"regex":"("`, "routes[1].rewrite.regex: not an expression"},
		{`"/${1}"`, `"/${2}"`, "the expression has 1 groups"},
		{`"/${1}"`, `"/$1"`, "$ is followed by"},
		{`"/${1}"`, `"/${1}?"`, "a path ends before"},
		{`"regex":"/d.*"`, `"regex":"/d.*("`, "routes[2].match.path: not an expression"},
		{`"methods":["GET"]`, `"methods":["G T"]`, "match: method"},
		{`"name":"X-B","value":"","present":true`, `"name":"X-B","value":"b","present":true`, "match: header: X-B is matched in two ways"},
		{`"name":"X-C","value":"","regex":"a|b"`, `"name":"X-C","value":"","regex":"a|b)"`, "match.header: \"X-C\": not an expression"},
		{`"name":"X-B","value":"","present":true`, `"name":"x-a","value":"","present":true`, "x-a is there twice, or not in order"},
		{`"name":"X-A","value":"b"},{"name":"X-B"`, `"name":"X A","value":"b"},{"name":"X-B"`, "header: \"X A\": not a token"},
		{`"query":[{"name":"v"`, `"query":[{"name":"v&"`, "query: v&: not a name of a query"},
		{`{"name":"one","weight":90}`, `{"name":"two","weight":90}`, "two: is there twice, or not in order"},
		{`{"name":"one","weight":90}`, `{"name":"o e","weight":90}`, "not a name"},
		{`{"name":"one","weight":90}`, `{"name":"one","weight":-1}`, "one: weight must be 0 to 1000"},
		{`"backends":[{"name":"one","weight":1}]`, `"backends":[{"name":"one","weight":0}]`, "every weight is 0"},
		{`"status":308`, `"status":304`, "redirect: status: must be 301"},
		{`"scheme":"http"`, `"scheme":"ftp"`, "redirect: scheme"},
		{`"host":"a.example.org"`, `"host":"A.example.org"`, "redirect: host"},
		{`"scheme":"http","host":"a.example.org","path":"/"`, `"scheme":"","host":"","path":""`, "leads to where the request was"},
		{`"status":404`, `"status":199`, "respond: status: must be 200 to 599"},
		{`"status":404`, `"status":204`, "respond: body: a response with status 204 has none"},
		{`"type":"text/plain"`, `"type":""`, "respond: type: there is none of the body"},
		{`{"kind":"remove","name":"X-C","value":""}`, `{"kind":"remove","name":"X-C","value":"a"}`, "X-C: is removed, so it has no value"},
		{`{"kind":"remove","name":"X-C","value":""}`, `{"kind":"remove","name":"Host","value":""}`, "Host: a request has exactly one"},
		{`{"kind":"remove","name":"X-C","value":""}`, `{"kind":"remove","name":"x-a","value":""}`, "X-A is removed and comes again"},
		{`{"kind":"remove","name":"X-C","value":""}`, `{"kind":"set","name":"X-C","value":""}`, "X-A: is not in order"},
		{`{"kind":"add"`, `{"kind":"append"`, "headers.request: \"append\" is not one of set, add, remove"},
		{`{"kind":"add","name":"X-B"`, `{"kind":"add","name":"Connection"`, "Connection: says how messages are passed on"},
		{`"answerTimeoutNanos":1000000000`, `"answerTimeoutNanos":1`, "answerTimeout: must be 1ms to 24h"},
		{`{"respond":{`, `{"answerTimeoutNanos":1000000000,"respond":{`, "canonical"},
		{`"body":"no\n"}}`, `"body":"no\n"},"answerTimeoutNanos":1000000000}`, "answerTimeout: is for what is passed on"},
		{`"body":"no\n"}}`, `"body":"no\n"},"response":[{"kind":"set","name":"A","value":"b"}]}`, "headers.response: is for what is passed on"},
		{`"trust":["10.0.0.0/8"]`, `"trust":["10.0.0.1/8"]`, "http.trust: has bits beyond its length"},
		{`"trust":["10.0.0.0/8"]`, `"trust":["10.0.0.0/8","10.0.0.0/8"]`, "http.trust: 10.0.0.0/8: is there twice"},
		{`"trust":["10.0.0.0/8"]`, `"trust":[""]`, "http.trust: not a network"},
		{`"forwarded":"rfc7239"`, `"forwarded":"some"`, "http.forwarded"},
		{`"via":"holdfast"`, `"via":"a b"`, "http.via: not a token"},
		{`"requestID":"X-Request-ID"`, `"requestID":"Host"`, "http.requestID"},
		{`"lineMax":4096`, `"lineMax":8193`, "http.limits.line: 8193B is more than the head's 8KiB"},
		{`"lineMax":4096`, `"lineMax":-1`, "http.limits.line: must be 256B to 16KiB"},
		{`"headMax":8192`, `"headMax":65536`, "http.limits.head"},
		{`"fieldsMax":64`, `"fieldsMax":129`, "http.limits.fields"},
		{`"bodyMax":1048576`, `"bodyMax":18446744073709551615`, "http.limits.body"},
		{`"headerTimeoutNanos":1000000000`, `"headerTimeoutNanos":0`, "http.timeouts.header"},
		{`"bodyTimeoutNanos":1000000000`, `"bodyTimeoutNanos":0`, "http.timeouts.body"},
		{`"keepaliveTimeoutNanos":1000000000`, `"keepaliveTimeoutNanos":-1`, "http.timeouts.keepalive"},
		{`"tunnelTimeoutNanos":1000000000`, `"tunnelTimeoutNanos":-1`, "http.timeouts.tunnel"},
	} {
		if !strings.Contains(l, c.old) {
			t.Fatalf("no %s in %s", c.old, l)
		}
		refused(t, ListenerKind, "web", strings.Replace(l, c.old, c.new, 1), c.want)
	}
	for _, c := range []struct{ end, want string }{
		{`,"proxyHeader":"none"}`, "canonical"},
		{`,"proxyHeader":"v3"}`, "proxyHeader"},
		{`,"proxyHeader":"v2"}`, "reuse.idle: 64, but proxyProtocol"},
		{`,"answerTimeoutNanos":60000000000}`, "canonical"},
		{`,"answerTimeoutNanos":0}`, "answerTimeout: must be"},
		{`,"answerTimeoutNanos":null}`, "canonical"},
		{`,"idleMax":64}`, "canonical"},
		{`,"idleMax":-1}`, "reuse.idle: must be"},
		{`,"idleTimeNanos":30000000000}`, "canonical"},
		{`,"idleTimeNanos":-1}`, "reuse.time: must be"},
	} {
		refused(t, BackendKind, "primary", strings.TrimSuffix(b, "}")+c.end, c.want)
	}
	tcp := strings.TrimSuffix(string(canonical(listener().spec())), "}")
	refused(t, ListenerKind, "pg", tcp+`,"proxyFrom":["10.0.0.1/8"]}`, "proxyProtocol.from: has bits")
	refused(t, ListenerKind, "pg", tcp+`,"proxyFrom":[]}`, "canonical")
}

// refused wants an object with the right version to be refused nevertheless.
func refused(t *testing.T, kind Kind, name, object, want string) {
	t.Helper()
	got, err := DecodeObject(kind, name, encode(json.RawMessage(object)))
	if err == nil {
		t.Errorf("%s: got %+v, want %q", object, got, want)
	} else if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: got %v, want %q", object, err, want)
	}
}

// An expression matches from begin to end, whatever is in it, and goes
// through the canonical form as it was written.
func TestRegexIsAnchored(t *testing.T) {
	for _, c := range []struct{ expression, in, not string }{
		{"a", "a", "ab"},
		{"a|b", "b", "ab"},
		{"^a$", "a", "aa"},
		{"(?m)^a$", "a", "b\na"},
		{"a|^b", "b", "bc"},
		{"(?i)a", "A", "b"},
		{`\Qa.b\E`, "a.b", "acb"},
		{"/old/(.*)", "/old/", "/new/old/x"},
	} {
		e, err := parseRegex(c.expression)
		if err != nil {
			t.Errorf("%s: %v", c.expression, err)
			continue
		}
		if !e.MatchString(c.in) || e.MatchString(c.not) {
			t.Errorf("%s: matches %q: %v, %q: %v", c.expression, c.in, e.MatchString(c.in), c.not, e.MatchString(c.not))
		}
		if got := regexText(e); got != c.expression {
			t.Errorf("%s: got %s", c.expression, got)
		}
	}
}

// What a replacement of the file means, by the package that applies it.
func TestReplacement(t *testing.T) {
	e, err := parseRegex("/old/(.*)/(.*)")
	if err != nil {
		t.Fatal(err)
	}
	for replacement, want := range map[string]string{
		"/new/$1/$2": "/new/a/b",
		"/$2x$1":     "/bxa",
		"/$11":       "/a1",
		"/is$0":      "/is/old/a/b",
		"/$$1":       "/$1",
		"/x":         "/x",
	} {
		form, err := parseReplacement(replacement, e)
		if err != nil {
			t.Errorf("%s: %v", replacement, err)
			continue
		}
		if got := e.ReplaceAllString("/old/a/b", form); got != want {
			t.Errorf("%s: got %s, want %s", replacement, got, want)
		}
		if err := checkReplacement(form, e); err != nil {
			t.Errorf("%s: %v", form, err)
		}
	}
}

// Names are all backends, each once; a weight of 0 counts as a use.
func TestNamesAndWeights(t *testing.T) {
	c := must(t, read(t, "good.yaml"))
	for name, want := range map[string]string{"web": "api web", "plain": "v6", "pg": "primary"} {
		if got := strings.Join(c.Listeners[name].Names(), " "); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
	routes := c.Listeners["web"].Rules.Routes
	if got := routes[0].Weight(); got != 100 {
		t.Errorf("got a weight of %d, want 100", got)
	}
	for _, r := range routes {
		if r.Respond != nil && r.Weight() != 0 {
			t.Errorf("a route that answers by itself has a weight of %d", r.Weight())
		}
	}
}

func TestSizeText(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0", 1: "1B", 1023: "1023B", 1024: "1KiB", 1025: "1025B", 1536: "1536B", 10 << 20: "10MiB", 3 << 30: "3GiB", 1 << 50: "1024TiB",
	} {
		if got := sizeText(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
		if back, err := parseSize(want); err != nil || back != n {
			t.Errorf("%s: read back as %d, %v", want, back, err)
		}
	}
}
