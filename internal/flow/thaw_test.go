package flow

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/frozen"
)

// samples are flows in every state, with all that a TCP flow can carry.
func samples(t testing.TB) []*frozen.Flow {
	t.Helper()
	var out []*frozen.Flow
	for _, text := range []string{
		"wait 1\nplace",
		"place\nsecured 0\nwait 20\ndial-failed\nsecured 1",
		"secured 0\ndialed",
		"secured 2\ndialed\nclient room 100\nbackend room 10\nclient says 900\nbackend says 600\nclient fin",
		"secured 1\ndialed\nclient says 30\nbackend fin\nwait 7",
		"secured 1\ndialed\nbackend room 10\nclient says 30\nclient rst\nbackend says 40",
	} {
		script, bulk, err := parse(text)
		if err != nil {
			t.Fatal(err)
		}
		w := newWorld(script, bulk)
		for i := range script {
			w.Step(i)
		}
		if _, ok, err := w.Freeze(); err != nil || !ok {
			t.Fatalf("%q: %t %v", text, ok, err)
		}
		out = append(out, w.z)
	}
	return out
}

// A frozen flow of any contents: Thaw refuses it, or what comes of it lives.
func FuzzThaw(f *testing.F) {
	for _, z := range samples(f) {
		octets, err := proto.Marshal(z)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(octets, []byte("\x03\x50\xd0\x54\x09"))
	}
	f.Fuzz(func(t *testing.T, octets, code []byte) {
		z := &frozen.Flow{}
		if proto.Unmarshal(octets, z) != nil {
			return
		}
		known := objects.Config
		if z.Listener != nil { // a fuzzer does not guess versions
			z.Listener = ref(known.Listeners["a"].Ref)
		}
		if z.Backend != nil {
			z.Backend = ref(known.Backends["many"].Ref)
		}
		if z.Endpoint != nil {
			z.Endpoint = ref(known.Backends["many"].Endpoints[z.Endpoint.Version%3].Ref)
		}
		script, bulk := compile(code)
		w := newWorld(script, bulk)
		thawed, err := Thaw(w.now, z, objects)
		if err != nil {
			var no *frozen.Refused
			if !errors.As(err, &no) {
				t.Fatalf("%v is no refusal", err)
			}
			return
		}
		w.f = thawed
		for s := Client; s <= Backend; s++ {
			w.legs[s].fin, w.legs[s].shut, w.legs[s].rst = w.f.Ended(s), w.f.Shut(s), isBroken(&w.f, s)
		}
		w.drive()
		for i := range script {
			w.Step(i)
			spoilScratch(w)
			if w.f.State() == Done {
				break
			}
			if again, ok, err := w.Freeze(); err != nil || !ok {
				t.Fatalf("freeze: %t %v", ok, err)
			} else if err := w.Thaw(again); err != nil {
				t.Fatalf("a flow that was accepted is not when it moves on: %v", err)
			}
		}
	})
}

func spoilScratch(w *world) {
	for i := range w.scratch {
		w.scratch[i] = 0xA5
	}
}

