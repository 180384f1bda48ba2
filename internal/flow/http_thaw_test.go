package flow

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/h1"
)

// httpSamples are flows that speak HTTP, in every state and with all that they
// can carry.
var httpSamples = map[string]string{
	"idle":      "client asks GET /1\nbackend answers len 3",
	"half":      "client says \"GET /1 HT\"",
	"greeting":  "listener greeted\nclient says \"PROXY TCP4\"",
	"plain":     "listener plain\nclient says \"PROXY TCP4\"",
	"early":     "listener plain\nmanual\nclient greets\nclient says \"hello\"",
	"queued":    "manual\nclient asks GET /1\nclient asks GET /2\nplace",
	"dialing":   "manual\nclient asks POST /1 len=40\nsecured 0\nwait 100\ndial-failed\nsecured 1",
	"awaiting":  "client asks GET /1",
	"upload":    "client asks PUT /1 chunks=5,60 ext later\nclient says \"5\\r\\nabc\"",
	"blocked":   "client asks POST /1 later len=900\nbackend slow\nbackend room 100\nclient goes-on",
	"head":      "client asks GET /1\nbackend says \"HTTP/1.1 200 O\"",
	"response":  "client asks GET /1\nclient slow\nclient room 120\nbackend answers chunks 9000\nclient asks GET /2",
	"taking":    "client asks GET /1\nclient slow\nclient room 50\nbackend answers len 0",
	"cut":       "client asks GET /1\nclient slow\nclient room 50\nbackend answers close 40\nbackend vanishes",
	"answering": "client slow\nclient room 50\nclient asks GET /hello/1",
	"lingering": "client asks POST /1 later len=9\nbackend answers len 4",
	"tunnel":    "client asks GET /1 upgrade=websocket\nclient slow\nclient room 80\nbackend answers switch 30",
	"sunk":      "client asks GET /sink/1\nwait 5\nclient asks GET /sink/2",
	"retrying":  "manual\nclient asks GET /again/1 agent=me\nwait 3\nsecured 0\nwait 4\ndialed\nbackend answers busy 9\nplace",
	"unwanted":  "client asks GET /again/1\nbackend says \"HTTP/1.1 503 B\"",
	"stuck":     "manual\nclient asks GET /stick/1 stuck=e3,3600\nsecured 2",
	"limited":   "client slow\nclient room 50\nlimited 9\nclient asks GET /falls/1 user=x",
	"repeated":  "client asks GET /1\nbackend answers len 3\nclient asks GET /2\nbackend room 0\nbackend slow",
}

func httpSample(t testing.TB, name string) *frozen.Flow {
	t.Helper()
	s, err := parseHTTP(httpSamples[name])
	if err != nil {
		t.Fatal(err)
	}
	w := newHTTPWorld(s)
	for i := range s.hops {
		w.Step(i)
	}
	octets, ok, err := w.Freeze()
	if err != nil || !ok {
		t.Fatalf("%s: %t %v", name, ok, err)
	}
	batch, err := frozen.Decode(octets)
	if err != nil {
		t.Fatal(err)
	}
	return batch.Flows[0]
}

