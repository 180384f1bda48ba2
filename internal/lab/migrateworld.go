package lab

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// clusterHosts are nodes with servers of their own beside each other, servers apart,
// clients, and a station that only asks who has an address.
func clusterHosts(nodes []string) []HostSpec {
	all := []HostSpec{
		{Name: "client", V4: "10.9.0.20/24", V6: "fd09::20/64"},
		{Name: "judge", V4: "10.9.0.21/24", V6: "fd09::21/64"},
		{Name: apart, V4: "10.9.0.30/24", V6: "fd09::30/64"},
	}
	for _, n := range nodes {
		i := strings.TrimPrefix(n, "n")
		all = append(all, HostSpec{Name: n, V4: "10.9.0.1" + i + "/24", V6: "fd09::1" + i + "/64"})
	}
	return all
}

// tunnelHosts are two nodes and clients, each in a network of its own, around a router.
// The cables of the nodes have room for the heads of a tunnel.
func tunnelHosts() []HostSpec {
	return []HostSpec{
		{Name: "client", V4: "10.8.0.20/24", V6: "fd08::20/64", Router: []string{"10.8.0.1/24", "fd08::1/64"}},
		{Name: apart, V4: "10.8.1.30/24", V6: "fd08:1::30/64", Router: []string{"10.8.1.1/24", "fd08:1::1/64"}},
		{Name: "n1", V4: "10.8.11.11/24", V6: "fd08:11::11/64", Router: []string{"10.8.11.1/24", "fd08:11::1/64"}, MTU: 1600},
		{Name: "n3", V4: "10.8.13.13/24", V6: "fd08:13::13/64", Router: []string{"10.8.13.1/24", "fd08:13::1/64"}, MTU: 1600},
	}
}

// apart is the host of servers that are on no node.
const apart = "server"

// clusterVIP is an address that moves, with its name and its home.
type clusterVIP struct {
	name string
	addr netip.Addr
	home string
}

// clusterService is a service whose servers stand beside the nodes.
type clusterService struct {
	name  string
	vip   string // name of one of clusterVIPs
	port  uint16 // of the VIP
	door  uint16 // port of its servers
	on    []string
	slots int
	http  bool
	shut  bool
	// gone: the configuration that is in force while flows move has it no more.
	gone bool
}

// A cluster is the product on several nodes that run from one file. It is a
// Balancer that serves where its VIPs are.
type cluster struct {
	binary   string
	dir      string
	hosts    []*Host
	vips     []clusterVIP
	services []clusterService
	doors    map[string]map[string]*Door // by service and host
	// lease, settle and what else stands in the section cluster, by key.
	settings map[string]string
	routed   bool // the network hears of the VIPs by routes

	nodes  map[string]*clusterNode
	active string
}

// at is where clients of a service connect.
func (b *cluster) at(s clusterService) netip.AddrPort {
	for _, v := range b.vips {
		if v.name == s.vip {
			return netip.AddrPortFrom(v.addr, s.port)
		}
	}
	panic("lab: no VIP " + s.vip)
}

type clusterNode struct {
	host   *Host
	admin  *Process // the privileged process; nil: the node is its own
	data   *Process
	socket string
	lives  int // of the process that serves
	admins int // of the privileged one
}

