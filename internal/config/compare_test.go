package config

import (
	"net/netip"
	"reflect"
	"testing"
)

// Of all that an endpoint and a backend have, these fields alone say what is
// dialled. A new field has to be put on one side.
func TestSameServer(t *testing.T) {
	dials := map[string]bool{
		"Endpoint.Addr": true, "Endpoint.Unix": true, "Endpoint.Host": true, "Endpoint.Port": true, "Endpoint.Drop": true,
		"Backend.SourceVIP": true, "Backend.Source": true, "Backend.ProxyHeader": true,
	}
	values := map[string]any{
		"Addr": netip.MustParseAddrPort("10.0.0.99:1"), "Source": netip.MustParseAddr("10.0.0.99"), "Ref": Ref{Version: 1},
		"Retry": Retry{Reset: true}, "Hash": Hash{Kind: HashPath},
	}
	change := func(v reflect.Value, name string) {
		switch to, known := values[name]; {
		case known:
			v.Set(reflect.ValueOf(to))
		case v.Kind() == reflect.Pointer:
			v.Set(reflect.New(v.Type().Elem()))
		case v.Kind() == reflect.Slice:
			v.SetZero()
		case v.Kind() == reflect.Bool:
			v.SetBool(!v.Bool())
		case v.Kind() == reflect.String:
			v.SetString(v.String() + "2")
		case v.CanInt():
			v.SetInt(v.Int() + 1)
		case v.CanUint():
			v.SetUint(v.Uint() + 1)
		default:
			t.Fatalf("%s: say here what it may become", name)
		}
	}
	for i := range reflect.TypeFor[Endpoint]().NumField() {
		name := reflect.TypeFor[Endpoint]().Field(i).Name
		is := endpoint("db1")
		change(reflect.ValueOf(is).Elem().Field(i), name)
		if got := endpoint("db1").SameServer(is); got == dials["Endpoint."+name] {
			t.Errorf("Endpoint.%s: %v", name, got)
		}
	}
	for i := range reflect.TypeFor[Backend]().NumField() {
		name := reflect.TypeFor[Backend]().Field(i).Name
		is := backend()
		change(reflect.ValueOf(is).Elem().Field(i), name)
		if got := backend().SameServer(is); got == dials["Backend."+name] {
			t.Errorf("Backend.%s: %v", name, got)
		}
	}
}

func TestImpact(t *testing.T) {
	got := Diff(must(t, read(t, "old.yaml")), must(t, read(t, "new.yaml"))).Impact()
	want := Impact{
		ListenersAdded: 1, ListenersRemoved: 1, ListenersChanged: 2,
		BackendsAdded: 1, BackendsRemoved: 1, BackendsChanged: 2,
		EndpointsAdded: 2, EndpointsRemoved: 2, EndpointsChanged: 2,
	}
	if got != want {
		t.Errorf("got %+v", got)
	}
	weigh := func(weights string) *Config {
		return must(t, "listeners: { a: { vip: ':80', backend: b } }\nbackends: { b: { endpoints: [ { name: x, address: 10.0.0.1:80"+weights+" }, { name: y, address: 10.0.0.2:80, weight: 5 } ] } }")
	}
	if got := Diff(weigh(""), weigh(", weight: 7")).Impact(); got != (Impact{EndpointsChanged: 1, WeightsChanged: 1}) {
		t.Errorf("a weight: %+v", got)
	}
	if got := Diff(weigh(""), weigh(", weight: 7, backup: true")).Impact(); got != (Impact{EndpointsChanged: 1}) {
		t.Errorf("a weight and more: %+v", got)
	}
}
