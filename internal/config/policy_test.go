package config

import (
	"net/netip"
	"reflect"
	"regexp"
	"testing"
	"time"
)

func sticky(kind StickyKind) *Sticky {
	switch kind {
	case StickyCookie:
		return &Sticky{
			Kind: kind, Name: "hf", MaxAge: time.Hour, Key: "sixteen octets, at least", Secure: true,
			SameSite: "Lax", Domain: "example.org", Path: "/",
		}
	case StickyHeader:
		return &Sticky{Kind: kind, Name: "X-Session", MaxAge: time.Hour, TableMax: 1000}
	case StickySource:
		return &Sticky{Kind: kind, MaxAge: time.Hour, TableMax: 1000, Bits4: 24, Bits6: 56}
	}
	panic(kind)
}

func check(kind CheckKind) *Check {
	c := &Check{
		Kind: kind, Port: 9000, Interval: 2 * time.Second, FastInterval: time.Second, DownInterval: 5 * time.Second,
		Timeout: time.Second, Rise: 2, Fall: 3, Agent: &Agent{Port: 9777, Interval: time.Second, Send: "how\n"},
	}
	switch kind {
	case CheckTCP:
		c.Send, c.Expect = "PING\r\n", "+PONG"
	case CheckHTTP:
		c.Method, c.Path, c.Host = "GET", "/healthz?deep=1", "app.example.org"
		c.Headers = []Edit{{AddField, "X-A", "b"}}
		c.Statuses, c.Drain = []StatusRange{{200, 299}, {304, 304}}, []StatusRange{{404, 404}}
		c.Body = regexp.MustCompile("o+k")
	case CheckAgent:
		c.Port = 0
	}
	return c
}

func eject() *Eject {
	return &Eject{
		Consecutive: 5, Rate: 30, Least: 20, Window: 10 * time.Second, Statuses: []StatusRange{{502, 504}},
		Time: 10 * time.Second, TimeMax: time.Minute, Share: 50,
	}
}

func breaker() *Breaker {
	return &Breaker{Rate: 50, Least: 20, Window: 10 * time.Second, Open: 5 * time.Second, Probes: 3}
}

// policies are backends that have, all together, each field of the policy.
func policies() []*Backend {
	one, two, three := backend(), backend(), backend()
	one.Retry = Retry{true, []StatusRange{{503, 503}}, 10}
	one.Balance, one.Hash = Maglev, Hash{HashHeader, "X-User", 125}
	one.SlowStart, one.Panic, one.PreferLocal = time.Second, 50, true
	one.Sticky, one.Check, one.Eject, one.Breaker = sticky(StickyCookie), check(CheckHTTP), eject(), breaker()
	one.Fallback = &Fallback{Backend: "other"}
	two.Sticky, two.Check = sticky(StickyHeader), check(CheckTCP)
	two.Fallback = &Fallback{Respond: &Respond{503, "text/plain", "later\n"}}
	three.Sticky, three.Check = sticky(StickySource), check(CheckAgent)
	for _, b := range []*Backend{one, two, three} {
		b.seal("primary")
	}
	return []*Backend{one, two, three}
}

// As TestEveryFieldCounts, for all that is below a backend.
func TestEveryFieldOfPolicyCounts(t *testing.T) {
	elsewhere := map[string]any{
		"Hash.Kind": HashCookie, "Sticky.Kind": nil, "Sticky.MaxAge": 2 * time.Hour, "Check.Kind": nil, "Sticky.SameSite": "Strict",
		"Check.Method": "HEADS", "StatusRange.First": nil, "StatusRange.Last": nil, // below
		"Check.Body": regexp.MustCompile("other"), "Backend.Balance": nil,
	}
	counted := map[string]bool{"Sticky.Kind": true, "Check.Kind": true, "Edit.Kind": true}
	for i := range policies() {
		for n := 0; ; n++ {
			was, is, skip := policies()[i], policies()[i], n
			is.Endpoints = nil
			was.Endpoints = nil
			was.seal("primary")
			name := changeLeaf(t, reflect.ValueOf(is), &skip, elsewhere)
			if name == "" {
				break
			}
			if name == "Edit.Kind" || name == "Ref.Kind" || name == "Ref.Name" || name == "Ref.Version" {
				continue
			}
			counted[name] = true
			is.seal("primary")
			if is.Ref == was.Ref {
				t.Errorf("%s does not change the version", name)
			}
			plan := Diff(&Config{Backends: map[string]*Backend{"primary": was}}, &Config{Backends: map[string]*Backend{"primary": is}}).String()
			if plan == "" {
				t.Errorf("%s is not in the plan", name)
			}
			got, err := DecodeObject(BackendKind, "primary", is.Encode())
			if err != nil {
				t.Errorf("%s: %v", name, err)
			} else if !reflect.DeepEqual(got, is) {
				t.Errorf("%s: got %+v, want %+v", name, got, is)
			}
		}
	}
	for _, typ := range []reflect.Type{
		reflect.TypeFor[Retry](), reflect.TypeFor[Hash](), reflect.TypeFor[Sticky](), reflect.TypeFor[Check](), reflect.TypeFor[Agent](),
		reflect.TypeFor[Eject](), reflect.TypeFor[Breaker](), reflect.TypeFor[Fallback](),
	} {
		for i := range typ.NumField() {
			f := typ.Field(i)
			nested := f.Type.Kind() == reflect.Slice || f.Type.Kind() == reflect.Pointer && f.Type != reflect.TypeFor[pattern]()
			if name := typ.Name() + "." + f.Name; !nested && !counted[name] {
				t.Errorf("%s was not changed", name)
			}
		}
	}
}

