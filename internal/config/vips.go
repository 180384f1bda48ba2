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
)

var (
	leaseBound  = durationBound{min: time.Second, max: time.Minute}
	settleBound = durationBound{min: time.Second, max: 10 * time.Minute}
	vxlanBound  = intBound{1, 1<<24 - 1}
)

const (
	defaultLease  = 3 * time.Second
	defaultSettle = 10 * time.Second
	defaultVXLAN  = 77
	defaultVXPort = 4790
	// DefaultNetadmin is where the privileged process is found if the file does not say.
	DefaultNetadmin = "/run/holdfast/netadmin.sock"
)

var (
	quorumWords = []string{"none", "majority"}
	onStopWords = []string{"evacuate", "stay"}
)

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

// vipTexts gives the address of each VIP in n, the value of `vips`; "" if it has none.
// What is wrong with the others is said when the section is read.
func vipTexts(n *yaml.Node, lookup func(string) (string, bool)) map[string]string {
	r := &reader{lookup: lookup}
	texts := make(map[string]string) // under "" the names of all
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		texts[n.Content[i].Value] = "" // what is wrong with it is said there
		address := childOf(n.Content[i+1], "address")
		if address == nil {
			continue
		}
		if t, ok := r.scalar(address, ""); ok {
			if p, err := parseVIP(t.value); err == nil {
				texts[n.Content[i].Value] = p.Addr().String()
			}
		}
	}
	delete(texts, "")
	texts[""] = strings.Join(slices.Sorted(maps.Keys(texts)), " ")
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
				known, _ := s.r.look(vipVariable(""))
				s.fail(key, "%q: no VIP %q%s", clip(t.value), clip(name), thereAre(name, strings.Fields(known)))
				return
			}
			if address == "" {
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

// note keeps where a node or a VIP is in the file.
func (d *draft) note(s *section) {
	if d.sites == nil {
		d.sites = make(map[string]*section)
	}
	d.sites[s.path] = s
}

// nodes reads all nodes of the cluster.
func (r *reader) nodes(d *draft) map[string]*NodeSpec {
	all := make(map[string]*NodeSpec)
	for _, e := range d.root.named("nodes") {
		s := d.root.entry("nodes", e, nodesKeys...)
		d.note(s)
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
func (r *reader) vips(d *draft) map[string]*VIP {
	all := make(map[string]*VIP)
	for _, e := range d.root.named("vips") {
		s := d.root.entry("vips", e, vipKeys...)
		d.note(s)
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
	c.Stay = s.choice("onStop", 0, onStopWords) == 1
	c.Netadmin = s.checked("netadmin", DefaultNetadmin, checkUnixPath)
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
	has := func(key string) bool { return d.root.has(key) || d.root.meant[key] }
	if !has("nodes") {
		for _, key := range []string{"cluster", "vips"} {
			if d.root.has(key) {
				d.root.fail(key, "needs nodes: the hosts between which flows and VIPs move, as in nodes: { n1: { address: 192.168.7.1:7443, device: eth0, sourcePorts: 20000-39999 } }")
			}
		}
	}
	if d.root.has("nodes") {
		if !has("cluster") {
			d.root.fail("nodes", "needs a cluster section with the identity by which nodes trust each other")
		}
		d.validatePeers()
	}
	if d.root.has("vips") {
		d.validateVIPs(r)
	}
	if !d.root.meant["nodes"] {
		d.validateHosts()
	}
}

// unread tells whether a section of this name could not be read whole, so that what
// names it is not judged.
func (d *draft) unread(section string) bool {
	n := d.root.values[section]
	return d.root.meant[section] || n != nil && n.Kind != yaml.MappingNode
}

// validatePeers: nodes and which of them this one is.
func (d *draft) validatePeers() {
	names := slices.Sorted(maps.Keys(d.nodes))
	if d.nodes[d.node.Name] == nil && !d.unread("nodes") {
		d.root.fail("nodes", "this node, %q, is not among them%s; it is node.name, run --node, or $%s",
			clip(d.node.Name), thereAre(d.node.Name, names), NodeVariable)
	}
	for i, name := range names {
		b, s := d.nodes[name], d.sites[join("nodes", name)]
		for _, other := range names[:i] {
			a := d.nodes[other]
			if b.Address.IsValid() && a.Address == b.Address {
				s.fail("address", "%v is that of %s, too", b.Address, printable(other))
			}
			if b.SourcePortLast > 0 && a.SourcePortFirst <= b.SourcePortLast && b.SourcePortFirst <= a.SourcePortLast {
				s.fail("sourcePorts", "%s overlaps %s of %s; each node needs ports of its own", portsText(b.SourcePortFirst, b.SourcePortLast),
					portsText(a.SourcePortFirst, a.SourcePortLast), printable(other))
			}
		}
	}
}

// validateVIPs: addresses that move, their homes, and whether somebody listens there.
func (d *draft) validateVIPs(r *reader) {
	if d.node.State == NoState && len(d.vips) > 0 {
		r.fail(d.stateAt, "node.state", "%s keeps nothing, and who owns an address of vips must outlast a restart: write a directory, or leave it out", NoState)
	}
	nodes := slices.Sorted(maps.Keys(d.nodes))
	used, whole := make(map[string]bool), !d.unread("listeners")
	var plain []*listenerSite
	for i := range d.listeners {
		l := &d.listeners[i]
		used[l.l.VIPName] = true
		if l.l.VIPName == "" && l.l.VIP.IsValid() {
			plain = append(plain, l)
		}
		whole = whole && (l.section == nil || !l.broken && l.l.VIP.IsValid())
	}
	first := make(map[netip.Addr]string) // the name of each VIP
	for _, name := range slices.Sorted(maps.Keys(d.vips)) {
		v, s := d.vips[name], d.sites[join("vips", name)]
		if v.Home != "" && d.nodes[v.Home] == nil && d.root.has("nodes") && !d.unread("nodes") {
			s.fail("home", "no node %q%s", clip(v.Home), thereAre(v.Home, nodes))
		}
		if v.Address.IsValid() {
			if other, twice := first[v.Address.Addr()]; twice {
				s.fail("address", "%v is that of %s, too", v.Address.Addr(), printable(other))
			} else {
				first[v.Address.Addr()] = name
			}
		}
		for _, at := range nodes {
			if n := d.nodes[at]; v.Address.IsValid() && n.Address.Addr() == v.Address.Addr() {
				s.fail("address", "%v is where node %s is reached; that address must stay there", v.Address.Addr(), printable(at))
			}
		}
		if !used[name] && whole && !s.broken {
			r.warn(s.place, s.path, "no listener is on it; name it there, as in vip: %q", name+":443")
		}
	}
	for _, l := range plain {
		if name, is := first[l.l.VIP.Addr()]; is {
			l.awake().fail("vip", "%v is the VIP %s, which may be on another node; write %q", l.l.VIP.Addr(), printable(name),
				fmt.Sprintf("%s:%d", name, l.l.VIP.Port()))
		}
	}
}

// validateHosts: what is said of the host of an endpoint.
func (d *draft) validateHosts() {
	if d.unread("nodes") {
		return
	}
	nodes := slices.Sorted(maps.Keys(d.nodes))
	hosts := make(map[netip.Addr]string, len(nodes)) // by the addresses of nodes
	for _, name := range nodes {
		hosts[d.nodes[name].Address.Addr()] = name
	}
	for i := range d.backends {
		for k, e := range d.backends[i].b.Endpoints {
			known, at := d.nodes[e.Node] != nil, hosts[e.Addr.Addr()]
			if known && (at == "" || at == e.Node) || e.Node == "" && (at == "" || !e.Addr.IsValid()) {
				continue
			}
			site := d.backends[i].awake().endpoints[k]
			switch {
			case known:
				site.fail("node", "%v is the address of node %s", e.Addr.Addr(), printable(at))
			case e.Node == "":
				site.warn("address", "it is on the host of node %[1]s; with node: %[1]s it gets nothing new while that host is evacuated", printable(at))
			case len(nodes) == 0:
				site.fail("node", "no node %q; there are no nodes", clip(e.Node))
			default:
				site.fail("node", "no node %q%s", clip(e.Node), thereAre(e.Node, nodes))
			}
		}
	}
}
