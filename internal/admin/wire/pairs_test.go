package wire_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	v1 "github.com/holdfast-lb/holdfast/api/holdfast/v1"
	"github.com/holdfast-lb/holdfast/internal/admin/wire"
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// pairs are messages and the types of the node that they mirror. What they hold
// is compared with them.
var pairs = []struct {
	m proto.Message
	v any
	// only has fields that one side lacks for a reason.
	only map[string]string
}{
	{&v1.Status{}, node.Status{}, nil},
	{&v1.FlowsRequest{}, node.FlowFilter{}, nil},
	{&v1.FlowStatus{}, node.FlowStatus{}, nil},
	{&v1.EndpointState{}, node.EndpointState{}, nil},
	{&v1.ConfigState{}, node.ConfigState{}, nil},
	{&v1.GenerationInfo{}, node.GenerationInfo{}, nil},
	{&v1.Event{}, node.Event{}, map[string]string{"status": "the server adds it to a watch that asks for it"}},
	{&v1.ChangeRequest{}, node.ChangeRequest{}, caller},
	{&v1.ChangeReport{}, node.ChangeReport{}, nil},
	{&v1.SettleRequest{}, node.SettleRequest{}, caller},
	{&v1.EndpointRequest{}, node.EndpointRequest{}, caller},
	{&v1.EndpointReport{}, node.EndpointReport{}, nil},
	{&v1.RemoveRequest{}, node.RemoveRequest{}, caller},
	{&v1.Progress{}, node.Progress{}, nil},
	{&v1.ShiftRequest{}, node.ShiftRequest{}, caller},
	{&v1.UpgradeStatus{}, node.UpgradeStatus{}, nil},
	{&v1.ResidueStatus{}, node.ResidueStatus{}, nil},
	{&v1.UpgradeRequest{}, node.UpgradeRequest{}, caller},
	{&v1.MigrateRequest{}, node.MigrateRequest{}, caller},
	{&v1.EvacuateRequest{}, node.EvacuateRequest{}, caller},
	{&v1.ReturnRequest{}, node.ReturnRequest{}, caller},
	{&v1.TakeRequest{}, node.TakeRequest{}, caller},
	{&v1.VIPStatus{}, node.VIPStatus{}, nil},
	{&v1.MoveStatus{}, node.MoveStatus{}, nil},
	{&v1.NodeStatus{}, node.NodeStatus{}, nil},
	{&v1.HostResidue{}, node.HostResidue{}, nil},
	{&v1.KillRequest{}, node.KillRequest{}, caller},
	{&v1.KillReport{}, node.KillReport{}, nil},
	{&v1.ShedRequest{}, node.ShedRequest{}, caller},
	{&v1.ShedReport{}, node.ShedReport{}, nil},
	{&v1.Report{}, node.Report{}, nil},
	{&v1.BusyReport{}, node.BusyReport{}, nil},
	{&v1.Patch{}, config.Patch{}, nil},
}

// Who asks is told by the connection, never by the request.
var caller = map[string]string{"name": "the server knows who asks"}

// Nothing is lost between the node's types and the messages: every field has its
// like, of the same meaning, all the way down.
func TestMessagesMirrorTypes(t *testing.T) {
	for _, p := range pairs {
		compare(t, p.m.ProtoReflect().Descriptor(), reflect.TypeOf(p.v), p.only)
	}
}

// compare goes by its own reading of the struct, not by the converter's.
func compare(t *testing.T, d protoreflect.MessageDescriptor, v reflect.Type, only map[string]string) {
	t.Helper()
	fields := map[string]reflect.Type{}
	list(fields, v)
	for name := range only {
		if _, ok := fields[name]; ok == (d.Fields().ByName(protoreflect.Name(name)) != nil) {
			t.Errorf("%s: %s is said to be on one side only", d.Name(), name)
		}
	}
	for name, kind := range fields {
		f := d.Fields().ByName(protoreflect.Name(name))
		if f == nil {
			if only[name] == "" {
				t.Errorf("message %s lacks the field %s of %s: add it to api/holdfast/v1/holdfast.proto", d.Name(), name, v)
			}
			continue
		}
		if wrong := fits(t, f, kind); wrong != "" {
			t.Errorf("%s.%s: %s", d.Name(), name, wrong)
		}
	}
	for i := range d.Fields().Len() {
		name := string(d.Fields().Get(i).Name())
		if fields[name] == nil && only[name] == "" {
			t.Errorf("%s lacks the field %s of message %s", v, name, d.Name())
		}
	}
}