// The samples are what their names say, or else the tests of them prove nothing.
func TestHTTPSamples(t *testing.T) {
	want := map[string]State{
		"idle": Reading, "half": Reading, "greeting": Reading, "plain": Reading, "early": Queued, "queued": Queued, "dialing": Dialing,
		"awaiting": Relaying, "upload": Relaying, "blocked": Relaying, "head": Relaying, "response": Relaying, "taking": Relaying,
		"sunk": Sunk, "retrying": Queued, "unwanted": Relaying, "stuck": Dialing, "limited": Answering,
		"cut": Relaying, "answering": Answering, "lingering": Lingering, "tunnel": Relaying, "repeated": Relaying,
	}
	for name := range httpSamples {
		z := httpSample(t, name)
		if State(z.State) != want[name] {
			t.Errorf("%s is %v, want %v", name, State(z.State), want[name])
		}
		if z.H1 == nil && name != "early" {
			t.Errorf("%s does not speak HTTP", name)
		}
	}
	if z := httpSample(t, "taking"); len(z.Legs) > 0 || z.Endpoint != nil || len(z.Client.Unsent) == 0 {
		t.Error("taking still has a backend leg")
	}
	if z := httpSample(t, "cut"); !z.Legs[0].Broken || len(z.Client.Unsent) == 0 {
		t.Error("cut is not broken")
	}
	if z := httpSample(t, "retrying"); z.Attempts != 1 || facts(z.Facts)&paid == 0 || z.WaitMicros == 0 || z.ConnectMicros == 0 || string(z.H1.Entry.GetAgent()) != "me" || z.H1.Entry.Endpoint != "e1" {
		t.Errorf("retrying is not: %v", z)
	}
	if z := httpSample(t, "stuck"); z.H1.Stuck != "e3" || facts(z.Facts)&stuck == 0 {
		t.Errorf("stuck is not: %v", z)
	}
	if z := httpSample(t, "limited"); Cause(z.H1.Entry.GetCause()) != RateLimited || Phase(z.H1.Entry.Phase) != Head {
		t.Errorf("limited is not: %v", z)
	}
	if z := httpSample(t, "upload"); z.Client.H1.Body.Left == 0 {
		t.Error("upload is not in a chunk")
	}
	if z := httpSample(t, "repeated"); exchangeFlags(z.H1.Flags)&(reused|repeatable) != reused|repeatable || len(z.H1.Request) == 0 {
		t.Error("repeated could not be sent again")
	}
}

