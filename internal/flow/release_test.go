package flow

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/frozen"
)

// This file makes what a release froze, and reads it. To make it for a release
// that lacks it, this file is put into a checkout of that release and run there
// with -update-frozen: what stands in testdata/frozen/<release> was made by that
// release's own code. It uses nothing that v0.5.0 does not have.

var updateFrozen = flag.Bool("update-frozen", false, "write what this code freezes to testdata/frozen/head")

// releaseSamples are flows of every kind, by the kind that loops give it and by
// what is special about it.
var releaseSamples = map[string]struct{ tcp, http string }{
	"queued":                   {tcp: "wait 1\nplace"},
	"queued.later":             {tcp: "wait 1500\nplace\nsecured 0\nwait 20\ndial-failed"},
	"queued.fallback":          {tcp: "falls\nplace\nsecured 0\nwait 20\ndial-failed\nunavailable 0"},
	"dialing":                  {tcp: "place\nsecured 0\nwait 20\ndial-failed\nsecured 1"},
	"idle":                     {tcp: "secured 0\ndialed\nclient says 40\nbackend says 40\nwait 400"},
	"idle.new":                 {tcp: "secured 0\ndialed"},
	"bulk-splice":              {tcp: "bulk\nsecured 2\ndialed\nbackend room 2000\nclient says 5000\nclient says 17000"},
	"bulk-splice.down":         {tcp: "bulk\nsecured 2\ndialed\nclient room 2000\nbackend says 5000\nbackend says 17000"},
	"half-closed":              {tcp: "secured 1\ndialed\nclient says 30\nbackend fin\nwait 7"},
	"half-closed.client":       {tcp: "secured 1\ndialed\nclient says 30\nclient fin\nbackend says 66\nwait 7"},
	"half-closed-splice":       {tcp: "bulk\nsecured 1\ndialed\nclient fin\nclient room 2000\nbackend says 5000\nbackend says 17000"},
	"half-closed.due":          {tcp: "secured 2\ndialed\nclient fin\nclient room 10\nbackend says 900"},
	"backpressured-to-client":  {tcp: "secured 0\ndialed\nclient room 10\nbackend says 900"},
	"backpressured-to-backend": {tcp: "secured 0\ndialed\nbackend room 10\nclient says 900"},
	"backpressured-both-ways":  {tcp: "secured 2\ndialed\nclient room 100\nbackend room 10\nclient says 900\nbackend says 600"},
	"backpressured.broken":     {tcp: "secured 1\ndialed\nbackend room 10\nclient says 30\nclient rst\nbackend says 40"},
	"finishing":                {tcp: "secured 2\ndialed\nclient room 100\nbackend says 600\nkill 2"},
	"sunk":                     {http: "client asks GET /sink/1\nwait 5\nclient asks GET /sink/2"},
	"greeting":                 {http: "listener greeted\nclient says \"PROXY TCP4\""},
	"greeting.none":            {http: "listener greeted"},
	"greeting.tcp":             {http: "listener plain\nclient says \"PROXY TCP4\""},
	"greeting.early":           {http: "listener plain\nmanual\nclient says \"PROXY TCP4 198.51.100.9 10.0.0.5 99 80\\r\\nhello\""},
	"http-idle":                {http: "client asks GET /1\nbackend answers len 3"},
	"http-idle.new":            {http: ""},
	"http-idle.greeted":        {http: "listener greeted\nclient greets\nclient asks GET /1\nbackend answers len 3\nwait 9"},
	"http-head":                {http: "client says \"GET /1 HT\""},
	"http-head.again":          {http: "client asks GET /1\nbackend answers len 3\nclient says \"GET /2 HTTP/1.1\\r\\nHost: a\""},
	"http-request":             {http: "client asks GET /1"},
	"http-request.upload":      {http: "client asks PUT /1 chunks=5,60 ext later\nclient says \"5\\r\\nabc\""},
	"http-request.blocked":     {http: "client asks POST /1 later len=900\nbackend slow\nbackend room 100\nclient goes-on"},
	"http-request.half-answer": {http: "client asks GET /1\nbackend says \"HTTP/1.1 200 O\""},
	"http-request.unwanted":    {http: "client asks GET /again/1\nbackend says \"HTTP/1.1 503 B\""},
	"http-request.repeated":    {http: "client asks GET /1\nbackend answers len 3\nclient asks GET /2\nbackend room 0\nbackend slow"},
	"http-request.continue":    {http: "client asks POST /1 later len=9\nbackend says \"HTTP/1.1 100 Continue\\r\\n\\r\\n\""},
	"queued.http":              {http: "manual\nclient asks GET /1"},
	"queued.pipelined":         {http: "manual\nclient asks GET /1\nclient asks-also GET /2\nplace"},
	"queued.retrying":          {http: "manual\nclient asks GET /again/1 agent=me\nwait 3\nsecured 0\nwait 4\ndialed\nbackend answers busy 9\nplace"},
	"queued.upload":            {http: "manual\nclient asks POST /1 later len=900\nplace"},
	"dialing.http":             {http: "manual\nclient asks POST /1 len=40\nsecured 0\nwait 100\ndial-failed\nsecured 1"},
	"dialing.stuck":            {http: "manual\nclient asks GET /stick/1 stuck=e3,3600\nsecured 2"},
	"dialing.told":             {http: "manual\nclient asks GET /told/1\nsecured 1"},
	"http-pipelined":           {http: "client asks GET /1\nclient asks-also GET /2"},
	"http-response":            {http: "client asks GET /1\nclient slow\nclient room 120\nbackend answers len 900"},
	"http-response.chunks":     {http: "client asks GET /1\nclient slow\nclient room 120\nbackend answers chunks 9000\nclient asks GET /2"},
	"http-response.taking":     {http: "client asks GET /1\nclient slow\nclient room 50\nbackend answers len 0"},
	"http-response.cut":        {http: "client asks GET /1\nclient slow\nclient room 50\nbackend answers close 40\nbackend vanishes"},
	"http-splice":              {http: "bulk\nclient asks GET /1\nclient slow\nclient room 5000\nbackend answers len 60000"},
	"http-splice.up":           {http: "bulk\nclient asks POST /1 later len=60000\nbackend slow\nbackend room 5000\nclient goes-on"},
	"http-answer":              {http: "client slow\nclient room 50\nclient asks GET /hello/1"},
	"http-answer.limited":      {http: "client slow\nclient room 50\nlimited 9\nclient asks GET /falls/1 user=x"},
	"http-lingering":           {http: "client asks POST /1 later len=9\nbackend answers len 4"},
	"http-tunnel":              {http: "client asks GET /1 upgrade=websocket\nclient slow\nclient room 80\nbackend answers switch 30"},
	"http-tunnel.half":         {http: "client asks CONNECT h:443\nbackend answers connected 30\nclient fin"},
	"http-tunnel-splice":       {http: "bulk\nclient asks GET /1 upgrade=websocket\nbackend answers switch 30\nclient slow\nclient room 5000\nbackend body 60000"},
}

