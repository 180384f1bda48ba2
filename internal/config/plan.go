package config

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// String gives one line for each thing to do, each ended by a newline: node
// and cluster, then backends with their endpoints, then listeners, each in
// order of names. An empty plan gives "".
//
//	~ backend primary: connectTimeout 5s -> 2s
//	+ endpoint primary/db3 10.0.0.33:5432
//	- backend old
//	~ listener pg: idleTimeout 10m -> 5m
func (p Plan) String() string {
	var out strings.Builder
	if p.Node != nil {
		fmt.Fprintf(&out, "~ node: %s\n", nodeFields.changes(&p.Node.Old, &p.Node.New))
	}
	if p.Cluster != nil {
		fmt.Fprintln(&out, p.Cluster.line())
	}
	if p.AccessLog != nil {
		fmt.Fprintln(&out, p.AccessLog.line())
	}
	for _, c := range p.VIPs {
		fmt.Fprintln(&out, c.line())
	}
	p.backendLines().print(&out)
	p.listenerLines().print(&out)
	return out.String()
}

// planLines are lines with the key by which they are sorted.
type planLines []struct{ key, text string }

func (l *planLines) add(key, format string, args ...any) {
	*l = append(*l, struct{ key, text string }{key, fmt.Sprintf(format, args...)})
}

func (l planLines) print(out *strings.Builder) {
	slices.SortFunc(l, func(a, b struct{ key, text string }) int { return strings.Compare(a.key, b.key) })
	for _, line := range l {
		fmt.Fprintln(out, line.text)
	}
}

func (p Plan) backendLines() *planLines {
	var l planLines
	for _, b := range p.BackendsAdded {
		l.add(b.Ref.Name, "+ backend %s", b.Ref.Name)
	}
	for _, b := range p.BackendsRemoved {
		l.add(b.Ref.Name, "- backend %s", b.Ref.Name)
	}
	for _, c := range p.BackendsChanged {
		// Nothing to say of the backend itself when only endpoints changed.
		if changes := backendChanges(c.Old, c.New); changes != "" {
			l.add(c.New.Ref.Name, "~ backend %s: %s", c.New.Ref.Name, changes)
		}
	}
	for _, e := range p.EndpointsAdded {
		l.add(endpointKey(e), "+ endpoint %s", describe(e))
	}
	for _, e := range p.EndpointsRemoved {
		l.add(endpointKey(e), "- endpoint %s", describe(e))
	}
	for _, c := range p.EndpointsChanged {
		l.add(endpointKey(c.New), "~ endpoint %s: %s", c.New.Ref.Name, endpointFields.changes(c.Old, c.New))
	}
	return &l
}

// endpointKey sorts an endpoint below its own backend and above the next:
// names of backends hold no octet as low as the separator.
func endpointKey(e *Endpoint) string { return e.Backend + "\x00" + e.Name }

// describe gives name and address, or the name alone where it is the address.
func describe(e *Endpoint) string {
	if e.Name == e.Address() {
		return e.Ref.Name
	}
	return e.Ref.Name + " " + e.Address()
}

func (p Plan) listenerLines() *planLines {
	var l planLines
	for _, a := range p.ListenersAdded {
		l.add(a.Ref.Name, "+ listener %s %v", a.Ref.Name, a.VIP)
	}
	for _, r := range p.ListenersRemoved {
		l.add(r.Ref.Name, "- listener %s %v", r.Ref.Name, r.VIP)
	}
	for _, c := range p.ListenersChanged {
		l.add(c.New.Ref.Name, "~ listener %s: %s", c.New.Ref.Name, listenerChanges(c.Old, c.New))
	}
	return &l
}

func (c *VIPChange) line() string {
	switch {
	case c.Old == nil:
		return fmt.Sprintf("+ vip %s %v", c.New.Name, c.New.Address)
	case c.New == nil:
		return fmt.Sprintf("- vip %s %v", c.Old.Name, c.Old.Address)
	}
	return fmt.Sprintf("~ vip %s: %s", c.New.Name, vipFields.changes(c.Old, c.New))
}

func (c *ClusterChange) line() string {
	switch {
	case c.Old == nil:
		return fmt.Sprintf("+ cluster %v", c.New.Listen)
	case c.New == nil:
		return fmt.Sprintf("- cluster %v", c.Old.Listen)
	}
	changes := nodeLines(c.Old.Nodes, c.New.Nodes)
	shared, own := clusterFields.list(c.Old, c.New), ownFields.list(c.Old, c.New)
	if len(changes) == 0 { // else they say it
		changes = own
	}
	return "~ cluster: " + strings.Join(append(shared, changes...), ", ")
}

