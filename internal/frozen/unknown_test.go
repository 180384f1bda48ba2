package frozen

import (
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// fill puts one of each message into m, down to the leaves.
func fill(m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		switch f := fields.Get(i); {
		case f.Kind() != protoreflect.MessageKind:
		case f.IsList():
			list := m.Mutable(f).List()
			x := list.NewElement()
			fill(x.Message())
			list.Append(x)
		default:
			fill(m.Mutable(f).Message())
		}
	}
}

// messages are m and all that it holds.
func messages(m protoreflect.Message) []protoreflect.Message {
	all := []protoreflect.Message{m}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Kind() != protoreflect.MessageKind:
		case f.IsList():
			for i := range v.List().Len() {
				all = append(all, messages(v.List().Get(i).Message())...)
			}
		default:
			all = append(all, messages(v.Message())...)
		}
		return true
	})
	return all
}

// A field that is not in the schema is refused wherever it stands: the messages are
// found by reflection here, so that one that is new cannot be forgotten.
func TestUnknownFieldAnywhereIsRefused(t *testing.T) {
	batch := &Batch{Format: Format}
	fill(batch.ProtoReflect())
	b, err := batch.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(b); err != nil {
		t.Fatalf("one of each message: %v", err)
	}
	all := messages(batch.ProtoReflect())
	if len(all) < 14 {
		t.Fatalf("%d messages in a batch with one of each", len(all))
	}
	for _, m := range all {
		m.SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 1<<20, protowire.VarintType), 1))
		b, err := batch.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(b); err == nil {
			t.Errorf("a field that nobody knows in %v was not refused", m.Descriptor().FullName())
		}
		m.SetUnknown(nil)
	}
}