// freezeSample runs a sample's script and puts its flow down.
func freezeSample(t testing.TB, name string) (*frozen.Flow, *config.Config) {
	t.Helper()
	s := releaseSamples[name]
	if s.tcp != "" {
		script, bulk, err := parse(s.tcp)
		if err != nil {
			t.Fatal(err)
		}
		w := newWorld(script, bulk)
		for i := range script {
			w.Step(i)
		}
		if _, ok, err := w.Freeze(); err != nil || !ok {
			t.Fatalf("%s: %t %v", name, ok, err)
		}
		return w.z, objects.Config
	}
	script, err := parseHTTP(s.http)
	if err != nil {
		t.Fatal(err)
	}
	w := newHTTPWorld(script)
	for i := range script.hops {
		w.Step(i)
	}
	if _, ok, err := w.Freeze(); err != nil || !ok {
		t.Fatalf("%s: %t %v", name, ok, err)
	}
	return w.z, httpObjects.Config
}

// batchOf is what a carrier hands over of a flow, objects and all.
func batchOf(t testing.TB, z *frozen.Flow, c *config.Config) []byte {
	t.Helper()
	batch := &frozen.Batch{Flows: []*frozen.Flow{z}}
	carry := func(kind frozen.Object_Kind, r config.Ref, encoding []byte) {
		batch.Objects = append(batch.Objects, &frozen.Object{Kind: kind, Name: r.Name, Version: r.Version, Encoding: encoding})
	}
	if l := c.Listeners[z.Listener.GetName()]; l != nil {
		carry(frozen.Object_LISTENER, l.Ref, l.Encode())
	}
	if b := c.Backends[z.Backend.GetName()]; b != nil {
		carry(frozen.Object_BACKEND, b.Ref, b.Encode())
		for _, e := range b.Endpoints {
			if e.Ref.Name == z.Endpoint.GetName() {
				carry(frozen.Object_ENDPOINT, e.Ref, e.Encode())
			}
		}
	}
	octets, err := batch.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return octets
}

