package config

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// One file describes all nodes of a cluster: `nodes` says where each is, `vips`
// which addresses move between them. What is only this node's ([Cluster.Listen],
// Device, the source ports) is taken from its own entry.

// NodeSpec is one node of a cluster.
type NodeSpec struct {
	Name string
	// Address is where peers reach it, Device the interface that carries VIPs.
	Address netip.AddrPort
	Device  string
	// SourcePortFirst to SourcePortLast, both included, are the local ports from
	// which it, and no other, dials movable sources.
	SourcePortFirst, SourcePortLast uint16
	// Labels are what operators say of it, such as its rack.
	Labels map[string]string
}

// VIP is an address with a name, which moves between nodes.
type VIP struct {
	Name string
	// Address is the address with the length of its network's prefix.
	Address netip.Prefix
	// Home is the node that owns it when nothing else was said.
	Home string
	// Announce says how the network hears of its owner.
	Announce Announce
}

// Announce is how the network hears where an address is.
type Announce uint8

// AnnounceNeighbours is gratuitous ARP and unsolicited neighbour advertisements.
// AnnounceRoute: the address is put on a device of its own, whose routes a daemon
// tells the network.
const (
	AnnounceNeighbours Announce = iota
	AnnounceRoute
)

var announceWords = []string{"arp", "route"}

func (a Announce) String() string { return announceWords[a] }

// Tunnel carries segments between nodes that are on different networks: VXLAN
// (RFC 7348) with this ID over this port of UDP. The zero value is none.
type Tunnel struct {
	ID   uint32
	Port uint16
}

// SortedVIPs gives the VIPs in order of their names.
func (c *Config) SortedVIPs() []*VIP { return sorted(c.VIPs) }

// SortedNodes gives the nodes in order of their names.
func (c *Cluster) SortedNodes() []*NodeSpec { return sorted(c.Nodes) }

// NodeVariable is the variable that says which of the nodes this one is, where
// node.name does not.
const NodeVariable = "HOLDFAST_NODE"

// HostVariable is by which a lookup is asked for the host's name. If that is the name
// of one of the nodes, and nothing else says which one this is, it is that one. No
// variable of the file has a zero octet in its name.
const HostVariable = "host\x00"

// withHost makes NodeVariable known where only the host's name tells it; n is the
// value of `nodes`.
func withHost(lookup func(string) (string, bool), n *yaml.Node) func(string) (string, bool) {
	host, known := look(lookup, HostVariable)
	if !known || childOf(n, host) == nil {
		return lookup
	}
	return func(name string) (string, bool) {
		value, set := look(lookup, name)
		if name == NodeVariable && (!set || value == "") {
			return host, true
		}
		return value, set
	}
}

// Undecided gives the names of all nodes, in order, if neither src nor lookup says
// which of them this one is: a file that may be for any of them.
func Undecided(src []byte, lookup func(string) (string, bool)) []string {
	root := (&report{}).load(src)
	nodes := childOf(root, "nodes")
	if nodes == nil || nodes.Kind != yaml.MappingNode || childOf(childOf(root, "node"), "name") != nil {
		return nil
	}
	if name, set := look(withHost(lookup, nodes), NodeVariable); set && name != "" {
		return nil
	}
	var names []string
	for i := 0; i+1 < len(nodes.Content); i += 2 {
		names = append(names, nodes.Content[i].Value)
	}
	slices.Sort(names)
	return names
}

var (
	nodesKeys  = []string{"address", "device", "sourcePorts", "labels"}
	vipKeys    = []string{"address", "home", "announce"}
	tunnelKeys = []string{"vxlan"}
	vxlanKeys  = []string{"id", "port"}
	// ownKeys are those of a cluster without nodes, which nodes say of each.
	ownKeys = []string{"listen", "device", "sourcePorts", "peers"}
)

var (
	leaseBound  = durationBound{min: time.Second, max: time.Minute}
	settleBound = durationBound{min: time.Second, max: 10 * time.Minute}
	vxlanBound  = intBound{1, 1<<24 - 1}
)

const (
	defaultLease    = 3 * time.Second
	defaultSettle   = 10 * time.Second
	defaultVXLAN    = 77
	defaultVXPort   = 4790
	defaultNetadmin = "/run/holdfast/netadmin.sock"
)

var quorumWords = []string{"none", "majority"}

