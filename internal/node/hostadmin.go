package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/netadmin"
	"github.com/holdfast-lb/holdfast/tcprepair"
)

// hostAdmin is the kernel's side of moves between hosts: a [netadmin.Client] of the process
// that has the privilege.
type hostAdmin interface {
	Hold(ts []netadmin.Tuple) error
	Release(ts []netadmin.Tuple) (frames int, err error)
	Drop(ts []netadmin.Tuple) error
	Divert(ts []netadmin.Tuple, to netip.Addr) error
	Undivert(ts []netadmin.Tuple) error
	Here(ts []netadmin.Tuple) error
	Inject(packet []byte) error
	Steer(addrs []netip.Addr, ranges []netadmin.PortRange) error
	Counters() (netadmin.Counters, error)
	State() (netadmin.State, error)

	Fence(addrs []netip.Prefix) error
	Routed(addrs []netip.Addr) error
	Own(p netip.Prefix, lease time.Duration) error
	Disown(addr netip.Addr) error
	Guest(addr netip.Addr, d time.Duration) error
	Announce(addr netip.Addr) error
	Learn(on []netip.AddrPort) error
	Handshakes(addr netip.Addr) ([]netadmin.Tuple, error)
	Closing(addr netip.Addr) ([]netadmin.Tuple, error)
	Lead(addr, to netip.Addr) error
	Forward(addr, to netip.Addr) error
	Forget(addr netip.Addr) error

	Freeze(ts []netadmin.Tuple, to netip.Addr, fds []int) (errs []error, err error)
	Live(fds, modes []int, ts []netadmin.Tuple) (errs []error, frames int, err error)
	Repair(fds, modes []int) []error
	Sockets(specs []tcprepair.SocketSpec) ([]int, error)
	Close() error
}

// hostHeritage is what the successor has to know of VIPs. That there is any tells it that
// a predecessor goes on with them.
func (n *Node) hostHeritage() json.RawMessage {
	if n.host.admin == nil {
		return nil
	}
	b, err := json.Marshal(n.tellVIPs())
	if err != nil { // plain names and addresses cannot fail
		panic(err)
	}
	return b
}

// alone notes that there is no predecessor any more, but for what drains in it.
func (n *Node) alone() {
	k := &n.addresses
	k.mu.Lock()
	defer k.mu.Unlock()
	n.follow() // what is written next comes after the last that it has written
	n.mu.Lock()
	n.host.guest = false
	n.mu.Unlock()
	n.heir.Store(false)
}

// hostGreeting is the greeting between hosts: it says from which ports this one
// dials when it dials from a movable address.
func (n *Node) hostGreeting() move.Greeting {
	g := n.greeting()
	g.Features = hostFeatures()
	if c := n.Config().Cluster; c != nil {
		g.SourcePorts = [2]uint16{c.SourcePortFirst, c.SourcePortLast}
	}
	return g
}

// steer sends answers to what the peer dials from movable addresses on to it,
// as long as this host owns them. It is called before the first flow moves in
// either direction: the peer may have to dial for it at once.
func (n *Node) steer(peer move.Greeting, at netip.Addr) error {
	c := n.Config()
	first, last := peer.SourcePorts[0], peer.SourcePorts[1]
	if c.Cluster == nil || first == 0 {
		return nil // a release that did not say so
	}
	if first <= c.Cluster.SourcePortLast && c.Cluster.SourcePortFirst <= last {
		return &frozen.Refused{What: "cluster.sourcePorts", Why: fmt.Sprintf("%d-%d of %s and %d-%d of %s overlap; each node needs ports of its own",
			c.Cluster.SourcePortFirst, c.Cluster.SourcePortLast, c.Node.Name, first, last, peer.Node)}
	}
	addrs, ports := dialledFrom(c)
	return n.steerTo(at, addrs, without(first, last, ports, at))
}

// dialledFrom lists the movable addresses that nodes dial from, and the ports of listeners,
// which are never steered, be it of a movable listener or not.
func dialledFrom(c *config.Config) (addrs []netip.Addr, ports []uint16) {
	of := map[netip.Addr]bool{}
	for _, l := range c.Listeners {
		ports = append(ports, l.VIP.Port())
		if !l.Movable {
			continue
		}
		of[l.VIP.Addr()] = true
		for _, name := range l.Names() {
			if b := c.Backends[name]; b != nil && b.Source.IsValid() {
				of[b.Source] = true
			}
		}
	}
	return slices.Collect(maps.Keys(of)), ports
}

// without splits the ports first to last, both included, around some others.
func without(first, last uint16, others []uint16, to netip.Addr) (out []netadmin.PortRange) {
	slices.Sort(others)
	next := int(first) // may be one more than the highest port
	for _, p := range slices.Compact(others) {
		if int(p) < next || p > last {
			continue
		}
		if int(p) > next {
			out = append(out, netadmin.PortRange{First: uint16(next), Last: p - 1, To: to})
		}
		next = int(p) + 1
	}
	if next <= int(last) {
		out = append(out, netadmin.PortRange{First: uint16(next), Last: last, To: to})
	}
	return out
}

// openHostAdmin begins to speak to the privileged process.
func (n *Node) openHostAdmin(o Options) error {
	if o.Netadmin == "" {
		return errors.New("the privileged process of this node is not known: as this process began, its file had no cluster section that could be read")
	}
	client, err := netadmin.Dial(o.Netadmin)
	if err != nil {
		return err
	}
	n.host.admin = client
	return nil
}
