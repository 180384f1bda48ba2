package config

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Config is one whole desired state: the contents of one generation. It is
// immutable, maps included.
type Config struct {
	Node      Node
	Listeners map[string]*Listener // by name
	Backends  map[string]*Backend  // by name
	Cluster   *Cluster             // nil: this node moves nothing to other hosts
	VIPs      map[string]*VIP      // by name
	AccessLog *AccessLog           // nil: none is written
}

// Node is what concerns the process as a whole.
type Node struct {
	// Name of this node; a key of Cluster.Nodes when there is a cluster.
	Name string
	// Loops is the number of event loops; 0 leaves it to the node.
	Loops int
	// ConnectionsMax bounds the client connections of the whole node; 0 is no
	// bound but that of descriptors.
	ConnectionsMax int
	// AdminSocket is the absolute path of the unix socket of the admin API.
	AdminSocket string
	// Metrics is where /metrics is served over TCP as well; invalid: nowhere.
	Metrics netip.AddrPort
	// API is where the API is served over TCP as well; nil: nowhere.
	API *API
	// State is the absolute path of the directory of the journal; [NoState] is
	// none, and "" leaves it to who starts the node.
	State string
	// WatchFile: the file is applied when it changes.
	WatchFile bool
	// Zone is where the node is, for [Backend.PreferLocal].
	Zone string
	// MemoryMax bounds the memory of the process in octets: before it is reached
	// idle connections are shed and accepting pauses. 0 is no bound.
	MemoryMax uint64
	// DNS are the servers that resolve endpoints' names, in order; empty: those
	// of the system.
	DNS []netip.AddrPort
}

// Cluster is what moves between hosts need.
type Cluster struct {
	// Listen is where peers reach this node; Device the network interface
	// that carries movable VIPs.
	Listen netip.AddrPort
	Device string
	// Certificate, Key and Trust are absolute paths of PEM files. They are
	// not read here.
	Certificate, Key, Trust string
	// SourcePortFirst to SourcePortLast, both included, are the local ports
	// from which this node, and no other, dials movable sources.
	SourcePortFirst, SourcePortLast uint16
	// Peers are all nodes by name, this one included.
	Peers map[string]netip.AddrPort

	// Nodes are all nodes, this one included; without a section nodes, empty.
	Nodes map[string]*NodeSpec
	// Lease is how long the kernel lets a VIP pass that is not renewed, and Settle
	// how long the former owner of one sends on what still comes to it.
	Lease, Settle time.Duration
	// Majority: who reaches no majority of the nodes, itself included, lets its
	// leases end.
	Majority bool
	// Stay: a node that ends in order keeps its VIPs, which fall silent, in place of moving
	// them to another one.
	Stay bool
	// Tunnel is between nodes that are on different networks.
	Tunnel Tunnel
	// Netadmin is the absolute path of the socket of the privileged process.
	Netadmin string
}

// SortedListeners gives the listeners in order of their names.
func (c *Config) SortedListeners() []*Listener { return sorted(c.Listeners) }

// SortedBackends gives the backends in order of their names.
func (c *Config) SortedBackends() []*Backend { return sorted(c.Backends) }

// SortedPeers gives the names of all peers in order.
func (c *Cluster) SortedPeers() []string { return slices.Sorted(maps.Keys(c.Peers)) }

func sorted[T any](m map[string]T) []T {
	all := make([]T, 0, len(m))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		all = append(all, m[name])
	}
	return all
}

// Lookup finds the object that ref names: a *Listener, *Backend or *Endpoint.
// It gives false if c has none of that name, or has another version of it.
func (c *Config) Lookup(ref Ref) (any, bool) {
	switch ref.Kind {
	case ListenerKind:
		if l := c.Listeners[ref.Name]; l != nil && l.Ref == ref {
			return l, true
		}
	case BackendKind:
		if b := c.Backends[ref.Name]; b != nil && b.Ref == ref {
			return b, true
		}
	case EndpointKind:
		backend, name, _ := cutEndpointName(ref.Name)
		if b := c.Backends[backend]; b != nil {
			if e := b.Endpoint(name); e != nil && e.Ref == ref {
				return e, true
			}
		}
	}
	return nil, false
}

// Reuse gives a config with the contents of c in which every object that old
// has in the same version is old's own object, so that unchanged objects are
// the same pointers across generations. Neither c nor old is touched; old may
// be nil.
func (c *Config) Reuse(old *Config) *Config {
	if old == nil {
		return c
	}
	next := *c
	next.Listeners = make(map[string]*Listener, len(c.Listeners))
	for name, l := range c.Listeners {
		if was := old.Listeners[name]; was != nil && was.Ref == l.Ref {
			l = was
		}
		next.Listeners[name] = l
	}
	next.Backends = make(map[string]*Backend, len(c.Backends))
	for name, b := range c.Backends {
		next.Backends[name] = b.reuse(old.Backends[name])
	}
	if c.Cluster != nil && old.Cluster != nil && c.Cluster.equal(old.Cluster) {
		next.Cluster = old.Cluster
	}
	if c.AccessLog != nil && old.AccessLog != nil && *c.AccessLog == *old.AccessLog {
		next.AccessLog = old.AccessLog
	}
	if sameVIPs(c.VIPs, old.VIPs) {
		next.VIPs = old.VIPs
	}
	return &next
}

func (b *Backend) reuse(old *Backend) *Backend {
	if old == nil {
		return b
	}
	if old.Ref == b.Ref {
		return old
	}
	// Who has old's endpoints already stays itself: else a node and its document
	// would have two of each backend that was ever changed.
	next := b
	for i, e := range b.Endpoints {
		if was := old.Endpoint(e.Name); was != nil && was != e && was.Ref == e.Ref {
			if next == b {
				own := *b
				own.Endpoints = slices.Clone(b.Endpoints)
				next = &own
			}
			next.Endpoints[i] = was
		}
	}
	return next
}

func (c *Cluster) equal(o *Cluster) bool {
	return clusterFields.changes(c, o) == "" && ownFields.changes(c, o) == "" && maps.Equal(c.Peers, o.Peers) && maps.EqualFunc(c.Nodes, o.Nodes, (*NodeSpec).equal)
}

func (n *NodeSpec) equal(o *NodeSpec) bool {
	return n.Address == o.Address && n.Device == o.Device && n.SourcePortFirst == o.SourcePortFirst && n.SourcePortLast == o.SourcePortLast &&
		maps.Equal(n.Labels, o.Labels)
}

// sameVIPs tells whether two configs have the same VIPs.
func sameVIPs(a, b map[string]*VIP) bool {
	return maps.EqualFunc(a, b, func(v, w *VIP) bool { return *v == *w })
}