// vipVariable is the name by which a listener asks for the address of a VIP. No
// variable of the file has a zero octet in its name.
func vipVariable(name string) string { return "vip\x00" + name }

// withVIPs adds addresses by name to what lookup knows. A listener that asks for
// one is read again when it changes, as with any variable.
func withVIPs(lookup func(string) (string, bool), vips map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		if vip, is := strings.CutPrefix(name, vipVariable("")); is {
			address, known := vips[vip]
			return address, known
		}
		return look(lookup, name)
	}
}

// vipTexts gives the address of each VIP in n, the value of `vips`, that has one.
// What is wrong with the others is said when the section is read.
func vipTexts(n *yaml.Node, lookup func(string) (string, bool)) map[string]string {
	r := &reader{lookup: lookup}
	texts := map[string]string{"": ""}
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		address := childOf(n.Content[i+1], "address")
		if n.Content[i+1].Kind != yaml.MappingNode || address == nil {
			continue
		}
		if t, ok := r.scalar(address, ""); ok {
			if p, err := parseVIP(t.value); err == nil {
				texts[n.Content[i].Value] = p.Addr().String()
			}
		}
	}
	return texts
}

// seeVIPs makes d's lookup know the VIPs in these chunks, and which node this is.
func (d *Document) seeVIPs(chunks []chunk, lookup func(string) (string, bool)) {
	d.plain, d.lookup = lookup, lookup
	for _, key := range []string{"nodes", "vips"} {
		for i := range chunks {
			c := &chunks[i]
			if c.kind != topSection || c.key != key {
				continue
			}
			value := childOf(c.load(), key)
			if value == nil {
				continue
			}
			if key == "nodes" {
				d.lookup = withHost(d.lookup, value)
			} else {
				d.lookup = withVIPs(d.lookup, vipTexts(value, d.lookup))
			}
		}
	}
}

func parseVIP(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("must be an address with the length of its network's prefix, as in 192.0.2.10/24")
	}
	return p, checkAddr(p.Addr(), false)
}

// vip reads where a listener's clients connect: an address, or the name of a VIP,
// with a port.
func (s *section) vip(key string, l *Listener) {
	n := s.values[key]
	if n != nil && n.Kind == yaml.ScalarNode {
		quiet := s.r.quietly()
		t, ok := s.scalar(key)
		quiet()
		name, port, cut := strings.Cut(t.value, ":")
		if _, some := s.r.look(vipVariable("")); ok && some && cut && nameForm.MatchString(name) && !isAddr(name) {
			address, known := s.r.look(vipVariable(name))
			if !known {
				s.fail(key, "%q: no VIP %q in vips, and no address", clip(t.value), clip(name))
				return
			}
			number, err := parsePort(port)
			if err != nil {
				s.fail(key, "%q: %v", clip(t.value), err)
				return
			}
			l.VIP, l.VIPName = netip.AddrPortFrom(netip.MustParseAddr(address), number), name
			s.noteText(key, t.value)
			return
		}
	}
	l.VIP = s.addrPort(key, true)
}

