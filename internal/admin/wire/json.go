package wire

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// JSON is the JSON form of messages, as a codec of Connect. It writes what curl,
// jq and people like: names as in the schema, every field but messages that are
// not there, 64-bit numbers as numbers. It reads that and the standard mapping
// of protobuf, which has lowerCamelCase and 64-bit numbers as strings.
type JSON struct {
	// Subtype is the name within content types, as in application/json.
	Subtype string
}

// Name is how Connect knows the codec.
func (c JSON) Name() string { return c.Subtype }

// IsBinary says that it is text: it may stand in a URL.
func (c JSON) IsBinary() bool { return false }

// Marshal writes a message, with a line's end.
func (c JSON) Marshal(v any) ([]byte, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("wire: %T is no message", v)
	}
	var w writer
	w.message(m.ProtoReflect())
	w.WriteByte('\n')
	return w.Bytes(), nil
}

// MarshalStable is Marshal: the form has one order.
func (c JSON) MarshalStable(v any) ([]byte, error) { return c.Marshal(v) }

// Unmarshal reads a message; no octets are one without any field.
func (c JSON) Unmarshal(b []byte, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("wire: %T is no message", v)
	}
	if b = bytes.TrimSpace(b); len(b) == 0 {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var read any
	if err := d.Decode(&read); err != nil {
		return &Mistake{"", fmt.Sprintf("the request is no JSON: %v", err)}
	}
	if _, err := d.Token(); err == nil || d.InputOffset() < int64(len(b)) {
		return &Mistake{"", "the request goes on after its JSON"}
	}
	if wrong := readMessage(m.ProtoReflect(), read); wrong != nil {
		return wrong
	}
	return nil
}

// YAML reads a request that has a source as the source itself, so that a file
// can be sent as it is; it writes JSON, which is YAML.
type YAML struct{ JSON }

// Unmarshal puts b into the field source.
func (c YAML) Unmarshal(b []byte, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("wire: %T is no message", v)
	}
	d := m.ProtoReflect().Descriptor().Fields().ByName("source")
	if d == nil {
		return &Mistake{"", "this method takes no file; ask in application/json"}
	}
	if s := string(b); s != clean(s) {
		return &Mistake{"source", "it is not UTF-8"}
	}
	m.ProtoReflect().Set(d, protoreflect.ValueOfString(string(b)))
	return nil
}

type writer struct{ bytes.Buffer }

func (w *writer) message(m protoreflect.Message) {
	switch name := m.Descriptor().FullName(); {
	case name == durationName:
		seconds, nanos := timeOf(m)
		w.string(durationText(seconds, nanos))
		return
	case name == timestampName:
		seconds, nanos := timeOf(m)
		w.string(time.Unix(seconds, nanos).UTC().Format(time.RFC3339Nano))
		return
	case strings.HasPrefix(string(name), "google.protobuf."):
		// Of errors' details and reflection, with forms of their own.
		if b, err := protojson.Marshal(m.Interface()); err == nil {
			w.Write(b)
			return
		}
	}
	w.WriteByte('{')
	fields, first := m.Descriptor().Fields(), true
	for i := range fields.Len() {
		d := fields.Get(i)
		if !m.Has(d) && d.HasPresence() {
			continue
		}
		if !first {
			w.WriteByte(',')
		}
		first = false
		w.string(string(d.Name()))
		w.WriteByte(':')
		w.field(d, m.Get(d))
	}
	w.WriteByte('}')
}

func (w *writer) field(d protoreflect.FieldDescriptor, v protoreflect.Value) {
	switch {
	case d.IsMap():
		type entry struct {
			key   string
			value protoreflect.Value
		}
		var all []entry
		v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			all = append(all, entry{k.String(), v})
			return true
		})
		slices.SortFunc(all, func(a, b entry) int { return strings.Compare(a.key, b.key) })
		w.WriteByte('{')
		for i, x := range all {
			if i > 0 {
				w.WriteByte(',')
			}
			w.string(x.key)
			w.WriteByte(':')
			w.one(d.MapValue(), x.value)
		}
		w.WriteByte('}')
	case d.IsList():
		w.WriteByte('[')
		for i := range v.List().Len() {
			if i > 0 {
				w.WriteByte(',')
			}
			w.one(d, v.List().Get(i))
		}
		w.WriteByte(']')
	default:
		w.one(d, v)
	}
}