// Each list of status codes counts by itself.
func TestEveryStatusCounts(t *testing.T) {
	for i, change := range []func(*Backend){
		func(b *Backend) { b.Retry.Statuses = []StatusRange{{502, 503}} },
		func(b *Backend) { b.Check.Statuses = []StatusRange{{200, 299}} },
		func(b *Backend) { b.Check.Drain = nil },
		func(b *Backend) { b.Eject.Statuses = nil },
	} {
		was, is := policies()[0], policies()[0]
		change(is)
		is.seal("primary")
		got, err := DecodeObject(BackendKind, "primary", is.Encode())
		if err != nil || !reflect.DeepEqual(got, is) || is.Ref == was.Ref {
			t.Errorf("%d: got %+v, %v, want %+v", i, got, err, is)
		}
		if backendChanges(was, is) == "" {
			t.Errorf("%d: is not in the plan", i)
		}
	}
}

// A name becomes its addresses, in one order whatever the order of the answer;
// what cannot be dialled is left out; a name without an answer leaves nothing.
func TestResolve(t *testing.T) {
	c := must(t, `
listeners:
  a: { vip: 10.0.0.5:80, backend: app }
  b: { vip: 10.0.0.5:81, backend: own }
  c: { vip: 10.0.0.5:82, backend: plain }
backends:
  app:
    check: {}
    endpoints:
      - { address: "App.example.org:8080", weight: 50, zone: a, backup: true, connections: 9, check: { port: 9000 } }
      - { address: 10.0.0.9:80, name: fixed }
      - { address: "gone.example.org:80", name: gone }
  own: { source: vip, endpoints: [ { address: "app.example.org:8080", name: x } ] }
  plain: { endpoints: [ { address: 10.0.0.9:80 } ] }
`)
	addr := netip.MustParseAddrPort
	answers := Resolved{"app.example.org:8080": {
		addr("[2001:db8::1]:8080"), addr("10.0.0.7:8080"), addr("0.0.0.0:8080"), addr("10.0.0.6:8080"), addr("[::ffff:10.0.0.7]:8080"), addr("10.0.0.6:9090"),
	}}
	if got := c.Names(); !reflect.DeepEqual(got, []string{"app.example.org:8080", "gone.example.org:80"}) {
		t.Errorf("names: %q", got)
	}
	next := c.Resolve(answers)
	checkConfig(t, next)
	names := func(b *Backend) (all []string) {
		for _, e := range b.Endpoints {
			all = append(all, e.Name+" "+e.Address())
		}
		return all
	}
	for _, x := range []struct {
		backend string
		want    []string
	}{
		{"app", []string{
			"app.example.org:8080/10.0.0.6 10.0.0.6:8080", "app.example.org:8080/10.0.0.6:9090 10.0.0.6:9090",
			"app.example.org:8080/10.0.0.7 10.0.0.7:8080", "app.example.org:8080/2001:db8::1 [2001:db8::1]:8080", "fixed 10.0.0.9:80",
		}},
		// What is dialled from a VIP of IPv4 goes to IPv4.
		{"own", []string{"x/10.0.0.6 10.0.0.6:8080", "x/10.0.0.6:9090 10.0.0.6:9090", "x/10.0.0.7 10.0.0.7:8080"}},
	} {
		if got := names(next.Backends[x.backend]); !reflect.DeepEqual(got, x.want) {
			t.Errorf("%s: got %q, want %q", x.backend, got, x.want)
		}
	}
	if e := next.Backends["app"].Endpoints[0]; e.Weight != 50 || e.Zone != "a" || !e.Backup || e.ConnectionsMax != 9 || e.CheckPort != 9000 || e.Host != "app.example.org" {
		t.Errorf("got %+v", e)
	}
	if next.Backends["plain"] != c.Backends["plain"] || next.Backends["app"].Endpoint("fixed") != c.Backends["app"].Endpoint("fixed") {
		t.Error("what has no name is another object")
	}
	other := Resolved{"app.example.org:8080": {addr("10.0.0.6:9090"), addr("10.0.0.7:8080"), addr("10.0.0.6:8080"), addr("[2001:db8::1]:8080")}}
	if d := Diff(next, c.Resolve(other)); !d.Empty() {
		t.Errorf("the order of an answer makes a difference:\n%s", d)
	}
	none := c.Resolve(nil)
	checkConfig(t, none)
	if got := names(none.Backends["own"]); len(got) != 0 {
		t.Errorf("without an answer: %q", got)
	}
	if got := len(c.Backends["own"].Endpoints); got != 1 || len(next.Names()) != 0 {
		t.Error("the config that was resolved has changed, or what it gave has names")
	}
}
