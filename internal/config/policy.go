package config

import (
	"net/netip"
	"regexp"
	"time"
)

// Rate is how often something may happen: Count in each Per, and Burst at once
// (the generic cell rate algorithm of ITU-T I.371). It is immutable.
type Rate struct {
	Count int
	Per   time.Duration
	Burst int // at least 1
}

// Every is the time between two events at the full rate.
func (r *Rate) Every() time.Duration { return r.Per / time.Duration(r.Count) }

// SourceRate is a rate for each source. Bits4 and Bits6 say how much of an
// address names a source: 32 and 64 by default.
type SourceRate struct {
	Rate
	Bits4, Bits6 int
}

// Priority is a class of those that wait. A larger number goes first. The
// numbers are append-only in frozen flows.
type Priority uint8

const (
	LowPriority    Priority = iota // after all others
	NormalPriority                 // what has no other
	HighPriority                   // before all others
)

var priorityWords = []string{"low", "normal", "high"}

// String gives the word of the file for p.
func (p Priority) String() string { return word(priorityWords, uint8(p), "priority") }

// Retry says what of a request is tried again, beside connects that failed. What
// may not be repeated (RFC 9110, section 9.2.2) never is.
type Retry struct {
	// Reset: also when a connection that was new broke before any of the response.
	Reset bool
	// Statuses: also when the response has one of these; it is thrown away.
	Statuses []StatusRange
	// Budget bounds the retries to this share of the requests, in percent, beside
	// ten a second that are always allowed; 0 is no bound.
	Budget int
}

// StatusRange is a range of status codes, both ends included.
type StatusRange struct{ First, Last int }

// In tells whether one of the ranges has the status.
func In(all []StatusRange, status int) bool {
	for _, r := range all {
		if r.First <= status && status <= r.Last {
			return true
		}
	}
	return false
}