// file writes the configuration of all nodes. whole has the services that are gone
// later, too.
func (b *cluster) file(whole bool) (string, error) {
	var s strings.Builder
	s.WriteString("node: { loops: 2, admin: { socket: \"" + b.dir + "/${HOLDFAST_NODE}.sock\" } }\n")
	fmt.Fprintf(&s, "cluster:\n  identity: { certificate: \"%[1]s/${HOLDFAST_NODE}.crt\", key: \"%[1]s/${HOLDFAST_NODE}.key\", trust: %[1]s/ca.crt }\n", b.dir)
	for _, k := range sortedNames(b.settings) {
		fmt.Fprintf(&s, "  %s: %s\n", k, b.settings[k])
	}
	s.WriteString("nodes:\n")
	ports := 50000 / len(b.hosts)
	for i, h := range b.hosts {
		first := 10000 + i*ports
		fmt.Fprintf(&s, "  %s: { address: %v:%d, device: eth0, sourcePorts: %d-%d }\n", h.Name, h.V4, talkPort, first, first+ports-1)
	}
	s.WriteString("vips:\n")
	for _, v := range b.vips {
		bits, more := 24, ""
		if v.addr.Is6() {
			bits = 64
		}
		if b.routed {
			bits, more = v.addr.BitLen(), ", announce: route"
		}
		fmt.Fprintf(&s, "  %s: { address: \"%v/%d\", home: %s%s }\n", v.name, v.addr, bits, v.home, more)
	}
	s.WriteString("listeners:\n")
	for _, x := range b.services {
		if x.gone && !whole {
			continue
		}
		// Flows of what stays are under an object that was changed.
		hours := 1
		if !whole {
			hours = 2
		}
		protocol := fmt.Sprintf("tcp, idleTimeout: %dh", hours)
		if x.http {
			protocol = fmt.Sprintf("http, http: { timeouts: { header: 10m, body: 10m, keepalive: %[1]dh, tunnel: %[1]dh } }", hours)
		}
		fmt.Fprintf(&s, "  %s: { vip: \"%s:%d\", protocol: %s, backend: %s, onChange: keep }\n", x.name, x.vip, x.port, protocol, x.name)
	}
	s.WriteString("backends:\n")
	for _, x := range b.services {
		if x.gone && !whole {
			continue
		}
		fmt.Fprintf(&s, "  %s:\n    connectTimeout: 30m\n    source: vip\n    preferLocal: true\n", x.name)
		if x.http {
			s.WriteString("    answerTimeout: 30m\n")
		}
		fmt.Fprintf(&s, "    limits: { connectionsPerEndpoint: %d, queue: 2000, queueTime: 30m }\n    endpoints: [", x.slots)
		for _, on := range x.on {
			at := ""
			if on != apart {
				at = ", node: " + on
			}
			fmt.Fprintf(&s, " { name: %s, address: \"%v\"%s },", strings.Replace(on, "n", "a", 1), b.doors[x.name][on].Addr, at)
		}
		s.WriteString(" ]\n")
	}
	name := filepath.Join(b.dir, "part.yaml")
	if whole {
		name = filepath.Join(b.dir, "all.yaml")
	}
	return name, os.WriteFile(name, []byte(s.String()), 0o600)
}

// Start runs all nodes.
func (b *cluster) Start(ctx context.Context) error {
	if err := writeIdentities(b.dir, b.hosts...); err != nil {
		return err
	}
	file, err := b.file(true)
	if err != nil {
		return err
	}
	b.nodes = map[string]*clusterNode{}
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	for _, h := range b.hosts {
		n := &clusterNode{host: h, socket: filepath.Join(b.dir, h.Name+".sock")}
		b.nodes[h.Name] = n
		if err := b.startNode(ctx, n, file); err != nil {
			return err
		}
	}
	b.active = b.hosts[0].Name
	for _, n := range b.nodes {
		if err := n.data.WaitLine(ctx, "ready:"); err != nil {
			return err
		}
	}
	return nil
}

// startNode runs a node, again if it has run before: with the state of before and a
// log of its own.
func (b *cluster) startNode(ctx context.Context, n *clusterNode, file string) (err error) {
	n.lives++
	name := n.host.Name
	if n.lives > 1 {
		name = fmt.Sprintf("%s.%d", name, n.lives)
	}
	if n.admin == nil || n.admin.Ended() {
		n.admins++
		name := n.host.Name + ".netadmin"
		if n.admins > 1 {
			name = fmt.Sprintf("%s.%d", name, n.admins)
		}
		if n.admin, err = n.host.Start(name, nil, b.binary, "netadmin", "--node", n.host.Name, "-c", file); err != nil {
			return err
		}
		if err := n.admin.WaitLine(ctx, "ready:"); err != nil {
			return err
		}
	}
	env := []string{"STATE_DIRECTORY=" + filepath.Join(b.dir, n.host.Name+".state")}
	n.data, err = n.host.Start(name, env, b.binary, "run", "--grace", "0s", "--node", n.host.Name, "-c", file)
	return err
}

// apply gives all nodes the same file.
func (b *cluster) apply(ctx context.Context, file string) error {
	for _, h := range b.hosts {
		if err := b.verb(ctx, h.Name, &MoveReport{}, "apply", file); err != nil {
			return err
		}
	}
	return nil
}

// verb runs a command at a node and reads its answer.
func (b *cluster) verb(ctx context.Context, node string, into any, args ...string) error {
	n := b.nodes[node]
	argv := append([]string{b.binary}, args...)
	out, err := n.host.Output(ctx, append(argv, "--socket", n.socket, "--json")...)
	if err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out[max(0, len(out)-600):]))
	}
	return lastReport(out, into)
}