func isAddr(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

// nodes reads all nodes of the cluster.
func (r *reader) nodes(root *section) map[string]*NodeSpec {
	all := make(map[string]*NodeSpec)
	for _, e := range root.named("nodes") {
		s := root.entry("nodes", e, nodesKeys...)
		n := &NodeSpec{Name: e.key.Value, Labels: make(map[string]string)}
		if s.require("address", "192.168.7.1:7443") {
			n.Address = s.addrPort("address", false)
		}
		if s.require("device", "eth0") {
			n.Device = s.checked("device", "", checkDevice)
		}
		if s.require("sourcePorts", "20000-39999") {
			n.SourcePortFirst, n.SourcePortLast = s.portRange("sourcePorts")
		}
		if s.has("labels") {
			labels := s.open("labels")
			for _, e := range labels.entries {
				n.Labels[e.key.Value] = labels.checked(e.key.Value, "", checkZone)
			}
		}
		all[n.Name] = n
	}
	return all
}

// vips reads the addresses that move.
func (r *reader) vips(root *section) map[string]*VIP {
	all := make(map[string]*VIP)
	for _, e := range root.named("vips") {
		s := root.entry("vips", e, vipKeys...)
		v := &VIP{Name: e.key.Value}
		if s.require("address", "192.0.2.10/24") {
			text := s.checked("address", "", func(t string) error { _, err := parseVIP(t); return err })
			v.Address, _ = netip.ParsePrefix(text)
		}
		if s.require("home", "n1") {
			v.Home = s.checked("home", "", checkName)
		}
		v.Announce = Announce(s.choice("announce", uint8(AnnounceNeighbours), announceWords))
		all[v.Name] = v
	}
	return all
}

// common reads what all nodes of the cluster share.
func (c *Cluster) common(s *section) {
	c.Lease = s.duration("lease", defaultLease, leaseBound)
	c.Settle = s.duration("settle", defaultSettle, settleBound)
	otherwise := uint8(0)
	if len(c.Nodes) > 2 {
		otherwise = 1
	}
	c.Majority = s.choice("quorum", otherwise, quorumWords) == 1
	c.Netadmin = s.checked("netadmin", defaultNetadmin, checkUnixPath)
	if s.has("tunnel") {
		v := s.section("tunnel", tunnelKeys...).section("vxlan", vxlanKeys...)
		c.Tunnel = Tunnel{uint32(v.integer("id", defaultVXLAN, vxlanBound)), uint16(v.integer("port", defaultVXPort, portBound))}
	}
}

// of takes what is this node's own from its entry.
func (c *Cluster) of(self *NodeSpec) {
	c.Listen, c.Device = self.Address, self.Device
	c.SourcePortFirst, c.SourcePortLast = self.SourcePortFirst, self.SourcePortLast
}

// validateNodes reports what is wrong between nodes, VIPs and what names them.
func (r *reader) validateNodes(d *draft) {
	if !d.root.has("nodes") {
		if d.root.has("vips") && !d.root.meant["nodes"] {
			d.root.fail("vips", "needs nodes: the hosts between which these addresses move")
		}
		return
	}
	nodes := slices.Sorted(maps.Keys(d.nodes))
	if !d.root.has("cluster") && !d.root.meant["cluster"] {
		d.root.fail("nodes", "needs a cluster section with the identity by which nodes trust each other")
	}
	if d.nodes[d.node.Name] == nil && !d.root.meant["nodes"] {
		d.root.fail("nodes", "this node, %q, is not among them%s; it is node.name, run --node, or $%s", clip(d.node.Name), thereAre(d.node.Name, nodes), NodeVariable)
	}
	list := slices.SortedFunc(maps.Values(d.nodes), func(a, b *NodeSpec) int { return strings.Compare(a.Name, b.Name) })
	for i, a := range list {
		for _, b := range list[:i] {
			if a.Address.IsValid() && a.Address == b.Address {
				d.root.fail("nodes", "%s and %s have the same address %v", printable(b.Name), printable(a.Name), a.Address)
			}
			if a.SourcePortLast > 0 && a.SourcePortFirst <= b.SourcePortLast && b.SourcePortFirst <= a.SourcePortLast {
				d.root.fail("nodes", "sourcePorts %s of %s and %s of %s overlap; each node needs ports of its own",
					portsText(b.SourcePortFirst, b.SourcePortLast), printable(b.Name), portsText(a.SourcePortFirst, a.SourcePortLast), printable(a.Name))
			}
		}
	}
	used := make(map[string]bool)
	for i := range d.listeners {
		used[d.listeners[i].l.VIPName] = true
	}
	first := make(map[netip.Addr]string)
	for _, name := range slices.Sorted(maps.Keys(d.vips)) {
		v := d.vips[name]
		if v.Home != "" && d.nodes[v.Home] == nil {
			d.root.fail("vips", "%s: no node %q%s", printable(name), clip(v.Home), thereAre(v.Home, nodes))
		}
		if other, twice := first[v.Address.Addr()]; twice && v.Address.IsValid() {
			d.root.fail("vips", "%s and %s have the same address %v", printable(other), printable(name), v.Address.Addr())
		}
		first[v.Address.Addr()] = name
		if !used[name] {
			r.warn(d.root.at("vips"), "vips."+name, "no listener is on it")
		}
	}
	for i := range d.backends {
		for k, e := range d.backends[i].b.Endpoints {
			if e.Node != "" && d.nodes[e.Node] == nil {
				if b := d.backends[i].awake(); k < len(b.endpoints) {
					b.endpoints[k].fail("node", "no node %q%s", clip(e.Node), thereAre(e.Node, nodes))
				}
			}
		}
	}
}
