package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/netadmin"
)

// What the privileged process knows beside the rules of the kernel its successor does not
// find there, when it was killed: it is told again as soon as it answers.

// againFirst and againMost are the times between two looks for a privileged process
// that is gone.
const (
	againFirst = 5 * time.Millisecond
	againMost  = 200 * time.Millisecond
)

// steered is what was asked for last of each peer.
type steered struct {
	mu     sync.Mutex                          // guards what follows
	ranges map[netip.Addr][]netadmin.PortRange // by To
}

// steerTo steers ports to a peer, and keeps in mind that they are.
func (n *Node) steerTo(to netip.Addr, addrs []netip.Addr, ranges []netadmin.PortRange) error {
	s := &n.addresses.steered
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := n.host.admin.Steer(addrs, ranges); err != nil {
		return err
	}
	if s.ranges == nil {
		s.ranges = map[netip.Addr][]netadmin.PortRange{}
	}
	s.ranges[to] = ranges
	return nil
}

// steerAgain says it all again, but of peers that c has no more: the privileged process reads
// the file as well, and refuses the whole.
func (n *Node) steerAgain(c *config.Config) error {
	s := &n.addresses.steered
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.ranges, func(to netip.Addr, _ []netadmin.PortRange) bool {
		if c.Cluster == nil {
			return true
		}
		for _, x := range c.Cluster.Nodes {
			if x.Address.Addr() == to {
				return false
			}
		}
		return true
	})
	var all []netadmin.PortRange
	for _, r := range s.ranges {
		all = append(all, r...)
	}
	if len(all) == 0 {
		return nil
	}
	addrs, _ := dialledFrom(c)
	return n.host.admin.Steer(addrs, all)
}

// watchNetadmin tells each privileged process that comes after the one of pid known what
// it does not find in the kernel, until ctx ends.
func (n *Node) watchNetadmin(ctx context.Context, client *netadmin.Client, known int) {
	said := "" // each failure once: the next try most likely has the same
	for pause := againFirst; ; pause = min(2*pause, againMost) {
		pid, gone, err := client.Watch()
		if err == nil && pid != known {
			if err = n.sayAgain(ctx); err == nil {
				n.log.Info("another privileged process; it knows what is steered and routed", "pid", pid, "was", known)
				known, said = pid, ""
			} else if err.Error() != said {
				said = err.Error()
				n.log.Warn("another privileged process does not take what the one before it knew; it is told again", "pid", pid, "error", err)
			}
		}
		if err != nil {
			if sleep(ctx, pause) != nil {
				return
			}
			continue
		}
		pause = againFirst
		select {
		case <-gone:
			if ctx.Err() == nil {
				n.log.Warn("the privileged process has ended; what is in force lasts as long as its leases", "pid", pid)
			}
		case <-ctx.Done():
			return
		}
	}
}

// sayAgain tells a privileged process what the one before it knew, and renews the leases.
func (n *Node) sayAgain(ctx context.Context) error {
	k := &n.addresses
	k.mu.Lock()
	var err error
	if !k.handed && len(k.of) > 0 {
		err = n.fence(k.of)
	}
	k.mu.Unlock()
	if err = errors.Join(err, n.steerAgain(n.Config())); err != nil {
		return fmt.Errorf("node: another privileged process: %w", err)
	}
	n.roundNow(ctx)
	return nil
}
