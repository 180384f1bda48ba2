package frozentest

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/holdfast-lb/holdfast/internal/frozen"
)

// full fills every field of m and of all messages in it, so that a field that
// the schema gains later is in these tests without a line here.
func full(m protoreflect.Message, salt *uint64) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		*salt++
		var v protoreflect.Value
		switch f.Kind() {
		case protoreflect.MessageKind:
			if f.IsList() {
				list := m.Mutable(f).List()
				for range 2 {
					x := list.NewElement()
					full(x.Message(), salt)
					list.Append(x)
				}
			} else {
				full(m.Mutable(f).Message(), salt)
			}
			continue
		case protoreflect.BoolKind:
			v = protoreflect.ValueOfBool(true)
		case protoreflect.StringKind:
			v = protoreflect.ValueOfString(fmt.Sprintf("name-%d", *salt))
		case protoreflect.BytesKind:
			v = protoreflect.ValueOfBytes(fmt.Appendf(nil, "octets-%d", *salt))
		case protoreflect.Uint32Kind:
			v = protoreflect.ValueOfUint32(uint32(*salt))
		case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
			v = protoreflect.ValueOfUint64(*salt)
		case protoreflect.EnumKind:
			v = protoreflect.ValueOfEnum(f.Enum().Values().Get(1).Number())
		default:
			panic(fmt.Sprintf("%v: this kind is new, say how to fill it", f.FullName()))
		}
		m.Set(f, v)
	}
}

// each calls do for every message in m, itself included.
func each(m protoreflect.Message, path string, do func(string, protoreflect.Message)) {
	do(path, m)
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Kind() != protoreflect.MessageKind:
		case f.IsList():
			for i := range v.List().Len() {
				each(v.List().Get(i).Message(), fmt.Sprintf("%s.%s[%d]", path, f.Name(), i), do)
			}
		default:
			each(v.Message(), fmt.Sprintf("%s.%s", path, f.Name()), do)
		}
		return true
	})
}

func fullBatch() *frozen.Batch {
	b, salt := &frozen.Batch{}, uint64(0)
	full(b.ProtoReflect(), &salt)
	return b
}

func TestRoundTripKeepsEveryField(t *testing.T) {
	b := fullBatch()
	octets, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := frozen.Decode(octets)
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got, b) {
		t.Errorf("got\n%v\nwant\n%v", got, b)
	}
	for i := range octets {
		octets[i] ^= 0xFF
	}
	if !proto.Equal(got, b) {
		t.Error("the batch shares memory with what it was decoded from")
	}
}

// A field that this release does not know is state that it would lose: at
// whatever depth it stands, the batch is refused.
func TestUnknownFieldIsRefused(t *testing.T) {
	var paths []string
	each(fullBatch().ProtoReflect(), "batch", func(p string, _ protoreflect.Message) { paths = append(paths, p) })
	if len(paths) < 12 {
		t.Fatalf("only %d messages: %v", len(paths), paths)
	}
	for _, path := range paths {
		for _, number := range []protowire.Number{15, 16, 17, 18, 31, 32, 63, 500000} {
			b, known := fullBatch(), false
			each(b.ProtoReflect(), "batch", func(p string, m protoreflect.Message) {
				if p == path {
					known = m.Descriptor().Fields().ByNumber(number) != nil
					m.SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, number, protowire.VarintType), 1))
				}
			})
			if known {
				continue
			}
			octets, err := b.Encode()
			if err != nil {
				t.Fatal(err)
			}
			_, err = frozen.Decode(octets)
			var no *frozen.Refused
			if !errors.As(err, &no) || no.Retry {
				t.Errorf("%s with a field %d: %v, want a refusal", path, number, err)
			}
		}
	}
}

func TestOtherFormatIsRefused(t *testing.T) {
	for _, format := range []uint32{0, frozen.Format + 1, 1 << 31} {
		octets, err := proto.Marshal(&frozen.Batch{Format: format})
		if err != nil {
			t.Fatal(err)
		}
		_, err = frozen.Decode(octets)
		if err == nil || !strings.Contains(err.Error(), "format") {
			t.Errorf("format %d: %v", format, err)
		}
	}
}

// Whatever comes, Decode answers; what it accepts is encoded to the same.
func FuzzDecode(f *testing.F) {
	octets, err := fullBatch().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(octets)
	f.Add([]byte("\x08\x01"))
	f.Fuzz(func(t *testing.T, octets []byte) {
		b, err := frozen.Decode(octets)
		if err != nil {
			var no *frozen.Refused
			if !errors.As(err, &no) {
				t.Fatalf("%v is no refusal", err)
			}
			return
		}
		again, err := b.Encode()
		if err != nil {
			t.Fatal(err)
		}
		c, err := frozen.Decode(again)
		if err != nil || !proto.Equal(b, c) {
			t.Fatalf("again: %v", err)
		}
		for _, z := range b.Flows {
			_ = z.Summary()
		}
	})
}

// A frozen flow holds octets of users: its description must not.
func TestSummaryShowsNoOctets(t *testing.T) {
	z := fullBatch().Flows[0]
	z.Client.Unsent = []byte("user-secret")
	z.Client.Socket = []byte("socket-secret")
	if s := z.Summary(); strings.Contains(s, "secret") {
		t.Errorf("summary: %s", s)
	}
}