func list(fields map[string]reflect.Type, v reflect.Type) {
	for i := range v.NumField() {
		f := v.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported() && !f.Anonymous:
		case f.Anonymous && name == "":
			list(fields, f.Type)
		case name == "":
			fields[strings.ToLower(f.Name)] = f.Type // FlowFilter has names of one word
		default:
			fields[name] = f.Type
		}
	}
}

func fits(t *testing.T, f protoreflect.FieldDescriptor, kind reflect.Type) string {
	t.Helper()
	want, of := "", kind
	switch {
	case kind == reflect.TypeFor[[]byte]():
		want = "string"
	case kind.Kind() == reflect.Map:
		if !f.IsMap() || f.MapKey().Kind() != protoreflect.StringKind {
			return fmt.Sprintf("is %s, and no map", f.Kind())
		}
		f, of = f.MapValue(), kind.Elem()
	case kind.Kind() == reflect.Slice:
		if !f.IsList() {
			return fmt.Sprintf("is %s, and no list", f.Kind())
		}
		of = kind.Elem()
	case f.IsMap() || f.IsList():
		return "is many, and one is wanted: " + kind.String()
	}
	if of.Kind() == reflect.Pointer {
		of = of.Elem()
	}
	switch of {
	case reflect.TypeFor[time.Duration]():
		want = "google.protobuf.Duration"
	case reflect.TypeFor[time.Time]():
		want = "google.protobuf.Timestamp"
	case reflect.TypeFor[netip.Prefix]():
		want = "string"
	}
	if want == "" {
		switch of.Kind() {
		case reflect.Struct:
			if f.Message() == nil {
				return fmt.Sprintf("is %s, and no message", f.Kind())
			}
			compare(t, f.Message(), of, nil)
			return ""
		case reflect.Int, reflect.Int64, reflect.Int32:
			want = "int64"
		case reflect.Uint64, reflect.Uint32, reflect.Uint:
			want = "uint64"
		case reflect.Float64:
			want = "double"
		case reflect.Bool:
			want = "bool"
		case reflect.String:
			want = "string"
		}
	}
	is := f.Kind().String()
	if f.Message() != nil {
		is = string(f.Message().FullName())
	}
	if is != want {
		return fmt.Sprintf("is %s, want %s for %s", is, want, of)
	}
	return ""
}

// Every type goes into its message and comes back with all that it had.
func TestThereAndBack(t *testing.T) {
	for _, p := range pairs {
		v := reflect.New(reflect.TypeOf(p.v))
		n := 0
		fill(v.Elem(), &n, p.only["name"] != "")
		m := p.m.ProtoReflect().New().Interface()
		wire.Into(m, v.Interface())
		for _, codec := range []wire.JSON{{Subtype: "json"}} {
			b, err := codec.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			again := p.m.ProtoReflect().New().Interface()
			if err := codec.Unmarshal(b, again); err != nil {
				t.Errorf("%T: %v\n%s", p.v, err, b)
			}
			if !proto.Equal(m, again) {
				t.Errorf("%T is another one after JSON:\n%s", p.v, b)
			}
		}
		back := reflect.New(reflect.TypeOf(p.v))
		if err := wire.From(m, back.Interface()); err != nil {
			t.Errorf("%T: %v", p.v, err)
		}
		if !reflect.DeepEqual(v.Interface(), back.Interface()) {
			t.Errorf("%T: went\n%+v\nand came back\n%+v", p.v, v.Elem(), back.Elem())
		}
	}
}

// fill sets every exported field to something of its own.
func fill(v reflect.Value, n *int, request bool) {
	*n++
	switch x := v.Addr().Interface().(type) {
	case *time.Time:
		*x = time.Unix(1700000000+int64(*n), int64(*n)).UTC()
		return
	case *netip.Prefix:
		*x = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(*n), 0}), 24)
		return
	case *node.Author:
		x.Reason = fmt.Sprint("because ", *n)
		if !request {
			x.Name = fmt.Sprint("somebody ", *n)
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				fill(v.Field(i), n, request)
			}
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n, request)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), n, request)
		fill(v.Index(1), n, request)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		x := reflect.New(v.Type().Elem()).Elem()
		fill(x, n, request)
		v.SetMapIndex(reflect.ValueOf(fmt.Sprint("key ", *n)), x)
	case reflect.Int, reflect.Int64, reflect.Int32:
		v.SetInt(int64(*n) * 1000000001)
	case reflect.Uint64, reflect.Uint32, reflect.Uint:
		v.SetUint(uint64(*n) * 1000000007)
	case reflect.Uint8:
		v.SetUint(uint64('a' + *n%26))
	case reflect.Float64:
		v.SetFloat(float64(*n) + 0.25)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.String:
		v.SetString(fmt.Sprintf("<text> %d & \"more\"\n", *n))
	}
}
