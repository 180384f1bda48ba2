package config

import (
	"net/netip"
	"strconv"

	"go.yaml.in/yaml/v4"
)

var (
	rootKeys     = []string{"node", "nodes", "vips", "listeners", "backends", "cluster", "accessLog"}
	nodeKeys     = []string{"name", "loops", "connectionsMax", "admin", "zone", "memory", "dns", "state", "watchFile"}
	adminKeys    = []string{"socket", "metrics", "api"}
	memoryKeys   = []string{"max"}
	logKeys      = []string{"format", "to"}
	listenerKeys = []string{"vip", "protocol", "backend", "idleTimeout", "connectionsMax", "backlog",
		"keepalive", "userTimeout", "onChange", "movable", "routes", "http", "proxyProtocol",
		"allow", "deny", "rate", "sourceRate", "sourceConnectionsMax", "accessLog"}
	keepaliveKeys = []string{"idle", "interval", "count"}
	backendKeys   = []string{"balance", "connectTimeout", "retry", "source", "limits", "endpoints",
		"proxyProtocol", "answerTimeout", "reuse", "hash", "preferLocal", "slowStart", "panic",
		"sticky", "check", "eject", "breaker", "fallback"}
	limitsKeys   = []string{"connectionsPerEndpoint", "queue", "queueTime"}
	endpointKeys = []string{"address", "name", "drop", "weight", "backup", "zone", "node", "connections", "check"}
	clusterKeys  = []string{"identity", "lease", "settle", "quorum", "onStop", "tunnel", "netadmin"}
	identityKeys = []string{"certificate", "key", "trust"}
)

// Parse makes a Config of src, the text of a file. The name of the file is
// for messages only. lookup gives the value of a variable for ${NAME} and
// whether it is set; a nil lookup has none.
//
// The error, if any, is an *[Errors] with every fault of the file, and the
// Config is nil. Warnings come with or without an error.
func Parse(file string, src []byte, lookup func(string) (string, bool)) (*Config, Warnings, error) {
	r := &reader{report: report{file: file}, lookup: lookup}
	config, _ := r.config(src)
	warnings, err := r.result()
	if err != nil {
		config = nil
	}
	return config, warnings, err
}

// result gives all that was reported, in the order of the file.
func (r *report) result() (Warnings, error) {
	sortProblems(r.problems)
	sortProblems(r.warnings)
	if len(r.problems) > 0 {
		return r.warnings, &Errors{r.problems}
	}
	return r.warnings, nil
}

// The places of what was read are kept until all of it was validated: who
// refers to something that is not there is told where.
type (
	// A listenerSite or a backendSite that was read for an earlier document is at
	// rest: it has no section until somebody wakes it.
	listenerSite struct {
		*section
		l      *Listener
		unread bool        // the protocol is none, so it is not known what else belongs here
		uses   []use       // of backends
		routes []routeSite // those of l.Rules
		logs   bool        // it says accessLog: on
		own    *own
		rest   sleeper
	}
	endpointSite struct {
		*section
		e *Endpoint
	}
	backendSite struct {
		*section
		b         *Backend
		byKernel  bool // the kernel chooses the source
		httpOnly  bool // it has keys that are for http
		endpoints []endpointSite
		uses      []use // of other backends
		own       *own
		rest      sleeper

		http, tcp *listenerSite // the first that reaches it, of each protocol
		reached   int           // the number of the last listener that was told of it
	}
	// draft is the file, read section by section. Lists are in the order of
	// the file, and have what is faulty, too.
	draft struct {
		root      *section
		node      Node
		listeners []listenerSite
		backends  []backendSite
		cluster   *Cluster
		at        *section // of the cluster
		nodes     map[string]*NodeSpec
		vips      map[string]*VIP
		sites     map[string]*section // of nodes.NAME and vips.NAME
		accessLog *AccessLog

		metricsLine int      // of node.admin.metrics
		api         *section // node.admin.api
		stateAt     place    // of node.state
	}
)

