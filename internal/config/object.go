package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Kind says what an object is. The numbers are part of the form in which
// flows travel: append, never renumber. The zero Kind is no kind.
type Kind uint8

const (
	ListenerKind Kind = iota + 1 // a [Listener]
	BackendKind                  // a [Backend], with its endpoints
	EndpointKind                 // an [Endpoint]
)

var kindWords = [...]string{"none", "listener", "backend", "endpoint"}

// String gives the word for k, as it is used in a [Ref].
func (k Kind) String() string {
	if int(k) < len(kindWords) {
		return kindWords[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Ref names one version of one object. Refs are comparable; two objects with
// the same Ref have the same contents. The zero Ref names nothing.
type Ref struct {
	Kind    Kind
	Name    string // for an endpoint "backend/endpoint"
	Version uint64 // the first 8 octets of SHA-256 over the object's canonical form
}

// String gives r as "listener/pg@1f3a5c7e90b2d4f6".
func (r Ref) String() string {
	return fmt.Sprintf("%v/%s@%016x", r.Kind, r.Name, r.Version)
}

// Change says what becomes of the flows of a listener when the listener
// changes. The numbers are append-only.
type Change uint8

const (
	KeepFlows  Change = iota // they go on under the objects they began with
	AdoptFlows               // they take the new listener's timeouts and limits
	CloseFlows               // they are closed
)

var changeWords = []string{"keep", "adopt", "close"}

// String gives the word of the file for c.
func (c Change) String() string { return word(changeWords, uint8(c), "change") }

// Balance is the way a backend chooses among its endpoints. The numbers are
// append-only.
type Balance uint8

const (
	RoundRobin Balance = iota // each in turn, smoothly, by weight
	Least                     // the one with the fewest connections for its weight
	Random                    // by chance, by weight
	P2C                       // of two by chance, the one that answers sooner: peak EWMA times requests under way
	Maglev                    // by a hash of what Hash names, and few change when endpoints do
)

var balanceWords = []string{"round-robin", "least", "random", "p2c", "maglev"}

// String gives the word of the file for b.
func (b Balance) String() string { return word(balanceWords, uint8(b), "balance") }

// Listener is a VIP and what happens to connections that arrive there. It is
// immutable.
type Listener struct {
	Ref Ref

	// VIP is where clients connect. Never IPv4-mapped, never with a zone.
	VIP netip.AddrPort
	// VIPName is the name of the VIP, a key of Config.VIPs, if it has one.
	VIPName string
	// DualStack: the VIP is [::] and takes IPv4 clients, too.
	DualStack bool
	// BackendName is a key of Config.Backends; "" of a listener for HTTP,
	// whose routes name backends.
	BackendName string
	// Protocol is what clients speak.
	Protocol Protocol
	// Rules are those for HTTP; nil for TCP.
	Rules *Rules
	// ProxyFrom: connections from these addresses begin with a PROXY header,
	// version 1 or 2, which says who the client is. Empty: none does.
	ProxyFrom []netip.Prefix
	// IdleTimeout ends a flow on which nothing moved for so long; 0 is never.
	IdleTimeout time.Duration
	// ConnectionsMax bounds the open flows; at the bound accepting waits and
	// the kernel's backlog is the queue. 0 is no bound.
	ConnectionsMax int
	// Backlog is the argument of listen(2), in connections.
	Backlog int
	// Allow and Deny judge a connection's address (of the socket, not of a PROXY
	// header): who is in Deny, or not in an Allow that is not empty, is reset.
	Allow, Deny []netip.Prefix
	// ConnectionRate bounds how many connections are accepted: more wait in the
	// backlog. SourceRate does so for each source: more are reset. Nil: none.
	ConnectionRate *Rate
	SourceRate     *SourceRate
	// SourceConnectionsMax bounds the open connections of one source, whose
	// size SourceRate's prefixes say, or one address; 0 is no bound.
	SourceConnectionsMax int
	// Unlogged: no access log of this listener's flows.
	Unlogged bool

	// KeepaliveIdle, KeepaliveInterval (whole seconds) and KeepaliveCount are
	// TCP_KEEPIDLE, TCP_KEEPINTVL and TCP_KEEPCNT of the flows' sockets.
	// KeepaliveIdle 0 is no keepalive.
	KeepaliveIdle, KeepaliveInterval time.Duration
	KeepaliveCount                   int
	// UserTimeout is how long a peer may acknowledge nothing of what it was sent,
	// and no probe of a closed window, before it counts as vanished (the user
	// timeout of RFC 9293, section 3.9.1, but for a peer that answers); 0 is
	// the kernel's default.
	UserTimeout time.Duration

	// OnChange says what becomes of the flows when the listener changes.
	OnChange Change
	// Movable: flows may be moved to another host.
	Movable bool
}

// Names gives the names of all backends that l uses, sorted, each once. Nobody
// may change it.
func (l *Listener) Names() []string {
	if l.Rules != nil {
		return l.Rules.BackendNames()
	}
	return []string{l.BackendName}
}

// Backend is a named set of endpoints with one policy. It is immutable, and
// so is the slice.
type Backend struct {
	Ref Ref

	// Balance is the way an endpoint is chosen.
	Balance Balance
	// ConnectTimeout bounds one attempt to connect to one endpoint.
	ConnectTimeout time.Duration
	// RetryMax is the number of further attempts for a flow or a request.
	RetryMax int
	// Retry says what is tried again beside failed connects, and how much.
	Retry Retry

	// SourceVIP: dial from the local address of the client leg. Source: dial
	// from this address. Neither: the kernel chooses. Never both.
	SourceVIP bool
	Source    netip.Addr

	// ConnectionsPerEndpoint bounds the open connections to each endpoint,
	// from all loops together; 0 is no bound.
	ConnectionsPerEndpoint int
	// QueueMax is the number of flows that may wait for an endpoint, 0 is no bound, QueueTime
	// how long one waits at most.
	QueueMax  int
	QueueTime time.Duration

	// ProxyHeader is sent first on each connection to an endpoint.
	ProxyHeader ProxyHeader
	// The rest is for HTTP. AnswerTimeout bounds the wait for the first octet
	// of a response.
	AnswerTimeout time.Duration
	// IdleMax is how many idle connections to each endpoint a loop keeps for
	// further requests, IdleTime for how long; 0 keeps none.
	IdleMax  int
	IdleTime time.Duration

	// Hash is what [Maglev] hashes.
	Hash Hash
	// PreferLocal: endpoints of the node's zone come first, while there are any
	// that are ready.
	PreferLocal bool
	// SlowStart: an endpoint that comes back gets its weight little by little.
	SlowStart time.Duration
	// Panic is the share of endpoints, in percent, of which must be up: with fewer
	// health is not believed and all serve but those in maintenance. 0 is never.
	Panic int
	// Sticky keeps a client with one endpoint; nil does not.
	Sticky *Sticky
	// Check probes endpoints, Eject watches what they do, Breaker stops asking
	// any of them; each nil: no such thing.
	Check   *Check
	Eject   *Eject
	Breaker *Breaker
	// Fallback serves while no endpoint does; nil: 503, or the end of the flow.
	Fallback *Fallback

	// Endpoints are sorted by name. The file has at least one; there is none while
	// no name among them resolves.
	Endpoints []*Endpoint
}

// Endpoint is one address of a backend. It is immutable.
type Endpoint struct {
	Ref Ref

	Backend string         // the name of its backend
	Name    string         // unique in its backend
	Addr    netip.AddrPort // valid unless Unix is set
	Unix    string         // absolute path of a unix stream socket, or ""

	// Host and Port are set of an endpoint that is a name: Addr is not valid and
	// nothing is ever sent to it. What the name resolves to are endpoints of
	// their own ([Config.Resolved]), with Host set and Addr valid.
	Host string
	Port uint16
	// Drop is set of an endpoint that is no server but a sink, without address.
	Drop Drop

	// Weight is the endpoint's share, 0 to 1000; 0 gets nothing new but what is
	// sticky to it.
	Weight int
	// Backup endpoints serve while no other one does.
	Backup bool
	// Zone is where it is; "" is nowhere.
	Zone string
	// Node is the node of the cluster on whose host it runs, if it is one.
	Node string
	// ConnectionsMax replaces the backend's ConnectionsPerEndpoint; 0 does not.
	ConnectionsMax int
	// CheckPort replaces the check's port; 0 does not.
	CheckPort uint16
}

// DefaultWeight is the weight of an endpoint of which the file says none.
const DefaultWeight = 100

// Address gives the endpoint's address as the file writes it:
// "10.0.0.31:5432" or "unix:/run/app.sock".
func (e *Endpoint) Address() string {
	switch {
	case e.Unix != "":
		return unixPrefix + e.Unix
	case e.Drop != NoDrop:
		return "drop:" + e.Drop.String()
	case !e.Addr.IsValid():
		return e.hostPort()
	}
	return e.Addr.String()
}

// Endpoint gives the endpoint of that name, or nil.
func (b *Backend) Endpoint(name string) *Endpoint {
	i, found := slices.BinarySearchFunc(b.Endpoints, name, func(e *Endpoint, name string) int { return strings.Compare(e.Name, name) })
	if !found {
		return nil
	}
	return b.Endpoints[i]
}