// portrait says what a flow is, in one line: whatever it would do next follows
// from this. Octets are told by how many there are, and by their hash.
func portrait(f *Flow, now Instant) string {
	var w Wants
	f.Wants(&w)
	var b strings.Builder
	fmt.Fprintf(&b, "%v, phase %d, of %s", f.State(), f.Phase(), f.Listener().Ref.Name)
	if x := f.Backend(); x != nil {
		fmt.Fprintf(&b, " to %s", x.Ref.Name)
	}
	if e := f.Endpoint(); e != nil {
		fmt.Fprintf(&b, " at %s", e.Ref.Name)
	}
	fmt.Fprintf(&b, ", id %x, client %v, age %v, place %d, attempt %d, tried %b, requests %d", f.ID(), f.Client(), time.Duration(now-f.Born()), f.Place(), f.Attempt(), f.Tried(), f.Requests())
	for s := Client; s <= Backend; s++ {
		fmt.Fprintf(&b, "; %v in %d out %d due %s of %d unread %s", s, f.Received(s), f.Sent(s), sumOf(w.Out[s]), f.Unsent(s), sumOf(f.Unread(s)))
		for _, x := range []struct {
			name string
			on   bool
		}{{"ended", f.Ended(s)}, {"shut", f.Shut(s)}, {"wants reading", w.Read[s]}, {"wants FIN", w.Shut[s]}} {
			if x.on {
				b.WriteString(" " + x.name)
			}
		}
	}
	if w.Secure {
		b.WriteString("; wants an endpoint")
	}
	if w.Dial {
		b.WriteString("; wants a leg")
	}
	if w.Deadline != 0 {
		fmt.Fprintf(&b, "; expires in %v", time.Duration(w.Deadline-now))
	}
	return b.String()
}

func sumOf(octets []byte) string {
	if len(octets) == 0 {
		return "0"
	}
	h := fnv.New64a()
	_, _ = h.Write(octets)
	return fmt.Sprintf("%d (%016x)", len(octets), h.Sum64())
}

