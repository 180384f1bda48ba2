package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/holdfast-lb/holdfast/internal/sock"
)

// FS is the directory of a journal. Names have no path.
//
// What it promises is what a disk does: a write is durable after Sync of its
// file, a name after Sync of the directory, and neither before.
type FS interface {
	// Lock keeps others out until it is closed, or the process ends. Its error wraps
	// ErrLocked if another one has it.
	Lock() (io.Closer, error)
	List() ([]string, error)
	Open(name string) (File, error)
	Create(name string) (File, error) // empty, also where there is one
	Rename(from, to string) error     // over what is there
	Remove(name string) error
	Sync() error
}

// File is one file of the directory.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() (int64, error)
	Truncate(size int64) error
	Sync() error
}

// lockName is the file that is locked; it holds the owner's process id.
const lockName = "lock"

// disk is the real FS.
type disk struct {
	dir string
	at  *os.File // the directory itself, to sync it
}

func openDisk(dir string) (*disk, error) {
	if dir == "" {
		return nil, errors.New("journal: no directory given")
	}
	// Those that are made are durable when the ones that they are in are synced.
	made := filepath.Clean(dir)
	for _, err := os.Stat(made); errors.Is(err, os.ErrNotExist) && made != filepath.Dir(made); _, err = os.Stat(made) {
		made = filepath.Dir(made)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	for in := filepath.Dir(filepath.Clean(dir)); len(in) >= len(made); in = filepath.Dir(in) {
		if f, err := os.Open(in); err == nil {
			_ = f.Sync() // of somebody else's directory this may not be allowed
			_ = f.Close()
		}
		if in == filepath.Dir(in) {
			break
		}
	}
	at, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	return &disk{dir: dir, at: at}, nil
}

// held is a lock; with it the directory is let go.
type held struct{ lock, dir *os.File }

func (h held) Close() error { return errors.Join(h.lock.Close(), h.dir.Close()) }

func (d *disk) Lock() (io.Closer, error) {
	f, ok, err := sock.Lock(filepath.Join(d.dir, lockName))
	if err != nil {
		return nil, errors.Join(err, d.at.Close())
	}
	if !ok {
		who, _ := os.ReadFile(filepath.Join(d.dir, lockName)) // nobody's name is better than none at all
		_ = d.at.Close()
		if pid := strings.TrimSpace(string(who)); pid != "" {
			return nil, fmt.Errorf("%w, %s", ErrLocked, pid)
		}
		return nil, ErrLocked
	}
	// Whose it is only helps a person: a full disk does not keep us from serving.
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return held{f, d.at}, nil
}

func (d *disk) List() ([]string, error) {
	all, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range all {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

type diskFile struct{ *os.File }

func (f diskFile) Size() (int64, error) {
	s, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return s.Size(), nil
}

func (d *disk) open(name string, flags int) (File, error) {
	f, err := os.OpenFile(filepath.Join(d.dir, name), os.O_RDWR|flags, 0o600)
	if err != nil {
		return nil, err
	}
	return diskFile{f}, nil
}

func (d *disk) Open(name string) (File, error)   { return d.open(name, 0) }
func (d *disk) Create(name string) (File, error) { return d.open(name, os.O_CREATE|os.O_TRUNC) }
func (d *disk) Remove(name string) error         { return os.Remove(filepath.Join(d.dir, name)) }
func (d *disk) Sync() error                      { return d.at.Sync() }

func (d *disk) Rename(from, to string) error {
	return os.Rename(filepath.Join(d.dir, from), filepath.Join(d.dir, to))
}
