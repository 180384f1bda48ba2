package config

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

func listener() *Listener {
	l := &Listener{
		VIP: netip.MustParseAddrPort("10.0.0.5:5432"), BackendName: "primary",
		IdleTimeout: 10 * time.Minute, Backlog: 4096,
		KeepaliveIdle: 10 * time.Second, KeepaliveInterval: 3 * time.Second, KeepaliveCount: 4,
		UserTimeout: 20 * time.Second,
	}
	l.seal("pg")
	return l
}

func backend() *Backend {
	b := &Backend{
		ConnectTimeout: 5 * time.Second, RetryMax: 2, QueueMax: 1000, QueueTime: 10 * time.Second,
		AnswerTimeout: 60 * time.Second, IdleMax: 64, IdleTime: 30 * time.Second,
		Endpoints: []*Endpoint{endpoint("db1"), endpoint("db2")},
	}
	b.seal("primary")
	return b
}

func endpoint(name string) *Endpoint {
	e := &Endpoint{Backend: "primary", Name: name, Addr: netip.MustParseAddrPort("10.0.0.31:5432"), Weight: 100}
	e.seal()
	return e
}

// These versions are in flows that releases hand to each other. If one of
// them changes, a release no longer knows the objects of the one before.
func TestVersionsAreStable(t *testing.T) {
	for _, c := range []struct {
		ref  Ref
		want string
	}{
		{listener().Ref, "listener/pg@b50c6c493533261e"},
		{backend().Ref, "backend/primary@1d0b1936ff27c021"},
		{endpoint("db1").Ref, "endpoint/primary/db1@50cda74dca7fb713"},
	} {
		if got := c.ref.String(); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}

// A field that the canonical form forgets would let two objects share a
// version, and one that Diff forgets would change without a word. So each
// field is changed by reflection, whoever adds it.
func TestEveryFieldCounts(t *testing.T) {
	elsewhere := map[string]any{ // what a field of that name may become
		"VIP":       netip.MustParseAddrPort("10.0.0.6:5432"),
		"Addr":      netip.MustParseAddrPort("10.0.0.32:5432"),
		"Source":    netip.MustParseAddr("10.0.0.7"),
		"Unix":      "/run/app.sock",
		"Endpoints": []*Endpoint{endpoint("db1")},
		"ProxyFrom": []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		"Rules":     rules(),
		"Allow":     []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		"Deny":      []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},

		"ConnectionRate": &Rate{10, time.Second, 1}, "SourceRate": &SourceRate{Rate{10, time.Minute, 1}, 32, 64},
		"Retry": Retry{Reset: true}, "Hash": Hash{Kind: HashPath}, "Sticky": sticky(StickyCookie), "Check": check(CheckHTTP),
		"Eject": eject(), "Breaker": breaker(), "Fallback": &Fallback{Backend: "other"}, "Host": "app.example.org", "Port": uint16(80),
	}
	change := func(v reflect.Value, name string) {
		if to, ok := elsewhere[name]; ok {
			v.Set(reflect.ValueOf(to))
			return
		}
		switch v.Kind() {
		case reflect.Bool:
			v.SetBool(!v.Bool())
		case reflect.Int, reflect.Int64:
			step := int64(1)
			if v.Type() == reflect.TypeFor[time.Duration]() {
				step = int64(time.Second)
			}
			v.SetInt(v.Int() + step)
		case reflect.Uint8, reflect.Uint16:
			v.SetUint(v.Uint() + 1)
		case reflect.String:
			v.SetString(v.String() + "2")
		default:
			t.Fatalf("field %s: say here what a %v may become", name, v.Type())
		}
	}
	// Fields that cannot change alone, with what changes beside them.
	beside := map[string]func(any){
		"Listener.DualStack": func(o any) { o.(*Listener).VIP = netip.MustParseAddrPort("[::]:5432") },
		"Listener.Protocol":  func(o any) { l := o.(*Listener); l.Rules, l.BackendName, l.IdleTimeout = rules(), "", 0 },
		"Listener.Rules":     func(o any) { l := o.(*Listener); l.Protocol, l.BackendName, l.IdleTimeout = HTTP, "", 0 },
		// A connection that says who its client is, is not kept.
		"Backend.ProxyHeader": func(o any) { o.(*Backend).IdleMax = 0 },
		"Backend.Hash":        func(o any) { o.(*Backend).Balance = Maglev },
		"Endpoint.Host":       func(o any) { e := o.(*Endpoint); e.Addr, e.Port = netip.AddrPort{}, 80 },
		"Endpoint.Port":       func(o any) { e := o.(*Endpoint); e.Addr, e.Host = netip.AddrPort{}, "app.example.org" },
		"Endpoint.Drop":       func(o any) { o.(*Endpoint).Addr = netip.AddrPort{} },
		"Endpoint.Unix":       func(o any) { o.(*Endpoint).Addr = netip.AddrPort{} },
	}
	// Fields that are part of the name: another one is another object.
	named := map[string]bool{"Endpoint.Backend": true, "Endpoint.Name": true}

	each := func(make func() any, seal func(any), object func(any) *Config, kind Kind) {
		typ := reflect.TypeOf(make()).Elem()
		for i := range typ.NumField() {
			name := typ.Field(i).Name
			full := typ.Name() + "." + name
			if name == "Ref" {
				continue
			}
			was, is := make(), make()
			change(reflect.ValueOf(is).Elem().Field(i), name)
			if f := beside[full]; f != nil {
				f(is)
			}
			seal(is)
			a, b := was.(interface{ ref() Ref }).ref(), is.(interface{ ref() Ref }).ref()
			if a.Version == b.Version {
				t.Errorf("%s does not change the version", full)
			}
			if Diff(object(was), object(is)).String() == "" {
				t.Errorf("%s is not in the plan", full)
			}
			if a.Name != b.Name && !named[full] {
				t.Errorf("%s changes the name", full)
			}
			got, err := DecodeObject(kind, b.Name, is.(interface{ Encode() []byte }).Encode())
			if err != nil {
				t.Errorf("%s: %v", full, err)
			} else if !reflect.DeepEqual(got, is) {
				t.Errorf("%s: got %+v, want %+v", full, got, is)
			}
		}
	}
	each(func() any { return listener() }, func(o any) { o.(*Listener).seal("pg") },
		func(o any) *Config { return &Config{Listeners: map[string]*Listener{"pg": o.(*Listener)}} }, ListenerKind)
	each(func() any { return backend() }, func(o any) { o.(*Backend).seal("primary") },
		func(o any) *Config { return &Config{Backends: map[string]*Backend{"primary": o.(*Backend)}} }, BackendKind)
	each(func() any { return endpoint("db1") }, func(o any) { o.(*Endpoint).seal() },
		func(o any) *Config {
			b := backend()
			b.Endpoints = []*Endpoint{o.(*Endpoint)}
			b.seal("primary")
			return &Config{Backends: map[string]*Backend{"primary": b}}
		}, EndpointKind)
}