// thawBatch picks the flow of a batch up under the objects that came with it, as a
// process does that has no others.
func thawBatch(octets []byte) (Flow, *frozen.Flow, error) {
	batch, err := frozen.Decode(octets)
	if err != nil {
		return Flow{}, nil, err
	}
	found := carried{}
	for _, o := range batch.Objects {
		kind := map[frozen.Object_Kind]config.Kind{
			frozen.Object_LISTENER: config.ListenerKind, frozen.Object_BACKEND: config.BackendKind, frozen.Object_ENDPOINT: config.EndpointKind,
		}[o.Kind]
		x, err := config.DecodeObject(kind, o.Name, o.Encoding)
		if err != nil {
			return Flow{}, nil, fmt.Errorf("%v %s: %w", o.Kind, o.Name, err)
		}
		var is config.Ref
		switch x := x.(type) {
		case *config.Listener:
			is = x.Ref
		case *config.Backend:
			is = x.Ref
		case *config.Endpoint:
			is = x.Ref
		}
		if is.Version != o.Version || is.Name != o.Name {
			return Flow{}, nil, fmt.Errorf("%v %s: its contents are %s of version %016x, not %016x", o.Kind, o.Name, is.Name, is.Version, o.Version)
		}
		found[config.Ref{Kind: kind, Name: o.Name, Version: o.Version}] = x
	}
	if len(batch.Flows) != 1 {
		return Flow{}, nil, fmt.Errorf("%d flows", len(batch.Flows))
	}
	// Thaw takes octets over as they lie, so it gets a copy.
	f, err := Thaw(releaseNow, proto.Clone(batch.Flows[0]).(*frozen.Flow), found)
	return f, batch.Flows[0], err
}

// releaseNow is when flows of releases are thawed: later than any of them is old.
const releaseNow Instant = 1e12

const frozenDir = "testdata/frozen"

// What a release of the window has frozen thaws in this one for every kind of
// flow, is what it was there, and frozen again it has the same form. What this
// code freezes is in "head", so that a change of the form is seen before it is
// released; it becomes the directory of the next release.
func TestFrozenByReleases(t *testing.T) {
	if *updateFrozen {
		writeFrozen(t, filepath.Join(frozenDir, "head"))
	}
	for _, release := range append(window(t), "head") {
		t.Run(release, func(t *testing.T) {
			portraits := readPortraits(t, filepath.Join(frozenDir, release))
			files, err := filepath.Glob(filepath.Join(frozenDir, release, "*.bin"))
			if err != nil || len(files) != len(portraits) || len(files) == 0 {
				t.Fatalf("%d files, %d portraits: %v", len(files), len(portraits), err)
			}
			for _, file := range files {
				name := strings.TrimSuffix(filepath.Base(file), ".bin")
				octets, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				f, z, err := thawBatch(octets)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				if got := portrait(&f, releaseNow); got != portraits[name] {
					t.Errorf("%s: it is\n%s\nit was\n%s", name, got, portraits[name])
				}
				again, err := f.Freeze(releaseNow)
				if err != nil {
					t.Fatal(err)
				}
				if again.Moves--; !proto.Equal(again, z) {
					t.Errorf("%s: frozen again it is\n%v\nit was\n%v", name, again, z)
				}
			}
			for name := range releaseSamples {
				if release == "head" && portraits[name] == "" {
					t.Errorf("%s: no file; run with -update-frozen", name)
				}
			}
		})
	}
}

// What this code freezes is what testdata/frozen/head says: a changed form is a
// change that releases see, and is made on purpose.
func TestFrozenForms(t *testing.T) {
	for name := range releaseSamples {
		z, c := freezeSample(t, name)
		was, err := os.ReadFile(filepath.Join(frozenDir, "head", name+".bin"))
		if err != nil {
			t.Errorf("%v; run with -update-frozen", err)
			continue
		}
		is, err := frozen.Decode(batchOf(t, z, c))
		if err != nil {
			t.Fatal(err)
		}
		before, err := frozen.Decode(was)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !proto.Equal(is, before) {
			t.Errorf("%s: the form has changed. It is\n%v\nit was\n%v\nIf an older release must not see it, do not write it to one; then run with -update-frozen", name, is, before)
		}
	}
}

// refusedBy are fields of flows that releases of the window do not know, and why a
// flow may have one all the same: those releases refuse it, and it stays where it is.
var refusedBy = map[string]string{}

