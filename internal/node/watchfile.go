package node

import (
	"context"
	"errors"
	"os"
	"time"
)

const (
	// fileLook is the time between two looks at the file, fileSettle how long it
	// has to be the same before it is read: who writes it may not be done.
	fileLook   = 250 * time.Millisecond
	fileSettle = 200 * time.Millisecond
)

// fileMark tells versions of a file apart without reading it.
type fileMark struct {
	modified time.Time
	size     int64
	file     os.FileInfo // which inode
}

func markOf(file string) (m fileMark, ok bool) {
	i, err := os.Stat(file)
	if err != nil {
		return m, false
	}
	return fileMark{i.ModTime(), i.Size(), i}, true
}

func (m fileMark) same(o fileMark) bool {
	return m.modified.Equal(o.modified) && m.size == o.size && m.file != nil && o.file != nil && os.SameFile(m.file, o.file)
}

// watchFile applies the file whenever it is another one, if the configuration
// says so, and gives what ends it. A file that is wrong is told of once.
func (n *Node) watchFile(ctx context.Context) (end func()) {
	watches := false
	var seen, fresh fileMark
	var since time.Time
	waits := "" // what keeps the file from being applied, as it was told
	return every(fileLook, func(now time.Time) {
		if !n.Config().Node.WatchFile || n.handingOver() {
			watches = false
			return
		}
		is, ok := markOf(n.file)
		if !watches { // it may have changed since it was read; once more is free
			watches, seen, since = true, fileMark{}, time.Time{}
		}
		switch {
		case !ok || is.same(seen): // one that is being replaced is not there for a moment
			since = time.Time{}
		case since.IsZero() || !is.same(fresh):
			fresh, since = is, now
		case now.Sub(since) >= fileSettle:
			err := n.state.watched() // before it is counted as refused, again and again
			if err == nil {
				_, err = n.Change(ctx, ChangeRequest{Guard: Guard{Author: Author{Name: "file", Reason: "it has changed"}}, Reread: true})
			}
			if errors.Is(err, ErrCanary) || errors.Is(err, ErrBusy) {
				// Nothing is wrong with the file: it is applied when that is over.
				if text := err.Error(); text != waits {
					waits = text
					n.log.Warn("the file has changed and is applied later", "file", n.file, "why", err)
				}
				return
			}
			seen, since, waits = is, time.Time{}, ""
			if err != nil {
				n.log.Error("the file has changed and is refused; the configuration in force goes on", "file", n.file, "error", err)
			}
		}
	})
}