// The sections that are no objects have to be told apart as well.
func TestEveryFieldOfNodeAndClusterIsInThePlan(t *testing.T) {
	base := must(t, read(t, "old.yaml"))
	for i := range reflect.TypeFor[Node]().NumField() {
		next := *base
		switch f := reflect.ValueOf(&next.Node).Elem().Field(i); f.Interface().(type) {
		case string:
			f.SetString("/other")
		case int:
			f.SetInt(7)
		case uint64:
			f.SetUint(7)
		case netip.AddrPort:
			f.Set(reflect.ValueOf(netip.MustParseAddrPort("10.9.9.9:9")))
		case bool:
			f.SetBool(true)
		case *API:
			f.Set(reflect.ValueOf(&API{Roles: map[string]Role{"a": OperateRole}}))
		case []netip.AddrPort:
			f.Set(reflect.ValueOf([]netip.AddrPort{netip.MustParseAddrPort("10.9.9.9:9")}))
		default:
			t.Fatalf("say here what a %T may become", f.Interface())
		}
		if Diff(base, &next).String() == "" || strings.HasSuffix(Diff(base, &next).String(), ": \n") {
			t.Errorf("Node.%s is not in the plan", reflect.TypeFor[Node]().Field(i).Name)
		}
	}
	for i := range reflect.TypeFor[Cluster]().NumField() {
		next, cluster := *base, *base.Cluster
		next.Cluster = &cluster
		switch f := reflect.ValueOf(&cluster).Elem().Field(i); f.Interface().(type) {
		case string:
			f.SetString("other")
		case uint16:
			f.SetUint(7)
		case netip.AddrPort:
			f.Set(reflect.ValueOf(netip.MustParseAddrPort("10.9.9.9:9")))
		case bool:
			f.SetBool(!f.Bool())
		case time.Duration:
			f.SetInt(int64(9 * time.Second))
		case Tunnel:
			f.Set(reflect.ValueOf(Tunnel{7, 7}))
		case map[string]*NodeSpec:
			f.Set(reflect.ValueOf(map[string]*NodeSpec{"n9": {Name: "n9"}}))
		default:
			f.Set(reflect.ValueOf(map[string]netip.AddrPort{}))
		}
		if Diff(base, &next).String() == "" {
			t.Errorf("Cluster.%s is not in the plan", reflect.TypeFor[Cluster]().Field(i).Name)
		}
	}
}

