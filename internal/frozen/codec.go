package frozen

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Format is the number of the form that this release writes.
const Format = 1

// BatchMax bounds an encoded batch in octets: a batch is small by design, and
// a peer that offers more is refused before anything is decoded.
const BatchMax = 64 << 20

// Refused says why a flow or a batch cannot be put down or picked up, in words
// that a person can act on. Retry tells that the reason will pass by itself.
type Refused struct {
	What  string // the part that refuses, as in "leg", "format"
	Why   string
	Retry bool
}

func (r *Refused) Error() string { return "frozen: " + r.What + ": " + r.Why }

// Encode writes the batch for a carrier.
func (b *Batch) Encode() ([]byte, error) { return b.AppendTo(nil) }

// AppendTo is Encode into the room behind out, if there is enough.
func (b *Batch) AppendTo(out []byte) ([]byte, error) {
	b.Format = Format
	out, err := proto.MarshalOptions{}.MarshalAppend(out, b)
	if err != nil {
		return nil, fmt.Errorf("frozen: encode: %w", err)
	}
	if len(out) > BatchMax {
		return nil, &Refused{What: "batch", Why: fmt.Sprintf("%d octets, the limit is %d", len(out), BatchMax)}
	}
	return out, nil
}

// Decode reads what Encode wrote, here or in another release. Anything that it
// does not fully know is a [Refused]. The batch keeps no part of b.
func Decode(b []byte) (*Batch, error) {
	if len(b) > BatchMax {
		return nil, &Refused{What: "batch", Why: fmt.Sprintf("%d octets, the limit is %d", len(b), BatchMax)}
	}
	var batch Batch
	if err := proto.Unmarshal(b, &batch); err != nil {
		return nil, &Refused{What: "batch", Why: fmt.Sprintf("not readable: %v", err)}
	}
	if batch.Format != Format {
		return nil, &Refused{What: "format", Why: fmt.Sprintf("%d is not known to this release, which reads %d", batch.Format, Format)}
	}
	if where := unknown(batch.ProtoReflect()); where != "" {
		return nil, &Refused{What: where, Why: "a field that this release does not know"}
	}
	return &batch, nil
}

// unknown finds a message that holds a field not in the schema. The protobuf
// library keeps such fields without a word, which for a flow means losing
// state.
func unknown(m protoreflect.Message) (where string) {
	if len(m.GetUnknown()) > 0 {
		return string(m.Descriptor().Name())
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Kind() != protoreflect.MessageKind:
		case f.IsList():
			for i := range v.List().Len() {
				if where = unknown(v.List().Get(i).Message()); where != "" {
					return false
				}
			}
		default:
			where = unknown(v.Message())
		}
		return where == ""
	})
	return where
}

// Summary describes a flow without any of its octets; a frozen flow is never
// printed in another way.
func (f *Flow) Summary() string {
	legs := ""
	for _, l := range append([]*Leg{f.GetClient()}, f.GetLegs()...) {
		legs += fmt.Sprintf(" leg(in %d, out %d, unsent %d, ended %t, shut %t, socket %d B)",
			l.GetReceived(), l.GetSent(), len(l.GetUnsent()), l.GetEnded(), l.GetShut(), len(l.GetSocket()))
	}
	return fmt.Sprintf("f-%x %v %s -> %s moved %dx%s", f.GetId(), f.GetState(), f.GetListener().GetName(), f.GetEndpoint().GetName(), f.GetMoves(), legs)
}

// Size is how many octets the flow's form takes.
func (f *Flow) Size() int { return proto.Size(f) }