// What no flow that speaks HTTP could have come to is refused, each for its
// reason.
func TestThawRefusesHTTP(t *testing.T) {
	body := func(length uint64) *frozen.Body {
		b := h1.NewBody(h1.ByLength, length)
		return b.Freeze()
	}
	for _, c := range []struct {
		name   string
		sample string
		spoil  func(*frozen.Flow)
		want   string
	}{
		{"no exchange", "half", func(z *frozen.Flow) { z.H1 = nil }, "does not"},
		{"TCP with an exchange", "plain", func(z *frozen.Flow) { z.H1.Flags = 0 }, "does not"},
		{"TCP that reads", "plain", func(z *frozen.Flow) { z.H1, z.Client.H1 = nil, nil }, "h1"},
		{"TCP that is idle", "plain", func(z *frozen.Flow) { z.H1, z.Client.H1, z.Backend = nil, nil, nil }, "greeting"},
		{"a greeting while it waits", "queued", func(z *frozen.Flow) { z.H1.Flags |= uint32(greeting) }, "greeting"},
		{"a greeting that was answered", "greeting", func(z *frozen.Flow) { z.Client.Sent = 48 }, "greeting"},
		{"a greeting of a TCP flow that waits", "plain", func(z *frozen.Flow) { z.State = frozen.Flow_QUEUED }, "greeting"},
		{"a tunnel through TCP", "plain", func(z *frozen.Flow) { z.H1.Tunnel = true }, "state"},
		{"a later method", "awaiting", func(z *frozen.Flow) { z.H1.Method = 99 }, "not known"},
		{"a later version", "awaiting", func(z *frozen.Flow) { z.H1.Minor = 2 }, "not known"},
		{"a later flag", "awaiting", func(z *frozen.Flow) { z.H1.Flags |= 1 << 31 }, "not known"},
		{"a status of four digits", "response", func(z *frozen.Flow) { z.H1.Status = 1000 }, "not known"},
		{"a route beyond all", "awaiting", func(z *frozen.Flow) { z.H1.Route = 1 << 15 }, "not known"},
		{"endless requests", "awaiting", func(z *frozen.Flow) { z.H1.Requests = 1 << 32 }, "bounds"},
		{"endless requests of an idle one", "idle", func(z *frozen.Flow) { z.H1.Requests = 1 << 32 }, "bounds"},
		{"endless requests of a tunnel", "tunnel", func(z *frozen.Flow) { z.H1.Requests = 1 << 32 }, "bounds"},
		{"too much of a request", "awaiting", func(z *frozen.Flow) { z.H1.Request = make([]byte, UnsentMax+1) }, "of a request"},
		{"more sent than there is", "awaiting", func(z *frozen.Flow) { z.H1.RequestSent = 1 << 20 }, "of a request"},
		{"octets of a leg and of a request", "awaiting", func(z *frozen.Flow) { z.Legs[0].Unsent = []byte("x") }, "a tunnel and an exchange"},
		{"no request while it waits", "queued", func(z *frozen.Flow) { z.H1.Request = nil }, "without a request"},
		{"half a request sent while it waits", "queued", func(z *frozen.Flow) { z.H1.RequestSent = 1 }, "without a request"},
		{"a response while it waits", "queued", func(z *frozen.Flow) { z.H1.Status = 200 }, "without a request"},
		{"a backend's FIN while it waits", "queued", func(z *frozen.Flow) { z.Legs = []*frozen.Leg{{Ended: true}} }, "leg"},
		{"a backend's octets while it dials", "dialing", func(z *frozen.Flow) { z.Legs = []*frozen.Leg{{H1: &frozen.H1Leg{Unread: []byte("x")}}} }, "leg"},
		{"an endpoint and no leg", "awaiting", func(z *frozen.Flow) { z.Legs = nil }, "no leg"},
		{"a leg and no endpoint", "awaiting", func(z *frozen.Flow) { z.Endpoint = nil }, "no endpoint"},
		{"two backends", "awaiting", func(z *frozen.Flow) { z.Legs = append(z.Legs, &frozen.Leg{}) }, "backend legs"},
		{"all was taken", "taking", func(z *frozen.Flow) { z.Client.Unsent = nil }, "over"},
		{"no answer came, and no leg", "taking", func(z *frozen.Flow) { z.H1.Status = 0 }, "over"},
		{"a response that is over", "response", func(z *frozen.Flow) {
			z.Client.Unsent, z.Legs = nil, httpSample(t, "awaiting").Legs
			z.Endpoint = httpSample(t, "awaiting").Endpoint
		}, "over"},
		{"a broken leg, all was taken", "cut", func(z *frozen.Flow) { z.Client.Unsent = nil }, "over"},
		{"octets behind half a body", "upload", func(z *frozen.Flow) { z.Client.H1.Unread = []byte("x") }, "unread"},
		{"octets behind half a response", "response", func(z *frozen.Flow) { z.Legs[0].H1.Unread = []byte("x") }, "unread"},
		{"too many of them", "half", func(z *frozen.Flow) { z.Client.H1.Unread = make([]byte, BlockBytes+1) }, "unread"},
		{"no room for more of a head", "head", func(z *frozen.Flow) { z.Legs[0].H1.Unread = make([]byte, BlockBytes) }, "unread"},
		{"more scanned than there is", "half", func(z *frozen.Flow) { z.Client.H1.Scanned = 100 }, "scanned"},
		{"a body that could not be", "upload", func(z *frozen.Flow) { z.Client.H1.Body.State = 0 }, "body"},
		{"a response without a head", "awaiting", func(z *frozen.Flow) { z.Legs[0].H1.Body = body(5) }, "head"},
		{"no answer", "answering", func(z *frozen.Flow) { z.Client.Unsent = nil }, "no answer"},
		{"an answer of no status", "answering", func(z *frozen.Flow) { z.H1.Status = 0 }, "no answer"},
		{"an answer and a leg", "answering", func(z *frozen.Flow) { z.Legs = []*frozen.Leg{{Received: 1}} }, "leg"},
		{"an answer and a request", "answering", func(z *frozen.Flow) { z.H1.Request = []byte("GET") }, "request"},
		{"FIN behind the answer", "answering", func(z *frozen.Flow) { z.Client.Shut = true }, "ends"},
		{"an end while it relays", "awaiting", func(z *frozen.Flow) { z.Client.Broken = true }, "ends"},
		{"FIN to the backend", "awaiting", func(z *frozen.Flow) { z.Legs[0].Shut = true }, "ends"},
		{"lingering without end", "lingering", func(z *frozen.Flow) { z.LeftNanos = 0 }, "deadline"},
		{"lingering with unread octets", "lingering", func(z *frozen.Flow) { z.Client.H1.Unread = []byte("x") }, "unread"},
		{"a request in the midst of a head", "half", func(z *frozen.Flow) { z.H1.Request = []byte("GET") }, "another request"},
		{"an idle one with a FIN", "idle", func(z *frozen.Flow) { z.Client.Ended = true }, "between"},
		{"an idle one with an endpoint", "idle", func(z *frozen.Flow) { z.Endpoint = httpSample(t, "awaiting").Endpoint }, "object"},
		{"a tunnel that waits", "queued", func(z *frozen.Flow) { z.H1.Tunnel = true }, "state"},
		{"an octet lost in a tunnel", "tunnel", func(z *frozen.Flow) { z.Client.Unsent = z.Client.Unsent[1:] }, "octets came"},
		{"a request in a sink", "sunk", func(z *frozen.Flow) { z.H1.Request = []byte("GET") }, "sink"},
		{"a response in a sink", "sunk", func(z *frozen.Flow) { z.H1.Status = 200 }, "sink"},
		{"octets unread in a sink", "sunk", func(z *frozen.Flow) { z.Client.H1.Unread = []byte("x") }, "unread"},
		{"a leg in a sink", "sunk", func(z *frozen.Flow) { z.Legs = []*frozen.Leg{{Received: 1}} }, "leg"},
		{"a later fact of a leg", "retrying", func(z *frozen.Flow) { z.Facts |= 1 << 30 }, "not known"},
		{"an endless entry", "awaiting", func(z *frozen.Flow) { z.H1.Entry.AgeNanos = 1 << 63 }, "bounds"},
		{"an entry of more than was received", "awaiting", func(z *frozen.Flow) { z.H1.Entry.Received = 1 << 20 }, "bounds"},
		{"an entry of more than was sent", "awaiting", func(z *frozen.Flow) { z.H1.Entry.Sent = 1 << 20 }, "bounds"},
		{"a later cause", "limited", func(z *frozen.Flow) { z.H1.Entry.Cause = uint32(Causes) }, "bounds"},
		{"a later phase", "limited", func(z *frozen.Flow) { z.H1.Entry.Phase = 99 }, "bounds"},
		{"a request without a head", "awaiting", func(z *frozen.Flow) { z.H1.Entry.HeadMicros = 0 }, "head"},
		{"a head that is read and is not", "half", func(z *frozen.Flow) { z.H1.Entry.HeadMicros = 1 }, "head"},
		{"an entry of what is over", "lingering", func(z *frozen.Flow) { z.H1.Entry = &frozen.Entry{} }, "entry"},
		{"an entry without HTTP", "plain", func(z *frozen.Flow) { z.H1.Entry = &frozen.Entry{} }, "entry"},
		{"a method that was not cut", "awaiting", func(z *frozen.Flow) { z.H1.Entry.Method = make([]byte, noteMethodMax+1) }, "note"},
		{"a target that was not cut", "awaiting", func(z *frozen.Flow) { z.H1.Entry.Target = make([]byte, noteTargetMax+1) }, "note"},
		{"a host that was not cut", "awaiting", func(z *frozen.Flow) { z.H1.Entry.Host = make([]byte, noteHostMax+1) }, "note"},
		{"an agent that was not cut", "awaiting", func(z *frozen.Flow) { z.H1.Entry.Agent = make([]byte, noteAgentMax+1) }, "note"},
		{"a source of no family", "awaiting", func(z *frozen.Flow) { z.H1.Entry.Source = make([]byte, 9) }, "client_address"},
		{"a tunnel of a later version", "tunnel", func(z *frozen.Flow) { z.H1.Minor = 2 }, "not known"},
		{"a tunnel of no status", "tunnel", func(z *frozen.Flow) { z.H1.Status = 1000 }, "not known"},
		{"an address of no family", "half", func(z *frozen.Flow) { z.ClientAddress = make([]byte, 7) }, "client_address"},
	} {
		t.Run(c.name, func(t *testing.T) {
			z := httpSample(t, c.sample)
			if _, err := Thaw(5e9, proto.Clone(z).(*frozen.Flow), httpObjects); err != nil {
				t.Fatalf("untouched: %v", err)
			}
			c.spoil(z)
			_, err := Thaw(5e9, z, httpObjects)
			var no *frozen.Refused
			if !errors.As(err, &no) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want a refusal with %q", err, c.want)
			}
		})
	}
}

