package journal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// text is a state like a configuration: many objects, of which generation g
// has changed one.
func text(g uint64, objects int) []byte {
	var b bytes.Buffer
	for i := range objects {
		of := uint64(0)
		if n := uint64(objects); g%n == uint64(i) {
			of = g
		}
		fmt.Fprintf(&b, "  service-%d:\n    balance: least\n    connectTimeout: 1s\n    endpoints: [ { name: a, address: \"10.0.0.%d:80\", weight: %d } ]\n", i, i%250, 1+of)
	}
	return b.Bytes()
}

func entry(g uint64) Entry {
	return Entry{Generation: g, Meta: fmt.Appendf(nil, `{"generation":%d}`, g), State: text(g, 20)}
}

func mustOpen(t *testing.T, o Options) *Journal {
	t.Helper()
	j, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func wantEntry(t *testing.T, what string, got Entry, err error, want Entry) {
	t.Helper()
	if err != nil || got.Generation != want.Generation || !bytes.Equal(got.Meta, want.Meta) || !bytes.Equal(got.State, want.State) {
		t.Fatalf("%s: generation %d, meta %q, %d octets, error %v; want generation %d, meta %q, %d octets",
			what, got.Generation, got.Meta, len(got.State), err, want.Generation, want.Meta, len(want.State))
	}
}

// What was appended is there after another Open, each generation of it, over
// several segments.
func TestReopen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	o := Options{Dir: dir, SegmentMax: 8 << 10}
	const each, opens = 40, 5
	for k := range uint64(opens) {
		j := mustOpen(t, o)
		last, ok := j.Last()
		if ok != (k > 0) {
			t.Fatalf("open %d: there is a last entry: %v", k, ok)
		}
		if k > 0 {
			wantEntry(t, "last", last, nil, entry(k*each))
		}
		for g := k*each + 1; g <= (k+1)*each; g++ {
			p := j.Append(entry(g))
			if g%3 == 0 { // else they come in groups
				if err := p.Wait(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		for g := uint64(1); g <= (k+1)*each; g++ {
			e, err := j.At(g)
			wantEntry(t, "at", e, err, entry(g))
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	j := mustOpen(t, o)
	defer func() { _ = j.Close() }()
	s := j.State()
	if s.Durable != each*opens || s.Appended != each*opens || s.Entries != each*opens || s.Segments < 3 || s.Cut != "" || s.Lost != nil || s.Err != nil {
		t.Errorf("%+v", s)
	}
	for i, h := range j.List(0) {
		want := entry(each*opens - uint64(i))
		if h.Generation != want.Generation || !bytes.Equal(h.Meta, want.Meta) || !h.Durable || h.Bare {
			t.Fatalf("list: %+v, want %d %s", h, want.Generation, want.Meta)
		}
	}
	if n := len(j.List(7)); n != 7 {
		t.Errorf("list of 7: %d", n)
	}
	if _, err := j.At(each*opens + 1); !errors.Is(err, ErrNotKept) {
		t.Errorf("a generation that never was: %v", err)
	}
}

// Nobody but the owner may read it: a state may name secrets' places.
func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	j := mustOpen(t, Options{Dir: dir})
	if err := j.Append(entry(1)).Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = j.Close() }()
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 2 {
		t.Fatal(names, err)
	}
	if s, err := os.Stat(dir); err != nil || s.Mode().Perm() != 0o700 {
		t.Error(s.Mode(), err)
	}
	for _, n := range names {
		if i, err := n.Info(); err != nil || i.Mode().Perm() != 0o600 {
			t.Error(n, i.Mode(), err)
		}
	}
}

// One directory has one writer; the second is told who the first is.
func TestTwoWriters(t *testing.T) {
	dir := t.TempDir()
	j := mustOpen(t, Options{Dir: dir})
	_, err := Open(Options{Dir: dir})
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("second open: %v", err)
	}
	if err := j.Append(entry(1)).Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = mustOpen(t, Options{Dir: dir})
	last, _ := j.Last()
	wantEntry(t, "after the first has closed", last, nil, entry(1))
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// Many append at once; each is durable, in the order of generations, and groups
// share an fsync.
func TestGroups(t *testing.T) {
	j := mustOpen(t, Options{Dir: t.TempDir()})
	defer func() { _ = j.Close() }()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var g uint64
	for range 8 {
		wg.Go(func() {
			for range 25 {
				mu.Lock()
				g++
				p := j.Append(entry(g))
				mu.Unlock()
				if err := p.Wait(t.Context()); err != nil {
					t.Error(err)
				}
				if p.Took() <= 0 {
					t.Error("it took no time")
				}
			}
		})
	}
	wg.Go(func() { // and one who reads meanwhile
		for range 20 {
			for _, h := range j.List(10) {
				if e, err := j.At(h.Generation); err != nil || !bytes.Equal(e.State, entry(h.Generation).State) {
					t.Errorf("generation %d: %v", h.Generation, err)
				}
			}
			_ = j.State()
		}
	})
	wg.Wait()
	s := j.State()
	if s.Durable != 200 || s.Waiting != 0 || s.Syncs > 200 {
		t.Errorf("%+v", s)
	}
	t.Logf("200 entries in %d groups, p50 %v p99 %v", s.Syncs, s.SyncP50, s.SyncP99)
}

// A generation that does not follow is refused and changes nothing.
func TestOrder(t *testing.T) {
	j := mustOpen(t, Options{Dir: t.TempDir()})
	for _, g := range []uint64{5, 6} {
		if err := j.Append(entry(g)).Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, g := range []uint64{0, 5, 6} {
		if err := j.Append(entry(g)).Wait(t.Context()); err == nil {
			t.Errorf("generation %d follows 6", g)
		}
	}
	if s := j.State(); s.Appended != 6 || s.Durable != 6 {
		t.Errorf("%+v", s)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Append(entry(7)).Wait(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// Beyond Keep the oldest go, and their files.
func TestKeep(t *testing.T) {
	dir := t.TempDir()
	j := mustOpen(t, Options{Dir: dir, Keep: 10, SegmentMax: 4 << 10})
	for g := uint64(1); g <= 200; g++ {
		if err := j.Append(entry(g)).Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	s := j.State()
	if s.Entries != 10 {
		t.Errorf("%+v", s)
	}
	e, err := j.At(191)
	wantEntry(t, "the oldest that is kept", e, err, entry(191))
	if _, err := j.At(190); !errors.Is(err, ErrNotKept) {
		t.Errorf("190: %v", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(dir + "/*" + segmentSuffix)
	if err != nil || len(files) != s.Segments {
		t.Errorf("%d files of %d segments, %v", len(files), s.Segments, err)
	}
}