// config reads all of src. It gives the draft, too, nil if src has no sections.
func (r *reader) config(src []byte) (*Config, *draft) {
	root := r.load(src)
	if root == nil {
		return nil, nil
	}
	r.strict(root, "", 0)
	d := draft{root: r.section(root, place{1, 1}, "", "", rootKeys...)}
	if d.root.has("nodes") {
		r.lookup = withHost(r.lookup, d.root.values["nodes"])
	}
	r.nodeAndLog(&d)
	if d.root.has("vips") {
		r.lookup = withVIPs(r.lookup, vipTexts(d.root.values["vips"], r.lookup))
	}
	for _, e := range d.root.named("listeners") {
		warnings, asked := r.begin()
		site := r.listener(d.root, e)
		site.own = r.since(warnings, asked)
		d.listeners = append(d.listeners, site)
	}
	for _, e := range d.root.named("backends") {
		warnings, asked := r.begin()
		site := r.backend(d.root, e)
		site.own = r.since(warnings, asked)
		d.backends = append(d.backends, site)
	}
	r.clusterOf(&d)
	r.validate(&d)
	if len(r.problems) > 0 {
		return nil, &d // what was read is not whole
	}
	c := &Config{
		Node: d.node, Cluster: d.cluster, VIPs: d.vips, AccessLog: d.accessLog,
		Listeners: make(map[string]*Listener, len(d.listeners)),
		Backends:  make(map[string]*Backend, len(d.backends)),
	}
	for i := range d.listeners {
		d.listeners[i].seal()
		c.Listeners[d.listeners[i].l.Ref.Name] = d.listeners[i].l
	}
	for i := range d.backends {
		d.backends[i].seal()
		c.Backends[d.backends[i].b.Ref.Name] = d.backends[i].b
	}
	return c, &d
}

// seal seals the listener, of which nothing was refused.
func (l *listenerSite) seal() { l.fits(l.l.seal(l.l.Ref.Name)) }

// seal seals the backend, of which nothing was refused.
func (s *backendSite) seal() { s.fits(s.b.seal(s.b.Ref.Name)) }

// fits reports an object of n octets that is too large to move.
func (s *section) fits(n int) {
	if n += envelopeBytes; n > objectMax {
		s.r.fail(s.place, s.path, "its form for moves has %d octets; at most %d are taken", n, objectMax)
	}
}

func (r *reader) nodeAndLog(d *draft) {
	d.node = r.node(d)
	if r.logging = d.root.has("accessLog"); r.logging {
		d.accessLog = r.accessLog(d.root.section("accessLog", logKeys...))
	}
}

func (r *reader) clusterOf(d *draft) {
	if d.root.has("nodes") {
		d.nodes = r.nodes(d)
	}
	if d.root.has("vips") {
		d.vips = r.vips(d)
	}
	if d.root.has("cluster") {
		d.at = d.root.section("cluster", clusterKeys...)
		d.cluster = r.cluster(d.at, d)
	}
}

func (r *reader) node(d *draft) Node {
	s := d.root.section("node", nodeKeys...)
	n := Node{
		Name:           s.checked("name", r.nodeName(), checkName),
		Loops:          s.loops("loops"),
		ConnectionsMax: s.integer("connectionsMax", 0, connectionsBound),
		Zone:           s.checked("zone", "", checkZone),
	}
	n.MemoryMax = s.section("memory", memoryKeys...).size("max", 0, memoryBound)
	n.DNS = s.servers("dns")
	admin := s.section("admin", adminKeys...)
	n.AdminSocket = admin.checked("socket", defaultAdminSocket, checkUnixPath)
	n.Metrics = admin.addrPort("metrics", true)
	d.metricsLine = admin.at("metrics").line
	if admin.has("api") {
		api := admin.section("api", apiKeys...)
		n.API, d.api = api.api(), api
	}
	n.State, d.stateAt = s.checked("state", "", checkState), s.at("state")
	n.WatchFile = s.boolean("watchFile", false)
	return n
}

// nodeName is the name of a node whose file gives none: one file may be for all.
func (r *reader) nodeName() string {
	if name, set := r.look(NodeVariable); set && checkName(name) == nil {
		return name
	}
	return defaultNodeName
}

// loops reads a number of loops, or the word auto, which is 0.
func (s *section) loops(key string) (n int) {
	defer func() { s.notePlain(key, loopsText(n)) }()
	if t, ok := s.scalar(key); !ok || t.value == loopsAuto {
		return 0
	}
	t, ok := s.plain(key)
	if !ok {
		return 0
	}
	n, err := strconv.Atoi(t)
	if err != nil || !wholeForm.MatchString(t) || loopsBound.check(n) != nil {
		s.fail(key, "%q: must be %s, or %d to %d", clip(t), loopsAuto, loopsBound.min, loopsBound.max)
		return 0
	}
	return n
}