// Every kind of flow can go back to every release of the window: it has no field that
// one of them does not know, or it is told here why. docs/limits.md says which.
func TestFrozenForReleases(t *testing.T) {
	for _, release := range window(t) {
		text, err := os.ReadFile("../frozen/testdata/fields/" + release + ".txt")
		if err != nil {
			t.Fatal(err)
		}
		knows := map[string]bool{}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) == 5 {
				knows[f[0]+" "+f[1]] = true
			}
		}
		for name := range releaseSamples {
			z, c := freezeSample(t, name)
			batch, err := frozen.Decode(batchOf(t, z, c))
			if err != nil {
				t.Fatal(err)
			}
			fields := 0
			each(batch.ProtoReflect(), func(m protoreflect.Message, f protoreflect.FieldDescriptor) {
				if !m.Has(f) {
					return
				}
				fields++
				what := fmt.Sprintf("%s %d", m.Descriptor().Name(), f.Number())
				if !knows[what] && refusedBy[release+" "+what] == "" {
					t.Errorf("%s: %s (%s), which %s does not know and so refuses", name, what, f.Name(), release)
				}
			})
			if fields < 10 {
				t.Errorf("%s: only %d fields", name, fields)
			}
		}
	}
}

// BenchmarkFrozen tells how long it takes to put a flow of each kind down, encoded, and to
// pick it up, and how large its frozen form is: in all, and without the octets
// of users that it holds.
func BenchmarkFrozen(b *testing.B) {
	var names []string
	for name := range releaseSamples {
		if !strings.Contains(name, ".") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		b.Run(name, func(b *testing.B) {
			z, c := freezeSample(b, name)
			octets := batchOf(b, z, c)
			held := len(z.H1.GetRequest()) + len(z.Client.GetUnsent()) + len(z.Client.GetH1().GetUnread())
			for _, g := range z.Legs {
				held += len(g.Unsent) + len(g.GetH1().GetUnread())
			}
			f, _, err := thawBatch(octets)
			if err != nil {
				b.Fatal(err)
			}
			found := exact{c}
			out := make([]byte, 0, 1<<20)
			size := 0
			b.ReportAllocs()
			for b.Loop() {
				z, err := f.Freeze(releaseNow)
				if err != nil {
					b.Fatal(err)
				}
				batch := &frozen.Batch{Flows: []*frozen.Flow{z}}
				if out, err = batch.AppendTo(out[:0]); err != nil {
					b.Fatal(err)
				}
				size = len(out)
				if batch, err = frozen.Decode(out); err != nil {
					b.Fatal(err)
				}
				if f, err = Thaw(releaseNow, batch.Flows[0], found); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(size), "octets/flow")
			b.ReportMetric(float64(size-held), "octets-without-users/flow")
		})
	}
}

// window is the releases whose flows this one takes.
func window(t *testing.T) (releases []string) {
	t.Helper()
	text, err := os.ReadFile("../frozen/testdata/releases.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] != "#" {
			releases = append(releases, f[0])
		}
	}
	if len(releases) == 0 {
		t.Fatal("the window is empty")
	}
	return releases
}

// writeFrozen writes every sample to a directory, and what it is.
func writeFrozen(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var names []string
	for name := range releaseSamples {
		names = append(names, name)
	}
	slices.Sort(names)
	var text bytes.Buffer
	for _, name := range names {
		z, c := freezeSample(t, name)
		octets := batchOf(t, z, c)
		f, _, err := thawBatch(octets)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		fmt.Fprintf(&text, "%s: %s\n", name, portrait(&f, releaseNow))
		if err := os.WriteFile(filepath.Join(dir, name+".bin"), octets, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "flows.txt"), text.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readPortraits(t *testing.T, dir string) map[string]string {
	t.Helper()
	file, err := os.Open(filepath.Join(dir, "flows.txt"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	all := map[string]string{}
	for in := bufio.NewScanner(file); in.Scan(); {
		name, what, _ := strings.Cut(in.Text(), ": ")
		all[name] = what
	}
	return all
}