// What could never have come to be is refused, each for its reason.
func TestThawRefuses(t *testing.T) {
	all := samples(t)
	for _, c := range []struct {
		name   string
		sample int
		spoil  func(*frozen.Flow)
		want   string
	}{
		{"no state", 0, func(z *frozen.Flow) { z.State = 0 }, "state"},
		{"a later state", 0, func(z *frozen.Flow) { z.State = 4 }, "state"},
		{"no listener", 0, func(z *frozen.Flow) { z.Listener = nil }, "object"},
		{"no backend", 0, func(z *frozen.Flow) { z.Backend = nil }, "object"},
		{"a listener of another version", 0, func(z *frozen.Flow) { z.Listener.Version++ }, "no listener"},
		{"a backend of another version", 0, func(z *frozen.Flow) { z.Backend.Version++ }, "no backend"},
		{"an endpoint of another version", 1, func(z *frozen.Flow) { z.Endpoint.Version++ }, "no endpoint"},
		{"queued with an endpoint", 0, func(z *frozen.Flow) { z.Endpoint = all[1].Endpoint }, "object"},
		{"dialing without one", 1, func(z *frozen.Flow) { z.Endpoint = nil }, "object"},
		{"no client", 2, func(z *frozen.Flow) { z.Client = nil }, "client"},
		{"octets before a backend", 0, func(z *frozen.Flow) { z.Client.Received = 1 }, "leg"},
		{"a FIN before a backend", 1, func(z *frozen.Flow) { z.Client.Ended = true }, "leg"},
		{"relaying to nobody", 2, func(z *frozen.Flow) { z.Legs = nil }, "backend legs"},
		{"two backends", 2, func(z *frozen.Flow) { z.Legs = append(z.Legs, &frozen.Leg{}) }, "backend legs"},
		{"too much unsent", 2, func(z *frozen.Flow) { z.Client.Unsent = make([]byte, UnsentMax+1) }, "limit"},
		{"an octet lost", 3, func(z *frozen.Flow) { z.Client.Unsent = z.Client.Unsent[1:] }, "octets came"},
		{"an octet doubled", 3, func(z *frozen.Flow) { z.Legs[0].Unsent = append(z.Legs[0].Unsent, 1) }, "octets came"},
		{"received forgotten", 3, func(z *frozen.Flow) { z.Client.Received = 0 }, "octets came"},
		{"FIN before the octets", 3, func(z *frozen.Flow) { z.Legs[0].Shut = true }, "FIN was sent"},
		{"FIN that nobody said", 2, func(z *frozen.Flow) { z.Client.Shut = true }, "FIN was sent"},
		{"octets for a broken leg", 5, func(z *frozen.Flow) { z.Client.Unsent = []byte{1} }, "broken"},
		{"ended on both sides", 2, func(z *frozen.Flow) { z.Client.Ended, z.Legs[0].Ended = true, true }, "ended"},
		{"broken on both sides", 2, func(z *frozen.Flow) { z.Client.Broken, z.Legs[0].Broken = true, true }, "ended"},
		{"an endless deadline", 2, func(z *frozen.Flow) { z.LeftNanos = 1 << 63 }, "bounds"},
		{"an endless age", 2, func(z *frozen.Flow) { z.AgeNanos = 1 << 63 }, "bounds"},
		{"endless attempts", 2, func(z *frozen.Flow) { z.Attempts = 1 << 20 }, "bounds"},
	} {
		t.Run(c.name, func(t *testing.T) {
			z := proto.Clone(all[c.sample]).(*frozen.Flow)
			if _, err := Thaw(5e9, z, objects); err != nil {
				t.Fatalf("untouched: %v", err)
			}
			c.spoil(z)
			_, err := Thaw(5e9, z, objects)
			var no *frozen.Refused
			if !errors.As(err, &no) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want a refusal with %q", err, c.want)
			}
		})
	}
}

// Every field of a flow travels under a name of the schema or says why not,
// and every field of the schema is filled by one, or by the carrier.
func TestEveryFieldIsDecided(t *testing.T) {
	filled := map[string]bool{ // by the carrier, or by other names
		"Leg.fd": true, "Leg.socket": true,
		"H1.tunnel":  true,                          // a flow of HTTP without an exchange
		"H1.request": true, "H1.request_sent": true, // half.buf and off, of the backend leg
	}
	messages := map[string]protoreflect.MessageDescriptor{}
	for _, m := range []proto.Message{&frozen.Flow{}, &frozen.Leg{}, &frozen.H1{}, &frozen.H1Leg{}} {
		d := m.ProtoReflect().Descriptor()
		messages[string(d.Name())] = d
	}
	for _, c := range []struct {
		of      reflect.Type
		message string
	}{
		{reflect.TypeFor[Flow](), "Flow"},
		{reflect.TypeFor[work](), "Flow"},
		{reflect.TypeFor[half](), "Leg"},
		{reflect.TypeFor[exchange](), "H1"},
		{reflect.TypeFor[inbox](), "H1Leg"},
		{reflect.TypeFor[Address](), "Flow"},
	} {
		for i := range c.of.NumField() {
			f := c.of.Field(i)
			names := f.Tag.Get("frozen")
			switch {
			case names == "":
				t.Errorf("%v.%s: nobody decided whether it moves", c.of, f.Name)
			case names == "-" && f.Tag.Get("why") == "":
				t.Errorf("%v.%s stays behind and does not say why", c.of, f.Name)
			case names == "-":
			default:
				for _, name := range strings.Split(names, ",") {
					message, field, qualified := strings.Cut(name, ".")
					if !qualified {
						message, field = c.message, name
					}
					filled[message+"."+field] = true
					if m := messages[message]; m == nil || m.Fields().ByName(protoreflect.Name(field)) == nil {
						t.Errorf("%v.%s: %s has no field %s", c.of, f.Name, message, field)
					}
				}
			}
		}
	}
	for name, m := range messages {
		for i := range m.Fields().Len() {
			if field := string(m.Fields().Get(i).Name()); !filled[name+"."+field] {
				t.Errorf("%s.%s: nothing becomes it", name, field)
			}
		}
	}
}