// nodeLines tells nodes that came, went or changed.
func nodeLines(old, new map[string]*NodeSpec) (all []string) {
	for _, name := range names(old, new) {
		switch was, is := old[name], new[name]; {
		case was == nil:
			all = append(all, fmt.Sprintf("+ nodes.%s %v", name, is.Address))
		case is == nil:
			all = append(all, fmt.Sprintf("- nodes.%s %v", name, was.Address))
		default:
			for _, change := range nodeSpecFields.list(was, is) {
				all = append(all, fmt.Sprintf("nodes.%s.%s", name, change))
			}
		}
	}
	return all
}

// fields says how the parts of a T are called in the file and how they are
// printed. It serves to name what changed.
type fields[T any] []struct {
	key   string
	value func(*T) string
}

// changes gives "key old -> new" for each field that differs, with commas.
func (f fields[T]) changes(old, new *T) string { return strings.Join(f.list(old, new), ", ") }

func (f fields[T]) list(old, new *T) []string {
	var all []string
	for _, field := range f {
		if was, is := field.value(old), field.value(new); was != is {
			all = append(all, field.key+" "+was+" -> "+is)
		}
	}
	return all
}

var listenerFields = fields[Listener]{
	{"vip", func(l *Listener) string { return vipText(l) }},
	{"protocol", func(l *Listener) string { return l.Protocol.String() }},
	{"backend", func(l *Listener) string { return printable(l.BackendName) }},
	{"proxyProtocol.from", func(l *Listener) string { return prefixesText(l.ProxyFrom) }},
	{"idleTimeout", func(l *Listener) string { return durationText(l.IdleTimeout) }},
	{"connectionsMax", func(l *Listener) string { return fmt.Sprint(l.ConnectionsMax) }},
	{"backlog", func(l *Listener) string { return fmt.Sprint(l.Backlog) }},
	{"keepalive.idle", func(l *Listener) string { return durationText(l.KeepaliveIdle) }},
	{"keepalive.interval", func(l *Listener) string { return durationText(l.KeepaliveInterval) }},
	{"keepalive.count", func(l *Listener) string { return fmt.Sprint(l.KeepaliveCount) }},
	{"userTimeout", func(l *Listener) string { return durationText(l.UserTimeout) }},
	{"onChange", func(l *Listener) string { return l.OnChange.String() }},
	{"movable", func(l *Listener) string { return fmt.Sprint(l.Movable) }},
	{"allow", func(l *Listener) string { return prefixesText(l.Allow) }},
	{"deny", func(l *Listener) string { return prefixesText(l.Deny) }},
	{"rate", func(l *Listener) string { return rateText(l.ConnectionRate) }},
	{"sourceRate", func(l *Listener) string { return sourceRateText(l.SourceRate) }},
	{"sourceConnectionsMax", func(l *Listener) string { return fmt.Sprint(l.SourceConnectionsMax) }},
	{"accessLog", func(l *Listener) string { return onOff(!l.Unlogged) }},
}

var backendFields = fields[Backend]{
	{"balance", func(b *Backend) string { return b.Balance.String() }},
	{"connectTimeout", func(b *Backend) string { return durationText(b.ConnectTimeout) }},
	{"retry.max", func(b *Backend) string { return fmt.Sprint(b.RetryMax) }},
	{"source", sourceText},
	{"limits.connectionsPerEndpoint", func(b *Backend) string { return fmt.Sprint(b.ConnectionsPerEndpoint) }},
	{"limits.queue", func(b *Backend) string { return fmt.Sprint(b.QueueMax) }},
	{"limits.queueTime", func(b *Backend) string { return durationText(b.QueueTime) }},
	{"proxyProtocol", func(b *Backend) string { return b.ProxyHeader.String() }},
	{"answerTimeout", func(b *Backend) string { return durationText(b.AnswerTimeout) }},
	{"reuse.idle", func(b *Backend) string { return fmt.Sprint(b.IdleMax) }},
	{"reuse.time", func(b *Backend) string { return durationText(b.IdleTime) }},
	{"retry.on", retryText},
	{"retry.budget", func(b *Backend) string { return percentText(b.Retry.Budget) }},
	{"hash", func(b *Backend) string { return b.Hash.text() }},
	{"preferLocal", func(b *Backend) string { return fmt.Sprint(b.PreferLocal) }},
	{"slowStart", func(b *Backend) string { return durationText(b.SlowStart) }},
	{"panic", func(b *Backend) string { return percentText(b.Panic) }},
}

