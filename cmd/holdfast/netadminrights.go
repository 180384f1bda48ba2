package main

import (
	"log/slog"
	"os"
	"syscall"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/netadmin"
)

// rightsOf is what the privileged process does for who serves by this file: it moves the
// addresses of VIPs and of movable listeners, and those that their flows are dialled from, to the
// nodes of the cluster.
func rightsOf(c *config.Config) (r netadmin.Rights) {
	for _, v := range c.VIPs {
		r.VIPs = append(r.VIPs, v.Address)
	}
	for _, l := range c.Listeners {
		if !l.Movable {
			continue
		}
		r.Movable = append(r.Movable, l.VIP.Addr())
		for _, name := range l.Names() {
			if b := c.Backends[name]; b != nil && b.Source.IsValid() {
				r.Movable = append(r.Movable, b.Source)
			}
		}
	}
	for _, n := range c.Cluster.Nodes {
		r.Nodes = append(r.Nodes, netadmin.PortRange{First: n.SourcePortFirst, Last: n.SourcePortLast, To: n.Address.Addr()})
	}
	return r
}

// rightsFrom reads the file again when it is called and the file is another one than the last
// time. A file that the user may write who is served counts as it was at the beginning, in c: who
// takes that process over writes it, too. So does one that cannot be read.
func rightsFrom(file string, c *config.Config, uid int, log *slog.Logger) func() (netadmin.Rights, bool) {
	if how := netadmin.WritableBy(file, uid); how != "" {
		log.Warn("the file counts as it is now, until this process begins anew: who is served may write it", "how", how)
		return func() (netadmin.Rights, bool) { return rightsOf(c), false }
	}
	var last fileState
	return func() (netadmin.Rights, bool) {
		is := fileStateOf(file)
		if is == last && time.Since(is.modified) > fileTick {
			return rightsOf(c), false
		}
		last = is
		if now, err := clusterOf(file); err == nil && now != nil {
			c = now
		}
		return rightsOf(c), true
	}
}

// fileState tells one form of a file from another.
type fileState struct {
	device, inode uint64
	size          int64
	modified      time.Time
}

// fileTick is longer than two changes may be apart that leave the same time behind.
const fileTick = time.Second

// fileStateOf is the state of a file now; of none, nothing.
func fileStateOf(file string) (s fileState) {
	info, err := os.Stat(file)
	if err != nil {
		return s
	}
	s.size, s.modified = info.Size(), info.ModTime()
	if x, ok := info.Sys().(*syscall.Stat_t); ok {
		s.device, s.inode = x.Dev, x.Ino
	}
	return s
}
