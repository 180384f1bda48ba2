package frozen

import (
	"fmt"

	"google.golang.org/protobuf/proto"
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
	if where := batch.unknown(); where != "" {
		return nil, &Refused{What: where, Why: "a field that this release does not know"}
	}
	return &batch, nil
}

// unknown finds a message that holds a field not in the schema. The protobuf
// library keeps such fields without a word, which for a flow means losing
// state. It looks at each message by name, for flows stand still meanwhile: by
// reflection this took longer than the decoding.
func (b *Batch) unknown() (where string) {
	if len(b.unknownFields) > 0 {
		return "Batch"
	}
	for _, o := range b.Objects {
		if len(o.unknownFields) > 0 {
			return "Object"
		}
	}
	for _, l := range b.Idle {
		if len(l.unknownFields) > 0 {
			return "IdleLeg"
		}
	}
	for _, f := range b.Flows {
		if where = f.unknown(); where != "" {
			return where
		}
	}
	return ""
}

func (f *Flow) unknown() (where string) {
	if len(f.unknownFields) > 0 {
		return "Flow"
	}
	for _, r := range [...]*Ref{f.Listener, f.Backend, f.Endpoint} {
		if r != nil && len(r.unknownFields) > 0 {
			return "Ref"
		}
	}
	if h := f.H1; h != nil {
		if len(h.unknownFields) > 0 {
			return "H1"
		}
		if h.Entry != nil && len(h.Entry.unknownFields) > 0 {
			return "Entry"
		}
	}
	if f.Client != nil {
		where = f.Client.unknown()
	}
	for i := 0; where == "" && i < len(f.Legs); i++ {
		where = f.Legs[i].unknown()
	}
	return where
}

func (l *Leg) unknown() (where string) {
	switch {
	case len(l.unknownFields) > 0:
		return "Leg"
	case l.H1 == nil:
	case len(l.H1.unknownFields) > 0:
		return "H1Leg"
	case l.H1.Body != nil && len(l.H1.Body.unknownFields) > 0:
		return "Body"
	}
	return ""
}

// Summary describes a flow without any of its octets; a frozen flow is never
// printed in another way.
func (f *Flow) Summary() string {
	legs := ""
	for _, l := range append([]*Leg{f.GetClient()}, f.GetLegs()...) {
		legs += fmt.Sprintf(" leg(in %d, out %d, unsent %d, ended %t, shut %t)",
			l.GetReceived(), l.GetSent(), len(l.GetUnsent()), l.GetEnded(), l.GetShut())
	}
	return fmt.Sprintf("f-%x %v %s -> %s moved %dx%s", f.GetId(), f.GetState(), f.GetListener().GetName(), f.GetEndpoint().GetName(), f.GetMoves(), legs)
}

// Size is how many octets the flow's form takes.
func (f *Flow) Size() int { return proto.Size(f) }
