// Package wire turns the node's types into messages of the API and back, and
// messages into JSON that is pleasant to read and to type. It goes by names
// alone: a field of a message is the field of the struct that has this name in
// JSON. It knows neither the messages nor the types; a test compares them all,
// so that no field is forgotten on either side.
package wire

import (
	"encoding"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"time"
	"unicode"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const (
	durationName  = "google.protobuf.Duration"
	timestampName = "google.protobuf.Timestamp"
)

// field is one exported field of a struct, or of one that is embedded in it.
type field struct {
	name  string
	index []int
	omit  bool // nothing is written for the zero value
}

var known sync.Map // reflect.Type -> []field

// fieldsOf lists what JSON would write of t, which is a struct.
func fieldsOf(t reflect.Type) []field {
	if v, ok := known.Load(t); ok {
		return v.([]field)
	}
	var all []field
	for i := range t.NumField() {
		f := t.Field(i)
		tag, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if tag == "-" {
			continue
		}
		if f.Anonymous && tag == "" && f.Type.Kind() == reflect.Struct {
			for _, x := range fieldsOf(f.Type) {
				x.index = append([]int{i}, x.index...)
				all = append(all, x)
			}
			continue
		}
		if !f.IsExported() {
			continue
		}
		if tag == "" {
			tag = snake(f.Name)
		}
		all = append(all, field{tag, []int{i}, strings.Contains(options, "omit")})
	}
	known.Store(t, all)
	return all
}

// snake writes a Go name as fields of messages are written.
func snake(name string) string {
	var b strings.Builder
	for i, r := range name {
		if unicode.IsUpper(r) && i > 0 {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// Into fills m with v, a struct or a pointer to one. What m has no field for is
// left out.
func Into(m proto.Message, v any) {
	into(m.ProtoReflect(), reflect.Indirect(reflect.ValueOf(v)))
}

// To is Into of a new M.
func To[M any, P interface {
	*M
	proto.Message
}](v any) P {
	m := P(new(M))
	Into(m, v)
	return m
}

// Each is To of every element of all.
func Each[M any, P interface {
	*M
	proto.Message
}, T any](all []T) []P {
	out := make([]P, len(all))
	for i := range all {
		out[i] = P(new(M))
		Into(out[i], &all[i])
	}
	return out
}

func into(m protoreflect.Message, v reflect.Value) {
	fields := m.Descriptor().Fields()
	for _, f := range fieldsOf(v.Type()) {
		d := fields.ByName(protoreflect.Name(f.name))
		x := v.FieldByIndex(f.index)
		if d == nil || x.IsZero() && (f.omit || x.Kind() != reflect.Struct && !worded(d, x)) {
			continue // the message's zero value says the same
		}
		switch {
		case d.IsMap():
			to := m.Mutable(d).Map()
			for each := x.MapRange(); each.Next(); {
				to.Set(protoreflect.ValueOfString(clean(each.Key().String())).MapKey(), one(to.NewValue, d.MapValue(), each.Value()))
			}
		case d.IsList():
			to := m.Mutable(d).List()
			for i := range x.Len() {
				to.Append(one(to.NewElement, d, x.Index(i)))
			}
		default:
			if value := one(func() protoreflect.Value { return m.NewField(d) }, d, x); value.IsValid() {
				m.Set(d, value)
			}
		}
	}
}

// worded tells whether x is a number that has a word: its zero has one, too.
func worded(d protoreflect.FieldDescriptor, x reflect.Value) bool {
	return d.Kind() == protoreflect.StringKind && !d.IsList() && !d.IsMap() && x.CanInt()
}

// one is x as a value of d, which fresh makes if it is a message. It is not
// valid if there is nothing to tell.
func one(fresh func() protoreflect.Value, d protoreflect.FieldDescriptor, x reflect.Value) protoreflect.Value {
	if x.Kind() == reflect.Pointer {
		if x.IsNil() {
			return protoreflect.Value{}
		}
		x = x.Elem()
	}
	if d.Kind() == protoreflect.MessageKind {
		to := fresh()
		switch d.Message().FullName() {
		case durationName:
			setTime(to.Message(), int64(x.Interface().(time.Duration)/time.Second), int64(x.Interface().(time.Duration)%time.Second))
		case timestampName:
			t := x.Interface().(time.Time)
			if t.IsZero() {
				return protoreflect.Value{}
			}
			setTime(to.Message(), t.Unix(), int64(t.Nanosecond()))
		default:
			into(to.Message(), x)
		}
		return to
	}
	switch d.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(clean(text(x)))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(x.Bool())
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(x.Int())
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(x.Uint())
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(x.Float())
	default:
		panic(fmt.Sprintf("wire: %s: no rule for kind %s", d.FullName(), d.Kind()))
	}
}

// clean makes s a string that a message may have; texts may quote what peers sent.
func clean(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func text(x reflect.Value) string {
	switch v := x.Interface().(type) {
	case []byte:
		return string(v)
	case netip.Prefix:
		if !v.IsValid() {
			return ""
		}
		return v.String()
	case encoding.TextMarshaler:
		b, err := v.MarshalText()
		if err != nil {
			panic(fmt.Sprintf("wire: %T: %v", v, err)) // words of ours, which have one
		}
		return string(b)
	}
	return x.String()
}

// setTime fills a Duration or a Timestamp, whose fields have the same numbers.
func setTime(m protoreflect.Message, seconds, nanos int64) {
	fields := m.Descriptor().Fields()
	m.Set(fields.ByNumber(1), protoreflect.ValueOfInt64(seconds))
	m.Set(fields.ByNumber(2), protoreflect.ValueOfInt32(int32(nanos)))
}

// timeOf reads a Duration or a Timestamp.
func timeOf(m protoreflect.Message) (seconds, nanos int64) {
	fields := m.Descriptor().Fields()
	return m.Get(fields.ByNumber(1)).Int(), m.Get(fields.ByNumber(2)).Int()
}
