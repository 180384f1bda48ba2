package netadmin

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Who may write the file, or move another one into its place, is told, and how.
func TestWritable(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "f"), filepath.Join(dir, "link")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	mine, other := os.Geteuid(), os.Geteuid()+1
	for _, x := range []struct {
		path   string
		mode   os.FileMode
		uid    int
		groups []string
		want   string
	}{
		{file, 0o600, mine, nil, "is of user"},
		{file, 0o644, other, nil, ""},
		{file, 0o646, other, nil, "anybody"},
		{file, 0o664, other, []string{"4", groupOf(t, file)}, "group"},
		{file, 0o664, other, []string{"4"}, ""},
		{dir, os.ModeSticky | 0o777, other, nil, ""},
		{dir, 0o777, other, nil, "anybody"},
		{link, 0o600, other, nil, ""},
	} {
		if err := os.Chmod(x.path, x.mode); err != nil {
			t.Fatal(err)
		}
		is, err := os.Lstat(x.path)
		if err != nil {
			t.Fatal(err)
		}
		if got := writable(is, x.uid, x.groups); (got == "") != (x.want == "") || !strings.Contains(got, x.want) {
			t.Errorf("%s %v for %d: %q, want %q", x.path, x.mode, x.uid, got, x.want)
		}
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, link} { // by the directory that it is in
		if got := WritableBy(path, other); !strings.HasPrefix(got, dir+" may be written") {
			t.Errorf("%s: %q", path, got)
		}
	}
	if got := WritableBy(file, 0); got != "" {
		t.Errorf("by root: %q", got)
	}
	if got := WritableBy(filepath.Join(dir, "none"), other); got == "" {
		t.Error("what is not there cannot be written")
	}
}

func groupOf(t *testing.T, file string) string {
	t.Helper()
	is, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(int(is.Sys().(*syscall.Stat_t).Gid))
}
