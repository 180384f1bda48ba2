package netadmin

import (
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// WritableBy says how a user may change what is in a file, or be another file in its
// place; "" is not at all. A user whose rights this process has itself is not told apart from it.
func WritableBy(file string, uid int) string {
	if uid == 0 || uid == os.Geteuid() {
		return ""
	}
	var groups []string
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		groups, _ = u.GroupIds() // one that is not known has none
	}
	path, err := filepath.Abs(file)
	if err != nil {
		return err.Error()
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err.Error()
	}
	for _, p := range []string{path, real} {
		for ; ; p = filepath.Dir(p) {
			is, err := os.Lstat(p)
			if err != nil {
				return err.Error()
			}
			if how := writable(is, uid, groups); how != "" {
				return p + " " + how
			}
			if p == filepath.Dir(p) {
				break
			}
		}
	}
	return ""
}

// writable is WritableBy of one file or directory, without those above it.
func writable(is fs.FileInfo, uid int, groups []string) string {
	at, mode := is.Sys().(*syscall.Stat_t), is.Mode()
	switch {
	case int(at.Uid) == uid:
		return fmt.Sprintf("is of user %d", uid)
	case mode&fs.ModeSymlink != 0, is.IsDir() && mode&fs.ModeSticky != 0: // there each one's files are its own
		return ""
	case mode&0o002 != 0:
		return "may be written by anybody"
	case mode&0o020 != 0 && slices.Contains(groups, strconv.Itoa(int(at.Gid))):
		return fmt.Sprintf("may be written by group %d", at.Gid)
	}
	return ""
}
