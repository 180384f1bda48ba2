package node

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
)

// identity is what this node shows its peers, and whom it trusts: read anew when one of the files
// is another one, so that a renewed certificate needs no word. Its zero value is ready.
type identity struct {
	mu     sync.Mutex // guards what follows
	files  [3]fileStamp
	conf   *tls.Config // of files; nil: none has been read yet
	failed [3]fileStamp
}

// fileStamp tells a file from the one that was there before under its name.
type fileStamp struct {
	name string
	at   time.Time
	size int64
	info os.FileInfo // for [os.SameFile]
}

func (s fileStamp) same(o fileStamp) bool {
	return s.name == o.name && s.at.Equal(o.at) && s.size == o.size && (s.info == nil) == (o.info == nil) && (s.info == nil || os.SameFile(s.info, o.info))
}

func stampsOf(c *config.Cluster) (all [3]fileStamp) {
	for i, name := range [3]string{c.Certificate, c.Key, c.Trust} {
		all[i].name = name
		if x, err := os.Stat(name); err == nil {
			all[i].at, all[i].size, all[i].info = x.ModTime(), x.Size(), x
		}
	}
	return all
}

func sameFiles(a, b [3]fileStamp) bool {
	return a[0].same(b[0]) && a[1].same(b[1]) && a[2].same(b[2])
}

// of gives what the files say. Files that cannot be used, as when only one of certificate and key
// is the new one yet, leave what was in force; complain is told of them once. The
// caller does not change what it gets.
func (x *identity) of(c *config.Cluster, complain func(error)) (*tls.Config, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	now := stampsOf(c)
	if x.conf != nil && sameFiles(now, x.files) {
		return x.conf, nil
	}
	conf, err := clusterTLS(c)
	switch {
	case err == nil:
		x.conf, x.files, x.failed = conf, now, [3]fileStamp{}
	case x.conf == nil:
		return nil, err
	case !sameFiles(now, x.failed):
		x.failed = now
		complain(err)
	}
	return x.conf, nil
}

// identityNow is the identity of this moment.
func (n *Node) identityNow() (*tls.Config, error) {
	n.mu.Lock()
	g := n.gen
	n.mu.Unlock()
	if g == nil { // peers may come before the node has begun
		return nil, errors.New("node: it has not begun")
	}
	c := g.Config.Cluster
	if c == nil {
		return nil, errors.New("node: no cluster any more")
	}
	return n.host.identity.of(c, func(err error) {
		n.log.Warn("the cluster's certificates cannot be read anew; those from before go on", "error", err)
	})
}

// welcoming is what peers are greeted with: each with the identity of that moment.
func (n *Node) welcoming() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return n.identityNow() }}
}

// repeatEvery is how often a line that repeats is written, and repeatsMax bounds those that are told
// apart.
const (
	repeatEvery = time.Minute
	repeatsMax  = 64
)

// repeats counts lines that are the same instead of writing them. Its zero value is ready.
type repeats struct {
	mu   sync.Mutex // guards seen
	seen map[string]*repeat
}

type repeat struct {
	at    time.Time // when it was written last
	times int       // that were not written since
}

// due tells whether a line is to be written, and how often it was not since the last time.
func (r *repeats) due(line string, now time.Time) (times int, due bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen == nil {
		r.seen = map[string]*repeat{}
	}
	x := r.seen[line]
	if x == nil {
		if len(r.seen) >= repeatsMax {
			for old, y := range r.seen {
				if now.Sub(y.at) >= repeatEvery {
					delete(r.seen, old)
				}
			}
		}
		if len(r.seen) >= repeatsMax {
			line = fmt.Sprintf("more than %d", repeatsMax) // of those one in a minute
			x = r.seen[line]
		}
	}
	switch {
	case x == nil:
		r.seen[line] = &repeat{at: now}
		return 0, true
	case now.Sub(x.at) < repeatEvery:
		x.times++
		return 0, false
	}
	times, x.times, x.at = x.times, 0, now
	return times, true
}

// talkEnded writes that a peer's talk ended early, with who it was as far as that is known.
func (n *Node) talkEnded(peer, at string, err error) {
	times, due := n.host.ended.due(peer+" "+at+" "+err.Error(), time.Now())
	if !due {
		return
	}
	args := []any{"peer", peer, "from", at, "error", err}
	if peer == "" {
		args = []any{"from", at, "error", err}
	}
	if times > 0 {
		args = append(args, "times_not_logged", times)
	}
	n.log.Warn("a peer's talk ended early", args...)
}
