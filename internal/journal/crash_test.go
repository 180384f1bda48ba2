package journal

import (
	"bytes"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var seeds = flag.Uint64("seeds", 1000, "histories of disks that lose power")

// After any crash, at any call, Open gives the last durable generation or a
// later one that was appended, whole; and all of the history that is kept.
func TestPower(t *testing.T) {
	most := *seeds
	if testing.Short() {
		most = min(most, 200)
	}
	for seed := uint64(1); seed <= most; seed++ {
		if wrong, trace := live(seed); wrong != "" {
			t.Fatalf("seed %d: %s\n%s", seed, wrong, strings.Join(trace, "\n"))
		}
	}
}

// written is the file of a journal of so many entries, one group each, and how
// long it was after each. Nobody has closed it.
func written(t *testing.T, many uint64) (file []byte, ends []int) {
	t.Helper()
	disk := newPlatter(rand.New(rand.NewPCG(1, 1)))
	j, err := open(Options{FS: disk})
	if err != nil {
		t.Fatal(err)
	}
	for g := uint64(1); g <= many; g++ {
		j.Append(entry(g))
		if !j.step() {
			t.Fatal(j.State().Err)
		}
		ends = append(ends, len(disk.names[segmentName(1)].now))
	}
	return disk.names[segmentName(1)].now, ends
}

// opened is what Open makes of a directory with this one file.
func opened(file []byte) (*Journal, *platter, error) {
	disk := newPlatter(rand.New(rand.NewPCG(1, 1)))
	disk.names[segmentName(1)] = &inode{now: bytes.Clone(file)}
	j, err := open(Options{FS: disk})
	return j, disk, err
}

// A file that was torn anywhere gives the entries that are whole, and goes on.
func TestTornAnywhere(t *testing.T) {
	const many = 6
	file, ends := written(t, many)
	for at := ends[0]; at <= len(file); at++ {
		j, disk, err := opened(file[:at])
		if err != nil {
			t.Fatalf("cut at %d: %v", at, err)
		}
		want := uint64(0)
		for int(want) < len(ends) && ends[want] <= at {
			want++
		}
		last, _ := j.Last()
		wantEntry(t, "torn", last, nil, entry(want))
		if torn := ends[want-1] != at; torn != (j.State().Cut != "") {
			t.Errorf("cut at %d, ends %v: said is %q", at, ends, j.State().Cut)
		}
		if at%7 != 0 {
			continue
		}
		j.Append(entry(want + 1))
		if !j.step() {
			t.Fatal(j.State().Err)
		}
		j, _, err = opened(disk.names[segmentName(1)].now)
		if err != nil {
			t.Fatalf("cut at %d and written to: %v", at, err)
		}
		last, _ = j.Last()
		wantEntry(t, "torn and written to", last, nil, entry(want+1))
	}
}

// Whatever octet of a file is changed: what was known to be durable is read, or
// Open names the place. It is never an older state without a word.
func TestDamageAnywhere(t *testing.T) {
	const many = 6
	file, ends := written(t, many)
	for at := range file {
		file[at] ^= 0x10
		j, _, err := opened(file)
		file[at] ^= 0x10
		var d *Damaged
		switch {
		case errors.As(err, &d):
			if d.Offset > int64(at) || d.File == "" {
				t.Fatalf("octet %d: %v", at, err)
			}
			if at >= ends[many-2] {
				t.Fatalf("octet %d is of the last group, which nothing says was durable: %v", at, err)
			}
		case err != nil:
			t.Fatalf("octet %d: %v", at, err)
		default:
			// The last group might have been torn as well; nothing follows that knows.
			last, _ := j.Last()
			if at < ends[many-2] || j.State().Cut == "" {
				t.Fatalf("octet %d was changed, and generation %d is read, cut %q", at, last.Generation, j.State().Cut)
			}
			wantEntry(t, "before the damage", last, nil, entry(many-1))
		}
	}
}

// Damage of an older file costs history, says so, and no state.
func TestDamagedHistory(t *testing.T) {
	dir := t.TempDir()
	o := Options{Dir: dir, SegmentMax: 4 << 10}
	j := mustOpen(t, o)
	for g := uint64(1); g <= 100; g++ {
		if err := j.Append(entry(g)).Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(dir + "/*" + segmentSuffix)
	if err != nil || len(files) < 4 {
		t.Fatal(files, err)
	}
	f := files[len(files)-2]
	b, err := os.ReadFile(f)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(f, b, 0o600); err != nil {
		t.Fatal(err)
	}
	j = mustOpen(t, o)
	defer func() { _ = j.Close() }()
	last, _ := j.Last()
	wantEntry(t, "last", last, nil, entry(100))
	s := j.State()
	if len(s.Lost) != 1 || !strings.HasPrefix(s.Lost[0], filepath.Base(f)) || s.Entries >= 100 || s.Entries < 50 {
		t.Errorf("%+v", s)
	}
	e, err := j.At(1)
	wantEntry(t, "the first", e, err, entry(1))
	if err := j.Append(entry(101)).Wait(t.Context()); err != nil {
		t.Error(err)
	}
}

// failing is a directory whose disk is full while it is told so.
type failing struct {
	FS
	full chan bool // holds one value
}

func (f failing) is() bool {
	full := <-f.full
	f.full <- full
	return full
}

func (f failing) Create(name string) (File, error) {
	if f.is() {
		return nil, errNoSpace
	}
	n, err := f.FS.Create(name)
	return failingFile{n, f}, err
}

func (f failing) Open(name string) (File, error) {
	n, err := f.FS.Open(name)
	return failingFile{n, f}, err
}

type failingFile struct {
	File
	of failing
}

func (f failingFile) WriteAt(b []byte, at int64) (int, error) {
	if f.of.is() {
		n, _ := f.File.WriteAt(b[:len(b)/2], at)
		return n, errNoSpace
	}
	return f.File.WriteAt(b, at)
}

// While the disk is full every Pending says so at once, and the journal stays
// ready; when there is room again all is durable, without being asked.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	under, err := openDisk(dir)
	if err != nil {
		t.Fatal(err)
	}
	d := failing{under, make(chan bool, 1)}
	d.full <- false
	j := mustOpen(t, Options{Dir: dir, FS: d})
	if err := j.Append(entry(1)).Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-d.full
	d.full <- true
	const many = 2 * waitingMax
	for g := uint64(2); g <= many; g++ {
		if err := j.Append(entry(g)).Wait(t.Context()); !errors.Is(err, errNoSpace) {
			t.Fatalf("generation %d on a full disk: %v", g, err)
		}
	}
	s := j.State()
	if s.Durable != 1 || s.Appended != many || !errors.Is(s.Err, errNoSpace) || s.Failures < many-1 || s.Waiting != many-1 {
		t.Errorf("%+v", s)
	}
	if h := j.List(1)[0]; h.Durable || h.Generation != many {
		t.Errorf("%+v", h)
	}
	<-d.full
	d.full <- false
	// Its own next try, not another Append, makes it durable.
	for j.State().Durable != many {
		time.Sleep(time.Millisecond)
	}
	if s := j.State(); s.Err != nil || s.Waiting != 0 {
		t.Errorf("%+v", s)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = mustOpen(t, Options{Dir: dir})
	defer func() { _ = j.Close() }()
	last, _ := j.Last()
	wantEntry(t, "after room came", last, nil, entry(many))
	bare := 0
	for _, h := range j.List(0) {
		if h.Bare {
			bare++
		}
	}
	if n := len(j.List(0)); n != many || bare != many-1-waitingMax {
		t.Errorf("%d entries, %d of them without a state", n, bare)
	}
}