func (w *writer) one(d protoreflect.FieldDescriptor, v protoreflect.Value) {
	switch d.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		w.message(v.Message())
	case protoreflect.StringKind:
		w.string(v.String())
	case protoreflect.BytesKind:
		w.string(base64.StdEncoding.EncodeToString(v.Bytes()))
	case protoreflect.EnumKind:
		if x := d.Enum().Values().ByNumber(v.Enum()); x != nil {
			w.string(string(x.Name()))
		} else {
			fmt.Fprint(w, int32(v.Enum()))
		}
	case protoreflect.DoubleKind, protoreflect.FloatKind:
		x := v.Float()
		if math.IsNaN(x) || math.IsInf(x, 0) {
			w.string(strings.TrimPrefix(strings.Replace(strconv.FormatFloat(x, 'g', -1, 64), "Inf", "Infinity", 1), "+"))
			return
		}
		b, _ := json.Marshal(x) // a number
		w.Write(b)
	default:
		w.WriteString(v.String()) // of a bool or a whole number
	}
}

func (w *writer) string(s string) {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false) // it is for people, and no page has it in its text
	_ = e.Encode(s)        // a string
	w.Truncate(w.Len() - 1)
}

// durationText is the standard form: decimal seconds.
func durationText(seconds, nanos int64) string {
	sign := ""
	if seconds < 0 || nanos < 0 {
		sign, seconds, nanos = "-", -seconds, -nanos
	}
	s := fmt.Sprintf("%s%d", sign, seconds)
	if nanos != 0 {
		s += "." + strings.TrimRight(fmt.Sprintf("%09d", nanos), "0")
	}
	return s + "s"
}

func readMessage(m protoreflect.Message, v any) *Mistake {
	switch name := m.Descriptor().FullName(); {
	case name == durationName:
		return readDuration(m, v)
	case name == timestampName:
		s, _ := v.(string)
		t, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			return &Mistake{"", fmt.Sprintf("want a time as in 2026-01-31T12:00:00Z, not %s", shown(v))}
		}
		setTime(m, t.Unix(), int64(t.Nanosecond()))
		return nil
	case strings.HasPrefix(string(name), "google.protobuf."):
		b, err := json.Marshal(v)
		if err == nil {
			err = protojson.Unmarshal(b, m.Interface())
		}
		if err != nil {
			return &Mistake{"", err.Error()}
		}
		return nil
	}
	all, ok := v.(map[string]any)
	if !ok {
		return &Mistake{"", "want an object, not " + shown(v)}
	}
	fields := m.Descriptor().Fields()
	for _, name := range sorted(all) {
		d := fields.ByName(protoreflect.Name(name))
		if d == nil {
			d = fields.ByJSONName(name)
		}
		if d == nil {
			return &Mistake{"", fmt.Sprintf("%s has no field %q; there are: %s", m.Descriptor().Name(), name, names(fields))}
		}
		if all[name] == nil {
			continue // null is as if it was not there
		}
		if wrong := readField(m, d, all[name]); wrong != nil {
			return wrong.below(name)
		}
	}
	return nil
}

func readField(m protoreflect.Message, d protoreflect.FieldDescriptor, v any) *Mistake {
	switch {
	case d.IsMap():
		all, ok := v.(map[string]any)
		if !ok {
			return &Mistake{"", "want an object, not " + shown(v)}
		}
		if d.MapKey().Kind() != protoreflect.StringKind {
			return &Mistake{"", "has keys that JSON cannot have"}
		}
		to := m.Mutable(d).Map()
		for _, name := range sorted(all) {
			x, wrong := readOne(to.NewValue, d.MapValue(), all[name])
			if wrong != nil {
				return wrong.below(name)
			}
			to.Set(protoreflect.ValueOfString(name).MapKey(), x)
		}
	case d.IsList():
		all, ok := v.([]any)
		if !ok {
			return &Mistake{"", "want a list, not " + shown(v)}
		}
		to := m.Mutable(d).List()
		for i, v := range all {
			x, wrong := readOne(to.NewElement, d, v)
			if wrong != nil {
				return wrong.below(fmt.Sprintf("[%d]", i))
			}
			to.Append(x)
		}
	default:
		x, wrong := readOne(func() protoreflect.Value { return m.NewField(d) }, d, v)
		if wrong != nil {
			return wrong
		}
		m.Set(d, x)
	}
	return nil
}