// A frozen flow of any contents: Thaw refuses it, or what comes of it lives.
func FuzzThawHTTP(f *testing.F) {
	for name := range httpSamples {
		octets, err := proto.Marshal(httpSample(f, name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(octets, []byte("\x60\x13\x03\x5b\x00\x69\x79\x43\x87\x07"))
		f.Add(octets, []byte("\x60\x88\x0b\x2b\x7b\x3b\x08"))
	}
	f.Fuzz(func(t *testing.T, octets, code []byte) {
		z := &frozen.Flow{}
		if proto.Unmarshal(octets, z) != nil {
			return
		}
		livesOn(t, z, code)
	})
}

// livesOn thaws z, unless it is refused, and has what comes of it follow a
// script; it moves after each step. It tells whether it was accepted.
func livesOn(t testing.TB, z *frozen.Flow, code []byte) bool {
	t.Helper()
	known := httpObjects.Config
	plain := z.Listener.GetName() == "plain"
	if z.Listener != nil { // a fuzzer does not guess versions
		l := known.Listeners[z.Listener.Name]
		if l == nil {
			l = known.Listeners["greeted"]
		}
		z.Listener = ref(l.Ref)
	}
	name := "many"
	switch {
	case plain:
		name = "toldToo"
	case known.Backends[z.Backend.GetName()] != nil:
		name = z.Backend.GetName()
	}
	if z.Backend != nil {
		z.Backend = ref(known.Backends[name].Ref)
	}
	if z.Endpoint != nil {
		z.Endpoint = ref(known.Backends[name].Endpoints[z.Endpoint.Version%3].Ref)
	}
	s := compileHTTP(code)
	w := newHTTPWorld(s)
	w.f.Drop(&w.lender)
	var err error
	if w.f, err = Thaw(w.now, z, httpObjects); err != nil {
		var no *frozen.Refused
		if !errors.As(err, &no) {
			t.Fatalf("%v is no refusal", err)
		}
		return false
	}
	if w.f.State() == Relaying && w.f.Endpoint() != nil {
		w.backs = []*back{{endpoint: w.f.Endpoint()}}
		w.cur = w.backs[0]
		w.cur.room = 1 << 20
	}
	for side := Client; side <= Backend; side++ {
		if k := w.leg(side); k != nil {
			k.fin, k.shut, k.rst = w.f.Ended(side), w.f.Shut(side), isBroken(&w.f, side)
		}
	}
	w.run()
	for i := range s.hops {
		w.Step(i)
		for k := range w.Scratch() {
			w.desk.Scratch[Headroom+k] = 0xA5
		}
		if w.f.State() == Done {
			break
		}
		if again, ok, err := w.Freeze(); err != nil || !ok {
			t.Fatalf("freeze: %t %v", ok, err)
		} else if err := w.Thaw(again); err != nil {
			t.Fatalf("a flow that was accepted is not when it moves on: %v", err)
		}
	}
	return true
}

// A field of a frozen flow that is another than it was makes it be refused, or
// else the flow lives all the same. Two at a time find more.
func TestThawOfOtherFields(t *testing.T) {
	accepted, refused := 0, 0
	codes := []string{"\x60\x13\x03\x5b\x00\x69\x79\x43\x87\x07\x7b\x7b", "\x60\x88\x0b\x2b\x7b\x3b\x08\x7b", "\x61\x33\x87\x79\x00\x13\x07"}
	for name := range httpSamples {
		z := httpSample(t, name)
		n := 0
		each(z.ProtoReflect(), func(protoreflect.Message, protoreflect.FieldDescriptor) { n++ })
		for i := range n * 4 {
			for k, code := range codes {
				c := proto.Clone(z).(*frozen.Flow)
				change(c, i/4, uint64(i%4))
				if k > 0 {
					change(c, int(mix(uint64(i*k)))&0xff%n, mix(uint64(i+k))%4)
				}
				if livesOn(t, c, []byte(code)) {
					accepted++
				} else {
					refused++
				}
				if t.Failed() {
					t.Fatalf("%s with field %d changed, script %d: %v", name, i/4, k, c)
				}
			}
		}
	}
	if accepted < 1000 || refused < 1000 {
		t.Errorf("%d accepted, %d refused: that proves little", accepted, refused)
	}
}

// each calls do for every field that m could have, and those of its messages.
func each(m protoreflect.Message, do func(protoreflect.Message, protoreflect.FieldDescriptor)) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		do(m, f)
		switch {
		case f.Kind() != protoreflect.MessageKind || !m.Has(f):
		case f.IsList():
			for i := range m.Get(f).List().Len() {
				each(m.Get(f).List().Get(i).Message(), do)
			}
		default:
			each(m.Get(f).Message(), do)
		}
	}
}

