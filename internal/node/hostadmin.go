package node

import (
	"encoding/json"
	"fmt"
	"log/slog"
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

// hostAdmin is the kernel's side of moves between hosts: an [netadmin.Admin] of this
// process, or a [netadmin.Client] of the one that has the privilege.
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

	Repair(fds []int, mode int) error
	Sockets(specs []tcprepair.SocketSpec) ([]int, error)
	Close() error
}

// names of the kernel's rules: a process and its successor both have rules for
// a moment, so they take turns.
var names = [2]struct{ table, device string }{{"holdfast", "holdfast0"}, {"holdfast1", "holdfast1"}}

// openAdmin prepares this host for moves. With the heritage of a predecessor
// what that one diverts is diverted on; without, all leftovers are removed.
func openAdmin(c *config.Cluster, heritage json.RawMessage, log *slog.Logger) (*netadmin.Admin, error) {
	mine, other := names[0], names[1]
	var h *netadmin.Heritage
	if len(heritage) > 0 {
		h = new(netadmin.Heritage)
		if err := json.Unmarshal(heritage, h); err != nil {
			return nil, fmt.Errorf("heritage: %w", err)
		}
		if h.Table == mine.table {
			mine = other
		}
	} else {
		// Opening removes what is there under the name; so does closing.
		old, err := netadmin.Open(netadmin.Config{Device: c.Device, Table: other.table, HoldDevice: other.device, Log: log})
		if err != nil {
			return nil, err
		}
		if err := old.Close(); err != nil {
			return nil, err
		}
	}
	cfg := netadmin.Config{Device: c.Device, Table: mine.table, HoldDevice: mine.device, Log: log}
	if t := c.Tunnel; t != (config.Tunnel{}) {
		cfg.Tunnel = &netadmin.Tunnel{Local: c.Listen.Addr(), ID: int(t.ID), Port: int(t.Port)}
	}
	a, err := netadmin.Open(cfg)
	if err != nil {
		return nil, err
	}
	if h != nil {
		if err := a.Inherit(*h); err != nil {
			_ = a.Leave()
			return nil, err
		}
	}
	return a, nil
}

// removeOtherRules removes what the other process of an upgrade, which is gone,
// has left in the kernel beside our own rules.
func (n *Node) removeOtherRules() {
	c := n.Config().Cluster
	if n.host.local == nil || c == nil {
		return
	}
	other := names[0]
	if n.host.local.Heritage().Table == other.table {
		other = names[1]
	}
	old, err := netadmin.Open(netadmin.Config{Device: c.Device, Table: other.table, HoldDevice: other.device, Log: n.log})
	if err == nil {
		err = old.Leave() // what is the host's, not one table's, we still use
	}
	if err != nil {
		n.log.Error("rules of a process that is gone could not be removed", "table", other.table, "error", err)
	}
}

// hostHeritage is what the successor's openAdmin needs. That there is any tells it that
// a predecessor goes on with what is the whole host's.
func (n *Node) hostHeritage() json.RawMessage {
	if n.host.admin == nil {
		return nil
	}
	var h struct {
		*netadmin.Heritage // nil: the privileged process keeps it
		heritageVIPs
	}
	h.heritageVIPs = n.tellVIPs()
	if n.host.local != nil {
		own := n.host.local.Heritage()
		h.Heritage = &own
	}
	b, err := json.Marshal(h)
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

// closeAdmin ends the rules; what both sides of an upgrade use stays if the
// other one goes on.
func (n *Node) closeAdmin() {
	n.mu.Lock()
	handed := n.successor != 0 || n.host.guest
	n.mu.Unlock()
	err := error(nil)
	if handed && n.host.local != nil {
		err = n.host.local.Leave()
	} else {
		err = n.host.admin.Close()
	}
	if err != nil {
		n.log.Error("rules of the kernel could not be removed", "error", err)
	}
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
	addrs, ports := map[netip.Addr]bool{}, []uint16{}
	for _, l := range c.Listeners {
		// A VIP's own port is never steered, be it of a movable listener or not.
		ports = append(ports, l.VIP.Port())
		if !l.Movable {
			continue
		}
		addrs[l.VIP.Addr()] = true
		for _, name := range l.Names() {
			if b := c.Backends[name]; b != nil && b.Source.IsValid() {
				addrs[b.Source] = true
			}
		}
	}
	return n.steerTo(at, slices.Collect(maps.Keys(addrs)), without(first, last, ports, at))
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

// openHostAdmin begins to speak to the privileged process, or, without one, to be it.
func (n *Node) openHostAdmin(c *config.Cluster, o Options) error {
	if o.Netadmin != "" {
		client, err := netadmin.Dial(o.Netadmin)
		if err != nil {
			return err
		}
		n.host.admin = client
		return nil
	}
	if err := tcprepair.Probe(); err != nil {
		return fmt.Errorf("flows cannot move between hosts: %w", err)
	}
	a, err := openAdmin(c, o.HostHeritage, n.log)
	if err != nil {
		return err
	}
	n.host.admin, n.host.local = a, a
	return nil
}
