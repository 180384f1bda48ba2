package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/holdfast-lb/holdfast/internal/vip"
)

// A record has a file with two places of one block each, written in turns and in
// place: a disk that fills up during a move cannot stop it half-way, and a torn write
// leaves the record before it.
const (
	vipPlaceBytes = 4096
	vipPlaces     = 2
)

// vipDisk is the file of one VIP's record. One goroutine at a time uses it.
type vipDisk struct {
	f   *os.File
	seq uint64 // of the last write
}

// vipOnDisk is what a place holds behind a sum of it.
type vipOnDisk struct {
	Seq    uint64     `json:"seq"`
	Record vip.Record `json:"record"`
}

// openVIPDisk opens the file of a VIP, or makes it, and reads the last record.
func openVIPDisk(dir, name string) (*vipDisk, vip.Record, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, vip.Record{}, err
	}
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = makeVIPDisk(dir, path)
	}
	if err != nil {
		return nil, vip.Record{}, err
	}
	d := &vipDisk{f: f}
	r, err := d.read()
	if err != nil {
		_ = f.Close()
		return nil, vip.Record{}, fmt.Errorf("node: %s: %w", path, err)
	}
	return d, r, nil
}

// makeVIPDisk makes a file that has all its room, under another name until it is whole.
func makeVIPDisk(dir, path string) (*os.File, error) {
	f, err := os.OpenFile(path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(make([]byte, vipPlaces*vipPlaceBytes)); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		var d *os.File
		if d, err = os.Open(dir); err == nil {
			err = errors.Join(d.Sync(), d.Close())
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// read finds the last record that was written whole.
func (d *vipDisk) read() (vip.Record, error) {
	all := make([]byte, vipPlaces*vipPlaceBytes)
	if n, err := d.f.ReadAt(all, 0); err != nil && err != io.EOF {
		return vip.Record{}, err
	} else if n < len(all) {
		return vip.Record{}, errors.New("the file is too short for a record")
	}
	var last vipOnDisk
	whole, empty := 0, 0
	for i := range vipPlaces {
		place := all[i*vipPlaceBytes:][:vipPlaceBytes]
		if len(bytes.Trim(place, "\x00")) == 0 {
			empty++
			continue
		}
		x, ok := readVIPPlace(place)
		if !ok {
			continue
		}
		if whole++; x.Seq > last.Seq {
			last = x
		}
	}
	if whole == 0 && empty < vipPlaces-1 {
		return vip.Record{}, errors.New("both places of the record are damaged; what the other nodes know is enough: remove the file while they are up")
	}
	d.seq = last.Seq
	return last.Record, nil
}

func readVIPPlace(place []byte) (x vipOnDisk, ok bool) {
	sum, text, ok := bytes.Cut(bytes.TrimRight(place, "\x00"), []byte(" "))
	if !ok || string(sum) != fmt.Sprintf("%08x", crc32.ChecksumIEEE(text)) {
		return x, false
	}
	if json.Unmarshal(text, &x) != nil || x.Record.Check() != nil {
		return x, false
	}
	return x, true
}

// write makes a record durable.
func (d *vipDisk) write(r vip.Record) error {
	text, err := json.Marshal(vipOnDisk{Seq: d.seq + 1, Record: r})
	if err != nil {
		return err
	}
	place := make([]byte, vipPlaceBytes)
	if n := copy(place, fmt.Sprintf("%08x %s", crc32.ChecksumIEEE(text), text)); n == len(place) {
		return errors.New("the record is too long")
	}
	if _, err := d.f.WriteAt(place, int64((d.seq+1)%vipPlaces)*vipPlaceBytes); err != nil {
		return err
	}
	if err := d.f.Sync(); err != nil {
		return err
	}
	d.seq++
	return nil
}

func (d *vipDisk) close() { _ = d.f.Close() }