// What comes from elsewhere is refused unless it is what Encode gives.
func TestDecodeObjectRefuses(t *testing.T) {
	sealed := func(object string) string { // with the right version, so that more than that is asked
		return string(encode(json.RawMessage(object)))
	}
	l, b, e := string(canonical(listener().spec())), string(canonical(backend().spec())), string(canonical(endpoint("db1").spec()))
	edit := func(s, old, new string) string {
		if !strings.Contains(s, old) {
			t.Fatalf("no %s in %s", old, s)
		}
		return sealed(strings.Replace(s, old, new, 1))
	}
	for _, c := range []struct {
		kind Kind
		name string
		data string
		want string
	}{
		{ListenerKind, "pg", "", "EOF"},
		{ListenerKind, "pg", "{}", "version"},
		{ListenerKind, "pg", strings.Repeat(" ", objectMax+1), "octets; at most"},
		{ListenerKind, "pg", strings.Replace(sealed(l), `"version":"`, `"version":"0`, 1), "does not match"},
		{ListenerKind, "pg", strings.Replace(sealed(l), "4096", "4095", 1), "does not match"},
		{ListenerKind, "pg", sealed(l) + "{}", "more follows"},
		{ListenerKind, "pg", sealed(l) + "\n", "canonical"},
		{ListenerKind, "other", sealed(l), "is named pg"},
		{BackendKind, "pg", sealed(l), "unknown field"},
		{Kind(0), "pg", sealed(l), "no such kind"},
		{Kind(9), "pg", sealed(l), "no such kind"},
		{ListenerKind, "pg", edit(l, `"listener"`, `"endpoint"`), "is of kind"},
		{ListenerKind, "pg", edit(l, `"movable":false`, `"movable":false,"colour":1`), "unknown field"},
		{ListenerKind, "pg", edit(l, `,"movable":false`, ``), "canonical"},
		{ListenerKind, "pg", edit(l, `"movable"`, `"MOVABLE"`), "canonical"},
		{ListenerKind, "pg", edit(l, `"keep"`, `"stay"`), "onChange"},
		{ListenerKind, "pg", edit(l, `"backlog":4096`, `"backlog":0`), "backlog: must be 1 to 65535"},
		{ListenerKind, "pg", edit(l, `600000000000`, `-1`), "idleTimeout: must be"},
		{ListenerKind, "pg", edit(l, `10.0.0.5:5432`, `10.0.0.5:0`), "vip: port must be"},
		{ListenerKind, "pg", edit(l, `10.0.0.5:5432`, ``), "vip: not an IP address"},
		{ListenerKind, "pg", edit(l, `10.0.0.5:5432`, `[::]:5432`), "dualStack"},
		{ListenerKind, "pg", edit(l, `10.0.0.5:5432","dualStack":false`, `10.0.0.5:5432","dualStack":true`), "dualStack"},
		{ListenerKind, "pg", sealed(strings.NewReplacer(`10.0.0.5:5432`, `0.0.0.0:5432`, `"movable":false`, `"movable":true`).Replace(l)), "movable"},
		{ListenerKind, "pg", edit(l, `"primary"`, `"a b"`), "backend: not a name"},
		{ListenerKind, "a b", edit(l, `"pg"`, `"a b"`), "name: not a name"},
		{BackendKind, "primary", edit(b, `"kind":"backend"`, `"kind":"listener"`), "is of kind"},
		{BackendKind, "primary", edit(b, `"kind":"endpoint"`, `"kind":"backend"`), "is of kind"},
		{BackendKind, "primary", edit(b, `"round-robin"`, `"chance"`), "balance"},
		{BackendKind, "primary", edit(b, `"retryMax":2`, `"retryMax":99`), "retry.max: must be 0 to 16"},
		{BackendKind, "primary", edit(b, `"db2"`, `"db1"`), "is there twice"},
		{BackendKind, "primary", edit(b, `"db1"`, `"db3"`), "canonical"},
		{BackendKind, "primary", edit(b, `"backend":"primary"`, `"backend":"other"`), "is of backend"},
		{BackendKind, "primary", edit(b, `"sourceVIP":false,"source":""`, `"sourceVIP":true,"source":"10.0.0.1"`), "both"},
		{BackendKind, "primary", edit(b, `"source":""`, `"source":"0.0.0.0"`), "specific"},
		{BackendKind, "primary", edit(b, `"source":""`, `"source":"2001:db8::1"`), "IPv6"},
		{EndpointKind, "primary/db1", edit(e, `"kind":"endpoint"`, `"kind":"backend"`), "is of kind"},
		{EndpointKind, "primary/db1", edit(e, `"unix":""`, `"unix":"/a"`), "address: there are two"},
		{EndpointKind, "primary/db1", edit(e, `"10.0.0.31:5432"`, `""`), "not an IP address"},
		{EndpointKind, "primary/db1", edit(e, `"addr":"10.0.0.31:5432","unix":""`, `"addr":"","unix":"a"`), "absolute"},
		{EndpointKind, "primary/a/b", edit(e, `"db1"`, `"a/b"`), "name: not a name"},
		{EndpointKind, "/db1", edit(e, `"primary"`, `""`), "backend: not a name"},
	} {
		got, err := DecodeObject(c.kind, c.name, []byte(c.data))
		if err == nil {
			t.Errorf("%v %s %.300s: got %+v, want %q", c.kind, c.name, c.data, got, c.want)
		} else if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v %s %.300s: got %v, want %q", c.kind, c.name, c.data, err, c.want)
		}
	}
}

// Whatever a file says comes back from the wire as it was.
func TestRoundTrip(t *testing.T) {
	for _, file := range []string{"good.yaml", "old.yaml", "new.yaml", "http-old.yaml", "http-new.yaml"} {
		c := must(t, read(t, file))
		checkConfig(t, c)
		for _, b := range c.Backends {
			got, err := DecodeObject(BackendKind, b.Ref.Name, b.Encode())
			if err != nil || !reflect.DeepEqual(got, b) {
				t.Errorf("%s: got %+v, %v, want %+v", file, got, err, b)
			}
		}
		for _, l := range c.Listeners {
			got, err := DecodeObject(ListenerKind, l.Ref.Name, l.Encode())
			if err != nil || !reflect.DeepEqual(got, l) {
				t.Errorf("%s: got %+v, %v, want %+v", file, got, err, l)
			}
		}
	}
}