var endpointFields = fields[Endpoint]{
	{"address", func(e *Endpoint) string {
		if e.Host != "" && e.Addr.IsValid() {
			return e.Address() + " of " + e.hostPort()
		}
		return e.Address()
	}},
	{"weight", func(e *Endpoint) string { return fmt.Sprint(e.Weight) }},
	{"backup", func(e *Endpoint) string { return fmt.Sprint(e.Backup) }},
	{"zone", func(e *Endpoint) string { return printable(e.Zone) }},
	{"node", func(e *Endpoint) string { return printable(e.Node) }},
	{"connections", func(e *Endpoint) string { return fmt.Sprint(e.ConnectionsMax) }},
	{"check.port", func(e *Endpoint) string { return fmt.Sprint(e.CheckPort) }},
}

var nodeFields = fields[Node]{
	{"name", func(n *Node) string { return n.Name }},
	{"loops", func(n *Node) string { return loopsText(n.Loops) }},
	{"connectionsMax", func(n *Node) string { return fmt.Sprint(n.ConnectionsMax) }},
	{"admin.socket", func(n *Node) string { return n.AdminSocket }},
	{"admin.metrics", func(n *Node) string { return addrPortText(n.Metrics) }},
	{"admin.api", func(n *Node) string { return n.API.String() }},
	{"state", func(n *Node) string { return printable(n.State) }},
	{"watchFile", func(n *Node) string { return fmt.Sprint(n.WatchFile) }},
	{"zone", func(n *Node) string { return printable(n.Zone) }},
	{"memory.max", func(n *Node) string { return sizeText(n.MemoryMax) }},
	{"dns", func(n *Node) string {
		texts := make([]string, len(n.DNS))
		for i, a := range n.DNS {
			texts[i] = a.String()
		}
		return "[" + strings.Join(texts, ", ") + "]"
	}},
}

// ownFields are what a cluster has of this node's own entry in nodes.
var ownFields = fields[Cluster]{
	{"address", func(c *Cluster) string { return c.Listen.String() }},
	{"device", func(c *Cluster) string { return c.Device }},
	{"sourcePorts", func(c *Cluster) string { return portsText(c.SourcePortFirst, c.SourcePortLast) }},
}

// clusterFields are those that all nodes share.
var clusterFields = fields[Cluster]{
	{"identity.certificate", func(c *Cluster) string { return c.Certificate }},
	{"identity.key", func(c *Cluster) string { return c.Key }},
	{"identity.trust", func(c *Cluster) string { return c.Trust }},
	{"lease", func(c *Cluster) string { return durationText(c.Lease) }},
	{"settle", func(c *Cluster) string { return durationText(c.Settle) }},
	{"quorum", func(c *Cluster) string {
		if c.Majority {
			return quorumWords[1]
		}
		return quorumWords[0]
	}},
	{"onStop", func(c *Cluster) string {
		if c.Stay {
			return onStopWords[1]
		}
		return onStopWords[0]
	}},
	{"tunnel.vxlan", func(c *Cluster) string { return fmt.Sprintf("%d over port %d", c.Tunnel.ID, c.Tunnel.Port) }},
	{"netadmin", func(c *Cluster) string { return c.Netadmin }},
}

// nodeSpecFields are those of a node in nodes.
var nodeSpecFields = fields[NodeSpec]{
	{"address", func(n *NodeSpec) string { return n.Address.String() }},
	{"device", func(n *NodeSpec) string { return n.Device }},
	{"sourcePorts", func(n *NodeSpec) string { return portsText(n.SourcePortFirst, n.SourcePortLast) }},
	{"labels", func(n *NodeSpec) string { return fmt.Sprint(n.Labels) }},
}

var vipFields = fields[VIP]{
	{"address", func(v *VIP) string { return v.Address.String() }},
	{"home", func(v *VIP) string { return v.Home }},
	{"announce", func(v *VIP) string { return v.Announce.String() }},
}

// vipText gives where the clients of l connect, as the file may write it.
func vipText(l *Listener) string {
	if l.VIPName != "" {
		return fmt.Sprintf("%s:%d (%v)", l.VIPName, l.VIP.Port(), l.VIP.Addr())
	}
	return l.VIP.String()
}

// sourceText gives the source of b as the file writes it; the kernel's choice
// is "".
func sourceText(b *Backend) string {
	switch {
	case b.SourceVIP:
		return sourceVIP
	case b.Source.IsValid():
		return b.Source.String()
	}
	return `""`
}

// durationText gives d without parts that are zero: 10m, not 10m0s.
func durationText(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