func loopsText(n int) string {
	if n == 0 {
		return loopsAuto
	}
	return strconv.Itoa(n)
}

func (r *reader) listener(root *section, e entry) listenerSite {
	s := root.entry("listeners", e, listenerKeys...)
	l := &Listener{Ref: Ref{Name: e.key.Value}}
	if s.require("vip", "10.0.0.5:5432") {
		s.vip("vip", l)
		l.DualStack = isDualStack(l.VIP)
	}
	site := listenerSite{section: s, l: l}
	before := len(r.problems)
	l.Protocol = Protocol(s.choice("protocol", uint8(TCP), protocolWords))
	known := len(r.problems) == before
	site.unread = !known
	switch {
	case l.Protocol == HTTP:
		site.http()
	case known || s.has("backend"):
		site.tcp(known)
	}
	if s.has("proxyProtocol") {
		p := s.section("proxyProtocol", proxyKeys...)
		l.ProxyFrom = p.prefixes("from")
		p.require("from", "[10.0.0.0/8]")
	}
	l.ConnectionsMax = s.integer("connectionsMax", 0, connectionsBound)
	l.Backlog = s.integer("backlog", defaultBacklog, backlogBound)

	k := s.section("keepalive", keepaliveKeys...)
	l.KeepaliveIdle = k.duration("idle", defaultKeepaliveIdle, keepaliveIdleBound)
	l.KeepaliveInterval = k.duration("interval", defaultKeepaliveInterval, keepaliveIntervalBound)
	l.KeepaliveCount = k.integer("count", defaultKeepaliveCount, keepaliveCountBound)
	l.UserTimeout = s.duration("userTimeout", defaultUserTimeout, userTimeoutBound)

	l.OnChange = Change(s.choice("onChange", uint8(KeepFlows), changeWords))
	l.Movable = s.boolean("movable", l.VIPName != "")
	if l.VIPName != "" && !l.Movable {
		s.fail("movable", "must be true, for the VIP %s moves between nodes; leave it out, or give the listener a plain address", l.VIPName)
	}
	s.guard(l)
	site.validateAlone()
	return site
}

// tcp reads what only a listener for TCP has. If the protocol is not known,
// what is for another one may be right.
func (l *listenerSite) tcp(known bool) {
	if l.require("backend", "web") {
		if l.l.BackendName = l.checked("backend", "", checkName); l.l.BackendName != "" {
			l.uses = append(l.uses, use{l.section, "backend", l.l.BackendName})
		}
	}
	l.l.IdleTimeout = l.duration("idleTimeout", defaultIdleTimeout, idleTimeoutBound)
	for _, key := range []string{"routes", "http"} {
		if known && l.has(key) {
			l.fail(key, "is for protocol: http, and this listener is for tcp")
		}
	}
}

func (r *reader) backend(root *section, e entry) backendSite {
	s := root.entry("backends", e, backendKeys...)
	b := &Backend{Ref: Ref{Name: e.key.Value}}
	b.Balance = Balance(s.choice("balance", uint8(RoundRobin), balanceWords))
	b.ConnectTimeout = s.duration("connectTimeout", defaultConnectTimeout, connectTimeoutBound)
	byKernel := s.source("source", b)

	limits := s.section("limits", limitsKeys...)
	b.ConnectionsPerEndpoint = limits.integer("connectionsPerEndpoint", 0, connectionsBound)
	b.QueueMax = limits.integer("queue", defaultQueueMax, queueBound)
	b.QueueTime = limits.duration("queueTime", defaultQueueTime, queueTimeBound)

	b.ProxyHeader = ProxyHeader(s.choice("proxyProtocol", uint8(NoProxyHeader), proxyWords))
	b.AnswerTimeout = s.duration("answerTimeout", defaultAnswerTimeout, answerTimeoutBound)
	s.reuse(b)

	site := backendSite{section: s, b: b, byKernel: byKernel}
	site.policy()
	if s.require("endpoints", "[ { address: 10.0.0.31:5432 } ]") {
		site.endpoints = r.endpoints(s, b)
	}
	site.httpOnly = s.has("answerTimeout") || s.has("reuse")
	site.validateAlone()
	return site
}

