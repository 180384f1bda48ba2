package wire

import (
	"encoding"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Mistake is a request that cannot be what was meant; its text says where and why.
type Mistake struct {
	Where string // a field, with dots
	Why   string
}

func (m *Mistake) Error() string {
	if m.Where == "" {
		return "admin: " + m.Why
	}
	return "admin: " + m.Where + ": " + m.Why
}

// below says that the mistake is in a part of where.
func (m *Mistake) below(where string) *Mistake {
	switch {
	case strings.HasPrefix(m.Where, "["):
		where += m.Where
	case m.Where != "":
		where += "." + m.Where
	}
	return &Mistake{where, m.Why}
}

// From fills v, a pointer to a struct, with what m has. The error is a *Mistake.
func From(m proto.Message, v any) error {
	if mistake := from(m.ProtoReflect(), reflect.ValueOf(v).Elem()); mistake != nil {
		return mistake
	}
	return nil
}

func from(m protoreflect.Message, v reflect.Value) *Mistake {
	fields := m.Descriptor().Fields()
	for _, f := range fieldsOf(v.Type()) {
		d := fields.ByName(protoreflect.Name(f.name))
		if d == nil || !m.Has(d) {
			continue
		}
		x := v.FieldByIndex(f.index)
		switch {
		case d.IsMap():
			x.Set(reflect.MakeMap(x.Type()))
			var found *Mistake
			m.Get(d).Map().Range(func(k protoreflect.MapKey, value protoreflect.Value) bool {
				to := reflect.New(x.Type().Elem()).Elem()
				if found = set(to, d.MapValue(), value); found != nil {
					found = found.below(f.name + "." + k.String())
				}
				x.SetMapIndex(reflect.ValueOf(k.String()), to)
				return found == nil
			})
			if found != nil {
				return found
			}
		case d.IsList():
			list := m.Get(d).List()
			x.Set(reflect.MakeSlice(x.Type(), list.Len(), list.Len()))
			for i := range list.Len() {
				if wrong := set(x.Index(i), d, list.Get(i)); wrong != nil {
					return wrong.below(fmt.Sprintf("%s[%d]", f.name, i))
				}
			}
		default:
			if wrong := set(x, d, m.Get(d)); wrong != nil {
				return wrong.below(f.name)
			}
		}
	}
	return nil
}

// set puts a value of d into x.
func set(x reflect.Value, d protoreflect.FieldDescriptor, value protoreflect.Value) *Mistake {
	if x.Kind() == reflect.Pointer {
		x.Set(reflect.New(x.Type().Elem()))
		x = x.Elem()
	}
	switch d.Kind() {
	case protoreflect.MessageKind:
		return setMessage(x, d, value.Message())
	case protoreflect.StringKind:
		return setText(x, value.String())
	case protoreflect.BoolKind:
		x.SetBool(value.Bool())
	case protoreflect.Int64Kind:
		if x.OverflowInt(value.Int()) {
			return &Mistake{"", fmt.Sprintf("%d is too large", value.Int())}
		}
		x.SetInt(value.Int())
	case protoreflect.Uint64Kind:
		x.SetUint(value.Uint())
	case protoreflect.DoubleKind:
		x.SetFloat(value.Float())
	default:
		panic(fmt.Sprintf("wire: %s: no rule for kind %s", d.FullName(), d.Kind()))
	}
	return nil
}

func setMessage(x reflect.Value, d protoreflect.FieldDescriptor, m protoreflect.Message) *Mistake {
	seconds, nanos := int64(0), int64(0)
	switch d.Message().FullName() {
	case durationName:
		if seconds, nanos = timeOf(m); seconds >= math.MaxInt64/int64(time.Second) || seconds <= math.MinInt64/int64(time.Second) {
			return &Mistake{"", fmt.Sprintf("%d seconds are too many", seconds)}
		}
		x.SetInt(seconds*int64(time.Second) + nanos)
	case timestampName:
		seconds, nanos = timeOf(m)
		x.Set(reflect.ValueOf(time.Unix(seconds, nanos).UTC()))
	default:
		return from(m, x)
	}
	return nil
}

func setText(x reflect.Value, s string) *Mistake {
	switch to := x.Addr().Interface().(type) {
	case *[]byte:
		*to = []byte(s)
	case *netip.Prefix:
		if s == "" {
			return nil
		}
		if a, err := netip.ParseAddr(s); err == nil {
			*to = netip.PrefixFrom(a, a.BitLen())
		} else if *to, err = netip.ParsePrefix(s); err != nil {
			return &Mistake{"", fmt.Sprintf("%q is no address and no prefix", s)}
		}
	case encoding.TextUnmarshaler:
		if err := to.UnmarshalText([]byte(s)); err != nil {
			return &Mistake{"", err.Error()}
		}
	default:
		x.SetString(s)
	}
	return nil
}
