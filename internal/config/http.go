package config

import (
	"net/netip"
	"regexp"
	"time"
)

// Protocol is what a listener's clients speak. The numbers are append-only.
type Protocol uint8

const (
	TCP  Protocol = iota // octets, passed as they are
	HTTP                 // HTTP/1.1 and 1.0
)

var protocolWords = []string{"tcp", "http"}

// String gives the word of the file for p.
func (p Protocol) String() string { return word(protocolWords, uint8(p), "protocol") }

// Rules are how a listener treats HTTP. They are part of the listener.
type Rules struct {
	// Routes in order: the first that matches rules a request. There is at
	// least one. A request that none matches is answered 404.
	Routes []*Route

	// Trust are the addresses of proxies before us, whose X-Forwarded-For,
	// X-Forwarded-Proto, X-Forwarded-Host and Forwarded are kept and added to.
	// Those of other clients are replaced.
	Trust []netip.Prefix
	// Forwarded says which of these fields are sent to backends.
	Forwarded ForwardedFields
	// Via is the pseudonym for the Via field; "" sends none.
	Via string
	// RequestID is the name of the field that identifies a request, "" sends
	// none. One that a trusted proxy sent is kept.
	RequestID string

	// LineMax, HeadMax (octets) and FieldsMax bound heads of requests and of responses.
	LineMax, HeadMax, FieldsMax int
	// BodyMax bounds the content of a request, in octets; 0 is no bound.
	BodyMax uint64

	// HeaderTimeout: from the first octet of a head to its end.
	HeaderTimeout time.Duration
	// BodyTimeout: without progress of a request's or a response's body, of
	// either side.
	BodyTimeout time.Duration
	// KeepaliveTimeout: between requests; 0 closes after each.
	KeepaliveTimeout time.Duration
	// TunnelTimeout: without octets, after an upgrade or CONNECT; 0 is never.
	TunnelTimeout time.Duration

	// Rate bounds the requests of the listener, SourceRate those of each source
	// (the client as Trust knows it); more are answered 429. Nil: none.
	Rate       *Rate
	SourceRate *SourceRate

	names []string // of BackendNames
}

// BackendNames gives the names of all backends that routes name, sorted, each
// once. Nobody may change it.
func (r *Rules) BackendNames() []string { return r.names }

// ForwardedFields says how a backend is told whom we speak for. Append-only.
type ForwardedFields uint8

const (
	XForwarded  ForwardedFields = iota // X-Forwarded-For, -Proto, -Host
	RFC7239                            // Forwarded
	BothFields                         // all of them
	NoForwarded                        // none; those that came are handled by Trust all the same
)

var forwardedWords = []string{"x-forwarded", "rfc7239", "both", "none"}

// String gives the word of the file for f.
func (f ForwardedFields) String() string { return word(forwardedWords, uint8(f), "forwarded") }

// Route is one rule: what it matches, and what becomes of it. Exactly one of
// Backends, Redirect and Respond is set.
type Route struct {
	// Name is unique in its listener; "" is none.
	Name  string
	Match Match

	// Backends share the requests by weight; there is one with a weight above 0.
	// They are sorted by name.
	Backends []Weighted
	Redirect *Redirect
	Respond  *Respond

	// Rewrite changes the path; nil leaves it.
	Rewrite *Rewrite
	// Request and Response are edits of fields, in order: first what removes,
	// then what sets, then what adds. None is of a field for framing or for
	// one hop; Host may be set in a request. There are none without Backends.
	Request, Response []Edit
	// AnswerTimeout replaces the backend's; 0 does not.
	AnswerTimeout time.Duration
	// Rate and SourceRate are as those of Rules, for requests under this route.
	Rate       *Rate
	SourceRate *SourceRate
	// Priority orders those that wait for an endpoint: a request of a higher
	// one goes before all of lower ones.
	Priority Priority

	weight int // of all Backends
}

// Weight is the sum of the weights of the backends; 0 of a route that answers
// by itself.
func (r *Route) Weight() int { return r.weight }

// Match is what a request must be like. The zero value matches all.
type Match struct {
	// Hosts: one of them equals the host without its port, in lower case;
	// "*.example.org" matches any name below example.org. Empty: any.
	Hosts []string
	// Path: at most one of these is set. Prefix "/a/" matches "/a/b" and "/a/"; "/a"
	// matches "/a", "/a/b", not "/ab". They are octets of the target as it was
	// sent: nothing is decoded. A path with "/../" or "/./" segments, encoded
	// or not, never matches by Exact, Prefix or Regex but is refused (400).
	Exact, Prefix string
	Regex         *regexp.Regexp // anchored at both ends
	Methods       []string       // one of them, case-sensitive; empty: any
	Headers       []Pair         // all of them
	Query         []Pair         // all of them; names and values as they were sent
	Sources       []netip.Prefix // one of them holds the client, as Trust knows it; empty: any
}

// ByPath tells whether m looks at the path.
func (m *Match) ByPath() bool { return m.Exact != "" || m.Prefix != "" || m.Regex != nil }

// Pair is a name and what its value must be.
type Pair struct {
	Name    string
	Value   string         // equal to it, unless Present or Regex
	Present bool           // any value will do
	Regex   *regexp.Regexp // anchored at both ends
}

// Weighted is a backend's share.
type Weighted struct {
	Name   string // a key of Config.Backends
	Weight int    // 0 to 1000; shares are weights divided by their sum
}

// Redirect answers with another place. Empty parts are those of the request.
type Redirect struct {
	Status       int // 301, 302, 303, 307 or 308
	Scheme, Host string
	Path         string // replaces the path; the query stays
}

// Respond answers by itself.
type Respond struct {
	Status int // 200 to 599
	Type   string
	Body   string
}

// Rewrite changes the path of the target: Prefix replaces what the route matched
// by Exact or Prefix, with one slash where it meets what is left; or a path that
// Regex matches is replaced by Replacement, in the form of
// [regexp.Regexp.Expand]. A path that Regex does not match stays.
type Rewrite struct {
	Prefix      string // with HasPrefix
	HasPrefix   bool
	Regex       *regexp.Regexp // anchored at both ends
	Replacement string
}

// EditKind is what an [Edit] does. Append-only.
type EditKind uint8

const (
	SetField    EditKind = iota // removes all of the name, then adds one
	AddField                    // adds one
	RemoveField                 // removes all of the name
)

var editWords = []string{"set", "add", "remove"}

// String gives the word of the file for k.
func (k EditKind) String() string { return word(editWords, uint8(k), "edit") }

// Edit is one change of a head's fields.
type Edit struct {
	Kind  EditKind
	Name  string
	Value string
}

// ProxyHeader is a version of the PROXY protocol. Append-only.
type ProxyHeader uint8

const (
	NoProxyHeader ProxyHeader = iota // none
	ProxyV1                          // in text
	ProxyV2                          // in octets
)

var proxyWords = []string{"none", "v1", "v2"}

// String gives the word of the file for p.
func (p ProxyHeader) String() string { return word(proxyWords, uint8(p), "proxyProtocol") }