func (s *section) reuse(b *Backend) {
	reuse := s.section("reuse", reuseKeys...)
	idle := defaultIdleMax
	if b.ProxyHeader != NoProxyHeader {
		idle = 0 // such a connection says who its client is, so it is of no use to another
	}
	b.IdleMax = reuse.integer("idle", idle, idleBound)
	b.IdleTime = reuse.duration("time", defaultIdleTime, idleTimeBound)
	if b.ProxyHeader != NoProxyHeader && b.IdleMax > 0 {
		reuse.fail("idle", "must be 0, for proxyProtocol makes each connection one client's")
	}
}

func (r *reader) endpoints(s *section, b *Backend) []endpointSite {
	items := s.list("endpoints")
	n := s.values["endpoints"]
	switch {
	case n.Kind == yaml.SequenceNode && len(items) == 0:
		s.fail("endpoints", "the list is empty; a backend needs at least one endpoint")
	case len(items) > endpointsMax:
		s.fail("endpoints", "%d endpoints; a backend has at most %d", len(items), endpointsMax)
	}
	var sites []endpointSite
	for i, item := range items {
		site := endpointSite{s.item("endpoints", i, item, endpointKeys...), &Endpoint{Backend: b.Ref.Name}}
		e := site.e
		site.endpoint(b)
		b.Endpoints = append(b.Endpoints, e)
		sites = append(sites, site)
	}
	return sites
}

// endpoint reads one of the endpoints of b.
func (s *endpointSite) endpoint(b *Backend) {
	e := s.e
	switch {
	case s.has("drop"):
		e.Drop = NoDrop + 1 + Drop(s.choice("drop", 0, dropWords[NoDrop+1:]))
		if s.has("address") {
			s.fail("address", "there is drop, so this is no server; leave one of them out")
		}
	case s.require("address", "10.0.0.31:5432"):
		s.endpointAddress("address", e)
	}
	if e.known() {
		e.Name = e.Address()
	}
	if name := s.string("name", e.Name); name != e.Name {
		if err := checkName(name); err != nil {
			s.fail("name", "%q: %v", clip(name), err)
		}
		e.Name = name
	}
	e.Weight = s.integer("weight", DefaultWeight, weightBound)
	e.Backup = s.boolean("backup", false)
	e.Zone = s.checked("zone", "", checkZone)
	e.Node = s.checked("node", "", checkName)
	e.ConnectionsMax = s.integer("connections", 0, connectionsBound)
	if !s.has("check") {
		return
	}
	port := s.section.section("check", ownCheckKeys...)
	if port.require("port", "9000") {
		e.CheckPort = uint16(port.integer("port", 0, portBound))
	}
	switch {
	case b.Check == nil:
		s.fail("check", "says at which port the check of the backend is made, and the backend has none; add check: {} to it")
	case e.Drop != NoDrop:
		s.fail("check", "there is drop, so there is nothing to check")
	case e.Unix != "":
		s.fail("check", "a unix socket has no port; it is checked by itself")
	}
}

// known tells whether e has an address of any kind.
func (e *Endpoint) known() bool {
	return e.Unix != "" || e.Host != "" || e.Drop != NoDrop || e.Addr.IsValid()
}

// cluster reads what the nodes share, and takes what is only this node's from its own
// entry in nodes.
func (r *reader) cluster(s *section, d *draft) *Cluster {
	c := &Cluster{Peers: make(map[string]netip.AddrPort, len(d.nodes)), Nodes: d.nodes}
	c.common(s)
	c.identity(s)
	for name, n := range d.nodes {
		c.Peers[name] = n.Address
	}
	if self := d.nodes[d.node.Name]; self != nil {
		c.of(self)
	}
	return c
}

// identity reads by what nodes trust each other.
func (c *Cluster) identity(s *section) {
	if !s.require("identity", "{ certificate: n1.crt, key: n1.key, trust: ca.crt }") {
		return
	}
	identity := s.section("identity", identityKeys...)
	for i, path := range []*string{&c.Certificate, &c.Key, &c.Trust} {
		key := identityKeys[i]
		if identity.require(key, "/etc/holdfast/"+key+".pem") {
			*path = identity.checked(key, "", checkFilePath)
		}
	}
}
