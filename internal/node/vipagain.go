package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

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

// steered is what was asked for last: for all peers together.
type steered struct {
	mu     sync.Mutex // guards what follows
	addrs  []netip.Addr
	ranges map[netip.Addr][]netadmin.PortRange // by To
}

// steerTo steers ports to a peer, and keeps in mind that they are.
func (n *Node) steerTo(to netip.Addr, addrs []netip.Addr, ranges []netadmin.PortRange) error {
	s := &n.addresses.steered
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ranges == nil {
		s.ranges = map[netip.Addr][]netadmin.PortRange{}
	}
	s.addrs, s.ranges[to] = addrs, ranges
	return n.host.admin.Steer(addrs, ranges)
}

// steerAgain says it all again.
func (n *Node) steerAgain() error {
	s := &n.addresses.steered
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []netadmin.PortRange
	for _, r := range s.ranges {
		all = append(all, r...)
	}
	if len(all) == 0 {
		return nil
	}
	return n.host.admin.Steer(s.addrs, all)
}

// watchNetadmin tells each privileged process that comes after the one of pid known what
// it does not find in the kernel, until ctx ends.
func (n *Node) watchNetadmin(ctx context.Context, client *netadmin.Client, known int) {
	for pause := againFirst; ; pause = min(2*pause, againMost) {
		pid, gone, err := client.Watch()
		if err == nil && pid != known {
			if err = n.sayAgain(ctx); err == nil {
				n.log.Info("another privileged process; it knows what is steered and routed", "pid", pid, "was", known)
				known = pid
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
	if err = errors.Join(err, n.steerAgain()); err != nil {
		return fmt.Errorf("node: another privileged process: %w", err)
	}
	n.roundNow(ctx)
	return nil
}