// change makes field number k of z another, in one of four ways.
func change(z *frozen.Flow, k int, way uint64) {
	n := 0
	each(z.ProtoReflect(), func(m protoreflect.Message, f protoreflect.FieldDescriptor) {
		if n++; n != k+1 {
			return
		}
		switch f.Kind() {
		case protoreflect.MessageKind:
			switch {
			case way == 0:
				m.Clear(f)
			case f.IsList():
				m.Mutable(f).List().AppendMutable()
			default:
				m.Mutable(f)
			}
		case protoreflect.BoolKind:
			m.Set(f, protoreflect.ValueOfBool(!m.Get(f).Bool()))
		case protoreflect.BytesKind:
			was := m.Get(f).Bytes()
			m.Set(f, protoreflect.ValueOfBytes([][]byte{nil, []byte("x"), append(bytes.Clone(was), "x"...), was[min(1, len(was)):]}[way]))
		case protoreflect.Uint32Kind:
			m.Set(f, protoreflect.ValueOfUint32([]uint32{0, 1, uint32(m.Get(f).Uint()) ^ 1<<(k%12), uint32(m.Get(f).Uint()) + 1}[way]))
		case protoreflect.Uint64Kind:
			m.Set(f, protoreflect.ValueOfUint64([]uint64{0, 1, 1 << 40, m.Get(f).Uint() + 1}[way]))
		case protoreflect.Fixed64Kind:
			m.Set(f, protoreflect.ValueOfUint64([]uint64{0, 1, 1 << 60, m.Get(f).Uint() + 1}[way]))
		case protoreflect.EnumKind:
			m.Set(f, protoreflect.ValueOfEnum([]protoreflect.EnumNumber{1, 2, 5, 7}[way]))
		case protoreflect.StringKind:
			if way == 0 {
				m.Set(f, protoreflect.ValueOfString("web"))
			}
		default:
			panic(f.Kind())
		}
	})
}

// A flow that an earlier release has frozen has no entry. It has its record all
// the same, which begins where the flow was thawed.
func TestThawWithoutEntry(t *testing.T) {
	for name := range httpSamples {
		z := httpSample(t, name)
		if z.H1 == nil {
			continue
		}
		had := z.H1.Entry != nil
		z.H1.Entry, z.H1.Key, z.H1.Stuck, z.WaitMicros, z.ConnectMicros, z.Facts = nil, 0, "", 0, 0, 0
		f, err := Thaw(5e9, z, httpObjects)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var r Record
		if got := f.Sum(5e9+7000, &r); got != had && f.listener.Protocol == config.HTTP {
			t.Errorf("%s: it tells something: %t, with its entry %t", name, got, had)
		} else if got && had && (r.Total != 7000 || r.Out != 0 || r.Head > 0) {
			t.Errorf("%s: %+v", name, r)
		}
	}
}
