package config

import (
	"net/netip"
	"reflect"
	"regexp"
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
				Match: Match{
					Hosts: []string{"a.example.org"}, Prefix: "/a/", Methods: []string{"GET"},
					Headers: []Pair{{Name: "X-A", Value: "b"}, {Name: "X-B", Present: true}, {Name: "X-C", Regex: expression("a|b")}},
					Query:   []Pair{{Name: "v", Value: "2"}},
				},
				Backends: []Weighted{{"one", 90}, {"two", 10}},
				Rewrite:  &Rewrite{Prefix: "/b/", HasPrefix: true},
				Request:  []Edit{{RemoveField, "X-C", ""}, {SetField, "X-A", "b"}, {AddField, "X-B", "c"}},
				Response: []Edit{{SetField, "X-A", "b"}}, AnswerTimeout: time.Second,
			},
			{
				Match: Match{Exact: "/c"}, Backends: []Weighted{{"one", 1}},
				Rewrite: &Rewrite{Regex: expression("/(.)"), Replacement: "/${1}"},
			},
			{Match: Match{Regex: expression("/d.*")}, Redirect: &Redirect{Status: 308, Scheme: "http", Host: "a.example.org", Path: "/"}},
			{Respond: &Respond{Status: 404, Type: "text/plain", Body: "no\n"}},
		},
		Trust: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Forwarded: RFC7239, Via: "holdfast", RequestID: "X-Request-ID",
		LineMax: 4096, HeadMax: 8192, FieldsMax: 64, BodyMax: 1 << 20,
		HeaderTimeout: time.Second, BodyTimeout: time.Second, KeepaliveTimeout: time.Second, TunnelTimeout: time.Second,
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
	}
	expression, err := parseRegex("/x(.)")
	if err != nil {
		t.Fatal(err)
	}
	was := web()
	counted := map[string]bool{}
	// With skip leaves passed over, the next is changed and its name given; ""
	// if there are no more.
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
				case f.Type() == reflect.TypeFor[[]netip.Prefix]():
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
	for n := 0; ; n++ {
		is, skip := web(), n
		name := visit(reflect.ValueOf(is.Rules), &skip)
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
	for _, typ := range []reflect.Type{
		reflect.TypeFor[Rules](), reflect.TypeFor[Route](), reflect.TypeFor[Match](), reflect.TypeFor[Pair](), reflect.TypeFor[Weighted](),
		reflect.TypeFor[Redirect](), reflect.TypeFor[Respond](), reflect.TypeFor[Rewrite](), reflect.TypeFor[Edit](),
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
