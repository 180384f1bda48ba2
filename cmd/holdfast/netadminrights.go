package main

import (
	"log/slog"
	"os"
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
	var was os.FileInfo
	return func() (netadmin.Rights, bool) {
		is, _ := os.Stat(file) // of one that is not there, nothing
		if sameFile(was, is) {
			return rightsOf(c), false
		}
		was = is
		if now, err := clusterOf(file); err == nil && now != nil {
			c = now
		}
		return rightsOf(c), true
	}
}

// fileTick is longer than two changes may be apart that leave the same time behind.
const fileTick = time.Second

// sameFile tells whether a file is what it was; none is like none.
func sameFile(was, is os.FileInfo) bool {
	if was == nil || is == nil {
		return was == nil && is == nil
	}
	return os.SameFile(was, is) && was.Size() == is.Size() && was.ModTime().Equal(is.ModTime()) && time.Since(is.ModTime()) > fileTick
}