// Holds tells whether one of the prefixes has the address, which may be mapped from
// IPv4 or have a zone.
func Holds(all []netip.Prefix, a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	for _, p := range all {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// HashKind is what of a flow is hashed. Append-only.
type HashKind uint8

const (
	HashSource HashKind = iota // the client's address
	HashHeader                 // a field of the request; without it the source
	HashCookie                 // a cookie of the request; without it the source
	HashPath                   // the path of the target
)

var hashWords = []string{"source", "header", "cookie", "path"}

// String gives the word of the file for k.
func (k HashKind) String() string { return word(hashWords, uint8(k), "hash") }

// Hash is what [Maglev] goes by.
type Hash struct {
	Kind HashKind
	Name string // of the field or the cookie
	// Load bounds what one endpoint has, in percent of its fair part: beyond it
	// the next one in the hash's order is taken. At least 101; 0 is no bound.
	Load int
}

// StickyKind is what a client is known by. Append-only.
type StickyKind uint8

const (
	StickyCookie StickyKind = iota // a cookie that we set; we remember nothing
	StickyHeader                   // a field of the request, remembered in a table
	StickySource                   // the client's address, remembered in a table
)

var stickyWords = []string{"cookie", "header", "source"}

// String gives the word of the file for k.
func (k StickyKind) String() string { return word(stickyWords, uint8(k), "sticky") }

// Sticky keeps a client with the endpoint that it had before, also while that
// one is quiescing.
type Sticky struct {
	Kind StickyKind
	Name string // of the cookie or the field
	// MaxAge: a cookie is good for so long, 0 as long as the browser runs; an entry
	// of the table that was not used for so long is forgotten.
	MaxAge time.Duration
	// Key signs cookies, so that nobody chooses an endpoint; "" does not. It is a
	// secret: never shown, never logged.
	Key string
	// Secure, SameSite ("", "Lax", "Strict", "None"), Domain and Path are attributes
	// of the cookie (RFC 6265, section 4.1.2). HttpOnly is always set.
	Secure       bool
	SameSite     string
	Domain, Path string
	TableMax     int // entries of the table; the one unused for longest goes
	Bits4, Bits6 int // of a source, as in SourceRate
}

// CheckKind is how an endpoint is probed. Append-only.
type CheckKind uint8

const (
	CheckTCP   CheckKind = iota // it can be connected to
	CheckHTTP                   // it answers a request well
	CheckAgent                  // what the agent says alone
)

var checkWords = []string{"tcp", "http", "agent"}

// String gives the word of the file for k.
func (k CheckKind) String() string { return word(checkWords, uint8(k), "check") }

// Check says how endpoints are probed.
type Check struct {
	Kind CheckKind
	Port uint16 // 0: the endpoint's own
	// Interval between probes of an endpoint; FastInterval while it is between up
	// and down; DownInterval while it is down.
	Interval, FastInterval, DownInterval time.Duration
	Timeout                              time.Duration // of one probe, in all
	Rise, Fall                           int           // probes in a row that turn it up, down

	// Of CheckTCP: Send is sent after the connect, and the answer must begin with
	// Expect; "" is nothing.
	Send, Expect string
	// Of CheckHTTP.
	Method, Path, Host string // Host "" is the endpoint's address
	Headers            []Edit // only added; none of framing
	Statuses           []StatusRange
	Body               *regexp.Regexp // found in the first 64 KiB of the content; nil: any
	Drain              []StatusRange  // these mean: quiescing, not down

	// Agent asks a program beside the endpoint; nil does not.
	Agent *Agent
}

// Agent is a program that says in one line how its endpoint is: ready, drain,
// maint, down, up, stopped, or a share of its weight as N%.
type Agent struct {
	Port     uint16
	Interval time.Duration
	Send     string // first; "" is nothing
}

// Eject takes endpoints out that fail what clients ask for.
type Eject struct {
	// Consecutive failures eject; 0: they do not. So does a share of Rate percent
	// in a Window with at least Least attempts; 0: it does not.
	Consecutive, Rate, Least int
	Window                   time.Duration
	// Statuses are responses that are failures. Connects that fail, connections that
	// break before a response and responses that do not come in time always are.
	Statuses []StatusRange
	// Time is how long the first ejection lasts; each further one twice as long,
	// TimeMax at most.
	Time, TimeMax time.Duration
	// Share is how much of the endpoints may be ejected at once, in percent.
	Share int
}

// Breaker stops all requests to a backend that fails most of them: for Open,
// then Probes are let through, and decide.
type Breaker struct {
	Rate, Least int // percent of failures, of at least so many attempts in the window
	Window      time.Duration
	Open        time.Duration
	Probes      int
}

// Fallback is what serves instead of endpoints; one of the two is set.
type Fallback struct {
	Backend string // a key of Config.Backends; there is no circle
	Respond *Respond
}

// Drop is what a sink does to those it gets. Append-only.
type Drop uint8

const (
	NoDrop    Drop = iota // it is none
	DropReset             // they are reset
	DropHold              // they are kept, nothing is answered, what they say is thrown away
	Drop503               // they are answered 503; without HTTP they are closed
)

var dropWords = []string{"none", "reset", "hold", "503"}

// String gives the word of the file for d.
func (d Drop) String() string { return word(dropWords, uint8(d), "drop") }

// LogFormat is the form of the access log. Append-only.
type LogFormat uint8

const (
	LogJSON LogFormat = iota // one object a line
	LogText                  // one line in words
)

var logWords = []string{"json", "text"}

// String gives the word of the file for f.
func (f LogFormat) String() string { return word(logWords, uint8(f), "format") }

// AccessLog says where what was served is written.
type AccessLog struct {
	Format LogFormat
	// To is "stdout", "stderr", an absolute path, "syslog" (the local one), or
	// "syslog:10.0.0.9:514" (RFC 5424 over UDP).
	To string
}

// Resolved are the addresses of names, by "host:port" of endpoints.
type Resolved map[string][]netip.AddrPort