// carried finds the objects that a batch brought along.
type carried map[config.Ref]any

func (c carried) Listener(name string, version uint64) *config.Listener {
	l, _ := c[config.Ref{Kind: config.ListenerKind, Name: name, Version: version}].(*config.Listener)
	return l
}

func (c carried) Backend(name string, version uint64) *config.Backend {
	b, _ := c[config.Ref{Kind: config.BackendKind, Name: name, Version: version}].(*config.Backend)
	return b
}

func (c carried) Endpoint(name string, version uint64) *config.Endpoint {
	e, _ := c[config.Ref{Kind: config.EndpointKind, Name: name, Version: version}].(*config.Endpoint)
	return e
}

// What a release has frozen thaws in every later one: these files are made
// once, when a format or a field is new, and never again. A release that
// cannot read one breaks the upgrade from the release that wrote it.
func TestFrozenByEarlierReleases(t *testing.T) {
	const file = "testdata/frozen-1.bin"
	if _, err := os.Stat(file); *rewrite && errors.Is(err, os.ErrNotExist) {
		c := objects.Config
		l, b := c.Listeners["a"], c.Backends["many"]
		batch := &frozen.Batch{Flows: samples(t), Objects: []*frozen.Object{
			{Kind: frozen.Object_LISTENER, Name: l.Ref.Name, Version: l.Ref.Version, Encoding: l.Encode()},
			{Kind: frozen.Object_BACKEND, Name: b.Ref.Name, Version: b.Ref.Version, Encoding: b.Encode()},
		}}
		for _, e := range b.Endpoints {
			batch.Objects = append(batch.Objects, &frozen.Object{Kind: frozen.Object_ENDPOINT, Name: e.Ref.Name, Version: e.Ref.Version, Encoding: e.Encode()})
		}
		octets, err := batch.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, octets, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	octets, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	batch, err := frozen.Decode(octets)
	if err != nil {
		t.Fatal(err)
	}
	found := carried{}
	for _, o := range batch.Objects {
		kind := map[frozen.Object_Kind]config.Kind{
			frozen.Object_LISTENER: config.ListenerKind, frozen.Object_BACKEND: config.BackendKind, frozen.Object_ENDPOINT: config.EndpointKind,
		}[o.Kind]
		x, err := config.DecodeObject(kind, o.Name, o.Encoding)
		if err != nil {
			t.Fatalf("%v %s: %v", o.Kind, o.Name, err)
		}
		found[config.Ref{Kind: kind, Name: o.Name, Version: o.Version}] = x
	}
	if len(batch.Flows) != 6 {
		t.Fatalf("%d flows", len(batch.Flows))
	}
	for i, z := range batch.Flows {
		f, err := Thaw(1e12, z, found)
		if err != nil {
			t.Errorf("flow %d: %v", i, err)
			continue
		}
		again, err := f.Freeze(1e12)
		if err != nil {
			t.Fatal(err)
		}
		if again.Moves--; !proto.Equal(again, z) {
			t.Errorf("flow %d thawed and frozen is\n%v, was\n%v", i, again.Summary(), z.Summary())
		}
	}
	// All of the octets that were due, and no others.
	z := batch.Flows[3]
	if got, want := z.Legs[0].Unsent, octetsOf(Client, int(z.Legs[0].Sent), 900); string(got) != string(want[:len(got)]) {
		t.Errorf("due to the backend: %x", got)
	}
}

func octetsOf(s Side, from, to int) []byte { return octets(s, from, to-from) }
