package wire_test

import (
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/holdfast-lb/holdfast/api/holdfast/v1"
	"github.com/holdfast-lb/holdfast/internal/admin/wire"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// The form is written as documented: every field, in the schema's order and with
// its names, numbers as numbers.
func TestForm(t *testing.T) {
	for _, c := range []struct {
		m    proto.Message
		want string
	}{
		{&v1.KillReport{Killed: math.MaxInt64}, `{"killed":9223372036854775807,"left":0,"millis":0}`},
		{&v1.ShedReport{Backend: "a<b>&\n", Percent: 0.5, Until: timestamppb.New(time.Unix(1, 500))},
			`{"backend":"a<b>&\n","percent":0.5,"was":0,"as":"","until":"1970-01-01T00:00:01.0000005Z","loops":0,"effective_ms":0}`},
		{&v1.Pause{P50: math.Inf(1), P99: math.Inf(-1), Max: math.NaN()}, `{"p50":"Infinity","p99":"-Infinity","max":"NaN"}`},
		{&v1.Event{Fields: map[string]string{"b": "2", "a": "1"}}, `{"seq":0,"kind":"","generation":0,"object":"","text":"","by":"","fields":{"a":"1","b":"2"}}`},
		{durationpb.New(1500 * time.Millisecond), `"1.5s"`}, {durationpb.New(-time.Millisecond), `"-0.001s"`}, {durationpb.New(0), `"0s"`},
		{&v1.FlowsResponse{}, `{"flows":[]}`},
	} {
		b, err := wire.JSON{}.Marshal(c.m)
		if err != nil || strings.TrimSuffix(string(b), "\n") != c.want {
			t.Errorf("%v\n%s, want\n%s", err, b, c.want)
		}
		// The standard reader understands it.
		again := c.m.ProtoReflect().New().Interface()
		if err := protojson.Unmarshal(b, again); err != nil || !proto.Equal(again, c.m) && !strings.Contains(c.want, "NaN") {
			t.Errorf("%s: %v, %v", b, again, err)
		}
	}
}

// What people and programs send is understood in each of its forms, and the rest
// is refused by its place.
func TestReading(t *testing.T) {
	minute := &v1.ShiftRequest{Over: durationpb.New(time.Minute)}
	for text, want := range map[string]proto.Message{
		``: &v1.ShiftRequest{}, `{}`: &v1.ShiftRequest{}, " {\n}\n": &v1.ShiftRequest{}, `{"over":null}`: &v1.ShiftRequest{},
		`{"over":"1m"}`: minute, `{"over":"60s"}`: minute, `{"over":60}`: minute, `{"over":"0.5m30s"}`: minute,
		`{"weight":7}`: &v1.ShiftRequest{Weight: 7}, `{"weight":"7"}`: &v1.ShiftRequest{Weight: 7},
		`{"abort_on":"x"}`: &v1.ShiftRequest{AbortOn: "x"}, `{"abortOn":"x"}`: &v1.ShiftRequest{AbortOn: "x"},
		`{"expected_generation":18446744073709551615}`: &v1.ShiftRequest{ExpectedGeneration: math.MaxUint64},
	} {
		got := &v1.ShiftRequest{}
		if err := (wire.JSON{}).Unmarshal([]byte(text), got); err != nil || !proto.Equal(got, want) {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		`{`: "no JSON", `[]`: "want an object, not []", `{} {}`: "goes on", `{}x`: "goes on", `{"wait":1}`: `ChangeRequest has no field "wait"; there are: abort_on, canary,`,
		`{"reread":"yes"}`: "reread: want true or false, not \"yes\"", `{"source":5}`: "source: want a string, not 5",
		`{"rollback":-1}`: "rollback: want a whole number from 0, not -1", `{"rollback":1.5}`: "rollback: want a whole number",
		`{"edits":{}}`: "edits: want a list", `{"edits":[{"object":"x"},{"object":true}]}`: "edits[1].object: want a string",
		`{"flows":{"jitter":"much"}}`: "flows.jitter: want a number", `{"flows":{"pace":1}}`: `flows: FlowsPolicy has no field "pace"`,
		`{"canary":"soon"}`: "canary: want a duration as in 30s", `{"canary":[]}`: "canary: want a duration",
	} {
		err := (wire.JSON{}).Unmarshal([]byte(text), &v1.ChangeRequest{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	var q node.KillRequest
	if err := wire.From(&v1.KillRequest{Filter: &v1.FlowsRequest{Client: "10.0.0.0/99"}}, &q); err == nil || !strings.Contains(err.Error(), "filter.client: ") {
		t.Errorf("%v", err)
	}
	var far node.ShiftRequest
	if err := wire.From(&v1.ShiftRequest{Over: &durationpb.Duration{Seconds: math.MaxInt64}}, &far); err == nil {
		t.Errorf("a duration of %v", far.Over)
	}
}

// Texts that quote what peers have sent are sent on, whatever octets are in them.
func TestAnyOctets(t *testing.T) {
	m := wire.To[v1.KillReport](&node.KillReport{})
	if _, err := proto.Marshal(m); err != nil {
		t.Fatal(err)
	}
	e := wire.To[v1.Event](&node.Event{Text: "a\xffb", Fields: map[string]string{"\xfe": "\xfd"}})
	if _, err := proto.Marshal(e); err != nil || e.Text != "a\uFFFDb" {
		t.Errorf("%q, %v", e.Text, err)
	}
}

// Whatever is sent, reading it ends with a message or a refusal, and what was read
// is written so that it is read again as the same.
func FuzzJSON(f *testing.F) {
	f.Add(`{"edits":[{"object":"endpoint/web/a","field":"weight","value":"5"}],"flows":{"on":"keep"},"canary":"30s"}`)
	f.Add(`{"source":"listeners: {}","expectedGeneration":"7","revert":[{}],"dry_run":true}`)
	f.Fuzz(func(t *testing.T, text string) {
		m := &v1.ChangeRequest{}
		if (wire.JSON{}).Unmarshal([]byte(text), m) != nil {
			return
		}
		b, err := wire.JSON{}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		again := &v1.ChangeRequest{}
		if err := (wire.JSON{}).Unmarshal(b, again); err != nil || !proto.Equal(m, again) {
			t.Errorf("%q: %v is %v after %s: %v", text, m, again, b, err)
		}
	})
}