func readOne(fresh func() protoreflect.Value, d protoreflect.FieldDescriptor, v any) (protoreflect.Value, *Mistake) {
	none := protoreflect.Value{}
	switch d.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		x := fresh()
		return x, readMessage(x.Message(), v)
	case protoreflect.StringKind:
		if s, ok := v.(string); ok {
			return protoreflect.ValueOfString(s), nil
		}
		return none, &Mistake{"", "want a string, not " + shown(v)}
	case protoreflect.BoolKind:
		if b, ok := v.(bool); ok {
			return protoreflect.ValueOfBool(b), nil
		}
		return none, &Mistake{"", "want true or false, not " + shown(v)}
	case protoreflect.BytesKind:
		s, _ := v.(string)
		if b, err := base64.StdEncoding.DecodeString(s); err == nil {
			return protoreflect.ValueOfBytes(b), nil
		}
		return none, &Mistake{"", "want octets in base64"}
	case protoreflect.EnumKind:
		s, _ := v.(string)
		if x := d.Enum().Values().ByName(protoreflect.Name(s)); x != nil {
			return protoreflect.ValueOfEnum(x.Number()), nil
		}
		return none, &Mistake{"", "no such word: " + shown(v)}
	}
	return readNumber(d.Kind(), v)
}

func readNumber(kind protoreflect.Kind, v any) (protoreflect.Value, *Mistake) {
	var s string
	switch v := v.(type) {
	case json.Number:
		s = v.String()
	case string:
		s = v
	}
	var x protoreflect.Value
	var err error
	want := "a whole number"
	switch kind {
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		var k int64
		k, err = strconv.ParseInt(s, 10, 64)
		x = protoreflect.ValueOfInt64(k)
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		var k int64
		k, err = strconv.ParseInt(s, 10, 32)
		x = protoreflect.ValueOfInt32(int32(k))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		want = "a whole number from 0"
		var k uint64
		k, err = strconv.ParseUint(s, 10, 64)
		x = protoreflect.ValueOfUint64(k)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		want = "a whole number from 0"
		var k uint64
		k, err = strconv.ParseUint(s, 10, 32)
		x = protoreflect.ValueOfUint32(uint32(k))
	default:
		want = "a number"
		var k float64
		k, err = strconv.ParseFloat(s, 64)
		if kind == protoreflect.FloatKind {
			x = protoreflect.ValueOfFloat32(float32(k))
		} else {
			x = protoreflect.ValueOfFloat64(k)
		}
	}
	if err != nil {
		return protoreflect.Value{}, &Mistake{"", fmt.Sprintf("want %s, not %s", want, shown(v))}
	}
	return x, nil
}

// readDuration reads "1.5s", "10m", "1h30m", or a number, which is of seconds.
func readDuration(m protoreflect.Message, v any) *Mistake {
	var s string
	switch v := v.(type) {
	case string:
		s = v
	case json.Number:
		s = v.String() + "s"
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return &Mistake{"", "want a duration as in 30s or 1h30m, not " + shown(v)}
	}
	setTime(m, int64(d/time.Second), int64(d%time.Second))
	return nil
}

// shownMax bounds what a mistake shows of what was sent, in octets.
const shownMax = 60

func shown(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprintf("%v", v)
	}
	if len(b) > shownMax {
		return clean(string(b[:shownMax])) + "..."
	}
	return string(b)
}

func names(all protoreflect.FieldDescriptors) string {
	var out []string
	for i := range all.Len() {
		out = append(out, string(all.Get(i).Name()))
	}
	slices.Sort(out)
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}

func sorted(all map[string]any) []string {
	out := make([]string, 0, len(all))
	for name := range all {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}