// lastReport reads the last of several JSON objects, or its member "move".
func lastReport(out []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(out))
	var last json.RawMessage
	for d.More() {
		if err := d.Decode(&last); err != nil {
			return fmt.Errorf("lab: %w in %q", err, out)
		}
	}
	var step struct {
		Phase string          `json:"phase"`
		Text  string          `json:"text"`
		Move  json.RawMessage `json:"move"`
	}
	if err := json.Unmarshal(last, &step); err != nil {
		return fmt.Errorf("lab: %w in %q", err, out)
	}
	if step.Phase == "aborted" {
		return fmt.Errorf("lab: aborted: %s", cmp.Or(step.Text, string(last)))
	}
	if step.Move != nil {
		last = step.Move
	}
	return json.Unmarshal(last, into)
}

// hostReport is what the product says of a move of a VIP.
type hostReport struct {
	MoveReport
	Residue       int                `json:"residue"`
	Handshakes    int                `json:"handshakes"`
	AddressMillis float64            `json:"address_ms"`
	Retransmits   int                `json:"retransmits"`
	StateBytes    uint64             `json:"state_bytes"`
	Phases        map[string]float64 `json:"phases_ms"`
}

// other is the node to which the VIPs go next.
func (b *cluster) other() string {
	if b.active == b.hosts[0].Name {
		return b.hosts[len(b.hosts)-1].Name
	}
	return b.hosts[0].Name
}

// migrate moves one VIP, by the verb at the node that has it.
func (b *cluster) migrate(ctx context.Context, v clusterVIP, from, to string) (*hostReport, error) {
	r := &hostReport{}
	return r, b.verb(ctx, from, r, "migrate", "--vip", v.name, "--to", to)
}

// Move moves all VIPs to the other host, one after another.
func (b *cluster) Move(ctx context.Context, _ Label) (*MoveReport, error) {
	sum, to := &MoveReport{Distance: HostMove.String()}, b.other()
	for _, v := range b.vips {
		r, err := b.migrate(ctx, v, b.active, to)
		if err != nil {
			return sum, err
		}
		sum.Flows += r.Flows
		sum.Refused += r.Refused
	}
	b.active = to
	return sum, nil
}

// Serving says which process should have the VIPs.
func (b *cluster) Serving() Place {
	n := b.nodes[b.active]
	return Place{Host: n.host, PID: n.data.Pid}
}

// Status asks the node that should have the VIPs.
func (b *cluster) Status(ctx context.Context) (*Status, error) {
	s := &Status{}
	return s, b.verb(ctx, b.active, s, "status")
}

// clusterStatus is the part of the status that is about the cluster.
type clusterStatus struct {
	Status
	VIPs []vipState `json:"vips"`
	Free bool       `json:"free"`
	// HostResidue is what could not move with VIPs that have gone.
	HostResidue []struct {
		Flows int `json:"flows"`
	} `json:"host_residue"`
}

// vipState is what a node says of a VIP.
type vipState struct {
	Name  string `json:"name"`
	Owner string `json:"owner"`
	Epoch uint64 `json:"epoch"`
	State string `json:"state"`
	Why   string `json:"why"`
}

func (b *cluster) statusOf(ctx context.Context, node string) (*clusterStatus, error) {
	s := &clusterStatus{}
	return s, b.verb(ctx, node, s, "status")
}

// awaitHome waits until each VIP is owned by its home, by that one's own account.
func (b *cluster) awaitHome(ctx context.Context, patience time.Duration) error {
	deadline := time.Now().Add(patience)
	for {
		err := error(nil)
		for name := range b.nodes {
			s, e := b.statusOf(ctx, name)
			if e != nil {
				err = e
				continue
			}
			for _, v := range b.vips {
				i := slices.IndexFunc(s.VIPs, func(x vipState) bool { return x.Name == v.name })
				if v.home == name && (i < 0 || s.VIPs[i].State != "owned") {
					err = fmt.Errorf("lab: %s is %s's, which says %+v", v.name, name, s.VIPs)
				}
			}
		}
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Logs is the end of what all nodes wrote.
func (b *cluster) Logs() string {
	var s strings.Builder
	for _, name := range sortedNames(b.nodes) {
		n := b.nodes[name]
		for _, p := range []*Process{n.admin, n.data} {
			if p != nil {
				fmt.Fprintf(&s, "-- %s (pid %d)\n%s\n", p.Name, p.Pid, p.Tail(30))
			}
		}
	}
	return s.String()
}

// processes of a node.
func (n *clusterNode) pids() (pids []int) {
	for _, p := range []*Process{n.admin, n.data} {
		if p != nil {
			pids = append(pids, p.Pid)
		}
	}
	return pids
}

// hostOfNode finds a node's host.
func (b *cluster) hostOf(name string) *Host {
	i := slices.IndexFunc(b.hosts, func(h *Host) bool { return h.Name == name })
	return b.hosts[i]
}
