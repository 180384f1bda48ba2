package node

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/vip"
)

// A write that is torn anywhere leaves the record of before, or is the new one; no
// write makes the file longer.
func TestVIPDiskTornWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "shop")
	d, r, err := openVIPDisk(dir, "shop")
	if err != nil || r != (vip.Record{}) {
		t.Fatalf("a new file has %v, %v", r, err)
	}
	records := []vip.Record{
		{Epoch: 1, Stage: vip.Owned, Owner: "n1"},
		{Epoch: 2, Stage: vip.Moving, From: "n1", Owner: "n3"},
		{Epoch: 2, Stage: vip.Yielded, From: "n1", Owner: "n3"},
	}
	before, was := read(t, path), vip.Record{}
	for _, r := range records {
		if err := d.write(r); err != nil {
			t.Fatal(err)
		}
		after := read(t, path)
		if len(after) != len(before) {
			t.Fatalf("%v: the file was %d octets long and is %d", r, len(before), len(after))
		}
		news, cuts := 0, 0
		for cut := 0; cut <= vipPlaceBytes; cut += min(cut+1, 61) {
			torn := append([]byte(nil), before...)
			for i := range vipPlaces {
				at := i * vipPlaceBytes
				copy(torn[at:at+cut], after[at:])
			}
			got := reopened(t, torn)
			cuts++
			if got == r {
				news++
			}
			if got != was && got != r {
				t.Fatalf("%v over %v, torn after %d octets: read %v", r, was, cut, got)
			}
		}
		if news == 0 || cuts-news < 5 {
			t.Fatalf("%v: %d of %d cuts had the new record", r, news, cuts)
		}
		before, was = after, r
	}
	d.close()
	if got := reopened(t, before); got != was {
		t.Fatalf("read %v, want %v", got, was)
	}
}

// Two damaged places are no record of nobody: the node would think that it may begin.
func TestVIPDiskDamaged(t *testing.T) {
	dir := t.TempDir()
	d, _, err := openVIPDisk(dir, "shop")
	if err != nil {
		t.Fatal(err)
	}
	for epoch := range uint64(2) {
		if err := d.write(vip.Record{Epoch: epoch + 1, Stage: vip.Owned, Owner: "n1"}); err != nil {
			t.Fatal(err)
		}
	}
	d.close()
	all := read(t, filepath.Join(dir, "shop"))
	for i := range vipPlaces {
		all[i*vipPlaceBytes+12] ^= 1
	}
	for _, damaged := range [][]byte{all, all[:vipPlaceBytes]} {
		if err := os.WriteFile(filepath.Join(dir, "shop"), damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, r, err := openVIPDisk(dir, "shop"); err == nil {
			t.Fatalf("%d octets with damage: read %v", len(damaged), r)
		}
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// reopened is the record that such a file has.
func reopened(t *testing.T, all []byte) vip.Record {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(all); err != nil {
		t.Fatal(err)
	}
	d := &vipDisk{f: f}
	r, err := d.read()
	if err != nil {
		t.Fatal(err)
	}
	d.close()
	return r
}
